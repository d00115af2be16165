r"""Finds and measures modes of log joints, by Newton's method from given starting points."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .._types import Batch
from ..programs import LogDensities, Prior, Program
from ..programs.pieces import in_pieces, take_rows
from ..randomness import forked
from ..results import join
from .modes import Modes, derivatives, widths

_PRIOR_DRAWS = 512
_CHECKED = 8  # prior draws at which the densities of different data are compared
_MOST_DRAWS = 4  # number of prior draws per datum from which Newton's method starts
_NEWTON_STEPS = 40
_HALVINGS = 10  # number of step lengths that are tried; shorter steps must not be lower
_SETTLED = 1e-8  # nats: Newton's method ends if a step's predicted gain is smaller
_DROP = 0.5  # nats by which a normal density falls within one standard deviation
_STEEP = 1.5  # largest ratio of a mode's width to the width of its steeper side
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

    def _log_density(self, z: Tensor, *batch: Tensor) -> Tensor:
        """Returns the log joint, `(1, points)`."""
        return self.program.log_joint(z, *batch)

    def _pieces(self, z: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Batch]]:
        """Yields points, `(1, some, latents)`, and their data, in chunks that fit in memory."""
        z = z.to(self.program.dtype)
        for some, of in in_pieces(self.limit, z, rows):
            yield some[None], take_rows(self.batch, of)

    def __call__(
        self, z: Float[Tensor, "points latents"], rows: Int64[Tensor, " points"]
    ) -> Float[Tensor, " points"]:
        """Computes the log joint in float64; values of plus infinity become nan."""
        parts = [self._log_density(some, *data)[0] for some, data in self._pieces(z, rows)]
        values = torch.cat(parts).double()
        return values.where(values < torch.inf, torch.nan)

    def heights(self, z: Float[Tensor, "many points latents"], rows: Tensor) -> Tensor:
        """Returns the log joint at all positions `z`, `(many, points)`; nan becomes -inf."""
        flat = self(z.flatten(0, 1), rows.expand(z.shape[:2]).flatten())
        return flat.view(z.shape[:2]).nan_to_num(nan=-torch.inf, neginf=-torch.inf)

    def derivatives(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Computes gradients and negative Hessians of the log joint; infinite entries become 0."""
        found = [derivatives(self._log_density, at, *own) for at, own in self._pieces(z, rows)]
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
        """Whether one run of the model is enough to compute the log densities of all data."""
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
    """Returns draws from the prior of one datum, with the same random numbers for every datum."""
    with forked(0, "quadrature.range"):
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
    step counts only if neither the step nor any shorter step that was tried lowers the log joint.
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
    integrand: Integrand, rows: Tensor, z: Tensor, height: Tensor, widest: Tensor
) -> Modes:
    """Measures the widths of modes along their principal directions, and returns the modes.

    A width is the distance at which the log joint is half a nat below the mode, as a normal density
    is at one standard deviation. For a cusp, a flat top or a heavy tail, the curvature would
    mislead.

    Arguments:
        integrand: The log joint.
        rows: Row number of each mode's datum.
        z: Positions of the modes.
        height: Log joint at each mode, in nats.
        widest: Upper limit on the first guess of each mode's width.
    """
    guess, directions = widths(integrand.derivatives(z, rows)[1])
    guess = torch.minimum(guess, widest[:, None])
    latents, factors = z.shape[-1], 2.0 ** torch.arange(-12, 13, device=z.device, dtype=z.dtype)
    steps = (directions * guess[:, None, :]).permute(2, 0, 1)  # (L, modes, L)
    tried = z + factors[:, None, None, None] * torch.cat([steps, -steps])  # (factors, 2 L, ...)
    fallen = height - integrand.heights(tried.flatten(0, 1), rows).view(tried.shape[:-1])
    fallen = fallen.nan_to_num(nan=0.0)  # the density is 0 at the mode and at this point
    far = fallen >= _DROP
    first = far.double().argmax(dim=0, keepdim=True).where(far.any(dim=0), len(factors) - 1)
    share = (_DROP / fallen.gather(0, first)[0].clamp(min=_DROP)).sqrt().clamp(min=0.5)
    found = factors[first[0]] * share  # (2 L, modes)
    sides = found.view(2, latents, -1)
    scale = torch.minimum(sides.prod(dim=0).sqrt(), _STEEP * sides.amin(dim=0)).T * guess
    stretch = (sides.permute(2, 0, 1) * (guess / scale)[:, None, :]).clamp(min=1.0)
    return Modes(rows, z, height, directions * scale[:, None, :], stretch)


def highest_draws(integrand: Integrand, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the prior draws with the highest log joints for each datum in `rows`.

    Also returns, for each draw, the row number of the datum for which it was chosen.
    """
    densities = integrand.on_grid(integrand.draws, rows)
    height = (densities.prior + densities.likelihood).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    highest = height.topk(_MOST_DRAWS, dim=0).indices
    own = rows if integrand.draws.shape[1] > 1 else torch.zeros_like(rows)
    return integrand.draws[highest, own].flatten(0, 1), rows.repeat(_MOST_DRAWS)


def middle_and_spread(draws: Float[Tensor, "draws data latents"]) -> tuple[Tensor, Tensor]:
    """Returns the median of draws, and half the distance between their 16% and 84% quantiles.

    If this distance is 0, the spread is 1 instead.
    """
    levels = torch.tensor([0.16, 0.5, 0.84], dtype=draws.dtype, device=draws.device)
    low, middle, high = draws.quantile(levels, dim=0)
    return middle, ((high - low) / 2).where(high > low, 1.0)


class Seeker:
    """Runs Newton's method from given points and collects the modes that are new.

    Arguments:
        integrand: The log joint.
        depth: A mode counts only if its log mass is at most this many nats below the log mass of
            the datum's heaviest mode.
        widest: Upper limit on the first guess of a mode's standard deviation, for every datum.
    """

    def __init__(self, integrand: Integrand, depth: float, widest: Float[Tensor, " batch"]) -> None:
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
        likelihood = (height - self.integrand.prior(z, rows)).nan_to_num(
            nan=-torch.inf, neginf=-torch.inf
        )
        self.likeliest = self.likeliest.scatter_reduce(0, rows, likelihood, "amax")
        if self.modes is not None:
            high = (height > self.top[rows] - 2 * self.depth).nonzero()[:, 0]
            z, rows, height = z[high], rows[high], height[high]
        if len(z) == 0:
            return new
        found = _measured(self.integrand, rows, z, height, self.widest[rows])
        for turn in _by_rank(rows, height):
            some = found.take(turn)
            if self.modes is not None:
                some = some.take((~self.modes.cover(some)).nonzero()[:, 0])
            self.modes = some if self.modes is None else join([self.modes, some])
            new[some.rows] = torch.logaddexp(new[some.rows], some.log_mass)
        return new

    def shares(self, log_mass: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Divides the masses of each datum's modes by the mass of the datum's heaviest mode."""
        assert self.modes is not None
        return (log_mass - self.modes.heaviest).exp()

    def heavy(self, known: Modes | None = None) -> Modes:
        """Returns the modes that are heavy enough to count, without the modes in `known`.

        The modes in `known` must be those that were found first.
        """
        assert self.modes is not None  # the first guess led to a mode for every datum
        enough = self.modes.log_mass >= self.modes.heaviest[self.modes.rows] - self.depth
        enough[: 0 if known is None else len(known)] = False
        return self.modes.take(enough.nonzero()[:, 0])


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
