"""The learning curve shows the given numbers, and a GIF plays the given frames."""

import argparse
import subprocess
import sys
import warnings

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from PIL import Image, ImageSequence

from npg.runner import figures


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn(rows, target) → the axes of the figure. Its file is a PNG of more than 100 × 100 pixels."""
    seen, savefig = [], matplotlib.figure.Figure.savefig

    def spy(figure, *args, **kwargs):
        seen.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)

    def draw(rows, target=None):
        path = tmp_path / "learning_curve.png"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            path.write_bytes(figures.learning_curve(rows, "CartPole-v1, ppo, seed 3", target))
        height, width, _ = matplotlib.image.imread(path).shape
        assert height > 100 and width > 100
        return seen[-1].axes[0]

    return draw


def rows_of(returns):
    """Rows of metrics, 100 steps apart; a return of None means that no episode ended."""
    return [
        {"update": k, "env_steps": 100 * k} | ({} if ret is None else {"return_mean": ret})
        for k, ret in enumerate(returns, 1)
    ]


def test_the_learning_curve_plots_return_against_steps_where_an_episode_ended(drawn):
    axes = drawn(rows_of([None, 10.0, None, 30.0, 20.0]))
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[200, 10], [400, 30], [500, 20]])
    assert axes.get_title() == "CartPole-v1, ppo, seed 3"
    assert "steps" in axes.get_xlabel() and "return" in axes.get_ylabel()


def test_the_mean_of_the_last_episodes_and_evaluations_are_drawn_where_they_are_known(drawn):
    rows = rows_of([1.0, 2.0, 3.0])
    rows[1]["return_100"], rows[2]["return_100"], rows[2]["eval_return_mean"] = 1.5, 2.0, 7.0
    _, mean, points = drawn(rows).lines
    np.testing.assert_array_equal(mean.get_xydata(), [[200, 1.5], [300, 2.0]])
    np.testing.assert_array_equal(points.get_xydata(), [[300, 7.0]])
    assert mean.get_label() == "training, mean of the last 100 episodes" and points.get_label() == "unseen episodes"


def test_the_target_is_a_line(drawn):
    axes = drawn(rows_of([1.0, 2.0]), target=475.0)
    assert set(axes.lines[-1].get_ydata()) == {475.0}
    assert axes.lines[-1].get_label() == "target 475"
    assert len(axes.lines) == len(drawn(rows_of([1.0, 2.0])).lines) + 1


@pytest.mark.parametrize("rows", [[], rows_of([None, None]), rows_of([5.0])], ids=["none", "no episode ended", "one"])
@pytest.mark.parametrize("target", [None, 0.0])
def test_runs_too_short_for_a_curve_are_drawn_without_a_warning(drawn, rows, target):
    axes = drawn(rows, target)
    assert (len(axes.lines) > 0) == (target is not None or any("return_mean" in row for row in rows))


def test_a_gif_plays_the_frames_in_order_for_ever_at_the_rate_of_the_environment(tmp_path):
    frames = [np.full((20, 30, 3), shade, np.uint8) for shade in (0, 80, 160, 240)]
    frames[1][:10] = [255, 0, 0]
    figures.gif(tmp_path / "policy.gif", frames, fps=25)
    with Image.open(tmp_path / "policy.gif") as image:
        assert image.format == "GIF" and image.size == (30, 20) and image.info["loop"] == 0
        shown = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]
    assert [duration for _, duration in shown] == [40] * 4
    np.testing.assert_array_equal([frame for frame, _ in shown], frames)


@pytest.mark.parametrize("fps", [20, 30, 60, 125])
def test_a_gif_lasts_as_long_as_its_episode_at_a_rate_that_viewers_can_show(tmp_path, fps):
    frames = [np.full((2, 2, 3), shade, np.uint8) for shade in range(250)]
    figures.gif(tmp_path / "policy.gif", frames, fps)
    with Image.open(tmp_path / "policy.gif") as image:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
    assert min(durations) >= 20
    assert sum(durations) == pytest.approx(1000 * 250 / fps, abs=25)


def test_a_gif_of_one_frame_is_a_picture(tmp_path):
    frame = np.random.default_rng(0).integers(0, 2, (4, 4, 3), dtype=np.uint8) * 255
    figures.gif(tmp_path / "policy.gif", [frame], fps=30)
    with Image.open(tmp_path / "policy.gif") as image:
        np.testing.assert_array_equal(image.convert("RGB"), frame)


def test_a_figure_goes_into_a_folder_that_is_there(tmp_path):
    assert figures.figure_path(str(tmp_path / "figure.png")) == tmp_path / "figure.png"
    with pytest.raises(argparse.ArgumentTypeError, match=f"folder {tmp_path / 'nowhere'} does not exist"):
        figures.figure_path(str(tmp_path / "nowhere" / "figure.png"))
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected a file, got the folder {tmp_path}"):
        figures.figure_path(str(tmp_path))
    with pytest.raises(argparse.ArgumentTypeError, match=r"ends in .png, .pdf or .svg, got figure.foo"):
        figures.figure_path(str(tmp_path / "figure.foo"))


def test_matplotlib_is_not_imported_before_something_is_drawn():
    code = "import sys, npg.runner.command_line; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
