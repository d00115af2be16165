"""The latent space: the plane of two latents, and the aggregated posterior."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Real, Shaped
from numpy.typing import NDArray

from ..formatting import count_of, plus_minus, typeset
from .drawing import (
    CATEGORY_COLOURS,
    GUIDE_COLOURS,
    MARKERS,
    Array,
    as_numpy,
    at_least_one,
    axes_or_new,
    entry,
    figure_or_new,
    finite_span,
    legend_above,
    legend_outside,
    panels,
    style,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


def plot_latent_plane(
    means: Mapping[str, Real[Array, "..."]],
    labels: Shaped[Array, "..."] | None = None,
    *,
    names: tuple[str, str] = ("z[0]", "z[1]"),
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Draws the posterior means of two latents as dots, one panel per guide, on a common scale.

    Two circles are drawn for comparison, with radii of one and two standard deviations of the prior
    N(0, I). They contain 39% and 86% of the prior's draws. If the means crowd at the centre, the
    posterior may ignore the data. If means lie far outside the circles, draws of the prior miss
    much of the aggregated posterior.

    Arguments:
        means: The posterior means of each guide, `(data, 2)`, by the guide's name.
        labels: Values that decide the colours, `(data,)`. Strings, or up to ten different whole
            numbers, are categories, explained in a legend. Other numbers are explained by a colour
            bar. Data with the label nan are not drawn.
        names: Names of the two latents.
        figure: Where to draw, a figure or sub-figure; a new pyplot figure by default.

    Returns:
        The axes, `(guides,)`.

    Raises:
        ValueError: If there is no guide, there are not exactly two latents, or labels and data
            differ in number.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = plot_latent_plane({"amortized": np.eye(2)}, np.array([0, 1]), figure=Figure())
        >>> [ax.get_title() for ax in axes]
        ['amortized']
    """
    groups = None if labels is None else as_numpy(labels)
    planes = {name: _plane(name, values, groups) for name, values in at_least_one(means).items()}
    figure = figure_or_new(figure, (0.9 + 2.5 * len(planes), 3.8), layout="compressed")
    axes: NDArray[Any] = figure.subplots(1, len(planes), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (name, plane) in zip(axes, planes.items(), strict=True):
        ax.set_title(name, fontsize="medium")
        ax.set_xlabel(names[0])
        _draw_plane(ax, plane, groups)
        _draw_prior(ax)
    extent = 1.08 * max(2.0, finite_span(np.abs(plane) for plane in planes.values())[1])
    axes[0].set(ylabel=names[1], xlim=(-extent, extent), ylim=(-extent, extent))
    axes[0].locator_params(integer=True, nbins=4)
    _explain_colours(figure, axes)
    return axes


def _plane(name: str, values: Array, labels: NDArray[Any] | None) -> NDArray[Any]:
    """Returns the means of a guide as an array, after checking its shape and the labels."""
    plane = as_numpy(values)
    if plane.ndim != 2 or plane.shape[1] != 2:
        raise ValueError(
            f"the means of {name!r} must have the shape (data, 2), for two latents; got "
            f"{plane.shape}: pass two columns, or a two-dimensional projection"
        )
    if labels is not None and labels.shape != plane.shape[:1]:
        raise ValueError(
            f"`labels` must have the shape {plane.shape[:1]} for {name!r}, one label per datum; "
            f"got {labels.shape}: pass means and labels of the same rows"
        )
    return plane


def _draw_plane(ax: "Axes", plane: NDArray[Any], labels: NDArray[Any] | None) -> None:
    # Larger dots for fewer data; rasterized, since 60,000 of them would make a huge PDF.
    size = float(np.clip(4000 / max(len(plane), 1), 3, 25))
    dots: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": True}
    categories = np.empty(0) if labels is None else _categories(labels)
    if len(categories) > 0:
        for number, label in enumerate(categories):
            x, y = plane[labels == label].T
            ax.scatter(x, y, label=str(label), **style(number, CATEGORY_COLOURS), **dots)
    else:
        colours = {"color": GUIDE_COLOURS[0]} if labels is None else {"c": labels}
        ax.scatter(plane[:, 0], plane[:, 1], label="posterior mean", **colours, **dots)


def _categories(labels: NDArray[Any]) -> NDArray[Any]:
    """Returns the different labels, without nan; none if the labels need a colour bar."""
    different = np.unique(labels[labels == labels])
    if different.dtype.kind == "f":  # whole numbers, which tables often store as floats
        whole = np.isfinite(different).all() and np.array_equal(different, np.round(different))
        different = different.astype(int) if whole else different[:0]
    is_scale = different.dtype.kind in "iu" and len(different) > len(CATEGORY_COLOURS)
    return different[:0] if is_scale else different


def _draw_prior(ax: "Axes") -> None:
    """Draws circles with radii of one and two standard deviations of N(0, I)."""
    angle = np.linspace(0, 2 * np.pi, 200)
    for radius, dashes in ((1, "-"), (2, "--")):
        circle: dict[str, Any] = {"color": "0.25", "linewidth": 0.9, "linestyle": dashes}
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        ax.plot(x, y, zorder=3, label=f"prior, {radius} sd", **circle)
    ax.set_aspect("equal")


def _explain_colours(figure: "Figure | SubFigure", axes: NDArray[Any]) -> None:
    """Adds a legend above the panels and, for labels that are numbers, a colour bar."""
    entries = axes[0].get_legend_handles_labels()[0]
    size = (25 / axes[0].collections[0].get_sizes()[0]) ** 0.5  # one size in all legends
    # Narrower than usual, because the estimated width is too large.
    legend_outside(figure, entries, markerscale=size, columnspacing=1.2)
    if axes[0].collections[0].get_array() is not None:
        figure.colorbar(axes[0].collections[0], ax=list(axes), label="label")


_BINS = 30
_GRID = 80  # points per side of the grid that contours are drawn from
_KERNELS = 2000  # most draws used to smooth a density; more are slow and look the same
_OUTER = 0.995  # quantile near which the axes end, so that an outlier does not set the scale


def plot_aggregated_marginals(
    aggregate: Real[Array, "..."],
    prior: Real[Array, "..."],
    mismatch: tuple[Array, Array] | None = None,
    *,
    names: Sequence[str] | None = None,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Draws histograms of the aggregated posterior and of the prior, one panel per latent.

    Where only the prior has mass, the model generates data from latents on which the decoder was
    not trained. Where only the aggregated posterior has mass, there are data that the model never
    generates.

    Arguments:
        aggregate: Draws of q(z), one per datum, `(draws, latents)`.
        prior: Draws of p(z), `(draws, latents)`.
        mismatch: Divergence of each latent's aggregated posterior from its prior, and the errors
            of the divergences, `(latents,)` each, in nats, such as the `mismatch` of a
            :class:`pyro_vae.diagnostics.Collapse`. The titles of the panels state these numbers.
        names: Names of the latents; by default z[0], z[1], ...
        figure: Where to draw, a figure or sub-figure; a new pyplot figure by default.

    Returns:
        The axes, `(latents,)`.

    Raises:
        ValueError: If the arrays are not draws of the same latents.

    Example:
        >>> from matplotlib.figure import Figure
        >>> rng = np.random.default_rng(0)
        >>> draws = rng.normal(size=(2, 50, 3))
        >>> axes = plot_aggregated_marginals(draws[0] / 2, draws[1], figure=Figure())
        >>> [ax.get_xlabel() for ax in axes]
        ['z[0]', 'z[1]', 'z[2]']
    """
    draws, base = _same_latents(aggregate, prior)
    latents = draws.shape[1]
    axes = panels(figure, latents, (1.6, 1.4), narrowest=1.5, sharey=True)
    for latent, (ax, name) in enumerate(zip(axes, _names(names, latents), strict=True)):
        _draw_marginal(ax, draws[:, latent], base[:, latent])
        ax.set_xlabel(name, fontsize="small")
        if mismatch is not None:
            value, error = (float(as_numpy(part)[latent]) for part in mismatch)
            ax.set_title(typeset(f"{plus_minus(value, error, '.3f')} nats"), fontsize="small")
    for ax in axes:
        place = ax.get_subplotspec()
        if place is not None and place.is_first_col():
            ax.set_ylabel("density", fontsize="small")
    legend_outside(axes[0].figure, axes[0].get_legend_handles_labels()[0])
    return axes


def _draw_marginal(ax: "Axes", draws: NDArray[Any], prior: NDArray[Any]) -> None:
    edges = np.linspace(*_limits(np.concatenate([draws, prior])), _BINS + 1)
    how: dict[str, Any] = {"bins": edges, "density": True}
    ax.hist(prior, color="0.8", label="prior", **how)
    ax.hist(
        draws,
        histtype="step",
        color=GUIDE_COLOURS[0],
        linewidth=1.3,
        label="aggregated posterior q(z)",
        **how,
    )
    without_box(ax).tick_params(labelsize="x-small")


def plot_aggregated_plane(
    aggregate: Real[Array, "..."],
    prior: Real[Array, "..."],
    *,
    names: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the aggregated posterior of two latents as dots, over contours of the prior.

    The contours enclose 50% and 95% of the prior's draws, according to a kernel density estimate.
    If q(z) were the prior, the contours would enclose the same shares of the dots. The legend
    states the actual shares.

    Arguments:
        aggregate: Draws of the two latents from q(z), `(draws, 2)`.
        prior: Draws of p(z), `(draws, 2)`, at least ten of them. The prior may be any distribution.
        names: Names of the two latents.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If there are not exactly two latents, or too few draws for a density.

    Example:
        >>> from matplotlib.figure import Figure
        >>> draws = np.random.default_rng(0).normal(size=(2, 500, 2))
        >>> ax = plot_aggregated_plane(0 * draws[0], draws[1], ax=Figure().subplots())
        >>> [text.get_text() for text in ax.get_legend().get_texts()][1]
        '50% of prior, 100% of q(z)'
    """
    from scipy.stats import gaussian_kde

    draws, base = _same_latents(aggregate, prior)
    if draws.shape[1] != 2 or len(base) < 10:
        raise ValueError(
            "`aggregate` and `prior` must have the shape (draws, 2), with at least ten draws of "
            f"the prior; got {draws.shape} and {base.shape}: pass two columns, such as the latents "
            "with the largest rates"
        )
    kernel = gaussian_kde(base[:_KERNELS].T)
    of_prior, of_draws = kernel(base[:_KERNELS].T), kernel(draws.T)
    ax = axes_or_new(ax, (4.4, 4.4))
    size = float(np.clip(4000 / len(draws), 3, 25))
    ax.scatter(
        draws[:, 0], draws[:, 1], s=size, linewidths=0, rasterized=True, color=GUIDE_COLOURS[0]
    )
    dot: dict[str, Any] = {"marker": "o", "markersize": 4, "color": GUIDE_COLOURS[0]}
    entries = [entry("draws of q(z)", linestyle="none", **dot)]
    for share, dashes in ((0.5, "-"), (0.95, "--")):
        level = float(np.quantile(of_prior, 1 - share))
        _draw_contour(ax, kernel, np.concatenate([draws, base]), level, dashes)
        inside = f"{share:.0%} of prior, {np.mean(of_draws >= level):.0%} of q(z)"
        entries.append(entry(inside, linestyle=dashes, color="0.25", linewidth=1.0))
    x, y = _names(names, 2)
    ax.set(xlabel=x, ylabel=y, aspect="equal")
    legend_above(ax, entries)
    return without_box(ax)


def _draw_contour(ax: "Axes", kernel: Any, draws: NDArray[Any], level: float, dashes: str) -> None:
    sides = [np.linspace(*_limits(column), _GRID) for column in draws.T]
    x, y = np.meshgrid(*sides)
    density = kernel(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
    ax.contour(x, y, density, levels=[level], colors="0.25", linestyles=dashes, linewidths=1.0)
    ax.set(xlim=sides[0][[0, -1]], ylim=sides[1][[0, -1]])


def plot_collapse(
    rate: Real[Array, "..."],
    information: tuple[Array, Array],
    uses: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a bar per latent, the largest rate first, split into information and mismatch.

    The height of a bar is the rate. The solid part is the information about the identity of the
    datum, and the hatched part the divergence of the aggregated posterior from the prior. A marker
    below each bar says whether the latent is used.

    Arguments:
        rate: Divergence of each latent's posterior from the prior, `(latents,)`, in nats. Where it
            is nan, no bar is drawn.
        information: Information of each latent, and the errors, `(latents,)` each, in nats.
        uses: A word or two on how each latent is used, such as "used" or "collapsed".
        names: Names of the latents; by default z[0], z[1], ...
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If the numbers of latents differ.

    Example:
        >>> from matplotlib.figure import Figure
        >>> information = (np.array([0.0, 2.0]), np.array([0.0, 0.1]))
        >>> uses = ["collapsed", "used"]
        >>> ax = plot_collapse(np.array([0.0, 2.5]), information, uses, ax=Figure().subplots())
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['z[1]', 'z[0]']
    """
    heights, known, error = (np.asarray(as_numpy(part), float) for part in (rate, *information))
    shapes = {heights.shape, known.shape, error.shape}
    if shapes != {(len(uses),)}:
        raise ValueError(
            "`rate`, and the value and the error of `information`, must have the shape "
            f"({len(uses)},), one entry per latent; got {heights.shape}, {known.shape} and "
            f"{error.shape}"
        )
    order = np.argsort(-np.nan_to_num(heights), kind="stable")
    ax = axes_or_new(ax, (min(7.0, 1.6 + 0.4 * len(uses)), 3.4))
    _draw_bars(ax, heights[order], known[order], error[order])
    labels = np.array(_names(names, len(uses)))[order]
    small = "small" if len(uses) <= 12 else "xx-small"
    ax.set_xticks(range(len(order)), labels=labels, rotation=90, fontsize=small)
    ax.set_ylabel("rate (nats per datum)")
    parts = ax.get_legend_handles_labels()[0]
    legend_above(ax, [*parts, *_mark_uses(ax, [uses[latent] for latent in order])])
    return without_box(ax)


def _draw_bars(
    ax: "Axes", rate: NDArray[Any], information: NDArray[Any], error: NDArray[Any]
) -> None:
    solid, place = np.clip(information, 0, None), np.arange(len(rate))  # noise can be negative
    ax.bar(place, solid, color=GUIDE_COLOURS[0], width=0.7, label="information")
    rest: dict[str, Any] = {"color": "white", "edgecolor": "0.25", "hatch": "////"}
    height = np.clip(rate - solid, 0, None)
    ax.bar(place, height, bottom=solid, width=0.7, linewidth=0.5, label="off the prior", **rest)
    seen = error > 0.005 * np.nanmax(rate, initial=1e-9)  # smaller errors cannot be seen
    ax.errorbar(place[seen], solid[seen], error[seen], fmt="none", ecolor="black", elinewidth=1)


def _mark_uses(ax: "Axes", uses: Sequence[str]) -> list[Any]:
    """Draws a marker below each latent's bar; returns a legend entry for each kind of use."""
    if not ax.dataLim.height > 0:  # no rate is known
        ax.set(ylim=(0, 1), yticks=[], ylabel="rate: unknown, as the posteriors are not normal")
    low = -0.05 * ax.get_ylim()[1]
    entries = []
    for number, kind in enumerate(dict.fromkeys(uses)):
        where = [place for place, use in enumerate(uses) if use == kind]
        look: dict[str, Any] = {"marker": MARKERS[number], "linestyle": "none", "markersize": 4}
        look |= {"color": "black", "markerfacecolor": "black" if number == 0 else "white"}
        entries += ax.plot(where, [low] * len(where), label=kind, clip_on=False, **look)
    ax.set_ylim(bottom=2 * low)
    return entries


def _same_latents(aggregate: Array, prior: Array) -> tuple[NDArray[Any], NDArray[Any]]:
    """Converts both sets of draws to arrays; refuses sets with different numbers of latents."""
    draws, base = (np.asarray(as_numpy(part), float) for part in (aggregate, prior))
    if draws.ndim != 2 or base.ndim != 2 or draws.shape[1] != base.shape[1] or not draws.size:
        raise ValueError(
            "`aggregate` and `prior` must have the shape (draws, latents), with equally many "
            f"latents; got {draws.shape} and {base.shape}: pass both from the same result of "
            "pv.diagnostics.prior_match"
        )
    return draws, base


def _names(names: Sequence[str] | None, latents: int) -> Sequence[str]:
    """Returns the names of the latents, by default z[0], z[1], ..."""
    names = [f"z[{number}]" for number in range(latents)] if names is None else names
    if len(names) != latents:
        raise ValueError(
            f"`names` must be {count_of(latents, 'name')}, one per latent; got {list(names)}"
        )
    return names


def _limits(draws: NDArray[Any]) -> tuple[float, float]:
    """Returns axis limits that contain all but a few of the draws, with a margin."""
    inner = np.quantile(draws[np.isfinite(draws)], [1 - _OUTER, _OUTER])
    low, high = finite_span([inner])
    margin = 0.15 * (high - low) or 1.0  # one unit on both sides of a constant
    return low - margin, high + margin
