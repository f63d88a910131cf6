"""The command line as users see it: wrong input, full disks, Ctrl-C, SIGKILL, NaN; and runs that can be repeated.

Most tests call `main` in this process. If a process must die, the test forks this process or starts a new process.
"""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import NamedTuple

import gymnasium
import hypothesis
import numpy as np
import pytest
import test_environments  # registers the environments "strange/…"
from hypothesis import strategies as st

from npg import optimizers
from npg.policy import ActorCritic
from npg.reinforce import BASELINES
from npg.runner import actors, command_line, commands, figures, playing, runs, settings, task
from npg.runner.folder import taken, write_json
from npg.runner.metrics import read_metrics
from npg.runner.runs import Run
from npg.runner.saved import read_checkpoint, read_config
from npg.runner.script import RUN
from npg.runner.workers import WorkerError

PATH = pathlib.Path(__file__).parents[2] / "run_cartpole.py"
_spec = importlib.util.spec_from_file_location("run_cartpole", PATH)
run_cartpole = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run_cartpole)

SCRIPT = run_cartpole.SCRIPT
ALGORITHMS = tuple(SCRIPT.algorithms)
pytestmark = pytest.mark.usefixtures("quick_workers", "quick_disk")

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


def tiny(algo="ppo", more=""):
    """Flags of a run whose updates take a millisecond or two."""
    return f"--quiet --hidden 8 --envs 2 --episodes 2 --evaluate-every 7 --algo {algo} {TINY[algo]} {more}"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """No picture is drawn, because this takes longer than these runs. `finished` and other processes draw."""
    monkeypatch.setattr(figures, "learning_curve", lambda *args: b"picture")


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys):
    """call(flags, out=folder) → exit code and output of one command line."""
    handler = signal.getsignal(signal.SIGINT)

    def run(flags="", **folders):
        argv = shlex.split(flags)
        for flag, folder in folders.items():
            argv += [f"--{flag}", str(folder)]
        capsys.readouterr()
        try:
            code = command_line.main(SCRIPT, argv)
        except SystemExit as stop:
            code = stop.code
        finally:
            signal.signal(signal.SIGINT, handler)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that has spent its budget. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert command_line.main(SCRIPT, [*tiny(more="--steps 300").split(), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))


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


# ---- flags and input that are wrong: one line, exit code 2, nothing written


