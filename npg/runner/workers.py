"""Worker processes. If a process dies, hangs or raises, its call is repeated in a new process.

npg calls `map(fn, items)` to compute in other processes: of a `Pool` on this machine, of Dask's
`Client.get_executor(pure=False)` on a cluster. (A3C on a cluster calls `submit`.) Both repeat a call in another process
if a process dies.

Workers receive shared memory when they start: `shared_array`s among the pool's `initargs`. Objects that cannot be sent,
such as environments, stay in a worker from one call to the next: `kept`.
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
START_SECONDS = 60  # additional time for the first call of a process, which must import its modules
KEPT = 16  # objects that a worker remembers
PR_SET_PDEATHSIG, SIGKILL = 1, 9  # constants of Linux


class WorkerError(Exception):
    """A call failed in every attempt. The message says how. If the call raised, the cause is its exception."""


class SharedArray(np.ndarray):
    """An array in shared memory. A `Pool` whose initargs contain the array gives its workers the same memory.

    A view of a `SharedArray`, or a result computed from a `SharedArray`, is pickled as an ordinary copy.
    """

    raw = None  # the memory; only the array that `shared_array` returned has it

    def __reduce_ex__(self, protocol):
        if self.raw is None:
            return np.asarray(self).__reduce_ex__(protocol)
        assert_spawning(self)
        return _over, (self.raw, self.shape, self.dtype)


def shared_array(shape, dtype=np.float32):
    """A `SharedArray` of zeros, in memory that processes share without a lock.

    The memory is freed when the last process that has it ends. Pickling the array as an argument of a call raises
    RuntimeError.
    """
    dtype = np.dtype(dtype)
    return _over(RawArray("b", max(1, dtype.itemsize * int(np.prod(shape)))), shape, dtype)


def _over(raw, shape, dtype):
    array = SharedArray(shape, dtype, buffer=raw)
    array.raw = raw
    return array


_memory = threading.local()  # a Dask worker may run several calls at a time


def kept(key, make):
    """The object that this process keeps under `key`. The first call with a key calls make() and keeps the result.

    A process remembers the `KEPT` keys that were used last.
    """
    memory = _memory.__dict__
    memory[key] = memory.pop(key) if key in memory else make()
    while len(memory) > KEPT:
        del memory[next(iter(memory))]
    return memory[key]


class Pool:
    """`n` worker processes. If a process dies, hangs or raises, its call is repeated in a new process.

    start_method  "spawn" (a new interpreter, which takes a second to import its modules), "forkserver" or "fork"
                  (milliseconds, but unsafe if the parent has threads, such as ale-py's)
    timeout       seconds after which the process of a call counts as hung and is killed; None: no limit
    retries       number of times that a call is repeated before `map` raises WorkerError
    initializer   called with initargs when a process starts; `shared_array`s among initargs stay shared

    Processes start with the first call. They ignore Ctrl-C; the parent handles it. Each process uses one BLAS thread,
    set by environment variables. (After "fork", NumPy is loaded already, so a process uses as many as the parent.)

    The processes end when their parent ends, even if it is killed. On Linux the kernel kills them. On other systems,
    after "forkserver", and if a thread other than the main thread started them, the processes must notice the end of
    the parent themselves. They cannot notice it while they are stopped or do not let Python run.
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
        atexit.register(self._exit)

    @property
    def restarted(self):
        """Number of processes that have replaced another process."""
        return sum(max(0, worker.starts - 1) for worker in self.workers)

    def map(self, fn, *iterables):
        """[fn(*args) for args in zip(*iterables)]. Worker k makes call k; a later call goes to the next free worker."""
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
                            text = f"worker {at}: attempt {attempts[k]} of {attempts[k]} failed: {failure}"
                            raise WorkerError(text) from failure.__cause__
                        worker.kill()
                        worker.send(message, self.timeout)
        except BaseException:
            self.kill_workers()  # no worker may still compute when the next `map` begins
            raise
        return results

    @contextlib.contextmanager
    def without_time_limit(self):
        """In this block, a call may take any time."""
        limit, self.timeout = self.timeout, None
        try:
            yield
        finally:
            self.timeout = limit

    def kill_workers(self):
        """Ends all processes. The next `map` starts new processes."""
        for worker in self.workers:
            worker.kill()

    def _exit(self):
        """Ends all processes when the interpreter ends. A `map` in another thread does not replace them: it fails."""
        self.retries = 0
        for process in [worker.process for worker in self.workers]:
            if process is not None:
                process.kill()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill_workers()
        atexit.unregister(self._exit)


class _Failure(Exception):
    """One attempt at a call failed. The message says how. If the call raised, the cause is its exception."""


class _Worker:
    """One worker: its present process, and the connection to this process."""

    def __init__(self, context, initializer, initargs):
        self.context, self.at_start = context, (initializer, initargs)
        self.process, self.starts, self.alarm, self.late, self.refused = None, 0, None, False, None
        self.lock = threading.Lock()  # protects `alarm`

    def send(self, message, seconds):
        """Sends a pickled call (fn, args) to the process. After `seconds` without an answer, the process is killed."""
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
        except OSError as error:  # `receive` reports it
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
            if self.alarm is alarm:  # otherwise the answer has come meanwhile
                self.late = True
                self.process.kill()

    def receive(self):
        """The value of the call, after the process has answered or ended. _Failure tells why there is no value."""
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
        """Ends the process, if there is one."""
        self._calm()
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def _that_have_answered(workers):
    """Waits until at least one worker has answered or its process has ended. Returns all such workers."""
    if any(worker.process is None for worker in workers):
        return [worker for worker in workers if worker.process is None]
    ready = wait([x for worker in workers for x in (worker.connection, worker.process.sentinel)])
    return [worker for worker in workers if worker.connection in ready or worker.process.sentinel in ready]


class _Origin(Exception):
    """The traceback of an exception in a worker. Python shows it above the parent's traceback."""

    def __str__(self):
        return f"\n{self.args[0]}"


@contextlib.contextmanager
def _no_interrupts():
    """Ctrl-C waits until the end of this block. A process that starts inside is protected until it ignores Ctrl-C.

    The signal mask protects the new process; on a system without masks, it is not protected. The mask does not protect
    the main thread: another thread may receive the signal, and then Python calls the main thread's handler.
    """
    noted = []
    handler = signal.getsignal(signal.SIGINT)
    defers = threading.current_thread() is threading.main_thread() and handler is not None
    if defers:
        signal.signal(signal.SIGINT, lambda *_: noted.append(True))
    masks = hasattr(signal, "pthread_sigmask")
    if masks:
        ensure_running()  # multiprocessing's resource tracker: its later start would let Ctrl-C through again
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if defers:
            signal.signal(signal.SIGINT, handler)
        if noted:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _one_blas_thread():
    """Sets environment variables: a process that starts inside this block uses one BLAS thread."""
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
    """The main function of a worker process: answers calls until the parent ends."""
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
    """Makes a pickled call. Returns (value, exception, traceback), pickled."""
    try:
        if initializer is not None:
            initializer(*initargs)
        fn, args = pickle.loads(message)
        return pickle.dumps((fn(*args), None, None))
    except BaseException as error:
        origin = traceback.format_exc()
        try:
            failure = pickle.dumps((None, error, origin))
            pickle.loads(failure)  # an exception class of the user often cannot be unpickled
            return failure
        except Exception:
            return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), origin))
