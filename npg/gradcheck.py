"""Checks a hand-written gradient: compares it with one of two numerical derivatives.

    central differences   ∂f/∂θ_k ≈ (f(θ + h u_k) − f(θ − h u_k)) / 2h     error O(h²) + O(ε/h)
    complex step          ∂f/∂θ_k ≈ Im f(θ + i h u_k) / h                  error O(h²), no subtraction

Central differences need only values of f. In float64 their error is about 1e-10. The complex step (Squire & Trapp,
"Using complex variables to estimate derivatives of real functions", 1998) never subtracts two nearly equal numbers.
So h may be 1e-30. Then only the rounding errors of f itself are left. For the complex step, f must not use `abs`,
conjugation, `float()` or `.real`. Its comparisons must depend on real parts only, as those of `np.maximum` do except
at ties.

    >>> import numpy as np
    >>> theta = np.array([0.5, -1.0])
    >>> error = check_gradient(lambda theta: np.sum(np.exp(theta)), theta, np.exp(theta))
"""

import numpy as np

FULL_JACOBIAN_LIMIT = 1000  # for more parameters, random directions are compared instead of every coordinate
TOLERANCE = {"central": 1e-7, "complex": 1e-12}


def numerical_derivative(f, theta, direction, relative_step=6e-6):
    """Derivative of f at θ along a direction u, by central differences: (f(θ + hu) − f(θ − hu)) / 2h.

    θ and u are float64 arrays of the same shape. The result has f(θ)'s shape. h = 6e-6 · max(1, |θ| where u ≠ 0).
    6e-6 is the cube root of the machine epsilon ε. It balances the truncation error (h²) and the rounding error (ε/h).
    """
    h = relative_step * max(1.0, np.max(np.abs(theta[direction != 0]), initial=0.0))
    return (np.array(f(theta + h * direction)) - np.asarray(f(theta - h * direction))) / (2 * h)


def complex_step_derivative(f, theta, direction, step=1e-30):
    """Derivative of f at θ along a direction u, by the complex step: Im f(θ + i h u) / h.

    Raises ValueError if f returns no complex number: then it has dropped the imaginary part.
    """
    value = np.asarray(f(theta + 1j * step * direction))
    if not np.iscomplexobj(value):
        raise ValueError(f"f: expected a complex result for a complex theta, got {value.dtype}")
    return value.imag / step


DERIVATIVE = {"central": numerical_derivative, "complex": complex_step_derivative}


def _jacobian(derivative, f, theta):
    theta = np.asarray(theta, np.float64)
    unit_vectors = np.eye(theta.size).reshape(theta.size, *theta.shape)
    columns = [derivative(f, theta, u_k) for u_k in unit_vectors]
    return np.stack(columns, axis=-1).reshape(columns[0].shape + theta.shape)


def numerical_gradient(f, theta):
    """∇f at θ by central differences, with two evaluations per coordinate.

    f maps a float64 array of θ's shape to a number or an array. The result has shape f(θ).shape + θ.shape: the
    gradient of a scalar f, else the full Jacobian.
    """
    return _jacobian(numerical_derivative, f, theta)


def complex_step_gradient(f, theta):
    """∇f at θ by the complex step, with one evaluation per coordinate; shapes as in `numerical_gradient`."""
    return _jacobian(complex_step_derivative, f, theta)


def check_gradient(f, theta, gradient, method="central", tolerance=None, n_directions=20, seed=0):
    """Asserts that `gradient` is ∇f(θ); returns the largest relative error.

    f          f(θ) is a number, for a float64 array of θ's shape. If f(θ) is an array, `gradient` is its Jacobian.
    gradient   the analytic gradient, shape f(θ).shape + θ.shape
    method     "central" or "complex"
    tolerance  limit of |analytic − numeric| / max(max|analytic|, max|numeric|, 1e-3 max|f|). The default is 1e-7 for
               "central" and 1e-12 for "complex". The term with max|f| matters where the gradient is zero: there the
               numeric value is only the rounding error of f. (If f is much larger than its gradient, this term
               hides errors: subtract a constant from f.)

    With up to 1000 parameters, every coordinate is compared. With more, ∇f·u is compared with the derivative of f
    along u, for `n_directions` random unit directions u. In the tolerance above, the norm of the gradient divided by
    √(number of parameters), a typical |∇f·u|, then replaces max|analytic|.

    Compute `gradient` in float64: float32 has errors of about 1e-7 by itself. (A network's dtype is that of θ.)

    Raises AssertionError, which names the worst coordinate and both values. Raises ValueError for a gradient of the
    wrong shape.
    """
    if method not in DERIVATIVE:
        raise ValueError(f"method: expected one of {sorted(DERIVATIVE)}, got {method!r}")
    derivative = DERIVATIVE[method]
    tolerance = TOLERANCE[method] if tolerance is None else tolerance
    theta = np.asarray(theta, np.float64)
    if callable(gradient):
        raise ValueError("gradient: expected the array ∇f(θ), got a function; pass gradient(theta)")
    gradient = np.asarray(gradient)
    value = np.asarray(f(theta.copy()))  # f may change its argument
    expected = value.shape + theta.shape
    if gradient.shape != expected:
        raise ValueError(f"gradient: expected shape f(theta).shape + theta.shape = {expected}, got {gradient.shape}")

    if theta.size <= FULL_JACOBIAN_LIMIT:
        analytic, numeric = gradient, _jacobian(derivative, f, theta)
        scale = max(np.max(np.abs(analytic), initial=0.0), np.max(np.abs(numeric), initial=0.0))
        where = "coordinate"
    else:
        directions = np.random.default_rng(seed).standard_normal((n_directions, *theta.shape))
        directions /= np.linalg.norm(directions.reshape(n_directions, -1), axis=1).reshape(-1, *[1] * theta.ndim)
        analytic = np.stack([np.sum(gradient * u, axis=tuple(range(-theta.ndim, 0))) for u in directions], axis=-1)
        numeric = np.stack([derivative(f, theta, u) for u in directions], axis=-1)
        scale = max(np.linalg.norm(gradient) / np.sqrt(theta.size), np.max(np.abs(numeric)))
        where = "random direction"

    scale = max(scale, 1e-3 * np.max(np.abs(value), initial=0.0), np.finfo(np.float64).tiny)
    with np.errstate(invalid="ignore"):
        error = np.abs(analytic - numeric) / scale
    error = np.where(np.isfinite(error), error, np.inf)  # a NaN counts as the worst error
    worst = np.unravel_index(np.argmax(error), error.shape)
    if not error[worst] <= tolerance:
        raise AssertionError(
            f"gradient differs from the {method} derivative at {where} {tuple(int(i) for i in worst)}: "
            f"analytic {analytic[worst]:.12g}, numeric {numeric[worst]:.12g}, "
            f"relative error {error[worst]:.2e} > {tolerance:.0e}"
            + ("; the gradient is float32, a check needs float64" if gradient.dtype == np.float32 else "")
        )
    return float(error[worst])
