"""How a number with its error is written."""

import math

from torch import Tensor

_MOST_DECIMALS = 4  # a tenth of a millinat: finer is of no use to anybody
_FINEST = 10.0**-_MOST_DECIMALS


def plus_minus(value: float | Tensor, error: float | Tensor) -> str:
    """A value and its error to two digits of the error, at most four decimals.

    Arguments:
        value: In any unit, a single number.
        error: Its standard error, in the same unit; nan if there is none.

    Returns:
        Plain text; :func:`typeset` has the signs that print has.

    Example:
        >>> plus_minus(-21.3024, 0.0172), plus_minus(0.25, 3e-7), plus_minus(-1e-9, 1e-3)
        ('-21.302 +- 0.017', '0.2500 +- <0.0001', '0.0000 +- 0.0010')
        >>> plus_minus(2.5, math.nan)
        '2.50'
    """
    value, error = float(value), float(error)
    if math.isnan(error):
        return f"{value:.2f}"
    decimals = _decimals(error)
    tiny = 0 < error < _FINEST / 2
    spread = f"<{_FINEST:g}" if tiny else f"{error:.{decimals}f}"
    # Adding zero takes the sign from a rounded -0.
    return f"{round(value, decimals) + 0.0:.{decimals}f} +- {spread}"


def _decimals(error: float) -> int:
    if error == 0:
        return _MOST_DECIMALS
    if not math.isfinite(error):
        return 3
    return min(max(1 - math.floor(math.log10(error)), 0), _MOST_DECIMALS)


def typeset(text: str) -> str:
    """The same with real plus-minus and minus signs, for figures and pages."""
    return text.replace("+-", "±").replace("-", "\N{MINUS SIGN}")
