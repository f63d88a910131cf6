#!/usr/bin/env python
"""`run_cartpole.py`'s defaults against Stable-Baselines3's tuned PPO: steps and seconds until CartPole-v1 is solved.

    python benchmarks/cartpole_vs_sb3.py

Both are judged alike. About every 2,560 steps the most likely actions play 100 unseen episodes; the first evaluation
with a mean ≥ 475 that a second, independent one confirms is where the task counts as solved. Seconds are training's
alone. The two take turns, seed by seed, with one thread each.
"""

import argparse
import time

from timing import default_learner, machine, with_spread  # isort: skip  # before NumPy: it sets the number of threads

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from npg.rollout import play
from npg.runner.environments import make_envs
from npg.runner.playing import EVALUATE
from run_cartpole import SCRIPT

ENV, TARGET, EPISODES, EVALUATE_EVERY = "CartPole-v1", 475, 100, 2560
SB3_STEPS = 100_000
# rl-baselines3-zoo, hyperparams/ppo.yml; "lin_0.001" there is a rate that falls to 0 over the budget
SB3_SETTINGS = {
    "n_steps": 32,
    "batch_size": 256,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "n_epochs": 20,
    "ent_coef": 0.0,
    "learning_rate": lambda remaining: 0.001 * remaining,
    "clip_range": lambda remaining: 0.2 * remaining,
}


class Judge:
    """Asked after every update whether the task is solved; its clock stands still while it evaluates."""

    def __init__(self, act, seed):
        self.act, self.seed, self.envs = act, seed, make_envs(ENV, EPISODES)
        self.solved, self.seconds, self.env_steps, self.due = False, 0.0, 0, EVALUATE_EVERY
        self.started = time.perf_counter()

    def is_solved(self, env_steps):
        if self.solved:
            return True
        self.seconds += time.perf_counter() - self.started
        self.env_steps = env_steps
        if env_steps >= self.due:
            self.due = env_steps + EVALUATE_EVERY
            returns = lambda k: play(self.envs, self.act, EPISODES, self.seed, EVALUATE, env_steps, k)[0]
            self.solved = returns(0).mean() >= TARGET and returns(1).mean() >= TARGET
        self.started = time.perf_counter()
        return self.solved

    def verdict(self):
        """Whether it was solved, and the steps and seconds until then, or until the end of the budget."""
        return self.solved, self.env_steps, self.seconds


def with_npg(seed):
    """The judge's verdict on `run_cartpole.py`'s defaults."""
    defaults = {name: parameter.default for name, parameter in SCRIPT.settings_of("ppo", False).items()}
    task, learner = default_learner(SCRIPT, "ppo", seed)
    judge, env_steps = Judge(lambda obs: learner.policy.act(learner.theta, obs), seed), 0
    while not judge.is_solved(env_steps) and env_steps < defaults["steps"]:
        learner.anneal(1 - env_steps / defaults["steps"])
        env_steps += next(learner.updates)["rollout"].env_steps
    return judge.verdict()


class Ask(BaseCallback):
    """Asks the judge between learning from one rollout and collecting the next."""

    def __init__(self, judge):
        super().__init__()
        self.judge = judge

    def _on_rollout_start(self):
        self.judge.is_solved(self.num_timesteps)

    def _on_step(self):
        return not self.judge.solved


def with_sb3(seed):
    """The judge's verdict on Stable-Baselines3's PPO."""
    model = PPO("MlpPolicy", make_vec_env(ENV, n_envs=8, seed=seed), seed=seed, device="cpu", **SB3_SETTINGS)
    judge = Judge(lambda obs: model.predict(obs, deterministic=True)[0], seed)
    model.learn(SB3_STEPS, callback=Ask(judge))
    judge.is_solved(model.num_timesteps)
    return judge.verdict()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="how many (10)")
    parser.add_argument("--first-seed", type=int, default=0, help="the others follow it (0)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine("numpy", "gymnasium", "torch", "stable-baselines3"), "\n")
    print("| seed | npg steps | npg s | SB3 steps | SB3 s | SB3 s / npg s |")
    print("|---|---|---|---|---|---|")
    verdicts = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        order = (with_npg, with_sb3) if seed % 2 == 0 else (with_sb3, with_npg)
        verdict = {train: train(seed) for train in order}
        verdicts.append((verdict[with_npg], verdict[with_sb3]))
        cells = [f"{steps:,} | {s:.2f}" if ok else f"> {steps:,} | > {s:.2f}" for ok, steps, s in verdicts[-1]]
        print(f"| {seed} | {cells[0]} | {cells[1]} | {verdicts[-1][1][2] / verdicts[-1][0][2]:.1f} |", flush=True)
    (solved, sb3_solved), (steps, sb3_steps), (seconds, sb3_seconds) = np.transpose(verdicts, (2, 1, 0))
    print(
        f"| median (quartiles) | {with_spread(steps, '{:,.0f}')} | {with_spread(seconds, '{:.2f}')} "
        f"| {with_spread(sb3_steps, '{:,.0f}')} | {with_spread(sb3_seconds, '{:.2f}')} "
        f"| {with_spread(sb3_seconds / seconds)} |"
    )
    print(f"\nsolved: npg {solved.sum():.0f} of {args.seeds}, SB3 {sb3_solved.sum():.0f} of {args.seeds}")


if __name__ == "__main__":
    main()
