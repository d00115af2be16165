"""Averages of weights and averages over data, with their errors."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .._types import Estimate
from .checks import mean_and_error, relative_weights, require_data, require_particles


def log_mean_exp(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "*batch"]:
    r"""Returns the log of the mean weight, safe from overflow and exact if all weights are equal.

    .. math:: \log \frac{1}{K} \sum_{k=1}^{K} w_k
        = m + \log \frac{1}{K} \sum_k e^{\log w_k - m}, \qquad m = \max_k \log w_k

    For the error of this estimate use :func:`log_marginal`.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.

    Returns:
        `(*batch,)`, float64, in nats; `-inf` where every weight is zero.

    Raises:
        ValueError: If there is no particle.

    Example:
        >>> import torch
        >>> log_mean_exp(torch.tensor([1.0, 3.0]).log()).exp()
        tensor(2.0000, dtype=torch.float64)
    """
    require_particles(log_weights, 1, "a mean")
    weights, peak = relative_weights(log_weights)
    return peak + weights.mean(dim=0).log()


def effective_sample_size(
    log_weights: Float[Tensor, "particles *batch"],
) -> Float64[Tensor, "*batch"]:
    r"""Returns the number of equally weighted draws that are as precise as the given draws.

    .. math:: \text{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}

    The ESS depends only on the weights that were drawn, so a proposal that misses the region of
    large weights has a high ESS. :func:`pareto_k` can show this failure.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.

    Returns:
        `(*batch,)`, float64, from 1 to the number of particles; 0 where every weight is zero.

    Raises:
        ValueError: If there is no particle.

    References:
        | Sequential Imputations and Bayesian Missing Data Problems (Kong, Liu & Wong, 1994)
        | https://doi.org/10.1080/01621459.1994.10476469

    Example:
        >>> import torch
        >>> effective_sample_size(torch.tensor([1.0, 3.0]).log())
        tensor(1.6000, dtype=torch.float64)
    """
    require_particles(log_weights, 1, "an effective sample size")
    weights, _ = relative_weights(log_weights)
    return len(weights) / (1 + _variance_over_square(weights, weights.mean(dim=0)))


def _variance_over_square(weights: Tensor, mean: Tensor) -> Tensor:
    r"""Returns the variance of the weights over their squared mean, :math:`K / \text{ESS} - 1`.

    The variance is computed from deviations from the mean, so the result is 0 (and the ESS is
    :math:`K`) if the weights differ only by rounding. The result is infinite if every weight is
    zero.
    """
    ratio = (weights / mean - 1).square().mean(dim=0)
    return ratio.where(mean != 0, float("inf"))


def log_marginal(log_weights: Float[Tensor, "particles *batch"]) -> Estimate:
    r"""Estimates :math:`\log p(y)` from importance weights, with its standard error.

    .. math:: \log \hat p(y) = \log \frac{1}{K} \sum_{k=1}^{K} w_k ,
        \qquad w_k = \frac{p(y, z_k)}{q(z_k \mid y)}, \quad z_k \sim q(z \mid y)

    :math:`\hat p` is unbiased, so its logarithm is too low on average, by about
    :math:`\text{error}^2 / 2`. The error comes from the delta method: :math:`\sqrt{(K / \text{ESS}
    - 1) / (K - 1)}`. This error is meaningless if the weights have no finite variance (Pareto
    :math:`k \ge 1/2`), and too small if a few weights dominate the sum. So look at :func:`pareto_k`
    first.

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
        >>> import torch
        >>> log_marginal(torch.tensor([0.5, 0.5, 0.5]).log())
        -0.6931 ± 0.0000
    """
    require_particles(log_weights, 2, "a standard error")
    weights, peak = relative_weights(log_weights)
    mean = weights.mean(dim=0)
    error = (_variance_over_square(weights, mean) / (len(log_weights) - 1)).sqrt()
    return Estimate(peak + mean.log(), error)


def jackknife(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "*batch"]:
    r"""Returns the log mean weight with its first-order bias removed.

    .. math:: K \log \bar w - \frac{K - 1}{K} \sum_k \log \bar w_{-k}, \qquad
        \bar w_{-k} = \frac{1}{K - 1} \sum_{j \ne k} w_j

    The remaining bias is of order :math:`K^{-2}` if the weights have enough moments. The result is
    not a bound. For a Pareto :math:`k \ge 1/2` the result is no better than the plain log mean. For
    two draws of exponentially distributed weights, the bias is -0.270 nats without the jackknife,
    and +0.036 nats with it.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.

    Returns:
        `(*batch,)`, float64, in nats; `+inf` where all weights but one are zero, and `-inf` where
        all weights are zero. To first order the standard error is that of :func:`log_marginal`.

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
    plain = log_mean_exp(log_weights)
    return (plain - (num_particles - 1) * left_out).where(plain > -torch.inf, plain)


def mean_estimate(values: Float[Tensor, "particles *batch"]) -> Estimate:
    r"""Returns the mean over particles, such as the ELBO, and the standard error of this mean.

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
        >>> import torch
        >>> mean_estimate(torch.tensor([1.0, 3.0]))
        2.0 ± 1.0
    """
    require_particles(values, 2, "a standard error")
    return mean_and_error(values)


