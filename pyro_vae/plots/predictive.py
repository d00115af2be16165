"""Predictive checks: where a statistic of the data lies among those of replicated data."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from .drawing import (
    GUIDE_COLOURS,
    Array,
    Number,
    as_numpy,
    figure_or_new,
    inches_wide,
    with_minus,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_INCHES = (2.4, 2.0)  # of a panel
_NARROWEST = 1.7  # inches of a panel that still has room for its words
_DRAWS_PER_BIN = 15  # fewer make a histogram of noise
_MOST_BINS = 25


def plot_predictive_check(
    observed: Mapping[str, Number],
    replicated: Mapping[str, Float[Array, " draws"]],
    p_values: Mapping[str, Number] | None = None,
    *,
    figure: "Figure | SubFigure | None" = None,
) -> list["Axes"]:
    """Draws a histogram of each statistic of replicated data sets, and a line at the observed one.

    Each statistic has its own unit, which is that of its horizontal axis.

    Arguments:
        observed: Statistics of the observed data set, by name, as
            :attr:`pyro_vae.diagnostics.PredictiveCheck.observed_by_name`.
        replicated: Those of the replicated data sets, `(draws,)` each, under the same names.
        p_values: To be written beside the names.
        figure: Where to draw; a new pyplot figure by default.

    Returns:
        One axes for each statistic, in order.

    Raises:
        ValueError: If there is no statistic, names differ, or a number is not finite.

    Example:
        >>> from matplotlib.figure import Figure
        >>> observed, replicated = {"mean": 3.0}, {"mean": np.linspace(-1, 1, 100)}
        >>> (ax,) = plot_predictive_check(observed, replicated, {"mean": 0.02}, figure=Figure())
        >>> ax.get_title(), ax.lines[0].get_xdata()[0]
        ('mean (p = 0.02)', 3.0)
    """
    values, draws = _checked(observed, replicated)
    number = len(values)
    columns = min(number, 4)
    size = (0.6 + _INCHES[0] * columns, 0.7 + _INCHES[1] * -(-number // columns))
    figure = figure_or_new(figure, size)
    columns = max(1, min(columns, int(inches_wide(figure) / _NARROWEST)))
    grid = figure.subplots(-(-number // columns), columns, squeeze=False)
    for spare in grid.ravel()[number:]:
        spare.set_axis_off()
    panels = list(grid.ravel()[:number])
    for ax, (name, value) in zip(panels, values.items(), strict=True):
        _panel(ax, value, draws[name])
        p = "" if p_values is None else f"p = {float(as_numpy(p_values[name])):.2g}"
        # Long names take a line of their own; panels are narrow.
        gap = "\n" if len(name) > 12 else " "
        ax.set_title(f"{_broken(name)}{gap}({p})" if p else _broken(name), fontsize="small")
        without_box(ax)
    figure.supxlabel("statistic, in its own unit (line: observed data)", fontsize="small")
    figure.supylabel("replicated data sets", fontsize="small")
    return panels


def _panel(ax: "Axes", value: float, draws: NDArray[Any]) -> None:
    bins = int(np.clip(len(draws) / _DRAWS_PER_BIN, 5, _MOST_BINS))
    distinct = np.unique(draws)
    edges: Any = bins
    if len(distinct) <= bins:  # counts and ties: a bar each, not bins that split or join them
        width = np.diff(distinct).min() if len(distinct) > 1 else max(1e-3, abs(distinct[0]) / 20)
        middles = np.arange(distinct[0], distinct[-1] + width / 2, width)
        few = len(middles) <= _MOST_BINS
        edges = np.append(middles - width / 2, middles[-1] + width / 2) if few else bins
    look: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.4}
    ax.hist(draws, bins=edges, color=GUIDE_COLOURS[5], **look)
    ax.axvline(value, color="black", linewidth=1.8)
    ax.set_ylim(top=1.15 * ax.get_ylim()[1])  # room for the number
    ax.locator_params(axis="x", nbins=4)
    ax.tick_params(labelsize="small")
    ax.set_yticks([])
    text = with_minus(f"{value:.3g}")
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


def _broken(name: str) -> str:
    """A long name on two lines, at its bracket."""
    return name.replace(" (", "\n(")


def _checked(
    observed: Mapping[str, Number], replicated: Mapping[str, Array]
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    if not observed or sorted(observed) != sorted(replicated):
        raise ValueError(
            "expected at least one statistic, observed and replicated under the same names, got "
            f"{sorted(observed)} and {sorted(replicated)}"
        )
    values = {name: float(as_numpy(value)) for name, value in observed.items()}
    draws = {name: as_numpy(array).astype(float) for name, array in replicated.items()}
    for name, value in values.items():
        if not np.isfinite(value) or draws[name].ndim != 1 or not np.isfinite(draws[name]).all():
            raise ValueError(
                f"expected a finite number and replicated ones (draws,) of '{name}', got {value} "
                f"and the shape {draws[name].shape}"
            )
    return values, draws
