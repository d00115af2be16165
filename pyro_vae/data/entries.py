r"""The type of a column whose entries are strings, from a text file or a data frame.

A column is numeric in three cases: at least nine in ten of its entries are numbers; all entries but
one are numbers; or all entries are numbers, except for marks such as `?` and `n.d.` and the error
values of spreadsheets. A number may be written `1.5`, `1,5`, `1,234`, `1 234`, `1.2 x
10^3`, `46%`, `$46` or `46 kW` (with the same unit throughout). As in accounts, `46-` is negative,
and so is `(46)` if the other numbers are positive. The error in `4.6 ± 0.1` is dropped, with a
warning. The other entries of a numeric column, such as `<47`, are treated as missing, with a
warning that lists their lines. A column of `true` and `false` is boolean. Any other column consists
of words; :mod:`pyro_vae.data.tables` refuses it if some of its entries are numbers.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .._warnings import warn_of_column
from ..formatting import count_of, first_few
from .raw_columns import Holds, RawColumn, as_objects
from .remedies import of_kind

MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "nat", "\\n", "(null)", "<null>"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_FORTRAN = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))[dD]([+-]?\d+)")
_LIKE_A_CODE = re.compile(r"\d+[Ee]\d{1,2}")  # few numbers have neither a point nor a sign
_LEADING_ZERO = re.compile(r"0\d+")
_LIKE_A_VERSION = re.compile(r"\d+\.(0|[1-9]\d*)")  # 1.05 is a number, not a version
_PHONE = re.compile(r"\+\d{7,15}")
WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_DOTTED = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_ADDRESS = re.compile(rf"{_BYTE}(?:\.{_BYTE}){{3}}")  # an IP address
# Groups of two digits are Indian; in 0,250 the comma is decimal.
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{2,3})*,\d{3}(\.\d*)?")
_SPACES = " \u00a0\u2007\u2008\u2009\u200a\u202f'\u2019"  # between groups of digits
_SPACED = re.compile(rf"[+-]?\d{{1,3}}([{_SPACES}]\d{{3}})+([.,]\d*)?")
_CURRENCY = (
    r"(?:US|CA|AU|A|C|R)?\$|[€£¥₹₩₽₺₪฿₫₴]|Rs\.?|kr\.?|(?:EUR|USD|GBP|CHF|JPY|CNY|INR|CAD|AUD|SEK|NOK|"
    r"DKK|PLN|BRL|MXN|ZAR|KRW)\b"
)
# In 01MAR2024 no unit follows the number.
_MONTH = r"(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s*\d{2,4}"
_WITH_UNIT = re.compile(
    rf"([+-]?)\s*({_CURRENCY}|)\s*([+-]?\d{{1,3}}(?:[{_SPACES}]\d{{3}})+(?:[.,]\d+)?|"
    rf"[+-]?[\d.,]+(?:[eE][+-]?\d+)?)"
    rf"\s*(?!{_MONTH})([%‰]|{_CURRENCY}|/?[°µμΩA-Za-z][\w°µμΩ²³/^*·-]*)?"
)
_DASH = re.compile("^[\u2012\u2013\ufe63\uff0d](?=\\s*[\\d.,])")
_IN_PARENTHESES = re.compile(r"\((.*\d.*)\)")
_MINUS_AT_END = re.compile(r"([^-]*\d)\s*-")
_TIMES_TEN = re.compile(r"([\d.,]+)\s*[x\u00d7*·]\s*10(?:\^|\*\*)([+-]?\d+)")
_SUPERSCRIPTS = re.compile("[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_PLAIN_SCRIPTS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_WITH_ERROR = re.compile(r"([^±]*\d)(?:\s*(?:±|\+/-|\+-)\s*[\d.,]+|\(\d+\))(\s*\D*)")
_ERRORS = {"#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!"}  # in spreadsheets
_MARKS = {*MISSING, *_ERRORS, "?", "??", "-", "--", "---", "*", ".", "n.d.", "nd", "n.a.", "n.r."}
_MARKS |= {"\u2013", "\u2014", "missing", "unknown", "no data"}
_MARKS |= {"not available", "not recorded", "not measured"}
_MARKS |= {"k.a.", "k. a.", "n.v.", "unbekannt", "inconnu", "s/d", "sin dato", "desconocido"}
_MARKS |= {f".{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"}  # in Stata
_CODES = {"nd", "*"}  # marks among numbers, but ordinary entries among words
_FEWEST_WORDS = 10  # a few new rows may all have the same number and unit
_ODD = 0.1  # share of a numeric column's entries that may not be numbers, such as `<47`


class Source(NamedTuple):
    """How warnings name a column and its entries.

    Arguments:
        name: Name of the column.
        title: The column in words, such as "in 'visits.csv', column 'age'".
        where: Maps the position of an entry to its location in words, such as "line 7".
    """

    name: str
    title: str
    where: Callable[[int], str]


def entries_of(
    source: Source,
    cells: Sequence[str],
    *,
    comma: bool = False,
    points: bool = False,
    numbers: bool = False,
) -> RawColumn:
    """Converts a column of strings to the type of its entries.

    Arguments:
        source: Names of the column and of its entries for warnings.
        cells: The entries of the column; "" where an entry is missing.
        comma: Whether a comma is the decimal separator.
        points: Whether other columns have decimal points. If so, `1.200` is 1.2, whatever `comma`
            is.
        numbers: Whether the column was declared numeric. If so, entries that are not numbers count
            as missing.

    Warns:
        UserWarning: If a numeric column has entries that are not numbers, which are treated as
            missing; if numbers start with 0, as codes do; or if `1.200` may be 1200.
    """
    plain = _numerals(cells, comma=comma, points=points)
    values = [number(cell, comma=False) for cell in plain]
    declared = numbers and any(value is not None for value in values)
    if not declared and not mostly_numbers(plain, comma=False) and not _are_marked(plain):
        return _booleans(cells) or words_of(cells)
    _warn_of_odd(source, cells, values)
    if not numbers:
        _warn_of_codes(source, plain)
        _warn_of_versions(source, plain)
        _warn_of_grades(source, cells)
    _warn_of_errors(source, cells)
    _warn_of_units(source, cells)
    if comma and points:
        _warn_of_points(source, cells)
    return _numbers(plain, values)._replace(unit=_unit_of(cells))


def _are_marked(cells: Sequence[str]) -> bool:
    """Whether all cells are numbers or marks such as `?`.

    If most cells are marks, there must be at least two different numbers, because a column of `-`
    and `1` may mean no and yes.
    """
    known = {cell for cell in cells if number(cell, comma=False) is not None}
    good, odd = _counted(cells, comma=False)
    marked = sum(cell.lower() in _MARKS and not is_missing(cell) for cell in cells)
    return odd == marked and (good >= odd or len(known) > 1)


def first_code(cells: Sequence[str]) -> str | None:
    """Returns the first entry like `01234` if all entries are codes, and None otherwise.

    Whole numbers are codes if some have leading zeros and all are of one length, or if most have
    leading zeros. Phone numbers such as `+4930123456` are codes, too.

    Example:
        >>> first_code(["94305", "01234", ""]), first_code(["7", "08"]), first_code(["00.5"])
        ('01234', None, None)
    """
    known = [cell for cell in cells if not is_missing(cell)]
    if known and all(map(_PHONE.fullmatch, known)):
        return known[0]
    padded = list(filter(_LEADING_ZERO.fullmatch, known))
    alike = len(set(map(len, known))) == 1 or 2 * len(padded) > len(known)
    return padded[0] if padded and alike and all(map(str.isdecimal, known)) else None


def mixed(cells: Sequence[str]) -> tuple[int, list[int]]:
    """Returns the number of numeric cells, and the positions of cells that hold something else.

    The result is 0 and [] for a column of words. A column is one of words if most of its cells
    hold words, and if it has at least as many different words as different numbers. In the latter
    condition, limits such as `<5` do not count as words.
    """
    plain = _numerals(cells, comma=False)
    odd = [
        place
        for place, cell in enumerate(plain)
        if not is_missing(cell) and number(cell, comma=False) is None
    ]
    known = [number(cell, comma=False) for cell in plain]
    numbers = {value for value in known if value is not None}
    words = {plain[place] for place in odd if not _is_limit(plain[place])}
    good = sum(value is not None for value in known)
    return (good, odd) if good >= len(odd) or len(numbers) > len(words) else (0, [])


def _is_limit(cell: str) -> bool:
    """Whether a cell is a limit such as `<5`."""
    return cell[:1] in "<>≤≥" and number(cell[1:].lstrip("= "), comma=False) is not None


def has_decimal_commas(cells: Sequence[str], *, by_default: bool) -> bool:
    """Whether commas are decimal separators in the given cells, as in `1,5`.

    The first rule that applies decides: the answer is True if a cell shows a decimal comma, False
    if a cell shows a decimal point or is like `1,234,567`, and `by_default` in all other cases.
    """
    if _has_commas(cells):
        return True
    if any(cell.count(",") > 1 and _THOUSANDS.fullmatch(cell) for cell in cells):
        return False
    points = [cell for cell in cells if "." in cell]
    if _are_grouped(points):
        return by_default
    return by_default and not any(_NUMBER.fullmatch(cell) for cell in points)


def has_decimal_points(cells: Sequence[str]) -> bool:
    """Whether a cell shows a decimal point, as in `1.5`; in `1.500` the point is ambiguous."""
    return any("." in c and _NUMBER.fullmatch(c) and not _DOTTED.fullmatch(c) for c in cells)


def _are_grouped(cells: Iterable[str]) -> bool:
    """Whether a cell is like 1.234.567; an IP address such as 192.168.100.101 is not."""
    return any(
        cell.count(".") > 1 and _DOTTED.fullmatch(cell) and not _ADDRESS.fullmatch(cell)
        for cell in cells
    )


def _has_commas(cells: Sequence[str]) -> bool:
    """Whether a cell shows a decimal comma, as in `1,5`; in `1,500` the comma is ambiguous."""
    return any(_DECIMAL_COMMA.fullmatch(c) and not _THOUSANDS.fullmatch(c) for c in cells)


def place_of_ambiguous(cells: Sequence[str], mark: str) -> int | None:
    """Returns the position of the first cell like `1.200`, which may mean 1.2 or 1200.

    `mark` is the point or comma in question. The result is None if no cell is ambiguous, or if
    another cell shows whether `mark` separates decimals or thousands.
    """
    grouped = (cell.replace(mark, ".") for cell in cells if cell.count(mark) > 1)
    if _are_grouped(grouped) or has_decimal_points(cells) or _has_commas(cells):
        return None
    either = (c.count(mark) == 1 and _DOTTED.fullmatch(c.replace(mark, ".")) for c in cells)
    return next((place for place, found in enumerate(either) if found), None)


def words_of(cells: Sequence[str], *, with_answers: bool = False) -> RawColumn:
    """Builds a column of words; `with_answers` keeps the words of :func:`answers` as entries."""
    kept = answers(cells) if with_answers else set()
    words = [None if is_missing(cell) and cell not in kept else cell for cell in cells]
    return RawColumn(as_objects(words), Holds.WORDS, "object")


def answers(cells: Sequence[str]) -> set[str]:
    """Returns those spellings of missing entries that may be true answers in a column of words.

    These are `none` in a survey, `Na` for sodium, the names `Nan`, `Nat` and `Null` of people, and
    `NA` for Namibia if all other entries are two capital letters, too. The spellings `NaN` and
    `NaT`, which pandas writes, are always missing.
    """
    others = {cell for cell in cells if not is_missing(cell)}
    codes = len(others) > 1 and all(re.fullmatch("[A-Z]{2}", word) for word in others)
    return {"none", "Na", "Nan", "Nat", "Null"} | ({"NA"} if codes else set())


def is_missing(cell: str) -> bool:
    """Whether a cell stands for a missing entry."""
    return cell.lower() in MISSING


def stands_for_missing(word: str) -> bool:
    """Whether a word is a common mark of a missing entry, such as `?` or `n.d.`."""
    return word.lower() in _MARKS - _CODES


def _booleans(cells: Sequence[str]) -> RawColumn | None:
    """Returns a boolean column if all entries are `true` or `false`, and None otherwise."""
    known = {cell.lower() for cell in cells if not is_missing(cell)}
    if not known or not known <= {"true", "false"}:
        return None
    truth = {"true": 1.0, "false": 0.0}
    values = np.array([truth.get(cell.lower()) for cell in cells], dtype=np.float64)
    return RawColumn(values, Holds.BOOLEANS, "boolean" if np.isnan(values).any() else "bool")


def _counted(cells: Sequence[str], *, comma: bool) -> tuple[int, int]:
    """Returns the number of cells that hold numbers, and the number of cells that hold words."""
    known = [cell for cell in cells if not is_missing(cell)]
    good = sum(number(cell, comma=comma) is not None for cell in known)
    return good, len(known) - good


def mostly_numbers(cells: Sequence[str], *, comma: bool) -> bool:
    """Whether at least nine in ten entries are numbers, or all entries but one."""
    good, odd = _counted(cells, comma=comma)
    return good > odd and odd <= max(1, _ODD * (good + odd))


def number(cell: str, *, comma: bool) -> float | None:
    """Returns the number in a cell, or None; if `comma` is true, a comma separates decimals."""
    text = _plain(cell, comma=comma)
    return float(text) if _NUMBER.fullmatch(text) else None


def is_word(cell: str) -> bool:
    """Whether a cell holds no number, neither with a decimal point nor with a decimal comma."""
    return number(cell, comma=True) is None


def _plain(cell: str, *, comma: bool, dotted: bool = False) -> str:
    """Rewrites a cell in Python's notation if it is a number.

    Arguments:
        cell: The content of the cell.
        comma: Whether a comma is the decimal separator, and not the thousands separator.
        dotted: Whether a point is the thousands separator.
    """
    cell = _FORTRAN.sub(r"\1e\2", _ungrouped(cell))
    if comma and _DECIMAL_COMMA.fullmatch(cell):
        return cell.replace(".", "").replace(",", ".")
    if dotted and _DOTTED.fullmatch(cell):
        return cell.replace(".", "")
    return cell.replace(",", "") if not comma and _THOUSANDS.fullmatch(cell) else cell


def _ungrouped(cell: str) -> str:
    """Removes spaces and apostrophes between groups of digits; writes a minus as a hyphen."""
    cell = _with_hyphen(cell)
    return re.sub(f"[{_SPACES}]", "", cell) if _SPACED.fullmatch(cell) else cell


def _with_hyphen(cell: str) -> str:
    """Writes a hyphen in place of a typographic minus sign, or of a dash before a number."""
    return cell if cell.isascii() else _DASH.sub("-", cell.replace("\u2212", "-"))


def _numbers(cells: Sequence[str], values: Sequence[float | None]) -> RawColumn:
    """Builds a column of integers if all numbers are written as integers, else of floats."""
    array = np.array(values, dtype=np.float64)  # None becomes nan
    known = [cell for cell, value in zip(cells, values, strict=True) if value is not None]
    if all(WHOLE.fullmatch(cell) for cell in known):
        dtype = "Int64" if np.isnan(array).any() else "int64"
        return RawColumn(array, Holds.INTEGERS, dtype)
    return RawColumn(array, Holds.FLOATS, "float64")


def _numerals(cells: Sequence[str], *, comma: bool, points: bool = False) -> list[str]:
    """Rewrites the numbers among the cells of a column in Python's notation."""
    bare = _bare(cells)
    pointed = has_decimal_points(bare)
    # A comma in a quoted cell of a comma-separated file may be decimal, too: as in 46,0.
    comma = comma or (_has_commas(bare) and not pointed)
    dotted = not pointed and (
        _are_grouped(bare)
        or (
            comma
            and not any(map(_ADDRESS.fullmatch, bare))
            and not (points and place_of_ambiguous(bare, ".") is not None)
        )
    )
    return [_plain(cell, comma=comma, dotted=dotted) for cell in bare]


