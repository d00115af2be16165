"""How a program is called where its numbers may be none, and what a call costs."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pyro
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .._types import Batch
from .program import Program

_Answer = TypeVar("_Answer")


def despite_nan(call: Callable[[], _Answer]) -> _Answer:
    """Calls it; if a distribution refuses a nan, calls it again without Pyro's validation.

    The answer then has the nan, and :func:`require_numbers` says whose it is.
    """
    try:
        return call()
    except ValueError:
        with pyro.validation_enabled(is_validate=False):
            answer = call()
        if _is_numbers(answer):
            raise  # refused for another reason, such as data outside the support
        return answer


def _is_numbers(answer: Any) -> bool:
    if isinstance(answer, Tensor):
        return not bool((answer.isnan() | answer.isposinf()).any())
    return isinstance(answer, tuple | list) and all(map(_is_numbers, answer))


class _CountBytes(TorchDispatchMode):
    """Sums the bytes of every tensor made: an upper bound on what is alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.total += tensor.numel() * tensor.element_size()
        return out


def bytes_per_row(program: Program, batch: Batch) -> float:
    """Bytes that one more row of a program's batch makes: what it costs, and a bound on memory."""
    row, totals = tuple(part[:1] for part in batch), []
    for particles in (1, 3):
        with _CountBytes() as count:
            z = torch.zeros(
                particles, 1, program.latent_dim, dtype=program.dtype, device=row[0].device
            )
            despite_nan(partial(program.log_densities, z, *row))
        totals.append(count.total)
    return (totals[1] - totals[0]) / 2
