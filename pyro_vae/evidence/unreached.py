r"""Checks whether draws of a proposal reach the whole posterior, at points that they do not choose.

The largest weights show a part of the posterior that the proposal hardly reaches, but only once one
of its rare draws is there: a run that missed it looks harmless, and whoever accepts runs by their
weights selects just these. So both densities are evaluated at further points :math:`z_s`, of which
there are :math:`r(z)` per unit of volume. If :math:`Q(w)` is the probability that a draw has a
weight above :math:`w`, then none of :math:`K` draws has one with probability :math:`e^{-K Q(w)}`.
So a mean :math:`\hat p` of :math:`K` weights is expected to lack, in units of itself,

.. math:: s = \sum_s \frac{1}{r(z_s)} \left( \frac{p(y, z_s)}{\hat p} - q(z_s) \right)_+
    e^{-K Q(w_s)}, \qquad Q(w) = \sum_s \frac{q(z_s)}{r(z_s)} \mathbb{1}(w_s > w) .

For one latent the points are a grid, and nothing is random. For more latents, most points are draws
of two distributions about the mean of the proposal's draws, wider than these: a Student t
distribution, which finds tails in any direction, and one whose points lie along the axes, which
finds independent tails. The others are draws of the prior, which find further modes. All are
weighted by the density of their mixture, so that :math:`s` is unbiased except for the errors of
:math:`Q` and :math:`\hat p`; its standard error is added to it. A mode in which no point lies is
not found; prior draws seldom find one if the posterior is narrow.
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
from ..randomness import normals, stream, uniforms
from .proposals import density_at
from .saturation import PriorDraws
from .weights import Inference

_NODES = 48  # of a grid, dense at its center for narrow posteriors; the share is right to a tenth
_FARTHEST, _DENSER = 20.0, 3.0  # the grid's ends, in sd of the proposal; the spacing there is 2.5
_FEWEST, _MOST, _SHARE = 96, 480, 1 / 16  # points about the draws: limits, and points per draw
_OF_PRIOR = 32  # further points, from the prior
_WIDER, _DEGREES = 1.4, 4  # the Student t: heavier than any tail whose weights have a variance
_AROUND = 1.2  # standard deviation across, of points along one axis
_POOL = 64  # draws of the prior, of which each datum takes some: one run, whatever the budget
_NEAR = 4.0  # standard deviations of the proposal to stay within, if a program fails farther out
_MOMENTS = 2000  # draws from which the mean and the covariance are taken
_LEAST_SPREAD = 1e-10  # relative variance, so that draws in a plane have a covariance with a root


class Drawn(NamedTuple):
    """A summary of the draws of some data.

    Arguments:
        z: Some of the draws, from which moments are taken.
        log_mean: Log of the mean of all weights, in nats.
        keys: Keys of the draws, from which the keys of the points are made.
        number: Number of draws.
    """

    z: Float[Tensor, "particles batch latents"]
    log_mean: Float[Tensor, " batch"]
    keys: Int64[Tensor, " batch"]
    number: int

    def row(self, row: int) -> "Drawn":
        """The draws of one datum."""
        one = slice(row, row + 1)
        return Drawn(self.z[:, one], self.log_mean[one], self.keys[one], self.number)


class Points(NamedTuple):
    """Points at which the posterior and the proposal of some data are evaluated.

    Arguments:
        z: Flat unconstrained latents.
        log_placed: Log of the number of points placed about the draws per unit of volume.
        radius: Distance from the draws' mean, in their standard deviations.
        num_prior: Number of points that are draws of the prior.
    """

    z: Float[Tensor, "points batch latents"]
    log_placed: Float[Tensor, "points batch"]
    radius: Float[Tensor, "points batch"]
    num_prior: int = 0

    def rows(self, rows: slice) -> "Points":
        """The points of some of the data."""
        return Points(
            self.z[:, rows], self.log_placed[:, rows], self.radius[:, rows], self.num_prior
        )

    def near(self) -> "Points":
        """The points near the draws, for one datum; others count as having no mass."""
        some = self.radius[:, 0] < _NEAR
        return Points(self.z[some], self.log_placed[some], self.radius[some], self.num_prior)


def unreached(
    inference: Inference,
    drawn: Drawn,
    pool: PriorDraws | None,
    *,
    limit: int,
) -> Float64[Tensor, " batch"]:
    """The share of each posterior that draws are expected to miss, and its standard error.

    It is 0 where it is unknown, since the proposal has no density at given points, or the program
    fails at points that no draw came near.

    Arguments:
        inference: The model, the proposal and the data.
        drawn: Summary of the draws.
        pool: From :func:`prior_pool`.
        limit: Rows of the program's batch that fit at once.
    """
    points = _points(inference, drawn, pool, limit)
    share = partial(_share, num_samples=drawn.number, limit=limit)
    size = max(1, limit // len(points.z))
    pieces = (slice(first, first + size) for first in range(0, len(drawn.keys), size))
    found = [share(inference.rows(p), points.rows(p), drawn.log_mean[p]) for p in pieces]
    return torch.cat(found)


def prior_pool(program: Program, batch: Batch) -> PriorDraws | None:
    """Draws of the prior, always the same, for :func:`unreached`; None if there is one latent."""
    if program.latent_dim == 1:
        return None
    return PriorDraws.of(program, batch, _POOL, "unreached.prior")


def _share(
    inference: Inference, points: Points, log_mean: Tensor, *, num_samples: int, limit: int
) -> Tensor:
    """The missed share of each posterior, for as many data as fit."""
    again = partial(_share, num_samples=num_samples, limit=limit)
    try:
        log_joint, log_proposal, log_number = _densities(inference, points, limit)
    except (ValueError, RuntimeError):
        if len(log_mean) > 1:  # Which of them fails is not known.
            rows = (slice(row, row + 1) for row in range(len(log_mean)))
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
    """Log densities of the program and the proposal, and the log number of points per volume."""
    program, proposal, batch = inference
    z = points.z.to(program.dtype)
    with pyro.validation_enabled(is_validate=False):
        log_proposal = density_at(proposal, z)
        pieces = z.split(max(1, limit // z.shape[1]))
        parts = [program.log_densities(piece, *batch) for piece in pieces]
    prior, likelihood = (torch.cat(part).double() for part in zip(*parts, strict=True))
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
    r"""The share of a posterior that draws of a proposal are expected to miss.

    Arguments:
        log_posterior: :math:`\log p(y, z_s) / \hat p`, in nats; nan counts as no mass.
        log_proposal: :math:`\log q(z_s)`, in nats.
        log_number: Log of how many points there are per unit of volume, :math:`\log r(z_s)`.
        num_samples: Draws, :math:`K`.

    Returns:
        :math:`s / (1 + s)`, from 0 to 1, and its standard error if the points are independent draws
        (an upper bound, since :math:`Q` evens out chance); each `(*batch,)`. Both are 0 where the
        two densities are the same.

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
    mass = (log_posterior - log_number).double().exp().nan_to_num(0.0)
    proposed = (log_proposal - log_number).double().exp().nan_to_num(0.0)
    order = log_weights.argsort(dim=0, descending=True)
    mass, proposed = mass.gather(0, order), proposed.gather(0, order)
    nobody = (-num_samples * (proposed.cumsum(dim=0) - proposed / 2)).exp()
    parts = (mass - proposed).clamp(min=0) * nobody
    share, error = parts.sum(dim=0), parts.square().sum(dim=0).sqrt()
    return Estimate(share / (1 + share), error / (1 + share))


