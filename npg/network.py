"""Function approximators. All parameters of a network are one vector θ.

A network object does not contain θ: `forward(theta, x)` and `backward(theta, cache, dy)` take θ as an argument. The
matrices W and the biases b are views of θ. A network computes in θ's dtype: float32 to train, float64 to check,
complex128 for the complex step.
"""

import numpy as np


def _sigmoid(z):
    # 1 / (1 + e^{−z}) = ½ (1 + tanh(z / 2))
    z *= 0.5
    np.tanh(z, out=z)
    z += 1
    z *= 0.5
    return z


def _tanh_backward(dh, h):
    dh -= dh * h * h


def _relu_backward(dh, h):
    dh *= h.real > 0


def _sigmoid_backward(dh, h):
    dh *= h
    dh *= 1 - h


# name: (activation, its backward pass, gain)
#     activation      h = a(z), written into z's own memory
#     backward pass   dz = dh a'(z), computed from h, written into dh's own memory
#     gain            the factor of W that keeps the spread of h from shrinking from layer to layer
# For large batches, new memory would cost more time than the arithmetic.
# NumPy compares complex numbers by their real parts first, so the complex step works with the ReLU.
# The gains: He et al. 2015 for the ReLU, the usual 5/3 for tanh, 1 / a'(0) for the sigmoid (whose
# outputs are around ½, not 0, so in deep networks the spread still shrinks).
ACTIVATIONS = {
    "tanh": (lambda z: np.tanh(z, out=z), _tanh_backward, 5 / 3),
    "relu": (lambda z: np.maximum(z, 0, out=z), _relu_backward, np.sqrt(2)),
    "sigmoid": (_sigmoid, _sigmoid_backward, 4.0),
    "identity": (lambda z: z, lambda dh, h: None, 1.0),
}


def orthogonal(rng, n_in, n_out, gain):
    """A random n_in × n_out matrix with orthonormal rows or columns, times `gain` (Saxe et al. 2013, §3).

    With gain 1, the matrix keeps the length of a signal where its shape allows that, forwards and backwards. So signals
    neither grow nor shrink with the depth of the network.
    """
    a = rng.standard_normal((max(n_in, n_out), min(n_in, n_out)))
    q, r = np.linalg.qr(a)
    q *= np.sign(np.diag(r))  # makes the draw uniform over orthogonal matrices (Mezzadri 2007)
    return gain * (q if n_in >= n_out else q.T)


