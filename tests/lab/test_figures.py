"""Figures: what is on the axes, and that nothing global is touched."""

import math

import matplotlib
import numpy as np
import pytest

from sde_toolkit.lab import figures
from sde_toolkit.lab.drawing import symlog
from sde_toolkit.lab.experiment import Record, Reference


def records(*values, metric="energy", sampler="ddim"):
    return [
        Record(sampler, n, float(n), metric, value, 0.1, 1.0, 10, (0,), {"rtol": 0.1})
        for n, value in zip((5, 10, 20, 50), values, strict=False)
    ]


def test_quality_figure_has_log_axes_a_curve_per_sampler_and_error_bars():
    both = records(4.0, 2.0, 1.0) + records(3.0, sampler="dopri5")
    figure = figures.quality_figure(both, "energy", "title", Reference("energy", "halves", 0.9, 0.1))
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["dopri5", "ddim"]  # worst on top
    curve, _, bars = axes.containers[0]
    assert list(curve.get_xdata()) == [5, 10, 20]
    assert list(curve.get_ydata()) == [4, 2, 1]
    assert [segment[1][1] for segment in bars[0].get_segments()] == pytest.approx([4.1, 2.1, 1.1])
    assert "halves" in [text.get_text() for text in axes.texts]


def test_values_at_or_below_zero_are_drawn_where_they_lie():
    figure = figures.quality_figure(
        records(4.0, 0.05, -0.2), "energy", "t", Reference("energy", "halves", -0.1, 0.01)
    )
    axes = figure.axes[0]
    assert axes.get_yscale() == "symlog"
    assert list(axes.containers[0][0].get_ydata()) == [4.0, 0.05, -0.2]
    threshold = symlog.linear_threshold([4.0, 0.05, -0.2, -0.1], [0.1, 0.1, 0.1, 0.01])
    assert threshold == 0.1
    assert {-threshold, 0.0, threshold, 1.0} <= set(axes.get_yticks())
    assert any("linear below 0.1" in text.get_text() for text in axes.texts)
    figures.render(figure)


def test_the_axis_is_that_of_the_page():
    figure = figures.quality_figure(records(4.0, 0.05, -0.2), "energy", "t")
    y = np.array([-3.0, -0.1, -0.02, 0.0, 0.05, 0.1, 0.7, 50.0])
    size = np.abs(y) / 0.1
    expected = np.where(size <= 1, size, 1 + np.log10(np.maximum(size, 1))) * np.sign(y)
    assert figure.axes[0].yaxis.get_transform().transform(y) / 0.1 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "errors", "threshold"),
    [
        ([1.0, 2.0], [0.1, 0.1], None),
        ([1.0, 0.01], [0.1, 0.013], 0.02),
        ([1.0, 0.0], [0.1, 0.0], 1.0),
        ([0.0], [0.0], 1.0),
        ([math.nan, 1.0], [0.1, 0.1], None),
        ([-1.0, -2.0, 5.0], [0.5, 0.7, 9.0], 0.7),
        ([], [], None),
    ],
)
def test_the_threshold_is_the_error_of_what_cannot_be_told_from_zero(values, errors, threshold):
    assert symlog.linear_threshold(values, errors) == threshold


def test_ticks_lie_in_the_range():
    assert symlog.ticks(1.0, 20.0, None) == [1, 2, 5, 10, 20]
    assert symlog.ticks(-0.03, 2.0, 0.01) == [-0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]
    assert symlog.ticks(0.0, 0.0, None) == [0.0]


def test_cost_in_seconds():
    figure = figures.quality_figure(records(4.0, 2.0), "energy", "t", against="seconds")
    assert figure.axes[0].get_xlabel().startswith("seconds")
    with pytest.raises(ValueError, match="against must be one of"):
        figures.quality_figure(records(4.0), "energy", "t", against="hours")


def test_one_style_and_the_users_own_is_put_back():
    before = matplotlib.rcParams["pdf.fonttype"], matplotlib.rcParams["font.size"]
    drawn = [figures.quality_figure(records(4.0, 2.0), "energy", "t") for _ in range(2)]
    for suffix in ("pdf", "svg"):
        first, second = (figures.render(figure, suffix) for figure in drawn)
        assert first == second
    assert b"/FontFile2" in figures.render(drawn[0], "pdf")
    assert (matplotlib.rcParams["pdf.fonttype"], matplotlib.rcParams["font.size"]) == before
    assert set(figures.STYLE) <= set(matplotlib.rcParams)


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"metric must be one of \['energy'\], got 'enrgy'"):
        figures.quality_figure(records(1.0), "enrgy", "t")


def test_tile_puts_images_in_reading_order():
    x = np.arange(1, 6).reshape(5, 1, 1, 1) / 10
    picture = figures.tile(x, 2)
    assert picture.shape == (5, 5)
    assert picture[1::2, 1::2] == pytest.approx(np.array([[0.1, 0.2], [0.3, 0.4]]))
    assert picture.sum() == pytest.approx(1.0)
    assert figures.tile(np.ones((1, 3, 2, 2)), 1).shape == (4, 4, 3)
    assert figures.tile(np.full((1, 1, 1, 1), 7.0), 1).max() == 1


@pytest.mark.parametrize("real", [np.zeros((30, 1, 8, 8)), np.random.default_rng(0).normal(size=(30, 2))])
def test_samples_figure_has_a_row_per_sampler(real):
    cells = {("ddim", "5 steps"): real, ("ddim", "10 steps"): real, ("heun", "5 steps"): real}
    figure = figures.samples_figure(cells, real, "title")
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == 4
    assert [axes.get_ylabel() for axes in shown] == ["real data", "ddim", "", "heun"]
    assert figures.render(figure, dpi=40)[:8] == b"\x89PNG\r\n\x1a\n"
    assert figures.render(figures.grid_figure(real, "title"), "pdf")[:4] == b"%PDF"


def test_loss_and_likelihood_figures():
    steps = list(range(10, 1010, 10))
    loss = figures.loss_figure(steps, [1 / s for s in steps], "t")
    assert loss.axes[0].lines[1].get_ydata()[0] == pytest.approx((1 / 10 + 1 / 20) / 2)
    bits = np.linspace(1.0, 3.0, 50)
    figure = figures.likelihood_figure(bits, 0.1, 4.0, "t")
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == pytest.approx([2.0, 4.0])
    assert "2.000 ± 0.100" in figure.axes[0].get_legend().get_texts()[0].get_text()


@pytest.mark.slow
def test_no_plotting_state_is_touched(fresh, tmp_path):
    code = (
        "import sys; from sde_toolkit.lab import figures; assert 'matplotlib' not in sys.modules;"
        "figures.render(figures.loss_figure([1, 2], [1.0, 0.5], 't'), dpi=30);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    assert fresh(tmp_path, code)[0] == 0
