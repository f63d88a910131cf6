"""Different exploration strategies: policies that act with b, not π, and whose score is that of b.

Slide "Asynchronous Deep RL for on policy learning": workers that differ in how they explore see different parts of the
environment. A policy that explores acts with a distribution b, not π, so its score is ∇ log b(a|s).
"""

import copy

import numpy as np

from npg.distributions import Bernoulli, Categorical
from npg.policy import ActorCritic


def _check_discrete(distribution):
    if not isinstance(distribution, (Categorical, Bernoulli, Tempered)):
        raise ValueError(f"distribution: expected a Categorical or Bernoulli, got {type(distribution).__name__}")


class Tempered:
    """π(a) ∝ e^{h_a / T}: a `Categorical` or `Bernoulli` whose logits are divided by a temperature T > 0.

    T > 1 explores more than the logits ask for, T < 1 less; the most likely action is the same.
    """

    def __init__(self, distribution, temperature):
        _check_discrete(distribution)
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number > 0, got {temperature}")
        self.distribution, self.temperature = distribution, temperature
        self.n, self.n_params = distribution.n, distribution.n_params

    def sample(self, params, rng):
        """a ~ π."""
        return self.distribution.sample(params / self.temperature, rng)

    def mode(self, params):
        """The most likely action."""
        return self.distribution.mode(params)

    def log_prob(self, params, act):
        """log π(a) at h / T."""
        return self.distribution.log_prob(params / self.temperature, act)

    def grad_log_prob(self, params, act):
        """∇ log π(a) at h / T, over T."""
        return self.distribution.grad_log_prob(params / self.temperature, act) / self.temperature

    def entropy(self, params):
        """H at h / T."""
        return self.distribution.entropy(params / self.temperature)

    def grad_entropy(self, params):
        """∇H at h / T, over T."""
        return self.distribution.grad_entropy(params / self.temperature) / self.temperature

    def kl(self, params, other):
        """KL(π ‖ π') at h / T and h' / T."""
        return self.distribution.kl(params / self.temperature, other / self.temperature)


class Exploring:
    """b(a) = (1−ε) π(a) + ε/n: what an agent acts by that takes π's action, but a random one with probability ε.

    π is a `Categorical` or `Bernoulli` (also `Tempered`) over n actions and 0 < ε ≤ 1. The score of what it did is b's,
    not π's (slide "A3C": "different exploration strategies", where workers differ in ε).
    """

    def __init__(self, distribution, epsilon):
        _check_discrete(distribution)
        if not 0 < epsilon <= 1:
            raise ValueError(f"epsilon: expected 0 < ε ≤ 1 (at 0 it is π itself), got {epsilon}")
        self.distribution, self.epsilon = distribution, epsilon
        self.n, self.n_params = distribution.n, distribution.n_params

    def sample(self, params, rng):
        """a ~ b."""
        act = self.distribution.sample(params, rng)
        return np.where(rng.random(act.shape) < self.epsilon, rng.integers(self.n, size=act.shape), act)

    def mode(self, params):
        """The most likely action, π's."""
        return self.distribution.mode(params)

    def log_prob(self, params, act):
        """log b(a) = log((1−ε) π(a) + ε/n)."""
        return np.log((1 - self.epsilon) * np.exp(self.distribution.log_prob(params, act)) + self.epsilon / self.n)

    def grad_log_prob(self, params, act):
        """∇ log b(a) = (1−ε) π(a) / b(a) ∇ log π(a)."""
        share = (1 - self.epsilon) * np.exp(self.distribution.log_prob(params, act) - self.log_prob(params, act))
        return share[..., None] * self.distribution.grad_log_prob(params, act)

    def _every_action(self, params):
        """log b(a) [n, ...] and params, broadcast, for each of the n actions a [n, ...]."""
        act = np.broadcast_to(np.arange(self.n).reshape(-1, *[1] * (params.ndim - 1)), (self.n, *params.shape[:-1]))
        params = np.broadcast_to(params, (self.n, *params.shape))
        return self.log_prob(params, act), params, act

    def entropy(self, params):
        """H = −Σ_a b(a) log b(a)."""
        logb, *_ = self._every_action(params)
        return -(np.exp(logb) * logb).sum(axis=0)

    def grad_entropy(self, params):
        """∇H = −Σ_a b(a) log b(a) ∇ log b(a), since Σ_a ∇b(a) = 0."""
        logb, params, act = self._every_action(params)
        return -((np.exp(logb) * logb)[..., None] * self.grad_log_prob(params, act)).sum(axis=0)

    def kl(self, params, other):
        """Σ_a b(a) (log b(a) − log b'(a))."""
        (logb, *_), (logb_other, *_) = self._every_action(params), self._every_action(other)
        return (np.exp(logb) * (logb - logb_other)).sum(axis=0)


def exploring(model, epsilon=0.0, temperature=1.0):
    """The same policy or actor-critic, over the same θ, that acts by logits / T and with probability ε at random."""
    distribution = model.distribution
    if temperature != 1:
        distribution = Tempered(distribution, temperature)
    if epsilon:
        distribution = Exploring(distribution, epsilon)
    twin = copy.copy(model)
    twin.distribution = distribution
    if isinstance(model, ActorCritic):
        twin.policy = copy.copy(model.policy)
        twin.policy.distribution = distribution
    return twin
