#!/usr/bin/env python
"""Measures each algorithm on CartPole-v1 at the end of its budget, without an earlier stop, by the policy as it acts.

    python benchmarks/learning.py                        every row, ten seeds
    python benchmarks/learning.py --rows ppo a2c --seeds 3

A row is an algorithm with the defaults of run_cartpole.py, or with the flags that the row shows. For each seed:

    end      mean return of the last 100 training episodes (of a search: of 100 unseen episodes of θ) at the end
    first    steps and seconds of training until this mean was first at least 475
    lowest   the lowest mean after `first`
    likely   mean return with the most likely actions, at the end

Each run has its own process. The table shows the seconds of training, of evaluations, and of the whole process.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from timing import machine  # isort: skip  # before NumPy: it sets the number of threads

import numpy as np

from npg.runner.figures import at_least, figure_path
from npg.runner.metrics import read_metrics
from run_cartpole import SCRIPT

ROOT = pathlib.Path(__file__).resolve().parents[1]
TARGET = 475


def slide(algo):
    """The flags of the slide. They stand at the end of the docstring of an algorithm in run_cartpole.py."""
    _, flags = SCRIPT.algorithms[algo][0].__doc__.split("The slide's settings:")
    return f"--algo {algo} {' '.join(flags.split())}"


# flags of run_cartpole.py, and the name in the figure
ROWS = {
    "ppo": ("", "PPO (default)"),
    "reinforce": ("--algo reinforce", "REINFORCE, state baseline"),
    "actor-critic": ("--algo actor-critic", "actor-critic, two networks"),
    "actor-critic-shared": ("--algo actor-critic --shared", "actor-critic, shared network"),
    "a2c": ("--algo a2c", "A2C, two networks"),
    "a2c-shared": ("--algo a2c --shared", "A2C, shared network"),
    "a2c-workers": ("--algo a2c --workers 2 --envs 16 --steps 300000", "A2C over 2 workers"),
    "q-actor-critic": ("--algo q-actor-critic", "Q actor-critic"),
    "a3c": ("--algo a3c --workers 2", "A3C, 2 workers"),
    "es": ("--algo es", "evolution strategy"),
    "hill-climbing": ("--algo hill-climbing", "hill climbing"),
    "genetic": ("--algo genetic", "genetic algorithm"),
    "finite-difference": ("--algo finite-difference", "finite differences"),
    "slide-a3c": (f"{slide('a3c')} --workers 2 --steps 300000", "Algorithm S3, 2 workers"),
    "slide-reinforce": (f"{slide('reinforce')} --steps 300000", "REINFORCE of the slide"),
    "slide-actor-critic": (f"{slide('actor-critic')} --steps 300000", "batch actor-critic of the slide"),
    "slide-q-actor-critic": (f"{slide('q-actor-critic')} --steps 300000", "Q actor-critic of the slide"),
    "slide-es": (slide("es"), "evolution strategy of the slide"),
    "slide-finite-difference": (slide("finite-difference"), "finite differences of the slide"),
}


def outcome(flags, seed):
    """Makes a run of run_cartpole.py: (result.json, rows of metrics.csv). Ends the program if the run failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "run_cartpole.py"), *flags.split(), "--seed", str(seed), "--quiet"]
        code = subprocess.run([*command, "--out", folder], stdout=subprocess.DEVNULL).returncode
        if code != 0:
            raise SystemExit(f"{' '.join(command)} ended with exit code {code}")
        return json.loads((pathlib.Path(folder) / "result.json").read_text()), read_metrics(folder)


def run(flags, seed):
    """((steps, seconds) until solved, infinite if not solved; evaluations [3, K]: steps, seconds, mean returns)."""
    result, rows = outcome(flags, seed)
    columns = "env_steps", "seconds", "eval_return_mean"
    curve = np.array([[row[name] for name in columns] for row in rows if "eval_return_mean" in row])
    end = (result["env_steps"], result["seconds"]) if result["solved"] else (np.inf, np.inf)
    return end, curve.reshape(-1, 3).T


def draw(path, curves):
    """Draws one panel per row: for each seed, return_100 over the whole budget."""
    from matplotlib.figure import Figure

    n_rows = -(-len(curves) // 4)
    figure = Figure(figsize=(12, 2.7 * n_rows), layout="constrained")
    panels = list(figure.subplots(n_rows, 4, squeeze=False).flat)
    for axes, (row, seeds) in zip(panels, curves.items()):
        for curve in seeds:
            axes.plot(curve[:, 0] / 1000, curve[:, 1], color="#3182bd", linewidth=1, alpha=0.7)
        axes.set_title(f"{ROWS[row][1]}, {len(seeds)} seeds", fontsize=9)
        axes.set(xlim=(0, None), ylim=(0, 510))
        axes.axhline(TARGET, color="#a50f15", linestyle="--", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    figure.supxlabel("environment steps, thousands: the whole budget")
    figure.supylabel("mean return of 100 episodes")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seeds", type=at_least(1), default=10, help="number of seeds (10)")
    parser.add_argument("--first-seed", type=at_least(0), default=420, help="first seed; the others follow it (420)")
    parser.add_argument("--figure", type=figure_path, metavar="PNG", help="draw the curve of every seed")
    args = parser.parse_args()
    curves = {}
    print(machine("numpy", "gymnasium"), "\n")
    print("| run_cartpole.py | end ≥ 475 | end of each seed | lowest after the first | likely, lowest | first: steps, "
          "median (slowest) | first: s | whole budget: training, evaluations, process, s |")
    print("|---|---|---|---|---|---|---|---|")
    for row in args.rows:
        flags, found = ROWS[row][0], []
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            result, rows = outcome(f"{flags} --target none", seed)  # so no run stops
            rows.append(result)  # it alone has a search's final evaluation
            means = [[r["env_steps"], r["return_100"], r["seconds"]] for r in rows if "return_100" in r]
            means = np.array(means, float)
            curves.setdefault(row, []).append(means)
            (reached,) = np.nonzero(means[:, 1] >= TARGET)
            steps, _, seconds = means[reached[0]] if len(reached) else (np.inf, None, np.inf)
            lowest = means[reached[0] :, 1].min() if len(reached) else np.nan
            times = (result[name] for name in ("seconds", "evaluation_seconds", "process_seconds"))
            found.append((result["return_100"], lowest, result["greedy_return_mean"], steps, seconds, *times))
        end, lowest, likely, steps, seconds, *times = map(np.array, zip(*found))
        each = " ".join(f"{x:.0f}" for x in end)
        print(f"| {flags or '(no flags)'} | {np.sum(end >= TARGET)} of {len(end)} | {each} "
              f"| {np.nanmin(lowest):.0f} | {likely.min():.0f} | {np.median(steps):,.0f} ({steps.max():,.0f}) "
              f"| {np.median(seconds):.2f} | {', '.join(f'{np.median(x):.2f}' for x in times)} |", flush=True)
    if args.figure:
        draw(args.figure, curves)


if __name__ == "__main__":
    main()
