"""Workers with shared memory and kept environments learn as one process does, also if workers die, hang or raise."""

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
from gymnasium.wrappers.utils import RunningMeanStd
from test_a3c import MODEL, OBJECTIVE, T_MAX, pseudo_code
from test_reinforce import cartpole, random_theta

from npg.a3c import actor_learner, asynchronous_gradients, parallel_a2c, rollout_gradient
from npg.actor_critic import a2c, advantage_gradient
from npg.distributions import Gaussian
from npg.network import MLP
from npg.optimizers import SGD, Adam, RMSProp
from npg.policy import ActorCritic, Critic, Policy
from npg.rollout import Sampler
from npg.runner import actors as module
from npg.runner import workers as pool_module
from npg.runner.actors import (
    Actor,
    Gradients,
    gradient_anywhere,
    learn_round,
    rounds,
    share,
    start_pool,
    worker_gradient,
    worker_state,
)
from npg.runner.environments import NormalisedElsewhere, ReplayableVectorEnv, make_envs, moments
from npg.runner.replaying import restore, state_of
from npg.runner.workers import Pool, WorkerError

METHODS = [m for m in ("fork", "forkserver", "spawn") if m in multiprocessing.get_all_start_methods()]

_runs = iter(range(10**9))


def cartpoles(n, *seeds):
    """As in test_a3c, but the environments can be replayed. This function can be pickled."""
    envs = cartpole(n=n).envs
    spaces = envs.single_observation_space, envs.single_action_space
    return Sampler(ReplayableVectorEnv(lambda: envs, n, *spaces), *seeds)


def actors(n=1, envs=3, seeds=(5,), make_sampler=None, learn=rollout_gradient, **settings):
    make_sampler = make_sampler or functools.partial(cartpoles, envs)
    learn = functools.partial(learn, **{"n_steps": T_MAX, **OBJECTIVE, **settings})
    run = f"{os.getpid()}-{next(_runs)}"
    return [Actor(run + f"-{k}", make_sampler, learn, MODEL, seeds, k) for k in range(n)]


def learners(n=1, max_grad_norm=None, **options):
    """Actors of Algorithm S3."""
    return actors(n, learn=actor_learner, max_grad_norm=max_grad_norm, **options)


class Here(Executor):
    """An executor that makes each call at once, in this process."""

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
        gradients = Gradients(workers, actors(standardise=standardise))
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
    updates = parallel_a2c(Gradients(Here(), actors(3)), theta, SGD(theta, 0.1), max_grad_norm=None)
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


def gradient_of(actor, theta, update):
    (dtheta, *_), *_ = worker_gradient(actor, theta, update)
    return dtheta


def test_each_worker_has_episodes_of_its_own():
    first, second = (gradient_of(actor, random_theta(MODEL), 0) for actor in actors(2))
    assert not np.array_equal(first, second)
    same, again = (gradient_of(actors()[0], random_theta(MODEL), 0) for _ in range(2))
    np.testing.assert_array_equal(same, again)


def test_a_process_computes_a_gradient_only_with_the_environments_as_they_are_before_that_update():
    theta, actor = random_theta(MODEL), actors()[0]
    assert worker_gradient(actor, theta, 1) is None  # it has no environments yet
    assert worker_gradient(actor, theta, 0) is not None
    assert worker_gradient(actor, theta, 2) is None and worker_gradient(actor._replace(run="other"), theta, 1) is None
    assert worker_gradient(actor, theta, 1) is not None
    with pytest.raises(AttributeError):
        worker_gradient(actor, "no theta", 2)
    assert worker_gradient(actor, theta, 2) is None  # they are in the middle of a rollout
    assert worker_gradient(None, theta, 0) is None


def test_a_worker_goes_on_from_a_state_whichever_process_it_is_in():
    theta, actor, twin = random_theta(MODEL), actors()[0], actors()[0]
    alone = cartpoles(3, 5)
    for _ in range(3):
        alone.steps(MODEL, theta, T_MAX)
    (dtheta, *_), news = worker_gradient(twin._replace(state=state_of(alone)), theta, 3)
    for update in range(3):
        gradient_of(actor, theta, update)
    np.testing.assert_array_equal(gradient_of(actor, theta, 3), dtheta)
    assert news["replayed"]


def test_a_worker_sends_only_the_new_part_of_its_log():
    theta, actor = random_theta(MODEL), actors()[0]
    for update in range(5):
        _, news = worker_gradient(actor, theta, update)
        ((_, chunks, _),) = news["stand"]["logs"]["whole"]
        assert sum(map(len, chunks)) == T_MAX and news["seen"] is None


