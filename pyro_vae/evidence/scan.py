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

If the model's networks depend on the latents alone, they are evaluated on the grid once for all
data.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from .._types import Batch
from ..programs import LogDensities, Prior, Program
from ..programs.pieces import in_pieces, take_rows
from ..randomness import forked
from ..results import join
from .modes import Modes, derivatives, widths

_PRIOR_DRAWS = 512
_CHECKED = 8  # prior draws at which the data's priors, and a shared evaluation, are compared
_BEND = 2.0  # b: within this many spreads of the prior, the grid in z is nearly even
_REACH = 20.0  # half-width of the grid in spreads of the prior; Newton's method can go further
_FARTHER = 30.0  # half-width relative to the farthest draw, for priors with heavy tails
_HEAVY = 6.0  # spreads: the prior has heavy tails if a draw is this far away
_FIRST = {1: 257, 2: 33, 3: 17}  # points of the first grid along each latent
_FIRST_SHARED = {1: 1025, 2: 65, 3: 17}  # the same if one evaluation is shared by all data
_MOST_DRAWS = 4  # number of prior draws per datum from which Newton's method starts
_VISIBLE = 1.5  # largest spacing, in a mode's standard deviations, at which a grid resolves it
_MOST_MAXIMA = 512  # largest number of a grid's maxima from which Newton's method starts
_NEWTON_STEPS = 40
_HALVINGS = 10  # number of step lengths that are tried; shorter steps must not be lower
_SETTLED = 1e-8  # nats: Newton's method ends if a step's predicted gain is smaller
_DROP = 0.5  # nats by which a normal density falls within one standard deviation
_STEEP = 1.5  # largest ratio of a mode's width to the width of its steeper side
_LIGHTER = 10.0  # new modes whose mass is below the tolerance by this factor are ignored
_LIGHT = 7.0  # nats below the tolerance at which a mode is too light to count
_SLACK = 256.0  # largest relative difference of equal densities, in units of eps


