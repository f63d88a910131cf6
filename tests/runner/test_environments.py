"""Every Gymnasium environment with Discrete or Box actions gives vectors to the policy; any other is refused.

Other tests also use the environments that are registered here, below "strange/".
"""

import io
import sys
import warnings
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.wrappers.utils import RunningMeanStd
from hypothesis import given, settings
from hypothesis import strategies as st

from npg.rollout import Sampler
from npg.runner import environments
from npg.runner.environments import (
    EnvironmentFailed,
    Log,
    ReplayableVectorEnv,
    UnsupportedEnvironment,
    freeze_normaliser,
    make_env,
    make_envs,
    make_pong_env,
    make_pong_envs,
    moments,
    scale_rewards,
    set_moments,
)
from npg.runner.replaying import below, flat, packed, unpacked


class Strange(gymnasium.Env):
    """Random observations; a reward is the sum of the action; episodes have 10 steps. Step `at` has `bad` values."""

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
        return obs, rew, False, self.t == 10, {"reward": 1e6}  # in `info` a name means what the environment wants

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
    "FlatAct-v0": {"act": Box(np.float32([0, 1]), np.float32([1, 1]))},  # the second number is always 1
    "IntegerAct-v0": {"act": Box(0, 10, (2,), np.int32)},
    "FromOneAct-v0": {"act": Discrete(3, start=1)},
}
for name, spaces in UNSUPPORTED.items():
    register(name, **spaces)
