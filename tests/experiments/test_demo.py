"""The demo end to end on a handful of images, and what it refuses."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from experiments import demo_train
from experiments.demo import main, table
from experiments.demo_config import Config

ROOT = Path(__file__).parents[2]
TINY = Config(
    warmup=1, epochs=1, channels=(8, 8), batch=10, train_images=20, test_images=20, frequency=1.0, max_steps=6
)

# On one worker: the fixture is made once.
pytestmark = pytest.mark.xdist_group("demo")


def run(work):
    with jax.numpy_dtype_promotion("standard"):  # flax's pooling and optax's schedules need it
        return main(dataclasses.replace(TINY, work=work))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The table and the work folder of two equal runs."""
    folders = [tmp_path_factory.mktemp("demo") for _ in range(2)]
    return [(run(work), work) for work in folders]


def records(work):
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def timeless(work):
    return [{k: v for k, v in record.items() if k not in ("seconds", "result")} for record in records(work)]


def test_writes_picture_and_metrics(runs):
    results, work = runs[0]
    assert (work / "demo.png").read_bytes().startswith(b"\x89PNG")
    epochs = [record for record in records(work) if "epoch" in record]
    assert [(e["model"], e["epoch"]) for e in epochs] == [("warm-up", 1), ("with penalty", 2), ("without", 2)]
    assert all(e["steps"] == 6 and e["backward_steps"] > 0 for e in epochs[1:])
    assert epochs[1]["penalty"] > 0
    assert epochs[2]["penalty"] is None
    assert set(results) == {"with penalty", "without"}
    for row in results.values():
        assert 0 < row["spectral radius, test"] < 10
        assert 0 <= row["test accuracy"] <= 1
        assert all(np.isfinite(value) for value in row.values())


def test_the_table_names_its_quantities(runs):
    results = runs[0][0]
    both, one = table(results), table({"with penalty": results["with penalty"]})
    for word in ("test accuracy", "forward steps", "backward steps", "residual", "spectral radius"):
        assert word in both
        assert word in one
    assert "without" in both
    assert "without" not in one


def test_same_seed_same_numbers(runs):
    first, second = (timeless(work) for _, work in runs)
    assert first == second


def test_seeds_differ():
    first, second = (demo_train.start(dataclasses.replace(TINY, seed=seed))[1].params for seed in (0, 1))
    kernel = lambda params: params["head"]["kernel"][...]
    assert not np.array_equal(kernel(first), kernel(second))


def test_models_part_after_the_warm_up(runs):
    warmup, penalised, plain = timeless(runs[0][1])[0], timeless(runs[0][1])[1], timeless(runs[0][1])[3]
    assert warmup["model"] == "warm-up"
    assert (penalised["model"], plain["model"]) == ("with penalty", "without")
    assert penalised["loss"] != plain["loss"]


def command_line(*args):
    return subprocess.run(
        [sys.executable, "-m", "experiments.demo", *args], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_help_lists_every_option():
    shown = command_line("--help")
    assert shown.returncode == 0
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in shown.stdout
    assert "weight of the Jacobian penalty" in shown.stdout


@pytest.mark.parametrize("wrong", ["--max-stepz", "--nonsense"])
def test_misspelt_option_is_refused_with_the_valid_names(wrong):
    refused = command_line(wrong, "3")
    assert refused.returncode == 2
    assert wrong in refused.stderr
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in refused.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"penalty": -1.0}, "penalty must be at least 0; got -1"),
        ({"rate": float("nan")}, "rate must be at least 0; got nan"),
        ({"frequency": 1.5}, "frequency must be a share from 0 to 1; got 1.5"),
        ({"dropout": 1.0}, "dropout must be a share from 0 to below 1; got 1.0"),
        ({"channels": (8, 12)}, "channels must be two positive multiples of 8"),
        ({"batch": 30}, "batch must be at most train_images, 20; got 30"),
        ({"train_images": 20_000}, "train_images must be at most 10000"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **setting)


def test_wrong_settings_are_refused_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--epochs", "0"])
    assert "epochs must be at least 1" in capsys.readouterr().err
