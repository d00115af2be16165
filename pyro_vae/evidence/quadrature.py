r"""Quadrature for one to three latents: integrates the joint density by sums over lattices.

The trapezoidal rule is the plain sum over equally spaced points. For a smooth integrand that decays
on both sides it converges geometrically. With points one standard deviation apart, the relative
error for a normal density is :math:`2 e^{-2 \pi^2} \approx 5 \cdot 10^{-9}`. For each datum:

1. A :mod:`scan <pyro_vae.evidence.scan>` of the prior's range finds the modes; the curvature at
   each mode gives directions and scales.
2. The joint density is divided among the modes. At every point, a mode receives the share that it
   has in a mixture of normal densities, which are as high and as wide as the modes. The shares add
   up to one, so nothing is counted twice, and the part of each mode has a single scale.
3. Each mode has coordinates :math:`z = c + A \, b \sinh(t / b)`, where :math:`c` is the mode and
   :math:`A` holds its axes. These coordinates are linear near the mode and compress heavy tails.
   Points :math:`t` of a lattice are visited outwards from the mode as long as the joint density has
   mass at these points. This includes mass that belongs to another mode, since a narrow mode can
   divide the region of a wide one. So the size and shape of the domain adapt to the integrand. The
   mass of the outermost points shows how much was left out. Points whose mass is far above that of
   both neighbours show how much mass lies on ridges that are too narrow for the lattice.
4. This is done on three lattices, shifted against each other by a third of a cell (on four lattices
   for two latents, on five for three). The average of the sums over these lattices is the result,
   and the spread of the sums is the error of the result. This error is conservative: for a kink in
   one dimension it is six times the true error, wherever the kink lies between the points. (The
   sums over two lattices could agree at a kink by accident. At two jumps even three could, so for
   one latent the mass next to a jump counts, too.) If the error is too large, the spacing
   is halved. The shifts are not along a diagonal. The reason: the error of a sum over a lattice
   consists of the integrand's Fourier coefficients at the vectors of the dual lattice, with phases
   that depend on the shift. Shifts along a diagonal would not change the phase of the vector
   (1, -1). So for a slanted ridge all lattices would have the same error, the sums would agree, and
   the result would look exact.
5. If the grid of the scan is fine enough, the sum over the grid is a second estimate of the mass of
   all modes that are wide enough for this grid. The difference of the two estimates is part of the
   error.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, NamedTuple

import pyro
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .._annotations import SHARE, Interval
from .._types import Batch
from ..formatting import count_of
from ..programs import Program
from ..programs.pieces import slices, take_rows
from ..programs.traces import retry_unvalidated
from ..progress import progress_bar
from ..randomness import forked, row_keys
from ..results import Doubt, join, with_rows
from .modes import Modes, Overlaps
from .results import Bound, LogMarginal
from .scan import Scan, scanned
from .seeking import Integrand
from .weights import Inference, draw_rows, require_numbers, rows_at_once

_MOST_LATENTS = 3  # each additional latent multiplies the number of points by about ten
_GUIDE_DRAWS = 16  # draws of the guide among which the highest is a starting point
_BEND = 3.0  # b, in standard deviations: closer to the mode the coordinates are nearly linear
_WIDEST = 1.5  # largest spacing, in a mode's standard deviations, at which points resolve the mode
_MARGIN = 12.0  # nats below the tolerance; neighbours of lighter points are not visited
_AHEAD = 0.5  # for one latent, standard deviations within which neighbours are visited at once
_ISOLATED = 4.5  # nats above both neighbours: a normal density whose points are three sd apart
_JUMP = 2.0  # ratio to the steps beside it; the steps of a smooth density do not vary so much
_OMITTED = 3.0  # mass beyond the outermost points relative to theirs, for tails as heavy as 1/z^2
_ROUNDINGS = 8.0  # assumed relative rounding error of a log joint, in units of eps
_PLACES: dict[int, list[list[int]]] = {
    1: [[0, 1, 2]],
    2: [[0, 1, 2, 3], [0, 2, 3, 1]],
    3: [[0, 1, 2, 3, 4], [0, 1, 3, 4, 2], [0, 2, 3, 1, 4]],
}
# Shifts of the lattices along each axis, in cells, for each number of latents. In the average over
# lattices, the Fourier coefficients along each axis cancel. For other dual vectors with entries -1,
# 0 and 1, the spread over lattices is at least 1.5 times the error of the average.
_SHIFTS = {latents: [[k / len(p) for k in p] for p in axes] for latents, axes in _PLACES.items()}
_FINEST = 12  # halvings
_KEY_BITS = 51  # bits of a key that hold a point's coordinates
_SHARES_AT_ONCE = 16_384  # points at which the modes' shares are computed at once
_POINT_BYTES = 32  # memory of a visited point: its key, and copies while keys are sorted
_DATA_AT_ONCE = 1024
_MODES_AT_ONCE = 512  # so that the number of a lattice fits into the remaining bits of a key
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Quadrature:
    r"""Integrates the joint density numerically over one to three flat latents.

    .. math:: \log p(y_n) = \log \int p(y_n, z) \, dz
        \approx \log \sum_{t \in h \mathbb{Z}^L} p(y_n, z(t)) \left|\frac{dz}{dt}\right| h^L

    Here :math:`h` is the spacing of the points :math:`t`, and :math:`L` the number of latents. The
    result is deterministic. Its error is a conservative estimate from the differences between
    shifted lattices. Modes are searched for over the prior's range, on grids that are refined until
    they show no new mode. If the number of points reaches its limit first, the datum is unreliable.
    Kinks in the log joint, as from a decoder with ReLUs, slow the convergence to :math:`h^2`, and
    jumps slow it to :math:`h`.

    Arguments:
        tolerance: Target error in nats per datum, between 0 and 1. For smooth programs the actual
            error is far smaller.
        max_points: Limit on the number of points per datum on each lattice and on the scan's grid,
            at least 100. A datum that needs more is unreliable. For a datum with several modes, the
            last refinement can exceed the limit, by a factor of at most :math:`2^L`.
        memory: Memory budget for points and the program's intermediate results, in MiB.

    Raises:
        ValueError: If an argument is out of range. Also raised when called, if the program has no
            latent or more than three, or if its log p(y, z) changes from call to call.

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

    tolerance: Annotated[float, SHARE] = 1e-4
    max_points: Annotated[int, Interval(100)] = 100_000
    memory: float = 512.0

    def __call__(
        self, inference: Inference, *, seed: int = 0, progress: bool | None = None
    ) -> LogMarginal:
        """Computes log p(y) of every datum by quadrature; the seed is not used."""
        program, posterior, batch = inference
        if not 1 <= program.latent_dim <= _MOST_LATENTS:
            raise ValueError(
                f"pv.Quadrature() requires 1 to {_MOST_LATENTS} latents per datum; got a program "
                f"with {count_of(program.latent_dim, 'latent')}: use pv.ImportanceSampling() or "
                "pv.AnnealedImportanceSampling()"
            )
        if not is_repeatable(program, batch):
            raise ValueError(
                "pv.Quadrature() requires the same log p(y, z) in every call with the same z, but "
                "this program draws a random value outside its sample sites. Draw the value with "
                "pyro.sample, without poutine.block, or use pv.ImportanceSampling()"
            )
        keys = row_keys(0, "quadrature.starts", *batch)  # fixed: no estimate uses these draws
        lattices = len(_SHIFTS[program.latent_dim][0])
        affordable = int(self.memory * _MEBIBYTE / (lattices * _POINT_BYTES * self.max_points))
        size = max(1, min(_DATA_AT_ONCE, affordable))
        limit, parts = rows_at_once(program, batch, self.memory), []
        for rows in progress_bar(slices(len(keys), size), show=progress, desc="quadrature"):
            z, _ = draw_rows(posterior, rows.start, keys[rows], _GUIDE_DRAWS)
            part = take_rows(batch, rows)
            retry_unvalidated(partial(program.log_joint, z[:1], *part))  # refuses illegal data
            with pyro.validation_enabled(is_validate=False):  # far out anything may overflow
                parts.append(_integrated(Integrand(program, part, limit), z.double(), self))
        return join(parts)