def _points(inference: Inference, drawn: Drawn, pool: PriorDraws | None, limit: int) -> Points:
    """A grid for one latent, else draws about the mean and of the prior."""
    z = drawn.z[:_MOMENTS].double()
    mean = z.mean(dim=0)
    root = _root_of_covariance(z - mean)
    if pool is None:
        return _grid(mean, root)
    number = min(max(_FEWEST, int(_SHARE * drawn.number)), _MOST)
    own = [stream(key, "unreached") for key in drawn.keys.tolist()]
    keys = torch.tensor(own, device="cpu")
    placed = mean + (root @ _placed(keys, number, z).unsqueeze(-1)).squeeze(-1)
    points = torch.cat([placed, _of_prior(pool, inference.batch, keys, limit).double()])
    u = torch.linalg.solve_triangular(root, (points - mean).permute(1, 2, 0), upper=False)
    radius = u.norm(dim=1).T
    log_placed = _log_placed(u.movedim(-1, 0)) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return Points(points, log_placed + math.log(number), radius, _OF_PRIOR)


def _grid(mean: Tensor, root: Tensor) -> Points:
    """Nodes on a line."""
    even = torch.linspace(-1, 1, _NODES, dtype=mean.dtype, device=mean.device)[:, None]
    scale = _FARTHEST / math.sinh(_DENSER)
    steps, sd = scale * (_DENSER * even).sinh(), root[:, 0, 0]
    # The distance between neighbouring nodes.
    widths = scale * _DENSER * (_DENSER * even).cosh() * 2 / (_NODES - 1) * sd
    return Points(
        (mean[:, 0] + steps * sd).unsqueeze(-1), -widths.log(), steps.abs().expand_as(widths)
    )


