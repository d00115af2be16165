r"""Whether a proposal reaches the tails of the posterior: profiles of both along some lines.

The largest weights show a tail that the proposal hardly reaches, but only once one of its rare
draws is there: a run that missed it looks harmless, and whoever accepts runs by their weights
selects just these. So the posterior is followed beyond the draws, without any chance. Along the
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
"""

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
_LEAST_SPREAD = 1e-10  # relative variance, so that draws in a plane have a covariance with a root


class Lines(NamedTuple):
    """Lines through the posterior of every datum.

    Arguments:
        center: The weighted mean of the draws.
        directions: One standard deviation of the proposal along each.
    """

    center: Float[Tensor, "batch latents"]
    directions: Float[Tensor, "lines batch latents"]

    def rows(self, rows: Tensor) -> "Lines":
        """Those of some of the data."""
        return Lines(self.center[rows], self.directions[:, rows])


def unreached(
    inference: Inference, lines: Lines, num_samples: int, *, limit: int
) -> Float64[Tensor, " batch"]:
    """The share of each posterior that draws are expected to miss, the largest along any line.

    It is 0 where it cannot be told: the proposal has no density at given points, or the program
    fails at points that no draw came near.

    Arguments:
        inference: The model, the proposal and the data.
        lines: From :func:`steepest_lines`.
        num_samples: How many draws of the proposal there are.
        limit: Rows of the program's batch that fit at once.
    """
    rows = torch.arange(len(lines.center), device=lines.center.device)
    pieces = rows.split(max(1, limit // (_NODES * len(lines.directions))))
    return torch.cat(
        [_unreached(inference.rows(some), lines.rows(some), num_samples, limit) for some in pieces]
    )


def _unreached(inference: Inference, lines: Lines, num_samples: int, limit: int) -> Tensor:
    """The same for as many data as fit."""
    program, proposal, batch = inference
    steps, widths = _grid(lines.center)
    points = lines.center + steps[:, None, None, None] * lines.directions
    z = points.flatten(0, 1).to(program.dtype)
    try:
        with pyro.validation_enabled(is_validate=False):
            log_proposal = density_at(proposal, z)
            pieces = z.split(max(1, limit // z.shape[1]))
            log_joint = torch.cat([program.log_joint(piece, *batch) for piece in pieces])
    except (ValueError, RuntimeError):
        return torch.zeros_like(lines.center[:, 0])
    joint, proposed = (part.unflatten(0, points.shape[:2]) for part in (log_joint, log_proposal))
    return unreached_share(joint, proposed, widths, num_samples).amax(dim=0)


def unreached_share(
    log_joint: Float[Tensor, "nodes *batch"],
    log_proposal: Float[Tensor, "nodes *batch"],
    widths: Float[Tensor, " nodes"],
    num_samples: int,
) -> Float64[Tensor, "*batch"]:
    r"""The share :math:`s` of a posterior along a line that draws of a proposal are to miss.

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


def steepest_lines(
    z: Float[Tensor, "particles batch latents"], log_weights: Float[Tensor, "particles batch"]
) -> Lines:
    """Lines along which the weights of a proposal's draws grow fastest."""
    z, log_weights = z[:_DRAWS].double(), log_weights[:_DRAWS].double()
    mean = z.mean(dim=0)
    root = _root_of_covariance(z - mean)
    u = torch.linalg.solve_triangular(root, (z - mean).permute(1, 2, 0), upper=False)
    shares = log_weights.softmax(dim=0).T.unsqueeze(1)
    center = (shares * u).sum(dim=-1)
    spread = torch.linalg.eigh((shares * u) @ u.mT).eigenvectors
    convex = torch.linalg.eigh(_curvature(u, log_weights.T)).eigenvectors
    # One latent has one direction.
    leading = torch.cat([spread[..., -2:], convex[..., -1:]], dim=-1)[
        ..., : 3 if z.shape[-1] > 1 else 1
    ]
    center, directions = mean + (root @ center.unsqueeze(-1)).squeeze(-1), root @ leading
    return Lines(center, directions.permute(2, 0, 1))


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


def _curvature(
    u: Float[Tensor, "batch latents particles"], log_weights: Float[Tensor, "batch particles"]
) -> Float[Tensor, "batch latents latents"]:
    """Mean Hessian of the log weights, by Stein's identity."""
    values = (log_weights - log_weights.amax(dim=1, keepdim=True)).clamp(min=_LOWEST)
    values = values - values.mean(dim=1, keepdim=True)
    slope = (u @ values.unsqueeze(-1)) / u.shape[-1]
    residual = values - (u.mT @ slope).squeeze(-1)
    return (residual.unsqueeze(1) * u) @ u.mT / u.shape[-1]


def _grid(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes on a line, in standard deviations of the proposal, and the widths of their cells."""
    even = torch.linspace(-1, 1, _NODES, dtype=like.dtype, device=like.device)
    scale = _FARTHEST / torch.tensor(_DENSER, dtype=like.dtype, device=like.device).sinh()
    return scale * (_DENSER * even).sinh(), (_DENSER * even).cosh()
