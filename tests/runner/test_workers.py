"""Workers that die, hang, raise, or lose their parent, under every start method; shared memory and kept objects."""

import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import wait

import faults
import numpy as np
import pytest
from cluster import dask_cluster

from npg.runner import workers
from npg.runner.workers import Pool, WorkerError, kept, shared_array

LIMIT = 60  # seconds after which a test counts as hung; nothing here should take more than one or two
METHODS = ["spawn", "forkserver", "fork"]
slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
at_least_fork = pytest.mark.parametrize("method", [*map(slow, METHODS[:2]), METHODS[2]])  # a fresh interpreter is slow
at_least_spawn = pytest.mark.parametrize("method", [METHODS[0], *map(slow, METHODS[1:])])
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel ends a process with its parent")
QUICK = {"spawn": ("kill", "sleep", "raise_error"), "forkserver": ("kill",)}


@pytest.fixture(scope="module")
def pools():
    """pools(method, timeout=None) → a pool of two workers, the same in each call. The tests leave it usable."""
    make = functools.cache(lambda method, timeout=None: made.append(Pool(2, method, timeout)) or made[-1])
    made = []
    yield make
    for pool in made:
        pool.kill_workers()


@pytest.fixture
def no_process_left():
    """After the test, no process is left that began during the test."""
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


def ask(pool, fn, *args):
    """fn(*args), computed by worker 0."""
    return pool.map(faults.call, [fn], *([x] for x in args))[0]


def pids_of(pool, n=2):
    return pool.map(faults.pid, range(n))


@contextlib.contextmanager
def meanwhile(act, *args):
    """Runs act(*args) in another thread."""
    failures = []

    def run():
        try:
            act(*args)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(LIMIT)
    assert not failures and not thread.is_alive(), failures


def eventually(condition, seconds=LIMIT):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not so after {seconds} s"
        time.sleep(0.01)


