r"""Reads tables from text files as people and instruments write them.

The file is decompressed if it is gzipped, and decoded (UTF-8, UTF-16, else Windows-1252). Lines are
split into cells at the separator with which most lines have the same number of cells (`;`, tab,
`,`, `|`, `^`, else spaces). Then lines and columns are classified:

| content | treated as |
| --- | --- |
| `# ...`, `sep=;` | skipped; names after a `#` are used if there is one per column |
| lines at the top that have fewer or more cells than most lines have | notes, skipped |
| a single cell of words at the bottom | a note, skipped |
| a line of dashes, such as `---+---` | skipped |
| last lines that begin with a word such as `Total`, or hold sums or means | a summary, skipped |
| column names that occur again further down, as in joined files | skipped |
| columns without a name and without entries | left out |
| a first line with a word above numbers, or with words only | column names |
| a first line of rising or falling numbers, evenly spaced or far from those below | column names |
| one or two lines of words between the names and the numbers | units, skipped |
| such a line, if a name above it is repeated or empty (merged cells) | second parts of names |
| `Response`, several times, below the questions of a survey | skipped |
| a first column without a name, whose entries all differ | an index, skipped |
| an apostrophe before a word that begins with `=`, `+`, `-` or `@` | removed |
| `="007"` | `007` |
| zero-width spaces | removed |

Whether a line holds notes, units or numeric names is guessed; a warning lists such lines, and says
how to overrule the guess. Warnings also point out headings, totals and repeated names between the
rows, `none` among words, numbers such as `1.200` that may mean 1200, and letters that may be in
another encoding. :mod:`pyro_vae.data.entries` determines the type of each column.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

from .._warnings import once_for_all_columns, warn_of_column
from ..formatting import count_of, first_few
from .decoding import decoded
from .entries import (
    MISSING,
    WHOLE,
    Source,
    answers,
    entries_of,
    first_code,
    has_decimal_commas,
    has_decimal_points,
    is_missing,
    is_word,
    mostly_numbers,
    number,
    place_of_ambiguous,
    without_unit,
    words_of,
)
from .headings import (
    SAMPLED,
    are_apart,
    are_names,
    are_second_parts,
    column_of,
    has_names_of_rows,
    is_units,
    names_of_two_lines,
)
from .raw_columns import Holds, RawColumn
from .remedies import of_kind
from .splitting import Lines, cells_of_any_length, say, separator_of, split
from .summaries import headings_and_totals, is_note, is_title
from .times import are_times

UNNAMED = ("", "Unnamed: 0")  # names of an index column: in spreadsheets and R, and in pandas
_NO_TABLE = {
    what: re.compile(rf"\s*{start}", re.IGNORECASE)
    for what, start in {
        "HTML, XML or JSON": r"(<(!doctype|html|\?xml)|\{\s*\"|\[\s*[\[{\"])",
        "SQL": r"((--|/\*).*\n\s*)*(create|insert|drop|set|begin|use)\s[^,;]*[(;]",
        "an ARFF table": r"(%.*\n\s*)*@relation\s",
        "LaTeX": r"(%.*\n\s*)*\\(documentclass|begin)\b",
        "a PDF or RTF document": r"(%PDF-|\{\\rtf)",
    }.items()
}
_RULE = re.compile(r"[ \t|+]*[-=:]{3,}[-=:|+ \t]*")  # a line of dashes, such as ---+---
_PUNCTUATED = re.compile(r"[\w.]\s*[~:;|&/#!@]+\s*[\w.]|\S {2,}\S")


@dataclass(frozen=True)
class Layout:
    """How a text file is split into a table; arguments left as None are detected from the file.

    For files of other formats, only the marks of missing entries are used.

    Arguments:
        separator: The separator between cells, a single character.
        header: Whether the first line has column names.
        words: Names of columns whose entries are kept as strings, even if they look like numbers,
            such as `007`. In these columns the word `none` is not taken to be missing.
        missing: Marks of missing entries, besides an empty cell and the usual `NA`, such as
            `("-999", "n.d.")`. A mark that is a number also matches other spellings of this number,
            such as `-999.0`. A mark that is for one column follows the column's name, as in
            `age=99`.
    """

    separator: str | None = None
    header: bool | None = None
    words: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.separator is not None and not re.fullmatch(r'[^"\r\n]', self.separator):
            raise ValueError(
                "`separator` must be one character, other than a quotation mark or the end of a "
                f"line; got {self.separator!r}: pass a character such as ';', or leave out "
                "`separator` to detect it"
            )

    def emptied(self, name: str, cells: list[str]) -> list[str]:
        """Returns the cells of a column with "" in place of marks of missing entries."""
        marked = self.are_marks(name, cells)
        return ["" if gone else cell for gone, cell in zip(marked, cells, strict=True)]

    def are_marks(self, name: str, entries: Iterable[object]) -> list[bool]:
        """Tells which entries of a column are marks of missing entries."""
        marks, values = self._marks_of(name), self.numbers_of(name)
        return [
            entry in marks or (bool(values) and number(entry, comma=False) in values)
            if isinstance(entry, str)
            else isinstance(entry, Real) and float(entry) in values
            for entry in entries
        ]

    def numbers_of(self, name: str) -> list[float]:
        """Returns the numbers among the marks of missing entries in a column."""
        found = (number(mark, comma=False) for mark in self._marks_of(name))
        return [value for value in found if value is not None]

    def _marks_of(self, name: str) -> set[str]:
        """Returns the marks of missing entries in a column, without the column's name in front."""
        return {mark.removeprefix(f"{name}=") for mark in self.missing}


