"""Plain settings become the algorithm that they name, and its arrays are all that a checkpoint has to hold."""

import functools
import multiprocessing

import numpy as np
import pytest

from npg.network import MLP
from npg.runner import experiment
from npg.runner.environments import default_distribution, make_env, make_envs, normaliser, set_normaliser
from npg.runner.experiment import ALGORITHMS, BASELINES, EVALUATE, GRADIENT_FREE, INIT, TRAIN, Workers, build

SERIAL = [algo for algo in ALGORITHMS if algo != "a3c"]
POLICY_GRADIENT = [algo for algo in SERIAL if algo not in GRADIENT_FREE]
NETWORK = {"hidden": [8], "activation": "tanh"}
GRADIENT = {"gamma": 0.99, "learning_rate": 1e-2}
SETTINGS = {
    "ppo": {"n_steps": 16, "batch_size": 16, "epochs": 2, "lam": 0.95, "shared": False, "capacity": 3},
    "a2c": {"n_steps": 8, "lam": 0.95, "shared": False},
    "actor-critic": {"n_steps": 8, "batch_size": 8, "epochs": 2, "shared": False, "critic_learning_rate": 2e-2},
    "q-actor-critic": {"n_steps": 8, "batch_size": 8, "epochs": 1, "iterations": 2, "critic_learning_rate": 2e-2},
    "a3c": {"n_steps": 8, "lam": 0.95, "shared": False, "report_every": 100},
    "reinforce": {"baseline": "state", "batch_size": 64, "epochs": 2, "critic_learning_rate": 2e-2},
    "es": {"learning_rate": 1e-2, "sigma": "fixed", "log_std": -1.0, "n_candidates": 4},
    "finite-difference": {"learning_rate": 1e-2, "scheme": "forward", "epsilon": 0.1, "n_candidates": 5},
    "hill-climbing": {"log_std": -1.0, "n_candidates": 4, "patience": 1},
    "genetic": {"log_std": -1.0, "n_candidates": 4, "n_parents": 2},
}
for algo, settings in SETTINGS.items():
    settings.update({"hidden": [], "common_seeds": True} if algo in GRADIENT_FREE else GRADIENT)
GAUSSIAN = {"sigma": "learned", "log_std": -0.5}
VARIANTS = [(algo, {}) for algo in SERIAL] + [
    ("ppo", {"shared": True, "importance": "truncated"}),
    ("ppo", {"ahead": 1}),
    ("a2c", {"shared": True}),
    ("actor-critic", {"estimation": "td", "proximal": 0.1}),
    *(("reinforce", {"baseline": baseline}) for baseline in BASELINES if baseline != "state"),
    ("es", {"sigma": "learned", "shaping": "standardise", "common_seeds": False}),
    ("finite-difference", {"scheme": "central"}),
    ("finite-difference", {"scheme": "kohl-stone"}),
]


def make(algo="ppo", env="CartPole-v1", seed=0, envs=None, n_workers=None, **changes):
    envs = envs or make_envs(env, 3)
    gaussian = GAUSSIAN if env == "Pendulum-v1" and algo not in GRADIENT_FREE else {}
    settings = {**NETWORK, **SETTINGS[algo], **gaussian, **changes}
    workers = Workers(n_workers, functools.partial(make_envs, env, 3)) if n_workers else None
    distribution = default_distribution(envs)
    return build(algo, envs, distribution, seed, settings, make_env=(make_env, env), workers=workers)


def train(exp, n):
    """The last of n updates."""
    for _ in range(n):
        update = next(exp.updates)
    return update


def copies(exp):
    return {name: array.copy() for name, array in exp.arrays.items()}


