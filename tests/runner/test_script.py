"""Every algorithm of the script trains in every kind of space, and each of its settings has an effect or is refused."""

import shlex
import shutil
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import test_environments  # noqa: F401  registers the environments "strange/…"
from running import ALGORITHMS, SCRIPT, SERIAL, STEPS, assert_equal, assert_refused, config_of, tiny

from npg.reinforce import BASELINES
from npg.runner import actors, settings, task
from npg.runner.environments import UnsupportedEnvironment
from npg.runner.folder import RunError
from npg.runner.saved import read_checkpoint, read_config
from npg.runner.script import RUN, prepare
from npg.runner.task import TRAIN, Learner

pytestmark = pytest.mark.usefixtures("quick_workers", "quick_disk", "no_figures")


# The algorithms


@pytest.mark.parametrize("algo", SERIAL)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "strange/Bounded-v0"])
def test_every_algorithm_trains_in_every_kind_of_space_and_says_nothing_else(call, tmp_path, algo, env):
    result = call(tiny(algo, f"--env {env} --steps 100"), out=tmp_path / "run")
    assert result.code == 0 and result.err == "" and result.out.startswith(("finished", "not solved"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.json", "metrics.csv", "checkpoint.npz", "learning_curve.png", "result.json")
    }


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("weight", ["total", "reward-to-go", "discounted"])
def test_reinforce_takes_every_weight_with_every_baseline(call, tmp_path, weight, baseline):
    flags = f"--quiet --envs 2 --episodes 1 --steps 50 --algo reinforce --weight {weight} --baseline {baseline}"
    assert call(flags, out=tmp_path / "run").code == 0
    config = read_config(tmp_path / "run")
    assert (config["settings"]["weight"], config["settings"]["baseline"]) == (weight, baseline)


# A config


def prepared(function):
    """`prepare` for an algorithm of one's own, with its defaults."""
    script = SCRIPT._replace(algorithms={"own": (function,)}, searches=())
    values = {name: p.default for name, p in script.settings_of("own", False).items()}
    own = {name: value for name, value in values.items() if name not in RUN}
    return prepare(script, {"algo": "own", **{name: values[name] for name in RUN if name in values}, "settings": own})


def test_a_mistake_in_the_function_of_an_algorithm_is_not_hidden():
    with pytest.raises(AttributeError, match="samplr"):
        prepared(lambda task: task.samplr(8))


@pytest.mark.parametrize("make", [lambda task: task.sampler(2), lambda task: task.rng(TRAIN)], ids=["sampler", "rng"])
def test_a_sampler_that_an_update_makes_is_refused_because_it_could_not_be_resumed(make):
    theta = np.zeros(2)
    _, learner = prepared(lambda task: Learner(None, iter(lambda: make(task), None), {"theta": (theta, None)}))
    with pytest.raises(RunError, match="^task.(sampler|rng): expected to be called in the function of the algorithm"):
        next(learner.updates)


def test_an_unknown_algorithm_is_an_error_that_names_it():
    with pytest.raises(RunError, match="sarsa"):
        prepare(SCRIPT, {"algo": "sarsa", "settings": {}, "env": "CartPole-v1", "seed": 0}, "test")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"gamma": KeyError}, "config lacks 'gamma'"),
        ({"gamma": 2.0}, "gamma: expected a number from 0 to 1, got 2.0"),
        ({"hidden": 64}, "hidden: expected a list, got 64"),
        ({"seed": "x"}, "seed: expected a whole number, got 'x'"),
        ({"seed": KeyError}, "seed: expected a whole number, got None"),
        ({"env": ""}, "env: expected a string|environment ''"),
        ({"checkpoint_every": "soon"}, "got 'soon'"),
        ({"lam": 10**400}, "lam: expected a number from 0 to 1"),
        ({"learning_rate": 10**400}, "learning_rate: expected a number > 0"),
        (
            {"algo": "reinforce", "baseline": "leave-one-out", "envs": 1},
            r"envs: expected at least 2 with baseline leave-one-out \(b would be Ψ itself\), got 1",
        ),
        ({"algo": "reinforce", "baseline": "time", "envs": 1}, "expected at least 2 with baseline time .*, got 1"),
        *(
            (
                {"algo": "reinforce", "weight": "total", "baseline": baseline, "envs": 1},
                f"envs: expected at least 2 with baseline {baseline} .*, got 1",
            )
            for baseline in ("constant", "optimal")
        ),
        (
            {"algo": "es", "n_candidates": 7},
            r"n_candidates: expected a positive even number \(pairs of candidates\), got 7",
        ),
    ],
)
def test_a_config_that_cannot_be_used_is_an_error_of_one_line_that_names_the_folder_and_what_is_wrong(changes, words):
    with pytest.raises((RunError, UnsupportedEnvironment), match=words) as error:
        prepare(SCRIPT, config_of(**changes), "runs/one")
    assert "\n" not in str(error.value) and ("runs/one: " in str(error.value) or changes == {"env": ""})


def test_an_error_in_the_settings_of_a_new_run_names_no_folder():
    with pytest.raises(RunError, match="^envs: expected at least 2"):
        prepare(SCRIPT, config_of(algo="reinforce", baseline="leave-one-out", envs=1))


def test_a_setting_of_the_run_is_refused_among_the_algorithms_settings():
    config = config_of()
    config["settings"]["seed"] = 3
    with pytest.raises(RunError, match="seed: not a setting of ppo"):
        prepare(SCRIPT, config, "test")


def test_an_environment_that_is_not_supported_says_so_itself():
    with pytest.raises(UnsupportedEnvironment, match="TupleObs"):
        prepare(SCRIPT, config_of(env="strange/TupleObs-v0"), "test")


