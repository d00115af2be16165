"""Imports inside the package point one way, by a table; what is heavy waits; files are short."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "pyro_vae").rglob("*.py"))

# A module imports only from rows above its own. A name stands for a file or a folder; inside one
# folder no imports go in a circle. `__version__` is all that may be had from the root.
LAYERS = (
    ("formatting", "__version__"),
    ("_annotations", "_warnings", "_notebooks"),
    ("_types", "_arguments", "registry", "randomness", "progress", "writing"),
    ("stats", "data"),
    ("plots",),
    ("results",),
    ("programs",),
    ("compiling",),
    ("nets",),
    ("likelihoods",),
    ("guides", "models"),
    ("linear_start",),
    ("objectives", "evidence"),
    ("defaults",),
    ("distributed",),
    ("training",),
    ("gaps", "diagnostics", "criticism"),
    ("queries",),
    ("exporting", "inference_data", "report", "storage"),
    ("table_report",),
    ("comparisons", "tables"),
    ("sklearn",),
    ("cli",),
    ("__main__",),
)
DEPTH = {name: depth for depth, row in enumerate(LAYERS) for name in row}

# Seconds to import, or optional: these are imported inside the functions that use them.
HEAVY = {
    *("arviz", "h5netcdf", "h5py", "matplotlib", "pandas", "polars", "pyarrow", "scipy", "sklearn"),
}
NAME = re.compile(r"\w+")
LAZY = ROOT / "pyro_vae" / "sklearn.py"  # imported by nobody until `pv.sklearn` is asked for


def layer(file: Path) -> str:
    """`pyro_vae/stats.py` and `pyro_vae/stats/tail.py` are both `stats`."""
    return file.relative_to(ROOT / "pyro_vae").with_suffix("").parts[0]


def package_of(file: Path) -> str:
    """The package that relative imports of a file start from: `pyro_vae.guides` for its files."""
    return ".".join(file.relative_to(ROOT).parent.parts)


def imports(nodes: Iterable[ast.AST], file: Path) -> list[str]:
    """Full names that the import statements among the nodes of a file may load."""
    package = package_of(file)
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            found += [f"{source}.{alias.name}" for alias in node.names]
    return found


def upward_imports(file: Path, source: str) -> list[str]:
    """Layers that `source`, the text of `file`, imports and may not."""
    paths = [name.split(".") for name in imports(ast.walk(ast.parse(source)), file)]
    names = [path[:2][-1] for path in paths if path[0] == "pyro_vae"]
    own = layer(file)
    return [name for name in names if name != own and DEPTH.get(name, len(LAYERS)) >= DEPTH[own]]


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Walks what runs at some time: not what is for type checkers."""
    yield node
    if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        for child in ast.iter_child_nodes(node):
            yield from at_run_time(child)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Walks what runs when a module is imported: not functions, nor what is for type checkers."""
    yield node
    for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    if not for_types and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in ast.iter_child_nodes(node):
            yield from at_import(child)


def heavy_imports(file: Path, source: str) -> list[str]:
    """Libraries of :data:`HEAVY` that `source` loads as soon as it is imported."""
    names = imports(at_import(ast.parse(source)), file)
    return [name for name in names if name.split(".")[0] in HEAVY]


def siblings(file: Path, source: str) -> set[str]:
    """Modules of the same folder that `source`, the text of `file`, imports at some time."""
    package = package_of(file) + "."
    names = imports(at_run_time(ast.parse(source)), file)
    found = {name.removeprefix(package).split(".")[0] for name in names if name.startswith(package)}
    return {name for name in found if (file.parent / f"{name}.py").exists()}


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import themselves by way of others."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[name])
        while todo:
            other = todo.pop()
            if other not in seen:
                seen.add(other)
                todo += graph.get(other, ())
        return seen

    return sorted(name for name in graph if name in reached(name))


def test_imports_point_up() -> None:
    """Every module has a row, and imports from rows above it; in one folder none in a circle.

    The root imports them all.
    """
    root, wrong = ROOT / "pyro_vae" / "__init__.py", {}
    folders: dict[Path, dict[str, set[str]]] = {}
    for file in FILES:
        source = file.read_text()
        folders.setdefault(file.parent, {})[file.stem] = siblings(file, source)
        if file != root:
            assert layer(file) in DEPTH, f"{file.name} has no row in LAYERS: give it one"
            wrong[str(file.relative_to(ROOT))] = upward_imports(file, source)
    upward = {name: imported for name, imported in wrong.items() if imported}
    assert not upward, f"these import what is not in a row above them: {upward}"
    circles = {str(folder): cycles(graph) for folder, graph in folders.items() if cycles(graph)}
    assert not circles, f"these import each other in a circle: {circles}"


def test_modules_of_tests() -> None:
    """No test module imports another: what two of them need is in `tests/helpers` or the corpus."""
    borrowed = {
        f"{file.name}: {name}"
        for file in sorted((ROOT / "tests").glob("test_*.py"))
        for name in imports(ast.walk(ast.parse(file.read_text())), file)
        if name.startswith("tests.test_")
    }
    assert not borrowed, f"move what these share into tests/helpers: {sorted(borrowed)}"


def test_heavy_imports_wait() -> None:
    """`import pyro_vae` loads torch and Pyro, and no library that only some functions need."""
    found = {str(f.relative_to(ROOT)): heavy_imports(f, f.read_text()) for f in FILES if f != LAZY}
    heavy = {name: libraries for name, libraries in found.items() if libraries}
    assert not heavy, f"move these into the functions that use them: {heavy}"


def test_circles_are_caught() -> None:
    """A circle of two or three, and none in a chain."""
    chain = {"a": {"b", "c"}, "b": {"c"}, "c": set[str]()}
    assert cycles(chain) == []
    assert cycles({**chain, "c": {"a"}}) == ["a", "b", "c"]
    file = ROOT / "pyro_vae" / "guides" / "__init__.py"
    assert siblings(file, "from .maps import Encoder\nfrom . import families") == {
        "maps", "families",
    }  # fmt: skip
    assert siblings(file, "from ..stats import total\nimport torch") == set()


@pytest.mark.parametrize(
    ("file", "source", "caught"),
    [
        ("guides.py", "from .evidence import Quadrature", ["evidence"]),
        ("guides.py", "from . import evidence, stats", ["evidence"]),
        ("guides.py", "from .models import VAE", ["models"]),  # the same row
        ("guides.py", "from . import Guide", ["Guide"]),  # the root imports every row
        ("guides.py", "def f():\n    from pyro_vae.training import fit", ["training"]),
        ("guides.py", "import pyro_vae.comparisons", ["comparisons"]),
        ("guides.py", "import pyro_vae", ["pyro_vae"]),
        ("guides/maps.py", "from ..evidence import Quadrature", ["evidence"]),
        ("guides/maps.py", "from .. import evidence", ["evidence"]),
        ("guides/maps.py", "from .families import DiagonalNormal", []),
        ("guides/__init__.py", "from . import families", []),
        ("guides/maps.py", "from ..stats import ess\nfrom .._types import Estimate", []),
        ("guides.py", "from .stats import ess\nimport torch\nfrom torch import nn", []),
        ("cli/__init__.py", "from .. import __version__\nfrom ..comparisons import compare", []),
    ],
)
def test_upward_imports_are_caught(file: str, source: str, caught: list[str]) -> None:
    """Every spelling of an import from the wrong row is found, and no right one is."""
    assert upward_imports(ROOT / "pyro_vae" / file, source) == caught


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import matplotlib.pyplot as plt", ["matplotlib.pyplot"]),
        ("try:\n    from sklearn import datasets\nexcept ImportError: pass", ["sklearn.datasets"]),
        ("class A:\n    import arviz", ["arviz"]),
        ("def plot():\n    import matplotlib.pyplot as plt", []),
        ("if TYPE_CHECKING:\n    from matplotlib.axes import Axes", []),
        ("if True:\n    from matplotlib.axes import Axes", ["matplotlib.axes.Axes"]),
        ("class A:\n    def plot(self):\n        import arviz", []),
    ],
)
def test_heavy_imports_are_caught(source: str, caught: list[str]) -> None:
    """An import counts where it runs with the module, and not inside a function."""
    assert heavy_imports(ROOT / "pyro_vae" / "plots.py", source) == caught


def test_what_draws_waits() -> None:
    """A fresh import loads neither figures nor reports; all that the root names is there."""
    script = (
        "import sys, pyro_vae as pv\n"
        "ours = {n[9:] for n in sys.modules if n.startswith('pyro_vae.')}\n"
        "early = {'plots', 'report', 'queries', 'sklearn'} & ours\n"
        "assert not early, early\n"
        "assert all(hasattr(pv, name) for name in dir(pv) if name != 'sklearn')\n"
        "assert not hasattr(pv, 'no_such_name')\n"
        "from pyro_vae import encode, plots"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_large_packages_wait() -> None:
    """A fresh import brings no large package that torch and Pyro have not brought; SymPy did."""
    large = {"arviz", "matplotlib", "pandas", "scipy", "sklearn", "sympy", "torch._inductor"}
    script = (
        "import sys, torch, pyro\n"
        f"waiting = {large} - set(sys.modules)\n"
        "import pyro_vae\n"
        "assert not waiting & set(sys.modules), waiting & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def shadowed(init: Path) -> list[str]:
    """Names that an `__init__` imports from its modules and that are names of modules there."""
    modules = {path.stem for path in init.parent.iterdir()} - {"__init__"}
    nodes = ast.walk(ast.parse(init.read_text()))
    imported = [
        a.name for n in nodes if isinstance(n, ast.ImportFrom) and n.module for a in n.names
    ]
    return sorted(modules.intersection(imported))


PACKAGES = [file for file in FILES if file.name == "__init__.py"]


@pytest.mark.parametrize("init", PACKAGES, ids=layer)
def test_no_function_shadows_a_module(init: Path) -> None:
    """`pyro_vae.gaps.x` is a module or what a module defines: which one depends on no import."""
    assert not shadowed(init)


def test_the_root_shows_public_names_only() -> None:
    """What completion offers: no module or helper of the root's own making."""
    import pyro_vae as pv

    assert set(dir(pv)) == {*pv.__all__, "sklearn", "__version__"}
    assert not {"import_module", "TYPE_CHECKING", "annotations"} & set(dir(pv))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("get_trace", "programs/traces.py"),  # plates, parameters and densities are treated alike
        ("make_fx", "compiling/capturing.py"),  # what is captured is checked in one way
        ("compile_fx", "compiling/capturing.py"),
        ("manual_seed", "randomness.py"),  # what is drawn has a stream with a name
    ],
)
def test_one_module_calls(name: str, place: str) -> None:
    """Programs are run in one place, captured and compiled in one, and streams seeded in one."""
    found = {file for file in FILES if name in calls(file.read_text())}
    assert found == {ROOT / "pyro_vae" / place}


