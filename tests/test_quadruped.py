"""The quadruped: the positions of its feet, the return of its walk, and its learning."""

import functools
import pathlib
import sys

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")
sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import quadruped  # noqa: E402
from quadruped import DT, GAIT, HIGH, INITIAL, LOW, METHODS, STEP, feet, gait, joints, learn, main, walk  # noqa: E402

LEGS = ["left_ankle_geom", "right_ankle_geom", "third_ankle_geom", "fourth_ankle_geom"]  # in order; names of the XML


def numbers(**changed):
    """The hand-set gait with some numbers changed."""
    assert changed.keys() <= GAIT.keys()
    return np.array([changed.get(name, number.initial) for name, number in GAIT.items()])


def test_mujocos_own_kinematics_bring_the_feet_where_the_locus_says():
    crooked = numbers(front_lift=0.1, front_length=0.2, rear_height=0.38, skew=0.3, lag=0.1)
    ahead, below = feet(crooked, np.arange(8) / 16)
    model = quadruped.ant().unwrapped.model
    data = mujoco.MjData(model)
    for angles, x, depth in zip(joints(ahead, below), ahead, below):
        data.qpos[:] = [0, 0, 0, 1, 0, 0, 0, *angles]
        mujoco.mj_kinematics(model, data)
        for leg, shin in enumerate(LEGS):
            geom, hip = data.geom(shin), data.body(f"aux_{leg + 1}")
            middle_to_foot = geom.xmat.reshape(3, 3)[:, 2] * model.geom(shin).size[1]
            foot = max(geom.xpos + middle_to_foot, geom.xpos - middle_to_foot, key=lambda end: -end[2]) - hip.xpos
            np.testing.assert_allclose([foot[0], -foot[2]], [x[leg], depth[leg]], atol=1e-9)


def test_out_of_reach_the_joints_stay_in_their_ranges():
    model = quadruped.ant().unwrapped.model
    rng = np.random.default_rng(0)
    angles = joints(rng.normal(0, 1, (100, 4)), rng.normal(0, 1, (100, 4)))
    low, high = model.jnt_range[1:].T
    assert np.all(angles >= low - 1e-9) and np.all(angles <= high + 1e-9)


def test_angles_speeds_and_motors_are_the_same_joints():
    env = quadruped.ant().unwrapped
    state = np.arange(env.model.nq + env.model.nv, dtype=float)
    env.set_state(state[: env.model.nq], state[env.model.nq :])
    obs, joint = env._get_obs(), env.model.actuator_trnid[:, 0]
    motor_angles, motor_speeds = (obs[part][quadruped.MOTORS] for part in (quadruped.ANGLES, quadruped.SPEEDS))
    np.testing.assert_array_equal(motor_angles, env.model.jnt_qposadr[joint])
    np.testing.assert_array_equal(motor_speeds, env.model.nq + env.model.jnt_dofadr[joint])
    assert env.dt == DT


def test_a_foot_goes_back_straight_on_the_ground_and_forward_through_the_air():
    t = np.arange(1000) / 1000
    ahead, below = feet(numbers(period=1.0, ground=0.7, front_lift=0.1, front_length=0.3), t)
    x, z = ahead[:, 0], below[:, 0]
    back = t < 0.7
    assert np.all(z[back] == GAIT["front_height"].initial) and np.all(z[~back][1:] < GAIT["front_height"].initial)
    np.testing.assert_allclose(np.diff(x[back]), -0.3 / 0.7 / 1000, atol=1e-12)
    assert np.all(np.diff(x[~back]) > 0)
    np.testing.assert_allclose(z.min(), GAIT["front_height"].initial - 0.1, atol=1e-4)
    np.testing.assert_allclose([x.min(), x.max()], GAIT["front_place"].initial + np.array([-0.15, 0.15]), atol=1e-3)


def test_diagonal_legs_move_together_and_skew_and_lag_do_what_they_are_called():
    t = np.arange(40) / 80
    ahead, below = feet(numbers(), t)
    for front, rear in [(0, 2), (3, 1)]:
        np.testing.assert_allclose(below[:, front], below[:, rear])
        moved = ahead - [GAIT[f"{pair}_place"].initial for pair in ("front", "rear", "rear", "front")]
        np.testing.assert_allclose(moved[:, front], moved[:, rear])
    skewed = np.ptp(feet(numbers(skew=0.25), np.arange(1000) / 1000)[0], axis=0)
    np.testing.assert_allclose(skewed[[0, 1]] / skewed[[3, 2]], 1.25 / 0.75, rtol=1e-2)
    late = feet(numbers(lag=0.1), t + 0.1 * GAIT["period"].initial)[0]
    np.testing.assert_allclose(late[:, [1, 2]], ahead[:, [1, 2]])


