"""Short runs of run_cartpole.py for the tests: their flags, and what the tests assert about their files."""

import importlib.util
import json
import pathlib
import re
import sys
from typing import NamedTuple

import numpy as np

from npg.runner import command_line
from npg.runner.metrics import read_metrics
from npg.runner.saved import read_checkpoint
from npg.runner.script import RUN

PATH = pathlib.Path(__file__).parents[2] / "run_cartpole.py"
_spec = importlib.util.spec_from_file_location("run_cartpole", PATH)
run_cartpole = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run_cartpole)

SCRIPT = run_cartpole.SCRIPT
ALGORITHMS = tuple(SCRIPT.algorithms)
SERIAL = [algo for algo in ALGORITHMS if algo != "a3c"]
TINY = {
    "ppo": "--n-steps 8 --batch-size 8 --epochs 2",
    "a2c": "--n-steps 8",
    "a3c": "--n-steps 8 --workers 2 --report-every 100",
    "actor-critic": "--n-steps 8 --epochs 2",
    "q-actor-critic": "--n-steps 8 --batch-size 8 --epochs 1 --iterations 2",
    "reinforce": "--epochs 1",
    "es": "--n-candidates 4",
    "finite-difference": "--scheme kohl-stone --n-candidates 4",
    "hill-climbing": "--n-candidates 4",
    "genetic": "--n-candidates 4",
}
STEPS = {  # at least two updates; the last two methods move θ only after a candidate has won twice
    **dict.fromkeys(ALGORITHMS, 150), "es": 600, "finite-difference": 2000, "hill-climbing": 3000,
    "genetic": 2400,
}  # fmt: skip


def tiny(algo="ppo", more=""):
    """Flags of a run whose updates take a millisecond or two."""
    return f"--quiet --hidden 8 --envs 2 --episodes 2 --evaluate-every 7 --algo {algo} {TINY[algo]} {more}"


def train(argv):
    """Runs the command line and exits with its code. The target of a process, which is given by its name."""
    sys.exit(command_line.main(SCRIPT, argv))


class Result(NamedTuple):
    """The exit code and the output of a command line."""

    code: int
    out: str
    err: str


def config_of(algo="ppo", env="CartPole-v1", **changes):
    """A config of defaults, except `changes`. A setting whose value is KeyError is left out."""
    parameters = SCRIPT.settings_of(algo, False)
    values = {**{name: parameter.default for name, parameter in parameters.items()}, "env": env, **changes}
    values = {name: value for name, value in values.items() if value is not KeyError}
    settings = {name: value for name, value in values.items() if name not in RUN}
    return {"algo": algo, **{name: value for name, value in values.items() if name in RUN}, "settings": settings}


def contents(folder):
    """Every file below a folder, byte for byte."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_refused(result, *words):
    """Exit code 2 and one clear line, with these words in it."""
    assert result.code == 2 and result.out == ""
    assert re.fullmatch(r"\S+: .+\n", result.err), result.err
    for word in words:
        assert str(word) in result.err


def final_state(folder):
    """The arrays of a run's checkpoint, without the clocks."""
    return {name: array for name, array in read_checkpoint(folder).items() if not name.endswith("seconds")}


def assert_same_run(folder, expected):
    """The same θ, optimizer state and counters to the last bit, and the same metrics but for the seconds."""
    state, expected_state = final_state(folder), final_state(expected)
    assert state.keys() == expected_state.keys()
    for name, array in expected_state.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
    rows, expected_rows = read_metrics(folder), read_metrics(expected)
    assert [row["update"] for row in rows] == list(range(1, int(state["update"]) + 1))
    for row, expected_row in zip(rows, expected_rows, strict=True):
        np.testing.assert_equal({**row, "seconds": 0}, {**expected_row, "seconds": 0})  # NaN is equal to NaN


def updates_and_result(folder):
    """(number of updates, whether the run is solved, mean return) from result.json."""
    result = json.loads((folder / "result.json").read_text())
    return result["updates"], result["solved"], result["eval_return_mean"]


def rewritten(path, **changes):
    """Writes a checkpoint again with some arrays changed. None removes an array."""
    arrays = {**read_checkpoint(path.parent), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def assert_equal(arrays, expected):
    """The same names, and the same arrays to the last bit."""
    assert arrays.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(arrays[name], expected[name], err_msg=name)
