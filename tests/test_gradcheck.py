import doctest

import numpy as np
import pytest

from npg import gradcheck
from npg.gradcheck import (
    FULL_JACOBIAN_LIMIT,
    check_gradient,
    complex_step_derivative,
    complex_step_gradient,
    numerical_derivative,
    numerical_gradient,
)

METHODS = ["central", "complex"]
SMALL, BIG = 50, 2 * FULL_JACOBIAN_LIMIT  # SMALL compares every coordinate, BIG random directions

rng = np.random.default_rng(0)
A, X, Y = rng.standard_normal((4, 3)), rng.standard_normal(3), rng.standard_normal((2, 3))
FUNCTIONS = {  # name: (f, θ, ∇f(θ))
    "scalar": (lambda x: np.sum(x**3) + np.exp(A[0] @ x), X, 3 * X**2 + np.exp(A[0] @ X) * A[0]),
    "vector": (lambda x: np.tanh(A @ x), X, (1 - np.tanh(A @ X) ** 2)[:, None] * A),
    "scalar of a matrix": (lambda y: np.sum(y @ y.T), Y, np.broadcast_to(2 * Y.sum(axis=0), Y.shape)),
    "matrix of a matrix": (lambda y: A[:, :2] @ y, Y, np.einsum("ij,kl->ikjl", A[:, :2], np.eye(3))),
    "of one number": (np.sin, np.array(0.3), np.cos(0.3)),
    "constant": (lambda x: 0 * x[0] + 5.0, X, np.zeros(3)),
}


def sum_of_sines(n):
    """(f, θ, terms): f(θ) = Σ_b sin(x_b · θ) for a batch x [5, n]; the terms x_b cos(x_b · θ) [5, n] add up to ∇f."""
    rng = np.random.default_rng(n)
    x, theta = rng.standard_normal((5, n)) / np.sqrt(n), rng.standard_normal(n)
    return lambda theta: np.sum(np.sin(x @ theta)), theta, x * np.cos(x @ theta)[:, None]


@pytest.mark.parametrize("f, theta, gradient", FUNCTIONS.values(), ids=FUNCTIONS)
def test_known_gradients_and_jacobians_pass_by_both_methods(f, theta, gradient):
    for method, gradient_of in zip(METHODS, (numerical_gradient, complex_step_gradient)):
        assert gradient_of(f, theta).shape == np.shape(f(theta)) + theta.shape
        assert 0 <= check_gradient(f, theta, gradient, method) <= gradcheck.TOLERANCE[method]


@pytest.mark.parametrize("method", METHODS)
def test_many_parameters_are_checked_along_random_directions(method):
    f, theta, terms = sum_of_sines(BIG)
    evaluations = []
    counted = lambda theta: evaluations.append(1) or f(theta)
    check_gradient(counted, theta, terms.sum(axis=0), method, n_directions=10)
    assert len(evaluations) <= 21  # not 2 · BIG
    both = lambda theta: np.stack([f(theta), np.sum(theta**2)])
    check_gradient(both, theta, np.stack([terms.sum(axis=0), 2 * theta]), method)
    check_gradient(lambda M: f(M.ravel()), theta.reshape(2, -1), terms.sum(axis=0).reshape(2, -1), method)


def spoil(gradient, factor):
    """Makes one coordinate of many wrong."""
    gradient[17] *= factor
    return gradient


PLANTED_BUGS = {
    "sign": lambda terms: -terms.sum(axis=0),
    "factor 2": lambda terms: 2 * terms.sum(axis=0),
    "missing sum": lambda terms: terms[0],
    "mean for sum": lambda terms: terms.mean(axis=0),
    "zero": lambda terms: 0 * terms[0],
    "one coordinate of many": lambda terms: spoil(terms.sum(axis=0), 1.01),
    "one NaN": lambda terms: spoil(terms.sum(axis=0), np.nan),
    "one infinite": lambda terms: spoil(terms.sum(axis=0), np.inf),
}


@pytest.mark.filterwarnings("ignore:invalid value")  # inf / inf
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [SMALL, BIG])
@pytest.mark.parametrize("bug", PLANTED_BUGS.values(), ids=PLANTED_BUGS)
def test_the_checker_fails_on_planted_bugs(bug, n, method):
    f, theta, terms = sum_of_sines(n)
    check_gradient(f, theta, terms.sum(axis=0), method)
    with pytest.raises(AssertionError, match="gradient differs"):
        check_gradient(f, theta, bug(terms), method)


def test_a_gradient_swapped_between_rows_of_a_jacobian_fails():
    f, theta, jacobian = FUNCTIONS["vector"]
    with pytest.raises(AssertionError):
        check_gradient(f, theta, jacobian[::-1])


def test_the_message_names_the_worst_coordinate_with_both_values():
    wrong = np.array([2.0, 4.0, 6.5])
    with pytest.raises(AssertionError, match=r"central.*coordinate \(2,\): analytic 6\.5, numeric (6|5\.9)") as e:
        check_gradient(lambda x: np.sum(x**2), np.array([1.0, 2.0, 3.0]), wrong)
    assert "relative error 7.69e-02 > 1e-07" in str(e.value)
    wrong = np.array([[2.0, 0.0], [0.5, 1.0]])
    with pytest.raises(AssertionError, match=r"complex.*coordinate \(1, 0\): analytic 0\.5, numeric 0,"):
        check_gradient(lambda x: x * np.array([2.0, 1.0]), np.ones(2), wrong, "complex")


