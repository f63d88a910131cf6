"""The command line as users see it: its flags and its help, refusals in one line, and what it says at the end."""

import os
import re
import subprocess
import sys

import pytest
import test_environments  # registers the environments "strange/…"
from running import PATH, SCRIPT, assert_refused, contents, run_cartpole, tiny

from npg.reinforce import BASELINES
from npg.runner import command_line
from npg.runner.folder import taken
from npg.runner.runs import Run
from npg.runner.saved import read_checkpoint, read_config

pytestmark = pytest.mark.usefixtures("quick_workers", "quick_disk", "no_figures")


# Flags and input that are wrong: one line, exit code 2, nothing written


@pytest.mark.parametrize(
    "flags",
    [
        *("--algo sarsa", "--seed -1", "--seed 1.5", "--seed x", "--steps 0", "--steps -5", "--steps 1e5"),
        *("--target x", "--target nan", "--episodes 0", "--evaluate-every 0", "--envs 0", "--n-steps 0"),
        *("--checkpoint-every 0", "--checkpoint-every 0s", "--checkpoint-every -1", "--checkpoint-every often"),
        *("--gamma 1.1", "--gamma -0.1", "--gamma nan", "--gamma x", "--lam 2", "--learning-rate 0"),
        *("--learning-rate -1", "--learning-rate nan", "--hidden 0", "--hidden 8 -8", "--hidden x"),
        *("--activation gelu", "--epochs 0", "--batch-size 0", "--importance heavy", "--capacity 0"),
        *("--value-coef -1", "--value-coef nan", "--entropy-coef -1", "--max-grad-norm 0"),
        *("--target inf", "--target -inf", "--learning-rate inf", "--entropy-coef inf", "--max-grad-norm nan"),
        *("--weight all --algo reinforce", "--baseline v --algo reinforce", "--iterations 0 --algo q-actor-critic"),
        *("--estimation lstd --algo actor-critic", "--proximal -1 --algo actor-critic"),
        *("--critic-learning-rate 0 --algo actor-critic", "--sigma wide --env Pendulum-v1"),
        *("--log-std x --env Pendulum-v1", "--log-std nan --env Pendulum-v1", "--temperature 1"),
        *("--env=", "--checkpoint-every=", "--workers 0 --algo a3c", "--workers x --algo a2c"),
        *("--cluster= --algo a3c", "--cluster tcp://127.0.0.1:9 --algo a2c", "--target nan"),
        *("--cluster localhost --algo a3c --workers 1", "--cluster tls://x:1 --algo a3c --workers 1"),
        *("--epsilons 2 --algo a3c", "--temperatures 0 --algo a3c", "--statistics none --algo a3c"),
        *("--n-candidates 0 --algo es", "--shaping log --algo es", "--scheme backward --algo finite-difference"),
        *("--epsilon 0 --algo finite-difference", "--n-parents 0 --algo genetic", "--n-elite 1 --algo genetic"),
        *("--widen 0.5 --algo hill-climbing", "--narrow 2 --algo hill-climbing", "--patience 0 --algo hill-climbing"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_its_flag(call, tmp_path, flags):
    flag = re.match(r"[^ =]+", flags).group()
    assert_refused(call(f"--quiet --steps 1 --episodes 1 {flags}", out=tmp_path / "run"), flag)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags",
    [
        *("--weight total", "--baseline time", "--estimation td", "--proximal 1", "--iterations 3", "--subtract-value"),
        *("--critic-learning-rate 1", "--sigma fixed", "--log-std 0", "--epochs 2 --algo a2c"),
        *("--lam 1 --algo reinforce", "--n-steps 8 --algo reinforce", "--shared --algo reinforce"),
        *("--no-shared --algo q-actor-critic", "--workers 2", "--workers 2 --algo reinforce", "--cluster tcp://x:1"),
        *("--epsilons 0.1", "--temperatures 2 --algo a2c", "--report-every 100 --algo a2c"),
        *("--epsilon 1 --algo es", "--search-sigma fixed --algo genetic", "--n-steps 8 --algo es"),
        *("--patience 3 --algo es", "--sigma fixed --algo es", "--policy mixture", "--act sampled --algo genetic"),
        *("--capacity 2 --algo a2c", "--gamma 0 --weight total --algo a2c", "--importance plain --algo actor-critic"),
    ],
)
def test_a_flag_without_meaning_for_the_algorithm_is_refused_by_name(call, tmp_path, flags):
    flag = next(flag for flag in flags.split() if flag.startswith("--") and flag != "--gamma")
    assert_refused(call(f"--quiet {flags}", out=tmp_path / "run"), flag.replace("--no-", "--"), "no meaning")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags", ["--foo", "--foo=3", "--foo 3", "--no-foo", "--no-seed", "--no-hidden", "--no-quiet", "-x", "--epsilo 1"]
)
def test_an_unknown_flag_is_refused_by_its_name(call, tmp_path, flags):
    flag = re.match(r"[^ =]+", flags).group()
    refused = call(f"--quiet --steps 1 --episodes 1 {flags}", out=tmp_path / "run")
    assert_refused(refused, f"unrecognized arguments: {flag}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--epsilons", "--temperatures"])
