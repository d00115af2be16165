"""Rules that choose the kind of a column from its dtype, its entries and its name.

The rules are tabulated in :mod:`pyro_vae.data.tables`. A column that no distribution fits, such as
dates or row names, is refused: the error names the column and the remedies. A warning lists entries
that may mean that nothing was measured.
"""

import math
import re
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from .._warnings import warn_of_column
from ..formatting import count_of, first_few
from .entries import Source, entries_of, first_code, is_share_or_money, mixed, stands_for_missing
from .kinds import FEW, Binary, Categories, Count, Kind, Ordered, Positive, Real, Time
from .marks import warn_of_numbers, warn_of_zeros
from .raw_columns import Holds, RawColumn
from .remedies import drop_it, missing_marks, of_kind
from .scales import on_a_scale
from .times import are_times, days, patterns_of

_COUNTING = re.compile(r"(^|[_ .])(n|num|number|count|counts|visits)([_ .]|$)", re.IGNORECASE)
# Names of columns of codes: three different numbers in such a column suffice for a warning.
_CODING = re.compile(
    r"(^|[_ .-])(zip|zip[_ ]?code|post[_ ]?code|postal[_ ]?code|plz|fips|geoid|isbn|ean|upc|sku)$",
    re.IGNORECASE,
)
_NAMING = re.compile(
    r"(^|[_ .-])(id|ids|uid|uuid|nr|no|index|key|rownames|barcode|mrn|ssn)$|(?-i:[a-z](ID|Id))$"
    r"|(phone|telefon)([_ .-]?(no|nr|num|number|nummer))?$"
    rf"|{_CODING.pattern}"
    r"|^(patient|subject|participant|sample|specimen|record|account|customer|order|invoice|serial)"
    r"([_ .-]?(id|nr|no|number|num))?$",
    re.IGNORECASE,
)
_PAIR = re.compile(
    r"[\[(]?\s*[\d.]+\s*[-/x:;,|\u2013]\s*[\d.]+\s*[\])]?"
    r"|\d+\s*(?:'|\u2032|ft\.?|feet)\s*[\d.]+\s*(?:\"|''|\u2033|in\.?|inches)?"  # 5'11"
)
_MOST_PAIRS = 10  # up to this many different pairs may be groups, such as ages 20-29
_SAME = (  # short and long spellings of one answer
    *(("y", "yes"), ("1", "yes"), ("t", "true"), ("1", "true"), ("f", "female")),
    *(("n", "no"), ("0", "no"), ("f", "false"), ("0", "false"), ("m", "male")),
    *(("true", "yes"), ("false", "no"), ("j", "ja"), ("wahr", "ja"), ("n", "nein")),
    ("falsch", "nein"),
)
_SHARE = re.compile(r"%|percent|prozent|(^|[_ .(-])pct([_ .)-]|$)", re.IGNORECASE)
_FIRST_DAY, _LAST_DAY = 18000101, 21001231
_SEVERAL_ZEROS = 0.05  # share of a column; fewer may be rounded measurements
_YEARS = (1800, 2100)  # whole numbers in between may be years
_QUANTILES = (0.05, 0.5, 0.95)
_BETWEEN = 3.29  # standard deviations of a Gaussian between the outer two quantiles
_TIMELY = re.compile(
    r"(^|[_ .])(date|day|datum|time|timestamp|ts|epoch|unixtime|when|zeit)([_ .]|$)"
    r"|(?-i:[a-z](Date|Time))$",
    re.IGNORECASE,
)
_EPOCHS = (  # (range of the numbers, origin, unit) for spreadsheets, then for Unix times
    ((20_000, 80_000), datetime(1899, 12, 30), "days"),
    ((6e8, 4e9), datetime(1970, 1, 1), "seconds"),
    ((6e11, 4e12), datetime(1970, 1, 1), "milliseconds"),
)
_EXACT = 2**53  # a float64 holds every whole number up to this
_FAR_FROM_ZERO = 2.33  # standard deviations: 1% of a Gaussian lies further out on one side
_OFTEN = 20  # a word is this many times as frequent as its misspelling
_LONG = 5  # letters; short words such as cat and car differ by one letter
_BEYOND = 7  # expected Poisson counts; the chance that there is none is exp(-7), 1 in 1,000
_FEW_CODES = 10  # up to this many different whole numbers may be codes for words


class Choice(NamedTuple):
    """A kind for a column, and the reason for this choice in words."""

    kind: type[Kind] | Kind
    why: str


