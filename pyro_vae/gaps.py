r"""The cost of inference per datum: the gap between log p(y) and a guide's ELBO, and its parts.

.. math:: \underbrace{\log p(y_n) - \mathrm{ELBO}_n(q)}_{\text{inference gap}}
    = \underbrace{\log p(y_n) - \mathrm{ELBO}_n(q_n^\star)}_{\text{approximation gap}}
    + \underbrace{\mathrm{ELBO}_n(q_n^\star) - \mathrm{ELBO}_n(q)}_{\text{amortization gap}}

Here :math:`q_n^\star` is the member of the guide's family that is best for the datum. The
approximation gap is the loss that no choice of the family's parameters can avoid. The amortization
gap is the loss due to the map from data to parameters.

The ELBOs of the guide and of :math:`q_n^\star` are averages of log weights :math:`\log w_k` and
:math:`\log w_k^\star` over draws from the same random stream. If both distributions draw :math:`z =
\mu + \sigma \epsilon`, these draws share the noise :math:`\epsilon`, so the differences :math:`d_k
= \log w_k^\star - \log w_k` vary little. Different :math:`k` are independent. So
:math:`\bar d` and its standard error are valid even though the two weights of a pair are
correlated. The estimate of log p(y) uses separate draws, so its error is independent.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from . import stats
from ._arguments import check_public
from ._types import Data, Estimate, ProgramLike
from .evidence import Estimator, ImportanceSampling, LogMarginal, Tightest, Weights
from .evidence.fitted import starting_points
from .evidence.optima import best_of_family
from .evidence.results import mean_with_doubts
from .evidence.saturation import edge_doubts
from .evidence.weights import conditioned
from .formatting import count_of
from .guides import DiagonalNormal, Family, FamilyPosterior, FitRows, RowFit
from .randomness import stream
from .results import Doubt, Doubts, Mean, PerDatum, Result, either, join, with_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FALSE_ALARM = 1e-3  # probability that any gap of a batch is called negative by chance
WORST_SHARE = 0.08
"""Share of the data that a verdict singles out: those with the largest amortization gaps."""


class Parts(NamedTuple):
    """The terms of the decomposition, in nats, where `inference = approximation + amortization`."""

    log_marginal: Estimate
    elbo: Estimate
    best_elbo: Estimate
    inference: Estimate
    approximation: Estimate
    amortization: Estimate


@dataclass(frozen=True, repr=False)
class FamilyGap(PerDatum):
    """The approximation gap of a family other than the guide's, per datum.

    Arguments:
        best_elbo: ELBO of the best member of the other family, `(batch,)`, in nats.
        approximation: Approximation gap of the other family, log p(y) minus `best_elbo`, in nats.
        gain: `best_elbo` minus the ELBO of the best member of the guide's own family, in nats.
        converged: Whether the fit of the best member converged, `(batch,)`.
        other_doubts: Reasons not to trust log p(y) or `best_elbo`, each with a mask of the data.
    """

    best_elbo: Estimate
    approximation: Estimate
    gain: Estimate
    converged: Bool[Tensor, " batch"]
    other_doubts: Doubts = field(default_factory=dict)

    @property
    def value(self) -> Tensor:
        """The approximation gap of every datum, in nats."""
        return self.approximation.value

    @property
    def error(self) -> Tensor:
        """Standard error of every datum's approximation gap, in nats."""
        return self.approximation.error

    @property
    def doubts(self) -> Doubts:
        """Reasons to doubt log p(y) or the gap, each with a mask of the data concerned."""
        return {
            **self.other_doubts,
            Doubt.FIT_STOPPED: ~self.converged,
            Doubt.NEGATIVE_APPROXIMATION: _is_negative(self.approximation, self.best_elbo.value),
        }

    def summary(self) -> str:
        """Returns a line with the gap, and its difference from the gap of the guide's family."""
        gain = Mean.over(self.gain, self.reliable)
        return (
            f"approximation gap {self.mean:.3f} nats per datum, {gain:.3f} less than the gap of "
            f"the guide's family; {self.trust()}"
        )


