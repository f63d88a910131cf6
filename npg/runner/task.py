"""What an algorithm is made of in a run script: a `Task` gives it parts, and it returns a `Learner`.

Nothing starts before the first update is asked for: environments and worker processes are made at their first use. So
a script's function may be called just to play with a policy, too.
"""

import functools
import uuid

import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.utils import RunningMeanStd
from gymnasium.wrappers.vector import NormalizeObservation

from npg.a3c import asynchronous_gradients, rollout_gradient
from npg.distributions import (
    Bernoulli,
    Categorical,
    Deterministic,
    Gaussian,
    GaussianMixture,
    MultivariateGaussian,
)
from npg.optimizers import state
from npg.replay import Experience
from npg.rollout import AheadSampler, Sampler
from npg.runner import environments
from npg.runner.actors import Actor, Gradients, gradient_anywhere, rounds, share, start_pool, worker_state
from npg.runner.playing import policy_evaluator
from npg.runner.replaying import begin_anew, below, flat, random_state, restore, set_random_state, state_of
from npg.runner.settings import keyword_only
from npg.runner.workers import Pool

INIT, TRAIN = 0, 1  # purposes of streams of random numbers: the streams of one seed are independent
MOMENTS = "mean", "var", "count"
TIME_LIMIT = 60  # seconds after which a worker counts as hung


def stochastic_policy(space, *, policy="gaussian", components=2, sigma="learned", log_std=0.0):
    """(distribution, number of the network's outputs, tail, learn_tail) of a policy over Box actions.

    policy   "gaussian": N(μ, diag σ²); "multivariate": N(μ, Σ), Σ = L Lᵀ; "mixture": of `components` Gaussians
    sigma    "learned" and "fixed": the spread is the same in every state, from e^log_std; "state": the network's output
    """
    n = space.shape[0]
    if policy == "gaussian":
        distribution, n_out, tail = Gaussian(n), n, log_std
    elif policy == "multivariate":
        rows, columns = np.tril_indices(n)
        distribution, n_out, tail = MultivariateGaussian(n), n, np.where(rows == columns, log_std, 0.0)
    else:
        distribution = GaussianMixture(n, components, spread=1.0)  # over the range of the actions
        n_out, tail = components * (n + 1), log_std
    if sigma == "state":
        return distribution, distribution.n_params, 0.0, True
    return distribution, n_out, tail, sigma == "learned"