def test_a_function_that_is_nan_fails():
    with pytest.raises(AssertionError, match="nan"):
        check_gradient(lambda x: np.sum(x) * np.nan, np.ones(2), np.ones(2))


def test_a_function_that_is_not_analytic_fails_the_complex_step_alone():
    theta = np.array([1.0, -2.0])
    f = lambda x: np.sum(np.abs(x))
    check_gradient(f, theta, np.sign(theta))
    with pytest.raises(AssertionError, match="complex"):
        check_gradient(lambda x: f(x) + 0 * np.sum(x), theta, np.sign(theta), "complex")
    with pytest.raises(ValueError, match="^f: expected a complex result for a complex theta, got float64"):
        check_gradient(f, theta, np.zeros(2), "complex")


@pytest.mark.parametrize("method", ["central", "complex"])
def test_a_function_that_changes_its_argument_is_checked_at_the_given_theta(method):
    def f(theta):
        theta *= 2
        return np.sum(np.sin(theta))

    theta = np.array([0.5, -1.0])
    check_gradient(f, theta, 2 * np.cos(2 * theta), method)
    np.testing.assert_array_equal(theta, [0.5, -1.0])


def test_a_tolerance_that_is_nan_accepts_nothing():
    with pytest.raises(AssertionError):
        check_gradient(np.sum, np.ones(2), np.ones(2), tolerance=np.nan)


@pytest.mark.parametrize("shape", [(2,), (3, 1), (1, 3), ()])
def test_a_gradient_of_the_wrong_shape_raises(shape):
    with pytest.raises(ValueError, match=r"gradient: expected shape .*\(3,\), got"):
        check_gradient(np.sum, np.ones(3), np.ones(shape))


def test_an_unknown_method_raises():
    with pytest.raises(ValueError, match="method: .*central.*complex.*'forward'"):
        check_gradient(np.sum, np.ones(3), np.ones(3), "forward")


def test_tolerance_decides():
    f, theta, wrong = lambda x: np.sum(x**2), np.array([1.0, 2.0]), np.array([2.0, 4.004])
    assert check_gradient(f, theta, wrong, tolerance=2e-3) == pytest.approx(0.004 / 4.004, rel=1e-6)
    with pytest.raises(AssertionError):
        check_gradient(f, theta, wrong, tolerance=5e-4)


def test_central_error_is_h_squared_over_six_for_the_exponential():
    theta, u = np.array([0.7]), np.ones(1)
    for h in (1e-2, 5e-3, 2.5e-3):
        error = numerical_derivative(np.exp, theta, u, h) / np.exp(theta) - 1
        np.testing.assert_allclose(error, h**2 / 6, rtol=1e-4)


def test_complex_step_error_is_minus_h_squared_over_six_and_nothing_at_the_default_step():
    theta, u = np.array([0.7]), np.ones(1)
    error = complex_step_derivative(np.exp, theta, u, 1e-2) / np.exp(theta) - 1
    np.testing.assert_allclose(error, -(1e-2**2) / 6, rtol=1e-4)
    np.testing.assert_allclose(complex_step_derivative(np.exp, theta, u), np.exp(theta), rtol=1e-15)


def test_the_central_step_grows_with_theta():
    theta = np.array([1e-3, 1e8])  # a step of 6e-6 would be too small for 1e8
    check_gradient(lambda x: np.sum(x**2), theta, 2 * theta)


def test_the_documented_example_runs():
    failed, attempted = doctest.testmod(gradcheck)
    assert attempted > 0 and failed == 0


@pytest.mark.parametrize("method", ["central", "complex"])
@pytest.mark.parametrize("n", [3, 2000])
def test_a_function_may_return_a_python_number(method, n):
    f = lambda theta: np.sum(theta * theta).item()
    theta = np.linspace(1, 2, n)
    check_gradient(f, theta, 2 * theta, method)
    with pytest.raises(AssertionError):
        check_gradient(f, theta, 2.001 * theta, method)


def test_a_float32_gradient_is_named_where_it_is_too_coarse():
    theta = np.linspace(1, 2, 9)
    with pytest.raises(AssertionError, match="the gradient is float32, a check needs float64"):
        check_gradient(lambda theta: np.sum(np.exp(theta)), theta, np.exp(theta.astype(np.float32)), "complex")


def test_a_gradient_that_is_still_a_function_is_refused():
    with pytest.raises(ValueError, match=r"gradient: expected the array ∇f.θ., got a function; pass gradient.theta."):
        check_gradient(lambda theta: np.sum(theta), np.ones(2), np.ones_like)


def test_a_function_may_return_the_same_array_each_time():
    array = np.zeros(2)

    def f(theta):
        array[...] = theta**2
        return array

    assert check_gradient(f, np.ones(2), 2 * np.eye(2)) < 1e-7
    with pytest.raises(AssertionError):
        check_gradient(f, np.ones(2), np.zeros((2, 2)))