class MLP:
    """y = W_Lᵀ a(… a(W_1ᵀ x + b_1) …) + b_L, a fully connected network of any depth.

    sizes       numbers of units from input to output, e.g. (4, 64, 64, 2)
    activation  of the hidden layers: "tanh", "relu", "sigmoid" or "identity"

    `size` is the number of parameters. θ is [W_1, b_1, W_2, b_2, …]. It holds each W [n_in, n_out] row by row.
    """

    def __init__(self, sizes, activation="tanh"):
        if len(sizes) < 2 or any(n < 1 or n != int(n) for n in sizes):
            raise ValueError(f"sizes: expected at least two whole numbers from 1 on, got {tuple(sizes)}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {sorted(ACTIVATIONS)}, got {activation!r}")
        self.sizes = tuple(int(n) for n in sizes)
        self.activation = activation
        self.n_in, self.n_out = self.sizes[0], self.sizes[-1]
        self._slices, start = [], 0
        for n_in, n_out in zip(self.sizes[:-1], self.sizes[1:]):
            end_w, end_b = start + n_in * n_out, start + n_in * n_out + n_out
            self._slices.append((slice(start, end_w), (n_in, n_out), slice(end_w, end_b)))
            start = end_b
        self.size = start

    def layers(self, theta):
        """Returns [(W_1, b_1), …, (W_L, b_L)]. They are views of θ, so writing into them changes θ."""
        if theta.shape != (self.size,):
            raise ValueError(f"theta: expected shape ({self.size},) for layers {self.sizes}, got {theta.shape}")
        return [(theta[w].reshape(shape), theta[b]) for w, shape, b in self._slices]

    def init(self, rng, output_gain=1.0, dtype=np.float32):
        """A new θ: orthogonal matrices times the activation's gain (the last one times `output_gain`), biases 0.

        With a small `output_gain` (0.01), the outputs start near 0.
        """
        theta = np.zeros(self.size, dtype)
        *hidden, last = self.layers(theta)
        for W, _ in hidden:
            W[...] = orthogonal(rng, *W.shape, ACTIVATIONS[self.activation][2])
        last[0][...] = orthogonal(rng, *last[0].shape, output_gain)
        return theta

    def forward(self, theta, x):
        """Returns y [..., n_out] for x [..., n_in] (with any leading axes, or none), and the cache for `backward`.

            h_0 = x,   z_l = h_{l−1} W_l + b_l,   h_l = a(z_l),   y = z_L

        The cache is [h_0, …, h_{L−1}], each [B, n_l], and x's shape.
        """
        x = np.asarray(x)
        if not np.iscomplexobj(x):  # a complex x stays complex, so that the complex step can check dx
            x = x.astype(np.result_type(theta, np.float16), copy=False)  # θ's dtype, also where θ holds integers
        if x.ndim == 0 or x.shape[-1] != self.n_in:
            raise ValueError(f"x: expected shape [..., {self.n_in}], got {x.shape}")
        activate = ACTIVATIONS[self.activation][0]
        *hidden, (W, b) = self.layers(theta)
        h = x.reshape(-1, self.n_in)
        cache = [h]
        for W_l, b_l in hidden:
            z = h.dot(W_l)  # @ gives the same product, but it is slower for small matrices and single rows
            z += b_l
            h = activate(z)
            cache.append(h)
        y = h.dot(W)
        y += b
        return y.reshape(*x.shape[:-1], self.n_out), (cache, x.shape)

    def backward(self, theta, cache, dy, want_dx=True):
        """Gradient of Σ dy·y with respect to θ and x, by the chain rule from the last layer to the first.

            dz_L = dy,   dW_l = h_{l−1}ᵀ dz_l,   db_l = Σ_batch dz_l,   dh_{l−1} = dz_l W_lᵀ,   dz_l = dh_l a'(z_l)

        dy has y's shape. Returns (dtheta [size], dx with x's shape). The gradient is the sum over the batch, not the
        mean. With `want_dx=False`, dx is None and is not computed; a policy gradient never needs dx.
        """
        hs, x_shape = cache
        if np.shape(dy) != (*x_shape[:-1], self.n_out):
            raise ValueError(f"dy: expected shape {(*x_shape[:-1], self.n_out)}, got {np.shape(dy)}")
        activation_backward = ACTIVATIONS[self.activation][1]
        dz = np.asarray(dy, np.result_type(theta, hs[0])).reshape(-1, self.n_out)
        dtheta, ones = np.empty(self.size, dz.dtype), np.ones(len(dz), dz.dtype)
        layers, gradients = self.layers(theta), self.layers(dtheta)
        for l in reversed(range(len(layers))):
            (W, _), (dW, db) = layers[l], gradients[l]
            hs[l].T.dot(dz, out=dW)
            ones.dot(dz, out=db)  # the sum over the batch, faster than sum(axis=0)
            if l > 0:
                dz = dz.dot(W.T)
                activation_backward(dz, hs[l])
        return dtheta, dz.dot(W.T).reshape(x_shape) if want_dx else None


class LinearPreferences:
    """h(s, a, θ) = θᵀ x(s, a): linear action preferences (Sutton & Barto 2018, eq. 13.3).

    features  maps observations [..., n_obs] to x [..., n_actions, n_features], the features of every action

    The class has the interface of `MLP`. So `Policy(LinearPreferences(...), Categorical(n_actions))` is the softmax
    policy with the book's score x(s, a) − Σ_b π(b|s) x(s, b) (eq. 13.9).
    """

    def __init__(self, features, n_actions, n_features):
        self.features, self.n_out, self.size = features, n_actions, n_features

    def init(self, rng, output_gain=1.0, dtype=np.float32):
        """θ = 0: all actions have equal preference. A linear function has no symmetry to break; `rng` is not used."""
        return np.zeros(self.size, dtype)

    def forward(self, theta, x):
        """Preferences [..., n_actions], and the features [..., n_actions, n_features] as the cache for `backward`."""
        features = np.asarray(self.features(x), np.result_type(theta, np.float16))
        if features.shape[-2:] != (self.n_out, self.size):
            raise ValueError(f"features(x): expected shape [..., {self.n_out}, {self.size}], got {features.shape}")
        if theta.shape != (self.size,):
            raise ValueError(f"theta: expected shape ({self.size},), got {theta.shape}")
        return features @ theta, features

    def backward(self, theta, cache, dy, want_dx=False):
        """Gradient of Σ dy·h with respect to θ: Σ dy_a x(s, a). The features have no gradient here: dx is None."""
        if np.shape(dy) != cache.shape[:-1]:
            raise ValueError(f"dy: expected shape {cache.shape[:-1]}, got {np.shape(dy)}")
        return np.asarray(dy, cache.dtype).reshape(-1) @ cache.reshape(-1, self.size), None
