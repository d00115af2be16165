"""Compiled functions of a model, kept with it for the next evaluation.

Evaluations ask a program for the same function of tensors hundreds of times. It is captured (see
`capture`) and compiled once for tensors of given shapes. A model may have changed since in ways
that no tensor shows: so whoever uses a graph holds it against the program as it is written, at the
start of every evaluation.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .capture import Captured, NotCaptured, capture

_AGREE = 1e-4  # relative difference of sums over a datum in float32, in another order
_MOST_OPERATIONS = 400  # compiled unasked: a VAE has 150, and a long series takes minutes
_SECOND_CHANCES = 1  # for a model that has changed; one that differs again always will

Flat = Callable[..., Sequence[Tensor]]


@dataclass
class _Kept:
    """What is known of a model: its graphs, why there are none, what it has cost as written."""

    graphs: dict[Any, Captured] = field(default_factory=dict)
    refused: dict[Any, str] = field(default_factory=dict)
    disagreements: int = 0
    work: float = 0.0


_KEPT: "WeakKeyDictionary[Any, _Kept]" = WeakKeyDictionary()


class Graphs:
    """Compiled functions of one model, made where that pays or was asked for.

    Arguments:
        model: With which they are kept.
        what: What they are of, in words, for a warning.
        asked: True to compile at once, False never, None where it pays.
    """

    def __init__(self, model: Any, what: str, *, asked: bool | None) -> None:
        self.what, self.asked = what, asked
        self.is_refused = asked is False
        self._kept = _kept_with(model)

    @property
    def work(self) -> float:
        """What the model has cost as it is written, in the unit of :meth:`worked`."""
        return self._kept.work

    def worked(self, work: float) -> None:
        """Told of what the model cost as it is written."""
        self._kept.work += work

    def of(
        self, name: Any, function: Flat, tensors: Sequence[Tensor], *, missing: bool, pays: bool
    ) -> Captured | None:
        """The graph of a function for tensors of these shapes, or `None` if there is to be none.

        Arguments:
            name: What tells the function from others of the model.
            function: What is captured, if it was not.
            tensors: Its arguments: all that differs between its calls.
            missing: Whether data have entries that are nan, for "not observed".
            pays: Whether it may be compiled though nobody asked.
        """
        if self.is_refused:
            return None
        shapes = tuple((part.shape, part.dtype, part.device) for part in tensors)
        key = (name, shapes, missing)
        graph = self._kept.graphs.get(key)
        if graph is not None and graph.is_current:
            return graph
        if not (self.asked or pays):
            return None
        try:
            self._kept.graphs[key] = self._compiled(key, function, tensors, missing=missing)
        except NotCaptured as error:
            self._refuse(str(error))
            return None
        return self._kept.graphs[key]

    def _compiled(
        self, key: Any, function: Flat, tensors: Sequence[Tensor], *, missing: bool
    ) -> Captured:
        """A new graph; no random stream moves.

        Raises:
            NotCaptured: If there can be none, or none that pays; the next time without a try.
        """
        if key in self._kept.refused and not self.asked:
            raise NotCaptured(self._kept.refused[key])
        stream = torch.get_rng_state()
        try:
            captured = capture(function, *tensors, missing=missing)
            operations = len(captured.graph.graph.nodes)
            if not self.asked and operations > _MOST_OPERATIONS:
                raise NotCaptured(f"it would take long to compile its {operations} operations")
            return captured.compiled(*tensors)
        except NotCaptured as error:
            if not self.asked:
                self._kept.refused[key] = str(error)
            raise
        finally:
            torch.set_rng_state(stream)

    def agree(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
        """Whether a graph gives what the program gives. If not, all graphs of the model go."""
        same = all(
            torch.allclose(mine, theirs, rtol=_AGREE, atol=_AGREE, equal_nan=True)
            for mine, theirs in zip(found, expected, strict=True)
        )
        if not same:
            reason = f"compiled {self.what} differ from those of the program as it is written"
            if self._kept.disagreements >= _SECOND_CHANCES:
                self._kept.refused.update(dict.fromkeys(self._kept.graphs, reason))
            self._kept.disagreements += 1
            self._kept.graphs.clear()
            self._refuse(reason)
        return same

    def _refuse(self, reason: str) -> None:
        self.is_refused = True
        if self.asked:
            warnings.warn(
                f"{self.what} are evaluated as they are written, not compiled: {reason}",
                UserWarning,
                stacklevel=2,
            )


def _kept_with(model: Any) -> _Kept:
    try:
        return _KEPT.setdefault(model, _Kept())
    except TypeError:  # cannot be referred to weakly, or has no hash
        return _Kept()
