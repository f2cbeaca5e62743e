"""Notebooks are their texts, executed without a complaint, and small; `make notebooks` executes them again."""

import re
import sys
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
EACH = pytest.mark.parametrize("name", NAMES)
LARGEST = 500_000  # bytes


def read(name: str, suffix: str):
    return jupytext.read(FOLDER / f"{name}{suffix}")


def test_there_are_six_each_in_both_forms():
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05", "06"]
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@EACH
def test_text_and_notebook_agree(name):
    text, notebook = read(name, ".py"), read(name, ".ipynb")
    cells = lambda book: [(cell.cell_type, cell.source) for cell in book.cells]
    assert cells(text) == cells(notebook), "bring it up to date: make notebooks ARGS=--overwrite"


@EACH
def test_it_was_executed_from_top_to_bottom_without_a_complaint(name):
    code = [cell for cell in read(name, ".ipynb").cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST


@EACH
def test_it_installs_what_is_missing_first(name):
    first = next(cell for cell in read(name, ".py").cells if cell.cell_type == "code")
    assert "importlib.util.find_spec(module) is None" in first.source
    packages = set(re.findall(r'"(\w+)": ', first.source))
    modules = set(re.findall(r"^ *(?:from|import) (\w+)", (FOLDER / f"{name}.py").read_text(), re.MULTILINE))
    come_with_it = {"jax", "numpy"}
    if "experiments" in modules:  # of a clone, which needs what its data sets need
        modules = modules - {"experiments"} | {"grain"}
    assert modules - sys.stdlib_module_names <= packages | come_with_it


@EACH
def test_own_axes_have_labels_with_units(name):
    """Those that `jaxdeq.plot` makes are tested with it."""
    cells = [cell.source for cell in read(name, ".py").cells if cell.cell_type == "code"]
    labels = [label for cell in cells for label in re.findall(r'[xy]label="(.+?)"|set_[xy]label\(f?"(.+?)"', cell)]
    assert not [label for label in map("".join, labels) if not re.search(r"\(.+\)$", label)]
    for cell in cells:
        if re.search(r"(?<!plot)\.(plot|semilog[xy]|loglog|scatter|imshow)\(", cell):
            assert all(re.search(rf"{axis}label\b", cell) for axis in "xy"), cell
