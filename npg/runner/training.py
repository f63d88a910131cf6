"""Training and playing: what a run script does once its command line has been understood."""

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from npg.a3c import parallel_play
from npg.distributions import Gaussian
from npg.exploration import exploring
from npg.network import MLP
from npg.rollout import Sampler, play
from npg.runner import figures
from npg.runner.environments import UnsupportedEnvironment, normaliser, set_normaliser
from npg.runner.experiment import EVALUATE, GRADIENT_FREE, Workers, build
from npg.runner.runs import Run, RunError, read_checkpoint, read_config, read_weights, recent_return

PRETRAINED = "pretrained"  # goes where a run's folder goes
ACT = {"most-likely": 0.0, "sharpened": 0.6, "sampled": 1.0}  # temperature of the policy where it only plays


class Task(NamedTuple):
    """What differs between the run scripts."""

    description: str
    env: str  # default environment
    algo: str  # default algorithm
    settings: dict  # {algo: {setting: default}}
    continuous_settings: dict  # {algo: {setting: default}}: what changes for Box actions
    steps: int  # default budget of environment steps
    evaluate_every: int  # updates between evaluations
    episodes: int  # in each evaluation
    make_envs: Callable  # (env, n, **settings named in `environment`) → vector environment
    make_env: Callable  # (env, render_mode, **settings named in `environment`) → one environment
    distribution: Callable  # vector environment → distribution
    target: Callable  # env → mean return at which training stops, or None
    flags: dict = {}  # what only this script's settings need of argparse, as in FLAGS
    environment: tuple = ("normalise_obs",)  # settings that are the environment's
    playing: tuple = ()  # of these, what may differ where a policy only plays: nothing that it sees
    environment_in_worker: dict = {}  # further arguments of `make_envs` in a process that is one of several
    make_sampler: Callable = Sampler
    make_network: Callable = MLP
    evaluate_always: tuple = ()  # algorithms whose every update is evaluated, because it takes many episodes
    play_side_by_side: int | None = None  # episodes of an evaluation at a time; None: all
    evaluate_within: float = np.inf  # evaluations begin when training's mean return is that close to the target
    checkpoint_every: str = "50"
    pretrained: pathlib.Path | None = None  # file of the weights that come with the package


class Player:
    """Plays episodes that training never sees, at the temperature that the config's `act` stands for."""

    def __init__(self, task, config, envs, experiment, executor=None):
        self.make_envs = functools.partial(task.make_envs, config["env"], **_environment(task, config))
        self.seed, self.training_envs, self.experiment, self.envs = config["seed"], envs, experiment, None
        self.policy, act = experiment.policy, config["settings"].get("act", "most-likely")
        if act not in ACT:
            raise ValueError(f"act: expected one of {', '.join(ACT)}, got {act!r}")
        if act == "sharpened":
            if isinstance(self.policy.distribution, Gaussian):
                raise ValueError("act: only a policy over discrete actions can be sharpened, and this is a Gaussian")
            self.policy = exploring(self.policy, temperature=ACT[act])
        self.rng = np.random.default_rng() if ACT[act] else None
        self.episodes, self.executor, self.n_parts = config["episodes"], executor, config.get("workers")
        self.n_envs = min(self.episodes, task.play_side_by_side or self.episodes)

    def seeded(self, *stream):
        """Seeds the actions; returns what seeds the environments: both follow from the run's seed and `stream`."""
        seeds = self.seed, EVALUATE, *stream
        if self.rng is not None:
            self.rng = np.random.default_rng([*seeds, 1])
        return seeds

    def act(self, obs):
        """The actions for observations [N, n_obs], or the action for one [n_obs]."""
        return self.policy.act(self.experiment.theta, obs, self.rng)

    def returns(self, *stream):
        """Returns of `episodes` unseen episodes, which follow from the run's seed and `stream`."""
        if self.executor and self.rng is None and not normaliser(self.training_envs):
            what = self.make_envs, self.policy, self.experiment.theta, self.episodes
            return parallel_play(self.executor, *what, self.n_parts, *self.seeded(*stream))
        self.envs = self.envs or self.make_envs(self.n_envs)
        if normaliser(self.envs):
            set_normaliser(self.envs, **normaliser(self.training_envs), update=False)
        with np.errstate(all="ignore"):  # what is not finite ends a run with a message of its own
            return play(self.envs, self.act, self.episodes, *self.seeded(*stream))[0]


def _environment(task, config):
    return {name: config["settings"][name] for name in task.environment}


def prepare(task, config, folder, executor=None):
    """The `Run` of a config in a folder, neither created nor resumed yet, and the `Player` of its policy.

    The config's workers are processes of this machine or, given its executor, a cluster's. Raises RunError where the
    config, which a user may have edited, cannot be used.
    """
    try:
        return _prepare(task, config, folder, executor)
    except UnsupportedEnvironment:
        raise
    except KeyError as error:
        raise RunError(f"{folder}: config lacks {error}; is it a run of another script?") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder}: {error}") from None


def _prepare(task, config, folder, executor):
    envs, experiment = make_experiment(task, config, executor)
    player = Player(task, config, envs, experiment, executor)
    return Run(folder, config, experiment, envs, player.returns), player


