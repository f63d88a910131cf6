#!/usr/bin/env python
"""Rewrite the excerpts of code and the line numbers of links in docs/*.md and README.md from the sources.

    python docs/excerpts.py

An excerpt stands between two comments. The first one names a file and a function, or a class, or a method:

    <!-- code npg/returns.py reward_to_go -->
    <!-- end -->

The command puts the function's lines there, without its docstring, and a link to the first of them. A part of a
function is named by the text at the beginning of its first and its last line:

    <!-- code npg/returns.py discounted_sum "for t in" "following" -->

One text alone stands for one line. A link such as [`returns.gae`](../npg/returns.py#L1) gets the line at which the
function is defined, and a link with a test's name as its text, such as [`test_by_hand`](#), gets the file as well.
"""

import ast
import functools
import os
import pathlib
import re
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.exists()]

EXCERPT = re.compile(
    r'<!-- code (?P<path>\S+) (?P<name>[\w.]+)(?: "(?P<first>[^"\n]+)")?(?: "(?P<last>[^"\n]+)")? -->\n'
    r"(?P<old>.*?)<!-- end -->",
    re.DOTALL,
)
LINK_TO_LINE = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<path>[^)#\s]+\.py)#L\d*\)")
LINK_TO_TEST = re.compile(r"\[`(?P<name>test_\w+)`\]\((?P<path>[^)#\s]*)(?:#L?\d*)?\)")


@functools.cache
def definitions(path):
    """{name: its node} of the functions, classes, methods ("Class.method") and constants of a Python file."""
    found = {}

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[prefix + node.name] = node
            if isinstance(node, ast.ClassDef):
                visit(node.body, prefix + node.name + ".")
            if isinstance(node, ast.Assign):
                found.update({prefix + target.id: node for target in node.targets if isinstance(target, ast.Name)})

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


@functools.cache
def tests(root):
    """{name of a test: the files that have it}."""
    found = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        for name in definitions(path):
            if name.startswith("test_"):
                found.setdefault(name, []).append(path)
    return found


def find(path, name):
    """The node of `name` in a file; the name of the module may stand before it ("returns.gae" in returns.py)."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    names = definitions(path)
    short = name.removeprefix("npg.").removeprefix(path.stem + ".")
    if short not in names:
        raise ValueError(f"{path.name}: no {name} in it")
    return names[short]


def excerpt(path, name, first=None, last=None):
    """The lines of a function, or from the one that begins with `first` to the one with `last`: (number, lines)."""
    node, source = find(path, name), path.read_text(encoding="utf-8").splitlines()
    number, lines = node.lineno, source[node.lineno - 1 : node.end_lineno]
    if first is None:
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            del lines[docstring.lineno - number : docstring.end_lineno - number + 1]
    else:
        begin = only(lines, first, 0, f"{path.name}, {name}")
        end = begin if last is None else only(lines, last, begin, f"{path.name}, {name}")
        number, lines = number + begin, lines[begin : end + 1]
    return number, textwrap.dedent("\n".join(line.rstrip() for line in lines)).splitlines()


def only(lines, text, start, where):
    """The index of the first line from `start` on that begins with `text`, spaces aside."""
    for index in range(start, len(lines)):
        if lines[index].strip().startswith(text):
            return index
    raise ValueError(f"{where}: no line begins with {text!r}")


def rewritten(text, folder):
    """The text of a page that lies in `folder`, with its excerpts and line numbers as the sources have them now."""

    def relative(path):
        return pathlib.Path(os.path.relpath(path, folder)).as_posix()

    def write_excerpt(match):
        path, name = ROOT / match["path"], match["name"]
        number, lines = excerpt(path, name, match["first"], match["last"])
        link = f"[{match['path']}, line {number}, `{name}`]({relative(path)}#L{number})"
        begin = match[0][: match.start("old") - match.start()]
        return "\n".join([begin + link, "```python", *lines, "```", "<!-- end -->"])

    def write_line(match):
        number = find(folder / match["path"], match["name"]).lineno
        return f"[`{match['name']}`]({match['path']}#L{number})"

    def write_test(match):
        paths = tests(ROOT).get(match["name"], [])
        path = next((path for path in paths if relative(path) == match["path"]), None) or (paths or [None])[0]
        if path is None or (len(paths) > 1 and relative(path) != match["path"]):
            raise ValueError(f"{match['name']}: it stands in {len(paths)} files, so the link needs the file")
        return f"[`{match['name']}`]({relative(path)}#L{definitions(path)[match['name']].lineno})"

    text = EXCERPT.sub(write_excerpt, text)
    return LINK_TO_TEST.sub(write_test, LINK_TO_LINE.sub(write_line, text))


def main():
    """Rewrite every page that has to change, and name it."""
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        try:
            new = rewritten(old, page.parent)
        except ValueError as error:
            sys.exit(f"{page.relative_to(ROOT)}: {error}")
        if new != old:
            page.write_text(new, encoding="utf-8")
        print(f"{page.relative_to(ROOT)}: {'rewritten' if new != old else 'as it was'}")


if __name__ == "__main__":
    main()
