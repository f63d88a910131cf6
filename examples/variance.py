#!/usr/bin/env python
"""The variance ladder: how noisy is ĝ for each weight Ψ, and how noisy if parameters are perturbed instead of actions?

    python examples/variance.py

Var(ĝ) = tr Cov(ĝ) (slide "Variance") falls as 1/N. So, if one estimator has k times the variance of another from
equally many episodes, it needs k times as many episodes for equal precision. The variances are exact on random MDPs and
measured on CartPole.
"""

from npg.runner import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()  # Ctrl-C during the imports ends the program at once

import argparse

import gymnasium
import numpy as np
from matplotlib.figure import Figure

from npg import baselines, returns
from npg.distributions import Categorical, Gaussian
from npg.network import MLP, LinearPreferences
from npg.optimizers import Adam
from npg.policy import Critic, Policy
from npg.reinforce import WEIGHTS, reinforce
from npg.rollout import Sampler
from npg.runner.figures import at_least, figure_path
from npg.score_function import score_function_gradient
from npg.tabular import FiniteMDP

LAM = 0.9
RUNGS = {
    "total": "trajectory return  R(τ)",
    "total − constant": "less a constant:  R(τ) − E[R]",
    "reward to go": "reward to go  Gₜ",
    "constant": "less a constant:  Gₜ − E[R]",
    "time": "less its mean at time t:  Gₜ − bₜ",
    "state": "less the state's value:  Gₜ − V(sₜ)",
    "gae": f"advantage by GAE, λ = {LAM}",
    "es": "evolution strategies:  θ + σε",
    "mirrored es": "mirrored:  θ + σε and θ − σε",
    "finite differences": "finite differences:  θ + huₖ and θ − huₖ",
}


def weights(rollout, val, mean):
    """{rung: Ψ [T, N]}. `val` is V(s) [T+1, N]. `mean` maps x [T, N] to E[x_t] over the trajectories [T, 1]."""
    R, G = (WEIGHTS[name](rollout, 1.0) for name in ("total", "reward-to-go"))
    b_t = mean(G)
    adv = returns.gae(rollout.rew, rollout.terminated, rollout.truncated, val, 1.0, LAM)
    return dict(zip(RUNGS, (R, R - b_t[0], G, G - b_t[0], G - b_t, G - val[:-1], adv)))


def exact(seed, sigma=0.3):
    """{rung: tr Cov} with the exact V, and the relative bias of ES, on a random MDP with one parameter per state."""
    rng, size = np.random.default_rng(seed), 3
    mdp = FiniteMDP(rng.dirichlet(np.ones(3), (size, 2)), rng.random((size, 2)), np.full(size, 1 / size), horizon=4)
    policy = Policy(LinearPreferences(lambda s: np.stack([0 * s, s], axis=-2), 2, size), Categorical(2))
    theta, n_episodes = rng.standard_normal(size), 2 * size
    prob, val = mdp.prob(policy, theta), mdp.along(mdp.values(policy, theta)[1])
    psi = weights(mdp.rollout(), val, lambda x: (x @ prob)[:, None])
    variance = {rung: mdp.moments(policy, theta, w, n_episodes).variance for rung, w in psi.items()}

    def return_moments(thetas):
        """E[R(τ)] and E[R(τ)²] [2, N] under each policy θ [N, size]."""
        ret = mdp.rewards.sum(axis=1)
        return np.array([mdp.prob(policy, theta) @ np.stack([ret, ret**2], axis=1) for theta in thetas]).T

    node, w = np.polynomial.hermite_e.hermegauss(8)  # E over ε ~ N(0, I) as a sum over a grid, symmetric about 0
    eps = np.stack(np.meshgrid(*[node] * size), axis=-1).reshape(-1, size)
    w = np.prod(np.meshgrid(*[w / w.sum()] * size), axis=0).ravel()
    U, square = return_moments(theta + sigma * eps)
    half_difference_squared = (square + square[::-1] - 2 * U * U[::-1]) / 4  # the reversed grid is −ε
    score_squared, mean = (eps**2).sum(axis=1) / sigma**2, (w * U) @ eps / sigma
    variance["es"] = (w @ (square * score_squared) - mean @ mean) / n_episodes
    variance["mirrored es"] = (w @ (half_difference_squared * score_squared) - mean @ mean) / (n_episodes / 2)
    h = sigma * np.sqrt(size)  # the length of ES's perturbations
    U, square = return_moments(theta + h * np.concatenate([np.eye(size), -np.eye(size)]))
    variance["finite differences"] = (square - U**2).sum() / (4 * h**2)
    gradient = mdp.gradient(policy, theta)
    return variance, np.linalg.norm(mean - gradient) / np.linalg.norm(gradient)


