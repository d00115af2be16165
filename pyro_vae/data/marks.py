"""Warns about numbers that may not be measurements: marks of missing entries, and errors.

Marks are numbers such as -999, a 9 among answers from 1 to 5, and zeros far from all other numbers.
"""

import re

import numpy as np
from jaxtyping import Shaped

from .._warnings import warn_of_column
from ..formatting import count_of, first_few
from .kinds import FEW
from .raw_columns import RawColumn
from .remedies import missing_marks, of_kind

_MARKS = 3  # numbers in the example of marks of missing entries
_GROSS = 20  # standard deviations of a Gaussian with the same quartiles
_BETWEEN_QUARTILES = 1.349  # standard deviations of a Gaussian between its quartiles
_FAR_ZERO = 3.5  # standard deviations: 1 in 4,000 Gaussian draws lies further out on one side
_FEW_VALUES = 3  # beside fewer other values, a -1 is an ordinary code
_LAST_OF_SCALE = 6  # the largest answer; on a longer scale, 8 and 9 may be answers, too
# Codes for "missing" in surveys, well logs and netCDF files, and the extremes of integer types.
_FILLS = (-1, -9, -999.25, 1e20, 9.96921e36, 1e30, -1e30, -32768, 32767, 65535, 2**31 - 1, -(2**31))
_FEW_CODES = 10  # up to this many different whole numbers may be grades


def warn_of_numbers(name: str, raw: RawColumn) -> None:
    """Warns about numbers such as -999, which may mean that nothing was measured.

    There is a warning if such a number is far from all other numbers, or if it is negative and all
    other numbers are at least 0.
    """
    values, times = np.unique(raw.known, return_counts=True)
    marks = _are_marks(values) | (_are_codes(values, times) if raw.whole else False)
    fewest = _FEW_VALUES if values[marks].tolist() == [-1] else 2
    if not marks.any() or (~marks).sum() < fewest:
        return
    low, high = values[~marks].min(), values[~marks].max()
    far = np.maximum(low - values, values - high) > high - low
    far |= np.isin(values, (8, 9))  # as marks, these stand just above a scale of answers
    below = (values < 0) & (low >= 0) & (raw.whole | (times > 1))
    odd = marks & (far | below)
    written = [f"{value:.15g}" for value in values[odd]]  # as a mark, it has to be equal
    found = [
        f"{word} in {count_of(n, 'entry', ',')}"
        for word, n in zip(written, times[odd], strict=True)
    ]
    if found:
        warn_of_column(
            name,
            f"column '{name}' holds {' and '.join(found)}, and all other entries are from {low:g} "
            f"to {high:g}. If such a number means that nothing was measured, empty these cells, "
            f"or pass {missing_marks(written, name)}; if it was measured, confirm this with "
            f"{of_kind(name, 'Count' if raw.whole and raw.known.min() in (0, 1) else 'Real')}",
        )


def warn_of_zeros(name: str, raw: RawColumn) -> None:
    """Warns about zeros far from all other numbers, such as a blood pressure of 0.

    At most half of the entries may be 0; the others must be above 0, and take more than ten
    different values. Zeros are then far away if two conditions hold: the median of the others is
    more than 3.5 standard deviations of a Gaussian with the same quartiles as the others, and the
    smallest of the others is more than a fifth of this median.
    """
    zero = raw.known == 0
    rest = raw.known[~zero]
    some = 0 < zero.sum() <= len(rest)  # amounts are often 0 in most rows
    if not some or len(rest) < FEW or rest.min() <= 0 or len(set(rest.tolist())) <= _FEW_CODES:
        return
    low, middle, high = np.quantile(rest, (0.25, 0.5, 0.75))
    if middle > _FAR_ZERO * (high - low) / _BETWEEN_QUARTILES and rest.min() > middle / 5:
        warn_of_column(
            name,
            f"column '{name}' holds 0 in {count_of(int(zero.sum()), 'entry', ',')}, and all other "
            f"entries are from {rest.min():g} to {rest.max():g}. If 0 means that nothing was "
            f"measured, empty these cells, or pass {missing_marks(['0'], name)}; if it was "
            f"measured, confirm this with {of_kind(name, 'Real')}",
        )


def warn_of_gross(name: str, values: Shaped[np.ndarray, " rows"]) -> None:
    """Warns about a few extreme numbers that dominate the standard deviation of their column.

    A number is extreme if its distance from the median is over 20 standard deviations of a Gaussian
    with the column's quartiles. There is a warning if at most 1% of the numbers (or a single number
    in a short column) are extreme, and if leaving them out at least halves the column's standard
    deviation.
    """
    if len(values) < FEW or not np.isfinite(values).all():  # inf is refused later
        return
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    gross = np.abs(values - middle) > _GROSS * (high - low) / _BETWEEN_QUARTILES
    rest = values[~gross]
    few = 0 < gross.sum() <= max(1, len(values) // 100)
    if low == high or not few or rest.std() > values.std() / 2 or _are_marks(values[gross]).any():
        return
    found = [f"{value:.15g}" for value in np.unique(values[gross])]  # as a mark, it has to be equal
    warn_of_column(
        name,
        f"column '{name}' holds {first_few(found)}, "
        f"and all other entries are from {rest.min():g} to {rest.max():g}: such an outlier "
        "dominates the standard deviation of its column. If the number is an error, correct or "
        f"empty its cell, or pass {missing_marks(found[:_MARKS], name)}; if it is right, confirm "
        f"this with {of_kind(name, 'Real')}",
    )


def _are_marks(values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
    """Tells which numbers are common codes for missing entries, such as 99, -7.77 and -32768."""
    digits = [f"{abs(value):.10g}".replace(".", "") for value in values]
    repeated = [re.fullmatch(r"99+|88+|77+", text) is not None for text in digits]
    fills = np.isclose(values[:, None], _FILLS, rtol=1e-6, atol=0).any(axis=1)
    return np.array(repeated, dtype=bool) | fills


def _are_codes(
    values: Shaped[np.ndarray, " values"], times: Shaped[np.ndarray, " values"]
) -> Shaped[np.ndarray, " values"]:
    """Tells which whole numbers look like codes for missing answers, as in surveys.

    The numbers -1, -7, -8 and -9 are codes if all other numbers are at least 0. An 8 or 9 is a code
    if it occurs more than once, and the other numbers are a scale without gaps that starts at 0 or
    1 and ends at 6 or below.

    Arguments:
        values: The different numbers of a column, in order.
        times: How often each number occurs.
    """
    negative = np.isin(values, (-1, -7, -8, -9))
    top = np.isin(values, (8, 9)) & (times > 1)
    answers = values[~negative & ~top]
    if len(answers) == 0:
        return np.zeros_like(top)
    first, last = answers[0], answers[-1]
    is_scale = first in (0, 1) and last <= _LAST_OF_SCALE and len(answers) == last - first + 1
    return (top & (is_scale and len(answers) > 1)) | (negative & (first >= 0))
