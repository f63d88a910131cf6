#!/usr/bin/env python
"""The slide's Gaussian: samples, the arrows ∇ log P(x), the same arrows times f(x), and where they move the Gaussian.

    python examples/score_function.py

The script estimates ∇E[f(x)] from values of f only. It prints the estimate next to the closed form and next to the
reparameterised gradient, which needs f'.
"""

from npg.runner import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()  # Ctrl-C during the imports ends the program at once

import argparse

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from npg.distributions import Gaussian
from npg.gradcheck import complex_step_gradient
from npg.optimizers import SGD
from npg.runner.figures import at_least, figure_path
from npg.score_function import reparameterised_gradient, score_function_gradient

CENTER, WIDTH = np.array([1.4, 0.8]), 1.1


def f(x):
    """+1 at CENTER, −1 far away."""
    return 2 * np.exp(-0.5 * ((x - CENTER) ** 2).sum(axis=-1) / WIDTH**2) - 1


def df(x):
    return -(f(x) + 1)[..., None] * (x - CENTER) / WIDTH**2


def expectation(params):
    """E[f(x)] for x ~ N(μ, diag σ²) in closed form: a convolution of two Gaussians."""
    mean, var = params[:2], WIDTH**2 + np.exp(2 * params[2:])
    return 2 * np.prod(WIDTH / np.sqrt(var) * np.exp(-0.5 * (mean - CENTER) ** 2 / var)) - 1


def ascend(params, steps, n, rng, learning_rate=0.3):
    """params after each step [steps+1, 4]. Each step goes up a score-function gradient from n samples."""
    path = [params.copy()]
    for _ in range(steps):
        SGD(params, learning_rate).step(params, score_function_gradient(Gaussian(2), params, f, n, rng)[0])
        path.append(params.copy())
    return np.array(path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add, out = parser.add_argument, "docs/figures/score_function.png"
    add("--out", type=figure_path, default=out, help="figure to write (%(default)s)")
    add("--seed", type=at_least(0), default=0, help="seed of the samples (%(default)s)")
    add("--samples", type=at_least(2), default=100_000, help="samples per printed estimate (%(default)s)")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(args.seed)
    gaussian, params = Gaussian(2), np.array([0.0, 0.0, -0.2, -0.2])

    closed_form = complex_step_gradient(expectation, params)
    score, score_error = score_function_gradient(gaussian, params, f, args.samples, rng)
    pathwise, pathwise_error = reparameterised_gradient(gaussian, params, df, args.samples, rng)
    print(f"∇E[f(x)] from {args.samples} samples, ± standard error")
    print(f"{'':8}{'closed form':14}{'score function':22}reparameterised")
    for row in zip(("μ₁", "μ₂", "log σ₁", "log σ₂"), closed_form, score, score_error, pathwise, pathwise_error):
        print("{:8}{:+.5f}      {:+.5f} ± {:.5f}    {:+.5f} ± {:.5f}".format(*row))

    each = np.tile(params, (70, 1))
    x = gaussian.sample(each, rng)
    arrows = gaussian.grad_log_prob(each, x)[:, :2]  # the part for μ
    scaled = f(x)[:, None] * arrows
    path = ascend(params.copy(), steps=25, n=200, rng=rng)

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    panels = figure.subplots(1, 4, sharex=True, sharey=True)
    grid = np.stack(np.meshgrid(np.linspace(-2.6, 3.4, 200), np.linspace(-2.6, 3.0, 200)), axis=-1)
    for axes in panels:
        axes.set(xlabel="x₁", aspect="equal", xlim=(-2.6, 3.4), ylim=(-2.6, 3.0))
        if axes is not panels[0]:
            x_y = np.moveaxis(grid, -1, 0)
            image = axes.pcolormesh(*x_y, f(grid), cmap="RdYlGn", vmin=-1.6, vmax=1.6, alpha=0.5, rasterized=True, lw=0)
    for axes, p in [(axes, params) for axes in panels] + [(panels[3], path[-1])]:
        for k in (1, 2):  # one and two σ
            axes.add_patch(Ellipse(p[:2], *(2 * k * np.exp(p[2:])), fill=False, color="0.25", lw=1))
    quiver = lambda axes, xy, uv, color, scale=3, width=0.006: axes.quiver(
        *np.transpose(xy), *np.transpose(uv), color=color, angles="xy", scale_units="xy", scale=scale, width=width
    )
    quiver(panels[0], x, arrows, "#08519c")
    panels[1].plot(*x[f(x) > 0].T, "+", *x[f(x) <= 0].T, "_", color="k", ms=7)
    quiver(panels[2], x, scaled, np.where(f(x) > 0, "#006d2c", "#a50f15"))
    quiver(panels[2], params[:2], scaled.mean(axis=0), "k", scale=0.4, width=0.015)
    panels[3].plot(*path[:, :2].T, ".-", color="k", ms=4, lw=1)
    panels[0].set_ylabel("x₂")
    before, after = expectation(path[0]), expectation(path[-1])
    for axes, title in zip(panels, (
        f"1. draw x from P (rings: 1σ, 2σ; seed {args.seed}):\n∇μ log P(x) would make x more likely",
        "2. ask for f(x), nothing else:\n+ where it is positive, − negative",
        "3. the arrows times f(x): towards good x,\naway from bad x; black: their mean (× 7.5)",
        f"4. {len(path) - 1} steps of 200 samples each move the\nGaussian: E[f(x)] from {before:.2f} to {after:.2f}",
    )):
        axes.set_title(title, fontsize=9.5)
    figure.colorbar(image, ax=panels[3], label="f(x)", boundaries=np.linspace(-1, 1, 101), ticks=[-1, 0, 1], shrink=0.7)
    figure.savefig(args.out, dpi=130)
    return closed_form, (score, score_error), (pathwise, pathwise_error), path


if __name__ == "__main__":
    raise SystemExit(interrupts.run(main))