@dataclass(frozen=True, repr=False)
class InferenceGap(PerDatum):
    r"""Log p(y), two ELBOs, and the gaps between them, each `(batch,)`, in nats.

    Arguments:
        log_marginal: :math:`\log p(y_n)` with its error and verdict.
        elbo: ELBO of the guide.
        best_elbo: ELBO of :math:`q_n^\star`, the best member of the guide's family for the datum.
            Its error, and the errors of the approximation and amortization gaps, include the
            fit's possible distance from the optimum.
        approximation: The approximation gap, `log_marginal - best_elbo`.
        amortization: The amortization gap, `best_elbo - elbo`. The two ELBOs are averages over
            common draws, so the error of the gap is smaller than the errors of the ELBOs.
        inference: The inference gap, `log_marginal - elbo`, which is the sum of the other two gaps.
        fit_converged: Whether the fit of :math:`q_n^\star` converged to within 0.05 nats, and the
            last search for a better optimum found none.
        families: Approximation gaps of other families, by name.
        num_samples: Number of draws per datum for each ELBO.
        given: A text that says on which values of the global sites the results are conditional, as
            in :class:`pyro_vae.evidence.LogMarginal`.
        elbo_doubts: Reasons not to trust the ELBOs of some data, each with a mask.
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
    elbo_doubts: Doubts = field(default_factory=dict)

    _averaged = "mean inference gap"

    @property
    def parts(self) -> Parts:
        """The inference gap and all of its terms, for every datum, in nats."""
        return Parts(
            self.log_marginal.estimate, self.elbo, self.best_elbo,
            self.inference, self.approximation, self.amortization,
        )  # fmt: skip

    @property
    def value(self) -> Tensor:
        """The inference gap of every datum, in nats."""
        return self.inference.value

    @property
    def error(self) -> Tensor:
        """Standard error of every datum's inference gap, in nats."""
        return self.inference.error

    @property
    def total(self) -> Parts:
        """Sums of the inference gap and its terms over data, with Monte Carlo errors, in nats."""
        return Parts(*(stats.total(part) for part in self.parts))

    @property
    def mean(self) -> Parts:
        """Means of the inference gap and its terms over data, with Monte Carlo errors, in nats."""
        return Parts(*(Mean.over(part, self.reliable) for part in self.parts))

    @property
    def population(self) -> Parts:
        """Means of the inference gap and its terms over data, in nats.

        The errors are due to the sample of data. At least two data are required.
        """
        return Parts(*(stats.population_mean(part.value) for part in self.parts))

    @property
    def suboptimal(self) -> Bool[Tensor, " batch"]:
        r"""Whether the guide's ELBO is significantly above that of :math:`q_n^\star`, per datum.

        A significantly higher ELBO means that the fit did not find :math:`q_n^\star`, or that the
        guide is not a member of the family.
        """
        return _is_negative(self.amortization, self.elbo.value)

    @property
    def converged(self) -> Bool[Tensor, " batch"]:
        """Whether q* was found: its fit converged, and no significantly higher ELBO is known."""
        return self.fit_converged & ~self.suboptimal

    @property
    def doubts(self) -> Doubts:
        """Reasons to doubt log p(y) or the gaps, each with a mask of the data concerned."""
        return {
            **either(self.log_marginal.doubts, self.elbo_doubts),
            Doubt.FIT_STOPPED: ~self.fit_converged,
            Doubt.INFINITE: ~self.elbo.value.isfinite(),
            Doubt.BEATEN: self.suboptimal,
            Doubt.NEGATIVE_INFERENCE: _is_negative(self.inference, self.elbo.value),
            Doubt.NEGATIVE_APPROXIMATION: _is_negative(self.approximation, self.elbo.value),
        }

    def columns(self) -> dict[str, Tensor]:
        """Returns the inference gap and all of its terms with errors, for every datum, by name."""
        return with_errors(self.parts._asdict())

    def plot(self) -> "Axes":
        """Plots the mean approximation and amortization gaps, with errors; requires matplotlib."""
        from .plots import plot_gaps

        mean = self.mean
        parts = {"approximation": mean.approximation, "amortization": mean.amortization}
        return plot_gaps({"inference gap": parts})

    def worst(self, number: int) -> Tensor:
        """Returns the row numbers of the `number` largest amortization gaps, largest first."""
        return self.amortization.value.argsort(descending=True)[:number]

    @property
    def concentration(self) -> float:
        """Share of the total amortization gap that is due to the worst 8% of the data.

        These are the data with the largest amortization gaps.
        """
        return stats.concentration(self.amortization.value, WORST_SHARE)

    @property
    def verdict(self) -> str:
        """A text with the inference gap, its two parts, and the number of data in doubt."""
        mean = self.mean
        sentences = [
            f"Inference costs {mean.inference} nats per datum here: "
            f"{mean.amortization} by amortization, "
            f"{mean.approximation} by the family."
        ]
        value, error = mean.amortization
        is_seen = bool(value > 4 * error + stats.rounding(mean.elbo.value))
        if is_seen and WORST_SHARE * len(self) >= 1:
            sentences.append(
                f"{self.concentration:.0%} of the amortization gap comes from {WORST_SHARE:.0%} "
                "of the data."
            )
        lost = int((~self.converged).sum())
        missed = f"; the best q was not found for {count_of(lost, 'datum')}" if lost else ""
        sentences.append(f"In this result, {self.trust()}{missed}.")
        return " ".join(sentences)

    def summary(self) -> str:
        """Returns a table of means, with errors due to draws and to data, and the verdict."""
        lines = [f"{'nats per datum':24}{'mean':>12}{'± draws':>12}{'± data':>12}"]
        many = len(self) > 1
        spreads = [float(e) for _, e in self.population] if many else [math.nan] * len(_NAMES)
        for (name, part), spread in zip(self.mean._asdict().items(), spreads, strict=True):
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
    return f"{name:24}{float(part.value):z12.4f}{float(part.error):12.4f}{population}".rstrip()


