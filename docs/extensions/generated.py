"""A Sphinx extension that generates pages from other files, so that the pages stay up to date.

The gallery is generated from the examples, "what runs" from the corpus of programs, and `llms.txt`
from the reference.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llms import llms_text

if TYPE_CHECKING:  # the tests read the pages without Sphinx
    from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent
ALL = "*"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", lambda app, _: write_pages(Path(app.srcdir)))
    app.connect("build-finished", lambda app, _: write_llms(Path(app.outdir)))
    return {"parallel_read_safe": True}


def write_pages(folder: Path) -> None:
    """Writes those generated pages that have changed."""
    for name, text in {"gallery.md": gallery(), "what_runs.md": what_runs()}.items():
        file = folder / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def write_llms(folder: Path) -> None:
    """Writes `llms.txt` beside the front page."""
    (folder / "llms.txt").write_text(llms_text())


def gallery() -> str:
    """The page of all figures, each with its question and the script that draws it."""
    head = (
        "# Gallery\n\nThis page shows the figure of every example, with the script that draws it.\n"
        "`python examples/NAME.py --out figures` draws a figure again. With `--smoke` the script "
        "uses tiny sizes,\nwhich is quick but gives a poor figure. `make figures` draws them all."
    )
    return "\n\n".join([head, *map(_example, sorted((ROOT / "examples").glob("*.py")))]) + "\n"


def _example(script: Path) -> str:
    about = (ast.get_docstring(ast.parse(script.read_text())) or "").split("\n\n")
    title = script.stem.replace("_", " ").capitalize().replace("Pca to vae", "PCA to VAE")
    return (
        f"## {title}\n\n**{' '.join(about[0].split())}**\n\n"
        f"![{title}](figures/{script.stem}.png)\n\n"
        f"<details><summary>examples/{script.name}</summary>\n\n"
        f"```{{literalinclude}} ../examples/{script.name}\n:language: python\n```\n\n</details>"
    )


def what_runs() -> str:
    """The page of the corpus of programs, with the cells that are neither right nor doubted."""
    sys.path.insert(0, str(ROOT))
    from tests.corpus import PROGRAMS
    from tests.corpus.known import KNOWN

    rows = [
        f"| `{name}` | {' '.join(entry.idiom.split())} | {_exceptions(name, KNOWN) or 'none'} |"
        for name, entry in PROGRAMS.items()
    ]
    table = "\n".join(["| program | description | exceptions |", "| --- | --- | --- |", *rows])
    page = (ROOT / "docs" / "what_runs.in").read_text()
    return page.replace("{count}", str(len(PROGRAMS))).replace("{table}", table)


def _exceptions(name: str, known: dict[tuple[str, str, str], tuple[tuple[str, ...], str]]) -> str:
    """Describes the exceptions among the cells of a program, with each reason given once."""
    lines = {key[1:]: line for key, line in known.items() if key[0] == name}
    right = [cell for cell, (kinds, _) in lines.items() if kinds == ("right",)]
    found: dict[tuple[str, str], list[str]] = {}
    for cell, (kinds, reason) in lines.items():
        if kinds != ("right",):
            but = [_cell(*rest) for rest in (_within(one, cell) for one in right) if rest]
            words = _cell(*cell) + (f" (except {' and '.join(but)})" if but else "")
            found.setdefault((" or ".join(kinds).capitalize(), reason), []).append(words)
    return " ".join(
        f"{kinds}: {', '.join(cells)}. {reason[0].upper()}{reason[1:]}."
        for (kinds, reason), cells in found.items()
    )


def _cell(guide: str, question: str) -> str:
    """Names a guide and a question, either of which may be all or, in an exception, empty."""
    asked = {ALL: "all questions", "": ""}.get(question, f"`{question}`")
    under = {ALL: "", "": ""}.get(guide, f"under the {_guide(guide)}")
    return f"{asked} {under}".strip()


def _within(one: tuple[str, str], cell: tuple[str, str]) -> tuple[str, str] | None:
    """Returns those parts of a cell that a line for several cells leaves open, if it covers it."""
    if one == cell or not all(wide in (ALL, part) for part, wide in zip(one, cell, strict=True)):
        return None
    guide, question = (part if wide == ALL else "" for part, wide in zip(one, cell, strict=True))
    return guide, question


def _guide(name: str) -> str:
    return "author's guide" if name == "author" else name
