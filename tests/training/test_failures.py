"""What goes wrong in a run ends in one clear error, and what was saved stays."""

import re
import resource
from dataclasses import dataclass, replace

import numpy as np
import pytest

from jaxdeq.training import CheckpointError, Diverged, Penalty
from jaxdeq.training._log import Watch
from jaxdeq.training._saves import _options
from tests.training import tiny
from tests.training.processes import arrays, elsewhere, records


@dataclass(frozen=True)
class Filling(tiny.Patches):
    """In batch `full` and later ones, no file can grow beyond 4 KiB."""

    full: int = 5

    def make(self, seed, batch, weighted):
        if seed[1:] == (0, self.full):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return super().make(seed, batch, weighted)


def test_a_full_disk(tmp_path):
    """And once there is room again, the run goes on."""
    full = replace(tiny.EXPLICIT, data=Filling())
    with pytest.raises(CheckpointError, match=r"could not be written .* steps \[2(, 4)?\] are intact; make room"):
        elsewhere(tiny.run, full, tmp_path / "full")
    with pytest.warns(UserWarning, match="goes on with other settings: .*data.full.*5 -> 100"):
        assert tiny.run(replace(full, data=Filling(full=100)), tmp_path / "full")["finished"]


def test_a_loss_that_is_not_a_number(tmp_path):
    with pytest.raises(
        Diverged, match=r"the (loss|gradient) of step 6 is nan; checkpoints of steps \[2, 4\] .* intact"
    ):
        tiny.run(replace(tiny.EXPLICIT, data=tiny.Patches(bad=5)), tmp_path / "bad")
    tiny.run(tiny.EXPLICIT, tmp_path / "good", steps=8)
    kept = arrays(tmp_path / "bad", 4)
    assert all(np.isfinite(x).all() for x in kept.values())
    assert all(record["step"] < 6 for record in records(tmp_path / "bad"))
    mended = replace(
        tiny.EXPLICIT, data=tiny.Patches(), optimizer=replace(tiny.EXPLICIT.optimizer, clip=1.0, decay=0.1)
    )
    with pytest.warns(UserWarning, match=r"goes on with other settings: .*optimizer.clip.* -> 1.0"):
        assert tiny.run(mended, tmp_path / "bad")["finished"]


def test_a_penalty_needs_an_equilibrium():
    with pytest.raises(ValueError, match="ResNetConfig has none, so they must be 0"):
        replace(tiny.EXPLICIT, penalty=Penalty(1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 2}, "model.classes must be that of the data, which have 3 classes; got 2"),
        ({"inputs": 1}, "model.inputs must be that of the data, which have 3 channels; got 1"),
    ],
)
def test_a_model_that_the_data_do_not_fit(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny.run(replace(tiny.EXPLICIT, model=replace(tiny.EXPLICIT.model, **change)), tmp_path)


def test_a_score_that_is_not_a_number_is_the_worst():
    good = _options(tiny.EXPLICIT).best_fn
    assert good({"accuracy": 0.1}) > good({"accuracy": np.nan})
    assert good({"accuracy": 0.1}) < good({"accuracy": 0.2})


def look(watch, **record):
    one_way = {"converged": 0.95, "residual": 1e-3, "failed": 0.0}
    usual = {f"{way}_{name}": value for way in ("forward", "backward") for name, value in one_way.items()}
    watch.look(7, usual | record)


@pytest.mark.parametrize(
    "record",
    [
        {"forward_converged": 0.4},
        {"forward_residual": 0.2},
        {"forward_failed": 0.1},
        {"backward_converged": 0.4, "backward_residual": 1e-3, "backward_failed": 0.0},
        {"backward_converged": 0.0, "backward_residual": 0.2, "backward_failed": 0.0},
    ],
)
def test_solves_that_stop_converging(record):
    """One warning a run, with advice."""
    watch = Watch()
    look(watch)
    with pytest.warns(UserWarning, match=re.escape("stop converging at step 7") + ".* larger --penalty.weight"):
        look(watch, **record)
    look(watch, **record)


def test_solves_that_never_converged_are_no_news():
    watch = Watch()
    for _ in range(3):
        look(watch, forward_converged=0.0, forward_residual=0.3)
