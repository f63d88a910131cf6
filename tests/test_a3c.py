"""Actor-learners: one of them is A2C, or Algorithm S3, to the last bit; several are what their sum should be."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import gymnasium
import numpy as np
import pytest
from helpers import check_both
from test_reinforce import cartpole, random_theta

from npg import a3c as module
from npg.a3c import (
    Actor,
    a3c,
    actor_learner,
    asynchronous_gradients,
    mean_of,
    parallel_a2c,
    parallel_play,
    share,
    start_pool,
    worker_gradient,
)
from npg.actor_critic import a2c, advantage_gradient
from npg.distributions import Categorical, log_softmax
from npg.exploration import exploring
from npg.network import MLP
from npg.optimizers import SGD, Adam, RMSProp
from npg.policy import ActorCritic, Critic, Policy, SharedActorCritic
from npg.rollout import Sampler, play
from npg.runner.environments import make_envs
from npg.runner.workers import Pool, WorkerError

GAMMA, T_MAX = 0.9, 7
MODEL = ActorCritic(Policy(MLP((4, 4, 2)), Categorical(2)), Critic(MLP((4, 3, 1))))
OBJECTIVE = {"gamma": GAMMA, "lam": 1.0, "value_weight": 0.4, "entropy_weight": 0.1, "standardise": False}
METHODS = [m for m in ("fork", "forkserver", "spawn") if m in multiprocessing.get_all_start_methods()]


def cartpoles(n, *seeds):
    """A function that pickles; episodes of at most 13 steps, so that they end in both ways."""
    return cartpole(*seeds, n=n)


_runs = iter(range(10**9))


def actors(n=1, envs=3, seeds=(5,), make_sampler=None, n_steps=T_MAX, model=MODEL, **objective):
    make_sampler = make_sampler or functools.partial(cartpoles, envs)
    run = f"{os.getpid()}-{next(_runs)}"
    return [Actor(run + f"-{k}", make_sampler, model, {**OBJECTIVE, **objective}, n_steps, seeds, k) for k in range(n)]


class Here(Executor):
    """Calls are made at once, in this process."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def learn_here(shared, actors, lock=None):
    """`actor_learner` as in a worker process."""
    module._receive(shared, actors, lock)
    return actor_learner


def nth(updates, n):
    for _ in range(n):
        update = next(updates)
    return update


# Synchronous


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("executor", [Here, functools.partial(Pool, 1)], ids=["here", "pool"])
def test_one_worker_is_serial_a2c_to_the_last_bit(executor, standardise):
    theta = random_theta(MODEL).astype(np.float32)
    serial, parallel = theta.copy(), theta.copy()
    adam, twin = Adam(serial, 0.01), Adam(parallel, 0.01)
    options = {**OBJECTIVE, "standardise": standardise}
    expected = a2c(cartpoles(3, 5), MODEL, serial, adam, T_MAX, max_grad_norm=0.5, **options)
    with executor() as workers:
        updates = parallel_a2c(workers, actors(standardise=standardise), parallel, twin, max_grad_norm=0.5)
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
    updates = parallel_a2c(Here(), actors(3), theta, SGD(theta, 0.1), max_grad_norm=None)
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


def test_a_segment_without_an_explained_variance_has_no_part_in_its_mean_but_nothing_else_that_is_nan_is_hidden():
    nan = np.nan
    columns = {"grad_norm": (1.0, 3.0, 5.0), "explained_variance": (nan, 0.5, -0.1)}
    measures = [dict(zip(columns, row)) for row in zip(*columns.values())]
    assert mean_of(measures) == pytest.approx({"grad_norm": 3.0, "explained_variance": 0.2})
    spoilt = mean_of([{"grad_norm": nan, "explained_variance": 0.5}, {"grad_norm": 1.0, "explained_variance": 0.1}])
    assert np.isnan(spoilt["grad_norm"]) and spoilt["explained_variance"] == pytest.approx(0.3)
    assert np.isnan(mean_of([{"explained_variance": nan}] * 2)["explained_variance"])


def test_each_worker_has_episodes_of_its_own():
    first, second = (worker_gradient(actor, random_theta(MODEL), 0)[0] for actor in actors(2))
    assert not np.array_equal(first, second)
    same, again = (worker_gradient(actors()[0], random_theta(MODEL), 0)[0] for _ in range(2))
    np.testing.assert_array_equal(same, again)


