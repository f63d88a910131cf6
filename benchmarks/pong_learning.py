#!/usr/bin/env python
"""Runs `run_pong.py` seed after seed: steps and seconds until Pong is solved, and the score against minutes.

    python benchmarks/pong_learning.py                           rows "default" and "sticky", 5 and 2 seeds
    python benchmarks/pong_learning.py --rows sticky-start --figure docs/figures/pong_sticky.png
    python benchmarks/pong_learning.py --rows reinforce --seeds 0
    python benchmarks/pong_learning.py --figure docs/figures/pong.png --rows default reinforce

The script does not repeat runs that are complete in the folder of runs, so it can draw a figure again. An evaluation is
10 full games to 21 on seeds that training never saw. A run is solved when an evaluation reaches the target and 30 other
games confirm it.
"""

import argparse
import json
import pathlib

from timing import machine, needs  # isort: skip  # before NumPy: it sets the number of threads

from matplotlib.figure import Figure

import run_pong
from npg.runner.figures import at_least, figure_path
from npg.runner.machine import available_cores
from npg.runner.metrics import read_metrics

ROWS = {  # flags of run_pong.py, seeds fixed beforehand and not used in tuning, colour
    "default": ("", range(570, 575), "#08519c"),
    "sticky": ("--sticky 0.25 --target 15 --steps 5000000", range(230, 232), "#31a354"),
    "sticky-start": (
        "--sticky 0.25 --start-from pretrained --learning-rate 6e-4 --target 15 --steps 12000000 --evaluate-every 200",
        range(232, 235),
        "#31a354",
    ),
    "reinforce": ("--algo reinforce --target -5 --evaluate-every 10 --steps 4000000", range(200, 202), "#636363"),
}
LABELS = {
    "default": "default (PPO)",
    "sticky": "default, actions stick with p = 0.25",
    "sticky-start": "actions stick with p = 0.25, from the player that comes with the package",
    "reinforce": "REINFORCE on difference frames",
}


def run(folder, flags, seed):
    """Returns result.json of a run of run_pong.py. Makes or resumes the run first if the folder has no result yet."""
    path = folder / "result.json"
    if not path.exists():
        new = [*flags.split(), "--seed", str(seed), "--out", str(folder)]
        begun = (folder / "config.json").exists()
        code = run_pong.main(run_pong.SCRIPT, ["--resume", str(folder)] if begun else new)
        if code != 0:
            raise SystemExit(f"run_pong.py {flags} --seed {seed} ended with exit code {code}")
    return json.loads(path.read_text())


def recent_scores(folder):
    """(minutes of training, mean score of the last 30 training games), lists over the updates from the 30th game on."""
    rows = [row for row in read_metrics(folder) if "return_30" in row]
    return [row["seconds"] / 60 for row in rows], [row["return_30"] for row in rows]


def draw(path, results):
    """Draws one line per seed, up to the end of its run. The cross is the mean score of its last evaluation."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for row, runs in results.items():
        for k, (folder, result) in enumerate(runs):
            training, evaluation = (None, None) if k else (f"{LABELS[row]}, in training", "last evaluation")
            axes.plot(*recent_scores(folder), color=ROWS[row][2], linewidth=1, label=training)
            axes.plot(result["seconds"] / 60, result["eval_return_mean"], "x", color=ROWS[row][2], label=evaluation)
    ended = [result for runs in results.values() for _, result in runs]
    axes.axhline(max(result["target"] for result in ended), color="#a50f15", linestyle="--", linewidth=1)
    axes.set(xscale="log", ylim=(-21.5, 21.5))
    axes.set_xlabel(f"minutes of training, {available_cores()} cores")
    axes.set_ylabel("score, mean of 30 games")
    axes.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20, 50])
    axes.set_xlim(0.2, 1.1 * max(result["seconds"] for result in ended) / 60)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["default", "sticky"], metavar="ROW",
                        help=f"{', '.join(ROWS)} (default sticky)")  # fmt: skip
    parser.add_argument("--seeds", type=at_least(0), nargs="+", metavar="N", help="seeds, instead of those of each row")
    parser.add_argument("--runs", type=pathlib.Path, default="runs/pong", help="folder of the runs (runs/pong)")
    parser.add_argument("--ended", action="store_true", help="do not train; show only the runs that have ended")
    parser.add_argument("--figure", type=figure_path, metavar="PNG", help="draw every seed's score against minutes")
    args = parser.parse_args()
    needs("ale_py", extra="atari")
    print(machine("npg", "numpy", "ale-py"), "\n")
    print("| run_pong.py | seed | solved | steps | training, s | evaluations, s | last evaluation |")
    print("|---|---|---|---|---|---|---|")
    results = {}
    for row in args.rows:
        flags, seeds, _ = ROWS[row]
        for seed in args.seeds or seeds:
            folder = args.runs / f"{row}-seed{seed}"
            if args.ended and not (folder / "result.json").exists():
                continue
            result = run(folder, flags, seed)
            results.setdefault(row, []).append((folder, result))
            print(
                f"| {flags} | {seed} | {'yes' if result['solved'] else 'no'} | {result['env_steps']:,} "
                f"| {result['seconds']:.0f} | {result['evaluation_seconds']:.0f} "
                f"| {result['eval_return_mean']:+.1f} ± {result['eval_return_std']:.1f} "
                f"({result['eval_episodes']} games) |",
                flush=True,
            )
    if args.figure and results:
        draw(args.figure, results)


if __name__ == "__main__":
    main()
