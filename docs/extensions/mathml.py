"""A Sphinx extension that writes formulas as MathML, which browsers render without a script."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


OPERATORS = {"&#x0007E;": "&#x0223C;", ";": ";"}  # \sim and ;, which the converter calls letters
FUNCTION = re.compile(r"(<mi>[A-Za-z]{2,}</mi>)(?!<mo stretchy=\"false\">&#x00028;)")


def mathml(formula: str, display: str) -> str:
    """A formula in MathML, with a thin space between a function's name and its argument."""
    found = convert(formula.replace(r"\arg", r"\operatorname{arg}"), display=display)
    for letter, operator in OPERATORS.items():
        found = found.replace(f"<mi>{letter}</mi>", f"<mo>{operator}</mo>")
    return FUNCTION.sub(r'\1<mspace width="0.17em" />', found)


def inline(self: Any, node: nodes.math) -> None:
    """Writes a formula in a line of text."""
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """Writes a displayed formula."""
    self.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode
