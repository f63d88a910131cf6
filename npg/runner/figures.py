"""Figures of runs. Matplotlib is imported only when a figure is drawn, so training does not wait for the import."""

import argparse
import io
import math
import os
import pathlib

import numpy as np


def import_figure():
    """Imports Matplotlib's `Figure`, which needs no display. Ignores the variable MPLBACKEND, which may be wrong."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return Figure


def figure_path(text):
    """An argparse type: a figure's path. A wrong ending or a missing folder is refused before the work begins."""
    path = pathlib.Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, got the folder {path}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"folder {path.parent} does not exist")
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, .pdf or .svg, got {path.name}")
    return path


def at_least(low):
    """An argparse type: a whole number, at least `low`."""

    def whole_number(text):
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"expected at least {low}, got {text}")
        return int(text)

    return whole_number


def learning_curve(rows, title, target=None, window=100, search=False):
    """Draws returns against environment steps. Returns a PNG as bytes.

    rows     of metrics.csv, as dicts: env_steps; return_mean if an episode ended; return_100 (return_30 for window 30)
             if there were enough episodes; eval_return_mean if there was an evaluation, confirm_return_mean if there
             was a confirmation
    target   the return to reach, drawn as a line
    search   whether candidates play in training, and θ itself only in evaluations
    """
    Figure = import_figure()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    curves = {
        "return_mean": ("training, mean of each update", {"marker": ".", "linestyle": "", "color": "#9ecae1"}),
        f"return_{window}": (
            f"training, mean of the last {window} episodes",
            {"marker": ".", "markersize": 3, "color": "#08519c", "linewidth": 2, "zorder": 3},
        ),
        "eval_return_mean": ("unseen episodes", {"marker": "D", "linestyle": "", "color": "#e6550d", "markersize": 4}),
        "confirm_return_mean": (
            f"{window} unseen episodes, to confirm",
            {"marker": "*", "linestyle": "", "color": "#e6550d", "markersize": 11, "zorder": 4},
        ),
    }
    if search:
        del curves[f"return_{window}"]
        curves["return_mean"] = "candidates, mean of each update", curves["return_mean"][1]
        style = {"marker": "D", "color": "#08519c", "markersize": 4}
        curves["eval_return_mean"] = "θ, mean of unseen episodes", style
    for name, (label, style) in curves.items():
        points = [(row["env_steps"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*np.array(points).T, label=label, **style)
    if target is not None:
        axes.axhline(target, color="#a50f15", linestyle="--", label=f"target {target:g}")
    axes.set(title=title, xlabel="environment steps", ylabel="return of an episode", xlim=(0, None))
    if axes.lines:
        axes.legend(frameon=False, loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def gif(path, frames, fps):
    """Writes RGB frames [height, width, 3] as an animated GIF into a file or path. Pillow comes with Matplotlib.

    Viewers show at most 50 frames per second. So at a higher rate some frames are left out.
    """
    from PIL import Image

    every = math.ceil(fps / 50)
    images = [Image.fromarray(frame) for frame in frames[::every]]
    times = np.round(100 * every / fps * np.arange(len(images) + 1))  # a GIF counts hundredths of a second
    durations = (10 * np.diff(times)).astype(int).tolist()
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
