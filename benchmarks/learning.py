#!/usr/bin/env python
"""Steps and seconds until solved, of every algorithm, by running `run_cartpole.py` seed after seed.

    python benchmarks/learning.py
    python benchmarks/learning.py --rows ppo a2c --seeds 3

Solved: the first evaluation (the most likely actions, 100 unseen episodes) at the target that a second, independent
one confirms; inf where that did not happen within the budget. Seconds are training's alone, with one thread.
"""

import argparse
import contextlib
import io
import json
import pathlib
import tempfile

from timing import machine  # isort: skip  # before NumPy: it sets the number of threads

import numpy as np

import run_cartpole
from npg.runner.figures import figure_path
from npg.runner.runs import read_metrics

# flags of run_cartpole.py; --steps is the budget
ROWS = {
    "ppo": "",
    "reinforce": "--algo reinforce --weight reward-to-go --baseline state --evaluate-every 2 --steps 300000",
    "actor-critic": "--algo actor-critic --steps 200000",
    "actor-critic-shared": "--algo actor-critic --shared --steps 200000",
    "a2c": "--algo a2c --steps 200000",
    "a2c-shared": "--algo a2c --shared --steps 200000",
    "q-actor-critic": "--algo q-actor-critic --steps 500000",
    "a3c": "--algo a3c --workers 2 --steps 200000",
    "a3c-one": "--algo a3c --workers 1 --steps 200000",
    "a2c-workers": "--algo a2c --workers 2 --steps 200000",
    "es": "--algo es",
    "hill-climbing": "--algo hill-climbing",
    "genetic": "--algo genetic",
    "finite-difference": "--algo finite-difference",
    "pendulum": "--env Pendulum-v1 --target -200 --steps 200000",
}
TITLES = {
    "ppo": "PPO (default)",
    "a2c": "A2C, two networks",
    "reinforce": "REINFORCE, state baseline",
    "actor-critic": "actor-critic, two networks",
    "actor-critic-shared": "actor-critic, shared network",
    "a2c-shared": "A2C, shared network",
    "q-actor-critic": "Q actor-critic",
    "a3c": "A3C, 2 workers",
    "a3c-one": "A3C, 1 worker",
    "a2c-workers": "A2C over 2 workers",
    "es": "evolution strategy",
    "hill-climbing": "hill climbing",
    "genetic": "genetic algorithm",
    "finite-difference": "finite differences",
    "pendulum": "PPO on Pendulum, Gaussian",
}
MOST_SEEDS = {"pendulum": 5}


def outcome(flags, seed):
    """Of a run of run_cartpole.py in a folder of its own: result.json, None if it diverged, and rows of evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [*flags.split(), "--seed", str(seed), "--quiet", "--out", folder]
        with contextlib.redirect_stdout(io.StringIO()):
            code = run_cartpole.main(run_cartpole.SCRIPT, argv)
        if code not in (0, 3):  # done, diverged
            raise SystemExit(f"run_cartpole.py {' '.join(argv)} ended with exit code {code}")
        result = json.loads((pathlib.Path(folder) / "result.json").read_text()) if code == 0 else None
        return result, [row for row in read_metrics(folder) if "eval_return_mean" in row]


def run(flags, seed):
    """(steps, seconds) until solved, infinite if not, and the evaluations on the way: steps, seconds, mean returns."""
    result, rows = outcome(flags, seed)
    curve = np.array([[row[name] for name in ("env_steps", "seconds", "eval_return_mean")] for row in rows])
    end = (result["env_steps"], result["seconds"]) if result and result["solved"] else (np.inf, np.inf)
    return end, curve.reshape(-1, 3).T


def draw(path, curves):
    """One panel a row: each seed's evaluations until solved, the last one marked."""
    from matplotlib.figure import Figure  # not above: every worker imports this file

    n_rows = -(-len(curves) // 4)
    figure = Figure(figsize=(12, 2.7 * n_rows), layout="constrained")
    panels = list(figure.subplots(n_rows, 4, squeeze=False).flat)
    for axes, (row, seeds) in zip(panels, curves.items()):
        for steps, _, returns in filter(np.size, seeds):
            axes.plot(steps / 1000, returns, color="#6baed6", linewidth=1)
            axes.plot(steps[-1] / 1000, returns[-1], "o", color="#08519c", markersize=4)
        axes.set_title(f"{TITLES[row]}, {len(seeds)} seeds", fontsize=9)
        axes.set(xlim=(0, None), ylim=(-1600, 0) if row == "pendulum" else (0, 510))
        axes.axhline(-200 if row == "pendulum" else 475, color="#a50f15", linestyle="--", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    figure.supxlabel("environment steps in training, thousands (each line ends where its seed is solved)")
    figure.supylabel("mean return of 100 unseen episodes")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seeds", type=int, default=10, help="how many (10; of pendulum at most 5)")
    parser.add_argument("--first-seed", type=int, default=0, help="the others follow it (0)")
    parser.add_argument("--figure", type=figure_path, metavar="PNG", help="draw the evaluations of every seed")
    args = parser.parse_args()
    curves = {}
    print(machine("numpy", "gymnasium"), "\n")
    print("| run_cartpole.py | solved | median steps | median seconds | steps of each seed | seconds of each seed |")
    print("|---|---|---|---|---|---|")
    for row in args.rows:
        seeds = args.first_seed + np.arange(min(args.seeds, MOST_SEEDS.get(row, args.seeds)))
        until_solved, curves[row] = zip(*[run(ROWS[row], seed) for seed in seeds])
        steps, seconds = np.array(until_solved).T
        print(
            f"| {ROWS[row] or '(no flags)'} | {np.isfinite(steps).sum()} of {len(steps)} "
            f"| {np.median(steps):,.0f} | {np.median(seconds):.2f} "
            f"| {' '.join(f'{n:,.0f}' for n in steps)} | {' '.join(f'{s:.2f}' for s in seconds)} |",
            flush=True,
        )
    if args.figure:
        draw(args.figure, curves)


if __name__ == "__main__":
    main()
