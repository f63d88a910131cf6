import numpy as np
import pytest
from helpers import check_both

from npg.distributions import Bernoulli, Categorical, Deterministic, Gaussian, GaussianMixture, MultivariateGaussian
from npg.network import MLP, LinearPreferences
from npg.policy import ActorCritic, Critic, Policy, SharedActorCritic

BATCHES = [(), (2, 3)]
M = np.random.default_rng(5).standard_normal((4, 3, 6))


def features(obs):
    """x(s, a) [..., 4 actions, 6 features] of obs [..., 3]."""
    return np.sin(np.einsum("...i,aij->...aj", obs, M))


def net(n_out):
    return MLP((3, 5, n_out))


POLICIES = {
    "categorical": Policy(net(4), Categorical(4)),
    "bernoulli": Policy(net(1), Bernoulli()),
    "linear preferences": Policy(LinearPreferences(features, 4, 6), Categorical(4)),
    "gaussian, state-dependent sigma": Policy(net(4), Gaussian(2)),
    "gaussian, learned sigma": Policy(net(2), Gaussian(2), tail=[-0.5, 0.5]),
    "gaussian, fixed sigma": Policy(net(2), Gaussian(2), tail=[-0.5, 0.5], learn_tail=False),
    "gaussian, partly learned sigma": Policy(net(3), Gaussian(2), tail=-0.5),
    "gaussian of one action": Policy(net(1), Gaussian(1), tail=-0.5),
    "multivariate, state-dependent": Policy(net(5), MultivariateGaussian(2)),
    "multivariate, learned": Policy(net(2), MultivariateGaussian(2), tail=[-0.5, 0.2, 0.3]),
    "mixture, state-dependent": Policy(net(10), GaussianMixture(2, 2)),
    "mixture, learned sigma": Policy(net(6), GaussianMixture(2, 2), tail=-0.5),
}
MODELS = {
    "two networks, categorical": ActorCritic(Policy(net(4), Categorical(4)), Critic(net(1))),
    "two networks, learned sigma": ActorCritic(Policy(net(2), Gaussian(2), tail=-0.5), Critic(net(1))),
    "two networks, fixed sigma": ActorCritic(Policy(net(2), Gaussian(2), -0.5, learn_tail=False), Critic(net(1))),
    "two networks, linear preferences": ActorCritic(POLICIES["linear preferences"], Critic(net(1))),
    "shared, categorical": SharedActorCritic(net(5), Categorical(4)),
    "shared, bernoulli": SharedActorCritic(net(2), Bernoulli()),
    "shared, state-dependent sigma": SharedActorCritic(net(5), Gaussian(2)),
    "shared, learned sigma": SharedActorCritic(net(3), Gaussian(2), tail=[-0.5, 0.5]),
    "shared, fixed sigma": SharedActorCritic(net(3), Gaussian(2), tail=[-0.5, 0.5], learn_tail=False),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
every_batch = pytest.mark.parametrize("batch", BATCHES, ids=str)


def draw(policy, batch=(4,), seed=0):
    """Random θ, observations, actions of the policy, and weights."""
    rng = np.random.default_rng(seed)
    theta, obs = rng.standard_normal(policy.size) / 2, rng.standard_normal((*batch, 3))
    return theta, obs, policy.act(theta, obs, rng), rng.standard_normal(batch)


def check_score(policy, batch=(4,)):
    """grad_log_prob is ∇ Σ w log π(a|s) + β Σ H."""
    theta, obs, act, weight = draw(policy, batch)
    logp = lambda theta: np.sum(weight * policy.log_prob(theta, obs, act))
    check_both(logp, theta, policy.grad_log_prob(theta, obs, act, weight))
    objective = lambda theta: logp(theta) + 0.7 * np.sum(policy.entropy(theta, obs))
    check_both(objective, theta, policy.grad_log_prob(theta, obs, act, weight, entropy_coef=0.7))


@every_batch
@every_policy
def test_grad_log_prob_is_the_gradient_of_the_weighted_log_probability_and_entropy(policy, batch):
    check_score(policy, batch)


@every_batch
@every_policy
def test_the_entropy_term_alone_is_the_gradient_of_the_entropy(policy, batch):
    theta, obs, act, _ = draw(policy, batch)
    assert policy.entropy(theta, obs).shape == batch
    dtheta = policy.grad_log_prob(theta, obs, act, np.zeros(batch), entropy_coef=1.0)
    check_both(lambda theta: np.sum(policy.entropy(theta, obs)), theta, dtheta)


class ForgetsTheSumOverTheBatch(Policy):
    def append_tail_gradient(self, dnetwork, dparams):
        return np.concatenate([dnetwork, dparams[0, self.network.n_out :]])


class ForgetsTheWeight(Policy):
    def grad_params(self, params, act, weight, entropy_coef=0.0):
        return super().grad_params(params, act, np.ones_like(weight), entropy_coef)


class SubtractsTheEntropy(Policy):
    def grad_params(self, params, act, weight, entropy_coef=0.0):
        return super().grad_params(params, act, weight, -entropy_coef)


@pytest.mark.parametrize("planted_bug", [ForgetsTheSumOverTheBatch, ForgetsTheWeight, SubtractsTheEntropy])
def test_the_check_of_the_score_fails_on_planted_bugs(planted_bug):
    with pytest.raises(AssertionError, match="gradient differs"):
        check_score(planted_bug(net(2), Gaussian(2), tail=-0.5))


@every_policy
def test_a_scalar_weight_holds_for_every_action(policy):
    theta, obs, act, _ = draw(policy)
    every = policy.grad_log_prob(theta, obs, act, np.full(4, 2.0))
    np.testing.assert_array_equal(policy.grad_log_prob(theta, obs, act, 2.0), every)


@every_policy
def test_a_callable_weight_sees_the_current_log_probability_and_is_held_constant(policy):
    theta, obs, act, psi = draw(policy)
    logp, logp_old = policy.log_prob(theta, obs, act), policy.log_prob(0.9 * theta, obs, act)
    weight = lambda logp: np.exp(logp - logp_old) * psi
    held = weight(logp)
    dtheta = policy.grad_log_prob(theta, obs, act, weight, entropy_coef=0.1)
    np.testing.assert_array_equal(dtheta, policy.grad_log_prob(theta, obs, act, held, entropy_coef=0.1))


@every_policy
def test_an_importance_weighted_score_is_the_gradient_of_the_weighted_mean(policy):
    """∇ Σ ρ Ψ = Σ ρ Ψ ∇ log π,  ρ = π_θ(a|s) / b(a|s)."""
    theta, obs, act, psi = draw(policy)
    logp_old = policy.log_prob(0.9 * theta, obs, act)
    ratio = lambda logp: np.exp(logp - logp_old) * psi
    objective = lambda theta: np.sum(ratio(policy.log_prob(theta, obs, act)))
    check_both(objective, theta, policy.grad_log_prob(theta, obs, act, ratio))


def test_scores_weighted_by_pi_f_over_all_actions_are_the_gradient_of_the_expectation():
    """∇ E_π[f] = Σ_a π(a) f(a) ∇ log π(a), the identity that the lecture begins with."""
    policy = POLICIES["categorical"]
    theta, obs, _, _ = draw(policy, (5,))
    f, act = np.random.default_rng(1).standard_normal((5, 4)), np.broadcast_to(np.arange(4), (5, 4))
    obs = np.broadcast_to(obs[:, None], (5, 4, 3))
    expectation = lambda theta: np.sum(f * np.exp(policy.log_prob(theta, obs, act)))
    check_both(expectation, theta, policy.grad_log_prob(theta, obs, act, lambda logp: f * np.exp(logp)))


@every_policy
def test_a_batch_is_the_sum_of_its_singles(policy):
    theta, obs, act, weight = draw(policy)
    total = sum(policy.grad_log_prob(theta, obs[i], act[i], weight[i], 0.1) for i in range(4))
    np.testing.assert_allclose(policy.grad_log_prob(theta, obs, act, weight, 0.1), total, rtol=1e-11, atol=1e-13)


@every_batch
@every_policy
def test_act_samples_and_without_a_generator_gives_the_mode(policy, batch):
    theta, obs, act, _ = draw(policy, batch)
    params, _ = policy.params(theta, obs)
    assert params.shape == (*batch, policy.distribution.n_params)
    discrete = isinstance(policy.distribution, (Categorical, Bernoulli))
    assert act.shape == (batch if discrete else (*batch, policy.distribution.n))
    sample = policy.distribution.sample(params, np.random.default_rng(3))
    np.testing.assert_array_equal(policy.act(theta, obs, np.random.default_rng(3)), sample)
    np.testing.assert_array_equal(policy.act(theta, obs), policy.distribution.mode(params))


def test_a_deterministic_policy_acts_and_has_no_score():
    policy = Policy(net(2), Deterministic(2))
    theta, obs, act, weight = draw(policy)
    np.testing.assert_array_equal(act, net(2).forward(theta, obs)[0])
    with pytest.raises(TypeError, match="Deterministic"):
        policy.grad_log_prob(theta, obs, act, weight)


def test_sigma_is_a_function_of_the_state_or_the_end_of_theta_or_a_constant():
    obs, rng = np.random.default_rng(1).standard_normal((4, 3)), np.random.default_rng(0)
    log_std = lambda policy, theta: policy.params(theta, obs)[0][:, 2:]
    state, learned, fixed = (POLICIES[f"gaussian, {kind} sigma"] for kind in ("state-dependent", "learned", "fixed"))
    assert [policy.size - policy.network.size for policy in (state, learned, fixed)] == [0, 2, 0]
    for policy in (learned, fixed):
        np.testing.assert_array_equal(log_std(policy, policy.init(rng)), [[-0.5, 0.5]] * 4)
    theta = np.arange(float(learned.size))
    np.testing.assert_array_equal(log_std(learned, theta), [theta[-2:]] * 4)
    assert len(np.unique(log_std(state, state.init(rng)))) == 8


@every_policy
def test_a_fresh_policy_has_small_outputs_and_the_dtype_asked_for(policy):
    theta = policy.init(np.random.default_rng(0))
    assert theta.dtype == np.float32 and theta.shape == (policy.size,)
    y, _ = policy.network.forward(theta[: policy.network.size], np.random.default_rng(0).standard_normal((50, 3)))
    assert np.max(np.abs(y)) < 0.05


@every_policy
def test_the_dtype_of_a_gradient_is_that_of_theta(policy):
    theta, obs, act, weight = draw(policy)
    assert policy.grad_log_prob(theta.astype(np.float32), obs, act, weight, 0.1).dtype == np.float32
    assert policy.grad_log_prob(theta, obs.astype(np.float32), act, weight.astype(np.float32), 0.1).dtype == np.float64


def test_a_network_with_too_many_outputs_raises():
    with pytest.raises(ValueError, match="network: expected 1 to 4 outputs for a Gaussian, got 5"):
        Policy(net(5), Gaussian(2))


def test_a_critic_with_more_than_one_output_raises():
    with pytest.raises(ValueError, match="network: expected 1 output, got 2"):
        Critic(net(2))


@every_policy
@pytest.mark.parametrize("shape", [(3,), (4, 1), (1,), (4, 4)], ids=str)
def test_a_weight_of_the_wrong_shape_raises(policy, shape):
    theta, obs, act, _ = draw(policy)
    for weight in (np.ones(shape), lambda logp: np.ones(shape)):
        with pytest.raises(ValueError, match=r"weight: expected one number per action, shape \(4,\), got"):
            policy.grad_log_prob(theta, obs, act, weight)


@every_policy
def test_a_theta_of_the_wrong_shape_raises(policy):
    theta, obs, act, weight = draw(policy)
    for wrong in (theta[:-1], np.append(theta, 0), theta[:, None]):
        with pytest.raises(ValueError, match=rf"theta: expected shape \({policy.size},\), got"):
            policy.grad_log_prob(wrong, obs, act, weight)


# The critic


def draw_critic(batch=(4,)):
    rng = np.random.default_rng(0)
    critic = Critic(net(1))
    return critic, rng.standard_normal(critic.size), rng.standard_normal((*batch, 3)), rng.standard_normal(batch)


def test_a_tail_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"tail: expected a number or an array \[2\], got shape \(3,\)"):
        Policy(net(2), Gaussian(2), tail=[1, 2, 3])