@dataclass(frozen=True)
class Cells:
    """The cells of a text file, row by row.

    Arguments:
        names: Names of the columns, or None.
        rows: Cells, without spaces around them; every row has the same number of cells.
        lines: The line number of each row in the file, counted from 1.
        comma: Whether a comma is the decimal separator.
        points: Whether some numbers have a decimal point, even if others have a decimal comma.
    """

    names: tuple[str, ...] | None
    rows: list[list[str]]
    lines: list[int]
    comma: bool
    points: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the columns; "0", "1", ... if the file has none."""
        return self.names or tuple(str(place) for place in range(len(self.rows[0])))

    def column(self, place: int) -> list[str]:
        """Returns the cells of the column at a position."""
        return [row[place] for row in self.rows]


def read_cells(path: Path, layout: Layout = Layout()) -> Cells:
    """Splits a text file into names of columns and cells.

    Raises:
        ValueError: If the file is not text, has no rows, or has lines of different lengths.
    """
    text = decoded(path)
    for what, pattern in _NO_TABLE.items():
        if pattern.match(text):
            raise ValueError(
                f"'{path}' holds {what}, not lines of cells: export the table as csv, or read it "
                "with pandas or another package, and pass the data frame"
            )
    lines = _without_rules(text.split("\n"))
    skipped, declared = _preamble(lines)
    with cells_of_any_length():
        separator = layout.separator or declared or separator_of(lines[skipped:])
        found = split(path, lines, skipped, separator)
    found = _between_notes(path, found)
    found = _names_in_comment(lines[:skipped], separator, found, layout) + found
    marked = [
        (line, without_unit(cell))
        for line, row in found
        for cell in row
        if "," in cell or "." in cell
    ]
    numbers = [cell for _, cell in marked]
    comma = separator != "," and has_decimal_commas(numbers, by_default=separator == ";")
    if separator != ",":
        mark = "." if separator == ";" and not comma else ","
        _warn_of_ambiguous(path, marked, mark, comma=comma)
    return _names_and_rows(path, found, layout, comma=comma, points=has_decimal_points(numbers))


def _without_rules(lines: list[str]) -> list[str]:
    """Replaces lines of dashes by empty lines.

    In the middle of a file of one column, `---` is a mark of missing entries, and is kept.
    """
    filled = [line.strip() for line in lines if line.strip()]
    if "---" in filled[2:-1] and not any(re.search("[,;\t|]", line) for line in filled):
        return lines
    return ["" if _RULE.fullmatch(line) else line for line in lines]


def _warn_of_ambiguous(path: Path, cells: list[tuple[int, str]], mark: str, *, comma: bool) -> None:
    """Warns about numbers such as `1.200`, whose point or comma may mark decimals or thousands.

    Arguments:
        path: The file.
        cells: Cells with a point or a comma, each with its line number.
        mark: The point or comma that may be ambiguous.
        comma: Whether commas are read as decimal separators.
    """
    place = place_of_ambiguous([cell for _, cell in cells], mark)
    if place is not None:
        line, cell = cells[place]
        value = number(cell, comma=comma)
        decimal = comma or mark == "."
        say(
            path,
            f"the '{mark}' in numbers such as {cell!r} in line {line} is taken to separate "
            f"{'decimals' if decimal else 'thousands'}, so {cell!r} is read as {value:g}: if that "
            f"is wrong, write these numbers without '{mark}'"
            f"{'' if decimal else ' or with a decimal point'}",
        )


def _between_notes(path: Path, found: Lines) -> Lines:
    """Returns the lines between the notes above and below the table; a warning lists the notes."""
    found = list(found)
    while found and not any(found[-1][1]):  # a spreadsheet's empty rows
        found.pop()
    while found and not any(found[0][1]):
        found.pop(0)
    if not found:
        return found
    width, _ = Counter(len(cells) for _, cells in found).most_common(1)[0]
    comments = [line for line in found if len(line[1]) != width and line[1][0].startswith("#")]
    found = [line for line in found if line not in comments] if comments else found
    head = next(
        place
        for place, (_, cells) in enumerate(found)
        if len(cells) == width and not (width > 2 and is_title(cells))
    )
    if head == 1 and 2 <= len(found[0][1]) == width - 1:  # names of all columns but an index
        head = 0
    if not are_names([cells for _, cells in found[head:]]) and any(
        len(cells) > width for _, cells in found[:head]
    ):
        head = 0
    if not all(map(is_word, found[head][1])):
        head = 0
    foot = len(found)
    while foot > head + 1 and is_note([cells for _, cells in found[:foot]], wide=width > 2):
        foot -= 1
    notes = found[:head] + found[foot:] + comments
    if notes:
        say(
            path,
            "these lines are taken for notes above or below the table, and skipped: "
            f"{_lines(notes)}. If one of them is a row of data, correct this line of the file",
        )
    return found[head:foot]


def _names_in_comment(comments: list[str], separator: str, found: Lines, layout: Layout) -> Lines:
    """Finds names in the last comment above a table, if the comment has one word per column."""
    if layout.header is False or not comments or not comments[-1].lstrip().startswith("#"):
        return []
    bare = comments[-1].lstrip().lstrip("#").lstrip(" ").rstrip()
    cells = [cell.strip() for cell in next(csv.reader([bare], delimiter=separator), [])]
    rows = [row for _, row in found]
    widths = {len(row) for row in rows}
    if cells and not cells[0]:  # as in #,name,size, whose first name is #
        cells = cells[1:] if widths == {len(cells) - 1} else ["#", *cells[1:]]
    words = all(cell and is_word(cell) for cell in cells)
    fits = len(cells) > 1 and widths == {len(cells)}
    if layout.header and cells[:1] != ["#"]:  # the user says that the line below holds the names
        return []
    if not (words and fits) or all(cell and is_word(cell) for cell in rows[0]):
        return []
    return [(len(comments), cells)]


def _preamble(lines: Sequence[str]) -> tuple[int, str | None]:
    """Returns the number of lines to skip at the top, and the separator in a line like `sep=;`."""
    skipped = next((i for i, line in enumerate(lines) if not line.lstrip().startswith("#")), 0)
    if re.fullmatch(r"sep=.", lines[skipped]):
        return skipped + 1, lines[skipped][4]
    return skipped, None


def _names_and_rows(
    path: Path, found: Lines, layout: Layout, *, comma: bool, points: bool
) -> Cells:
    """Separates the lines of a table into the names of the columns and the rows."""
    lines, rows = [line for line, _ in found], [cells for _, cells in found]
    rows = _without_empty_columns(_without_empty_ends(rows))
    header = layout.header
    if header is None and rows:
        header = _is_header(path, rows, comma=comma)
    if header and has_names_of_rows(rows):
        rows[0] = ["", *rows[0]]
    _check_widths(path, lines, rows, header=bool(header))
    start = int(bool(header))
    if header:
        lines, rows = _without_repeated_names(path, lines, rows)
        start = _below_units(path, lines, rows, comma=comma)
    if len(rows) <= start:
        raise ValueError(
            f"'{path}' has no rows of data: pass a file with at least one line of cells, separated "
            "by commas"
        )
    names = tuple(name or str(place) for place, name in enumerate(rows[0])) if header else None
    is_unnamed = bool(header) and rows[0][0] in UNNAMED
    lines, rows = lines[start:], rows[start:]
    _warn_of_odd_rows(path, lines, rows)
    cells = _emptied(path, Cells(names, rows, lines, comma, points), layout)
    return _without_index(cells) if is_unnamed else cells


def _emptied(path: Path, cells: Cells, layout: Layout) -> Cells:
    """Empties the cells that hold marks of missing entries; warns if a mark's column is unknown."""
    if not layout.missing:
        return cells
    for mark in layout.missing:
        name = mark.rpartition("=")[0]
        if name and name not in cells.labels and not any(mark in row for row in cells.rows):
            say(
                path,
                f"the mark {mark!r} of missing entries names the column {name!r}, but the columns "
                f"are {first_few(map(repr, cells.labels))}: correct the name",
            )
    columns = [layout.emptied(name, cells.column(place)) for place, name in enumerate(cells.labels)]
    return replace(cells, rows=[list(row) for row in zip(*columns, strict=True)])


