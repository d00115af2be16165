r"""Several processes: each works on a share of the rows, and the results are gathered.

Under `torchrun` a script runs once in every process. The script starts torch's process group,
takes its share of the data, and trains and evaluates as a single process would::

    torch.distributed.init_process_group("gloo")
    y = pv.distributed.share(y_all)                     # does not read a memory map
    guide = pv.Guide(model, pv.LocalParameters(len(y)))  # for these rows only
    pv.fit(model, guide, y)
    lml = pv.distributed.gather(pv.log_marginal_likelihood(model, guide, y))

Gradients of shared parameters are summed in every step of :func:`pyro_vae.fit`; per-row parameters
are never sent. An estimate for a datum depends only on the seed, on the content of its row, and on
how many equal rows precede it in its share. So the gathered results are those of one process for
all rows, in the same order. The exception is a row that occurs in several shares. A single process
would use different draws for each occurrence. Here, the first occurrence in one share gets the same
draws as the first occurrence in any other share, the second the same as the second, and so on.
Within a share, each occurrence always gets draws of its own.

Without a process group there is only one process, and its share is the whole data set.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor

from ._arguments import check_public
from ._types import Batch
from .data import Augmented, RowReader
from .formatting import count_of
from .results import combined, join

__all__ = ["Share", "cuts", "gather", "rank", "share", "size"]

_Result = TypeVar("_Result")


def size() -> int:
    """Number of processes; 1 without a process group of torch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process, counted from 0; 0 without a process group of torch."""
    return dist.get_rank() if size() > 1 else 0


def cuts(num_data: int, shares: int) -> list[int]:
    """Returns the boundaries that split a data set into shares of nearly equal size.

    Arguments:
        num_data: Number of rows of the data set.
        shares: Number of shares; if the split is uneven, the first shares have one row more.

    Raises:
        ValueError: If a share would be empty.

    Example:
        >>> cuts(7, 3)
        [0, 3, 5, 7]
    """
    if not 1 <= shares <= num_data:
        raise ValueError(
            f"`shares` must be from 1 to {num_data} for {count_of(num_data, 'row')}, because every "
            f"share must have a row; got {shares}: pass a number in this range (the default is "
            "the number of processes)"
        )
    small, more = divmod(num_data, shares)
    return [index * small + min(index, more) for index in range(shares + 1)]


class Share:
    """A reader that reads a range of the rows of another reader, and never any other row.

    Arguments:
        reader: The reader of all rows.
        first: Position of the share's first row.
        stop: Position after the share's last row.
    """

    def __init__(self, reader: RowReader, first: int, stop: int) -> None:
        self.reader, self.first, self.stop = reader, first, stop

    def __len__(self) -> int:
        """Number of rows."""
        return self.stop - self.first

    def read(self, rows: Int64[Tensor, " batch"]) -> Batch:
        """Returns the rows at these positions, which are counted from the share's first row."""
        return self.reader.read(rows + self.first)


def share(data: Any, index: int | None = None, shares: int | None = None) -> Any:
    """Returns the consecutive rows that :func:`torch.tensor_split` would give to one process.

    Arguments:
        data: One array or tensor, a tuple of them, or a reader of rows. Arrays are sliced, so
            that a memory map stays a memory map and nothing is read.
        index: Number of the share, counted from 0; by default the rank of this process.
        shares: Number of shares; by default the number of processes.

    Returns:
        The rows, as the same kind of data: views, or a :class:`Share` of a reader.

    Raises:
        ValueError: If a share would be empty, or if there is no share of this number.

    Example:
        >>> share(torch.arange(7), 1, 3)
        tensor([3, 4])
    """
    index = rank() if index is None else index
    shares = size() if shares is None else shares
    bounds = cuts(len(data[0] if isinstance(data, tuple) else data), shares)
    if not 0 <= index < shares:
        raise ValueError(
            f"`index` must be from 0 to {shares - 1} for {count_of(shares, 'share')}; got {index}: "
            "leave out `index` to use the rank of the process"
        )
    first, stop = bounds[index], bounds[index + 1]
    if isinstance(data, Augmented):
        return replace(data, data=share(data.data, index, shares))
    if isinstance(data, RowReader):
        return Share(data, first, stop)
    if isinstance(data, tuple):
        return tuple(part[first:stop] for part in data)
    return data[first:stop]


def gather(result: _Result) -> _Result:
    """Joins the results of all processes, in the order of the rows of the data set.

    Every process must call this function, and gets the whole result.

    Arguments:
        result: The result for the rows of this process: a tensor whose leftmost axis indexes the
            data, or a dataclass or tuple of such tensors. Examples are
            :class:`pyro_vae.evidence.LogMarginal` and the result of :func:`pyro_vae.elbo`. Entries
            that are not tensors must be the same in all processes.

    Returns:
        The result for all rows, so means and totals over data are those of the whole data set. If
        there are several processes, the result is on the CPU.

    Example:
        >>> gather(torch.arange(3))  # one process
        tensor([0, 1, 2])
    """
    if size() == 1:
        return result
    sendable = combined([result], lambda parts, _: parts[0].detach().cpu())
    return join(everyones(sendable))


