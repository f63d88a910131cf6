"""Every hand-written gradient equals PyTorch's automatic gradient, in float64, relative to its largest entry.

The functions differentiated are PyTorch's own: `torch.nn.functional.linear`, `torch.distributions`, `torch.clamp`.
They share only the layout of θ with the package.
"""

# ruff: noqa: E402  the imports that need the bench extra come after its check

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import test_actor_critic
import test_policy
import test_replay
from test_actor_critic import ALPHA, GAMMA, T
from test_distributions import CONTINUOUS, DISCRETE, LARGER, over
from test_network import BATCHES, SIZES
from test_reinforce import random_theta
from torch import distributions as D
from torch.nn import functional as F

from npg.actor_critic import a2c
from npg.distributions import (
    Bernoulli,
    Categorical,
    Gaussian,
    GaussianMixture,
    MultivariateGaussian,
)
from npg.exploration import Exploring, Tempered
from npg.network import ACTIVATIONS, MLP, LinearPreferences
from npg.optimizers import SGD
from npg.policy import Critic, SharedActorCritic
from npg.replay import IMPORTANCE, Experience, ExperienceBuffer, ppo

torch.set_num_threads(1)
TORCH_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda z: z}


def assert_same(actual, expected):
    expected = expected.detach().numpy() if torch.is_tensor(expected) else expected
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= 1e-12 * np.max(np.abs(expected))


def autograd(f, *arrays):
    """∇ of the number f(*arrays) with respect to each array."""
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    return [g.numpy() for g in torch.autograd.grad(f(*tensors), tensors, materialize_grads=True)]


# PyTorch's version of networks, distributions and policies, from the same θ


def forward(network, theta, x):
    if isinstance(network, LinearPreferences):
        return torch.tensor(network.features(x.numpy())) @ theta
    *hidden, (W, b) = network.layers(theta)
    for W_l, b_l in hidden:
        x = TORCH_ACTIVATIONS[network.activation](F.linear(x, W_l.T, b_l))
    return F.linear(x, W.T, b)


def distribution_of(distribution, params):
    n = getattr(distribution, "n", 1)
    if isinstance(distribution, Categorical):
        return D.Categorical(logits=params)
    if isinstance(distribution, Bernoulli):
        return D.Bernoulli(logits=params[..., 0])
    if isinstance(distribution, Gaussian):
        return D.Independent(D.Normal(params[..., :n], params[..., n:].exp()), 1)
    if isinstance(distribution, MultivariateGaussian):
        L = torch.zeros(params.shape[:-1] + (n, n), dtype=params.dtype)
        L[(..., *torch.tril_indices(n, n))] = params[..., n:]
        diagonal = torch.diagonal(L, dim1=-2, dim2=-1)
        return D.MultivariateNormal(params[..., :n], scale_tril=L - torch.diag_embed(diagonal - diagonal.exp()))
    if isinstance(distribution, Tempered):
        return distribution_of(distribution.distribution, params / distribution.temperature)
    if isinstance(distribution, Exploring):
        p = distribution_of(distribution.distribution, params)
        return type(p)(probs=(1 - distribution.epsilon) * p.probs + distribution.epsilon / n)
    assert isinstance(distribution, GaussianMixture)
    logits, mean, log_std = params.split([distribution.m, distribution.m * n, distribution.m * n], dim=-1)
    mean, std = (x.unflatten(-1, (distribution.m, n)) for x in (mean, log_std.exp()))
    return D.MixtureSameFamily(D.Categorical(logits=logits), D.Independent(D.Normal(mean, std), 1))


def log_prob(distribution, params, act):
    return distribution_of(distribution, params).log_prob(torch.as_tensor(act, dtype=torch.float64))


def entropy(distribution, params):
    """Of a mixture, which has no closed form, the lower bound −Σ_i w_i log Σ_j w_j N(μ_i; μ_j, σ_i² + σ_j²)."""
    p = distribution_of(distribution, params)
    if not isinstance(distribution, GaussianMixture):
        return p.entropy()
    w, mean, std = p.mixture_distribution, p.component_distribution.mean, p.component_distribution.stddev
    apart = (std.unsqueeze(-2) ** 2 + std.unsqueeze(-3) ** 2).sqrt()
    overlap = D.Independent(D.Normal(mean.unsqueeze(-3), apart), 1).log_prob(mean.unsqueeze(-2).expand_as(apart))
    return -(w.probs * torch.logsumexp(w.logits.unsqueeze(-2) + overlap, dim=-1)).sum(dim=-1)


