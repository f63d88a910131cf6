#!/usr/bin/env python
"""What the slides "Pong from Pixels" show: the player, what its hidden units look at, and the labels that we pretend.

    python examples/pong.py            three pictures in docs/figures; needs pip install -e ".[atari]"

`pong.gif`         the first points of a game. The player on the right is the trained player that comes with the
                   package.
`pong_units.png`   the hidden units that change the player's decision most. Above: the first-layer weights, 80 × 80 and
                   slightly smoothed. Below: the mean activity of the unit in play, by the place of the ball.
`pong_labels.png`  "Pretend every action we took here was the correct label". Left: the actions of an untrained player
                   in a few rallies, and the labels that we pretend. Right: how often these labels agree with the
                   trained player's actions in the same states.
"""

from npg.runner import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()  # Ctrl-C during the imports ends the program at once

import argparse
import importlib.util
import os
import pathlib
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.append(str(pathlib.Path(__file__).parents[1]))

import numpy as np
from matplotlib.figure import Figure
from tqdm import trange

from npg.distributions import Bernoulli
from npg.policy import Policy
from npg.pong import LitMLP, PongEnv, PongVectorEnv, RallySampler
from npg.returns import discounted_sum, reward_to_go
from npg.runner import figures
from npg.runner.commands import load
from npg.runner.saved import PRETRAINED
from run_pong import SCRIPT

GAMES, ROWS, WINDOWS = 32, 256, 16  # games side by side, steps of each game in a rollout, number of rollouts
LABEL_WINDOWS = 64  # rollouts of the untrained player: many, because it wins few rallies
UP, DOWN = "#08519c", "#e6550d"


def trained_player():
    """(model, θ) of the trained player that comes with the package."""
    run = load(SCRIPT, PRETRAINED)
    return run.learner.policy, run.learner.theta


def first_points(model, theta, n_points, seed=0):
    """Frames [210, 160, 3] of a game until `n_points` points have been scored."""
    env = PongEnv("rgb_array")
    obs, _ = env.reset(seed=seed)
    frames, points = [], 0
    while points < n_points:
        frames.append(env.render())
        obs, rew, *_ = env.step(int(model.act(theta, obs)))
        points += rew != 0
    env.close()
    return frames


def smooth(picture, width=1.5):
    """Blurs the picture with a Gaussian, which reduces the noise of single pixels."""
    bell = np.exp(-0.5 * (np.arange(-6, 7) / width) ** 2)
    for axis in (0, 1):
        picture = np.apply_along_axis(np.convolve, axis, picture, bell / bell.sum(), "same")
    return picture


def ball_and_activity(model, theta, seed=0):
    """For B states of the trained player's games: the pixel of the ball [B], and the hidden units' outputs [B, 200]."""
    (W1, b1), _ = model.network.layers(theta)
    envs = PongVectorEnv(GAMES)
    sampler, balls, hidden = RallySampler(envs, seed), [], []
    for _ in range(WINDOWS):
        obs = sampler.steps(model, theta, ROWS).obs.reshape(-1, 80, 80)
        just_come = obs == envs.inputs.weights[0]
        just_come[:, :, :10] = just_come[:, :, 70:] = False  # the paddles
        just_come = just_come.reshape(len(obs), 6400)
        seen = just_come.any(axis=1)
        balls.append(just_come[seen].argmax(axis=1))
        hidden.append(np.maximum(obs.reshape(-1, 6400)[seen] @ W1 + b1, 0))
    envs.close()
    return np.concatenate(balls), np.concatenate(hidden)


def draw_units(path, model, theta, n=8):
    """Draws the weights of the `n` units that change the logit most, and their mean activity by the ball's place."""
    (W1, _), (W2, _) = model.network.layers(theta)
    balls, hidden = ball_and_activity(model, theta)
    times = smooth(np.bincount(balls, minlength=6400).reshape(80, 80))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    columns = figure.subplots(2, n).T
    for (above, below), unit in zip(columns, np.argsort(-(hidden * W2[:, 0]).std(axis=0))):
        weights = smooth(W1[:, unit].reshape(80, 80))
        limit = np.percentile(abs(weights), 99.5)
        above.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit)
        action, color = ("UP", UP) if W2[unit, 0] > 0 else ("DOWN", DOWN)
        above.set_title(action, fontsize=9, color=color)
        activity = smooth(np.bincount(balls, hidden[:, unit], 6400).reshape(80, 80))
        below.imshow(np.where(times > 0.2, activity / np.maximum(times, 0.2), np.nan), cmap="magma", vmin=0)
    for axes in columns.flat:
        axes.set(xticks=[], yticks=[])
    columns[0, 0].set_ylabel("weights", fontsize=9)
    columns[0, 1].set_ylabel("activity, by the\nplace of the ball", fontsize=9)
    figure.savefig(path, dpi=100)


def whole_rallies(rollout):
    """True [T, N] at the steps of rallies that both begin and end in these rows."""
    ends = rollout.terminated
    begun_here = np.cumsum(ends, axis=0) - ends > 0
    ends_here = np.cumsum(ends[::-1], axis=0)[::-1] > 0
    return begun_here & ends_here & rollout.valid


