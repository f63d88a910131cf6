"""A script's functions make the promised parts from a task and settings. A checkpoint holds all that they need."""

import functools
import importlib.util
import io
import multiprocessing
import pathlib
import sys
import threading
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import test_environments  # noqa: F401  registers the environments "strange/…"
from gymnasium.spaces import Box
from running import assert_equal, config_of, tiny
from test_actors import Here

import npg.actor_critic
import npg.reinforce
import npg.replay
from npg.distributions import Bernoulli, Categorical, Deterministic, Gaussian, GaussianMixture, MultivariateGaussian
from npg.network import MLP
from npg.policy import Policy
from npg.reinforce import BASELINES
from npg.rollout import play
from npg.runner import playing
from npg.runner import task as module
from npg.runner.environments import moments, set_moments
from npg.runner.folder import RunError
from npg.runner.playing import COMMAND, CONFIRMING, FINAL, GREEDY, MORE, MORE_GREEDY, POINT, Player
from npg.runner.script import RUN, prepare
from npg.runner.task import INIT, TRAIN, Learner, stochastic_policy

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
import run_cartpole


def ppo_ahead(task, *, ahead=1, **settings):
    """PPO with rollouts that are drawn ahead."""
    task.sampler = functools.partial(task.sampler, ahead=ahead)
    return run_cartpole.ppo(task, **settings)


AHEAD = {"ppo-ahead": (ppo_ahead, run_cartpole.ppo, npg.replay.ppo)}
SCRIPT = run_cartpole.SCRIPT._replace(algorithms={**run_cartpole.ALGORITHMS, **AHEAD})
GRADIENT_FREE = tuple(SCRIPT.searches)
SERIAL = [algo for algo in run_cartpole.SCRIPT.algorithms if algo != "a3c"]
POLICY_GRADIENT = [algo for algo in SERIAL if algo not in GRADIENT_FREE]
NETWORK = {"hidden": [8], "activation": "tanh", "envs": 3}
GRADIENT = {"gamma": 0.99, "learning_rate": 1e-2}
SETTINGS = {
    "ppo": {"n_steps": 16, "batch_size": 16, "epochs": 2, "lam": 0.95, "shared": False, "capacity": 3},
    "a2c": {"n_steps": 8, "lam": 0.95, "shared": False},
    "actor-critic": {"n_steps": 8, "batch_size": 8, "epochs": 2, "shared": False, "critic_learning_rate": 2e-2},
    "q-actor-critic": {"n_steps": 8, "batch_size": 8, "epochs": 1, "iterations": 2, "critic_learning_rate": 2e-2},
    "a3c": {"n_steps": 8, "lam": 0.95, "shared": False, "report_every": 100},
    "reinforce": {"baseline": "state", "batch_size": 64, "epochs": 2, "critic_learning_rate": 2e-2},
    "es": {"learning_rate": 1e-2, "search_sigma": "fixed", "search_log_std": -1.0, "n_candidates": 4},
    "finite-difference": {"learning_rate": 1e-2, "scheme": "forward", "epsilon": 0.1, "n_candidates": 5},
    "hill-climbing": {"search_log_std": -1.0, "n_candidates": 4, "patience": 1},
    "genetic": {"search_log_std": -1.0, "n_candidates": 4, "n_parents": 2},
}
SETTINGS["ppo-ahead"] = dict(SETTINGS["ppo"])
for algo, settings in SETTINGS.items():
    settings.update({"hidden": [], "common_seeds": True} if algo in GRADIENT_FREE else GRADIENT)
POLICY = ("policy", "components", "sigma", "log_std")
GAUSSIAN = {"sigma": "learned", "log_std": -0.5}
VARIANTS = [(algo, {}) for algo in SERIAL] + [
    ("ppo", {"shared": True, "importance": "truncated"}),
    ("ppo", {"scale_rewards": True}),
    ("ppo-ahead", {}),
    ("ppo-ahead", {"ahead": 3}),
    ("a2c", {"shared": True}),
    ("actor-critic", {"estimation": "td", "proximal": 0.1}),
    *(("reinforce", {"baseline": baseline}) for baseline in BASELINES if baseline != "state"),
    ("es", {"search_sigma": "learned", "shaping": "standardise", "common_seeds": False}),
    ("finite-difference", {"scheme": "central"}),
    ("finite-difference", {"scheme": "kohl-stone"}),
]


