"""The upper tail of the weights: how heavy it is, and whether averages are reliable."""

import math
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from .averages import log_mean_exp
from .checks import require_legal, require_particles

MAX_PARETO_K = 0.7
"""Largest reliable Pareto k: above it, an average needs too many draws (Vehtari et al.)."""

MIN_ESS = 100.0
"""Below this ESS the error itself is uncertain by 1 / sqrt(2 ESS) or more, that is, over 7%."""

# ArviZ accepts 5 draws, but takes their minimum as first quartile, so k is always nan.
FEWEST_IN_TAIL = 6

MIN_TAIL_PARTICLES = 5 * FEWEST_IN_TAIL
"""Fewest particles for :func:`pareto_k`: the tail, a fifth of them, must have at least six."""

# A log weight is a difference of sums of many terms, each larger than the difference, so its
# rounding error is some tens of units in the last place. Log weights that spread over more than
# a thousandth of a nat count as different in any dtype.
_ROUNDING_UNITS = 64
_MAX_ROUNDING = 1e-3

# The fit divides by excesses. If a log weight is lower than this relative to the largest, its
# excess can be so small that the quotient overflows, and a hopeless tail then reads as a light one.
_NEGLIGIBLE = -640.0

_AT_ONCE = 64  # tails fitted at a time; each takes a grid of about 10,000 numbers

# (log weights, tail size) -> (smoothed log weights up to a constant, k)
TailFit = Callable[[NDArray[np.float64], int], tuple[NDArray[np.float64], float]]


def pareto_k(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "*batch"]:
    r"""Returns the shape :math:`k` of the upper tail of the weights; larger for a heavier tail.

    .. math:: P(w > u + x \mid w > u) \approx (1 + k x / \sigma)^{-1/k}

    A generalized Pareto distribution is fitted, as ArviZ does it, to the excess of the largest
    :math:`\min(K / 5, 3 \sqrt K)` weights over the next smaller weight, :math:`u`. Moments of order
    :math:`1/k` and above are infinite: the variance of the weights is finite for :math:`k < 1/2`,
    and the mean for :math:`k < 1`. The largest :math:`k` at which an estimate is reliable depends
    on the number of draws: see :func:`reliable_pareto_k`.

    Ten pseudo-draws shrink the fitted :math:`k` towards 1/2. The result is often too low if the
    largest draws do not follow a power law yet. One :math:`k` from 1,000 draws has a standard
    deviation near 0.15: use 5,000 draws or more, or look at many data.

    A result of `-inf` means that there is no tail: the largest weights are equal up to rounding, as
    under the exact posterior. Clipped weights give `-inf` too, because clipping hides their tail.
    If a quarter of the tail or more is tied at its lower end, :math:`u` is raised until this is no
    longer the case. The result is `nan` if fewer than six draws are then left, or if every weight
    is zero. A `nan` counts as unreliable.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats, one independent draw each;
            `-inf` is a zero weight.

    Returns:
        `(*batch,)`, float64, no unit, without a gradient. No standard error is given, because one
        set of draws does not show how much k varies between sets; see the typical value above.

    Raises:
        ValueError: If a log weight is nan or +inf, or there are fewer than
            :data:`MIN_TAIL_PARTICLES` particles.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646
        | A New and Efficient Estimation Method for the Generalized Pareto Distribution
          (Zhang & Stephens, 2009)
        | https://doi.org/10.1198/tech.2009.08017

    Example:
        >>> quantiles = (torch.arange(5000.0) + 0.5) / 5000
        >>> pareto_k(-0.8 * torch.log1p(-quantiles)).round(decimals=1)  # P(w > t) = t^(-1 / 0.8)
        tensor(0.8000, dtype=torch.float64)
    """
    require_particles(log_weights, MIN_TAIL_PARTICLES, "a fit to the tail of the weights")
    require_legal(log_weights)
    rounding = rounding_units(log_weights).flatten().cpu()
    shapes = _tail_shapes(_by_datum(log_weights), rounding)
    return shapes.reshape(log_weights.shape[1:]).to(log_weights.device)


def reliable_pareto_k(num_particles: int) -> float:
    r"""Returns the largest :math:`k` at which `num_particles` draws give a reliable estimate.

    .. math:: \min\left(1 - \frac{1}{\log_{10} K}, 0.7\right)

    Arguments:
        num_particles: Number of draws behind each estimate, :math:`K`.

    Returns:
        The limit, no unit; 0.7 from 2,155 draws on.

    Raises:
        ValueError: If there are fewer than two particles.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> reliable_pareto_k(100), reliable_pareto_k(5000)
        (0.5, 0.7)
    """
    if num_particles < 2:
        raise ValueError(
            f"`num_particles` must be at least 2; got {num_particles}: pass the number of draws "
            "behind each estimate"
        )
    return min(1 - 1 / math.log10(num_particles), MAX_PARETO_K)