@every_batch
def test_the_critics_gradients(batch):
    critic, phi, obs, target = draw_critic(batch)
    assert critic.value(phi, obs).shape == batch
    dphi = critic.grad_value(phi, obs, target)
    check_both(lambda phi: np.sum(target * critic.value(phi, obs)), phi, dphi)
    check_both(lambda phi: critic.loss(phi, obs, target), phi, critic.grad_loss(phi, obs, target))


def test_the_loss_is_half_the_sum_of_squares():
    critic, phi, obs, target = draw_critic()
    assert critic.loss(phi, obs, target) == pytest.approx(
        sum((critic.value(phi, obs[i]) - target[i]) ** 2 / 2 for i in range(4)), rel=1e-12
    )


def test_a_bootstrapped_target_is_held_fixed():
    """The semi-gradient: r + γ V_φ(s') counts as a constant, although it depends on φ."""
    critic, phi, obs, rew = draw_critic()
    following = obs[::-1]
    target = lambda phi: rew + 0.9 * critic.value(phi, following)
    dphi = critic.grad_loss(phi, obs, target(phi))
    check_both(lambda changed: critic.loss(changed, obs, target(phi)), phi, dphi)
    with pytest.raises(AssertionError, match="gradient differs"):
        check_both(lambda changed: critic.loss(changed, obs, target(changed)), phi, dphi)


