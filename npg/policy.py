"""The policy π_θ(a|s): the outputs of a network are the parameters of a distribution. The lecture needs one function:

    N ĝ = Σ Ψ ∇_θ log π_θ(a|s)        `grad_log_prob(theta, obs, act, weight)`

Every policy gradient is this sum over all steps of N trajectories, with its own choice of the weight Ψ. Two designs add
a critic V to the policy (slide "Actor-Critic": "two network design" and "shared network design"). Both keep all their
parameters in one vector θ. So the same algorithm trains both designs.
"""

import numpy as np


def _check_theta(theta, size):
    if theta.shape != (size,):
        raise ValueError(f"theta: expected shape ({size},), got {theta.shape}")


class Policy:
    """A policy: `network` maps observations to the parameters of `distribution`.

    The network may have fewer outputs than the distribution has parameters. The missing last parameters are called the
    tail, and they are the same in every state. With `learn_tail`, the tail is the last part of θ, and `tail` is its
    initial value. Without `learn_tail`, it keeps the value `tail`. `tail` is a number or an array [n_tail]. For a
    Gaussian in Rⁿ, whose parameters are [μ, log σ]:

        Policy(MLP((n_obs, 64, 2 * n)), Gaussian(n))                               σ_θ(s), a function of the state
        Policy(MLP((n_obs, 64, n)), Gaussian(n), tail=-0.5)                        σ learned, from e^−0.5
        Policy(MLP((n_obs, 64, n)), Gaussian(n), tail=-0.5, learn_tail=False)      σ = e^−0.5 fixed
    """

    def __init__(self, network, distribution, tail=0.0, learn_tail=True):
        n_tail = distribution.n_params - network.n_out
        if not 0 <= n_tail < distribution.n_params:
            raise ValueError(
                f"network: expected 1 to {distribution.n_params} outputs for a {type(distribution).__name__}, "
                f"got {network.n_out}"
            )
        if np.shape(tail) not in ((), (n_tail,)):
            raise ValueError(f"tail: expected a number or an array [{n_tail}], got shape {np.shape(tail)}")
        self.network, self.distribution = network, distribution
        self.tail = np.broadcast_to(np.asarray(tail, np.float64), (n_tail,))
        self.learn_tail = learn_tail
        self.size = network.size + (n_tail if learn_tail else 0)

    def init(self, rng, dtype=np.float32):
        """A new θ [size]: network parameters whose outputs are near 0, then the tail.

        Discrete actions are then near uniform, and the mean of a Gaussian is near 0.
        """
        theta = np.zeros(self.size, dtype)
        theta[: self.network.size] = self.network.init(rng, output_gain=0.01, dtype=dtype)
        theta[self.network.size :] = self.tail[: self.size - self.network.size]
        return theta

    def params(self, theta, obs):
        """The distribution's parameters [..., n_params] for obs [..., n_obs], and the cache for `backward`."""
        _check_theta(theta, self.size)
        y, cache = self.network.forward(theta[: self.network.size], obs)
        return self.append_tail(theta, y), cache

    def append_tail(self, theta, y):
        """Appends the tail to the network's outputs y [..., n_out]: params [..., n_params]."""
        if self.tail.size == 0:
            return y
        tail = theta[self.network.size :] if self.learn_tail else self.tail.astype(theta.dtype)
        return np.concatenate([y, np.broadcast_to(tail, y.shape[:-1] + tail.shape)], axis=-1)

    def backward(self, theta, cache, dparams):
        """Gradient of Σ dparams · params with respect to θ [size]."""
        dy = dparams[..., : self.network.n_out]
        dnetwork, _ = self.network.backward(theta[: self.network.size], cache, dy, want_dx=False)
        return self.append_tail_gradient(dnetwork, dparams)

    def append_tail_gradient(self, dnetwork, dparams):
        """Appends the gradient of a learned tail to the network's gradient: dparams, summed over the batch."""
        if self.size == self.network.size:
            return dnetwork
        dtail = dparams[..., self.network.n_out :].reshape(-1, self.tail.size).sum(axis=0)
        return np.concatenate([dnetwork, dtail], dtype=dnetwork.dtype, casting="same_kind")

    def act(self, theta, obs, rng=None):
        """a ~ π_θ(·|obs), or the most likely action if `rng` is None. obs is one observation or a batch."""
        params, _ = self.params(theta, obs)
        return self.distribution.mode(params) if rng is None else self.distribution.sample(params, rng)

    def log_prob(self, theta, obs, act):
        """log π_θ(a|s), with the shape [...] of the batch."""
        return self.distribution.log_prob(self.params(theta, obs)[0], act)

    def entropy(self, theta, obs):
        """H(π_θ(·|s)), with the shape [...] of the batch."""
        return self.distribution.entropy(self.params(theta, obs)[0])

    def grad_log_prob(self, theta, obs, act, weight, entropy_coef=0.0):
        """The one function of the lecture: Σ Ψ ∇_θ log π_θ(a|s) + β Σ ∇_θ H(π_θ(·|s)) [size], β = `entropy_coef`.

        obs [..., n_obs]; act [...] or [..., n]. `weight` is Ψ, a number or an array [...]. Or it is a function that
        computes the weights [...] from log π_θ(a|s) [...]; importance weights need this. The weights are held constant:
        they are not differentiated. To get a mean, divide by the number of trajectories (as the lecture does) or of
        steps.
        """
        params, cache = self.params(theta, obs)
        return self.backward(theta, cache, self.grad_params(params, act, weight, entropy_coef))

    def grad_params(self, params, act, weight, entropy_coef=0.0):
        """Ψ ∇_params log π(a) + β ∇_params H [..., n_params]: `grad_log_prob` passes this gradient to `backward`."""
        if callable(weight):
            weight = weight(self.distribution.log_prob(params, act))
        weight = np.asarray(weight, params.dtype)
        if weight.shape not in (params.shape[:-1], ()):
            raise ValueError(f"weight: expected one number per action, shape {params.shape[:-1]}, got {weight.shape}")
        dparams = weight[..., None] * self.distribution.grad_log_prob(params, act)
        if entropy_coef:
            dparams += entropy_coef * self.distribution.grad_entropy(params)
        return dparams


