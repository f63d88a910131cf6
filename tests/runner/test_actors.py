"""What workers share and keep: the same learning as in one process, whoever dies, hangs or raises."""

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
from test_a3c import MODEL, OBJECTIVE, T_MAX, cartpoles, pseudo_code
from test_reinforce import cartpole, random_theta

from npg.a3c import actor_learner, asynchronous_gradients, parallel_a2c, rollout_gradient
from npg.actor_critic import a2c, advantage_gradient
from npg.optimizers import SGD, Adam, RMSProp
from npg.rollout import Sampler
from npg.runner import actors as module
from npg.runner.actors import Actor, gradients_of, learn_round, rounds, share, start_pool, worker_gradient
from npg.runner.environments import make_envs
from npg.runner.workers import Pool, WorkerError

METHODS = [m for m in ("fork", "forkserver", "spawn") if m in multiprocessing.get_all_start_methods()]

_runs = iter(range(10**9))


def actors(n=1, envs=3, seeds=(5,), make_sampler=None, learn=rollout_gradient, **settings):
    make_sampler = make_sampler or functools.partial(cartpoles, envs)
    learn = functools.partial(learn, **{"n_steps": T_MAX, **OBJECTIVE, **settings})
    run = f"{os.getpid()}-{next(_runs)}"
    return [Actor(run + f"-{k}", make_sampler, learn, MODEL, seeds, k) for k in range(n)]


def learners(n=1, max_grad_norm=None, **options):
    """Actors of Algorithm S3."""
    return actors(n, learn=actor_learner, max_grad_norm=max_grad_norm, **options)


