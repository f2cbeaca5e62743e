"""The house rules: who may import whom, what `import jaxdeq` loads, what is documented."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import jax.extend
import pytest

import jaxdeq
from jaxdeq import _jaxpr

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxdeq"

# Each floor imports from the rows before its own, never from its own row, but that a package's
# files may import its private ones. `__init__` stands for the public names: `from jaxdeq import fixed_point`.
FLOORS = [
    {"_jaxpr"},
    {"_checks", "_eliminate", "_fingerprint", "_inline", "_search", "_tree", "_types"},
    {"_closure", "_loop", "solvers"},
    {"_collectives", "_split"},
    {"_rule"},
    {"adjoints"},
    {"_fixed_point", "_regularizers"},
    {"__init__"},
    {"nn"},
    {"models"},
    {"plot"},
    {"training"},
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
FIRST_TO_IMPORT = {"flax": "nn", "orbax": "models", "matplotlib": "plot"}  # orbax: where models.convert runs
FIRST_TO_IMPORT |= dict.fromkeys(["optax", "grain", "tqdm", "tensorboardX"], "training")
GUESTS = ["experiments", "notebooks", "benchmarks"]  # see the public names only


def imports(path: Path) -> set[tuple[str, ...]]:
    """The dotted names that a file imports: `from a.b import c` is (a, b, c)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = here + tuple((node.module or "").split(".") if node.module else ())
            found |= {(*base, alias.name) for alias in node.names}
    return found


def room(name: tuple[str, ...]) -> tuple[str, ...]:
    """(floor's module,) or (floor's package, file) that `jaxdeq.<name>` lives in."""
    if not name or name[0] not in FLOOR:
        return ("__init__",)
    return name[:2] if (PACKAGE / name[0]).is_dir() else name[:1]


def files(folder: str) -> list:
    """One test parameter a Python file."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


@pytest.mark.parametrize("path", files("jaxdeq"))
def test_imports_only_from_the_floors_below(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts
    assert here[0] in FLOOR, f"give {here[0]} a floor in FLOORS"
    for name in imports(path):
        if name[0] == "jaxdeq":
            there = room(name[1:])
            own = there[0] == here[0] and (here[-1] == "__init__" or there[-1].startswith("_"))
            assert own or FLOOR[there[0]] < FLOOR[here[0]], f"imports {'.'.join(name)}"
        first = FIRST_TO_IMPORT.get(name[0], here[0])
        assert FLOOR[here[0]] >= FLOOR[first], f"imports {name[0]}, which {first} is first to"


@pytest.mark.parametrize("path", [param for guest in GUESTS for param in files(guest)])
def test_guests_import_public_names(path):
    names = [name for name in imports(path) if name[0] == "jaxdeq"]
    assert not [name for name in names if any(part.startswith("_") for part in name)]


def test_import_is_light():
    """A fresh interpreter, for this one has imported everything. jax.extend brings Pallas with it."""
    code = f"import jaxdeq, sys; print(*{set(FIRST_TO_IMPORT) | {'jax.extend'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == ""


def test_atoms_are_those_of_jax():
    assert (_jaxpr.Var, _jaxpr.Literal) == (jax.extend.core.Var, jax.extend.core.Literal)


MODULES = ("adjoints", "models", "models.convert", "nn", "plot", "solvers", "training")
PUBLIC = ["jaxdeq", *(f"jaxdeq.{name}" for name in MODULES)]


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_documented_with_an_example(module):
    """What the examples print is checked where they stand, by `pytest --doctest-modules`."""
    names = importlib.import_module(module)
    for name in names.__all__:
        doc = getattr(names, name).__doc__
        assert doc, f"{name} has no docstring"
        assert not doc.startswith(f"{name}("), f"{name} has only the docstring of its dataclass"
        assert ">>>" in doc, f"{name} has no example"


def test_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert jaxdeq.__version__ == project["version"]