class Critic:
    """V_φ(s): a network with one output, and the gradients that fit V_φ by regression."""

    def __init__(self, network):
        if network.n_out != 1:
            raise ValueError(f"network: expected 1 output, got {network.n_out}")
        self.network, self.size = network, network.size

    def init(self, rng, dtype=np.float32):
        """A new φ [size], for which V_φ(s) is near 0."""
        return self.network.init(rng, output_gain=0.01, dtype=dtype)

    def value(self, phi, obs):
        """V_φ(s), with the shape [...] of the batch."""
        return self.network.forward(phi, obs)[0][..., 0]

    def grad_value(self, phi, obs, weight):
        """Σ u ∇_φ V_φ(s) [size]. `weight` (u) is an array [...], or a function of V_φ(s). It is held constant."""
        value, cache = self.network.forward(phi, obs)
        return self.network.backward(phi, cache, per_state(weight, value[..., 0])[..., None], want_dx=False)[0]

    def loss(self, phi, obs, target):
        """½ Σ (V_φ(s) − target)². The target is held fixed, even if it was computed from V_φ."""
        return 0.5 * np.sum(_error(self.value(phi, obs), target) ** 2)

    def grad_loss(self, phi, obs, target):
        """Σ (V_φ(s) − target) ∇_φ V_φ(s) [size]."""
        return self.grad_value(phi, obs, lambda value: _error(value, target))


def per_state(weight, value):
    """One number per state, with value's shape: `weight`, or `weight(value)` if `weight` is a function."""
    weight = np.asarray(weight(value) if callable(weight) else weight)
    if weight.shape != value.shape:
        raise ValueError(f"weight: expected one number per state, shape {value.shape}, got {weight.shape}")
    return weight


def _error(value, target):
    if np.shape(target) != value.shape:
        raise ValueError(f"target: expected one number per state, shape {value.shape}, got {np.shape(target)}")
    return value - target


