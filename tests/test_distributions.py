from itertools import product
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import assert_mean, check_both

from npg.distributions import (
    Bernoulli,
    Categorical,
    Deterministic,
    Gaussian,
    GaussianMixture,
    MultivariateGaussian,
    log_softmax,
)
from npg.exploration import Exploring, Tempered

LOG_2PI = np.log(2 * np.pi)
BATCHES = [(), (4,), (2, 3)]
PLAIN = [Categorical(2), Categorical(5), Bernoulli()]
TEMPERED = [Tempered(Categorical(5), 0.5), Tempered(Bernoulli(), 0.7)]
EXPLORING = [Exploring(d, 0.1) for d in [*PLAIN, Tempered(Categorical(3), 0.5)]]
DISCRETE = PLAIN + TEMPERED + EXPLORING
CONTINUOUS = [Gaussian(1), Gaussian(2), MultivariateGaussian(1), MultivariateGaussian(2),
              GaussianMixture(1, 3), GaussianMixture(2, 2)]  # fmt: skip
LARGER = [Gaussian(3), MultivariateGaussian(3), GaussianMixture(3, 2)]
WITH_KL = [d for d in DISCRETE + CONTINUOUS if hasattr(d, "kl")]


def name(distribution):
    return f"{type(distribution).__name__}{getattr(distribution, 'n', '')}"


def over(distributions):
    return pytest.mark.parametrize("distribution", distributions, ids=name)


def is_discrete(distribution):
    return isinstance(distribution, (Categorical, Bernoulli, Tempered, Exploring))


def all_actions(distribution):
    """(actions, weight of each): every discrete action with weight 1, or a fine grid with the volume of a cell."""
    if is_discrete(distribution):
        return np.arange(getattr(distribution, "n", 2)), 1.0
    step = 0.2
    axis = np.arange(-16, 16, step)
    return np.stack(np.meshgrid(*[axis] * distribution.n), axis=-1).reshape(-1, distribution.n), step**distribution.n


def expectation(distribution, params, g):
    """E[g(a)] = Σ_a π(a) g(a), or the integral. It is exact to rounding for smooth densities that the grid resolves."""
    act, volume = all_actions(distribution)
    params = np.broadcast_to(params, (len(act), params.size))
    weight = volume * np.exp(distribution.log_prob(params, act))
    return np.tensordot(weight, g(params, act), 1)


def draw_params(distribution, seed=1):
    return 0.3 * np.random.default_rng(seed).standard_normal(distribution.n_params)


# Each claim is a function of a distribution. So a test can also show that the claim fails on planted bugs.


def check_gradients(distribution, batch=(4,)):
    rng = np.random.default_rng(1)
    params = rng.standard_normal((*batch, distribution.n_params))
    act, c = distribution.sample(params, rng), rng.standard_normal(batch)[..., None]
    dlogp, dentropy = distribution.grad_log_prob(params, act), distribution.grad_entropy(params)
    assert distribution.log_prob(params, act).shape == distribution.entropy(params).shape == batch
    assert dlogp.shape == dentropy.shape == params.shape
    check_both(lambda params: np.sum(c[..., 0] * distribution.log_prob(params, act)), params, c * dlogp)
    check_both(lambda params: np.sum(c[..., 0] * distribution.entropy(params)), params, c * dentropy)


def check_normalised(distribution):
    total = expectation(distribution, draw_params(distribution), lambda params, act: np.ones(len(act)))
    assert total == pytest.approx(1, abs=1e-10)


def check_zero_mean_score(distribution):
    score = expectation(distribution, draw_params(distribution), distribution.grad_log_prob)
    np.testing.assert_allclose(score, 0, atol=1e-10)


def check_entropy(distribution):
    params = draw_params(distribution)
    exact = expectation(distribution, params, lambda params, act: -distribution.log_prob(params, act))
    assert distribution.entropy(params) == pytest.approx(exact, abs=1e-10)


def check_kl(distribution):
    params, other = draw_params(distribution, 1), draw_params(distribution, 3)
    ratio = lambda params, act: distribution.log_prob(params, act) - distribution.log_prob(0 * params + other, act)
    exact = expectation(distribution, params, ratio)
    assert exact > 0.01
    assert distribution.kl(params, other) == pytest.approx(exact, abs=1e-10)
    assert distribution.kl(params, params) == pytest.approx(0, abs=1e-14)


