"""Kinds of columns, which encode entries as floats, and decode floats to entries."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from .._warnings import warn_of_column
from ..formatting import count_of, first_few
from .raw_columns import Holds, RawColumn
from .remedies import drop_it, of_kind
from .scales import on_a_scale
from .times import SECONDS, days, patterns_of, step_of, written

Rows = Shaped[np.ndarray, " train"] | slice
EVERY = slice(None)
FEW = 20  # rows; in fewer, all words may differ, or numbers be in order, by chance
_Numbers = TypeVar("_Numbers", float, NDArray[np.floating], Tensor)
_LEAST_SQUARED = 1e-140  # the square of anything much smaller is 0 in float64
_MUCH_LARGER = 2.0**600  # makes squares of the smallest floats positive; a power of 2 is exact
_SELDOM = 5  # rows per category on average; with fewer, little is learned about most categories
_BEGINNING = re.compile(r"-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?")  # of a word such as 18-24
_PLAIN = re.compile(r"-?\d+(\.\d*)?")
_MEASURED = re.compile(r"[<>~+-]?\s*\d[\d.,]*\s*[^\d.,\s]")  # a number and more, such as 2.4M


@dataclass(frozen=True)
class Kind(ABC):
    """The kind of a column, which encodes entries as floats, and decodes floats to entries."""

    center = 0.0  # the number that is subtracted when entries are encoded
    scale = 1.0  # the number by which the difference is then divided

    @classmethod
    @abstractmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Kind":
        """Builds the kind of a column; statistics such as a mean are taken over the given rows."""

    @abstractmethod
    def encode(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        """Encodes entries as floats; a missing entry becomes nan.

        Raises:
            TypeError: If the entries are of a different type from those of the training rows.
            ValueError: If an entry does not fit this kind.
        """

    @abstractmethod
    def decode(self, values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
        """Decodes floats to entries.

        A nan stays nan in a column of numbers, and becomes None in a column of objects.
        """

    def in_own_unit(self, values: _Numbers) -> _Numbers:
        """Converts encoded numbers to the column's unit, without rounding."""
        return values * self.scale + self.center

    def shown(self, value: float) -> str:
        """Returns a number, given in the column's unit, as text."""
        return f"{value:.4g}"


def center_and_scale(
    values: Shaped[np.ndarray, "rows *datum"],
) -> tuple[Shaped[np.ndarray, "*datum"], Shaped[np.ndarray, "*datum"]]:
    """Returns the mean and the standard deviation over the rows.

    A constant column gets the standard deviation 1. Missing entries are left out.
    """
    with np.errstate(over="ignore"):
        center, spread = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    tiny = (spread == 0) & (np.abs(center) < _LEAST_SQUARED)
    if np.any(tiny):
        larger = np.nanstd(np.where(tiny, values, 0.0) * _MUCH_LARGER, axis=0)
        spread = np.where(tiny, larger / _MUCH_LARGER, spread)
    # Rounding leaves a spread of 1e-17 in a column that is constant.
    constant = spread <= 10 * np.finfo(np.float64).eps * np.abs(center)
    return np.asarray(center), np.where(constant, 1.0, spread)


def _center_and_scale_of(name: str, values: Shaped[np.ndarray, " train"]) -> tuple[float, float]:
    """Returns the mean and scale of a column's training rows; refuses numbers that overflow."""
    if np.isnan(values).all():
        raise ValueError(
            f"column '{name}' has no observed entry in the "
            f"{count_of(len(values), 'training row', ',')}: drop the column, or split the rows "
            "with another seed"
        )
    center, scale = map(float, center_and_scale(values))
    if not (np.isfinite(center) and np.isfinite(scale)):
        raise ValueError(
            f"column '{name}' has numbers of up to {np.nanmax(np.abs(values)):.0e}, whose "
            "standard deviation is too large for float64: divide the numbers by a constant, or "
            "take their logarithms"
        )
    return center, scale


