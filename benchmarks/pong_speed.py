"""Environment steps per second on Pong: training, the emulator alone, and Karpathy's script of 2025.

    git clone https://github.com/zhangshushu15/pg-pong-2025
    python benchmarks/pong_speed.py pg-pong-2025/pg-pong-2025.py

The measurements take turns in several rounds. Each runs for some seconds in its own process.

    training   `run_pong.py` with its defaults
    a3c        `run_pong.py --algo a3c` with one worker per core
    emulator   the vector environment of the defaults with random actions; its frames are discarded
    script     Karpathy's script, with the same frameskip of 4 and any number of BLAS threads; left out without its path

The peak memory is measured for each process. a3c's workers are not counted.
"""

import argparse
import os
import pathlib
import resource
import runpy
import subprocess
import sys
import time

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # for run_pong

from npg.runner.figures import at_least

BLAS = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "MKL", "OMP")}


def training(seconds):
    """Steps per second of `python run_pong.py`, without its start and its evaluations."""
    from timing import training_rate

    from run_pong import SCRIPT

    return training_rate(SCRIPT, "ppo", seconds)


def a3c(seconds):
    """Steps per second of `python run_pong.py --algo a3c`, without its start and its evaluations."""
    from timing import training_rate

    from npg.runner.machine import available_cores
    from run_pong import SCRIPT

    return training_rate(SCRIPT, "a3c", seconds, workers=available_cores())


def emulator(seconds):
    """Steps per second of ale-py's vector environment, as `npg.pong` uses it, with random actions."""
    from timing import np, rate

    from npg.pong import DOWN, UP, PongVectorEnv
    from run_pong import SCRIPT

    envs, rng = PongVectorEnv(SCRIPT.settings_of("ppo", False)["envs"].default), np.random.default_rng(0)
    envs.games.reset(seed=0)

    def step():
        envs.games.step(rng.choice([UP, DOWN], envs.num_envs))
        return envs.num_envs

    return rate(step, seconds)


class Enough(Exception):
    """The time of the measurement is over."""


def script(seconds, path):
    """Steps per second of another script, which plays one game after another in an environment by `gymnasium.make`."""
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    make, counted = gymnasium.make, {"steps": 0}

    class Counted(gymnasium.Wrapper):
        def step(self, action):
            counted.setdefault("began", time.perf_counter())
            counted["steps"] += 1
            if time.perf_counter() - counted["began"] > seconds:
                raise Enough
            return self.env.step(action)

    gymnasium.make = lambda name: Counted(make("ALE/Pong-v5", frameskip=4, repeat_action_probability=0.0))
    sys.stdout = open(os.devnull, "w")
    try:
        runpy.run_path(path)
    except Enough:
        return counted["steps"] / seconds
    finally:
        sys.stdout = sys.__stdout__


MEASURED = {"training": training, "a3c": a3c, "emulator": emulator, "script": script}


def in_turn(name, *arguments):
    """(steps per second, peak memory in GB) of a measurement in a new process."""
    env = os.environ if name == "script" else {**os.environ, **BLAS}
    command = [sys.executable, __file__, "--only", name, *arguments]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return tuple(map(float, done.stdout.split()[-2:]))


def main():
    """Makes all measurements in turn and prints a table. With --only: makes one measurement and prints its result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("script", nargs="?", help="path of pg-pong-2025.py")
    parser.add_argument("--seconds", type=at_least(1), default=20, help="seconds per measurement (20)")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="measurements per program (5)")
    parser.add_argument("--only", choices=MEASURED, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        more = [args.script] if args.only == "script" else []
        speed = MEASURED[args.only](args.seconds, *more)
        print(speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, flush=True)
        os._exit(0)  # a rollout may still be being drawn
    from timing import machine, np, with_spread

    path = [os.path.abspath(args.script)] if args.script else []
    names = [name for name in MEASURED if name != "script" or path]
    figures = {name: [] for name in names}
    for k in range(args.rounds):
        for name in names[:: 1 if k % 2 == 0 else -1]:
            figures[name].append(in_turn(name, "--seconds", str(args.seconds), *path))
            print(f"round {k + 1}: {name} {figures[name][-1][0]:.0f} steps/s", file=sys.stderr)
    speeds, memory = np.array([figures[name] for name in names]).transpose(2, 0, 1)
    print(machine("npg", "numpy", "ale-py"), "\n")
    print("| | steps per second | training / this row | a3c / this row | peak memory, GB |\n|---|---|---|---|---|")
    for name, speed, peak in zip(names, speeds, memory.max(axis=1)):
        parts = " | ".join(with_spread(part / speed, "{:.2f}") for part in speeds[:2])
        print(f"| {name} | {with_spread(speed, '{:.0f}')} | {parts} | {peak:.2f} |")


if __name__ == "__main__":
    main()
