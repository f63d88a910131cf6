"""Worker processes behind the standard library's one seam for them, `concurrent.futures.Executor`.

`Pool` is the executor of this machine. Whatever in npg computes elsewhere only calls `submit` or `map` of an executor,
so that Dask's `Client.get_executor(pure=False)` takes the same calls to a cluster. A worker process may die, hang or
raise: the pool repeats its call in a fresh one, as Dask does where one dies.

What workers share is handed to them as they start: `shared_array`s among the pool's `initargs`. What a worker keeps
from one call to the next, such as an environment, which cannot be sent, it keeps with `kept`.
"""

import atexit
import collections
import contextlib
import math
import multiprocessing
import os
import pathlib
import pickle
import queue
import signal
import threading
import time
import traceback
from concurrent.futures import Executor, Future
from multiprocessing.connection import wait
from multiprocessing.context import assert_spawning
from multiprocessing.resource_tracker import ensure_running
from multiprocessing.sharedctypes import RawArray

import numpy as np

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
START_SECONDS = 60  # limit for a process to import what it needs and run the initializer
KEPT = 16  # objects a worker remembers


class WorkerError(Exception):
    """A call failed in every process that tried it; the message says how, the cause is what it raised, if it did."""


def available_cores(root="/"):
    """CPU cores that this process may use: its CPU affinity and its cgroups' limits (versions 1 and 2), at least 1.

    A limit of 1.5 cores counts as 2. `root` is where the system's files begin.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _cgroup_limits(pathlib.Path(root)))]))


def _cgroup_limits(root):
    """Cores allowed by each cgroup this process is in and by the cgroups around those."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in memberships:
        _number, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        place = root / "sys/fs/cgroup" / controllers
        for folder in (place / path.strip("/"), *(place / path.strip("/")).parents):
            with contextlib.suppress(OSError, ValueError):
                if controllers:
                    names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
                    quota, period = ((folder / name).read_text() for name in names)
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if int(quota) > 0:
                    yield int(quota) / int(period)


class SharedArray(np.ndarray):
    """An array that a `Pool`'s initargs bring to its workers as the same memory; what is made of it is private."""

    raw = None  # of the array that `shared_array` returned, alone

    def __reduce_ex__(self, protocol):
        if self.raw is None:
            return np.asarray(self).__reduce_ex__(protocol)
        assert_spawning(self)
        return _over, (self.raw, self.shape, self.dtype)


def shared_array(shape, dtype=np.float32):
    """Zeros in memory that processes share, without a lock: a `SharedArray`.

    It vanishes with the last process that has it. Pickled as an argument of a call it raises RuntimeError.
    """
    dtype = np.dtype(dtype)
    return _over(RawArray("b", max(1, dtype.itemsize * int(np.prod(shape)))), shape, dtype)


def _over(raw, shape, dtype):
    array = SharedArray(shape, dtype, buffer=raw)
    array.raw = raw
    return array


_memory = threading.local()  # a Dask worker may run several calls at a time


def kept(key, make):
    """What an earlier call in this process kept under `key`; at first, or where that process is gone, make().

    A process remembers the last `KEPT` keys that were asked for.
    """
    memory = _memory.__dict__
    memory[key] = memory.pop(key) if key in memory else make()
    while len(memory) > KEPT:
        del memory[next(iter(memory))]
    return memory[key]