def check_samples(distribution, n=20_000):
    """Samples have the density's mean and second moments."""
    params = draw_params(distribution)
    columns = lambda act: np.stack([act == k for k in range(5)], axis=-1) if is_discrete(distribution) else act
    products = lambda act: columns(act)[..., :, None] * columns(act)[..., None, :]
    act = distribution.sample(np.broadcast_to(params, (n, params.size)), np.random.default_rng(2))
    for moment in (columns, products):
        expected = expectation(distribution, params, lambda params, act: moment(act))
        possible = np.abs(expected) > 0  # a frequency of exactly 0 has no standard error
        assert_mean(moment(act)[:, possible], expected[possible])
        assert not np.any(moment(act)[:, ~possible])


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@over(DISCRETE + CONTINUOUS + LARGER)
def test_gradients_of_log_prob_and_entropy(distribution, batch):
    check_gradients(distribution, batch)


@over(DISCRETE + CONTINUOUS)
def test_probabilities_sum_to_one(distribution):
    check_normalised(distribution)


@over(DISCRETE + CONTINUOUS)
def test_the_score_has_mean_zero(distribution):
    check_zero_mean_score(distribution)


@over([d for d in DISCRETE + CONTINUOUS if not isinstance(d, GaussianMixture)])
def test_entropy_is_minus_the_mean_log_probability(distribution):
    check_entropy(distribution)


@over(WITH_KL)
def test_kl_is_the_mean_log_ratio_and_zero_at_equality(distribution):
    check_kl(distribution)


@over(DISCRETE + CONTINUOUS)
def test_samples_have_the_moments_of_the_density(distribution):
    check_samples(distribution)


@over(LARGER)
def test_in_three_dimensions_samples_give_mean_zero_score_entropy_and_kl(distribution):
    n = 20_000
    params, other = (np.broadcast_to(draw_params(distribution, seed), (n, distribution.n_params)) for seed in (1, 3))
    act = distribution.sample(params, np.random.default_rng(3))
    logp = distribution.log_prob(params, act)
    assert_mean(distribution.grad_log_prob(params, act), 0)
    if not isinstance(distribution, GaussianMixture):
        assert_mean(-logp, distribution.entropy(params[0]))
        assert_mean(logp - distribution.log_prob(other, act), distribution.kl(params[0], other[0]))


@over(WITH_KL)
def test_kl_is_positive(distribution):
    rng = np.random.default_rng(0)
    params, other = rng.standard_normal((2, 1000, distribution.n_params))
    assert np.all(distribution.kl(params, other) > 0)


class SigmaForVariance(Gaussian):
    def grad_log_prob(self, params, act):
        mean, log_std = self._split(params)
        return super().grad_log_prob(params, act) * np.concatenate([np.exp(log_std), np.ones_like(mean)], axis=-1)


class MeanForSum(Gaussian):
    def log_prob(self, params, act):
        return super().log_prob(params, act) / self.n


class NoNormaliser(Gaussian):
    def log_prob(self, params, act):
        return super().log_prob(params, act) + self.n * LOG_2PI / 2


class ForgetsTheDiagonal(MultivariateGaussian):
    def grad_log_prob(self, params, act):
        return super().grad_log_prob(params, act) + self.grad_entropy(params)


class NoExpectedScore(Categorical):
    def grad_log_prob(self, params, act):
        return np.eye(self.n)[act]


class EntropyGradientOfTheWrongSign(Categorical):
    def grad_entropy(self, params):
        return -super().grad_entropy(params)


class EntropyInBits(Bernoulli):
    def entropy(self, params):
        return super().entropy(params) / np.log(2)


class ReversedKL(Gaussian):
    def kl(self, params, other):
        return super().kl(other, params)


class VarianceForSigma(Gaussian):
    def sample(self, params, rng):
        mean, log_std = self._split(params)
        return super().sample(np.concatenate([mean, 2 * log_std], axis=-1), rng)


class UpperTriangle(MultivariateGaussian):
    def sample(self, params, rng):
        mean, L, _ = self._split(params)
        return mean + (np.swapaxes(L, -1, -2) @ rng.standard_normal(mean.shape)[..., None])[..., 0]


