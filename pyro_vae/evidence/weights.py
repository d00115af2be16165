r"""Importance weights, per datum.

With draws :math:`z_k \sim q(z \mid y_n)` the importance weights are
:math:`w_{kn} = p(y_n, z_k) / q(z_k \mid y_n)`. The mean of :math:`\log w_{kn}` over particles
estimates the ELBO, and the logarithm of the mean of :math:`w_{kn}` estimates
:math:`\log p(y_n)`, which is what :mod:`pyro_vae.stats` does. Here the weights are made.

Every datum draws from a stream of its own, seeded by the seed and the content of its row. So an
estimate depends on the datum, the programs and the seed alone: not on the order of the rows, the
other data, the batch, or how the work was cut to fit into memory.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial

import pyro
import torch
from torch import Tensor
from torch.distributions.utils import _standard_normal

from .._types import Batch, Data, ProgramLike
from ..data import check_batch
from ..guides import FamilyPosterior, Posterior, given_globals, posterior_of, program_of
from ..programs import (
    LogDensities,
    Program,
    as_batch,
    bytes_per_row,
    device_of,
    evaluating,
    forked_seed,
    hooks_of,
    partly_observed,
    retry_unvalidated,
)
from .compiled import Densities
from .results import Weights

_DRAWS_AT_ONCE = 4096  # fixed: the draws of a datum must not depend on the memory budget
_FAST_ROWS = 2048  # fewer wait for the handlers, more leave the cache
_MEBIBYTE = 2**20

_LOOK_AT = {
    "log_guide": "the guide's parameters",
    "log_prior": "the model's prior",
    "log_likelihood": "the decoder's output",
}


def draw_rows(
    posterior: Posterior, first: int, seeds: list[int], num_samples: int
) -> tuple[Tensor, Tensor]:
    """Draws of some data, each from the stream of its own seed.

    Where they are made of standard normals these are drawn row by row, and pushed all together.
    """
    some = posterior.rows(slice(first, first + len(seeds)))
    size = retry_unvalidated(some.noise_size) if isinstance(some, FamilyPosterior) else None
    if isinstance(some, FamilyPosterior) and size is not None:
        noise = _noise(seeds, num_samples, size, some.parameters)
        return retry_unvalidated(partial(some.pushed, noise))
    draws = []
    for offset, seed in enumerate(seeds):
        row = slice(first + offset, first + offset + 1)
        draw = partial(_draw_row, posterior.rows(row), seed, num_samples)
        draws.append([torch.cat(parts) for parts in zip(*retry_unvalidated(draw), strict=True)])
    z, log_guide = zip(*draws, strict=True)
    return torch.cat(z, dim=1), torch.cat(log_guide, dim=1)


def _noise(seeds: list[int], num_samples: int, size: int, like: Tensor) -> Tensor:
    """Standard normals `(particles, batch, size)`, of each datum from its own stream."""
    rows = []
    for seed in seeds:
        start_stream(seed)
        shapes = [(part, size) for part in _pieces(num_samples)]
        parts = [_standard_normal(shape, like.dtype, like.device) for shape in shapes]
        rows.append(torch.cat(parts))
    return torch.stack(rows, dim=1)


def _draw_row(row: Posterior, seed: int, num_samples: int) -> list[tuple[Tensor, Tensor]]:
    """Draws of one datum, in pieces."""
    start_stream(seed)
    return [row.draw(size) for size in _pieces(num_samples)]


def start_stream(seed: int) -> None:
    """Seeds torch's own stream, from which programs draw."""
    # torch.manual_seed formats a stack trace for every call: 1.6 ms, more than the draws take.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(seed)


def _pieces(num_samples: int) -> list[int]:
    """Draws of each piece."""
    starts = range(0, num_samples, _DRAWS_AT_ONCE)
    return [min(_DRAWS_AT_ONCE, num_samples - done) for done in starts]