# Searches and REINFORCE play whole episodes. These are shorter than Pendulum's 200 steps.
gymnasium.register("brief/Pendulum-v1", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=40)


def make(algo="ppo", env="CartPole-v1", seed=0, n_workers=None, executor=None, **changes):
    """A task and its learner, with the parts that the tests need: theta, arrays, updates, policy, task, learner."""
    is_box = env.endswith("Pendulum-v1")
    gaussian = GAUSSIAN if is_box and algo not in GRADIENT_FREE else {}
    parameters = SCRIPT.settings_of(algo, is_box, elsewhere=is_box)
    settings = {name: parameter.default for name, parameter in parameters.items() if name not in RUN}
    settings |= {**NETWORK, **SETTINGS[algo], **gaussian, **({"workers": n_workers} if n_workers else {}), **changes}
    run = {name: parameters[name].default for name in RUN if name in parameters}
    config = {**run, "env": env, "seed": seed, "algo": algo, "settings": settings}
    task, learner = prepare(SCRIPT, config, "test", executor)
    parts = {name: getattr(learner, name) for name in ("theta", "arrays", "updates", "policy")}
    return SimpleNamespace(**parts, task=task, learner=learner)


def train(exp, n):
    """Makes n updates and returns the last one."""
    for _ in range(n):
        update = next(exp.updates)
    return update


def copies(exp):
    return {name: array.copy() for name, array in exp.arrays.items()}


def saved(exp):
    """The contents of a checkpoint, after they were saved and read again."""
    file = io.BytesIO()
    np.savez(file, **exp.arrays, **exp.learner.experience(), **exp.task.state(), **moments(exp.task.obs_rms))
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


def restored(exp, saved, update):
    """`exp`, after it has read this checkpoint."""
    for name, array in exp.arrays.items():
        array[...] = saved[name]
    if exp.task.obs_rms:
        set_moments(exp.task.obs_rms, **{name: saved[name] for name in moments(exp.task.obs_rms)})
    exp.learner.restore(saved)
    exp.task.restore(saved, update)
    return exp


@pytest.mark.parametrize("env", ["CartPole-v1", "brief/Pendulum-v1"])
@pytest.mark.parametrize("algo, changes", VARIANTS)
def test_a_checkpoint_changes_nothing_and_holds_all_that_a_bitwise_resume_needs(algo, changes, env):
    never_saved, first = make(algo, env, **changes), make(algo, env, **changes)
    expected = train(never_saved, 4)
    train(first, 2)
    checkpoint = saved(first)
    train(first, 2)
    assert_equal(first.arrays, never_saved.arrays)

    resumed = restored(make(algo, env, **changes), checkpoint, 2)
    update = train(resumed, 2)
    assert resumed.task.replayed
    assert_equal(resumed.arrays, never_saved.arrays)
    assert update["rollout"].episode_returns == expected["rollout"].episode_returns
    if algo not in GRADIENT_FREE:  # their θ may stay the best for some updates
        assert not np.array_equal(resumed.theta, checkpoint["theta"])


@pytest.mark.parametrize("algo", SERIAL)
def test_a_seed_decides_everything(algo):
    first, again, other = make(algo), make(algo), make(algo, seed=1)
    assert not np.array_equal(first.theta, other.theta)
    other.theta[...] = first.theta  # now only the experience differs
    for exp in (first, again, other):
        train(exp, 2)
    assert_equal(first.arrays, again.arrays)
    assert not np.array_equal(first.theta, other.theta)


def two_samplers(task, *, hidden=(8,), learning_rate=1e-2):
    """An algorithm that needs two samplers and a generator of its own."""
    samplers, rng = [task.sampler(3), task.sampler(3)], task.rng(TRAIN)
    policy = Policy(MLP((task.n_obs, *hidden, task.n_out)), task.distribution)
    theta = policy.init(task.rng(INIT))

    def updates():
        while True:
            rollouts = [sampler.steps(policy, theta, 8) for sampler in samplers]
            theta[...] += np.float32(learning_rate * rng.normal())
            yield {"rollout": rollouts[0], "both": rollouts}

    return Learner(policy, updates(), {"theta": (theta, None)})


def test_updates_must_be_an_iterator_not_the_generator_function():
    def updates():
        yield {}

    with pytest.raises(TypeError, match="updates: expected an iterator, got <function .*; call the generator function"):
        Learner(None, updates, {"theta": (np.zeros(2), None)})
    Learner(None, updates(), {"theta": (np.zeros(2), None)})


