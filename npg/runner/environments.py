"""Any Gymnasium environment with Discrete or Box actions, as the vector environment that `npg.rollout` samples from.

Everything is Gymnasium's own: its vector environments and its wrappers. Observations reach the policy as vectors
(Box flattened, Discrete one-hot). Bounded Box actions are rescaled, so that [−1, 1] spans the environment's range, and
clipped there: the policy's Gaussian is unbounded and its score stays that of the action it drew.
"""

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from gymnasium.wrappers.vector import NormalizeObservation

from npg.distributions import Categorical, Gaussian


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


def make_envs(env_id, n, normalise_obs=False):
    """`n` copies of a registered environment side by side, stepped in this process.

    With `normalise_obs` each coordinate of the observations has its running mean and variance removed
    (`gymnasium.wrappers.vector.NormalizeObservation`).

    Raises UnsupportedEnvironment with one line for the user.
    """
    needed = _wrappers_for(env_id)
    mode = {"vectorization_mode": "sync", "wrappers": needed} if needed else {}
    envs = _make(gymnasium.make_vec, env_id, num_envs=n, **mode)
    return NormalizeObservation(envs) if normalise_obs else envs


def make_env(env_id, render_mode=None, normalise_obs=False):
    """One copy with the same wrappers, to render; not normalised, which needs a vector environment's moments."""
    env = _make(gymnasium.make, env_id)
    if render_mode and not {render_mode, "rgb_array"} & set(env.metadata.get("render_modes", [])):
        raise UnsupportedEnvironment(f"environment {env_id}: cannot render as {render_mode}")
    env = _make(gymnasium.make, env_id, render_mode=render_mode) if render_mode else env
    for wrap in _wrappers_for(env_id):
        env = wrap(env)
    return env


def normaliser(envs):
    """{name: array} of the running moments of a normalised vector environment, {} of any other."""
    if not isinstance(envs, NormalizeObservation):
        return {}
    return {"obs_mean": envs.obs_rms.mean, "obs_var": envs.obs_rms.var, "obs_count": np.asarray(envs.obs_rms.count)}


def set_normaliser(envs, obs_mean, obs_var, obs_count, update=True):
    """Give `envs` these running moments; with `update=False` freeze them there, as an evaluation should."""
    envs.obs_rms.mean, envs.obs_rms.var, envs.obs_rms.count = obs_mean.copy(), obs_var.copy(), float(obs_count)
    envs.update_running_mean = update


def default_distribution(envs):
    """Softmax for Discrete actions, a diagonal Gaussian for Box."""
    space = envs.single_action_space
    return Categorical(int(space.n)) if isinstance(space, spaces.Discrete) else Gaussian(space.shape[0])


def reward_threshold(env_id):
    """The mean return at which Gymnasium's registry calls the environment solved, or None."""
    return _make(gymnasium.make, env_id).spec.reward_threshold
