"""What the README and the guided tour name exists, and what they show runs."""

import ast
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [page for page in (ROOT / "README.md", ROOT / "docs" / "lecture.md") if page.exists()]
ALL_PAGES = [*PAGES, ROOT / "benchmarks" / "README.md"]
TESTS = {
    node.name
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef)
}


def code_spans(page):
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))


def resolve(name, home):
    """The object that `module.name`, `npg.module.name` or a bare `name` of the module `home` stands for."""
    parts = name.removeprefix("npg.").split(".")
    try:
        thing, parts = importlib.import_module(f"npg.{parts[0]}"), parts[1:]
    except ModuleNotFoundError:
        thing = importlib.import_module(f"npg.{home}")
    for part in parts:
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_is_named_exists(page):
    named = {span for span in code_spans(page) if re.fullmatch(r"test_\w+", span)}
    assert named and not named - TESTS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_linked_function_exists(page):
    links = re.findall(r"\[([^\]]*`[^\]]*)\]\((?:\.\./)?npg/(\w+)\.py\)", page.read_text())
    assert links
    for text, module in links:
        home = module
        for name in re.findall(r"`([\w.]+)`", text):
            assert resolve(name, home) is not None
            home = ".".join(name.split(".")[:1]) if "." in name else home


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_linked_exists(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert links
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_readmes_code_runs(monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) == 3
    reinforce, own, check = (block.replace("range(100)", "range(3)") for block in blocks)
    assert len(own.splitlines()) <= 25
    exec(compile(reinforce, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3
    exec(compile(check, "README.md", "exec"), {})


def test_the_readmes_own_algorithm_has_flags_resume_evaluation_and_film(tmp_path):
    _, own, _ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    (tmp_path / "mine.py").write_text(own)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def call(flags):
        return subprocess.run(
            [sys.executable, "mine.py", *flags.split()], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    assert "--power" in call("-h").stdout
    assert call("--power 2 --hidden 8 --steps 500 --episodes 2 --quiet --out run").returncode == 0
    assert call("--resume run --steps 1000 --quiet").returncode == 0
    assert "over 2 episodes" in call("--evaluate run").stdout
    if importlib.util.find_spec("pygame"):
        assert call("--gif run").returncode == 0 and (tmp_path / "run" / "policy.gif").exists()
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "psi_mean" in header.split(",")
    for wrong in ("--powr 2", "--power two", "--gamma 2", "--hidden 0"):
        result = call(f"{wrong} --steps 1 --out other")
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and wrong.split()[0] in result.stderr
    assert not (tmp_path / "other").exists()
