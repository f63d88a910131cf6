"""Each algorithm learns with the default settings of run_cartpole.py, on several seeds, within its default budget."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
import run_cartpole

SEEDS = (10, 11, 12)  # neither the seeds of the tuning (100 …) nor those of the benchmarks (0 … 9)


def train(folder, flags, seed):
    argv = [*flags.split(), "--seed", str(seed), "--quiet", "--out", str(folder)]
    assert run_cartpole.main(run_cartpole.SCRIPT, argv) == 0
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("seed", [SEEDS[0], *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[1:])])
def test_the_defaults_solve_cartpole(tmp_path, seed):
    result = train(tmp_path, "", seed)
    assert result["solved"] and result["return_100"] >= 475 and result["env_steps"] < 100_000
    assert result["eval_return_mean"] >= 475 and result["eval_episodes"] == 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "flags",
    [
        "--algo reinforce",
        "--algo actor-critic",
        "--algo actor-critic --shared",
        "--algo a2c",
        "--algo a2c --shared",
        "--algo a3c --workers 2",
        "--algo q-actor-critic",
        "--algo es",
        "--algo hill-climbing",
        "--algo genetic",
        "--algo finite-difference",
        "--algo finite-difference --scheme kohl-stone",
    ],
)
def test_every_algorithm_solves_cartpole(tmp_path, flags, seed):
    assert train(tmp_path, flags, seed)["solved"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_gaussian_policy_swings_the_pendulum_up(tmp_path, seed):
    assert train(tmp_path, "--env Pendulum-v1 --target -200 --steps 200000", seed)["solved"]