def total(estimate: Estimate) -> Estimate:
    r"""Sums independent estimates over all their elements, such as one element per datum.

    .. math:: \sum_n x_n, \qquad \text{error}^2 = \sum_n \text{error}_n^2

    This formula holds only if no two elements share random draws.

    Arguments:
        estimate: Values and errors, each `(*batch,)`.

    Returns:
        Value and error, scalars, float64, in the unit of `estimate`.

    Example:
        >>> import torch
        >>> total(Estimate(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])))
        3.0 ± 5.0
    """
    value, error = (part.double() for part in estimate)
    return Estimate(value.sum(), error.square().sum().sqrt())


def difference(first: Estimate, second: Estimate) -> Estimate:
    r"""Subtracts two independent estimates, element by element.

    .. math:: x - y, \qquad \text{error}^2 = \text{error}_x^2 + \text{error}_y^2

    If the estimates share random draws, the error is different, and usually smaller. In this case
    subtract draw by draw, and apply :func:`mean_estimate` to the differences.

    Arguments:
        first: Values and errors, each `(*batch,)`.
        second: Values and errors, each `(*batch,)`, from other random draws.

    Returns:
        Value and error, each `(*batch,)`, in the common unit of the two estimates.

    Example:
        >>> import torch
        >>> difference(Estimate(torch.tensor(3.0), torch.tensor(3.0)), Estimate(
        ...     torch.tensor(1.0), torch.tensor(4.0)))
        2.0 ± 5.0
    """
    error = (first.error.square() + second.error.square()).sqrt()
    return Estimate(first.value - second.value, error)


def mean_over_data(estimate: Estimate) -> Estimate:
    r"""Averages independent estimates over given data; the error is only the Monte Carlo error.

    .. math:: \frac{1}{N} \sum_n x_n, \qquad
        \text{error}^2 = \frac{1}{N^2} \sum_n \text{error}_n^2

    The error says how much other random draws would change the mean on the *same* data. Use it to
    compare two guides on one data set. For the error from the finite sample of data, use
    :func:`population_mean`.

    Arguments:
        estimate: Values and errors, each `(*batch,)`, one per datum.

    Returns:
        Value and error, scalars, float64, in the unit of `estimate`.

    Raises:
        ValueError: If there is no datum.

    Example:
        >>> import torch
        >>> mean_over_data(Estimate(torch.tensor([1.0, 3.0]), torch.tensor([6.0, 8.0])))
        2.0 ± 5.0
    """
    num_data = estimate.value.numel()
    require_data(num_data, 1, "a mean", estimate.value)
    value, error = total(estimate)
    return Estimate(value / num_data, error / num_data)


def population_mean(value: Float[Tensor, "*batch"]) -> Estimate:
    r"""Averages over the data, with the error from the finite sample of data.

    .. math:: \bar x = \frac{1}{N} \sum_n x_n, \qquad
        \text{error}^2 = \frac{1}{N (N - 1)} \sum_n (x_n - \bar x)^2

    The error says how much *another sample of data* would change the mean. Use this
    error if the mean over held-out data is to estimate the mean over all new data. If the values
    are Monte Carlo estimates, the error already includes their noise, because it is computed from
    the spread of the values. Data must be independent. For the error from other random
    draws on the same data, use :func:`mean_over_data`.

    Arguments:
        value: :math:`x_n`, `(*batch,)`, one per datum.

    Returns:
        Value and error, scalars, float64, in the unit of `value`.

    Raises:
        ValueError: If there are fewer than two data.

    Example:
        >>> import torch
        >>> population_mean(torch.tensor([1.0, 3.0]))
        2.0 ± 1.0
    """
    require_data(value.numel(), 2, "the spread over data", value)
    return mean_and_error(value.flatten())


def concentration(values: Float[Tensor, " data"], share: float) -> float:
    r"""Returns the share of a sum over data that comes from the data with the largest values.

    .. math:: \frac{\sum_{n \le m} x_{(n)}}{\sum_n x_n}, \qquad x_{(1)} \ge x_{(2)} \ge \dots,
        \qquad m = \max(1, \operatorname{round}(\text{share} \cdot N))

    The share is meaningful only if the sum exceeds zero by more than its error. Otherwise the
    largest values are merely those with the largest noise.

    Arguments:
        values: :math:`x_n`, `(data,)`, in any unit.
        share: Share of the data that counts as the largest, between 0 and 1.

    Returns:
        The share, which is set to 1 if negative values among the other data would raise it above 1.
        No standard error is given, because the same draws also decide which data are the largest.

    Raises:
        ValueError: If there is no datum.

    References:
        | Methods of Measuring the Concentration of Wealth (Lorenz, 1905)
        | https://doi.org/10.2307/2276207

    Example:
        >>> import torch
        >>> concentration(torch.tensor([1.0, 6.0, 1.0, 2.0]), share=0.25)
        0.6
    """
    require_data(len(values), 1, "a concentration", values)
    values = values.double()
    number = max(1, round(share * len(values)))
    return min(1.0, float(values.topk(number).values.sum() / values.sum()))
