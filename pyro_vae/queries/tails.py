r"""Unusual data under the model, with calibrated tail probabilities.

A log density alone is not informative: what counts as low depends on the model. So each datum is
compared with reference data, simulated or held out, scored in the same way. If the datum is
exchangeable with the n reference data, its rank among them is uniform, and

.. math:: \hat p = \frac{1 + \#\{r : s_r \le s\}}{n + 1}

is at most :math:`\alpha` with a probability of at most :math:`\alpha`, for any n and any score.
Noise or bias in estimates of log p(y) makes the test less powerful, but not invalid.

If some data lie beyond all n simulated ones, and n is too small to flag them, these are compared
again, with a larger reference. The p-value from the second one is valid, too: that it is at most
:math:`\alpha` implies a rank as low as that in the second reference if :math:`\alpha < 1/(n+1)`,
and in the first one otherwise, and either has a probability of at most :math:`\alpha`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence import (
    Fitted,
    ImportanceSampling,
    LogMarginal,
    check_more_data,
    first_rows,
    prepared,
)
from ..evidence.estimates import Estimator
from ..programs import as_batch, device_of, has_missing, simulate
from ..randomness import stream
from ..results import Doubts, PerDatum
from .forward import simulating
from .weighted import guide_for, require_holes

_DRAWS = 250  # for each log p: its error is small beside the spread of the reference data
_MOST_REFERENCE = 10**9  # where `enough` stops doubling
_REFERENCE = 1000  # simulated data: tail probabilities down to a thousandth
# The second reference takes at most so many times the rows of the first run: sampling from a guide
# is fast, and fitting a Gaussian to every row is not.
_MOST_FURTHER, _MOST_FITTED = 20, 2


class Tail(Enum):
    """Which data count as unusual."""

    LOW = "of low density"
    BOTH = "of low or unusually high density"


@dataclass(frozen=True, repr=False)
class Outliers(PerDatum):
    """How unusual each datum is.

    Arguments:
        tail_probability: Share of reference data at least as unusual, `(batch,)`, with the error
            from their number and from estimating log p of the datum.
        log_p: Log density of every datum, with its error and how far to trust it.
        reference: Log densities of the reference data, `(reference, batch)`, in nats, scored with
            the same entries missing as in each datum; all columns are equal if none is missing.
        compared: Number of reference data that each datum was compared with, `(batch,)`: more than
            in `reference` for data that lay beyond all of these.
        tail: Which data count as unusual.
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
        """The doubts about log p; they reduce the power of the test, not its validity."""
        return self.log_p.doubts

    def columns(self) -> dict[str, Tensor]:
        """Tail probability and log p of every datum, with errors, and whether it is flagged."""
        return {
            "tail_probability": self.value,
            "tail_probability_error": self.error,
            "log_p": self.log_p.value,
            "log_p_error": self.log_p.error,
            "flagged": self.flagged(),
        }

    def plot(self) -> Any:
        """Log p beside that of the reference, and the tail probabilities; needs matplotlib."""
        from ..plots import plot_outliers

        reference = self.reference.unique(dim=1).flatten()  # once for each pattern of holes
        return plot_outliers(self.log_p.value, self.value, reference, self.flagged())

    def flagged(self, control: stats.Control | None = None) -> Bool[Tensor, " batch"]:
        """Data that are flagged as outliers.

        Arguments:
            control: :class:`pyro_vae.stats.FalseDiscoveries` at 5% by default, or
                :class:`pyro_vae.stats.FalseAlarms`.
        """
        return (control or stats.FalseDiscoveries())(self.tail_probability.value)

    @property
    def beyond(self) -> Bool[Tensor, " batch"]:
        """Data beyond all reference data: their tail probability is the lowest possible."""
        fewest = 1 if self.tail is Tail.LOW else 2
        return self.value * (self.compared + 1) <= fewest * (1 + 1e-6)

    def enough(self, control: stats.Control | None = None) -> int:
        """How many reference data it takes to flag all data beyond them, if they stay beyond.

        It is the present number, doubled until all would be flagged; unchanged if none is beyond.
        """
        how, beyond = control or stats.FalseDiscoveries(), self.beyond
        number = int(self.compared.max()) if bool(beyond.any()) else len(self.reference)
        lowest = self.value[beyond] * (self.compared[beyond] + 1)
        while bool(beyond.any()) and number < _MOST_REFERENCE:
            moved = self.value.masked_scatter(beyond, lowest / (number + 1))
            if bool(how(moved)[beyond].all()):
                break
            number *= 2
        return number

    def most_extreme(self, number: int = 10) -> Tensor:
        """Positions of the most unusual data, the most unusual first; ties by log p."""
        by_density = self.log_p.value.argsort(stable=True)
        order = self.tail_probability.value[by_density].argsort(stable=True)
        return by_density[order][:number]

    def summary(self, control: stats.Control | None = None) -> str:
        """The number of flagged data, and how many more lie beyond all reference data."""
        how = control or stats.FalseDiscoveries()
        number, size = int(self.flagged(how).sum()), len(self.reference)
        most = int(self.compared.max())
        again = f" (those beyond all of these against {most})" if most > size else ""
        beyond = int((self.beyond & ~self.flagged(how)).sum())
        enough = self.enough(how)
        more = (
            f"; {beyond} more lie beyond all of these, which are too few to flag them: ask for "
            f"{enough} (reference={enough}, --reference {enough})"
            if beyond
            else ""
        )
        bad = int((~self.reliable).sum())
        doubt = f"; log p of {bad} cannot be trusted, which costs power" if bad else ""
        return (
            f"{number} of {len(self.log_p.value)} data flagged as {self.tail.value} at {how}, "
            f"against {size} reference data{again}{more}{doubt}"
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
    r"""Compares the log density of every datum with those of reference data.

    .. math:: \hat p_n = \frac{1 + \#\{r : \log \hat p(y_r) \le \log \hat p(y_n)\}}{R + 1}

    The reference decides what is tested. Simulated data test whether the model produces such a
    datum: if the model does not fit, many ordinary data are flagged. Held-out data, clean and
    exchangeable with ordinary ones, test whether the datum differs from them, whatever the model.
    Training data are no reference: they are fitted too well, so too many data would be flagged. A
    density is high near the mode, where in many dimensions almost no data lie: :attr:`Tail.BOTH`
    flags data there too.

    No tail probability is below 1 / (R + 1). Flagging k of N data at a false discovery rate
    :math:`\alpha` needs :math:`R \ge N / k \alpha`. Data beyond a simulated reference that is too
    small are compared again with a larger one, unless that would take much longer; `summary` says
    if R was still too small.

    Arguments:
        model: A Pyro program with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or one written by hand; `None` fits a Gaussian to the
            posterior of every row.
        data: The batch tensor, or a tuple of them.
        reference: Number of data to simulate from the model (with the further tensors of `data`,
            repeated), or complete held-out data.
        estimator: As in :func:`pyro_vae.log_marginal_likelihood`, for data and reference alike; by
            default importance sampling with 250 draws. The cost is that of the reference data,
            times the number of patterns of missing entries.
        tail: Which data count as unusual.
        given: Values of the global latent sites, by name.
        seed: Seed of all draws.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Tail probabilities with their errors; call `flagged` for a decision. Where entries are
        missing, the reference data are scored with the same ones missing, once for each pattern.

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
    scores = _Scores(model, guide, given, estimator or _default(guide), seed, progress)
    held = scores.reference(batch, reference, "outliers.reference")
    scored = scores.of(batch)
    beside = scores.beside(batch[0], held)
    number = torch.full((len(batch[0]),), len(beside), device=beside.device)
    found = Outliers(_tails(scored, beside, tail), scored, beside, number, tail)
    return _compared_again(found, batch, scores) if isinstance(reference, int) else found


@dataclass(frozen=True)
class _Scores:
    """Log densities of rows, estimated in one way for data and reference alike."""

    model: ProgramLike
    guide: ProgramLike | None
    given: Mapping[str, Tensor] | None
    how: Estimator
    seed: int
    progress: bool | None

    def of(self, rows: Batch) -> LogMarginal:
        """Log density of every row, with its error."""
        proposal = guide_for(self.model, self.guide, rows, self.given)
        with prepared(self.model, proposal, rows, self.seed, self.given) as inference:
            return self.how(inference, seed=self.seed, progress=self.progress)

    def ranked(self, rows: Batch) -> Tensor:
        """Log density of every row, without its error."""
        how = self.how
        if not isinstance(how, ImportanceSampling) or how.until is not None:
            return self.of(rows).value
        proposal = guide_for(self.model, self.guide, rows, self.given)
        with prepared(self.model, proposal, rows, self.seed, self.given) as inference:
            return how.log_means(inference, seed=self.seed, progress=self.progress)

    def reference(self, batch: Batch, given: Data | int, name: str) -> Batch:
        """Returns held-out data as given, or simulates data from the random stream of that name."""
        if not isinstance(given, int):
            held = as_batch(given, device_of(self.model, self.guide or self.model), "reference")
            if not len(held[0]) or has_missing(held[0]):
                raise ValueError(
                    f"reference data must have at least one row and no missing entries; got "
                    f"{len(held[0])} rows with {int(held[0].isnan().sum())} missing entries; "
                    "leave out rows with nan"
                )
            check_more_data(self.model, batch, held, "reference")
            return held
        if given < 1:
            raise ValueError(f"a rank needs at least 1 reference datum, got {given}")
        first, *others = first_rows(batch, given)
        rows = (first.nan_to_num(nan=0.0), *others)  # else simulated rows have the same holes
        with simulating(self.model, self.guide, rows, self.seed, self.given) as program:
            return simulate(program, rows, stream(self.seed, name))[1]

    def beside(self, y: Tensor, held: Batch) -> Float[Tensor, "reference batch"]:
        """Scores the reference data with the same entries missing as in each row of `y`."""
        patterns, which = _patterns(y)
        # All patterns in one run, so that its progress bar covers them all.
        holed = [_with_holes(held, pattern) for pattern in patterns]
        every = tuple(torch.cat(parts) for parts in zip(*holed, strict=True))
        found = self.ranked(every).reshape(len(patterns), -1).T
        if len(patterns) == 1:  # no copy for each row
            return found.expand(-1, len(which))
        return found[:, which]


def _patterns(y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct patterns of missing entries, and the index of each row's pattern."""
    holes: Tensor = y.isnan().reshape(len(y), -1)
    patterns, which = holes.unique(dim=0, return_inverse=True)
    return patterns, which


def _compared_again(found: Outliers, batch: Batch, scores: _Scores) -> Outliers:
    """Compares data beyond the whole reference with one that is large enough to flag them."""
    number, rows, y = found.enough(), found.beyond.nonzero()[:, 0], batch[0]
    if number == len(found.reference):
        return found
    further = number * len(_patterns(y[rows])[0])
    before = len(y) + len(found.reference) * len(_patterns(y)[0])
    most = _MOST_FITTED if scores.guide is None else _MOST_FURTHER
    if further > most * before:
        return found
    beside = scores.beside(y[rows], scores.reference(batch, number, "outliers.further"))
    tails = _tails(found.log_p[rows], beside, found.tail)
    parts = zip(found.tail_probability, tails, strict=True)
    value, error = (old.index_copy(0, rows, new.to(old)) for old, new in parts)
    compared = found.compared.index_fill(0, rows, number)
    return replace(found, tail_probability=Estimate(value, error), compared=compared)


def _default(guide: ProgramLike | None) -> Estimator:
    if guide is None:
        return ImportanceSampling(_DRAWS, proposal=Fitted())
    return ImportanceSampling(_DRAWS)


def _with_holes(batch: Batch, pattern: Bool[Tensor, " features"]) -> Batch:
    if not bool(pattern.any()):
        return batch
    mask = pattern.reshape(batch[0].shape[1:])
    return (batch[0].masked_fill(mask, torch.nan), *batch[1:])


def _tails(
    scored: LogMarginal, reference: Float[Tensor, "reference batch"], tail: Tail
) -> Estimate:
    """Tail probabilities with their errors."""
    value, counted = _ranked(scored.value, reference, tail)
    # Errors of the finite reference, and from moving the datum's log p by one standard error.
    higher, lower = (
        _ranked(scored.value + sign * scored.error, reference, tail).value for sign in (1, -1)
    )
    return Estimate(value, torch.hypot(counted, (higher - lower) / 2))


def _ranked(score: Tensor, reference: Tensor, tail: Tail) -> Estimate:
    # A datum ties with itself, however it was rounded in another batch.
    tolerance, both = stats.rounding(score), tail is Tail.BOTH
    return stats.tail_probability(-score, -reference, two_sided=both, tolerance=tolerance)
