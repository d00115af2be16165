r"""What a set of log weights says: averages with their errors, and how far they can be trusted.

With :math:`z_k \sim q(z \mid y)` and weights :math:`w_k = p(y, z_k) / q(z_k \mid y)`, the mean
weight :math:`\hat p = \frac{1}{K} \sum_k w_k` is an unbiased estimate of :math:`p(y)`. With
:math:`c^2 = \operatorname{Var} w / (\mathbb{E} w)^2`, expanding the logarithm gives

.. math:: \log \hat p - \log p(y) \approx \Big(\frac{\hat p}{p(y)} - 1\Big)
    - \frac{1}{2} \Big(\frac{\hat p}{p(y)} - 1\Big)^2 ,

so :math:`\log \hat p` has variance :math:`c^2 / K` and is low by :math:`c^2 / 2K` on average.
The draws estimate :math:`c^2` by the effective sample size, :math:`1 + c^2 \approx K / \text{ESS}`.

All of this needs a finite :math:`c^2`, which no finite set of draws can show by its spread. The
tail can: if :math:`P(w > t)` falls as :math:`t^{-1/k}`, the variance is finite only for
:math:`k < 1/2`, and for :math:`k > 1` not even the mean is. So :func:`pareto_k` comes first.

Every function takes the particles on the first axis, computes in float64 whatever comes in (a
data set of 60,000 at -100 nats sums to -6e6, where float32 resolves half a nat), is in nats, and
leaves the caller's tensor as it is. A nan that comes in goes out, except where a function says
that it refuses it.
"""

import math
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from ._types import Estimate

__all__ = [
    "MAX_PARETO_K",
    "MIN_ESS",
    "MIN_TAIL_PARTICLES",
    "effective_sample_size",
    "log_marginal",
    "log_mean_exp",
    "mean_estimate",
    "mean_over_data",
    "pareto_k",
    "population_mean",
    "reliable_pareto_k",
    "total",
    "weight_reliability",
]

MAX_PARETO_K = 0.7
"""Above it the number of draws that a given error needs grows out of reach (Vehtari et al.)."""

MIN_ESS = 100.0
"""Below it the error itself is noisy: to 1 / sqrt(2 ESS) of its size, 7 percent here, at best."""

_MIN_TAIL = 6  # ArviZ asks for 5 draws, but its first quartile of 5 is their minimum: always nan

MIN_TAIL_PARTICLES = 5 * _MIN_TAIL
"""The fewest particles :func:`pareto_k` takes: the tail is at most a fifth of the draws."""

# A log weight is a difference of sums of many terms, each larger than the difference, so its
# rounding error is some tens of units in the last place; what spreads over more than a
# thousandth of a nat is taken for weights that differ, whatever the dtype.
_ROUNDING_UNITS = 64
_MAX_ROUNDING = 1e-3

# The fit divides by excesses. Those of weights smaller than this beside the largest (in nats) can
# be so small that the quotient overflows, and a hopeless tail then reads as a light one.
_NEGLIGIBLE = -640.0

_TailShape = Callable[[NDArray[np.float64], int], float]  # (log weights, tail size) -> k


def log_mean_exp(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "*batch"]:
    r"""Logarithm of the mean weight, exact where all weights are equal and safe from overflow.

    .. math:: \log \frac{1}{K} \sum_{k=1}^{K} w_k
        = m + \log \frac{1}{K} \sum_k e^{\log w_k - m}, \qquad m = \max_k \log w_k

    It says nothing of its error: :func:`log_marginal` does.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.

    Returns:
        `(*batch,)`, float64, in nats; `-inf` where every weight is zero.

    Raises:
        ValueError: If there is no particle.

    Example:
        >>> log_mean_exp(torch.tensor([1.0, 3.0]).log()).exp()
        tensor(2.0000, dtype=torch.float64)
    """
    _require_particles(log_weights, 1, "a mean")
    weights, peak = _relative_weights(log_weights)
    return peak + weights.mean(dim=0).log()


