"""The upper tail of the weights: how heavy it is, and whether averages are reliable."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
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

# A log weight is a difference of two sums, each larger than the difference, so its rounding error
# is some tens of units in the last place. Log weights that differ by more than a thousandth of a
# nat count as different in any dtype.
_ROUNDING_UNITS = 64
_MAX_ROUNDING = 1e-3

# Weights whose log is lower than this, relative to the largest, count as zero. Otherwise the fit
# would divide by tiny excesses, overflow, and take a very heavy tail for a light one.
_NEGLIGIBLE = -640.0

_AT_ONCE = 64  # tails fitted at a time; each takes a grid of about 10,000 numbers
_STRAIGHT = 1e-12  # replaces shapes closer to 0, for which expm1(k x) / k could be 0 / 0


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
        set of draws does not show how much k varies between sets; its typical size is stated above.

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
    shape = _fitted(log_weights).shape
    return shape.reshape(log_weights.shape[1:]).to(log_weights.device)


def reliable_pareto_k(num_particles: int) -> float:
    r"""Returns the largest :math:`k` at which `num_particles` draws give a reliable estimate.

    .. math:: \min\left(1 - \frac{1}{\log_{10} K}, 0.7\right)

    Arguments:
        num_particles: Number of draws from which each estimate is computed, :math:`K`.

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
            "from which each estimate is computed"
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


class _Tails(NamedTuple):
    """Generalized Pareto distributions, each fitted to the largest weights of one datum.

    The weights are divided by the datum's largest weight, and are in descending order. The shape is
    -inf if they are equal up to rounding. It is nan if every weight is zero, or if fewer than six
    weights lie above any cutoff that allows a fit.
    """

    weights: Tensor  # the weights of the tail and the highest cutoff, (data, size + 1)
    places: Tensor  # which particles have these weights, (data, size + 1)
    size: Tensor  # how many weights lie above the cutoff that was used, (data,)
    shape: Tensor  # (data,)
    scale: Tensor  # (data,)


def _fitted(log_weights: Tensor) -> _Tails:
    """Fits the tail of the weights of each datum.

    Data whose smallest tail weights are not tied are fitted in batches, the others one by one.
    """
    size = tail_size(len(log_weights))
    top, places = _by_datum(log_weights).topk(size + 1, dim=1)
    relative = top - top[:, :1]
    weights = relative.where(relative >= _NEGLIGIBLE, -torch.inf).exp()
    cutoff, smallest = weights[:, size], weights[:, size - 1]
    is_flat = top[:, 0] - top[:, -1] <= rounding_units(log_weights).flatten().cpu()
    is_steep = (top[:, 0] > -torch.inf) & ~is_flat
    is_regular = is_steep & (cutoff < smallest) & (smallest < weights[:, size - _quartile(size)])
    sizes = torch.full_like(places[:, 0], size)
    shape = torch.full_like(cutoff, torch.nan).masked_fill(is_flat, -torch.inf)
    scale = torch.full_like(cutoff, torch.nan)
    excess = (weights[:, :size] - weights[:, size:])[is_regular].flip(1)
    fits = [torch.stack(_fit(part)) for part in excess.split(_AT_ONCE)]
    shape[is_regular], scale[is_regular] = torch.cat(fits, dim=1)
    for row in (is_steep & ~is_regular).nonzero()[:, 0].tolist():
        sizes[row] = number = _untied_size(weights[row])
        if number >= FEWEST_IN_TAIL:
            above = weights[row, :number] - weights[row, number]
            shape[row], scale[row] = _fit(above.flip(0).unsqueeze(0))
    return _Tails(weights, places, sizes, shape, scale)


def _fit(excess: Float64[Tensor, "rows number"]) -> tuple[Tensor, Tensor]:
    r"""Fits a generalized Pareto distribution to each row of ascending excesses.

    The fit is the same as in `arviz.psislw`: the posterior mean over a grid of :math:`b = -k /
    \sigma` (Zhang & Stephens, 2009). The function of ArviZ is not called, because it takes 2 s to
    import, and 4 ms per row to label its result. At the far ends of the grid, underflow and
    overflow are intended.

    Returns:
        The shape :math:`k` and the scale :math:`\sigma` of each row.
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
    scale = -shape / mean[:, 0]
    return (number * shape + 10 * 0.5) / (number + 10), scale  # ten pseudo-draws at 1/2


def _quartile(size: int) -> int:
    """Returns the position (from 1) of the first quartile of `size` values, as in ArviZ."""
    return int(size / 4 + 0.5)


def tail_size(num_particles: int) -> int:
    """Returns how many of the largest weights the fit of the tail uses."""
    return math.floor(min(num_particles / 5, 3 * math.sqrt(num_particles)))


def _untied_size(descending: Float64[Tensor, " number"]) -> int:
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


# Pareto smoothing replaces the largest weights with expected values under the fitted tail


def smoothed(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "particles *batch"]:
    r"""Smooths log weights: the largest weights are replaced by quantiles of the fitted tail.

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
    tails, answer = _fitted(log_weights), _by_datum(log_weights).clone()
    for row in tails.shape.isfinite().nonzero()[:, 0].tolist():
        size, shape = int(tails.size[row]), tails.shape[row]
        shape = shape.where(shape.abs() > _STRAIGHT, _STRAIGHT)
        levels = (torch.arange(size, dtype=shape.dtype, device="cpu") + 0.5) / size
        quantiles = tails.scale[row] / shape * torch.expm1(-shape * levels.log())
        largest = answer[row].max()
        weights = (tails.weights[row, size] + quantiles).clamp(max=1)
        answer[row, tails.places[row, :size]] = largest + weights.log()
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