def _integrated(f: Integrand, starts: Tensor, settings: Quadrature) -> LogMarginal:
    """Computes log p(y) of every datum.

    If a matrix cannot be factorized, the error that is raised names a remedy.
    """
    try:
        return _integrate(f, starts, settings)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ValueError(
            "pv.Quadrature() also evaluates the program far from the posterior, where one of its "
            f"matrices cannot be factorized ({str(error).splitlines()[0]}). Compute in "
            "float64, add more to the matrix's diagonal, or use pv.ImportanceSampling()"
        ) from error


def is_repeatable(program: Program, batch: Batch) -> bool:
    """Returns whether the log joint at given latents is the same under two random seeds."""
    few = take_rows(batch, slice(2))
    z = torch.zeros(1, len(few[0]), program.latent_dim, dtype=program.dtype, device=program.device)
    densities = []
    for seed in range(2):
        with forked(seed, "quadrature.repeated"), pyro.validation_enabled(is_validate=False):
            densities.append(program.log_joint(z, *few))
    one, other = densities
    scale = 1 + one.abs() + other.abs()
    return not bool(((one - other).abs() > torch.finfo(one.dtype).eps ** 0.5 * scale).any())


@dataclass(frozen=True)
class _Frames:
    """Lattice coordinates around some modes, and the modes' shares of the joint density.

    Arguments:
        modes: All modes.
        overlaps: Pairs of modes in which the first mode's normal density reaches the second.
        which: Indices of those modes around which there are lattices.
    """

    modes: Modes
    overlaps: Overlaps
    which: Int64[Tensor, " some"]

    def seeds(self) -> tuple[Tensor, Tensor]:
        """Returns the points at which the summation around each mode starts.

        Each point is given by the position of a mode in `which` and by coordinates around this
        mode. The summation starts at the mode itself and at every mode to which this mode's normal
        density extends. If it started at the mode alone, it would not cross a region without mass
        on the way to another mode.
        """
        place = torch.full_like(self.modes.rows, -1)
        place[self.which] = torch.arange(len(self.which), device=place.device)
        mine = (place[self.overlaps.mode] >= 0).nonzero()[:, 0]
        mode, other = self.overlaps.mode[mine], self.overlaps.other[mine]
        centres = self.modes.z.new_zeros(len(self.which), self.modes.z.shape[-1])
        modes = torch.cat([place[self.which], place[mode]])
        return modes, torch.cat([centres, self.coordinates(mode, other)])

    def coordinates(self, mode: Tensor, other: Tensor) -> Tensor:
        """Returns the position of the mode `other` in the lattice coordinates of `mode`."""
        away = (self.modes.z[other] - self.modes.z[mode])[..., None]
        bent = torch.linalg.solve(self.modes.axes[mode], away)[..., 0]
        return _BEND * (bent / _BEND).asinh()

    def unseen(self, spacing: float) -> Float[Tensor, " some"]:
        """Computes how much mass the lattice around each mode may miss.

        Other modes can be too narrow for this lattice. The result is the mass that the lattice's
        own mode, taken as a normal density, has around them.
        """
        mode, other, log_stake = self.overlaps
        stretch = (self.coordinates(mode, other) / _BEND).cosh()[:, None]
        steps = torch.linalg.solve(self.modes.axes[other], self.modes.axes[mode] * stretch)
        is_wide = spacing * steps.square().sum(dim=-2).sqrt().amax(dim=-1) > _WIDEST
        stake = log_stake.exp().where(is_wide, 0.0)
        return torch.zeros_like(self.modes.height).scatter_add(0, mode, stake)[self.which]

    def at(self, t: Tensor, mode: Tensor) -> tuple[Tensor, Tensor]:
        """Maps lattice coordinates to latents; also returns the log Jacobian."""
        of = self.which[mode]
        bent = (_BEND * (t / _BEND).sinh())[..., None]
        jacobian = (t / _BEND).cosh().log().sum(dim=-1) + self.modes.log_det[of]
        return self.modes.z[of] + (self.modes.axes[of] @ bent)[..., 0], jacobian

    def rows(self, mode: Tensor) -> Tensor:
        """Returns the row numbers of the data to which modes belong."""
        return self.modes.rows[self.which[mode]]

    def log_share(self, z: Tensor, mode: Tensor) -> Tensor:
        """Computes, for each point, the log of its mode's share in the joint density there."""
        share, rows = torch.zeros_like(z[:, 0]), self.rows(mode)
        several = (self.modes.count[rows] > 1).nonzero()[:, 0]
        for some in several.split(_SHARES_AT_ONCE):
            share[some] = self.modes.log_share(z[some], rows[some], self.which[mode[some]])
        return share


