"""Each update follows its definition: the critic's regression, then a step along the actor's (or the joint) gradient.

The complex step gives the expected gradients. The double sum gives the expected advantages.
"""

import gymnasium
import numpy as np
import pytest
from helpers import check_both
from test_reinforce import cartpole, random_theta

from npg.actor_critic import ContinuousQ, DiscreteQ, a2c, actor_critic, q_actor_critic
from npg.distributions import Categorical, Gaussian
from npg.exploration import exploring
from npg.gradcheck import complex_step_gradient
from npg.network import MLP
from npg.optimizers import SGD
from npg.policy import ActorCritic, Critic, Policy, SharedActorCritic
from npg.rollout import Sampler

GAMMA, T, ALPHA, ONE_BATCH = 0.9, 20, 0.25, 10**6


def pendulum(seed):
    """Continuous actions, and episodes that a time limit truncates."""
    return Sampler(gymnasium.make_vec("Pendulum-v1", num_envs=3, vectorization_mode="sync", max_episode_steps=6), seed)


LEARNED_SIGMA = Policy(MLP((3, 4, 1)), Gaussian(1), tail=-0.5)
MODELS = {
    "two networks": (cartpole, ActorCritic(Policy(MLP((4, 4, 2)), Categorical(2)), Critic(MLP((4, 3, 1))))),
    "shared": (cartpole, SharedActorCritic(MLP((4, 5, 3)), Categorical(2))),
    "two networks, learned sigma": (pendulum, ActorCritic(LEARNED_SIGMA, Critic(MLP((3, 3, 1))))),
    "shared, learned sigma": (pendulum, SharedActorCritic(MLP((3, 5, 2)), Gaussian(1), tail=-0.5)),
    "shared, sigma(s)": (pendulum, SharedActorCritic(MLP((3, 5, 3)), Gaussian(1))),
}
each_model = pytest.mark.parametrize("sampler, model", MODELS.values(), ids=MODELS)


def advantages(rollout, val, lam):
    """Â_t = Σ_l (γλ)ˡ δ_{t+l} until the episode or the rows end [B]. λ = 0: r + γV(s') − V(s);  λ = 1: R − V(s)."""
    adv = np.zeros(rollout.rew.shape)
    for t, i in np.argwhere(rollout.valid):
        for k in range(t, len(adv)):
            following = 0 if rollout.terminated[k, i] else val[k + 1, i]
            adv[t, i] += (GAMMA * lam) ** (k - t) * (float(rollout.rew[k, i]) + GAMMA * following - val[k, i])
            if rollout.terminated[k, i] or rollout.truncated[k, i]:
                break
    return adv[rollout.valid]


def standardised(x):
    return (x - x.mean()) / x.std()


def assert_reached(theta, expected, start):
    """Asserts that θ is `expected`, to within 1e-10 of the distance from `start`."""
    assert np.max(abs(theta - expected)) <= 1e-10 * np.max(abs(expected - start))


def test_the_rollout_of_these_tests_has_terminated_truncated_and_reset_rows():
    _, model = MODELS["shared"]
    rollout = cartpole(1).steps(model, random_theta(model), T)
    assert rollout.terminated.any() and rollout.truncated.any() and not rollout.valid.all() and rollout.valid[-1].any()


# The five steps


@pytest.mark.parametrize("estimation", ["mc", "td"])
@each_model
def test_the_five_steps(sampler, model, estimation):
    theta = random_theta(model)
    updated = theta.copy()
    options = {"estimation": estimation, "epochs": 2, "batch_size": ONE_BATCH, "proximal": 0.5, "entropy_coef": 0.1}
    options.update(n_steps=T, gamma=GAMMA)
    next(actor_critic(sampler(1), model, updated, SGD(theta, ALPHA), SGD(theta, 0.01), **options))

    rollout = sampler(1).steps(model, theta, T)  # 1. sample
    obs, act = rollout.flatten()

    def descend(start, lam, steps, proximal=0.0):
        """Takes `steps` steps down ½ mean (V − target)² + proximal/2 ‖θ − start‖². The target stays that of `start`."""
        val, theta = model.value(start, rollout.obs), start
        target = advantages(rollout, val, lam) + val[:-1][rollout.valid]
        error = lambda theta: 0.5 * np.mean((model.value(theta, obs) - target) ** 2)
        for _ in range(steps):
            theta = theta - 0.01 * complex_step_gradient(
                lambda theta: error(theta) + 0.5 * proximal * np.sum((theta - start) ** 2), theta
            )
        return theta

    if estimation == "mc":  # 2. fit V
        fitted = descend(theta, lam=1, steps=2)
    else:
        fitted = descend(descend(theta, lam=0, steps=4, proximal=0.5), lam=0, steps=4, proximal=0.5)
    adv = standardised(advantages(rollout, model.value(fitted, rollout.obs), lam=0))  # 3. advantages
    check_both(  # 4. and 5. a step along the gradient
        lambda theta: np.mean(adv * model.log_prob(theta, obs, act) + 0.1 * model.entropy(theta, obs)),
        fitted,
        (updated - fitted) / ALPHA,
    )


