"""Plots of estimates: several guides side by side, parts of the inference gap, values per datum."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Real
from numpy.typing import NDArray

from ..formatting import count_of, plus_minus, typeset
from .drawing import (
    GUIDE_COLOURS,
    Array,
    Number,
    as_numpy,
    at_least_one,
    axes_or_new,
    estimates_of,
    handles,
    legend_above,
    limit_to_most,
    style,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TICKS = 4  # labels with many digits must not overlap


def plot_comparison(
    rows: Mapping[str, Mapping[str, tuple[Number, Number]]], *, ax: "Axes | None" = None
) -> "Axes":
    r"""Draws a dot with an error bar for each quantity of each guide, and writes the numbers.

    A guide that is far worse than the others sets the scale. The error bars of the other guides,
    and the differences between these guides, are then too small to see; read the numbers at the
    right instead. Bars extend one standard error to each side.

    Arguments:
        rows: For each guide the quantities by name (such as "ELBO" and "log p(y)"), each an
            :class:`~pyro_vae.Estimate` or another pair of value and standard error, in nats per
            datum. A guide may lack a quantity. If an error is nan, no bar is drawn.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes, guides from top to bottom.

    Raises:
        ValueError: If there is no guide, or a value or error is not a single number.

    Example:
        >>> from matplotlib.figure import Figure
        >>> rows = {"amortized": {"ELBO": (21.3, 0.2), "log p(y)": (22.8, 0.2)}}
        >>> ax = plot_comparison(rows, ax=Figure().subplots())
        >>> [text.get_text() for text in ax.texts]
        ['21.30 ± 0.20', '22.80 ± 0.20']
    """
    numbers, quantities = estimates_of(rows, "quantity")
    ax = axes_or_new(ax, (6.4, 1.2 + 0.3 * len(numbers) * len(quantities)))
    # The quantities of a guide are spread over half the distance between guides.
    shifts = np.linspace(-0.25, 0.25, len(quantities)) if len(quantities) > 1 else np.zeros(1)
    for number, (quantity, shift) in enumerate(zip(quantities, shifts, strict=True)):
        guides = enumerate(numbers.values())
        pairs = {place + shift: guide[quantity] for place, guide in guides if quantity in guide}
        places, (values, errors) = np.array(list(pairs)), np.array(list(pairs.values())).T
        look: dict[str, Any] = {"linestyle": "none", "capsize": 3, "markersize": 6, **style(number)}
        ax.errorbar(values, places, xerr=errors, label=quantity, **look)
        for place, pair in pairs.items():
            _write_beside(ax, place, plus_minus(*pair), look["color"])
    ax.set_yticks(range(len(numbers)), labels=list(numbers))
    ax.set(ylim=(len(numbers) - 0.5, -0.5), xlabel="nats per datum (± 1 standard error)")
    ax.locator_params(axis="x", nbins=_MOST_TICKS)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    legend_above(ax, handles(quantities))
    return without_box(ax)


def _write_beside(ax: "Axes", place: float | int, text: str, colour: str | None = None) -> None:
    """Writes a text to the right of the axes, at the given height."""
    look: dict[str, Any] = {"va": "center", "color": colour, "fontsize": "small"}
    ax.text(1.02, place, typeset(text), transform=ax.get_yaxis_transform(), **look)


# Blue, light orange, green, pink: neighbours differ in grey print, too, and by their hatching.
_COLOURS = tuple(GUIDE_COLOURS[place] for place in (0, 4, 2, 3))
_HATCHES = ("", "///", "...", "\\\\\\")
_HEIGHT = 0.6  # height of a bar, in units of the distance between guides


def plot_gaps(
    parts: Mapping[str, Mapping[str, tuple[Number, Number]]], *, ax: "Axes | None" = None
) -> "Axes":
    r"""Draws the parts of the inference gap end to end, one bar per guide.

    Each part starts where the previous part ends. The error bar at the end of a part extends one
    standard error of this part to each side. The numbers are at the right. A negative part extends
    back to the left. It means that the best q was not found (:func:`pyro_vae.inference_gap`).

    Compare the gaps of guides only if the guides belong to the same model. A model that was trained
    with a poor guide adapts to this guide. For example, if the guide has the same q(z) for all
    data, the gap vanishes, because the decoder learns to ignore z. But log p(y) is lower than that
    of a model trained with a better guide.

    Arguments:
        parts: For each guide the parts by name, in order (such as "approximation" and
            "amortization"), each an :class:`~pyro_vae.Estimate` or another pair of value and
            standard error, in nats per datum. If a number is not finite, its bar is not drawn.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes, guides from top to bottom.

    Raises:
        ValueError: If there is no guide, or a value or error is not a single number.

    Example:
        >>> from matplotlib.figure import Figure
        >>> parts = {"encoder": {"approximation": (0.13, 0.01), "amortization": (0.06, 0.01)}}
        >>> ax = plot_gaps(parts, ax=Figure().subplots())
        >>> ax.texts[0].get_text()
        '0.130 ± 0.010 + 0.060 ± 0.010'
    """
    numbers, names = estimates_of(parts, "gap")
    ax = axes_or_new(ax, (6.4, 1.2 + 0.45 * len(numbers)))
    starts = np.zeros(len(numbers))
    bar: dict[str, Any] = {"linestyle": "none", "ecolor": "black", "capsize": 3, "elinewidth": 1.2}
    for number, name in enumerate(names):
        pairs = np.array([row.get(name, (0.0, 0.0)) for row in numbers.values()])
        finite = np.isfinite(pairs) & np.isfinite(pairs[:, :1])
        pairs[~finite] = 0.0  # no bar, while the other parts remain visible
        look: dict[str, Any] = {"label": name, "edgecolor": "white", "linewidth": 0.0}
        look["color"] = _COLOURS[number % len(_COLOURS)]
        look["hatch"] = _HATCHES[number % len(_HATCHES)]
        places, ends = np.arange(len(numbers)), starts + pairs[:, 0]
        ax.barh(places, pairs[:, 0], _HEIGHT, left=starts, **look)
        ax.errorbar(ends, places, xerr=pairs[:, 1], **bar)
        starts = ends
    for place, row in enumerate(numbers.values()):
        _write_beside(ax, place, " + ".join(plus_minus(*pair) for pair in row.values()))
    ax.set_yticks(range(len(numbers)), labels=list(numbers))
    ax.set(ylim=(len(numbers) - 0.5, -0.5), xlabel="gap (nats per datum, ± 1 standard error)")
    ax.axvline(0.0, color="0.25", linewidth=0.8)
    legend_above(ax)
    return without_box(ax)


def plot_gap_shares(gaps: Mapping[str, Real[Array, "..."]], *, ax: "Axes | None" = None) -> "Axes":
    r"""Draws which share of the total gap comes from the data with the largest gaps (Lorenz curve).

    .. math:: \text{share}(m) = \frac{\sum_{n \le m} g_{(n)}}{\sum_n g_n}, \qquad
        g_{(1)} \ge g_{(2)} \ge \dots

    Here :math:`g_{(n)}` is the n-th largest gap. The dotted line shows the case in which all data
    have the same gap. The steeper a curve starts, the fewer data account for the total. If gaps are
    no larger than their Monte Carlo errors, noise decides the order of the data, and the curve is
    too steep. Gaps below zero make the curve fall at the end. If the total gap of a guide is not
    positive, shares are not defined, and no curve is drawn for this guide.

    Arguments:
        gaps: The gaps of each guide, `(data,)`, in nats, by the guide's name.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes. Its first lines belong to the guides, in order.

    Raises:
        ValueError: If there is no guide, or the gaps are not one finite number per datum.

    References:
        | Methods of Measuring the Concentration of Wealth (Lorenz, 1905)
        | https://doi.org/10.2307/2276207

    Example:
        >>> from matplotlib.figure import Figure
        >>> gaps = {"encoder": np.array([0.1, 0.6, 0.1, 0.2])}
        >>> ax = plot_gap_shares(gaps, ax=Figure().subplots())
        >>> ax.lines[0].get_ydata().round(1).tolist()
        [0.0, 60.0, 80.0, 90.0, 100.0]
    """
    curves = {name: _shares(name, values) for name, values in at_least_one(gaps).items()}
    ax = axes_or_new(ax, (6.4, 4.0))
    for number, (name, curve) in enumerate(curves.items()):
        share = np.linspace(0, 100, len(curve))
        every = max(1, len(curve) // 8)  # a few markers, to tell lines apart in grey
        label = name if len(curve) else f"{name}: no gap"
        ax.plot(share, curve, markevery=every, markersize=5, label=label, **style(number))
    ax.plot([0, 100], [0, 100], color="0.25", linestyle=":", label="the same for every datum")
    ax.set(xlabel="data, largest gap first (%)", ylabel="share of the gap (%)")
    ax.set(xlim=(0, 100))
    ax.set_ylim(bottom=0)
    legend_above(ax)
    return without_box(ax)


def _shares(name: str, values: Array) -> NDArray[Any]:
    """Returns cumulative shares in percent, `(data + 1,)`; empty if the total is not positive."""
    gaps = as_numpy(values)
    if gaps.ndim != 1 or len(gaps) == 0 or not np.isfinite(gaps).all():
        raise ValueError(
            f"the gaps of {name!r} must be finite, with shape (data,); got shape {gaps.shape} with "
            f"{count_of(int((~np.isfinite(gaps)).sum()), 'nan or infinite entry')}: leave "
            "these out"
        )
    if gaps.sum() <= 0:
        return np.zeros(0)
    cumulative: NDArray[Any] = np.append(0.0, np.sort(gaps)[::-1].cumsum())
    return 100 * cumulative / gaps.sum()


def plot_per_datum(
    value: Real[Array, "..."],
    error: Real[Array, "..."],
    reliable: Bool[Array, " data"],
    *,
    name: str = "nats",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws values with errors, lowest first; red crosses mark values that cannot be trusted.

    Arguments:
        value: One value per datum.
        error: Standard error of each value; if it is nan, no bar is drawn.
        reliable: Whether the value of each datum can be trusted.
        name: Name of the quantity, with its unit.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no datum, or values, errors and `reliable` differ in number.

    Example:
        >>> from matplotlib.figure import Figure
        >>> trusted = np.array([True, False])
        >>> ax = plot_per_datum(np.ones(2), np.ones(2), trusted, ax=Figure().subplots())
        >>> ax.get_legend_handles_labels()[1]
        ['can be trusted: 1', 'cannot be trusted: 1']
    """
    values, errors, fine = (as_numpy(part) for part in (value, error, reliable))
    if not len(values) or not values.shape == errors.shape == fine.shape == (len(values),):
        raise ValueError(
            "`value`, `error` and `reliable` must have the same shape (data,), with at least one "
            f"datum; got {values.shape}, {errors.shape} and {fine.shape}: pass the "
            "numbers of one result"
        )
    ax = axes_or_new(ax, (6.4, 3.6))
    order = values.argsort(kind="stable")
    places = np.arange(len(values))
    looks = (
        (fine[order], "can be trusted", GUIDE_COLOURS[0], "o"),
        (~fine[order], "cannot be trusted", GUIDE_COLOURS[1], "x"),
    )
    for some, label, colour, marker in looks:
        if some.any():
            rows = order[some]
            bars = np.nan_to_num(errors[rows], nan=0.0, posinf=0.0)
            look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none"}
            look |= {"label": f"{label}: {len(rows)}", "markersize": 4, "elinewidth": 0.8}
            ax.errorbar(places[some], values[rows], yerr=bars, **look)
    beyond = limit_to_most(ax, values[np.isfinite(values)]) if np.isfinite(values).any() else 0
    more = f"; {count_of(beyond, 'datum')} beyond the axis" if beyond else ""
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel=f"data, lowest first{more}", ylabel=f"{name} (± 1 standard error)")
    ax.legend(frameon=False, fontsize="small")
    return without_box(ax)