def test_two_samplers_and_a_generator_of_one_run_have_their_own_random_numbers(monkeypatch):
    script = SCRIPT._replace(algorithms={"two": (two_samplers,)}, searches=())
    monkeypatch.setitem(globals(), "SCRIPT", script)
    monkeypatch.setitem(SETTINGS, "two", {})
    monkeypatch.setitem(globals(), "NETWORK", {})

    def differ(exp):
        first, second = train(exp, 1)["both"]
        assert not np.array_equal(first.obs, second.obs) and not np.array_equal(first.act, second.act)
        draws = [rng.random() for rng in (*(sampler.rng for sampler in exp.task.samplers), *exp.task.rngs)]
        assert len(set(draws)) == 3

    first, resumed, anew = make("two"), make("two"), make("two")
    train(first, 2)
    checkpoint = saved(first)
    train(first, 2)
    train(restored(resumed, checkpoint, 2), 2)
    assert_equal(resumed.arrays, first.arrays)
    anew.task.restore({}, 2)
    differ(anew)
    differ(make("two"))


@pytest.mark.parametrize("algo, n_workers", [("ppo", None), ("ppo-ahead", None), ("es", None), ("a2c", 2), ("a3c", 2)])
def test_without_a_saved_state_a_resumed_run_begins_new_episodes_and_says_so(closing, algo, n_workers):
    first, after_1, after_2, again = (closing(make(algo, n_workers=n_workers)) for _ in range(4))
    assert first.task.replayed
    for exp, update in ((after_1, 1), (after_2, 2), (again, 2)):
        exp.task.restore({}, update)
        assert not exp.task.replayed
    for exp in (first, after_1, after_2):
        train(exp, 1)
    assert len({exp.theta.tobytes() for exp in (first, after_1, after_2)}) == 3
    if algo != "a3c":  # no two runs of a3c are equal
        train(again, 1)
        assert_equal(again.arrays, after_2.arrays)


def test_the_buffers_oldest_batch_which_the_next_update_drops_is_not_saved():
    exp = make(capacity=3)
    assert exp.learner.experience() == {}
    for batches in (1, 2, 2):
        train(exp, 1)
        assert len({name.split(".")[1] for name in exp.learner.experience()}) == batches
    assert make(capacity=1).learner.experience() == {}


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
    home = {"reinforce": npg.reinforce, "ppo": npg.replay}.get(algo, npg.actor_critic)
    monkeypatch.setattr(home, algo.replace("-", "_"), lambda *args, **kwargs: iter([seen.update(kwargs)]))
    changes = {"gamma": 0.5, "standardise": True, "entropy_coef": 0.25, "max_grad_norm": 0.125}
    make(algo, **changes)
    assert {name: seen[name] for name in changes} == changes
    for name in {"n_steps", "lam", "iterations"} & SETTINGS[algo].keys():
        assert seen[name] == SETTINGS[algo][name]


def test_samplers_that_draw_ahead_share_the_environments_evenly_or_not_at_all():
    rollout = train(make("ppo-ahead", ahead=3), 1)["rollout"]
    assert rollout.rew.shape == (16, 3) and len(np.unique(rollout.obs[0, :, 0])) == 3
    with pytest.raises(RunError, match=r"envs: expected a multiple of ahead \(2\), got 3"):
        make("ppo-ahead", ahead=2)


@pytest.mark.parametrize("algo", SERIAL)
def test_an_unknown_setting_is_an_error_that_names_it(algo):
    with pytest.raises(RunError, match="temperature: not a setting of"):
        make(algo, temperature=1.0)


def test_discrete_actions_get_a_softmax_and_box_actions_a_gaussian():
    of = lambda env, script=SCRIPT: prepare(script, config_with_policy(env), "test")[0]
    softmax, gaussian = of("Acrobot-v1"), of("Pendulum-v1")
    assert isinstance(softmax.distribution, Categorical) and softmax.distribution.n == 3
    assert (softmax.n_obs, softmax.n_act, softmax.n_out, softmax.is_box) == (6, 3, 3, False)
    assert softmax.deterministic is softmax.distribution
    assert isinstance(gaussian.distribution, Gaussian) and gaussian.distribution.n == 1
    assert (gaussian.n_obs, gaussian.n_act, gaussian.n_out, gaussian.is_box) == (3, 1, 1, True)
    assert isinstance(gaussian.deterministic, Deterministic)
    assert of("strange/Bounded-v0").distribution.n == of("strange/Bounded-v0").n_act == 2
    one_logit = of("CartPole-v1", SCRIPT._replace(one_logit=True))
    assert isinstance(one_logit.distribution, Bernoulli) and one_logit.n_out == 1


