"""Workers that die, hang, raise, or lose their parent, under every start method; what they share and what they keep."""

import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import faults
import numpy as np
import pytest
from cluster import dask_cluster

from npg.runner import workers
from npg.runner.workers import LateExecutor, Pool, WorkerError, available_cores, kept, shared_array

LIMIT = 60  # seconds after which a test counts as hung; nothing here should take more than one or two
METHODS = ["spawn", "forkserver", "fork"]
slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
at_least_fork = pytest.mark.parametrize("method", [*map(slow, METHODS[:2]), METHODS[2]])  # a fresh interpreter is slow
at_least_spawn = pytest.mark.parametrize("method", [METHODS[0], *map(slow, METHODS[1:])])
QUICK = {"spawn": ("kill", "sleep", "raise_error"), "forkserver": ("kill",)}


@pytest.fixture(scope="module")
def pools():
    """pools(method, timeout=None): one pool of two workers each, which the tests leave usable."""
    make = functools.cache(lambda method, timeout=None: made.append(Pool(2, method, timeout)) or made[-1])
    made = []
    yield make
    for pool in made:
        pool.kill_workers()


def results(futures):
    return [future.result(LIMIT) for future in futures]


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


def pid_in(path):
    eventually(path.exists)
    return int(path.read_text())


# Faults: each hits a call's first attempt.


@pytest.mark.parametrize(
    "method, fault",
    [
        (pytest.param if method == "fork" or fault in QUICK[method] else slow)(method, fault)
        for method in METHODS
        for fault in faults.FAULTS
    ],
)
def test_a_call_that_fails_once_is_repeated_in_a_fresh_process(pools, method, fault, tmp_path):
    timeout = 2 if fault in ("spin", "sleep", "stop") else None
    pool, path = pools(method, timeout), tmp_path / "pid"
    before = pool.restarted
    call = pool.submit(faults.once, path, fault)
    first = pid_in(path)
    assert call.result(LIMIT) != first
    assert pool.restarted == before + 1
    assert not lives(first)


@at_least_fork
def test_a_worker_killed_while_it_runs_is_replaced_and_its_call_repeated(pools, method, tmp_path):
    pool, path = Pool(1, method), tmp_path / "pid"
    with pool:
        call = pool.submit(faults.once, path, "sleep")
        first = pid_in(path)
        os.kill(first, signal.SIGKILL)
        assert call.result(LIMIT) != first
        assert pool.restarted == 1


@at_least_fork
def test_a_worker_killed_while_a_long_answer_is_on_its_way_is_replaced(method, tmp_path):
    with Pool(1, method) as pool:
        call = pool.submit(faults.once, tmp_path / "pid", "kill_while_answering")
        assert call.result(LIMIT) != pid_in(tmp_path / "pid")
        assert pool.restarted == 1


@at_least_fork
def test_a_worker_killed_while_idle_is_replaced_at_the_next_call(pools, method):
    pool = pools(method)
    before = pool.restarted
    killed = results([pool.submit(faults.pid), pool.submit(faults.pid)])
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert not set(killed) & set(results([pool.submit(faults.pid_after, 0.1) for _ in range(2)]))
    assert pool.restarted == before + 2


@at_least_spawn
@pytest.mark.parametrize("seconds", [0, 0.05])
def test_a_worker_killed_while_it_starts_is_replaced(method, seconds):
    others = set(multiprocessing.active_children())
    with Pool(1, method) as pool:
        (process,) = set(multiprocessing.active_children()) - others
        time.sleep(seconds)
        process.kill()
        assert pool.submit(faults.pid).result(LIMIT) != process.pid
        assert pool.restarted == 1


def test_a_worker_killed_in_its_initializer_is_replaced(tmp_path):
    with Pool(1, "fork", initializer=faults.once, initargs=(tmp_path / "pid", "sleep")) as pool:
        call = pool.submit(faults.same, 1)
        os.kill(pid_in(tmp_path / "pid"), signal.SIGKILL)
        assert call.result(LIMIT) == 1


def test_the_other_workers_go_on_while_one_is_replaced(tmp_path):
    with Pool(2, "fork") as pool:
        stuck = pool.submit(faults.once, tmp_path / "pid", "sleep")
        first = pid_in(tmp_path / "pid")
        others = results([pool.submit(faults.pid) for _ in range(10)])
        assert len(set(others)) == 1 and first not in others
        os.kill(first, signal.SIGKILL)
        results([pool.submit(faults.pid) for _ in range(10)])
        assert stuck.result(LIMIT) != first


