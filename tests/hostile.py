#!/usr/bin/env python
"""Damages, kills and interrupts short runs on purpose. Nothing may be lost or left behind; each refusal is one line.

    python tests/hostile.py [what …] [--configs 2] [--damages 60] [--starts 3] [--kills 4] [--interrupts 18]

    configs       every field of a config.json × nasty values (--configs: the number of values per field; 0: all)
    checkpoints   checkpoint.npz that is cut short, or has a flipped bit or an invented header; damaged metrics.csv
    starts        two starts in one folder; --resume of a run that is still running
    kills         SIGKILL at random moments; the resumed run ends with the same arrays
    interrupts    Ctrl-C at random moments of each command and each example
    environments  that raise, exit, print, fork, never end, or return nonsense; with and without workers

The defaults are a fixed sample that takes a few minutes. If a promise is broken, the script prints which promise and
how, and exits with 1.
"""

import argparse
import collections
import contextlib
import importlib.util
import io
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np

from npg.runner import command_line
from npg.runner.metrics import read_metrics
from npg.runner.saved import read_checkpoint
from run_cartpole import SCRIPT

ROOT = pathlib.Path(__file__).parents[1]
TINY = "--quiet --hidden 8 --envs 2 --n-steps 8 --episodes 2 --evaluate-every 50 --target 1000"
SEARCH = "--quiet --episodes 2 --evaluate-every 50 --target 1000 --n-candidates 2"
HANG = 5  # seconds; a refusal that takes longer counts as missing


class Accepted(BaseException):
    """Stands in for a training or an evaluation: the run's files have passed all checks."""


class Report:
    """Counts what was tried, and remembers each promise that was broken."""

    def __init__(self):
        self.tried, self.broken = collections.Counter(), []

    def check(self, what, holds, text):
        self.tried[what] += 1
        if not holds:
            self.broken.append(f"{what}: {text}")


