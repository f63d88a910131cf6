"""The lecture's claims about estimators. Each test proves a claim with a sum over every trajectory of a small MDP.

"Exact" means that every component agrees to 1e-12 in float64, in an MDP whose gradients are of order 1.
"""

import gymnasium
import numpy as np
import pytest

from npg import baselines, returns
from npg.distributions import Bernoulli, Categorical
from npg.exploration import Exploring
from npg.gradcheck import check_gradient
from npg.network import MLP
from npg.optimizers import SGD
from npg.policy import Critic, Policy
from npg.reinforce import WEIGHTS
from npg.replay import plain_surrogate, plain_weight
from npg.rollout import Sampler
from npg.tabular import FiniteMDP, FiniteMDPVectorEnv


def exactly(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def differs(actual, expected=0.0):
    assert np.linalg.norm(actual - expected) > 1e-3  # 10⁹ times the tolerance of `exactly`


def random_mdp(n_states=3, n_actions=2, horizon=3, terminal=None, branches=None, seed=0):
    """Dirichlet dynamics with `branches` possible successors each, and rewards in (−2, 2)."""
    rng = np.random.default_rng(seed)
    P = rng.dirichlet(np.ones(n_states), size=(n_states, n_actions))
    if branches is not None:
        P[rng.random(P.shape).argsort(axis=-1) >= branches] = 0
        P /= P.sum(axis=-1, keepdims=True)
    rho0 = np.append(rng.dirichlet(np.ones(n_states - 1)), 0)
    return FiniteMDP(P, rng.uniform(-2, 2, (n_states, n_actions)), rho0, horizon, terminal)


def softmax_policy(mdp, seed=1):
    policy = Policy(MLP((mdp.n_states, 3, mdp.n_actions)), Categorical(mdp.n_actions))
    return policy, np.random.default_rng(seed).normal(size=policy.size)


def test_tables_that_end_before_the_horizon_are_read_to_their_end():
    mdp = random_mdp(horizon=4)
    for shape in ((4, mdp.n_states), (4, mdp.n_states, mdp.n_actions)):
        table = np.random.default_rng(0).normal(size=shape)
        for n in (1, 2, 4):
            np.testing.assert_array_equal(mdp.along(table[:n]), mdp.along(table)[:n])


MDPS = {
    "fixed length": random_mdp(),
    "early ends": random_mdp(horizon=4, terminal=[False, False, True], seed=3),
}
FEW = {  # few trajectories, so that tests can enumerate all groups of two or three
    "fixed length": random_mdp(2, horizon=2, seed=2),
    "early ends": random_mdp(terminal=[False, False, True], branches=1, seed=15),
}


@pytest.fixture(params=MDPS)
def mdp(request):
    return MDPS[request.param]


@pytest.fixture(params=FEW)
def few(request):
    return FEW[request.param]


def weight(name, gamma=1.0):
    return lambda rollout: WEIGHTS[name](rollout, gamma)


# --- the enumeration and U -------------------------------------------------------------------------------------------


def test_a_coin_flip_mdp_by_hand():
    """Episodes begin in state 0. Action 0 stays there, with reward 1. Action 1 leads to either state: 1/2 each."""
    P = [[[1, 0], [0.5, 0.5]], [[0, 1], [0, 1]]]
    mdp = FiniteMDP(P, [[1, 0], [5, 5]], [1, 0], horizon=2)
    policy = Policy(MLP((2, 2)), Categorical(2))
    theta = np.zeros(policy.size)  # every action has probability 1/2
    # From state 0: 0→0 by a=0 (1/2), 0→0 by a=1 (1/4), 0→1 by a=1 (1/4). From state 1: 1→1 by each action (1/2)
    expected = {
        ((0, 0, 0), (0, 0)): 1 / 4, ((0, 0, 0), (0, 1)): 1 / 8, ((0, 0, 1), (0, 1)): 1 / 8,
        ((0, 0, 0), (1, 0)): 1 / 8, ((0, 0, 0), (1, 1)): 1 / 16, ((0, 0, 1), (1, 1)): 1 / 16,
        ((0, 1, 1), (1, 0)): 1 / 8, ((0, 1, 1), (1, 1)): 1 / 8,
    }
    prob = mdp.prob(policy, theta)
    assert {(tuple(s), tuple(a)): p for s, a, p in zip(mdp.states.tolist(), mdp.actions.tolist(), prob)} == expected
    # V_1 = [1/2, 5];  V_0(0) = 1/2 (1 + 1/2) + 1/2 (0 + (1/2 + 5) / 2)
    exactly(mdp.objective(policy, theta), 0.75 + 1.375)
    exactly(mdp.objective(policy, theta, gamma=0.5), 0.5 * (1 + 0.25) + 0.5 * 0.5 * 2.75)


def test_the_trajectories_are_distinct_possible_and_have_total_probability_one(mdp):
    policy, theta = softmax_policy(mdp)
    assert len(np.unique(np.hstack([mdp.states, mdp.actions]), axis=0)) == len(mdp.states)
    assert np.all(mdp.dynamics > 0)
    exactly(mdp.prob(policy, theta).sum(), 1)


def test_every_possible_trajectory_is_there():
    assert len(MDPS["fixed length"].states) == 2 * (2 * 3) ** 3
    # From each of two states, 2 actions lead to 2 states that go on, or 2 actions to the terminal state
    assert len(MDPS["early ends"].states) == 2 * (4**4 + 2 * (1 + 4 + 4**2 + 4**3))


def test_u_by_enumeration_is_u_by_bellmans_equations(mdp):
    policy, theta = softmax_policy(mdp)
    for gamma in (1.0, 0.7):
        _, V = mdp.values(policy, theta, gamma)
        exactly(mdp.objective(policy, theta, gamma), mdp.rho0 @ V[0])


def test_occupancy_is_the_probability_of_each_step(mdp):
    policy, theta = softmax_policy(mdp)
    prob, d = mdp.prob(policy, theta), mdp.occupancy(policy, theta)
    for t, s, a in np.ndindex(d.shape):
        on = (mdp.states[:, t] == s) & (mdp.actions[:, t] == a) & mdp.valid[:, t]
        exactly(d[t, s, a], prob[on].sum())


def test_trajectories_end_at_terminal_states_and_at_the_horizon():
    mdp = MDPS["early ends"]
    rollout = mdp.rollout()
    ends = mdp.terminal[mdp.states[:, 1:].T]
    ends[-1] = True
    np.testing.assert_array_equal(rollout.terminated, ends & rollout.valid)
    assert np.all(rollout.terminated.sum(axis=0) == 1)
    assert not rollout.truncated.any()
    assert set(rollout.episode_lengths) == {1, 2, 3, 4}
    np.testing.assert_array_equal(rollout.episode_lengths, 1 + rollout.terminated.argmax(axis=0))
    assert rollout.env_steps == sum(rollout.episode_lengths) == rollout.valid.sum()
    walks = zip(mdp.states, mdp.actions)
    returns_by_hand = [sum(mdp.R[s, a] for s, a in zip(*walk) if not mdp.terminal[s]) for walk in walks]
    np.testing.assert_allclose(rollout.episode_returns, returns_by_hand, rtol=0, atol=1e-12)
    assert np.all(rollout.rew[~rollout.valid] == 0)


# --- ∇U --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_three_gradients_of_u_agree(mdp, gamma):
    """The likelihood ratio, the policy gradient theorem, and the numerical derivative of U."""
    policy, theta = softmax_policy(mdp)
    gradient = mdp.gradient(policy, theta, gamma)
    exactly(gradient, mdp.policy_gradient_theorem(policy, theta, gamma))
    check_gradient(lambda theta: mdp.objective(policy, theta, gamma), theta, gradient)
    check_gradient(lambda theta: mdp.objective(policy, theta, gamma), theta, gradient, "complex")
    check_gradient(lambda theta: mdp.rho0 @ mdp.values(policy, theta, gamma)[1][0], theta, gradient, "complex")


def test_the_dynamics_drop_out_of_the_score(mdp):
    """∇ log P(τ), with the dynamics in P, is the sum of the policy's scores."""
    policy, theta = softmax_policy(mdp)
    score = mdp.estimates(policy, theta, 1.0)
    check_gradient(lambda theta: np.log(mdp.prob(policy, theta)), theta, score, "complex")


def test_the_scores_mean_is_zero(mdp):
    policy, theta = softmax_policy(mdp)
    exactly(mdp.prob(policy, theta) @ mdp.estimates(policy, theta, 1.0), 0)
    pi = np.exp(mdp.log_policy(policy, theta))
    exactly(np.einsum("sa,san->sn", pi, mdp.scores(policy, theta)), 0)


def test_the_product_of_gradients_is_not_the_gradient_of_the_product():
    """The slides' dead end: Π_t ∇π differs from ∇ Π_t π in every component."""
    mdp = MDPS["fixed length"]
    policy, theta = softmax_policy(mdp)
    grad_pi = np.exp(mdp.log_policy(policy, theta))[..., None] * mdp.scores(policy, theta)
    product_of_gradients = mdp.dynamics[:, None] * grad_pi[mdp.states[:, :-1], mdp.actions].prod(axis=1)
    gradient_of_product = mdp.prob(policy, theta)[:, None] * mdp.estimates(policy, theta, 1.0)
    ret = mdp.rewards.sum(axis=1)
    exactly(ret @ gradient_of_product, mdp.gradient(policy, theta))
    differs(ret @ product_of_gradients, mdp.gradient(policy, theta))


# --- weights and baselines with mean ∇U ------------------------------------------------------------------------------


@pytest.mark.parametrize("name, gamma", [("total", 1), ("reward-to-go", 1), ("discounted", 1), ("total", 0.7),
                                         ("discounted", 0.7)])
def test_every_weight_of_reinforce_is_unbiased(mdp, name, gamma):
    policy, theta = softmax_policy(mdp)
    exactly(mdp.moments(policy, theta, weight(name, gamma)(mdp.rollout()), gamma=gamma).bias, 0)


def test_a_bernoulli_policy_is_unbiased_too(mdp):
    policy = Policy(MLP((mdp.n_states, 1)), Bernoulli())
    theta = np.random.default_rng(0).normal(size=policy.size)
    moments = mdp.moments(policy, theta, weight("reward-to-go")(mdp.rollout()))
    exactly(moments.bias, 0)
    check_gradient(lambda theta: mdp.objective(policy, theta), theta, moments.mean, "complex")


def test_dropping_gamma_to_the_t_biases_the_gradient_of_the_discounted_objective(mdp):
    """Σ_t ∇log π Σ_{k≥t} γ^{k−t} r_k has mean Σ_t γ^{−t} (term t of ∇U_γ), the gradient of no discounted U."""
    policy, theta = softmax_policy(mdp)
    gamma = 0.7
    moments = mdp.moments(policy, theta, weight("reward-to-go", gamma)(mdp.rollout()), gamma=gamma)
    Q, _ = mdp.values(policy, theta, gamma)
    exactly(moments.mean, np.einsum("tsa,tsa,san->n", mdp.occupancy(policy, theta), Q, mdp.scores(policy, theta)))
    differs(moments.bias)


def test_exact_q_and_exact_advantage_are_unbiased_weights(mdp):
    policy, theta = softmax_policy(mdp)
    gamma = 0.7
    Q, V = mdp.values(policy, theta, gamma)
    discount = gamma ** np.arange(mdp.horizon)[:, None]
    exactly(mdp.moments(policy, theta, discount * mdp.along(Q), gamma=gamma).bias, 0)
    exactly(mdp.moments(policy, theta, discount * (mdp.along(Q) - mdp.along(V[:-1])), gamma=gamma).bias, 0)


def test_q_is_the_mean_return_from_a_state_and_action_on(mdp):
    policy, theta = softmax_policy(mdp)
    Q, _ = mdp.values(policy, theta, gamma=0.7)
    prob, ret = mdp.prob(policy, theta), weight("reward-to-go", 0.7)(mdp.rollout())
    for t, s, a in np.ndindex(Q.shape):
        on = (mdp.states[:, t] == s) & (mdp.actions[:, t] == a) & mdp.valid[:, t]
        if on.any():
            exactly(Q[t, s, a], prob[on] @ ret[t, on] / prob[on].sum())


def test_any_baseline_of_time_and_state_leaves_the_mean(mdp):
    policy, theta = softmax_policy(mdp)
    rng = np.random.default_rng(5)
    ret = weight("reward-to-go")(mdp.rollout())
    for b in (
        3.0,
        rng.normal(size=(mdp.horizon, 1)),
        mdp.along(np.tile(rng.normal(size=mdp.n_states), (mdp.horizon, 1))),
        mdp.along(rng.normal(size=(mdp.horizon, mdp.n_states))),
    ):
        exactly(mdp.moments(policy, theta, ret - b).bias, 0)


def test_a_baseline_that_knows_the_action_changes_the_mean(mdp):
    policy, theta = softmax_policy(mdp)
    b = mdp.along(np.random.default_rng(5).normal(size=(mdp.horizon, mdp.n_states, mdp.n_actions)))
    differs(mdp.moments(policy, theta, weight("reward-to-go")(mdp.rollout()) - b).bias)


def test_the_regressed_state_baseline_leaves_the_mean_however_badly_it_is_trained(mdp):
    policy, theta = softmax_policy(mdp)
    critic = Critic(MLP((mdp.n_states, 3, 1)))
    rng = np.random.default_rng(6)
    phi = rng.normal(size=critic.size)
    baseline = baselines.StateBaseline(critic, phi, SGD(phi, 0.1), rng, epochs=1)
    rollout = mdp.rollout()
    psi = weight("reward-to-go")(rollout)
    for _ in range(2):
        b = baseline(policy, theta, rollout, psi)
        assert np.ptp(b) > 0.01
        exactly(mdp.moments(policy, theta, psi - b).bias, 0)


# --- baselines computed from the trajectories that they correct ------------------------------------------------------


def less(name, baseline, policy, theta):
    """Ψ − b as a function of a rollout, as REINFORCE computes it."""

    def weights(rollout):
        psi = weight(name)(rollout)
        return psi - baseline(policy, theta, rollout, psi)

    return weights


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name, baseline", [
    ("total", baselines.constant), ("reward-to-go", baselines.constant), ("reward-to-go", baselines.time_dependent),
])
def test_the_mean_of_the_same_n_trajectories_shrinks_the_gradient_to_n_minus_1_over_n(few, name, baseline, n):
    policy, theta = softmax_policy(few)
    gradient = few.gradient(policy, theta)
    differs(gradient)
    exactly(few.moments(policy, theta, less(name, baseline, policy, theta), n).mean, (n - 1) / n * gradient)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", ["total", "reward-to-go"])
