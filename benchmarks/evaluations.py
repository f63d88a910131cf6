#!/usr/bin/env python
"""The speed-up of gradient-free searches by a second worker: evaluations per second by one worker and by two.

    python benchmarks/evaluations.py                  an evaluation is a walk of examples/quadruped.py, 10 s simulated

`search` waits for all candidates of an iteration. So with few candidates, one worker idles while the other worker plays
the last candidate. For comparison, the script also measures the machine's own speed-up: loops that share nothing
replace the walks.
"""

import argparse
import pathlib
import sys
import time

from timing import machine, with_spread  # isort: skip  # before NumPy: it sets the number of threads

import numpy as np

from npg.gradient_free import evaluator
from npg.runner.figures import at_least
from npg.runner.workers import Pool

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
from quadruped import walk


def loop(theta, seed):
    """An evaluation that needs only a processor and takes about as long as a walk."""
    return float(sum(k * k for k in range(1_000_000)))


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--candidates", type=at_least(1), nargs="+", default=[15, 64], metavar="P", help="per iteration (15 64)")
    add("--evaluations", type=at_least(1), default=600, help="evaluations per number of workers (600)")
    args = parser.parse_args()
    print(machine("numpy", "gymnasium", "mujoco"), "\n")
    print("| evaluation | candidates per iteration | by 1 worker, 1/s | by 2 workers, 1/s | ratio |")
    print("|---|---|---|---|---|")
    with Pool(1) as one, Pool(2) as two:
        for f in (walk, loop):
            for n_candidates in args.candidates:
                rounds = 1 + max(1, args.evaluations // n_candidates)
                rng, rates = np.random.default_rng(0), {one: [], two: []}
                for k in range(rounds):
                    thetas = rng.integers(-1, 2, (n_candidates, 12)).astype(float)
                    for pool in (one, two)[:: 1 if k % 2 else -1]:
                        began = time.perf_counter()
                        evaluator(f, np.random.default_rng(k), executor=pool)(thetas)
                        rates[pool].append(n_candidates / (time.perf_counter() - began))
                by_one, by_two = (np.array(rates[pool][1:]) for pool in (one, two))  # the first makes environments
                columns = with_spread(by_one), with_spread(by_two), with_spread(by_two / by_one, "{:.2f}")
                print("| " + " | ".join([f.__name__, str(n_candidates), *columns]) + " |", flush=True)


if __name__ == "__main__":
    main()
