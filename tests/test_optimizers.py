"""Each optimizer follows its textbook formula, unrolled over all gradients so far; common properties; clipping."""

import io
import math

import numpy as np
import pytest

from npg import optimizers
from npg.optimizers import SGD, Adam, RMSProp, clip_norm, state


def mean_of_past(x, decay):
    """(1 − decay) Σ_k decay^{t−k} x_k, where t is the last k."""
    return (1 - decay) * sum(decay ** (len(x) - 1 - k) * x[k] for k in range(len(x)))


# The last step of one coordinate, computed from all its gradients g = [g_1, …, g_t] and α.


def sgd_step(g, a):
    return a * g[-1]


def rmsprop_step(g, a, rho=0.99, epsilon=1e-5):
    return a * g[-1] / math.sqrt(mean_of_past([x * x for x in g], rho) + epsilon)


def adam_step(g, a, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m_hat = mean_of_past(g, beta1) / (1 - beta1 ** len(g))
    v_hat = mean_of_past([x * x for x in g], beta2) / (1 - beta2 ** len(g))
    return a * m_hat / (math.sqrt(v_hat) + epsilon)


TEXTBOOK = [
    (SGD, sgd_step, {}),
    (RMSProp, rmsprop_step, {}),
    (RMSProp, rmsprop_step, {"rho": 0.8, "epsilon": 0.1}),
    (Adam, adam_step, {}),
    (Adam, adam_step, {"beta1": 0.5, "beta2": 0.8, "epsilon": 0.1}),
]
each_optimizer = pytest.mark.parametrize("Optimizer", [SGD, RMSProp, Adam])


def gradients(n_steps, size, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(n_steps, size)).astype(dtype)


def ascend(optimizer, theta, dthetas):
    for dtheta in dthetas:
        optimizer.step(theta, dtheta)
    return theta


@pytest.mark.parametrize("Optimizer, step, settings", TEXTBOOK)
def test_each_step_is_the_textbook_s(Optimizer, step, settings):
    g = gradients(20, 3)
    theta = np.array([1.0, -2.0, 0.5])
    expected = theta.copy()
    optimizer = Optimizer(theta, 0.3, **settings)
    for t in range(len(g)):
        optimizer.step(theta, g[t])
        expected += [step(g[: t + 1, k].tolist(), 0.3, **settings) for k in range(3)]
        np.testing.assert_allclose(theta, expected, rtol=0, atol=1e-12)


def test_the_first_step_of_adam_is_the_learning_rate_whatever_the_size_of_the_gradient():
    theta = np.zeros(3)
    Adam(theta, 0.1).step(theta, np.array([1e3, -1.0, 1e-3]))
    np.testing.assert_allclose(theta, [0.1, -0.1, 0.1], rtol=2e-5)


@pytest.mark.parametrize("Optimizer, learning_rate", [(SGD, 0.1), (RMSProp, 1e-3), (Adam, 0.02)])
def test_ascent_on_a_concave_quadratic_ends_at_its_top(Optimizer, learning_rate):
    curvature, top = np.array([0.5, 1.0, 4.0]), np.array([1.0, -2.0, 0.5])
    theta = np.zeros(3)
    optimizer = Optimizer(theta, learning_rate)
    for _ in range(4000):
        optimizer.step(theta, -curvature * (theta - top))
    np.testing.assert_allclose(theta, top, rtol=0, atol=1e-6)


@each_optimizer
def test_a_step_is_made_in_place_and_changes_nothing_else(Optimizer):
    memory = np.ones(5)
    theta, dtheta = memory[1:4], np.array([1.0, -1.0, 2.0])
    assert Optimizer(theta, 0.1).step(theta, dtheta) is None
    assert np.all(memory[1:4] != 1) and memory[0] == memory[4] == 1
    np.testing.assert_array_equal(dtheta, [1, -1, 2])


@pytest.mark.parametrize("learning_rate", [0.1, np.float64(0.1), np.linspace(0.1, 1, 10)])
def test_steps_block_by_block_are_steps_at_once_to_the_last_bit(learning_rate, monkeypatch):
    results = []
    for block in (10, 1, 3, 5, 100):
        monkeypatch.setattr(optimizers, "BLOCK", block)
        theta = np.ones(10, np.float32)
        optimizer = RMSProp(theta, learning_rate)
        ascend(optimizer, theta, gradients(5, 10, dtype=np.float32))
        results.append(np.append(theta, optimizer.v))
    assert (np.diff(results, axis=0) == 0).all()


@each_optimizer
@pytest.mark.parametrize("learning_rate", [0.1, np.float64(0.1), np.full(4, 0.1)])
def test_float32_stays_float32(Optimizer, learning_rate):
    theta = np.ones(4, np.float32)
    optimizer = Optimizer(theta, learning_rate)
    ascend(optimizer, theta, gradients(3, 4, dtype=np.float32))
    assert theta.dtype == np.float32
    assert {array.dtype for name, array in state(optimizer).items() if name in "mv"} <= {np.dtype(np.float32)}


@each_optimizer
def test_a_learning_rate_for_each_entry_is_each_entry_s_own(Optimizer):
    g, rates = gradients(10, 3), np.array([0.3, 0.01, 0.0])
    together = np.ones(3)
    ascend(Optimizer(together, rates), together, g)
    for k in range(3):
        alone = np.ones(1)
        ascend(Optimizer(alone, rates[k]), alone, g[:, k : k + 1])
        np.testing.assert_allclose(together[k], alone[0], rtol=1e-14)
    assert together[2] == 1


@each_optimizer
def test_the_state_is_all_that_an_optimizer_remembers(Optimizer):
    """The state goes through a file, like a checkpoint. Then the optimizer continues bit for bit."""
    g = gradients(10, 3, dtype=np.float32)
    theta = np.zeros(3, np.float32)
    optimizer = Optimizer(theta, 0.1)
    ascend(optimizer, theta, g[:5])
    file = io.BytesIO()
    np.savez(file, theta=theta, **state(optimizer))
    ascend(optimizer, theta, g[5:])

    file.seek(0)
    saved = dict(np.load(file, allow_pickle=False))
    resumed = saved.pop("theta")
    fresh = Optimizer(resumed, 0.1)
    assert saved.keys() == state(fresh).keys()
    for name, array in state(fresh).items():
        array[...] = saved[name]
    ascend(fresh, resumed, g[5:])
    np.testing.assert_array_equal(resumed, theta)
    for name, array in state(fresh).items():
        np.testing.assert_array_equal(array, state(optimizer)[name])


@pytest.mark.parametrize("Optimizer", [RMSProp, Adam])
def test_without_its_state_an_optimizer_goes_on_differently(Optimizer):
    g, theta = gradients(10, 3), np.zeros(3)
    optimizer = Optimizer(theta, 0.1)
    ascend(optimizer, theta, g[:5])
    forgetful = theta.copy()
    ascend(optimizer, theta, g[5:])
    ascend(Optimizer(forgetful, 0.1), forgetful, g[5:])
    assert np.all(forgetful != theta)


def test_sgd_remembers_nothing():
    assert state(SGD(np.zeros(2), 0.1)) == {}


@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-14), (np.float32, 1e-6)])
def test_clipping_keeps_the_direction_and_bounds_the_norm(dtype, rtol):
    before = gradients(1, 50, dtype=dtype)[0]
    dtheta = before.copy()
    norm = clip_norm(dtheta, 0.5)
    assert norm == pytest.approx(np.linalg.norm(before), rel=rtol) and norm > 0.5
    assert np.linalg.norm(dtheta) == pytest.approx(0.5, rel=rtol)
    assert dtheta.dtype == dtype
    np.testing.assert_allclose(dtheta, before * (0.5 / norm), rtol=rtol)


