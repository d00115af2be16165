"""Signal to noise of gradients against the number of particles."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .drawing import Number, as_numpy, at_least_one, axes_or_new, legend_above, style, without_box

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_signal_to_noise(
    ratios: Mapping[str, Mapping[int, tuple[Number, Number]]],
    *,
    floor: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the signal-to-noise ratio of objectives against their particles, both on log scales.

    Thin lines have the slopes 1/2 and -1/2 that doubly and plainly reparameterized gradients of
    importance-weighted bounds approach; they start at the first point of the first objective.
    Bars are one standard error to each side. A ratio of 0 has no place on a log scale and is left
    out.

    Arguments:
        ratios: For each objective, and each number of particles, an
            :class:`~pyro_vae.Estimate` or another pair of ratio and standard error.
        floor: What noise alone gives (:attr:`pyro_vae.diagnostics.GradientNoise.floor`), if the
            ratios have one: shaded below it.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no objective, or one has no number of particles.

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
        | https://arxiv.org/abs/1802.04537

    Example:
        >>> from matplotlib.figure import Figure
        >>> ratios = {"IWAE": {1: (0.4, 0.01), 4: (0.2, 0.01)}, "DReG": {1: (0.4, 0.01)}}
        >>> ax = plot_signal_to_noise(ratios, ax=Figure().subplots())
        >>> ax.get_xscale(), ax.get_yscale()
        ('log', 'log')
    """
    points = {name: _points(name, line) for name, line in at_least_one(ratios).items()}
    ax = axes_or_new(ax, (5.4, 4.0))
    for number, (name, (particles, values, errors)) in enumerate(points.items()):
        shown = values > 0
        bars = np.stack([np.minimum(errors, 0.999 * values), errors])[:, shown]  # a log scale
        look: dict[str, Any] = {"capsize": 3, "markersize": 5, "linewidth": 1.2, **style(number)}
        ax.errorbar(particles[shown], values[shown], yerr=bars, label=name, **look)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    _guide_lines(ax, points)
    if floor is not None:
        ax.axhspan(0, floor, color="0.9", zorder=0, label="noise alone")
    every = sorted({int(count) for particles, _, _ in points.values() for count in particles})
    ax.set_xticks(every, labels=[str(count) for count in every])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="particles a datum", ylabel="signal to noise of a gradient")
    entries = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    legend_above(ax, [entries[name] for name in (*points, "noise alone") if name in entries])
    return without_box(ax)


_Points = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def _points(name: str, line: Mapping[int, tuple[Number, Number]]) -> _Points:
    if not line:
        raise ValueError(f"expected at least one number of particles for {name!r}, got none")
    particles: Sequence[int] = sorted(line)
    pairs = np.array([[float(as_numpy(part)) for part in line[count]] for count in particles])
    return np.array(particles, dtype=float), pairs[:, 0], pairs[:, 1]


def _guide_lines(ax: "Axes", points: Mapping[str, _Points]) -> None:
    """Slopes that theory has, without moving the limits."""
    particles = np.unique(np.concatenate([part[0] for part in points.values()]))
    first = next(iter(points.values()))
    if len(particles) < 2 or first[1][0] <= 0:
        return
    limits = ax.get_ylim()
    for power, words in ((0.5, r"$\propto K^{1/2}$"), (-0.5, r"$\propto K^{-1/2}$")):
        height = first[1][0] * (particles / first[0][0]) ** power
        ax.plot(particles, height, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        inside = (height >= limits[0]) & (height <= limits[1])
        place = np.flatnonzero(inside)[-1] if inside.any() else 0
        note: dict[str, Any] = {"color": "0.35", "fontsize": "small", "textcoords": "offset points"}
        align = "bottom" if power > 0 else "top"
        ax.annotate(words, (particles[place], height[place]), (-4, 4 if power > 0 else -4),
                    ha="right", va=align, **note)  # fmt: skip
    ax.set_ylim(limits)
