"""What README and CONTRIBUTING show, runs; what they name, exists."""

import dataclasses
import importlib.util
import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import pytest

from jaxdeq import adjoints, solvers

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
PAGE = pytest.mark.parametrize("page", PAGES)
README = PAGES["README.md"]
RUN_OR_SHOWN = {"python", "bash", "bibtex", ""}  # the last: a drawing of the folders


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page, those in lists too."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", PAGES[page], re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for _, kind, code in found if kind == language]


def run(page: str) -> dict:
    """The names that a page's Python blocks make, one after the other."""
    names: dict = {"__name__": page}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    return names


def test_readme_prints_what_it_says(capsys):
    run("README.md")
    printed = capsys.readouterr().out.split("\n")
    assert printed[0].endswith("True")
    assert float(printed[1]) > 0
    assert printed[2].endswith("True")


def test_the_first_block_is_as_exact_as_it_says():
    names: dict = {}
    exec(blocks("README.md", "python")[0], names)
    assert str(names["stats"].steps) == re.search(r"# (\d+) evaluations", README)[1]


def test_contributing_runs():
    names = run("CONTRIBUTING.md")
    assert {"Momentum", "TwoStep", "Classifier"} <= names.keys()  # each with an assertion of its own


@PAGE
def test_every_block_is_run_or_checked(page):
    kinds = re.findall(r"^ *```(\w*)\n.*?^ *```$", PAGES[page], re.DOTALL | re.MULTILINE)
    assert kinds
    assert set(kinds) <= RUN_OR_SHOWN


@PAGE
def test_commands_exist(page):
    lines = [line for block in blocks(page, "bash") for line in block.splitlines() if line.strip()]
    inline = re.findall(r"`((?:make|pip|python -m) [^`]+)`", PAGES[page])
    assert lines
    for line in lines + inline:
        check_command(shlex.split(line, comments=True))


def check_command(words: list[str]):
    """A make target; an installation of this project, or of a package that comes in several builds; a module."""
    match words:
        case ["make", target, *rest]:
            assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {target}"
            assert all(word.startswith("ARGS=") for word in rest)
        case ["pip", "wheel", "--no-deps", "."]:
            pass
        case ["pip", "install", *what]:
            for name in what:
                assert name in ("-e", "torch", "jax[cuda13]", "jax[tpu]") or extras(name) <= set(all_extras()), name
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), module
        case _:
            pytest.fail(f"a command that this test does not know: {shlex.join(words)}")


def extras(requirement: str) -> set[str]:
    name, _, rest = requirement.partition("[")
    assert name == ".", f"{requirement} is not this project"
    return set(rest.rstrip("]").split(",")) if rest else set()


def all_extras() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@PAGE
def test_links_and_paths_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if "://" not in link]
    paths = re.findall(r"`((?:tests|jaxdeq|experiments|notebooks|benchmarks)/[\w/]+\.\w+)`", PAGES[page])
    new = {"jaxdeq/solvers/momentum.py", "jaxdeq/adjoints/two_step.py", "notebooks/NAME.py"}
    for path in {*links, *paths} - new:
        assert (ROOT / path).exists(), path
    if page == "CONTRIBUTING.md":
        assert paths


@pytest.mark.parametrize("module", [solvers, adjoints], ids=["solvers", "adjoints"])
def test_tables_list_all_with_their_settings(module):
    name = module.__name__.removeprefix("jaxdeq.")
    table = re.search(rf"^\| `jaxdeq\.{name}` \|(\n?.)*?\n\n", README, re.MULTILINE).group()
    rows = dict(re.findall(r"^\| `(\w+)\(([^)]*)\)` \|", table, re.MULTILINE))
    for name in module.__all__:
        fields = [field.name for field in dataclasses.fields(getattr(module, name))]
        assert rows[name].split(", ") == (fields or [""]), name