def copied_loops(source: str) -> list[str]:
    """Loops that cut several tensors into pieces of rows, or join tensors one by one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and re.match(r"zip\(\*\(?[^()]+\.split", ast.unparse(node)):
            found.append("cuts")
        if isinstance(node, ast.GeneratorExp | ast.ListComp):
            joins = re.match(r"torch\.cat\(\w+\W", ast.unparse(node.elt))
            if joins and ast.unparse(node.generators[0].iter).startswith("zip(*"):
                found.append("joins")
    return found


def test_batches_are_cut_and_joined_in_one_place() -> None:
    """`in_pieces` cuts the rows of a batch, and `join` joins what was found for each piece."""
    found = {file: copied_loops(file.read_text()) for file in FILES}
    assert {file for file, loops in found.items() if loops} == {
        ROOT / "pyro_vae" / "programs" / "pieces.py"
    }, {file.name: loops for file, loops in found.items() if loops}


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("for a, b in zip(*(part.split(3) for part in batch), strict=True): pass", ["cuts"]),
        ("a, b = (torch.cat(part) for part in zip(*found, strict=True))", ["joins"]),
        ("[torch.cat(part, dim=1).double() for part in zip(*found)]", ["joins"]),
        ("torch.cat([part.z for part in parts]), z.split(3), zip(*pairs)", []),
        ("[torch.cat([one.flatten() for one in part]) for part in zip(*found)]", []),
    ],
)
def test_copied_loops_are_caught(source: str, caught: list[str]) -> None:
    """Whatever is done with the pieces; a single tensor may be cut and joined anywhere."""
    assert copied_loops(source) == caught


def test_one_function_words_what_is_missing() -> None:
    """A package that is not installed is named with its extra, which `_types.py` alone knows."""
    found = {file for file in FILES if "raise ImportError" in file.read_text()}
    assert found == {ROOT / "pyro_vae" / "_types.py"}


def test_compiling_asks_no_clock() -> None:
    """Whether something is compiled is decided by counts, which are the same on a busy machine."""
    files = [file for file in FILES if layer(file) == "compiling"]
    assert len(files) > 1
    found = {file.name: clocks(file, file.read_text()) for file in files}
    assert not any(found.values()), found


@cache
def calls(source: str) -> set[str]:
    """Names of the functions and methods that a source calls."""
    functions = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {
        function.attr if isinstance(function, ast.Attribute) else function.id
        for function in functions
        if isinstance(function, ast.Attribute | ast.Name)
    }


def clocks(file: Path, source: str) -> list[str]:
    """Modules that tell the time, of those that `source`, the text of `file`, imports."""
    names = imports(ast.walk(ast.parse(source)), file)
    return [name for name in names if name.split(".")[0] in ("time", "timeit", "datetime")]


def test_calls_and_clocks_are_caught() -> None:
    """Of functions and methods, wherever the import stands; a word in a text is none."""
    assert calls("make_fx(f)(x)\nfx.compile_fx(g)\n'get_trace(y)'") == {"make_fx", "compile_fx"}
    file = ROOT / "pyro_vae" / "compiling" / "graphs.py"
    source = "def f():\n    from time import perf_counter\nimport timeit\nfrom .time import x"
    assert clocks(file, source) == ["timeit", "time.perf_counter"]


def classes(source: str) -> set[str]:
    """Public classes that a source defines, except protocols, which say what an object can do."""
    made = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    return {
        node.name
        for node in made
        if not node.name.startswith("_") and "Protocol" not in map(ast.unparse, node.bases)
    }


# Guides, and what they are made of: maps, families, posteriors.
KINDS_OF_GUIDE = {"AutoGuide", "AutoNormal", "AutoDiagonalNormal"}.union(
    *(classes(file.read_text()) for file in FILES if layer(file) == "guides")
)

# Questions that are about an object of the caller's own, each with its reason.
LEFT = {
    "comparisons/running.py": {
        "isinstance(pair[0], InferenceMap)",  # a candidate is a guide, or a map to make one from
    },
    "evidence/fitted.py": {
        "isinstance(posterior, FamilyPosterior)",  # a fit starts from q if q is in the family
        "isinstance(family, TrainableFamily)",  # the nets of a family may not have been made yet
    },
    "evidence/proposals.py": {
        "isinstance(self.base, FamilyPosterior)",  # the mean of other posteriors may be random
    },
    "exporting.py": {
        "is_made_of_map(guide)",  # what is exported are a map's parameters and a family's mean
    },
    "gaps.py": {
        "isinstance(posterior, FamilyPosterior)",  # q* is of the guide's family, if it has one
    },
    "storage/cards.py": {
        "is_made_of_map(guide)",  # a card names the map and the family
    },
    "storage/parts.py": {
        "is_made_of_map(program)",  # what can be recorded are a map and families
        "isinstance(program.family, TrainableFamily)",  # only such a family has tensors
        "isinstance(part, LocalParameters)",  # its digests have a shape that the file decides
    },
}


def questions_of_origin(source: str) -> set[str]:
    """Places that ask of which kind a guide or a part of it is: by its class, or by what it has."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        function = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and function in ("isinstance", "issubclass"):
            asked: list[ast.AST] = [node.args[1]]
        elif isinstance(node, ast.Call) and function in ("getattr", "hasattr"):
            asked = [ast.Name("Guide")] if "guide" in ast.unparse(node.args[0]) else []
        elif function == "is_made_of_map":
            asked = [ast.Name("Guide")]
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            asked = list(node.comparators)
        elif isinstance(node, ast.MatchClass):
            asked = [node.cls]
        else:
            continue
        names = {name for part in asked for name in NAME.findall(ast.unparse(part))}
        if names & KINDS_OF_GUIDE:
            found.add(ast.unparse(node))
    return found


