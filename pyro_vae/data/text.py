r"""Tables out of text files, as people and their instruments write them.

The text is decoded (UTF-8, UTF-16, else Windows-1252; compressed by gzip or not), cut into cells at
the separator that cuts most lines alike (`;`, tab, `,`, `|`), and its first lines are told apart:

| what stands there | what is made of it |
| --- | --- |
| `# ...`, `sep=;` | skipped |
| a first line with a word above numbers, or with words alone | names of the columns |
| whole numbers that rise from left to right, outside the ranges below them | names of the columns |
| a second line of words above numbers | units, skipped |
| a first column without a name that counts the lines | an index, skipped |

A column is numbers if nine in ten of its entries are, or all but one: `1.5`, `1,5`, `1,234`, `46%`,
`$46`, `46 kW` (each unit throughout). The few that are not, such as `<47` or `?`, are missing, with
a warning that names their lines. A column of `true` and `false` is booleans; one with fewer numbers
than other entries is words; anything between is refused.
"""

import csv
import gzip
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from .frames import Holds, RawColumn

GZIP_MAGIC = b"\x1f\x8b"
MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "nat"}
SEPARATORS = ";\t,|"  # the first of equals: a comma may be a decimal one
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_WITH_UNIT = re.compile(r"([$€£]?)\s*([+-]?[\d.,]+(?:[eE][+-]?\d+)?)\s*(%|[°µA-Za-z][\w°µ/^*-]*)?")
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
    return _below_names(path, found, layout, comma=separator != ",")


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
    """What cuts most lines into the same number of cells, two or more; else a comma."""
    sample = [line for line in lines if line.strip()][:_SAMPLED]

    def alike(separator: str) -> int:
        reader = csv.reader(sample, delimiter=separator, skipinitialspace=True)
        (width, number), *_ = Counter(map(len, reader)).most_common(1) or [(1, 0)]
        return number if width > 1 else 0

    best = max(SEPARATORS, key=alike)
    return best if alike(best) else ","


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
        header = _is_header(rows, comma=comma)
    start = int(bool(header))
    if header and len(rows) > 2 and _is_units(rows[1], rows[2:], comma=comma):
        start = 2
    if len(rows) <= start:
        raise ValueError(f"'{path}' has no rows: expected lines of cells, separated by commas")
    _check_widths(path, lines, rows, header=bool(header))
    names = tuple(rows[0]) if header else None
    return _without_index(Cells(names, rows[start:], lines[start:], comma))


def _check_widths(path: Path, lines: list[int], rows: list[list[str]], *, header: bool) -> None:
    width = len(rows[0])
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            why = f", as many as line {lines[0]} has names" if header else ""
            raise ValueError(
                f"'{path}': line {line} has {len(row)} cells, expected {width}{why}: mend the "
                "line, or say what stands between cells (separator, --sep)"
            )


def _is_header(rows: list[list[str]], *, comma: bool) -> bool:
    first, below = rows[0], rows[1:_SAMPLED]
    words = [bool(cell) and number(cell, comma=comma) is None for cell in first]
    if any(words):
        cells = [(word, [row[i] for row in below if i < len(row)]) for i, word in enumerate(words)]
        under = any(word and _mostly_numbers(cell, comma=comma) for word, cell in cells)
        return under or all(w or c.lower() in MISSING for w, c in zip(words, first, strict=True))
    return _are_numeric_names(first, below, comma=comma)


def _are_numeric_names(first: list[str], below: list[list[str]], *, comma: bool) -> bool:
    """Whole numbers that rise, such as wavelengths, years or 0, 1, 2, ..., unlike those below."""
    names = [name for name in first if name]
    if len(names) < 2 or not all(_WHOLE.fullmatch(name) for name in names) or len(below) < 2:
        return False
    values = [int(name) for name in names]
    if any(b <= a for a, b in pairwise(values)):
        return False
    if values == list(range(len(values))) and any(
        not _WHOLE.fullmatch(row[-1]) for row in below if row
    ):
        return True
    outside = 0
    for place in range(len(first)):
        parsed = [number(row[place], comma=comma) for row in below if place < len(row)]
        column = [x for x in parsed if x is not None]
        if first[place] and column and not min(column) <= float(first[place]) <= max(column):
            outside += 1
    return outside > 0.8 * len(names)


