"""The benchmarks run; their numbers are for a quiet machine."""

import pytest

from benchmarks import cases, data, models, run, table


@pytest.mark.parametrize("name", ["step", "memory", "layer"])
def test_a_case_runs(name, tmp_path):
    out = tmp_path / "results.json"
    results = run.main(run.Options(only=(name,), out=out, repetitions=1, tiny=True))
    assert out.read_text()
    assert {row["case"] for row in results["rows"]} == {name}
    assert all(row["ratio"] for row in results["rows"])


def test_memory_of_a_training_step_does_not_depend_on_the_budget():
    some, twice = models.training(cases.Plan(repetitions=1, tiny=True))
    assert some.ratio == twice.ratio


def test_tables_replace_the_ones_before():
    row = cases.Row("step", "problem", "contender", None, 1.25)
    setting = run.setting(run.Options())
    once = table.insert(run.README.read_text(), setting, [row])
    assert "| problem | contender | refused |" in once
    assert table.insert(once, setting, [row]) == once


def test_rates_of_the_input_pipeline(tmp_path):
    rates = data.main(data.Options(repetitions=1, seconds=0.0, out=tmp_path / "rates.json", tiny=True))
    assert len(rates) == 9
    assert all(rate.median > 0 for rate in rates)
    assert (tmp_path / "rates.json").read_text()
