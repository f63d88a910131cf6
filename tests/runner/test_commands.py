"""--evaluate plays the saved policy and writes nothing, and --gif writes one episode of it."""

import os
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
import test_environments  # noqa: F401  registers the environments "strange/…"
from running import SCRIPT, assert_refused, contents, rewritten, tiny

from npg.policy import ActorCritic
from npg.runner import commands, figures
from npg.runner.command_line import main
from npg.runner.saved import read_checkpoint, read_weights

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
import run_pong

pytestmark = pytest.mark.usefixtures("quick_workers", "quick_disk", "no_figures")


def test_evaluate_is_deterministic_and_writes_nothing(call, copy):
    before = contents(copy)
    first, second = call(evaluate=copy), call(evaluate=copy)
    assert first == second and first.code == 0
    assert re.fullmatch(r"return [\d.]+ ± [\d.]+ \(lowest [\d.]+, highest [\d.]+\) over 2 episodes\n", first.out)
    assert contents(copy) == before


def test_evaluate_plays_as_many_episodes_and_with_the_seed_asked_for(call, finished):
    first, other = (call(f"--episodes 9 --seed {seed}", evaluate=finished) for seed in (5, 6))
    assert "over 9 episodes" in first.out
    assert first.out != other.out


def test_evaluate_plays_the_most_likely_actions_where_asked_to(call, copy, monkeypatch):
    """All parameters are zero except for one bias. The cart always goes right, and the pole falls in a dozen steps."""
    theta = np.zeros_like(read_checkpoint(copy)["theta"])
    theta[4 * 8 + 8 + 8 * 2 + 1] = 1e-3  # the bias of action 1
    rewritten(copy / "checkpoint.npz", theta=theta)
    highest = float(re.search(r"highest ([\d.]+)", call("--episodes 50 --act most-likely", evaluate=copy).out)[1])
    assert highest < 13


def test_evaluate_plays_sampled_actions_where_asked_to(call, copy):
    """All parameters are zero but one. Most likely: always right; sampled: almost a fair coin; sharpened: less fair."""
    theta = np.zeros_like(read_checkpoint(copy)["theta"])
    theta[4 * 8 + 8 + 8 * 2 + 1] = 0.8  # the bias of action 1
    rewritten(copy / "checkpoint.npz", theta=theta)

    def mean(flags):
        return float(re.search(r"return ([\d.]+)", call(f"--episodes 50 {flags}", evaluate=copy).out).group(1))

    assert mean("--act most-likely") < 11
    assert 11 < mean("--act sharpened") < 14 < mean("--act sampled")
    assert mean("--act sampled") == mean("")


def test_a_deterministic_policy_has_no_actions_to_sample(call, tmp_path):
    assert call("--algo genetic --quiet --steps 1 --episodes 1", out=tmp_path / "run").code == 0
    assert_refused(call("--act sampled", evaluate=tmp_path / "run"), "--act has no meaning")


def test_the_number_of_episodes_has_no_meaning_for_a_film(call, copy):
    assert_refused(call("--episodes 7", gif=copy), "--episodes has no meaning with --gif")


def test_gif_writes_one_episode(call, copy):
    pytest.importorskip("pygame")
    from PIL import Image, ImageSequence

    before = contents(copy)
    result = call(gif=copy)
    assert result.code == 0 and result.out.count("\n") == 1
    with Image.open(copy / "policy.gif") as image:
        assert image.format == "GIF" and image.size == (600, 400)
        seconds = sum(frame.info["duration"] for frame in ImageSequence.Iterator(image)) / 1000
    n_frames = int(re.search(r"(\d+) frames", result.out).group(1))
    assert 5 < n_frames <= 500 and seconds == pytest.approx(n_frames / 50)  # CartPole's frames per second
    after = contents(copy)
    assert after.pop(copy / "policy.gif") and after == before
    assert call(gif=copy) == result


