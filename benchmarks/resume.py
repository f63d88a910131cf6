#!/usr/bin/env python
"""Checks that environments come back exactly, and measures the time of a resume (`npg.runner.replaying`).

    python benchmarks/resume.py                      100,000 steps each
    python benchmarks/resume.py Pong --steps 1000000

First, 8 environments take random actions. Then new environments replay the logs from a checkpoint. Both take 50 more
steps: their observations, rewards and ends of episodes must be the same, bit for bit.
"""

import argparse
import io
import sys
import time

import numpy as np

from npg.rollout import Sampler
from npg.runner.environments import ReplayableVectorEnv, UnsupportedEnvironment, make_envs, make_pong_envs
from npg.runner.figures import at_least
from npg.runner.replaying import below, flat, restore, state_of

ENVS = ["CartPole-v1", "Acrobot-v1", "MountainCarContinuous-v0", "Pendulum-v1", "FrozenLake-v1", "Taxi-v4"]
ENVS += ["LunarLander-v3", "BipedalWalker-v3", "Hopper-v5", "Ant-v5", "Pong"]


class Random:
    """A policy of random actions."""

    def __init__(self, space):
        self.space = space

    def act(self, theta, obs, rng):
        """Random actions for observations [N, n_obs]."""
        if hasattr(self.space, "n"):
            return rng.integers(self.space.n, size=len(obs))
        return rng.uniform(-1, 1, (len(obs), *self.space.shape)).astype(np.float32)


def measure(env, steps):
    """(whether env came back, whether it continued equally, seconds played, seconds of the resume, bytes saved)."""
    make = lambda: make_pong_envs(env, 8, sticky=0.25) if env == "Pong" else make_envs(env, 8)
    probe = make()
    spaces = probe.single_observation_space, probe.single_action_space
    policy = Random(spaces[1])
    one, other = (Sampler(ReplayableVectorEnv(make, 8, *spaces), 1) for _ in range(2))
    began = time.perf_counter()
    for _ in range(steps // 8 // 125):
        one.steps(policy, None, 125)
    played = time.perf_counter() - began
    file = io.BytesIO()
    np.savez(file, **flat({"sampler": state_of(one)}))
    file.seek(0)
    began = time.perf_counter()
    same = restore(other, below("sampler", dict(np.load(file, allow_pickle=False))))
    replayed = time.perf_counter() - began
    pairs = zip(one.steps(policy, None, 50)[:6], other.steps(policy, None, 50)[:6])
    return same, all(np.array_equal(x, y) for x, y in pairs), played, replayed, file.getbuffer().nbytes


def main():
    """Prints a table with one row per environment."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("envs", nargs="*", default=ENVS)
    parser.add_argument("--steps", type=at_least(1000), default=100_000)  # a rollout has 1,000
    args = parser.parse_args()
    print("| environment | restored | same afterwards | played, s | resume, s | saved, kB |\n|---|---|---|---|---|---|")
    for env in args.envs:
        try:
            back, same, played, replayed, size = measure(env, args.steps)
        except UnsupportedEnvironment as error:
            print(f"{env}: {error}", file=sys.stderr)
            continue
        yes = {True: "yes", False: "NO"}
        print(f"| {env} | {yes[back]} | {yes[same]} | {played:.1f} | {replayed:.2f} | {size / 1e3:.0f} |", flush=True)


if __name__ == "__main__":
    main()