def test_theta_counts_steps_from_the_hand_set_gait_within_its_range():
    np.testing.assert_array_equal(gait(np.zeros(12)), INITIAL)
    np.testing.assert_allclose(gait(np.ones(12)), np.minimum(INITIAL + STEP, HIGH))
    np.testing.assert_array_equal(gait(np.full(12, 1e9)), HIGH)
    np.testing.assert_array_equal(gait(np.full(12, -1e9)), LOW)


def test_a_walk_follows_from_its_seed_and_a_gait_without_length_goes_nowhere():
    theta = np.zeros(12)
    assert walk(theta, 1, 2.0) == walk(theta, 1, 2.0) != walk(theta, 2, 2.0)
    standing = (numbers(front_length=0, rear_length=0, front_lift=0, rear_lift=0) - INITIAL) / STEP
    for seed in range(2):
        assert abs(walk(standing, seed, 5.0)) < 0.05 < 0.1 < walk(theta, seed, 5.0)


def test_after_a_fall_the_distance_is_divided_by_the_whole_time():
    class FallsAfter3Steps:
        def reset(self, seed):
            self.x = 5.0
            return np.zeros(27), {"x_position": self.x}

        def step(self, action):
            self.x += 1.0
            return np.zeros(27), 0.0, self.x == 8.0, False, {"x_position": self.x}

    assert walk(np.zeros(12), 0, seconds=2.0, env=FallsAfter3Steps()) == 3.0 / 2.0


@pytest.mark.parametrize("name", METHODS)
def test_no_method_walks_more_often_than_it_may(name, monkeypatch):
    walked = []
    monkeypatch.setattr(quadruped, "walk", lambda theta, seed: walked.append(seed) or -np.sum((theta - 1) ** 2))
    thetas, walks, _ = learn(name, 200, seed=0)
    assert walks[-1] == len(walked) <= 200 < len(walked) + walks[1]
    assert thetas.shape == (len(walks), 12) and not thetas[0].any() and walks[0] == 0
    assert np.sum((thetas[-1] - 1) ** 2) < 6  # 12 at the start
    assert len(set(walked)) == len(walks) - 1  # the candidates of an iteration have the same seed


def test_kohl_and_stones_steps_shorten_linearly_to_0_over_the_budget(monkeypatch):
    monkeypatch.setattr(quadruped, "walk", lambda theta, seed: theta.sum())
    thetas, walks, _ = learn("kohl-stone", 200, seed=0)
    lengths = np.linalg.norm(np.diff(thetas, axis=0), axis=1)
    np.testing.assert_allclose(lengths, lengths[0] * (1 - walks[:-1] / 200), rtol=1e-12)


def test_the_command_prints_the_numbers_and_draws_the_curve_and_the_film(tmp_path, monkeypatch, capsys):
    path, films = tmp_path / "figure.png", []
    monkeypatch.setattr(quadruped, "film", lambda *args: films.append(args))
    monkeypatch.setattr(quadruped, "walk", functools.partial(walk, seconds=1.0))
    main(["--evaluations", "16", "--workers", "1", "--quiet", "--out", str(path)])
    out = capsys.readouterr().out
    assert "kohl-stone" in out and all(number.meaning in out for number in GAIT.values())
    assert path.read_bytes().startswith(b"\x89PNG")
    [(gif, thetas, titles, _)] = films
    assert gif == path.with_suffix(".gif") and thetas.shape == (3, 12)
    assert [title.split(":")[0] for title in titles] == ["initial", "training", "final"]


@pytest.mark.slow
def test_the_film_shows_the_gaits_side_by_side(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    try:
        quadruped.film(tmp_path / "film.gif", np.zeros((3, 12)), ["a", "b", "c"], seed=0, seconds=0.2)
    except (RuntimeError, ImportError, AttributeError, mujoco.FatalError) as error:
        pytest.skip(f"nothing can be rendered here: {error!r}")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (3 * 240, 180) and film.n_frames == 2
        pixels = np.asarray(film.convert("RGB"))
        assert all(lane.std() > 10 for lane in np.split(pixels[30:], 3, axis=1))  # not blank below the titles


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--evaluations", "3"], "--evaluations: expected at least 16, got 3"),
        (["--method", "magic"], "--method: invalid choice: 'magic'"),
        (["--out", "nowhere/figure.png"], "--out: folder nowhere does not exist"),
    ],
)
def test_bad_arguments_end_with_one_line_that_says_why(flags, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(flags)
    assert exit.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_without_mujoco_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(quadruped.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2 and 'pip install -e ".[mujoco]"' in capsys.readouterr().err


@pytest.mark.slow
def test_kohl_and_stones_algorithm_learns_to_run():
    seeds = 100, 101  # 1.90 and 1.56 m/s with MuJoCo 4.0
    ends = [learn("kohl-stone", 1000, seed=seed)[0][[0, -1]] for seed in seeds]
    before, after = np.mean([quadruped.test(thetas, 5, seed=seed) for thetas, seed in zip(ends, seeds)], axis=(0, 2))
    assert after >= 1.5 and after >= 5 * before
