"""One actor-learner equals A2C, or Algorithm S3, bit for bit. Several actor-learners give the sum of their updates."""

from concurrent.futures import Future

import gymnasium
import numpy as np
import pytest
from test_reinforce import cartpole, random_theta

from npg import a3c as module
from npg.a3c import (
    actor_learner,
    algorithm_s3,
    asynchronous_gradients,
    mean_of,
    parallel_a2c,
    rollout_gradient,
)
from npg.actor_critic import a2c, advantage_gradient
from npg.distributions import Categorical
from npg.network import MLP
from npg.optimizers import SGD, Adam
from npg.policy import ActorCritic, Critic, Policy, SharedActorCritic

GAMMA, T_MAX = 0.9, 7
MODEL = ActorCritic(Policy(MLP((4, 4, 2)), Categorical(2)), Critic(MLP((4, 3, 1))))
OBJECTIVE = {"gamma": GAMMA, "lam": 1.0, "value_coef": 0.4, "entropy_coef": 0.1, "standardise": False}


def cartpoles(n, *seeds):
    """A sampler of short episodes: some terminate, the others are truncated after 13 steps."""
    return cartpole(*seeds, n=n)


def gradients_here(samplers, **objective):
    """`gradients` of `parallel_a2c`: the workers compute one after another, in this process."""
    options = {**OBJECTIVE, **objective}
    return lambda theta: [rollout_gradient(sampler, MODEL, theta, n_steps=T_MAX, **options) for sampler in samplers]


# Synchronous


@pytest.mark.parametrize("standardise", [False, True])
def test_one_worker_is_serial_a2c_to_the_last_bit(standardise):
    theta = random_theta(MODEL).astype(np.float32)
    serial, parallel = theta.copy(), theta.copy()
    adam, twin = Adam(serial, 0.01), Adam(parallel, 0.01)
    options = {**OBJECTIVE, "n_steps": T_MAX, "standardise": standardise}
    expected = a2c(cartpoles(3, 5), MODEL, serial, adam, max_grad_norm=0.5, **options)
    gradients = gradients_here([cartpoles(3, 5)], standardise=standardise)
    updates = parallel_a2c(gradients, parallel, twin, max_grad_norm=0.5)
    for _ in range(20):
        update, twins = next(expected), next(updates)
        np.testing.assert_array_equal(serial, parallel)
        for name in ("grad_norm", "entropy", "explained_variance"):
            assert update[name] == twins[name]
        assert update["rollout"].episode_returns == twins["rollout"].episode_returns
        assert update["rollout"].env_steps == twins["rollout"].env_steps
    np.testing.assert_array_equal(adam.v, twin.v)
    assert not np.array_equal(theta, serial)


def test_the_gradients_of_several_workers_are_averaged_at_the_same_theta():
    theta = random_theta(MODEL)
    expected = theta.copy()
    gradients = gradients_here([cartpoles(3, 5, k) for k in range(3)])
    updates = parallel_a2c(gradients, theta, SGD(theta, 0.1), max_grad_norm=None)
    samplers = [cartpoles(3, 5, k) for k in range(3)]
    for _ in range(5):
        update = next(updates)
        rollouts = [sampler.steps(MODEL, expected, T_MAX) for sampler in samplers]
        gradients = [advantage_gradient(rollout, MODEL, expected, **OBJECTIVE)[0] for rollout in rollouts]
        expected += 0.1 * np.mean(gradients, axis=0)
        np.testing.assert_allclose(theta, expected, rtol=0, atol=1e-14)
        steps = [rollout.env_steps for rollout in rollouts]
        assert update["worker_steps"] == steps and update["rollout"].env_steps == sum(steps)
        assert update["rollout"].episode_returns == sum((rollout.episode_returns for rollout in rollouts), [])


def test_the_mean_leaves_out_a_nan_explained_variance_but_hides_no_other_nan():
    nan = np.nan
    columns = {"grad_norm": (1.0, 3.0, 5.0), "explained_variance": (nan, 0.5, -0.1)}
    measures = [dict(zip(columns, row)) for row in zip(*columns.values())]
    assert mean_of(measures) == pytest.approx({"grad_norm": 3.0, "explained_variance": 0.2})
    spoilt = mean_of([{"grad_norm": nan, "explained_variance": 0.5}, {"grad_norm": 1.0, "explained_variance": 0.1}])
    assert np.isnan(spoilt["grad_norm"]) and spoilt["explained_variance"] == pytest.approx(0.3)
    assert np.isnan(mean_of([{"explained_variance": nan}] * 2)["explained_variance"])


