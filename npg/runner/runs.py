"""A training run on disk: what was asked, what was measured, and a state from which it goes on bit for bit.

    config.json         all that is needed to repeat the run
    metrics.csv         one row an update
    checkpoint.npz      the state at the last checkpoint
    result.json         how it ended
    learning_curve.png

At the updates where a checkpoint may be taken the environments are seeded anew from the run's seed and the number of
the update, whether a checkpoint is written or not; the episodes under way are abandoned, and not counted. So a run that
was killed and resumed from its last checkpoint ends with exactly the θ of one that was not.
"""

import csv
import functools
import io
import json
import os
import pathlib
import time
import zipfile

import numpy as np
from tqdm import tqdm

from npg.runner.environments import moments, set_moments
from npg.runner.playing import Player

PRETRAINED = "pretrained"  # goes where a run's folder goes
FORMAT, EARLIER_FORMAT = "npg run 2", "npg run 1"
COUNTERS = ("update", "env_steps", "episodes", "seconds")
COLUMNS = (*COUNTERS, "return_mean", "length_mean", "eval_return_mean")  # and one for each number that an update yields
# settings of the format before: {name: its name now}
RENAMED = {"value_weight": "value_coef", "entropy_weight": "entropy_coef"}
RENAMED_IN_SEARCHES = {"sigma": "search_sigma", "log_std": "search_log_std"}
SEARCHES = ("es", "hill-climbing", "genetic")


class RunError(Exception):
    """A folder or file that cannot be used; the message is one line for the user."""


class Diverged(Exception):
    """A NaN or Inf; the message names the tensor and the update."""


