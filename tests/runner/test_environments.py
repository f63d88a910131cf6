"""Every Gymnasium environment with Discrete or Box actions reaches the policy the same way; the others say why not.

The environments registered here, below "strange/", are also those of test_command_line.py.
"""

import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.wrappers.utils import RunningMeanStd

from npg.runner.environments import (
    LateVectorEnv,
    UnsupportedEnvironment,
    freeze_normaliser,
    make_env,
    make_envs,
    make_pong_env,
    make_pong_envs,
    moments,
    reward_threshold,
    set_moments,
)


class Strange(gymnasium.Env):
    """Random observations, the sum of the action for a reward, a time limit of 10; with `bad` values at step `at`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, obs=None, act=None, bad=None, at=37, render_mode=None, renders=True):
        self.observation_space, self.action_space = obs or Box(-1, 1, (3,), np.float32), act or Discrete(2)
        self.bad, self.at, self.render_mode, self.renders = bad, at, render_mode, renders
        self.steps, self.resets, self.actions = 0, 0, []

    def observe(self):
        space = self.observation_space
        if isinstance(space, Discrete):
            return space.start + int(self.np_random.integers(space.n))
        return np.asarray(self.np_random.uniform(-1, 1, space.shape), space.dtype)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.resets = 0, self.resets + 1
        obs = self.observe()
        return np.full_like(obs, np.nan) if self.bad == "reset" and self.resets >= self.at else obs, {}

    def step(self, action):
        self.actions.append(np.array(action))
        self.t, self.steps = self.t + 1, self.steps + 1
        obs, rew, wrong = self.observe(), float(np.sum(action)), self.steps == self.at
        if wrong and self.bad == "obs":
            obs[...] = np.nan
        if wrong and self.bad in ("nan", "inf"):
            rew = float(self.bad)
        return obs, rew, False, self.t == 10, {}

    def render(self):
        if not self.renders:
            raise DependencyNotInstalled("painter is not installed\npip install painter")
        return np.full((8, 8, 3), 20 * self.t, np.uint8)


class CannotRender(Strange):
    metadata = {"render_modes": []}

    def __init__(self):
        super().__init__()


def missing_package(render_mode=None):
    raise DependencyNotInstalled("frobnicate is not installed\npip install frobnicate")


def register(name, entry_point=Strange, reward_threshold=None, **kwargs):
    gymnasium.register(f"strange/{name}", entry_point, reward_threshold=reward_threshold, kwargs=kwargs)


UNSUPPORTED = {
    "DictObs-v0": {"obs": Dict(a=Discrete(2))},
    "TupleObs-v0": {"obs": Tuple([Discrete(2), Discrete(2)])},
    "MultiBinaryObs-v0": {"obs": MultiBinary(3)},
    "TextObs-v0": {"obs": Text(3)},
    "EmptyObs-v0": {"obs": Box(-1, 1, (0,))},
    "MultiDiscreteAct-v0": {"act": MultiDiscrete([2, 2])},
    "MultiBinaryAct-v0": {"act": MultiBinary(2)},
    "DictAct-v0": {"act": Dict(a=Discrete(2))},
    "TupleAct-v0": {"act": Tuple([Discrete(2), Discrete(2)])},
    "MatrixAct-v0": {"act": Box(-1, 1, (2, 2))},
    "ScalarAct-v0": {"act": Box(-1, 1, ())},
    "EmptyAct-v0": {"act": Box(-1, 1, (0,))},
    "IntegerAct-v0": {"act": Box(0, 10, (2,), np.int32)},
    "FromOneAct-v0": {"act": Discrete(3, start=1)},
}
for name, spaces in UNSUPPORTED.items():
    register(name, **spaces)
register("MissingPackage-v0", missing_package)
register("Plain-v0", reward_threshold=5.0)
register("NaNReward-v0", bad="nan")
register("InfReward-v0", bad="inf")
register("NaNObs-v0", bad="obs")
register("NaNReset-v0", bad="reset", at=8)
register("CannotRender-v0", CannotRender)
register("RenderMissingPackage-v0", renders=False)
register("MatrixObs-v0", obs=Box(-1, 1, (2, 3), np.float32))
register("ScalarObs-v0", obs=Box(-1, 1, (), np.float32))
register("DiscreteObs-v0", obs=Discrete(4, start=5))
register("Bounded-v0", act=Box(np.float32([-2, 0]), np.float32([6, 1])))
register("Unbounded-v0", act=Box(-np.inf, np.inf, (2,)))


@pytest.mark.parametrize("name", UNSUPPORTED)
@pytest.mark.parametrize("make", [lambda env_id: make_envs(env_id, 2), make_env], ids=["make_envs", "make_env"])
def test_spaces_that_no_policy_can_act_in_are_refused_by_name_in_one_line(name, make):
    with pytest.raises(UnsupportedEnvironment) as error:
        make(f"strange/{name}")
    [(key, space)] = UNSUPPORTED[name].items()
    assert f"strange/{name}" in str(error.value) and str(space) in str(error.value)
    assert {"obs": "observations", "act": "actions"}[key] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "env_id, reason",
    [
        ("Nowhere-v0", "Nowhere"),
        ("CartPole-v99", "v99"),
        ("nowhere/Env-v0", "nowhere"),
        ("no_such_module:Env-v0", "no_such_module"),
        ("not an id", "not an id"),
        ("a:b:c", "a:b:c"),
        ("strange/MissingPackage-v0", "frobnicate is not installed"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(env_id, reason):
    for make in (lambda: make_envs(env_id, 2), lambda: make_env(env_id)):
        with pytest.raises(UnsupportedEnvironment) as error:
            make()
        assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "strange/DiscreteObs-v0"])
def test_discrete_observations_are_one_hot(env_id):
    envs, n = make_envs(env_id, 3), int(gymnasium.make(env_id).observation_space.n)
    obs, _ = envs.reset(seed=0)
    seen = [obs, *(envs.step(np.ones(3, int))[0] for _ in range(30))]
    assert envs.single_observation_space.shape == (n,) and np.shape(seen) == (31, 3, n)
    np.testing.assert_array_equal(np.sort(seen, axis=-1)[..., -2:], np.broadcast_to([0, 1], (31, 3, 2)))
    states = np.argmax(seen, axis=-1)
    assert len(np.unique(states)) > 1
    if env_id == "FrozenLake-v1":
        assert np.all(states[0] == 0)  # its start
    single, _ = make_env(env_id).reset(seed=0)
    np.testing.assert_array_equal(single, obs[0])


@pytest.mark.parametrize("env_id, n", [("strange/MatrixObs-v0", 6), ("strange/ScalarObs-v0", 1)])
def test_box_observations_are_flattened_in_row_major_order(env_id, n):
    plain = gymnasium.make(env_id)
    expected, _ = plain.reset(seed=4)
    for obs in (make_envs(env_id, 1).reset(seed=4)[0][0], make_env(env_id).reset(seed=4)[0]):
        assert obs.shape == (n,)
        np.testing.assert_array_equal(obs, np.ravel(expected))


def actions_taken(env_id, actions):
    """What the environment itself receives, from a vector environment and from a single one."""
    envs, env = make_envs(env_id, 2), make_env(env_id)
    envs.reset(seed=0), env.reset(seed=0)
    for act in actions:
        envs.step(np.array([act, act], np.float32))
        env.step(np.array(act, np.float32))
    return [copy.unwrapped.actions for copy in (*envs.unwrapped.envs, env)]


def test_bounded_box_actions_are_rescaled_from_minus_one_to_one_and_clipped_there():
    actions = [[-1, -1], [1, 1], [0, 0], [-0.5, 0.5], [7, 1.001], [-1e6, -1e6]]
    expected = [[-2, 0], [6, 1], [2, 0.5], [0, 0.75], [6, 1], [-2, 0]]
    for taken in actions_taken("strange/Bounded-v0", actions):
        np.testing.assert_allclose(taken, expected, atol=1e-6)


def test_unbounded_box_actions_are_left_alone():
    actions = [[-1, 1], [0.25, -0.5], [1e6, -1e6]]
    for taken in actions_taken("strange/Unbounded-v0", actions):
        np.testing.assert_array_equal(taken, np.float32(actions))


def test_making_an_environment_with_box_actions_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_envs("strange/Bounded-v0", 2)
        make_env("strange/Bounded-v0")


def test_the_same_seed_gives_the_same_environments():
    runs = []
    for _ in range(2):
        envs = make_envs("CartPole-v1", 3)
        runs.append([envs.reset(seed=7)[0], *(envs.step(np.array([0, 1, k % 2]))[0].copy() for k in range(30))])
    np.testing.assert_array_equal(*runs)


def test_normalised_observations_have_their_running_mean_and_variance_removed():
    plain, envs = make_envs("Pendulum-v1", 4), make_envs("Pendulum-v1", 4, normalise_obs=True)
    raw, normalised = [plain.reset(seed=1)[0].copy()], [envs.reset(seed=1)[0]]
    for act in np.random.default_rng(0).uniform(-1, 1, (50, 4, 1)).astype(np.float32):
        raw.append(plain.step(act)[0].copy())
        normalised.append(envs.step(act)[0])
    seen = moments(envs.obs_rms)
    np.testing.assert_allclose(seen["obs_mean"], np.mean(raw, axis=(0, 1)), atol=1e-4)
    np.testing.assert_allclose(seen["obs_var"], np.var(raw, axis=(0, 1)), rtol=1e-3)
    assert seen["obs_count"] == pytest.approx(4 * 51, abs=1e-3)
    expected = (raw[-1] - seen["obs_mean"]) / np.sqrt(seen["obs_var"])
    np.testing.assert_allclose(normalised[-1], expected, rtol=1e-4, atol=1e-5)


def test_an_environment_that_is_not_normalised_has_no_moments():
    assert moments(None) == {}


def test_frozen_moments_are_those_given_and_stay_whatever_is_seen():
    given = {"obs_mean": np.array([1.0, 2, 3]), "obs_var": np.array([4.0, 9, 16]), "obs_count": np.array(50.0)}
    envs, plain = make_envs("Pendulum-v1", 2, normalise_obs=True), make_envs("Pendulum-v1", 2)
    obs_rms = RunningMeanStd(shape=(3,))
    set_moments(obs_rms, **given)
    freeze_normaliser(envs, obs_rms)
    (obs, _), (raw, _) = envs.reset(seed=3), plain.reset(seed=3)
    np.testing.assert_allclose(obs, (raw - [1, 2, 3]) / [2, 3, 4], rtol=1e-5)
    envs.step(np.zeros((2, 1), np.float32))
    for name, array in moments(envs.obs_rms).items():
        np.testing.assert_array_equal(array, given[name])


def test_moments_given_are_copied():
    obs_rms = RunningMeanStd(shape=(3,))
    given = {"obs_mean": np.zeros(3), "obs_var": np.ones(3), "obs_count": np.array(9.0)}
    set_moments(obs_rms, **given)
    for name, array in moments(obs_rms).items():
        np.testing.assert_array_equal(array, given[name])
        assert not np.shares_memory(array, given[name])


def test_a_late_environment_is_made_when_its_first_episode_begins_and_is_the_same_then():
    made = []

    def make():
        made.append(make_envs("Acrobot-v1", 3))
        return made[-1]

    plain = make_envs("Acrobot-v1", 3)
    late = LateVectorEnv(make, 3, plain.single_observation_space, plain.single_action_space)
    assert not made and late.num_envs == 3
    assert late.observation_space == plain.observation_space and late.action_space == plain.action_space
    for _ in range(2):
        np.testing.assert_array_equal(late.reset(seed=4)[0], plain.reset(seed=4)[0])
        for x, y in zip(late.step(np.array([0, 1, 2])), plain.step(np.array([0, 1, 2]))):
            if isinstance(x, np.ndarray):
                np.testing.assert_array_equal(x, y)
    assert len(made) == 1


# Pong

every_pong = pytest.mark.parametrize(
    "make", [lambda env_id: make_pong_envs(env_id, 2), make_pong_env], ids=["make_pong_envs", "make_pong_env"]
)


@every_pong
def test_where_pong_is_played_nothing_else_is(make):
    with pytest.raises(UnsupportedEnvironment, match="'CartPole-v1': only Pong is played here") as error:
        make("CartPole-v1")
    assert "\n" not in str(error.value)


@every_pong
def test_without_ale_py_pong_is_refused_in_one_line_that_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UnsupportedEnvironment, match=r"pip install 'npg\[atari\]'") as error:
        make("Pong")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("inputs", ["difference", "half", "trail"])
def test_one_game_of_pong_is_seen_and_played_as_many_are(inputs):
    pytest.importorskip("ale_py")
    envs, env = make_pong_envs("Pong", 2, inputs=inputs, sticky=0.25), make_pong_env("Pong", inputs=inputs, sticky=0.25)
    assert env.observation_space == envs.single_observation_space
    assert env.action_space == envs.single_action_space
    obs, one = envs.reset(seed=0)[0], env.reset(seed=0)[0]
    assert obs.shape == (2, *one.shape) and obs.dtype == one.dtype
    env.close(), envs.close()


@pytest.mark.parametrize(
    "env_id, threshold",
    [
        ("CartPole-v1", 475.0),
        ("Pendulum-v1", None),
        ("strange/Plain-v0", 5.0),
        ("CartPole", 475.0),
        (f"{__name__}:strange/Plain-v0", 5.0),
    ],
)
def test_the_target_is_the_threshold_of_gymnasiums_registry_however_the_environment_is_called(env_id, threshold):
    assert reward_threshold(env_id) == threshold
