"""The contract of every result: what it says of itself, and how far it can be trusted.

A :class:`Result` has `summary()`, `plot()`, a short `repr` and an HTML form. One that holds a
number per datum is a :class:`PerDatum`: it has a value and an error for each, doubts, means that
leave out nobody in silence, rows, and a data frame. Results are dataclasses of tensors, so they
are cut, joined and mended field by field, here and nowhere else.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from . import stats
from ._types import Estimate, optional
from .formatting import counted

if TYPE_CHECKING:
    from typing import Self

Rows: TypeAlias = int | slice | Sequence[int] | Tensor
_Some = TypeVar("_Some")
_COLUMNS = re.compile(r"\S {2,}\S|^-+$")  # what a line of a table has, and a sentence has not


class Doubt(Enum):
    """Why an estimate cannot be trusted: every reason there is, in the words that people read."""

    HEAVY_TAIL = "a few weights carry the estimate, and larger ones may not have been drawn"
    NO_TAIL = "fewer than 30 draws have no tail to look at"
    ERROR_TARGET = "the most draws allowed were too few for the error asked for"
    ZERO_WEIGHTS = "every weight is 0"
    FEW_EFFECTIVE_CHAINS = "too few effective chains"
    FEW_EFFECTIVE_DRAWS = "too few effective draws of the posterior to tell"
    ACCEPTANCE = "chains accept far more or less often than aimed at"
    TOLERANCE = "the error is above the tolerance after as many points as allowed"
    UNDEFINED = "the log joint is not a number at points next to the mass"
    UNSETTLED = "not all modes may have been found: a scan twice as fine still showed a new one"
    SEVERAL_MODES = "the posterior has several modes"
    MISSED_MASS = "draws of the prior find mass that the estimate has missed"
    RUNGS_DISAGREE = "two unlike estimates disagree"
    CHAINS_APART = "chains have not come to the same distribution (R-hat)"
    TIME_LIMIT = "the time limit came before a way to log p(y) was accepted"
    FIT_STOPPED = "the fit of q* was stopped before it was done"
    BEATEN = "the guide beats q*: it was not found, or is of a poorer family"
    NEGATIVE_INFERENCE = "the inference gap is negative: log p(y) is too low"
    NEGATIVE_APPROXIMATION = "the approximation gap is negative: log p(y) is too low"
    SATURATED = "a latent rounds to an edge of its support: the prior is too sparse for its numbers"
    OTHER = "an estimator of your own says so"


Doubts: TypeAlias = Mapping[Doubt, Bool[Tensor, " batch"]]
"""The data that each reason holds for."""


class Mean(Estimate):
    """A mean over data that says how many of them cannot be trusted, and what it is without them.

    Arguments:
        value: Over all data.
        error: Its Monte Carlo error.
        num_data: How many data.
        num_doubted: How many of them cannot be trusted.
        trusted: The mean of the others; nan if there are none.
    """

    num_data: int
    num_doubted: int
    trusted: Estimate

    @classmethod
    def over(cls, estimate: Estimate, reliable: Bool[Tensor, " batch"]) -> "Mean":
        """The mean of independent estimates along the first axis, one per datum."""
        mean = cls(*_mean(estimate))
        mean.num_data = len(reliable)
        mean.num_doubted = int((~reliable).sum())
        mean.trusted = _mean(Estimate(*(part[reliable] for part in estimate)))
        return mean

    def __repr__(self) -> str:
        said = format(self)
        if self.num_doubted == 0:
            return said
        return (
            f"{said} ({self.num_doubted} of {self.num_data} data cannot be trusted; "
            f"{self.trusted} without them)"
        )


class MeanOverData(Mean):
    """A mean over data with its two errors apart: of other draws, and of other data.

    Arguments:
        value: Over all data.
        error: Monte Carlo error: other draws, the same data.
        population_error: Other data; contains the Monte Carlo error already, since that adds to
            the spread over data.
    """

    population_error: Tensor

    @classmethod
    def over(cls, estimate: Estimate, reliable: Bool[Tensor, " batch"]) -> "MeanOverData":
        """The mean of independent estimates along the first axis; one datum has no spread."""
        mean = super().over(estimate, reliable)
        assert isinstance(mean, cls)
        mean.population_error = stats.population_mean(estimate.value.double()).error
        return mean

    def __repr__(self) -> str:
        spread = Estimate(self.value, self.population_error)
        return f"{super().__repr__()}, {spread} with the error of other data"


def _mean(estimate: Estimate) -> Estimate:
    value, error = (part.double() for part in estimate)
    return Estimate(value.mean(dim=0), error.square().sum(dim=0).sqrt() / max(1, len(value)))


class Result:
    """What every result can do. A subclass has `summary` and `plot`, and ends with a verdict."""

    def summary(self) -> str:
        """Says the result in words and numbers; the last line is what it comes to."""
        raise NotImplementedError

    def plot(self) -> Any:
        """Draws the result; needs matplotlib."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary().splitlines()[-1]}>"

    def _repr_html_(self) -> str:
        return "".join(_html(is_table, lines) for is_table, lines in _parts(self.summary()))


