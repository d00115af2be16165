"""What :func:`pyro_vae.inference_gap` returns: gaps per datum, that add up, with their errors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.distributions import Normal

from .. import stats
from .._types import Estimate
from ..evidence import LogMarginal

_FALSE_ALARM = 1e-3  # that some gap of a batch is called negative though none is
WORST_SHARE = 0.08  # of the data, of which verdicts say what part of a gap they hold
_ROUNDING = 1e-6  # relative; what float32 programs cannot tell


class Parts(NamedTuple):
    """The terms of the decomposition, in nats; `inference = approximation + amortization`."""

    log_marginal: Estimate
    elbo: Estimate
    best_elbo: Estimate
    inference: Estimate
    approximation: Estimate
    amortization: Estimate


@dataclass(frozen=True)
class FamilyGap:
    """What another family could do, per datum.

    Arguments:
        best_elbo: ELBO of the best member of the family, `(batch,)`, nats.
        approximation: Log p(y) less that: the family's approximation gap.
        gain: By how much it is better than the best member of the guide's own family.
        converged: Whether the fit of a datum was done.
    """

    best_elbo: Estimate
    approximation: Estimate
    gain: Estimate
    converged: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class InferenceGap:
    r"""Log p(y), two ELBOs, and the gaps between them; each `(batch,)`, in nats.

    Arguments:
        log_marginal: :math:`\log p(y_n)`, its error, and whether to trust it.
        elbo: That of the guide.
        best_elbo: That of :math:`q_n^\star`, the best member of the family for the datum.
        approximation: `log_marginal - best_elbo`.
        amortization: `best_elbo - elbo`. The two ELBOs are averages over common draws, so this
            error is smaller than that of either.
        inference: Their sum, `log_marginal - elbo`.
        fit_converged: Whether the fit of :math:`q_n^\star` was done.
        families: The same for other families, by name.
        num_samples: Draws a datum that the ELBOs are averages over.
        given: What all of it is conditional on, in words, as in
            :class:`pyro_vae.evidence.LogMarginal`.
    """

    log_marginal: LogMarginal
    elbo: Estimate
    best_elbo: Estimate
    approximation: Estimate
    amortization: Estimate
    inference: Estimate
    fit_converged: Bool[Tensor, " batch"]
    families: Mapping[str, FamilyGap]
    num_samples: int
    given: str = ""

    @property
    def parts(self) -> Parts:
        """All terms, per datum."""
        marginal = Estimate(self.log_marginal.value, self.log_marginal.error)
        return Parts(
            marginal, self.elbo, self.best_elbo, self.inference, self.approximation,
            self.amortization,
        )  # fmt: skip

    @property
    def total(self) -> Parts:
        """Sums over the batch, with Monte Carlo errors: data have draws of their own."""
        return Parts(*(stats.total(part) for part in self.parts))

    @property
    def mean(self) -> Parts:
        """Means over the batch, with Monte Carlo errors: those of other draws on these data."""
        return Parts(*(stats.mean_over_data(part) for part in self.parts))

    @property
    def population(self) -> Parts:
        """The same means, with the errors that other data would bring; at least two data."""
        return Parts(*(stats.population_mean(part.value) for part in self.parts))

    @property
    def suboptimal(self) -> Bool[Tensor, " batch"]:
        r"""Data for which the guide beats :math:`q_n^\star` by more than chance explains.

        Then :math:`q_n^\star` was not found, or the guide is richer than its family.
        """
        return _is_negative(self.amortization, self.elbo.value)

    @property
    def converged(self) -> Bool[Tensor, " batch"]:
        r"""Data whose :math:`q_n^\star` was found."""
        return self.fit_converged & ~self.suboptimal

    @property
    def reliable(self) -> Bool[Tensor, " batch"]:
        """Data of which every part can be trusted, for all that can be seen."""
        too_high = _is_negative(self.inference, self.elbo.value)
        too_high = too_high | _is_negative(self.approximation, self.elbo.value)
        return self.log_marginal.reliable & self.converged & ~too_high

    def why_not(self, row: int) -> list[str]:
        """Reasons not to trust the gaps of a datum, in words; empty if there are none."""
        reasons = self.log_marginal.why_not(row)
        if not bool(self.fit_converged[row]):
            reasons.append("the fit of q* was stopped before it was done")
        if bool(self.suboptimal[row]):
            reasons.append("the guide beats q*: it was not found, or is of a poorer family")
        for name in ("inference", "approximation"):
            if bool(_is_negative(getattr(self, name), self.elbo.value)[row]):
                reasons.append(f"the {name} gap is negative: log p(y) is too low")
        return reasons

    def worst(self, number: int) -> Tensor:
        """Rows with the largest amortization gaps, largest first."""
        return self.amortization.value.argsort(descending=True)[:number]

    @property
    def concentration(self) -> float:
        """Share of the amortization gap on the 8% of the data with the largest."""
        return stats.concentration(self.amortization.value, WORST_SHARE)

    @property
    def verdict(self) -> str:
        """What inference costs here, and how far that can be trusted, in words."""
        mean, bad = self.mean, int((~self.reliable).sum())
        said = [
            f"Inference costs {mean.inference} nats a datum here: "
            f"{mean.amortization} by amortization, "
            f"{mean.approximation} by the family."
        ]
        if float(mean.amortization.value) > 4 * float(mean.amortization.error):
            said.append(
                f"{self.concentration:.0%} of the amortization gap is on {WORST_SHARE:.0%} of "
                "the data."
            )
        trust = "All can be trusted" if bad == 0 else f"{bad} data cannot be trusted"
        lost = int((~self.converged).sum())
        said.append(f"{trust}, of {len(self.reliable)}; the best q was not found for {lost}.")
        return " ".join(said)

    def summary(self) -> str:
        """The table of means, with the errors of other draws and of other data, and the verdict."""
        lines = [f"{'nats a datum':24}{'mean':>12}{'± draws':>12}{'± data':>12}"]
        many = len(self.reliable) > 1
        for name, part in self.mean._asdict().items():
            spread = float(getattr(self.population, name).error) if many else math.nan
            lines.append(_line(_NAMES[name], part, spread))
        for name, family in self.families.items():
            gap = stats.mean_over_data(family.approximation)
            lines.append(_line(f"approximation, {name}", gap, math.nan))
        return "\n".join([*lines, self.log_marginal.summary(), self.verdict])


_NAMES = {
    "log_marginal": "log p(y)",
    "elbo": "ELBO of the guide",
    "best_elbo": "ELBO of q*",
    "inference": "inference gap",
    "approximation": "  approximation gap",
    "amortization": "  amortization gap",
}


def _line(name: str, part: Estimate, spread: float) -> str:
    population = "" if math.isnan(spread) else f"{spread:12.4f}"
    return f"{name:24}{float(part.value):12.4f}{float(part.error):12.4f}{population}".rstrip()


def _is_negative(gap: Estimate, near: Float64[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Whether gaps are below zero by more than chance over the whole batch, and rounding."""
    quantile = torch.tensor(1 - _FALSE_ALARM / max(1, len(gap.value)), dtype=torch.float64)
    limit = Normal(torch.zeros_like(quantile), torch.ones_like(quantile)).icdf(quantile)
    rounding = _ROUNDING * (1 + near.abs())
    return gap.value < -(limit.to(gap.error.device) * gap.error + rounding)


