"""Settings come from signatures, and one vocabulary tells their allowed values. Both scripts obey the vocabulary."""

import functools
import inspect
import math
import pathlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import npg.a3c
import npg.actor_critic
import npg.reinforce
import npg.replay
from npg.distributions import Categorical
from npg.network import MLP
from npg.runner.script import RUN
from npg.runner.settings import (
    VOCABULARY,
    NotEmpty,
    allowed,
    check,
    check_declared,
    keyword_only,
    kind,
    parse_period,
    without_effect,
)

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
import run_cartpole
import run_pong

SCRIPTS = {"cartpole": run_cartpole, "pong": run_pong}
EVERY = [(name, algo) for name, script in SCRIPTS.items() for algo in script.SCRIPT.algorithms]


def parameter(name, default, annotation=inspect.Parameter.empty):
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def defaults(parameters):
    return {name: p.default for name, p in parameters.items()}


# Signatures


def test_settings_are_the_arguments_right_of_the_star():
    def function(sampler, theta, optimizer=None, *more, gamma=0.9, lam, **settings):
        pass

    found = keyword_only(function)
    assert list(found) == ["gamma", "lam"]
    assert found["gamma"].default == 0.9 and found["lam"].default is inspect.Parameter.empty


def test_the_settings_of_a_class_are_those_of_its_init():
    class Method:
        def __init__(self, theta, *, patience=3):
            pass

    assert defaults(keyword_only(Method)) == {"patience": 3}


def test_where_two_functions_have_a_setting_the_nearest_default_wins():
    def script(task, *, envs=8, gamma=0.5, **settings):
        pass

    def algorithm(sampler, *, gamma=0.99, lam=0.95):
        pass

    def further(*, lam=0.1, steps=7):
        pass

    found = run_cartpole.SCRIPT._replace(algorithms={"new": (script, algorithm, further)}).settings_of("new", False)
    assert {"envs": 8, "gamma": 0.5, "lam": 0.95, "steps": 7}.items() <= defaults(found).items()
    assert [name for name in found if name in ("envs", "gamma", "lam", "steps")] == ["steps", "envs", "gamma", "lam"]
    found = run_cartpole.SCRIPT._replace(algorithms={"new": (algorithm, script)}).settings_of("new", False)
    assert {"gamma": 0.99, "lam": 0.95, "envs": 8}.items() <= defaults(found).items()


def test_the_defaults_of_a_script_replace_those_of_functions_and_add_no_setting():
    def algorithm(*, gamma=0.99, limit: float | None = 0.5):
        pass

    script = run_cartpole.SCRIPT._replace(
        algorithms={"new": (algorithm,)},
        defaults={"gamma": 0.9, "capacity": 3},
        elsewhere={"new": {"limit": None, "gamma": 0.8}},
        box={"new": {"gamma": 0.7}},
        shared={"new": {"limit": 2.0}},
    )

    def of(is_box, **where):
        found = script.settings_of("new", is_box, **where)
        assert "capacity" not in found and kind(found["limit"]) == (float, False, True)  # the annotation stays
        return found["gamma"].default, found["limit"].default

    assert of(False) == (0.9, 0.5)
    assert of(True) == (0.7, 0.5)
    assert of(False, elsewhere=True) == (0.8, None)
    assert of(True, elsewhere=True) == (0.7, None)
    assert of(False, shared=True) == (0.9, 2.0)


@pytest.mark.parametrize(
    "default, annotation, expected",
    [
        (1, None, (int, False, False)),
        (0.5, None, (float, False, False)),
        (True, None, (bool, False, False)),
        ("adam", None, (str, False, False)),
        ((64, 64), None, (int, True, False)),
        ([0.5], None, (float, True, False)),
        ((), None, (int, True, False)),
        (None, float | None, (float, False, True)),
        (0.5, float | None, (float, False, True)),
        (None, int | None, (int, False, True)),
        (None, str | None, (str, False, True)),
        (1, float, (float, False, False)),
    ],
)
def test_the_annotation_or_else_the_default_tells_the_kind_of_a_setting(default, annotation, expected):
    assert kind(parameter("x", default, annotation or inspect.Parameter.empty)) == expected


# What a setting may be

OPTIONAL = {"max_grad_norm": float | None, "target": float | None, "workers": int | None, "start_from": str | None}


def checked(name, default, value):
    return check(parameter(name, default, OPTIONAL.get(name, inspect.Parameter.empty)), value)