def policy_params(policy, theta, obs):
    y = forward(policy.network, theta[: policy.network.size], obs)
    tail = theta[policy.network.size :] if policy.learn_tail else torch.tensor(policy.tail)
    return torch.cat([y, tail.expand(*y.shape[:-1], -1)], dim=-1)


def model_outputs(model, theta, obs):
    """The distribution's parameters and V(s)."""
    if isinstance(model, SharedActorCritic):
        y = forward(model.network, theta[: model.network.size], obs)
        tail = theta[model.network.size :] if model.policy.learn_tail else torch.tensor(model.policy.tail)
        return torch.cat([y[..., :-1], tail.expand(*y.shape[:-1], -1)], dim=-1), y[..., -1]
    n = model.policy.size
    return policy_params(model.policy, theta[:n], obs), forward(model.critic.network, theta[n:], obs)[..., 0]


# Their gradients


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("depth", SIZES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_networks(activation, depth, batch):
    network, rng = MLP(SIZES[depth], activation), np.random.default_rng(0)
    theta, x = rng.standard_normal(network.size) / 2, rng.standard_normal((*batch, network.n_in))
    dy = rng.standard_normal((*batch, network.n_out))
    y, cache = network.forward(theta, x)
    assert_same(y, forward(network, torch.tensor(theta), torch.tensor(x)))
    expected = autograd(lambda theta, x: (torch.tensor(dy) * forward(network, theta, x)).sum(), theta, x)
    for actual, gradient in zip(network.backward(theta, cache, dy), expected):
        assert_same(actual, gradient)


def test_the_network_of_pong():
    network, rng = MLP((6400, 200, 1), "relu"), np.random.default_rng(0)
    theta, x, dy = network.init(rng, dtype=np.float64), rng.standard_normal((32, 6400)), rng.standard_normal((32, 1))
    (expected,) = autograd(lambda theta: (torch.tensor(dy) * forward(network, theta, torch.tensor(x))).sum(), theta)
    assert_same(network.backward(theta, network.forward(theta, x)[1], dy, want_dx=False)[0], expected)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@over(DISCRETE + CONTINUOUS + LARGER)
def test_distributions(distribution, batch):
    rng = np.random.default_rng(1)
    params, weight = rng.standard_normal((*batch, distribution.n_params)), torch.tensor(rng.standard_normal(batch))
    act = distribution.sample(params, rng)
    for f, value, gradient in (
        (lambda p: log_prob(distribution, p, act), distribution.log_prob, distribution.grad_log_prob),
        (lambda p: entropy(distribution, p), distribution.entropy, distribution.grad_entropy),
    ):
        arguments = (params, act) if value == distribution.log_prob else (params,)
        assert_same(np.asarray(value(*arguments)), f(torch.tensor(params)))
        (expected,) = autograd(lambda p: (weight * f(p)).sum(), params)
        assert_same(weight.numpy()[..., None] * gradient(*arguments), expected)


@over([distribution for distribution in DISCRETE + CONTINUOUS + LARGER if hasattr(distribution, "kl")])
def test_kl(distribution):
    params, other = np.random.default_rng(2).standard_normal((2, 4, distribution.n_params))
    p, q = (distribution_of(distribution, torch.tensor(x)) for x in (params, other))
    assert_same(distribution.kl(params, other), D.kl_divergence(p, q))


@pytest.mark.parametrize("batch", test_policy.BATCHES, ids=str)
@test_policy.every_policy
def test_policies(policy, batch):
    theta, obs, act, weight = test_policy.draw(policy, batch)

    def objective(theta):
        params = policy_params(policy, theta, torch.tensor(obs))
        logp, H = log_prob(policy.distribution, params, act), entropy(policy.distribution, params)
        return (torch.tensor(weight) * logp).sum() + 0.7 * H.sum()

    assert_same(policy.grad_log_prob(theta, obs, act, weight, entropy_coef=0.7), autograd(objective, theta)[0])


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_critics(batch):
    critic, rng = Critic(MLP((3, 5, 1))), np.random.default_rng(3)
    phi, obs, target = rng.standard_normal(critic.size), rng.standard_normal((*batch, 3)), rng.standard_normal(batch)
    value = lambda phi: forward(critic.network, phi, torch.tensor(obs))[..., 0]
    (expected,) = autograd(lambda phi: 0.5 * ((value(phi) - torch.tensor(target)) ** 2).sum(), phi)
    assert_same(critic.grad_loss(phi, obs, target), expected)


@pytest.mark.parametrize("batch", test_policy.BATCHES, ids=str)
@test_policy.every_model
def test_actor_critics(model, batch):
    theta, obs, act, weight = test_policy.draw(model, batch)

    def objective(theta):
        params, val = model_outputs(model, theta, torch.tensor(obs))
        logp, H = log_prob(model.distribution, params, act), entropy(model.distribution, params)
        return (torch.tensor(weight) * (logp + 2 * val)).sum() + 0.7 * H.sum()

    dtheta = model.gradient(theta, obs, act, weight, 2 * weight, entropy_coef=0.7)
    assert_same(dtheta, autograd(objective, theta)[0])


# The joint objective of actor and critic: the step that an update takes


def objective(model, seen, surrogate):
    """Mean of L(ρ, Â) + 0.1 H − 0.4 · ½ (R − V)² over the experience."""
    obs, logp_b, adv, ret = map(torch.tensor, (seen.obs, seen.logp, seen.adv, seen.ret))
    psi = (adv - adv.mean()) / adv.std(correction=0)

    def value(theta):
        params, val = model_outputs(model, theta, obs.to(theta.dtype))
        logp = log_prob(model.distribution, params, seen.act)
        actor = surrogate(logp, logp_b, psi) + 0.1 * entropy(model.distribution, params)
        return (actor - 0.2 * (ret - val) ** 2).mean()

    return value


SURROGATES = {
    "plain": lambda logp, logp_b, psi: (logp - logp_b).exp() * psi,
    "truncated": lambda logp, logp_b, psi: (logp - logp_b).exp().detach().clamp(max=2) * psi * logp,
    "clipped": lambda logp, logp_b, psi: torch.min(
        (logp - logp_b).exp() * psi, (logp - logp_b).exp().clamp(0.8, 1.2) * psi
    ),
}
DISCOUNTED = {"n_steps": T, "gamma": GAMMA, "lam": 0.7}
OPTIONS = {**DISCOUNTED, "value_coef": 0.4, "entropy_coef": 0.1, "standardise": True, "max_grad_norm": None}


@test_actor_critic.each_model
def test_a2c(sampler, model):
    theta = random_theta(model)
    updated = theta.copy()
    next(a2c(sampler(1), model, updated, SGD(theta, ALPHA), **OPTIONS))
    seen = test_replay.experience_of(model, theta, sampler(1).steps(model, theta, T))
    (expected,) = autograd(objective(model, seen, lambda logp, logp_b, psi: logp * psi), theta)
    assert_same((updated - theta) / ALPHA, expected)


@pytest.mark.parametrize("importance", IMPORTANCE)
@test_actor_critic.each_model
def test_ppo(sampler, model, importance):
    theta = random_theta(model)
    older = theta + 0.8 * random_theta(model, seed=5)
    old = test_replay.experience_of(model, older, sampler(2).steps(model, older, T))
    updated, buffer = theta.copy(), ExperienceBuffer(capacity=2)
    buffer.add(old)
    options = {"importance": importance, "buffer": buffer, "epochs": 1, "batch_size": 10**6, **OPTIONS}
    next(ppo(sampler(1), model, updated, SGD(theta, ALPHA), **options))
    new = test_replay.experience_of(model, theta, sampler(1).steps(model, theta, T))
    seen = Experience(*(np.concatenate(parts) for parts in zip(old, new)))
    (expected,) = autograd(objective(model, seen, SURROGATES[importance]), theta)
    assert_same((updated - theta) / ALPHA, expected)
