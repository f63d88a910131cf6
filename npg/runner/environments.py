"""Any Gymnasium environment with Discrete or Box actions, as the vector environment that `npg.rollout` samples from.

Everything is Gymnasium's own: its vector environments and its wrappers. Observations reach the policy as vectors
(Box flattened, Discrete one-hot). Bounded Box actions are rescaled, so that [−1, 1] spans the environment's range, and
clipped there: the policy's Gaussian is unbounded and its score stays that of the action it drew.
"""

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import NormalizeObservation

from npg.pong import PongEnv, PongVectorEnv


class UnsupportedEnvironment(ValueError):
    """No such environment, a missing package, or a space that no policy here can act in; the message says which."""


def _make(make, env_id, *args, **kwargs):
    if env_id.count(":") > 1:
        raise UnsupportedEnvironment(f"environment {env_id!r}: expected NAME or MODULE:NAME")
    try:
        return make(env_id, *args, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UnsupportedEnvironment(f"environment {env_id}: {str(error).splitlines()[0]}") from error
    except (gymnasium.error.Error, ImportError) as error:
        raise UnsupportedEnvironment(f"environment {env_id!r}: {' '.join(str(error).split())}") from error


def _wrappers_for(env_id):
    """The wrappers that give an environment vector observations and actions in [−1, 1]."""
    env = _make(gymnasium.make, env_id)
    obs_space, act_space = env.observation_space, env.action_space
    env.close()
    if not isinstance(obs_space, (spaces.Box, spaces.Discrete)):
        raise UnsupportedEnvironment(f"environment {env_id}: observations must be Box or Discrete, got {obs_space}")
    if not isinstance(act_space, (spaces.Box, spaces.Discrete)):
        raise UnsupportedEnvironment(f"environment {env_id}: actions must be Discrete or Box, got {act_space}")
    if 0 in (obs_space.shape or ()):
        raise UnsupportedEnvironment(f"environment {env_id}: observations are empty: {obs_space}")
    needed = []
    if obs_space.shape is None or len(obs_space.shape) != 1:
        needed.append(wrappers.FlattenObservation)
    if isinstance(act_space, spaces.Box):
        if len(act_space.shape) != 1 or 0 in act_space.shape or not np.issubdtype(act_space.dtype, np.floating):
            message = f"environment {env_id}: Box actions must be one vector of real numbers, got {act_space}"
            raise UnsupportedEnvironment(message)
        if act_space.is_bounded():
            needed += [lambda env: wrappers.RescaleAction(env, np.float32(-1), np.float32(1)), wrappers.ClipAction]
    elif act_space.start != 0:
        raise UnsupportedEnvironment(f"environment {env_id}: Discrete actions must start at 0, got {act_space}")
    return needed


def make_envs(env_id, n, *, normalise_obs=False):
    """`n` copies of a registered environment side by side, stepped in this process.

    With `normalise_obs` each coordinate of the observations has its running mean and variance removed
    (`gymnasium.wrappers.vector.NormalizeObservation`).

    Raises UnsupportedEnvironment with one line for the user.
    """
    needed = _wrappers_for(env_id)
    mode = {"vectorization_mode": "sync", "wrappers": needed} if needed else {}
    envs = _make(gymnasium.make_vec, env_id, num_envs=n, **mode)
    return NormalizeObservation(envs) if normalise_obs else envs


def make_env(env_id, render_mode=None, *, normalise_obs=False):
    """One copy with the same wrappers, to render; not normalised, which needs a vector environment's moments."""
    env = _make(gymnasium.make, env_id)
    if render_mode and not {render_mode, "rgb_array"} & set(env.metadata.get("render_modes", [])):
        raise UnsupportedEnvironment(f"environment {env_id}: cannot render as {render_mode}")
    env = _make(gymnasium.make, env_id, render_mode=render_mode) if render_mode else env
    for wrap in _wrappers_for(env_id):
        env = wrap(env)
    return env


def make_pong_envs(env_id, n, num_threads=0, *, inputs="trail", sticky=0.0):
    """`n` games of Pong side by side, for run_pong.py; arguments as `npg.pong.PongVectorEnv`'s."""
    _only_pong(env_id)
    try:
        return PongVectorEnv(n, inputs, sticky, num_threads)
    except ModuleNotFoundError as error:
        raise UnsupportedEnvironment(error) from None


def make_pong_env(env_id, render_mode=None, *, inputs="trail", sticky=0.0):
    """One game of Pong to be rendered."""
    _only_pong(env_id)
    try:
        return PongEnv(render_mode, inputs, sticky)
    except ModuleNotFoundError as error:
        raise UnsupportedEnvironment(error) from None


def _only_pong(env_id):
    if env_id != "Pong":
        raise UnsupportedEnvironment(f"environment {env_id!r}: only Pong is played here; run_cartpole.py takes others")


class LateVectorEnv(gymnasium.vector.VectorEnv):
    """A vector environment that is made when its first episode begins.

    make() → the environment, of `num_envs` copies with these spaces; NEXT_STEP autoreset
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, make, num_envs, observation_space, action_space):
        self.make, self.num_envs, self.envs = make, num_envs, None
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        """As the environment's."""
        self.envs = self.envs or self.make()
        return self.envs.reset(seed=seed, options=options)

    def step(self, actions):
        """As the environment's."""
        return self.envs.step(actions)


def moments(obs_rms):
    """{name: array} of the running moments of normalised observations, {} of None."""
    if obs_rms is None:
        return {}
    return {"obs_mean": obs_rms.mean, "obs_var": obs_rms.var, "obs_count": np.asarray(obs_rms.count)}


def set_moments(obs_rms, obs_mean, obs_var, obs_count):
    """Give the `RunningMeanStd` these moments."""
    obs_rms.mean, obs_rms.var, obs_rms.count = obs_mean.copy(), obs_var.copy(), float(obs_count)


def freeze_normaliser(envs, obs_rms):
    """Give a normalised vector environment these moments and hold them there, as an evaluation should."""
    set_moments(envs.obs_rms, **moments(obs_rms))
    envs.update_running_mean = False


def reward_threshold(env_id):
    """The mean return at which Gymnasium's registry calls the environment solved, or None."""
    return _make(gymnasium.make, env_id).spec.reward_threshold
