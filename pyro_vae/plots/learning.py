"""Plots of training: the ELBO by epoch, gradient noise, and distortion against rate."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..formatting import count_of, typeset
from .drawing import (
    Array,
    Number,
    as_numpy,
    at_least_one,
    axes_or_new,
    entry,
    finite_span,
    handles,
    legend_above,
    log_ticks,
    style,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@runtime_checkable
class LearningCurve(Protocol):
    """The record of one training run: arrays over the epochs.

    If there is an attribute `validation_elbo`, and it is not `None`, it is drawn, too. It has shape
    `(epochs,)`, is in nats per datum, and is nan for epochs in which it was not evaluated.
    """

    @property
    def epoch(self) -> Array:
        """Returns the number of each epoch, `(epochs,)`."""

    @property
    def elbo(self) -> Array:
        """Returns the training ELBO, `(epochs,)`, in nats per datum."""


@runtime_checkable
class _Validated(LearningCurve, Protocol):
    @property
    def validation_elbo(self) -> Array | None: ...


def plot_learning_curves(
    curves: Mapping[str, LearningCurve], *, ax: "Axes | None" = None
) -> "Axes":
    """Draws the ELBO of each epoch: a solid line for training, a dashed line for validation.

    The ELBO of the first epochs is often lower by orders of magnitude, and would flatten the rest
    of the curve. So at least half of the height shows the range of the late epochs. The lower end
    of this range is the smallest of the following numbers: the last value of each curve, and the 5%
    quantile of the second half of each curve. ELBOs far below the range may be cut off.

    Arguments:
        curves: For each guide an object with arrays `epoch` and `elbo`, and perhaps
            `validation_elbo`, each `(epochs,)`. ELBOs are in nats per datum.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes. Each guide has a line for the training curve and, if there is one, another for the
        validation curve, at the epochs in which the validation ELBO was evaluated.

    Raises:
        ValueError: If there is no curve, or the arrays of a curve differ in shape.

    Example:
        >>> from types import SimpleNamespace
        >>> from matplotlib.figure import Figure
        >>> curve = SimpleNamespace(epoch=np.arange(3), elbo=np.array([-900.0, -25.0, -20.0]))
        >>> ax = plot_learning_curves({"amortized": curve}, ax=Figure().subplots())
        >>> ax.get_ylabel()
        'ELBO (nats per datum)'
    """
    traces = {name: _traces(name, curve) for name, curve in at_least_one(curves).items()}
    ax = axes_or_new(ax, (6.4, 4.0))
    for number, pair in enumerate(traces.values()):
        for label, dashes, epoch, elbo in pair:
            # About five markers per line, shifted from guide to guide so that they do not overlap.
            every = max(1, len(epoch) // 5)
            marks: dict[str, Any] = {"markevery": (number * every // 3 % every, every)}
            look = {"linestyle": dashes, "markersize": 5, **style(number)}
            ax.plot(epoch, elbo, label=label, **marks, **look)
    _limit_elbo(ax, [trace.elbo for trace in chain.from_iterable(traces.values())])
    ax.set(xlabel="epoch", ylabel="ELBO (nats per datum)")
    ax.locator_params(axis="x", integer=True)
    entries = handles(traces)
    if any(len(pair) > 1 for pair in traces.values()):
        entries.append(entry("training", color="0.3", linestyle="-"))
        entries.append(entry("validation", color="0.3", linestyle="--"))
    legend_above(ax, entries)
    return without_box(ax)


class Trace(NamedTuple):
    """One line of a learning curve: its label, dashes, epochs and values."""

    label: str
    linestyle: Any
    epoch: NDArray[Any]
    elbo: NDArray[Any]


def _traces(name: str, curve: LearningCurve) -> list[Trace]:
    """Returns the lines of one guide: training and, if there is one, validation."""
    epoch, elbo = as_numpy(curve.epoch), as_numpy(curve.elbo)
    validation = curve.validation_elbo if isinstance(curve, _Validated) else None
    held_out = np.full(elbo.shape, np.nan) if validation is None else as_numpy(validation)
    shapes = [epoch.shape, elbo.shape, held_out.shape]
    if epoch.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(
            "`epoch`, `elbo` and `validation_elbo` must have the same shape (epochs,) for "
            f"{name!r}; got {', '.join(map(str, shapes))}: pass one value per epoch, or nan where "
            "there is none"
        )
    traces = [Trace(f"{name}, training", "-", epoch, elbo)]
    # Evaluations may be epochs apart: the nans between them are dropped, to connect the line.
    seen = np.isfinite(held_out)
    if seen.any():
        traces.append(Trace(f"{name}, validation", "--", epoch[seen], held_out[seen]))
    return traces


def _limit_elbo(ax: "Axes", values: Iterable[NDArray[Any]]) -> None:
    """Limits the vertical axis, so that at least half of it shows the late epochs."""
    finite = [elbo[np.isfinite(elbo)] for elbo in values]
    finite = [elbo for elbo in finite if len(elbo)]
    if not finite:
        return
    low = min(min(np.quantile(elbo[len(elbo) // 2 :], 0.05), elbo[-1]) for elbo in finite)
    high = max(elbo.max() for elbo in finite)
    low = min(low, max(min(elbo.min() for elbo in finite), 2 * low - high))
    margin = 0.05 * (high - low) or 1.0  # a single value: one nat above and below
    ax.set_ylim(low - margin, high + margin)


def plot_signal_to_noise(
    ratios: Mapping[str, Mapping[int, tuple[Number, Number]]],
    *,
    floor: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the signal-to-noise ratio of objectives' gradients against the number of particles.

    Both axes are logarithmic. For many particles, the ratio of an importance-weighted bound
    follows a line of slope 1/2 if its gradient is doubly reparameterized, and a line of slope -1/2
    if its gradient is reparameterized in the ordinary way.
    Thin lines with these slopes start at the first point of the first objective. Bars extend one
    standard error to each side. A ratio of 0 cannot be shown on a log scale and is left out.

    Arguments:
        ratios: For each objective, by name, a mapping from numbers of particles to ratios. Each
            ratio is an :class:`~pyro_vae.Estimate` or another pair of ratio and standard error.
        floor: The ratio that pure noise would give
            (:attr:`pyro_vae.diagnostics.GradientNoise.floor`); the region below it is shaded.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no objective, or an objective has no ratios.

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
    points = {name: _ratios(name, line) for name, line in at_least_one(ratios).items()}
    ax = axes_or_new(ax, (5.4, 4.0))
    for number, (name, (particles, values, errors)) in enumerate(points.items()):
        shown = values > 0
        bars = np.stack([np.minimum(errors, 0.999 * values), errors])[:, shown]  # above 0, for logs
        look: dict[str, Any] = {"capsize": 3, "markersize": 5, "linewidth": 1.2, **style(number)}
        ax.errorbar(particles[shown], values[shown], yerr=bars, label=name, **look)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    _guide_lines(ax, points)
    log_ticks(ax.yaxis)
    if floor is not None:
        ax.axhspan(0, floor, color="0.9", zorder=0, label="noise alone")
    every = sorted({int(count) for particles, _, _ in points.values() for count in particles})
    ax.set_xticks(every, labels=[str(count) for count in every])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="particles per datum", ylabel="signal to noise of a gradient")
    entries = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    legend_above(ax, [entries[name] for name in (*points, "noise alone") if name in entries])
    return without_box(ax)


_LOWER = 0.15  # room for the label of the falling line, as a share of the span
_Ratios = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def _ratios(name: str, line: Mapping[int, tuple[Number, Number]]) -> _Ratios:
    """Returns numbers of particles, ratios and errors, `(points,)` each."""
    if not line:
        raise ValueError(f"{name!r} must have at least one ratio; got an empty mapping")
    particles: Sequence[int] = sorted(line)
    pairs = np.array([[float(as_numpy(part)) for part in line[count]] for count in particles])
    return np.array(particles, dtype=float), pairs[:, 0], pairs[:, 1]


def _guide_lines(ax: "Axes", points: Mapping[str, _Ratios]) -> None:
    """Draws lines with the slopes that theory predicts, without changing the limits of the axes."""
    particles = np.unique(np.concatenate([part[0] for part in points.values()]))
    first = next(iter(points.values()))
    if len(particles) < 2 or first[1][0] <= 0:
        return
    low, high = ax.get_ylim()
    low *= (low / high) ** _LOWER
    start, ratio = first[0][0], first[1][0]
    for power, words in ((0.5, r"$\propto K^{1/2}$"), (-0.5, r"$\propto K^{-1/2}$")):
        height = ratio * (particles / start) ** power
        ax.plot(particles, height, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        leaves = start * ((high if power > 0 else low) / ratio) ** (1 / power)
        middle = (start * min(particles[-1], leaves)) ** 0.5  # of the visible part of the line
        note: dict[str, Any] = {"color": "0.35", "fontsize": "small", "textcoords": "offset points"}
        align = "bottom" if power > 0 else "top"
        ax.annotate(words, (middle, ratio * (middle / start) ** power),
                    (-4, 4 if power > 0 else -4), ha="right", va=align, **note)  # fmt: skip
    ax.set_ylim(low, high)


_MARGIN = 0.08  # margin around the points, as a share of the span
_BELOW = 0.16  # room for the betas and the labels of the lines, as a share of the span
_BESIDE = 0.16  # room for the labels of the lines at the right
_SAME = 0.035  # share of the span: points closer to one another share a label
_LINES = 8  # approximate number of lines of equal ELBO


class _Points(NamedTuple):
    """Rates and distortions of one curve, and the errors of both, `(betas,)` each."""

    rate: NDArray[Any]
    distortion: NDArray[Any]
    errors: tuple[NDArray[Any], NDArray[Any]]


def plot_rate_distortion(
    betas: Number,
    curves: Mapping[str, tuple[tuple[Number, Number], tuple[Number, Number]]],
    *,
    information: tuple[Number, Number] | None = None,
    entropy: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws distortion against rate, a point for each beta, over lines of equal ELBO.

    Along a line of slope -1 the ELBO is constant. At an optimum the curve has the slope
    :math:`-\beta`, so at :math:`\beta = 1` the curve touches the line of the highest ELBO. If the
    information :math:`I` is given, it is drawn as a tick to the left of each point of the first
    curve, and connected to this point by a line. The entropy :math:`H`, the distortion :math:`D`
    and the rate :math:`R` bound it: :math:`H - D \le I \le R`. So the tick lies between the point
    and the shaded region, which no model and guide can reach.

    Arguments:
        betas: The weights of the rate, `(betas,)`.
        curves: The rate and the distortion of each curve, by the name of the curve (such as
            "training data" and "held out"). Each is an :class:`~pyro_vae.Estimate` or another pair
            of values and errors, `(betas,)`, in nats per datum. Bars extend one error to each side.
            Betas are written beside the first curve.
        information: Mutual information at the points of the first curve: values and errors,
            `(betas,)` each, in nats.
        entropy: Entropy of the data of the first curve, in nats per datum, if known. The region
            that the entropy rules out is shaded, as far as it is within the axes.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes, whose attribute `containers` has the curves, in order.

    Raises:
        ValueError: If there is no curve, or a curve lacks a number for some beta.

    Example:
        >>> from matplotlib.figure import Figure
        >>> none = np.zeros(3)
        >>> rate, distortion = (np.array([6.0, 3.0, 0.0]), none), (np.array([1.0, 3.0, 9.0]), none)
        >>> curves = {"training data": (rate, distortion)}
        >>> ax = plot_rate_distortion(np.array([0.5, 1, 4]), curves, ax=Figure().subplots())
        >>> [text.get_text() for text in ax.texts][:3]
        ['β = 0.5', '1', '4']
    """
    weights = np.atleast_1d(as_numpy(betas)).astype(float)
    points = {name: _points(name, curve, weights) for name, curve in at_least_one(curves).items()}
    ax = axes_or_new(ax, (6.4, 4.4))
    first = next(iter(points.values()))
    between = None if information is None else _column("information", information, weights)[0]
    _set_limits(ax, points, between)
    entries = handles(points)
    for number, curve in enumerate(points.values()):
        xerr, yerr = curve.errors
        look = {"linewidth": 1.2, "markersize": 5, "zorder": 3, **style(number)}
        ax.errorbar(curve.rate, curve.distortion, xerr=xerr, yerr=yerr, **look)
    if between is not None:
        entries += _draw_information(ax, between, first)
    if entropy is not None and entropy > ax.get_xlim()[0] + ax.get_ylim()[0]:
        entries += _shade(ax, entropy)
    _write_betas(ax, weights, first)
    _draw_lines(ax, -np.inf if entropy is None else entropy)
    ax.set(xlabel="rate (nats per datum)", ylabel="distortion (nats per datum)")
    legend_above(ax, entries)
    return without_box(ax)


