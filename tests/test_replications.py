"""Replications and audits run, and their pages say of each value whether its criterion is met."""

import importlib

import pytest

from replications.__main__ import chosen, claim_of, records, run
from replications.page import AUDITS, REPLICATIONS, Kind, page, section
from replications.record import Claim, Finding, Record, within

GOOD, BAD = Finding("a", "1", "1.0 ± 0.1", met=True), Finding("b", "2", "9.0 ± 0.1", met=False)
CLAIM = Claim("Title", "Author, 2020: Work", "the setting", "the criterion")
SCRIPTS = [(kind, name) for kind in (REPLICATIONS, AUDITS) for name in kind.names()]


def test_page_shows_failures() -> None:
    """One value that misses its criterion makes the whole "not replicated", in bold."""
    text = section(REPLICATIONS, "a_2020", Record(CLAIM, [GOOD, BAD], 3.0))
    assert "**Not replicated**: the criterion is met by 1 of 2 values." in text
    assert "| b | 2 | 9.0 ± 0.1 | **no** |" in text
    assert Record(CLAIM, [GOOD, Finding("shown", "", "3")], 1.0).met


def test_page_gives_the_answer_first() -> None:
    """How many are replicated stands above the table, and each verdict above its values."""
    records = {"a": Record(CLAIM, [GOOD], 30.0), "b": Record(CLAIM, [BAD], 90.0)}
    text = page(REPLICATIONS, records)
    assert text.index("**1 of 2 results were replicated. Of the others, 0 are") < text.index(
        "| result |"
    )
    assert "took 2 minutes of processor time" in text
    part = section(AUDITS, "a", records["a"])
    assert part.index("**Confirmed**") < part.index("| a |") < part.index("*Criterion.*")


def test_within_counts_errors() -> None:
    """Four errors are within, five are not."""
    assert within(1.4, 0.1, 1.0)
    assert not within(1.5, 0.1, 1.0)


def test_names_choose_scripts() -> None:
    """A group stands for its scripts, and an unknown name is refused with the known ones."""
    assert [name for _, name in chosen(["audits"])] == AUDITS.names()
    assert [name for _, name in chosen([])] == REPLICATIONS.names() + AUDITS.names()
    assert chosen(["pages"]) == []
    with pytest.raises(SystemExit, match="no nonsense; there are replications, audits"):
        chosen(["nonsense"])


def test_closed_form_is_replicated() -> None:
    """The cheapest one, at small size; its values are judged by their errors."""
    assert run(REPLICATIONS, "nowozin_2018", smoke=True).met


@pytest.mark.parametrize(("kind", "name"), SCRIPTS, ids=[name for _, name in SCRIPTS])
def test_claims_are_whole(kind: Kind, name: str) -> None:
    """Every script says whose result it is, its setting, criterion and where figures are from."""
    claim = claim_of(kind, name)
    assert claim.figures.endswith(".") == (kind is REPLICATIONS)  # an audit's are those of the run
    assert claim.title
    assert ":" in claim.source
    assert claim.setting.endswith(".")
    assert claim.criterion.endswith(".")


@pytest.mark.parametrize("kind", [REPLICATIONS, AUDITS], ids=["replications", "audits"])
def test_pages_are_those_of_the_findings(kind: Kind) -> None:
    """No page was edited by hand, and none is older than its claims."""
    assert kind.page.read_text() == page(kind, records(kind))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of so few draws that nothing can be trusted
@pytest.mark.parametrize("name", [*REPLICATIONS.names(), "sklearn_pca"])
def test_script_runs(name: str) -> None:
    """Every script that needs no environment of its own gives values, at tiny size."""
    kind = AUDITS if name in AUDITS.names() else REPLICATIONS
    module = importlib.import_module(f"{kind.package}.{name}")
    assert module.findings(smoke=True)
