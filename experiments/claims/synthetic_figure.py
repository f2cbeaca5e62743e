"""The figure of the synthetic study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from jaxdeq.plot import INK, style

COLOURS = ("#e8731a", "#2f8fe0", "#2ca05a", "#9467bd")
LOW, HIGH = -6.0, 2.0  # of the state


def draw(path: Path, layer: Callable, weights: dict, found: dict, x: np.ndarray, y: np.ndarray):
    """Saves a PNG: the maps of the first seed above; below the equilibria and the convergence of all seeds."""
    count = len(weights)
    figure = plt.figure(figsize=(13, 7.6), layout="constrained")
    rows = figure.add_gridspec(2, 1)
    above = rows[0].subgridspec(1, count).subplots(sharey=True, squeeze=False)[0]
    below = rows[1].subgridspec(1, 3).subplots()
    for axes, (penalty, trained) in zip(above, weights.items(), strict=True):
        image = surface(axes, layer, trained[0], found[penalty][0].z, x)
        axes.set_title(f"f(z; x), penalty {penalty:g}")
    above[0].set_ylabel("z (no unit)")
    bar = figure.colorbar(image, ax=above)
    bar.set_label("f(z; x) (no unit)", color=INK)
    bar.ax.tick_params(colors=INK)
    equilibria(below[0], found, x, y)
    convergence(below[1], found, "plain_trace", "Plain iteration")
    convergence(below[2], found, "anderson_trace", "Anderson acceleration")
    for axes in (*above, *below):
        style(axes)
    for axes in above:
        axes.grid(False)
    figure.savefig(path, dpi=110, transparent=True)
    plt.close(figure)


def surface(axes: Any, layer: Callable, weights: Any, z: np.ndarray, x: np.ndarray) -> Any:
    """The map as colours: equal along z where it does not depend on z. In black its equilibria."""
    xs, zs = np.linspace(-1, 1, 120, dtype=np.float32), np.linspace(LOW, HIGH, 120, dtype=np.float32)
    grid = np.meshgrid(xs, zs)
    values = layer(jnp.asarray(grid[1].ravel()), weights, jnp.asarray(grid[0].ravel())).reshape(grid[0].shape)
    image = axes.contourf(*grid, values, np.arange(LOW, HIGH + 0.5, 0.5), cmap="viridis", extend="both")
    order = np.argsort(x)
    axes.plot(np.asarray(x)[order], np.asarray(z)[order], "k", lw=2, label="z = f(z; x)")
    axes.set(xlabel="x (no unit)", xticks=(-1, -0.5, 0, 0.5, 1), ylim=(LOW, HIGH))
    return image


def equilibria(axes: Any, found: dict, x: np.ndarray, y: np.ndarray):
    axes.plot(x, y, ".", color=INK, ms=2, alpha=0.5, label="data")
    order = np.argsort(x)
    for colour, (penalty, seeds) in zip(COLOURS, found.items(), strict=False):
        for number, one in enumerate(seeds):
            label = f"penalty {penalty:g}" if number == 0 else None
            axes.plot(np.asarray(x)[order], np.asarray(one.z)[order], color=colour, lw=1, label=label)
    axes.set(title="Equilibrium, each seed", xlabel="x (no unit)", ylabel="z (no unit)", ylim=(LOW, HIGH))


def convergence(axes: Any, found: dict, name: str, title: str):
    for colour, (penalty, seeds) in zip(COLOURS, found.items(), strict=False):
        for number, one in enumerate(seeds):
            trace = np.asarray(getattr(one, name))
            label = f"penalty {penalty:g}" if number == 0 else None
            axes.semilogy(np.arange(1, len(trace) + 1), trace, color=colour, lw=1.2, label=label)
    axes.axhline(1e-3, color=INK, lw=0.8, ls=":")
    axes.set(title=title, xlabel="evaluations of f (count)", ylabel="relative residual, median (ratio)")
