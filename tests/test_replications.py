"""Replications run, and the page says of each value whether its criterion is met."""

import importlib

import pytest

from replications.__main__ import names, page, section, written
from replications.record import Finding, Replication, within


def test_page_shows_failures() -> None:
    """One value that misses its criterion makes the whole "not replicated", in bold."""
    findings = (
        Finding("a", "1", "1.0 ± 0.1", met=True),
        Finding("b", "2", "9.0 ± 0.1", met=False),
    )
    result = Replication("Title", "Author, 2020: Work", "setting", "criterion", findings)
    assert not result.met
    assert "| b | 2 | 9.0 ± 0.1 | **no** |" in result.page()
    assert "Not replicated" in result.page()
    assert Replication("T", "S", "s", "c", (*findings[:1], Finding("shown", "", "3"))).met


def test_page_keeps_what_did_not_run() -> None:
    """One section is replaced, the others stay, and the table at the top follows."""
    findings = (Finding("a", "1", "1.0 ± 0.1", met=True),)
    one, two = (Replication(title, "A, 2020: W", "s", "c", findings) for title in ("One", "Two"))
    text = page({"b_2020": section("b_2020", two, 2.0), "a_2019": section("a_2019", one, 1.0)})
    assert written(text).keys() == {"a_2019", "b_2020"}
    assert page(written(text)) == text
    later = page(written(text) | {"b_2020": section("b_2020", two, 30.0)})
    assert later == text.replace("| replicated | 2 |", "| replicated | 30 |")
    assert text.index("| One |") < text.index("| Two |") < text.index("## One")


def test_within_counts_errors() -> None:
    """Four errors are within, five are not."""
    assert within(1.4, 0.1, 1.0)
    assert not within(1.5, 0.1, 1.0)


def test_closed_form_is_replicated() -> None:
    """The cheapest one, at small size; its values are judged by their errors."""
    assert importlib.import_module("replications.nowozin_2018").replicate(smoke=True).met


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of so few draws that nothing can be trusted
@pytest.mark.parametrize("name", names())
def test_replication_runs(name: str) -> None:
    """Every script gives values, a setting and a criterion, at tiny size."""
    result = importlib.import_module(f"replications.{name}").replicate(smoke=True)
    assert result.findings
    assert result.source
    assert result.setting
    assert result.criterion
