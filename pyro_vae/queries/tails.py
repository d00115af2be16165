r"""Unusual data under the model, with calibrated tail probabilities.

A log density alone is not informative, because what counts as low depends on the model. So each
datum is compared with reference data, simulated or held out, whose log densities are estimated in
the same way. Let s be the score of the datum (its log density) and :math:`s_r` the scores of the n
reference data. If the datum is exchangeable with the reference data, its rank is uniform, and

.. math:: \hat p = \frac{1 + \#\{r : s_r \le s\}}{n + 1}

is at most :math:`\alpha` with a probability of at most :math:`\alpha`, for any n and any score.
Noise or bias in estimates of log p(y) makes the test less powerful, but not invalid.

Some data may lie beyond all n simulated data, while n is too small to flag them. These data are
compared again, with a second, larger reference, whose p-value replaces the first. This is valid,
too. Suppose that the final p-value is at most :math:`\alpha`. If :math:`\alpha < 1/(n+1)`, it is
from the second reference, because p-values from the first are at least :math:`1/(n+1)`. Otherwise,
the p-value from the first reference is at most :math:`\alpha`, too: for data that are compared
again, it is :math:`1/(n+1)`. With either reference alone, a p-value of at most :math:`\alpha` has a
probability of at most :math:`\alpha`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence import ImportanceSampling, LogMarginal
from ..evidence.estimates import Estimator
from ..evidence.weights import check_more_data, conditioned
from ..formatting import count_of
from ..guides.entry import for_any_rows
from ..programs import as_batch, simulate
from ..programs.missing import has_missing
from ..programs.modes import device_of
from ..programs.pieces import first_rows
from ..randomness import stream
from ..results import Doubts, PerDatum, join, with_errors, with_rows
from .forward import simulating
from .weighted import default_estimator, guide_for, require_holes, with_holes

_DRAWS = 250  # for each log p, whose error is then small beside the spread of the reference data
_MOST_REFERENCE = 10**9  # number of reference data at which `enough` stops doubling
_REFERENCE = 1000  # number of simulated data, for tail probabilities down to 1/1001
# The second comparison may score at most this many times as many rows as the first comparison. With
# a guide this is fast; without a guide, a Gaussian is fitted to the posterior of every row.
_MOST_FURTHER, _MOST_FITTED = 20, 2


class Tail(Enum):
    """Which log densities count as unusual: low ones only, or low and high ones."""

    LOW = "of low density"
    BOTH = "of low or unusually high density"


@dataclass(frozen=True, repr=False)
class Outliers(PerDatum):
    """Tail probabilities of all data, which say how unusual each datum is.

    Arguments:
        tail_probability: Share of reference data that are at least as unusual as the datum,
            `(batch,)`. Its error has two sources: the finite number of reference data, and the
            error of the datum's log density.
        log_p: Log density of every datum, with its error and diagnostics.
        reference: Log densities of the reference data, `(reference, batch)`, in nats, estimated
            with the same entries missing as in each datum. If no entry is missing, all columns are
            equal.
        compared: Number of reference data that each datum was compared with, `(batch,)`. A datum
            more unusual than all of `reference` may have been compared with a second, larger
            reference. The number is then the size of that reference.
        tail: Which log densities count as unusual.
    """

    tail_probability: Estimate
    log_p: LogMarginal
    reference: Float[Tensor, "reference batch"] = field(metadata={"axis": 1})
    compared: Int64[Tensor, " batch"]
    tail: Tail = Tail.LOW

    @property
    def value(self) -> Tensor:
        """The tail probability of every datum."""
        return self.tail_probability.value

    @property
    def error(self) -> Tensor:
        """Standard error of the tail probability."""
        return self.tail_probability.error

    @property
    def doubts(self) -> Doubts:
        """Reasons to doubt a datum's log p, each with a mask of the data.

        The test of a datum in doubt loses power, but remains valid.
        """
        return self.log_p.doubts

    def columns(self) -> dict[str, Tensor]:
        """Returns tail probability and log p of every datum with errors, and the flags, by name."""
        estimates = {"tail_probability": self.estimate, "log_p": self.log_p.estimate}
        return with_errors(estimates) | {"flagged": self.flagged()}

    def plot(self) -> NDArray[Any]:
        """Plots log p of data and reference, and the tail probabilities; needs matplotlib."""
        from ..plots import plot_outliers

        reference = self.reference.unique(dim=1).flatten()  # once per pattern of holes
        return plot_outliers(self.log_p.value, self.value, reference, self.flagged())

    def flagged(self, control: stats.Control | None = None) -> Bool[Tensor, " batch"]:
        """Returns a mask of the data that are flagged as outliers.

        Arguments:
            control: :class:`pyro_vae.stats.FalseDiscoveries` at 5% by default, or
                :class:`pyro_vae.stats.FalseAlarms`.
        """
        return (control or stats.FalseDiscoveries())(self.tail_probability.value)

    @property
    def beyond(self) -> Bool[Tensor, " batch"]:
        """Mask of the data that lie beyond all reference data, with the lowest tail probability."""
        fewest = 1 if self.tail is Tail.LOW else 2
        return self.value * (self.compared + 1) <= fewest * (1 + 1e-6)

    def enough(self, control: stats.Control | None = None) -> int:
        """Returns how many reference data suffice to flag the data that lie beyond the reference.

        These data are assumed to lie beyond a larger reference, too. The result is the present
        number of reference data, doubled as often as necessary (up to a limit). If no datum lies
        beyond the reference, the result is the present number.
        """
        how, beyond = control or stats.FalseDiscoveries(), self.beyond
        if not bool(beyond.any()):
            return len(self.reference)
        number = int(self.compared.max())
        lowest = self.value[beyond] * (self.compared[beyond] + 1)
        while number < _MOST_REFERENCE:
            moved = self.value.masked_scatter(beyond, lowest / (number + 1))
            if bool(how(moved)[beyond].all()):
                break
            number *= 2
        return number

    def most_extreme(self, number: int = 10) -> Tensor:
        """Returns the positions of the most unusual data.

        Data are ordered by tail probability; ties are ordered by log p.
        """
        by_density = self.log_p.value.argsort(stable=True)
        order = self.tail_probability.value[by_density].argsort(stable=True)
        return by_density[order][:number]

    def summary(self, control: stats.Control | None = None) -> str:
        """Says how many data are flagged, and how many others lie beyond all reference data."""
        how = control or stats.FalseDiscoveries()
        number, size = int(self.flagged(how).sum()), len(self.reference)
        most = int(self.compared.max())
        again = f" ({most} for data that lie beyond all {size})" if most > size else ""
        beyond = int((self.beyond & ~self.flagged(how)).sum())
        enough = self.enough(how)
        more = (
            f"; {count_of(beyond, 'datum')} beyond all reference data can be flagged only with a "
            f"larger reference: pass `reference={enough}` (command line: --reference {enough})"
            if beyond
            else ""
        )
        bad = int((~self.reliable).sum())
        doubt = f"; log p of {count_of(bad, 'datum')} cannot be trusted, so outliers may be missed"
        return (
            f"{number} of {count_of(len(self.log_p.value), 'datum')} flagged as outliers "
            f"{self.tail.value} at {how}, against "
            f"{count_of(size, 'reference datum')}{again}{more}{doubt if bad else ''}"
        )


def outliers(
    model: ProgramLike,
    guide: ProgramLike | None,
    data: Data,
    reference: Data | int = _REFERENCE,
    estimator: Estimator | None = None,
    *,
    tail: Tail = Tail.LOW,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Outliers:
    r"""Tests, by its log density, whether each datum is unusual compared with reference data.

    .. math:: \hat p_n = \frac{1 + \#\{r : \log \hat p(y_r) \le \log \hat p(y_n)\}}{R + 1}

    The reference decides what is tested. Simulated data test whether the model produces data like
    this datum: if the model does not fit, many ordinary data are flagged. Held-out data without
    outliers test whether the datum differs from ordinary data, whatever the model. Do not use
    training data as the reference: the model fits them too well, so too many data would be flagged.
    In many dimensions almost no data lie near the mode, where the density is highest. So a datum
    near the mode is unusual, too; :attr:`Tail.BOTH` can flag it.

    No tail probability is below 1 / (R + 1). Flagging k of N data at a false discovery rate
    :math:`\alpha` needs :math:`R \ge N / (k \alpha)`. If a simulated reference is too small, data
    beyond the reference are compared again with a larger reference, unless this would take much
    longer. `summary` says if the larger reference was still too small.

    Arguments:
        model: A Pyro program with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand. If it is `None`, or if
            it has :class:`pyro_vae.LocalParameters` (which do not exist for the reference data), a
            Gaussian is fitted to the posterior of every row instead.
        data: The batch tensor, or a tuple of them.
        reference: Number of data to simulate from the model, or held-out data without missing
            entries. Simulated data have the covariates of the rows of `data`, which are
            repeated if necessary.
        estimator: As in :func:`pyro_vae.log_marginal_likelihood`, for data and reference alike; by
            default importance sampling with 250 draws. The cost is proportional to the size of the
            reference times the number of patterns of missing entries.
        tail: Which log densities count as unusual.
        given: Values of the global latent sites, by name.
        seed: Seed of all draws.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Tail probabilities with their errors; call `flagged` for a decision. Where entries are
        missing, reference data are scored with the same entries missing, once for each pattern.

    Raises:
        ValueError: If there is no reference datum, or the program cannot be simulated.

    References:
        | Testing for Outliers with Conformal p-values (Bates et al., 2023)
        | https://arxiv.org/abs/2104.08279
        | Do Deep Generative Models Know What They Don't Know? (Nalisnick et al., 2019)
        | https://arxiv.org/abs/1810.09136

    Example:
        >>> from pyro_vae import likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> y = torch.cat([model.sample(9, seed=1), 50 * torch.ones(1, 3)])
        >>> outliers(model, None, y, reference=39).most_extreme(1)
        tensor([9])
    """
    batch = as_batch(data, device_of(model, guide or model))
    require_holes(model, batch)
    guide, given = for_any_rows(guide, given)
    how = estimator or default_estimator(guide, _DRAWS)
    scores = _Scores(model, guide, given, how, seed, progress)
    held = scores.reference(batch, reference, "outliers.reference")
    log_p = scores.of(batch)
    of_reference = scores.of_reference(batch[0], held)
    number = torch.full((len(batch[0]),), len(of_reference), device=of_reference.device)
    found = Outliers(_tails(log_p, of_reference, tail), log_p, of_reference, number, tail)
    return _compared_again(found, batch, scores) if isinstance(reference, int) else found


@dataclass(frozen=True)
class _Scores:
    """Estimates log densities of rows, in the same way for data and reference."""

    model: ProgramLike
    guide: ProgramLike | None
    given: Mapping[str, Tensor] | None
    how: Estimator
    seed: int
    progress: bool | None

    def of(self, rows: Batch) -> LogMarginal:
        """Estimates the log density of every row, with its error."""
        proposal = guide_for(self.model, self.guide, rows, self.given)
        with conditioned(self.model, proposal, rows, self.seed, self.given) as inference:
            return self.how(inference, seed=self.seed, progress=self.progress)

    def values(self, rows: Batch) -> Tensor:
        """Estimates the log density of every row, but not its error; this is faster than `of`."""
        how = self.how
        if not isinstance(how, ImportanceSampling) or how.until is not None:
            return self.of(rows).value
        proposal = guide_for(self.model, self.guide, rows, self.given)
        with conditioned(self.model, proposal, rows, self.seed, self.given) as inference:
            return how.sampling(inference, seed=self.seed, progress=self.progress).log_means()

    def reference(self, batch: Batch, given: Data | int, name: str) -> Batch:
        """Returns the held-out data or, if `given` is a number, that many simulated data.

        `name` identifies the random stream of the simulation.
        """
        if not isinstance(given, int):
            held = as_batch(given, device_of(self.model, self.guide or self.model), "reference")
            if not len(held[0]) or has_missing(held[0]):
                raise ValueError(
                    "`reference` must have at least one row and no missing entries; got "
                    f"{count_of(len(held[0]), 'row')} with "
                    f"{count_of(int(held[0].isnan().sum()), 'missing entry')}: leave out rows with "
                    "nan"
                )
            check_more_data(self.model, batch, held, "reference")
            return held
        if given < 1:
            raise ValueError(f"`reference` must be at least 1 datum; got {given}")
        first, *others = first_rows(batch, given)
        rows = (first.nan_to_num(nan=0.0), *others)  # simulated rows would lack the same entries
        with simulating(self.model, self.guide, rows, self.seed, self.given) as program:
            return simulate(program, rows, stream(self.seed, name))[1]

    def of_reference(self, y: Tensor, held: Batch) -> Float[Tensor, "reference batch"]:
        """Estimates log densities of the reference data, `(reference, batch)`.

        For column n of the result, the reference data lack the entries that are missing in row n
        of `y`.
        """
        patterns, which = _patterns(y)
        if has_missing(held[0]):  # a model of missingness has simulated which entries are missing
            return self.values(held)[:, None].expand(-1, len(which))
        # All patterns in one run, so that there is one progress bar.
        holed = [with_holes(held, pattern) for pattern in patterns]
        found = self.values(join(holed)).reshape(len(patterns), -1).T
        if len(patterns) == 1:  # no copy for each row
            return found.expand(-1, len(which))
        return found[:, which]


def _patterns(y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct patterns of missing entries, and the index of each row's pattern."""
    patterns, which = y.isnan().unique(dim=0, return_inverse=True)
    return patterns, which


def _compared_again(found: Outliers, batch: Batch, scores: _Scores) -> Outliers:
    """Compares the data that lie beyond the reference once more, with a larger reference.

    The result is unchanged if the present reference suffices (see :meth:`Outliers.enough`), or if
    the comparison would be too slow.
    """
    number, rows, y = found.enough(), found.beyond.nonzero()[:, 0], batch[0]
    if number == len(found.reference):
        return found
    further = number * len(_patterns(y[rows])[0])
    before = len(y) + len(found.reference) * len(_patterns(y)[0])
    most = _MOST_FITTED if scores.guide is None else _MOST_FURTHER
    if further > most * before:
        return found
    held = scores.reference(batch, number, "outliers.further")
    tails = _tails(found.log_p[rows], scores.of_reference(y[rows], held), found.tail)
    return replace(
        found,
        tail_probability=with_rows(found.tail_probability, rows, tails),
        compared=found.compared.index_fill(0, rows, number),
    )


def _tails(log_p: LogMarginal, reference: Float[Tensor, "reference batch"], tail: Tail) -> Estimate:
    """Computes the tail probability of every datum, with its error."""
    value, from_reference = _ranked(log_p.value, reference, tail)
    # The error of the datum's own log p: the effect of moving it by one standard error.
    higher, lower = (
        _ranked(log_p.value + sign * log_p.error, reference, tail).value for sign in (1, -1)
    )
    return Estimate(value, torch.hypot(from_reference, (higher - lower) / 2))


def _ranked(score: Tensor, reference: Tensor, tail: Tail) -> Estimate:
    """Computes the tail probability of every datum; its error is due to the finite reference."""
    # Equal data must tie, although rounding may differ between batches.
    tolerance = stats.rounding(score.where(score.isfinite(), 0.0))  # infinite scores tie exactly
    both = tail is Tail.BOTH
    return stats.tail_probability(-score, -reference, two_sided=both, tolerance=tolerance)
