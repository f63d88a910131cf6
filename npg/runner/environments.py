"""Makes vector environments for `npg.rollout`, from Gymnasium environments.

Observations must be Box or Discrete, actions Discrete (from 0) or Box (a vector of floats).
Gymnasium's own wrappers adapt the spaces. Observations reach the policy as vectors: Box is flattened, Discrete becomes
one-hot. Bounded Box actions are rescaled: [−1, 1] covers the environment's range. The policy's Gaussian is unbounded,
so actions are clipped at each bound. The policy computes its score at the action before clipping.
"""

import contextlib
import traceback
from collections import Counter

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import NormalizeObservation, NormalizeReward

from npg.pong import PongEnv, PongVectorEnv
from npg.rollout import OWN_REWARD, resets_in_next_step
from npg.runner.folder import one_line

LOG_BYTES = 64e6
LONGEST = 10_000  # steps of an episode where Gymnasium knows no time limit: otherwise an episode might never end
REMEMBERING = "gymnasium.envs.box2d.bipedal_walker", "gymnasium.envs.box2d.car_racing"  # one world for all episodes


class UnsupportedEnvironment(ValueError):
    """An unknown environment, a missing package, or a space that no policy here supports. The message says which."""


class EnvironmentFailed(Exception):
    """The user's environment raised an exception. args: (one line with the environment and the call, traceback)."""

    def __str__(self):
        return self.args[0]


@contextlib.contextmanager
def _call(what, *others):
    """Turns an exception of an environment's code, also sys.exit's, into EnvironmentFailed; not Ctrl-C and `others`."""
    try:
        yield
    except (KeyboardInterrupt, EnvironmentFailed, *others):
        raise
    except BaseException as error:
        said = one_line(f"{type(error).__name__}: {error}").removesuffix(":")
        raise EnvironmentFailed(f"{what} raised {said}", traceback.format_exc()) from error


RETURNS = {"reset": 2, "step": 5}  # number of values


def _guarded(env, env_id):
    """Makes the calls of an environment raise EnvironmentFailed if it fails or if its answer is not as promised."""
    space, batch = env.observation_space, getattr(env, "num_envs", None)

    def guard(name):
        call, what = getattr(env, name), f"environment {env_id}: {name}"

        def guarded(*args, **kwargs):
            with _call(what, gymnasium.error.DependencyNotInstalled):
                answer = call(*args, **kwargs)
                if name == "render" and env.render_mode == "rgb_array":
                    _check_picture(answer)
                return _checked(answer, RETURNS[name], space, batch) if name in RETURNS else answer

        return guarded

    for name in ("reset", "step", "render", "close"):
        setattr(env, name, guard(name))
    return env


def _checked(answer, n, space, batch):
    """The answer of `reset` or `step`: n values of the right shapes and types. ValueError or TypeError otherwise.

    batch   number of environments of a vector environment; None: one environment
    """
    if len(answer) != n:
        raise ValueError(f"expected {n} values, got {len(answer)}")
    obs, info = np.asarray(answer[0]), answer[-1]
    if obs.shape != space.shape:
        raise ValueError(f"observations: expected the shape {list(space.shape)}, got {list(obs.shape)}")
    if not isinstance(info, dict):
        raise ValueError(f"info: expected a dict, got {type(info).__name__}")
    obs = obs.astype(space.dtype, copy=False)
    if n == RETURNS["reset"]:
        return obs, info
    _, rew, terminated, truncated, _ = answer
    if batch is None:
        return obs, float(rew), bool(terminated), bool(truncated), info
    rew, terminated, truncated = np.asarray(rew, float), np.asarray(terminated, bool), np.asarray(truncated, bool)
    return obs, rew.reshape(batch), terminated.reshape(batch), truncated.reshape(batch), info


def _check_picture(x):
    if not isinstance(x, np.ndarray):
        raise ValueError(f"expected an array, got {type(x).__name__}")
    if x.dtype != np.uint8 or x.shape[2:] not in ((), (3,), (4,)) or x.ndim < 2 or x.size == 0:
        raise ValueError(f"expected uint8[height, width, 3], got {x.dtype}{list(x.shape)}")