def kind_of(name: str, raw: RawColumn) -> Choice:
    """Chooses the kind of a column by the rules of :mod:`pyro_vae.data.tables`.

    Raises:
        ValueError: If the column holds dates, row names, row numbers, integers too large for
            float64, two numbers per entry, or both numbers and words.
    """
    found = raw.known
    if raw.ordered:
        return Choice(Ordered, "its dtype is ordered")
    if raw.categories is None:
        _refuse_times(name, raw)
    if raw.categories is not None or raw.holds is Holds.WORDS:
        return _kind_of_words(name, raw)
    if raw.holds is Holds.BOOLEANS:
        return Choice(Binary((False, True)), "booleans")
    if set(found.tolist()) == {0.0, 1.0}:
        return Choice(Binary((0, 1)), "zeros and ones")
    if raw.holds is Holds.INTEGERS:
        _refuse_beyond_floats(name, found)
    if raw.whole:
        _refuse_names_of_rows(name, found)
    if (
        not raw.whole or np.abs(found).max() > _EXACT
    ):  # floats beyond are whole, whatever they measure
        hint = (
            "; declare the column Positive if all entries must be above 0"
            if found.min() > 0
            else ""
        )
        return _kind_of_numbers(name, found, "numbers", hint)
    if is_share_or_money(raw.unit) or _SHARE.search(name):
        return _kind_of_numbers(name, found, f"whole numbers from {found.min():.0f} on", "")
    return _kind_of_whole(name, found)


def _kind_of_words(name: str, raw: RawColumn) -> Choice:
    """Chooses `Binary` for two categories or words, and `Categories` for more.

    Words are refused if they look like names of rows, are mixed with numbers, or are pairs of
    numbers.
    """
    if raw.categories is None:
        _refuse_many_codes(name, raw)
        _refuse_mixed(name, raw)
        _refuse_pairs(name, raw)
    entries = raw.categories or sorted(set(raw.known.tolist()))
    kind = Binary if len(entries) == 2 else Categories
    scale = on_a_scale([str(entry) for entry in entries]) and len(entries) > 2
    hint = "; declare the column Ordered to use their order" if scale else ""
    what = f"{count_of(len(entries), 'different entry')}: {first_few(map(repr, entries))}"
    return Choice(kind, what + hint)


def _kind_of_whole(name: str, found: Shaped[np.ndarray, " rows"]) -> Choice:
    """Chooses the kind of a column of whole numbers that are neither percentages nor money.

    The kind is `Count` if the smallest number is 0 or 1, or if it is above 1 and the column is
    named like a count. Otherwise the kind is `Positive` or `Real`. There are three exceptions in
    columns of 20 entries or more:

    * A constant column is `Real`.
    * A column of only two different numbers is `Binary` if they are 1 and 2, or if the smaller is
      neither 0 nor 1, unless the column is named like a count.
    * A column whose smallest number is 0 or 1 is `Ordered` if it has few different numbers that
      vary less than counts do, unless it is named like a count.
    """
    several, different = len(found) >= FEW, sorted(set(found.tolist()))
    two = several and len(different) == 2 and not _COUNTING.search(name)
    if two and np.isfinite(different).all() and (different == [1, 2] or different[0] not in (0, 1)):
        low, high = map(int, different)
        kinds = ["Count if they are counts"] * (low >= 0) + ["Real if others may follow"] * (
            low != 1
        )
        return Choice(
            Binary((low, high)),
            f"all entries are {low} or {high}; declare the column {', '.join(kinds)}",
        )
    if several and found.min() == found.max():
        return Choice(Real, _of_constant(found))
    if found.min() in (0, 1):
        graded = len(different) <= _FEW_CODES
        if graded and several and _is_narrow(name, found):
            low, high = map(int, (different[0], different[-1]))
            return Choice(
                Ordered(tuple(range(low, high + 1))),
                f"whole numbers from {low} to {high} that vary less than counts do; declare the "
                "column Count if others may follow, or Categories if they are codes",
            )
        hint = "; declare the column Ordered if they are grades, or Categories if they are codes"
        hint = hint if graded else ""
        return Choice(Count, f"whole numbers, the smallest of which is {found.min():g}{hint}")
    if found.min() > 0 and _COUNTING.search(name):
        return Choice(Count, "whole numbers in a column whose name suggests counts")
    what = f"whole numbers from {found.min():.0f} on"
    graded = several and len(different) <= _FEW_CODES
    uses = [
        *["Count if they are counts"] * bool(found.min() >= 0),
        *["Ordered if they are grades", "Categories if they are codes"] * graded,
    ]
    hint = f"; declare the column {', '.join(uses)}" if uses else ""
    return _kind_of_numbers(name, found, what, hint)


