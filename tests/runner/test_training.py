"""A run trains until the target, the budget or a NaN ends it, with workers and without, and its result says how."""

import contextlib
import json
import multiprocessing
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import test_environments  # noqa: F401  registers the environments "strange/…"
from running import SCRIPT, SERIAL, TINY, assert_refused, contents, tiny, updates_and_result

from npg import optimizers
from npg.reinforce import BASELINES
from npg.runner import command_line, commands, playing, runs, task
from npg.runner.folder import write_json
from npg.runner.metrics import read_metrics
from npg.runner.saved import read_checkpoint, read_config
from npg.runner.workers import WorkerError

pytestmark = pytest.mark.usefixtures("quick_workers", "quick_disk", "no_figures")


# The result


def test_the_result_is_that_of_the_run(finished):
    result, rows = json.loads((finished / "result.json").read_text()), read_metrics(finished)
    assert {"env": "CartPole-v1", "algo": "ppo", "seed": 0, "solved": False}.items() <= result.items()
    assert (result["updates"], result["env_steps"]) == (rows[-1]["update"], rows[-1]["env_steps"])
    assert result["seconds"] == pytest.approx(rows[-1]["seconds"], rel=1e-5)
    assert result["eval_episodes"] == 2 and result["eval_return_mean"] >= 2 and result["eval_return_std"] >= 0
    assert result["workers_restarted"] == 0


def test_the_budget_of_steps_ends_the_run(finished):
    *_, last_but_one, last = read_metrics(finished)
    assert last_but_one["env_steps"] < 300 <= last["env_steps"] < 300 + 2 * 8


def test_another_seed_gives_another_theta(call, tmp_path, finished):
    assert call(tiny(more="--steps 300 --seed 1"), out=tmp_path / "run").code == 0
    assert not np.array_equal(read_checkpoint(tmp_path / "run")["theta"], read_checkpoint(finished)["theta"])


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

    flags = tiny(more="--steps 8000 --episodes 5 --checkpoint-every 9 --evaluate-every 3").split()
    assert command_line.main(SCRIPT._replace(make_envs=make_envs), [*flags, "--out", str(tmp_path / "run")]) == 0
    trained, evaluated = ([seed for run in seeds[n] for seed in run] for n in (2, 5))
    assert len(trained) == 2 and len(evaluated) > 20  # training seeds its environments only once
    assert not set(trained) & set(evaluated)
    assert len(set(evaluated)) == len(evaluated)


def test_seconds_leave_evaluation_out(call, tmp_path, monkeypatch):
    play, slept = playing.play, []
    monkeypatch.setattr(playing, "play", lambda *args: slept.append(1000) or play(*args))
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + sum(slept), monotonic=time.monotonic)
    monkeypatch.setattr(runs, "time", clock)
    assert call(tiny(more="--steps 100 --evaluate-every 3"), out=tmp_path / "run").code == 0
    assert sum("eval_return_mean" in row for row in read_metrics(tmp_path / "run")) < len(slept)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["seconds"] < 1000


@pytest.mark.parametrize("more", ["--algo ppo", "--algo a2c --workers 1", "--algo es"])
def test_normalised_discrete_observations_are_saved_and_played(call, tmp_path, more):
    algo, _, rest = more.removeprefix("--algo ").partition(" ")
    flags = tiny(algo, f"{rest} --env FrozenLake-v1 --normalise-obs --steps 300")
    assert call(flags, out=tmp_path / "run").code == 0
    assert np.ptp(read_checkpoint(tmp_path / "run")["obs_mean"]) > 0.01
    assert call("--quiet", evaluate=tmp_path / "run").code == 0
    assert call("--quiet --steps 600", resume=tmp_path / "run").code == 0


# The start from another run's policy


ROUNDS = "--report-every 100"  # of TINY["a3c"]; has no effect on a cluster
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


