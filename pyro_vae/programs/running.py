"""The cost of one call of a program, and how many threads to use for it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .._types import Batch
from .pieces import take_rows
from .program import Program
from .traces import retry_unvalidated

_SMALL = 2**22  # bytes of results: one core computes them in about a millisecond
_NARROW = 2**13  # bytes per row: two threads gain a factor of 1.4 at most on a quiet machine


class Counted(TorchDispatchMode):
    """Counts operations and the total bytes of their results, an upper bound on peak memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.bytes += tensor.numel() * tensor.element_size()
        return out


def bytes_per_row(program: Program, batch: Batch) -> float:
    """Bytes of all intermediate results of a program, for one row of a batch and one particle.

    This number measures the cost of a run, and is an upper bound on its memory.
    """
    row = take_rows(batch, slice(1))
    key = program.dtype, *((part.shape, part.dtype) for part in row)
    if key not in program.bytes_per_row:
        program.bytes_per_row[key] = _counted_bytes(program, row)
    return program.bytes_per_row[key]


def _counted_bytes(program: Program, row: Batch) -> float:
    """Bytes of results per particle, by comparing runs with one and with three particles."""
    totals = []
    for particles in (1, 3):
        with Counted() as count:
            z = torch.zeros(
                particles, 1, program.latent_dim, dtype=program.dtype, device=row[0].device
            )
            retry_unvalidated(partial(program.log_densities, z, *row))
        totals.append(count.bytes)
    return (totals[1] - totals[0]) / 2


def threads_for(num_bytes: float | None) -> AbstractContextManager[None]:
    """Limits torch to one thread inside the block if the computation there is small.

    Arguments:
        num_bytes: Bytes of all results of the computation, as counted by :class:`Counted`. If
            `None`, the number of threads is not changed.

    Example:
        >>> before = torch.get_num_threads()
        >>> with threads_for(1e5):
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    return _one_thread(is_small=num_bytes is not None and num_bytes <= _SMALL)


def threads_for_rows(program: Program, batch: Batch) -> AbstractContextManager[None]:
    """Limits torch to one thread inside the block if a program's results for a row are small.

    The block runs the program on many rows at once. If the results for each row are small, reading
    and writing memory takes longer than the matrix products.

    Example:
        >>> import pyro
        >>> import pyro_vae as pv
        >>> y = torch.ones(3, 5)
        >>> model = pv.models.VAE(pv.nets.MLPDecoder(2, 5), pv.likelihoods.Bernoulli(), 2)
        >>> with threads_for_rows(pv.programs.Program(model, y), (y,)):
        ...     torch.get_num_threads()
        1
        >>> pyro.clear_param_store()  # of the run that counted the bytes
    """
    is_threaded = torch.get_num_threads() > 1  # otherwise nothing has to be counted
    return _one_thread(is_small=is_threaded and bytes_per_row(program, batch) <= _NARROW)


@contextmanager
def _one_thread(*, is_small: bool) -> Iterator[None]:
    """Limits torch to one thread inside the block if `is_small` is true.

    Threads that share a small computation wait for each other at every operation. If another
    process keeps a core busy, the computation takes tens of times as long as on one thread.
    """
    before = torch.get_num_threads()
    if not is_small or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
