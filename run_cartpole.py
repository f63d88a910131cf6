#!/usr/bin/env python
"""Policy gradients in plain NumPy: train on CartPole, or on another Gymnasium environment with Discrete or Box spaces.

    python run_cartpole.py                                    solves CartPole in seconds
    python run_cartpole.py --algo reinforce --baseline time
    python run_cartpole.py --env Pendulum-v1 --steps 200000
    python run_cartpole.py --algo es                          a search, which uses only f(θ)

Each algorithm is one function of this script. The function makes the parts: networks, optimizers, sampler. Then it
calls the algorithm in `npg`. Settings that the function does not name go to the function or class in `npg` through
`**settings`. The defaults in this script were tuned on seeds 100 to 129. They are not part of the algorithms.
"""

import os
import sys

from npg.runner import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()  # if Ctrl-C comes during the imports
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy's import: one thread is fastest for small matrices

import functools

import numpy as np

import npg.a3c
import npg.actor_critic
import npg.reinforce
import npg.replay
from npg.baselines import StateBaseline
from npg.exploration import exploring
from npg.gradient_free import EvolutionStrategy, FiniteDifference, Genetic, HillClimbing, KohlStone, search
from npg.network import MLP
from npg.optimizers import OPTIMIZERS, SGD
from npg.policy import ActorCritic, Critic, Policy, SharedActorCritic
from npg.runner.command_line import main
from npg.runner.script import Script
from npg.runner.task import INIT, TRAIN, Learner


def reinforce(task, *, envs=4, hidden=(64, 64), activation="tanh", learning_rate=4e-3, optimizer="adam", anneal=True,
              baseline="state", critic_learning_rate=1e-2, epochs=5, batch_size=256,
              gamma=0.99, standardise=True, max_grad_norm: float | None = 0.5, **settings):
    """REINFORCE with any weight Ψ (--weight) and any baseline (--baseline).

    The slide's settings: --weight total --baseline none --gamma 1 --no-standardise --max-grad-norm none
    --optimizer sgd --learning-rate 3e-5 --no-anneal
    """
    rng, sampler = task.rng(INIT), task.sampler(envs)
    network = MLP((task.n_obs, *hidden, task.n_out), activation)
    # π_θ(a|s): softmax for Discrete actions, Gaussian for Box actions (`tail` holds its log σ)
    policy = Policy(network, task.distribution, task.tail, task.learn_tail)
    theta = policy.init(rng)
    theta_optimizer = OPTIMIZERS[optimizer](theta, learning_rate)
    learned = {"theta": (theta, theta_optimizer)}
    if baseline == "state":  # V_φ(s), fitted to Ψ
        critic = Critic(MLP((task.n_obs, *hidden, 1), activation))
        phi = critic.init(rng)
        phi_optimizer = OPTIMIZERS[optimizer](phi, critic_learning_rate)
        learned["phi"] = phi, phi_optimizer
        b = StateBaseline(critic, phi, phi_optimizer, sampler.rng, epochs, batch_size)
    else:
        b = npg.reinforce.BASELINES[baseline]  # a function of the rollout
    alone = ("leave-one-out", "time") + (("constant", "optimal") if settings.get("weight") == "total" else ())
    if envs < 2 and baseline in alone:
        raise ValueError(f"envs: expected at least 2 with baseline {baseline} (b would be Ψ itself), got {envs}")
    updates = npg.reinforce.reinforce(
        sampler, policy, theta, theta_optimizer, b, gamma=gamma, standardise=standardise, max_grad_norm=max_grad_norm,
        **settings
    )
    return Learner(policy, updates, learned, anneal=anneal)


