r"""Whether a proposal reaches the tails of the posterior, judged by densities and not by draws.

The largest weights show a tail that the proposal hardly reaches, but only once one of its rare
draws is there: a run that missed it looks harmless, and whoever accepts runs by their weights
selects just these. So both densities are evaluated beyond the draws, at fixed points. Along the
line :math:`z(t) = c + t v`, with grid points of which both densities are evaluated, let
:math:`p(t) \propto p(y, z(t))` and :math:`q(t) \propto q(z(t))`, each normalized on the line. None
of :math:`K` draws of :math:`q(t)` lies beyond :math:`t` with probability :math:`e^{-K Q(t)}`,
where :math:`Q` is the tail probability of the nearer end. An average of :math:`K` weights is then
expected to lack the share

.. math:: s = \int (p(t) - q(t))_+ \, e^{-K Q(t)} \, dt .

For one latent the line is all there is. For more, the posterior can be missed along any direction;
those are tried in which the weighted draws spread most, and in which the log weights are most
convex, since there the weights grow fastest. In units of the proposal's standard deviations, with
draws :math:`u` and :math:`\ell` the residual of the log weights after a linear fit, these are the
leading eigenvectors of

.. math:: \sum_k \bar w_k u_k u_k^\top, \qquad
    \frac{1}{K} \sum_k \ell_k u_k u_k^\top \approx \mathbb{E} \, \nabla^2 \log w .

The second is Stein's identity for a Gaussian. A mode beside these lines is not found.

A line sees one dimension of a miss. Where the proposal is a little too narrow in each of ten, its
draws miss a large share that no line shows. So the same is asked of all dimensions together, with a
Gaussian in place of the posterior: a quadratic :math:`b^\top u + u^\top H u / 2`, fitted to the
log weights by least squares, makes it :math:`\mathcal{N}(\mu, (I - H)^{-1})` with
:math:`\mu = (I - H)^{-1} b` beside draws of :math:`\mathcal{N}(0, I)`. What :math:`K` draws miss
are now the points with larger weights than any of the draws:

.. math:: s = \mathbb{E}_{p} \left[ (1 - 1 / w)_+ \, e^{-K Q(w)} \right], \qquad
    Q(w) = \mathbb{E}_{p} \left[ \mathbb{1}(w' > w) / w' \right] .

This takes no further run of the program. For Gaussians it is exact. Where the fit is above the log
weights at the draws of its own largest values, by :math:`\delta` nats on average, a tail is lighter
than a Gaussian's, and :math:`s e^{-\delta}` is left.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .proposals import density_at
from .weights import Inference

_NODES = 48  # of a line, dense at its center for narrow posteriors; right to a tenth of the share
_FARTHEST, _DENSER = 20.0, 3.0  # standard deviations of the proposal; the spacing there is 2.5
_DRAWS = 2000  # of which directions are found
_LOWEST = -30.0  # log weights beside the largest: what is lower has no say in a direction
_TINY = torch.finfo(torch.float64).tiny  # divides no residual that is there
_POINTS = 1024  # of a Gaussian posterior
_ITERATIONS = 3  # of conjugate gradients, which start at Stein's identity: right to a percent
_LARGEST = 0.05  # of the draws, which show whether the fit holds where it is largest
_STEEPEST = 0.99  # curvature, of a posterior ten times as wide as the proposal: all is missed
_LEAST_SPREAD = 1e-10  # relative variance, so that draws in a plane have a covariance with a root


class Quadratic(NamedTuple):
    """A least-squares fit to the log weights of every datum.

    Arguments:
        slope: At the mean of the draws, along the axes of the curvature.
        curvature: Along these axes; both per standard deviation of the proposal.
        excess: By how much it is above the log weights where it is largest, in nats; at least 0.
    """

    slope: Float[Tensor, "batch latents"]
    curvature: Float[Tensor, "batch latents"]
    excess: Float[Tensor, " batch"]


class Lines(NamedTuple):
    """Lines through the posterior of every datum.

    Arguments:
        center: The weighted mean of the draws.
        directions: One standard deviation of the proposal along each.
    """

    center: Float[Tensor, "batch latents"]
    directions: Float[Tensor, "lines batch latents"]

    def rows(self, rows: Tensor) -> "Lines":
        """The lines of a subset of the data."""
        return Lines(self.center[rows], self.directions[:, rows])


def unreached(
    inference: Inference, lines: Lines, num_samples: int, *, limit: int
) -> Float64[Tensor, " batch"]:
    """The share of each posterior that draws are expected to miss, the largest along any line.

    It is 0 where it cannot be told: the proposal has no density at given points, or
    the program fails at points that no draw came near.

    Arguments:
        inference: The model, the proposal and the data.
        lines: From :func:`steepest_lines`.
        num_samples: How many draws of the proposal there are.
        limit: Rows of the program's batch that fit at once.
    """
    rows = torch.arange(len(lines.center), device=lines.center.device)
    pieces = rows.split(max(1, limit // (_NODES * len(lines.directions))))
    return torch.cat(
        [
            _along_lines(inference.rows(some), lines.rows(some), num_samples, limit)
            for some in pieces
        ]
    )


def _along_lines(inference: Inference, lines: Lines, num_samples: int, limit: int) -> Tensor:
    """The largest share along any line, for as many data as fit."""
    steps, widths = _grid(lines.center)
    try:
        return _along(inference, lines, (steps, widths), num_samples, limit)
    except (ValueError, RuntimeError):
        pass
    if len(lines.center) > 1:  # Which of them fails is not known.
        each = torch.arange(len(lines.center), device=lines.center.device).split(1)
        found = [_along_lines(inference.rows(n), lines.rows(n), num_samples, limit) for n in each]
        return torch.cat(found)
    near = slice(_NODES // 4, -(_NODES // 4))  # within four standard deviations
    try:
        return _along(inference, lines, (steps[near], widths[near]), num_samples, limit)
    except (ValueError, RuntimeError):
        return torch.zeros_like(lines.center[:, 0])


def _along(
    inference: Inference, lines: Lines, grid: tuple[Tensor, Tensor], num_samples: int, limit: int
) -> Tensor:
    """The same with given nodes."""
    program, proposal, batch = inference
    steps, widths = grid
    points = lines.center + steps[:, None, None, None] * lines.directions
    z = points.flatten(0, 1).to(program.dtype)
    with pyro.validation_enabled(is_validate=False):
        log_proposal = density_at(proposal, z)
        pieces = z.split(max(1, limit // z.shape[1]))
        log_joint = torch.cat([program.log_joint(piece, *batch) for piece in pieces])
    joint, proposed = (part.unflatten(0, points.shape[:2]) for part in (log_joint, log_proposal))
    return unreached_share(joint, proposed, widths, num_samples).amax(dim=0)


def unreached_share(
    log_joint: Float[Tensor, "nodes *batch"],
    log_proposal: Float[Tensor, "nodes *batch"],
    widths: Float[Tensor, " nodes"],
    num_samples: int,
) -> Float64[Tensor, "*batch"]:
    r"""The share :math:`s` of a posterior along a line that a proposal's draws will likely miss.

    Arguments:
        log_joint: Of the program at the nodes, in nats, up to a constant; nan counts as no mass.
        log_proposal: Of the proposal at the nodes, in nats, up to a constant.
        widths: Of the cells about the nodes.
        num_samples: Draws, :math:`K`.

    Returns:
        `(*batch,)`, from 0 to 1; 0 where the two densities are the same.

    Example:
        >>> t = torch.linspace(-9, 9, 200).unsqueeze(1)
        >>> wide, narrow = -t.square() / 2, -t.square()
        >>> unreached_share(wide, narrow, torch.ones(200), 1000) > 0.01
        tensor([True])
        >>> unreached_share(narrow, wide, torch.ones(200), 1000) < 1e-5
        tensor([True])
    """
    cells = widths.double().log().reshape(-1, *[1] * (log_joint.dim() - 1))
    p, q = (
        (log.double().nan_to_num(-torch.inf, -torch.inf) + cells).softmax(dim=0).nan_to_num(0.0)
        for log in (log_joint, log_proposal)
    )
    below, above = q.cumsum(dim=0) - q / 2, q.flip(0).cumsum(dim=0).flip(0) - q / 2
    nobody = (-num_samples * torch.minimum(below, above)).exp()
    return ((p - q).clamp(min=0) * nobody).sum(dim=0)


def unreached_by_normal(fit: Quadratic, num_samples: int) -> Float64[Tensor, " batch"]:
    r"""The share :math:`s` of a Gaussian posterior that another Gaussian's draws will likely miss.

    Arguments:
        fit: To the log weights; of Gaussians they are quadratic.
        num_samples: Draws, :math:`K`.

    Returns:
        `(batch,)`, from 0 to 1; 0 without slope and curvature.

    Example:
        >>> few, many = torch.full((1, 1), 0.36), torch.full((1, 10), 0.36)
        >>> unreached_by_normal(Quadratic(0 * few, few, torch.zeros(1)), 1000) < 0.02
        tensor([True])
        >>> unreached_by_normal(Quadratic(0 * many, many, torch.zeros(1)), 1000) > 0.03
        tensor([True])
    """
    noise = _normal_points(fit.slope.shape[-1]).to(fit.slope.device)
    variance = 1 / (1 - fit.curvature.double().clamp(max=_STEEPEST))
    mean = variance * fit.slope.double()
    # At z = mean + noise sd, twice the log weight is z² - noise² - log variance.
    log_weights = noise @ (mean * variance.sqrt()).mT + noise.square() @ ((variance - 1) / 2).mT
    log_weights = log_weights + ((mean.square() - variance.log()) / 2).sum(dim=-1)
    log_weights = log_weights.sort(dim=0, descending=True).values
    inverse = (-log_weights).exp()
    beyond = (inverse.cumsum(dim=0) - inverse / 2) / len(noise)
    share = ((1 - inverse).clamp(min=0) * (-num_samples * beyond).exp()).mean(dim=0)
    return share * (-fit.excess.double()).exp()


@lru_cache(maxsize=8)
def _normal_points(size: int) -> Float64[Tensor, "points size"]:
    """Quasi-random points of a standard normal distribution, always the same."""
    engine = torch.quasirandom.SobolEngine(size, scramble=True, seed=0)
    uniform = engine.draw(_POINTS, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(2.0**-40, 1 - 2.0**-40))


def steepest_lines(
    z: Float[Tensor, "particles batch latents"], log_weights: Float[Tensor, "particles batch"]
) -> tuple[Lines, Quadratic]:
    """Lines along which the weights of a proposal's draws grow fastest, and a fit to them."""
    z, log_weights = z[:_DRAWS].double(), log_weights[:_DRAWS].double()
    mean = z.mean(dim=0)
    root = _root_of_covariance(z - mean)
    u = torch.linalg.solve_triangular(root, (z - mean).permute(1, 2, 0), upper=False)
    shares = log_weights.softmax(dim=0).T.unsqueeze(1)
    center = (shares * u).sum(dim=-1)
    spread = torch.linalg.eigh((shares * u) @ u.mT).eigenvectors
    fit, convex = _quadratic(u, log_weights.T)
    # One latent has one direction.
    leading = torch.cat([spread[..., -2:], convex[..., -1:]], dim=-1)[
        ..., : 3 if z.shape[-1] > 1 else 1
    ]
    center, directions = mean + (root @ center.unsqueeze(-1)).squeeze(-1), root @ leading
    return Lines(center, directions.permute(2, 0, 1)), fit


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


