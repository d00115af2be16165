"""One word for one thing in every public signature, and every argument is documented."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pyro_vae as pv

# What else the same things are called in the field; here each has one word.
OTHER_WORDS = {
    "num_samples": {
        "n_samples",
        "samples",
        "num_draws",
        "draws_per_datum",
        "num_importance_samples",
    },
    "num_particles": {"particles", "num_points"},
    "latent_dim": {"num_latent", "z_dim", "latent_size"},
    "data": {"dataset", "observations", "x"},
    "estimator": {"evaluation", "method"},
    "fitting": {"fit_rows", "row_fitting"},
    "seed": {"random_seed", "rng"},
    "progress": {"verbose", "progress_bar", "show_progress"},
}
# Words that the library once made up, for which the field has its own.
INVENTED = set(
    [
        "climb",
        "climbed",
        "climber",
        "climbing",
        "sloped",
        "pushed",
        "prepared",
        "despite_nan",
        "in_turn",
        "recipes",
    ]
)
# Where another word is meant, or the one word has not come yet.
EXCEPTIONS = {("compare", "evaluation"), ("TableVAE", "dataset")}
# The engine's own parts, which have a sentence each, and results whose fields are told one by one.
UNDOCUMENTED = re.compile(
    r"(guides|programs)\..*|evaluate|data\.(Binary|Categories|Ordered|Split|Table|chunks)"
    r"|diagnostics\.(Curve|Latents|Use|log_joint|log_likelihood)|gaps\.(Generalization|Parts)"
    r"|models\.(Generative|Isotropic)|results\.Mean(OverData)?|storage\.Loaded"
    r"|objectives\.Objective|queries\.(Correlation|Tail)"
)
# What users call of these is at the root, or has the signatures of scikit-learn.
SKIPPED = ("defaults", "evidence", "registry", "sklearn", "stats")


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """What the package and its modules list as public: functions, and classes by constructor.

    What the root lists has the root's name alone.
    """
    root = [getattr(pv, name) for name in pv.__all__]
    modules = [pv, *(getattr(pv, name) for name in dir(pv) if name not in SKIPPED)]
    for module in modules:
        if not isinstance(module, ModuleType):
            continue
        listed = hasattr(module, "__all__")
        for name in module.__all__ if listed else dir(module):
            value = getattr(module, name)
            home = "pyro_vae" if listed else module.__name__  # what it only uses is not its own
            own = str(getattr(value, "__module__", "")).startswith(home)
            again = module is not pv and any(value is other for other in root)
            plain = callable(value) and not (isinstance(value, type) and issubclass(value, Enum))
            if own and plain and not again and not name.startswith("_"):
                yield f"{module.__name__}.{name}".removeprefix("pyro_vae."), value


PUBLIC = {name: value for name, value in public()}


def parameters(value: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Arguments by name, without those of a metaclass."""
    found = dict(inspect.signature(value).parameters)
    return {name: p for name, p in found.items() if name not in ("args", "kwargs", "self")}


def told(value: Callable[..., Any]) -> set[str] | None:
    """Names in the docstring's Arguments; None where there is no such section."""
    text = (inspect.getdoc(value) or "") + "\n"
    block = re.search(r"\n( *)Arguments:\n((?:\1    .*\n|\s*\n)+)", text)
    if block is None:
        return None
    lines = re.findall(rf"^{block[1]}    (\*{{0,2}}\w+(?:, \w+)*):", block[2], flags=re.MULTILINE)
    return {name.strip("* ") for line in lines for name in line.split(",")}


def told_with_bases(value: Callable[..., Any]) -> set[str] | None:
    """The same, and for a result what the result that it extends says of its own arguments."""
    own = told(value)
    if own is None or not dataclasses.is_dataclass(value):
        return own
    return own.union(*(told(base) or () for base in value.__mro__[1:-1]))


def test_the_order_is_model_guide_data() -> None:
    """Whichever of the three a function takes, they come in this order, and first."""
    for name, value in PUBLIC.items():
        first = [word for word in parameters(value) if word in ("model", "guide", "data")]
        assert first == [word for word in ("model", "guide", "data") if word in first], name


def other_words(names: Iterable[str]) -> set[str]:
    """Names that stand for something that has another word."""
    return set(names) & set().union(*OTHER_WORDS.values())


def test_one_word_for_one_thing() -> None:
    """No argument has another word for what has one; the exceptions are those that there are."""
    found = {
        (name, word) for name, value in PUBLIC.items() for word in other_words(parameters(value))
    }
    assert found == EXCEPTIONS
    assert other_words(["model", "n_samples"]) == {"n_samples"}  # the wrong twin


def test_particles_are_for_objectives() -> None:
    """Draws per datum are `num_samples` everywhere else in what a user calls at the root."""
    for name in pv.__all__:
        value = PUBLIC.get(name)
        if inspect.isfunction(value):
            assert "num_particles" not in parameters(value), name


@pytest.mark.parametrize(("word", "default"), [("seed", 0), ("progress", None)])
def test_defaults_are_the_same_everywhere(word: str, default: Any) -> None:
    """The same word has the same default in every function."""
    for name, value in PUBLIC.items():
        argument = parameters(value).get(word)
        if inspect.isfunction(value) and argument and argument.default is not argument.empty:
            assert argument.default == default, name


def test_every_argument_is_told_of() -> None:
    """The docstring's Arguments has each argument, and nothing that is none."""
    for name, value in PUBLIC.items():
        if UNDOCUMENTED.fullmatch(name) or not parameters(value):
            continue
        if inspect.isclass(value) and getattr(value, "_is_protocol", False):
            continue
        assert told_with_bases(value) == set(parameters(value)), name


def test_a_missing_argument_is_seen() -> None:
    """The wrong twin: one argument too few, and one that is none."""

    def function(one: int, two: int) -> None: ...

    function.__doc__ = (
        "Does nothing.\n\n    Arguments:\n        one: A number.\n        three: One.\n"
    )
    assert told(function) == {"one", "three"} != set(parameters(function))


def invented(source: str) -> list[str]:
    """Functions and classes of a source that have a word of :data:`INVENTED` as their name."""
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, defined)]
    return [name for name in names if name.strip("_").lower() in INVENTED]


def test_no_name_is_an_invented_word() -> None:
    """Not even a private one; and such a name is seen, of a function or of a class."""
    files = Path(pv.__path__[0]).rglob("*.py")
    found = {file.name: invented(file.read_text(encoding="utf-8")) for file in files}
    assert len(found) > 100
    assert not {file: names for file, names in found.items() if names}
    assert invented("class _Climb:\n    def prepared(self): ...\ndef f(): ...") == [
        "_Climb",
        "prepared",
    ]
