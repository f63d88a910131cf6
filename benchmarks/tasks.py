#!/usr/bin/env python
"""PPO of `run_cartpole.py --env TASK` on other tasks than CartPole, at the end of the budget.

    python benchmarks/tasks.py [--tasks Pendulum-v1 …] [--seeds 5]

The table shows the flags; all other settings are defaults. No run stops before its budget is spent. "end" is the mean
return of the last 100 training episodes. "unseen" is the mean return of unseen episodes of the same policy, which
samples its actions, and "likely" that with the most likely actions. Seconds are medians.
"""

import argparse

from timing import machine  # isort: skip  # before NumPy: it sets the number of threads

import numpy as np
from learning import outcome

from npg.runner.figures import at_least

TASKS = {  # {environment: flags of run_cartpole.py}
    "Pendulum-v1": "--steps 200000",
    "InvertedPendulum-v5": "--steps 500000",
    "HalfCheetah-v5": "--steps 500000",
    "FrozenLake-v1": "--steps 200000 --episodes 2000 --hidden --n-steps 64 --learning-rate 2e-2 --epochs 8 "
                     "--batch-size 256 --lam 0.6 --no-scale-rewards",
}


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--seeds", type=at_least(1), default=5, help="number of seeds (5)")
    parser.add_argument("--first-seed", type=at_least(0), default=450, help="first seed; the others follow it (450)")
    args = parser.parse_args()
    print(machine("numpy", "gymnasium"), "\n")
    print("| `--env` | end of each seed | unseen | likely | seconds: training, evaluations, process |")
    print("|---|---|---|---|---|")
    for env in args.tasks:
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        results = [outcome(f"--env {env} --target none {TASKS[env]}", seed)[0] for seed in seeds]

        def of(name):
            return [result[name] for result in results]

        digits = 2 if env == "FrozenLake-v1" else 0
        returns = (of(name) for name in ("return_100", "eval_return_mean", "greedy_return_mean"))
        each = " | ".join(" ".join(f"{x:.{digits}f}" for x in numbers) for numbers in returns)
        times = (np.median(of(name)) for name in ("seconds", "evaluation_seconds", "process_seconds"))
        print(f"| {env} {TASKS[env]} | {each} | {', '.join(f'{x:.1f}' for x in times)} |", flush=True)


if __name__ == "__main__":
    main()