@pytest.mark.parametrize("check, planted_bug", [
    (check_gradients, SigmaForVariance(2)),
    (check_gradients, MeanForSum(2)),
    (check_gradients, ForgetsTheDiagonal(2)),
    (check_gradients, NoExpectedScore(3)),
    (check_gradients, EntropyGradientOfTheWrongSign(3)),
    (check_normalised, MeanForSum(2)),
    (check_normalised, NoNormaliser(1)),
    (check_zero_mean_score, ForgetsTheDiagonal(2)),
    (check_entropy, NoNormaliser(1)),
    (check_entropy, EntropyInBits()),
    (check_kl, ReversedKL(2)),
    (check_samples, VarianceForSigma(1)),
    (check_samples, UpperTriangle(2)),
], ids=lambda x: getattr(x, "__name__", type(x).__name__))  # fmt: skip
def test_each_check_fails_on_a_planted_bug(check, planted_bug):
    with pytest.raises(AssertionError):
        check(planted_bug)


# Closed forms, written another way


def test_categorical_is_the_softmax():
    h = np.array([[0.5, -1.0, 2.0], [0.0, 0.0, 3.0]])
    pi = np.exp(h) / np.exp(h).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(log_softmax(h)), pi, rtol=1e-14)
    for a in range(3):
        np.testing.assert_allclose(Categorical(3).log_prob(h, np.array([a, a])), np.log(pi[:, a]), rtol=1e-14)
        score = np.eye(3)[a] - pi  # the slide's ∇h(s, a) − Σ_b π(b) ∇h(s, b)
        np.testing.assert_allclose(Categorical(3).grad_log_prob(h, np.array([a, a])), score, rtol=1e-14)


def test_bernoulli_is_the_categorical_with_logits_zero_and_z():
    rng = np.random.default_rng(0)
    z, z_other, act = rng.standard_normal((8, 1)), rng.standard_normal((8, 1)), rng.integers(2, size=8)
    two = lambda z: np.concatenate([0 * z, z], axis=-1)
    one, categorical = Bernoulli(), Categorical(2)
    np.testing.assert_allclose(one.log_prob(z, act), categorical.log_prob(two(z), act), rtol=1e-13)
    np.testing.assert_allclose(one.grad_log_prob(z, act), categorical.grad_log_prob(two(z), act)[:, 1:], rtol=1e-13)
    np.testing.assert_allclose(one.entropy(z), categorical.entropy(two(z)), rtol=1e-13)
    np.testing.assert_allclose(one.grad_entropy(z), categorical.grad_entropy(two(z))[:, 1:], rtol=1e-13)
    np.testing.assert_allclose(one.kl(z, z_other), categorical.kl(two(z), two(z_other)), rtol=1e-12)
    np.testing.assert_array_equal(one.mode(z), categorical.mode(two(z)))


def test_gaussian_is_a_product_of_normal_densities():
    mean, std, act = [0.3, -1.0, 2.0], [0.5, 1.5, 3.0], [1.0, -0.5, -4.0]
    density = np.prod([NormalDist(m, s).pdf(a) for m, s, a in zip(mean, std, act)])
    params = np.concatenate([mean, np.log(std)])
    assert Gaussian(3).log_prob(params, np.array(act)) == pytest.approx(np.log(density), rel=1e-13)
    score = [(a - m) / s**2 for m, s, a in zip(mean, std, act)]  # the slide's (a − μ) / σ²
    np.testing.assert_allclose(Gaussian(3).grad_log_prob(params, np.array(act))[:3], score, rtol=1e-13)


def multivariate(rng, n):
    """(params, μ, Σ): params contain μ and, row by row, L with the logarithms of its diagonal. Σ = L Lᵀ."""
    params = rng.standard_normal(MultivariateGaussian(n).n_params)
    L, entries = np.zeros((n, n)), iter(params[n:])
    for row in range(n):
        for column in range(row + 1):
            L[row, column] = np.exp(next(entries)) if row == column else next(entries)
    return params, params[:n], L @ L.T


