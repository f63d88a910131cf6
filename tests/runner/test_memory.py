"""Settings that cannot fit into memory are refused before the run starts. The message names the setting."""

import numpy as np
import pytest
from gymnasium import spaces

from npg.runner.memory import check_memory, estimate, memory_limit

OBS, ACT = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)
USUAL = {"steps": 500_000, "episodes": 100, "envs": 16, "hidden": (64, 64), "n_steps": 32, "capacity": 1}


@pytest.mark.parametrize(
    "name, value",
    [("hidden", (100_000, 100_000)), ("envs", 10**12), ("episodes", 10**11), ("n_steps", 10**12),
     ("n_candidates", 10**12), ("workers", 10**6), ("components", 10**12), ("env", "Huge-v0")],
)
def test_a_setting_that_cannot_fit_is_named(name, value):
    settings = {**USUAL, name: value, **({"steps": 10**15} if name == "n_steps" else {})}
    act = spaces.Discrete(10**12) if name == "env" else ACT
    with pytest.raises(ValueError, match=f"^{name}: .* GB of memory") as error:
        check_memory(settings, OBS, act, limit=16e9)
    assert "\n" not in str(error.value)


def test_usual_settings_fit_and_without_a_known_limit_everything_fits(monkeypatch):
    check_memory(USUAL, OBS, ACT, limit=1e9)
    check_memory({**USUAL, "hidden": (), "n_candidates": 10}, OBS, ACT)
    monkeypatch.setattr("npg.runner.memory.memory_limit", lambda: None)
    check_memory({**USUAL, "envs": 10**12}, OBS, ACT)


def test_the_estimate_counts_weights_and_rows():
    needed = estimate(USUAL, OBS, ACT)
    assert needed["hidden"] == 3 * 4 * (5 * 64 + 65 * 64 + 65 * 2)
    assert needed["n_steps"] == 16 * 32 * 4 * 4
    assert estimate({**USUAL, "capacity": 10**12, "steps": 1}, OBS, ACT)["capacity"] == needed["n_steps"]
    few = estimate({**USUAL, "episodes": 10**6}, OBS, ACT, 6)["episodes"]
    assert few < estimate({**USUAL, "episodes": 10**6}, OBS, ACT)["episodes"]


@pytest.fixture
def a_megabyte(monkeypatch):
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 250}.get)


def test_memory_is_the_machines_or_the_cgroups(a_megabyte, tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    assert memory_limit(tmp_path) == 1_024_000
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/a/b/memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == 1_024_000
    (tmp_path / "sys/fs/cgroup/a/memory.max").write_text("5000\n")
    assert memory_limit(tmp_path) == 5000


def test_memory_of_a_cgroup_of_version_1(a_megabyte, tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu:/x\n5:memory:/x\n")
    (tmp_path / "sys/fs/cgroup/memory/x").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory/x/memory.limit_in_bytes").write_text("7000\n")
    assert memory_limit(tmp_path) == 7000
