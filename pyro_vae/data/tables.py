r"""Tables with columns of several kinds as one float tensor, and back.

What a column is follows from its dtype and its entries, by these rules, the first that fits:

| entries | kind | as a float |
| --- | --- | --- |
| an ordered category | `Ordered` | its code 0, 1, ... |
| a category | `Categories`, or `Binary` of two | its code |
| booleans | `Binary` | 0 or 1 |
| words | `Categories` in alphabetical order, or `Binary` of two | its code |
| zeros and ones, in whichever dtype | `Binary` | 0 or 1 |
| integers, the smallest of them 0 | `Count` | itself |
| other numbers | `Real` | :math:`(x - m) / s`, standardized over the training rows |

Counts start at 0 as a rule; ages, years and sizes do not. Where the rule is wrong, say what the
column is. A missing entry (nan, None, NA, NaT) is nan, which a likelihood takes as not observed.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .frames import CONTAINERS, Holds, RawColumn, columns_of, container_of

_MANY = 100  # distinct words, above which a column that hardly repeats them is taken for names
_SHOWN = 6  # categories, names or rows listed in a message


@dataclass(frozen=True)
class Kind(ABC):
    """What a column is: how its entries become floats, and floats its entries."""

    @classmethod
    @abstractmethod
    def learn(cls, name: str, raw: RawColumn) -> "Kind":
        """The kind of these training rows."""

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
    def learn(cls, name: str, raw: RawColumn) -> "Real":
        """Mean and standard deviation of what was observed; a constant column is not scaled."""
        values = _numbers(name, raw)
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
    def learn(cls, name: str, raw: RawColumn) -> "Count":
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
    def learn(cls, name: str, raw: RawColumn) -> "Categories":
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
        if raw.categories is None and len(found) > max(_MANY, len(entries) / 2):
            raise ValueError(
                f"column '{name}' has {len(found):,} different entries in {len(entries):,} rows "
                f"({_listed(found)}): names of rows have no distribution, so drop it, or merge "
                "rare categories"
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


def kind_of(name: str, raw: RawColumn) -> Kind:
    """What a column is by the rules at the head of this module."""
    if raw.ordered:
        return Ordered.learn(name, raw)
    if raw.categories is not None or raw.holds is Holds.WORDS:
        number = len(raw.categories or set(raw.values[~raw.missing].tolist()))
        return (Binary if number == 2 else Categories).learn(name, raw)
    found = raw.values[~raw.missing]
    if raw.holds is Holds.BOOLEANS:
        return Binary((False, True))
    if set(found.tolist()) == {0.0, 1.0}:
        return Binary((0, 1))
    if raw.holds is Holds.INTEGERS and found.min() == 0:
        return Count()
    return Real.learn(name, raw)


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
    def of(cls, name: str, raw: RawColumn, kind: Kind | type[Kind] | None) -> "Column":
        """A column, learned from its training rows."""
        if raw.missing.all():
            raise ValueError(f"column '{name}' has no entry that was observed: drop it")
        if kind is None:
            kind = kind_of(name, raw)
        elif isinstance(kind, type):
            kind = kind.learn(name, raw)
        return cls(name, kind, raw.holds, raw.dtype)

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
    def of(cls, frame: Any, kinds: Mapping[str, Kind | type[Kind]] | None = None) -> "Columns":
        """Learns columns from training rows.

        Arguments:
            frame: A DataFrame of pandas or polars, a dictionary of columns, a structured or plain
                NumPy array, or a tensor `(rows, columns)`.
            kinds: What some columns are, where the rules would not say it: a class, such as
                `Count`, or a value, such as `Ordered(("low", "high"))`. Columns of arrays without
                names are called "0", "1", ...

        Raises:
            TypeError: If this is no table, or a column holds what has no likelihood.
            ValueError: If a column is missing throughout, has one category only, or does not fit
                what `kinds` says of it; if two columns have the same name; if a row is missing
                throughout; or if `kinds` names a column that is not there.
        """
        raw, kinds = columns_of(frame), kinds or {}
        unknown = [name for name in kinds if name not in raw]
        if unknown:
            raise ValueError(f"kinds names {unknown}, but the columns are {_listed(list(raw))}")
        columns = tuple(Column.of(name, column, kinds.get(name)) for name, column in raw.items())
        learned = cls(columns, container_of(frame))
        learned._encoded(raw)
        return learned

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def kinds(self) -> dict[str, Kind]:
        """What each column is, by name."""
        return {column.name: column.kind for column in self.columns}

    def encode(self, frame: Any) -> Float[Tensor, "rows columns"]:
        """A table as floats, in torch's default dtype, nan where an entry is missing.

        Columns that have names may come in any order.

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
                f"{_listed(self.names)}"
            )
        return self._encoded(raw)

    def _encoded(self, raw: Mapping[str, RawColumn]) -> Float[Tensor, "rows columns"]:
        arrays = [column.kind.encode(column.name, raw[column.name]) for column in self.columns]
        values = np.stack(arrays, axis=1)
        empty = np.flatnonzero(np.isnan(values).all(axis=1))
        if len(empty):
            raise ValueError(
                f"{len(empty):,} of {len(values):,} rows have no entry that was observed, the "
                f"first at row {empty[0]}, counted from 0: drop them"
            )
        return torch.from_numpy(values).to(torch.get_default_dtype())

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
    def log_scale(self) -> float:
        r"""What brings the log density of an encoded row without holes into the table's units.

        To be added, in nats: :math:`-\sum_d \log s_d` over real columns.
        """
        return -sum(np.log(kind.scale) for kind in self.kinds.values() if isinstance(kind, Real))

    def log_scales(self, y: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
        """The same for each row: entries that are missing have no density, and no unit."""
        scales = [kind.scale if isinstance(kind, Real) else 1.0 for kind in self.kinds.values()]
        return -((~y.isnan()).to(y) @ torch.tensor(scales, dtype=y.dtype, device=y.device).log())

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
