r"""Shards: consecutive shares of the rows, from each of which a step takes its part of the batch.

The data set is cut into :math:`S` shards of nearly equal size. Each has a stream of random numbers
of its own, for the order of its rows and the noise of its part of a step, which is seeded by the
run's seed and the shard's number. A step of about :math:`B` rows has a part
:math:`\mathcal{B}_s` from every shard, and minimizes the sum of their losses,

.. math:: \mathcal{L} = \frac{1}{B} \sum_{s=1}^{S} \sum_{n \in \mathcal{B}_s} \mathcal{L}_n

(what all data share, such as the KL term of a global latent site, is in the loss of every shard
with the weight :math:`|\mathcal{B}_s| / B`). So it does not matter where a shard is worked on: one
process takes them in turn, several processes one each, and all arrive at the same numbers but for
the order in which gradients are added.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from .. import distributed
from .._types import ProgramLike
from ..guides import row_buffers
from ..programs import modules_of
from ..randomness import forked


class Stream:
    """Random numbers of one shard, which stand still while they are not used."""

    def __init__(self, seed: int, index: int) -> None:
        with forked(seed, f"fit.shard.{index}"):
            self.state = random_state()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Draws come from this stream, and the one from before does not move."""
        before = random_state()
        set_random_state(self.state)
        try:
            yield
        finally:
            self.state = random_state()
            set_random_state(before)


@dataclass(frozen=True)
class Shard:
    """Some consecutive rows of what a process has.

    Arguments:
        first: Position of the first row.
        size: Number of rows.
        stream: Its random numbers; with `None` they are those of the run.
    """

    first: int
    size: int
    stream: Stream | None = None

    def used(self) -> Any:
        """Draws come from this shard's stream."""
        return nullcontext() if self.stream is None else self.stream.used()

    def epoch(self, ends: Tensor, num_data: int) -> list[Tensor]:
        """The rows in a new order, cut as steps that end after so many of all data are.

        Arguments:
            ends: Rows of the data set before a step, and after the last one.
            num_data: Rows of the data set.
        """
        with self.used():
            order = torch.randperm(self.size) + self.first
        if len(ends) == 2:  # one step has them all: a guide may know them by their places
            order = order.sort().values
        cuts = (ends * self.size).div(num_data, rounding_mode="floor").tolist()
        return [order[start:stop] for start, stop in pairwise(cuts)]


class Part(NamedTuple):
    """What one shard gives to a step: rows, at least one, by their positions in the process."""

    shard: Shard
    rows: Tensor


@dataclass(frozen=True)
class Shards:
    """The shards that this process works on.

    Arguments:
        own: Those.
        count: How many there are in all processes.
        num_data: Rows in all processes.
    """

    own: tuple[Shard, ...]
    count: int
    num_data: int

    @classmethod
    def of(cls, num_rows: int, seed: int) -> "Shards":
        """One a process, whose rows these are."""
        processes = distributed.size()
        if processes == 1:
            return cls((Shard(0, num_rows),), 1, num_rows)
        stream = Stream(seed, distributed.rank())
        return cls((Shard(0, num_rows, stream),), processes, sum(distributed.sizes(num_rows)))

    @classmethod
    def cut(cls, num_rows: int, seed: int, *, count: int) -> "Shards":
        """What so many processes would have, taken in turn in this one."""
        cuts = enumerate(pairwise(distributed.cuts(num_rows, count)))
        own = (Shard(a, b - a, Stream(seed, index)) for index, (a, b) in cuts)
        return cls(tuple(own), count, num_rows)

    def epoch(self, batch_size: int, *, fewest: int = 1) -> list[list[Part]]:
        """The parts of each step of an epoch, in which every row comes once.

        A step ends after a multiple of the batch size, the last one with the data; a shard's part
        of it is proportional to the shard. A last step of fewer rows than `fewest` is made one
        with that before it.

        Raises:
            ValueError: If there are fewer rows in a batch than shards.
        """
        if batch_size < self.count:
            raise ValueError(
                f"{self.count} shards need batches of at least {self.count} rows, got {batch_size}"
            )
        ends = torch.arange(0, self.num_data, batch_size)
        if len(ends) > 1 and self.num_data - int(ends[-1]) < fewest:
            ends = ends[:-1]
        ends = torch.cat([ends, torch.tensor([self.num_data])])
        columns = [shard.epoch(ends, self.num_data) for shard in self.own]
        return [
            [Part(*pair) for pair in zip(self.own, rows, strict=True) if len(pair[1]) > 0]
            for rows in zip(*columns, strict=True)
        ]

    def add_up(self, elbo: float, tensors: Iterable[Tensor]) -> float:
        """Sums the gradients, and the ELBO of a step, over processes."""
        distributed.add_gradients(tensors)
        return float(distributed.total(torch.tensor(elbo, dtype=torch.float64)))


def start_equal(model: ProgramLike, guide: ProgramLike, tensors: dict[str, Tensor]) -> None:
    """Gives what all data share the values that it has in the first process.

    Raises:
        ValueError: If the processes do not have the same tensors, with the same shapes.
    """
    if distributed.size() == 1:
        return
    shared = tensors | _shared(model, guide)
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in shared.items()]
    distributed.require_same("what is trained", shapes)
    distributed.start_equal(shared.values())


def _shared(model: ProgramLike, guide: ProgramLike) -> dict[str, Tensor]:
    """Parameters and buffers that do not belong to rows, by name."""
    own = set(row_buffers(guide))
    return {
        f"{role}[{index}].{name}": value
        for role, program in (("model", model), ("guide", guide))
        for index, module in enumerate(modules_of(program))
        for name, value in [*module.named_parameters(), *module.named_buffers()]
        if value not in own
    }


def norms_of(*programs: ProgramLike) -> dict[str, nn.Module]:
    """Layers that take means over a batch, by name."""
    return {
        f"{type(part).__name__} '{name}'": part
        for program in programs
        for module in modules_of(program)
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats
    }


def refuse_running_averages(count: int, batch_size: int, *programs: ProgramLike) -> None:
    """Refuses layers that take means over a batch, of one row, or in several shards.

    Raises:
        ValueError: If there is one; names it.
    """
    norms = norms_of(*programs)
    remedy = "use nn.LayerNorm or nn.GroupNorm in its place"
    if norms and count > 1:
        raise ValueError(
            f"{next(iter(norms))} keeps averages of the batches it saw, which differ from shard to "
            f"shard: {remedy}, or train in one process"
        )
    if norms and batch_size == 1:
        raise ValueError(
            f"{next(iter(norms))} takes the spread over a batch, and one row has none: {remedy}, "
            "or take two rows or more per step"
        )


def random_state() -> Any:
    """Where the random streams stand: those of Python, NumPy and torch, and of accelerators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return pyro.util.get_rng_state(), cuda


def set_random_state(state: Any) -> None:
    """Puts them back there."""
    on_cpu, cuda = state
    pyro.util.set_rng_state(on_cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