def too_few_effective(ess: Float[Tensor, "*batch"], least: float) -> Bool[Tensor, "*batch"]:
    """Returns whether an effective sample size is below `least` by more than rounding explains.

    K equal weights have an ESS of K. Rounding spreads the log weights by at most a thousandth of a
    nat, which lowers the ESS by at most one part in a million.
    """
    return ess < least * (1 - _MAX_ROUNDING**2)


def rounding_units(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "*batch"]:
    """Returns the spread, in nats, that rounding can cause in the given log weights."""
    finite = log_weights.where(log_weights.isfinite(), 0.0)
    magnitude = finite.abs().amax(dim=0).double().clamp(min=1)
    eps = torch.finfo(log_weights.dtype).eps
    return (_ROUNDING_UNITS * eps * magnitude).clamp(max=_MAX_ROUNDING)


def _by_datum(log_weights: Tensor) -> Tensor:
    """Returns the log weights of one datum in each row, in float64 on the CPU."""
    num_particles, *batch = log_weights.shape
    return log_weights.detach().double().cpu().reshape(num_particles, math.prod(batch)).T


def _tail_shapes(rows: Tensor, rounding: Tensor) -> Tensor:
    """Returns the tail shape of each row of log weights.

    Rows whose smallest tail weights are not tied are fitted in batches, the others one by one.
    """
    size = tail_size(rows.shape[1])
    top = rows.topk(size + 1, dim=1).values
    relative = top - top[:, :1]
    weights = relative.where(relative >= _NEGLIGIBLE, -torch.inf).exp()
    cutoff, smallest = weights[:, size], weights[:, size - 1]
    is_flat = top[:, 0] - top[:, -1] <= rounding
    has_weight = top[:, 0] > -torch.inf
    first_quartile = weights[:, size - _quartile(size)]
    is_regular = has_weight & ~is_flat & (cutoff < smallest) & (smallest < first_quartile)
    shapes = torch.where(has_weight & is_flat, -torch.inf, torch.full_like(cutoff, torch.nan))
    excess = (weights[:, :size] - weights[:, size:])[is_regular].flip(1)
    shapes[is_regular] = torch.cat([_shapes_of_excess(part) for part in excess.split(_AT_ONCE)])
    for row in (has_weight & ~is_flat & ~is_regular).nonzero()[:, 0].tolist():
        shapes[row] = _irregular_shape(rows[row].numpy())
    return shapes


def _irregular_shape(row: NDArray[np.float64]) -> float:
    """Returns the tail shape of one row of log weights whose smallest tail weights are tied."""
    relative, size = sound_tail(row)
    if size < FEWEST_IN_TAIL:
        return math.nan
    largest = torch.from_numpy(np.sort(relative)[-size - 1 :]).exp()
    return float(_shapes_of_excess((largest[1:] - largest[0]).unsqueeze(0)))


def _shapes_of_excess(excess: Float64[Tensor, "rows number"]) -> Float64[Tensor, " rows"]:
    r"""Fits a generalized Pareto distribution to each row of ascending excesses; returns k.

    The fit is the same as in `arviz.psislw`: the posterior mean over a grid of :math:`b = -k /
    \sigma` (Zhang & Stephens, 2009). The function of ArviZ is not called, because it takes 2 s to
    import, and 4 ms per row to label its result. At the far ends of the grid, underflow and
    overflow are intended.
    """
    number = excess.shape[1]
    points = 30 + int(number**0.5)
    places = torch.arange(1, points + 1, dtype=excess.dtype, device=excess.device)
    grid = 1 - (points / (places - 0.5)).sqrt()
    quartile, largest = excess[:, _quartile(number) - 1, None], excess[:, -1:]
    b = grid / (3 * quartile) + 1 / largest  # (rows, points)
    k = torch.log1p(-b.unsqueeze(2) * excess.unsqueeze(1)).mean(dim=2)
    weights = (number * ((-b / k).log() - k - 1)).softmax(dim=1)
    kept = weights.where(weights >= 10 * torch.finfo(weights.dtype).eps, 0.0)
    mean = (b * kept).nansum(dim=1, keepdim=True) / kept.sum(dim=1, keepdim=True)
    shape = torch.log1p(-mean * excess).mean(dim=1)
    return (number * shape + 10 * 0.5) / (number + 10)  # ten pseudo-draws at 1/2


def _quartile(size: int) -> int:
    """Returns the position (from 1) of the first quartile of `size` values, as in ArviZ."""
    return int(size / 4 + 0.5)


def tail_size(num_particles: int) -> int:
    """Returns how many of the largest weights the fit of the tail uses."""
    return math.floor(min(num_particles / 5, 3 * math.sqrt(num_particles)))