def config_with_policy(env):
    """`config_of`. If the environment has Box actions, the config also has the settings of their policies."""
    is_box = isinstance(SCRIPT.probe(env).single_action_space, Box)
    return config_of(env=env, **{n: SCRIPT.settings_of("ppo", True)[n].default for n in POLICY if is_box})


def test_networks_have_the_hidden_layers_and_the_activation_that_were_asked_for():
    actor, critic = MLP((4, 5, 6, 2), "relu"), MLP((4, 5, 6, 1), "relu")
    two, one = (make(hidden=[5, 6], activation="relu", shared=shared) for shared in (False, True))
    assert two.theta.size == actor.size + critic.size
    assert one.theta.size == MLP((4, 5, 6, 3)).size
    assert make(hidden=[]).theta.size == MLP((4, 2)).size + MLP((4, 1)).size
    obs = np.ones((1, 4), np.float32)
    logits, _ = two.policy.policy.params(two.policy.actor_params(two.theta), obs)
    np.testing.assert_array_equal(logits, actor.forward(two.theta[: actor.size], obs)[0])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sigma, n_out, tail", [("state", 2, 0), ("learned", 1, 1), ("fixed", 1, 0)])
def test_sigma_is_an_output_a_parameter_or_a_constant(shared, sigma, n_out, tail):
    exp = make("a2c", "Pendulum-v1", sigma=sigma, log_std=-1.5, shared=shared)
    critic = 0 if shared else MLP((3, 8, 1)).size
    assert exp.theta.size == MLP((3, 8, n_out + shared)).size + tail + critic
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    log_std = lambda: exp.policy.policy.params(exp.policy.actor_params(exp.theta), obs)[0][:, 1]
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
    exp = make(algo, anneal=True)
    train(exp, 1)
    exp.learner.anneal(0)
    names = [name for name in exp.arrays if "." not in name and name != "log_std"]  # es has a fixed log_std here
    before = copies(exp)
    train(exp, 2)
    for name in names:
        np.testing.assert_array_equal(exp.arrays[name], before[name])
    exp.learner.anneal(1)
    train(exp, 3)  # in a single update, all candidates may be equally good
    for name in names:
        assert not np.array_equal(exp.arrays[name], before[name])


def test_learning_rates_are_left_alone_unless_the_run_anneals_them():
    steps = {}
    for fraction in (1, 0):
        exp = make("a2c", anneal=False)
        exp.learner.anneal(fraction)
        train(exp, 2)
        steps[fraction] = exp.theta.copy()
    np.testing.assert_array_equal(steps[0], steps[1])


def test_the_learning_rate_is_a_fraction_of_the_initial_one():
    steps = {}
    for fraction in (1, 0.5):
        exp = make("a2c", optimizer="adam", anneal=True, max_grad_norm=None, standardise=False)
        before = exp.theta.copy()
        for f in (0.1, fraction):
            exp.learner.anneal(f)  # of the initial rate, not of the last one
        train(exp, 1)
        steps[fraction] = exp.theta - before
    np.testing.assert_allclose(steps[0.5], 0.5 * steps[1], atol=1e-7)
    assert np.max(np.abs(steps[1])) == pytest.approx(GRADIENT["learning_rate"], rel=1e-3)  # Adam's first step


@pytest.mark.parametrize(
    "algo, critic",
    [
        ("reinforce", lambda exp: exp.arrays["phi"]),
        ("q-actor-critic", lambda exp: exp.arrays["w"]),
        ("actor-critic", lambda exp: exp.policy.critic_params(exp.theta)),
    ],
)
def test_actor_and_critic_have_learning_rates_of_their_own(algo, critic):
    still = make(algo)
    name = {"reinforce": "phi", "q-actor-critic": "w", "actor-critic": "critic"}[algo]
    still.learner.learned[name][1].learning_rate = 0.0
    before = critic(still).copy()
    theta = still.theta.copy()
    train(still, 2)
    np.testing.assert_array_equal(critic(still), before)
    assert not np.array_equal(still.theta, theta)
    only = make(algo)
    only.learner.learned["theta"][1].learning_rate = 0.0
    train(only, 2)
    assert not np.array_equal(critic(only), before)
    n_actor = MLP((4, 8, 2)).size
    np.testing.assert_array_equal(only.theta[:n_actor], theta[:n_actor])