def q_actor_critic(task, *, envs=8, hidden=(64, 64), activation="tanh", learning_rate=1e-3, optimizer="rmsprop",
                   anneal=True, critic_learning_rate=3e-3, entropy_coef=0.01, max_grad_norm: float | None = 0.5,
                   **settings):
    """Q actor-critic: the critic's Q_w(s, a) replaces the return.

    The slide's settings: --no-subtract-value --no-standardise --entropy-coef 0 --max-grad-norm none --optimizer sgd
    --learning-rate 1e-2 --no-anneal
    """
    rng, sampler = task.rng(INIT), task.sampler(envs)
    network = MLP((task.n_obs, *hidden, task.n_out), activation)
    policy = Policy(network, task.distribution, task.tail, task.learn_tail)  # π_θ(a|s)
    theta = policy.init(rng)
    if task.is_box:
        critic = npg.actor_critic.ContinuousQ(MLP((task.n_obs + task.n_act, *hidden, 1), activation))  # Q_w(s, a)
    else:
        critic = npg.actor_critic.DiscreteQ(MLP((task.n_obs, *hidden, task.n_act), activation))  # Q_w(s, ·)
    w = critic.init(rng)
    theta_optimizer = OPTIMIZERS[optimizer](theta, learning_rate)
    w_optimizer = OPTIMIZERS[optimizer](w, critic_learning_rate)
    updates = npg.actor_critic.q_actor_critic(
        sampler, policy, theta, theta_optimizer, critic, w, w_optimizer, entropy_coef=entropy_coef,
        max_grad_norm=max_grad_norm, **settings
    )
    return Learner(policy, updates, {"theta": (theta, theta_optimizer), "w": (w, w_optimizer)}, anneal=anneal)


def make_model(task, hidden, activation, shared):
    """The lecture's two designs: two networks, or one network that also outputs the value."""
    if shared:
        network = MLP((task.n_obs, *hidden, task.n_out + 1), activation)
        return SharedActorCritic(network, task.distribution, task.tail, task.learn_tail)
    network = MLP((task.n_obs, *hidden, task.n_out), activation)
    policy = Policy(network, task.distribution, task.tail, task.learn_tail)  # π_θ(a|s)
    return ActorCritic(policy, Critic(MLP((task.n_obs, *hidden, 1), activation)))  # V_φ(s)


def actor_critic(task, *, envs=8, hidden=(64, 64), activation="tanh", shared=False, learning_rate=3e-3,
                 optimizer="rmsprop", anneal=True, critic_learning_rate=1e-2, max_grad_norm: float | None = 0.5,
                 **settings):
    """Batch actor-critic, the lecture's five steps: fit V, then use one-step advantages.

    The slide's settings: --no-standardise --max-grad-norm none --optimizer sgd --learning-rate 1e-2 --no-anneal
    """
    sampler = task.sampler(envs)
    model = make_model(task, hidden, activation, shared)
    theta = model.init(task.rng(INIT))  # one vector holds the parameters of actor and critic; two optimizers change it
    actor_optimizer = OPTIMIZERS[optimizer](theta, learning_rate)
    critic_optimizer = OPTIMIZERS[optimizer](theta, critic_learning_rate)
    updates = npg.actor_critic.actor_critic(
        sampler, model, theta, actor_optimizer, critic_optimizer, max_grad_norm=max_grad_norm, **settings
    )
    learned = {"theta": (theta, actor_optimizer), "critic": (theta, critic_optimizer)}
    return Learner(model, updates, learned, anneal=anneal)


def a2c(task, *, envs=32, hidden=(64, 64), activation="tanh", shared=False, learning_rate=6e-3, optimizer="rmsprop",
        anneal=True, workers: int | None = None,
        n_steps=5, lam=1.0, max_grad_norm: float | None = 0.5, **settings):
    """A2C: one gradient for actor and critic, with GAE(λ) advantages.

    With workers, each worker computes a gradient, and θ follows their mean.
    """
    model = make_model(task, hidden, activation, shared)
    theta = model.init(task.rng(INIT))
    optimizer = OPTIMIZERS[optimizer](theta, learning_rate)
    settings.update(n_steps=n_steps, lam=lam)
    if workers:
        one_gradient = functools.partial(npg.a3c.rollout_gradient, **settings)
        gradients = task.gradients(workers, envs, model, one_gradient)
        updates = npg.a3c.parallel_a2c(gradients, theta, optimizer, max_grad_norm=max_grad_norm)
    else:
        updates = npg.actor_critic.a2c(
            task.sampler(envs), model, theta, optimizer, max_grad_norm=max_grad_norm, **settings
        )
    return Learner(model, updates, {"theta": (theta, optimizer)}, anneal=anneal)


