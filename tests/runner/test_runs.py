"""A run on disk may be killed at any moment. After a resume it continues as if nothing had happened.

The runs here are random walks: θ after k updates depends on every random number drawn before.
"""

import errno
import itertools
import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.wrappers.vector import NormalizeObservation
from running import rewritten
from walks import (
    CONFIG,
    Task,
    advance,
    begin,
    contents,
    make_run,
    new_run,
    resume,
    saved_update,
    train,
    without_seconds,
)

from npg.rollout import Sampler
from npg.runner import runs
from npg.runner.environments import ReplayableVectorEnv, make_envs, moments
from npg.runner.folder import RunError
from npg.runner.metrics import read_metrics
from npg.runner.playing import CONFIRMING, FINAL, GREEDY, MORE, POINT
from npg.runner.replaying import below, flat, restore, state_of
from npg.runner.runs import Diverged
from npg.runner.saved import read_checkpoint, read_config

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize("period", ["1", "4", "5", "1000", "1e-9s", "1000s", "none"])
def test_a_run_killed_after_any_update_and_resumed_is_the_uninterrupted_run_bit_for_bit(tmp_path, period):
    n = 60 if period.endswith("s") else 24
    uninterrupted = begin(tmp_path / "whole", n, period=period)
    for killed_at in (0, n // 4, n // 2 + 1, n - 1):
        folder = tmp_path / str(killed_at)
        begin(folder, killed_at, period=period)  # nothing else is saved, as after SIGKILL
        again = resume(folder, period=period)
        assert again.update <= killed_at
        advance(again, min(3, n - again.update))  # killed a second time
        again = resume(folder, period=period)
        advance(again, n - again.update)
        np.testing.assert_array_equal(again.learner.theta, uninterrupted.learner.theta)
        assert again.learner.arrays["theta.t"] == n
        assert (again.update, again.env_steps, again.episodes) == (n, uninterrupted.env_steps, uninterrupted.episodes)
        rows = read_metrics(folder)
        assert [row["update"] for row in rows] == list(range(1, n + 1))
        assert without_seconds(rows) == without_seconds(read_metrics(tmp_path / "whole"))


def test_a_run_that_goes_on_has_no_result_yet(tmp_path):
    result = begin(tmp_path, 5).finish()
    assert json.loads((tmp_path / "result.json").read_text()) == result and result["eval_return_mean"] == 1.5
    advance(resume(tmp_path), 3)
    assert not (tmp_path / "result.json").exists()


def test_the_seconds_of_a_run_go_on_where_its_checkpoint_left_them(tmp_path):
    run = begin(tmp_path, 5, spoil=lambda k, update, arrays: time.sleep(0.01))
    again = resume(tmp_path)
    assert again.seconds == run.seconds >= 0.05
    advance(again, 3)
    seconds = [row["seconds"] for row in read_metrics(tmp_path)]
    assert len(seconds) == 8 and seconds == sorted(seconds)


def test_checkpoints_come_every_n_updates(tmp_path):
    run = begin(tmp_path, period="5")
    found = [saved_update(tmp_path)]
    for _ in zip(range(11), train(run)):
        found.append(saved_update(tmp_path))
    assert found == [None, None, None, None, None, 5, 5, 5, 5, 5, 10, 10]


def test_checkpoints_by_the_clock_come_with_the_first_update_after_the_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    run = begin(tmp_path, period="60s")
    found = []
    for seconds in (0, 50, 70, 80, 129, 131):
        now[0] = 100.0 + seconds
        advance(run, 25)
        found.append(saved_update(tmp_path))
    assert found == [None, None, 51, 51, 51, 126]


def test_saving_by_the_clock_takes_at_most_one_percent_of_the_time(tmp_path, monkeypatch):
    now, savez, cost, saved_at = [0.0], np.savez, [2.0], []
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])

    def slow(*args, **kwargs):
        saved_at.append(now[0])
        now[0] += cost[0]
        savez(*args, **kwargs)

    monkeypatch.setattr(np, "savez", slow)
    run = begin(tmp_path, period="30s")
    for k, _ in enumerate(zip(range(1000), train(run))):  # each update takes a second
        now[0] += 1
        cost[0] = 2.0 if k < 500 else 0.1
    passed = np.diff(saved_at)  # from the beginning of one save to that of the next
    assert saved_at[0] == 30
    np.testing.assert_allclose(passed[:2], 2 + 200)
    np.testing.assert_allclose(passed[-3:], 0.1 + 30)


def test_without_a_period_the_only_checkpoint_is_that_of_the_end(tmp_path):
    run = begin(tmp_path, 60, period="none")
    assert saved_update(tmp_path) is None
    run.finish()
    assert saved_update(tmp_path) == 60


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    begin(tmp_path / "killed", 4)
    again, whole = resume(tmp_path / "killed"), begin(tmp_path / "whole", 7)
    assert again.update == 0 and again.rows == [] and again.last_checkpoint() == "there is no checkpoint yet"
    advance(again, 7)
    np.testing.assert_array_equal(again.learner.theta, whole.learner.theta)
    assert without_seconds(read_metrics(tmp_path / "killed")) == without_seconds(read_metrics(tmp_path / "whole"))