def _placed(keys: Int64[Tensor, " batch"], number: int, like: Tensor) -> Tensor:
    """Standardized points, `(number, batch, latents)`, from each datum's own key.

    Half of them are far out in any direction, and half along one axis: independent tails, or that
    of one latent among many, lie there.
    """
    latents = like.shape[-1]
    noise = normals(keys, number, latents + _DEGREES, like)
    far = _WIDER / noise[..., :_DEGREES].square().mean(dim=-1, keepdim=True).sqrt()
    places = torch.arange(number, device=noise.device)[:, None, None]
    is_axis = places // 2 % latents == torch.arange(latents, device=noise.device)
    along = torch.where(is_axis, far, _AROUND)
    return torch.where(places % 2 == 0, far, along) * noise[..., _DEGREES:]


def _log_placed(u: Float[Tensor, "points batch latents"]) -> Tensor:
    """The log density of standardized points, `(points, batch)`."""
    size = u.shape[-1]
    around = -(u / _AROUND).square() / 2 - math.log(_AROUND * math.sqrt(2 * math.pi))
    axes = (_log_student(u.abs(), 1) - around).logsumexp(dim=-1) + around.sum(dim=-1)
    anywhere = _log_student(u.norm(dim=-1), size)
    return torch.logaddexp(anywhere, axes - math.log(size)) - math.log(2)


def _log_student(radius: Tensor, size: int) -> Tensor:
    """The log density of the wide Student t, by the distance from its center."""
    power = (_DEGREES + size) / 2
    log_norm = math.lgamma(power) - math.lgamma(_DEGREES / 2)
    log_norm -= size * math.log(_WIDER * math.sqrt(_DEGREES * math.pi))
    return log_norm - power * (radius.square() / (_DEGREES * _WIDER**2)).log1p()


def _of_prior(pool: PriorDraws, batch: Batch, keys: Int64[Tensor, " batch"], limit: int) -> Tensor:
    """Draws of every datum's prior, `(draws, batch, latents)`: some of the pool, by its key."""
    latents = pool.latents()
    number = torch.zeros((), dtype=torch.float64, device="cpu")
    choice = uniforms(keys, _OF_PRIOR, 1, number).squeeze(-1)
    some = (_POOL * choice).long().to(latents.device)
    z = latents[some]
    for row in (~pool.of_same_prior(batch, limit)).nonzero()[:, 0].tolist():
        own = prior_pool(pool.program, tuple(part[row : row + 1] for part in batch))
        assert own is not None
        z[:, row] = own.latents()[some[:, row]]
    return z


def _root_of_covariance(
    centered: Float[Tensor, "particles batch latents"],
) -> Float[Tensor, "batch latents latents"]:
    """The Cholesky factor of the draws' covariance."""
    rows = centered.permute(1, 2, 0)
    covariance = rows @ rows.mT / rows.shape[-1]
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    least = _LEAST_SPREAD * diagonal + torch.finfo(diagonal.dtype).tiny
    factor: Tensor = torch.linalg.cholesky(covariance + least.diag_embed())
    return factor