@pytest.mark.parametrize("n", [1, 2, 4])
def test_multivariate_gaussian_by_sigma_itself(n):
    rng = np.random.default_rng(n)
    (params, mean, cov), (other, mean_other, cov_other) = multivariate(rng, n), multivariate(rng, n)
    d, precision = rng.standard_normal(n), np.linalg.inv(cov)
    log_det, log_det_other = np.linalg.slogdet(cov)[1], np.linalg.slogdet(cov_other)[1]
    distribution = MultivariateGaussian(n)

    logp = -0.5 * (d @ precision @ d + log_det + n * LOG_2PI)
    assert distribution.log_prob(params, mean + d) == pytest.approx(logp, rel=1e-10)
    np.testing.assert_allclose(distribution.grad_log_prob(params, mean + d)[:n], precision @ d, rtol=1e-8)
    assert distribution.entropy(params) == pytest.approx(0.5 * np.linalg.slogdet(2 * np.pi * np.e * cov)[1], rel=1e-10)
    m, precision_other = mean_other - mean, np.linalg.inv(cov_other)
    kl = 0.5 * (np.trace(precision_other @ cov) + m @ precision_other @ m - n + log_det_other - log_det)
    assert distribution.kl(params, other) == pytest.approx(kl, rel=1e-8)

    centred = distribution.sample(np.broadcast_to(params, (20_000, params.size)), rng) - mean
    assert_mean(centred, 0)
    assert_mean(centred[:, :, None] * centred[:, None, :], cov)


def test_a_multivariate_gaussian_with_diagonal_l_is_a_gaussian():
    n, rng = 3, np.random.default_rng(0)
    diagonal = [3, 5, 8]  # where ℓ_00, ℓ_11 and ℓ_22 stand among ℓ_00, ℓ_10, ℓ_11, ℓ_20, ℓ_21, ℓ_22, after μ
    params, other, act = rng.standard_normal((5, 6)), rng.standard_normal((5, 6)), rng.standard_normal((5, 3))

    def full(params):
        p = np.zeros((5, 9))
        p[:, :n], p[:, diagonal] = params[:, :n], params[:, n:]
        return p

    one, many = Gaussian(n), MultivariateGaussian(n)
    np.testing.assert_allclose(many.log_prob(full(params), act), one.log_prob(params, act), rtol=1e-12)
    np.testing.assert_allclose(
        many.grad_log_prob(full(params), act)[:, [0, 1, 2, *diagonal]], one.grad_log_prob(params, act), rtol=1e-12
    )
    np.testing.assert_allclose(many.entropy(full(params)), one.entropy(params), rtol=1e-12)
    np.testing.assert_allclose(many.kl(full(params), full(other)), one.kl(params, other), rtol=1e-12)
    samples = [d.sample(p, np.random.default_rng(1)) for d, p in ((many, full(params)), (one, params))]
    np.testing.assert_allclose(*samples, rtol=1e-12)


def test_mixture_is_a_weighted_sum_of_products_of_normal_densities():
    rng = np.random.default_rng(0)
    logits, mean, log_std, act = (
        rng.standard_normal(3), rng.standard_normal((3, 2)), rng.standard_normal((3, 2)), rng.standard_normal(2),
    )  # fmt: skip
    w = np.exp(logits) / np.exp(logits).sum()
    density = sum(
        w[j] * np.prod([NormalDist(mean[j, k], np.exp(log_std[j, k])).pdf(act[k]) for k in range(2)]) for j in range(3)
    )
    params = np.concatenate([logits, mean.ravel(), log_std.ravel()])
    assert GaussianMixture(2, 3).log_prob(params, act) == pytest.approx(np.log(density), rel=1e-12)


def test_a_mixture_of_one_component_is_a_gaussian():
    rng = np.random.default_rng(0)
    params, act = rng.standard_normal((5, 5)), rng.standard_normal((5, 2))
    one, mixture = Gaussian(2), GaussianMixture(2, 1)
    np.testing.assert_allclose(mixture.log_prob(params, act), one.log_prob(params[:, 1:], act), rtol=1e-12)
    dparams = mixture.grad_log_prob(params, act)
    np.testing.assert_array_equal(dparams[:, 0], 0)  # the only weight is 1, whatever its logit
    np.testing.assert_allclose(dparams[:, 1:], one.grad_log_prob(params[:, 1:], act), rtol=1e-12)
    bound = np.log(4 * np.pi) + params[:, 3:].sum(axis=-1)  # ½ log 4π per dimension, plus log σ
    np.testing.assert_allclose(mixture.entropy(params), bound, rtol=1e-12)


