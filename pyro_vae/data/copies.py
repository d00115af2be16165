"""Finds columns with the same information, such as `survived` and `alive`, or degrees in two units.

Two columns of categories have the same information if their categories correspond one to one, and
two columns of numbers if one column is a linear function of the other. Given the original, the
density of a numeric copy is infinite in principle. In practice it is limited by the likelihood's
smallest noise.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from .._warnings import warn
from ..formatting import first_few
from .kinds import FEW, Categories, Kind
from .remedies import drop_all

_DECIMALS = 6  # of standardized numbers; copies differ by about 1e-15
_FEWEST = 5  # rows of the second most frequent category; rarer ones may coincide by chance


def warn_of_copies(y: Float[Tensor, "rows columns"], kinds: Mapping[str, Kind]) -> None:
    """Warns about columns that have the same information in all rows."""
    groups = copies(y, kinds)
    if not groups:
        return
    shown = first_few([" and ".join(map(repr, group)) for group in groups])
    extra = [name for group in groups for name in group[1:]]
    warn(
        f"these columns have the same information in all rows: {shown}. This information counts "
        "twice in log p, and copies of numbers make log p grow without bound: keep one of the "
        f"columns, as with {drop_all(extra)} or X.drop(columns={extra!r})"
    )


def copies(y: Float[Tensor, "rows columns"], kinds: Mapping[str, Kind]) -> list[list[str]]:
    """Returns groups of columns with the same information and the same missing entries.

    Example:
        >>> import torch
        >>> from .kinds import Real
        >>> celsius = torch.arange(30.0).double() ** 2
        >>> y = torch.stack([celsius, celsius.sqrt(), 32 + 1.8 * celsius], dim=1)
        >>> copies(y, {"C": Real(), "x": Real(), "F": Real()})
        [['C', 'F']]
    """
    found: dict[bytes, list[str]] = {}
    for name, column in zip(kinds, y.detach().cpu().double().numpy().T, strict=True):
        known = column[~np.isnan(column)]
        if len(known) >= FEW:
            plain = _codes(known) if isinstance(kinds[name], Categories) else _standardized(known)
            if plain is not None:
                key = np.isnan(column).tobytes() + plain.tobytes()
                found.setdefault(key, []).append(name)
    return [group for group in found.values() if len(group) > 1]


def _codes(known: Shaped[np.ndarray, " known"]) -> Shaped[np.ndarray, " known"] | None:
    """Replaces entries by codes that number the categories in order of first occurrence.

    The result is None if all categories but one are rare.
    """
    _, first, codes, times = np.unique(
        known, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.argsort(np.argsort(first)).astype(np.float64)
    return rank[codes] if len(times) > 1 and np.sort(times)[-2] >= _FEWEST else None


def _standardized(known: Shaped[np.ndarray, " known"]) -> Shaped[np.ndarray, " known"] | None:
    """Standardizes numbers; flips all signs if the first clearly nonzero result is negative.

    The result is None if there are fewer than 3 different numbers.
    """
    if len(np.unique(known)) < 3:
        return None
    z = (known - known.mean()) / known.std()
    first = np.flatnonzero(np.abs(z) > 0.1)[0]  # exists, because the standard deviation is 1
    return np.round(z * np.sign(z[first]), _DECIMALS) + 0.0  # without a sign of zeros
