"""Functions for all benchmarks: fair measurements of time, and a description of the machine.

Import this module before NumPy, because it sets one thread for every BLAS. It also makes the run scripts importable.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
import time

sys.path.append(str(pathlib.Path(__file__).parents[1]))
for _library in ("OPENBLAS", "MKL", "OMP"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402


def needs(*packages, extra="bench"):
    """Ends the program with one line if a package is not installed. npg's extra `extra` installs them."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            print(f'{pathlib.Path(sys.argv[0]).name}: needs {name}: pip install -e ".[{extra}]"', file=sys.stderr)
            raise SystemExit(2)


def machine(*packages):
    """One line: processor, number of CPUs, versions of Python and of `packages`."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([_processor(), f"{os.cpu_count()} CPUs", f"Python {platform.python_version()}", *versions])


def _processor():
    try:  # on Linux, where `platform` knows only the architecture
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def seconds_of(f, repeats=1):
    """Mean time of a call f(), in seconds."""
    started = time.perf_counter()
    for _ in range(repeats):
        f()
    return (time.perf_counter() - started) / repeats


def rate(work, seconds):
    """Steps per second of work() → steps. Calls work() again and again until the seconds are over."""
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        steps += work()
    return steps / (time.perf_counter() - began)


def default_learner(script, algo, seed=0, workers=None):
    """The `Task` and the `Learner` that a run script makes from its defaults."""
    from npg.runner.script import RUN, prepare

    defaults = {name: parameter.default for name, parameter in script.settings_of(algo, False).items()}
    run = {name: defaults.pop(name) for name in RUN if name in defaults}
    if workers:
        defaults["workers"] = workers
    return prepare(script, {**run, "algo": algo, "seed": seed, "settings": defaults}, "benchmark")


def training_rate(script, algo, seconds, workers=None):
    """Environment steps per second of a run script's training with its defaults, without start and evaluations."""
    task, learner = default_learner(script, algo, workers=workers)
    with contextlib.closing(task):
        next(learner.updates)
        return rate(lambda: next(learner.updates)["rollout"].env_steps, seconds)


def interleaved(a, b, rounds=21, at_least=0.005):
    """(times of a(), times of b()), [rounds] each, in seconds. The measurements take turns: A B, B A, A B, …

    So other load on the machine affects both. A measurement repeats the call until it takes about `at_least` seconds.
    """
    repeats = {}
    for f in (a, b):
        seconds_of(f, 3)  # warm caches
        repeats[f] = max(1, round(at_least / seconds_of(f, 3)))
    times = {a: [], b: []}
    for k in range(rounds):
        for f in (a, b) if k % 2 == 0 else (b, a):
            times[f].append(seconds_of(f, repeats[f]))
    return np.array(times[a]), np.array(times[b])


def with_spread(x, form="{:.1f}"):
    """'median (lower quartile – upper quartile)' of numbers [n]."""
    low, median, high = (form.format(q) for q in np.percentile(x, [25, 50, 75]))
    return f"{median} ({low} – {high})"
