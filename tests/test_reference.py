"""The reference holds every public name, and what docstrings refer to is there."""

import ast
import pydoc
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module, util
from inspect import getdoc, isclass, isroutine
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import pyro_vae as pv

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for page in sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
    if "_build" not in page.parts and page.name != "CHANGELOG.md"  # which names what is gone
]


def extension(name: str) -> Any:
    """A module of the site's; they are no part of the package."""
    spec = util.spec_from_file_location(name, ROOT / "docs" / "extensions" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = util.module_from_spec(spec)
    sys.modules.setdefault(name, loaded)
    spec.loader.exec_module(loaded)
    return loaded


public_names = extension("public_names")
llms = extension("llms")
generated = extension("generated")


def documented_in(tree: ast.Module) -> Iterator[tuple[str | None, str]]:
    """Every docstring of a file, with the name of the class that it stands in."""

    def inside(node: ast.AST, owner: str | None) -> Iterator[tuple[str | None, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                yield owner, str(child.value.value)
            elif isinstance(child, ast.ClassDef):
                yield from inside(child, child.name if owner is None else owner)
            elif isinstance(child, ast.FunctionDef):
                yield from inside(child, owner)

    return inside(tree, None)


def dead(source: str, home: ModuleType) -> list[str]:
    """References in the docstrings of a module that lead nowhere."""
    return [
        reference.text
        for owner, docstring in documented_in(ast.parse(source))
        for reference in public_names.references(docstring)
        if public_names.resolve(reference.target, home, owner and getattr(home, owner)) is None
    ]


def test_references_of_docstrings_are_there() -> None:
    """Every `:func:`, `:class:` and so on names something, where it stands."""
    found = {}
    for file in sorted((ROOT / "pyro_vae").rglob("*.py")):
        names = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(names[:-1] if names[-1] == "__init__" else names)
        if file.name != "__main__.py":  # which would run
            found[name] = dead(file.read_text(encoding="utf-8"), import_module(name))
    assert not {name: gone for name, gone in found.items() if gone}


def test_dead_references_are_found() -> None:
    """A name that is nowhere is dead, in a function and in a class; one of the package is not."""
    source = '''
def f():
    """See :func:`gone`, :class:`~pyro_vae.Guide` and :meth:`Guide.mean`."""

class Guide:
    """See :meth:`sample`."""

    def g(self):
        """See :meth:`nothing`."""
'''
    assert dead(source, import_module("pyro_vae.guides.guide")) == [
        ":func:`gone`",
        ":meth:`nothing`",
    ]


def test_public_docstrings_refer_to_what_is_public() -> None:
    """A reader of the reference can follow each reference in it."""
    for name in public_names.public_names():
        home = import_module(getattr(name.object, "__module__", None) or f"pyro_vae.{name.page}")
        owner = name.object if isclass(name.object) else None
        members = [getattr(name.object, member) for member in public_names.members(name.object)]
        for docstring in [name.docstring, *(getdoc(member) or "" for member in members)]:
            for reference in public_names.references(docstring):
                path, _ = public_names.resolve(reference.target, home, owner)
                ours = path.startswith("pyro_vae")
                assert not ours or public_names.documented(path), (name.path, reference.text)


def test_pages_refer_to_what_is_public() -> None:
    """What a module says of itself heads its page; `:mod:` leads to a page, too."""
    for page in public_names.PAGES:
        home = public_names.module(page)
        for reference in public_names.references(home.__doc__ or ""):
            found = public_names.resolve(reference.target, home, None)
            assert found is not None, (page, reference.text)
            ours = found[0].startswith("pyro_vae")
            assert not ours or public_names.documented(found[0]), (page, reference.text)


def test_references_stand_on_one_line() -> None:
    """The pages resolve them line by line."""
    broken = re.compile(r":(?:func|class|meth|attr|mod|data|obj|exc):`[^`]*$", re.MULTILINE)
    for file in sorted((ROOT / "pyro_vae").rglob("*.py")):
        assert broken.findall(file.read_text(encoding="utf-8")) == [], file


def test_every_public_name_is_documented() -> None:
    """Names at the root stand under their shortest path, and every name has a sentence."""
    names = {name.path: name for name in public_names.public_names()}
    modules = {name for name in pv.__all__ if isinstance(getattr(pv, name), ModuleType)}
    assert {f"pyro_vae.{name}" for name in set(pv.__all__) - modules} <= set(names)
    assert modules <= set(public_names.PAGES)
    assert [path for path, name in names.items() if not name.sentence] == []
    assert {name.page for name in names.values()} == set(public_names.PAGES)


def test_llms_txt_names_everything() -> None:
    """Whoever writes with a language model finds every public name, and usage that is run."""
    text = llms.llms_text()
    assert text.startswith("# pyro_vae")
    assert "pv.Guide(model, pv.Encoder(" in text
    assert [name.short for name in public_names.public_names() if name.short not in text] == []


def test_every_plot_is_in_the_gallery() -> None:
    """With its question, its picture and the few lines that draw it."""
    plots = {name for name in dir(pv.plots) if name.startswith("plot_")}
    assert {picture.stem for picture in (ROOT / "docs/figures/plots").iterdir()} == plots
    section = re.compile(
        r"^### (\w+)\n\n\*\*.+\?\*\* \{pv\}`plots\.\1` draws? .+\n\n"
        r"!\[\1\]\(figures/plots/\1\.png\)\n\n"
        r"```\{literalinclude\} \.\./examples/every_plot\.py\n.*\n"
        r":lines: (\d+)-(\d+)\n:dedent:\n```$",
        re.MULTILINE,
    )
    shown = section.findall(generated.gallery())
    assert sorted(name for name, _, _ in shown) == sorted(plots)
    script = (ROOT / "examples/every_plot.py").read_text(encoding="utf-8").splitlines()
    for name, first, last in shown:
        before, *code = script[int(first) - 2 : int(last)]
        assert before.endswith('?"""'), name
        assert 1 <= len(code) <= 10, name
        assert f"pv.plots.{name}(" in "".join(code) or ".plot(" in code[-1], name
        assert not "".join(script[int(last) : int(last) + 2]), name


def test_the_pictures_of_plots_are_small() -> None:
    """Thirty of them are on one page."""
    files = (ROOT / "docs/figures/plots").glob("*.png")
    assert not {file.name: file.stat().st_size for file in files if file.stat().st_size > 60_000}


def unknown_names(text: str) -> list[str]:
    """Names after `pv.` in a page, and of the role `{pv}`, that are not there."""
    names = re.findall(r"\bpv\.((?:\w+\.)*\w+)|\{pv\}`([\w.]+)", text)
    return [
        name
        for name in {code or role for code, role in names}
        if public_names.resolve(f"pyro_vae.{name}", pv) is None
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_name_what_is_there(page: Path) -> None:
    """What a page calls `pv.something` exists, also where the page is not run by the fast tests."""
    assert unknown_names(page.read_text(encoding="utf-8")) == []


def test_unknown_names_are_found() -> None:
    """A name that is not there is seen in code and in a role, and one that is passes."""
    assert unknown_names("pv.Guide, {pv}`stats.tail_error`, pv.models.VAE") == []
    assert sorted(unknown_names("pv.Gide(x), {pv}`stats.nothing`")) == ["Gide", "stats.nothing"]


def test_the_lowest_versions_on_a_page_are_those_promised() -> None:
    """The table of the page on installation, and pyproject.toml, which pip reads."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = {"none": project["dependencies"], **project["optional-dependencies"]}
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `?(\w+)`? \| (.*?) \|", page, re.MULTILINE))
    for extra in ("none", "plot", "data", "netcdf", "onnx"):
        found = {f"{name}>={low}" for name, low in re.findall(r"([\w-]+) (\d[\d.]*)", rows[extra])}
        assert found
        assert found <= set(promised[extra])
        assert extra == "none" or found == set(promised[extra])


def test_help_fits_a_screen() -> None:
    """What `help(pv)` shows first: 40 lines, whose names are there."""
    text = pv.__doc__ or ""
    lines = pydoc.plain(pydoc.render_doc(pv)).splitlines()
    shown = lines[: lines.index("PACKAGE CONTENTS")]
    assert len(shown) <= 40
    assert max(map(len, text.splitlines())) <= 100
    assert unknown_names(text) == []
    table = text.split("lists all names.")[1].replace("...", "")
    assert [n for n in re.findall(r"(?<= )[\w]+(?=,)", table) if not hasattr(pv, n)] == []


def test_dir_lists_every_public_module() -> None:
    """`help(pv)` says that `dir(pv)` lists all names: also the modules that the reference shows."""
    assert set(public_names.PAGES) <= set(dir(pv))


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT])
def test_links_of_a_repository_page_are_there(page: Path) -> None:
    """Those inside the repository; what Sphinx reads it checks itself."""
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_page_of_a_package_index_has_nothing_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture and no link that leads nowhere there, and the line that installs the package."""
    for name in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    hook = SimpleNamespace(MetadataHookInterface=object)  # which only a release needs
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", hook)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    page = extension("package_page").page(text)
    assert "](" in text
    assert not re.findall(r"\]\((?!https?:)|<img|for the repository", page)
    assert "pip install 'pyro-vae[all]'" in page
    assert "Licence" in page


@pytest.mark.parametrize("package", ["evidence", "guides", "inference_data", "storage"])
def test_a_package_shows_no_plumbing(package: str) -> None:
    """Its functions are those that pages, examples or the root name.

    What only other packages of the library call is imported from the file that defines it.
    """
    texts = [page.read_text(encoding="utf-8") for page in [*PAGES, *ROOT.glob("examples/*.py")]]
    named = set(re.findall(r"\w+", " ".join(texts))) | set(pv.__all__)
    home = public_names.module(package)
    shown = [name for name in public_names._listed(home) if isroutine(getattr(home, name))]
    assert set(shown) - named <= {"read_about"}  # which reads the notes that `save` keeps


def test_names_stay_whole_on_phones() -> None:
    """No rule of the pages' style lets `pv.LocalParameters` in a table break inside a word."""
    style = (ROOT / "docs" / "static" / "site.css").read_text(encoding="utf-8")
    assert not re.findall(r"overflow-wrap: (?:anywhere|break-word)|word-break: break", style)
