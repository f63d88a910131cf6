"""Actor-learners in parallel (Mnih et al. 2016): Algorithm S3 on a pool of processes, and A2C, its synchronous twin.

Each takes the gradient of `a2c`, `advantage_gradient`. What differs is only who applies which gradient when:

    actor_critic.a2c         the gradient of one rollout
    parallel_a2c             the mean of N workers' gradients, all at the same θ
    asynchronous_gradients   each worker's as it arrives, at the θ that was current when the worker began
    actor_learner, a3c       each worker applies its own, at once, to a θ in shared memory

`parallel_a2c` and `asynchronous_gradients` take any `concurrent.futures.Executor`: their workers may be a cluster's.
"""

import contextlib
import copy
import functools
import itertools
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from npg.actor_critic import advantage_gradient
from npg.optimizers import clip_norm, state
from npg.rollout import Rollout, joined, play
from npg.runner.workers import Pool, kept, shared_array

OBJECTIVE = {"gamma": 0.99, "lam": 0.95, "value_weight": 0.5, "entropy_weight": 0.0, "standardise": False}
ROUND_SECONDS = 10  # so that a pool's time limit for a call is one for a segment


class Actor(NamedTuple):
    """What worker k acts and learns with; all of it can be pickled."""

    run: str  # the name under which its process keeps its environments: another one for each training run
    make_sampler: Callable  # make_sampler(*seeds) → Sampler
    model: object  # an `ActorCritic`, whose distribution may explore as this worker is to
    objective: dict  # as OBJECTIVE: of `advantage_gradient`
    n_steps: int  # of each environment before an update, t_max in Algorithm S3
    seeds: tuple  # of the run. New ones begin new episodes
    k: int

    def its_seeds(self, age):
        """Worker 0's are those that one process alone would use; age > 0 is for a replacement."""
        return (*self.seeds, self.k, age) if age else (*self.seeds, self.k) if self.k else self.seeds


def environments(actor, age):
    """This process's `Sampler`: the one of earlier calls, or a new one, for the first time or where that one is lost.

    `age` is a number that has grown since the worker's last one began, 0 for the first. (On a cluster another actor may
    have made the sampler here: new seeds stay its maker's, for no two processes may play the same episodes.)
    """
    make = lambda: SimpleNamespace(actor=actor, age=age, sampler=actor.make_sampler(*actor.its_seeds(age)))
    memory = kept(actor.run, make)
    if memory.actor.seeds != actor.seeds:
        memory.actor = memory.actor._replace(seeds=actor.seeds)
        memory.sampler.reset(*memory.actor.its_seeds(memory.age))
    return memory.sampler


def summary(rollout, norm):
    """The rollout without θ, and without rows, which are long to send, unless its gradient's norm is not finite."""
    rows = slice(0 if np.isfinite(norm) else None)
    return Rollout(*(x[rows].copy() if isinstance(x, np.ndarray) else x for x in rollout[:-1]))


def mean_of(measures):
    """[{name: number}] → {name: mean}; a segment whose targets are all the same has no explained variance to count."""
    numbers = {name: [m[name] for m in measures] for name in measures[0]}
    explained = numbers["explained_variance"]
    numbers["explained_variance"] = [x for x in explained if not np.isnan(x)] or explained
    return {name: float(np.mean(x)) for name, x in numbers.items()}


def worker_gradient(actor, theta, update):
    """One worker's part of update number `update`: its gradient at θ [size], a `summary`, and measures."""
    with np.errstate(all="ignore"):  # what is not finite is found by whoever asked for this
        rollout = environments(actor, update).steps(actor.model, theta, actor.n_steps)
        dtheta, measures = advantage_gradient(rollout, actor.model, theta, **actor.objective)
        return dtheta, summary(rollout, clip_norm(dtheta, None)), measures


def parallel_a2c(executor, actors, theta, optimizer, max_grad_norm=0.5):
    """A2C with N workers: θ ← θ + α 1/N Σ_k g_k, the gradients g_k all at the same θ.

    With one worker it is `a2c` of the same seeds, bit for bit. θ is improved in place; yields the measures of each
    update.
    """
    for update in itertools.count():
        calls = executor.map(functools.partial(worker_gradient, theta=theta, update=update), actors)
        dthetas, rollouts, measures = zip(*calls)
        dtheta = np.mean(dthetas, axis=0)
        norm = clip_norm(dtheta, max_grad_norm)
        optimizer.step(theta, dtheta)
        yield {
            "rollout": joined(rollouts, axis=0),
            "grad_norm": norm,
            "worker_steps": [rollout.env_steps for rollout in rollouts],
            **mean_of(measures),
        }