def test_the_states_of_all_workers_are_those_of_their_samplers():
    theta, gradients = random_theta(MODEL), Gradients(Here(), actors(2))
    assert gradients.states() == [None, None]
    samplers = [cartpoles(3, 5, k) for k in range(2)]
    for _ in range(4):
        gradients(theta)
        for sampler in samplers:
            sampler.steps(MODEL, theta, T_MAX)
    for state, sampler in zip(gradients.states(), samplers):
        fresh = cartpoles(3, 9)
        assert restore(fresh, state)
        np.testing.assert_array_equal(fresh.obs, sampler.obs)
        np.testing.assert_array_equal(*(s.steps(MODEL, theta, 50).obs for s in (fresh, sampler)))


def test_it_does_not_matter_which_process_computes_a_workers_part():
    """Two processes take turns, so each often has environments that are out of date."""

    class TakingTurns(Executor):
        def __init__(self):
            self.processes, self.calls = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)], 0

        def submit(self, fn, /, *args):
            self.calls += 1
            return self.processes[self.calls // 3 % 2].submit(fn, *args)

    there, here, theta = Gradients(TakingTurns(), actors(2)), Gradients(Here(), actors(2)), random_theta(MODEL)
    for _ in range(8):
        for part, expected in zip(there(theta), here(theta), strict=True):
            np.testing.assert_array_equal(part[0], expected[0])
    assert there.replayed and there.executor.calls > 16


def test_workers_report_that_their_environments_did_not_come_back():
    theta, gradients = random_theta(MODEL), Gradients(Here(), actors())
    gradients(theta)
    (state,) = gradients.states()
    spoilt = actors()[0]._replace(state={**state, "reached": state["reached"] + 1})
    others = Gradients(Here(), [spoilt])
    others(theta)
    assert gradients.replayed and not others.replayed
    others(theta)
    assert not others.replayed


@pytest.mark.parametrize("env_id", ["CartPole-v1", pytest.param("Pendulum-v1", marks=pytest.mark.slow)])
def test_a_process_killed_between_updates_changes_no_bit(env_id):
    model, make_sampler = model_of(env_id), functools.partial(replayable, env_id)
    make = lambda: [actor._replace(model=model) for actor in actors(2, make_sampler=make_sampler)]
    whole, killed = (random_theta(model).astype(np.float32) for _ in range(2))
    expected = parallel_a2c(Gradients(Here(), make()), whole, Adam(whole, 0.01))
    with Pool(2, "fork") as pool:
        gradients = Gradients(pool, make())
        updates = parallel_a2c(gradients, killed, Adam(killed, 0.01))
        for k in range(12):
            if k in (2, 3, 7):
                multiprocessing.active_children()[k % 2].kill()
            if k == 9:
                for child in multiprocessing.active_children():
                    child.kill()
            update, twin = next(updates), next(expected)
            np.testing.assert_array_equal(killed, whole)
            assert update["rollout"].episode_returns == twin["rollout"].episode_returns
        assert pool.restarted == 5 and gradients.replayed


def model_of(env_id):
    if env_id == "CartPole-v1":
        return MODEL
    return ActorCritic(Policy(MLP((3, 4, 1)), Gaussian(1)), Critic(MLP((3, 3, 1))))


def replayable(env_id, *seeds):
    """A sampler of 3 environments. This function can be pickled."""
    envs = make_envs(env_id, 3)
    spaces = envs.single_observation_space, envs.single_action_space
    return Sampler(ReplayableVectorEnv(lambda: envs, 3, *spaces), *seeds)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("seed", range(3))
def test_processes_killed_at_any_moment_change_no_bit(env_id, seed):
    rng, over = np.random.default_rng(seed), threading.Event()
    model, make_sampler = model_of(env_id), functools.partial(replayable, env_id)
    make = lambda: [actor._replace(model=model) for actor in actors(2, make_sampler=make_sampler)]
    whole, killed = (random_theta(model).astype(np.float32) for _ in range(2))
    expected = parallel_a2c(Gradients(Here(), make()), whole, Adam(whole, 0.01))

    def kill():
        for _ in range(100):  # at most as often as a call is repeated
            if over.wait(rng.uniform(0.1, 0.6)):  # a replay must have time to end
                break
            if children := multiprocessing.active_children():
                children[rng.integers(len(children))].kill()

    killer = threading.Thread(target=kill, daemon=True)
    with Pool(2, "fork", retries=100) as pool:
        updates = parallel_a2c(Gradients(pool, make()), killed, Adam(killed, 0.01))
        killer.start()
        try:
            for _ in range(300):
                next(updates), next(expected)
                np.testing.assert_array_equal(killed, whole)
        finally:
            over.set()
            killer.join()
        assert pool.restarted > 0


# Normalised observations


def normalised(n, *seeds):
    """A sampler whose observations are normalised by the moments given to each call. This function can be pickled."""
    sampler = cartpoles(n, *seeds)
    sampler.envs = NormalisedElsewhere(sampler.envs)
    return sampler


@pytest.mark.parametrize("n", [1, 2])
def test_an_update_is_normalised_by_the_moments_of_all_earlier_observations(n):
    obs_rms, rollouts, seen = RunningMeanStd(shape=(4,)), [], []

    def only_look(sampler, model, theta, **settings):
        rollouts.append(sampler.steps(model, theta, T_MAX))
        return np.zeros_like(theta), rollouts[-1], {}

    workers = actors(n, make_sampler=functools.partial(normalised, 3), learn=only_look)
    gradients = Gradients(Here(), workers, obs_rms)
    for update in range(5):
        mean, var = obs_rms.mean.copy(), obs_rms.var.copy()
        gradients(random_theta(MODEL))
        for rollout in rollouts[-n:]:
            raw = rollout.obs * np.sqrt(var + 1e-8) + mean
            seen.extend(raw[1:] if update else raw)  # the first row was the last row of the rollout before
        assert np.all(np.abs(raw[0 if update == 0 else 1 :, :, 0]) < 3)  # positions of carts, in their unit
        every = np.concatenate(seen)
        np.testing.assert_allclose(obs_rms.mean, every.mean(axis=0), atol=1e-3)  # Gymnasium's start counts for 1e-4
        np.testing.assert_allclose(obs_rms.var, every.var(axis=0), rtol=1e-2, atol=1e-5)
        assert obs_rms.count == pytest.approx(len(every), abs=1e-3)


class Limits(Pool):
    """A pool that records the time limit of each `map`."""

    def map(self, fn, *iterables):
        self.seen = [*getattr(self, "seen", []), self.timeout]
        return super().map(fn, *iterables)


def test_only_a_call_that_replays_environments_may_take_any_time():
    theta = random_theta(MODEL)
    with Limits(1, "fork", timeout=50) as pool:
        gradients = Gradients(pool, actors())
        gradients(theta), gradients(theta)
        assert pool.seen == [50, 50]
        pool.kill_workers()  # as if the process had died
        gradients(theta)
        assert pool.seen[2:] == [50, None]  # the new process does not hold the environments; then it replays them
        again = Gradients(pool, [actors()[0]._replace(state=gradients.states()[0])])  # as after a resume
        again(theta), again(theta)
        assert pool.seen[4:] == [None, 50] and pool.timeout == 50


def test_before_its_first_round_a_worker_of_s3_may_replay_for_any_time():
    shared = share(random_theta(MODEL), SGD(random_theta(MODEL), 0.01), 1)
    with start_pool(learners(), shared, start_method="fork", timeout=50) as pool:
        limits = []
        pool.map = lambda fn, *its: limits.append((fn, pool.timeout)) or Pool.map(pool, fn, *its)
        next(rounds(pool, shared, report_every=10))
    assert limits[0] == (module.begin, None) and [limit for _, limit in limits[1:]] == [50]


def test_a_round_of_s3_is_normalised_by_the_moments_of_all_earlier_rounds():
    theta, obs_rms = random_theta(MODEL), RunningMeanStd(shape=(4,))
    shared = share(theta, SGD(theta, 0.01), 2)
    learn = learn_here(shared, learners(2, make_sampler=functools.partial(normalised, 3)))
    given = []

    class Recording(Here):
        def map(self, call, ks):
            if call is not module.begin:
                given.append(tuple(np.copy(x) for x in call.keywords["normal"]))
            return list(super().map(call, ks))

    updates = rounds(Recording(), shared, report_every=100, obs_rms=obs_rms)
    steps, begun = 0, 6  # 6 environments have a first observation each
    for k in range(4):
        before = moments(obs_rms)
        steps += next(updates)["rollout"].env_steps
        np.testing.assert_array_equal(given[k][0], before["obs_mean"])
        np.testing.assert_array_equal(given[k][1], before["obs_var"])
        assert steps + begun <= obs_rms.count < 1.2 * steps + begun + 1  # and the observations of resets
    assert learn is learn_round and not np.array_equal(given[1][0], given[3][0])


# Algorithm S3


def test_rounds_of_one_segment_are_algorithm_s3():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 0.05), 1)
    learn = learn_here(shared, learners(envs=1))
    for expected, T in pseudo_code(theta.copy(), 0.05, 0.1, 0.4, n_segments=30):
        _, measures, seen = learn(0, t_stop=0, learning_rate=0.05)  # one segment
        np.testing.assert_allclose(shared.theta, expected, rtol=0, atol=1e-12)
        assert shared.steps.tolist() == [T]
        assert [m["staleness"] for m in measures] == [0] and seen is None
    assert shared.updates.tolist() == [30]
    assert np.max(abs(theta - expected)) > 1e-3


