"""Runs of a random walk, which need no environment: θ after k updates depends on every random number drawn before."""

from types import SimpleNamespace

import numpy as np

from npg.runner.replaying import random_state, set_random_state
from npg.runner.runs import Run
from npg.runner.saved import FORMAT, read_checkpoint

CONFIG = {"format": FORMAT, "env": "Walk-v0", "algo": "walk", "seed": 3, "steps": 10**6, "target": None, "episodes": 2}
CONFIG |= {"evaluate_every": 4, "checkpoint_every": "4", "settings": {}}


def make_run(folder, period="5", evaluate=lambda k: np.array([1.0, 2.0]), spoil=lambda k, update, arrays: None):
    """A random walk as a run. spoil(k, update, arrays) may change update k, counted from 1, before the run sees it."""
    rng = np.random.default_rng(3)
    arrays = {"theta": np.zeros(3, np.float32), "theta.t": np.zeros((), np.int64)}

    def updates():
        while True:
            arrays["theta"] += rng.normal(size=3)
            arrays["theta.t"] += 1
            k = int(arrays["theta.t"])
            ended = [float(rng.normal())] * (k % 3)  # no episode ends in every third update
            rollout = SimpleNamespace(
                env_steps=int(rng.integers(5, 9)),
                episode_returns=ended,
                episode_lengths=[4] * len(ended),
                obs=np.zeros((3, 2)),
                rew=np.zeros((2, 2)),
            )
            update = {"rollout": rollout, "grad_norm": 0.5, "entropy": np.float32(0.25)}
            spoil(k, update, arrays)
            yield update

    task = Task(lambda: {"rng": random_state(rng)}, lambda saved: set_random_state(rng, saved["rng"]) or True)
    return new_run(folder, {**CONFIG, "checkpoint_every": period}, updates(), arrays, task, evaluate)


class Task:
    """A toy task with `state` and restore(saved). `restore` returns whether the environments came back."""

    obs_rms, executor, restarted, replayed, act, reward_moments = None, None, 0, True, "sampled", dict
    script = SimpleNamespace(window=5, searches=("hunt",), solved_by_evaluations=False)

    def __init__(self, state, restore):
        self.state, self.take = state, restore

    def restore(self, saved, update, progress):
        self.replayed = self.take(saved)


def new_run(folder, config, updates, arrays, task, evaluate=None):
    """A `Run` of a toy learner."""
    learner = SimpleNamespace(theta=arrays["theta"], arrays=arrays, updates=updates, method=None)
    learner.anneal, learner.experience, learner.restore = lambda fraction: None, dict, lambda saved: None
    run = Run(folder, config, task, learner)
    run.player = SimpleNamespace(returns=lambda n, how, k, what_for: (evaluate(k), 0), cost=lambda n, length: 0)
    return run


def train(run):
    """A script's loop: yields after each update."""
    run.is_over()
    for update in run.learner.updates:
        run.record(update)
        yield
        run.is_over()


def advance(run, n):
    """Makes n updates."""
    for _ in zip(range(n), train(run)):
        pass
    return run


def begin(folder, n=0, **kwargs):
    """A new run in a folder, after n updates."""
    run = make_run(folder, **kwargs)
    run.create()
    return advance(run, n)


def resume(folder, **kwargs):
    """The run that was saved in a folder, ready for its next update."""
    run = make_run(folder, **kwargs)
    run.resume()
    run.replay()
    return run


def saved_update(folder):
    """The update of the checkpoint, or None if there is no checkpoint."""
    return int(read_checkpoint(folder)["update"]) if (folder / "checkpoint.npz").exists() else None


def contents(folder):
    """{name: bytes} of the files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_seconds(rows):
    """Rows of metrics without the column of seconds."""
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]
