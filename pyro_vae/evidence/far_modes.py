r"""Finds modes beyond the range of the prior's draws, under priors with heavy tails.

If a prior falls as a power of :math:`|z|`, and so does the likelihood, a datum far away has a mode
near the prior's center and another one near the likelihood's maximum. For example, with a standard
Cauchy prior, :math:`y \mid z \sim \mathrm{Cauchy}(z, 1)` and a large :math:`y`, the modes at 0 and
at :math:`y` have equal masses. Between them the log joint is nearly flat, so neither draws of the
prior nor gradients lead from one to the other.

But the likelihood by itself, without the prior, leads to its maximum. Where it falls as a power of
the distance :math:`d` from its maximum, its slope is proportional to :math:`1 / d` and its
curvature to :math:`1 / d^2`. So a step of Newton's method has the length :math:`d`, and the first
step already ends near the maximum. In the same way, the prior by itself leads back. With several
latents, some of them may be near the one maximum and some near the other. So from each mode,
Newton's method maximizes the likelihood and the prior, over all latents and over each latent alone.
From the points found, it then maximizes the joint. This is repeated from each new mode.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyro
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._types import Batch
from ..programs import Program
from ..results import join
from .mixtures import StudentMixture
from .modes import Modes
from .seeking import Integrand, Seeker, highest_draws, maxima, middle_and_spread
from .whitening import root_of

_AWAY = 1e3  # distance from the center, in spreads of the prior, at which its tails are judged
_HEAVY = 300.0  # nats: heavy tails fall by less over this distance (a t with 40 degrees by 208)
_ROUNDS = 6  # rounds of the search; each can lead to modes that differ in one more latent
_MOST = 64  # modes of a datum; if there are more, some may be missing
_WIDTHS = (1.0, 5.0)  # of components at a mode; the wider one reaches into heavy tails
_KEPT = 16  # number of a datum's heaviest modes, for the starts of fits and for a mixture
_DEPTH = 14.0  # nats below the heaviest mode; lighter modes are ignored
_MOST_LATENTS = 10  # with more, maxima are sought over all latents, but not over each one alone


def heavy_tails(integrand: Integrand) -> Bool[Tensor, " batch"]:
    """Returns a mask of the data whose prior falls as a power along some axis of the latents.

    Each datum's prior is judged by itself, since priors can depend on covariates. If the program
    fails far from the prior's center, the result is False.
    """
    of_one = integrand.draws.shape[1] == 1
    rows = torch.arange(1 if of_one else len(integrand), device=integrand.draws.device)
    center, spread = middle_and_spread(integrand.draws.nan_to_num())
    away = _AWAY * spread.diag_embed().transpose(0, 1)  # (latents, rows, latents)
    z = torch.cat([center[None], center + away, center - away])
    with pyro.validation_enabled(is_validate=False):
        heavy = _falls_slowly(integrand, z, rows)
    return heavy.expand(len(integrand))


def _falls_slowly(
    integrand: Integrand, z: Float[Tensor, "points rows latents"], rows: Tensor
) -> Bool[Tensor, " rows"]:
    """Returns a mask of the data whose prior falls slowly from the first point outwards.

    This is so if the log prior at one of the other points is less than 300 nats below the log prior
    at the first point.
    """
    try:
        prior = integrand.prior(z.flatten(0, 1), rows.repeat(len(z))).view(z.shape[:2])
    except (ValueError, RuntimeError):
        if len(rows) == 1:
            return torch.zeros_like(rows, dtype=torch.bool)
        ones = zip(z.split(1, dim=1), rows.split(1), strict=True)  # to find the data that fail
        return torch.cat([_falls_slowly(integrand, *one) for one in ones])
    return (prior[1:] > prior[0] - _HEAVY).any(dim=0)


def seek_far_modes(seeker: Seeker, heavy: Bool[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Adds far modes to those found before; returns a mask of the data that may have more.

    Arguments:
        seeker: The modes found before.
        heavy: Mask of the data whose prior has heavy tails; the other data have no far modes.
    """
    integrand, start = seeker.integrand, seeker.heavy()
    start = start.take(heavy[start.rows].nonzero()[:, 0])
    unsettled = torch.zeros_like(heavy)
    factors = list(_factors(integrand))
    for _ in range(_ROUNDS):
        if len(start) == 0:
            return unsettled
        known = seeker.modes
        ends = [factor.ends(start) for factor in factors]
        seeker.seek(torch.cat(ends), start.rows.repeat(2 * len(ends)))
        start = seeker.heavy(known)
        many = torch.bincount(start.rows, minlength=len(unsettled)) > _MOST
        unsettled |= many
        start = start.take((~many[start.rows]).nonzero()[:, 0])
    unsettled[start.rows] = True
    return unsettled


