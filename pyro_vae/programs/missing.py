r"""Missing data: an entry that is nan was not observed, and is left out of the density.

A likelihood that factorizes over features needs no imputation: the marginal density of the observed
entries is the product of their factors,
:math:`\log p(y_O \mid z) = \sum_{d \in O} \log p(y_d \mid z)`.
"""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .._types import Distribution
from .modes import known_missing


class PartlyObserved(dist.TorchDistribution):
    r"""Independent features, some of which may be missing: nan has a log density of zero.

    .. math:: \log p(y_O) = \sum_{d \in O} \log p(y_d), \qquad
        O = \{d : y_d \text{ is not nan}\}

    In your own programs, wrap the distribution of the features in `PartlyObserved`, then call
    `to_event`. Missing entries of the data must be nan; draws have no missing entries.

    Arguments:
        features: Distributions of the features, with no event dimension.
        placeholder: A value in the support of the features: a number, or a tensor that broadcasts
            with the data. For missing entries, the density is evaluated at this value, then
            discarded.

    Raises:
        ValueError: If the distribution has event dimensions, because its density need not factorize
            over the features.

    References:
        | Handling Incomplete Heterogeneous Data using VAEs (Nazabal et al., 2020)
        | https://arxiv.org/abs/1807.03653

    Example:
        >>> import torch, pyro.distributions as dist
        >>> features = PartlyObserved(dist.Normal(torch.zeros(2), 1.0)).to_event(1)
        >>> features.log_prob(torch.tensor([[0.0, float("nan")], [0.0, 0.0]]))
        tensor([-0.9189, -1.8379])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # the features check their own parameters

    def __init__(self, features: Distribution, placeholder: Tensor | float = 0.0) -> None:
        if features.event_shape:
            raise ValueError(
                "`features` must have an empty event shape, so that each feature is a batch "
                f"entry; got event shape {tuple(features.event_shape)}: write "
                "PartlyObserved(features).to_event(...), not "
                "PartlyObserved(features.to_event(...))"
            )
        self.features, self.placeholder = features, placeholder
        super().__init__(features.batch_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws carry a gradient."""
        return bool(self.features.has_rsample)

    @property
    def support(self) -> constraints.Constraint | None:
        """Support of the features' distribution."""
        return self.features.support

    @property
    def mean(self) -> Tensor:
        """Mean of the features' distribution."""
        return self.features.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PartlyObserved":
        """Returns this distribution with expanded batch dimensions."""
        return PartlyObserved(self.features.expand(batch_shape), self.placeholder)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Returns draws of all features."""
        return self.features.sample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Returns draws of all features, with a gradient."""
        return self.features.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each feature, zero where the feature is missing."""
        if not has_missing(value):
            return self.features.log_prob(value)
        missing = value.isnan()
        filled = torch.where(
            missing,
            torch.as_tensor(self.placeholder, dtype=value.dtype, device=value.device),
            value,
        )
        log_prob = self.features.log_prob(filled)
        return log_prob.masked_fill(missing, 0.0)

    def sample_missing(self) -> Tensor | None:
        """Draws features, given that they are missing; `None` if missingness is uninformative.

        This class returns `None`. A subclass may model why entries are missing.
        """
        return None

    def log_observed(self, value: Tensor) -> Tensor | None:
        """Log probability that each entry is observed, given its value.

        This class returns `None`: missingness is uninformative. A subclass may model missingness;
        where it does not, the log probability must be exactly 0.
        """
        return None


def unwrapped(distribution: Distribution) -> Distribution:
    """Returns the distribution of single features, without `Independent` wrappers."""
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    return distribution


def sample_missing(distribution: Distribution) -> Tensor | None:
    """Draws features, given that they are missing; `None` if missingness is uninformative."""
    features = unwrapped(distribution)
    return features.sample_missing() if isinstance(features, PartlyObserved) else None


def with_missing(distribution: Distribution, value: Tensor, like: Tensor) -> Tensor:
    """Replaces drawn values by nan where entries are missing.

    If the distribution models which entries are missing, these are drawn, too. Otherwise the same
    entries as in `like` are missing.
    """
    features = unwrapped(distribution)
    modelled = features.log_observed(value) if isinstance(features, PartlyObserved) else None
    gone = like.isnan() if has_missing(like) else None
    if modelled is not None:
        drawn = torch.rand_like(modelled).log() > modelled
        gone = drawn if gone is None else torch.where(modelled < 0, drawn, gone)
    return value if gone is None else value.masked_fill(gone, torch.nan)


def has_missing(value: Tensor) -> bool:
    """Whether any entry of a tensor is nan."""
    known = known_missing()
    if known is not None:
        return known
    if not value.is_floating_point() or not bool(value.sum().isnan()):  # one pass, no copy
        return False
    return bool(value.isnan().any())  # inf - inf is nan, too


def observed_features(features: Distribution, value: Tensor) -> Distribution:
    """Removes a :class:`PartlyObserved` wrapper from features if no entry of `value` is nan."""
    # Only this type: a subclass may have a density of missing entries.
    if type(features) is PartlyObserved and not has_missing(value):
        return features.features
    return features
