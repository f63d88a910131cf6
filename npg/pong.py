"""Pong from pixels (the lecture's last part, after Karpathy 2016): what the player sees, and many games side by side.

A frame x is cut to the court and halved to 80 × 80, and its background is set to 0: 6400 numbers, each 0 or 1. One
frame does not show motion, so two or three frames make an observation:

    "difference"   x_t − x_{t−1}                Karpathy's input. Objects at rest, such as a paddle, are invisible
    "half"         2 x_t − x_{t−1}              x_t − ½ x_{t−1}, doubled: 1 rests, 2 has just come, −1 has just gone
    "trail"        4 x_t − 2 x_{t−1} − x_{t−2}  the same for three frames: each history of a pixel has its own number

The player acts in every fourth frame, and the paddle moves in every second frame. So games that begin after an odd
number of idle frames ("odd games") differ from games that begin after an even number ("even games"). The ball shows
which kind a game is: it is two pixels wide, moves one pixel per frame, and is at even or at odd columns. Karpathy keeps
only every second pixel, which hides the difference. "half" and "trail" set a number to 1 if any of its four pixels is
lit. The paddle also turns slowly. In even games, two frames do not show its direction or its next position. Three
frames do.

The environments need ale-py. It is imported when an environment is made: `pip install 'npg[atari]'`.
"""

from collections.abc import Callable
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from npg.network import MLP
from npg.rollout import Sampler

BACKGROUNDS = 87, 107  # grey levels of the court: during a game, and just before it
NOTHING, UP, DOWN = 0, 2, 3  # actions of the Atari; the policy's actions are 0 for DOWN and 1 for UP


def every_second(lit):
    """[..., 160, 160] → [..., 80, 80]: keeps one pixel of each 2 × 2 square."""
    return lit[..., ::2, ::2]


def any_of_four(lit):
    """[..., 160, 160] → [..., 80, 80]: True if any pixel of a 2 × 2 square is True."""
    rows = lit[..., ::2, :] | lit[..., 1::2, :]
    return rows.view(np.uint16) != 0  # two neighbours as one number: half the time of rows[..., ::2] | rows[..., 1::2]


class Inputs(NamedTuple):
    """The player's input: `halve` halves the court, and Σ_k w_k x_{t−k} is the observation."""

    halve: Callable
    weights: tuple  # w_0 of the frame x_t, then w_1, … of the frames before it

    def combine(self, frames):
        """Σ_k w_k x_{t−k} for frames (x_t, x_{t−1}, …), one frame per weight. The result is int8, as the frames are."""
        return sum(weight * x for weight, x in zip(self.weights, frames, strict=True))

    @property
    def space(self):
        """The space of the observations [6400]."""
        low, high = (sum(pick(weight, 0) for weight in self.weights) for pick in (min, max))
        return gymnasium.spaces.Box(low, high, (6400,), np.int8)


INPUTS = {
    "difference": Inputs(every_second, (1, -1)),
    "half": Inputs(any_of_four, (2, -1)),
    "trail": Inputs(any_of_four, (4, -2, -1)),
}


def preprocess(frames, halve):
    """Grey frames [..., 210, 160] → int8 [..., 6400]: 1 where something differs from the background, else 0."""
    court = frames[..., 34:194, :]
    lit = halve((court != BACKGROUNDS[0]) & (court != BACKGROUNDS[1]))
    return lit.reshape(*lit.shape[:-2], 6400).view(np.int8)


class PongVectorEnv(gymnasium.vector.VectorEnv):
    """`num_envs` games to 21 points, played by ale-py's own threads.

    Observations are [num_envs, 6400]. The actions are 0 for DOWN and 1 for UP.

    inputs  "difference", "half" or "trail"
    sticky  probability that a frame repeats the last frame's action instead of taking the new one
    num_threads   number of ale-py's threads; 0 means one per core

    A step is four frames. A game begins with up to 30 frames without an action; the seed determines how many. The
    autoreset mode is NEXT_STEP.
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
    single_action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, num_envs, inputs="trail", sticky=0.0, num_threads=0):
        if inputs not in INPUTS:
            raise ValueError(f"inputs: expected one of {', '.join(INPUTS)}, got {inputs!r}")
        self.games = _ale_py().vector_env.AtariVectorEnv(
            "pong", num_envs, img_height=210, img_width=160, stack_num=1, maxpool=False, frameskip=4,
            repeat_action_probability=sticky, use_fire_reset=False, num_threads=num_threads,
        )
        self.num_envs, self.inputs = num_envs, INPUTS[inputs]
        self.single_observation_space = self.inputs.space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        """Begins new games; returns observations [num_envs, 6400] and ale-py's infos."""
        screens, infos = self.games.reset(seed=seed)
        self.frames = _at_rest(preprocess(screens[:, 0], self.inputs.halve), self.inputs)
        self.ended = np.zeros(self.num_envs, bool)
        return self.inputs.combine(self.frames), infos

    def step(self, actions):
        """Returns observations [num_envs, 6400], rewards (±1 for a point), terminated, truncated, ale-py's infos."""
        screens, rew, terminated, truncated, infos = self.games.step(np.where(actions == 1, UP, DOWN))
        frame, earlier = preprocess(screens[:, 0], self.inputs.halve), self.frames[:-1]
        if self.ended.any():  # a new game has no past
            earlier = [np.where(self.ended[:, None], frame, x) for x in earlier]
        self.frames = [frame, *earlier]
        self.ended = terminated | truncated
        return self.inputs.combine(self.frames), rew, terminated, truncated, infos


