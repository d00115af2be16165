r"""Predictive checks: does the model simulate data sets that look like the observed one?

A statistic :math:`T` of the observed data set :math:`y` is compared with its values for data sets
:math:`y^{(1)}, \ldots, y^{(R)}` of the same size simulated from the model. The source of the
latents decides what is tested.

With latents from the prior, :math:`z_n \sim p(z)`, the replicates are draws of :math:`p(y)`, and
the test is whether the data could come from the model. If the data come from the model, and
the model was not fitted to them, then the observed data set is one more draw, its rank among the
replicates is uniform, and

.. math:: \hat p = \frac{1 + \#\{r : T(y^{(r)}) \ge T(y)\}}{R + 1}

is the p-value of one tail: at most :math:`\alpha` with a probability of at most :math:`\alpha`, for
any R. A statistic that is one number gets a two-sided p-value, twice the smaller of the p-values of
its two tails. For a vector, :math:`T` is the largest deviation, and its p-value is one-sided.

With latents from the guide, :math:`z_n \sim q(z \mid y_n)`, every datum is compared with replicates
of itself. The latents were inferred from the data, so the replicates are too similar to the data,
and p-values concentrate around 1/2: such a check is optimistic. But if even this check rejects, the
model does not reproduce the data from the latents inferred for them.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence.weights import conditioned, rows_at_once
from ..formatting import count_of, plus_minus
from ..guides import Posterior
from ..guides.entry import draw_globals, no_guide, posterior_of, shared_only
from ..programs import Program, simulate
from ..programs.missing import has_missing, with_missing
from ..programs.pieces import take_rows
from ..programs.simulation import generated, with_observed
from ..programs.traces import repeat_rows, retry_unvalidated
from ..progress import progress_bar
from ..randomness import forked
from ..results import Result, combined
from .calibration import require_discrete_draws

_TRIED = 4  # number of rows with which the program is run as a check
_DEVIATION = " (largest deviation, sd)"  # is added to the name of a statistic that is a vector

Statistic: TypeAlias = Callable[[Batch], Tensor]
"""A function from a data set (the tensors that the model takes) to a number or a vector."""


class Latents(Enum):
    """Where the latents of simulated data sets come from: the prior or the guide."""

    PRIOR = "prior"
    GUIDE = "guide"


_DESCRIPTION = {
    Latents.PRIOR: "data sets of the model, p(y)",
    Latents.GUIDE: "data sets simulated from the guide's latents, q(z | y)",
}


@dataclass(frozen=True, repr=False)
class PredictiveCheck(Result):
    """Statistics of the observed data set, and of replicates: data sets simulated from the model.

    A statistic with several entries is replaced by its largest deviation from the mean over all
    data sets, including the observed one, in standard deviations.

    Arguments:
        names: Names of the statistics.
        observed: Statistics of the observed data set, `(statistics,)`, each in its own unit.
        replicated: Statistics of the replicated data sets, `(draws, statistics)`.
        p_values: P-values, `(statistics,)`, with errors due to the finite number of replicates.
            They are two-sided, except for largest deviations, whose p-values are one-sided.
        latents: Where the latents of the replicates came from.
        given: Text that names the global sites on which the replicates are conditional; empty if
            there are none.
    """

    names: tuple[str, ...]
    observed: Float64[Tensor, " statistics"]
    replicated: Float64[Tensor, "draws statistics"]
    p_values: Estimate
    latents: Latents = Latents.PRIOR
    given: str = ""

    def plot(self) -> NDArray[Any]:
        """Plots the observed statistics among the replicated ones; needs matplotlib."""
        from ..plots import plot_predictive_check

        p_values = dict(zip(self.names, self.p_values.value.tolist(), strict=True))
        return plot_predictive_check(self.observed_by_name, self.replicated_by_name, p_values)

    @property
    def adjusted(self) -> Float64[Tensor, " statistics"]:
        """P-values adjusted by Holm's method for the number of statistics."""
        return stats.holm(self.p_values.value)

    @property
    def observed_by_name(self) -> dict[str, float]:
        """The observed statistics by name, in the form that the plot expects."""
        return dict(zip(self.names, self.observed.tolist(), strict=True))

    @property
    def replicated_by_name(self) -> dict[str, Tensor]:
        """The replicated statistics by name, `(draws,)` each, in the form that the plot expects."""
        return dict(zip(self.names, self.replicated.T, strict=True))

    def verdict(self, false_alarm: float = 0.05) -> str:
        """Says which statistics of the data differ from those of the replicates, and how.

        Arguments:
            false_alarm: Probability that data from the model are rejected, over all statistics; for
                latents from the guide the actual probability is lower.
        """
        rate = (
            f"false-alarm rate of {false_alarm:g} over {count_of(len(self.names), 'statistic')} "
            "(Holm)"
        )
        rejected = (self.adjusted < false_alarm).nonzero().flatten().tolist()
        replicates = _DESCRIPTION[self.latents]
        if rejected:
            misfits = "; ".join(self._misfit(place) for place in rejected)
            return f"the data do not look like {replicates}, at a {rate}: {misfits}"
        return (
            f"the data cannot be distinguished from {replicates}, at a {rate}"
            f"{self._caution(false_alarm)}"
        )

    def _caution(self, false_alarm: float) -> str:
        """Says why a check that rejects nothing may be weak evidence for the model.

        The text is empty if there is no such reason.
        """
        if self.latents is Latents.GUIDE:
            return (
                "; the latents were inferred from these data, so this check is optimistic: pass "
                "`latents=pv.diagnostics.Latents.PRIOR` to test the model itself"
            )
        needed = 2 * len(self.names) / false_alarm  # data sets; with fewer, Holm rejects nothing
        if len(self.replicated) + 1 > needed:
            return ""
        has_one_sided = any(name.endswith(_DEVIATION) for name in self.names)
        possible = has_one_sided and len(self.replicated) + 1 > needed / 2
        return (
            f"; with {count_of(len(self.replicated), 'replicate')}, "
            f"{'only largest deviations' if possible else 'nothing'} can be rejected: pass "
            f"`num_samples={math.ceil(needed)}`"
        )

    def summary(self, false_alarm: float = 0.05) -> str:
        """Returns one line of text per statistic, then the verdict."""
        range_95 = self.replicated.quantile(self.replicated.new_tensor([0.025, 0.975]), dim=0)
        columns = (self.observed, *range_95, *self.p_values, self.adjusted)
        lines = [
            f"{name}: {value:.4g} observed, {lower:.4g} to {upper:.4g} replicated (95%), "
            f"p = {plus_minus(p, error, '.2g')}, adjusted {adjusted:.2g}"
            for name, value, lower, upper, p, error, adjusted in zip(
                self.names, *columns, strict=True
            )
        ]
        return "\n".join([*lines, self.verdict(false_alarm)])

    def _misfit(self, place: int) -> str:
        value, replicated = self.observed[place], self.replicated[:, place]
        below, above = (replicated < value).double().mean(), (replicated > value).double().mean()
        side, share = ("above", below) if below > above else ("below", above)
        return (
            f"{self.names[place]} = {float(value):.4g} is {side} {float(share):.1%} of replicates"
        )


