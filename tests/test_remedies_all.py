"""Every refusal of guides/ and programs/ is one whose remedy a test follows.

What a table of remedies refuses is called, and the line that raised it noted; the other lines stand
below with the test that follows them.
"""

import ast
import importlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest

import pyro_vae as pv
from tests.helpers.remedies import Y

PACKAGE = Path(pv.__file__).parent
# Words of a refusal, and the test that follows it, or why there is nothing to follow.
ELSEWHERE = {
    "every latent site of the model, but this": "test_guides_tied: an automatic guide of a part",
    "change the last layer to": "test_remedies: an encoder",
    "remove from this object the part": "test_compare_copies: a method __deepcopy__",
    "none of which has this size": "test_programs_refused: a plate that is opened in each call",
    "must be the name of a plate": "test_programs_refused: the plate named",
    "pass a few rows of data": "test_remedies: global sites and examples",
    "no latent is left to draw or fit": "test_remedies: discrete latents",
    "TraceEnum_ELBO needs a program": "test_remedies: enumeration by Pyro",
    "create the model and the guide outside the block of": "test_training: of inference mode",
    "and may never end": "test_remedies_programs: a loop without an end",
    "sum over discrete sites must leave": "internal",
    "a folder that torch can create": "test_training_failures: another folder",
    "would depend on the datum's position": "test_guides_tied: a table of a model",
    "as many as the data set, but the batch has": "test_guides_tied: the plate named",
    "must not be a loop in this minibatch": "test_guides_tied: a plate in its place",
    "cannot be converted to plain numbers": "test_own_loops: a tensor in their place",
    "which may be in the order of either": "test_guides_tied: data in their order",
    "every row of the data set needs an entry": "test_own_loops, test_guides_tied: named",
    "self._refusal": "test_own_loops: three remedies",
    "sample the same sites for all data": "test_programs_refused: the longest series",
    "sample every site for every datum and every draw": "test_programs_refused: the longest series",
    "call the network once": "test_programs_refused: a lazy net",
    "make a new tensor, as in": "test_programs_refused: data changed in place",
    "so that it computes no nan": "test_programs_refused: data relative to others",
    "a distribution whose support contains them": "test_programs_refused: data off the support",
    "from a normal on the whole real line": "test_edges: angles under a pv.Guide",
    "{SAME_VALUES}": "test_enumeration: the same categories for every datum",
    "is not a product over features": "test_leave_one_out: predictive_check and marginal",
    "_UNLIKE.format": "test_training_programs: a guide in other plates",
}


def raised_at(call: Callable[[], Any]) -> tuple[str, int] | None:
    """File and line of the package that a refused call ended in."""
    pyro.clear_param_store()
    try:
        call()
    except Exception as error:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if Path(frame.filename).is_relative_to(PACKAGE):
                return str(Path(frame.filename).relative_to(PACKAGE)), frame.lineno or 0
    finally:
        pyro.clear_param_store()
    return None


def refused() -> Iterator[Callable[[], Any]]:
    """Calls that the tables say are refused."""
    for remedy in table("test_remedies"):
        yield lambda: pv.elbo(remedy.model, remedy.guide, Y, 5)  # noqa: B023 (called at once)
    for name in ("families", "guides", "programs", "training"):
        yield from (remedy.refused for remedy in table(f"test_remedies_{name}"))


def table(name: str) -> list[Any]:
    """The rows of a module of tests: nothing is shared with it, its rows are what is looked at."""
    return list(importlib.import_module(f"tests.{name}").REMEDIES.values())


def raises() -> Iterator[tuple[str, ast.Raise]]:
    """Statements of guides/ and programs/ that raise something of their own."""
    for folder in ("guides", "programs"):
        for file in sorted((PACKAGE / folder).glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    yield f"{folder}/{file.name}", node


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_refusal_has_a_followed_remedy() -> None:
    """By a row of a table, or by the test named here; no name here is of another time."""
    called = {raised_at(call) for call in refused()}
    statements = list(raises())
    assert len(statements) > 100
    left, used = [], set()
    for file, node in statements:
        lines = {(file, line) for line in range(node.lineno, (node.end_lineno or 0) + 1)}
        if lines & called:
            continue
        words = "".join(ast.unparse(node).split("\n")).replace("\\'", "'")
        found = [key for key in ELSEWHERE if key in words]
        used.update(found)
        if not found:
            left.append(f"{file}:{node.lineno}: {words[:100]}")
    assert not left, "\n".join(left)
    assert set(ELSEWHERE) == used