def asynchronous_gradients(executor, actors, theta, optimizer, max_grad_norm=0.5):
    """A3C where no memory is shared: the learner applies each worker's gradient as it arrives, and sends it the new θ.

    `staleness` is the number of updates by others since the θ at which a gradient was computed. θ is improved in place;
    yields the measures of each update.
    """
    updates, calls = 0, {}

    def begin(k):
        calls[executor.submit(worker_gradient, actors[k], theta.copy(), updates)] = k, updates

    for k in range(len(actors)):
        begin(k)
    while True:
        for call in wait(calls, return_when=FIRST_COMPLETED).done:
            k, begun = calls.pop(call)
            dtheta, rollout, measures = call.result()
            norm = clip_norm(dtheta, max_grad_norm)
            optimizer.step(theta, dtheta)
            staleness = updates - begun
            updates += 1
            begin(k)
            yield {
                "rollout": rollout,
                "grad_norm": norm,
                "staleness": staleness,
                "worker_steps": [rollout.env_steps if k == j else 0 for j in range(len(actors))],
                **measures,
            }


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


_given = None  # (shared, actors, lock) of this worker process


def _receive(*given):
    global _given
    _given = given


def start_pool(actors, shared, lock=None, **options):
    """A `Pool` of one process an actor, which has what `actor_learner` needs; options are `Pool`'s.

    lock  a file: only the worker that has locked it may write to θ. None: all do as they please (Recht et al. 2011)
    """
    return Pool(len(actors), initializer=_receive, initargs=(shared, actors, lock), **options)


def actor_learner(k, t_stop, learning_rate, max_grad_norm=None):
    """Algorithm S3 (Mnih et al. 2016): worker k's share of the steps until T ≥ t_stop, at least one segment.

    Other than there, it may play in several environments, a segment then ends when all have met a terminal state;
    R − V is `advantage_gradient`'s A, by λ; a gradient is a mean over its segment's steps; dθ and dθ_v are clipped as
    one, and left out if not finite, which ends the share; the entropy term of the paper's §4 is in. After ROUND_SECONDS
    it returns in any case: the `summary` of all its rollouts, and the measures of each segment.
    """
    shared, actors, lock = _given
    actor, optimizer, theta_shared = actors[k], shared.optimizers[k], np.asarray(shared.theta)
    optimizer.learning_rate = learning_rate
    sampler, began = environments(actor, int(shared.steps[k])), time.monotonic()
    theta, rollouts, measures = np.empty_like(theta_shared), [], []
    with np.errstate(all="ignore"):  # a norm that is not finite is how the learner gets to know
        while True:
            updates = shared.updates.sum()
            theta[...] = theta_shared  # θ' ← θ, θ'_v ← θ_v
            rollout = sampler.segment(actor.model, theta, actor.n_steps)  # until terminal s_t or t − t_start = t_max
            shared.steps[k] += rollout.env_steps  # T ← T + 1 for each
            # R = 0 or V(s_t; θ'_v); R ← r + γR; dθ and dθ_v accumulated
            dtheta, measured = advantage_gradient(rollout, actor.model, theta, **actor.objective)
            norm = clip_norm(dtheta, max_grad_norm)
            with _one_at_a_time(lock):
                staleness = int(shared.updates.sum() - updates)
                if np.isfinite(norm):
                    optimizer.step(theta_shared, dtheta)  # asynchronous update of θ and θ_v
                shared.updates[k] += 1
            rollouts.append(summary(rollout, norm))
            measures.append({"grad_norm": norm, "staleness": staleness, **measured})
            if shared.steps.sum() >= t_stop or not np.isfinite(norm) or time.monotonic() > began + ROUND_SECONDS:
                return joined(rollouts, axis=0), measures


@contextlib.contextmanager
def _one_at_a_time(path):
    """A lock between processes, which the system releases when its holder is killed; none without a path."""
    if path is None:
        yield
        return
    import fcntl  # which Windows lacks

    file = kept(path, lambda: open(path, "a"))
    fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)


def a3c(pool, shared, report_every=2000, max_grad_norm=0.5):
    """A3C: the workers of a `start_pool` run `actor_learner` on one θ; yields measures every `report_every` steps.

    (Of slow environments, every ROUND_SECONDS.)

    Between these rounds no worker runs, and θ is at rest. Of a worker that dies, hangs or raises only the unfinished
    segment is lost: θ and all counts are in shared memory.
    """
    while True:
        before, rate = np.array(shared.steps), shared.optimizers[0].learning_rate
        call = functools.partial(
            actor_learner, t_stop=before.sum() + report_every, learning_rate=rate, max_grad_norm=max_grad_norm
        )
        rollouts, measures = zip(*pool.map(call, range(len(shared.steps))))
        worker_steps = np.array(shared.steps) - before
        yield {
            "rollout": joined(rollouts, axis=0)._replace(env_steps=int(worker_steps.sum())),
            "worker_steps": worker_steps.tolist(),
            **mean_of(sum(measures, [])),
        }


def play_chunk(make_envs, model, theta, n, seeds):
    """Returns [n] of one episode in each of n environments with the policy's most likely actions."""
    return play(make_envs(n), lambda obs: model.act(theta, obs), n, *seeds)[0]


def parallel_play(executor, make_envs, model, theta, episodes, n, *seeds):
    """Returns [episodes] of an evaluation in n chunks side by side; make_envs(number) has to pickle."""
    sizes = [len(part) for part in np.array_split(np.arange(episodes), n) if len(part)]
    call = functools.partial(play_chunk, make_envs, model, theta)
    return np.concatenate(list(executor.map(call, sizes, [(*seeds, j) for j in range(len(sizes))])))
