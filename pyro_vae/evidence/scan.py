r"""Finds the modes of a log joint by Newton's method from a grid over the prior's range.

The grid is evenly spaced in coordinates :math:`t` of every latent, :math:`z = m + s\, b \sinh(t /
b)`, where :math:`m` and :math:`s` are the median and the spread of draws from the prior. So the
grid is fine where the prior has its mass, and extends far beyond. In the log joint, even a narrow
mode is visible from far away. Newton's method starts at every local maximum of the grid, except
where the prior density is so low that even the highest likelihood found so far would not make up
for it.

The spacing of the grid is then halved until Newton's method finds no new mode. A mode is new if it
is at least two standard deviations away from every mode found before. New modes whose total mass is
far below the tolerance do not count, because modes that show only on still finer grids have even
less mass. If the number of points reaches its limit before the halving ends, modes may have been
missed, and the datum is flagged.

A spike of the prior, as in a learned flow, can lie between the points of every such grid. But the
share of prior draws inside the spike equals the spike's mass. So Newton's method also starts at
the prior draws with the highest log joint.

If the prior has heavy tails, modes can lie anywhere (:mod:`pyro_vae.evidence.far_modes`).

If the model's networks depend on the latents alone, they are evaluated on the grid once for all
data.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from .far_modes import heavy_tails, seek_far_modes
from .modes import Modes
from .seeking import Integrand, Seeker, highest_draws, middle_and_spread

_BEND = 2.0  # b: within this many spreads of the prior, the grid in z is nearly even
_REACH = 20.0  # half-width of the grid in spreads of the prior; Newton's method can go further
_FARTHER = 30.0  # half-width relative to the farthest draw, for priors with heavy tails
_HEAVY = 6.0  # spreads: the prior has heavy tails if a draw is this far away
_FIRST = {1: 257, 2: 33, 3: 17}  # points of the first grid along each latent
_FIRST_SHARED = {1: 1025, 2: 65, 3: 17}  # the same if one evaluation is shared by all data
_VISIBLE = 1.5  # largest spacing, in a mode's standard deviations, at which a grid resolves it
_MOST_MAXIMA = 512  # largest number of a grid's maxima from which Newton's method starts
_LIGHTER = 10.0  # new modes whose mass is below the tolerance by this factor are ignored
_LIGHT = 7.0  # nats below the tolerance at which a mode is too light to count


class Scan(NamedTuple):
    """The modes of all data, as found by a scan of the prior's range.

    Arguments:
        modes: The modes of all data.
        unsettled: For each datum, whether modes may have been missed, because the finest grid still
            showed new modes with mass, or the search for far modes reached its limit.
        log_edge: Log of an upper estimate of the mass beyond the grid, in nats.
        log_mass: Log of the sum over the grid, in nats: the mass of the modes that the grid
            resolves. It is nan if the grid is too coarse.
        on_grid: For each mode, whether the grid is fine enough to resolve it.
    """

    modes: Modes
    unsettled: Bool[Tensor, " batch"]
    log_edge: Float[Tensor, " batch"]
    log_mass: Float[Tensor, " batch"]
    on_grid: Bool[Tensor, " modes"]


def scanned(
    integrand: Integrand, guess: Float[Tensor, "batch latents"], tolerance: float, max_points: int
) -> Scan:
    """Finds the modes of every datum on grids that are refined until they show no new modes.

    Arguments:
        integrand: The log joint.
        guess: One additional starting point per datum for Newton's method.
        tolerance: Share of a datum's mass that can be neglected.
        max_points: Limit on the number of points per grid.
    """
    number, latents = guess.shape
    rows = torch.arange(number, device=guess.device)
    places = _Places.of(integrand)
    widest = places.spread.amax(dim=1).expand(number)
    seeker = Seeker(integrand, -math.log(tolerance) + _LIGHT, widest)
    seeker.seek(guess, rows)
    seeker.seek(*highest_draws(integrand, rows))
    unsettled = seek_far_modes(seeker, heavy_tails(integrand))
    along = (_FIRST_SHARED if integrand.is_shared else _FIRST)[latents]
    coarse = _Grid.of(places, integrand, along, rows)
    seeker.seek(*coarse.highest(_relevant(seeker, coarse) & coarse.peaks))
    log_edge, log_mass, finest = (torch.full_like(seeker.top, torch.nan) for _ in range(3))
    while len(rows) > 0:
        along = 2 * along - 1
        if along**latents > max_points:
            log_edge[rows] = coarse.log_edge()
            break
        fine = _Grid.of(places, integrand, along, rows)
        peaks = _relevant(seeker, fine) & fine.peaks & ~coarse.peaks_around()
        new = seeker.seek(*fine.highest(peaks))
        log_edge[rows], log_mass[rows] = fine.log_edge(), fine.log_mass(tolerance)
        finest[rows] = fine.spacing
        left = seeker.shares(new)[rows] > tolerance / _LIGHTER
        left |= peaks.flatten(1).sum(dim=1) > _MOST_MAXIMA
        rows, coarse = rows[left], fine.of_rows(left)
    unsettled[rows] = True
    modes = seeker.heavy()
    on_grid = places.widest_step(modes, finest[modes.rows]) <= _VISIBLE
    return Scan(modes, unsettled, log_edge, log_mass, on_grid)


def _relevant(seeker: Seeker, grid: "_Grid") -> Bool[Tensor, "batch ..."]:
    """Returns a mask of the grid points at which a mode can have enough mass to count.

    At all other points the prior density is too low: even the highest likelihood found so far
    would not make up for it.
    """
    likelihood = (grid.value - grid.prior).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    likelihood = likelihood.flatten(1).amax(dim=1)
    likeliest = torch.maximum(seeker.likeliest[grid.rows], likelihood)
    top = torch.maximum(seeker.top[grid.rows], grid.value.flatten(1).amax(dim=1))
    least = (top - likeliest - 2 * seeker.depth).view(-1, *[1] * grid.latent_dim)
    return grid.prior > least


@dataclass(frozen=True)
class _Places:
    """Coordinates in which the prior is roughly standard normal near its median.

    Arguments:
        middle: Median of draws from the prior, `(data or 1, latents)`.
        spread: Half the distance between the draws' 16% and 84% quantiles.
        end: Largest coordinate of the grid, `(data or 1,)`; the smallest is `-end`.
    """

    middle: Tensor
    spread: Tensor
    end: Tensor

    @staticmethod
    def of(integrand: Integrand) -> "_Places":
        """Computes median, spread and range of the coordinates from draws of the prior."""
        draws = torch.nan_to_num(integrand.draws)
        middle, spread = middle_and_spread(draws)
        farthest = ((draws - middle) / spread).abs().amax(dim=(0, 2))
        reach = (_FARTHER * farthest).where(farthest >= _HEAVY, _REACH)
        return _Places(middle, spread, _BEND * (reach / _BEND).asinh())

    def of_data(self, rows: Tensor) -> "_Places":
        """Returns the coordinates for the given data."""
        if len(self.middle) == 1:
            return self
        return _Places(self.middle[rows], self.spread[rows], self.end[rows])

    def widest_step(self, modes: Modes, spacing: Float[Tensor, " modes"]) -> Tensor:
        """Returns the largest grid spacing at each mode, in standard deviations of the mode."""
        own = self.of_data(modes.rows)
        away = (modes.z - own.middle) / (_BEND * own.spread)
        stretch = own.spread * (1 + away.square()).sqrt()
        steps = modes.inverse * (spacing[:, None] * stretch)[:, None, :]
        return steps.square().sum(dim=-2).sqrt().amax(dim=-1)

    def grid(self, along: int) -> tuple[Tensor, Tensor, Tensor]:
        """Makes a grid with `along` points per latent.

        Returns the points as latents, `(points, data or 1, latents)`, the log Jacobian of the
        coordinates at each point, and the distance between neighbouring points, `(data or 1,)`.
        """
        even = torch.linspace(-1, 1, along, dtype=self.end.dtype, device=self.end.device)
        product = torch.cartesian_prod(*[even] * self.middle.shape[-1])
        t = product.view(-1, 1, self.middle.shape[-1]) * self.end[:, None]
        z = self.middle + self.spread * (_BEND * (t / _BEND).sinh())
        jacobian = (t / _BEND).cosh().log().sum(dim=-1) + self.spread.log().sum(dim=-1)
        return z, jacobian, 2 * self.end / (along - 1)


@dataclass(frozen=True)
class _Grid:
    """The log joint of some data on a grid.

    Arguments:
        z: Points, `(points, data or 1, latents)`.
        rows: Row numbers of the data.
        value: Log joint, `(data, along, ..., along)`, for `along` points per latent.
        prior: Log prior, of the same shape.
        density: Log joint plus the log Jacobian of the grid's coordinates, of the same shape.
        spacing: Distance between neighbouring points in the grid's coordinates, `(data or 1,)`.
    """

    z: Tensor
    rows: Tensor
    value: Tensor
    prior: Tensor
    density: Tensor
    spacing: Tensor

    @staticmethod
    def of(places: _Places, integrand: Integrand, along: int, rows: Tensor) -> "_Grid":
        """Evaluates the log joint on a grid with `along` points per latent."""
        z, jacobian, spacing = places.of_data(rows).grid(along)
        prior, likelihood = integrand.on_grid(z, rows)
        value = (prior + likelihood).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        shape = (len(rows), *[along] * z.shape[-1])
        parts = (value, prior, value + jacobian)
        value, prior, density = (part.T.reshape(shape) for part in parts)
        return _Grid(z, rows, value, prior, density, spacing)

    def of_rows(self, keep: Tensor) -> "_Grid":
        """Returns the grid for a subset of the data."""
        z, spacing = self.z, self.spacing
        if z.shape[1] > 1:
            z, spacing = z[:, keep], spacing[keep]
        parts = (self.rows, self.value, self.prior, self.density)
        rows, value, prior, density = (part[keep] for part in parts)
        return _Grid(z, rows, value, prior, density, spacing)

    @property
    def latent_dim(self) -> int:
        """Number of latents."""
        return self.value.dim() - 1

    @cached_property
    def peaks(self) -> Bool[Tensor, "batch ..."]:
        """Whether each point is at least as high as all its neighbours."""
        value = self.value.clamp(min=-1e300)
        return (value >= _pooled(value)) & (self.value > -torch.inf)

    def peaks_around(self) -> Bool[Tensor, "batch ..."]:
        """Returns a mask on a grid twice as fine: the points at or next to this grid's peaks."""
        along = 2 * self.value.shape[1] - 1
        finer = self.value.new_zeros(len(self.rows), *[along] * self.latent_dim)
        finer[(slice(None), *[slice(None, None, 2)] * self.latent_dim)] = self.peaks.to(finer)
        return _pooled(finer) > 0

    def highest(self, peaks: Tensor) -> tuple[Tensor, Tensor]:
        """Returns every datum's highest points in the mask `peaks`: positions and row numbers."""
        heights = self.value.where(peaks, -torch.inf).flatten(1)
        height, index = heights.topk(min(_MOST_MAXIMA, heights.shape[1]), dim=1)
        place = torch.arange(len(self.rows), device=index.device)[:, None].expand_as(index)
        is_peak = height > -torch.inf
        own = place if self.z.shape[1] > 1 else torch.zeros_like(place)
        return self.z[index[is_peak], own[is_peak]], self.rows[place[is_peak]]

    def log_edge(self) -> Float[Tensor, " batch"]:
        """Estimates the log of the mass beyond the grid, under the assumption of 1/z^2 tails."""
        inside = (slice(None), *[slice(1, -1)] * self.latent_dim)
        edge = self.density.clone()
        edge[inside] = -torch.inf
        step = (self.latent_dim - 1) * self.spacing.log() + math.log(_BEND)
        return edge.flatten(1).logsumexp(dim=1) + step

    def log_mass(self, tolerance: float) -> Float[Tensor, " batch"]:
        """Returns the log of the sum over the grid, or nan if sums over subgrids disagree."""
        stride = 4 if self.latent_dim == 1 else 2
        offsets = itertools.product(range(stride), repeat=self.latent_dim)
        places = ([slice(one, None, stride) for one in offset] for offset in offsets)
        subgrids = (self.density[(slice(None), *place)] for place in places)
        parts = torch.stack([subgrid.flatten(1).logsumexp(dim=1) for subgrid in subgrids])
        whole = parts.logsumexp(dim=0) + self.latent_dim * self.spacing.log()
        apart = parts.amax(dim=0) - parts.amin(dim=0)
        return whole.where(apart < tolerance, torch.nan)


def _pooled(value: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    """Returns, for each point, the largest of the values at the point and its neighbours."""
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
    return pool[value.dim() - 2](value[:, None], 3, 1, 1)[:, 0]
