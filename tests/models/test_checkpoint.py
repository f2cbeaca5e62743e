"""State dicts of the PyTorch code: their names, and what is wrong with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeq.models import Branch, MDEQClassifier, MDEQConfig, load_torch_state_dict, to_torch_state_dict
from jaxdeq.models.checkpoint import Entry

CONFIG = MDEQConfig((Branch(4, 2), Branch(8, 2)), classes=3, groups=4, expansion=2, final_channels=6)


def abstract():
    """A model without values."""
    return nnx.eval_shape(lambda: MDEQClassifier(CONFIG, rngs=nnx.Rngs(0)))


def state_dict():
    rng = np.random.default_rng(0)
    arrays = {}
    for entry in abstract().torch_entries():
        blank = entry.to_torch(np.zeros(entry.variable.shape))
        arrays[entry.name] = np.asarray(rng.uniform(1, 100, blank.shape), np.float32)
        if entry.optional:
            arrays[entry.name] = np.array(rng.integers(1, 100), np.int64)
    return arrays


def test_round_trip_is_exact():
    model, arrays = abstract(), state_dict()
    load_torch_state_dict(model, arrays)
    saved = to_torch_state_dict(model)
    assert saved.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(saved[name], array, err_msg=name)
        assert saved[name].dtype == array.dtype, name


def test_names_of_released_files():
    arrays = state_dict()
    released = {f"module.model.{name}": array for name, array in arrays.items()}
    copies = {f"module.fullstage_copy.{k.removeprefix('fullstage.')}": v for k, v in arrays.items() if "full" in k}
    model = abstract()
    weights = {"module.loss.criterion.weight": np.ones(19)}  # of classes, in the segmentation loss
    load_torch_state_dict(model, {**released, **copies, **weights})
    for name, array in to_torch_state_dict(model).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_old_files_do_not_count_batches():
    arrays, model = state_dict(), abstract()
    load_torch_state_dict(model, {k: v for k, v in arrays.items() if "num_batches" not in k})
    assert to_torch_state_dict(model)["downsample.1.num_batches_tracked"] == 0


def zeros(model):
    graphdef, state = nnx.split(model)
    return graphdef, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)


def test_all_that_is_wrong_is_said_at_once():
    arrays = state_dict()
    del arrays["classifier.bias"]
    arrays["classifier.weight"] = arrays["classifier.weight"].T
    arrays["surprise"] = np.zeros(2)
    arrays["module.stage1"] = np.zeros(())
    arrays["model.downsample.0.weight"] = arrays["downsample.0.weight"]
    model = nnx.merge(*zeros(abstract()))
    with pytest.raises(ValueError) as error:
        load_torch_state_dict(model, arrays)
    for line in (
        "does not fit the model (5)",
        "missing: classifier.bias (3,)",
        "shape: classifier.weight must be (3, 6), got (6, 3)",
        "unexpected: surprise (2,)",
        "unexpected: stage1 ()",
        "twice: model.downsample.0.weight",
    ):
        assert line in str(error.value)
    assert not any(np.any(array) for array in to_torch_state_dict(model).values())


class Tied:
    """One table under two names."""

    def __init__(self):
        self.table = nnx.Param(jnp.zeros((2, 3)))

    def torch_entries(self):
        return [Entry(name, self.table, np.transpose, np.transpose) for name in ("embedding", "output")]


def test_shared_arrays_must_agree():
    model, table = Tied(), np.arange(6, dtype=np.float32).reshape(3, 2)
    load_torch_state_dict(model, {"embedding": table, "output": table})
    np.testing.assert_array_equal(model.table[...], table.T)
    np.testing.assert_array_equal(to_torch_state_dict(model)["output"], table)
    lost = np.where(table == 5, np.nan, table)  # of a run that diverged: that is no misfit
    load_torch_state_dict(model, {"embedding": lost, "output": lost.copy()})
    np.testing.assert_array_equal(model.table[...], lost.T)
    with pytest.raises(ValueError, match="shared: output must be equal to embedding"):
        load_torch_state_dict(model, {"embedding": table, "output": table + 1})