def test_leaving_one_out_restores_the_gradient(few, name, n):
    policy, theta = softmax_policy(few)
    exactly(few.moments(policy, theta, less(name, baselines.leave_one_out, policy, theta), n).bias, 0)


def test_the_optimal_constant_of_the_same_trajectories_is_biased(few):
    policy, theta = softmax_policy(few)
    differs(few.moments(policy, theta, less("total", baselines.optimal_constant, policy, theta), n=2).bias)


def test_n_independent_trajectories_have_one_nth_of_the_covariance(few):
    policy, theta = softmax_policy(few)
    psi = weight("reward-to-go")
    one, two = (few.moments(policy, theta, psi(few.rollout()), n) for n in (1, 2))
    pairs = few.moments(policy, theta, psi, n=2)
    exactly(two.covariance, one.covariance / 2)
    exactly(pairs.covariance, two.covariance)
    exactly(pairs.mean, one.mean)
    exactly(pairs.variance, np.trace(one.covariance) / 2)


# --- variance --------------------------------------------------------------------------------------------------------


def test_the_optimal_constant_baseline_has_the_least_variance(mdp):
    """tr Cov is a parabola in b: its minimum plus E‖∇log P(τ)‖² (b − b*)²."""
    policy, theta = softmax_policy(mdp)
    prob, ret = mdp.prob(policy, theta), weight("total")(mdp.rollout())
    squares = (mdp.estimates(policy, theta, 1.0) ** 2).sum(axis=1)
    best = prob @ (squares * ret[0]) / (prob @ squares)
    least = mdp.moments(policy, theta, ret - best).variance
    for b in (0.0, best - 0.1, best + 0.1, prob @ ret[0]):
        exactly(mdp.moments(policy, theta, ret - b).variance - least, prob @ squares * (b - best) ** 2)
    assert least < mdp.moments(policy, theta, ret).variance