def predictive_check(
    model: ProgramLike,
    guide: ProgramLike | None,
    data: Data,
    statistics: Mapping[str, Statistic] | None = None,
    *,
    num_samples: int = 1000,
    latents: Latents = Latents.PRIOR,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PredictiveCheck:
    r"""Compares statistics of a data set with those of data sets simulated from the model.

    .. math:: z_n^{(r)} \sim p(z) \text{ or } q(z \mid y_n), \qquad
        y_n^{(r)} \sim p(y \mid z_n^{(r)}), \qquad
        \hat p = \frac{1 + \#\{r : T(y^{(r)}) \ge T(y)\}}{R + 1}

    :math:`\hat p` is the p-value of one tail. A statistic that is one number gets a two-sided
    p-value, twice the smaller of the p-values of its two tails. For a vector, :math:`T` is the
    largest deviation, and its p-value is one-sided.

    Replicates are data sets of the same size with the same covariates, and with the same entries
    missing (nan). Your own statistics must skip missing entries. Latents from the prior (the
    default) test whether the data could come from the model. Latents from the guide were inferred
    from the data, so a check with them is optimistic: only rejections are meaningful. P-values
    are exact for data that the model was not fitted to. For the model's training data they are too
    large.

    Global latent sites are drawn from their posterior for every data set, unless their values are
    given. If they are drawn, p-values are conservative.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data, whose observations are
            tensors of the batch or parts of them.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand. It may be `None` if
            latents are drawn from the prior and the model has no global latent sites.
        data: The observed data set: the batch tensor, or a tuple of tensors.
        statistics: Functions from a data set (a tuple of tensors, as the model takes them) to one
            number or a vector, by name; :func:`default_statistics` by default.
        num_samples: Number of replicated data sets, :math:`R`.
        latents: Where the latents of the replicates come from.
        given: Values of the global latent sites, by name.
        seed: Seed of all draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Statistics, p-values with their Monte Carlo error, and a verdict.

    Raises:
        ValueError: If the program cannot be simulated row by row, if a statistic is not a finite
            number, or if there are fewer than two data or draws.

    References:
        | Posterior Predictive Assessment of Model Fitness via Realized Discrepancies
          (Gelman, Meng & Stern, 1996)
        | https://www.jstor.org/stable/24306036
        | Asymptotic Distribution of P Values in Composite Null Models
          (Robins, van der Vaart & Ventura, 2000)
        | https://doi.org/10.1080/01621459.2000.10474310

    Example:
        >>> import pyro
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> check = predictive_check(model, None, 9 * torch.ones(50), num_samples=100)
        >>> "mean = 9 is above 100.0% of replicates" in check.verdict(false_alarm=0.2)
        True
    """
    _check_arguments(guide, num_samples, latents, statistics)
    proposal = guide or no_guide
    proposal = proposal if latents is Latents.GUIDE else shared_only(proposal)
    with conditioned(model, proposal, data, seed, given) as (program, _, batch):
        _check_simulable(program, batch, latents, seed)
        runs = _runs(program, proposal, batch, num_samples, given, latents, seed)
        tensors = _observed_tensors(program, batch)
        functions = default_statistics(batch, tensors.parts) if statistics is None else statistics
        replicates = _replicates(runs, batch, tensors, seed)
        bar = progress_bar(replicates, show=progress, desc="replicates", total=num_samples)
        observed = _values(functions, batch)
        replicated = [_values(functions, replicate) for replicate in bar]
    result = _compared(functions, observed, replicated, keep_constant=statistics is not None)
    return PredictiveCheck(*result, latents, runs[0].program.conditions)


class _Run(NamedTuple):
    """A program with given global values, and the number of data sets to simulate from it."""

    program: Program
    posterior: Posterior | None
    num_samples: int


def _check_arguments(
    guide: ProgramLike | None,
    num_samples: int,
    latents: Latents,
    statistics: Mapping[str, Statistic] | None,
) -> None:
    if num_samples < 2:
        raise ValueError(f"`num_samples` must be at least 2 data sets; got {num_samples}")
    if statistics is not None and not statistics:
        raise ValueError("`statistics` must contain at least one statistic; got an empty mapping")
    if guide is None and latents is Latents.GUIDE:
        raise ValueError(
            "`guide` must be given if the latents come from the guide (`latents=Latents.GUIDE`); "
            "got None: pass a guide, or `latents=pv.diagnostics.Latents.PRIOR`"
        )


def _check_simulable(program: Program, batch: Batch, latents: Latents, seed: int) -> None:
    if len(batch[0]) < 2:
        raise ValueError("`data` must have at least 2 rows; got 1")
    if latents is Latents.GUIDE:
        remedy = "pass `latents=pv.diagnostics.Latents.PRIOR`"
        require_discrete_draws(program, "data cannot be simulated from the guide", remedy)
    simulate(program, take_rows(batch, slice(_TRIED)), seed)


def _runs(
    program: Program,
    guide: ProgramLike,
    batch: Batch,
    num_samples: int,
    given: Mapping[str, Tensor] | None,
    latents: Latents,
    seed: int,
) -> list[_Run]:
    """Returns one run for all replicates or, with global sites, one run per replicate."""

    def run(at: Program, number: int) -> _Run:
        inferred = latents is Latents.GUIDE
        return _Run(at, posterior_of(guide, at, batch) if inferred else None, number)

    if given is not None or not program.global_sites:
        return [run(program, num_samples)]
    draws = draw_globals(program, guide, batch, num_samples, seed)
    return [run(program.given(d.values, "draws of their posterior"), 1) for d in draws]


def _replicates(runs: list[_Run], batch: Batch, tensors: "_Observed", seed: int) -> Iterator[Batch]:
    """Yields replicated data sets one by one; the program simulates several at a time."""
    size = max(1, rows_at_once(runs[0].program, batch) // len(batch[0]))
    number = 0
    for program, posterior, num_samples in runs:
        for first in range(0, num_samples, size):
            count = min(size, num_samples - first)
            with forked(seed, f"replicate.{number}"):
                whole = _replicated(program, posterior, batch, tensors, count)
            parts = [part.unflatten(0, (count, -1)) for part in whole]
            yield from zip(*parts, strict=True)
            number += count


def _replicated(
    program: Program, posterior: Posterior | None, batch: Batch, tensors: "_Observed", count: int
) -> Batch:
    """Simulates `count` replicated data sets, concatenated in one batch."""
    rows = repeat_rows(batch, count)
    if posterior is None:
        drawn = program.run_forward(rows)
    else:
        z, _ = retry_unvalidated(partial(posterior.draw, count))
        drawn = generated(program, z, rows)
    if tensors.whole is None:
        return with_observed(program, rows, drawn.values(program.observed_names))
    replaced = list(rows)
    for name, index in tensors.whole:
        site = drawn[name]
        replaced[index] = with_missing(site.distribution, site.value, rows[index]).to(rows[index])
    return tuple(replaced)


class _Observed(NamedTuple):
    """The tensors of the batch that a program observes.

    Arguments:
        parts: Positions in the batch of the observed tensors.
        whole: The name of every observed site with the position of its tensor, if the value of
            every site is a whole tensor of the batch and no two sites share a tensor. A site's
            draws can then replace its tensor without a second run of the program. In all other
            cases it is `None`.
    """

    parts: tuple[int, ...]
    whole: tuple[tuple[str, int], ...] | None


def _observed_tensors(program: Program, batch: Batch) -> _Observed:
    """Runs the program on a few rows to find which tensors of the batch it observes."""
    rows = tuple(part[:_TRIED].clone() for part in batch)
    values = program.run(rows).values(program.observed_names)
    places = {part.untyped_storage().data_ptr(): index for index, part in enumerate(rows)}
    parts = {name: places[value.untyped_storage().data_ptr()] for name, value in values.items()}
    whole = all(
        value.shape == rows[parts[name]].shape and value.stride() == rows[parts[name]].stride()
        for name, value in values.items()
    )
    distinct = tuple(sorted(set(parts.values())))
    alone = len(distinct) == len(parts)
    return _Observed(distinct, tuple(parts.items()) if whole and alone else None)


def _values(functions: Mapping[str, Statistic], batch: Batch) -> list[Tensor]:
    """Computes the statistics of one data set, in float64 on the CPU."""
    values = [torch.as_tensor(f(batch), device="cpu").detach().double() for f in functions.values()]
    hint = ": leave out missing entries (nan) of the data"
    for name, value in zip(functions, values, strict=True):
        if value.dim() > 1 or value.numel() == 0 or not bool(value.isfinite().all()):
            raise ValueError(
                f"the statistic '{name}' must be a finite number or a vector of finite numbers; "
                f"got shape {tuple(value.shape)} with "
                f"{count_of(int((~value.isfinite()).sum()), 'nan or infinite entry')}"
                f"{hint if any(map(has_missing, batch)) else ''}"
            )
    return values


def _compared(
    functions: Mapping[str, Statistic],
    observed: list[Tensor],
    replicated: list[list[Tensor]],
    *,
    keep_constant: bool,
) -> tuple[tuple[str, ...], Tensor, Tensor, Estimate]:
    """Returns the names of the statistics, their observed and replicated values, and p-values.

    Unless `keep_constant` is true, statistics that have the same value for all data sets are left
    out. An example is the share of zeros in continuous data.
    """
    names, columns, p_values = [], [], []
    for place, name in enumerate(functions):
        stacked = torch.stack([observed[place], *(values[place] for values in replicated)])
        if not keep_constant and bool((stacked == stacked[0]).all()):
            continue
        vector = stacked.dim() == 2
        column = _largest_deviation(stacked) if vector else stacked
        names.append(name if not vector else f"{name}{_DEVIATION}")
        columns.append(column)
        p_values.append(stats.tail_probability(column[0], column[1:], two_sided=not vector))
    if not names:
        raise ValueError(
            "every statistic has the same value for all data sets: pass other `statistics`"
        )
    table = torch.stack(columns, dim=1)
    return tuple(names), table[0], table[1:], combined(p_values, torch.stack)


def _largest_deviation(vectors: Float[Tensor, "sets entries"]) -> Float[Tensor, " sets"]:
    """Returns, for each data set, the largest standardized deviation of any entry from its mean.

    The mean and the standard deviation of an entry are computed over all data sets, including the
    observed one, so that observed and replicated data sets are treated alike.
    """
    deviation = (vectors - vectors.mean(dim=0)).abs()
    scale = vectors.std(dim=0)
    return (deviation / scale.where(scale > 0, 1.0)).amax(dim=1)


def default_statistics(batch: Batch, observed: tuple[int, ...] = (0,)) -> dict[str, Statistic]:
    """Returns statistics that suit any data, computed over all observed entries or per feature.

    Arguments:
        batch: The data set.
        observed: Which tensors of the data set the model observes.

    Returns:
        Mean, standard deviation, minimum and maximum over all entries, and the share of zeros. If
        a datum has several features, also the vector of the features' means and the vector of
        their standard deviations. Features without an observed entry have no mean, and features
        with fewer than two have no standard deviation; they are left out of these vectors.

    Example:
        >>> y = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
        >>> statistics = default_statistics((y,))
        >>> float(statistics["mean"]((y,))), statistics["means of features"]((y,)).tolist()
        (1.0, [0.0, 2.0])
    """
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": torch.mean,
        "sd": torch.std,
        "smallest": torch.min,
        "largest": torch.max,
        "share of zeros": _share_of_zeros,
    }
    of_features: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "means of features": (partial(torch.nanmean, dim=0), 1),
        "sds of features": (_column_sds, 2),
    }
    chosen: dict[str, Statistic] = {}
    for index in observed:
        suffix = "" if len(observed) == 1 else f" (tensor {index})"
        for name, function in functions.items():
            chosen[name + suffix] = partial(_of_entries, function, index)
        seen = (~batch[index].reshape(len(batch[index]), -1).isnan()).sum(dim=0)
        for name, (by_feature, fewest) in of_features.items():
            kept = seen >= fewest
            if len(seen) > 1 and bool(kept.any()):
                chosen[name + suffix] = partial(_of_features, by_feature, index, kept)
    return chosen


def _share_of_zeros(part: Tensor) -> Tensor:
    return (part == 0).double().mean()


def _of_entries(function: Callable[[Tensor], Tensor], index: int, batch: Batch) -> Tensor:
    """Applies a function to all observed entries of one tensor of the batch."""
    part = batch[index].double()
    return function(part[~part.isnan()])


def _of_features(
    function: Callable[[Tensor], Tensor], index: int, kept: Tensor, batch: Batch
) -> Tensor:
    """Applies a function to the features in the mask `kept` of one tensor of the batch."""
    return function(batch[index].double().flatten(1)[:, kept])


def _column_sds(part: Tensor) -> Tensor:
    """Returns the standard deviation of the observed entries of each column."""
    observed = (~part.isnan()).sum(dim=0)
    return ((part - part.nanmean(dim=0)).square().nansum(dim=0) / (observed - 1)).sqrt()