def entropy_above_bound(distribution, params):
    exact = expectation(distribution, params, lambda params, act: -distribution.log_prob(params, act))
    return exact - distribution.entropy(params)


@pytest.mark.parametrize("spread", [0, 1, 3, 10])
@over([GaussianMixture(1, 1), GaussianMixture(1, 3), GaussianMixture(2, 2)])
def test_the_mixtures_entropy_is_above_its_lower_bound(distribution, spread):
    for seed in range(5):
        params = draw_params(distribution, seed)
        params[: -distribution.n * distribution.m] *= spread  # weights and means
        assert entropy_above_bound(distribution, params) > 0.01


@pytest.mark.parametrize("n", [1, 2])
def test_the_bound_misses_half_of_one_minus_log_two_per_dimension_when_components_are_far_apart(n):
    params = np.concatenate([[0.3, -0.4], np.full(n, -6.0), np.full(n, 5.0), np.linspace(-0.2, 0.3, 2 * n)])
    assert entropy_above_bound(GaussianMixture(n, 2), params) == pytest.approx(n * (1 - np.log(2)) / 2, abs=1e-6)


# Modes, extremes, dtypes and errors


@over(DISCRETE + [d for d in CONTINUOUS + LARGER if not isinstance(d, GaussianMixture)])
def test_no_sample_is_more_likely_than_the_mode(distribution):
    rng = np.random.default_rng(0)
    params = rng.standard_normal((500, distribution.n_params))
    mode, act = distribution.mode(params), distribution.sample(params, rng)
    assert mode.shape == act.shape
    assert np.all(distribution.log_prob(params, mode) >= distribution.log_prob(params, act))


def test_the_mixtures_mode_is_the_mean_of_its_heaviest_component():
    mean = np.arange(6.0)
    params = np.stack([np.concatenate([logits, mean, np.zeros(6)]) for logits in ([0, 2, 1], [0, 1, 2])])
    np.testing.assert_array_equal(GaussianMixture(2, 3).mode(params), [[2, 3], [4, 5]])


@pytest.fixture
def no_floating_point_error():
    with np.errstate(all="raise", under="ignore"):
        yield