class Pool(Executor):
    """`n` worker processes; a call whose worker dies, hangs or raises is repeated in a fresh process.

    start_method  "spawn" (the default: a fresh interpreter, a second until it has imported what it needs), "forkserver"
                  (the same at its first start; leaves a socket's folder in the temporary directory if the parent is
                  killed) or "fork" (milliseconds, but unsafe where the parent has threads, such as ale-py's)
    timeout       seconds a call may take before its worker counts as hung and is killed; None: for ever
    retries       times a call is repeated before its future raises WorkerError
    initializer   called with initargs in each process as it starts; `shared_array`s among them stay shared

    The calls of one `map` go to workers 0, 1, 2, … in order as far as those are free, `submit` goes on with the next
    free one in turn, and a call that finds all of them busy waits for the first. Arguments are pickled at once:
    changing them afterwards changes nothing.

    Workers ignore Ctrl-C, which is the parent's to handle, end when their parent does, however it ends, and use one
    BLAS thread each (by environment variables; after "fork", where NumPy is loaded already, as many as the parent).
    """

    def __init__(self, n, start_method=None, timeout=None, retries=3, initializer=None, initargs=()):
        if n < 1:
            raise ValueError(f"n: expected at least 1 worker, got {n}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout: expected a positive number of seconds or None, got {timeout}")
        if retries < 0:
            raise ValueError(f"retries: expected at least 0, got {retries}")
        self.n, self.timeout, self.retries = n, timeout, retries
        context = multiprocessing.get_context(start_method or "spawn")
        self._workers = [_Worker(context, (initializer, tuple(initargs))) for _ in range(n)]
        self._lock = threading.Lock()  # of what follows
        self._idle, self._turn, self._closed = set(range(n)), 0, False
        self._waiting = collections.deque()  # (future, message) of calls that found every worker busy
        self._inboxes = [queue.SimpleQueue() for _ in range(n)]
        started = [Future() for _ in range(n)]
        self._threads = [threading.Thread(target=self._serve, args=(k, started[k]), daemon=True) for k in range(n)]
        atexit.register(self.kill_workers)
        try:
            with _no_interrupts():
                for thread in self._threads:
                    thread.start()
                for future in started:
                    future.result()
        except BaseException:
            self.kill_workers()
            raise

    @property
    def restarted(self):
        """Processes that took the place of another."""
        return sum(worker.starts - 1 for worker in self._workers)

    def submit(self, fn, /, *args, **kwargs):
        """The future of fn(*args, **kwargs)."""
        future = Future()
        try:
            call = future, pickle.dumps((fn, args, kwargs))
        except Exception as error:
            future.set_exception(error)
            return future
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool has been shut down")
            if self._idle:
                k = min(self._idle, key=lambda k: (k - self._turn) % self.n)
                self._idle.remove(k)
                self._turn = k + 1
                self._inboxes[k].put(call)
            else:
                self._waiting.append(call)
        return future

    def map(self, fn, *iterables, **options):
        """As `Executor.map`; the first call goes to worker 0."""
        self._turn = 0
        return super().map(fn, *iterables, **options)

    def shutdown(self, wait=True, *, cancel_futures=False):
        """No more calls, and no more workers once those made are done; those not begun may be cancelled."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for k in self._idle:
                    self._inboxes[k].put(None)
            while cancel_futures and self._waiting:
                future, _ = self._waiting.popleft()
                future.cancel()
                future.set_running_or_notify_cancel()
        if wait:
            for thread in self._threads:
                if thread.ident is not None:
                    thread.join()
            atexit.unregister(self.kill_workers)

    def kill_workers(self):
        """Shut down at once: calls that run raise WorkerError, those not begun are cancelled."""
        for worker in self._workers:
            worker.condemn()
        self.shutdown(cancel_futures=True)

    def __exit__(self, exc_type, exc_value, exc_traceback):
        if exc_type is None:
            self.shutdown()
        else:
            self.kill_workers()

    def _serve(self, k, started):
        """The thread of worker k: one call after the other until None comes.

        It also starts the processes: in the main thread a Ctrl-C could interrupt that half-way.
        """
        try:
            started.set_result(self._workers[k].start())
        except Exception as error:
            started.set_exception(error)
            return
        while (call := self._inboxes[k].get()) is not None:
            future, message = call
            value = error = None
            begun = future.set_running_or_notify_cancel()
            if begun:
                try:
                    value = self._persist(k, message)
                except Exception as e:  # WorkerError, or what reading the reply raised
                    error = e
            with self._lock:  # before the result is out: whoever waits for it then finds this worker idle
                if self._waiting:
                    self._inboxes[k].put(self._waiting.popleft())
                elif self._closed:
                    self._inboxes[k].put(None)
                else:
                    self._idle.add(k)
            if error is not None:
                future.set_exception(error)
            elif begun:
                future.set_result(value)
        self._workers[k].end()

    def _persist(self, k, message):
        worker = self._workers[k]
        for _ in range(self.retries + 1):
            try:
                return worker.call(message, self.timeout)
            except _Failure as failure:
                last = failure
                worker.kill()
            if worker.condemned:
                raise WorkerError(f"worker {k}: killed as the pool was shut down")
        raise WorkerError(f"worker {k}: gave up after {self.retries + 1} attempts: {last}") from last.__cause__


class LateExecutor(Executor):
    """An executor that start() makes at the first call."""

    def __init__(self, start):
        self.start, self.executor = start, None

    def _started(self):
        self.executor = self.executor or self.start()
        return self.executor

    def submit(self, fn, /, *args, **kwargs):
        """As the executor's."""
        return self._started().submit(fn, *args, **kwargs)

    def map(self, fn, *iterables, **options):
        """As the executor's."""
        return self._started().map(fn, *iterables, **options)

    @property
    def restarted(self):
        """As `Pool`'s."""
        return self.executor.restarted if self.executor else 0

    def kill_workers(self):
        """As `Pool`'s."""
        if self.executor:
            self.executor.kill_workers()


