"""The results of every guide in a comparison, their differences, and the verdict in words."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from .. import stats
from .._types import Estimate
from ..criticism import PairedDifference
from ..diagnostics import MutualInformation
from ..evidence import Evaluation, EvidenceLowerBound
from ..formatting import count_of
from ..gaps import WORST_SHARE, InferenceGap
from ..results import Doubt, Doubts, Result, any_of, either
from ..training import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIGNIFICANT = 4.0  # a difference counts beyond this many standard errors; false-alarm rate 6e-5
_SMALL = 1.0  # nats per datum of inference gap, below which a guide may look good
_COLLAPSED = 0.01  # nats of mutual information, below which z says nothing useful
REFINING_STEPS = 20


class Untrusted(NamedTuple):
    """How many data have results that cannot be trusted: a count for each reason.

    For these data, log p(y) is in doubt (`doubted`), the best q in the family was not found
    (`lost`), a gap is negative by more than its error (`negative`), or an ELBO is in doubt or minus
    infinity (`tailed`).
    """

    doubted: int
    lost: int
    negative: int
    tailed: int

    @property
    def log_p(self) -> int:
        """Number of data whose log p(y) is in doubt or, as a negative gap shows, too low."""
        return self.doubted + self.negative


@dataclass(frozen=True, repr=False)
class GuideResult(Result):
    """A trained guide with its model, and its evaluation.

    Arguments:
        model: The copy of the model that this guide trained.
        guide: The guide, for the training data.
        held_out_guide: The guide for the held-out data; a new guide, fitted to these data, if
            `guide` has parameters for every training row.
        fit: The result of training.
        train_bound: ELBO of the training data.
        test: ELBO of the held-out data, and log p with the guide itself as the proposal.
        gap: Log p of the held-out data by the tightest estimator, and the parts of the gap
            between log p and the ELBO.
        refined: ELBO of the held-out data when the guide's output is refined by a few steps per
            datum; `None` if this guide cannot be refined.
        means: Posterior means of the held-out data, `(batch, latents)`.
        prior_variance: Variance of each latent under the model's prior, `(latents,)`.
        information: Mutual information of z and the held-out data.
        seconds: Time that training took.
    """

    model: Any
    guide: Any
    held_out_guide: Any
    fit: Fit
    train_bound: EvidenceLowerBound
    test: Evaluation
    gap: InferenceGap
    refined: Estimate | None
    means: Tensor
    prior_variance: Tensor
    information: MutualInformation
    seconds: float

    @property
    def elbo_doubts(self) -> Doubts:
        """Reasons to doubt the ELBOs of held-out data, each with a mask of the data it affects."""
        return {**self.gap.elbo_doubts, Doubt.INFINITE: self.gap.doubts[Doubt.INFINITE]}

    @property
    def untrusted(self) -> Untrusted:
        """How many held-out data have results that cannot be trusted: a count for each reason."""
        gap = self.gap
        lost, doubted = ~gap.converged, ~gap.log_marginal.reliable
        tailed = any_of(self.elbo_doubts, doubted)
        negative = ~gap.reliable & ~doubted & ~lost & ~tailed
        return Untrusted(*(int(mask.sum()) for mask in (doubted, lost, negative, tailed)))

    def summary(self) -> str:
        """Returns how training ended, the numbers on held-out data, and a verdict on the guide."""
        verdict = _of_guide(self, train_model=False)
        return "\n".join(
            [
                f"training: {self.fit.summary()}",
                self.test.bound.summary(),
                self.gap.log_marginal.summary(),
                self.information.summary(),
                verdict[0].upper() + verdict[1:],
            ]
        )

    def plot(self) -> "Axes":
        """Plots the parts of the gap between log p and the ELBO; needs matplotlib."""
        return self.gap.plot()

    @property
    def partly_covered(self) -> int:
        """Number of data whose log p(y) cannot be estimated from the guide's own weights."""
        return int((~self.test.log_marginal.reliable).sum())


@dataclass(frozen=True, repr=False)
class Difference(Result):
    """Differences of two guides' ELBO and log p on the same held-out data, in nats.

    Arguments:
        first: Name of one guide.
        second: Name of the other guide, whose results are subtracted.
        elbo: Difference of ELBOs by datum. The mean has two errors: one due to the draws, and one
            due to the sample of data.
        log_p: Difference of log p(y) by datum; zero within errors if the model is fixed.
    """

    first: str
    second: str
    elbo: PairedDifference
    log_p: PairedDifference

    def summary(self) -> str:
        """States the mean differences of ELBO and log p(y), each with its two errors."""
        return (
            f"{self.first} minus {self.second}\nELBO: {self.elbo.summary()}\n"
            f"log p(y): {self.log_p.summary()}"
        )

    def plot(self) -> "Axes":
        """Plots the difference of ELBOs by datum, lowest first; needs matplotlib."""
        from ..plots import plot_per_datum

        return plot_per_datum(*self.elbo.estimate, self.elbo.reliable)


def differences_of(results: Mapping[str, GuideResult]) -> list[Difference]:
    """Returns the differences of every pair of guides, datum by datum.

    If two guides were evaluated with the same draws, the errors are slightly too large.
    """
    found = []
    for first, second in itertools.combinations(results, 2):
        one, other = results[first].gap, results[second].gap
        doubts = either(one.doubts, other.doubts)
        elbo = stats.difference(one.parts.elbo, other.parts.elbo)
        log_p = stats.difference(one.parts.log_marginal, other.parts.log_marginal)
        pairs = (PairedDifference(*pair, doubts) for pair in (elbo, log_p))
        found.append(Difference(first, second, *pairs))
    return found


