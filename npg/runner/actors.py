"""Runs `npg.a3c` in worker processes: the workers' environments, the shared memory, and the results that they return.

Environments cannot be sent between processes. So a worker process keeps its environments from one call to the next
(`npg.runner.workers.kept`).
"""

import contextlib
import copy
import functools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from npg.a3c import mean_of
from npg.optimizers import clip_norm, state
from npg.rollout import Rollout, joined
from npg.runner.environments import Log, merge
from npg.runner.replaying import packed, restore, state_of
from npg.runner.workers import Pool, kept, shared_array

ROUND_SECONDS = 10  # a round ends soon after this, so only a hanging segment can exceed a pool's time limit


class Actor(NamedTuple):
    """Everything that worker k needs to act and learn. Every field can be pickled."""

    run: str  # key under which a process keeps the worker's environments; it is different in each training run
    make_sampler: Callable  # make_sampler(*seeds) → Sampler
    learn: Callable  # `npg.a3c.rollout_gradient` or `npg.a3c.actor_learner` with its settings
    model: object  # an `ActorCritic`; its distribution may explore in this worker's way
    seeds: tuple  # of the run; worker 0 uses the same seeds as a run in one process
    k: int  # number of the worker
    state: dict | None = None  # state of its sampler (`replaying.state_of`); None: the sampler has not begun
    age: int = 0  # the age at which the sampler has this state

    def sampler(self, age=0):
        """Makes the worker's sampler: (sampler, False if its state could not be restored, else True).

        If `age` is the actor's age, the sampler continues from `state`. At another age the sampler begins new episodes.
        Their seeds depend on `age`.
        """
        more = (self.k, age) if age else (self.k,) if self.k else ()
        sampler = self.make_sampler(*self.seeds, *more)
        return sampler, self.state is None or age != self.age or restore(sampler, self.state)


def summary(rollout, norm):
    """The rollout without θ and without its rows, which take long to send.

    If the gradient's norm is not finite, the rows stay. They show where the NaN or Inf comes from.
    """
    rows = slice(0 if np.isfinite(norm) else None)
    return Rollout(*(x[rows].copy() if isinstance(x, np.ndarray) else x for x in rollout[:-1]))


def worker_gradient(actor, theta, update, normal=None):
    """Worker k's part of update number `update`: ((gradient [size], `summary` of the rollout, measures), news).

    The news are the sampler's state, whether its environments came back, and the moments of its observations. Returns
    None if this process does not hold the worker's environments in their state before this update.

    actor    an `Actor`, or None: then there is nothing to compute
    normal   mean and variance that normalise the observations, or None
    """
    if actor is None:
        return None
    memory, same = kept((actor.run, actor.k), SimpleNamespace), True
    if actor.state is not None or update == 0:
        memory.sampler, same = actor.sampler()
    elif getattr(memory, "update", None) != update:
        return None
    memory.update = None  # a call that fails leaves the environments in the middle of a rollout
    if normal:
        memory.sampler.envs.mean, memory.sampler.envs.var = normal
    part = _gradient(actor, memory.sampler, theta)
    memory.update = update + 1
    stand = state_of(memory.sampler, lambda logs: [log.news() for log in logs])
    return part, {"stand": stand, "replayed": same, "seen": memory.sampler.envs.take() if normal else None}


def _gradient(actor, sampler, theta):
    with np.errstate(all="ignore"):  # the caller finds NaN and Inf
        dtheta, rollout, measures = actor.learn(sampler, actor.model, theta)
        return dtheta, summary(rollout, clip_norm(dtheta, None)), measures


