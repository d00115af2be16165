"""The cost of a call of a program."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .._types import Batch
from .program import Program
from .traces import retry_unvalidated


class Counted(TorchDispatchMode):
    """Counts operations, and the bytes of all results: an upper bound on peak memory."""

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
    """Bytes of results per row of a program's batch: a measure of cost, and a bound on memory."""
    row, totals = tuple(part[:1] for part in batch), []
    for particles in (1, 3):
        with Counted() as count:
            z = torch.zeros(
                particles, 1, program.latent_dim, dtype=program.dtype, device=row[0].device
            )
            retry_unvalidated(partial(program.log_densities, z, *row))
        totals.append(count.bytes)
    return (totals[1] - totals[0]) / 2