def effective_sample_size(
    log_weights: Float[Tensor, "particles *batch"],
) -> Float64[Tensor, "*batch"]:
    r"""Number of equally weighted draws that would average as well, from 1 to `particles`.

    .. math:: \text{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}

    It sees only the weights that were drawn: a proposal that misses where the large weights lie
    has a high one. :func:`pareto_k` is the check on that.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.

    Returns:
        `(*batch,)`, float64, in draws; 0 where every weight is zero.

    Raises:
        ValueError: If there is no particle.

    References:
        | Sequential Imputations and Bayesian Missing Data Problems (Kong, Liu & Wong, 1994)
        | https://doi.org/10.1080/01621459.1994.10476469

    Example:
        >>> effective_sample_size(torch.tensor([1.0, 3.0]).log())
        tensor(1.6000, dtype=torch.float64)
    """
    _require_particles(log_weights, 1, "an effective sample size")
    weights, _ = _relative_weights(log_weights)
    sum_of_weights = weights.sum(dim=0)
    ess = sum_of_weights.square() / weights.square().sum(dim=0)
    return ess.where(sum_of_weights != 0, 0.0)


def log_marginal(log_weights: Float[Tensor, "particles *batch"]) -> Estimate:
    r"""Estimates :math:`\log p(y)` from importance weights, with its standard error.

    .. math:: \log \hat p(y) = \log \frac{1}{K} \sum_{k=1}^{K} w_k ,
        \qquad w_k = \frac{p(y, z_k)}{q(z_k \mid y)}, \quad z_k \sim q(z \mid y)

    :math:`\hat p` is unbiased, so its logarithm is low on average, by about
    :math:`\text{error}^2 / 2`. The error is the delta method's,
    :math:`\sqrt{(K / \text{ESS} - 1) / (K - 1)}`; it is void where the weights have no finite
    variance (:math:`k \ge 1/2`) and too small where a few of them carry the sum, so look at
    :func:`pareto_k` first.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.

    Returns:
        Value and error, each `(*batch,)`, float64, in nats; `-inf` with an infinite error where
        every weight is zero.

    Raises:
        ValueError: If there are fewer than two particles.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | Debiasing Evidence Approximations (Nowozin, 2018)
        | https://openreview.net/forum?id=HyZoi-WRb

    Example:
        >>> log_marginal(torch.tensor([0.5, 0.5, 0.5]).log())
        Estimate(value=tensor(-0.6931, dtype=torch.float64), error=tensor(0., dtype=torch.float64))
    """
    _require_particles(log_weights, 2, "a standard error")
    num_particles = log_weights.shape[0]
    relative_variance = num_particles / effective_sample_size(log_weights) - 1
    # Rounding can put ESS a hair above K when the weights are nearly equal.
    error = (relative_variance / (num_particles - 1)).clamp(min=0).sqrt()
    return Estimate(log_mean_exp(log_weights), error)


def mean_estimate(values: Float[Tensor, "particles *batch"]) -> Estimate:
    r"""Mean over the particles and its standard error, for the ELBO and other plain averages.

    .. math:: \bar x = \frac{1}{K} \sum_k x_k, \qquad
        \text{error}^2 = \frac{1}{K (K - 1)} \sum_k (x_k - \bar x)^2

    The particles must be independent.

    Arguments:
        values: :math:`x_k`, `(particles, *batch)`, in any unit.

    Returns:
        Value and error, each `(*batch,)`, float64, in the unit of `values`.

    Raises:
        ValueError: If there are fewer than two particles.

    Example:
        >>> mean_estimate(torch.tensor([1.0, 3.0]))
        Estimate(value=tensor(2., dtype=torch.float64), error=tensor(1., dtype=torch.float64))
    """
    _require_particles(values, 2, "a standard error")
    return _mean_and_error(values)