@pytest.mark.parametrize(
    "name, default, value, expected",
    [
        ("n_steps", 16, 1, 1),
        ("gamma", 0.99, 1, 1.0),
        ("gamma", 0.99, 0, 0.0),
        ("learning_rate", 0.1, 1e-300, 1e-300),
        ("shared", False, True, True),
        ("optimizer", "adam", "sgd", "sgd"),
        ("env", "CartPole-v1", "no such name yet", "no such name yet"),
        ("hidden", (64, 64), [5, 6], (5, 6)),
        ("hidden", (64, 64), [], ()),
        ("hidden", (), (3,), (3,)),
        ("epsilons", (0.0,), [0, 0.5, 1], (0.0, 0.5, 1.0)),
        ("max_grad_norm", 0.5, None, None),
        ("max_grad_norm", None, 2, 2.0),
        ("target", None, -200, -200.0),
        ("workers", None, 3, 3),
        ("start_from", None, "runs/x", "runs/x"),
        ("log_std", 0.0, -3, -3.0),
        ("seed", 0, 2**64, 2**64),
        ("seed", 0, 10**400, 10**400),
    ],
)
def test_an_allowed_value_comes_back_with_the_right_type(name, default, value, expected):
    found = checked(name, default, value)
    assert found == expected and type(found) is type(expected)
    if isinstance(expected, tuple):
        assert [type(x) for x in found] == [type(x) for x in expected]


@pytest.mark.parametrize(
    "name, default, value, expected",
    [
        ("n_steps", 16, 0, "a number ≥ 1, got 0"),
        ("n_steps", 16, 8.0, "a whole number, got 8.0"),
        ("n_steps", 16, "8", "a whole number, got '8'"),
        ("n_steps", 16, True, "a whole number, got True"),
        ("n_steps", 16, None, "a whole number, got None"),
        ("n_steps", 16, [8], r"a whole number, got \[8\]"),
        ("seed", 0, -1, "a number ≥ 0, got -1"),
        ("gamma", 0.99, 1.01, "a number from 0 to 1, got 1.01"),
        ("gamma", 0.99, -0.01, "a number from 0 to 1, got -0.01"),
        ("gamma", 0.99, math.nan, "a number from 0 to 1, got nan"),
        ("gamma", 0.99, True, "a number, got True"),
        ("gamma", 0.99, None, "a number, got None"),
        ("gamma", 0.99, "high", "a number, got 'high'"),
        ("learning_rate", 0.1, 0, "a number > 0, got 0"),
        ("learning_rate", 0.1, math.inf, "a number > 0, got inf"),
        ("learning_rate", 0.1, 10**400, "a number > 0, got 1000"),
        ("log_std", 0.0, -math.inf, "a number from -50 to 50, got -inf"),
        ("log_std", 0.0, math.nan, "a number from -50 to 50, got nan"),
        ("max_grad_norm", None, 0.0, "a number > 0, got 0.0"),
        ("max_grad_norm", None, math.inf, "a number > 0, got inf"),
        ("max_grad_norm", None, "none", "a number, got 'none'"),
        ("shared", False, 1, "true or false, got 1"),
        ("shared", False, "yes", "true or false, got 'yes'"),
        ("shared", False, None, "true or false, got None"),
        ("optimizer", "adam", "adagrad", "one of adam, rmsprop, sgd, got 'adagrad'"),
        ("optimizer", "adam", None, "one of adam, rmsprop, sgd, got None"),
        ("optimizer", "adam", ["adam"], r"one of adam, rmsprop, sgd, got \['adam'\]"),
        ("env", "CartPole-v1", "", "a string, got ''"),
        ("env", "CartPole-v1", 5, "a string, got 5"),
        ("start_from", None, "", "a string, got ''"),
        ("hidden", (64, 64), 64, "a list, got 64"),
        ("hidden", (64, 64), None, "a list, got None"),
        ("hidden", (64, 64), "64", "a list, got '64'"),
        ("hidden", (64, 64), [64, 0], "a number ≥ 1, got 0"),
        ("hidden", (64, 64), [64, True], "a whole number, got True"),
        ("hidden", (), [2.5], "a whole number, got 2.5"),
        ("epsilons", (0.0,), [0.5, 2], "a number from 0 to 1, got 2"),
        ("temperatures", (1.0,), [1, None], "a number, got None"),
    ],
)
def test_a_refusal_names_the_setting_what_was_expected_and_what_came(name, default, value, expected):
    with pytest.raises(ValueError, match=f"^{name}: expected {expected}") as error:
        checked(name, default, value)
    assert "\n" not in str(error.value)


def declared(**arguments):
    """check_declared of keyword-only arguments: {name: (annotation, default)}."""
    for name, (annotation, default) in arguments.items():
        check_declared(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default))