register("MissingPackage-v0", missing_package)
register("Plain-v0", reward_threshold=5.0)
register("NumPyThreshold-v0", reward_threshold=np.int64(5))
register("NaNThreshold-v0", reward_threshold=float("nan"))
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
register("BoundedBelow-v0", act=Box(np.float32([0, -np.inf]), np.float32([np.inf, np.inf])))
register("Bounded64-v0", act=Box(-2, 2, (2,), np.float64))


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
        *((name, "expected NAME or MODULE:NAME") for name in ("a:b:c", ":CartPole-v1", ".a:B-v0", "a:")),
        ("strange/MissingPackage-v0", "frobnicate is not installed"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(env_id, reason):
    for make in (lambda: make_envs(env_id, 2), lambda: make_env(env_id)):
        with pytest.raises(UnsupportedEnvironment) as error:
            make()
        assert reason in str(error.value) and "\n" not in str(error.value)


def test_an_episode_ends_after_a_while_where_there_is_no_time_limit(monkeypatch):
    monkeypatch.setattr(environments, "LONGEST", 7)
    spec = gymnasium.spec("CliffWalking-v1")
    assert spec.max_episode_steps is None
    envs, env = make_envs("CliffWalking-v1", 2), make_env("CliffWalking-v1")
    envs.reset(seed=0), env.reset(seed=0)
    for t in range(1, 8):
        truncated = [*envs.step(np.zeros(2, int))[3], env.step(0)[3]]
        assert truncated == [t == 7] * 3


def test_the_time_limit_of_an_environment_stays(monkeypatch):
    monkeypatch.setattr(environments, "LONGEST", 7)
    envs = make_envs("Pendulum-v1", 2)
    envs.reset(seed=0)
    assert not any(envs.step(np.zeros((2, 1), np.float32))[3].any() for _ in range(199))
    assert envs.step(np.zeros((2, 1), np.float32))[3].all()


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
        assert np.all(states[0] == 0)  # episodes begin in state 0
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
    """The actions that the environment itself receives, in a vector environment and in a single one."""
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


def test_box_actions_with_one_bound_are_clipped_there_and_not_rescaled():
    for taken in actions_taken("strange/BoundedBelow-v0", [[-1, -1], [0.25, 1e6]]):
        np.testing.assert_array_equal(taken, np.float32([[0, -1], [0.25, 1e6]]))


@pytest.mark.parametrize("name", ["Bounded", "Bounded64", "BoundedBelow"])
def test_making_an_environment_with_box_actions_warns_of_nothing(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_envs(f"strange/{name}-v0", 2)
        make_env(f"strange/{name}-v0")
    assert not caught


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


# Replays: environments come back to an earlier state


def replayable(env_id, n=3):
    spaces = make_envs(env_id, 1)
    return ReplayableVectorEnv(
        lambda: make_envs(env_id, n), n, spaces.single_observation_space, spaces.single_action_space
    )


def logs_of(envs):
    """The logs of `envs`, after they were saved and read again."""
    file = io.BytesIO()
    np.savez(file, **flat({"logs": {name: packed(logs) for name, logs in envs.logs.items()}}))
    file.seek(0)
    saved = dict(np.load(file, allow_pickle=False))
    return {name: unpacked(arrays) for name, arrays in below("logs", saved).items()}


def after_coming_back(envs, fresh):
    """`fresh`, after a replay has brought it to the state of `envs`."""
    assert fresh.replay(logs_of(envs), envs.obs)
    np.testing.assert_array_equal(fresh.obs, envs.obs)
    return fresh


def step(envs, rng):
    """A random step: obs, rew, terminated, truncated."""
    space = envs.single_action_space
    if isinstance(space, Discrete):
        return envs.step(rng.integers(space.n, size=envs.num_envs))[:-1]
    return envs.step(rng.normal(size=envs.action_space.shape).astype(np.float32))[:-1]


def assert_they_go_on_alike(one, other, n=50):
    for k in range(n):
        for x, y in zip(step(one, np.random.default_rng(k)), step(other, np.random.default_rng(k))):
            np.testing.assert_array_equal(x, y)


def until_an_episode_ends(envs, rng):
    ended = False
    while not ended:
        _, _, terminated, truncated = step(envs, rng)
        ended = (terminated | truncated).any()


class Answers(gymnasium.Env):
    """Its reset or its step returns too few values."""

    observation_space, action_space = Box(-1, 1, (2,)), Discrete(2)

    def __init__(self, which):
        self.which = which

    def reset(self, *, seed=None, options=None):
        return (np.zeros(2, np.float32), {})[: 1 if self.which == "reset" else 2]

    def step(self, action):
        return np.zeros(2, np.float32), 0.0


@pytest.mark.parametrize("which, text", [("reset", "expected 2 values, got 1"), ("step", "expected 5, got 2")])
def test_an_environment_that_returns_too_few_values_is_named(which, text):
    gymnasium.register(f"strange/Answers-{which}-v0", lambda: Answers(which), disable_env_checker=True,
                       order_enforce=False)  # fmt: skip
    env = make_env(f"strange/Answers-{which}-v0")
    with pytest.raises(EnvironmentFailed, match=f"{which} raised ValueError: .*{text}"):
        env.reset()
        env.step(0)


WRONG = {  # {number of a value that a step of two environments returns: its wrong value}, and the error
    "one reward": ({1: 1.0}, "cannot reshape array of size 1 into shape (2,)"),
    "words": ({1: ["good", "bad"]}, "could not convert string to float: 'good'"),
    "three flags": ({2: [False] * 3}, "cannot reshape array of size 3 into shape (2,)"),
    "no info": ({4: None}, "info: expected a dict, got NoneType"),
    "few observations": ({0: np.zeros((1, 4))}, "observations: expected the shape [2, 4], got [1, 4]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_of_a_vector_environment_is_named(name, monkeypatch):
    wrong, text = WRONG[name]
    envs = gymnasium.make_vec("CartPole-v1", num_envs=2)
    right = [np.zeros((2, 4), np.float32), np.ones(2), np.zeros(2, bool), np.zeros(2, bool), {}]
    answer = [wrong.get(k, x) for k, x in enumerate(right)]
    monkeypatch.setattr(envs, "step", lambda actions: answer, raising=False)
    guarded = environments._guarded(envs, "Wrong-v0")
    with pytest.raises(EnvironmentFailed) as error:
        guarded.step(np.zeros(2, int))
    assert str(error.value).startswith("environment Wrong-v0: step raised ") and text in str(error.value)


def test_columns_of_rewards_and_flags_that_are_numbers_are_understood(monkeypatch):
    envs = gymnasium.make_vec("CartPole-v1", num_envs=2)
    answer = np.zeros((2, 4)), np.ones((2, 1), int), [0, 1], np.zeros(2), {}
    monkeypatch.setattr(envs, "step", lambda actions: answer, raising=False)
    obs, rew, terminated, truncated, info = environments._guarded(envs, "Odd-v0").step(np.zeros(2, int))
    assert obs.dtype == np.float32 and rew.dtype == np.float64 and rew.tolist() == [1.0, 1.0]
    assert terminated.tolist() == [False, True] and truncated.tolist() == [False, False] and info == {}


@pytest.mark.parametrize(
    "picture, found",
    [
        (None, "NoneType"),
        (np.zeros((4, 4, 3)), r"float64\[4, 4, 3\]"),
        *((np.zeros(shape, np.uint8), rf"uint8\[{text}\]") for shape, text in
          (((0, 0, 3), "0, 0, 3"), ((4,), "4"), ((4, 4, 2), "4, 4, 2"))),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_named(picture, found, monkeypatch):
    monkeypatch.setattr(Strange, "render", lambda self: picture)
    env = make_env("strange/Plain-v0", "rgb_array")
    env.reset(seed=0)
    with pytest.raises(EnvironmentFailed, match=f"render raised ValueError: expected .*, got {found}"):
        env.render()


def test_an_environment_with_another_autoreset_is_refused():
    def make_vec(num_envs, **kwargs):
        envs = [lambda: gymnasium.make("CartPole-v1")] * num_envs
        return gymnasium.vector.SyncVectorEnv(envs, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)

    gymnasium.register("strange/SameStep-v0", lambda: gymnasium.make("CartPole-v1"), vector_entry_point=make_vec)
    with pytest.raises(UnsupportedEnvironment, match="strange/SameStep-v0: expected NEXT_STEP autoreset, got .*SAME"):
        make_envs("strange/SameStep-v0", 2)


def test_what_an_environment_calls_reward_in_its_info_is_not_its_reward():
    policy = SimpleNamespace(act=lambda theta, obs, rng: np.ones((2, 2), np.float32))
    rollout = Sampler(make_envs("strange/Unbounded-v0", 2), 0).episodes(policy, None)
    assert rollout.episode_returns == [20.0, 20.0]


def test_scaled_rewards_are_for_learning_and_returns_are_the_environments_own():
    policy = SimpleNamespace(act=lambda theta, obs, rng: rng.uniform(-1, 1, (len(obs), 1)).astype(np.float32))
    own, scaled = make_envs("Pendulum-v1", 3), scale_rewards(make_envs("Pendulum-v1", 3), gamma=0.9)
    rows = {}
    for name, envs in (("own", own), ("scaled", scaled)):
        sampler = Sampler(envs, 0)
        rows[name] = [sampler.steps(policy, None, 300), sampler.episodes(policy, None)]
    for first, second in zip(rows["own"], rows["scaled"]):
        np.testing.assert_array_equal(first.obs, second.obs)
        assert first.episode_returns and first.episode_returns == second.episode_returns
        assert np.abs(second.rew).sum() < 0.2 * np.abs(first.rew).sum() and (second.rew <= 0).all()


with_a_model = ["LunarLander-v3", "BipedalWalker-v3", "Hopper-v5", "Ant-v5"]
every_environment = pytest.mark.parametrize("env_id", [
    *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "FrozenLake-v1", "MountainCarContinuous-v0", "Taxi-v4"),
    *(pytest.param(env_id, marks=pytest.mark.slow) for env_id in with_a_model),
])  # fmt: skip


def skip_without(env_id):
    if env_id not in gymnasium.registry:
        pytest.skip(f"no {env_id} here")
    if env_id in with_a_model:
        pytest.importorskip("mujoco" if env_id.endswith("5") else "Box2D")


@every_environment
@pytest.mark.parametrize("n_steps", [0, 1, 2, 137])
def test_environments_come_back_to_where_they_were_and_go_on_as_they_would_have(env_id, n_steps):
    skip_without(env_id)
    envs, rng = replayable(env_id), np.random.default_rng(n_steps)
    envs.reset(seed=n_steps)
    for _ in range(n_steps):
        step(envs, rng)
    assert_they_go_on_alike(after_coming_back(envs, replayable(env_id)), envs)


@every_environment
def test_an_environment_that_has_just_ended_or_begun_comes_back_too(env_id):
    skip_without(env_id)
    envs, rng = replayable(env_id), np.random.default_rng(0)
    envs.reset(seed=3)
    until_an_episode_ends(envs, rng)
    just_ended = after_coming_back(envs, replayable(env_id))
    step(envs, np.random.default_rng(5)), step(just_ended, np.random.default_rng(5))  # the reset row
    just_begun = after_coming_back(envs, replayable(env_id))
    twice = after_coming_back(just_begun, replayable(env_id))
    for k in range(50):
        rows = [step(one, np.random.default_rng(k)) for one in (envs, just_ended, just_begun, twice)]
        for row in rows[1:]:
            for x, y in zip(row, rows[0]):
                np.testing.assert_array_equal(x, y)


@every_environment
def test_resets_without_a_seed_come_back_too(env_id):
    skip_without(env_id)
    envs, rng = replayable(env_id), np.random.default_rng(0)
    envs.reset(seed=3), envs.reset()
    assert_they_go_on_alike(after_coming_back(envs, replayable(env_id)), envs, 7)
    envs.reset(), envs.reset()
    step(envs, rng)
    assert_they_go_on_alike(after_coming_back(envs, replayable(env_id)), envs, 7)
    envs.reset()
    assert_they_go_on_alike(after_coming_back(envs, replayable(env_id)), envs, 40)


@pytest.mark.slow
@pytest.mark.parametrize("n_steps", [0, 1, 700])
def test_pong_with_sticky_actions_comes_back_too(n_steps):
    pytest.importorskip("ale_py")
    make, rng = lambda: make_pong_envs("Pong", 2, sticky=0.25), np.random.default_rng(n_steps)
    first = make()
    spaces = first.single_observation_space, first.single_action_space
    envs = ReplayableVectorEnv(make, 2, *spaces)
    envs.reset(seed=n_steps)
    for _ in range(n_steps):
        step(envs, rng)
    assert_they_go_on_alike(after_coming_back(envs, ReplayableVectorEnv(make, 2, *spaces)), envs, 300)


@given(st.integers(0, 2**31), st.lists(st.sampled_from([1, 2, 9, 10, 11, 23, "reset"]), max_size=6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_environments_come_back_after_any_sequence_of_steps_and_resets(seed, asked):
    for env_id in ("CartPole-v1", "strange/Plain-v0"):
        envs, rng = replayable(env_id, 2), np.random.default_rng(seed)
        envs.reset(seed=seed)
        for n_steps in asked:
            if n_steps == "reset":
                envs.reset()
            for _ in range(0 if n_steps == "reset" else n_steps):
                step(envs, rng)
        assert_they_go_on_alike(after_coming_back(envs, replayable(env_id, 2)), envs, 12)


def test_of_independent_environments_at_most_one_episode_is_replayed():
    envs, rng = replayable("strange/Plain-v0", 2), np.random.default_rng(0)  # episodes have 10 steps
    envs.reset(seed=0)
    for n_steps in range(35):
        fresh = after_coming_back(envs, replayable("strange/Plain-v0", 2))
        assert [env.unwrapped.steps for env in fresh.envs.unwrapped.envs] == [n_steps % 11] * 2
        assert sum(len(log.actions) for log in fresh.logs["episodes"]) == 2 * (n_steps % 11)
        step(envs, rng)


def test_small_actions_take_one_byte_in_the_log_and_come_back_with_their_type():
    envs, rng = replayable("CartPole-v1"), np.random.default_rng(0)
    envs.reset(seed=0)
    for _ in range(100):
        step(envs, rng)
    assert envs.logs["whole"][0].actions.nbytes == 300
    taken = []
    fresh = replayable("strange/Plain-v0", 1)
    fresh.reset(seed=0)
    for action in (0, 1, 1):
        fresh.step(np.array([action]))
    twin = after_coming_back(fresh, replayable("strange/Plain-v0", 1))
    for one in (fresh, twin):
        taken.append(one.envs.unwrapped.envs[0].unwrapped.actions)
    assert taken[0] == taken[1] == [0, 1, 1] and taken[0][0].dtype == taken[1][0].dtype


def test_a_log_follows_another_log_by_its_news():
    log, follower, rng = Log(), Log(), np.random.default_rng(0)
    for start in (7, 8):
        log = Log(start)
        for n in (0, 3, 0, 5):
            log.rows += [rng.integers(2, size=4) for _ in range(n)]
            log.resets.append(len(log.actions))
            follower = follower.follow(log.news())
            assert (follower.start, follower.resets) == (log.start, log.resets)
            np.testing.assert_array_equal(follower.actions, log.actions)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "strange/Plain-v0"])
def test_a_replay_that_reaches_other_observations_fails_and_the_next_reset_begins_anew(env_id):
    envs, fresh, rng = replayable(env_id), replayable(env_id), np.random.default_rng(0)
    envs.reset(seed=0)
    for _ in range(5):
        step(envs, rng)
    for wrong in (envs.obs + 1, envs.obs[:, ::-1], envs.obs[:2]):
        assert not fresh.replay(logs_of(envs), wrong)
    assert not fresh.replay({}, envs.obs)
    np.testing.assert_array_equal(fresh.reset(seed=4)[0], envs.reset(seed=4)[0])
    assert_they_go_on_alike(fresh, envs, 5)


class Moody(Strange):
    """Its observations come from a generator without a seed."""

    def observe(self):
        return np.random.default_rng().uniform(-1, 1, 3).astype(np.float32)


class Legacy(Strange):
    """Its generator is NumPy's old RandomState."""

    def reset(self, seed=None, options=None):
        self.np_random = np.random.RandomState(seed)
        self.t, self.resets = 0, self.resets + 1
        return self.observe(), {}

    def observe(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


class Bare(Moody):
    """It has no generator `np_random`."""

    np_random = None

    def reset(self, seed=None, options=None):
        self.t, self.resets = 0, self.resets + 1
        return self.observe(), {}


register("Moody-v0", Moody)
register("Legacy-v0", Legacy)
register("Bare-v0", Bare)


@pytest.mark.parametrize("name", ["Moody", "Legacy", "Bare"])
def test_an_environment_with_hidden_random_numbers_plays_but_does_not_come_back(name):
    envs, rng = replayable(f"strange/{name}-v0"), np.random.default_rng(0)
    envs.reset(seed=0)
    for _ in range(15):  # beyond the first episode, which has a seed
        step(envs, rng)
    assert not replayable(f"strange/{name}-v0").replay(logs_of(envs), envs.obs)


def test_the_progress_of_a_replay_can_be_shown():
    envs, rng, seen = replayable("CartPole-v1"), np.random.default_rng(0), []
    envs.reset(seed=0)
    for _ in range(30):
        step(envs, rng)

    def progress(rows):
        for row in rows:
            seen.append(row)
            yield row

    assert replayable("CartPole-v1").replay(logs_of(envs), envs.obs, envs.rew, progress)
    assert len(seen) == 30


class Aging(Strange):
    """Its observations depend on earlier episodes: they count all steps and resets."""

    def observe(self):
        return np.float32([self.steps, self.resets, self.np_random.random()])


register("Aging-v0", Aging, obs=Box(-np.inf, np.inf, (3,), np.float32))


def test_an_environment_that_remembers_earlier_episodes_comes_back_while_its_log_is_short(monkeypatch):
    envs, rng = replayable("strange/Aging-v0"), np.random.default_rng(0)
    envs.reset(seed=0)
    for _ in range(25):
        step(envs, rng)
    assert_they_go_on_alike(after_coming_back(envs, replayable("strange/Aging-v0")), envs)
    monkeypatch.setattr(environments, "LOG_BYTES", 200)
    assert envs.logs.keys() == {"episodes"}  # 25 + 50 steps of three environments
    assert not replayable("strange/Aging-v0").replay(logs_of(envs), envs.obs)
    envs.reset(seed=1), step(envs, rng)
    assert envs.logs.keys() == {"episodes", "whole"}  # a reset with a seed begins new logs


class Paying(Strange):
    """Only its rewards depend on earlier episodes: each is the number of resets."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float(self.resets), *rest


register("Paying-v0", Paying)


def test_an_environment_whose_rewards_alone_remember_earlier_episodes_comes_back():
    envs, rng = replayable("strange/Paying-v0"), np.random.default_rng(0)
    envs.reset(seed=0)
    for _ in range(25):
        step(envs, rng)
    fresh = replayable("strange/Paying-v0")
    assert fresh.replay(logs_of(envs), envs.obs, envs.rew)
    assert_they_go_on_alike(fresh, envs)
    assert not replayable("strange/Paying-v0").replay(logs_of(envs), envs.obs, envs.rew + 1)


class Mutating(Strange):
    """Changes its action in place, and its observations depend on all actions."""

    total = 0.0

    def reset(self, **kwargs):
        self.total = 0.0
        return super().reset(**kwargs)

    def observe(self):
        return np.full(3, self.total, np.float32)

    def step(self, action):
        self.total += float(np.sum(action))
        action[...] = 0.0
        return super().step(action)


register("Mutating-v0", Mutating, act=Box(-np.inf, np.inf, (2,)), obs=Box(-np.inf, np.inf, (3,), np.float32))


def test_the_log_holds_the_actions_as_they_were_even_if_the_environment_changes_them():
    envs, rng = replayable("strange/Mutating-v0"), np.random.default_rng(0)
    envs.reset(seed=0)
    for _ in range(25):
        envs.step(rng.standard_normal((3, 2)).astype(np.float32))
    for name, logs in logs_of(envs).items():
        assert replayable("strange/Mutating-v0").replay({name: logs}, envs.obs), name


def test_when_the_whole_log_is_too_long_the_last_episode_alone_is_replayed(monkeypatch):
    monkeypatch.setattr(environments, "LOG_BYTES", 50)
    envs, rng = replayable("strange/Plain-v0"), np.random.default_rng(0)
    envs.reset(seed=0)
    for _ in range(25):
        step(envs, rng)
    assert envs.logs.keys() == {"episodes"}
    fresh = after_coming_back(envs, replayable("strange/Plain-v0"))
    assert_they_go_on_alike(fresh, envs)
    assert fresh.logs.keys() == {"episodes"}
    assert_they_go_on_alike(after_coming_back(fresh, replayable("strange/Plain-v0")), envs)


def test_a_natively_vectorised_environment_always_keeps_its_whole_log(monkeypatch):
    monkeypatch.setattr(environments, "LOG_BYTES", 50)
    envs, rng = replayable("CartPole-v1"), np.random.default_rng(0)
    envs.reset(seed=0)
    for _ in range(50):
        step(envs, rng)
    assert_they_go_on_alike(after_coming_back(envs, replayable("CartPole-v1")), envs)


def test_environments_are_made_when_their_first_episode_begins_and_are_the_same_then():
    made = []

    def make():
        made.append(make_envs("Acrobot-v1", 3))
        return made[-1]

    plain = make_envs("Acrobot-v1", 3)
    late = ReplayableVectorEnv(make, 3, plain.single_observation_space, plain.single_action_space)
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
def test_the_makers_of_pong_refuse_any_other_environment(make):
    with pytest.raises(UnsupportedEnvironment, match="'CartPole-v1': expected Pong") as error:
        make("CartPole-v1")
    assert "\n" not in str(error.value)


@every_pong
def test_without_ale_py_pong_is_refused_in_one_line_that_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UnsupportedEnvironment, match=r"pip install 'npg\[atari\]'") as error:
        make("Pong")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["PongVectorEnv", "PongEnv"])
def test_a_game_of_pong_that_fails_is_named(monkeypatch, kind):
    pytest.importorskip("ale_py")

    def fails(self, actions):
        raise OSError("no emulator")

    monkeypatch.setattr(f"npg.pong.{kind}.step", fails)
    env = make_pong_envs("Pong", 2) if kind == "PongVectorEnv" else make_pong_env("Pong")
    with pytest.raises(EnvironmentFailed, match="^environment Pong: step raised OSError: no emulator$"):
        env.step(0)


@pytest.mark.parametrize("inputs", ["difference", "half", "trail"])
def test_one_game_of_pong_has_the_spaces_of_many(inputs):
    pytest.importorskip("ale_py")
    envs, env = make_pong_envs("Pong", 2, inputs=inputs, sticky=0.25), make_pong_env("Pong", inputs=inputs, sticky=0.25)
    assert env.observation_space == envs.single_observation_space
    assert env.action_space == envs.single_action_space
    seen = {"many": [envs.reset(seed=0)[0]], "one": [env.reset(seed=0)[0][None]]}
    for _ in range(100):
        seen["many"].append(envs.step(np.ones(2, int))[0])
        seen["one"].append(env.step(1)[0][None])
    for obs in map(np.concatenate, seen.values()):
        assert all(x in env.observation_space for x in obs)
        assert obs.min() == env.observation_space.low.min() and obs.max() == env.observation_space.high.max()
    env.close(), envs.close()
