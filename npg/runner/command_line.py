"""The command line that the run scripts share: flags, commands, and error messages.

A command line is read twice. The first time finds the algorithm, from --algo or from the folder of a run. The second
time reads the flags of this algorithm.

Exit codes: 0 done, 2 bad arguments or input, 3 diverged, 4 the user's environment failed, 130 Ctrl-C and 143 SIGTERM
(checkpoint written first).
"""

import argparse
import contextlib
import inspect
import io
import pathlib
import platform
import re
import shlex
import signal
import sys
import textwrap
import threading

import gymnasium
import numpy as np

import npg
from npg.runner import interrupts
from npg.runner.commands import COMMANDS, read_policy
from npg.runner.environments import LONGEST, EnvironmentFailed, UnsupportedEnvironment, lacks_time_limit
from npg.runner.folder import InUse, RunError, check_unused, one_line, taken, write_atomically
from npg.runner.machine import available_cores
from npg.runner.metrics import rounded
from npg.runner.runs import Diverged, Run
from npg.runner.saved import FORMAT, PRETRAINED, is_pretrained, read_config
from npg.runner.script import RUN, prepare
from npg.runner.settings import VOCABULARY, Setting, check, kind, without_effect
from npg.runner.workers import WorkerError

FOLDERS = {
    "out": "folder of the run (a new folder in runs/)",
    "resume": "continue the run in DIR",
    "evaluate": "play episodes with the policy in DIR and print the returns",
    "gif": "play one episode with the policy in DIR and write DIR/policy.gif",
    "watch": "show one episode of the policy in DIR on the screen",
    "export": f"save the policy in DIR as the policy {PRETRAINED!r}",
}
ALLOWED = {  # {command: the other flags that it accepts}
    "evaluate": {"seed", "episodes", "act", "quiet"},
    "gif": {"seed", "act", "quiet"},
    "watch": {"seed", "act", "quiet"},
    "export": {"quiet"},
    "resume": {"steps", "target", "quiet", "cluster"},
}


class _Formatter(argparse.HelpFormatter):
    def _fill_text(self, text, width, indent):
        return textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False)  # a flag stays whole


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(**options)
        self._negative_number_matcher = re.compile(r"-(inf|\.?\d.*)")  # argparse itself does not know -1e3

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser(script, algo):
    """A parser for every flag of one algorithm. Flags that are not given are absent from its result."""
    about = f"These are the flags of --algo {algo}, with their defaults in parentheses."
    parser = _Parser(
        description=f"{script.description} {about} {inspect.getdoc(script.algorithms[algo][0]) or ''}",
        usage="%(prog)s [FLAG ...]",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=lambda prog: _Formatter(prog, max_help_position=30),
    )
    parser.add_argument("--algo", choices=list(script.algorithms), help=f"algorithm ({next(iter(script.algorithms))})")
    for name, text in FOLDERS.items():
        if script.pretrained and name in COMMANDS and name != "export":
            text += f"; DIR {PRETRAINED}: the policy that comes with the package"
        if name != "export" or script.pretrained:
            parser.add_argument(f"--{name}", metavar="DIR", help=text)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    plain, shared = (script.settings_of(algo, False, shared=shared) for shared in (False, True))
    elsewhere, box = (script.settings_of(algo, is_box, elsewhere=True) for is_box in (False, True))
    for name, parameter in box.items():
        of, several, none = kind(parameter)
        setting = VOCABULARY.get(name, Setting("setting of this algorithm"))
        options = {"type": of, "metavar": "X"} if not setting.choices else {"choices": list(setting.choices)}
        if of is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif several:
            options["nargs"] = "*"
        elif none and of is not str:
            options["type"] = number_or_none
        flag, text = "--" + name.replace("_", "-"), f"{setting.help} ({_defaults(name, plain, elsewhere, box, shared)})"
        parser.add_argument(flag, **options, help=text.replace("%", "%%"))
    return parser


def _defaults(name, plain, elsewhere, box, shared):
    """The text about the defaults of a setting in -h: the plain default, and the defaults that differ from it."""

    def default(parameters):
        return _shown(name, parameters[name].default)

    if name not in plain:
        return f"Box actions: {default(box)}"
    texts = [default(plain)]
    if default(elsewhere) != default(plain):
        texts.append(f"other environments: {default(elsewhere)}")
    if default(box) != default(elsewhere):
        texts.append(f"Box actions: {default(box)}")
    if default(shared) != default(plain):
        texts.append(f"--shared: {default(shared)}")
    return "; ".join(texts)