def test_new_seeds_begin_new_episodes_and_those_of_a_lost_worker_are_not_its_first_ones():
    theta = random_theta(MODEL)
    actor = actors()[0]
    first = worker_gradient(actor, theta, 0)[0]
    reseeded = worker_gradient(actor._replace(seeds=(5, 1)), theta, 1)[0]
    np.testing.assert_array_equal(reseeded, worker_gradient(actors(seeds=(5, 1))[0], theta, 0)[0])
    replacement = worker_gradient(actors()[0], theta, 7)[0]
    assert not np.array_equal(first, reseeded) and not np.array_equal(first, replacement)


def test_no_two_processes_of_a_cluster_play_the_same_episodes_whichever_actor_calls_them():
    theta, workers = random_theta(MODEL), [actor._replace(run="one name for both") for actor in actors(2)]
    with ThreadPoolExecutor(1) as here, ThreadPoolExecutor(1) as there:  # each remembers what is its own
        gradient = lambda process, actor, update: process.submit(worker_gradient, actor, theta, update).result()[0]
        gradient(here, workers[0], 0), gradient(there, workers[1], 0)
        actor = workers[0]._replace(seeds=(5, 1))
        assert not np.array_equal(gradient(here, actor, 1), gradient(there, actor, 2))


# Algorithm S3


def algorithm_s3(theta, alpha, beta, value_weight, n_segments):
    """The pseudo-code, a step at a time, in the environment of `cartpoles(1, 5)`; yields θ and T."""
    env = cartpoles(1, 5)
    s, over, T = env.obs, False, 0
    for _ in range(n_segments):
        theta_copy, segment, terminal = theta.copy(), [], False
        while True:
            if over:  # the row of the reset, in which an action is drawn but not made
                s, *_ = env.envs.step(MODEL.act(theta_copy, s, env.rng))
            a = MODEL.act(theta_copy, s, env.rng)
            s_next, r, (terminal,), (truncated,), _ = env.envs.step(a)
            segment.append((s.copy(), a, r.astype(np.float32).astype(float)))  # as rollouts round them
            s, over, T = s_next.copy(), terminal or truncated, T + 1
            if over or len(segment) == T_MAX:
                break
        R = 0 if terminal else MODEL.value(theta_copy, s)
        dtheta = np.zeros_like(theta)
        for s_i, a_i, r_i in reversed(segment):
            R = r_i + GAMMA * R
            V = MODEL.value(theta_copy, s_i)
            dtheta += MODEL.grad_log_prob(theta_copy, s_i, a_i, R - V, beta)
            dtheta -= value_weight * MODEL.grad_loss(theta_copy, s_i, R)
        theta = theta + alpha * dtheta / len(segment)
        yield theta, T


def test_one_actor_learner_is_algorithm_s3():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 0.05), 1)
    learn = learn_here(shared, actors(envs=1))
    for expected, T in algorithm_s3(theta, 0.05, 0.1, 0.4, n_segments=30):
        rollout, measures = learn(0, t_stop=0, learning_rate=0.05)  # one segment
        np.testing.assert_allclose(shared.theta, expected, rtol=0, atol=1e-12)
        assert shared.steps.tolist() == [T]
        assert [m["staleness"] for m in measures] == [0]
    assert shared.updates.tolist() == [30]
    assert np.max(abs(theta - expected)) > 1e-3


def test_an_actor_learner_goes_on_until_all_together_have_made_the_steps():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 0.05), 3)
    learn = learn_here(shared, actors(3))
    shared.steps[:] = 0, 100, 60
    rollout, measures = learn(0, t_stop=300, learning_rate=0.05)
    assert 140 <= rollout.env_steps < 140 + 3 * T_MAX and shared.steps.tolist() == [rollout.env_steps, 100, 60]
    assert shared.updates.tolist() == [len(measures), 0, 0] and len(measures) >= 140 / (3 * T_MAX)
    assert len(rollout.episode_returns) == len(rollout.episode_lengths) > 1 and rollout.obs.size == 0
    again, measures = learn(1, t_stop=300, learning_rate=0.05)
    assert len(measures) == 1 and shared.steps[1] == 100 + again.env_steps  # nobody comes back with empty hands


def test_the_learning_rate_of_the_round_is_the_one_in_use():
    theta = random_theta(MODEL)
    steps = []
    for rate in (0.05, 0.1):
        shared = share(theta, SGD(theta, 1.0), 1)
        learn_here(shared, actors())(0, t_stop=0, learning_rate=rate)
        steps.append(shared.theta - theta)
    np.testing.assert_allclose(2 * steps[0], steps[1], rtol=1e-12, atol=1e-14)


