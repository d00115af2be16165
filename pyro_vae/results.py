"""The contract of every result: how it is shown, and how far it can be trusted.

A :class:`Result` has `summary()`, `plot()`, a short `repr` and an HTML form. A result with numbers
per datum is a :class:`PerDatum`: it also has values with errors, doubts, means that never silently
leave out data, a way to select data, and a data frame. Results are dataclasses of tensors. This
module alone slices, joins and updates results, field by field.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from . import stats
from ._notebooks import html_of, picture_of
from ._types import Estimate, is_importable, optional
from .formatting import counted, every_datum, some_of

if TYPE_CHECKING:
    from typing import Self

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["Doubt", "Doubts", "Mean", "MeanOverData", "PerDatum", "Result"]

Rows: TypeAlias = int | slice | Sequence[int] | Tensor
_Some = TypeVar("_Some")
_MOST_DRAWN = 5000  # data; a plot of so many takes about 0.3 seconds


class Doubt(Enum):
    """All reasons why an estimate may not be trusted, in the words that users read."""

    HEAVY_TAIL = "a few weights dominate the estimate, and larger weights may not have been drawn"
    NO_TAIL = "there are fewer than 30 draws, too few to fit the tail of the weights"
    ERROR_TARGET = "the maximum number of draws was too small for the requested error"
    ELBO_TAIL = "a few draws dominate the ELBO, which may be far lower than estimated"
    SD_TAIL = "a few draws dominate a posterior standard deviation, which may be far larger"
    ZERO_WEIGHTS = "the joint density is 0 at every point that was tried"
    FEW_EFFECTIVE_CHAINS = "there are too few effective chains"
    FEW_EFFECTIVE_DRAWS = "there are too few effective draws of the posterior to test the guide"
    ACCEPTANCE = "the acceptance rate of the chains is far from its target"
    TOLERANCE = "the error exceeds the tolerance at the maximum number of points"
    UNDEFINED = "the log joint is nan at points next to the posterior's mass"
    UNSETTLED = "the search for modes reached its limit too early to tell whether it found them all"
    SEVERAL_MODES = "the posterior has several modes"
    UNREACHED = "the posterior has tails, or modes away from its mean, that the draws do not reach"
    MISSED_MASS = "draws of the prior or a particle filter find mass that the estimate missed"
    RUNGS_DISAGREE = "two independent estimates disagree"
    CHAINS_APART = "chains have not converged to the same distribution (R-hat)"
    TIME_LIMIT = "the time limit was reached before an estimate of log p(y) was accepted"
    FIT_STOPPED = "the fit of q* stopped before it converged"
    INFINITE = "the model rules out some draws of the guide, so the ELBO is minus infinity"
    BEATEN = "the guide beats q*, so q* was not found or the guide has a richer family"
    NEGATIVE_INFERENCE = "the inference gap is negative, so the estimate of log p(y) is too low"
    NEGATIVE_APPROXIMATION = (
        "the approximation gap is negative, so the estimate of log p(y) is too low"
    )
    SATURATED = (
        "a latent rounds to an edge of its support, and the program depends on the lost digits"
    )
    OTHER = "a user-defined estimator reports that the value is not reliable"


Doubts: TypeAlias = Mapping[Doubt, Bool[Tensor, " batch"]]
"""Maps each reason to a mask of the data that it applies to."""


class Mean(Estimate):
    """A mean over data, with the number of data in doubt, and the mean over all other data.

    Arguments:
        value: The mean over all data.
        error: Monte Carlo error of the mean.
        num_data: Number of data.
        num_doubted: Number of data that cannot be trusted.
        trusted: The mean over the data that can be trusted; nan if there are none.
    """

    num_data: int
    num_doubted: int
    trusted: Estimate

    @classmethod
    def over(cls, estimate: Estimate, reliable: Bool[Tensor, " batch"]) -> "Mean":
        """Averages over the data, which are the first axis of the (independent) estimates."""
        mean = cls(*_mean(estimate))
        mean.num_data = len(reliable)
        mean.num_doubted = int((~reliable).sum())
        mean.trusted = _mean(Estimate(*(part[reliable] for part in estimate)))
        return mean

    def __repr__(self) -> str:
        if self.num_doubted == 0:
            return format(self)
        doubted = f"{some_of(self.num_doubted, self.num_data)} cannot be trusted"
        if self.num_doubted < self.num_data:
            doubted += f"; {self.trusted} without them"
        return f"{format(self)} ({doubted})"


class MeanOverData(Mean):
    """A mean over data with two errors: one due to the draws, one due to the sample of data.

    Arguments:
        value: The mean over all data.
        error: Monte Carlo error: how far other draws would move the mean, on the same data.
        population_error: Sampling error: how far other data would move the mean. It is computed
            from the spread over data, so it includes the Monte Carlo error.
    """

    population_error: Tensor

    @classmethod
    def over(cls, estimate: Estimate, reliable: Bool[Tensor, " batch"]) -> "MeanOverData":
        """Averages over the data, of which there must be at least two."""
        mean = super().over(estimate, reliable)
        assert isinstance(mean, cls)
        mean.population_error = stats.population_mean(estimate.value.double()).error
        return mean

    def __repr__(self) -> str:
        spread = Estimate(self.value, self.population_error)
        return f"{super().__repr__()}, {spread} with the error from the sample of data"


def _mean(estimate: Estimate) -> Estimate:
    value, error = (part.double() for part in estimate)
    return Estimate(value.mean(dim=0), error.square().sum(dim=0).sqrt() / max(1, len(value)))


class Result:
    """The base class of every result.

    A subclass defines `plot`, and `summary`, whose last line is a verdict.
    """

    def summary(self) -> str:
        """The result in words and numbers; the last line is the verdict."""
        raise NotImplementedError

    def plot(self) -> "Axes | NDArray[Any] | dict[str, Figure]":
        """Plots the result in a new pyplot figure; needs matplotlib.

        Which of the types below is returned depends on the class of the result, never on the data.

        Returns:
            The `Axes` if the plot is a single panel, and a NumPy array of `Axes` with one or two
            dimensions if it is a grid of panels (even if the grid has only one), as from
            `matplotlib.pyplot.subplots` and ArviZ. A comparison of guides has several figures, and
            returns a dictionary of them.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary().splitlines()[-1]}>"

    def _repr_html_(self) -> str:
        text = html_of(self.summary())
        if not (self._is_drawn_fast and is_importable("matplotlib")):
            return text
        return text + picture_of(self._picture, f"plot of this {type(self).__name__}")

    @property
    def _is_drawn_fast(self) -> bool:
        """Whether the plot takes only a fraction of a second; if so, notebooks always show it."""
        return True

    def _picture(self) -> "Figure":
        """Draws the plot that notebooks show."""
        from .plots.drawing import figure_of

        drawn = self.plot()
        assert not isinstance(drawn, dict), "a result with several figures chooses one"
        return figure_of(drawn)