@pytest.mark.parametrize("terminal", [None, [False, False, True]])
def test_optimal_constant_of_the_whole_population_is_exact(terminal):
    """Every probability is a multiple of 1/2⁹. So 2⁹ trajectories, with copies, can have the exact distribution."""
    P = np.array([[[1, 1, 2], [0, 3, 1]], [[2, 2, 0], [1, 2, 1]], [[0, 4, 0], [2, 1, 1]]]) / 4
    mdp = FiniteMDP(P, [[1, -0.5], [2, 0.3], [-1, 0.7]], [0.5, 0.5, 0], horizon=2, terminal=terminal)
    policy = Policy(MLP((3, 2)), Categorical(2))
    theta = np.zeros(policy.size)  # uniform
    prob = mdp.prob(policy, theta)
    population = mdp.rollout(np.repeat(np.arange(len(prob)), np.round(prob * 2**9).astype(int)))
    assert population.rew.shape[1] == 2**9
    squares = (mdp.estimates(policy, theta, 1.0) ** 2).sum(axis=1)
    best = prob @ (squares * mdp.rewards.sum(axis=1)) / (prob @ squares)
    assert abs(best - prob @ mdp.rewards.sum(axis=1)) > 0.01
    exactly(baselines.optimal_constant(policy, theta, population, weight("total")(population)), best)


