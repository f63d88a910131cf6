"""Facts about the machine and this process: CPU cores, control groups (cgroups), a screen, the time since the start."""

import contextlib
import math
import os
import pathlib
import sys
import time

BEGAN = time.monotonic()


def process_seconds():
    """Seconds since this process began. If the system does not know the beginning: since the import of this module."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - BEGAN


def has_screen():
    """Whether a program can open a window."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def draw_without_screen():
    """Without a screen, MuJoCo and pygame draw into memory. pygame leaves SIGTERM alone, with a screen, too.

    Call this before the environment is made.
    """
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # otherwise pygame swallows SIGTERM
    if not has_screen():
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's own choice needs a screen
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # otherwise pygame complains


def available_cores(root="/"):
    """CPU cores that this process may use, at least 1. Its CPU affinity and its cgroups (versions 1 and 2) limit them.

    A limit of 1.5 cores counts as 2. `root` is the root of the file system.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _cgroup_limits(pathlib.Path(root)))]))


def _cgroup_limits(root):
    """Yields the cores that each cgroup of this process allows, and the cores that each enclosing cgroup allows."""
    for is_first_version, folder in cgroups("cpu", root):
        with contextlib.suppress(OSError, ValueError):
            if is_first_version:
                names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
                quota, period = ((folder / name).read_text() for name in names)
            else:
                quota, period = (folder / "cpu.max").read_text().split()
            if int(quota) > 0:
                yield int(quota) / int(period)


def cgroups(controller, root):
    """Yields (whether it has version 1, its folder) for each cgroup of this process and each enclosing cgroup."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in memberships:
        _number, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        place = root / "sys/fs/cgroup" / controllers
        for folder in (place / path.strip("/"), *(place / path.strip("/")).parents):
            yield bool(controllers), folder