class PerDatum(Result):
    """A result with one number, or several, per datum: a frozen dataclass of tensors.

    A subclass has fields or properties `value` and `error`, `(batch, ...)`, and `doubts`. The first
    axis of a tensor indexes the data. The metadata of a field can name another `axis`, or None if
    all data share the field's value.
    """

    _averaged = "mean"  # the name of the mean of `value` in verdicts

    def __init_subclass__(cls) -> None:
        """Makes `summary` return "no data" for an empty result, which has no mean."""
        summary: Callable[..., str] | None = vars(cls).get("summary")
        if summary is None:
            return

        @wraps(summary)
        def summary_of_some(self: PerDatum, *args: Any, **kwargs: Any) -> str:
            return summary(self, *args, **kwargs) if len(self) > 0 else "no data"

        cls.summary = summary_of_some  # type: ignore[assignment, method-assign]

    if TYPE_CHECKING:  # fields in some subclasses, properties in others

        @property
        def value(self) -> Tensor: ...

        @property
        def error(self) -> Tensor: ...

        @property
        def doubts(self) -> Doubts: ...

    @property
    def estimate(self) -> Estimate:
        """Value and error of every datum."""
        return Estimate(self.value, self.error)

    @property
    def reliable(self) -> Bool[Tensor, " batch"]:
        """A mask of the data that pass every check."""
        return ~any_of(self.doubts, torch.zeros(len(self), device=self.value.device))

    def why_not(self, row: int) -> list[str]:
        """Returns the reasons to doubt the numbers of one datum, in words; may be empty."""
        return [doubt.value for doubt, mask in self.doubts.items() if bool(mask[row])]

    @property
    def doubt_counts(self) -> dict[Doubt, int]:
        """Number of data for each reason for doubt; reasons that apply to no data are left out."""
        counts = {doubt: int(mask.sum()) for doubt, mask in self.doubts.items()}
        return {doubt: count for doubt, count in counts.items() if count}

    @property
    def reasons(self) -> str:
        """The reasons for doubt, with their counts, in words; empty if there are none."""
        return counted((doubt.value, count) for doubt, count in self.doubt_counts.items())

    @property
    def mean(self) -> Any:
        """Mean over data with its Monte Carlo error, and the mean without data in doubt."""
        return Mean.over(self.estimate, self.reliable)

    def _doubts_in_words(self) -> str:
        """Says how many data cannot be trusted, and why."""
        bad = int((~self.reliable).sum())
        if bad == 0:
            return f"{every_datum(len(self))} can be trusted"
        return f"{some_of(bad, len(self))} cannot be trusted ({self.reasons})"

    def trust(self) -> str:
        """Says how many data cannot be trusted, and why, and gives the mean of all other data."""
        bad = int((~self.reliable).sum())
        if bad in (0, len(self)):
            return self._doubts_in_words()
        mean = Mean.over(self.estimate, self.reliable).trusted
        return f"{self._doubts_in_words()}; without these data, the {self._averaged} is {mean}"

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, rows: Rows) -> "Self":
        """The result for some of the data, selected by positions, a slice or a mask."""
        if isinstance(rows, slice):  # torch takes no step of -1
            rows = list(range(len(self))[rows])
        places = torch.arange(len(self), device="cpu")[
            rows.cpu() if isinstance(rows, Tensor) else rows
        ]
        return at_rows(self, places.reshape(-1))

    def columns(self) -> dict[str, Tensor]:
        """The numbers for the data frame: tensors `(batch, ...)` by the name of their column."""
        return {"value": self.value, "error": self.error}

    def as_columns(self) -> dict[str, Any]:
        """Returns the numbers, `reliable` and `why_not` of every datum, as columns by name."""
        numbers = {
            name: part.numpy()
            for column, tensor in self.columns().items()
            for name, part in _flat(column, tensor.detach().cpu()).items()
        }
        why = ["; ".join(self.why_not(row)) for row in range(len(self))]
        return {**numbers, "reliable": self.reliable.cpu().numpy(), "why_not": why}

    def to_dataframe(self) -> Any:
        """Makes a data frame of :meth:`as_columns`, with a row per datum; needs pandas."""
        return data_frame(self.as_columns())

    def plot(self) -> "Axes | NDArray[Any]":
        """Plots values with errors, lowest first, and marks data that cannot be trusted."""
        from .plots import plot_per_datum

        return plot_per_datum(self.value, self.error, self.reliable)

    @property
    def _is_drawn_fast(self) -> bool:
        return 0 < len(self) <= _MOST_DRAWN


