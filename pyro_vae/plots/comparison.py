"""Estimates of several guides side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..formatting import plus_minus, typeset
from .drawing import (
    Number,
    axes_or_new,
    estimates_of,
    handles,
    legend_above,
    style,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_comparison(
    rows: Mapping[str, Mapping[str, tuple[Number, Number]]], *, ax: "Axes | None" = None
) -> "Axes":
    r"""Draws one line a guide, with a dot and an error bar for each quantity, and the numbers.

    A guide that is far worse than the others sets the scale, and hides both the error bars and the
    differences among the rest: the numbers at the right still tell them. Bars are one standard
    error to each side.

    Arguments:
        rows: For each guide the quantities by name (as "ELBO" and "log p(y)"), each an
            :class:`~pyro_vae.Estimate` or another pair of value and standard error, in nats a
            datum. A guide may lack a quantity; an error may be nan and has no bar then.
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
    # Quantities share the line of their guide, spread over half the distance to the next.
    shifts = np.linspace(-0.25, 0.25, len(quantities)) if len(quantities) > 1 else np.zeros(1)
    for number, (quantity, shift) in enumerate(zip(quantities, shifts, strict=True)):
        places = [place + shift for place, row in enumerate(numbers.values()) if quantity in row]
        pairs = [row[quantity] for row in numbers.values() if quantity in row]
        _draw_estimates(ax, np.array(places), pairs, {"label": quantity, **style(number)})
    ax.set_yticks(range(len(numbers)), labels=list(numbers))
    ax.set(ylim=(len(numbers) - 0.5, -0.5), xlabel="nats a datum (± 1 standard error)")
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    legend_above(ax, handles(quantities))
    return without_box(ax)


def _draw_estimates(
    ax: "Axes",
    places: NDArray[Any],
    pairs: Sequence[tuple[float, float]],
    look: dict[str, Any],
) -> None:
    values, errors = np.array(pairs).T
    ax.errorbar(values, places, xerr=errors, linestyle="none", capsize=3, markersize=6, **look)
    note: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center"}
    for place, pair in zip(places, pairs, strict=True):
        ax.text(
            1.02, place, typeset(plus_minus(*pair)), color=look["color"], fontsize="small", **note
        )
