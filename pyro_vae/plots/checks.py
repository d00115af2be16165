"""Plots of checks: Pareto k per datum, ranks of simulation-based calibration, predictive checks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Integer, Real
from numpy.typing import NDArray

from ..formatting import typeset
from ..stats import rank_band
from .drawing import (
    GUIDE_COLOURS,
    Array,
    Number,
    as_numpy,
    at_least_one,
    axes_or_new,
    finite_span,
    legend_above,
    literal,
    panels,
    style,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

UNTRUSTED = 0.7  # above this k, no practical number of draws suffices (Vehtari et al., 2024)


def plot_pareto_k(
    k: Mapping[str, Real[Array, "..."]],
    *,
    threshold: float = UNTRUSTED,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the Pareto k-hat of each datum's importance weights against the datum's position.

    If the k of a datum is above the threshold, the estimated marginal likelihood of this datum
    cannot be trusted, however small the standard error. The legend counts such data. Data with
    :math:`\hat k = -\infty` (all weights are equal: the guide is the posterior) lie on a separate
    line at the bottom, and data with :math:`\hat k = \infty` (too few draws for a tail) lie on a
    line at the top. Data with k = nan are not drawn, but the legend counts them.

    Arguments:
        k: The k-hats of each guide, `(data,)`, by the guide's name.
        threshold: Value of k at which the dotted line is drawn.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes. Its first lines belong to the guides, in order.

    Raises:
        ValueError: If there is no guide, or k is not one number per datum.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = plot_pareto_k({"global": np.array([0.1, 0.9, np.nan])}, ax=Figure().subplots())
        >>> ax.lines[0].get_label()
        'global: 1/3 > 0.7, 1 nan'
    """
    hats = {name: _hats(name, values) for name, values in at_least_one(k).items()}
    low, high = finite_span([*hats.values(), np.array([0.0, threshold])])
    rim = 0.15 * (high - low)  # distance from the finite values at which infinite ones are drawn
    ax = axes_or_new(ax, (6.4, 4.0))
    for number, (name, values) in enumerate(hats.items()):
        shown = np.clip(values, low - rim, high + rim)  # moves infinite values only
        size = float(np.clip(60 / max(len(values), 1) ** 0.5, 2, 5))
        label = f"{name}: {int((values > threshold).sum())}/{len(values)} > {threshold:g}"
        missing = int(np.isnan(values).sum())
        label += f", {missing} nan" if missing else ""
        ax.plot(shown, linestyle="none", markersize=size, label=label, **style(number))
    ax.axhline(threshold, color="0.25", linestyle=":", label=f"threshold {threshold:g}")
    ax.set(xlabel="datum", ylabel=r"Pareto $\hat k$")
    ax.locator_params(axis="x", integer=True)
    _mark_infinities(ax, np.concatenate(list(hats.values())), (low, high), rim)
    legend_above(ax)
    return without_box(ax)


def _hats(name: str, values: Array) -> NDArray[Any]:
    """Returns the k-hats of a guide as an array, after checking its shape."""
    hats = as_numpy(values)
    if hats.ndim != 1:
        raise ValueError(
            f"the k-hats of {name!r} must have the shape (data,); got {hats.shape}: pass one k-hat "
            "per datum"
        )
    return hats


def _mark_infinities(
    ax: "Axes", values: NDArray[Any], span: tuple[float, float], rim: float
) -> None:
    """Makes room on the vertical axis for infinite values, and labels them in words.

    `span` has the lowest and the highest finite value. If no value is infinite, the axis keeps its
    ordinary ticks.
    """
    low, high = span
    note: dict[str, Any] = {"fontsize": "small", "color": "0.25"}
    note["transform"] = ax.get_yaxis_transform()
    bottom, top, ticks = low - rim / 2, high + rim / 2, {}
    if np.isneginf(values).any():
        bottom, ticks[r"$-\infty$"] = low - 2.2 * rim, low - rim
        ax.text(0.01, low - 1.3 * rim, r"$-\infty$: all weights equal", va="top", **note)
    if np.isposinf(values).any():
        top, ticks[r"$\infty$"] = high + 2.2 * rim, high + rim
        ax.text(0.01, high + 1.3 * rim, r"$\infty$: no tail to fit", va="bottom", **note)
    if ticks:
        inside = {
            typeset(f"{tick + 0.0:.4g}"): tick for tick in ax.get_yticks() if low <= tick <= high
        }
        ax.set_yticks([*ticks.values(), *inside.values()], labels=[*ticks, *inside])
    ax.set_ylim(bottom, top)


_MOST_RANK_BINS = 20
_RANK_PANEL = (2.1, 2.1)  # inches
_DATA_PER_BIN = 10  # with fewer data per bin, a histogram shows only noise


