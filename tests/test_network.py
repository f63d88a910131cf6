import numpy as np
import pytest
from helpers import check_both

from npg.distributions import Categorical
from npg.network import ACTIVATIONS, MLP, LinearPreferences
from npg.policy import Policy

SIZES = {1: (3, 2), 2: (3, 5, 2), 3: (3, 5, 4, 2), 4: (3, 4, 5, 4, 2)}  # by the number of layers
BATCHES = [(), (4,), (2, 3)]


def check_backward(network, batch=(4,), seed=0):
    """dtheta and dx are the gradients of Σ dy·y, by both checks."""
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal(network.size) / 2
    x, dy = rng.standard_normal((*batch, network.n_in)), rng.standard_normal((*batch, network.n_out))
    y, cache = network.forward(theta, x)
    dtheta, dx = network.backward(theta, cache, dy)
    assert (y.shape, dtheta.shape, dx.shape) == (dy.shape, theta.shape, x.shape)
    check_both(lambda theta: np.sum(dy * network.forward(theta, x)[0]), theta, dtheta)
    check_both(lambda x: np.sum(dy * network.forward(theta, x)[0]), x, dx)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("depth", SIZES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_is_the_gradient_of_forward(activation, depth, batch):
    check_backward(MLP(SIZES[depth], activation), batch)


class ForgetsTheBatchSum(MLP):
    def backward(self, theta, cache, dy, want_dx=True):
        dtheta, dx = super().backward(theta, cache, dy, want_dx)
        self.layers(dtheta)[-1][1][...] = dy[0]
        return dtheta, dx


class ForgetsTheActivation(MLP):
    def backward(self, theta, cache, dy, want_dx=True):
        return MLP(self.sizes, "identity").backward(theta, cache, dy, want_dx)


class DoublesDx(MLP):
    def backward(self, theta, cache, dy, want_dx=True):
        dtheta, dx = super().backward(theta, cache, dy, want_dx)
        return dtheta, 2 * dx


@pytest.mark.parametrize("planted_bug", [ForgetsTheBatchSum, ForgetsTheActivation, DoublesDx])
def test_the_check_fails_on_planted_bugs(planted_bug):
    with pytest.raises(AssertionError, match="gradient differs"):
        check_backward(planted_bug((3, 5, 2)))


def test_theta_is_laid_out_as_weights_then_biases_layer_by_layer():
    (W_1, b_1), (W_2, b_2) = MLP((2, 3, 1)).layers(np.arange(13.0))
    np.testing.assert_array_equal(W_1, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(b_1, [6, 7, 8])
    np.testing.assert_array_equal(W_2, [[9], [10], [11]])
    np.testing.assert_array_equal(b_2, [12])


def test_layers_are_views_that_cover_theta():
    network = MLP((3, 5, 2))
    theta = np.zeros(network.size)
    for W, b in network.layers(theta):
        W[...] += 1
        b[...] += 1
    np.testing.assert_array_equal(theta, 1)


@pytest.mark.parametrize("name, activation", {
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "identity": lambda z: z,
}.items())
def test_forward_is_the_equation(name, activation):
    rng = np.random.default_rng(0)
    network = MLP((3, 5, 4, 2), name)
    theta, x = rng.standard_normal(network.size), rng.standard_normal((7, 3))
    (W_1, b_1), (W_2, b_2), (W_3, b_3) = network.layers(theta)
    y = activation(activation(x @ W_1 + b_1) @ W_2 + b_2) @ W_3 + b_3
    np.testing.assert_allclose(network.forward(theta, x)[0], y, rtol=1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_and_backward_leave_their_arguments_alone(activation):
    rng = np.random.default_rng(0)
    network = MLP((3, 5, 2), activation)
    theta, x, dy = rng.standard_normal(network.size), rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
    before = [a.copy() for a in (theta, x, dy)]
    _, cache = network.forward(theta, x)
    first = network.backward(theta, cache, dy)
    second = network.backward(theta, cache, dy)  # the first call did not change the cache
    for a, b in zip((theta, x, dy, *first), (*before, *second)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dtype_follows_theta(activation, dtype):
    network = MLP((3, 5, 2), activation)
    theta = network.init(np.random.default_rng(0), dtype=dtype)
    for x in (np.ones((4, 3)), np.ones((4, 3), np.float32), np.ones((4, 3), np.uint8)):
        y, cache = network.forward(theta, x)
        dtheta, dx = network.backward(theta, cache, np.ones((4, 2)))
        assert theta.dtype == y.dtype == dtheta.dtype == dx.dtype == dtype


def test_float32_agrees_with_float64():
    rng = np.random.default_rng(0)
    network = MLP((3, 5, 2))
    theta, x, dy = rng.standard_normal(network.size), rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
    exact, rounded = (
        network.backward(theta, network.forward(theta, x)[1], dy)[0] for theta in (theta, theta.astype(np.float32))
    )
    np.testing.assert_allclose(rounded, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", SIZES)
def test_without_dx_dtheta_is_the_same(depth):
    rng = np.random.default_rng(0)
    network = MLP(SIZES[depth])
    theta = rng.standard_normal(network.size)
    y, cache = network.forward(theta, rng.standard_normal((4, 3)))
    dtheta, dx = network.backward(theta, cache, y, want_dx=False)
    assert dx is None
    np.testing.assert_array_equal(dtheta, network.backward(theta, cache, y)[0])


def test_a_batch_is_the_sum_of_its_singles():
    rng = np.random.default_rng(0)
    network = MLP((3, 5, 2))
    theta, x, dy = rng.standard_normal(network.size), rng.standard_normal((2, 3, 3)), rng.standard_normal((2, 3, 2))
    y, cache = network.forward(theta, x)
    dtheta, dx = network.backward(theta, cache, dy)
    total = np.zeros_like(theta)
    for i in np.ndindex(2, 3):
        y_i, cache_i = network.forward(theta, x[i])
        dtheta_i, dx_i = network.backward(theta, cache_i, dy[i])
        total += dtheta_i
        np.testing.assert_allclose(y_i, y[i], rtol=1e-12)
        np.testing.assert_allclose(dx_i, dx[i], rtol=1e-12)
    np.testing.assert_allclose(total, dtheta, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sizes", [(6, 4, 3), (3, 4, 6), (5, 5, 5)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_init_is_orthogonal_with_the_gains_asked_for_and_zero_biases(activation, sizes):
    network = MLP(sizes, activation)
    theta = network.init(np.random.default_rng(0), output_gain=0.01, dtype=np.float64)
    gain = {"tanh": 5 / 3, "relu": 2**0.5, "sigmoid": 4, "identity": 1}[activation]
    for (W, b), g in zip(network.layers(theta), (gain, 0.01)):
        np.testing.assert_allclose(np.linalg.svd(W, compute_uv=False), g, rtol=1e-12)
        np.testing.assert_array_equal(b, 0)


def test_init_follows_its_generator():
    network = MLP((3, 5, 2))
    a, b, c = (network.init(np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.all(a[:15] != c[:15])
    assert a.dtype == np.float32


@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
def test_init_preserves_the_mean_square_of_signals_over_depth(activation):
    rng = np.random.default_rng(0)
    network = MLP((256,) * 12, activation)
    _, (hs, _) = network.forward(network.init(rng), rng.standard_normal((128, 256)))
    mean_square = [np.mean(h**2) for h in hs[1:]]
    assert 0.5 < min(mean_square) / max(mean_square)


def test_a_deep_orthogonal_linear_network_is_an_isometry_both_ways():
    rng = np.random.default_rng(0)
    network = MLP((16,) * 30, "identity")
    theta, x, dy = network.init(rng, dtype=np.float64), rng.standard_normal((8, 16)), rng.standard_normal((8, 16))
    y, cache = network.forward(theta, x)
    _, dx = network.backward(theta, cache, dy)
    for after, before in ((y, x), (dx, dy)):
        np.testing.assert_allclose(np.linalg.norm(after, axis=-1), np.linalg.norm(before, axis=-1), rtol=1e-12)


@pytest.mark.parametrize("sizes", [(), (3,), (3, 0), (3, -1, 2), (3, 1.9, 2)], ids=str)
def test_bad_sizes_raise(sizes):
    with pytest.raises(ValueError, match="sizes: expected at least two whole numbers"):
        MLP(sizes)


def test_an_unknown_activation_raises_and_lists_the_known():
    with pytest.raises(ValueError, match="activation: .*relu.*tanh.*'gelu'"):
        MLP((3, 2), "gelu")


@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 4)], ids=str)
def test_a_wrong_x_raises(shape):
    network = MLP((3, 2))
    with pytest.raises(ValueError, match=r"x: expected shape \[\.\.\., 3\], got"):
        network.forward(np.zeros(network.size), np.zeros(shape))


@pytest.mark.parametrize("shape", [(7,), (9,), (8, 1), ()], ids=str)
def test_a_wrong_theta_raises(shape):
    with pytest.raises(ValueError, match=r"theta: expected shape \(8,\).*got"):
        MLP((3, 2)).forward(np.zeros(shape), np.zeros((4, 3)))


@pytest.mark.parametrize("shape", [(3, 5, 2), (5, 2), (3, 4, 3), (3, 4), (4, 3, 2), (12, 2), (2, 3, 4)], ids=str)
def test_a_wrong_dy_raises(shape):
    network = MLP((3, 2))
    theta = np.zeros(network.size)
    _, cache = network.forward(theta, np.zeros((3, 4, 3)))
    with pytest.raises(ValueError, match=r"dy: expected shape \(3, 4, 2\), got"):
        network.backward(theta, cache, np.zeros(shape))


# Linear preferences

M = np.random.default_rng(5).standard_normal((4, 3, 6))


def features(obs):
    """x(s, a) [..., 4 actions, 6 features]."""
    return np.sin(np.einsum("...i,aij->...aj", obs, M))


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_linear_preferences_are_theta_times_features_and_backward_is_their_gradient(batch):
    rng = np.random.default_rng(0)
    network = LinearPreferences(features, 4, 6)
    theta, obs, dy = rng.standard_normal(6), rng.standard_normal((*batch, 3)), rng.standard_normal((*batch, 4))
    h, cache = network.forward(theta, obs)
    for i in np.ndindex(*batch, 4):
        assert h[i] == pytest.approx(sum(theta * features(obs)[i]), rel=1e-12)
    dtheta, dx = network.backward(theta, cache, dy)
    assert dx is None
    check_both(lambda theta: np.sum(dy * network.forward(theta, obs)[0]), theta, dtheta)


def test_the_score_of_linear_preferences_is_the_books():
    """x(s, a) − Σ_b π(b|s) x(s, b), Sutton & Barto 2018, eq. 13.9."""
    rng = np.random.default_rng(0)
    policy = Policy(LinearPreferences(features, 4, 6), Categorical(4))
    theta, obs = rng.standard_normal(6), rng.standard_normal(3)
    x = features(obs)
    pi = np.exp(x @ theta) / np.exp(x @ theta).sum()
    for a in range(4):
        score = x[a] - sum(pi[b] * x[b] for b in range(4))
        np.testing.assert_allclose(policy.grad_log_prob(theta, obs, a, 1.0), score, rtol=1e-12)


def test_linear_preferences_with_whole_numbers_as_theta_have_the_gradient_of_the_same_float_theta():
    policy, obs = Policy(LinearPreferences(features, 4, 6), Categorical(4)), np.ones(3)
    gradients = [policy.grad_log_prob(np.arange(6).astype(dtype), obs, 2, 0.7) for dtype in (int, float)]
    np.testing.assert_array_equal(*gradients)


def test_linear_preferences_start_uniform():
    theta = LinearPreferences(features, 4, 6).init(np.random.default_rng(0))
    np.testing.assert_array_equal(theta, np.zeros(6))
    assert theta.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_the_dtype_of_linear_preferences_follows_theta(dtype):
    network = LinearPreferences(features, 4, 6)
    theta = np.ones(6, dtype)
    h, cache = network.forward(theta, np.ones((2, 3)))
    assert h.dtype == network.backward(theta, cache, np.ones((2, 4)))[0].dtype == dtype


def test_linear_preferences_raise_for_wrong_features_theta_and_dy():
    obs = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"features\(x\): expected shape \[\.\.\., 5, 6\], got \(2, 4, 6\)"):
        LinearPreferences(features, 5, 6).forward(np.zeros(6), obs)
    network = LinearPreferences(features, 4, 6)
    with pytest.raises(ValueError, match=r"theta: expected shape \(6,\), got \(5,\)"):
        network.forward(np.zeros(5), obs)
    with pytest.raises(ValueError, match="dy"):
        network.backward(np.zeros(6), network.forward(np.zeros(6), obs)[1], np.ones((4, 2)))


def test_theta_may_hold_integers():
    theta, x = np.array([1, 1, 0]), [0.5, 0.7]
    np.testing.assert_array_equal(MLP((2, 1)).forward(theta, x)[0], MLP((2, 1)).forward(theta.astype(float), x)[0])