def _shown(name, default):
    if name == "workers" and default == 0:
        return "one per core"
    if name == "target" and default is None:
        return "the environment's threshold, if any"
    if isinstance(default, (tuple, list)):
        return " ".join(map(str, default)) or "none"
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def number_or_none(text):
    """An argparse type: "none" → None, "5" → 5, "0.5" → 0.5."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


number_or_none.__name__ = "number"  # argparse's messages show this name


def _algorithm_of(script, argv):
    """The algorithm whose flags are read: of the run that is named, or else of --algo, or else the script's default."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algo", choices=list(script.algorithms))
    folders = ("resume", *COMMANDS)
    for name in folders:
        parser.add_argument(f"--{name}")
    known, _ = parser.parse_known_args(argv)
    for folder in (getattr(known, name) for name in folders):
        with contextlib.suppress(RunError, KeyError):  # errors in a folder are reported later
            algo = read_config(folder)["algo"] if folder and not is_pretrained(script, folder) else None
            if algo in list(script.algorithms):
                return algo
    return known.algo or next(iter(script.algorithms))


def _checked(parser, parameter, value):
    """The value of a flag, checked. Exits with an error that names the flag."""
    try:
        return check(parameter, value)
    except ValueError as error:
        flag, text = parameter.name.replace("_", "-"), str(error).removeprefix(f"{parameter.name}: ")
        parser.error(f"argument --{flag}: {text}")


def _new_config(script, algo, given, parser):
    """The config of a new run: the settings that were given, and defaults for the rest."""
    own = script.settings_of(algo, False)["env"].default
    env = given.get("env", own)
    probe = script.probe(env)
    if lacks_time_limit(probe.spec) and "quiet" not in given:
        print(f"{parser.prog}: {env} has no time limit: each episode ends after {LONGEST:,} steps", file=sys.stderr)
    is_box = isinstance(probe.single_action_space, gymnasium.spaces.Box)
    elsewhere = own not in (env, getattr(probe.spec, "id", None))  # one environment may have several names
    parameters = script.settings_of(algo, is_box, elsewhere=elsewhere, shared=given.get("shared", False))
    values = {name: given.get(name, parameter.default) for name, parameter in parameters.items()}
    for name in script.settings_of(algo, True).keys() & given.keys():
        if name not in parameters:
            parser.error(f"--{name.replace('_', '-')} has no meaning for --algo {algo} with {env}")
        values[name] = _checked(parser, parameters[name], given[name])
    if values.get("workers") == 0:
        values["workers"] = available_cores()
    idle = without_effect(parameters, values)
    if idle:
        name, other = (word.replace("_", "-") for word in idle[:2])
        parser.error(f"--{name} has no effect with --{other} {_shown(*idle[1:])}")
    if values.get("act", "sampled") != "sampled" and not script.solved_by_evaluations:
        parser.error("--act has no meaning in training, which judges sampled actions; use it with --evaluate or --gif")
    for name in {"epsilons", "temperatures"} & given.keys():
        if values.get("workers") and len(given[name]) > values["workers"]:
            parser.error(f"argument --{name}: expected at most {values['workers']}, one per worker")
    if values.get("cluster") and not values["workers"]:
        parser.error("--cluster needs --workers, the number of calls that the cluster computes at the same time")
    threshold = getattr(probe.spec, "reward_threshold", None)
    if "target" not in given and values["target"] is None and threshold is not None:
        try:
            values["target"] = check(parameters["target"], float(threshold))
        except (TypeError, ValueError):
            parser.error(f"environment {env}: its reward_threshold: expected a number, got {threshold!r}")
    run = {name: values.pop(name, None) for name in RUN}
    packages = {"npg": npg, "numpy": np, "gymnasium": gymnasium}
    versions = {"python": platform.python_version(), **{name: p.__version__ for name, p in packages.items()}}
    near = _evaluate_from(script, run["target"])
    return {"format": FORMAT, "algo": algo, **run, "evaluate_from": near, "settings": values, "versions": versions}


