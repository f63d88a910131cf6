import multiprocessing
import os
import signal

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy's import; more threads are slower on small matrices
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job and its children ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("running")  # the assertions of tests/runner/running.py show their values
HAS_FORK_SERVER = "forkserver" in multiprocessing.get_all_start_methods()
if HAS_FORK_SERVER:  # its processes find these modules loaded
    multiprocessing.set_forkserver_preload(["npg.runner.actors", "npg.runner.environments", "gymnasium.vector"])


@pytest.fixture
def quick_workers(monkeypatch):
    """A task's workers come from a fork server. It is much quicker than new interpreters, and also sends pickles.

    The tests of test_workers and test_actors choose their start method themselves, mostly "fork". Those that run the
    scripts start workers as users do.
    """
    if HAS_FORK_SERVER:
        from npg.runner import task  # not at the top: NumPy's import comes after the environment variable

        start_pool = task.start_pool
        monkeypatch.setattr(task, "start_pool", lambda *args, **kw: start_pool(*args, start_method="forkserver", **kw))


@pytest.fixture
def quick_disk(monkeypatch):
    """Files are not forced to the disk. Forcing takes longer than an update, and matters only if the power fails."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
