"""The paper's studies at sizes that only show that they run and point the right way."""

import json

import jax
import pytest
import tyro

from experiments.claims.__main__ import Options, main
from experiments.claims.synthetic import COLUMNS, Synthetic
from experiments.claims.table import Table

TINY = Synthetic(
    penalties=(0.0, 4.0), seeds=(0, 1), frequency=1.0, examples=64, test=16, epochs=80, batch=32, rate=1e-2, hidden=10
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("claims")
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        return out, main(Options(only=("synthetic",), out=out, synthetic=TINY))["synthetic"]


def test_a_study_writes_table_numbers_and_figure(study):
    out, table = study
    assert table.markdown() in (out / "synthetic.md").read_text()
    record = json.loads((out / "synthetic.json").read_text())
    assert record["columns"] == list(COLUMNS)
    assert record["setting"]["seconds"] > 0
    assert (out / "synthetic.png").read_bytes().startswith(b"\x89PNG")


def test_the_penalty_flattens_the_map(study):
    _, table = study
    assert [row[0] for row in table.rows] == [0.0, 4.0]
    assert all(len(cell) == 2 for row in table.rows for cell in row[1:])
    slopes = [row[COLUMNS.index("mean of abs(df/dz)")] for row in table.rows]
    assert all(with_penalty < 0.5 * without for without, with_penalty in zip(*slopes, strict=True))


def test_cells():
    table = Table(("a", "b"), [("x", 1.23456), (2, (0.5, 1e-9))])
    assert table.markdown() == "| a | b |\n| :-- | --: |\n| x | 1.23 |\n| 2 | 0.5 / 1e-09 |"


def test_an_unknown_study_is_refused(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Options, args=["--only", "synthetics"])
    assert "synthetic" in capsys.readouterr().err
