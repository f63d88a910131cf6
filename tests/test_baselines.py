"""Baselines computed by hand; expectations over all trajectories of tiny problems; the fit of learned baselines."""

from itertools import product

import numpy as np
import pytest
from helpers import check_both

from npg import baselines, returns
from npg.distributions import Categorical
from npg.network import MLP
from npg.optimizers import SGD
from npg.policy import Critic, Policy
from npg.rollout import Rollout

# Two problems whose state is the time: {actions of a trajectory: its rewards}
BANDIT = {(0,): (1.0,), (1,): (3.0,)}
TWO_STEPS = {(0,): (1.0,), (1, 0): (0.5, 2.0), (1, 1): (0.5, -1.0)}  # if the first action is 0, the episode ends
POLICY = Policy(MLP((3, 2)), Categorical(2))
THETA = np.random.default_rng(0).normal(size=POLICY.size)


def rollout_of(obs, act, rew, terminated, valid, truncated=False):
    truncated = np.broadcast_to(truncated, rew.shape)
    return Rollout(obs, act, rew, terminated, truncated, valid, [], [], int(valid.sum()))


def sampled(problem, trajectories):
    """The rollout of these trajectories, side by side. Each trajectory is a key of the problem."""
    T, N = max(map(len, trajectories)), len(trajectories)
    act, rew = np.ones((T, N), int), np.zeros((T, N))
    valid, terminated = np.zeros((T, N), bool), np.zeros((T, N), bool)
    for i, actions in enumerate(trajectories):
        k = len(actions)
        act[:k, i], rew[:k, i], valid[:k, i], terminated[k - 1, i] = actions, problem[actions], True, True
    obs = np.repeat(np.eye(3)[: T + 1, None], N, axis=1)
    return rollout_of(obs, act, rew, terminated, valid)


def total(rollout):
    return returns.trajectory_return(rollout.rew, rollout.done, rollout.valid)


def reward_to_go(rollout):
    return returns.reward_to_go(rollout.rew, rollout.done)


def estimate(rollout, weight, baseline):
    """The lecture's ĝ."""
    psi = weight(rollout)
    obs, act, adv = rollout.flatten(psi - baseline(POLICY, THETA, rollout, psi))
    return POLICY.grad_log_prob(THETA, obs, act, adv) / psi.shape[1]


def probability(problem, actions, theta):
    obs, act = sampled(problem, [actions]).flatten()
    return np.exp(POLICY.log_prob(theta, obs, act).sum())


def mean_estimate(problem, N, weight, new_baseline):
    """E[ĝ] over all samples of N trajectories."""
    return sum(
        np.prod([probability(problem, actions, THETA) for actions in sample])
        * estimate(sampled(problem, sample), weight, new_baseline())
        for sample in product(problem, repeat=N)
    )


def gradient(problem):
    """∇U = Σ_τ P(τ) R(τ) ∇log P(τ)."""
    return mean_estimate(problem, 1, total, lambda: baselines.none)


def new_critic(sizes=(3, 1), seed=1):
    critic = Critic(MLP(sizes))
    return critic, np.random.default_rng(seed).normal(size=critic.size)


def new_state_baseline(epochs=3, batch_size=512):
    critic, phi = new_critic()
    return baselines.StateBaseline(critic, phi, SGD(phi, 0.5), np.random.default_rng(2), epochs, batch_size)


class Recorder:
    """An optimizer that keeps every (φ, dφ) it was given."""

    def __init__(self):
        self.seen = []

    def step(self, phi, dphi):
        self.seen.append((phi.copy(), dphi.copy()))
        phi += 0.1 * dphi


# Expectations

each_problem = pytest.mark.parametrize("problem", [BANDIT, TWO_STEPS], ids=["bandit", "two steps"])
each_weight = pytest.mark.parametrize("weight", [total, reward_to_go])
each_N = pytest.mark.parametrize("N", [2, 3])


@each_problem
def test_the_enumerated_gradient_is_the_gradient_of_the_expected_return(problem):
    def U(theta):
        return sum(probability(problem, actions, theta) * sum(rewards) for actions, rewards in problem.items())

    check_both(U, THETA, gradient(problem))


