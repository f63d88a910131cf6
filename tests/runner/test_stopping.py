"""A run that is saved, interrupted, killed or out of disk space, and then resumed, ends as if nothing had happened.

Most tests call `main` in this process. If a process must die, the test starts another process. It is not a fork of
this process, because earlier tests leave threads here, and a fork of a process with threads can crash.
"""

import contextlib
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

import gymnasium
import hypothesis
import numpy as np
import pytest
import test_environments  # noqa: F401  registers the environments "strange/…"
from hypothesis import strategies as st
from running import (
    PATH,
    SCRIPT,
    SERIAL,
    STEPS,
    Result,
    assert_refused,
    assert_same_run,
    contents,
    final_state,
    tiny,
    train,
    updates_and_result,
)
from test_workers import eventually, lives

from npg import optimizers
from npg.runner import command_line, runs
from npg.runner.folder import write_json
from npg.runner.metrics import read_metrics
from npg.runner.saved import read_checkpoint, read_config

pytestmark = pytest.mark.usefixtures("quick_workers", "quick_disk", "no_figures")


# Saving leaves training alone


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


# Resumed


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


def test_a_budget_below_the_steps_that_are_made_is_refused_and_one_that_is_spent_is_named(call, copy):
    before, made = contents(copy), int(read_checkpoint(copy)["env_steps"])
    assert_refused(call("--quiet --steps 100", resume=copy), f"--steps: expected at least {made}, the steps", "got 100")
    assert contents(copy) == before
    result = call("--quiet", resume=copy)
    line = f"{copy}: the budget of 300 steps is spent; a larger --steps continues the run\n"
    assert result.code == 0 and result.err == line


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
    flags = tiny("a2c", f"--env test_environments:strange/{name}-v0 {workers} --steps 400 --optimizer adam")
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


# Killed


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
    child = multiprocessing.get_context("forkserver").Process(target=train, args=(command,))
    child.start()
    if wait_for_rows(folder, n_rows, child):
        time.sleep(rng.uniform(0, 0.005))
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
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


needs_fork_server = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="a new interpreter for each kill is slow"
)


def check_killed(tmp_path, flags, kills, seed):
    argv = flags.split()
    assert command_line.main(SCRIPT, [*argv, "--out", str(tmp_path / "whole")]) == 0
    n_updates = read_metrics(tmp_path / "whole")[-1]["update"]
    killed_and_resumed(argv, tmp_path / "killed", n_updates, kills, random.Random(seed))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    whole, killed = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == [n for n in whole if n.endswith("seconds")]


@needs_fork_server
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


@needs_fork_server
@pytest.mark.slow
@pytest.mark.parametrize("period", ["1", "13", "0.05s"])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1 --normalise-obs", "FrozenLake-v1"])
@pytest.mark.parametrize("algo", SERIAL)
def test_every_algorithm_survives_being_killed(tmp_path, algo, env, period):
    anneal = "--anneal" if "anneal" in SCRIPT.settings_of(algo, False) else ""
    flags = tiny(algo, f"--env {env} --steps 2000 --checkpoint-every {period} {anneal}")
    check_killed(tmp_path, flags, kills=5, seed=1)


@needs_fork_server
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


# Ctrl-C and SIGTERM


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


def test_ctrl_c_after_the_result_is_written_does_not_hide_it(call, tmp_path, monkeypatch):
    finish = runs.Run.finish

    def interrupted(run):
        result = finish(run)
        run.stopped = signal.SIGINT
        return result

    monkeypatch.setattr(runs.Run, "finish", interrupted)
    result = call(tiny(more="--steps 100"), out=tmp_path / "run")
    assert result.code == 0 and "  evaluate " in result.out and "interrupted" not in result.err


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
    scripted(1, KeyboardInterrupt)  # in the second evaluation
    folder = tmp_path / "my run"
    result = call(flags, out=folder)
    assert result.code == 130 and f"--resume {shlex.quote(str(folder))}" in result.err
    assert (folder / "learning_curve.png").exists()
    second = [row["update"] for row in read_metrics(tmp_path / "whole") if "eval_return_mean" in row][1]
    assert read_checkpoint(folder)["update"] == second and "eval_return_mean" not in read_metrics(folder)[-1]
    scripted(1)
    assert call("--quiet", resume=folder).code == 0
    assert_same_run(folder, tmp_path / "whole")


@pytest.fixture
def in_update(monkeypatch):
    """in_update(k, *signals) sends them to this process in the middle of the k-th update of a2c."""

    def send(k, *signals):
        updates, step = [], optimizers.RMSProp.step

        def interrupted(optimizer, *args):
            updates.append(k)
            for number in signals if len(updates) == k else ():
                os.kill(os.getpid(), number)
                for _ in range(1000):  # Python calls the handler between two of its instructions
                    pass
            step(optimizer, *args)

        monkeypatch.setattr(optimizers.RMSProp, "step", interrupted)

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
    workers = list(filter(lives, children))
    assert len(workers) >= 2
    process.send_signal(end)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err
    eventually(lambda: not any(map(lives, workers)))
    steps = int(read_checkpoint(folder)["env_steps"])
    assert call(f"--quiet --steps {steps + 1}", resume=folder).code == 0


# A full disk


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


def test_a_finished_run_on_a_full_disk_keeps_its_result(call, copy, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    before = contents(copy)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert_refused(call("--quiet", resume=copy), "No space left")
    assert contents(copy) == before
