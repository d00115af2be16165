r"""Modes of log joints, and mixtures of normal densities that approximate the joint densities.

Each mode has one component. The component has the mass that Laplace's method gives for the mode,
and it is somewhat wider than the mode. The mixture shows whether a new mode lies on a ridge that
known modes already represent. It also divides the joint density among the modes: at every point,
the modes' shares add up to one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..results import at_rows

_WIDE = 1.5  # factor by which the mixture is wider than the modes
_NEAR = 2.0  # distance in standard deviations of both modes; closer modes count as one
_COVERED = 1.5  # nats by which a mode can exceed the mixture and still count as covered
_WIDER = math.log(4.0)  # log ratio of volumes: a mode wider than this cannot cover another


@dataclass(frozen=True)
class Modes:
    """Modes of the log joints of some data, each with a normal density that approximates the mode.

    Arguments:
        rows: Row number of each mode's datum.
        z: Positions of the modes.
        height: Log joint at each mode, in nats.
        axes: Principal directions at each mode, as columns. The length of a column is one standard
            deviation.
        stretch: Width of the mode on the positive and on the negative side of each axis, divided
            by the length of the axis; at least 1. A mode at a jump is steep on one side,
            and wide on the other.
    """

    rows: Int64[Tensor, " modes"]
    z: Float[Tensor, "modes latents"]
    height: Float[Tensor, " modes"]
    axes: Float[Tensor, "modes latents latents"]
    stretch: Float[Tensor, "modes 2 latents"]

    def __len__(self) -> int:
        """Number of modes."""
        return len(self.rows)

    @cached_property
    def log_det(self) -> Tensor:
        """Log of the absolute determinant of the axes."""
        return torch.linalg.slogdet(self.axes)[1]

    @cached_property
    def log_mass(self) -> Tensor:
        """Log mass of each mode by Laplace's method, in nats."""
        return self.height + self.log_det + self.z.shape[-1] * math.log(2 * math.pi) / 2

    @cached_property
    def inverse(self) -> Tensor:
        """Inverse of the axes; it expresses differences of latents in standard deviations."""
        return torch.linalg.inv(self.axes)

    @cached_property
    def count(self) -> Int64[Tensor, " data"]:
        """Number of modes of every datum."""
        return torch.bincount(self.rows)

    @cached_property
    def table(self) -> Tensor:
        """Indices of every datum's modes, `(data, most modes of a datum)`, padded with -1."""
        order = self.rows.argsort(stable=True)
        rows, first = self.rows[order], self.count.cumsum(0) - self.count
        table = self.rows.new_full((len(self.count), int(self.count.max())), -1)
        table[rows, torch.arange(len(rows), device=rows.device) - first[rows]] = order
        return table

    def take(self, index: Tensor) -> "Modes":
        """Returns the modes with the given indices."""
        return at_rows(self, index)

    def _terms(self, z: Tensor, rows: Tensor, *, stretched: bool = False) -> tuple[Tensor, Tensor]:
        """Evaluates the widened normal densities of a datum's modes at points `z`.

        Returns the log densities, weighted by the modes' masses, and the indices of the modes,
        both `(points, modes)`. Data with fewer modes than others are padded with log densities of
        -inf.
        """
        index = self.table[rows]
        away = (self.inverse[index] @ (z[:, None] - self.z[index])[..., None])[..., 0]
        if stretched:
            ahead, behind = self.stretch[index].unbind(dim=-2)
            away = away / ahead.where(away > 0, behind)
        fallen = away.square().sum(dim=-1) / (2 * _WIDE**2)
        height = self.height[index] - z.shape[-1] * math.log(_WIDE)
        return (height - fallen).where(index >= 0, -torch.inf), index

    def cover(self, others: "Modes") -> Bool[Tensor, " others"]:
        """Returns a mask of the modes in `others` that these modes cover.

        A mode is covered if it is near one of these modes, or if it lies on a ridge that is already
        represented by some of these modes.
        """
        terms, index = self._terms(others.z, others.rows)
        alike = self.log_det[index] < others.log_det[:, None] + _WIDER
        ridge = terms.where(alike, -torch.inf).logsumexp(dim=-1)
        return self._are_near(others) | (ridge > others.height - _COVERED)

    def _are_near(self, others: "Modes") -> Bool[Tensor, " others"]:
        """Returns a mask of the modes in `others` that are near one of these modes.

        Two modes of a datum are near each other if their distance is less than two standard
        deviations of the first mode, and also less than two standard deviations of the second.
        """
        index = self.table[others.rows]
        apart = (others.z[:, None] - self.z[index])[..., None]
        here = (self.inverse[index] @ apart).square().sum(dim=(-2, -1))
        there = (others.inverse[:, None] @ apart).square().sum(dim=(-2, -1))
        return ((torch.maximum(here, there) < _NEAR**2) & (index >= 0)).any(dim=-1)

    def overlaps(self, depth: float) -> "Overlaps":
        """Returns the pairs of modes of the same datum in which the first overlaps the second.

        In such a pair, the normal density of the first mode has much mass around the second mode:
        the log of this mass is at most `depth` nats below that of the datum's heaviest mode.
        """
        terms, index = self._terms(self.z, self.rows)
        volume = self.log_mass - self.height
        light = self.heaviest[self.rows] - depth
        other = torch.arange(len(self), device=index.device)[:, None].expand_as(index)
        stake = terms + volume[:, None]
        pair = (stake > light[:, None]) & (index != other)
        return Overlaps(index[pair], other[pair], stake[pair])

    @cached_property
    def heaviest(self) -> Float[Tensor, " data"]:
        """Log mass of every datum's heaviest mode, in nats."""
        most = torch.full_like(self.log_mass[: len(self.count)], -torch.inf)
        return most.scatter_reduce(0, self.rows, self.log_mass, "amax")

    def log_share(self, z: Tensor, rows: Tensor, mode: Tensor) -> Float[Tensor, " points"]:
        """Computes the log of a mode's share in the mixture density at points.

        At every point, the shares of a datum's modes add up to 1.
        """
        terms, index = self._terms(z, rows, stretched=True)
        own = terms.where(index == mode[:, None], -torch.inf).amax(dim=-1)
        total = terms.logsumexp(dim=-1)
        # Where the densities of all modes underflow, the first mode gets the whole share.
        nothing = torch.zeros_like(own).where(index[:, 0] == mode, -torch.inf)
        return (own - total).where(total > -torch.inf, nothing)