def test_gradients_longer_than_the_limit_are_scaled_down():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 1.0), 1)
    _, measures = learn_here(shared, actors())(0, 0, learning_rate=1.0, max_grad_norm=0.01)
    assert measures[0]["grad_norm"] > 0.01
    assert np.linalg.norm(shared.theta - theta) == pytest.approx(0.01)


def test_statistics_are_shared_or_every_workers_own():
    theta = random_theta(MODEL)
    moved = {}
    for statistics in ("shared", "own"):
        shared = share(theta, RMSProp(theta, 0.01), 2, statistics)
        learn = learn_here(shared, actors(2))
        learn(0, 0, 0.01)
        assert np.any(shared.optimizers[0].v)
        moved[statistics] = np.any(shared.optimizers[1].v)
    assert moved == {"shared": True, "own": False}
    with pytest.raises(ValueError, match="statistics: expected 'shared' or 'own', got 'mine'"):
        share(theta, RMSProp(theta, 0.01), 2, "mine")


def test_sharing_copies_and_leaves_the_original_alone():
    theta = random_theta(MODEL)
    original, optimizer = theta.copy(), Adam(theta, 0.01)
    shared = share(theta, optimizer, 1)
    learn_here(shared, actors())(0, 0, 0.01)
    np.testing.assert_array_equal(theta, original)
    assert not np.any(optimizer.m) and np.any(shared.optimizers[0].m) and shared.optimizers[0].t == 1


class PaidInNan(gymnasium.vector.VectorWrapper):
    """After 30 steps rewards are NaN."""

    def __init__(self, env):
        super().__init__(env)
        self.t = 0

    def step(self, act):
        obs, rew, *rest = self.env.step(act)
        self.t += 1
        return obs, rew * (1 if self.t < 30 else np.nan), *rest


def cartpoles_paid_in_nan(*seeds):
    return Sampler(PaidInNan(make_envs("CartPole-v1", 3)), *seeds)


def test_a_gradient_that_is_not_finite_is_not_applied_and_what_caused_it_comes_back():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 0.01), 1)
    learn = learn_here(shared, actors(make_sampler=cartpoles_paid_in_nan))
    rollout, measures = learn(0, t_stop=10**6, learning_rate=0.01)
    assert np.isnan(measures[-1]["grad_norm"]) and np.isfinite([m["grad_norm"] for m in measures[:-1]]).all()
    assert np.isnan(rollout.rew).any() and np.isfinite(rollout.obs).all() and rollout.obs.size
    assert np.isfinite(shared.theta).all()


# The pool


def train_on_pool(n, rounds, report_every=400, lock=None, make_sampler=None, statistics="shared", **options):
    """The updates of a few rounds of `a3c`, what is shared, and how many workers were replaced."""
    theta = random_theta(MODEL).astype(np.float32)
    shared = share(theta, RMSProp(theta, 0.01), n, statistics)
    with start_pool(actors(n, make_sampler=make_sampler), shared, lock, **options) as pool:
        updates = a3c(pool, shared, report_every)
        updates = [next(updates) for _ in range(rounds)]
        return updates, shared, pool.restarted


@pytest.mark.parametrize("method", METHODS)
def test_workers_of_every_start_method_learn_in_the_same_memory(method):
    updates, shared, restarted = train_on_pool(2, rounds=3, start_method=method)
    assert restarted == 0 and np.all(shared.updates > 0)
    for update in updates:
        assert 400 <= update["rollout"].env_steps == sum(update["worker_steps"]) and min(update["worker_steps"]) > 0
        assert 0 <= update["staleness"] and np.isfinite(list(v for v in update.values() if isinstance(v, float))).all()
    assert not np.array_equal(shared.theta, random_theta(MODEL).astype(np.float32))


def test_one_worker_on_a_pool_is_one_worker_here():
    *_, update = train_on_pool(1, rounds=3)
    theta = random_theta(MODEL).astype(np.float32)
    shared = share(theta, RMSProp(theta, 0.01), 1)
    learn = learn_here(shared, actors())
    for _ in range(3):
        learn(0, shared.steps.sum() + 400, 0.01, max_grad_norm=0.5)
    np.testing.assert_array_equal(shared.theta, train_on_pool(1, rounds=3)[1].theta)


