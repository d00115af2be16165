r"""Log densities of very many draws, compiled.

Importance-weighted evaluation asks one program for the densities of piece after piece of draws, all
of the same shape. What is not the decoder's matrix products (sums over the features of a datum,
with an exponential and a logarithm for each of them) costs as much again when it is done operation
by operation. A compiler makes one pass over memory of it.

The program is compiled once for a shape (see `pyro_vae.programs.graphs`). The first draw of every
block is weighed by the program as it is written, too, and the two have to agree.
"""

from collections.abc import Callable

from torch import Tensor

from .._types import Batch
from ..programs import Captured, Graphs, LogDensities, Program, has_missing

_COMPILING = 20.0  # seconds, on two busy cores
_SAVED = 0.3  # share of the time that compiled densities save at the least

Written = Callable[[Tensor], LogDensities]


class Densities:
    """A program's log densities, compiled where that pays or was asked for.

    Arguments:
        program: The model; its shared latents have their values.
        asked: True to compile at once, False never, None where it pays.
    """

    def __init__(self, program: Program, *, asked: bool | None) -> None:
        self.program = program
        self.shared = tuple(program.fixed.values())
        self.graphs = Graphs(program.model, "densities", asked=asked)
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
        graph = self._graph(z[:size], batch, rows_left)
        if graph is None:
            return None
        expected = written(z[:1])
        found = [
            LogDensities(*graph(piece, *self.shared, *batch))
            if len(piece) == size
            else self.program.log_densities(piece, *batch)
            for piece in z.split(size)
        ]
        head = [part[:1] for part in found[0]]
        return found if self.graphs.agree(expected, head) else None

    def _graph(self, z: Tensor, batch: Batch, rows_left: int) -> Captured | None:
        """A graph for draws and data of these shapes, or `None` if there is to be none."""
        return self.graphs.of(
            ("densities", self.program.plate),
            self._flat,
            (z, *self.shared, *batch),
            missing=any(map(has_missing, batch)),
            pays=self.rows > 0 and rows_left * self.seconds / self.rows * _SAVED > _COMPILING,
        )

    def _flat(self, z: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        """Latents, values of shared latents, and data: all that differs from call to call."""
        values = dict(zip(self.program.fixed, rest[: len(self.shared)], strict=True))
        with self.program.at(values):
            prior, likelihood = self.program.log_densities(z, *rest[len(self.shared) :])
        return prior, likelihood


def even_pieces(num_samples: int, most: int) -> int:
    """Draws of a piece, no more than `most`: where possible all pieces are of one size.

    Example:
        >>> even_pieces(5000, 2048), even_pieces(100, 2048), even_pieces(4999, 2048)
        (1250, 100, 2048)
    """
    divisors = (size for size in range(min(most, num_samples), 0, -1) if num_samples % size == 0)
    largest = next(divisors)
    return largest if 2 * largest > min(most, num_samples) else min(most, num_samples)
