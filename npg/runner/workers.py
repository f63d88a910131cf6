"""Worker processes whose calls survive that a process dies, hangs or raises.

Whatever in npg computes elsewhere calls `map(fn, items)`: of a `Pool` on this machine, of Dask's
`Client.get_executor(pure=False)` on a cluster. Both repeat a call elsewhere where a process dies.

What workers share is handed to them as they start: `shared_array`s among the pool's `initargs`. What a worker keeps
from one call to the next, such as an environment, which cannot be sent, it keeps with `kept`.
"""

import atexit
import collections
import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from multiprocessing.connection import wait
from multiprocessing.context import assert_spawning
from multiprocessing.resource_tracker import ensure_running
from multiprocessing.sharedctypes import RawArray

import numpy as np

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
START_SECONDS = 60  # more time for the first call of a process, which has to import what it needs
KEPT = 16  # objects a worker remembers
PR_SET_PDEATHSIG, SIGKILL = 1, 9  # of Linux


class WorkerError(Exception):
    """A call failed in every process that tried it; the message says how, the cause is what it raised, if it did."""


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


class Pool:
    """`n` worker processes; a call whose process dies, hangs or raises is repeated in a fresh one.

    start_method  "spawn" (a fresh interpreter, a second until it has imported what it needs), "forkserver" or "fork"
                  (milliseconds, but unsafe where the parent has threads, such as ale-py's)
    timeout       seconds a call may take before its process counts as hung and is killed; None: for ever
    retries       times a call is repeated before `map` raises WorkerError
    initializer   called with initargs in each process as it starts; `shared_array`s among them stay shared

    Processes start with the first call. They ignore Ctrl-C, which is the parent's to handle; they use one BLAS thread
    each (by environment variables; after "fork", where NumPy is loaded already, as many as the parent). They end when
    their parent does, however it ends: on Linux the kernel kills them. Elsewhere, after "forkserver", and where another
    thread than the main one started them, they notice it themselves, unless they are stopped or do not let Python run.
    """

    def __init__(self, n, start_method="spawn", timeout=None, retries=3, initializer=None, initargs=()):
        if n < 1:
            raise ValueError(f"n: expected at least 1 worker, got {n}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout: expected a positive number of seconds or None, got {timeout}")
        if retries < 0:
            raise ValueError(f"retries: expected at least 0, got {retries}")
        context = multiprocessing.get_context(start_method)
        self.timeout, self.retries = timeout, retries
        self.workers = [_Worker(context, initializer, initargs) for _ in range(n)]
        atexit.register(self.kill_workers)

    @property
    def restarted(self):
        """Processes that took the place of another."""
        return sum(max(0, worker.starts - 1) for worker in self.workers)

    def map(self, fn, *iterables):
        """[fn(*args) for args in zip(*iterables)]: call k by worker k, those after n by whichever is free first."""
        todo = collections.deque((k, pickle.dumps((fn, args))) for k, args in enumerate(zip(*iterables)))
        free, busy = collections.deque(self.workers), {}
        results, attempts = [None] * len(todo), collections.Counter()
        try:
            while todo or busy:
                while todo and free:
                    worker, (k, message) = free.popleft(), todo.popleft()
                    busy[worker] = k, message
                    worker.send(message, self.timeout)
                for worker in _that_have_answered(busy):
                    k, message = busy[worker]
                    try:
                        results[k] = worker.receive()
                        del busy[worker]
                        free.appendleft(worker)
                    except _Failure as failure:
                        attempts[k] += 1
                        if attempts[k] > self.retries:
                            at = self.workers.index(worker)
                            text = f"worker {at}: gave up after {attempts[k]} attempts: {failure}"
                            raise WorkerError(text) from failure.__cause__
                        worker.kill()
                        worker.send(message, self.timeout)
        except BaseException:
            self.kill_workers()  # none of them may still compute when the next call comes
            raise
        return results

    def kill_workers(self):
        """End all processes; the next `map` starts others."""
        for worker in self.workers:
            worker.kill()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill_workers()
        atexit.unregister(self.kill_workers)


