"""npg: NumPy policy gradients. Every formula of the lecture as a few lines of NumPy.

The whole lecture is one line, and every algorithm a choice of the weight Ψ in it:

    ĝ = 1/N  Σᵢ Σₜ  Ψₜ⁽ⁱ⁾ ∇θ log πθ(aₜ⁽ⁱ⁾ | sₜ⁽ⁱ⁾)

Read the modules in this order; each imports only from those before it.

    gradcheck        is a hand-written gradient right?
    network          forward and backward passes over one parameter vector θ
    distributions    log π beside ∇ log π
    exploration      policies that act otherwise than π, for more diversity: PLACEHOLDER
    score_function   ∇E[f(x)] from samples, of any distribution and any f
    policy           network + distribution: Σ w ∇θ log πθ(a|s), and the two actor-critic designs
    rollout          experience from Gymnasium's vector environments
    returns          the weights Ψ that need no learning
    optimizers       from a gradient to a step, uphill
    baselines        what may be subtracted from Ψ
    reinforce        REINFORCE
    actor_critic     the lecture's five steps, A2C, Q actor-critic
    replay           the experience buffer and importance weights; PPO
    workers          processes that compute: a pool that outlives its workers, arrays that they share
    a3c              A3C, Algorithm S3; A2C over several workers; gradients applied as they arrive
    gradient_free    search that knows only f(θ): hill climbing, genetic, finite differences, evolution strategies
    tabular          every trajectory of a small MDP enumerated: exact gradients, and the exact moments of estimators
    environments     Gymnasium's environments, wrapped for the policies
    experiment       from plain settings to something that learns
    pong             Pong from pixels: what the player sees, many games side by side
    runs, plots      a training run on disk; figures
    training, cli    the training loop; the command line that the run scripts share

Importing `npg` imports nothing: take what you need, e.g. `from npg.network import MLP`.
"""

__version__ = "0.1.0"