def test_the_slides_example_of_a_state_worth_3000_and_one_worth_minus_4000():
    """One step, uniform policy. The score of every (s, a) has length 1, so E‖ĝ‖² = E[Ψ²]."""
    mdp = FiniteMDP(np.full((2, 2, 2), 0.5), [[2999, 3001], [-4001, -3999]], [0.5, 0.5], horizon=1)
    policy = Policy(MLP((2, 2)), Categorical(2))
    theta = np.zeros(policy.size)
    psi = weight("reward-to-go")(mdp.rollout())
    without = mdp.moments(policy, theta, psi)
    centred = mdp.moments(policy, theta, psi - mdp.along(np.array([[3000, -4000]])))
    square = without.mean @ without.mean
    assert without.variance == pytest.approx((3000**2 + 4000**2) / 2 + 1 - square, rel=1e-12)
    assert centred.variance == pytest.approx(1 - square, rel=1e-12)
    assert without.variance > 1e7 * centred.variance
    np.testing.assert_allclose(without.mean, centred.mean, rtol=0, atol=1e-12 * 4000)


# --- bootstrapping from a wrong V ------------------------------------------------------------------------------------


def bootstrapped(mdp, V, gamma, estimator):
    """γᵗ Â_t [H, K] of an estimator that bootstraps from V_t(s) [H+1, S]."""
    rollout, val = mdp.rollout(), mdp.along(V)
    discount = gamma ** returns.time_in_episode(rollout.done, rollout.valid)
    return discount * (estimator(rollout, val) - val[:-1])