def test_a_callable_value_weight_sees_the_current_value_and_is_held_constant():
    critic, phi, obs, target = draw_critic()
    held = np.tanh(critic.value(phi, obs) - target)
    dphi = critic.grad_value(phi, obs, lambda value: np.tanh(value - target))
    np.testing.assert_array_equal(dphi, critic.grad_value(phi, obs, held))


@pytest.mark.parametrize("shape", [(4, 1), (3,)], ids=str)
def test_a_target_of_the_wrong_shape_raises(shape):
    """[B, 1] against [B] would broadcast to [B, B]."""
    critic, phi, obs, _ = draw_critic()
    for function in (critic.loss, critic.grad_loss):
        with pytest.raises(ValueError):
            function(phi, obs, np.ones(shape))


# Actor and critic over one θ


def check_actor_critic(model, batch=(4,)):
    """`gradient` is ∇ of Σ w log π + β Σ H + Σ u V, and the sum of `grad_log_prob` and `grad_value`."""
    theta, obs, act, weight = draw(model, batch)
    value_weight = weight[::-1] if batch else 2 * weight
    actor = lambda theta: np.sum(weight * model.log_prob(theta, obs, act)) + 0.7 * np.sum(model.entropy(theta, obs))
    critic = lambda theta: np.sum(value_weight * model.value(theta, obs))
    dactor = model.grad_log_prob(theta, obs, act, weight, entropy_coef=0.7)
    dcritic = model.grad_value(theta, obs, value_weight)
    dtheta = model.gradient(theta, obs, act, weight, value_weight, entropy_coef=0.7)
    check_both(actor, theta, dactor)
    check_both(critic, theta, dcritic)
    check_both(lambda theta: actor(theta) + critic(theta), theta, dtheta)
    np.testing.assert_allclose(dtheta, dactor + dcritic, rtol=1e-12, atol=1e-13)


