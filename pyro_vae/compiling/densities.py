r"""A program's log densities, and their gradients with respect to the latents, as compiled graphs.

Two methods need the gradient of :math:`\log p(z) + \beta \log p(y \mid z)` with respect to z, with
the model fixed: fitting q to single rows, and Hamiltonian Monte Carlo. In both, the
number of data changes from step to step. So the draws of all data are concatenated and cut into
pieces of one size. There are two graphs for pieces of this size (:class:`CompiledDensity`). One
graph computes the log prior and the log likelihood of every draw. The other graph also computes
their gradients, so that any weighted sum of log prior and log likelihood can be differentiated.

Importance sampling needs the densities of many pieces of draws, all of the same shape, without
gradients (:class:`DrawDensities`). Such a density requires the decoder's matrix products, and then
a sum over the features of a datum, with an exponential and a logarithm for each feature. If every
operation is run separately, the sums take as long as the products. A compiler fuses the operations
of a sum into one pass over memory.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from .._types import Batch, ProgramLike
from ..programs import LogDensities, Program
from ..programs.hooks import hooks_of
from ..programs.missing import has_missing
from ..programs.pieces import even_pieces, in_pieces
from ..programs.traces import repeat_rows, retry_unvalidated
from ..results import join
from .capturing import Captured
from .graphs import Graphs

_ROWS = 2048  # per piece: more rows do not fit in the cache; fewer are padded to this number


class _Densities:
    """The function to capture: maps latents, global latents and data to log densities."""

    def __init__(self, program: Program) -> None:
        self.program, self.shared = program, tuple(program.fixed.values())

    def __call__(self, z: Tensor, *rest: Tensor) -> list[Tensor]:
        """Computes the log prior and the log likelihood of every draw z, in nats."""
        count = len(self.shared)
        values = dict(zip(self.program.fixed, rest[:count], strict=True))
        program = self.program.given(values) if values else self.program
        return list(program.log_densities(z, *rest[count:]))

    @torch.enable_grad()
    def with_gradients(self, z: Tensor, *rest: Tensor) -> list[Tensor]:
        """Computes every draw's log prior and log likelihood, and their gradients in z."""
        z = z.detach().requires_grad_()
        densities = self(z, *rest)
        gradients = [
            torch.autograd.grad(
                part.sum(), z, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0]
            for part in densities
        ]
        return [*(part.detach() for part in densities), *gradients]


class CompiledDensity:
    """Log densities of a program, computed by compiled graphs; differentiable in the latents only.

    An object of this class can replace the program where only :meth:`log_densities` and
    :meth:`log_joint` are called. Without a graph, the program itself is evaluated. Graphs compute
    no gradients with respect to the model's weights.

    Arguments:
        program: The model, with values of its global latents given, and with fixed weights.
        compile: True to compile at once, False to never compile, `None` to compile if that saves
            time.
        rows: Largest number of rows per piece.
        memory: Memory budget in MiB; see :class:`Graphs`.
        calls_left: Number of further calls that are certain to follow.
    """

    def __init__(
        self,
        program: Program,
        *,
        compile: bool | None,
        rows: int = _ROWS,
        memory: float = torch.inf,
        calls_left: int = 0,
    ) -> None:
        self.program, self.rows, self.calls_left = program, min(rows, _ROWS), calls_left
        self.graphs = Graphs(program.model, "log densities", compile=compile, memory=memory)
        self._densities = _Densities(program)
        self._checked: set[Captured] = set()  # graphs that were compared in this evaluation

    @property
    def model(self) -> ProgramLike:
        """The program's model."""
        return self.program.model

    def log_joint(self, z: Tensor, *batch: Tensor) -> Tensor:
        """Computes log p(y, z) of every particle and datum, `(particles, batch)`, in nats."""
        return sum(self.log_densities(z, *batch))  # type: ignore[return-value]

    def log_densities(self, z: Tensor, *batch: Tensor) -> LogDensities:
        """Computes log prior and log likelihood of every draw, `(particles, batch)`, in nats."""
        with_gradients = torch.is_grad_enabled() and z.requires_grad
        name, rows = ("rows", with_gradients, self.program.plate), z.shape[0] * z.shape[1]
        graph = None
        if not self.graphs.is_off:
            one = z.detach().reshape(-1, z.shape[-1])[:1]
            graph = self.graphs.of(
                name,
                self._densities.with_gradients if with_gradients else self._densities,
                self._piece(one, [part[:1] for part in batch]),
                missing=any(map(has_missing, batch)),
                rows=rows,
                calls_left=self.calls_left,
            )
        if graph is None or not self._agrees(graph, z.detach()[:1], batch):
            with self.graphs.counted(name, rows, with_backward=with_gradients):
                return self.program.log_densities(z, *batch)
        if with_gradients:
            return LogDensities(*_Differentiable.apply(z, self, graph, batch))
        return LogDensities(*self.replayed(graph, z, batch))

    def _agrees(self, graph: Captured, first: Tensor, batch: Batch) -> bool:
        """Whether graph and program agree on one draw per datum; the data are validated too."""
        if graph in self._checked and not is_validation_enabled():
            return True
        self._checked.add(graph)
        with torch.no_grad():
            expected = self.program.log_densities(first, *batch)
        return self.graphs.agree(expected, self.replayed(graph, first, batch)[:2])

    def _piece(self, z: Tensor, batch: Iterable[Tensor]) -> list[Tensor]:
        """Returns a graph's arguments, padded to `rows` rows: draws, global latents, data."""
        data = (_filled(part, self.rows) for part in batch)
        return [_filled(z, self.rows)[None], *self._densities.shared, *data]

    def replayed(self, graph: Captured, z: Tensor, batch: Batch) -> list[Tensor]:
        """Evaluates a graph on all draws, piece by piece; results are `(particles, batch, ...)`."""
        particles, data, latents = z.shape
        flat, long = z.reshape(-1, latents), repeat_rows(batch, particles)
        cuts = in_pieces(self.rows, flat, *long)
        answers = [graph(*self._piece(draws, rows)) for draws, *rows in cuts]
        whole = (part[0, : len(flat)] for part in join(answers, axis=1))
        return [part.view(particles, data, *part.shape[1:]) for part in whole]


