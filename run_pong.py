#!/usr/bin/env python
"""Pong from pixels in minutes, in plain NumPy: 6400 inputs, 200 hidden units, the probability of UP as output.

    python run_pong.py                                        PPO, the fastest algorithm; it reached +18 on 5 of 5 seeds
    python run_pong.py --algo reinforce --target -5           Karpathy's own method, on difference frames
    python run_pong.py --evaluate pretrained                  the pretrained player plays full games to 21
    python run_pong.py --gif pretrained                       the pretrained player plays one game in policy.gif

`LitMLP` is the MLP of the slides; to save time, it skips dark inputs. `reinforce` uses the slides' network, 6400–200–1.
The default, `ppo`, uses one network for actor and critic. Its second output is the value: 6400–200–2.

The weight of an action contains only the result of its own rally, discounted (`RallySampler`). The slide's R(τ) is the
sum of all points of the game. But an action cannot change earlier points. And it hardly changes later points, because
every rally starts anew.
"""

import os
import pathlib
import sys

from npg.runner import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()  # if Ctrl-C comes during the imports
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy's import: the emulator uses the other core

import functools

import npg.a3c
import npg.actor_critic
import npg.reinforce
import npg.replay
from npg.baselines import StateBaseline
from npg.distributions import Bernoulli
from npg.exploration import exploring
from npg.optimizers import OPTIMIZERS
from npg.policy import ActorCritic, Critic, Policy, SharedActorCritic
from npg.pong import LitMLP, RallySampler
from npg.runner.command_line import main
from npg.runner.environments import make_pong_env, make_pong_envs
from npg.runner.script import Script
from npg.runner.task import INIT, Learner


def reinforce(task, *, inputs="difference", envs=8, learning_rate=5e-3, optimizer="adam", anneal=False,
              baseline="none", critic_learning_rate=1e-3, epochs=1, batch_size=512,
              gamma=0.99, standardise=True, **settings):
    """REINFORCE as in Karpathy's code: the discounted result of a rally is the weight of its actions.

    The slides take R(τ), the points of the whole game. `--weight total --gamma 1` takes the points of the rally.

    The baseline is none or state. The others need one return per game.
    """
    if baseline not in ("none", "state"):
        raise ValueError(f"baseline: expected none or state (the others need one return per game), got {baseline!r}")
    rng, sampler = task.rng(INIT), task.sampler(envs, RallySampler, inputs=inputs)
    policy = Policy(LitMLP((6400, 200, 1), "relu"), Bernoulli())  # the probability of UP
    theta = policy.init(rng)
    theta_optimizer = OPTIMIZERS[optimizer](theta, learning_rate)
    learned = {"theta": (theta, theta_optimizer)}
    if baseline == "state":
        critic = Critic(LitMLP((6400, 200, 1), "relu"))
        phi = critic.init(rng)
        phi_optimizer = OPTIMIZERS[optimizer](phi, critic_learning_rate)
        learned["phi"] = phi, phi_optimizer
        b = StateBaseline(critic, phi, phi_optimizer, sampler.rng, epochs, batch_size)
    else:
        b = npg.reinforce.BASELINES[baseline]
    updates = npg.reinforce.reinforce(
        sampler, policy, theta, theta_optimizer, b, gamma=gamma, standardise=standardise, **settings
    )
    return Learner(policy, updates, learned, anneal=anneal)


def make_model(shared):
    """One network with two outputs, the probability of UP and the value; or one network for each output."""
    if shared:
        return SharedActorCritic(LitMLP((6400, 200, 2), "relu"), Bernoulli())
    policy = Policy(LitMLP((6400, 200, 1), "relu"), Bernoulli())
    return ActorCritic(policy, Critic(LitMLP((6400, 200, 1), "relu")))


def actor_critic(task, *, envs=32, shared=False, learning_rate=1e-3, optimizer="adam", anneal=True,
                 critic_learning_rate=1e-3, n_steps=16, epochs=1, batch_size=512, entropy_coef=0.005,
                 max_grad_norm: float | None = 0.5, **settings):
    """Batch actor-critic, the lecture's five steps: fit V, then use one-step advantages."""
    sampler, model = task.sampler(envs, RallySampler), make_model(shared)
    theta = model.init(task.rng(INIT))  # one vector holds the parameters of actor and critic; two optimizers change it
    actor_optimizer = OPTIMIZERS[optimizer](theta, learning_rate)
    critic_optimizer = OPTIMIZERS[optimizer](theta, critic_learning_rate)
    updates = npg.actor_critic.actor_critic(
        sampler, model, theta, actor_optimizer, critic_optimizer, n_steps=n_steps, epochs=epochs,
        batch_size=batch_size, entropy_coef=entropy_coef, max_grad_norm=max_grad_norm, **settings)
    learned = {"theta": (theta, actor_optimizer), "critic": (theta, critic_optimizer)}
    return Learner(model, updates, learned, anneal=anneal)


