"""What an algorithm is made of in a run script: a `Task` gives it parts, and it returns a `Learner`.

Nothing starts before the first update is asked for: environments and worker processes are made at their first use. So
a script's function may be called just to play with a policy, too.
"""

import functools
import uuid
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
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
from npg.rollout import AheadSampler, Sampler
from npg.runner import environments
from npg.runner.actors import Actor, gradients_of, rounds, share, start_pool, worker_gradient
from npg.runner.environments import LateVectorEnv
from npg.runner.playing import policy_evaluator
from npg.runner.runs import RunError, parse_period
from npg.runner.settings import check, keyword_only, settings_of
from npg.runner.workers import LateExecutor, Pool

INIT, TRAIN = 0, 1  # purposes of streams of random numbers: the streams of one seed are independent
TIME_LIMIT = 60  # seconds after which a worker counts as hung


class Script(NamedTuple):
    """A run script: its algorithms, its training loop, and the defaults of the command line.

    policy_gradients, searches   {--algo: (the script's function, the functions that its **settings go to)}
    train                        train(run, learner): the loop
    box                          {--algo: {setting: default}}: defaults that are different for Box actions
    defaults                     {setting: default}: defaults that are different in this script, for every algorithm
    """

    policy_gradients: dict
    train: Callable
    searches: dict = {}
    description: str = ""
    box: dict = {}
    defaults: dict = {}
    evaluate_within: float = np.inf  # evaluations begin when training's mean return is that close to the target
    side_by_side: int | None = None  # episodes of an evaluation at a time; None: all
    make_envs: Callable = environments.make_envs  # (env, n, *, settings of the environment) → vector environment
    make_env: Callable = environments.make_env  # (env, render_mode, *, the same) → one environment, to be rendered
    target: Callable = environments.reward_threshold  # env → mean return at which training stops, or None
    one_logit: bool = False  # two actions are drawn from one logit (Bernoulli), not from two (Categorical)
    worker_options: dict = {}  # further arguments of `make_envs` in a process that is one of several
    playing: tuple = ()  # settings of the environment that --evaluate may override: the policy does not see them
    pretrained: object = None  # path of the weights that come with the package

    @property
    def algorithms(self):
        """{--algo: functions}, all of them."""
        return {**self.policy_gradients, **self.searches}

    def settings_of(self, algo, is_box):
        """{name: inspect.Parameter}: all that can be set, with the defaults in effect for Box actions or others."""
        functions = [*self.algorithms[algo], self.make_envs, _run]
        if algo in self.policy_gradients:
            functions += [_start, _playing]
        if algo in self.policy_gradients and is_box and not self.one_logit:
            functions.append(stochastic_policy)
        if "workers" in keyword_only(functions[0]):
            functions.append(_cluster)
        often = {"evaluate_every": 1} if algo in self.searches else {}  # an update of theirs takes many episodes
        otherwise = {**self.defaults, **often, **(self.box.get(algo, {}) if is_box else {})}
        found = settings_of(functions, **otherwise)  # those of the run come first
        return {**{name: found[name] for name in RUN if name in found}, **found}

    def spaces(self, env):
        """(observation space, action space) of one environment."""
        probe = self.make_envs(env, 1)
        probe.close()
        return probe.single_observation_space, probe.single_action_space


# Only the signatures of the next four are read: they hold the settings that no algorithm takes.


def _run(
    *, env="CartPole-v1", seed=0, steps=500_000, target: float | None = None, episodes=100, evaluate_every=5,
    checkpoint_every="50",
):
    """Settings of every run."""


def _start(*, start_from: str | None = None):
    """A setting of every run of a policy gradient."""


def _cluster(*, cluster: str | None = None):
    """A setting of every run that may have workers."""


def _playing(*, act="most-likely"):
    """A setting of evaluations and films of a policy that draws its actions."""