@every_batch
@every_model
def test_actor_critic_gradients(model, batch):
    check_actor_critic(model, batch)


@every_model
def test_a_theta_of_another_model_is_refused_by_actor_and_critic(model):
    theta, obs = model.init(np.random.default_rng(0)), np.zeros((2, 3))
    for wrong in (theta[:-1], np.append(theta, 0)):
        for call in (model.act, model.value):
            with pytest.raises(ValueError, match=rf"theta: expected shape \({model.size},\), got"):
                call(wrong, obs)


class OneWeightForBoth(SharedActorCritic):
    def gradient(self, theta, obs, act, weight, value_weight, entropy_coef=0.0):
        return super().gradient(theta, obs, act, weight, weight, entropy_coef)


class ForgetsTheTail(SharedActorCritic):
    def gradient(self, *arguments, **options):
        dtheta = super().gradient(*arguments, **options)
        dtheta[self.network.size :] = 0
        return dtheta


@pytest.mark.parametrize("planted_bug", [OneWeightForBoth, ForgetsTheTail])
def test_the_check_of_the_actor_critic_fails_on_planted_bugs(planted_bug):
    with pytest.raises(AssertionError, match="gradient differs"):
        check_actor_critic(planted_bug(net(3), Gaussian(2), tail=-0.5))


