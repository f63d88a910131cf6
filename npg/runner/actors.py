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
from npg.runner.workers import Pool, kept, shared_array

ROUND_SECONDS = 10  # so that a pool's time limit for a call is one for a segment


class Actor(NamedTuple):
    """What worker k acts and learns with; all of it can be pickled."""

    run: str  # the name under which its process keeps its environments: another one for each training run
    make_sampler: Callable  # make_sampler(*seeds) → Sampler
    learn: Callable  # `npg.a3c.rollout_gradient` or `npg.a3c.actor_learner` with its settings
    model: object  # an `ActorCritic`, whose distribution may explore as this worker is to
    seeds: tuple  # of the run. New ones begin new episodes
    k: int

    def its_seeds(self, age):
        """Worker 0's are those that one process alone would use; age > 0 is for a replacement."""
        return (*self.seeds, self.k, age) if age else (*self.seeds, self.k) if self.k else self.seeds


def memory_of(actor, age):
    """What this process keeps for an actor: its `sampler`. Made on first use, then reused; made again after a crash.

    `age` is a number that has grown since the worker's last one began, 0 for the first. (On a cluster another actor may
    have made the sampler here: new seeds stay its maker's, for no two processes may play the same episodes.)
    """
    sampler = lambda: actor.make_sampler(*actor.its_seeds(age))
    memory = kept(actor.run, lambda: SimpleNamespace(actor=actor, age=age, sampler=sampler(), updates=None))
    if memory.actor.seeds != actor.seeds:
        memory.actor = memory.actor._replace(seeds=actor.seeds)
        memory.sampler.reset(*memory.actor.its_seeds(memory.age))
    return memory


def summary(rollout, norm):
    """The rollout without θ, and without rows, which are long to send, unless its gradient's norm is not finite."""
    rows = slice(0 if np.isfinite(norm) else None)
    return Rollout(*(x[rows].copy() if isinstance(x, np.ndarray) else x for x in rollout[:-1]))


def worker_gradient(actor, theta, update):
    """One worker's part of update number `update`: its gradient at θ [size], a `summary`, and measures."""
    with np.errstate(all="ignore"):  # what is not finite is found by whoever asked for this
        dtheta, rollout, measures = actor.learn(memory_of(actor, update).sampler, actor.model, theta)
        return dtheta, summary(rollout, clip_norm(dtheta, None)), measures


def gradients_of(executor, actors):
    """The `gradients` of `npg.a3c.parallel_a2c`: one of each actor's, by an executor's workers."""
    update = 0

    def gradients(theta):
        nonlocal update
        call = functools.partial(worker_gradient, theta=theta, update=update)
        update += 1
        return executor.map(call, actors)

    return gradients


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


def learn_round(k, t_stop, learning_rate):
    """Worker k's updates until all together have made `t_stop` steps, at least one; it ends after ROUND_SECONDS, too.

    Returns the `summary` of all its rollouts, and the measures of each segment. A gradient that is not finite ends it.
    """
    shared, actors = _given
    actor, optimizer, theta = actors[k], shared.optimizers[k], np.asarray(shared.theta)
    optimizer.learning_rate = learning_rate
    memory, began = memory_of(actor, int(shared.steps[k])), time.monotonic()
    if memory.updates is None:
        memory.updates = actor.learn(memory.sampler, actor.model, theta, OnlyFinite(optimizer))
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
                return joined(rollouts, axis=0), measures


def rounds(pool, shared, *, report_every=2000):
    """A3C: the workers of a `start_pool` learn on one θ; yields measures every `report_every` steps of all together.

    Between these rounds no worker runs, and θ is at rest. Of a worker that dies, hangs or raises only the unfinished
    segment is lost: θ and all counts are in shared memory.
    """
    while True:
        before, rate = np.array(shared.steps), shared.optimizers[0].learning_rate
        call = functools.partial(learn_round, t_stop=before.sum() + report_every, learning_rate=rate)
        rollouts, measures = zip(*pool.map(call, range(len(shared.steps))))
        worker_steps = np.array(shared.steps) - before
        yield {
            "rollout": joined(rollouts, axis=0)._replace(env_steps=int(worker_steps.sum())),
            "worker_steps": worker_steps.tolist(),
            **mean_of(sum(measures, [])),
        }
