#!/usr/bin/env python
"""A quadruped learns to run. Twelve numbers define its gait. The learner sees only the speed of each walk.

    python examples/quadruped.py                                                  Kohl & Stone's algorithm
    python examples/quadruped.py --method kohl-stone es hill-climbing genetic     the figure in docs/figures

Slide "Learning an AIBO running policy", after Kohl & Stone 2004, "Policy Gradient Reinforcement Learning for Fast
Quadrupedal Locomotion", on Gymnasium's Ant-v5 instead of the AIBO. An iteration tries 15 policies; the whole run makes
about 1,000 walks. The script writes the learning curves and a GIF of the first method's gait: initial, training, final.
"""

from npg.runner import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once()  # Ctrl-C during the imports ends the program at once

import argparse
import contextlib
import functools
import importlib.util
import os
import time
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported; the other cores simulate walks

import gymnasium
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from npg.gradient_free import EvolutionStrategy, Genetic, HillClimbing, KohlStone, evaluator, search
from npg.optimizers import SGD, Adam
from npg.runner import figures
from npg.runner.machine import available_cores, draw_without_screen
from npg.runner.workers import Pool


class Number(NamedTuple):
    """One of the twelve numbers: its meaning and unit, the initial value set by hand, a step to try, and its range."""

    meaning: str
    unit: str
    initial: float
    step: float
    low: float
    high: float


# An AIBO's leg has three joints, the Ant's leg has two. So the sideways position of a foot follows from the other
# numbers. Two other numbers replace Kohl & Stone's two sideways positions: the length of the rear locus, and the lag of
# the rear feet.
GAIT = {
    "front_lift": Number("front feet: height of the locus", "m", 0.04, 0.02, 0.0, 0.25),
    "front_place": Number("front feet: middle of the locus ahead of the hip", "m", 0.45, 0.03, 0.1, 0.75),
    "front_length": Number("front feet: length of the locus", "m", 0.08, 0.05, 0.0, 0.7),
    "front_height": Number("front hips above the ground", "m", 0.42, 0.02, 0.28, 0.54),
    "rear_lift": Number("rear feet: height of the locus", "m", 0.04, 0.02, 0.0, 0.25),
    "rear_place": Number("rear feet: middle of the locus ahead of the hip", "m", -0.45, 0.03, -0.75, -0.1),
    "rear_length": Number("rear feet: length of the locus", "m", 0.08, 0.05, 0.0, 0.7),
    "rear_height": Number("rear hips above the ground", "m", 0.42, 0.02, 0.28, 0.54),
    "skew": Number("loci longer on the left, shorter on the right", "", 0.0, 0.05, -0.5, 0.5),
    "lag": Number("rear feet behind the diagonal front feet", "cycles", 0.0, 0.03, -0.25, 0.25),
    "period": Number("time of a cycle", "s", 0.5, 0.05, 0.2, 1.5),
    "ground": Number("fraction of the cycle on the ground", "", 0.5, 0.05, 0.2, 0.8),
}
INITIAL, STEP, LOW, HIGH = np.array([(n.initial, n.step, n.low, n.high) for n in GAIT.values()]).T

# The Ant's legs: front left, rear left, rear right, front right. A hip swings the leg, and a knee lowers the foot.
FRONT, LEFT = np.array([True, False, False, True]), np.array([True, True, False, False])
TROT = np.array([0, 0.5, 0, 0.5])  # diagonal legs move together
UPPER, LOWER = 0.2 * np.sqrt(2), 0.4 * np.sqrt(2)  # m: hip to knee (horizontal), knee to foot
HIP, KNEE = np.pi / 6, (np.pi / 6, 7 * np.pi / 18)  # ranges; the hip's: on both sides of 45° from ahead or behind
DT = 0.05  # s from one torque to the next
STIFFNESS, DAMPING = 1.0, 0.08  # full torque at 1 rad from the target, or at a speed of 12.5 rad/s
ANGLES, SPEEDS, MOTORS = slice(5, 13), slice(19, 27), [6, 7, 0, 1, 2, 3, 4, 5]  # in the observation, in the action


def gait(theta):
    """The twelve numbers [12] in their units. θ [12] is the distance from the gait set by hand, in steps."""
    return np.clip(INITIAL + STEP * theta, LOW, HIGH)


