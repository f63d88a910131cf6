"""Each example draws its figure, and its numbers say what the figure claims. Bad flags are refused."""

import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest
from helpers import assert_mean

from npg.gradcheck import check_gradient

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES, BENCHMARKS = ROOT / "examples", ROOT / "benchmarks"
NEED_TORCH = "cartpole_vs_sb3", "network_vs_torch", "tasks_vs_sb3"


@pytest.fixture
def run(tmp_path):
    """run(name, *flags) → the result of the example's `main`, which has written a PNG."""

    def run_main(name, *flags):
        path = tmp_path / "figure.png"
        result = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](["--out", str(path), *flags])
        assert path.read_bytes().startswith(b"\x89PNG")
        return result

    return run_main


@pytest.mark.parametrize("name", ["estimators", "importance", "score_function", "variance"])
def test_help_names_the_figure_that_it_writes(name, capsys):
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](["-h"])
    assert exit.value.code == 0
    assert f"docs/figures/{name}.png" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["estimators", "importance", "score_function", "variance"])
def test_a_folder_that_is_not_there_is_named_before_the_work_begins(name, capsys):
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](["--out", "nowhere/figure.png"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith("error: argument --out: folder nowhere does not exist\n")


@pytest.fixture
def call(monkeypatch, capsys):
    """call(path, *flags) → exit code and output of the script's `main`, without docstrings, as under python -OO."""

    def call_main(path, *flags):
        if path.stem in NEED_TORCH:
            pytest.importorskip("stable_baselines3")
        monkeypatch.syspath_prepend(ROOT)
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setattr(sys, "argv", [str(path), *flags])
        module = {"__name__": path.stem, "__file__": str(path), "__doc__": None}
        exec(compile(path.read_bytes(), path, "exec", optimize=2), module)
        with pytest.raises(SystemExit) as exit:
            module["main"]()
        return exit.value.code, capsys.readouterr()

    return call_main


def scripts():
    paths = [*EXAMPLES.glob("*.py"), *BENCHMARKS.glob("*.py")]
    return sorted(path for path in paths if path.stem not in ("own_distribution", "own_environment", "timing"))


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_help_needs_no_docstrings(path, call):
    code, output = call(path, "-h")
    assert code == 0 and output.out.startswith(f"usage: {path.name} ")


@pytest.mark.parametrize("script, flag, lowest", [
    ("examples/estimators", "--seed", 0), ("examples/estimators", "--repeats", 2), ("examples/importance", "--mdps", 1),
    ("examples/quadruped", "--evaluations", 16), ("examples/quadruped", "--seed", 0),
    ("examples/quadruped", "--workers", 1), ("examples/score_function", "--seed", 0),
    ("examples/score_function", "--samples", 2), ("examples/variance", "--seed", 0), ("examples/variance", "--mdps", 1),
    ("examples/variance", "--estimates", 10), ("examples/variance", "--updates", 0),
    ("benchmarks/a3c_scaling", "--workers", 1), ("benchmarks/a3c_scaling", "--seeds", 0),
    ("benchmarks/a3c_scaling", "--first-seed", 0), ("benchmarks/a3c_scaling", "--seconds", 1),
    ("benchmarks/a3c_scaling", "--rounds", 0), ("benchmarks/a3c_scaling", "--pong-seeds", 0),
    ("benchmarks/a3c_scaling", "--pong-steps", 1), ("benchmarks/cartpole_vs_sb3", "--steps", 1),
    ("benchmarks/cartpole_vs_sb3", "--seeds", 1), ("benchmarks/cartpole_vs_sb3", "--first-seed", 0),
    ("benchmarks/comparison", "--seeds", 1), ("benchmarks/comparison", "--first-seed", 0),
    ("benchmarks/comparison", "--workers", 1), ("benchmarks/evaluations", "--candidates", 1),
    ("benchmarks/evaluations", "--evaluations", 1), ("benchmarks/import_time", "--rounds", 1),
    ("benchmarks/learning", "--seeds", 1), ("benchmarks/learning", "--first-seed", 0),
    ("benchmarks/network_vs_torch", "--rounds", 1), ("benchmarks/pong_learning", "--seeds", 0),
    ("benchmarks/pong_speed", "--seconds", 1), ("benchmarks/pong_speed", "--rounds", 1),
    ("benchmarks/resume", "--steps", 1000), ("benchmarks/sharing", "--updates", 1),
    ("benchmarks/sharing", "--segments", 1), ("benchmarks/tasks", "--seeds", 1),
    ("benchmarks/tasks", "--first-seed", 0), ("benchmarks/tasks_vs_sb3", "--first-seed", 0),
])
def test_a_number_that_is_too_low_is_refused_in_one_line(script, flag, lowest, call):
    code, output = call(ROOT / f"{script}.py", flag, str(lowest - 1))
    assert code == 2
    assert output.err.endswith(f"error: argument {flag}: expected at least {lowest}, got {lowest - 1}\n")


def test_a_figure_without_a_row_is_refused(call, tmp_path):
    flags = f"--seeds 0 --pong-seeds 0 --rounds 0 --figure {tmp_path}/figure.png".split()
    code, output = call(BENCHMARKS / "a3c_scaling.py", *flags)
    assert code == 2 and "error: argument --figure: expected " in output.err


@pytest.mark.parametrize("out", ["a file", "nowhere"])
def test_pongs_pictures_go_into_a_folder_that_is_there(out, call, tmp_path):
    (tmp_path / "a file").touch()
    code, output = call(EXAMPLES / "pong.py", "--out", str(tmp_path / out))
    assert code == 2 and output.err.endswith(f"error: argument --out: folder {tmp_path / out} does not exist\n")


@pytest.mark.parametrize("name", ["own_distribution", "own_environment"])
@pytest.mark.parametrize("flag, code, text", [("-h", 0, "usage: "), ("--bogus", 2, "unrecognized arguments: --bogus")])
def test_examples_without_flags_refuse_every_flag(name, flag, code, text):
    command = [sys.executable, "-OO", str(EXAMPLES / f"{name}.py"), flag]
    ended = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ended.returncode == code and text in ended.stdout + ended.stderr


@pytest.mark.parametrize("name", NEED_TORCH)
def test_a_benchmark_names_the_extra_that_is_not_installed(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / f"{name}.py"), "-h"])
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert exit.value.code == 2
    assert capsys.readouterr().err == f'{name}.py: needs torch: pip install -e ".[bench]"\n'