@pytest.mark.parametrize("algo, small_steps", [
    *(("es", "--learning-rate 1e-12"), ("finite-difference", "--learning-rate 1e-12")),
    *(("hill-climbing", "--search-log-std -20"), ("genetic", "--search-log-std -20")),
])
def test_a_search_may_start_from_another_policy(call, tmp_path, algo, small_steps):
    first, run = tmp_path / "first", tmp_path / "run"
    assert call(tiny("reinforce", "--steps 1"), out=first).code == 0
    assert call(tiny(algo, f"--steps 1 --start-from {first} {small_steps}"), out=run).code == 0
    start, new = read_checkpoint(first)["theta"], read_checkpoint(run)
    for name in {"theta", "x", "x_start", "parents"} & new.keys():
        np.testing.assert_allclose(new[name], np.broadcast_to(start, new[name].shape), atol=1e-6)


def test_a_policy_of_another_activation_is_no_start(call, tmp_path, finished):
    result = call(tiny(more=f"--activation relu --steps 1 --start-from {finished}"), out=tmp_path / "run")
    assert_refused(result, "--start-from", "expected a policy with activation relu, found activation tanh")


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
        (f"--hidden 5 --start-from {finished}", "expected a policy with hidden [5], found hidden"),
        (f"--normalise-obs --start-from {finished}", "with normalise_obs True, found normalise_obs False"),
        (f"--env Acrobot-v1 --start-from {finished}", "expected theta"),
        (f"--env Pendulum-v1 --no-normalise-obs --start-from {finished}", "over Box actions, found Discrete"),
    ):
        assert_refused(call(tiny(more=more), out=tmp_path / "run"), "start-from" if "theta" in words else words, words)
        assert not (tmp_path / "run").exists()
    assert_refused(call("--steps 900 --start-from x", resume=finished), "--start-from", "--resume")


# The target


def test_a_search_stops_when_an_evaluation_and_a_second_one_reach_the_target(call, tmp_path, scripted):
    asked = scripted(1, 60, 40, 50, 51)  # update 14; 21 and its confirmation, failed; 28 and its confirmation
    result = call(tiny("es", "--steps 20000 --target 50"), out=tmp_path / "run")
    assert result.code == 0 and result.out.startswith("solved")
    assert updates_and_result(tmp_path / "run") == (28, True, 51)
    assert len(set(asked)) == 5
    assert read_metrics(tmp_path / "run")[-1]["env_steps"] < 20000


def test_the_budget_ends_an_unsolved_run_with_an_evaluation_of_its_last_policy(call, tmp_path, scripted):
    scripted(49, 1)  # the second with the most likely actions
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


