"""The public names of pyro_vae, where each is documented, and what docstrings refer to.

The reference, `llms.txt` and the tests use this module. A name is public if a public module lists
it in `__all__`. In a module without `__all__`, names are public if they have no underscore and do
not come from another library. A public name is documented once, under its shortest path.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from importlib import import_module
from inspect import (
    cleandoc,
    getattr_static,
    getdoc,
    isclass,
    ismodule,
    isroutine,
    signature,
    unwrap,
)
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = "pyro_vae"

PAGES = {
    "training": "Training",
    "guides": "Guides, inference maps and families",
    "objectives": "Objectives",
    "models": "Models and priors",
    "likelihoods": "Likelihoods",
    "nets": "Networks",
    "evidence": "Marginal likelihoods and bounds",
    "gaps": "Inference gaps",
    "comparisons": "Comparing guides",
    "diagnostics": "Diagnostics",
    "criticism": "Comparing models",
    "queries": "Questions to a fitted model",
    "results": "What every result can do",
    "data": "Data",
    "tables": "A table in, answers out",
    "defaults": "Defaults",
    "sklearn": "scikit-learn",
    "inference_data": "ArviZ",
    "storage": "Saving and loading",
    "distributed": "Several processes",
    "plots": "Figures",
    "stats": "Statistics of weights",
    "programs": "Programs",
    "registry": "What can be saved",
}
"""A page for each public module, in this order."""

CALLED_BY_THE_LIBRARY = {
    "Adaptive": "places",
    "AnnealedImportanceSampling": "works result_of",
    "Augmented": "change",
    "Column": "warn_of_units restored",
    "ColumnInputs": "numbers width inputs",
    "Combinations": "beside repeated only to",
    "Copies": "of of_program",
    "Correlation": "label",
    "DReG": "particles",
    "Evaluation": "shifted",
    "FamilyPosterior": "is_keyed draw_keyed",
    "Fit": "promise",
    "FitRows": "times",
    "Guide": "prior_parameters",
    "ImportanceSampling": "is_plain sampling",
    "Layout": "emptied",
    "Likelihood": "check_given check_learned fill",
    "Linear": "places",
    "LocalParameters": "start_at fill blank take update",
    "MLflow": "write",
    "Mean": "over",
    "MeanOverData": "over",
    "MutualInformation": "label",
    "ONNX": "require",
    "OnDisk": "read",
    "ParticleFilter": "populations",
    "PartlyObserved": "has_rsample support",
    "ProductOfExperts": "set_experts natural",
    "Program": (
        "moved at_start traced weighed drawing whole enumerated enumerating densities_of "
        "require_latents"
    ),
    "ProgramPosterior": "only is_keyed draw_keyed run",
    "RankCorrelation": "label",
    "Refined": "per_row",
    "Run": "inside outside",
    "SelfContained": "inside parameter_of value_of",
    "Sigmoid": "places",
    "StartFromGuide": "origin path",
    "StartFromPrior": "origin path",
    "TemperedSMC": "populations",
    "TensorBoard": "write",
    "Tightest": "sampled sampled_with_sources",
    "TorchExport": "require",
    "TracedSite": "kept left_out is_known_at_edges is_in",
    "WandB": "write",
}
"""Methods without an underscore, since other modules call them, that are of no use to readers."""

ROLE = re.compile(r":(func|class|meth|attr|mod|data|obj|exc):`(?:[^`<]+<)?([~.\w]+)>?`")


class Name(NamedTuple):
    """A public name.

    Arguments:
        path: The shortest path that a user can write after `import pyro_vae`.
        page: The public module on whose page it is documented.
        object: The object that has this name.
    """

    path: str
    page: str
    object: Any

    @property
    def short(self) -> str:
        """The name as users write it, such as `pv.Guide`."""
        return self.path.replace(ROOT, "pv", 1)

    @property
    def sentence(self) -> str:
        """The first sentence of its docstring."""
        return sentence(self.docstring)

    @property
    def docstring(self) -> str:
        """The docstring of the object; for a constant, the string below its definition."""
        if isclass(self.object) or isroutine(self.object):
            return getdoc(self.object) or ""
        return constants(self.page).get(self.path.rpartition(".")[2], "")


def sentence(docstring: str) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join(docstring.split("\n\n")[0].split())


@cache
def constants(page: str) -> dict[str, str]:
    """Docstrings of the constants of a public module and of the modules inside it."""
    home = f"{ROOT}.{page}"
    files = [
        inner.__file__
        for name, inner in sorted(sys.modules.items())
        if name == home or name.startswith(f"{home}.")
    ]
    found: dict[str, str] = {}
    for file in filter(None, files):
        found |= dict(_constants_in(ast.parse(Path(file).read_text(encoding="utf-8")).body))
    return found


def _constants_in(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, below in pairwise(body):
        match statement, below:
            case (
                ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str() as text)),
            ):
                yield name, cleandoc(text)


def module(name: str) -> ModuleType:
    """A public module by its short name."""
    return import_module(f"{ROOT}.{name}")


def _listed(home: ModuleType) -> list[str]:
    if hasattr(home, "__all__"):
        return [name for name in home.__all__ if not ismodule(getattr(home, name))]
    return [
        name
        for name, value in vars(home).items()
        if not name.startswith("_")
        and not ismodule(value)
        and (
            _defined_in(value).startswith(home.__name__)
            or name in constants(home.__name__.rpartition(".")[2])
        )
    ]


def _defined_in(value: Any) -> str:
    return getattr(value, "__module__", None) or ""


def _page_of(value: Any, found_in: str) -> str:
    """The module that defines a value, if this module has a page; otherwise `found_in`."""
    defined = _defined_in(value).split(".")[1:2]
    return defined[0] if defined and defined[0] in PAGES else found_in


@cache
def public_names() -> tuple[Name, ...]:
    """All public names, each under its shortest path; names at the root come first."""
    root = import_module(ROOT)
    found: dict[tuple[str, object], Name] = {}
    for name in _listed(root):
        value = getattr(root, name)
        found[_key(value, name)] = Name(f"{ROOT}.{name}", _page_of(value, "results"), value)
    for page in PAGES:
        home = module(page)
        for name in _listed(home):
            value = getattr(home, name)
            named = Name(f"{ROOT}.{page}.{name}", _page_of(value, page), value)
            found.setdefault(_key(value, name), named)
    return tuple(found.values())


def _key(value: Any, name: str) -> tuple[str, object]:
    """A key that is equal for two names of the same class or function, or of one constant."""
    unhashable = not (isclass(value) or isroutine(value))
    return (name, "constant") if unhashable else ("", unwrap(value))


@cache
def _paths() -> dict[tuple[str, object], str]:
    return {_key(name.object, name.path.rpartition(".")[2]): name.path for name in public_names()}


def public_path(value: Any, name: str) -> str | None:
    """The path under which an object is documented; None if it is not public."""
    return _paths().get(_key(value, name))


def resolve(target: str, home: ModuleType, owner: type | None = None) -> tuple[str, Any] | None:
    """Resolves a docstring's reference to a path and an object; None if there is no such object.

    A name is looked up in the class that contains the docstring, in its module, and in the packages
    around this module, in this order. The path is the public path, if there is one.
    """
    names = target.lstrip("~.").split(".")
    if names[0] == ROOT:
        return _walk(import_module(ROOT), names[1:])
    if len(names) > 1 and names[0] in sys.modules:  # of another library, which has its own site
        return _walk(sys.modules[names[0]], names[1:])
    around = home.__name__.split(".")
    homes = [import_module(".".join(around[:depth])) for depth in range(len(around), 0, -1)]
    for start in [owner, *homes] if owner else homes:
        found = _walk(start, names)
        if found:
            return found
    return None


def _walk(start: Any, names: list[str]) -> tuple[str, Any] | None:
    value, path = start, _path_of(start, "")
    for name in names:
        if ismodule(value) and not hasattr(value, name) and not _is_module(value, name):
            return None
        if not hasattr(value, name) and name not in getattr(value, "__annotations__", {}):
            return None
        value = getattr(value, name, None)
        path = _path_of(value, name) or f"{path}.{name}"
    return path, value


def _is_module(package: ModuleType, name: str) -> bool:
    try:
        import_module(f"{package.__name__}.{name}")
    except ImportError:
        return False
    return True


def _path_of(value: Any, name: str) -> str:
    return value.__name__ if ismodule(value) else public_path(value, name) or ""


def documented(path: str) -> str | None:
    """The entry that documents a path: its own entry, that of its class, or its module's page."""
    if path in _documented():
        return path
    owner = path.rpartition(".")[0]
    if owner in _documented():  # a field, which its class lists among the arguments
        return owner
    page = ".".join(path.split(".")[:2])
    inner = path.startswith(f"{page}.") and page.rpartition(".")[2] in PAGES
    return (
        page if inner and _is_module(import_module(page), path.removeprefix(f"{page}.")) else None
    )


