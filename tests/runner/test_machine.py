"""The CPU cores that affinity and cgroups allow this process to use."""

import os

import pytest

from npg.runner.machine import available_cores


def system(root, memberships, **limits):
    """A file system with /proc/self/cgroup and limits {folder: {file: text}}."""
    for path, text in {"proc/self/cgroup": memberships, **limits}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def v1(folder, quota, period):
    place = "sys/fs/cgroup/cpu,cpuacct/" + folder
    return {place + "cpu.cfs_quota_us": f"{quota}\n", place + "cpu.cfs_period_us": f"{period}\n"}


V1 = "12:memory:/jobs/mine\n3:cpu,cpuacct:/jobs/mine\n1:name=systemd:/\n0::/\n"


@pytest.mark.parametrize(
    "memberships, limits, cores",
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "rubbish\n"}, 8),
        ("0::/jobs/mine\n", {"sys/fs/cgroup/jobs/mine/cpu.max": "400000 100000\n"}, 4),
        (
            "0::/jobs/mine\n",
            {"sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n", "sys/fs/cgroup/jobs/cpu.max": "200000 100000\n"},
            2,
        ),
        (V1, v1("jobs/mine/", "250000", "50000"), 5),
        (V1, v1("", "200000", "100000"), 2),
        (V1, v1("jobs/mine/", "-1", "100000"), 8),
    ],
)
def test_cgroups_limit_the_cores(memberships, limits, cores, eight_cores, tmp_path):
    assert available_cores(system(tmp_path, memberships, **limits)) == cores


def test_cpu_affinity_limits_the_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert available_cores(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


def test_there_is_a_core_here():
    assert 1 <= available_cores() <= os.cpu_count()
