r"""Shards: consecutive ranges of rows; the batch of a step has a part from each shard.

The data set is cut into :math:`S` shards of nearly equal size. Each shard has a random stream,
seeded by the run's seed and the shard's number. This stream gives the order of the shard's rows and
the noise of the shard's part of a step. A step of about :math:`B` rows has a part
:math:`\mathcal{B}_s` from every shard, and minimizes the sum of the parts' losses,

.. math:: \mathcal{L} = \frac{1}{B} \sum_{s=1}^{S} \sum_{n \in \mathcal{B}_s} \mathcal{L}_n

where :math:`\mathcal{L}_n` is the loss of row n. Global terms, such as the KL term of a global
latent site, are in the loss of every shard with the weight :math:`|\mathcal{B}_s| / B`. So it does
not matter where a shard is processed. One process that takes all shards in turn gives the same
numbers as several processes with one shard each, up to the order in which gradients are added.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import distributed
from .._types import ProgramLike
from ..guides.entry import row_buffers
from ..programs.modes import modules_of
from ..randomness import (
    forked,
    random_state,
    restore_streams,
    set_random_state,
    streams_of_torch,
)


class Stream:
    """The random stream of one shard, which advances only while it is used."""

    def __init__(self, seed: int, index: int) -> None:
        with forked(seed, f"fit.shard.{index}"):
            self.state = random_state()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Takes draws in the block from this stream; the stream outside does not advance."""
        before = random_state()
        set_random_state(self.state)
        try:
            yield
        finally:
            self.state = random_state()
            set_random_state(before)


@dataclass(frozen=True)
class Shard:
    """A range of consecutive rows of one process's data.

    Arguments:
        first: Position of the first row.
        size: Number of rows.
        stream: Random stream of the shard; `None` to use the stream of the run.
    """

    first: int
    size: int
    stream: Stream | None = None

    def used(self) -> AbstractContextManager[None]:
        """Takes draws in the block from the shard's stream, or from the run's if it has none."""
        return nullcontext() if self.stream is None else self.stream.used()

    def epoch(self, ends: Tensor, num_data: int) -> list[Tensor]:
        """Returns the shard's rows for every step of an epoch, in a new random order.

        Arguments:
            ends: Boundaries of the steps, `(steps + 1,)`: step i takes `ends[i + 1] - ends[i]` rows
                of the data set.
            num_data: Number of rows of the data set.
        """
        with self.used():
            order = torch.randperm(self.size, device="cpu") + self.first
        if len(ends) == 2:  # rows of a single step stay in order: a guide may use their positions
            order = order.sort().values
        cuts = (ends * self.size).div(num_data, rounding_mode="floor")
        return list(order.split(cuts.diff().tolist()))


class Part(NamedTuple):
    """The rows of one step that belong to one shard, as positions in the process's data."""

    shard: Shard
    rows: Tensor


@dataclass(frozen=True)
class Shards:
    """The shards that this process works on: several if it does the work of several processes.

    Arguments:
        own: The shards of this process.
        count: Number of shards in all processes together.
        num_data: Number of rows in all processes together.
    """

    own: tuple[Shard, ...]
    count: int
    num_data: int

    @classmethod
    def of(cls, num_rows: int, seed: int) -> "Shards":
        """Makes one shard per process, with all rows of the process."""
        processes = distributed.size()
        if processes == 1:
            return cls((Shard(0, num_rows),), 1, num_rows)
        stream = Stream(seed, distributed.rank())
        return cls((Shard(0, num_rows, stream),), processes, sum(distributed.everyones(num_rows)))

    @property
    def streams(self) -> Any:
        """The state of the random streams of the run and of its shards."""
        return random_state(), [shard.stream and shard.stream.state for shard in self.own]

    @property
    def order(self) -> list[Any]:
        """The states of the random streams from which :meth:`epoch` draws the order of rows."""
        return [shard.stream.state if shard.stream else streams_of_torch() for shard in self.own]

    def epoch_from(self, order: list[Any], batch_size: int, *, fewest: int) -> list[list[Part]]:
        """Returns the rows of an earlier epoch, whose :attr:`order` is given; changes no stream."""
        now = self.streams
        for shard, state in zip(self.own, order, strict=True):
            if shard.stream is None:
                restore_streams(state)
            else:
                shard.stream.state = state
        steps = self.epoch(batch_size, fewest=fewest)
        self.set_streams(now)
        return steps

    def set_streams(self, state: Any) -> None:
        """Restores a state that :attr:`streams` returned."""
        of_run, of_shards = state
        set_random_state(of_run)
        for shard, before in zip(self.own, of_shards, strict=True):
            if shard.stream is not None:
                shard.stream.state = before

    def epoch(self, batch_size: int, *, fewest: int = 1) -> list[list[Part]]:
        """Returns, for every step of an epoch, the rows that this process's shards contribute.

        An epoch uses each row once. All steps but the last have about `batch_size` rows in all
        processes together. The number of rows that a shard contributes to a step is proportional to
        the shard's size. If the last step has fewer rows than `fewest`, it is merged with the step
        before it.

        Raises:
            ValueError: If a batch has fewer rows than there are shards.
        """
        if batch_size < self.count:
            raise ValueError(
                f"with {self.count} shards, `batch_size` must be at least {self.count}; got "
                f"{batch_size}"
            )
        ends = torch.arange(0, self.num_data, batch_size, device="cpu")
        if len(ends) > 1 and self.num_data - int(ends[-1]) < fewest:
            ends = ends[:-1]
        ends = torch.cat([ends, ends.new_tensor([self.num_data])])
        columns = [shard.epoch(ends, self.num_data) for shard in self.own]
        return [
            [Part(*pair) for pair in zip(self.own, rows, strict=True) if pair[1].numel() > 0]
            for rows in zip(*columns, strict=True)
        ]


def start_equal(model: ProgramLike, guide: ProgramLike, tensors: dict[str, Tensor]) -> None:
    """Copies all tensors except per-row parameters from the first process to all others.

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
    """Returns parameters and buffers by name, except tables with an entry for each data row."""
    own = set(row_buffers(guide))
    return {
        f"{role}[{index}].{name}": value
        for role, program in (("model", model), ("guide", guide))
        for index, module in enumerate(modules_of(program))
        for name, value in [*module.named_parameters(), *module.named_buffers()]
        if value not in own
    }


def norms_of(*programs: ProgramLike) -> dict[str, nn.Module]:
    """Returns the layers that average over a batch (`BatchNorm` and similar), by name."""
    return {
        f"{type(part).__name__} '{name}'": part
        for program in programs
        for module in modules_of(program)
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats
    }


def refuse_running_averages(count: int, batch_size: int, *programs: ProgramLike) -> None:
    """Refuses layers that average over a batch, if a batch has one row or is split into shards.

    Raises:
        ValueError: If there is such a layer; the error names it.
    """
    norms = norms_of(*programs)
    remedy = "use nn.LayerNorm or nn.GroupNorm in its place"
    if norms and count > 1:
        raise ValueError(
            f"{next(iter(norms))} keeps running averages over batches, and these averages differ "
            f"between processes: {remedy}, or train in one process"
        )
    if norms and batch_size == 1:
        raise ValueError(
            f"{next(iter(norms))} requires the variance over a batch, but each batch has one row: "
            f"{remedy}, or pass a `batch_size` of at least 2"
        )