def _quadratic(
    u: Float[Tensor, "batch latents particles"], log_weights: Float[Tensor, "batch particles"]
) -> tuple[Quadratic, Float[Tensor, "batch latents latents"]]:
    """A least-squares fit to log weights, and the axes of its curvature."""
    values = (log_weights - log_weights.amax(dim=1, keepdim=True)).clamp(min=_LOWEST)
    curvature = _curvature(u, values)
    bend = _bend(u, curvature)
    slope = (u @ (values - bend).unsqueeze(-1)) / u.shape[-1]
    found = bend + (u.mT @ slope).squeeze(-1)
    largest = found.topk(math.ceil(_LARGEST * u.shape[-1]), dim=1).indices
    above = found - values
    excess = (above.gather(1, largest).mean(dim=1) - above.mean(dim=1)).clamp(min=0)
    roots, axes = torch.linalg.eigh(curvature)
    return Quadratic((axes.mT @ slope).squeeze(-1), roots, excess), axes


def _curvature(
    u: Float[Tensor, "batch latents particles"], values: Float[Tensor, "batch particles"]
) -> Float[Tensor, "batch latents latents"]:
    """Curvature of a least-squares fit to values at standardized draws, by conjugate gradients."""
    residual = _mean_hessian(u, values)
    curvature, step, length = torch.zeros_like(residual), residual, _squared(residual)
    for _ in range(_ITERATIONS):
        image = _mean_hessian(u, _bend(u, step))
        share = length / (step * image).sum(dim=(1, 2), keepdim=True).clamp(min=_TINY)
        curvature, residual = curvature + share * step, residual - share * image
        before, length = length, _squared(residual)
        step = residual + length / before.clamp(min=_TINY) * step
    return curvature