def test_an_empty_list_is_refused(call, tmp_path, flag):
    refused = call(f"--quiet --algo a3c --workers 1 --steps 1 --episodes 1 {flag}", out=tmp_path / "run")
    assert_refused(refused, f"argument {flag}: expected at least one number")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags, words", [
    ("--algo reinforce --baseline time --epochs 50", "--epochs has no effect with --baseline time"),
    ("--algo reinforce --baseline none --critic-learning-rate 1e-3",
     "--critic-learning-rate has no effect with --baseline none"),
    ("--algo reinforce --baseline leave-one-out --batch-size 9", "--batch-size has no effect"),
    ("--algo finite-difference --scheme forward --n-candidates 99",
     "--n-candidates has no effect with --scheme forward"),
    ("--algo finite-difference --scheme kohl-stone --optimizer rmsprop",
     "--optimizer has no effect with --scheme kohl-stone"),
    ("--algo ppo --importance plain --clip 0.3", "--clip has no effect with --importance plain"),
    ("--algo a3c --workers 2 --optimizer sgd --statistics own", "--statistics has no effect with --optimizer sgd"),
    ("--algo a3c --workers 2 --cluster h:1 --statistics own", "--statistics has no effect with --cluster h:1"),
    ("--algo a3c --workers 2 --cluster h:1 --report-every 9", "--report-every has no effect with --cluster h:1"),
    ("--algo ppo --truncate 3", "--truncate has no effect with --importance clipped"),
    ("--algo actor-critic --estimation mc --proximal 1", "--proximal has no effect with --estimation mc"),
    ("--algo actor-critic --estimation mc --gradient-steps 9", "--gradient-steps has no effect with --estimation mc"),
    ("--algo actor-critic --estimation td --batch-size 9", "--batch-size has no effect with --estimation td"),
    ("--algo a3c --workers 1 --optimizer adam --rms-epsilon 0.1", "--rms-epsilon has no effect with --optimizer adam"),
    ("--algo es --activation relu", "--activation has no effect with --hidden none"),
    ("--env Pendulum-v1 --components 3", "--components has no effect with --policy gaussian"),
    ("--env Pendulum-v1 --sigma state --log-std 1", "--log-std has no effect with --sigma state"),
])  # fmt: skip
def test_a_setting_that_changes_nothing_is_refused(call, tmp_path, flags, words):
    assert_refused(call(f"--quiet {flags}", out=tmp_path / "run"), words)
    assert not (tmp_path / "run").exists()


