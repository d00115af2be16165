r"""A Hamiltonian Monte Carlo transition for many chains of many data at once.

The target is a density between two others, on the geometric path

.. math:: \log f_\beta(z) = \log f_0(z) + \beta\, r(z), \qquad 0 \le \beta \le 1 .

With a momentum :math:`\rho \sim N(0, I)` and a step :math:`\epsilon` for each latent (a common
step times the latent's scale: a diagonal mass) the trajectory drifts, kicks and drifts,

.. math:: z \leftarrow z + \tfrac{1}{2} \epsilon \rho, \quad
    \rho \leftarrow \rho + \epsilon \nabla \log f_\beta(z), \quad
    z \leftarrow z + \tfrac{1}{2} \epsilon \rho ,

which is reversible and keeps volume, so accepting its end with probability
:math:`\min(1, e^{-\Delta H})`, :math:`H = -\log f_\beta(z) + |\rho|^2 / 2`, leaves
:math:`f_\beta` invariant. That holds only while the steps do not depend on where the chain is
or was, so they are an argument here. Drifting first needs no gradient at the ends, so a point
carries two numbers along, :math:`\log f_0` and :math:`r`, and a change of :math:`\beta` is free.

A gradient that is not a number counts as 0, which is still a function of the position alone; an end
whose density is not a number is never accepted.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Path: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From latents `(chains, batch, latents)` to log f_0 and r, each `(chains, batch)`, in nats."""


class Point(NamedTuple):
    """Positions of the chains, `(chains, batch, latents)`, and the path's log densities there."""

    z: Tensor
    log_base: Tensor
    log_ratio: Tensor


class Noise(NamedTuple):
    """Draws of one transition: normals `(chains, batch, latents)`, uniforms `(chains, batch)`."""

    momentum: Tensor
    stretch: Tensor
    level: Tensor


class Moved(NamedTuple):
    """Positions of the chains after a transition, and the acceptance probabilities."""

    point: Point
    acceptance: Tensor


# Steps vary, so that no trajectory closes on itself. Some are short, so that a chain does not get
# stuck where the common step is too long.
_LONGEST = 1.2


def at(path: Path, z: Float[Tensor, "chains batch latents"]) -> Point:
    """Evaluates the path at given latents."""
    return Point(z, *path(z))


def transition(
    path: Path, point: Point, beta: Tensor, step: Tensor, noise: Noise, leapfrog_steps: int
) -> Moved:
    r"""One transition of every chain, which leaves :math:`f_\beta` invariant.

    Arguments:
        path: The two parts of the log density, in nats.
        point: Positions of the chains.
        beta: Place on the path, `(batch,)`, from 0 to 1.
        step: Step of every latent, in its own unit, `(batch, latents)`, or with an axis of chains
            in front; it must not depend on these chains.
        noise: Random numbers, independent of all earlier ones.
        leapfrog_steps: Steps of a trajectory, each with one gradient.

    Returns:
        The new points and the acceptance probabilities, `(chains, batch)`.

    References:
        | MCMC Using Hamiltonian Dynamics (Neal, 2011)
        | https://arxiv.org/abs/1206.1901

    Example:
        >>> def path(z):  # from N(0, 1) to N(0, 1), times e
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
    z = z + step * momentum / 2
    for index in range(leapfrog_steps):
        momentum = momentum + step * _gradient(path, z, beta)
        last = index + 1 == leapfrog_steps
        z = z + step * momentum / (2 if last else 1)
    return z, momentum


def _gradient(path: Path, z: Tensor, beta: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_base, log_ratio = path(z)
        (gradient,) = torch.autograd.grad((log_base + beta * log_ratio).sum(), z)
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _log_density(point: Point, momentum: Tensor, beta: Tensor) -> Tensor:
    return point.log_base + beta * point.log_ratio - momentum.square().sum(dim=-1) / 2


def _chosen(accepted: Tensor, end: Point, start: Point) -> Point:
    return Point(
        torch.where(accepted[..., None], end.z, start.z),
        torch.where(accepted, end.log_base, start.log_base),
        torch.where(accepted, end.log_ratio, start.log_ratio),
    )
