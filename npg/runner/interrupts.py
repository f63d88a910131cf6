"""Ends a script at Ctrl-C with one line and no traceback; protects it from a closed, full or broken standard error.

A script imports this module before all slow imports. So this module itself must import fast.
"""

import contextlib
import os
import signal
import sys

LINE = "interrupted"


def leave_at_once():
    """From now on, Ctrl-C ends this process with one line and exit code 130: used during imports. `run` ends this."""
    _handle(_leave)


def _handle(handler, number=signal.SIGINT):
    try:
        signal.signal(number, handler)
    except ValueError:  # only the main thread can set handlers
        pass


def _leave(number, frame):
    try:
        os.write(2, f"\n{LINE}\n".encode())
    except OSError:
        pass
    os._exit(128 + number)


def run(main):
    """Runs main(), a script's work after its imports. Returns the exit code: main's, or 130 after Ctrl-C."""
    _handle(signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:
        _handle(signal.SIG_IGN)
        code = 130
        print(f"\n{LINE}", file=sys.stderr)
    finally:  # also after an error of argparse
        _handle(signal.SIG_IGN)  # only the end of the process is left
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def restored():
    """After this block, Ctrl-C and SIGTERM are handled as before it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            _handle(signal.SIG_DFL if handler is None else handler, number)


class Forgiving:
    """A text stream that ignores write errors, because a message on the screen must not end a training."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        """Writes to the stream, if the stream still works."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self):
        """Flushes the stream, if the stream still works."""
        self._try(lambda: self.stream.flush())

    def _try(self, act):
        if self.stream is not None:
            try:
                act()
            except (OSError, ValueError):
                _silence(self.stream)
                self.stream = None

    def isatty(self):
        """Whether the stream is a terminal."""
        return self.stream is not None and not self.stream.closed and self.stream.isatty()

    def __getattr__(self, name):
        return getattr(self.__dict__["stream"], name)


def _silence(stream):
    """Redirects the stream to nowhere. Otherwise Python would try to write its buffer again at the end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass
