"""Distributions of actions: each log-probability, and next to it its hand-written gradient.

Every distribution is a set of functions of `params` and `act`. `params` [..., n_params] are the outputs of a network
for a batch of states. `act` are the actions, [...] (discrete) or [..., n] (continuous):

    sample(params, rng)          a ~ π(·|params)
    mode(params)                 the most likely action (of a mixture: the mean of its most probable component)
    log_prob(params, act)        log π(a)                 [...]
    grad_log_prob(params, act)   ∇_params log π(a)        [..., n_params]
    entropy(params)              H = −E[log π(a)]         [...] (of a mixture: a lower bound)
    grad_entropy(params)         ∇_params H               [..., n_params]
    kl(params, other)            KL(π_params ‖ π_other)   [...], where it has a closed form

Slides "∇_θ log π_θ(a) for softmax policy" and "… for Gaussian policy". The network's `backward` computes ∇_θ from
∇_params. The parameter of a scale is its logarithm, and the parameters of probabilities are logits. So every real
vector is a valid `params`, up to overflow (in float32 at log σ of about ±40). Logits of ±1e4 do not overflow. All
functions except `sample` accept complex numbers, so that the complex step can check them.
"""

import numpy as np

LOG_2PI = float(np.log(2 * np.pi))  # a Python float: float32 arrays stay float32
TINY = np.finfo(np.float32).tiny


def logsumexp(x):
    """log Σ_j e^{x_j} over the last axis. The largest x is subtracted first, so that no e^x overflows."""
    shift = x.real.max(axis=-1, keepdims=True)
    return np.log(np.exp(x - shift).sum(axis=-1)) + shift[..., 0]


def log_softmax(h):
    """log π_a = h_a − log Σ_b e^{h_b} over the last axis."""
    return h - logsumexp(h)[..., None]


def softplus(z):
    """log(1 + e^z) without overflow: max(z, 0) + log(1 + e^{−|z|})."""
    positive = z.real > 0
    return np.where(positive, z, 0) + np.log1p(np.exp(np.where(positive, -z, z)))


def sigmoid(z):
    """1 / (1 + e^{−z}) = e^{−softplus(−z)}."""
    return np.exp(-softplus(-z))


def draw_index(probs, rng):
    """Draws the index j with probability probs[..., j]: the number of cumulated probabilities ≤ a uniform number."""
    cumulated = probs.cumsum(axis=-1)
    u = rng.random(probs.shape[:-1] + (1,), probs.dtype) * cumulated[..., -1:]
    return (cumulated <= u).sum(axis=-1)


def _check(name, array, last):
    if np.ndim(array) == 0 or np.shape(array)[-1] != last:
        raise ValueError(f"{name}: expected shape [..., {last}], got {np.shape(array)}")


def _check_act(act, params, n):
    """Each row of params needs its own action. (One row of params may serve several actions.)"""
    _check("act", act, n)
    rows, actions = np.shape(params)[:-1], np.shape(act)[:-1]
    if len(rows) > len(actions) or any(k not in (1, m) for k, m in zip(rows[::-1], actions[::-1])):
        raise ValueError(f"act: expected shape {(*rows, n)}, as params, got {np.shape(act)}")


def _one_of(n, params, act):
    act = np.asarray(act)
    if act.shape != params.shape[:-1]:
        raise ValueError(f"act: expected a whole number per row of params, shape {params.shape[:-1]}, got {act.shape}")
    if act.size and not (act.min() >= 0 and act.max() < n and np.all(act == act.astype(np.int64))):
        raise ValueError(f"act: expected whole numbers from 0 to {n - 1}, got {act.min()} to {act.max()}")
    return act.astype(np.int64, copy=False)


