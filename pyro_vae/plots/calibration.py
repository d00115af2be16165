"""Ranks of simulation-based calibration, as histograms and as cumulative shares."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Integer
from numpy.typing import NDArray

from ..stats import rank_band
from .drawing import (
    GUIDE_COLOURS,
    Array,
    as_numpy,
    axes_or_new,
    figure_or_new,
    inches_wide,
    legend_above,
    style,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_MOST_BINS = 20
_INCHES = 2.1  # of a panel
_DATA_PER_BIN = 10  # fewer make a histogram of noise


def plot_rank_ecdf(
    ranks: Mapping[str, Integer[Array, " data"]],
    num_samples: int,
    *,
    false_alarm: float = 0.05,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the share of ranks up to each, less that of uniform ranks, with the band they stay in.

    A line that rises above the band and then falls below it (an S on its side) belongs to draws
    that are too narrow, the reverse to draws that are too wide. A line above the band throughout
    has too many low ranks: the draws are too high; below, too low. All of a line is inside the
    band with probability 1 - `false_alarm` if its ranks are uniform; the band is for each line,
    not for all together.

    Arguments:
        ranks: For each quantity its ranks from 0 to `num_samples`, `(data,)`, as
            :attr:`pyro_vae.diagnostics.Calibration.by_name`.
        num_samples: Draws of the guide a datum.
        false_alarm: Probability that uniform ranks leave the band.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes. Its first lines are the quantities', in order.

    Raises:
        ValueError: If there is no quantity, a rank is outside, or the numbers of data differ.

    References:
        | Graphical Test for Discrete Uniformity and its Applications in Goodness-of-Fit
          Evaluation and Multiple Sample Comparison (Säilynoja, Bürkner & Vehtari, 2022)
        | https://arxiv.org/abs/2103.10522

    Example:
        >>> from matplotlib.figure import Figure
        >>> ranks = {"z": np.arange(100) % 20}
        >>> ax = plot_rank_ecdf(ranks, 19, ax=Figure().subplots())
        >>> ax.get_legend_handles_labels()[1]
        ['z', '95% band of uniform ranks']
    """
    counts = _counts(ranks, num_samples)
    num_data = int(next(iter(counts.values())).sum())
    shares = np.arange(1, num_samples + 1) / (num_samples + 1)
    band = rank_band(num_data, num_samples, false_alarm)
    ax = axes_or_new(ax, (6.4, 4.0))
    for number, (name, count) in enumerate(counts.items()):
        difference = count.cumsum()[:-1] / num_data - shares
        every = max(1, num_samples // 8)
        # Markers at other places on every line, so that lines on top of each other are told apart.
        places = (number * every // max(1, len(counts)), every)
        line: dict[str, Any] = {"markevery": places, "markersize": 5, "linewidth": 1.2}
        ax.plot(shares, difference, label=name, **line, **style(number))
    lower, upper = (np.concatenate([[0], side / num_data - shares, [0]]) for side in band)
    label = f"{100 * (1 - false_alarm):g}% band of uniform ranks"
    ends = np.concatenate([[0], shares, [1]])
    ax.fill_between(ends, lower, upper, color="0.88", zorder=0, label=label)
    ax.axhline(0, color="0.25", linewidth=0.8, linestyle=":")
    ax.set(xlabel="rank as a share of the draws", ylabel="share of ranks up to it, less uniform")
    ax.set_xlim(0, 1)
    legend_above(ax, ax.get_legend_handles_labels()[0])
    return without_box(ax)


def plot_rank_histograms(
    ranks: Mapping[str, Integer[Array, " data"]],
    num_samples: int,
    *,
    false_alarm: float = 0.05,
    figure: "Figure | SubFigure | None" = None,
) -> list["Axes"]:
    r"""Draws a histogram of the ranks of each quantity, over the counts of uniform ranks.

    Bars at both ends are high where draws are too narrow, in the middle where they are too wide,
    at the left where they are too high. The band is that of the bars of one panel together
    (Bonferroni). Where the number of ranks has no suitable divisor, bins differ in size by one
    rank; heights and band allow for it.

    Arguments:
        ranks: For each quantity its ranks from 0 to `num_samples`, `(data,)`.
        num_samples: Draws of the guide a datum.
        false_alarm: Probability that a bar of uniform ranks leaves the band, a panel.
        figure: Where to draw; a new pyplot figure by default.

    Returns:
        One axes for each quantity, in order.

    Raises:
        ValueError: If there is no quantity, a rank is outside, or the numbers of data differ.

    Example:
        >>> from matplotlib.figure import Figure
        >>> (ax,) = plot_rank_histograms({"z": np.arange(100) % 20}, 19, figure=Figure())
        >>> {f"{bar.get_height():.3f}" for bar in ax.patches}
        {'1.000'}
    """
    counts = _counts(ranks, num_samples)
    num_data = int(next(iter(counts.values())).sum())
    edges = _edges(num_samples + 1, num_data)
    columns = min(len(counts), 4)
    rows = -(-len(counts) // columns)
    figure = figure_or_new(figure, (0.6 + _INCHES * columns, 0.5 + _INCHES * rows))
    columns = max(1, min(columns, int(inches_wide(figure) / 1.5)))  # narrower has no room for words
    rows = -(-len(counts) // columns)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    for spare in grid.ravel()[len(counts) :]:
        spare.set_axis_off()
    panels = list(grid.ravel()[: len(counts)])
    for ax, (name, count) in zip(panels, counts.items(), strict=True):
        _histogram(ax, count, edges, false_alarm)
        ax.set_title(name, fontsize="medium")
        without_box(ax)
    figure.supxlabel("rank among the guide's draws", fontsize="medium")
    figure.supylabel("ranks over uniform ones", fontsize="medium")
    return panels


def _histogram(
    ax: "Axes", count: NDArray[Any], edges: NDArray[np.int64], false_alarm: float
) -> None:
    from scipy.stats import binom  # takes a second to import

    sizes = np.diff(edges)
    shares, num_data = sizes / len(count), count.sum()
    heights = np.add.reduceat(count, edges[:-1]) / (num_data * shares)
    tail = false_alarm / len(sizes) / 2
    band = binom.ppf([[tail], [1 - tail]], num_data, shares) / (num_data * shares)
    lower, upper = (np.append(side, side[-1]) for side in band)
    look: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.5, "align": "edge"}
    ax.bar(edges[:-1], heights, width=sizes, color=GUIDE_COLOURS[5], **look)
    ax.fill_between(edges, lower, upper, step="post", color="0.2", alpha=0.25, linewidth=0)
    ax.axhline(1, color="0.25", linewidth=0.8, linestyle=":")
    ax.set_xlim(0, len(count))


def _edges(num_ranks: int, num_data: int) -> NDArray[np.int64]:
    """Edges of bins of equal size, if a good number of them divides the ranks, or nearly so."""
    most = int(np.clip(num_data // _DATA_PER_BIN, 2, min(_MOST_BINS, num_ranks)))
    divisors = [bins for bins in range(most, 1, -1) if num_ranks % bins == 0]
    # Half as many as would do is still a good number; fewer show no shape.
    bins = divisors[0] if divisors and 2 * divisors[0] >= most else most
    return np.round(np.linspace(0, num_ranks, bins + 1)).astype(np.int64)


def _counts(ranks: Mapping[str, Array], num_samples: int) -> dict[str, NDArray[Any]]:
    """How often each rank occurs, for each quantity."""
    if not ranks:
        raise ValueError("expected the ranks of at least one quantity, got an empty mapping")
    arrays = {name: as_numpy(values) for name, values in ranks.items()}
    sizes = {array.shape for array in arrays.values()}
    if len(sizes) != 1 or any(array.ndim != 1 or array.size == 0 for array in arrays.values()):
        raise ValueError(
            f"expected ranks of shape (data,), as many for each quantity, got {sorted(sizes)}"
        )
    for name, array in arrays.items():
        if array.min() < 0 or array.max() > num_samples:
            raise ValueError(
                f"expected ranks from 0 to num_samples={num_samples} for {name!r}, got "
                f"{array.min()} to {array.max()}"
            )
    return {name: np.bincount(array, minlength=num_samples + 1) for name, array in arrays.items()}