def test_a_film_ends_when_its_pictures_fill_the_memory_meant_for_them(call, copy, monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setattr(commands, "FILM_BYTES", 3.5 * 400 * 600 * 3)
    result = call(gif=copy)
    assert result.code == 0 and "policy.gif: 4 frames; the film ends before the episode, at" in result.out


@pytest.mark.parametrize("screen", ["", ":0"])
def test_without_a_screen_mujoco_and_pygame_draw_into_memory(call, copy, monkeypatch, screen):
    for name in ("MUJOCO_GL", "SDL_VIDEODRIVER", "SDL_NO_SIGNAL_HANDLERS"):
        monkeypatch.setenv(name, "")  # so that the old value comes back at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("DISPLAY", screen)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    call(gif=copy)
    assert os.environ.get("MUJOCO_GL") == (None if screen else "egl")
    assert os.environ.get("SDL_VIDEODRIVER") == (None if screen else "dummy")


@pytest.mark.parametrize("mode", ["evaluate", "gif", "resume"])
def test_a_wrong_number_is_blamed_on_its_flag_and_not_on_the_folder(call, copy, mode):
    flag = "--steps 0" if mode == "resume" else "--seed -1"
    result = call(flag, **{mode: copy})
    assert_refused(result, f"argument {flag.split()[0]}: expected a number")
    assert str(copy) not in result.err


def test_export_writes_the_policy_of_a_run_and_it_can_be_played(finished, tmp_path, capsys):
    script = SCRIPT._replace(pretrained=tmp_path / "policy.npz")
    assert main(script, ["--export", str(finished)]) == 0
    theta = read_weights(script.pretrained)[1]
    np.testing.assert_allclose(theta, read_checkpoint(finished)["theta"], rtol=1e-3, atol=1e-7)  # in half precision
    assert main(script, ["--evaluate", "pretrained"]) == 0


def test_export_of_the_player_that_comes_with_the_package_changes_nothing(tmp_path, capsys):
    pytest.importorskip("ale_py")
    script = run_pong.SCRIPT._replace(pretrained=tmp_path / "pong.npz")
    shutil.copy(run_pong.SCRIPT.pretrained, script.pretrained)
    config, theta = read_weights(script.pretrained)
    for _ in range(2):
        assert main(script, ["--export", "pretrained"]) == 0
    again, same = read_weights(script.pretrained)
    assert again == config
    np.testing.assert_array_equal(same, theta)


def test_pretrained_is_an_ordinary_folder_where_a_script_has_no_policy_of_its_own(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(tiny(more="--steps 100"), out="pretrained").code == 0
    call(gif="pretrained")
    assert call(evaluate="pretrained").code == 0
    assert not (tmp_path / "policy.gif").exists()


@pytest.mark.parametrize("name, reason", [("CannotRender", "render"), ("RenderMissingPackage", "painter")])
def test_an_environment_that_cannot_be_drawn_is_refused_by_gif(call, tmp_path, name, reason):
    assert call(tiny("a2c", f"--env strange/{name}-v0 --steps 1"), out=tmp_path / "run").code == 0
    before = contents(tmp_path)
    assert_refused(call(gif=tmp_path / "run"), reason)
    assert contents(tmp_path) == before


def test_a_gif_that_cannot_be_written_is_an_error_of_one_line(call, tmp_path):
    assert call(tiny("a2c", "--env strange/Plain-v0 --steps 1"), out=tmp_path / "run").code == 0
    (tmp_path / "run" / "policy.gif").mkdir()
    assert_refused(call(gif=tmp_path / "run"), "policy.gif")


def test_a_gif_that_is_interrupted_leaves_the_old_one(call, copy, monkeypatch):
    (copy / "policy.gif").write_bytes(b"old")

    def interrupt(file, pictures, fps):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "gif", interrupt)
    before = contents(copy)
    assert call("--quiet", gif=copy).code == 130
    assert contents(copy) == before


@pytest.mark.parametrize("flag", ["evaluate", "gif"])
def test_a_policy_of_normalised_observations_is_played_with_its_own_moments(call, tmp_path, monkeypatch, flag):
    if flag == "gif":
        pytest.importorskip("pygame")
        monkeypatch.setattr(figures, "gif", lambda *args, **kwargs: None)
    folder = tmp_path / "run"
    assert call(tiny(more="--env Pendulum-v1 --steps 600 --normalise-obs"), out=folder).code == 0
    seen, act = [], ActorCritic.act
    monkeypatch.setattr(ActorCritic, "act", lambda self, theta, obs, rng: seen.append(obs) or act(self, theta, obs))
    assert call(**{flag: folder}).code == 0
    saved = read_checkpoint(folder)
    cos, sin, _ = np.moveaxis(np.array(seen) * np.sqrt(saved["obs_var"]) + saved["obs_mean"], -1, 0)
    assert len(seen) >= 200
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-4)