@dataclass(frozen=True)
class Real(Kind):
    """Numbers, which are standardized.

    Arguments:
        center: The number that is subtracted.
        scale: The positive number by which the difference is then divided.
    """

    center: float = 0.0
    scale: float = 1.0

    @classmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Real":
        """Learns the entries' mean and standard deviation; a constant column is not scaled."""
        return cls(*_center_and_scale_of(name, _numbers(name, raw)[rows]))

    def encode(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        return (self._read(name, raw) - self.center) / self.scale

    def _read(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        """Returns the entries as numbers, before they are standardized."""
        return _numbers(name, raw)

    def decode(self, values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
        """Converts standardized numbers to the units of the original column."""
        return self.in_own_unit(values)

    def standardized(self, values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """Returns each entry's distance from the training mean, in standard deviations."""
        return values

    @property
    def range(self) -> str:
        """The training rows' mean and standard deviation in words, for a warning."""
        return f"a mean of {self.center:.4g} and a standard deviation of {self.scale:.2g}"


@dataclass(frozen=True)
class Positive(Real):
    """Very skewed numbers above 0, which are divided by their geometric mean.

    By default, the likelihood of such a column is log-normal.

    Arguments:
        center: Always 0.
        scale: The geometric mean, by which numbers are divided.
        spread: Standard deviation of the logarithms of the numbers.
    """

    spread: float = 1.0

    @classmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Positive":
        """Learns the mean and standard deviation of the logarithms of the observed entries."""
        center, spread = _center_and_scale_of(name, np.log(_above_zero(name, raw))[rows])
        return cls(0.0, float(np.exp(center)), spread)

    def _read(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        return _above_zero(name, raw)

    def standardized(self, values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """Returns the logarithms of encoded entries, divided by `spread`."""
        return np.log(values) / self.spread

    @property
    def range(self) -> str:
        """The training rows' geometric mean and spread in words, for a warning."""
        return (
            f"a geometric mean of {self.scale:.4g}, and logarithms with a standard deviation of "
            f"{self.spread:.2g}"
        )


@dataclass(frozen=True)
class Time(Real):
    """Dates (in days since 1970) or times of day (in days since midnight), both standardized.

    Arguments:
        center: The time that is subtracted, in days.
        scale: The time by which the difference is then divided, in days.
        pattern: Format of the entries, in the notation of `strftime`; empty if the column has a
            dtype of dates.
        step: For a dtype of dates, the number of seconds in the unit to which decoded times are
            rounded: 86,400 if all entries are whole days.
    """

    pattern: str = ""
    step: float = 1e-3

    @classmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Time":
        """Learns the format, the mean and the standard deviation of the times."""
        pattern = "" if raw.holds is Holds.TIMES else _pattern_of(name, raw)
        values = _days(name, raw, pattern)
        return cls(*_center_and_scale_of(name, values[rows]), pattern, step_of(values))

    def _read(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        return _days(name, raw, self.pattern)

    def rounded(self, days: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
        """Rounds days to the column's unit, because days decoded from floats are not exact."""
        return np.rint(days * (SECONDS / self.step)) / (SECONDS / self.step)

    def shown(self, value: float) -> str:
        """Returns a time, given in days, as text."""
        plain = "%Y-%m-%d" if self.step >= SECONDS else "%Y-%m-%d %H:%M"
        return written(np.array([value]), self.pattern or plain)[0] or ""

    @property
    def range(self) -> str:
        """The training rows' mean and standard deviation in words, for a warning."""
        return (
            f"a mean of {self.shown(self.center)} and a standard deviation of {self.scale:.2g} days"
        )

    def written(self, values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
        """Converts encoded entries to strings, in the column's format of dates or times."""
        words = np.empty(len(values), dtype=object)
        words[:] = written(self.decode(values), self.pattern)
        return words


def _words_of(raw: RawColumn) -> list[str | None]:
    """Returns the entries of a column as strings; a number such as 20240131 gets no decimals."""
    return [
        None if gone else f"{value:.0f}" if isinstance(value, float) else str(value)
        for gone, value in zip(raw.missing, raw.values.tolist(), strict=True)
    ]


def _pattern_of(name: str, raw: RawColumn) -> str:
    """Returns the format of a column's dates or times; refuses a column without a single format."""
    patterns = patterns_of([word for word in _words_of(raw) if word is not None])
    if len(patterns) != 1:
        known = (
            f"{count_of(len(patterns), 'format')} ({', '.join(patterns)})"
            if patterns
            else "no single format"
        )
        raise ValueError(
            f"column '{name}' must hold dates or times in one format; got entries "
            f"({places_of(raw.values, ~raw.missing)}) that fit {known}: write all of them like "
            "2024-12-31 or 2024-12-31 23:59"
        )
    return patterns[0]


def _days(name: str, raw: RawColumn, pattern: str) -> Shaped[np.ndarray, " rows"]:
    """Converts dates or times to numbers of days; `pattern` is their format, or "" to detect it.

    Up to half of the entries may have another format: they become nan, with a warning.
    """
    if raw.holds is Holds.TIMES:
        return raw.values
    if raw.missing.all():
        return np.full(len(raw.values), np.nan)
    if not pattern and raw.holds is not Holds.WORDS:
        raise _other_type(name, Holds.TIMES.value, raw)
    pattern, words = pattern or _pattern_of(name, raw), _words_of(raw)
    values = np.array([np.nan if word is None else days(word, pattern) for word in words], float)
    odd = np.isnan(values) & ~raw.missing
    if 2 * odd.sum() > (~raw.missing).sum():
        raise ValueError(
            f"column '{name}' must hold dates or times written as {pattern}; got "
            f"{count_of(int(odd.sum()), 'other entry')} ({places_of(raw.values, odd)}): write them "
            f"like {datetime(2024, 12, 31, 23, 59):{pattern}}"
        )
    _warn_of_future(name, values, pattern)
    if odd.any():
        warn_of_column(
            name,
            f"column '{name}' holds dates or times written as {pattern}, except for "
            f"{int(odd.sum())} of {count_of(len(values), 'entry')}: {places_of(raw.values, odd)}. "
            "These entries are treated as missing: correct them, "
            "or drop their rows",
        )
    return values


def _warn_of_future(name: str, values: Shaped[np.ndarray, " rows"], pattern: str) -> None:
    """Warns about years of two digits that Python takes for future years, such as 45 for 2045."""
    known = values[~np.isnan(values)]
    today = (datetime.now() - datetime(1970, 1, 1)).days
    if "%y" in pattern and len(known) and known.max() > today:
        warn_of_column(
            name,
            f"column '{name}' has years of two digits, which give dates in the future, such as "
            f"{written(known.max(keepdims=True), '%Y-%m-%d')[0]}: if they are in the past, write "
            "years with four digits",
        )


@dataclass(frozen=True)
class Count(Kind):
    """Whole numbers from 0 on, which are encoded unchanged.

    Arguments:
        spread: Standard deviation over the training rows. Effects of latents on the column are
            reported in this unit.
        most: The largest count of the training rows; 0 if it is not known.
    """

    spread: float = 1.0
    most: float = 0.0

    @property
    def range(self) -> str:
        """The counts of the training rows in words, for a warning."""
        return f"counts of up to {self.most:.4g}"

    @classmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Count":
        """Learns the standard deviation and the maximum of the observed entries."""
        values = cls().encode(name, raw)[rows]
        known = values[~np.isnan(values)]
        return cls(float(known.std()) or 1.0, float(known.max())) if len(known) else cls()

    def standardized(self, values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """Divides counts by their standard deviation over the training rows."""
        return values / self.spread

    def encode(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        values = _numbers(name, raw)
        bad = (values < 0) | (values != np.rint(values)) & ~np.isnan(values)
        if bad.any():
            raise ValueError(
                f"column '{name}' must hold counts, which are whole numbers from 0 on; got "
                f"{count_of(int(bad.sum()), 'other entry', ',')} ({places_of(values, bad)}): "
                f"correct or drop these rows, or pass {of_kind(name, 'Real')}"
            )
        return values

    def decode(self, values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
        """Rounds floats to whole numbers; negative floats become 0."""
        return np.rint(values).clip(min=0)


@dataclass(frozen=True)
class Categories(Kind):
    """A fixed set of words, numbers or booleans without an order; each entry is one of them.

    Arguments:
        categories: All possible entries, at least two; their positions are the codes.
    """

    categories: tuple[Any, ...] = ()
    most: ClassVar[float] = np.inf

    @classmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Categories":
        """Takes the categories that the dtype declares, or else the sorted entries."""
        entries = raw.known.tolist()
        found = raw.categories or tuple(sorted(set(entries)))
        if raw.holds is Holds.BOOLEANS:
            found = (False, True)
        elif raw.holds is Holds.INTEGERS or raw.holds is Holds.FLOATS:
            found = tuple(_whole(value) for value in found)
        if not 2 <= len(found) <= cls.most:
            number = count_of(len(found), "category")
            raise ValueError(
                f"column '{name}' has {number} ({first_few(map(repr, found))}), but a column of "
                f"kind {cls.__name__} must have {'exactly' if cls.most == 2 else 'at least'} 2 "
                f"categories: {drop_it(name)}, or list all possible categories, as in "
                f"kinds={{'{name}': Categories(({found[0]!r}, ...))}}. If an empty cell "
                "means 'no', write 'no' into it"
            )
        if raw.categories is None and len(found) > max(FEW, len(entries) / 2):
            raise ValueError(
                f"column '{name}' has {count_of(len(found), 'different entry', ',')} in "
                f"{count_of(len(entries), 'row', ',')} ({first_few(map(repr, found))}). They look "
                f"like row names, which have no distribution: {drop_it(name)}, or merge rare "
                f"categories{_of_measured(found)}"
            )
        if len(found) > max(FEW, len(entries) / _SELDOM):
            warn_of_column(
                name,
                f"column '{name}' has {count_of(len(found), 'category', ',')} in "
                f"{count_of(len(entries), 'row', ',')}, on average fewer than {_SELDOM} rows for "
                "each, so little can be learned about them: merge rare categories, or "
                f"{drop_it(name)}",
            )
        return cls(found)

    def encode(self, name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
        words, numbers = any(isinstance(x, str) for x in self.categories), self._by_number()
        by_number = numbers is not None and raw.holds in (Holds.INTEGERS, Holds.FLOATS)
        if words != (raw.holds is Holds.WORDS) and not by_number and not raw.missing.all():
            flags = Holds.BOOLEANS.value if self.categories == (False, True) else "numbers"
            raise _other_type(name, "words" if words else flags, raw)
        known = {category: code for code, category in enumerate(self.categories)}
        codes = [
            np.nan if gone else _code(value, known, numbers or {})
            for gone, value in zip(raw.missing, raw.values.tolist(), strict=True)
        ]
        values = np.array(codes, dtype=np.float64)
        unseen = values < 0
        if unseen.any():
            raise ValueError(
                f"column '{name}' has {count_of(int(unseen.sum()), 'entry', ',')} in categories "
                f"that the training rows did not have ({places_of(raw.values, unseen)}); the known "
                f"categories are {first_few(map(repr, self.categories))}. Drop these rows, empty "
                "these entries, train on rows that include these categories, or train again with "
                f"all possible categories listed, as in kinds={{{name!r}: {type(self).__name__}"
                f"(({self.categories[0]!r}, ...))}}{_or_numbers(name, self.categories)}"
            )
        return values

    def _by_number(self) -> dict[float | None, int] | None:
        """Maps numbers to codes if all categories are strings that stand for different numbers.

        Otherwise the result is None. The categories "1" to "5" thus fit entries such as 1.0, which
        some programs write for 1 if an entry of the column is missing.
        """
        if not all(isinstance(category, str) for category in self.categories):
            return None
        numbers = [_number(category) for category in self.categories]
        if None in numbers or len(set(numbers)) < len(numbers):
            return None
        return {number: code for code, number in enumerate(numbers)}

    def decode(self, values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
        """Decodes floats to categories, after rounding each float to a code; nan becomes None."""
        objects = np.empty(len(values), dtype=object)
        last = len(self.categories) - 1
        for row, code in enumerate(values):
            if not np.isnan(code):
                objects[row] = self.categories[int(min(max(np.rint(code), 0), last))]
        return objects


@dataclass(frozen=True)
class Ordered(Categories):
    """Categories in a meaningful order, the lowest first."""

    @classmethod
    def learn(cls, name: str, raw: RawColumn, rows: Rows = EVERY) -> "Ordered":
        """Takes the order that the dtype declares, or else finds an order.

        Words that all begin with numbers are sorted by these numbers. The words of a common scale
        of answers, such as never, sometimes and often, are in the order of the scale. Other words
        are in alphabetical order, with a warning that this may be wrong.
        """
        found = super().learn(name, raw, rows).categories
        if raw.categories is None and raw.holds is Holds.WORDS:
            numbers = [_BEGINNING.match(word) for word in found]
            if all(numbers):
                values = [float(n[0].replace(",", "")) for n in numbers if n]
                found = tuple(word for _, word in sorted(zip(values, found, strict=True)))
            elif scale := on_a_scale(found):
                found = scale
            elif any(len(word) > 1 for word in found):
                warn_of_column(
                    name,
                    f"column '{name}' is taken to have the order {', '.join(map(repr, found))}, "
                    "which is alphabetical: if that is wrong, list the categories from the lowest "
                    f"to the highest, as in kinds={{{name!r}: Ordered({found!r})}}, or put "
                    f"a number before each, as in '1 {found[0]}'",
                )
        return cls(found)


@dataclass(frozen=True)
class Binary(Categories):
    """Two categories; the first is encoded as 0, the second as 1."""

    most: ClassVar[float] = 2


# Maps names of columns to kinds or classes of kinds. :meth:`Column.of` checks the values, and its
# error lists the choices.
Kinds = Mapping[str, Any]

KINDS: dict[str, type[Kind]] = {
    kind.__name__: kind for kind in (Real, Positive, Time, Count, Categories, Ordered, Binary)
}
"""Kinds of columns, by name."""


def _numbers(name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
    """Returns the numbers of a column; words and infinite numbers are refused."""
    if raw.holds in (Holds.WORDS, Holds.TIMES) and not raw.missing.all():
        raise _other_type(name, "numbers", raw)
    values = raw.values.astype(np.float64)
    bad = np.isinf(values)
    if bad.any():
        raise ValueError(
            f"column '{name}' has {count_of(int(bad.sum()), 'infinite entry', ',')} "
            f"({places_of(values, bad)}): correct or drop these rows"
        )
    return values


def _of_measured(found: Sequence[object]) -> str:
    """Returns advice if nearly all entries look like measurements, such as 2.4M, or else ""."""
    like = sum(bool(_MEASURED.match(str(word))) for word in found)
    if 10 * like < 9 * len(found):
        return ""
    return (
        ". If the entries are measurements, write them as numbers in one unit; if they are dates, "
        "write them like 2024-12-31"
    )


def _above_zero(name: str, raw: RawColumn) -> Shaped[np.ndarray, " rows"]:
    """Returns the numbers of a column; numbers that are not positive are refused."""
    values = _numbers(name, raw)
    bad = values <= 0
    if bad.any():
        raise ValueError(
            f"column '{name}' must hold numbers above 0; got "
            f"{count_of(int(bad.sum()), 'other entry', ',')} ({places_of(values, bad)}): correct "
            f"these entries, empty those that mean 'not detected', or pass {of_kind(name, 'Real')}"
        )
    return values


def _other_type(name: str, expected: str, raw: RawColumn) -> TypeError:
    """Returns the error for a column whose entries do not have the expected type."""
    return TypeError(
        f"column '{name}' must hold {expected}; got {raw.holds.value} "
        f"({places_of(raw.values, ~raw.missing)}, dtype {raw.dtype}): read or convert the column "
        "as in the training rows"
    )


def places_of(values: Shaped[np.ndarray, " rows"], which: Shaped[np.ndarray, " rows"]) -> str:
    """Lists the first entries where a mask is true, as in "'teal' at row 3, counted from 0"."""
    rows = np.flatnonzero(which)
    return first_few(f"{_whole(values[row])!r} at row {row}" for row in rows) + ", counted from 0"


def _or_numbers(name: str, categories: Sequence[object]) -> str:
    """Returns the advice to train on numbers, if the categories are whole numbers from 0 on."""
    whole = all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in categories)
    return f", or with {of_kind(name, 'Count')}" if whole else ""


def _code(value: Any, known: Mapping[Any, int], numbers: Mapping[float | None, int]) -> int:
    """Returns the code of an entry, ignoring spaces around it; -1 if it is not a known category."""
    plain = value.strip() if isinstance(value, str) and value not in known else value
    return known.get(plain, numbers.get(_number(plain), -1))


def _number(value: Any) -> float | None:
    """Converts a number, or a string such as "5" or "5.0", to a float; other strings give None."""
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        return None
    return float(value)


def _whole(value: Any) -> Any:
    """Converts a whole float below 1e15 to an integer, so that 3.0 is shown as 3."""
    plain = value.item() if isinstance(value, np.generic) else value
    short = isinstance(plain, float) and plain.is_integer() and abs(plain) < 1e15
    return int(plain) if short else plain
