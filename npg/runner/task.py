"""The connection between a run and a script's function: the function takes a `Task` and returns a `Learner`.

The `Task` makes samplers, evaluators and random number generators for the function. Environments and worker processes
start at their first use, not before the first update. So the function may also be called only to play with a policy.
"""

import contextlib
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
from npg.runner.folder import RunError
from npg.runner.playing import policy_evaluator
from npg.runner.replaying import begin_anew, below, flat, random_state, restore, set_random_state, state_of
from npg.runner.settings import keyword_only
from npg.runner.workers import Pool

INIT, TRAIN, FURTHER = 0, 1, 3  # purposes of random numbers; `npg.runner.playing` has 2
MOMENTS = "mean", "var", "count"
TIME_LIMIT = 60  # a worker that takes more seconds for a call counts as hung


def stochastic_policy(space, *, policy="gaussian", components=2, sigma="learned", log_std=0.0):
    """(distribution, number of the network's outputs, tail, learn_tail) of a policy over Box actions.

    policy   "gaussian": N(μ, diag σ²); "multivariate": N(μ, Σ), Σ = L Lᵀ; "mixture": `components` Gaussians
    sigma    "learned" or "fixed": σ is the same in every state and starts at e^log_std; "state": the network puts σ out
    """
    n = space.shape[0]
    if policy == "gaussian":
        distribution, n_out, tail = Gaussian(n), n, log_std
    elif policy == "multivariate":
        rows, columns = np.tril_indices(n)
        distribution, n_out, tail = MultivariateGaussian(n), n, np.where(rows == columns, log_std, 0.0)
    else:
        distribution = GaussianMixture(n, components, spread=1.0)  # the means cover the range of the actions
        n_out, tail = components * (n + 1), log_std
    if sigma == "state":
        return distribution, distribution.n_params, 0.0, True
    return distribution, n_out, tail, sigma == "learned"