class Population:
    """A policy with one hidden layer. Each environment has its own θ: thetas [N, size]."""

    def __init__(self, policy, thetas):
        layers = zip(*map(policy.network.layers, thetas))
        (self.W1, self.b1), (self.W2, self.b2) = ([np.stack(x) for x in zip(*layer)] for layer in layers)
        self.distribution = policy.distribution

    def act(self, theta, obs, rng):
        h = np.tanh(obs[:, None] @ self.W1 + self.b1[:, None])
        return self.distribution.sample((h @ self.W2 + self.b2[:, None])[:, 0], rng)


def cartpole(n, *seeds):
    return Sampler(gymnasium.make_vec("CartPole-v1", num_envs=n, vectorization_mode="vector_entry_point"), *seeds)


def measured(seed, n_estimates, updates, sigma=0.05):
    """{rung: n_estimates of ĝ at one policy}, the mean return of this policy, and the episodes per estimate."""
    rng = np.random.default_rng(seed)
    policy, critic = Policy(MLP((4, 8, 2)), Categorical(2)), Critic(MLP((4, 32, 1)))
    theta, phi, size = policy.init(rng, np.float64), critic.init(rng, np.float64), policy.size
    n_episodes, h = 2 * size, sigma * np.sqrt(size)
    learning = reinforce(
        cartpole(32, seed, 0), policy, theta, Adam(theta, 0.02), baseline=baselines.time_dependent, standardise=True
    )
    for _ in range(updates):
        next(learning)
    batch = cartpole(2000, seed, 1).episodes(policy, theta)
    obs, _, ret = batch.flatten(returns.reward_to_go(batch.rew, batch.done))
    baselines.fit_value(critic, phi, Adam(phi, 1e-2), obs, ret, rng, epochs=10, batch_size=512)
    mean_return = np.mean(batch.episode_returns)

    sampler = cartpole(n_episodes, seed, 2)
    play = lambda thetas: np.array(sampler.episodes(Population(policy, thetas), None).episode_returns)
    half_difference = lambda thetas: np.subtract(*np.split(play(np.concatenate([thetas, 2 * theta - thetas])), 2)) / 2
    params = np.append(theta, np.full(size, np.log(sigma)))
    es = lambda f, n: score_function_gradient(Gaussian(size), params, f, n, rng)[0][:size]
    estimates = {rung: [] for rung in RUNGS}
    for _ in range(n_estimates):
        batch = sampler.episodes(policy, theta)
        mean = lambda x: baselines.time_dependent(policy, theta, batch, x)
        for rung, psi in weights(batch, critic.value(phi, batch.obs), mean).items():
            estimates[rung].append(policy.grad_log_prob(theta, *batch.flatten(psi)) / n_episodes)
        estimates["es"].append(es(play, n_episodes))
        estimates["mirrored es"].append(es(half_difference, size))
        estimates["finite differences"].append(half_difference(theta + h * np.eye(size)) / h)
    return {rung: np.array(g) for rung, g in estimates.items()}, mean_return, n_episodes


def relative_variance(estimates, rng):
    """{rung: (tr Cov relative to that of the trajectory return, low end, high end)}; 95 % bootstrap interval.

    It needs about ten estimates. Of fewer, a resample may repeat a single one, and tr Cov is then 0.
    """
    n = len(estimates["total"])
    resampled = rng.integers(n, size=(1000, n))
    trace = lambda g: np.array([g[k].var(axis=0).sum() for k in resampled])
    ratio = {rung: trace(g) / trace(estimates["total"]) for rung, g in estimates.items()}
    point = {rung: g.var(axis=0).sum() / estimates["total"].var(axis=0).sum() for rung, g in estimates.items()}
    return {rung: (point[rung], *np.percentile(ratio[rung], [2.5, 97.5])) for rung in estimates}


