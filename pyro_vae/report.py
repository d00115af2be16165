"""A report as one self-contained HTML file: no network, no other file, no script needed.

A report has sections of blocks (text, points, tables, figures, facts, code). Each block is a small
frozen dataclass that renders itself. Pictures are embedded. A column's definition is shown on hover
over its heading, and in the glossary at the end, for phones and print. Tables can be sorted where
scripts run. Every text comes from the caller and is escaped, and the page's content security policy
forbids the page to load anything. The style sheet and the script, which every page contains, are
in `report.css` and `report.js`.
"""

import base64
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .formatting import Column as Column
from .formatting import count_of, plus_minus, typeset
from .plots.drawing import figure_of, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = 96  # per inch in style sheets


@dataclass(frozen=True)
class Cell:
    """An entry of a table.

    Arguments:
        text: The text shown.
        value: The sort key, in full precision; nan is last in ascending and descending order.
        error: The standard error of the entry, or None.
        note: A note on the entry, shown on hover.
        doubt: Why the entry cannot be trusted; empty if it can be. An entry with a doubt is marked
            with a dagger.
    """

    text: str
    value: float | str
    error: float | None = None
    note: str = ""
    doubt: str = ""


def words(text: str) -> Cell:
    """Makes a cell that shows a text."""
    return Cell(text, text)


def number(value: float, text: str = "", *, note: str = "") -> Cell:
    """Makes a cell with a number that has no error, such as a count."""
    shown = "\N{EM DASH}" if math.isnan(value) else text or typeset(f"{value:g}")
    return Cell(shown, value, note=note)


def estimate(value: float, error: float, *, note: str = "", doubt: str = "") -> Cell:
    """Makes a cell with a number and its standard error."""
    exact = f"{typeset(f'{value:.8g}')}, standard error {error:.2g}"
    shown = "\N{EM DASH}" if math.isnan(value) else typeset(plus_minus(value, error))
    return Cell(shown, value, error, f"{exact}. {note}".strip(), doubt)


def png(drawn: "Axes | NDArray[Any]") -> bytes:
    """Converts what `plot()` returned to the bytes of a PNG file, and closes its figure."""
    from matplotlib import pyplot

    figure = figure_of(drawn)
    content = png_of(figure)
    pyplot.close(figure)
    return content


def typeset_numbers(text: str) -> str:
    """Replaces the hyphens of negative numbers by typographic minus signs."""
    return re.sub(r"(?<=[ (])-(?=\d)", "\N{MINUS SIGN}", text)


@runtime_checkable
class Block(Protocol):
    """A part of a section, such as a table."""

    def html(self) -> str:
        """Returns the block as HTML."""
        ...


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str

    def html(self) -> str:
        return f"<h3>{escape(self.text)}</h3>"


@dataclass(frozen=True)
class Text:
    """A paragraph, set apart from other paragraphs if it has a lead phrase."""

    text: str
    lead: str = ""

    def html(self) -> str:
        kind = ' class="aside"' if self.lead else ""
        return f"<p{kind}>{_about(self.lead)}{escape(self.text)}</p>"


@dataclass(frozen=True)
class Points:
    """A list of statements; each has a subject, which may be empty, and a text."""

    points: Sequence[tuple[str, str]]

    def html(self) -> str:
        items = "".join(
            f"<li>{_about(subject)}{escape(text)}</li>" for subject, text in self.points
        )
        return f'<ul class="points">{items}</ul>'


def _about(subject: str) -> str:
    return f"<b>{escape(subject)}</b> " if subject else ""


@dataclass(frozen=True)
class Facts:
    """Names and values, such as the settings of a run."""

    facts: Mapping[str, str]

    def html(self) -> str:
        pairs = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
            for name, value in self.facts.items()
        )
        return f'<dl class="facts">{pairs}</dl>'


@dataclass(frozen=True)
class Code:
    """Lines to copy; one click selects all of them."""

    text: str

    def html(self) -> str:
        return f"<pre><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Arguments:
        caption: The caption.
        columns: The columns.
        rows: The rows, with one cell per column.
        note: How to read the table.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(
                f"every row of '{self.caption}' must have {count_of(len(self.columns), 'cell')}; "
                f"got a row of {len(wrong[0])}, {[cell.text for cell in wrong[0]]}: "
                "pass one cell per column"
            )

    def html(self) -> str:
        """The table as HTML, in a box that scrolls."""
        heads = "".join(_head(column) for column in self.columns)
        rows = "".join(f"<tr>{self._cells(row)}</tr>\n" for row in self.rows)
        doubted = any(cell.doubt for row in self.rows for cell in row)
        notes = [*([self.note] if self.note else []), *([_DOUBT] if doubted else [])]
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(self.caption)}">\n'
            f"<table data-sortable><caption><span>{escape(self.caption)}</span></caption>\n"
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
            + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
        )

    def _cells(self, row: Sequence[Cell]) -> str:
        (column, name), *others = zip(self.columns, row, strict=True)
        head = (
            f'<th scope="row" data-key="{escape(column.key)}" '
            f'data-value="{escape(str(name.value))}"><span>{escape(name.text)}</span></th>'
        )
        return head + "".join(_entry(*pair, name.text) for pair in others)


_DOUBT = (
    "† Not reliable for all data: hover over the number for the reason. All reasons are listed "
    "where this page says how far its numbers can be trusted."
)


