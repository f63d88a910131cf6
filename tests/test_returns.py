"""Each weight equals its definition, written as a loop over pairs of steps; then the identities between weights."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from npg import returns

GAMMA, LAM = 0.9, 0.7
GO_ON, TERMINATED, TRUNCATED = 0, 1, 2


class Rows(NamedTuple):
    """Arrays [T, N], val [T+1, N], as a vector environment with NEXT_STEP autoreset makes them."""

    rew: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    val: np.ndarray

    @property
    def done(self):
        return self.terminated | self.truncated


def rows(ends, rew, val, starts_with_reset=False):
    """`ends` and `rew` [T, N] with a reset row after each end."""
    valid = np.ones(ends.shape, bool)
    valid[0] = not starts_with_reset
    for t in range(1, len(ends)):
        valid[t] = ~valid[t - 1] | (ends[t - 1] == GO_ON)
    return Rows(np.where(valid, rew, 0), (ends == TERMINATED) & valid, (ends == TRUNCATED) & valid, valid, val)


def random_rows(T, N, seed, starts_with_reset=False):
    rng = np.random.default_rng(seed)
    ends = rng.choice([GO_ON, TERMINATED, TRUNCATED], size=(T, N), p=[0.7, 0.15, 0.15])
    return rows(ends, rng.normal(size=(T, N)), rng.normal(size=(T + 1, N)), starts_with_reset)


@st.composite
def any_rows(draw):
    T, N = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    ends = draw(arrays(np.int64, (T, N), elements=st.sampled_from([GO_ON, GO_ON, TERMINATED, TRUNCATED])))
    rew, val = draw(arrays(float, (T, N), elements=numbers)), draw(arrays(float, (T + 1, N), elements=numbers))
    return rows(ends, rew, val, draw(st.booleans()))


numbers = st.floats(-10, 10, allow_subnormal=False)
discounts = st.sampled_from([0.0, 0.3, 0.9, 1.0])
some_examples = settings(max_examples=50, deadline=None, derandomize=True)


def column(*x):
    return np.array(x)[:, None]


def equal(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-11)


# The functions under test, as functions of rows


def reward_to_go(x, gamma):
    return returns.reward_to_go(x.rew, x.done, gamma)


def time_in_episode(x):
    return returns.time_in_episode(x.done, x.valid)


def trajectory_return(x, gamma):
    return returns.trajectory_return(x.rew, x.done, x.valid, gamma)


def discounted_reward_to_go(x, gamma):
    return returns.discounted_reward_to_go(x.rew, x.done, x.valid, gamma)


def td_error(x, gamma):
    return returns.td_error(x.rew, x.terminated, x.val, gamma)


def gae(x, gamma, lam):
    return returns.gae(x.rew, x.terminated, x.truncated, x.val, gamma, lam)


def n_step_return(x, gamma, n):
    return returns.n_step_return(x.rew, x.terminated, x.truncated, x.val, gamma, n)


# Their definitions. Their values in reset rows are never compared.


def last_step(x, t, i):
    """The last row of the episode that step t belongs to."""
    return next((k for k in range(t, len(x.rew)) if x.done[k, i]), len(x.rew) - 1)


def first_step(x, t, i):
    while t > 0 and x.valid[t - 1, i] and not x.done[t - 1, i]:
        t -= 1
    return t


def define(x, of_step):
    return np.array([[of_step(t, i) for i in range(x.rew.shape[1])] for t in range(len(x.rew))])


def defined_reward_to_go(x, gamma):
    return define(x, lambda t, i: sum(gamma ** (k - t) * x.rew[k, i] for k in range(t, last_step(x, t, i) + 1)))


def defined_time(x):
    return define(x, lambda t, i: t - first_step(x, t, i))


def defined_trajectory_return(x, gamma):
    G = defined_reward_to_go(x, gamma)
    return define(x, lambda t, i: G[first_step(x, t, i), i])


def defined_td_error(x, gamma):
    return define(
        x, lambda t, i: x.rew[t, i] + (0 if x.terminated[t, i] else gamma * x.val[t + 1, i]) - x.val[t, i]
    )


def defined_gae(x, gamma, lam):
    delta = defined_td_error(x, gamma)
    return define(x, lambda t, i: sum((gamma * lam) ** (k - t) * delta[k, i] for k in range(t, last_step(x, t, i) + 1)))


def defined_n_step_return(x, gamma, n):
    def of_step(t, i):
        last = min(t + n - 1, last_step(x, t, i))
        bootstrap = 0 if x.terminated[last, i] else gamma ** (last + 1 - t) * x.val[last + 1, i]
        return sum(gamma ** (k - t) * x.rew[k, i] for k in range(t, last + 1)) + bootstrap

    return define(x, of_step)


WEIGHTS = {  # name: (the weight, its definition)
    "reward_to_go": (lambda x: reward_to_go(x, GAMMA), lambda x: defined_reward_to_go(x, GAMMA)),
    "trajectory_return": (lambda x: trajectory_return(x, GAMMA), lambda x: defined_trajectory_return(x, GAMMA)),
    "discounted_reward_to_go": (
        lambda x: discounted_reward_to_go(x, GAMMA),
        lambda x: GAMMA ** defined_time(x) * defined_reward_to_go(x, GAMMA),
    ),
    "td_error": (lambda x: td_error(x, GAMMA), lambda x: defined_td_error(x, GAMMA)),
    "gae": (lambda x: gae(x, GAMMA, LAM), lambda x: defined_gae(x, GAMMA, LAM)),
    "n_step_return": (lambda x: n_step_return(x, GAMMA, 3), lambda x: defined_n_step_return(x, GAMMA, 3)),
}
BOOTSTRAPPED = ["td_error", "gae", "n_step_return"]
each_weight = pytest.mark.parametrize("name", WEIGHTS)
each_bootstrapped_weight = pytest.mark.parametrize("name", BOOTSTRAPPED)


@each_weight
@pytest.mark.parametrize("starts_with_reset", [False, True])
@pytest.mark.parametrize("T, N, seed", [(1, 1, 0), (7, 1, 1), (12, 3, 2), (30, 4, 3)])
def test_each_weight_is_its_definition(name, T, N, seed, starts_with_reset):
    x = random_rows(T, N, seed, starts_with_reset)
    weight, definition = WEIGHTS[name]
    assert weight(x).shape == (T, N)
    equal(weight(x)[x.valid], definition(x)[x.valid])


@pytest.mark.parametrize("starts_with_reset", [False, True])
def test_time_is_counted_from_the_first_step_of_each_episode(starts_with_reset):
    x = random_rows(30, 4, seed=3, starts_with_reset=starts_with_reset)
    assert x.terminated.any() and x.truncated.any() and not x.valid[1:].all() and not x.done[-1].all()
    np.testing.assert_array_equal(time_in_episode(x)[x.valid], defined_time(x)[x.valid])


def test_zeros_and_ones_are_as_good_as_booleans():
    x = random_rows(30, 4, seed=3, starts_with_reset=False)
    numbers = x._replace(terminated=x.terminated.astype(int), valid=x.valid.astype(int))
    np.testing.assert_array_equal(time_in_episode(numbers), time_in_episode(x))
    np.testing.assert_array_equal(trajectory_return(numbers, 0.5), trajectory_return(x, 0.5))


# Two steps to a terminal state, a reset row, then two steps that a time limit ends.
HAND = rows(
    ends=column(GO_ON, TERMINATED, GO_ON, GO_ON, TRUNCATED),
    rew=column(1.0, 2.0, 0.0, 4.0, 8.0),
    val=column(10.0, 20.0, 30.0, 40.0, 50.0, 60.0),
)


@pytest.mark.parametrize(
    "weight, expected",
    [
        (lambda x: returns.reward_to_go(x.rew, x.done), [3, 2, None, 12, 8]),  # γ = 1
        (lambda x: returns.trajectory_return(x.rew, x.done, x.valid), [3, 3, None, 12, 12]),
        (lambda x: reward_to_go(x, 0.5), [2, 2, None, 8, 8]),
        (lambda x: trajectory_return(x, 0.5), [2, 2, None, 8, 8]),
        (lambda x: time_in_episode(x), [0, 1, None, 0, 1]),
        (lambda x: discounted_reward_to_go(x, 0.5), [2, 1, None, 8, 4]),
        (lambda x: td_error(x, 0.5), [1, -18, None, -11, -12]),
        (lambda x: gae(x, 0.5, 0.5), [1 - 18 / 4, -18, None, -11 - 12 / 4, -12]),
        (lambda x: n_step_return(x, 0.5, 1), [11, 2, None, 29, 38]),
        (lambda x: n_step_return(x, 0.5, 2), [2, 2, None, 23, 38]),
    ],
)
def test_by_hand(weight, expected):
    got = weight(HAND)[:, 0]
    assert [None if e is None else g for g, e in zip(got, expected)] == expected


def test_discounted_sum_by_hand():
    x = np.array([1.0, 2.0, 3.0])
    equal(returns.discounted_sum(column(*x), 0.5), column(1 + 0.5 * (2 + 0.5 * 3), 2 + 0.5 * 3, 3))
    equal(returns.discounted_sum(column(*x), column(0.5, 0, 9)), column(2, 2, 3))
    equal(returns.discounted_sum(np.stack([x, x], axis=1), np.array([0, 1])), [[1, 6], [2, 5], [3, 3]])


def test_discounted_sum_keeps_float32_and_makes_floats_of_integers():
    assert returns.discounted_sum(np.ones((3, 2), np.float32), np.float32(0.5)).dtype == np.float32
    np.testing.assert_array_equal(returns.discounted_sum([[1], [1]], 0.5), [[1.5], [1]])


def test_discounted_sum_of_no_rows_is_no_rows():
    assert returns.discounted_sum(np.zeros((0, 2)), 0.9).shape == (0, 2)


# Identities


@some_examples
@given(any_rows(), discounts)
def test_gae_with_lambda_1_is_the_monte_carlo_advantage_with_bootstrap(x, gamma):
    monte_carlo = defined_n_step_return(x, gamma, len(x.rew)) - x.val[:-1]
    equal(gae(x, gamma, 1.0)[x.valid], monte_carlo[x.valid])


@some_examples
@given(any_rows(), discounts)
def test_gae_with_lambda_0_is_the_td_error(x, gamma):
    equal(gae(x, gamma, 0.0), td_error(x, gamma))


@some_examples
@given(any_rows(), discounts)
def test_the_one_step_advantage_is_the_td_error(x, gamma):
    equal(n_step_return(x, gamma, 1) - x.val[:-1], td_error(x, gamma))


@some_examples
@given(any_rows(), discounts)
def test_from_T_steps_on_n_changes_nothing_and_the_advantage_is_gae_with_lambda_1(x, gamma):
    longest = n_step_return(x, gamma, len(x.rew))
    np.testing.assert_array_equal(n_step_return(x, gamma, 10 * len(x.rew)), longest)
    equal((longest - x.val[:-1])[x.valid], gae(x, gamma, 1.0)[x.valid])


@some_examples
@given(any_rows(), discounts, st.sampled_from([0.0, 0.5, 0.95]))
def test_gae_is_the_exponentially_weighted_mean_of_the_n_step_advantages(x, gamma, lam):
    T = len(x.rew)
    adv = [n_step_return(x, gamma, n) - x.val[:-1] for n in range(1, T + 1)]
    mean = (1 - lam) * sum(lam ** (n - 1) * adv[n - 1] for n in range(1, T)) + lam ** (T - 1) * adv[T - 1]
    equal(gae(x, gamma, lam)[x.valid], mean[x.valid])


@some_examples
@given(any_rows())
def test_with_values_0_and_gamma_1_gae_and_n_step_return_are_the_reward_to_go(x):
    x = x._replace(val=np.zeros_like(x.val))
    equal(gae(x, 1.0, 1.0), reward_to_go(x, 1.0))
    equal(n_step_return(x, 1.0, len(x.rew)), reward_to_go(x, 1.0))


@some_examples
@given(any_rows(), discounts)
def test_trajectory_return_is_constant_along_the_trajectory_and_the_reward_to_go_at_its_start(x, gamma):
    R = trajectory_return(x, gamma)
    begins = x.valid & (defined_time(x) == 0)
    continues = (x.valid & ~begins)[1:]
    np.testing.assert_array_equal(R[begins], reward_to_go(x, gamma)[begins])
    np.testing.assert_array_equal(R[1:][continues], R[:-1][continues])


@some_examples
@given(any_rows(), discounts)
def test_the_rewards_before_a_step_and_its_discounted_reward_to_go_add_up_to_the_return(x, gamma):
    time = defined_time(x)
    before = define(x, lambda t, i: sum(gamma ** time[k, i] * x.rew[k, i] for k in range(first_step(x, t, i), t)))
    equal((before + discounted_reward_to_go(x, gamma))[x.valid], trajectory_return(x, gamma)[x.valid])


def test_without_discount_the_discounted_reward_to_go_is_the_reward_to_go():
    x = random_rows(12, 3, seed=4)
    np.testing.assert_array_equal(discounted_reward_to_go(x, 1.0), reward_to_go(x, 1.0))


def test_with_gamma_0_only_the_present_reward_counts():
    x = random_rows(12, 3, seed=4)
    np.testing.assert_array_equal(reward_to_go(x, 0.0), x.rew)
    only_at_the_start = np.where(defined_time(x) == 0, x.rew, 0)
    np.testing.assert_array_equal(discounted_reward_to_go(x, 0.0)[x.valid], only_at_the_start[x.valid])


# Properties that all weights share


@each_weight
@some_examples
@given(any_rows(), numbers, st.integers(0, 2**32 - 1))
def test_each_weight_is_linear_in_rewards_and_values(name, x, factor, seed):
    rng = np.random.default_rng(seed)
    y = x._replace(rew=x.valid * rng.normal(size=x.rew.shape), val=rng.normal(size=x.val.shape))
    both = x._replace(rew=factor * x.rew + y.rew, val=factor * x.val + y.val)
    weight = WEIGHTS[name][0]
    np.testing.assert_allclose(weight(both), factor * weight(x) + weight(y), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("name", ["reward_to_go", *BOOTSTRAPPED])
@some_examples
@given(any_rows(), st.integers(1, 5))
def test_what_came_before_a_step_does_not_matter(name, x, shift):
    shift = min(shift, len(x.rew) - 1)
    weight = WEIGHTS[name][0]
    np.testing.assert_array_equal(weight(Rows(*(array[shift:] for array in x))), weight(x)[shift:])


@each_weight
@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED])
def test_nothing_leaks_across_the_end_of_an_episode(name, end):
    rng = np.random.default_rng(5)
    ends = np.full((9, 2), GO_ON)
    ends[3] = end
    x = rows(ends, rng.normal(size=(9, 2)), rng.normal(size=(10, 2)))
    first, second = np.arange(9)[:, None] <= 3, np.arange(9)[:, None] >= 5
    state_of_first, state_of_second = np.arange(10)[:, None] <= 4, np.arange(10)[:, None] >= 5
    before = WEIGHTS[name][0](x)
    after = WEIGHTS[name][0](x._replace(rew=x.rew + 100 * second, val=x.val + 100 * state_of_second))
    np.testing.assert_array_equal(after[:4], before[:4])
    assert np.all(after[5:] != before[5:])
    after = WEIGHTS[name][0](x._replace(rew=x.rew + 100 * first, val=x.val + 100 * state_of_first))
    np.testing.assert_array_equal(after[5:], before[5:])
    assert np.all(after[:4] != before[:4])


@each_bootstrapped_weight
@pytest.mark.parametrize("end, gain", [(TRUNCATED, GAMMA * 100), (TERMINATED, 0)])
def test_a_truncated_step_bootstraps_and_a_terminated_one_does_not(name, end, gain):
    x = rows(column(GO_ON, end, GO_ON), column(1.0, 2.0, 3.0), column(4.0, 5.0, 6.0, 7.0))
    raised = x._replace(val=x.val + column(0, 0, 100, 0))  # the value of the state in which the episode ended
    weight = WEIGHTS[name][0]
    assert weight(raised)[1, 0] - weight(x)[1, 0] == pytest.approx(gain, abs=1e-12)


@each_bootstrapped_weight
def test_a_terminal_step_at_the_time_limit_does_not_bootstrap(name):
    x = rows(column(GO_ON, TERMINATED), column(1.0, 2.0), column(4.0, 5.0, 6.0))
    both = x._replace(truncated=x.terminated)
    np.testing.assert_array_equal(WEIGHTS[name][0](both), WEIGHTS[name][0](x))


@each_weight
def test_environments_side_by_side_do_not_mix(name):
    x = random_rows(15, 4, seed=6)
    weight = WEIGHTS[name][0]
    for i in range(4):
        alone = weight(Rows(*(array[:, i : i + 1] for array in x)))
        np.testing.assert_array_equal(alone, weight(x)[:, i : i + 1])


@each_weight
def test_the_arguments_are_left_alone(name):
    x = random_rows(8, 2, seed=7)
    before = [array.copy() for array in x]
    WEIGHTS[name][0](x)
    for array, array_before in zip(x, before):
        np.testing.assert_array_equal(array, array_before)


@pytest.mark.parametrize("n", [0, -1])
def test_less_than_one_step_is_refused(n):
    with pytest.raises(ValueError, match=f"n: expected at least 1 step, got {n}"):
        n_step_return(HAND, GAMMA, n)


# standardise


def test_standardise_by_hand():
    equal(returns.standardise(np.array([1.0, 3.0])), [-1, 1])
    equal(returns.standardise(np.array([[0.0, 0.0], [0.0, 4.0]])), np.array([[-1, -1], [-1, 3]]) / np.sqrt(3))


@pytest.mark.parametrize("shape", [(50,), (10, 1), (10, 5)])
def test_standardised_entries_have_mean_0_and_standard_deviation_1(shape):
    z = returns.standardise(np.random.default_rng(0).normal(300.0, 5.0, shape))
    assert z.shape == shape
    assert abs(z.mean()) < 1e-12 and abs(z.std() - 1) < 1e-12


def test_standardise_does_not_depend_on_unit_and_origin():
    x = np.random.default_rng(1).normal(size=40)
    np.testing.assert_allclose(returns.standardise(-300 + 1e-2 * x), returns.standardise(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-12])
@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_entries_are_standardised_to_exactly_0(value, size, dtype):
    np.testing.assert_array_equal(returns.standardise(np.full(size, value, dtype)), np.zeros(size))


def test_standardise_keeps_float32():
    assert returns.standardise(np.arange(5, dtype=np.float32)).dtype == np.float32
    assert returns.standardise(np.ones(5, np.float32)).dtype == np.float32


# explained_variance


def test_explained_variance_by_hand():
    target = np.array([1.0, 2.0, 3.0, 4.0])
    assert returns.explained_variance(target, target) == 1
    assert returns.explained_variance(target, np.full(4, 7.0)) == 0
    assert returns.explained_variance(target, target + 5) == 1  # a constant error does not change the variance
    assert returns.explained_variance(target, -target) == -3
    assert returns.explained_variance(target, np.array([1.0, 2.0, 3.0, 0.0])) == pytest.approx(1 - 3 / 1.25)


@pytest.mark.parametrize("value", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("size", [1, 3])
def test_explained_variance_of_a_constant_target_is_nan(value, size):
    assert np.isnan(returns.explained_variance(np.full(size, value), np.arange(size)))


# Arguments of other types and shapes


@pytest.mark.parametrize("kind", [int, np.uint8, float])
def test_flags_may_be_numbers(kind):
    rng = np.random.default_rng(0)
    rew, val, terminated, truncated = rng.normal(size=(6, 2)), rng.normal(size=(7, 2)), *(rng.random((2, 6, 2)) < 0.3)
    flags = terminated.astype(kind), truncated.astype(kind)
    for function, *more in ((returns.gae, 0.9, 0.8), (returns.n_step_return, 0.9, 3)):
        expected = function(rew, terminated, truncated, val, *more)
        np.testing.assert_array_equal(function(rew, *flags, val, *more), expected)
    np.testing.assert_array_equal(returns.reward_to_go(rew, flags[0], 0.9), returns.reward_to_go(rew, terminated, 0.9))


@pytest.mark.parametrize("shape", [(5, 1, 1), (5,), (4, 1), (5, 2)])
def test_values_of_another_shape_are_refused(shape):
    rew, no = np.ones((4, 1)), np.zeros((4, 1), bool)
    for call in (
        lambda val: returns.td_error(rew, no, val, 0.9),
        lambda val: returns.gae(rew, no, no, val, 0.9, 0.9),
        lambda val: returns.n_step_return(rew, no, no, val, 0.9, 2),
    ):
        with pytest.raises(ValueError, match=r"val: expected one row more than rew, shape \(5, 1\), got"):
            call(np.ones(shape))


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 1)])
def test_values_and_targets_have_the_same_shape(shape):
    with pytest.raises(ValueError, match=r"val: expected the shape of target, \(2, 3\), got "):
        returns.explained_variance(np.zeros((2, 3)), np.zeros(shape))


def test_an_array_of_another_shape_than_rew_is_named():
    """An [N, T] array, and one that would be broadcast over time."""
    rew, val, ok = np.ones((2, 3)), np.ones((3, 3)), np.zeros((2, 3), bool)
    for wrong in (ok.T, ok[0]):
        for name, call in {
            "done": lambda: returns.reward_to_go(rew, wrong),
            "valid": lambda: returns.trajectory_return(rew, ok, wrong),
            "done|valid": lambda: returns.discounted_reward_to_go(rew, wrong, ~wrong, 0.9),
            "terminated": lambda: returns.td_error(rew, wrong, val, 0.9),
            "truncated": lambda: returns.gae(rew, ok, wrong, val, 0.9, 0.9),
            "terminated|truncated": lambda: returns.n_step_return(rew, wrong, wrong, val, 0.9, 2),
        }.items():
            with pytest.raises(ValueError, match=rf"^({name}): expected the shape of rew, \(2, 3\), got \(3"):
                call()
