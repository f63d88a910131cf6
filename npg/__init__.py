"""npg: NumPy policy gradients. Every formula of the lecture as a few lines of NumPy.

The whole lecture is one line, and every algorithm a choice of the weight Ψ in it:

    ĝ = 1/N  Σᵢ Σₜ  Ψₜ⁽ⁱ⁾ ∇θ log πθ(aₜ⁽ⁱ⁾ | sₜ⁽ⁱ⁾)

Read the modules in this order; each imports only from those before it.

    gradcheck        is a hand-written gradient right?
    network          forward and backward passes over one parameter vector θ
    distributions    log π beside ∇ log π
    score_function   ∇E[f(x)] from samples, of any distribution and any f
    policy           network + distribution: Σ w ∇θ log πθ(a|s), and the two actor-critic designs
    exploration      policies that act with another distribution than π, and are scored by it
    rollout          experience from Gymnasium's vector environments
    returns          the weights Ψ that need no learning
    optimizers       from a gradient to a step, uphill
    baselines        what may be subtracted from Ψ
    reinforce        REINFORCE
    actor_critic     the lecture's five steps, A2C, Q actor-critic
    replay           the experience buffer and importance weights; PPO
    a3c              A3C, Algorithm S3; A2C with several workers
    gradient_free    search that knows only f(θ): hill climbing, genetic, finite differences, evolution strategies
    tabular          every trajectory of a small MDP enumerated: exact gradients, and the exact moments of estimators
    pong             Pong from pixels: what the player sees, many games side by side

The scripts run_cartpole.py and run_pong.py put these parts together, one function an algorithm. What a run needs
besides (command line, run folders, evaluations, environments, worker processes) is in `npg.runner`. Nothing above
imports it.

Importing `npg` imports nothing: take what you need, e.g. `from npg.network import MLP`.
"""

__version__ = "0.1.0"