def contents(folder):
    """{name: bytes} of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(argv, script=SCRIPT):
    """Runs a command line in this process: (exit code or "accepted", its output, seconds)."""
    def late(*_):
        raise TimeoutError(f"no answer within {HANG} s")

    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command_line.main(script, argv)
    except SystemExit as end:
        code = end.code
    except Accepted:
        code = "accepted"
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    return code, out.getvalue() + err.getvalue(), time.monotonic() - began


def one_update(run, learner):
    """Trains for one update, to show that the settings work."""
    if all(x < 10**6 for x in run.config["settings"].values() if type(x) is int):  # else an update may take for ever
        next(learner.updates)
    raise Accepted


# ---- config.json

DEEP = "<deep>"  # stands for JSON that is nested 100,000 times
NASTY = [
    None, True, False, 0, -1, 1, 2, 0.5, 1.5, -0.5, 1e-300, 1e308, math.inf, -math.inf, math.nan, 10**12, 2**63, 10**30,
    -(10**30), "", "x", "1", "none", "\n", "é\0", "../../etc/passwd", [], [None], [0], [1], [-1], [1.5], ["x"], [[1]],
    {}, {"a": 1}, DEEP,
]  # fmt: skip
NEGATIVE = {"target", "evaluate_from", "log_std", "search_log_std"}  # settings that may also be negative
ZERO = NEGATIVE | {
    *("seed", "ahead", "gamma", "lam", "proximal", "value_coef", "entropy_coef", "sticky", "narrow", "workers"),
}  # fmt: skip
NOTHING = {
    *("target", "evaluate_from", "episodes", "critic_learning_rate"),
    *("max_grad_norm", "start_from", "cluster", "workers"),
}  # fmt: skip
WORDS = {  # nasty strings that are valid values of these settings
    "checkpoint_every": ("1", "none"),
    "shaping": ("none",),
    "start_from": ("x", "1", "none", "\n", "é\0", "../../etc/passwd"),  # a resumed run no longer reads it
}


def may_be(name, value, was):
    """Whether a config with this value may be accepted. These rules are independent of `npg.runner.settings`."""
    if name == "versions" or value == was and type(value) is type(was):
        return True
    if value is None:
        return name in NOTHING
    if isinstance(was, bool) or isinstance(value, bool):
        return isinstance(was, bool) and isinstance(value, bool)
    if isinstance(was, list):
        return isinstance(value, list) and all(type(x) is int and x > 0 for x in value)
    if isinstance(value, (list, dict)):
        return False
    if isinstance(was, str) or isinstance(value, str):
        return value in WORDS.get(name, ())
    fits = math.isfinite(value) and (not isinstance(was, int) or isinstance(value, int))
    whole = isinstance(was, int)
    fits = fits and (name == "seed" or not whole or value < 2**63)
    return fits and (value > 0 or value == 0 and name in ZERO or name in NEGATIVE)


def refused_or_accepted(report, run, what, may_pass, script, flags=("--resume", "--evaluate")):
    """Runs each command on a damaged run. It must refuse in one line and change nothing, or accept if `may_pass`."""
    before = contents(run)
    for flag in flags:
        code, said, seconds = command(["--quiet", flag, str(run)], script)
        text = f"{flag} with {what}: {code}: {said[:200]!r}"
        if code in ("accepted", 0):
            report.check("nothing out of range accepted", may_pass, text)
            restore(run, before)
        else:
            line = code == 2 and said.count("\n") == 1 and said.endswith("\n") and "Traceback" not in said
            report.check("refused in one line", line, text)
            report.check("nothing changed by a refusal", contents(run) == before, text)
        report.check("no hang", seconds < HANG, text)


def restore(run, files):
    """Give a folder exactly these files."""
    for path in run.iterdir():
        path.unlink()
    for name, data in files.items():
        (run / name).write_bytes(data)


def short_run(folder, flags):
    """Makes a run that has ended, but whose config allows more steps. Returns its files, as `contents`."""
    code, said, _ = command([*flags.split(), "--steps", "200", "--out", str(folder)])
    assert code == 0, said
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "steps": 10**6}))
    return contents(folder)


def configs(report, options, folder, rng):
    """Each field of the configs of three runs × nasty values."""
    script = SCRIPT._replace(train=one_update)
    runs = f"{TINY} --epochs 1 --algo ppo", f"{TINY} --algo a2c --env Pendulum-v1", f"{SEARCH} --algo es"
    for k, flags in enumerate(runs):
        run = folder / f"run{k}"
        files = short_run(run, flags)
        config = json.loads(files["config.json"])
        for place, name in [(None, name) for name in config] + [("settings", name) for name in config["settings"]]:
            was = (config[place] if place else config)[name]
            chosen = rng.permutation(len(NASTY))[: options.configs or None]
            for value in (NASTY[i] for i in chosen):
                edited = json.loads(files["config.json"])
                (edited[place] if place else edited)[name] = value
                text = json.dumps(edited).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000)
                restore(run, {**files, "config.json": text.encode()})
                what = f"{name} = {str(value)[:40]!r} in config.json of {config['algo']}"
                refused_or_accepted(report, run, what, may_be(name, value, was), script)


# ---- checkpoint.npz and metrics.csv


def checkpoints(report, options, folder, rng):
    """A damaged file is refused, or θ is read as it was written. (A flipped bit in the zip's date does no harm.)"""
    script, run = SCRIPT._replace(train=one_update), folder / "run"
    files = short_run(run, f"{TINY} --epochs 1 --algo ppo")
    good, metrics = files["checkpoint.npz"], files["metrics.csv"]
    theta = read_checkpoint(run)["theta"]
    damaged = {}
    for k in range(options.damages // 2):
        at = int(rng.integers(len(good)))
        flipped = bytearray(good)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged[f"checkpoint.npz cut at byte {at}"] = good[:at]
        damaged[f"checkpoint.npz with byte {at} flipped ({k})"] = bytes(flipped)
    with np.load(io.BytesIO(good)) as file:
        arrays = dict(file)

    def packed(save=np.savez, **changes):
        out = io.BytesIO()
        save(out, **{**arrays, **changes})
        return out.getvalue()

    damaged["a checkpoint that is compressed zeros, 1 GB"] = packed(np.savez_compressed, theta=np.zeros(2**27))
    damaged["θ with NaN"] = packed(theta=np.full_like(theta, np.nan))
    damaged["θ of another type"] = packed(theta=theta.astype(float))
    damaged["θ of objects"] = packed(theta=np.array([{}], object))
    huge = io.BytesIO()
    with zipfile.ZipFile(huge, "w") as file:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"
        file.writestr("theta.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    damaged["θ whose header promises 4 TB"] = huge.getvalue()
    for what, data in damaged.items():
        restore(run, {**files, "checkpoint.npz": data})
        try:
            same = np.array_equal(read_checkpoint(run)["theta"], theta)
        except Exception:
            same = False
        refused_or_accepted(report, run, what, same, script)
    rows = metrics.splitlines(keepends=True)
    for what, data in {
        "metrics.csv empty": b"", "metrics.csv without its first row": rows[0] + b"".join(rows[2:]),
        "metrics.csv with a row twice": rows[0] + rows[1] + b"".join(rows[1:]), "metrics.csv of noise": rng.bytes(500),
        "metrics.csv without its header": b"".join(rows[1:]), "metrics.csv of words": metrics.replace(b",", b",x"),
        "metrics.csv gone": None,
    }.items():  # fmt: skip
        damaged = {**files, "metrics.csv": data}
        restore(run, {name: data for name, data in damaged.items() if data is not None})
        refused_or_accepted(report, run, what, False, script, ["--resume"])


# ---- processes


def start(flags, script="run_cartpole.py", env=None, cwd=ROOT):
    """Starts a command line in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "runner")]), **(env or {})}
    argv = [sys.executable, "-W", "ignore", str(ROOT / script), *flags]
    return subprocess.Popen(argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process, seconds=120):
    """Waits for a process: (exit code, its stderr). The exit code is "hangs" if the process does not end."""
    try:
        _, said = process.communicate(timeout=seconds)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "hangs", ""


def one_loses(said):
    """Whether the second run was refused in one line."""
    return said.count("\n") == 1 and ("another run is writing" in said or "holds a run already" in said)


def starts(report, options, folder, rng):
    """Starts two runs at once in one folder. Also resumes a run that is still running."""
    flags = f"{TINY} --epochs 1 --algo ppo".split()
    for k in range(options.starts):
        out = folder / f"two{k}"
        both = [start([*flags, "--steps", "3000", "--seed", str(seed), "--out", str(out)]) for seed in (1, 2)]
        results = [ended(process) for process in both]
        codes = [code for code, _ in results]
        report.check("one start wins, the other exits with 2", sorted(map(str, codes)) == ["0", "2"], str(results))
        if 0 in codes:
            report.check("the other one says why", one_loses(results[1 - codes.index(0)][1]), str(results))
            seeds = [json.loads((out / name).read_text())["seed"] for name in ("config.json", "result.json")]
            report.check("one folder, one run", seeds == [codes.index(0) + 1] * 2, str(seeds))
            check_rows(report, out)
    for k in range(options.starts):
        out = folder / f"alive{k}"
        alive = start([*flags, "--steps", "20000", "--checkpoint-every", "3", "--out", str(out)])
        while not (out / "checkpoint.npz").exists() and alive.poll() is None:
            time.sleep(0.01)
        resumed = ended(start(["--quiet", "--resume", str(out)]))
        was_alive = alive.poll() is None
        code, said = ended(alive)
        report.check("a run that is alive ends undisturbed", code == 0, f"{code}: {said}")
        if was_alive:
            report.check("--resume of a run that is alive is refused", resumed[0] == 2 and one_loses(resumed[1]),
                         str(resumed))
        check_rows(report, out)
        left = [*out.glob(".lock"), *out.glob("*tmp")]
        report.check("nothing left behind", not left, str(left))


def check_rows(report, run):
    """metrics.csv has a row for each update up to the checkpoint's."""
    updates = [row["update"] for row in read_metrics(run)]
    expected = list(range(1, int(read_checkpoint(run)["update"]) + 1))
    report.check("no row lost", updates == expected, f"{run}: {updates[-3:]} for {expected[-3:]}")


KILLED = {  # runs that are killed: (script, flags)
    "serial": ("run_cartpole.py", f"{TINY} --algo ppo --epochs 1 --steps 8000"),
    "workers": ("run_cartpole.py", f"{TINY} --algo a2c --workers 2 --steps 8000"),
    "Pong": ("run_pong.py", "--quiet --envs 4 --n-steps 16 --batch-size 64 --episodes 1 --target 100 --steps 4000"),
}


def kills(report, options, folder, rng):
    """Kills and resumes runs until there were enough kills. Each run must end with the arrays of a run without any."""
    for name, (script, flags) in KILLED.items():
        if name == "Pong" and not importlib.util.find_spec("ale_py"):
            continue
        flags, began = [*flags.split(), "--checkpoint-every", "3"], time.monotonic()
        code, said = ended(start([*flags, "--out", str(folder / name)], script))
        assert code == 0, said
        expected, longest = read_checkpoint(folder / name), time.monotonic() - began
        n = k = 0
        while n < options.kills:
            killed, k = folder / f"{name}-{k}", k + 1
            at_most, start_flags = options.kills - n, [*flags, "--out", str(killed)]
            n += killed_and_resumed(report, script, start_flags, killed, at_most, longest, rng)
            arrays = read_checkpoint(killed)
            differ = [key for key in expected if not (key.endswith("seconds") or same(arrays.get(key), expected[key]))]
            report.check("arrays as without the kills", not differ, f"{name}: {differ}")
            report.check("nothing left behind", not list(killed.glob("*tmp")), str(list(killed.iterdir())))
        report.tried[f"kills: {name}"] += n


def killed_and_resumed(report, script, flags, folder, at_most, longest, rng):
    """Starts a run, kills and resumes it until it has ended. Returns the number of kills."""
    n, process = 0, start(flags, script)
    while True:
        try:
            _, said = process.communicate(timeout=rng.uniform(0.3, longest) if n < at_most else 120)
            report.check("a resumed run ends", process.returncode == 0, said)
            return n
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            n += 1
            begun = (folder / "config.json").exists()
            process = start(["--quiet", "--resume", str(folder)] if begun else flags, script)


def same(x, y):
    """Whether two arrays are equal; NaN equals NaN."""
    return x is not None and np.array_equal(x, y, equal_nan=y.dtype.kind == "f")


DRAWING = "estimators", "importance", "score_function", "variance"  # examples that draw figures


def interrupts(report, options, folder, rng):
    """Interrupts each command and each example by Ctrl-C, at a random moment after its start."""
    run = folder / "run"
    short_run(run, f"{TINY} --epochs 1 --algo ppo")
    cases = {
        "training": ("run_cartpole.py", lambda k: ["--steps", "500000", "--target", "1000", "--out", f"{folder}/i{k}"]),
        "--evaluate": ("run_cartpole.py", lambda k: ["--evaluate", str(run), "--episodes", "5000"]),
        "--gif": ("run_cartpole.py", lambda k: ["--gif", str(run)]),
        **{name: (f"examples/{name}.py", lambda k: []) for name in ("own_distribution", "own_environment")},
        **{name: (f"examples/{name}.py", lambda k: ["--out", f"{folder}/{k}.png"]) for name in DRAWING},
    }
    for k in range(options.interrupts):
        name, (script, flags) = list(cases.items())[k % len(cases)]
        process = start(flags(k), script, cwd=folder)
        time.sleep(rng.uniform(0.1, 3.0))
        process.send_signal(signal.SIGINT)
        code, said = ended(process)
        text = f"{name}: {code}: {said[-600:]}"
        ends = (0, 130, -signal.SIGINT)  # the last one: before the script's first line; a shell shows 130
        report.check("Ctrl-C: exit code 130, or it had ended", code in ends, text)
        report.check("Ctrl-C: no traceback", "Traceback" not in said and "ignored" not in said, text)
    gif = run / "policy.gif"
    report.check("policy.gif is whole or not there", not gif.exists() or gif.stat().st_size > 100, "0 bytes")


def environments(report, options, folder, rng):
    """Trains in each nasty environment, in this process and in a worker."""
    from nasty import IDS

    for mode in ("ppo --epochs 1", "a2c --workers 1", "es"):
        for name in sorted(IDS)[:: 1 if "ppo" in mode else options.every]:
            out = folder / f"{name}-{mode.split()[0]}"
            flags = f"{SEARCH if mode == 'es' else TINY} --algo {mode} --steps 300 --env nasty:{name}-v0".split()
            process = start([*flags, "--out", str(out)])
            if name.startswith("hang"):
                hangs(report, process, f"{name} with {mode}")
                continue
            code, said = ended(process)
            fails = name.split("-")[0] in ("raise", "exit", "odd") or name in FAIL
            expected = 4 if fails else 3 if name in ("nan", "reward") else 0
            what = f"{name} with {mode}: {code}: {said[-300:]!r}"
            healed = code == 0 and "workers" in mode and "init" not in name and "reset" not in name  # by another worker
            report.check("an environment ends as promised", code == expected or healed, what)
            report.check("in one line at most", said.count("\n") <= 1 and "Traceback" not in said, what)
            if code == 4:
                there = (out / "error.txt").exists() and "Traceback" in (out / "error.txt").read_text()
                report.check("its traceback is kept", there, what)


FAIL = "shape", "word", "info", "tuple", "text"  # what these nasty environments return is refused


def hangs(report, process, what):
    """Waits until an environment hangs, then interrupts twice: the first time waits for the update, the second ends."""
    for line in process.stdout:
        if line == "hangs\n":
            break
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    code, said = ended(process)
    report.check("an environment that hangs: Ctrl-C twice ends the run", code == 130, f"{what}: {code}: {said}")
    report.check("without a traceback", "Traceback" not in said, f"{what}: {said}")


PARTS = {f.__name__: f for f in (configs, checkpoints, starts, kills, interrupts, environments)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*PARTS, []], help="parts (all)")
    for name, default, text in (
        ("configs", 2, "nasty values of each field; 0: all"), ("damages", 60, "damaged checkpoints"),
        ("starts", 3, "pairs of starts, and of resumes"), ("kills", 4, "kills of each of the runs"),
        ("interrupts", 18, "Ctrl-C"), ("every", 5, "one in so many nasty environments with workers and searches"),
        ("seed", 0, "of the sample"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (%(default)s)")
    options, report = parser.parse_args(), Report()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    sys.path.append(str(ROOT / "tests" / "runner"))
    for name in options.what or PARTS:
        began, rng = time.monotonic(), np.random.default_rng([options.seed, list(PARTS).index(name)])
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](report, options, pathlib.Path(folder), rng)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    for what, n in report.tried.items():
        print(f"{n:6} {what}")
    for text in report.broken:
        print(f"BROKEN: {text}")
    print(f"{len(report.broken)} promises broken")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
