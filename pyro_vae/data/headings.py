"""Recognizes lines of column names or units in a text file, and a column of row names."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .entries import MISSING, WHOLE, mostly_numbers, number, without_unit

SAMPLED = 200  # lines looked at to find the separator and the header
_NO_UNIT = {"-", "1", "text"}  # in place of a unit; "1" is the CF conventions' sign for none


def column_of(rows: list[list[str]], place: int) -> list[str]:
    """Returns the cell at a position of each row that is long enough."""
    return [row[place] for row in rows if place < len(row)]


def are_names(rows: list[list[str]]) -> bool:
    """Whether the first line's cells all differ, and numbers stand below at least one of them."""
    names, below = rows[0], rows[1:SAMPLED]
    columns = [column_of(below, place) for place in range(len(names))]
    above = any(mostly_numbers(column, comma=True) for column in columns)
    return above and len(set(names)) == len(names)


def are_apart(first: list[str], below: list[list[str]], *, comma: bool) -> bool:
    """Whether a first line that contains numbers is nevertheless a header.

    The line is a header if it differs from the lines below in one of four ways: its numbers can be
    names of columns (:func:`are_numeric_names`); a number stands above a column of words; a word
    stands above a column in which every word occurs at least twice; or an empty cell stands above a
    column that numbers the rows.
    """

    def is_word(cell: str) -> bool:
        return number(cell, comma=comma) is None

    columns = [column_of(below, place) for place in range(len(first))]
    for cell, column in zip(first, columns, strict=True):
        known = [entry for entry in column if entry.lower() not in MISSING]
        if cell and len(known) > 1 and all(map(is_word, known)):
            again = min(Counter(known).values()) > 1
            if again or not is_word(cell):
                return True
    if not first[0] and len(first) > 1 and len(below) > 1 and _counts_rows(columns[0]):
        return True
    numbers = [place for place, cell in enumerate(first) if cell and not is_word(cell)]
    names = [first[place] for place in numbers]
    rows = [[row[place] for place in numbers if place < len(row)] for row in below]
    if names == ["0"] and any(cell and is_word(cell) for cell in first):
        # pandas writes this name beside words; in other files a 0 above whole numbers is a value.
        return not all(WHOLE.fullmatch(row[0]) for row in rows if row)
    return are_numeric_names(names, rows, comma=comma)


def _counts_rows(cells: list[str]) -> bool:
    """Whether cells are 0, 1, 2, ... or 1, 2, 3, ..."""
    start = cells[0]
    return start in ("0", "1") and cells == [str(int(start) + i) for i in range(len(cells))]


def has_names_of_rows(rows: list[list[str]]) -> bool:
    """Whether an unnamed first column names the rows, by words or by counting from 0 or 1.

    The line of column names then has one cell fewer than each row. The words must all differ,
    because repeated words may be parts of cells that contain the separator.
    """
    if len(rows[0]) < 2 or {len(row) for row in rows[1:]} != {len(rows[0]) + 1}:
        return False
    first = [row[0] for row in rows[1:]]
    words = all(number(cell, comma=False) is None for cell in first)
    return (words and len(set(first)) == len(first)) or _counts_rows(first)


def are_numeric_names(first: list[str], below: list[list[str]], *, comma: bool) -> bool:
    """Whether a first line of numbers holds names, such as wavelengths, years or 0, 1, 2, ...

    From left to right the numbers must all rise, or all fall. They are names in three cases:

    * The first line counts 0, 1, 2, ... and the last column holds an entry that is not whole.
    * The first line has five or more evenly spaced numbers (three or more if they are 0, 1, 2,
      ...), and the numbers of the next line are not evenly spaced.
    * Nearly all numbers are far outside the range of the values below them.
    """
    values, steps = _steps(first, comma=comma)
    if len(values) < 2 or len(below) < 2 or not ((steps > 0).all() or (steps < 0).all()):
        return False
    counting = values == list(range(len(values)))
    if counting and any(not WHOLE.fullmatch(row[-1]) for row in below if row):
        return True
    few = 2 if counting else 4
    if len(values) > few and _are_equal(steps) and not _are_equal(_steps(below[0], comma=comma)[1]):
        return True
    far = [_is_far(name, place, below, comma=comma) for place, name in enumerate(first) if name]
    return sum(far) > 0.8 * len(values)