def _is_negative(gap: Estimate, near: Float64[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Returns a mask of the gaps that are further below 0 than rounding and chance explain.

    The more data there are, the further below 0 a gap may be, so that false alarms stay rare. How
    large rounding errors can be depends on the size of `near`, an ELBO of the datum.
    """
    limit = NormalDist().inv_cdf(1 - _FALSE_ALARM / max(1, len(gap.value)))
    return gap.value < -(limit * gap.error + stats.rounding(near))


def inference_gap(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    *,
    estimator: Estimator | None = None,
    families: Mapping[str, Family] | None = None,
    num_samples: int = 5000,
    fitting: FitRows | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> InferenceGap:
    r"""Decomposes the gap between log p(y) and a guide's ELBO, per datum and with errors.

    .. math:: \log p(y_n) - \mathrm{ELBO}_n(q)
        = \left[\log p(y_n) - \mathrm{ELBO}_n(q_n^\star)\right]
        + \left[\mathrm{ELBO}_n(q_n^\star) - \mathrm{ELBO}_n(q)\right]

    Here :math:`q_n^\star` is the member of the guide's family with the highest ELBO for the datum,
    while the model is fixed. It is the best of several fits, which start from the guide's output,
    from N(0, I), and from the likeliest of some draws from the prior. If these fits end at
    different optima, or if prior draws show mass far from the best fit, up to three rounds of 32
    further fits follow. For a guide written by hand the family is the mean-field Gaussian.

    The fits are assumed to find the best member, which cannot be proven. A datum is flagged if this
    is doubtful: the last round of fits still found a better member (`fit_converged` is false), or
    the guide's ELBO is significantly above that of :math:`q_n^\star` (`suboptimal` is true). If the
    estimate of log p(y) is low on average, so are the inference gap and the approximation gap. If
    two guides were each trained with a model of their own, their gaps cannot be compared, because a
    model adapts to its guide.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of batch tensors.
        estimator: The estimator of log p(y); by default :class:`pyro_vae.Tightest` with
            `num_samples` draws.
        families: Other families, by name, whose approximation gaps are also computed.
        num_samples: Number of draws per datum for each ELBO.
        fitting: Settings of the fits of :math:`q_n^\star`.
        given: Values of the global latent sites, as in :func:`pyro_vae.log_marginal_likelihood`.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show progress bars; by default on terminals and in notebooks.

    Returns:
        The terms per datum, with standard errors, in nats. `inference` is exactly the sum of
        `approximation` and `amortization`.

    Raises:
        ValueError: If data, model and guide do not fit together, or if a family is a flow whose
            networks were not trained as part of a guide.
        FloatingPointError: If a log density is nan or plus infinity.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
        | https://arxiv.org/abs/1801.03558
        | Amortized Variational Inference: When and Why? (Margossian & Blei, 2024)
        | https://arxiv.org/abs/2307.11018

    Example:
        >>> import pyro, torch
        >>> import pyro_vae as pv
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> y = torch.tensor([0.0, 2.0])
        >>> guide = pv.Guide(model, pv.GlobalParameters(), example=y)  # q = N(0, 1) for every y
        >>> gap = inference_gap(model, guide, y)
        >>> (gap.approximation.value.abs() < 1e-3).tolist()  # the posterior is of the family
        [True, True]
        >>> exact = torch.tensor([0.1534, 1.1534])  # KL(N(0, 1) || N(y / 2, 1 / 2))
        >>> ((gap.amortization.value - exact).abs() < 5 * gap.amortization.error).tolist()
        [True, True]
    """
    estimate = Tightest(num_samples) if estimator is None else estimator
    with conditioned(model, guide, data, seed, given) as inference:
        program, posterior, batch = inference
        program.require_latents()
        fit = partial(
            best_of_family, program, batch,
            fitting=fitting or FitRows(), seed=seed, progress=progress,
        )  # fmt: skip
        family = posterior.family if isinstance(posterior, FamilyPosterior) else DiagonalNormal()
        best = fit(family, starting_points(program, posterior, batch, family))
        star = FamilyPosterior(family, best.parameters)
        apart = stream(seed, "evidence")  # log p(y) shares no draw with the ELBOs
        marginal = estimate(inference._replace(posterior=star), seed=apart, progress=progress)
        posteriors, others = [posterior, star], {}
        for name, other in (families or {}).items():
            others[name] = fit(other, starting_points(program, star, batch, other))
            posteriors.append(FamilyPosterior(other, others[name].parameters))
        plain = partial(ImportanceSampling(num_samples).sampling, seed=seed, progress=progress)
        weights = (plain(inference._replace(posterior=q)).weights() for q in posteriors)
        averages = join([list(_averages(piece)) for piece in zip(*weights, strict=True)])
        edges = edge_doubts(program, batch, marginal)
    doubts = {**marginal.doubts, **edges}
    marginal = replace(marginal, given=program.conditions, doubts=doubts)
    return _decomposed(marginal, averages, best, others, num_samples)


class _Average(NamedTuple):
    """An ELBO, and its gain: the ELBO minus that of a reference, averaged over common draws."""

    elbo: Estimate
    gain: Estimate
    doubts: Doubts


def _averages(weights: Sequence[Weights]) -> Iterator[_Average]:
    """Yields the average for the guide, for q*, and for the best q of each further family.

    The reference is the guide for the gain of q*, and q* for the gain of a further family. The
    guide's own gain is 0.
    """
    guide, best, *rest = (part.log_weights for part in weights)
    pairs = [(guide, guide), (best, guide), *((other, best) for other in rest)]
    for own, reference in pairs:
        (elbo, doubts), (gain, others) = map(mean_with_doubts, (own, own - reference))
        yield _Average(elbo, gain, either(doubts, others))


def _decomposed(
    marginal: LogMarginal,
    averages: list[_Average],
    best: RowFit,
    others: Mapping[str, RowFit],
    num_samples: int,
) -> InferenceGap:
    """Computes all gaps from log p(y), the ELBOs, and the fits of q* and of other families."""
    guide, star = averages[0], _unsure(averages[1], best)
    rest = [_unsure(own, fit) for own, fit in zip(averages[2:], others.values(), strict=True)]
    log_p = marginal.estimate
    approximation = stats.difference(log_p, star.elbo)
    return InferenceGap(
        log_marginal=marginal,
        elbo=guide.elbo,
        best_elbo=star.elbo,
        approximation=approximation,
        amortization=star.gain,
        inference=Estimate(
            approximation.value + star.gain.value, stats.difference(log_p, guide.elbo).error
        ),
        fit_converged=best.converged,
        families={
            name: FamilyGap(
                own.elbo,
                stats.difference(log_p, own.elbo),
                own.gain,
                others[name].converged,
                either(marginal.doubts, own.doubts),
            )
            for name, own in zip(others, rest, strict=True)
        },
        num_samples=num_samples,
        given=marginal.given,
        elbo_doubts=either(guide.doubts, star.doubts),
    )


def _unsure(average: _Average, fit: RowFit) -> _Average:
    """Adds the fit's possible distance from the optimum to the standard errors, in quadrature."""
    elbo, gain = (
        Estimate(part.value, torch.hypot(part.error, fit.left))
        for part in (average.elbo, average.gain)
    )
    return average._replace(elbo=elbo, gain=gain)


@dataclass(frozen=True, repr=False)
class Generalization(Result):
    """Differences between held-out and training data: log p(y) and the gaps, in nats per datum.

    A difference is the mean over held-out data minus the mean over training data. The errors
    include the randomness of the two samples of data and of the draws.
    """

    log_marginal: Estimate
    inference: Estimate
    approximation: Estimate
    amortization: Estimate

    def summary(self) -> str:
        """Returns a line with the differences and their errors."""
        differences = ", ".join(f"{name} {part}" for name, part in self._named().items())
        return f"held-out minus training data, nats per datum: {differences}"

    def plot(self) -> "Axes":
        """Plots the differences with their errors; requires matplotlib."""
        from .plots import plot_comparison

        return plot_comparison({"held-out minus training data": self._named()})

    def _named(self) -> dict[str, Estimate]:
        return {_NAMES[part.name].strip(): getattr(self, part.name) for part in fields(self)}


def generalization(train: InferenceGap, held_out: InferenceGap) -> Generalization:
    r"""Computes how much larger each gap is on held-out data than on training data.

    .. math:: \Delta = \frac{1}{N'} \sum_{n \in \text{held out}} g_n
        - \frac{1}{N} \sum_{n \in \text{trained on}} g_n

    Here :math:`g_n` is a gap, or log p(y). For `amortization`, the difference measures the
    overfitting of the encoder, and is zero if the encoder generalizes. For `log_marginal`, the
    difference is negative if the model overfits. `train` and `held_out` must be results for the
    same model.

    Arguments:
        train: Gaps on the training data, or on a sample of them.
        held_out: Gaps on data that the guide was not trained on.

    Returns:
        Means over held-out data minus means over training data, in nats per datum. The errors
        include the randomness of the samples of data and of the draws.

    Raises:
        ValueError: If `train` or `held_out` has fewer than two data.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
        | https://arxiv.org/abs/1801.03558
    """
    return Generalization(
        *(
            stats.difference(
                getattr(held_out.population, part.name), getattr(train.population, part.name)
            )
            for part in fields(Generalization)
        )
    )


check_public(globals())