def test_an_interrupted_run_is_saved_exactly_where_it_stands(tmp_path):
    run = begin(tmp_path, 47, period="1000s")
    assert saved_update(tmp_path) is None
    run.save_where_it_stands()
    assert saved_update(tmp_path) == 47 and "of update 47, is in" in run.last_checkpoint()
    again = advance(resume(tmp_path, period="1000s"), 13)
    np.testing.assert_array_equal(again.learner.theta, advance(run, 13).learner.theta)


def test_a_run_is_saved_neither_in_the_middle_of_an_update_nor_twice(tmp_path, monkeypatch):
    run, saves = begin(tmp_path, 10), []
    monkeypatch.setattr(run, "save", lambda: saves.append(run.update))
    run.save_where_it_stands()  # the checkpoint is of update 10 already
    advance(run, 1)
    assert not run.is_over()  # an update begins
    run.learner.theta += 1
    run.save_where_it_stands()
    assert saves == []
    run.record(next(run.learner.updates))
    run.save_where_it_stands()
    assert saves == [12]


def test_a_signal_ends_a_run_after_the_update_under_way_and_a_second_one_at_once(tmp_path):
    run = begin(tmp_path)
    assert not run.is_over()
    run.stop(15, None)
    run.record(next(run.learner.updates))
    assert run.is_over() and run.stopped == 15 and run.update == 1
    with pytest.raises(KeyboardInterrupt):
        run.stop(2, None)
    assert run.stopped == 2


def test_a_signal_ends_an_evaluation_at_once_and_the_resumed_run_makes_it(tmp_path):
    run = make_run(tmp_path / "stopped", period="none")
    run.player.returns = lambda *args: run.stop(2, None)
    run.create()
    with pytest.raises(KeyboardInterrupt):
        advance(run, 20)
    run.save_where_it_stands()
    assert saved_update(tmp_path / "stopped") == 4 and "eval_return_mean" not in read_metrics(tmp_path / "stopped")[-1]
    again, whole = advance(resume(tmp_path / "stopped", period="none"), 3), begin(tmp_path / "whole", 7, period="none")
    np.testing.assert_array_equal(again.learner.theta, whole.learner.theta)
    assert without_seconds(read_metrics(tmp_path / "stopped")) == without_seconds(read_metrics(tmp_path / "whole"))
    assert "eval_return_mean" in read_metrics(tmp_path / "stopped")[3]