def _is_narrow(name: str, found: Shaped[np.ndarray, " rows"]) -> bool:
    """Whether whole numbers vary so little that no distribution of counts fits them.

    The variance of a Poisson distribution is its mean, and that of a negative binomial is larger.
    Three or more different numbers up to 10 vary little in two cases. Either their variance is
    below half of their mean (below a smaller share of it if there are fewer than 33 rows). Or the
    largest number is so small that, in a Poisson sample of the same size and mean, more than seven
    counts would be expected to exceed it. The result is False for a column that is named like a
    count.
    """
    mean, most = float(found.mean()), found.max()
    if most > _FEW_CODES or len(set(found.tolist())) < 3 or _COUNTING.search(name):
        return False
    below = sum(mean**k / math.factorial(k) for k in range(int(most) + 1)) * math.exp(-mean)
    # Over Poisson counts, variance / mean has a standard deviation of about sqrt(2 / (n - 1)).
    ratio = min(0.5, 1 - 2 * math.sqrt(2 / (len(found) - 1)))
    return bool(found.var() < ratio * mean) or len(found) * (1 - below) > _BEYOND


def _kind_of_numbers(name: str, found: Shaped[np.ndarray, " rows"], what: str, hint: str) -> Choice:
    """Chooses `Positive` for very skewed numbers above 0, and `Real` for all others.

    Numbers are very skewed if two conditions hold: a fitted Gaussian would put over 1% of its draws
    below 0, and the logarithms are more symmetric than the numbers. Both conditions
    are checked with quantiles, which a few outliers hardly change.
    """
    if found.min() == found.max():
        return Choice(Real, _of_constant(found))
    hint += _of_times(name, found) + _of_zeros(found)
    if len(found) < FEW or found.min() <= 0 or not np.isfinite(found).all():  # inf is refused later
        return Choice(Real, what + hint)
    low, middle, high = np.quantile(found, _QUANTILES)
    if middle < _FAR_FROM_ZERO * (high - low) / _BETWEEN:
        logs = np.log([low, middle, high])
        if _asymmetry(*logs) < _asymmetry(low, middle, high):
            return Choice(Positive, f"{what}, all above 0 and very skewed")
    return Choice(Real, what + hint)


def _of_constant(found: Shaped[np.ndarray, " rows"]) -> str:
    """Returns the note that a column is constant, with remedies."""
    return (
        f"all entries are {found[0]:g}, so nothing can be learned: drop the column, or write 0 "
        "into empty cells that mean 'no'"
    )


def _of_zeros(found: Shaped[np.ndarray, " rows"]) -> str:
    """Returns a note if no number is below 0 and at least 5% of them are 0, or else ""."""
    share = float((found == 0).mean())
    several = found.min() == 0 and share >= _SEVERAL_ZEROS
    return f"; {share:.0%} are 0, but draws may be below 0" if several else ""


def _of_times(name: str, found: Shaped[np.ndarray, " rows"]) -> str:
    """Returns a note on the dates that the numbers may encode, or "" if nothing suggests dates."""
    for (low, high), start, unit in _EPOCHS if _TIMELY.search(name) else ():
        if low <= found.min() and found.max() <= high:
            first, last = (f"{start + timedelta(**{unit: float(x)}):%Y-%m-%d}" for x in
                           (found.min(), found.max()))  # fmt: skip
            return (
                f"; read as {unit} since {start:%Y-%m-%d}, the numbers are dates from {first} to "
                f"{last}"
            )
    return ""


def _asymmetry(low: float, middle: float, high: float) -> float:
    """Returns how asymmetric three quantiles are; 0 if the median is halfway between the others.

    The asymmetry is `|log(a / b)|`, where a and b are the distances of the median from the
    low and from the high quantile.
    """
    ways = (max(end, np.finfo(np.float64).tiny) for end in (middle - low, high - middle))
    return abs(float(np.subtract(*np.log(list(ways)))))


