"""A sampler records what happened: in environments that count, and in CartPole, compared with its physics."""

from itertools import combinations
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import TransformReward

from npg.distributions import Categorical, Gaussian
from npg.network import MLP
from npg.policy import Policy
from npg.rollout import AheadSampler, Sampler, play


class Counter(gymnasium.Env):
    """obs = [episodes begun, steps in this one]. Step t earns t, so k steps earn k(k+1)/2. The end is at `length`."""

    observation_space = Box(0, np.inf, (2,), np.float32)

    def __init__(self, length=10**9, action_space=None, reward=float):
        self.length, self.action_space, self.reward = length, action_space or Discrete(3), reward
        self.episode, self.actions = 0, []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action):
        self.actions.append(action)
        self.t += 1
        return self.observe(), self.reward(self.t), self.t == self.length, False, {}

    def observe(self):
        return np.array([self.episode, self.t], np.float32)


def side_by_side(*envs, **kwargs):
    return SyncVectorEnv([lambda env=env: env for env in envs], **kwargs)


def two_counters():
    """One environment has episodes of 2 steps; the other is endless, with a time limit of 3."""
    return side_by_side(Counter(2), TimeLimit(Counter(), 3))


STILL = SimpleNamespace(act=lambda theta, obs, rng: np.zeros(len(obs), np.int64))
COUNTER_POLICY = Policy(MLP((2, 3)), Categorical(3))
CARTPOLE_POLICY = Policy(MLP((4, 2)), Categorical(2))


def cartpoles(mode, n=4, **kwargs):
    return gymnasium.make_vec("CartPole-v1", n, vectorization_mode=mode, **kwargs)


each_vectorization = pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])


each_call = pytest.mark.parametrize(
    "draw",
    [
        lambda sampler: sampler.steps(STILL, None, 1000),
        lambda sampler: sampler.segment(STILL, None, 1000),
        lambda sampler: sampler.episodes(STILL, None),
    ],
    ids=["steps", "segment", "episodes"],
)


def uniform(policy):
    return np.zeros(policy.size, np.float32)


def assert_same(one, other):
    for name in one._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


# steps


