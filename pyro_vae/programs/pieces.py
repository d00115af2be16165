"""Cuts batches into pieces, and decides how many rows a piece has."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .._types import Batch

_NUMBERS = 2**24  # most numbers in a batch of data: 64 MiB in float32; a few results are as large


def rows_within(batch: Batch, most: int) -> int:
    """Number of rows to run a program on at once: at most `most`, and fewer if a datum is large.

    Unlike `bytes_per_row`, this does not run the program, so every training step can call it.

    Example:
        >>> rows_within((torch.zeros(2, 784),), 16_384), rows_within((torch.zeros(2, 2**20),), 99)
        (16384, 16)
    """
    width = sum(tensor[:1].numel() for tensor in batch)
    return max(1, min(most, _NUMBERS // max(1, width)))


def even_pieces(size: int, most: int) -> int:
    """Returns the length of the pieces into which to cut `size` entries: at most `most`.

    If a length above `most / 2` divides `size`, all pieces have the same length.

    Example:
        >>> even_pieces(5000, 2048), even_pieces(100, 2048), even_pieces(4999, 2048)
        (1250, 100, 2048)
    """
    most = max(1, min(most, size))
    largest = next(piece for piece in range(most, 0, -1) if size % piece == 0)
    return largest if 2 * largest > most else most


def slices(num_rows: int, size: int) -> list[slice]:
    """Cuts rows into slices of at most `size` rows, or of one row if `size` is below 1.

    Example:
        >>> slices(5, 3)
        [slice(0, 3, None), slice(3, 6, None)]
    """
    size = max(1, size)
    return [slice(first, first + size) for first in range(0, num_rows, size)]


def in_pieces(size: int, *tensors: Tensor) -> Iterator[Batch]:
    """Cuts tensors that have the same number of rows into pieces of at most `size` rows.

    If `size` is below 1, a piece has one row.

    Example:
        >>> [(len(y), len(x)) for y, x in in_pieces(3, torch.zeros(5, 2), torch.zeros(5))]
        [(3, 3), (2, 2)]
    """
    return zip(*(tensor.split(max(1, size)) for tensor in tensors), strict=True)


def take_rows(batch: Batch, rows: slice | Tensor) -> Batch:
    """Selects rows of a batch; positions and batch may be on different devices.

    Example:
        >>> take_rows((torch.tensor([1.0, 2.0, 3.0]), torch.eye(3)), torch.tensor([2]))
        (tensor([3.]), tensor([[0., 0., 1.]]))
    """
    if isinstance(rows, slice):
        return tuple(part[rows] for part in batch)
    return tuple(part[rows.to(part.device)] for part in batch)


def flat(values: Tensor, before: int = 1) -> Tensor:
    """Flattens the axes of a datum, which follow the first `before` axes.

    If a datum is a single number, an axis of size 1 is added.

    Example:
        >>> flat(torch.zeros(4)).shape, flat(torch.zeros(4, 2, 3)).shape
        (torch.Size([4, 1]), torch.Size([4, 6]))
    """
    return values.flatten(before) if values.dim() > before else values.unsqueeze(before)


def first_rows(batch: Batch, num_data: int | None) -> Batch:
    """Returns `num_data` rows of a batch, or all rows if `num_data` is `None`.

    If the batch has fewer rows, the rows are repeated.
    """
    if num_data is None:
        return batch
    return take_rows(batch, torch.arange(num_data, device=batch[0].device) % len(batch[0]))