class Here(Executor):
    """Calls are made at once, in this process."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def learn_here(shared, actors):
    """`learn_round` as in a worker process."""
    module._receive(shared, actors)
    return learn_round


# Synchronous


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("executor", [Here, functools.partial(Pool, 1)], ids=["here", "pool"])
def test_one_worker_is_serial_a2c_to_the_last_bit(executor, standardise):
    theta = random_theta(MODEL).astype(np.float32)
    serial, parallel = theta.copy(), theta.copy()
    adam, twin = Adam(serial, 0.01), Adam(parallel, 0.01)
    options = {**OBJECTIVE, "n_steps": T_MAX, "standardise": standardise}
    expected = a2c(cartpoles(3, 5), MODEL, serial, adam, max_grad_norm=0.5, **options)
    with executor() as workers:
        gradients = gradients_of(workers, actors(standardise=standardise))
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


def test_every_worker_has_an_equal_part_in_an_update():
    theta = random_theta(MODEL)
    expected = theta.copy()
    updates = parallel_a2c(gradients_of(Here(), actors(3)), theta, SGD(theta, 0.1), max_grad_norm=None)
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


def test_rounds_of_one_segment_are_algorithm_s3():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 0.05), 1)
    learn = learn_here(shared, learners(envs=1))
    for expected, T in pseudo_code(theta.copy(), 0.05, 0.1, 0.4, n_segments=30):
        rollout, measures = learn(0, t_stop=0, learning_rate=0.05)  # one segment
        np.testing.assert_allclose(shared.theta, expected, rtol=0, atol=1e-12)
        assert shared.steps.tolist() == [T]
        assert [m["staleness"] for m in measures] == [0]
    assert shared.updates.tolist() == [30]
    assert np.max(abs(theta - expected)) > 1e-3


def test_a_round_goes_on_until_all_together_have_made_the_steps():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 0.05), 3)
    learn = learn_here(shared, learners(3))
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
        learn_here(shared, learners())(0, t_stop=0, learning_rate=rate)
        steps.append(shared.theta - theta)
    np.testing.assert_allclose(2 * steps[0], steps[1], rtol=1e-12, atol=1e-14)


def test_gradients_longer_than_the_limit_are_scaled_down():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 1.0), 1)
    _, measures = learn_here(shared, learners(max_grad_norm=0.01))(0, 0, learning_rate=1.0)
    assert measures[0]["grad_norm"] > 0.01
    assert np.linalg.norm(shared.theta - theta) == pytest.approx(0.01)


def test_statistics_are_shared_or_every_workers_own():
    theta = random_theta(MODEL)
    moved = {}
    for statistics in ("shared", "own"):
        shared = share(theta, RMSProp(theta, 0.01), 2, statistics)
        learn = learn_here(shared, learners(2))
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
    learn_here(shared, learners())(0, 0, 0.01)
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
    learn = learn_here(shared, learners(make_sampler=cartpoles_paid_in_nan))
    rollout, measures = learn(0, t_stop=10**6, learning_rate=0.01)
    assert np.isnan(measures[-1]["grad_norm"]) and np.isfinite([m["grad_norm"] for m in measures[:-1]]).all()
    assert np.isnan(rollout.rew).any() and np.isfinite(rollout.obs).all() and rollout.obs.size
    assert np.isfinite(shared.theta).all()


# The pool


def train_on_pool(n, n_rounds, report_every=400, make_sampler=None, statistics="shared", **options):
    """The updates of a few `rounds`, what is shared, and how many workers were replaced."""
    theta = random_theta(MODEL).astype(np.float32)
    shared = share(theta, RMSProp(theta, 0.01), n, statistics)
    with start_pool(learners(n, 0.5, make_sampler=make_sampler), shared, **options) as pool:
        updates = rounds(pool, shared, report_every=report_every)
        updates = [next(updates) for _ in range(n_rounds)]
        return updates, shared, pool.restarted


@pytest.mark.parametrize("method", METHODS)
def test_workers_of_every_start_method_learn_in_the_same_memory(method):
    updates, shared, restarted = train_on_pool(2, n_rounds=3, start_method=method)
    assert restarted == 0 and np.all(shared.updates > 0)
    for update in updates:
        assert 400 <= update["rollout"].env_steps == sum(update["worker_steps"]) and min(update["worker_steps"]) > 0
        assert 0 <= update["staleness"] and np.isfinite(list(v for v in update.values() if isinstance(v, float))).all()
    assert not np.array_equal(shared.theta, random_theta(MODEL).astype(np.float32))


def test_one_worker_on_a_pool_is_one_worker_here():
    *_, update = train_on_pool(1, n_rounds=3)
    theta = random_theta(MODEL).astype(np.float32)
    shared = share(theta, RMSProp(theta, 0.01), 1)
    learn = learn_here(shared, learners(max_grad_norm=0.5))
    for _ in range(3):
        learn(0, shared.steps.sum() + 400, 0.01)
    np.testing.assert_array_equal(shared.theta, train_on_pool(1, n_rounds=3)[1].theta)


@pytest.mark.parametrize("statistics", ["shared", "own"])
def test_workers_killed_again_and_again_lose_no_count_and_spoil_nothing(statistics):
    rng, over = np.random.default_rng(0), threading.Event()

    def kill():
        while not over.wait(rng.uniform(0.1, 0.3)):
            if children := multiprocessing.active_children():
                os.kill(children[rng.integers(len(children))].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        updates, shared, restarted = train_on_pool(
            2, n_rounds=15, report_every=1000, statistics=statistics, retries=20, start_method="fork"
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
    expected = a2c(cartpoles(3, 5), MODEL, serial, Adam(serial, 0.01), n_steps=T_MAX, **OBJECTIVE)
    one, *_ = client.scheduler_info()["workers"]
    executor = client.get_executor(pure=False, workers=[one])
    updates = parallel_a2c(gradients_of(executor, actors()), parallel, Adam(parallel, 0.01))
    for _ in range(10):
        next(expected), next(updates)
        np.testing.assert_array_equal(serial, parallel)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [parallel_a2c, asynchronous_gradients])
def test_a_dask_worker_killed_in_the_middle_costs_nothing_but_time(client, algorithm):
    theta = random_theta(MODEL).astype(np.float32)
    executor, workers, adam = client.get_executor(pure=False, retries=3), actors(2), Adam(theta, 0.01)
    if algorithm is parallel_a2c:
        updates = parallel_a2c(gradients_of(executor, workers), theta, adam)
    else:
        submit = lambda k, theta, update: executor.submit(worker_gradient, workers[k], theta, update)
        updates = asynchronous_gradients(submit, 2, theta, adam)
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
