r"""Modes of log joints, and the mixture of normal densities that stands for them.

Each component is as high and about as wide as the log joint at its mode, so that Laplace's method
gives its mass. The mixture shows which modes are parts of others, and divides the density among the
modes: at every point their shares add up to one.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

_WIDE = 1.5  # factor by which the mixture is wider than the modes
_NEAR = 2.0  # in standard deviations of each of two modes; closer ones count as one
_COVERED = 1.5  # nats that a covered mode may rise above the modes that are not much wider
_WIDER = math.log(4.0)  # in log volume: a mode wider by more cannot cover a narrow one


@dataclass(frozen=True)
class Modes:
    """Modes of some data, each with a normal density that is as high and about as wide.

    Arguments:
        rows: The datum of each mode.
        z: Position of the mode.
        height: Log joint there, in nats.
        axes: Directions, as columns with the length of one standard deviation.
    """

    rows: Int64[Tensor, " modes"]
    z: Float[Tensor, "modes latents"]
    height: Float[Tensor, " modes"]
    axes: Float[Tensor, "modes latents latents"]

    def __len__(self) -> int:
        """Number of modes."""
        return len(self.rows)

    @cached_property
    def log_det(self) -> Tensor:
        """Log determinant of the axes."""
        return torch.linalg.slogdet(self.axes)[1]

    @cached_property
    def log_mass(self) -> Tensor:
        """Log mass of each mode by Laplace's method."""
        return self.height + self.log_det + self.z.shape[-1] * math.log(2 * math.pi) / 2

    @cached_property
    def inverse(self) -> Tensor:
        """Inverse of the axes, which turns differences into numbers of standard deviations."""
        return torch.linalg.inv(self.axes)

    @cached_property
    def count(self) -> Int64[Tensor, " data"]:
        """Number of modes of every datum."""
        return torch.bincount(self.rows)

    @cached_property
    def _table(self) -> Tensor:
        """Indices of the modes of every datum, `(data, most)`; -1 where there are no more."""
        order = self.rows.argsort(stable=True)
        rows, first = self.rows[order], self.count.cumsum(0) - self.count
        table = self.rows.new_full((len(self.count), int(self.count.max())), -1)
        table[rows, torch.arange(len(rows), device=rows.device) - first[rows]] = order
        return table

    def take(self, index: Tensor) -> "Modes":
        """A subset of the modes."""
        return Modes(self.rows[index], self.z[index], self.height[index], self.axes[index])

    def heavy(self, depth: float) -> "Modes":
        """The modes within `depth` nats of the heaviest one of their datum."""
        return self.take((self.log_mass >= self.heaviest[self.rows] - depth).nonzero()[:, 0])

    def joined(self, other: "Modes") -> "Modes":
        """These modes and others."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__annotations__)
        return Modes(*(torch.cat(pair) for pair in pairs))

    def _terms(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities `(points, most)` of a datum's modes, slightly widened, and their indices.

        Each is weighted by the mode's mass; -inf where there is no mode.
        """
        index = self._table[rows]
        away = self.inverse[index] @ (z[:, None] - self.z[index])[..., None]
        fallen = away[..., 0].square().sum(dim=-1) / (2 * _WIDE**2)
        height = self.height[index] - z.shape[-1] * math.log(_WIDE)
        return (height - fallen).where(index >= 0, -torch.inf), index

    def cover(self, others: "Modes") -> Bool[Tensor, " others"]:
        """Whether each of the other modes is near one of these, or on the same ridge."""
        terms, index = self._terms(others.z, others.rows)
        alike = self.log_det[index] < others.log_det[:, None] + _WIDER
        ridge = terms.where(alike, -torch.inf).logsumexp(dim=-1)
        return self._are_near(others) | (ridge > others.height - _COVERED)

    def _are_near(self, others: "Modes") -> Bool[Tensor, " others"]:
        """Whether each other mode is near one of these of its datum, by the widths of both."""
        index = self._table[others.rows]
        apart = (others.z[:, None] - self.z[index])[..., None]
        here = (self.inverse[index] @ apart).square().sum(dim=(-2, -1))
        there = (others.inverse[:, None] @ apart).square().sum(dim=(-2, -1))
        return ((torch.maximum(here, there) < _NEAR**2) & (index >= 0)).any(dim=-1)

    def overlaps(self, depth: float) -> "Overlaps":
        """Pairs of a datum's modes where the first one's component has mass at the second."""
        terms, index = self._terms(self.z, self.rows)
        volume = self.log_mass - self.height
        light = self.heaviest[self.rows] - depth
        other = torch.arange(len(self), device=index.device)[:, None].expand_as(index)
        stake = terms + volume[:, None]
        pair = (stake > light[:, None]) & (index != other)
        return Overlaps(index[pair], other[pair], stake[pair])

    @cached_property
    def heaviest(self) -> Float[Tensor, " data"]:
        """Log mass of every datum's heaviest mode."""
        most = torch.full_like(self.log_mass[: len(self.count)], -torch.inf)
        return most.scatter_reduce(0, self.rows, self.log_mass, "amax")

    def log_share(self, z: Tensor, rows: Tensor, mode: Tensor) -> Float[Tensor, " points"]:
        """Log of the share that a mode has in the mixture; the shares of all modes add up to 1."""
        terms, index = self._terms(z, rows)
        own = terms.where(index == mode[:, None], -torch.inf).amax(dim=-1)
        total = terms.logsumexp(dim=-1)
        # Where all of them underflow, the first mode takes the whole share.
        nothing = torch.zeros_like(own).where(index[:, 0] == mode, -torch.inf)
        return (own - total).where(total > -torch.inf, nothing)


class Overlaps(NamedTuple):
    """Pairs of modes, and the log mass that the first one's component has at the second."""

    mode: Int64[Tensor, " pairs"]
    other: Int64[Tensor, " pairs"]
    log_stake: Float[Tensor, " pairs"]


def widths(bend: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations and directions, from curvatures made positive and not too small."""
    values, vectors = torch.linalg.eigh(bend)
    largest = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8)
    return values.abs().clamp(min=1e-8 * largest).rsqrt(), vectors
