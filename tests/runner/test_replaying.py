"""A restored sampler continues exactly as the saved sampler, or begins new episodes."""

import io
import time
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.wrappers.vector import NormalizeObservation
from test_environments import replayable  # its module also registers the environments "strange/…"

from npg.distributions import Categorical
from npg.network import MLP
from npg.policy import Policy
from npg.pong import RallySampler
from npg.rollout import AheadSampler, Sampler
from npg.runner.environments import ReplayableVectorEnv, make_pong_envs
from npg.runner.replaying import begin_anew, below, flat, random_state, restore, set_random_state, state_of


def at_random(theta, obs, rng):
    return rng.integers(2, size=len(obs))


def pushed(theta, obs, rng):
    return rng.uniform(-1, 1, (len(obs), 1)).astype(np.float32)


def still(theta, obs, rng):
    return np.zeros(len(obs), np.int64)


ACT = {"CartPole-v1": at_random, "Pendulum-v1": pushed, "strange/Plain-v0": at_random, "rallies": still}


class Rallies(gymnasium.Env):
    """A game has 23 steps, and a point at every fifth step."""

    observation_space, action_space = Box(-1, 1, (2,), np.float32), gymnasium.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(self.t % 5 == 0), self.t == 23, False, {}


gymnasium.register("rallies", Rallies)


def plain(env_id, *seeds):
    return Sampler(replayable(env_id), *seeds)


def ahead(env_id, *seeds):
    return AheadSampler([Sampler(replayable(env_id), *seeds, k) for k in range(2)], *seeds)


def rallies(env_id, *seeds):
    return RallySampler(replayable(env_id), *seeds)


def rallies_ahead(env_id, *seeds):
    return AheadSampler([RallySampler(replayable(env_id), *seeds, k) for k in range(2)], *seeds)


KINDS = [(kind, env_id) for kind in (plain, ahead) for env_id in ("CartPole-v1", "Pendulum-v1", "strange/Plain-v0")]
KINDS += [(rallies, "rallies"), (rallies_ahead, "rallies")]
every_kind = pytest.mark.parametrize("kind, env_id", KINDS, ids=lambda x: getattr(x, "__name__", x))


def through_a_file(state):
    file = io.BytesIO()
    np.savez(file, **flat({"sampler": state}))
    file.seek(0)
    return below("sampler", dict(np.load(file, allow_pickle=False)))


def assert_they_go_on_alike(one, other, env_id, calls=4):
    policy, theta = SimpleNamespace(act=ACT[env_id]), np.zeros(1, np.float32)
    for _ in range(calls):
        first, second = (sampler.steps(policy, theta, 17) for sampler in (one, other))
        for name, x, y in zip(first._fields, first, second):
            np.testing.assert_array_equal(x, y, err_msg=name)
            assert type(x) is type(y)
        assert one.rng.random() == other.rng.random()


@every_kind
@pytest.mark.parametrize("calls", [0, 1, 2, 3, 6])
def test_a_restored_sampler_continues_like_the_saved_sampler(kind, env_id, calls):
    sampler, fresh = kind(env_id, 1, 2), kind(env_id, 8)
    policy, theta = SimpleNamespace(act=ACT[env_id]), np.zeros(1, np.float32)
    for _ in range(calls):
        sampler.steps(policy, theta, 17)
        sampler.rng.random()
    if not calls:
        fresh = kind(env_id, 1, 2)  # a sampler that has not begun depends only on its seeds
    assert restore(fresh, through_a_file(state_of(sampler)))
    assert_they_go_on_alike(fresh, sampler, env_id)


@every_kind
def test_to_save_a_sampler_changes_nothing(kind, env_id):
    sampler, untouched = kind(env_id, 1), kind(env_id, 1)
    for _ in range(4):
        state_of(sampler)
        assert_they_go_on_alike(sampler, untouched, env_id, 1)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "strange/Plain-v0"])
def test_a_sampler_of_whole_episodes_comes_back_too(env_id):
    sampler, fresh = plain(env_id, 1), plain(env_id, 2)
    policy = SimpleNamespace(act=at_random)
    for _ in range(3):
        sampler.episodes(policy, None)
    assert restore(fresh, through_a_file(state_of(sampler)))
    for _ in range(2):
        for x, y in zip(sampler.episodes(policy, None), fresh.episodes(policy, None)):
            np.testing.assert_array_equal(x, y)


def test_a_rollout_drawn_ahead_comes_back_with_the_theta_that_drew_it():
    policy = Policy(MLP((4, 2)), Categorical(2))
    thetas = np.random.default_rng(0).standard_normal((4, policy.size)).astype(np.float32)
    sampler, fresh = ahead("CartPole-v1", 1), ahead("CartPole-v1", 2)
    for theta in thetas[:2]:
        sampler.steps(policy, theta, 20)
    assert restore(fresh, through_a_file(state_of(sampler)))
    for theta in thetas[2:]:
        one, other = (s.steps(policy, theta, 20) for s in (sampler, fresh))
        np.testing.assert_array_equal(one.theta, other.theta)
        np.testing.assert_array_equal(one.obs, other.obs)
        assert one.episode_returns == other.episode_returns and one.env_steps == other.env_steps


def test_saving_waits_for_the_rollout_that_is_being_drawn_ahead():
    """The policy is slow, so the environments are in the middle of a rollout when `state_of` is called."""
    sampler, fresh = ahead("CartPole-v1", 1), ahead("CartPole-v1", 2)

    def slowly(theta, obs, rng):
        time.sleep(0.001)
        return at_random(theta, obs, rng)

    sampler.steps(SimpleNamespace(act=slowly), np.zeros(1, np.float32), 30)
    assert restore(fresh, through_a_file(state_of(sampler)))
    assert_they_go_on_alike(fresh, sampler, "CartPole-v1")