class ActorCritic:
    """A policy π and a critic V with one parameter vector θ [size]: the two network design of the lecture.

    θ = [actor's parameters | critic's parameters]; no parameter is shared. `actor_params(theta)` and
    `critic_params(theta)` are views of θ (or of a gradient of θ's shape). The other methods use these views.
    """

    def __init__(self, policy, critic):
        self.policy, self.critic, self.distribution = policy, critic, policy.distribution
        self.size = policy.size + critic.size

    def actor_params(self, theta):
        """The policy's parameters, a view of θ."""
        _check_theta(theta, self.size)
        return theta[: self.policy.size]

    def critic_params(self, theta):
        """The critic's parameters, a view of θ."""
        _check_theta(theta, self.size)
        return theta[self.policy.size :]

    def init(self, rng, dtype=np.float32):
        """A new θ [size]."""
        return np.concatenate([self.policy.init(rng, dtype), self.critic.init(rng, dtype)])

    def act(self, theta, obs, rng=None):
        """As `Policy.act`."""
        return self.policy.act(self.actor_params(theta), obs, rng)

    def log_prob(self, theta, obs, act):
        """As `Policy.log_prob`."""
        return self.policy.log_prob(self.actor_params(theta), obs, act)

    def entropy(self, theta, obs):
        """As `Policy.entropy`."""
        return self.policy.entropy(self.actor_params(theta), obs)

    def value(self, theta, obs):
        """As `Critic.value`."""
        return self.critic.value(self.critic_params(theta), obs)

    def params_and_value(self, theta, obs):
        """The parameters of π(·|s) [..., n_params], and V(s) [...]."""
        return self.policy.params(self.actor_params(theta), obs)[0], self.value(theta, obs)

    def grad_log_prob(self, theta, obs, act, weight, entropy_coef=0.0):
        """As `Policy.grad_log_prob`, with θ's shape. The gradient is zero for parameters that only the critic has."""
        dtheta = np.zeros_like(theta)
        params = self.actor_params(theta)
        self.actor_params(dtheta)[...] = self.policy.grad_log_prob(params, obs, act, weight, entropy_coef)
        return dtheta

    def grad_value(self, theta, obs, weight):
        """As `Critic.grad_value`, with θ's shape. The gradient is zero for parameters that only the actor has."""
        dtheta = np.zeros_like(theta)
        self.critic_params(dtheta)[...] = self.critic.grad_value(self.critic_params(theta), obs, weight)
        return dtheta

    loss, grad_loss = Critic.loss, Critic.grad_loss  # of the critic; they call the `value` and `grad_value` above

    def gradient(self, theta, obs, act, weight, value_weight, entropy_coef=0.0):
        """The gradient of actor and critic together: Σ Ψ ∇log π(a|s) + β Σ ∇H(π(·|s)) + Σ u ∇V(s), with θ's shape.

        `weight` (Ψ) and `entropy_coef` (β) are as in `Policy.grad_log_prob`, `value_weight` (u) as in
        `Critic.grad_value`.
        """
        dactor = self.policy.grad_log_prob(self.actor_params(theta), obs, act, weight, entropy_coef)
        return np.concatenate([dactor, self.critic.grad_value(self.critic_params(theta), obs, value_weight)])


class SharedActorCritic(ActorCritic):
    """The shared network design: one network outputs [parameters of the policy's distribution | V(s)].

    θ = [network | policy's tail]. The views of actor and critic overlap: both contain the network. `gradient` passes
    through the network once for both. `tail` and `learn_tail` are as in `Policy`.
    """

    def __init__(self, network, distribution, tail=0.0, learn_tail=True):
        self.network = network
        self.policy = Policy(_Outputs(network, slice(None, -1)), distribution, tail, learn_tail)
        self.critic = Critic(_Outputs(network, slice(-1, None)))
        self.distribution, self.size = distribution, self.policy.size

    def actor_params(self, theta):
        """All of θ."""
        return theta

    def critic_params(self, theta):
        """The network's part of θ."""
        _check_theta(theta, self.size)
        return theta[: self.network.size]

    def init(self, rng, dtype=np.float32):
        """A new θ [size]."""
        return self.policy.init(rng, dtype)

    def params_and_value(self, theta, obs):
        """As `ActorCritic.params_and_value`, with one forward pass."""
        return self._forward(theta, obs)[:2]

    def _forward(self, theta, obs):
        """The parameters of the policy's distribution, V, and the cache for `network.backward`."""
        y, cache = self.network.forward(self.critic_params(theta), obs)
        return self.policy.append_tail(theta, y[..., :-1]), y[..., -1], cache

    def gradient(self, theta, obs, act, weight, value_weight, entropy_coef=0.0):
        """As `ActorCritic.gradient`, with one forward and one backward pass."""
        params, value, cache = self._forward(theta, obs)
        dparams = self.policy.grad_params(params, act, weight, entropy_coef)
        dvalue = per_state(value_weight, value)
        dy = np.concatenate([dparams[..., : self.network.n_out - 1], dvalue[..., None]], axis=-1)
        dnetwork, _ = self.network.backward(self.critic_params(theta), cache, dy, want_dx=False)
        return self.policy.append_tail_gradient(dnetwork, dparams)


class _Outputs:
    """Some outputs of a network, with the methods of a network. The parameters are those of the whole network."""

    def __init__(self, network, part):
        self.network, self.part, self.size = network, part, network.size
        self.n_out = len(range(network.n_out)[part])
        self.init = network.init

    def forward(self, theta, x):
        y, cache = self.network.forward(theta, x)
        return y[..., self.part], cache

    def backward(self, theta, cache, dy, want_dx=True):
        dy_all = np.zeros((*dy.shape[:-1], self.network.n_out), dy.dtype)
        dy_all[..., self.part] = dy
        return self.network.backward(theta, cache, dy_all, want_dx)
