"""The folder of a run: who may write there, and how a file is written.

    taken               a folder belongs to one process at a time
    write_atomically    a file is replaced whole, or not at all
"""

import contextlib
import json
import os
import pathlib
import secrets

try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import msvcrt  # of Windows
except ImportError:
    msvcrt = None

LOCK = ".lock"
FILES = "config.json", "metrics.csv", "checkpoint.npz", "result.json", "learning_curve.png"
_mine = set()  # locks of this process: the system's locks keep out other processes only


class RunError(Exception):
    """A folder or file that cannot be used; the message is one line for the user."""


def one_line(error):
    """What an exception says, in one line; a line break within becomes a space."""
    return " ".join(str(error).split())


@contextlib.contextmanager
def taken(folder):
    """Make the folder if it is not there, and take it; RunError where another process, or this one, has it.

    The system frees it when this process ends, however it ends. The file `LOCK` is removed at the end; a killed process
    leaves it, and it means nothing then.
    """
    folder = pathlib.Path(folder)
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        key = str(folder.resolve())
        if key in _mine:
            raise BlockingIOError
        lock = _locked(path)
    except BlockingIOError:
        raise RunError(f"{folder}: another run is writing here; wait for its end, or choose another folder") from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror}") from None
    _mine.add(key)
    try:
        yield
    finally:
        _mine.discard(key)
        with contextlib.suppress(OSError):  # Windows removes no open file
            os.unlink(path)
        os.close(lock)


def _locked(path):
    """A descriptor of the file, which is locked; BlockingIOError where somebody else has locked it."""
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
            if isinstance(error, PermissionError):  # EACCES: locked, on some systems
                raise BlockingIOError from None
            raise
        os.close(lock)  # its owner has just removed it: another file is the lock now


def write_atomically(path, write):
    """write(file) into a temporary file beside `path`, which then takes its place: never half a file.

    The temporary file has a name that no other process uses, and is removed where writing fails.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)  # it is still there only where something went wrong


def remove_leftovers(folder):
    """Remove the temporary files of a process that was killed; for whoever has `taken` the folder."""
    for name in FILES:
        for path in folder.glob(f"{name}.*tmp"):
            path.unlink(missing_ok=True)


def write_json(path, value):
    """Atomically; NaN, which JSON does not know, becomes null."""
    clean = json.loads(json.dumps(value), parse_constant=lambda name: None)
    write_atomically(path, lambda file: file.write((json.dumps(clean, indent=2) + "\n").encode()))
