"""Pareto k of the importance weights, datum by datum."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Real
from numpy.typing import NDArray

from .drawing import (
    Array,
    as_numpy,
    at_least_one,
    axes_or_new,
    finite_span,
    legend_above,
    style,
    with_minus,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNTRUSTED = 0.7  # no practical number of draws suffices above it (Vehtari et al., 2024)


def plot_pareto_k(
    k: Mapping[str, Real[Array, "..."]],
    *,
    threshold: float = UNTRUSTED,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the Pareto k-hat of each datum's importance weights against the datum's number.

    Above the threshold the marginal likelihood of that datum cannot be trusted, however small its
    standard error. The legend counts these. Data with :math:`\hat k = -\infty` (all weights equal:
    the guide is the posterior) lie on a line of their own at the bottom, those with
    :math:`\hat k = \infty` (too few draws for a tail) at the top; nan cannot be drawn and is
    counted in the legend.

    Arguments:
        k: For each guide the k-hats, `(data,)`.
        threshold: Where the dotted line is, without unit.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes. Its first lines are the guides', in order.

    Raises:
        ValueError: If there is no guide, or k is not one number a datum.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = plot_pareto_k({"global": np.array([0.1, 0.9, np.nan])}, ax=Figure().subplots())
        >>> ax.lines[0].get_label()
        'global: 1/3 > 0.7, 1 nan'
    """
    hats = {name: _hats(name, values) for name, values in at_least_one(k).items()}
    low, high = finite_span([*hats.values(), np.array([0.0, threshold])])
    rim = 0.15 * (high - low)  # how far beyond the numbers the infinities are drawn
    ax = axes_or_new(ax, (6.4, 4.0))
    for number, (name, values) in enumerate(hats.items()):
        shown = np.clip(values, low - rim, high + rim)  # moves the infinities only
        size = float(np.clip(60 / max(len(values), 1) ** 0.5, 2, 5))
        label = f"{name}: {_counts(values, threshold)}"
        ax.plot(shown, linestyle="none", markersize=size, label=label, **style(number))
    ax.axhline(threshold, color="0.25", linestyle=":", label=f"threshold {threshold:g}")
    ax.set(xlabel="datum", ylabel=r"Pareto $\hat k$")
    ax.locator_params(axis="x", integer=True)
    _mark_infinities(ax, np.concatenate(list(hats.values())), (low, high), rim)
    legend_above(ax, ax.get_legend_handles_labels()[0])
    return without_box(ax)


def _hats(name: str, values: Array) -> NDArray[Any]:
    hats = as_numpy(values)
    if hats.ndim != 1:
        raise ValueError(
            f"expected k of shape (data,) for {name!r}, got {hats.shape}: pass one k-hat a datum"
        )
    return hats


def _counts(values: NDArray[Any], threshold: float) -> str:
    missing = int(np.isnan(values).sum())
    above = f"{int((values > threshold).sum())}/{len(values)} > {threshold:g}"
    return f"{above}, {missing} nan" if missing else above


def _mark_infinities(
    ax: "Axes", values: NDArray[Any], span: tuple[float, float], rim: float
) -> None:
    """Sets limits that hold the infinities, gives these ticks of their own, and says what they are.

    Without infinities the axis keeps its ordinary ticks.
    """
    low, high = span
    note: dict[str, Any] = {"fontsize": "small", "color": "0.25"}
    note["transform"] = ax.get_yaxis_transform()
    bottom, top, ticks = low - rim / 2, high + rim / 2, {}
    if np.isneginf(values).any():
        bottom, ticks[r"$-\infty$"] = low - 2.2 * rim, low - rim
        ax.text(0.01, low - 1.3 * rim, r"$-\infty$: all weights equal", va="top", **note)
    if np.isposinf(values).any():
        top, ticks[r"$\infty$"] = high + 2.2 * rim, high + rim
        ax.text(0.01, high + 1.3 * rim, r"$\infty$: no tail to fit", va="bottom", **note)
    if ticks:
        inside = {
            with_minus(f"{tick + 0.0:.4g}"): tick for tick in ax.get_yticks() if low <= tick <= high
        }
        ax.set_yticks([*ticks.values(), *inside.values()], labels=[*ticks, *inside])
    ax.set_ylim(bottom, top)
