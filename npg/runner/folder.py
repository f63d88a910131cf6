"""The folder of a run: a lock for the folder, and safe writing of its files.

    taken               a folder belongs to one process at a time
    write_atomically    a file is replaced as a whole, or not at all
"""

import contextlib
import json
import os
import pathlib
import secrets
import threading

try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import msvcrt  # only on Windows
except ImportError:
    msvcrt = None

LOCK = ".lock"
OF_A_RUN = "config.json", "metrics.csv", "checkpoint.npz"
FILES = *OF_A_RUN, "result.json", "learning_curve.png", "policy.gif", "error.txt"
_mine = set()  # folders that this process has locked: the system's locks stop only other processes
_taking = threading.Lock()  # one thread at a time looks into `_mine`, locks a folder and adds it


class RunError(Exception):
    """A folder, a file or an argument cannot be used. The message is one line for the user."""


class InUse(RunError):
    """Another run is writing in this folder."""


def one_line(error):
    """The text of an exception in one line: each line break becomes a space."""
    return " ".join(str(error).split())


@contextlib.contextmanager
def writing(path):
    """Turns an OSError into a RunError that names `path`."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_unused(folder):
    """RunError if the folder holds a run already."""
    if any((folder / name).exists() for name in OF_A_RUN):
        raise RunError(f"{folder}: holds a run already; --resume continues it, or choose another --out")


@contextlib.contextmanager
def taken(folder):
    """Makes the folder if necessary and locks it. InUse if another process, or this one, has locked it already.

    The system releases the lock when this process ends, even if the process is killed. The file `LOCK` is removed at
    the end. A killed process leaves the file, but the file alone locks nothing.
    """
    folder = pathlib.Path(folder)
    path = folder / LOCK
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        key = str(folder.resolve())
        try:
            with _taking:
                if key in _mine:
                    raise BlockingIOError
                lock = _locked(path)
                _mine.add(key)
        except BlockingIOError:
            text = f"{folder}: another run is writing here; wait for its end, or choose another folder"
            raise InUse(text) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows cannot remove an open file
            os.unlink(path)
        os.close(lock)
        _mine.discard(key)  # last: to close the file also unlocks it for another thread that has it


def _locked(path):
    """Opens and locks a file, returns its descriptor. BlockingIOError if another process has locked the file."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif msvcrt:
                msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(lock)
            if isinstance(error, PermissionError):  # EACCES means locked, on some systems
                raise BlockingIOError from None
            raise
        os.close(lock)  # its owner has just removed this file: open a new file


def write_atomically(path, write):
    """Calls write(file) for a temporary file beside `path`. The temporary file then replaces `path`: never half a file.

    No other process uses the name of the temporary file. If writing fails, the temporary file is removed, and RunError
    is raised for an OSError.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with writing(path):
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # it still exists only after an error


def remove_leftovers(folder):
    """Removes the temporary files of a killed process. The caller must have `taken` the folder."""
    for name in FILES:
        for path in folder.glob(f"{name}.*tmp"):
            path.unlink(missing_ok=True)


def write_json(path, value):
    """Writes a value as JSON, atomically. NaN and Inf become null, because JSON has neither."""
    clean = json.loads(json.dumps(value), parse_constant=lambda name: None)
    write_atomically(path, lambda file: file.write((json.dumps(clean, indent=2) + "\n").encode()))