@pytest.mark.slow
def test_the_variance_ladder_goes_down_and_parameter_space_is_above_it(run):
    in_mdps, in_cartpole = run("variance", "--mdps", "2", "--estimates", "40", "--updates", "0")
    for lower, higher in [
        ("reward to go", "total"), ("constant", "reward to go"), ("time", "constant"), ("total − constant", "total"),
        ("time", "total − constant"), ("gae", "state"), ("total", "es"), ("mirrored es", "es"),
        ("finite differences", "es"), ("reward to go", "finite differences"),
    ]:
        assert np.all(in_mdps[lower] < in_mdps[higher]), (lower, higher)
    assert np.median(in_mdps["state"]) < np.median(in_mdps["time"])
    np.testing.assert_allclose(in_mdps["mirrored es"], in_mdps["finite differences"], rtol=0.1)

    point, low, high = ({rung: x[k] for rung, x in in_cartpole.items()} for k in range(3))
    assert point["gae"] < point["state"] < point["time"] < point["reward to go"] < point["total"] == 1
    order = ("gae", "time"), ("state", "reward to go"), ("reward to go", "total"), ("total − constant", "total")
    for lower, higher in order:
        assert high[lower] < low[higher], (lower, higher)
    assert high["constant"] > low["reward to go"]  # E[R] does not help as a baseline of reward to go
    assert 1 < low["finite differences"] and 1 < low["mirrored es"]
    assert high["finite differences"] < low["es"] and high["mirrored es"] < low["es"]


def test_the_score_function_and_the_reparameterised_gradient_are_the_closed_form_and_lead_uphill(run):
    closed_form, score, pathwise, path = run("score_function", "--samples", "20000")
    for estimate, error in (score, pathwise):
        assert np.all(np.abs(estimate - closed_form) <= 4 * error)
        assert np.linalg.norm(closed_form) > 10 * np.linalg.norm(error)
    assert np.all(pathwise[1] < score[1])
    example = runpy.run_path(str(EXAMPLES / "score_function.py"))
    assert example["expectation"](path[-1]) > example["expectation"](path[0]) + 1
    assert np.linalg.norm(path[-1, :2] - example["CENTER"]) < 0.2


