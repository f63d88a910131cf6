"""REINFORCE with any weight and any baseline: the lecture's ĝ, sampled, and a step along it.

    ĝ = 1/N Σ_i Σ_t ∇_θ log π_θ(a_t⁽ⁱ⁾|s_t⁽ⁱ⁾) (Ψ_t⁽ⁱ⁾ − b)

There is no loss here: the gradient is written by hand. The number that an autograd framework would call the loss is
−(policy.log_prob(theta, obs, act) * adv).sum() / N. It says nothing about how well the policy does.
"""

from npg import baselines, returns
from npg.optimizers import clip_norm

# Ψ as a function of a rollout of complete episodes and γ, by its name on the command line
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
    """Improve θ in place, for ever; yields the measures of each update.

    One update: one complete episode in each of the sampler's N environments, weights, baseline, gradient, step.
    `standardise` subtracts the batch mean of Ψ − b and divides by its standard deviation.
    """
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
