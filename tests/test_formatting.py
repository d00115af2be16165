"""How numbers with errors are written: one way, everywhere."""

import ast
import math
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae.formatting import plus_minus

FILES = sorted((Path(__file__).parent.parent / "pyro_vae").rglob("*.py"))


def estimate(value: float, error: float) -> pv.Estimate:
    """Of plain numbers."""
    return pv.Estimate(torch.tensor(value), torch.tensor(error))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-24.3148, 0.0172, "-24.315 ± 0.017"),
        (-24.3148, 1.72, "-24.3 ± 1.7"),
        (1234.5, 17.0, "1234 ± 17"),
        (0.25, 0.0, "0.2500 ± 0.0000"),
        (0.25, math.nan, "0.25"),
        (0.25, math.inf, "0.250 ± inf"),
    ],
)
def test_an_estimate_prints_the_digits_of_its_error(value: float, error: float, text: str) -> None:
    """Two digits of the error, four decimals at most, none of its own where there is no error."""
    one = estimate(value, error)
    assert repr(one) == str(one) == f"{one}" == plus_minus(value, error) == text


def test_an_estimate_takes_the_format_of_a_number() -> None:
    """The sign is the value's alone."""
    one = estimate(2.0, 0.25)
    assert f"{one:.3f}" == "2.000 ± 0.250"
    assert f"{one:+.1f}" == "+2.0 ± 0.2"


def test_many_estimates_print_in_a_line() -> None:
    """The first ones and the shape, with a format or without one."""
    many = pv.Estimate(torch.arange(6.0).reshape(2, 3), torch.full((2, 3), 0.5))
    assert repr(many) == "[0.00 ± 0.50, 1.00 ± 0.50, 2.00 ± 0.50, …] (2, 3)"
    assert f"{many:.0f}" == "[0 ± 0, 1 ± 0, 2 ± 0, …] (2, 3)"
    assert repr(pv.Estimate(torch.zeros(0), torch.zeros(0))) == "[] (0,)"


def test_an_estimate_in_a_notebook() -> None:
    """With the minus sign of print."""
    assert estimate(-1.0, 0.5)._repr_html_() == "<span>−1.00 ± 0.50</span>"  # noqa: RUF001


def handmade(source: str) -> list[str]:
    """Strings that write plus-minus between two numbers by hand."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
            text = "".join(map(str, parts))
            if any(sign in text for sign in ("{} ± {}", "{} +- {}", "{}±{}", "{}+-{}")):
                found.append(text)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_only_formatting_writes_plus_minus(file: Path) -> None:
    """A number and its error come from `plus_minus` or from an estimate's own format."""
    found = handmade(file.read_text())
    assert not found or file.name == "formatting.py", f"{file.name}: {found}; use plus_minus"


def test_plus_minus_by_hand_is_caught() -> None:
    """In either spelling."""
    assert handmade('f"{a:.3f} ± {b}"') == ["{} ± {}"]
    assert handmade('f"log p {a} +- {b:.3f} nats"') == ["log p {} +- {} nats"]
    assert handmade('f"{a:.3f}"') == []