def n_step(gamma, n):
    return lambda rollout, val: returns.n_step_return(rollout.rew, rollout.terminated, rollout.truncated, val, gamma, n)


def gae(gamma, lam):
    return lambda rollout, val: val[:-1] + returns.gae(
        rollout.rew, rollout.terminated, rollout.truncated, val, gamma, lam
    )


def error_ahead(mdp, error, n):
    """V̂ − V of the state n steps ahead [H, K], or 0 if the episode has ended by then."""
    ahead = np.zeros_like(mdp.rewards.T)
    ahead[: max(mdp.horizon - n, 0)] = mdp.along(error * ~mdp.terminal)[n : mdp.horizon]
    return ahead


def wrong_value(mdp):
    """A V̂ that is unrelated to the MDP. It is not even 0 after the end."""
    return np.random.default_rng(7).normal(size=(mdp.horizon + 1, mdp.n_states))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_the_bias_of_n_steps_is_the_discounted_error_of_v_n_steps_ahead(mdp, n):
    policy, theta = softmax_policy(mdp)
    gamma = 0.7
    V, V_hat = mdp.values(policy, theta, gamma)[1], wrong_value(mdp)
    bias = mdp.moments(policy, theta, bootstrapped(mdp, V_hat, gamma, n_step(gamma, n)), gamma=gamma).bias
    discount = gamma ** np.arange(mdp.horizon)[:, None]
    exactly(bias, mdp.moments(policy, theta, discount * gamma**n * error_ahead(mdp, V_hat - V, n)).mean)
    assert (np.linalg.norm(bias) > 1e-3) == (n < mdp.horizon)
    exactly(mdp.moments(policy, theta, bootstrapped(mdp, V, gamma, n_step(gamma, n)), gamma=gamma).bias, 0)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_the_bias_of_gae_is_the_lambda_mixture_of_the_n_step_biases(mdp, lam):
    policy, theta = softmax_policy(mdp)
    gamma = 0.7
    V, V_hat = mdp.values(policy, theta, gamma)[1], wrong_value(mdp)
    bias = mdp.moments(policy, theta, bootstrapped(mdp, V_hat, gamma, gae(gamma, lam)), gamma=gamma).bias
    discount = gamma ** np.arange(mdp.horizon)[:, None]
    mixture = sum(
        (1 - lam) * lam ** (n - 1) * gamma**n * error_ahead(mdp, V_hat - V, n) for n in range(1, mdp.horizon)
    )
    exactly(bias, mdp.moments(policy, theta, discount * mixture).mean)
    assert (np.linalg.norm(bias) > 1e-3) == (lam < 1)
    exactly(mdp.moments(policy, theta, bootstrapped(mdp, V, gamma, gae(gamma, lam)), gamma=gamma).bias, 0)


