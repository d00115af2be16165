"""Replications run, and the page says of each value whether its criterion is met."""

import importlib

import pytest

from replications.__main__ import names
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
