"""A Sphinx extension that writes the reference from the public names, with references resolved.

Before Sphinx reads anything, a page for each public module is written, and an index that links to
every name. A reference in a docstring is looked up from the module of the docstring, and replaced
by the entry that documents its target. If the target is not public or does not exist, Sphinx warns.
"""

import sys
from inspect import isclass, isroutine
from pathlib import Path
from textwrap import indent
from types import ModuleType
from typing import Any

from docutils import nodes
from public_names import (
    PAGES,
    ROLE,
    Name,
    documented,
    members,
    module,
    public_names,
    public_path,
    resolve,
    sentence,
)
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

LOG = logging.getLogger(__name__)
FOLDER = "reference"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", lambda app, _: write_pages(Path(app.srcdir) / FOLDER))
    app.connect("autodoc-process-docstring", with_full_targets, priority=100)  # before napoleon
    app.add_role("pv", PublicName())
    app.connect("missing-reference", public_type)
    app.connect("autodoc-process-bases", public_bases)
    return {"parallel_read_safe": True}


class PublicName(SphinxRole):
    """The role `{pv}`, which links a name such as `fit` or `stats.tail_error` to its entry."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name = self.text.removesuffix("()")
        meant = resolve(f"pyro_vae.{name}", sys.modules["pyro_vae"])
        place = meant and documented(meant[0])
        if place is None:
            LOG.warning("pv.%s is not a public name", name, location=self.get_location())
        shown = nodes.literal(text=f"pv.{self.text}", classes=["xref", "py"])
        target = {"reftype": "obj", "reftarget": place or name, "refdoc": self.env.docname}
        return [
            pending_xref("", shown, refdomain="py", refexplicit=True, refwarn=True, **target)
        ], []


def write_pages(folder: Path) -> None:
    """Writes the index and a page for each module; unchanged files are left untouched."""
    folder.mkdir(exist_ok=True)
    for page in PAGES:
        _write(folder / f"{page}.rst", page_of(page))
    _write(folder / "index.rst", index())


def _write(file: Path, text: str) -> None:
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def on_page(page: str) -> list[Name]:
    """The names on a page; names at the root come first."""
    names = [name for name in public_names() if name.page == page]
    return sorted(names, key=lambda name: name.path.count("."))


def page_of(page: str) -> str:
    """The text of a page in reStructuredText."""
    parts = [f"{PAGES[page]}\n{'=' * len(PAGES[page])}", f".. automodule:: pyro_vae.{page}"]
    return "\n\n".join([*parts, *map(entry, on_page(page))]) + "\n"


def entry(name: Name) -> str:
    """The reStructuredText directive that documents a name."""
    if isclass(name.object):
        shown = members(name.object)
        listed = f"\n   :members: {', '.join(shown)}" if shown else ""
        bases = any(public_path(base, "") for base in name.object.__bases__)
        inherits = "\n   :show-inheritance:" if bases else ""
        return f".. autoclass:: {name.path}{inherits}{listed}"
    if isroutine(name.object):
        return f".. autofunction:: {name.path}"
    home = module(name.page)
    lines = [_resolved(line, home, None, name.path) for line in name.docstring.splitlines()]
    owner, _, constant = name.path.rpartition(".")
    return f".. py:data:: {constant}\n   :module: {owner}\n\n" + indent("\n".join(lines), "   ")


def index() -> str:
    """The text of the page that lists every name."""
    head = "Reference\n=========\n\nEvery public name. `pv` is `pyro_vae`: `import pyro_vae as pv`."
    hidden = "\n".join(f"   {page}" for page in PAGES)
    parts = [head, f".. toctree::\n   :hidden:\n\n{hidden}"]
    return "\n\n".join([*parts, *map(table, PAGES)]) + "\n"


def table(page: str) -> str:
    """A table of the names on a page, with the first sentences of their docstrings."""
    title = PAGES[page]
    about = _plain(sentence(module(page).__doc__ or ""))
    head = f"{title}\n{'-' * len(title)}\n\n:doc:`{page}`: {about}"
    rows = "\n".join(map(_row, on_page(page)))
    return f"{head}\n\n.. list-table::\n   :widths: 40 60\n\n{indent(rows, '   ')}"


def _row(name: Name) -> str:
    return f"* - :py:obj:`{name.short} <{name.path}>`\n  - {_plain(name.sentence)}"


def _plain(text: str) -> str:
    """A sentence with plain names in place of references, which resolve only in their module."""
    return ROLE.sub(lambda found: f"``{found[2].lstrip('~')}``", text)


def with_full_targets(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Replaces the targets in a docstring by the paths under which they are documented."""
    home = sys.modules.get(getattr(obj, "__module__", None) or getattr(obj, "__name__", ""))
    owner = obj if isclass(obj) else _owner(name)
    if home is not None:
        lines[:] = [_resolved(line, home, owner, name) for line in lines]


def _owner(name: str) -> type | None:
    """The class of a method, from the path of the method."""
    found = resolve(name.rpartition(".")[0], sys.modules["pyro_vae"])
    return found[1] if found and isclass(found[1]) else None


def _resolved(line: str, home: ModuleType, owner: type | None, name: str) -> str:
    def full(found: Any) -> str:
        target = found[2]
        meant = resolve(target, home, owner)
        place = meant and documented(meant[0])
        if meant and not meant[0].startswith("pyro_vae"):
            return f"`{target}`"
        if place is None:
            LOG.warning("%s refers to %s, which is not public", name, found[0])
            return f"`{target}`"
        shown = target.rpartition(".")[2] if target.startswith("~") else target
        return f":py:obj:`{shown} <{place}>`"

    return ROLE.sub(full, line)


def public_bases(app: Sphinx, name: str, obj: type, options: Any, bases: list[type]) -> None:
    """Keeps only the bases that have an entry; methods of other bases are shown with the class."""
    bases[:] = [base for base in bases if public_path(base, "")]


def public_type(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """Links a type in a signature, which is known by its module, to its entry."""
    meant = resolve(node.get("reftarget", ""), sys.modules["pyro_vae"])
    if meant is None or node.get("reftype") != "class":
        return None
    if documented(meant[0]) in (None, node["reftarget"]):
        return contnode  # a type of ours that is not public: its name alone
    domain, target = env.domains.python_domain, documented(meant[0])
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)
