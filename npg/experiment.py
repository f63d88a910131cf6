"""From plain settings to something that learns: model, optimizers and one of the algorithms over given environments.

`settings` is a flat dict of plain values, saved with every run: hidden, activation, learning_rate; for a Gaussian
policy sigma and log_std; for actor-critics shared, and critic_learning_rate where the critic has its own; for reinforce
baseline, with epochs and batch_size of the state baseline; for ppo capacity of the experience buffer, and ahead, if
its rollouts are drawn by an `AheadSampler`. Everything else is a keyword argument of the algorithm itself
(`npg.reinforce.reinforce`, `npg.actor_critic.a2c`, …).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from npg import baselines
from npg.actor_critic import ContinuousQ, DiscreteQ, a2c, actor_critic, q_actor_critic
from npg.distributions import Gaussian
from npg.network import MLP
from npg.optimizers import Adam, state
from npg.policy import ActorCritic, Critic, Policy, SharedActorCritic
from npg.reinforce import reinforce
from npg.replay import ExperienceBuffer, ppo
from npg.rollout import AheadSampler, Sampler

INIT, TRAIN, EVALUATE = 0, 1, 2  # what a stream of random numbers is for: those of one seed never meet

BASELINES = {
    "none": baselines.none,
    "constant": baselines.constant,
    "optimal": baselines.optimal_constant,
    "leave-one-out": baselines.leave_one_out,
    "time": baselines.time_dependent,
    "state": baselines.StateBaseline,
}
ALGORITHMS = ("ppo", "a2c", "actor-critic", "q-actor-critic", "reinforce")


class Experiment(NamedTuple):
    """Something that learns, and all that must be saved of it."""

    policy: object  # policy.act(theta, obs, rng=None)
    theta: np.ndarray  # [size], updated in place
    updates: Iterator  # yields {"rollout": …, measures …} after each update
    arrays: dict  # {name: array}: write them back, and `reset`, and the run goes on as it would have
    reset: Callable  # reset(k): environments and random numbers begin anew, from the seed and k alone
    set_learning_rate: Callable  # set_learning_rate(fraction of the initial one)


def build(algo, envs, distribution, seed, settings, make_sampler=Sampler, make_network=MLP):
    """The `Experiment` of one algorithm on a Gymnasium vector environment; see the module for `settings`."""
    if algo not in ALGORITHMS:
        raise ValueError(f"algo: expected one of {ALGORITHMS}, got {algo!r}")
    settings = dict(settings)
    rng = np.random.default_rng([seed, INIT])
    sampler = make_sampler(envs, seed, TRAIN, 0)
    if settings.pop("ahead", False):
        sampler = AheadSampler(sampler, seed, TRAIN, 0)
    hidden, activation = settings.pop("hidden"), settings.pop("activation")
    rate = settings.pop("learning_rate")
    critic_rate = settings.pop("critic_learning_rate", rate)
    n_obs = envs.single_observation_space.shape[0]
    network = lambda n_out, n_in=n_obs: make_network((n_in, *hidden, n_out), activation)
    model = _model(algo, distribution, network, settings)
    theta = model.init(rng)
    vectors = {"theta": theta}
    optimizers = {"theta": Adam(theta, rate)}
    learn = (sampler, model, theta, optimizers["theta"])
    buffer = ExperienceBuffer(settings.pop("capacity", 1))

    if algo == "reinforce":
        fit = {name: settings.pop(name, None) for name in ("epochs", "batch_size")}  # of the state baseline alone
        baseline = BASELINES[settings.pop("baseline")]
        if baseline is baselines.leave_one_out and envs.num_envs < 2:
            raise ValueError("baseline: leave-one-out needs at least 2 envs")
        if baseline is baselines.StateBaseline:
            critic = Critic(network(1))
            phi = vectors["phi"] = critic.init(rng)
            optimizers["phi"] = Adam(phi, critic_rate)
            baseline = baseline(critic, phi, optimizers["phi"], sampler.rng, **fit)
        updates = reinforce(*learn, baseline=baseline, **settings)
    elif algo == "q-actor-critic":
        continuous = isinstance(distribution, Gaussian)
        critic = ContinuousQ(network(1, n_obs + distribution.n)) if continuous else DiscreteQ(network(distribution.n))
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

    memory = {f"{name}.{key}": array for name, opt in optimizers.items() for key, array in state(opt).items()}
    initial_rates = {name: opt.learning_rate for name, opt in optimizers.items()}

    def reset(k):
        sampler.reset(seed, TRAIN, k)
        buffer.clear()

    def set_learning_rate(fraction):
        for name, opt in optimizers.items():
            opt.learning_rate = fraction * initial_rates[name]

    return Experiment(model, theta, updates, {**vectors, **memory}, reset, set_learning_rate)


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
