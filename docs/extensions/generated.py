"""A Sphinx extension that generates pages from other files, so that the pages stay up to date.

The gallery is generated from the examples, "what runs" from the corpus of programs, and `llms.txt`
from the reference. The example that draws every plot gives each of them a section of the gallery.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import public_names
from llms import llms_text

if TYPE_CHECKING:  # the tests read the pages without Sphinx
    from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent
EVERY_PLOT = ROOT / "examples" / "every_plot.py"
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
    """The page of all figures, each with its question and the code that draws it."""
    head = (
        "# Gallery\n\nThis page shows the figure of every example, with the script that draws it. "
        "Then it shows [every plot](#every-plot)\nof {pv}`plots`, with the lines that draw it. "
        "`python examples/NAME.py --out figures` draws a figure again. With `--smoke`\nthe script "
        "uses tiny sizes, which is quick but gives a poor figure. `make figures` draws them all."
    )
    scripts = sorted(set((ROOT / "examples").glob("*.py")) - {EVERY_PLOT})
    return "\n\n".join([head, *map(_example, scripts), *_every_plot()]) + "\n"


def _example(script: Path) -> str:
    about = (ast.get_docstring(ast.parse(script.read_text())) or "").split("\n\n")
    title = script.stem.replace("_", " ").capitalize().replace("Pca to vae", "PCA to VAE")
    return (
        f"## {title}\n\n**{' '.join(about[0].split())}**\n\n"
        f"![{title}](figures/{script.stem}.png)\n\n{_details(script)}"
    )


def _details(script: Path) -> str:
    """The whole script, folded."""
    shown = _include(script)
    return f"<details><summary>examples/{script.name}</summary>\n\n{shown}\n\n</details>"


def _include(script: Path, first: int | None = None, last: int | None = None) -> str:
    """A script, or some of its lines."""
    some = f":lines: {first}-{last}\n:dedent:\n" if first else ""
    return f"```{{literalinclude}} ../examples/{script.name}\n:language: python\n{some}```"


def _every_plot() -> Iterator[str]:
    """A section on each plot: its question, what it draws, its picture, and the code."""
    functions = {
        node.name: node
        for node in ast.parse(EVERY_PLOT.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    yield (
        "(every-plot)=\n## Every plot\n\n"
        "The plots are drawn from a VAE of digits (`model`, `guide`, `fit`), a `comparison` of "
        "three guides for it, and a VAE\n(`vae`) of a `table` of wines with missing entries. They "
        "are trained here, after\n`import pyro_vae as pv` and `import matplotlib.pyplot as plt`:"
    )
    yield _include(EVERY_PLOT, functions["encoder"].lineno, functions["trained"].end_lineno)
    yield "The text in these pictures is larger than usual, so that it can be read on phones."
    yield _details(EVERY_PLOT)
    sentences = {name.short: name.sentence for name in public_names.public_names()}
    for name, function in functions.items():
        if name.startswith("plot_"):
            yield _plot(function, sentences[f"pv.plots.{name}"])


def _plot(function: ast.FunctionDef, sentence: str) -> str:
    """The question is the docstring; the code is what stands below it."""
    name, docstring = function.name, function.body[0]
    code = _include(EVERY_PLOT, docstring.end_lineno + 1, function.end_lineno)
    return (
        f"### {name}\n\n**{ast.get_docstring(function)}** {{pv}}`plots.{name}` "
        f"{sentence[0].lower()}{sentence[1:]}\n\n![{name}](figures/plots/{name}.png)\n\n{code}"
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