RUN = [name for function in (_run, _start, _cluster) for name in keyword_only(function)]  # the rest is "settings"


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

    def __init__(self, script, env, seed, settings, obs_and_act, executor=None):
        self.script, self.env, self.seed, self.cluster = script, env, seed, executor
        self.act, self.workers = settings.get("act", "most-likely"), settings.get("workers")
        options = {name: settings[name] for name in keyword_only(script.make_envs)}
        self.make_envs = functools.partial(script.make_envs, env, **options)
        self.make_env = functools.partial(script.make_env, env, **options)
        self.spaces = obs_space, act_space = obs_and_act
        self.n_obs, self.obs_rms = obs_space.shape[0], None
        if options.get("normalise_obs"):
            self.obs_rms = RunningMeanStd(shape=obs_space.shape, dtype=obs_space.dtype)
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
        n, parts = envs // n_parts, []
        for _ in range(n_parts):
            parts.append(LateVectorEnv(functools.partial(self.make_envs, n, **options), n, *self.spaces))
            if self.obs_rms:  # the moments are there before the environments
                parts[-1].make = functools.partial(self.make_envs, n, **options, normalise_obs=False)
                parts[-1] = NormalizeObservation(parts[-1])
                parts[-1].obs_rms = self.obs_rms
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
        self.executor = self.cluster or LateExecutor(functools.partial(Pool, workers, timeout=TIME_LIMIT))
        return self.executor

    def gradients(self, workers, envs, model, learn, kind=Sampler):
        """The `gradients` of `npg.a3c.parallel_a2c`: learn(sampler, model, θ) by each worker, with its own `envs`."""
        self.actors += self._actors([model] * workers, envs, learn, kind)
        return gradients_of(self.pool(workers), self.actors)

    def asynchronous(self, envs, models, learn, theta, optimizer, statistics, report_every, kind=Sampler, **options):
        """(updates, {name: (vector, optimizer)}, further arrays) of A3C: worker k runs learn(sampler, models[k], θ, …).

        On this machine θ is copied into shared memory: use the returned vector, not the argument. On a cluster the
        workers send their gradients.
        """
        n = len(models)
        self.actors += self._actors(models, envs, learn, kind, **options)
        if self.cluster:
            settings = {name: value for name, value in learn.keywords.items() if name != "max_grad_norm"}
            call = functools.partial(rollout_gradient, **settings)
            submit = lambda k, theta, update: self.pool(n).submit(
                worker_gradient, self.actors[k]._replace(learn=call), theta, update
            )
            updates = asynchronous_gradients(
                submit, n, theta, optimizer, max_grad_norm=learn.keywords.get("max_grad_norm", 0.5)
            )
            return updates, {"theta": (theta, optimizer)}, {}
        shared = share(theta, optimizer, n, statistics)
        self.executor = LateExecutor(functools.partial(start_pool, self.actors, shared, timeout=TIME_LIMIT))
        optimizers = shared.optimizers if statistics == "own" else shared.optimizers[:1]
        theta = np.asarray(shared.theta)
        learned = {f"theta_{k}" if k else "theta": (theta, optimizer) for k, optimizer in enumerate(optimizers)}
        counters = {"worker_steps": np.asarray(shared.steps), "worker_updates": np.asarray(shared.updates)}
        return rounds(self.executor, shared, report_every=report_every), learned, counters

    def _actors(self, models, envs, learn, kind, **options):
        if self.obs_rms:
            raise ValueError("normalise_obs: every worker would have moments of its own")
        make_envs = functools.partial(self.make_envs, envs, **self.script.worker_options, **options)
        make_sampler, run = functools.partial(_new_sampler, kind, make_envs), uuid.uuid4().hex
        return [Actor(run, make_sampler, learn, model, (self.seed, TRAIN, 0), k) for k, model in enumerate(models)]

    @property
    def restarted(self):
        """Worker processes that took the place of another, so far."""
        return getattr(self.executor, "restarted", 0)

    def reset(self, k):
        """Seed everything anew, from the run's seed and k alone: environments begin new episodes."""
        for sampler in self.samplers:
            sampler.reset(self.seed, TRAIN, k)
        for rng in self.rngs:
            rng.bit_generator.state = np.random.default_rng([self.seed, TRAIN, k]).bit_generator.state
        self.actors[:] = [actor._replace(seeds=(self.seed, TRAIN, k)) for actor in self.actors]

    def close(self):
        """End the worker processes."""
        if isinstance(self.executor, LateExecutor):
            self.executor.kill_workers()


def _new_sampler(kind, make_envs, *seeds):
    return kind(make_envs(), *seeds)


def prepare(script, config, folder, executor=None):
    """(Task, Learner) of a config: nothing has started yet. RunError where a config cannot be used."""
    algo, given = config["algo"], config["settings"]
    try:
        if algo not in list(script.algorithms):
            raise ValueError(f"algo: expected one of {', '.join(script.algorithms)}, got {algo!r}")
        obs_and_act = script.spaces(config["env"])
        parameters = script.settings_of(algo, isinstance(obs_and_act[1], spaces.Box))
        if config.get("from_earlier_format"):  # which had fewer settings
            given = {**{name: p.default for name, p in parameters.items() if name not in RUN}, **given}
        for name in given:
            if name not in parameters or name in RUN:
                raise ValueError(f"{name}: no setting of {algo}")
        given = {**given, **{name: config.get(name) for name in RUN if name in parameters}}
        settings = {name: check(parameter, given[name]) for name, parameter in parameters.items()}
        parse_period(settings["checkpoint_every"])
        task = Task(script, settings["env"], settings["seed"], settings, obs_and_act, executor)
        functions = script.algorithms[algo]
        return task, functions[0](task, **{name: settings[name] for name in settings_of(functions)})
    except environments.UnsupportedEnvironment:
        raise
    except KeyError as error:
        raise RunError(f"{folder}: config lacks {error}; is it a run of another script?") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder}: {error}") from None


class Learner:
    """Something that learns, and all that must be saved of it.

    policy    what acts: policy.act(theta, obs, rng=None)
    updates   an iterator: each `next` samples, weighs and steps, and yields {"rollout": …, measures}
    learned   {name: (vector that is learned in place, its optimizer or None)}; "theta" is the policy's
    anneal    whether the learning rates fall to 0 over the budget
    method    of a search: it remembers more than θ
    arrays    {name: array} of what is to be saved besides
    buffer    an `ExperienceBuffer`, emptied where everything is seeded anew
    """

    def __init__(self, policy, updates, learned, *, anneal=False, arrays=None, method=None, buffer=None):
        self.policy, self.updates, self.learned, self.buffer = policy, updates, learned, buffer
        self.theta, self.annealed = learned["theta"][0], anneal
        self.arrays = {**(state(method) if method else {}), **(arrays or {})}
        for name, (vector, optimizer) in learned.items():
            if not any(vector is array for array in self.arrays.values()):
                self.arrays[name] = vector
            if optimizer is not None:
                self.arrays.update((f"{name}.{key}", array) for key, array in state(optimizer).items())
        self.rates = [(o, o.learning_rate) for _, o in learned.values() if o is not None]

    def anneal(self, fraction):
        """Learning rates are this fraction of the initial ones from now on, if the run anneals them at all."""
        if self.annealed:
            for optimizer, rate in self.rates:
                optimizer.learning_rate = fraction * rate