def test_an_argument_that_cannot_be_a_flag_is_refused_by_name():
    none = inspect.Parameter.empty
    declared(a=(none, 1), b=(float, 2), c=(float | None, None), d=(none, ()), e=(list[int], [8]))
    declared(f=(none, (1.5, 2.5)), g=(none, "x"), i=(none, True))
    for name, argument in {
        "resume": (none, 1), "quiet": (none, True), "limit": (none, None), "size": (none, np.float64(1.0)),
        "nothing": (none, none), "note": (none, ""), "most": (none, float("inf")), "numbers": (none, (1.0, np.nan)),
    }.items():  # fmt: skip
        with pytest.raises(TypeError, match=f"^argument {name}: expected "):
            declared(**{name: argument})


def test_annotations_may_be_texts():
    """As with `from __future__ import annotations`."""

    def mine(task, *, limit: "float | None" = None):
        pass

    class Method:
        def __init__(self, theta, *, limit: "float | None" = None):
            pass

    for receiver in (mine, Method):
        assert kind(keyword_only(receiver)["limit"]) == (float, False, True)

    def other(task: "Unknown", *, envs: "Unknown" = 8):  # noqa: F821
        pass

    assert keyword_only(other)["envs"].default == 8


def test_a_setting_of_ones_own_that_the_vocabulary_lacks_is_checked_by_its_type():
    assert checked("warmth", 0.5, -3) == -3.0
    with pytest.raises(ValueError, match="warmth: expected a number, got 'hot'"):
        checked("warmth", 0.5, "hot")
    with pytest.raises(ValueError, match="warmth: expected a number that is finite, got inf"):
        checked("warmth", 0.5, math.inf)


@pytest.mark.parametrize(
    "name, words", [("gamma", "from 0 to 1"), ("learning_rate", "> 0"), ("seed", "≥ 0"), ("target", "that is finite")]
)
def test_the_numbers_that_are_allowed_in_words(name, words):
    assert allowed(VOCABULARY[name]) == words


@pytest.mark.parametrize(
    "text, period",
    [
        *(("50", (50, None)), ("1", (1, None))),
        *(("30s", (None, 30.0)), ("0.5s", (None, 0.5)), ("none", (None, math.inf))),
    ],
)
def test_a_period_is_updates_or_seconds_or_none(text, period):
    assert parse_period(text) == period


@pytest.mark.parametrize("text", ["", "s", "0", "-1", "0s", "-1s", "nans", "1.5", "ten", "50 s s", "1h", "None"])
def test_a_period_that_is_neither_is_an_error_that_quotes_it(text):
    with pytest.raises(ValueError, match=f"checkpoint_every: expected .*, got '{text}'"):
        parse_period(text)


# Settings without an effect


def idle(algo, is_box=False, **changes):
    parameters = run_cartpole.SCRIPT.settings_of(algo, is_box)
    return without_effect(parameters, {**defaults(parameters), **changes})


@pytest.mark.parametrize(
    "algo, is_box, changes, expected",
    [
        ("ppo", False, {"truncate": 3.0}, ("truncate", "importance", "clipped")),
        ("ppo", False, {"truncate": 3.0, "importance": "truncated"}, None),
        ("ppo", False, {"clip": 0.3, "importance": "plain"}, ("clip", "importance", "plain")),
        ("ppo", True, {"components": 3}, ("components", "policy", "gaussian")),
        ("ppo", True, {"components": 3, "policy": "mixture"}, None),
        ("ppo", True, {"log_std": -1.0, "sigma": "state"}, ("log_std", "sigma", "state")),
        ("ppo", True, {"log_std": -1.0, "sigma": "fixed"}, None),
        ("ppo", False, {"batch_size": 32, "epochs": 3}, None),  # PPO has no baseline, so these settings have an effect
        ("reinforce", False, {"epochs": 3, "baseline": "time"}, ("epochs", "baseline", "time")),
        ("reinforce", False, {"epochs": 3}, None),
        ("reinforce", False, {"baseline": "time"}, None),  # the settings without effect have their defaults
        ("actor-critic", False, {"batch_size": 7}, None),
        ("actor-critic", False, {"batch_size": 7, "estimation": "td"}, ("batch_size", "estimation", "td")),
        ("actor-critic", False, {"proximal": 0.1}, ("proximal", "estimation", "mc")),
        ("a3c", False, {"rms_epsilon": 0.1, "optimizer": "adam"}, ("rms_epsilon", "optimizer", "adam")),
        ("a3c", False, {"rms_epsilon": 0.1}, None),
        ("a3c", False, {"statistics": "own", "workers": 1}, ("statistics", "workers", 1)),
        ("a3c", False, {"statistics": "own", "workers": 2}, None),
        ("finite-difference", False, {"n_candidates": 5}, ("n_candidates", "scheme", "forward")),
        ("finite-difference", False, {"n_candidates": 5, "scheme": "kohl-stone"}, None),
        ("es", False, {"n_candidates": 6}, None),
    ],
)
def test_a_setting_is_idle_where_another_one_takes_away_its_effect(algo, is_box, changes, expected):
    assert idle(algo, is_box, **changes) == expected


