"""Figures of the aggregated posterior and of collapse hold the numbers they were given."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_vae.plots.latents import (
    plot_aggregated_marginals,
    plot_aggregated_plane,
    plot_collapse,
)
from tests.helpers.figures import legend

Draws = NDArray[Any]


def test_marginals_are_histograms_of_the_draws(rng: np.random.Generator) -> None:
    """One panel per latent, densities that integrate to what is within, divergences on top."""
    prior, aggregate = rng.normal(size=(400, 5)), torch.as_tensor(rng.normal(size=(300, 5))) / 2
    mismatch = (torch.arange(5) / 10, torch.full((5,), 0.01))
    figure = Figure(layout="constrained")
    axes = plot_aggregated_marginals(aggregate, prior, mismatch, figure=figure)
    assert axes.shape == (5,)
    assert len(figure.axes) == 8  # two rows of four, of which three panels are empty
    assert axes[3].get_title() == "0.300 ± 0.010 nats"
    edges = np.array([patch.get_x() for patch in axes[0].patches[:30]])
    heights = np.array([patch.get_height() for patch in axes[0].patches[:30]])
    counts, _ = np.histogram(prior[:, 0], [*edges, edges[-1] + edges[1] - edges[0]], density=True)
    np.testing.assert_allclose(heights, counts)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "prior",
        "aggregated posterior q(z)",
    ]


def test_the_plane_counts_what_is_within(ax: Axes, rng: np.random.Generator) -> None:
    """Of the prior's own draws about as many as the contour says, of a narrow q(z) all."""
    prior, other = rng.normal(size=(2, 1500, 2))
    assert plot_aggregated_plane(other, prior, ax=ax) is ax
    shares = [int(entry.split()[-3].rstrip("%")) for entry in legend(ax)[1:]]
    assert abs(shares[0] - 50) < 12  # 8 standard errors
    assert abs(shares[1] - 95) < 6
    np.testing.assert_array_equal(np.asarray(ax.collections[0].get_offsets()), other)
    narrow = Figure(layout="constrained").subplots()
    plot_aggregated_plane(other / 20, prior, ax=narrow, names=("a", "b"))
    assert legend(narrow)[1:] == ["50% of prior, 100% of q(z)", "95% of prior, 100% of q(z)"]
    assert (narrow.get_xlabel(), narrow.get_ylabel()) == ("a", "b")


def test_bars_are_sorted_and_stacked(ax: Axes) -> None:
    """The information below, what is left of the rate above it, and a marker a kind."""
    rate = torch.tensor([0.001, 3.0, 0.8])
    information = (torch.tensor([-0.002, 2.5, 0.0]), torch.tensor([0.001, 0.1, 0.0]))
    uses = ["collapsed", "used", "constant but off the prior"]
    assert plot_collapse(rate, information, uses, ax=ax) is ax
    heights = [bar.get_height() for bar in ax.patches]  # type: ignore[attr-defined]
    np.testing.assert_allclose(heights, [2.5, 0.0, 0.0, 0.5, 0.8, 0.001], rtol=1e-6)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        "z[1]",
        "z[2]",
        "z[0]",
    ]
    assert legend(ax) == ["information", "off the prior", uses[1], uses[2], uses[0]]
    assert ax.get_ylabel() == "rate (nats per datum)"


def test_unknown_rates_leave_the_markers(ax: Axes) -> None:
    """Nan is no bar."""
    nan = np.full(2, np.nan)
    plot_collapse(nan, (nan, nan), ["used", "unknown"], ax=ax)
    assert np.isfinite(ax.get_ylim()).all()
    assert legend(ax)[-2:] == ["used", "unknown"]


def test_other_shapes_are_refused(ax: Axes) -> None:
    """With what came."""
    with pytest.raises(ValueError, match=r"\(draws, latents\), .*; got \(5, 2\) and \(5, 3\)"):
        plot_aggregated_marginals(np.zeros((5, 2)), np.zeros((5, 3)), figure=Figure())
    with pytest.raises(ValueError, match=r"\(draws, 2\).* got \(20, 3\) and \(20, 3\)"):
        plot_aggregated_plane(np.zeros((20, 3)), np.ones((20, 3)), ax=ax)
    with pytest.raises(ValueError, match=r"the shape \(1,\), one entry per latent; got \(2,\)"):
        plot_collapse(np.zeros(2), (np.zeros(2), np.zeros(2)), ["used"], ax=ax)
    with pytest.raises(ValueError, match=r"2 names, one per latent; got \['a'\]"):
        plot_aggregated_marginals(np.eye(2), np.eye(2), names=["a"], figure=Figure())


@pytest.mark.parametrize("width", [3.3, 6.4], ids=["column", "page"])
@pytest.mark.parametrize("name", ["marginals", "plane", "collapse"])
def test_all_is_within_the_figure(name: str, width: float, rng: np.random.Generator) -> None:
    """Nothing is cut off when saved, at the width of a column too."""
    figure, draws = Figure(figsize=(width, 4.0), layout="constrained"), rng.normal(size=(50, 2))
    if name == "marginals":
        plot_aggregated_marginals(draws, draws, (np.ones(2), np.ones(2)), figure=figure)
    elif name == "plane":
        plot_aggregated_plane(draws, draws, ax=figure.subplots())
    else:
        uses = ["used", "constant but off the prior"]
        plot_collapse(np.ones(2), (np.ones(2) / 2, np.zeros(2)), uses, ax=figure.subplots())
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) > -0.02  # inches
    assert box.x1 < width + 0.02
    assert box.y1 < 4.02


def test_a_new_figure_is_pyplots() -> None:
    """So a notebook shows it, and it is closed by its caller."""
    import matplotlib.pyplot as plt

    ax = plot_aggregated_plane(np.eye(20, 2), np.random.default_rng(0).normal(size=(20, 2)))
    assert plt.get_fignums() == [1]
    assert ax.figure is plt.gcf()
    plt.close(plt.gcf())