def a2c(task, *, envs=32, shared=True, learning_rate=1e-3, optimizer="adam", anneal=True, workers: int | None = None,
        lam=0.98, entropy_coef=0.005, standardise=True, max_grad_norm: float | None = 0.5, **settings):
    """A2C: one gradient for actor and critic, with GAE(λ) advantages.

    With workers, each worker computes a gradient, and θ follows their mean.
    """
    model = make_model(shared)
    theta = model.init(task.rng(INIT))
    optimizer = OPTIMIZERS[optimizer](theta, learning_rate)
    settings.update(lam=lam, entropy_coef=entropy_coef, standardise=standardise)
    if workers:
        one_gradient = functools.partial(npg.a3c.rollout_gradient, **settings)
        gradients = task.gradients(workers, envs, model, one_gradient, RallySampler)
        updates = npg.a3c.parallel_a2c(gradients, theta, optimizer, max_grad_norm=max_grad_norm)
    else:
        sampler = task.sampler(envs, RallySampler)
        updates = npg.actor_critic.a2c(sampler, model, theta, optimizer, max_grad_norm=max_grad_norm, **settings)
    return Learner(model, updates, {"theta": (theta, optimizer)}, anneal=anneal)


def a3c(task, *, inputs="half", envs=8, shared=True, learning_rate=1e-3, optimizer="rmsprop", rms_epsilon=1e-9,
        anneal=True, workers=0, report_every=8192, statistics="shared", epsilons=(0.0,),
        temperatures=(1.0,), n_steps=64, lam=0.98, value_coef=2.0, entropy_coef=0.01, standardise=True, **settings):
    """A3C, Algorithm S3: each worker applies its own gradient immediately to the θ that all workers share.

    By default, there is one worker per core: the command line replaces workers=0.
    """
    model = make_model(shared)
    theta = model.init(task.rng(INIT))
    more = {"epsilon": rms_epsilon} if optimizer == "rmsprop" else {}
    optimizer = OPTIMIZERS[optimizer](theta, learning_rate, **more)
    explorers = [exploring(model, epsilons[k % len(epsilons)], temperatures[k % len(temperatures)])
                 for k in range(workers)]  # the workers may explore in different ways
    learn = functools.partial(npg.a3c.actor_learner, n_steps=n_steps, lam=lam, value_coef=value_coef,
                              entropy_coef=entropy_coef, standardise=standardise, **settings)
    updates, learned, counters = task.asynchronous(
        envs, explorers, learn, theta, optimizer, statistics, report_every, RallySampler, inputs=inputs)
    return Learner(model, updates, learned, anneal=anneal, more=counters)


def ppo(task, *, envs=32, ahead=2, shared=True, learning_rate=1.2e-3, optimizer="adam", anneal=True, capacity=1,
        n_steps=64, lam=0.98, epochs=3, batch_size=512, entropy_coef=0.005, **settings):
    """PPO: A2C that takes several steps on the same experience, with clipped importance weights."""
    if ahead and n_steps == 1:
        raise ValueError("n_steps: expected at least 2 with ahead, got 1")
    sampler, model = task.sampler(envs, RallySampler, ahead), make_model(shared)
    theta = model.init(task.rng(INIT))
    optimizer = OPTIMIZERS[optimizer](theta, learning_rate)
    buffer = npg.replay.ExperienceBuffer(capacity)
    updates = npg.replay.ppo(
        sampler, model, theta, optimizer, buffer, n_steps=n_steps, lam=lam, epochs=epochs, batch_size=batch_size,
        entropy_coef=entropy_coef, **settings
    )
    return Learner(model, updates, {"theta": (theta, optimizer)}, anneal=anneal, buffer=buffer)


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
    "reinforce": (reinforce, npg.reinforce.reinforce),
}
SCRIPT = Script(
    ALGORITHMS,
    train,
    description=(__doc__ or "").partition("\n")[0],
    defaults={
        "env": "Pong",
        "steps": 2_000_000,
        "target": 18.0,
        "evaluate_every": 25,
        "act": "sharpened",  # the most likely actions may keep a rally going for ever
    },
    window=30,
    solved_by_evaluations=True,
    evaluate_within=5.0,
    make_envs=make_pong_envs,
    make_env=make_pong_env,
    one_logit=True,
    worker_options={"num_threads": 1},
    side_by_side=6,  # few, because the longest game is ten times as long as most games
    step_cost=1.5,  # training has more games side by side, and plays them while it learns
    playing=("sticky",),
    pretrained=pathlib.Path(__file__).with_name("npg") / "pong.npz",
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
