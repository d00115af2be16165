r"""Tables with columns of several kinds as one float tensor, and back.

What a column is follows from its dtype and its entries, by these rules, the first that fits:

| entries | kind | as a float |
| --- | --- | --- |
| an ordered category | `Ordered` | its code 0, 1, ... |
| a category | `Categories`, or `Binary` of two | its code |
| booleans | `Binary` | 0 or 1 |
| words | `Categories` in alphabetical order, or `Binary` of two | its code |
| zeros and ones, in whichever dtype | `Binary` | 0 or 1 |
| whole numbers, the smallest of them 0 | `Count` | itself |
| other numbers | `Real` | :math:`(x - m) / s`, standardized over the training rows |

Counts start at 0 as a rule; ages, years and sizes do not. Where the rule is wrong, say what the
column is. Names of rows, dates and running numbers have no distribution: they are refused by name.
A plain array has one kind throughout: `Binary` where it is zeros and ones, else `Real`. A missing
entry (nan, None, NA, NaT) is nan, which a likelihood takes as not observed.

What a column is, and its categories, come from all rows of the table; centre and scale from those
to train on. Both are applied in float64, before anything is rounded to torch's default dtype.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from .frames import CONTAINERS, Holds, Matrix, RawColumn, columns_of, container_of

Rows = Shaped[np.ndarray, " train"] | slice
EVERY = slice(None)
_FEW = 20  # rows, below which different words, or numbers in order, say little of what they are
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([ T]\d.*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}([ T]\d.*)?|"
    r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"
)
_SHOWN = 6  # categories, names or rows listed in a message


@dataclass(frozen=True)
class Kind(ABC):
    """What a column is: how its entries become floats, and floats its entries."""

    @classmethod
    @abstractmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Kind":
        """The kind of a column; what is estimated, from these rows of it."""

    @abstractmethod
    def encode(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        """Floats, nan where an entry is missing.

        Raises:
            TypeError: If the entries are of another type than the training rows'.
            ValueError: If an entry cannot be one of this kind.
        """

    @abstractmethod
    def decode(self, values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
        """Entries: floats with nan, or objects with None where something is missing."""


@dataclass(frozen=True)
class Real(Kind):
    """Numbers, standardized.

    Arguments:
        center: What is subtracted.
        scale: What the result is divided by, positive.
    """

    center: float = 0.0
    scale: float = 1.0

    @classmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Real":
        """Mean and standard deviation of what was observed; a constant column is not scaled."""
        values = _numbers(name, raw)[rows]
        if np.isnan(values).all():
            raise ValueError(
                f"column '{name}' has no entry that was observed in the {len(values):,} rows to "
                "train on: drop it, or split the rows by another seed"
            )
        center, spread = float(np.nanmean(values)), float(np.nanstd(values))
        # Rounding leaves a spread of 1e-17 in a column that is constant.
        constant = spread <= 10 * np.finfo(np.float64).eps * abs(center)
        return cls(center, 1.0 if constant else spread)

    def encode(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        """Numbers for the entries, nan where one is missing."""
        return (_numbers(name, raw) - self.center) / self.scale

    def decode(self, values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
        """Entries for numbers, as the column had them."""
        return values * self.scale + self.center


@dataclass(frozen=True)
class Count(Kind):
    """Whole numbers from 0 on, as they are."""

    @classmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Count":
        """Nothing is to be learned."""
        cls().encode(name, raw)
        return cls()

    def encode(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        """Numbers for the entries, nan where one is missing."""
        values = _numbers(name, raw)
        bad = (values < 0) | (values != np.rint(values)) & ~np.isnan(values)
        if bad.any():
            raise ValueError(
                f"column '{name}' holds counts, whole numbers from 0 on, but {int(bad.sum()):,} "
                f"entries are others ({_places(values, bad)}): mend or drop these rows, or say "
                f"that the column is Real: kinds={{'{name}': Real}}"
            )
        return values

    def decode(self, values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
        """Entries for numbers, as the column had them."""
        return np.rint(values).clip(min=0)


@dataclass(frozen=True)
class Categories(Kind):
    """One of several words, numbers or booleans, without an order.

    Arguments:
        categories: All that an entry can be, at least two; their places are the codes.
    """

    categories: tuple[Any, ...] = ()
    fewest: ClassVar[int] = 2
    most: ClassVar[float] = np.inf

    @classmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Categories":
        """The categories that the dtype declares, else those found, in their order."""
        entries = raw.values[~raw.missing].tolist()
        found = raw.categories or tuple(sorted(set(entries)))
        if raw.holds is Holds.BOOLEANS:
            found = (False, True)
        elif raw.holds is Holds.INTEGERS or raw.holds is Holds.FLOATS:
            found = tuple(_whole(value) for value in found)
        if not cls.fewest <= len(found) <= cls.most:
            raise ValueError(
                f"column '{name}' has {len(found)} categories ({_listed(found)}): a column of this "
                f"kind ({cls.__name__}) needs {'exactly' if cls.most == 2 else 'at least'} 2; "
                "drop it, or declare its categories"
            )
        if raw.categories is None and len(found) > max(_FEW, len(entries) / 2):
            raise ValueError(
                f"column '{name}' has {len(found):,} different entries in {len(entries):,} rows "
                f"({_listed(found)}): names of rows have no distribution, so {_drop(name)}, or "
                "merge rare categories"
            )
        return cls(found)

    @cached_property
    def _codes(self) -> dict[Any, int]:
        return {category: code for code, category in enumerate(self.categories)}

    def encode(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        """Numbers for the entries, nan where one is missing."""
        words = any(isinstance(category, str) for category in self.categories)
        if words != (raw.holds is Holds.WORDS) and not raw.missing.all():
            raise _other_type(name, "words" if words else "numbers", raw)
        gone = raw.missing
        codes = [
            np.nan if missing else self._codes.get(value, -1)
            for missing, value in zip(gone, raw.values.tolist(), strict=True)
        ]
        values = np.array(codes, dtype=np.float64)
        unseen = values < 0
        if unseen.any():
            raise ValueError(
                f"column '{name}' has categories that the training rows did not have: "
                f"{_places(raw.values, unseen)}, {int(unseen.sum()):,} entries in all; known are "
                f"{_listed(self.categories)}. Drop these rows, make the entries missing, or learn "
                "the columns from rows that have them"
            )
        return values

    def decode(self, values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
        """Entries for numbers, as the column had them."""
        objects = np.empty(len(values), dtype=object)
        last = len(self.categories) - 1
        for row, code in enumerate(values):
            if not np.isnan(code):
                objects[row] = self.categories[int(min(max(np.rint(code), 0), last))]
        return objects


@dataclass(frozen=True)
class Ordered(Categories):
    """One of several categories in a meaningful order, the lowest first."""


@dataclass(frozen=True)
class Binary(Categories):
    """One of two, the first of which is 0."""

    most: ClassVar[float] = 2


KINDS: dict[str, type[Kind]] = {
    kind.__name__: kind for kind in (Real, Count, Categories, Ordered, Binary)
}
"""Kinds of columns, by name."""


class Choice(NamedTuple):
    """What a column is taken for, and why."""

    kind: type[Kind] | Kind
    why: str


def kind_of(name: str, raw: RawColumn) -> Choice:
    """What a column is by the rules at the head of this module.

    Raises:
        ValueError: If it holds dates, or a running number.
    """
    found = raw.values[~raw.missing]
    if raw.ordered:
        return Choice(Ordered, "its dtype has an order")
    if raw.categories is not None or raw.holds is Holds.WORDS:
        return _kind_of_words(name, raw, set(found.tolist()))
    if raw.holds is Holds.BOOLEANS:
        return Choice(Binary((False, True)), "booleans")
    if set(found.tolist()) == {0.0, 1.0}:
        return Choice(Binary((0, 1)), "zeros and ones")
    if not raw.whole:
        return Choice(Real, "numbers")
    if len(found) >= _FEW and found[0] in (0, 1) and bool((np.diff(found) == 1).all()):
        raise ValueError(
            f"column '{name}' counts the rows ({found[0]:g}, {found[1]:g}, ..., {found[-1]:g}): "
            f"{_drop(name)}, or say what it is: kinds={{'{name}': Real}}, --kinds {name}=Real"
        )
    if found.min() == 0:
        return Choice(Count, "whole numbers, the smallest of them 0")
    return Choice(Real, f"whole numbers from {found.min():g} on; Count, if they are counts")


def _kind_of_words(name: str, raw: RawColumn, found: set[Any]) -> Choice:
    number = len(raw.categories or found)
    dates = [word for word in found if isinstance(word, str) and _DATE.fullmatch(word)]
    if dates and len(dates) == len(found):
        raise ValueError(
            f"column '{name}' holds dates or times ({_listed(sorted(dates))}), which no "
            f"likelihood describes: {_drop(name)}, or make it numbers, such as days since the first"
        )
    return Choice(Binary if number == 2 else Categories, f"{number} different entries")


def _drop(name: str) -> str:
    return f"drop it (drop=['{name}'], --drop {name})"


def describe(frame: Any, kinds: Mapping[str, Kind | type[Kind]] | None = None) -> str:
    """What each column of a table is taken for and why, and what is refused: before any training.

    Arguments:
        frame: A table, as for :meth:`Columns.of`.
        kinds: What some columns are, as there.

    Example:
        >>> print(describe({"age": [30, 41], "when": ["2024-05-01", "2024-05-02"]}))
        age   Real     2 of 2 observed; whole numbers from 30 on; Count, if they are counts
        when  refused  column 'when' holds dates or times ('2024-05-01', '2024-05-02'), ...
    """
    raw, kinds = columns_of(frame), kinds or {}
    rows = [(name, *_described(name, column, kinds.get(name))) for name, column in raw.items()]
    widths = [max(len(row[place]) for row in rows) for place in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {why}" for name, kind, why in rows)


def _described(name: str, raw: RawColumn, kind: Kind | type[Kind] | None) -> tuple[str, str]:
    try:
        column = Column.of(name, raw, kind)
        why = "as said" if kind is not None else kind_of(name, raw).why
    except (TypeError, ValueError) as error:
        return "refused", str(error)
    observed = f"{int((~raw.missing).sum()):,} of {len(raw.values):,} observed"
    return type(column.kind).__name__, f"{observed}; {why}"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Arguments:
        name: Its name.
        kind: What it is.
        holds: What its entries are.
        dtype: The dtype that it has in its table.
    """

    name: str
    kind: Kind
    holds: Holds
    dtype: str

    @classmethod
    def of(
        cls, name: str, raw: RawColumn, kind: Kind | type[Kind] | None, rows: Rows = EVERY
    ) -> "Column":
        """A column: its kind from all rows, what is estimated from some."""
        if raw.missing.all():
            raise ValueError(f"column '{name}' has no entry that was observed: drop it")
        chosen = kind_of(name, raw).kind if kind is None else kind
        if isinstance(chosen, type):
            chosen = chosen.learn(name, raw, rows)
        return cls(name, chosen, raw.holds, raw.dtype)

    def restored(self, values: Shaped[np.ndarray, " rows"]) -> RawColumn:
        """Floats as the column that they stand for."""
        entries, numbers = self.kind.decode(values), self.holds is not Holds.WORDS
        declared = None
        if isinstance(self.kind, Categories):
            declared = self.kind.categories
            if numbers and self.dtype != "category":
                entries = np.array([np.nan if x is None else float(x) for x in entries])
        elif self.holds is not Holds.FLOATS:
            entries = np.rint(entries)
        ordered = isinstance(self.kind, Ordered)
        return RawColumn(entries, self.holds, self.dtype, declared, ordered)


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a table, learned from its training rows; made by :meth:`of`.

    Arguments:
        columns: The columns, in order.
        container: What kind of table they come from.

    Example:
        >>> table = {"height": [1.6, 1.8, None], "sex": ["f", "m", "m"], "visits": [0, 3, 1]}
        >>> columns = Columns.of(table)
        >>> columns
        height: Real, sex: Binary, visits: Count
        >>> columns.encode(table)
        tensor([[-1.,  0.,  0.],
                [ 1.,  1.,  3.],
                [nan,  1.,  1.]])
        >>> columns.decode(torch.tensor([[0.0, 0.0, 2.0]]))["height"]
        array([1.7])
    """

    columns: tuple[Column, ...]
    container: str

    @classmethod
    def of(
        cls,
        frame: Any,
        kinds: Mapping[str, Kind | type[Kind]] | None = None,
        *,
        rows: Rows = EVERY,
    ) -> "Columns":
        """Learns what the columns of a table are.

        Arguments:
            frame: A DataFrame of pandas or polars, a dictionary of columns, a structured or plain
                NumPy array, or a tensor `(rows, columns)`.
            kinds: What some columns are, where the rules would not say it: a class, such as
                `Count`, or a value, such as `Ordered(("low", "high"))`. Columns of arrays without
                names are called "0", "1", ...
            rows: Positions of the rows to train on, over which real columns are centred and
                scaled; all unless given.

        Raises:
            TypeError: If this is no table, or a column holds what has no likelihood.
            ValueError: If a column is missing throughout, has one category only, names rows, holds
                dates, or does not fit what `kinds` says of it; if two columns have the same name;
                if a row is missing throughout; or if `kinds` names a column that is not there.
        """
        raw, kinds, container = columns_of(frame), dict(kinds or {}), container_of(frame)
        unknown = [name for name in kinds if name not in raw]
        if unknown:
            raise ValueError(f"kinds names {unknown}, but the columns are {_listed(list(raw))}")
        if isinstance(CONTAINERS[container], Matrix):
            kinds = (
                dict.fromkeys(raw, kind_of_matrix(np.stack([c.values for c in raw.values()])))
                | kinds
            )
        columns = tuple(
            Column.of(name, column, kinds.get(name), rows) for name, column in raw.items()
        )
        learned = cls(columns, container)
        learned._encoded(raw)
        return learned

    @property
    def named(self) -> bool:
        """Whether the names are the table's own."""
        return not isinstance(CONTAINERS[self.container], Matrix)

    @property
    def numeric(self) -> bool:
        """Whether every entry of the table is a number or a boolean."""
        return not any(
            column.holds is Holds.WORDS or column.dtype in ("category", "Enum", "Categorical")
            for column in self.columns
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def kinds(self) -> dict[str, Kind]:
        """What each column is, by name."""
        return {column.name: column.kind for column in self.columns}

    def encode(
        self, frame: Any, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "rows columns"]:
        """A table as floats, nan where an entry is missing.

        Columns that have names may come in any order.

        Arguments:
            frame: A table with the columns that this was learned from.
            dtype: What the floats are rounded to; torch's default dtype unless given.

        Raises:
            TypeError: If a column holds words where the training rows had numbers, or the reverse.
            ValueError: If a column is missing or unknown, an entry is a category that the training
                rows did not have, or no count where counts are expected, or if a row is missing
                throughout.
        """
        raw = columns_of(frame)
        missing = [name for name in self.names if name not in raw]
        extra = [name for name in raw if name not in self.names]
        if missing or extra:
            says = [f"has no column {_listed(missing)}"] * bool(missing)
            says += [f"has {_listed(extra)}, which the training rows did not have"] * bool(extra)
            raise ValueError(
                f"the table {' and '.join(says)}; expected are {len(self.names)} columns: "
                f"{_listed(self.names)}. Name them so, in any order, and leave others out"
            )
        return self._encoded(raw).to(dtype or torch.get_default_dtype())

    def _encoded(self, raw: Mapping[str, RawColumn]) -> Float64[Tensor, "rows columns"]:
        arrays = [column.kind.encode(column.name, raw[column.name]) for column in self.columns]
        values = np.stack(arrays, axis=1)
        empty = np.flatnonzero(np.isnan(values).all(axis=1))
        if len(empty):
            raise ValueError(
                f"{len(empty):,} of {len(values):,} rows have no entry that was observed, the "
                f"first at row {empty[0]}, counted from 0: drop them"
            )
        return torch.from_numpy(values)

    def decode(self, y: Float[Tensor, "rows columns"]) -> Any:
        """Floats as a table of the kind and with the dtypes that the columns came from.

        Counts and codes are rounded, and so are the entries of integer columns; where nan stands,
        an entry is missing.
        """
        if y.shape[1:] != (len(self.columns),):
            raise ValueError(
                f"a row has {len(self.columns)} columns ({_listed(self.names)}), got shape "
                f"{tuple(y.shape)}"
            )
        values = y.detach().cpu().double().numpy()
        restored = {
            column.name: column.restored(values[:, place])
            for place, column in enumerate(self.columns)
        }
        return CONTAINERS[self.container].build(restored)

    @property
    def center(self) -> Float64[Tensor, " columns"]:
        """What is subtracted from each column: 0 but for real ones."""
        return torch.tensor(
            [kind.center if isinstance(kind, Real) else 0.0 for kind in self.kinds.values()],
            dtype=torch.float64,
        )

    @property
    def scale(self) -> Float64[Tensor, " columns"]:
        """What each column is divided by: 1 but for real ones."""
        return torch.tensor(
            [kind.scale if isinstance(kind, Real) else 1.0 for kind in self.kinds.values()],
            dtype=torch.float64,
        )

    @property
    def log_scale(self) -> float:
        r"""What brings the log density of an encoded row without holes into the table's units.

        To be added, in nats: :math:`-\sum_d \log s_d` over real columns.
        """
        return -float(self.scale.log().sum())

    def log_scales(self, y: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
        """The same for each row: entries that are missing have no density, and no unit."""
        return -((~y.isnan()).to(y) @ self.scale.log().to(y))

    def to_json(self) -> dict[str, Any]:
        """All of it in lists, words and numbers; :meth:`from_json` makes it again."""
        columns = [
            {
                "name": column.name,
                "kind": type(column.kind).__name__,
                **_json(asdict(column.kind)),
                "holds": column.holds.value,
                "dtype": column.dtype,
            }
            for column in self.columns
        ]
        return {"container": self.container, "columns": columns}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Columns":
        """The columns that :meth:`to_json` described.

        Raises:
            ValueError: If the description has a kind of column or of table that does not exist.
        """
        columns = []
        for entry in saved["columns"]:
            given = dict(entry)
            name, kind = given.pop("name"), given.pop("kind")
            holds, dtype = Holds(given.pop("holds")), given.pop("dtype")
            if kind not in KINDS or saved["container"] not in CONTAINERS:
                raise ValueError(f"column '{name}' of a '{saved['container']}' table is a '{kind}'")
            arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
            columns.append(Column(name, KINDS[kind](**arguments), holds, dtype))
        return cls(tuple(columns), saved["container"])

    def __repr__(self) -> str:
        return ", ".join(f"{name}: {type(kind).__name__}" for name, kind in self.kinds.items())


def kind_of_matrix(values: Shaped[np.ndarray, "rows columns"]) -> Kind | type[Kind]:
    """One kind for all of an array, so that no column's hangs on the rows that are there."""
    binary = bool(((values == 0) | (values == 1) | (values != values)).all())
    return Binary((0, 1)) if binary else Real


def _numbers(name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
    """The numbers of a column; refuses words and infinities."""
    if raw.holds is Holds.WORDS and not raw.missing.all():
        raise _other_type(name, "numbers", raw)
    values = raw.values.astype(np.float64)
    bad = np.isinf(values)
    if bad.any():
        raise ValueError(
            f"column '{name}' has {int(bad.sum()):,} infinite entries ({_places(values, bad)}): "
            "mend or drop these rows"
        )
    return values


def _other_type(name: str, expected: str, raw: RawColumn) -> TypeError:
    return TypeError(
        f"column '{name}' should hold {expected}, got {raw.holds.value} "
        f"({_places(raw.values, ~raw.missing)}; dtype {raw.dtype}): read or convert it as the "
        "training rows were"
    )


def _places(values: Shaped[np.ndarray, " rows"], which: Shaped[np.ndarray, " rows"]) -> str:
    """Entries and their rows: "'teal' at row 3, counted from 0"."""
    rows = np.flatnonzero(which)[:_SHOWN]
    shown = [f"{_whole(values[row])!r} at row {row}" for row in rows]
    return ", ".join(shown) + ", counted from 0"


def _whole(value: Any) -> Any:
    """An integer where a float is one, so that 3.0 reads 3."""
    plain = value.item() if isinstance(value, np.generic) else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def _listed(names: Sequence[Any]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _json(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in arguments.items()}
