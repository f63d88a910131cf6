"""Learning several times from the same experience: the experience buffer, importance weights and their limits, PPO
(proximal policy optimisation).

The experience comes from an older policy b ("data from an older policy … importance sampling", slide
"REINFORCE/Actor-critic training"). The ratio ρ = π_θ(a|s) / b(a|s) corrects for that:

    ∇_θ E_{a∼π_θ(·|s)}[Ψ] = E_{a∼b(·|s)}[ρ Ψ ∇_θ log π_θ(a|s)]

for a given state s and a given Ψ. This does not correct the states, which are those that b visited. It does not
correct the advantages either, which are as old as the experience. Only the product of all ratios corrects a whole
trajectory, but the variance of the product grows exponentially.

Each choice of importance weight is a pair of functions: a surrogate, which is a number computed from ρ and Ψ, and its
derivative with respect to log π_θ(a|s). The derivative is the number that multiplies the score, so the step ascends the
surrogate. ∂ρ/∂ log π = ρ.
"""

from typing import NamedTuple

import numpy as np

from npg import returns
from npg.baselines import minibatches
from npg.optimizers import clip_norm


def plain_surrogate(ratio, psi):
    """ρ Ψ: an unbiased estimate of E_{a∼π}[Ψ] in each state. Its variance grows with the distance between π and b."""
    return ratio * psi


def plain_weight(ratio, psi):
    """∂(ρ Ψ) / ∂ log π = ρ Ψ."""
    return ratio * psi


def truncated_surrogate(ratio, psi, limit=2.0):
    """ρ Ψ for ρ ≤ c, else c (1 + log(ρ/c)) Ψ: the function whose derivative is min(ρ, c) Ψ; c is `limit`."""
    above = ratio.real > limit
    return np.where(above, limit * (1 + np.log(np.where(above, ratio, limit) / limit)), ratio) * psi


def truncated_weight(ratio, psi, limit=2.0):
    """min(ρ, c) Ψ (truncated importance sampling, Ionides 2008): a bounded variance, but some bias."""
    return np.minimum(ratio, limit) * psi


def clipped_surrogate(ratio, psi, epsilon=0.2):
    """min(ρ Ψ, clip(ρ, 1−ε, 1+ε) Ψ) (PPO: Schulman et al. 2017, eq. 7)."""
    return np.where(_is_clipped(ratio.real, psi, epsilon), np.where(psi > 0, 1 + epsilon, 1 - epsilon), ratio) * psi


def clipped_weight(ratio, psi, epsilon=0.2):
    """ρ Ψ, or 0 if Ψ > 0 and ρ > 1 + ε, or if Ψ ≤ 0 and ρ < 1 − ε.

    The 0 stops the update for actions whose probability has already changed enough in the direction of Ψ. So the sum
    of these weights times the scores does not estimate ∇U.
    """
    return np.where(_is_clipped(ratio, psi, epsilon), 0, ratio * psi)


def _is_clipped(ratio, psi, epsilon):
    return np.where(psi > 0, ratio > 1 + epsilon, ratio < 1 - epsilon)


IMPORTANCE = {"plain": plain_weight, "truncated": truncated_weight, "clipped": clipped_weight}


def effective_sample_size(ratio):
    """(Σ ρ)² / Σ ρ² (Kish 1965): about the number of on-policy samples that would be as good.

    This holds if Ψ does not depend on ρ.
    """
    return float(np.sum(ratio) ** 2 / np.sum(ratio**2))


class Experience(NamedTuple):
    """B single steps [B, …]: observation, action, log b(a|s) of the policy b that acted, advantage and return."""

    obs: np.ndarray
    act: np.ndarray
    logp: np.ndarray
    adv: np.ndarray
    ret: np.ndarray