@pytest.mark.slow
@pytest.mark.parametrize("n_ahead", [0, 2])
def test_pong_comes_back(n_ahead):
    pytest.importorskip("ale_py")

    def make(*seeds):
        def rally_sampler(*seeds):
            envs = make_pong_envs("Pong", 2, sticky=0.25)
            spaces = envs.single_observation_space, envs.single_action_space
            return RallySampler(ReplayableVectorEnv(lambda: envs, 2, *spaces), *seeds)

        parts = [rally_sampler(*seeds, k) for k in range(n_ahead)]
        return AheadSampler(parts, *seeds) if n_ahead else rally_sampler(*seeds)

    sampler, fresh, policy = make(1), make(2), SimpleNamespace(act=at_random)
    for _ in range(5):
        sampler.steps(policy, np.zeros(1, np.float32), 300)
    assert restore(fresh, through_a_file(state_of(sampler)))
    for _ in range(3):
        one, other = (s.steps(policy, np.zeros(1, np.float32), 300) for s in (sampler, fresh))
        for x, y in zip(one, other):
            np.testing.assert_array_equal(x, y)


def test_a_replay_adds_nothing_to_the_moments_of_normalised_observations():
    def make(*seeds):
        envs = NormalizeObservation(replayable("Pendulum-v1"))
        return envs.obs_rms, Sampler(envs, *seeds)

    (moments, sampler), (others, fresh) = make(1), make(2)
    sampler.steps(SimpleNamespace(act=pushed), None, 30)
    others.mean, others.var, others.count = moments.mean.copy(), moments.var.copy(), moments.count
    assert restore(fresh, through_a_file(state_of(sampler)))
    np.testing.assert_array_equal(others.mean, moments.mean)
    assert_they_go_on_alike(fresh, sampler, "Pendulum-v1")


# New episodes


@pytest.mark.parametrize("kind", [plain, ahead])
def test_where_environments_do_not_come_back_new_episodes_begin(kind):
    sampler, policy, theta = kind("CartPole-v1", 1), SimpleNamespace(act=at_random), np.zeros(1, np.float32)
    for _ in range(3):
        sampler.steps(policy, theta, 17)
    state = state_of(sampler)
    for part in state["parts"].values() if kind is ahead else [state]:
        part["reached"] = part["reached"] + 1
    first = kind("CartPole-v1", 1).steps(policy, theta, 17)
    fresh, again = kind("CartPole-v1", 1), kind("CartPole-v1", 1)
    assert not restore(fresh, through_a_file(state)) and not restore(again, through_a_file(state))
    if kind is ahead:  # the rollout drawn ahead is not lost
        np.testing.assert_array_equal(fresh.steps(policy, theta, 17).obs, sampler.steps(policy, theta, 17).obs)
        again.steps(policy, theta, 17)
    rollout = fresh.steps(policy, theta, 17)
    assert np.all(np.abs(rollout.obs[0]) <= 0.05) and not np.any(rollout.obs[0] == first.obs[0])
    assert rollout.episode_lengths and sum(rollout.episode_lengths) <= rollout.env_steps  # all episodes are new
    np.testing.assert_array_equal(rollout.obs, again.steps(policy, theta, 17).obs)  # the saved state determines them


@pytest.mark.parametrize("kind", [plain, ahead])
def test_new_episodes_follow_from_the_given_seeds(kind):
    policy, theta, found = SimpleNamespace(act=at_random), np.zeros(1, np.float32), {}
    for seeds in ((1,), (2,), (1, 3)):
        samplers = [kind("CartPole-v1", 1) for _ in range(2)]
        for sampler in samplers:
            begin_anew(sampler, *seeds)
        found[seeds] = samplers[0].steps(policy, theta, 17).obs
        np.testing.assert_array_equal(found[seeds], samplers[1].steps(policy, theta, 17).obs)
    for other in ((2,), (1, 3)):
        assert not np.any(found[(1,)][0] == found[other][0])
    if kind is ahead:
        assert not np.any(found[(1,)][0, :3] == found[(1,)][0, 3:])  # each part has its own episodes
        fresh = kind("CartPole-v1", 1)
        begin_anew(fresh, 1)
        generators = [np.random.default_rng([1, k]) for k in range(len(fresh.samplers))]
        assert random_state(fresh.rng) not in map(random_state, generators)  # the learner's own random numbers


# What is written


def test_a_state_has_no_objects_in_it():
    for kind, env_id in KINDS:
        sampler = kind(env_id, 1)
        for _ in range(2):
            sampler.steps(SimpleNamespace(act=ACT[env_id]), np.zeros(1, np.float32), 17)
            for name, array in flat({"sampler": state_of(sampler)}).items():
                assert array.dtype.kind in "bifuU", name


def test_a_flattened_tree_can_be_read_back():
    tree = {"a": {"b": {"0": 1, "1": [2.5, 3]}, "c": "text"}, "d": np.arange(3), "ab": {}}
    arrays = flat(tree)
    assert arrays.keys() == {"a.b.0", "a.b.1", "a.c", "d"}
    found = below("a", arrays)
    assert found["b"]["1"].tolist() == [2.5, 3] and str(found["c"]) == "text" and found.keys() == {"b", "c"}
    assert below("ab", arrays) == below("b", arrays) == {}


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_a_generator_continues_from_its_state_as_text(bits):
    rng, other = np.random.Generator(bits(1)), np.random.Generator(bits(2))
    rng.random(5, np.float32)
    set_random_state(other, np.asarray(random_state(rng)))
    assert rng.random(9, np.float32).tolist() == other.random(9, np.float32).tolist()
    assert rng.normal() == other.normal() and rng.integers(10) == other.integers(10)