@every_batch
@every_model
def test_actor_critic_loss(model, batch):
    theta, obs, _, target = draw(model, batch)
    assert model.loss(theta, obs, target) == pytest.approx(np.sum((model.value(theta, obs) - target) ** 2) / 2)
    check_both(lambda theta: model.loss(theta, obs, target), theta, model.grad_loss(theta, obs, target))


@every_model
def test_callable_weights_of_both_are_held_constant(model):
    theta, obs, act, psi = draw(model)
    weight, value_weight = lambda logp: psi * np.exp(logp), lambda value: psi - value
    held = weight(model.log_prob(theta, obs, act)), value_weight(model.value(theta, obs))
    np.testing.assert_allclose(
        model.gradient(theta, obs, act, weight, value_weight), model.gradient(theta, obs, act, *held), rtol=1e-12
    )


@every_model
def test_both_views_alias_theta(model):
    theta = model.init(np.random.default_rng(0))
    assert theta.shape == (model.size,) and theta.dtype == np.float32
    for view in (model.actor_params(theta), model.critic_params(theta)):
        view[...] = 7
        view[0] = 8
        assert np.shares_memory(view, theta)
    assert np.all(theta >= 7)  # together, the views cover θ


@every_model
def test_the_views_overlap_in_the_shared_design_alone(model):
    theta = np.zeros(model.size)
    shared = isinstance(model, SharedActorCritic)
    assert np.shares_memory(model.actor_params(theta), model.critic_params(theta)) == shared
    n_shared = model.network.size if shared else 0
    assert model.actor_params(theta).size + model.critic_params(theta).size == model.size + n_shared


@every_model
def test_two_networks_leave_each_others_parameters_alone_and_a_shared_one_does_not(model):
    theta, obs, act, weight = draw(model)
    of_actor = model.critic_params(model.grad_log_prob(theta, obs, act, weight))
    assert np.any(of_actor) == isinstance(model, SharedActorCritic)
    of_critic = model.actor_params(model.grad_value(theta, obs, weight))
    assert np.any(of_critic) == isinstance(model, SharedActorCritic)


@every_model
def test_the_model_acts_as_its_policy_and_values_as_its_critic(model):
    theta, obs, act, _ = draw(model)
    actor, phi = model.actor_params(theta), model.critic_params(theta)
    np.testing.assert_array_equal(model.act(theta, obs), model.policy.act(actor, obs))
    samples = [f(t, obs, np.random.default_rng(1)) for f, t in ((model.act, theta), (model.policy.act, actor))]
    np.testing.assert_array_equal(*samples)
    np.testing.assert_array_equal(model.log_prob(theta, obs, act), model.policy.log_prob(actor, obs, act))
    np.testing.assert_array_equal(model.entropy(theta, obs), model.policy.entropy(actor, obs))
    np.testing.assert_array_equal(model.value(theta, obs), model.critic.value(phi, obs))
    params, value = model.params_and_value(theta, obs)
    np.testing.assert_array_equal(params, model.policy.params(actor, obs)[0])
    np.testing.assert_array_equal(value, model.value(theta, obs))


def test_the_shared_networks_last_output_is_the_value():
    model = MODELS["shared, learned sigma"]
    theta, obs, _, _ = draw(model)
    y, _ = model.network.forward(model.critic_params(theta), obs)
    np.testing.assert_array_equal(model.value(theta, obs), y[:, -1])
    np.testing.assert_array_equal(model.act(theta, obs), y[:, :-1])


@every_model
def test_the_dtype_of_actor_critic_gradients_is_that_of_theta(model):
    theta, obs, act, weight = draw(model)
    theta = theta.astype(np.float32)
    assert model.gradient(theta, obs, act, weight, weight, 0.1).dtype == np.float32
    assert model.grad_log_prob(theta, obs, act, weight).dtype == np.float32
    assert model.grad_value(theta, obs, weight).dtype == np.float32


@every_model
def test_a_theta_of_the_wrong_length_raises(model):
    theta, obs, act, weight = draw(model)
    for wrong in (theta[:-1], np.append(theta, 0)):
        with pytest.raises(ValueError):
            model.gradient(wrong, obs, act, weight, weight)


def test_a_shared_network_without_an_output_for_the_value_is_refused():
    with pytest.raises(ValueError, match="network: expected 1 to 2 outputs for a Gaussian, got 0"):
        SharedActorCritic(MLP((3, 8, 1)), Gaussian(1))