class Task:
    """One environment and one seed: makes samplers, evaluators and random number generators, and remembers them.

    n_obs           length of an observation
    n_act           length of an action (Box), or number of preferences (Discrete)
    distribution    of the policy π_θ(a|s). Its parameters are `n_out` outputs of a network, and `tail`, as in `Policy`
    deterministic   the distribution of a policy a = π_θ(s), for the searches
    """

    def __init__(self, script, env, seed, settings, probe, executor=None):
        self.script, self.env, self.seed, self.cluster = script, env, seed, executor
        self.act, self.workers = settings.get("act", "most-likely"), settings.get("workers")
        options = {name: settings[name] for name in keyword_only(script.make_envs)}
        self.make_envs = functools.partial(script.make_envs, env, **options)
        self.make_env = functools.partial(script.make_env, env, **options)
        at_a_time = 10 if isinstance(probe.unwrapped, SyncVectorEnv) else None  # otherwise one call steps all
        self.at_a_time = script.side_by_side or at_a_time  # episodes of an evaluation at a time; None: all
        # Training makes `envs` steps per call, and takes gradients. An evaluation's call needs about half of this time.
        # With few environments it needs about the time of 5 steps, because each call has a fixed cost.
        self.call_cost = max(5, settings.get("envs", 8) // 2)
        self.step_cost = script.step_cost  # instead of `call_cost`, where episodes are few at a time
        self.spaces = obs_space, act_space = probe.single_observation_space, probe.single_action_space
        self.n_obs, self.obs_rms = obs_space.shape[0], None
        if options.get("normalise_obs"):
            dtype = obs_space.dtype if np.issubdtype(obs_space.dtype, np.floating) else np.float64
            self.obs_rms = RunningMeanStd(shape=obs_space.shape, dtype=dtype)
        self.reward_rms = RunningMeanStd(shape=()) if settings.get("scale_rewards") else None
        self.gamma = settings.get("gamma")
        if self.reward_rms and self.gamma is None:
            raise ValueError("scale_rewards: expected false for an algorithm without the setting gamma, got true")
        if self.reward_rms and self.workers:
            raise ValueError("scale_rewards: expected false with workers, got true")
        self.is_box, self.tail, self.learn_tail = isinstance(act_space, spaces.Box), 0.0, True
        if self.is_box and self.act == "sharpened":
            raise ValueError("act: expected most-likely or sampled with Box actions, got 'sharpened'")
        if self.is_box:
            self.n_act = act_space.shape[0]
            self.deterministic = Deterministic(self.n_act)
            if "policy" in settings:
                chosen = {name: settings[name] for name in keyword_only(stochastic_policy)}
                self.distribution, self.n_out, self.tail, self.learn_tail = stochastic_policy(act_space, **chosen)
        else:
            self.distribution = Bernoulli() if script.one_logit else Categorical(int(act_space.n))
            self.n_act = self.n_out = self.distribution.n_params
            self.deterministic = self.distribution  # a search plays its most likely action
        self.samplers, self.rngs, self.actors, self.executor = [], [], [], None
        self.gradients_of_workers = self.shared = None
        self.is_complete = False  # True when the script's function has returned
        self.opened = []  # the environments of this process
        self.replayed = True  # False if a resumed run had to begin new episodes

    def rng(self, stream):
        """A random number generator from the run's seed: `INIT` for the initial parameters, `TRAIN` for a search.

        `rng(INIT)` begins with the same numbers at each call. Call it once, and draw all parameters from it.
        """
        if stream == INIT:
            return np.random.default_rng([self.seed, INIT])
        self._check_if_complete("rng")
        self.rngs.append(np.random.default_rng(self._seeds(len(self.samplers) + len(self.rngs))))
        return self.rngs[-1]

    def _check_if_complete(self, name):
        if self.is_complete:
            where = "in the function of the algorithm, before its first update; a later one could not be resumed"
            raise RunError(f"task.{name}: expected to be called {where}")

    def _seeds(self, k, update=0):
        """The seeds of the run's sampler or generator number k, from this update on. Each has its own stream."""
        return (self.seed, FURTHER, update, k) if k else (self.seed, TRAIN, update)

    def sampler(self, envs, kind=Sampler, ahead=0, **options):
        """Makes a sampler for `envs` environments. With `ahead` > 0: this many threads draw the next rollout ahead.

        kind      class of the sampler
        options   settings of the environment that the script's function takes itself
        """
        self._check_if_complete("sampler")
        n_parts = max(1, ahead)
        if envs % n_parts:
            raise ValueError(f"envs: expected a multiple of ahead ({n_parts}), got {envs}")
        if self.obs_rms:
            options["normalise_obs"] = False  # the wrapper below normalises: its moments exist before the environments
        n, parts, seeds = envs // n_parts, [], self._seeds(len(self.samplers) + len(self.rngs))
        make = functools.partial(self.open, self.make_envs, n, **options)
        for _ in range(n_parts):
            parts.append(environments.ReplayableVectorEnv(make, n, *self.spaces))
            if self.obs_rms:
                parts[-1] = NormalizeObservation(parts[-1])
                parts[-1].obs_rms = self.obs_rms
            if self.reward_rms:
                parts[-1] = environments.scale_rewards(parts[-1], self.gamma)
                parts[-1].return_rms = self.reward_rms
        if ahead:
            samplers = [kind(part, *seeds, k) for k, part in enumerate(parts)]
            sampler = AheadSampler(samplers, *seeds)
        else:
            sampler = kind(parts[0], *seeds)
        self.samplers.append(sampler)
        return sampler

    def evaluator(self, policy, episodes, rng, common_seeds, workers=None):
        """Returns evaluate(thetas) for `npg.gradient_free.search`: the mean return of each θ in `episodes` episodes.

        With workers, the candidates play in the workers. Without, all of them play in one environment of this process.
        """
        executor = self.pool(workers) if workers else None
        make_env = self.make_env if workers else functools.partial(self.open, self.make_env)
        return policy_evaluator(policy, make_env, episodes, rng, self.obs_rms, common_seeds, executor)

    def pool(self, workers):
        """The cluster's executor, or a `Pool` of processes on this machine. They start at the first call."""
        self.executor = self.cluster or Pool(workers, timeout=TIME_LIMIT)
        return self.executor

    def gradients(self, workers, envs, model, learn, kind=Sampler):
        """The `gradients` of `npg.a3c.parallel_a2c`: each worker calls learn(sampler, model, θ) with its own `envs`."""
        self.actors = self._actors([model] * workers, envs, learn, kind)
        self.gradients_of_workers = Gradients(self.pool(workers), self.actors, self.obs_rms)
        return self.gradients_of_workers

    def asynchronous(self, envs, models, learn, theta, optimizer, statistics, report_every, kind=Sampler, **options):
        """A3C: worker k runs learn(sampler, models[k], θ, …).

        Returns (updates, {name: (vector, optimizer)}, further arrays). On this machine θ is copied into shared memory:
        use the returned vector, not the argument. On a cluster the workers send their gradients.
        """
        n = len(models)
        self.actors = self._actors(models, envs, learn, kind, **options)
        if self.cluster and self.obs_rms:
            raise ValueError("normalise_obs: expected false for a3c on a cluster, got true")
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
            options["normalise_obs"] = False  # `NormalisedElsewhere` normalises, with the moments of all workers
        make_envs = functools.partial(self.make_envs, envs, **self.script.worker_options, **options)
        make_sampler = functools.partial(_new_sampler, kind, make_envs, envs, self.spaces, bool(self.obs_rms))
        run = uuid.uuid4().hex
        return [Actor(run, make_sampler, learn, model, (self.seed, TRAIN, 0), k) for k, model in enumerate(models)]

    @property
    def restarted(self):
        """Number of worker processes so far that have replaced another process."""
        return getattr(self.executor, "restarted", 0)

    def state(self):
        """{name: array} for `restore`: the state of samplers, their environments, and random number generators."""
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
        }) | self.reward_moments()

    def reward_moments(self):
        """{name in a checkpoint: array} of the moments that scale the rewards; {} if rewards are not scaled."""
        return flat({"reward_rms": {name: getattr(self.reward_rms, name) for name in MOMENTS if self.reward_rms}})

    def restore(self, saved, update, progress=iter):
        """Continues from a `state`, bit for bit. If that is impossible, new episodes begin and `replayed` is False.

        saved      {name: array}; other arrays among them are ignored
        update     number of the saved update; it seeds new episodes
        progress   as in `npg.runner.replaying.restore`
        """
        samplers, rngs, workers = (below(name, saved) for name in ("samplers", "rngs", "workers"))
        if self.reward_rms:
            vars(self.reward_rms).update(below("reward_rms", saved))
        for k, sampler in enumerate(self.samplers):
            if samplers:
                self.replayed = restore(sampler, samplers[str(k)], progress) and self.replayed
            else:
                begin_anew(sampler, *self._seeds(k, update))
                self.replayed = False
        for k, rng in enumerate(self.rngs):
            self.replayed = self.replayed and bool(rngs)
            anew = np.random.default_rng(self._seeds(len(self.samplers) + k, update))
            set_random_state(rng, rngs[str(k)] if rngs else random_state(anew))
        seeds = self._seeds(0, update)
        for k, actor in enumerate(self.actors):
            age = int(self.shared.steps[k]) if self.shared else 0
            self.actors[k] = actor._replace(seeds=seeds, state=workers.get(str(k)), age=age)
            self.replayed = self.replayed and self.actors[k].state is not None

    def open(self, make, *args, **kwargs):
        """make(*args, **kwargs), an environment that `close` closes."""
        env = make(*args, **kwargs)
        self.opened.append(env)
        return env

    def end_workers(self):
        """Ends the worker processes."""
        if isinstance(self.executor, Pool):
            self.executor.kill_workers()

    def close(self):
        """Ends the worker processes and closes the environments of this process. No sampler may still collect."""
        self.end_workers()
        while self.opened:
            with contextlib.suppress(environments.EnvironmentFailed):  # the results are already written
                self.opened.pop().close()


