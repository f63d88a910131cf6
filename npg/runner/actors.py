"""Where `npg.a3c` computes: workers' environments, memory that they share, and what they send home.

A worker process keeps its environments, which cannot be sent, from one call to the next (`npg.runner.workers.kept`).
"""

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

ROUND_SECONDS = 10  # so that a pool's time limit for a call is one for a segment


class Actor(NamedTuple):
    """What worker k acts and learns with; all of it can be pickled."""

    run: str  # the name under which its process keeps its environments: another one for each training run
    make_sampler: Callable  # make_sampler(*seeds) → Sampler
    learn: Callable  # `npg.a3c.rollout_gradient` or `npg.a3c.actor_learner` with its settings
    model: object  # an `ActorCritic`, whose distribution may explore as this worker is to
    seeds: tuple  # of the run; worker 0's are those that one process alone would use
    k: int
    state: dict | None = None  # where its sampler stands (`replaying.state_of`); None: at the beginning
    age: int = 0  # at which it stands there

    def sampler(self, age=0):
        """(its sampler, whether that stands where `state` says); at another `age` it begins, with other episodes."""
        more = (self.k, age) if age else (self.k,) if self.k else ()
        sampler = self.make_sampler(*self.seeds, *more)
        return sampler, self.state is None or age != self.age or restore(sampler, self.state)


def summary(rollout, norm):
    """The rollout without θ, and without rows, which are long to send, unless its gradient's norm is not finite."""
    rows = slice(0 if np.isfinite(norm) else None)
    return Rollout(*(x[rows].copy() if isinstance(x, np.ndarray) else x for x in rollout[:-1]))


def worker_gradient(actor, theta, update, normal=None):
    """Worker k's part of update number `update`: ((its gradient [size], a `summary`, measures), further news).

    None where this process does not have the worker's environments as they are before this update.

    normal   mean and variance with which observations are normalised, or None
    """
    if actor is None:
        return None
    memory, same = kept((actor.run, actor.k), SimpleNamespace), True
    if actor.state is not None or update == 0:
        memory.sampler, same = actor.sampler()
    elif getattr(memory, "update", None) != update:
        return None
    memory.update = None  # a call that fails leaves them somewhere between
    if normal:
        memory.sampler.envs.mean, memory.sampler.envs.var = normal
    part = _gradient(actor, memory.sampler, theta)
    memory.update = update + 1
    stand = state_of(memory.sampler, lambda logs: [log.news() for log in logs])
    return part, {"stand": stand, "replayed": same, "seen": memory.sampler.envs.take() if normal else None}


def _gradient(actor, sampler, theta):
    with np.errstate(all="ignore"):  # what is not finite is found by whoever asked for this
        dtheta, rollout, measures = actor.learn(sampler, actor.model, theta)
        return dtheta, summary(rollout, clip_norm(dtheta, None)), measures


class Gradients:
    """The `gradients` of `npg.a3c.parallel_a2c`: one of each actor's, by an executor's workers.

    It does not matter which process computes a worker's part, nor whether one has died: a process that does not have
    the environments replays them.
    """

    def __init__(self, executor, actors, obs_rms=None):
        self.executor, self.actors, self.obs_rms, self.update, self.replayed = executor, actors, obs_rms, 0, True
        self._states, self.logs = [None] * len(actors), [{} for _ in actors]

    def __call__(self, theta):
        """[(gradient, rollout, measures)] of all workers at θ."""
        normal = self.obs_rms and (self.obs_rms.mean, self.obs_rms.var)
        call = functools.partial(worker_gradient, theta=theta, update=self.update, normal=normal)
        replies = list(self.executor.map(call, self.actors))
        if any(reply is None for reply in replies):
            without = [None if reply else self._as_it_stands(k) for k, reply in enumerate(replies)]
            again = self.executor.map(call, without)
            replies = [reply or other for reply, other in zip(replies, again)]
        self.update += 1
        for k, (_, news) in enumerate(replies):
            merge(self.obs_rms, news["seen"])
            self.replayed = self.replayed and news["replayed"]
            self.actors[k] = self.actors[k]._replace(state=None)
            self._follow(k, news["stand"])
        return [part for part, _ in replies]

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
        """Where all samplers stand; None of those that are at the beginning."""
        return [self._as_it_stands(k).state for k in range(len(self.actors))]


