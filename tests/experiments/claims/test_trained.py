"""Studies of trained models: their whole path, with small models and a few steps."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.claims import cases, figure, measure, runs
from experiments.claims.__main__ import Options, main
from experiments.claims.cost import Cost
from experiments.claims.evaluations import Evaluations
from experiments.claims.explicit import forms
from experiments.claims.runs import Run
from experiments.claims.stability import Setting, Stability, solved, unstable, verdict
from experiments.claims.stop import Stop
from experiments.claims.table import Spread, Table, cell
from jaxdeq import training
from jaxdeq.training import _evaluate
from jaxdeq.training._interrupts import Interrupts

# On one worker: the fixture is made once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("claims")]

STUDIES = ("explicit", "stop", "evaluations", "cost")


@pytest.fixture(scope="module")
def drawn():
    """All panels of figures, as they are filled."""
    panels, fill = [], figure.fill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "fill", lambda axes, panel: (panels.append(panel), fill(axes, panel)))
        yield panels


@pytest.fixture(scope="module")
def quick(drawn, tmp_path_factory):
    """Both embedded experiments; what costs more compiling, of one of them."""
    options = Options(
        only=STUDIES,
        out=tmp_path_factory.mktemp("claims"),
        seeds=(0,),
        quick=True,
        stop=Stop(models=("fashion_mdeq",)),
        evaluations=Evaluations(models=("fashion_mdeq",)),
        cost=Cost(models=("sotu_transformer",)),
    )
    return options, main(options)


def test_each_study_says_what_its_numbers_are_worth(quick):
    options, tables = quick
    for name in STUDIES:
        text = (options.out / "quick" / f"{name}.md").read_text()
        assert text.startswith("A smoke test"), name
        assert tables[name].markdown() in text
        assert "seeds 0" in text
        assert f"jax {jax.__version__}" in tables[name].note
        assert (options.out / "quick" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_axes_have_units(quick, drawn):
    assert len(drawn) >= len(STUDIES)
    for panel in drawn:
        assert panel.x.endswith(")"), panel.title
        assert panel.y.endswith(")"), panel.title


def test_models_stand_beside_explicit_ones(quick):
    _, tables = quick
    rows = {row[0]: row for row in tables["explicit"].rows}
    assert next(iter(rows)) == "ResNet"
    assert len(rows) == 7
    accuracy, perplexity = (tables["explicit"].columns.index(f"test {name}") for name in ("accuracy", "perplexity"))
    assert 0 <= rows["ResNet"][accuracy][0] <= 1
    assert rows["TransformerXL"][perplexity][0] > 1
    assert cell(rows["ResNet"][perplexity]) == "-"


def test_what_has_ended_is_read_back(quick, monkeypatch):
    options, tables = quick
    monkeypatch.setattr(training, "train", lambda config: pytest.fail("trains again"))
    assert main(replace(options, only=("explicit",)))["explicit"] == tables["explicit"]


def test_a_run_of_other_settings_is_refused(quick):
    options, _ = quick
    config = runs.config("sotu_transformer", "plain", 0, options.out / "quick" / "runs", quick=True)
    with pytest.raises(ValueError, match="must be a run of these settings"):
        runs.train(replace(config, steps=7))


def test_stops_share_a_compilation_and_change_the_answer(quick):
    options, _ = quick
    config = runs.config("fashion_mdeq", "plain", 0, options.out / "quick" / "runs", quick=True)
    model = training.load(config)
    _evaluate._sums.clear_cache()
    losses = [training.evaluate(config, model, max_steps=budget)["loss"] for budget in (1, 2, 4)]
    assert _evaluate._sums._cache_size() == 1
    assert len(set(losses)) == 3
    trained = json.loads((config.work / "end.json").read_text())["test"]["loss"]
    assert losses[-1] == pytest.approx(trained, rel=1e-4)  # 4 is the model's own budget


def test_a_large_budget_reaches_what_it_can(quick):
    options, tables = quick
    table = tables["evaluations"]
    assert len({row[1] for row in table.rows}) == 2  # two evaluations, each with a checkpoint
    for row in table.rows:
        forward, share, backward, backward_share = (seeds[0] for seeds in row[2:])
        for steps, part in ((forward, share), (backward, backward_share)):
            assert 1 < steps <= 64
            assert steps == 64 or part > 0
    config = runs.config("fashion_mdeq", "penalised", 0, options.out / "quick" / "runs", quick=True)
    loose = measure.solved(config, training.load(config, 3), rtol=0.9, max_steps=64)
    assert loose.forward_share == 1
    assert loose.forward < 10


def test_costs_are_relative_to_the_explicit_network(quick):
    _, tables = quick
    columns, rows = tables["cost"].columns, tables["cost"].rows
    for name in ("relative to the explicit network", "relative"):
        (value,) = np.atleast_1d(rows[0][columns.index(name)])
        assert value == 1
    plain, penalised = (rows[i][columns.index("MB of temporaries")] for i in (1, 2))
    assert penalised > plain > 0


@pytest.mark.parametrize("name", cases.NAMES)
def test_forms_of_a_model_differ_in_what_is_compared(name, tmp_path):
    found = {form: runs.config(name, form, 0, tmp_path) for form in forms(name)}
    plain, penalised = found.pop("plain"), found.pop("penalised")
    assert penalised.penalty.weight > 0 == plain.penalty.weight
    assert replace(plain, penalty=penalised.penalty, work=penalised.work) == penalised
    for explicit in found.values():
        assert not explicit.implicit
        assert cases.parameters(explicit) == pytest.approx(cases.parameters(plain), rel=0.02)
        for setting in ("data", "optimizer", "steps", "batch", "seed"):
            assert getattr(explicit, setting) == getattr(plain, setting)


def test_coarse_grids_are_those_of_the_equilibrium():
    """Its finest features are as fine as the finest state."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 1), np.float32)
    known = cases.full("fashion_mdeq")
    finest = lambda config: jax.eval_shape(lambda x: known.config.task.build(config, nnx.Rngs(0))(x).z, images)[0].shape
    assert finest(known.coarse)[1:3] == finest(known.config.model)[1:3] == (8, 8)
    assert finest(known.explicit)[1:3] == (32, 32)


