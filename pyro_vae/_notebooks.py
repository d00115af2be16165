"""HTML forms of results in notebooks: tables, sentences, and the plot as a picture.

Text and tables have the colours of the notebook, light or dark. Only pictures have a background.
"""

import base64
import io
import re
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = re.compile(r"\S {2,}\S|^-+$")  # matches lines of a table, but not sentences
_INK = re.compile(r"x+(?: x+)*")  # a column of cells: blanks inside it are single
_DPI = 100  # pixels per inch of a picture, as in matplotlib's own pictures in notebooks


def html_of(summary: str) -> str:
    """Turns a summary into HTML: aligned lines become a table, all others paragraphs.

    Example:
        >>> html_of("One < two.")
        '<p>One &lt; two.</p>'
    """
    lines = [line for line in summary.splitlines() if line.strip()]
    parts = [
        _table(list(part)) if is_table else "".join(f"<p>{escape(line)}</p>" for line in part)
        for is_table, part in groupby(lines, lambda line: bool(_COLUMNS.search(line)))
    ]
    return "".join(parts)


def _table(lines: Sequence[str]) -> str:
    """Makes a table from lines in which blanks align the columns; the first has the headings."""
    head, *rows = _cells([line for line in lines if line.strip("-")])
    body = "".join(_row(cells, "td") for cells in rows)
    return (
        '<div style="overflow-x:auto"><table style="white-space:nowrap">'
        f"<thead>{_row(head, 'th')}</thead><tbody>{body}</tbody></table></div>"
    )


def _cells(lines: Sequence[str]) -> list[list[str]]:
    """Splits aligned lines into cells, at gaps of two or more blanks that all lines share."""
    padded = [line.ljust(max(map(len, lines))) for line in lines]
    ink = "".join(" " if set(letters) == {" "} else "x" for letters in zip(*padded, strict=True))
    spans = [found.span() for found in _INK.finditer(ink)]
    return [[line[start:end].rstrip() for start, end in spans] for line in padded]


def _row(cells: Sequence[str], kind: str) -> str:
    """Makes a row: the first cell is aligned left, with its indent, and all others right."""
    first, *others = cells
    indent = "&nbsp;" * (len(first) - len(first.lstrip()))
    entries = [
        f'<th style="text-align:left">{indent}{escape(first.strip())}</th>',
        *(f'<{kind} style="text-align:right">{escape(cell.strip())}</{kind}>' for cell in others),
    ]
    return f"<tr>{''.join(entries)}</tr>"


def picture_of(draw: "Callable[[], Figure]", alt: str) -> str:
    """Draws a plot, returns it as an HTML image tag, and closes the figures that were opened.

    Arguments:
        draw: Draws the plot.
        alt: What the picture shows, for readers who cannot see it.

    Returns:
        The tag; an empty string if the result has no plot, or if its numbers cannot be drawn.
    """
    from matplotlib import pyplot

    known = set(pyplot.get_fignums())
    content = io.BytesIO()
    try:
        with pyplot.ioff():  # otherwise some notebooks also show the figure itself
            draw().savefig(content, format="png", dpi=_DPI)
    except (NotImplementedError, ValueError):
        return ""
    finally:
        for number in set(pyplot.get_fignums()) - known:
            pyplot.close(number)
    data = base64.b64encode(content.getvalue()).decode()
    return (
        f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}" '
        'style="max-width:100%;background:white">'
    )
