"""What is kept, where a run goes on, and what happens to what cannot be read or written."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from jaxdeq.training import CheckpointError, Checkpoints, Mesh
from tests.training import tiny
from tests.training.processes import arrays, records, same

# Where a file is damaged, orbax leaves other reads of the same folder behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEPT = replace(tiny.TEXT, checkpoints=Checkpoints(every=2, keep=4))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of 8 steps, with all of its checkpoints."""
    work = tmp_path_factory.mktemp("run") / "whole"
    return tiny.run(KEPT, work), work


@pytest.fixture
def cut(whole, tmp_path):
    """The same as it was after 4 steps."""
    work = tmp_path / "cut"
    shutil.copytree(whole[1], work)
    for step in (6, 8):
        shutil.rmtree(work / "checkpoints" / str(step))
    return work


def test_a_run_leaves_its_records(whole):
    results, work = whole
    assert results["finished"]
    assert results["step"] == 8
    kinds = [(record["kind"], record["step"]) for record in records(work)]
    assert kinds[:6] == [("train", 2), ("train", 4), ("valid", 4), ("train", 6), ("train", 8), ("valid", 8)]
    assert {"config.json", "summary.md", "curves.png"} <= {path.name for path in work.iterdir()}
    train = [record for record in records(work) if record["kind"] == "train"]
    assert "forward_steps" not in train[0]  # unrolled
    assert 5 <= train[-1]["forward_steps"] <= 6
    assert train[-1]["backward_residual"] < 1
    assert results["last"]["perplexity"] == pytest.approx(np.exp(results["last"]["loss"]))


def test_goes_on_with_other_devices(whole, cut):
    """8 in place of one, with parameters in parts."""
    results = tiny.run(KEPT, cut, mesh=Mesh(data=2, fsdp=2, model=2))
    same(arrays(cut, 8), arrays(whole[1], 8), rtol=1e-3, atol=1e-3)
    assert results["last"]["loss"] == pytest.approx(whole[0]["last"]["loss"], rel=1e-5)


def test_damaged_checkpoints_are_put_aside(whole, cut):
    shutil.copytree(whole[1] / "checkpoints" / "6", cut / "checkpoints" / "6")
    for path in (cut / "checkpoints" / "6" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.warns(UserWarning, match=r"cannot be read .* going on from step 4"):
        tiny.run(KEPT, cut)
    assert (cut / "unreadable" / "6" / "state").is_dir()
    same(arrays(cut, 8), arrays(whole[1], 8))


def test_only_damaged_checkpoints(cut):
    for path in (cut / "checkpoints").glob("*/state/manifest.ocdbt"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* can be read: .* move that folder away"):
        tiny.run(KEPT, cut)
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == ["2", "4"]


def test_another_run_is_not_mixed_in(cut):
    with pytest.raises(CheckpointError, match=r"is of another run .*LanguageModelling.* -> .*Classification"):
        tiny.run(tiny.IMAGES, cut)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to .*; choose another folder by --work"):
        tiny.run(tiny.TEXT, tmp_path / "file" / "work")