def memory_of(actor, age):
    """What this process keeps for an actor: its `sampler`. Made on first use, then reused; made again after a crash.

    `age` is a number that has grown since the worker's last one began, 0 for the first. (On a cluster the process may
    have the sampler of another actor: that one goes on, for no two processes may play the same episodes.)
    """

    def make():
        sampler, same = actor.sampler(age)
        return SimpleNamespace(sampler=sampler, same=same, updates=None)

    return kept(actor.run, make)


def gradient_anywhere(actor, theta, update):
    """A gradient for `npg.a3c.asynchronous_gradients`: by the sampler that this process has, whichever worker's."""
    return _gradient(actor, memory_of(actor, update).sampler, theta)


class Shared(NamedTuple):
    """What the actor-learners of Algorithm S3 share, in memory that all their processes see."""

    theta: np.ndarray  # [size]: θ and θ_v
    optimizers: list  # of worker k; all N the same, where they share their statistics
    steps: np.ndarray  # [N], of each worker, and written by it alone: T is their sum, and no step is lost
    updates: np.ndarray  # [N], likewise


def share(theta, optimizer, n, statistics="shared"):
    """The `Shared` of n workers, from a θ and an optimizer, which stay as they are.

    statistics  what the optimizer remembers, such as RMSProp's mean square: "shared", or every worker's "own"
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
    """An optimizer that leaves out a gradient with a NaN or Inf: in shared memory it would spoil everybody's θ."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, theta, dtheta):
        """As the optimizer's, if dtheta is finite."""
        if np.isfinite(np.dot(dtheta, dtheta)):
            self.optimizer.step(theta, dtheta)


_given = None  # (shared, actors) of this worker process


def _receive(*given):
    global _given
    _given = given


def start_pool(actors, shared, **options):
    """A `Pool` of one process an actor, which has what `learn_round` needs; options are `Pool`'s."""
    return Pool(len(actors), initializer=_receive, initargs=(shared, actors), **options)


def learn_round(k, t_stop, learning_rate, normal=None):
    """Worker k's updates until all together have made `t_stop` steps, at least one; it ends after ROUND_SECONDS, too.

    Returns the `summary` of all its rollouts, the measures of each segment, and the moments of its observations where
    they are normalised (`normal`, as in `worker_gradient`). A gradient that is not finite ends it.
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
    with np.errstate(all="ignore"):  # a norm that is not finite is how the learner gets to know
        while True:
            before = shared.updates.sum()
            update = next(memory.updates)
            shared.steps[k] += update["rollout"].env_steps  # T ← T + 1 for each
            staleness = int(shared.updates.sum() - before)
            shared.updates[k] += 1
            rollouts.append(summary(update.pop("rollout"), update["grad_norm"]))
            measures.append({"staleness": staleness, **update})
            late = time.monotonic() > began + ROUND_SECONDS
            if shared.steps.sum() >= t_stop or late or not np.isfinite(update["grad_norm"]):
                return joined(rollouts, axis=0), measures, memory.sampler.envs.take() if normal else None


def worker_state(k):
    """Where worker k's sampler stands; and whether it stood where it should when it began."""
    shared, actors = _given
    memory = memory_of(actors[k], int(shared.steps[k]))
    return state_of(memory.sampler), memory.same


def rounds(pool, shared, *, report_every=2000, obs_rms=None):
    """A3C: the workers of a `start_pool` learn on one θ; yields measures every `report_every` steps of all together.

    Between these rounds no worker runs, and θ is at rest. Of a worker that dies, hangs or raises only the unfinished
    segment is lost: θ and all counts are in shared memory. Observations are normalised by the moments `obs_rms`, if
    given, to which each round adds.
    """
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
