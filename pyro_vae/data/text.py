r"""Tables out of text files, as people and their instruments write them.

The text is decoded (UTF-8, UTF-16, else Windows-1252; compressed by gzip or not), cut into cells at
the separator that cuts most lines alike (`;`, tab, `,`, `|`, else spaces), and its first lines are
told apart:

| what stands there | what is made of it |
| --- | --- |
| `# ...`, `sep=;` | skipped |
| a first line with a word above numbers, or with words alone | names of the columns |
| numbers that rise or fall from left to right, far from those below, or in equal steps | names |
| a second line of words above numbers | units, skipped |
| a first column without a name, whose entries all differ | an index, skipped |

Names that are numbers, and units, are guesses: a warning names them, and how to overrule it.

A column is numbers if nine in ten of its entries are, or all but one: `1.5`, `1,5`, `1,234`,
`1 234`, `46%`, `$46`, `46 kW` (each unit throughout). The few that are not, such as `<47` or `?`,
are missing, with a warning that names their lines. A column of `true` and `false` is booleans; one
with fewer numbers than other entries is words; anything between is refused.
"""

import csv
import gzip
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .frames import Holds, RawColumn

GZIP_MAGIC = b"\x1f\x8b"
MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "nat"}
SEPARATORS = ";\t,|"  # the first of equals: a comma may be a decimal one
UNNAMED = ("", "Unnamed: 0")  # of a first column: as spreadsheets and R, and as pandas have it
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_DOTTED = re.compile(r"[+-]?\d{1,3}(\.\d{3})+")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_SPACED = re.compile(r"[+-]?\d{1,3}([ \u00a0\u202f'\u2019]\d{3})+([.,]\d*)?")
_WITH_UNIT = re.compile(
    r"([$€£]?)\s*([+-]?[\d.,]+(?:[eE][+-]?\d+)?)\s*([%$€£]|[°µA-Za-z][\w°µ/^*-]*)?"
)
_NO_UNIT = {"-", "1", "text"}  # above a number without one, as CF has it, or above words
_ODD = 0.1  # share of a column of numbers that may be none, such as `<47`
_SAMPLED = 200  # lines looked at to find the separator and the header
_SHOWN = 4  # cells named in a warning


@dataclass(frozen=True)
class Layout:
    """How a text is cut into a table; what is None is found from the text.

    Arguments:
        separator: What stands between cells, one character.
        header: Whether the first line has names.
    """

    separator: str | None = None
    header: bool | None = None


@dataclass(frozen=True)
class Cells:
    """The cells of a text, by rows.

    Arguments:
        names: Names of the columns, or None.
        rows: Cells, stripped; every row has as many.
        lines: The line of the file in which each row stands, counted from 1.
        comma: Whether a comma is the decimal sign.
    """

    names: tuple[str, ...] | None
    rows: list[list[str]]
    lines: list[int]
    comma: bool

    def column(self, place: int) -> list[str]:
        """Its cells."""
        return [row[place] for row in self.rows]


def uncompressed(path: Path) -> bytes:
    """Bytes of a file, compressed by gzip or not.

    Raises:
        ValueError: If they are damaged.
    """
    content = path.read_bytes()
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"'{path}' is truncated or damaged ({error}; {len(content):,} bytes were found): "
            "fetch it again"
        ) from error


def read_cells(path: Path, layout: Layout = Layout()) -> Cells:
    """Cuts a text file into cells, below the names of its columns.

    Raises:
        ValueError: If it is no text, has no rows, or lines of different lengths.
    """
    lines = _decoded(path).split("\n")
    skipped, said = _preamble(lines)
    separator = layout.separator or said or _separator(lines[skipped:])
    try:
        reader = csv.reader(lines[skipped:], delimiter=separator, skipinitialspace=True)
        found = [
            (skipped + reader.line_num, [cell.strip() for cell in cells])
            for cells in reader
            if cells
        ]
    except csv.Error as error:
        raise ValueError(f"'{path}' is no csv file: expected text ({error})") from error
    comma = separator != "," and _has_decimal_commas(found, by_default=separator == ";")
    return _below_names(path, found, layout, comma=comma)


