#!/usr/bin/env python
"""How to use your own environment, for example in a notebook: a class, eight copies side by side, and A2C.

    python examples/own_environment.py

You need not register the environment, and you need no command line. The generator `a2c` improves θ in place. You write
the loop over its updates.
"""

from npg.runner import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()  # Ctrl-C during the imports ends the program at once

import argparse

import gymnasium
import numpy as np
from gymnasium import spaces

from npg.actor_critic import a2c
from npg.distributions import Categorical
from npg.network import MLP
from npg.optimizers import Adam
from npg.policy import ActorCritic, Critic, Policy
from npg.rollout import Sampler


class Corridor(gymnasium.Env):
    """Ten places in a row. A step costs 0.1. The last place pays 1 and ends the episode. The time limit is 50 steps."""

    observation_space, action_space = spaces.Box(0, 1, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = int(self.np_random.integers(5)), 0
        return np.array([self.place / 9], np.float32), {}

    def step(self, action):
        self.place, self.time = max(0, self.place + (1 if action == 1 else -1)), self.time + 1
        terminated = self.place == 9  # the task is over; the time limit is `truncated`
        return np.array([self.place / 9], np.float32), float(terminated) - 0.1, terminated, self.time == 50, {}


def train(updates=200, seed=0):
    """Trains with A2C; returns the mean return of the last 100 episodes. That of a perfect policy is 0.3."""
    sampler = Sampler(gymnasium.vector.SyncVectorEnv([Corridor] * 8), seed)
    model = ActorCritic(Policy(MLP((1, 16, 2)), Categorical(2)), Critic(MLP((1, 16, 1))))
    theta, returns = model.init(np.random.default_rng(seed)), []
    for k, update in zip(range(updates), a2c(sampler, model, theta, Adam(theta, 1e-2), n_steps=16, entropy_coef=0.01)):
        returns += update["rollout"].episode_returns
        if k % 50 == 49:
            print(f"update {k + 1}: mean return {np.mean(returns[-100:]):.2f}")
    return np.mean(returns[-100:])


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    raise SystemExit(interrupts.run(train))