def total(estimate: Estimate) -> Estimate:
    r"""Sum of independent estimates over all their elements, such as one a datum.

    .. math:: \sum_n x_n, \qquad \text{error}^2 = \sum_n \text{error}_n^2

    The errors add so only if no two elements share random draws.

    Arguments:
        estimate: Values and errors, each `(*batch,)`.

    Returns:
        Value and error, scalars, float64, in the unit of `estimate`.

    Example:
        >>> total(Estimate(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])))
        Estimate(value=tensor(3., dtype=torch.float64), error=tensor(5., dtype=torch.float64))
    """
    value, error = (part.double() for part in estimate)
    return Estimate(value.sum(), error.square().sum().sqrt())


def mean_over_data(estimate: Estimate) -> Estimate:
    r"""Mean of independent estimates over these data, with the Monte Carlo error alone.

    .. math:: \frac{1}{N} \sum_n x_n, \qquad
        \text{error}^2 = \frac{1}{N^2} \sum_n \text{error}_n^2

    The error is what other random draws would change on the *same* data: the one to compare two
    guides with on one data set. :func:`population_mean` has the error of other data.

    Arguments:
        estimate: Values and errors, each `(*batch,)`, one a datum.

    Returns:
        Value and error, scalars, float64, in the unit of `estimate`.

    Raises:
        ValueError: If there is no datum.

    Example:
        >>> mean_over_data(Estimate(torch.tensor([1.0, 3.0]), torch.tensor([6.0, 8.0])))
        Estimate(value=tensor(2., dtype=torch.float64), error=tensor(5., dtype=torch.float64))
    """
    num_data = estimate.value.numel()
    _require_data(num_data, 1, "a mean", estimate.value)
    value, error = total(estimate)
    return Estimate(value / num_data, error / num_data)


def population_mean(value: Float[Tensor, "*batch"]) -> Estimate:
    r"""Mean over the data, with the error that comes of having only these data.

    .. math:: \bar x = \frac{1}{N} \sum_n x_n, \qquad
        \text{error}^2 = \frac{1}{N (N - 1)} \sum_n (x_n - \bar x)^2

    The error is what *another sample of data* would change: the one to report with a held-out
    mean as a statement about the population. If the values are Monte Carlo estimates, their
    spread, and so this error, holds their noise too: add no second error to it. Data must be
    independent. :func:`mean_over_data` has the error of other random draws on the same data.

    Arguments:
        value: :math:`x_n`, `(*batch,)`, one a datum.

    Returns:
        Value and error, scalars, float64, in the unit of `value`.

    Raises:
        ValueError: If there are fewer than two data.

    Example:
        >>> population_mean(torch.tensor([1.0, 3.0]))
        Estimate(value=tensor(2., dtype=torch.float64), error=tensor(1., dtype=torch.float64))
    """
    _require_data(value.numel(), 2, "the spread over data", value)
    return _mean_and_error(value.flatten())