def _refuse_times(name: str, raw: RawColumn) -> None:
    """Refuses dates and times, even if they are written as numbers such as 20240131."""
    known, dated = raw.known.tolist(), raw.holds is Holds.TIMES
    if raw.holds is Holds.WORDS:
        dated = bool(patterns_of(known)) or are_times(known)
    elif raw.whole and known and min(known) >= _FIRST_DAY and max(known) <= _LAST_DAY:
        words = [f"{value:.0f}" for value in known]
        dated = patterns_of(words) == ["%Y%m%d"] and _are_all_days(words, "%Y%m%d")
    if raw.whole and known and _TIMELY.search(name) and _end_with_years(known):
        raise ValueError(
            f"column '{name}' holds dates whose digits end with the year "
            f"({first_few(f'{value:08.0f}' for value in known)}): {drop_it(name)}, or write the "
            f"dates like 2024-12-31 and pass {of_kind(name, 'Time')}"
        )
    if dated:
        different = first_few(map(repr, sorted(set(known))))
        shown = different if raw.holds is Holds.WORDS else f"dtype {raw.dtype}"
        raise ValueError(
            f"column '{name}' holds dates or times ({shown}), which have no likelihood: "
            f"{drop_it(name)}, or convert them to days with {of_kind(name, 'Time')}"
        )


def _end_with_years(numbers: list[float]) -> bool:
    """Whether all numbers are dates such as 12312024; a leading 0 may be lost, as in 1052024."""
    words = [f"{number:08.0f}" for number in numbers]
    return all(_YEARS[0] <= float(word[-4:]) <= _YEARS[1] for word in words) and any(
        _are_all_days(words, pattern) for pattern in ("%m%d%Y", "%d%m%Y")
    )


def _are_all_days(words: list[str], pattern: str) -> bool:
    return all(days(word, pattern) is not None for word in words)


def _refuse_names_of_rows(name: str, found: Shaped[np.ndarray, " rows"]) -> None:
    """Refuses whole numbers that seem to name the rows.

    They do if all of them differ, and if they are consecutive or their column is named like an id.
    Consecutive years are accepted, unless the column is named like an id.
    """
    if len(found) < FEW or len(set(found.tolist())) < len(found):
        return
    low, high = found.min(), found.max()
    running = high - low == len(found) - 1 and not (_YEARS[0] <= low and high <= _YEARS[1])
    if running or _NAMING.search(name):
        what = "counts the rows" if running else "has a different whole number in each row"
        raise ValueError(
            f"column '{name}' {what} ({found[0]:.0f}, {found[1]:.0f}, ..., {found[-1]:.0f}): "
            f"{drop_it(name)}, or, if its numbers are measurements, pass {of_kind(name, 'Real')}"
        )


def _refuse_beyond_floats(name: str, found: Shaped[np.ndarray, " rows"]) -> None:
    """Refuses whole numbers, such as long ids, that a float64 cannot tell apart."""
    if np.abs(found).max() > _EXACT and np.isfinite(found).all():
        raise ValueError(
            f"column '{name}' holds whole numbers beyond {_EXACT:,}, such as "
            f"{found[np.abs(found).argmax()]:.0f}, whose last digits do not fit into a float64: if "
            f"the numbers are ids, {drop_it(name)}; otherwise pass {of_kind(name, 'Real')}"
        )


def _refuse_many_codes(name: str, raw: RawColumn) -> None:
    """Refuses codes such as `01234` that differ in most rows."""
    code = first_code(_cells(raw))
    if code and _differ(raw):
        raise ValueError(
            f"column '{name}' holds codes such as '{code}', which differ in most rows: if they are "
            f"names of rows, {drop_it(name)}; if they are numbers, pass {of_kind(name, 'Real')}"
        )


def _differ(raw: RawColumn) -> bool:
    """Whether so many words differ that they must name rows rather than categories."""
    return len(set(raw.known.tolist())) > max(FEW, len(raw.known) / 2)


def _refuse_mixed(name: str, raw: RawColumn) -> None:
    """Refuses a column that mixes numbers and words, because its type is unclear."""
    numbers, others = mixed(_cells(raw))
    if numbers and others:
        shown = first_few(f"{raw.values[i]!r} at row {i}" for i in others)
        limits = sum(str(raw.values[i]).strip()[0] in "<>" for i in others)
        beyond = (
            ". Entries beyond a limit are missing because of their value, which "
            "pv.likelihoods.SelfMasking models"
        )
        raise ValueError(
            f"column '{name}' holds {count_of(numbers, 'number')} and "
            f"{count_of(len(others), 'other entry')} ({shown}, counted from 0): empty the cells of "
            f"the other entries, or treat these entries as missing with {of_kind(name, 'Real')}, "
            "or read all entries as words by passing Categories in place of Real, or "
            f"{drop_it(name)}{beyond * (2 * limits > len(others))}"
        )


