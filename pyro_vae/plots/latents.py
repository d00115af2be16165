"""Posterior means in a latent space of two dimensions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Real, Shaped
from numpy.typing import NDArray

from .drawing import (
    CATEGORY_COLOURS,
    GUIDE_COLOURS,
    Array,
    as_numpy,
    at_least_one,
    figure_or_new,
    finite_span,
    fitting_columns,
    inches_wide,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


def plot_latent_plane(
    means: Mapping[str, Real[Array, "..."]],
    labels: Shaped[Array, "..."] | None = None,
    *,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Scatters the posterior means of two latents, one panel a guide, all on the same scale.

    The circles are one and two standard deviations of the prior N(0, I), which hold 39% and 86% of
    its draws. Means crowded at the centre tell of a posterior that ignores the data; means far
    outside, of an aggregated posterior that prior draws miss.

    Arguments:
        means: For each guide the posterior means, `(data, 2)`.
        labels: What to colour by, `(data,)`: up to ten different whole numbers, or any strings,
            are categories with a legend; other numbers get a colour bar, and nan is not drawn.
        figure: Where to draw, a figure or sub-figure; a new pyplot figure by default.

    Returns:
        The axes, `(guides,)`.

    Raises:
        ValueError: If there is no guide, the latents are not two, or labels and data differ in
            number.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = plot_latent_plane({"amortized": np.eye(2)}, np.array([0, 1]), figure=Figure())
        >>> [ax.get_title() for ax in axes]
        ['amortized']
    """
    groups = None if labels is None else _whole(as_numpy(labels))
    planes = {name: _plane(name, values, groups) for name, values in at_least_one(means).items()}
    figure = figure_or_new(figure, (0.9 + 2.5 * len(planes), 3.6), layout="compressed")
    axes: NDArray[Any] = figure.subplots(1, len(planes), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (name, plane) in zip(axes, planes.items(), strict=True):
        ax.set_title(name, fontsize="medium")
        ax.set_xlabel("latent 1")
        _draw_plane(ax, plane, groups)
        _draw_prior(ax)
    extent = 1.08 * max(2.0, finite_span(np.abs(plane) for plane in planes.values())[1])
    axes[0].set(ylabel="latent 2", xlim=(-extent, extent), ylim=(-extent, extent))
    axes[0].locator_params(integer=True, nbins=4)
    _explain_colours(figure, axes)
    return axes


def _whole(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels as integers where they are whole numbers, as tables often hold them in floats."""
    whole = labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels))
    return labels.astype(int) if whole else labels


def _plane(name: str, values: Array, labels: NDArray[Any] | None) -> NDArray[Any]:
    plane = as_numpy(values)
    if plane.ndim != 2 or plane.shape[1] != 2:
        raise ValueError(
            f"expected means of shape (data, 2) for {name!r}, got {plane.shape}: the latent plane "
            "shows two latents; pass two columns of yours, or a two-dimensional projection"
        )
    if labels is not None and labels.shape != plane.shape[:1]:
        raise ValueError(
            f"expected one label a datum, {plane.shape[:1]} for {name!r}, got labels of shape "
            f"{labels.shape}: pass the labels of the rows whose means these are"
        )
    return plane


def _draw_plane(ax: "Axes", plane: NDArray[Any], labels: NDArray[Any] | None) -> None:
    # Larger dots for fewer data; rasterized, since 60,000 of them would make a huge PDF.
    size = float(np.clip(4000 / max(len(plane), 1), 3, 25))
    dots: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": True}
    if labels is not None and _is_categorical(labels):
        for number, label in enumerate(np.unique(labels)):
            x, y = plane[labels == label].T
            ax.scatter(x, y, label=str(label), **style(number, CATEGORY_COLOURS), **dots)
    else:
        colours = {"color": GUIDE_COLOURS[0]} if labels is None else {"c": labels}
        ax.scatter(plane[:, 0], plane[:, 1], label="posterior mean", **colours, **dots)


def _is_categorical(labels: NDArray[Any]) -> bool:
    if labels.dtype.kind == "f":
        return False
    return labels.dtype.kind not in "iu" or len(np.unique(labels)) <= len(CATEGORY_COLOURS)


def _draw_prior(ax: "Axes") -> None:
    angle = np.linspace(0, 2 * np.pi, 200)
    for radius, dashes in ((1, "-"), (2, "--")):
        circle: dict[str, Any] = {"color": "0.25", "linewidth": 0.9, "linestyle": dashes}
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        ax.plot(x, y, zorder=3, label=f"prior, {radius} sd", **circle)
    ax.set_aspect("equal")


def _explain_colours(figure: "Figure | SubFigure", axes: NDArray[Any]) -> None:
    """A legend over the panels, and a colour bar beside them where labels are not categories."""
    entries = axes[0].get_legend_handles_labels()[0]
    figure.legend(
        handles=entries,
        loc="outside upper center",
        ncols=fitting_columns(inches_wide(figure), entries),
        markerscale=(25 / axes[0].collections[0].get_sizes()[0]) ** 0.5,  # to one size for all
        frameon=False,
        fontsize="small",
        columnspacing=1.2,  # narrower than usual, so that the estimate errs on the safe side
    )
    if axes[0].collections[0].get_array() is not None:
        figure.colorbar(axes[0].collections[0], ax=list(axes), label="label")