@pytest.mark.parametrize(
    "flags",
    [
        *("--algo sarsa", "--seed -1", "--seed 1.5", "--seed x", "--steps 0", "--steps -5", "--steps 1e5"),
        *("--target x", "--target nan", "--episodes 0", "--evaluate-every 0", "--envs 0", "--n-steps 0"),
        *("--checkpoint-every 0", "--checkpoint-every 0s", "--checkpoint-every -1", "--checkpoint-every often"),
        *("--gamma 1.1", "--gamma -0.1", "--gamma nan", "--gamma x", "--lam 2", "--learning-rate 0"),
        *("--learning-rate -1", "--learning-rate nan", "--hidden 0", "--hidden 8 -8", "--hidden x"),
        *("--activation gelu", "--epochs 0", "--batch-size 0", "--importance heavy", "--capacity 0"),
        *("--value-coef -1", "--value-coef nan", "--entropy-coef -1", "--max-grad-norm 0"),
        *("--target inf", "--target -inf", "--learning-rate inf", "--entropy-coef inf", "--max-grad-norm nan"),
        *("--weight all --algo reinforce", "--baseline v --algo reinforce", "--iterations 0 --algo q-actor-critic"),
        *("--estimation lstd --algo actor-critic", "--proximal -1 --algo actor-critic"),
        *("--critic-learning-rate 0 --algo actor-critic", "--sigma wide --env Pendulum-v1"),
        *("--log-std x --env Pendulum-v1", "--log-std nan --env Pendulum-v1", "--temperature 1"),
        *("--env=", "--checkpoint-every=", "--workers 0 --algo a3c", "--workers x --algo a2c"),
        *("--cluster= --algo a3c", "--cluster tcp://127.0.0.1:9 --algo a2c"),
        *("--epsilons 2 --algo a3c", "--temperatures 0 --algo a3c", "--statistics none --algo a3c"),
        *("--n-candidates 0 --algo es", "--shaping log --algo es", "--scheme backward --algo finite-difference"),
        *("--epsilon 0 --algo finite-difference", "--n-parents 0 --algo genetic", "--n-elite 0 --algo genetic"),
        *("--widen 0.5 --algo hill-climbing", "--narrow 2 --algo hill-climbing", "--patience 0 --algo hill-climbing"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_its_flag(call, tmp_path, flags):
    flag = re.match(r"[^ =]+", flags).group()
    assert_refused(call(f"--quiet --steps 1 --episodes 1 {flags}", out=tmp_path / "run"), flag)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags",
    [
        *("--weight total", "--baseline time", "--estimation td", "--proximal 1", "--iterations 3", "--subtract-value"),
        *("--critic-learning-rate 1", "--sigma fixed", "--log-std 0", "--epochs 2 --algo a2c"),
        *("--lam 1 --algo reinforce", "--n-steps 8 --algo reinforce", "--shared --algo reinforce"),
        *("--no-shared --algo q-actor-critic", "--workers 2", "--workers 2 --algo reinforce", "--cluster tcp://x:1"),
        *("--epsilons 0.1", "--temperatures 2 --algo a2c", "--report-every 100 --algo a2c"),
        *("--epsilon 1 --algo es", "--search-sigma fixed --algo genetic", "--n-steps 8 --algo es"),
        *("--patience 3 --algo es", "--sigma fixed --algo es", "--policy mixture", "--act sampled --algo genetic"),
        *("--capacity 2 --algo a2c", "--gamma 0 --weight total --algo a2c", "--importance plain --algo actor-critic"),
    ],
)
def test_a_flag_without_meaning_for_the_algorithm_is_refused_by_name(call, tmp_path, flags):
    flag = next(flag for flag in flags.split() if flag.startswith("--") and flag != "--gamma")
    assert_refused(call(f"--quiet {flags}", out=tmp_path / "run"), flag.replace("--no-", "--"), "no meaning")
    assert not (tmp_path / "run").exists()


def test_a_baseline_that_leaves_one_out_needs_two_trajectories(call, tmp_path):
    flags = "--quiet --algo reinforce --baseline leave-one-out --envs 1"
    assert_refused(call(flags, out=tmp_path / "run"), "leave-one-out")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags, words", [
    ("--algo es --search-sigma state", ("--search-sigma", "'fixed', 'learned'", "'state'")),
    ("--algo es --n-candidates 5", ("n_candidates", "even", "5")),
    ("--algo hill-climbing --n-candidates 2", ("n_candidates", "at least 3", "2")),
    ("--algo genetic --n-parents 17", ("n_parents", "17")),
])
def test_what_a_gradient_free_method_cannot_do_is_refused(call, tmp_path, flags, words):
    assert_refused(call(f"--quiet {flags}", out=tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "env, reason",
    [
        ("Nowhere-v0", "Nowhere"),
        ("no_such_module:Env-v0", "no_such_module"),
        ("a:b:c", "a:b:c"),
        ("strange/MissingPackage-v0", "frobnicate is not installed"),
        *((f"strange/{name}", name) for name in test_environments.UNSUPPORTED),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused(call, tmp_path, env, reason):
    assert_refused(call(f"--quiet --env {env}", out=tmp_path / "run"), reason)
    assert not (tmp_path / "run").exists()


def test_two_things_at_once_are_refused(call, copy):
    before = contents(copy)
    for first, second in (("resume", "evaluate"), ("resume", "gif"), ("evaluate", "gif")):
        assert_refused(call(**{first: copy, second: copy}), f"--{first}", f"--{second}")
    assert contents(copy) == before


@pytest.mark.parametrize("flag", ["resume", "evaluate", "gif", "out"])
def test_an_empty_folder_name_as_of_an_unset_variable_is_refused(call, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    assert_refused(call(f"--{flag}= --quiet" + " --steps 1 --episodes 1" * (flag in ("out", "resume"))))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("flag", ["resume", "evaluate", "gif"])
def test_a_folder_that_holds_no_run_is_refused(call, tmp_path, flag):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file", tmp_path / "file" / "below"):
        assert_refused(call("--quiet", **{flag: folder}), folder)
    assert contents(tmp_path) == {tmp_path / "file": b"mine"}


def test_a_folder_that_holds_a_run_is_not_written_over(call, copy):
    before = contents(copy)
    assert_refused(call(tiny(more="--steps 1"), out=copy), copy, "holds a run already")
    assert contents(copy) == before


def test_a_folder_that_cannot_be_made_is_refused(call, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_refused(call(tiny(more="--steps 1"), out=folder), folder)
    assert contents(tmp_path) == {tmp_path / "file": b"mine"}


@pytest.mark.parametrize(
    "flags",
    [
        *("--algo ppo", "--env CartPole-v1", "--seed 0", "--seed 1", "--target 0", "--target 9", "--out elsewhere"),
        *("--episodes 2", "--evaluate-every 7", "--checkpoint-every 50", "--gamma 0", "--gamma 0.5", "--lam 0"),
        *("--no-anneal", "--anneal", "--no-shared", "--hidden", "--entropy-coef 0", "--no-normalise-obs"),
    ],
)
def test_resume_takes_no_flag_that_the_run_has_settled(call, copy, flags):
    before = contents(copy)
    assert_refused(call(f"--quiet {flags}", resume=copy), flags.split()[0].replace("--no-", "--"))
    assert contents(copy) == before


@pytest.mark.parametrize("flag", ["evaluate", "gif"])
@pytest.mark.parametrize("flags", ["--algo a2c", "--env Pendulum-v1", "--steps 5", "--out elsewhere", "--gamma 0.5"])
def test_flags_of_training_are_refused_where_nothing_is_trained(call, copy, flag, flags):
    before = contents(copy)
    assert_refused(call(flags, **{flag: copy}), flags.split()[0])
    assert contents(copy) == before


def rewritten(path, **changes):
    arrays = {**read_checkpoint(path.parent), **changes}
    np.savez(path, **arrays)


DAMAGED = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "corrupt": lambda path: path.write_bytes(path.read_bytes().replace(b"\0\0\0", b"\1\2\3")),
    "text": lambda path: path.write_text("hello"),
    "foreign": lambda path: np.savez(path, weights=np.ones(3)),
    "pickled": lambda path: rewritten(path, theta=np.array([{}], object)),
    "of another network": lambda path: rewritten(path, theta=np.zeros(5, np.float32)),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("flag", ["resume", "evaluate", "gif"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_checkpoint_is_refused_and_nothing_is_written(call, copy, damage, flag):
    DAMAGED[damage](copy / "checkpoint.npz")
    before = contents(copy)
    assert_refused(call("--quiet", **{flag: copy}), copy)
    assert contents(copy) == before


CONFIGS = {
    "empty": lambda text: "",
    "cut short": lambda text: text[: len(text) // 2],
    "another format": lambda text: text.replace("npg run", "other run"),
    "bare": lambda text: json.dumps({"format": json.loads(text)["format"]}),
    "no settings": lambda text: edited(text, lambda config: config.pop("settings")),
    "a setting lost": lambda text: edited(text, lambda config: config["settings"].pop("hidden")),
    "a setting too many": lambda text: edited(text, lambda config: config["settings"].update(temperature=1.0)),
    "settings no dict": lambda text: edited(text, lambda config: config.update(settings=[1, 2])),
    "an unknown algorithm": lambda text: edited(text, lambda config: config.update(algo="sarsa")),
    "an unknown environment": lambda text: edited(text, lambda config: config.update(env="Nowhere-v0")),
    "a word for a seed": lambda text: edited(text, lambda config: config.update(seed="three")),
    "an unknown weight of importance": lambda text: edited(text, lambda c: c["settings"].update(importance="heavy")),
    "an unknown activation": lambda text: edited(text, lambda config: config["settings"].update(activation="gelu")),
    "unknown actions": lambda text: edited(text, lambda config: config["settings"].update(act="best")),
    "a bad period": lambda text: edited(text, lambda config: config.update(checkpoint_every="often")),
}


def edited(text, change):
    config = json.loads(text)
    change(config)
    return json.dumps(config)


@pytest.mark.parametrize("flag", ["resume", "evaluate"])
@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_config_is_refused_and_nothing_is_written(call, copy, damage, flag):
    path = copy / "config.json"
    path.write_text(CONFIGS[damage](path.read_text()))
    before = contents(copy)
    assert_refused(call("--quiet", **{flag: copy}))
    assert contents(copy) == before


def test_a_disk_that_fills_up_ends_the_run_with_one_line_and_a_checkpoint_that_loads(call, tmp_path, monkeypatch):
    replace, count = os.replace, [0]

    def full_in_the_end(source, target):
        count[0] += target.name == "checkpoint.npz"
        if count[0] > 3:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_in_the_end)
    result = call(tiny(more="--steps 1000 --checkpoint-every 5"), out=tmp_path / "run")
    assert_refused(result, tmp_path / "run", "No space left on device")
    assert read_checkpoint(tmp_path / "run")["update"] == 15


# ---- what a run leaves behind


def test_the_script_explains_every_flag_with_its_default():
    result = subprocess.run([sys.executable, PATH, "-h"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    promised = "algo env seed steps out resume evaluate gif quiet checkpoint-every target episodes"
    for name in promised.split():
        assert f"--{name}" in result.stdout
    for algo in SCRIPT.algorithms:
        parser = command_line.make_parser(SCRIPT, algo)
        text = parser.format_help()
        for name in SCRIPT.settings_of(algo, True):
            assert f"--{name.replace('_', '-')}" in text
        for name in SCRIPT.algorithms:
            assert name in text
        for action in parser._actions:
            without = action.metavar == "DIR" or action.dest in ("help", "quiet")
            assert action.help and (without or re.search(r"\(.+\)$", action.help)), action.option_strings
    for baseline in BASELINES:
        assert baseline in command_line.make_parser(SCRIPT, "reinforce").format_help()


def test_the_flags_of_one_algorithm_are_one_page(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for algo in SCRIPT.searches:
        result = call(f"--algo {algo} -h")
        assert result.code == 0 and result.err == "" and len(result.out.splitlines()) <= 60
    assert "--sigma" not in call("--algo es -h").out


def test_help_and_results_can_be_written_where_the_terminal_knows_no_greek(finished):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for flags in (["-h"], ["--evaluate", finished]):
        result = subprocess.run([sys.executable, PATH, *flags], capture_output=True, text=True, env=env)
        assert result.returncode == 0 and "Traceback" not in result.stderr


@pytest.mark.parametrize("command", re.findall(r"run_cartpole\.py(.*?)(?:   .*)?\n", run_cartpole.__doc__))
def test_the_scripts_own_examples_run(call, tmp_path, command):
    assert call(f"{command} --quiet --steps 1 --episodes 1", out=tmp_path / "run").code == 0


@pytest.mark.parametrize("algo", SERIAL)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "strange/Bounded-v0"])
def test_every_algorithm_trains_in_every_kind_of_space_and_says_nothing_else(call, tmp_path, algo, env):
    result = call(tiny(algo, f"--env {env} --steps 100"), out=tmp_path / "run")
    assert result.code == 0 and result.err == "" and result.out.startswith(("finished", "not solved"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.json", "metrics.csv", "checkpoint.npz", "learning_curve.png", "result.json")
    }


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("weight", ["total", "reward-to-go", "discounted"])
def test_reinforce_takes_every_weight_with_every_baseline(call, tmp_path, weight, baseline):
    flags = f"--quiet --envs 2 --episodes 1 --steps 50 --algo reinforce --weight {weight} --baseline {baseline}"
    assert call(flags, out=tmp_path / "run").code == 0
    config = read_config(tmp_path / "run")
    assert (config["settings"]["weight"], config["settings"]["baseline"]) == (weight, baseline)


SLIDES = {  # the flags that make an algorithm the one of the slide
    "a3c": "--envs 1 --max-grad-norm none",
    "reinforce": "--weight total --baseline none --gamma 1 --no-standardise --max-grad-norm none --optimizer sgd "
    "--learning-rate 3e-5 --no-anneal",
}


@pytest.mark.parametrize("algo", SLIDES)
def test_the_slides_own_flags_are_named_and_train(call, tmp_path, algo):
    flags, more = SLIDES[algo], " --workers 2" if algo == "a3c" else ""
    assert f"The slide's settings: {flags}" in " ".join(SCRIPT.algorithms[algo][0].__doc__.split())
    page = (PATH.parent / "docs" / "lecture.md").read_text().replace("\\\n", "")
    assert f"--algo {algo} {flags}" in " ".join(page.split())
    assert flags.split()[-1] in command_line.make_parser(SCRIPT, algo).format_help()
    result = call(f"--algo {algo} {flags}{more} --quiet --steps 300 --episodes 2", out=tmp_path / "run")
    settings = read_config(tmp_path / "run")["settings"]
    assert result.code == 0 and settings["max_grad_norm"] is None and not settings["standardise"]
    if algo == "a3c":
        assert (settings["lam"], settings["statistics"], settings["optimizer"]) == (1.0, "shared", "rmsprop")


def test_the_result_is_that_of_the_run(finished):
    result, rows = json.loads((finished / "result.json").read_text()), read_metrics(finished)
    assert {"env": "CartPole-v1", "algo": "ppo", "seed": 0, "solved": False}.items() <= result.items()
    assert (result["updates"], result["env_steps"]) == (rows[-1]["update"], rows[-1]["env_steps"])
    assert result["seconds"] == pytest.approx(rows[-1]["seconds"], rel=1e-5)
    assert result["eval_episodes"] == 2 and result["eval_return_mean"] >= 2 and result["eval_return_std"] >= 0
    assert result["workers_restarted"] == 0


def test_the_metrics_have_a_row_for_every_update(finished):
    rows = read_metrics(finished)
    assert [row["update"] for row in rows] == list(range(1, len(rows) + 1))
    for name in ("env_steps", "episodes", "seconds"):
        assert [row[name] for row in rows] == sorted(row[name] for row in rows)
    evaluated = [row["update"] for row in rows if "eval_return_mean" in row]
    assert evaluated and evaluated == list(range(7, len(rows) + 1, 7))[: len(evaluated)]  # up to a quarter of the steps
    assert all(0 < row["entropy"] <= 0.6932 and row["grad_norm"] > 0 for row in rows)
    assert any("return_mean" in row for row in rows) and any("explained_variance" in row for row in rows)


def test_the_budget_of_steps_ends_the_run(finished):
    *_, last_but_one, last = read_metrics(finished)
    assert last_but_one["env_steps"] < 300 <= last["env_steps"] < 300 + 2 * 8


def test_a_run_can_be_repeated_from_its_config_alone(call, tmp_path):
    more = "--env Pendulum-v1 --seed 3 --steps 200 --checkpoint-every 4 --anneal --normalise-obs --hidden 6 5"
    flags = tiny(more=f"{more} --sigma state --shared --gamma 0.9 --entropy-coef 0.01")
    assert call(flags, out=tmp_path / "run").code == 0
    config = read_config(tmp_path / "run")
    again = ["--quiet"]
    for name, value in {**config, **config["settings"]}.items():
        if name in ("format", "settings", "versions") or value is None:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            again.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            again += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    assert call(shlex.join(again), out=tmp_path / "again").code == 0
    assert_same_run(tmp_path / "again", tmp_path / "run")
    assert {"npg", "python", "numpy", "gymnasium"} <= config["versions"].keys()


def test_another_seed_gives_another_theta(call, tmp_path, finished):
    assert call(tiny(more="--steps 300 --seed 1"), out=tmp_path / "run").code == 0
    assert not np.array_equal(read_checkpoint(tmp_path / "run")["theta"], read_checkpoint(finished)["theta"])


def test_runs_without_a_folder_get_new_ones_by_their_names(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for env in ("CartPole-v1", "CartPole-v1", "strange/Plain-v0"):
        assert call(tiny("a2c", f"--env {env} --seed 4 --steps 1")).code == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        *("CartPole-v1-a2c-seed4", "CartPole-v1-a2c-seed4-2", "strange-Plain-v0-a2c-seed4")
    }


def test_evaluation_uses_seeds_that_training_and_other_evaluations_never_saw(tmp_path):
    seeds = {2: [], 5: []}  # {number of environments: seeds}; training has 2, evaluation has 5

    def make_envs(env_id, n, *, normalise_obs=False):
        envs = SCRIPT.make_envs(env_id, n, normalise_obs=normalise_obs)
        reset = envs.reset

        def spy(seed=None, **kwargs):
            if seed is not None:
                seeds[n].append(range(seed, seed + n))  # Gymnasium's seeds of n environments
            return reset(seed=seed, **kwargs)

        envs.reset = spy
        return envs

    flags = tiny(more="--steps 3000 --episodes 5 --checkpoint-every 9 --evaluate-every 3").split()
    assert command_line.main(SCRIPT._replace(make_envs=make_envs), [*flags, "--out", str(tmp_path / "run")]) == 0
    trained, evaluated = ([seed for run in seeds[n] for seed in run] for n in (2, 5))
    assert len(trained) == 2 and len(evaluated) > 20  # training seeds its environments only once
    assert not set(trained) & set(evaluated)
    assert len(set(evaluated)) == len(evaluated)


STANDING_STILL = "--learning-rate 1e-12 --no-anneal --steps 1"


@pytest.mark.parametrize("more", ["", "--env Pendulum-v1 --normalise-obs"])
def test_a_run_may_start_from_the_policy_that_another_ended_with(call, tmp_path, more):
    first, second, alone = tmp_path / "first", tmp_path / "second", tmp_path / "alone"
    assert call(tiny(more=f"{more} --steps 300 --seed 1"), out=first).code == 0
    assert call(tiny(more=f"{more} {STANDING_STILL} --seed 2 --start-from {first}"), out=second).code == 0
    assert call(tiny(more=f"{more} {STANDING_STILL} --seed 2"), out=alone).code == 0
    old, new, other = map(read_checkpoint, (first, second, alone))
    np.testing.assert_allclose(new["theta"], old["theta"], atol=1e-6)
    assert not np.allclose(other["theta"], old["theta"], atol=1e-2)
    if more:
        assert 0 < new["obs_count"] - old["obs_count"] < other["obs_count"] < 30 < old["obs_count"]
    assert read_config(second)["start_from"] == str(first) and read_config(alone)["start_from"] is None


def test_start_from_is_read_only_until_the_run_has_a_checkpoint(call, tmp_path, finished):
    folder = tmp_path / "run"
    assert call(tiny(more=f"{STANDING_STILL} --start-from {finished}"), out=folder).code == 0
    theta = read_checkpoint(folder)["theta"]
    for name in ("checkpoint.npz", "result.json"):  # as if killed before they were written
        (folder / name).unlink()
    assert call("--quiet", resume=folder).code == 0
    np.testing.assert_array_equal(read_checkpoint(folder)["theta"], theta)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "start_from": str(tmp_path / "gone")}))
    assert call("--quiet --steps 100", resume=folder).code == 0


def test_a_start_from_that_does_not_fit_is_refused_in_one_line(call, tmp_path, finished):
    for more, words in (
        ("--start-from nowhere", "nowhere"),
        (f"--hidden 5 --start-from {finished}", "expected theta"),
        (f"--env Pendulum-v1 --hidden 8 --normalise-obs --start-from {finished}", "expected theta"),
    ):
        assert_refused(call(tiny(more=more), out=tmp_path / "run"), "start-from" if "theta" in words else words, words)
        assert not (tmp_path / "run").exists()
    assert_refused(call(tiny("es", f"--start-from {finished}"), out=tmp_path / "run"), "--start-from", "es")
    assert_refused(call("--steps 900 --start-from x", resume=finished), "--start-from", "--resume")


@pytest.fixture
def scripted(monkeypatch):
    """scripted(*means): evaluations return these means in turn, then the last one again. Returns the seeds used."""

    def script(*means):
        means, asked = list(means), []

        def play(envs, act, episodes, *seeds):
            asked.append(seeds)
            mean = means.pop(0) if len(means) > 1 else means[0]
            if isinstance(mean, type):
                raise mean
            return np.full(episodes, float(mean)), np.ones(episodes, int)

        monkeypatch.setattr(playing, "play", play)
        return asked

    return script


def updates_and_result(folder):
    result = json.loads((folder / "result.json").read_text())
    return result["updates"], result["solved"], result["eval_return_mean"]


def test_a_search_stops_when_an_evaluation_and_a_second_one_reach_the_target(call, tmp_path, scripted):
    asked = scripted(1, 60, 40, 50, 51)  # update 7; 14 and its confirmation, failed; 21 and its confirmation
    result = call(tiny("es", "--steps 20000 --target 50"), out=tmp_path / "run")
    assert result.code == 0 and result.out.startswith("solved")
    assert updates_and_result(tmp_path / "run") == (21, True, 51)
    assert len(set(asked)) == 5
    assert read_metrics(tmp_path / "run")[-1]["env_steps"] < 20000


def test_the_budget_ends_an_unsolved_run_with_an_evaluation_of_its_last_policy(call, tmp_path, scripted):
    scripted(1, 2, 49)
    result = call(tiny(more="--steps 230 --target 50"), out=tmp_path / "run")
    assert result.code == 0 and result.out.startswith("not solved")
    updates, solved, mean = updates_and_result(tmp_path / "run")
    assert 14 < updates < 21 and not solved and mean == 49


def test_a_policy_that_reaches_the_target_with_the_last_step_of_the_budget_solves_it(call, tmp_path):
    flags = tiny("a2c", "--no-anneal --steps 12000 --evaluate-every 1000 --target 5")  # any policy lasts longer
    assert call(flags, out=tmp_path / "whole").out.startswith("solved")
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    budget = result["env_steps"]
    assert result["return_100"] >= 5 and budget < 12000
    last = call(flags.replace("12000", str(budget)), out=tmp_path / "last")
    assert last.out.startswith("solved") and str(budget) in last.out.replace(",", "")
    assert call(flags.replace("12000", str(budget - 16)), out=tmp_path / "short").out.startswith("not solved")


def test_a_run_says_what_to_do_next(call, tmp_path):
    out = call(tiny(more="--steps 50"), out=tmp_path / "run").out
    for flag in ("--gif", "--evaluate", "--resume"):
        assert f"{flag} {tmp_path / 'run'}" in out
    assert str(tmp_path / "run" / "learning_curve.png") in out


def test_a_run_says_when_there_was_nothing_to_learn_from(call, tmp_path):
    sparse = call(tiny(more="--env MountainCar-v0 --steps 1000"), out=tmp_path / "sparse").out
    assert "all episodes had the same return: there was nothing to learn from yet" in sparse
    assert "nothing to learn" not in call(tiny(more="--steps 1000"), out=tmp_path / "other").out


def test_the_environments_threshold_is_the_target_unless_another_is_given(call, tmp_path):
    for env, given, target in (
        ("CartPole-v1", "", 475.0),
        ("CartPole-v1", "--target 0", 0.0),
        ("Pendulum-v1", "", None),
        ("Pendulum-v1", "--target -200", -200.0),
        ("strange/Plain-v0", "", 5.0),
        ("test_environments:strange/Plain-v0", "", 5.0),
        ("CartPole", "", 475.0),
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        assert call(tiny(more=f"--env {env} --steps 1 {given}"), out=folder).code == 0
        assert read_config(folder)["target"] == json.loads((folder / "result.json").read_text())["target"] == target


def test_without_a_target_nothing_is_called_solved_or_unsolved(call, tmp_path):
    assert "solved" not in call(tiny(more="--env Pendulum-v1 --steps 1"), out=tmp_path / "run").out


def test_seconds_leave_evaluation_out(call, tmp_path, monkeypatch):
    play, slept = playing.play, []
    monkeypatch.setattr(playing, "play", lambda *args: slept.append(1000) or play(*args))
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + sum(slept), monotonic=time.monotonic)
    monkeypatch.setattr(runs, "time", clock)
    assert call(tiny(more="--steps 100 --evaluate-every 3"), out=tmp_path / "run").code == 0
    assert sum("eval_return_mean" in row for row in read_metrics(tmp_path / "run")) < len(slept)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["seconds"] < 1000


def test_the_learning_rate_falls_in_a_line_from_its_initial_value_to_0(call, tmp_path, monkeypatch):
    fractions, step = [], optimizers.Adam.step  # the fraction of the initial rate in each update

    def spy(optimizer, *args):
        fractions.append(optimizer.learning_rate / 2e-3)
        step(optimizer, *args)

    monkeypatch.setattr(optimizers.Adam, "step", spy)
    assert call(tiny("a2c", "--steps 320"), out=tmp_path / "run").code == 0
    before = [0, *(row["env_steps"] for row in read_metrics(tmp_path / "run"))][:-1]
    np.testing.assert_allclose(fractions, 1 - np.array(before) / 320)
    assert fractions[0] == 1 and 0 < fractions[-1] <= 16 / 320
    fractions.clear()
    assert call(tiny("a2c", "--steps 320 --no-anneal"), out=tmp_path / "other").code == 0
    assert set(fractions) == {1}


def test_a_resumed_runs_learning_rate_goes_on_where_it_was(call, tmp_path, monkeypatch):
    assert call(tiny("a2c", "--steps 320"), out=tmp_path / "run").code == 0
    rates, step = [], optimizers.Adam.step
    monkeypatch.setattr(
        optimizers.Adam, "step", lambda self, *args: rates.append(self.learning_rate) or step(self, *args)
    )
    done = read_checkpoint(tmp_path / "run")["env_steps"]
    assert call("--quiet --steps 640", resume=tmp_path / "run").code == 0
    assert rates[0] == pytest.approx(2e-3 * (1 - done / 640))


# ---- playing with a trained policy


def test_evaluate_is_deterministic_and_writes_nothing(call, copy):
    before = contents(copy)
    first, second = call(evaluate=copy), call(evaluate=copy)
    assert first == second and first.code == 0
    assert re.fullmatch(r"return [\d.]+ ± [\d.]+ \(lowest [\d.]+, highest [\d.]+\) over 2 episodes\n", first.out)
    assert contents(copy) == before


def test_evaluate_plays_as_many_episodes_and_with_the_seed_asked_for(call, finished):
    first, other = (call(f"--episodes 9 --seed {seed}", evaluate=finished) for seed in (5, 6))
    assert "over 9 episodes" in first.out
    assert first.out != other.out


def test_evaluate_plays_the_most_likely_actions_where_asked_to(call, copy, monkeypatch):
    """All parameters are zero except for one bias. The cart always goes right, and the pole falls in a dozen steps."""
    theta = np.zeros_like(read_checkpoint(copy)["theta"])
    theta[4 * 8 + 8 + 8 * 2 + 1] = 1e-3  # the bias of action 1
    rewritten(copy / "checkpoint.npz", theta=theta)
    highest = float(re.search(r"highest ([\d.]+)", call("--episodes 50 --act most-likely", evaluate=copy).out)[1])
    assert highest < 13


def test_evaluate_plays_sampled_actions_where_asked_to(call, copy):
    """All parameters are zero but one. Most likely: always right; sampled: almost a fair coin; sharpened: less fair."""
    theta = np.zeros_like(read_checkpoint(copy)["theta"])
    theta[4 * 8 + 8 + 8 * 2 + 1] = 0.8  # the bias of action 1
    rewritten(copy / "checkpoint.npz", theta=theta)

    def mean(flags):
        return float(re.search(r"return ([\d.]+)", call(f"--episodes 50 {flags}", evaluate=copy).out).group(1))

    assert mean("--act most-likely") < 11
    assert 11 < mean("--act sharpened") < 14 < mean("--act sampled")
    assert mean("--act sampled") == mean("")


def test_a_gaussian_cannot_be_sharpened(call, tmp_path):
    expected = "act: expected most-likely or sampled with Box actions, got 'sharpened'"
    assert_refused(call("--env Pendulum-v1 --act sharpened", out=tmp_path / "run"), expected)


def test_a_deterministic_policy_has_no_actions_to_sample(call, tmp_path):
    assert call("--algo genetic --quiet --steps 1 --episodes 1", out=tmp_path / "run").code == 0
    assert_refused(call("--act sampled", evaluate=tmp_path / "run"), "--act has no meaning")


def test_gif_writes_one_episode(call, copy):
    pytest.importorskip("pygame")
    from PIL import Image, ImageSequence

    before = contents(copy)
    result = call(gif=copy)
    assert result.code == 0 and result.out.count("\n") == 1
    with Image.open(copy / "policy.gif") as image:
        assert image.format == "GIF" and image.size == (600, 400)
        seconds = sum(frame.info["duration"] for frame in ImageSequence.Iterator(image)) / 1000
    n_frames = int(re.search(r"(\d+) frames", result.out).group(1))
    assert 5 < n_frames <= 500 and seconds == pytest.approx(n_frames / 50)  # CartPole's frames per second
    after = contents(copy)
    assert after.pop(copy / "policy.gif") and after == before
    assert call(gif=copy) == result


@pytest.mark.parametrize("name, reason", [("CannotRender", "render"), ("RenderMissingPackage", "painter")])
def test_an_environment_that_cannot_be_drawn_is_refused_by_gif(call, tmp_path, name, reason):
    assert call(tiny("a2c", f"--env strange/{name}-v0 --steps 1"), out=tmp_path / "run").code == 0
    before = contents(tmp_path)
    assert_refused(call(gif=tmp_path / "run"), reason)
    assert contents(tmp_path) == before


def test_a_gif_that_cannot_be_written_is_an_error_of_one_line(call, tmp_path):
    assert call(tiny("a2c", "--env strange/Plain-v0 --steps 1"), out=tmp_path / "run").code == 0
    (tmp_path / "run" / "policy.gif").mkdir()
    assert_refused(call(gif=tmp_path / "run"), "policy.gif")


@pytest.mark.parametrize("flag", ["evaluate", "gif"])
def test_a_policy_of_normalised_observations_is_played_with_its_own_moments(call, tmp_path, monkeypatch, flag):
    if flag == "gif":
        pytest.importorskip("pygame")
        monkeypatch.setattr(figures, "gif", lambda *args, **kwargs: None)
    folder = tmp_path / "run"
    assert call(tiny(more="--env Pendulum-v1 --steps 600 --normalise-obs"), out=folder).code == 0
    seen, act = [], ActorCritic.act
    monkeypatch.setattr(ActorCritic, "act", lambda self, theta, obs, rng: seen.append(obs) or act(self, theta, obs))
    assert call(**{flag: folder}).code == 0
    saved = read_checkpoint(folder)
    cos, sin, _ = np.moveaxis(np.array(seen) * np.sqrt(saved["obs_var"]) + saved["obs_mean"], -1, 0)
    assert len(seen) >= 200
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-4)


# ---- NaN


def assert_diverged(result, folder, tensors):
    assert result.code == 3 and result.out == ""
    assert result.err.count("\n") == 1
    tensor, update = re.search(r"diverged: (.+) has NaN .*after update (\d+)", result.err).groups()
    assert tensor in tensors
    rows = read_metrics(folder) if (folder / "metrics.csv").exists() else []
    assert int(update) == len(rows) + 1
    if (folder / "checkpoint.npz").exists():
        saved = read_checkpoint(folder)
        assert f"the last good checkpoint, of update {saved['update']}, is in {folder}" in result.err
        assert all(np.isfinite(array).all() for array in saved.values() if array.dtype.kind != "U")
    else:
        assert "there is no checkpoint yet" in result.err


NAN_VARIANTS = [(algo, "") for algo in SERIAL] + [
    *(("reinforce", f"--baseline {baseline}") for baseline in BASELINES if baseline != "state"),
    ("actor-critic", "--estimation td"),
    ("ppo", "--no-standardise"),
]


@pytest.mark.parametrize("algo, more", NAN_VARIANTS)
@pytest.mark.parametrize("name, tensor", [("NaNReward", "reward"), ("InfReward", "reward"), ("NaNObs", "observation")])
def test_a_nan_from_the_environment_stops_the_run_and_is_named(call, tmp_path, algo, more, name, tensor):
    tiny_flags = tiny(algo, f"{more} --env strange/{name}-v0 --steps 400 --checkpoint-every 1")
    if more.startswith("--baseline"):
        tiny_flags = tiny_flags.replace(TINY["reinforce"], "")
    result = call(tiny_flags, out=tmp_path / "run")
    assert_diverged(result, tmp_path / "run", {tensor})
    assert not (tmp_path / "run" / "result.json").exists()
    if name == "NaNReward" and (tmp_path / "run" / "checkpoint.npz").exists():  # else its first update diverged
        assert call(evaluate=tmp_path / "run").code == 0


@pytest.mark.parametrize("algo", [algo for algo in SERIAL if "learning_rate" in SCRIPT.settings_of(algo, False)])
def test_a_learning_rate_beyond_all_bounds_stops_the_run_and_the_tensor_is_named(call, tmp_path, algo):
    assert call(tiny(algo, "--steps 1"), out=tmp_path / "sound").code == 0
    result = call(tiny(algo, "--steps 2000 --learning-rate 1e42"), out=tmp_path / "run")
    assert_diverged(result, tmp_path / "run", {"norm of the gradient", *read_checkpoint(tmp_path / "sound")})


# ---- saving leaves training alone


def assert_the_period_changes_nothing(flags, tmp_path, periods=("1", "7", "none")):
    whole, *others = (tmp_path / period for period in periods)
    for period, folder in zip(periods, (whole, *others)):
        argv = [*flags.split(), "--checkpoint-every", period, "--out", str(folder)]
        assert command_line.main(SCRIPT, argv) == 0
    for folder in others:
        assert_same_run(folder, whole)


@pytest.mark.parametrize(
    "algo, more", [("ppo", "--capacity 3 --steps 500"), ("reinforce", "--steps 1000"), ("es", "--steps 1000")]
)
def test_a_run_is_the_same_however_often_it_is_saved(tmp_path, algo, more):
    assert_the_period_changes_nothing(tiny(algo, more), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Pendulum-v1 --normalise-obs"])
@pytest.mark.parametrize("algo", SERIAL)
def test_every_algorithm_is_the_same_however_often_it_is_saved(tmp_path, algo, env):
    flags = tiny(algo, f"--env {env} --steps {STEPS[algo] * 6}")
    assert_the_period_changes_nothing(flags, tmp_path, ("1", "7", "50", "0.1s", "none"))


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("algo", ["a2c", "es"])
def test_workers_are_the_same_however_often_they_are_saved(tmp_path, algo, env):
    flags = tiny(algo, f"--env {env} --workers 2 --steps {STEPS[algo] * 6}")
    assert_the_period_changes_nothing(flags, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 2])
def test_pong_is_the_same_however_often_it_is_saved_and_goes_on_bit_for_bit(tmp_path, monkeypatch, ahead):
    pytest.importorskip("ale_py")
    monkeypatch.syspath_prepend(PATH.parent)
    import run_pong

    flags = f"--quiet --envs 4 --ahead {ahead} --n-steps 64 --evaluate-every 1000 --episodes 1 --algo ppo"
    for name, more in ("1", "--checkpoint-every 1"), ("7", "--checkpoint-every 7"), ("none", ""), ("half", ""):
        steps = 10 * 4 * 64 if name == "half" else 20 * 4 * 64
        argv = [*flags.split(), *more.split(), "--steps", str(steps), "--out", str(tmp_path / name), "--no-anneal"]
        assert command_line.main(run_pong.SCRIPT, argv) == 0
    resume = ["--quiet", "--resume", str(tmp_path / "half"), "--steps", str(20 * 4 * 64)]
    assert command_line.main(run_pong.SCRIPT, resume) == 0
    for name in ("7", "none", "half"):
        assert_same_run(tmp_path / name, tmp_path / "1")


class Watched(gymnasium.Env):
    """Episodes of many lengths. It counts the episodes that ended and the resets in the middle of an episode."""

    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2)
    played = []  # the environments, in the order of their first episode

    def __init__(self):
        self.t, self.cut_short, self.ended = None, 0, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        if self.t is None:
            self.played.append(self)
        self.cut_short += bool(self.t)
        self.t, self.length = 0, int(self.np_random.integers(1, 30))
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        self.ended += over
        obs, terminated = self.np_random.uniform(-1, 1, 3).astype(np.float32), bool(over and self.length % 2)
        self.t = 0 if over else self.t
        return obs, 1.0, terminated, over and not terminated, {}


gymnasium.register("strange/Watched-v0", Watched)


@hypothesis.given(
    algo=st.sampled_from(["ppo", "a2c", "actor-critic", "q-actor-critic"]),
    n_steps=st.integers(1, 9),
    envs=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
def test_no_episode_is_cut_short_while_training_goes_on_and_each_that_ends_is_counted(algo, n_steps, envs, seed):
    with tempfile.TemporaryDirectory() as folder:
        Watched.played.clear()
        flags = tiny(algo, f"--env strange/Watched-v0 --checkpoint-every 1 --steps 90 --seed {seed}")
        folder = pathlib.Path(folder) / "run"
        flags += f" --n-steps {n_steps} --envs {envs} --out {folder} --evaluate-every 1000"
        assert command_line.main(SCRIPT, flags.split()) == 0
        training = Watched.played[:envs]
        assert sum(env.cut_short for env in training) == 0
        assert sum(env.ended for env in training) == read_metrics(folder)[-1]["episodes"] > 0


def begins_new_episodes(call, folder, update, steps):
    """Resumes. New episodes begin after that update; one line says so, and the result names the update."""
    result = call(f"--quiet --steps {steps}", resume=folder)
    assert result.code == 0 and re.fullmatch(rf"{folder}: .* new episodes begin\n", result.err), result.err
    rows = read_metrics(folder)
    assert [row["update"] for row in rows] == list(range(1, len(rows) + 1)) and len(rows) > update
    assert json.loads((folder / "result.json").read_text())["new_episodes_after"][-1] == update


@pytest.mark.parametrize("name, workers", [
    ("Moody", ""), pytest.param("Moody", "--workers 2", marks=pytest.mark.slow), ("Legacy", ""), ("Bare", ""),
])  # fmt: skip
def test_where_environments_do_not_come_back_a_resumed_run_says_so_and_begins_new_episodes(
    call, tmp_path, name, workers
):
    folder = tmp_path / "run"
    flags = tiny("a2c", f"--env test_environments:strange/{name}-v0 {workers} --steps 400")
    assert call(flags, out=folder).code == 0
    assert json.loads((folder / "result.json").read_text())["new_episodes_after"] == []
    updates = []
    for steps in (800, 1200):
        updates.append(int(read_checkpoint(folder)["update"]))
        begins_new_episodes(call, folder, updates[-1], steps)
        saved = read_checkpoint(folder)
        assert saved["theta.t"] == saved["update"] > updates[-1]  # Adam was restored
    assert json.loads((folder / "result.json").read_text())["new_episodes_after"] == updates


@pytest.mark.parametrize("format", ["npg run 2", "npg run 1"])
@pytest.mark.parametrize("algo, more", [("ppo", "--capacity 2"), ("es", ""), ("a2c", "--workers 2")])
def test_a_run_that_was_saved_without_its_environments_plays_as_ever_and_resumes_with_new_episodes(
    call, tmp_path, format, algo, more
):
    folder = tmp_path / "run"
    assert call(tiny(algo, f"{more} --steps 700"), out=folder).code == 0
    returns, saved = call(evaluate=folder).out, read_checkpoint(folder)
    of_now = ("samplers.", "rngs.", "workers.", "buffer.", "new_episodes_after")
    before = {name: array for name, array in saved.items() if not name.startswith(of_now)}
    np.savez(folder / "checkpoint.npz", **{**before, "format": np.asarray(format)})
    config = json.loads((folder / "config.json").read_text())
    if format == "npg run 1":
        renamed = {"value_coef": "value_weight", "entropy_coef": "entropy_weight"}
        renamed |= {"search_sigma": "sigma", "search_log_std": "log_std"}
        config["settings"] = {renamed.get(name, name): value for name, value in config["settings"].items()}
    write_json(folder / "config.json", {**config, "format": format})
    result = call(evaluate=folder)
    assert result == Result(0, returns, "")
    begins_new_episodes(call, folder, int(saved["update"]), 1400)
    if algo == "ppo":
        start = "samplers.0.logs.whole.starts"  # the seed
        assert read_checkpoint(folder)[start] != saved[start]


# ---- interrupted, killed, resumed


def wait_for_rows(folder, n, process, seconds=60):
    """Waits until metrics.csv has n rows. Returns False if the process ended before."""
    path, end = folder / "metrics.csv", time.monotonic() + seconds
    alive = process.is_alive if hasattr(process, "is_alive") else lambda: process.poll() is None
    while alive():
        if path.exists() and path.read_bytes().count(b"\n") > n:
            return True
        assert time.monotonic() < end, "the run makes no progress"
        time.sleep(0.001)
    return False


def killed(command, folder, n_rows, rng):
    """Trains in a child process and kills it soon after row `n_rows`. Returns whether the run was not over yet."""
    child = multiprocessing.get_context("fork").Process(target=command_line.main, args=(SCRIPT, command))
    child.start()
    if wait_for_rows(folder, n_rows, child):
        time.sleep(rng.uniform(0, 0.005))
    child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL and not (folder / "result.json").exists()


def killed_and_resumed(argv, folder, n_updates, kills, rng):
    """Trains in child processes. Each is killed later in the run than the one before. The last one ends the run."""
    resume, some_row = ["--quiet", "--resume", str(folder)], lambda k: int(n_updates * (k + rng.random()) / kills)
    for _ in range(10):  # on a busy machine a short run may be over before the kill comes
        shutil.rmtree(folder, ignore_errors=True)
        if killed([*argv, "--out", str(folder)], folder, max(1, some_row(0)), rng):
            break
    else:
        pytest.fail("every run was over before it was killed")
    for k in range(1, kills):
        killed(resume, folder, max(1, some_row(k)), rng)
    assert command_line.main(SCRIPT, resume) == 0


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")


def check_killed(tmp_path, flags, kills, seed):
    argv = flags.split()
    assert command_line.main(SCRIPT, [*argv, "--out", str(tmp_path / "whole")]) == 0
    n_updates = read_metrics(tmp_path / "whole")[-1]["update"]
    killed_and_resumed(argv, tmp_path / "killed", n_updates, kills, random.Random(seed))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    whole, killed = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == [n for n in whole if n.endswith("seconds")]


@needs_fork
@pytest.mark.parametrize(
    "algo, more",
    [
        ("ppo", "--steps 1500 --checkpoint-every 7 --capacity 3 --anneal"),
        ("ppo", "--steps 1500 --checkpoint-every 10 --env Pendulum-v1 --normalise-obs"),
        ("a2c", "--steps 2000 --checkpoint-every 0.02s --shared"),
        ("reinforce", "--steps 2000 --checkpoint-every 3"),
        pytest.param(
            *("es", "--steps 8000 --checkpoint-every 3 --search-sigma learned --env Pendulum-v1 --normalise-obs"),
            marks=pytest.mark.slow,
        ),
        ("hill-climbing", "--steps 2000 --checkpoint-every 3"),
    ],
)
def test_a_run_killed_at_random_moments_and_resumed_ends_bit_for_bit_as_if_it_had_not_been(tmp_path, algo, more):
    check_killed(tmp_path, tiny(algo, more), kills=3, seed=0)


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("period", ["1", "13", "0.05s"])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1 --normalise-obs", "FrozenLake-v1"])
@pytest.mark.parametrize("algo", SERIAL)
def test_every_algorithm_survives_being_killed(tmp_path, algo, env, period):
    anneal = "--anneal" if "anneal" in SCRIPT.settings_of(algo, False) else ""
    flags = tiny(algo, f"--env {env} --steps 2000 --checkpoint-every {period} {anneal}")
    check_killed(tmp_path, flags, kills=5, seed=1)


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_solved_run_killed_at_random_moments_is_the_same_solved_run(tmp_path, seed):
    """Checkpoints and evaluations come at the same updates. Evaluations take longer than updates."""
    flags = tiny(more="--steps 100000 --target 60 --episodes 20 --checkpoint-every 7 --learning-rate 0.01")
    check_killed(tmp_path, flags, kills=8, seed=seed)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("end", [pytest.param(KeyboardInterrupt, marks=pytest.mark.slow), Killed])
def test_a_run_stopped_in_its_confirmation_confirms_again_when_it_is_resumed(call, tmp_path, scripted, end):
    flags = tiny(more="--steps 5000 --target 50 --checkpoint-every 7")
    scripted(60, 60)
    assert call(flags, out=tmp_path / "whole").code == 0
    scripted(60, end)
    if end is Killed:
        with pytest.raises(Killed):
            call(flags, out=tmp_path / "ended")
    else:
        assert call(flags, out=tmp_path / "ended").code == 130
    scripted(60)
    assert call("--quiet", resume=tmp_path / "ended").code == 0
    assert_same_run(tmp_path / "ended", tmp_path / "whole")


def test_a_run_killed_before_it_could_write_its_result_writes_it_when_resumed(call, tmp_path, scripted, monkeypatch):
    flags = tiny(more="--steps 5000 --target 50 --checkpoint-every 5")
    scripted(60)
    assert call(flags, out=tmp_path / "whole").code == 0

    def killed_at_the_result(path, value):
        if path.name == "result.json":
            raise Killed
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", killed_at_the_result)
        with pytest.raises(Killed):
            call(flags, out=tmp_path / "ended")
    assert call("--quiet", resume=tmp_path / "ended").code == 0
    assert_same_run(tmp_path / "ended", tmp_path / "whole")
    assert updates_and_result(tmp_path / "ended") == updates_and_result(tmp_path / "whole")


@pytest.mark.parametrize("means", [[60], [1]], ids=["solved", "budget spent"])
def test_a_finished_run_resumed_is_the_finished_run(call, tmp_path, scripted, means):
    scripted(*means)
    folder = tmp_path / "run"
    assert call(tiny(more="--steps 400 --target 50 --checkpoint-every 5"), out=folder).code == 0
    before, state, metrics = updates_and_result(folder), final_state(folder), (folder / "metrics.csv").read_bytes()
    assert call("--quiet", resume=folder).code == 0
    assert updates_and_result(folder) == before
    assert (folder / "metrics.csv").read_bytes() == metrics
    for name, array in final_state(folder).items():
        np.testing.assert_array_equal(array, state[name])


def test_resume_with_more_steps_goes_on_and_the_config_says_so(call, copy):
    update = read_metrics(copy)[-1]["update"]
    assert call("--quiet --steps 500", resume=copy).code == 0
    rows = read_metrics(copy)
    assert rows[-1]["env_steps"] >= 500
    assert [row["update"] for row in rows] == list(range(1, len(rows) + 1)) and len(rows) > update
    assert read_config(copy)["steps"] == 500


def start(*flags):
    return subprocess.Popen(
        [sys.executable, PATH.name, *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PATH.parent,
    )


LONG = tiny(more="--steps 5000 --checkpoint-every 10")


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "long"
    assert command_line.main(SCRIPT, [*LONG.split(), "--out", str(folder)]) == 0
    return folder


def test_ctrl_c_saves_and_the_printed_command_resumes_bit_for_bit(tmp_path, long_run):
    folder = tmp_path / "run"
    process = start(*LONG.replace("--quiet", "").split(), "--out", folder)
    assert wait_for_rows(folder, 35, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert re.search(r"\d+%.*steps/s.*return \d", err)  # the progress bar
    assert 35 <= read_checkpoint(folder)["update"] == len(read_metrics(folder))
    *_, command = err.strip().splitlines()
    python, script, *flags = shlex.split(command)
    assert (python, script) == ("python", PATH.name)
    resumed = start("--quiet", *flags)
    _, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0 and err == ""
    assert_same_run(folder, long_run)


def test_ctrl_c_again_and_again_spoils_nothing(call, tmp_path, long_run):
    folder = tmp_path / "run"
    process = start(*LONG.split(), "--out", folder)
    assert wait_for_rows(folder, 25, process)
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert call("--quiet", resume=folder).code == 0
    assert_same_run(folder, long_run)


def test_ctrl_c_in_an_evaluation_saves_and_the_evaluation_is_made_after_the_resume(call, tmp_path, scripted):
    flags = tiny(more="--steps 4000 --checkpoint-every 1000s --evaluate-every 30")
    scripted(1)
    assert call(flags, out=tmp_path / "whole").code == 0
    scripted(1, KeyboardInterrupt)  # in the evaluation after update 60
    folder = tmp_path / "my run"
    result = call(flags, out=folder)
    assert result.code == 130 and f"--resume {shlex.quote(str(folder))}" in result.err
    assert read_checkpoint(folder)["update"] == 60 and "eval_return_mean" not in read_metrics(folder)[-1]
    scripted(1)
    assert call("--quiet", resume=folder).code == 0
    assert_same_run(folder, tmp_path / "whole")


@pytest.fixture
def in_update(monkeypatch):
    """in_update(k, *signals) sends them to this process in the middle of the k-th update of a2c."""

    def send(k, *signals):
        updates, step = [], optimizers.Adam.step

        def interrupted(optimizer, *args):
            updates.append(k)
            for number in signals if len(updates) == k else ():
                os.kill(os.getpid(), number)
                for _ in range(1000):  # Python calls the handler between two of its instructions
                    pass
            step(optimizer, *args)

        monkeypatch.setattr(optimizers.Adam, "step", interrupted)

    return send


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_middle_of_an_update_saves_after_it_and_the_resumed_run_is_the_same(
    call, tmp_path, in_update, number, code
):
    flags, folder = tiny("a2c", "--steps 500 --checkpoint-every 10"), tmp_path / "run"
    assert call(flags, out=tmp_path / "whole").code == 0
    handler = signal.getsignal(signal.SIGTERM)
    in_update(14, number)
    result = call(flags, out=folder)
    assert result.code == code and "interrupted at update 14" in result.err and str(folder) in result.err
    assert read_checkpoint(folder)["update"] == read_metrics(folder)[-1]["update"] == 14
    assert signal.getsignal(signal.SIGTERM) in (handler, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, handler)
    assert call("--quiet", resume=folder).code == 0
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_in_the_middle_of_an_update_ends_the_run_at_once_and_leaves_the_last_checkpoint(
    call, tmp_path, in_update, signals
):
    flags, folder = tiny("a2c", "--steps 500 --checkpoint-every 10"), tmp_path / "run"
    assert call(flags, out=tmp_path / "whole").code == 0
    handler = signal.getsignal(signal.SIGTERM)
    in_update(14, *signals)
    result = call(flags, out=folder)
    assert result.code == 128 + signals[-1] and "of update 10, is in" in result.err
    assert read_checkpoint(folder)["update"] == 10
    signal.signal(signal.SIGTERM, handler)
    assert call("--quiet", resume=folder).code == 0
    assert_same_run(folder, tmp_path / "whole")


def test_a_signal_before_the_first_checkpoint_can_be_written_says_that_there_is_none(call, tmp_path, in_update):
    in_update(1, signal.SIGINT, signal.SIGINT)
    result = call(tiny("a2c", "--steps 500"), out=tmp_path / "run")
    assert result.code == 130 and "there is no checkpoint yet" in result.err
    assert call("--quiet", resume=tmp_path / "run").code == 0
    assert call(tiny("a2c", "--steps 500"), out=tmp_path / "whole").code == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_sigterm_saves_and_the_resumed_run_is_the_same(call, tmp_path, long_run):
    process = start(*LONG.split(), "--out", tmp_path / "run")
    assert wait_for_rows(tmp_path / "run", 35, process)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in err
    assert read_checkpoint(tmp_path / "run")["update"] == len(read_metrics(tmp_path / "run"))
    assert call("--quiet", resume=tmp_path / "run").code == 0
    assert_same_run(tmp_path / "run", long_run)


def test_ctrl_c_while_a_policy_is_evaluated_is_no_traceback(call, copy, scripted):
    scripted(KeyboardInterrupt)
    assert call(evaluate=copy).code == 130


# ---- workers


def alive(pid):
    """Whether a process exists and is no zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("algo, env", [("a3c", "CartPole-v1"), ("a3c", "Pendulum-v1"), ("a2c", "CartPole-v1")])
def test_workers_train_and_the_steps_of_each_are_recorded(call, tmp_path, algo, env):
    result = call(tiny(algo, f"--env {env} --workers 2 --steps 600"), out=tmp_path / "run")
    assert result.code == 0 and result.err == ""
    rows, written = read_metrics(tmp_path / "run"), (tmp_path / "run" / "metrics.csv").read_text()
    steps = [sum(row[f"worker_{k}_steps"] for k in range(2)) for row in rows]
    assert np.cumsum(steps).tolist() == [row["env_steps"] for row in rows] and steps[0] > 0
    assert all(row["workers_restarted"] == 0 for row in rows)
    assert algo == "a2c" or all(row["staleness"] >= 0 for row in rows)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["workers_restarted"] == 0
    assert read_config(tmp_path / "run")["settings"]["workers"] == 2
    assert not multiprocessing.active_children()
    assert call(evaluate=tmp_path / "run").code == 0
    assert call(f"--quiet --steps {rows[-1]['env_steps'] + 200}", resume=tmp_path / "run").code == 0
    resumed = (tmp_path / "run" / "metrics.csv").read_text()
    assert resumed.startswith(written) and len(resumed) > len(written)


def test_a3c_has_a_worker_for_each_core_at_hand(call, tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "available_cores", lambda: 3)
    assert call(tiny("a3c", "--steps 1").replace("--workers 2", ""), out=tmp_path / "run").code == 0
    config = read_config(tmp_path / "run")
    assert config["settings"]["workers"] == 3 and config["checkpoint_every"] == "30s"


@pytest.mark.parametrize("name, tensor", [("NaNReward", "reward"), ("NaNObs", "observation")])
def test_a_nan_from_a_workers_environment_stops_the_run_and_is_named(call, tmp_path, name, tensor):
    env = f"test_environments:strange/{name}-v0"
    result = call(tiny("a3c", f"--env {env} --steps 4000 --checkpoint-every 1"), out=tmp_path / "run")
    assert_diverged(result, tmp_path / "run", {tensor})


def test_workers_that_fail_again_and_again_end_the_run_with_one_line_and_a_checkpoint(call, tmp_path, monkeypatch):
    def a3c(pool, *args, **kwargs):
        for update in whole(pool, *args, **kwargs):
            yield update
            raise WorkerError("worker 1: gave up\nafter 4 attempts")

    whole = task.rounds
    monkeypatch.setattr(task, "rounds", a3c)
    result = call(tiny("a3c", "--steps 4000 --checkpoint-every 1"), out=tmp_path / "run")
    assert_refused(result, tmp_path / "run", "worker 1: gave up after 4 attempts")
    assert read_checkpoint(tmp_path / "run")["update"] == 1
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("algo", ["a2c", "a3c"])
def test_a_call_that_fails_for_good_on_a_cluster_ends_the_run_with_one_line_and_a_checkpoint(
    algo, call, tmp_path, monkeypatch
):
    class Cluster(ThreadPoolExecutor):
        calls = 0

        def submit(self, *args):
            self.calls += 1
            return super().submit(*args) if self.calls <= 6 else super().submit(int, "no\nnumber")

    @contextlib.contextmanager
    def cluster(address):
        with Cluster(1) as executor:
            yield executor

    monkeypatch.setattr(command_line, "_cluster", cluster)
    flags = "--steps 4000 --checkpoint-every 1 --cluster tcp://127.0.0.1:9"
    result = call(tiny(algo, f"--workers 2 {flags}"), out=tmp_path / "run")
    assert_refused(result, tmp_path / "run", "ValueError on the cluster: invalid literal")
    assert read_checkpoint(tmp_path / "run")["update"] >= 1


@pytest.mark.parametrize("begun_there", [True, False])
def test_a_run_resumes_on_a_cluster_and_plays_without_it(call, tmp_path, monkeypatch, begun_there):
    cluster = lambda address: ThreadPoolExecutor(1) if address else contextlib.nullcontext()
    monkeypatch.setattr(command_line, "_cluster", cluster)
    folder, there = tmp_path / "run", " --cluster tcp://127.0.0.1:9"
    assert call(tiny("a3c", "--steps 300" + there * begun_there), out=folder).code == 0
    assert call("--quiet --steps 600" + there, resume=folder).code == 0
    theta = read_checkpoint(folder)["theta"]
    assert call(evaluate=folder).code == 0
    run = commands.load(SCRIPT, str(folder))
    np.testing.assert_array_equal(run.learner.theta, theta)


def test_a_run_without_workers_does_not_move_to_a_cluster(call, copy):
    before = contents(copy)
    assert_refused(call("--quiet --steps 400 --cluster tcp://127.0.0.1:9", resume=copy), "--cluster")
    assert contents(copy) == before


def test_a_run_goes_on_with_fewer_workers_if_its_config_says_so(call, tmp_path):
    folder = tmp_path / "run"
    assert call(tiny("a2c", "--workers 2 --steps 200"), out=folder).code == 0
    config = read_config(folder)
    config["settings"]["workers"] = 1
    write_json(folder / "config.json", config)
    assert call("--quiet --steps 400", resume=folder).code == 0
    rows = read_metrics(folder)
    assert rows[-1]["env_steps"] >= 400 and "worker_1_steps" in rows[0] and "worker_1_steps" not in rows[-1]


@pytest.mark.parametrize("algo", ["a3c", pytest.param("a2c --workers 2", marks=pytest.mark.slow)])
def test_workers_that_normalise_observations_train_and_go_on(call, tmp_path, algo):
    run = tmp_path / "run"
    name, _, more = algo.partition(" ")
    flags = tiny(name, f"{more} --env Pendulum-v1 --normalise-obs --steps 1000")
    assert call(flags, out=run).code == 0
    first = read_checkpoint(run)
    assert first["obs_count"] >= 1000
    assert call("--quiet --steps 2000", resume=run).code == 0
    assert read_checkpoint(run)["obs_count"] >= 2000


def test_a_cluster_needs_its_package_and_a_scheduler(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused = call(tiny("a2c", "--workers 2 --cluster tcp://127.0.0.1:9"), out=tmp_path / "run")
    assert_refused(refused, "npg[cluster]")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("end, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_worker_outlives_its_run(call, tmp_path, end, code):
    folder = tmp_path / "run"
    flags = tiny("a3c", "--steps 10000000 --target 1000 --checkpoint-every 2")
    process = start(*flags.split(), "--out", folder)
    assert wait_for_rows(folder, 3, process)
    children = []
    for thread in pathlib.Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # threads come and go
            children += (thread / "children").read_text().split()
    workers = list(filter(alive, children))
    assert len(workers) >= 2
    process.send_signal(end)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err
    for _ in range(50):
        if not any(map(alive, workers)):
            break
        time.sleep(0.1)
    assert not any(map(alive, workers))
    steps = int(read_checkpoint(folder)["env_steps"])
    assert call(f"--quiet --steps {steps + 1}", resume=folder).code == 0


# ---- every setting does something, or is refused


@pytest.mark.parametrize("flags, words", [
    ("--algo reinforce --baseline time --epochs 50", "--epochs has no effect with --baseline time"),
    ("--algo reinforce --baseline none --critic-learning-rate 1e-3",
     "--critic-learning-rate has no effect with --baseline none"),
    ("--algo reinforce --baseline leave-one-out --batch-size 9", "--batch-size has no effect"),
    ("--algo finite-difference --scheme forward --n-candidates 99",
     "--n-candidates has no effect with --scheme forward"),
    ("--algo finite-difference --scheme kohl-stone --optimizer rmsprop",
     "--optimizer has no effect with --scheme kohl-stone"),
    ("--algo ppo --importance plain --clip 0.1", "--clip has no effect with --importance plain"),
    ("--algo ppo --truncate 3", "--truncate has no effect with --importance clipped"),
    ("--algo actor-critic --estimation mc --proximal 1", "--proximal has no effect with --estimation mc"),
    ("--algo actor-critic --estimation mc --gradient-steps 9", "--gradient-steps has no effect with --estimation mc"),
    ("--algo actor-critic --batch-size 9", "--batch-size has no effect with --estimation td"),
    ("--algo a3c --workers 1 --optimizer adam --rms-epsilon 0.1", "--rms-epsilon has no effect with --optimizer adam"),
    ("--algo es --activation relu", "--activation has no effect with --hidden none"),
    ("--env Pendulum-v1 --components 3", "--components has no effect with --policy gaussian"),
    ("--env Pendulum-v1 --sigma state --log-std 1", "--log-std has no effect with --sigma state"),
])  # fmt: skip
def test_a_setting_that_changes_nothing_is_refused(call, tmp_path, flags, words):
    assert_refused(call(f"--quiet {flags}", out=tmp_path / "run"), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags", ["--foo", "--foo=3", "--foo 3", "--no-foo", "--no-seed", "--no-hidden", "--no-quiet", "-x", "--epsilo 1"]
)
def test_an_unknown_flag_is_refused_by_its_name(call, tmp_path, flags):
    flag = re.match(r"[^ =]+", flags).group()
    refused = call(f"--quiet --steps 1 --episodes 1 {flags}", out=tmp_path / "run")
    assert_refused(refused, f"unrecognized arguments: {flag}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--epsilons", "--temperatures"])
def test_an_empty_list_is_refused(call, tmp_path, flag):
    refused = call(f"--quiet --algo a3c --workers 1 --steps 1 --episodes 1 {flag}", out=tmp_path / "run")
    assert_refused(refused, f"argument {flag}: expected at least one number")
    assert not (tmp_path / "run").exists()


# Pendulum with episodes that take no time
gymnasium.register(
    "short/Pendulum-v1", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20, disable_env_checker=True
)
OF_THE_RUN = {*RUN, "act", "workers", "report_every"}  # they need not change what is learned
SMALL = {  # what makes a run short
    "hidden": (4,), "envs": 2, "n_steps": 8, "epochs": 2, "batch_size": 8, "learning_rate": 0.05, "workers": 1,
    "report_every": 48, "n_candidates": 4, "n_parents": 2, "n_elite": 1, "patience": 2,
}  # fmt: skip
STEPS = {  # at least two updates; the last two methods move θ only after a candidate has won twice
    **dict.fromkeys(ALGORITHMS, 150), "es": 600, "finite-difference": 2000, "hill-climbing": 3000,
    "genetic": 2400,
}  # fmt: skip


def refused_by(algo, is_box):
    """{setting: a word of the message}: settings that cannot be changed here."""
    if algo != "a3c":
        return {}
    discrete_only = {"epsilons": "Categorical", "temperatures": "Categorical"}
    refused = {"normalise_obs": "normalise_obs", "scale_rewards": "scale_rewards: expected false with workers"}
    return {**refused, **(discrete_only if is_box else {})}


def other_values(parameter, value):
    """Other values of a setting: all other choices, or one number that is far from the default."""
    of, several, _ = settings.kind(parameter)
    allowed = settings.VOCABULARY[parameter.name]
    if allowed.choices:
        return [choice for choice in allowed.choices if choice != value]
    if of is bool:
        return [not value]
    if several:
        return [tuple(2 * x or 0.5 for x in value)]
    if of is int:
        return [2 * value]
    return [value / 2 if value and value / 2 >= allowed.low else 2 * (value or 0) or 0.5]


def as_flags(values):
    flags = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(flags)


@pytest.fixture
def in_this_process(monkeypatch):
    """The actor-learners of a3c take turns in this process. This is quick, and gives the same result each time."""

    def start_pool(given, shared, timeout):
        given = [actor._replace(run=f"{actor.run} {actor.k}") for actor in given]  # each one keeps its own objects
        actors._receive(shared, given)
        return SimpleNamespace(map=map, restarted=0, kill_workers=lambda: None)

    monkeypatch.setattr(task, "start_pool", start_pool)
    monkeypatch.setattr(actors, "_given", None)


@pytest.mark.parametrize("algo, env", [
    ("reinforce", "CartPole-v1"),
    ("actor-critic", "CartPole-v1"),
    *(pytest.param(algo, "CartPole-v1", marks=pytest.mark.slow) for algo in ALGORITHMS),
    *(pytest.param(algo, "short/Pendulum-v1", marks=pytest.mark.slow) for algo in ALGORITHMS),
])  # fmt: skip
def test_every_setting_changes_what_is_learned_or_is_refused(call, tmp_path, in_this_process, algo, env):
    is_box = env != "CartPole-v1"
    everything, cannot_be = SCRIPT.settings_of(algo, is_box), refused_by(algo, is_box)
    parameters = {name: p for name, p in everything.items() if name not in OF_THE_RUN or name in SMALL}
    small = {name: value for name, value in SMALL.items() if name in parameters and (name, algo) != ("workers", "a2c")}
    if algo in SCRIPT.searches:
        small.pop("workers")
    start = {**{name: p.default for name, p in parameters.items()}, **small}
    results = {}

    def learned(values):
        """θ at the end, or the message if the values are refused. Values that change nothing are left out."""
        while idle := settings.without_effect(parameters, values):
            values = {**values, idle[0]: parameters[idle[0]].default}
        given = as_flags({name: value for name, value in values.items() if value != parameters[name].default})
        if given not in results:
            folder = tmp_path / str(len(results))
            flags = f"--quiet --target 1000 --episodes 1 --evaluate-every 1000 --steps {STEPS[algo]}"
            result = call(f"{flags} --algo {algo} --env {env} {given}", out=folder)
            if result.code:
                assert_refused(result)
            results[given] = result.err if result.code else read_checkpoint(folder)["theta"]
        return results[given]

    def same(one, other):
        return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=1e-6)

    theta = learned(start)
    assert read_checkpoint(tmp_path / "0")["update"] >= 2
    results.clear()
    shutil.rmtree(tmp_path / "0")
    assert same(theta, learned(start)), "not even the same command line gives the same θ"
    without_effect = []
    for name in everything:
        if name in OF_THE_RUN:
            continue
        base = start
        for other, values in settings.VOCABULARY[name].only_with.items():
            if other in base and base[other] not in values:
                base = {**base, other: values[0]}
        for value in other_values(parameters[name], base[name]):
            theta = learned({**base, name: value})
            if isinstance(theta, str):
                assert cannot_be.get(name, "nothing that was expected") in theta
            elif same(theta, learned(base)):
                without_effect.append((name, value))
    # In one dimension there are no correlations: the Cholesky factor of Σ is σ.
    assert set(without_effect) <= {("policy", "multivariate")}


# ---- environments that fail


@pytest.mark.parametrize("algo", ["ppo", "es"])
@pytest.mark.parametrize(
    "env, words",
    [
        ("raise-init", "its creation raised ValueError: the user's mistake in two lines"),
        ("exit-reset", "reset raised SystemExit: 0"),
        ("odd-step", "step raised Odd: 1 2"),
        ("shape", "step raised ValueError"),
    ],
)
def test_an_environment_that_fails_is_told_of_in_one_line_and_its_traceback_is_kept(call, tmp_path, algo, env, words):
    result = call(f"{tiny(algo)} --steps 300 --env nasty:{env}-v0", out=tmp_path / "run")
    assert result.code == 4 and result.out == ""
    assert re.fullmatch(rf"\S+: environment nasty:{env}-v0: .+\n", result.err) and words in result.err
    text = (tmp_path / "run" / "error.txt").read_text()
    assert "Traceback" in text and "nasty.py" in text or env == "shape"


def test_an_environment_that_fails_to_render_is_told_of_in_one_line(call, tmp_path):
    assert call(f"{tiny()} --steps 100 --env nasty:print-reset-v0", out=tmp_path / "run").code == 0
    result = call("", gif=tmp_path / "run")
    words = "environment nasty:print-reset-v0: render raised ValueError: the user's mistake in two lines"
    assert result.code == 4 and words in result.err and result.err.count("\n") == 1
    assert "nasty.py" in (tmp_path / "run" / "error.txt").read_text()
    assert not (tmp_path / "run" / "policy.gif").exists()


def test_an_environment_that_fails_after_a_checkpoint_leaves_that(call, tmp_path):
    result = call(f"{tiny()} --checkpoint-every 1 --steps 300 --env nasty:raise-step-v0", out=tmp_path / "run")
    assert result.code == 4 and "the last good checkpoint, of update" in result.err
    assert int(read_checkpoint(tmp_path / "run")["update"]) >= 1


@pytest.mark.slow
def test_an_environment_that_fails_in_a_worker_is_told_of_as_well(call, tmp_path):
    result = call(f"{tiny('a2c')} --workers 1 --steps 300 --env nasty:exit-reset-v0", out=tmp_path / "run")
    assert result.code == 4 and "reset raised SystemExit: 0" in result.err and result.err.count("\n") == 1
    assert "nasty.py" in (tmp_path / "run" / "error.txt").read_text()


# ---- one folder, one run; files that somebody damages


@pytest.mark.parametrize("flag", ["resume", "out"])
def test_a_folder_in_use_is_refused_and_untouched(call, copy, flag):
    with taken(copy):
        before = contents(copy)
        assert_refused(call("--quiet --steps 1", **{flag: copy}), "another run is writing here")
        assert contents(copy) == before


def test_metrics_deleted_while_training_are_written_again(call, tmp_path, monkeypatch):
    record = Run.record

    def delete(run, update):
        if run.update == 3:
            (run.folder / "metrics.csv").unlink()
        record(run, update)

    monkeypatch.setattr(Run, "record", delete)
    assert call(tiny(more="--steps 300"), out=tmp_path / "run").code == 0
    updates = [row["update"] for row in read_metrics(tmp_path / "run")]
    assert updates == list(range(1, int(read_checkpoint(tmp_path / "run")["update"]) + 1))


@pytest.mark.parametrize(
    "change", [lambda rows: [], lambda rows: rows[:1] + rows[2:], lambda rows: rows[:2] + rows[1:]],
    ids=["emptied", "a row lost", "a row twice"],
)  # fmt: skip
def test_metrics_that_do_not_fit_the_checkpoint_are_refused_before_anything_is_written(call, copy, change):
    path = copy / "metrics.csv"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    before = contents(copy)
    assert_refused(call("--quiet --steps 900", resume=copy), "metrics.csv", "damaged")
    assert contents(copy) == before


@pytest.mark.parametrize("flag", ["resume", "evaluate"])
def test_nan_in_a_checkpoint_and_one_that_is_compressed_are_refused(call, copy, flag):
    path = copy / "checkpoint.npz"
    good = read_checkpoint(copy)
    np.savez(path, **{**good, "theta": good["theta"] * np.nan})
    assert_refused(call("--quiet", **{flag: copy}), "theta holds NaN")
    np.savez_compressed(path, **{**good, "more": np.zeros(10**6)})
    assert_refused(call("--quiet", **{flag: copy}), "its header announces more data than the file holds")


def test_a_finished_run_on_a_full_disk_keeps_its_result(call, copy, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    before = contents(copy)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert_refused(call("--quiet", resume=copy), "No space left")
    assert contents(copy) == before


def test_a_gif_that_is_interrupted_leaves_the_old_one(call, copy, monkeypatch):
    (copy / "policy.gif").write_bytes(b"old")

    def interrupt(file, pictures, fps):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "gif", interrupt)
    before = contents(copy)
    assert call("--quiet", gif=copy).code == 130
    assert contents(copy) == before


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda config: config.update(evaluate_from="x"), "evaluate_from"),
        (lambda config: config.update(cluster="tcp://a:1"), "cluster"),
        (lambda config: config.update(cluster=[1]), "cluster"),
        (lambda config: config.update(env=["CartPole-v1"]), "env"),
        (lambda config: config.update(steps=None), "steps"),
        (lambda config: config.update(episodes=2**63), "2^63"),
        (lambda config: config["settings"].update(envs=10**12), "memory"),
        (lambda config: config["settings"].update(gamma=-1), "gamma"),
    ],
)
def test_a_config_is_checked_like_the_command_line(call, copy, change, words):
    path = copy / "config.json"
    path.write_text(edited(path.read_text(), change))
    before = contents(copy)
    for flag in ("resume", "evaluate"):
        if not (words == "cluster" and flag == "resume"):  # there, the scheduler is looked for first
            assert_refused(call("--quiet", **{flag: copy}), words)
    assert contents(copy) == before


def test_a_config_nested_too_deeply_is_refused(call, copy):
    (copy / "config.json").write_text("[" * 100_000)
    assert_refused(call("--quiet", evaluate=copy), "nested too deeply")


@pytest.mark.parametrize("flags", ["--hidden 100000 100000", "--envs 1000000000000", "--episodes 100000000000",
                                   "--algo es --n-candidates 1000000000000"])
def test_what_cannot_fit_into_memory_is_refused_before_anything_is_made(call, tmp_path, flags):
    name = re.search(r"--(hidden|envs|episodes|n-candidates)", flags)[1].replace("-", "_")
    assert_refused(call(f"--quiet {flags}", out=tmp_path / "run"), f"{name}: ", "memory")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_scripts_work_without_docstrings_and_with_any_backend(tmp_path):
    env = {**os.environ, "MPLBACKEND": "bogus"}
    command = [sys.executable, "-OO", PATH, *tiny(more="--steps 100").split(), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stderr == "" and (tmp_path / "run" / "learning_curve.png").exists()
