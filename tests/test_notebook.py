"""The notebook is stored with its outputs, and a new run prints the same outputs."""

import importlib.util
import json
import os
import pathlib
import re

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PATH = ROOT / "docs" / "exact_policy_gradients.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
TEXT = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown"]
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"


def printed(cells):
    """The output that the code cells print, as one string."""
    outputs = [output for cell in cells for output in cell["outputs"]]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def words_and_numbers(text):
    """(text, numbers): the text has no spaces, and # for each number."""
    numbers = [float(x.replace(",", "")) for x in re.findall(NUMBER, text)]
    return "".join(re.sub(NUMBER, "#", text).split()), np.array(numbers)


def n_pictures(cells):
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


def test_it_takes_at_most_one_megabyte():
    assert PATH.stat().st_size <= 1e6


def test_it_is_stored_after_one_run_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}  # no errors, no cell values
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}  # no warnings
    assert n_pictures(CODE) >= 15 and printed(CODE)


def test_every_question_has_an_answer_to_unfold():
    for text in TEXT:
        assert text.count("**Question") == text.count("<details><summary>Answer") == text.count("</details>")
        assert text.count("$$") % 2 == 0
        # Markdown and formulas inside need an empty line around them
        assert len(re.findall(r"</summary>\n\n", text)) == text.count("</summary>")
        assert len(re.findall(r"\n\n</details>", text)) == text.count("</details>")
    assert sum(text.count("**Question") for text in TEXT) >= 15


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nbclient", "nbformat", "ipykernel"))),
    reason='needs pip install -e ".[docs]"',
)
@pytest.mark.filterwarnings("ignore")  # warnings about Jupyter itself
def test_it_runs_within_a_minute_and_prints_what_is_stored(monkeypatch, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own backend stores the pictures
    notebook = nbformat.read(PATH, as_version=4)
    before = os.times()
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    after = os.times()  # processor time, because the kernel must wait on a busy machine
    assert after.children_user + after.children_system - before.children_user - before.children_system < 60
    again = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert n_pictures(again) == n_pictures(CODE)
    words, numbers = words_and_numbers(printed(again))
    stored_words, stored_numbers = words_and_numbers(printed(CODE))
    assert words == stored_words
    np.testing.assert_allclose(numbers, stored_numbers, rtol=5e-3, atol=2e-3)  # the last digit printed may round