def _bare(cells: Sequence[str]) -> list[str]:
    """Returns the cells of a column without errors, units, and spaces between digits."""
    cells = [_scientific(cell) for cell in cells]
    # A matched cell keeps the text before its error, and what follows the error, such as a unit.
    found = zip(_with_errors(cells), cells, strict=True)
    cells = _signed([cell if match is None else match[1] + match[2] for match, cell in found])
    # A matched cell keeps its sign and its number.
    found = zip(_with_units(cells), cells, strict=True)
    return [_ungrouped(cell if match is None else match[1] + match[3]) for match, cell in found]


def _scientific(cell: str) -> str:
    """Rewrites `1.2 x 10^-3` and `1.2·10⁻³` as `1.2e-3`."""
    if "10" not in cell:
        return cell
    raised = _SUPERSCRIPTS.sub(lambda found: "^" + found[0].translate(_PLAIN_SCRIPTS), cell)
    return _TIMES_TEN.sub(r"\1e\2", raised) if _TIMES_TEN.search(raised) else cell


def _with_errors(cells: Sequence[str]) -> list[re.Match[str] | None]:
    """Returns a match for each cell like `4.6 ± 0.1` or `4.6(1)`, and None for other cells.

    If at most half of the filled cells match, the result is None for every cell.
    """
    found = [_WITH_ERROR.fullmatch(cell) for cell in cells]
    known = sum(not is_missing(cell) for cell in cells)
    return found if 2 * sum(map(bool, found)) > known else [None] * len(cells)