def _evaluate_from(script, target):
    """The mean return of training from which on evaluations are made; None: from the beginning."""
    return None if None in (target, script.evaluate_within) else target - script.evaluate_within


def _new_folder(script, algo, given):
    defaults = script.settings_of(algo, False)
    env, seed = (given.get(name, defaults[name].default) for name in ("env", "seed"))
    base = f"runs/{env.replace('/', '-')}-{algo}-seed{seed}"
    folder, k = pathlib.Path(base), 2
    while folder.exists():
        folder, k = pathlib.Path(f"{base}-{k}"), k + 1
    return folder


@contextlib.contextmanager
def _cluster(address):
    """The executor of the Dask scheduler at an address. RunError if no scheduler answers, or without the package."""
    try:
        from distributed import Client
    except ImportError:
        raise RunError("--cluster needs the package distributed: pip install 'npg[cluster]'") from None
    if not re.fullmatch(r"(tcp://)?([^:/]+|\[[^/]+\]):\d+", address):
        raise RunError(f"--cluster: expected HOST:PORT, got {address!r}")
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except Exception as error:  # any exception: another program may answer at this address
        raise RunError(f"--cluster {address}: no Dask scheduler answers: {one_line(error)}") from None
    with client:
        yield client.get_executor(pure=False, retries=3)


