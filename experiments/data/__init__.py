"""The data sets that experiments train on."""

from experiments.data.batches import Data, Host
from experiments.data.images import FashionMNIST, Images, fashion_mnist
from experiments.data.text import StateOfTheUnion

__all__ = ["Data", "FashionMNIST", "Host", "Images", "StateOfTheUnion", "fashion_mnist"]
