#!/usr/bin/env python
"""What a second worker gives A3C: steps a second on Pong, time to the score on CartPole, and the paper's Table 2.

    python benchmarks/a3c_scaling.py --figure docs/figures/a3c.png

Throughput: environment steps a second of `run_pong.py --algo a3c`, workers' start left out, 1, 2, … workers in turn.
Time to score: seconds and steps of `run_cartpole.py` until solved, as in benchmarks/learning.py; the start of the
worker processes counts, as it does for whoever waits.
"""

import argparse

from timing import machine, training_rate, with_spread  # isort: skip  # before NumPy: it sets the number of threads

import numpy as np
from learning import run
from matplotlib.figure import Figure

import run_pong
from npg.workers import available_cores

PAPER = {1: 1.0, 2: 2.1, 4: 3.7, 8: 6.9, 16: 12.5}  # speed-up in time to score, Mnih et al. 2016, Table 2
COLORS = {"A3C, 1": "#9ecae1", "A3C, 2": "#3182bd", "A3C, 4": "#08519c", "A3C, 8": "#08306b", "A2C, 2": "#e6550d"}


def median_curve(curves, axis, grid):
    """The median over seeds of the return at each point of the grid; a solved run keeps its last evaluation."""
    return np.median([curve[2][np.searchsorted(curve[axis], grid, "right") - 1] for curve in curves], axis=0)


def draw(path, curves):
    """Score against wall time and against steps: the median over seeds, from the first evaluation of all."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, axis, label in zip(figure.subplots(1, 2), (1, 0), ("seconds, start of the workers included", "steps")):
        for name, seeds in curves.items():
            grid = np.linspace(max(c[axis, 0] for c in seeds), max(c[axis, -1] for c in seeds), 200)
            axes.plot(grid, median_curve(seeds, axis, grid), color=COLORS.get(name), label=f"{name} workers")
        axes.axhline(475, color="#a50f15", linestyle="--", linewidth=1)
        axes.set(xlim=(0, None), ylim=(0, 510), xlabel=label, ylabel="mean return, median of the seeds")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = available_cores()
    powers = [2**k for k in range(5) if 2**k <= max(cores, 2)]
    parser.add_argument("--workers", type=int, nargs="+", default=powers, metavar="N", help=f"of A3C {powers}")
    parser.add_argument("--seeds", type=int, default=10, help="of each, on CartPole (10)")
    parser.add_argument("--first-seed", type=int, default=0, help="the others follow it (0)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement of throughput (20)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of throughput with each (5)")
    parser.add_argument("--figure", metavar="PNG", help="draw score against wall time and against steps")
    args = parser.parse_args()
    speeds = {n: [] for n in args.workers}
    for k in range(args.rounds):
        for n in args.workers[:: 1 if k % 2 == 0 else -1]:
            speeds[n].append(training_rate(run_pong.TASK, "a3c", args.seconds, workers=n))
    one = np.array(speeds[args.workers[0]])
    solved, curves = {}, {}
    rows = {f"A3C, {n}": f"--algo a3c --workers {n} --steps 200000" for n in args.workers}
    rows["A2C, 2"] = "--algo a2c --workers 2 --steps 200000"
    for name, flags in rows.items():
        results = [run(flags, seed) for seed in range(args.first_seed, args.first_seed + args.seeds)]
        solved[name], curves[name] = np.array([r for r, _ in results]).T, [curve for _, curve in results]
    base = np.median(solved[f"A3C, {args.workers[0]}"][1])
    print(machine("npg", "numpy", "ale-py"), f", {cores} cores available\n")
    print("| workers | Pong: steps/s | against 1 | CartPole: solved | steps | seconds | against 1 | Table 2 |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (steps, seconds) in solved.items():
        n = int(name.split()[1])
        speed = np.array(speeds[n]) if name.startswith("A3C") else None
        pong = ["", ""] if speed is None else [with_spread(speed, "{:.0f}"), with_spread(speed / one, "{:.2f}")]
        score = [f"{np.isfinite(steps).sum()} of {len(steps)}", with_spread(steps, "{:,.0f}"),
                 with_spread(seconds, "{:.2f}"), f"{base / np.median(seconds):.2f}"]  # fmt: skip
        print("| " + " | ".join([name, *pong, *score, str(PAPER.get(n, "")) if speed is not None else ""]) + " |")
    if args.figure:
        draw(args.figure, curves)


if __name__ == "__main__":
    main()