def _points(name: str, curve: tuple[Any, Any], weights: NDArray[Any]) -> _Points:
    """Returns the points of a curve, after checking that there is one for each beta."""
    (rate, rate_error), (distortion, error) = (_column(name, pair, weights) for pair in curve)
    return _Points(rate, distortion, (rate_error, error))


def _column(name: str, pair: tuple[Number, Number], weights: NDArray[Any]) -> NDArray[Any]:
    """Returns values and errors, such as rates and their errors, as an array `(2, betas)`."""
    columns = [as_numpy(part) for part in pair]
    if len(columns) != 2 or any(column.shape != weights.shape for column in columns):
        raise ValueError(
            f"values and errors of {name!r} must be given for each of the "
            f"{count_of(weights.size, 'beta')}; got the shapes "
            f"{', '.join(str(column.shape) for column in columns)}"
        )
    return np.stack(columns)


def _set_limits(ax: "Axes", points: Mapping[str, _Points], between: NDArray[Any] | None) -> None:
    """Fixes the limits of the axes, so that lines and labels drawn later cannot widen them."""
    rates = [points.rate for points in points.values()]
    horizontal = [*rates, *([] if between is None else [between]), np.zeros(1)]
    vertical = [points.distortion for points in points.values()]
    sides = (
        (horizontal, (_MARGIN, _BESIDE), ax.set_xlim),
        (vertical, (_BELOW, _MARGIN), ax.set_ylim),
    )
    for values, (before, after), set_limits in sides:
        low, high = finite_span(values)
        span = (high - low) or 1.0
        set_limits(low - before * span, high + after * span)


