"""Gradient-free methods on functions whose best θ, gradient or moments are known."""

import functools
import itertools
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from helpers import assert_mean

from npg.distributions import Categorical, Gaussian, log_softmax
from npg.gradient_free import (
    SCHEMES,
    EvolutionStrategy,
    FiniteDifference,
    Genetic,
    HillClimbing,
    KohlStone,
    central_difference,
    central_points,
    centred_ranks,
    evaluate_each,
    evaluator,
    evolution_gradient,
    forward_difference,
    forward_points,
    kohl_stone_direction,
    search,
)
from npg.network import MLP
from npg.optimizers import SGD, Adam, state
from npg.policy import Policy
from npg.score_function import score_function_gradient
from npg.tabular import FiniteMDP

GOAL = np.array([1.0, -0.5, 0.25, -1.5])
METHODS = {
    "hill climbing": lambda theta: HillClimbing(theta, 0.3),
    "genetic": lambda theta: Genetic(theta, np.float64(0.1)),  # times float32, σ would give float64
    "genetic, crossover": lambda theta: Genetic(theta, 0.1, crossover=True),
    "forward differences": lambda theta: FiniteDifference(theta, Adam(theta, 0.05), epsilon=0.1),
    "central differences": lambda theta: FiniteDifference(theta, Adam(theta, 0.05), epsilon=0.1, scheme="central"),
    "Kohl & Stone": lambda theta: KohlStone(theta, SGD(theta, 0.05), epsilon=0.1),
    "evolution strategy": lambda theta: EvolutionStrategy(theta, Adam(theta, 0.05), 0.1),
    "evolution strategy, raw values": lambda theta: EvolutionStrategy(theta, SGD(theta, 0.1), 0.1, shaping="none"),
    "evolution strategy, learned σ": lambda theta: EvolutionStrategy(
        theta, Adam(theta, 0.05), 0.1, Adam(theta, 0.02), shaping="standardise"
    ),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())


def noisy_hill(theta, seed, noise=0.1):
    """−|θ − goal|², plus noise that the seed determines."""
    return -np.sum((theta - GOAL) ** 2) + noise * np.random.default_rng(seed).standard_normal()


def advance(method, f, rng, n, **kwargs):
    return [update for update, _ in zip(search(method, evaluator(f, rng, **kwargs), rng), range(n))]


def tell(method, rng, f):
    """Makes one iteration. f(thetas) returns the values of all thetas at once."""
    thetas = method.ask(rng)
    method.tell(thetas, np.asarray(f(thetas), float))
    return thetas


def test_a_function_without_a_value_is_named():
    with pytest.raises(ValueError, match="^f: expected a number for each candidate, got None"):
        evaluator(lambda theta, seed: None, np.random.default_rng(0))(np.zeros((2, 3)))


# ---- what all have in common


@pytest.mark.parametrize("make", [HillClimbing, Genetic])
def test_a_search_restarts_at_another_theta(make):
    theta = np.zeros(3)
    method = make(theta, 1e-9, n_candidates=8)
    theta[...] = 5.0
    method.restart()
    np.testing.assert_allclose(method.ask(np.random.default_rng(0)), np.full((8, 3), 5.0), atol=1e-6)


@pytest.mark.parametrize("common", [True, False])
@every_method
def test_every_method_climbs_a_noisy_hill(make, common):
    theta = np.zeros(4)
    updates = advance(make(theta), noisy_hill, np.random.default_rng(0), 250, common=common)
    assert np.linalg.norm(theta - GOAL) < 0.2 * np.linalg.norm(GOAL)
    assert all(update["candidates"] == len(update["values"]) for update in updates)