# Giving up.


@pytest.mark.parametrize(
    "fault, message, cause",
    [
        ("leave", r"worker 0: gave up after 3 attempts: its process ended \(exit code 7\)", type(None)),
        ("kill", r"worker 0: gave up after 3 attempts: its process ended \(exit code -9\)", type(None)),
        ("sleep", "worker 0: gave up after 3 attempts: no answer within 0.2 s", type(None)),
        ("raise_error", "worker 0: gave up after 3 attempts: it raised ValueError: the environment broke", ValueError),
        ("exit", "worker 0: gave up after 3 attempts: it raised SystemExit: 7", SystemExit),
        ("raise_unpicklable", "it raised RuntimeError: Unpicklable: 7: no reason", RuntimeError),
    ],
)
def test_a_call_that_always_fails_ends_in_one_clear_error_and_the_pool_goes_on(fault, message, cause):
    with Pool(1, "fork", timeout=0.2 if fault == "sleep" else None, retries=2) as pool:
        with pytest.raises(WorkerError, match=message) as caught:
            pool.submit(faults.FAULTS[fault]).result(LIMIT)
        assert type(caught.value.__cause__) is cause
        assert pool.restarted == 2
        assert pool.submit(faults.same, 5).result(LIMIT) == 5


def test_the_error_shows_the_worker_s_traceback():
    with Pool(1, "fork", retries=0) as pool:
        error = pool.submit(faults.raise_error).exception(LIMIT)
    assert 'raise ValueError("the environment broke")' in str(error.__cause__.__cause__)


def test_an_initializer_that_raises_or_leaves_is_reported_not_retried_for_ever():
    for fault, message in (("raise_error", "it raised ValueError"), ("leave", "exit code 7")):
        with Pool(1, "fork", retries=1, initializer=faults.FAULTS[fault]) as pool:
            with pytest.raises(WorkerError, match=f"gave up after 2 attempts: .*{message}"):
                pool.submit(faults.pid).result(LIMIT)


def test_what_cannot_be_pickled_is_reported_at_once():
    with Pool(1, "fork") as pool:
        for call in (pool.submit(lambda: 1), pool.submit(faults.same, lambda: 1)):
            with pytest.raises(Exception, match="lambda"):
                call.result(LIMIT)
        with pytest.raises(RuntimeError, match="inheritance"):  # a shared array would arrive as a copy
            pool.submit(faults.same, shared_array(3)).result(LIMIT)
        assert pool.restarted == 0
        assert pool.submit(faults.same, 1).result(LIMIT) == 1
    with pytest.raises(Exception, match="lambda"):
        Pool(1, "spawn", initializer=lambda: None)


def test_a_result_that_cannot_be_read_is_reported_and_the_pool_goes_on():
    with Pool(1, "fork") as pool:
        with pytest.raises(ValueError, match="no number"):
            pool.submit(faults.Unreadable).result(LIMIT)
        assert pool.submit(faults.same, 1).result(LIMIT) == 1


def test_time_spent_waiting_for_a_worker_does_not_count_as_hanging():
    with Pool(1, "fork", timeout=2, retries=0) as pool:
        results([pool.submit(faults.pid_after, 0.2) for _ in range(12)])


def test_a_stopped_worker_counts_as_hung_even_where_a_long_message_is_on_its_way():
    with Pool(1, "fork", timeout=1) as pool:
        pid = pool.submit(faults.pid).result(LIMIT)
        os.kill(pid, signal.SIGSTOP)
        x = np.arange(1_000_000)
        np.testing.assert_array_equal(pool.submit(faults.same, x).result(LIMIT), x)
        assert not lives(pid)


def test_a_bad_argument_is_named():
    for arguments, name in (((0,), "n"), ((1, "fork", 0), "timeout"), ((1, "fork", None, -1), "retries")):
        with pytest.raises(ValueError, match=f"^{name}: expected .* got"):
            Pool(*arguments)
    with pytest.raises(ValueError, match="fibre"):
        Pool(1, "fibre")


# Who does what.


@at_least_fork
def test_calls_go_to_the_workers_in_order(pools, method):
    pool = pools(method)
    pids = results([pool.submit(faults.pid) for _ in range(2)])
    assert pids[0] != pids[1]
    for _ in range(5):
        assert results([pool.submit(faults.pid) for _ in range(2)]) == pids