@dataclass(frozen=True)
class Integrand:
    """The log joint of some data, evaluated at points that each belong to one datum.

    Arguments:
        program: The model.
        batch: The data.
        limit: Largest number of rows per call of the program.
    """

    program: Program
    batch: Batch
    limit: int

    def __len__(self) -> int:
        """Number of data."""
        return len(self.batch[0])

    def _pieces(self, z: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Batch]]:
        """Yields points, `(1, some, latents)`, and their data, in chunks that fit in memory."""
        z = z.to(self.program.dtype)
        for some, of in in_pieces(self.limit, z, rows):
            yield some[None], take_rows(self.batch, of)

    def __call__(
        self, z: Float[Tensor, "points latents"], rows: Int64[Tensor, " points"]
    ) -> Float[Tensor, " points"]:
        """Computes the log joint in float64; values of plus infinity become nan."""
        parts = [self.program.log_joint(some, *data)[0] for some, data in self._pieces(z, rows)]
        values = torch.cat(parts).double()
        return values.where(values < torch.inf, torch.nan)

    def heights(self, z: Float[Tensor, "many points latents"], rows: Tensor) -> Tensor:
        """Returns the log joint at all positions `z`, `(many, points)`; nan becomes -inf."""
        flat = self(z.flatten(0, 1), rows.expand(z.shape[:2]).flatten())
        return flat.view(z.shape[:2]).nan_to_num(nan=-torch.inf)

    def derivatives(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Computes gradients and negative Hessians of the log joint; infinite entries become 0."""
        log_joint = self.program.log_joint
        found = [derivatives(log_joint, at, *own) for at, own in self._pieces(z, rows)]
        slope, hessian = join(found)
        return torch.nan_to_num(slope, 0.0, 0.0, 0.0), torch.nan_to_num(-hessian, 0.0, 0.0, 0.0)

    @cached_property
    def draws(self) -> Float[Tensor, "draws data latents"]:
        """Prior draws for every datum; the random numbers are the same for all data.

        If all data have the same prior, all share one column of draws.
        """
        first = _prior_draws(self.program, self.batch, 0)
        some = first[:_CHECKED].expand(-1, len(self), -1).to(self.program.dtype)
        prior = self.program.log_densities(some, *self.batch).prior
        if _is_same(self.program, prior, prior[:, :1]):
            return first.double()
        columns = [_prior_draws(self.program, self.batch, row) for row in range(len(self))]
        return torch.cat(columns, dim=1).double()

    @cached_property
    def is_shared(self) -> bool:
        """Whether the model's outputs for given latents are the same for all data."""
        if self.draws.shape[1] > 1 or self.program.structure.enumerated:
            return False
        z = self.draws[:_CHECKED, 0].to(self.program.dtype)
        own = self.program.log_joint(z[:, None].expand(-1, len(self), -1), *self.batch)
        try:
            return _is_same(self.program, sum(self.of_all(z)), own)  # type: ignore[arg-type]
        except (ValueError, RuntimeError, NotImplementedError, IndexError):
            return False  # shapes that do not broadcast, or an unsupported site

    def of_all(self, z: Float[Tensor, "points latents"]) -> LogDensities:
        """Computes the log densities of all data from one run of the model on the first datum."""
        first = take_rows(self.batch, slice(1))
        densities, run = self.program.traced(z[:, None], *first)
        values = self.program.run(self.batch).values(self.program.observed_names)
        total = torch.zeros(len(z), len(self), dtype=z.dtype, device=z.device)
        for name, value in values.items():
            log_prob = run[name].distribution.log_prob(value[:, None])  # (batch, points, ...)
            total = total + log_prob.reshape(*log_prob.shape[:2], -1).sum(dim=-1).T
        return LogDensities(densities.prior.expand_as(total), total)

    def on_grid(self, z: Float[Tensor, "points data latents"], rows: Tensor) -> LogDensities:
        """Computes the log densities of data on their grids, `(points, rows)`; nan becomes -inf."""
        some = take_rows(self.batch, rows)
        pieces = z.to(self.program.dtype).split(max(1, self.limit // len(rows)))
        if self.is_shared:
            of_all = replace(self, batch=some).of_all
            found = [of_all(piece[:, 0]) for piece in pieces]
        else:
            wide = (piece.expand(-1, len(rows), -1) for piece in pieces)
            found = [self.program.log_densities(piece, *some) for piece in wide]
        prior, likelihood = (part.double() for part in join(found))
        return LogDensities(*(p.where(p < torch.inf, -torch.inf) for p in (prior, likelihood)))

    def prior(self, z: Tensor, rows: Tensor) -> Tensor:
        """Computes the log prior at given points, each for the datum that it belongs to."""
        found = [self.program.log_densities(at, *own).prior[0] for at, own in self._pieces(z, rows)]
        return torch.cat(found).double()


def _prior_draws(program: Program, batch: Batch, row: int) -> Float[Tensor, "draws 1 latents"]:
    with forked(0, "quadrature.range"):  # the same numbers for every datum
        return Prior(program, take_rows(batch, slice(row, row + 1))).sample(_PRIOR_DRAWS)


def _is_same(program: Program, one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors of log densities are equal up to rounding."""
    slack = _SLACK * torch.finfo(program.dtype).eps * (1 + other.abs())
    return bool(((one - other).abs() <= slack).all())


def maxima(integrand: Integrand, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Runs Newton's method from given points; returns the maxima found, and their log joint."""
    z, height = z.clone(), integrand.heights(z[None], rows)[0]
    going = (height > -torch.inf).nonzero()[:, 0]
    for _ in range(_NEWTON_STEPS):
        if len(going) == 0:
            break
        moved, reached, promised = _newton(integrand, z[going], height[going], rows[going])
        better = reached > height[going]
        z[going[better]], height[going[better]] = moved[better], reached[better]
        going = going[better & (promised > _SETTLED)]
    return z, height


def _newton(
    integrand: Integrand, z: Tensor, height: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tries Newton steps of several lengths from each point.

    Returns the best new position, its log joint, and the gain that was predicted for a full step. A
    step is used only if neither this step nor any shorter one lowers the log joint.
    """
    slope, bend = integrand.derivatives(z, rows)
    scale, vectors = widths(bend)
    along = scale * (vectors.mT @ slope[..., None])[..., 0]  # in standard deviations
    step = (vectors @ (scale * along)[..., None])[..., 0]
    sizes = 0.5 ** torch.arange(_HALVINGS - 1, -1, -1, dtype=z.dtype, device=z.device)
    tried = z + sizes[:, None, None] * step
    heights = integrand.heights(tried, rows)
    rising = (heights >= height).long().cumprod(dim=0) > 0
    reached, best = heights.where(rising, -torch.inf).max(dim=0)
    return tried[best, torch.arange(len(z), device=z.device)], reached, along.square().sum(-1) / 2


def _measured(
    integrand: Integrand, rows: Tensor, z: Tensor, height: Tensor, widest: float
) -> Modes:
    """Measures the width of modes along their axes, and returns the modes.

    An axis ends where the log joint is half a nat below the mode, as a normal density is at one
    standard deviation. For a cusp, a flat top or a heavy tail, the curvature would mislead.
    """
    guess, directions = widths(integrand.derivatives(z, rows)[1])
    guess = guess.clamp(max=widest)
    latents, factors = z.shape[-1], 2.0 ** torch.arange(-12, 13, device=z.device, dtype=z.dtype)
    steps = (directions * guess[:, None, :]).permute(2, 0, 1)  # (L, modes, L)
    tried = z + factors[:, None, None, None] * torch.cat([steps, -steps])  # (factors, 2 L, ...)
    fallen = height - integrand.heights(tried.flatten(0, 1), rows).view(tried.shape[:-1])
    far = fallen >= _DROP
    first = far.double().argmax(dim=0, keepdim=True).where(far.any(dim=0), len(factors) - 1)
    share = (_DROP / fallen.gather(0, first)[0].clamp(min=_DROP)).sqrt().clamp(min=0.5)
    found = factors[first[0]] * share  # (2 L, modes)
    sides = found.view(2, latents, -1)
    scale = torch.minimum(sides.prod(dim=0).sqrt(), _STEEP * sides.amin(dim=0)).T * guess
    return Modes(rows, z, height, directions * scale[:, None, :])


class Scan(NamedTuple):
    """The modes of all data, as found by a scan of the prior's range.

    Arguments:
        modes: The modes of all data.
        unsettled: For each datum, whether the finest grid still showed new modes with mass.
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
        max_points: Largest number of points of a grid.
    """
    number, latents = guess.shape
    rows = torch.arange(number, device=guess.device)
    places = _Places.of(integrand)
    seeker = _Seeker(integrand, -math.log(tolerance) + _LIGHT, float(places.spread.max()))
    seeker.seek(guess, rows)
    seeker.seek(*_highest_draws(integrand, rows))
    along = (_FIRST_SHARED if integrand.is_shared else _FIRST)[latents]
    coarse = _Grid.of(places, integrand, along, rows)
    seeker.seek(*coarse.highest(seeker.relevant(coarse) & coarse.peaks))
    log_edge, log_mass, finest = (torch.full_like(seeker.top, torch.nan) for _ in range(3))
    while len(rows) > 0:
        along = 2 * along - 1
        if along**latents > max_points:
            log_edge[rows] = coarse.log_edge()
            break
        fine = _Grid.of(places, integrand, along, rows)
        peaks = seeker.relevant(fine) & fine.peaks & ~coarse.peaks_around()
        new = seeker.seek(*fine.highest(peaks))
        log_edge[rows], log_mass[rows] = fine.log_edge(), fine.log_mass(tolerance)
        finest[rows] = fine.spacing
        left = seeker.shares(new)[rows] > tolerance / _LIGHTER
        left |= peaks.flatten(1).sum(dim=1) > _MOST_MAXIMA
        rows, coarse = rows[left], fine.of_rows(left)
    unsettled = torch.zeros(number, dtype=torch.bool, device=guess.device)
    unsettled[rows] = True
    modes = seeker.heavy()
    on_grid = places.widest_step(modes, finest[modes.rows]) <= _VISIBLE
    return Scan(modes, unsettled, log_edge, log_mass, on_grid)


def _highest_draws(integrand: Integrand, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the prior draws with each datum's highest log joints, and the draws' row numbers.

    The row number of a draw is that of the datum for which the draw was chosen.
    """
    densities = integrand.on_grid(integrand.draws, rows)
    height = (densities.prior + densities.likelihood).nan_to_num(nan=-torch.inf)
    highest = height.topk(_MOST_DRAWS, dim=0).indices
    own = rows if integrand.draws.shape[1] > 1 else torch.zeros_like(rows)
    return integrand.draws[highest, own].flatten(0, 1), rows.repeat(_MOST_DRAWS)


class _Seeker:
    """Runs Newton's method from given points and collects the modes that are new.

    Arguments:
        integrand: The log joint.
        depth: A mode counts only if its log mass is at most this many nats below the log mass of
            the datum's heaviest mode.
        widest: Upper limit on the first guess of a mode's standard deviation.
    """

    def __init__(self, integrand: Integrand, depth: float, widest: float) -> None:
        self.integrand, self.depth, self.widest = integrand, depth, widest
        self.modes: Modes | None = None
        number, device = len(integrand), integrand.batch[0].device
        self.top = torch.full((number,), -torch.inf, dtype=torch.float64, device=device)
        self.likeliest = self.top.clone()

    def seek(self, z: Tensor, rows: Tensor) -> Float[Tensor, " batch"]:
        """Runs Newton's method from `z`; returns the log mass of every datum's new modes."""
        new = torch.full_like(self.top, -torch.inf)
        if len(z) == 0:
            return new
        z, height = maxima(self.integrand, z, rows)
        self.top = self.top.scatter_reduce(0, rows, height, "amax")
        likelihood = (height - self.integrand.prior(z, rows)).nan_to_num(nan=-torch.inf)
        self.likeliest = self.likeliest.scatter_reduce(0, rows, likelihood, "amax")
        if self.modes is not None:
            high = (height > self.top[rows] - 2 * self.depth).nonzero()[:, 0]
            z, rows, height = z[high], rows[high], height[high]
        if len(z) == 0:
            return new
        found = _measured(self.integrand, rows, z, height, self.widest)
        for turn in _by_rank(rows, height):
            some = found.take(turn)
            if self.modes is not None:
                some = some.take((~self.modes.cover(some)).nonzero()[:, 0])
            self.modes = some if self.modes is None else self.modes.joined(some)
            new[some.rows] = torch.logaddexp(new[some.rows], some.log_mass)
        return new

    def relevant(self, grid: "_Grid") -> Bool[Tensor, "batch ..."]:
        """Returns a mask of the grid points at which a mode can have enough mass to count.

        At all other points the prior density is too low: even the highest likelihood found so far
        would not make up for it.
        """
        likelihood = (grid.value - grid.prior).nan_to_num(nan=-torch.inf).flatten(1).amax(dim=1)
        likeliest = torch.maximum(self.likeliest[grid.rows], likelihood)
        top = torch.maximum(self.top[grid.rows], grid.value.flatten(1).amax(dim=1))
        least = (top - likeliest - 2 * self.depth).view(-1, *[1] * grid.latent_dim)
        return grid.prior > least

    def shares(self, log_mass: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Converts log masses to masses relative to every datum's heaviest mode."""
        assert self.modes is not None
        return (log_mass - self.modes.heaviest).exp()

    def heavy(self) -> Modes:
        """Returns the modes that are heavy enough to count."""
        assert self.modes is not None  # the first guess led to a mode for every datum
        return self.modes.heavy(self.depth)


def _by_rank(rows: Tensor, height: Tensor) -> Iterator[Tensor]:
    """Yields the index of every datum's highest point, then of the second highest, and so on."""
    order = height.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    if len(rows) == 0:
        return
    count = torch.bincount(rows)
    rank = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows[order]]
    for turn in range(int(rank.max()) + 1):
        yield order[rank == turn]


@dataclass(frozen=True)
class _Places:
    """Coordinates in which the prior is roughly standard normal near its median.

    Arguments:
        middle: Median of draws from the prior, `(data or 1, latents)`.
        spread: Half the distance between the draws' 16% and 84% quantiles.
        end: Largest coordinate of the grid; the smallest is `-end`.
    """

    middle: Tensor
    spread: Tensor
    end: float

    @staticmethod
    def of(integrand: Integrand) -> "_Places":
        """Computes the coordinates from draws of the prior."""
        draws = torch.nan_to_num(integrand.draws)
        levels = torch.tensor([0.16, 0.5, 0.84], dtype=draws.dtype, device=draws.device)
        low, middle, high = draws.quantile(levels, dim=0)
        spread = ((high - low) / 2).where(high > low, 1.0)
        farthest = float(((draws - middle) / spread).abs().max())
        reach = _REACH if farthest < _HEAVY else _FARTHER * farthest
        return _Places(middle, spread, _BEND * math.asinh(reach / _BEND))

    def axis(self, along: int) -> Tensor:
        """Returns the grid's coordinates along each latent."""
        return torch.linspace(
            -self.end, self.end, along, dtype=self.middle.dtype, device=self.middle.device
        )

    def widest_step(self, modes: Modes, spacing: Float[Tensor, " modes"]) -> Tensor:
        """Returns the largest grid spacing at each mode, in standard deviations of the mode."""
        own = torch.zeros_like(modes.rows) if len(self.middle) == 1 else modes.rows
        middle, spread = self.middle[own], self.spread[own]
        stretch = spread * (1 + ((modes.z - middle) / (_BEND * spread)).square()).sqrt()
        steps = modes.inverse * (spacing[:, None] * stretch)[:, None, :]
        return steps.square().sum(dim=-2).sqrt().amax(dim=-1)

    def at(self, t: Float[Tensor, "points latents"], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Maps coordinates `t` to latents `(points, data or 1, latents)` and log Jacobians."""
        own = slice(None) if len(self.middle) == 1 else rows
        middle, spread = self.middle[own], self.spread[own]
        z = middle + spread * (_BEND * (t / _BEND).sinh())[:, None]
        jacobian = (t / _BEND).cosh().log().sum(dim=-1)[:, None] + spread.log().sum(dim=-1)
        return z, jacobian


@dataclass(frozen=True)
class _Grid:
    """The log joint of some data on a grid.

    Arguments:
        z: Points, `(points, data or 1, latents)`.
        rows: Row numbers of the data.
        value: Log joint, `(data, along, ..., along)`, for `along` points per latent.
        prior: Log prior, of the same shape.
        density: Log joint plus the log Jacobian of the grid's coordinates, of the same shape.
        spacing: Distance of neighbouring points in the grid's coordinates.
    """

    z: Tensor
    rows: Tensor
    value: Tensor
    prior: Tensor
    density: Tensor
    spacing: float

    @staticmethod
    def of(places: _Places, integrand: Integrand, along: int, rows: Tensor) -> "_Grid":
        """Evaluates the log joint on a grid with `along` points per latent."""
        axis, latents = places.axis(along), places.middle.shape[-1]
        z, jacobian = places.at(torch.cartesian_prod(*[axis] * latents).view(-1, latents), rows)
        prior, likelihood = integrand.on_grid(z, rows)
        value = (prior + likelihood).nan_to_num(nan=-torch.inf)
        shape, spacing = (len(rows), *[along] * latents), float(axis[1] - axis[0])
        parts = (value, prior, value + jacobian)
        value, prior, density = (part.T.reshape(shape) for part in parts)
        return _Grid(z, rows, value, prior, density, spacing)

    def of_rows(self, keep: Tensor) -> "_Grid":
        """Returns the grid for a subset of the data."""
        z = self.z if self.z.shape[1] == 1 else self.z[:, keep]
        parts = (self.rows, self.value, self.prior, self.density)
        rows, value, prior, density = (part[keep] for part in parts)
        return _Grid(z, rows, value, prior, density, self.spacing)

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
        """Returns a mask of the points of a finer grid that are at or next to a peak of this grid.

        The spacing of the finer grid is half the spacing of this grid.
        """
        along = 2 * self.value.shape[1] - 1
        finer = self.value.new_zeros(len(self.rows), *[along] * self.latent_dim)
        finer[(slice(None), *[slice(None, None, 2)] * self.latent_dim)] = self.peaks.to(finer)
        return _pooled(finer) > 0

    def highest(self, peaks: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the positions and the row numbers of every datum's highest peaks."""
        heights = self.value.where(peaks, -torch.inf).flatten(1)
        height, index = heights.topk(min(_MOST_MAXIMA, heights.shape[1]), dim=1)
        place = torch.arange(len(self.rows), device=index.device)[:, None].expand_as(index)
        is_peak = height > -torch.inf
        own = place if self.z.shape[1] > 1 else torch.zeros_like(place)
        return self.z[index[is_peak], own[is_peak]], self.rows[place[is_peak]]

    def log_edge(self) -> Float[Tensor, " batch"]:
        """Estimates the log of the mass beyond the grid's edges, for tails as heavy as 1 / z^2."""
        inside = (slice(None), *[slice(1, -1)] * self.latent_dim)
        edge = self.density.clone()
        edge[inside] = -torch.inf
        step = (self.latent_dim - 1) * math.log(self.spacing) + math.log(_BEND)
        return edge.flatten(1).logsumexp(dim=1) + step

    def log_mass(self, tolerance: float) -> Float[Tensor, " batch"]:
        """Returns the log of the sum over the grid; nan if interleaved subgrids disagree."""
        stride = 4 if self.latent_dim == 1 else 2
        offsets = itertools.product(range(stride), repeat=self.latent_dim)
        parts = torch.stack(
            [
                self.density[(slice(None), *[slice(one, None, stride) for one in offset])]
                .flatten(1)
                .logsumexp(dim=1)
                for offset in offsets
            ]
        )
        whole = parts.logsumexp(dim=0) + self.latent_dim * math.log(self.spacing)
        apart = parts.amax(dim=0) - parts.amin(dim=0)
        return whole.where(apart < tolerance, torch.nan)


def _pooled(value: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    """Returns, for each point, the largest of the values at the point and its neighbours."""
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
    pooled: Tensor = pool[value.dim() - 2](value[:, None], 3, 1, 1)[:, 0]
    return pooled