@every_method
def test_the_state_is_all_that_it_takes_to_go_on_bit_for_bit(make):
    def memory(method):
        optimizers = [opt for name, opt in vars(method).items() if name.endswith("optimizer") and opt]
        return [array for thing in (method, *optimizers) for array in state(thing).values()]

    rng, uninterrupted = np.random.default_rng(0), make(np.zeros(4, np.float32))
    advance(uninterrupted, noisy_hill, rng, 30)
    saved, at = [array.copy() for array in memory(uninterrupted)], rng.bit_generator.state
    advance(uninterrupted, noisy_hill, rng, 30)

    resumed, rng = make(np.zeros(4, np.float32)), np.random.default_rng(1)
    for array, value in zip(memory(resumed), saved, strict=True):
        array[...] = value
    rng.bit_generator.state = at
    advance(resumed, noisy_hill, rng, 30)
    assert not np.array_equal(resumed.theta, saved[0])
    for array, expected in zip(memory(resumed), memory(uninterrupted), strict=True):
        np.testing.assert_array_equal(array, expected)


@every_method
def test_theta_is_improved_in_place_and_keeps_its_precision(make):
    theta = np.zeros(4, np.float32)
    method = make(theta)
    thetas = method.ask(np.random.default_rng(0))
    assert thetas.dtype == np.float32 and thetas.shape[1:] == theta.shape
    advance(method, noisy_hill, np.random.default_rng(0), 20)
    assert method.theta is theta and theta.any()