def test_a_linear_critic_on_the_scores_gives_the_exact_gradient(mdp):
    """Compatible features (Sutton et al. 2000, theorem 2): Q_w = wᵀ ∇log π, fitted by least squares on the steps taken.

    Q_w may be far from Q.
    """
    policy, theta = softmax_policy(mdp)
    (Q, _), d, scores = mdp.values(policy, theta), mdp.occupancy(policy, theta), mdp.scores(policy, theta)
    features = np.broadcast_to(scores, (*Q.shape, policy.size)).reshape(-1, policy.size)
    root = np.sqrt(d).ravel()
    w = np.linalg.lstsq(root[:, None] * features, root * Q.ravel(), rcond=1e-10)[0]
    Q_w = (features @ w).reshape(Q.shape)
    assert np.abs(Q_w - Q)[d > 0.01].max() > 0.1
    exactly(mdp.moments(policy, theta, mdp.along(Q_w)).bias, 0)


# --- another policy's trajectories -----------------------------------------------------------------------------------


def off_policy(mdp, gamma=1.0):
    """π, its θ, the behaviour's probabilities of trajectories, and ρ_t = π/b [H, K], 1 after the end."""
    policy, theta = softmax_policy(mdp)
    behaviour, theta_b = softmax_policy(mdp, seed=2)
    ratio = np.exp(mdp.log_policy(policy, theta) - mdp.log_policy(behaviour, theta_b))
    ratio = np.where(mdp.valid.T, mdp.along(np.tile(ratio, (mdp.horizon, 1, 1))), 1)
    return policy, theta, mdp.prob(behaviour, theta_b), ratio


@pytest.mark.parametrize("name", ["total", "reward-to-go"])
def test_the_product_of_all_ratios_corrects_for_the_behaviour_policy(mdp, name):
    policy, theta, prob, ratio = off_policy(mdp)
    psi = weight(name)(mdp.rollout())
    exactly(mdp.moments(policy, theta, plain_weight(ratio.prod(axis=0), psi), prob=prob).bias, 0)
    differs(mdp.moments(policy, theta, psi, prob=prob).bias)


def test_the_ratios_up_to_each_reward_are_enough(mdp):
    """Per-decision importance sampling (Precup et al. 2000): an action cannot have caused earlier rewards."""
    policy, theta, prob, ratio = off_policy(mdp)
    rollout = mdp.rollout()
    so_far = np.cumprod(ratio, axis=0)
    psi = returns.reward_to_go(plain_weight(so_far, rollout.rew), rollout.done)
    exactly(mdp.moments(policy, theta, psi, prob=prob).bias, 0)
    Q, _ = mdp.values(policy, theta)
    exactly(mdp.moments(policy, theta, plain_weight(so_far, mdp.along(Q)), prob=prob).bias, 0)


def test_one_ratio_per_step_gives_the_gradient_of_the_surrogate_but_that_of_u_only_on_policy(mdp):
    policy, theta = softmax_policy(mdp)
    _, theta_b = softmax_policy(mdp, seed=2)
    Q, V = mdp.values(policy, theta_b)
    adv, prob = Q - V[:-1, :, None], mdp.prob(policy, theta_b)
    logp_b, d_b = mdp.log_policy(policy, theta_b), mdp.occupancy(policy, theta_b)

    def surrogate(theta):
        return np.sum(d_b * plain_surrogate(np.exp(mdp.log_policy(policy, theta) - logp_b), adv))

    def moments(theta):
        ratio = np.exp(mdp.log_policy(policy, theta) - logp_b)
        return mdp.moments(policy, theta, mdp.along(plain_weight(ratio, adv)), prob=prob)

    check_gradient(surrogate, theta, moments(theta).mean, "complex")
    differs(moments(theta).bias)
    exactly(moments(theta_b).bias, 0)


