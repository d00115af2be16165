r"""A model of missingness: whether an entry is missing may depend on the value of this entry.

Other likelihoods leave missing entries out. This is right if entries are missing at random, that
is, if missingness depends only on observed entries. Here the mask :math:`s_d` (1 where an entry
was observed, 0 where it is missing) has a likelihood too: a logistic regression of the mask on the
entry. With the observed features :math:`O` and the missing features :math:`M`,

.. math:: p(y_O, s \mid z) = \prod_{d \in O} p(y_d \mid z) \, \sigma(a_d + b_d y_d)
    \prod_{d \in M} \int p(y_d \mid z) \, \sigma(-a_d - b_d y_d) \, dy_d .

Ipsen, Mattei and Frellsen, who proposed this model, sample the missing entries. If features
are independent given z, no draws are needed, because each integral has one dimension. For normal
features the integrals are computed by quadrature; for Bernoulli features, each is a sum of two
terms. For log-normal features, the regression is on :math:`\log y_d`, which is normal. With
:math:`b = 0` the mask carries no information about the data, and all other results are the same as
without a model of the mask.
"""

import math
from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from .._types import Distribution, Size
from ..programs import PartlyObserved
from ..registry import registered
from .base import Likelihood
from .mixed import MixedFeatures
from .special import as_shape

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)  # error 1e-5 at a slope of 3 per sd
_UNIT = 10.0  # of log odds per raw parameter: Adam's steps are too small for numbers of order 1
_TRIES = 64  # draws for a missing entry; the first draw that would be missing is used


class SelfMasked(PartlyObserved):
    r"""Independent features, each of which may be missing because of its own value.

    The log density has a term for each entry. If the entry y is observed, the term is the log
    density of y plus :math:`\log \sigma(a + b y)`. If the entry is nan, the term is the log
    probability that it is missing, with y integrated out. For log-normal features, log y takes the
    place of y in the regression. In your own programs, use this class in place of
    :class:`pyro_vae.PartlyObserved`.

    Arguments:
        features: Distributions of the features, with no event dimension. Entries of columns that
            are neither normal, log-normal nor Bernoulli are treated as missing at random.
        intercept: :math:`a`, the log odds that an entry is observed if y (or log y) is 0;
            broadcasts with a datum.
        slope: :math:`b`, the change of these log odds per unit of y (or of log y).
        placeholder: A value in the support of the features, used in place of nan.

    Example:
        >>> features = SelfMasked(dist.Normal(torch.zeros(1), 1.0), torch.zeros(1), torch.ones(1))
        >>> features.log_prob(torch.tensor([[float("nan")], [0.0]])).squeeze()
        tensor([-0.6931, -1.6121])
    """

    def __init__(
        self,
        features: Distribution,
        intercept: Tensor,
        slope: Tensor,
        placeholder: Tensor | float = 0.0,
    ) -> None:
        super().__init__(features, placeholder)
        self.intercept, self.slope = intercept, slope

    def expand(self, batch_shape: Size, _instance: object = None) -> "SelfMasked":
        """Returns the same distributions with more batch dimensions."""
        features = self.features.expand(batch_shape)
        return SelfMasked(features, self.intercept, self.slope, self.placeholder)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the joint log density of each feature and its mask."""
        missing = value.isnan()
        filled = torch.where(missing, torch.as_tensor(self.placeholder).to(value), value)
        log_observed = self.log_observed(filled)
        log_missing = _by_parts(self.features, _log_missing, filled, self.intercept, self.slope)
        return torch.where(missing, log_missing, self.features.log_prob(filled) + log_observed)

    def log_observed(self, value: Tensor) -> Tensor:
        r"""Returns :math:`\log \sigma(a + b y)` of each entry; 0 if missingness is not modelled."""
        return _by_parts(self.features, _log_observed, value, self.intercept, self.slope)

    def sample_missing(self) -> Tensor:
        r"""Returns a draw of each feature given that it is missing.

        The density of the draw is proportional to :math:`p(y) \sigma(-a - b y)`. Rejection sampling
        is exact if one of 64 draws from p(y) is accepted. If none is accepted, one of the 64 draws
        is chosen with a probability in proportion to :math:`\sigma(-a - b y)`.
        """
        draws = self.features.sample((_TRIES,))
        log_odds = _by_parts(self.features, _log_observed, draws, -self.intercept, -self.slope)
        taken = torch.rand_like(log_odds).log() < log_odds
        gumbel = log_odds - (-torch.rand_like(log_odds).log()).log()
        first = torch.where(taken.any(dim=0), taken.to(torch.int8).argmax(dim=0), gumbel.argmax(0))
        return draws.gather(0, first[None])[0]


def _by_parts(
    features: Distribution,
    answer: Callable[[Distribution, Tensor, Tensor, Tensor], Tensor],
    value: Tensor,
    a: Tensor,
    b: Tensor,
) -> Tensor:
    """Applies `answer` to all features, or separately to each group of a `MixedFeatures`.

    Log-normal features are replaced by their logarithms, which are normal.
    """
    if isinstance(features, dist.LogNormal):
        limits = torch.finfo(value.dtype)  # draws can round to 0 or infinity
        logs = value.clamp(limits.tiny, limits.max).log()
        normals = dist.Normal(features.loc, features.scale, validate_args=False)
        return _by_parts(normals, answer, logs, a, b)
    if not isinstance(features, MixedFeatures):
        return answer(features, value, a, b).expand(value.shape)
    width = value.shape[-1:]
    a, b = a.expand(width), b.expand(width)
    pairs = zip(features.parts, features.columns, strict=True)
    return features.joined(
        [_by_parts(part, answer, value[..., at], a[at], b[at]) for part, at in pairs]
    )


def _log_observed(features: Distribution, value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    modelled = isinstance(features, dist.Normal | dist.Bernoulli)
    return logsigmoid(a + b * value) if modelled else torch.zeros_like(value)


def _log_missing(features: Distribution, value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Returns the log probability that each entry is missing, with its value integrated out."""
    if isinstance(features, dist.Bernoulli):
        logits = features.logits
        return torch.logaddexp(
            logsigmoid(-logits) + logsigmoid(-a), logsigmoid(logits) + logsigmoid(-a - b)
        )
    if not isinstance(features, dist.Normal):
        return torch.zeros_like(value)
    loc, slope = features.loc, b * features.scale
    nodes = [
        logsigmoid(-(a + b * loc) - slope * float(node))
        + math.log(float(weight) / math.sqrt(2 * math.pi))
        for node, weight in zip(_NODES, _WEIGHTS, strict=True)
    ]
    return torch.stack(torch.broadcast_tensors(*nodes)).logsumexp(dim=0)