def test_a_round_goes_on_until_all_together_have_made_the_steps():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 0.05), 3)
    learn = learn_here(shared, learners(3))
    shared.steps[:] = 0, 100, 60
    rollout, measures, _ = learn(0, t_stop=300, learning_rate=0.05)
    assert 140 <= rollout.env_steps < 140 + 3 * T_MAX and shared.steps.tolist() == [rollout.env_steps, 100, 60]
    assert shared.updates.tolist() == [len(measures), 0, 0] and len(measures) >= 140 / (3 * T_MAX)
    assert len(rollout.episode_returns) == len(rollout.episode_lengths) > 1 and rollout.obs.size == 0
    again, measures, _ = learn(1, t_stop=300, learning_rate=0.05)
    assert len(measures) == 1 and shared.steps[1] == 100 + again.env_steps  # each round makes at least one update


def test_the_learning_rate_of_the_round_is_the_one_in_use():
    theta = random_theta(MODEL)
    steps = []
    for rate in (0.05, 0.1):
        shared = share(theta, SGD(theta, 1.0), 1)
        learn_here(shared, learners())(0, t_stop=0, learning_rate=rate)
        steps.append(shared.theta - theta)
    np.testing.assert_allclose(2 * steps[0], steps[1], rtol=1e-12, atol=1e-14)