class Categorical:
    """The softmax policy over n actions: π(a) = e^{h_a} / Σ_b e^{h_b}, params = the preferences h (logits)."""

    def __init__(self, n):
        self.n = self.n_params = n

    def sample(self, params, rng):
        """a = argmax_a (h_a − log E_a), E_a ~ Exp(1), integers [...]: a ~ π by the Gumbel-max trick."""
        _check("params", params, self.n)
        exponential = rng.standard_exponential(params.shape, params.dtype) + TINY  # one draw in millions is 0
        return (params - np.log(exponential)).argmax(axis=-1)

    def mode(self, params):
        """argmax_a h_a."""
        return params.argmax(axis=-1)

    def log_prob(self, params, act):
        """log π(a) = h_a − log Σ_b e^{h_b}."""
        _check("params", params, self.n)
        taken = _one_of(self.n, params, act)[..., None]
        return np.take_along_axis(params, taken, axis=-1)[..., 0] - logsumexp(params)

    def grad_log_prob(self, params, act):
        """∂ log π(a) / ∂h_b = 1[a = b] − π(b): the slide's ∇h(s,a) − Σ_b π(b) ∇h(s,b)."""
        _check("params", params, self.n)
        one_hot = _one_of(self.n, params, act)[..., None] == np.arange(self.n)
        return one_hot - np.exp(log_softmax(params))

    def entropy(self, params):
        """H = −Σ_b π(b) log π(b)."""
        logp = log_softmax(params)
        return -(np.exp(logp) * logp).sum(axis=-1)

    def grad_entropy(self, params):
        """∂H / ∂h_b = −π(b) (log π(b) + H)."""
        logp = log_softmax(params)
        p = np.exp(logp)
        return -p * (logp - (p * logp).sum(axis=-1, keepdims=True))

    def kl(self, params, other):
        """Σ_b π(b) (log π(b) − log π'(b))."""
        logp = log_softmax(params)
        return (np.exp(logp) * (logp - log_softmax(other))).sum(axis=-1)


class Bernoulli:
    """Two actions from one logit z, as UP and DOWN in Pong: π(1) = sigmoid(z), params = z [..., 1]."""

    n, n_params = 2, 1

    def sample(self, params, rng):
        """a ~ π, integers 0 or 1 [...]."""
        _check("params", params, 1)
        return (rng.random(params.shape[:-1], params.dtype) < sigmoid(params[..., 0])).astype(np.int64)

    def mode(self, params):
        """1 where z > 0."""
        return (params[..., 0] > 0).astype(np.int64)

    def log_prob(self, params, act):
        """log π(1) = −softplus(−z),  log π(0) = −softplus(z)."""
        _check("params", params, 1)
        return -softplus((1 - 2 * _one_of(self.n, params, act).astype(params.dtype)) * params[..., 0])

    def grad_log_prob(self, params, act):
        """∂ log π(a) / ∂z = a − sigmoid(z)."""
        _check("params", params, 1)
        return _one_of(self.n, params, act).astype(params.dtype)[..., None] - sigmoid(params)

    def entropy(self, params):
        """H = softplus(z) − z sigmoid(z)."""
        z = params[..., 0]
        return softplus(z) - z * sigmoid(z)

    def grad_entropy(self, params):
        """∂H / ∂z = −z sigmoid(z) sigmoid(−z)."""
        return -params * sigmoid(params) * sigmoid(-params)

    def kl(self, params, other):
        """sigmoid(z) (z − z') − softplus(z) + softplus(z')."""
        z, z_other = params[..., 0], other[..., 0]
        return sigmoid(z) * (z - z_other) - softplus(z) + softplus(z_other)


