r"""Judges log weights that another program made.

Whatever a package is written in, at draws :math:`z_{kn} \sim q(z \mid y_n)` it can print two
numbers: :math:`\log p(y_n, z_{kn})` and :math:`\log q(z_{kn} \mid y_n)`. All of importance sampling
follows from their difference, the log weight: its mean is the ELBO, the logarithm of the mean
weight estimates log p(y), and the tail of the weights says whether that estimate can be trusted.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import stats
from .._types import Estimate
from ..results import Doubts, PerDatum
from ..stats.checks import require_legal
from .importance import log_marginal_of
from .results import LogMarginal, Weights

Array: TypeAlias = Tensor | NDArray[np.floating[Any]]


@dataclass(frozen=True, repr=False)
class Audit(PerDatum):
    r"""ELBO, log p(y) and the gap between them, per datum, from someone else's weights.

    Arguments:
        elbo: Mean log weight, `(batch,)`, nats.
        log_marginal: Logarithm of the mean weight, with its error and verdict.
        gap: :math:`\log p(y_n) - \mathrm{ELBO}_n`. Both are from the same draws and err in the same
            direction. The error ignores that, so it is too large rather than too small.
    """

    elbo: Estimate
    log_marginal: LogMarginal
    gap: Estimate

    @property
    def value(self) -> Tensor:
        """Log p(y) of every datum."""
        return self.log_marginal.value

    @property
    def error(self) -> Tensor:
        """Standard error of log p(y)."""
        return self.log_marginal.error

    @property
    def doubts(self) -> Doubts:
        """The doubts about log p(y); an ELBO is unbiased however few its draws."""
        return self.log_marginal.doubts

    @property
    def total(self) -> Estimate:
        """Log p of the data set, in nats: a sum, since data are independent."""
        return self.log_marginal.total

    def columns(self) -> dict[str, Tensor]:
        """Both numbers and the gap, with diagnostics of the weights."""
        parts = {"elbo": self.elbo, "gap": self.gap}
        own = {name: part.value for name, part in parts.items()}
        errors = {f"{name}_error": part.error for name, part in parts.items()}
        return {**self.log_marginal.columns(), **own, **errors}

    def summary(self) -> str:
        """ELBO, gap and log p(y), with the verdict last."""
        elbo, gap = map(stats.mean_over_data, (self.elbo, self.gap))
        return (
            f"ELBO = {elbo:.3f} nats per datum, {gap:.3f} below log p(y)\n"
            f"{self.log_marginal.summary()}"
        )

    def plot(self) -> Any:
        """Mean ELBO and log p with their errors; needs matplotlib."""
        from ..plots import plot_comparison

        means = {"ELBO": stats.mean_over_data(self.elbo), "log p": self.log_marginal.mean}
        return plot_comparison({"": means})


def audit(log_joint: Array, log_guide: Array) -> Audit:
    r"""Judges evidence from log densities that any program computed at draws of its own q.

    .. math:: \log w_{kn} = \log p(y_n, z_{kn}) - \log q(z_{kn} \mid y_n), \qquad
        z_{kn} \sim q(z \mid y_n) \text{ independently}

    It assumes that the draws are from this q and independent, and that both densities are complete:
    a constant left out shifts ELBO and log p alike, which no diagnostic here shows.

    Arguments:
        log_joint: :math:`\log p(y_n, z_{kn})`, `(particles, batch)`, nats.
        log_guide: :math:`\log q(z_{kn} \mid y_n)`, of the same shape, nats.

    Returns:
        ELBO, log p(y) with its error and verdict, and the gap, each `(batch,)`.

    Raises:
        ValueError: If the shapes differ or are not `(particles, batch)`, there are fewer than two
            draws, or a log weight is nan or plus infinity.

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
    if joint.shape != guide.shape or joint.ndim != 2:
        raise ValueError(
            "expected log_joint and log_guide of one shape (particles, batch), got "
            f"{tuple(joint.shape)} and {tuple(guide.shape)}; for one datum: (particles, 1)"
        )
    require_legal(joint - guide)
    marginal = log_marginal_of(Weights(torch.zeros_like(joint), joint, guide))
    elbo = stats.mean_estimate(joint - guide)
    gap = Estimate(marginal.value - elbo.value, marginal.error.hypot(elbo.error))
    return Audit(elbo, marginal, gap)