def test_optimizer_statistics_are_shared_or_separate():
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
    """After 30 steps, rewards are NaN."""

    def __init__(self, env):
        super().__init__(env)
        self.t = 0

    def step(self, act):
        obs, rew, *rest = self.env.step(act)
        self.t += 1
        return obs, rew * (1 if self.t < 30 else np.nan), *rest


def cartpoles_paid_in_nan(*seeds):
    return Sampler(PaidInNan(make_envs("CartPole-v1", 3)), *seeds)


def test_a_gradient_that_is_not_finite_is_not_applied_and_its_rollout_is_returned():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 0.01), 1)
    learn = learn_here(shared, learners(make_sampler=cartpoles_paid_in_nan))
    rollout, measures, _ = learn(0, t_stop=10**6, learning_rate=0.01)
    assert np.isnan(measures[-1]["grad_norm"]) and np.isfinite([m["grad_norm"] for m in measures[:-1]]).all()
    assert np.isnan(rollout.rew).any() and np.isfinite(rollout.obs).all() and rollout.obs.size
    assert np.isfinite(shared.theta).all()


def test_a_worker_of_s3_uses_a_saved_state_only_of_its_own_age():
    theta = random_theta(MODEL)
    shared = share(theta, SGD(theta, 0.05), 1)
    (actor,) = learners()
    learn_here(shared, [actor])(0, t_stop=100, learning_rate=0.05)
    state, same = worker_state(0)
    assert same and state["logs"]["whole"]["lengths"].sum() > 0
    moved, steps, firsts = np.array(shared.theta), int(shared.steps[0]), []
    for run, age in ("a fresh process", steps), ("another", steps + 1):
        twin = share(moved, SGD(theta, 0.05), 1)
        twin.steps[0] = steps
        learn_here(twin, [actor._replace(run=run, state=state, age=age)])(0, t_stop=0, learning_rate=0.05)
        assert worker_state(0)[1]
        firsts.append(np.array(twin.theta))
    module._receive(shared, [actor])
    learn_round(0, t_stop=0, learning_rate=0.05)
    np.testing.assert_array_equal(firsts[0], shared.theta)
    assert not np.array_equal(firsts[1], shared.theta)


# The pool


def train_on_pool(n, n_rounds, report_every=400, make_sampler=None, statistics="shared", **options):
    """Trains for some `rounds`: (updates, the `Shared` memory, number of replaced workers)."""
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
    theta = random_theta(MODEL).astype(np.float32)
    shared = share(theta, RMSProp(theta, 0.01), 1)
    learn = learn_here(shared, learners(max_grad_norm=0.5))
    for _ in range(3):
        learn(0, shared.steps.sum() + 400, 0.01)
    np.testing.assert_array_equal(shared.theta, train_on_pool(1, n_rounds=3)[1].theta)