def pareto_k(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "*batch"]:
    r"""Shape :math:`k` of the upper tail of the weights; larger is heavier.

    .. math:: P(w > u + x \mid w > u) \approx (1 + k x / \sigma)^{-1/k}

    A generalized Pareto distribution is fitted by ArviZ to the excess of the largest
    :math:`\min(K / 5, 3 \sqrt K)` weights over the next one, :math:`u`. Moments of order
    :math:`1/k` and above are infinite: with :math:`k < 1/2` the weights have a variance, with
    :math:`k < 1` a mean. :func:`weight_reliability` says where to draw the line.

    The fit shrinks towards 1/2 by ten pseudo-draws and, over a tail that is not yet a power law,
    often reads low. One :math:`k` from 1,000 draws has a standard deviation near 0.15: ask for
    5,000 or more, or look at many data.

    `-inf`, no tail at all, means that the largest weights are equal up to rounding, as under the
    exact posterior; so are weights that were clipped, which hides their tail. Where weights tie
    within the tail (a quarter of it or more at its lower end), :math:`u` is raised until they do
    not; if fewer than six draws are left there is no sound fit and the answer is `nan`, as it is
    where every weight is zero. A `nan` counts as unreliable.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats, one independent draw each;
            `-inf` is a zero weight.

    Returns:
        `(*batch,)`, float64, no unit, without a gradient. It has no error of its own: a fit to
        one set of draws does not show its own spread, which is given above.

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
    _require_particles(log_weights, MIN_TAIL_PARTICLES, "a fit to the tail of the weights")
    _require_legal(log_weights)
    num_particles, *batch = log_weights.shape
    rows = log_weights.detach().double().cpu().reshape(num_particles, math.prod(batch)).T
    eps = torch.finfo(log_weights.dtype).eps
    shapes = torch.from_numpy(_tail_shapes(rows.contiguous().numpy(), eps))
    return shapes.reshape(batch).to(log_weights.device)


def reliable_pareto_k(num_particles: int) -> float:
    r"""Largest :math:`k` at which this many draws give an estimate that can be trusted.

    .. math:: \min\left(1 - \frac{1}{\log_{10} K}, 0.7\right)

    Arguments:
        num_particles: Draws behind one estimate, :math:`K`.

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
            f"a limit on Pareto k needs at least 2 particles, got {num_particles}; pass the number "
            "of draws behind each estimate"
        )
    return min(1 - 1 / math.log10(num_particles), MAX_PARETO_K)


def weight_reliability(
    pareto_k: Float[Tensor, "*batch"], ess: Float[Tensor, "*batch"], num_particles: int
) -> Bool[Tensor, "*batch"]:
    r"""Says where an importance-sampling estimate and its error can be trusted.

    .. math:: k < \min\left(1 - \frac{1}{\log_{10} K}, 0.7\right)
        \quad \text{and} \quad \text{ESS} \ge 100

    Both can pass where the proposal misses a region altogether: no weight tells of it.

    Arguments:
        pareto_k: :math:`k` of each estimate, `(*batch,)`, no unit; nan is unreliable.
        ess: Effective sample size of each estimate, `(*batch,)`, in draws.
        num_particles: Draws behind each estimate, :math:`K`.

    Returns:
        `(*batch,)`, true where the estimate can be trusted.

    Raises:
        ValueError: If the shapes differ or there are fewer than two particles.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> weight_reliability(torch.tensor([0.2, 0.8]), torch.tensor([900.0, 900.0]), 5000)
        tensor([ True, False])
    """
    if pareto_k.shape != ess.shape:
        raise ValueError(
            f"pareto_k and ess must have one element a datum each, got the shapes "
            f"{tuple(pareto_k.shape)} and {tuple(ess.shape)}; make both from the same log weights"
        )
    return (pareto_k < reliable_pareto_k(num_particles)) & (ess >= MIN_ESS)