@registered()
class SelfMasking(Likelihood):
    r"""A likelihood in which an entry may be missing because of its own value.

    .. math:: p(s_d = 1 \mid y_d) = \sigma(a_d + b_d y_d)

    Here the mask :math:`s_d` is 1 if entry d was observed and 0 if it is missing. Each column has a
    learned intercept :math:`a_d` and a learned slope :math:`b_d`. For columns with a
    :class:`LogNormal` likelihood, the regression is on :math:`\log y_d`. Entries of columns with
    other likelihoods than `Gaussian`, `LogNormal` and `Bernoulli`, such as counts and categories,
    are treated as missing at random. Evidence, training and imputation include the mask: log p is
    the joint log density of the observed values *and* of the mask.

    Observed entries alone cannot show whether missingness depends on the missing values. The
    likelihood of the features predicts the missing values, so the slopes are only as good as that
    likelihood. `pv.marginal` and `pv.conditional` refuse a model with `SelfMasking`: they leave
    columns out of the density, and the model would take these columns to be missing because of
    their values.

    Arguments:
        likelihood: Likelihood of the features.
        shape: Shape of a datum, for one intercept and one slope per feature; `()` if all features
            share one intercept and one slope.

    References:
        | not-MIWAE: Deep Generative Modelling with Missing not at Random Data (Ipsen, Mattei &
          Frellsen, 2021)
        | https://arxiv.org/abs/2006.12871

    Example:
        >>> from pyro_vae.likelihoods import Gaussian
        >>> likelihood = SelfMasking(Gaussian(), (2,))
        >>> likelihood(torch.zeros(1, 2)).log_prob(torch.tensor([[0.0, float("nan")]])).detach()
        tensor([-2.5455])
    """

    def __init__(self, likelihood: Likelihood, shape: tuple[int, ...] | int = ()) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.shape = as_shape(shape)
        self.raw_intercept = nn.Parameter(torch.full(self.shape, 1 / _UNIT))
        self.raw_slope = nn.Parameter(torch.zeros(self.shape))

    @property
    def intercept(self) -> Tensor:
        """Returns the log odds that a value of 0 (under :class:`LogNormal`, of 1) is observed."""
        return _UNIT * self.raw_intercept

    @property
    def slope(self) -> Tensor:
        """Returns the change of the log odds of being observed, per unit of the entry.

        The unit is that of the data as the model sees them: one standard deviation if the data were
        standardized. Under :class:`LogNormal` the unit is a factor of e.
        """
        return _UNIT * self.raw_slope

    any_units = False  # the slope is per unit of the data

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """The number of decoder outputs per feature, which is that of the features' likelihood."""
        return self.likelihood.outputs

    @property
    def takes(self) -> int:  # type: ignore[override]
        """The number of tensors that the features' likelihood takes besides the data."""
        return self.likelihood.takes

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the decoder's output for the features' likelihood."""
        return self.likelihood.output_shape(shape)

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Returns the distributions of the features, without the mask."""
        return self.likelihood.distribution(output, *given)

    def mean(
        self, output: Float[Tensor, "batch *output"], *given: Tensor
    ) -> Float[Tensor, "batch *datum"]:
        """Returns the mean of p(y | z)."""
        return self.likelihood.mean(output, *given)

    def forward(self, output: Float[Tensor, "batch *output"], *given: Tensor) -> Distribution:
        """Returns the joint distribution of a datum and its mask, given z."""
        self.check_given(given)
        features = self.likelihood.distribution(output, *given)
        fill = self.likelihood.fill(output)
        masked = SelfMasked(features, self.intercept, self.slope, fill)
        return masked.to_event(len(masked.batch_shape) - 1)

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses data that the features' likelihood refuses."""
        self.likelihood.check(y, names)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the initial decoder output of the features' likelihood."""
        return self.likelihood.start(y, *given)

    def start_noise(self, sd: Float[Tensor, "*datum"], y: Float[Tensor, "batch *datum"]) -> None:
        """Sets the learned noise of the features' likelihood."""
        self.likelihood.start_noise(sd, y)
