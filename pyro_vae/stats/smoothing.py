"""Pareto smoothing: the largest weights are replaced by expected values under the tail fit."""

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from .averages import log_mean_exp
from .checks import require_legal, require_particles
from .tails import (
    FEWEST_IN_TAIL,
    MIN_TAIL_PARTICLES,
    TailFit,
    arviz_tail_fit,
    is_flat,
    rounding_units,
    sound_tail,
)


def smoothed(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "particles *batch"]:
    r"""Pareto-smoothed log weights: the largest become order statistics of the fitted tail.

    .. math:: \tilde w_{(i)} = F^{-1}\Big(\frac{i - 1/2}{M}\Big), \quad i = 1, \dots, M, \qquad
        \tilde w \le \max_k w_k

    with the generalized Pareto distribution :math:`F` of :func:`pareto_k`. The order of the weights
    is kept. Smoothed weights are less noisy if the tail is heavy, but their mean is biased low.
    Weights without a sound fit (see :func:`pareto_k`), or whose largest are equal, are left as they
    are.

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
    rows = (
        log_weights.detach().double().cpu().reshape(shape[0], math.prod(shape[1:])).T.contiguous()
    )
    fit, rounding = arviz_tail_fit(), rounding_units(log_weights).flatten().tolist()
    answer = torch.empty_like(rows)
    with np.errstate(all="ignore"):  # ArviZ's grid under- and overflows at its far ends, by design
        for place, (row, spread) in enumerate(
            zip(rows.contiguous().numpy(), rounding, strict=True)
        ):
            answer[place] = torch.from_numpy(_smoothed_row(row, spread, fit))
    return answer.T.reshape(shape).to(log_weights.device)


def smoothed_log_mean(
    log_weights: Float[Tensor, "particles *batch"],
) -> Float64[Tensor, "*batch"]:
    """Logarithm of the mean of the :func:`smoothed` weights; arguments and exceptions are the same.

    Returns:
        `(*batch,)`, float64, in nats; its error is :func:`pyro_vae.stats.tail_error`'s.

    Example:
        >>> smoothed_log_mean(torch.zeros(100))
        tensor(0., dtype=torch.float64)
    """
    return log_mean_exp(smoothed(log_weights))


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