@dataclass(frozen=True)
class FarModes:
    """Modes of every datum, including modes beyond the range of the prior's draws.

    Arguments:
        loc: Positions of the modes, heaviest first. A datum with fewer modes than others has copies
            of its heaviest mode.
        scale_tril: Cholesky factors of the modes' covariances.
        log_mass: Log of each mode's mass by Laplace's method, in nats; minus infinity for copies.
        unsettled: Whether there may be further modes.
        heavy: Whether the datum's prior has heavy tails. Other data have no far modes.
        dtype: Dtype of the program.
    """

    loc: Float[Tensor, "batch modes latents"]
    scale_tril: Float[Tensor, "batch modes latents latents"]
    log_mass: Float[Tensor, "batch modes"]
    unsettled: Bool[Tensor, " batch"]
    heavy: Bool[Tensor, " batch"]
    dtype: torch.dtype

    @staticmethod
    def of(program: Program, batch: Batch, limit: int) -> "FarModes | None":
        """Seeks the modes; returns None if no datum's prior falls as a power.

        Arguments:
            program: The model.
            batch: The data.
            limit: Number of rows that the program can evaluate at once.
        """
        if program.latent_dim == 0:
            return None
        integrand = Integrand(program, batch, limit)
        heavy = heavy_tails(integrand)
        if not bool(heavy.any()):
            return None
        rows = torch.arange(len(integrand), device=batch[0].device)
        spread = middle_and_spread(integrand.draws.nan_to_num())[1]
        seeker = Seeker(integrand, _DEPTH, spread.amax(dim=1).expand(len(rows)))
        with pyro.validation_enabled(is_validate=False):  # far out anything may overflow
            seeker.seek(*highest_draws(integrand, rows))
            unsettled = seek_far_modes(seeker, heavy)
        modes = _one_at_least(seeker.heavy(), rows)
        if program.latent_dim > _MOST_LATENTS:
            unsettled |= heavy & (modes.count > 1)
        modes = modes.take(modes.log_mass.argsort(descending=True, stable=True))
        table = modes.table[:, :_KEPT]
        own = table.where(table >= 0, table[:, :1])
        log_mass = modes.log_mass[own].where(table >= 0, -torch.inf)
        axes = modes.axes[own]
        root = root_of(axes @ axes.mT)
        return FarModes(modes.z[own], root, log_mass, unsettled, heavy, program.dtype)

    def mixture(self) -> StudentMixture:
        """Returns a mixture with two heavy-tailed components at each mode, one narrow and one wide.

        Half of a mode's share is proportional to the mode's mass. The other half is equal for all
        modes of a datum.
        """
        even = torch.zeros_like(self.log_mass).where(self.log_mass > -torch.inf, -torch.inf)
        parts = [part.log_softmax(dim=1) for part in (self.log_mass, even)]
        shares = torch.logaddexp(*parts) - math.log(2)
        scales = [width * self.scale_tril for width in _WIDTHS]
        return StudentMixture(
            (shares - math.log(len(scales))).repeat(1, len(scales)),
            self.loc.repeat(1, len(scales), 1),
            torch.cat(scales, dim=1),
            self.dtype,
        )


def _one_at_least(modes: Modes, rows: Tensor) -> Modes:
    """Adds a mode at 0 for each datum in `rows` for which no mode was found."""
    none = rows[~torch.isin(rows, modes.rows)]
    unit = torch.ones_like(modes.axes[:1, :, 0]).diag_embed().expand(len(none), -1, -1)
    zero = torch.zeros_like(unit[..., 0])
    stretch = torch.ones_like(unit[:, :1]).expand(-1, 2, -1)
    return join([modes, Modes(none, zero, zero.sum(dim=-1), unit, stretch)])


def _factors(integrand: Integrand) -> Iterator["_Factor"]:
    """Yields likelihood and prior, first as functions of all latents, then of single latents."""
    latents = integrand.program.latent_dim
    every = (True,) * latents
    alone = [tuple(i == j for i in range(latents)) for j in range(latents)]
    for free in [every, *alone] if 1 < latents <= _MOST_LATENTS else [every]:
        for of_prior in (False, True):
            yield _Factor(
                integrand.program, integrand.batch, integrand.limit, of_prior=of_prior, free=free
            )


@dataclass(frozen=True, kw_only=True)
class _Factor(Integrand):
    """The log prior or log likelihood as a function of some latents, with the others fixed.

    Arguments:
        of_prior: Whether this is the prior; otherwise it is the likelihood.
        free: Mask of the latents that vary.
    """

    of_prior: bool
    free: tuple[bool, ...]

    def ends(self, modes: Modes) -> Float[Tensor, "points latents"]:
        """Returns the maxima that Newton's method finds; it starts on both sides of each mode."""
        sd = modes.axes.square().sum(dim=-1).sqrt() * torch.tensor(self.free, device=modes.z.device)
        starts = torch.cat([modes.z + sd, modes.z - sd])
        return maxima(self, starts, modes.rows.repeat(2))[0]

    def _log_density(self, z: Tensor, *batch: Tensor) -> Tensor:
        """Returns the log prior or the log likelihood, `(1, points)`."""
        prior, likelihood = self.program.log_densities(z, *batch)
        return prior if self.of_prior else likelihood

    def derivatives(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Computes gradients and negative Hessians; Newton steps then move only `free` latents."""
        slope, bend = super().derivatives(z, rows)
        free = torch.tensor(self.free, device=z.device)
        bend = bend.where(free & free[:, None], 0.0)
        held = bend.abs().amax(dim=(-1, -2))[:, None] * (~free).to(bend)
        return slope.where(free, 0.0), bend + held.diag_embed()