def main(argv=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add, out = parser.add_argument, "docs/figures/variance.png"
    add("--out", type=figure_path, default=out, help="figure to write (%(default)s)")
    add("--seed", type=at_least(0), default=0, help="seed of CartPole's policy and episodes (%(default)s)")
    add("--mdps", type=at_least(1), default=20, help="number of random MDPs, with seeds 0, 1, … (%(default)s)")
    add("--estimates", type=at_least(10), default=150, help="estimates of each kind on CartPole (%(default)s)")
    add("--updates", type=at_least(0), default=10, help="updates of REINFORCE for the policy (%(default)s)")
    args = parser.parse_args(argv)

    variances, biases = zip(*(exact(seed) for seed in range(args.mdps)))
    in_mdps = {rung: np.array([v[rung] / v["total"] for v in variances]) for rung in RUNGS}
    estimates, mean_return, n_episodes = measured(args.seed, args.estimates, args.updates)
    in_cartpole = relative_variance(estimates, np.random.default_rng(args.seed))
    gradient = estimates["state"].mean(axis=0)
    seen = estimates["mirrored es"] @ gradient / (gradient @ gradient)
    print(f"{'tr Cov(ĝ), trajectory return = 1':42s} {'MDPs: median [range]':28s} CartPole [95 %]")
    for rung, label in RUNGS.items():
        x, (point, low, high) = in_mdps[rung], in_cartpole[rung]
        spread = f"{np.median(x):8.3g} [{x.min():.3g}, {x.max():.3g}]"
        print(f"{label:42s} {spread:28s} {point:8.3g} [{low:.3g}, {high:.3g}]")
    print(
        f"evolution strategies estimate a smoothed ∇U: relative bias {100 * np.median(biases):.1f} % on MDPs (median); "
        f"on CartPole the component along ∇U is {seen.mean():.2f} ± {seen.std() / np.sqrt(len(seen)):.2f} of ∇U"
    )

    figure = Figure(figsize=(11.5, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, sharex=True)
    colors = ["#08519c"] * 7 + ["#a63603"] * 3
    for y, (rung, color) in enumerate(zip(RUNGS, colors)):
        median, (point, low, high) = np.median(in_mdps[rung]), in_cartpole[rung]
        left.plot(in_mdps[rung], np.full(args.mdps, y), "o", color=color, alpha=0.25, ms=5, mew=0)
        left.plot(median, y, "|", color=color, ms=16, mew=2.5)
        right.plot([low, high], [y, y], color=color, lw=2)
        right.plot(point, y, "o", color=color)
        for axes, value, edge in (left, median, in_mdps[rung].max()), (right, point, high):
            text = np.format_float_positional(value, 2, fractional=False, trim="-")
            axes.annotate(text, (edge, y), (8, 0), "data", "offset points", va="center", color=color)
    left.set(yticks=range(len(RUNGS)), yticklabels=RUNGS.values(), xscale="log", xlim=(5e-3, 1500))
    left.invert_yaxis()
    title = f"exact, every trajectory enumerated:\n{args.mdps} random MDPs (dots), their median (bar)"
    left.set_title(title, fontsize=9.5)
    right.set_title(
        f"measured, CartPole-v1, {gradient.size} parameters, mean return {mean_return:.0f}, seed {args.seed}:\n"
        f"{args.estimates} estimates from {n_episodes} episodes each, 95 % intervals", fontsize=9.5
    )
    for axes in left, right:
        axes.axvline(1, color="0.6", lw=1, zorder=0)
        axes.axhline(6.5, color="0.6", lw=1, ls=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("episodes needed for equal precision (trajectory return = 1)")
    left.text(1400, 6.3, "noise in the actions", ha="right", color=colors[0])
    left.text(6e-3, 6.85, "noise in the parameters", color=colors[-1])
    right.annotate("E[R] is right at t = 0 only", (in_cartpole["constant"][2], 3), (42, 0), "data", "offset points",
                   va="center", color="0.4", fontsize=9)
    figure.savefig(args.out, dpi=130)
    return in_mdps, in_cartpole


if __name__ == "__main__":
    raise SystemExit(interrupts.run(main))