def _below_units(path: Path, lines: list[int], rows: list[list[str]], *, comma: bool) -> int:
    """Returns the position of the first row of data, after the names and up to two lines of words.

    A line of words holds units, which are skipped, or second parts of names, which are joined to
    the names in `rows[0]`. The files of data loggers have two lines of words: one with units, and
    one that says how each column was averaged. Below the questions of a survey there may be a line
    of `Response`.
    """
    start = 1
    while (
        start <= 2
        and len(rows) > start + 1
        and (
            is_units(rows[start], rows[start + 1 :], comma=comma)
            or are_second_parts(rows[0], rows[start], rows[start + 1 :], comma=comma)
        )
    ):
        what = f"line {lines[start]} ({first_few(map(repr, rows[start]))})"
        if joined := names_of_two_lines(rows[0], rows[start]):
            rows[0] = joined
            say(
                path,
                f"{what} is taken for the second part of the names "
                f"({first_few(map(repr, joined))}): if that is wrong, give each column a "
                "name of its own in one line",
            )
        else:
            say(
                path,
                f"{what} is taken for units or notes, and skipped: if the line is a row, delete "
                "the names above it, and pass layout=Layout(header=False) (command line: "
                "--no-header) to read every line as a row",
            )
        start += 1
    return start


def _warn_of_odd_rows(path: Path, lines: list[int], rows: list[list[str]]) -> None:
    """Warns about rows that may be headings or totals, and about rows that may lack a separator."""
    if between := headings_and_totals(rows):
        odd = [(lines[place], rows[place]) for place in between]
        say(
            path,
            "these lines look like headings or totals, but are read as rows: "
            f"{_lines(odd)}. If they are headings or totals, delete them",
        )
    if len(rows[0]) == 1 and all(_PUNCTUATED.search(row[0]) for row in rows):
        say(
            path,
            f"no separator was found, so every line has one cell, such as {rows[0][0]!r}. If "
            "lines have several cells, pass the character between them as "
            "layout=Layout(separator=...) (command line: --sep ...). If there are several "
            "characters between cells, replace them in the file by one",
        )