# Algorithm S3


def pseudo_code(theta, alpha, beta, value_coef, n_segments):
    """The pseudo-code, one step at a time, in the environment of `cartpoles(1, 5)`. Yields θ and T."""
    env = cartpoles(1, 5)
    (s, _), over, T = env.envs.reset(seed=env.seed), False, 0
    for _ in range(n_segments):
        theta_copy, segment, terminal = theta.copy(), [], False
        while True:
            if over:  # the reset row: an action is drawn but has no effect
                s, *_ = env.envs.step(MODEL.act(theta_copy, s, env.rng))
            a = MODEL.act(theta_copy, s, env.rng)
            s_next, r, (terminal,), (truncated,), _ = env.envs.step(a)
            segment.append((s.copy(), a, r.astype(np.float32).astype(float)))  # rollouts store float32
            s, over, T = s_next.copy(), terminal or truncated, T + 1
            if over or len(segment) == T_MAX:
                break
        R = 0 if terminal else MODEL.value(theta_copy, s)
        dtheta = np.zeros_like(theta)
        for s_i, a_i, r_i in reversed(segment):
            R = r_i + GAMMA * R
            V = MODEL.value(theta_copy, s_i)
            dtheta += MODEL.grad_log_prob(theta_copy, s_i, a_i, R - V, beta)
            dtheta -= value_coef * MODEL.grad_loss(theta_copy, s_i, R)
        theta = theta + alpha * dtheta / len(segment)
        yield theta, T


def test_one_actor_learner_is_algorithm_s3():
    theta = random_theta(MODEL)
    start, options = theta.copy(), {**OBJECTIVE, "n_steps": T_MAX, "max_grad_norm": None}
    updates, steps = actor_learner(cartpoles(1, 5), MODEL, theta, SGD(theta, 0.05), **options), 0
    for expected, T in pseudo_code(start, 0.05, 0.1, 0.4, n_segments=30):
        update = next(updates)
        np.testing.assert_allclose(theta, expected, rtol=0, atol=1e-12)
        steps += update["rollout"].env_steps
        assert steps == T
    assert np.max(abs(start - expected)) > 1e-3


class Alone(gymnasium.Env):
    """The environment of `cartpoles(1, 5)` as a single environment. Its reset draws an action, as a reset row does."""

    def __init__(self):
        self.sampler, self.begun = cartpoles(1, 5), False

    def reset(self, *, seed=None, options=None):
        if not self.begun:
            self.begun, (obs, _) = True, self.sampler.envs.reset(seed=self.sampler.seed)
        else:
            idle = MODEL.act(random_theta(MODEL), np.zeros((1, 4)), self.sampler.rng)
            obs, *_ = self.sampler.envs.step(idle)
        return obs[0].copy(), {}

    def step(self, action):
        obs, rew, terminated, truncated, _ = self.sampler.envs.step(np.array([action]))
        return obs[0].copy(), float(np.float32(rew[0])), bool(terminated[0]), bool(truncated[0]), {}


def test_a_segment_has_at_least_one_step():
    with pytest.raises(ValueError, match="t_max: expected at least 1, got 0"):
        next(algorithm_s3(None, MODEL, np.zeros(MODEL.size), None, t_max=0, learning_rate=0.1))


def test_the_slide_line_by_line_is_algorithm_s3():
    theta, env = random_theta(MODEL), Alone()
    start, options = theta.copy(), {"gamma": GAMMA, "value_coef": 0.4, "entropy_coef": 0.1}
    slide = algorithm_s3(env, MODEL, theta, env.sampler.rng, t_max=T_MAX, learning_rate=0.05, **options)
    for expected, T in pseudo_code(start, 0.05, 0.1, 0.4, n_segments=30):
        assert next(slide) == T
        np.testing.assert_allclose(theta, expected, rtol=0, atol=1e-12)
    assert np.max(abs(start - expected)) > 1e-3


