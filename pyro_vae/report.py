"""A report as one self-contained HTML file: no network, no other file, no script needed.

A report has sections of blocks (text, points, tables, figures, facts, code). Each block is a small
frozen dataclass that renders itself. Pictures are embedded. A column's definition is shown on hover
over its heading, and in the glossary at the end, for phones and print. Tables can be sorted where
scripts run. Every text comes from the caller and is escaped, and the page's content security policy
forbids the page to load anything.
"""

import base64
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
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
        value: The sort key, in full precision; nan is last in either direction.
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
    """Renders what `plot()` returned as the bytes of a PNG file, and closes its figure."""
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
                f"got {len(wrong[0])} in {[cell.text for cell in wrong[0]]}"
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
        first, *others = zip(self.columns, row, strict=True)
        return _row_name(*first) + "".join(_entry(*pair, first[1].text) for pair in others)


_DOUBT = (
    "† Not reliable for all data: hover over the number for the reason. All reasons are listed "
    "where this page says how far its numbers can be trusted."
)


def _head(column: Column) -> str:
    kind = "number" if column.is_number else "text"
    unit = f' <span class="unit">{escape(column.unit)}</span>'
    return (
        f'<th scope="col" class="{kind}" data-key="{escape(column.key)}" data-sort="{kind}" '
        f'data-name="{escape(column.name)}"><a href="#{_anchor(column)}">'
        f'<abbr title="{escape(column.definition)}">{escape(column.name)}</abbr></a>{unit}</th>'
    )


def _row_name(column: Column, cell: Cell) -> str:
    return (
        f'<th scope="row" data-key="{escape(column.key)}" data-value="{escape(str(cell.value))}">'
        f"<span>{escape(cell.text)}</span></th>"
    )


def _entry(column: Column, cell: Cell, row: str) -> str:
    kind = "number" if column.is_number else "text"
    error = "" if cell.error is None else f' data-error="{cell.error}"'
    dagger = "<sup>†</sup>" if cell.doubt else ""
    said = [f"{column.name}, {row}: {cell.note or cell.text}", cell.doubt, column.definition]
    title = "\n".join(part for part in said if part)
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
            raise ValueError(f"`png` must be the bytes of a PNG file; got {self.png[:8]!r}...")

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
        body = "\n".join(_section(place, part) for place, part in enumerate(parts))
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{_HEAD}'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<header><h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p>\n"
            f"{'' if self.lead is None else self.lead.html()}\n"
            f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n'
            f"<main>\n{body}\n</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
        )

    def _columns(self) -> list[Column]:
        """The columns of all tables, without repetitions."""
        tables = (
            block
            for section in self.sections
            for block in section.blocks
            if isinstance(block, Table)
        )
        return list(
            {_anchor(column): column for table in tables for column in table.columns}.values()
        )


def _section(place: int, part: Section) -> str:
    blocks = "\n".join(block.html() for block in part.blocks)
    return f'<section id="part-{place}"><h2>{escape(part.title)}</h2>\n{blocks}\n</section>'


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