def _has_decimal_commas(found: list[tuple[int, list[str]]], *, by_default: bool) -> bool:
    """Whether commas are decimal: one has not three digits behind, or no number has a point."""
    cells = [cell for _, row in found for cell in row if "," in cell or "." in cell]
    if any(_DECIMAL_COMMA.fullmatch(c) and not _THOUSANDS.fullmatch(c) for c in cells):
        return True
    return by_default and not any("." in c and _NUMBER.fullmatch(c) for c in cells)


def _preamble(lines: Sequence[str]) -> tuple[int, str | None]:
    """Lines to be skipped, and the separator that they declare."""
    skipped = next((i for i, line in enumerate(lines) if not line.lstrip().startswith("#")), 0)
    if re.fullmatch(r"sep=.", lines[skipped]):
        return skipped + 1, lines[skipped][4]
    return skipped, None


def _decoded(path: Path) -> str:
    content = uncompressed(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in content[:2]:  # UTF-16 without a mark at its start
        encodings = ["utf-16-le" if content[1:2] == b"\0" else "utf-16-be"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.replace("\r\n", "\n").replace("\r", "\n")
    raise ValueError(f"'{path}' is no csv file: expected text in UTF-8, UTF-16 or Windows-1252")


def _separator(lines: Sequence[str]) -> str:
    """What cuts most lines into the same number of cells, two or more; else spaces or a comma."""
    sample = [line for line in lines if line.strip()][:_SAMPLED]

    def alike(separator: str) -> int:
        reader = csv.reader(sample, delimiter=separator, skipinitialspace=True)
        (width, number), *_ = Counter(map(len, reader)).most_common(1) or [(1, 0)]
        return number if width > 1 else 0

    best = max(SEPARATORS, key=alike)
    if alike(best):
        return best
    return " " if alike(" ") == len(sample) else ","


def _below_names(
    path: Path, found: list[tuple[int, list[str]]], layout: Layout, *, comma: bool
) -> Cells:
    while found and not any(found[-1][1]):  # a spreadsheet's empty rows
        found.pop()
    lines, rows = [line for line, _ in found], [cells for _, cells in found]
    if len(rows) > 1 and len(rows[0]) > 1 and not any(row[-1] for row in rows):
        rows = [row[:-1] for row in rows]  # every line ends with a separator
    header = layout.header
    if header is None and rows:
        header = _is_header(path, rows, comma=comma)
    if header and _has_names_of_rows(rows):
        rows[0] = ["", *rows[0]]
    _check_widths(path, lines, rows, header=bool(header))
    start = int(bool(header))
    if header and len(rows) > 2 and _is_units(rows[1], rows[2:], comma=comma):
        _say(path, f"line {lines[1]} ({_shown(rows[1])}) is taken for units, and skipped: if it is "
             "a row, take the line of names away, and say header=False, --no-header")  # fmt: skip
        start = 2
    if len(rows) <= start:
        raise ValueError(f"'{path}' has no rows: expected lines of cells, separated by commas")
    names = tuple(name or str(place) for place, name in enumerate(rows[0])) if header else None
    cells = Cells(names, rows[start:], lines[start:], comma)
    return _without_index(cells) if header and rows[0][0] in UNNAMED else cells


def _has_names_of_rows(rows: list[list[str]]) -> bool:
    """Whether a first column of words, or of 1, 2, ..., goes without a name, as R writes it."""
    if len(rows[0]) < 2 or {len(row) for row in rows[1:]} != {len(rows[0]) + 1}:
        return False
    first = [row[0] for row in rows[1:]]
    words = all(number(cell, comma=False) is None for cell in first)
    return words or first == [str(i) for i in range(1, len(rows))]


def _say(path: Path, what: str) -> None:
    """Warns of what was guessed."""
    warnings.warn(f"'{path}': {what}", UserWarning, stacklevel=2)


def _shown(cells: Sequence[str]) -> str:
    return ", ".join(map(repr, cells[:_SHOWN])) + (", ..." if len(cells) > _SHOWN else "")


def _check_widths(path: Path, lines: list[int], rows: list[list[str]], *, header: bool) -> None:
    width = len(rows[0]) if rows else 0
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            why = f", as many as line {lines[0]} has names" if header else ""
            raise ValueError(
                f"'{path}': line {line} has {len(row)} cells, expected {width}{why}: mend the "
                "line, start lines above the names with #, or say what stands between cells "
                "(separator, --sep)"
            )


def _is_header(path: Path, rows: list[list[str]], *, comma: bool) -> bool:
    first, below = rows[0], rows[1:_SAMPLED]
    words = [bool(cell) and number(cell, comma=comma) is None for cell in first]
    if any(words):
        cells = [(word, [row[i] for row in below if i < len(row)]) for i, word in enumerate(words)]
        under = any(word and _mostly_numbers(cell, comma=comma) for word, cell in cells)
        return under or all(w or c.lower() in MISSING for w, c in zip(words, first, strict=True))
    if not _are_numeric_names(first, below, comma=comma):
        return False
    _say(path, f"the first line ({_shown(first)}) is taken for names of columns: if it is a row, "
         "say header=False, --no-header")  # fmt: skip
    return True


def _are_numeric_names(first: list[str], below: list[list[str]], *, comma: bool) -> bool:
    """Numbers in order, such as wavelengths, years or 0, 1, 2, ..., unlike those below.

    They are names where nearly all are further from what stands below them than that is wide, or
    where they, and no line below them, are 0, 1, 2, ..., or five or more in equal steps.
    """
    values, steps = _steps(first, comma=comma)
    if len(values) < 2 or len(below) < 2 or not ((steps > 0).all() or (steps < 0).all()):
        return False
    counting = values == list(range(len(values)))
    if counting and any(not _WHOLE.fullmatch(row[-1]) for row in below if row):
        return True
    few = 2 if counting else 4
    if len(values) > few and _are_equal(steps) and not _are_equal(_steps(below[0], comma=comma)[1]):
        return True
    far = [_is_far(name, place, below, comma=comma) for place, name in enumerate(first) if name]
    return sum(far) > 0.8 * len(values)


def _are_equal(steps: np.ndarray) -> bool:
    return len(steps) > 0 and bool(np.allclose(steps, steps[0]))


def _steps(line: list[str], *, comma: bool) -> tuple[list[float], np.ndarray]:
    """The numbers of a line without its index, and their steps; none where one is no number."""
    found = [number(cell, comma=comma) for cell in line[int(not line[0]) :]]
    values = [] if None in found else [x for x in found if x is not None]
    return values, np.diff(values)


def _is_far(name: str, place: int, below: list[list[str]], *, comma: bool) -> bool:
    """Whether a number is further from those of its column than they are from each other."""
    parsed = [number(row[place], comma=comma) for row in below if place < len(row)]
    column, value = [x for x in parsed if x is not None], number(name, comma=comma)
    if not column or value is None:
        return False
    low, high = min(column), max(column)
    return max(low - value, value - high) > high - low


def _is_units(second: list[str], below: list[list[str]], *, comma: bool) -> bool:
    """Words, or signs of no unit, above columns that are numbers; nothing, or new, above others."""
    columns = [[row[i] for row in below[:_SAMPLED]] for i in range(len(second))]
    numbers = [_mostly_numbers(column, comma=comma) for column in columns]
    above = [cell for cell, counted in zip(second, numbers, strict=True) if counted and cell]
    if not all(number(cell, comma=comma) is None or cell in _NO_UNIT for cell in above):
        return False
    others = zip(second, columns, numbers, strict=True)
    if any(cell in column for cell, column, counted in others if cell and not counted):
        return False
    odd = MISSING | _NO_UNIT | {"?", "."}
    named = [cell for cell in above if cell.lower() not in odd and not re.match("[<>=*#]", cell)]
    return 2 * len(named) > len(above) - above.count("-")


def _without_index(cells: Cells) -> Cells:
    """Without a first column that has no name, and another whole number or word in each row."""
    column = cells.column(0)
    whole = all(_WHOLE.fullmatch(x) for x in column)
    words = not any(
        number(x, comma=cells.comma) is not None or x.lower() in MISSING for x in column
    )
    if cells.names is None or len(cells.names) < 2 or len(set(column)) < len(column):
        return cells
    if not whole and not words:
        return cells
    return Cells(cells.names[1:], [row[1:] for row in cells.rows], cells.lines, cells.comma)


def _counted(cells: Sequence[str], *, comma: bool) -> tuple[int, int]:
    """How many entries are numbers, and how many are not."""
    known = [cell for cell in cells if cell.lower() not in MISSING]
    good = sum(number(cell, comma=comma) is not None for cell in known)
    return good, len(known) - good


def _mostly_numbers(cells: Sequence[str], *, comma: bool) -> bool:
    good, odd = _counted(cells, comma=comma)
    return good > odd and odd <= max(1, _ODD * (good + odd))


def number(cell: str, *, comma: bool) -> float | None:
    """The number that a cell is, or None; with a decimal comma where commas separate nothing."""
    text = _plain(cell, comma=comma)
    return float(text) if _NUMBER.fullmatch(text) else None


def _plain(cell: str, *, comma: bool, dotted: bool = False) -> str:
    """A number as Python writes it, where the cell is one.

    Arguments:
        cell: What stands there.
        comma: Whether a comma is the decimal sign, and not that of thousands.
        dotted: Whether a point is the sign of thousands.
    """
    cell = _ungrouped(cell)
    if comma and _DECIMAL_COMMA.fullmatch(cell):
        return cell.replace(".", "").replace(",", ".")
    if dotted and _DOTTED.fullmatch(cell):
        return cell.replace(".", "")
    return cell.replace(",", "") if not comma and _THOUSANDS.fullmatch(cell) else cell


def _ungrouped(cell: str) -> str:
    """Without a typographer's minus, and without spaces or apostrophes between thousands."""
    cell = cell.replace("\u2212", "-")
    return re.sub("[ \u00a0\u202f'\u2019]", "", cell) if _SPACED.fullmatch(cell) else cell


def columns_of_text(path: Path, layout: Layout = Layout()) -> dict[str, RawColumn]:
    """The columns of a text file, as :func:`columns_of_cells` has them."""
    return columns_of_cells(path, read_cells(path, layout))


def columns_of_cells(path: Path, cells: Cells) -> dict[str, RawColumn]:
    """The columns of a text, by name; "0", "1", ... where it has no names.

    Raises:
        ValueError: If two columns have one name, or a row has no entry.

    Warns:
        UserWarning: If entries of a column of numbers are none: they are missing then.
    """
    names = cells.names or tuple(str(place) for place in range(len(cells.rows[0])))
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise ValueError(f"'{path}' has more than one column of the name {twice[0]!r}: rename one")
    for line, row in zip(cells.lines, cells.rows, strict=True):
        if all(cell.lower() in MISSING for cell in row):
            raise ValueError(f"'{path}': line {line} has no entry that was observed: drop it")
    return {name: _column(path, name, cells, place) for place, name in enumerate(names)}


def _column(path: Path, name: str, cells: Cells, place: int) -> RawColumn:
    found = cells.column(place)
    plain = _numerals(found, comma=cells.comma)
    good, odd = _counted(plain, comma=False)
    if _mostly_numbers(plain, comma=False):
        values = [number(cell, comma=False) for cell in plain]
        _warn_of_odd(path, name, found, values, cells.lines)
        return _numbers(plain, values)
    if good >= odd > 0:
        where = _odd(found, [number(cell, comma=False) for cell in plain], cells.lines)
        raise ValueError(
            f"'{path}': column '{name}' holds {good} numbers and {odd} other entries "
            f"({where[0]}, ...): leave these cells empty, or write words throughout"
        )
    gone = [cell.lower() in MISSING for cell in found]
    known = {cell.lower() for cell, missing in zip(found, gone, strict=True) if not missing}
    if known and known <= {"true", "false"}:
        truth = {"true": 1.0, "false": 0.0}
        values = [truth.get(cell.lower()) for cell in found]
        dtype = "boolean" if any(gone) else "bool"
        return RawColumn(np.array(values, dtype=np.float64), Holds.BOOLEANS, dtype)
    words = np.empty(len(found), dtype=object)
    words[:] = [None if m else c for c, m in zip(found, gone, strict=True)]
    return RawColumn(words, Holds.WORDS, "object")


def _numbers(cells: Sequence[str], values: Sequence[float | None]) -> RawColumn:
    """A column of numbers: whole ones, if all of them are written so."""
    array = np.array(values, dtype=np.float64)  # None becomes nan
    known = [cell for cell, value in zip(cells, values, strict=True) if value is not None]
    if all(_WHOLE.fullmatch(cell) for cell in known):
        dtype = "Int64" if np.isnan(array).any() else "int64"
        return RawColumn(array, Holds.INTEGERS, dtype)
    return RawColumn(array, Holds.FLOATS, "float64")


def _numerals(cells: Sequence[str], *, comma: bool) -> list[str]:
    """The cells of a column with its numbers as Python writes them."""
    bare = [_ungrouped(cell) for cell in _without_units(cells)]
    points = any("." in c and _NUMBER.fullmatch(c) and not _DOTTED.fullmatch(c) for c in bare)
    commas = [c for c in bare if _DECIMAL_COMMA.fullmatch(c) and not _THOUSANDS.fullmatch(c)]
    # In quotes, between commas, too: 46,0 is no thousands.
    comma = comma or (bool(commas) and not points)
    return [_plain(cell, comma=comma, dotted=comma and not points) for cell in bare]


def _without_units(cells: Sequence[str]) -> list[str]:
    """Numbers in place of `46%`, `$46` and `46 kW`, where more than half have the same unit."""
    matches = [_WITH_UNIT.fullmatch(cell) for cell in cells]
    units = Counter((m[1], m[3]) for m in matches if m)
    known = sum(cell.lower() not in MISSING for cell in cells)
    (unit, times), *_ = units.most_common(1) or [(("", None), 0)]
    if unit == ("", None) or 2 * times <= known:
        return list(cells)
    return [
        m[2] if m and (m[1], m[3]) == unit else cell for m, cell in zip(matches, cells, strict=True)
    ]


def _warn_of_odd(
    path: Path, name: str, cells: list[str], values: list[float | None], lines: list[int]
) -> None:
    odd = _odd(cells, values, lines)
    if odd:
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        warnings.warn(
            f"'{path}': column '{name}' holds numbers, but {len(odd)} of {len(cells)} entries are "
            f"none: {', '.join(odd[:_SHOWN])}{more}. They are taken as missing: mend the cells, "
            "or drop their rows, if they are something else",
            UserWarning,
            stacklevel=2,
        )


def _odd(cells: list[str], values: Sequence[float | None], lines: list[int]) -> list[str]:
    """Entries that are no numbers, with their lines."""
    return [
        f"{cell!r} in line {line}"
        for cell, value, line in zip(cells, values, lines, strict=True)
        if value is None and cell.lower() not in MISSING
    ]