def _without_empty_ends(rows: list[list[str]]) -> list[list[str]]:
    """Drops empty cells at the end of a line if they alone make it longer than other lines."""
    width = len(rows[0]) if rows else 0
    longest = max(map(len, rows[1:]), default=width)
    if longest < width and not any(rows[0][longest:]):
        return [rows[0][:longest], *rows[1:]]
    if {len(row) > width for row in rows[1:]} != {True, False}:
        return rows
    return [row if any(row[width:]) else row[:width] for row in rows]


def _without_empty_columns(rows: list[list[str]]) -> list[list[str]]:
    """Leaves out columns with no name and no entries, such as those after a trailing separator."""
    widths = Counter(map(len, rows))
    if len(rows) > 1 and widths == {len(rows[0]): 1, len(rows[0]) + 1: len(rows) - 1}:
        rows = [[*rows[0], ""], *rows[1:]] if not any(row[-1] for row in rows[1:]) else rows
    if len(rows) < 2 or len(set(map(len, rows))) > 1:
        return rows
    used = [place for place in range(len(rows[0])) if any(row[place] for row in rows)]
    return rows if len(used) == len(rows[0]) else [[row[place] for place in used] for row in rows]


def _without_repeated_names(
    path: Path, lines: list[int], rows: list[list[str]]
) -> tuple[list[int], list[list[str]]]:
    """Drops lines that repeat the header, as in concatenated files.

    Lines that resemble the header but differ from it are kept, with a warning.
    """
    again = [place for place, row in enumerate(rows) if place and row == rows[0]]
    others = [place for place in range(1, len(rows)) if rows[place] != rows[0]]
    if odd := [(lines[p], rows[p]) for p in others if _repeat(rows[0], rows[p])]:
        say(
            path,
            "these lines look like column names that are repeated, but are read as rows: "
            f"{_lines(odd)}. If they are names, delete them",
        )
    if not again or len(rows[0]) < 2:
        return lines, rows
    shown = first_few(f"line {lines[place]}" for place in again)
    say(path, f"these lines repeat the column names, and are skipped: {shown}")
    return [lines[place] for place in (0, *others)], [rows[place] for place in (0, *others)]


