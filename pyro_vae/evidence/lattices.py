"""Sums the joint density over lattices around modes, and bounds the mass that the sums may miss.

:mod:`pyro_vae.evidence.quadrature` explains the coordinates of the lattices, and why there
are several lattices around each mode.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..results import join
from .modes import Modes, Overlaps
from .seeking import Integrand

_BEND = 3.0  # b, in standard deviations: closer to the mode the coordinates are nearly linear
_WIDEST = 1.5  # largest spacing, in a mode's standard deviations, at which points resolve the mode
_AHEAD = 0.5  # for one latent, standard deviations within which neighbours are visited at once
_ISOLATED = 4.5  # nats above both neighbours, as for a normal density with points three sd apart
_JUMP = 2.0  # a jump is this many times the steps beside it; those of a smooth density vary less
OMITTED = 3.0
"""Mass beyond the outermost points, divided by theirs, for tails as heavy as 1/z^2."""

_PLACES: dict[int, list[list[int]]] = {
    1: [[0, 1, 2]],
    2: [[0, 1, 2, 3], [0, 2, 3, 1]],
    3: [[0, 1, 2, 3, 4], [0, 1, 3, 4, 2], [0, 2, 3, 1, 4]],
}
# Shifts of the lattices along each axis, in cells, for each number of latents. In the average over
# lattices, the Fourier coefficients along each axis cancel. For other dual vectors with entries -1,
# 0 and 1, the spread over lattices is at least 1.5 times the error of the average.
SHIFTS = {latents: [[k / len(p) for k in p] for p in axes] for latents, axes in _PLACES.items()}
_KEY_BITS = 51  # bits of a key that hold a point's coordinates
_SHARES_AT_ONCE = 16_384  # points at which the modes' shares are computed at once
MODES_AT_ONCE = 512
"""Most modes of a :class:`Lattice`: lattice numbers fit into the remaining bits of a key."""


@dataclass(frozen=True)
class Frames:
    """Lattice coordinates around some modes, and the modes' shares of the joint density.

    Arguments:
        modes: All modes that were found for the data.
        overlaps: Pairs of modes in which the first mode's normal density reaches the second.
        which: Indices of the modes around which lattices are placed.
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
        own mode, taken as a normal density, has around such narrow modes.
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
        """Returns the row number of each mode's datum."""
        return self.modes.rows[self.which[mode]]

    def log_share(self, z: Tensor, mode: Tensor) -> Tensor:
        """Computes the log of the share that each point's `mode` has in the joint density."""
        share, rows = torch.zeros_like(z[:, 0]), self.rows(mode)
        several = (self.modes.count[rows] > 1).nonzero()[:, 0]
        for some in several.split(_SHARES_AT_ONCE):
            share[some] = self.modes.log_share(z[some], rows[some], self.which[mode[some]])
        return share


class Sums(NamedTuple):
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