def test_values_of_another_shape_are_refused():
    method = Genetic(np.zeros(4), 0.1, n_candidates=6)
    with pytest.raises(ValueError, match=r"values: expected one per candidate, shape \(6,\), got \(5,\)"):
        next(search(method, lambda thetas: (np.zeros(5), {}), np.random.default_rng(0)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda theta: HillClimbing(theta, 0.1, n_candidates=2), "n_candidates: expected at least 3 .*, got 2"),
        (
            lambda theta: Genetic(theta, 0.1, n_candidates=4, n_parents=5),
            "expected 2 ≤ elite ≤ parents ≤ candidates and elite < candidates, got 2, 5, 4",
        ),
        (lambda theta: Genetic(theta, 0.1, n_elite=1), "got 1, 4, 16"),
        (lambda theta: Genetic(theta, 0.1, n_candidates=4, n_elite=4), "elite < candidates, got 4, 4, 4"),
        (
            lambda theta: FiniteDifference(theta, SGD(theta, 1), epsilon=0.1, scheme="backward"),
            "scheme: .* 'forward'.*'backward'",
        ),
        (
            lambda theta: EvolutionStrategy(theta, SGD(theta, 1), 0.1, n_candidates=7),
            "n_candidates: .* even number.*, got 7",
        ),
        (lambda theta: EvolutionStrategy(theta, SGD(theta, 1), 0.1, n_candidates=0), "n_candidates: .* got 0"),
        (lambda theta: EvolutionStrategy(theta, SGD(theta, 1), 0.1, shaping="rank"), "shaping: .*'ranks'.*'rank'"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(np.zeros(3))


# ---- evaluation


def seed_alone(theta, seed):
    return seed


def test_common_seeds_are_one_per_iteration_and_others_one_per_candidate():
    thetas, rng = np.zeros((5, 2)), np.random.default_rng(0)
    first, second = (evaluate_each(seed_alone, thetas, rng, common=True) for _ in range(2))
    assert len(set(first)) == len(set(second)) == 1 and first != second
    assert len(set(evaluate_each(seed_alone, thetas, rng, common=False))) == 5


def test_an_executors_workers_give_the_same_bits_as_this_process():
    results = []
    for executor in (None, ThreadPoolExecutor(2), ProcessPoolExecutor(2, get_context("spawn"))):
        rng, method = np.random.default_rng(0), METHODS["evolution strategy"](np.zeros(4))
        updates = advance(method, noisy_hill, rng, 5, executor=executor, common=False)
        results.append((method.theta, [update["values"] for update in updates]))
        if executor:
            executor.shutdown()
    for theta, values in results[1:]:
        np.testing.assert_array_equal(theta, results[0][0])
        np.testing.assert_array_equal(values, results[0][1])


# ---- finite differences


def exponential(thetas):
    return np.exp(thetas).sum(axis=1)


@pytest.mark.parametrize("scheme, order, coefficient", [("forward", 1, 1 / 2), ("central", 2, 1 / 6)])
def test_the_error_of_a_difference_falls_as_theory_says(scheme, order, coefficient):
    """Forward: ε f''/2 + O(ε²). Central: ε² f'''/6 + O(ε⁴). All derivatives of the exponential are equal."""
    points, difference = SCHEMES[scheme]
    theta = np.array([0.3, -0.7, 1.1])
    for epsilon in (1e-1, 1e-2, 1e-3):
        error = difference(exponential(points(theta, epsilon)), epsilon) - np.exp(theta)
        np.testing.assert_allclose(error, coefficient * epsilon**order * np.exp(theta), rtol=epsilon)


def test_the_points_are_theta_and_steps_along_each_axis_of_it():
    theta = np.array([1.0, 2.0])
    np.testing.assert_array_equal(forward_points(theta, 0.5), [[1, 2], [1.5, 2], [1, 2.5]])
    np.testing.assert_array_equal(central_points(theta, 0.5), [[1.5, 2], [1, 2.5], [0.5, 2], [1, 1.5]])


def test_a_difference_of_a_linear_function_is_its_gradient():
    theta, c = np.array([0.3, -0.7, 1.1]), np.array([2.0, -1.0, 0.5])
    np.testing.assert_allclose(forward_difference(forward_points(theta, 0.1) @ c + 7, 0.1), c, atol=1e-12)
    np.testing.assert_allclose(central_difference(central_points(theta, 0.1) @ c + 7, 0.1), c, atol=1e-12)


@pytest.mark.parametrize("scheme, n_evaluations", [("forward", 4), ("central", 6)])
def test_finite_differences_cost_n_plus_1_or_2n_evaluations_and_step_along_the_gradient(scheme, n_evaluations):
    theta, c = np.zeros(3), np.array([2.0, -1.0, 0.5])
    method = FiniteDifference(theta, SGD(theta, 0.1), epsilon=0.5, scheme=scheme)
    assert len(tell(method, None, lambda thetas: thetas @ c)) == n_evaluations
    np.testing.assert_allclose(theta, 0.1 * c, atol=1e-12)


# ---- Kohl & Stone

ALL_SIGNS = np.array(list(itertools.product([1, 0, -1], repeat=3)))  # every possible candidate once


def test_the_direction_from_all_candidates_is_that_of_a_linear_functions_gradient():
    c, epsilon = np.array([2.0, -1.0, 0.5]), 0.1
    np.testing.assert_allclose(kohl_stone_direction(ALL_SIGNS, epsilon * ALL_SIGNS @ c), 2 * epsilon * c, atol=1e-12)


def test_the_direction_is_0_only_where_leaving_the_parameter_alone_is_best():
    theta = np.array([0.0, 0.3, -0.04])  # of −|θ|², with ε = 0.1: the middle is best where |θ_k| < ε/2
    values = -np.sum((theta + 0.1 * ALL_SIGNS) ** 2, axis=1)
    np.testing.assert_allclose(kohl_stone_direction(ALL_SIGNS, values), [0, -0.12, 0], atol=1e-12)


def test_a_direction_with_a_group_missing_by_hand():
    signs = np.array([[1, 1, 0, 0], [-1, 1, 1, 0], [-1, 0, 0, 0]])
    values = np.array([5.0, 1.0, 3.0])
    # (+: 5, −: 2), (+: 3, no −), (+: 1, no −), (neither)
    np.testing.assert_array_equal(kohl_stone_direction(signs, values), [3, 0, 0, 0])


def test_kohl_and_stones_random_candidates_point_along_the_gradient_on_average():
    """For a linear f, E[Avg₊ − Avg₋] = 2εc, because the steps of the other parameters have mean 0."""
    c, epsilon, theta = np.array([2.0, -1.5, 1.0]), 0.1, np.zeros(3)
    rng, method = np.random.default_rng(0), KohlStone(theta, SGD(theta, 0.0), epsilon=epsilon, n_candidates=600)
    candidates = [method.ask(rng) for _ in range(1000)]
    samples = np.array([kohl_stone_direction(np.sign(thetas), thetas @ c) for thetas in candidates])
    assert np.all(samples != 0)  # with so many candidates, Avg₀ is never the largest; E[A] = 2εc needs that
    assert_mean(samples, 2 * epsilon * c)


def test_a_step_of_kohl_and_stone_has_the_length_eta_and_candidates_move_by_epsilon_or_not_at_all():
    theta, epsilon = np.zeros(3), np.array([0.1, 0.2, 0.4])
    method = KohlStone(theta, SGD(theta, 0.7), epsilon=epsilon)
    thetas = tell(method, np.random.default_rng(0), lambda thetas: thetas @ [1.0, -1.0, 2.0])
    assert thetas.shape == (15, 3)
    assert set((thetas / epsilon).ravel()) == {-1, 0, 1}
    assert np.linalg.norm(theta) == pytest.approx(0.7)
    before = theta.copy()
    tell(method, np.random.default_rng(0), lambda thetas: np.ones(len(thetas)))  # equal values: no step, no 0/0
    np.testing.assert_array_equal(theta, before)


# ---- evolution strategies

C, M = np.array([0.7, -1.2]), np.array([[1.0, 0.4], [-0.2, -0.5]])
PARAMS = np.array([0.6, -1.1, -0.3, 0.2])  # μ, log σ


def quadratic(thetas):
    """f(θ) = cᵀθ + θᵀMθ + 3"""
    return thetas @ C + ((thetas @ M) * thetas).sum(axis=1) + 3


def gradient_of_expected_quadratic(params):
    """E f = cᵀμ + μᵀMμ + Σ_k M_kk σ_k² + 3:  ∂/∂μ = c + (M + Mᵀ)μ,  ∂/∂ log σ_k = 2 M_kk σ_k²."""
    mean, log_std = np.split(params, 2)
    return np.concatenate([C + (M + M.T) @ mean, 2 * np.diag(M) * np.exp(2 * log_std)])


def gradients_of_pairs(params, f, n, rng):
    """n samples of the evolution gradient, each from one antithetic pair."""
    theta, log_std = np.split(params, 2)
    method = EvolutionStrategy(theta, None, 1.0, n_candidates=2 * n)
    method.log_std[...] = log_std
    first, second = np.split(method.ask(rng), 2)
    pairs = np.stack([first, second], axis=1)
    values = f(pairs.reshape(2 * n, -1)).reshape(n, 2)
    assert n > 3
    few = np.array([evolution_gradient(params, *pair) for pair in zip(pairs[:3], values[:3])])
    score = Gaussian(theta.size).grad_log_prob(params, pairs)
    samples = np.einsum("np,npk->nk", values, score) / 2
    np.testing.assert_allclose(samples[:3], few, atol=1e-12)
    np.testing.assert_allclose(
        samples.mean(axis=0), evolution_gradient(params, pairs.reshape(2 * n, -1), values.ravel()), atol=1e-9
    )
    return samples


def test_the_evolution_gradient_of_a_quadratic_is_unbiased():
    exact = gradient_of_expected_quadratic(PARAMS)
    samples = gradients_of_pairs(PARAMS, quadratic, 100_000, np.random.default_rng(0))
    assert_mean(samples, exact)
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert np.linalg.norm(exact) > 20 * np.linalg.norm(error)  # otherwise the line above would show nothing


@functools.cache
def small_mdp():
    """An MDP of two states, actions and steps, and a policy with preferences W[s] + b; θ = [W, b] has 6 numbers."""
    rng = np.random.default_rng(2)
    mdp = FiniteMDP(rng.dirichlet(np.ones(2), (2, 2)), rng.uniform(-2, 2, (2, 2)), [0.3, 0.7], horizon=2)
    return mdp, Policy(MLP((2, 2)), Categorical(2)), rng.standard_normal(6)


def expected_return(thetas):
    """U(θ) [M] of the small MDP for many θ [M, 6] at once."""
    mdp, *_ = small_mdp()
    logp = log_softmax(thetas[:, :4].reshape(-1, 2, 2) + thetas[:, None, 4:])
    prob = mdp.dynamics * np.exp(logp[:, mdp.states[:, :-1], mdp.actions].sum(axis=2))
    return prob @ mdp.rewards.sum(axis=1)


def gradient_by_quadrature(params, f, n_nodes):
    """∫ f(θ) ∇ log P(θ) P(θ) dθ by Gauss–Hermite nodes on every axis."""
    mean, log_std = np.split(params, 2)
    node, weight = np.polynomial.hermite_e.hermegauss(n_nodes)
    grid = np.stack(np.meshgrid(*[node] * mean.size, indexing="ij"), axis=-1).reshape(-1, mean.size)
    weights = functools.reduce(np.multiply.outer, [weight / weight.sum()] * mean.size).ravel()
    thetas = mean + np.exp(log_std) * grid
    return (weights * f(thetas)) @ Gaussian(mean.size).grad_log_prob(params, thetas)


def test_the_vectorised_u_of_these_tests_is_that_of_the_small_mdp():
    mdp, policy, theta = small_mdp()
    thetas = theta + np.random.default_rng(0).standard_normal((5, 6))
    np.testing.assert_allclose(expected_return(thetas), [mdp.objective(policy, t) for t in thetas], atol=1e-12)


def test_the_evolution_gradient_of_the_small_mdps_u_is_unbiased():
    _, _, theta = small_mdp()
    params = np.concatenate([theta, np.full(6, np.log(0.5))])
    exact = gradient_by_quadrature(params, expected_return, 7)
    np.testing.assert_allclose(gradient_by_quadrature(params, expected_return, 6), exact, atol=1e-5)
    samples = gradients_of_pairs(params, expected_return, 100_000, np.random.default_rng(1))
    assert_mean(samples, exact)
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert np.linalg.norm(exact[:6]) > 20 * np.linalg.norm(error[:6])


def test_as_sigma_shrinks_the_evolution_gradient_becomes_the_policy_gradient_with_error_sigma_squared():
    mdp, policy, theta = small_mdp()
    gradient = mdp.gradient(policy, theta)
    errors = []
    for sigma in (0.04, 0.02, 0.01):
        params = np.concatenate([theta, np.full(6, np.log(sigma))])
        errors.append(np.linalg.norm(gradient_by_quadrature(params, expected_return, 4)[:6] - gradient))
    assert errors[0] < 0.01 * np.linalg.norm(gradient)
    np.testing.assert_allclose(errors[:-1], 4 * np.array(errors[1:]), rtol=0.01)


def test_the_evolution_gradient_is_the_score_function_estimator_with_parameters_as_actions():
    distribution = Gaussian(2)
    expected, _ = score_function_gradient(distribution, PARAMS, quadratic, 50, np.random.default_rng(3))
    thetas = distribution.sample(np.tile(PARAMS, (50, 1)), np.random.default_rng(3))
    np.testing.assert_allclose(evolution_gradient(PARAMS, thetas, quadratic(thetas)), expected, atol=1e-12)


def test_candidates_are_mirrored_about_theta_with_the_standard_deviation_asked_for():
    theta = np.array([1.0, -2.0])
    method = EvolutionStrategy(theta, None, 0.3, n_candidates=20_000)
    thetas = method.ask(np.random.default_rng(0))
    first, second = np.split(thetas, 2)
    np.testing.assert_allclose((first + second) / 2, np.tile(theta, (10_000, 1)), atol=1e-12)
    assert_mean(first, theta)
    assert_mean((first - theta) ** 2, 0.3**2)


def test_pairs_cancel_what_is_added_to_every_value():
    theta = np.zeros(3)
    method = EvolutionStrategy(theta, SGD(theta, 1.0), 0.1, shaping="none")
    tell(method, np.random.default_rng(0), lambda thetas: np.full(len(thetas), 1e6))
    np.testing.assert_allclose(theta, 0, atol=1e-6)


def test_ranks_by_hand():
    np.testing.assert_allclose(centred_ranks(np.array([3.0, -1.0, 100.0, 2.0])), np.array([1, -3, 3, -1]) / 8)
    np.testing.assert_allclose(centred_ranks(np.array([500.0, 9.0, 500.0])), np.array([1, -2, 1]) / 6)
    np.testing.assert_array_equal(centred_ranks(np.full(4, 7.0)), 0)


def test_ranks_see_only_the_order():
    values = np.random.default_rng(0).standard_normal(20)
    np.testing.assert_array_equal(centred_ranks(values), centred_ranks(np.exp(3 * values) + 5))


@pytest.mark.parametrize("curvature, wider", [(-1.0, False), (1.0, True)])
def test_a_learned_sigma_narrows_on_a_hilltop_and_widens_in_a_valley_and_a_fixed_one_stays(curvature, wider):
    for learned in (False, True):
        theta = np.zeros(2)
        method = EvolutionStrategy(
            theta, SGD(theta, 0.0), 0.5, Adam(theta, 0.02) if learned else None, n_candidates=100
        )
        for seed in range(30):
            tell(method, np.random.default_rng(seed), lambda thetas: curvature * (thetas**2).sum(axis=1))
        sigma = np.exp(method.log_std)
        np.testing.assert_array_equal(sigma > 0.5 + 0.1 * (1 if wider else -1), wider) if learned else (
            np.testing.assert_allclose(sigma, 0.5)
        )


# ---- hill climbing


def test_sigma_widens_on_success_and_narrows_on_failure_and_a_tie_is_a_failure():
    method = HillClimbing(np.zeros(2), 0.5, widen=2.0, narrow=0.5)
    tell(method, np.random.default_rng(0), lambda thetas: np.arange(10))
    assert method.sigma == 1.0
    tell(method, np.random.default_rng(0), lambda thetas: -np.arange(10))
    assert method.sigma == 0.5
    tell(method, np.random.default_rng(0), lambda thetas: np.ones(10))
    assert method.sigma == 0.25 and method.failures == 2


def test_a_lucky_candidate_is_climbed_from_but_does_not_become_theta():
    method, rng = HillClimbing(np.zeros(2), 0.5, n_candidates=4), np.random.default_rng(0)
    thetas = tell(method, rng, lambda thetas: [0, 0, 1, 9])
    np.testing.assert_array_equal(method.x, thetas[3])
    np.testing.assert_array_equal(method.theta, [0, 0])
    again = tell(method, rng, lambda thetas: [0, -5, 3, -9])
    np.testing.assert_array_equal(again[:2], [[0, 0], thetas[3]])  # with new noise, the lucky one is worse
    np.testing.assert_array_equal(method.theta, [0, 0])
    tell(method, rng, lambda thetas: [0, 5, -9, -9])  # the next candidate wins again
    np.testing.assert_array_equal(method.theta, again[2])


def test_after_patience_failures_in_a_row_the_climb_restarts_near_the_start_and_theta_stays():
    start = np.array([3.0, 4.0])
    method, rng = HillClimbing(start.copy(), 0.5, patience=3), np.random.default_rng(0)
    tell(method, rng, lambda thetas: np.arange(10))
    tell(method, rng, lambda thetas: [0, 1, *np.zeros(8)])  # x wins again; this is the first failure
    for _ in range(2):
        x = method.x.copy()
        tell(method, rng, lambda thetas: np.zeros(10))
        np.testing.assert_array_equal(method.x, x)
    best, restarts = method.theta.copy(), []
    assert not np.array_equal(best, start)
    for _ in range(500):
        method.failures[...] = 3
        restarts.append(method.ask(rng)[1])
    assert method.sigma == 0.5 and method.failures == 0
    assert_mean(np.array(restarts), start)
    assert_mean((np.array(restarts) - start) ** 2, 0.5**2)
    np.testing.assert_array_equal(method.theta, best)


def test_restarts_find_the_higher_of_two_hills():
    def hills(theta, seed):
        return np.maximum(1 - 4 * np.sum((theta - 0.5) ** 2), 3 - 4 * np.sum((theta + 1.5) ** 2))

    def top(patience):
        theta = np.full(2, 0.5)
        advance(HillClimbing(theta, 0.6, patience=patience), hills, np.random.default_rng(0), 600)
        return hills(theta, 0)

    assert top(10**9) == pytest.approx(1, abs=0.01)
    assert top(20) == pytest.approx(3, abs=0.01)


# ---- the genetic algorithm


def test_only_the_best_have_children_and_the_elite_lives_on():
    method, rng = Genetic(np.zeros(3), 1.0, n_candidates=8, n_parents=3, n_elite=2), np.random.default_rng(0)
    thetas = tell(method, rng, lambda thetas: [0, 5, 1, 7, 2, 3, 9, 4])
    best = thetas[[6, 3, 1]]
    method.sigma = 0.0
    children = [method.ask(rng) for _ in range(50)]
    for generation in children:
        np.testing.assert_array_equal(generation[:2], best[:2])
    found = {tuple(child) for generation in children for child in generation[2:]}
    assert found == {tuple(parent) for parent in best}


def test_children_of_two_parents_have_each_parameter_from_one_of_them():
    method = Genetic(np.zeros(3), 0.0, n_candidates=200, n_parents=2, n_elite=2, crossover=True)
    method.parents[...] = [[0, 0, 0], [1, 1, 1]]
    found = {tuple(child) for child in method.ask(np.random.default_rng(0))}
    assert found == set(itertools.product([0, 1], repeat=3))


def test_mutation_has_the_standard_deviation_asked_for():
    method = Genetic(np.full(2, 5.0), 0.3, n_candidates=20_000)
    children = method.ask(np.random.default_rng(0))[method.n_elite :]
    assert_mean(children, 5.0)
    assert_mean((children - 5) ** 2, 0.3**2)


def test_a_lucky_child_is_a_parent_but_becomes_theta_only_by_its_second_value():
    method, rng = Genetic(np.zeros(2), 1.0, n_candidates=4, n_parents=2, n_elite=2), np.random.default_rng(0)
    thetas = tell(method, rng, lambda thetas: [0, 0, 8, 9])
    np.testing.assert_array_equal(method.theta, [0, 0])
    again = tell(method, rng, lambda thetas: [1, 5, 9, 9])
    np.testing.assert_array_equal(again[:2], thetas[[3, 2]])
    np.testing.assert_array_equal(method.theta, thetas[2])


def test_a_function_may_change_its_argument():
    thetas = np.ones((3, 2))
    evaluate_each(lambda theta, seed: np.sum(np.multiply(theta, 2, out=theta)), thetas, np.random.default_rng(0), True)
    np.testing.assert_array_equal(thetas, 1)


def test_a_candidate_whose_value_is_nan_loses():
    thetas = np.arange(8.0).reshape(4, 2)
    values = np.array([0.0, 1.0, np.nan, 2.0])
    climb = HillClimbing(np.zeros(2), 0.1, n_candidates=4)
    climb.tell(thetas, values)
    np.testing.assert_array_equal(climb.x, thetas[3])
    genetic = Genetic(np.zeros(2), 0.1, n_candidates=4, n_parents=3, n_elite=3)
    genetic.tell(thetas, values)
    np.testing.assert_array_equal(genetic.theta, thetas[1])
    np.testing.assert_array_equal(genetic.parents, thetas[[3, 1, 0]])


def test_kohl_and_stones_direction_shows_a_nan():
    signs = np.array([[1, 0], [-1, 0], [0, 1]])
    direction = kohl_stone_direction(signs, np.array([np.nan, 1.0, 2.0]))
    assert np.isnan(direction[0]) and direction[1] == 0  # no candidate had −ε in the second coordinate