def a3c(task, *, envs=8, hidden=(64, 64), activation="tanh", shared=False, learning_rate=2e-3, optimizer="rmsprop",
        rms_epsilon=1e-5, anneal=True, workers=0, report_every=2000, statistics="shared",
        epsilons=(0.0,), temperatures=(1.0,), n_steps=5, lam=1.0, **settings):
    """A3C, Algorithm S3: each worker applies its own gradient immediately to the θ that all workers share.

    By default, there is one worker per core: the command line replaces workers=0.

    The slide's settings: --envs 1 --max-grad-norm none --value-coef 2 --no-anneal
    """
    model = make_model(task, hidden, activation, shared)
    theta = model.init(task.rng(INIT))
    more = {"epsilon": rms_epsilon} if optimizer == "rmsprop" else {}
    optimizer = OPTIMIZERS[optimizer](theta, learning_rate, **more)
    explorers = [exploring(model, epsilons[k % len(epsilons)], temperatures[k % len(temperatures)])
                 for k in range(workers)]  # the workers may explore in different ways
    settings.update(n_steps=n_steps, lam=lam)
    learn = functools.partial(npg.a3c.actor_learner, **settings)
    updates, learned, counters = task.asynchronous(envs, explorers, learn, theta, optimizer, statistics, report_every)
    return Learner(model, updates, learned, anneal=anneal, more=counters)


def ppo(task, *, envs=16, hidden=(32, 32), activation="tanh", shared=False, learning_rate=8e-3, optimizer="adam",
        anneal=True, capacity=1, n_steps=64, epochs=8, clip=0.12, **settings):
    """PPO: A2C that takes several steps on the same experience, with clipped importance weights."""
    sampler = task.sampler(envs)
    model = make_model(task, hidden, activation, shared)
    theta = model.init(task.rng(INIT))
    optimizer = OPTIMIZERS[optimizer](theta, learning_rate)
    buffer = npg.replay.ExperienceBuffer(capacity)
    updates = npg.replay.ppo(
        sampler, model, theta, optimizer, buffer, n_steps=n_steps, epochs=epochs, clip=clip, **settings
    )
    return Learner(model, updates, {"theta": (theta, optimizer)}, anneal=anneal, buffer=buffer)


def es(task, *, envs=1, hidden=(), activation="tanh", learning_rate=0.2, anneal=False, common_seeds=True,
       search_sigma="fixed", search_log_std=-1.0, shaping="standardise", workers: int | None = None, **settings):
    """Evolution strategy for a deterministic policy: estimates ∇_μ E[F(θ)], θ ~ N(μ, σ²), by the score function.

    The slide's settings: --shaping none --learning-rate 2e-3
    """
    policy = Policy(MLP((task.n_obs, *hidden, task.n_act), activation), task.deterministic)  # a = π_θ(s), or argmax h_θ
    theta, rng = policy.init(task.rng(INIT)), task.rng(TRAIN)
    optimizer = SGD(theta, learning_rate)
    sigma_optimizer = SGD(theta, learning_rate) if search_sigma == "learned" else None
    method = EvolutionStrategy(theta, optimizer, np.exp(search_log_std), sigma_optimizer, shaping=shaping, **settings)
    evaluate = task.evaluator(policy, envs, rng, common_seeds, workers)  # F(θ): the mean of `envs` episodes
    learned = {"theta": (theta, optimizer), "sigma": (method.log_std, sigma_optimizer)}
    return Learner(policy, search(method, evaluate, rng), learned, anneal=anneal, method=method)


def finite_difference(task, *, envs=1, hidden=(), activation="tanh", learning_rate=0.1, optimizer="adam", anneal=False,
                      common_seeds=True, scheme="forward", epsilon=0.3, n_candidates=15, workers: int | None = None):
    """Estimates ∂U/∂θ_k of a deterministic policy by finite differences, or by Kohl and Stone's method (with SGD).

    The slide's settings: --optimizer sgd --learning-rate 1e-2
    """
    policy = Policy(MLP((task.n_obs, *hidden, task.n_act), activation), task.deterministic)  # a = π_θ(s), or argmax h_θ
    theta, rng = policy.init(task.rng(INIT)), task.rng(TRAIN)
    if scheme == "kohl-stone":
        optimizer = SGD(theta, learning_rate)
        method = KohlStone(theta, optimizer, epsilon=epsilon, n_candidates=n_candidates)
    else:
        optimizer = OPTIMIZERS[optimizer](theta, learning_rate)
        method = FiniteDifference(theta, optimizer, epsilon=epsilon, scheme=scheme)
    evaluate = task.evaluator(policy, envs, rng, common_seeds, workers)
    return Learner(policy, search(method, evaluate, rng), {"theta": (theta, optimizer)}, anneal=anneal, method=method)