def plot_rank_ecdf(
    ranks: Mapping[str, Integer[Array, " data"]],
    num_samples: int,
    *,
    false_alarm: float = 0.05,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the ECDF of the ranks minus the ECDF of uniform ranks, with a band for uniform ranks.

    A line that rises above the band and then falls below the band means that the draws are too
    narrow. A line that first falls below and then rises above the band means that the draws are too
    wide. A line above the band throughout has too many low ranks: the draws are too high. A line
    below the band throughout means that the draws are too low. If ranks are uniform, their line
    stays inside the band with probability 1 - `false_alarm`. This holds for each line by itself,
    not for all lines jointly.

    Arguments:
        ranks: The ranks of each quantity, `(data,)`, from 0 to `num_samples`, by the quantity's
            name, as in :attr:`pyro_vae.diagnostics.Calibration.by_name`.
        num_samples: Draws of the guide per datum.
        false_alarm: Probability that uniform ranks leave the band.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes. Its first lines belong to the quantities, in order.

    Raises:
        ValueError: If there is no quantity, if a rank is not in 0 to `num_samples`, or if the
            quantities differ in their number of data.

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
        # Markers at different places on each line show which lines lie on top of each other.
        places = (number * every // max(1, len(counts)), every)
        line: dict[str, Any] = {"markevery": places, "markersize": 5, "linewidth": 1.2}
        ax.plot(shares, difference, label=name, **line, **style(number))
    lower, upper = (np.concatenate([[0], side / num_data - shares, [0]]) for side in band)
    label = f"{100 * (1 - false_alarm):g}% band of uniform ranks"
    ends = np.concatenate([[0], shares, [1]])
    ax.fill_between(ends, lower, upper, color="0.88", zorder=0, label=label)
    ax.axhline(0, color="0.25", linewidth=0.8, linestyle=":")
    ax.set(xlabel="rank as a share of the draws", ylabel="ECDF of ranks minus uniform")
    ax.set_xlim(0, 1)
    legend_above(ax)
    return without_box(ax)


def plot_rank_histograms(
    ranks: Mapping[str, Integer[Array, " data"]],
    num_samples: int,
    *,
    false_alarm: float = 0.05,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    r"""Draws a histogram of the ranks of each quantity, relative to uniform ranks.

    If the draws are too narrow, the bars at both ends are high. If the draws are too wide, the bars
    in the middle are high. If the draws are too high, the bars at the left are high. The band holds
    for all bars of a panel jointly (Bonferroni). If no suitable number of bins divides the number
    of possible ranks, `num_samples + 1`, the bins differ in width by one rank. The heights and the
    band allow for this difference.

    Arguments:
        ranks: The ranks of each quantity, `(data,)`, from 0 to `num_samples`, by the quantity's
            name.
        num_samples: Draws of the guide per datum.
        false_alarm: Probability, for each panel, that at least one bar of uniform ranks leaves the
            band.
        figure: Where to draw; a new pyplot figure by default.

    Returns:
        The axes, one for each quantity, in order, `(quantities,)`.

    Raises:
        ValueError: If there is no quantity, if a rank is not in 0 to `num_samples`, or if the
            quantities differ in their number of data.

    Example:
        >>> from matplotlib.figure import Figure
        >>> (ax,) = plot_rank_histograms({"z": np.arange(100) % 20}, 19, figure=Figure())
        >>> {f"{bar.get_height():.3f}" for bar in ax.patches}
        {'1.000'}
    """
    counts = _counts(ranks, num_samples)
    num_data = int(next(iter(counts.values())).sum())
    edges = _edges(num_samples + 1, num_data)
    axes = panels(figure, len(counts), _RANK_PANEL, narrowest=1.5, sharex=True, sharey=True)
    for ax, (name, count) in zip(axes, counts.items(), strict=True):
        _histogram(ax, count, edges, false_alarm)
        ax.set_title(name, fontsize="medium")
        without_box(ax)
    axes[0].figure.supxlabel("rank among the guide's draws", fontsize="medium")
    axes[0].figure.supylabel("ranks over uniform ones", fontsize="medium")
    return axes


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
    """Returns edges for the bins of a histogram of ranks; widths differ by one rank at most."""
    most = int(np.clip(num_data // _DATA_PER_BIN, 2, min(_MOST_RANK_BINS, num_ranks)))
    # Bins are equal if the number of ranks has a divisor of at least half of `most`.
    divisors = [bins for bins in range(most, 1, -1) if num_ranks % bins == 0 and 2 * bins >= most]
    bins = divisors[0] if divisors else most
    return np.round(np.linspace(0, num_ranks, bins + 1)).astype(np.int64)


def _counts(ranks: Mapping[str, Array], num_samples: int) -> dict[str, NDArray[Any]]:
    """Counts how often each rank occurs, for each quantity."""
    if not ranks:
        raise ValueError("`ranks` must contain at least one quantity; got an empty mapping")
    arrays = {name: as_numpy(values) for name, values in ranks.items()}
    sizes = {array.shape for array in arrays.values()}
    if len(sizes) != 1 or any(array.ndim != 1 or array.size == 0 for array in arrays.values()):
        raise ValueError(
            "`ranks` must have the same shape (data,) for all quantities; got the shapes "
            f"{sorted(sizes)}: pass ranks of the same data"
        )
    for name, array in arrays.items():
        if array.min() < 0 or array.max() > num_samples:
            raise ValueError(
                f"the ranks must be from 0 to num_samples={num_samples} for {name!r}; got "
                f"{array.min()} to {array.max()}: pass the `num_samples` with which these ranks "
                "were computed"
            )
    return {name: np.bincount(array, minlength=num_samples + 1) for name, array in arrays.items()}


_CHECK_PANEL = (2.4, 2.0)  # inches
_NARROWEST = 1.7  # inches: narrower panels have no room for their text
_DRAWS_PER_BIN = 15  # with fewer draws per bin, a histogram shows only noise
_MOST_BINS = 25


def plot_predictive_check(
    observed: Mapping[str, Number],
    replicated: Mapping[str, Float[Array, " draws"]],
    p_values: Mapping[str, Number] | None = None,
    *,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Draws a histogram of each statistic of replicated data, and a line at the observed value.

    Each horizontal axis has the unit of its statistic.

    Arguments:
        observed: Statistics of the observed data set, by name, as in
            :attr:`pyro_vae.diagnostics.PredictiveCheck.observed_by_name`.
        replicated: Statistics of the replicated data sets, `(draws,)` each, under the same names.
        p_values: P-values under the same names, to be written next to the names.
        figure: Where to draw; a new pyplot figure by default.

    Returns:
        The axes, one for each statistic, in order, `(statistics,)`.

    Raises:
        ValueError: If there is no statistic, names differ, or a number is not finite.

    Example:
        >>> from matplotlib.figure import Figure
        >>> observed, replicated = {"mean": 3.0}, {"mean": np.linspace(-1, 1, 100)}
        >>> (ax,) = plot_predictive_check(observed, replicated, {"mean": 0.02}, figure=Figure())
        >>> ax.get_title(), ax.lines[0].get_xdata()[0]
        ('mean (p = 0.02)', 3.0)
    """
    values, draws = _as_arrays(observed, replicated)
    axes = panels(figure, len(values), _CHECK_PANEL, narrowest=_NARROWEST)
    for ax, (name, value) in zip(axes, values.items(), strict=True):
        _panel(ax, value, draws[name])
        title = literal(name.replace(" (", "\n("))
        if p_values is not None:
            gap = "\n" if len(name) > 12 else " "  # panels are narrow
            title += f"{gap}(p = {float(as_numpy(p_values[name])):.2g})"
        ax.set_title(title, fontsize="small")
        without_box(ax)
    axes[0].figure.supxlabel("statistic, in its own unit (line: observed data)", fontsize="small")
    axes[0].figure.supylabel("replicated data sets", fontsize="small")
    return axes


def _panel(ax: "Axes", value: float, draws: NDArray[Any]) -> None:
    """Draws a histogram of the replicated values, and a line with the observed value."""
    bins = int(np.clip(len(draws) / _DRAWS_PER_BIN, 5, _MOST_BINS))
    distinct = np.unique(draws)
    edges: Any = bins
    if len(distinct) <= bins:  # such as counts: a bar per value, so that no bar has half a value
        width = np.diff(distinct).min() if len(distinct) > 1 else max(1e-3, abs(distinct[0]) / 20)
        number = 1 + np.rint((distinct[-1] - distinct[0]) / width)  # huge if two values nearly tie
        if number <= _MOST_BINS:
            edges = distinct[0] + width * (np.arange(number + 1) - 0.5)
    look: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.4}
    ax.hist(draws, bins=edges, color=GUIDE_COLOURS[5], **look)
    ax.axvline(value, color="black", linewidth=1.8)
    ax.set_ylim(top=1.15 * ax.get_ylim()[1])  # room for the number
    ax.locator_params(axis="x", nbins=4)
    ax.tick_params(labelsize="small")
    ax.set_yticks([])
    text = typeset(f"{value:.3g}")
    right = value > (min(value, draws.min()) + max(value, draws.max())) / 2
    ax.annotate(
        text,
        (value, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if right else 3, -2),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        fontsize="small",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
    )


def _as_arrays(
    observed: Mapping[str, Number], replicated: Mapping[str, Array]
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """Checks the statistics; returns observed ones as floats, and replicated ones as arrays."""
    if not observed or sorted(observed) != sorted(replicated):
        raise ValueError(
            "`observed` and `replicated` must have the same names, at least one; got "
            f"{sorted(observed)} and {sorted(replicated)}"
        )
    values = {name: float(as_numpy(value)) for name, value in observed.items()}
    draws = {name: as_numpy(array).astype(float) for name, array in replicated.items()}
    for name, value in values.items():
        if not np.isfinite(value) or draws[name].ndim != 1 or not np.isfinite(draws[name]).all():
            raise ValueError(
                f"the statistic '{name}' must have a finite observed value and finite replicated "
                f"values of shape (draws,); got {value} and the shape {draws[name].shape}"
            )
    return values, draws
