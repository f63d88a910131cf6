"""REINFORCE steps along the gradient of 1/N Σ_i Σ_t (Ψ_t⁽ⁱ⁾ − b) log π_θ(a_t⁽ⁱ⁾|s_t⁽ⁱ⁾), for every Ψ and every b.

REINFORCE also learns one tiny task for each kind of continuous policy. Each task needs this kind of policy.
"""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from helpers import check_both

from npg import baselines
from npg.distributions import Categorical, Gaussian, GaussianMixture
from npg.gradcheck import complex_step_gradient
from npg.network import MLP
from npg.optimizers import SGD, Adam
from npg.policy import Critic, Policy
from npg.reinforce import WEIGHTS, reinforce
from npg.rollout import Sampler

N, GAMMA = 5, 0.9
POLICY, CRITIC = Policy(MLP((4, 5, 2)), Categorical(2)), Critic(MLP((4, 3, 1)))


class PaidByPosition(VectorWrapper):
    """Rewards depend on the cart's position, so no two are equal."""

    def step(self, act):
        obs, rew, *rest = self.env.step(act)
        return obs, rew * (1 + obs[:, 0]), *rest


def cartpole(*seeds, n=N, limit=13):
    """Short episodes of different lengths: some poles fall (terminated), some reach the limit (truncated)."""
    mode = "vector_entry_point"
    envs = gymnasium.make_vec("CartPole-v1", num_envs=n, vectorization_mode=mode, max_episode_steps=limit)
    return Sampler(PaidByPosition(envs), *seeds)


def random_theta(model, seed=1):
    return 0.7 * np.random.default_rng(seed).standard_normal(model.size)


def trajectories(rollout):
    """(obs, act, rew) of each environment's episode."""
    lengths = rollout.valid.sum(axis=0)
    return [(rollout.obs[:T, i], rollout.act[:T, i], rollout.rew[:T, i].tolist()) for i, T in enumerate(lengths)]


# Definitions of the weights and baselines, for each trajectory: psi[i][t], and b(psi, squares)[i][t] or [i].

PSI = {
    "total": lambda r: [sum(GAMMA**k * r[k] for k in range(len(r))) for t in range(len(r))],
    "reward-to-go": lambda r: [sum(GAMMA ** (k - t) * r[k] for k in range(t, len(r))) for t in range(len(r))],
    "discounted": lambda r: [sum(GAMMA**k * r[k] for k in range(t, len(r))) for t in range(len(r))],
}


def the_others(psi, squares):
    return [np.mean([psi[j][0] for j in range(N) if j != i]) for i in range(N)]


def least_variance(psi, squares):
    return [np.mean([s * p[0] for s, p in zip(squares, psi)]) / np.mean(squares)] * N


def each_time(psi, squares):
    return [[sum(p[t] for p in psi if t < len(p)) / N for t in range(len(own))] for own in psi]


BASELINES = {
    "none": lambda psi, squares: [0] * N,
    "constant": lambda psi, squares: [np.mean([p[0] for p in psi])] * N,
    "leave_one_out": the_others,
    "optimal_constant": least_variance,
    "time_dependent": each_time,
}


def surrogate(steps, adv, entropy_coef=0.0):
    """1/N Σ_i Σ_t [ Ψ log π(a|s) + β H(π(·|s)) ] as a function of θ, with fixed weights Ψ."""
    obs, act = (np.concatenate([step[k] for step in steps]) for k in (0, 1))

    def objective(theta):
        per_step = adv * POLICY.log_prob(theta, obs, act) + entropy_coef * POLICY.entropy(theta, obs)
        return np.sum(per_step) / N

    return objective