def weigh_row(
    program: Program,
    posterior: Posterior,
    batch: Batch,
    row: int,
    seed: int,
    num_samples: int,
    limit: int,
) -> Weights:
    """Weights of one datum, whose draws are forgotten piece by piece: for very many of them.

    The draws are those of :func:`draw_rows`; what the program does in between, in a stream of its
    own, does not move theirs.
    """
    rows = slice(row, row + 1)
    own, part = posterior.rows(rows), tuple(tensor[rows] for tensor in batch)
    start_stream(seed)
    weights = []
    for size in _pieces(num_samples):
        z, log_guide = own.draw(size)
        with torch.random.fork_rng():
            weights.append(weigh(program, z, log_guide, part, limit, first=row))
    return Weights(*(torch.cat(piece) for piece in zip(*weights, strict=True)))


def weigh(
    program: Program,
    z: Tensor,
    log_guide: Tensor,
    batch: Batch,
    particles: int,
    *,
    first: int = 0,
    densities: Densities | None = None,
    rows_left: int = 0,
) -> Weights:
    """Log densities of given draws, so many particles at a time; checked and in float64.

    Pyro validates the data with the first particles; with the others they are the same. With
    `densities` they may be compiled, the more so the more draws of some datum are left to come.
    """

    def written(head: Tensor) -> LogDensities:
        return retry_unvalidated(partial(program.log_densities, head, *batch))

    parts = None
    if densities is not None:
        parts = densities(z, batch, particles, rows_left, written)
    if parts is None:
        start = time.perf_counter()
        head, *others = z.split(particles)
        parts = [written(head)]
        with pyro.validation_enabled(is_validate=False) if others else nullcontext():
            parts += [program.log_densities(piece, *batch) for piece in others]
        if densities is not None:
            densities.timed(time.perf_counter() - start, z.shape[0] * z.shape[1])
    prior, likelihood = (torch.cat(part).double() for part in zip(*parts, strict=True))
    weights = Weights(prior, likelihood, log_guide.double())
    for name in _LOOK_AT:
        require_numbers(name, getattr(weights, name), z, first)
    return weights


def require_numbers(name: str, value: Tensor, z: Tensor, first: int) -> None:
    """Refuses a log density that is no number, with the datum and the draw where it is not.

    Raises:
        FloatingPointError: If there is one.
    """
    # What was drawn has no density of 0 under the guide; under the model it may.
    legal = value.isfinite() if name == "log_guide" else value < torch.inf
    if not bool(legal.all()):
        particle, datum = (~legal).nonzero()[0].tolist()
        raise FloatingPointError(
            f"{name} is {float(value[particle, datum])} for particle {particle} of datum "
            f"{first + datum}, at z = {z[particle, datum].tolist()}: a log density must be a "
            f"number; look at {_LOOK_AT[name]} there"
        )


@contextmanager
def prepared(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    seed: int,
    given: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[Program, Posterior, Batch]]:
    """Checks the data; runs the block in evaluation mode, without gradients, on its own seed."""
    batch = as_batch(data, device_of(model, guide))
    check_data(model, batch)
    with evaluating(model, guide), torch.no_grad(), forked_seed(seed):
        program = retry_unvalidated(partial(program_of, model, guide, batch))
        program = given_globals(program, guide, batch, given)
        yield program, posterior_of(guide, program, batch), batch


def check_data(model: ProgramLike, batch: Batch) -> None:
    """Checks at the door: shapes, nan and inf, and the range that the likelihood asks for.

    A nan passes where the program says that it means "not observed" (see `PartlyObserved`).
    """
    check_batch(*batch, missing=partly_observed(model, batch))
    check = hooks_of(model).check
    if check is not None:
        check(batch[0])


def rows_at_once(program: Program, batch: Batch, memory: float) -> int:
    """Rows of a program's batch that fit into so many mebibytes, and no more than are fast."""
    affordable = int(memory * _MEBIBYTE / max(1, bytes_per_row(program, batch)))
    return max(1, min(_FAST_ROWS, affordable))
