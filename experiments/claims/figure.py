"""Panels of curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from jaxdeq.plot import INK, style

COLOURS = {"explicit": "#2ca05a", "coarse": "#8a8f98", "plain": "#e8731a", "penalised": "#2f8fe0"}  # by form


UNITS = {
    "accuracy": "share",
    "perplexity": "words",
    "loss": "nats a word",
    "forward_residual": "ratio",
    "radius": "factor a step",
}


def label(score: str, before: str = "") -> str:
    """Of an axis, with its unit."""
    return f"{before}{score.replace('_', ' ')} ({UNITS[score]})"


class Curve(NamedTuple):
    """One line; those of one label share an entry of the legend."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]


class Panel(NamedTuple):
    """Axes with curves.

    Attributes:
      title: above.
      x: what runs to the right, with its unit.
      y: what is shown, with its unit.
      curves: see there.
      log: whether the y axis is logarithmic.
      marks: values of x with a dotted line.
    """

    title: str
    x: str
    y: str
    curves: list[Curve]
    log: bool = False
    marks: tuple[float, ...] = ()


def draw(path: Path, panels: Sequence[Sequence[Panel]]) -> None:
    """Saves a PNG, a row of the figure for each sequence of panels."""
    rows, columns = len(panels), max(map(len, panels))
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, row in zip(grid, panels, strict=True):
        for one, panel in zip(axes, row, strict=True):
            fill(one, panel)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, transparent=True)


def fill(axes: Any, panel: Panel) -> None:
    seen: set[str] = set()
    for curve in panel.curves:
        label = None if curve.label in seen else curve.label
        axes.plot(curve.x, curve.y, ".-", color=curve.colour, lw=1.2, ms=3, label=label)
        seen.add(curve.label)
    for mark in panel.marks:
        axes.axvline(mark, color=INK, lw=0.8, ls=":")
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.9)))  # most panels span less than a decade
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    style(axes)
