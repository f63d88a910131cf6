"""metrics.csv has one row per update and one column per number, and is written again or refused where it is damaged."""

import re

import numpy as np
import pytest
from running import assert_refused, contents, tiny
from walks import advance, begin, make_run, resume

from npg.runner.folder import RunError
from npg.runner.metrics import COLUMNS, read_metrics, rounded
from npg.runner.runs import Run
from npg.runner.saved import read_checkpoint

pytestmark = pytest.mark.usefixtures("quick_workers", "quick_disk", "no_figures")


def test_metrics_have_one_row_an_update_with_the_columns_promised(tmp_path):
    begin(tmp_path, 9)
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    promised = "update env_steps episodes seconds return_mean length_mean return_5 eval_return_mean confirm_return_mean"
    assert header.split(",") == [*promised.split(), "grad_norm", "entropy"]  # every number that an update yields
    assert len(lines) == 9  # on disk at once, though the run is still open
    rows = read_metrics(tmp_path)
    assert [row["update"] for row in rows] == list(range(1, 10))
    assert [row["episodes"] for row in rows] == list(np.cumsum([1, 2, 0] * 3))
    assert ["return_mean" in row for row in rows] == [True, True, False] * 3
    assert [row.get("length_mean") for row in rows] == [4.0, 4.0, None] * 3
    assert all(row["grad_norm"] == 0.5 and row["entropy"] == 0.25 and "kl" not in row for row in rows)
    assert [row["update"] for row in rows if "eval_return_mean" in row] == [4, 8]


def test_a_number_that_is_first_yielded_later_gets_a_column_then_and_no_row_is_lost(tmp_path):
    def spoil(k, update, arrays):
        if k >= 3:
            update["kl"] = np.float64(0.125 * k)
            update["values"], update["per_step"], update["name"], update["none"] = [1.0, 2.0], np.ones(3), "x", None

    begin(tmp_path, 7, spoil=spoil)
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    promised = "return_5 eval_return_mean confirm_return_mean grad_norm entropy kl"
    assert header.split(",") == [*COLUMNS, *promised.split()]
    assert len(lines) == 7
    assert [row.get("kl") for row in read_metrics(tmp_path)] == [None, None, *(0.125 * k for k in range(3, 8))]
    advance(resume(tmp_path, spoil=spoil), 4)
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header.split(",").count("kl") == 1 and len(lines) == 9
    assert [row["kl"] for row in read_metrics(tmp_path)[2:]] == [0.125 * k for k in range(3, 10)]


def test_metrics_have_the_steps_of_each_worker_and_the_number_of_replaced_workers(tmp_path):
    run = make_run(tmp_path, spoil=lambda k, update, arrays: update.update(worker_steps=[k, 10 * k]))
    run.task.executor = object()
    run.create()
    for run.task.restarted in (0, 2, 2, 5):
        advance(run, 1)
    rows = read_metrics(tmp_path)
    assert [row["workers_restarted"] for row in rows] == [0, 2, 0, 3]
    assert [(row["worker_0_steps"], row["worker_1_steps"]) for row in rows] == [(k, 10 * k) for k in range(1, 5)]
    assert run.finish()["workers_restarted"] == 5
    begin(tmp_path / "alone", 1)
    assert "workers_restarted" not in read_metrics(tmp_path / "alone")[0]


def test_the_metrics_have_a_row_for_every_update(call, tmp_path):
    assert call(tiny(more="--steps 2000"), out=tmp_path / "run").code == 0
    rows = read_metrics(tmp_path / "run")
    assert [row["update"] for row in rows] == list(range(1, len(rows) + 1))
    for name in ("env_steps", "episodes", "seconds"):
        assert [row[name] for row in rows] == sorted(row[name] for row in rows)
    evaluated = [row["update"] for row in rows if "eval_return_mean" in row]
    assert evaluated and not any(update % 7 for update in evaluated)
    assert all(0 < row["entropy"] <= 0.6932 and row["grad_norm"] > 0 for row in rows)
    assert any("return_mean" in row for row in rows) and any("explained_variance" in row for row in rows)


@pytest.mark.parametrize("cut", ["\n", "\r\n8", "\r\n8,55,3,0.2,0.1"])
def test_a_last_line_of_metrics_cut_short_is_ignored(tmp_path, cut):
    begin(tmp_path, 7)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes().rstrip() + cut.encode())
    assert [row["update"] for row in read_metrics(tmp_path)] == list(range(1, 8))
    advance(resume(tmp_path), 6)
    assert [row["update"] for row in read_metrics(tmp_path)] == list(range(1, 12))


def test_returns_are_shown_with_three_digits_or_one_decimal():
    shown = [rounded(x) for x in (478.57, -200.0, 9.0, 4.7219, 0.72345, 0.0, -0.0123)]
    assert shown == ["478.6", "-200.0", "9.0", "4.72", "0.723", "0.0", "-0.0123"]
    assert (rounded(0.718, -20.1), rounded(0.452, 0.72)) == ("0.7", "0.452")


def test_a_large_whole_number_keeps_its_digits_when_the_run_is_resumed(tmp_path):
    spoil = lambda k, update, arrays: update.update(worker_steps=[1234567 + k])
    begin(tmp_path, 6, spoil=spoil)
    advance(resume(tmp_path, spoil=spoil), 4)
    assert [row["worker_0_steps"] for row in read_metrics(tmp_path)] == [1234567 + k for k in range(1, 10)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("a,b\n1,2\n"),
        lambda path: path.write_bytes(b"\xff\xfe\x00,\x80\n"),
        lambda path: path.write_text(path.read_text().replace("\n3,", "\nthree,")),
        lambda path: path.write_text(re.sub("\n(3,.*)", r"\n\1,5", path.read_text())),
    ],
    ids=["missing", "foreign", "no text", "no number", "one cell too many"],
)
def test_damaged_metrics_are_an_error_of_one_line_that_names_them(tmp_path, damage):
    begin(tmp_path, 6)
    damage(tmp_path / "metrics.csv")
    before = contents(tmp_path)
    with pytest.raises(RunError, match="metrics.csv") as error:
        resume(tmp_path)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


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


def test_metrics_that_cannot_grow_are_an_error_that_names_the_file(call, tmp_path, monkeypatch):
    def full(rows):
        raise OSError(27, "File too large")

    def record(run, update, record=Run.record):
        if run.update == 3:
            run.metrics.writer.writerows = full
        record(run, update)

    monkeypatch.setattr(Run, "record", record)
    refused = call(tiny(more="--steps 300"), out=tmp_path / "run")
    assert_refused(refused, f"{tmp_path / 'run' / 'metrics.csv'}: cannot be written: File too large")


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
