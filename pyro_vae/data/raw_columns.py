"""Columns as they are read from a table, and their conversion from and to NumPy's arrays."""

import re
from collections.abc import Collection
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from .remedies import drop_it


class Holds(Enum):
    """The type of the entries of a column, which follows from the column's dtype."""

    FLOATS = "numbers"
    INTEGERS = "whole numbers"
    BOOLEANS = "booleans"
    TIMES = "dates or times"
    WORDS = "words"


class RawColumn(NamedTuple):
    """A column as read from a table, before its entries are encoded.

    Arguments:
        values: The entries, `(rows,)`, as float64 or as objects. A missing entry is nan in float64,
            and None among objects.
        holds: The type of the entries.
        dtype: Name of the dtype in the library that the table comes from.
        categories: The categories declared by the dtype, in order, or None.
        ordered: Whether the order of the categories is meaningful.
        unit: The unit that was written after (or, as for money, before) every number, if any.
    """

    values: Shaped[np.ndarray, " rows"]
    holds: Holds
    dtype: str
    categories: tuple[Any, ...] | None = None
    ordered: bool = False
    unit: str = ""

    @property
    def missing(self) -> Shaped[np.ndarray, " rows"]:
        """A boolean array, which is True where an entry is missing."""
        if self.values.dtype == object:
            return np.array([value is None for value in self.values], dtype=bool)
        return np.isnan(self.values)

    @property
    def known(self) -> Shaped[np.ndarray, " known"]:
        """The entries that are not missing."""
        return self.values[~self.missing]

    @property
    def whole(self) -> bool:
        """Whether all numbers of the column are whole, whatever its dtype.

        Most libraries turn a column of integers into floats if an entry is missing.
        """
        if self.holds is not Holds.FLOATS:
            return self.holds is Holds.INTEGERS
        return bool((self.known == np.rint(self.known)).all())


HOLDS = {"b": Holds.BOOLEANS, "i": Holds.INTEGERS, "u": Holds.INTEGERS, "f": Holds.FLOATS}
"""What a column of numbers holds, by the kind of its dtype in NumPy."""

_INTEGERS = re.compile("u?int(8|16|32|64)", re.IGNORECASE)  # in NumPy, pandas and polars
_MICROS_OF_A_DAY = 86_400_000_000
PLAIN = {Holds.FLOATS: float, Holds.INTEGERS: int, Holds.BOOLEANS: bool, Holds.WORDS: object}
CATEGORICAL = ("category", "Enum", "Categorical")
"""Dtypes of categories in pandas and polars."""
_CONVERSIONS = {
    "timede": ", as in column / np.timedelta64(1, 'h')",
    "Durati": ", as in column.dt.total_seconds() / 3600",
    "period": ", as in column.dt.to_timestamp(), which kinds={...: Time} converts to days",
}


def from_array(values: Shaped[np.ndarray, "..."], name: str) -> RawColumn:
    """Converts a NumPy array with one axis to a column."""
    if values.ndim != 1:
        raise ValueError(
            f"column '{name}' must have one axis; got shape {values.shape}: split this column into "
            "several columns"
        )
    if isinstance(values, np.ma.MaskedArray):
        gone = np.ma.getmaskarray(values)
        plain = from_array(np.asarray(values.data), name)
        empty: Any = None if plain.values.dtype == object else np.nan
        return plain._replace(values=np.where(gone, empty, plain.values))
    if values.dtype.kind in "biuf":
        return RawColumn(values.astype(np.float64), HOLDS[values.dtype.kind], values.dtype.str)
    if values.dtype.kind == "M":
        return RawColumn(days_of(values), Holds.TIMES, values.dtype.str)
    if values.dtype.kind in "US":
        return from_objects(as_objects(values.tolist()), name, "object")
    if values.dtype != object:
        raise refused_dtype(name, str(values.dtype))
    return from_objects(values, name, "object")


def from_objects(values: Shaped[np.ndarray, " rows"], name: str, dtype: str) -> RawColumn:
    """Converts an array of Python objects to a column of booleans, numbers, dates or words."""
    gone = np.array([is_gone(value) for value in values], dtype=bool)
    found = {type(value) for value in values[~gone]}

    def all_are(*kinds: type) -> bool:
        return all(issubclass(kind, kinds) for kind in found)

    if not found:
        return RawColumn(_floats(values, gone), Holds.FLOATS, dtype)
    if all_are(bytes):
        return from_objects(_decoded(values, gone, name), name, dtype)
    if all_are(bool, np.bool_):
        return RawColumn(_floats(values, gone), Holds.BOOLEANS, dtype)
    if all_are(int, np.integer):
        return RawColumn(_floats(values, gone), Holds.INTEGERS, dtype)
    if all_are(int, float, np.number, Decimal):
        return RawColumn(_floats(values, gone), Holds.FLOATS, dtype)
    if all_are(date):  # or datetimes, which are dates
        words = ["NaT" if x else _in_utc(v).isoformat() for x, v in zip(gone, values, strict=True)]
        return from_array(np.array(words).astype("datetime64[us]"), name)
    if not all_are(str, int, float, np.number) or bool in found or np.bool_ in found:
        kinds = sorted(kind.__name__ for kind in found)
        raise TypeError(
            f"column '{name}' must hold only numbers, only booleans or only words; got the types "
            f"{kinds}: convert the column, as in frame[name].astype(float) or "
            "frame[name].astype(str), or leave the column out"
        )
    return RawColumn(
        as_objects([None if x else str(v) for x, v in zip(gone, values, strict=True)]),
        Holds.WORDS,
        dtype,
    )