def _make(make, env_id, *args, **kwargs):
    module, colon, name = env_id.rpartition(":")
    if colon and not all(word.isidentifier() for word in module.split(".")) or not name:
        raise UnsupportedEnvironment(f"environment {env_id!r}: expected NAME or MODULE:NAME")
    try:
        with _call(f"environment {env_id}: its creation", gymnasium.error.Error, ImportError):
            return make(env_id, *args, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UnsupportedEnvironment(f"environment {env_id}: {str(error).splitlines()[0]}") from error
    except (gymnasium.error.Error, ImportError) as error:
        raise UnsupportedEnvironment(f"environment {env_id!r}: {one_line(error)}") from error


def lacks_time_limit(spec):
    """Whether an environment with this `EnvSpec` has no time limit. It then gets one of LONGEST steps."""
    return spec is not None and spec.max_episode_steps is None


def _wrappers_for(env_id):
    """(wrappers that give an environment vector observations, actions in [−1, 1] and a time limit; render modes)."""
    env = _make(gymnasium.make, env_id)
    obs_space, act_space, spec = env.observation_space, env.action_space, env.spec
    modes = env.metadata.get("render_modes") or []
    with _call(f"environment {env_id}: close"):
        env.close()
    if not isinstance(obs_space, (spaces.Box, spaces.Discrete)):
        raise UnsupportedEnvironment(f"environment {env_id}: observations must be Box or Discrete, got {obs_space}")
    if not isinstance(act_space, (spaces.Box, spaces.Discrete)):
        raise UnsupportedEnvironment(f"environment {env_id}: actions must be Discrete or Box, got {act_space}")
    if 0 in (obs_space.shape or ()):
        raise UnsupportedEnvironment(f"environment {env_id}: observations are empty: {obs_space}")
    needed = [lambda env: wrappers.TimeLimit(env, LONGEST)] if lacks_time_limit(spec) else []
    if obs_space.shape is None or len(obs_space.shape) != 1:
        needed.append(wrappers.FlattenObservation)
    if isinstance(act_space, spaces.Box):
        if len(act_space.shape) != 1 or 0 in act_space.shape or not np.issubdtype(act_space.dtype, np.floating):
            message = f"environment {env_id}: Box actions must be one vector of real numbers, got {act_space}"
            raise UnsupportedEnvironment(message)
        if not (act_space.low < act_space.high).all():
            raise UnsupportedEnvironment(f"environment {env_id}: Box actions must have low < high, got {act_space}")
        one = act_space.dtype.type(1)
        if act_space.is_bounded():
            needed.append(lambda env: wrappers.RescaleAction(env, -one, one))
        if act_space.bounded_below.any() or act_space.bounded_above.any():
            needed.append(wrappers.ClipAction)
    elif act_space.start != 0:
        raise UnsupportedEnvironment(f"environment {env_id}: Discrete actions must start at 0, got {act_space}")
    return needed, modes


def make_envs(env_id, n, *, normalise_obs=False):
    """A vector environment: `n` copies of a registered environment, all in this process.

    normalise_obs   normalise each coordinate of the observations by its running mean and variance
                    (`gymnasium.wrappers.vector.NormalizeObservation`)

    Where Gymnasium knows no time limit, an episode ends after LONGEST steps. Raises UnsupportedEnvironment with one
    line for the user.
    """
    needed, _ = _wrappers_for(env_id)
    how = {"vectorization_mode": "sync", "wrappers": needed} if needed else {}
    envs = _make(gymnasium.make_vec, env_id, num_envs=n, **how)
    if not resets_in_next_step(envs):
        found = envs.metadata["autoreset_mode"]
        raise UnsupportedEnvironment(f"environment {env_id}: expected NEXT_STEP autoreset, got {found}")
    envs = _guarded(envs, env_id)
    return NormalizeObservation(envs) if normalise_obs else envs


def make_env(env_id, render_mode=None, *, normalise_obs=False):
    """One copy with the same wrappers, for rendering and for searches. Its observations are never normalised here."""
    needed, modes = _wrappers_for(env_id)
    if render_mode and not {render_mode, "rgb_array"} & set(modes):
        raise UnsupportedEnvironment(f"environment {env_id}: cannot render as {render_mode}")
    env = _make(gymnasium.make, env_id, **({"render_mode": render_mode} if render_mode else {}))
    for wrap in needed:
        env = wrap(env)
    return _guarded(env, env_id)


def make_pong_envs(env_id, n, num_threads=0, *, inputs="trail", sticky=0.0):
    """A vector environment of `n` games of Pong, for run_pong.py. Arguments as in `npg.pong.PongVectorEnv`."""
    _only_pong(env_id)
    try:
        envs = PongVectorEnv(n, inputs, sticky, num_threads)
    except ModuleNotFoundError as error:
        raise UnsupportedEnvironment(error) from None
    return _guarded(envs, env_id)


def make_pong_env(env_id, render_mode=None, *, inputs="trail", sticky=0.0):
    """One game of Pong, for rendering."""
    _only_pong(env_id)
    try:
        env = PongEnv(render_mode, inputs, sticky)
    except ModuleNotFoundError as error:
        raise UnsupportedEnvironment(error) from None
    return _guarded(env, env_id)


def _only_pong(env_id):
    if env_id != "Pong":
        raise UnsupportedEnvironment(f"environment {env_id!r}: expected Pong; run_cartpole.py accepts other names")


class Log:
    """The log of an environment: how it began, and all actions since then.

    start    the seed of the reset, or the state of the random number generator before the reset
    chunks   the actions, in arrays [n, …]; the latest actions are still in the list `rows`
    resets   for each later reset without a seed: the number of actions before this reset
    """

    def __init__(self, start=None, chunks=(), resets=()):
        self.start, self.chunks, self.rows, self.resets = start, list(chunks), [], list(resets)
        self.n_packed, self.n_sent = sum(map(len, self.chunks)), None

    def pack(self):
        """Packs `rows` into an array. Whole numbers from 0 to 255 take one byte each."""
        if self.rows:
            rows = np.array(self.rows)
            small = rows.dtype.kind in "iu" and 0 <= rows.min() and rows.max() < 256
            self.chunks.append(rows.astype(np.uint8) if small else rows)
            self.n_packed, self.rows = self.n_packed + len(rows), []

    @property
    def actions(self):
        """All actions, in one array [n, …]."""
        self.pack()
        return np.concatenate(self.chunks) if self.chunks else np.zeros(0, np.uint8)

    def news(self):
        """The changes since the last call: (start, or None after the first call; new chunks; all resets)."""
        self.pack()
        news = (self.start, self.chunks) if self.n_sent is None else (None, self.chunks[self.n_sent :])
        self.n_sent = len(self.chunks)
        return *news, self.resets

    def follow(self, news):
        """Adds the `news` of its twin in another process. Returns the log; if the news has a start, a new log."""
        start, chunks, resets = news
        if start is not None:
            return Log(*news)
        self.chunks += chunks
        self.n_packed, self.resets = self.n_packed + sum(map(len, chunks)), resets
        return self


class Replayable(gymnasium.Wrapper):
    """Wraps one environment of a vector environment. It logs the current episode and can replay it."""

    def __init__(self, env):
        super().__init__(env)
        self.log, self.replaying = Log(), None

    def reset(self, *, seed=None, options=None):
        """The environment's reset. After a call of `replay`: plays the log, except for its last action."""
        if self.replaying is not None:
            return self._replay_all_but_the_last()
        generator = getattr(getattr(self.unwrapped, "np_random", None), "bit_generator", None)
        self.log = Log(seed if seed is not None else generator and generator.state)
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        """The environment's step. After a call of `replay`: plays the last action of the log and ignores `action`."""
        if self.replaying is None:
            self.log.rows.append(np.array(action))  # a copy: the environment may change its argument
            return self.env.step(action)
        last, self.replaying = self.replaying[-1:], None
        return self.env.step(last[0]) if len(last) else (self.obs, 0.0, False, False, {})

    def replay(self, log):
        """The next `reset` and `step` play this log. So the vector environment also gets the state at its end."""
        self.log = log
        self.replaying = _as_drawn(log.actions, self.action_space)

    def _replay_all_but_the_last(self):
        start = self.log.start
        if isinstance(start, dict):
            self.unwrapped.np_random.bit_generator.state = start
        self.obs, info = self.env.reset(seed=None if isinstance(start, dict) else start)
        for action in self.replaying[:-1]:
            *_, info = self.env.step(action)
        return self.obs, info


class ReplayableVectorEnv(gymnasium.vector.VectorEnv):
    """A vector environment that is created at the first reset. It logs its actions and can replay them.

    make   make() → the vector environment: `num_envs` copies with these spaces, NEXT_STEP autoreset
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, make, num_envs, observation_space, action_space):
        self.make, self.num_envs, self.envs, self.parts = make, num_envs, None, []
        self.log, self.logs_all = Log(), True
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        """The environment's reset, logged."""
        if self.envs is None:
            self.envs = self.make()
            envs = self.envs.unwrapped
            if isinstance(envs, SyncVectorEnv) and type(envs.envs[0].unwrapped).__module__ not in REMEMBERING:
                self.parts = envs.envs = [Replayable(env) for env in envs.envs]
        if seed is not None:
            self.log, self.logs_all = Log(seed), True
        else:
            self.log.resets.append(self.log.n_packed + len(self.log.rows))
        self.obs, info = self.envs.reset(seed=seed, options=options)
        self.rew = np.zeros(self.num_envs)
        return self.obs, info

    def step(self, actions):
        """The environment's step, logged."""
        if self.logs_all:
            self.log.rows.append(np.array(actions))
        self.obs, self.rew, *rest = self.envs.step(actions)
        return self.obs, self.rew, *rest

    @property
    def logs(self):
        """{"episodes": one log per environment, of its current episode; "whole": one log of all, since the seed}.

        Most environments come back when they replay their current episode. Some do not, because earlier episodes leave
        traces. So the whole log is also kept, up to LOG_BYTES. A vector environment of one piece, and an environment
        in REMEMBERING, has only the whole log, of any size.
        """
        self.log.pack()
        if self.parts and sum(chunk.nbytes for chunk in self.log.chunks) > LOG_BYTES:
            self.log, self.logs_all = Log(), False
        logs = {"episodes": [env.log for env in self.parts], "whole": [self.log] * self.logs_all}
        return {name: some for name, some in logs.items() if some}

    def replay(self, logs, obs, rew=None, progress=iter):
        """Replays these logs. Returns False if the observations or the last rewards at the end differ from these.

        rew        the last rewards; None: not known
        progress   progress(items) yields the items and may show a progress bar (such as `tqdm`)
        """
        for name, replay in (("episodes", self._replay_episodes), ("whole", self._replay_whole)):
            self.envs = None  # the next reset makes a new one
            try:
                if name in logs:
                    replay(logs, progress)
                    if np.array_equal(self.obs, obs) and (rew is None or np.array_equal(self.rew, rew)):
                        return True
            except Exception:  # any exception: an environment in another state may refuse the old actions
                continue
        self.envs = None
        return False

    def _replay_episodes(self, logs, progress):
        self.reset()
        for env, log in zip(self.parts, logs["episodes"], strict=True):
            env.replay(log)
        self.envs.reset()
        self.obs, self.rew, *_ = self.envs.step(np.zeros(self.action_space.shape, self.action_space.dtype))
        self.logs_all = "whole" in logs
        (self.log,) = logs.get("whole", [Log()])

    def _replay_whole(self, logs, progress):
        (log,) = logs["whole"]
        actions, resets = _as_drawn(log.actions, self.action_space), Counter(log.resets)
        self.reset(seed=log.start)
        for t in progress(range(len(actions))):
            for _ in range(resets[t]):
                self.reset()
            self.step(actions[t])
        for _ in range(resets[len(actions)]):
            self.reset()


def _as_drawn(actions, space):
    """Packed actions in the dtype in which the policy drew them."""
    return actions.astype(space.dtype) if np.issubdtype(space.dtype, np.integer) else actions


class OwnReward(gymnasium.vector.VectorWrapper):
    """Puts the environment's own reward into info[OWN_REWARD]: the wrapper around this one changes the reward."""

    def step(self, actions):
        """The environment's step, with info[OWN_REWARD]."""
        obs, rew, terminated, truncated, info = self.env.step(actions)
        return obs, rew, terminated, truncated, {**info, OWN_REWARD: rew}


def scale_rewards(envs, gamma):
    """Divides rewards by the running standard deviation of the discounted return (Gymnasium's `NormalizeReward`)."""
    return NormalizeReward(OwnReward(envs), gamma)


class NormalisedElsewhere(gymnasium.vector.VectorObservationWrapper):
    """Normalises a worker's observations by a given mean and variance, which come from all workers' observations.

    `take` returns the moments of the observations seen here. The learner merges the moments of all workers, and then
    sets a new mean and variance.
    """

    def __init__(self, env):
        super().__init__(env)
        self.mean, self.var, self.seen = 0.0, 1.0, []

    def observations(self, obs):
        """The observations, normalised."""
        self.seen.append(np.array(obs))
        return normalised(obs, self.mean, self.var)

    def take(self):
        """(mean, variance, number) of the observations since the last `take`."""
        seen, self.seen = np.concatenate(self.seen), []
        return seen.mean(axis=0), seen.var(axis=0), len(seen)


def normalised(obs, mean, var):
    """Observations normalised by this mean and variance, with the formula of Gymnasium's wrapper."""
    return (obs - mean) / np.sqrt(var + 1e-8)


def merge(obs_rms, seen):
    """Adds (mean, variance, number) of other observations to the running moments. If `seen` is None, does nothing."""
    if seen:
        mean, var, count = seen
        obs_rms.update_from_moments(mean.astype(obs_rms.mean.dtype), var.astype(obs_rms.mean.dtype), count)


def moments(obs_rms):
    """{name: array} of the running moments of the observations; {} if `obs_rms` is None."""
    if obs_rms is None:
        return {}
    return {"obs_mean": obs_rms.mean, "obs_var": obs_rms.var, "obs_count": np.asarray(obs_rms.count)}


def set_moments(obs_rms, obs_mean, obs_var, obs_count):
    """Sets the moments of a `RunningMeanStd`."""
    obs_rms.mean, obs_rms.var, obs_rms.count = obs_mean.copy(), obs_var.copy(), float(obs_count)


def freeze_normaliser(envs, obs_rms):
    """Sets the moments of a normalised vector environment and stops their updates, for an evaluation."""
    set_moments(envs.obs_rms, **moments(obs_rms))
    envs.update_running_mean = False