def _signed(cells: Sequence[str]) -> list[str]:
    """Rewrites `46-` as `-46`; also rewrites `(46)`, unless all cells are in parentheses."""
    inside = [_IN_PARENTHESES.fullmatch(cell) for cell in cells]
    known = sum(not is_missing(cell) for cell in cells)
    accounts = 0 < sum(map(bool, inside)) < known
    found = [
        (m if accounts else None) or _MINUS_AT_END.fullmatch(cell)
        for m, cell in zip(inside, cells, strict=True)
    ]
    return [
        f"-{m[1].strip()}" if m and _WITH_UNIT.fullmatch(m[1].strip()) else cell
        for m, cell in zip(found, cells, strict=True)
    ]


def _with_units(cells: Sequence[str]) -> list[re.Match[str] | None]:
    """Returns a match for each cell like `46%`, `$46` or `46 kW`, and None for other cells.

    Only cells with the most frequent unit match. The result is None for every cell unless more than
    half of the filled cells have this unit; for money and percentages, only the cells that hold a
    number are considered. Words such as `2. Married` never match.
    """
    matches = [_WITH_UNIT.fullmatch(_with_hyphen(cell)) for cell in cells]
    units = Counter((m[2], m[4]) for m in matches if m)
    (unit, times), *_ = units.most_common(1) or [(("", None), 0)]
    symbol = is_share_or_money(unit[0] or unit[1] or "")
    known = units.total() if symbol else sum(not is_missing(cell) for cell in cells)
    found = [m if m and (m[2], m[4]) == unit else None for m in matches]
    if unit == ("", None) or 2 * times <= known or _are_words(cells, found):
        return [None] * len(cells)
    return found


