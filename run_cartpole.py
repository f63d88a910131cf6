#!/usr/bin/env python
"""Policy gradients in plain NumPy: train on CartPole, or on any Gymnasium environment with Discrete or Box actions.

    python run_cartpole.py                                    solves CartPole in a second
    python run_cartpole.py --algo reinforce --baseline time
    python run_cartpole.py --env Pendulum-v1 --steps 200000
    python run_cartpole.py --algo es                          nothing but f(θ)
"""

import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: one thread is fastest for small matrices

from npg.runner.command_line import main
from npg.runner.environments import default_distribution, make_env, make_envs, reward_threshold
from npg.runner.training import Task

COMMON = {
    "hidden": [64, 64],
    "activation": "tanh",
    "anneal": False,
    "normalise_obs": False,
    "entropy_weight": 0.0,
    "act": "most-likely",
}
SETTINGS = {
    "ppo": {
        **COMMON,
        "hidden": [32, 32],
        "envs": 16,
        "n_steps": 32,
        "gamma": 0.99,
        "lam": 0.95,
        "learning_rate": 8e-3,
        "shared": False,
        "epochs": 8,
        "batch_size": 256,
        "importance": "clipped",
        "capacity": 1,
        "standardise": True,
        "value_weight": 0.5,
        "max_grad_norm": 0.5,
    },
    "a2c": {
        **COMMON,
        "envs": 8,
        "n_steps": 16,
        "gamma": 0.99,
        "lam": 0.95,
        "learning_rate": 5e-3,
        "shared": False,
        "standardise": True,
        "value_weight": 0.05,
        "entropy_weight": 0.01,
        "max_grad_norm": 0.5,
    },
    "a3c": {
        **COMMON,
        "envs": 8,
        "n_steps": 16,
        "gamma": 0.99,
        "lam": 0.95,
        "learning_rate": 2e-3,
        "shared": False,
        "standardise": True,
        "value_weight": 0.5,
        "entropy_weight": 0.01,
        "max_grad_norm": 0.5,
        "report_every": 2000,
        "statistics": "shared",
        "rms_epsilon": 1e-5,
        "epsilons": [0.0],
        "temperatures": [1.0],
    },
    "actor-critic": {
        **COMMON,
        "envs": 8,
        "n_steps": 32,
        "gamma": 0.99,
        "learning_rate": 2e-3,
        "critic_learning_rate": 1e-2,
        "shared": False,
        "estimation": "td",
        "proximal": 0.0,
        "epochs": 5,
        "batch_size": 128,
        "standardise": True,
        "entropy_weight": 0.01,
        "max_grad_norm": 0.5,
    },
    "q-actor-critic": {
        **COMMON,
        "envs": 8,
        "n_steps": 64,
        "gamma": 0.99,
        "learning_rate": 2e-3,
        "critic_learning_rate": 1e-2,
        "entropy_weight": 0.01,
        "iterations": 4,
        "epochs": 2,
        "batch_size": 128,
        "subtract_value": True,
        "standardise": True,
        "max_grad_norm": 0.5,
    },
    "reinforce": {
        **COMMON,
        "envs": 8,
        "gamma": 0.99,
        "learning_rate": 1e-2,
        "critic_learning_rate": 1e-2,
        "weight": "reward-to-go",
        "baseline": "state",
        "epochs": 5,
        "batch_size": 256,
        "standardise": True,
        "max_grad_norm": 0.5,
    },
}
SEARCH = {"hidden": [], "activation": "tanh", "normalise_obs": False, "envs": 1, "common_seeds": True}
GRADIENT_FREE = {
    "es": {
        **SEARCH,
        "n_candidates": 16,
        "sigma": "fixed",
        "log_std": -1.0,
        "shaping": "standardise",
        "learning_rate": 0.2,
        "anneal": False,
    },
    "finite-difference": {
        **SEARCH,
        "scheme": "forward",
        "epsilon": 0.3,
        "n_candidates": 15,
        "learning_rate": 0.1,
        "anneal": False,
    },
    "hill-climbing": {
        **SEARCH,
        "n_candidates": 14,
        "log_std": -1.0,
        "widen": 1.5,
        "narrow": 0.9,
        "patience": 20,
    },
    "genetic": {
        **SEARCH,
        "n_candidates": 16,
        "log_std": -1.0,
        "n_parents": 4,
        "n_elite": 2,
        "crossover": False,
    },
}
GAUSSIAN = {"sigma": "learned", "log_std": 0.0}  # what a policy over Box actions needs besides
CONTINUOUS_SETTINGS = {algo: GAUSSIAN for algo in SETTINGS}
CONTINUOUS_SETTINGS["ppo"] = {
    **GAUSSIAN,
    "hidden": [64, 64],
    "envs": 16,
    "n_steps": 64,
    "gamma": 0.95,
    "learning_rate": 1e-3,
    "anneal": True,
    "epochs": 10,
    "batch_size": 64,
    "value_weight": 0.05,
}
CONTINUOUS_SETTINGS["es"] = {"n_candidates": 8, "log_std": 0.0, "learning_rate": 1.0}

TASK = Task(
    description=__doc__.splitlines()[0],
    env="CartPole-v1",
    algo="ppo",
    settings={**SETTINGS, **GRADIENT_FREE},
    continuous_settings=CONTINUOUS_SETTINGS,
    steps=500_000,
    evaluate_every=5,
    evaluate_always=tuple(GRADIENT_FREE),
    episodes=100,
    make_envs=make_envs,
    make_env=make_env,
    distribution=default_distribution,
    target=reward_threshold,
)

if __name__ == "__main__":
    sys.exit(main(TASK))