def test_an_exploring_policy_has_to_be_scored_as_itself(mdp):
    policy, theta = softmax_policy(mdp)
    exploring = Policy(policy.network, Exploring(Categorical(mdp.n_actions), epsilon=0.3))
    psi = weight("reward-to-go")(mdp.rollout())
    as_itself = mdp.moments(exploring, theta, psi)
    exactly(as_itself.bias, 0)
    check_gradient(lambda theta: mdp.objective(exploring, theta), theta, as_itself.mean, "complex")
    as_pi = mdp.moments(policy, theta, psi, prob=mdp.prob(exploring, theta))
    differs(as_pi.mean, mdp.gradient(exploring, theta))
    differs(as_pi.mean, mdp.gradient(policy, theta))


# --- sampled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEIGHTS)
def test_sampled_episodes_agree_with_the_exact_gradient_and_objective(mdp, name):
    policy, theta = softmax_policy(mdp)
    n = 4000
    rollout = Sampler(FiniteMDPVectorEnv(mdp, n), 0).episodes(policy, theta)
    obs, act, psi = rollout.flatten(weight(name)(rollout))
    exact = mdp.moments(policy, theta, weight(name)(mdp.rollout()), n)
    error = policy.grad_log_prob(theta, obs, act, psi) / n - exact.mean
    assert np.all(np.abs(error) <= 4 * np.sqrt(np.diag(exact.covariance)))
    prob, ret = mdp.prob(policy, theta), mdp.rewards.sum(axis=1)
    mean = mdp.objective(policy, theta)
    assert abs(np.mean(rollout.episode_returns) - mean) <= 4 * np.sqrt(prob @ (ret - mean) ** 2 / n)


def test_sampled_trajectories_have_their_exact_probabilities(mdp):
    policy, theta = softmax_policy(mdp)
    n = 10_000
    rollout = Sampler(FiniteMDPVectorEnv(mdp, n), 1).episodes(policy, theta)
    over = np.append(np.zeros((1, n), bool), np.logical_or.accumulate(rollout.done, axis=0), axis=0)
    # As in mdp.states and mdp.actions: after the end, the state stays the last one, and the action is 0
    states, actions = rollout.obs.argmax(axis=-1), np.where(over[:-1], 0, rollout.act)
    for t in range(1, len(states)):
        states[t] = np.where(over[t - 1], states[t - 1], states[t])
    index = {tuple(row): k for k, row in enumerate(np.hstack([mdp.states, mdp.actions]).tolist())}
    sampled = [index[tuple(row)] for row in np.hstack([states.T, actions.T]).tolist()]
    count, expected = np.bincount(sampled, minlength=len(mdp.states)), n * mdp.prob(policy, theta)
    rare = expected < 20  # all in one class
    count, expected = (np.append(x[~rare], x[rare].sum()) for x in (count, expected))
    chi_squared, K = np.sum((count - expected) ** 2 / expected), len(expected)
    variance = 2 * (K - 1) + np.sum(1 / expected) - (K**2 + 2 * K - 2) / n  # exact, of Pearson's statistic
    assert abs(chi_squared - (K - 1)) <= 4 * np.sqrt(variance)


def test_consecutive_sampled_episodes_agree_with_the_exact_gradient():
    """Several episodes per environment, with a reset row after each. In each, γᵗ counts from its beginning."""
    mdp, gamma, n_envs, n_episodes = MDPS["fixed length"], 0.7, 500, 6
    policy, theta = softmax_policy(mdp)
    sampler = Sampler(FiniteMDPVectorEnv(mdp, n_envs), 0)
    rollout = sampler.steps(policy, theta, (mdp.horizon + 1) * n_episodes)
    assert rollout.episode_lengths == [mdp.horizon] * n_envs * n_episodes
    obs, act, psi = rollout.flatten(weight("discounted", gamma)(rollout))
    exact = mdp.moments(policy, theta, weight("discounted", gamma)(mdp.rollout()), n_envs * n_episodes, gamma)
    error = policy.grad_log_prob(theta, obs, act, psi) / (n_envs * n_episodes) - exact.mean
    assert np.all(np.abs(error) <= 4 * np.sqrt(np.diag(exact.covariance)))