def _are_words(cells: Sequence[str], found: Sequence[re.Match[str] | None]) -> bool:
    """Whether cells such as `2. Married`, which match as a number with a unit, are words.

    They are words if three conditions hold: at least ten cells match, and all of them have the same
    number and the same unit; the unit is neither money nor a percentage; and some other cell holds
    no number.
    """
    alike = [(m[3], m[4]) for m in found if m]
    beside = (cell for cell, m in zip(cells, found, strict=True) if not m and not is_missing(cell))
    return (
        len(alike) >= _FEWEST_WORDS
        and len(set(alike)) == 1
        and not is_share_or_money(alike[0][1] or "%")
        and any(number(cell, comma=False) is None for cell in beside)
    )


def _unit_of(cells: Sequence[str]) -> str:
    """Returns the unit that most cells have, such as "kW" or "$"; "" if there is none."""
    found = next(filter(None, _with_units([_scientific(cell) for cell in cells])), None)
    return "" if found is None else ((found[2] or "") + (found[4] or "")).strip()


def is_share_or_money(unit: str) -> bool:
    """Whether a unit stands for percentages or money, so that its numbers are not counts."""
    return unit in ("%", "‰") or re.fullmatch(_CURRENCY, unit) is not None


def without_unit(cell: str) -> str:
    """Removes the unit of a cell such as `1.5 kg`; returns other cells, even `1.5 €`, unchanged.

    Example:
        >>> without_unit("1.500 kg"), without_unit("1.500 €"), without_unit("a 1.5")
        ('1.500', '1.500 €', 'a 1.5')
    """
    found = None if _NUMBER.fullmatch(cell) else _WITH_UNIT.fullmatch(_with_hyphen(cell))
    if found is None or found[2] or re.fullmatch(_CURRENCY, found[4] or ""):
        return cell
    return found[1] + found[3]


