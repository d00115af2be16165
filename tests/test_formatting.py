"""How numbers with errors are written: one way, everywhere."""

import ast
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae.formatting import count_of, plus_minus

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
    assert f"{estimate(-1e-9, 1e-9):.3f}" == "0.000 ± 0.000"
    assert float(one) == 2.0
    assert f"{one:>8.2f}" == "    2.00 ±     0.25"
    assert f"{one:*<6.1f}|{one: .1f}|{one:-.1f}" == "2.0*** ± 0.2***| 2.0 ± 0.2|2.0 ± 0.2"
    assert f"{estimate(-1e-9, 1e-9):>6.1f}|{estimate(-1e-9, 0.0):z.0f}" == "   0.0 ±    0.0|0 ± 0"


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


ADJECTIVES = "(?:(?:more|other|new|missing|training|held-out|different|finite|simulated) )?"
COUNTED = {
    str(noun.value).split()[-1]
    for file in FILES
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "count_of"
    for noun in node.args[1:2]
    if isinstance(noun, ast.Constant)
}
# Expressions that are no count, or never 1.
MANY = {
    ("files.py", "key"),  # `names` is a verb
    ("inputs.py", "rows"),  # a list
    ("kinds.py", "self.scale"),  # a standard deviation
    ("reporting.py", "seeds"),
    ("streams.py", "lengths"),
    ("tied.py", "name"),  # `draws` is a verb
    ("times.py", "number"),  # a duration, as pandas writes it
}


def uncounted(source: str) -> list[str]:
    """Numbers before a plural that strings write by hand, so that one is `1 rows`."""
    plural = "|".join(sorted(count_of(2, noun).removeprefix("2 ") for noun in COUNTED))
    found = []
    for node in ast.walk(ast.parse(source)):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for number, words in pairwise(parts):
            if isinstance(number, ast.FormattedValue) and isinstance(words, ast.Constant):
                name = ast.unparse(number.value)
                if re.match(rf" {ADJECTIVES}(?:{plural})\b", str(words.value)):
                    found.append(name)
    return [name for name in found if not re.fullmatch(r"(?:\w+\.)?[A-Z_]+(?:\[\d\])?", name)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_one_has_no_plural(file: Path) -> None:
    """A number and its noun come from `count_of`; constants are what they are."""
    found = [name for name in uncounted(file.read_text()) if (file.name, name) not in MANY]
    assert not found, f"{file.name}: {found}; use count_of"


def test_a_plural_by_hand_is_caught() -> None:
    """With an adjective or without; constants and ranges are not."""
    assert uncounted('f"{len(y)} rows"') == ["len(y)"]
    assert uncounted('f"the {n:,} missing entries and {k} data"') == ["n", "k"]
    assert uncounted('f"{_FEW} rows, {stats.FEW} draws, {n} of the rows, {a}, {n} rowsums"') == []


def disagreeing(source: str) -> list[str]:
    """Plural verbs after a part of a number, so that one is `1 of 3 rows are`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            words = (part.value if isinstance(part, ast.Constant) else "#" for part in node.values)
            text = "".join(map(str, words))
            found += re.findall(r"# of (?:the )?# (?:are|have|do|carry|differ|lack|need)\b", text)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_one_has_no_plural_verb(file: Path) -> None:
    """Sentences about a part are written so that their verb does not depend on its number."""
    assert not disagreeing(file.read_text())


def test_a_plural_verb_is_caught() -> None:
    """Unless another word is the subject."""
    assert disagreeing("f\"{n:,} of {count_of(k, 'row')} are refused\"") == ["# of # are"]
    assert disagreeing("f\"{n} of the {count_of(k, 'row')} have none\"") == ["# of the # have"]
    assert disagreeing("f\"{n} of {count_of(k, 'row')} that are reliable\"") == []


@pytest.mark.parametrize(
    ("noun", "many"),
    [
        ("datum", "2 data"), ("held-out row", "2 held-out rows"), ("axis", "2 axes"),
        ("missing entry", "2 missing entries"), ("array", "2 arrays"),
    ],
)  # fmt: skip
def test_a_count_has_its_noun(noun: str, many: str) -> None:
    """One is singular."""
    assert count_of(2, noun) == many
    assert count_of(1, noun) == f"1 {noun}"


COIN = pv.likelihoods.Bernoulli()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pv.nets.MLPEncoder(1)(torch.zeros(3, 2)), "must have 1 number per row"),
        (lambda: pv.stats.rank_r_hat(torch.zeros(1, 1)), "1 chain of 1 draw "),
        (lambda: pv.likelihoods.Mixed({"a": COIN})(torch.zeros(3, 2)), "for 1 column, the decoder"),
        (lambda: pv.objectives.LinearWarmup(1).check(1), "warm-up of 1 epoch in 1 epoch of"),
    ],
)  # fmt: skip
def test_a_message_about_one(call: Callable[[], object], said: str) -> None:
    """Of what people meet."""
    with pytest.raises(ValueError, match=r"\b1 ") as caught:
        call()
    assert said in str(caught.value)
