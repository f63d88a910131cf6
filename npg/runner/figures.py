"""Figures of runs. Matplotlib is imported only when one is drawn, so training does not wait for it."""

import argparse
import os
import pathlib

import numpy as np

from npg.runner.folder import write_atomically


def import_figure():
    """Matplotlib's `Figure`, which needs no display and keeps no state. MPLBACKEND may be wrong: it is not read."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return Figure


def figure_path(text):
    """An argparse type: a file to write in a folder that exists, refused before the work is done."""
    path = pathlib.Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"no folder {path.parent}")
    return path


def learning_curve(path, rows, title, target=None):
    """PNG of the return of the training episodes against environment steps: each update's mean, and a running mean.

    rows   of metrics.csv (dicts with env_steps, and return_mean where an episode ended)
    target the return to be reached, drawn as a line
    """
    Figure = import_figure()
    points = [(row["env_steps"], row["return_mean"]) for row in rows if "return_mean" in row]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    if points:
        steps, returns = np.array(points).T
        width = max(1, len(points) // 20)
        smooth = np.convolve(returns, np.full(width, 1 / width), "valid")
        axes.plot(steps, returns, ".", color="#9ecae1", label="mean return of the episodes that ended in an update")
        axes.plot(steps[width - 1 :], smooth, color="#08519c", label=f"running mean of {width} updates")
    if target is not None:
        axes.axhline(target, color="#a50f15", linestyle="--", label=f"target {target:g}")
    axes.set(title=title, xlabel="environment steps", ylabel="return of training episodes (sampled actions)")
    if axes.lines:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def gif(path, frames, fps):
    """Animated GIF of RGB frames [height, width, 3], into a file or path. Pillow, which writes it, is Matplotlib's."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
