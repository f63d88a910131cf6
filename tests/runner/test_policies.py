"""The lecture's policies over Box actions, from the script. Each learns a task that a plain Gaussian cannot learn."""

import pathlib
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from npg.runner.command_line import main
from npg.runner.metrics import read_metrics

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
import run_cartpole

FLAGS = (
    "--algo a2c --gamma 0 --lam 0 --n-steps 20 --envs 16 --hidden --learning-rate 0.01 --entropy-coef 0 "
    "--value-coef 0.05 --standardise --no-anneal"
)
RUN = "--log-std -0.7 --steps 100000 --evaluate-every 1000 --episodes 1 --quiet"


class Unpredictable(gymnasium.Env):
    """An episode has 20 actions. Each earns up to 1 if it differs from the one before. So the policy must be random."""

    def __init__(self, worth, n):
        self.observation_space, self.action_space = spaces.Box(0, 1, (1,), np.float32), spaces.Box(-1, 1, (n,))
        self.worth = worth

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.last = 0, np.zeros(self.action_space.shape)
        return np.ones(1, np.float32), {}

    def step(self, action):
        reward, self.last, self.time = float(self.worth(action, self.last)), np.array(action), self.time + 1
        return np.ones(1, np.float32), reward, False, self.time == 20, {}


def two_places(action, last):
    """High near ±0.6, but 0 on the last action's side. The policy does not see that action: at most 0.5 on average."""
    return np.exp(-0.5 * ((abs(action[0]) - 0.6) / 0.15) ** 2) * (action[0] * last[0] <= 0)


def diagonal(action, last):
    """High if both numbers are equal, and if the first one differs from the last action's."""
    return np.exp(-0.5 * ((action[0] - action[1]) / 0.15) ** 2) * min(1, abs(action[0] - last[0]) / 0.5)


gymnasium.register("unpredictable/TwoPlaces-v0", Unpredictable, kwargs={"worth": two_places, "n": 1})
gymnasium.register("unpredictable/Diagonal-v0", Unpredictable, kwargs={"worth": diagonal, "n": 2})


def return_at_the_end(folder, env, policy, seed):
    argv = f"{FLAGS} {RUN} --env unpredictable/{env}-v0 --policy {policy} --seed {seed} --out {folder}".split()
    assert main(run_cartpole.SCRIPT, argv) == 0
    return np.mean([row["return_mean"] for row in read_metrics(folder)[-40:] if "return_mean" in row])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixture_holds_two_good_actions_far_apart_and_a_gaussian_does_not(tmp_path, seed):
    assert return_at_the_end(tmp_path / "mixture", "TwoPlaces", "mixture", seed) > 8  # at most 10
    assert return_at_the_end(tmp_path / "gaussian", "TwoPlaces", "gaussian", seed) < 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_full_covariance_holds_correlated_actions_and_a_diagonal_one_does_not(tmp_path, seed):
    assert return_at_the_end(tmp_path / "multivariate", "Diagonal", "multivariate", seed) > 13
    assert return_at_the_end(tmp_path / "gaussian", "Diagonal", "gaussian", seed) < 7
