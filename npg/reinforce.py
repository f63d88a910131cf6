"""REINFORCE with any weight and any baseline: sample the lecture's ĝ, then make a step along it.

    ĝ = 1/N Σ_i Σ_t ∇_θ log π_θ(a_t⁽ⁱ⁾|s_t⁽ⁱ⁾) (Ψ_t⁽ⁱ⁾ − b)

There is no loss here, because the gradient is written by hand. An autograd framework would call this number the loss:
−(policy.log_prob(theta, obs, act) * adv).sum() / N. The number does not show how good the policy is.
"""

from npg import baselines, returns
from npg.optimizers import clip_norm

# name on the command line: function that computes Ψ [T, N] from a rollout of complete episodes and γ
WEIGHTS = {
    "total": lambda rollout, gamma: returns.trajectory_return(rollout.rew, rollout.done, rollout.valid, gamma),
    "reward-to-go": lambda rollout, gamma: returns.reward_to_go(rollout.rew, rollout.done, gamma),
    "discounted": lambda rollout, gamma: returns.discounted_reward_to_go(
        rollout.rew, rollout.done, rollout.valid, gamma
    ),
}

BASELINES = {
    "none": baselines.none,
    "constant": baselines.constant,
    "optimal": baselines.optimal_constant,
    "leave-one-out": baselines.leave_one_out,
    "time": baselines.time_dependent,
    "state": baselines.StateBaseline,
}


def reinforce(
    sampler,
    policy,
    theta,
    optimizer,
    baseline=baselines.none,
    *,
    weight="reward-to-go",
    gamma=1.0,
    standardise=False,
    entropy_coef=0.0,
    max_grad_norm: float | None = None,
):
    """Improves θ in place. Never ends; the caller stops.

    One update samples one complete episode in each of the sampler's N environments. Then it computes the weights, the
    baseline and the gradient, and makes a step. `standardise` subtracts the batch mean of Ψ − b and divides by the
    batch standard deviation.

    Yields the measures of each update: "rollout", "grad_norm" and, after the step, "entropy". Raises ValueError for an
    unknown `weight`.
    """
    if weight not in WEIGHTS:
        raise ValueError(f"weight: expected one of {', '.join(WEIGHTS)}, got {weight!r}")
    while True:
        rollout = sampler.episodes(policy, theta)
        psi = WEIGHTS[weight](rollout, gamma)
        adv = psi - baseline(policy, theta, rollout, psi)
        obs, act, adv = rollout.flatten(adv)
        if standardise:
            adv = returns.standardise(adv)
        n_trajectories = rollout.rew.shape[1]
        dtheta = policy.grad_log_prob(theta, obs, act, adv, entropy_coef) / n_trajectories
        norm = clip_norm(dtheta, max_grad_norm)
        optimizer.step(theta, dtheta)
        yield {"rollout": rollout, "grad_norm": norm, "entropy": policy.entropy(theta, obs).mean()}
