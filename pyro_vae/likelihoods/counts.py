r"""Likelihoods of counts, with an exposure: the time or amount that a count covers.

The decoder gives the logarithm of a rate, :math:`\eta`, and the mean of a count is :math:`\mu = t
e^{\eta}`. The exposure t is a further tensor of the batch: `model(y, exposure)`, `pv.fit(model,
guide, (y, exposure))`. The shape of t is `(batch,)` or `(batch, 1)` for one exposure per row, or
that of the data. Without an exposure, t is 1.

The total of a row, such as the library size of single-cell counts, can be an exposure, `exposure =
y.sum(dim=1)`. Then log p is conditional on the total, just as a regression is conditional on
covariates. Such a log p is not a density of rows with unknown totals, and can be compared only with
models that also condition on the total.

Beyond +-30, the log rate grows only logarithmically with the decoder's output, so that neither
rates nor gradients overflow.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .._types import Distribution, Size
from ..data.checks import check_range
from ..formatting import count_of
from ..programs.modes import capturing
from ..registry import registered
from .base import Features, Likelihood, column_means, column_shares, column_spreads
from .special import (
    HALF_LOG_2_PI,
    LOG_LIMIT,
    Learned,
    halves,
    require_outputs,
    soft_limit,
    stirling_error,
)

_LOG_RATE_LIMIT = 30.0  # a count of 1e13


def _log_mean(log_rate: Tensor, given: tuple[Tensor, ...]) -> Tensor:
    """Returns the log of the mean of each count: the log rate plus the log exposure."""
    limited = soft_limit(log_rate, _LOG_RATE_LIMIT)
    if not given:
        return limited
    return limited + _exposure(given, tuple(log_rate.shape)).to(log_rate).log()


def _exposure(given: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
    """Returns the exposure in a shape that broadcasts with the data."""
    exposure = given[0]
    if exposure.dim() == 1:
        exposure = exposure.reshape(-1, *[1] * (len(shape) - 1))
    fits = exposure.dim() == len(shape) and all(
        own in (1, wanted) for own, wanted in zip(exposure.shape, shape, strict=True)
    )
    if len(given) > 1 or not fits or len(exposure) != shape[0]:
        raise ValueError(
            f"for counts of shape {shape}, the exposure must be one tensor of shape (batch,), "
            "(batch, 1) or the shape of the counts; got "
            f"{count_of(len(given), 'tensor')} of shapes {[tuple(part.shape) for part in given]}: "
            "call model(y, exposure)"
        )
    if not capturing() and not bool((exposure > 0).all()):
        raise ValueError(
            f"every exposure must be positive; got {float(exposure.min()):g} as the smallest: "
            "leave out rows without exposure"
        )
    return exposure


def _start_of_rate(y: Tensor, given: tuple[Tensor, ...]) -> Tensor:
    """Returns each column's log rate, with half a count added so that the log is finite."""
    observed = ~y.isnan()
    exposure = _exposure(given, tuple(y.shape)).to(y) if given else y.new_ones(())
    total = (y.nan_to_num(nan=0.0).sum(dim=0) + 0.5).log()
    watched = (observed * exposure).sum(dim=0).log()
    return (total - watched).nan_to_num(posinf=0.0)


def _inverse_dispersion(
    y: Float[Tensor, "batch *datum"], explained: Float[Tensor, "*datum"] | float = 0.0
) -> Float[Tensor, "*datum"]:
    """Solves variance = mean + mean^2 (1 / r + v) for r in each column; clamps r to [0.01, 100].

    Here v is the part of the variance of the log rate that z explains. It is computed from
    `explained`, the part of the variance of log(1 + y) that z explains: `explained` is divided by
    the squared derivative of log(1 + y) with respect to log y.
    """
    mean, variance = column_means(y).clamp(min=1e-3), column_spreads(y).square()
    of_log_rate = explained * ((1 + mean) / mean).square()
    return 1 / ((variance - mean) / mean.square() - of_log_rate).clamp(1e-2, 1e2)


