"""Properties of baselines and distributions for all rewards, episode lengths, parameters and batch shapes."""

import numpy as np
import pytest
from helpers import check_both
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from npg import baselines
from npg.distributions import Bernoulli, Categorical, Gaussian, GaussianMixture, MultivariateGaussian
from npg.returns import reward_to_go
from npg.rollout import Rollout

ANY = settings(max_examples=40, deadline=None, derandomize=True)
numbers = st.floats(-10, 10, allow_subnormal=False)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def episodes(draw):
    """N ≥ 2 complete episodes of any lengths, one per column, terminated or truncated; their reward to go [T, N]."""
    lengths = np.array(draw(st.lists(st.integers(1, 6), min_size=2, max_size=5)))
    T, N = int(lengths.max()), len(lengths)
    valid = np.arange(T)[:, None] < lengths
    rew = np.where(valid, draw(arrays(np.float64, (T, N), elements=numbers)), 0)
    last = np.arange(T)[:, None] == lengths - 1
    cut = draw(arrays(bool, N))
    rollout = Rollout(
        np.zeros((T + 1, N, 1)), np.zeros((T, N), int), rew, last & ~cut, last & cut, valid, [], [], int(valid.sum())
    )
    return rollout, reward_to_go(rew, rollout.done)


SIMPLE = {name: getattr(baselines, name) for name in ("none", "constant", "leave_one_out", "time_dependent")}


@pytest.mark.parametrize("baseline", SIMPLE.values(), ids=SIMPLE)
@given(data=episodes(), factor=numbers)
@ANY
def test_baselines_are_linear_in_the_rewards(baseline, data, factor):
    rollout, psi = data
    b, scaled = (baseline(None, None, rollout, k * psi) for k in (1, factor))
    np.testing.assert_allclose(np.broadcast_to(scaled, psi.shape), np.broadcast_to(factor * b, psi.shape), atol=1e-9)


@pytest.mark.parametrize("baseline", SIMPLE.values(), ids=SIMPLE)
@given(data=episodes(), seed=seeds)
@ANY
def test_baselines_do_not_care_about_the_order_of_the_trajectories(baseline, data, seed):
    rollout, psi = data
    order = np.random.default_rng(seed).permutation(psi.shape[1])
    shuffled = rollout._replace(valid=rollout.valid[:, order])
    b = np.broadcast_to(baseline(None, None, rollout, psi), psi.shape)
    after = np.broadcast_to(baseline(None, None, shuffled, psi[:, order]), psi.shape)
    np.testing.assert_allclose(after, b[:, order], atol=1e-9)


@given(data=episodes())
@ANY
def test_leave_one_out_has_the_mean_of_the_constant_and_ignores_a_trajectorys_own_return(data):
    rollout, psi = data
    b = baselines.leave_one_out(None, None, rollout, psi)
    np.testing.assert_allclose(b.mean(), baselines.constant(None, None, rollout, psi), atol=1e-9)
    for i in range(psi.shape[1]):
        changed = psi.copy()
        changed[:, i] += 100
        assert baselines.leave_one_out(None, None, rollout, changed)[i] == pytest.approx(b[i], abs=1e-9)


@given(data=episodes(), shift=numbers)
@ANY
def test_baselines_remove_a_constant_that_is_added_to_every_return(data, shift):
    rollout, psi = data
    for baseline in (baselines.constant, baselines.leave_one_out):
        before, after = (x - baseline(None, None, rollout, x) for x in (psi, psi + shift))
        np.testing.assert_allclose(after, before, atol=1e-9)


DISTRIBUTIONS = {
    "categorical": Categorical(3),
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(2),
    "multivariate": MultivariateGaussian(2),
    "mixture": GaussianMixture(2, 3),
}
any_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


@st.composite
def batches(draw, distribution):
    """params of any batch shape, also without a batch, and actions drawn from them."""
    shape = draw(st.just(()) | array_shapes(max_dims=3, max_side=3))
    elements = st.floats(-2, 2, allow_subnormal=False)
    params = draw(arrays(np.float64, (*shape, distribution.n_params), elements=elements))
    return params, distribution.sample(params, np.random.default_rng(draw(seeds)))


@any_distribution
@given(data=st.data())
@ANY
def test_gradients_are_right_at_any_params_and_batch_shape(distribution, data):
    params, act = data.draw(batches(distribution))
    log_prob = lambda params: np.sum(distribution.log_prob(params, act))
    entropy = lambda params: np.sum(distribution.entropy(params))
    check_both(log_prob, params, distribution.grad_log_prob(params, act))
    check_both(entropy, params, distribution.grad_entropy(params))


@any_distribution
@given(data=st.data())
@ANY
def test_every_row_of_a_batch_is_treated_by_itself(distribution, data):
    params, act = data.draw(batches(distribution))
    batch = params.shape[:-1]
    for function in (distribution.log_prob, distribution.grad_log_prob):
        whole = function(params, act)
        for row in np.ndindex(batch):
            np.testing.assert_allclose(function(params[row], act[row]), whole[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "multivariate", "mixture"])
@given(data=st.data(), shift=arrays(np.float64, 2, elements=numbers))
@ANY
def test_shifting_actions_and_means_alike_changes_nothing(name, data, shift):
    distribution = DISTRIBUTIONS[name]
    params, act = data.draw(batches(distribution))
    first, copies = (3, 3) if name == "mixture" else (0, 1)
    moved = params.copy()
    moved[..., first : first + 2 * copies] += np.tile(shift, copies)
    expected = distribution.log_prob(params, act)
    np.testing.assert_allclose(distribution.log_prob(moved, act + shift), expected, rtol=1e-6, atol=1e-6)


@given(data=st.data(), shift=numbers)
@ANY
def test_the_softmax_does_not_see_a_constant_added_to_all_preferences(data, shift):
    params, act = data.draw(batches(DISTRIBUTIONS["categorical"]))
    for function in (DISTRIBUTIONS["categorical"].log_prob, DISTRIBUTIONS["categorical"].grad_log_prob):
        np.testing.assert_allclose(function(params + shift, act), function(params, act), atol=1e-12)
