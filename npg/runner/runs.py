"""A training run on disk: what was asked, what was measured, and a state from which it goes on bit for bit.

    config.json         all that is needed to repeat the run
    metrics.csv         one row an update
    checkpoint.npz      the state at the last checkpoint
    result.json         how it ended
    learning_curve.png

A checkpoint holds all that a later update depends on: what is learned, random numbers, and the environments, which come
back by `npg.runner.replaying`. So saving changes nothing, and a run that was killed and resumed from its last
checkpoint ends with exactly the θ and the metrics of one that was not.
"""

import collections
import functools
import pathlib
import sys
import time

import numpy as np
from tqdm import tqdm

from npg.runner import figures
from npg.runner.environments import moments, set_moments
from npg.runner.folder import RunError, remove_leftovers, write_atomically, write_json
from npg.runner.machine import process_seconds
from npg.runner.metrics import COLUMNS, COUNTERS, Metrics, metrics_until
from npg.runner.playing import CONFIRMING, FINAL, GREEDY, MORE, MORE_GREEDY, POINT, Player
from npg.runner.saved import FORMAT, read_checkpoint
from npg.runner.settings import parse_period

CLOCKS = ("evaluation_seconds", "process_seconds")
FEW, MANY = 10, 100  # episodes
PICTURE_SECONDS = 30  # between two pictures of a learning curve


class Diverged(Exception):
    """A NaN or Inf; the message names the tensor and the update."""