@pytest.mark.parametrize("algo", GRADIENT_FREE)
@pytest.mark.parametrize("env, bounds", [("CartPole-v1", (1, 500)), ("brief/Pendulum-v1", (-2000, 0))])
def test_every_iteration_of_a_gradient_free_method_yields_what_a_run_records(algo, env, bounds):
    exp = make(algo, env)
    update = train(exp, 1)
    rollout, n = update["rollout"], 3 * update["candidates"]  # an episode in each of 3 environments
    assert len(rollout.episode_returns) == len(rollout.episode_lengths) == n
    assert rollout.env_steps == sum(rollout.episode_lengths)
    assert bounds[0] <= min(rollout.episode_returns) and max(rollout.episode_returns) <= bounds[1]
    np.testing.assert_allclose(update["values"], np.reshape(rollout.episode_returns, (-1, 3)).mean(axis=1))
    assert exp.theta is exp.arrays["theta"]


@pytest.mark.parametrize("algo", GRADIENT_FREE)
def test_gradient_free_methods_train_deterministic_policies(algo):
    for env in ("CartPole-v1", "Pendulum-v1"):
        exp, n_in, n_out = make(algo, env, hidden=[8]), *((4, 2) if env == "CartPole-v1" else (3, 1))
        assert exp.theta.size == MLP((n_in, 8, n_out)).size  # without σ
        obs, network = np.random.default_rng(0).normal(size=(100, n_in)), exp.policy.network
        y, _ = network.forward(exp.theta, obs)
        np.testing.assert_array_equal(exp.policy.act(exp.theta, obs), y.argmax(axis=1) if n_out == 2 else y)


@pytest.mark.parametrize("algo", SERIAL)
def test_the_moments_of_normalised_observations_come_back_too(algo):
    uninterrupted, first, resumed = (make(algo, "brief/Pendulum-v1", envs=2, normalise_obs=True) for _ in range(3))
    train(uninterrupted, 4), train(first, 2)
    checkpoint = saved(first)
    assert checkpoint["obs_count"] > 2 * 8 and checkpoint["obs_mean"].dtype == np.float32
    train(restored(resumed, checkpoint, 2), 2)
    assert resumed.task.replayed
    assert_equal(resumed.arrays, uninterrupted.arrays)
    assert_equal(moments(resumed.task.obs_rms), moments(uninterrupted.task.obs_rms))
    assert not np.array_equal(resumed.task.obs_rms.mean, checkpoint["obs_mean"])


@pytest.mark.parametrize("algo", GRADIENT_FREE)
def test_the_moments_of_a_gradient_free_method_are_of_the_observations_of_all_its_candidates(algo):
    exp = make(algo, "brief/Pendulum-v1", envs=2, normalise_obs=True)
    lengths = [len(train(exp, 1)["rollout"].episode_lengths) for _ in range(2)]
    assert moments(exp.task.obs_rms)["obs_count"] == pytest.approx(sum(lengths) * 40)


def test_an_evaluation_costs_what_it_takes_beside_training():
    for env, envs, cost_of, more in (
        ("CartPole-v1", 2, lambda lengths: 5 * max(lengths), {}),  # one call steps all of its environments
        ("CartPole-v1", 32, lambda lengths: 16 * max(lengths), {}),  # training with 32 needs few calls
        ("Pendulum-v1", 32, sum, {}),  # each environment takes its own time
        ("CartPole-v1", 32, lambda lengths: int(1.5 * sum(lengths)), {"side_by_side": 2, "step_cost": 1.5}),
    ):
        config = config_with_policy(env)
        config["settings"]["envs"] = envs
        player, lengths = Player(*prepare(SCRIPT._replace(**more), config)), []

        def recorded(*args):
            played = play(*args)
            lengths.append(played[1])
            return played

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(playing, "play", recorded)
            _, cost = player.returns(3, "most-likely", POINT)
        assert cost == cost_of(*lengths) > 3
        assert player.cost(3, 10) == cost_of([10, 10, 10])