def write_atomically(path, write):
    """write(file) into a temporary file beside `path`, which then takes its place: never half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from None


def write_json(path, value):
    """Atomically; NaN, which JSON does not know, becomes null."""
    clean = json.loads(json.dumps(value), parse_constant=lambda name: None)
    write_atomically(path, lambda file: file.write((json.dumps(clean, indent=2) + "\n").encode()))


def read_config(folder):
    """config.json of a run folder; RunError where there is none of ours."""
    path = pathlib.Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{folder}: no run here (no config.json)") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict) or config.get("format") not in (FORMAT, EARLIER_FORMAT):
        raise RunError(f"{path}: not the config of an npg run (expected format {FORMAT!r})")
    needed = {"env", "algo", "seed", "steps", "target", "episodes", "evaluate_every", "checkpoint_every", "settings"}
    if needed - config.keys() or not isinstance(config["settings"], dict):
        raise RunError(f"{path}: damaged: {', '.join(sorted(needed - config.keys())) or 'settings'}")
    return in_this_format(config)


def in_this_format(config):
    """A config of this format, or of the one before, as one of this: settings go by the names that they have now."""
    if config.get("format") == EARLIER_FORMAT:
        renamed = {**RENAMED, **(RENAMED_IN_SEARCHES if config["algo"] in SEARCHES else {})}
        settings = {renamed.get(name, name): value for name, value in config["settings"].items()}
        if config.get("workers"):
            settings["workers"] = config["workers"]
        if config["env"] == "Pong" and (settings.get("hidden"), settings.get("activation")) == ([200], "relu"):
            del settings["hidden"], settings["activation"]  # the network stands in run_pong.py
        config = {**config, "format": FORMAT, "settings": settings, "from_earlier_format": True}
    return config


def read_checkpoint(folder):
    """{name: array} of checkpoint.npz; RunError where it is missing, damaged, or not ours."""
    path = pathlib.Path(folder) / "checkpoint.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise RunError(f"{path}: no checkpoint here") from None
    except Exception as error:  # what damaged bytes make zipfile and NumPy raise has no common base
        raise RunError(f"{path}: not a readable checkpoint: {error}") from None
    missing = {"format", "theta", *COUNTERS} - set(arrays)
    if missing or str(arrays["format"]) not in (FORMAT, EARLIER_FORMAT):
        raise RunError(f"{path}: not the checkpoint of an npg run (expected format {FORMAT!r})")
    return arrays


def write_weights(path, config, theta):
    """A policy alone, to give away: its config, and θ in half precision and compressed."""
    arrays = {"config": np.asarray(json.dumps(config)), "theta": theta.astype(np.float16)}
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def read_weights(path):
    """(config, θ) of a file by `write_weights`; RunError where there is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return in_this_format(json.loads(str(file["config"]))), file["theta"].astype(np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def parse_period(text):
    """"50" → (50, None) updates; "30s" → (None, 30.0) seconds."""
    try:
        updates, seconds = (None, float(text[:-1])) if text.endswith("s") else (int(text), None)
        if (seconds or updates or 0) > 0:
            return updates, seconds
    except ValueError:
        pass
    raise ValueError(f"expected a positive number of updates (50) or of seconds (30s), got {text!r}")


class Run:
    """Runs a `Learner` in a folder: counts, records, saves, resumes.

    config["checkpoint_every"]  updates ("50") or seconds ("30s"). Every 50 or, with seconds, every 25 updates the
    environments are seeded anew and the state is kept in memory; it is written at once, or when the seconds are over.
    config["evaluate_every"]    updates between evaluations: where config["evaluate_from"] is given, only while
    `recent_return` in training is no less
    """

    def __init__(self, folder, config, task, learner, quiet=True):
        self.folder, self.config, self.task, self.learner = pathlib.Path(folder), config, task, learner
        updates, self.save_seconds = parse_period(config["checkpoint_every"])
        self.reset_every = updates or 25
        self.update = self.env_steps = self.episodes = self.restarted = 0
        self.seconds, self.started, self.confirmed = 0.0, None, None
        self.rows, self.columns = [], COLUMNS
        self.bar = tqdm(total=config["steps"], unit=" steps", unit_scale=True, disable=quiet, dynamic_ncols=True)

    @functools.cached_property
    def player(self):
        """Plays this run's policy in episodes of their own."""
        return Player(self.task, self.learner, self.config["episodes"])

    def evaluate(self, k, j):
        """Returns of unseen episodes after update k: j = 0 at an evaluation, 1 to confirm it."""
        return self.player.returns(k, j) if j else self.player.returns(k)

    def create(self):
        """Make the folder; RunError where it holds a run already, or cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any((self.folder / name).exists() for name in ("config.json", "metrics.csv", "checkpoint.npz")):
                raise RunError(f"{self.folder}: holds a run already; --resume it or choose another --out")
            write_json(self.folder / "config.json", self.config)
            self._open_metrics()
            self._snapshot()
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def resume(self):
        """Take the state of the last checkpoint; rows of metrics.csv beyond it are dropped."""
        metrics = self.folder / "metrics.csv"
        begun = (self.folder / "checkpoint.npz").exists() or metrics.exists() and metrics.read_bytes().count(b"\n") > 1
        if begun:
            self.restore(read_checkpoint(self.folder))
        try:
            rows, self.columns = read_metrics(self.folder, with_columns=True) if begun else ([], COLUMNS)
            self.rows = [row for row in rows if row["update"] <= self.update]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{metrics}: cannot be read: {error!r}") from None
        self.learner.anneal(self.left)  # the learning rates go on where they were
        try:
            (self.folder / "result.json").unlink(missing_ok=True)  # the run has not ended after all
            write_json(self.folder / "config.json", self.config)
            self._open_metrics()
            self._snapshot()
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def restore(self, saved):
        """Take the state of a checkpoint; RunError unless names, shapes and dtypes are those of this run."""
        counters = {name: np.asarray(getattr(self, name)) for name in COUNTERS}
        self._take({**self.learner.arrays, **counters}, saved, self.folder)
        self.update, self.env_steps, self.episodes = (int(counters[name]) for name in COUNTERS[:3])
        self.seconds = float(counters["seconds"])

    def take_policy(self, saved, source):
        """Take only what acts: θ, and the observations' moments; RunError, naming `source`, if they do not fit.

        (Another optimizer, or other workers, may have learned than this run has.)
        """
        self._take({"theta": self.learner.theta}, saved, source)

    def _take(self, arrays, saved, source):
        seen = moments(self.task.obs_rms)
        for name, array in {**arrays, **seen}.items():
            if name not in saved or saved[name].shape != array.shape or saved[name].dtype != array.dtype:
                found = f"{saved[name].dtype}{list(saved[name].shape)}" if name in saved else "nothing"
                raise RunError(f"{source}: expected {name} {array.dtype}{list(array.shape)}, found {found}")
        for name, array in arrays.items():
            array[...] = saved[name]
        if seen:
            set_moments(self.task.obs_rms, **{name: saved[name] for name in seen})

    @property
    def left(self):
        """The part of the budget that is left, from 1 to 0."""
        return max(0.0, 1 - self.env_steps / self.config["steps"])

    def is_over(self):
        """Whether the budget is spent, or an evaluation has reached the target and another one has confirmed it."""
        row, target = self.rows[-1] if self.rows else {}, self.config["target"]
        if target is not None and row.get("eval_return_mean", -np.inf) >= target:
            self.confirmed = self.evaluate(self.update, 1)
        self.solved = self.confirmed is not None and bool(self.confirmed.mean() >= target)
        self.started = time.perf_counter()
        return self.solved or self.env_steps >= self.config["steps"]

    def record(self, update):
        """Count an update, write its row of metrics, evaluate and save where it is time to.

        Raises Diverged where something is not finite, and leaves the last good checkpoint.
        """
        self.seconds += time.perf_counter() - self.started
        self._check_finite(update)
        self._record(update)
        if self.update % self.reset_every == 0:
            self._snapshot()
        self.bar.update(self.env_steps - self.bar.n)
        if "return_mean" in self.rows[-1] and not self.bar.disable:
            self.bar.set_postfix_str(f"return {recent_return(self.rows):.1f}, {self.episodes} episodes", refresh=False)
        self.started = time.perf_counter()

    def save(self):
        """Write the last snapshot, at most `reset_every` updates old, and the metrics up to now."""
        write_atomically(self.folder / "checkpoint.npz", lambda file: np.savez(file, **self.snapshot))
        self.saved_at = time.monotonic()

    def finish(self):
        """The end: a last evaluation, where none has confirmed the target; the state as it is now; result.json."""
        config, target = self.config, self.config["target"]
        returns = self.confirmed if self.solved else self.evaluate(self.update, 1)
        result = {
            **{name: config[name] for name in ("env", "algo", "seed", "target")},
            "solved": target is not None and bool(returns.mean() >= target),
            "updates": self.update,
            "env_steps": self.env_steps,
            "seconds": self.seconds,
            "eval_return_mean": float(returns.mean()),
            "eval_return_std": float(returns.std()),
            "eval_episodes": len(returns),
            "workers_restarted": int(sum(row.get("workers_restarted", 0) for row in self.rows)),
        }
        self.snapshot = self._state()
        self.save()
        write_json(self.folder / "result.json", result)
        self.metrics_file.close()
        return result

    def _state(self):
        counters = {name: np.asarray(getattr(self, name)) for name in COUNTERS}
        arrays = {**self.learner.arrays, **moments(self.task.obs_rms)}
        return {"format": np.asarray(FORMAT), **counters, **{name: a.copy() for name, a in arrays.items()}}

    def _snapshot(self):
        self.snapshot = self._state()  # before the reset, which adds to the moments of normalised observations
        self.task.reset(self.update)
        if self.learner.buffer:
            self.learner.buffer.clear()
        due = self.save_seconds is None or not hasattr(self, "saved_at")
        if due or time.monotonic() - self.saved_at >= self.save_seconds:
            self.save()

    def _check_finite(self, update):
        rollout, suspects = update["rollout"], {**self.learner.arrays, **moments(self.task.obs_rms)}
        suspects = {"gradient": update.get("grad_norm", 0.0), "return": rollout.episode_returns, **suspects}
        if all(np.isfinite(x).all() for x in suspects.values()):
            return
        suspects = {"observation": rollout.obs, "reward": rollout.rew, **suspects}  # the cause before its effects
        name, x = next((name, x) for name, x in suspects.items() if not np.isfinite(x).all())
        bad = np.size(x) - np.count_nonzero(np.isfinite(x))
        raise Diverged(f"diverged: {name} has {bad} NaN or Inf of {np.size(x)} after update {self.update + 1}")

    def _record(self, update):
        rollout = update["rollout"]
        self.confirmed = None
        self.update += 1
        self.env_steps += rollout.env_steps
        self.episodes += len(rollout.episode_returns)
        row = {name: getattr(self, name) for name in COUNTERS}
        if rollout.episode_returns:
            row["return_mean"] = float(np.mean(rollout.episode_returns))
            row["length_mean"] = float(np.mean(rollout.episode_lengths))
        self.rows.append(row)
        if self.update % self.config["evaluate_every"] == 0 and self._worth_evaluating():
            row["eval_return_mean"] = float(self.evaluate(self.update, 0).mean())
        row.update((name, float(value)) for name, value in update.items() if is_number(value))
        row.update((steps_of_worker(k), n) for k, n in enumerate(update.get("worker_steps", ())))
        if self.task.executor is not None:
            row["workers_restarted"], self.restarted = self.task.restarted - self.restarted, self.task.restarted
        if row.keys() <= set(self.columns):
            self.metrics.writerow(_formatted(row))
        else:
            self.metrics_file.close()
            self._open_metrics()

    def _worth_evaluating(self):
        threshold = self.config.get("evaluate_from")
        return threshold is None or recent_return(self.rows) >= threshold

    def _open_metrics(self):
        text = io.StringIO(newline="")
        self.columns = tuple(dict.fromkeys([*self.columns, *(name for row in self.rows for name in row)]))
        metrics = csv.DictWriter(text, self.columns)
        metrics.writeheader()
        metrics.writerows(map(_formatted, self.rows))
        path = self.folder / "metrics.csv"
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))
        self.metrics_file = open(path, "a", newline="", buffering=1)
        self.metrics = csv.DictWriter(self.metrics_file, self.columns)


def recent_return(rows, n=30):
    """Mean return of the last training episodes, about `n`, in rows of metrics.csv; −inf before the first."""
    recent = []
    for row in reversed(rows):
        if row["episodes"] <= rows[-1]["episodes"] - n:
            break
        recent += [row["return_mean"]] if "return_mean" in row else []
    return float(np.mean(recent)) if recent else -np.inf


def is_number(value):
    """Whether it is one number: what an algorithm yields besides may be arrays, lists or a `Rollout`."""
    return isinstance(value, (int, float, np.number)) or isinstance(value, np.ndarray) and value.ndim == 0


def steps_of_worker(k):
    """The name of the column of metrics.csv with the steps that worker k made for an update."""
    return f"worker_{k}_steps"


def _formatted(row):
    return {name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()}


def read_metrics(folder, with_columns=False):
    """Rows of metrics.csv as dicts of numbers (empty cells left out); a last line cut short is ignored.

    With their columns, if asked: a pair.
    """
    with open(pathlib.Path(folder) / "metrics.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    complete = [row for row in rows if None not in row.values()]
    numbers = [
        {k: int(v) if k in COUNTERS[:3] else float(v) for k, v in row.items() if v not in ("", None)}
        for row in complete
    ]
    return (numbers, reader.fieldnames or COLUMNS) if with_columns else numbers
