"""The end of a run: a summary, and a picture of how it went."""

import importlib.metadata
import json
import platform
from typing import Any

import jax
import numpy as np

from jaxdeq.training._config import Config, describe
from jaxdeq.training._log import Record

PANELS = {  # titles, and what to show: kind, name, label
    "loss": [("train", "loss", "training"), ("valid", "loss", "validation")],
    "steps of a solve": [
        ("train", "forward_steps", "forward, training"),
        ("train", "backward_steps", "backward, training"),
        ("valid", "forward_steps", "forward, validation"),
    ],
    "relative residual": [
        ("train", "forward_residual", "forward, training"),
        ("train", "backward_residual", "backward, training"),
        ("valid", "forward_residual", "forward, validation"),
    ],
    "penalty": [("train", "penalty", "mean of ||J v||^2 / size")],
}


def report(config: Config, records: list[Record], results: dict[str, Record]) -> None:
    """Writes `summary.md` and `curves.png` into the work folder."""
    (config.work / "summary.md").write_text(summary(config, records, results))
    draw(config, records)


def summary(config: Config, records: list[Record], results: dict[str, Record]) -> str:
    """Results, cost and settings, as Markdown."""
    train = [record for record in records if record["kind"] == "train"]
    lines = [f"# {config.work.name}", "", "| test | " + " | ".join(results) + " |", "| :-- |" + " --: |" * len(results)]
    for name in next(iter(results.values())):
        lines.append(f"| {name} | " + " | ".join(f"{result[name]:.6g}" for result in results.values()) + " |")
    lines += ["", "| training | |", "| :-- | --: |"]
    lines += [f"| {name} | {value} |" for name, value in cost(config, train).items()]
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax"))
    devices = jax.devices()
    lines += [
        "",
        f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es); {platform.machine()}; ",
    ]
    lines[-1] += f"Python {platform.python_version()}, {packages}."
    settings = json.dumps(describe(config), indent=2)
    return "\n".join([*lines, "", "```json", settings, "```", ""])


def cost(config: Config, train: list[Record]) -> dict[str, str]:
    """What training took. The median leaves out what compiling took."""
    if not train:
        return {"steps": str(config.steps)}
    seconds = [record["seconds_per_step"] for record in train]
    total = float(np.sum(np.asarray(seconds) * np.diff([0, *(record["step"] for record in train)])))
    table = {"steps": str(config.steps), "seconds a step, median": f"{np.median(seconds):.4g}"}
    table["seconds in all, without evaluation and saving"] = f"{total:.0f}"
    last = train[-max(1, len(train) // 10) :]
    for name in ("loss", "forward_steps", "forward_residual", "backward_steps", "backward_residual", "penalty"):
        _, values = curve(last, "train", name)
        if len(values):
            table[f"{name}, last tenth"] = f"{np.mean(values):.4g}"
    return table


def draw(config: Config, records: list[Record]) -> None:
    """Learning curve, steps, residuals and penalty over the steps of training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {
        title: [(label, *curve(records, kind, name)) for kind, name, label in curves]
        for title, curves in PANELS.items()
    }
    shown = {title: [c for c in curves if len(c[1])] for title, curves in shown.items()}
    shown = {title: curves for title, curves in shown.items() if curves}
    figure = Figure(figsize=(4.5 * max(1, len(shown)), 3.5), layout="constrained")
    for i, (title, curves) in enumerate(shown.items()):
        axes = figure.add_subplot(1, len(shown), i + 1)
        for label, x, y in curves:
            axes.plot(x, y, label=label, linewidth=1.2)
        if title == "relative residual":
            axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure).print_png(str(config.work / "curves.png"))


def curve(records: list[Record], kind: str, name: str) -> tuple[Any, Any]:
    """Steps and values, where there are finite ones."""
    points = [(r["step"], r[name]) for r in records if r["kind"] == kind and r.get(name) is not None]
    points = [(step, value) for step, value in points if np.isfinite(value)]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points])