@cache
def _documented() -> frozenset[str]:
    names = public_names()
    own = {f"{name.path}.{one}" for name in names for one in members(name.object)}
    return frozenset({ROOT, *(f"{ROOT}.{page}" for page in PAGES), *(n.path for n in names), *own})


def members(value: Any) -> list[str]:
    """Methods and properties of a class that the reference shows, if they have a docstring.

    Those of a base class are included if the base is not public and so has no page. Methods that
    only the library calls are left out, and so are methods with the same call in a public base.
    """
    if not isclass(value):
        return []
    found = [name for base in value.__mro__ if _has_no_page(base, value) for name in vars(base)]
    return [
        name
        for name in dict.fromkeys(found)
        if _is_shown(value, name)
        and name not in CALLED_BY_THE_LIBRARY.get(value.__name__, "").split()
    ]


def _has_no_page(base: type, value: type) -> bool:
    return base is value or (_defined_in(base).startswith(ROOT) and public_path(base, "") is None)


def _is_shown(owner: type, name: str) -> bool:
    member = getattr_static(owner, name)
    is_code = isinstance(member, property | staticmethod | classmethod | cached_property)
    if name.startswith("_") or not (is_code or isroutine(member)) or not getdoc(member):
        return False
    return not any(_is_called_alike(base, owner, name) for base in owner.__mro__[1:])


def _is_called_alike(base: type, owner: type, name: str) -> bool:
    """Whether a public base documents the same call; methods of results are always kept."""
    before, now = getattr(base, name, None), getattr(owner, name)
    if not (isroutine(before) and isroutine(now)) or public_path(base, "") is None:
        return False
    return _page_of(base, "") != "results" and list(signature(before).parameters) == list(
        signature(now).parameters
    )


class Reference(NamedTuple):
    """A role in a docstring, such as `:func:`, and its position."""

    role: str
    target: str
    text: str


def references(docstring: str) -> Iterator[Reference]:
    """Finds the references in a docstring."""
    for found in ROLE.finditer(docstring):
        yield Reference(found[1], found[2], found[0])