@contextmanager
def fail_together(sums: Tensor | None = None, tensors: Iterable[Tensor] = ()) -> Iterator[None]:
    """Raises an error in all processes if the block fails in one, so that no process waits forever.

    At the end of the block, numbers and gradients can be replaced by their sums over processes.
    They are sent in the same message as the report of a failure: with a small model, a message
    takes more time than a training step.

    Arguments:
        sums: Numbers that the block fills in, of type float64.
        tensors: Tensors whose gradients are summed; the same ones in all processes. The gradient of
            a tensor stays `None` if no process has a gradient for it.

    Raises:
        FloatingPointError: If another process met numbers that are not finite.
        RuntimeError: If another process raised any other error; the message names the process and
            its error.
    """
    if size() == 1:
        yield
        return
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    if not _exchange(failed, sums, list(tensors)):
        return
    kind = FloatingPointError if isinstance(failed, FloatingPointError) else RuntimeError
    reports = everyones(None if failed is None else (kind, f"{type(failed).__name__}: {failed}"))
    if failed is not None:
        raise failed
    index, (kind, text) = next((i, report) for i, report in enumerate(reports) if report)
    raise kind(f"in process {index}: {text}")


@torch.no_grad()
def _exchange(failed: Exception | None, sums: Tensor | None, tensors: list[Tensor]) -> bool:
    """Sums numbers and gradients over processes; returns whether any process has failed."""
    numbers = [] if sums is None else sums.tolist()
    own = [failed is not None, *numbers, *(tensor.grad is not None for tensor in tensors)]
    groups = [
        [tensor for tensor in tensors if tensor.dtype == dtype]
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str)
    ]
    news, *gradients = _totals(
        torch.tensor(own, dtype=torch.float64, device="cpu"), *map(_flat_gradient, groups)
    )
    failures, *totals = news.tolist()
    if sums is not None:
        sums[:] = sums.new_tensor(totals[: len(numbers)])
    counts = dict(zip(tensors, totals[len(numbers) :], strict=True))
    for group, gradient in zip(groups, gradients, strict=True):
        pieces = gradient.split([tensor.numel() for tensor in group])
        for tensor, piece in zip(group, pieces, strict=True):
            if counts[tensor]:
                tensor.grad = piece.reshape(tensor.shape).to(tensor.device)
    return bool(failures)


def _flat_gradient(tensors: list[Tensor]) -> Tensor:
    """Joins the gradients of all tensors into one vector; a missing gradient counts as zero."""
    parts = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
    return torch.cat([part.to(_wire()).flatten() for part in parts])


def _totals(*tensors: Tensor) -> list[Tensor]:
    """Sums tensors over processes; all tensors are sent at once."""
    summed = [tensor.detach().to(_wire(), copy=True) for tensor in tensors]
    messages = [dist.all_reduce(each, async_op=True) for each in summed]
    for message in messages:
        message.wait()
    return [each.to(tensor.device) for each, tensor in zip(summed, tensors, strict=True)]


def total(tensor: Tensor) -> Tensor:
    """Sums a tensor over all processes, and returns the sum in every process."""
    return tensor if size() == 1 else _totals(tensor)[0]


@torch.no_grad()
def start_equal(tensors: Iterable[Tensor]) -> None:
    """Copies the values of tensors from the first process to all others."""
    for tensor in tensors:
        if size() > 1 and tensor.numel() > 0:
            value = tensor.detach().to(_wire()).contiguous()
            dist.broadcast(value, src=0)
            tensor.copy_(value)


def from_first(value: _Result) -> _Result:
    """Sends a value of the first process to all processes, and returns this value."""
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def to_first(value: _Result) -> list[_Result]:
    """In the first process, returns the values of all processes; in the others, an empty list."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size() if rank() == 0 else []
    dist.gather_object(value, values or None, dst=0)
    return values


def anywhere(*values: bool) -> list[bool]:
    """Returns, for each value, whether the value is true in at least one process."""
    if size() == 1:
        return list(values)
    return [count > 0 for count in total(torch.tensor(values, device="cpu").float()).tolist()]


def require_same(what: str, value: Any) -> None:
    """Raises an error in all processes if a value differs between processes.

    Raises:
        ValueError: If the value differs; the message names two processes and their values.
    """
    values = everyones(value)
    for index, other in enumerate(values):
        if other != values[0]:
            raise ValueError(
                f"{what} must be the same in all processes; got {values[0]} in process 0 and "
                f"{other} in process {index}: start all processes with the same arguments and data"
            )


def _wire() -> torch.device:
    """Returns the device on which the process group sends and receives tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def everyones(value: _Result) -> list[_Result]:
    """Returns the values of all processes, in the order of their ranks, in every process."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


check_public(globals())