def step_taken(theta, alpha=0.5, **options):
    """Δθ/α of one update."""
    updated = theta.copy()
    next(reinforce(cartpole(5), POLICY, updated, SGD(updated, alpha), gamma=GAMMA, **options))
    return (updated - theta) / alpha


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_step_is_the_gradient_of_the_weighted_log_probability(weight, baseline):
    theta = random_theta(POLICY)
    steps = trajectories(cartpole(5).episodes(POLICY, theta))
    assert len({len(rew) for _, _, rew in steps}) > 2  # division by steps instead of N, or a row too many, would show
    psi = [PSI[weight](rew) for _, _, rew in steps]
    squares = [
        np.sum(complex_step_gradient(lambda theta: POLICY.log_prob(theta, obs, act).sum(), theta) ** 2)
        for obs, act, _ in steps
    ]
    adv = np.concatenate([np.subtract(p, b) for p, b in zip(psi, BASELINES[baseline](psi, squares))])
    step = step_taken(theta, weight=weight, baseline=getattr(baselines, baseline))
    check_both(surrogate(steps, adv), theta, step)


def test_the_state_baseline_is_the_value_as_it_was_before_the_update():
    theta, phi = random_theta(POLICY), random_theta(CRITIC, seed=2)
    steps = trajectories(cartpole(5).episodes(POLICY, theta))
    adv = np.concatenate([np.subtract(PSI["reward-to-go"](rew), CRITIC.value(phi, obs)) for obs, _, rew in steps])
    fitted = phi.copy()
    b = baselines.StateBaseline(CRITIC, fitted, SGD(fitted, 0.1), np.random.default_rng(0))
    check_both(surrogate(steps, adv), theta, step_taken(theta, baseline=b))
    assert np.all(fitted != phi)


def test_standardised_weights_and_an_entropy_bonus():
    theta = random_theta(POLICY)
    steps = trajectories(cartpole(5).episodes(POLICY, theta))
    psi = np.concatenate([PSI["reward-to-go"](rew) for _, _, rew in steps])
    step = step_taken(theta, standardise=True, entropy_coef=0.3)
    check_both(surrogate(steps, (psi - psi.mean()) / psi.std(), 0.3), theta, step)


def test_each_update_samples_from_the_policy_that_the_last_one_made():
    theta = random_theta(POLICY)
    sampler, expected = cartpole(5), theta.copy()
    for _, update in zip(range(3), reinforce(cartpole(5), POLICY, theta, SGD(theta, 0.5))):
        rollout = sampler.episodes(POLICY, expected)
        np.testing.assert_array_equal(update["rollout"].act, rollout.act)
        expected[...] = theta


# Learning. Each step is one throw at a hidden target. A policy does not remember its earlier throws.

RADIUS, LIMIT = 0.3, 10