def assert_equal(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(arrays[name], expected[name], err_msg=name)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("algo, changes", VARIANTS)
def test_the_arrays_and_a_reset_are_all_that_it_takes_to_go_on_bit_for_bit(algo, changes, env):
    uninterrupted = make(algo, env, **changes)
    train(uninterrupted, 2)
    uninterrupted.reset(2)
    saved = copies(uninterrupted)
    train(uninterrupted, 2)

    resumed = make(algo, env, **changes)
    for name, array in resumed.arrays.items():
        array[...] = saved[name]
    resumed.reset(2)
    train(resumed, 2)
    assert_equal(resumed.arrays, uninterrupted.arrays)
    assert any(not np.array_equal(array, saved[name]) for name, array in resumed.arrays.items())


@pytest.mark.parametrize("algo", SERIAL)
def test_a_seed_decides_everything(algo):
    first, again, other = make(algo), make(algo), make(algo, seed=1)
    assert not np.array_equal(first.theta, other.theta)
    other.theta[...] = first.theta  # now only the experience differs
    for exp in (first, again, other):
        train(exp, 2)
    assert_equal(first.arrays, again.arrays)
    assert not np.array_equal(first.theta, other.theta)


def test_after_a_reset_nothing_depends_on_what_came_before_it():
    first, other = make(capacity=3), make(capacity=3, seed=0)
    train(other, 3)
    for name, array in other.arrays.items():
        array[...] = first.arrays[name]
    for exp in (first, other):
        exp.reset(7)
        train(exp, 2)
    assert_equal(first.arrays, other.arrays)


def test_resets_at_different_updates_see_different_episodes():
    first, other = make(), make()
    first.reset(1), other.reset(2)
    assert not np.array_equal(train(first, 1)["rollout"].obs, train(other, 1)["rollout"].obs)


@pytest.mark.parametrize("algo", POLICY_GRADIENT)
def test_every_update_yields_what_a_run_records(algo):
    exp = make(algo)
    theta = exp.theta.copy()
    update = train(exp, 1)
    assert update["rollout"].env_steps > 0
    assert np.isfinite(update["grad_norm"]) and update["grad_norm"] > 0
    assert 0 < update["entropy"] <= np.log(2) + 1e-6
    assert exp.theta is exp.arrays["theta"] and not np.array_equal(exp.theta, theta)


@pytest.mark.parametrize("algo", POLICY_GRADIENT)
def test_settings_that_build_does_not_use_are_the_algorithms_arguments(algo, monkeypatch):
    seen = {}
    monkeypatch.setattr(experiment, algo.replace("-", "_"), lambda *args, **kwargs: seen.update(kwargs))
    changes = {"gamma": 0.5, "standardise": True, "entropy_weight": 0.25, "max_grad_norm": 0.125}
    make(algo, **changes)
    assert {name: seen[name] for name in changes} == changes
    for name in {"n_steps", "lam", "iterations"} & SETTINGS[algo].keys():
        assert seen[name] == SETTINGS[algo][name]


@pytest.mark.parametrize("algo", SERIAL)
def test_an_unknown_setting_is_an_error_that_names_it(algo):
    with pytest.raises(TypeError, match="temperature"):
        make(algo, temperature=1.0)


def test_an_unknown_algorithm_is_an_error_that_names_it():
    envs = make_envs("CartPole-v1", 2)
    with pytest.raises(ValueError, match="sarsa"):
        build("sarsa", envs, default_distribution(envs), 0, {**NETWORK, **SETTINGS["ppo"]})


def test_networks_have_the_hidden_layers_and_the_activation_that_were_asked_for():
    actor, critic = MLP((4, 5, 6, 2), "relu"), MLP((4, 5, 6, 1), "relu")
    two, one = (make(hidden=[5, 6], activation="relu", shared=shared) for shared in (False, True))
    assert two.theta.size == actor.size + critic.size
    assert one.theta.size == MLP((4, 5, 6, 3)).size
    assert make(hidden=[]).theta.size == MLP((4, 2)).size + MLP((4, 1)).size
    obs = np.ones((1, 4), np.float32)
    logits, _ = two.policy.policy.params(two.policy.actor(two.theta), obs)
    np.testing.assert_array_equal(logits, actor.forward(two.theta[: actor.size], obs)[0])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sigma, n_out, tail", [("state", 2, 0), ("learned", 1, 1), ("fixed", 1, 0)])
def test_sigma_is_an_output_a_parameter_or_a_constant(shared, sigma, n_out, tail):
    exp = make("a2c", "Pendulum-v1", sigma=sigma, log_std=-1.5, shared=shared)
    critic = 0 if shared else MLP((3, 8, 1)).size
    assert exp.theta.size == MLP((3, 8, n_out + shared)).size + tail + critic
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    log_std = lambda: exp.policy.policy.params(exp.policy.actor(exp.theta), obs)[0][:, 1]
    before = log_std()
    train(exp, 3)
    if sigma == "state":
        assert np.ptp(log_std()) > 0
    else:
        np.testing.assert_array_equal(before, np.float32(-1.5))
        assert np.ptp(log_std()) == 0
        assert (log_std()[0] == np.float32(-1.5)) == (sigma == "fixed")


@pytest.mark.parametrize("algo", [*POLICY_GRADIENT, "es", "finite-difference"])
def test_a_learning_rate_of_0_stops_all_learning_and_1_gives_it_back(algo):
    exp = make(algo)
    train(exp, 1)
    exp.set_learning_rate(0)
    names = [name for name in exp.arrays if "." not in name and name != "log_std"]  # that of es is fixed here
    before = copies(exp)
    train(exp, 2)
    for name in names:
        np.testing.assert_array_equal(exp.arrays[name], before[name])
    exp.set_learning_rate(1)
    train(exp, 3)  # in one alone all candidates may do equally well
    for name in names:
        assert not np.array_equal(exp.arrays[name], before[name])


def test_the_learning_rate_is_a_fraction_of_the_initial_one():
    steps = {}
    for fraction in (1, 0.5):
        exp = make("a2c")
        before = exp.theta.copy()
        for f in (0.1, fraction):
            exp.set_learning_rate(f)  # of the initial one, not of the last
        train(exp, 1)
        steps[fraction] = exp.theta - before
    np.testing.assert_allclose(steps[0.5], 0.5 * steps[1], atol=1e-7)
    assert np.max(np.abs(steps[1])) == pytest.approx(GRADIENT["learning_rate"], rel=1e-3)  # Adam's first step


@pytest.mark.parametrize(
    "algo, critic",
    [
        ("reinforce", lambda exp: exp.arrays["phi"]),
        ("q-actor-critic", lambda exp: exp.arrays["w"]),
        ("actor-critic", lambda exp: exp.policy.critic(exp.theta)),
    ],
)
def test_actor_and_critic_have_learning_rates_of_their_own(algo, critic):
    still = make(algo, critic_learning_rate=0.0)
    before = critic(still).copy()
    theta = still.theta.copy()
    train(still, 2)
    np.testing.assert_array_equal(critic(still), before)
    assert not np.array_equal(still.theta, theta)
    only = make(algo, learning_rate=0.0)
    train(only, 2)
    assert not np.array_equal(critic(only), before)
    n_actor = MLP((4, 8, 2)).size
    np.testing.assert_array_equal(only.theta[:n_actor], theta[:n_actor])


@pytest.mark.parametrize("algo", GRADIENT_FREE)
@pytest.mark.parametrize("env, bounds", [("CartPole-v1", (1, 500)), ("Pendulum-v1", (-2000, 0))])
def test_every_iteration_of_a_gradient_free_method_yields_what_a_run_records(algo, env, bounds):
    exp = make(algo, env)
    update = train(exp, 1)
    rollout, n = update["rollout"], 3 * update["evaluations"]  # an episode in each of 3 environments
    assert len(rollout.episode_returns) == len(rollout.episode_lengths) == n
    assert rollout.env_steps == sum(rollout.episode_lengths)
    assert bounds[0] <= min(rollout.episode_returns) and max(rollout.episode_returns) <= bounds[1]
    np.testing.assert_allclose(update["values"], np.reshape(rollout.episode_returns, (-1, 3)).mean(axis=1))
    assert exp.theta is exp.arrays["theta"]


@pytest.mark.parametrize("algo", GRADIENT_FREE)
def test_gradient_free_methods_train_deterministic_policies(algo):
    for env in ("CartPole-v1", "Pendulum-v1"):
        exp, n_in, n_out = make(algo, env, hidden=[8]), *((4, 2) if env == "CartPole-v1" else (3, 1))
        assert exp.theta.size == MLP((n_in, 8, n_out)).size  # and no σ
        obs, network = np.random.default_rng(0).normal(size=(100, n_in)), exp.policy.network
        y, _ = network.forward(exp.theta, obs)
        np.testing.assert_array_equal(exp.policy.act(exp.theta, obs), y.argmax(axis=1) if n_out == 2 else y)


@pytest.mark.parametrize("algo", GRADIENT_FREE)
def test_the_moments_of_normalised_observations_are_all_that_a_gradient_free_method_keeps_besides(algo):
    envs = [make_envs("Pendulum-v1", 2, normalise_obs=True) for _ in range(2)]
    uninterrupted, resumed = (make(algo, "Pendulum-v1", envs=pair) for pair in envs)
    train(uninterrupted, 2)
    moments, saved = {name: array.copy() for name, array in normaliser(envs[0]).items()}, copies(uninterrupted)
    assert moments["obs_count"] == pytest.approx(2 * len(train(uninterrupted, 1)["rollout"].episode_lengths) * 200)
    for name, array in resumed.arrays.items():
        array[...] = saved[name]
    set_normaliser(envs[1], **moments)
    uninterrupted.reset(5), resumed.reset(5)
    set_normaliser(envs[0], **moments)
    for name, array in uninterrupted.arrays.items():
        array[...] = saved[name]
    train(uninterrupted, 2), train(resumed, 2)
    assert_equal(resumed.arrays, uninterrupted.arrays)
    assert_equal(normaliser(envs[1]), normaliser(envs[0]))


def test_streams_of_random_numbers_of_one_seed_never_meet():
    for seed in (0, 1, 2, 12345, 2**40):
        streams = [(seed, INIT)]
        streams += [(seed, TRAIN, k) for k in range(200)]
        streams += [(seed, EVALUATE, k, j) for k in range(1, 200) for j in range(2)]
        draws = [int(np.random.default_rng(stream).integers(2**63)) for stream in streams]
        assert len(set(draws)) == len(streams)


# Workers


@pytest.fixture
def closing():
    """closing(experiment) is the experiment; its workers end with the test."""
    experiments = []
    yield lambda exp: experiments.append(exp) or exp
    for exp in experiments:
        exp.updates.close()
    assert not multiprocessing.active_children()


def test_a2c_with_one_worker_is_a2c_with_none(closing):
    here, there = make("a2c"), closing(make("a2c", n_workers=1))
    for k in (0, 3):
        for exp in (here, there):
            exp.reset(k)
            train(exp, 3)
        assert_equal(there.arrays, here.arrays)


@pytest.mark.parametrize("algo", ["es", "genetic"])
def test_candidates_evaluated_by_workers_are_those_evaluated_here(closing, algo):
    here, there = make(algo), closing(make(algo, n_workers=2))
    for exp in (here, there):
        train(exp, 3)
    assert_equal(there.arrays, here.arrays)


def test_synchronous_workers_go_on_bit_for_bit_from_the_arrays_and_a_reset(closing):
    uninterrupted, resumed = (closing(make("a2c", n_workers=2)) for _ in range(2))
    train(uninterrupted, 3)
    uninterrupted.reset(3)
    saved = copies(uninterrupted)
    resumed.reset(3)
    for name, array in resumed.arrays.items():
        array[...] = saved[name]
    for exp in (uninterrupted, resumed):
        train(exp, 3)
    assert_equal(resumed.arrays, uninterrupted.arrays)
    assert not np.array_equal(resumed.theta, saved["theta"])


@pytest.mark.parametrize("statistics, vectors", [("shared", ["theta.v"]), ("own", ["theta.v", "theta_1.v"])])
def test_asynchronous_workers_go_on_from_the_arrays(closing, statistics, vectors):
    first = closing(make("a3c", n_workers=2, statistics=statistics))
    update = train(first, 2)
    assert {"rollout", "grad_norm", "entropy", "staleness", "worker_steps", "workers_restarted"} <= update.keys()
    assert set(first.arrays) == {"theta", "worker_steps", "worker_updates", *vectors}
    assert first.theta is first.arrays["theta"] and all(np.any(first.arrays[name]) for name in vectors)
    resumed = closing(make("a3c", n_workers=2, statistics=statistics))
    for name, array in resumed.arrays.items():
        array[...] = first.arrays[name]
    resumed.reset(2)
    update = train(resumed, 1)
    counted = resumed.arrays["worker_steps"] - first.arrays["worker_steps"]
    assert counted.tolist() == update["worker_steps"] and counted.sum() >= 100
    assert not np.array_equal(resumed.theta, first.theta)


def test_a_learning_rate_of_0_reaches_asynchronous_workers(closing):
    exp = closing(make("a3c", n_workers=1))
    train(exp, 1)
    before = exp.theta.copy()
    exp.set_learning_rate(0)
    train(exp, 1)
    np.testing.assert_array_equal(exp.theta, before)


def test_workers_explore_differently(closing, monkeypatch):
    seen = []

    def start_pool(actors, *args, **kwargs):
        seen.extend(actors)
        raise InterruptedError

    monkeypatch.setattr(experiment, "start_pool", start_pool)
    exp = make("a3c", n_workers=5, epsilons=[0.0, 0.1, 0.2], temperatures=[1.0, 2.0])
    with pytest.raises(InterruptedError):
        next(exp.updates)
    logits = np.array([0.0, 2.0])
    for actor, epsilon, temperature in zip(seen, [0, 0.1, 0.2, 0, 0.1], [1, 2, 1, 2, 1], strict=True):
        greedy = 1 / (1 + np.exp(-2 / temperature))
        logp = actor.model.distribution.log_prob(logits, np.array(1))
        assert np.exp(logp) == pytest.approx((1 - epsilon) * greedy + epsilon / 2)


@pytest.mark.parametrize("algo, n_workers", [("a3c", None), ("ppo", 2), ("reinforce", 1)])
def test_workers_are_for_those_that_have_a_use_for_them(algo, n_workers):
    with pytest.raises(ValueError, match=f"workers: expected .* for {algo}"):
        make(algo, n_workers=n_workers)


@pytest.mark.parametrize("algo", ["a2c", "a3c"])
def test_an_unknown_setting_is_an_error_with_workers_too(algo):
    with pytest.raises(TypeError, match="warmth"):
        make(algo, n_workers=2, warmth=1.0)