def feet(numbers, t):
    """The target of each foot at times t [T], relative to its hip: metres ahead and metres below, both [T, 4].

    A foot moves along a half ellipse: straight back on the ground, then forward through the air.
    """
    g = dict(zip(GAIT, numbers))
    of_pair = lambda name: np.where(FRONT, g[f"front_{name}"], g[f"rear_{name}"])
    phase = (t[:, None] / g["period"] + TROT - np.where(FRONT, 0, g["lag"])) % 1
    on_ground = phase < g["ground"]
    part = np.where(on_ground, phase / g["ground"], (phase - g["ground"]) / (1 - g["ground"]))  # of stance, of swing
    half_length = of_pair("length") / 2 * (1 + np.where(LEFT, g["skew"], -g["skew"]))
    ahead = of_pair("place") + half_length * np.where(on_ground, 1 - 2 * part, -np.cos(np.pi * part))
    below = of_pair("height") - of_pair("lift") * np.where(on_ground, 0, np.sin(np.pi * part))
    return ahead, below


def joints(ahead, below):
    """The joint angles [T, 8] (hip and knee of each leg) that bring the feet as near to their targets as possible."""
    knee = np.clip(np.arcsin(np.clip(below / LOWER, -1, 1)), *KNEE)
    reach = UPPER + LOWER * np.cos(knee)
    hip = np.arccos(np.clip(ahead / reach, -1, 1)) - np.where(FRONT, 1, 3) * np.pi / 4
    hip = np.clip(hip, -HIP, HIP) * np.where(LEFT, 1, -1)
    return np.stack([hip, knee * np.where(FRONT, 1, -1)], axis=-1).reshape(-1, 8)


@functools.cache
def ant(**options):
    """The Ant-v5 environment. Each process creates it once and keeps it."""
    return gymnasium.make("Ant-v5", include_cfrc_ext_in_observation=False, disable_env_checker=True, **options)


def walk(theta, seed, seconds=10.0, env=None, see=lambda env: None):
    """Mean forward speed in m/s. After a fall, the Ant stays where it fell. see(env) is called after every step."""
    env = env or ant()
    obs, info = env.reset(seed=seed)
    start, steps = info["x_position"], round(seconds / DT)
    for target in joints(*feet(gait(theta), DT * np.arange(1, steps + 1))):
        torque = STIFFNESS * (target - obs[ANGLES]) - DAMPING * obs[SPEEDS]
        obs, _, fallen, _, info = env.step(np.clip(torque, -1, 1)[MOTORS])
        see(env)
        if fallen:
            break
    return (info["x_position"] - start) / seconds


METHODS = {
    "kohl-stone": lambda theta: KohlStone(theta, SGD(theta, 2.0), epsilon=1.0),
    "es": lambda theta: EvolutionStrategy(theta, Adam(theta, 0.5), sigma=1.0),
    "hill-climbing": lambda theta: HillClimbing(theta, sigma=1.0),
    "genetic": lambda theta: Genetic(theta, sigma=1.0),
}
TRAIN, TEST = 0, 1  # purposes of the random numbers


def learn(name, budget, seed, executor=None, quiet=True):
    """θ before and after each iteration [K + 1, 12], the number of walks until then [K + 1], and the time in seconds.

    The learning rate, if the method has one, falls linearly to 0 over the budget. Steps of constant length would never
    settle.
    """
    rng = np.random.default_rng([seed, TRAIN])
    method = METHODS[name](np.zeros(len(GAIT)))
    optimizer = getattr(method, "optimizer", None)
    rate = optimizer and optimizer.learning_rate
    thetas, walks, started = [method.theta.copy()], [0], time.perf_counter()
    with tqdm(total=budget, unit=" walks", desc=name, disable=quiet, dynamic_ncols=True) as bar:
        for progress in search(method, evaluator(walk, rng, executor=executor), rng):
            thetas.append(method.theta.copy())
            walks.append(walks[-1] + progress["candidates"])
            bar.set_postfix_str(f"{progress['values'].mean():.2f} m/s", refresh=False)
            bar.update(progress["candidates"])
            if walks[-1] + progress["candidates"] > budget:
                return np.array(thetas), np.array(walks), time.perf_counter() - started
            if optimizer:
                optimizer.learning_rate = rate * (1 - walks[-1] / budget)


def test(thetas, n, seed, executor=None):
    """Speeds [K, n] in m/s of n unseen walks with each of thetas [K, 12]."""
    seeds = np.random.default_rng([seed, TEST]).integers(2**63, size=n).tolist()
    speeds = (executor.map if executor else map)(walk, np.repeat(thetas, n, axis=0), seeds * len(thetas))
    return np.reshape(list(speeds), (len(thetas), n))