class Run:
    """Runs a `Learner` in a folder: counts, records, saves, resumes.

    config["checkpoint_every"]  updates ("50"), or seconds ("30s"), then never more than 1 % of the time; or "none"
    config["evaluate_every"]    updates between evaluations: where config["evaluate_from"] is given, only while the
                                recent return is no less
    config["episodes"]          of each evaluation; None: `FEW` on the way, `MANY` to confirm that a run has solved its
                                task, and at the end what the time affords

    `returns` are those of the last episodes of training, 100, or as many as `Script.window` says: the policy as it
    acts. Their mean decides whether a run has solved its task. Of a search, which seldom plays with θ itself, they are
    those of the last evaluation.

    Evaluations take at most a quarter of training's steps, and the last ones at most a quarter of its time and 1.5 s:
    an evaluation that would take more is left out.
    """

    def __init__(self, folder, config, task, learner, quiet=True):
        self.folder, self.config, self.task, self.learner = pathlib.Path(folder), config, task, learner
        self.save_updates, self.save_seconds = parse_period(config["checkpoint_every"])
        self.update = self.env_steps = self.episodes = self.restarted = 0
        self.seconds, self.started, self.confirmed, self.solved = 0.0, None, None, False
        self.window, self.is_search = task.script.window, config["algo"] in task.script.searches
        self.returns, self.name = collections.deque(maxlen=self.window), f"return_{self.window}"
        self.unconfirmed = -self.window  # `episodes` when a confirmation failed
        self.evaluated_steps = self.last_cost = 0  # of all evaluations; of the last one
        self.evaluation_seconds, self.seconds_of_others = 0.0, 0.0  # the second: of the processes before this one
        self.drawn_at = time.monotonic()
        self.metrics = Metrics(folder, (*COLUMNS, self.name, "eval_return_mean"))
        self.resumed, self.new_episodes = None, []  # the checkpoint, and updates after which new episodes had to begin
        self.saved_at, self.save_cost, self.saved_update = time.monotonic(), 0.0, None
        self.stopped = None  # a signal's number
        self.under_way = self.at_rest = False  # an update; an evaluation, which can be stopped at once
        self.bar = tqdm(total=config["steps"], unit=" steps", unit_scale=True, disable=quiet, dynamic_ncols=True)

    @functools.cached_property
    def player(self):
        """Plays this run's policy in episodes of their own."""
        return Player(self.task, self.learner)

    def evaluate(self, what_for, n, how=None):
        """Returns of n unseen episodes, or of as many as config["episodes"] says; `how` the policy acts, as `act`."""
        self.at_rest, began = True, time.perf_counter()
        try:
            n, how = self.config["episodes"] or n, how or self.task.act
            returns, self.last_cost = self.player.returns(n, how, self.update, what_for)
        finally:
            self.at_rest = False
        self.evaluated_steps += self.last_cost
        self.evaluation_seconds += time.perf_counter() - began
        return returns

    def create(self):
        """Make the folder; RunError where it holds a run already, or cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any((self.folder / name).exists() for name in ("config.json", "metrics.csv", "checkpoint.npz")):
                raise RunError(f"{self.folder}: holds a run already; --resume it or choose another --out")
            write_json(self.folder / "config.json", self.config)
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be written: {error.strerror}") from None
        self.started, self.under_way = time.perf_counter(), True

    def resume(self):
        """Take the state of the last checkpoint, or begin again; rows of metrics.csv beyond it are dropped."""
        if (self.folder / "checkpoint.npz").exists() or (self.folder / "result.json").exists():
            self.resumed = read_checkpoint(self.folder)
            self.restore(self.resumed)
            self.metrics = metrics_until(self.folder, self.update)
        self.learner.anneal(self.left)  # the learning rates go on where they were
        self._evaluate_if_due()  # where a signal came in the middle of that
        try:
            remove_leftovers(self.folder)
            write_json(self.folder / "config.json", self.config)
            self.metrics.write_anew()
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def replay(self):
        """Bring the environments of a resumed run back to where they were; False where the run is over already."""
        if self.is_over():
            return False
        (self.folder / "result.json").unlink(missing_ok=True)  # the run has not ended after all
        progress = functools.partial(
            tqdm, desc="replaying the environments", unit=" steps", delay=1, leave=False, disable=self.bar.disable
        )
        self.at_rest = True
        try:
            if self.resumed is not None:  # else there was no checkpoint yet
                self.task.restore(self.resumed, self.update, progress)
        finally:
            self.at_rest = False
        self._say_if_new_episodes()
        self.started = time.perf_counter()
        return True

    def _say_if_new_episodes(self):
        at = self.resumed and int(self.resumed["update"])
        if not self.task.replayed and at not in self.new_episodes:
            self.new_episodes.append(at)
            line = f"{self.folder}: the environments did not come back to where they were: new episodes begin"
            self.bar.write(line, file=sys.stderr)

    def restore(self, saved):
        """Take the state of a checkpoint; RunError unless names, shapes and dtypes are those of this run."""
        counters = {name: np.asarray(getattr(self, name)) for name in COUNTERS}
        self._take({**self.learner.arrays, **counters}, saved, self.folder)
        self.learner.restore(saved)
        self.update, self.env_steps, self.episodes = (int(counters[name]) for name in COUNTERS[:3])
        self.saved_update = self.update
        self.new_episodes = saved.get("new_episodes_after", np.zeros(0, np.int64)).tolist()
        self.returns.extend(saved.get("returns", np.zeros(0)).tolist())
        self.unconfirmed, self.evaluated_steps, self.last_cost = map(
            int, saved.get("evaluations", [self.unconfirmed, 0, 0])
        )
        self.seconds = float(counters["seconds"])
        self.evaluation_seconds, self.seconds_of_others = (float(saved.get(name, 0.0)) for name in CLOCKS)

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
            if array.dtype.kind == "f" and not np.isfinite(saved[name]).all():
                raise RunError(f"{source}: {name} holds NaN or Inf")
        for name, array in arrays.items():
            array[...] = saved[name]
        if seen:
            set_moments(self.task.obs_rms, **{name: saved[name] for name in seen})

    def all_returns_are_equal(self):
        """Whether no episode of training had another return than the others."""
        seen = {row["return_mean"] for row in self.rows if "return_mean" in row}
        return len(seen | set(self.returns)) == 1

    @property
    def rows(self):
        """Those of metrics.csv."""
        return self.metrics.rows

    @property
    def left(self):
        """The part of the budget that is left, from 1 to 0."""
        return max(0.0, 1 - self.env_steps / self.config["steps"])

    @property
    def recent_return(self):
        """Mean return of the last episodes of training; None before there are enough."""
        return float(np.mean(self.returns)) if len(self.returns) == self.window else None

    def is_over(self):
        """Whether the task is solved, the budget spent, or a signal has come."""
        if self._seems_solved():
            self.confirmed = self.evaluate(CONFIRMING, MANY)
            self.solved = bool(self.confirmed.mean() >= self.config["target"])
            self.unconfirmed = self.episodes
        self.started = time.perf_counter()
        self.under_way = not (self.solved or self.stopped or self.env_steps >= self.config["steps"])
        return not self.under_way

    def _seems_solved(self):
        if self.config["target"] is None or not self.rows or 4 * self.evaluated_steps > self.env_steps:
            return False
        if self.is_search or self.task.script.solved_by_evaluations:
            reached, n_new = self.rows[-1].get("eval_return_mean"), 1
        else:
            reached, n_new = self.recent_return, self.window  # episodes since a confirmation that failed
        is_new = self.episodes - self.unconfirmed >= n_new
        return reached is not None and reached >= self.config["target"] and is_new

    def record(self, update):
        """Count an update, evaluate where it is time to, write its row of metrics; save where it is time to.

        Raises Diverged where something is not finite, and leaves the last good checkpoint.
        """
        self.seconds += time.perf_counter() - self.started
        self._check_finite(update)
        self._count(update)
        self.under_way = False
        self._evaluate_if_due()
        self.metrics.write()
        if self._is_time_to_save():
            self.save()
        if time.monotonic() - self.drawn_at > PICTURE_SECONDS:
            self.draw()
        self.bar.update(self.env_steps - self.bar.n)
        if self.returns and not self.bar.disable:
            label = self.name if len(self.returns) == self.window else "return"
            shown = f"{label} {np.mean(self.returns):.1f}, {self.episodes} episodes"
            self.bar.set_postfix_str(shown, refresh=False)

    def draw(self):
        """Write the learning curve as it is now; a picture that cannot be drawn does not end a training."""
        title = f"{self.config['env']}, {self.config['algo']}, seed {self.config['seed']}"
        try:
            picture = figures.learning_curve(self.rows, title, self.config["target"], self.window)
            write_atomically(self.folder / "learning_curve.png", lambda file: file.write(picture))
        except Exception as error:
            self.bar.write(f"{self.folder}: no learning curve: {error}", file=sys.stderr)
        self.drawn_at = time.monotonic()

    def stop(self, number, frame):
        """A signal's handler: the run ends after the update under way; in an evaluation, or if asked again, at once."""
        now, self.stopped = self.stopped or self.at_rest, number
        if now:
            raise KeyboardInterrupt

    def save_where_it_stands(self):
        """Save, but not what has been saved already, nor in the middle of an update."""
        if not self.under_way and self.update != self.saved_update and self.rows:
            self.metrics.write_anew()  # a second signal may have come in the middle of a row
            self.save()

    def last_checkpoint(self):
        """Where the run can go on, in words."""
        if self.saved_update is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint, of update {self.saved_update}, is in {self.folder}"

    def _is_time_to_save(self):
        if self.save_updates:
            return self.update % self.save_updates == 0
        return time.monotonic() - self.saved_at >= max(self.save_seconds, 100 * self.save_cost)

    def save(self):
        """Write the state as it is now, and the metrics up to now."""
        began = time.monotonic()
        self.metrics.write()
        state = {
            "format": np.asarray(FORMAT),
            **{name: np.asarray(getattr(self, name)) for name in COUNTERS},
            **self.learner.arrays,
            **self.learner.experience(),
            **moments(self.task.obs_rms),
            **self.task.state(),
        }
        self._say_if_new_episodes()
        state["new_episodes_after"] = np.array(self.new_episodes, np.int64)
        state["returns"] = np.array(self.returns)
        state["evaluations"] = np.array([self.unconfirmed, self.evaluated_steps, self.last_cost])
        state["evaluation_seconds"] = np.array(self.evaluation_seconds)
        state["process_seconds"] = np.array(self.seconds_of_others + process_seconds())
        write_atomically(self.folder / "checkpoint.npz", lambda file: np.savez(file, **state))
        self.saved_at, self.saved_update = time.monotonic(), self.update
        self.save_cost = self.saved_at - began

    def finish(self):
        """The end: last evaluations; the state as it is now; the picture; result.json."""
        config = self.config
        self.save_where_it_stands()
        returns = self.confirmed if self.solved else self._affordable(FINAL, MORE, FEW)
        greedy = returns
        if self.task.act == "sampled":
            greedy = self._affordable(GREEDY, MORE_GREEDY, 0, "most-likely")
        elif self.task.act == "sharpened":
            greedy = np.array([])
        if self.is_search and len(returns) == self.window:
            self.returns.extend(returns)
        result = {
            **{name: config[name] for name in ("env", "algo", "seed", "target")},
            "solved": None if config["target"] is None else self.solved,
            "updates": self.update,
            "env_steps": self.env_steps,
            "seconds": self.seconds,
            self.name: self.recent_return,
            "eval_return_mean": float(returns.mean()),
            "eval_return_std": float(returns.std()),
            "eval_episodes": len(returns),
            "greedy_return_mean": float(greedy.mean()) if len(greedy) else None,
            "greedy_episodes": len(greedy),
            "workers_restarted": int(sum(row.get("workers_restarted", 0) for row in self.rows)),
            "new_episodes_after": self.new_episodes,
            "evaluation_seconds": self.evaluation_seconds,
            "process_seconds": self.seconds_of_others + process_seconds(),
        }
        self.draw()
        write_json(self.folder / "result.json", result)
        self.metrics.close()
        return result

    def _affordable(self, first, more, later, how=None):
        """Returns of `FEW` unseen episodes, and of as many more, up to `MANY`, as the time affords.

        later   episodes that must still be affordable then
        """
        began = time.perf_counter()
        returns = self.evaluate(first, FEW, how)
        seconds_each = (time.perf_counter() - began) / len(returns)
        left = self.seconds / 4 + 1.5 - self.evaluation_seconds
        n = min(MANY - FEW, int(left / seconds_each) - later)
        if n < 1 or self.config["episodes"]:
            return returns
        return np.concatenate([returns, self.evaluate(more, n, how)])

    def _check_finite(self, update):
        rollout, suspects = update["rollout"], {**self.learner.arrays, **moments(self.task.obs_rms)}
        suspects = {"gradient": update.get("grad_norm", 0.0), "return": rollout.episode_returns, **suspects}
        if all(np.isfinite(x).all() for x in suspects.values()):
            return
        suspects = {"observation": rollout.obs, "reward": rollout.rew, **suspects}  # the cause before its effects
        name, x = next((name, x) for name, x in suspects.items() if not np.isfinite(x).all())
        bad = np.size(x) - np.count_nonzero(np.isfinite(x))
        raise Diverged(f"diverged: {name} has {bad} NaN or Inf of {np.size(x)} after update {self.update + 1}")

    def _count(self, update):
        rollout = update["rollout"]
        self.update += 1
        self.env_steps += rollout.env_steps
        self.episodes += len(rollout.episode_returns)
        if not self.is_search:
            self.returns.extend(rollout.episode_returns)
        row = {name: getattr(self, name) for name in COUNTERS}
        if rollout.episode_returns:
            row["return_mean"] = float(np.mean(rollout.episode_returns))
            row["length_mean"] = float(np.mean(rollout.episode_lengths))
        if self.recent_return is not None:
            row[self.name] = self.recent_return
        row.update((name, float(value)) for name, value in update.items() if is_number(value))
        row.update((steps_of_worker(k), n) for k, n in enumerate(update.get("worker_steps", ())))
        if self.task.executor is not None:
            row["workers_restarted"], self.restarted = self.task.restarted - self.restarted, self.task.restarted
        self.metrics.rows.append(row)

    def _evaluate_if_due(self):
        due = self.rows and self.update % self.config["evaluate_every"] == 0 and self._worth_evaluating()
        if due and "eval_return_mean" not in self.rows[-1]:
            returns = self.evaluate(POINT, MANY if self.is_search else FEW)
            self.rows[-1]["eval_return_mean"] = float(returns.mean())
            if self.is_search:
                self.returns.extend(returns)
                self.rows[-1][self.name] = self.recent_return

    def _worth_evaluating(self):
        if 4 * (self.evaluated_steps + self.last_cost) > self.env_steps:
            return False
        threshold = self.config.get("evaluate_from")
        return threshold is None or bool(self.returns) and np.mean(self.returns) >= threshold


def is_number(value):
    """Whether it is one number: what an algorithm yields besides may be arrays, lists or a `Rollout`."""
    return isinstance(value, (int, float, np.number)) or isinstance(value, np.ndarray) and value.ndim == 0


def steps_of_worker(k):
    """The name of the column of metrics.csv with the steps that worker k made for an update."""
    return f"worker_{k}_steps"