@pytest.mark.slow
def test_parameter_space_pays_for_parameters_and_action_space_for_actions(run):
    by_n, by_T = run("estimators", "--repeats", "60")
    cost = lambda costs: {name: np.array([row[name] for row in costs.values()]).T for name in costs[2]}
    growth = lambda cost, name: np.log2(cost[name][0][-1] / cost[name][0][-5]) / 4  # exponent, from 16 to 256
    of_n, of_T = cost(by_n), cost(by_T)
    assert growth(of_n, "likelihood ratio") == pytest.approx(1, abs=0.2)
    assert growth(of_T, "likelihood ratio") == pytest.approx(0.85, abs=0.25)
    for name in ("evolution strategies", "finite differences"):
        assert growth(of_n, name) == pytest.approx(2, abs=0.2)
        assert growth(of_T, name) == pytest.approx(0, abs=0.2)
        for costs, sign in (of_n, 1), (of_T, -1):
            (mine, error), (other, other_error) = costs[name][:, -1], costs["likelihood ratio"][:, -1]
            assert sign * (mine - other) > 4 * np.hypot(error, other_error)


@pytest.mark.parametrize("n, T", [(1, 3), (4, 2)])
def test_none_of_the_estimators_compared_is_biased(n, T):
    estimates = runpy.run_path(str(EXAMPLES / "estimators.py"))["estimates"]
    results, gradient = estimates(n, T, np.random.default_rng(1), repeats=1000, N=8)
    for g in results.values():
        assert np.all(np.abs(g.mean(axis=0) - gradient) <= 4 * g.std(axis=0, ddof=1) / np.sqrt(len(g)))


@pytest.mark.slow
def test_importance_weights_trade_bias_for_variance(run):
    results = run("importance", "--mdps", "2")
    trajectory, step = results["trajectory"], results["step"]
    names = "no weight", "plain", "truncated", "clipped"
    bias, std = ({name: trajectory[name][..., k] for name in names} for k in (0, 1))
    assert np.all(bias["plain"] < 1e-9)
    assert np.all(bias["no weight"] > 1e-3) and np.all(step["plain"][..., 0] > 1e-4)
    far = -3  # about 1 nat
    assert np.all(np.median(std["plain"][far:], axis=1) > 1.5 * np.median(std["truncated"][far:], axis=1))
    assert np.all(np.median(bias["truncated"][far:], axis=1) < np.median(bias["no weight"][far:], axis=1))
    for ess in (trajectory["ess"], step["ess"]):
        assert np.all(np.diff(np.median(ess, axis=1)) < 0) and np.all(ess[0] > 0.9)
    assert np.all(step["ess"] > trajectory["ess"])
    assert np.median(np.abs(trajectory["sampled"] - trajectory["ess"])) < 0.05


def test_an_environment_of_ones_own_is_learned():
    assert runpy.run_path(str(EXAMPLES / "own_environment.py"))["train"](updates=100) > 0.2  # the best is 0.3


@pytest.fixture
def own_distribution():
    return runpy.run_path(str(EXAMPLES / "own_distribution.py"))


def test_a_distribution_of_ones_own_learns(own_distribution):
    assert own_distribution["train"](updates=150) > -0.05  # the best is 0; a uniform policy has −1.2


def test_the_beta_policys_gradients_and_entropy_are_right(own_distribution):
    beta, rng = own_distribution["Beta"](2), np.random.default_rng(0)
    for _ in range(5):
        params, act = rng.normal(size=4), rng.uniform(0.05, 0.95, 2)
        log_prob = lambda params: beta.log_prob(params, act)
        check_gradient(log_prob, params, beta.grad_log_prob(params, act))
        with pytest.raises(AssertionError):
            check_gradient(log_prob, params, 1.001 * beta.grad_log_prob(params, act))
        check_gradient(beta.entropy, params, beta.grad_entropy(params))
        with pytest.raises(AssertionError):
            check_gradient(beta.entropy, params, 1.001 * beta.grad_entropy(params))
        many = np.tile(params, (100_000, 1))
        assert_mean(-beta.log_prob(many, beta.sample(many, rng))[:, None], beta.entropy(params))


def test_digamma_is_that_of_the_tables(own_distribution):
    euler = 0.57721566490153286
    known = {1.0: -euler, 2.0: 1 - euler, 0.5: -euler - 2 * np.log(2), 10.0: 2.251752589066721}
    np.testing.assert_allclose(own_distribution["digamma"](list(known)), list(known.values()), rtol=1e-12)


def test_trigamma_is_that_of_the_tables(own_distribution):
    known = {1.0: np.pi**2 / 6, 2.0: np.pi**2 / 6 - 1, 0.5: np.pi**2 / 2, 10.0: 0.10516633568168575}
    np.testing.assert_allclose(own_distribution["trigamma"](list(known)), list(known.values()), rtol=1e-12)