def is_flat(row: NDArray[np.float64], rounding: float) -> bool:
    """Returns whether the largest log weights of a datum are equal up to rounding."""
    size = tail_size(len(row))
    smallest = np.partition(row, len(row) - 1 - size)[len(row) - 1 - size]
    return bool(row.max() - smallest <= rounding)


def sound_tail(row: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Returns log weights relative to the largest one, and the number of weights in the tail.

    The order is kept, and the log weights of negligible weights become minus infinity.
    """
    relative = row - row.max()
    relative[relative < _NEGLIGIBLE] = -np.inf
    descending = np.sort(relative)[::-1]
    return relative, _sound_tail_size(np.exp(descending[: tail_size(len(row)) + 1]))


def _sound_tail_size(descending: NDArray[np.float64]) -> int:
    """Returns how many weights lie above the first cutoff that allows a fit.

    `descending` contains the weights of the tail and then the cutoff. The fit takes its scale from
    the first quartile of the tail, so this quartile must exceed the minimum. If the two are equal,
    the cutoff moves up past the tie.
    """
    size = len(descending) - 1
    while size >= FEWEST_IN_TAIL:
        size = int((descending > descending[size]).sum())
        first_quartile = descending[size - _quartile(size)]
        if size < FEWEST_IN_TAIL or first_quartile > descending[size - 1]:
            return size
        size -= 1  # the smallest weight becomes the cutoff
    return size


@cache  # read from disk once, and needed for every block of data
def arviz_generation() -> int:
    """Returns ArviZ's major version, 0 or 1."""
    return int(version("arviz").split(".")[0])


def arviz_tail_fit() -> TailFit:
    """Returns ArviZ's fit of the tail, as a function of the log weights and the size of the tail.

    ArviZ does not take the size of the tail as an argument. It computes a size from the relative
    efficiency, and rounds this size up in version 0.23, and down in versions 1.x. So it is given
    the efficiency for half a draw less than the wanted size (0.23) or half a draw more (1.x), which
    it rounds to the wanted size. Versions 1.x also take *minus* the log weights.
    """
    if arviz_generation() >= 1:
        modern = import_module("arviz_stats.base").array_stats.psislw
        return lambda row, size: _as_pair(modern(-row, r_eff=_efficiency(row, size + 0.5)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 warns of 1.x on import; this code works with both
        classic = import_module("arviz").psislw
    return lambda row, size: _as_pair(classic(row, reff=_efficiency(row, size - 0.5)))


def _as_pair(answer: Any) -> tuple[NDArray[np.float64], float]:
    smoothed, shape = answer
    return np.asarray(smoothed, dtype=np.float64), float(shape)


def _efficiency(row: NDArray[np.float64], tail_size: float) -> float:
    """Returns the relative efficiency that makes ArviZ's tail `tail_size` draws long.

    Of N draws, ArviZ takes the largest 3 sqrt(N / efficiency) as the tail.
    """
    return len(row) * (3 / tail_size) ** 2


# Pareto smoothing replaces the largest weights with expected values under the fitted tail


def smoothed(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "particles *batch"]:
    r"""Smooths log weights: the largest are replaced by quantiles of the fitted tail.

    .. math:: \tilde w_{(i)} = F^{-1}\Big(\frac{i - 1/2}{M}\Big), \quad i = 1, \dots, M, \qquad
        \tilde w \le \max_k w_k

    with the generalized Pareto distribution :math:`F` of :func:`pareto_k`. The order of the weights
    is kept. If the tail is heavy, smoothed weights are less noisy, but their mean is too low on
    average. Weights are unchanged if :func:`pareto_k` is nan, or if the largest weights are equal.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.

    Returns:
        The smoothed log weights, `(particles, *batch)`, float64, in nats, without a gradient.

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
    rows = _by_datum(log_weights).contiguous()
    fit, rounding = arviz_tail_fit(), rounding_units(log_weights).flatten().tolist()
    answer = torch.empty_like(rows)
    with np.errstate(all="ignore"):  # ArviZ's grid under- and overflows at its far ends, by design
        for place, (row, spread) in enumerate(zip(rows.numpy(), rounding, strict=True)):
            answer[place] = torch.from_numpy(_smoothed_row(row, spread, fit))
    return answer.T.reshape(log_weights.shape).to(log_weights.device)


def smoothed_log_mean(
    log_weights: Float[Tensor, "particles *batch"],
) -> Float64[Tensor, "*batch"]:
    """Returns the log of the mean of the :func:`smoothed` weights.

    The arguments and exceptions are those of :func:`smoothed`.

    Returns:
        `(*batch,)`, float64, in nats; :func:`pyro_vae.stats.tail_error` gives its error.

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
    # ArviZ divides the weights by their sum; the cutoff, which is not smoothed, shows the sum.
    answer = row.copy()
    answer[tail[1:]] = normalized[tail[1:]] + (row[tail[0]] - normalized[tail[0]])
    return answer
