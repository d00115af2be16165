r"""What the fit to the tail of the weights is good for: a smoothed mean, and an error that covers.

Where :math:`k \ge 1/2` the weights have no finite variance, and wherever the tail is heavy the
draws seldom hold the weights that carry the variance. The delta method's error is then too small,
most of all in a run that missed them, whose :math:`k` reads low too. So the tail's part of the
variance is taken from a generalized Pareto distribution instead: above the cutoff :math:`u` that
:func:`pareto_k` uses, which :math:`M` of :math:`K` draws exceed,

.. math:: w = u + \frac{\sigma}{k_+} (e^{k_+ t} - 1), \quad t \sim \mathrm{Exp}(1), \quad
    t < \log 8 M, \qquad k_+ = \frac{(M + 10) k - 5}{M} + 0.1

with the fit's shrinkage towards 1/2 undone and a shape of 0.1 more, its standard deviation at
5,000 draws; a scale :math:`\sigma` at which the median excess is the observed one; and the tail
cut where one of eight such runs would have a draw. Those two numbers, 0.1 and eight, were chosen
by measuring coverage: see :func:`heavy_tail_error`.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from .averages import log_marginal, log_mean_exp
from .checks import relative_weights, require_legal, require_particles
from .tails import (
    FEWEST_IN_TAIL,
    MIN_TAIL_PARTICLES,
    TailFit,
    arviz_tail_fit,
    is_flat,
    rounding_of,
    sound_tail,
    tail_size,
)

_RUNS_AHEAD = 8  # the tail is cut where one of so many runs would have a draw
_NODES = 200  # of the integral over the tail: its error is below 1e-4 of the variance
_MARGIN = 0.1  # on the shape; see the derivation above
_FLATTEST = 1e-3  # a shape closer to 0 than this is taken for it: expm1(k t) / k loses digits
_LIGHTEST, _HEAVIEST = -1.0, 2.0  # beyond them the error no longer depends on the shape


def heavy_tail_error(
    log_weights: Float[Tensor, "particles *batch"], pareto_k: Float[Tensor, "*batch"]
) -> Float64[Tensor, "*batch"]:
    r"""Standard error of the log mean weight that counts the tail which was not drawn.

    .. math:: \text{error}^2 = \frac{1}{K \bar w^2} \Big[ \frac{1}{K} \sum_{w_k \le u}
        (w_k - \bar w)^2 + \frac{M}{K} \, \mathbb{E}_{k_+} (w - \bar w)^2 \Big]

    or the delta method's, whichever is larger; see the module's derivation. Where the fit sees no
    tail (:math:`k` of nan or `-inf`) it is the delta method's.

    With 1,000 to 5,000 draws and Gaussian guides that are too narrow, factorized or shifted,
    Pareto or log-normal weights, 1.96 of them to either side covered 94 to 98 percent where the
    true :math:`k` is at most 1/2 (the delta method's: 88 to 96), 90 to 94 percent at 0.6 (83 to
    88), and less than 91 at 0.7. It is up to half as large again. Misses are one-sided: the
    estimate is low, in runs whose :math:`k` and error read low too, so that to keep only the runs
    of low :math:`k` makes coverage worse where the true one is high.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.
        pareto_k: :func:`pareto_k` of the same weights, `(*batch,)`, no unit.

    Returns:
        `(*batch,)`, float64, in nats; itself an estimate, without an error of its own.

    Raises:
        ValueError: If there are fewer than :data:`MIN_TAIL_PARTICLES` particles.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> quantiles = (torch.arange(1000.0) + 0.5) / 1000
        >>> log_weights = -0.6 * torch.log1p(-quantiles)  # P(w > t) = t^(-1 / 0.6)
        >>> k = torch.tensor(0.6)
        >>> heavy_tail_error(log_weights, k) > 1.2 * log_marginal(log_weights).error
        tensor(True)
    """
    require_particles(log_weights, MIN_TAIL_PARTICLES, "a fit to the tail of the weights")
    delta = log_marginal(log_weights).error
    variance = _variance_with_tail(log_weights, pareto_k.double())
    fitted = (variance / len(log_weights)).sqrt()
    usable = pareto_k.isfinite() & fitted.isfinite()
    return torch.maximum(delta, fitted).where(usable, delta)


def _variance_with_tail(log_weights: Tensor, pareto_k: Tensor) -> Tensor:
    """Variance of the weights over the square of their mean, with the tail from the fit."""
    num_particles, size = len(log_weights), tail_size(len(log_weights))
    weights, _ = relative_weights(log_weights)
    descending = (weights / weights.mean(dim=0)).sort(dim=0, descending=True).values
    cutoff = descending[size]
    excess = descending[:size].median(dim=0).values - cutoff
    shape = pareto_k.clamp(_LIGHTEST, _HEAVIEST)
    shape = ((size + 10) * shape - 5) / size + _MARGIN  # 10 pseudo-draws of 1/2 are in the fit
    shape = shape.where(shape.abs() > _FLATTEST, _FLATTEST)
    body = (descending[size:] - 1).square().sum(dim=0)
    return (body + size * _tail_square(cutoff, excess, shape, size)) / num_particles


def _tail_square(cutoff: Tensor, median_excess: Tensor, shape: Tensor, size: int) -> Tensor:
    """Expected square of `w - 1` over the fitted tail, cut at its far end."""
    limit = math.log(_RUNS_AHEAD * size)
    t = (torch.arange(_NODES, dtype=cutoff.dtype, device=cutoff.device) + 0.5) * limit / _NODES
    t = t.reshape(-1, *[1] * cutoff.dim())
    scale = median_excess / torch.expm1(shape * math.log(2))  # times the shape
    weight = cutoff + scale * torch.expm1(shape * t)
    return ((weight - 1).square() * (-t).exp()).sum(dim=0) * limit / _NODES


def smoothed(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "particles *batch"]:
    r"""Log weights whose largest are replaced by expected order statistics of the fitted tail.

    .. math:: \tilde w_{(i)} = F^{-1}\Big(\frac{i - 1/2}{M}\Big), \quad i = 1, \dots, M, \qquad
        \tilde w \le \max_k w_k

    with the generalized Pareto distribution :math:`F` of :func:`pareto_k`. The order among the
    weights is kept. Less noisy than the weights where the tail is heavy, and low: the mean of
    smoothed weights is no longer unbiased. Weights without a sound fit (see :func:`pareto_k`),
    or with an equal largest ones, stay as they are.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.

    Returns:
        `(particles, *batch)`, float64, in nats, exact for the fit, without a gradient.

    Raises:
        ValueError: If a log weight is nan or +inf, or there are fewer than
            :data:`MIN_TAIL_PARTICLES` particles.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> quantiles = (torch.arange(1000.0) + 0.5) / 1000
        >>> log_weights = -0.6 * torch.log1p(-quantiles)
        >>> bool((smoothed(log_weights)[:900] == log_weights[:900]).all())
        True
    """
    require_particles(log_weights, MIN_TAIL_PARTICLES, "a fit to the tail of the weights")
    require_legal(log_weights)
    shape = log_weights.shape
    rows = log_weights.detach().double().cpu().reshape(shape[0], math.prod(shape[1:])).T
    eps = torch.finfo(log_weights.dtype).eps
    answer = torch.from_numpy(_smoothed_rows(rows.contiguous().numpy(), eps))
    return answer.T.reshape(shape).to(log_weights.device)


def smoothed_log_mean(
    log_weights: Float[Tensor, "particles *batch"],
) -> Float64[Tensor, "*batch"]:
    """Logarithm of the mean of the :func:`smoothed` weights, with its arguments and errors.

    Returns:
        `(*batch,)`, float64, in nats. :func:`heavy_tail_error` of the weights is its error too.

    Example:
        >>> smoothed_log_mean(torch.zeros(100))
        tensor(0., dtype=torch.float64)
    """
    return log_mean_exp(smoothed(log_weights))


def _smoothed_rows(rows: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    fit, rounding = arviz_tail_fit(), rounding_of(rows, eps)
    with np.errstate(all="ignore"):  # ArviZ's grid under- and overflows at its far ends, by design
        pairs = zip(rows, rounding, strict=True)
        answers = [_smoothed_row(row, spread, fit) for row, spread in pairs]
    return np.array(answers, dtype=np.float64).reshape(rows.shape)


def _smoothed_row(row: NDArray[np.float64], rounding: float, fit: TailFit) -> NDArray[np.float64]:
    if row.max() == -np.inf or is_flat(row, rounding):
        return row
    relative, size = sound_tail(row)
    if size < FEWEST_IN_TAIL:
        return row
    tail = np.argsort(relative, kind="stable")[-size - 1 :]
    normalized, shape = fit(relative, size)
    if not np.isfinite(shape):
        return row
    # ArviZ divides by the sum: the cutoff, which it leaves as it is, gives the constant back.
    answer = row.copy()
    answer[tail[1:]] = normalized[tail[1:]] + (row[tail[0]] - normalized[tail[0]])
    return answer
