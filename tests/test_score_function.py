"""∇E[f(x)] from samples equals the gradient of E[f(x)] in closed form, within 4 standard errors."""

import numpy as np
import pytest

from npg.distributions import (
    Bernoulli,
    Categorical,
    Deterministic,
    Gaussian,
    GaussianMixture,
    MultivariateGaussian,
    log_softmax,
    sigmoid,
)
from npg.gradcheck import complex_step_gradient
from npg.score_function import reparameterised_gradient, score_function_gradient

C = np.array([0.7, -1.2])
M = np.array([[1.0, 0.4], [-0.2, -0.5]])
F = np.array([3.0, -1.0, 0.5])


def linear(x):
    return x @ C


def quadratic(x):
    return ((x @ M) * x).sum(axis=-1)


def expected_quadratic(mean, L):
    """E[xᵀMx] = μᵀMμ + tr(M Σ)"""
    return mean @ M @ mean + np.trace(M @ L @ L.T)


def cholesky(l):
    return np.stack([np.stack([np.exp(l[0]), 0 * l[0]]), np.stack([l[1], np.exp(l[2])])])


def expected_square_of_mixture(params):
    w, mean, log_std = np.exp(log_softmax(params[:3])), params[3:6], params[6:]
    return w @ (mean**2 + np.exp(2 * log_std))


# name: (distribution, params, f, E[f(x)] as a function of params)
CASES = {
    "Gaussian, x²": (Gaussian(1), [0.6, -0.3], lambda x: x[:, 0] ** 2, lambda p: p[0] ** 2 + np.exp(2 * p[1])),
    "Gaussian, linear": (Gaussian(2), [0.6, -1.1, -0.3, 0.2], linear, lambda p: p[:2] @ C),
    "Gaussian, quadratic": (
        Gaussian(2), [0.6, -1.1, -0.3, 0.2], quadratic, lambda p: expected_quadratic(p[:2], np.diag(np.exp(p[2:]))),
    ),
    "MultivariateGaussian, linear": (MultivariateGaussian(2), [0.6, -1.1, -0.3, 0.8, 0.2], linear, lambda p: p[:2] @ C),
    "MultivariateGaussian, quadratic": (
        MultivariateGaussian(2), [0.6, -1.1, -0.3, 0.8, 0.2], quadratic,
        lambda p: expected_quadratic(p[:2], cholesky(p[2:])),
    ),
    "GaussianMixture, x²": (
        GaussianMixture(1, 3), [0.3, -0.2, 0.5, -1.0, 0.4, 2.0, -0.5, 0.1, -0.2], lambda x: x[:, 0] ** 2,
        expected_square_of_mixture,
    ),
    "Categorical": (Categorical(3), [0.3, -0.8, 0.5], lambda x: F[x], lambda p: np.exp(log_softmax(p)) @ F),
    "Bernoulli": (Bernoulli(), [0.4], lambda x: F[x], lambda p: F[0] + sigmoid(p[0]) * (F[1] - F[0])),
}


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_the_gradient_within_its_standard_error(name):
    distribution, params, f, expectation = CASES[name]
    gradient = complex_step_gradient(expectation, np.array(params))
    estimate, error = score_function_gradient(distribution, params, f, 40_000, np.random.default_rng(0))
    assert estimate.shape == error.shape == (distribution.n_params,)
    assert np.all(np.abs(estimate - gradient) <= 4 * error)
    assert np.linalg.norm(gradient) > 10 * np.linalg.norm(error)  # otherwise the line above would show nothing


@pytest.mark.parametrize("name", CASES)
def test_even_two_samples_are_unbiased_and_their_standard_error_is_right(name):
    distribution, params, f, expectation = CASES[name]
    rng, repeats = np.random.default_rng(1), 1000
    draws = [score_function_gradient(distribution, params, f, 2, rng) for _ in range(repeats)]
    estimates, errors = (np.array(x) for x in zip(*draws))
    gradient = complex_step_gradient(expectation, np.array(params))
    for terms in (estimates - gradient, (estimates - gradient) ** 2 - errors**2):
        assert np.all(np.abs(terms.mean(axis=0)) <= 4 * terms.std(axis=0, ddof=1) / np.sqrt(repeats))


@pytest.mark.parametrize("name", ["Categorical", "Bernoulli"])
def test_the_sum_over_all_outcomes_is_the_gradient_exactly(name):
    distribution, params, f, expectation = CASES[name]
    params = np.array(params)
    x = np.arange(getattr(distribution, "n", 2))
    each = np.tile(params, (len(x), 1))
    terms = f(x)[:, None] * distribution.grad_log_prob(each, x)
    gradient = complex_step_gradient(expectation, params)
    np.testing.assert_allclose(np.exp(distribution.log_prob(each, x)) @ terms, gradient, rtol=0, atol=1e-12)


