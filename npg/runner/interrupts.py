"""Ctrl-C in one line, without a traceback; and a standard error that may be closed, full or a broken pipe.

Light to import: a script imports it before anything that takes time.
"""

import os
import signal
import sys
import threading

LINE = "interrupted"


def leave_at_once():
    """Until further notice Ctrl-C ends this process with one line and exit code 130: for imports, say."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _leave)


def _leave(number, frame):
    try:
        os.write(2, f"\n{LINE}\n".encode())
    except OSError:
        pass
    os._exit(128 + number)


def run(main):
    """The exit code of main(), a script's work after its imports: 130 where Ctrl-C ends it."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = 130
        print(f"\n{LINE}", file=sys.stderr)
    if in_main_thread:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is the end of the process
    return code if isinstance(code, int) else 0


class Forgiving:
    """A text stream that ignores it when nothing can be written: what is shown on the way may not end a training."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        """As the stream's, if there is one that works."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self):
        """As the stream's, if there is one that works."""
        self._try(lambda: self.stream.flush())

    def _try(self, act):
        if self.stream is not None:
            try:
                act()
            except (OSError, ValueError):
                _silence(self.stream)
                self.stream = None

    def isatty(self):
        """Whether a person reads it."""
        return self.stream is not None and not self.stream.closed and self.stream.isatty()

    def __getattr__(self, name):
        return getattr(self.__dict__["stream"], name)


def _silence(stream):
    """What the stream has kept goes nowhere, else the end of the process would try to write it again."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass
