#!/usr/bin/env python
"""The speed-up of A3C by more workers: steps per second, and time to a score on Pong and CartPole; the paper's Table 2.

    python benchmarks/a3c_scaling.py --figure a3c.png

Throughput: environment steps per second of `run_pong.py --algo a3c`, without the start of the workers. The numbers of
workers, 1, 2, …, take turns.

Time to score on Pong: until the mean of the last 30 training games is 0. On CartPole: until `run_cartpole.py` solves
the task, judged after every round of 2,000 steps. CartPole has two rows: 8 environments per worker, which is the
default, and 2 per worker, because the paper's workers have few (one).

The time to score includes the start of the worker processes, because a user waits for this start, too. The start alone
is measured on CartPole. The tables give the speed-up with the start and without it.
"""

import argparse
import collections
import contextlib
import functools
import time

from timing import default_learner, machine, seconds_of, training_rate, with_spread  # isort: skip  # before NumPy: threads

import numpy as np
from learning import run
from tqdm import tqdm

import run_cartpole
import run_pong
from npg.runner.figures import at_least, figure_path
from npg.runner.machine import available_cores

PAPER = {1: 1.0, 2: 2.1, 4: 3.7, 8: 6.9, 16: 12.5}  # speed-up in time to score, Mnih et al. 2016, Table 2
STARTS = 10  # measurements of how long workers take to start
CARTPOLE = {
    "CartPole": "--steps 200000 --evaluate-every 1",
    "CartPole, 2 environments per worker": "--steps 200000 --evaluate-every 1 --envs 2",
}
COLORS = {"A3C, 1": "#9ecae1", "A3C, 2": "#3182bd", "A3C, 4": "#08519c", "A3C, 8": "#08306b", "A2C, 2": "#e6550d"}


def pong(n_workers, seed, score, budget):
    """((steps, seconds) until the mean of A3C's last 30 games is `score`, the curve). Infinite if it never happens.

    The curve: steps, seconds and this mean [3, K], after each update from the thirtieth game on.
    """
    task, learner = default_learner(run_pong.SCRIPT, "a3c", seed, n_workers)
    way, games, steps, began = [], collections.deque(maxlen=30), 0, time.perf_counter()
    with contextlib.closing(task):
        while steps < budget:
            learner.anneal(1 - steps / budget)
            rollout = next(learner.updates)["rollout"]
            steps += rollout.env_steps
            games.extend(rollout.episode_returns)
            if len(games) == games.maxlen:
                way.append((steps, time.perf_counter() - began, np.mean(games)))
                if way[-1][2] >= score:
                    return way[-1][:2], np.array(way).T
    return (np.inf, np.inf), np.reshape(way, (-1, 3)).T


def start_seconds(n_workers):
    """Time of a run's first update minus time of its second. In the first, processes start and import their modules."""
    task, learner = default_learner(run_cartpole.SCRIPT, "a3c", 0, n_workers)
    with contextlib.closing(task):
        first, second = (seconds_of(functools.partial(next, learner.updates)) for _ in range(2))
    return first - second


def median_curve(curves, axis, grid):
    """The median over seeds of the score at each point of the grid. A run that has ended keeps its last score."""
    return np.median([curve[2][np.searchsorted(curve[axis], grid, "right") - 1] for curve in curves], axis=0)


def draw(path, tasks):
    """Draws score against wall time and against steps: the median over seeds, until nine of ten runs have ended."""
    from matplotlib.figure import Figure  # not at the top, because every worker imports this file
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(10, 3.6 * len(tasks)), layout="constrained")
    for row, (task, runs) in zip(figure.subplots(len(tasks), 2, squeeze=False), tasks.items()):
        curves = {name: [curve for _, curve in seeds if curve.size] for name, seeds in runs.items()}
        for axes, axis, label in zip(row, (1, 0), ("seconds, start of the workers included", "environment steps")):
            for name, seeds in curves.items():
                if not seeds:  # no seed reached a first score
                    continue
                grid = np.linspace(max(c[axis, 0] for c in seeds), np.percentile([c[axis, -1] for c in seeds], 90), 200)
                axes.plot(grid, median_curve(seeds, axis, grid), color=COLORS.get(name), label=name)
            axes.set(xlim=(0, None), xlabel=label, ylabel="score, median of the seeds")
            axes.set_title(task, fontsize=10)
            if label == "environment steps":
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right", title="workers")
    figure.savefig(path, dpi=110)


@np.errstate(invalid="ignore")  # a spread that reaches into what is infinite is not a number
def table(title, runs, starts):
    """Prints steps and seconds to the score for each name in {name: [((steps, seconds), …)]}, and the speed-up.

    The speed-up is relative to the first name.

    starts   {number of workers: seconds until they have started}
    """
    speedups = "against the first | start left out | Table 2"
    print(f"\n| {title} | reached | steps | seconds | {speedups} | seconds of each seed |")
    print("|---|---|---|---|---|---|---|---|")
    ends = {name: np.array([end for end, _ in seeds]).T for name, seeds in runs.items()}
    workers = {name: int(name.split(", ")[1]) for name in runs}
    medians = {name: np.median(seconds) for name, (_, seconds) in ends.items()}
    training = {name: median - starts[workers[name]] for name, median in medians.items()}
    for name, (steps, seconds) in ends.items():
        reached = f"{np.isfinite(steps).sum()} of {len(steps)}"
        spread = with_spread(steps, "{:,.0f}"), with_spread(seconds, "{:.2f}")
        paper = str(PAPER.get(workers[name], "")) if name.startswith("A3C") else ""
        each = " ".join(f"{s:.2f}" for s in seconds)
        ratios = (next(iter(of.values())) / of[name] for of in (medians, training))
        columns = name, reached, *spread, *map("{:.2f}".format, ratios), paper, each
        print("| " + " | ".join(columns) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    cores = available_cores()
    powers = [2**k for k in range(5) if 2**k <= max(cores, 2)]
    add = parser.add_argument
    add("--workers", type=at_least(1), nargs="+", default=powers, metavar="N", help=f"numbers of A3C workers {powers}")
    add("--seeds", type=at_least(0), default=10, help="seeds per row on CartPole (10)")
    add("--first-seed", type=at_least(0), default=0, help="first seed; the others follow it (0)")
    add("--seconds", type=at_least(1), default=20, help="seconds per measurement of throughput (20)")
    add("--rounds", type=at_least(0), default=5, help="measurements of throughput per number of workers (5)")
    add("--pong-seeds", type=at_least(0), default=3, help="seeds per row on Pong; each takes minutes (3)")
    add("--pong-score", type=float, default=0.0, help="mean score that ends training on Pong (0)")
    add("--pong-steps", type=at_least(1), default=3_000_000, help="budget on Pong; step size falls to 0 (3,000,000)")
    add("--figure", type=figure_path, metavar="PNG", help="draw score against wall time and against steps")
    args = parser.parse_args()
    if args.figure and not (args.seeds or args.pong_seeds):
        parser.error("argument --figure: expected --seeds or --pong-seeds of at least 1, got 0 for both")
    speeds = {n: [] for n in args.workers}
    for k in range(args.rounds):
        for n in args.workers[:: 1 if k % 2 == 0 else -1]:
            speeds[n].append(training_rate(run_pong.SCRIPT, "a3c", args.seconds, workers=n))
    print(machine("npg", "numpy", "ale-py"), f", {cores} cores available\n")
    if args.rounds:
        one = np.array(speeds[args.workers[0]])
        print("| Pong, workers of A3C | steps/s | against the first |\n|---|---|---|")
        for n, speed in speeds.items():
            print(f"| {n} | {with_spread(speed, '{:.0f}')} | {with_spread(np.array(speed) / one, '{:.2f}')} |")

    starts = {n: float(np.median([start_seconds(n) for _ in range(STARTS)])) for n in {*args.workers, 2}}
    print("\nseconds until workers have started:", ", ".join(f"{n}: {s:.2f}" for n, s in sorted(starts.items())))

    runs, of = {}, lambda n: range(args.first_seed, args.first_seed + n)
    if args.pong_seeds:
        goal = args.pong_score, args.pong_steps
        seeds = of(args.pong_seeds)
        runs["Pong"] = {f"A3C, {n}": [pong(n, seed, *goal) for seed in tqdm(seeds, f"Pong, {n}")] for n in args.workers}
        table(f"Pong, to a score of {args.pong_score:g}", runs["Pong"], starts)
    if args.seeds:
        rows = {f"A3C, {n}": f"--algo a3c --workers {n}" for n in args.workers}
        rows["A2C, 2"] = "--algo a2c --workers 2"
        for task, flags in CARTPOLE.items():
            runs[task] = {name: [run(f"{row} {flags}", seed) for seed in of(args.seeds)] for name, row in rows.items()}
            table(f"{task}, to solved", runs[task], starts)
    if args.figure:
        draw(args.figure, runs)


if __name__ == "__main__":
    main()