def test_the_vector_environment_keeps_gymnasiums_contract(mdp):
    env = FiniteMDPVectorEnv(mdp, 50)
    assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(12)]

    def play():
        obs, info = env.reset(seed=3)
        rows = [(obs, np.zeros(50), np.zeros(50, bool), np.zeros(50, bool), info)]
        return rows + [env.step(a) for a in actions]

    rows, again = play(), play()
    for (obs, rew, terminated, truncated, info), other in zip(rows, again):
        assert obs in env.observation_space
        assert rew.shape == terminated.shape == truncated.shape == (50,)
        assert not truncated.any() and info == {}
        for x, y in zip((obs, rew, terminated), other):
            np.testing.assert_array_equal(x, y)
    for (_, _, ended, *_), (obs, rew, terminated, *_) in zip(rows, rows[1:]):
        assert np.all(rew[ended] == 0) and not terminated[ended].any()
        assert np.all(mdp.rho0[obs[ended].argmax(axis=1)] > 0)
    assert not np.array_equal(env.reset(seed=4)[0], rows[0][0])


# --- limits ----------------------------------------------------------------------------------------------------------


def test_forty_thousand_trajectories_are_few():
    mdp = random_mdp(n_states=5, horizon=4)
    assert len(mdp.states) == 40_000
    policy, theta = softmax_policy(mdp)
    for name in WEIGHTS:
        exactly(mdp.moments(policy, theta, weight(name)(mdp.rollout())).bias, 0)


def arguments(**changed):
    good = {"P": np.full((3, 2, 3), 1 / 3), "R": np.ones((3, 2)), "rho0": np.array([0.5, 0.5, 0.0]), "horizon": 2}
    return good | changed


@pytest.mark.parametrize("changed, message", [
    ({"P": np.full((3, 2, 2), 0.5)}, r"P: expected shape \[S, A, S\], got \(3, 2, 2\)"),
    ({"P": np.full((3, 3), 1 / 3)}, r"P: expected shape \[S, A, S\], got \(3, 3\)"),
    ({"P": np.full((3, 2, 3), 0.3)}, "P: expected probabilities that sum to 1"),
    ({"P": np.full((3, 2, 3), np.nan)}, "P: expected probabilities that sum to 1"),
    ({"P": np.tile([2.0, -1.0, 0.0], (3, 2, 1))}, "P: expected probabilities"),
    ({"R": np.ones(3)}, r"R: expected shape \(3, 2\) to match P, got \(3,\)"),
    ({"R": np.full((3, 2), np.inf)}, "R: expected finite rewards"),
    ({"rho0": np.ones(2) / 2}, r"rho0: expected shape \(3,\) to match P, got \(2,\)"),
    ({"rho0": np.ones(3)}, "rho0: expected probabilities that sum to 1"),
    ({"terminal": [True]}, r"terminal: expected shape \(3,\) to match P, got \(1,\)"),
    ({"terminal": [True, False, False]}, "rho0: expected no episode to begin in a terminal state"),
    ({"horizon": 0}, "horizon: expected at least 1 step, got 0"),
    ({"horizon": 60}, "horizon: expected at most 1,000,000 trajectories, got more in 60 steps"),
])
def test_a_wrong_argument_of_a_finite_mdp_is_named(changed, message):
    FiniteMDP(**arguments())
    with pytest.raises(ValueError, match=message):
        FiniteMDP(**arguments(**changed))


@pytest.mark.parametrize("n", [0, -1, 20])
def test_a_number_of_trajectories_that_cannot_be_enumerated_is_refused(n):
    mdp = random_mdp()
    policy, theta = softmax_policy(mdp)
    with pytest.raises(ValueError, match=f"n: expected at least 1, and at most 1,000,000 groups Kᴺ, got {n}"):
        mdp.moments(policy, theta, lambda rollout: rollout.rew, n=n)


def test_a_policy_over_more_actions_than_the_problem_has_is_refused(mdp):
    policy = Policy(MLP((mdp.n_states, mdp.n_actions + 1)), Categorical(mdp.n_actions + 1))
    with pytest.raises(ValueError, match=f"policy: expected {mdp.n_actions} actions, got {mdp.n_actions + 1}"):
        mdp.prob(policy, np.zeros(policy.size))
