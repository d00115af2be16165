"""The ELBO over the epochs."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .drawing import (
    Array,
    as_numpy,
    at_least_one,
    axes_or_new,
    handles,
    legend_above,
    listed,
    style,
    without_box,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@runtime_checkable
class LearningCurve(Protocol):
    """What one training run leaves: arrays over the epochs.

    An attribute `validation_elbo`, `(epochs,)` in nats a datum and nan where it was not evaluated,
    is drawn too where there is one that is not `None`.
    """

    @property
    def epoch(self) -> Array:
        """Epochs, `(epochs,)`."""

    @property
    def elbo(self) -> Array:
        """Training ELBO, `(epochs,)`, in nats a datum."""


def plot_learning_curves(
    curves: Mapping[str, LearningCurve], *, ax: "Axes | None" = None
) -> "Axes":
    """Draws the ELBO against the epoch: training solid, validation dashed, a colour a guide.

    The first epochs are often lower by orders of magnitude and would flatten all that follows. The
    vertical axis therefore starts at the lowest of, over all curves, the 5% quantile of the
    later half and the last value, so that earlier parts of a curve may come in from below.
    Nothing is cut off at the top.

    Arguments:
        curves: For each guide an object with arrays `epoch` and `elbo`, and perhaps
            `validation_elbo`, each `(epochs,)`; ELBOs in nats a datum.
        ax: Where to draw; a new pyplot figure by default.

    Returns:
        The axes. Its lines are, guide by guide, the training curve and then the validation curve,
        if there is one, at the epochs where it is a number.

    Raises:
        ValueError: If there is no curve, or the arrays of one differ in shape.

    Example:
        >>> from types import SimpleNamespace
        >>> from matplotlib.figure import Figure
        >>> curve = SimpleNamespace(epoch=np.arange(3), elbo=np.array([-900.0, -25.0, -20.0]))
        >>> ax = plot_learning_curves({"amortized": curve}, ax=Figure().subplots())
        >>> ax.get_ylabel()
        'ELBO (nats a datum)'
    """
    traces = {name: _traces(name, curve) for name, curve in at_least_one(curves).items()}
    ax = axes_or_new(ax, (6.4, 4.0))
    for number, pair in enumerate(traces.values()):
        _draw(ax, pair, number)
    _limit_elbo(ax, [trace.elbo for trace in chain.from_iterable(traces.values())])
    ax.set(xlabel="epoch", ylabel="ELBO (nats a datum)")
    ax.locator_params(axis="x", integer=True)
    legend_above(ax, _legend_entries(traces))
    return without_box(ax)


class Trace(NamedTuple):
    """One line of a learning curve: its label, dashes, epochs and values."""

    label: str
    linestyle: Any
    epoch: NDArray[Any]
    elbo: NDArray[Any]


def _traces(name: str, curve: LearningCurve) -> list[Trace]:
    epoch, elbo = as_numpy(curve.epoch), as_numpy(curve.elbo)
    validation = getattr(curve, "validation_elbo", None)
    held_out = np.full(elbo.shape, np.nan) if validation is None else as_numpy(validation)
    shapes = [epoch.shape, elbo.shape, held_out.shape]
    if epoch.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(
            f"expected epoch, elbo and validation_elbo of one shape (epochs,) for {name!r}, got "
            f"{listed(shapes)}: give one value an epoch, nan where there is none"
        )
    traces = [Trace(f"{name}, training", "-", epoch, elbo)]
    # Evaluations may be epochs apart: without the gaps between them the dashes join up.
    seen = np.isfinite(held_out)
    if seen.any():
        traces.append(Trace(f"{name}, validation", "--", epoch[seen], held_out[seen]))
    return traces


def _draw(ax: "Axes", traces: Sequence[Trace], number: int) -> None:
    for label, dashes, epoch, elbo in traces:
        # About five markers a line, shifted from guide to guide so that they do not pile up.
        every = max(1, len(epoch) // 5)
        marks: dict[str, Any] = {"markevery": (number * every // 3 % every, every), "markersize": 5}
        ax.plot(epoch, elbo, linestyle=dashes, label=label, **marks, **style(number))


def _limit_elbo(ax: "Axes", values: Iterable[NDArray[Any]]) -> None:
    finite = [elbo[np.isfinite(elbo)] for elbo in values]
    finite = [elbo for elbo in finite if len(elbo)]
    if not finite:
        return
    low = min(min(np.quantile(elbo[len(elbo) // 2 :], 0.05), elbo[-1]) for elbo in finite)
    high = max(elbo.max() for elbo in finite)
    margin = 0.05 * (high - low) or 1.0  # a single value: one nat above and below
    ax.set_ylim(low - margin, high + margin)


def _legend_entries(traces: Mapping[str, Sequence[Trace]]) -> list[Any]:
    from matplotlib.lines import Line2D

    entries = handles(traces)
    if any(len(pair) > 1 for pair in traces.values()):
        entries.append(Line2D([], [], color="0.3", linestyle="-", label="training"))
        entries.append(Line2D([], [], color="0.3", linestyle="--", label="validation"))
    return entries