class Gaussian:
    """N(μ, diag σ²) over actions in Rⁿ, params = [μ (n), log σ (n)].

    The policy decides whether σ is fixed, learned, or a function of the state, σ_θ(s) (see `npg.policy.Policy`).
    """

    def __init__(self, n):
        self.n, self.n_params = n, 2 * n

    def _split(self, params):
        _check("params", params, self.n_params)
        return params[..., : self.n], params[..., self.n :]

    def sample(self, params, rng):
        """a = μ + σ ε,  ε ~ N(0, I)."""
        mean, log_std = self._split(params)
        return mean + np.exp(log_std) * rng.standard_normal(mean.shape, params.dtype)

    def mode(self, params):
        """μ."""
        return self._split(params)[0]

    def log_prob(self, params, act):
        """log π(a) = −Σ_k [ (a_k − μ_k)² / 2σ_k² + log σ_k + ½ log 2π ]."""
        mean, log_std = self._split(params)
        _check_act(act, params, self.n)
        z = (act - mean) * np.exp(-log_std)
        return -(0.5 * z * z + log_std + 0.5 * LOG_2PI).sum(axis=-1)

    def grad_log_prob(self, params, act):
        """∂/∂μ = (a − μ) / σ²  (so the slide's "const." is 1);  ∂/∂ log σ = (a − μ)² / σ² − 1."""
        mean, log_std = self._split(params)
        _check_act(act, params, self.n)
        inv_std = np.exp(-log_std)
        z = (act - mean) * inv_std
        return np.concatenate([z * inv_std, z * z - 1], axis=-1)

    def entropy(self, params):
        """H = Σ_k [ log σ_k + ½ log 2πe ]."""
        return (self._split(params)[1] + 0.5 * (LOG_2PI + 1)).sum(axis=-1)

    def grad_entropy(self, params):
        """∂H/∂μ = 0,  ∂H/∂ log σ = 1."""
        dparams = np.ones_like(params)
        dparams[..., : self.n] = 0
        return dparams

    def kl(self, params, other):
        """Σ_k [ log σ'_k − log σ_k + (σ_k² + (μ_k − μ'_k)²) / 2σ'_k² − ½ ]."""
        (mean, log_std), (mean_other, log_std_other) = self._split(params), self._split(other)
        inv_var_other = np.exp(-2 * log_std_other)
        second_moment = np.exp(2 * log_std) + (mean - mean_other) ** 2
        return (log_std_other - log_std + 0.5 * second_moment * inv_var_other - 0.5).sum(axis=-1)


class MultivariateGaussian:
    """N(μ, Σ) over actions in Rⁿ with Σ = L Lᵀ, params = [μ (n), ℓ (n(n+1)/2)].

    ℓ holds the lower triangle of the Cholesky factor L, row by row. The diagonal is stored as logarithms:
    L_kk = e^{ℓ_kk}.
    """

    def __init__(self, n):
        self.n, self.n_params = n, n + n * (n + 1) // 2
        self._rows, self._columns = np.tril_indices(n)
        self._on_diagonal = self._rows == self._columns

    def _split(self, params):
        _check("params", params, self.n_params)
        mean, tril = params[..., : self.n], params[..., self.n :]
        L = np.zeros(params.shape[:-1] + (self.n, self.n), np.result_type(params, np.float16))
        L[..., self._rows, self._columns] = tril
        log_diagonal = tril[..., self._on_diagonal]
        k = np.arange(self.n)
        L[..., k, k] = np.exp(log_diagonal)
        return mean, L, log_diagonal

    def _whiten(self, L, d):
        """e = L⁻¹ d."""
        return np.linalg.solve(L, d[..., None])[..., 0]

    def sample(self, params, rng):
        """a = μ + L ε,  ε ~ N(0, I)."""
        mean, L, _ = self._split(params)
        return mean + (L @ rng.standard_normal(mean.shape, params.dtype)[..., None])[..., 0]

    def mode(self, params):
        """μ."""
        return self._split(params)[0]

    def log_prob(self, params, act):
        """log π(a) = −½ (a−μ)ᵀ Σ⁻¹ (a−μ) − ½ log det Σ − n/2 log 2π,  log det Σ = 2 Σ_k log L_kk."""
        mean, L, log_diagonal = self._split(params)
        _check_act(act, params, self.n)
        e = self._whiten(L, act - mean)
        return -0.5 * (e * e).sum(axis=-1) - log_diagonal.sum(axis=-1) - 0.5 * self.n * LOG_2PI

    def grad_log_prob(self, params, act):
        """With e = L⁻¹(a − μ):  ∂/∂μ = L⁻ᵀ e = Σ⁻¹(a − μ);  ∂/∂L = L⁻ᵀ e eᵀ − diag(1/L_kk), lower triangle.

        On the diagonal the parameter is log L_kk, so ∂/∂ℓ_kk = L_kk ∂/∂L_kk.
        """
        mean, L, _ = self._split(params)
        _check_act(act, params, self.n)
        e = self._whiten(L, act - mean)
        dmean = np.linalg.solve(np.swapaxes(L, -1, -2), e[..., None])[..., 0]
        dL = (dmean[..., :, None] * e[..., None, :])[..., self._rows, self._columns]
        lower = L[..., self._rows, self._columns]
        return np.concatenate([dmean, np.where(self._on_diagonal, dL * lower - 1, dL)], axis=-1)

    def entropy(self, params):
        """H = n/2 log 2πe + Σ_k log L_kk."""
        _check("params", params, self.n_params)
        return params[..., self.n :][..., self._on_diagonal].sum(axis=-1) + 0.5 * self.n * (LOG_2PI + 1)

    def grad_entropy(self, params):
        """∂H/∂ log L_kk = 1; the derivative with respect to every other parameter is 0."""
        _check("params", params, self.n_params)
        return np.broadcast_to(np.append(np.zeros(self.n, bool), self._on_diagonal), params.shape).astype(params.dtype)

    def kl(self, params, other):
        """½ [ tr(Σ'⁻¹ Σ) + (μ'−μ)ᵀ Σ'⁻¹ (μ'−μ) − n ] + Σ_k log L'_kk − Σ_k log L_kk."""
        (mean, L, log_diagonal), (mean_other, L_other, log_diagonal_other) = self._split(params), self._split(other)
        whitened = np.linalg.solve(L_other, L)
        e = self._whiten(L_other, mean_other - mean)
        squares = (whitened**2).sum(axis=(-1, -2)) + (e * e).sum(axis=-1)
        return 0.5 * (squares - self.n) + (log_diagonal_other - log_diagonal).sum(axis=-1)


