#!/usr/bin/env python
"""Pong from pixels, in minutes, in plain NumPy: 6400 numbers in, 200 hidden units, the probability of UP out.

    python run_pong.py                                        PPO, the fastest that reliably wins
    python run_pong.py --algo reinforce --target -5           Karpathy's own method, on difference frames
    python run_pong.py --evaluate pretrained                  full games to 21 of the pretrained player
    python run_pong.py --gif pretrained
"""

import os
import pathlib
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: the other core is the emulator's

from npg.distributions import Bernoulli
from npg.pong import INPUTS, LitMLP, RallySampler, make_env, make_envs
from npg.runner.command_line import main, unit
from npg.runner.training import Task

COMMON = {
    "hidden": [200],
    "activation": "relu",
    "inputs": "trail",
    "sticky": 0.0,
    "gamma": 0.99,
    "anneal": True,
    "standardise": True,
    "max_grad_norm": 0.5,
    "act": "sharpened",  # the most likely actions may keep a rally going for ever
}
SETTINGS = {
    "ppo": {
        **COMMON,
        "envs": 32,
        "n_steps": 64,
        "ahead": 2,
        "lam": 0.98,
        "learning_rate": 1.2e-3,
        "shared": True,
        "epochs": 3,
        "batch_size": 512,
        "importance": "clipped",
        "capacity": 1,
        "value_weight": 0.5,
        "entropy_weight": 0.005,
    },
    "a2c": {
        **COMMON,
        "envs": 32,
        "n_steps": 16,
        "lam": 0.98,
        "learning_rate": 1e-3,
        "shared": True,
        "value_weight": 0.5,
        "entropy_weight": 0.005,
    },
    "a3c": {
        **COMMON,
        "inputs": "half",  # with which the rest was tuned
        "envs": 8,
        "n_steps": 64,
        "lam": 0.98,
        "learning_rate": 1e-3,
        "shared": True,
        "value_weight": 2.0,
        "entropy_weight": 0.01,
        "report_every": 8192,
        "statistics": "shared",
        "rms_epsilon": 1e-9,
        "epsilons": [0.0],
        "temperatures": [1.0],
    },
    "actor-critic": {
        **COMMON,
        "envs": 32,
        "n_steps": 16,
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "shared": False,
        "estimation": "mc",
        "proximal": 0.0,
        "epochs": 1,
        "batch_size": 512,
        "entropy_weight": 0.005,
    },
    "reinforce": {
        **COMMON,
        "inputs": "difference",
        "envs": 8,
        "learning_rate": 5e-3,
        "critic_learning_rate": 1e-3,
        "anneal": False,
        "weight": "reward-to-go",
        "baseline": "none",
        "epochs": 1,
        "batch_size": 512,
        "max_grad_norm": None,
        "entropy_weight": 0.0,
    },
}
FLAGS = {
    "baseline": ({"choices": ["none", "state"]}, "subtracted from Ψ; the others ask for one return a game"),
    "inputs": ({"choices": sorted(INPUTS)}, "what of the last frames the network sees"),
    "sticky": ({"type": unit}, "probability that a frame repeats the last action"),
}

TASK = Task(
    description=__doc__.splitlines()[0],
    env="Pong",
    algo="ppo",
    settings=SETTINGS,
    continuous_settings={},
    steps=2_000_000,
    evaluate_every=25,
    episodes=30,
    make_envs=make_envs,
    make_env=make_env,
    distribution=lambda envs: Bernoulli(),
    target=lambda env: 18.0,
    flags=FLAGS,
    environment=("inputs", "sticky"),
    playing=("sticky",),
    environment_in_worker={"num_threads": 1},
    make_sampler=RallySampler,
    make_network=LitMLP,
    play_side_by_side=6,  # few: the longest game is ten times as long as most
    evaluate_within=5.0,
    checkpoint_every="100",
    pretrained=pathlib.Path(__file__).with_name("npg") / "pong.npz",
)

if __name__ == "__main__":
    sys.exit(main(TASK))
