#!/usr/bin/env python
"""PPO of npg and of Stable-Baselines3 on other tasks than CartPole, with the same number of environment steps.

    python benchmarks/tasks_vs_sb3.py [--tasks Acrobot-v1 LunarLander-v3 Hopper-v5] [--seeds 3]

Both are judged by the mean return of the last 100 training episodes, in the environment's own reward. Both have their
defaults: npg those of `run_cartpole.py --env TASK`, Stable-Baselines3's PPO its own, and `VecNormalize` if the actions
are Box. For each seed the two take turns, with one thread each. Seconds are of training.
"""

import argparse
import time

from timing import machine, needs  # isort: skip  # before NumPy: it sets the number of threads

if __name__ == "__main__":
    needs("torch", "stable_baselines3")

import numpy as np
import torch
from cartpole_vs_sb3 import Judge, Tell
from gymnasium.spaces import Box
from learning import outcome
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from npg.runner.figures import at_least

TASKS = {"Acrobot-v1": 100_000, "LunarLander-v3": 500_000, "Hopper-v5": 500_000}  # {environment: steps}
T_975 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # Student's t, by freedom


def with_npg(env, steps, seed):
    """(mean return of the last 100 episodes, seconds of training)."""
    result, _ = outcome(f"--env {env} --steps {steps} --target none", seed)
    return result["return_100"], result["seconds"]


def with_sb3(env, steps, seed):
    """The same of Stable-Baselines3."""
    envs = make_vec_env(env, seed=seed)
    if isinstance(envs.action_space, Box):
        envs = VecNormalize(envs)
    model, judge, began = PPO("MlpPolicy", envs, seed=seed, device="cpu"), Judge(), time.perf_counter()
    model.learn(steps, callback=Tell(judge))
    return judge.end, time.perf_counter() - began


def half_width(differences):
    """Half the width of the 95 % confidence interval of the mean of paired differences [n]."""
    n = len(differences)
    return T_975[n - 1] * np.std(differences, ddof=1) / np.sqrt(n)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3, choices=range(3, 11), metavar="N", help="how many, 3 to 10 (3)")
    parser.add_argument("--first-seed", type=at_least(0), default=440, help="the others follow it (440)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine("numpy", "gymnasium", "torch", "stable-baselines3"), "\n")
    print("| task, steps | npg, end of each seed | SB3, end of each seed | npg − SB3, mean ± 95 % half-width "
          "| SB3 s / npg s |")
    print("|---|---|---|---|---|")
    for env in args.tasks:
        steps = TASKS[env]
        ends, seconds = {with_npg: [], with_sb3: []}, {with_npg: [], with_sb3: []}
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for train in (with_npg, with_sb3) if seed % 2 == 0 else (with_sb3, with_npg):
                end, s = train(env, steps, seed)
                ends[train].append(end)
                seconds[train].append(s)
        each = [" ".join(f"{x:.0f}" for x in ends[train]) for train in (with_npg, with_sb3)]
        difference = np.subtract(ends[with_npg], ends[with_sb3])
        ratio = np.divide(seconds[with_sb3], seconds[with_npg])
        print(f"| {env}, {steps:,} | {each[0]} | {each[1]} | {difference.mean():.0f} ± {half_width(difference):.0f} "
              f"| {np.median(ratio):.1f} ({ratio.min():.1f} – {ratio.max():.1f}) |", flush=True)


if __name__ == "__main__":
    main()
