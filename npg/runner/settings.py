"""Settings of a run: found in the signatures of functions, and checked by one vocabulary.

An algorithm is a tuple of functions: the script's own function, then the functions that receive its `**settings`. Each
keyword-only argument of these functions is a setting. If several functions have a setting, the first function gives the
default. `VOCABULARY` tells, for each name, which values are allowed. Settings from the command line and from a run's
config.json pass the same check.
"""

import contextlib
import inspect
import math
import sys
import typing
from typing import NamedTuple

from npg.gradient_free import SCHEMES, SHAPING
from npg.network import ACTIVATIONS
from npg.optimizers import OPTIMIZERS
from npg.reinforce import BASELINES, WEIGHTS
from npg.replay import IMPORTANCE
from npg.runner.playing import ACT


class Setting(NamedTuple):
    """The purpose of a setting, and its allowed values."""

    help: str
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf  # values must be greater than this limit
    choices: tuple = ()
    only_with: dict = {}  # {another setting: its values for which this setting has an effect}
    empty: bool = False  # whether an empty list is allowed


class NotEmpty:
    """Contains every sequence that is not empty."""

    def __contains__(self, value):
        return len(value) > 0


STATE, LAYERS = {"baseline": ("state",)}, {"hidden": NotEmpty()}
VOCABULARY = {
    "env": Setting("name of the Gymnasium environment, or MODULE:NAME, where importing MODULE registers it"),
    "seed": Setting("seed of all random numbers", low=0),
    "steps": Setting("budget of environment steps; the last update is completed", low=1),
    "target": Setting("mean return that ends training; none: train to the end of the budget"),
    "episodes": Setting(
        "episodes per evaluation; in training, a confirmation always has 100. none: 10 in training (a search: 100), "
        "up to 100 at the end, 100 with --evaluate. Pong: 30 instead of 100",
        low=1,
    ),
    "evaluate_every": Setting("updates between evaluations; an evaluation that would take too long is skipped", low=1),
    "checkpoint_every": Setting("updates (50) or seconds (30s) between checkpoints; none: only at the end"),
    "start_from": Setting("start with the θ of the run in this folder, and with its moments of the observations"),
    "cluster": Setting("address HOST:PORT of a Dask scheduler; its workers replace local processes"),
    "envs": Setting("environments in parallel, per worker; for a search: episodes per candidate", low=1),
    "workers": Setting("number of worker processes", low=1),
    "n_steps": Setting("steps of each environment per update (a3c: at most)", low=1),
    "report_every": Setting(
        "steps per row of metrics.csv, counted over all workers", low=1, only_with={"cluster": (None,)}
    ),
    "statistics": Setting(
        "the optimizer's running averages: shared by all workers, or each worker's own", choices=("shared", "own"),
        only_with={"workers": range(2, 10**6), "optimizer": ("rmsprop", "adam"), "cluster": (None,)},
    ),
    "rms_epsilon": Setting("ε inside RMSProp's square root", above=0, only_with={"optimizer": ("rmsprop",)}),
    "epsilons": Setting("probability of a random action, one per worker; a short list is repeated", low=0, high=1),
    "temperatures": Setting("temperature of the policy, one per worker; a short list is repeated", above=0),
    "gamma": Setting("discount γ", low=0, high=1),
    "lam": Setting("λ of GAE, generalised advantage estimation", low=0, high=1),
    "learning_rate": Setting("step size for θ", above=0),
    "critic_learning_rate": Setting("step size for the critic", above=0, only_with=STATE),
    "optimizer": Setting(
        "rule that turns a gradient into a step", choices=tuple(OPTIMIZERS), only_with={"scheme": tuple(SCHEMES)}
    ),
    "anneal": Setting("lower the learning rates linearly to 0 over --steps"),
    "hidden": Setting("units per hidden layer; no number: no hidden layer", low=1, empty=True),
    "activation": Setting("activation function of the hidden layers", choices=tuple(ACTIVATIONS), only_with=LAYERS),
    "shared": Setting("one network for actor and critic instead of two"),
    "policy": Setting("distribution of Box (continuous) actions", choices=("gaussian", "multivariate", "mixture")),
    "components": Setting("number of Gaussians in a mixture", low=1, only_with={"policy": ("mixture",)}),
    "sigma": Setting("a Gaussian's σ: learned, fixed, or a function of state", choices=("learned", "fixed", "state")),
    "log_std": Setting("initial log σ", low=-50, high=50, only_with={"sigma": ("learned", "fixed")}),
    "weight": Setting(
        "weight Ψ; total: R(τ), reward-to-go: G_t, discounted: γᵗ G_t (all use --gamma)", choices=tuple(WEIGHTS)
    ),
    "baseline": Setting("baseline that is subtracted from Ψ", choices=tuple(BASELINES)),
    "estimation": Setting("how to fit V; mc: regression on returns, td: fitted V iteration", choices=("mc", "td")),
    "proximal": Setting("λ of the proximal term in fitted V iteration", low=0, only_with={"estimation": ("td",)}),
    "gradient_steps": Setting("gradient steps per fitted V iteration", low=1, only_with={"estimation": ("td",)}),
    "epochs": Setting(
        "passes over the data per update (q-actor-critic: per regression); with td: fitted V iterations", low=1,
        only_with=STATE,
    ),
    "iterations": Setting("regressions of Q per update; each regression has a fixed target", low=1),
    "batch_size": Setting("steps per minibatch", low=1, only_with={**STATE, "estimation": ("mc",)}),
    "importance": Setting("kind of importance weights for reused experience", choices=tuple(IMPORTANCE)),
    "clip": Setting("ε of PPO's clipping", above=0, only_with={"importance": ("clipped",)}),
    "truncate": Setting("largest importance weight", above=0, only_with={"importance": ("truncated",)}),
    "capacity": Setting("size of the experience buffer, in rollouts", low=1),
    "ahead": Setting("threads that collect the next rollout during an update; 0: none", low=0),
    "subtract_value": Setting("use the weight Q(s,a) − V(s) instead of Q(s,a)"),
    "standardise": Setting("standardise the weights Ψ of each batch: mean 0, standard deviation 1"),
    "value_coef": Setting("coefficient of the critic's loss", low=0),
    "entropy_coef": Setting("coefficient β of the entropy bonus", low=0),
    "max_grad_norm": Setting("largest norm of a gradient; longer gradients are scaled down; none: no limit", above=0),
    "n_candidates": Setting("candidates per iteration", low=1, only_with={"scheme": ("kohl-stone",)}),
    "common_seeds": Setting("all candidates of an iteration play with the same seeds"),
    "search_sigma": Setting("σ of the candidates around θ", choices=("fixed", "learned")),
    "search_log_std": Setting("initial log σ of the candidates around θ", low=-50, high=50),
    "shaping": Setting("transformation of the candidates' returns", choices=tuple(SHAPING)),
    "scheme": Setting("kind of finite differences", choices=(*SCHEMES, "kohl-stone")),
    "epsilon": Setting("step ε of the finite differences", above=0),
    "widen": Setting("factor by which σ grows after a success", low=1),
    "narrow": Setting("factor by which σ shrinks after a failure", low=0, high=1),
    "patience": Setting("failures in a row before a restart", low=1),
    "n_parents": Setting("best candidates, which become the parents", low=1),
    "n_elite": Setting("best candidates, which survive unchanged", low=2),
    "crossover": Setting("mix the parameters of two parents in each child"),
    "normalise_obs": Setting("normalise observations by their running mean and variance"),
    "scale_rewards": Setting(
        "divide rewards by the running standard deviation of the discounted return; not with workers"
    ),
    "inputs": Setting(
        "input: difference of 2 frames; half: weighted sum of 2; trail: weighted sum of 3",
        choices=("difference", "half", "trail"),
    ),
    "sticky": Setting("probability that a frame repeats the last action", low=0, high=1),
    "act": Setting("actions in evaluations and films; sharpened: logits divided by 0.6", choices=tuple(ACT)),
}