class _Failure(Exception):
    """One attempt at a call failed: the message says how, the cause is what the call raised."""


class _Worker:
    """One process at a time, and the connection to it."""

    def __init__(self, context, initializer, initargs):
        self.context, self.at_start = context, (initializer, initargs)
        self.process, self.starts, self.alarm, self.late, self.refused = None, 0, None, False, None
        self.lock = threading.Lock()  # of `alarm`

    def send(self, message, seconds):
        """Ask for a pickled call (fn, args); after that many seconds the process is killed."""
        self.seconds, self.late, fresh = seconds, False, self.process is None or not self.process.is_alive()
        try:
            if fresh:
                self.kill()
                self._start()
            if seconds is not None:
                alarm = threading.Timer(seconds + START_SECONDS * fresh, lambda: self._kill_late(alarm))
                alarm.daemon, self.alarm = True, alarm
                alarm.start()
            self.connection.send_bytes(message)
        except OSError as error:  # `receive` says so
            self.refused = error

    def _start(self):
        self.connection, theirs = self.context.Pipe()
        in_main_thread = threading.current_thread() is threading.main_thread()
        with theirs, _no_interrupts(), _one_blas_thread():
            process = self.context.Process(target=_work, args=(theirs, in_main_thread, *self.at_start), daemon=True)
            process.start()
            self.process, self.starts = process, self.starts + 1

    def _kill_late(self, alarm):
        with self.lock:
            if self.alarm is alarm:  # else the answer has come meanwhile
                self.late = True
                self.process.kill()

    def receive(self):
        """The value of the call, once there is one or the process has ended; _Failure says why there is none."""
        try:
            if self.process is None:
                raise _Failure(f"no process could be started: {self.refused}")
            if not self.connection.poll():
                raise EOFError
            reply = self.connection.recv_bytes()
        except (EOFError, OSError):
            self.process.join()
            how = f"its process ended (exit code {self.process.exitcode})"
            raise _Failure(f"no answer within {self.seconds:g} s" if self.late else how) from None
        finally:
            self._calm()
        value, error, origin = pickle.loads(reply)
        if error is not None:
            error.__cause__ = _Origin(origin)
            raise _Failure(f"it raised {type(error).__name__}: {error}") from error
        return value

    def _calm(self):
        with self.lock:
            alarm, self.alarm = self.alarm, None
        if alarm is not None:
            alarm.cancel()

    def kill(self):
        """End the process, if there is one."""
        self._calm()
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def _that_have_answered(workers):
    """Those that have, or that have ended; waits for the first."""
    if any(worker.process is None for worker in workers):
        return [worker for worker in workers if worker.process is None]
    ready = wait([x for worker in workers for x in (worker.connection, worker.process.sentinel)])
    return [worker for worker in workers if worker.connection in ready or worker.process.sentinel in ready]


class _Origin(Exception):
    """The traceback of an exception in a worker, to be shown above the parent's."""

    def __str__(self):
        return f"\n{self.args[0]}"


@contextlib.contextmanager
def _no_interrupts():
    """A process that starts meanwhile does not see Ctrl-C, until it can ignore it (where the system has masks)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
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


def _work(connection, by_main_thread, initializer, initargs):
    """The life of a worker process: answers calls until its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if by_main_thread and sys.platform == "linux":  # the kernel also ends a process that is stopped or holds the GIL
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = connection.recv_bytes()
            reply = _outcome(message, initializer, initargs)
            initializer = None
            connection.send_bytes(reply)


def _end_with_parent():
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _outcome(message, initializer, initargs):
    """(value, exception, traceback) of a call, pickled."""
    try:
        if initializer is not None:
            initializer(*initargs)
        fn, args = pickle.loads(message)
        return pickle.dumps((fn(*args), None, None))
    except BaseException as error:
        origin = traceback.format_exc()
        try:
            failure = pickle.dumps((None, error, origin))
            pickle.loads(failure)  # exceptions of their own making often cannot
            return failure
        except Exception:
            return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), origin))