class Throws(VectorEnv):
    """Each throw costs 1. An episode ends with a throw within RADIUS of the target, or with throw number LIMIT.

    targets [kinds, n]: an episode draws a kind of place, and then one of its n targets, all equally likely. The
    observation shows the kind (one-hot), but not the target.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs, targets):
        self.num_envs, self.targets = num_envs, np.asarray(targets)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.over = np.ones(self.num_envs, bool)
        self.kind, self.target, self.throws = np.zeros((3, self.num_envs), int)
        return self.step(np.zeros((self.num_envs, 1)))[0], {}

    def step(self, act):
        kinds, n = self.targets.shape
        kind, place = self.rng.integers([[kinds], [n]], size=(2, self.num_envs))
        playing = ~self.over
        self.kind = np.where(playing, self.kind, kind)
        self.target = np.where(playing, self.target, self.targets[kind, place])
        self.throws = np.where(playing, self.throws + 1, 0)
        hit = playing & (abs(act[:, 0] - self.target) < RADIUS)
        gave_up = playing & ~hit & (self.throws == LIMIT)
        self.over = hit | gave_up
        return np.eye(kinds, dtype=np.float32)[self.kind], np.where(playing, -1.0, 0.0), hit, gave_up, {}


def hit_probability(distribution, params, targets):
    """P(|a − c| < RADIUS) for each target c, by integrating the density."""
    width = 0.002
    grid = np.arange(-8, 8, width)
    cumulated = np.cumsum(np.exp(distribution.log_prob(params, grid[:, None]))) * width
    return np.interp(targets + RADIUS, grid, cumulated) - np.interp(targets - RADIUS, grid, cumulated)


def expected_throws(distribution, params, targets):
    """Mean over the targets of Σ_{k<LIMIT} (1 − p)ᵏ: throw k + 1 is made if all k throws before it missed."""
    miss = 1 - hit_probability(distribution, params, targets)
    return np.mean(np.sum(miss[:, None] ** np.arange(LIMIT), axis=1))


def best_sigma(targets):
    """(throws, σ) of the best σ that all kinds share; each kind has its best μ. `throws` is the mean over kinds."""

    def throws(std):
        params = [np.array([mean, np.log(std)]) for mean in np.linspace(0, 2, 11)]
        return np.mean([min(expected_throws(Gaussian(1), p, c) for p in params) for c in targets])

    return min((throws(std), std) for std in np.geomspace(0.05, 4, 40))


def learn(policy, targets, seed):
    """The distribution's parameters in each kind of place [kinds, n_params] after 100 updates of 128 episodes."""
    theta = policy.init(np.random.default_rng(seed))
    updates = reinforce(
        Sampler(Throws(128, targets), seed), policy, theta, Adam(theta, 0.05), baseline=baselines.time_dependent,
        standardise=True,
    )  # fmt: skip
    for _ in range(100):
        next(updates)
    return policy.params(theta.astype(np.float64), np.eye(len(targets)))[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_learned_sigma_shrinks_where_precision_pays(seed):
    targets = np.array([[1.0]])
    (fixed,) = learn(Policy(MLP((1, 1)), Gaussian(1), learn_tail=False), targets, seed)
    (learned,) = learn(Policy(MLP((1, 1)), Gaussian(1)), targets, seed)
    assert fixed[1] == 0 and learned[1] < np.log(0.1)  # log σ was 0 at the start of both
    assert abs(fixed[0] - 1) < 0.2 and abs(learned[0] - 1) < 0.2  # and both have learned where to aim
    throws = [expected_throws(Gaussian(1), params, targets[0]) for params in (learned, fixed)]
    assert throws[0] < 1.05 and throws[1] > 3.9


@pytest.mark.parametrize("seed", range(3))
def test_a_state_dependent_sigma_is_narrow_to_aim_and_wide_to_search(seed):
    targets = np.stack([np.zeros(41), np.linspace(-2, 2, 41)])
    params = learn(Policy(MLP((2, 2)), Gaussian(1)), targets, seed)
    aim, search = np.exp(params[:, 1])
    _, best_search = best_sigma(targets[1:])
    assert aim < 0.15 and 0.75 < search / best_search < 1.33
    throws = np.mean([expected_throws(Gaussian(1), *kind) for kind in zip(params, targets)])
    best_of_one_sigma, _ = best_sigma(targets)
    assert throws < best_of_one_sigma - 0.7


@pytest.mark.parametrize("seed", range(3))
def test_a_mixture_throws_at_both_of_two_likely_targets(seed):
    targets, mixture = np.array([[-2.0, 2.0]]), GaussianMixture(1, 2)
    (params,) = learn(Policy(MLP((1, 2)), mixture, tail=[-1, 1, 0, 0]), targets, seed)
    assert np.all(hit_probability(mixture, params, targets[0]) > 0.4)
    best_of_one_bump, _ = best_sigma(targets)
    assert best_of_one_bump > 5.4  # it aims at one target (1 or LIMIT throws), or between both and mostly misses
    assert expected_throws(mixture, params, targets[0]) < 2.2


def test_an_unknown_weight_is_refused_before_anything_is_sampled():
    with pytest.raises(ValueError, match="weight: expected one of total, .* got 'rtg'"):
        next(reinforce(None, None, None, None, weight="rtg"))
