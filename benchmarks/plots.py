"""Results as pictures, on white, so that they can be read on a light and on a dark page."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.cases import Row


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """A picture of each of these cases that has rows."""
    found = []
    for case, picture in PICTURES.items():
        of_case = [row for row in rows if row.case == case and row.ratio]
        if of_case:
            found.append(folder / f"{case}.svg")
            with matplotlib.rc_context({"svg.hashsalt": case}):  # the same rows make the same file
                picture(of_case).savefig(found[-1], metadata={"Date": None}, bbox_inches="tight", facecolor="white")
    return found


def gradient(rows: list[Row]) -> Figure:
    """Bars, a panel for each problem; ours in colour."""
    problems = list(dict.fromkeys(row.problem for row in rows))
    columns = min(2, len(problems))
    figure = Figure(figsize=(6 * columns, 3.2 * -(-len(problems) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(problems) // columns), columns, squeeze=False).ravel()
    for axis, problem in zip(axes, problems, strict=False):
        each = sorted((row for row in rows if row.problem == problem), key=lambda row: -row.ratio.median)
        medians = np.array([row.ratio.median for row in each])
        spread = [medians - [row.ratio.low for row in each], [row.ratio.high for row in each] - medians]
        colours = ["tab:blue" if row.contender.startswith("jaxdeq") else "silver" for row in each]
        axis.barh([row.contender for row in each], medians, xerr=spread, color=colours, ecolor="black")
        axis.set(title=problem, xlabel="solve and gradient (bare evaluations of f)", xscale="log")
        axis.tick_params(labelsize=8)
    for axis in axes[len(problems) :]:
        axis.remove()
    return figure


def scaling(rows: list[Row]) -> Figure:
    """Lines, a panel for what is varied while the rest stays."""
    points = {tuple(map(int, re.findall(r"\d+", f"{row.problem} {row.contender}"))): row.ratio for row in rows}
    middle = np.array([max(values, key=values.count) for values in (list(v) for v in zip(*points, strict=True))])
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for i, (axis, name) in enumerate(
        zip(figure.subplots(1, 3, sharey=True), ("batch", "width", "history"), strict=True)
    ):
        others = np.delete(middle, i)
        each = sorted((key[i], ratio) for key, ratio in points.items() if (np.delete(key, i) == others).all())
        medians: Any = np.array([ratio.median for _, ratio in each])
        spread = [medians - [ratio.low for _, ratio in each], [ratio.high for _, ratio in each] - medians]
        axis.errorbar([n for n, _ in each], medians, spread, marker="o", capsize=3)
        axis.set(
            xlabel={"batch": "batch (rows)", "width": "width of a row (numbers)", "history": "history (iterates)"}[name]
        )
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
        if i == 0:
            axis.set(ylabel="a step (bare evaluations of f)", ylim=(0, None))
    return figure


PICTURES = {"gradient": gradient, "scaling": scaling}
