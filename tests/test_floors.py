"""The lecture's modules, npg/*.py, import nothing of the runner. Each module imports only modules listed before it."""

import ast
import pathlib
import re

import pytest

import npg

MODULES = {path.stem: path.read_text(encoding="utf-8") for path in pathlib.Path(npg.__file__).parent.glob("*.py")}
ORDER = re.findall(r"^ {4}(\w+) {2,}\S", npg.__doc__, re.MULTILINE)  # name, spaces, description


def imports(source):
    """The modules of npg that this source imports anywhere in its code: "policy", "runner.workers"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(filter(None, ["npg" if node.level else None, node.module]))
            names = [f"{package}.{alias.name}" for alias in node.names] if package == "npg" else [package]
        else:
            continue
        found.update(name.removeprefix("npg.") for name in names if name.startswith("npg."))
    return found


def check_floors(name, source):
    """Raises AssertionError if a module of the lecture imports from the runner or from a later module."""
    for other in imports(source):
        package = other.split(".")[0]
        assert package != "runner", f"{name} imports npg.{other}, which is upstairs"
        if name in ORDER and package in ORDER:
            assert ORDER.index(package) < ORDER.index(name), f"{name} imports {package}, which is read later"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_nothing_of_the_runner_and_only_what_is_read_before_it(name):
    check_floors(name, MODULES[name])


def test_the_reading_order_names_modules_that_exist_and_each_of_them_once():
    assert len(ORDER) > 10 and len(set(ORDER)) == len(ORDER)
    assert sorted(ORDER) == sorted(MODULES.keys() - {"__init__"})


@pytest.mark.parametrize(
    "line, message",
    [
        ("import npg.runner.workers", "upstairs"),
        ("from npg.runner import workers", "upstairs"),
        ("from npg import runner", "upstairs"),
        ("from .runner.workers import Pool", "upstairs"),
        ("def f():\n    from npg.runner.workers import Pool", "upstairs"),
        ("import npg.a3c", "read later"),
        ("from npg import a3c", "read later"),
        ("from . import a3c", "read later"),
        ("from npg.a3c import parallel_a2c", "read later"),
        ("from npg.rollout import Rollout", "read later"),  # itself
    ],
)
def test_the_check_sees_an_import_that_should_not_be_there(line, message):
    with pytest.raises(AssertionError, match=message):
        check_floors("rollout", MODULES["rollout"] + "\n\n" + line + "\n")


def test_the_check_takes_any_other_import():
    check_floors("rollout", "import numpy as np\nfrom npg.policy import Policy\nfrom npg import network\n")
    assert imports("import npg.network, numpy\nfrom npg.policy import Policy\n") == {"network", "policy"}
