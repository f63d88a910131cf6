"""Policies that only play: the candidates of a search, and evaluations that are divided into chunks."""

import functools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers.utils import RunningMeanStd
from test_a3c import MODEL
from test_actors import Here, client  # noqa: F401  a fixture
from test_reinforce import random_theta

from npg.distributions import Categorical, Deterministic
from npg.gradient_free import EvolutionStrategy, search
from npg.network import MLP
from npg.optimizers import Adam
from npg.policy import Policy
from npg.rollout import play
from npg.runner.environments import make_env, make_envs
from npg.runner.playing import parallel_play, policy_evaluator

# Candidates of a search


class Counter(gymnasium.Env):
    """The seed determines the length, 3 to 6 steps. The observation is (10 + t, noise), the reward is the action."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    made = 0

    def __init__(self, bad=False):
        Counter.made += 1
        self.bad, self.log = bad, []

    def observe(self):
        self.log.append(np.array([10.0 + self.t, self.np_random.normal()]))
        return np.full(2, np.nan) if self.bad and self.t == 2 else self.log[-1]

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, int(self.np_random.integers(3, 7))
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        return self.observe(), float(action[0]), over and self.length % 2, over and not self.length % 2, {}


class SameArray(Counter):
    """Writes every observation into the same array."""

    def __init__(self):
        super().__init__()
        self.array = np.zeros(2)

    def observe(self):
        self.array[...] = super().observe()
        return self.array


def linear():
    return Policy(MLP((2, 1)), Deterministic(1))


def test_returns_and_counts_are_exactly_those_of_the_episodes():
    envs = []
    evaluate = policy_evaluator(linear(), lambda: envs.append(Counter()) or envs[0], 4, np.random.default_rng(0))
    values, measures = evaluate(np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))  # actions 1, and 10 + t
    rollout, lengths = measures["rollout"], np.array(measures["rollout"].episode_lengths).reshape(2, 4)
    assert len(envs) == 1 and set(lengths.ravel()) <= {3, 4, 5, 6} and len(set(lengths[0])) > 1
    np.testing.assert_array_equal(lengths[0], lengths[1])  # common seeds: the same episodes
    expected = np.array([lengths[0], [sum(10 + t for t in range(n)) for n in lengths[1]]])
    np.testing.assert_allclose(np.reshape(rollout.episode_returns, (2, 4)), expected)
    np.testing.assert_allclose(values, expected.mean(axis=1))
    assert rollout.env_steps == lengths.sum() == len(envs[0].log) - 8  # a step follows every observation but the last


def test_without_common_seeds_candidates_play_different_episodes():
    evaluate = policy_evaluator(linear(), Counter, 6, np.random.default_rng(0), common=False)
    lengths = np.reshape(evaluate(np.zeros((4, 3)))[1]["rollout"].episode_lengths, (4, 6))
    assert len({tuple(row) for row in lengths}) == 4


@pytest.mark.parametrize("env", [Counter, SameArray])
def test_observations_are_normalised_by_the_moments_of_all_observations_of_earlier_iterations(env):
    envs, acted_on, policy, obs_rms = [], [], linear(), RunningMeanStd(shape=(2,))
    act = policy.act
    policy.act = lambda theta, obs: acted_on.append(obs) or act(theta, obs)
    make = lambda: envs.append(env()) or envs[0]
    evaluate = policy_evaluator(policy, make, 3, np.random.default_rng(0), obs_rms)
    earlier = np.empty((0, 2))
    for _ in range(3):
        mean, var = obs_rms.mean.copy(), obs_rms.var.copy()
        evaluate(np.zeros((2, 3)))
        log = np.array(envs[0].log)
        raw = log[:-1][log[1:, 0] > 10]  # the last observation of an episode is left out: no action follows it
        np.testing.assert_allclose(acted_on, (raw - mean) / np.sqrt(var + 1e-8), rtol=1e-12)
        earlier = np.concatenate([earlier, raw])
        np.testing.assert_allclose(obs_rms.mean, earlier.mean(axis=0), rtol=1e-4)  # Gymnasium's start counts for 1e-4
        np.testing.assert_allclose(obs_rms.var, earlier.var(axis=0), rtol=1e-2)
        assert obs_rms.count == pytest.approx(len(earlier), rel=1e-4)
        acted_on.clear(), envs[0].log.clear()


def test_a_nan_observation_makes_the_value_nan():
    policy = linear()
    policy.act = lambda theta, obs: np.ones(1)  # so the rewards are finite in spite of the NaN
    evaluate = policy_evaluator(policy, functools.partial(Counter, True), 2, np.random.default_rng(0))
    values, measures = evaluate(np.zeros((2, 3)))
    assert np.isnan(values).all() and np.isnan(measures["rollout"].obs).all()


def cartpole(executor, n=3):
    rng, policy = np.random.default_rng(0), Policy(MLP((4, 2)), Categorical(2))
    theta, obs_rms = policy.init(rng), RunningMeanStd(shape=(4,), dtype=np.float32)
    evaluate = policy_evaluator(policy, functools.partial(make_env, "CartPole-v1"), 2, rng, obs_rms, executor=executor)
    method = EvolutionStrategy(theta, Adam(theta, 0.1), 0.3, n_candidates=6)
    updates = [update for update, _ in zip(search(method, evaluate, rng), range(n))]
    assert obs_rms.mean.dtype == obs_rms.var.dtype == np.float32
    return theta, obs_rms.mean, obs_rms.var, [update["rollout"].episode_lengths for update in updates]


def test_environments_in_worker_processes_give_the_same_bits_moments_included():
    with ProcessPoolExecutor(2, get_context("spawn")) as executor:
        there = cartpole(executor)
    for result, expected in zip(there, cartpole(None), strict=True):
        np.testing.assert_array_equal(result, expected)


# Evaluations in parts


def test_an_evaluation_in_parts_joins_the_returns_of_its_parts():
    theta = random_theta(MODEL)
    returns, cost = parallel_play(Here(), functools.partial(make_envs, "CartPole-v1"), actor(theta), "how", 7, 3, 11, 2)
    parts = [
        play(make_envs("CartPole-v1", n), lambda obs: MODEL.act(theta, obs), n, 11, 2, j)
        for j, n in enumerate((3, 2, 2))
    ]
    np.testing.assert_array_equal(returns, np.concatenate([part for part, _ in parts]))
    assert len(set(returns)) > 1 and cost == max(lengths.sum() for _, lengths in parts)


def actor(theta):
    return lambda how, seeds: functools.partial(MODEL.act, theta)


@pytest.mark.slow
def test_an_evaluation_on_dask_equals_an_evaluation_in_this_process(client):  # noqa: F811
    make, theta = functools.partial(make_envs, "CartPole-v1"), random_theta(MODEL)
    executors = Here(), client.get_executor()
    returns = [parallel_play(executor, make, actor(theta), "how", 7, 3, 11, 2)[0] for executor in executors]
    np.testing.assert_array_equal(*returns)