def test_a_gradient_whose_squares_overflow_is_clipped_as_well():
    dtheta = np.array([3e20, -4e20], np.float32)
    assert clip_norm(dtheta, 0.5) == pytest.approx(5e20, rel=1e-6)
    np.testing.assert_allclose(dtheta, [0.3, -0.4], rtol=1e-6)


@pytest.mark.parametrize("limit", [0, -1.0, np.nan])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ValueError, match="limit: expected a positive number or None, got"):
        clip_norm(np.ones(2), limit)


@each_optimizer
@pytest.mark.parametrize("dtheta", [1.0, np.ones(1), np.ones(5), np.ones((4, 1))], ids=np.shape)
def test_a_gradient_of_another_shape_than_theta_is_refused(Optimizer, dtheta):
    theta = np.zeros(4)
    optimizer = Optimizer(theta, 0.1)
    with pytest.raises(ValueError, match=r"dtheta: expected an array of theta's shape \(4,\), got"):
        optimizer.step(theta, dtheta)
    assert not theta.any() and not any(array.any() for array in state(optimizer).values())


@pytest.mark.parametrize("limit", [5.0, 6.0, None])
def test_a_gradient_within_the_limit_is_left_alone(limit):
    dtheta = np.array([3.0, -4.0])
    assert clip_norm(dtheta, limit) == 5
    np.testing.assert_array_equal(dtheta, [3, -4])


def test_a_zero_gradient_is_clipped_to_itself():
    dtheta = np.zeros(3)
    assert clip_norm(dtheta, 0.5) == 0
    np.testing.assert_array_equal(dtheta, np.zeros(3))


def test_clipping_is_in_place():
    memory = np.array([1.0, 30.0, -40.0, 1.0])
    assert clip_norm(memory[1:3], 5.0) == 50
    np.testing.assert_allclose(memory, [1, 3, -4, 1], rtol=1e-15)