def _new_sampler(kind, make_envs, n, spaces, normalised, *seeds):
    envs = environments.ReplayableVectorEnv(make_envs, n, *spaces)
    return kind(environments.NormalisedElsewhere(envs) if normalised else envs, *seeds)


class Learner:
    """An algorithm that is ready to learn, and everything of it that a checkpoint must hold.

    policy    has policy.act(theta, obs, rng=None)
    updates   an iterator; each `next` samples, weighs and steps, and gives {"rollout": …, measures}
    learned   {name: (vector that is learned in place, its optimizer or None)}; "theta" is the policy's vector
    anneal    whether the learning rates fall to 0 over the budget
    method    the method of a search, which has more state than θ; or None
    more      {name: array} of further arrays to save
    buffer    an `ExperienceBuffer`, or None
    """

    def __init__(self, policy, updates, learned, *, anneal=False, more=None, method=None, buffer=None):
        if not hasattr(updates, "__next__"):
            raise TypeError(f"updates: expected an iterator, got {updates!r}; call the generator function")
        self.policy, self.updates, self.learned, self.buffer = policy, updates, learned, buffer
        self.theta, self.annealed, self.method, self.more = learned["theta"][0], anneal, method, more or {}
        self.rates = [(o, o.learning_rate) for _, o in learned.values() if o is not None]

    @functools.cached_property
    def arrays(self):
        """{name: array} of all learned vectors and of the state of optimizers and method: the arrays, not copies."""
        arrays = {**(state(self.method) if self.method else {}), **self.more}
        for name, (vector, optimizer) in self.learned.items():
            if not any(vector is array for array in arrays.values()):
                arrays[name] = vector
            if optimizer is not None:
                arrays.update((f"{name}.{key}", array) for key, array in state(optimizer).items())
        return arrays

    def experience(self):
        """{name: array} of the experience that the next update finds in the buffer."""
        batches = self.buffer.batches if self.buffer else []
        kept = batches[max(0, len(batches) - self.buffer.capacity + 1) :] if batches else []  # the oldest leaves next
        return flat({"buffer": {str(i): batch._asdict() for i, batch in enumerate(kept)}})

    def restore(self, saved):
        """Fills the buffer with the `experience` among these arrays."""
        for batch in below("buffer", saved).values():
            self.buffer.add(Experience(**batch))

    def anneal(self, fraction):
        """Sets the learning rates to this fraction of their initial values, if the run anneals them."""
        if self.annealed:
            for optimizer, rate in self.rates:
                optimizer.learning_rate = fraction * rate
