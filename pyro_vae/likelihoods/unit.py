"""Likelihoods of features between 0 and 1: bits, grey levels, shares, rates."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .._types import Distribution, Size
from ..data.checks import check_range
from ..registry import registered
from .base import Features, Likelihood, column_means, column_spreads, inverse_of
from .special import HALF_LOG_2_PI, halves, soft_limit, stirling_error


@registered()
class Bernoulli(Likelihood):
    r"""Bernoulli features, :math:`\log p(y \mid z) = \sum_d y_d \eta_d - \log(1 + e^{\eta_d})`.

    The decoder gives the logits :math:`\eta`, since probabilities from a sigmoid saturate in
    float32. Data can be grey levels in [0, 1], as is common for images, but only for binary data is
    the result a log probability. If you report results, state how the data were binarized.

    Example:
        >>> import torch
        >>> Bernoulli()(torch.zeros(3, 2)).log_prob(torch.ones(3, 2))
        tensor([-1.3863, -1.3863, -1.3863])
    """

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Returns Bernoulli distributions whose logits are the decoder's outputs."""
        # Validation would refuse grey values; `check` refuses what lies outside [0, 1].
        return dist.Bernoulli(logits=output, validate_args=False)

    def mean(
        self, output: Float[Tensor, "batch *output"], *given: Tensor
    ) -> Float[Tensor, "batch *datum"]:
        """Returns the probability of a one."""
        return output.sigmoid()

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses values outside [0, 1]."""
        check_range(y, low=0.0, high=1.0, likelihood="Bernoulli", names=names)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the logit of each column's mean, smoothed with half a one and half a zero."""
        observed = (~y.isnan()).sum(dim=0)
        return ((column_means(y) * observed + 0.5) / (observed + 1)).logit()


_NEAR = 0.5  # for |x| up to this, the series below are exact to 1e-13
_LOG_SINHC = (1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600)  # of a^2, a^4, ...
_LANGEVIN = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)  # of a, a^3, ...
_LOGIT_LIMIT, _CONCENTRATION_LIMIT = 15.0, 12.0  # limits of a Beta's logit mean and log phi


