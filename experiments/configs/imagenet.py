"""ImageNet as in the paper's code; validation and test are both on the validation images."""

from dataclasses import replace

from experiments.data import ImageNet
from jaxdeq.models import mdeq_configs
from jaxdeq.training import SGD, Budget, Classification, Config, Cosine, Evaluation, Penalty

EPOCH = 10_010  # steps of 128 images


def imagenet_small() -> Config:
    """MDEQ of 16.8 M parameters. The paper: 75.4 % at 27 evaluations.

    python -m experiments.main imagenet_small --data.folder FOLDER
    """
    return Config(
        model=mdeq_configs.imagenet_small(),
        task=Classification(top5=True),
        data=ImageNet(),
        optimizer=_sgd(0.05, decay=5e-5),
        steps=100 * EPOCH,
        batch=128,
        pretrain=510_000,
        budget=Budget((-2, 1), only_penalised=True),
        seed=42,
        evaluation=Evaluation(every=EPOCH),
    )


def imagenet_small_reg() -> Config:
    """MDEQ of 18.6 M parameters with the Jacobian penalty. The paper: 74.5 % at 14 evaluations.

    python -m experiments.main imagenet_small_reg --data.folder FOLDER
    """
    return replace(
        imagenet_small(),
        model=mdeq_configs.imagenet_small_reg(),
        optimizer=_sgd(0.04, decay=2e-5),
        penalty=_penalty(2.5),
    )


def imagenet_large() -> Config:
    """MDEQ of 67.1 M parameters. The paper: 77.5 % at 30 evaluations.

    python -m experiments.main imagenet_large --data.folder FOLDER
    """
    return replace(imagenet_small(), model=mdeq_configs.imagenet_large(), optimizer=_sgd(0.05, decay=1e-4))


def imagenet_large_reg() -> Config:
    """MDEQ of 67.1 M parameters with the Jacobian penalty. The paper: 76.8 % at 15 evaluations.

    python -m experiments.main imagenet_large_reg --data.folder FOLDER
    """
    return replace(imagenet_large(), model=mdeq_configs.imagenet_large_reg(), penalty=_penalty(3.0))


def imagenet_xl() -> Config:
    """MDEQ of 90.5 M parameters, with 256 images a step.

    The reference's 510,000 steps of pre-training are, with this batch, longer than its whole run. They are 51 of 100
    epochs in its other settings, and here.

    python -m experiments.main imagenet_xl --data.folder FOLDER
    """
    return replace(
        imagenet_large(),
        model=mdeq_configs.imagenet_xl(),
        batch=256,
        steps=100 * EPOCH // 2,
        pretrain=255_000,
        evaluation=Evaluation(every=EPOCH // 2),
    )


def _sgd(rate, decay):
    return SGD(Cosine(rate, floor=1e-6), momentum=0.9, nesterov=True, decay=decay)


def _penalty(weight):
    return Penalty(weight, 0.08, increment=0.1, interval=50_000, unrolled_weight=0.03, probes=2)
