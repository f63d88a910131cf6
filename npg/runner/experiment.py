"""From plain settings to something that learns: model, optimizers and one of the algorithms over given environments.

`settings` is a flat dict of plain values, saved with every run: hidden, activation, learning_rate; for a Gaussian
policy sigma and log_std; for actor-critics shared, and critic_learning_rate where the critic has its own; for reinforce
baseline, with epochs and batch_size of the state baseline; for ppo capacity of the experience buffer, and ahead, not 0
if an `AheadSampler` draws its rollouts; for a3c statistics, rms_epsilon, and the lists epsilons and temperatures, whose
entries the workers take in turn; for gradient-free methods common_seeds, and scheme, sigma and log_std where they have
them. Everything else is a keyword argument of the algorithm itself (`npg.reinforce.reinforce`,
`npg.actor_critic.a2c`, `npg.gradient_free.Genetic`, …).
"""

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np

from npg import baselines
from npg.a3c import OBJECTIVE, Actor, a3c, asynchronous_gradients, parallel_a2c, share, start_pool
from npg.actor_critic import ContinuousQ, DiscreteQ, a2c, actor_critic, q_actor_critic
from npg.distributions import Deterministic, Gaussian
from npg.exploration import exploring
from npg.gradient_free import (
    EvolutionStrategy,
    FiniteDifference,
    Genetic,
    HillClimbing,
    KohlStone,
    policy_evaluator,
    search,
)
from npg.network import MLP
from npg.optimizers import SGD, Adam, RMSProp, state
from npg.policy import ActorCritic, Critic, Policy, SharedActorCritic
from npg.reinforce import WEIGHTS, reinforce
from npg.replay import IMPORTANCE, ExperienceBuffer, ppo
from npg.rollout import AheadSampler, Sampler
from npg.runner.workers import Pool

INIT, TRAIN, EVALUATE = 0, 1, 2  # what a stream of random numbers is for: those of one seed never meet

BASELINES = {
    "none": baselines.none,
    "constant": baselines.constant,
    "optimal": baselines.optimal_constant,
    "leave-one-out": baselines.leave_one_out,
    "time": baselines.time_dependent,
    "state": baselines.StateBaseline,
}
# setting: what it may be
CHOICES = {"baseline": BASELINES, "weight": WEIGHTS, "importance": IMPORTANCE, "estimation": ("mc", "td")}
GRADIENT_FREE = ("es", "finite-difference", "hill-climbing", "genetic")
ALGORITHMS = ("ppo", "a2c", "a3c", "actor-critic", "q-actor-critic", "reinforce", *GRADIENT_FREE)
PARALLEL = ("a2c", "a3c", *GRADIENT_FREE)  # what workers are of use to; a3c is nothing without
TIME_LIMIT = 60  # seconds after which a worker counts as hung


class Experiment(NamedTuple):
    """Something that learns, and all that must be saved of it."""

    policy: object  # policy.act(theta, obs, rng=None)
    theta: np.ndarray  # [size], updated in place
    updates: Iterator  # yields {"rollout": …, measures …} after each update
    arrays: dict  # {name: array}: write them back, and `reset`, and the run goes on as it would have
    reset: Callable  # reset(k): environments and random numbers begin anew, from the seed and k alone
    set_learning_rate: Callable  # set_learning_rate(fraction of the initial one)


class Workers(NamedTuple):
    """Who computes gradients, or evaluates candidates, instead of this process."""

    n: int
    make_envs: Callable  # make_envs() → the vector environment of one; a function that pickles
    executor: Executor | None = None  # a cluster's; None: n processes of this machine


