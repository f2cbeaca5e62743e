"""Pictures of solves and of training, drawn with matplotlib.

Every function draws into the `axes` given, or into a new figure, and returns the axes. Colours and
texts are of middle brightness on a transparent ground, so that a picture reads on white and on black.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxdeq import Stats

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(
        "jaxdeq.plot needs matplotlib, which was not found; `pip install matplotlib` brings it"
    ) from error

__all__ = ["eigenvalues", "learning_curves", "residuals", "steps", "style"]

INK = "#7a7a7a"  # texts, axes, and lines that only guide the eye
LIGHTER = "#818181"  # on the other side of what Jupyter takes for light
PALETTE = ("#2f8fe0", "#e8731a", "#2ca05a", "#c04fc0", "#b08a00", "#e0506a", "#6f6fd8", "#1f9fa5")

Colours = Mapping[str, str]


def residuals(
    solves: Mapping[str, Any],
    *,
    rtol: float | None = None,
    axes: Axes | None = None,
    colours: Colours | None = None,
) -> Axes:
    """Draws how the relative residual falls from step to step, one curve a solve.

    A step of a solver is one evaluation of `f`, but for `NewtonKrylov` and for line searches.

    Of a batch of problems, `[problems, steps]`, it draws the median and a band that holds the middle
    80 %, until the last one stops; one that has stopped before keeps its last residual.

    Args:
      solves: by name, the `Stats` of a solve that recorded a `trace`, or such a trace.
      rtol: a tolerance to mark.
      axes: where to draw; None: a new figure.
      colours: of the names; the others get one each.

    Raises:
      ValueError: no solve, or one without a trace.

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> from jaxdeq import plot
      >>> _, stats = jaxdeq.fixed_point(jnp.cos, jnp.ones(()), trace=16)
      >>> plot.residuals({"Anderson": stats}, rtol=1e-4).get_xlabel()
      'solver steps (count)'
    """
    _some("solves", solves)
    axes = _new(axes)
    for (name, solve), colour in zip(solves.items(), _colours(solves, colours), strict=True):
        trace = np.asarray(solve.trace if isinstance(solve, Stats) else solve, float)
        if trace.ndim == 0 or trace.shape[-1] == 0:
            raise ValueError(f"{name!r} has no trace; ask for one, as in fixed_point(f, z0, trace=64)")
        count, trace = _filled(trace)
        low, middle, high = np.quantile(trace, (0.1, 0.5, 0.9), axis=0)
        axes.semilogy(count, middle, color=colour, label=name)
        if len(trace) > 1:
            axes.fill_between(count, low, high, color=colour, alpha=0.2, linewidth=0)
    if rtol is not None:
        axes.axhline(rtol, color=INK, linewidth=1, linestyle=":", label="tolerance")
    axes.set(xlabel="solver steps (count)", ylabel="relative residual (ratio)")
    return style(axes)


def eigenvalues(spectra: Mapping[str, ArrayLike], *, axes: Axes | None = None, colours: Colours | None = None) -> Axes:
    """Draws eigenvalues of Jacobians in the complex plane, with the unit circle.

    Plain iteration converges if all are inside of it, at the pace of the outermost; the implicit
    gradient is singular if one is 1.

    Args:
      spectra: by name, the eigenvalues, such as `numpy.linalg.eigvals(jax.jacobian(f)(z))`.
      axes: where to draw; None: a new figure.
      colours: of the names; the others get one each.

    Raises:
      ValueError: no spectrum.

    Example:
      >>> import numpy as np
      >>> from jaxdeq import plot
      >>> turn = np.array([[0.0, -0.9], [0.9, 0.0]])
      >>> plot.eigenvalues({"turn": np.linalg.eigvals(turn)}).get_xlabel()
      'real part (factor a step)'
    """
    _some("spectra", spectra)
    axes = _new(axes)
    angle = np.linspace(0, 2 * np.pi, 400)
    axes.plot(np.cos(angle), np.sin(angle), color=INK, linewidth=1.2)
    for (name, values), colour in zip(spectra.items(), _colours(spectra, colours), strict=True):
        values = np.ravel(np.asarray(values, complex))
        axes.plot(values.real, values.imag, ".", color=colour, alpha=0.75, markersize=5, label=name)
    axes.set(xlabel="real part (factor a step)", ylabel="imaginary part (factor a step)")
    axes.set_aspect("equal", adjustable="datalim")
    return style(axes)


def steps(
    counts: Mapping[str, Any],
    *,
    max_steps: int | None = None,
    axes: Axes | None = None,
    colours: Colours | None = None,
) -> Axes:
    """Draws how many problems of a batch needed how many evaluations.

    Args:
      counts: by name, the `Stats` of a solve with `batched=True`, or the `steps` of such.
      max_steps: a budget to mark.
      axes: where to draw; None: a new figure.
      colours: of the names; the others get one each.

    Raises:
      ValueError: no counts.

    Example:
      >>> import jax.numpy as jnp, jaxdeq
      >>> from jaxdeq import plot
      >>> x = jnp.linspace(0.1, 0.9, 8)
      >>> _, stats = jaxdeq.fixed_point(lambda z: jnp.tanh(x * z + 1), jnp.zeros(8), batched=True)
      >>> plot.steps({"tanh": stats}).get_ylabel()
      'problems (count)'
    """
    _some("counts", counts)
    axes = _new(axes)
    arrays = [np.ravel(x.steps if isinstance(x, Stats) else x) for x in counts.values()]
    edges = [float(k) - 0.5 for k in range(min(map(np.min, arrays)), max(map(np.max, arrays)) + 2)]  # one bin a count
    for name, array, colour in zip(counts, arrays, _colours(counts, colours), strict=True):
        axes.hist(array, edges, histtype="stepfilled", color=colour, alpha=0.35)
        axes.hist(array, edges, histtype="step", color=colour, linewidth=1.5, label=name)
    if max_steps is not None:
        axes.axvline(max_steps, color=INK, linewidth=1, linestyle=":", label="budget")
    axes.set(xlabel="evaluations of f (count)", ylabel="problems (count)")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return style(axes)


def learning_curves(
    run: str | Path | Iterable[Mapping[str, Any]],
    metric: str,
    *,
    unit: str,
    scale: int | float = 1,
    x: str = "step",
    by: str | None = None,
    axes: Axes | None = None,
    colours: Colours | None = None,
) -> Axes:
    """Draws a metric over the course of a run.

    Records without the metric, or where it is null or NaN, are left out.

    Args:
      run: a file of JSON lines, one record each, or the records.
      metric: the name of the number to draw.
      unit: its unit, for the axis, such as "nats" or "%".
      scale: what to multiply it by, such as 100 for "%".
      x: the name of the number to draw it over, "step" or "epoch".
      by: draws one curve for each value of this name, such as "model"; None: one in all.
      axes: where to draw; None: a new figure.
      colours: of these values; the others get one each.

    Raises:
      ValueError: no record has the metric.

    Example:
      >>> from jaxdeq import plot
      >>> run = [{"step": 1, "loss": 2.3}, {"step": 2, "loss": 1.9}, {"step": 2, "accuracy": 0.4}]
      >>> plot.learning_curves(run, "loss", unit="nats").get_ylabel()
      'loss (nats)'
    """
    records = _read(run) if isinstance(run, (str, Path)) else list(run)
    wanted = {metric, x} if by is None else {metric, x, by}
    found = [r for r in records if wanted <= r.keys() and r[metric] is not None and not np.isnan(r[metric])]
    if not found:
        names = sorted({name for record in records for name in record})
        raise ValueError(f"no record has {', '.join(sorted(wanted))}; got records of {', '.join(names) or 'nothing'}")
    curves: dict[str, list] = {}
    for record in found:
        curves.setdefault(metric if by is None else str(record[by]), []).append((record[x], scale * record[metric]))
    axes = _new(axes)
    marker = "." if max(map(len, curves.values())) < 40 else None
    for (name, points), colour in zip(curves.items(), _colours(curves, colours), strict=True):
        axes.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker)
    axes.set(xlabel=f"{x} (count)", ylabel=f"{metric.replace('_', ' ')} ({unit})")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return style(axes)


def style(axes: Axes) -> Axes:
    """Makes axes, and the figure around them, readable on light and on dark ground.

    The functions of this module end with it; call it on axes of your own once they are drawn.
    There is a legend where more than one thing has a name.

    Example:
      >>> import matplotlib.pyplot as plt
      >>> from jaxdeq import plot
      >>> _, axes = plt.subplots()
      >>> plot.style(axes).get_facecolor()[3]  # transparent
      0.0
    """
    if figure := axes.get_figure(root=True):
        figure.patch.set_alpha(0)
    axes.set_facecolor("none")
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)
    # Jupyter lays a white or black ground under a transparent picture if its ticks are all dark or all light.
    axes.tick_params(axis="x", which="both", colors=LIGHTER)
    axes.tick_params(axis="y", which="both", colors=INK)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return axes


def _new(axes: Axes | None) -> Axes:
    return plt.subplots(figsize=(6.4, 4.0), layout="constrained")[1] if axes is None else axes


def _some(what: str, named: Mapping[str, Any]) -> None:
    if not named:
        raise ValueError(f"{what} must name at least one thing to draw; got none")


def _filled(trace: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps that were made, and `[problems, steps]` with the last number in place of later gaps.

    Without problems that have no number at all, unless there are no others.
    """
    trace = trace.reshape(-1, trace.shape[-1])
    finite = np.isfinite(trace)
    some = finite.any(axis=1) | ~finite.any()
    trace, finite = trace[some], finite[some]
    made = np.flatnonzero(finite.any(axis=0))
    last = np.maximum.accumulate(np.where(finite, np.arange(trace.shape[1]), 0), axis=1)
    return 1 + made, np.take_along_axis(trace, last, axis=1)[:, made]


def _colours(names: Iterable[str], given: Colours | None) -> list[str]:
    """One a name: the given one, or the next of the palette."""
    given = given or {}
    free = [colour for colour in PALETTE if colour not in given.values()] or list(PALETTE)
    others = [name for name in names if name not in given]
    return [given[name] if name in given else free[others.index(name) % len(free)] for name in names]


def _read(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
