#!/usr/bin/env python
"""Sampling in action space against sampling in parameter space: what does an estimate of the gradient cost?

    python examples/estimators.py

In each episode the policy sees n random signs s and draws T actions a_t ~ N(θᵀs, 1). The return is −(ā − θ*ᵀs)², where
ā is the mean of the actions:

    U(θ) = −‖θ − θ*‖² − 1/T,     ∇U(θ) = −2 (θ − θ*)

Likelihood ratio, evolution strategies and finite differences estimate ∇U at ‖θ − θ*‖ = 1 from equally many episodes.
U is quadratic, so no estimate is biased. Evolution strategies and finite differences perturb θ. Perturbations of length
1 are about the best for both.
"""

from npg.runner import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()  # Ctrl-C during the imports ends the program at once

import argparse

import numpy as np
from matplotlib.figure import Figure

from npg.distributions import Gaussian
from npg.network import LinearPreferences
from npg.policy import Policy
from npg.runner.figures import at_least, figure_path
from npg.score_function import score_function_gradient

SIZES, FIXED = 2 ** np.arange(1, 9), 16  # values of n while T is FIXED, and of T while n is FIXED
COLORS = {"likelihood ratio": "#08519c", "evolution strategies": "#a63603", "finite differences": "#756bb1"}


class Task:
    def __init__(self, n, T, rng):
        self.n, self.T, self.rng = n, T, rng
        self.theta, self.best = np.zeros(n), np.full(n, n**-0.5)
        linear = LinearPreferences(lambda s: s[..., None, :], 1, n)  # one output, θᵀs: the mean of the Gaussian
        self.policy = Policy(linear, Gaussian(1), learn_tail=False)  # σ = 1

    def signs(self, N):
        return self.rng.choice([-1.0, 1.0], (N, self.n))

    def returns(self, s, act):
        return -((act.mean(axis=1) - s @ self.best) ** 2)

    def play(self, thetas):
        """The returns [N] of N policies θ [N, n], from one episode each."""
        s = self.signs(len(thetas))
        return self.returns(s, (thetas * s).sum(axis=1)[:, None] + self.rng.standard_normal((len(s), self.T)))

    def likelihood_ratio(self, N):
        """1/N Σ_i Σ_t ∇ log π(a_t|s) R(τ)."""
        s = self.signs(N)
        obs = np.repeat(s[:, None], self.T, axis=1)
        act = self.policy.act(self.theta, obs, self.rng)
        R = self.returns(s, act[..., 0])
        return self.policy.grad_log_prob(self.theta, obs, act, np.repeat(R[:, None], self.T, axis=1)) / N

    def evolution_strategies(self, N):
        """1/N Σ_i ∇_μ log P_μ(θ_i) R(τ_i), P_μ = N(μ, 1/n)."""
        params = np.append(self.theta, np.full(self.n, -0.5 * np.log(self.n)))
        return score_function_gradient(Gaussian(self.n), params, self.play, N, self.rng)[0][: self.n]

    def finite_differences(self, N):
        """∂U/∂θ_k ≈ ½ (U(θ + u_k) − U(θ − u_k)); each U is the mean return of N / 2n episodes."""
        step = np.repeat(np.eye(self.n), N // (2 * self.n), axis=0)
        difference = self.play(self.theta + step) - self.play(self.theta - step)
        return difference.reshape(self.n, -1).mean(axis=1) / 2


def estimates(n, T, rng, repeats, N):
    """{method: estimates of ∇U [repeats, n], each from N episodes}, and the exact ∇U."""
    task = Task(n, T, rng)
    methods = task.likelihood_ratio, task.evolution_strategies, task.finite_differences
    return {name: np.array([g(N) for _ in range(repeats)]) for name, g in zip(COLORS, methods)}, 2 * task.best


def cost(n, T, rng, repeats):
    """{method: N E‖ĝ − ∇U‖² / ‖∇U‖² and its standard error}."""
    N = 2 * n
    results, gradient = estimates(n, T, rng, repeats, N)
    errors = {name: N * ((g - gradient) ** 2).sum(axis=1) / (gradient @ gradient) for name, g in results.items()}
    return {name: (x.mean(), x.std() / np.sqrt(repeats)) for name, x in errors.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add, out = parser.add_argument, "docs/figures/estimators.png"
    add("--out", type=figure_path, default=out, help="figure to write (%(default)s)")
    add("--seed", type=at_least(0), default=0, help="seed of all random numbers (%(default)s)")
    add("--repeats", type=at_least(2), default=200, help="estimates per point of the figure (%(default)s)")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(args.seed)
    by_n = {int(n): cost(n, FIXED, rng, args.repeats) for n in SIZES}
    by_T = {int(T): cost(FIXED, T, rng, args.repeats) for T in SIZES}
    for what, costs in ("n", by_n), ("T", by_T):
        print(f"episodes needed for an error of length ‖∇U‖\n{what:>4}" + "".join(f"{name:>25}" for name in COLORS))
        for x, row in costs.items():
            print(f"{x:4d}" + "".join(f"{mean:16.0f} ± {error:6.0f}" for mean, error in row.values()))

    figure = Figure(figsize=(11, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.1])
    N, results_shown = 64, 25
    results, gradient = estimates(2, 2, rng, results_shown, N)
    thetas = np.zeros((1, 2)), rng.normal(0, 2**-0.5, (N, 2)), np.concatenate([np.eye(2), -np.eye(2)])
    whats = "one policy, noise in its actions", "noise in the parameters", "two policies per parameter"
    x, y = np.meshgrid(np.linspace(-1.7, 2.5, 100), np.linspace(-1.7, 2.5, 100))
    arrow = {"angles": "xy", "scale_units": "xy", "scale": 1}
    for axes, theta, what, (name, color) in zip(above.subplots(1, 3, sharey=True), thetas, whats, COLORS.items()):
        axes.contour(x, y, (x - 0.5**0.5) ** 2 + (y - 0.5**0.5) ** 2, 12, colors="0.85", linewidths=0.8, zorder=0)
        axes.quiver(*np.zeros((2, results_shown)), *results[name].T, color=color, alpha=0.35, width=0.006, **arrow)
        axes.quiver(0, 0, *gradient, color="k", width=0.012, **arrow)
        axes.plot(*theta.T, "o", color=color, ms=5, mec="w", mew=0.5)
        axes.set(aspect="equal", xlabel="θ₁", xticks=[-1, 0, 1, 2], yticks=[-1, 0, 1, 2])
        axes.set_title(f"{name}:\n{what}", color=color, fontsize=11)
    above.axes[0].set_ylabel("θ₂")
    above.suptitle(
        f"Circles: U(θ). Dots: the policies θ that play {N} episodes (n = T = 2, seed {args.seed}). "
        f"Arrows: ∇U in black, and {results_shown} estimates of it", fontsize=10,
    )
    slopes = ["∝ n", "∝ n²", "∝ n²"], ["∝ T", "flat", "flat"]
    for axes, costs, slope in zip(below.subplots(1, 2, sharey=True), (by_n, by_T), slopes):
        for (name, color), text in zip(COLORS.items(), slope):
            mean, error = np.transpose([row[name] for row in costs.values()])
            axes.errorbar(SIZES, mean, 1.96 * error, color=color, marker="o", ms=4, lw=1.5)
            side = {"evolution strategies": "bottom", "finite differences": "top"}.get(name, "center")
            end, style = (SIZES[-1], mean[-1]), {"color": color, "va": side}
            axes.annotate(f"{name}, {text}", end, (7, 0), "data", "offset points", **style)
        axes.set(xscale="log", yscale="log", xticks=SIZES, xticklabels=SIZES)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    left, right = below.axes
    left.set(xlabel=f"n, parameters (T = {FIXED} actions)", ylabel="episodes needed for an error of length ‖∇U‖")
    left.set_title("Cost against the number of parameters", fontweight="bold", fontsize=11)
    right.set(xlabel=f"T, actions per episode (n = {FIXED} parameters)")
    right.set_title("Cost against the number of actions", fontweight="bold", fontsize=11)
    caption = f"Points: {args.repeats} estimates from 2n episodes each, 95 % intervals, seed {args.seed}"
    below.supxlabel(caption, fontsize=10)
    figure.savefig(args.out, dpi=130)
    return by_n, by_T


if __name__ == "__main__":
    raise SystemExit(interrupts.run(main))