def test_an_evaluation_shares_its_episodes_evenly_between_its_environments():
    player = Player(*prepare(SCRIPT._replace(side_by_side=6), config_with_policy("CartPole-v1")))
    for n, n_envs in (4, 4), (6, 6), (7, 4), (10, 5), (30, 6), (100, 6):
        player.envs.clear()
        assert len(player.returns(n, "most-likely", POINT)[0]) == n and [*player.envs] == [n_envs]


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_streams_of_random_numbers_of_one_seed_never_meet(monkeypatch, seed):
    """Every generator that a run with several samplers makes, also after a resume that begins new episodes."""
    made, default_rng = [], np.random.default_rng

    def recording(seeds):
        made.append((seeds, int(default_rng(seeds).integers(2**63))))
        return default_rng(seeds)

    monkeypatch.setattr(np.random, "default_rng", recording)
    player = Player(*prepare(SCRIPT, {**config_with_policy("CartPole-v1"), "seed": seed}))
    task = player.task
    task.is_complete = False
    task.rng(INIT), task.sampler(3), task.sampler(4, ahead=2), task.rng(TRAIN)
    for update in range(1, 4):
        task.restore({}, update)
    for update in range(4):
        for purpose in (POINT, CONFIRMING, FINAL, MORE, GREEDY, MORE_GREEDY):
            player.returns(2, "sampled", update, purpose)
    player.returns(2, "sampled", 0, COMMAND)
    assert len(made) > 60
    first = {}
    for seeds, draw in made[1:]:  # the first generator is that of `prepare`, for the parameters
        assert first.setdefault(draw, seeds) is seeds or seeds == [seed, INIT], (first[draw], seeds)


# Environments


class Counted(gymnasium.Env):
    """CartPole that counts how many of it are open."""

    opened = closed = 0

    def __init__(self, render_mode=None):
        self.env = gymnasium.make("CartPole-v1", render_mode=render_mode)
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        self.metadata, self.render_mode = self.env.metadata, render_mode
        self.reset, self.step, self.render = self.env.reset, self.env.step, self.env.render
        Counted.opened += 1

    def close(self):
        Counted.closed += 1


gymnasium.register("strange/Counted-v0", Counted, max_episode_steps=500)


def test_every_environment_is_closed(call, tmp_path):
    for algo in ("ppo", "es"):
        assert call(tiny(algo, "--env strange/Counted-v0 --steps 200"), out=tmp_path / algo).code == 0
        assert Counted.opened == Counted.closed > 0
        assert call("--quiet --steps 400", resume=tmp_path / algo).code == 0
        assert Counted.opened == Counted.closed
        commands = ("evaluate", "gif") if importlib.util.find_spec("pygame") else ("evaluate",)
        for command in commands:
            assert call("", **{command: tmp_path / algo}).code == 0
            assert Counted.opened == Counted.closed


# Workers


@pytest.fixture
def closing(quick_workers):
    """closing(exp) returns exp. Its workers end with the test."""
    made = []
    yield lambda exp: made.append(exp) or exp
    for exp in made:
        exp.updates.close()
        exp.task.close()
    assert not multiprocessing.active_children()


def test_a2c_with_one_worker_is_a2c_with_none(closing):
    here, there = make("a2c"), closing(make("a2c", n_workers=1))
    for _ in range(2):
        for exp in (here, there):
            train(exp, 3)
        assert_equal(there.arrays, here.arrays)


@pytest.mark.parametrize("algo", ["es", "genetic"])
def test_candidates_evaluated_by_workers_are_those_evaluated_here(closing, algo):
    here, there = make(algo), closing(make(algo, n_workers=2))
    for exp in (here, there):
        train(exp, 3)
    assert_equal(there.arrays, here.arrays)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_synchronous_workers_go_on_bit_for_bit_from_a_checkpoint(closing, env):
    uninterrupted, resumed = (closing(make("a2c", env, n_workers=2)) for _ in range(2))
    train(uninterrupted, 3)
    checkpoint = saved(uninterrupted)
    train(uninterrupted, 3), train(restored(resumed, checkpoint, 3), 3)
    assert_equal(resumed.arrays, uninterrupted.arrays)
    assert not np.array_equal(resumed.theta, checkpoint["theta"])
    checkpoints = saved(resumed), saved(uninterrupted)  # a checkpoint after a resume is complete, too
    assert_equal(*checkpoints)
    assert resumed.task.replayed


def test_restored_workers_can_be_saved_before_they_begin(closing):
    first, second, third = (closing(make("a2c", n_workers=2)) for _ in range(3))
    train(first, 2)
    checkpoint = saved(first)
    train(restored(third, saved(restored(second, checkpoint, 2)), 2), 2), train(first, 2)
    assert_equal(third.arrays, first.arrays)


