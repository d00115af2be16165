r"""Checks at independent points whether a proposal's draws reach the whole posterior.

A proposal may hardly reach some part of the posterior. The largest weights show this only if one of
the proposal's rare draws falls into that part. A run without such a draw looks harmless, and
accepting runs by their weights selects just these runs. So the densities of posterior and proposal
are evaluated at further points :math:`z_i`. Near :math:`z` there are :math:`r(z)` such points per
unit of volume. Let :math:`Q(w)` be the probability that a draw has a weight above :math:`w`. Then
the probability that none of :math:`K` draws has such a weight is about :math:`e^{-K Q(w)}`. So the
expected mass that the mean weight :math:`\hat p` lacks, relative to :math:`\hat p`, is

.. math:: s = \sum_i \frac{1}{r(z_i)} \left( \frac{p(y, z_i)}{\hat p} - q(z_i) \right)_+
    e^{-K Q(w_i)}, \qquad Q(w) = \sum_i \frac{q(z_i)}{r(z_i)} \mathbb{1}(w_i > w) .

For one latent the points form two grids, one around the draws and one around the prior's mean, and
nothing is random. For more latents, most points are drawn from two distributions around the mean of
the weighted draws. A Student t distribution finds tails in any direction, and a distribution along
the axes finds independent tails of single latents. Both distributions are wider than both the
weighted and the unweighted draws. Weighted draws are used because under a mean-field proposal only
the weights show correlations, and missed mass lies along correlated directions. The other points
are draws from the prior, which find further modes. All points are weighted by the density of their
mixture. So :math:`s` is unbiased except for the errors of :math:`Q` and :math:`\hat p`, and the
standard error of :math:`s` is added to :math:`s`. A mode without a point is not found; if the
posterior is narrow, prior draws seldom lie in a mode.
"""

import math
from functools import partial
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from .._types import Batch, Estimate
from ..programs import Program
from ..programs.pieces import slices
from ..randomness import normals, stream, uniforms
from ..results import join
from .proposals import density_at
from .saturation import PriorDraws
from .weights import Inference
from .whitening import Whitening

_NODES = 48  # points of a grid, which is dense at its center; the share is accurate to 10%
# Half-width of a grid in sd, and its compression: 48 points are 0.25 sd apart at the center, and
# 2.5 at the ends.
_FARTHEST, _DENSER = 20.0, 3.0
# Number of points around the draws, or on the prior's grid: least, most, and per draw.
_FEWEST, _MOST, _SHARE = 96, 480, 1 / 16
_OF_PRIOR = 32  # number of further points, which are drawn from the prior
_WIDER, _DEGREES = 1.4, 4  # Student t: scale and degrees of freedom, for tails with finite variance
_AROUND = 1.2  # standard deviation of the other latents, for points along one axis
_POOL = 64  # prior draws made in one run of the program; each datum uses a subset
_NEAR = 4.0  # sd of the proposal: only closer points are used if the program fails farther out
_MOST_MASS = 300.0  # nats: cap on a point's log share of the mass, so that sums stay finite
_MOMENTS = 2000  # draws from which the mean and the covariance are estimated


class Drawn(NamedTuple):
    """A summary of the draws for some data.

    Arguments:
        z: Some of the draws, from which moments are estimated.
        log_weights: Log weights of these draws, in nats.
        log_mean: Log of the mean of all weights, in nats.
        keys: Random keys of the draws, from which the keys of :class:`Points` are derived.
        number: Total number of draws per datum.
    """

    z: Float[Tensor, "particles batch latents"]
    log_weights: Float[Tensor, "particles batch"]
    log_mean: Float[Tensor, " batch"]
    keys: Int64[Tensor, " batch"]
    number: int

    def row(self, row: int) -> "Drawn":
        """Returns the summary for one datum."""
        one = slice(row, row + 1)
        draws = self.z[:, one], self.log_weights[:, one]
        return Drawn(*draws, self.log_mean[one], self.keys[one], self.number)


class Points(NamedTuple):
    """Points at which the posterior and the proposal of some data are evaluated.

    Arguments:
        z: Points, as flat unconstrained latents.
        log_placed: Log of the number of points per unit of volume; prior draws do not count.
        radius: Distance from the mean of the draws, in standard deviations of the draws.
        num_prior: Number of points that are draws from the prior.
    """

    z: Float[Tensor, "points batch latents"]
    log_placed: Float[Tensor, "points batch"]
    radius: Float[Tensor, "points batch"]
    num_prior: int = 0

    def rows(self, rows: slice) -> "Points":
        """Returns the points for a subset of the data."""
        return Points(
            self.z[:, rows], self.log_placed[:, rows], self.radius[:, rows], self.num_prior
        )

    def near(self) -> "Points":
        """Returns one datum's points within four standard deviations of the draws' mean."""
        some = self.radius[:, 0] < _NEAR
        return Points(self.z[some], self.log_placed[some], self.radius[some], self.num_prior)


