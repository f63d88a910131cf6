"""Every name in the README and in the guided tour exists, and every example in them runs."""

import ast
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from npg.distributions import Categorical
from npg.network import MLP
from npg.policy import Policy
from npg.returns import reward_to_go
from npg.tabular import FiniteMDP

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [page for page in (ROOT / "README.md", ROOT / "docs" / "lecture.md") if page.exists()]
ALL_PAGES = [*PAGES, ROOT / "benchmarks" / "README.md"]
TESTS = {
    node.name
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef)
}
LECTURE = ROOT / "docs" / "lecture.md"


def load(path):
    """Imports the module from a file in any folder."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


excerpts = load(ROOT / "docs" / "excerpts.py")


def code_spans(page):
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))


def resolve(name, home):
    """The object with this name: `module.name`, `npg.module.name`, or only `name` in the module `home`."""
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
    links = re.findall(r"\[([^\]]*`[^\]]*)\]\((?:\.\./)?npg/(\w+)\.py(?:#L\d+)?\)", page.read_text())
    assert links
    for text, module in links:
        home = module
        for name in re.findall(r"`([\w.]+)`", text):
            assert resolve(name, home) is not None
            home = ".".join(name.split(".")[:1]) if "." in name else home


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_linked_exists(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert links
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", excerpts.PAGES, ids=lambda page: page.name)
def test_excerpts_are_the_source_and_links_go_to_the_right_line(page):
    """If this fails, run python docs/excerpts.py."""
    text = page.read_text(encoding="utf-8")
    assert excerpts.rewritten(text, page.parent) == text


def test_every_section_of_the_tour_has_an_equation_its_code_and_its_proof():
    _, *sections = re.split(r"^## ", LECTURE.read_text(encoding="utf-8"), flags=re.M)
    assert len(sections) > 20
    for section in sections:
        title = section.splitlines()[0]
        blocks = [block.splitlines() for block in re.findall(r"```python\n(.*?)```", section, flags=re.S)]
        assert section.count("$$\n") >= 2, title
        assert section.count("<!-- code ") == section.count("<!-- end -->") == len(blocks) >= 1, title
        assert sum(map(len, blocks)) >= 2 and max(map(len, blocks)) <= 10, title
        proof = re.search(r"<sub>Proof:.*?</sub>\s*$", section, flags=re.S)
        assert proof and "[`test_" in proof[0], title


def test_links_within_a_page_go_to_its_sections():
    """An anchor is the title in lower case, with hyphens for blanks. It keeps only letters, digits and hyphens."""
    text = LECTURE.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    anchors = {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


SOURCE = """# moved down

def f(x):
    \"\"\"What f does.\"\"\"
    y = 2 * x
    for _ in range(3):
        y += 1
    return y


class C:
    @property
    def f(self):
        return 1
"""
PAGE = """<!-- code m.py f -->
<!-- end -->
<!-- code m.py f "for" "y +=" -->
what stood here before
<!-- end -->
A link to [`m.C.f`](../m.py#L999), and one to [`C.f`](../m.py) without a line.
"""
REWRITTEN = """<!-- code m.py f -->
[m.py, line 3, `f`](../m.py#L3)
```python
def f(x):
    y = 2 * x
    for _ in range(3):
        y += 1
    return y
```
<!-- end -->
<!-- code m.py f "for" "y +=" -->
[m.py, line 6, `f`](../m.py#L6)
```python
for _ in range(3):
    y += 1
```
<!-- end -->
A link to [`m.C.f`](../m.py#L13), and one to [`C.f`](../m.py) without a line.
"""


def test_excerpts_and_line_numbers_follow_their_functions(tmp_path, monkeypatch):
    monkeypatch.setattr(excerpts, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "m.py").write_text(SOURCE)
    assert excerpts.rewritten(PAGE, tmp_path / "docs") == REWRITTEN
    assert excerpts.rewritten(REWRITTEN, tmp_path / "docs") == REWRITTEN


@pytest.mark.parametrize("wrong", [
    "<!-- code gone.py f -->\n<!-- end -->", "<!-- code m.py g -->\n<!-- end -->",
    '<!-- code m.py f "while" -->\n<!-- end -->', '<!-- code m.py f "return" "y =" -->\n<!-- end -->',
    "[`m.g`](../m.py#L1)", "[`test_that_does_not_exist`](#)",
])
def test_what_an_excerpt_or_link_names_has_to_exist(tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(excerpts, "ROOT", tmp_path)
    (tmp_path / "m.py").write_text(SOURCE)
    with pytest.raises(ValueError):
        excerpts.rewritten(wrong, tmp_path / "docs")


def test_a_constant_taken_from_every_reward_is_no_baseline():
    """Actions can end this episode. Subtracted from the return, b keeps the mean; from every reward, b changes it."""
    P = np.array([[[0.0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1]], [[0, 0, 1]] * 2])  # action 1 ends it
    mdp = FiniteMDP(P, [[1, 2], [-1, 0.5], [0, 0]], [0.5, 0.5, 0], horizon=3, terminal=[False, False, True])
    policy = Policy(MLP((3, 2)), Categorical(2))
    theta = np.random.default_rng(0).normal(size=policy.size)
    rollout, b = mdp.rollout(), 0.7
    once = mdp.moments(policy, theta, rollout.rew.sum(axis=0) - b)
    each = mdp.moments(policy, theta, reward_to_go(rollout.rew - b * rollout.valid, rollout.done))
    assert np.linalg.norm(once.bias) < 1e-12
    assert np.linalg.norm(each.bias) > 0.1


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