def lives(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def processes_of(session):
    """Ids of the living processes of a session."""
    found = []
    for pid in (int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == session and lives(pid):
                found.append(pid)
    return found


def pid_in(path):
    eventually(path.exists)
    return int(path.read_text())


def kill_the_one_in(path):
    os.kill(pid_in(path), signal.SIGKILL)


def interrupt_once_there(path):
    pid_in(path)
    os.kill(os.getpid(), signal.SIGINT)


# Faults. Each one is in the first attempt at a call.


@pytest.mark.parametrize(
    "method, fault",
    [
        (pytest.param if method == "fork" or fault in QUICK[method] else slow)(method, fault)
        for method in METHODS
        for fault in faults.FAULTS
    ],
)
def test_a_call_that_fails_once_is_repeated_in_a_fresh_process(pools, method, fault, tmp_path):
    hangs = fault in ("spin", "sleep", "hold_gil", "stop")
    pool, path = pools(method, 0.5 if hangs else None), tmp_path / "pid"
    pids_of(pool)  # the first call has more time
    before = pool.restarted
    last = ask(pool, faults.once, path, fault)
    first = pid_in(path)
    assert last != first
    assert pool.restarted == before + 1
    assert not lives(first)


@at_least_fork
@pytest.mark.parametrize("while_it", ["sleep", "kill_while_answering"])
def test_a_worker_killed_while_it_runs_or_answers_is_replaced_and_its_call_repeated(method, while_it, tmp_path):
    with Pool(1, method) as pool:
        with meanwhile(kill_the_one_in, tmp_path / "pid") if while_it == "sleep" else contextlib.nullcontext():
            last = ask(pool, faults.once, tmp_path / "pid", while_it)
        assert last != pid_in(tmp_path / "pid")
        assert pool.restarted == 1


@at_least_fork
def test_a_worker_killed_while_idle_is_replaced_at_the_next_call(pools, method):
    pool = pools(method)
    killed, before = pids_of(pool), pool.restarted
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert not set(killed) & set(pids_of(pool))
    assert pool.restarted == before + 2


@at_least_spawn
@pytest.mark.parametrize("seconds", [0, 0.05])
def test_a_worker_killed_while_it_starts_is_replaced(method, seconds):
    others, killed = set(multiprocessing.active_children()), []

    def kill_soon():
        eventually(lambda: set(multiprocessing.active_children()) - others)
        (process,) = set(multiprocessing.active_children()) - others
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        killed.append(process.pid)

    with Pool(1, method) as pool:
        with meanwhile(kill_soon):
            last = ask(pool, faults.pid_after, 0.2)
        assert [last] != killed
        assert pool.restarted == 1


def test_a_worker_killed_in_its_initializer_is_replaced(tmp_path):
    with Pool(1, "fork", initializer=faults.once, initargs=(tmp_path / "pid", "sleep")) as pool:
        with meanwhile(kill_the_one_in, tmp_path / "pid"):
            assert ask(pool, faults.same, 1) == 1


def test_a_worker_that_hangs_as_it_starts_is_replaced_after_the_time_for_a_start(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "START_SECONDS", 0.2)
    began = time.monotonic()
    with Pool(1, "fork", timeout=0.1, initializer=faults.once, initargs=(tmp_path / "pid", "stop")) as pool:
        assert ask(pool, faults.pid) != pid_in(tmp_path / "pid")
    assert 0.3 <= time.monotonic() - began < 5


def test_the_other_workers_go_on_while_one_hangs(tmp_path):
    """Worker 0 waits for a file, which the last call makes."""
    with Pool(2, "fork") as pool:
        calls = [(faults.pid_once_there, tmp_path / "go"), *[(faults.pid_after, 0)] * 9]
        others = pool.map(faults.call, *zip(*calls, (faults.write_pid, tmp_path / "go")))[1:-1]
        assert set(others) == {pid_in(tmp_path / "go")}


# Giving up.


@pytest.mark.parametrize(
    "fault, message, cause",
    [
        ("leave", r"worker 0: attempt 3 of 3 failed: its process ended \(exit code 7\)", type(None)),
        ("kill", r"worker 0: attempt 3 of 3 failed: its process ended \(exit code -9\)", type(None)),
        ("sleep", "worker 0: attempt 3 of 3 failed: no answer within 0.2 s", type(None)),
        ("raise_error", "worker 0: attempt 3 of 3 failed: it raised ValueError: the environment broke", ValueError),
        ("exit", "worker 0: attempt 3 of 3 failed: it raised SystemExit: 7", SystemExit),
        ("raise_unpicklable", "it raised RuntimeError: Unpicklable: 7: no reason", RuntimeError),
    ],
)
def test_a_call_that_always_fails_ends_in_one_clear_error_and_the_pool_goes_on(fault, message, cause, monkeypatch):
    monkeypatch.setattr(workers, "START_SECONDS", 0)
    with Pool(1, "fork", timeout=0.2 if fault == "sleep" else None, retries=2) as pool:
        with pytest.raises(WorkerError, match=message) as caught:
            ask(pool, faults.FAULTS[fault])
        assert type(caught.value.__cause__) is cause
        assert pool.restarted == 2
        assert ask(pool, faults.same, 5) == 5


def test_attempts_count_for_each_call_alone(tmp_path):
    with Pool(1, "fork", retries=1) as pool:
        paths = [tmp_path / f"{k}" for k in range(3)]
        assert len(pool.map(faults.once, paths, ["kill"] * 3)) == 3
        assert pool.restarted == 3


def test_the_error_shows_the_worker_s_traceback():
    with Pool(1, "fork", retries=0) as pool, pytest.raises(WorkerError) as caught:
        ask(pool, faults.raise_error)
    assert 'raise ValueError("the environment broke")' in str(caught.value.__cause__.__cause__)


def test_an_initializer_that_raises_or_leaves_is_reported_not_retried_for_ever():
    for fault, message in (("raise_error", "it raised ValueError"), ("leave", "exit code 7")):
        with Pool(1, "fork", retries=1, initializer=faults.FAULTS[fault]) as pool:
            with pytest.raises(WorkerError, match=f"attempt 2 of 2 failed: .*{message}"):
                ask(pool, faults.pid)


def test_a_process_that_cannot_be_started_is_reported_after_all_attempts(monkeypatch):
    pool, starts = Pool(1, "fork", retries=2), []
    refuse = lambda self: starts.append(1) or os.open("/no/such/file", os.O_RDONLY)
    with monkeypatch.context() as patched, pytest.raises(WorkerError, match="attempt 3 of 3 failed: no process"):
        patched.setattr(multiprocessing.get_context("fork").Process, "start", refuse)
        ask(pool, faults.pid)
    assert len(starts) == 3
    with pool:
        assert ask(pool, faults.same, 1) == 1


def test_what_cannot_be_pickled_is_reported_at_once():
    with Pool(1, "fork") as pool:
        for fn, argument in ((lambda x: 1, 1), (faults.same, lambda: 1)):
            with pytest.raises(Exception, match="lambda"):
                pool.map(fn, [argument])
        with pytest.raises(RuntimeError, match="inheritance"):  # a shared array would arrive as a copy
            pool.map(faults.same, [shared_array(3)])
        assert ask(pool, faults.same, 1) == 1
        assert pool.restarted == 0
    with Pool(1, "spawn", initializer=lambda: None) as pool, pytest.raises(Exception, match="lambda"):
        ask(pool, faults.pid)


@pytest.mark.parametrize("result, error", [(faults.Unreadable, ValueError), (faults.UnreadableFile, OSError)])
def test_a_result_that_cannot_be_read_is_reported_and_the_pool_goes_on(result, error):
    with Pool(1, "fork", timeout=5, retries=0) as pool:
        ask(pool, faults.pid)
        with pytest.raises(error, match="no number|No such file"):
            ask(pool, result)
        assert ask(pool, faults.same, 1) == 1


def test_time_spent_waiting_for_a_worker_does_not_count_as_hanging(monkeypatch):
    monkeypatch.setattr(workers, "START_SECONDS", 0)
    with Pool(1, "fork", timeout=1, retries=0) as pool:
        assert len(set(pool.map(faults.pid_after, [0.1] * 11))) == 1


@pytest.mark.parametrize("x", [np.arange(3), np.arange(1_000_000)], ids=["short", "long"])
def test_a_worker_stopped_while_idle_is_replaced_at_the_timeout_however_long_the_message(x):
    with Pool(1, "fork", timeout=0.5) as pool:
        pid = ask(pool, faults.pid)
        os.kill(pid, signal.SIGSTOP)
        np.testing.assert_array_equal(ask(pool, faults.same, x), x)
        assert not lives(pid)
        assert pool.restarted == 1


def test_a_timer_that_is_late_never_kills_the_process_of_a_later_call(monkeypatch, tmp_path):
    class LateTimer:
        """Its time is over when the test says so. It cannot be cancelled any more."""

        def __init__(self, seconds, function):
            timers.append(function)

        def start(self):
            pass

        cancel = start

    def first_timer_fires_in_the_second_call():
        eventually(lambda: len(timers) == 2)
        timers[0]()
        faults.write_pid(tmp_path / "go")

    timers = []
    monkeypatch.setattr(threading, "Timer", LateTimer)
    with Pool(1, "fork", timeout=100) as pool:
        pid = ask(pool, faults.pid)
        with meanwhile(first_timer_fires_in_the_second_call):
            assert ask(pool, faults.pid_once_there, tmp_path / "go") == pid


def test_a_pool_that_ends_leaves_no_timer():
    before = set(threading.enumerate())
    with Pool(2, "fork", timeout=100) as pool:
        pids_of(pool)
        eventually(lambda: set(threading.enumerate()) <= before)  # a thread of an earlier test may end meanwhile


def test_a_bad_argument_is_named():
    for arguments, name in (((0,), "n"), ((1, "fork", 0), "timeout"), ((1, "fork", None, -1), "retries")):
        with pytest.raises(ValueError, match=f"^{name}: expected .* got"):
            Pool(*arguments)
    with pytest.raises(ValueError, match="fibre"):
        Pool(1, "fibre")


# Which worker makes which call.


@at_least_fork
def test_call_k_goes_to_worker_k(pools, method):
    pool = pools(method)
    pids = pids_of(pool)
    assert pids[0] != pids[1]
    for _ in range(5):
        assert pids_of(pool) == pids


def test_each_map_begins_with_worker_0_however_short_its_calls():
    with Pool(3, "fork") as pool:
        pids = pids_of(pool, 3)
        assert len(set(pids)) == 3
        for _ in range(50):
            assert ask(pool, faults.pid) == pids[0]
            assert pids_of(pool, 3) == pids


def test_a_replaced_worker_keeps_its_place():
    with Pool(2, "fork") as pool:
        before = pids_of(pool)
        os.kill(before[0], signal.SIGKILL)
        after = pids_of(pool)
        assert after[0] not in before and after[1] == before[1]


def test_a_call_is_repeated_by_its_own_worker_even_where_another_is_free(tmp_path, monkeypatch):
    with Pool(2, "fork") as pool:
        before = pids_of(pool)
        monkeypatch.setattr(workers, "wait", lambda *args: time.sleep(0.1) or wait(*args))  # both have answered by then
        after = pool.map(ask_for, [(faults.once, tmp_path / "pid", "kill"), (faults.pid,)])
        assert after[0] not in before and after[1] == before[1]


def test_results_come_in_the_order_of_the_calls():
    with Pool(3, "fork") as pool:
        assert pool.map(faults.same, range(100)) == list(range(100))
        assert pool.map(pow, [2, 3], [5, 2]) == [32, 9]
        assert pool.map(faults.same, []) == []


def test_results_keep_their_places_where_calls_are_repeated(tmp_path):
    with Pool(2, "fork") as pool:
        calls = [(faults.once, tmp_path / f"{k}", "kill") if k in (0, 3) else (faults.same, k) for k in range(6)]
        results = pool.map(ask_for, calls)
    assert [results[k] for k in (1, 2, 4, 5)] == [1, 2, 4, 5] and pool.restarted == 2


def ask_for(call):
    fn, *args = call
    return fn(*args)


def test_arguments_are_sent_as_they_were_when_the_iterator_yielded_them():
    theta = np.zeros(2)

    def thetas():
        for _ in range(5):
            yield theta
            theta[...] += 1

    with Pool(1, "fork") as pool:
        assert [x[0] for x in pool.map(faults.same, thetas())] == [0, 1, 2, 3, 4]


# The end.


def test_processes_start_with_the_first_call_and_end_with_the_pool(no_process_left):
    others = set(multiprocessing.active_children())
    with Pool(2, "fork") as pool:
        assert set(multiprocessing.active_children()) == others and pool.restarted == 0
        pids = pids_of(pool)
        assert {process.pid for process in set(multiprocessing.active_children()) - others} == set(pids)
    assert not any(map(lives, pids))
    pool.kill_workers()


def test_a_pool_whose_workers_were_killed_starts_others():
    with Pool(2, "fork") as pool:
        before = pids_of(pool)
        pool.kill_workers()
        assert not any(map(lives, before))
        assert not set(pids_of(pool)) & set(before)


def test_a_worker_does_not_hear_of_ctrl_c():
    with Pool(1, "fork") as pool:
        pid = ask(pool, faults.pid)
        os.kill(pid, signal.SIGINT)
        assert ask(pool, faults.pid_after, 0.05) == pid


@at_least_fork
@pytest.mark.parametrize("fault", ["sleep", "hold_gil", "stop"])
def test_ctrl_c_ends_a_call_at_once_and_leaves_no_process(method, fault, tmp_path, no_process_left):
    with Pool(2, method) as pool:
        with pytest.raises(KeyboardInterrupt), meanwhile(interrupt_once_there, tmp_path / "pid"):
            pool.map(faults.call, [faults.hang, faults.sleep], [tmp_path / "pid"], [fault])
        assert not lives(pid_in(tmp_path / "pid"))


@pytest.mark.parametrize("fault", ["raise_error", "interrupt"])
def test_after_a_call_that_failed_or_was_interrupted_the_next_has_fresh_processes(fault, tmp_path, no_process_left):
    with Pool(2, "fork", retries=0) as pool:
        before = pids_of(pool)
        if fault == "interrupt":
            with pytest.raises(KeyboardInterrupt), meanwhile(interrupt_once_there, tmp_path / "0"):
                pool.map(faults.hang, [tmp_path / "0", tmp_path / "1"], ["sleep", "sleep"])
        else:
            with pytest.raises(WorkerError):
                pool.map(faults.hang, [tmp_path / "0", tmp_path / "1"], [fault, "sleep"])
        assert not any(map(lives, before))
        assert pool.map(faults.same, range(5)) == list(range(5))
        assert not set(pids_of(pool)) & set(before)


@pytest.mark.parametrize("receiver", ["main thread", "another thread"])
def test_ctrl_c_while_a_process_starts_leaves_none(monkeypatch, no_process_left, receiver):
    process, others = multiprocessing.get_context("fork").Process, set(multiprocessing.active_children())
    start, over = process.start, threading.Event()
    threads = {"main thread": threading.main_thread().ident}

    def wait_in_another_thread():
        threads["another thread"] = threading.get_ident()
        over.wait(LIMIT)

    with Pool(2, "fork") as pool, meanwhile(wait_in_another_thread):

        def start_and_interrupt(self):
            start(self)
            signal.pthread_kill(threads[receiver], signal.SIGINT)
            time.sleep(0.05)  # until the other thread has received it

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(process, "start", start_and_interrupt)
            pids_of(pool)
        assert set(multiprocessing.active_children()) == others
        assert pool.map(faults.same, range(3)) == [0, 1, 2]
        over.set()


@pytest.mark.parametrize("method", ["fork", slow("spawn")])
def test_processes_outlive_the_thread_that_started_them(method):
    with Pool(2, method) as pool:
        first = []
        with meanwhile(lambda: first.extend(pids_of(pool))):
            pass
        time.sleep(0.1)
        assert pids_of(pool) == first and pool.restarted == 0


def in_a_script(code, *args, **options):
    here = pathlib.Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here}"}
    command = [sys.executable, "-c", f"import faults, sys; {code}", *map(str, args)]
    return subprocess.run(command, env=env, timeout=LIMIT, capture_output=True, text=True, **options)


@pytest.mark.parametrize("ending", faults.ENDINGS)
@at_least_fork
def test_a_pool_that_is_never_closed_ends_with_its_script(method, ending, tmp_path):
    in_a_script("faults.abandon_a_pool(*sys.argv[1:])", method, tmp_path / "pid", ending)
    eventually(lambda: not lives(pid_in(tmp_path / "pid")), 5)


def test_a_call_in_a_thread_is_not_repeated_when_the_interpreter_ends(tmp_path):
    pool, told = Pool(1, "fork"), []

    def call():
        with pytest.raises(WorkerError, match="attempt 1 of 1 failed"):
            pool.map(faults.hang, [tmp_path / "pid"], ["sleep"])
        told.append(True)

    with meanwhile(call):
        faults.pid_once_there(tmp_path / "pid")
        pool._exit()
    assert told and pool.restarted == 0


def test_an_endless_call_in_a_daemon_thread_ends_with_its_script(tmp_path):
    ended = in_a_script("faults.abandon_a_call(sys.argv[1])", tmp_path / "pid")
    assert ended.returncode == 0
    eventually(lambda: not lives(pid_in(tmp_path / "pid")), 5)


@contextlib.contextmanager
def script(method, folder, *its_faults):
    """Runs a script whose workers have these faults. The workers' ids are in the files pid0, pid1, … of the folder."""
    (folder / "tmp").mkdir(exist_ok=True)
    here = pathlib.Path(__file__).parents[2]
    command = [sys.executable, str(here / "tests/runner/faults.py"), method, str(folder / "pid"), *its_faults]
    env = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(here)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@on_linux
@pytest.mark.parametrize("method", ["fork", slow("spawn")])  # with forkserver, the parent is the fork server
@pytest.mark.parametrize("fault", ["stop", "hold_gil"])
def test_a_worker_that_cannot_run_python_ends_with_its_parent_all_the_same(method, fault, tmp_path):
    with script(method, tmp_path, fault, fault) as process:
        pids = [pid_in(tmp_path / f"pid{k}") for k in range(2)]
        time.sleep(0.05)  # until the faults have begun
        assert all(map(lives, pids))
        process.kill()
        process.wait(5)
        eventually(lambda: not any(map(lives, pids)), 5)


@at_least_spawn
class TestScript:
    """A script whose workers hang."""

    @pytest.fixture
    def script(self, method, tmp_path):
        with script(method, tmp_path, "sleep", "spin") as process:
            yield process

    @pytest.mark.parametrize("to", [os.killpg, os.kill])
    def test_ctrl_c_ends_the_script_and_its_workers_without_a_word(self, script, tmp_path, to):
        pids = [pid_in(tmp_path / f"pid{k}") for k in range(2)]
        to(script.pid, signal.SIGINT)
        _, words = script.communicate(timeout=5)
        assert (script.returncode, words) == (130, "")
        assert not any(map(lives, pids))

    def test_a_killed_script_leaves_neither_processes_nor_memory_nor_files(self, script, method, tmp_path):
        pids = [pid_in(tmp_path / f"pid{k}") for k in range(2)]
        script.kill()
        script.wait(5)
        eventually(lambda: not any(map(lives, pids)), 5)
        assert not [*pathlib.Path("/dev/shm").glob(f"pym-{script.pid}-*")]  # multiprocessing's names
        left = [path.name for path in (tmp_path / "tmp").rglob("*")]
        if method == "forkserver":  # multiprocessing itself leaves the server's socket
            left = [name for name in left if not name.startswith(("pymp-", "listener-"))]
        assert left == []

    @pytest.mark.slow
    @pytest.mark.parametrize("seconds", [0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8])
    def test_ctrl_c_while_the_workers_start_leaves_nothing(self, script, tmp_path, seconds):
        pid_in(tmp_path / "pid")
        time.sleep(seconds)
        os.killpg(script.pid, signal.SIGINT)
        _, words = script.communicate(timeout=5)
        assert (script.returncode, words) == (130, "")
        eventually(lambda: not processes_of(script.pid), 5)


# Memory and objects of the workers.


@at_least_spawn
def test_arrays_of_the_initargs_are_the_same_memory_in_every_worker(method):
    theta = shared_array((2, 3), np.float64)
    theta[...] = 1
    with Pool(2, method, initializer=faults.share, initargs=(theta,)) as pool:
        seen = pool.map(faults.add, [np.arange(3), 10])
        assert seen[0].shape == (2, 3)
        np.testing.assert_array_equal(theta, [[11, 12, 13]] * 2)
        theta[...] = 5
        np.testing.assert_array_equal(ask(pool, faults.twice_shared), np.full((2, 3), 10))
        os.kill(ask(pool, faults.pid), signal.SIGKILL)
        pool.map(faults.add, [1, 1])  # a worker that replaces another has it too
        np.testing.assert_array_equal(theta, np.full((2, 3), 7))


def test_a_shared_array_is_an_array_of_zeros_of_any_shape_and_type():
    for shape, dtype in (((), np.int64), (4, np.float32), ((0, 2), np.float64), ((2, 3), bool)):
        array = shared_array(shape, dtype)
        assert array.dtype == dtype and array.shape == np.empty(shape).shape and not array.any()


def test_what_is_computed_from_a_shared_array_can_be_sent_and_the_array_itself_cannot():
    with Pool(1, "fork", retries=0, initializer=faults.share, initargs=(shared_array(3),)) as pool:
        assert type(ask(pool, faults.twice_shared)) is np.ndarray
        with pytest.raises(WorkerError, match="inheritance"):
            ask(pool, faults.return_shared)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_s_blas_has_one_thread_from_the_very_start(method, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    # in a process of its own: a fork server that another test has started keeps the environment of its start
    at_birth, after = json.loads(in_a_script("faults.print_environments(sys.argv[1])", method).stdout)
    assert {at_birth[name] for name in workers.BLAS_THREADS} == {"1"}
    assert after["OPENBLAS_NUM_THREADS"] == "7" and "OMP_NUM_THREADS" not in after


def test_each_process_keeps_its_own_things_and_a_fresh_one_has_none():
    with Pool(2, "fork") as pool:
        counts = lambda: pool.map(faults.count, ["a", "a"])
        assert [counts(), counts(), counts()] == [[1, 1], [2, 2], [3, 3]]
        assert ask(pool, faults.count, "b") == 1
        os.kill(pool.map(faults.pid_after, [0, 0])[0], signal.SIGKILL)
        assert counts() == [1, 4]


def test_only_the_keys_asked_for_last_are_kept():
    made = []
    ask = lambda key: kept((test_only_the_keys_asked_for_last_are_kept, key), lambda: made.append(key) or key)
    for key in range(workers.KEPT):
        assert ask(key) == key
    ask(0)
    ask("one more")
    assert made == [*range(workers.KEPT), "one more"]
    ask(0)
    assert made[-1] == "one more"
    ask(1)
    assert made[-1] == 1


def test_what_could_not_be_made_is_not_kept():
    with pytest.raises(ZeroDivisionError):
        kept("broken", lambda: 1 / 0)
    assert kept("broken", lambda: "made") == "made"


# The same calls on a cluster.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A client of a Dask scheduler with two workers."""
    distributed = pytest.importorskip("distributed")
    with dask_cluster(2, tmp_path_factory.mktemp("dask")) as address, distributed.Client(address) as client:
        yield client


@pytest.mark.slow
def test_a_cluster_takes_the_calls_that_a_pool_takes(cluster):
    executor = cluster.get_executor(pure=False)
    assert list(executor.map(faults.same, range(20))) == list(range(20))
    pids = set(executor.map(faults.pid_after, [0.2, 0.21, 0.22, 0.23]))
    assert len(pids) == 2 and os.getpid() not in pids
    counts = list(executor.map(faults.count, ["a"] * 4))
    assert sum(counts) > len(counts)  # a call finds what earlier calls kept; with pure=True, it would run only once


@pytest.mark.slow
def test_the_call_of_a_killed_cluster_worker_is_repeated(cluster, tmp_path):
    executor = cluster.get_executor(pure=False)
    calls = [(faults.once, tmp_path / "pid", "sleep"), *((pow, k, 2) for k in range(20))]
    with meanwhile(kill_the_one_in, tmp_path / "pid"):
        last, *others = executor.map(ask_for, calls)
    assert others == [k**2 for k in range(20)]
    assert last != pid_in(tmp_path / "pid")
