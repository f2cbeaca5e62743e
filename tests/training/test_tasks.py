"""Losses and scores against numbers made by hand, with models that know the answer."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeq.training import Classification, LanguageModelling, Segmentation


def says(**outputs):
    """A model that returns this."""
    return lambda *inputs, **solve: SimpleNamespace(stats=None, **outputs)


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


LOGITS = np.random.default_rng(0).normal(0, 2, (4, 7)).astype(np.float32)
LABELS = np.array([0, 3, 6, 3], np.int32)
NLL = -log_softmax(LOGITS)[np.arange(4), LABELS]


def test_classification():
    batch = {"images": jnp.zeros((4, 2, 2, 1)), "labels": jnp.asarray(LABELS), "weights": jnp.array([1.0, 1, 1, 0])}
    task = Classification(top5=True)
    out = task.apply(says(logits=jnp.asarray(LOGITS)), batch, ())
    scores = task.scores(jax.device_get(out.sums))
    assert float(out.loss) == pytest.approx(NLL[:3].mean(), rel=1e-5)
    assert scores["loss"] == pytest.approx(NLL[:3].mean(), rel=1e-5)
    assert scores["accuracy"] == np.mean(LOGITS.argmax(1)[:3] == LABELS[:3])
    rank = (LOGITS[np.arange(4), LABELS][:, None] < LOGITS).sum(1)
    assert scores["top5"] == pytest.approx(np.mean(rank[:3] < 5))
    assert task.count(batch) == 4


def test_smoothed_labels_change_the_loss_and_not_the_score():
    batch = {"images": jnp.zeros((4, 2, 2, 1)), "labels": jnp.asarray(LABELS)}
    out = Classification(smoothing=0.1).apply(says(logits=jnp.asarray(LOGITS)), batch, ())
    even = -log_softmax(LOGITS).mean(axis=1)
    assert float(out.loss) == pytest.approx((0.9 * NLL + 0.1 * even).mean(), rel=1e-5)
    assert float(out.sums["loss"]) == pytest.approx(NLL.sum(), rel=1e-5)


def test_segmentation():
    """Weighted by class, without the pixels that do not count; of the classes that occur, intersection over union."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (2, 4, 4, 3)).astype(np.float32)
    labels = rng.integers(0, 2, (2, 4, 4)).astype(np.int32)
    labels[0, 0] = 255
    task = Segmentation(weights=(1.0, 2.0, 5.0))
    batch = {"images": jnp.zeros((2, 8, 8, 3)), "labels": jnp.asarray(labels)}
    out = task.apply(says(logits=jnp.asarray(logits)), batch, ())
    seen = labels < 255
    nll = -np.take_along_axis(log_softmax(logits), np.where(seen, labels, 0)[..., None], -1)[..., 0]
    balance = np.array([1.0, 2.0, 5.0])[np.where(seen, labels, 0)] * seen
    assert float(out.loss) == pytest.approx((balance * nll).sum() / balance.sum(), rel=1e-5)
    scores, predicted = task.scores(jax.device_get(out.sums)), logits.argmax(-1)
    assert scores["loss"] == pytest.approx(nll[seen].mean(), rel=1e-5)
    assert scores["accuracy"] == pytest.approx((predicted == labels)[seen].mean())
    ious = []
    for c in range(3):
        one, other = (predicted == c) & seen, (labels == c) & seen
        ious.append((one & other).sum() / (one | other).sum())
    assert scores["miou"] == pytest.approx(np.mean(ious))


def test_padded_images_do_not_count():
    labels, logits = jnp.zeros((2, 4, 4), jnp.int32), jnp.zeros((2, 2, 2, 3))
    batch = {"images": jnp.zeros((2, 8, 8, 3)), "labels": labels, "weights": jnp.array([1.0, 0.0])}
    sums = Segmentation().apply(says(logits=logits), batch, ()).sums
    assert float(sums["weight"]) == 16
    assert float(sums["confusion"].sum()) == 16


def test_a_weight_for_each_class():
    config = SimpleNamespace(classes=3)
    with pytest.raises(ValueError, match=r"weights must be empty or one for each of 3 classes; got \(1.0,\)"):
        Segmentation.build.__wrapped__(Segmentation(weights=(1.0,)), config, None)


def test_language():
    losses = jnp.array([[1.0, 2.0, 4.0], [3.0, 5.0, 100.0]])
    weights = jnp.array([[1.0, 1, 1], [1, 1, 0]])
    batch = {"tokens": jnp.zeros((2, 3), jnp.int32), "targets": jnp.zeros((2, 3), jnp.int32), "weights": weights}
    task = LanguageModelling()
    out = task.apply(says(losses=losses, memory="next"), batch, "before")
    assert out.carry == "next"
    assert float(out.loss) == 3
    assert task.scores(jax.device_get(out.sums)) == pytest.approx({"loss": 3.0, "perplexity": np.exp(3.0)})
    assert task.count(batch) == 6
