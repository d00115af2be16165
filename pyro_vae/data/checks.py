"""Checks of a batch before a program sees it.

A batch is one or several tensors whose first axis indexes the data. A nan, an extra row, or pixels
up to 255 under a Bernoulli likelihood can cost hours if the only symptom is a strange loss. Such
batches are therefore refused here, and the error gives the position and the remedy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from .._warnings import warn
from ..formatting import count_of, first_few
from ..randomness import check_rows

FEW = 5  # positions listed in an error: enough to see a pattern, few enough to read
_VALUES_AT_ONCE = 2**22  # values checked at a time: a few copies of them take 50 MB
_IS_PART = ContextVar("_IS_PART", default=False)


def check_batch(
    *batch: object,
    names: Sequence[str] | None = None,
    missing: Sequence[int] = (),
    empty: Sequence[int] = (),
) -> None:
    """Refuses a batch with a wrong type, without rows, or with values that are nan or inf.

    Arguments:
        batch: Tensors `(rows, *datum)`, floating-point or integer, with the same number of rows;
            tensors after the first may also be boolean masks.
        names: Names of the columns of the first tensor, for the message.
        missing: Positions (among the arguments) of the tensors that may have missing entries,
            marked by nan.
        empty: Positions of the tensors whose rows may be entirely nan; each must be in `missing`,
            too.

    Raises:
        TypeError: If an argument is not a tensor, or is neither floating-point nor integer.
        ValueError: If there is no tensor or no row; if the numbers of rows differ; if a value is
            nan or inf (the message gives the number of such values, and the first positions,
            counted from 0); or if a row of a tensor in `missing`, but not in `empty`, is entirely
            nan.

    Example:
        >>> check_batch(torch.ones(3, 2), torch.zeros(3))
        >>> check_batch(torch.tensor([[1.0, float("nan")]]), names=["height", "width"])
        ... # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: tensor 0 of the data has 1 nan and 0 inf among its 2 values, at row 0, ...
    """
    if not batch:
        raise ValueError(
            "a batch must have at least one tensor; got none: pass the data, as in model(y)"
        )
    tensors = [_check_tensor(i, tensor) for i, tensor in enumerate(batch)]
    check_rows(tensors)
    for i, tensor in enumerate(tensors):
        if i in missing:
            if i not in empty:
                _check_some_observed(i, tensor)
            if not _anywhere(tensor, torch.isinf):
                continue
        known = tensor.masked_fill(tensor.isnan(), 0.0) if i in missing else tensor
        check_finite(f"tensor {i} of the data", known, names if i == 0 else None)


def check_range(
    y: Shaped[Tensor, "rows *datum"],
    low: float | int = -math.inf,
    high: float | int = math.inf,
    *,
    likelihood: str,
    names: Sequence[str] | None = None,
    inside: bool = False,
    whole: bool = False,
    remedy: str | None = None,
) -> None:
    """Refuses data outside the support of a likelihood.

    Arguments:
        y: Data, `(rows, *datum)`.
        low: Smallest value allowed.
        high: Largest value allowed.
        likelihood: Name of the likelihood, for the message.
        names: Names of the columns, for the message.
        inside: Whether the bounds themselves are excluded.
        whole: Whether only whole numbers are allowed.
        remedy: Advice at the end of the message; by default guessed from the values.

    Raises:
        ValueError: If a value is outside the support, or infinite. The message gives the number of
            such values, the range found, the first positions, and the remedy. Values that are nan
            are left to :func:`check_batch`.

    Example:
        >>> check_range(torch.tensor([[0.0, 255.0]]), low=0, high=1, likelihood="Bernoulli")
        ... # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Bernoulli takes only values in [0, 1], which excludes 1 of 2 values ...
    """

    def excluded(y: Tensor) -> Tensor:
        bad = (y < low) | (y > high) | y.isinf()  # false for nan, which is left to check_batch
        if inside:
            bad |= (y == low) | (y == high)
        return bad | ((y != y.round()) & ~y.isnan()) if whole else bad

    if not _anywhere(y, excluded):
        return
    check_finite("the data", y.masked_fill(y.isnan(), 0), names)
    outside = excluded(y)
    least, most = _extremes(y)
    raise ValueError(
        f"{likelihood} takes only "
        f"{'whole ' if whole else ''}{_interval(low, high, inside=inside)}, which excludes "
        f"{outside.sum():,} of {count_of(int((~y.isnan()).sum()), 'value', ',')} (the data range "
        f"from {least:g} to {most:g}), {_places(outside, names)}: "
        f"{remedy or _remedy(y, low, high)}"
    )


def check_finite(label: str, y: Tensor, names: Sequence[str] | None) -> None:
    """Refuses nan and inf; the error gives the number of such values and the first positions.

    Arguments:
        label: Name of the data in the message.
        y: Data, `(rows, *datum)`.
        names: Names of the columns, or None.

    Raises:
        ValueError: If a value is nan or inf.
    """
    if not _anywhere(y, lambda part: ~torch.isfinite(part)):
        return
    bad = ~torch.isfinite(y)
    nan, rows = int(torch.isnan(y).sum()), int(bad.reshape(len(bad), -1).any(dim=1).sum())
    raise ValueError(
        f"{label} has {nan:,} nan and {int(bad.sum()) - nan:,} inf among its "
        f"{count_of(y.numel(), 'value', ',')}, {_places(bad, names)}: drop these rows ({rows:,} of "
        f"{len(y):,}), or replace these values"
    )


def _anywhere(y: Shaped[Tensor, "rows *datum"], wrong: Callable[[Tensor], Tensor]) -> bool:
    """Whether `wrong`, which returns a mask, is true anywhere in the data.

    The rows are read in blocks, because a memory-mapped array may be larger than memory.
    """
    width = max(1, y[:1].numel())
    blocks = y.split(max(1, _VALUES_AT_ONCE // width))
    return any(bool(wrong(block).any()) for block in blocks)


def constant_columns(y: Shaped[Tensor, "rows *datum"]) -> list[int]:
    """Finds the columns that have the same value in every row.

    For a single row the list is empty.

    Arguments:
        y: Data, `(rows, *datum)`; a datum with several axes is flattened first.

    Returns:
        Positions of the columns, in order.

    Example:
        >>> constant_columns(torch.tensor([[1.0, 2.0], [1.0, 3.0]]))
        [0]
    """
    if len(y) < 2:
        return []
    flat = y.reshape(len(y), -1)
    return torch.nonzero((flat == flat[:1]).all(dim=0)).flatten().tolist()


@contextmanager
def part_of_the_data() -> Iterator[None]:
    """Turns off warnings about constant columns in a `with` block that checks part of the data."""
    token = _IS_PART.set(True)
    try:
        yield
    finally:
        _IS_PART.reset(token)


def warn_constant_columns(
    y: Shaped[Tensor, "rows *datum"], names: Sequence[str] | None = None
) -> None:
    """Warns about columns that have the same value in every row, and names them.

    If the likelihood learns its scale, the density of such a column grows without bound, and
    outweighs the densities of all other columns. Inside :func:`part_of_the_data` there is no
    warning.

    Arguments:
        y: Data, `(rows, *datum)`.
        names: Names of the columns; by default positions are shown.
    """
    found = constant_columns(y)
    if not found or _IS_PART.get():
        return
    named = [repr(names[i]) if names else str(i) for i in found]
    warn(
        f"values are constant in {len(found)} of {count_of(y[0].numel(), 'column')} over "
        f"{count_of(len(y), 'row', ',')} ({first_few(named)}): drop these columns, or use a "
        "likelihood whose scale is fixed or has a lower bound"
    )


def _check_tensor(index: int, tensor: object) -> Tensor:
    """Returns one of the tensors of a batch, after checking its type.

    An object that is not a tensor is refused, and so are complex numbers, and booleans in the first
    tensor.
    """
    label = f"part {index} of the data"
    if not isinstance(tensor, Tensor):
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise TypeError(
            f"{label} must be a torch tensor with one row per datum; got {kind}: convert the data "
            "with torch.as_tensor(...)"
        )
    if (tensor.dtype is torch.bool and index == 0) or tensor.is_complex():
        raise TypeError(
            f"{label} must be floating-point or integer; got {tensor.dtype}: convert the tensor, "
            "as in y.float() for bool or torch.view_as_real(y) for complex"
        )
    return tensor


def _check_some_observed(index: int, tensor: Tensor) -> None:
    """Refuses a tensor with a row that is entirely nan."""

    def empty_rows(part: Tensor) -> Tensor:
        return part.isnan().reshape(len(part), -1).all(dim=1)

    if _anywhere(tensor, empty_rows):
        empty = empty_rows(tensor)
        raise ValueError(
            f"no entry is observed in {int(empty.sum()):,} of "
            f"{count_of(len(tensor), 'row', ',')} of tensor {index} of the data, the first at row "
            f"{int(empty.nonzero()[0])}, counted from 0: drop these rows, which carry no "
            "information"
        )


def _places(bad: Bool[Tensor, "rows *datum"], names: Sequence[str] | None) -> str:
    """Describes where a mask is true: `at row 5, column 2 ('width'); row 7, column 0, ...`."""
    # Finds rows first: positions of all nan in a large array can take more memory than the array.
    rows = torch.nonzero(bad.reshape(len(bad), -1).any(dim=1)).flatten()[:FEW]
    places = torch.nonzero(bad[rows])[:FEW].tolist()
    texts = [_place([int(rows[row]), *columns], names) for row, *columns in places]
    return ("at " if bad.sum() <= FEW else "first at ") + "; ".join(texts) + ", counted from 0"


def _place(place: Sequence[int], names: Sequence[str] | None) -> str:
    """Describes the position of one value: `row 5, column 2 ('width')`."""
    row, *columns = place
    text = f"row {row}"
    if columns:
        text += f", column {', '.join(map(str, columns))}"
    if names and len(columns) == 1 and columns[0] < len(names):
        text += f" ({names[columns[0]]!r})"
    return text


def _interval(low: float | int, high: float | int, *, inside: bool) -> str:
    """Describes the values between two bounds; `inside` excludes the bounds themselves."""
    if math.isinf(high):
        return f"values above {low:g}" if inside else f"values of at least {low:g}"
    if math.isinf(low):
        return f"values below {high:g}" if inside else f"values of at most {high:g}"
    ends = f"({low:g}, {high:g})" if inside else f"[{low:g}, {high:g}]"
    return f"values in {ends}"


def _extremes(y: Tensor) -> tuple[float, float]:
    """Returns the smallest and the largest value of a tensor, leaving out nan."""
    known = y[~y.isnan()]
    return float(known.min()), float(known.max())


def _remedy(y: Tensor, low: float | int, high: float | int) -> str:
    """Guesses what the refused values are, and returns advice on the data or the likelihood."""
    least, most = _extremes(y)
    if (low, high) == (0, 1) and least >= 0:
        whole = bool((y == y.round()).all())
        if whole and 1 < most <= 16:  # the grey levels of scikit-learn's digits
            return "if these are grey levels from 0 to 16, divide by 16, as in y / 16"
        if 16 < most <= 255:  # the grey levels of a byte
            return "if these are grey levels from 0 to 255, divide by 255, as in y / 255"
    return "rescale the data, or use a likelihood for such values (Gaussian takes any real number)"