class PongEnv(gymnasium.Wrapper):
    """One game with the same observations and actions as `PongVectorEnv`, for rendering."""

    def __init__(self, render_mode=None, inputs="trail", sticky=0.0):
        gymnasium.register_envs(_ale_py())
        super().__init__(
            gymnasium.make(
                "ALE/Pong-v5", obs_type="grayscale", frameskip=4, repeat_action_probability=sticky,
                render_mode=render_mode,
            )
        )
        self.inputs = INPUTS[inputs]
        self.observation_space = self.inputs.space
        self.action_space = PongVectorEnv.single_action_space

    def reset(self, *, seed=None, options=None):
        """As `PongVectorEnv.reset`, for one game. The game begins after an even number of idle frames."""
        screen, info = self.env.reset(seed=seed)
        for _ in range(self.env.np_random.integers(8)):  # without these frames, all games would be the same
            screen, *_ = self.env.step(NOTHING)
        self.frames = _at_rest(preprocess(screen, self.inputs.halve), self.inputs)
        return self.inputs.combine(self.frames), info

    def step(self, action):
        """As `PongVectorEnv.step`, for one game."""
        screen, *rest = self.env.step(UP if action == 1 else DOWN)
        self.frames = [preprocess(screen, self.inputs.halve), *self.frames[:-1]]
        return self.inputs.combine(self.frames), *rest


def _at_rest(frame, inputs):
    """The frames (x_t, x_{t−1}, …) at the beginning of a game. They are equal, as if nothing had moved."""
    return [frame] * len(inputs.weights)


def _ale_py():
    try:
        import ale_py
        import ale_py.vector_env
    except ImportError:
        raise ModuleNotFoundError("Pong needs the package ale-py: pip install 'npg[atari]'") from None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
    return ale_py


class RallySampler(Sampler):
    """A sampler that marks each step with a point as `terminated`, so that actions get credit for the next point only.

    Returns, advantages and bootstrapping then stay within a rally. `episode_returns` and `episode_lengths` are still
    those of whole games.
    """

    def steps(self, *args):
        """As `Sampler.steps`."""
        return _cut_at_points(super().steps(*args))

    def segment(self, *args):
        """As `Sampler.segment`."""
        return _cut_at_points(super().segment(*args))

    def episodes(self, *args):
        """As `Sampler.episodes`: whole games."""
        return _cut_at_points(super().episodes(*args))


def _cut_at_points(rollout):
    return rollout._replace(terminated=rollout.terminated | (rollout.rew != 0))


class LitMLP(MLP):
    """An MLP that skips inputs that are 0 in the whole batch. Their dW is 0.

    The function and the gradient are those of `MLP`. They are many times faster if only few inputs are lit (not 0). A
    large batch is split into chunks of `chunk` rows. Rows with similar lit inputs are in the same chunk. dx is None.
    """

    chunk = 128

    def forward(self, theta, x):
        """As `MLP.forward`."""
        x = np.asarray(x)
        if x.ndim == 0 or x.shape[-1] != self.n_in:
            raise ValueError(f"x: expected shape [..., {self.n_in}], got {x.shape}")
        rows = x.reshape(-1, self.n_in)
        W = self.layers(theta)[0][0]
        y, cache = np.empty((len(rows), self.n_out), theta.dtype), []
        for members in self._chunks(rows):
            part = rows[members]
            lit = np.flatnonzero(np.append(part[:, :-1].any(axis=0), True))  # at least one input, even if none is lit
            small = MLP((len(lit), *self.sizes[1:]), self.activation)
            small_theta = np.empty(small.size, theta.dtype)
            W.take(lit, axis=0, out=small.layers(small_theta)[0][0], mode="clip")
            small_theta[len(lit) * self.sizes[1] :] = theta[W.size :]
            y[members], small_cache = small.forward(small_theta, part[:, lit])
            cache.append((members, lit, small, small_theta, small_cache))
        return y.reshape(*x.shape[:-1], self.n_out), cache

    def _chunks(self, rows):
        """The rows of each chunk. Rows whose first lit inputs are close together share many other lit inputs, too."""
        if len(rows) <= self.chunk:
            return [slice(None)]
        order = (rows != 0).argmax(axis=1).argsort(kind="stable")
        return [order[start : start + self.chunk] for start in range(0, len(rows), self.chunk)]

    def backward(self, theta, cache, dy, want_dx=False):
        """As `MLP.backward`, but dx is None."""
        if np.shape(dy)[-1:] != (self.n_out,):
            raise ValueError(f"dy: expected shape [..., {self.n_out}], got {np.shape(dy)}")
        dy, dtheta = np.asarray(dy).reshape(-1, self.n_out), np.zeros_like(theta)
        dW = self.layers(dtheta)[0][0]
        for members, lit, small, small_theta, small_cache in cache:
            dsmall, _ = small.backward(small_theta, small_cache, dy[members], False)
            split = len(lit) * self.sizes[1]
            dW[lit] += dsmall[:split].reshape(len(lit), -1)
            dtheta[dW.size :] += dsmall[split:]
        return dtheta, None