def _is_units(second: list[str], below: list[list[str]], *, comma: bool) -> bool:
    """Words, or nothing, above columns that are numbers."""
    words = [bool(cell) and number(cell, comma=comma) is None for cell in second]
    if not any(words) or any(cell and not word for cell, word in zip(second, words, strict=True)):
        return False
    columns = [[row[i] for row in below[:_SAMPLED]] for i, word in enumerate(words) if word]
    return all(_mostly_numbers(column, comma=comma) for column in columns) and not any(
        cell.lower() in MISSING | {"?", "-", "."} for cell in second if cell
    )


def _without_index(cells: Cells) -> Cells:
    """Without a first column that counts the rows, and has no name."""
    if cells.names is None or len(cells.names) < 2 or cells.names[0] not in ("", "Unnamed: 0"):
        return cells
    counted = [int(x) if _WHOLE.fullmatch(x) else None for x in cells.column(0)]
    if counted[0] not in (0, 1) or counted != list(range(counted[0], counted[0] + len(counted))):
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
    if _NUMBER.fullmatch(cell):
        return float(cell)
    if comma and _DECIMAL_COMMA.fullmatch(cell):
        return float(cell.replace(".", "").replace(",", "."))
    if _THOUSANDS.fullmatch(cell):
        return float(cell.replace(",", ""))
    return None


def columns_of_text(path: Path, layout: Layout = Layout()) -> dict[str, RawColumn]:
    """The columns of a text file, by name; "0", "1", ... where it has no names.

    Raises:
        ValueError: If two columns have one name, or a row has no entry.

    Warns:
        UserWarning: If entries of a column of numbers are none: they are missing then.
    """
    cells = read_cells(path, layout)
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
    plain, comma = _without_units(found), cells.comma or _writes_decimal_commas(found)
    if _mostly_numbers(plain, comma=comma):
        values = [number(cell, comma=comma) for cell in plain]
        _warn_of_odd(path, name, found, values, cells.lines)
        return _numbers(plain, values)
    good, odd = _counted(plain, comma=comma)
    if good >= odd > 0:
        where = _odd(found, [number(cell, comma=comma) for cell in plain], cells.lines)
        raise ValueError(
            f"'{path}': column '{name}' holds {good} numbers and {odd} other entries "
            f"({where[0]}, ...): leave these cells empty, or write words throughout"
        )
    gone = [cell.lower() in MISSING for cell in plain]
    known = {cell.lower() for cell, missing in zip(plain, gone, strict=True) if not missing}
    if known and known <= {"true", "false"}:
        truth = {"true": 1.0, "false": 0.0}
        values = [truth.get(cell.lower()) for cell in plain]
        dtype = "boolean" if any(gone) else "bool"
        return RawColumn(np.array(values, dtype=np.float64), Holds.BOOLEANS, dtype)
    words = np.empty(len(plain), dtype=object)
    words[:] = [None if m else c for c, m in zip(found, gone, strict=True)]
    return RawColumn(words, Holds.WORDS, "object")


def _numbers(cells: Sequence[str], values: Sequence[float | None]) -> RawColumn:
    """A column of numbers: whole ones, if all of them are written so."""
    array = np.array(values, dtype=np.float64)  # None becomes nan
    known = [cell for cell, value in zip(cells, values, strict=True) if value is not None]
    if all(_WHOLE.fullmatch(cell) or _THOUSANDS.fullmatch(cell) for cell in known):
        dtype = "Int64" if np.isnan(array).any() else "int64"
        return RawColumn(array, Holds.INTEGERS, dtype)
    return RawColumn(array, Holds.FLOATS, "float64")


def _writes_decimal_commas(cells: Sequence[str]) -> bool:
    """Whether a column in quotes has commas that no thousands have: `46,0`, `1,25`."""
    known = [cell for cell in cells if cell.lower() not in MISSING]
    commas = [cell for cell in known if _DECIMAL_COMMA.fullmatch(cell)]
    return any(not _THOUSANDS.fullmatch(cell) for cell in commas) and not any(
        "." in cell for cell in known
    )


def _without_units(cells: Sequence[str]) -> list[str]:
    """Numbers in place of `46%`, `$46` and `46 kW`, where nine in ten have the same unit."""
    matches = [_WITH_UNIT.fullmatch(cell) for cell in cells]
    units = Counter((m[1], m[3]) for m in matches if m)
    known = sum(cell.lower() not in MISSING for cell in cells)
    (unit, times), *_ = units.most_common(1) or [(("", None), 0)]
    if unit == ("", None) or times < (1 - _ODD) * known:
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