class Task:
    """An environment to learn, with a seed: makes samplers, evaluators and random numbers, and remembers them.

    n_obs, n_act        numbers that the policy sees and, in Rⁿ, puts out as an action (or its preferences)
    distribution        of the policy π_θ(a|s), from `n_out` outputs of a network and the tail, as `Policy` takes it
    deterministic       the distribution of a policy a = π_θ(s), for the searches
    """

    def __init__(self, script, env, seed, settings, probe, executor=None):
        self.script, self.env, self.seed, self.cluster = script, env, seed, executor
        self.act, self.workers = settings.get("act", "most-likely"), settings.get("workers")
        options = {name: settings[name] for name in keyword_only(script.make_envs)}
        self.make_envs = functools.partial(script.make_envs, env, **options)
        self.make_env = functools.partial(script.make_env, env, **options)
        at_a_time = 10 if isinstance(probe.unwrapped, SyncVectorEnv) else None  # else all are computed at once
        self.at_a_time = script.side_by_side or at_a_time  # episodes of an evaluation
        self.spaces = obs_space, act_space = probe.single_observation_space, probe.single_action_space
        self.n_obs, self.obs_rms = obs_space.shape[0], None
        if options.get("normalise_obs"):
            self.obs_rms = RunningMeanStd(shape=obs_space.shape, dtype=obs_space.dtype)
        self.reward_rms = RunningMeanStd(shape=()) if settings.get("scale_rewards") else None
        self.gamma = settings.get("gamma")
        if self.reward_rms and self.workers:
            raise ValueError("scale_rewards: expected false with workers, got true")
        self.is_box, self.tail, self.learn_tail = isinstance(act_space, spaces.Box), 0.0, True
        if self.is_box and self.act == "sharpened":
            raise ValueError("act: only a policy over discrete actions can be sharpened")
        if self.is_box:
            self.n_act = act_space.shape[0]
            self.deterministic = Deterministic(self.n_act)
            if "policy" in settings:
                chosen = {name: settings[name] for name in keyword_only(stochastic_policy)}
                self.distribution, self.n_out, self.tail, self.learn_tail = stochastic_policy(act_space, **chosen)
        else:
            self.distribution = Bernoulli() if script.one_logit else Categorical(int(act_space.n))
            self.n_act = self.n_out = self.distribution.n_params
            self.deterministic = self.distribution  # of which a search plays the most likely action
        self.samplers, self.rngs, self.actors, self.executor = [], [], [], None
        self.gradients_of_workers = self.shared = None
        self.replayed = True  # False where a resumed run had to begin new episodes

    def rng(self, stream):
        """Random numbers of the run's seed: `INIT` for the first parameters, `TRAIN` for a search."""
        if stream == INIT:
            return np.random.default_rng([self.seed, INIT])
        self.rngs.append(np.random.default_rng([self.seed, TRAIN, 0]))
        return self.rngs[-1]

    def sampler(self, envs, kind=Sampler, ahead=0, **options):
        """A `kind` of sampler of `envs` environments; `ahead` threads draw the next rollout during learning.

        options   settings of the environment, where the function names them itself
        """
        n_parts = max(1, ahead)
        if envs % n_parts:
            raise ValueError(f"envs: expected a multiple of ahead, {n_parts}, got {envs}")
        if self.obs_rms:
            options["normalise_obs"] = False  # but around it, so that the moments are there before the environments
        n, parts = envs // n_parts, []
        make = functools.partial(self.make_envs, n, **options)
        for _ in range(n_parts):
            parts.append(environments.ReplayableVectorEnv(make, n, *self.spaces))
            if self.obs_rms:
                parts[-1] = NormalizeObservation(parts[-1])
                parts[-1].obs_rms = self.obs_rms
            if self.reward_rms:
                parts[-1] = environments.scale_rewards(parts[-1], self.gamma)
                parts[-1].return_rms = self.reward_rms
        if ahead:
            samplers = [kind(part, self.seed, TRAIN, 0, k) for k, part in enumerate(parts)]
            sampler = AheadSampler(samplers, self.seed, TRAIN, 0)
        else:
            sampler = kind(parts[0], self.seed, TRAIN, 0)
        self.samplers.append(sampler)
        return sampler

    def evaluator(self, policy, episodes, rng, common_seeds, workers=None):
        """evaluate(thetas) for `npg.gradient_free.search`: mean return in `episodes` episodes, by workers if there are.

        Without workers all candidates play in one environment of this process, made at its first use.
        """
        executor = self.pool(workers) if workers else None
        return policy_evaluator(policy, self.make_env, episodes, rng, self.obs_rms, common_seeds, executor)

    def pool(self, workers):
        """The cluster's executor, or worker processes of this machine, started with the first call."""
        self.executor = self.cluster or Pool(workers, timeout=TIME_LIMIT)
        return self.executor

    def gradients(self, workers, envs, model, learn, kind=Sampler):
        """The `gradients` of `npg.a3c.parallel_a2c`: learn(sampler, model, θ) by each worker, with its own `envs`."""
        self.actors = self._actors([model] * workers, envs, learn, kind)
        self.gradients_of_workers = Gradients(self.pool(workers), self.actors, self.obs_rms)
        return self.gradients_of_workers

    def asynchronous(self, envs, models, learn, theta, optimizer, statistics, report_every, kind=Sampler, **options):
        """(updates, {name: (vector, optimizer)}, further arrays) of A3C: worker k runs learn(sampler, models[k], θ, …).

        On this machine θ is copied into shared memory: use the returned vector, not the argument. On a cluster the
        workers send their gradients.
        """
        n = len(models)
        self.actors = self._actors(models, envs, learn, kind, **options)
        if self.cluster and self.obs_rms:
            raise ValueError("normalise_obs: a3c on a cluster has no round at which moments could be merged")
        if self.cluster:
            settings = {name: value for name, value in learn.keywords.items() if name != "max_grad_norm"}
            call = functools.partial(rollout_gradient, **settings)
            submit = lambda k, theta, update: self.pool(n).submit(
                gradient_anywhere, self.actors[k]._replace(learn=call), theta, update
            )
            updates = asynchronous_gradients(
                submit, n, theta, optimizer, max_grad_norm=learn.keywords.get("max_grad_norm", 0.5)
            )
            return updates, {"theta": (theta, optimizer)}, {}
        shared = self.shared = share(theta, optimizer, n, statistics)
        self.executor = start_pool(self.actors, shared, timeout=TIME_LIMIT)
        optimizers = shared.optimizers if statistics == "own" else shared.optimizers[:1]
        theta = np.asarray(shared.theta)
        learned = {f"theta_{k}" if k else "theta": (theta, optimizer) for k, optimizer in enumerate(optimizers)}
        counters = {"worker_steps": np.asarray(shared.steps), "worker_updates": np.asarray(shared.updates)}
        return rounds(self.executor, shared, report_every=report_every, obs_rms=self.obs_rms), learned, counters

    def _actors(self, models, envs, learn, kind, **options):
        if self.obs_rms:
            options["normalise_obs"] = False  # but around it, with the moments of all
        make_envs = functools.partial(self.make_envs, envs, **self.script.worker_options, **options)
        make_sampler = functools.partial(_new_sampler, kind, make_envs, envs, self.spaces, bool(self.obs_rms))
        run = uuid.uuid4().hex
        return [Actor(run, make_sampler, learn, model, (self.seed, TRAIN, 0), k) for k, model in enumerate(models)]

    @property
    def restarted(self):
        """Worker processes that took the place of another, so far."""
        return getattr(self.executor, "restarted", 0)

    def state(self):
        """{name: array}: where samplers, their environments and random numbers stand, for `restore`."""
        if self.gradients_of_workers:
            workers = self.gradients_of_workers.states()
            self.replayed = self.replayed and self.gradients_of_workers.replayed
        elif self.shared and self.shared.steps.any():
            workers, same = zip(*self.executor.map(worker_state, range(len(self.actors))))
            self.replayed = self.replayed and all(same)
        else:
            workers = [actor.state for actor in self.actors]
        return flat({
            "samplers": {str(k): state_of(sampler) for k, sampler in enumerate(self.samplers)},
            "rngs": {str(k): random_state(rng) for k, rng in enumerate(self.rngs)},
            "workers": {str(k): state for k, state in enumerate(workers) if state},
            "reward_rms": {name: getattr(self.reward_rms, name) for name in MOMENTS} if self.reward_rms else {},
        })

    def restore(self, saved, update, progress=iter):
        """Go on from a `state`, bit for bit; where that cannot be, with new episodes: `replayed` is False then.

        saved      {name: array}; further arrays do not matter
        update     its number, which seeds new episodes
        progress   as of `npg.runner.replaying.restore`
        """
        samplers, rngs, workers = (below(name, saved) for name in ("samplers", "rngs", "workers"))
        if self.reward_rms:
            vars(self.reward_rms).update(below("reward_rms", saved))
        seeds = self.seed, TRAIN, update
        for k, sampler in enumerate(self.samplers):
            if samplers:
                self.replayed = restore(sampler, samplers[str(k)], progress) and self.replayed
            else:
                begin_anew(sampler, *seeds)
                self.replayed = False
        for k, rng in enumerate(self.rngs):
            self.replayed = self.replayed and bool(rngs)
            set_random_state(rng, rngs[str(k)] if rngs else random_state(np.random.default_rng(seeds)))
        for k, actor in enumerate(self.actors):
            age = int(self.shared.steps[k]) if self.shared else 0
            self.actors[k] = actor._replace(seeds=seeds, state=workers.get(str(k)), age=age)
            self.replayed = self.replayed and self.actors[k].state is not None

    def close(self):
        """End the worker processes."""
        if isinstance(self.executor, Pool):
            self.executor.kill_workers()


