"""A folder belongs to one process at a time. A file is replaced as a whole, or not at all."""

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time

import pytest
from walks import contents

from npg.runner import folder as module
from npg.runner.folder import LOCK, RunError, one_line, remove_leftovers, taken, write_atomically, write_json

HOLD = "import sys, npg.runner.folder as f\nwith f.taken(sys.argv[1]): print('taken', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """A process that has taken the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_in_one_line_and_free_after_its_process_is_killed(holder, tmp_path):
    with pytest.raises(RunError, match="another run is writing here") as error:
        with taken(tmp_path):
            pass
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == [LOCK]
    holder.kill()
    holder.communicate()
    assert os.listdir(tmp_path) == [LOCK]  # a killed process leaves its lock file
    with taken(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_is_free_and_clean_after_its_run(holder, tmp_path):
    holder.communicate("")
    assert os.listdir(tmp_path) == []
    with taken(tmp_path):
        assert os.listdir(tmp_path) == [LOCK]
    assert os.listdir(tmp_path) == []


def test_one_process_cannot_take_a_folder_twice_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with taken(tmp_path):
        for name in (tmp_path, ".", f"../{tmp_path.name}"):
            with pytest.raises(RunError, match="another run"):
                with taken(name):
                    pass
        process = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.DEVNULL,
                                 capture_output=True, text=True)
        assert process.returncode == 1 and "another run" in process.stderr  # still locked for others
    with taken(tmp_path):
        pass


def test_of_threads_that_take_and_free_a_folder_again_and_again_only_one_has_it_at_a_time(tmp_path, monkeypatch):
    locked, inside, most = module._locked, [0], [0]
    monkeypatch.setattr(module, "_locked", lambda path: time.sleep(0.001) or locked(path))  # the others run meanwhile

    def take():
        for _ in range(10):
            with contextlib.suppress(RunError), taken(tmp_path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


@pytest.mark.skipif(module.fcntl is None, reason="an open file cannot be removed there")
def test_a_lock_file_removed_just_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """The owner ends between `open` and `lockf`. A third process could then make and lock another file."""
    lockf, path = module.fcntl.lockf, tmp_path / LOCK
    calls = []

    def late(lock, how):
        calls.append(lock)
        if len(calls) == 1:
            path.unlink()
        lockf(lock, how)

    monkeypatch.setattr(module.fcntl, "lockf", late)
    with taken(tmp_path):
        assert len(calls) == 2 and path.exists()


def test_a_folder_is_made_and_one_that_cannot_be_is_an_error_of_one_line(tmp_path):
    with taken(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="cannot be written"):
        with taken(tmp_path / "file" / "run"):
            pass


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.json"
    write_atomically(path, lambda file: file.write(b"old"))

    def full(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space"):
        write_atomically(path, full)
    assert contents(tmp_path) == {"config.json": b"old"}
    write_atomically(path, lambda file: file.write(b"new"))
    assert contents(tmp_path) == {"config.json": b"new"}


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path):
    removed = "checkpoint.npz.1a2b.tmp", "policy.gif.1a2b.tmp", "checkpoint.npz.tmp"
    for name in (*removed, "mine.tmp", "checkpoint.npz", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.npz", "mine.tmp", "notes.txt"]


def test_a_message_is_one_line():
    assert one_line(ValueError("a\nb  c")) == "a b c"


def test_json_on_disk_is_json_even_with_numbers_that_json_lacks(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [1, 2.5], "settings": {"log_std": -math.inf, "gamma": 0.9}})
    refuse = lambda constant: pytest.fail(f"{constant} is not JSON")
    value = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert value == {"a": None, "b": [1, 2.5], "settings": {"log_std": None, "gamma": 0.9}}