def make_experiment(task, config, executor=None):
    """The environments and the `Experiment` of a config, of which env, algo, seed, settings and workers are asked."""
    algo, options = config["algo"], _environment(task, config)
    settings = {k: v for k, v in config["settings"].items() if k not in ("envs", "anneal", "act", *task.environment)}
    n_envs, workers = config["settings"]["envs"], None
    if config.get("workers"):
        make_envs = functools.partial(task.make_envs, config["env"], n_envs, **options, **task.environment_in_worker)
        workers = Workers(config["workers"], make_envs, executor)
    if workers and algo not in GRADIENT_FREE:
        if options.get("normalise_obs"):
            raise ValueError("normalise_obs: every worker would have moments of its own")
        n_envs = 1
    n_parts = max(1, settings.get("ahead", 0))
    if n_envs % n_parts:
        raise ValueError(f"envs: expected a multiple of ahead, {n_parts}, got {n_envs}")
    envs, *more = (task.make_envs(config["env"], n_envs // n_parts, **options) for _ in range(n_parts))
    kinds, make_env = (task.make_sampler, task.make_network), (task.make_env, config["env"])
    distribution = task.distribution(envs)
    return envs, build(algo, envs, distribution, config["seed"], settings, *kinds, make_env, workers, more)


def load(task, folder, **overrides):
    """As `prepare`, with the state saved in the folder, or the policy that goes by `PRETRAINED`, for playing.

    overrides  "seed", "episodes", "act" and settings named in the task's `playing` that are to differ from training's;
               where None, as there
    """
    config, saved = read_policy(task, folder)
    for name, value in overrides.items():
        if value is not None:
            changed = config if name in config else config["settings"]
            if name not in changed:
                raise RunError(f"{name}: has no meaning for a policy by {config['algo']}")
            changed[name] = value
    run, player = prepare(task, config, "." if _comes_with_the_package(task, folder) else folder)
    run.take_policy(saved, folder)
    return run, player


def read_policy(task, folder):
    """(config, {name: array}) of the last checkpoint in a folder, or of the policy that goes by `PRETRAINED`."""
    if _comes_with_the_package(task, folder):
        config, theta = read_weights(task.pretrained)
        return config, {"theta": theta}
    return read_config(folder), read_checkpoint(folder)


def _comes_with_the_package(task, folder):
    return task.pretrained is not None and folder == PRETRAINED


def train(run, player, quiet):
    """Until the target is reached in an evaluation and again in a second, independent one, or the budget is spent.

    (At the end of the budget one last evaluation decides.)
    """
    config, experiment = run.config, run.experiment
    target, budget = config["target"], config["steps"]
    solved, returns = False, None
    bar = tqdm(total=budget, initial=run.env_steps, unit=" steps", unit_scale=True, disable=quiet, dynamic_ncols=True)
    # What is not finite ends the run with a message of its own; closing lets go of workers.
    with bar, np.errstate(all="ignore"), contextlib.closing(experiment.updates):
        updates = run.updates()
        row = run.rows[-1] if run.rows else {}
        while True:
            if target is not None and row.get("eval_return_mean", -np.inf) >= target:
                returns = player.returns(run.update, 1)
                solved = bool(returns.mean() >= target)
            if solved or run.env_steps >= budget:
                break
            if config["settings"].get("anneal"):
                experiment.set_learning_rate(1 - run.env_steps / budget)
            row = next(updates)
            bar.update(run.env_steps - bar.n)
            if "return_mean" in row:
                bar.set_postfix_str(f"return {recent_return(run.rows):.1f}, {run.episodes} episodes", refresh=False)
    if not solved:
        returns = player.returns(run.update, 1)
        solved = target is not None and bool(returns.mean() >= target)
    result = {
        **{name: config[name] for name in ("env", "algo", "seed", "target")},
        "solved": solved,
        "updates": run.update,
        "env_steps": run.env_steps,
        "seconds": run.seconds,
        "eval_return_mean": float(returns.mean()),
        "eval_return_std": float(returns.std()),
        "eval_episodes": len(returns),
        "workers_restarted": int(sum(row.get("workers_restarted", 0) for row in run.rows)),
    }
    run.finish(result)
    title = f"{config['env']}, {config['algo']}, seed {config['seed']}"
    figures.learning_curve(run.folder / "learning_curve.png", run.rows, title, target)
    return result


def frames(task, run, player, mode):
    """One episode, played and rendered: yields what `render` gives before each step, and the frames a second."""
    env = task.make_env(run.config["env"], mode, **_environment(task, run.config))
    moments, over = normaliser(run.envs), False
    obs, _ = env.reset(seed=int(np.random.default_rng(player.seeded(0, 3)).integers(2**31)))
    while not over:
        yield env.render(), env.metadata.get("render_fps", 30)
        if moments:
            obs = (obs - moments["obs_mean"]) / np.sqrt(moments["obs_var"] + run.envs.epsilon)
        obs, _, terminated, truncated, _ = env.step(player.act(obs))
        over = terminated or truncated
    env.close()
