r"""Estimates the ELBO and log p(y) from log densities that another package computed.

A package in any language can print two numbers for each draw :math:`z_{kn} \sim q(z \mid y_n)`:
:math:`\log p(y_n, z_{kn})` and :math:`\log q(z_{kn} \mid y_n)`. Their difference is the log weight,
and importance sampling needs nothing else. The mean log weight is the ELBO, the logarithm of the
mean weight estimates log p(y), and the tail of the weights shows whether the estimate can be
trusted.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import stats
from .._types import Estimate
from ..results import Doubts, PerDatum, either, with_errors
from ..stats.checks import require_legal
from .importance import log_marginal_of
from .results import LogMarginal, Weights, mean_with_doubts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array: TypeAlias = Tensor | NDArray[np.floating[Any]]


@dataclass(frozen=True, repr=False)
class Audit(PerDatum):
    r"""ELBO, log p(y) and their difference for every datum, from another package's weights.

    Arguments:
        elbo: Mean log weight, `(batch,)`, in nats.
        log_marginal: Logarithm of the mean weight, in nats, with its error and verdict.
        gap: :math:`\log p(y_n) - \mathrm{ELBO}_n`, in nats. Both terms use the same draws, so their
            errors are positively correlated. The gap's error ignores the correlation, so it tends
            to be too large.
        elbo_doubts: Reasons not to trust the ELBOs of some data, each with a mask.
    """

    elbo: Estimate
    log_marginal: LogMarginal
    gap: Estimate
    elbo_doubts: Doubts = field(default_factory=dict)

    _averaged = "mean log p(y)"

    @property
    def value(self) -> Tensor:
        """Estimated log p(y) of every datum, in nats."""
        return self.log_marginal.value

    @property
    def error(self) -> Tensor:
        """Standard error of log p(y) of every datum, in nats."""
        return self.log_marginal.error

    @property
    def doubts(self) -> Doubts:
        """Reasons to doubt the estimates of log p(y) or ELBO, each with a mask of the data."""
        return either(self.log_marginal.doubts, self.elbo_doubts)

    @property
    def total(self) -> Estimate:
        """Log p(y) of the whole data set, in nats: the sum over data, which are independent."""
        return self.log_marginal.total

    def columns(self) -> dict[str, Tensor]:
        """Returns log p(y), the ELBO, the gap, their errors, and the diagnostics, by name."""
        parts = with_errors({"elbo": self.elbo, "gap": self.gap})
        return {**self.log_marginal.columns(), **parts}

    def summary(self) -> str:
        """Returns a text with the ELBO, the gap, log p(y) and, last, the verdict."""
        elbo, gap = map(stats.mean_over_data, (self.elbo, self.gap))
        lines = [
            f"ELBO = {elbo:.3f} nats per datum, {gap:.3f} below log p(y)",
            self.log_marginal.summary(),
        ]
        if not self.reliable.equal(self.log_marginal.reliable):
            lines.append(f"ELBO and log p(y) together: {self.trust()}")
        return "\n".join(lines)

    def plot(self) -> "Axes":
        """Plots the mean ELBO and the mean log p(y) with their errors; requires matplotlib."""
        from ..plots import plot_comparison

        means = {"ELBO": stats.mean_over_data(self.elbo), "log p": self.log_marginal.mean}
        return plot_comparison({"": means})


def audit(log_joint: Array, log_guide: Array) -> Audit:
    r"""Estimates ELBO and log p(y) from log densities that another package computed at draws of q.

    .. math:: \log w_{kn} = \log p(y_n, z_{kn}) - \log q(z_{kn} \mid y_n), \qquad
        z_{kn} \sim q(z \mid y_n) \text{ independently}

    The draws must be independent and come from the q of `log_guide`. The two densities must include
    all constants. A missing constant shifts ELBO and log p(y) equally, and no diagnostic shows
    that.

    Arguments:
        log_joint: :math:`\log p(y_n, z_{kn})`, `(particles, batch)`, in nats.
        log_guide: :math:`\log q(z_{kn} \mid y_n)`, `(particles, batch)`, in nats.

    Returns:
        ELBO, log p(y) with its error and verdict, and the gap, each `(batch,)`, in nats.

    Raises:
        ValueError: If the shapes differ or are not `(particles, batch)`, if there are fewer than
            two draws, or if a log weight is nan or plus infinity.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> draws = torch.randn(2000, 3)
        >>> log_guide = -draws.square() / 2
        >>> audit(log_guide - 5.0, log_guide).value.round(decimals=3)
        tensor([-5., -5., -5.], dtype=torch.float64)
    """
    given = (torch.as_tensor(part) for part in (log_joint, log_guide))
    joint, guide = (part.detach().cpu().double() for part in given)
    if joint.shape != guide.shape or joint.ndim != 2 or joint.shape[1] == 0:
        raise ValueError(
            "`log_joint` and `log_guide` must have the same shape (particles, batch), which is "
            f"(particles, 1) for one datum; got {tuple(joint.shape)} and {tuple(guide.shape)}"
        )
    require_legal(joint - guide)
    marginal = log_marginal_of(Weights(torch.zeros_like(joint), joint, guide))
    elbo, doubts = mean_with_doubts(joint - guide)
    gap = Estimate(marginal.value - elbo.value, marginal.error.hypot(elbo.error))
    return Audit(elbo, marginal, gap, doubts)