@pytest.mark.parametrize("lock", [False, True])
@pytest.mark.parametrize("statistics", ["shared", "own"])
def test_workers_killed_again_and_again_lose_no_count_and_spoil_nothing(tmp_path, lock, statistics):
    rng, over = np.random.default_rng(0), threading.Event()

    def kill():
        while not over.wait(rng.uniform(0.1, 0.3)):
            if children := multiprocessing.active_children():
                os.kill(children[rng.integers(len(children))].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    path = tmp_path / "lock" if lock else None
    try:
        updates, shared, restarted = train_on_pool(
            2, rounds=15, report_every=1000, lock=path, statistics=statistics, retries=20, start_method="fork"
        )
    finally:
        over.set()
        killer.join()
    assert restarted > 0
    assert sum(update["rollout"].env_steps for update in updates) == shared.steps.sum() >= 15 * 1000
    assert np.isfinite(shared.theta).all() and all(np.isfinite(u["grad_norm"]) for u in updates)
    assert all(np.isfinite(optimizer.v).all() and np.all(optimizer.v >= 0) for optimizer in shared.optimizers)


class Faulty(Sampler):
    """Its third segment goes wrong, unless the file `once` exists, which is made first."""

    def __init__(self, fault, once, *seeds):
        super().__init__(cartpole(*seeds).envs, *seeds)
        self.fault, self.once, self.count = fault, once, 0

    def segment(self, *args):
        self.count += 1
        with contextlib.suppress(FileExistsError):
            if self.count == 3:
                if self.once:
                    self.once.touch(exist_ok=False)
                self.fault()
        return super().segment(*args)


def raises():
    raise OSError("the environment is on fire")


def hangs():
    threading.Event().wait()


def dies():
    os._exit(1)


@pytest.mark.parametrize("fault", [raises, hangs, dies])
def test_a_fault_costs_a_segment_and_a_new_worker(tmp_path, fault):
    make_sampler = functools.partial(Faulty, fault, tmp_path / "once")
    timeout = 3 if fault is hangs else 60
    updates, shared, restarted = train_on_pool(2, 4, make_sampler=make_sampler, timeout=timeout, start_method="fork")
    assert restarted == 1
    assert sum(update["rollout"].env_steps for update in updates) == shared.steps.sum() >= 4 * 400
    assert np.all(shared.updates > 3)


def test_a_fault_again_and_again_ends_the_training_and_says_why():
    with pytest.raises(WorkerError, match="on fire") as error:
        train_on_pool(2, 4, make_sampler=functools.partial(Faulty, raises, None), retries=1, start_method="fork")
    assert isinstance(error.value.__cause__, OSError)
    assert not multiprocessing.active_children()


def hold(path, held):
    with module._one_at_a_time(path):
        held.set()
        threading.Event().wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks by fcntl")
def test_a_lock_is_held_by_one_and_released_when_its_holder_is_killed(tmp_path):
    fork = multiprocessing.get_context("fork")
    holders = [(fork.Event(), tmp_path / "lock") for _ in range(2)]
    first, second = (fork.Process(target=hold, args=(path, held)) for held, path in holders)
    first.start()
    assert holders[0][0].wait(10)
    second.start()
    assert not holders[1][0].wait(0.3)
    first.kill()
    assert holders[1][0].wait(10)
    second.kill()
    first.join(), second.join()


# Gradients that arrive when they arrive


class OneByOne(Executor):
    """Calls are made at once, but each worker's result comes when its turn in `order` has come."""

    def __init__(self, order, monkeypatch):
        self.order, self.finished, wait = iter(order), {}, module.wait
        monkeypatch.setattr(module, "wait", lambda *args, **kwargs: self.finish_next() or wait(*args, **kwargs))

    def submit(self, fn, actor, *args):
        future = Future()
        self.finished[actor.k] = future, fn(actor, *args)
        return future

    def finish_next(self):
        future, value = self.finished.pop(next(self.order))
        future.set_result(value)


def test_gradients_are_applied_as_they_arrive_and_their_staleness_is_counted(monkeypatch):
    order = [0, 0, 1, 0, 1, 1]
    theta = random_theta(MODEL)
    executor = OneByOne(order, monkeypatch)
    updates = asynchronous_gradients(executor, actors(2), theta, SGD(theta, 0.1), max_grad_norm=None)
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


def test_one_worker_is_never_stale_and_is_a2c():
    theta = random_theta(MODEL)
    serial = theta.copy()
    updates = asynchronous_gradients(Here(), actors(1), theta, SGD(theta, 0.1))
    expected = a2c(cartpoles(3, 5), MODEL, serial, SGD(theta, 0.1), T_MAX, **OBJECTIVE)
    for _ in range(5):
        assert next(updates)["staleness"] == 0 and next(expected)
        np.testing.assert_array_equal(theta, serial)


# Exploration and evaluation


@pytest.mark.parametrize("model", [MODEL, SharedActorCritic(MLP((4, 5, 3)), Categorical(2))])
def test_a_worker_explores_as_it_was_told_and_is_scored_as_what_it_did(model):
    theta, obs = random_theta(model), np.random.default_rng(0).standard_normal((5, 4))
    act, weight = np.array([0, 1, 1, 0, 1]), np.arange(5.0)
    h = model.policy.params(model.actor(theta), obs)[0]
    pi = lambda h: np.exp(log_softmax(h))[np.arange(5), act]
    for epsilon, temperature in ((0.2, 1), (0, 4), (0.2, 4)):
        explorer = exploring(model, epsilon, temperature)
        b = (1 - epsilon) * pi(h / temperature) + epsilon / 2
        np.testing.assert_allclose(np.exp(explorer.log_prob(theta, obs, act)), b)
        entropy = lambda theta: np.sum(explorer.entropy(theta, obs))
        objective = lambda theta: np.sum(weight * explorer.log_prob(theta, obs, act)) + 0.1 * entropy(theta)
        score = lambda model: model.gradient(theta, obs, act, weight, np.zeros(5), 0.1)
        check_both(objective, theta, score(explorer))
        assert not np.allclose(score(explorer), score(model))
        np.testing.assert_array_equal(explorer.value(theta, obs), model.value(theta, obs))
    assert model.distribution is model.policy.distribution and isinstance(model.distribution, Categorical)
    np.testing.assert_array_equal(exploring(model).log_prob(theta, obs, act), model.log_prob(theta, obs, act))
    alone = exploring(model.policy, temperature=4).log_prob(model.actor(theta), obs, act)
    np.testing.assert_array_equal(alone, exploring(model, temperature=4).log_prob(theta, obs, act))


def test_an_evaluation_in_parts_is_what_its_parts_are():
    theta = random_theta(MODEL)
    returns = parallel_play(Here(), functools.partial(make_envs, "CartPole-v1"), MODEL, theta, 7, 3, 11, 2)
    parts = [
        play(make_envs("CartPole-v1", n), lambda obs: MODEL.act(theta, obs), n, 11, 2, j)[0]
        for j, n in enumerate((3, 2, 2))
    ]
    np.testing.assert_array_equal(returns, np.concatenate(parts))
    assert len(set(returns)) > 1


# A cluster: a real scheduler and workers in processes of their own, over TCP


@pytest.fixture
def client():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.mark.slow
def test_on_dask_one_worker_is_serial_a2c_to_the_last_bit(client):
    theta = random_theta(MODEL).astype(np.float32)
    serial, parallel = theta.copy(), theta.copy()
    expected = a2c(cartpoles(3, 5), MODEL, serial, Adam(serial, 0.01), T_MAX, **OBJECTIVE)
    one, *_ = client.scheduler_info()["workers"]
    executor = client.get_executor(pure=False, workers=[one])
    updates = parallel_a2c(executor, actors(), parallel, Adam(parallel, 0.01))
    for _ in range(10):
        next(expected), next(updates)
        np.testing.assert_array_equal(serial, parallel)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [parallel_a2c, asynchronous_gradients])
def test_a_dask_worker_killed_in_the_middle_costs_nothing_but_time(client, algorithm):
    theta = random_theta(MODEL).astype(np.float32)
    updates = algorithm(client.get_executor(pure=False, retries=3), actors(2), theta, Adam(theta, 0.01))
    pids = client.run(os.getpid)
    steps = 0
    for k in range(60):
        if k == 20:
            os.kill(next(iter(pids.values())), signal.SIGKILL)
        update = next(updates)
        steps += sum(update["worker_steps"])
        assert update["rollout"].env_steps == sum(update["worker_steps"]) > 0
        assert np.isfinite(update["grad_norm"])
    assert steps >= 60 * T_MAX and np.isfinite(theta).all()


@pytest.mark.slow
def test_an_evaluation_on_dask_is_the_one_here(client):
    make, theta = functools.partial(make_envs, "CartPole-v1"), random_theta(MODEL)
    returns = [
        parallel_play(executor, make, MODEL, theta, 7, 3, 11, 2) for executor in (Here(), client.get_executor())
    ]
    np.testing.assert_array_equal(*returns)