class Overlaps(NamedTuple):
    """Pairs of a datum's modes in which the normal density of `mode` reaches `other`.

    `log_stake` is the log of the mass that this normal density has around `other`, in nats.
    """

    mode: Int64[Tensor, " pairs"]
    other: Int64[Tensor, " pairs"]
    log_stake: Float[Tensor, " pairs"]


def widths(bend: Tensor) -> tuple[Tensor, Tensor]:
    """Returns standard deviations and principal directions from a matrix of curvatures.

    Negative eigenvalues of the matrix are replaced by their absolute values, and eigenvalues near 0
    are raised.
    """
    values, vectors = torch.linalg.eigh(bend)
    largest = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8)
    return values.abs().clamp(min=1e-8 * largest).rsqrt(), vectors


def derivatives(
    log_density: Callable[..., Tensor], z: Float[Tensor, "1 points latents"], *batch: Tensor
) -> tuple[Float64[Tensor, "points latents"], Float64[Tensor, "points latents latents"]]:
    """Computes gradients and Hessians of a log density at points, one point per datum.

    Arguments:
        log_density: Maps points and the data to log densities, `(1, points)`.
        z: The points.
        batch: The data.
    """
    with torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        total = log_density(z, *batch).sum()
        if not total.requires_grad:  # a factor of the joint need not depend on z
            total = total + 0 * z.sum()
        (gradient,) = torch.autograd.grad(total, z, create_graph=True)
        rows = [_gradient(slope.sum(), z) for slope in gradient[0].unbind(-1)]
    hessian = torch.stack(rows, dim=-2).double()
    return gradient[0].detach().double(), (hessian + hessian.mT) / 2


def _gradient(value: Tensor, z: Tensor) -> Tensor:
    """Returns the gradient of `value` with respect to z; zero if `value` does not depend on z."""
    if not value.requires_grad:
        return torch.zeros_like(z[0])
    (gradient,) = torch.autograd.grad(value, z, retain_graph=True, materialize_grads=True)
    return gradient[0]
