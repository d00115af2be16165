"""Programs as Pyro's users write them: every number is right, or the program is refused by name."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.corpus import PROGRAMS
from tests.corpus.case import Case
from tests.corpus.cells import GUIDES, QUESTIONS, ask, attempt, cells
from tests.corpus.known import KNOWN, expected
from tests.trust.cells import GUIDES as TRUST_GUIDES
from tests.trust.programs import PROGRAMS as TRUST_PROGRAMS

ROOT = Path(__file__).parent.parent
NUMBERS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen"),
]
EXAMPLES = len([*(ROOT / "examples").glob("*.py")])
TUTORIALS = len([*(ROOT / "docs" / "learn").glob("*.md")]) - 1  # one is the index

# Where a page states a number of things that are counted here.
COUNTS = (
    ("paper.md", r"corpus of (\w+) programs", len(PROGRAMS)),
    ("paper.md", r"under (\w+) kinds of guides", len(GUIDES)),
    ("README.md", r"(\w+) scripts in \[examples/\]", EXAMPLES),
    ("CHANGELOG.md", r"(\w+) examples have a question", EXAMPLES),
    ("docs/what_runs.in", r"run under (\w+) guides", len(GUIDES)),
    ("docs/what_runs.in", r"guide (\w+) questions are asked", len(QUESTIONS)),
    ("docs/learn/index.md", r"There are (\w+) tutorials", TUTORIALS),
    ("docs/understand/ladder.md", r"uses (\w+) guides", len(TRUST_GUIDES)),
    ("Makefile", r"answers: (\w+) programs, ", len(TRUST_PROGRAMS)),
    ("Makefile", r"answers: \w+ programs, (\w+) guides", len(TRUST_GUIDES)),
)


def check(name: str, guide: str, question: str) -> None:
    """Asserts that a cell is right, or what the table of exceptions says of it."""
    outcome = ask(name, guide, question)
    kinds, reason = expected(name, guide, question)
    assert outcome.kind in kinds, (
        f"{name}, {guide}, {question}: {outcome.kind}, expected {' or '.join(kinds)} ({reason}): "
        f"{outcome.words}; where the library was mended, mend tests/corpus/known.py"
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_cell_of_every_program(name: str) -> None:
    """The ELBO and log p under the author's guide, from the same few draws."""
    check(name, "author", "elbo")


@pytest.mark.parametrize(("page", "words", "count"), COUNTS)
def test_pages_count_right(page: str, words: str, count: int) -> None:
    """What a page says that there is: once, in digits or in words."""
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    (stated,) = re.findall(words, text)
    assert (int(stated) if stated.isdigit() else NUMBERS.index(stated)) == count


@pytest.mark.slow
@pytest.mark.parametrize(("name", "guide", "question"), list(cells(PROGRAMS)))
def test_every_cell(name: str, guide: str, question: str) -> None:
    """All guides, all questions."""
    check(name, guide, question)


def test_a_wrong_truth_is_seen() -> None:
    """The wrong twins: a truth that is half a nat lower or higher than log p fails its cells."""
    case = PROGRAMS["vae"]()
    for shift, question in ((-0.5, "evidence"), (0.5, "evidence"), (-5.0, "elbo")):
        off = Case(case.model, case.guide, case.data, case.log_prob + shift)
        assert attempt(off, "author", question).kind == "wrong", (shift, question)


def test_an_error_from_inside_torch_is_no_refusal() -> None:
    """Only the library's own errors refuse."""
    case = PROGRAMS["vae"]()
    broken = Case(lambda y: torch.ones(2) @ torch.ones(3), case.guide, case.data, case.log_prob)
    assert attempt(broken, "author", "elbo").kind == "failed"


def test_the_table_of_exceptions_names_cells() -> None:
    """What it lists exists."""
    for name, guide, question in KNOWN:
        assert name in PROGRAMS, name
        assert guide in {*GUIDES, "*"}, guide
        assert question in {*QUESTIONS, "*"}, question


def test_the_page_names_what_is_right_among_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for several cells is shown with those of its cells that are right."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "docs" / "extensions")
    page = import_module("generated").what_runs()
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert list(rows) == list(PROGRAMS)
    assert "| none |" in rows["vae"]
    for name, cells_in_words in {
        "autonormal": "all questions under the author's guide (except `fit` and `svi`)",
        "sequential_plate": "all questions (except `svi` under the author's guide)",
        "ss_vae_enumerated": "`svi` (except under the author's guide)",
        "hmm": "`gap`, `arviz`, `compare`",
    }.items():
        assert f"| Refused: {cells_in_words}. " in rows[name]


def test_programs_are_made_alike_twice() -> None:
    """The same data and the same truth, whatever was drawn before."""
    first = PROGRAMS["vae"]()
    torch.randn(3)
    second = PROGRAMS["vae"]()
    assert torch.equal(first.data[0], second.data[0])
    assert torch.equal(first.log_prob, second.log_prob)