class _Sums(NamedTuple):
    """The sums over the points of each lattice, as tensors of shape `(lattices,)`.

    Arguments:
        log_mass: Log of the mass of the mode around which the lattice lies, in nats.
        log_edge: Log of the mass of the outermost and of isolated points, in nats.
        points: Number of points visited.
        undefined: Whether the log joint is undefined at some point.
    """

    log_mass: Tensor
    log_edge: Tensor
    points: Tensor
    undefined: Tensor


class _Parts(NamedTuple):
    """The integral around each mode, combined from all lattices, as tensors of shape `(modes,)`.

    Arguments:
        log_mass: Log of the integral's average over lattices, in nats.
        log_spread: Log of the difference of the largest and the smallest integral over lattices.
        log_edge: Log of the mass of the outermost and of isolated points, in nats.
        points: Largest number of points on a lattice.
        undefined: Whether the log joint is undefined at some point.
    """

    log_mass: Tensor
    log_spread: Tensor
    log_edge: Tensor
    points: Tensor
    undefined: Tensor


class _Answer(NamedTuple):
    """The integral of every datum, summed over the datum's modes.

    Arguments:
        value: Log p(y), in nats.
        error: Error of the value, in nats.
        of_parts: Error that each mode contributes, `(modes,)`, in nats.
        points: Number of points.
        undefined: Whether the log joint is undefined at some point.
    """

    value: Tensor
    error: Tensor
    of_parts: Tensor
    points: Tensor
    undefined: Tensor