_STYLE = """
:root { --ink: #1c2126; --soft: #59636e; --line: #d5dade; --page: #fff; --tint: #f5f6f8;
  --link: #0a4f8f; --doubt: #a33000; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #a4adb6; --line: #3b434b; --page: #15181b; --tint: #1f2428;
    --link: #8cc4ff; --doubt: #ff9d70; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem; color: var(--ink);
  background: var(--page); font: 1rem/1.55 system-ui, "Segoe UI", "Liberation Sans", sans-serif;
  overflow-wrap: break-word; }
a { color: var(--link); }
h1, h2, h3 { font-weight: 600; line-height: 1.25; }
h1 { margin: 0; font-size: 1.9rem; letter-spacing: -0.01em; }
h2 { margin: 3.2rem 0 1rem; padding-top: 1.2rem; border-top: 1px solid var(--line);
  font-size: 1.35rem; }
h3 { margin: 1.8rem 0 0.5rem; font-size: 1.05rem; }
p { margin: 0.6rem 0; max-width: 46rem; }
header p { margin-top: 0.4rem; color: var(--soft); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem; margin: 1rem 0 0; padding: 0;
  list-style: none; font-size: 0.93rem; }
.lead { display: grid; grid-template-columns: 1fr 1fr; gap: 0.5rem 1.5rem; align-items: center;
  margin: 1.2rem 0; }
.lead p { color: var(--ink); font-size: 1.12rem; }
.lead figure { margin: 0; }
.points { margin: 0.6rem 0; padding-left: 1.1rem; max-width: 46rem; }
.points li { margin: 0.35rem 0; }
.aside { padding: 0.6rem 0.9rem; border-left: 3px solid var(--line); background: var(--tint);
  font-size: 0.93rem; }
.scroll { margin-top: 1.4rem; overflow-x: auto; }
table { width: 100%; border-collapse: separate; border-spacing: 0; font-size: 0.9rem;
  font-variant-numeric: tabular-nums; }
caption { padding-bottom: 0.5rem; text-align: left; font-weight: 600; }
caption span { display: inline-block; position: sticky; left: 0;
  max-width: min(100%, 100vw - 2.5rem); }
th, td { padding: 0.42rem 0.75rem; text-align: left; vertical-align: baseline;
  white-space: nowrap; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 1px solid var(--line); }
.number { text-align: right; }
thead th { border-bottom: 1.5px solid var(--ink); font-weight: 600; line-height: 1.3;
  white-space: normal; vertical-align: bottom; }
thead a { color: inherit; text-decoration: none; }
abbr { text-decoration: underline dotted var(--soft); text-underline-offset: 0.2em; }
tbody th { position: sticky; left: 0; white-space: normal; background: var(--page);
  font-weight: 500; }
tbody th span { display: block; width: max-content; max-width: 15rem;
  overflow-wrap: break-word; }
tbody tr:hover > * { background: var(--tint); }
sup { position: absolute; color: var(--doubt); line-height: 1; }
thead .unit { display: block; }
.unit { color: var(--soft); font-weight: 400; font-size: 0.85em; }
.note, figcaption { color: var(--soft); font-size: 0.88rem; }
figcaption b { color: var(--ink); }
.sort { min-width: 1.5rem; min-height: 1.5rem; margin: 0 -0.3rem; padding: 0; border: 0;
  background: none; color: var(--soft); font: inherit; cursor: pointer; }
.sort::after { content: "\\2195"; }
[aria-sort=ascending] .sort, [aria-sort=descending] .sort { color: var(--link); }
[aria-sort=ascending] .sort::after { content: "\\2191"; }
[aria-sort=descending] .sort::after { content: "\\2193"; }
figure { margin: 2rem 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; margin-bottom: 0.6rem; padding: 0.4rem;
  border-radius: 4px; background: #fff; }
dl { margin: 0.8rem 0; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
.facts div { display: grid; grid-template-columns: 12rem 1fr; gap: 0 1rem; padding: 0.3rem 0;
  border-bottom: 1px solid var(--line); font-size: 0.9rem; }
.facts dt { font-weight: 400; color: var(--soft); }
.glossary div { max-width: 46rem; margin: 0.9rem 0; padding-left: 0.6rem;
  border-left: 3px solid transparent; break-inside: avoid; font-size: 0.93rem; }
.glossary :target { border-color: var(--link); }
pre { margin: 0.8rem 0; padding: 0.8rem 1rem; white-space: pre-wrap; border: 1px solid var(--line);
  border-radius: 4px; background: var(--tint); font-size: 0.86rem; }
code { font-family: ui-monospace, "Liberation Mono", monospace; user-select: all; }
@media (max-width: 36rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  th, td { padding: 0.4rem 0.55rem; }
  tbody th span { max-width: 7rem; }
  .facts div, .lead { grid-template-columns: 1fr; }
  figure { overflow-x: auto; }
  main img { max-width: none; }
  figcaption { position: sticky; left: 0; } }
@media print {
  @page { margin: 16mm; }
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  nav, .sort { display: none; }
  .scroll { overflow: visible; break-inside: avoid; }
  table { font-size: 8pt; }
  h2 { margin-top: 2rem; }
  th, td { padding: 0.25rem 0.4rem; }
  thead th { white-space: normal; }
  a { color: inherit; text-decoration: none; }
  h2, h3 { break-after: avoid; }
  .aside, .facts div { break-inside: avoid; }
  img { max-height: 110mm; padding: 0; object-fit: contain; object-position: left; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.setAttribute("aria-label", "Sort by " + head.dataset.name);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value;
      const number = text => text === "inf" ? Infinity : text === "-inf" ? -Infinity : +text;
      const compare = head.dataset.sort === "text"
        ? (a, b) => sign * a.localeCompare(b)
        : (a, b) => {
            const [x, y] = [number(a), number(b)];
            return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x > y ? 1 : x < y ? -1 : 0);
          };
      body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
    });
    head.querySelector(".unit").append(button);
  });
}
"""
