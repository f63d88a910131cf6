"""The algorithms learn, with the settings that run_cartpole.py ships: several seeds, budgets with a margin.

The budget of the defaults is more than twice the steps of the slowest seed of their tuning; the others are what the
README promises.
"""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
import run_cartpole

SEEDS = (10, 11, 12)  # neither those of the tuning (100 …) nor those of the benchmarks (0 … 9)


def train(folder, flags, seed):
    argv = [*flags.split(), "--seed", str(seed), "--quiet", "--out", str(folder)]
    assert run_cartpole.main(run_cartpole.SCRIPT, argv) == 0
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_defaults_solve_cartpole(tmp_path, seed):
    result = train(tmp_path, "--steps 60000", seed)
    assert result["solved"] and result["eval_return_mean"] >= 475 and result["eval_episodes"] == 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "flags",
    [
        "--algo reinforce --weight reward-to-go --baseline state --evaluate-every 2 --steps 300000",
        "--algo actor-critic --steps 200000",
        "--algo actor-critic --shared --steps 200000",
        "--algo a2c --steps 200000",
        "--algo a2c --shared --steps 200000",
        "--algo q-actor-critic --steps 500000",
        "--algo es --steps 50000",
        "--algo hill-climbing --steps 50000",
        "--algo genetic --steps 100000",
        "--algo finite-difference --steps 100000",
        "--algo finite-difference --scheme kohl-stone --steps 100000",
    ],
)
def test_every_algorithm_solves_cartpole(tmp_path, flags, seed):
    assert train(tmp_path, flags, seed)["solved"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_gaussian_policy_swings_the_pendulum_up(tmp_path, seed):
    assert train(tmp_path, "--env Pendulum-v1 --target -200 --steps 200000", seed)["solved"]