def _integrate(integrand: Integrand, draws: Tensor, method: Quadrature) -> LogMarginal:
    """Computes log p(y) of every datum.

    The spacing of the lattices around a mode is halved until log p(y) of the mode's datum is
    accurate enough, or until a further halving would need too many points.
    """
    heights = integrand.heights(draws, torch.arange(len(integrand), device=draws.device))
    require_numbers("log_likelihood", heights, draws, range(len(integrand)))
    best = heights.argmax(dim=0)
    guess = draws[best, torch.arange(len(best), device=draws.device)]
    scan = scanned(integrand, guess, method.tolerance, method.max_points)
    overlaps = scan.modes.overlaps(_MARGIN - math.log(method.tolerance))
    frames = partial(_Frames, scan.modes, overlaps)
    todo = torch.arange(len(scan.modes), device=draws.device)
    parts = _level(integrand, frames(todo), 0, method)
    answer = _added_up(parts, scan)
    rounding = _ROUNDINGS * torch.finfo(integrand.program.dtype).eps * (1 + answer.value.abs())
    enough = rounding.clamp(min=method.tolerance)
    rows, count = scan.modes.rows, scan.modes.count
    for halvings in range(1, _FINEST + 1):
        finer = answer.points[rows] + parts.points * (2 ** draws.shape[-1] - 1)
        is_off = answer.of_parts > enough[rows] / (2 * count[rows])
        is_off &= (answer.error > enough)[rows] & (finer <= method.max_points)
        todo = is_off.nonzero()[:, 0]
        if len(todo) == 0:
            break
        better = _level(integrand, frames(todo), halvings, method)
        parts = with_rows(parts, todo, better)
        answer = _added_up(parts, scan)
    return _result(answer, scan, rounding, method)