@pytest.mark.parametrize("statistics", ["shared", "own"])
def test_killed_workers_spoil_neither_the_count_of_steps_nor_theta(statistics):
    rng, over, retries = np.random.default_rng(0), threading.Event(), 20

    def kill():
        for _ in range(retries):  # on a busy machine, one call might otherwise be killed more often than it is repeated
            if over.wait(rng.uniform(0.1, 0.3)):
                break
            if children := multiprocessing.active_children():
                os.kill(children[rng.integers(len(children))].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        updates, shared, restarted = train_on_pool(
            2, n_rounds=15, report_every=1000, statistics=statistics, retries=retries, start_method="fork"
        )
    finally:
        over.set()
        killer.join()
    assert restarted > 0
    assert sum(update["rollout"].env_steps for update in updates) == shared.steps.sum() >= 15 * 1000
    assert np.isfinite(shared.theta).all() and all(np.isfinite(u["grad_norm"]) for u in updates)
    assert all(np.isfinite(optimizer.v).all() and np.all(optimizer.v >= 0) for optimizer in shared.optimizers)


class Faulty(Sampler):
    """Its third segment fails. If a `folder` is given, this happens once only, and a file there counts the segments."""

    def __init__(self, fault, folder, *seeds):
        super().__init__(cartpole(*seeds).envs, *seeds)
        self.fault, self.folder, self.count = fault, folder, 0

    def segment(self, *args):
        self.count += 1
        if self.folder:
            with open(self.folder / "segments", "ab") as file:
                file.write(b".")
        with contextlib.suppress(FileExistsError):
            if self.count == 3:
                if self.folder:
                    (self.folder / "once").touch(exist_ok=False)
                self.fault()
        return super().segment(*args)


def raises():
    raise OSError("the environment is on fire")


def hangs():
    threading.Event().wait()


def dies():
    os._exit(1)


@pytest.mark.parametrize("fault", [raises, hangs, dies])
def test_a_fault_costs_a_segment_and_a_new_worker(tmp_path, fault, monkeypatch):
    monkeypatch.setattr(pool_module, "START_SECONDS", 0)  # after "fork" there is nothing to import
    make_sampler = functools.partial(Faulty, fault, tmp_path)
    timeout = 3 if fault is hangs else 60
    updates, shared, restarted = train_on_pool(2, 4, make_sampler=make_sampler, timeout=timeout, start_method="fork")
    assert restarted == 1
    assert sum(update["rollout"].env_steps for update in updates) == shared.steps.sum() >= 4 * 400
    assert np.all(shared.updates > 3) and shared.updates.sum() == (tmp_path / "segments").stat().st_size - 1


def test_a_fault_again_and_again_ends_the_training_and_says_why():
    with pytest.raises(WorkerError, match="on fire") as error:
        train_on_pool(2, 4, make_sampler=functools.partial(Faulty, raises, None), retries=1, start_method="fork")
    assert isinstance(error.value.__cause__, OSError)
    assert not multiprocessing.active_children()


# Asynchronous, on a cluster


def test_after_a_lost_process_a_sampler_does_not_repeat_its_first_episodes():
    theta = random_theta(MODEL)
    first, again, later = (gradient_anywhere(actors()[0], theta, update)[0] for update in (0, 0, 7))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, later)


def test_no_two_processes_of_a_cluster_play_the_same_episodes_whichever_actor_calls_them():
    theta, workers = random_theta(MODEL), [actor._replace(run="one name for both") for actor in actors(2)]
    with ThreadPoolExecutor(1) as here, ThreadPoolExecutor(1) as there:  # each keeps its own sampler
        gradient = lambda process, actor, update: process.submit(gradient_anywhere, actor, theta, update).result()[0]
        gradient(here, workers[0], 0), gradient(there, workers[1], 0)
        assert not np.array_equal(gradient(here, workers[0], 1), gradient(there, workers[0], 2))


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
    updates = parallel_a2c(Gradients(executor, actors()), parallel, Adam(parallel, 0.01))
    for _ in range(10):
        next(expected), next(updates)
        np.testing.assert_array_equal(serial, parallel)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [parallel_a2c, asynchronous_gradients])
def test_training_goes_on_after_a_dask_worker_is_killed(client, algorithm):
    theta = random_theta(MODEL).astype(np.float32)
    executor, workers, adam = client.get_executor(pure=False, retries=3), actors(2), Adam(theta, 0.01)
    if algorithm is parallel_a2c:
        updates = parallel_a2c(Gradients(executor, workers), theta, adam)
    else:
        workers = [actor._replace(run="one name for both") for actor in workers]  # each process has one sampler
        submit = lambda k, theta, update: executor.submit(gradient_anywhere, workers[k], theta, update)
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