def _draw_information(ax: "Axes", between: NDArray[Any], first: _Points) -> list[Any]:
    """Draws a tick where the rate equals a point's information.

    A thin line connects the tick to its point.
    """
    thin: dict[str, Any] = {"color": "0.35", "linewidth": 0.8, "zorder": 2}
    ax.hlines(first.distortion, between, first.rate, label="_information", **thin)
    (ticks,) = ax.plot(
        between,
        first.distortion,
        linestyle="none",
        marker="|",
        markersize=9,
        color="0.35",
        label="information",
    )
    return [ticks]


def _shade(ax: "Axes", entropy: float) -> list[Any]:
    """Shades the impossible region, in which distortion + rate is below the entropy."""
    limits = np.array(ax.get_xlim())
    bottom = min(ax.get_ylim()[0], float((entropy - limits).min()))
    label = f"below H = {entropy:.2f}: impossible"
    edge: dict[str, Any] = {"facecolor": "0.88", "edgecolor": "0.5", "hatch": "///"}
    return [ax.fill_between(limits, entropy - limits, bottom, linewidth=0, label=label, **edge)]


def _write_betas(ax: "Axes", weights: NDArray[Any], points: _Points) -> None:
    """Writes beta below each point; successive points that nearly coincide share a label."""
    places = np.stack([points.rate, points.distortion], axis=1)
    spans = np.array([np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())])
    groups = [[0]]
    for before, number in pairwise(range(len(places))):
        near = (np.abs(places[number] - places[groups[-1][0]]) < _SAME * spans).all()
        groups[-1].append(number) if near and before in groups[-1] else groups.append([number])
    look: dict[str, Any] = {"xytext": (-2, -5), "textcoords": "offset points", "ha": "right"}
    look |= {"va": "top", "fontsize": "small", "zorder": 4}
    look["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
    for group in groups:
        ends = dict.fromkeys([f"{weights[group[0]]:g}", f"{weights[group[-1]]:g}"])
        text = "\N{EN DASH}".join(ends)
        ax.annotate(text if group[0] else f"β = {text}", tuple(places[group[0]]), **look)


def _draw_lines(ax: "Axes", floor: float) -> None:
    """Draws lines of equal ELBO, with labels where the lines leave the axes (right or bottom).

    Lines on which distortion plus rate is below `floor` are left out.
    """
    from matplotlib.ticker import MaxNLocator

    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    sums = np.asarray(MaxNLocator(_LINES).tick_values(left + bottom, right + top))
    note: dict[str, Any] = {"fontsize": "x-small", "color": "0.35", "ha": "right", "va": "bottom"}
    for total in sums[sums > floor].tolist():
        ax.plot([left, right], [total - left, total - right], color="0.75", linewidth=0.7, zorder=1)
        x = min(right, total - bottom)
        if left + 0.1 * (right - left) < x and total - x < top - 0.05 * (top - bottom):
            text = typeset(f"ELBO {-total:g}")
            ax.text(x, total - x, text, clip_on=True, **note)