def _repeat(names: list[str], row: list[str]) -> bool:
    """Whether at least two cells of a row are words that equal the names of their columns."""
    same = [cell for name, cell in zip(names, row, strict=True) if cell and cell == name]
    return sum(map(is_word, same)) > 1


def _lines(found: Lines) -> str:
    """Lists lines by their numbers and their first cells, for a message."""
    return first_few(f"line {line} ({first_few(map(repr, cells))})" for line, cells in found)


def _check_widths(path: Path, lines: list[int], rows: list[list[str]], *, header: bool) -> None:
    """Refuses a line whose number of cells differs from that of the first line."""
    width = len(rows[0]) if rows else 0
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            why = f", like the names in line {lines[0]}" if header else ""
            raise ValueError(
                f"line {line} of '{path}' has {count_of(len(row), 'cell')}, but must have "
                f"{width}{why}: correct this line, put # before lines that do not belong to the "
                "table, or pass the separator as layout=Layout(separator=...) (command line: --sep "
                "...)"
            )


def _is_header(path: Path, rows: list[list[str]], *, comma: bool) -> bool:
    """Whether the first line holds column names; warns if this is a guess."""
    first, below = rows[0], [row for row in rows[1:SAMPLED] if row != rows[0]]
    words = [i for i, cell in enumerate(first) if cell and number(cell, comma=comma) is None]
    columns = {i: column_of(below, i) for i in words}
    if any(are_times([first[i]]) and are_times(list(filter(None, columns[i]))) for i in words):
        return False  # a date above dates is not a name
    if any(mostly_numbers(columns[i], comma=comma) or are_times(columns[i]) for i in words):
        return True
    again = [first[i] in columns[i] for i in words]
    if words and all(i in columns or cell.lower() in MISSING for i, cell in enumerate(first)):
        return len(words) < len(first) or not all(again)
    if any(again):
        return False
    if not are_apart(first, below, comma=comma):
        if words and len(below) > 1:  # none of the words occurs again in its column
            say(
                path,
                f"the first line ({first_few(map(repr, first))}) is taken for a row: if it holds "
                "column names, pass layout=Layout(header=True) (command line: --header)",
            )
        return False
    say(
        path,
        f"the first line ({first_few(map(repr, first))}) is taken for column names: if the "
        "line is a row, pass layout=Layout(header=False) (command line: --no-header)",
    )
    return True


