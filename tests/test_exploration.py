"""A policy that explores is scored as what it did."""

import numpy as np
import pytest

from npg.distributions import Bernoulli, Categorical, Deterministic, Gaussian
from npg.exploration import Exploring, Tempered


def test_an_exploring_agent_takes_a_random_action_with_probability_epsilon():
    logits = np.array([1e4, 0.0, 0.0, 0.0])  # π takes action 0, always
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


def test_epsilon_and_temperature_are_checked():
    for epsilon in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"epsilon: .*{epsilon}"):
            Exploring(Bernoulli(), epsilon)
    for temperature in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"temperature: .*{temperature}"):
            Tempered(Bernoulli(), temperature)
