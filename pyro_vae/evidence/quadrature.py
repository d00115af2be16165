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
   one dimension it is six times the true error, wherever the kink lies between the points. (If
   there is a kink, the sums over two lattices can agree by accident. If there are two jumps, even
   the sums over three lattices can agree, so for one latent the mass next to a jump is added to the
   error.) If the error is too large, the spacing is halved. The shifts are not along a diagonal.
   The reason: the error of a sum over a lattice consists of the integrand's Fourier coefficients at
   the vectors of the dual lattice, with phases that depend on the shift. Shifts along a diagonal
   would not change the phase of the vector (1, -1). So for a slanted ridge all lattices would have
   the same error, the sums would agree, and the result would look exact.
5. If the grid of the scan is fine enough, the sum over the grid is a second estimate of the mass of
   all modes that are wide enough for this grid. The difference between the two estimates is part
   of the error.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, NamedTuple

import pyro
import torch
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
from .lattices import MODES_AT_ONCE, OMITTED, SHIFTS, Frames, Lattice, log_add
from .results import Bound, LogMarginal
from .scan import Scan, scanned
from .seeking import Integrand
from .weights import Inference, draw_rows, rows_at_once

_MOST_LATENTS = 3  # each additional latent multiplies the number of points by about ten
_GUIDE_DRAWS = 16  # draws of the guide among which the highest is a starting point
_MARGIN = 12.0  # nats below the tolerance: the neighbours of even lighter points are not visited
_ROUNDINGS = 8.0  # assumed relative rounding error of a log joint, in units of eps
_FINEST = 12  # largest number of halvings of the spacing
_POINT_BYTES = 32  # memory of a visited point: its key, and copies while keys are sorted
_DATA_AT_ONCE = 1024
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
        max_points: Limit on the number of points per datum, on each lattice and on the scan's grid.
            It must be at least 100. A datum that needs more points is unreliable. For a datum
            with several modes, the last refinement can exceed the limit, by a factor of at most
            :math:`2^L`.
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
                "pv.Quadrature() requires the same log p(y, z) in every call with the same z; got "
                "two different values, as when a program draws a random value outside its sample "
                "sites: either draw the value with pyro.sample, without poutine.block, or use "
                "pv.ImportanceSampling()"
            )
        keys = row_keys(0, "quadrature.starts", *batch)  # fixed: no estimate uses these draws
        lattices = len(SHIFTS[program.latent_dim][0])
        affordable = int(self.memory * _MEBIBYTE / (lattices * _POINT_BYTES * self.max_points))
        size = max(1, min(_DATA_AT_ONCE, affordable))
        limit, parts = rows_at_once(program, batch, self.memory), []
        for rows in progress_bar(slices(len(keys), size), show=progress, desc="quadrature"):
            z, _ = draw_rows(posterior, rows.start, keys[rows], _GUIDE_DRAWS)
            part = take_rows(batch, rows)
            retry_unvalidated(partial(program.log_joint, z[:1], *part))  # refuses illegal data
            try:
                with pyro.validation_enabled(is_validate=False):  # far out anything may overflow
                    parts.append(_integrated(Integrand(program, part, limit), z.double(), self))
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise ValueError(
                    "pv.Quadrature() also evaluates the program far from the posterior, where a "
                    "matrix of the program cannot be factorized: compute in float64, or add more "
                    "to the matrix's diagonal, or use pv.ImportanceSampling() (PyTorch's message: "
                    f"{str(error).splitlines()[0]})"
                ) from error
        return join(parts)


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
    # A comparison with nan is false, so a density that is nan counts as the same.
    return not bool(((one - other).abs() > torch.finfo(one.dtype).eps ** 0.5 * scale).any())


class _Parts(NamedTuple):
    """The integral around each mode, combined from all lattices, as tensors of shape `(modes,)`.

    Arguments:
        log_mass: Log of the integral's average over lattices, in nats.
        log_spread: Log of the difference between the largest and the smallest integral over the
            lattices.
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
        points: Number of points per lattice, summed over modes.
        undefined: Whether the log joint is undefined at some point.
    """

    value: Tensor
    error: Tensor
    of_parts: Tensor
    points: Tensor
    undefined: Tensor


def _integrated(integrand: Integrand, draws: Tensor, method: Quadrature) -> LogMarginal:
    """Computes log p(y) of every datum.

    The spacing of the lattices around a mode is halved until log p(y) of the mode's datum is
    accurate enough, or until a further halving would need too many points.

    Arguments:
        integrand: The log joint.
        draws: Draws of the guide, `(draws, batch, latents)`; the search for modes also starts at
            each datum's draw with the highest log joint.
        method: The settings.
    """
    heights = integrand.heights(draws, torch.arange(len(integrand), device=draws.device))
    best = heights.argmax(dim=0)
    guess = draws[best, torch.arange(len(best), device=draws.device)]
    scan = scanned(integrand, guess, method.tolerance, method.max_points)
    overlaps = scan.modes.overlaps(_depth(method))
    frames = partial(Frames, scan.modes, overlaps)
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
        parts = with_rows(parts, todo, _level(integrand, frames(todo), halvings, method))
        answer = _added_up(parts, scan)
    return _result(answer, scan, rounding, method)


def _added_up(parts: _Parts, scan: Scan) -> _Answer:
    """Adds up the integrals around the modes of every datum, and the errors of these integrals.

    The error also includes the mass beyond the scan's grid, and the difference between the sums
    over lattices and the sum over this grid.
    """
    rows = scan.modes.rows
    nothing = torch.full_like(scan.log_edge, -torch.inf)
    value = log_add(nothing, rows, parts.log_mass)
    shares = [(part - value[rows]).exp() for part in (parts.log_spread, parts.log_edge)]
    of_parts = (shares[0] + OMITTED * shares[1]).nan_to_num(nan=torch.inf)
    total = torch.zeros_like(value).scatter_add(0, rows, of_parts)
    beyond = (scan.log_edge - value).exp().nan_to_num(nan=torch.inf)
    on_grid = log_add(nothing, rows[scan.on_grid], parts.log_mass[scan.on_grid])
    apart = ((scan.log_mass - value).exp() - (on_grid - value).exp()).abs().nan_to_num(nan=0.0)
    points = torch.zeros_like(value, dtype=torch.int64).scatter_add(0, rows, parts.points)
    undefined = torch.zeros_like(value).scatter_add(0, rows, parts.undefined.double()) > 0
    return _Answer(value, (total + beyond).log1p() + apart, of_parts, points, undefined)


def _result(answer: _Answer, scan: Scan, rounding: Tensor, method: Quadrature) -> LogMarginal:
    """Turns the integrals into a result; adds rounding errors, and determines the doubts."""
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
        len(SHIFTS[scan.modes.z.shape[-1]][0]) * answer.points,
        bound=Bound.TWO_SIDED,
        method="quadrature",
        doubts=doubts,
    )


def _depth(method: Quadrature) -> float:
    """Returns the number of nats below the heaviest point at which a point's mass is negligible."""
    return _MARGIN - math.log(method.tolerance)


def _level(integrand: Integrand, frames: Frames, halvings: int, method: Quadrature) -> _Parts:
    """Computes the integral around each mode on all lattices; returns average and spread."""
    parts = []
    for which in frames.which.split(MODES_AT_ONCE):
        some, spacing = replace(frames, which=which), 0.5**halvings
        lattice = Lattice(integrand, some, spacing, _depth(method), method.max_points)
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
