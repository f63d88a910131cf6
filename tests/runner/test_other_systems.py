"""Without workers nothing needs what Windows or macOS lack."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
WITHOUT = """
import os, signal, sys
for module, name in ((signal, "pthread_sigmask"), (signal, "SIGKILL"), (os, "sched_getaffinity"), (os, "fork")):
    delattr(module, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
read = open
def open_without_proc(path, *args, **kwargs):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(path)
    return read(path, *args, **kwargs)
import builtins
builtins.open = open_without_proc
import run_cartpole
from npg.runner.command_line import main
sys.exit(main(run_cartpole.SCRIPT, sys.argv[1:]))
"""


def test_a_run_without_workers_trains_resumes_and_plays_where_linux_own_things_are_missing(tmp_path):
    def call(*flags):
        command = [sys.executable, "-c", WITHOUT, *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    run = str(tmp_path / "run")
    for flags in (
        ("--quiet", "--steps", "600", "--episodes", "2", "--out", run),
        ("--quiet", "--resume", run, "--steps", "1500"),
        ("--evaluate", run),
    ):
        result = call(*flags)
        assert (result.returncode, result.stderr) == (0, "")
