"""What is kept, where a run goes on, and what happens to what cannot be read or written."""

import re
import shutil
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax.experimental import multihost_utils

from jaxdeq import training
from jaxdeq.models import to_torch_state_dict
from jaxdeq.training import CheckpointError, Checkpoints, Evaluation, Mesh, Penalty
from jaxdeq.training._saves import Saves
from jaxdeq.training._start import start_from
from jaxdeq.training._state import create
from jaxdeq.training._step import Programs
from tests.training import tiny
from tests.training.processes import arrays, elsewhere, records, same

pytestmark = pytest.mark.xdist_group("checkpoints")

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
    with (work / "metrics.jsonl").open("ab") as file:
        file.write(b'\0\0\0\n{"kind": "train", "st')  # as a crash may leave it
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


@pytest.mark.mesh
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
        elsewhere(tiny.run, KEPT, cut)
    assert (cut / "unreadable" / "6" / "state").is_dir()
    same(arrays(cut, 8), arrays(whole[1], 8))
    assert records(cut) == records(whole[1])


def test_only_damaged_checkpoints(cut, tmp_path):
    for path in (cut / "checkpoints").glob("*/state/manifest.ocdbt"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* can be read: .* move that folder away"):
        elsewhere(tiny.run, KEPT, cut)
    with pytest.raises(CheckpointError, match=r"the best checkpoint in .* cannot be read"):
        elsewhere(tiny.run, replace(KEPT, start=cut), tmp_path / "new")
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == ["2", "4"]


def test_reading_leaves_alone_what_a_run_is_writing(cut):
    config, written = replace(KEPT, work=cut), cut / "checkpoints" / "6.orbax-checkpoint-tmp"
    written.mkdir()
    (cut / "checkpoints" / "2" / "state" / "manifest.ocdbt").write_bytes(b"")
    assert training.saved(config) == [2, 4]
    training.load(config)
    with pytest.raises(CheckpointError, match=r"of step 2 in .* cannot be read .*; there are \[2, 4\]"):
        elsewhere(training.load, config, 2)
    assert written.is_dir()


def test_another_run_is_not_mixed_in(cut):
    with pytest.raises(CheckpointError, match=r"is of another run .*LanguageModelling.* -> .*Classification"):
        tiny.run(tiny.IMAGES, cut)


def test_starts_from_weights_of_another_run(whole, tmp_path):
    """Of equal names and shapes; from the averages, if there are some."""
    config, mesh = replace(KEPT, model=replace(KEPT.model, inner=8)), KEPT.mesh.make()
    with jax.set_mesh(mesh):
        state, structure = create(config, mesh), Programs(config, mesh).structure
        begun, said = start_from(whole[1], state, structure, mesh)
    assert re.search(r"starting from .*: \d+ of \d+ arrays", said)
    theirs = arrays(whole[1], 4)  # with the lowest validation loss
    words = begun.params["embedding"]["tables"][0][...]
    np.testing.assert_array_equal(words, theirs["['ema'][0]['embedding']['tables']['0']['value']"])
    narrow = lambda state: state.params["deq"]["cell"]["feed_forward"]["widen"]["layer"]["kernel"][...]
    np.testing.assert_array_equal(narrow(begun), narrow(state))
    with pytest.raises(FileNotFoundError, match=r"there must be a run or a .safetensors file"):
        start_from(tmp_path / "none", state, structure, mesh)


@pytest.mark.mesh
def test_starts_from_a_published_checkpoint(tmp_path):
    mesh = Mesh(data=2, fsdp=2, model=2).make()
    with jax.set_mesh(mesh):
        state, structure = create(KEPT, mesh), Programs(KEPT, mesh).structure
        model = KEPT.task.build(KEPT.model, nnx.Rngs(5))
        safetensors.numpy.save_file(to_torch_state_dict(model), tmp_path / "weights.safetensors")
        begun, said = start_from(tmp_path / "weights.safetensors", state, structure, mesh)
    found, total = re.search(r": (\d+) of (\d+) arrays", said).groups()
    assert found == total
    where = lambda state: jax.tree.map(lambda x: x.sharding, state.params)
    assert where(begun) == where(state)
    chex.assert_trees_all_equal(jax.device_get(begun.params), jax.device_get(nnx.state(model, nnx.Param)))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to .*; choose another folder by --work"):
        tiny.run(tiny.TEXT, tmp_path / "file" / "work")


def test_a_save_does_not_ask_whether_to_stop(tmp_path, monkeypatch):
    """JAX takes the step last asked about for where the run is, and a save ends when the run is further."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    config, mesh = replace(tiny.TEXT, work=tmp_path), tiny.TEXT.mesh.make()
    with jax.set_mesh(mesh), Saves(config) as saves:
        saves.save(create(config, mesh), iter(config.data.train(config.batch, 0)), 3, None)
    assert (tmp_path / "checkpoints" / "3").exists()
    assert asked == []


def test_radii_and_profiles_on_request(tmp_path, monkeypatch):
    """The profile ends with the last step, before the trial. A run at its end is only tried and reported again."""
    seen, stop = [], jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (seen.append(records(tmp_path / "work")), stop()))
    asked = replace(
        tiny.TEXT, steps=3, pretrain=0, ema=0.0, penalty=Penalty(), evaluation=Evaluation(every=0, radius=True),
        checkpoints=Checkpoints(every=0), log=replace(tiny.TEXT.log, profile=(1, 9), tensorboard=True),
    )  # fmt: skip
    first = tiny.run(asked, tmp_path / "work")
    assert 0 < first["last"]["radius"] < 10
    assert list((tmp_path / "work" / "profile").rglob("*.xplane.pb"))
    assert [[record["kind"] for record in then] for then in seen] == [["train"]]
    assert tiny.run(asked, tmp_path / "work") == first
    kinds = [(record["kind"], record["step"]) for record in records(tmp_path / "work")]
    assert kinds == [("train", 2), ("train", 3), ("valid", 3), ("test", 3)]
