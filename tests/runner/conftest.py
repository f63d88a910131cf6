import pathlib
import shlex
import shutil
import signal

import numpy as np
import pytest
from running import SCRIPT, Result, tiny

from npg.runner import command_line, figures, playing


@pytest.fixture
def no_figures(monkeypatch):
    """No picture is drawn, because this takes longer than these runs. `finished` and other processes draw."""
    monkeypatch.setattr(figures, "learning_curve", lambda *args: b"picture")


@pytest.fixture
def call(capsys):
    """call(flags, out=folder) → exit code and output of one command line."""
    handler = signal.getsignal(signal.SIGINT)

    def run(flags="", **folders):
        argv = shlex.split(flags)
        for flag, folder in folders.items():
            argv += [f"--{flag}", str(folder)]
        capsys.readouterr()
        try:
            code = command_line.main(SCRIPT, argv)
        except SystemExit as stop:
            code = stop.code
        finally:
            signal.signal(signal.SIGINT, handler)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a run that has spent its budget. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert command_line.main(SCRIPT, [*tiny(more="--steps 300").split(), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of `finished`, for tests that write to it."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def scripted(monkeypatch):
    """scripted(*means): evaluations return these means in turn, then the last one again. Returns the seeds used."""

    def script(*means):
        means, asked = list(means), []

        def play(envs, act, episodes, *seeds):
            asked.append(seeds)
            mean = means.pop(0) if len(means) > 1 else means[0]
            if isinstance(mean, type):
                raise mean
            return np.full(episodes, float(mean)), np.ones(episodes, int)

        monkeypatch.setattr(playing, "play", play)
        return asked

    return script
