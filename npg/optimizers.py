"""Optimizers: a step along a gradient. Every `step(theta, dtheta)` ascends, as in the lecture: θ ← θ + …, in place.

θ is one vector, so no optimizer loops over layers. A learning rate is a number or an array of θ's shape. An optimizer
keeps its state in arrays, which are its attributes. A checkpoint needs only `state(optimizer)`.
"""

import numpy as np

BLOCK = 32768  # numbers in a block; a few arrays of this length fit into a core's own cache


class SGD:
    """θ ← θ + α g (slide "Policy Gradient": θ_new = θ_old + Δθ)."""

    def __init__(self, theta, learning_rate):
        self.learning_rate = learning_rate

    def step(self, theta, dtheta):
        """One step up the gradient dtheta; changes theta in place."""
        _check_shapes(theta, dtheta)
        theta += self.learning_rate * dtheta


class RMSProp:
    """v ← ρ v + (1 − ρ) g²,  θ ← θ + α g / √(v + ε) (Tieleman & Hinton 2012; ε inside the root as in A3C)."""

    def __init__(self, theta, learning_rate, rho=0.99, epsilon=1e-5):
        self.learning_rate, self.rho, self.epsilon = learning_rate, rho, epsilon
        self.v = np.zeros_like(theta)

    def step(self, theta, dtheta):
        """One step up the gradient dtheta; changes theta in place."""
        _check_shapes(theta, dtheta)
        for part, g, v, rate in _blocks(theta, dtheta, self.v, self.learning_rate):
            v *= self.rho
            v += (1 - self.rho) * g**2
            part += rate * g / np.sqrt(v + self.epsilon)


class Adam:
    """m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  θ ← θ + α m̂ / (√v̂ + ε) (Kingma & Ba 2015, Algorithm 1).

    m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) correct the bias of m and v, which start at zero.
    """

    def __init__(self, theta, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
        self.learning_rate, self.beta1, self.beta2, self.epsilon = learning_rate, beta1, beta2, epsilon
        self.m, self.v, self.t = np.zeros_like(theta), np.zeros_like(theta), np.zeros((), np.int64)

    def step(self, theta, dtheta):
        """One step up the gradient dtheta; changes theta in place."""
        _check_shapes(theta, dtheta)
        self.t += 1
        t = int(self.t)
        m_scale, v_scale = 1 / (1 - self.beta1**t), (1 - self.beta2**t) ** -0.5
        for part, g, m, v, rate in _blocks(theta, dtheta, self.m, self.v, self.learning_rate):
            m *= self.beta1
            m += (1 - self.beta1) * g
            v *= self.beta2
            v += (1 - self.beta2) * g**2
            part += (rate * m_scale) * m / (v_scale * np.sqrt(v) + self.epsilon)


OPTIMIZERS = {"adam": Adam, "rmsprop": RMSProp, "sgd": SGD}  # by name on the command line


def _check_shapes(theta, dtheta):
    if not isinstance(theta, np.ndarray) or np.shape(dtheta) != theta.shape:
        raise ValueError(f"dtheta: expected an array of theta's shape {np.shape(theta)}, got {np.shape(dtheta)}")


def _blocks(theta, *others):
    """Yields views of one block of θ and of the same block of the others, block by block. Single numbers are yielded
    unchanged."""
    for start in range(0, len(theta), BLOCK):
        yield (x[start : start + BLOCK] if np.ndim(x) else x for x in (theta, *others))


def state(optimizer):
    """{name: array}: the optimizer's whole state. Write into these arrays to restore a state."""
    arrays = {name: value for name, value in vars(optimizer).items() if isinstance(value, np.ndarray)}
    return {name: array for name, array in arrays.items() if name != "learning_rate"}


def clip_norm(dtheta, limit):
    """Scales dtheta in place so that ‖dtheta‖₂ ≤ limit (Pascanu et al. 2013); returns the norm before the scaling.

    The norm is taken over the whole vector, so the direction does not change. A limit of None means no limit.
    """
    if limit is not None and not limit > 0:
        raise ValueError(f"limit: expected a positive number or None, got {limit}")
    with np.errstate(over="ignore"):
        norm = float(np.sqrt(np.dot(dtheta, dtheta)))
    if np.isinf(norm):  # in float32, the squares may be too large where dtheta itself is not
        norm = float(np.linalg.norm(dtheta.astype(np.float64)))
    if limit is not None and norm > limit:
        dtheta *= limit / norm
    return norm