class _Failure(Exception):
    """One attempt at a call failed: the message says how, the cause is what the call raised."""


_starting = threading.Lock()  # one at a time: a process forked while another starts would hold that one's pipes open


class _Worker:
    """One process at a time, and the connection to it; no call but `condemn` from two threads at once."""

    def __init__(self, context, at_start):
        self.context, self.at_start = context, at_start
        self.process, self.starts, self.condemned = None, 0, False

    def start(self):
        """A fresh process takes the place of the last one."""
        if self.condemned:
            raise _Failure("the pool was shut down")
        self.starts, self.ready = self.starts + 1, False
        with _starting, _one_blas_thread():
            self.connection, theirs = self.context.Pipe()
            with theirs:
                process = self.context.Process(target=_work, args=(theirs, *self.at_start))
                process.start()
        self.process = process
        if self.condemned:
            process.kill()

    def call(self, message, seconds):
        """The value of a pickled call (fn, args, kwargs); _Failure if it cannot be had within that time."""
        if not self.process.is_alive():
            try:
                self.start()
            except OSError as error:
                raise _Failure(f"no process could be started: {error}") from error
        if not self.ready:
            self._exchange(None, START_SECONDS)
            self.ready = True
        return self._exchange(message, seconds)

    def _exchange(self, message, seconds):
        began, alarm = time.monotonic(), None
        if seconds is not None:
            alarm = threading.Timer(seconds, self.process.kill)
            alarm.daemon = True
            alarm.start()
        try:
            if message is not None:
                self.connection.send_bytes(message)
            wait([self.connection, self.process.sentinel])
            if not self.connection.poll():
                raise EOFError
            reply = self.connection.recv_bytes()
        except (EOFError, OSError):
            self.process.join()
            if seconds is not None and time.monotonic() - began >= seconds:
                raise _Failure(f"no answer within {seconds:g} s") from None
            raise _Failure(f"its process ended (exit code {self.process.exitcode})") from None
        finally:
            if alarm is not None:
                alarm.cancel()
        value, error, origin = pickle.loads(reply)
        if error is None:
            return value
        error.__cause__ = _Origin(origin)
        raise _Failure(f"it raised {type(error).__name__}: {error}") from error

    def kill(self):
        """The process is gone afterwards."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def condemn(self):
        """Kill the process, and any other that is being started; from any thread."""
        self.condemned = True
        if self.process is not None:  # not yet, where an earlier one's start failed
            self.process.kill()

    def end(self):
        """Let the process come to its end; kill it if it will not."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(b"")
        self.process.join(timeout=1)
        self.kill()


class _Origin(Exception):
    """The traceback of an exception in a worker, to be shown above the parent's."""

    def __str__(self):
        return f"\n{self.args[0]}"


@contextlib.contextmanager
def _no_interrupts():
    """Ctrl-C waits until the end; what starts meanwhile, threads and processes, and what these start, never see it."""
    ensure_running()  # multiprocessing's resource tracker, whose own start would let Ctrl-C through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _one_blas_thread():
    """The environment of a process that starts meanwhile."""
    before = {name: os.environ.get(name) for name in BLAS_THREADS}
    os.environ.update(dict.fromkeys(BLAS_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(connection, initializer, initargs):
    """The life of a worker process: answers calls until an empty message comes."""
    global _starting
    _starting = threading.Lock()  # a forked one's is locked
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the parent may be gone before `_end_with_parent` can tell
        connection.send_bytes(_outcome(initializer or (lambda: None), *initargs))
        while message := connection.recv_bytes():
            connection.send_bytes(_outcome(_made, message))


def _end_with_parent():
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _made(message):
    fn, args, kwargs = pickle.loads(message)
    return fn(*args, **kwargs)


def _outcome(fn, *args):
    """(value, exception, traceback) of fn(*args), pickled."""
    try:
        return pickle.dumps((fn(*args), None, None))
    except BaseException as error:
        origin = traceback.format_exc()
        try:
            failure = pickle.dumps((None, error, origin))
            pickle.loads(failure)  # exceptions of their own making often cannot
            return failure
        except Exception:
            return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), origin))
