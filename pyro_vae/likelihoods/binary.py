"""Likelihoods of features that are zero or one."""

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor

from .._types import Distribution
from ..data import check_range
from ..registry import registered
from .base import Likelihood
from .starting import column_means


@registered()
class Bernoulli(Likelihood):
    r"""Bernoulli features, :math:`\log p(y \mid z) = \sum_d y_d \eta_d - \log(1 + e^{\eta_d})`.

    The decoder gives the logits :math:`\eta`; probabilities from a sigmoid saturate in float32.
    Data may be grey, in [0, 1], as is common for images, but the value is a log probability only
    for binary data: state the binarization beside every number.

    Example:
        >>> import torch
        >>> Bernoulli()(torch.zeros(3, 2)).log_prob(torch.ones(3, 2))
        tensor([-1.3863, -1.3863, -1.3863])
    """

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Bernoulli distributions with these logits."""
        # Validation would refuse grey values; `check` refuses what lies outside [0, 1].
        return dist.Bernoulli(logits=output, validate_args=False)

    def mean(
        self, output: Float[Tensor, "batch *output"], *given: Tensor
    ) -> Float[Tensor, "batch *datum"]:
        """Probability of a one."""
        return output.sigmoid()

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses values outside [0, 1]."""
        check_range(y, low=0.0, high=1.0, likelihood="Bernoulli", names=names)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Logits of the means, drawn in by half a one and half a zero."""
        observed = (~y.isnan()).sum(dim=0)
        return ((column_means(y) * observed + 0.5) / (observed + 1)).logit()