def test_the_integral_over_a_gaussian_is_the_gradient_exactly():
    """Gauss–Hermite quadrature with 8 nodes per axis integrates the quadratic f times the score without error."""
    distribution, params, f, expectation = CASES["Gaussian, quadratic"]
    params = np.array(params)
    node, weight = np.polynomial.hermite_e.hermegauss(8)
    x = params[:2] + np.exp(params[2:]) * np.stack(np.meshgrid(node, node), axis=-1).reshape(-1, 2)
    terms = f(x)[:, None] * distribution.grad_log_prob(np.tile(params, (len(x), 1)), x)
    integral = np.outer(weight, weight).ravel() @ terms / (2 * np.pi)
    np.testing.assert_allclose(integral, complex_step_gradient(expectation, params), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name, df", [
    ("Gaussian, x²", lambda x: 2 * x),
    ("Gaussian, linear", lambda x: np.tile(C, (len(x), 1))),
    ("Gaussian, quadratic", lambda x: x @ (M + M.T)),
])
def test_reparameterisation_estimates_the_same_gradient_with_less_variance(name, df):
    distribution, params, f, expectation = CASES[name]
    gradient = complex_step_gradient(expectation, np.array(params))
    n = 40_000
    estimate, error = reparameterised_gradient(distribution, params, df, n, np.random.default_rng(2))
    assert np.all(np.abs(estimate - gradient) <= 4 * error + 1e-12)
    _, score_error = score_function_gradient(distribution, params, f, n, np.random.default_rng(2))
    assert np.linalg.norm(error) < 0.7 * np.linalg.norm(score_error)


def test_the_score_function_needs_no_derivative_of_f():
    """E[1(x > 0)] = Φ(μ/σ) has the gradient φ(μ/σ) (1/σ, −μ/σ), although the derivative of the step itself is 0."""
    mean, std = 0.6, 0.8
    params = np.array([mean, np.log(std)])
    density = np.exp(-0.5 * (mean / std) ** 2) / np.sqrt(2 * np.pi)
    rng = np.random.default_rng(3)
    estimate, error = score_function_gradient(Gaussian(1), params, lambda x: x[:, 0] > 0, 40_000, rng)
    assert np.all(np.abs(estimate - density * np.array([1 / std, -mean / std])) <= 4 * error)
    assert np.all(np.abs(estimate) > 10 * error)
    np.testing.assert_array_equal(reparameterised_gradient(Gaussian(1), params, np.zeros_like, 10, rng)[0], 0)


def test_the_same_seed_gives_the_same_bits():
    distribution, params, f, _ = CASES["MultivariateGaussian, quadratic"]
    first, second = (score_function_gradient(distribution, params, f, 50, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("estimator, arguments, message", [
    (score_function_gradient, (Gaussian(2), np.zeros(3), linear, 10), r"params: expected shape \(4,\), got \(3,\)"),
    (score_function_gradient, (Gaussian(2), np.zeros((5, 4)), linear, 10), r"params: expected shape \(4,\)"),
    (score_function_gradient, (Gaussian(2), np.zeros(4), np.sum, 10), r"f: expected .* shape \(10,\), got \(\)"),
    (score_function_gradient, (Gaussian(2), np.zeros(4), lambda x: x, 10), r"f: expected .* got \(10, 2\)"),
    (score_function_gradient, (Gaussian(2), np.zeros(4), linear, 1), "n: expected at least 2 samples"),
    (reparameterised_gradient, (Gaussian(2), np.zeros(4), linear, 10), r"df: expected .* \(10, 2\), got \(10,\)"),
    (reparameterised_gradient, (Categorical(2), np.zeros(2), linear, 10), "distribution: expected a Gaussian"),
])
def test_wrong_arguments_are_named(estimator, arguments, message):
    with pytest.raises(ValueError, match=message):
        estimator(*arguments, np.random.default_rng(0))


def test_a_deterministic_distribution_has_no_score():
    with pytest.raises(TypeError, match="no log-probability, score"):
        score_function_gradient(Deterministic(2), np.zeros(2), linear, 10, np.random.default_rng(0))


def test_functions_may_change_their_argument():
    def in_place(x):
        x *= 2
        return x

    for estimate, f in (
        (score_function_gradient, lambda x: in_place(x)[:, 0]),
        (reparameterised_gradient, in_place),
    ):
        plain = estimate(Gaussian(1), [0.5, 0.0], lambda x, f=f: f(x.copy()), 10, np.random.default_rng(0))
        changed = estimate(Gaussian(1), [0.5, 0.0], f, 10, np.random.default_rng(0))
        np.testing.assert_array_equal(changed, plain)
