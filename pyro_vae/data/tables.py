r"""Converts tables with columns of several kinds to one float tensor, and back.

The kind of a column follows from its dtype and its entries, by the first rule that fits:

| entries | kind | as a float |
| --- | --- | --- |
| an ordered category | `Ordered` | its code 0, 1, ... |
| a category | `Categories`, or `Binary` if there are two | its code |
| booleans | `Binary` | 0 or 1 |
| words | `Categories` in alphabetical order, or `Binary` if there are two | its code |
| digits with leading zeros, such as `01234` | like words | its code |
| zeros and ones, in any dtype; in 20 rows or more also 1 and 2, 2 and 4, ... | `Binary` | 0 or 1 |
| whole numbers up to 10 that vary less than counts do, in 20 rows or more | `Ordered` | its code |
| whole numbers with minimum 0 or 1, or higher if the name suggests counts | `Count` | itself |
| numbers above 0, very skewed | `Positive` | divided by their geometric mean |
| other numbers | `Real` | standardized over the training rows |

Counts usually start at 0 or 1; ages, years and sizes do not. If a rule is wrong, set the kind of
the column. Numbers are very skewed if two conditions hold: a Gaussian with the same median and the
same 5% and 95% quantiles would put more than 1% of its draws below 0, and the logarithms are more
symmetric than the numbers. Row names, row numbers and dates have no distribution: such columns are
refused, and the error names them. Dates declared as `Time` become standardized days. Strings that
are mostly numbers are read like those of a text file (:mod:`pyro_vae.data.entries`). All columns of
a plain array have one kind: `Binary` if the array holds only zeros and ones, else `Real`. A missing
entry (nan, None, NA, NaT) becomes nan, which likelihoods treat as missing.

The kind of a column and its categories come from all rows of the table; its centre and scale come
from the training rows. Centring and scaling are done in float64, before rounding to torch's default
dtype.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from .._arguments import check_arguments, shown
from .._warnings import once_for_all_columns, warn_of_column
from ..formatting import count_of, first_few
from .choices import kind_of, kind_of_matrix, read, warn_of_marks
from .frames import CONTAINERS, Matrix, columns_of, container_of, names_of, zone_of
from .kinds import (
    EVERY,
    KINDS,
    Categories,
    Count,
    Kind,
    Kinds,
    Ordered,
    Positive,
    Real,
    Rows,
    Time,
    places_of,
)
from .marks import warn_of_gross
from .raw_columns import CATEGORICAL, PLAIN, Holds, RawColumn, wide_enough
from .remedies import drop_all, drop_it

_FARTHEST = 1e15  # standard deviations, or counts; the square is within float32
_FARTHEST_RATIO = 1e37  # largest ratio of a `Positive` number to the geometric mean
_EXACT = 1e-12  # relative error of floats, below which numbers are not rounded
_MOST_DECIMALS = 300  # with more, NumPy's rounding overflows
# A median in other units is over 10 standard deviations from the training mean, or over 10 times
# the largest training count.
_FAR = 10


@once_for_all_columns()
def describe(frame: Any, kinds: Kinds | None = None, *, shared: Kinds | None = None) -> str:
    """Lists each column's kind with the reason, or why the column is refused.

    Call this function before training.

    Arguments:
        frame: A table, as for :meth:`Columns.of`.
        kinds: Kinds of some columns, as for :meth:`Columns.of`.
        shared: The kind that all columns of a file share, under the name of each column; `kinds`
            takes precedence.

    Example:
        >>> print(describe({"age": [30, 41], "when": ["2024-05-01", "2024-05-02"]}))
        age   Real     2 of 2 observed; whole numbers from 30 on; declare the column Count if ...
        when  refused  column 'when' holds dates or times ('2024-05-01', '2024-05-02'), ...
    """
    kinds, refused = kinds or {}, dict[str, Exception]()
    _check_named(kinds, names_of(frame))
    raw = columns_of(frame, refused)
    common = shared or {}
    if isinstance(CONTAINERS[container_of(frame)], Matrix):
        common = _kinds_of_matrix(raw)
    rows = [
        (name, "refused", str(refused[name]))
        if name in refused
        else (name, *_described(name, raw[name], kinds.get(name), common.get(name)))
        for name in names_of(frame)
    ]
    rows = [(repr(name)[1:-1] if "\n" in name else name, kind, why) for name, kind, why in rows]
    widths = [max(len(row[place]) for row in rows) for place in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {why}" for name, kind, why in rows]
    empty = np.logical_and.reduce([column.missing for column in raw.values()])
    return "\n".join([*lines, *([f"refused: {_of_empty_rows(empty)}"] if empty.any() else [])])


def _check_named(kinds: Kinds, names: Sequence[str]) -> None:
    """Refuses `kinds` that name columns which the table does not have."""
    unknown = [name for name in kinds if name not in names]
    if unknown:
        raise ValueError(
            f"`kinds` must name columns of the table; got {unknown}, but the columns are "
            f"{first_few(map(repr, names))}: correct these names"
        )


def _kinds_of_matrix(raw: Mapping[str, RawColumn]) -> dict[str, Any]:
    """Returns the kind that all columns of a plain array have."""
    odd = [name for name, c in raw.items() if c.holds in (Holds.WORDS, Holds.TIMES)]
    if odd:
        raise TypeError(
            f"an array must hold numbers; got {raw[odd[0]].holds.value} in column "
            f"{first_few(odd)}: pass a data frame, whose columns may have different types, as in "
            "pandas.DataFrame(y).convert_dtypes()"
        )
    return dict.fromkeys(raw, kind_of_matrix(np.stack([c.values for c in raw.values()])))


def _of_empty_rows(empty: Bool[np.ndarray, " rows"]) -> str:
    """Returns the message that the rows where the mask is true have no observed entry."""
    return (
        f"no entry is observed in {int(empty.sum()):,} of {count_of(len(empty), 'row', ',')}, the "
        f"first at row {empty.argmax()}, counted from 0: drop these rows"
    )


def _described(
    name: str, raw: RawColumn, kind: Any, common: Kind | type[Kind] | None
) -> tuple[str, str]:
    """Returns the name of a column's kind with the reason, or "refused" with the error's text."""
    try:
        raw = read(name, raw, kind)
        column = Column.of(name, raw, kind or common)
        if kind is not None:
            why = "as declared"
        else:
            why = "the kind of all columns of an array" if common else kind_of(name, raw).why
    except (TypeError, ValueError) as error:
        return "refused", str(error)
    why += f"; the unit '{column.unit}' is left out" if column.unit else ""
    observed = f"{int((~raw.missing).sum()):,} of {len(raw.values):,} observed"
    return type(column.kind).__name__, f"{observed}; {why}"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Arguments:
        name: Name of the column.
        kind: Kind of the column.
        holds: Type of the entries.
        dtype: Name of the column's dtype in the table.
        unit: The unit that was written beside every number, or "".
    """

    name: str
    kind: Kind
    holds: Holds
    dtype: str
    unit: str = ""

    @classmethod
    def of(cls, name: str, raw: RawColumn, kind: Any, rows: Rows = EVERY) -> "Column":
        """Finds a column's kind from all rows, and its centre and scale from the training rows."""
        if raw.missing.all():
            raise ValueError(f"column '{name}' has no observed entry: {drop_it(name)}")
        if kind is not None and not (isinstance(kind, Kind) or kind in KINDS.values()):
            raise TypeError(
                f"`kinds` must map column '{name}' to a kind of column; got {kind!r}: pass one of "
                f"the classes {', '.join(KINDS)}, as in kinds={{{name!r}: pv.data.Count}}"
            )
        if kind is None:
            warn_of_marks(name, raw)
        chosen: Kind | type[Kind] = kind_of(name, raw).kind if kind is None else kind
        if kind is None and chosen is Real:
            warn_of_gross(name, raw.known)
        if isinstance(chosen, type):
            chosen = chosen.learn(name, raw, rows)
        return cls(name, chosen, raw.holds, raw.dtype, raw.unit)

    def read(self, raw: RawColumn) -> RawColumn:
        """Reads this column of another table, in the training rows' type and unit.

        Strings are converted to numbers, unless the column held words in the training rows.
        """
        if (
            self.holds is raw.holds is Holds.TIMES
            and zone_of(raw.dtype)
            and not zone_of(self.dtype)
        ):
            warn_of_column(
                self.name,
                f"column '{self.name}' has times in the zone {zone_of(raw.dtype)}, which are "
                "converted to UTC, but the training rows had no time zone: if the training times "
                f"were local, drop the zone, as in frame[{self.name!r}].dt.tz_localize(None)",
            )
        kind = self.kind if isinstance(self.kind, Real | Count) else None
        found = raw if self.holds is Holds.WORDS else read(self.name, raw, kind)
        if found.unit and self.unit and found.unit != self.unit:
            raise ValueError(
                f"column '{self.name}' has numbers in '{found.unit}', but the training rows had "
                f"numbers in '{self.unit}': convert them. If both units are the same, write "
                "the unit as in the training rows, or leave it out"
            )
        return found

    def refuse_far(self, values: Shaped[np.ndarray, " rows"]) -> None:
        """Refuses encoded numbers that are so large that densities in float32 would overflow."""
        far = np.abs(values) > (_FARTHEST_RATIO if isinstance(self.kind, Positive) else _FARTHEST)
        if far.any() and isinstance(self.kind, Real | Count):
            raise ValueError(
                f"column '{self.name}' has {count_of(int(far.sum()), 'entry', ',')} so far "
                "from the training rows that densities overflow in float32 "
                f"({places_of(self.kind.decode(values), far)}); the training rows had "
                f"{self.kind.range}. Correct these entries, or empty them"
            )

    def warn_of_units(self, values: Shaped[np.ndarray, " rows"]) -> None:
        """Warns if the median of encoded entries is so extreme that their units may be wrong.

        Training rows never cause this warning: their median is within one standard deviation of
        their mean and, for counts, no higher than the largest count. Columns that are not
        standardized are not checked, as their mean and spread are unknown.
        """
        known = values[~np.isnan(values)]
        if not isinstance(self.kind, Real | Count) or not len(known):
            return
        middle = np.median(known, keepdims=True)
        if isinstance(self.kind, Count):
            far = 0 < _FAR * self.kind.most < middle.item()
        else:
            far = self.kind != Real() and abs(self.kind.standardized(middle).item()) > _FAR
        if far:
            own = self.kind.shown(self.kind.decode(middle).item())
            warn_of_column(
                self.name,
                f"column '{self.name}' has a median of {own}, but the training rows had "
                f"{self.kind.range}. If the entries are in other units, convert them. If the units "
                "are right, the model has learned nothing about such rows",
            )

    def restored(self, values: Shaped[np.ndarray, " rows"], eps: float) -> RawColumn:
        """Decodes floats to a column with its original type and dtype.

        Numbers are rounded to the digits that a relative error of `eps` leaves exact: 73.9999997
        becomes 74.
        If an integer does not fit into the column's dtype, as -1 does not fit into `uint8`, the
        column gets a wider dtype.
        """
        entries, dtype, declared = self.kind.decode(values), self.dtype, None
        if isinstance(self.kind, Categories):
            declared = self.kind.categories
        elif dtype in CATEGORICAL:  # the column was declared to hold numbers or times
            dtype = np.dtype(PLAIN[self.holds]).name
        if eps > _EXACT and type(self.kind) is Real:
            decimals = -math.floor(math.log10(eps * abs(self.kind.scale))) - 1
            entries = np.round(entries, decimals) if decimals < _MOST_DECIMALS else entries
        elif eps > _EXACT and isinstance(self.kind, Positive):
            entries = _of_few_digits(entries, eps)
        if isinstance(self.kind, Time):
            own = self.kind
            entries = own.written(values) if own.pattern else own.rounded(entries)
        elif declared is None and self.holds is not Holds.FLOATS:
            entries = np.rint(entries)
        if entries.dtype == object and self.holds is not Holds.WORDS and dtype != "category":
            entries = np.array([np.nan if x is None else float(x) for x in entries])
        ordered = isinstance(self.kind, Ordered)
        return wide_enough(RawColumn(entries, self.holds, dtype, declared, ordered))


def _of_few_digits(values: Shaped[np.ndarray, " rows"], eps: float) -> Shaped[np.ndarray, " rows"]:
    """Rounds numbers to as many digits as a relative error of `eps` leaves exact.

    A number loses one more digit if this changes it by at most twice that relative error.
    """
    digits = math.ceil(-math.log10(eps))
    most, fewer = (
        np.array([float(f"{value:.{kept}g}") for value in values.tolist()], dtype=np.float64)
        for kept in (digits, digits - 1)
    )
    return np.where(np.abs(fewer - values) <= 2 * eps * np.abs(values), fewer, most)


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a table, with their kinds, centres and scales; :meth:`of` learns them.

    Arguments:
        columns: The columns, in order.
        container: The kind of table that the columns come from, such as "pandas".

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
    @once_for_all_columns()
    def of(cls, frame: Any, kinds: Kinds | None = None, *, rows: Rows = EVERY) -> "Columns":
        """Learns the kinds, centres and scales of a table's columns.

        Arguments:
            frame: A DataFrame of pandas or polars, a dictionary of columns, a structured or plain
                NumPy array, or a tensor `(rows, columns)`.
            kinds: Kinds of columns, by name, where the rules of this module are wrong: a class,
                such as `Count`, or a value, such as `Ordered(("low", "high"))`. Columns of arrays
                without names are called "0", "1", ...
            rows: Positions of the training rows, over which real columns are centred and scaled; by
                default all.

        Raises:
            TypeError: If `frame` is not a table, or a column has a type without a likelihood.
            ValueError: If a column is entirely missing, has one category only, holds row names or
                dates, or does not fit its kind in `kinds`; if two columns have the same name; if a
                row is entirely missing; or if `kinds` names an unknown column.
        """
        kinds, container, names = dict(kinds or {}), container_of(frame), names_of(frame)
        refused = dict[str, Exception]()
        raw = {
            name: read(name, column, kinds.get(name))
            for name, column in columns_of(frame, refused).items()
        }
        _check_named(kinds, names)
        if isinstance(CONTAINERS[container], Matrix):
            kinds = _kinds_of_matrix(raw) | kinds
        learned = cls(_learned(raw, refused, kinds, rows), container)
        learned._encoded(raw)
        return learned

    @property
    def named(self) -> bool:
        """Whether the table itself named its columns, unlike a plain array or tensor."""
        return not isinstance(CONTAINERS[self.container], Matrix)

    @property
    def numeric(self) -> bool:
        """Whether every entry of the table is a number or a boolean."""
        return not any(
            column.holds in (Holds.WORDS, Holds.TIMES) or column.dtype in CATEGORICAL
            for column in self.columns
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each column, by name."""
        return {column.name: column.kind for column in self.columns}

    def encode(
        self, frame: Any, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "rows columns"]:
        """Encodes a table as floats; a missing entry becomes nan.

        Columns that have names may come in any order.

        Arguments:
            frame: A table with the same columns as the table that this object was learned from.
            dtype: The dtype of the result; by default torch's default dtype.

        Raises:
            TypeError: If a column holds words where the training rows had numbers, or the reverse.
            ValueError: If a column is missing or unknown; if an entry is a category that the
                training rows did not have, or not a count where one is expected; or if a row is
                entirely missing.
        """
        raw = columns_of(frame)
        missing = [name for name in self.names if name not in raw]
        extra = [name for name in raw if name not in self.names]
        matrix = isinstance(CONTAINERS[container_of(frame)], Matrix)
        if (missing or extra) and matrix and self.named:
            raise ValueError(
                f"a table must have the {count_of(len(self.names), 'column')} "
                f"{first_few(map(repr, self.names))}; got {shown(frame)}, whose columns have no "
                "names: pass a data frame or a dictionary. Pass a tensor that is encoded already, "
                "such as the training rows of a data set, to the functions that take a model and a "
                "guide"
            )
        if missing or extra:
            says = [f"has no column {first_few(map(repr, missing))}"] * bool(missing)
            says += [
                f"has column {first_few(map(repr, extra))}, which the training rows did not have"
            ] * bool(extra)
            raise ValueError(
                f"the table {' and '.join(says)}, but must have the "
                f"{count_of(len(self.names), 'column')} {first_few(map(repr, self.names))}. Use "
                "these names, in any order. If a column was not measured, add it with empty cells; "
                "drop other columns"
            )
        with once_for_all_columns():
            y = self._encoded(raw)
            for column, values in zip(self.columns, y.numpy().T, strict=True):
                column.refuse_far(values)
                column.warn_of_units(values)
        return y.to(dtype or torch.get_default_dtype())

    def _encoded(self, raw: Mapping[str, RawColumn]) -> Float64[Tensor, "rows columns"]:
        """Encodes columns in float64; refuses rows that are entirely missing."""
        arrays = [
            column.kind.encode(column.name, column.read(raw[column.name]))
            for column in self.columns
        ]
        values = np.stack(arrays, axis=1)
        empty = np.isnan(values).all(axis=1)
        if empty.any():
            raise ValueError(_of_empty_rows(empty))
        return torch.from_numpy(values)

    def decode(self, y: Float[Tensor, "rows columns"]) -> Any:
        """Converts floats to a table of the original kind, with the original dtypes.

        Counts and codes are rounded, and so are the entries of integer columns; nan becomes a
        missing entry. If an entry does not fit into an integer column's dtype, as -1 does not fit
        into `uint8`, the column gets the dtype `int64`, or `float64` for larger numbers.

        Raises:
            ValueError: If a row does not have one entry per column, or a count or code is infinite.
        """
        if y.shape[1:] != (len(self.columns),):
            raise ValueError(
                f"rows must have {count_of(len(self.columns), 'column')} "
                f"({first_few(map(repr, self.names))}); got shape {tuple(y.shape)}: pass rows like "
                "those that Columns.encode returns"
            )
        values = y.detach().cpu().double().numpy()
        for place, column in enumerate(self.columns):
            if not isinstance(column.kind, Real) and np.isinf(values[:, place]).any():
                raise ValueError(
                    f"column '{column.name}' must hold no infinite entry, because its kind is "
                    f"{type(column.kind).__name__}: decode finite numbers, or nan for missing "
                    "entries"
                )
        eps = torch.finfo(y.dtype).eps if y.is_floating_point() else 0.0
        restored = {
            column.name: column.restored(values[:, place], eps)
            for place, column in enumerate(self.columns)
        }
        return CONTAINERS[self.container].build(restored)

    @property
    def center(self) -> Float64[Tensor, " columns"]:
        """The number subtracted from each column; 0 unless its kind is `Real` or `Time`."""
        centers = [kind.center for kind in self.kinds.values()]
        return torch.tensor(centers, dtype=torch.float64, device="cpu")

    @property
    def scale(self) -> Float64[Tensor, " columns"]:
        """The number that each column is divided by.

        It is 1 unless the kind of the column is `Real`, `Positive` or `Time`.
        """
        scales = [kind.scale for kind in self.kinds.values()]
        return torch.tensor(scales, dtype=torch.float64, device="cpu")

    @property
    def log_scale(self) -> float:
        r"""What to add (in nats) to a complete row's log density to get it in the table's units.

        The number is minus the sum of the logarithms of :attr:`scale`.
        """
        return -float(self.scale.log().sum())

    def log_scales(self, y: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
        """Returns the `log_scale` of each row, in nats; missing entries contribute nothing."""
        return -((~y.isnan()).to(y) @ self.scale.log().to(y))

    def to_json(self) -> dict[str, Any]:
        """Returns the columns as lists, strings and numbers, for :meth:`from_json` to read."""
        columns = [
            {
                "name": column.name,
                "kind": type(column.kind).__name__,
                **{
                    key: list(value) if isinstance(value, tuple) else value
                    for key, value in asdict(column.kind).items()
                },
                "holds": column.holds.value,
                "dtype": column.dtype,
                **({"unit": column.unit} if column.unit else {}),
            }
            for column in self.columns
        ]
        return {"container": self.container, "columns": columns}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Columns":
        """Restores the columns that :meth:`to_json` described.

        Raises:
            ValueError: If `saved` is not a result of :meth:`to_json`, or names an unknown kind of
                column or table.
        """
        try:
            container = saved["container"]
            columns = tuple(_column_of(container, dict(entry)) for entry in saved["columns"])
            names = [column.name for column in columns]
            if len(set(names)) < len(names):
                raise ValueError(f"`saved` must describe each column once; got {names}: {_SAVED}")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"`saved` is not a description of columns ({type(error).__name__}: {error}): "
                f"{_SAVED}"
            ) from error
        return cls(columns, container)

    def __repr__(self) -> str:
        return ", ".join(f"{name}: {type(kind).__name__}" for name, kind in self.kinds.items())


_SAVED = "pass the result of Columns.to_json()"


def _column_of(container: str, given: dict[str, Any]) -> Column:
    """Restores a column from its description in the result of `Columns.to_json`."""
    name, kind = given.pop("name"), given.pop("kind")
    holds, dtype = Holds(given.pop("holds")), given.pop("dtype")
    unit = given.pop("unit", "")
    if kind not in KINDS or container not in CONTAINERS:
        raise ValueError(
            f"column '{name}' has the kind '{kind}' and comes from a table of type '{container}', "
            "but this version of pyro_vae does not know this kind or this type: read the "
            "description with the version that wrote it"
        )
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    try:
        check_arguments(KINDS[kind].__init__, arguments)
    except (TypeError, ValueError) as error:
        what = str(error).partition(": pass")[0]
        raise ValueError(f"of column '{name}', {what}: {_SAVED}") from error
    return Column(name, KINDS[kind](**arguments), holds, dtype, unit)


def _learned(
    raw: Mapping[str, RawColumn], refused: dict[str, Exception], kinds: Kinds, rows: Rows
) -> tuple[Column, ...]:
    """Learns the columns of a table; one error lists all refused columns.

    `refused` holds the errors of columns that could not be read, by name.
    """
    columns, number = [], len(raw) + len(refused)
    for name, column in raw.items():
        try:
            columns.append(Column.of(name, column, kinds.get(name), rows))
        except (TypeError, ValueError) as error:
            refused[name] = error
    if len(refused) == 1:
        raise next(iter(refused.values()))
    if refused:
        raise ValueError(
            f"refused: {len(refused)} of {count_of(number, 'column')}\n"
            + "".join(f"- {error}\n" for error in refused.values())
            + (
                f"to drop all refused columns, pass {drop_all(refused)} or the data frame "
                f"X.drop(columns={list(refused)})"
            )
        )
    return tuple(columns)
