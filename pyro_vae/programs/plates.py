"""Plates that subsample, run on the rows they are given.

A program may open its plate over data on all of them and let Pyro choose a mini-batch,
`pyro.plate("data", N, subsample_size=B)` with `pyro.subsample`. A density per datum needs the
opposite: the program is called with some rows, and the plate shall hold exactly those. A plate
draws its rows, and keeps its size, before any handler can change the latter; so the function in
which Pyro does that is stood in for while a block of :func:`whole_plate` is being executed.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyro.poutine.subsample_messenger import SubsampleMessenger


class Subsampling(NamedTuple):
    """What a program asks a plate for, so many rows of so many; `None` where it is the batch's."""

    size: int | None
    subsample_size: int | None


@dataclass
class _Whole:
    """Which plates hold the rows given: the named one, or all that subsample; or none."""

    rows: int | None
    plate: str | None
    asked: dict[str, Subsampling] = field(default_factory=dict)


_CURRENT: ContextVar[_Whole | None] = ContextVar("pyro_vae_whole_plate", default=None)
_subsample = SubsampleMessenger._subsample
_lock = threading.Lock()
_blocks = 0  # blocks being executed, in all threads


@contextmanager
def whole_plate(rows: int | None, plate: str | None = None) -> Iterator[dict[str, Subsampling]]:
    """Makes a plate hold `rows` rows, all of them, whatever it was asked to subsample.

    Arguments:
        rows: Rows the program is called with; with `None` plates are left as they are, and what
            they ask for is noted.
        plate: Name of the plate; by default every plate that subsamples.

    Returns:
        What those plates had asked for, by name; filled while the block is executed.
    """
    whole = _Whole(rows, plate)
    token = _CURRENT.set(whole)
    _stand_in(+1)
    try:
        yield whole.asked
    finally:
        _stand_in(-1)
        _CURRENT.reset(token)


def _stand_in(change: int) -> None:
    """Counts blocks, so that Pyro's own function is back when the last one ends."""
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
    whole = _CURRENT.get()
    asked = subsample_size if subsample is None else len(subsample)
    if whole is None or (asked is None if whole.plate is None else name != whole.plate):
        return _subsample(name, size, subsample_size, subsample, use_cuda, device)
    if asked is not None and size is not None:
        whole.asked[name] = Subsampling(size, asked)
    if whole.rows is None:
        return _subsample(name, size, subsample_size, subsample, use_cuda, device)
    return _subsample(name, whole.rows, None, None, use_cuda, device)
