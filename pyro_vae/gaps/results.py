"""What :func:`pyro_vae.inference_gap` returns: gaps per datum, that add up, with their errors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.distributions import Normal

from .. import stats
from .._types import Estimate
from ..evidence import LogMarginal
from ..results import Doubt, Doubts, Mean, PerDatum, Result

_FALSE_ALARM = 1e-3  # that some gap of a batch is called negative though none is
WORST_SHARE = 0.08  # of the data, of which verdicts say what part of a gap they hold


class Parts(NamedTuple):
    """The terms of the decomposition, in nats; `inference = approximation + amortization`."""

    log_marginal: Estimate
    elbo: Estimate
    best_elbo: Estimate
    inference: Estimate
    approximation: Estimate
    amortization: Estimate


@dataclass(frozen=True, repr=False)
class FamilyGap(PerDatum):
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

    @property
    def value(self) -> Tensor:
        """The approximation gap of every datum."""
        return self.approximation.value

    @property
    def error(self) -> Tensor:
        """Its standard error."""
        return self.approximation.error

    @property
    def doubts(self) -> Doubts:
        """Data whose best member may not have been found."""
        return {Doubt.FIT_STOPPED: ~self.converged}

    def summary(self) -> str:
        """The gap of the family, and by how much it is better than the guide's own."""
        gain = Mean.over(self.gain, self.reliable)
        return (
            f"approximation gap {self.mean:.3f} nats per datum, {gain:.3f} less than that of the "
            f"guide's family; {self.trust()}"
        )


@dataclass(frozen=True, repr=False)
class InferenceGap(PerDatum):
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
    def value(self) -> Tensor:
        """The inference gap of every datum."""
        return self.inference.value

    @property
    def error(self) -> Tensor:
        """Its standard error."""
        return self.inference.error

    @property
    def total(self) -> Parts:
        """Sums over the batch, with Monte Carlo errors: data have draws of their own."""
        return Parts(*(stats.total(part) for part in self.parts))

    @property
    def mean(self) -> Parts:
        """Means over the batch, with Monte Carlo errors: those of other draws on these data."""
        return Parts(*(Mean.over(part, self.reliable) for part in self.parts))

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
    def doubts(self) -> Doubts:
        """Those of log p(y), and what speaks against either gap."""
        return {
            **self.log_marginal.doubts,
            Doubt.FIT_STOPPED: ~self.fit_converged,
            Doubt.BEATEN: self.suboptimal,
            Doubt.NEGATIVE_INFERENCE: _is_negative(self.inference, self.elbo.value),
            Doubt.NEGATIVE_APPROXIMATION: _is_negative(self.approximation, self.elbo.value),
        }

    def columns(self) -> dict[str, Tensor]:
        """Every part of every datum with its error."""
        return {
            f"{name}{ending}": column
            for name, part in self.parts._asdict().items()
            for ending, column in zip(("", "_error"), part, strict=True)
        }

    def plot(self) -> Any:
        """The two gaps, means over data, with their errors; needs matplotlib."""
        from ..plots import plot_gaps

        mean = self.mean
        parts = {"approximation": mean.approximation, "amortization": mean.amortization}
        return plot_gaps({"inference gap": parts})

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
        mean = self.mean
        said = [
            f"Inference costs {mean.inference} nats per datum here: "
            f"{mean.amortization} by amortization, "
            f"{mean.approximation} by the family."
        ]
        value, error = mean.amortization
        if bool(value > 4 * error + stats.rounding(mean.elbo.value)):
            said.append(
                f"{self.concentration:.0%} of the amortization gap is on {WORST_SHARE:.0%} of "
                "the data."
            )
        lost = int((~self.converged).sum())
        said.append(f"Of these data, {self.trust()}; the best q was not found for {lost}.")
        return " ".join(said)

    def summary(self) -> str:
        """The table of means, with the errors of other draws and of other data, and the verdict."""
        lines = [f"{'nats per datum':24}{'mean':>12}{'± draws':>12}{'± data':>12}"]
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
    return gap.value < -(limit.to(gap.error.device) * gap.error + stats.rounding(near))


@dataclass(frozen=True, repr=False)
class Generalization(Result):
    """How much worse the data that were not trained on fare; means over data, nats a datum.

    The errors are those of other data and other draws, on both sides.
    """

    log_marginal: Estimate
    inference: Estimate
    approximation: Estimate
    amortization: Estimate

    def summary(self) -> str:
        """The differences, one after the other."""
        names = [entry.name for entry in fields(self)]
        said = ", ".join(f"{_NAMES[name].strip()} {getattr(self, name)}" for name in names)
        return f"held out less trained on, nats per datum: {said}"

    def plot(self) -> Any:
        """The differences with their errors; needs matplotlib."""
        from ..plots import plot_comparison

        named = {_NAMES[entry.name].strip(): getattr(self, entry.name) for entry in fields(self)}
        return plot_comparison({"held out less trained on": named})


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
    return Generalization(
        *(
            _difference(
                getattr(held_out.population, part.name), getattr(train.population, part.name)
            )
            for part in fields(Generalization)
        )
    )


def _difference(first: Estimate, second: Estimate) -> Estimate:
    error = (first.error.square() + second.error.square()).sqrt()
    return Estimate(first.value - second.value, error)