def test_memory_of_an_unrolled_layer_grows_with_its_length():
    config = cases.quick("sotu_transformer").config
    few, many = (measure.temporaries(config, unroll=n) for n in (2, 8))
    assert many > few


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    config = runs.config("sotu_transformer", "explicit", 0, tmp_path, quick=True)
    with monkeypatch.context() as told_to_stop:
        told_to_stop.setattr(Interrupts, "asked", lambda self, steps=iter(range(4)): next(steps) == 3)
        with pytest.raises(SystemExit, match="goes on from there"):
            runs.train(config)
    run = runs.train(config)
    assert training.saved(config) == [3, 6]
    assert [record["step"] for record in run.of("train")] == [1, 2, 3, 4, 5, 6]
    assert run.test["perplexity"] > 1


def test_stability(tmp_path):
    table = Stability(quick=True, seeds=(0,)).run(tmp_path / "stability.png")
    assert [row[:2] for row in table.rows] == [("no weight norm, 0.005, 5", runs.NAMES[form]) for form in runs.DEQ]
    assert all(row[-1][0] > 0 for row in table.rows)  # spectral radii
    assert (tmp_path / "stability.png").exists()


def made_up(losses, residual=0.01, diverged=""):
    """A run with these losses."""
    config = replace(cases.quick("sotu_transformer").config, steps=max(1, len(losses)))
    measured = {"forward_residual": residual, "backward_residual": residual}
    records = [{"kind": "train", "step": i + 1, "loss": loss, **measured} for i, loss in enumerate(losses)]
    return Run(config, records, {}, diverged, {})


def test_what_counts_as_unstable():
    assert not unstable(made_up([3.0, 2.0, 2.4]))
    assert unstable(made_up([3.0, 2.0, 2.6]))
    assert unstable(made_up([3.0, 2.0], residual=0.2))
    assert unstable(made_up([3.0, 2.0, None]))
    assert unstable(made_up([], diverged="the loss of step 3 is nan"))
    assert solved(made_up([3.0, None]), "train", "loss") == [3.0, np.inf]


def test_the_verdict_on_stability():
    good, bad = made_up([2.0]), made_up([2.0], residual=1.0)
    one, two = Setting("post-LN", 0.001, 12), Setting("pre-LN", 0.005, 5)
    found = {(one, "plain"): [good], (one, "penalised"): [good]}
    assert verdict(found) == "None of these settings is unstable without the penalty."
    found |= {(two, "plain"): [bad], (two, "penalised"): [good]}
    assert "without the penalty than with it: pre-LN, 0.005, 5 (1 of 1 seeds without, 0 with)." in verdict(found)
    found |= {(one, "plain"): [bad], (one, "penalised"): [bad]}
    assert "No less often with it: post-LN, 0.001, 12 (1 of 1 seeds without, 1 with)." in verdict(found)


def test_cells_of_seeds():
    table = Table(("a", "b"), [("x", Spread((1.0, 2.0, None))), ("y", Spread((None,)))])
    assert table.markdown().endswith("| x | 1.5 (1 to 2) |\n| y | - |")
    assert Cost().seeds == (0, 1, 2)  # three unless told otherwise