@pytest.mark.parametrize("model", [MODEL, SharedActorCritic(MLP((4, 5, 3)), Categorical(2))])
def test_a_gradient_taken_at_the_copy_that_acted_is_applied_to_the_shared_theta(model):
    theta = random_theta(model)
    sampler, twin, others = cartpoles(3, 5), cartpoles(3, 5), np.random.default_rng(2)
    segment = sampler.segment

    def meanwhile(model, copied, t_max):
        theta[...] += 0.3 * others.standard_normal(theta.size)  # the updates of other workers
        rollout = segment(model, copied, t_max)
        theta[...] += 0.3 * others.standard_normal(theta.size)
        return rollout

    sampler.segment = meanwhile
    options = {**OBJECTIVE, "n_steps": T_MAX, "max_grad_norm": None}
    updates = actor_learner(sampler, model, theta, SGD(theta, 0.05), **options)
    expected, same_others = theta.copy(), np.random.default_rng(2)
    for _ in range(3):
        copied = expected.copy()
        gradient, _ = advantage_gradient(twin.segment(model, copied, T_MAX), model, copied, **OBJECTIVE)
        for _ in range(2):
            expected += 0.3 * same_others.standard_normal(theta.size)
        assert np.max(abs(expected - copied)) > 0.3
        expected += 0.05 * gradient
        next(updates)
        np.testing.assert_allclose(theta, expected, rtol=0, atol=1e-12)


def test_gradients_longer_than_the_limit_are_scaled_down():
    theta = random_theta(MODEL)
    start = theta.copy()
    update = next(actor_learner(cartpoles(3, 5), MODEL, theta, SGD(theta, 1.0), max_grad_norm=0.01, **OBJECTIVE))
    assert update["grad_norm"] > 0.01
    assert np.linalg.norm(theta - start) == pytest.approx(0.01)


# Asynchronous gradients


class OneByOne:
    """Workers compute at once, but their results arrive in the order `order`."""

    def __init__(self, order, monkeypatch):
        self.order, self.finished, self.begun, wait = iter(order), {}, [], module.wait
        self.samplers = [cartpoles(3, 5, k) for k in range(2)]
        monkeypatch.setattr(module, "wait", lambda *args, **kwargs: self.finish_next() or wait(*args, **kwargs))

    def submit(self, k, theta, update):
        self.begun.append((k, update))
        self.finished[k] = Future(), rollout_gradient(self.samplers[k], MODEL, theta, n_steps=T_MAX, **OBJECTIVE)
        return self.finished[k][0]

    def finish_next(self):
        future, value = self.finished.pop(next(self.order))
        future.set_result(value)


def test_gradients_are_applied_as_they_arrive_and_their_staleness_is_counted(monkeypatch):
    order = [0, 0, 1, 0, 1, 1]
    theta = random_theta(MODEL)
    workers = OneByOne(order, monkeypatch)
    updates = asynchronous_gradients(workers.submit, 2, theta, SGD(theta, 0.1), max_grad_norm=None)
    samplers, expected = [cartpoles(3, 5, k) for k in range(2)], random_theta(MODEL)
    known = [(expected.copy(), 0)] * 2
    for u, k in enumerate(order):
        update = next(updates)
        its_theta, begun = known[k]
        rollout = samplers[k].steps(MODEL, its_theta, T_MAX)
        expected = expected + 0.1 * advantage_gradient(rollout, MODEL, its_theta, **OBJECTIVE)[0]
        np.testing.assert_allclose(theta, expected, rtol=0, atol=1e-14)
        assert update["staleness"] == u - begun
        assert update["worker_steps"] == [rollout.env_steps * (k == 0), rollout.env_steps * (k == 1)]
        known[k] = expected, u + 1
    assert [u for u, k in enumerate(order) if k == 1] == [2, 4, 5]  # the first of them is 2 updates late
    assert workers.begun == [(0, 0), (1, 0), *((k, u + 1) for u, k in enumerate(order))]  # a worker's calls all differ


def test_one_worker_is_never_stale_and_is_a2c():
    theta = random_theta(MODEL)
    serial, sampler = theta.copy(), cartpoles(3, 5)

    def submit(k, theta, update):
        future = Future()
        future.set_result(rollout_gradient(sampler, MODEL, theta, n_steps=T_MAX, **OBJECTIVE))
        return future

    updates = asynchronous_gradients(submit, 1, theta, SGD(theta, 0.1))
    expected = a2c(cartpoles(3, 5), MODEL, serial, SGD(theta, 0.1), n_steps=T_MAX, **OBJECTIVE)
    for _ in range(5):
        assert next(updates)["staleness"] == 0 and next(expected)
        np.testing.assert_array_equal(theta, serial)