class Gradients:
    """The argument `gradients` of `npg.a3c.parallel_a2c`: an executor computes one gradient per actor.

    Any process may compute any actor's part. A process that does not hold the actor's environments replays them. This
    happens, for example, after another process has died.
    """

    def __init__(self, executor, actors, obs_rms=None):
        self.executor, self.actors, self.obs_rms, self.update, self.replayed = executor, actors, obs_rms, 0, True
        self._states, self.logs = [None] * len(actors), [{} for _ in actors]

    def __call__(self, theta):
        """[(gradient, rollout, measures)] of all workers, computed at θ."""
        normal = self.obs_rms and (self.obs_rms.mean, self.obs_rms.var)
        call = functools.partial(worker_gradient, theta=theta, update=self.update, normal=normal)
        replies = self._map(call, self.actors)
        if any(reply is None for reply in replies):
            without = [None if reply else self._as_it_stands(k) for k, reply in enumerate(replies)]
            again = self._map(call, without)
            replies = [reply or other for reply, other in zip(replies, again)]
        self.update += 1
        for k, (_, news) in enumerate(replies):
            merge(self.obs_rms, news["seen"])
            self.replayed = self.replayed and news["replayed"]
            self.actors[k] = self.actors[k]._replace(state=None)
            self._follow(k, news["stand"])
        return [part for part, _ in replies]

    def _map(self, call, actors):
        """The replies of all calls. A call that first replays the actor's environments may take any time."""
        replays = any(actor is not None and actor.state is not None for actor in actors)
        with any_time(self.executor) if replays else contextlib.nullcontext():
            return list(self.executor.map(call, actors))

    def _follow(self, k, stand):
        before, self.logs[k], self._states[k] = self.logs[k], {}, stand
        for name, news in stand.pop("logs").items():
            logs = before.get(name) or [Log()] * len(news)
            self.logs[k][name] = [log.follow(part) for log, part in zip(logs, news)]

    def _as_it_stands(self, k):
        stand, actor = self._states[k], self.actors[k]
        logs = {name: packed(some) for name, some in self.logs[k].items()}
        return actor._replace(state={**stand, "logs": logs}) if stand else actor

    def states(self):
        """The states of all samplers; None for a sampler that has not begun."""
        return [self._as_it_stands(k).state for k in range(len(self.actors))]


def any_time(executor):
    """A block in which a call may take any time: a replay may take as long as the training before it."""
    return executor.without_time_limit() if isinstance(executor, Pool) else contextlib.nullcontext()


def memory_of(actor, age):
    """This process's memory for an actor: its `sampler`. Created on first use, then reused; made again after a crash.

    age   0 for the worker's first sampler; for a later sampler, larger than for the last one

    On a cluster, this process may already hold the sampler of another actor. Then it continues with that sampler. A new
    sampler could play the same episodes as a sampler in another process.
    """

    def make():
        sampler, same = actor.sampler(age)
        return SimpleNamespace(sampler=sampler, same=same, updates=None)

    return kept(actor.run, make)


def gradient_anywhere(actor, theta, update):
    """A gradient for `npg.a3c.asynchronous_gradients`, from the sampler of this process, whichever worker it is for."""
    return _gradient(actor, memory_of(actor, update).sampler, theta)


class Shared(NamedTuple):
    """The shared memory of the actor-learners of Algorithm S3. All their processes see it."""

    theta: np.ndarray  # [size]: θ and θ_v
    optimizers: list  # [N], one per worker; N times the same optimizer if the workers share its statistics
    steps: np.ndarray  # [N]; T is their sum. Only worker k writes steps[k], so no step is lost
    updates: np.ndarray  # [N]; only worker k writes updates[k]


def share(theta, optimizer, n, statistics="shared"):
    """The `Shared` of n workers: copies of θ and of the optimizer in shared memory. The arguments do not change.

    statistics  "shared": the workers share the optimizer's memory, such as RMSProp's mean square; "own": each worker
                has its own
    """
    if statistics not in ("shared", "own"):
        raise ValueError(f"statistics: expected 'shared' or 'own', got {statistics!r}")

    def copied(optimizer):
        twin = copy.copy(optimizer)
        for name, array in state(optimizer).items():
            setattr(twin, name, _shared_copy(array))
        return twin

    optimizers = [copied(optimizer)] * n if statistics == "shared" else [copied(optimizer) for _ in range(n)]
    return Shared(_shared_copy(theta), optimizers, shared_array(n, np.int64), shared_array(n, np.int64))


