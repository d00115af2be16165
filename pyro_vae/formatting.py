"""Formats numbers with their errors, for terminals, figures and pages."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex

from torch import Tensor

_MOST_DECIMALS = 4  # nobody needs more than a tenth of a millinat
_FINEST = 10.0**-_MOST_DECIMALS
_LONGEST = 100  # characters of a name or an entry in a message
# Maps endings of singular nouns to endings of plurals; the first that fits is used.
_PLURALS = {"datum": "data", "axis": "axes", "ay": "ays", "y": "ies", "": "s"}
_SHOWN = 3  # how many of several estimates are written out
_SPEC = re.compile(r"((?:.?[<>=^])?)([-+ ]?)z?(.*)", re.DOTALL)  # alignment, sign, and the rest


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Arguments:
        key: Name of the column for programs that read the report; unique in its table.
        name: Heading of the column.
        definition: What the numbers are, in a sentence or two.
        unit: Unit of the numbers, such as "nats"; empty if there is none.
        is_number: Whether the column is sorted by number, not alphabetically.
    """

    key: str
    name: str
    definition: str
    unit: str = ""
    is_number: bool = True


def plus_minus(value: float | Tensor, error: float | Tensor, spec: str = "") -> str:
    """Formats a value and its error, to two digits of the error and at most four decimals.

    Arguments:
        value: A single number, in any unit.
        error: The standard error of the value, in the same unit; nan if there is none.
        spec: Format of both numbers, such as `.3f`; a sign option applies to the value only. If it
            is empty, as many digits are shown as the error warrants.

    Returns:
        Plain text; :func:`typeset` uses a typographic minus sign.

    Example:
        >>> plus_minus(-21.3024, 0.0172), plus_minus(0.25, 3e-7), plus_minus(-1e-9, 1e-3)
        ('-21.302 ± 0.017', '0.2500 ± <0.0001', '0.0000 ± 0.0010')
        >>> plus_minus(2.5, math.nan), plus_minus(2.5, 0.125, "+.2f"), plus_minus(-1e-9, 0.0, ".2f")
        ('2.50', '+2.50 ± 0.12', '0.00 ± 0.00')
    """
    value, error = float(value), float(error)
    if spec:
        found = _SPEC.fullmatch(spec)
        assert found is not None  # it fits any text
        place, sign, rest = found.groups()
        # z removes the sign of a rounded -0.
        return f"{value:{place}{sign}z{rest}} ± {error:{place}{rest}}"
    if math.isnan(error):
        return f"{value:.2f}"
    decimals = _decimals(error)
    tiny = 0 < error < _FINEST / 2
    spread = f"<{_FINEST:g}" if tiny else f"{error:.{decimals}f}"
    # Adding zero removes the sign of a rounded -0.
    return f"{round(value, decimals) + 0.0:.{decimals}f} ± {spread}"


def _decimals(error: float) -> int:
    """Returns the number of decimals that are needed to show two digits of an error."""
    if error == 0:
        return _MOST_DECIMALS
    if not math.isfinite(error):
        return 3
    return min(max(1 - math.floor(math.log10(error)), 0), _MOST_DECIMALS)


def several(value: Tensor, error: Tensor, spec: str = "") -> str:
    """Formats values and errors of any shape in one line: the first few of them, and the shape.

    Example:
        >>> import torch
        >>> several(torch.arange(4.0), torch.ones(4), ".1f")
        '[0.0 ± 1.0, 1.0 ± 1.0, 2.0 ± 1.0, …] (4,)'
    """
    if value.dim() == 0:
        return plus_minus(value, error, spec)
    pairs = zip(value.flatten()[:_SHOWN], error.flatten()[:_SHOWN], strict=True)
    shown = [plus_minus(*pair, spec) for pair in pairs]
    more = ["…"] if value.numel() > _SHOWN else []
    return f"[{', '.join(shown + more)}] {tuple(value.shape)}"


def four_digits(value: float) -> str:
    """Formats a number with four significant digits; between 10,000 and ten million, as an integer.

    Example:
        >>> four_digits(7.2345), four_digits(101325.4), four_digits(2e9)
        ('7.234', '101,325', '2e+09')
    """
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def typeset(text: str) -> str:
    """Replaces the hyphens of a formatted number by typographic minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


def first_few(names: Iterable[str], most: int = 5) -> str:
    """Lists the first `most` names, and says how many more there are.

    Names of more than 100 characters are cut, but keep their last character, often a quote.

    Example:
        >>> first_few("abc"), first_few("abcdefg")
        ('a, b, c', 'a, b, c, d, e and 2 more')
    """
    shown = [n if len(n) <= _LONGEST else f"{n[:_LONGEST]}…{n[-1]}" for n in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def count_of(number: SupportsIndex | float, noun: str, spec: str = "") -> str:
    """Returns a number with its noun, which is passed in the singular: `1 row`, `12 rows`.

    Example:
        >>> count_of(1, "datum"), count_of(12, "datum"), count_of(1200, "missing entry", ",")
        ('1 datum', '12 data', '1,200 missing entries')
    """
    return f"{number:{spec}} {noun if number == 1 else _plural(noun)}"


def listed(noun: str, names: Iterable[str]) -> str:
    """Returns a noun, passed in the singular, with quoted names: `site 'a'`, `sites 'a', 'b'`.

    Example:
        >>> listed("latent site", ["a"]), listed("site", "abcdefg")
        ("latent site 'a'", "sites 'a', 'b', 'c', 'd', 'e' and 2 more")
    """
    quoted = [f"'{name}'" for name in names]
    return f"{noun if len(quoted) == 1 else _plural(noun)} {first_few(quoted)}"


def _plural(noun: str) -> str:
    ending = next(ending for ending in _PLURALS if noun.endswith(ending))
    return noun.removesuffix(ending) + _PLURALS[ending]


def every_datum(number: int, noun: str = "datum") -> str:
    """Returns words for a whole set of data: `the datum`, `all 12 data`.

    Example:
        >>> every_datum(1), every_datum(12), every_datum(12, "row")
        ('the datum', 'all 12 data', 'all 12 rows')
    """
    return f"the {noun}" if number == 1 else f"all {count_of(number, noun)}"


def some_of(number: int, total: int) -> str:
    """Returns words for some of the data: `3 of 12 data`, or `the datum` if there is only one.

    Example:
        >>> some_of(3, 12), some_of(1, 1)
        ('3 of 12 data', 'the datum')
    """
    return "the datum" if total == 1 else f"{number} of {count_of(total, 'datum')}"


def counted(reasons: Iterable[tuple[str, int]]) -> str:
    """Lists reasons, each with its number of data: `tail too heavy: 3; too few draws: 1`.

    Example:
        >>> counted([("tail too heavy", 3), ("too few draws", 0)])
        'tail too heavy: 3'
    """
    return "; ".join(f"{reason}: {number}" for reason, number in reasons if number)


def on_condition(given: str) -> str:
    """Returns a comma and the conditions of a result, to append to a text; "" if there are none.

    Example:
        >>> "3 draws each" + on_condition("given mu")
        '3 draws each, given mu'
    """
    return f", {given}" if given else ""
