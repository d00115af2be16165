"""Figures of tables: each column has its own axis, with its name and its unit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from ..data import Categories, Column, Columns, Positive, Time
from ..formatting import typeset
from .drawing import (
    GUIDE_COLOURS,
    Array,
    as_numpy,
    axes_or_new,
    figure_or_new,
    legend_outside,
    limit_to_most,
    literal,
    log_ticks,
    panels,
    without_box,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_FULL = 2.0  # sd: larger effects have the same colour, so that smaller effects remain visible
_MOST_LATENTS, _MOST_COLUMNS = 12, 24  # more cannot be read in one figure
_MOST_ROWS = 60  # number of intervals side by side
_MOST_DATES = 5  # number of ticks on an axis of dates
_MOST_NAMES = 12  # number of categories that can all be labelled
_ACROSS = 2  # panels side by side; more cannot be read on a phone


def plot_effects(
    effect: Float[Array, "latents columns"],
    latents: Sequence[str],
    columns: Sequence[str],
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws how much each latent moves each column, as a heat map.

    Arguments:
        effect: Change of each column over the range of each latent, `(latents, columns)`, in
            standard deviations of the column or in probability.
        latents: Names of the latents, the most informative first.
        columns: Names of the columns.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If names and effects differ in number.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = plot_effects(np.eye(2), ["z0", "z1"], ["a", "b"], ax=Figure().subplots())
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['z0', 'z1']
    """
    matrix = as_numpy(effect).astype(float)
    if matrix.shape != (len(latents), len(columns)):
        raise ValueError(
            f"`effect` must have the shape ({len(latents)}, {len(columns)}), one row per latent "
            f"and one column per column of the table; got {matrix.shape}"
        )
    shown = matrix[:_MOST_LATENTS, :_MOST_COLUMNS]
    size = (2.8 + 0.42 * shown.shape[1], 1.6 + 0.35 * shown.shape[0])
    ax = axes_or_new(ax, size, layout="compressed")
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-_FULL, vmax=_FULL, aspect="auto")
    ax.spines[:].set_visible(False)
    ax.set_yticks(np.arange(len(shown)), latents[:_MOST_LATENTS], fontsize="small")
    names = list(map(literal, columns[:_MOST_COLUMNS]))
    ax.set_xticks(np.arange(len(names)), names, rotation=45, ha="right", fontsize="small")
    for (latent, column), value in np.ndenumerate(shown):
        colour = "white" if abs(value) > 0.7 * _FULL else "black" if abs(value) >= 0.2 else "0.6"
        plain = f"{round(value, 1) + 0.0:+.{int(abs(value) < 10)}f}"
        text = typeset(plain if abs(value) < 1000 else f"{value:+.0e}")  # fits into its cell
        place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "x-small"}
        ax.text(column, latent, text, color=colour, **place)
    bar = ax.figure.colorbar(image, ax=ax, extend="both", shrink=0.9)
    bar.set_label("change\n(sd, or probability)", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    return ax


def plot_walks(
    decoded: Float[Array, "latents steps columns"],
    labels: Sequence[str],
    levels: Sequence[float],
    columns: Columns,
    shown: Sequence[int],
    *,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Draws decoded means along each latent: a row of panels per latent, a panel per column.

    All panels of a column of the table have the same vertical axis, so that the latent that moves
    the column most stands out.

    Arguments:
        decoded: Means of p(y | z), as encoded rows, `(latents, steps, columns)`.
        labels: Names of the latents.
        levels: The quantile level of the latent at each step, from 0 to 1.
        columns: The columns of the table.
        shown: Positions of the columns that are drawn.
        figure: Where to draw; a new pyplot figure by default.

    Returns:
        The axes, `(latents, columns)`.
    """
    array = as_numpy(decoded).astype(float)[:_MOST_LATENTS]
    size = (0.9 + 1.15 * len(shown), 0.8 + 1.1 * len(array))
    figure = figure_or_new(figure, size)
    grid: NDArray[Any] = figure.subplots(
        len(array), len(shown), squeeze=False, sharex=True, sharey="col"
    )
    for line, label, walk in zip(grid, labels, array, strict=False):
        for ax, place in zip(line, shown, strict=True):
            column = columns.columns[place]
            values = own(walk[:, place], column)
            look: dict[str, Any] = {"color": GUIDE_COLOURS[0], "marker": "o", "markersize": 3}
            if isinstance(column.kind, Categories) and len(column.kind.categories) > 2:
                look["drawstyle"] = "steps-mid"
            ax.plot(100 * np.asarray(levels), values, **look)
            without_box(ax).tick_params(labelsize="x-small")
        line[0].set_ylabel(label.replace(": ", "\n"), fontsize="small")
    for ax, place in zip(grid[0], shown, strict=True):
        ax.set_title(literal(wrapped(columns.names[place])), fontsize="small", loc="left")
        _name_entries(ax, columns.columns[place])
        _name_reached(ax, array[:, :, place], columns.columns[place])
        _scale_axis(ax, own(array[:, :, place], columns.columns[place]), columns.columns[place])
    for ax in grid[-1]:
        ax.set_xlabel("quantile of z (%)", fontsize="x-small")
    return grid


def plot_filled(
    filled: Float[Array, "rows columns"],
    draws: Float[Array, "samples rows columns"],
    missing: Bool[Array, "rows columns"],
    columns: Columns,
    *,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Draws plausible values of missing entries, in one panel per column with missing entries.

    A number is drawn as a line over the middle 95% of the draws, a category as a dot whose size is
    the category's share of the draws.

    Arguments:
        filled: Encoded rows with missing entries filled in; observed entries are drawn in grey at
            the left of each panel.
        draws: Encoded rows with draws of the missing entries, `(samples, rows, columns)`.
        missing: Whether each entry was missing.
        columns: The columns of the table.
        figure: Where to draw; a new pyplot figure by default.

    Returns:
        The axes, one for each column with missing entries, in order, `(columns,)`.

    Raises:
        ValueError: If nothing was missing.
    """
    holes = as_numpy(missing).astype(bool)
    places = np.flatnonzero(holes.any(axis=0))[:_MOST_COLUMNS].tolist()
    if not places:
        raise ValueError("the data have no missing entries, so there is nothing to draw")
    axes = panels(figure, len(places), (2.9, 1.6), most=_ACROSS)
    for ax, place in zip(axes, places, strict=True):
        rows = np.flatnonzero(holes[:, place])
        values, many = as_numpy(filled)[:, place], as_numpy(draws)[:, rows, place]
        known = values[~holes[:, place]]
        _draw_filled(ax, rows, (values[rows], many), known, columns.columns[place])
    entries = axes[0].get_legend_handles_labels()[0]
    legend_outside(axes[0].figure, entries, "upper right", ncols=2)
    return axes


def _draw_filled(
    ax: "Axes",
    rows: NDArray[Any],
    found: tuple[NDArray[Any], NDArray[Any]],
    known: NDArray[Any],
    column: Column,
) -> None:
    """Draws the `known` entries of one column, and the imputed values of its missing entries."""
    more = f", the first {_MOST_ROWS} of {len(rows)}" if len(rows) > _MOST_ROWS else ""
    draws = found[1][:, :_MOST_ROWS]
    middle = own(found[0][:_MOST_ROWS], column)
    low, high = (own(np.quantile(draws, level, axis=0), column) for level in (0.025, 0.975))
    x = np.arange(1, len(middle) + 1)
    # Observed entries beside the axis, at most as many as can be told apart.
    observed = own(known[:: max(1, len(known) // 200)], column)
    spread = -0.05 * (len(x) + 1) * (1 + np.arange(len(observed)) % 3 / 3)
    look: dict[str, Any] = {"color": "0.6", "markersize": 2, "alpha": 0.6}
    ax.plot(spread, observed, ".", label="observed", **look)
    if isinstance(column.kind, Categories):
        for code in range(len(column.kind.categories)):
            share = (draws == code).mean(axis=0)
            ax.scatter(x, np.full(len(x), code), 60 * share, color=GUIDE_COLOURS[0], alpha=0.4)
    else:
        ax.vlines(x, low, high, color=GUIDE_COLOURS[0], linewidth=1.2, alpha=0.7)
    label = "imputed, with 95% interval"
    ax.plot(x, middle, "s", color=GUIDE_COLOURS[0], markersize=3, label=label)
    without_box(ax).set_title(literal(column.name), fontsize="small", loc="left")
    ax.tick_params(labelsize="x-small")
    if len(x) <= 15:
        ax.set_xticks(x, [str(row) for row in rows[:_MOST_ROWS]], rotation=90)
        ax.set_xlabel("row", fontsize="x-small")
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"rows with missing entries{more}", fontsize="x-small")
    _name_entries(ax, column)
    _name_reached(ax, found[0], column)
    values = np.concatenate([observed, low, high])
    _scale_axis(ax, values, column)
    if not isinstance(column.kind, Categories | Positive | Time):
        limit_to_most(ax, values)


def own(values: NDArray[Any], column: Column) -> NDArray[Any]:
    """Converts encoded values to the column's unit or to dates; codes of categories stay codes."""
    kind = column.kind
    if isinstance(kind, Time):
        days = kind.in_own_unit(values)
        return np.rint(np.nan_to_num(days) * 86_400_000).astype("int64").astype("datetime64[ms]")
    if isinstance(kind, Categories):
        return values
    return kind.in_own_unit(values)


def _scale_axis(ax: "Axes", values: NDArray[Any], column: Column) -> None:
    """Uses a logarithmic axis if positive numbers span a factor of 10, and few ticks for dates."""
    if isinstance(column.kind, Positive) and values.max() > 10 * values.min():
        ax.set_yscale("log")
        log_ticks(ax.yaxis)
    elif isinstance(column.kind, Time):
        from matplotlib.dates import AutoDateLocator

        ax.yaxis.set_major_locator(AutoDateLocator(maxticks=_MOST_DATES))


def _name_reached(ax: "Axes", codes: NDArray[Any], column: Column) -> None:
    """If there is no room to label all categories, labels at most six of those in `codes`."""
    if isinstance(column.kind, Categories) and len(column.kind.categories) > _MOST_NAMES:
        reached = np.unique(np.rint(codes)).astype(int)
        kept = reached[:: -(-len(reached) // 6)]
        ax.set_yticks(kept, [_short(column.kind.categories[code]) for code in kept])


def _short(category: object) -> str:
    return literal(str(category)[:12])


def _name_entries(ax: "Axes", column: Column) -> None:
    """Labels all categories of a categorical column, if there are not too many."""
    if isinstance(column.kind, Categories) and len(column.kind.categories) <= _MOST_NAMES:
        names = list(map(_short, column.kind.categories))
        ax.set_yticks(np.arange(len(names)), names)
        ax.set_ylim(-0.3, len(names) - 0.7)