@pytest.mark.parametrize("statistics, vectors", [("shared", ["theta.v"]), ("own", ["theta.v", "theta_1.v"])])
def test_asynchronous_workers_go_on_from_a_checkpoint(closing, statistics, vectors):
    first = closing(make("a3c", n_workers=2, statistics=statistics))
    update = train(first, 2)
    assert {"rollout", "grad_norm", "entropy", "staleness", "worker_steps"} <= update.keys()
    assert first.task.restarted == 0
    assert set(first.arrays) == {"theta", "worker_steps", "worker_updates", *vectors}
    assert first.theta is first.arrays["theta"] and all(np.any(first.arrays[name]) for name in vectors)
    resumed = restored(closing(make("a3c", n_workers=2, statistics=statistics)), saved(first), 2)
    update = train(resumed, 1)
    saved(resumed)
    assert resumed.task.replayed
    counted = resumed.arrays["worker_steps"] - first.arrays["worker_steps"]
    assert counted.tolist() == update["worker_steps"] and counted.sum() >= 100
    assert not np.array_equal(resumed.theta, first.theta)


def test_a_learning_rate_of_0_reaches_asynchronous_workers(closing):
    exp = closing(make("a3c", n_workers=1, anneal=True))
    train(exp, 1)
    before = exp.theta.copy()
    exp.learner.anneal(0)
    train(exp, 1)
    np.testing.assert_array_equal(exp.theta, before)


def test_workers_explore_differently(closing, monkeypatch):
    seen = []

    def start_pool(actors, *args, **kwargs):
        seen.extend(actors)
        raise InterruptedError

    monkeypatch.setattr(module, "start_pool", start_pool)
    with pytest.raises(InterruptedError):
        make("a3c", n_workers=5, epsilons=[0.0, 0.1, 0.2], temperatures=[1.0, 2.0])
    logits = np.array([0.0, 2.0])
    for actor, epsilon, temperature in zip(seen, [0, 0.1, 0.2, 0, 0.1], [1, 2, 1, 2, 1], strict=True):
        greedy = 1 / (1 + np.exp(-2 / temperature))
        logp = actor.model.distribution.log_prob(logits, np.array(1))
        assert np.exp(logp) == pytest.approx((1 - epsilon) * greedy + epsilon / 2)


def test_a_cluster_takes_the_place_of_workers_and_outlives_the_task():
    class Cluster(Here):
        calls = 0

        def submit(self, *args, **kwargs):
            self.calls += 1
            return super().submit(*args, **kwargs)

        kill_workers = None  # the task must not call it

    cluster, here = Cluster(), make("a2c")
    there = make("a2c", n_workers=1, executor=cluster)
    assert cluster.calls == 0
    for exp in (here, there):
        train(exp, 3)
    assert_equal(there.arrays, here.arrays)
    assert cluster.calls == 3 and there.task.restarted == 0
    there.task.close()
    exp = make("a3c", n_workers=2, executor=cluster)
    assert set(exp.arrays) == {"theta", "theta.v"}
    before, update = exp.theta.copy(), train(exp, 3)
    assert len(update["worker_steps"]) == 2 and not np.array_equal(exp.theta, before)
    search, alone = make("genetic", n_workers=2, executor=cluster), make("genetic")
    for exp in (search, alone):
        train(exp, 2)
    assert_equal(search.arrays, alone.arrays)


def test_without_gamma_rewards_cannot_be_scaled():
    environment, act = gymnasium.make_vec("CartPole-v1", num_envs=1), {"act": "sampled", "normalise_obs": False}
    with pytest.raises(ValueError, match="scale_rewards: expected false for an algorithm without the setting gamma"):
        module.Task(SCRIPT, "CartPole-v1", 0, {**act, "scale_rewards": True}, environment)


def test_with_workers_rewards_cannot_be_scaled():
    with pytest.raises(RunError, match="scale_rewards: expected false with workers, got true"):
        make("a2c", n_workers=2, scale_rewards=True)


def test_on_a_cluster_a3c_cannot_normalise_observations():
    with pytest.raises(RunError, match="normalise_obs: expected false for a3c on a cluster, got true"):
        make("a3c", n_workers=2, normalise_obs=True, executor=Here())


