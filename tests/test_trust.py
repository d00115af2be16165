"""The ladder against independent answers: eighteen programs under five guides, at a small size.

`make trust` asks 500 data of each cell and prints the table.
"""

from dataclasses import replace
from typing import Any

import pytest

from tests.trust.cells import GUIDES, Cell, cells
from tests.trust.programs import PROGRAMS
from tests.trust.promises import broken

pytestmark = pytest.mark.usefixtures("float64")

QUICK = ("ring", "series")


@pytest.mark.parametrize("name", QUICK)
def test_what_is_accepted_is_right(name: str) -> None:
    """A few data under two guides: reliable, covered, and exact ones within their bound."""
    assert broken(cells(name, 12, ["narrow", "untrained"])) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_accepted_is_right_everywhere(name: str) -> None:
    """Thirty data under each guide."""
    assert broken(cells(name, 30, list(GUIDES))) == []


def cell(**counts: Any) -> Cell:
    """One with nothing to blame."""
    good = Cell("a", "b", 500, 500, 500, 475, 0, 0, 0.01, 500, 1.0, {})
    return replace(good, **counts)


def test_promises_that_are_kept() -> None:
    """Whatever chance does to shares that are right."""
    assert broken([cell(), cell(covered=455), cell(reliable=485), cell(sampled=0, covered=0)]) == []


@pytest.mark.parametrize(
    "fault",
    [
        {"covered": 425},  # 85 percent
        {"covered": 500},
        {"reliable": 450},
        {"beyond": 1},
        {"wrong": 1},
    ],
    ids=str,
)
def test_promises_that_are_broken_are_told(fault: dict[str, int]) -> None:
    """Each wrong twin, by one line or, of its program and its guide, by two."""
    assert 1 <= len(broken([cell(), cell(**fault)])) <= 2
