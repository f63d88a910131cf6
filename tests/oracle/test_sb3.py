"""GAE and n-step returns equal those of Stable-Baselines3's buffers. Random steps terminate, are truncated, or both.

Its buffers hold float32, and they have no reset rows between episodes. If a time limit ends an episode, its
`collect_rollouts` adds γ V(terminal observation) to the reward, and treats the step as terminal. In npg, the reward
stays, and V of the terminal observation is in the next row.
"""

# ruff: noqa: E402  the imports that need the bench extra come after its check

import numpy as np
import pytest

torch = pytest.importorskip("torch")
buffers = pytest.importorskip("stable_baselines3.common.buffers")

from gymnasium.spaces import Box

from npg import returns

GAMMA, T, N = 0.97, 60, 3
SPACE = Box(-np.inf, np.inf, (1,))


class Rows:
    """Random steps [T, N]: V(s_t), r_t, V of the next observation, and whether step t terminated or was truncated."""

    def __init__(self, seed, p_end=0.12):
        rng = np.random.default_rng(seed)
        self.val, self.rew, self.following = rng.standard_normal((3, T, N)).astype(np.float32)
        self.terminated, self.truncated = rng.random((2, T, N)) < p_end
        self.done = self.terminated | self.truncated
        self.following[:-1] = np.where(self.done[:-1], self.following[:-1], self.val[1:])
        self.only_truncated = self.truncated & ~self.terminated


def ours(weight, rows, *arguments):
    """weight(rew, terminated, truncated, val, …) [T, N] of the same steps, with a reset row after each end."""
    result = np.empty((T, N))
    for i in range(N):
        row = np.arange(T) + np.append(0, np.cumsum(rows.done[:-1, i]))  # the row of each step
        val, rew = np.zeros((row[-1] + 2, 1)), np.zeros((row[-1] + 1, 1))
        terminated, truncated = np.zeros((2, *rew.shape), bool)
        val[row, 0], val[row + 1, 0], rew[row, 0] = rows.val[:, i], rows.following[:, i], rows.rew[:, i]
        terminated[row, 0], truncated[row, 0] = rows.terminated[:, i], rows.truncated[:, i]
        result[:, i] = weight(rew, terminated, truncated, val, *arguments)[row, 0]
    return result


def assert_same(actual, expected):
    assert actual.shape == expected.shape and expected.dtype == np.float32
    assert np.max(np.abs(actual - expected)) <= 1e-6 * np.max(np.abs(expected))


def rollout_buffer(rows, lam):
    """A buffer, filled as in `OnPolicyAlgorithm.collect_rollouts`."""
    buffer = buffers.RolloutBuffer(T, SPACE, SPACE, "cpu", gae_lambda=lam, gamma=GAMMA, n_envs=N)
    starts, nothing = np.ones(N), np.zeros((N, 1))
    for t in range(T):
        rew = rows.rew[t] + GAMMA * rows.following[t] * rows.only_truncated[t]
        buffer.add(nothing, nothing, rew, starts, torch.tensor(rows.val[t]), torch.zeros(N))
        starts = rows.done[t]
    buffer.compute_returns_and_advantage(torch.tensor(rows.following[-1]), rows.done[-1])
    return buffer


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_end_in_every_way(seed):
    rows = Rows(seed)
    for ends in (rows.only_truncated, rows.terminated & ~rows.truncated, rows.terminated & rows.truncated):
        assert ends.any()
    assert np.any(rows.done[:-1] & rows.done[1:]) and not rows.done.all(axis=0).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae(lam, seed):
    rows = Rows(seed)
    assert_same(ours(returns.gae, rows, GAMMA, lam), rollout_buffer(rows, lam).advantages)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lam, n", [(0.0, 1), (1.0, T)])
def test_one_step_and_all_steps_of_the_rollout_buffer(lam, n, seed):
    rows = Rows(seed)
    assert_same(ours(returns.n_step_return, rows, GAMMA, n), rollout_buffer(rows, lam).returns)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1, 2, 3, 7, T, T + 5])
def test_n_steps_of_the_replay_buffer(n, seed):
    """V takes the place of the observations. So the buffer's `next_observations` are the V from which it bootstraps."""
    rows = Rows(seed)
    expected = np.empty((T, N), np.float32)
    for i in range(N):
        buffer = buffers.NStepReplayBuffer(T + n, SPACE, SPACE, "cpu", n_steps=n, gamma=GAMMA)
        for t in range(T):
            val, following, rew = (x[t, i : i + 1] for x in (rows.val, rows.following, rows.rew))
            info = {"TimeLimit.truncated": bool(rows.only_truncated[t, i])}
            buffer.add(val, following, np.zeros(1), rew, rows.done[t, i : i + 1], [info])
        drawn = buffer._get_samples(np.arange(T))
        bootstrap = drawn.discounts * (1 - drawn.dones) * drawn.next_observations
        expected[:, i] = (drawn.rewards + bootstrap).numpy()[:, 0]
    assert_same(ours(returns.n_step_return, rows, GAMMA, n), expected)
