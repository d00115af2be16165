r"""Quadrature for one to three latents: log p(y) by adding up the log joint on a lattice.

For a smooth integrand that decays on both sides the trapezoidal rule, the plain sum over equally
spaced points, converges geometrically: for a normal density with spacing of one standard
deviation it is off by :math:`2 e^{-2 \pi^2} \approx 5 \cdot 10^{-9}` of itself. So, per datum:

1. Peaks of the log joint are searched for with Newton's method, from the guide's draws and from
   the local maxima of a coarse grid, and their curvature gives directions and scales.
2. In coordinates :math:`z = c + A \, b \sinh(t / b)`, which are linear near the highest peak and
   bring far, heavy tails near, points :math:`t` of a lattice are visited outwards from every
   peak, for as long as they carry mass. So the domain finds its own size and shape, also for
   several peaks, and the mass of the outermost points says how much was left out.
3. This is done on three lattices, shifted against each other by a third of a cell. All are
   estimates of their own; they are averaged, and their spread is the error, which is more than
   that of the average: six times for a kink, wherever it lies between the points (two lattices
   can agree by accident there). Where it is too large the spacing is halved.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from .._types import Batch
from ..guides import Posterior
from ..programs import Program, retry_unvalidated
from ..progress import progress_bar
from ..randomness import row_keys
from ..results import Doubt, join
from .results import Bound, LogMarginal
from .weights import draw_rows, rows_at_once

_MOST_LATENTS = 3  # each more multiplies the points by about ten
_GUIDE_DRAWS = 16
_GRID = {1: 81, 2: 17, 3: 9}  # points of the coarse grid along each latent
_GRID_END = 50.0  # far out on any unconstrained scale: e^50 for a rate
_PEAKS = 5  # local maxima of the coarse grid that are followed up
_NEWTON_STEPS = 12  # a start is wanted, not the maximum to many digits
_STEP_SIZES = (1.0, 0.5, 0.2, 0.05, 0.01, 0.001)
_BEND = 3.0  # b, in standard deviations: nearer than this the coordinates are about linear
_DROP = 0.5  # nats that a normal density falls within one standard deviation
_MARGIN = 12.0  # nats below the tolerance at which points are too light to go on from
_OMITTED = 3.0  # mass beyond the outermost points, in units of theirs, for tails as heavy as 1/z^2
_ROUNDINGS = 8.0  # roundings of its own size that a log joint may be off by
_LATTICES = 3
_FINEST = 12  # halvings: indices then still fit into their share of a key
_INDEX_BITS = 17
_POINT_BYTES = 32  # of a visited point: its key, and copies while keys are sorted
_DATA_AT_ONCE = 1024  # the number of lattices then fits into its share of a key
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Quadrature:
    r"""Numerical integration of the joint density over one to three flat latents.

    .. math:: \log p(y_n) = \log \int p(y_n, z) \, dz
        \approx \log \sum_{t \in h \mathbb{Z}^L} p(y_n, z(t)) \left|\frac{dz}{dt}\right| h^L

    No randomness. The error is a conservative figure from the refinement, and covers all that was
    found: a peak which neither the guide's draws nor a coarse grid lead to is missed. Kinks in the
    log joint, such as a decoder with ReLUs has, slow the convergence down, to :math:`h^2`.

    Arguments:
        tolerance: Error asked for, in nats a datum; smooth programs are far better at once.
        max_points: Points a datum and lattice; a datum that needs more is doubted.
        memory: Mebibytes that points and the program's intermediate results may take.

    Raises:
        ValueError: If a number is out of range; when called, if the program has more than three
            latents.

    References:
        | The Exponentially Convergent Trapezoidal Rule (Trefethen & Weideman, 2014)
        | https://doi.org/10.1137/130932132

    Example:
        >>> import pyro_vae as pv
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> y = torch.tensor([0.0, 2.0])
        >>> guide = pv.Guide(model, pv.GlobalParameters(), example=y)
        >>> pv.log_marginal_likelihood(model, guide, y, Quadrature()).value
        tensor([-1.2655, -2.2655], dtype=torch.float64)
    """

    tolerance: float = 1e-4
    max_points: int = 100_000
    memory: float = 512.0

    def __post_init__(self) -> None:
        """Refuses numbers that mean nothing."""
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is an error in nats in (0, 1), got {self.tolerance}")
        if self.max_points < 100 or not self.memory > 0:
            raise ValueError(
                f"max_points is at least 100 and memory is a budget in mebibytes, got "
                f"{self.max_points} and {self.memory}"
            )

    def __call__(
        self,
        program: Program,
        posterior: Posterior,
        batch: Batch,
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> LogMarginal:
        """Integrates per datum; the seed plays no part."""
        if not 1 <= program.latent_dim <= _MOST_LATENTS:
            raise ValueError(
                f"Quadrature is for 1 to {_MOST_LATENTS} latents per datum, and the program "
                f"has {program.latent_dim}; use pv.ImportanceSampling() or "
                "pv.AnnealedImportanceSampling()"
            )
        keys = row_keys(0, "quadrature.starts", *batch)  # always the same: they enter no estimate
        affordable = int(self.memory * _MEBIBYTE / (_LATTICES * _POINT_BYTES * self.max_points))
        size = max(1, min(_DATA_AT_ONCE, affordable))
        limit, parts = rows_at_once(program, batch, self.memory), []
        starts = range(0, len(keys), size)
        for first in progress_bar(starts, show=progress, desc="quadrature"):
            rows = slice(first, first + size)
            z, _ = draw_rows(posterior, first, keys[rows], _GUIDE_DRAWS)
            part = tuple(tensor[rows] for tensor in batch)
            retry_unvalidated(partial(program.log_joint, z[:1], *part))  # refuses illegal data
            with pyro.validation_enabled(is_validate=False):  # far out anything may overflow
                parts.append(_integrate(_Integrand(program, part, limit), z.double(), self))
        return join(parts)


class _Integrand(NamedTuple):
    """The log joint of some data, at points that each belong to one of them."""

    program: Program
    batch: Batch
    limit: int

    def pieces(self, z: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Batch]]:
        """Points `(1, some, latents)` and their data, as many as fit at a time."""
        z = z.to(self.program.dtype)
        for some, of in zip(z.split(self.limit), rows.split(self.limit), strict=True):
            yield some[None], tuple(part[of] for part in self.batch)

    def __call__(
        self, z: Float[Tensor, "points latents"], rows: Int64[Tensor, " points"]
    ) -> Float[Tensor, " points"]:
        """Log joint, float64; nan where it is not a number or is plus infinity."""
        parts = [self.program.log_joint(some, *data)[0] for some, data in self.pieces(z, rows)]
        values = torch.cat(parts).double()
        return values.where(values < torch.inf, torch.nan)

    def grid(self, z: Float[Tensor, "many batch latents"]) -> Float[Tensor, "many batch"]:
        """Log joint at many points for each datum; what is not a number has no mass."""
        rows = torch.arange(z.shape[1], device=z.device).expand(z.shape[:2])
        return self(z.flatten(0, 1), rows.flatten()).view(z.shape[:2]).nan_to_num(nan=-torch.inf)

    def curvature(self, z: Float[Tensor, "many batch latents"]) -> tuple[Tensor, Tensor]:
        """Gradient, and minus the second derivatives; zero where they are not finite."""
        rows = torch.arange(z.shape[1], device=z.device).expand(z.shape[:2]).flatten()
        found = [_derivatives(self.program, *p) for p in self.pieces(z.flatten(0, 1), rows)]
        slope, bend = (torch.cat(part).double() for part in zip(*found, strict=True))
        slope, bend = (torch.nan_to_num(part, 0.0, 0.0, 0.0) for part in (slope, bend))
        return slope.view(z.shape), bend.view(*z.shape, z.shape[-1])


def _derivatives(program: Program, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Gradient `(points, latents)` and minus the Hessian `(points, latents, latents)`."""
    with torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(program.log_joint(z, *batch).sum(), z, create_graph=True)
        columns = [_second(slope[..., index].sum(), z) for index in range(z.shape[-1])]
    bend = -torch.stack(columns, dim=-1)[0]
    return slope.detach()[0], (bend + bend.mT) / 2


