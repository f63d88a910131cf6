"""Importance weights against their surrogates; the buffer; PPO's steps; then properties of every algorithm so far."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from helpers import assert_mean, check_both
from test_actor_critic import (
    GAMMA,
    LEARNED_SIGMA,
    MODELS,
    ONE_BATCH,
    Q_CRITICS,
    SOFTMAX,
    T,
    advantages,
    assert_reached,
    each_model,
    pendulum,
    standardised,
)
from test_reinforce import cartpole, random_theta

from npg import replay
from npg.actor_critic import a2c, actor_critic, q_actor_critic
from npg.distributions import Categorical
from npg.gradcheck import complex_step_gradient
from npg.network import MLP
from npg.optimizers import SGD, Adam
from npg.policy import ActorCritic, Critic, Policy
from npg.reinforce import reinforce
from npg.replay import Experience, ExperienceBuffer, effective_sample_size, ppo
from npg.rollout import Sampler

SMALL = 2**-6
SURROGATE = {name: getattr(replay, f"{name}_surrogate") for name in replay.IMPORTANCE}
RATIO = np.tile([0.1, 0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.99, 2.01, 5.0], 2)  # both sides of 1 ± ε and of c = 2
PSI = np.repeat([1.5, -0.7], len(RATIO) // 2)


@pytest.mark.parametrize("name", SURROGATE)
def test_the_weight_is_the_derivative_of_the_surrogate_with_respect_to_the_log_probability(name):
    logb = np.linspace(-3, 1, len(RATIO))
    logp = logb + np.log(RATIO)
    weight = replay.IMPORTANCE[name](RATIO, PSI)
    check_both(lambda logp: SURROGATE[name](np.exp(logp - logb), PSI), logp, np.diag(weight))


def textbook_clipped(ratio, psi, epsilon=0.2):
    """min(ρ Ψ, clip(ρ, 1−ε, 1+ε) Ψ). The real parts decide, so the complex step works."""
    clipped = np.clip(ratio.real, 1 - epsilon, 1 + epsilon) * psi
    return np.where((ratio * psi).real <= clipped, ratio * psi, clipped)


@pytest.mark.parametrize("epsilon", [0.1, 0.2, 0.5])
def test_the_clipped_surrogate_is_the_minimum_in_the_paper(epsilon):
    np.testing.assert_array_equal(replay.clipped_surrogate(RATIO, PSI, epsilon), textbook_clipped(RATIO, PSI, epsilon))


def test_inside_their_limits_the_surrogates_are_plain_and_outside_their_weights_are_bounded():
    for name, inside in {"clipped": abs(RATIO - 1) < 0.2, "truncated": RATIO < 2}.items():
        for function in (SURROGATE[name], replay.IMPORTANCE[name]):
            np.testing.assert_array_equal(function(RATIO[inside], PSI[inside]), (RATIO * PSI)[inside])
    has_moved_too_far = np.where(PSI > 0, RATIO > 1.2, RATIO < 0.8)
    np.testing.assert_array_equal(replay.clipped_weight(RATIO, PSI) == 0, has_moved_too_far)
    np.testing.assert_array_equal(replay.truncated_weight(RATIO, PSI)[RATIO > 2], 2 * PSI[RATIO > 2])


def test_the_truncated_surrogate_is_continuous_at_its_limit():
    below, above = replay.truncated_surrogate(np.array([2 - 1e-9, 2 + 1e-9]), 1.0)
    assert 0 < above - below < 3e-9


def test_importance_weights_make_the_mean_of_another_policys_experience_exactly_on_policy():
    policy, rng = Policy(MLP((2, 4, 3)), Categorical(3)), np.random.default_rng(0)
    theta, behaviour = random_theta(policy), 3 * random_theta(policy, seed=2)
    obs, act, psi = np.tile(rng.standard_normal(2), (3, 1)), np.arange(3), rng.standard_normal(3)
    logb = policy.log_prob(behaviour, obs, act)
    probability = np.exp(logb)

    def mean_gradient(weight):
        return policy.grad_log_prob(theta, obs, act, lambda logp: probability * weight(np.exp(logp - logb), psi))

    value = lambda theta: np.sum(np.exp(policy.log_prob(theta, obs, act)) * psi)
    check_both(value, theta, mean_gradient(replay.plain_weight))
    exact, ignored = complex_step_gradient(value, theta), mean_gradient(lambda ratio, psi: psi)
    assert np.max(abs(ignored - exact)) > 0.1 * np.max(abs(exact))


def test_the_effective_sample_size_by_hand():
    assert effective_sample_size(np.full(10, 0.3)) == pytest.approx(10)
    assert effective_sample_size(np.array([1.0, 1, 1, 1, 0, 0, 0])) == pytest.approx(4)
    assert effective_sample_size(np.array([1.0, 2, 3])) == pytest.approx(36 / 14)
    assert effective_sample_size(np.append(np.full(9, 1e-9), 5.0)) == pytest.approx(1)


# The buffer


def experience(start, n=6):
    """n steps, numbered from `start` in every field."""
    number = np.arange(start, start + n)
    return Experience(np.stack([number, -number], axis=1), number % 3, number / 8, number / 4, number / 2)


def test_the_buffer_keeps_the_latest_batches_in_order():
    buffer = ExperienceBuffer(capacity=2)
    for start in (0, 10, 20):
        buffer.add(experience(start))
    assert [batch.obs[0, 0] for batch in buffer.batches] == [10, 20]


def test_the_buffer_needs_room_for_a_batch():
    with pytest.raises(ValueError, match="capacity"):
        ExperienceBuffer(capacity=0)


def test_drawing_mixes_everything_once_an_epoch_and_keeps_each_step_together():
    buffer = ExperienceBuffer(capacity=2)
    buffer.add(experience(0, n=6))
    buffer.add(experience(6, n=9))
    batches = list(buffer.draw(5, 2, np.random.default_rng(0)))
    assert [len(batch.obs) for batch in batches] == [5] * 6
    orders = [np.concatenate([batch.obs[:, 0] for batch in epoch]) for epoch in (batches[:3], batches[3:])]
    for order in orders:
        assert sorted(order) == list(range(15)) and list(order) != sorted(order)
    assert list(orders[0]) != list(orders[1])
    for batch in batches:
        expected = experience(0, n=15)
        for field, all_values in zip(batch, expected):
            np.testing.assert_array_equal(field, all_values[batch.obs[:, 0]])


# PPO

DISCOUNTED = {"n_steps": T, "gamma": GAMMA, "lam": 0.7}
EXACT = {**DISCOUNTED, "value_coef": 0.4, "entropy_coef": 0.1, "max_grad_norm": None, "batch_size": ONE_BATCH}
TEXTBOOK = {**SURROGATE, "plain": np.multiply, "clipped": textbook_clipped}


def experience_of(model, theta, rollout, lam=0.7):
    """The rollout as experience, with the log-probabilities and values of the θ that made it."""
    obs, act = rollout.flatten()
    val = model.value(theta, rollout.obs)
    adv = advantages(rollout, val, lam)
    return Experience(obs, act, model.log_prob(theta, obs, act), adv, adv + val[:-1][rollout.valid])


def objective(model, seen, importance, standardise):
    """Mean of L(ρ, Â) + β H − c ½ (R − V)² over the experience, as a function of θ."""
    psi = standardised(seen.adv) if standardise else seen.adv

    def value(theta):
        ratio = np.exp(model.log_prob(theta, seen.obs, seen.act) - seen.logp)
        actor = TEXTBOOK[importance](ratio, psi) + 0.1 * model.entropy(theta, seen.obs)
        return np.mean(actor - 0.4 * 0.5 * (seen.ret - model.value(theta, seen.obs)) ** 2)

    return value


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("importance", SURROGATE)
@each_model
def test_ppo_steps_along_the_gradient_of_its_surrogate_on_present_and_older_experience(
    sampler, model, importance, standardise
):
    theta = random_theta(model)
    older = theta + 0.8 * random_theta(model, seed=5)
    old = experience_of(model, older, sampler(2).steps(model, older, T))
    ratio = np.exp(model.log_prob(theta, old.obs, old.act) - old.logp)
    assert ratio.min() < 0.8 and ratio.max() > 2  # beyond all limits

    updated, buffer = theta.copy(), ExperienceBuffer(capacity=2)
    buffer.add(old)
    options = {"importance": importance, "standardise": standardise, "buffer": buffer, "epochs": 1}
    next(ppo(sampler(1), model, updated, SGD(theta, SMALL), **options, **EXACT))

    new = experience_of(model, theta, sampler(1).steps(model, theta, T))
    seen = Experience(*(np.concatenate(parts) for parts in zip(old, new)))
    check_both(objective(model, seen, importance, standardise), theta, (updated - theta) / SMALL)


@each_model
def test_every_epoch_of_ppo_weighs_the_same_experience_by_the_current_policy(sampler, model):
    theta = random_theta(model)
    updated = theta.copy()
    next(ppo(sampler(1), model, updated, SGD(theta, SMALL), epochs=3, **EXACT))
    expected, seen = theta, experience_of(model, theta, sampler(1).steps(model, theta, T))
    for _ in range(3):
        expected = expected + SMALL * complex_step_gradient(objective(model, seen, "clipped", True), expected)
    assert_reached(updated, expected, theta)


@each_model
def test_one_epoch_of_ppo_in_one_batch_is_a2c(sampler, model):
    theta = random_theta(model)
    by_a2c, by_ppo = theta.copy(), theta.copy()
    options = {"n_steps": T, "lam": 0.7, "entropy_coef": 0.1, "standardise": True, "max_grad_norm": 0.5}
    next(a2c(sampler(1), model, by_a2c, SGD(theta, SMALL), **options))
    next(ppo(sampler(1), model, by_ppo, SGD(theta, SMALL), epochs=1, batch_size=ONE_BATCH, **options))
    assert_reached(by_ppo, by_a2c, theta)


@pytest.mark.parametrize("importance", replay.IMPORTANCE)
def test_ppo_takes_log_b_and_the_advantages_from_the_parameters_that_acted(importance):
    sampler, model = MODELS["shared, learned sigma"]
    acted, theta = random_theta(model), random_theta(model)
    theta += 0.05 * np.random.default_rng(1).standard_normal(model.size)
    rollout = sampler(1).steps(model, acted, T)
    stale = SimpleNamespace(rng=np.random.default_rng(0), steps=lambda *args: rollout)
    updated = theta.copy()
    options = {"epochs": 1, "batch_size": ONE_BATCH, "standardise": False, "value_coef": 0.0, "max_grad_norm": None}
    next(ppo(stale, model, updated, SGD(theta, SMALL), importance=importance, **DISCOUNTED, **options))
    obs, act = rollout.flatten()
    adv, logb = advantages(rollout, model.value(acted, rollout.obs), 0.7), model.log_prob(acted, obs, act)
    surrogate = lambda theta: np.mean(SURROGATE[importance](np.exp(model.log_prob(theta, obs, act) - logb), adv))
    assert_reached(updated, theta + SMALL * complex_step_gradient(surrogate, theta), theta)


@pytest.mark.parametrize("importance, limit", [("clipped", {"clip": 0.02}), ("truncated", {"truncate": 1.01})])
def test_ppo_uses_the_given_limits_of_its_weights(importance, limit):
    sampler, model = MODELS["shared, learned sigma"]
    theta = random_theta(model)
    older = theta + 0.05 * np.random.default_rng(1).standard_normal(model.size)
    rollout = sampler(1).steps(model, older, T)
    stale = SimpleNamespace(rng=np.random.default_rng(0), steps=lambda *args: rollout)
    updated, (bound,) = theta.copy(), limit.values()
    options = {**DISCOUNTED, "epochs": 1, "batch_size": ONE_BATCH, "standardise": False, "value_coef": 0.0}
    options.update(max_grad_norm=None, importance=importance, **limit)
    next(ppo(stale, model, updated, SGD(theta, SMALL), **options))
    obs, act = rollout.flatten()
    adv, logb = advantages(rollout, model.value(older, rollout.obs), 0.7), model.log_prob(older, obs, act)

    def gradient(*limits):
        surrogate = lambda x: np.mean(SURROGATE[importance](np.exp(model.log_prob(x, obs, act) - logb), adv, *limits))
        return complex_step_gradient(surrogate, theta)

    assert_reached(updated, theta + SMALL * gradient(bound), theta)
    assert np.max(abs(gradient(bound) - gradient())) > 0.01 * np.max(abs(gradient()))  # not that of the usual limits


def test_ppo_reports_how_far_the_update_has_moved_the_policy():
    sampler, model = MODELS["shared, learned sigma"]
    theta = random_theta(model)
    updated = theta.copy()
    update = next(ppo(sampler(1), model, updated, Adam(theta, 0.01), n_steps=200, epochs=8, batch_size=ONE_BATCH))
    obs, act = update["rollout"].flatten()
    log_ratio = model.log_prob(updated, obs, act) - model.log_prob(theta, obs, act)
    samples = np.exp(log_ratio) - 1 - log_ratio
    assert update["kl"] == pytest.approx(samples.mean(), rel=1e-9) and update["kl"] > 1e-3
    before, after = (model.policy.params(parameters, obs)[0] for parameters in (theta, updated))
    assert_mean(samples - model.distribution.kl(before, after), 0)
    expected = effective_sample_size(np.exp(log_ratio)) / len(obs)
    assert update["effective_sample_size"] == pytest.approx(expected) and expected < 0.99


def test_ppo_reports_a_finite_distance_when_the_policy_has_left_its_data_for_good():
    sampler, model = MODELS["shared, sigma(s)"]
    theta = random_theta(model)
    update = next(ppo(sampler(1), model, theta, SGD(theta, 100.0), n_steps=T, epochs=1))
    assert 100 < update["kl"] < np.inf


@pytest.mark.parametrize("seed", range(3))
def test_ppo_balances_the_pole_for_five_times_as_long_after_ten_updates(seed):
    mode = "vector_entry_point"
    sampler = Sampler(gymnasium.make_vec("CartPole-v1", num_envs=8, vectorization_mode=mode), seed)
    model = ActorCritic(Policy(MLP((4, 32, 2)), Categorical(2)), Critic(MLP((4, 32, 1))))
    theta = model.init(np.random.default_rng(seed))
    before = np.mean(sampler.episodes(model, theta).episode_lengths)
    updates = ppo(sampler, model, theta, Adam(theta, 5e-3), gamma=0.98, lam=0.9, epochs=4)
    for _ in range(10):
        next(updates)
    assert np.mean(sampler.episodes(model, theta).episode_lengths) > 5 * before


# Every algorithm so far

PROBLEMS = {
    "discrete": (*Q_CRITICS["discrete"], MODELS["shared"][1]),
    "continuous": (pendulum, LEARNED_SIGMA, Q_CRITICS["continuous"][2], MODELS["shared, learned sigma"][1]),
}
each_problem = pytest.mark.parametrize("problem", PROBLEMS)
each_algorithm = pytest.mark.parametrize("algorithm", [reinforce, actor_critic, a2c, q_actor_critic, ppo])


class Recorder(Adam):
    """Adam that also records its gradients."""

    def __init__(self, theta, learning_rate):
        super().__init__(theta, learning_rate)
        self.gradients = []

    def step(self, theta, dtheta):
        self.gradients.append(dtheta.copy())
        super().step(theta, dtheta)


def begin(algorithm, problem, sampler=1, dtype=np.float32, **options):
    """The generator of updates, (θ, w), and their optimizers. `sampler` is a sampler or its seed."""
    make_sampler, policy, q_critic, model = PROBLEMS[problem]
    rng = np.random.default_rng(0)
    if algorithm in (reinforce, q_actor_critic):
        model = policy
    if algorithm is not reinforce:
        options["n_steps"] = T
    theta, w = model.init(rng, dtype), q_critic.init(rng, dtype)
    actor = Recorder(theta, 0.01)
    critic = Recorder(w if algorithm is q_actor_critic else theta, 0.01)
    further = {actor_critic: [critic], q_actor_critic: [q_critic, w, critic]}.get(algorithm, [])
    sampler = make_sampler(sampler) if isinstance(sampler, int) else sampler
    return algorithm(sampler, model, theta, actor, *further, **options), (theta, w), (actor, critic)


@each_problem
@each_algorithm
def test_the_same_seeds_give_the_same_bits(algorithm, problem):
    def trained(seed):
        updates, parameters, _ = begin(algorithm, problem, seed)
        for _ in range(3):
            next(updates)
        return np.concatenate(parameters)

    np.testing.assert_array_equal(trained(1), trained(1))
    assert np.any(trained(1) != trained(2))


@each_problem
@each_algorithm
def test_float32_parameters_get_float32_gradients(algorithm, problem):
    updates, _, optimizers = begin(algorithm, problem)
    next(updates)
    assert {g.dtype for optimizer in optimizers for g in optimizer.gradients} == {np.dtype(np.float32)}


@each_problem
@each_algorithm
def test_a_long_gradient_is_cut_to_the_limit_and_reported_as_it_was(algorithm, problem):
    updates, _, (actor, _) = begin(algorithm, problem, max_grad_norm=1e-4)
    update = next(updates)
    np.testing.assert_allclose([np.linalg.norm(g) for g in actor.gradients], 1e-4, rtol=1e-5)
    assert update["grad_norm"] > 1e-3


@pytest.mark.parametrize("algorithm", [a2c, ppo])
def test_the_explained_variance_is_that_of_the_critic_which_made_the_advantages(algorithm):
    *_, model = PROBLEMS["discrete"]
    updates, (theta, _), _ = begin(algorithm, "discrete", dtype=np.float64, gamma=GAMMA, lam=0.7)
    before = theta.copy()
    update = next(updates)
    seen = experience_of(model, before, update["rollout"])
    assert update["explained_variance"] == pytest.approx(1 - np.var(seen.adv) / np.var(seen.ret), rel=1e-9)
    acted = before if algorithm is a2c else theta
    assert update["entropy"] == pytest.approx(np.mean(model.entropy(acted, seen.obs)))


ENDS = {"terminated": False, "truncated": True, "goes on": True}  # whether the next value counts


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "algorithm, options",
    [
        (actor_critic, {"estimation": "mc"}),
        (actor_critic, {"estimation": "td"}),
        (a2c, {}),
        (q_actor_critic, {}),
        (ppo, {}),
    ],
)
def test_what_follows_counts_unless_the_episode_is_terminated(algorithm, options, end):
    rollout = cartpole(1).steps(SOFTMAX, random_theta(SOFTMAX), 5)
    assert not rollout.done.any()
    if end != "goes on":
        getattr(rollout, end)[-1] = True

    def trained(obs):
        steps = lambda model, theta, n_steps: rollout._replace(obs=obs, theta=theta)
        sampler = SimpleNamespace(rng=np.random.default_rng(0), steps=steps)
        updates, parameters, _ = begin(algorithm, "discrete", sampler, np.float64, **options)
        next(updates)
        return np.concatenate(parameters)

    elsewhere = rollout.obs.copy()
    elsewhere[-1] += 1
    assert np.any(trained(elsewhere) != trained(rollout.obs)) == ENDS[end]


def test_an_unknown_kind_of_importance_is_refused_before_anything_is_sampled():
    with pytest.raises(ValueError, match="importance: expected one of plain, .* got 'clip'"):
        next(ppo(None, None, None, None, importance="clip"))
