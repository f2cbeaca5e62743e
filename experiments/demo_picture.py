"""The demo's picture: how the models learn, and how their solver converges."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from jaxdeq import plot

COLOURS = {
    "warm-up": plot.INK,
    "with penalty": "#2f8fe0",
    "with penalty, Anderson": "#2f8fe0",
    "with penalty, Picard": "#7fb8ea",
    "without": "#e8731a",
    "without, Anderson": "#e8731a",
    "without, Picard": "#f0aa75",
}


def draw(path: Path, epochs: list[dict], traces: dict[str, dict[str, np.ndarray]], rtol: float):
    """Saves a PNG.

    Args:
      path: where.
      epochs: one entry per epoch and model, with `model`, `epoch`, `loss`, `test_accuracy`.
      traces: by model, then by solver: the relative residual after each evaluation.
      rtol: the tolerance that training asked for.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    curve = {"x": "epoch", "by": "model", "colours": COLOURS}
    plot.learning_curves(joined(epochs), "loss", unit="nats, smoothed labels", axes=left, **curve)
    plot.learning_curves(joined(epochs), "test_accuracy", unit="%", scale=100, axes=middle, **curve)
    named = {f"{model}, {solver}": trace for model, solvers in traces.items() for solver, trace in solvers.items()}
    plot.residuals(named, rtol=rtol, axes=right, colours=COLOURS)
    for axes, title in ((left, "Training loss"), (middle, "Test accuracy"), (right, "Solving for test images")):
        axes.set_title(title)
    right.set_xlabel("evaluations of f (count)")  # one a step, with both solvers
    figure.savefig(path, dpi=130)
    plt.close(figure)


def joined(epochs: list[dict]) -> list[dict]:
    """The two models' curves go on from the end of the warm-up."""
    warm = [epoch for epoch in epochs if epoch["model"] == "warm-up"]
    later = [epoch for epoch in epochs if epoch["model"] != "warm-up"]
    models = dict.fromkeys(epoch["model"] for epoch in later)
    return [*warm, *({**epoch, "model": model} for model in models for epoch in warm[-1:]), *later]
