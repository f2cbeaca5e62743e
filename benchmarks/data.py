"""Rates of the input pipeline, on data made for it: python -m benchmarks.data [--repetitions N] [--out FILE]."""

import contextlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np
import PIL.Image
import tyro

from benchmarks import prepared, run
from experiments.data import Cifar10, Cityscapes, FashionMNIST, Host, ImageNet, Reading, StateOfTheUnion
from experiments.data.cifar10 import decoded

ALONE = Host(0, 1)
HEAD = "| data | rows of a batch | rows a second, median | quartiles | at least |\n| :-- | --: | --: | :-: | --: |"


@dataclass(frozen=True)
class Options:
    """Measures rows a second of each data set: from one core, then from all."""

    repetitions: int = 15  # rounds, each with a rate of its own
    seconds: float = 1.0  # of a round, at least
    out: Path | None = None  # JSON file for the results
    tiny: bool = False  # sizes that only show that everything runs


class Rate(NamedTuple):
    """One line of the results, in rows a second."""

    data: str
    batch: int
    median: float
    low: float
    high: float
    target: float | None = None

    def line(self) -> str:
        target = "" if self.target is None else f"{self.target:,.0f}"
        numbers = f"{self.batch} | {self.median:,.0f} | {self.low:,.0f} to {self.high:,.0f} | {target}"
        return f"| {self.data} | {numbers} |"


def main(options: Options) -> list[Rate]:
    names = ("grain", "tensorflow-datasets", "array-record", "pillow", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"Python {sys.version.split()[0]}, {versions}; {run.processor()}, load {os.getloadavg()[0]:.1f}\n{HEAD}")
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        for rate in measure(options, Path(folder)):
            print(rate.line(), flush=True)
            rates.append(rate)
    if options.out:
        options.out.write_text(json.dumps([rate._asdict() for rate in rates], indent=1) + "\n")
    return rates


def measure(options: Options, folder: Path) -> Iterator[Rate]:
    """Every data set from one core; those whose records are decoded on the way from all, too."""
    small, large = (4, 2) if options.tiny else (128, 32)
    with quiet():
        prepared.cifar10(folder, {"train": 8 if options.tiny else 5_000, "test": 4})
        prepared.imagenet(folder, [photograph(500, 375, seed) for seed in range(2 if options.tiny else 64)])
        prepared.cityscapes(folder, [street(0)])
    cifar, imagenet, cityscapes = Cifar10(folder), ImageNet(folder), Cityscapes(folder)
    with one_core():
        yield decoding("CIFAR-10, decoded at the start", cifar, options)
        for name, data, batch, target in [
            ("CIFAR-10, cropped and flipped", cifar, small, 5_000.0),
            ("Fashion-MNIST, shifted and flipped", FashionMNIST(), small, 5_000.0),
            ("State of the Union, 64 words a row", StateOfTheUnion(), small, None),
            ("ImageNet, 500 x 375 to 224 x 224", imagenet, large, None),
            ("Cityscapes, 2048 x 1024 to 1024 x 512", cityscapes, 2, None),
        ]:
            yield rate(f"{name}, one core", data.train(batch, 0, ALONE), batch, options, target)
        yield rate("ImageNet, the middle, one core", imagenet.evaluate("test", large, ALONE), large, options)
    for name, reading in [("threads", Reading(threads=0)), ("processes", Reading(workers=os.cpu_count() or 1))]:
        batches = ImageNet(folder, reading=reading).train(large, 0, ALONE)
        yield rate(f"ImageNet, {os.cpu_count()} {name}", batches, large, options)


def rate(name: str, batches: grain.IterDataset, rows: int, options: Options, target: float | None = None) -> Rate:
    """Of batches that are asked for as fast as they come."""
    rates = []
    with contextlib.closing(iter(batches)) as iterator:
        for _ in range(options.repetitions + 1):
            made, start = 0, time.perf_counter()
            while made == 0 or time.perf_counter() - start < options.seconds:
                if next(iterator, None) is None:  # a finite one starts again
                    iterator.set_state({"step": 0})
                    continue
                made += rows
            rates.append(made / (time.perf_counter() - start))
    return summary(name, rows, rates[1:], target)  # the first one has to start


def decoding(name: str, data: Cifar10, options: Options) -> Rate:
    """Of reading all images into memory."""
    rates, rows = [], len(data.records("train"))
    for _ in range(options.repetitions):
        decoded.cache_clear()
        start = time.perf_counter()
        data.images("train")
        rates.append(rows / (time.perf_counter() - start))
    return summary(name, rows, rates, None)


def summary(name: str, batch: int, rates: list[float], target: float | None) -> Rate:
    low, median, high = np.quantile(rates, (0.25, 0.5, 0.75)).tolist()
    return Rate(name, batch, median, low, high, target)


def photograph(width: int, height: int, seed: int) -> bytes:
    """A JPEG file whose size is that of an average one of ImageNet, 110 kB at 500 x 375: noise at every scale."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for halved, share in ((7, 0.3), (5, 0.25), (3, 0.2), (1, 0.15), (0, 0.1)):
        shape = (max(1, height >> halved), max(1, width >> halved), 3)
        noise = PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        total += share * np.asarray(noise.resize((width, height), PIL.Image.Resampling.BILINEAR), float)
    return prepared.compressed(total.astype(np.uint8), "JPEG", quality=95)


def street(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of 2048 x 1024 and classes of its pixels, in blocks."""
    rng = np.random.default_rng(seed)
    classes = np.kron(rng.integers(0, 34, (32, 64)), np.ones((32, 32), int)).astype(np.uint8)
    image = 6 * classes[..., None] + rng.integers(0, 8, (1024, 2048, 3), np.uint8)
    return image.astype(np.uint8), classes


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """All threads of this process on one core, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        raise OSError("one core cannot be had here: this system has no sched_setaffinity; run it on Linux")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of TensorFlow Datasets."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


if __name__ == "__main__":
    main(tyro.cli(Options))
