r"""A Hamiltonian Monte Carlo transition for many chains of many data at once.

The target lies on the geometric path from a density :math:`f_0` to the density :math:`f_0 e^r`,

.. math:: \log f_\beta(z) = \log f_0(z) + \beta\, r(z), \qquad 0 \le \beta \le 1 .

Each latent has a step size :math:`\epsilon`, the product of a common step size and the latent's
scale; this amounts to a diagonal mass matrix. With a momentum :math:`\rho \sim N(0, I)`, each
leapfrog step updates position, momentum and position:

.. math:: z \leftarrow z + \tfrac{1}{2} \epsilon \rho, \quad
    \rho \leftarrow \rho + \epsilon \nabla \log f_\beta(z), \quad
    z \leftarrow z + \tfrac{1}{2} \epsilon \rho .

This map is reversible and preserves volume. So :math:`f_\beta` stays invariant if the end of the
trajectory is accepted with probability :math:`\min(1, e^{-\Delta H})`, where :math:`H = -\log
f_\beta(z) + |\rho|^2 / 2`. The step sizes must not depend on the chain's present or past positions,
so they are an argument of :func:`transition`. Because the position is updated first, no gradient is
required at the two ends of a trajectory. So a point stores only the two numbers :math:`\log f_0`
and :math:`r`, from which the density at any other :math:`\beta` follows without a new evaluation.

A gradient that is not finite is replaced by 0, so the gradient remains a function of the position
alone. The end of a trajectory is never accepted if its density is nan or infinite.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Batch
from ..compiling import CompiledDensity
from ..programs import Program
from ..programs.pieces import slices
from .weights import rows_at_once

Path: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps latents, `(chains, batch, latents)`, to log starting density and log ratio, in nats."""


class Point(NamedTuple):
    """Positions of the chains, and two numbers that give their log density at every temperature.

    Arguments:
        z: Latents, `(chains, batch, latents)`.
        log_base: Log starting density, `(chains, batch)`, in nats.
        log_ratio: Log of the final density divided by the starting density, `(chains, batch)`, in
            nats.
    """

    z: Tensor
    log_base: Tensor
    log_ratio: Tensor


class Noise(NamedTuple):
    """Random numbers of one transition.

    Arguments:
        momentum: Standard normals, `(chains, batch, latents)`.
        stretch: Uniforms that vary the step size, `(chains, batch)`.
        level: Uniforms that decide on acceptance, `(chains, batch)`.
    """

    momentum: Tensor
    stretch: Tensor
    level: Tensor


class Moved(NamedTuple):
    """Chains after a transition, and their acceptance probabilities, `(chains, batch)`."""

    point: Point
    acceptance: Tensor


# Largest factor by which the step size is varied at random, so that trajectories are not periodic.
# Small factors keep chains from getting stuck where the given step size is too large.
_LONGEST = 1.2


def at(path: Path, z: Float[Tensor, "chains batch latents"]) -> Point:
    """Evaluates the two parts of a path, log starting density and log ratio, at given latents."""
    return Point(z, *path(z))


def transition(
    path: Path, point: Point, beta: Tensor, step: Tensor, noise: Noise, leapfrog_steps: int
) -> Moved:
    r"""Moves every chain by one transition, which leaves the density at `beta` invariant.

    Arguments:
        path: Function that returns the two parts of the log density, in nats.
        point: Positions of the chains.
        beta: Temperatures from 0 to 1, `(batch,)`.
        step: Step size of every latent, in the latent's unit, `(batch, latents)` or
            `(chains, batch, latents)`. It must not depend on these chains.
        noise: Random numbers, independent of all earlier ones.
        leapfrog_steps: Leapfrog steps per trajectory, each with one gradient.

    Returns:
        The new points and the acceptance probabilities, `(chains, batch)`.

    References:
        | MCMC Using Hamiltonian Dynamics (Neal, 2011)
        | https://arxiv.org/abs/1206.1901

    Example:
        >>> def path(z):  # from N(0, 1) to e times N(0, 1)
        ...     return -z.square().sum(-1) / 2, torch.ones(z.shape[:-1])
        >>> start = at(path, torch.zeros(4, 2, 1))
        >>> step = torch.full((2, 1), 0.1)
        >>> noise = Noise(torch.ones(4, 2, 1), torch.full((4, 2), 0.5), torch.full((4, 2), 0.5))
        >>> transition(path, start, torch.ones(2), step, noise, 10).point.z[0, 0]
        tensor([0.7498])
    """
    step = step * _LONGEST * noise.stretch.sqrt()[..., None]  # (chains, batch, latents)
    z, momentum = _trajectory(path, point.z, noise.momentum, beta, step, leapfrog_steps)
    lost = ~z.isfinite().all(dim=-1)
    end = at(path, torch.where(lost[..., None], point.z, z))
    gain = _log_density(end, momentum, beta) - _log_density(point, noise.momentum, beta)
    bad = lost | gain.isnan() | (end.log_base + beta * end.log_ratio).isposinf()
    gain = gain.masked_fill(bad, -torch.inf)
    return Moved(_chosen(noise.level.log() < gain, end, point), gain.exp().clamp(max=1))


def _trajectory(
    path: Path, z: Tensor, momentum: Tensor, beta: Tensor, step: Tensor, leapfrog_steps: int
) -> tuple[Tensor, Tensor]:
    """Returns positions and momenta after all leapfrog steps."""
    z = z + step * momentum / 2
    for index in range(leapfrog_steps):
        momentum = momentum + step * _gradient(path, z, beta)
        last = index + 1 == leapfrog_steps
        z = z + step * momentum / (2 if last else 1)
    return z, momentum


def _gradient(path: Path, z: Tensor, beta: Tensor) -> Tensor:
    """Returns the gradient of the log density at `beta`; entries that are not finite become 0."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_base, log_ratio = path(z)
        (gradient,) = torch.autograd.grad((log_base + beta * log_ratio).sum(), z)
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _log_density(point: Point, momentum: Tensor, beta: Tensor) -> Tensor:
    """Returns the log density of position and momentum at `beta`: minus the Hamiltonian."""
    return point.log_base + beta * point.log_ratio - momentum.square().sum(dim=-1) / 2


def _chosen(accepted: Tensor, end: Point, start: Point) -> Point:
    """Returns the end of each accepted trajectory, and the start of each rejected trajectory."""
    return Point(
        torch.where(accepted[..., None], end.z, start.z),
        torch.where(accepted, end.log_base, start.log_base),
        torch.where(accepted, end.log_ratio, start.log_ratio),
    )


def chunks_of_chains(
    program: Program, batch: Batch, chains: int, memory: float, calls: int, *, compile: bool | None
) -> tuple[list[slice], CompiledDensity]:
    """Cuts data into chunks whose chains fit in memory; also returns the program's log density.

    Half of the memory budget is for gradients. All chains of a chunk advance together. A chunk may
    have four times as many rows as fit into the processor's cache.

    Arguments:
        program: The model.
        batch: The data.
        chains: Number of chains per datum.
        memory: Memory budget, in MiB.
        calls: Number of density evaluations per chunk; with many, compiling saves time.
        compile: Whether to compile the density; if `None`, it is compiled if that saves time.
    """
    size = max(1, 4 * rows_at_once(program, batch, memory / 8) // chains)
    chunks, rows = slices(len(batch[0]), size), chains * min(size, len(batch[0]))
    calls_left = calls * len(chunks)
    density = CompiledDensity(
        program, compile=compile, rows=rows, memory=memory, calls_left=calls_left
    )
    return chunks, density