def verdict_of(results: Mapping[str, GuideResult], *, train_model: bool) -> str:
    """Returns the verdict: a line per guide, then how the best guide differs from the others."""
    lines = [
        f"{name}: {_of_guide(result, train_model=train_model)}" for name, result in results.items()
    ]
    best = best_of(results, train_model=train_model)
    bound = "log p(y)" if train_model else "ELBO"
    for rival in rivals_of(results, train_model=train_model):
        relation = "is above" if rival.is_significant else "cannot be distinguished from"
        lines.append(
            f"{bound} under {best} {relation} that under {rival.name}: the difference is "
            f"{rival.below} nats per datum (error over data)."
        )
    return "\n".join(lines)


def _of_guide(result: GuideResult, *, train_model: bool) -> str:
    """States what a guide's map and family cost, and how far its numbers can be trusted."""
    mean, findings = result.gap.mean, []
    cost, (value, error) = mean.amortization, map(float, mean.amortization)
    if value > _SIGNIFICANT * error + 1e-4:  # the tolerance of a fit of rows
        # 8% of fewer than 13 data are less than one datum.
        few = WORST_SHARE * len(result.gap) < 1
        share = f"{result.gap.concentration:.0%} comes from {WORST_SHARE:.0%} of the data"
        findings.append(
            f"its map costs {cost} nats per datum{'' if few else f', of which {share}'}"
        )
        if result.refined is not None:
            gained = stats.mean_over_data(stats.difference(result.refined, result.gap.elbo))
            findings.append(gain_of_refining(gained, cost))
    else:
        findings.append(f"its map has no measurable cost ({cost} nats)")
    findings.append(f"its family costs {mean.approximation} nats")
    if ignores_data(result):
        # A model that was trained with such a guide stops using z, and its gap is then small.
        small = train_model and float(mean.inference.value) < _SMALL
        findings.append(
            "z carries no information about the datum (mutual information "
            f"{result.information.estimate} nats)"
            f"{', so the small gap does not mean that the guide is good' if small else ''}"
        )
    if lost := result.untrusted.lost:
        findings.append(f"the best q was not found for {count_of(lost, 'datum')}")
    if doubted := result.untrusted.log_p:
        findings.append(f"log p cannot be trusted for {count_of(doubted, 'datum')}")
    return "; ".join(findings) + "."


def gain_of_refining(gained: Estimate, cost: Estimate) -> str:
    """States how much refining the guide at test time would reduce the amortization gap.

    Arguments:
        gained: The ELBO of the refined guide minus that of the guide itself, averaged over the
            data, in nats.
        cost: The guide's amortization gap, averaged over the data, in nats. Its value must exceed
            its error.
    """
    refined = f"guide.refined({REFINING_STEPS})"
    value, slack = float(gained.value), _SIGNIFICANT * float(gained.error)
    if value < -slack:  # each step raises the ELBO at the draws that all steps share
        lost = Estimate(-gained.value, gained.error)
        return (
            f"{refined} would lower the ELBO by {lost} nats at test time, because the steps "
            "overfit their draws: pass a larger `num_particles`"
        )
    if value <= slack:
        return f"{refined} would not change the ELBO measurably at test time ({gained} nats)"
    if cost.value.isinf():
        return f"{refined} would raise the ELBO by {gained} nats at test time"
    beyond = stats.difference(gained, cost)
    if float(beyond.value) > _SIGNIFICANT * float(beyond.error):
        return (
            f"{refined} would recover more than this cost at test time ({gained} nats), so a "
            "better q exists than the best that was found"
        )
    return (
        f"{refined} would recover {min(value / float(cost.value), 1):.0%} of this cost at test time"
    )


def ignores_data(result: GuideResult) -> bool:
    """Whether z carries no information about the datum, within the error of the estimate.

    This is false for a single datum, because the information is about which datum z belongs to.
    """
    value, error = (float(part) for part in result.information.estimate)
    return len(result.means) > 1 and value <= _COLLAPSED + _SIGNIFICANT * error


class Rival(NamedTuple):
    """A guide that is compared with the best guide.

    Arguments:
        name: Name of the guide.
        below: How far this guide is below the best guide, in nats per datum.
        is_significant: Whether this difference exceeds its error over data.
    """

    name: str
    below: Estimate
    is_significant: bool


def best_of(results: Mapping[str, GuideResult], *, train_model: bool) -> str:
    """Names the guide with the highest log p or, if the model is fixed, the highest ELBO."""
    what = "log_marginal" if train_model else "elbo"
    return max(results, key=lambda name: float(getattr(results[name].gap.mean, what).value))


def rivals_of(results: Mapping[str, GuideResult], *, train_model: bool) -> list[Rival]:
    """Compares all other guides with the best; with a single datum, returns an empty list."""
    if any(len(one.means) < 2 for one in results.values()):
        return []
    what = "log_marginal" if train_model else "elbo"
    best = best_of(results, train_model=train_model)
    rivals = []
    for other in results:
        if other != best:
            first, second = (getattr(results[one].gap.parts, what) for one in (best, other))
            mean = stats.population_mean(stats.difference(first, second).value)
            slack = stats.rounding(first.value).mean()
            significant = mean.value.isposinf() | (mean.value > _SIGNIFICANT * mean.error + slack)
            rivals.append(Rival(other, mean, bool(significant)))
    return rivals