def _filled(part: Tensor, rows: int) -> Tensor:
    """Pads a tensor to `rows` rows by repeating its last row."""
    lacking = rows - len(part)
    return part if lacking == 0 else torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])])


class _Differentiable(torch.autograd.Function):
    """Log densities and their gradients with respect to the latents, computed by the same graph."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, density: CompiledDensity, graph: Captured, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        prior, likelihood, *gradients = density.replayed(graph, z.detach(), batch)
        ctx.save_for_backward(*gradients)
        return prior, likelihood

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        prior, likelihood = (
            weight.unsqueeze(-1) * gradient
            for weight, gradient in zip(weights, ctx.saved_tensors, strict=True)
        )
        return prior + likelihood, None, None, None


class DrawDensities:
    """A program's log densities of many draws, in pieces, compiled if that saves time.

    As a check of a graph, the first draw of the first piece that it computes is also evaluated
    eagerly. If the model does not check its data itself, the first draw of each later piece is
    evaluated eagerly, too, so that Pyro validates the data.

    Arguments:
        program: The model, with values of its global latents given.
        compile: True to compile at once, False to never compile, `None` to compile if that saves
            time.
        memory: Memory budget in MiB; see :class:`Graphs`.
    """

    def __init__(
        self, program: Program, *, compile: bool | None, memory: float = torch.inf
    ) -> None:
        self.program = program
        self.graphs = Graphs(program.model, "densities", compile=compile, memory=memory)
        self._name = ("draws", program.plate)
        self._densities = _Densities(program)
        self._checked: set[Captured] = set()  # graphs that were compared in this evaluation
        self._is_validated = False  # whether Pyro has validated a piece

    def __call__(
        self, z: Tensor, batch: Batch, particles: int, *, data: int, rows_left: int = 0
    ) -> LogDensities:
        """Computes log prior and log likelihood of every draw, `(particles, batch)`, in nats.

        Arguments:
            z: Draws `(particles, batch, latents)`.
            batch: The data of the draws, with `batch` rows.
            particles: Largest number of particles per piece.
            data: Number of data per piece; for a graph, the last piece is padded to this number.
            rows_left: Number of draws that remain to be evaluated later, over all data.
        """
        found = []
        for draws, rows in zip(z.split(data, dim=1), in_pieces(data, *batch), strict=True):
            found.append(self._of_some(draws, rows, particles, data, rows_left))
            rows_left -= draws.shape[0] * draws.shape[1]
        return join(found, axis=1)

    def _of_some(
        self, z: Tensor, batch: Batch, particles: int, data: int, rows_left: int
    ) -> LogDensities:
        """Computes the log densities of all draws for one piece of the data."""
        size, own = even_pieces(len(z), particles), len(batch[0])
        graph = None
        if not self.graphs.is_off:
            long = _filled(z.transpose(0, 1), data).transpose(0, 1)
            rows = tuple(_filled(part, data) for part in batch)
            graph = self._graph(long[:size], rows, rows_left)
        if graph is None:
            return join(self._eager(z, batch, particles))
        is_trusted = graph in self._checked and not self._has_to_validate
        expected = None if is_trusted else self._validated(z[:1], batch)
        found = [
            LogDensities(*(part[:, :own] for part in graph(piece, *self._densities.shared, *rows)))
            if len(piece) == size
            else self.program.log_densities(piece[:, :own], *batch)
            for piece in long.split(size)
        ]
        self._checked.add(graph)
        if expected is None or self.graphs.agree(expected, [part[:1] for part in found[0]]):
            return join(found)
        return join(self._eager(z, batch, particles))

    @property
    def _has_to_validate(self) -> bool:
        """Whether Pyro has to validate the data, because the model does not check them itself."""
        return is_validation_enabled() and hooks_of(self.program.model).check is None

    def _eager(self, z: Tensor, batch: Batch, particles: int) -> list[LogDensities]:
        """Runs the program piece by piece; Pyro validates the data with the first piece only."""
        found: list[LogDensities] = []
        validates = self._has_to_validate or not self._is_validated
        for piece in z.split(particles):
            with self.graphs.counted(self._name, piece.shape[0] * piece.shape[1]):
                if validates and not found:
                    found.append(self._validated(piece, batch))
                    self._is_validated = True
                    continue
                with pyro.validation_enabled(is_validate=False):
                    found.append(self.program.log_densities(piece, *batch))
        return found

    def _validated(self, z: Tensor, batch: Batch) -> LogDensities:
        """Runs the program with Pyro's validation of the data."""
        return retry_unvalidated(partial(self.program.log_densities, z, *batch))

    def _graph(self, z: Tensor, batch: Batch, rows_left: int) -> Captured | None:
        rows = z.shape[0] * z.shape[1]
        return self.graphs.of(
            self._name,
            self._densities,
            (z, *self._densities.shared, *batch),
            missing=any(map(has_missing, batch)),
            rows=rows,
            calls_left=rows_left // rows,
        )