def _are_equal(steps: np.ndarray) -> bool:
    """Whether there is at least one step, and all steps are equal up to rounding."""
    return len(steps) > 0 and bool(np.allclose(steps, steps[0]))


def _steps(line: list[str], *, comma: bool) -> tuple[list[float], np.ndarray]:
    """Returns the numbers in a line, and the differences between neighbours.

    Both are empty if the line has a word. An empty first cell is left out.
    """
    found = [number(cell, comma=comma) for cell in line[int(not line[0]) :]]
    values = [] if None in found else [x for x in found if x is not None]
    return values, np.diff(values)


def _is_far(name: str, place: int, below: list[list[str]], *, comma: bool) -> bool:
    """Whether a numeric name is far from the values below it.

    It is far if its distance from the range of the values exceeds the width of this range.
    """
    parsed = [number(cell, comma=comma) for cell in column_of(below, place)]
    column, value = [x for x in parsed if x is not None], number(name, comma=comma)
    if not column or value is None:
        return False
    low, high = min(column), max(column)
    return max(low - value, value - high) > high - low


def is_units(second: list[str], below: list[list[str]], *, comma: bool) -> bool:
    """Whether a line holds units: it has words above numbers, and no word occurs again below."""
    columns = [[row[i] for row in below[:SAMPLED]] for i in range(len(second))]
    numbers = [_are_numbers(column, comma=comma) for column in columns]
    above = [cell for cell, counted in zip(second, numbers, strict=True) if counted and cell]
    if any(_is_number(cell, comma=comma) and cell not in _NO_UNIT for cell in above):
        return False
    others = zip(second, columns, numbers, strict=True)
    if any(cell in column for cell, column, counted in others if cell and not counted):
        return False
    odd = MISSING | _NO_UNIT | {"?", "."}
    named = [cell for cell in above if cell.lower() not in odd and not re.match("[<>=*#]", cell)]
    return 2 * len(named) > len(above) - above.count("-")


def _is_number(cell: str, *, comma: bool) -> bool:
    """Whether a cell is a number, perhaps with a unit such as `%`."""
    return number(without_unit(cell), comma=comma) is not None


def _are_numbers(cells: Sequence[str], *, comma: bool) -> bool:
    """Whether most cells are numbers, perhaps with a unit such as `%`."""
    return mostly_numbers([without_unit(cell) for cell in cells], comma=comma)


def are_second_parts(
    names: Sequence[str], second: list[str], below: list[list[str]], *, comma: bool
) -> bool:
    """Whether a line continues the names above it, as in the exports of surveys.

    Such a line holds no numbers and no answers. A word is an answer if it occurs again further down
    its column, unless the column holds no other entry, as for a box to tick. In addition, one of
    these conditions must hold:

    * There are numbers below the line, and some of its words stand under empty names, or it has a
      word at least twice that the names lack, such as `Response`.
    * There are no numbers below the line, and it has a word at least three times that the names
      lack.
    """
    columns = [[row[i] for row in below[:SAMPLED] if row[i]] for i in range(len(second))]
    filled = [
        (cell, name, column)
        for cell, name, column in zip(second, names, columns, strict=True)
        if cell.lower() not in MISSING
    ]
    if any(
        _is_number(cell, comma=comma) or (cell in column and len(set(column)) > 1)
        for cell, _, column in filled
    ):
        return False
    new = Counter(cell for cell, _, column in filled if cell not in column)
    times = max(new.values(), default=0)
    unnamed = any(not name for _, name, _ in filled[int(not names[0]) :])
    numbers = any(column and _are_numbers(column, comma=comma) for column in columns)
    return (numbers and (unnamed or times > 1)) or times > 2


def names_of_two_lines(names: Sequence[str], parts: Sequence[str]) -> list[str] | None:
    """Joins two lines of names, if some names in the first line are repeated or empty.

    An empty name, as in merged cells, stands for the name to its left, unless the cell below it is
    empty, too. The result is None in two cases: the first line needs no second part, because all
    its names differ and none is empty, except perhaps the first; or some joined names would be
    equal.
    """
    groups = [names[0]]
    for name, part in zip(names[1:], parts[1:], strict=True):
        groups.append(name or (groups[-1] if part else ""))
    if len(set(names)) == len(names) and all(names[1:]):
        return None
    joined = [f"{a} {b}".strip() for a, b in zip(groups, parts, strict=True)]
    filled = [name for name in joined if name]
    return joined if len(set(filled)) == len(filled) else None
