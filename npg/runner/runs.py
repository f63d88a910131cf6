"""A training run on disk: its settings, its metrics, and a checkpoint from which it resumes bit for bit.

    config.json         all settings, enough to repeat the run
    metrics.csv         one row per update; A3C: one row per round of `report_every` steps
    checkpoint.npz      the state at the last checkpoint
    result.json         the results at the end of the run
    learning_curve.png

A checkpoint holds everything that later updates depend on: learned arrays, random number generators, and the
environments, which `npg.runner.replaying` brings back. Saving does not change training. So a run that is killed and
resumed from its last checkpoint ends with exactly the same θ and the same metrics, except for times.
"""

import collections
import contextlib
import functools
import pathlib
import sys
import time

import numpy as np
from tqdm import tqdm

from npg.runner import figures
from npg.runner.environments import moments, set_moments
from npg.runner.folder import RunError, check_unused, one_line, remove_leftovers, write_atomically, write_json, writing
from npg.runner.machine import process_seconds
from npg.runner.metrics import COLUMNS, COUNTERS, Metrics, metrics_until, rounded
from npg.runner.playing import CONFIRMING, FINAL, GREEDY, MORE, MORE_GREEDY, POINT, Player
from npg.runner.saved import FORMAT, read_checkpoint, read_config
from npg.runner.settings import parse_period

CLOCKS = ("evaluation_seconds", "process_seconds")
FEW = 10  # episodes of an evaluation during training, and the fewest at the end
PICTURE_SECONDS = 30  # between two pictures of a learning curve


class Diverged(Exception):
    """Training has produced a NaN or Inf. The message names the tensor and the update."""


