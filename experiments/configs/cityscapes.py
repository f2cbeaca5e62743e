"""Cityscapes as in the paper's code: 19 classes of pixels; validation and test are both on the validation images."""

from dataclasses import replace

from experiments.data import Cityscapes
from jaxdeq.models import mdeq_configs
from jaxdeq.training import SGD, Config, Cosine, Evaluation, Segmentation

# Of the classes in the loss, larger for rarer ones, in the order of the labels.
WEIGHTS = (
    0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip


def cityscapes_small() -> Config:
    """MDEQ of 9.0 M parameters; the reference starts from `imagenet_small`.

    python -m experiments.main cityscapes_small --data.folder FOLDER --start work/imagenet_small
    """
    return Config(
        model=mdeq_configs.cityscapes_small(),
        task=Segmentation(weights=WEIGHTS),
        data=Cityscapes(crop=(1024, 512)),
        optimizer=SGD(Cosine(0.01, floor=1e-6), momentum=0.9, decay=2e-4),
        steps=500 * 248,
        batch=12,
        pretrain=60_000,
        seed=42,
        evaluation=Evaluation(every=10 * 248, batch=4),
    )


def cityscapes_large() -> Config:
    """MDEQ of 56.0 M parameters.

    python -m experiments.main cityscapes_large --data.folder FOLDER
    """
    return _heavier(cityscapes_small(), mdeq_configs.cityscapes_large())


def cityscapes_xl() -> Config:
    """MDEQ of 79.6 M parameters; the reference starts from `imagenet_xl`.

    python -m experiments.main cityscapes_xl --data.folder FOLDER --start work/imagenet_xl
    """
    return replace(
        _heavier(cityscapes_small(), mdeq_configs.cityscapes_xl()),
        data=Cityscapes(crop=(1024, 768)),
        steps=500 * 186,
        batch=16,
        pretrain=40_000,
        evaluation=Evaluation(every=10 * 186, batch=8),
    )


def _heavier(config, model):
    return replace(config, model=model, optimizer=replace(config.optimizer, decay=3e-4))
