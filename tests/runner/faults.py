#!/usr/bin/env python
"""What can go wrong in a worker, for the tests to import; as a script, workers to be interrupted or orphaned.

    python tests/runner/faults.py START_METHOD PATH

It writes PATH as it begins to make a pool; its two workers write PATH0 and PATH1, their ids, and hang.
"""

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
    """An exception whose pickle cannot be read, as those with arguments of their own often are."""

    def __init__(self, number, reason):
        super().__init__(f"{number}: {reason}")


def raise_unpicklable():
    raise Unpicklable(7, "no reason")


def unpicklable():
    return lambda: None


class Unreadable:
    """Its pickle can be written, but not read."""

    def __reduce__(self):
        return int, ("no number",)


class KillsSoon:
    """Its process is killed some milliseconds after this has been pickled."""

    def __reduce__(self):
        threading.Thread(target=kill_soon, daemon=True).start()
        return KillsSoon, ()


def kill_soon():
    for _ in range(10):
        time.sleep(0.001)  # each needs the interpreter's lock anew, so that these are milliseconds of writing
    kill()


def kill_while_answering():
    return bytes(100_000_000), KillsSoon()


FAULTS = spin, sleep, stop, kill, kill_while_answering, leave, exit, raise_error, raise_unpicklable, unpicklable
FAULTS = {f.__name__: f for f in FAULTS}


def once(path, fault):
    """The first time: write the process's id to a path, and the fault follows; then its id is returned."""
    if pathlib.Path(path).exists():
        return os.getpid()
    write_pid(path)
    return FAULTS[fault]()


def write_pid(path):
    temporary = pathlib.Path(f"{path}.tmp")
    temporary.write_text(str(os.getpid()))
    temporary.rename(path)


def pid():
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
    """{name: value} of the environment that this process's program was started with."""
    text = pathlib.Path("/proc/self/environ").read_bytes().decode()
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)


def count(key):
    """How many calls this process has had with that key."""
    counter = kept(key, lambda: [0])
    counter[0] += 1
    return counter[0]


def in_a_pool_of_its_own(x):
    with Pool(1, "fork") as pool:
        return pool.submit(same, x).result()


def hang(path, fault):
    write_pid(path)
    FAULTS[fault]()


def abandon_a_pool(path):
    Pool(1, "fork").submit(hang, path, "sleep")
    pid_once_there(path)


if __name__ == "__main__":
    _, method, path = sys.argv
    try:
        write_pid(path)
        with Pool(2, method, initializer=share, initargs=(shared_array(1000),)) as pool:
            for call in [pool.submit(hang, f"{path}{k}", fault) for k, fault in enumerate(["sleep", "spin"])]:
                call.result()
    except KeyboardInterrupt:
        sys.exit(130)