class Run:
    """Runs a `Learner` in a folder: counts, records, saves, resumes.

    config["checkpoint_every"]  updates ("50"); or seconds ("30s"), but saving never takes more than 1 % of the time;
                                or "none"
    config["evaluate_every"]    updates between evaluations. If config["evaluate_from"] is given, evaluations are made
                                only while the recent mean return is at least config["evaluate_from"]
    config["episodes"]          of each evaluation, but not of a confirmation. None: `FEW` during training (a search:
                                `window`); at the end up to `window`, as many as the time allows

    `returns` holds the returns of the last training episodes: `Script.window` of them, usually 100. They measure the
    policy as it acts. If their mean reaches the target, as many unseen episodes must confirm that the task is solved.
    A search seldom plays with θ itself, so there `returns` holds the returns of the last evaluation. Its final
    evaluation is confirmed at once if there is time.

    All evaluations take at most a quarter of training's time plus 1.5 s. Only the first `FEW` episodes of the final
    evaluation are always played. During training, steps count instead of seconds, so that a run can repeat exactly. An
    evaluation is left out if all evaluations would then cost more than an eighth of training's steps. A confirmation is
    postponed if they would cost more than a quarter. If the budget is spent before, the final evaluation confirms,
    provided that it has enough episodes.

    Where evaluations judge instead of `returns` (Pong), an evaluation comes only if a quarter of the steps pays for the
    confirmation, too.
    """

    def __init__(self, folder, config, task, learner, quiet=True):
        self.folder, self.config, self.task, self.learner = pathlib.Path(folder), config, task, learner
        self.save_updates, self.save_seconds = parse_period(config["checkpoint_every"])
        self.update = self.env_steps = self.episodes = self.restarted = 0
        self.seconds, self.started, self.confirmed, self.solved = 0.0, None, None, False
        self.window, self.is_search = task.script.window, config["algo"] in task.script.searches
        self.returns, self.return_name = collections.deque(maxlen=self.window), f"return_{self.window}"
        self.judged_by_evaluations = task.script.solved_by_evaluations
        self.failed_at = self.solved_at = -self.window  # `episodes` at the last confirmation that failed, or succeeded
        self.evaluated_steps, self.length = 0, np.inf  # cost of all evaluations; mean length of the last episodes
        self.last_evaluation = FEW, 0.0  # its number of episodes and its seconds
        self.evaluation_seconds, self.seconds_of_others = 0.0, 0.0  # the second: seconds of earlier processes
        self.drawn_at = time.monotonic()
        self.columns = (*COLUMNS, self.return_name, "eval_return_mean", "confirm_return_mean")
        self.metrics = Metrics(folder, self.columns)
        self.checkpoint, self.new_episodes = None, []  # updates after which new episodes had to begin
        self.environments_are_back = True  # False between `resume` and `replay`
        self.saved_at, self.save_cost, self.saved_update = time.monotonic(), 0.0, None
        self.stopped = None  # the number of a signal that stops the run
        self.under_way = self.at_rest = False  # whether an update is running; whether a signal may stop immediately
        self.quiet = quiet

    @functools.cached_property
    def bar(self):
        """The progress bar. It appears at its first use, so a run that is refused shows none."""
        return tqdm(
            total=self.config["steps"], unit=" steps", unit_scale=True, disable=self.quiet, dynamic_ncols=True
        )

    @functools.cached_property
    def player(self):
        """The `Player` of this run's policy."""
        return Player(self.task, self.learner)

    def evaluate(self, what_for, n, how=None):
        """Returns of n unseen episodes. `how` is a value of the setting `act`."""
        self.at_rest, began = True, time.perf_counter()
        try:
            returns, cost = self.player.returns(n, how or self.task.act, self.update, what_for)
        finally:
            self.at_rest = False
        seconds = time.perf_counter() - began
        self.evaluated_steps, self.evaluation_seconds = self.evaluated_steps + cost, self.evaluation_seconds + seconds
        self.last_evaluation = n, seconds
        return returns

    def create(self):
        """Makes the folder and config.json. RunError if the folder holds a run already or cannot be written."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            check_unused(self.folder)
            write_json(self.folder / "config.json", self.config)
        self.started, self.under_way = time.perf_counter(), True

    def resume(self):
        """Takes the state of the last checkpoint and drops later rows of metrics.csv. Without it, begins again."""
        if (self.folder / "checkpoint.npz").exists() or (self.folder / "result.json").exists():
            self.checkpoint, self.environments_are_back = read_checkpoint(self.folder), False
            with self._undamaged():
                self.restore(self.checkpoint)
            before = read_config(self.folder)
            if before["target"] != self.config["target"]:
                self.failed_at = self.solved_at = -self.window  # confirmations of another target
            steps, earlier = self.config["steps"], before["steps"]
            if steps != earlier and steps < self.env_steps:  # a run may pass its own budget by a part of an update
                made = f"{self.env_steps}, the steps that the run has made"
                raise RunError(f"--steps: expected at least {made}, got {steps}")
            self.metrics = metrics_until(self.folder, self.update)
        self.learner.anneal(self.left)  # the learning rates continue from their last values
        with writing(self.folder):
            remove_leftovers(self.folder)
            write_json(self.folder / "config.json", self.config)
            self.metrics.write_anew()

    def replay(self):
        """Brings the environments of a resumed run back to their state. Returns False if the run is over already."""
        if self.env_steps >= self.config["steps"]:
            spent = f"the budget of {self.config['steps']} steps is spent"
            self.bar.write(f"{self.folder}: {spent}; a larger --steps continues the run", file=sys.stderr)
        if self.is_over():
            return False
        for name in ("result.json", "error.txt"):  # the run continues: its result is not final, its error is past
            (self.folder / name).unlink(missing_ok=True)
        progress = functools.partial(
            tqdm, desc="replaying the environments", unit=" steps", delay=1, leave=False, disable=self.bar.disable
        )
        self.at_rest = True
        try:
            if self.checkpoint is not None:  # otherwise there was no checkpoint yet
                with self._undamaged():
                    self.task.restore(self.checkpoint, self.update, progress)
        finally:
            self.at_rest = False
        self.environments_are_back = True
        self._say_if_new_episodes()
        self._evaluate_if_due()  # where a signal has interrupted this evaluation
        self._confirm_if_due()
        self.metrics.write_anew()
        return not self.is_over()

    @contextlib.contextmanager
    def _undamaged(self):
        """RunError if the checkpoint lacks an array, or has one of another kind."""
        try:
            yield
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            path = self.folder / "checkpoint.npz"
            raise RunError(f"{path}: damaged: {type(error).__name__}: {one_line(error)}") from None

    def _say_if_new_episodes(self):
        at = self.checkpoint and int(self.checkpoint["update"])
        if not self.task.replayed and at not in self.new_episodes:
            self.new_episodes.append(at)
            line = f"{self.folder}: the environments could not be restored: new episodes begin"
            self.bar.write(line, file=sys.stderr)

    def restore(self, saved):
        """Takes the state of a checkpoint. RunError if θ, counters or moments do not fit, or hold NaN or Inf."""
        counters = {name: np.asarray(getattr(self, name)) for name in COUNTERS}
        self._take({**self.learner.arrays, **counters, **self.task.reward_moments()}, saved, self.folder)
        self.learner.restore(saved)
        self.update, self.env_steps, self.episodes = (int(counters[name]) for name in COUNTERS[:3])
        self.saved_update = self.update
        self.new_episodes = saved.get("new_episodes_after", np.zeros(0, np.int64)).tolist()
        self.returns.extend(saved.get("returns", np.zeros(0)).astype(float).tolist())
        if np.shape(saved.get("evaluations")) == (4,):  # older checkpoints have three numbers
            *counts, self.length = saved["evaluations"].tolist()
            self.failed_at, self.solved_at, self.evaluated_steps = map(int, counts)
        self.seconds = float(counters["seconds"])
        self.evaluation_seconds, self.seconds_of_others = (float(saved.get(name, 0.0)) for name in CLOCKS)

    def take_policy(self, saved, source):
        """Takes only the policy: θ and the moments of the observations. RunError, with `source`, if they do not fit.

        The saved run may have had another optimizer or another number of workers.
        """
        self._take({"theta": self.learner.theta}, saved, source)
        if hasattr(self.learner.method, "restart"):
            self.learner.method.restart()

    def _take(self, arrays, saved, source):
        seen = moments(self.task.obs_rms)
        for name, array in {**arrays, **seen}.items():
            found = saved.get(name, np.zeros((), bool))
            same_type = found.dtype == array.dtype or name in seen and found.dtype.kind == "f"
            if found.shape != array.shape or not same_type:
                found = f"{found.dtype}{list(found.shape)}" if name in saved else "nothing"
                raise RunError(f"{source}: expected {name} {array.dtype}{list(array.shape)}, found {found}")
            if array.dtype.kind == "f" and not np.isfinite(saved[name]).all():
                raise RunError(f"{source}: {name} holds NaN or Inf")
        for name, array in arrays.items():
            array[...] = saved[name]
        if seen:
            set_moments(self.task.obs_rms, **{name: saved[name] for name in seen})

    def all_returns_are_equal(self):
        """Whether all episodes of training had the same return."""
        seen = [*(row["return_mean"] for row in self.rows if "return_mean" in row), *self.returns]
        return self.episodes > 1 and bool(np.allclose(seen, seen[0], rtol=1e-5, atol=0))  # metrics.csv has six digits

    @property
    def rows(self):
        """The rows of metrics.csv."""
        return self.metrics.rows

    @property
    def left(self):
        """The part of the budget that is left, from 1 to 0."""
        return max(0.0, 1 - self.env_steps / self.config["steps"])

    @property
    def recent_return(self):
        """The mean of `returns`; None before there are enough episodes."""
        return float(np.mean(self.returns)) if len(self.returns) == self.window else None

    def is_over(self):
        """Whether the task is solved, the budget is spent, or a signal has come."""
        self.started = time.perf_counter()
        self.under_way = not (self.solved or self.stopped or self.env_steps >= self.config["steps"])
        return not self.under_way

    def _seems_solved(self):
        """Whether the mean return reaches the target. After a confirmation that failed, new episodes come first."""
        if self.config["target"] is None or not self.rows:
            return False
        if self.is_search:
            reached, n_new = np.mean(self.returns) if self.returns else None, 1
        elif self.judged_by_evaluations:
            reached, n_new = self.rows[-1].get("eval_return_mean"), 1
        else:
            reached, n_new = self.recent_return, self.window
        if reached is None or self.episodes - self.failed_at < n_new:
            return False
        return bool(reached >= self.config["target"])

    def _confirm_if_due(self):
        """Plays a confirmation if the task seems solved and there is time for one."""
        if self._seems_solved() and self.episodes - self.solved_at >= self.window and self._is_worth_confirming():
            self.confirmed = self.evaluate(CONFIRMING, self.window)
            self.rows[-1]["confirm_return_mean"] = float(self.confirmed.mean())
            self._judge(self.confirmed)

    def _judge(self, returns):
        """Decides by unseen episodes whether the task is solved, if they are enough."""
        if self.config["target"] is None or len(returns) < self.window:
            return
        self.solved = bool(returns.mean() >= self.config["target"])
        if self.solved:
            self.solved_at = self.episodes
        else:
            self.failed_at = self.episodes
            if self.is_search:
                self.returns.clear()  # a new evaluation comes first

    def _is_worth_confirming(self):
        cost = 0 if self.judged_by_evaluations else self.player.cost(self.window, self.length)
        return 4 * (self.evaluated_steps + cost) <= self.env_steps

    def record(self, update):
        """Counts an update and writes its row of metrics. Evaluates and saves a checkpoint whenever these are due.

        Raises Diverged if a value is not finite. The last good checkpoint stays.
        """
        self.seconds += time.perf_counter() - self.started
        if "rollout" not in update:
            raise ValueError(f'update: expected the entry "rollout" (the experience it used), got {sorted(update)}')
        self._check_finite(update)
        self._count(update)
        self.under_way = False
        if not self.stopped:  # otherwise `replay` makes up for them
            self._evaluate_if_due()
            self._confirm_if_due()
        self.metrics.write()
        if self._is_time_to_save():
            self.save()
        if time.monotonic() - self.drawn_at > PICTURE_SECONDS:
            self.draw()
        self.bar.update(self.env_steps - self.bar.n)
        if self.returns and not self.bar.disable:
            label = self.return_name if len(self.returns) == self.window else "return"
            shown = f"{label} {rounded(np.mean(self.returns))}, {self.episodes} episodes"
            self.bar.set_postfix_str(shown, refresh=False)

    def draw(self, final=None):
        """Draws the learning curve of all rows so far, and `final`, the mean return of the final evaluation.

        An error in drawing does not end a training.
        """
        rows = self.rows if final is None else [*self.rows, {"env_steps": self.env_steps, "eval_return_mean": final}]
        title = f"{self.config['env']}, {self.config['algo']}, seed {self.config['seed']}"
        try:
            picture = figures.learning_curve(rows, title, self.config["target"], self.window, self.is_search)
            write_atomically(self.folder / "learning_curve.png", lambda file: file.write(picture))
        except Exception as error:
            self.bar.write(f"{self.folder}: the learning curve could not be drawn: {error}", file=sys.stderr)
        self.drawn_at = time.monotonic()

    def stop(self, number, frame):
        """Signal handler: the run ends after the current update; in an evaluation or at a second signal, at once."""
        now, self.stopped = self.stopped or self.at_rest, number
        if now:
            raise KeyboardInterrupt

    def save_where_it_stands(self):
        """Saves a checkpoint, unless this update is saved already or an update is running."""
        if not self.under_way and self.update != self.saved_update and self.rows:
            self.metrics.write_anew()  # a second signal may have interrupted the writing of a row
            self.save()

    def last_checkpoint(self):
        """Text for a message: the checkpoint from which the run can resume."""
        if self.saved_update is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint, of update {self.saved_update}, is in {self.folder}"

    def _is_time_to_save(self):
        if self.save_updates:
            return self.update % self.save_updates == 0
        return time.monotonic() - self.saved_at >= max(self.save_seconds, 100 * self.save_cost)

    def save(self):
        """Writes the present state as checkpoint.npz. The metrics up to now are written already."""
        began = time.monotonic()
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
        state["evaluations"] = np.array([self.failed_at, self.solved_at, self.evaluated_steps, self.length])
        state["evaluation_seconds"] = np.array(self.evaluation_seconds)
        state["process_seconds"] = np.array(self.seconds_of_others + process_seconds())
        write_atomically(self.folder / "checkpoint.npz", lambda file: np.savez(file, **state))
        self.saved_at, self.saved_update = time.monotonic(), self.update
        self.save_cost = self.saved_at - began

    def finish(self):
        """Ends the run: saves, makes the last evaluations, draws the curve, saves again, and writes result.json."""
        config = self.config
        self.save_where_it_stands()
        evaluated_steps = self.evaluated_steps
        returns = self.confirmed if self.solved else self._final_evaluation()
        greedy = returns
        if self.task.act == "sampled":
            n = config["episodes"] or (FEW if self._affordable(FEW) == FEW else 0)
            greedy = self._play(GREEDY, MORE_GREEDY, n, 0, "most-likely")
        elif self.task.act == "sharpened":
            greedy = np.array([])
        if self.is_search:
            self._keep(returns)
        self.draw(None if returns is self.confirmed else returns.mean())
        if self.environments_are_back:  # not if a run was resumed whose budget is spent
            self.saved_update, self.evaluated_steps = None, evaluated_steps  # how many are played depends on time
            self.save_where_it_stands()  # once more: the checkpoint knows of these evaluations and of their seconds
        result = {
            **{name: config[name] for name in ("env", "algo", "seed", "target")},
            "solved": None if config["target"] is None else self.solved,
            "updates": self.update,
            "env_steps": self.env_steps,
            "seconds": self.seconds,
            self.return_name: self.recent_return,
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
        write_json(self.folder / "result.json", result)
        self.metrics.close()
        return result

    def _final_evaluation(self):
        """Returns of the final evaluation. It also confirms that the task is solved, if this is still to be done."""
        if self.judged_by_evaluations:
            undecided = self.episodes > self.failed_at  # not if a confirmation has just failed
        else:
            undecided = self._seems_solved()
        later = FEW if self.task.act == "sampled" else 0  # otherwise `finish` plays no most likely actions
        returns = self._play(FINAL, MORE, self.config["episodes"] or FEW, later)
        if self.is_search and not undecided:
            self._keep(returns)  # the first of two evaluations in a row
            enough = len(returns) >= self.window and self._affordable(self.window) == self.window
            if self._seems_solved() and enough:
                returns, undecided = self.evaluate(CONFIRMING, self.window), True
        if undecided:
            self._judge(returns)
        return returns

    def _play(self, first, more, n, later, how=None):
        """Returns of n unseen episodes, and of as many more as the time allows, up to `window` together.

        first, more   purposes of the two groups of episodes
        later         number of episodes of a later evaluation, for which time must remain
        """
        returns = self.evaluate(first, n, how) if n else np.array([])
        n_more = 0 if self.config["episodes"] or not n else self._affordable(self.window - n + later) - later
        if n_more < 1:
            return returns
        return np.concatenate([returns, self.evaluate(more, n_more, how)])

    def _affordable(self, n):
        """The number of episodes, up to n, for which time is left. The last evaluation shows how long they take."""
        played, seconds = self.last_evaluation
        left = self.seconds / 4 + 1.5 - self.evaluation_seconds
        affordable = left * self.player.cost(played, 1)
        costs = (2 * seconds * self.player.cost(k, 1) for k in range(1, n + 1))  # 2: another group may take longer
        return sum(cost <= affordable for cost in costs)

    def _check_finite(self, update):
        rollout, suspects = update["rollout"], {**self.learner.arrays, **moments(self.task.obs_rms)}
        suspects = {"norm of the gradient": update.get("grad_norm", 0.0), "return": rollout.episode_returns, **suspects}
        if all(np.isfinite(x).all() for x in suspects.values()):
            return
        suspects = {"observation": rollout.obs, "reward": rollout.rew, **suspects}  # the cause before its effects
        name, x = next((name, x) for name, x in suspects.items() if not np.isfinite(x).all())
        n = np.size(x) - np.count_nonzero(np.isfinite(x))
        raise Diverged(f"diverged: {name} has NaN or Inf in {n} of {np.size(x)} values after update {self.update + 1}")

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
            row["length_mean"] = self.length = float(np.mean(rollout.episode_lengths))
        if self.recent_return is not None and not self.is_search:
            row[self.return_name] = self.recent_return
        measures = {name: float(value) for name, value in update.items() if is_number(value)}
        if taken := measures.keys() & {*self.columns}:
            raise ValueError(f"update: expected another name than {min(taken)!r}, a column that metrics.csv always has")
        row.update(measures)
        row.update((steps_of_worker(k), n) for k, n in enumerate(update.get("worker_steps", ())))
        if self.task.executor is not None:
            row["workers_restarted"], self.restarted = self.task.restarted - self.restarted, self.task.restarted
        self.rows.append(row)

    def _evaluate_if_due(self):
        n = self.config["episodes"] or (self.window if self.is_search else FEW)
        due = self.rows and self.update % self.config["evaluate_every"] == 0 and self._is_worth_evaluating(n)
        if due and "eval_return_mean" not in self.rows[-1]:
            returns = self.evaluate(POINT, n)
            self.rows[-1]["eval_return_mean"] = float(returns.mean())
            if self.is_search:
                self._keep(returns)
                if self.recent_return is not None:
                    self.rows[-1][self.return_name] = self.recent_return

    def _keep(self, returns):
        """Takes a search's evaluation of θ for `returns`. Earlier ones played another θ."""
        self.returns.clear()
        self.returns.extend(returns)

    def _is_worth_evaluating(self, n):
        share = 8
        if self.judged_by_evaluations:
            share, n = 4, n + self.window  # the confirmation follows at once
        if share * (self.evaluated_steps + self.player.cost(n, self.length)) > self.env_steps:
            return False
        threshold = self.config.get("evaluate_from")
        return threshold is None or bool(self.returns) and np.mean(self.returns) >= threshold


def is_number(value):
    """Whether a value is one number. An update also yields arrays, lists and a `Rollout`."""
    return isinstance(value, (int, float, np.number)) or isinstance(value, np.ndarray) and value.ndim == 0


def steps_of_worker(k):
    """Name of the column of metrics.csv for the number of steps that worker k made in an update."""
    return f"worker_{k}_steps"