def test_fitting_the_critic_of_two_networks_leaves_the_actor_alone():
    sampler, model = MODELS["two networks"]
    theta = random_theta(model)
    updated = theta.copy()
    next(actor_critic(sampler(1), model, updated, SGD(theta, 0.0), SGD(theta, 0.01), n_steps=T))
    np.testing.assert_array_equal(model.actor_params(updated), model.actor_params(theta))
    assert np.all(model.critic_params(updated) != model.critic_params(theta))


# A2C


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
@each_model
def test_a2c_steps_along_the_gradient_of_its_joint_objective(sampler, model, lam, standardise):
    theta = random_theta(model)
    updated = theta.copy()
    options = {"value_coef": 0.4, "entropy_coef": 0.1, "standardise": standardise, "max_grad_norm": None}
    next(a2c(sampler(1), model, updated, SGD(theta, ALPHA), n_steps=T, gamma=GAMMA, lam=lam, **options))

    rollout = sampler(1).steps(model, theta, T)
    obs, act = rollout.flatten()
    val = model.value(theta, rollout.obs)
    adv = advantages(rollout, val, lam)
    ret = adv + val[:-1][rollout.valid]
    psi = standardised(adv) if standardise else adv

    def objective(theta):
        actor = psi * model.log_prob(theta, obs, act) + 0.1 * model.entropy(theta, obs)
        return np.mean(actor - 0.4 * 0.5 * (ret - model.value(theta, obs)) ** 2)

    check_both(objective, theta, (updated - theta) / ALPHA)


@each_model
def test_the_target_of_the_critic_is_not_differentiated(sampler, model):
    theta = random_theta(model)
    updated = theta.copy()
    options = {"value_coef": 1.0, "max_grad_norm": None}
    next(a2c(sampler(1), model, updated, SGD(theta, ALPHA), n_steps=T, gamma=GAMMA, lam=0.0, **options))

    rollout = sampler(1).steps(model, theta, T)
    obs, act, rew, terminated, following = rollout.flatten(rollout.rew, rollout.terminated, rollout.obs[1:])

    def gradient(moves):
        adv, target = (rew + GAMMA * ~terminated * model.value(theta, following) - shift
                       for shift in (model.value(theta, obs), 0))  # fmt: skip

        def objective(x):
            bootstrapped = rew + GAMMA * ~terminated * model.value(x, following) if moves else target
            return np.mean(adv * model.log_prob(x, obs, act) - 0.5 * (bootstrapped - model.value(x, obs)) ** 2)

        return complex_step_gradient(objective, theta)

    assert_reached(updated, theta + ALPHA * gradient(moves=False), theta)
    assert np.max(abs(gradient(moves=True) - gradient(moves=False))) > 0.1 * np.max(abs(gradient(moves=False)))


# Q


SOFTMAX, GAUSSIAN = Policy(MLP((4, 4, 2)), Categorical(2)), Policy(MLP((3, 4, 2)), Gaussian(1))
Q_CRITICS = {
    "discrete": (cartpole, SOFTMAX, DiscreteQ(MLP((4, 5, 2)))),
    "continuous": (pendulum, GAUSSIAN, ContinuousQ(MLP((4, 5, 1)))),
}
each_q = pytest.mark.parametrize("sampler, policy, critic", Q_CRITICS.values(), ids=Q_CRITICS)


@each_q
def test_grad_loss_is_the_gradient_of_half_the_squared_error(sampler, policy, critic):
    rollout = sampler(1).steps(policy, random_theta(policy), T)
    obs, act, target = rollout.flatten(np.random.default_rng(0).standard_normal(rollout.rew.shape))
    w = random_theta(critic)
    loss = lambda w: 0.5 * np.sum((critic.value(w, obs, act) - target) ** 2)
    check_both(loss, w, critic.grad_loss(w, obs, act, target))