def _second(slope: Tensor, z: Tensor) -> Tensor:
    """Derivative of a slope; zero where it does not depend on the latents."""
    if not slope.requires_grad:
        return torch.zeros_like(z)
    (column,) = torch.autograd.grad(slope, z, retain_graph=True, allow_unused=True)
    return torch.zeros_like(z) if column is None else column.detach()


class _Peaks(NamedTuple):
    """Peaks `(peaks, batch, latents)`, heights, mass by Laplace's method, and the frame."""

    z: Tensor
    height: Tensor
    log_mass: Tensor
    centre: Tensor  # (batch, latents)
    axes: Tensor  # (batch, latents, latents), columns of a length of one standard deviation

    @property
    def log_det(self) -> Tensor:
        return torch.linalg.slogdet(self.axes)[1]

    def at(self, t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Points for lattice coordinates, and the log Jacobian."""
        bent = (_BEND * (t / _BEND).sinh())[..., None]
        log_cosh = (t / _BEND).cosh().log().sum(dim=-1)
        return self.centre[rows] + (self.axes[rows] @ bent)[..., 0], log_cosh + self.log_det[rows]

    def coordinates(self) -> Tensor:
        """Lattice coordinates of the peaks, `(peaks, batch, latents)`."""
        bent = torch.linalg.solve(self.axes, (self.z - self.centre)[..., None])[..., 0]
        return _BEND * (bent / _BEND).asinh()


def _peaks(integrand: _Integrand, draws: Tensor) -> _Peaks:
    """Climbs from the guide's draws and a coarse grid; measures the highest peak."""
    z = _starts(integrand, draws)
    height = integrand.grid(z)
    for _ in range(_NEWTON_STEPS):
        z, height = _newton(integrand, z, height)
    _, bend = integrand.curvature(z)
    values, vectors = _eigen(bend)
    log_mass = height + (math.log(2 * math.pi) - values.log()).sum(dim=-1) / 2
    best, rows = height.argmax(dim=0), torch.arange(z.shape[1], device=z.device)
    centre, directions = z[best, rows], vectors[best, rows]
    scales = _scales(integrand, centre, directions, values[best, rows].rsqrt())
    return _Peaks(z, height, log_mass, centre, directions * scales[:, None, :])


def _starts(integrand: _Integrand, draws: Tensor) -> Tensor:
    """The best draw of the guide, and local maxima of a coarse grid, `(starts, batch, latents)`."""
    latents = draws.shape[-1]
    axis = torch.linspace(-1, 1, _GRID[latents], dtype=torch.float64, device=draws.device)
    axis = (axis * math.asinh(2 * _GRID_END)).sinh() / 2
    grid = torch.cartesian_prod(*[axis] * latents).view(-1, 1, latents)
    grid = grid.expand(-1, draws.shape[1], -1)
    values = integrand.grid(grid)
    shape = (-1, 1, *[len(axis)] * latents)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[latents - 1]
    around = pool(values.T.reshape(shape).clamp(min=-1e300), 3, 1, 1).view(values.T.shape).T
    peaks = values.where(values >= around, -torch.inf).topk(_PEAKS, dim=0).indices
    best = integrand.grid(draws).argmax(dim=0, keepdim=True)
    return torch.cat([_pick(grid, peaks), _pick(draws, best)])


def _pick(z: Tensor, index: Tensor) -> Tensor:
    return z.gather(0, index[..., None].expand(-1, -1, z.shape[-1]))


def _eigen(bend: Tensor) -> tuple[Tensor, Tensor]:
    """Curvatures and directions, the former made positive and bounded away from zero."""
    values, vectors = torch.linalg.eigh(bend)
    largest = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8)
    return values.abs().clamp(min=1e-8 * largest), vectors