class _Counts(Features):
    """Distributions of counts; the first parameter is the log mean."""

    values = constraints.nonnegative_integer

    @property
    def mean(self) -> Tensor:
        """Returns the mean of each count."""
        return self.parameters[0].exp()


def _at_least_one(value: Tensor, like: Tensor) -> Tensor:
    """Returns counts with 1 in place of 0, as floats even if they are given as integers."""
    count = value if value.is_floating_point() else value.to(like.dtype)
    return count.clamp(min=0).where(value > 0, torch.ones_like(count))


class PoissonFeatures(_Counts):
    """Poisson distributions, parametrized by the log mean."""

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Returns the log probability: its maximum over the mean, minus half the deviance.

        With the mean :math:`\mu` and :math:`t = \log (\mu / y)`, half the deviance is
        :math:`y (e^t - 1 - t)`. At :math:`y = 0` the log probability is :math:`-\mu`.
        """
        (log_mean,) = self.parameters
        count = _at_least_one(value, log_mean)
        ratio = log_mean - count.log()
        half_deviance = count * (ratio.expm1() - ratio)
        some = -half_deviance - stirling_error(count) - count.log() / 2 - HALF_LOG_2_PI
        return torch.where(value > 0, some, -log_mean.exp())

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws of the counts, as floats."""
        with torch.no_grad():
            return torch.poisson(self.mean.expand(self._extended_shape(sample_shape)))