def _added_up(parts: _Parts, scan: Scan) -> _Answer:
    """Adds up the integrals around the modes of every datum, and the errors of these integrals."""
    rows = scan.modes.rows
    nothing = torch.full_like(scan.log_edge, -torch.inf)
    value = _log_add(nothing, rows, parts.log_mass)
    shares = [(part - value[rows]).exp() for part in (parts.log_spread, parts.log_edge)]
    of_parts = (shares[0] + _OMITTED * shares[1]).nan_to_num(nan=torch.inf)
    total = torch.zeros_like(value).scatter_add(0, rows, of_parts)
    beyond = (scan.log_edge - value).exp().nan_to_num(nan=torch.inf)
    on_grid = _log_add(nothing, rows[scan.on_grid], parts.log_mass[scan.on_grid])
    apart = ((scan.log_mass - value).exp() - (on_grid - value).exp()).abs().nan_to_num(nan=0.0)
    points = torch.zeros_like(value, dtype=torch.int64).scatter_add(0, rows, parts.points)
    undefined = torch.zeros_like(value).scatter_add(0, rows, parts.undefined.double()) > 0
    return _Answer(value, (total + beyond).log1p() + apart, of_parts, points, undefined)


def _result(answer: _Answer, scan: Scan, rounding: Tensor, method: Quadrature) -> LogMarginal:
    error = answer.error + rounding
    missing = torch.full_like(error, torch.nan)
    doubts = {
        Doubt.TOLERANCE: ~(answer.error <= rounding.clamp(min=method.tolerance)),
        Doubt.UNDEFINED: answer.undefined,
        Doubt.UNSETTLED: scan.unsettled,
        Doubt.ZERO_WEIGHTS: answer.value.isneginf(),
    }
    return LogMarginal(
        answer.value,
        error,
        missing,
        missing,
        len(_SHIFTS[scan.modes.z.shape[-1]][0]) * answer.points,
        bound=Bound.TWO_SIDED,
        method="quadrature",
        doubts=doubts,
    )


def _level(integrand: Integrand, frames: _Frames, halvings: int, method: Quadrature) -> _Parts:
    """Computes the integral around each mode: average and spread over lattices of one spacing."""
    parts = []
    for which in frames.which.split(_MODES_AT_ONCE):
        some, spacing = replace(frames, which=which), 0.5**halvings
        lattice = _Lattice(integrand, some, spacing, method)
        mass, edge, points, undefined = (part.view(-1, len(which)) for part in lattice.sums())
        high, low = mass.amax(dim=0), mass.amin(dim=0)
        spread = (high + (-(low - high).exp()).log1p()).where(low < high, -torch.inf)
        spread = torch.logaddexp(spread, some.unseen(spacing).log())
        parts.append(
            _Parts(
                mass.logsumexp(dim=0) - math.log(len(mass)),
                spread,
                edge.amax(dim=0),
                points.amax(dim=0),
                undefined.any(dim=0),
            )
        )
    return join(parts)