def _even_series(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Returns the sum of the coefficients times x^2, x^4, x^6, and so on."""
    total, square = torch.zeros_like(x), x.square()
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * square
    return total


class ContinuousBernoulliFeatures(Features):
    """Continuous Bernoulli distributions, parametrized by the logit."""

    values = constraints.unit_interval

    @property
    def mean(self) -> Tensor:
        r"""Returns :math:`1 / (1 - e^{-\eta}) - 1 / \eta` for logit :math:`\eta`; 1/2 at 0."""
        (logits,) = self.parameters
        near, far = logits.clamp(-_NEAR, _NEAR), logits.abs().clamp(min=_NEAR)
        series = 0.5 + near * (_LANGEVIN[0] + _even_series(_LANGEVIN[1:], near))
        above = -1 / (-far).expm1() - 1 / far
        direct = torch.where(logits > 0, above, 1 - above)
        return torch.where(logits.abs() < _NEAR, series, direct)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Returns :math:`y \eta - \log ((e^\eta - 1) / \eta)` for logit :math:`\eta`.

        With :math:`a = |\eta|` the logarithm of the normalizer is :math:`\max(\eta, 0) + \log((1 -
        e^{-a}) / a)`. For small a, it is computed as :math:`\eta / 2` plus a series in
        :math:`\eta^2`, which, unlike the absolute value, has the right gradient at 0.
        """
        (logits,) = self.parameters
        near, far = logits.clamp(-_NEAR, _NEAR), logits.abs().clamp(min=_NEAR)
        series = near / 2 + _even_series(_LOG_SINHC, near)
        direct = logits.relu() + (-(-far).expm1() / far).log()
        return value * logits - torch.where(logits.abs() < _NEAR, series, direct)

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws, by inverting the distribution function."""
        with torch.no_grad():
            logits = self.parameters[0].expand(self._extended_shape(sample_shape))
            size = logits.abs().clamp(min=1e-20)  # at 0, a uniform draw
            low = -(torch.rand_like(logits) * (-size).expm1()).log1p() / size
            return torch.where(logits > 0, 1 - low, low).clamp(0, 1)


@registered()
class ContinuousBernoulli(Likelihood):
    r"""Features in [0, 1], such as grey images: a Bernoulli that is normalized to a density.

    .. math:: \log p(y \mid z)
        = \sum_d \left[ y_d \eta_d - \log \frac{e^{\eta_d} - 1}{\eta_d} \right]

    The decoder gives the logits :math:`\eta`. The second term makes the density integrate to one.
    In a :class:`Bernoulli` this term is :math:`\log(1 + e^{\eta_d})`, so the result is not a log
    density of grey values.

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders
          (Loaiza-Ganem & Cunningham, 2019)
        | https://arxiv.org/abs/1907.06845

    Example:
        >>> ContinuousBernoulli()(torch.zeros(1, 2)).log_prob(torch.tensor([[0.2, 1.0]]))
        tensor([0.])
    """

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Returns continuous Bernoulli distributions whose logits are the decoder's outputs."""
        return ContinuousBernoulliFeatures(output)

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses values outside [0, 1]."""
        check_range(y, low=0.0, high=1.0, likelihood="ContinuousBernoulli", names=names)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the logit at which the distribution has each column's mean."""
        means = y.nanmean(dim=0).nan_to_num(nan=0.5)
        return inverse_of(
            lambda logits: ContinuousBernoulliFeatures(logits).mean, means, -50.0, 50.0
        )


class BetaFeatures(Features):
    """Beta distributions, parametrized by the logit of the mean and the log concentration."""

    values = constraints.unit_interval

    def _logs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the logs of the mean, of one minus the mean, and of the concentration."""
        logits = soft_limit(self.parameters[0], _LOGIT_LIMIT)
        concentration = soft_limit(self.parameters[1], _CONCENTRATION_LIMIT)
        return logsigmoid(logits), logsigmoid(-logits), concentration

    @property
    def mean(self) -> Tensor:
        """Returns the mean of each feature."""
        return self._logs()[0].exp()

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Returns the log density, computed so that no large terms cancel.

        It is computed from :math:`\phi \mathrm{KL}(m \| y)`, with mean m and concentration
        :math:`\phi`, and from the remainder of Stirling's formula.
        """
        log_mean, log_rest, log_phi = self._logs()
        log_y, log_not_y = value.log(), (-value).log1p()
        log_alpha, log_beta, phi = log_mean + log_phi, log_rest + log_phi, log_phi.exp()
        alpha, beta = log_alpha.exp(), log_beta.exp()
        exponent = alpha * (log_y - log_mean) + beta * (log_not_y - log_rest)
        left = stirling_error(phi) - stirling_error(alpha) - stirling_error(beta)
        return (
            exponent
            + left
            + (log_alpha + log_beta - log_phi) / 2
            - HALF_LOG_2_PI
            - (log_y + log_not_y)
        )

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws, clamped so that rounding cannot make them exactly 0 or 1."""
        with torch.no_grad():
            log_mean, log_rest, log_phi = self._logs()
            alpha, beta = (log_mean + log_phi).exp(), (log_rest + log_phi).exp()
            drawn = torch.distributions.Beta(alpha, beta, validate_args=False).sample(sample_shape)
            kind = torch.finfo(drawn.dtype)
            return drawn.clamp(kind.tiny, 1 - kind.eps / 2)


@registered()
class Beta(Likelihood):
    r"""Features strictly between 0 and 1, such as shares, with a mean and a concentration.

    .. math:: p(y_d \mid z) = \frac{y_d^{m \phi - 1} (1 - y_d)^{(1 - m) \phi - 1}}
        {B(m \phi, (1 - m) \phi)}, \qquad m = \mathrm{logit}^{-1}(\eta_d(z)), \quad
        \phi = e^{\kappa_d(z)}

    The variance is :math:`m (1 - m) / (1 + \phi)`. The decoder gives two numbers per feature, first
    all logits of means and then all logs of concentrations. Beyond +-15 for the logits, and beyond
    +-12 for the logs of concentrations, the parameters grow only logarithmically with the decoder's
    output, so that nothing overflows. If :math:`(1 - m) \phi` is far below 1, some draws would
    round to 1; these draws are set to the largest float below 1.

    References:
        | Beta Regression for Modelling Rates and Proportions (Ferrari & Cribari-Neto, 2004)
        | https://doi.org/10.1080/0266476042000214501

    Example:
        >>> even, log_two = torch.zeros(1, 1), torch.full((1, 1), 2.0).log()
        >>> uniform = Beta()(torch.cat([even, log_two], dim=1))
        >>> round(uniform.log_prob(torch.tensor([[0.3]])).exp().item(), 5)
        1.0
    """

    outputs = 2
    placeholder = 0.5

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Returns a Beta distribution for each feature."""
        return BetaFeatures(*halves(output, "a Beta"))

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses values outside the open interval (0, 1), so 0 and 1 are refused, too."""
        check_range(
            y, low=0.0, high=1.0, inside=True, likelihood="Beta", names=names,
            remedy=(
                "use ContinuousBernoulli for shares of exactly 0 or 1, or move the shares inside "
                "(0, 1), as in (y * (n - 1) + 0.5) / n for n rows"
            ),
        )  # fmt: skip

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the logit of the mean and the log concentration, from each column's moments."""
        mean = y.nanmean(dim=0).nan_to_num(nan=0.5).clamp(1e-3, 1 - 1e-3)
        variance = column_spreads(y).square().clamp(min=1e-6)
        concentration = (mean * (1 - mean) / variance - 1).clamp(0.1, 1e4)
        return torch.cat([mean.logit(), concentration.log()])