def _refuse_pairs(name: str, raw: RawColumn) -> None:
    """Refuses a column of number pairs such as 120/80, if more than 10 different pairs occur."""
    known = raw.known.tolist()
    pairs = [word for word in known if _PAIR.fullmatch(word)]
    if len(set(pairs)) > _MOST_PAIRS and 10 * len(pairs) >= 9 * len(known):
        shown = first_few(map(repr, sorted(set(pairs))))
        raise ValueError(
            f"column '{name}' holds two numbers per entry ({shown}): split the "
            f"column into two columns, or {drop_it(name)}; if the entries are words, pass "
            f"{of_kind(name, 'Categories')}"
        )


def _cells(raw: RawColumn) -> list[str]:
    """Returns a column's words without spaces at their ends, and "" for each missing entry."""
    return ["" if word is None else str(word).strip() for word in raw.values]


def read(name: str, raw: RawColumn, kind: Any) -> RawColumn:
    """Converts a column of strings to numbers or booleans, unless its entries are words.

    Arguments:
        name: Name of the column, for messages.
        raw: The column as it was read.
        kind: The kind that the user declared, or None; it has not been checked yet.

    Warns:
        UserWarning: If some entries of a numeric column are not numbers.
    """
    if keeps_strings(kind) or raw.holds is not Holds.WORDS or raw.categories is not None:
        return raw
    cells = _cells(raw)
    if kind is None and first_code(cells):
        return raw
    source = Source(name, f"column '{name}'", "row {}, counted from 0".format)
    found = entries_of(source, cells, numbers=kind is not None)
    return raw if found.holds is Holds.WORDS else found


def warn_of_marks(name: str, raw: RawColumn) -> None:
    """Warns about entries that may mark missing values, and about other doubtful entries."""
    if raw.holds is Holds.WORDS and raw.categories is None:
        _warn_of_words(name, raw)
    elif raw.holds in (Holds.FLOATS, Holds.INTEGERS):
        _warn_of_repeated_ids(name, raw)
        _warn_of_months(name, raw)
        warn_of_numbers(name, raw)
        warn_of_zeros(name, raw)


def _warn_of_words(name: str, raw: RawColumn) -> None:
    """Warns about words that suggest merged cells, two spellings of an answer, or marks like `?`.

    In a column that holds nothing but signs, such as + and -, no sign counts as the mark of a
    missing entry.
    """
    words, times = np.unique(raw.known.astype(str), return_counts=True)
    code = first_code(_cells(raw))
    if code and not _differ(raw):  # codes that differ in most rows are refused
        warn_of_column(
            name,
            f"column '{name}' holds codes such as '{code}', which are taken for categories. If "
            f"they are numbers, pass {of_kind(name, 'Real')}; if they are categories, confirm this "
            f"with {of_kind(name, 'Categories')}",
        )
    _warn_of_merged(name, raw, words)
    _warn_of_spellings(name, words.tolist())
    _warn_of_misspellings(name, words.tolist(), times.tolist())
    marks = np.array([stands_for_missing(word) for word in words], dtype=bool)
    if not any(letter.isalnum() for word in words[~marks] for letter in word):
        return
    for word, count in zip(words[marks], times[marks], strict=True):
        warn_of_column(
            name,
            f"column '{name}' holds '{word}' in {count_of(count, 'entry', ',')}, and this mark is "
            "taken for a category. If the mark means that nothing was recorded, empty these "
            f"cells, or pass {missing_marks([word])}; if it is a category, confirm this with "
            f"{of_kind(name, 'Categories')}",
        )


def _warn_of_merged(name: str, raw: RawColumn, words: Shaped[np.ndarray, " words"]) -> None:
    """Warns about a column with few entries that all differ, as in a sheet with merged cells."""
    known = np.flatnonzero(~raw.missing)
    if len(words) == len(known) > 1 and known[0] == 0 and 2 * len(known) < len(raw.values):
        warn_of_column(
            name,
            f"column '{name}' has an entry in only {len(known)} of "
            f"{count_of(len(raw.values), 'row', ',')}, and all entries differ "
            f"({first_few(map(repr, raw.values[known].tolist()))}). If each entry also holds for "
            "the empty rows below it, as in merged cells, copy the entry into these rows; "
            "otherwise drop the column",
        )