@contextlib.contextmanager
def _stopping(run):
    """At Ctrl-C or SIGTERM the run ends between two updates and saves a checkpoint; at a second signal, immediately."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, run.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            yield
        except KeyboardInterrupt:
            run.stopped = run.stopped or signal.SIGINT
        if run.stopped:
            for number in handlers:
                signal.signal(number, signal.SIG_IGN)  # until the process ends
            run.save_where_it_stands()
    finally:
        for number, handler in handlers.items() if not run.stopped else ():
            signal.signal(number, handler)


def _train(script, config, folder, given, parser):
    """Begins or resumes a run, trains, and prints how the run ended. Returns the exit code."""
    script_path = sys.argv[0] if pathlib.Path(sys.argv[0]).is_file() else parser.prog
    program = f"python {_argument(script_path)}"
    with contextlib.ExitStack() as until_the_end:
        executor = until_the_end.enter_context(_cluster(config["cluster"])) if config.get("cluster") else None
        run = _begin(script, config, folder, given, executor, until_the_end)
        try:
            result = _learn(script, run, "resume" in given)
        except Diverged as error:
            print(f"{parser.prog}: {error}; {run.last_checkpoint()}", file=sys.stderr)
            return 3
        except Exception as error:  # a cluster may raise any exception, also one that a call raised there
            failed = failure_of_environment(error)
            if failed:
                with contextlib.suppress(Exception):  # the environments may be in any state
                    run.save_where_it_stands()
                raise EnvironmentFailed(f"{failed}; {run.last_checkpoint()}", failed.args[1]) from None
            if executor is None and not isinstance(error, WorkerError):
                raise
            where = "" if executor is None else f"{type(error).__name__} on the cluster: "
            print(f"{parser.prog}: {where}{one_line(error)}; {run.last_checkpoint()}", file=sys.stderr)
            return 2
    if result is None:  # a signal has stopped the run
        command = f"{program} --resume {_argument(folder)}"
        message = f"interrupted at update {run.update}; {run.last_checkpoint()}. Continue with:\n  {command}"
        print(f"\n{message}", file=sys.stderr)
        return 128 + run.stopped
    print(_report(run, result, program, _argument(folder)), flush=True)
    run.task.close()  # not after an interruption: an environment that hangs may also hang here
    return 0


def _begin(script, config, folder, given, executor, until_the_end):
    """The new or resumed `Run` in a folder. A new run locks the folder; `until_the_end` ends the lock."""
    task, learner = prepare(script, config, folder if "resume" in given else None, executor)
    run = Run(folder, config, task, learner, quiet="quiet" in given)
    if config.get("start_from") and not (folder / "checkpoint.npz").exists():
        _start_from(script, config, run, config["start_from"])
    if "resume" in given:
        run.resume()
    else:
        until_the_end.enter_context(taken(folder))
        run.create()
    return run


def _learn(script, run, resumed):
    """Trains and makes the last evaluations. Returns the result, or None if a signal has stopped the run."""
    result = None
    with run.bar, np.errstate(all="ignore"), contextlib.ExitStack() as at_the_end:  # NaN and Inf have their own message
        at_the_end.callback(run.task.end_workers)
        at_the_end.enter_context(contextlib.closing(run.learner.updates))
        with _stopping(run):
            if not resumed or run.replay():
                script.train(run, run.learner)
            if not run.stopped:
                result = run.finish()
        if result is None:
            run.draw()
    return result


def _argument(folder):
    """A path as an argument in a shell."""
    text = str(folder)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _start_from(script, config, run, source):
    """Takes the policy of another run. RunError if its numbers mean something else there."""
    earlier, saved = read_policy(script, source)
    for name in ("inputs", "hidden", "shared", "activation", "policy", "components", "normalise_obs"):
        here, there = (some["settings"].get(name) for some in (config, earlier))
        here = list(here) if isinstance(here, tuple) else here  # as in a file
        if None not in (here, there) and here != there:
            raise RunError(f"--start-from {source}: expected a policy with {name} {here}, found {name} {there}")
    here, there = ("Box" if "policy" in some["settings"] else "Discrete" for some in (config, earlier))
    if here != there and not {config["algo"], earlier["algo"]} & set(script.searches):  # a search tells no actions
        raise RunError(f"--start-from {source}: expected a policy over {here} actions, found {there}")
    run.take_policy(saved, f"--start-from {source}")


def _report(run, result, program, folder):
    """The text for the user at the end: the results, and commands for the next steps."""
    verdict = {None: "finished", True: "solved", False: "not solved"}[result["solved"]]
    lines = [f"{verdict} after {result['env_steps']:,} steps and {result['seconds']:.2f} s of training"]
    mean, std = result["eval_return_mean"], result["eval_return_std"]
    unseen = f"{rounded(mean)} ± {rounded(std, mean)}"
    if run.is_search or run.recent_return is None:
        lines.append(f"  return {unseen}, mean of {result['eval_episodes']} unseen episodes")
    else:
        lines.append(f"  return {rounded(run.recent_return)}, mean of the last {run.window} training episodes; "
                     f"{unseen} in {result['eval_episodes']} unseen episodes")
    if result["greedy_episodes"] and not run.is_search:
        lines.append(f"  return {rounded(result['greedy_return_mean'])} with the most likely actions, "
                     f"in {result['greedy_episodes']} unseen episodes")
    if result["target"] is not None:
        lines.append(f"  target {result['target']:g}")
    if result["solved"] is False and result["eval_return_mean"] >= result["target"]:
        lines.append(f"  not confirmed: {_still_needed(run, result)}")
    if run.all_returns_are_equal() and not result["solved"]:
        lines.append("  all episodes had the same return: there was nothing to learn from yet")
    if run.episodes == 0:
        lines.append("  no episode of training has ended yet")
    if (run.folder / "learning_curve.png").is_file():
        lines.append(f"  picture   {folder}/learning_curve.png")
    lines.append(f"  film      {program} --gif {folder}")
    lines.append(f"  evaluate  {program} --evaluate {folder}")
    on = " --target none" if result["solved"] else ""  # otherwise the target would end the run again
    lines.append(f"  continue  {program} --resume {folder} --steps {2 * max(run.config['steps'], run.env_steps)}{on}")
    return "\n".join(lines)


def _still_needed(run, result):
    """What a run lacks to be solved, although the unseen episodes of its end reached the target."""
    if result["eval_episodes"] < run.window:
        return f"this takes {run.window} unseen episodes"
    if run.is_search:
        return "two evaluations in a row must reach the target"
    if run.judged_by_evaluations:
        return "the confirmation before these episodes failed"
    if run.recent_return is not None and run.recent_return >= result["target"]:
        return f"after a confirmation that failed, {run.window} new episodes come first"
    return f"the mean of {run.window} training episodes must reach the target, too"


def main(script, argv=None):
    """Runs a script's command line. Returns the exit code."""
    with contextlib.redirect_stderr(interrupts.Forgiving(sys.stderr)):
        if argv is None:  # the script is the process's own program
            return interrupts.run(lambda: _main(script, sys.argv[1:]))
        with interrupts.restored():
            return _main(script, list(argv))


