"""Different exploration strategies: policies that act with a distribution b instead of π, and use the score of b.

Slide "Asynchronous Deep RL for on policy learning": workers with different exploration strategies see different parts
of the environment. An exploring policy draws its actions from b, not from π. So its score is ∇ log b(a|s).
"""

import copy

import numpy as np

from npg.distributions import Bernoulli, Categorical
from npg.policy import ActorCritic


def _is_discrete(distribution):
    return isinstance(distribution, (Categorical, Bernoulli, Tempered))


def _check_discrete(distribution):
    if not _is_discrete(distribution):
        raise ValueError(f"distribution: expected a Categorical or Bernoulli, got {type(distribution).__name__}")


class Tempered:
    """b(a) ∝ e^{h_a / T}: a `Categorical` or `Bernoulli` whose logits are divided by a temperature T > 0.

    With T > 1 the policy explores more than with the logits alone, with T < 1 less. The most likely action does not
    change.
    """

    def __init__(self, distribution, temperature):
        _check_discrete(distribution)
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number > 0, got {temperature}")
        self.distribution, self.temperature = distribution, temperature
        self.n, self.n_params = distribution.n, distribution.n_params

    def sample(self, params, rng):
        """a ~ b."""
        return self.distribution.sample(params / self.temperature, rng)

    def mode(self, params):
        """The most likely action."""
        return self.distribution.mode(params)

    def log_prob(self, params, act):
        """log b(a): log π(a) at h / T."""
        return self.distribution.log_prob(params / self.temperature, act)

    def grad_log_prob(self, params, act):
        """∇ log b(a): ∇ log π(a) at h / T, divided by T."""
        return self.distribution.grad_log_prob(params / self.temperature, act) / self.temperature

    def entropy(self, params):
        """H at h / T."""
        return self.distribution.entropy(params / self.temperature)

    def grad_entropy(self, params):
        """∇H at h / T, divided by T."""
        return self.distribution.grad_entropy(params / self.temperature) / self.temperature

    def kl(self, params, other):
        """KL(π ‖ π') at h / T and h' / T."""
        return self.distribution.kl(params / self.temperature, other / self.temperature)


class Exploring:
    """b(a) = (1−ε) π(a) + ε/n: with probability ε the action is uniformly random, else it is drawn from π.

    π is a `Categorical` or `Bernoulli` (also `Tempered`) over n actions, and 0 < ε ≤ 1. The score is that of b, not
    that of π (slide "Asynchronous Deep RL for on policy learning": "different exploration strategies"; there workers
    differ in ε).
    """

    def __init__(self, distribution, epsilon):
        _check_discrete(distribution)
        if not 0 < epsilon <= 1:
            raise ValueError(f"epsilon: expected 0 < ε ≤ 1 (for ε = 0 use π itself), got {epsilon}")
        self.distribution, self.epsilon = distribution, epsilon
        self.n, self.n_params = distribution.n, distribution.n_params

    def sample(self, params, rng):
        """a ~ b."""
        act = self.distribution.sample(params, rng)
        return np.where(rng.random(act.shape) < self.epsilon, rng.integers(self.n, size=act.shape), act)

    def mode(self, params):
        """The most likely action of π."""
        return self.distribution.mode(params)

    def log_prob(self, params, act):
        """log b(a) = log((1−ε) π(a) + ε/n)."""
        return np.log((1 - self.epsilon) * np.exp(self.distribution.log_prob(params, act)) + self.epsilon / self.n)

    def grad_log_prob(self, params, act):
        """∇ log b(a) = (1−ε) π(a) / b(a) ∇ log π(a)."""
        share = (1 - self.epsilon) * np.exp(self.distribution.log_prob(params, act) - self.log_prob(params, act))
        return share[..., None] * self.distribution.grad_log_prob(params, act)

    def _every_action(self, params):
        """log b(a) [n, ...], params [n, ..., n_params], actions [n, ...]. The first axis goes over the n actions."""
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
    """A copy of the policy or actor-critic that explores: logits / T, and a random action with probability ε.

    The copy uses the same θ. With other values than the defaults, raises ValueError if the actions are not discrete.
    """
    distribution = model.distribution
    if (temperature != 1 or epsilon) and not _is_discrete(distribution):
        found = type(distribution).__name__
        raise ValueError(f"epsilon, temperature: expected a policy over discrete actions, got a {found}")
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
