#!/usr/bin/env python
"""Compares policy gradients with searches, which use only f(θ), on the same tasks with equally many environment steps.

    python benchmarks/comparison.py
    python benchmarks/comparison.py --tasks CartPole-v1 --algos ppo es --seeds 3

The tables show the return (the quadruped: m/s) at the end of the budget: the interquartile mean over seeds, with its
95 % bootstrap interval. Each run is added to --results when it ends, and is then never repeated. If all runs are in
--results, the script only prints the tables and draws.
"""

import argparse
import concurrent.futures
import json
import pathlib
import sys
from typing import NamedTuple

from timing import machine  # isort: skip  # before NumPy: it sets the number of threads

import numpy as np
from learning import outcome
from matplotlib.figure import Figure
from tqdm import tqdm

import run_cartpole
from npg.runner.figures import at_least, figure_path
from npg.runner.folder import write_json
from npg.runner.machine import available_cores

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import quadruped

WALK_STEPS = 200  # of the quadruped's environment in one walk


class Contest(NamedTuple):
    """The conditions of a task, which are the same for all its algorithms."""

    algos: tuple
    steps: int
    seeds: int
    flags: str = ""  # of run_cartpole.py
    unit: str = "mean return of unseen episodes"


EVERY = tuple(run_cartpole.SCRIPT.algorithms)
CONTESTS = {
    "CartPole-v1": Contest(EVERY, 50_000, 10, "--episodes 30 --evaluate-every 10"),
    "Swimmer-v5": Contest(EVERY, 100_000, 3, "--episodes 3 --evaluate-every 10"),
    "quadruped": Contest(tuple(quadruped.METHODS), 300 * WALK_STEPS, 3, unit="speed over unseen walks, m/s"),
}


def run(task, algo, seed):
    """(numbers of environment steps [K], evaluations after these steps [K]), up to the end of the budget."""
    return (walk if task == "quadruped" else play)(task, algo, seed)


def walk(task, algo, seed):
    thetas, walks, _ = quadruped.learn(algo, CONTESTS[task].steps // WALK_STEPS, seed)
    shown = np.unique(np.linspace(0, len(thetas) - 1, 8).round().astype(int))
    return (walks[shown] * WALK_STEPS).tolist(), quadruped.test(thetas[shown], 5, seed).mean(axis=1).tolist()


def play(task, algo, seed):
    contest = CONTESTS[task]
    flags = f"--env {task} --algo {algo} --steps {contest.steps} {contest.flags} --target none"
    result, rows = outcome(flags, seed)
    rows = [*(row for row in rows if "eval_return_mean" in row), result]
    return [min(row["env_steps"], contest.steps) for row in rows], [row["eval_return_mean"] for row in rows]


def interquartile_mean(x):
    """The mean of the middle half of x [..., n] along its last axis, without the ⌊n/4⌋ lowest and highest values."""
    x = np.sort(x, axis=-1)
    cut = x.shape[-1] // 4
    return x[..., cut : x.shape[-1] - cut].mean(axis=-1)


def with_interval(x, rng, n_resamples=2000):
    """(interquartile mean of x [..., n] over its n seeds, low end and high end of its 95 % bootstrap interval)."""
    n = x.shape[-1]
    resampled = interquartile_mean(x[..., rng.integers(n, size=(n_resamples, n))])
    return interquartile_mean(x), *np.percentile(resampled, [2.5, 97.5], axis=-1)


def at(grid, steps, values):
    """The latest evaluation at each number of steps in the grid. The grid must not begin before the evaluations."""
    return np.array(values)[np.searchsorted(steps, grid, side="right") - 1]


def draw(path, results):
    """Draws one panel per task and kind (policy gradients, searches), with one line and its interval per algorithm."""
    rng = np.random.default_rng(0)
    panels = []
    for task, algos in results.items():
        for kind in ("policy gradients", "searches"):
            of_kind = {a: s for a, s in algos.items() if (a in run_cartpole.SEARCHES) == (kind == "searches")}
            panels += [(task, kind, of_kind)] if of_kind else []
    figure = Figure(figsize=(4.2 * len(panels), 4.5), layout="constrained")
    for axes, (task, kind, algos) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels):
        contest = CONTESTS[task]
        for algo, seeds in algos.items():
            grid = np.linspace(max(steps[0] for steps, _ in seeds.values()), contest.steps, 60)
            curves = np.stack([at(grid, *curve) for curve in seeds.values()], axis=-1)
            mean, low, high = with_interval(curves, rng)
            (line,) = axes.plot(grid / 1000, mean, label=algo)
            axes.fill_between(grid / 1000, low, high, color=line.get_color(), alpha=0.1, lw=0)
        axes.set(title=f"{task}: {kind}", ylabel=contest.unit, xlim=(0, None), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.supxlabel("environment steps in training, thousands")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--tasks", nargs="+", choices=CONTESTS, default=list(CONTESTS), metavar="TASK", help=", ".join(CONTESTS))
    algos = sorted({algo for contest in CONTESTS.values() for algo in contest.algos})
    add("--algos", nargs="+", choices=algos, metavar="ALGO", help="only these algorithms (all)")
    seeds = ", ".join(f"{task} {contest.seeds}" for task, contest in CONTESTS.items())
    add("--seeds", type=at_least(1), help=f"number of seeds ({seeds})")
    add("--first-seed", type=at_least(0), default=0, help="first seed; the others follow it (0)")
    add("--workers", type=at_least(1), default=available_cores(), help="parallel runs, one thread each (%(default)s)")
    add("--results", type=pathlib.Path, default="runs/comparison.json", help="file with all results (%(default)s)")
    figure = pathlib.Path("runs/comparison.png")
    add("--figure", type=figure_path, metavar="PNG", default=figure, help="figure to write (%(default)s)")
    args = parser.parse_args()

    kept = json.loads(args.results.read_text()) if args.results.exists() else {}
    jobs = [
        (task, algo, seed)
        for task in args.tasks
        for algo in CONTESTS[task].algos
        if algo in (args.algos or CONTESTS[task].algos)
        for seed in range(args.first_seed, args.first_seed + (args.seeds or CONTESTS[task].seeds))
    ]
    key = lambda task, algo, seed: f"{task} {algo} {CONTESTS[task].steps} {seed}"
    missing = [job for job in jobs if key(*job) not in kept]
    for path in (args.results, args.figure):
        path.parent.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ProcessPoolExecutor(args.workers) as pool:
        running = {pool.submit(run, *job): job for job in missing}
        done = concurrent.futures.as_completed(running)
        for future in tqdm(done, total=len(missing), unit=" runs", disable=not missing, dynamic_ncols=True):
            kept[key(*running[future])] = future.result()
            write_json(args.results, kept)

    results = {}
    for job in jobs:
        task, algo, seed = job
        results.setdefault(task, {}).setdefault(algo, {})[seed] = kept[key(*job)]
    print(machine("numpy", "gymnasium"))
    for task, algos in results.items():
        contest = CONTESTS[task]
        print(f"\n| {task}, {contest.steps:,} steps | {contest.unit} | 95 % interval | of each seed |")
        print("|---|---|---|---|")
        for algo, seeds in algos.items():
            final = np.array([values[-1] for _, values in seeds.values()])
            mean, low, high = with_interval(final, np.random.default_rng(0))
            each = " ".join(f"{x:.2f}" if task == "quadruped" else f"{x:.0f}" for x in final)
            print(f"| {algo} | {mean:.2f} | {low:.2f} – {high:.2f} | {each} |")
    draw(args.figure, results)


if __name__ == "__main__":
    main()