def build(
    algo,
    envs,
    distribution,
    seed,
    settings,
    make_sampler=Sampler,
    make_network=MLP,
    make_env=None,
    workers=None,
    more_envs=(),
):
    """The `Experiment` of one algorithm on a Gymnasium vector environment; see the module for `settings`.

    make_env   for gradient-free methods: (function, *arguments) that makes one such environment
    workers    `Workers`, which a3c needs; `envs` then only show what environments are like
    more_envs  as envs, for `ahead`: each for one more of the samplers whose environments stand side by side

    Synchronous workers of this machine repeat and resume bit for bit as one process does. Asynchronous ones depend on
    their timing: a run resumes from its θ, optimizer and counters, but no two are equal, and `reset` is only for the
    seeds of workers still to come.
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"algo: expected one of {ALGORITHMS}, got {algo!r}")
    if workers is None and algo == "a3c" or workers is not None and algo not in PARALLEL:
        raise ValueError(f"workers: expected {'some' if algo == 'a3c' else 'None'} for {algo}, got {workers}")
    settings = dict(settings)
    for name, known in CHOICES.items():
        if name in settings and settings[name] not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {settings[name]!r}")
    hidden, activation = settings.pop("hidden"), settings.pop("activation")
    n_obs = envs.single_observation_space.shape[0]
    network = lambda n_out, n_more=0: make_network((n_obs + n_more, *hidden, n_out), activation)
    if algo in GRADIENT_FREE:
        return _build_gradient_free(algo, envs, distribution, network, seed, settings, make_env, workers)
    model, rng = _model(algo, distribution, network, settings), np.random.default_rng([seed, INIT])
    theta = model.init(rng)
    if workers:
        return _build_on_workers(algo, model, theta, seed, settings, make_sampler, workers)
    if settings.pop("ahead", 0):
        samplers = [make_sampler(part, seed, TRAIN, 0, k) for k, part in enumerate((envs, *more_envs))]
        sampler = AheadSampler(samplers, seed, TRAIN, 0)
    else:
        sampler = make_sampler(envs, seed, TRAIN, 0)
    return _build_here(algo, sampler, model, theta, network, seed, settings, rng)


def _build_here(algo, sampler, model, theta, network, seed, settings, rng):
    """The algorithms that this process runs by itself; `rng` draws the first parameters of further networks."""
    rate = settings.pop("learning_rate")
    critic_rate = settings.pop("critic_learning_rate", rate)
    vectors = {"theta": theta}
    optimizers = {"theta": Adam(theta, rate)}
    learn = (sampler, model, theta, optimizers["theta"])
    buffer = ExperienceBuffer(settings.pop("capacity", 1))

    if algo == "reinforce":
        fit = {name: settings.pop(name, None) for name in ("epochs", "batch_size")}  # of the state baseline alone
        baseline = BASELINES[settings.pop("baseline")]
        if baseline is baselines.leave_one_out and sampler.envs.num_envs < 2:
            raise ValueError("baseline: leave-one-out needs at least 2 envs")
        if baseline is baselines.StateBaseline:
            critic = Critic(network(1))
            phi = vectors["phi"] = critic.init(rng)
            optimizers["phi"] = Adam(phi, critic_rate)
            baseline = baseline(critic, phi, optimizers["phi"], sampler.rng, **fit)
        updates = reinforce(*learn, baseline=baseline, **settings)
    elif algo == "q-actor-critic":
        continuous, n = isinstance(model.distribution, Gaussian), model.distribution.n
        critic = ContinuousQ(network(1, n_more=n)) if continuous else DiscreteQ(network(n))
        w = vectors["w"] = critic.init(rng)
        optimizers["w"] = Adam(w, critic_rate)
        updates = q_actor_critic(*learn, critic, w, optimizers["w"], **settings)
    elif algo == "actor-critic":
        optimizers["critic"] = Adam(theta, critic_rate)
        updates = actor_critic(*learn, optimizers["critic"], **settings)
    elif algo == "a2c":
        updates = a2c(*learn, **settings)
    else:
        updates = ppo(*learn, buffer=buffer, **settings)

    def reset(k):
        sampler.reset(seed, TRAIN, k)
        buffer.clear()

    return _experiment(model, theta, updates, vectors, optimizers, reset)


def _experiment(model, theta, updates, vectors, optimizers, reset):
    memory = {f"{name}.{key}": array for name, opt in optimizers.items() for key, array in state(opt).items()}
    initial_rates = {name: opt.learning_rate for name, opt in optimizers.items()}

    def set_learning_rate(fraction):
        for name, opt in optimizers.items():
            opt.learning_rate = fraction * initial_rates[name]

    return Experiment(model, theta, updates, {**vectors, **memory}, reset, set_learning_rate)


def _build_gradient_free(algo, envs, distribution, network, seed, settings, make_env, workers):
    """As `build`; each candidate plays as many episodes as `envs` has environments, in environments of its own.

    `envs` itself is only asked for its spaces and, where it normalises observations, holds their moments.
    """
    if isinstance(distribution, Gaussian):
        distribution = Deterministic(distribution.n)
    policy = Policy(network(distribution.n_params), distribution)
    theta, rng = policy.init(np.random.default_rng([seed, INIT])), np.random.default_rng([seed, TRAIN, 0])
    obs_rms, common = getattr(envs, "obs_rms", None), settings.pop("common_seeds")
    method, optimizers = _method(algo, theta, settings)

    def updates(executor=None):
        evaluate = policy_evaluator(policy, make_env, envs.num_envs, rng, obs_rms, common, executor)
        return search(method, evaluate, rng)

    def reset(k):
        rng.bit_generator.state = np.random.default_rng([seed, TRAIN, k]).bit_generator.state

    updates = _on_executor(functools.partial(_executor, workers), updates) if workers else updates()
    return _experiment(policy, theta, updates, state(method), optimizers, reset)


def _method(algo, theta, settings):
    """The gradient-free method, and its optimizers by name."""
    if algo == "finite-difference":
        scheme, rate, n = settings.pop("scheme"), settings.pop("learning_rate"), settings.pop("n_candidates")
        if scheme == "kohl-stone":
            optimizer = SGD(theta, rate)
            return KohlStone(theta, optimizer, n_candidates=n, **settings), {"theta": optimizer}
        optimizer = Adam(theta, rate)
        return FiniteDifference(theta, optimizer, scheme=scheme, **settings), {"theta": optimizer}
    sigma = np.exp(settings.pop("log_std"))
    if algo == "es":
        rate, kind = settings.pop("learning_rate"), settings.pop("sigma")
        if kind not in ("fixed", "learned"):
            raise ValueError(f"sigma: expected 'fixed' or 'learned' for es, got {kind!r}")
        optimizers = {"theta": SGD(theta, rate)}
        if kind == "learned":
            settings["sigma_optimizer"] = optimizers["sigma"] = SGD(theta, rate)
        return EvolutionStrategy(theta, optimizers["theta"], sigma, **settings), optimizers
    return {"hill-climbing": HillClimbing, "genetic": Genetic}[algo](theta, sigma, **settings), {}


def _build_on_workers(algo, model, theta, seed, settings, make_sampler, workers):
    rate, epsilon = settings.pop("learning_rate"), settings.pop("rms_epsilon", 1e-5)
    optimizer = RMSProp(theta, rate, epsilon=epsilon) if algo == "a3c" else Adam(theta, rate)
    epsilons, temperatures = settings.pop("epsilons", [0.0]), settings.pop("temperatures", [1.0])
    n_steps, statistics = settings.pop("n_steps"), settings.pop("statistics", "shared")
    options = {name: settings.pop(name) for name in ("max_grad_norm", "report_every") if name in settings}
    objective = {**OBJECTIVE, **settings}
    if objective.keys() != OBJECTIVE.keys():
        raise TypeError(f"settings: {algo} with workers has no use for {sorted(objective.keys() - OBJECTIVE.keys())}")
    begin, run = functools.partial(_new_sampler, make_sampler, workers.make_envs), uuid.uuid4().hex
    actors = []
    for k in range(workers.n):
        explorer = exploring(model, epsilons[k % len(epsilons)], temperatures[k % len(temperatures)])
        actors.append(Actor(run, begin, explorer, objective, n_steps, (seed, TRAIN, 0), k))

    def reset(k):
        actors[:] = [actor._replace(seeds=(seed, TRAIN, k)) for actor in actors]

    if algo == "a3c" and workers.executor is None:
        shared = share(theta, optimizer, workers.n, statistics)
        theta, counters = np.asarray(shared.theta), {"worker_steps": shared.steps, "worker_updates": shared.updates}
        vectors = {"theta": theta, **{name: np.asarray(array) for name, array in counters.items()}}
        different = shared.optimizers if statistics == "own" else shared.optimizers[:1]
        optimizers = {f"theta_{k}" if k else "theta": optimizer for k, optimizer in enumerate(different)}
        start = functools.partial(start_pool, actors, shared, timeout=TIME_LIMIT)
        updates = _on_executor(start, lambda pool: a3c(pool, shared, **options))
    else:
        options.pop("report_every", None)
        algorithm = parallel_a2c if algo == "a2c" else asynchronous_gradients
        vectors, optimizers = {"theta": theta}, {"theta": optimizer}
        start = functools.partial(_executor, workers)
        updates = _on_executor(start, lambda executor: algorithm(executor, actors, theta, optimizer, **options))
    return _experiment(model, theta, updates, vectors, optimizers, reset)


def _new_sampler(make_sampler, make_envs, *seeds):
    return make_sampler(make_envs(), *seeds)


def _executor(workers):
    """A pool for the time of a `with`; or the cluster's executor, which stays."""
    return Pool(workers.n, timeout=TIME_LIMIT) if workers.executor is None else contextlib.nullcontext(workers.executor)


def _on_executor(start, algorithm):
    """The updates of algorithm(executor), with the number of workers replaced during each."""
    restarted = 0
    with start() as executor:
        for update in algorithm(executor):
            before, restarted = restarted, getattr(executor, "restarted", 0)
            yield {**update, "workers_restarted": restarted - before}


def _model(algo, distribution, network, settings):
    """The policy, with a critic beside it where the algorithm has one; network(n_out) makes the networks."""
    n_out, tail = distribution.n_params, {}
    if isinstance(distribution, Gaussian):
        sigma, log_std = settings.pop("sigma"), settings.pop("log_std")
        if sigma != "state":
            n_out, tail = distribution.n, {"tail": log_std, "learn_tail": sigma == "learned"}

    if algo in ("reinforce", "q-actor-critic"):
        return Policy(network(n_out), distribution, **tail)
    if settings.pop("shared"):
        return SharedActorCritic(network(n_out + 1), distribution, **tail)
    return ActorCritic(Policy(network(n_out), distribution, **tail), Critic(network(1)))
