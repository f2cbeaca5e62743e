"""Every picture says what it shows, in which unit, on any ground; what cannot be drawn is refused."""

import json
import subprocess
import sys

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

import jaxdeq
from jaxdeq import plot

RUN = [{"step": 1, "loss": 2.0, "model": "a"}, {"step": 2, "loss": 1.0, "model": "b"}, {"step": 3, "loss": None}]
TRACES = np.array([[1.0, 0.1, 0.01, np.nan], [1.0, 0.3, np.nan, np.nan], [1.0, 0.2, np.inf, np.nan]])
DRAWN = {
    "residuals": lambda **kw: plot.residuals({"a": TRACES, "b": TRACES[0]}, rtol=1e-2, **kw),
    "eigenvalues": lambda **kw: plot.eigenvalues({"a": [0.5j, -0.5j], "b": [0.9]}, **kw),
    "steps": lambda **kw: plot.steps({"a": [3, 4, 4], "b": [6]}, max_steps=8, **kw),
    "learning_curves": lambda **kw: plot.learning_curves(RUN, "loss", unit="nats", by="model", **kw),
}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_labels_with_units_a_legend_and_given_axes(draw):
    _, given = plt.subplots()
    axes = draw(axes=given, colours={"b": "#123456"})
    assert axes is given
    assert axes.get_xlabel().endswith(")")
    assert axes.get_ylabel().endswith(")")
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"a", "b"} <= set(names)
    assert "#123456" in [line.get_color() for line in axes.get_legend().get_lines()] or draw is DRAWN["steps"]


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_reads_on_white_and_on_black(draw):
    axes = draw()
    assert axes.get_facecolor()[3] == axes.figure.get_facecolor()[3] == 0
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_legend().get_texts(), *axes.get_xticklabels()]
    colours = [text.get_color() for text in texts] + list(plot.PALETTE)
    for colour in colours:
        assert contrast(colour, 1.0) > 2.6, colour
        assert contrast(colour, 0.0) > 3.5, colour


def test_jupyter_lays_no_ground_under_it():
    """It does if all ticks are light, or all dark; light is what it weighs above a half."""
    axes = DRAWN["steps"]()
    weigh = lambda tick: np.dot(to_rgb(tick.get_color()), (0.299, 0.587, 0.114))
    assert all(weigh(tick) > 0.5 for tick in axes.get_xticklabels())
    assert all(weigh(tick) <= 0.5 for tick in axes.get_yticklabels())


def contrast(colour, ground):
    """Of a colour to a grey ground of this luminance; by WCAG 2, where 3 is asked of large text."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    dark, light = sorted((0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2], ground))
    return (light + 0.05) / (dark + 0.05)


def test_residuals_stop_where_the_solve_did():
    axes = plot.residuals({"batch": TRACES})
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), [1.0, 0.2, 0.2])  # one went on, two kept what they had
    _, stats = jaxdeq.fixed_point(jnp.cos, jnp.ones(()), trace=64)
    (line,) = plot.residuals({"cos": stats}).lines
    assert len(line.get_xdata()) == stats.steps


def test_problems_without_a_number_do_not_empty_the_picture():
    lost = np.full((1, TRACES.shape[1]), np.nan)
    (line,) = plot.residuals({"batch": np.concatenate([TRACES, lost])}).lines
    np.testing.assert_array_equal(line.get_xydata(), plot.residuals({"batch": TRACES}).lines[0].get_xydata())


def test_steps_counts_each_problem_once():
    axes = plot.steps({"a": jnp.array([3, 4, 4, 6])})
    heights = axes.patches[0].get_xy()[:, 1]
    assert {0, 1, 2} == set(heights)


def test_learning_curves_reads_json_lines_and_leaves_out_what_is_missing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RUN))
    (line,) = plot.learning_curves(path, "loss", unit="%", scale=100).lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 200], [2, 100]])


def test_refusals():
    with pytest.raises(ValueError, match="solves must name at least one thing to draw"):
        plot.residuals({})
    _, stats = jaxdeq.fixed_point(jnp.cos, jnp.ones(()))
    with pytest.raises(ValueError, match="'cos' has no trace; ask for one"):
        plot.residuals({"cos": stats})
    with pytest.raises(ValueError, match="no record has accuracy, step; got records of loss, model, step"):
        plot.learning_curves(RUN, "accuracy", unit="%")


def test_without_matplotlib_it_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None; import jaxdeq; import jaxdeq.plot"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "jaxdeq.plot needs matplotlib, which was not found; `pip install matplotlib`" in run.stderr
