#!/usr/bin/env python
"""The cost of sharing in A3C: one asynchronous update of Pong's 1.28 M parameters, beside the segment before it.

    python benchmarks/sharing.py

An update copies θ' ← θ and applies a dense dθ by RMSProp with shared statistics, as `npg.a3c.actor_learner` does. θ and
the statistics are in shared memory. One process makes updates without a pause; then two processes do the same.

A segment is `n_steps` rows of `envs` games, and their gradient, with the settings of run_pong.py for a3c. One process
alone computes it.
"""

import argparse
import time

from timing import machine, needs, with_spread  # isort: skip  # before NumPy: it sets the number of threads

import numpy as np

import run_pong
from npg.actor_critic import advantage_gradient
from npg.optimizers import RMSProp, clip_norm
from npg.pong import PongVectorEnv, RallySampler
from npg.runner.figures import at_least
from npg.runner.workers import Pool, shared_array

SETTINGS = {name: parameter.default for name, parameter in run_pong.SCRIPT.settings_of("a3c", False).items()}
OBJECTIVE = {name: SETTINGS[name] for name in ("gamma", "lam", "value_coef", "entropy_coef", "standardise")}
MODEL = run_pong.make_model(shared=True)
WARM_UP = 5


def receive(*given):
    global theta, optimizer
    theta, optimizer = given


def updates(n):
    """(ms of copying, ms of applying) [n, 2] of n updates in this process."""
    rng, theta_shared = np.random.default_rng(), np.asarray(theta)
    mine, dtheta = np.empty_like(theta_shared), 1e-3 * rng.standard_normal(theta.size, np.float32)
    times = np.empty((WARM_UP + n, 3))
    for row in times:
        row[0] = time.perf_counter()
        mine[...] = theta_shared
        row[1] = time.perf_counter()
        optimizer.step(theta_shared, dtheta)
        row[2] = time.perf_counter()
    return 1e3 * np.diff(times)[WARM_UP:]


def segments(n):
    """(ms of sampling, ms of the gradient) [n, 2] of n whole segments."""
    envs = PongVectorEnv(SETTINGS["envs"], SETTINGS["inputs"], SETTINGS["sticky"], num_threads=1)
    sampler, theta = RallySampler(envs, 0), MODEL.init(np.random.default_rng(0))
    times = np.empty((WARM_UP + n, 3))
    for row in times:
        row[0] = time.perf_counter()
        rollout = sampler.steps(MODEL, theta, SETTINGS["n_steps"])
        row[1] = time.perf_counter()
        dtheta, _ = advantage_gradient(rollout, MODEL, theta, **OBJECTIVE)
        clip_norm(dtheta, SETTINGS["max_grad_norm"])
        row[2] = time.perf_counter()
    return 1e3 * np.diff(times)[WARM_UP:]


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--updates", type=at_least(1), default=100, help="updates per process (100)")
    parser.add_argument("--segments", type=at_least(1), default=50, help="segments to measure (50)")
    args = parser.parse_args()
    needs("ale_py", extra="atari")
    print(machine("numpy", "ale-py"), "\n")
    with Pool(1) as pool:
        sampling, gradient = pool.map(segments, [args.segments])[0].T
    segment = np.median(sampling + gradient)
    shared = shared_array(MODEL.size)
    statistics = RMSProp(shared, 1e-6)
    statistics.v = shared_array(MODEL.size)
    statistics.v[...] = 1
    print(f"θ: {MODEL.size:,} numbers. Milliseconds, medians and quartiles:\n")
    print("| processes | copy θ | apply dθ | one update | share of a segment |")
    print("|---|---|---|---|---|")
    for n in (1, 2):
        with Pool(n, initializer=receive, initargs=(shared, statistics)) as pool:
            pool.map(updates, [1] * n)  # now all processes have started
            times = np.concatenate(pool.map(updates, [args.updates] * n))
            columns = [with_spread(x, "{:.2f}") for x in (*times.T, times.sum(axis=1))]
            part = np.median(times.sum(axis=1)) / segment
            print(f"| {n} | {' | '.join(columns)} | {part:.1%} |", flush=True)
    rows = f"{SETTINGS['n_steps']} × {SETTINGS['envs']}"
    print(f"\nA segment of {rows} steps: sampling {with_spread(sampling)}, gradient {with_spread(gradient)}")


if __name__ == "__main__":
    main()
