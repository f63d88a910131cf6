"""Estimates ∇ E_x[f(x)] from samples, as the slides "Derivatives of expectations" derive it.

    ∇_θ E_{x∼P_θ}[f(x)] = E_{x∼P_θ}[∇_θ log P_θ(x) f(x)] ≈ 1/N Σ_i ∇_θ log P_θ(x⁽ⁱ⁾) f(x⁽ⁱ⁾)

Here θ is the vector `params` of the distribution. The slide asks "What is θ here?" For a Gaussian, θ = [μ, log σ].
"""

import numpy as np

from npg.distributions import Gaussian


def score_function_gradient(distribution, params, f, n, rng):
    """1/N Σ_i f(x_i) ∇_params log P(x_i), x_i ~ P: unbiased for every f, even if f has no derivative.

    params [n_params]. f maps the N = `n` samples, [N] (discrete) or [N, d], to one number per sample, [N]. Each number
    depends on its own sample only. Returns the estimate [n_params] and its standard error [n_params]. Raises
    ValueError for a wrong shape or n < 2.
    """
    params, x = _sample(distribution, params, n, rng)
    value = np.asarray(f(x.copy()))  # f may change its argument
    if value.shape != (n,):
        raise ValueError(f"f: expected one number per sample, shape ({n},), got {value.shape}")
    return _mean(value[:, None] * distribution.grad_log_prob(params, x))


def reparameterised_gradient(distribution, params, df, n, rng):
    """1/N Σ_i ∇_params f(μ + σ ε_i), ε_i ~ N(0, I): the same gradient for a `Gaussian`, by the chain rule.

        ∂/∂μ = f'(x),     ∂/∂ log σ = f'(x) (x − μ)

    It is on no slide. The derivative is taken inside the expectation. So the function needs `df`, which maps samples
    [N, d] to ∇f [N, d].
    For a smooth f the variance is usually far lower (Kingma & Welling 2014, §2.4). The other arguments, the result
    and the errors are as in `score_function_gradient`.
    """
    if not isinstance(distribution, Gaussian):
        raise ValueError(f"distribution: expected a Gaussian, got {type(distribution).__name__}")
    params, x = _sample(distribution, params, n, rng)
    dx = np.asarray(df(x.copy()))
    if dx.shape != x.shape:
        raise ValueError(f"df: expected the gradient at each sample, shape {x.shape}, got {dx.shape}")
    return _mean(np.concatenate([dx, dx * (x - distribution.mode(params))], axis=1))


def _sample(distribution, params, n, rng):
    params = np.asarray(params, np.float64)
    if params.shape != (distribution.n_params,):
        raise ValueError(f"params: expected shape ({distribution.n_params},), got {params.shape}")
    if n < 2:
        raise ValueError(f"n: expected at least 2 samples, for the standard error, got {n}")
    params = np.broadcast_to(params, (n, len(params)))
    return params, distribution.sample(params, rng)


def _mean(terms):
    return terms.mean(axis=0), terms.std(axis=0, ddof=1) / np.sqrt(len(terms))