class Lattice:
    """All lattices around some modes; the lattices around a mode are offset from one another.

    The k-th lattice of mode m has the number `k * modes + m`, where `modes` is the number of modes.

    Arguments:
        integrand: The log joint.
        frames: The modes, with their coordinates.
        spacing: Distance between neighbouring points, in standard deviations of their mode.
        depth: If the log mass of a point is this many nats or more below that of the lattice's
            heaviest point, the point's neighbours are not visited.
        max_points: Number of visited points at which a lattice stops growing.
    """

    def __init__(
        self, integrand: Integrand, frames: Frames, spacing: float, depth: float, max_points: int
    ) -> None:
        self.integrand, self.frames, self.spacing = integrand, frames, spacing
        self.latents, self.modes = frames.modes.z.shape[-1], len(frames.which)
        shifts = torch.tensor(SHIFTS[self.latents], device="cpu")
        self.shifts = shifts.T.to(frames.modes.z)  # (lattices, latents)
        self.number = len(self.shifts) * self.modes
        self.depth, self.max_points = depth, max_points
        self.bits = _KEY_BITS // self.latents  # of each coordinate
        self.farthest = 2 ** (self.bits - 2)  # its neighbours still fit into these bits
        self.jump = math.log(spacing) * self.latents

    def at(self, lattices: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Computes each lattice point's log mass, and the log of the part that its mode receives.

        Points are given by lattice number and integer coordinates. The two results are nan where
        the log joint is undefined.
        """
        mode = lattices % self.modes
        shift = self.shifts[lattices // self.modes]
        z, jacobian = self.frames.at(self.spacing * (index + shift), mode)
        share = self.frames.log_share(z, mode)
        mass = self.integrand(z, self.frames.rows(mode)) + jacobian + self.jump
        return mass, mass + share

    def sums(self) -> Sums:
        """Sums the mass at each lattice's points, outwards until the masses become negligible."""
        top = (self._highest() + self.jump).repeat(len(self.shifts))
        frontier = self._seeds()
        seen = Seen(frontier)
        nothing, undefined = torch.full_like(top, -torch.inf), torch.zeros_like(top).bool()
        total = Sums(nothing, nothing, undefined.long(), undefined)
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
        than the spacing of the lattice. So the mass of other parts of the ridge, which lie between
        the points, may be missed.

        With one latent, the mass next to jumps (:func:`_jumps`) is added, too. If the density jumps
        up and down by the same amount, the lattices can agree by accident, and their spread does
        not show the error.

        Arguments:
            log_edge: Log of the mass of each lattice's outermost points, in nats.
            keys: Keys of all points visited.
            found: Log masses of these points, in nats.
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
        log_edge = log_add(log_edge, lattices[isolated], found[isolated])
        if self.latents > 1:
            return log_edge
        jump, rise = _jumps(keys, found)
        share = math.log(2 * len(self.shifts) * OMITTED)  # half a cell of all lattices together
        return log_add(log_edge, lattices[jump], rise - share)

    def _seeds(self) -> Tensor:
        """Returns the points at which the sums start, each packed into one integer key."""
        mode, place = self.frames.seeds()
        number = len(self.shifts)
        which = torch.arange(number, device=place.device).repeat_interleave(len(mode))
        index = place.repeat(number, 1) / self.spacing - self.shifts[which]
        index = index.round().clamp(-self.farthest, self.farthest).long()
        return self._keys(which * self.modes + mode.repeat(number), index).unique()

    def _highest(self) -> Tensor:
        """Returns, for each mode, the largest log mass of a cell at any mode of the same datum."""
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

        With one latent, a sum grows only at the ends of such runs. So several points are added at
        each end, because a fine lattice would take too many rounds with single points. The given
        points must be sorted.
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


class Seen:
    """The keys of all visited points, in sorted lists of decreasing length.

    Each list is less than half as long as the list before it.

    On a narrow ridge many points are visited, a few at a time. Sorting all keys after each addition
    would be slow. Instead, a list is merged into the list before it as soon as it is at least half
    as long.
    """

    def __init__(self, keys: Tensor) -> None:
        self.runs = [keys]

    def add(self, keys: Tensor) -> Tensor:
        """Adds keys; returns the new keys among them, sorted and without repetitions."""
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


def _added(total: Sums, lattices: Tensor, found: Tensor, onwards: Tensor) -> Sums:
    """Adds points to the sums of their lattices.

    Arguments:
        total: The sums over the points visited before.
        lattices: Lattice numbers of the points.
        found: Log masses of the points, in nats.
        onwards: Mask of the points whose neighbours are visited; the others are outermost points.
    """
    undefined = total.undefined.clone()
    undefined[lattices[found.isnan()]] = True
    found = found.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    edge = found.where(~onwards, -torch.inf)
    return Sums(
        log_add(total.log_mass, lattices, found),
        log_add(total.log_edge, lattices, edge),
        total.points + torch.bincount(lattices, minlength=len(total.points)),
        undefined,
    )


def _jumps(keys: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Finds jumps: steps in log mass that are far larger than the steps before and after them.

    Returns the indices of the points before the jumps, and the log of each jump's height.

    Arguments:
        keys: Sorted keys of points on a line; the keys of neighbouring points differ by 1.
        found: Log masses of the points.
    """
    step = (found.diff().abs()).nan_to_num(nan=0.0, posinf=torch.inf)
    step = step.where(keys.diff() == 1, 0.0)
    beside = torch.nn.functional.pad(step, (1, 1))
    jump = (step > _JUMP * torch.maximum(beside[:-2], beside[2:])).nonzero()[:, 0]
    height = torch.maximum(found[jump], found[jump + 1]) + (-(-step[jump]).exp()).log1p()
    return jump, height


def log_add(total: Tensor, lattices: Tensor, found: Tensor) -> Tensor:
    """Adds masses to the totals of their lattices; masses and totals are given as logarithms."""
    peak = total.scatter_reduce(0, lattices, found, "amax")
    safe = peak.where(peak.isfinite(), 0.0)
    added = (total - safe).exp().scatter_add(0, lattices, (found - safe[lattices]).exp())
    return safe + added.log()
