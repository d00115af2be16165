"""A Sphinx extension that generates pages from other files, so that the pages stay up to date.

The gallery is generated from the examples, "what runs" from the corpus of programs, and `llms.txt`
from the reference.
"""

import ast
import sys
from pathlib import Path

from llms import llms_text
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
        f"| `{name}`: {' '.join(entry.idiom.split())} | {_exceptions(name, KNOWN) or 'none'} |"
        for name, entry in PROGRAMS.items()
    ]
    table = "\n".join(["| program | exceptions |", "| --- | --- |", *rows])
    return (ROOT / "docs" / "what_runs.in").read_text().replace("{table}", table)


def _exceptions(name: str, known: dict[tuple[str, str, str], tuple[tuple[str, ...], str]]) -> str:
    """Describes the exceptions among the cells of a program, with each reason given once."""
    found: dict[str, list[str]] = {}
    for (program, guide, question), (kinds, reason) in known.items():
        if program == name and kinds != ("right",):
            cell = ", ".join(part for part in (_guide(guide), question) if part != ALL)
            found.setdefault(f"{' or '.join(kinds)}: {reason}", []).append(cell or "all")
    return "; ".join(
        f"{', '.join(dict.fromkeys(cells))}: {words}" for words, cells in found.items()
    )


def _guide(name: str) -> str:
    return "author's guide" if name == "author" else name
