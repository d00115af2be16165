"""Results of evidence estimators: numbers per datum, with the reasons not to trust them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .. import stats
from .._types import Estimate
from ..formatting import count_of, on_condition
from ..results import Doubt, Doubts, PerDatum, Result, data_frame, with_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Bound(Enum):
    """The side of log p(y) on which an estimate lies on average over the estimator's draws."""

    LOWER = "low on average"
    UPPER = "high on average"
    TWO_SIDED = "bias of unknown sign"
    EXACT = "exact"


class Weights(NamedTuple):
    r"""The three parts of the log weights, each `(particles, batch)`, in nats.

    .. math:: \log w = \log p(z) + \log p(y \mid z) - \log q(z \mid y)
    """

    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Log importance weights, `(particles, batch)`, in nats."""
        return self.log_prior + self.log_likelihood - self.log_guide


class Block(NamedTuple):
    """A chunk of the data: row numbers, draws `(particles, rows, latents)`, and their weights."""

    rows: slice
    z: Tensor
    weights: Weights


@dataclass(frozen=True, repr=False)
class LogMarginal(PerDatum):
    r"""Estimates of :math:`\log p(y_n)`, with diagnostics.

    Arguments:
        value: The estimate, `(batch,)`, in nats.
        error: Standard error of the estimate, `(batch,)`, in nats. The estimator documents what the
            error includes and when it is invalid.
        ess: Effective sample size of the weights, `(batch,)`; nan if the method has no weights.
        pareto_k: Shape of the weights' upper tail, `(batch,)`; minus infinity for a perfect
            proposal. It is nan if the method has no weights or fewer than 30 draws.
        num_samples: Number of draws, chains or points used for each datum, `(batch,)`.
        bound: The side of :math:`\log p(y_n)` on which the estimate lies on average.
        method: Name of the estimator.
        doubts: Reasons not to trust an estimate, each with a mask of the data that it applies to.
        given: Names of the global latent sites on which the estimates are conditional, and the
            source of their values, in words. Empty if there are none.
    """

    value: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    ess: Float[Tensor, " batch"]
    pareto_k: Float[Tensor, " batch"]
    num_samples: Int64[Tensor, " batch"]
    bound: Bound = Bound.LOWER
    method: str = "importance sampling"
    doubts: Doubts = field(default_factory=dict)
    given: str = ""

    @property
    def total(self) -> Estimate:
        """Log p(y) of the whole data set, in nats: the sum over data, which are independent."""
        return stats.total(self.estimate)

    def columns(self) -> dict[str, Tensor]:
        """Returns columns by name, with one entry per datum: log p(y), error and diagnostics."""
        return {
            "log_p": self.value,
            "log_p_error": self.error,
            "ess": self.ess,
            "pareto_k": self.pareto_k,
            "num_samples": self.num_samples,
        }

    def summary(self) -> str:
        """Returns a line with the mean log p(y), the diagnostics and the verdict."""
        return (
            f"log p(y) = {self.mean:.3f} nats per datum, {self.bound.value} ({self.method}, "
            f"{count_of(len(self), 'datum')}{self._samples()}{self._tails()}); {self.trust()}"
            f"{on_condition(self.given)}"
        )

    def _samples(self) -> str:
        """Formats the number of draws or points per datum."""
        low, high = int(self.num_samples.min()), int(self.num_samples.max())
        if high <= 1:  # exact results use no draws
            return ""
        drawn = "points" if self.method == "quadrature" else "draws"
        return f", {low} {drawn} each" if low == high else f", {low} to {high} {drawn} each"

    def _tails(self) -> str:
        """Formats the largest Pareto k and the smallest ESS over data; nan values are ignored."""
        k, ess = (part[~part.isnan()] for part in (self.pareto_k, self.ess))
        text = f"; Pareto k at most {float(k.max()):.2f}" if len(k) > 0 else ""
        return text + (f", ESS at least {float(ess.min()):.0f}" if len(ess) > 0 else "")


def mean_with_doubts(values: Float[Tensor, "particles batch"]) -> tuple[Estimate, Doubts]:
    """Averages log weights or their differences over particles, separately for each datum.

    Also returns masks of the data in doubt: those whose standard error is probably too small, or
    all data if there are fewer than 30 draws, which are too few to tell.
    """
    mean = stats.mean_estimate(values)
    if len(values) < stats.MIN_TAIL_PARTICLES:
        return mean, {Doubt.NO_TAIL: torch.ones_like(mean.value, dtype=torch.bool)}
    return mean, {Doubt.ELBO_TAIL: ~stats.mean_covers(values)}


@dataclass(frozen=True, repr=False)
class EvidenceLowerBound(PerDatum):
    r"""The ELBO and its two parts, per datum: `elbo = - distortion - rate`, in nats.

    Arguments:
        elbo: :math:`\mathbb{E}_q \log w`, value and error, each `(batch,)`.
        rate: :math:`\mathrm{KL}(q(z \mid y) \,\|\, p(z))`, value and error, each `(batch,)`.
        distortion: :math:`-\mathbb{E}_q \log p(y \mid z)`, value and error, each `(batch,)`.
        num_samples: Number of draws used per datum.
        given: The global latent sites on which the bound is conditional, in words, as in
            :class:`LogMarginal`.
        doubts: Reasons not to trust the bounds of some data: a few draws dominate the mean, or
            there are fewer than 30 draws, which are too few to fit a tail.
    """

    elbo: Estimate
    rate: Estimate
    distortion: Estimate
    num_samples: int
    given: str = ""
    doubts: Doubts = field(default_factory=dict)

    @property
    def value(self) -> Tensor:
        """Estimated ELBO of every datum, in nats."""
        return self.elbo.value

    @property
    def error(self) -> Tensor:
        """Standard error of every datum's ELBO, in nats."""
        return self.elbo.error

    @property
    def total(self) -> Estimate:
        """ELBO of the whole data set, in nats: the sum over data."""
        return stats.total(self.elbo)

    def columns(self) -> dict[str, Tensor]:
        """Returns columns by name, with one entry per datum: ELBO, rate, distortion, and errors."""
        return with_errors({"elbo": self.elbo, "rate": self.rate, "distortion": self.distortion})

    def summary(self) -> str:
        """Returns a line with the means of ELBO, distortion and rate over data."""
        rate, distortion = map(stats.mean_over_data, (self.rate, self.distortion))
        return (
            f"ELBO = {self.mean:.3f} nats per datum = - distortion {distortion:.3f} - rate "
            f"{rate:.3f} ({count_of(len(self), 'datum')}, {count_of(self.num_samples, 'draw')} each"
            f"); {self.trust()}{on_condition(self.given)}"
        )


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """The ELBO and log p(y) of every datum, as a pair to unpack: `bound, marginal = ...`."""

    bound: EvidenceLowerBound
    log_marginal: LogMarginal

    def __iter__(self) -> Iterator[Any]:
        return iter((self.bound, self.log_marginal))

    def as_columns(self) -> dict[str, Any]:
        """Returns the columns of both results by name; the column `reliable` refers to log p(y)."""
        return {**self.bound.as_columns(), **self.log_marginal.as_columns()}

    def to_dataframe(self) -> Any:
        """Returns one row per datum with the columns of ELBO and log p(y); requires pandas."""
        return data_frame(self.as_columns())

    def shifted(self, log_scale: Tensor) -> "Evaluation":
        """Adds `log_scale` nats to every datum's ELBO and log p(y).

        This is how a change of the data's units changes the two numbers.
        """
        bound, result = self
        log_scale = log_scale.to(result.value.device)
        elbo = bound.elbo._replace(value=bound.value + log_scale)
        distortion = bound.distortion._replace(value=bound.distortion.value - log_scale)
        return Evaluation(
            replace(bound, elbo=elbo, distortion=distortion),
            replace(result, value=result.value + log_scale),
        )

    def summary(self) -> str:
        """Returns the summary of the ELBO, followed by the summary of log p(y)."""
        return f"{self.bound.summary()}\n{self.log_marginal.summary()}"

    def plot(self) -> "Axes":
        """Plots the mean ELBO and the mean log p(y) with their errors; requires matplotlib."""
        from ..plots import plot_comparison

        return plot_comparison({"": {"ELBO": self.bound.mean, "log p": self.log_marginal.mean}})
