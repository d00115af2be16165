"""Finds lines of a text file that hold no data: notes, and summaries such as totals."""

import re
from collections.abc import Callable

from .entries import is_word, number

_SUMMARY = re.compile(
    r"(grand |sub|in )?(total|totals|sum|mean|average|avg|median|std|std\.? ?dev\.?|stdev|sd|sem|"
    r"variance|count|summe|gesamt|mittelwert|mittel|somme|moyenne|suma|media)s?( ?[(\[].*[)\]])?:?",
    re.IGNORECASE,
)
_NOTE = re.compile(
    r"\(\d+ rows?\b|[*\u2020\u2021\u00a7]+\s?\w|(source|notes?|quelle|anmerkung)\s?:", re.IGNORECASE
)
_EXTREMES = {
    "min": min, "minimum": min, "smallest": min, "lowest": min,
    "max": max, "maximum": max, "largest": max, "highest": max,
}  # fmt: skip
_FEWEST_SUMMED = 6  # lines; with fewer, the last may be the sum of the others by chance
_COMPARED = 200  # at most this many lines are compared with a sum, which must exceed each number


def is_title(cells: list[str]) -> bool:
    """Whether the first cell of a line is not a number, and all other cells are empty."""
    return is_word(cells[0]) and not any(cells[1:])


def is_note(rows: list[list[str]], *, wide: bool) -> bool:
    """Whether the last line of a table is a note, or a summary such as a total.

    A single cell of words is taken for a note, not for a row that was cut off. In a table of two
    columns (`wide=False`), the cell must also begin like a note, as in `Source: ...`.
    """
    cells, above = rows[-1], rows[:-1]
    if len(cells) == 1 and wide:
        return is_word(cells[0]) and len(cells[0]) > 1
    if not wide:
        return len(cells) == 1 and len(rows[0]) == 2 and bool(_NOTE.match(cells[0]))
    labelled = (is_title(cells) and len(cells[0]) > 1) or bool(_SUMMARY.fullmatch(cells[0]))
    extreme = _EXTREMES.get(cells[0].lower().rstrip(":"))
    labelled = labelled or (extreme is not None and _agrees(rows, extreme))
    labelled = labelled and all(row[0] != cells[0] for row in above)
    return labelled or _holds_sums(rows) or _holds_means(rows)


def headings_and_totals(rows: list[list[str]]) -> list[int]:
    """Finds the positions of lines that may be headings or totals of groups of rows.

    A heading has words in its first cell, all its other cells are empty, and no line with several
    filled cells begins with the same words. A total begins with a word such as `Subtotal`; the
    first line is a total, too, if it holds the sums of the lines below. If more than a quarter of
    the lines look like headings or totals, they are taken for rows, and the list is empty.
    """
    others = {row[0] for row in rows if not is_title(row)}
    wide = bool(rows) and len(rows[0]) > 2  # of two cells, the second may just be missing
    found = [
        place
        for place, row in enumerate(rows)
        if _SUMMARY.fullmatch(row[0])
        or (wide and is_title(row) and any(row) and row[0] not in others)
    ]
    if 0 not in found and _holds_sums([*rows[1:], *rows[:1]]):
        found = [0, *found]
    return found if 4 * len(found) <= len(rows) else []


def _agrees(rows: list[list[str]], summary: Callable[[list[float]], float]) -> bool:
    """Whether each number in the last line is the `summary` (such as the sum) of its column."""
    cells = rows[-1]
    above = [row for row in rows[:-1] if not _SUMMARY.fullmatch(row[0])]
    above = [row for row in above if row[0].lower().rstrip(":") not in _EXTREMES]
    places = [place for place in range(len(cells)) if _value(cells, place) is not None]
    return bool(places) and all(
        _equals(cells[place], [_value(row, place) for row in above], summary) for place in places
    )


def _equals(cell: str, above: list[float | None], summary: Callable[[list[float]], float]) -> bool:
    """Whether a cell equals the `summary` of the numbers above it, up to rounding."""
    known, value = [x for x in above if x is not None], number(cell, comma="," in cell)
    if not known or value is None:
        return False
    decimals = len(re.split("[.,]", cell)[-1]) if re.search("[.,]", cell) else 0
    terms = len(known) if summary is sum else 1  # each term of a sum may have been rounded
    return abs(summary(known) - value) <= terms * 0.51 * 10.0**-decimals


def _holds_sums(rows: list[list[str]]) -> bool:
    """Whether the last line holds two or more sums, each larger than all numbers above it."""
    cells = rows[-1]
    values = {place: x for place in range(len(cells)) if (x := _value(cells, place)) is not None}
    if len(values) < 2 or len(rows) < _FEWEST_SUMMED:
        return False
    sample = [[_value(row, place) or 0.0 for place in values] for row in rows[:-1][:_COMPARED]]
    tops = [max(map(abs, column)) for column in zip(*sample, strict=True)]
    beyond = all(abs(x) > top for x, top in zip(values.values(), tops, strict=True))
    return beyond and _agrees(rows, sum)


def _holds_means(rows: list[list[str]]) -> bool:
    """Whether the last line holds the means of two or more columns, and has no words.

    In addition, at least one column without a mean must hold a word in every row above. Otherwise a
    row of plain data could agree with the means by chance.
    """
    cells, above = rows[-1], rows[:-1]
    places = [place for place, cell in enumerate(cells) if cell]
    if len(places) < 2 or len(rows) < _FEWEST_SUMMED or None in [_value(cells, p) for p in places]:
        return False
    words_above = any(
        all(place < len(row) and row[place] and _value(row, place) is None for row in above)
        for place, cell in enumerate(cells)
        if not cell
    )
    return words_above and _agrees(rows, lambda known: sum(known) / len(known))


def _value(row: list[str], place: int) -> float | None:
    """Returns the number at a position of a line, or None if there is no number."""
    return number(row[place], comma="," in row[place]) if place < len(row) else None
