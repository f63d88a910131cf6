"""The numbers that the comparison of algorithms computes from its runs."""

import pathlib
import sys

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
from comparison import at, draw, interquartile_mean, with_interval


def test_the_interquartile_mean_ignores_the_lowest_and_the_highest_quarter():
    x = np.array([-1e9, 3.0, 1.0, 2.0, 4.0, 2.0, 1e9, 1e9])
    assert interquartile_mean(x) == (2 + 2 + 3 + 4) / 4
    np.testing.assert_array_equal(interquartile_mean(np.stack([x, -x])), [2.75, -2.75])


def test_the_interval_of_normal_numbers_covers_their_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    mean, low, high = with_interval(rng.standard_normal((400, 20)), rng, n_resamples=400)
    covered = np.mean((low <= 0) & (0 <= high))
    assert 0.88 < covered < 0.98  # the standard error of 400 intervals is 0.01
    assert np.all((low <= mean) & (mean <= high))


def test_between_evaluations_the_value_of_the_last_one_is_used():
    held = at(np.array([10, 19, 20, 25, 30, 99]), [10, 20, 30], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(held, [1, 1, 2, 2, 3, 3])


def test_the_figure_is_a_png(tmp_path):
    curve = [[1000, 50_000], [20.0, 500.0]]
    draw(tmp_path / "figure.png", {"CartPole-v1": {"ppo": {0: curve, 1: curve}, "es": {0: curve}}})
    pixels = imread(tmp_path / "figure.png", format="png")[..., :3]
    assert pixels.shape == (495, 924, 3)
    first_colour = np.all(np.abs(pixels - to_rgb("C0")) < 0.01, axis=-1)
    for panel in np.split(first_colour, 2, axis=1):  # left: policy gradients (PPO), right: searches (ES)
        assert panel.any(axis=0).sum() > 300  # the curve goes through most of the panel's 462 columns