def draw(path, curves):
    """Draws learning curves: the mean speed with its standard error, from each method's walks [K] and speeds [K, n]."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, (walks, speeds) in curves.items():
        mean, error = speeds.mean(axis=1), speeds.std(axis=1, ddof=1) / np.sqrt(speeds.shape[1])
        (line,) = axes.plot(walks, mean, label=name)
        axes.fill_between(walks, mean - error, mean + error, color=line.get_color(), alpha=0.2, lw=0)
    axes.set(xlabel="walks, one for each policy tried", ylabel="speed over unseen walks, m/s")
    axes.set(title="Ant-v5 on twelve numbers", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def film(path, thetas, titles, seed, seconds=5.0):
    """Writes a GIF of one walk with each of thetas, side by side."""
    from PIL import Image, ImageDraw  # Pillow comes with Matplotlib

    draw_without_screen()
    env = ant(render_mode="rgb_array", width=240, height=180, camera_name="track")
    env.unwrapped.model.light_castshadow[:] = 0  # on a CPU, shadows and reflections take most of the rendering time
    env.unwrapped.model.mat_reflectance[:] = 0
    lanes = []
    for theta, title in zip(thetas, titles):
        pictures = []

        def see(env):
            if round(env.unwrapped.data.time / DT) % 2 == 0:
                pictures.append(Image.fromarray(env.render()))
                ImageDraw.Draw(pictures[-1]).text((6, 4), title, fill="black")

        walk(theta, seed, seconds, env, see)
        lanes.append(pictures + pictures[-1:] * (round(seconds / DT / 2) - len(pictures)))
    env.close()
    figures.gif(path, [np.concatenate(frames, axis=1) for frames in zip(*lanes)], fps=1 / (2 * DT))


def report(name, learned, before, after, walks, seconds):
    """Prints what a method learned."""
    print(
        f"{name}: {before.mean():.2f} → {after.mean():.2f} ± {after.std(ddof=1):.2f} m/s over {after.size} unseen "
        f"walks of 10 s each, after {walks:,} walks and {seconds:.0f} s"
    )
    for number, value in zip(GAIT.values(), gait(learned)):
        print(f"  {number.meaning:52s} {number.initial:6.2f} → {value:5.2f} {number.unit}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add, names = parser.add_argument, ", ".join(METHODS)
    add("--method", nargs="+", choices=METHODS, default=["kohl-stone"], metavar="M", help=f"{names} (kohl-stone)")
    add("--evaluations", type=figures.at_least(16), default=1000, metavar="N", help="walks per method (%(default)s)")
    add("--seed", type=figures.at_least(0), default=0, metavar="N", help="seed of all random numbers (%(default)s)")
    add("--workers", type=figures.at_least(1), default=available_cores(), metavar="N", help="processes (%(default)s)")
    figure = "figure to write; the GIF goes beside it (%(default)s)"
    add("--out", type=figures.figure_path, default="docs/figures/quadruped.png", metavar="PNG", help=figure)
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("mujoco") is None:
        parser.exit(2, 'quadruped.py: the Ant needs MuJoCo: pip install -e ".[mujoco]"\n')

    curves, learned = {}, {}
    with Pool(args.workers) if args.workers > 1 else contextlib.nullcontext() as executor:
        for name in args.method:
            thetas, walks, seconds = learn(name, args.evaluations, args.seed, executor, args.quiet)
            shown = np.unique(np.linspace(0, len(thetas) - 1, 13).round().astype(int))
            speeds = test(thetas[shown], 10, args.seed, executor)
            curves[name], learned[name] = (walks[shown], speeds), thetas[shown]
            report(name, thetas[-1], speeds[0], speeds[-1], walks[-1], seconds)
    draw(args.out, curves)
    thetas, speeds = learned[args.method[0]], curves[args.method[0]][1].mean(axis=1)
    stages = {"initial": 0, "training": np.abs(speeds - (speeds[0] + speeds[-1]) / 2).argmin(), "final": -1}
    titles = [f"{stage}: {speeds[k]:.2f} m/s" for stage, k in stages.items()]
    try:
        film(args.out.with_suffix(".gif"), thetas[list(stages.values())], titles, args.seed)
    except Exception as error:  # a missing graphics library can raise almost any exception
        print(f"no GIF, because rendering failed: {error!r}; try MUJOCO_GL=egl, osmesa or glfw")
    return curves


if __name__ == "__main__":
    raise SystemExit(interrupts.run(main))
