"""The entry point: the paper's settings, options that are refused, and two steps on the data that ship."""

import dataclasses
import json
import math
import re
from itertools import product

import pytest

from experiments import configs
from experiments.main import main, read
from jaxdeq.training import SGD, Adam, Hosts

# Section by section as in the reference's shells and yaml files: steps, batch, steps unrolled first and
# applications there, rate, weight decay, evaluations forward and products backward (a threshold of T of Broyden's
# method is T + 1), dropout, weight of the penalty, its frequency, steps to the next 0.1.
PUBLISHED = {
    "wt103": (300_000, 56, 32_000, 2, 2.5e-4, 0, 30, 36, 0.05, 0, 1, 0),
    "wt103_reg": (300_000, 56, 32_000, 2, 2.5e-4, 0, 12, 14, 0.06, 1.9, 0.35, 35_000),
    "wt103_preln_reg": (300_000, 56, 32_000, 2, 2.5e-4, 0, 14, 15, 0.06, 2.0, 0.4, 30_000),
    "cifar10_tiny": (50 * 391, 128, 3000, 10, 1e-3, 2.5e-6, 19, 21, 0.25, 0, 1, 0),
    "cifar10_large": (220 * 391, 128, 20_000, 10, 1e-3, 0, 19, 21, 0.3, 0, 1, 0),
    "cifar10_large_reg": (220 * 521, 96, 16_000, 8, 1e-3, 0, 9, 8, 0.22, 0.4, 0.02, 0),
    "imagenet_small": (1_001_000, 128, 510_000, 5, 0.05, 5e-5, 27, 28, 0, 0, 1, 0),
    "imagenet_small_reg": (1_001_000, 128, 510_000, 5, 0.04, 2e-5, 15, 15, 0.02, 2.5, 0.08, 50_000),
    "imagenet_large": (1_001_000, 128, 510_000, 4, 0.05, 1e-4, 27, 28, 0, 0, 1, 0),
    "imagenet_large_reg": (1_001_000, 128, 510_000, 4, 0.05, 1e-4, 15, 15, 0, 3.0, 0.08, 50_000),
    "imagenet_xl": (500_500, 256, 255_000, 4, 0.05, 1e-4, 27, 28, 0, 0, 1, 0),
    "cityscapes_small": (500 * 248, 12, 60_000, 3, 0.01, 2e-4, 28, 31, 0.05, 0, 1, 0),
    "cityscapes_large": (500 * 248, 12, 60_000, 3, 0.01, 3e-4, 28, 31, 0.03, 0, 1, 0),
    "cityscapes_xl": (500 * 186, 16, 40_000, 3, 0.01, 3e-4, 28, 31, 0.04, 0, 1, 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    config = getattr(configs, name)()
    model, optimizer, penalty = config.model, config.optimizer, config.penalty
    assert PUBLISHED[name] == (
        config.steps, config.batch, config.pretrain, model.unroll, optimizer.rate.peak, optimizer.decay,
        model.max_steps, model.adjoint.max_steps, model.dropout, penalty.weight, penalty.frequency, penalty.interval,
    )  # fmt: skip
    assert model.rtol == 1e-3
    assert penalty.increment == (0.1 if penalty.interval else 0)


def test_published_optimisers():
    for name in PUBLISHED:
        config = getattr(configs, name)()
        optimizer, rate = config.optimizer, config.optimizer.rate
        if name.startswith("wt103"):
            assert (rate.warmup, rate.floor, rate.first_at_peak) == (16_000, 0, True)
            assert (type(optimizer), optimizer.clip, config.seed) == (Adam, 0.25, 1111)
            assert config.evaluation.every == 5000
        else:
            assert (rate.warmup, rate.floor, rate.first_at_peak) == (0, 1e-6, False)
            assert (type(optimizer), optimizer.clip) == (Adam if name.startswith("cifar10") else SGD, 0)
        if isinstance(optimizer, SGD):
            assert (optimizer.momentum, optimizer.nesterov) == (0.9, name.startswith("imagenet"))
        else:
            assert not optimizer.decoupled


def test_published_jitter_and_ends():
    assert configs.wt103().budget.jitter == (0, 0)
    for config in (configs.wt103_reg(), configs.wt103_preln_reg()):
        assert config.budget.jitter == (-2, 0)
        assert not config.budget.only_penalised
        assert config.penalty.from_start
        assert config.model.memory == 300
    for config in (configs.cifar10_large_reg(), configs.imagenet_small_reg(), configs.imagenet_large_reg()):
        assert config.budget.jitter == (-2, 1)
        assert config.budget.only_penalised
        assert config.penalty.probes == 2
    assert configs.cifar10_large_reg().penalty.until == 90 * 521
    assert configs.cifar10_large_reg().penalty.unrolled_weight == 0
    assert configs.imagenet_large_reg().penalty.unrolled_weight == 0.03
    assert not configs.cifar10_tiny().data.augment
    assert configs.cityscapes_xl().data.crop == (1024, 768)


@pytest.mark.parametrize("name", configs.__all__)
def test_docstrings_begin_with_what_and_how(name):
    doc = getattr(configs, name).__doc__
    assert re.search(rf"python -m experiments.main {name}\b", doc)


def test_help_lists_the_configs(capsys):
    with pytest.raises(SystemExit):
        read(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in configs.__all__)


def test_help_of_a_config(capsys):
    with pytest.raises(SystemExit):
        read(["fashion_mdeq", "--help"])
    shown = capsys.readouterr().out
    for option in ("--model.max-steps", "--penalty.weight", "--optimizer.rate.peak", "--mesh.fsdp", "--work"):
        assert option in shown
    assert "share of the steps that add it" in shown


def test_options_reach_the_config():
    config = read(["wt103_reg", "--penalty.weight", "3", "--model.adjoint.max-steps", "5", "--model.no-weight-norm"])
    assert (config.penalty.weight, config.penalty.frequency) == (3.0, 0.35)
    assert config.model.adjoint.max_steps == 5
    assert not config.model.weight_norm
    assert str(config.work) == "work/wt103_reg"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["wt104"], "Available subcommands:.*wt103"),
        (["wt103", "--model.widht", "3"], "Unrecognized options: --model.widht.*Options of wt103:.* --model.width "),
        (["wt103", "--batch", "0"], "batch must be at least 1; got 0"),
        (["wt103", "--penalty.frequency", "2"], "frequency must be a share"),
    ],
)
def test_wrong_options_are_refused(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        read(args)
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def written(options):
    """As on a command line."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


@pytest.fixture
def alone(monkeypatch):
    """This process already uses JAX, and can no longer look for others."""
    monkeypatch.setattr(Hosts, "connect", lambda hosts: None)


@pytest.mark.usefixtures("alone")
def test_missing_data_end_in_one_error(tmp_path, capsys):
    args = {"data.folder": tmp_path / "none", "work": tmp_path / "work", "mesh.data": 1}
    assert main(["cifar10_tiny", *written(args)]) == 1
    assert "cifar10" in capsys.readouterr().err


@pytest.mark.usefixtures("alone")
def test_broken_data_end_in_one_error(tmp_path, capsys):
    for part, kind in product(("train", "t10k"), ("images-idx3", "labels-idx1")):
        (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(b"not gzip")
    args = {"data.part": "full", "data.folder": tmp_path, "work": tmp_path / "work", "mesh.data": 1}
    assert main(["fashion_mdeq", *written(args)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"OSError: .*train-images-idx3-ubyte.gz is broken .*: get it anew", error)


@pytest.mark.usefixtures("alone")
def test_trains_on_what_ships(tmp_path, capsys):
    """Two steps of a narrow model, one of them unrolled."""
    options = {
        "steps": 2, "pretrain": 1, "batch": 16, "ema": 0, "work": tmp_path / "fashion", "mesh.data": 1,
        "log.every": 1, "evaluation.batch": 500, "model.branches.0.channels": 8, "model.branches.1.channels": 8,
        "model.branches.0.head": 1, "model.branches.1.head": 1, "model.final-channels": 8, "model.unroll": 1,
    }  # fmt: skip
    assert main(["fashion_mdeq", *written(options)]) == 0
    assert re.search(r"last: step 2, accuracy 0\.\d+, loss", capsys.readouterr().out)
    records = [json.loads(line) for line in (tmp_path / "fashion" / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in records] == [("train", 1), ("train", 2), ("valid", 2), ("test", 2)]
    assert all(math.isfinite(r["loss"]) for r in records)
    assert any((tmp_path / "fashion" / "tensorboard").iterdir())
    assert "| accuracy | 0." in (tmp_path / "fashion" / "summary.md").read_text()


def test_vocabulary_is_that_of_the_data():
    config = configs.sotu_transformer()
    assert config.model.vocab == config.data.vocab
    assert dataclasses.replace(config, steps=1).model.cutoffs == (2000, 6000)