def test_each_map_begins_with_worker_0_however_short_its_calls():
    with Pool(3, "fork") as pool:
        pids = list(pool.map(faults.pid_after, [0] * 3))
        assert len(set(pids)) == 3
        for _ in range(50):
            pool.submit(faults.pid).result(LIMIT)
            assert list(pool.map(faults.pid_after, [0] * 3)) == pids


def test_a_replaced_worker_keeps_its_place():
    with Pool(2, "fork") as pool:
        before = list(pool.map(faults.pid_after, [0, 0]))
        os.kill(before[0], signal.SIGKILL)
        after = list(pool.map(faults.pid_after, [0, 0]))
        assert after[0] not in before and after[1] == before[1]


def test_calls_beyond_the_workers_wait_for_the_first_one_free(tmp_path):
    with Pool(2, "fork") as pool:
        busy = pool.submit(faults.pid_once_there, tmp_path / "go")
        others = results([pool.submit(faults.pid) for _ in range(4)])
        (tmp_path / "go").touch()
        assert set(others) == {others[0]} != {busy.result(LIMIT)}


def test_results_come_in_the_order_of_the_calls():
    with Pool(3, "fork") as pool:
        assert list(pool.map(faults.same, range(100))) == list(range(100))
        assert list(pool.map(pow, [2, 3], [5, 2], chunksize=2)) == [32, 9]


def test_arguments_are_those_at_the_time_of_the_call():
    with Pool(1, "fork") as pool:
        theta, calls = np.zeros(2), []
        for _ in range(5):
            calls.append(pool.submit(faults.same, theta))
            theta += 1
        assert [x[0] for x in results(calls)] == [0, 1, 2, 3, 4]


# The end.


def test_leaving_a_pool_waits_for_its_calls_and_ends_its_processes():
    with Pool(2, "fork") as pool:
        calls = [pool.submit(faults.pid_after, 0.1) for _ in range(4)]
    assert not any(lives(pid) for pid in {call.result(0) for call in calls})
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(faults.pid)
    pool.shutdown()
    pool.kill_workers()


def test_leaving_a_pool_by_an_exception_kills_what_runs_and_cancels_what_waits(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with Pool(1, "fork") as pool:
            running, waiting = pool.submit(faults.once, tmp_path / "pid", "spin"), pool.submit(faults.pid)
            pid = pid_in(tmp_path / "pid")
            raise KeyboardInterrupt
    assert not lives(pid)
    with pytest.raises(WorkerError, match="killed as the pool was shut down"):
        running.result(LIMIT)
    assert waiting.cancelled()
    assert concurrent.futures.wait([running, waiting], LIMIT).not_done == set()


def test_calls_can_be_cancelled_before_they_begin(tmp_path):
    with Pool(1, "fork") as pool:
        running, waiting = pool.submit(faults.pid_once_there, tmp_path / "go"), pool.submit(faults.pid)
        assert waiting.cancel()
        last = pool.submit(faults.same, 3)
        pool.shutdown(wait=False, cancel_futures=True)
        (tmp_path / "go").touch()
        running.result(LIMIT)
        assert last.cancelled()


def test_a_pool_that_nobody_ends_ends_with_the_script_though_its_call_never_would(tmp_path):
    script = "import faults, sys; faults.abandon_a_pool(sys.argv[1])"
    here = pathlib.Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here}"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "pid")], env=env, check=True, timeout=LIMIT)
    assert not lives(pid_in(tmp_path / "pid"))


def test_a_worker_may_have_a_pool_of_its_own():
    with Pool(1, "fork") as pool:
        assert pool.submit(faults.in_a_pool_of_its_own, 7).result(LIMIT) == 7


def test_a_late_executor_starts_at_the_first_call_and_is_then_that_executor():
    started, others = [], set(multiprocessing.active_children())
    late = LateExecutor(lambda: started.append(Pool(2, "fork", retries=1)) or started[-1])
    assert not started and late.restarted == 0 and set(multiprocessing.active_children()) == others
    try:
        assert late.submit(faults.same, 3).result(LIMIT) == 3
        assert len(set(multiprocessing.active_children()) - others) == 2
        assert list(late.map(faults.same, range(5))) == list(range(5))
        assert late.submit(divmod, 7, 2).result(LIMIT) == (3, 1)
        with pytest.raises(WorkerError, match="the environment broke"):
            late.submit(faults.raise_error).result(LIMIT)
        assert len(started) == 1 and late.restarted == started[0].restarted > 0
    finally:
        late.kill_workers()
    assert set(multiprocessing.active_children()) == others


