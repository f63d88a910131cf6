"""Pong: the observation of a frame, many games side by side, the end of credit, the network that skips dark inputs."""

import collections
import itertools
import pathlib
import runpy
import sys

import numpy as np
import pytest
from helpers import check_both

from npg.distributions import Bernoulli
from npg.network import MLP
from npg.policy import Policy
from npg.pong import (
    DOWN,
    INPUTS,
    UP,
    LitMLP,
    PongEnv,
    PongVectorEnv,
    RallySampler,
    any_of_four,
    every_second,
    preprocess,
)
from npg.rollout import play
from npg.runner.environments import UnsupportedEnvironment, make_pong_envs
from npg.runner.saved import read_weights

ROOT = pathlib.Path(__file__).parents[1]
BACKGROUND, BALL, PADDLE = 87, 236, 147


@pytest.fixture
def envs():
    made = []

    def make(n=2, **options):
        pytest.importorskip("ale_py")
        made.append(PongVectorEnv(n, **options))
        return made[-1]

    yield make
    for env in made:
        env.close()


def hand_made_frame(ball=80):
    """A frame: score and walls outside the court, a paddle at the lower right, and a ball at column `ball`."""
    frame = np.full((210, 160), BACKGROUND, np.uint8)
    frame[:34] = frame[194:] = BALL
    frame[178:194, 140:144] = PADDLE
    frame[100:104, ball : ball + 2] = BALL
    return frame


