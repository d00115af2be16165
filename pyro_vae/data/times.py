"""Converts dates and times to numbers of days, and back."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import product

import numpy as np
from jaxtyping import Float64

_DAYS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%d.%m.%Y", "%d.%m.%y", "%Y-%m"),
    *("%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%d. %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y"),
    *("%b %d %Y", "%b %Y", "%B %Y", "%Y %b", "%Y %B", "%b-%y", "%m/%Y"),
    *("%d%b%Y", "%d%b%y", "%d%b%Y:%H:%M:%S"),  # as SAS writes them
)
_CLOCKS = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p")
_ZONES = ("", "%z", " %z", " UTC", " GMT")
_DAY_AND_CLOCK = re.compile(r"(?:(.*?\d)(, |[ T]))?(\d{1,2}:\d\d.*)")
_NANOSECONDS = re.compile(r"(:\d\d\.\d{6})\d{1,3}(?!\d)")  # Python reads only microseconds
_LIKE_A_TIME = re.compile(
    r"\d[-/.:]\d|(?<![a-z])(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)|^\d{8}$", re.IGNORECASE
)
_DAY = timedelta(days=1)
SECONDS = 86_400  # in a day
_STEPS = (86_400.0, 3600.0, 60.0, 1.0)  # seconds; finer times are rounded to milliseconds
_ODD = 0.1  # share of a column's entries that may be something else, as in a numeric column
_SAMPLED = 200  # entries searched for different formats
_PANDAS = "n days hh:mm:ss"
_ELAPSED = {
    "[h]:mm": re.compile(r"()(\d+):([0-5]\d)"),
    "[h]:mm:ss": re.compile(r"()(\d+):([0-5]\d):([0-5]\d)"),
    _PANDAS: re.compile(r"([+-]?\d+) days? \+?(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)"),
}
"""Durations of more than a day, in the notation of spreadsheets and of pandas."""


def patterns_of(words: Sequence[str]) -> list[str]:
    """Returns the formats in which nearly all of the entries can be read as dates or times.

    Several formats are returned if days and months cannot be told apart.

    Example:
        >>> patterns_of(["2024-05-01", "2024-05-20"]), patterns_of(["1/2/2024", "3/2/2024"])
        (['%Y-%m-%d'], ['%d/%m/%Y', '%m/%d/%Y'])
    """
    like = [word for word in words if _LIKE_A_TIME.search(word)]
    if 2 * len(like) <= len(words):
        return []
    # The first entry may be the odd one out; hours above 23 mean elapsed time.
    found = _patterns(like[0]) or _patterns(like[len(like) // 2])
    for candidates in (found, list(_ELAPSED)):
        read = {p: sum(days(word, p) is None for word in words) for p in candidates}
        fewest = min(read.values(), default=0)
        if read and fewest <= max(len(words) > 2, _ODD * len(words)):
            return [pattern for pattern, odd in read.items() if odd == fewest]
    return []


def are_times(words: Sequence[str]) -> bool:
    """Whether nearly all entries are dates or times, perhaps in several formats.

    Example:
        >>> are_times(["2024-05-01", "5/20/2024", "2024-05-03"]), are_times(["a-1", "b-2"])
        (True, False)
    """
    sample = words[:_SAMPLED]
    odd = sum(not (_LIKE_A_TIME.search(word) and _patterns(word)) for word in sample)
    return bool(sample) and odd <= _ODD * len(sample)


def _patterns(word: str) -> list[str]:
    """Returns the formats in which one entry can be read."""
    parts = _DAY_AND_CLOCK.fullmatch(word)
    if parts is None:
        return [pattern for pattern in _DAYS if days(word, pattern) is not None]
    day, between, clock = parts[1], parts[2] or "", parts[3]
    first = [""] if day is None else [p for p in _DAYS if days(day, p) is not None]
    clocks = (clock + zone for clock, zone in product(_CLOCKS, _ZONES))
    second = [pattern for pattern in clocks if days(clock, pattern) is not None]
    return [a + between + b for a, b in product(first, second)]


def days(word: str, pattern: str) -> float | None:
    """Returns days since 1970, or since midnight for a time of day.

    The result is None if the word has another format.

    Example:
        >>> days("1970-01-03 12:00", "%Y-%m-%d %H:%M"), days("06:00", "%H:%M")
        (2.5, 0.25)
    """
    if pattern in _ELAPSED:
        parts = _ELAPSED[pattern].fullmatch(word)
        units = (1, 24, 24 * 60, 24 * 60 * 60)  # days; hours, minutes and seconds of a day
        return (
            sum(float(n or 0) / unit for n, unit in zip(parts.groups(), units, strict=False))
            if parts
            else None
        )
    try:
        read = datetime.strptime(_NANOSECONDS.sub(r"\1", word), pattern)
    except ValueError:
        return None
    if read.tzinfo is not None:
        read = read.astimezone(UTC).replace(tzinfo=None)
    return (read - _start(pattern)) / _DAY


def _start(pattern: str) -> datetime:
    """Returns the time that counts as 0: 1970-01-01, or 1900-01-01 for a format without years."""
    return datetime(1970 if "%Y" in pattern or "%y" in pattern else 1900, 1, 1)


def step_of(values: Float64[np.ndarray, " rows"]) -> float:
    """Returns the longest unit, from a day to a millisecond, of which all values are multiples.

    The values are in days, the result is in seconds.

    Example:
        >>> step_of(np.array([1.0, np.nan, 2.0])), step_of(np.array([0.5, 1 / 24]))
        (86400.0, 3600.0)
    """
    millis = np.rint(values[~np.isnan(values)] * SECONDS * 1000)
    return next((step for step in _STEPS if not (millis % (1000 * step)).any()), 1e-3)


def _step(pattern: str) -> int | float:
    """Returns the smallest unit of a format in seconds; 86,400 if the format has no minutes."""
    if "%f" in pattern:
        return 1e-3
    if "%S" in pattern:
        return 1
    return 60 if "%M" in pattern else 86400


def written(values: Float64[np.ndarray, " rows"], pattern: str) -> list[str | None]:
    """Converts numbers of days to strings of dates or times; nan becomes None."""
    if pattern in _ELAPSED:
        return [None if np.isnan(value) else _elapsed(value, pattern) for value in values.tolist()]
    zone, step = UTC if "%z" in pattern else None, _step(pattern)
    # Rounded: 11:59:59.9999997 is noon, and a date with a time before noon is that date.
    times = [
        None
        if np.isnan(value)
        else _start(pattern) + timedelta(seconds=step * round(float(value) * 86400 / step))
        for value in values
    ]
    return [None if t is None else t.replace(tzinfo=zone).strftime(pattern) for t in times]


def _elapsed(value: float, pattern: str) -> str:
    """Writes a number of days as hours, minutes and, if `pattern` has them, seconds.

    A negative number is written as 0, unless `pattern` has days.
    """
    units = 24 * 60 * (60 if pattern.endswith("ss") else 1)  # seconds or minutes of a day
    rest, parts = round(value * units), []
    in_days = pattern == _PANDAS
    number, rest = divmod(rest, units) if in_days else (0, max(0, rest))
    for _ in range(pattern.count(":")):
        rest, part = divmod(rest, 60)
        parts.append(f"{part:02d}")
    clock = ":".join([f"{rest:02d}" if in_days else str(rest), *reversed(parts)])
    return f"{number} days {'+' if number < 0 else ''}{clock}" if in_days else clock
