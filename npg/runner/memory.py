"""A low estimate of the memory that a run needs. Settings that cannot fit are refused before the run starts."""

import contextlib
import math
import os
import pathlib

import numpy as np

from npg.runner.machine import cgroups

PROCESS = 30e6  # bytes of a Python process with NumPy and Gymnasium
ENVIRONMENT = 100  # bytes of one environment, at least, without its observation
VECTORS = 3  # arrays of θ's size: θ, its gradient, and an array of the optimizer


def memory_limit(root="/"):
    """Bytes that this process may use: the machine's memory, or less if its cgroups allow less. None if unknown."""
    limits = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no `sysconf`
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ValueError):
        for is_first_version, folder in cgroups("memory", pathlib.Path(root)):
            name = "memory.limit_in_bytes" if is_first_version else "memory.max"
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))  # "max": no number, no limit
    return min(limits, default=None)


def estimate(settings, obs_space, act_space, side_by_side=None):
    """{setting: bytes that it requires}, from a run's settings and an environment's spaces.

    The bytes of a setting may also depend on the settings before it in this dict.

    side_by_side   episodes that an evaluation plays at the same time; None: all
    """
    n_obs = int(np.prod(obs_space.shape))
    n_act = int(getattr(act_space, "n", 0) or np.prod(act_space.shape))
    row = n_obs * obs_space.dtype.itemsize
    envs, n_steps = settings.get("envs", 1), settings.get("n_steps", 1)
    sizes = [n_obs, *settings.get("hidden", ()), n_act * settings.get("components", 1)]
    theta = sum((n_in + 1) * n_out for n_in, n_out in zip(sizes, sizes[1:]))  # Python's integers do not overflow
    rollout = envs * n_steps * row
    rollouts = min(settings.get("capacity", 1), settings["steps"] // (envs * n_steps) + 1)
    candidates = settings.get("n_candidates", 1)
    episodes = settings["episodes"] or 100
    return {
        "env": 4 * VECTORS * (n_obs + n_act),
        "components": 4 * VECTORS * sizes[-1],
        "hidden": 4 * VECTORS * theta,
        "envs": envs * (row + ENVIRONMENT),
        "episodes": 16 * episodes + min(episodes, side_by_side or episodes) * (row + ENVIRONMENT),
        "n_candidates": candidates * (4 * theta + 16 * envs) if "n_candidates" in settings else 0,
        "workers": (settings.get("workers") or 0) * PROCESS,
        "n_steps": rollout,
        "capacity": rollouts * rollout,
    }


def check_memory(settings, *spaces_and_more, limit=None):
    """Raises ValueError if a setting requires more memory than there is. The message names the first such setting."""
    limit = limit or memory_limit() or math.inf
    for name, needed in estimate(settings, *spaces_and_more).items():
        if needed <= limit:
            continue
        value = settings.get(name, 1)
        shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        sizes = f"at least {needed / 1e9:,.0f} GB of memory; only {limit / 1e9:,.0f} GB are available"
        raise ValueError(f"{name}: {shown} needs {sizes}")