def hill_climbing(task, *, envs=1, hidden=(), activation="tanh", common_seeds=True, search_log_std=-1.0,
                  n_candidates=14, narrow=0.9, patience=10, workers: int | None = None, **settings):
    """Hill climbing for a deterministic policy: x moves to the best candidate near x, if it is better than x."""
    policy = Policy(MLP((task.n_obs, *hidden, task.n_act), activation), task.deterministic)  # a = π_θ(s), or argmax h_θ
    theta, rng = policy.init(task.rng(INIT)), task.rng(TRAIN)
    method = HillClimbing(
        theta, np.exp(search_log_std), n_candidates=n_candidates, narrow=narrow, patience=patience, **settings
    )
    evaluate = task.evaluator(policy, envs, rng, common_seeds, workers)
    return Learner(policy, search(method, evaluate, rng), {"theta": (theta, None)}, method=method)


def genetic(task, *, envs=1, hidden=(), activation="tanh", common_seeds=True, search_log_std=-1.0,
            workers: int | None = None, **settings):
    """Genetic algorithm for a deterministic policy: the best candidates are the parents of the next generation."""
    policy = Policy(MLP((task.n_obs, *hidden, task.n_act), activation), task.deterministic)  # a = π_θ(s), or argmax h_θ
    theta, rng = policy.init(task.rng(INIT)), task.rng(TRAIN)
    method = Genetic(theta, np.exp(search_log_std), **settings)
    evaluate = task.evaluator(policy, envs, rng, common_seeds, workers)
    return Learner(policy, search(method, evaluate, rng), {"theta": (theta, None)}, method=method)


def train(run, learner):
    """Makes update after update, until the task is solved or the budget of steps is spent."""
    for update in learner.updates:  # sample, weigh, step
        run.record(update)  # metrics.csv, evaluations, checkpoints; raises Diverged at a NaN
        if run.is_over():  # solved, no steps are left, or Ctrl-C
            break
        learner.anneal(run.left)  # with --anneal the learning rates fall to 0 over --steps


# --algo: (its function above, the function or class that receives its **settings)
ALGORITHMS = {
    "ppo": (ppo, npg.replay.ppo),
    "a2c": (a2c, npg.actor_critic.a2c),
    "a3c": (a3c, npg.a3c.actor_learner),
    "actor-critic": (actor_critic, npg.actor_critic.actor_critic),
    "q-actor-critic": (q_actor_critic, npg.actor_critic.q_actor_critic),
    "reinforce": (reinforce, npg.reinforce.reinforce),
    "es": (es, EvolutionStrategy),
    "finite-difference": (finite_difference,),
    "hill-climbing": (hill_climbing, HillClimbing),
    "genetic": (genetic, Genetic),
}
SEARCHES = "es", "finite-difference", "hill-climbing", "genetic"  # they use only f(θ)
# default --steps; with --anneal the learning rates fall over these steps. All other algorithms: 200,000
STEPS = {"ppo": 100_000, "q-actor-critic": 500_000, "a3c": 500_000, **dict.fromkeys(SEARCHES, 100_000)}
# defaults that are different in other environments than CartPole
ELSEWHERE = {
    "ppo": {"steps": 500_000, "hidden": (64, 64), "n_steps": 128, "learning_rate": 1e-3, "epochs": 10, "batch_size": 64,
            "clip": 0.2, "entropy_coef": 0.01, "scale_rewards": True},
}
# defaults that are different for Box actions; all others are those of ELSEWHERE
BOX = {
    "ppo": {"learning_rate": 5e-4, "entropy_coef": 0.0, "normalise_obs": True},
    "es": {"n_candidates": 8, "search_log_std": 0.0, "learning_rate": 1.0},
}
# defaults that are different with --shared, where large steps of the critic would spoil the hidden layers of the policy
SHARED = {
    "actor-critic": {"steps": 300_000, "critic_learning_rate": 1e-3, "estimation": "td"},
    "a2c": {"steps": 300_000},
}
SCRIPT = Script(ALGORITHMS, train, SEARCHES, (__doc__ or "").partition("\n")[0], elsewhere=ELSEWHERE, box=BOX,
                shared=SHARED, steps=STEPS)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
