"""The benchmarks run; their numbers are for a quiet machine."""

import json

import jax
import pytest

from benchmarks import against, batches, cases, compare, data, devices, plots, problems, run, steps, table
from benchmarks.timing import Ratio, exactly

TINY = cases.Plan(1, "tiny")


@pytest.mark.parametrize(
    "name", ["gradient", "adjoints", "step", "memory", "waste", "mixed", "scaling", "collectives", "layer", "host"]
)
def test_a_case_runs(name, tmp_path):
    out = tmp_path / "results.json"
    results = run.main(run.Options(only=(name,), out=out, repetitions=1, sizes="tiny"))
    assert json.loads(out.read_text()) == results
    assert {row["case"] for row in results["rows"]} == {name}
    ours = [row for row in results["rows"] if name != "gradient" or row["contender"].startswith("jaxdeq")]
    assert ours
    assert all(row["ratio"] for row in ours)


def test_training_steps_on_a_device_whose_peak_is_known(monkeypatch):
    only = [steps.pairs("tiny")[0]]
    monkeypatch.setattr(steps, "pairs", lambda sizes: only)
    monkeypatch.setattr(steps, "PEAKS", {jax.devices()[0].device_kind: {"float32": 1e12}})
    rows = {name: list(case(TINY)) for name, case in steps.CASES.items()}
    assert [row.contender for row in rows["training_step"]] == [
        "DEQ", "DEQ with penalty", "DEQ, unrolled", steps.AVERAGE,
    ]  # fmt: skip
    assert [row.contender for row in rows["utilisation"]] == ["DEQ", "explicit"]
    assert all(row.ratio.median > 0 for name in rows for row in rows[name])


def test_wrong_answers_are_refused():
    problem = problems.ALL["tiny"][0]()
    g, exact = against.gradient_of(problem)
    lazy = lambda f, z0, params, rtol: against.Answer(f(z0, params), 1)
    assert against.compiled(lazy, problem, g, exact, against.LOOSER) is None


@pytest.mark.parametrize(("works", "best"), [(10.0, 10.0), (1.0, 1.0), (0.001, 0.001), (1e-9, None)])
def test_the_loosest_tolerance_that_works_is_found(works, best):
    assert against.loosest(lambda factor: factor if factor <= works else None, against.LOOSER) == best


def test_collectives_are_counted_in_loops_alone():
    text = """
%body (p: f32[4]) -> f32[4] {
  %r = (f32[4,2]{1,0}, pred[3]{0}) all-reduce(%a, %b), to_apply=%sum
}

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %g = f32[8]{0} all-gather(%p)
  ROOT %w = f32[4]{0} while(%p), condition=%sum, body=%body
}
"""
    assert devices.in_loops(text) == (1, 4 * 2 * 4 + 3)


def result(median, low=None, high=None, more=False, name="one"):
    ratio = median and Ratio(median, low or median, high or median, median)
    return run.as_dict(cases.Row("step", "problem", name, ratio, None, more=more))


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (result(1.0), result(1.05), 0),
        (result(1.0), result(1.2), 1),
        (result(1.0, 0.9, 1.3), result(1.2, 1.1, 1.4), 0),  # no more than the spread
        (result(1.2), result(1.0), 0),
        (result(100.0, more=True), result(80.0, more=True), 1),
        (result(80.0, more=True), result(100.0, more=True), 0),
        (result(1.0), result(None), 1),
        (result(None), result(9.0), 0),
        (result(1.0), result(2.0, name="another"), 0),
    ],
)
def test_two_runs_are_compared(old, new, code, tmp_path, capsys):
    paths = tmp_path / "old.json", tmp_path / "new.json"
    for path, row in zip(paths, (old, new), strict=True):
        path.write_text(json.dumps({"rows": [row]}))
    assert compare.main(compare.Options(*paths)) == code
    assert f"{code} of " in capsys.readouterr().out


def test_tables_replace_the_ones_before():
    row = cases.Row("step", "problem", "contender", None, 1.25)
    setting = run.setting(run.Options())
    once = table.insert(run.README.read_text(), setting, [row], run.CASES)
    assert "| problem | contender | refused |" in once
    assert table.insert(once, setting, [row], run.CASES) == once
    other = table.insert(once, setting, [row._replace(case="host", problem="loop")], run.CASES)
    assert "| problem | contender | refused |" in other  # a case that was not run keeps its table
    assert [other.count(f"### {case}\n") for case in ("step", "host")] == [1, 1]
    assert other.partition(table.BEGIN)[0] == once.partition(table.BEGIN)[0]
    assert other.partition(table.END)[2] == once.partition(table.END)[2]


def test_pictures(tmp_path):
    points = [(16, 512, 5), (64, 512, 5), (64, 256, 5), (64, 512, 2)]
    rows = [cases.Row("scaling", f"dense {b} x {w}", f"Anderson({h})", exactly(1.0), None) for b, w, h in points]
    rows += [cases.Row("gradient", "dense", name, exactly(1.0), None) for name in ("jaxdeq Picard()", "another")]
    paths = plots.draw(rows, tmp_path)
    assert {path.name for path in paths} == {"gradient.svg", "scaling.svg"}
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in plots.draw(rows, tmp_path)] == before
    assert plots.draw([cases.Row("gradient", "dense", "refused", None, None)], tmp_path) == []


def test_vmapped_problems_are_as_right_as_a_batch():
    assert [row.contender for row in batches.vmap(TINY) if row.ratio] == ["jaxdeq Anderson()"]


def test_rates_of_the_input_pipeline(tmp_path):
    rates = data.main(data.Options(repetitions=1, seconds=0.0, out=tmp_path / "rates.json", tiny=True))
    assert len(rates) == 9
    assert all(rate.median > 0 for rate in rates)
    assert (tmp_path / "rates.json").read_text()
