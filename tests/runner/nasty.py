"""Environments that fail, for the tests. Their ids are nasty:NAME-v0; NAME tells how and where they fail."""

import os
import sys
import time

import gymnasium
import numpy as np
from gymnasium import spaces


def boom():
    raise ValueError("the user's mistake\nin two lines")


def leave():
    sys.exit(0)


class Odd(Exception):
    """Its pickle lacks its arguments, so it cannot be read."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def odd():
    raise Odd(1, 2)


def hang():
    """Prints a word, so that a test knows when to interrupt it, and does not return."""
    print("hangs", flush=True)
    while True:
        time.sleep(0.1)


ACTS = {"raise": boom, "exit": leave, "odd": odd, "print": lambda: print("hello"), "sleep": lambda: time.sleep(0.01),
        "fork": lambda: os.fork() or os._exit(0), "hang": hang, "none": lambda: None}  # fmt: skip
CALLS = "init", "reset", "step", "close"
RETURNS = "shape", "nan", "reward", "word", "info", "tuple", "text", "never", "once"


class Nasty(gymnasium.Env):
    """Does `act` in a call, such as "raise" in "step", or `returns` something wrong. Steps fail from the 20th on."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, act="none", call="step", returns="", render_mode=None):
        self.act, self.call, self.returns, self.n, self.t = ACTS[act], call, returns, 0, 0
        self.render_mode = render_mode
        if call == "init":
            self.act()

    def reset(self, *, seed=None, options=None):
        """Fails if `call` is "reset"."""
        super().reset(seed=seed)
        self.t = 0
        if self.call == "reset":
            self.act()
        return np.zeros(3, np.float32), {}

    def step(self, action):
        """Fails from the 20th call on, if it should."""
        self.n, self.t = self.n + 1, self.t + 1
        obs, over = np.full(3, self.t % 2, np.float32), self.t >= 10
        if self.n >= 20:
            if self.call == "step":
                self.act()
            if self.returns == "shape":
                obs = np.zeros(4, np.float32)
            if self.returns == "nan":
                obs = np.full(3, np.nan, np.float32)
            if self.returns == "tuple":
                return obs, 0.0
            if self.returns == "text":
                return "nothing", 0.0, False, False, {}
            if self.returns == "word":
                return obs, "good", over, False, {}
            if self.returns == "info":
                return obs, 0.0, over, False, None
        rew = np.nan if self.returns == "reward" else 1.0
        return obs, rew, over and self.returns != "never" or self.returns == "once", self.t >= 200, {}

    def render(self):
        """Always fails."""
        boom()

    def close(self):
        """Fails if `call` is "close"."""
        if self.call == "close":
            self.act()


IDS = {f"{act}-{call}": {"act": act, "call": call} for act in ACTS for call in CALLS if act != "none"}
IDS.update((returns, {"returns": returns}) for returns in RETURNS)
for name, options in IDS.items():
    gymnasium.register(f"{name}-v0", "nasty:Nasty", kwargs=options)