class ExperienceBuffer:
    """The last `capacity` batches of experience. Minibatches mix all of them (slide "REINFORCE/Actor-critic training").

    With capacity 1, each new batch replaces the old one, as in PPO. A larger capacity adds data of older policies. Each
    step keeps its log-probability under the policy that acted. So each step gets its own importance weight.
    """

    def __init__(self, capacity=1):
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1 batch, got {capacity}")
        self.capacity, self.batches = capacity, []

    def add(self, experience):
        """Adds an `Experience`, without a copy of its arrays. Beyond `capacity`, the oldest one is dropped."""
        self.batches = [*self.batches, experience][-self.capacity :]

    def draw(self, size, epochs, rng):
        """Yields shuffled minibatches (`Experience`) of about `size` steps. Each epoch uses every step once."""
        if not self.batches:
            raise ValueError("the experience buffer is empty: call `add` before `draw`")
        everything = Experience(*(np.concatenate(parts) for parts in zip(*self.batches)))
        for batch in minibatches(len(everything.obs), size, epochs, rng):
            yield Experience(*(x[batch] for x in everything))


def ppo(
    sampler,
    model,
    theta,
    optimizer,
    buffer=None,
    *,
    n_steps=128,
    gamma=0.99,
    lam=0.95,
    importance="clipped",
    clip=0.2,
    truncate=2.0,
    epochs=5,
    batch_size=256,
    value_coef=0.5,
    entropy_coef=0.0,
    standardise=True,
    max_grad_norm: float | None = 0.5,
):
    """Advantage actor-critic that reuses its experience: a2c with the weight ρ Ψ, and `epochs` passes per rollout.

    With importance="clipped" and a buffer of capacity 1, the default, it is PPO (Schulman et al. 2017, Algorithm 1).
    V and log b are computed with the parameters that acted, `rollout.theta`. `standardise` gives the advantages of
    each minibatch mean 0 and standard deviation 1. θ is improved in place. Raises ValueError for an unknown
    `importance`.

    Yields the measures of each update: "rollout", its "explained_variance", and those of the last minibatch,
    "grad_norm", "entropy", "kl" = mean(ρ − 1 − log ρ), an estimate of KL(b ‖ π), and "effective_sample_size", as a
    share of the minibatch.
    """
    buffer = ExperienceBuffer(capacity=1) if buffer is None else buffer
    if importance not in IMPORTANCE:
        raise ValueError(f"importance: expected one of {', '.join(IMPORTANCE)}, got {importance!r}")
    limit = {"truncated": (truncate,), "clipped": (clip,)}.get(importance, ())  # c, or ε
    while True:
        rollout = sampler.steps(model, theta, n_steps)
        params, val = model.params_and_value(rollout.theta, rollout.obs)
        logp = model.distribution.log_prob(params[:-1], rollout.act)
        adv = returns.gae(rollout.rew, rollout.terminated, rollout.truncated, val, gamma, lam)
        obs, act, logp, adv, ret, val = rollout.flatten(logp, adv, adv + val[:-1], val[:-1])
        buffer.add(Experience(obs, act, logp, adv, ret))
        for batch in buffer.draw(batch_size, epochs, sampler.rng):
            n = len(batch.obs)
            psi = returns.standardise(batch.adv) if standardise else batch.adv
            dtheta = model.gradient(
                theta,
                batch.obs,
                batch.act,
                lambda log_pi: IMPORTANCE[importance](np.exp(log_pi - batch.logp), psi, *limit) / n,
                lambda value: value_coef * (batch.ret - value) / n,
                entropy_coef / n,
            )
            norm = clip_norm(dtheta, max_grad_norm)
            optimizer.step(theta, dtheta)
        params, _ = model.policy.params(model.actor_params(theta), batch.obs)
        log_ratio = model.distribution.log_prob(params, batch.act) - batch.logp
        ratio = np.exp(log_ratio)
        yield {
            "rollout": rollout,
            "grad_norm": norm,
            "entropy": model.distribution.entropy(params).mean(),
            "explained_variance": returns.explained_variance(ret, val),
            "kl": float(np.mean(ratio - 1 - log_ratio)),
            "effective_sample_size": effective_sample_size(ratio) / len(ratio),
        }