LOGIT, LOG_STD, ZERO = (0, 1e4, -1e4), (0, np.log(1e-6)), (0,)
EXTREME = [  # a distribution and the values that each of its params takes, in all combinations
    (Categorical(3), [LOGIT] * 3),
    (Bernoulli(), [LOGIT]),
    (Gaussian(2), [ZERO] * 2 + [LOG_STD] * 2),
    (MultivariateGaussian(2), [ZERO] * 2 + [LOG_STD, (0, 1), LOG_STD]),
    (GaussianMixture(2, 2), [LOGIT] * 2 + [ZERO] * 3 + [(1,)] + [LOG_STD] * 4),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distribution, values", EXTREME, ids=[name(d) for d, _ in EXTREME])
def test_extreme_params_give_finite_numbers_without_a_warning(distribution, values, dtype, no_floating_point_error):
    params = np.array(list(product(*values)), dtype)
    act = distribution.sample(params, np.random.default_rng(0))
    other_acts = [0 * act, 0 * act + 1] if is_discrete(distribution) else [distribution.mode(params), act + 1]
    for a in (act, *other_acts):
        assert np.all(np.isfinite(a))
        assert np.all(np.isfinite(distribution.log_prob(params, a)))
        assert np.all(np.isfinite(distribution.grad_log_prob(params, a)))
    assert np.all(np.isfinite(distribution.entropy(params)))
    assert np.all(np.isfinite(distribution.grad_entropy(params)))
    if hasattr(distribution, "kl"):
        assert np.all(np.isfinite(distribution.kl(params, params[::-1])))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_limits(dtype, no_floating_point_error):
    h, distribution = np.array([1e4, -1e4, 0], dtype), Categorical(3)
    np.testing.assert_array_equal([distribution.log_prob(h, a) for a in range(3)], [0, -2e4, -1e4])
    np.testing.assert_array_equal(distribution.grad_log_prob(h, 0), [0, 0, 0])
    np.testing.assert_array_equal(distribution.grad_log_prob(h, 1), [-1, 1, 0])
    assert distribution.entropy(h) == 0
    assert distribution.kl(h, h[::-1]) == 1e4
    assert not distribution.sample(np.broadcast_to(h, (1000, 3)), np.random.default_rng(0)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bernoulli_limits(dtype, no_floating_point_error):
    z, distribution = np.array([[1e4], [-1e4]], dtype), Bernoulli()
    np.testing.assert_array_equal(distribution.log_prob(z, np.array([1, 0])), 0)
    np.testing.assert_array_equal(distribution.log_prob(z, np.array([0, 1])), -1e4)
    np.testing.assert_array_equal(distribution.grad_log_prob(z, np.array([1, 0])), 0)
    np.testing.assert_array_equal(distribution.grad_log_prob(z, np.array([0, 1])), [[-1], [1]])
    np.testing.assert_array_equal(distribution.entropy(z), 0)
    np.testing.assert_array_equal(distribution.grad_entropy(z), 0)
    np.testing.assert_array_equal(distribution.kl(z, -z), 1e4)
    np.testing.assert_array_equal(distribution.sample(z, np.random.default_rng(0)), [1, 0])


@pytest.mark.parametrize("dtype, rtol", [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_a_gaussian_of_sigma_1e_minus_6(dtype, rtol, no_floating_point_error):
    sigma, distribution = 1e-6, Gaussian(2)
    params = np.array([0, 0, np.log(sigma), np.log(sigma)], dtype)
    act = np.array([0, 2 * sigma], dtype)
    np.testing.assert_allclose(distribution.log_prob(params, act), -2 * np.log(sigma) - LOG_2PI - 2, rtol=rtol)
    np.testing.assert_allclose(distribution.grad_log_prob(params, act), [0, 2 / sigma, -1, 3], rtol=rtol)
    np.testing.assert_allclose(distribution.entropy(params), 2 * np.log(sigma) + LOG_2PI + 1, rtol=rtol)
    samples = distribution.sample(np.broadcast_to(params, (10_000, 4)), np.random.default_rng(0))
    assert_mean((samples / sigma) ** 2, 1)


def test_a_mixture_with_one_overwhelming_logit_is_that_component(no_floating_point_error):
    rng = np.random.default_rng(0)
    mean, log_std, act = rng.standard_normal((2, 2)), rng.standard_normal((2, 2)), rng.standard_normal(2)
    params = np.concatenate([[1e4, -1e4], mean.ravel(), log_std.ravel()])
    one = np.concatenate([mean[0], log_std[0]])
    assert GaussianMixture(2, 2).log_prob(params, act) == pytest.approx(Gaussian(2).log_prob(one, act), rel=1e-12)
    dparams = GaussianMixture(2, 2).grad_log_prob(params, act)
    np.testing.assert_allclose(dparams[[2, 3, 6, 7]], Gaussian(2).grad_log_prob(one, act), rtol=1e-12)
    np.testing.assert_array_equal(dparams[[0, 1, 4, 5, 8, 9]], 0)


@over(DISCRETE + CONTINUOUS)
def test_float32_params_give_float32_results(distribution):
    rng = np.random.default_rng(0)
    params = rng.standard_normal((4, distribution.n_params)).astype(np.float32)
    act = distribution.sample(params, rng)
    results = {
        "log_prob": distribution.log_prob(params, act),
        "grad_log_prob": distribution.grad_log_prob(params, act),
        "entropy": distribution.entropy(params),
        "grad_entropy": distribution.grad_entropy(params),
    }
    if hasattr(distribution, "kl"):
        results["kl"] = distribution.kl(params, params[::-1])
    if not is_discrete(distribution):
        results.update(sample=act, mode=distribution.mode(params))
    assert {k: v.dtype for k, v in results.items()} == dict.fromkeys(results, np.float32)


@over(DISCRETE + CONTINUOUS)
def test_samples_follow_their_generator_and_take_a_single_state(distribution):
    params = draw_params(distribution)
    act = [distribution.sample(params, np.random.default_rng(7)) for _ in range(2)]
    np.testing.assert_array_equal(*act)
    assert act[0].shape == (() if is_discrete(distribution) else (distribution.n,))
    if is_discrete(distribution):
        assert act[0].dtype == np.int64


@over(DISCRETE + CONTINUOUS)
def test_params_of_the_wrong_size_raise(distribution):
    n = distribution.n_params
    act = distribution.mode(np.zeros((4, n)))
    for params in (np.zeros((4, n + 1)), np.zeros((4, n - 1)), np.zeros(())):
        for call in (lambda: distribution.log_prob(params, act), lambda: distribution.grad_log_prob(params, act),
                     lambda: distribution.sample(params, np.random.default_rng(0))):  # fmt: skip
            with pytest.raises(ValueError, match=rf"params: expected shape \[\.\.\., {n}\], got"):
                call()


@over(CONTINUOUS)
def test_continuous_actions_of_the_wrong_size_raise(distribution):
    params = np.zeros((4, distribution.n_params))
    for act in (np.zeros((4, distribution.n + 1)), np.zeros(())):
        for function in (distribution.log_prob, distribution.grad_log_prob):
            with pytest.raises(ValueError, match=rf"act: expected shape \[\.\.\., {distribution.n}\], got"):
                function(params, act)


@over(CONTINUOUS)
def test_each_row_of_params_needs_its_own_action_but_one_row_serves_several_actions(distribution):
    params, act = np.zeros((4, distribution.n_params)), np.zeros((4, distribution.n))
    for function in (distribution.log_prob, distribution.grad_log_prob):
        assert len(function(params[0], act)) == len(function(params[:1], act)) == 4
        for wrong in (act[:1], act[0], act[:3]):
            with pytest.raises(ValueError, match="act: expected shape .*, as params, got"):
                function(params, wrong)


def test_an_exponential_that_is_drawn_as_0_takes_its_action_without_a_warning():
    rng = SimpleNamespace(standard_exponential=lambda shape, dtype: np.array([[0.5, 0, 2], [0.5, 1, 2]], dtype))
    with np.errstate(all="raise"):
        assert Categorical(3).sample(np.zeros((2, 3), np.float32), rng).tolist() == [1, 0]


@over(DISCRETE)
@pytest.mark.parametrize("beyond", [lambda n: -1, lambda n: n, lambda n: np.nan])
def test_discrete_actions_that_do_not_exist_raise(distribution, beyond):
    params = np.zeros((4, distribution.n_params))
    act = np.array([0, 1, beyond(distribution.n), 0])
    for function in (distribution.log_prob, distribution.grad_log_prob):
        with pytest.raises(ValueError, match=f"act: expected whole numbers from 0 to {distribution.n - 1}, got"):
            function(params, act)


@over(DISCRETE)
def test_discrete_actions_with_an_axis_too_many_raise(distribution):
    """[B, 1] against [B] would broadcast to [B, B]."""
    params = np.zeros((4, distribution.n_params))
    for function in (distribution.log_prob, distribution.grad_log_prob):
        with pytest.raises(ValueError):
            function(params, np.zeros((4, 1), int))


def test_deterministic_returns_its_params_and_says_that_it_has_no_density():
    distribution, params = Deterministic(2), np.array([0.5, -1.0])
    for act in (distribution.sample(params, np.random.default_rng(0)), distribution.sample(params)):
        np.testing.assert_array_equal(act, params)
    np.testing.assert_array_equal(distribution.mode(params), params)
    for function in ("log_prob", "grad_log_prob", "entropy", "grad_entropy", "kl"):
        arguments = (params,) if "entropy" in function else (params, params)
        with pytest.raises(TypeError, match="Deterministic: .*gradient-free method, or use Gaussian"):
            getattr(distribution, function)(*arguments)
    with pytest.raises(ValueError, match=r"params: expected shape \[\.\.\., 2\]"):
        distribution.sample(np.zeros(3))


def test_actions_that_are_no_whole_numbers_are_refused_and_whole_floats_are_not():
    params = np.zeros((1, 3))
    for call in (Categorical(3).log_prob, Categorical(3).grad_log_prob):
        with pytest.raises(ValueError, match="act: expected whole numbers from 0 to 2"):
            call(params, [1.5])
        np.testing.assert_array_equal(call(params, [1.0]), call(params, [1]))


def test_parameters_may_be_integers():
    params, act = np.array([0, 0, 1, 2, 1]), np.array([0.5, -0.5])
    pi = MultivariateGaussian(2)
    assert pi.log_prob(params, act) == pi.log_prob(params.astype(float), act)
    mixture = GaussianMixture(1, 2, spread=0.5)
    np.testing.assert_array_equal(mixture.mode(np.zeros(6, int)), mixture.mode(np.zeros(6)))
