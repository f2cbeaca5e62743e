"""The configs of all experiments: functions, each named as on the command line, whose docstrings say how to run it."""

from experiments.configs.cifar10 import cifar10_large, cifar10_large_reg, cifar10_tiny
from experiments.configs.cityscapes import cityscapes_large, cityscapes_small, cityscapes_xl
from experiments.configs.embedded import fashion_mdeq, sotu_transformer
from experiments.configs.imagenet import (
    imagenet_large,
    imagenet_large_reg,
    imagenet_small,
    imagenet_small_reg,
    imagenet_xl,
)
from experiments.configs.wikitext import wt103, wt103_preln_reg, wt103_reg

__all__ = [
    "cifar10_large",
    "cifar10_large_reg",
    "cifar10_tiny",
    "cityscapes_large",
    "cityscapes_small",
    "cityscapes_xl",
    "fashion_mdeq",
    "imagenet_large",
    "imagenet_large_reg",
    "imagenet_small",
    "imagenet_small_reg",
    "imagenet_xl",
    "sotu_transformer",
    "wt103",
    "wt103_preln_reg",
    "wt103_reg",
]