@each_problem
@each_weight
@each_N
@pytest.mark.parametrize("new_baseline", [lambda: baselines.leave_one_out, new_state_baseline, lambda: baselines.none])
def test_a_baseline_independent_of_the_trajectory_leaves_the_mean_exactly(problem, weight, N, new_baseline):
    mean = mean_estimate(problem, N, weight, new_baseline)
    np.testing.assert_allclose(mean, gradient(problem), rtol=0, atol=1e-14)


@each_problem
@each_weight
@each_N
@pytest.mark.parametrize("baseline", [baselines.constant, baselines.time_dependent])
def test_a_mean_of_the_same_N_trajectories_shrinks_the_mean_to_exactly_N_minus_1_over_N(problem, weight, N, baseline):
    mean = mean_estimate(problem, N, weight, lambda: baseline)
    np.testing.assert_allclose(mean, (N - 1) / N * gradient(problem), rtol=0, atol=1e-14)


# By hand. The second trajectory ends after its first step, so its number in row 1 must not count.

PSI = np.array([[3.0, 5.0], [2.0, 900.0]])
ENDED = sampled(TWO_STEPS, [(1, 0), (0,)])


def test_by_hand():
    assert np.all(baselines.none(POLICY, THETA, ENDED, PSI) == 0)
    assert baselines.constant(POLICY, THETA, ENDED, PSI) == 4
    np.testing.assert_array_equal(baselines.time_dependent(POLICY, THETA, ENDED, PSI), [[4], [1]])
    three = np.array([[1.0, 2.0, 6.0], [7.0, 8.0, 9.0]])
    np.testing.assert_array_equal(baselines.leave_one_out(POLICY, THETA, None, three), [4, 3.5, 1.5])


def test_leave_one_out_of_one_trajectory_is_refused():
    with pytest.raises(ValueError, match="psi: .* at least 2 trajectories, got 1"):
        baselines.leave_one_out(POLICY, THETA, ENDED, PSI[:, :1])


@pytest.mark.parametrize(
    "baseline",
    [
        baselines.none,
        baselines.constant,
        baselines.leave_one_out,
        baselines.optimal_constant,
        baselines.time_dependent,
        new_state_baseline(),
    ],
)
def test_each_baseline_broadcasts_to_the_weights_and_leaves_them_alone(baseline):
    psi = PSI.copy()
    assert np.broadcast_shapes(np.shape(baseline(POLICY, THETA, ENDED, psi)), psi.shape) == psi.shape
    np.testing.assert_array_equal(psi, PSI)


# The optimal constant

ONE_IN_FOUR = np.zeros(POLICY.size)
ONE_IN_FOUR[-1] = np.log(3)  # π(1) = ¾ in every state
REPRESENTATIVE = [(0,), (1,), (1,), (1,)]  # each arm of the bandit as often as its probability says


def optimal_constant(theta, problem, trajectories):
    rollout = sampled(problem, trajectories)
    return baselines.optimal_constant(POLICY, theta, rollout, reward_to_go(rollout))


def weighted_scores(theta, problem, trajectories, b):
    """∇log P(τ) (R(τ) − b) of each trajectory [N, size]."""
    return np.array([
        POLICY.grad_log_prob(theta, *sampled(problem, [actions]).flatten(), sum(problem[actions]) - b)
        for actions in trajectories
    ])


def test_optimal_constant_by_hand():
    """‖g‖² is 9/4 for arm 0 and 1/4 for arm 1: b = (9/4 · 1 + 3/4 · 3) / (9/4 + 3/4)."""
    assert optimal_constant(ONE_IN_FOUR, BANDIT, REPRESENTATIVE) == pytest.approx(1.5, abs=1e-14)


def test_optimal_constant_has_the_least_variance():
    def variance(b):
        return np.sum(np.var(weighted_scores(ONE_IN_FOUR, BANDIT, REPRESENTATIVE, b), axis=0))

    b, mean_return = optimal_constant(ONE_IN_FOUR, BANDIT, REPRESENTATIVE), 2.5
    assert variance(b) < min(variance(b - 0.01), variance(b + 0.01), variance(mean_return))
    assert variance(b + 1) == pytest.approx(variance(b - 1), rel=1e-12)  # b is at the minimum of a parabola