def test_the_environments_threshold_is_the_target_unless_another_is_given(call, tmp_path):
    for env, given, target in (
        ("CartPole-v1", "", 475.0),
        ("CartPole-v1", "--target 0", 0.0),
        ("CartPole-v1", "--target none", None),
        ("Pendulum-v1", "", None),
        ("Pendulum-v1", "--target -200", -200.0),
        ("strange/Plain-v0", "", 5.0),
        ("test_environments:strange/Plain-v0", "", 5.0),
        ("CartPole", "", 475.0),
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        assert call(tiny(more=f"--env {env} --steps 1 {given}"), out=folder).code == 0
        assert read_config(folder)["target"] == json.loads((folder / "result.json").read_text())["target"] == target


def test_a_resumed_run_may_have_another_target(call, copy):
    assert call("--quiet --steps 400 --target 7", resume=copy).code == 0
    assert read_config(copy)["target"] == 7.0
    result = call("--quiet --steps 500 --target none", resume=copy)
    assert result.out.startswith("finished") and read_config(copy)["target"] is None


def test_without_a_target_nothing_is_called_solved_or_unsolved(call, tmp_path):
    assert "solved" not in call(tiny(more="--env Pendulum-v1 --steps 1"), out=tmp_path / "run").out


# The learning rate


def test_the_learning_rate_falls_in_a_line_from_its_initial_value_to_0(call, tmp_path, monkeypatch):
    fractions, step = [], optimizers.RMSProp.step  # the fraction of the initial rate in each update

    def spy(optimizer, *args):
        fractions.append(optimizer.learning_rate / 2e-3)
        step(optimizer, *args)

    monkeypatch.setattr(optimizers.RMSProp, "step", spy)
    assert call(tiny("a2c", "--steps 320 --learning-rate 2e-3"), out=tmp_path / "run").code == 0
    before = [0, *(row["env_steps"] for row in read_metrics(tmp_path / "run"))][:-1]
    np.testing.assert_allclose(fractions, 1 - np.array(before) / 320)
    assert fractions[0] == 1 and 0 < fractions[-1] <= 16 / 320
    fractions.clear()
    assert call(tiny("a2c", "--steps 320 --learning-rate 2e-3 --no-anneal"), out=tmp_path / "other").code == 0
    assert set(fractions) == {1}


def test_a_resumed_runs_learning_rate_goes_on_where_it_was(call, tmp_path, monkeypatch):
    assert call(tiny("a2c", "--steps 320 --learning-rate 2e-3"), out=tmp_path / "run").code == 0
    rates, step = [], optimizers.RMSProp.step
    monkeypatch.setattr(
        optimizers.RMSProp, "step", lambda self, *args: rates.append(self.learning_rate) or step(self, *args)
    )
    done = read_checkpoint(tmp_path / "run")["env_steps"]
    assert call("--quiet --steps 640", resume=tmp_path / "run").code == 0
    assert rates[0] == pytest.approx(2e-3 * (1 - done / 640))


# NaN


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


@pytest.mark.parametrize("name, tensor", [("NaNReward", "reward"), ("NaNObs", "observation")])
def test_a_nan_from_a_workers_environment_stops_the_run_and_is_named(call, tmp_path, name, tensor):
    env = f"test_environments:strange/{name}-v0"
    result = call(tiny("a3c", f"--env {env} --steps 4000 --checkpoint-every 1"), out=tmp_path / "run")
    assert_diverged(result, tmp_path / "run", {tensor})


@pytest.mark.parametrize("algo", [algo for algo in SERIAL if "learning_rate" in SCRIPT.settings_of(algo, False)])
def test_a_learning_rate_beyond_all_bounds_stops_the_run_and_the_tensor_is_named(call, tmp_path, algo):
    assert call(tiny(algo, "--steps 1"), out=tmp_path / "sound").code == 0
    result = call(tiny(algo, "--steps 2000 --learning-rate 1e42"), out=tmp_path / "run")
    assert_diverged(result, tmp_path / "run", {"norm of the gradient", *read_checkpoint(tmp_path / "sound")})


# Workers


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
    result = call(tiny(algo, f"--workers 2 {flags}").replace(ROUNDS, ""), out=tmp_path / "run")
    assert_refused(result, tmp_path / "run", "ValueError on the cluster: invalid literal")
    assert read_checkpoint(tmp_path / "run")["update"] >= 1


@pytest.mark.parametrize("begun_there", [True, False])
def test_a_run_resumes_on_a_cluster_and_plays_without_it(call, tmp_path, monkeypatch, begun_there):
    cluster = lambda address: ThreadPoolExecutor(1) if address else contextlib.nullcontext()
    monkeypatch.setattr(command_line, "_cluster", cluster)
    folder, there = tmp_path / "run", " --cluster tcp://127.0.0.1:9"
    flags = tiny("a3c", "--steps 300")
    assert call(flags.replace(ROUNDS, "") + there if begun_there else flags, out=folder).code == 0
    assert call("--quiet --steps 600" + there, resume=folder).code == 0
    theta = read_checkpoint(folder)["theta"]
    assert call(evaluate=folder).code == 0
    run = commands.load(SCRIPT, str(folder))
    np.testing.assert_array_equal(run.learner.theta, theta)


def test_a_run_without_workers_does_not_move_to_a_cluster(call, copy):
    before = contents(copy)
    assert_refused(call("--quiet --steps 400 --cluster tcp://127.0.0.1:9", resume=copy), "--cluster")
    assert contents(copy) == before


def test_a_cluster_needs_its_package_and_a_scheduler(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused = call(tiny("a2c", "--workers 2 --cluster tcp://127.0.0.1:9"), out=tmp_path / "run")
    assert_refused(refused, "npg[cluster]")
    assert not (tmp_path / "run").exists()
