"""npg: policy gradients in NumPy. Every formula of the lecture is a few lines of NumPy.

Every policy gradient of the lecture is one equation. Each algorithm chooses the weight Ψ in it. (A3C may add the
gradient of an entropy term.)

    ĝ = 1/N  Σᵢ Σₜ  Ψₜ⁽ⁱ⁾ ∇θ log πθ(aₜ⁽ⁱ⁾ | sₜ⁽ⁱ⁾)

∇θ log πθ(a|s) is called the score.

Read the modules in this order; each imports only from those before it. (For the order of the slides, follow
docs/lecture.md.)

    gradcheck        checks a hand-written gradient against a numerical one
    network          forward and backward passes over one parameter vector θ
    distributions    log π and its gradient ∇ log π
    score_function   estimates ∇E[f(x)] from samples, for any distribution and any f
    policy           network + distribution: Σ Ψ ∇θ log πθ(a|s), and the two actor-critic designs
    exploration      policies that draw actions from another distribution b than π, and use the score of b
    rollout          collects experience from Gymnasium's vector environments
    returns          the weights Ψ, from rewards and given values V
    optimizers       steps along a gradient, uphill
    baselines        baselines, which are subtracted from Ψ
    reinforce        REINFORCE
    actor_critic     the lecture's five steps, A2C, Q actor-critic
    replay           the experience buffer, importance weights, PPO
    a3c              A3C (Algorithm S3), and A2C with several workers
    gradient_free    search with values f(θ) only: hill climbing, genetic, finite differences, evolution strategies
    tabular          enumerates all trajectories of a small MDP: exact gradients, exact moments of estimators
    pong             Pong from pixels: the player's observations, many games side by side

The scripts run_cartpole.py and run_pong.py combine these parts, with one function per algorithm. The rest of a run
(command line, run folders, evaluations, environments, worker processes) is in `npg.runner`. No module above imports
`npg.runner`.

`import npg` imports no module. Import what you need, e.g. `from npg.network import MLP`.
"""

__version__ = "0.1.0"
