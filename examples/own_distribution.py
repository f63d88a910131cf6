#!/usr/bin/env python
"""How to write your own distribution: a Beta policy, whose actions never leave their bounds (Chou et al. 2017).

    π(a) = a^{α−1} (1−a)^{β−1} / B(α, β) on (0, 1),     α = 1 + e^{h_1},  β = 1 + e^{h_2}

    ∂ log π / ∂α = log a − ψ(α) + ψ(α+β),     ∂ log π / ∂β = log(1−a) − ψ(β) + ψ(α+β)

    python examples/own_distribution.py

A policy needs `sample`, `mode`, `log_prob`, `grad_log_prob` and `entropy`; with an entropy bonus also `grad_entropy`.
ψ is the derivative of log Γ. NumPy has neither ψ nor ψ', so this file computes them by asymptotic series.
"""

from npg.runner import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()  # Ctrl-C during the imports ends the program at once

import argparse
import math

import gymnasium
import numpy as np
from gymnasium import spaces

from npg.gradcheck import check_gradient
from npg.network import MLP
from npg.optimizers import Adam
from npg.policy import Policy
from npg.reinforce import reinforce
from npg.rollout import Sampler

log_gamma = np.vectorize(math.lgamma, otypes=[float])


def digamma(x):
    """ψ(x) = d log Γ(x) / dx, x > 0: ψ(x) = ψ(x + 6) − Σ 1/(x + k), and Stirling's series (Bernardo 1976)."""
    y = np.asarray(x, np.float64) + 6
    series = np.log(y) - 1 / (2 * y) - 1 / (12 * y**2) + 1 / (120 * y**4) - 1 / (252 * y**6) + 1 / (240 * y**8)
    return series - 1 / (132 * y**10) + 691 / (32760 * y**12) - sum(1 / (y - k) for k in range(1, 7))


def trigamma(x):
    """ψ'(x), x > 0: the derivative of `digamma`, term by term."""
    y = np.asarray(x, np.float64) + 6
    series = 1 / y + 1 / (2 * y**2) + 1 / (6 * y**3) - 1 / (30 * y**5) + 1 / (42 * y**7) - 1 / (30 * y**9)
    return series + 5 / (66 * y**11) - 691 / (2730 * y**13) + sum(1 / (y - k) ** 2 for k in range(1, 7))


def log_beta(alpha, beta):
    """log B(α, β) = log Γ(α) + log Γ(β) − log Γ(α+β)."""
    return log_gamma(alpha) + log_gamma(beta) - log_gamma(alpha + beta)


class Beta:
    """Beta(α, β) in each of n dimensions of (0, 1), params = [h_1 (n), h_2 (n)]."""

    def __init__(self, n):
        self.n, self.n_params = n, 2 * n

    def shapes(self, params):
        """α and β. Both are above 1, so the density has one peak."""
        return 1 + np.exp(params[..., : self.n]), 1 + np.exp(params[..., self.n :])

    def sample(self, params, rng):
        """a ~ Beta(α, β), clipped to [1e-6, 1 − 1e-6]."""
        return np.clip(rng.beta(*self.shapes(params)), 1e-6, 1 - 1e-6)

    def mode(self, params):
        """(α − 1) / (α + β − 2)."""
        alpha, beta = self.shapes(params)
        return (alpha - 1) / (alpha + beta - 2)

    def log_prob(self, params, act):
        """log π(a), summed over the dimensions."""
        alpha, beta = self.shapes(params)
        return ((alpha - 1) * np.log(act) + (beta - 1) * np.log(1 - act) - log_beta(alpha, beta)).sum(axis=-1)

    def grad_log_prob(self, params, act):
        """∂/∂h_1 = ∂/∂α · (α − 1), ∂/∂h_2 = ∂/∂β · (β − 1)."""
        (alpha, beta), common = self.shapes(params), digamma(sum(self.shapes(params)))
        dalpha = np.log(act) - digamma(alpha) + common
        dbeta = np.log(1 - act) - digamma(beta) + common
        return np.concatenate([dalpha * (alpha - 1), dbeta * (beta - 1)], axis=-1)

    def entropy(self, params):
        """log B − (α−1) ψ(α) − (β−1) ψ(β) + (α+β−2) ψ(α+β), summed over the dimensions."""
        alpha, beta = self.shapes(params)
        common = log_beta(alpha, beta) + (alpha + beta - 2) * digamma(alpha + beta)
        return (common - (alpha - 1) * digamma(alpha) - (beta - 1) * digamma(beta)).sum(axis=-1)

    def grad_entropy(self, params):
        """∂H/∂h_1 = ∂H/∂α · (α − 1), with ∂H/∂α = (α+β−2) ψ'(α+β) − (α−1) ψ'(α). Likewise ∂/∂h_2, with β."""
        alpha, beta = self.shapes(params)
        common = (alpha + beta - 2) * trigamma(alpha + beta)
        return np.concatenate([(common - (x - 1) * trigamma(x)) * (x - 1) for x in (alpha, beta)], axis=-1)


class Dose(gymnasium.Env):
    """One action per episode, between 0 and 1. The best action is 0.8 times the observation."""

    observation_space, action_space = spaces.Box(0, 1, (1,), np.float32), spaces.Box(0, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = self.np_random.uniform(0.2, 1, 1).astype(np.float32)
        return self.seen, {}

    def step(self, action):
        return self.seen, -10 * float(action[0] - 0.8 * self.seen[0]) ** 2, True, False, {}


def train(updates=300, seed=0):
    """Trains a Beta policy; returns the mean return of the last 1,000 episodes.

    A perfect policy has a mean return of 0, the uniform policy about −1.2.
    """
    policy = Policy(MLP((1, 16, 2)), Beta(1))
    theta, returns = policy.init(np.random.default_rng(seed)), []
    sampler = Sampler(gymnasium.vector.SyncVectorEnv([Dose] * 64), seed)
    for _, update in zip(range(updates), reinforce(sampler, policy, theta, Adam(theta, 1e-2), standardise=True)):
        returns += update["rollout"].episode_returns
    return np.mean(returns[-1000:])


def main():
    params, act = np.array([0.3, -0.5]), np.array([0.7])
    check_gradient(lambda h: Beta(1).log_prob(h, act), params, Beta(1).grad_log_prob(params, act))
    check_gradient(Beta(1).entropy, params, Beta(1).grad_entropy(params))
    print(f"the gradients are right; mean return after training: {train():.3f}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    raise SystemExit(interrupts.run(main))
