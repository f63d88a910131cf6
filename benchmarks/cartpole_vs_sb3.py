#!/usr/bin/env python
"""`run_cartpole.py`'s defaults against Stable-Baselines3's PPO and A2C on CartPole-v1.

    python benchmarks/cartpole_vs_sb3.py [--algo ppo] [--sb3-envs 8] [--processes]

Both are judged by the mean return of the last 100 training episodes, so by the policy as it acts. "first" is the number
of steps and seconds of training until this mean is at least 475. "end" is this mean when the budget is spent. No run
stops earlier. Stable-Baselines3's PPO has the tuned settings of rl-baselines3-zoo, its A2C has its defaults. For each
seed the two libraries take turns, with one thread each.

--processes compares whole processes, from the start of Python to its end. `run_cartpole.py` confirms with 100 more
episodes that it solved the task, and draws its picture. Stable-Baselines3 only trains, and stops at this mean.
"""

import argparse
import collections
import functools
import pathlib
import subprocess
import sys
import time

from timing import default_learner, machine, needs, with_spread  # isort: skip  # before NumPy: it sets the number of threads

if __name__ == "__main__":
    needs("torch", "stable_baselines3")

import numpy as np
import torch
from learning import outcome
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from npg.runner.figures import at_least
from run_cartpole import SCRIPT

ENV, TARGET, WINDOW = "CartPole-v1", 475, 100
ZOO = {  # rl-baselines3-zoo, hyperparams/ppo.yml; "lin_0.001" there is a rate that falls to 0 over the budget
    "n_steps": 32,
    "batch_size": 256,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "n_epochs": 20,
    "ent_coef": 0.0,
    "learning_rate": lambda remaining: 0.001 * remaining,
    "clip_range": lambda remaining: 0.2 * remaining,
}
ROW = "{:,.0f} | {:.2f} | {:,.0f} | {:.2f}"  # steps and seconds of both programs
PEERS = {"ppo": (PPO, ZOO), "a2c": (A2C, {})}


class Judge:
    """Receives the episodes of each update. `first`: when the mean of 100 first reached 475. `end`: the last mean."""

    def __init__(self):
        self.returns, self.first, self.end = collections.deque(maxlen=WINDOW), (np.inf, np.inf), np.nan
        self.began = time.perf_counter()

    def see(self, returns, env_steps):
        self.returns.extend(returns)
        if len(self.returns) == WINDOW:
            self.end = np.mean(self.returns)
            if self.end >= TARGET and self.first[0] == np.inf:
                self.first = env_steps, time.perf_counter() - self.began

    def verdict(self):
        """(steps and seconds until `first`, mean at the end, seconds of the whole budget)."""
        return *self.first, self.end, time.perf_counter() - self.began


def with_npg(algo, seed, budget):
    _, learner = default_learner(SCRIPT, algo, seed)
    judge, env_steps = Judge(), 0
    while env_steps < budget:
        learner.anneal(1 - env_steps / budget)
        rollout = next(learner.updates)["rollout"]
        env_steps += rollout.env_steps
        judge.see(rollout.episode_returns, env_steps)
    return judge.verdict()


class Tell(BaseCallback):
    """Sends the judge the returns of the episodes that ended. With `stop`, training ends at the judge's `first`."""

    def __init__(self, judge, stop=False):
        super().__init__()
        self.judge, self.stop = judge, stop

    def _on_step(self):
        ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if ended:
            self.judge.see(ended, self.num_timesteps)
        return not (self.stop and self.judge.first[0] < np.inf)


def with_sb3(algo, seed, budget, envs, stop=False):
    kind, settings = PEERS[algo]
    model = kind("MlpPolicy", make_vec_env(ENV, n_envs=envs, seed=seed), seed=seed, device="cpu", **settings)
    judge = Judge()
    model.learn(budget, callback=Tell(judge, stop))
    return judge.verdict()


