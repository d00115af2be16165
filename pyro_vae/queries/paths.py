r"""Paths between two points of a latent space.

In many dimensions the draws of N(0, I) lie near a sphere of radius :math:`\sqrt{L}`, and the
middle of a straight line between two of them lies at :math:`\sqrt{L / 2}`, where next to none do:
the decoder has seldom been there. A path along the sphere stays among them.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

_ANTIPODAL = 1e-6  # radians short of half a turn, where rounding chooses the way


@runtime_checkable
class Path(Protocol):
    """A way from one latent vector to another."""

    def __call__(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Points `(steps, *batch, latents)` at the shares `t`, `(steps,)`, of the way."""


@dataclass(frozen=True)
class Linear:
    r"""The straight line, :math:`z(t) = (1 - t) a + t b`."""

    def __call__(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Points on the line."""
        shares = t.reshape(-1, *[1] * a.dim())
        return a + shares * (b - a)


@dataclass(frozen=True)
class Spherical:
    r"""The great circle, with the distance from the origin changing evenly.

    .. math:: z(t) = [(1 - t) \|a\| + t \|b\|] \,
        \frac{\sin((1 - t) \Omega) \hat a + \sin(t \Omega) \hat b}{\sin \Omega}, \qquad
        \Omega = \angle(a, b)

    References:
        | Sampling Generative Networks (White, 2016)
        | https://arxiv.org/abs/1609.04468
    """

    def __call__(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Points on the arc.

        Raises:
            ValueError: If a point is the origin, or both are opposite: no arc is the shortest.
        """
        a, b = torch.broadcast_tensors(a, b)
        shares = t.reshape(-1, *[1] * a.dim())
        radii = [point.norm(dim=-1, keepdim=True) for point in (a, b)]
        if any(bool((radius == 0).any()) for radius in radii):
            raise ValueError("an arc needs two directions, and the origin has none; take Linear()")
        start, end = a / radii[0], b / radii[1]
        # From both chords: the arc cosine of the product loses half of the digits near its ends.
        chords = [
            (end - start).norm(dim=-1, keepdim=True),
            (end + start).norm(dim=-1, keepdim=True),
        ]
        angle = 2 * torch.atan2(*chords)
        if bool((angle > torch.pi - _ANTIPODAL).any()):
            raise ValueError("the two points are opposite: every arc is as short; take Linear()")
        direction = torch.where(
            angle > 0,
            (((1 - shares) * angle).sin() * start + (shares * angle).sin() * end)
            / angle.sin().where(angle > 0, 1.0),
            start,
        )
        return torch.lerp(radii[0], radii[1], shares) * direction


def interpolate(
    a: Float[Tensor, "*batch latents"],
    b: Float[Tensor, "*batch latents"],
    num_steps: int = 8,
    path: Path | None = None,
) -> Float[Tensor, "steps *batch latents"]:
    r"""Points on a path between latents, both ends among them; decode them with `model.decode`.

    Arguments:
        a: Where the path starts, `(*batch, latents)`, as :func:`encode` gives it.
        b: Where it ends.
        num_steps: Points, at least two.
        path: :class:`Linear` (the default) or :class:`Spherical`.

    Returns:
        `(steps, *batch, latents)`, at even steps.

    Raises:
        ValueError: If there are fewer than two points, or the path is not defined.

    Example:
        >>> a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
        >>> interpolate(a, b, 3).tolist()
        [[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]
        >>> round(float(interpolate(a, b, 3, Spherical())[1].norm()), 5)
        2.0
    """
    if num_steps < 2:
        raise ValueError(f"a path has two ends, so num_steps is at least 2, got {num_steps}")
    t = torch.linspace(0.0, 1.0, num_steps, dtype=a.dtype, device=a.device)
    return (path or Linear())(a, b, t)