def data_frame(data: Any) -> Any:
    """Makes a pandas data frame.

    Raises:
        ImportError: If pandas is not installed.
    """
    return optional("pandas", needed_for="to_dataframe()").DataFrame(data)


def with_errors(parts: Mapping[str, Estimate]) -> dict[str, Tensor]:
    """Returns the columns of several quantities: `name` and `name_error` for each of them."""
    return {
        f"{name}{ending}": column
        for name, part in parts.items()
        for ending, column in zip(("", "_error"), part, strict=True)
    }


def _flat(name: str, column: Shaped[Tensor, "batch *datum"]) -> dict[str, Tensor]:
    """Splits a column with several numbers per datum into columns with one number per datum."""
    if column.dim() == 1:
        return {name: column}
    entries = column.flatten(1).T
    return {f"{name}[{place}]": entry for place, entry in enumerate(entries)}


def combined(parts: list[Any], merge: Callable[[list[Tensor], int], Tensor], axis: int = 0) -> Any:
    """Merges results of the same type, tensor by tensor.

    Fields without tensors must be the same in all results. A reason for doubt that a result does
    not list applies to none of its data.

    Arguments:
        parts: Results of one type: tensors, or dataclasses, tuples, lists and mappings of tensors.
        merge: Combines the results' tensors for one field, given the axis that indexes the data.
        axis: The axis that indexes the data, unless a field's metadata name another "axis".
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return merge(parts, axis)
    if is_dataclass(first) and not isinstance(first, type):
        if "doubts" in {entry.name for entry in fields(first)}:
            parts = _with_the_same_doubts(parts)
        merged = {}
        for entry in fields(first):
            column, own = [getattr(part, entry.name) for part in parts], entry.metadata
            at = own.get("axis", axis)
            merged[entry.name] = column[0] if at is None else combined(column, merge, at)
        return type(first)(**merged)
    if isinstance(first, Mapping):
        return {key: combined([part[key] for part in parts], merge, axis) for key in first}
    if isinstance(first, tuple | list):
        entries = [combined(list(column), merge, axis) for column in zip(*parts, strict=True)]
        is_plain = type(first) in (tuple, list)
        return type(first)(entries) if is_plain else type(first)(*entries)
    return first


def either(first: Doubts, second: Doubts) -> dict[Doubt, Tensor]:
    """Merges the doubts of two results: a datum is in doubt if it is in doubt in either result."""
    return {
        doubt: torch.stack([part[doubt] for part in (first, second) if doubt in part]).any(dim=0)
        for doubt in {**first, **second}
    }


def any_of(doubts: Doubts, like: Tensor) -> Tensor:
    """Returns a mask of the data to which at least one doubt applies, in the shape of `like`."""
    nobody = torch.zeros_like(like, dtype=torch.bool)
    return torch.stack([nobody, *doubts.values()]).any(dim=0)


def _with_the_same_doubts(parts: list[Any]) -> list[Any]:
    """Adds to each result the doubts that only other results have, with all-false masks."""
    known = dict.fromkeys(doubt for part in parts for doubt in part.doubts)
    absent = [part.value.new_zeros(len(part), dtype=torch.bool) for part in parts]
    return [
        replace(part, doubts={**dict.fromkeys(known, nobody), **part.doubts})
        for part, nobody in zip(parts, absent, strict=True)
    ]


def join(parts: list[_Some], axis: int = 0) -> _Some:
    """Joins results of the same type, each for some of the data, into one result.

    Example:
        >>> means, errors = join([(torch.zeros(3), torch.ones(3)), (torch.zeros(2), torch.ones(2))])
        >>> means.shape, errors.sum()
        (torch.Size([5]), tensor(5.))
    """
    return parts[0] if len(parts) == 1 else combined(parts, torch.cat, axis)


def at_rows(result: _Some, rows: Tensor) -> _Some:
    """Returns the values and doubts of a result for the data at `rows`."""
    return combined([result], lambda one, axis: one[0].index_select(axis, rows.to(one[0].device)))


def with_rows(result: _Some, rows: Tensor, other: _Some) -> _Some:
    """Returns `result` with the values and doubts of `other` for the data at `rows`."""
    return combined([result, other], lambda parts, axis: parts[0].index_copy(axis, rows, parts[1]))