def npg_process(algo, seed, budget):
    """Steps of a process that solves the task with npg."""
    result, _ = outcome(f"--algo {algo} --steps {budget}", seed)
    return result["env_steps"] if result["solved"] else np.inf


def sb3_process(algo, seed, budget, envs):
    """Steps of a process that solves the task with Stable-Baselines3."""
    program = f"import cartpole_vs_sb3 as it; print(it.with_sb3({algo!r}, {seed}, {budget}, {envs}, stop=True)[0])"
    here = pathlib.Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", program], cwd=here, check=True, capture_output=True, text=True)
    return float(done.stdout)


def compare_processes(algo, seeds, budget, envs):
    """Prints the table of --processes."""
    print("| seed | npg: steps | s | SB3: steps | s | SB3 s / npg s |\n|---|---|---|---|---|---|")
    sb3, rows = functools.partial(sb3_process, envs=envs), []
    for seed in seeds:
        found = {}
        for process in (npg_process, sb3) if seed % 2 == 0 else (sb3, npg_process):
            began = time.perf_counter()
            found[process] = process(algo, seed, budget), time.perf_counter() - began
        rows.append([*found[npg_process], *found[sb3]])
        print(f"| {seed} | {ROW.format(*rows[-1])} | {rows[-1][3] / rows[-1][1]:.1f} |", flush=True)
    rows = np.array(rows)
    print(f"| median | {ROW.format(*np.median(rows, axis=0))} | {with_spread(rows[:, 3] / rows[:, 1])} |")


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--algo", choices=list(PEERS), default="ppo")
    parser.add_argument("--steps", type=at_least(1), help="budget of steps (the default of run_cartpole.py)")
    parser.add_argument("--sb3-envs", type=at_least(1), default=8, help="Stable-Baselines3's environments (8)")
    parser.add_argument("--seeds", type=at_least(1), default=10, help="number of seeds (10)")
    parser.add_argument("--first-seed", type=at_least(0), default=0, help="first seed; the others follow it (0)")
    parser.add_argument("--processes", action="store_true", help="compare whole processes, until the mean of 475")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    budget = args.steps or SCRIPT.settings_of(args.algo, False)["steps"].default
    torch.set_num_threads(1)
    print(machine("numpy", "gymnasium", "torch", "stable-baselines3"), "\n")
    print(f"{args.algo}, {budget:,} steps\n")
    if args.processes:
        compare_processes(args.algo, seeds, budget, args.sb3_envs)
        return
    print("| seed | npg first: steps | s | npg end | SB3 first: steps | s | SB3 end | whole budget: SB3 s / npg s |")
    print("|---|---|---|---|---|---|---|---|")
    sb3, verdicts = functools.partial(with_sb3, envs=args.sb3_envs), []
    for seed in seeds:
        order = (with_npg, sb3) if seed % 2 == 0 else (sb3, with_npg)
        verdict = {train: train(args.algo, seed, budget) for train in order}
        verdicts.append((verdict[with_npg], verdict[sb3]))
        cells = " | ".join(f"{steps:,.0f} | {s:.2f} | {end:.0f}" for steps, s, end, _ in verdicts[-1])
        print(f"| {seed} | {cells} | {verdicts[-1][1][3] / verdicts[-1][0][3]:.1f} |", flush=True)
    steps, seconds, end, whole = np.transpose(verdicts, (2, 1, 0))
    cells = [f"{np.median(steps[k]):,.0f} | {np.median(seconds[k]):.2f} | {end[k].mean():.0f}" for k in range(2)]
    print(f"| median; mean of the ends | {' | '.join(cells)} | {with_spread(whole[1] / whole[0])} |")
    both = np.isfinite(seconds).all(axis=0)
    if both.any():
        print(f"\nfirst: SB3 s / npg s, where both reached it: {with_spread(seconds[1, both] / seconds[0, both])}")


if __name__ == "__main__":
    main()