def test_a_baseline_that_leaves_one_out_needs_two_trajectories(call, tmp_path):
    flags = "--quiet --algo reinforce --baseline leave-one-out --envs 1"
    assert_refused(call(flags, out=tmp_path / "run"), "leave-one-out")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags, words", [
    ("--algo es --search-sigma state", ("--search-sigma", "'fixed', 'learned'", "'state'")),
    ("--algo es --n-candidates 5", ("n_candidates", "even", "5")),
    ("--algo hill-climbing --n-candidates 2", ("n_candidates", "at least 3", "2")),
    ("--algo genetic --n-parents 17", ("n_parents", "17")),
])
def test_what_a_gradient_free_method_cannot_do_is_refused(call, tmp_path, flags, words):
    assert_refused(call(f"--quiet {flags}", out=tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_a_gaussian_cannot_be_sharpened(call, tmp_path):
    expected = "act: expected most-likely or sampled with Box actions, got 'sharpened'"
    assert call(tiny(more="--env Pendulum-v1 --steps 1"), out=tmp_path / "run").code == 0
    assert_refused(call("--act sharpened", evaluate=tmp_path / "run"), expected)


def test_only_sampled_actions_are_judged_in_training(call, tmp_path):
    assert_refused(call("--act most-likely", out=tmp_path / "run"), "--act", "in training", "--evaluate")
    assert call(tiny(more="--act sampled --steps 1"), out=tmp_path / "run").code == 0


@pytest.mark.parametrize(
    "env, reason",
    [
        ("Nowhere-v0", "Nowhere"),
        ("no_such_module:Env-v0", "no_such_module"),
        ("a:b:c", "a:b:c"),
        ("strange/MissingPackage-v0", "frobnicate is not installed"),
        *((f"strange/{name}", name) for name in test_environments.UNSUPPORTED),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused(call, tmp_path, env, reason):
    assert_refused(call(f"--quiet --env {env}", out=tmp_path / "run"), reason)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", ["--hidden 10000000 10000000", "--envs 1000000000000", "--episodes 1000000000000",
                                   "--algo es --n-candidates 1000000000000"])
def test_what_cannot_fit_into_memory_is_refused_before_anything_is_made(call, tmp_path, flags):
    name = re.search(r"--(hidden|envs|episodes|n-candidates)", flags)[1].replace("-", "_")
    assert_refused(call(f"--quiet {flags}", out=tmp_path / "run"), f"{name}: ", "memory")
    assert not (tmp_path / "run").exists()


def test_a_target_comes_from_the_environment_as_a_number(call, tmp_path):
    assert call(tiny(more="--steps 100 --env strange/NumPyThreshold-v0"), out=tmp_path / "run").code == 0
    assert read_config(tmp_path / "run")["target"] == 5.0
    refused = call(tiny(more="--env strange/NaNThreshold-v0"), out=tmp_path / "other")
    assert_refused(refused, "strange/NaNThreshold-v0: its reward_threshold: expected a number, got nan")


def test_the_shared_design_has_its_own_defaults_and_a_flag_overrides_them(call, tmp_path):
    assert call("--quiet --steps 100 --episodes 1 --algo actor-critic --shared", out=tmp_path / "run").code == 0
    config = read_config(tmp_path / "run")
    assert config["steps"] == 100 and config["settings"]["critic_learning_rate"] == 1e-3
    assert "step size for the critic (0.01; --shared: 0.001)" in call("--algo actor-critic -h").out


@pytest.mark.parametrize(
    "env, hidden, learning_rate",
    [
        ("CartPole-v1", (32, 32), 8e-3),
        ("gymnasium:CartPole-v1", (32, 32), 8e-3),
        ("Acrobot-v1", (64, 64), 1e-3),
        ("Pendulum-v1", (64, 64), 5e-4),
    ],
)
def test_other_environments_and_box_actions_have_defaults_of_their_own(call, tmp_path, env, hidden, learning_rate):
    assert call(f"--quiet --steps 16 --n-steps 8 --env {env} --episodes 1", out=tmp_path / "run").code == 0
    settings = read_config(tmp_path / "run")["settings"]
    assert tuple(settings["hidden"]) == hidden and settings["learning_rate"] == learning_rate
    assert "step size for θ (0.008; other environments: 0.001; Box actions: 0.0005)" in " ".join(call("-h").out.split())


def test_numbers_may_be_written_as_python_writes_them(call, tmp_path):
    flags = "--target -1e3 --steps 1_000 --env Pendulum-v1 --log-std -.5 --episodes 1_0"
    assert call(tiny(more=flags), out=tmp_path / "run").code == 0
    config = read_config(tmp_path / "run")
    assert [config[name] for name in ("target", "steps", "episodes")] == [-1000.0, 1000, 10]
    assert config["settings"]["log_std"] == -0.5


def test_a_run_that_is_refused_shows_no_progress_bar(call, copy):
    flags = "--steps 100 --hidden 8 --envs 2"
    assert_refused(call(flags, out=copy), "holds a run already")
    (copy / "checkpoint.npz").write_bytes(b"damaged")
    assert_refused(call(resume=copy), "checkpoint.npz")


def test_the_commands_at_the_end_are_right_for_a_folder_that_looks_like_a_flag(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = call(tiny(more="--steps 100 --out=-x")).out
    command = re.search(r"evaluate  python \S+ (.+)", said)[1]
    assert command == "--evaluate ./-x" and call(command).code == 0


def test_no_picture_is_named_that_could_not_be_drawn(call, tmp_path):
    (tmp_path / "run" / "learning_curve.png").mkdir(parents=True)
    result = call(tiny(more="--steps 100"), out=tmp_path / "run")
    assert result.code == 0 and "could not be drawn" in result.err and "learning_curve.png" not in result.out


def test_two_things_at_once_are_refused(call, copy):
    before = contents(copy)
    for first, second in (("resume", "evaluate"), ("resume", "gif"), ("evaluate", "gif")):
        assert_refused(call(**{first: copy, second: copy}), f"--{first}", f"--{second}")
    assert contents(copy) == before


@pytest.mark.parametrize("flag", ["resume", "evaluate", "gif", "out"])
def test_an_empty_folder_name_as_of_an_unset_variable_is_refused(call, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    assert_refused(call(f"--{flag}= --quiet" + " --steps 1 --episodes 1" * (flag in ("out", "resume"))))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("flag", ["resume", "evaluate", "gif"])
def test_a_folder_that_holds_no_run_is_refused(call, tmp_path, flag):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file", tmp_path / "file" / "below"):
        assert_refused(call("--quiet", **{flag: folder}), folder)
    assert contents(tmp_path) == {tmp_path / "file": b"mine"}


def test_a_folder_that_holds_a_run_is_not_written_over(call, copy):
    before = contents(copy)
    for env in ("CartPole-v1", "nasty:raise-init-v0"):  # the second fails, and leaves no error.txt there
        flags = tiny(more=f"--steps 1 --env {env}")
        assert_refused(call(flags, out=copy), copy, "holds a run already")
    assert contents(copy) == before


def test_a_folder_that_cannot_be_made_is_refused(call, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_refused(call(tiny(more="--steps 1"), out=folder), folder)
    assert contents(tmp_path) == {tmp_path / "file": b"mine"}


@pytest.mark.parametrize("flag", ["resume", "out"])
def test_a_folder_in_use_is_refused_and_untouched(call, copy, tmp_path, flag):
    folder = copy if flag == "resume" else tmp_path / "new"  # of a run that has not written its config.json yet
    with taken(folder):
        before = contents(folder)
        assert_refused(call("--quiet --steps 1", **{flag: folder}), "another run is writing here")
        assert contents(folder) == before


@pytest.mark.parametrize(
    "flags",
    [
        *("--algo ppo", "--env CartPole-v1", "--seed 0", "--seed 1", "--out elsewhere"),
        *("--episodes 2", "--evaluate-every 7", "--checkpoint-every 50", "--gamma 0", "--gamma 0.5", "--lam 0"),
        *("--no-anneal", "--anneal", "--no-shared", "--hidden", "--entropy-coef 0", "--no-normalise-obs"),
    ],
)
def test_resume_takes_no_flag_that_the_run_has_settled(call, copy, flags):
    before = contents(copy)
    assert_refused(call(f"--quiet {flags}", resume=copy), flags.split()[0].replace("--no-", "--"))
    assert contents(copy) == before


@pytest.mark.parametrize("flag", ["evaluate", "gif"])
@pytest.mark.parametrize("flags", ["--algo a2c", "--env Pendulum-v1", "--steps 5", "--out elsewhere", "--gamma 0.5"])
def test_flags_of_training_are_refused_where_nothing_is_trained(call, copy, flag, flags):
    before = contents(copy)
    assert_refused(call(flags, **{flag: copy}), flags.split()[0])
    assert contents(copy) == before


# Help, examples, and what a run says at the end


def test_the_script_explains_every_flag_with_its_default():
    result = subprocess.run([sys.executable, PATH, "-h"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    promised = "algo env seed steps out resume evaluate gif quiet checkpoint-every target episodes"
    for name in promised.split():
        assert f"--{name}" in result.stdout
    for algo in SCRIPT.algorithms:
        parser = command_line.make_parser(SCRIPT, algo)
        text = parser.format_help()
        for name in SCRIPT.settings_of(algo, True):
            assert f"--{name.replace('_', '-')}" in text
        for name in SCRIPT.algorithms:
            assert name in text
        for action in parser._actions:
            without = action.metavar == "DIR" or action.dest in ("help", "quiet")
            assert action.help and (without or re.search(r"\(.+\)$", action.help)), action.option_strings
    for baseline in BASELINES:
        assert baseline in command_line.make_parser(SCRIPT, "reinforce").format_help()


def test_the_flags_of_one_algorithm_are_one_page(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for algo in SCRIPT.searches:
        result = call(f"--algo {algo} -h")
        assert result.code == 0 and result.err == "" and len(result.out.splitlines()) <= 60
    assert "--sigma" not in call("--algo es -h").out


def test_help_and_results_can_be_written_where_the_terminal_knows_no_greek(finished):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for flags in (["-h"], ["--evaluate", finished]):
        result = subprocess.run([sys.executable, PATH, *flags], capture_output=True, text=True, env=env)
        assert result.returncode == 0 and "Traceback" not in result.stderr


@pytest.mark.parametrize("command", re.findall(r"run_cartpole\.py(.*?)(?:   .*)?\n", run_cartpole.__doc__))
def test_the_scripts_own_examples_run(call, tmp_path, command):
    assert call(f"{command} --quiet --steps 1 --episodes 1", out=tmp_path / "run").code == 0


SLIDES = {  # the flags that make an algorithm the one of the slide
    "a3c": "--envs 1 --max-grad-norm none --value-coef 2 --no-anneal",
    "reinforce": "--weight total --baseline none --gamma 1 --no-standardise --max-grad-norm none --optimizer sgd "
    "--learning-rate 3e-5 --no-anneal",
    "actor-critic": "--no-standardise --max-grad-norm none --optimizer sgd --learning-rate 1e-2 --no-anneal",
    "q-actor-critic": "--no-subtract-value --no-standardise --entropy-coef 0 --max-grad-norm none --optimizer sgd "
    "--learning-rate 1e-2 --no-anneal",
    "es": "--shaping none --learning-rate 2e-3",
    "finite-difference": "--optimizer sgd --learning-rate 1e-2",
}


@pytest.mark.parametrize("algo", SLIDES)
def test_the_slides_own_flags_are_named_and_train(call, tmp_path, algo):
    flags, more = SLIDES[algo], " --workers 2" if algo == "a3c" else ""
    assert f"The slide's settings: {flags}" in " ".join(SCRIPT.algorithms[algo][0].__doc__.split())
    page = (PATH.parent / "docs" / "lecture.md").read_text().replace("\\\n", "")
    assert f"--algo {algo} {flags}" in " ".join(page.split())
    assert flags in " ".join(command_line.make_parser(SCRIPT, algo).format_help().split())
    result = call(f"--algo {algo} {flags}{more} --quiet --steps 300 --episodes 2", out=tmp_path / "run")
    settings = read_config(tmp_path / "run")["settings"]
    assert result.code == 0
    if algo == "es":
        assert settings["shaping"] == "none"
    elif algo == "finite-difference":
        assert settings["optimizer"] == "sgd"
    else:
        assert settings["max_grad_norm"] is None and not settings["standardise"] and not settings["anneal"]
    if algo == "a3c":
        assert (settings["lam"], settings["statistics"], settings["optimizer"]) == (1.0, "shared", "rmsprop")


def test_runs_without_a_folder_get_new_ones_by_their_names(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for env in ("CartPole-v1", "CartPole-v1", "strange/Plain-v0"):
        assert call(tiny("a2c", f"--env {env} --seed 4 --steps 1")).code == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        *("CartPole-v1-a2c-seed4", "CartPole-v1-a2c-seed4-2", "strange-Plain-v0-a2c-seed4")
    }


def test_of_two_runs_that_choose_the_same_new_folder_one_takes_the_next(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = iter(["first", "first", "second"])  # as if the other run had begun after the name was chosen
    monkeypatch.setattr(command_line, "_new_folder", lambda *_: tmp_path / next(names))
    with taken(tmp_path / "first"):
        assert call(tiny(more="--steps 1")).code == 0
        assert not (tmp_path / "first" / "config.json").exists() and (tmp_path / "second" / "result.json").exists()
        assert_refused(call(tiny(more="--steps 1"), out=tmp_path / "first"), "another run is writing here")


def test_a_run_says_what_to_do_next(call, tmp_path):
    out = call(tiny(more="--steps 50"), out=tmp_path / "run").out
    for flag in ("--gif", "--evaluate", "--resume"):
        assert f"{flag} {tmp_path / 'run'}" in out
    assert str(tmp_path / "run" / "learning_curve.png") in out


@pytest.mark.parametrize(
    "algo, flags, reason",
    [
        ("es", "--steps 20 --target 5 --episodes 100", "two evaluations in a row must reach the target"),
        ("ppo", "--steps 20 --target 5 --episodes 100", "the mean of 100 training episodes must reach the target, too"),
        ("ppo", "--steps 20 --target 5", "this takes 100 unseen episodes"),
    ],
)
def test_a_run_whose_last_episodes_reach_the_target_says_what_it_lacks(
    call, tmp_path, scripted, monkeypatch, algo, flags, reason
):
    monkeypatch.setattr(Run, "_affordable", lambda self, n: 0)
    scripted(6)
    out = call(tiny(algo, flags), out=tmp_path / "run").out
    assert out.startswith("not solved") and f"\n  not confirmed: {reason}\n" in out
    scripted(4)
    assert "not confirmed" not in call(tiny(algo, flags), out=tmp_path / "below").out


def test_a_run_says_when_there_was_nothing_to_learn_from(call, tmp_path):
    sparse = call(tiny(more="--env MountainCar-v0 --steps 1000"), out=tmp_path / "sparse").out
    assert "all episodes had the same return: there was nothing to learn from yet" in sparse
    assert "nothing to learn" not in call(tiny(more="--steps 1000"), out=tmp_path / "other").out


@pytest.mark.slow
def test_the_scripts_work_without_docstrings_and_with_any_backend(tmp_path):
    env = {**os.environ, "MPLBACKEND": "bogus"}
    command = [sys.executable, "-OO", PATH, *tiny(more="--steps 100").split(), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stderr == "" and (tmp_path / "run" / "learning_curve.png").exists()


# Environments that fail


@pytest.mark.parametrize("algo", ["ppo", "es"])
@pytest.mark.parametrize(
    "env, words",
    [
        ("raise-init", "its creation raised ValueError: the user's mistake in two lines"),
        ("exit-reset", "reset raised SystemExit: 0"),
        ("odd-step", "step raised Odd: 1 2"),
        ("shape", "step raised ValueError"),
        ("word", "step raised ValueError: could not convert string to float: 'good'"),
        ("info", "step raised"),
        ("raise-close", "close raised ValueError: the user's mistake in two lines"),
    ],
)
def test_an_environment_that_fails_is_told_of_in_one_line_and_its_traceback_is_kept(call, tmp_path, algo, env, words):
    result = call(f"{tiny(algo)} --steps 300 --env nasty:{env}-v0", out=tmp_path / "run")
    assert result.code == 4 and result.out == ""
    assert re.fullmatch(rf"\S+: environment nasty:{env}-v0: .+\n", result.err) and words in result.err
    text = (tmp_path / "run" / "error.txt").read_text()
    assert "Traceback" in text and ("nasty.py" in text or env in ("shape", "word", "info"))


def test_an_environment_that_fails_to_render_is_told_of_in_one_line(call, tmp_path):
    assert call(f"{tiny()} --steps 100 --env nasty:print-reset-v0", out=tmp_path / "run").code == 0
    result = call("", gif=tmp_path / "run")
    words = "environment nasty:print-reset-v0: render raised ValueError: the user's mistake in two lines"
    assert result.code == 4 and words in result.err and result.err.count("\n") == 1
    assert "nasty.py" in (tmp_path / "run" / "error.txt").read_text()
    assert not (tmp_path / "run" / "policy.gif").exists()


def test_the_traceback_of_an_error_is_removed_when_the_run_continues(call, tmp_path):
    assert call(f"{tiny()} --steps 100", out=tmp_path / "run").code == 0
    (tmp_path / "run" / "error.txt").write_text("Traceback")
    assert call("--quiet --steps 200", resume=tmp_path / "run").code == 0
    assert not (tmp_path / "run" / "error.txt").exists()


def test_the_command_that_continues_a_run_can_be_typed_as_it_is_printed(call, tmp_path):
    """Also if the first update made more than twice the steps that were asked for."""
    result = call(f"{tiny('genetic')} --steps 1", out=tmp_path / "run")
    flags = re.search("continue .* (--steps .*)", result.out)[1]
    assert int(flags.split()[1]) > 2 and call(f"--quiet {flags}", resume=tmp_path / "run").code == 0


def test_an_environment_that_fails_after_a_checkpoint_leaves_that(call, tmp_path):
    result = call(f"{tiny()} --checkpoint-every 1 --steps 300 --env nasty:raise-step-v0", out=tmp_path / "run")
    assert result.code == 4 and "the last good checkpoint, of update" in result.err
    assert int(read_checkpoint(tmp_path / "run")["update"]) >= 1


@pytest.mark.slow
def test_an_environment_that_fails_in_a_worker_is_told_of_as_well(call, tmp_path):
    result = call(f"{tiny('a2c')} --workers 1 --steps 300 --env nasty:exit-reset-v0", out=tmp_path / "run")
    assert result.code == 4 and "reset raised SystemExit: 0" in result.err and result.err.count("\n") == 1
    assert "nasty.py" in (tmp_path / "run" / "error.txt").read_text()