ABOVE_GUIDES = [file for file in FILES if DEPTH.get(layer(file), 99) > DEPTH["guides"]]


@pytest.mark.parametrize("file", ABOVE_GUIDES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_nothing_above_guides_asks_what_a_guide_is(file: Path) -> None:
    """Who does has one answer for a `Guide` and another for a program, which drift apart."""
    name = file.relative_to(ROOT / "pyro_vae").as_posix()
    assert questions_of_origin(file.read_text()) == LEFT.get(name, set())


def test_questions_of_origin_are_found() -> None:
    """The wrong twin."""
    for source in (
        "isinstance(guide, Guide)",
        "isinstance(guide, nn.Module | guides.Guide)",
        "type(guide) is not Guide",
        "getattr(self.guide, 'map', None)",
        "match guide:\n    case AutoNormal(): pass",
        "is_made_of_map(guide)",
        "isinstance(q, FamilyPosterior | Keyed)",
        "type(guide.map) is LocalParameters",
    ):
        assert len(questions_of_origin(source)) == 1, source
    assert not questions_of_origin("isinstance(x, StartFromGuide); Guide(model, map)")
    assert not questions_of_origin("isinstance(q, Conditional); isinstance(family, OwnMean)")


MOST_LINES = 600  # of a file
MOST_CODE = 40  # lines in the body of a function, without blank lines, comments and docstrings


def long_functions(source: str) -> list[str]:
    """Names of the functions in `source` whose bodies have more than `MOST_CODE` lines of code."""
    written = source.splitlines()
    found = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            has_docstring = ast.get_docstring(function) is not None
            body = function.body[has_docstring:] or function.body
            lines = written[body[0].lineno - 1 : body[-1].end_lineno]
            code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
            if len(code) > MOST_CODE:
                found.append(function.name)
    return found


def test_files_and_functions_are_short() -> None:
    """A reader can hold a function in mind, and a file has one subject."""
    sources = {file: file.read_text() for file in [*FILES, *(ROOT / "tests").rglob("*.py")]}
    long_files = [
        file.name for file, text in sources.items() if len(text.splitlines()) > MOST_LINES
    ]
    assert not long_files
    assert not [name for file in FILES for name in long_functions(sources[file])]


def test_long_functions_are_caught() -> None:
    """Lines of code count; comments, blank lines and the docstring do not."""
    line, comment = "    x = 1\n", "\n    # why\n"
    head = 'def f():\n    """Says."""\n'
    assert long_functions(head + line * MOST_CODE + comment * 9) == []
    assert long_functions(head + line * (MOST_CODE + 1)) == ["f"]