def _relative_weights(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights over the largest of them, so that equal ones are exactly 1, and its logarithm."""
    log_weights = log_weights.double()
    largest = log_weights.amax(dim=0)
    peak = largest.where(largest.isfinite(), 0.0)  # -inf - -inf would be nan, not a zero weight
    return (log_weights - peak).exp(), peak


def _mean_and_error(values: Tensor) -> Estimate:
    values, count = values.double(), len(values)
    mean = values.mean(dim=0)
    squares = (values - mean).square().sum(dim=0)  # not Tensor.std: it warns at an empty batch
    return Estimate(mean, (squares / (count * (count - 1))).sqrt())


def _require_particles(values: Tensor, fewest: int, purpose: str) -> None:
    num_particles = values.shape[0] if values.ndim else 0
    if num_particles < fewest:
        raise ValueError(
            f"{purpose} needs at least {fewest} particles, got {num_particles} "
            f"(the shape is {tuple(values.shape)}, particles first); draw more"
        )


def _require_data(num_data: int, fewest: int, purpose: str, value: Tensor) -> None:
    if num_data < fewest:
        raise ValueError(
            f"{purpose} needs at least {fewest} data, got {num_data} "
            f"(the shape is {tuple(value.shape)}); evaluate on more"
        )


def _require_legal(log_weights: Tensor) -> None:
    illegal = log_weights.isnan() | log_weights.isposinf()
    if illegal.any():
        first = tuple(illegal.nonzero()[0].tolist())
        datum = f" of datum {', '.join(map(str, first[1:]))}" if len(first) > 1 else ""
        raise ValueError(
            f"log weights must be finite, or -inf for a zero weight, got "
            f"{log_weights[first].item()} at particle {first[0]}{datum}, the first of "
            f"{int(illegal.sum())}; look there at log p(y, z) and log q(z | y): one of them is "
            "not finite (bad data, a scale of 0, or parameters that diverged in training)"
        )


def _rounding(rows: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """Spread in nats that rounding alone can give each row, `(data,)`, as `eps` was on entry."""
    magnitude = np.abs(rows, where=np.isfinite(rows), out=np.zeros_like(rows)).max(axis=1)
    rounding: NDArray[np.float64] = _ROUNDING_UNITS * eps * np.maximum(magnitude, 1)
    return np.minimum(rounding, _MAX_ROUNDING)


def _tail_shapes(rows: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """`k` of each row of log weights, `(data, particles)` to `(data,)`; `eps` of their dtype."""
    fit, rounding = _arviz_tail_shape(), _rounding(rows, eps)
    # ArviZ's grid of trial scales under- and overflows at its far ends, by design.
    with np.errstate(all="ignore"):
        shapes = [_tail_shape(row, spread, fit) for row, spread in zip(rows, rounding, strict=True)]
    return np.array(shapes, dtype=np.float64)


def _tail_shape(row: NDArray[np.float64], rounding: float, fit: _TailShape) -> float:
    descending = np.sort(row)[::-1]
    size = math.floor(min(len(row) / 5, 3 * math.sqrt(len(row))))
    if descending[0] == -np.inf:
        return math.nan  # every weight is zero
    if descending[0] - descending[size] <= rounding:
        return -math.inf
    relative = descending - descending[0]
    relative[relative < _NEGLIGIBLE] = -np.inf
    size = _sound_tail_size(np.exp(relative[: size + 1]))
    return fit(relative, size) if size >= _MIN_TAIL else math.nan


def _sound_tail_size(descending: NDArray[np.float64]) -> int:
    """How many weights lie above a cutoff at which the fit can start.

    `descending` holds the candidates and then the cutoff. The fit takes its scale from the first
    quartile of the tail, and has none where that is the minimum: the cutoff moves up, past the tie.
    """
    size = len(descending) - 1
    while size >= _MIN_TAIL:
        size = int((descending > descending[size]).sum())
        first_quartile = descending[size - int(size / 4 + 0.5)]  # as ArviZ counts it
        if size < _MIN_TAIL or first_quartile > descending[size - 1]:
            return size
        size -= 1  # the smallest becomes the cutoff
    return size


@cache  # looked up on disk, and asked for every block of data
def _arviz_generation() -> int:
    """0 or 1: the two differ in the sign that `psislw` takes."""
    return int(version("arviz").split(".")[0])


def _arviz_tail_shape() -> _TailShape:
    """ArviZ's fit behind one sign; the only place that knows its two generations.

    0.23 takes log weights and rounds the size of the tail up, 1.x takes *minus* log weights and
    rounds it down. Both set it through the relative efficiency; half a draw keeps the size
    asked for on either side, and so the answers the same.
    """
    if _arviz_generation() >= 1:
        modern = import_module("arviz_stats.base").array_stats.psislw
        return lambda row, size: float(modern(-row, r_eff=_efficiency(row, size + 0.5))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces 1.x on import; ours works with both
        classic = import_module("arviz").psislw
    return lambda row, size: float(classic(row, reff=_efficiency(row, size - 0.5))[1])


def _efficiency(row: NDArray[np.float64], tail_size: float) -> float:
    """Relative efficiency at which ArviZ's tail, 3 sqrt(draws / efficiency), has this size."""
    return len(row) * (3 / tail_size) ** 2
