"""The probability and the score of an exploring policy belong to the distribution from which it really acts."""

import numpy as np
import pytest
from helpers import check_both
from test_reinforce import random_theta

from npg.distributions import Bernoulli, Categorical, Deterministic, Gaussian, log_softmax
from npg.exploration import Exploring, Tempered, exploring
from npg.network import MLP
from npg.policy import ActorCritic, Critic, Policy, SharedActorCritic

MODEL = ActorCritic(Policy(MLP((4, 4, 2)), Categorical(2)), Critic(MLP((4, 3, 1))))


def test_an_exploring_agent_takes_a_random_action_with_probability_epsilon():
    logits = np.array([1e4, 0.0, 0.0, 0.0])  # π always takes action 0
    b = np.exp(Exploring(Categorical(4), 0.2).log_prob(np.tile(logits, (4, 1)), np.arange(4)))
    np.testing.assert_allclose(b, [0.85, 0.05, 0.05, 0.05], rtol=1e-14)
    always = Exploring(Bernoulli(), 1)
    z, act = np.array([[3.0], [-50.0]]), np.array([1, 1])
    np.testing.assert_allclose(always.log_prob(z, act), np.log(0.5), rtol=1e-14)
    np.testing.assert_array_equal(always.grad_log_prob(z, act), 0)
    np.testing.assert_allclose(always.grad_entropy(z), 0, atol=1e-14)


def test_the_score_of_the_exploring_agent_is_not_that_of_its_policy():
    logits, act = np.random.default_rng(0).standard_normal((2, 4)), np.array([0, 3])
    pi, b = Categorical(4), Exploring(Categorical(4), 0.3)
    weight = 0.7 * np.exp(pi.log_prob(logits, act) - b.log_prob(logits, act))
    assert np.all(weight < 1)
    np.testing.assert_allclose(b.grad_log_prob(logits, act), weight[:, None] * pi.grad_log_prob(logits, act))


def test_a_temperature_divides_the_logits():
    logits, act = np.random.default_rng(0).standard_normal((2, 4)), np.array([0, 3])
    hot = Tempered(Categorical(4), 4.0)
    np.testing.assert_array_equal(hot.log_prob(logits, act), Categorical(4).log_prob(logits / 4, act))
    np.testing.assert_array_equal(hot.mode(logits), logits.argmax(axis=-1))


@pytest.mark.parametrize("make", [lambda d: Exploring(d, 0.1), lambda d: Tempered(d, 2.0)])
@pytest.mark.parametrize("distribution", [Gaussian(1), Deterministic(2)], ids=lambda d: type(d).__name__)
def test_only_discrete_actions_are_explored_like_this(make, distribution):
    with pytest.raises(ValueError, match=f"distribution: .*{type(distribution).__name__}"):
        make(distribution)


@pytest.mark.parametrize("changes", [{"epsilon": 0.1}, {"temperature": 2.0}])
def test_a_policy_over_continuous_actions_explores_by_itself(changes):
    policy = Policy(MLP((3, 2)), Gaussian(2))
    assert exploring(policy).distribution is policy.distribution
    with pytest.raises(ValueError, match="epsilon, temperature: expected .* discrete actions, got a Gaussian"):
        exploring(policy, **changes)


def test_epsilon_and_temperature_are_checked():
    for epsilon in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"epsilon: .*{epsilon}"):
            Exploring(Bernoulli(), epsilon)
    for temperature in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"temperature: .*{temperature}"):
            Tempered(Bernoulli(), temperature)


@pytest.mark.parametrize("model", [MODEL, SharedActorCritic(MLP((4, 5, 3)), Categorical(2))])
def test_a_workers_score_is_that_of_its_epsilon_and_temperature(model):
    theta, obs = random_theta(model), np.random.default_rng(0).standard_normal((5, 4))
    act, weight = np.array([0, 1, 1, 0, 1]), np.arange(5.0)
    h = model.policy.params(model.actor_params(theta), obs)[0]
    pi = lambda h: np.exp(log_softmax(h))[np.arange(5), act]
    for epsilon, temperature in ((0.2, 1), (0, 4), (0.2, 4)):
        explorer = exploring(model, epsilon, temperature)
        b = (1 - epsilon) * pi(h / temperature) + epsilon / 2
        np.testing.assert_allclose(np.exp(explorer.log_prob(theta, obs, act)), b)
        entropy = lambda theta: np.sum(explorer.entropy(theta, obs))
        objective = lambda theta: np.sum(weight * explorer.log_prob(theta, obs, act)) + 0.1 * entropy(theta)
        score = lambda model: model.gradient(theta, obs, act, weight, np.zeros(5), 0.1)
        check_both(objective, theta, score(explorer))
        assert not np.allclose(score(explorer), score(model))
        np.testing.assert_array_equal(explorer.value(theta, obs), model.value(theta, obs))
    assert model.distribution is model.policy.distribution and isinstance(model.distribution, Categorical)
    np.testing.assert_array_equal(exploring(model).log_prob(theta, obs, act), model.log_prob(theta, obs, act))
    alone = exploring(model.policy, temperature=4).log_prob(model.actor_params(theta), obs, act)
    np.testing.assert_array_equal(alone, exploring(model, temperature=4).log_prob(theta, obs, act))