def _warn_of_odd(source: Source, cells: Sequence[str], values: Sequence[float | None]) -> None:
    """Warns about entries of a numeric column that are neither numbers nor missing."""
    odd = [
        f"{cell!r} in {source.where(place)}"
        for place, (cell, value) in enumerate(zip(cells, values, strict=True))
        if value is None and not is_missing(cell)
    ]
    if odd:
        warn_of_column(
            source.name,
            f"{source.title} holds numbers, except for {len(odd)} of "
            f"{count_of(len(cells), 'entry')}: {first_few(odd)}. These entries are treated as "
            "missing: if that is wrong, correct the cells, or drop their rows",
        )


def _warn_of_codes(source: Source, cells: Sequence[str]) -> None:
    """Warns about entries such as `2E3` or `007`, which may be codes and not numbers."""
    wells = [place for place, cell in enumerate(cells) if _LIKE_A_CODE.fullmatch(cell)]
    if len(wells) > sum(not is_missing(cell) for cell in cells) / 2:
        warn_of_column(
            source.name,
            f"{source.title} holds entries such as {cells[wells[0]]!r} in "
            f"{source.where(wells[0])}, which is read as the number {float(cells[wells[0]]):g}: if "
            f"the entries are codes, read them as words with {of_kind(source.name, 'Categories')}",
        )
    codes = [place for place, cell in enumerate(cells) if _LEADING_ZERO.fullmatch(cell)]
    if codes:
        warn_of_column(
            source.name,
            f"{source.title} holds whole numbers with leading zeros, such as {cells[codes[0]]!r} "
            f"in {source.where(codes[0])}: if they are codes, drop the column, or read the codes "
            f"as words with {of_kind(source.name, 'Categories')}",
        )