@pytest.mark.parametrize("call, arguments", [("map", [[1, 2]]), ("submit", [3])])
def test_either_call_starts_a_late_executor(call, arguments):
    started = []
    late = LateExecutor(lambda: started.append(Pool(1, "fork")) or started[-1])
    getattr(late, call)(faults.same, *arguments)
    assert len(started) == 1
    late.kill_workers()


def test_a_late_executor_that_nobody_called_has_nothing_to_end():
    late = LateExecutor(lambda: pytest.fail("nobody called"))
    late.kill_workers()
    assert late.restarted == 0


def test_a_late_executor_whose_start_fails_says_so_and_tries_again_with_the_next_call():
    starts = iter([None, Pool(1, "fork")])

    def start():
        pool = next(starts)
        if pool is None:
            raise OSError("no process could be made")
        return pool

    late = LateExecutor(start)
    with pytest.raises(OSError, match="no process"):
        late.submit(faults.same, 1)
    late.kill_workers()
    assert late.submit(faults.same, 1).result(LIMIT) == 1
    late.kill_workers()


@at_least_spawn
class TestScript:
    """A script whose workers hang."""

    @pytest.fixture
    def script(self, method, tmp_path):
        (tmp_path / "tmp").mkdir()
        here = pathlib.Path(__file__).parents[2]
        command = [sys.executable, str(here / "tests/runner/faults.py"), method, str(tmp_path / "pid")]
        env = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(here)}
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
        yield process
        process.kill()
        process.communicate()

    def test_ctrl_c_to_all_its_processes_ends_them_without_a_word(self, script, tmp_path):
        pids = [pid_in(tmp_path / f"pid{k}") for k in range(2)]
        os.killpg(script.pid, signal.SIGINT)
        _, words = script.communicate(timeout=5)
        assert (script.returncode, words) == (130, "")
        assert not any(map(lives, pids))

    def test_its_death_leaves_neither_processes_nor_memory_nor_files(self, script, method, tmp_path):
        pids = [pid_in(tmp_path / f"pid{k}") for k in range(2)]
        of_multiprocessing = lambda: {p.name for p in pathlib.Path("/dev/shm").glob("p[sy]m*")}
        before = of_multiprocessing()
        script.kill()
        script.wait(5)
        eventually(lambda: not any(map(lives, pids)), 5)
        assert of_multiprocessing() <= before
        left = [path.name for path in (tmp_path / "tmp").rglob("*")]
        if method == "forkserver":  # multiprocessing's own: the socket of the server
            left = [name for name in left if not name.startswith(("pymp-", "listener-"))]
        assert left == []

    @pytest.mark.slow
    @pytest.mark.parametrize("seconds", [0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8])
    def test_so_does_ctrl_c_while_they_start(self, script, tmp_path, seconds):
        pid_in(tmp_path / "pid")
        time.sleep(seconds)
        os.killpg(script.pid, signal.SIGINT)
        _, words = script.communicate(timeout=5)
        assert (script.returncode, words) == (130, "")


# What workers have.


@at_least_spawn
def test_arrays_of_the_initargs_are_the_same_memory_in_every_worker(method):
    theta = shared_array((2, 3), np.float64)
    theta[...] = 1
    with Pool(2, method, initializer=faults.share, initargs=(theta,)) as pool:
        seen = list(pool.map(faults.add, [np.arange(3), 10]))
        assert seen[0].shape == (2, 3)
        np.testing.assert_array_equal(theta, [[11, 12, 13]] * 2)
        theta[...] = 5
        np.testing.assert_array_equal(pool.submit(faults.twice_shared).result(LIMIT), np.full((2, 3), 10))
        os.kill(pool.submit(faults.pid).result(LIMIT), signal.SIGKILL)
        list(pool.map(faults.add, [1, 1]))  # a worker that replaces another has it too
        np.testing.assert_array_equal(theta, np.full((2, 3), 7))


def test_a_shared_array_is_an_array_of_zeros_of_any_shape_and_type():
    for shape, dtype in (((), np.int64), (4, np.float32), ((0, 2), np.float64), ((2, 3), bool)):
        array = shared_array(shape, dtype)
        assert array.dtype == dtype and array.shape == np.empty(shape).shape and not array.any()


