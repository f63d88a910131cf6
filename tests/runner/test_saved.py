"""The config and checkpoint of a run are read as they were written, and refused in one line where they are damaged."""

import json
import shlex

import numpy as np
import pytest
from running import assert_refused, assert_same_run, contents, rewritten, tiny
from walks import CONFIG, begin, make_run, resume

from npg.runner.folder import RunError, write_json
from npg.runner.saved import FORMAT, read_checkpoint, read_config

pytestmark = pytest.mark.usefixtures("quick_workers", "quick_disk", "no_figures")


# The config


def test_a_run_can_be_repeated_from_its_config_alone(call, tmp_path):
    more = "--env Pendulum-v1 --seed 3 --steps 200 --checkpoint-every 4 --anneal --normalise-obs --hidden 6 5"
    flags = tiny(more=f"{more} --sigma state --shared --gamma 0.9 --entropy-coef 0.01")
    assert call(flags, out=tmp_path / "run").code == 0
    config = read_config(tmp_path / "run")
    again = ["--quiet"]
    for name, value in {**config, **config["settings"]}.items():
        if name in ("format", "settings", "versions") or value is None:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            again.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            again += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    assert call(shlex.join(again), out=tmp_path / "again").code == 0
    assert_same_run(tmp_path / "again", tmp_path / "run")
    assert {"npg", "python", "numpy", "gymnasium"} <= config["versions"].keys()


def test_a_config_of_this_format_is_taken_as_it_is(tmp_path):
    config = {**CONFIG, "settings": {"sigma": 1, "entropy_weight": 2}}
    write_json(tmp_path / "config.json", config)
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"npg run 1"', "{}", '{"format": "npg run 0"}', "\ufeff{}"]
)
def test_a_config_that_is_not_one_of_ours_is_an_error_of_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError) as error:
        read_config(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_config_of_bytes_that_are_no_text_is_an_error(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RunError, match="config.json"):
        read_config(tmp_path)


def test_a_folder_without_a_config_or_no_folder_is_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(RunError, match=str(folder)):
            read_config(folder)


CONFIGS = {
    "empty": lambda text: "",
    "cut short": lambda text: text[: len(text) // 2],
    "another format": lambda text: text.replace("npg run", "other run"),
    "bare": lambda text: json.dumps({"format": json.loads(text)["format"]}),
    "no settings": lambda text: edited(text, lambda config: config.pop("settings")),
    "a setting lost": lambda text: edited(text, lambda config: config["settings"].pop("hidden")),
    "a setting too many": lambda text: edited(text, lambda config: config["settings"].update(temperature=1.0)),
    "settings no dict": lambda text: edited(text, lambda config: config.update(settings=[1, 2])),
    "an unknown algorithm": lambda text: edited(text, lambda config: config.update(algo="sarsa")),
    "an unknown environment": lambda text: edited(text, lambda config: config.update(env="Nowhere-v0")),
    "a word for a seed": lambda text: edited(text, lambda config: config.update(seed="three")),
    "an unknown weight of importance": lambda text: edited(text, lambda c: c["settings"].update(importance="heavy")),
    "an unknown activation": lambda text: edited(text, lambda config: config["settings"].update(activation="gelu")),
    "unknown actions": lambda text: edited(text, lambda config: config["settings"].update(act="best")),
    "a bad period": lambda text: edited(text, lambda config: config.update(checkpoint_every="often")),
}


def edited(text, change):
    config = json.loads(text)
    change(config)
    return json.dumps(config)


@pytest.mark.parametrize("flag", ["resume", "evaluate"])
@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_config_is_refused_and_nothing_is_written(call, copy, damage, flag):
    path = copy / "config.json"
    path.write_text(CONFIGS[damage](path.read_text()))
    before = contents(copy)
    assert_refused(call("--quiet", **{flag: copy}))
    assert contents(copy) == before


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda config: config.update(evaluate_from="x"), "evaluate_from"),
        (lambda config: config.update(cluster="tcp://a:1"), "cluster"),
        (lambda config: config.update(cluster=[1]), "cluster"),
        (lambda config: config.update(env=["CartPole-v1"]), "env"),
        (lambda config: config.update(steps=None), "steps"),
        (lambda config: config.update(episodes=2**63), "2^63"),
        (lambda config: config["settings"].update(envs=10**12), "memory"),
        (lambda config: config["settings"].update(gamma=-1), "gamma"),
        (lambda config: config.update(checkpoint_every="often"), "checkpoint_every"),
    ],
)
def test_a_config_is_checked_like_the_command_line(call, copy, change, words):
    path = copy / "config.json"
    path.write_text(edited(path.read_text(), change))
    before = contents(copy)
    for flag in ("resume", "evaluate"):
        if not (words == "cluster" and flag == "resume"):  # there, the scheduler is looked for first
            assert_refused(call("--quiet", **{flag: copy}), words)
    assert contents(copy) == before


