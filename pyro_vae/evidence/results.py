"""What estimators of evidence return: numbers per datum that say how far they can be trusted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .. import stats
from .._types import Estimate


class Bound(Enum):
    """On which side of log p(y) an estimate lies, on average over its own randomness."""

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
    """Some of the data: their rows, draws `(particles, rows, latents)`, and the weights."""

    rows: slice
    z: Tensor
    weights: Weights


@dataclass(frozen=True)
class LogMarginal:
    r"""Estimates of :math:`\log p(y_n)`, each field `(batch,)`, in nats.

    Arguments:
        value: The estimate.
        error: Its standard error; what it covers, and where it is void, the estimator says.
        ess: Effective sample size of the weights; nan where the method has none.
        pareto_k: Shape of the weights' upper tail; minus infinity for a perfect proposal, nan
            where the method has none, or fewer than 30 draws, which have no tail to fit.
        num_samples: Draws, chains or points used for each datum.
        bound: On which side of :math:`\log p(y_n)` the estimate lies on average.
        method: The estimator, in words.
        doubts: Reasons not to trust an estimate, in words, and the data that they hold for.
        given: What the estimates are conditional on, in words: the latent sites that all data
            share, and whose values were taken. Empty if there are none.
    """

    value: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    ess: Float[Tensor, " batch"]
    pareto_k: Float[Tensor, " batch"]
    num_samples: Int64[Tensor, " batch"]
    bound: Bound = Bound.LOWER
    method: str = "importance sampling"
    doubts: Mapping[str, Bool[Tensor, " batch"]] = field(default_factory=dict)
    given: str = ""

    @property
    def total(self) -> Estimate:
        """Log marginal likelihood of the data set, in nats: data are independent."""
        return stats.total(Estimate(self.value, self.error))

    @property
    def mean(self) -> Estimate:
        """Mean over data, in nats a datum, with its Monte Carlo error."""
        return stats.mean_over_data(Estimate(self.value, self.error))

    @property
    def reliable(self) -> Bool[Tensor, " batch"]:
        """Which data have an estimate that can be trusted, for all that the estimator can see."""
        doubted = torch.zeros_like(self.value, dtype=torch.bool)
        for mask in self.doubts.values():
            doubted = doubted | mask
        return ~doubted

    def why_not(self, row: int) -> list[str]:
        """Reasons not to trust the estimate of a datum, in words; empty if there are none."""
        return [reason for reason, mask in self.doubts.items() if bool(mask[row])]

    def summary(self) -> str:
        """Says the result, and how far it can be trusted, in a line or two."""
        mean, bad = self.mean, int((~self.reliable).sum())
        reasons = [f"{reason}: {int(m.sum())}" for reason, m in self.doubts.items() if m.any()]
        why = f" ({'; '.join(reasons)})" if reasons else ""
        return (
            f"log p(y) = {mean:.3f} nats a datum, "
            f"{self.bound.value} ({self.method}, {len(self.value)} data, {self._samples()}"
            f"{self._tails()}; {bad} data cannot be trusted{why}){', ' * bool(self.given)}"
            f"{self.given}"
        )

    def _samples(self) -> str:
        low, high = int(self.num_samples.min()), int(self.num_samples.max())
        return f"{low} draws each" if low == high else f"{low} to {high} draws each"

    def _tails(self) -> str:
        """The worst Pareto k and effective sample size, where there are such."""
        k, ess = (part[~part.isnan()] for part in (self.pareto_k, self.ess))
        said = f"; Pareto k at most {float(k.max()):.2f}" if len(k) > 0 else ""
        return said + (f", ESS at least {float(ess.min()):.0f}" if len(ess) > 0 else "")


@dataclass(frozen=True)
class EvidenceLowerBound:
    r"""The ELBO and its parts, per datum: `elbo = - distortion - rate`, in nats.

    Arguments:
        elbo: :math:`\mathbb{E}_q \log w`, `(batch,)` value and error.
        rate: :math:`\mathrm{KL}(q(z \mid y) \,\|\, p(z))`.
        distortion: :math:`-\mathbb{E}_q \log p(y \mid z)`.
        num_samples: Draws used a datum.
        given: What the bound is conditional on, in words, as in :class:`LogMarginal`.
    """

    elbo: Estimate
    rate: Estimate
    distortion: Estimate
    num_samples: int
    given: str = ""

    @property
    def mean(self) -> Estimate:
        """ELBO, mean over data, in nats a datum, with its Monte Carlo error."""
        return stats.mean_over_data(self.elbo)


class Evaluation(NamedTuple):
    """The bound and the marginal likelihood, from the same draws."""

    bound: EvidenceLowerBound
    log_marginal: LogMarginal


def join(parts: list[Any], merge: Callable[[list[Tensor]], Tensor] = torch.cat) -> Any:
    """Joins results of the same type along the data, field by field.

    What is not a tensor, or made of tensors, is the same in all of them. A reason to doubt that
    only some of them know holds for none of the others' data.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return merge(parts)
    if is_dataclass(first) and not isinstance(first, type):
        columns = [[getattr(part, name.name) for part in parts] for name in fields(first)]
        return type(first)(*(join(column, merge) for column in columns))
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for part in parts for key in part)
        return {key: join([_entry(part, key) for part in parts], merge) for key in keys}
    if isinstance(first, tuple):
        columns = [list(entries) for entries in zip(*parts, strict=True)]
        joined = [join(column, merge) for column in columns]
        return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)
    return first


def _entry(masks: Mapping[str, Tensor], key: str) -> Tensor:
    """The entry, or one of zeros as long as the others."""
    return masks[key] if key in masks else torch.zeros_like(next(iter(masks.values())))