@pytest.mark.parametrize("workers, got", [(None, "None"), (0, "0"), (-1, "-1")])
def test_a3c_requires_workers(workers, got):
    with pytest.raises(RunError, match=f"workers: expected .*, got {got}"):
        make("a3c", workers=workers)


@pytest.mark.parametrize("algo", ["ppo", "reinforce"])
def test_algorithms_without_workers_refuse_them(algo):
    with pytest.raises(RunError, match=f"workers: not a setting of {algo}"):
        make(algo, n_workers=2)


@pytest.mark.parametrize("algo", ["a2c", "a3c"])
def test_an_unknown_setting_is_an_error_with_workers_too(algo):
    with pytest.raises(RunError, match="warmth"):
        make(algo, n_workers=2, warmth=1.0)


# What starts, and when


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("algo, n_workers", [*((algo, None) for algo in SERIAL), ("a2c", 2), ("a3c", 2), ("es", 2)])
def test_nothing_starts_before_the_first_update_is_asked_for(algo, n_workers, env, monkeypatch):
    made, threads = [], set(threading.enumerate())

    def make_envs(env_id, n, *, normalise_obs=False):
        made.append((n, "side by side"))
        return run_cartpole.SCRIPT.make_envs(env_id, n, normalise_obs=normalise_obs)

    def make_env(env_id, render_mode=None, *, normalise_obs=False):
        made.append("one")
        return run_cartpole.SCRIPT.make_env(env_id, render_mode, normalise_obs=normalise_obs)

    monkeypatch.setitem(globals(), "SCRIPT", SCRIPT._replace(make_envs=make_envs, make_env=make_env))
    exp = make(algo, env, n_workers=n_workers)
    assert set(made) == {(1, "side by side")}  # only for its spaces
    probes = len(made)
    exp.task.restore(exp.task.state(), 0)
    exp.task.restore({}, 4)
    exp.policy.act(exp.theta, np.zeros((2, 4 if env == "CartPole-v1" else 3), np.float32))
    assert len(made) == probes and not multiprocessing.active_children()
    assert set(threading.enumerate()) <= threads  # threads of earlier tests may end meanwhile
    if not n_workers:
        train(exp, 2)
        assert made[probes:] == (["one"] if algo in GRADIENT_FREE else [(3, "side by side")])
    exp.task.close()  # although nothing was started


def test_workers_start_with_the_first_update(closing):
    exp = closing(make("a2c", n_workers=2))
    assert not multiprocessing.active_children()
    train(exp, 1)
    assert len(multiprocessing.active_children()) == 2


# Policies over Box actions


@pytest.mark.parametrize("sigma", ["learned", "fixed", "state"])
@pytest.mark.parametrize(
    "policy, kind, n_mean, n_tail",
    [("gaussian", Gaussian, 2, 2), ("multivariate", MultivariateGaussian, 2, 3), ("mixture", GaussianMixture, 9, 6)],
)
def test_the_policies_of_the_slides_have_their_spread_where_sigma_says(policy, kind, n_mean, n_tail, sigma):
    chosen = stochastic_policy(Box(-1, 1, (2,)), policy=policy, components=3, sigma=sigma, log_std=-0.5)
    distribution, n_out, tail, learn_tail = chosen
    assert type(distribution) is kind and distribution.n_params == n_mean + n_tail
    assert n_out == (n_mean + n_tail if sigma == "state" else n_mean)
    pi = Policy(MLP((1, n_out)), distribution, tail, learn_tail)
    assert pi.size == MLP((1, n_out)).size + (n_tail if sigma == "learned" else 0)
    if sigma != "state":
        theta = pi.init(np.random.default_rng(0), np.float64)
        act = pi.act(theta, np.zeros((100_000, 1)), np.random.default_rng(1))
        spread = np.exp(-1) * np.eye(2) + (2 / 3 if policy == "mixture" else 0)  # 2/3 is the variance of −1, 0, 1
        np.testing.assert_allclose(np.cov(act.T), spread, atol=0.02)


def test_the_components_of_a_mixture_start_apart():
    mixture = stochastic_policy(Box(-1, 1, (1,)), policy="mixture", components=3)[0]
    mean = mixture._split(np.zeros(mixture.n_params))[1]
    np.testing.assert_array_equal(mean[:, 0], [-1, 0, 1])
    alone = stochastic_policy(Box(-1, 1, (1,)), policy="mixture", components=1)[0]
    assert alone._split(np.zeros(alone.n_params))[1] == 0
