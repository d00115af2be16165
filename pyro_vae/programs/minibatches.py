"""Which rows of the data set a batch holds, for a training loop of the user's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .capture import capturing
from .plates import whole_plate


@dataclass
class Minibatch:
    """Positions of a batch in its data set, the size of that set, and the plate over data."""

    rows: Tensor
    num_data: int
    plate: str | None = None


_CURRENT: ContextVar[Minibatch | None] = ContextVar("pyro_vae_minibatch", default=None)


def current_minibatch() -> Minibatch | None:
    """The minibatch whose block is being executed, or `None` outside any."""
    return _CURRENT.get()


class _ScalePlate(Messenger):
    """Scales the sites in the plate over data by N / B, as a subsampled plate would.

    The plate over data is the named one. Unless somebody names it, which a :class:`pyro_vae.Guide`
    does when it is called, it is the one whose size is that of the batch.
    """

    def __init__(self, batch: Minibatch) -> None:
        super().__init__()
        self.batch, self.rows = batch, len(batch.rows)

    def _is_data(self, frame: Any) -> bool:
        if self.batch.plate is not None:
            return bool(frame.name == self.batch.plate)
        return bool(frame.size == self.rows)

    def _pyro_sample(self, msg: Any) -> None:
        # An inner plate may have as many entries as the batch: a site is scaled once or not at all.
        if any(self._is_data(frame) for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.batch.num_data / self.rows


@contextmanager
def minibatch(
    rows: Int[Tensor, " batch"], num_data: int, *, plate: str | None = None
) -> Iterator[Minibatch]:
    r"""Says which rows of the data set a batch is, so that every guide can be trained by hand.

    Inside the block a guide with :class:`LocalParameters` takes the parameters of these rows, and
    every site in the plate over data is scaled by :math:`N / B`: the loss of one step estimates
    minus the ELBO of the whole data set, in nats. A plate that subsamples by itself holds the rows
    of the batch, and sites outside the plate are not scaled.

    .. math:: \widehat{\mathrm{ELBO}} = \frac{N}{B} \sum_{b=1}^{B} \mathrm{ELBO}(y_{n_b})

    Arguments:
        rows: Positions of the batch in the data set, `(batch,)`, integers.
        num_data: Rows of the data set, :math:`N`.
        plate: Name of the plate over data; by default a :class:`pyro_vae.Guide` names it, and with
            another guide it is the plate with as many entries as `rows`.

    Raises:
        ValueError: If `rows` is empty, or a row lies outside `0 .. num_data - 1`.

    References:
        | Stochastic Variational Inference (Hoffman et al., 2013)
        | https://arxiv.org/abs/1206.7055

    Example:
        >>> import torch
        >>> with minibatch(torch.tensor([3, 5]), num_data=10) as batch:
        ...     batch.num_data / len(batch.rows)
        5.0
    """
    _check_rows(rows, num_data)
    current = Minibatch(rows, num_data, plate)
    token = _CURRENT.set(current)
    try:
        with _ScalePlate(current), whole_plate(len(rows), plate):
            yield current
    finally:
        _CURRENT.reset(token)


def _check_rows(rows: Tensor, num_data: int) -> None:
    if rows.numel() == 0:
        raise ValueError("a minibatch needs at least one row, got none")
    if capturing():
        return
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= num_data:
        raise ValueError(
            f"rows must lie in 0 .. {num_data - 1} (num_data={num_data}), got {low} .. {high}"
        )