def keyword_only(function):
    """{name: inspect.Parameter} of a function's keyword-only arguments, which are right of the `*`."""
    found = {name: p for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    code = function.__init__ if inspect.isclass(function) else function
    for name, p in found.items():
        if isinstance(p.annotation, str):  # as with `from __future__ import annotations`
            with contextlib.suppress(NameError):
                found[name] = p.replace(annotation=eval(p.annotation, code.__globals__))
    return found


def check_declared(parameter):
    """Raises TypeError if an argument cannot be a flag: its name is taken, or its type is not clear."""
    of, *_ = kind(parameter)
    if parameter.name in TAKEN:
        raise TypeError(f"argument {parameter.name}: expected another name; --{parameter.name} has a meaning already")
    if of not in NAMES:
        expected = "a default that is a bool, int, float or str, or a list of them; or an annotation like float | None"
        raise TypeError(f"argument {parameter.name}: expected {expected}; got {parameter}")
    if parameter.name not in VOCABULARY and parameter.default is not None:
        try:
            check(parameter, parameter.default)
        except ValueError as error:
            raise TypeError(f"argument {error}, its default; no flag can have this value") from None


def kind(parameter):
    """(type of one value, whether the setting is a list, whether None is allowed), by the annotation or the default."""
    annotation, default = parameter.annotation, parameter.default
    of = typing.get_args(annotation)
    if len(of) == 2 and of[1] is type(None):  # float | None
        return of[0], False, True
    if annotation in NAMES:
        return annotation, False, False
    several = isinstance(default, (tuple, list))
    return type(default[0] if default else 0) if several else type(default), several, False


def check(parameter, value):
    """Returns the value, with numbers in the right type. If it is not allowed, raises ValueError with one line."""
    (of, several, none), name = kind(parameter), parameter.name
    setting = VOCABULARY.get(name, Setting("", empty=True))
    if value is None and none:
        return None
    if several and not isinstance(value, (list, tuple)):
        raise ValueError(f"{name}: expected a list, got {value!r}")
    if several and not value and not setting.empty:
        raise ValueError(f"{name}: expected at least one number, got none")
    checked, is_seed = [], name == "seed"  # a seed may have any size
    for x in value if several else [value]:
        number = isinstance(x, (int, float)) and not isinstance(x, bool)
        if setting.choices and x not in setting.choices:
            raise ValueError(f"{name}: expected one of {', '.join(setting.choices)}, got {x!r}")
        if not (number if of is float else isinstance(x, of)) or isinstance(x, bool) and of is not bool or x == "":
            raise ValueError(f"{name}: expected {NAMES[of]}, got {x!r}")
        if number and not (setting.low <= x <= setting.high and x > setting.above and (abs(x) <= LARGEST or is_seed)):
            raise ValueError(f"{name}: expected a number {allowed(setting)}, got {x}")
        if of is int and abs(x) > LARGEST_INT and not is_seed:
            raise ValueError(f"{name}: expected a whole number below 2^63, got {x}")
        checked.append(float(x) if of is float else x)
    if name == "checkpoint_every":
        parse_period(value)
    return tuple(checked) if several else checked[0]


TAKEN = "algo", "out", "resume", "evaluate", "gif", "watch", "export", "quiet", "h", "help"  # flags without a setting
LARGEST = sys.float_info.max  # the largest finite float; larger numbers, inf and NaN are refused
LARGEST_INT = 2**63 - 1  # the largest integer that an array can hold
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def allowed(setting):
    """The allowed numbers of a setting as text, such as "from 0 to 1" or "> 0"."""
    if setting.above > -math.inf:
        return f"> {setting.above:g}"
    if setting.high < math.inf:
        return f"from {setting.low:g} to {setting.high:g}"
    return f"≥ {setting.low:g}" if setting.low > -math.inf else "that is finite"


def without_effect(parameters, settings):
    """Finds a setting that differs from its default but has no effect, because of another setting's value.

    Returns (its name, name of the other setting, value of the other setting), or None if there is no such setting.
    """
    for name, parameter in parameters.items():
        for other, values in VOCABULARY.get(name, Setting("")).only_with.items():
            if settings[name] != parameter.default and other in settings and settings[other] not in values:
                return name, other, settings[other]
    return None


def parse_period(text):
    """"50" → (50, None) updates; "30s" → (None, 30.0) seconds; "none" → (None, ∞)."""
    try:
        if text == "none":
            return None, float("inf")
        updates, seconds = (None, float(text[:-1])) if text.endswith("s") else (int(text), None)
        if (seconds or updates or 0) > 0:
            return updates, seconds
    except ValueError:
        pass
    expected = "a positive number of updates (50) or of seconds (30s), or none"
    raise ValueError(f"checkpoint_every: expected {expected}, got {text!r}")
