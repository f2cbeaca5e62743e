"""The data sets that experiments train on."""

from experiments.data.batches import Data, Host, Reading
from experiments.data.cifar10 import Cifar10
from experiments.data.cityscapes import Cityscapes
from experiments.data.imagenet import ImageNet
from experiments.data.images import FashionMNIST, Images, fashion_mnist
from experiments.data.text import StateOfTheUnion
from experiments.data.wikitext import WikiText

__all__ = [
    "Cifar10",
    "Cityscapes",
    "Data",
    "FashionMNIST",
    "Host",
    "ImageNet",
    "Images",
    "Reading",
    "StateOfTheUnion",
    "WikiText",
    "fashion_mnist",
]