def alternate(t, n):
    return np.full(n, t // 8 % 2)


@pytest.mark.parametrize("halve", [every_second, any_of_four])
def test_a_frame_becomes_80_by_80_without_walls_and_background(halve):
    seen = preprocess(hand_made_frame(), halve).reshape(80, 80)
    expected = np.zeros((80, 80))
    expected[72:80, 70:72] = 1
    expected[33:35, 40] = 1
    np.testing.assert_array_equal(seen, expected)
    assert seen.dtype == np.int8


def test_any_of_four_tells_even_columns_from_odd_ones():
    seen = lambda halve, ball: preprocess(hand_made_frame(ball), halve)
    np.testing.assert_array_equal(seen(every_second, 79), seen(every_second, 80))
    columns = lambda ball: np.nonzero(seen(any_of_four, ball).reshape(80, 80)[33])[0].tolist()
    assert columns(79) == [39, 40] and columns(80) == [40]


@pytest.mark.parametrize("halve", [every_second, any_of_four])
@pytest.mark.parametrize("pixel", [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_one_lit_pixel_of_four(halve, pixel):
    lit = np.zeros((160, 160), bool)
    lit[20 + pixel[0], 30 + pixel[1]] = True
    halved = halve(lit)
    assert halved[10, 15] == halved.any() == (halve is any_of_four or pixel == (0, 0))


def test_both_backgrounds_are_erased():
    assert not preprocess(np.full((210, 160), 87, np.uint8), any_of_four).any()
    assert not preprocess(np.full((210, 160), 107, np.uint8), any_of_four).any()


def test_frames_are_preprocessed_in_batches():
    frames = np.stack([hand_made_frame(), np.full((210, 160), BACKGROUND, np.uint8)])
    seen = preprocess(frames[None], any_of_four)
    assert seen.shape == (1, 2, 6400)
    np.testing.assert_array_equal(seen[0, 0], preprocess(frames[0], any_of_four))
    assert not seen[0, 1].any()


def test_inputs_tell_resting_appearing_and_vanishing_pixels_apart():
    before, now = np.array([0, 1, 0, 1], np.int8), np.array([0, 1, 1, 0], np.int8)  # dark, rests, comes, goes
    np.testing.assert_array_equal(INPUTS["difference"].combine((now, before)), [0, 0, 1, -1])
    np.testing.assert_array_equal(INPUTS["half"].combine((now, before)), [0, 1, 2, -1])


@pytest.mark.parametrize("inputs", ["half", "trail"])
def test_every_history_of_a_pixel_has_a_number_of_its_own(inputs):
    histories = np.array(list(itertools.product([0, 1], repeat=len(INPUTS[inputs].weights))), np.int8)
    seen = INPUTS[inputs].combine(tuple(histories.T))
    assert len(set(seen.tolist())) == len(histories) and seen[0] == 0 and seen[-1] == 1  # dark, at rest
    space = INPUTS[inputs].space
    assert (seen.min(), seen.max(), seen.dtype) == (space.low.min(), space.high.max(), space.dtype)


@pytest.mark.parametrize("inputs", INPUTS)
def test_observations_are_bytes_that_combine_the_last_frames(envs, inputs):
    env, frames = envs(3, inputs=inputs), []
    obs, _ = env.reset(seed=1)
    for t in range(40):
        assert obs.shape == (3, 6400) and obs.dtype == np.int8 and env.observation_space.contains(obs)
        frames = [env.frames[0], *(frames or [env.frames[0]] * 2)]
        np.testing.assert_array_equal(obs, INPUTS[inputs].combine(frames[: len(INPUTS[inputs].weights)]))
        obs, *_ = env.step(alternate(t, 3))
    assert obs.any()


@pytest.mark.slow
def test_two_frames_do_not_foretell_the_paddle_in_even_games_and_three_do(envs):
    """A case is the moves seen before and the action taken. How much does the next move differ within a case?"""
    env, rng = envs(32), np.random.default_rng(0)
    _, infos = env.reset(seed=0)
    rows, actions = [], [np.zeros(32, np.int64)]
    for _ in range(100):
        actions.append(np.where(rng.random(32) < 0.5, rng.integers(2, size=32), actions[-1]))
        screens = env.games.step(np.where(actions[-1] == 1, UP, DOWN))[0][:, 0]
        rows.append((screens[:, 34:194, 141] == PADDLE).argmax(axis=1))
    moves, actions = np.diff(rows, axis=0), actions[2:]

    def left_open(n_frames, games):
        """Root mean square error, in pixels, of the next move given n frames. Moves near the walls are left out."""
        cases = collections.defaultdict(list)
        for t, k in itertools.product(range(2, len(moves)), games):
            if 20 < rows[t][k] < 125 and abs(moves[t - 2 : t + 1, k]).max() < 30:
                cases[(*moves[t + 1 - n_frames : t, k], actions[t][k])].append(moves[t, k])
        return np.sqrt(np.average([np.var(c) for c in cases.values()], weights=[len(c) for c in cases.values()]))

    even, odd = (np.flatnonzero(infos["frame_number"] % 2 == kind) for kind in (0, 1))
    assert left_open(2, even) > 2.5
    assert max(left_open(3, even), left_open(2, odd), left_open(3, odd)) < 1


def test_up_moves_the_paddle_up_and_down_moves_it_down(envs):
    env = envs(2)
    env.reset(seed=1)
    for _ in range(12):
        env.step(np.array([0, 1]))
    rows = [np.nonzero(frame.reshape(80, 80)[:, 70:72].any(axis=1))[0].mean() for frame in env.frames[0]]
    assert rows[1] + 20 < rows[0]


def test_a_seed_gives_the_same_games_and_another_seed_other_games(envs):
    def games(seed):
        env = envs(2)
        obs, _ = env.reset(seed=seed)
        steps = [env.step(alternate(t, 2))[:4] for t in range(40)]
        return [obs, *(np.stack(column) for column in zip(*steps))]

    for a, b in zip(games(5), games(5)):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(games(5), games(55)))


def test_sticky_actions_change_the_game(envs):
    seen = []
    for sticky in (0.0, 0.25):
        env = envs(2, sticky=sticky)
        env.reset(seed=1)
        seen.append([env.step(alternate(t, 2))[0] for t in range(30)])
    assert (np.array(seen[0]) != np.array(seen[1])).any()


def test_a_game_goes_to_21_and_the_next_begins_without_its_last_frame(envs):
    env = envs(2, inputs="difference")
    obs, _ = env.reset(seed=3)
    assert not obs.any()
    score, lost = np.zeros(2), np.zeros(2)
    for _ in range(3000):
        obs, rew, terminated, truncated, _ = env.step(np.ones(2, np.int64))
        assert not truncated.any() and np.isin(rew, (-1, 0, 1)).all()
        score, lost = score + rew, lost + (rew == -1)
        if terminated.any():
            break
    over = int(np.argmax(terminated))
    assert lost[over] == 21 and score[over] < 0
    last = env.frames[0][over].copy()
    obs, rew, terminated, _, _ = env.step(np.ones(2, np.int64))  # the reset row
    assert not obs[over].any() and rew[over] == 0 and not terminated[over]
    assert (env.frames[0][over] != last).any()


def test_play_counts_whole_games(envs):
    returns, lengths = play(envs(2), lambda obs: np.zeros(len(obs), np.int64), 2, 1)
    assert (returns <= -15).all() and (lengths > 500).all()


def test_one_game_to_render_shows_what_the_vector_environment_shows(envs):
    env, one = envs(1), PongEnv("rgb_array")
    many, _ = env.reset(seed=1)
    single, _ = one.reset(seed=1)
    assert single.shape == many.shape[1:] and single.dtype == many.dtype
    for t in range(60):
        many, *_ = env.step(alternate(t, 1))
        single, rew, terminated, truncated, _ = one.step(int(alternate(t, 1)[0]))
    assert one.render().shape == (210, 160, 3)
    for column in 8, 70:  # both show the paddles, eight pixels high
        assert (single.reshape(80, 80)[:, column] != 0).any() == (many.reshape(80, 80)[:, column] != 0).any()
    one.close()


def test_a_point_ends_credit_but_not_the_game(envs):
    env = envs(2)
    policy = Policy(LitMLP((6400, 4, 1)), Bernoulli())
    theta = policy.init(np.random.default_rng(0))
    rollout = RallySampler(env, 0).steps(policy, theta, 200)
    points = rollout.rew != 0
    assert points.sum() >= 2
    np.testing.assert_array_equal(rollout.terminated, points)
    assert rollout.valid.all()
    assert rollout.episode_returns == [] and not rollout.truncated.any()


def batch_with_dark_inputs(rng, dtype=np.float64):
    x = np.zeros((3, 5, 30), dtype)
    x[..., 4:9] = rng.integers(-1, 3, (3, 5, 5))
    return x


@pytest.mark.parametrize("chunk", [4, 512])
def test_lit_mlp_is_the_mlp_of_the_same_theta(chunk, monkeypatch):
    monkeypatch.setattr(LitMLP, "chunk", chunk)
    rng = np.random.default_rng(0)
    dense, lit = MLP((30, 7, 2), "relu"), LitMLP((30, 7, 2), "relu")
    theta, x = dense.init(rng, dtype=np.float64), batch_with_dark_inputs(rng)
    y, cache = dense.forward(theta, x)
    y_lit, cache_lit = lit.forward(theta, x.astype(np.int8))
    np.testing.assert_allclose(y_lit, y, rtol=0, atol=1e-14)
    dy = rng.standard_normal(y.shape)
    dtheta, dx = lit.backward(theta, cache_lit, dy)
    assert dx is None
    np.testing.assert_allclose(dtheta, dense.backward(theta, cache, dy)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("chunk", [4, 512])
def test_lit_mlp_gradient_by_differences_and_complex_step(chunk, monkeypatch):
    monkeypatch.setattr(LitMLP, "chunk", chunk)
    rng = np.random.default_rng(1)
    network = LitMLP((30, 4, 2), "tanh")
    theta, x = network.init(rng, dtype=np.float64), batch_with_dark_inputs(rng)
    dy = rng.standard_normal((3, 5, 2))
    f = lambda theta: np.sum(dy * network.forward(theta, x)[0])
    check_both(f, theta, network.backward(theta, network.forward(theta, x)[1], dy)[0])


def test_rows_that_light_the_same_inputs_go_together(monkeypatch):
    monkeypatch.setattr(LitMLP, "chunk", 2)
    network = LitMLP((4, 3, 1), "relu")
    x = np.array([[0, 0, 1, 0], [2, 0, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]], np.int8)
    _, cache = network.forward(network.init(np.random.default_rng(0)), x)
    assert [list(lit) for _, lit, *_ in cache] == [[0, 3], [2, 3]]  # the last input is always used


def test_lit_mlp_takes_a_dark_batch_and_a_single_observation():
    rng = np.random.default_rng(2)
    network = LitMLP((30, 4, 1), "relu")
    theta = network.init(rng)
    theta[network.sizes[0] * 4 :] = rng.standard_normal(9)  # biases that are not 0
    y, cache = network.forward(theta, np.zeros(30, np.int8))
    np.testing.assert_allclose(y, MLP((30, 4, 1), "relu").forward(theta, np.zeros(30))[0], rtol=1e-6)
    assert network.backward(theta, cache, np.ones(1, np.float32))[0].shape == theta.shape


def test_the_pretrained_player_is_small_and_reads_pixels():
    path = runpy.run_path(str(ROOT / "run_pong.py"))["SCRIPT"].pretrained
    config, theta = read_weights(path)
    assert path.stat().st_size <= 3e6
    assert config["env"] == "Pong" and theta.shape == (LitMLP((6400, 200, 2), "relu").size,)
    assert np.isfinite(theta).all()


def test_another_environment_is_refused():
    with pytest.raises(UnsupportedEnvironment, match="Breakout"):
        make_pong_envs("Breakout", 1)


def test_games_that_the_samplers_cannot_share_evenly_are_refused(capsys, tmp_path):
    script = runpy.run_path(str(ROOT / "run_pong.py"))
    assert script["main"](script["SCRIPT"], ["--envs", "3", "--ahead", "2", "--out", str(tmp_path / "run")]) == 2
    assert "envs: expected a multiple of ahead (2), got 3" in capsys.readouterr().err


def test_without_ale_py_the_script_says_in_one_line_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    script = runpy.run_path(str(ROOT / "run_pong.py"))
    assert script["main"](script["SCRIPT"], ["--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "pip install 'npg[atari]'" in error and error.count("\n") == 1


def test_the_scripts_help_names_the_target_and_the_pretrained_player(capsys):
    script = runpy.run_path(str(ROOT / "run_pong.py"))
    with pytest.raises(SystemExit):
        script["main"](script["SCRIPT"], ["-h"])
    text = " ".join(capsys.readouterr().out.split())
    assert "the end of the budget (18.0)" in text and "DIR pretrained: the policy that comes with the package" in text