def _newton(integrand: _Integrand, z: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
    """One step of each start; the best of several lengths, or none."""
    slope, bend = integrand.curvature(z)
    values, vectors = _eigen(bend)
    step = vectors @ ((vectors.mT @ slope[..., None]) / values[..., None])
    sizes = torch.tensor(_STEP_SIZES, dtype=z.dtype, device=z.device)
    tried = z + sizes[:, None, None, None] * step[..., 0]  # (sizes, starts, batch, L)
    heights = integrand.grid(tried.flatten(0, 1)).view(tried.shape[:-1])
    best = heights.argmax(dim=0, keepdim=True)
    moved = tried.gather(0, best[..., None].expand(-1, -1, -1, z.shape[-1]))[0]
    reached = heights.gather(0, best)[0]
    better = reached > height
    return moved.where(better[..., None], z), reached.where(better, height)


def _scales(
    integrand: _Integrand, centre: Tensor, directions: Tensor, guess: Tensor
) -> Float[Tensor, "batch latents"]:
    """How far from the peak the log joint has fallen as a normal's within a standard deviation.

    The curvature at the peak alone would mislead for a cusp, a flat top or a heavy tail.
    """
    latents, factors = centre.shape[-1], 2.0 ** torch.arange(-12, 13, device=centre.device)
    steps = (directions * guess[:, None, :]).permute(2, 0, 1)  # (L, batch, L)
    sides = torch.cat([steps, -steps])
    z = centre + factors.to(centre)[:, None, None, None] * sides  # (factors, 2 L, batch, L)
    top = integrand.grid(centre[None])[0]
    fallen = top - integrand.grid(z.flatten(0, 1)).view(z.shape[:-1])
    first = (fallen >= _DROP).double().argmax(dim=0, keepdim=True)
    first = first.where((fallen >= _DROP).any(dim=0), len(factors) - 1)
    share = (_DROP / fallen.gather(0, first)[0].clamp(min=_DROP)).sqrt().clamp(min=0.5)
    found = factors.to(centre)[first[0]] * share  # (2 L, batch)
    return (found[:latents] * found[latents:]).sqrt().T * guess


class _Sums(NamedTuple):
    """What the points of each lattice add up to, `(lattices,)`."""

    log_mass: Tensor
    log_edge: Tensor
    points: Tensor
    undefined: Tensor


class _Answer(NamedTuple):
    """A level's answer for some data."""

    value: Tensor
    error: Tensor
    points: Tensor
    undefined: Tensor


def _integrate(integrand: _Integrand, draws: Tensor, method: Quadrature) -> LogMarginal:
    """Halves the spacing until every datum is done or out of points."""
    peaks = _peaks(integrand, draws)
    todo = torch.arange(draws.shape[1], device=draws.device)
    answer = _level(integrand, peaks, todo, 0, method)
    rounding = _ROUNDINGS * torch.finfo(integrand.program.dtype).eps * (1 + answer.value.abs())
    for halvings in range(1, _FINEST + 1):
        finer = answer.points * 2 ** draws.shape[-1]
        enough = answer.error <= rounding.clamp(min=method.tolerance)
        todo = (~enough & (finer <= method.max_points)).nonzero()[:, 0]
        if len(todo) == 0:
            break
        better = _level(integrand, peaks, todo, halvings, method)
        for whole, part in zip(answer, better, strict=True):
            whole[todo] = part
    return _result(answer, rounding, method)


def _result(answer: _Answer, rounding: Tensor, method: Quadrature) -> LogMarginal:
    error = answer.error + rounding
    missing = torch.full_like(error, torch.nan)
    doubts = {
        Doubt.TOLERANCE: ~(answer.error <= rounding.clamp(min=method.tolerance)),
        Doubt.UNDEFINED: answer.undefined,
    }
    return LogMarginal(
        answer.value,
        error,
        missing,
        missing,
        _LATTICES * answer.points,
        bound=Bound.TWO_SIDED,
        method="quadrature",
        doubts=doubts,
    )


def _level(
    integrand: _Integrand, peaks: _Peaks, todo: Tensor, halvings: int, method: Quadrature
) -> _Answer:
    """All lattices of some data at one spacing: their mean, and how far they are apart."""
    some = _Peaks(*(part[:, todo] for part in peaks[:3]), *(part[todo] for part in peaks[3:]))
    lattice = _Lattice(integrand, some, todo, 0.5**halvings, method)
    sums = lattice.sums()
    mass, edge = (part.view(_LATTICES, -1) for part in sums[:2])
    value = mass.logsumexp(dim=0) - math.log(_LATTICES)
    apart = (mass.amax(dim=0) - mass.amin(dim=0)).nan_to_num(nan=torch.inf)
    omitted = (_OMITTED * (edge - mass).exp()).amax(dim=0).log1p().nan_to_num(nan=torch.inf)
    unseen = lattice.unseen(value)
    points, undefined = (part.view(_LATTICES, -1) for part in sums[2:])
    error = apart + omitted + unseen
    return _Answer(value, error, points.amax(dim=0), undefined.any(dim=0))


class _Lattice:
    """Points of some lattices a datum: lattice `k * batch + n` is the kth of datum n."""

    def __init__(
        self,
        integrand: _Integrand,
        peaks: _Peaks,
        data: Int64[Tensor, " some"],
        spacing: float,
        method: Quadrature,
    ) -> None:
        self.integrand, self.peaks, self.data, self.spacing = integrand, peaks, data, spacing
        self.latents, self.number = peaks.z.shape[-1], _LATTICES * len(data)
        self.depth = _MARGIN - math.log(method.tolerance)
        self.max_points = method.max_points
        self.jump = math.log(spacing) * self.latents

    def at(self, lattices: Tensor, index: Tensor) -> Tensor:
        """Log mass of points by their lattice and integer coordinates; nan where undefined."""
        some = lattices % len(self.data)
        shift = (lattices // len(self.data)).double()[:, None] / _LATTICES
        z, jacobian = self.peaks.at(self.spacing * (index + shift), some)
        return self.integrand(z, self.data[some]) + jacobian + self.jump

    def seeds(self) -> tuple[Tensor, Tensor]:
        """The points nearest to the peaks, `(lattices * peaks,)`."""
        place = self.peaks.coordinates() / self.spacing  # (peaks, batch, L)
        shifts = [k / _LATTICES for k in range(_LATTICES)]
        index = torch.cat([(place - shift).round() for shift in shifts], dim=1)
        index = index.clamp(-(2 ** (_INDEX_BITS - 2)), 2 ** (_INDEX_BITS - 2)).long()
        lattices = torch.arange(self.number, device=index.device).expand(index.shape[:2])
        return lattices.flatten(), index.flatten(0, 1)

    def unseen(self, value: Tensor) -> Tensor:
        """Mass of peaks that stand between the points, in nats of the whole, `(batch,)`."""
        lattices, index = self.seeds()
        density = self.at(lattices, index) - self.jump
        density = density.view(len(self.peaks.z), _LATTICES, -1).amin(dim=1)
        place = self.peaks.coordinates()
        data = torch.arange(len(self.data), device=value.device).expand(place.shape[:2])
        _, jacobian = self.peaks.at(place.flatten(0, 1), data.flatten())
        top = self.peaks.height + jacobian.view(density.shape)
        fallen = top - density.nan_to_num(nan=-torch.inf)
        share = (self.peaks.log_mass - value).exp().where(fallen > self.latents, 0.0)
        return share.nan_to_num(nan=0.0).amax(dim=0).log1p()

    def sums(self) -> _Sums:
        """Visits points outwards from the peaks for as long as they carry mass."""
        lattices, index = self.seeds()
        best = self.peaks.height.amax(dim=0) + self.peaks.log_det + self.jump
        top = best.repeat(_LATTICES)
        seen = frontier = self._keys(lattices, index).unique()
        total = _empty_sums(top)
        first = True
        while len(frontier) > 0:
            lattices, index = self._unpacked(frontier)
            found = self.at(lattices, index)
            top = top.scatter_reduce(0, lattices, found.nan_to_num(nan=-torch.inf), "amax")
            heavy = found > top[lattices] - self.depth
            grown = total.points + torch.bincount(lattices, minlength=self.number)
            onwards = (heavy | first) & (grown < self.max_points)[lattices]
            total = _added(total, lattices, found, onwards)
            frontier = _unseen(self._around(lattices[onwards], index[onwards]), seen)
            seen = torch.cat([seen, frontier]).sort().values
            first = False
        return total

    def _around(self, lattices: Tensor, index: Tensor) -> Tensor:
        """Keys of the neighbours."""
        unit = torch.eye(self.latents, dtype=torch.int64, device=index.device)
        near = index[:, None] + torch.cat([unit, -unit])  # (points, 2 L, L)
        inside = (near.abs() < 2 ** (_INDEX_BITS - 1)).all(dim=-1)
        return self._keys(lattices[:, None].expand(inside.shape)[inside], near[inside])

    def _keys(self, lattices: Tensor, index: Tensor) -> Tensor:
        """One integer for each point."""
        key = lattices
        for column in index.unbind(dim=-1):
            key = (key << _INDEX_BITS) + column + 2 ** (_INDEX_BITS - 1)
        return key

    def _unpacked(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Lattice and integer coordinates of keys."""
        columns = []
        for _ in range(self.latents):
            columns.append((key & (2**_INDEX_BITS - 1)) - 2 ** (_INDEX_BITS - 1))
            key = key >> _INDEX_BITS
        return key, torch.stack(columns[::-1], dim=-1)


def _unseen(keys: Tensor, seen: Tensor) -> Tensor:
    """Those keys that are not among the sorted ones, each once."""
    keys = keys.unique()
    place = torch.searchsorted(seen, keys).clamp(max=len(seen) - 1)
    return keys[seen[place] != keys]


def _empty_sums(like: Tensor) -> _Sums:
    nothing = torch.full_like(like, -torch.inf)
    none = torch.zeros_like(like, dtype=torch.int64)
    return _Sums(nothing, nothing.clone(), none, torch.zeros_like(like, dtype=torch.bool))


def _added(total: _Sums, lattices: Tensor, found: Tensor, onwards: Tensor) -> _Sums:
    """Sums with some more points; the edge is where one goes no further."""
    undefined = total.undefined.clone()
    undefined[lattices[found.isnan()]] = True
    found = found.nan_to_num(nan=-torch.inf)
    edge = found.where(~onwards, -torch.inf)
    return _Sums(
        _log_add(total.log_mass, lattices, found),
        _log_add(total.log_edge, lattices, edge),
        total.points + torch.bincount(lattices, minlength=len(total.points)),
        undefined,
    )


def _log_add(total: Tensor, lattices: Tensor, found: Tensor) -> Tensor:
    """Adds masses given by their logarithms to those of their lattices."""
    peak = total.scatter_reduce(0, lattices, found, "amax")
    safe = peak.where(peak.isfinite(), 0.0)
    added = (total - safe).exp().scatter_add(0, lattices, (found - safe[lattices]).exp())
    return safe + added.log()