def test_optimal_constant_counts_each_trajectory_by_its_whole_score_and_return():
    """In any sample, b minimises the mean of ‖g (R − b)‖². It takes E[g] as 0, whatever the sample's mean of g is."""
    trajectories = [(0,), (1, 0), (1, 1), (1, 1)]
    square = lambda b: np.sum(weighted_scores(THETA, TWO_STEPS, trajectories, b) ** 2)
    b = optimal_constant(THETA, TWO_STEPS, trajectories)
    assert square(b + 1) == pytest.approx(square(b - 1), rel=1e-12)


def test_optimal_constant_of_a_policy_without_score_is_0():
    certain = np.zeros(POLICY.size)
    certain[-1] = 1e4
    assert optimal_constant(certain, BANDIT, [(1,), (1,)]) == 0


# The state-dependent baseline


def test_state_baseline_returns_the_values_from_before_the_fit_and_then_moves_toward_the_weights():
    baseline = new_state_baseline()
    critic, phi_before = baseline.critic, baseline.phi.copy()
    np.testing.assert_array_equal(baseline(POLICY, THETA, ENDED, PSI), critic.value(phi_before, ENDED.obs[:-1]))
    obs, _, target = ENDED.flatten(PSI)
    assert critic.loss(baseline.phi, obs, target) < critic.loss(phi_before, obs, target)
    phi_after = baseline.phi.copy()
    np.testing.assert_array_equal(baseline(POLICY, THETA, ENDED, PSI), critic.value(phi_after, ENDED.obs[:-1]))


def test_state_baseline_learns_the_mean_weight_of_each_state():
    baseline = new_state_baseline(epochs=300)
    baseline(POLICY, THETA, ENDED, PSI)
    b = baseline(POLICY, THETA, ENDED, PSI)
    np.testing.assert_allclose(b, [[4, 4], [2, 2]], rtol=0, atol=1e-10)


def test_state_baseline_learns_nothing_from_rows_after_an_episode():
    one, other = new_state_baseline(), new_state_baseline()
    one(POLICY, THETA, ENDED, PSI)
    other(POLICY, THETA, ENDED, np.where(ENDED.valid, PSI, -7))
    np.testing.assert_array_equal(one.phi, other.phi)


# Monte-Carlo regression


def test_fit_value_ascends_minus_half_the_mean_squared_error():
    rng = np.random.default_rng(3)
    critic, phi = new_critic((3, 5, 1))
    obs, target, optimizer = rng.normal(size=(8, 3)), rng.normal(size=8), Recorder()
    baselines.fit_value(critic, phi, optimizer, obs, target, rng, epochs=2, batch_size=8)
    assert len(optimizer.seen) == 2
    for phi, dphi in optimizer.seen:
        check_both(lambda phi: -0.5 * np.mean((critic.value(phi, obs) - target) ** 2), phi, dphi)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_fit_value_finds_values_that_the_critic_can_represent(batch_size):
    rng = np.random.default_rng(4)
    critic, phi = new_critic()
    obs = rng.normal(size=(12, 3))
    target = obs @ [1.0, -2.0, 0.5] + 3
    baselines.fit_value(critic, phi, SGD(phi, 0.1), obs, target, rng, epochs=600, batch_size=batch_size)
    np.testing.assert_allclose(phi, [1, -2, 0.5, 3], rtol=0, atol=1e-6)


# Fitted V iteration, on a chain of states 0, 1, 2 and the terminal 3

GAMMA, PROXIMAL = 0.5, 0.1
TRANSITIONS = [  # s, r, s', terminated, truncated, valid
    (0, 1.0, 1, False, False, True),
    (0, 0.0, 2, False, False, True),
    (1, 2.0, 2, False, True, True),
    (1, 99.0, 0, False, False, False),  # a reset row
    (2, -1.0, 0, False, False, True),
    (2, 3.0, 3, True, False, True),
]


def chain():
    s, rew, following, terminated, truncated, valid = (np.array([x]) for x in zip(*TRANSITIONS))
    obs = np.eye(4)[np.concatenate([s, following])]
    return rollout_of(obs, np.zeros_like(s), rew, terminated, valid, truncated)