def pretended_labels(seed=0):
    """Rollouts of an untrained player, and three arrays [B] over the steps of their whole rallies.

    The arrays are: the number of steps before the point; whether the untrained player won the point; whether the
    pretended label is the action of the trained player. The label is the player's own action if it won the point, else
    the other action.
    """
    policy, (teacher, taught) = Policy(LitMLP((6400, 200, 1), "relu"), Bernoulli()), trained_player()
    theta, envs = policy.init(np.random.default_rng(seed)), PongVectorEnv(GAMES)
    sampler, rollouts, columns = RallySampler(envs, seed), [], []
    for _ in trange(LABEL_WINDOWS, unit=" rollouts"):
        rollout = sampler.steps(policy, theta, ROWS)
        whole = whole_rallies(rollout)
        steps_left = discounted_sum(np.ones(rollout.rew.shape), ~rollout.terminated)[whole] - 1
        won = reward_to_go(rollout.rew, rollout.terminated)[whole] > 0
        label = np.where(won, rollout.act[whole], 1 - rollout.act[whole])
        columns.append((steps_left, won, label == teacher.act(taught, rollout.obs[:-1][whole])))
        rollouts.append(rollout._replace(obs=None))
    envs.close()
    return rollouts, *(np.concatenate(column) for column in zip(*columns))


def draw_rallies(axes, rollout, n=8):
    """Draws `n` rallies of the untrained player, with the labels that we pretend. Up to n / 2 are won rallies."""
    ends = list(zip(*np.nonzero(rollout.terminated & whole_rallies(rollout))))
    won = [end for end in ends if rollout.rew[end] > 0][: n // 2]
    for row, (t, i) in enumerate(won + [end for end in ends if rollout.rew[end] < 0][: n - len(won)]):
        begin = np.flatnonzero(rollout.terminated[:t, i])[-1] + 1
        act, good = rollout.act[begin : t + 1, i], row < len(won)
        axes.axhspan(-row - 0.45, -row + 0.45, color="#e5f5e0" if good else "#fee0d2")
        for action, color, marker in ((1, UP, "^"), (0, DOWN, "v")):
            k = np.flatnonzero(act == action)
            axes.plot(k, np.full(len(k), -row) + 0.15 * (2 * action - 1), marker, color=color, markersize=2.5)
        axes.text(len(act) + 1, -row, "won: all right" if good else "lost: all wrong", va="center", fontsize=8)
    axes.set(yticks=[], xlim=(0, None), xlabel="step of the rally", title="an untrained player: UP ▲ or DOWN ▼")


def draw_labels(path, rollouts, steps_left, won, agrees):
    """Draws rallies with their labels, and how often the labels agree with the trained player before the point."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_rallies(left, max(rollouts, key=lambda rollout: rollout.rew.max(axis=0).sum()))
    edges = np.arange(0, 61, 4)
    for who, color, name in ((won, "#31a354", "of won rallies"), (~won, "#a63603", "of lost rallies")):
        bins = [agrees[who & (low <= steps_left) & (steps_left < high)] for low, high in zip(edges, edges[1:])]
        mean, error = np.array([(x.mean(), 2 * x.std() / np.sqrt(len(x))) for x in bins if len(x) > 50]).T
        right.errorbar((edges[:-1] + 1.5)[: len(mean)], mean, error, color=color, label=f"labels {name} (± 2 s.e.)")
    right.axhline(0.5, color="0.7", linestyle="--")
    right.set(xlabel="steps before the point", title="labels that agree with the trained player's move")
    right.invert_xaxis()
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    folder = lambda text: figures.figure_path(pathlib.Path(text, "pong.png")).parent  # refuses a missing folder
    parser.add_argument("--out", type=folder, default="docs/figures", help="folder of the pictures (%(default)s)")
    args = parser.parse_args()
    if importlib.util.find_spec("ale_py") is None:
        parser.exit(2, 'pong.py: Pong needs ale-py: pip install -e ".[atari]"\n')
    model, theta = trained_player()
    figures.gif(args.out / "pong.gif", first_points(model, theta, 4)[::2], 20)
    draw_units(args.out / "pong_units.png", model, theta)
    rollouts, steps_left, won, agrees = pretended_labels()
    draw_labels(args.out / "pong_labels.png", rollouts, steps_left, won, agrees)
    error = agrees.std() / np.sqrt(len(agrees))
    print(f"{len(agrees):,} labels, {won.mean():.1%} from won rallies; {agrees.mean():.1%} ± {error:.1%} of all agree")
    for name, on in {
        "won, 36 to 47 steps before": won & (36 <= steps_left) & (steps_left < 48),
        "lost, 4 to 15 steps before": ~won & (4 <= steps_left) & (steps_left < 16),
    }.items():
        print(f"{name}: {agrees[on].mean():.1%} ± {agrees[on].std() / np.sqrt(on.sum()):.1%} of {on.sum():,}")


if __name__ == "__main__":
    raise SystemExit(interrupts.run(main))
