"""Assertions that several test files need."""

import numpy as np

from npg.gradcheck import check_gradient


def check_both(f, theta, gradient):
    """Asserts that `gradient` is ∇f(θ): to 1e-7 by central differences, and to 1e-12 by the complex step."""
    for method in ("central", "complex"):
        check_gradient(f, theta, gradient, method)


def assert_mean(samples, expected, k=4):
    """Asserts that the mean of samples [n, ...] is `expected` within k standard errors."""
    error = np.abs(np.mean(samples, axis=0) - expected)
    standard_error = np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))
    assert np.all(error <= k * standard_error), f"off by {np.max(error / standard_error):.1f} standard errors"
