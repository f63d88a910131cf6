#!/usr/bin/env python
"""Learning from another policy's experience: what importance weights ρ = π/b cost as the policy π moves away from b.

    python examples/importance.py

The random MDPs have 3 states, 2 actions and 4 steps. All trajectories are enumerated, so bias and variance are exact.
The estimate of π's ∇U is 1/N Σ_i Σ_t w(ρ_t, Ψ_t) ∇ log π(a_t|s_t), from b's trajectories, with Ψ_t = G_t − V_b(s_t).
w is one of the weights of `npg.replay`. The ratio ρ_t is that of the whole trajectory, which an unbiased estimate
needs, or that of the single step, which PPO uses.
"""

from npg.runner import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()  # Ctrl-C during the imports ends the program at once

import argparse

import numpy as np
from matplotlib.figure import Figure

from npg.distributions import Categorical
from npg.network import MLP
from npg.policy import Policy
from npg.reinforce import WEIGHTS
from npg.replay import IMPORTANCE, effective_sample_size
from npg.runner.figures import at_least, figure_path
from npg.tabular import FiniteMDP

DISTANCES = np.geomspace(0.01, 3, 12)  # KL(b ‖ π) of trajectories, in nats
ALL = {"no weight": lambda ratio, psi: psi, **IMPORTANCE}
COLORS = {"no weight": "0.55", "plain": "#08519c", "truncated": "#31a354", "clipped": "#a63603"}
RATIOS = {"trajectory": "one ratio for the whole trajectory", "step": "one ratio per step (PPO)"}
N = 100


def at_distance(mdp, policy, theta_b, direction, distance):
    """θ_b + x · direction with KL(b ‖ π) = distance; bisection finds x."""
    prob_b = mdp.prob(policy, theta_b)
    kl = lambda x: prob_b @ np.log(prob_b / mdp.prob(policy, theta_b + x * direction))
    low, high = 0.0, 1.0
    while kl(high) < distance:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(middle) < distance else (low, middle)
    return theta_b + high * direction


def compare(seed, distance):
    """{kind of ratio: {"ess": exact, "sampled": ESS of N trajectories, name of the weight: (bias, std)}}.

    "ess" and "sampled" are effective sample sizes divided by the number of samples. Bias and std are relative to ‖∇U‖.
    """
    rng = np.random.default_rng(seed)
    mdp = FiniteMDP(rng.dirichlet(np.ones(3), (3, 2)), rng.random((3, 2)), np.full(3, 1 / 3), horizon=4)
    policy = Policy(MLP((3, 2)), Categorical(2))
    theta_b, direction = rng.normal(size=(2, policy.size))
    theta = at_distance(mdp, policy, theta_b, direction, distance)
    prob_b, psi = mdp.prob(policy, theta_b), WEIGHTS["reward-to-go"](mdp.rollout(), 1.0)
    psi = psi - mdp.along(mdp.values(policy, theta_b)[1][:-1])
    step = mdp.along(np.tile(np.exp(mdp.log_policy(policy, theta) - mdp.log_policy(policy, theta_b)), (4, 1, 1)))
    sample = rng.choice(len(prob_b), N, p=prob_b)
    gradient = np.linalg.norm(mdp.gradient(policy, theta))
    result = {}
    for kind, ratio in ("trajectory", np.tile(step.prod(axis=0), (4, 1))), ("step", step):
        exact = 1 / np.mean(ratio**2 @ prob_b)  # E[ρ] = 1
        result[kind] = {"ess": exact, "sampled": effective_sample_size(ratio[:, sample]) / ratio[:, sample].size}
        for name, weight in ALL.items():
            moments = mdp.moments(policy, theta, weight(ratio, psi), N, prob=prob_b)
            result[kind][name] = np.linalg.norm(moments.bias) / gradient, np.sqrt(moments.variance) / gradient
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add, out = parser.add_argument, "docs/figures/importance.png"
    add("--out", type=figure_path, default=out, help="figure to write (%(default)s)")
    add("--mdps", type=at_least(1), default=20, help="number of random MDPs, with seeds 0, 1, … (%(default)s)")
    args = parser.parse_args(argv)
    results = [[compare(seed, distance) for seed in range(args.mdps)] for distance in DISTANCES]
    pick = lambda kind, key: np.array([[r[kind][key] for r in row] for row in results])  # [distances, MDPs, …]

    for kind, text in RATIOS.items():
        print(f"{text}, medians of {args.mdps} MDPs")
        print("    KL  ESS/N " + "".join(f"{name + ': bias, std':>24}" for name in ALL))
        for k, distance in enumerate(DISTANCES):
            numbers = [np.median(pick(kind, name)[k], axis=0) for name in ALL]
            print(f"{distance:6.2f} {np.median(pick(kind, 'ess')[k]):6.2f} " + "".join(
                f"{bias:16.3f}, {std:6.3f}" for bias, std in numbers
            ))

    figure = Figure(figsize=(11.5, 6.8), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey="col")
    lift = {"plain": 7, "clipped": 3, "no weight": -5, "truncated": -4}  # moves the labels apart
    for row, (kind, text) in zip(panels, RATIOS.items()):
        curves = [(row[0], "", "k", pick(kind, "ess"))]
        for name, color in COLORS.items():
            curves += [(axes, name, color, y) for axes, y in zip(row[1:], np.moveaxis(pick(kind, name), -1, 0))]
        for axes, name, color, y in curves:
            middle, end = np.median(y, axis=1), {"color": color, "va": "center", "fontsize": 9}
            axes.plot(DISTANCES, middle, color=color)
            axes.fill_between(DISTANCES, *np.percentile(y, [25, 75], axis=1), color=color, alpha=0.15, lw=0)
            axes.annotate(name, (DISTANCES[-1], middle[-1]), (4, lift.get(name, 0)), "data", "offset points", **end)
        row[0].plot(DISTANCES, pick(kind, "sampled"), ".", color="k", ms=3, alpha=0.3)
        row[0].set_ylabel(text, fontweight="bold")
    for axes, title in zip(panels[0], (
        f"effective sample size / N\nlines: exact; dots: measured on {N} trajectories",
        "bias, relative to ‖∇U‖\n(exact)",
        f"standard deviation with N = {N},\nrelative to ‖∇U‖ (exact)",
    )):
        axes.set_title(title, fontsize=10)
    panels[0, 0].set_xscale("log")
    panels[0, 1].set_ylim(-0.05, 1.6)
    panels[0, 2].set_ylim(0, 2.6)
    panels[1, 1].text(0.011, 1.4, "clipped weights do not estimate ∇U:\nthey stop where π has moved", fontsize=9)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[1]:
        axes.set_xlabel("KL(b ‖ π) of a trajectory, nats")
    caption = f"Lines: median of {args.mdps} random MDPs (seeds 0–{args.mdps - 1}), bands: quartiles"
    figure.supxlabel(caption, fontsize=10)
    figure.savefig(args.out, dpi=130)
    return {kind: {key: pick(kind, key) for key in ("ess", "sampled", *ALL)} for kind in RATIOS}


if __name__ == "__main__":
    raise SystemExit(interrupts.run(main))
