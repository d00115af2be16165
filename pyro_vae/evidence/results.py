"""Results of evidence estimators: numbers per datum, and how far they can be trusted."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

from .. import stats
from .._types import Estimate
from ..results import Doubts, PerDatum, Result, data_frame


class Bound(Enum):
    """The side of log p(y) on which an estimate lies, on average over its own randomness."""

    LOWER = "low on average"
    UPPER = "high on average"
    TWO_SIDED = "on either side"
    EXACT = "exact"


class Weights(NamedTuple):
    r"""Parts of the log weights, each `(particles, batch)`, in nats.

    :math:`\log w = \log p(z) + \log p(y \mid z) - \log q(z \mid y)`.
    """

    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Log importance weights."""
        return self.log_prior + self.log_likelihood - self.log_guide


class Block(NamedTuple):
    """A chunk of the data: its rows, draws `(particles, rows, latents)`, and the weights."""

    rows: slice
    z: Tensor
    weights: Weights


@dataclass(frozen=True, repr=False)
class LogMarginal(PerDatum):
    r"""Estimates of :math:`\log p(y_n)`, each field `(batch,)`, in nats.

    Arguments:
        value: The estimate.
        error: Its standard error; see the estimator for what it covers and when it is invalid.
        ess: Effective sample size of the weights; nan if the method has none.
        pareto_k: Shape of the weights' upper tail; minus infinity for a perfect proposal, nan if
            the method has none, or if there are fewer than 30 draws.
        num_samples: Draws, chains or points used for each datum.
        bound: On which side of :math:`\log p(y_n)` the estimate lies on average.
        method: The estimator, in words.
        doubts: Reasons not to trust an estimate, and the data that they apply to.
        given: What the estimates are conditional on, in words: the global latent sites, and the
            source of their values. Empty if there are none.
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
        """Log marginal likelihood of the data set, in nats: a sum, since data are independent."""
        return stats.total(self.estimate)

    def columns(self) -> dict[str, Tensor]:
        """Log p(y) of every datum, its error, and diagnostics."""
        return {
            "log_p": self.value,
            "log_p_error": self.error,
            "ess": self.ess,
            "pareto_k": self.pareto_k,
            "num_samples": self.num_samples,
        }

    def summary(self) -> str:
        """The result, and how far it can be trusted, in a line or two."""
        return (
            f"log p(y) = {self.mean:.3f} nats per datum, {self.bound.value} ({self.method}, "
            f"{len(self)} data{self._samples()}{self._tails()}); {self.trust()}"
            f"{', ' * bool(self.given)}{self.given}"
        )

    def _samples(self) -> str:
        low, high = int(self.num_samples.min()), int(self.num_samples.max())
        if high <= 1:  # an exact answer draws nothing
            return ""
        return f", {low} draws each" if low == high else f", {low} to {high} draws each"

    def _tails(self) -> str:
        """The worst Pareto k and effective sample size, where there are any."""
        k, ess = (part[~part.isnan()] for part in (self.pareto_k, self.ess))
        said = f"; Pareto k at most {float(k.max()):.2f}" if len(k) > 0 else ""
        return said + (f", ESS at least {float(ess.min()):.0f}" if len(ess) > 0 else "")


@dataclass(frozen=True, repr=False)
class EvidenceLowerBound(PerDatum):
    r"""The ELBO and its parts, per datum: `elbo = - distortion - rate`, in nats.

    Arguments:
        elbo: :math:`\mathbb{E}_q \log w`, `(batch,)` value and error.
        rate: :math:`\mathrm{KL}(q(z \mid y) \,\|\, p(z))`.
        distortion: :math:`-\mathbb{E}_q \log p(y \mid z)`.
        num_samples: Draws used per datum.
        given: What the bound is conditional on, in words, as in :class:`LogMarginal`.
        doubts: Reasons not to trust a bound. Few draws are no such reason: the bound is unbiased,
            and its error comes from their spread.
    """

    elbo: Estimate
    rate: Estimate
    distortion: Estimate
    num_samples: int
    given: str = ""
    doubts: Doubts = field(default_factory=dict)

    @property
    def value(self) -> Tensor:
        """The ELBO of every datum."""
        return self.elbo.value

    @property
    def error(self) -> Tensor:
        """Standard error of the ELBO."""
        return self.elbo.error

    @property
    def total(self) -> Estimate:
        """ELBO of the data set, in nats."""
        return stats.total(self.elbo)

    def columns(self) -> dict[str, Tensor]:
        """The bound and its parts, each with its error."""
        parts = {"elbo": self.elbo, "rate": self.rate, "distortion": self.distortion}
        return {
            f"{name}{ending}": column
            for name, part in parts.items()
            for ending, column in zip(("", "_error"), part, strict=True)
        }

    def summary(self) -> str:
        """The bound and its parts, means over data."""
        rate, distortion = map(stats.mean_over_data, (self.rate, self.distortion))
        return (
            f"ELBO = {self.mean:.3f} nats per datum: - distortion {distortion:.3f} - rate "
            f"{rate:.3f} ({len(self)} data, {self.num_samples} draws each)"
            f"{', ' * bool(self.given)}{self.given}"
        )


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """The bound and the marginal likelihood, from the same draws; unpacks into the two."""

    bound: EvidenceLowerBound
    log_marginal: LogMarginal

    def __iter__(self) -> Iterator[Any]:
        return iter((self.bound, self.log_marginal))

    def as_columns(self) -> dict[str, Any]:
        """Columns of both parts, by name; the verdict is that on log p."""
        return {**self.bound.as_columns(), **self.log_marginal.as_columns()}

    def to_dataframe(self) -> Any:
        """One row per datum with the columns of both; needs pandas."""
        return data_frame(self.as_columns())

    def shifted(self, log_scale: Tensor) -> "Evaluation":
        """Shifts the log densities by a change of units, in nats per datum, `(batch,)`."""
        bound, result = self

        def moved(part: Estimate, shift: Tensor) -> Estimate:
            return Estimate(part.value + shift, part.error)

        bound = replace(
            bound,
            elbo=moved(bound.elbo, log_scale),
            distortion=moved(bound.distortion, -log_scale),
        )
        return Evaluation(bound, replace(result, value=result.value + log_scale))

    def summary(self) -> str:
        """Both summaries, one below the other."""
        return f"{self.bound.summary()}\n{self.log_marginal.summary()}"

    def plot(self) -> Any:
        """Mean ELBO and log p with their errors; needs matplotlib."""
        from ..plots import plot_comparison

        return plot_comparison({"": {"ELBO": self.bound.mean, "log p": self.log_marginal.mean}})