def test_the_value_of_discrete_actions_is_exact():
    _, policy, critic = Q_CRITICS["discrete"]
    theta, w, obs = random_theta(policy), random_theta(critic, seed=2), np.random.default_rng(0).normal(size=(7, 3, 4))
    actions = [np.full(obs.shape[:-1], a) for a in range(2)]
    expected = sum(np.exp(policy.log_prob(theta, obs, a)) * critic.value(w, obs, a) for a in actions)
    np.testing.assert_allclose(critic.state_value(w, obs, policy, theta, None), expected, rtol=1e-14)


def test_the_value_of_continuous_actions_is_the_mean_of_n_samples():
    policy, critic = GAUSSIAN, ContinuousQ(MLP((4, 5, 1)), n_samples=1000)
    rng = np.random.default_rng(0)
    theta, w, obs = random_theta(policy), 2 * random_theta(critic, seed=2), rng.standard_normal((50, 3))
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)  # E f(ε) for ε ~ N(0, 1)
    mean, log_std = np.moveaxis(policy.params(theta, obs)[0][..., None, :], -1, 0)
    act = (mean + np.exp(log_std) * nodes)[..., None]
    q = critic.value(w, np.broadcast_to(obs[:, None, :], (50, 100, 3)), act)
    expected = q @ weights / weights.sum()
    standard_error = np.sqrt((q - expected[:, None]) ** 2 @ weights / weights.sum() / 1000)
    z = (critic.state_value(w, obs, policy, theta, rng) - expected) / standard_error
    assert np.max(abs(z)) < 4
    assert 0.6 < np.std(z) < 1.4  # n_samples is right; 4 standard errors of the std of 50 numbers are 0.4


@pytest.mark.parametrize("subtract_value", [False, True])
@each_q
def test_q_actor_critic_fits_q_to_the_expected_td_target_and_steps_along_q_times_the_score(
    sampler, policy, critic, subtract_value
):
    theta, w = random_theta(policy), random_theta(critic, seed=2)
    updated, fitted = theta.copy(), w.copy()
    options = {"iterations": 3, "epochs": 1, "batch_size": ONE_BATCH, "standardise": False, "entropy_coef": 0.1}
    arguments = sampler(2), policy, updated, SGD(theta, ALPHA), critic, fitted, SGD(w, 0.01)
    next(q_actor_critic(*arguments, n_steps=T, gamma=GAMMA, subtract_value=subtract_value, **options))

    twin, expected = sampler(2), w
    rollout = twin.steps(policy, theta, T)
    obs, act, rew, terminated, following = rollout.flatten(rollout.rew, rollout.terminated, rollout.obs[1:])
    assert terminated.any() or sampler is not cartpole  # so a target beyond a terminal step would show
    for _ in range(3):
        target = rew + GAMMA * ~terminated * critic.state_value(expected, following, policy, theta, twin.rng)
        twin.rng.permutation(len(obs))  # the one minibatch was shuffled, too
        loss = lambda w: 0.5 * np.mean((critic.value(w, obs, act) - target) ** 2)
        expected = expected - 0.01 * complex_step_gradient(loss, expected)
    assert_reached(fitted, expected, w)
    psi = critic.value(expected, obs, act)
    if subtract_value:
        psi = psi - critic.state_value(expected, obs, policy, theta, twin.rng)
    check_both(
        lambda theta: np.mean(psi * policy.log_prob(theta, obs, act) + 0.1 * policy.entropy(theta, obs)),
        theta,
        (updated - theta) / ALPHA,
    )


def test_the_value_of_a_policy_that_explores_is_refused():
    policy, critic = Policy(MLP((3, 2)), Categorical(2)), DiscreteQ(MLP((3, 2)))
    theta, w, obs, rng = np.zeros(policy.size), np.zeros(critic.size), np.zeros((5, 3)), np.random.default_rng(0)
    np.testing.assert_array_equal(critic.state_value(w, obs, policy, theta, rng), 0)
    with pytest.raises(ValueError, match="policy: expected a Categorical, .* got Exploring"):
        critic.state_value(w, obs, exploring(policy, epsilon=0.1), theta, rng)