def _head(column: Column) -> str:
    kind = "number" if column.is_number else "text"
    unit = f' <span class="unit">{escape(column.unit)}</span>'  # where report.js puts its button
    return (
        f'<th scope="col" class="{kind}" data-key="{escape(column.key)}" data-sort="{kind}" '
        f'data-name="{escape(column.name)}"><a href="#{_anchor(column)}">'
        f'<abbr title="{escape(column.definition)}">{escape(column.name)}</abbr></a>{unit}</th>'
    )


def _entry(column: Column, cell: Cell, row: str) -> str:
    kind = "number" if column.is_number else "text"
    error = "" if cell.error is None else f' data-error="{cell.error}"'
    dagger = "<sup>†</sup>" if cell.doubt else ""
    lines = [f"{column.name}, {row}: {cell.note or cell.text}", cell.doubt, column.definition]
    title = "\n".join(line for line in lines if line)
    return (
        f'<td class="{kind}" data-key="{escape(column.key)}" '
        f'data-value="{escape(str(cell.value))}"{error} title="{escape(title)}">'
        f"{escape(cell.text)}{dagger}</td>"
    )


def _anchor(column: Column) -> str:
    """Returns the HTML anchor of a column's definition: letters, digits and hyphens only."""
    return "term-" + "".join(letter if letter.isalnum() else "-" for letter in column.name.lower())


@dataclass(frozen=True)
class Figure:
    """A picture with a description and a caption.

    Arguments:
        png: The bytes of a PNG file.
        alt: A description for those who cannot see the figure.
        caption: How to read the figure.
        title: A title of a few words.
        dpi: Dots per inch, which set the size of the figure on the page.

    Raises:
        ValueError: If `png` is not the content of a PNG file.
    """

    png: bytes
    alt: str
    caption: str = ""
    title: str = ""
    dpi: float = 150.0

    def __post_init__(self) -> None:
        if not self.png.startswith(_PNG):
            raise ValueError(
                f"`png` must be the bytes of a PNG file; got {self.png[:8]!r}...: pass png(...)"
            )

    def html(self) -> str:
        """The embedded picture as HTML, with its alternative text."""
        source = base64.b64encode(self.png).decode("ascii")
        # Every PNG file starts with a signature, and a chunk that begins with the size.
        width, height = struct.unpack(">II", self.png[16:24])
        size = (
            f'width="{width / self.dpi * _PIXELS:.0f}" height="{height / self.dpi * _PIXELS:.0f}"'
        )
        return (
            f'<figure><img src="data:image/png;base64,{source}" {size} alt="{escape(self.alt)}">'
            f"<figcaption>{_about(self.title)}{escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Section:
    """A titled section."""

    title: str
    blocks: Sequence[Block]

    def html(self, place: int) -> str:
        """The section as HTML; the table of contents links to it by its number, `place`."""
        blocks = "\n".join(block.html() for block in self.blocks)
        return f'<section id="part-{place}"><h2>{escape(self.title)}</h2>\n{blocks}\n</section>'


@dataclass(frozen=True)
class Lead:
    """The main findings: a sentence or two beside one picture.

    Arguments:
        text: The findings, and which numbers cannot be trusted.
        figure: The picture that shows the findings, or None.
    """

    text: str
    figure: Figure | None = None

    def html(self) -> str:
        """The text and the picture as HTML, side by side where there is room."""
        picture = "" if self.figure is None else self.figure.html()
        return f'<div class="lead"><p>{escape(self.text)}</p>{picture}</div>'


@dataclass(frozen=True)
class Report:
    """A report, as one HTML page.

    Arguments:
        title: The title.
        subtitle: The subtitle.
        sections: The sections of the page: the findings come first, and how to repeat the analysis
            comes last. A glossary is appended.
        lead: The main findings, at the top of the page.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    lead: Lead | None = None

    def html(self) -> str:
        """The page as HTML, to be written in UTF-8."""
        parts = [*self.sections, Section("Glossary", [_Glossary(self._columns())])]
        links = "".join(
            f'<li><a href="#part-{place}">{escape(part.title)}</a></li>'
            for place, part in enumerate(parts)
        )
        body = "\n".join(part.html(place) for place, part in enumerate(parts))
        style, script = (
            (files(__package__) / name).read_text(encoding="utf-8")
            for name in ("report.css", "report.js")
        )
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{_HEAD}'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            f"<header><h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p>\n"
            f"{'' if self.lead is None else self.lead.html()}\n"
            f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n'
            f"<main>\n{body}\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
        )

    def _columns(self) -> list[Column]:
        """The columns of all tables, without repetitions."""
        blocks = (block for section in self.sections for block in section.blocks)
        tables = (block for block in blocks if isinstance(block, Table))
        columns = {_anchor(column): column for table in tables for column in table.columns}
        return list(columns.values())


@dataclass(frozen=True)
class _Glossary:
    """The definitions of the columns; the headings of the columns link to them."""

    columns: Sequence[Column]

    def html(self) -> str:
        pairs = "\n".join(
            f'<div id="{_anchor(column)}"><dt>{escape(column.name)}{self._unit(column)}</dt>'
            f"<dd>{escape(column.definition)}</dd></div>"
            for column in sorted(self.columns, key=lambda column: column.name.lower())
        )
        return f'<dl class="glossary">{pairs}</dl>'

    def _unit(self, column: Column) -> str:
        return f' <span class="unit">{escape(column.unit)}</span>' if column.unit else ""


_HEAD = """\
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
"""