def test_the_rows_by_hand():
    rollout = Sampler(two_counters(), 0).steps(STILL, None, 6)
    first, second = rollout.obs[:, 0].tolist(), rollout.obs[:, 1].tolist()
    assert first == [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2], [3, 0]]
    assert second == [[1, 0], [1, 1], [1, 2], [1, 3], [2, 0], [2, 1], [2, 2]]
    assert rollout.rew.T.tolist() == [[1, 2, 0, 1, 2, 0], [1, 2, 3, 0, 1, 2]]
    assert rollout.terminated.T.astype(int).tolist() == [[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert rollout.truncated.T.astype(int).tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
    assert rollout.valid.T.astype(int).tolist() == [[1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 1, 1]]
    assert rollout.done.T.astype(int).tolist() == [[0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]]
    assert rollout.episode_returns == [3, 6, 3]
    assert rollout.episode_lengths == [2, 3, 2]
    assert rollout.env_steps == 9
    assert rollout.act.shape == (6, 2)


def test_there_are_n_steps_rows_even_if_no_reward_comes():
    late = Counter(reward=lambda t: float(t > 20))
    sampler = Sampler(side_by_side(late, Counter(3, reward=lambda t: 0.0)), 0)
    assert [len(sampler.steps(STILL, None, n).rew) for n in (1, 5, 2)] == [1, 5, 2]


def test_one_more_row_is_drawn_if_the_only_row_is_a_reset():
    sampler = Sampler(side_by_side(Counter(2), Counter(2)), 0)
    assert [len(sampler.steps(STILL, None, 1).rew) for _ in range(5)] == [1, 1, 2, 1, 2]


def test_obs_keep_their_dtype_rewards_are_float32_and_flags_bool():
    rollout = Sampler(two_counters(), 0).steps(STILL, None, 4)
    assert rollout.obs.dtype == rollout.rew.dtype == np.float32
    assert rollout.terminated.dtype == rollout.truncated.dtype == rollout.valid.dtype == bool


def test_each_observation_is_the_true_successor_also_at_an_end():
    envs = side_by_side(Counter(1), Counter(4), TimeLimit(Counter(), 3), TimeLimit(Counter(5), 4))
    sampler = Sampler(envs, 0)
    for _ in range(3):  # the second and third calls begin in the middle of episodes and on reset rows
        rollout = sampler.steps(STILL, None, 13)
        before, after = rollout.obs[:-1], rollout.obs[1:]
        np.testing.assert_array_equal(after[rollout.valid], before[rollout.valid] + [0, 1])
        np.testing.assert_array_equal(after[~rollout.valid][:, 0], before[~rollout.valid][:, 0] + 1)
        np.testing.assert_array_equal(after[~rollout.valid][:, 1], 0)
        np.testing.assert_array_equal(rollout.valid[1:], ~rollout.done[:-1])


def test_an_end_for_both_reasons_is_both_terminated_and_truncated():
    rollout = Sampler(side_by_side(TimeLimit(Counter(2), 2)), 0).steps(STILL, None, 3)
    assert rollout.terminated[:, 0].tolist() == rollout.truncated[:, 0].tolist() == [False, True, False]
    assert rollout.episode_returns == [3]


def test_a_reset_row_earns_nothing_even_where_a_wrapper_pays_for_every_row():
    rollout = Sampler(TransformReward(two_counters(), lambda rew: rew - 1), 0).steps(STILL, None, 6)
    assert rollout.rew.T.tolist() == [[0, 1, 0, 0, 1, 0], [0, 1, 2, 0, 0, 1]]
    assert rollout.episode_returns == [1, 3, 1]


def test_the_policy_sees_the_observations_of_its_row():
    seen = []
    policy = SimpleNamespace(act=lambda theta, obs, rng: seen.append(obs.copy()) or STILL.act(theta, obs, rng))
    rollout = Sampler(two_counters(), 0).steps(policy, None, 7)
    np.testing.assert_array_equal(seen, rollout.obs[:-1])


@pytest.mark.parametrize(
    "space, policy, shape",
    [
        (Discrete(3), COUNTER_POLICY, (40, 2)),
        (Box(-np.inf, np.inf, (1,), np.float32), Policy(MLP((2, 1)), Gaussian(1)), (40, 2, 1)),
        (Box(-np.inf, np.inf, (3,), np.float32), Policy(MLP((2, 3)), Gaussian(3)), (40, 2, 3)),
    ],
)
def test_the_recorded_actions_are_those_that_were_made(space, policy, shape):
    envs = side_by_side(Counter(4, space), Counter(7, space))
    rollout = Sampler(envs, 0).steps(policy, uniform(policy), 40)
    assert rollout.act.shape == shape and len(np.unique(rollout.act)) > 2
    for i, env in enumerate(envs.envs):
        np.testing.assert_array_equal(env.actions, rollout.act[rollout.valid[:, i], i])


def test_flatten_takes_the_valid_steps_alone():
    rollout = Sampler(two_counters(), 0).steps(COUNTER_POLICY, uniform(COUNTER_POLICY), 6)
    obs, act, rew, following = rollout.flatten(rollout.rew, rollout.obs[1:])
    assert len(obs) == len(act) == len(rew) == len(following) == rollout.env_steps
    np.testing.assert_array_equal(rew, obs[:, 1] + 1)
    np.testing.assert_array_equal(following, obs + [0, 1])
    np.testing.assert_array_equal(act, rollout.act[rollout.valid])


@pytest.mark.parametrize("lengths", [(1,) * 12, (1, 2, 5, 4), (11, 1)])
def test_several_calls_make_the_same_rows_and_episodes_as_one(lengths):
    policy, theta = COUNTER_POLICY, uniform(COUNTER_POLICY)
    sampler = Sampler(two_counters(), 3)
    parts = [sampler.steps(policy, theta, n) for n in lengths]
    n_rows = sum(len(part.rew) for part in parts)  # more than `lengths` if a row was a reset in both
    whole = Sampler(two_counters(), 3).steps(policy, theta, n_rows)
    for name in ("act", "rew", "terminated", "truncated", "valid"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    np.testing.assert_array_equal(np.concatenate([part.obs[:-1] for part in parts]), whole.obs[:-1])
    np.testing.assert_array_equal(parts[-1].obs[-1], whole.obs[-1])
    assert sum((part.episode_returns for part in parts), []) == whole.episode_returns == [3, 6, 3, 6, 3, 3, 6]
    assert sum((part.episode_lengths for part in parts), []) == whole.episode_lengths == [2, 3, 2, 3, 2, 2, 3]
    assert sum(part.env_steps for part in parts) == whole.env_steps


def test_env_steps_are_the_steps_that_the_environments_made():
    envs = two_counters()
    sampler = Sampler(envs, 0)
    rollouts = [sampler.steps(STILL, None, 7), sampler.episodes(STILL, None), sampler.steps(STILL, None, 2)]
    assert sum(rollout.env_steps for rollout in rollouts) == sum(len(env.unwrapped.actions) for env in envs.envs)


class ReusesItsBuffers(VectorWrapper):
    """Hands out the same four arrays again and again."""

    def __init__(self, envs):
        super().__init__(envs)
        n = envs.num_envs
        self.buffers = [np.zeros((n, 2), np.float32), np.zeros(n, np.float32), np.zeros(n, bool), np.zeros(n, bool)]

    def reset(self, **kwargs):
        self.buffers[0][...], info = self.env.reset(**kwargs)
        return self.buffers[0], info

    def step(self, actions):
        *arrays, info = self.env.step(actions)
        for buffer, array in zip(self.buffers, arrays):
            buffer[...] = array
        return *self.buffers, info


@each_call
def test_environments_may_reuse_their_buffers(draw):
    sampler = Sampler(ReusesItsBuffers(two_counters()), 0)
    rollout = draw(sampler)
    assert_same(rollout, draw(Sampler(two_counters(), 0)))
    before = [np.copy(array) for array in rollout]
    sampler.steps(STILL, None, 2)  # the next rollout does not change it, either
    for array, array_before in zip(rollout, before):
        np.testing.assert_array_equal(array, array_before)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_another_autoreset_than_next_step_is_refused(mode):
    with pytest.raises(ValueError, match="envs: expected NEXT_STEP autoreset, got .*" + mode.name):
        Sampler(side_by_side(Counter(2), autoreset_mode=mode), 0)


# segment


def segments(envs, t_max, n):
    """Steps [env_steps, …] and ends of the next n segments."""
    sampler = Sampler(envs, 0)
    rollouts = [sampler.segment(STILL, None, t_max) for _ in range(n)]
    return [rollout.env_steps for rollout in rollouts], [bool(rollout.done.any()) for rollout in rollouts]


def test_a_segment_ends_at_the_terminal_state_or_after_t_max_steps_as_in_algorithm_s3():
    assert segments(side_by_side(Counter(5)), 3, 5) == ([3, 2, 3, 2, 3], [False, True, False, True, False])
    assert segments(side_by_side(Counter(3)), 3, 3) == ([3, 3, 3], [True] * 3)
    assert segments(side_by_side(TimeLimit(Counter(), 2)), 3, 3) == ([2, 2, 2], [True] * 3)
    assert segments(side_by_side(Counter(2)), 1, 4) == ([1, 1, 1, 1], [False, True, False, True])


def test_a_segment_of_several_environments_ends_when_all_have_met_an_end_or_after_t_max_rows():
    rollout = Sampler(two_counters(), 0).segment(STILL, None, 6)  # episodes of 2 and of 3 steps
    assert rollout.valid.T.tolist() == [[True, True, False], [True, True, True]]
    assert Sampler(side_by_side(Counter(2), Counter(9)), 0).segment(STILL, None, 6).valid.shape == (6, 2)


def test_segments_leave_nothing_out():
    sampler, twin = Sampler(two_counters(), 0), Sampler(two_counters(), 0)
    rollouts = [sampler.segment(STILL, None, 4) for _ in range(5)]
    whole = twin.steps(STILL, None, sum(len(rollout.rew) for rollout in rollouts))
    for name in ("act", "rew", "terminated", "truncated", "valid"):
        np.testing.assert_array_equal(np.concatenate([getattr(r, name) for r in rollouts]), getattr(whole, name))
    assert sum((rollout.episode_returns for rollout in rollouts), []) == whole.episode_returns


def test_a_segment_has_at_least_one_step():
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match=f"t_max: expected a whole number of at least 1, got {wrong}"):
            Sampler(two_counters(), 0).segment(STILL, None, wrong)
        with pytest.raises(ValueError, match=f"n_steps: expected a whole number of at least 1, got {wrong}"):
            Sampler(two_counters(), 0).steps(STILL, None, wrong)


# episodes


def test_episodes_by_hand():
    envs = side_by_side(Counter(2), TimeLimit(Counter(), 5), TimeLimit(Counter(), 2))
    rollout = Sampler(envs, 0).episodes(STILL, None)
    assert rollout.valid.T.astype(int).tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert rollout.rew.T.tolist() == [[1, 2, 0, 0, 0], [1, 2, 3, 4, 5], [1, 2, 0, 0, 0]]
    assert rollout.terminated.T.astype(int).tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert rollout.truncated.T.astype(int).tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    assert rollout.obs[:3, 0, 1].tolist() == [0, 1, 2]
    assert rollout.obs[:, 1, 1].tolist() == [0, 1, 2, 3, 4, 5]
    assert rollout.episode_returns == [3, 15, 3]
    assert rollout.episode_lengths == [2, 5, 2]
    assert rollout.env_steps == 4 + 5 + 4  # steps of the discarded second episodes count, too


class LaterNaN(Counter):
    """Its first episode is as a `Counter`'s. All rewards of later episodes are NaN."""

    def step(self, action):
        obs, rew, *rest = super().step(action)
        return obs, rew if self.episode <= 2 else np.nan, *rest  # the first reset only seeds the environment


def test_what_is_discarded_is_not_in_the_return_even_if_it_is_nan():
    rollout = Sampler(side_by_side(LaterNaN(2), TimeLimit(Counter(), 5)), 0).episodes(STILL, None)
    assert rollout.episode_returns == [3, 15]


def test_everything_after_each_environment_s_one_episode_is_masked():
    rollout = Sampler(cartpoles("sync", 8), 0).episodes(CARTPOLE_POLICY, uniform(CARTPOLE_POLICY))
    np.testing.assert_array_equal(rollout.done.sum(axis=0), 1)
    last = rollout.done.argmax(axis=0)
    assert last.max() == len(rollout.rew) - 1 > last.min()
    np.testing.assert_array_equal(rollout.valid, np.arange(len(rollout.rew))[:, None] <= last)
    assert not rollout.rew[~rollout.valid].any()
    assert rollout.episode_lengths == rollout.episode_returns == (last + 1).tolist()


def test_episodes_begin_anew_wherever_the_last_call_stopped():
    sampler = Sampler(two_counters(), 0)
    sampler.steps(STILL, None, 2)  # one environment has just ended, the other is in the middle
    first, second = sampler.episodes(STILL, None), sampler.episodes(STILL, None)
    for rollout in (first, second):
        np.testing.assert_array_equal(rollout.obs[0, :, 1], 0)
        assert rollout.episode_returns == [3, 6]
    assert np.all(second.obs[0, :, 0] > first.obs[0, :, 0])


def test_steps_after_episodes_go_on_with_the_episodes_that_have_begun():
    sampler = Sampler(side_by_side(Counter(3), Counter(5)), 0)
    sampler.episodes(STILL, None)
    rollout = sampler.steps(STILL, None, 3)
    assert rollout.obs[:, 0, 1].tolist() == [1, 2, 3, 0]
    assert rollout.episode_returns == [6] and rollout.episode_lengths == [3]


@each_call
def test_the_return_of_a_long_episode_is_not_rounded_to_float32(draw):
    rollout = draw(Sampler(side_by_side(Counter(1000, reward=lambda t: 0.1)), 0))
    assert rollout.episode_returns == [pytest.approx(100, rel=1e-12)]


# Seeds


@each_call
def test_nothing_is_asked_of_the_environments_before_the_first_rollout(draw):
    env = Counter(5)
    sampler = Sampler(side_by_side(env), 0)
    assert env.episode == 0
    draw(sampler)
    assert env.episode > 0


def history(sampler):
    policy, theta = CARTPOLE_POLICY, uniform(CARTPOLE_POLICY)
    return [sampler.steps(policy, theta, 30), sampler.episodes(policy, theta), sampler.steps(policy, theta, 10)]


@each_vectorization
def test_the_same_seeds_give_bitwise_the_same_experience(mode):
    for one, other in zip(history(Sampler(cartpoles(mode), 1, 2)), history(Sampler(cartpoles(mode), 1, 2))):
        assert_same(one, other)


@each_vectorization
def test_different_seeds_give_different_states_and_actions(mode):
    rollouts = [history(Sampler(cartpoles(mode), *seeds))[0] for seeds in [(0,), (1,), (0, 1), (1, 1)]]
    for one, other in combinations(rollouts, 2):
        assert np.all(one.obs[0] != other.obs[0])
        assert np.any(one.act != other.act)


# CartPole


@each_vectorization
def test_cartpole_s_rows_obey_its_physics_and_its_time_limit(mode):
    sampler = Sampler(cartpoles(mode, 6, max_episode_steps=14), 0)
    rollout = sampler.steps(CARTPOLE_POLICY, uniform(CARTPOLE_POLICY), 60)
    assert rollout.terminated.any() and rollout.truncated.any()
    one = gymnasium.make("CartPole-v1").unwrapped
    one.reset(seed=0)
    for t, i in zip(*np.nonzero(rollout.valid)):
        one.state, one.steps_beyond_terminated = rollout.obs[t, i].astype(float), None
        obs, rew, terminated, _, _ = one.step(rollout.act[t, i])
        np.testing.assert_allclose(rollout.obs[t + 1, i], obs, rtol=0, atol=1e-6)
        assert (rollout.rew[t, i], rollout.terminated[t, i]) == (rew, terminated)
    assert np.all(np.abs(rollout.obs[1:][~rollout.valid]) <= 0.05)  # where CartPole begins
    np.testing.assert_array_equal(rollout.valid[1:], ~rollout.done[:-1])
    assert rollout.episode_returns == rollout.episode_lengths
    truncated = rollout.truncated[rollout.done]
    assert all(length == 14 for length, at_limit in zip(rollout.episode_lengths, truncated) if at_limit)
    assert all(length < 14 for length, at_limit in zip(rollout.episode_lengths, truncated) if not at_limit)


# ahead


def test_a_rollout_names_the_parameters_that_drew_it():
    theta = uniform(CARTPOLE_POLICY)
    sampler = Sampler(cartpoles("vector_entry_point"), 1)
    assert sampler.steps(CARTPOLE_POLICY, theta, 2).theta is theta
    assert sampler.episodes(CARTPOLE_POLICY, theta).theta is theta


def test_a_rollout_drawn_ahead_is_drawn_by_the_theta_of_the_call_before():
    rng, envs = np.random.default_rng(0), lambda: cartpoles("vector_entry_point")
    thetas = [rng.standard_normal(CARTPOLE_POLICY.size).astype(np.float32) for _ in range(4)]
    plain, ahead, theta = Sampler(envs(), 1), AheadSampler([Sampler(envs(), 1)], 1), thetas[0].copy()
    for acting, learning in zip([thetas[0], *thetas], thetas):
        theta[...] = learning
        rollout = ahead.steps(CARTPOLE_POLICY, theta, 20)
        theta[...] = np.nan  # learning changes θ; the rollout being drawn must not notice
        assert_same(rollout, plain.steps(CARTPOLE_POLICY, acting, 20))


def test_samplers_that_draw_ahead_stand_side_by_side_and_each_draws_from_its_own_seeds():
    envs, theta = lambda: cartpoles("vector_entry_point"), uniform(CARTPOLE_POLICY)
    ahead = AheadSampler([Sampler(envs(), 1, k) for k in range(3)], 1)
    plain = [Sampler(envs(), 1, k) for k in range(3)]
    for _ in range(3):
        rollout = ahead.steps(CARTPOLE_POLICY, theta, 40)
        alone = [sampler.steps(CARTPOLE_POLICY, theta, 40) for sampler in plain]
        n = alone[0].act.shape[1]
        for k, part in enumerate(alone):
            for whole, own in zip(rollout[:6], part[:6]):
                np.testing.assert_array_equal(whole[:, k * n : (k + 1) * n], own)
        assert rollout.episode_returns == sum((part.episode_returns for part in alone), [])
        assert rollout.episode_lengths == sum((part.episode_lengths for part in alone), [])
        assert rollout.env_steps == sum(part.env_steps for part in alone) == rollout.valid.sum()


def test_the_learner_of_what_is_drawn_ahead_has_random_numbers_of_its_own():
    rngs = [AheadSampler([Sampler(two_counters(), 1)] * n, 1).rng for n in (1, 2)] + [Sampler(two_counters(), 1).rng]
    assert len({rng.random() for rng in rngs}) == 3


def test_rollouts_drawn_ahead_have_at_least_two_rows():
    sampler = AheadSampler([Sampler(side_by_side(Counter(n)), 1) for n in (2, 3)], 1)
    assert [sampler.steps(STILL, np.zeros(1), 2).rew.shape for _ in range(6)] == [(2, 2)] * 6
    with pytest.raises(ValueError, match="n_steps: expected at least 2 if rollouts are drawn ahead, got 1"):
        sampler.steps(STILL, np.zeros(1), 1)


def test_an_error_while_drawing_ahead_reaches_the_learner():
    sampler = AheadSampler([Sampler(two_counters(), 1)], 1)
    broken = SimpleNamespace(act=lambda theta, obs, rng: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampler.steps(broken, np.zeros(1), 2)


# play


def test_play_returns_undiscounted_returns_and_lengths_of_one_episode_each():
    envs = side_by_side(Counter(2), TimeLimit(Counter(), 5))
    returns, lengths = play(envs, lambda obs: np.zeros(len(obs), int), 2, 0)
    assert returns.tolist() == [3, 15]
    assert lengths.tolist() == [2, 5]


def test_play_begins_the_next_episode_where_one_has_ended_and_plays_all_to_their_end():
    envs = side_by_side(Counter(2), TimeLimit(Counter(), 5))
    for n in range(1, 8):
        returns, lengths = play(envs, lambda obs: np.zeros(len(obs), int), n, 0)
        assert returns.tolist() == [3, 15, 3, 3, 15, 3, 3][:n]  # in the order in which they began
        assert lengths.tolist() == [2, 5, 2, 2, 5, 2, 2][:n]


def test_play_hands_the_observations_to_act_and_its_actions_to_the_environments():
    envs, seen = side_by_side(Counter(3), Counter(3)), []
    play(envs, lambda obs: seen.append(obs.copy()) or obs[:, 1].astype(int), 2, 0)
    np.testing.assert_array_equal(seen, [[[1, t], [1, t]] for t in range(3)])
    assert [env.actions for env in envs.envs] == [[0, 1, 2], [0, 1, 2]]


@each_vectorization
def test_play_follows_from_its_seeds_alone(mode):
    lean = lambda obs: (obs[:, 2] > 0).astype(int)
    envs = cartpoles(mode, 5)
    returns, lengths = play(envs, lean, 5, 7, 1)
    np.testing.assert_array_equal(returns, lengths)
    np.testing.assert_array_equal(play(envs, lean, 5, 7, 1)[0], returns)  # the past of `envs` has no effect
    assert np.any(play(envs, lean, 5, 8, 1)[0] != returns)


class ClipsInPlace(Counter):
    """Changes the action that it receives."""

    action_space = Box(-1, 1, (1,))

    def step(self, action):
        action[...] = 0
        return super().step(0)


def test_an_environment_may_change_its_copy_of_the_action():
    policy = SimpleNamespace(act=lambda theta, obs, rng: np.ones((len(obs), 1), np.float32))
    rollout = Sampler(side_by_side(ClipsInPlace(2), ClipsInPlace(2)), 0).episodes(policy, None)
    np.testing.assert_array_equal(rollout.act, 1)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_play_refuses_another_autoreset_than_next_step(mode):
    with pytest.raises(ValueError, match="envs: expected NEXT_STEP autoreset, got .*" + mode.name):
        play(side_by_side(Counter(2), autoreset_mode=mode), lambda obs: np.zeros(len(obs), int), 1, 0)
