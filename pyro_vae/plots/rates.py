"""Distortion against rate, with what bounds both."""

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .drawing import (
    Number,
    as_numpy,
    at_least_one,
    axes_or_new,
    handles,
    legend_above,
    listed,
    style,
    with_minus,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARGIN = 0.08  # of the span, around the points
_BELOW = 0.16  # of the span, for the betas and the numbers of the lines
_SAME = 0.035  # of the span: points closer than that share a label
_LINES = 8  # of equal ELBO, about


class _Points(NamedTuple):
    """One curve, `(betas,)` each."""

    rate: NDArray[Any]
    distortion: NDArray[Any]
    errors: tuple[NDArray[Any], NDArray[Any]]


def plot_rate_distortion(
    betas: Number,
    curves: Mapping[str, tuple[tuple[Number, Number], tuple[Number, Number]]],
    *,
    information: tuple[Number, Number] | None = None,
    entropy: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws distortion against rate, a point for each beta, over lines of equal ELBO.

    Lines of slope -1 have one ELBO. At an optimum the curve has the slope :math:`-\beta`: it
    touches the line of the highest ELBO at :math:`\beta = 1`. With the information each point of
    the first curve is joined to it, at its left: by :math:`H - D \le I \le R` it lies between the
    point and the shaded region, which no model and guide can reach.

    Arguments:
        betas: The weights of the rate, `(betas,)`.
        curves: By name (as "training data" and "held out"), rate and distortion, each an
            :class:`~pyro_vae.Estimate` or another pair of values and errors, `(betas,)`, in nats a
            datum. Bars are one error to each side. The betas are written beside the first.
        information: That of the first curve, values and errors.
        entropy: That of the data of the first curve, in nats a datum, if known. The region that
            it forbids is drawn where it is within the axes.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes. Its containers are the curves, in order.

    Raises:
        ValueError: If there is no curve, or one has not a number for each beta.

    Example:
        >>> from matplotlib.figure import Figure
        >>> none = np.zeros(3)
        >>> rate, distortion = (np.array([6.0, 3.0, 0.0]), none), (np.array([1.0, 3.0, 9.0]), none)
        >>> curves = {"training data": (rate, distortion)}
        >>> ax = plot_rate_distortion(np.array([0.5, 1, 4]), curves, ax=Figure().subplots())
        >>> [text.get_text() for text in ax.texts][:3]
        ['β = 0.5', '1', '4']
    """
    weights = np.atleast_1d(as_numpy(betas)).astype(float)
    points = {name: _points(name, curve, weights) for name, curve in at_least_one(curves).items()}
    ax = axes_or_new(ax, (6.4, 4.4))
    first = next(iter(points.values()))
    between = None if information is None else _column("information", information, weights)[0]
    _set_limits(ax, points, between)
    entries = handles(points)
    for number, curve in enumerate(points.values()):
        xerr, yerr = curve.errors
        look = {"linewidth": 1.2, "markersize": 5, "zorder": 3, **style(number)}
        ax.errorbar(curve.rate, curve.distortion, xerr=xerr, yerr=yerr, **look)
    if between is not None:
        entries += _draw_information(ax, between, first)
    if entropy is not None and entropy > ax.get_xlim()[0] + ax.get_ylim()[0]:
        entries += _shade(ax, entropy)
    _write_betas(ax, weights, first)
    _draw_lines(ax, -np.inf if entropy is None else entropy)
    ax.set(xlabel="rate (nats a datum)", ylabel="distortion (nats a datum)")
    legend_above(ax, entries)
    return without_box(ax)


def _points(name: str, curve: tuple[Any, Any], weights: NDArray[Any]) -> _Points:
    (rate, rate_error), (distortion, error) = (_column(name, pair, weights) for pair in curve)
    return _Points(rate, distortion, (rate_error, error))


def _column(name: str, pair: tuple[Number, Number], weights: NDArray[Any]) -> NDArray[Any]:
    """Values and errors, `(2, betas)`."""
    columns = [as_numpy(part) for part in pair]
    if len(columns) != 2 or any(column.shape != weights.shape for column in columns):
        raise ValueError(
            f"expected values and errors of {name!r} for each of the {weights.size} betas, got "
            f"the shapes {listed([column.shape for column in columns])}"
        )
    return np.stack(columns)


def _set_limits(ax: "Axes", points: Mapping[str, _Points], between: NDArray[Any] | None) -> None:
    """Fixed before the rest is drawn, since lines and labels must not widen them."""
    rates = [points.rate for points in points.values()]
    horizontal = [*rates, *([] if between is None else [between]), np.zeros(1)]
    vertical = [points.distortion for points in points.values()]
    sides = ((horizontal, _MARGIN, ax.set_xlim), (vertical, _BELOW, ax.set_ylim))
    for values, before, set_limits in sides:
        low, high = float(np.min(np.concatenate(values))), float(np.max(np.concatenate(values)))
        span = (high - low) or 1.0
        set_limits(low - before * span, high + _MARGIN * span)


def _draw_information(ax: "Axes", between: NDArray[Any], first: _Points) -> list[Any]:
    """Ticks for the information, joined to the rates at the same distortion."""
    thin: dict[str, Any] = {"color": "0.35", "linewidth": 0.8, "zorder": 2}
    ax.hlines(first.distortion, between, first.rate, label="_information", **thin)
    (ticks,) = ax.plot(
        between,
        first.distortion,
        linestyle="none",
        marker="|",
        markersize=9,
        color="0.35",
        label="information",
    )
    return [ticks]


def _shade(ax: "Axes", entropy: float) -> list[Any]:
    """What cannot be: distortion + rate below the entropy."""
    limits = np.array(ax.get_xlim())
    bottom = min(ax.get_ylim()[0], float((entropy - limits).min()))
    label = f"below H = {entropy:.2f}: cannot be"
    edge: dict[str, Any] = {"facecolor": "0.88", "edgecolor": "0.5", "hatch": "///"}
    return [ax.fill_between(limits, entropy - limits, bottom, linewidth=0, label=label, **edge)]


def _write_betas(ax: "Axes", weights: NDArray[Any], points: _Points) -> None:
    """Beta below its point; points on top of one another share a text."""
    places = np.stack([points.rate, points.distortion], axis=1)
    spans = np.array([np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())])
    groups = [[0]]
    for before, number in pairwise(range(len(places))):
        near = (np.abs(places[number] - places[groups[-1][0]]) < _SAME * spans).all()
        groups[-1].append(number) if near and before in groups[-1] else groups.append([number])
    look: dict[str, Any] = {"xytext": (-2, -5), "textcoords": "offset points", "ha": "right"}
    look |= {"va": "top", "fontsize": "small", "zorder": 4}
    look["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
    for group in groups:
        ends = dict.fromkeys([f"{weights[group[0]]:g}", f"{weights[group[-1]]:g}"])
        text = "\N{EN DASH}".join(ends)
        ax.annotate(text if group[0] else f"β = {text}", tuple(places[group[0]]), **look)


def _draw_lines(ax: "Axes", floor: float) -> None:
    """Lines of equal ELBO, each with its number where it leaves the axes, at the right or below.

    None where distortion and rate would be below the floor.
    """
    from matplotlib.ticker import MaxNLocator

    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    sums = np.asarray(MaxNLocator(_LINES).tick_values(left + bottom, right + top))
    note: dict[str, Any] = {"fontsize": "x-small", "color": "0.35", "ha": "right", "va": "bottom"}
    for total in sums[sums > floor].tolist():
        ax.plot([left, right], [total - left, total - right], color="0.75", linewidth=0.7, zorder=1)
        x = min(right, total - bottom)
        if left + 0.1 * (right - left) < x and total - x < top - 0.05 * (top - bottom):
            text = with_minus(f"ELBO {-total:g}")
            ax.text(x, total - x, text, clip_on=True, **note)