def _warn_of_versions(source: Source, cells: Sequence[str]) -> None:
    """Warns about `1.1` and `1.10` in one column, which differ as versions but not as numbers."""
    known = {cell for cell in cells if not is_missing(cell)}
    both = {cell for cell in known if cell[-1] == "0" and cell[:-1] in known}
    if both and all(map(_LIKE_A_VERSION.fullmatch, known)):
        place = next(place for place, cell in enumerate(cells) if cell in both)
        warn_of_column(
            source.name,
            f"{source.title} holds {cells[place][:-1]!r} and, in {source.where(place)}, "
            f"{cells[place]!r}, which are read as one number: if they are versions or sections, "
            f"read them as words with {of_kind(source.name, 'Categories')}",
        )


def _warn_of_grades(source: Source, cells: Sequence[str]) -> None:
    """Warns that `2-` is read as -2, if all numbers with a minus at the end have one digit."""
    ending = [place for place, cell in enumerate(cells) if cell.endswith("-")]
    negative = [place for place in ending if _MINUS_AT_END.fullmatch(cells[place])]
    if negative and all(len(cells[place]) == 2 for place in negative):
        cell = cells[negative[0]]
        warn_of_column(
            source.name,
            f"{source.title} holds {cell!r} in {source.where(negative[0])}, which is read as "
            f"-{cell[0]}: if this is a grade, read grades as words with "
            f"{of_kind(source.name, 'Categories')}",
        )


def _warn_of_errors(source: Source, cells: Sequence[str]) -> None:
    """Warns that the errors in entries such as `4.6 ± 0.1` are left out."""
    found = [place for place, parts in enumerate(_with_errors(cells)) if parts]
    if found:
        warn_of_column(
            source.name,
            f"{source.title} holds numbers with their errors, such as {cells[found[0]]!r} in "
            f"{source.where(found[0])}, and the errors are left out: if the model should see the "
            "errors, put them into a column of their own",
        )


def _warn_of_units(source: Source, cells: Sequence[str]) -> None:
    """Warns about numbers without a unit in a column with units, as they may be in another unit."""
    with_unit = _with_units(cells)
    if not any(with_unit):
        return
    bare = [
        place
        for place, (cell, found) in enumerate(zip(cells, with_unit, strict=True))
        if found is None and number(cell, comma=False) not in (None, 0.0)
    ]
    if bare:
        one = next(cell for cell, found in zip(cells, with_unit, strict=True) if found)
        shown = first_few(f"{cells[place]!r} in {source.where(place)}" for place in bare)
        warn_of_column(
            source.name,
            f"{source.title} holds numbers with a unit, such as {one!r}, and "
            f"{count_of(len(bare), 'number')} without a unit: {shown}. All numbers are taken to "
            "be in this unit: convert numbers in other units, and write the unit after all numbers "
            "or after none",
        )


def _warn_of_points(source: Source, cells: Sequence[str]) -> None:
    """Warns about numbers such as `1.200` in a file with both decimal commas and decimal points."""
    place = place_of_ambiguous(_bare(cells), ".")
    if place is not None:
        warn_of_column(
            source.name,
            f"{source.title} holds numbers such as {cells[place]!r} in {source.where(place)}. The "
            "file has both decimal points and decimal commas, so this point is taken for a "
            "decimal point: if it separates thousands, write these numbers without it",
        )