def _without_index(cells: Cells) -> Cells:
    """Drops an unnamed first column with a different whole number or word in each row."""
    column = cells.column(0)
    whole = all(WHOLE.fullmatch(x) for x in column)
    words = not any(
        number(x, comma=cells.comma) is not None or x.lower() in MISSING for x in column
    )
    if cells.names is None or len(cells.names) < 2 or len(set(column)) < len(column):
        return cells
    if not whole and not words:
        return cells
    return replace(cells, names=cells.names[1:], rows=[row[1:] for row in cells.rows])


@once_for_all_columns()
def columns_of_text(path: Path, layout: Layout = Layout()) -> dict[str, RawColumn]:
    """Reads a text file, and returns its columns by name."""
    return columns_of_cells(path, read_cells(path, layout), layout.words)


def columns_of_cells(
    path: Path, cells: Cells, words: Sequence[str] = (), *, codes: bool = True
) -> dict[str, RawColumn]:
    """Converts cells to named columns; the names are "0", "1", ... if the file has no names.

    Columns of codes such as `01234` are words, or numbers if `codes=False` is passed.

    Raises:
        ValueError: If two columns have the same name.

    Warns:
        UserWarning: If a numeric column has entries that are not numbers, which are then treated as
            missing; or if a row has no observed entry, and so cannot be used for training.
    """
    names = cells.labels
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        shown = ", ".join(map(repr, twice))
        raise ValueError(
            f"'{path}' has more than one column named {shown}: give each column a name of its own, "
            "and write all names in one line"
        )
    lines = zip(cells.lines, cells.rows, strict=True)
    empty = [str(line) for line, row in lines if all(map(is_missing, row))]
    if empty:
        shown = first_few(empty)
        which = f"line {shown} has" if len(empty) == 1 else f"lines {shown} have"
        say(
            path,
            f"{which} no observed entry: drop {'this line' if len(empty) == 1 else 'these lines'}",
        )
    columns = {}
    for place, name in enumerate(names):
        found = cells.column(place)
        if name in words or (codes and first_code(found)):
            columns[name] = words_of(found, with_answers=True)
            continue
        source = Source(
            name, f"in '{path}', column '{name}'", lambda row: f"line {cells.lines[row]}"
        )
        columns[name] = entries_of(source, found, comma=cells.comma, points=cells.points)
        if columns[name].holds is Holds.WORDS:
            _warn_of_none(source, found)
    return columns


def _warn_of_none(source: Source, cells: Sequence[str]) -> None:
    """Warns about entries that count as missing but may be words, such as `none` in a survey."""
    for mark in sorted(answers(cells) & set(cells)):
        warn_of_column(
            source.name,
            f"{source.title} holds {mark!r} in {count_of(cells.count(mark), 'entry', ',')}. Such "
            f"entries are taken to be missing. If {mark!r} is an answer, pass "
            f"{of_kind(source.name, 'Categories')}, or layout=Layout(words=[{source.name!r}])",
        )