@pytest.mark.parametrize("name, algo", EVERY)
@pytest.mark.parametrize("is_box, elsewhere", [(False, False), (False, True), (True, True)])
def test_nothing_is_idle_by_default(name, algo, is_box, elsewhere):
    parameters = SCRIPTS[name].SCRIPT.settings_of(algo, is_box, elsewhere=elsewhere)
    assert without_effect(parameters, defaults(parameters)) is None


def test_conditions_of_the_vocabulary_name_settings_and_their_allowed_values():
    for setting in VOCABULARY.values():
        for other, values in setting.only_with.items():
            if isinstance(values, NotEmpty):
                assert other == "hidden" and (8,) in values and () not in values
                continue
            assert len(values) and all(check(parameter(other, values[0]), value) == value for value in values[:9])


# The scripts


@pytest.mark.parametrize("name, algo", EVERY)
@pytest.mark.parametrize("is_box, elsewhere", [(False, False), (False, True), (True, True)])
def test_every_setting_of_a_script_has_an_entry_and_an_allowed_default(name, algo, is_box, elsewhere):
    for setting, p in SCRIPTS[name].SCRIPT.settings_of(algo, is_box, elsewhere=elsewhere).items():
        assert setting in VOCABULARY
        if (algo, setting) == ("a3c", "workers"):
            assert p.default == 0  # 0 means one per core; the command line replaces it by the number of cores
        else:
            value = check(p, p.default)
            assert value == p.default or value == tuple(p.default)


def test_every_entry_is_a_setting_of_a_script_and_says_what_it_is_for():
    used = {setting for name, algo in EVERY for setting in SCRIPTS[name].SCRIPT.settings_of(algo, True)}
    assert used == VOCABULARY.keys()
    assert all(setting.help for setting in VOCABULARY.values())


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_defaults_that_a_script_changes_are_of_settings_that_exist(script):
    SCRIPT = script.SCRIPT
    for algo, changed in SCRIPT.elsewhere.items():
        assert changed.keys() <= SCRIPT.settings_of(algo, False).keys()
    for algo, changed in SCRIPT.box.items():
        assert changed.keys() <= SCRIPT.settings_of(algo, True).keys()
    for algo, changed in SCRIPT.shared.items():
        assert {"shared", *changed} <= SCRIPT.settings_of(algo, False).keys()
    common = set.intersection(*(set(SCRIPT.settings_of(algo, False)) for algo in SCRIPT.algorithms))
    assert SCRIPT.defaults.keys() <= common and set(SCRIPT.playing) <= keyword_only(SCRIPT.make_envs).keys()


@pytest.mark.parametrize("name, algo", EVERY)
def test_box_actions_add_the_settings_of_the_policy_and_no_others(name, algo):
    SCRIPT = SCRIPTS[name].SCRIPT
    plain, box = (SCRIPT.settings_of(algo, is_box).keys() for is_box in (False, True))
    stochastic = name == "cartpole" and algo not in SCRIPT.searches
    assert box - plain == ({"policy", "components", "sigma", "log_std"} if stochastic else set())
    assert plain <= box
    every = {"env", "seed", "steps", "target", "episodes", "evaluate_every", "checkpoint_every", "start_from"}
    assert every <= plain
    assert ("act" in plain) == (algo not in SCRIPT.searches)
    assert ("cluster" in plain) == ("workers" in plain)
    assert {setting for setting in RUN if setting in plain} == plain & set(RUN)
    assert list(plain)[: len(plain & set(RUN))] == [setting for setting in RUN if setting in plain]  # they come first


def test_a_search_is_evaluated_after_every_update():
    settings = run_cartpole.SCRIPT.settings_of
    assert settings("es", False)["evaluate_every"].default == 1 < settings("ppo", False)["evaluate_every"].default


TWICE = {  # settings with the same default in both functions, because the script needs them, too
    ("cartpole", "a2c", "max_grad_norm"),
    ("pong", "a2c", "max_grad_norm"),
}