def test_a_second_signal_just_after_a_row_was_written_does_not_write_it_twice(tmp_path):
    run = begin(tmp_path, 2, period="none")
    write = run.metrics.writer.writerows

    def interrupted(rows):
        write(rows)
        run.metrics.writer.writerows = write
        raise KeyboardInterrupt

    run.metrics.writer.writerows = interrupted
    with pytest.raises(KeyboardInterrupt):
        advance(run, 1)
    run.save_where_it_stands()
    assert saved_update(tmp_path) == 3
    assert [row["update"] for row in resume(tmp_path).rows] == [1, 2, 3]
    assert [row["update"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_environments_that_do_not_come_back_are_reported_once_and_in_the_result(tmp_path, capsys):
    begin(tmp_path, 7)
    run = make_run(tmp_path)
    run.task.take = lambda saved: False
    run.resume()
    assert capsys.readouterr().err == ""
    run.replay()
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "new episodes begin" in said and said.count("\n") == 1
    advance(run, 13)
    run.save()
    assert capsys.readouterr().err == ""
    again = resume(tmp_path)  # here the environments come back
    advance(again, 3)
    assert again.finish()["new_episodes_after"] == [5] == json.loads((tmp_path / "result.json").read_text())[
        "new_episodes_after"
    ]
    assert begin(tmp_path / "another", 3).finish()["new_episodes_after"] == []


def test_a_finished_run_is_saved_as_it_is(tmp_path):
    run = begin(tmp_path, 7)
    result = run.finish()
    saved = read_checkpoint(tmp_path)
    assert saved["update"] == 7 and saved["theta.t"] == 7
    np.testing.assert_array_equal(saved["theta"], run.learner.theta)
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_a_checkpoint_loads_without_pickle_and_holds_the_whole_state(tmp_path):
    run = begin(tmp_path, 5)
    with np.load(tmp_path / "checkpoint.npz", allow_pickle=False) as file:
        saved = dict(file)
    assert {"theta", "theta.t", "update", "env_steps", "episodes", "seconds"} <= saved.keys()
    assert saved["env_steps"] == run.env_steps and saved["episodes"] == run.episodes
    np.testing.assert_array_equal(saved["theta"], run.learner.theta)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_kill_while_the_checkpoint_is_written_leaves_the_old_one(tmp_path, monkeypatch, moment):
    uninterrupted = begin(tmp_path / "whole", 14)
    folder = tmp_path / "killed"
    run = begin(folder, 9)
    before = contents(folder)["checkpoint.npz"]

    def kill(*args):
        raise Killed

    def half(file, **arrays):
        file.write(before[: len(before) // 2])
        raise Killed

    where, what = {"write": (np, "savez"), "fsync": (os, "fsync"), "replace": (os, "replace")}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(where, what, half if moment == "write" else kill)
        with pytest.raises(Killed):
            advance(run, 1)
    assert contents(folder)["checkpoint.npz"] == before
    assert read_checkpoint(folder)["update"] == 5
    again = advance(resume(folder), 9)
    np.testing.assert_array_equal(again.learner.theta, uninterrupted.learner.theta)


def test_a_temporary_file_left_behind_is_ignored_and_replaced(tmp_path):
    begin(tmp_path, 6)
    (tmp_path / "checkpoint.npz.tmp").write_bytes(b"half a chec")
    again = advance(resume(tmp_path), 5)
    assert again.update == saved_update(tmp_path) == 10
    assert not (tmp_path / "checkpoint.npz.tmp").exists()


@pytest.mark.parametrize("calls", range(1, 7))
def test_a_run_killed_while_its_folder_is_made_can_be_resumed(tmp_path, monkeypatch, calls):
    """The kill comes when the first, second, … file is renamed. Without config.json there is no run yet."""
    replace, count = os.replace, [0]

    def kill_at(*args):
        count[0] += 1
        if count[0] == calls:
            raise Killed
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill_at)
        try:
            begin(tmp_path / "run", 6)
        except Killed:
            pass
    whole = begin(tmp_path / "whole", 7)
    try:
        read_config(tmp_path / "run")
    except RunError:
        again = begin(tmp_path / "run")
    else:
        again = resume(tmp_path / "run")
    advance(again, 7 - again.update)
    np.testing.assert_array_equal(again.learner.theta, whole.learner.theta)
    assert [row["update"] for row in read_metrics(tmp_path / "run")] == list(range(1, 8))


def learning(folder, returns, evaluations, algo="walk", target=10.0, **changes):
    """A `Run` with one episode per update. evaluations: {(update, purpose): mean}; run.asked lists the calls."""
    rng, arrays, asked = np.random.default_rng(0), {"theta": np.zeros(3, np.float32)}, []

    def updates():
        for ret in returns:
            rollout = SimpleNamespace(env_steps=10, episode_returns=[ret], episode_lengths=[10], obs=rng, rew=rng)
            yield {"rollout": rollout}

    def played(n, how, k, what_for):
        asked.append((k, what_for, n, how))
        mean = evaluations.get((k, what_for), 0.0)
        return np.array([mean - 1, mean + 1] * (n // 2) + [mean] * (n % 2)), 0

    config = {**CONFIG, "algo": algo, "target": target, "episodes": None, "evaluate_every": 10**6, **changes}
    task = Task(dict, lambda saved: True)
    run = new_run(folder, config, updates(), arrays, task)
    run.player, run.asked = SimpleNamespace(returns=played, cost=lambda n, length: 0), asked
    return run


def until_it_is_over(run):
    run.create()
    return until_the_end(run)


def until_the_end(run):
    while not run.is_over():
        run.record(next(run.learner.updates))
    return run


def test_a_run_is_solved_when_the_last_episodes_of_training_reach_the_target_and_unseen_ones_confirm_it(tmp_path):
    returns = [0, 0, 0, 0, 0, 50, *[10] * 20]  # at update 6, the mean of the last five is 10
    run = until_it_is_over(learning(tmp_path, returns, {(6, CONFIRMING): 9.9, (11, CONFIRMING): 10.0}))
    confirmations = [(6, CONFIRMING, 5, "sampled"), (11, CONFIRMING, 5, "sampled")]  # five new episodes between
    assert run.update == 11 and run.asked == confirmations
    result = run.finish()
    assert [purpose for _, purpose, *_ in run.asked[2:]] == [GREEDY]  # the confirmation is the result
    assert result["solved"] and (result["eval_return_mean"], result["eval_return_std"]) == (10.0, np.sqrt(0.8))
    assert (result["updates"], result["eval_episodes"], result["target"], result["return_5"]) == (11, 5, 10.0, 10.0)
    assert result == json.loads((tmp_path / "result.json").read_text())
    confirmed = {row["update"]: row.get("confirm_return_mean") for row in read_metrics(tmp_path)}
    assert {update: mean for update, mean in confirmed.items() if mean is not None} == {6: 9.9, 11: 10.0}


def test_before_there_are_enough_episodes_nothing_is_solved_and_their_mean_is_null(tmp_path):
    run = until_it_is_over(learning(tmp_path, [100] * 4, {}, steps=40))
    assert run.update == 4 and not [x for x in run.asked if x[1] == CONFIRMING]
    result = run.finish()
    assert result["return_5"] is None and result["solved"] is False
    assert "return_5" not in read_metrics(tmp_path)[-1]


def test_without_a_target_nothing_is_solved_or_not(tmp_path):
    run = until_it_is_over(learning(tmp_path, [100] * 9, {}, target=None, steps=90))
    assert run.finish()["solved"] is None and run.recent_return == 100


def test_reaching_the_target_once_is_not_enough(tmp_path):
    run = until_it_is_over(learning(tmp_path, [10] * 7 + [0] * 5, {(5, CONFIRMING): 9.0}, steps=120))
    assert run.asked == [(5, CONFIRMING, 5, "sampled")] and run.finish()["solved"] is False


def test_a_checkpoint_remembers_a_failed_confirmation_and_the_last_returns(tmp_path):
    returns, evaluations = [*[10] * 5, *[11] * 20], {(5, CONFIRMING): 9.0, (10, CONFIRMING): 10.0}
    run = learning(tmp_path, returns, evaluations)
    run.create()
    for _ in range(7):
        run.record(next(run.learner.updates))
        run.is_over()
    run.save()
    again = learning(tmp_path, returns[7:], evaluations)
    again.resume(), again.replay()
    assert list(again.returns) == [10, 10, 10, 11, 11]
    while not again.is_over():
        again.record(next(again.learner.updates))
    assert again.update == 10 and again.asked == [(10, CONFIRMING, 5, "sampled")]


def test_a_search_is_solved_by_its_evaluations(tmp_path):
    evaluations = {(2, POINT): 9.0, (4, POINT): 10.0, (4, CONFIRMING): 9.0, (6, POINT): 11.0, (6, CONFIRMING): 10.5}
    run = until_it_is_over(learning(tmp_path, [100.0] * 20, evaluations, algo="hunt", evaluate_every=2))
    assert [(k, purpose) for k, purpose, *_ in run.asked] == list(evaluations)
    assert {(purpose, n) for _, purpose, n, _ in run.asked} == {(POINT, 5), (CONFIRMING, 5)}
    assert [row.get("return_5") for row in run.rows] == [None, 9.0, None, 10.0, None, 11.0]
    result = run.finish()
    assert result["solved"] and result["return_5"] == result["eval_return_mean"] == 10.5


def test_the_return_of_a_search_is_never_that_of_an_earlier_theta(tmp_path):
    run = until_it_is_over(learning(tmp_path, [1.0] * 4, {(2, POINT): 7.0}, algo="hunt", evaluate_every=2, steps=40))
    assert run.recent_return == 0.0  # of update 4
    more = {"evaluate_every": 2, "steps": 40, "episodes": 4}
    few = until_it_is_over(learning(tmp_path / "few", [1.0] * 4, {}, algo="hunt", **more))
    assert few.finish()["return_5"] is None and few.recent_return is None
    evaluations = {(2, POINT): 7.0, (4, FINAL): 3.0, (4, MORE): 3.0}
    run = until_it_is_over(learning(tmp_path / "last", [1.0] * 4, evaluations, algo="hunt", evaluate_every=3, steps=40))
    assert run.finish()["return_5"] == 3.2


def with_costs(folder, costs, returns=(0.0,) * 60, evaluations=(), **changes):
    """A run whose evaluations cost these numbers of steps. An episode of training has 10 steps."""
    run, costs = learning(folder, returns, dict(evaluations), **changes), iter(costs)
    played, run.player.cost = run.player.returns, lambda n, length: n * length
    run.player.returns = lambda *args: (played(*args)[0], next(costs))
    return run


def test_evaluations_take_at_most_an_eighth_of_the_steps(tmp_path):
    run = until_it_is_over(with_costs(tmp_path, [30, 5, 15], steps=400, episodes=1, evaluate_every=2))
    assert [k for k, *_ in run.asked] == [8, 32, 36]  # at 8 · 10, 8 · (30 + 10) and 8 · (35 + 10) steps
    assert run.evaluated_steps == 50


def test_a_confirmation_that_costs_too_much_is_postponed_until_all_take_at_most_a_quarter(tmp_path):
    run = until_it_is_over(with_costs(tmp_path, [60], [10.0] * 40, {(20, CONFIRMING): 10.0}, steps=400))
    assert run.asked == [(20, CONFIRMING, 5, "sampled")] and run.solved  # 4 · 5 · 10 steps


def test_a_confirmation_of_a_search_is_postponed_too_and_after_a_failure_an_evaluation_comes_first(tmp_path):
    evaluations = {(20, POINT): 10.0, (28, CONFIRMING): 9.0, (80, POINT): 10.0, (80, CONFIRMING): 10.0}
    more = {"algo": "hunt", "evaluate_every": 20, "episodes": 2, "steps": 900}
    run = until_it_is_over(with_costs(tmp_path, [20, 50, 10, 10], [0.0] * 90, evaluations, **more))
    assert [(k, purpose) for k, purpose, *_ in run.asked] == list(evaluations)


def judged_by_evaluations(folder, costs, evaluations, **changes):
    """A run as in Pong, where evaluations judge instead of `returns`. An evaluation is due at every second update."""
    run = with_costs(folder, costs, evaluations=evaluations, evaluate_every=2, **changes)
    run.judged_by_evaluations = True
    return run


def test_where_evaluations_judge_each_leaves_enough_for_its_confirmation(tmp_path):
    evaluations = {(28, POINT): 9.9, (40, POINT): 10.0, (40, CONFIRMING): 9.0}
    evaluations |= {(58, POINT): 10.0, (58, CONFIRMING): 10.0}
    run = until_it_is_over(judged_by_evaluations(tmp_path, [30, 20, 25, 0, 0], evaluations, steps=600, episodes=2))
    assert [(k, purpose) for k, purpose, *_ in run.asked] == list(evaluations) and run.solved
    # steps of training: 4 · (0 + 20 + 50), 4 · (30 + 20 + 50), 4 · (30 + 20 + 25 + 20 + 50)


def test_where_evaluations_judge_the_final_one_does_too_unless_a_confirmation_has_just_failed(tmp_path):
    cases = (10, 5, 10, True), (9.9, 5, 10, False), (10, 4, 10, False), (9, 5, None, None)
    for final, episodes, target, solved in cases:
        folder = tmp_path / f"{final} {episodes} {target}"
        run = judged_by_evaluations(folder, [0] * 9, {(20, FINAL): final}, steps=200, episodes=episodes, target=target)
        assert until_it_is_over(run).finish()["solved"] is solved
    evaluations = {(40, POINT): 10.0, (40, CONFIRMING): 9.0, (40, FINAL): 10.0}
    run = judged_by_evaluations(tmp_path / "failed", [0] * 9, evaluations, steps=400, episodes=5)
    assert until_it_is_over(run).finish()["solved"] is False


def test_the_final_evaluation_confirms_if_no_confirmation_could_be_paid(tmp_path):
    for final, episodes, solved in ((10.0, 6, True), (9.9, 6, False), (10.0, 4, False)):
        folder, evaluations = tmp_path / f"{final} {episodes}", {(15, FINAL): final}
        run = with_costs(folder, [0] * 4, [10.0] * 15, evaluations, steps=150, episodes=episodes)
        assert until_it_is_over(run).finish()["solved"] is solved and (15, FINAL, episodes, "sampled") in run.asked


def test_after_the_final_evaluation_too_new_episodes_come_before_the_next_confirmation(tmp_path):
    """The final evaluation of update 6 fails. So of the resumed run, update 11 is the first that may be confirmed."""
    evaluations = {(6, FINAL): 9.0, (11, CONFIRMING): 10.0}
    run = with_costs(tmp_path, [0] * 9, [10.0] * 6, evaluations, steps=60, episodes=6)  # too dear before the end
    assert not until_it_is_over(run).finish()["solved"]
    again = learning(tmp_path, [10.0] * 30, evaluations, steps=300, episodes=6)
    again.resume(), again.replay()
    assert until_the_end(again).solved
    assert [k for k, purpose, *_ in again.asked if purpose == CONFIRMING] == [11]


def test_the_last_evaluation_of_a_search_is_the_first_of_two_in_a_row(tmp_path):
    for second, solved in ((10.0, True), (9.0, False)):
        folder, evaluations = tmp_path / f"{second}", {(4, FINAL): 10.0, (4, CONFIRMING): second}
        run = until_it_is_over(learning(folder, [0.0] * 4, evaluations, algo="hunt", steps=40))
        result = run.finish()
        assert result["solved"] is solved and result["eval_return_mean"] == second
        assert [purpose for _, purpose, *_ in run.asked if purpose != MORE] == [FINAL, CONFIRMING, GREEDY]


def test_a_search_does_not_repeat_a_confirmation_that_has_just_failed(tmp_path):
    evaluations = {(4, POINT): 10.0, (4, CONFIRMING): 9.0, (4, FINAL): 10.0}
    run = until_it_is_over(learning(tmp_path, [0.0] * 4, evaluations, algo="hunt", steps=40, evaluate_every=4))
    assert not run.finish()["solved"]
    assert [purpose for _, purpose, *_ in run.asked if purpose != MORE] == [POINT, CONFIRMING, FINAL, GREEDY]


def test_a_confirmation_that_ctrl_c_interrupted_is_made_up_for_when_the_run_is_resumed(tmp_path):
    evaluations, more = {(5, CONFIRMING): 10.0}, {"steps": 200, "checkpoint_every": "5"}
    whole = until_it_is_over(learning(tmp_path / "whole", [10.0] * 9, evaluations, **more))
    whole.finish()
    run = learning(tmp_path / "cut", [10.0] * 9, evaluations, **more)

    def interrupted(*args):
        raise KeyboardInterrupt

    run.player.returns = interrupted
    with pytest.raises(KeyboardInterrupt):
        until_it_is_over(run)
    run.save_where_it_stands()
    again = learning(tmp_path / "cut", [10.0] * 4, evaluations, **more)
    again.resume()
    assert not again.replay() and again.solved and again.finish()["solved"]
    saved, expected = (read_checkpoint(tmp_path / name) for name in ("cut", "whole"))
    np.testing.assert_array_equal(saved["evaluations"], expected["evaluations"])
    assert read_metrics(tmp_path / "cut")[-1]["confirm_return_mean"] == 10.0


def test_what_another_target_decided_does_not_count_for_a_new_one(tmp_path):
    evaluations = {(5, CONFIRMING): 9.0, (6, FINAL): 9.0, (6, CONFIRMING): 9.0}
    run = until_it_is_over(learning(tmp_path, [10.0] * 6, evaluations, steps=60, episodes=6))
    assert not run.finish()["solved"]
    again = learning(tmp_path, [], evaluations, steps=60, episodes=6, target=5.0)
    again.resume(), again.replay()
    assert again.finish()["solved"]


def test_the_checkpoint_of_a_run_that_has_ended_knows_of_its_last_evaluations(tmp_path):
    run = until_it_is_over(with_costs(tmp_path, [7] * 9, [0.0] * 4, steps=40, episodes=2))
    result = run.finish()
    saved = read_checkpoint(tmp_path)
    assert saved["evaluation_seconds"] == result["evaluation_seconds"] > 0
    assert saved["evaluations"][2] == 0  # steps of evaluations in training; at the end, their number depends on time
    again = with_costs(tmp_path, [7] * 9, steps=40, episodes=2)
    again.resume()
    assert not again.replay() and again.finish()
    after = read_checkpoint(tmp_path)["evaluation_seconds"]
    assert after == saved["evaluation_seconds"]  # not saved: its environments have not been brought back


def test_a_run_that_is_solved_and_goes_on_stays_solved_if_it_still_reaches_the_target(tmp_path):
    for later, solved in ((10.0, True), (0.0, False)):
        evaluations = {(5, CONFIRMING): 10.0, (8, FINAL): later}
        more = {"episodes": 6, "checkpoint_every": "5"}  # saved before and after the confirmation
        run = until_it_is_over(learning(tmp_path / str(later), [10.0] * 9, evaluations, steps=60, **more))
        assert run.solved and run.finish()["solved"]
        again = learning(tmp_path / str(later), [10.0] * 3, evaluations, steps=80, **more)
        again.resume(), again.replay()
        until_the_end(again)
        assert again.update == 8 and again.finish()["solved"] is solved
        assert not [purpose for _, purpose, *_ in again.asked if purpose == CONFIRMING]  # too few new episodes


def test_the_last_evaluations_play_as_many_episodes_as_a_quarter_of_the_time_affords(tmp_path, monkeypatch):
    now, affordable = [0.0], {}
    monkeypatch.setattr(runs, "time", SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0]))
    sampled = [(seconds, "sampled") for seconds in (0.001, 0.05, 0.25, 10)]
    for seconds_each, act in [*sampled, (0.24, "sharpened")]:  # sharpened: no most likely actions follow
        run = learning(tmp_path / str(seconds_each), [0.0] * 4, {}, steps=40)
        play, run.window, run.task.act = run.player.returns, 100, act

        def spend(n, *args):
            now[0] += n * seconds_each * (1.4 if n > 10 else 1)  # in a larger group, each takes longer
            return play(n, *args)

        run.player.returns, run.player.cost = spend, lambda n, length: n * length
        until_it_is_over(run)
        run.seconds = 34.0  # seconds of training; so evaluations may take 10 s
        result = run.finish()
        affordable[seconds_each] = result["eval_episodes"], result["greedy_episodes"]
        assert result["evaluation_seconds"] <= max(10, 20 * seconds_each) + 1e-9
    assert affordable == {0.001: (100, 100), 0.05: (95, 40), 0.25: (15, 17), 0.24: (25, 0), 10: (10, 0)}


def test_a_number_of_episodes_that_was_asked_for_is_played(tmp_path):
    run = until_it_is_over(learning(tmp_path, [10.0] * 9, {(5, CONFIRMING): 10.0}, episodes=4))
    result = run.finish()
    assert [n for _, _, n, _ in run.asked] == [5, 4]  # the confirmation has as many as the mean that it confirms
    assert (result["eval_episodes"], result["greedy_episodes"]) == (5, 4)


def test_a_run_knows_whether_there_was_anything_to_learn_from(tmp_path):
    same = until_it_is_over(learning(tmp_path / "same", [-200.0] * 9, {}, steps=90))
    other = until_it_is_over(learning(tmp_path / "other", [*[-200.0] * 8, -199.0], {}, steps=90))
    one = until_it_is_over(learning(tmp_path / "one", [-200.0], {}, steps=10))
    assert same.all_returns_are_equal() and not other.all_returns_are_equal() and not one.all_returns_are_equal()
    rounded = until_it_is_over(learning(tmp_path / "rounded", [-0.7, -0.7 - 1e-16] * 3, {}, steps=60))
    assert rounded.all_returns_are_equal()


def test_a_run_is_over_when_its_steps_are_spent(tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIG, "steps", 20)
    run = make_run(tmp_path)
    run.create()
    while not run.is_over():
        run.record(next(run.learner.updates))
        assert run.left == pytest.approx(max(0, 1 - run.env_steps / 20))
    assert 20 <= run.env_steps < 20 + 9 and run.left == 0


def test_a_resumed_run_has_the_learning_rate_that_is_left(tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIG, "steps", 100)
    run = begin(tmp_path, 5)
    again, fractions = make_run(tmp_path), []
    again.learner.anneal = fractions.append
    again.resume()
    assert fractions == [run.left] and 0 < run.left < 1


def test_evaluations_come_every_so_many_updates_and_each_is_told_which(tmp_path):
    asked = []
    begin(tmp_path, 13, evaluate=lambda k: asked.append(k) or np.array([k, k + 1.0]))
    assert asked == [4, 8, 12]
    assert [row["eval_return_mean"] for row in read_metrics(tmp_path) if "eval_return_mean" in row] == [4.5, 8.5, 12.5]


def test_a_budget_below_the_steps_that_are_made_is_refused(tmp_path, monkeypatch):
    made = begin(tmp_path, 10).env_steps
    monkeypatch.setitem(CONFIG, "steps", made)
    make_run(tmp_path).resume()
    monkeypatch.setitem(CONFIG, "steps", made - 1)
    with pytest.raises(RunError, match=f"--steps: expected at least {made}, .* got {made - 1}"):
        make_run(tmp_path).resume()


def test_evaluations_wait_until_training_comes_near_the_target(tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIG, "evaluate_from", 0.5)
    asked = []
    run = make_run(tmp_path, evaluate=lambda k: asked.append(k) or np.zeros(2))
    run.create()
    run.is_search = True  # so that training adds no returns
    for ret in (0.4, 0.5, 0.6, 0.49):
        advance(run, 3)
        run.returns.clear()
        run.returns.append(ret)
        advance(run, 1)
    assert asked == [8, 12]


def test_seconds_are_those_of_training_alone(tmp_path, monkeypatch):
    now, savez = [0.0], np.savez
    monkeypatch.setattr(runs, "time", SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0]))

    def spend(seconds):
        now[0] += seconds

    monkeypatch.setattr(np, "savez", lambda *args, **kwargs: spend(100) or savez(*args, **kwargs))
    evaluate = lambda k: spend(1000) or np.zeros(2)
    run = make_run(tmp_path, evaluate=evaluate, spoil=lambda k, update, arrays: spend(1))
    run.create()
    for _ in zip(range(8), train(run)):
        spend(10)  # the caller's own time does not count
    assert run.seconds == 8 and now[0] > 2000


def test_an_update_without_its_rollout_is_refused_by_name(tmp_path):
    run = make_run(tmp_path, spoil=lambda k, update, arrays: update.pop("rollout"))
    run.create()
    with pytest.raises(ValueError, match=r"update: expected the entry \"rollout\".*got \['entropy', 'grad_norm'\]"):
        advance(run, 1)


@pytest.mark.parametrize("name", ["update", "seconds", "return_mean", "return_5", "eval_return_mean"])
def test_a_measure_with_the_name_of_a_column_of_npg_is_refused(tmp_path, name):
    run = make_run(tmp_path, spoil=lambda k, update, arrays: update.update({name: 5.0}))
    run.create()
    with pytest.raises(ValueError, match=f"update: expected another name than '{name}'"):
        advance(run, 1)


SPOILT = {
    "gradient": lambda update, arrays: update.update(grad_norm=np.nan),
    "theta": lambda update, arrays: arrays["theta"].__setitem__(1, np.inf),
    "reward": lambda update, arrays: (update.update(grad_norm=np.nan), update["rollout"].rew.__setitem__(0, np.nan)),
    "observation": lambda update, arrays: (arrays["theta"].fill(-np.inf), update["rollout"].obs.__setitem__(0, np.nan)),
}


@pytest.mark.parametrize("tensor", SPOILT)
def test_a_nan_stops_the_run_with_its_tensor_and_update_and_leaves_the_last_good_checkpoint(tmp_path, tensor):
    run = make_run(tmp_path, spoil=lambda k, update, arrays: k == 8 and SPOILT[tensor](update, arrays))
    run.create()
    with pytest.raises(Diverged, match=rf"\b{tensor}\b.*\bupdate 8\b"):
        advance(run, 20)
    saved = read_checkpoint(tmp_path)
    assert saved["update"] == 5 and np.isfinite(saved["theta"]).all()
    assert [row["update"] for row in read_metrics(tmp_path)] == list(range(1, 8))
    run.save_where_it_stands()  # although θ is not finite now
    saved = read_checkpoint(tmp_path)
    assert saved["update"] == 5 and np.isfinite(saved["theta"]).all()


def test_a_nan_among_rewards_that_were_not_used_does_not_stop_the_run(tmp_path):
    """Steps after the episode of an environment are made and discarded."""
    run = advance(begin(tmp_path, spoil=lambda k, update, arrays: update["rollout"].rew.fill(np.nan)), 3)
    assert run.update == 3


def test_a_folder_with_a_run_is_not_begun_again(tmp_path):
    begin(tmp_path, 6)
    before = contents(tmp_path)
    with pytest.raises(RunError, match="holds a run already"):
        make_run(tmp_path).create()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoint.npz"])
def test_a_folder_with_somebody_elses_files_is_left_alone(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(RunError, match=str(tmp_path)):
        make_run(tmp_path).create()
    assert contents(tmp_path) == {name: b"precious"}


def test_an_empty_folder_and_one_with_other_things_may_take_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    begin(tmp_path, 1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(RunError) as error:
            make_run(folder).create()
        assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert contents(tmp_path) == {"file": b""}


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    run = begin(tmp_path, 9)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # without a file name, as write() raises it

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((RunError, OSError)) as error:
        advance(run, 1)
    assert "checkpoint.npz" in str(error.value) and os.strerror(errno.ENOSPC) in str(error.value)
    assert read_checkpoint(tmp_path)["update"] == 5


def array_file(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


DAMAGED = {
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("not a checkpoint\nat all\n"),
    "one array": array_file,
    "other arrays": lambda path: np.savez(path, weights=np.ones(3)),
    "pickled": lambda path: np.savez(path, theta=np.array([{}], object)),
    "pickled theta": lambda path: rewritten(path, theta=np.array([{}], object)),
    "another format": lambda path: rewritten(path, format=np.asarray("npg run 0")),
    "no format": lambda path: rewritten(path, format=None),
    "no theta": lambda path: rewritten(path, theta=None),
    "no counter": lambda path: rewritten(path, env_steps=None),
    "counters": lambda path: rewritten(path, update=np.arange(2)),
    "a word for a counter": lambda path: rewritten(path, episodes=np.asarray("many")),
    "a word for seconds": lambda path: rewritten(path, seconds=np.asarray("long")),
    "another shape": lambda path: rewritten(path, theta=np.zeros(4, np.float32)),
    "another rank": lambda path: rewritten(path, theta=np.zeros((3, 1), np.float32)),
    "another dtype": lambda path: rewritten(path, theta=np.zeros(3)),
    "no optimizer": lambda path: rewritten(path, **{"theta.t": None}),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_or_foreign_checkpoint_is_an_error_of_one_line_and_nothing_changes(tmp_path, damage):
    begin(tmp_path, 6)
    DAMAGED[damage](tmp_path / "checkpoint.npz")
    files = {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    run = make_run(tmp_path)
    with pytest.raises(RunError) as error:
        run.resume()
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == files
    assert run.update == 0 and not run.learner.theta.any() and run.learner.arrays["theta.t"] == 0


@pytest.mark.parametrize("name", ["returns", "evaluation_seconds", "rng"])
def test_a_checkpoint_with_words_in_the_place_of_numbers_is_an_error_of_one_line(tmp_path, name):
    begin(tmp_path, 6)
    rewritten(tmp_path / "checkpoint.npz", **{name: np.array(["many", "words"])})
    run = make_run(tmp_path)
    with pytest.raises(RunError, match="checkpoint.npz: damaged: ") as error:
        run.resume(), run.replay()
    assert "\n" not in str(error.value)


def test_a_run_that_has_ended_does_not_begin_again_where_its_checkpoint_is_missing(tmp_path):
    begin(tmp_path, 6).finish()
    (tmp_path / "checkpoint.npz").unlink()
    before = contents(tmp_path)
    with pytest.raises(RunError, match="no checkpoint here") as error:
        make_run(tmp_path).resume()
    assert contents(tmp_path) == before and "\n" not in str(error.value)


def test_a_run_takes_another_runs_policy_and_nothing_else(tmp_path):
    saved = read_checkpoint(begin(tmp_path, 5).folder)
    del saved["theta.t"]
    run = make_run(tmp_path / "second")
    run.take_policy(saved, "--start-from first")
    np.testing.assert_array_equal(run.learner.theta, saved["theta"])
    assert run.update == 0 and run.learner.arrays["theta.t"] == 0
    for wrong in (np.zeros(4, np.float32), np.zeros(3), None):
        other = {**saved, "theta": wrong} if wrong is not None else {}
        with pytest.raises(RunError, match=r"--start-from first: expected theta float32\[3\], found"):
            run.take_policy(other, "--start-from first")
    np.testing.assert_array_equal(run.learner.theta, saved["theta"])


def test_a_run_whose_rewards_were_not_scaled_cannot_go_on_with_scaled_rewards(tmp_path):
    begin(tmp_path, 5)
    before = contents(tmp_path)
    run = make_run(tmp_path)
    run.task.reward_moments = lambda: {"reward_rms.mean": np.zeros(())}
    with pytest.raises(RunError, match=r"expected reward_rms.mean float64\[\], found nothing"):
        run.resume()
    assert contents(tmp_path) == before


def normalised_run(folder, spoil=lambda envs, k: None):
    """Environments with running moments and random actions. Nothing is learned."""
    plain = make_envs("Pendulum-v1", 2)
    spaces = plain.single_observation_space, plain.single_action_space
    envs = NormalizeObservation(ReplayableVectorEnv(lambda: plain, 2, *spaces))
    sampler, theta = Sampler(envs, 0), np.zeros(3, np.float32)
    at_random = SimpleNamespace(act=lambda theta, obs, rng: rng.uniform(-1, 1, (2, 1)).astype(np.float32))

    def updates():
        for k in itertools.count(1):
            rollout = sampler.steps(at_random, theta, 5)
            theta[...] += rollout.obs[-1, 0]
            spoil(envs, k)
            yield {"rollout": rollout, "grad_norm": 1.0}

    task = Task(lambda: flat({"sampler": state_of(sampler)}), lambda saved: restore(sampler, below("sampler", saved)))
    task.obs_rms = envs.obs_rms
    return new_run(folder, {**CONFIG, "evaluate_every": 100}, updates(), {"theta": theta}, task)


@pytest.mark.parametrize("killed_at", [0, 3, 4, 9])
def test_the_moments_of_normalised_observations_resume_bit_for_bit_too(tmp_path, killed_at):
    whole, killed, again = (normalised_run(tmp_path / name) for name in ("whole", "killed", "killed"))
    whole.create()
    advance(whole, 11)
    killed.create()
    advance(killed, killed_at)
    again.resume()
    again.replay()
    advance(again, 11 - again.update)
    assert again.task.replayed
    np.testing.assert_array_equal(again.learner.theta, whole.learner.theta)
    for name, array in moments(whole.task.obs_rms).items():
        np.testing.assert_array_equal(moments(again.task.obs_rms)[name], array)


def test_a_checkpoint_never_takes_moments_that_are_not_finite(tmp_path):
    def spoil(envs, k):
        if k == 8:
            envs.obs_rms.mean = np.full(3, np.nan)

    run = normalised_run(tmp_path, spoil)
    run.create()
    with pytest.raises(Diverged, match="obs_mean|observation"):
        advance(run, 12)
    saved = read_checkpoint(tmp_path)
    assert all(np.isfinite(saved[name]).all() for name in ("theta", "obs_mean", "obs_var"))