def _parts(summary: str) -> Iterator[tuple[bool, list[str]]]:
    """Tables and prose of a summary, in turn: lines of a table have columns, so runs of spaces."""
    lines = [line for line in summary.splitlines() if line.strip()]
    grouped = groupby(lines, lambda line: bool(_COLUMNS.search(line)))
    return ((is_table, list(part)) for is_table, part in grouped)


def _html(is_table: bool, lines: Sequence[str]) -> str:  # noqa: FBT001 (a key of groupby)
    text = [escape(line) for line in lines]
    if is_table:
        return "<pre>" + "\n".join(text) + "</pre>"
    return "".join(f"<p>{line}</p>" for line in text)


class PerDatum(Result):
    """A result with one number, or several, per datum: a frozen dataclass of tensors.

    A subclass has fields or properties `value` and `error`, `(batch, ...)`, and `doubts`. Tensors
    have the datum axis first, but for fields whose metadata name another `axis`, or None for what
    all data share.
    """

    if TYPE_CHECKING:  # fields of some results, computed by others

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
        """Which data can be trusted, for all that can be seen."""
        doubted = torch.zeros(len(self), dtype=torch.bool, device=self.value.device)
        for mask in self.doubts.values():
            doubted = doubted | mask
        return ~doubted

    def why_not(self, row: int) -> list[str]:
        """Reasons not to trust a datum, in words; empty if there are none."""
        return [doubt.value for doubt, mask in self.doubts.items() if bool(mask[row])]

    @property
    def doubt_counts(self) -> dict[Doubt, int]:
        """How many data each reason holds for; none that holds for nobody."""
        counts = {doubt: int(mask.sum()) for doubt, mask in self.doubts.items()}
        return {doubt: count for doubt, count in counts.items() if count}

    @property
    def reasons(self) -> str:
        """The doubts and their counts in words; empty if there are none."""
        return counted((doubt.value, count) for doubt, count in self.doubt_counts.items())

    @property
    def mean(self) -> Any:
        """Mean over data, with its Monte Carlo error, and what it is without doubted data."""
        return Mean.over(self.estimate, self.reliable)

    def trust(self) -> str:
        """How many data cannot be trusted and why, and the mean without them."""
        bad = int((~self.reliable).sum())
        if bad == 0:
            return f"all {len(self)} can be trusted"
        said = f"{bad} of {len(self)} cannot be trusted ({self.reasons})"
        if bad == len(self):
            return said
        return f"{said}; without them the mean is {Mean.over(self.estimate, self.reliable).trusted}"

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, rows: Rows) -> "Self":
        """The result of some of the data, by position, slice or mask."""
        places = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
        places = places.reshape(-1).to(self.value.device)
        return combined([self], lambda parts, axis: parts[0].index_select(axis, places))

    def columns(self) -> dict[str, Tensor]:
        """What a data frame shows of every datum, `(batch, ...)` each, by name."""
        return {"value": self.value, "error": self.error}

    def as_columns(self) -> dict[str, Any]:
        """Columns of a frame or a file, by name: numbers, whether to trust them, and why not."""
        numbers = {
            name: part.numpy()
            for column, tensor in self.columns().items()
            for name, part in _flat(column, tensor.detach().cpu()).items()
        }
        why = ["; ".join(self.why_not(row)) for row in range(len(self))]
        return {**numbers, "reliable": self.reliable.cpu().numpy(), "why_not": why}

    def to_dataframe(self) -> Any:
        """One row per datum: numbers, whether to trust them, and why not; needs pandas."""
        return data_frame(self.as_columns())

    def plot(self) -> Any:
        """Values with errors, lowest first, and which of them cannot be trusted."""
        from .plots import plot_per_datum

        return plot_per_datum(self.value, self.error, self.reliable)