def _mean_hessian(
    u: Float[Tensor, "batch latents particles"], values: Float[Tensor, "batch particles"]
) -> Float[Tensor, "batch latents latents"]:
    """Mean Hessian of values at standardized draws, by Stein's identity."""
    values = values - values.mean(dim=1, keepdim=True)
    slope = (u @ values.unsqueeze(-1)) / u.shape[-1]
    residual = values - (u.mT @ slope).squeeze(-1)
    return (residual.unsqueeze(1) * u) @ u.mT / u.shape[-1]


def _bend(u: Float[Tensor, "batch latents particles"], curvature: Tensor) -> Tensor:
    """The quadratic form of a curvature at the draws."""
    return ((curvature @ u) * u).sum(dim=1) / 2


def _squared(matrices: Float[Tensor, "batch latents latents"]) -> Float[Tensor, "batch 1 1"]:
    return matrices.square().sum(dim=(1, 2), keepdim=True)


def _grid(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes on a line, in standard deviations of the proposal, and the widths of their cells."""
    even = torch.linspace(-1, 1, _NODES, dtype=like.dtype, device=like.device)
    scale = _FARTHEST / torch.tensor(_DENSER, dtype=like.dtype, device=like.device).sinh()
    return scale * (_DENSER * even).sinh(), (_DENSER * even).cosh()