def test_a_script_repeats_no_default_of_its_algorithms_but_those_listed():
    twice = set()
    for name, algo in EVERY:
        own, *others = map(keyword_only, SCRIPTS[name].SCRIPT.algorithms[algo])
        for other in others:
            twice |= {(name, algo, s) for s in own.keys() & other.keys() if own[s].default == other[s].default}
    assert twice == TWICE


@pytest.mark.parametrize("name, algo", EVERY)
def test_functions_that_share_a_setting_agree_on_its_kind(name, algo):
    own, *others = map(keyword_only, SCRIPTS[name].SCRIPT.algorithms[algo])
    for other in others:
        for setting in own.keys() & other.keys():
            assert kind(own[setting]) == kind(other[setting])


class Spy:
    """Replaces an algorithm and a task. It records the settings that arrive."""

    n_obs, n_act, n_out, tail, learn_tail, is_box, seed = 4, 2, 2, 0.0, True, False, 0
    distribution = deterministic = Categorical(2)

    def __init__(self, script):
        self.script, self.settings = script, {}

    def __call__(self, *args, **settings):
        self.settings.update(settings)
        return SimpleNamespace(log_std=np.zeros(1))

    def rng(self, stream):
        return np.random.default_rng(0)

    def sampler(self, *args, **kwargs):
        return SimpleNamespace(rng=self.rng(0))

    def evaluator(self, *args):
        pass

    def gradients(self, workers, envs, model, learn, *kind):
        self(**learn.keywords)

    def asynchronous(self, envs, models, learn, theta, *args, **kwargs):
        assert learn.func is npg.a3c.actor_learner
        self(**learn.keywords)
        return iter(()), {"theta": (theta, None)}, {}


HOMES = {  # where a script finds an algorithm
    "ppo": (npg.replay, "ppo"),
    "a2c": (npg.actor_critic, "a2c"),
    "actor-critic": (npg.actor_critic, "actor_critic"),
    "q-actor-critic": (npg.actor_critic, "q_actor_critic"),
    "reinforce": (npg.reinforce, "reinforce"),
    "es": (run_cartpole, "EvolutionStrategy"),
    "hill-climbing": (run_cartpole, "HillClimbing"),
    "genetic": (run_cartpole, "Genetic"),
}


FURTHER = [which for which in EVERY if len(SCRIPTS[which[0]].SCRIPT.algorithms[which[1]]) > 1]  # more than the script's


@pytest.mark.parametrize(
    "name, algo, workers", [*((*which, None) for which in FURTHER), ("cartpole", "a2c", 2), ("pong", "a2c", 2)]
)
def test_every_setting_of_the_algorithm_reaches_it_as_it_was_given(name, algo, workers, monkeypatch):
    """Each setting has a value of its own here. So a script that does not pass on a setting that it names fails."""
    script = SCRIPTS[name]
    functions, spy = script.SCRIPT.algorithms[algo], Spy(script)
    expected = {setting: object() for setting in keyword_only(functions[1])}
    if algo in HOMES:
        monkeypatch.setattr(*HOMES[algo], functools.wraps(functions[1])(lambda *args, **kwargs: spy(**kwargs)))
    monkeypatch.setattr(script, "Learner", lambda *args, **kwargs: None)
    if workers:
        monkeypatch.setattr(npg.a3c, "parallel_a2c", lambda *args, **kwargs: spy(**kwargs))
    if name == "pong":  # its networks are large
        monkeypatch.setattr(script, "LitMLP", lambda sizes, activation: MLP((4, *sizes[2:]), activation))
    settings = {name: p.default for function in functions[::-1] for name, p in keyword_only(function).items()}
    settings.update(expected)
    if "capacity" in settings:
        settings["capacity"] = 1
    if algo == "a3c":
        settings["workers"] = 2
    elif workers:
        settings["workers"] = workers
    functions[0](spy, **settings)
    assert {setting: spy.settings.get(setting) for setting in expected} == expected


def test_a_new_algorithm_may_bring_settings_that_nothing_else_names():
    """A new algorithm in a script is a function, and an entry of its table."""

    def random_search(task, *, warmth=1.0, tries=3):
        raise AssertionError("nobody asked for it yet")

    script = run_cartpole.SCRIPT._replace(algorithms={"random": (random_search,)}, searches=("random",))
    found = script.settings_of("random", False)
    assert check(found["warmth"], 2) == 2.0 and found["tries"].default == 3
    assert "normalise_obs" in found and "workers" not in found and "cluster" not in found
