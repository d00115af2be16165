r"""The bound as a function of the number of draws, and its extrapolation.

With :math:`K` draws the expected log mean weight is a lower bound, :math:`L_K \le L_{K+1} \le \log
p(y)`. Groups of :math:`K` of the draws estimate :math:`L_K` without bias. If the weights have a
variance, :math:`c^2` times the square of their mean, then

.. math:: L_K = \log p(y) - \frac{c^2}{2 K} + O(K^{-2}) ,

so the remaining distance follows from :math:`c^2`, and the jackknife removes its first order. If
they have none, or if :math:`c^2 / K` is not small, the expansion does not hold: the true distance
falls more slowly than :math:`1/K`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from .averages import log_mean_exp, mean_estimate, relative_variance
from .checks import relative_weights, require_legal, require_particles
from .tails import MIN_TAIL_PARTICLES, pareto_k

_FINITE_VARIANCE = 0.5  # the largest k at which the weights have a variance
_SMALL = 0.2  # c^2 / K at which the next term, of order (c^2 / K)^2, is a tenth of the first


@dataclass(frozen=True)
class BoundCurve:
    r""":math:`L_K` for some :math:`K`, and its distance from the limit where theory predicts it.

    Arguments:
        num_particles: :math:`K`, `(sizes,)`.
        value: Estimates of :math:`L_K`, `(sizes, *batch)`, in nats.
        error: Their standard errors. Those of two sizes are not independent: they share draws.
        bias: :math:`-c^2 / 2K`, the bias of :math:`L_K` to first order; nan where `refused` says
            why.
        refused: Reasons not to extrapolate, in words, and where they hold, `(sizes, *batch)`.
    """

    num_particles: Int64[Tensor, " sizes"]
    value: Float[Tensor, "sizes *batch"]
    error: Float[Tensor, "sizes *batch"]
    bias: Float[Tensor, "sizes *batch"]
    refused: Mapping[str, Bool[Tensor, "sizes *batch"]]

    @property
    def corrected(self) -> Float[Tensor, "sizes *batch"]:
        """The bound with the bias removed: log p(y) to first order, nan where refused."""
        return self.value - self.bias


def bound_curve(log_weights: Float[Tensor, "particles *batch"], sizes: Sequence[int]) -> BoundCurve:
    r"""Estimates the bounds :math:`L_K` from groups of the draws, and their bias.

    .. math:: \hat L_K = \frac{1}{G} \sum_{g=1}^{G} \log \frac{1}{K} \sum_{k \in g} w_k ,
        \qquad G = \lfloor \text{particles} / K \rfloor

    The groups are disjoint, so independent, and their spread gives the error; draws that do not
    fill a group are left out. No bias is given if Pareto :math:`k` is not below 1/2, if there are
    too few draws to tell, or if :math:`c^2 / K` is above 0.2.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; independent draws.
        sizes: The :math:`K`, each at least 1 and at most half of the particles.

    Returns:
        Bounds with errors and biases, in nats.

    Raises:
        ValueError: If a size leaves fewer than two groups, or a log weight is nan or +inf.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | Debiasing Evidence Approximations (Nowozin, 2018)
        | https://openreview.net/forum?id=HyZoi-WRb

    Example:
        >>> log_weights = torch.tensor([1.0, 3.0, 1.0, 3.0]).log()
        >>> bound_curve(log_weights, [2]).value.exp()
        tensor([2.0000], dtype=torch.float64)
    """
    require_legal(log_weights)
    estimates = [mean_estimate(_log_group_means(log_weights, size)) for size in sizes]
    value, error = (torch.stack(parts) for parts in zip(*estimates, strict=True))
    num_particles = torch.tensor(sizes, device=value.device)
    per_draw = relative_variance(log_weights)
    ratio = per_draw / num_particles.reshape(-1, *[1] * per_draw.dim())
    refused = _refusals(log_weights, ratio)
    allowed = ~torch.stack([*refused.values()]).any(dim=0)
    return BoundCurve(num_particles, value, error, (-ratio / 2).where(allowed, torch.nan), refused)


def _log_group_means(log_weights: Tensor, size: int) -> Tensor:
    """`(groups, *batch)`."""
    groups = len(log_weights) // size if size > 0 else 0
    if groups < 2:
        raise ValueError(
            f"L_K for K = {size} needs two groups of that many draws for its error, got "
            f"{len(log_weights)} draws; ask for K from 1 to {len(log_weights) // 2}, or draw more"
        )
    grouped = log_weights[: groups * size].reshape(groups, size, *log_weights.shape[1:])
    return log_mean_exp(grouped.transpose(0, 1))


def _refusals(log_weights: Tensor, ratio: Tensor) -> dict[str, Tensor]:
    if len(log_weights) >= MIN_TAIL_PARTICLES:
        no_variance = ~(pareto_k(log_weights) < _FINITE_VARIANCE)
    else:
        no_variance = torch.ones_like(ratio[0], dtype=torch.bool)
    return {
        "the weights may have no finite variance: Pareto k is not below 0.5, or unknown": (
            no_variance.expand_as(ratio)
        ),
        f"the variance of the weights over K is not below {_SMALL}": ~(ratio < _SMALL),
    }


def jackknife(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "*batch"]:
    r"""Log mean weight with its first-order bias removed.

    .. math:: K \log \bar w - \frac{K - 1}{K} \sum_k \log \bar w_{-k}, \qquad
        \bar w_{-k} = \frac{1}{K - 1} \sum_{j \ne k} w_j

    Its bias is of order :math:`K^{-2}` where the weights have enough moments; it is not a bound,
    and where :math:`k \ge 1/2` it is no better than the plain one. For two exponential weights the
    bias goes from -0.270 to +0.036 nats, exactly.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.

    Returns:
        `(*batch,)`, float64, in nats; `+inf` where a single weight carries the whole sum. To first
        order its error is that of :func:`log_marginal`.

    Raises:
        ValueError: If there are fewer than two particles.

    References:
        | Debiasing Evidence Approximations (Nowozin, 2018)
        | https://openreview.net/forum?id=HyZoi-WRb

    Example:
        >>> jackknife(torch.zeros(10)).abs() < 1e-12
        tensor(True)
    """
    require_particles(log_weights, 2, "a jackknife")
    num_particles = len(log_weights)
    weights, _ = relative_weights(log_weights)
    shares = weights / weights.sum(dim=0)
    left_out = torch.log1p(-shares).mean(dim=0) - math.log1p(-1 / num_particles)
    return log_mean_exp(log_weights) - (num_particles - 1) * left_out