def _new_sampler(kind, make_envs, n, spaces, normalised, *seeds):
    envs = environments.ReplayableVectorEnv(make_envs, n, *spaces)
    return kind(environments.NormalisedElsewhere(envs) if normalised else envs, *seeds)


class Learner:
    """Something that learns, and all that must be saved of it.

    policy    what acts: policy.act(theta, obs, rng=None)
    updates   an iterator: each `next` samples, weighs and steps, and yields {"rollout": …, measures}
    learned   {name: (vector that is learned in place, its optimizer or None)}; "theta" is the policy's
    anneal    whether the learning rates fall to 0 over the budget
    method    of a search: it remembers more than θ
    arrays    {name: array} of what is to be saved besides
    buffer    an `ExperienceBuffer`
    """

    def __init__(self, policy, updates, learned, *, anneal=False, arrays=None, method=None, buffer=None):
        self.policy, self.updates, self.learned, self.buffer = policy, updates, learned, buffer
        self.theta, self.annealed, self.method, self.more = learned["theta"][0], anneal, method, arrays or {}
        self.rates = [(o, o.learning_rate) for _, o in learned.values() if o is not None]

    @functools.cached_property
    def arrays(self):
        """{name: array} of all that is learned, and of what optimizers and a method remember: the arrays themselves."""
        arrays = {**(state(self.method) if self.method else {}), **self.more}
        for name, (vector, optimizer) in self.learned.items():
            if not any(vector is array for array in arrays.values()):
                arrays[name] = vector
            if optimizer is not None:
                arrays.update((f"{name}.{key}", array) for key, array in state(optimizer).items())
        return arrays

    def experience(self):
        """{name: array} of what the next update finds in the buffer."""
        batches = self.buffer.batches if self.buffer else []
        kept = batches[max(0, len(batches) - self.buffer.capacity + 1) :] if batches else []  # the oldest leaves then
        return flat({"buffer": {str(i): batch._asdict() for i, batch in enumerate(kept)}})

    def restore(self, saved):
        """Fill the buffer with the `experience` among these arrays."""
        for batch in below("buffer", saved).values():
            self.buffer.add(Experience(**batch))

    def anneal(self, fraction):
        """Learning rates are this fraction of the initial ones from now on, if the run anneals them at all."""
        if self.annealed:
            for optimizer, rate in self.rates:
                optimizer.learning_rate = fraction * rate