def test_a_config_nested_too_deeply_is_refused(call, copy):
    (copy / "config.json").write_text("[" * 100_000)
    assert_refused(call("--quiet", evaluate=copy), "nested too deeply")


# The checkpoint


DAMAGED = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "corrupt": lambda path: path.write_bytes(path.read_bytes().replace(b"\0\0\0", b"\1\2\3")),
    "text": lambda path: path.write_text("hello"),
    "foreign": lambda path: np.savez(path, weights=np.ones(3)),
    "pickled": lambda path: rewritten(path, theta=np.array([{}], object)),
    "of another network": lambda path: rewritten(path, theta=np.zeros(5, np.float32)),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("flag", ["resume", "evaluate", "gif"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_checkpoint_is_refused_and_nothing_is_written(call, copy, damage, flag):
    DAMAGED[damage](copy / "checkpoint.npz")
    before = contents(copy)
    assert_refused(call("--quiet", **{flag: copy}), copy)
    assert contents(copy) == before


@pytest.mark.parametrize("flag", ["resume", "evaluate"])
def test_nan_in_a_checkpoint_and_one_that_is_compressed_are_refused(call, copy, flag):
    path = copy / "checkpoint.npz"
    good = read_checkpoint(copy)
    np.savez(path, **{**good, "theta": good["theta"] * np.nan})
    assert_refused(call("--quiet", **{flag: copy}), "theta holds NaN")
    np.savez_compressed(path, **{**good, "more": np.zeros(10**6)})
    assert_refused(call("--quiet", **{flag: copy}), "its header announces more data than the file holds")


def test_a_checkpoint_with_a_flipped_bit_or_cut_short_never_causes_a_crash(tmp_path):
    begin(tmp_path, 5)
    path, rng, refused = tmp_path / "checkpoint.npz", np.random.default_rng(0), 0
    whole = path.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data if rng.random() < 0.8 else whole[: rng.integers(len(whole))])
        try:
            make_run(tmp_path).restore(read_checkpoint(tmp_path))
        except RunError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 150


# The earlier format


EARLIER = {**CONFIG, "format": "npg run 1", "algo": "a2c"}


@pytest.mark.parametrize(
    "config, settings",
    [
        ({"settings": {"entropy_weight": 0.1, "gamma": 0.9}}, {"entropy_coef": 0.1, "gamma": 0.9}),
        ({"settings": {"value_weight": 0.5}, "workers": 2}, {"value_coef": 0.5, "workers": 2}),
        ({"settings": {"sigma": "state", "log_std": -1.0}, "workers": None}, {"sigma": "state", "log_std": -1.0}),
        (
            {"algo": "es", "settings": {"sigma": "learned", "log_std": -1.0}},
            {"search_sigma": "learned", "search_log_std": -1.0},
        ),
        (
            {"algo": "hill-climbing", "settings": {"log_std": -1.0, "narrow": 0.9}},
            {"search_log_std": -1.0, "narrow": 0.9},
        ),
        ({"algo": "ppo", "settings": {"gamma": 0.9}}, {"gamma": 0.9, "clip": 0.2}),
        ({"algo": "genetic", "settings": {"log_std": 0.0}}, {"search_log_std": 0.0}),
        ({"env": "Pong", "settings": {"hidden": [200], "activation": "relu", "lam": 0.9}}, {"lam": 0.9}),
        (
            {"env": "Pong", "settings": {"hidden": [100], "activation": "relu"}},
            {"hidden": [100], "activation": "relu"},  # a network that is not the script's: refused later, by its name
        ),
    ],
)
def test_a_config_of_the_earlier_format_is_translated(tmp_path, config, settings):
    write_json(tmp_path / "config.json", {**EARLIER, **config})
    found = read_config(tmp_path)
    assert found["settings"] == settings
    assert found["format"] == FORMAT and found["from_earlier_format"]
    write_json(tmp_path / "config.json", found)
    assert read_config(tmp_path) == found  # once translated it stays as it is


def test_a_checkpoint_of_the_earlier_format_loads(tmp_path):
    begin(tmp_path, 6)
    rewritten(tmp_path / "checkpoint.npz", format=np.asarray("npg run 1"))
    assert resume(tmp_path).update == 5