def _warn_of_spellings(name: str, words: list[str]) -> None:
    """Warns about categories that may be the same, such as `Yes` and `yes`, or `yes` and `y`."""
    spellings: dict[str, list[str]] = {}
    for word in words:
        plain = " ".join(word.lower().split())
        spellings.setdefault(plain, []).append(word)
    for short, long in _SAME:
        if short in spellings and long in spellings:
            spellings[long] += spellings.pop(short)
    several = [" and ".join(map(repr, same)) for same in spellings.values() if len(same) > 1]
    if several:
        warn_of_column(
            name,
            f"column '{name}' holds {first_few(several)}, which are taken for different "
            "categories. If they mean the same, write them alike; if they differ, confirm this "
            f"with {of_kind(name, 'Categories')}",
        )


def _warn_of_misspellings(name: str, words: list[str], times: list[int]) -> None:
    """Warns about rare words that differ by one letter from a frequent one, such as `bengin`."""
    counts = dict(zip(words, times, strict=True))
    often = [word for word in words if counts[word] >= _OFTEN]
    pairs = (
        (rare, word)
        for word in often
        for rare in words
        if counts[rare] * _OFTEN <= counts[word] and _alike(rare, word)
    )
    of = f"of {count_of(sum(times), 'entry', ',')}"
    found = [f"{rare!r} ({counts[rare]:,} {of}) for {word!r}" for rare, word in pairs]
    if found:
        warn_of_column(
            name,
            f"column '{name}' holds rare words that may be misspellings, but are taken for "
            f"categories of their own: {first_few(found)}. If they are misspellings, correct them; "
            f"if not, confirm this with {of_kind(name, 'Categories')}",
        )


def _alike(one: str, two: str) -> bool:
    """Whether two words differ by one letter, or by two exchanged letters.

    The result is False for words that have digits or fewer than five letters.
    """
    short = min(len(one), len(two)) < _LONG
    if short or any(x.isdigit() for x in one + two) or one.lower() == two.lower():
        return False
    start = next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)
    if start is None:
        return abs(len(one) - len(two)) == 1
    a, b = one[start:], two[start:]
    swapped = a[:2] == b[:2][::-1] and a[2:] == b[2:]
    return swapped or a[1:] == b[1:] or a[1:] == b or a == b[1:]


def _warn_of_repeated_ids(name: str, raw: RawColumn) -> None:
    """Warns if a column is named like an id but its numbers repeat, as in repeated measures."""
    found = raw.known
    number = len(set(found.tolist()))
    exact = not len(found) or np.abs(found).max() <= _EXACT  # larger numbers are refused
    least = 2 if _CODING.search(name) else _FEW_CODES
    if exact and raw.whole and _NAMING.search(name) and least < number < len(found):
        warn_of_column(
            name,
            f"column '{name}' is named like an id, but its "
            f"{count_of(number, 'different number', ',')} in {count_of(len(found), 'row', ',')} "
            f"are taken for measurements. If they are ids, {drop_it(name)}; if they are codes of "
            f"categories, pass {of_kind(name, 'Categories')}; if they are measurements, confirm "
            f"this with {of_kind(name, 'Real')}",
        )


def _warn_of_months(name: str, raw: RawColumn) -> None:
    """Warns about whole numbers such as 201612, which may be a year and a month."""
    found = raw.known
    if not raw.whole or len(found) < FEW or not np.isfinite(found).all():
        return
    years, months = np.divmod(found, 100)
    fits = (years >= _YEARS[0]) & (years <= _YEARS[1]) & (months >= 1) & (months <= 12)
    if fits.all() and years.min() < years.max():
        warn_of_column(
            name,
            f"column '{name}' holds whole numbers such as {found[0]:.0f}, which may be months and "
            "are taken for numbers, so that December is far from January. If they are months, "
            f"write them like {years[0]:.0f}-{months[0]:02.0f}, and pass {of_kind(name, 'Time')}; "
            f"if not, confirm this with {of_kind(name, 'Real')}",
        )


def keeps_strings(kind: Any) -> bool:
    """Whether a declared kind keeps entries as strings, even if they look like numbers."""
    return issubclass(kind if isinstance(kind, type) else type(kind), Categories | Time)


def kind_of_matrix(values: Shaped[np.ndarray, "rows columns"]) -> Kind | type[Kind]:
    """Chooses one kind for a whole array: `Binary` if all entries are 0 or 1, else `Real`."""
    binary = bool(((values == 0) | (values == 1) | (values != values)).all())
    return Binary((0, 1)) if binary else Real
