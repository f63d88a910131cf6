"""Ctrl-C gives one line and exit code 130. A stream that cannot be written does not end the script."""

import contextlib
import io
import os
import signal
import subprocess
import sys

import pytest

from npg.runner import interrupts
from npg.runner.interrupts import Forgiving

IMPORTING = (
    "import os, signal\nfrom npg.runner import interrupts\ninterrupts.leave_at_once()\n"
    "os.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('went on')"
)


@pytest.fixture
def handler():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_during_imports_is_one_line():
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")


def test_ctrl_c_in_a_scripts_work_is_one_line_and_a_second_one_is_ignored(handler, capsys):
    def work():
        os.kill(os.getpid(), signal.SIGINT)

    assert interrupts.run(work) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    os.kill(os.getpid(), signal.SIGINT)


def test_after_a_call_from_python_ctrl_c_is_handled_as_before():
    before = signal.getsignal(signal.SIGINT)
    for handler in (before, signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGINT, handler)
        with contextlib.suppress(ValueError), interrupts.restored():
            signal.signal(signal.SIGINT, lambda *_: None)
            raise ValueError
        assert signal.getsignal(signal.SIGINT) == handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("result, code", [(None, 0), (2, 2), ((1, 2), 0), (0.5, 0)])
def test_an_integer_that_the_work_returns_is_the_exit_code(handler, result, code):
    assert interrupts.run(lambda: result) == code


@pytest.mark.parametrize("stream", ["none", "closed", "full", "broken pipe"])
def test_a_stream_that_cannot_be_written_is_forgiven(stream):
    if stream == "none":
        file = None
    elif stream == "closed":
        file = io.StringIO()
        file.close()
    elif stream == "full":
        file = open("/dev/full", "w")
    else:
        end, beginning = os.pipe()
        os.close(end)
        file = open(beginning, "w")
    forgiving = Forgiving(file)
    assert not forgiving.isatty()
    for _ in range(3):
        print("hello", file=forgiving, flush=True)
    if file is not None:
        file.close()  # so that Python does not write it again at its end


def test_a_stream_that_works_is_written():
    file = io.StringIO()
    print("hello", file=Forgiving(file))
    assert file.getvalue() == "hello\n"