def to_array(raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
    """Converts a column to a NumPy array of the column's dtype.

    Integers and booleans become floats if an entry is missing.
    """
    if raw.holds is Holds.TIMES:
        return times_of(raw.values).astype("datetime64[us]" if raw.dtype == "object" else raw.dtype)
    if raw.values.dtype == object or (raw.missing.any() and raw.holds is not Holds.FLOATS):
        return raw.values
    return raw.values.astype(PLAIN[raw.holds] if raw.dtype == "object" else raw.dtype)


def wide_enough(raw: RawColumn) -> RawColumn:
    """Gives a column of integers a wider dtype if an entry does not fit into its own dtype.

    For example, -1 does not fit into unsigned integers. The wider dtype is int64, or
    float64 if an entry does not fit into int64 either.
    """
    name = np.dtype(raw.dtype).name if raw.dtype.startswith(("|", "<", ">", "=")) else raw.dtype
    own = _INTEGERS.match(name)
    if own is None or raw.holds is not Holds.INTEGERS or _fit(raw.known, own[0].lower()):
        return raw
    holds = Holds.INTEGERS if _fit(raw.known, "int64") else Holds.FLOATS
    wide = "int64" if holds is Holds.INTEGERS else "float64"
    dtype = (wide.capitalize() if name[0].isupper() else wide) + name[own.end() :]
    return raw._replace(holds=holds, dtype=dtype)


def _fit(whole: Shaped[np.ndarray, " known"], dtype: str) -> bool:
    """Whether whole numbers, which are stored as floats, fit into a dtype of integers."""
    limits = np.iinfo(dtype)
    return bool(((whole >= limits.min) & (whole < limits.max + 1)).all())


def days_of(values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
    """Converts NumPy's dates to days since 1970; a missing date becomes nan."""
    micros = values.astype("datetime64[us]")
    days = micros.astype(np.int64) / _MICROS_OF_A_DAY
    return np.where(np.isnat(micros), np.nan, days)


def times_of(days: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
    """Converts days since 1970 to NumPy's dates, rounded to milliseconds."""
    gone = np.isnan(days)
    millis = np.rint(np.where(gone, 0, days) * 86_400_000).astype(np.int64)
    times = (millis * 1000).astype("datetime64[us]")
    times[gone] = np.datetime64("NaT", "us")
    return times


def _in_utc(moment: date) -> date:
    """Converts a time with a zone to UTC, and drops the zone; returns other times unchanged."""
    if isinstance(moment, datetime) and moment.tzinfo is not None:
        return moment.astimezone(UTC).replace(tzinfo=None)
    return moment


def is_gone(value: object) -> bool:
    """Whether an entry of a table is missing: None, NA, NaT, nan, or a blank string."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, str | bytes):
        return not value.strip()
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def _decoded(
    values: Shaped[np.ndarray, " rows"], gone: Bool[np.ndarray, " rows"], name: str
) -> Shaped[np.ndarray, " rows"]:
    """Decodes bytes, as in arrays of NumPy and HDF5, as UTF-8; missing entries become None."""
    try:
        words = [None if x else v.decode() for x, v in zip(gone, values, strict=True)]
    except UnicodeDecodeError as error:
        raise TypeError(
            f"column '{name}' holds bytes that are not text in UTF-8 ({error}): {drop_it(name)}, "
            "or decode the bytes with the right encoding"
        ) from error
    return as_objects(words)


def _floats(
    values: Shaped[np.ndarray, " rows"], gone: Bool[np.ndarray, " rows"]
) -> Shaped[np.ndarray, " rows"]:
    """Converts an object array of numbers or booleans to floats; missing entries become nan."""
    return np.array(
        [np.nan if x else float(v) for x, v in zip(gone, values, strict=True)], dtype=np.float64
    )


def as_objects(values: Collection[object]) -> Shaped[np.ndarray, " rows"]:
    """Converts a collection to a NumPy array of objects, without converting its entries."""
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def refused_dtype(name: str, dtype: str) -> TypeError:
    """Returns the error for a column whose dtype has no likelihood, with the remedies."""
    return TypeError(
        f"column '{name}' has dtype {dtype}, which has no likelihood: {drop_it(name)}, or convert "
        f"the entries to numbers, such as hours or days{_CONVERSIONS.get(dtype[:6], '')}"
    )
