"""Figures of ranks and of gradients hold the numbers they were given, and refuse others."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pyro_vae.plots.checks import plot_rank_ecdf, plot_rank_histograms
from pyro_vae.plots.learning import plot_signal_to_noise
from pyro_vae.stats import rank_band, rank_p_value
from tests.helpers.figures import legend


def heights(ax: Axes) -> NDArray[Any]:
    """Of the bars."""
    return np.array([bar.get_height() for bar in ax.patches if isinstance(bar, Rectangle)])


def test_ecdf_is_of_the_ranks(ax: Axes) -> None:
    """Cumulative shares less uniform ones, and the band of the p-value."""
    ranks = {"z": torch.tensor([0, 0, 3, 4]), "log p(y | z)": torch.tensor([1, 2, 3, 4])}
    assert plot_rank_ecdf(ranks, 4, false_alarm=0.1, ax=ax) is ax
    line, other, *_ = ax.lines
    np.testing.assert_allclose(np.asarray(line.get_xdata()), [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [0.3, 0.1, -0.1, -0.05], atol=1e-12)
    assert line.get_color() != other.get_color()
    assert line.get_marker() != other.get_marker()
    assert legend(ax) == ["z", "log p(y | z)", "90% band of uniform ranks"]
    vertices = ax.collections[0].get_paths()[0].vertices
    band = rank_band(4, 4, 0.1)
    assert np.asarray(vertices)[:, 1].max() == pytest.approx(
        (band.upper / 4 - [0.2, 0.4, 0.6, 0.8]).max()
    )


def test_a_line_leaves_the_band_where_its_p_value_is_small(ax: Axes) -> None:
    """What a person sees is what the verdict says."""
    ranks = {"bad": torch.arange(200) % 10, "good": torch.arange(200) % 20}
    plot_rank_ecdf(ranks, 19, false_alarm=0.05, ax=ax)
    band = rank_band(200, 19, 0.05)
    shares = np.arange(1, 20) / 20
    for line, name in zip(ax.lines, ranks, strict=False):
        height = np.asarray(line.get_ydata())
        outside = (height > band.upper / 200 - shares) | (height < band.lower / 200 - shares)
        assert bool(outside.any()) == (rank_p_value(ranks[name], 19) < 0.05) == (name == "bad")


@pytest.mark.parametrize(("num_samples", "bins"), [(99, 20), (19, 20), (100, 20), (4, 5), (52, 20)])
def test_histograms_are_flat_for_equal_counts(num_samples: int, bins: int) -> None:
    """Whatever the divisors: every rank as often as any other makes bars of height one."""
    ranks = torch.arange(num_samples + 1).repeat(400)
    panels = plot_rank_histograms(
        {"a": ranks, "b": ranks, "c": ranks}, num_samples, figure=Figure()
    )
    assert [ax.get_title() for ax in panels] == ["a", "b", "c"]
    for ax in panels:
        np.testing.assert_allclose(heights(ax), np.ones(bins))


def test_few_data_have_few_bins() -> None:
    """Ten data a bin at least, and two bins."""
    for num_data, bins in ((60, 5), (3, 2)):
        ranks = {"z": torch.arange(num_data) % 20}
        (ax,) = plot_rank_histograms(ranks, 19, figure=Figure())
        assert len(heights(ax)) == bins


def test_narrow_figures_have_fewer_columns() -> None:
    """Panels go below one another; none is left over."""
    ranks = {name: torch.arange(100) for name in "abcde"}
    wide = plot_rank_histograms(ranks, 99, figure=Figure(figsize=(9, 4)))
    narrow = plot_rank_histograms(ranks, 99, figure=Figure(figsize=(3.4, 6)))
    columns = [len({round(ax.get_position().x0, 3) for ax in axes}) for axes in (wide, narrow)]
    assert columns == [4, 2]


def test_signal_to_noise(ax: Axes) -> None:
    """Points in the order of the particles, with bars that a log scale can show."""
    ratios: Any = {
        "IWAE": {16: (torch.tensor(0.1), torch.tensor(0.2)), 4: (0.2, 0.01), 64: (0.0, 0.01)},
        "DReG": {4: (0.3, 0.02), 16: (0.6, 0.03)},
    }
    assert plot_signal_to_noise(ratios, floor=0.05, ax=ax) is ax
    assert legend(ax) == ["IWAE", "DReG", "noise alone"]
    first = ax.containers[0].lines[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(first.get_xdata(), [4, 16])
    np.testing.assert_allclose(first.get_ydata(), [0.2, 0.1])
    assert ax.get_ylim()[0] > 0
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["4", "16", "64"]


def test_lines_of_theory_are_labelled_within_the_axes() -> None:
    """Also the one that soon falls out of sight; ticks are plain numbers."""
    figure = Figure(figsize=(5.4, 4.0), layout="constrained")
    ax = figure.subplots()
    ratios = {"IWAE": {4: (0.19, 0.02), 16: (0.2, 0.02), 64: (0.17, 0.02)}}
    plot_signal_to_noise(ratios | {"DReG": {4: (0.9, 0.05), 64: (0.9, 0.1)}}, ax=ax)
    figure.draw_without_rendering()
    corners = np.array([note.get_window_extent().get_points() for note in ax.texts])
    assert corners.shape == (2, 2, 2)
    assert (corners > ax.bbox.min).all()
    assert (corners < ax.bbox.max).all()
    assert {"0.2", "0.5"} <= {label.get_text() for label in ax.get_yticklabels()}


@pytest.mark.parametrize("plot", [plot_rank_ecdf, plot_rank_histograms])
def test_refused_ranks(plot: Any) -> None:
    """Nothing, ranks out of range, and data that differ in number."""
    with pytest.raises(ValueError, match="at least one quantity"):
        plot({}, 9)
    with pytest.raises(ValueError, match="from 0 to num_samples=9 for 'z'; got 0 to 10"):
        plot({"z": torch.arange(11)}, 9)
    with pytest.raises(ValueError, match=r"same shape .* for all quantities"):
        plot({"z": torch.arange(3), "w": torch.arange(4)}, 9)


def test_refused_ratios(ax: Axes) -> None:
    """Nothing to draw."""
    with pytest.raises(ValueError, match="at least one entry"):
        plot_signal_to_noise({}, ax=ax)
    with pytest.raises(ValueError, match="'IWAE' must have at least one ratio"):
        plot_signal_to_noise({"IWAE": {}}, ax=ax)
