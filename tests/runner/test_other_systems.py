"""The package runs without the functions that Windows or macOS lack, both with workers and without.

A `sitecustomize.py` removes each of these functions. Every process of the run imports this file when it starts.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BEGIN = """
import builtins, ctypes, multiprocessing, os, pathlib, signal, sys
def unavailable(*args, **kwargs):
    raise OSError("not on this system")
"""
WITHOUT = {
    "signal.pthread_sigmask": "del signal.pthread_sigmask",
    "fcntl": "sys.modules['fcntl'] = sys.modules['resource'] = None",
    "os.sched_getaffinity": "del os.sched_getaffinity",
    "fork": """
del os.fork
methods = multiprocessing.get_all_start_methods
multiprocessing.get_all_start_methods = lambda: [method for method in methods() if method == "spawn"]
""",
    "/proc and /sys": """
def without(read):
    def read_elsewhere(path, *args, **kwargs):
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(path)
        return read(path, *args, **kwargs)
    return read_elsewhere
builtins.open, pathlib.Path.open = without(open), without(pathlib.Path.open)
""",
    "prctl": """
import sysconfig
os.environ.setdefault("_PYTHON_SYSCONFIGDATA_NAME", sysconfig._get_sysconfigdata_name())  # of the Python that runs
sys.platform, ctypes.CDLL = "darwin", unavailable
""",
    "signal.SIGKILL": "import multiprocessing.popen_fork; kill = signal.SIGKILL; "
    "multiprocessing.popen_fork.Popen.kill = lambda self: self._send_signal(kill); del signal.SIGKILL",
}
TRAIN = "--workers", "2", "--steps", "400", "--episodes", "2", "--quiet"


def python(folder, lacking, code, *arguments):
    """The output of a Python program that runs without these functions."""
    text = "\n".join([BEGIN, *map(WITHOUT.get, lacking), f"open({str(folder / 'seen')!r}, 'a').write('.')"])
    (folder / "sitecustomize.py").write_text(text)
    env = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def train(folder, lacking, *flags):
    code = "import run_cartpole, sys; sys.exit(run_cartpole.main(run_cartpole.SCRIPT))"
    return python(folder, lacking, code, *flags)


def steps_of(run):
    """Number of environment steps of a finished run."""
    return json.loads((run / "result.json").read_text())["env_steps"]


def test_the_functions_are_really_removed(tmp_path):
    code = """
import os, pathlib, signal, multiprocessing, sys
assert not any(hasattr(signal, name) for name in ("pthread_sigmask", "SIGKILL"))
assert not any(hasattr(os, name) for name in ("fork", "sched_getaffinity"))
assert multiprocessing.get_all_start_methods() == ["spawn"] and sys.platform != "linux"
assert sys.modules["fcntl"] is None
for read in (open, lambda path: pathlib.Path(path).read_text()):
    try:
        read("/proc/self/cgroup")
    except FileNotFoundError:
        continue
    raise AssertionError
from npg.runner.machine import available_cores
assert available_cores() == os.cpu_count()
"""
    python(tmp_path, WITHOUT, code)


def test_a_run_without_workers_trains_resumes_and_plays_where_all_is_missing(tmp_path):
    run = tmp_path / "run"
    train(tmp_path, WITHOUT, "--quiet", "--steps", "600", "--episodes", "2", "--out", str(run))
    assert steps_of(run) >= 600
    train(tmp_path, WITHOUT, "--quiet", "--resume", str(run), "--steps", "1500")
    assert steps_of(run) >= 1500
    assert train(tmp_path, WITHOUT, "--evaluate", str(run)).startswith("return ")


def test_workers_train_where_all_is_missing(tmp_path):
    train(tmp_path, WITHOUT, "--algo", "a2c", *TRAIN, "--out", str(tmp_path / "run"))
    assert len((tmp_path / "seen").read_text()) >= 3  # the workers lack them, too


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["a2c", "a3c", "es"])
@pytest.mark.parametrize("lacking", [[name] for name in WITHOUT] + [list(WITHOUT)], ids=[*WITHOUT, "all"])
def test_workers_train_and_resume_where_something_is_missing(tmp_path, algo, lacking):
    run = tmp_path / "run"
    train(tmp_path, lacking, "--algo", algo, *TRAIN, "--out", str(run))
    train(tmp_path, lacking, "--quiet", "--resume", str(run), "--steps", "2500")
    assert steps_of(run) >= 2500