def _parse(script, argv):
    """Reads the flags: (parser, algorithm, mode, {flag: its value}). The mode is "resume", a command, or None."""
    algo = _algorithm_of(script, argv)
    parser = make_parser(script, algo)
    args, unknown = parser.parse_known_args(argv)
    given = vars(args)
    if unknown:
        _refuse(script, algo, parser, unknown[0].split("=")[0])
    modes = [name for name in ("resume", *COMMANDS) if name in given]
    if len(modes) > 1:
        parser.error(f"--{modes[0]} and --{modes[1]} cannot be combined")
    if "" in given.values():
        name = next(name for name in given if given[name] == "").replace("_", "-")
        parser.error(f"argument --{name}: expected a name, got nothing")
    mode = modes[0] if modes else None
    for name in given.keys() - ALLOWED.get(mode, given.keys()) - {mode, *(script.playing if mode in COMMANDS else ())}:
        parser.error(f"--{name.replace('_', '-')} has no meaning with --{mode}, which uses the run's config.json")
    if mode:  # a new run checks its flags in `_new_config`
        parameters = script.settings_of(algo, True)
        for name in parameters.keys() & given.keys():
            given[name] = _checked(parser, parameters[name], given[name])
    return parser, algo, mode, given


def _main(script, argv):
    for stream in (sys.stdout, getattr(sys.stderr, "stream", None)):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(errors="replace")  # some terminals cannot show Greek letters
    parser, algo, mode, given = _parse(script, argv)
    folder = None
    try:
        if mode in COMMANDS:
            folder = None if is_pretrained(script, given[mode]) else pathlib.Path(given[mode])
            return COMMANDS[mode](script, given)
        if mode is None:
            folder = pathlib.Path(given["out"]) if "out" in given else _new_folder(script, algo, given)
            check_unused(folder)  # before the environment may fail: its traceback is written into the folder
            config = _new_config(script, algo, given, parser)
            while True:
                try:
                    return _train(script, config, folder, given, parser)
                except InUse:  # another run has just begun in the new folder
                    if "out" in given:
                        raise
                    folder = _new_folder(script, algo, given)
        folder = pathlib.Path(given["resume"])
        read_config(folder)  # if there is no run, this raises before `taken` makes a folder
        with taken(folder):
            config = read_config(folder)
            config.update({name: given[name] for name in ("steps", "target", "cluster") if name in given})
            if "target" in given:
                config["evaluate_from"] = _evaluate_from(script, config["target"])
            if "cluster" in given and not config["settings"].get("workers"):
                parser.error("--cluster has no meaning for a run without workers")
            return _train(script, config, folder, given, parser)
    except (RunError, UnsupportedEnvironment, gymnasium.error.DependencyNotInstalled) as error:
        print(f"{parser.prog}: {one_line(error)}", file=sys.stderr)
        return 2
    except EnvironmentFailed as error:
        print(f"{parser.prog}: {error}{_keep_traceback(folder, error.args[1])}", file=sys.stderr)
        return 4
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        print(f"{parser.prog}: {one_line(message)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f"\n{interrupts.LINE}", file=sys.stderr)
        return 130


def failure_of_environment(error):
    """The EnvironmentFailed among an exception and its causes (the cause may come from a worker), or None."""
    while error is not None and not isinstance(error, EnvironmentFailed):
        error = error.__cause__
    return error


def _keep_traceback(folder, text):
    """Writes the traceback into the folder of the run. Returns the end of the error message: where the traceback is."""
    if folder is None:
        return ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "error.txt", lambda file: file.write(text.encode(errors="replace")))
    except (RunError, OSError):
        return "; its traceback cannot be written"
    return f"; its traceback is in {folder / 'error.txt'}"


def _refuse(script, algo, parser, flag):
    """Exits with an error: this algorithm has no such flag. The message says if another algorithm has the flag."""
    name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
    if "_" in flag and name in script.settings_of(algo, True):
        parser.error(f"unrecognized arguments: {flag}; did you mean --{name.replace('_', '-')}?")
    known = name in script.settings_of(algo, True)  # for example --no-seed
    if not known and any(name in script.settings_of(other, True) for other in script.algorithms):
        parser.error(f"--{name.replace('_', '-')} has no meaning for --algo {algo}")
    parser.error(f"unrecognized arguments: {flag}")