class Generalization(NamedTuple):
    """How much worse the data that were not trained on fare; means over data, nats a datum.

    The errors are those of other data and other draws, on both sides.
    """

    log_marginal: Estimate
    inference: Estimate
    approximation: Estimate
    amortization: Estimate


def generalization(train: InferenceGap, held_out: InferenceGap) -> Generalization:
    r"""Names the part of each gap that is due to data not having been trained on.

    .. math:: \Delta = \frac{1}{N'} \sum_{n \in \text{held out}} g_n
        - \frac{1}{N} \sum_{n \in \text{trained on}} g_n

    For `amortization` that is the encoder's own overfitting: with the model the same on both
    sides, an encoder that learnt to infer in general has none. For `log_marginal` it is the
    model's, with the sign of a gain.

    Arguments:
        train: Gaps on data that the guide was trained on, or a sample of them.
        held_out: Gaps on data that it was not.

    Returns:
        Differences, held out less trained on, with errors over data, which are the larger ones.

    Raises:
        ValueError: If either has fewer than two data.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
        | https://arxiv.org/abs/1801.03558
    """
    difference: Callable[[str], Estimate] = lambda name: _difference(  # noqa: E731
        getattr(held_out.population, name), getattr(train.population, name)
    )
    return Generalization(*(difference(name) for name in Generalization._fields))


def _difference(first: Estimate, second: Estimate) -> Estimate:
    error = (first.error.square() + second.error.square()).sqrt()
    return Estimate(first.value - second.value, error)
