"""The command line that the run scripts share: flags, commands, and what to say when something is wrong.

Exit codes: 0 done, 2 bad arguments or input, 3 diverged, 130 interrupted (checkpoint written first).
"""

import argparse
import contextlib
import io
import os
import pathlib
import platform
import shlex
import signal
import sys

import gymnasium
import numpy as np

import npg
from npg.gradient_free import SCHEMES, SHAPING
from npg.network import ACTIVATIONS
from npg.runner import figures
from npg.runner.environments import UnsupportedEnvironment
from npg.runner.experiment import ALGORITHMS, CHOICES, GRADIENT_FREE, PARALLEL
from npg.runner.runs import FORMAT, Diverged, RunError, parse_period, read_config, write_weights
from npg.runner.training import ACT, PRETRAINED, frames, load, prepare, read_policy, train
from npg.runner.workers import WorkerError, available_cores


def _number(kind, low, high=np.inf, open_low=False, infinite=False):
    """An argparse type: a `kind` in [low, high], or (low, high]; finite, unless `high` may be `infinite`."""

    def parse(text):
        value = kind(text)
        if not (np.isfinite(value) or infinite and value == high):
            raise argparse.ArgumentTypeError(f"expected a finite number, got {text}")
        if not (low < value if open_low else low <= value) or value > high:
            raise argparse.ArgumentTypeError(f"expected {low} {'<' if open_low else '≤'} number ≤ {high}, got {text}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def _name(text):
    if not text:
        raise argparse.ArgumentTypeError("expected a name, got nothing")
    return text


_count, unit, _positive = _number(int, 1), _number(float, 0, 1), _number(float, 0, open_low=True)
_limit = _number(float, 0, open_low=True, infinite=True)
_choice = lambda names: {"choices": sorted(names)}
_SWITCH = {"action": argparse.BooleanOptionalAction}

# setting: (what argparse needs to know, help)
FLAGS = {
    "envs": ({"type": _count}, "environments side by side, of each worker; episodes of reinforce or of a candidate"),
    "n_steps": ({"type": _count}, "steps of each environment before an update"),
    "report_every": ({"type": _count}, "steps of all workers together that make a row of metrics, an update"),
    "statistics": (_choice(["shared", "own"]), "RMSProp's mean squares: all workers' in common, or each one's"),
    "rms_epsilon": ({"type": _positive}, "ε under RMSProp's root"),
    "epsilons": ({"type": unit, "nargs": "+"}, "chances of a random action: workers take one each, in turn"),
    "temperatures": ({"type": _positive, "nargs": "+"}, "temperatures of the policy: workers take one each, in turn"),
    "gamma": ({"type": unit}, "discount γ"),
    "lam": ({"type": unit}, "λ of the generalised advantage estimate"),
    "learning_rate": ({"type": _positive}, "step size for θ: Adam's; a3c's is RMSProp's; es, kohl-stone: plain"),
    "critic_learning_rate": ({"type": _positive}, "Adam's step size for the critic or baseline"),
    "anneal": (_SWITCH, "lower the learning rates to 0 over --steps"),
    "hidden": ({"type": _count, "nargs": "*"}, "units of each hidden layer"),
    "activation": (_choice(ACTIVATIONS), "of the hidden layers"),
    "shared": (_SWITCH, "one network for actor and critic instead of two"),
    "sigma": (_choice(["learned", "fixed", "state"]), "σ of a Gaussian policy, or of es around θ"),
    "log_std": ({"type": _number(float, -np.inf)}, "log σ at the start; of hill-climbing and genetic, of their steps"),
    "weight": (_choice(CHOICES["weight"]), "Ψ of reinforce"),
    "baseline": (_choice(CHOICES["baseline"]), "subtracted from Ψ"),
    "estimation": (_choice(CHOICES["estimation"]), "of V: regression on returns, or fitted V iteration"),
    "proximal": ({"type": _number(float, 0)}, "λ of fitted V iteration's proximal term"),
    "epochs": ({"type": _count}, "passes over the data of an update"),
    "iterations": ({"type": _count}, "regressions of Q an update, each with its target held fixed"),
    "batch_size": ({"type": _count}, "steps in a minibatch"),
    "importance": (_choice(CHOICES["importance"]), "weights of reused experience"),
    "capacity": ({"type": _count}, "rollouts that the experience buffer holds"),
    "ahead": ({"type": _number(int, 0)}, "threads that draw the next rollout during learning from the last (0: none)"),
    "subtract_value": (_SWITCH, "weigh by Q(s,a) − V(s) instead of Q(s,a)"),
    "standardise": (_SWITCH, "give the weights of a batch mean 0 and standard deviation 1"),
    "value_weight": ({"type": _number(float, 0)}, "weight of the critic's loss beside the actor's"),
    "entropy_weight": ({"type": _number(float, 0)}, "weight β of the entropy bonus"),
    "max_grad_norm": ({"type": _limit}, "longest gradient; longer ones are scaled down (inf: none is)"),
    "n_candidates": ({"type": _count}, "policies tried in an iteration; of finite differences, kohl-stone's alone"),
    "common_seeds": (_SWITCH, "the same episodes for all candidates of an iteration"),
    "shaping": (_choice(SHAPING), "of the candidates' returns"),
    "scheme": (_choice([*SCHEMES, "kohl-stone"]), "of finite differences"),
    "epsilon": ({"type": _positive}, "ε of finite differences"),
    "widen": ({"type": _number(float, 1)}, "factor on σ after a success"),
    "narrow": ({"type": unit}, "factor on σ after a failure"),
    "patience": ({"type": _count}, "failures in a row before a restart"),
    "n_parents": ({"type": _count}, "candidates that have children"),
    "n_elite": ({"type": _count}, "candidates that live on"),
    "crossover": (_SWITCH, "children of two parents"),
    "normalise_obs": (_SWITCH, "remove the observations' running mean and variance"),
    "act": (_choice(ACT), f"actions in evaluations and --gif; sharpened: at temperature {ACT['sharpened']}"),
}
PLAYING = "seed", "episodes", "act"  # what may differ from training's where a policy only plays


def _default_text(settings, name):
    """"0.99; reinforce 1.0": the most common default, then those that differ."""
    values = {algo: s[name] for algo, s in settings.items() if name in s}
    show = lambda v: " ".join(map(str, v)) or "none" if isinstance(v, (list, tuple)) else str(v)
    shown = [show(v) for v in values.values()]
    common = max(shown, key=shown.count)
    if len(values) == len(settings):
        return "; ".join([common, *(f"{algo} {show(v)}" for algo, v in values.items() if show(v) != common)])
    return "; ".join(f"{algo} {show(v)}" for algo, v in values.items())


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser(task):
    """The command line of a run script; every default is None until `_new_config` fills it in."""
    parser = _Parser(description=task.description)
    add = parser.add_argument
    add("--algo", choices=[algo for algo in ALGORITHMS if algo in task.settings], help=f"algorithm ({task.algo})")
    add("--env", metavar="ID", type=_name, help=f"environment, by its name in Gymnasium ({task.env})")
    add("--seed", type=_number(int, 0), metavar="N", help="of everything random (0)")
    add("--steps", type=_count, metavar="N", help=f"budget of environment steps ({task.steps})")
    threshold = "stop at this mean return (the environment's reward threshold)"
    add("--target", type=_number(float, -np.inf), metavar="R", help=threshold)
    workers = "processes that compute gradients or evaluate candidates (a3c: one a core, {}; others: this process)"
    add("--workers", type=_count, metavar="N", help=workers.format(available_cores()))
    cluster = "Dask scheduler to whose workers these processes belong, HOST:PORT (processes of this machine)"
    add("--cluster", metavar="ADDRESS", type=_name, help=cluster)
    add("--out", metavar="DIR", type=_name, help="folder of the run (a new one below runs/)")
    add("--resume", metavar="DIR", type=_name, help="go on with the run in DIR")
    start = "begin with the θ that the run in DIR ended with, not with a random one; policy gradients only"
    add("--start-from", metavar="DIR", type=_name, help=start)
    add("--evaluate", metavar="DIR", type=_name, help="play with the policy in DIR and print its returns")
    add("--gif", metavar="DIR", type=_name, help="write policy.gif, one episode of the policy in DIR, into DIR")
    add("--watch", metavar="DIR", type=_name, help="watch one episode of the policy in DIR")
    if task.pretrained:
        export = f"make the policy in DIR the one that goes by DIR {PRETRAINED!r}"
        add("--export", metavar="DIR", type=_name, help=export)
    add("--episodes", type=_count, metavar="N", help=f"in an evaluation ({task.episodes})")
    period = "; ".join([str(task.evaluate_every), *(f"{algo} 1" for algo in task.evaluate_always)])
    add("--evaluate-every", type=_count, metavar="N", help=f"updates between evaluations ({period})")
    period = f"updates (50) or seconds (30s) between checkpoints ({task.checkpoint_every}; a3c without --cluster 1)"
    add("--checkpoint-every", type=_name, metavar="N|Ns", help=period)
    add("--quiet", action="store_true", help="no progress bar")
    group = parser.add_argument_group("settings", "with their defaults; other ones hold for Box actions")
    known = {name for s in (*task.settings.values(), *task.continuous_settings.values()) for name in s}
    for name, (options, text) in {**FLAGS, **task.flags}.items():
        if name not in known:
            continue
        metavar = {} if "choices" in options or "action" in options else {"metavar": "X"}
        default = [_default_text(task.settings, name)] if any(name in s for s in task.settings.values()) else []
        if any(name in s and name not in task.settings[algo] for algo, s in task.continuous_settings.items()):
            default.append("others Box only" if default else "Box only")
        group.add_argument(_flag(name), **options, **metavar, help=f"{text} ({'; '.join(default)})".replace("%", "%%"))
    return parser


def _flag(name):
    return "--" + name.replace("_", "-")


def _new_config(task, args, parser):
    """The config of a new run: what was asked, and defaults for the rest."""
    algo, env = args.algo or task.algo, args.env or task.env
    for name in ("workers", "cluster"):
        if getattr(args, name) and algo not in PARALLEL:
            parser.error(f"--{name} has no meaning for --algo {algo}")
    if args.cluster and not args.workers:
        parser.error("--cluster needs --workers, the number of gradients under way at a time")
    if args.start_from and algo in GRADIENT_FREE:
        parser.error(f"--start-from has no meaning for --algo {algo}")
    probe = task.make_envs(env, 1)
    continuous = isinstance(probe.single_action_space, gymnasium.spaces.Box)
    probe.close()
    settings = {**task.settings[algo], **(task.continuous_settings.get(algo, {}) if continuous else {})}
    for name in (*FLAGS, *task.flags):
        if getattr(args, name, None) is not None:
            if name not in settings:
                parser.error(f"{_flag(name)} has no meaning for --algo {algo} with {env}")
            settings[name] = getattr(args, name)
    target = task.target(env) if args.target is None else args.target
    long_updates = algo == "a3c" and not args.cluster
    return {
        "format": FORMAT,
        "env": env,
        "algo": algo,
        "seed": args.seed or 0,
        "workers": args.workers or (available_cores() if algo == "a3c" else None),
        "cluster": args.cluster,
        "start_from": args.start_from,
        "steps": args.steps or task.steps,
        "target": target,
        "episodes": args.episodes or task.episodes,
        "evaluate_every": args.evaluate_every or (1 if algo in task.evaluate_always else task.evaluate_every),
        "evaluate_from": None if target is None else target - task.evaluate_within,
        "checkpoint_every": args.checkpoint_every or ("1" if long_updates else task.checkpoint_every),
        "settings": settings,
        "versions": {
            "npg": npg.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }


def _new_folder(config):
    base = f"runs/{config['env'].replace('/', '-')}-{config['algo']}-seed{config['seed']}"
    folder, k = pathlib.Path(base), 2
    while folder.exists():
        folder, k = pathlib.Path(f"{base}-{k}"), k + 1
    return folder


@contextlib.contextmanager
def _cluster(address):
    """The executor of the Dask scheduler at an address, or None of None; RunError where there is none."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise RunError("--cluster needs the package distributed: pip install 'npg[cluster]'") from None
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RunError(f"--cluster {address}: no Dask scheduler answers: {error}") from None
    with client:
        yield client.get_executor(pure=False, retries=3)


def _load(task, folder, args):
    return load(task, folder, **{name: getattr(args, name) for name in (*PLAYING, *task.playing)})


def _train_command(task, args, parser):
    if args.resume:
        given = [name for name, value in vars(args).items() if value is not None]
        for name in set(given) - {"resume", "steps", "quiet", "cluster"}:
            parser.error(f"{_flag(name)} cannot be changed with --resume; the run's config.json holds it")
        config, folder = read_config(args.resume), pathlib.Path(args.resume)
        config["steps"] = args.steps or config["steps"]
        config["cluster"] = args.cluster or config.get("cluster")
        if args.cluster and not config.get("workers"):
            parser.error("--cluster has no meaning for a run without workers")
    else:
        config = _new_config(task, args, parser)
        folder = pathlib.Path(args.out) if args.out else _new_folder(config)
    with _cluster(config["cluster"]) as executor:
        return _train(task, args, parser, config, folder, executor)


def _train(task, args, parser, config, folder, executor):
    run, player = prepare(task, config, folder, executor)
    if config.get("start_from") and not (folder / "checkpoint.npz").exists():
        source = config["start_from"]
        run.take_policy(read_policy(task, source)[1], f"--start-from {source}")
    if args.resume:
        run.resume()
    else:
        run.create()
    try:
        result = train(run, player, args.quiet)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not spoil the checkpoint
        run.save()
        print(
            f"\ninterrupted at update {run.update}; saved as of update {int(run.snapshot['update'])}. Go on with:\n"
            f"  python {parser.prog} --resume {shlex.quote(str(folder))}",
            file=sys.stderr,
        )
        return 130
    except Diverged as error:
        run.save()
        print(f"{parser.prog}: {error}; the last good checkpoint is in {folder}", file=sys.stderr)
        return 3
    except Exception as error:  # a cluster's may be of any kind, also what a call raised there
        if executor is None and not isinstance(error, WorkerError):
            raise
        run.save()
        where = "" if executor is None else f"{type(error).__name__} on the cluster: "
        message = where + " ".join(str(error).split())
        print(f"{parser.prog}: {message}; the last checkpoint is in {folder}", file=sys.stderr)
        return 2
    verdict = "" if result["target"] is None else "solved: " if result["solved"] else "not solved: "
    print(
        f"{verdict}return {result['eval_return_mean']:.1f} ± {result['eval_return_std']:.1f} over "
        f"{result['eval_episodes']} unseen episodes, after {result['env_steps']:,} steps and "
        f"{result['seconds']:.2f} s of training; see {folder}"
    )
    return 0


def _evaluate_command(task, args):
    _, player = _load(task, args.evaluate, args)
    returns = player.returns(0, 2)
    print(
        f"return {returns.mean():.1f} ± {returns.std():.1f} (lowest {returns.min():.1f}, highest {returns.max():.1f}) "
        f"over {len(returns)} episodes"
    )
    return 0


def _gif_command(task, args):
    run, player = _load(task, args.gif, args)
    pictures, fps = zip(*frames(task, run, player, "rgb_array"))
    path = run.folder / "policy.gif"
    figures.gif(path, pictures, fps[0])
    print(f"wrote {path}: {len(pictures)} frames")
    return 0


def _watch_command(task, args):
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise RunError("--watch: there is no screen here; --gif writes the episode to a file")
    run, player = _load(task, args.watch, args)
    for _ in frames(task, run, player, "human"):
        pass
    return 0


def _export_command(task, args):
    run, _ = _load(task, args.export, args)
    write_weights(task.pretrained, run.config, run.experiment.theta)
    print(f"wrote {task.pretrained}: {task.pretrained.stat().st_size / 1e6:.1f} MB")
    return 0


def main(task, argv=None):
    """Run a script's command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack Greek letters
    parser = make_parser(task)
    args = parser.parse_args(argv)
    commands = {"evaluate": _evaluate_command, "gif": _gif_command, "watch": _watch_command, "export": _export_command}
    modes = [name for name in ("resume", *commands) if getattr(args, name, None)]
    if len(modes) > 1:
        parser.error(f"{_flag(modes[0])} and {_flag(modes[1])} do not go together")
    try:
        if args.checkpoint_every:
            parse_period(args.checkpoint_every)
    except ValueError as error:
        parser.error(f"argument --checkpoint-every: {error}")
    try:
        if modes and modes[0] in commands:
            for name in vars(args):
                allowed = (*commands, *PLAYING, *task.playing, "quiet")
                if getattr(args, name) is not None and name not in allowed:
                    parser.error(f"{_flag(name)} has no meaning with {_flag(modes[0])}")
            return commands[modes[0]](task, args)
        return _train_command(task, args, parser)
    except (RunError, UnsupportedEnvironment, gymnasium.error.DependencyNotInstalled) as error:
        print(f"{parser.prog}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        print(f"{parser.prog}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return 130