def data_frame(data: Any) -> Any:
    """A pandas data frame.

    Raises:
        ImportError: If pandas is not installed.
    """
    return optional("pandas", needed_for="to_dataframe()").DataFrame(data)


def _flat(name: str, column: Shaped[Tensor, "batch *datum"]) -> dict[str, Tensor]:
    """A column, or one for each entry of a datum."""
    if column.dim() == 1:
        return {name: column}
    entries = column.flatten(1).T
    return {f"{name}[{place}]": entry for place, entry in enumerate(entries)}


def combined(parts: list[_Some], merge: Callable[[list[Tensor], int], Tensor]) -> _Some:
    """Merges results of the same type, tensor by tensor.

    What is not a tensor, or made of tensors, is the same in all of them. A reason to doubt that
    only some of them know holds for none of the others' data.

    Arguments:
        parts: Tensors, or dataclasses, tuples and mappings of them, all of one type.
        merge: Makes one tensor of those in the same place, given their datum axis.
    """
    return _combined(parts, merge, 0)


def _combined(parts: list[Any], merge: Callable[[list[Tensor], int], Tensor], axis: int) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return merge(parts, axis)
    if "doubts" in getattr(first, "__dataclass_fields__", ()):
        parts = _with_the_same_doubts(parts)
    if is_dataclass(first) and not isinstance(first, type):
        columns = {
            entry.name: [getattr(part, entry.name) for part in parts] for entry in fields(first)
        }
        axes = {entry.name: entry.metadata.get("axis", axis) for entry in fields(first)}
        merged = {
            name: column[0] if axes[name] is None else _combined(column, merge, axes[name])
            for name, column in columns.items()
        }
        return type(first)(**merged)
    if isinstance(first, Mapping):
        return {key: _combined([part[key] for part in parts], merge, axis) for key in first}
    if isinstance(first, tuple):
        entries = [_combined(list(column), merge, axis) for column in zip(*parts, strict=True)]
        return type(first)(*entries) if hasattr(first, "_fields") else tuple(entries)
    return first


def either(first: Doubts, second: Doubts) -> dict[Doubt, Tensor]:
    """Data of which one of two results is doubted, by reason."""
    return {
        doubt: torch.stack([part[doubt] for part in (first, second) if doubt in part]).any(dim=0)
        for doubt in {**first, **second}
    }


def _with_the_same_doubts(parts: list[Any]) -> list[Any]:
    known = dict.fromkeys(doubt for part in parts for doubt in part.doubts)
    return [
        replace(
            part,
            doubts={
                doubt: part.doubts.get(doubt, ~part.value.new_ones(len(part), dtype=torch.bool))
                for doubt in known
            },
        )
        for part in parts
    ]


def join(parts: list[_Some]) -> _Some:
    """Joins results of the same type along the data."""
    return combined(parts, torch.cat)


def with_rows(result: _Some, rows: Tensor, other: _Some) -> _Some:
    """The result with those of some data replaced, and their doubts with them."""
    return combined([result, other], lambda parts, axis: parts[0].index_copy(axis, rows, parts[1]))