def test_what_is_computed_from_a_shared_array_can_be_sent_and_the_array_itself_cannot():
    with Pool(1, "fork", retries=0, initializer=faults.share, initargs=(shared_array(3),)) as pool:
        assert type(pool.submit(faults.twice_shared).result(LIMIT)) is np.ndarray
        with pytest.raises(WorkerError, match="inheritance"):
            pool.submit(faults.return_shared).result(LIMIT)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_s_blas_has_one_thread_from_the_very_start(method, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Pool(1, method) as pool:
        at_birth = pool.submit(faults.environment_at_birth).result(LIMIT)
    assert {at_birth[name] for name in workers.BLAS_THREADS} == {"1"}
    assert os.environ["OPENBLAS_NUM_THREADS"] == "7" and "OMP_NUM_THREADS" not in os.environ


def test_each_process_keeps_its_own_things_and_a_fresh_one_has_none():
    with Pool(2, "fork") as pool:
        counts = lambda: list(pool.map(faults.count, ["a", "a"]))
        assert [counts(), counts(), counts()] == [[1, 1], [2, 2], [3, 3]]
        assert pool.submit(faults.count, "b").result(LIMIT) == 1
        os.kill(list(pool.map(faults.pid_after, [0, 0]))[0], signal.SIGKILL)
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


# Cores.


def system(root, memberships, **limits):
    """A file system with /proc/self/cgroup and limits {folder: {file: text}}."""
    for path, text in {"proc/self/cgroup": memberships, **limits}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def v1(folder, quota, period):
    place = "sys/fs/cgroup/cpu,cpuacct/" + folder
    return {place + "cpu.cfs_quota_us": f"{quota}\n", place + "cpu.cfs_period_us": f"{period}\n"}


V1 = "12:memory:/jobs/mine\n3:cpu,cpuacct:/jobs/mine\n1:name=systemd:/\n0::/\n"


@pytest.mark.parametrize(
    "memberships, limits, cores",
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "rubbish\n"}, 8),
        ("0::/jobs/mine\n", {"sys/fs/cgroup/jobs/mine/cpu.max": "400000 100000\n"}, 4),
        (
            "0::/jobs/mine\n",
            {"sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n", "sys/fs/cgroup/jobs/cpu.max": "200000 100000\n"},
            2,
        ),
        (V1, v1("jobs/mine/", "250000", "50000"), 5),
        (V1, v1("", "200000", "100000"), 2),
        (V1, v1("jobs/mine/", "-1", "100000"), 8),
    ],
)
def test_cgroups_limit_the_cores(memberships, limits, cores, eight_cores, tmp_path):
    assert available_cores(system(tmp_path, memberships, **limits)) == cores


def test_cpu_affinity_limits_the_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert available_cores(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


def test_there_is_a_core_here():
    assert 1 <= available_cores() <= os.cpu_count()


# The same calls on a cluster.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A client of a scheduler and two workers, each a process of its own, over TCP."""
    distributed = pytest.importorskip("distributed")
    with dask_cluster(2, tmp_path_factory.mktemp("dask")) as address, distributed.Client(address) as client:
        yield client


@pytest.mark.slow
def test_a_cluster_takes_the_calls_that_a_pool_takes(cluster):
    executor = cluster.get_executor(pure=False)
    assert list(executor.map(faults.same, range(20))) == list(range(20))
    calls = [executor.submit(faults.pid_after, 0.2) for _ in range(4)]
    pids = set(results(calls))
    assert len(pids) == 2 and os.getpid() not in pids
    counts = results([executor.submit(faults.count, "a") for _ in range(4)])
    assert sum(counts) > len(counts)  # what one call keeps the next one finds; a function that is `pure` runs but once


@pytest.mark.slow
def test_a_killed_worker_of_a_cluster_costs_nothing_but_time(cluster, tmp_path):
    executor = cluster.get_executor(pure=False)
    stuck = executor.submit(faults.once, tmp_path / "pid", "sleep")
    others = [executor.submit(pow, k, 2) for k in range(10)]
    killed = pid_in(tmp_path / "pid")
    os.kill(killed, signal.SIGKILL)
    others += [executor.submit(pow, k, 2) for k in range(10, 20)]
    assert results(others) == [k**2 for k in range(20)]
    assert stuck.result(LIMIT) != killed