def test_settings_that_an_earlier_config_lacks_get_their_defaults():
    config = config_of(optimizer=KeyError, clip=KeyError, gamma=0.5)
    with pytest.raises(RunError, match="config lacks 'optimizer'"):
        prepare(SCRIPT, config, "test")
    old, new = ({**config_of(**c), **more} for c, more in [
        ({"optimizer": KeyError, "clip": KeyError, "gamma": 0.5}, {"from_earlier_format": True}), ({"gamma": 0.5}, {})
    ])
    learners = [prepare(SCRIPT, config, "test")[1] for config in (old, new)]
    for learner in learners:
        next(learner.updates)
    assert_equal(learners[0].arrays, learners[1].arrays)


# Every setting does something, or is refused


OF_THE_RUN = {*RUN, "act", "workers", "report_every"}  # they need not change what is learned
SMALL = {  # what makes a run short
    "hidden": (4,), "envs": 2, "n_steps": 8, "epochs": 2, "batch_size": 8, "learning_rate": 0.05, "workers": 1,
    "report_every": 48, "n_candidates": 4, "n_parents": 4, "n_elite": 2, "patience": 2,
}  # fmt: skip


# Pendulum with episodes that take no time
gymnasium.register(
    "short/Pendulum-v1", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20, disable_env_checker=True
)


def refused_by(algo, is_box):
    """{setting: a word of the message}: settings that cannot be changed here."""
    if algo != "a3c":
        return {}
    discrete_only = {"epsilons": "discrete actions", "temperatures": "discrete actions"}
    refused = {"normalise_obs": "normalise_obs", "scale_rewards": "scale_rewards: expected false with workers"}
    return {**refused, **(discrete_only if is_box else {})}


def other_values(parameter, value):
    """Other values of a setting: all other choices, or one number that is far from the default."""
    of, several, _ = settings.kind(parameter)
    allowed = settings.VOCABULARY[parameter.name]
    if allowed.choices:
        return [choice for choice in allowed.choices if choice != value]
    if of is bool:
        return [not value]
    if several:
        return [tuple(2 * x or 0.5 for x in value)]
    if of is int:
        return [2 * value]
    return [value / 2 if value and value / 2 >= allowed.low else 2 * (value or 0) or 0.5]


def as_flags(values):
    flags = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(flags)


@pytest.fixture
def in_this_process(monkeypatch):
    """The actor-learners of a3c take turns in this process. This is quick, and gives the same result each time."""

    def start_pool(given, shared, timeout):
        given = [actor._replace(run=f"{actor.run} {actor.k}") for actor in given]  # each one keeps its own objects
        actors._receive(shared, given)
        return SimpleNamespace(map=map, restarted=0, kill_workers=lambda: None)

    monkeypatch.setattr(task, "start_pool", start_pool)
    monkeypatch.setattr(actors, "_given", None)


@pytest.mark.parametrize("algo, env", [
    ("reinforce", "CartPole-v1"),
    ("actor-critic", "CartPole-v1"),
    *(pytest.param(algo, "CartPole-v1", marks=pytest.mark.slow) for algo in ALGORITHMS),
    *(pytest.param(algo, "short/Pendulum-v1", marks=pytest.mark.slow) for algo in ALGORITHMS),
])  # fmt: skip
def test_every_setting_changes_what_is_learned_or_is_refused(call, tmp_path, in_this_process, algo, env):
    is_box = env != "CartPole-v1"
    everything, cannot_be = SCRIPT.settings_of(algo, is_box, elsewhere=is_box), refused_by(algo, is_box)
    parameters = {name: p for name, p in everything.items() if name not in OF_THE_RUN or name in SMALL}
    small = {name: value for name, value in SMALL.items() if name in parameters and (name, algo) != ("workers", "a2c")}
    if algo in SCRIPT.searches:
        small.pop("workers")
    if algo == "genetic":
        small["n_candidates"] = 8  # so that there may be twice as many parents
    start = {**{name: p.default for name, p in parameters.items()}, **small}
    results = {}

    def learned(values):
        """θ at the end, or the message if the values are refused. Values that change nothing are left out."""
        while idle := settings.without_effect(parameters, values):
            values = {**values, idle[0]: parameters[idle[0]].default}
        default = SCRIPT.settings_of(algo, is_box, elsewhere=is_box, shared=values.get("shared", False))
        given = as_flags({name: value for name, value in values.items() if value != default[name].default})
        if given not in results:
            folder = tmp_path / str(len(results))
            flags = f"--quiet --target 1000 --episodes 1 --evaluate-every 1000 --steps {STEPS[algo]}"
            result = call(f"{flags} --algo {algo} --env {env} {given}", out=folder)
            if result.code:
                assert_refused(result)
            results[given] = result.err if result.code else read_checkpoint(folder)["theta"]
        return results[given]

    def same(one, other):
        return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=1e-6)

    theta = learned(start)
    assert read_checkpoint(tmp_path / "0")["update"] >= 2
    results.clear()
    shutil.rmtree(tmp_path / "0")
    assert same(theta, learned(start)), "not even the same command line gives the same θ"
    without_effect = []
    for name in everything:
        if name in OF_THE_RUN:
            continue
        base = start
        for other, values in settings.VOCABULARY[name].only_with.items():
            if other in base and base[other] not in values:
                base = {**base, other: values[0]}
        for value in other_values(parameters[name], base[name]):
            theta = learned({**base, name: value})
            if isinstance(theta, str):
                assert cannot_be.get(name, "nothing that was expected") in theta
            elif same(theta, learned(base)):
                without_effect.append((name, value))
    # In one dimension there are no correlations: the Cholesky factor of Σ is σ.
    assert set(without_effect) <= {("policy", "multivariate")}
