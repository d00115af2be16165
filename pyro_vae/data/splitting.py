"""Splits the lines of a text file into cells: finds the separator and the quotation mark."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from .._warnings import warn
from ..formatting import first_few
from ..writing import without_apostrophe
from .entries import is_missing, number
from .headings import SAMPLED

Lines: TypeAlias = list[tuple[int, list[str]]]  # line numbers, each with the cells of the line
SEPARATORS = ";\t,|^"  # in order of preference: a comma may be decimal
_NO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
_AS_TEXT = re.compile(r'="([^"]*)"')  # makes a spreadsheet read digits as text
_ESCAPED = re.compile(r'(?<!\\)\\"')  # a quotation mark within quotation marks, as MySQL writes it


def say(path: Path, what: str) -> None:
    """Warns about a file, for example that its names, units or notes were guessed."""
    warn(f"in '{path}', {what}")


@contextmanager
def cells_of_any_length() -> Iterator[None]:
    """Lifts the limit of 131,072 characters that Python sets for a cell."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def separator_of(lines: Sequence[str]) -> str:
    """Chooses the separator that gives most lines the same number of cells; by default a comma."""
    filled = (line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    sample = list(islice(filled, SAMPLED))

    def alike(separator: str) -> int:
        reader = csv.reader(sample, delimiter=separator, skipinitialspace=True)
        (width, number), *_ = Counter(map(len, reader)).most_common(1) or [(1, 0)]
        return number if width > 1 else 0

    best = max(SEPARATORS, key=alike)
    every, rest = alike(" ") == len(sample), alike(" ") == len(sample) - 1
    if best == "," and every and _are_decimal(sample):
        return " "
    if len(sample) > alike(best) and (every or (rest and _names_of_r(sample))):
        return " "
    return best if alike(best) else ","


def _are_decimal(lines: Sequence[str]) -> bool:
    """Whether commas separate decimals, and spaces separate numbers, as in `1,5 2,5`.

    The result is False for `1 234,5 678`, where the comma separates the numbers.
    """
    spaced = all(map(_is_number, " ".join(lines).split()))
    return spaced and not all(_is_number(cell) for line in lines for cell in line.split(","))


def _is_number(cell: str) -> bool:
    return any(number(cell.strip(), comma=comma) is not None for comma in (True, False))


def _names_of_r(lines: Sequence[str]) -> bool:
    """Whether a first line holds names as R writes them, with one cell fewer than the next line.

    In addition, the names must be quoted, or numbers must stand below them.
    """
    names, *rows = csv.reader(lines, delimiter=" ", skipinitialspace=True)
    if not rows or not 2 <= len(names) == len(rows[0]) - 1:
        return False
    cells = (cell for row in rows for cell in row[1:])
    return lines[0].startswith('"') or all(is_missing(c) or _is_number(c) for c in cells)


def split(
    path: Path, lines: Sequence[str], skipped: int, separator: str, *, strict: bool = True
) -> Lines:
    r"""Splits lines into cells; returns the line number and the cells of each nonempty line.

    If quotation marks are misused, the lines are split again: first with `""` in place of `\"`,
    then with `strict=False`.

    Raises:
        ValueError: If a quotation mark is never closed.
    """
    found, last, joined = [], skipped, list[str]()
    ended = [line + "\n" for line in lines[skipped:]]  # quoted cells may have several lines
    reader = csv.reader(
        ended,
        delimiter=separator,
        quotechar=_quote(lines[skipped:], separator),
        skipinitialspace=True,
        strict=strict,
    )
    try:
        for cells in reader:
            start, last = last, skipped + reader.line_num
            if _look_like_rows(lines[start:last], len(cells), separator):
                joined.append(f"lines {start + 1} to {last}")
            if cells:
                found.append((last, [_bare(cell) for cell in cells]))
    except csv.Error as error:
        again = [_ESCAPED.sub('""', line) for line in lines]
        if strict and again != list(lines):
            return split(path, again, skipped, separator)
        if "end of data" in str(error):
            raise ValueError(
                f"'{path}' has a quotation mark that is never closed, in line {last + 1} or below: "
                "close or remove this mark"
            ) from error
        if strict:  # such as a space behind a closing quotation mark
            return split(path, lines, skipped, separator, strict=False)
        raise ValueError(
            f"pyro_vae cannot read '{path}' as csv ({error}, in line {last + 1} or below): correct "
            "this part of the file, or save the table as csv again"
        ) from error
    if joined:
        say(
            path,
            f"quotation marks make one row of {first_few(joined)}, although each of these lines "
            "looks like a row: if the lines are rows, remove these marks",
        )
    return found


def _look_like_rows(lines: Sequence[str], width: int, separator: str) -> bool:
    """Whether quotation marks join several lines, each of which looks like a row of its own."""
    widths = [line.count(separator) + 1 for line in lines if line.strip()]
    return len(widths) > 1 < width and set(widths) == {width}


def _bare(cell: str) -> str:
    """Returns the content of a cell without the marks that a spreadsheet puts around it."""
    cell = cell.strip().strip(_NO_WIDTH)
    text = _AS_TEXT.fullmatch(cell)
    return text[1].strip() if text else without_apostrophe(cell)


def _quote(lines: Sequence[str], separator: str) -> str:
    """Returns the quotation mark of a file, `'` or `"`.

    It is `'` if most lines quote a cell with `'`, and no line has a `"`.
    """
    sample = [line for line in lines[:SAMPLED] if line.strip()]
    ends = re.escape(separator)
    single = re.compile(rf"(^|{ends})\s*'[^']*'\s*({ends}|$)")
    quoted = sum(bool(single.search(line)) for line in sample)
    return "'" if 2 * quoted > len(sample) and not any('"' in line for line in sample) else '"'