def unreached(
    inference: Inference,
    drawn: Drawn,
    pool: PriorDraws,
    *,
    limit: int,
) -> Float64[Tensor, " batch"]:
    """Estimates the expected share of each posterior's mass that is missed by the draws.

    For each datum, the posterior and the proposal are evaluated at points other than the draws. For
    one latent the points are two grids. For more latents they are draws of the prior and random
    points around the draws, and the standard error of the share is added to it. The share is 0 if
    the proposal cannot give its density at points that it did not draw. If the program fails at
    some points of a datum, only the points near the draws are used; if it also fails at these, the
    share is 0.

    Arguments:
        inference: The model, the proposal and the data.
        drawn: Summary of the draws.
        pool: Prior draws from :func:`prior_pool`.
        limit: Number of rows that the program can evaluate at once.
    """
    points = _points(inference, drawn, pool, limit)
    share = partial(_share, num_samples=drawn.number, limit=limit)
    pieces = slices(len(drawn.keys), limit // len(points.z))
    found = [share(inference.rows(p), points.rows(p), drawn.log_mean[p]) for p in pieces]
    return torch.cat(found)


def unreached_at(
    inference: Inference,
    z: Float[Tensor, "points batch latents"],
    log_shares: Float64[Tensor, "points batch"],
    log_mean: Float64[Tensor, " batch"],
    *,
    num_samples: int,
    limit: int,
) -> Float64[Tensor, " batch"]:
    """Estimates the same share of each posterior's mass as :func:`unreached`, from given points.

    The points are approximate draws from the posteriors, made without the proposal. So even a
    narrow mode counts if some points lie in it. The standard error is added to the share.

    Arguments:
        inference: The model, the proposal and the data.
        z: The points, as flat unconstrained latents.
        log_shares: Logarithms of the points' shares of the mass; the shares of a datum add up to 1.
        log_mean: Estimate of log p(y), in nats.
        num_samples: Number of the proposal's draws.
        limit: Number of rows that the program can evaluate at once.
    """
    unused = torch.zeros_like(log_shares)
    log_joint, log_proposal, _ = _densities(inference, Points(z, unused, unused), limit)
    log_posterior = log_joint - log_mean
    share, error = unreached_share(
        log_posterior, log_proposal, log_posterior - log_shares, num_samples=num_samples
    )
    return share + error


def prior_pool(program: Program, batch: Batch) -> PriorDraws:
    """Makes prior draws with a fixed seed for :func:`unreached`."""
    return PriorDraws.of(program, batch, _POOL, "unreached.prior")


def _share(
    inference: Inference, points: Points, log_mean: Tensor, *, num_samples: int, limit: int
) -> Tensor:
    """Estimates the missed share of each posterior's mass for data that fit into one run.

    If the program fails, it is run for one datum at a time. If it fails for a datum, only the
    datum's points near the draws are used.
    """
    again = partial(_share, num_samples=num_samples, limit=limit)
    try:
        log_joint, log_proposal, log_number = _densities(inference, points, limit)
    except (ValueError, RuntimeError):
        if len(log_mean) > 1:
            rows = slices(len(log_mean), 1)
            return torch.cat([again(inference.rows(r), points.rows(r), log_mean[r]) for r in rows])
        near = points.near()
        if len(near.z) in (0, len(points.z)):
            return torch.zeros_like(log_mean, dtype=torch.float64)
        return again(inference, near, log_mean)
    share, error = unreached_share(
        log_joint - log_mean, log_proposal, log_number, num_samples=num_samples
    )
    return share + error if points.num_prior else share  # A grid is not random.


def _densities(inference: Inference, points: Points, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log joint, log proposal and log number of points per volume, at all points."""
    program, proposal, batch = inference
    z = points.z.to(program.dtype)
    with pyro.validation_enabled(is_validate=False):
        log_proposal = density_at(proposal, z)
        pieces = z.split(max(1, limit // z.shape[1]))
        parts = [program.log_densities(piece, *batch) for piece in pieces]
    prior, likelihood = (part.double() for part in join(parts))
    log_number = points.log_placed
    if points.num_prior:
        log_number = torch.logaddexp(log_number, prior + math.log(points.num_prior))
    return prior + likelihood, log_proposal.double(), log_number


def unreached_share(
    log_posterior: Float[Tensor, "points *batch"],
    log_proposal: Float[Tensor, "points *batch"],
    log_number: Float[Tensor, "points *batch"],
    *,
    num_samples: int,
) -> Estimate:
    r"""Estimates the expected share of a posterior's mass that is missed by draws of a proposal.

    The share is computed from the number :math:`s` that is defined in the module's docstring,
    :mod:`pyro_vae.evidence.unreached`.

    Arguments:
        log_posterior: :math:`\log (p(y, z_i) / \hat p)` at the points :math:`z_i`, in nats; nan
            counts as zero mass.
        log_proposal: :math:`\log q(z_i)`, in nats.
        log_number: Log of the number of points per unit of volume, :math:`\log r(z_i)`.
        num_samples: Number of draws, :math:`K`.

    Returns:
        :math:`s / (1 + s)`, from 0 to 1, and an upper bound on its standard error for points that
        are independent draws; each `(*batch,)`. Both are 0 if the two densities are equal.

    Example:
        >>> import pyro.distributions as dist
        >>> t = torch.linspace(-9, 9, 200).unsqueeze(1)
        >>> wide, narrow = dist.Normal(0.0, 1.0).log_prob(t), dist.Normal(0.0, 0.7).log_prob(t)
        >>> number = torch.full_like(t, 200 / 18).log()
        >>> unreached_share(wide, narrow, number, num_samples=1000).value > 0.01
        tensor([True])
        >>> unreached_share(narrow, wide, number, num_samples=1000).value < 1e-5
        tensor([True])
    """
    log_weights = (log_posterior - log_proposal).double().nan_to_num(-torch.inf, torch.inf)
    # Far away, a program's density may be wrong, even infinite: the share is then near 1.
    mass, proposed = (
        (part - log_number).double().nan_to_num(-torch.inf, _MOST_MASS).clamp(max=_MOST_MASS).exp()
        for part in (log_posterior, log_proposal)
    )
    order = log_weights.argsort(dim=0, descending=True)
    mass, proposed = mass.gather(0, order), proposed.gather(0, order)
    none_drawn = (-num_samples * (proposed.cumsum(dim=0) - proposed / 2)).exp()  # a probability
    parts = (mass - proposed).clamp(min=0) * none_drawn
    share, error = parts.sum(dim=0), parts.square().sum(dim=0).sqrt()
    return Estimate(share / (1 + share), error / (1 + share))


def _points(inference: Inference, drawn: Drawn, pool: PriorDraws, limit: int) -> Points:
    """Returns the points at which posterior and proposal are evaluated.

    For one latent they are two grids. For more latents they are prior draws, and random points
    around the mean of the draws.
    """
    z = drawn.z[:_MOMENTS].double()
    number = min(max(_FEWEST, int(_SHARE * drawn.number)), _MOST)
    own = [stream(key, "unreached") for key in drawn.keys.tolist()]
    keys = torch.tensor(own, device="cpu")
    whitening, of_prior = Whitening.of(z), _of_prior(pool, inference.batch, keys, limit).double()
    if z.shape[-1] == 1:
        return _grids(_Grid.about(whitening, _NODES), _Grid.about(Whitening.of(of_prior), number))
    whitening = _towards_weights(z, drawn.log_weights[:_MOMENTS], whitening)
    placed = whitening.colored(_placed(keys, number, z))
    points = torch.cat([placed, of_prior])
    u = whitening.white(points)
    log_placed = _log_placed(u) - whitening.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return Points(points, log_placed + math.log(number), u.norm(dim=-1), _OF_PRIOR)


class _Grid(NamedTuple):
    """Grids for one latent: each datum has a grid of `number` points, densest at the center."""

    center: Float[Tensor, " batch"]
    sd: Float[Tensor, " batch"]
    number: int

    @classmethod
    def about(cls, whitening: Whitening, number: int) -> "_Grid":
        """Makes grids; their centers and scales are the means and roots of `whitening`."""
        return cls(whitening.loc[:, 0], whitening.root[:, 0, 0], number)

    def points(self) -> Float[Tensor, "points batch"]:
        """Returns the points, up to 20 standard deviations from the center."""
        even = torch.linspace(-1, 1, self.number, dtype=self.sd.dtype, device=self.sd.device)
        steps = _FARTHEST / math.sinh(_DENSER) * (_DENSER * even).sinh()
        return self.center + steps[:, None] * self.sd

    def radius(self, z: Float[Tensor, "points batch"]) -> Tensor:
        """Returns the distance between each point and the center, in standard deviations."""
        return ((z - self.center) / self.sd).abs()

    def log_number(self, z: Float[Tensor, "points batch"]) -> Tensor:
        """Returns the log of the number of grid points per unit of length; -inf off the grid."""
        radius, scale = self.radius(z), _FARTHEST / math.sinh(_DENSER)
        spacing = _DENSER * torch.hypot(radius, torch.full_like(radius, scale))
        log_number = math.log((self.number - 1) / 2) - (spacing * self.sd).log()
        return log_number.where(radius < 1.001 * _FARTHEST, -torch.inf)  # includes the ends


def _grids(about_draws: _Grid, about_prior: _Grid) -> Points:
    """Returns the points of both grids."""
    z = torch.cat([about_draws.points(), about_prior.points()])
    log_placed = torch.logaddexp(about_draws.log_number(z), about_prior.log_number(z))
    return Points(z.unsqueeze(-1), log_placed, about_draws.radius(z))


def _placed(keys: Int64[Tensor, " batch"], number: int, like: Tensor) -> Tensor:
    """Returns random points in standardized coordinates, generated from each datum's key.

    The shape is `(number, batch, latents)`. Half of the points spread in all directions. Each of
    the other points is far from the mean along one axis only, to reach the tails of one latent. The
    axes take turns; if there are not enough points for all axes, each datum starts at a random
    axis.
    """
    latents = like.shape[-1]
    noise = normals(keys, number, latents + _DEGREES, like)
    far = _WIDER / noise[..., :_DEGREES].square().mean(dim=-1, keepdim=True).sqrt()
    places = torch.arange(number, device=noise.device)[:, None, None]
    turns = places // 2
    if latents > number // 2:
        choice = uniforms(keys, 1, 1, noise.new_empty(0, dtype=torch.float64), first=_OF_PRIOR)
        turns = turns + (latents * choice).long()
    is_axis = turns % latents == torch.arange(latents, device=noise.device)
    along = torch.where(is_axis, far, _AROUND)
    return torch.where(places % 2 == 0, far, along) * noise[..., _DEGREES:]


def _log_placed(u: Float[Tensor, "points batch latents"]) -> Tensor:
    """Returns the log density with which :func:`_placed` draws points, `(points, batch)`."""
    size = u.shape[-1]
    around = -(u / _AROUND).square() / 2 - math.log(_AROUND * math.sqrt(2 * math.pi))
    axes = (_log_student(u.abs(), 1) - around).logsumexp(dim=-1) + around.sum(dim=-1)
    anywhere = _log_student(u.norm(dim=-1), size)
    return torch.logaddexp(anywhere, axes - math.log(size)) - math.log(2)


def _log_student(radius: Tensor, size: int) -> Tensor:
    """Returns the log density of a wide Student t for `size` latents, at `radius` from its mean."""
    power = (_DEGREES + size) / 2
    log_norm = math.lgamma(power) - math.lgamma(_DEGREES / 2)
    log_norm -= size * math.log(_WIDER * math.sqrt(_DEGREES * math.pi))
    return log_norm - power * (radius.square() / (_DEGREES * _WIDER**2)).log1p()


def _of_prior(pool: PriorDraws, batch: Batch, keys: Int64[Tensor, " batch"], limit: int) -> Tensor:
    """Selects prior draws for every datum from a pool, using the datum's random key.

    The shape is `(draws, batch, latents)`.
    """
    z = pool.latents(batch, limit)
    choice = uniforms(keys, _OF_PRIOR, 1, torch.zeros((), dtype=torch.float64, device="cpu"))
    return z.gather(0, (_POOL * choice).long().to(z.device).expand(-1, -1, z.shape[-1]))


def _towards_weights(
    z: Float[Tensor, "particles batch latents"],
    log_weights: Float[Tensor, "particles batch"],
    whitening: Whitening,
) -> Whitening:
    """Replaces the mean and the Cholesky factor of draws by those of the weighted draws.

    In directions in which the weighted draws spread less than the unweighted draws, the spread of
    the unweighted draws is kept.
    """
    u = whitening.white(z).permute(1, 2, 0)
    shares = log_weights.double().softmax(dim=0).T.unsqueeze(1)
    center = (shares * u).sum(dim=2, keepdim=True)
    values, vectors = torch.linalg.eigh((shares * (u - center)) @ (u - center).mT)
    wider = whitening.root @ vectors * values.clamp(min=1).sqrt().unsqueeze(1)
    loc = whitening.colored(center.permute(2, 0, 1))[0]
    return Whitening(loc, torch.linalg.cholesky(wider @ wider.mT))