class _Lattice:
    """All lattices around some modes, shifted against one another.

    The k-th lattice of mode m has the number `k * modes + m`, where `modes` is the number of modes.
    """

    def __init__(
        self, integrand: Integrand, frames: _Frames, spacing: float, method: Quadrature
    ) -> None:
        self.integrand, self.frames, self.spacing = integrand, frames, spacing
        self.latents, self.modes = frames.modes.z.shape[-1], len(frames.which)
        shifts = torch.tensor(_SHIFTS[self.latents], device="cpu")
        self.shifts = shifts.T.to(frames.modes.z)  # (lattices, latents)
        self.number = len(self.shifts) * self.modes
        self.depth = _MARGIN - math.log(method.tolerance)
        self.max_points = method.max_points
        self.bits = _KEY_BITS // self.latents  # of each coordinate
        self.farthest = 2 ** (self.bits - 2)  # its neighbours still fit into these bits
        self.jump = math.log(spacing) * self.latents

    def at(self, lattices: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the log mass of lattice points, and the log of the part of their lattice's mode.

        Points are given by lattice number and integer coordinates. The two results are nan where
        the log joint is undefined.
        """
        mode = lattices % self.modes
        shift = self.shifts[lattices // self.modes]
        z, jacobian = self.frames.at(self.spacing * (index + shift), mode)
        share = self.frames.log_share(z, mode)
        mass = self.integrand(z, self.frames.rows(mode)) + jacobian + self.jump
        return mass, mass + share

    def sums(self) -> _Sums:
        """Sums the mass at each lattice's points, outwards from the modes until there is none."""
        top = (self._highest() + self.jump).repeat(len(self.shifts))
        frontier = self._seeds()
        seen = _Seen(frontier)
        total = _empty_sums(top)
        first, visited = True, []
        while len(frontier) > 0:
            lattices, index = self._unpacked(frontier)
            mass, found = self.at(lattices, index)
            top = top.scatter_reduce(
                0, lattices, found.nan_to_num(nan=-torch.inf, neginf=-torch.inf), "amax"
            )
            heavy = mass > top[lattices] - self.depth
            grown = total.points + torch.bincount(lattices, minlength=self.number)
            onwards = (heavy | first) & (grown < self.max_points)[lattices]
            onwards &= (index.abs() < self.farthest).all(dim=-1)
            total = _added(total, lattices, found, onwards)
            visited.append((frontier, found))
            frontier = seen.add(self._around(lattices[onwards], index[onwards]))
            first = False
        keys, found = join(visited)
        return total._replace(log_edge=self._with_isolated(total.log_edge, keys, found))

    def _with_isolated(self, log_edge: Tensor, keys: Tensor, found: Tensor) -> Tensor:
        """Adds the mass of isolated points to the mass of the outermost points.

        Both masses show how much the sum may miss. A point is isolated if its mass is far above the
        mass of its two neighbours along some axis. Such a point lies on a ridge that is narrower
        than the spacing of the lattice. So other parts of the ridge may lie between the points,
        where their mass is missed.

        With one latent, jumps count, too (:func:`_jumps`). If the density jumps up and down by the
        same amount, the lattices can agree by accident, and their spread does not show the error.
        """
        keys, order = keys.sort()
        found = found[order].nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        isolated = torch.zeros_like(found, dtype=torch.bool)
        for axis in range(self.latents):
            beside = [keys + sign * (1 << axis * self.bits) for sign in (-1, 1)]
            places = [torch.searchsorted(keys, key).clamp(max=len(keys) - 1) for key in beside]
            values = [
                found[place].where(keys[place] == key, -torch.inf)
                for key, place in zip(beside, places, strict=True)
            ]
            isolated |= torch.maximum(*values) < found - _ISOLATED
        lattices = self._unpacked(keys)[0]
        log_edge = _log_add(log_edge, lattices[isolated], found[isolated])
        if self.latents > 1:
            return log_edge
        jump, rise = _jumps(keys, found)
        share = math.log(2 * len(self.shifts) * _OMITTED)  # half a cell of all lattices together
        return _log_add(log_edge, lattices[jump], rise - share)

    def _seeds(self) -> Tensor:
        """Returns the points at which the sums start, each packed into one integer key."""
        mode, place = self.frames.seeds()
        number = len(self.shifts)
        which = torch.arange(number, device=place.device).repeat_interleave(len(mode))
        index = place.repeat(number, 1) / self.spacing - self.shifts[which]
        index = index.round().clamp(-self.farthest, self.farthest).long()
        return self._keys(which * self.modes + mode.repeat(number), index).unique()

    def _highest(self) -> Tensor:
        """Returns the largest log mass of a cell that contains a mode, `(modes,)`.

        All modes of a datum have the same value, which is the largest over these modes.
        """
        modes = self.frames.modes
        cells = modes.height + modes.log_det
        most = torch.full_like(cells[: len(modes.count)], -torch.inf)
        most = most.scatter_reduce(0, modes.rows, cells, "amax")
        return most[modes.rows[self.frames.which]]

    def _around(self, lattices: Tensor, index: Tensor) -> Tensor:
        """Returns the neighbours of points along each axis, each packed into one integer key."""
        if self.latents == 1:
            return self._ahead(lattices, index)
        unit = torch.eye(self.latents, dtype=torch.int64, device=index.device)
        near = index[:, None] + torch.cat([unit, -unit])  # (points, neighbours, L)
        return self._keys(lattices[:, None], near).flatten()

    def _ahead(self, lattices: Tensor, index: Tensor) -> Tensor:
        """Returns the points next to both ends of each run of consecutive points on a line.

        A line has only two directions, so a fine lattice is visited several points at a time. The
        given points are sorted.
        """
        is_last = torch.ones_like(lattices, dtype=torch.bool)
        is_last[:-1] = self._keys(lattices, index).diff() != 1
        is_first = is_last.roll(1)
        ahead = max(1, int(_AHEAD / self.spacing))
        steps = torch.arange(1, ahead + 1, device=index.device)
        near = torch.cat([index[is_last] + steps, index[is_first] - steps])  # (ends, ahead)
        of = torch.cat([lattices[is_last], lattices[is_first]])
        return self._keys(of[:, None], near[..., None]).flatten()

    def _keys(self, lattices: Tensor, index: Tensor) -> Tensor:
        """Packs the lattice number and the integer coordinates of each point into one integer."""
        key = lattices
        for column in index.unbind(dim=-1):
            key = (key << self.bits) + column + 2 ** (self.bits - 1)
        return key

    def _unpacked(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Unpacks integer keys into lattice numbers and integer coordinates."""
        columns = []
        for _ in range(self.latents):
            columns.append((key & (2**self.bits - 1)) - 2 ** (self.bits - 1))
            key = key >> self.bits
        return key, torch.stack(columns[::-1], dim=-1)


class _Seen:
    """The set of keys visited so far, as sorted runs, each less than half the one before.

    On a narrow ridge many points are visited a few at a time. In runs of falling lengths, a key is
    sorted again only when its run has doubled, and not for every few points that are added.
    """

    def __init__(self, keys: Tensor) -> None:
        self.runs = [keys]

    def add(self, keys: Tensor) -> Tensor:
        """Adds keys, and returns those that are new: sorted, and each once."""
        keys = keys.unique()
        for run in self.runs:
            place = torch.searchsorted(run, keys).clamp(max=len(run) - 1)
            keys = keys[run[place] != keys]
        if len(keys) == 0:
            return keys
        self.runs.append(keys)
        while len(self.runs) > 1 and len(self.runs[-2]) <= 2 * len(self.runs[-1]):
            last = self.runs.pop()
            self.runs[-1] = torch.cat([self.runs[-1], last]).sort().values
        return keys


def _empty_sums(like: Tensor) -> _Sums:
    nothing = torch.full_like(like, -torch.inf)
    none = torch.zeros_like(like, dtype=torch.int64)
    return _Sums(nothing, nothing.clone(), none, torch.zeros_like(like, dtype=torch.bool))


def _added(total: _Sums, lattices: Tensor, found: Tensor, onwards: Tensor) -> _Sums:
    """Adds points to the sums of their lattices.

    Where `onwards` is false, the summation ends; these points also count as outermost points.
    """
    undefined = total.undefined.clone()
    undefined[lattices[found.isnan()]] = True
    found = found.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    edge = found.where(~onwards, -torch.inf)
    return _Sums(
        _log_add(total.log_mass, lattices, found),
        _log_add(total.log_edge, lattices, edge),
        total.points + torch.bincount(lattices, minlength=len(total.points)),
        undefined,
    )


def _jumps(keys: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Finds jumps between neighbouring points of a line: steps far larger than those beside them.

    Returns the indices of the points before the jumps, and the log of each jump's height.

    Arguments:
        keys: Keys of the points, sorted; those of neighbours differ by 1.
        found: Log masses of the points.
    """
    step = (found.diff().abs()).nan_to_num(nan=0.0, posinf=torch.inf)
    step = step.where(keys.diff() == 1, 0.0)
    beside = torch.nn.functional.pad(step, (1, 1))
    jump = (step > _JUMP * torch.maximum(beside[:-2], beside[2:])).nonzero()[:, 0]
    height = torch.maximum(found[jump], found[jump + 1]) + (-(-step[jump]).exp()).log1p()
    return jump, height


def _log_add(total: Tensor, lattices: Tensor, found: Tensor) -> Tensor:
    """Adds masses to the totals of their lattices; masses and totals are given as logarithms."""
    peak = total.scatter_reduce(0, lattices, found, "amax")
    safe = peak.where(peak.isfinite(), 0.0)
    added = (total - safe).exp().scatter_add(0, lattices, (found - safe[lattices]).exp())
    return safe + added.log()
