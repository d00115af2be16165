r"""A program's densities and their slopes in the latents, compiled.

Fits of rows and Hamiltonian trajectories climb :math:`\log p(z) + \beta \log p(y \mid z)` in z,
with the model fixed, for numbers of data that change from step to step. So the draws of all data
are laid in a row and cut into pieces of one size, for which there are two graphs: of both log
densities of every draw, and of these with the gradients of both, from which any combination is
differentiated.
"""

import copy
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from .._types import Batch
from .capture import Captured
from .graphs import Graphs
from .missing import has_missing
from .program import LogDensities, Program
from .running import bytes_per_row
from .traces import repeat_rows

_ROWS = 2048  # of a piece: more leave the cache, and fewer are filled up
_BYTES = 2.0**31  # made by the program as it is written, which takes as long as compiling
_CALL = 2.0**20  # bytes that are made in the time that handlers take for a call


def sloped(program: Program, *, asked: bool | None, rows: int = _ROWS) -> Program:
    """The same program, with compiled densities to be differentiated in the latents alone.

    Arguments:
        program: The model; its shared latents have their values, and its weights stay.
        asked: True to compile at once, False never, None where it pays.
        rows: The most of a piece.
    """
    if asked is False or isinstance(program, _Sloped):
        return program
    other = _Sloped.__new__(_Sloped)
    vars(other).update(vars(copy.copy(program)))
    other.written, other.rows, other.is_held = program, min(rows, _ROWS), False
    other.graphs = Graphs(program.model, "log densities", asked=asked)
    other.bytes_per_row = None
    return other


class _Sloped(Program):
    """Made by :func:`sloped` from a program, all of which it shares."""

    written: Program
    rows: int
    graphs: Graphs
    is_held: bool  # against the program, in this evaluation
    bytes_per_row: float | None

    def log_densities(self, z: Tensor, *batch: Tensor) -> LogDensities:
        """Log prior and log likelihood, as :meth:`Program.log_densities` gives them."""
        has_slopes = torch.is_grad_enabled() and z.requires_grad
        graph = self._graph(z, batch, has_slopes=has_slopes)
        if graph is None or not self._holds(graph, z.detach()[:1], batch):
            return self._as_written(z, batch)
        if has_slopes:
            return LogDensities(*_Differentiable.apply(z, self, graph, batch))
        return LogDensities(*self._replayed(graph, z, batch))

    def _holds(self, graph: Captured, first: Tensor, batch: Batch) -> bool:
        """Whether it agrees with the program on a first draw of all data, which are validated."""
        if self.is_held and not is_validation_enabled():
            return True
        self.is_held = True
        with torch.no_grad(), self.written.at(self.fixed):
            expected = self.written.log_densities(first, *batch)
        return self.graphs.agree(expected, self._replayed(graph, first, batch)[:2])

    def _as_written(self, z: Tensor, batch: Batch) -> LogDensities:
        if not self.graphs.is_refused:
            if self.bytes_per_row is None:
                self.bytes_per_row = bytes_per_row(self.written, batch)
            self.graphs.worked(_CALL + self.bytes_per_row * z.shape[0] * z.shape[1])
        with self.written.at(self.fixed):
            return self.written.log_densities(z, *batch)

    def _graph(self, z: Tensor, batch: Batch, *, has_slopes: bool) -> Captured | None:
        if self.graphs.is_refused:
            return None
        row = z.detach().reshape(-1, self.latent_dim)[:1]
        return self.graphs.of(
            ("rows", has_slopes, self.plate),
            self._slopes if has_slopes else self._values,
            self._piece(row, [part[:1] for part in batch]),
            missing=any(map(has_missing, batch)),
            pays=self.graphs.work > _BYTES,
        )

    def _piece(self, z: Tensor, batch: Any) -> list[Tensor]:
        """Arguments of the graph: draws `(1, rows, latents)` and data, the last repeated."""
        shared = list(self.fixed.values())
        return [_filled(z, self.rows)[None], *shared, *(_filled(part, self.rows) for part in batch)]

    def _values(self, z: Tensor, *rest: Tensor) -> list[Tensor]:
        """What is captured: a function of latents, values of shared latents, and data."""
        values = dict(zip(self.fixed, rest[: len(self.fixed)], strict=True))
        with self.written.at(values):
            return list(self.written.log_densities(z, *rest[len(values) :]))

    def _slopes(self, z: Tensor, *rest: Tensor) -> list[Tensor]:
        """The same with the slopes of both densities."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            densities = self._values(z, *rest)
            slopes = [
                torch.autograd.grad(
                    part.sum(), z, retain_graph=True, allow_unused=True, materialize_grads=True
                )[0]
                for part in densities
            ]
        return [*(part.detach() for part in densities), *slopes]

    def _replayed(self, graph: Captured, z: Tensor, batch: Batch) -> list[Tensor]:
        """Densities `(particles, batch)`; slopes, if any, `(particles, batch, latents)`."""
        particles, data, latents = z.shape
        flat, long = z.reshape(-1, latents), repeat_rows(batch, particles)
        cuts = zip(*(part.split(self.rows) for part in (flat, *long)), strict=True)
        answers = [graph(*self._piece(draws, rows)) for draws, *rows in cuts]
        joined = [torch.cat(parts, dim=1)[0, : len(flat)] for parts in zip(*answers, strict=True)]
        return [part.view(particles, data, *part.shape[1:]) for part in joined]


def _filled(part: Tensor, rows: int) -> Tensor:
    """So many rows, the last one repeated if there are fewer."""
    lacking = rows - len(part)
    return part if lacking == 0 else torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])])


class _Differentiable(torch.autograd.Function):
    """Densities of a graph, with the gradient in the latents that its slopes give."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, program: _Sloped, graph: Captured, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        prior, likelihood, *slopes = program._replayed(graph, z.detach(), batch)
        ctx.save_for_backward(*slopes)
        return prior, likelihood

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        prior, likelihood = (
            gradient.unsqueeze(-1) * slope
            for gradient, slope in zip(gradients, ctx.saved_tensors, strict=True)
        )
        return prior + likelihood, None, None, None
