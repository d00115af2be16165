"""Averages of weights and over data, each with its error."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .._types import Estimate
from .checks import mean_and_error, relative_weights, require_data, require_particles


def log_mean_exp(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "*batch"]:
    r"""Logarithm of the mean weight, exact where all weights are equal and safe from overflow.

    .. math:: \log \frac{1}{K} \sum_{k=1}^{K} w_k
        = m + \log \frac{1}{K} \sum_k e^{\log w_k - m}, \qquad m = \max_k \log w_k

    For its error use :func:`log_marginal`.

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
    r"""Number of equally weighted draws that would average as well, from 1 to `particles`.

    .. math:: \text{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}

    It sees only the weights that were drawn: a proposal that misses the region of large weights has
    a high ESS. :func:`pareto_k` is the check on that.

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
        >>> import torch
        >>> effective_sample_size(torch.tensor([1.0, 3.0]).log())
        tensor(1.6000, dtype=torch.float64)
    """
    require_particles(log_weights, 1, "an effective sample size")
    return len(log_weights) / (1 + relative_variance(log_weights))


def relative_variance(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "*batch"]:
    r"""Variance of the weights over the square of their mean, :math:`K / \text{ESS} - 1`.

    It is computed about their mean, so that it is 0 (and ESS is :math:`K`) if weights differ only
    by rounding. It is infinite if every weight is zero.
    """
    weights, _ = relative_weights(log_weights)
    mean = weights.mean(dim=0)
    ratio = (weights / mean - 1).square().mean(dim=0)
    return ratio.where(mean != 0, float("inf"))


def log_marginal(log_weights: Float[Tensor, "particles *batch"]) -> Estimate:
    r"""Estimates :math:`\log p(y)` from importance weights, with its standard error.

    .. math:: \log \hat p(y) = \log \frac{1}{K} \sum_{k=1}^{K} w_k ,
        \qquad w_k = \frac{p(y, z_k)}{q(z_k \mid y)}, \quad z_k \sim q(z \mid y)

    :math:`\hat p` is unbiased, so its logarithm is low on average, by about :math:`\text{error}^2 /
    2`. The error is the delta method's, :math:`\sqrt{(K / \text{ESS} - 1) / (K - 1)}`; it is
    meaningless if the weights have no finite variance (:math:`k \ge 1/2`) and too small if a few of
    them dominate the sum, so look at :func:`pareto_k` first.

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
    error = (relative_variance(log_weights) / (len(log_weights) - 1)).sqrt()
    return Estimate(log_mean_exp(log_weights), error)


def jackknife(log_weights: Float[Tensor, "particles *batch"]) -> Float64[Tensor, "*batch"]:
    r"""Log mean weight with its first-order bias removed.

    .. math:: K \log \bar w - \frac{K - 1}{K} \sum_k \log \bar w_{-k}, \qquad
        \bar w_{-k} = \frac{1}{K - 1} \sum_{j \ne k} w_j

    Its bias is of order :math:`K^{-2}` if the weights have enough moments; it is not a bound, and
    for :math:`k \ge 1/2` it is no better than the plain log mean. For two exponential weights the
    exact bias changes from -0.270 to +0.036 nats.

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
        >>> import torch
        >>> mean_estimate(torch.tensor([1.0, 3.0]))
        2.0 ± 1.0
    """
    require_particles(values, 2, "a standard error")
    return mean_and_error(values)


def total(estimate: Estimate) -> Estimate:
    r"""Sum of independent estimates over all their elements, such as one per datum.

    .. math:: \sum_n x_n, \qquad \text{error}^2 = \sum_n \text{error}_n^2

    The errors add like this only if no two elements share random draws.

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
    r"""Difference of two independent estimates, element by element.

    .. math:: x - y, \qquad \text{error}^2 = \text{error}_x^2 + \text{error}_y^2

    If the estimates share draws the error differs and is usually smaller: take the mean of the
    draws' differences instead.

    Arguments:
        first: Values and errors, each `(*batch,)`.
        second: The same, from other draws.

    Returns:
        Value and error, each `(*batch,)`, in the unit of both.

    Example:
        >>> import torch
        >>> difference(Estimate(torch.tensor(3.0), torch.tensor(3.0)), Estimate(
        ...     torch.tensor(1.0), torch.tensor(4.0)))
        2.0 ± 5.0
    """
    error = (first.error.square() + second.error.square()).sqrt()
    return Estimate(first.value - second.value, error)


def mean_over_data(estimate: Estimate) -> Estimate:
    r"""Mean of independent estimates over the data at hand, with the Monte Carlo error alone.

    .. math:: \frac{1}{N} \sum_n x_n, \qquad
        \text{error}^2 = \frac{1}{N^2} \sum_n \text{error}_n^2

    The error says how much other random draws would change the mean on the *same* data; use it to
    compare two guides on one data set. :func:`population_mean` has the error from the sample of
    data.

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
    r"""Mean over the data, with the error from having a finite sample of data.

    .. math:: \bar x = \frac{1}{N} \sum_n x_n, \qquad
        \text{error}^2 = \frac{1}{N (N - 1)} \sum_n (x_n - \bar x)^2

    The error says how much *another sample of data* would change the mean; report it with a
    held-out mean as a statement about the population. If the values are Monte Carlo estimates,
    their spread, and so this error, already includes their noise. Data must be independent.
    :func:`mean_over_data` has the error from other random draws on the same data.

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
    r"""Share of a sum over data that comes from the data with the largest values.

    .. math:: \frac{\sum_{n \le m} x_{(n)}}{\sum_n x_n}, \qquad x_{(1)} \ge x_{(2)} \ge \dots,
        \qquad m = \max(1, \operatorname{round}(\text{share} \cdot N))

    It is meaningful only if the sum exceeds zero by more than its error: noise is sorted too.

    Arguments:
        values: :math:`x_n`, `(data,)`, in any unit.
        share: Share of the data, between 0 and 1.

    Returns:
        At most 1, even if negative values make the rest of the sum negative. It has no error: which
        data are the largest depends on the same draws.

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