class OfCounts(Likelihood):
    """The base of likelihoods of counts, which can take an exposure besides the data."""

    takes = 1

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses values that are negative or not whole numbers."""
        check_range(
            y, low=0, whole=True, likelihood=type(self).__name__, names=names,
            remedy="use LogNormal for positive amounts, or Gaussian for any real numbers",
        )  # fmt: skip


@registered()
class Poisson(OfCounts):
    r"""Counts whose variance equals their mean.

    .. math:: \log p(y \mid z) = \sum_d y_d \log \mu_d - \mu_d - \log y_d!,
        \qquad \mu_d = t e^{\eta_d(z)}

    with an optional exposure t: see :mod:`pyro_vae.likelihoods.counts`.

    Raises:
        ValueError: When called, if an exposure is not positive or has the wrong shape.

    Example:
        >>> Poisson()(torch.zeros(1, 1), torch.tensor([2.0])).log_prob(torch.zeros(1, 1))
        tensor([-2.])
    """

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Returns a Poisson distribution for each feature."""
        return PoissonFeatures(_log_mean(output, given))

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the log rate of each column."""
        return _start_of_rate(y, given)


@registered()
class LearnedDispersion(Learned):
    r"""A learned inverse dispersion, :math:`r = f + e^{s}`, with floor f and a real parameter s.

    Arguments:
        shape: `()` for one value that all features share, or the shape of a datum for one value per
            feature.
        initial: Initial value. With a large value the counts are close to Poisson.
        floor: Lower bound of the inverse dispersion.

    Raises:
        ValueError: Unless `0 <= floor < initial` and both are finite.
    """

    @torch.no_grad()
    def set(self, value: Float[Tensor, "*datum"]) -> None:
        """Sets r from one value per feature; a shared r is set to the mean of these values."""
        shared = value.numel() / self.raw.numel()
        own = value if shared <= 1 else value.sum_to_size(self.shape) / shared
        self.raw.copy_((own - self.floor).clamp(min=1e-2).log().reshape(self.shape))


@registered()
class DecodedDispersion(torch.nn.Module):
    """A dispersion that depends on z: the second decoder output of each feature is log r."""

    outputs = 1


class NegativeBinomialFeatures(_Counts):
    """Negative binomials, parametrized by the log mean and the inverse dispersion."""

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Returns the log probability, from the deviance and the remainder of Stirling's formula.

        With the mean :math:`\mu`, the inverse dispersion r and :math:`t = \log(\mu / y)`, the
        deviance is :math:`(r + y) \log(1 + \frac{y}{r + y} (e^t - 1)) - y t`, which is the same as
        :math:`(r + y) \log(1 + \frac{r}{r + y} (e^{-t} - 1)) + r t`. The first form is accurate
        where y < r, and the second form where y > r.
        """
        log_mean, r = self.parameters
        count = _at_least_one(value, log_mean)
        total, ratio = r + count, log_mean - count.log()
        # Each form is set to 0 where the other form is used: its gradient can be infinite there.
        less = count < r
        few, many = ratio.where(less, 0 * ratio), ratio.where(~less, 0 * ratio)
        deviance = total * (count / total * few.expm1()).log1p() - count * few
        deviance = deviance + total * (r / total * (-many).expm1()).log1p() + r * many
        left = stirling_error(total) - stirling_error(r) - stirling_error(count)
        some = left - deviance + (r.log() - count.log() - total.log()) / 2 - HALF_LOG_2_PI
        return torch.where(value > 0, some, -r * (log_mean.exp() / r).log1p())

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Returns Poisson draws whose rates are drawn from gamma distributions."""
        with torch.no_grad():
            log_mean, r = (
                part.expand(self._extended_shape(sample_shape)) for part in self.parameters
            )
            return torch.poisson(torch._standard_gamma(r) * (log_mean.exp() / r))


@registered()
class NegativeBinomial(OfCounts):
    r"""Overdispersed counts: the variance is :math:`\mu + \mu^2 / r`.

    .. math:: p(y_d \mid z) = \frac{\Gamma(y_d + r)}{\Gamma(r) \, y_d!}
        \left(\frac{r}{r + \mu_d}\right)^{r} \left(\frac{\mu_d}{r + \mu_d}\right)^{y_d},
        \qquad \mu_d = t e^{\eta_d(z)}

    with an optional exposure t: see :mod:`pyro_vae.likelihoods.counts`. The negative binomial is a
    Poisson whose rate has a gamma distribution of shape r.

    Arguments:
        inverse_dispersion: The parameter r: a positive number, a :class:`LearnedDispersion`, or a
            :class:`DecodedDispersion`, for which the decoder gives two numbers per feature.

    Raises:
        ValueError: If the inverse dispersion is a number that is not positive and finite; when
            called, if an exposure is not positive or has the wrong shape.

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2

    Example:
        >>> NegativeBinomial(1.0)(torch.zeros(1, 1)).log_prob(torch.ones(1, 1)).exp()
        tensor([0.2500])
    """

    def __init__(
        self, inverse_dispersion: float | int | LearnedDispersion | DecodedDispersion = 1.0
    ) -> None:
        super().__init__()
        if isinstance(inverse_dispersion, int | float):
            if not 0 < inverse_dispersion < math.inf:
                raise ValueError(
                    f"`inverse_dispersion` must be positive and finite; got {inverse_dispersion}"
                )
            inverse_dispersion = float(inverse_dispersion)
        self.inverse_dispersion = inverse_dispersion

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """The number of decoder outputs per feature: two if the dispersion depends on z."""
        return 2 if isinstance(self.inverse_dispersion, DecodedDispersion) else 1

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Returns a negative binomial for each feature."""
        dispersion = self.inverse_dispersion
        if isinstance(dispersion, DecodedDispersion):
            log_rate, log_r = halves(output, "a dispersion from the decoder")
            return NegativeBinomialFeatures(
                _log_mean(log_rate, given), soft_limit(log_r, LOG_LIMIT).exp()
            )
        r = dispersion() if isinstance(dispersion, Learned) else output.new_tensor(dispersion)
        return NegativeBinomialFeatures(_log_mean(output, given), r)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns each column's log rate, followed by each column's log r if r is decoded."""
        log_rate = _start_of_rate(y, given)
        if self.outputs == 1:
            return log_rate
        return torch.cat([log_rate, _inverse_dispersion(y).log()])

    def start_noise(self, sd: Float[Tensor, "*datum"], y: Float[Tensor, "batch *datum"]) -> None:
        """Sets a learned inverse dispersion from the variance that z does not explain."""
        if isinstance(self.inverse_dispersion, LearnedDispersion):
            logs = column_spreads(y.clamp(min=0).log1p()).square()
            self.inverse_dispersion.set(_inverse_dispersion(y, (logs - sd.square()).clamp(min=0)))


class ZeroInflatedFeatures(Features):
    """Distributions of counts with extra zeros; a gate gives the probability of an extra zero.

    Arguments:
        counts: Distributions of the counts without the extra zeros.
        gate: Logits of the probability of an extra zero.
    """

    values = constraints.nonnegative_integer

    def __init__(self, counts: Distribution, gate: Tensor) -> None:
        super().__init__(gate)
        self.counts = counts

    def expand(self, batch_shape: Size, _instance: object = None) -> "ZeroInflatedFeatures":
        """Returns the same distributions with more batch dimensions."""
        gate = self.parameters[0].expand(batch_shape)
        return ZeroInflatedFeatures(self.counts.expand(batch_shape), gate)

    @property
    def mean(self) -> Tensor:
        """Returns the mean of each count, extra zeros included."""
        return self.counts.mean * (-self.parameters[0]).sigmoid()

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability; a zero can come from the gate or from the counts."""
        (gate,) = self.parameters
        counted = self.counts.log_prob(value) + logsigmoid(-gate)
        return torch.where(value > 0, counted, torch.logaddexp(logsigmoid(gate), counted))

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws of the counts, as floats."""
        counted: Tensor = self.counts.sample(sample_shape)
        closed = torch.rand_like(counted) < self.parameters[0].sigmoid()
        return counted.masked_fill(closed, 0.0)


@registered()
class ZeroInflated(OfCounts):
    r"""Counts with more zeros than a Poisson or a negative binomial distribution gives.

    .. math:: p(y_d \mid z) = \pi_d(z) \, [y_d = 0] + (1 - \pi_d(z)) \, p_c(y_d \mid z)

    The decoder gives the parameters of the counts and then, for every feature, the logit of
    :math:`\pi`. An exposure, if given, multiplies the mean of :math:`p_c` and leaves :math:`\pi`
    unchanged.

    Arguments:
        counts: :class:`Poisson` or :class:`NegativeBinomial`.

    Example:
        >>> ZeroInflated(Poisson())(torch.zeros(1, 2)).log_prob(torch.zeros(1, 1)).exp()
        tensor([0.6839])
    """

    def __init__(self, counts: Poisson | NegativeBinomial) -> None:
        super().__init__()
        self.counts = counts

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """The number of decoder outputs per feature: those of `counts`, plus the logit of pi."""
        return self.counts.outputs + 1

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Returns a zero-inflated distribution for each feature."""
        of_counts, gate = self._parts(output)
        return ZeroInflatedFeatures(self.counts.distribution(of_counts, *given), gate)

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Splits the decoder's output into the part for the counts and the logits of the gate."""
        require_outputs(output, self.outputs, "zero-inflated counts")
        size = output.shape[1] // self.outputs
        return output[:, :-size], output[:, -size:]

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns initial outputs for the counts, then the logit of the share of extra zeros."""
        start = self.counts.start(y, *given)
        with torch.no_grad():
            of_counts = self.counts.distribution(start[None].expand(len(y), *start.shape), *given)
            zeros = of_counts.log_prob(torch.zeros_like(y)).exp().mean(dim=0)
        excess = (column_shares(y == 0, y) - zeros) / (1 - zeros).clamp(min=1e-6)
        return torch.cat([start, excess.clamp(0.01, 0.99).logit()])
