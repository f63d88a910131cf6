#!/usr/bin/env python
"""Faults of a worker, which the tests import. As a script: a pool whose script a test interrupts or kills.

    python tests/runner/faults.py START_METHOD PATH FAULT …

The script writes the file PATH and then makes a pool with one worker per fault. Worker k writes its process id into
the file PATHk; then its fault follows.
"""

import ctypes
import json
import os
import pathlib
import signal
import sys
import threading
import time

import numpy as np

from npg.runner.workers import Pool, kept, shared_array

shared = None


def share(array):
    global shared
    shared = array


def spin():
    while True:
        pass


def sleep():
    time.sleep(600)


def hold_gil():
    ctypes.PyDLL(None).sleep(600)  # like an environment that computes for long and does not let Python run


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(7)


def exit():
    sys.exit(7)


def raise_error():
    raise ValueError("the environment broke")


class Unpicklable(Exception):
    """An exception whose pickle cannot be read. Exceptions with arguments of their own are often like this."""

    def __init__(self, number, reason):
        super().__init__(f"{number}: {reason}")

    def __reduce__(self):  # as Exception does it; written here because Dask's tblib, if imported, repairs the default
        return Unpicklable, self.args


def raise_unpicklable():
    raise Unpicklable(7, "no reason")


def unpicklable():
    return lambda: None


class Unreadable:
    """Its pickle can be written, but not read."""

    def __reduce__(self):
        return int, ("no number",)


class UnreadableFile(Unreadable):
    """The same. To read it raises OSError, as a broken connection does."""

    def __reduce__(self):
        return open, ("/no/such/file",)


class KillsSoon:
    """Its process is killed some milliseconds after this has been pickled."""

    def __reduce__(self):
        threading.Thread(target=kill_soon, daemon=True).start()
        return KillsSoon, ()


def kill_soon():
    for _ in range(10):
        time.sleep(0.001)  # each needs the GIL again, so the answer is being written meanwhile
    kill()


def kill_while_answering():
    return bytes(100_000_000), KillsSoon()


FAULTS = (
    *(spin, sleep, hold_gil, stop, kill, kill_while_answering, leave, exit),
    *(raise_error, raise_unpicklable, unpicklable),
)
FAULTS = {f.__name__: f for f in FAULTS}


def once(path, fault):
    """The first call writes the process's id to a path and has the fault. A later call returns the process's id."""
    if pathlib.Path(path).exists():
        return os.getpid()
    write_pid(path)
    return FAULTS[fault]()


def write_pid(path):
    temporary = pathlib.Path(f"{path}.tmp")
    temporary.write_text(str(os.getpid()))
    temporary.rename(path)


def call(fn, *args):
    return fn(*args)


def pid(_=None):
    return os.getpid()


def pid_after(seconds):
    time.sleep(seconds)
    return os.getpid()


def pid_once_there(path):
    while not pathlib.Path(path).exists():
        time.sleep(0.01)
    return os.getpid()


def same(x):
    return x


def add(x):
    shared[...] += x
    return np.array(shared)


def twice_shared():
    return 2 * shared


def return_shared():
    return shared


def environment_at_birth():
    """{name: value} of the environment variables with which this process started."""
    text = pathlib.Path("/proc/self/environ").read_bytes().decode()
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)


def print_environments(method):
    """Prints the environment variables with which a worker starts, and those of this process afterwards."""
    with Pool(1, method) as pool:
        at_birth = pool.map(call, [environment_at_birth])[0]
    print(json.dumps([at_birth, dict(os.environ)]))


def count(key):
    """The number of calls with this key in this process."""
    counter = kept(key, lambda: [0])
    counter[0] += 1
    return counter[0]


def hang(path, fault):
    write_pid(path)
    FAULTS[fault]()


ENDINGS = {
    "by itself": lambda: None,
    "by sys.exit": lambda: sys.exit(3),
    "by an exception": raise_error,
    "by os._exit": leave,
    "by SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "by SIGKILL": kill,
}


def abandon_a_pool(method, path, ending):
    """Leaves a pool with an idle worker, without ending it."""
    Pool(1, method).map(write_pid, [path])
    ENDINGS[ending]()


def abandon_a_call(path):
    """Leaves a call that never ends, in a thread for which nobody waits."""
    pool = Pool(1, "fork")
    threading.Thread(target=pool.map, args=(hang, [path], ["sleep"]), daemon=True).start()
    pid_once_there(path)


if __name__ == "__main__":
    _, method, path, *names = sys.argv
    try:
        write_pid(path)
        with Pool(len(names), method, initializer=share, initargs=(shared_array(1000),)) as pool:
            pool.map(hang, [f"{path}{k}" for k in range(len(names))], names)
    except KeyboardInterrupt:
        sys.exit(130)