def _shared_copy(array):
    shared = shared_array(array.shape, array.dtype)
    shared[...] = array
    return shared


class OnlyFinite:
    """An optimizer that skips a gradient with a NaN or Inf, which would spoil the θ that all workers share."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, theta, dtheta):
        """The wrapped optimizer's step, if dtheta is finite."""
        if np.isfinite(np.dot(dtheta, dtheta)):
            self.optimizer.step(theta, dtheta)


_given = None  # (shared, actors) of this worker process


def _receive(*given):
    global _given
    _given = given


def start_pool(actors, shared, **options):
    """A `Pool` with one process per actor. Each process receives what `learn_round` needs. `options` go to `Pool`."""
    return Pool(len(actors), initializer=_receive, initargs=(shared, actors), **options)


def learn_round(k, t_stop, learning_rate, normal=None):
    """Worker k makes updates, at least one, until all workers together have made `t_stop` steps.

    The round also ends after ROUND_SECONDS, and at a gradient that is not finite.

    Returns the `summary` of all its rollouts, the measures of each segment, and the moments of its observations. The
    moments are None if the observations are not normalised (`normal` as in `worker_gradient`).
    """
    shared, actors = _given
    actor, optimizer, theta = actors[k], shared.optimizers[k], np.asarray(shared.theta)
    optimizer.learning_rate = learning_rate
    memory, began = memory_of(actor, int(shared.steps[k])), time.monotonic()
    if memory.updates is None:
        memory.updates = actor.learn(memory.sampler, actor.model, theta, OnlyFinite(optimizer))
    if normal:
        memory.sampler.envs.mean, memory.sampler.envs.var = normal
    rollouts, measures = [], []
    with np.errstate(all="ignore"):  # no warnings: the learner finds NaN and Inf in the gradient's norm
        while True:
            before = shared.updates.sum()
            update = next(memory.updates)
            shared.steps[k] += update["rollout"].env_steps  # T ← T + 1 for each step
            staleness = int(shared.updates.sum() - before)
            shared.updates[k] += 1
            rollouts.append(summary(update.pop("rollout"), update["grad_norm"]))
            measures.append({"staleness": staleness, **update})
            late = time.monotonic() > began + ROUND_SECONDS
            if shared.steps.sum() >= t_stop or late or not np.isfinite(update["grad_norm"]):
                return joined(rollouts, axis=0), measures, memory.sampler.envs.take() if normal else None


def begin(k):
    """Makes worker k's sampler. That of a resumed run replays its environments."""
    shared, actors = _given
    memory_of(actors[k], int(shared.steps[k]))


def worker_state(k):
    """(the state of worker k's sampler, False if this sampler could not be restored when it began, else True)."""
    shared, actors = _given
    memory = memory_of(actors[k], int(shared.steps[k]))
    return state_of(memory.sampler), memory.same


def rounds(pool, shared, *, report_every=2000, obs_rms=None):
    """A3C in rounds: the workers of a `start_pool` learn on one θ. Yields the measures of each round. Never ends.

    A round lasts `report_every` steps, counted over all workers. Between two rounds no worker runs, so θ does not
    change. If a worker dies, hangs or raises, only its unfinished segment is lost, because θ and all counts are in
    shared memory. If `obs_rms` is given, its moments normalise the observations, and each round updates them.
    """
    with any_time(pool):
        pool.map(begin, range(len(shared.steps)))
    while True:
        before, rate = np.array(shared.steps), shared.optimizers[0].learning_rate
        normal = obs_rms and (obs_rms.mean, obs_rms.var)
        call = functools.partial(learn_round, t_stop=before.sum() + report_every, learning_rate=rate, normal=normal)
        rollouts, measures, seen = zip(*pool.map(call, range(len(shared.steps))))
        for moments in seen:
            merge(obs_rms, moments)
        worker_steps = np.array(shared.steps) - before
        yield {
            "rollout": joined(rollouts, axis=0)._replace(env_steps=int(worker_steps.sum())),
            "worker_steps": worker_steps.tolist(),
            **mean_of(sum(measures, [])),
        }
