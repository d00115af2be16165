"""Numbers per datum with their errors."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Real

from .drawing import GUIDE_COLOURS, Array, as_numpy, axes_or_new, without_box

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_per_datum(
    value: Real[Array, "..."],
    error: Real[Array, "..."],
    reliable: Bool[Array, " data"],
    *,
    name: str = "nats",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws values with errors, lowest first; data that cannot be trusted are red crosses.

    Arguments:
        value: One per datum.
        error: Its standard error, which may be nan and has no bar then.
        reliable: Which can be trusted.
        name: What the values are, with their unit.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no datum, or not one number, error and verdict for each.

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
            "expected one value, one error and one verdict for each of at least one datum, got the "
            f"shapes {values.shape}, {errors.shape} and {fine.shape}"
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
    ax.set(xlabel="data, lowest first", ylabel=f"{name} (± 1 standard error)")
    ax.legend(frameon=False, fontsize="small")
    return without_box(ax)
