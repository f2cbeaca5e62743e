"""The demo's picture: how the models learn, and how their solver converges."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

INK = "#808080"  # this grey and these colours read on white and on black
COLOURS = {"warm-up": "#808080", "with penalty": "#2f8fe0", "without": "#e8731a"}


def draw(path: Path, epochs: list[dict], traces: dict[str, dict[str, np.ndarray]], rtol: float):
    """Saves a PNG.

    Args:
      path: where.
      epochs: one entry per epoch and model, with `model`, `epoch`, `loss`, `test_accuracy`.
      traces: by model, then by solver: the relative residual after each evaluation.
      rtol: the tolerance that training asked for.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    curve(left, epochs, "loss", 1)
    left.set(title="Training loss", ylabel="cross-entropy, smoothed labels")
    curve(middle, epochs, "test_accuracy", 100)
    middle.set(title="Test accuracy", ylabel="accuracy (%)")
    convergence(right, traces, rtol)
    for axes in (left, middle, right):
        style(axes)
    middle.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower right")
    figure.savefig(path, dpi=130, transparent=True)
    plt.close(figure)


def curve(axes: Axes, epochs: list[dict], name: str, unit: float):
    """One line a model; the two go on from the end of the warm-up."""
    warm = [e for e in epochs if e["model"] == "warm-up"]
    for model, colour in COLOURS.items():
        own = [e for e in epochs if e["model"] == model]
        points = own if model == "warm-up" else [*warm[-1:], *own]
        if own:
            axes.plot([e["epoch"] for e in points], [unit * e[name] for e in points], ".-", color=colour, label=model)
    if warm:
        axes.axvline(warm[-1]["epoch"], color=INK, lw=0.8, ls=":")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def convergence(axes: Axes, traces: dict[str, dict[str, np.ndarray]], rtol: float):
    """Solid: as trained. Dashed: plain iteration."""
    for model, solvers in traces.items():
        for (solver, trace), line in zip(solvers.items(), ("-", "--"), strict=True):
            steps = np.arange(1, len(trace) + 1)
            axes.semilogy(steps, trace, line, color=COLOURS[model], label=f"{model}, {solver}")
    axes.axhline(rtol, color=INK, lw=0.8, ls=":")
    end = (max(len(trace) for solvers in traces.values() for trace in solvers.values()), rtol)
    axes.annotate("tolerance in training", end, (0, 3), textcoords="offset points", ha="right", color=INK, fontsize=8)
    axes.set(title="Solving for test images", xlabel="evaluations of the cell", ylabel="relative residual")


def style(axes: Axes):
    axes.set_facecolor("none")
    axes.title.set_color(INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.tick_params(which="both", colors=INK)
    axes.grid(color=INK, alpha=0.25, lw=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