def fixed_target(critic, phi):
    """s and r + γ V(s') of the valid transitions."""
    obs, target = [], []
    for s, r, following, terminated, _, valid in TRANSITIONS:
        if valid:
            obs.append(np.eye(4)[s])
            target.append(r if terminated else r + GAMMA * critic.value(phi, np.eye(4)[following]))
    return np.array(obs), np.array(target)


def test_fitted_v_iteration_finds_each_proximal_argmin_with_its_target_held_fixed():
    """A linear critic, so each argmin solves (XᵀX/B + λ) φ = Xᵀy/B + λ φ_l."""
    critic, phi = new_critic((4, 1))
    expected = phi.copy()
    for _ in range(3):
        obs, y = fixed_target(critic, expected)
        X = np.column_stack([obs, np.ones(len(obs))])
        A = X.T @ X / len(X) + PROXIMAL * np.eye(critic.size)
        expected = np.linalg.solve(A, X.T @ y / len(X) + PROXIMAL * expected)
    baselines.fitted_v_iteration(critic, phi, SGD(phi, 1.0), chain(), GAMMA, PROXIMAL, iterations=3, steps=400)
    np.testing.assert_allclose(phi, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("proximal", [0.0, PROXIMAL])
def test_the_fixed_point_of_fitted_v_iteration_is_the_value_of_the_policy(proximal):
    P = np.array([[0, 0.5, 0.5], [0, 0, 1], [0.5, 0, 0]])  # the terminal state is worth 0
    V = np.linalg.solve(np.eye(3) - GAMMA * P, [0.5, 2, 1])
    critic, phi = new_critic((4, 1))
    baselines.fitted_v_iteration(critic, phi, SGD(phi, 1.0), chain(), GAMMA, proximal, iterations=200, steps=20)
    np.testing.assert_allclose(critic.value(phi, np.eye(4)[:3]), V, rtol=0, atol=1e-12)


@pytest.mark.parametrize("proximal", [0.0, PROXIMAL])
def test_each_step_of_fitted_v_iteration_ascends_minus_half_the_proximal_objective(proximal):
    critic, phi = new_critic((4, 5, 1))
    optimizer = Recorder()
    baselines.fitted_v_iteration(critic, phi, optimizer, chain(), GAMMA, proximal, iterations=2, steps=3)
    assert len(optimizer.seen) == 6
    for k, (phi, dphi) in enumerate(optimizer.seen):
        phi_old = optimizer.seen[k - k % 3][0]
        obs, y = fixed_target(critic, phi_old)

        def objective(phi):
            return np.mean((y - critic.value(phi, obs)) ** 2) + proximal * np.sum((phi - phi_old) ** 2)

        check_both(lambda phi: -0.5 * objective(phi), phi, dphi)


# Minibatches


@pytest.mark.parametrize("n, size, n_batches", [(10, 5, 2), (11, 5, 2), (13, 5, 3), (3, 5, 1), (1, 5, 1), (7, 1, 7)])
def test_minibatches_are_a_partition_in_each_epoch(n, size, n_batches):
    batches = list(baselines.minibatches(n, size, 3, np.random.default_rng(0)))
    assert len(batches) == 3 * n_batches
    for epoch in range(3):
        parts = batches[epoch * n_batches : (epoch + 1) * n_batches]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_no_step_has_no_minibatch_and_a_size_below_one_is_refused():
    assert list(baselines.minibatches(0, 4, 3, np.random.default_rng(0))) == []
    with pytest.raises(ValueError, match="size: expected at least 1, got 0"):
        next(baselines.minibatches(8, 0, 3, np.random.default_rng(0)))


def test_minibatches_are_shuffled_anew_in_each_epoch_and_follow_from_the_generator_alone():
    draw = lambda seed: np.concatenate(list(baselines.minibatches(20, 6, 2, np.random.default_rng(seed))))
    first, second = draw(0)[:20], draw(0)[20:]
    assert np.any(first != np.arange(20)) and np.any(first != second)
    np.testing.assert_array_equal(draw(0), draw(0))
    assert np.any(draw(0) != draw(1))
