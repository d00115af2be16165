r"""Log densities of very many draws, compiled.

Importance-weighted evaluation asks one program for the densities of piece after piece of draws, all
of the same shape. What is not the decoder's matrix products (sums over the features of a datum,
with an exponential and a logarithm for each of them) costs as much again when it is done operation
by operation. A compiler makes one pass over memory of it.

The program is captured (see `pyro_vae.programs.capture`) and compiled once for a shape, and the
result kept with the model for the next evaluation. A model may have changed since in ways that no
tensor shows: so the first draw of every block is weighed by the program as it is written, too, and
the two have to agree.
"""

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .._types import Batch
from ..programs import Captured, LogDensities, NotCaptured, Program, capture, has_missing

_COMPILING = 20.0  # seconds, on two busy cores
_SAVED = 0.3  # share of the time that compiled densities save at the least
_AGREE = 1e-4  # relative difference of sums over a datum in float32, in another order

Written = Callable[[Tensor], LogDensities]

_GRAPHS: "WeakKeyDictionary[Any, dict[Any, Captured]]" = WeakKeyDictionary()


class Densities:
    """A program's log densities, compiled where that pays or was asked for.

    Arguments:
        program: The model; its shared latents have their values.
        asked: True to compile at once, False never, None where it pays.
    """

    def __init__(self, program: Program, *, asked: bool | None) -> None:
        self.program, self.asked = program, asked
        self.shared = tuple(program.fixed.values())
        self.is_refused = asked is False
        self.graphs = _graphs_of(program.model)
        self.seconds, self.rows = 0.0, 0

    def timed(self, seconds: float, rows: int) -> None:
        """Told how long the program took, as it is written, for so many draws."""
        self.seconds += seconds
        self.rows += rows

    def __call__(
        self, z: Tensor, batch: Batch, particles: int, rows_left: int, written: Written
    ) -> list[LogDensities] | None:
        """Densities of draws in pieces, or `None` if they are to be evaluated as written.

        Arguments:
            z: Draws `(particles, batch, latents)`.
            batch: Their data.
            particles: The most of a piece.
            rows_left: How many draws of some datum are still to be weighed.
            written: Evaluates a first draw as it is written, with the data validated.
        """
        size = even_pieces(len(z), particles)
        graph = None if self.is_refused else self._graph(z[:size], batch, rows_left)
        if graph is None:
            return None
        expected = written(z[:1])
        found = [
            LogDensities(*graph(piece, *self.shared, *batch))
            if len(piece) == size
            else self.program.log_densities(piece, *batch)
            for piece in z.split(size)
        ]
        return found if self._agrees(expected, found[0]) else None

    def _graph(self, z: Tensor, batch: Batch, rows_left: int) -> Captured | None:
        """A graph for draws and data of these shapes, or `None` if there is to be none."""
        tensors = (z, *self.shared, *batch)
        shapes = tuple((part.shape, part.dtype, part.device) for part in tensors)
        missing = any(map(has_missing, batch))
        key = (self.program.plate, shapes, missing)
        graph = self.graphs.get(key)
        if graph is not None and graph.is_current:
            return graph
        if not self._pays(rows_left):
            return None
        try:
            self.graphs[key] = self._compile(tensors, missing=missing)
        except NotCaptured as error:
            self._refuse(str(error))
            return None
        return self.graphs[key]

    def _agrees(self, expected: LogDensities, found: LogDensities) -> bool:
        """Whether a first draw has the densities that the program gives it. If not, graphs go."""
        same = all(
            torch.allclose(mine[:1], theirs, rtol=_AGREE, atol=_AGREE, equal_nan=True)
            for mine, theirs in zip(found, expected, strict=True)
        )
        if not same:
            self.graphs.clear()
            self._refuse("compiled densities differ from those of the program as it is written")
        return same

    def _pays(self, rows_left: int) -> bool:
        if self.asked:
            return True
        return self.rows > 0 and rows_left * self.seconds / self.rows * _SAVED > _COMPILING

    def _compile(self, tensors: Batch, *, missing: bool) -> Captured:
        stream = torch.get_rng_state()
        try:
            return capture(self._flat, *tensors, missing=missing).compiled(*tensors)
        finally:
            torch.set_rng_state(stream)

    def _flat(self, z: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        """Latents, values of shared latents, and data: all that differs from call to call."""
        values = dict(zip(self.program.fixed, rest[: len(self.shared)], strict=True))
        with self.program.at(values):
            prior, likelihood = self.program.log_densities(z, *rest[len(self.shared) :])
        return prior, likelihood

    def _refuse(self, reason: str) -> None:
        self.is_refused = True
        if self.asked:
            warnings.warn(
                f"densities are evaluated as they are written, not compiled: {reason}",
                UserWarning,
                stacklevel=2,
            )


def _graphs_of(model: Any) -> dict[Any, Captured]:
    try:
        return _GRAPHS.setdefault(model, {})
    except TypeError:  # cannot be referred to weakly, or has no hash
        return {}


def even_pieces(num_samples: int, most: int) -> int:
    """Draws of a piece, no more than `most`: where possible all pieces are of one size.

    Example:
        >>> even_pieces(5000, 2048), even_pieces(100, 2048), even_pieces(4999, 2048)
        (1250, 100, 2048)
    """
    divisors = (size for size in range(min(most, num_samples), 0, -1) if num_samples % size == 0)
    largest = next(divisors)
    return largest if 2 * largest > min(most, num_samples) else min(most, num_samples)
