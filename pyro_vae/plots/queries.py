"""Plots of a fitted model's answers: traversals, imputations, densities, outliers, dependence."""

from collections.abc import Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Real
from numpy.typing import NDArray

from ..formatting import count_of, first_few, typeset
from .drawing import (
    GUIDE_COLOURS,
    Array,
    Number,
    as_numpy,
    at_least_one,
    axes_or_new,
    figure_or_new,
    finite_span,
    legend_above,
    legend_outside,
    literal,
    log_ticks,
    style,
    without_box,
)
from .reconstructions import plot_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_MOST_NUMBERS = 12  # number of features; with more, cells are too small for numbers
_MOST_TICKS = 40  # number of names that can be read side by side
_PICTURED = 3  # number of draws of an imputed image that are shown
_BINS = 30
_BESIDE = 0.12  # distance between the markers of different curves at the same value
_MOST_NATS = 10.0  # largest end of a linear scale of similarities
_BULK = (0.01, 0.99)  # quantiles that enclose most of the reference data
_FLAT = 0.005  # share of a curve's peak: half a pixel, below which a curve looks like the axis


def plot_traversal(
    decoded: Float[Array, "latents steps *datum"],
    labels: Sequence[str],
    levels: Sequence[float],
    image_shape: tuple[int, int] | None = None,
    *,
    names: Sequence[str] | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Draws how decoded means change along each latent, as a row of images or a panel of curves.

    Arguments:
        decoded: Means of p(y | z), `(latents, steps, *datum)`, as in
            :attr:`pyro_vae.queries.Traversal.decoded`. If there are many latents, pass only the
            first few.
        labels: Names of the latents, one per latent.
        levels: The quantile level of the latent at each step, from 0 to 1.
        image_shape: Height and width of an image. With `None`, a curve over the features is drawn
            for each step; the curves are darker at higher levels.
        names: Names of the features, for data that are not images.
        figure: Where to draw; a new pyplot figure by default.

    Returns:
        The axes, one for each latent, `(latents,)`.

    Raises:
        ValueError: If the number of labels, levels or names is wrong.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = plot_traversal(np.zeros((1, 3, 4)), ["z"], [0.1, 0.5, 0.9], figure=Figure())
        >>> [ax.get_title(loc="left") for ax in axes]
        ['z']
    """
    array = as_numpy(decoded)
    _require_number(array.shape[0], "labels", labels)
    _require_number(array.shape[1], "levels", levels)
    if image_shape is None:
        flat = array.reshape(*array.shape[:2], -1)
        return _draw_curves(flat, labels, levels, names, figure)
    rows = dict(zip(labels, array, strict=True))
    _require_number(array.shape[0], "different labels", rows)
    axes = plot_data(rows, image_shape, figure=figure)
    axes[0].xaxis.tick_top()
    axes[0].set_xticks(np.arange(len(levels)) + 0.5, [f"{level:g}" for level in levels])
    axes[0].tick_params(length=0, labelsize="small")
    return axes


def _draw_curves(
    array: NDArray[Any],
    labels: Sequence[str],
    levels: Sequence[float],
    names: Sequence[str] | None,
    figure: "Figure | SubFigure | None",
) -> NDArray[Any]:
    """Draws a panel per latent, with a curve over the features for each step."""
    from matplotlib import colormaps

    places = np.arange(array.shape[2])
    figure = figure_or_new(figure, (6.4, 0.9 + 1.5 * len(array)))
    grid = figure.subplots(len(array), 1, squeeze=False, sharex=True, sharey=True)
    axes: NDArray[Any] = grid[:, 0]
    shades = colormaps["viridis_r"](np.linspace(0.1, 1, len(levels)))
    for ax, label, steps in zip(axes, labels, array, strict=True):
        for level, curve, shade in zip(levels, steps, shades, strict=True):
            look: dict[str, Any] = {"color": shade, "linewidth": 1.2, "label": f"{level:g}"}
            ax.plot(places, curve, marker="o", markersize=2.5, **look)
        without_box(ax).set_title(label, fontsize="small", loc="left")
    _name_ticks(axes[-1], names, len(places))
    entries = axes[0].get_legend_handles_labels()[0]
    title = {"title": "quantile\nof the latent", "title_fontsize": "small"}
    legend_outside(figure, entries, "right upper", ncols=1, **title)
    figure.supylabel("decoded mean", fontsize="small")
    return axes


def plot_imputation(
    y: Real[Array, "..."],
    draws: Float[Array, "..."],
    truth: Real[Array, "..."] | None = None,
    image_shape: tuple[int, int] | None = None,
    *,
    names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Draws rows of data: observed entries, and plausible values of missing entries.

    Arguments:
        y: Data with nan where entries are missing, `(rows, *datum)`; a few rows fit a page.
        draws: Completed data, `(samples, rows, *datum)`, as in
            :attr:`pyro_vae.queries.Imputation.draws`.
        truth: The true entries, if known.
        image_shape: Height and width of an image. Lines of images then show the data, the mean of
            the draws, three draws and, if given, the truth. With `None`, each row gets a panel with
            the observed entries and, for each missing entry, the median of the draws and a line
            over the middle 95% of the draws.
        names: Names of the features, for data that are not images.
        labels: Names of the rows of data; by default the positions of the rows.
        figure: Where to draw; a new pyplot figure by default.

    Returns:
        The axes: `(5 or 6,)` for images, one per line of images, and `(rows,)` otherwise.

    Raises:
        ValueError: If the shapes do not match, or there is no row.

    Example:
        >>> from matplotlib.figure import Figure
        >>> y, draws = np.array([[0.0, np.nan]]), np.zeros((5, 1, 2))
        >>> plot_imputation(y, draws, figure=Figure())[0].get_title(loc="left")
        'row 0'
    """
    data, many = as_numpy(y).astype(float), as_numpy(draws)
    known = None if truth is None else as_numpy(truth)
    _check_completed(data, many, known)
    if image_shape is not None:
        pictures = {"data": data, "mean": many.mean(axis=0)}
        pictures |= {f"draw {n + 1}": many[n] for n in range(min(_PICTURED, len(many)))}
        pictures |= {} if known is None else {"truth": known}
        return plot_data(pictures, image_shape, figure=figure)
    flat = data.reshape(len(data), -1)
    true = None if known is None else known.reshape(flat.shape)
    titles = [f"row {n}" for n in range(len(data))] if labels is None else list(labels)
    _require_number(len(data), "labels", titles)
    figure = figure_or_new(figure, (6.4, 1.0 + 1.5 * len(data)))
    axes: NDArray[Any] = figure.subplots(len(data), 1, squeeze=False, sharex=True)[:, 0]
    for n, ax in enumerate(axes):
        _draw_row(ax, flat[n], many[:, n].reshape(len(many), -1), None if true is None else true[n])
        without_box(ax).set_title(titles[n], fontsize="small", loc="left")
    _name_ticks(axes[-1], names, many[0, 0].size)
    legend_outside(figure, axes[0].get_legend_handles_labels()[0], "upper right", ncols=3)
    return axes


def _check_completed(data: NDArray[Any], draws: NDArray[Any], truth: NDArray[Any] | None) -> None:
    """Refuses draws or a truth whose shape does not match the data, and empty data."""
    fits = draws.shape[1:] == data.shape and (truth is None or truth.shape == data.shape)
    if not fits or not data.size or not len(draws):
        known = "" if truth is None else f" and truth {truth.shape}"
        raise ValueError(
            f"the draws must have the shape (samples, *{data.shape}), with at least one draw and "
            f"one row; got {draws.shape}{known}: pass draws and data for the same rows"
        )


def _draw_row(
    ax: "Axes", seen: NDArray[Any], draws: NDArray[Any], truth: NDArray[Any] | None
) -> None:
    """Draws one row of data: observed entries, and for each missing entry the draws' middle 95%."""
    places, holes = np.arange(len(seen)), np.isnan(seen)
    low, middle, high = np.quantile(draws[:, holes], [0.025, 0.5, 0.975], axis=0)
    ax.plot(places[~holes], seen[~holes], "o", color="0.35", markersize=4, label="observed")
    bars: dict[str, Any] = {"color": GUIDE_COLOURS[0], "markersize": 5, "capsize": 2}
    label = "imputed: median and 95%"
    ends = np.stack([middle - low, high - middle])
    ax.errorbar(places[holes], middle, ends, fmt="s", label=label, **bars)
    if truth is not None:
        hollow: dict[str, Any] = {"color": GUIDE_COLOURS[1], "markersize": 7, "label": "truth"}
        ax.plot(places[holes], truth[holes], "x", **hollow)


def plot_conditional_density(
    grid: Float[Array, " points"],
    densities: Mapping[str, tuple[Array, Array]],
    observed: Mapping[str, Number] | None = None,
    *,
    name: str = "feature",
    discrete: bool = False,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws densities of one feature, each with a band of two standard errors.

    If the ratio of neighbouring points is the same all over the grid, the axis is logarithmic, and
    the density of the logarithm is drawn, so that areas are probabilities.

    Arguments:
        grid: Values of the feature, `(points,)`.
        densities: A pair for each label: the density at the grid's values, and its error,
            `(points,)` each. One row of :attr:`pyro_vae.queries.ConditionalDensity.density` gives
            such a pair.
        observed: The observed values, under the same labels; each is drawn as a dotted line.
        name: Name of the feature.
        discrete: Whether the feature is discrete, so that `densities` holds probabilities.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no density, or a density does not have the shape of the grid.

    Example:
        >>> from matplotlib.figure import Figure
        >>> grid, ax = np.linspace(0, 1, 5), Figure().subplots()
        >>> ax = plot_conditional_density(grid, {"a": (grid, 0 * grid)}, name="height", ax=ax)
        >>> ax.get_xlabel()
        'height'
    """
    x = as_numpy(grid)
    logarithmic = not discrete and _is_logarithmic(x)
    curves = _weighted_curves(x, densities, weight=x if logarithmic else np.ones_like(x))
    ax = axes_or_new(ax, (5.4, 3.4))
    for number, (label, (value, error)) in enumerate(curves.items()):
        look = style(number)
        if discrete:
            shifted = x + _BESIDE * (number - (len(curves) - 1) / 2)
            ax.errorbar(shifted, value, 2 * error, fmt=look["marker"], color=look["color"],
                        label=label, markersize=5)  # fmt: skip
        else:
            ax.plot(x, value, color=look["color"], label=label)
            band: dict[str, Any] = {"color": look["color"], "alpha": 0.25, "linewidth": 0}
            ax.fill_between(x, value - 2 * error, value + 2 * error, **band)
        if observed is not None and label in observed:
            where = float(as_numpy(observed[label]))
            ax.axvline(where, color=look["color"], linestyle=":", linewidth=1.5)
    unit = "density of the logarithm" if logarithmic else "density"
    without_box(ax).set(xlabel=literal(name), ylabel="probability" if discrete else unit)
    ax.set_ylim(bottom=0)
    marked = [float(as_numpy(value)) for value in (observed or {}).values()]
    shown = [value for value, _ in curves.values()]
    if logarithmic:
        ax.set_xscale("log")
        ax.set_xlim(*np.exp(_visible(np.log(x), shown, np.log(marked).tolist())))
        log_ticks(ax.xaxis)
    else:
        ax.set_xlim(*_visible(x, shown, marked, more=_BESIDE * len(curves) if discrete else 0.0))
    if discrete:
        ax.locator_params(axis="x", integer=True)
    legend_above(ax)
    return ax


def _is_logarithmic(x: NDArray[Any]) -> bool:
    """Returns whether the ratio of neighbouring points is the same all over a grid."""
    ratios = x[1:] / x[:-1] if x.min() > 0 and len(x) > 2 else np.ones(1)
    return bool(ratios[0] > 1.01 and np.allclose(ratios, ratios[0], rtol=1e-3))


def _weighted_curves(
    x: NDArray[Any], densities: Mapping[str, tuple[Array, Array]], weight: NDArray[Any]
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Multiplies densities and their errors by `weight`, after checking their shapes."""
    curves = {}
    for label, pair in at_least_one(densities).items():
        value, error = (as_numpy(part) for part in pair)
        if value.shape != x.shape or error.shape != x.shape:
            raise ValueError(
                f"densities and errors must have the shape {x.shape} of the grid for {label!r}; "
                f"got {value.shape} and {error.shape}: pass a number for each point of the grid"
            )
        curves[label] = (weight * value, weight * error)
    return curves


def plot_outliers(
    log_p: Float[Array, "..."],
    tail_probability: Float[Array, "..."],
    reference: Float[Array, "..."],
    flagged: Bool[Array, "..."],
    *,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Draws log densities of data and reference data (left), and sorted tail probabilities (right).

    In the right panel, ordinary data follow the diagonal, and outliers form a flat stretch at the
    left. If the model does not fit the data, the whole curve is bent.

    Arguments:
        log_p: Log densities of the data, `(batch,)`, in nats.
        tail_probability: Tail probabilities of the data, `(batch,)`.
        reference: Log densities of the reference data, `(reference,)`, in nats.
        flagged: Whether each datum is flagged as an outlier.
        figure: Where to draw; a new pyplot figure by default.

    Returns:
        The axes, `(2,)`.

    Raises:
        ValueError: If there are no data or no reference data, or the numbers of values differ.

    Example:
        >>> from matplotlib.figure import Figure
        >>> one = np.ones(1)
        >>> len(plot_outliers(-3 * one, 0.1 * one, np.arange(9.0), one > 0, figure=Figure()))
        2
    """
    value, p, held, flags = (as_numpy(x) for x in (log_p, tail_probability, reference, flagged))
    if not value.size or not held.size or not value.shape == p.shape == flags.shape:
        raise ValueError(
            "`log_p`, `tail_probability` and `flagged` must have the same shape, and neither these "
            "nor `reference` may be empty; got the shapes "
            f"{value.shape}, {p.shape}, {flags.shape} and {held.shape}: pass the numbers of "
            "one result"
        )
    figure = figure_or_new(figure, (7.2, 3.2))
    axes = figure.subplots(1, 2)
    _draw_reference(axes[0], value, held, flags)
    _draw_tails(axes[1], p, flags)
    return axes


def _draw_reference(
    ax: "Axes", value: NDArray[Any], held: NDArray[Any], flags: NDArray[Any]
) -> None:
    """Draws a histogram of the reference data, and a line below it for each datum.

    Data far below the middle 98% of the reference are drawn at the edge, because a single outlier
    would flatten the histogram.
    """
    look: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.4, "density": True}
    possible = held[np.isfinite(held)]  # the model may rule out some of the reference data
    low, high = np.quantile(possible, _BULK) if len(possible) else (0.0, 0.0)
    edge = low - 1.5 * (high - low) - 1
    beyond = int((value < edge).sum())
    value, held = np.maximum(value, edge), np.maximum(held, edge)
    ax.hist(held, bins=_BINS, color="0.8", label="reference", **look)
    top = ax.get_ylim()[1]
    for chosen, colour, label in (
        (~flags, GUIDE_COLOURS[0], "data"),
        (flags, GUIDE_COLOURS[1], "flagged"),
    ):
        ends: dict[str, Any] = {"colors": colour, "linewidth": 0.9, "label": label}
        if chosen.any():
            ax.vlines(value[chosen], -0.12 * top, -0.02 * top, **ends)
    more = f"\n{count_of(beyond, 'datum')} beyond the axis" if beyond else ""
    without_box(ax).set(xlabel=f"log p(y) (nats){more}", yticks=[], ylim=(-0.14 * top, 1.05 * top))
    legend_above(ax)


def _draw_tails(ax: "Axes", p: NDArray[Any], flags: NDArray[Any]) -> None:
    """Draws the sorted tail probabilities, over the diagonal."""
    order = np.argsort(p, kind="stable")
    places = (np.arange(len(p)) + 1) / len(p)
    ax.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=0.9)
    for chosen, number in ((~flags[order], 0), (flags[order], 1)):
        ax.plot(places[chosen], p[order][chosen], linestyle="none", markersize=3, **style(number))
    ax.set(xlabel="share of the data", ylabel="tail probability", xlim=(0, 1.02), ylim=(0, 1.02))
    without_box(ax)


def plot_dependence(
    value: Float[Array, "features features"],
    names: Sequence[str],
    error: Float[Array, "features features"] | None = None,
    *,
    measure: str = "correlation",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the dependence between every two features, as a heat map with the features' names.

    The colour scale runs from -1 to 1 if there are values below zero. Otherwise it starts at 0, as
    for mutual information. With up to 12 features each cell shows the value as a number, which is
    in brackets if it is within two standard errors of zero. The diagonal is left blank. Features
    for which no value is defined, such as categories if the values are correlations, are left out,
    and a note above the heat map names them.

    Arguments:
        value: The dependence of every two features, `(features, features)`.
        names: Names of the features.
        error: Standard errors of `value`, `(features, features)`.
        measure: Name of the measure, for the colour bar.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If names, values and errors differ in number.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = plot_dependence(np.eye(2) / 2, ["a", "b"], ax=Figure().subplots())
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['a', 'b']
    """
    matrix = as_numpy(value).astype(float)
    errors = np.zeros_like(matrix) if error is None else as_numpy(error)
    if errors.shape != matrix.shape or matrix.shape != (len(names), len(names)):
        raise ValueError(
            "`value` and `error` must have an entry for every pair of the "
            f"{count_of(len(names), 'name')}; got the shapes {matrix.shape} and {errors.shape}: "
            "pass a row and a column for each name"
        )
    shown = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
    kept = np.flatnonzero(np.isfinite(shown).any(axis=0))
    without = [name for place, name in enumerate(names) if place not in kept] if len(kept) else []
    if without:
        shown, errors = shown[kept][:, kept], errors[kept][:, kept]
        names = [names[place] for place in kept.tolist()]
    signed = bool((shown < 0).any()) and measure != "mutual information (nats)"
    largest = float(np.nanmax(np.abs(shown), initial=0.0)) or 1.0
    span = (-1.0, 1.0) if signed else (0.0, largest)
    inches = 2.0 + 0.45 * min(len(names), _MOST_TICKS)
    ax = axes_or_new(ax, (inches + 1.0, inches), layout="compressed")
    image = ax.imshow(shown, cmap="RdBu_r" if signed else "viridis", vmin=span[0], vmax=span[1])
    _name_cells(ax, names)
    if len(names) <= _MOST_NUMBERS:
        _write_numbers(ax, shown, errors, span)
    ax.figure.colorbar(image, ax=ax, label=measure, shrink=0.8)
    if without:
        ax.set_title(f"no {measure} of {literal(first_few(without))}", fontsize="small", loc="left")
    return ax


def plot_similarity(value: Float[Array, "rows others"], *, ax: "Axes | None" = None) -> "Axes":
    """Draws the similarity of rows to other rows, as a heat map.

    A similarity of 0 is white, and similar rows are red. The colour scale ends at the 99th
    percentile of the absolute values. If this percentile is above 10 nats, the scale is logarithmic
    beyond 1 nat, because negative values can be hundreds of nats below zero, but positive values
    rarely reach ten nats.

    Arguments:
        value: Similarities, `(rows, others)`, in nats.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes.

    Example:
        >>> from matplotlib.figure import Figure
        >>> plot_similarity(np.eye(2), ax=Figure().subplots()).get_ylabel()
        'row'
    """
    from matplotlib.colors import SymLogNorm

    matrix = as_numpy(value).astype(float)
    end = float(np.nanquantile(np.abs(matrix), 0.99)) or 1.0
    ax = axes_or_new(ax, (5.0, 4.0), layout="compressed")
    linear: dict[str, Any] = {"vmin": -end, "vmax": end}
    scale = linear if end <= _MOST_NATS else {"norm": SymLogNorm(1.0, **linear)}
    image = ax.imshow(matrix, cmap="RdBu_r", aspect="auto", **scale)
    ax.set(xlabel="other", ylabel="row")
    ax.locator_params(integer=True)
    ax.figure.colorbar(image, ax=ax, label="similarity (nats)", extend="both", shrink=0.8)
    return ax


def _name_cells(ax: "Axes", names: Sequence[str]) -> None:
    """Writes the features' names beside a heat map, if there are few enough to be read."""
    ax.spines[:].set_visible(False)
    if len(names) > _MOST_TICKS:
        ax.set(xlabel="feature", ylabel="feature")
        return
    places, words = np.arange(len(names)), list(map(literal, names))
    ax.set_xticks(places, words, rotation=45, ha="right", fontsize="small")
    ax.set_yticks(places, words, fontsize="small")


def _write_numbers(
    ax: "Axes", shown: NDArray[Any], errors: NDArray[Any], span: tuple[float, float]
) -> None:
    """Writes the values into the cells of a heat map, in brackets if within two errors of zero."""
    for (i, j), number in np.ndenumerate(shown):
        if not np.isfinite(number):
            continue
        text = typeset(f"{number + 0.0:.2f}")
        text = f"({text})" if abs(number) <= 2 * errors[i, j] else text
        share = (number - span[0]) / (span[1] - span[0])
        # White on dark: both ends of the scale from -1 to 1, and the low end of the scale from 0.
        is_dark = abs(share - 0.5) > 0.35 if span[0] < 0 else share < 0.6
        look: dict[str, Any] = {"color": "white" if is_dark else "black", "fontsize": "x-small"}
        ax.text(j, i, text, ha="center", va="center", **look)


def _visible(
    x: NDArray[Any],
    densities: Sequence[NDArray[Any]],
    marked: Sequence[float],
    *,
    more: float = 0.0,
) -> tuple[float, float]:
    """Returns limits of the range in which densities are visibly above zero, with a margin.

    The range contains the values in `marked`; the margin is at least `more`.
    """
    high = [density / max(np.nanmax(density), np.finfo(float).tiny) for density in densities]
    places = np.flatnonzero((np.stack(high) > _FLAT).any(axis=0))
    if not len(places):
        return float(x.min()), float(x.max())
    low, top = (float(end) for end in finite_span([x[places], np.array(marked, dtype=float)]))
    more = max(more, 0.05 * (top - low)) or 0.5
    return low - more, top + more


def _name_ticks(ax: "Axes", names: Sequence[str] | None, number: int) -> None:
    """Writes the features' names under the axis, if there are few enough to fit."""
    if names is None:
        ax.set_xlabel("feature", fontsize="small")
        return
    _require_number(number, "names", names)
    if number <= _MOST_TICKS:
        words = list(map(literal, names))
        ax.set_xticks(np.arange(number), words, rotation=45, ha="right", fontsize="small")


def _require_number(number: int, noun: str, values: Sized) -> None:
    if len(values) != number:
        raise ValueError(f"the plot requires {number} {noun}; got {len(values)}")
