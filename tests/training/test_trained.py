"""What a finished run gives back: its checkpoints, and models with what it learnt."""

import shutil
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeq import training
from jaxdeq.models import TransformerXLConfig
from tests.training import tiny
from tests.training.processes import arrays, same

# On one worker: the fixture is made once.
pytestmark = pytest.mark.xdist_group("trained")

EXPLICIT = replace(
    tiny.TEXT,
    model=TransformerXLConfig(
        vocab=tiny.WORDS, width=16, heads=2, inner=16, embed=16, memory=6, dropout=0.1, layers=2
    ),
    pretrain=0,
    penalty=training.Penalty(),
    budget=training.Budget(),
)  # fmt: skip


@pytest.fixture(scope="module", params=[tiny.TEXT, EXPLICIT], ids=["DEQ", "explicit"])
def whole(request, tmp_path_factory):
    config = replace(request.param, work=tmp_path_factory.mktemp("run") / "whole")
    return config, training.train(config)


def test_the_last_model_scores_what_the_run_reported(whole):
    """With averaged weights, memory carried from batch to batch."""
    config, results = whole
    model, memory, losses = training.load(config), None, []
    for batch in config.data.evaluate("test", config.batch):
        out = model(jnp.asarray(batch["tokens"]), targets=jnp.asarray(batch["targets"]), memory=memory)
        memory = out.memory
        losses.append(np.asarray(out.losses))
    assert np.mean(losses) == pytest.approx(results["last"]["loss"], rel=1e-5)
    assert {"step": config.steps, **training.evaluate(config, model)} == results["last"]


def test_a_model_is_tried_with_other_solves(whole):
    config, results = whole
    model = training.load(config)
    if not config.implicit:
        for limit in ({"rtol": 1e-3}, {"max_steps": 3}):
            with pytest.raises(TypeError, match=next(iter(limit))):
                training.evaluate(config, model, **limit)
        return
    few, loose, unrolled = ({"max_steps": 3, "rtol": 1e-9}, {"max_steps": 50, "rtol": 0.5}, {"unroll": 2})
    assert training.evaluate(config, model, **few)["forward_steps"] == 3
    assert training.evaluate(config, model, **loose)["forward_converged"] == 1
    valid = training.evaluate(config, model, "valid", **unrolled)
    assert not any(name.startswith("forward") for name in valid)
    assert abs(valid["loss"] - results["last"]["loss"]) < 0.5
    within = replace(config, evaluation=training.Evaluation(max_steps=3, rtol=1e-9))
    assert training.evaluate(within, model) == training.evaluate(config, model, **few)


@pytest.mark.parametrize("limit", [{"max_steps": -1}, {"rtol": -1e-3}, {"unroll": -1}])
def test_solves_with_less_than_nothing_are_refused(limit):
    with pytest.raises(ValueError, match=next(iter(limit))):
        training.evaluate(tiny.TEXT, None, **limit)


def test_a_checkpoint_by_its_step(whole):
    config, _ = whole
    steps = training.saved(config)
    assert steps[-1] == config.steps
    earlier = training.load(config, steps[0])
    kept = arrays(config.work, steps[0])["['ema'][0]['embedding']['tables']['0']['value']"]
    np.testing.assert_array_equal(earlier.embedding.tables[0][...], kept)
    with pytest.raises(
        training.CheckpointError, match=rf"must be a checkpoint of step 5 in .*; there are \[{steps[0]}"
    ):
        training.load(config, 5)


def test_goes_on_to_the_same_bits(whole, tmp_path):
    """The explicit model's state has arrays without elements, which orbax cannot save."""
    config, results = whole
    shutil.copytree(config.work, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "8")
    assert training.train(replace(config, work=tmp_path / "cut")) == results
    same(arrays(tmp_path / "cut", 8), arrays(config.work, 8))


def test_trying_a_model_builds_none(tmp_path, monkeypatch):
    """A run builds its model's structure when it begins, not for each evaluation."""
    built = []
    build = training.Classification.build
    monkeypatch.setattr(training.Classification, "build", lambda *args: (built.append(args), build(*args))[1])
    counts = []
    for every in (1, 3):
        config = replace(tiny.EXPLICIT, steps=3, evaluation=training.Evaluation(every=every))
        built.clear()
        tiny.run(config, tmp_path / str(every))
        counts.append(len(built))
    assert 0 < counts[0] == counts[1]
