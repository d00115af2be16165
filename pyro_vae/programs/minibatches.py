"""Which rows of the data set a batch holds, for a training loop of the user's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from pyro.poutine.messenger import Messenger
from torch import Tensor


class Minibatch(NamedTuple):
    """Positions of a batch in its data set, and the size of that set."""

    rows: Tensor
    num_data: int


_CURRENT: ContextVar[Minibatch | None] = ContextVar("pyro_vae_minibatch", default=None)


def current_minibatch() -> Minibatch | None:
    """The minibatch whose block is being executed, or `None` outside any."""
    return _CURRENT.get()


class _ScalePlate(Messenger):
    """Scales the sites in the plate over data by N / B, as a subsampled plate would.

    The plate over data is the one whose size is that of the batch; a plate that subsamples by
    itself has scaled already and is left alone.
    """

    def __init__(self, batch: int, factor: float, plate: str | None) -> None:
        super().__init__()
        self.batch, self.factor, self.plate = batch, factor, plate

    def _is_data(self, frame: Any) -> bool:
        named = self.plate is None or frame.name == self.plate
        return bool(named and frame.size == self.batch)

    def _pyro_sample(self, msg: Any) -> None:
        frames = [frame for frame in msg["cond_indep_stack"] if self._is_data(frame)]
        # An inner plate may have as many entries as the batch: a site is scaled once or not at all.
        if frames and all(frame.full_size == frame.size for frame in frames):
            msg["scale"] = msg["scale"] * self.factor


@contextmanager
def minibatch(
    rows: Int[Tensor, " batch"], num_data: int, *, plate: str | None = None
) -> Iterator[Minibatch]:
    r"""Says which rows of the data set a batch is, so that every guide can be trained by hand.

    Inside the block a guide with :class:`LocalParameters` takes the parameters of these rows, and
    every site in the plate over data is scaled by :math:`N / B`: the loss of one step estimates
    minus the ELBO of the whole data set, in nats.

    .. math:: \widehat{\mathrm{ELBO}} = \frac{N}{B} \sum_{b=1}^{B} \mathrm{ELBO}(y_{n_b})

    Arguments:
        rows: Positions of the batch in the data set, `(batch,)`, integers.
        num_data: Rows of the data set, :math:`N`.
        plate: Name of the plate over data; by default the plate with as many entries as `rows`.

    Raises:
        ValueError: If `rows` is empty, or a row lies outside `0 .. num_data - 1`.

    References:
        | Stochastic Variational Inference (Hoffman et al., 2013)
        | https://arxiv.org/abs/1206.7055

    Example:
        >>> with minibatch(torch.tensor([3, 5]), num_data=10) as batch:
        ...     batch.num_data / len(batch.rows)
        5.0
    """
    _check_rows(rows, num_data)
    current = Minibatch(rows, num_data)
    token = _CURRENT.set(current)
    try:
        with _ScalePlate(len(rows), num_data / len(rows), plate):
            yield current
    finally:
        _CURRENT.reset(token)


def _check_rows(rows: Tensor, num_data: int) -> None:
    if rows.numel() == 0:
        raise ValueError("a minibatch needs at least one row, got none")
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= num_data:
        raise ValueError(
            f"rows must lie in 0 .. {num_data - 1} (num_data={num_data}), got {low} .. {high}"
        )


def rows_or_all(num_rows: int) -> Tensor:
    """Rows of the current minibatch, or `0 .. num_rows - 1` outside any."""
    current = current_minibatch()
    return torch.arange(num_rows) if current is None else current.rows
