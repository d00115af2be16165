"""The plate over data: which rows of the data set it holds, and how many.

A program may open its plate over data on all of them and let Pyro choose a mini-batch,
`pyro.plate("data", N, subsample_size=B)` with `pyro.subsample`. A density per datum needs the
opposite: the program is called with some rows, and the plate must hold exactly those. A plate draws
its rows and fixes its size before any handler can change it, so the function in which Pyro does
that is replaced inside a block of :func:`whole_plate`.

A training loop of the user's own says with :func:`minibatch` which rows a batch holds.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Int
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor

from .modes import capturing


class Subsampling(NamedTuple):
    """Size and subsample size that a program asks of a plate; `None` where it is the batch's."""

    size: int | None
    subsample_size: int | None


@dataclass
class _Whole:
    """The plates that hold the given rows: the named one, all without a fixed size, or none."""

    rows: int | None
    plate: str | None
    asked: dict[str, Subsampling] = field(default_factory=dict)


_WHOLE: ContextVar[_Whole | None] = ContextVar("pyro_vae_whole_plate", default=None)
_MINIBATCH: ContextVar["Minibatch | None"] = ContextVar("pyro_vae_minibatch", default=None)
_subsample = SubsampleMessenger._subsample
_lock = threading.Lock()
_blocks = 0  # blocks being executed, in all threads


@contextmanager
def whole_plate(rows: int | None, plate: str | None = None) -> Iterator[dict[str, Subsampling]]:
    """Makes a plate hold `rows` rows, all of them, whatever subsample it asks for.

    Arguments:
        rows: Number of rows that the program is called with; with `None` plates are left as they
            are, and what they ask for is recorded.
        plate: Name of the plate; by default every plate that subsamples or has no size.

    Returns:
        What those plates asked for, by name; filled while the block runs.
    """
    whole = _Whole(rows, plate)
    token = _WHOLE.set(whole)
    _stand_in(+1)
    try:
        yield whole.asked
    finally:
        _stand_in(-1)
        _WHOLE.reset(token)


def _stand_in(change: int) -> None:
    """Counts open blocks; Pyro's own function is restored when the last one ends."""
    global _blocks
    with _lock:
        _blocks += change
        function = _subsample_or_whole if _blocks > 0 else _subsample
        SubsampleMessenger._subsample = staticmethod(function)  # type: ignore[method-assign]


def _subsample_or_whole(
    name: str,
    size: int | None = None,
    subsample_size: int | None = None,
    subsample: Any = None,
    use_cuda: bool | None = None,  # noqa: FBT001  (Pyro's signature)
    device: Any = None,
) -> tuple[int, int, Any]:
    whole = _WHOLE.get()
    asked = subsample_size if subsample is None else len(subsample)
    fixed = asked is None and size is not None
    if whole is None or (fixed if whole.plate is None else name != whole.plate):
        return _subsample(name, size, subsample_size, subsample, use_cuda, device)
    if asked is not None and size is not None:
        whole.asked[name] = Subsampling(size, asked)
    if whole.rows is None:
        return _subsample(name, size, subsample_size, subsample, use_cuda, device)
    return _subsample(name, whole.rows, None, None, use_cuda, device)


@dataclass
class Minibatch:
    """Positions of a batch in its data set, the size of that set, and the plate over data."""

    rows: Tensor
    num_data: int
    plate: str | None = None


def current_minibatch() -> Minibatch | None:
    """The minibatch of the innermost block, or `None` outside any."""
    return _MINIBATCH.get()


class _ScalePlate(Messenger):
    """Scales the sites in the plate over data by N / B, as a subsampled plate would.

    The plate over data is the named one. By default a :class:`pyro_vae.Guide` names it when it is
    called; otherwise it is the plate whose size is that of the batch.
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
    r"""States which rows of the data set a batch is, so that any guide can be trained by hand.

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
        | https://arxiv.org/abs/1206.7051

    Example:
        >>> import torch
        >>> with minibatch(torch.tensor([3, 5]), num_data=10) as batch:
        ...     batch.num_data / len(batch.rows)
        5.0
    """
    _check_rows(rows, num_data)
    current = Minibatch(rows, num_data, plate)
    token = _MINIBATCH.set(current)
    try:
        with _ScalePlate(current), whole_plate(len(rows), plate):
            yield current
    finally:
        _MINIBATCH.reset(token)


@contextmanager
def outside_minibatch() -> Iterator[None]:
    """Hides the caller's minibatch, for runs on other rows."""
    token = _MINIBATCH.set(None)
    try:
        yield
    finally:
        _MINIBATCH.reset(token)


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