class GaussianMixture:
    """Σ_j w_j N(μ_j, diag σ_j²) over actions in Rⁿ with m components: the lecture's multimodal continuous policy.

    params = [logits of w (m), μ (m·n), log σ (m·n)]; μ and log σ are stored row by row, one row per component.

    spread   the means are μ_j + s_j. The constants s_j are evenly spaced from −spread to spread. Components that start
             equal get equal gradients and stay equal. With a spread they start different.

    The entropy H of a mixture has no closed form. So `entropy` is a lower bound of H:
    H ≥ −Σ_i w_i log Σ_j w_j N(μ_i; μ_j, σ_i² + σ_j²) (Huber et al. 2008, theorem 2). An entropy bonus raises this
    bound. For one component the bound is ½ log 4π + log σ per dimension, while H is ½ log 2πe + log σ.
    """

    def __init__(self, n, m, spread=0.0):
        self.n, self.m, self.n_params = n, m, m + 2 * m * n
        self.offset = (np.linspace(-spread, spread, m) if m > 1 else np.zeros(1))[:, None]

    def _split(self, params):
        _check("params", params, self.n_params)
        m, shape = self.m, params.shape[:-1] + (self.m, self.n)
        mean, log_std = params[..., m : m + m * self.n], params[..., m + m * self.n :]
        mean = mean.reshape(shape) + self.offset.astype(np.result_type(params.real, np.float16))
        return log_softmax(params[..., :m]), mean, log_std.reshape(shape)

    def _join(self, dlogits, dmean, dlog_std):
        flat = dlogits.shape[:-1] + (self.m * self.n,)
        return np.concatenate([dlogits, dmean.reshape(flat), dlog_std.reshape(flat)], axis=-1)

    def _component_log_prob(self, params, act):
        """(log w_j + log N(a; μ_j, σ_j²), z = (a − μ_j)/σ_j, 1/σ_j, log w_j) of the m components.

        The first and the last one have the shape [..., m]. The two others have the shape [..., m, n].
        """
        log_w, mean, log_std = self._split(params)
        _check_act(act, params, self.n)
        inv_std = np.exp(-log_std)
        z = (act[..., None, :] - mean) * inv_std
        return log_w - (0.5 * z * z + log_std + 0.5 * LOG_2PI).sum(axis=-1), z, inv_std, log_w

    def _pick(self, values, component):
        """Row number `component` [...] of values [..., m, n]: [..., n]."""
        return np.take_along_axis(values, component[..., None, None], axis=-2)[..., 0, :]

    def sample(self, params, rng):
        """Draws first the component j ~ w, then a ~ N(μ_j, σ_j²)."""
        log_w, mean, log_std = self._split(params)
        component = draw_index(np.exp(log_w), rng)
        mean, std = self._pick(mean, component), np.exp(self._pick(log_std, component))
        return mean + std * rng.standard_normal(mean.shape, params.dtype)

    def mode(self, params):
        """The mean of the most probable component, argmax_j w_j. The mixture's true mode has no closed form."""
        log_w, mean, _ = self._split(params)
        return self._pick(mean, log_w.argmax(axis=-1))

    def log_prob(self, params, act):
        """log Σ_j w_j N(a; μ_j, σ_j²)."""
        return logsumexp(self._component_log_prob(params, act)[0])

    def grad_log_prob(self, params, act):
        """With r_j = P(component j | a):  ∂/∂logit_j = r_j − w_j;  ∂/∂μ_j = r_j (a−μ_j)/σ_j²;
        ∂/∂ log σ_j = r_j ((a−μ_j)²/σ_j² − 1)."""
        joint, z, inv_std, log_w = self._component_log_prob(params, act)
        r = np.exp(log_softmax(joint))
        return self._join(r - np.exp(log_w), r[..., None] * z * inv_std, r[..., None] * (z * z - 1))

    def _overlaps(self, params):
        """(log w_i, log(w_j N(μ_i; μ_j, v_ij)), μ_i − μ_j, v_ij, σ_i²), where v_ij = σ_i² + σ_j².

        A quantity with the indices i and j has a value for each pair of components.
        """
        log_w, mean, log_std = self._split(params)
        var = np.exp(2 * log_std)
        v = var[..., :, None, :] + var[..., None, :, :]
        difference = mean[..., :, None, :] - mean[..., None, :, :]
        log_overlap = log_w[..., None, :] - 0.5 * (difference**2 / v + np.log(v) + LOG_2PI).sum(axis=-1)
        return log_w, log_overlap, difference, v, var

    def entropy(self, params):
        """B = −Σ_i w_i log S_i,  S_i = Σ_j w_j N(μ_i; μ_j, σ_i² + σ_j²); B ≤ H by Jensen's inequality."""
        log_w, log_overlap, *_ = self._overlaps(params)
        return -(np.exp(log_w) * logsumexp(log_overlap)).sum(axis=-1)

    def grad_entropy(self, params):
        """The gradient of the bound B. Let A_ij = w_i · w_j N_ij / S_i, C = A + Aᵀ, d = μ_k − μ_j, v = σ_k² + σ_j².

            ∂B/∂w_k = −log S_k − Σ_i A_ik / w_k
            ∂B/∂logit_k = w_k (∂B/∂w_k − Σ_j w_j ∂B/∂w_j)      (the softmax's chain rule)
            ∂B/∂μ_k = Σ_j C_kj d / v,   ∂B/∂ log σ_k = σ_k² Σ_j C_kj (1/v − d²/v²)
        """
        log_w, log_overlap, difference, v, var = self._overlaps(params)
        w = np.exp(log_w)
        A = w[..., :, None] * np.exp(log_softmax(log_overlap))
        C = (A + np.swapaxes(A, -1, -2))[..., None]
        w_dw = -w * logsumexp(log_overlap) - A.sum(axis=-2)
        dlogits = w_dw - w * w_dw.sum(axis=-1, keepdims=True)
        dmean = (C * difference / v).sum(axis=-2)
        dlog_std = var * (C * (1 - difference**2 / v) / v).sum(axis=-2)
        return self._join(dlogits, dmean, dlog_std)


class Deterministic:
    """a = π_θ(s), the lecture's first kind of policy: params are the action in Rⁿ.

    A deterministic policy has no density, so it has no score. Among the lecture's methods, only the gradient-free ones
    can train it. (A method that uses ∇_a Q can train it, too: Silver et al. 2014.)
    """

    def __init__(self, n):
        self.n = self.n_params = n

    def sample(self, params, rng=None):
        """params, which are the action. Nothing is random."""
        _check("params", params, self.n)
        return params

    def mode(self, params):
        """params, which are the action."""
        return self.sample(params)

    def _no_density(self, params, act=None):
        raise TypeError(
            "Deterministic: a deterministic policy has no log-probability, score or entropy; "
            "train it by a gradient-free method, or use Gaussian"
        )

    log_prob = grad_log_prob = entropy = grad_entropy = kl = _no_density
