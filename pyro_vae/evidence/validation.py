r"""Checks of estimates of log p(y) that a single estimator cannot make by itself.

*Cross-checks.* Let :math:`a_n` and :math:`b_n` be estimates with independent standard errors
:math:`e_{an}` and :math:`e_{bn}`. If the two estimates are right, :math:`z_n = (a_n - b_n) /
\sqrt{e_{an}^2 + e_{bn}^2}` is approximately standard normal. The corresponding statistic for
sums over data is approximately standard normal, too; it detects a shift that is common to all data
and too small to show in a single datum. Lower and upper bounds also have a one-sided bias of second
order: the logarithm of an average is low by about :math:`e^2 / 2`. So twice this bias, :math:`e^2`,
is allowed: a lower bound can be too low by this amount, and an upper bound too high. Any larger
difference is a contradiction. With :math:`m` comparisons, the threshold for :math:`|z|` is the
two-sided normal quantile for a probability of :math:`\alpha / m`.

*Bounds from both sides, for simulated data.* If a program simulates :math:`z \sim p(z)` and then
:math:`y \sim p(y \mid z)`, then :math:`z` is an exact draw from the posterior :math:`p(z \mid y)`.
Chains that anneal towards the posterior have :math:`\mathbb{E}\, w = p(y)`, so their log mean
weight is low on average. Chains that run the same schedule backwards from :math:`z` have
:math:`\mathbb{E}\, w' = 1 / p(y)`, so minus their log mean weight is high on average. The truth
lies between the two, so their distance bounds the error of annealing on data simulated from the
model. For data that the model does not fit, the distance shows nothing.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..formatting import count_of
from ..guides.entry import for_new_rows, is_tied_to_rows, no_guide, shared_only
from ..programs import Program, as_batch, simulate
from ..programs.modes import device_of
from ..programs.pieces import first_rows, take_rows
from ..randomness import generator, stream
from ..results import Doubts, PerDatum, Result, either, join, with_errors
from .annealing import AnnealedImportanceSampling, StartFromGuide, Work, annealed, noise_of
from .estimates import Estimator
from .exact import ClosedForm
from .importance import ImportanceSampling
from .quadrature import Quadrature
from .results import Bound, LogMarginal
from .weights import Inference, conditioned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FALSE_ALARM = 1e-3  # probability of a contradiction in a whole check if all estimators are right
_MOST_LATENTS = 3  # largest number for quadrature
_FEWER_DRAWS = 2000  # draws of a second run of importance sampling, if nothing else applies
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # smallest relative error, for exact results


@dataclass(frozen=True, repr=False)
class Comparison(PerDatum):
    """The difference between two estimates of log p(y), for every datum.

    Arguments:
        first: Name of the first estimator.
        second: Name of the second estimator.
        value: First estimate minus second estimate, `(batch,)`, in nats.
        error: Standard error of the difference, `(batch,)`, in nats.
        doubts: Reasons not to trust one of the estimates, each with a mask of the data that it
            applies to. These data are not compared.
        contradiction: The part of the difference that the bias of bounds cannot explain, in
            standard errors. It is computed for every datum and for the mean over data, and the
            largest of these numbers is kept.
        limit: The estimators contradict each other if `contradiction` exceeds this number.
    """

    first: str
    second: str
    value: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    doubts: Doubts
    contradiction: float
    limit: float

    @property
    def compared(self) -> Bool[Tensor, " batch"]:
        """For each datum, whether both estimates are reliable and finite."""
        return self.reliable & self.value.isfinite()

    @property
    def difference(self) -> Estimate:
        """Mean difference (first minus second estimate) over the data that were compared, in nats.

        It is nan if no data were compared.
        """
        value, error = self.value[self.compared], self.error[self.compared]
        if len(value) == 0:
            return Estimate(value.new_tensor(torch.nan), error.new_tensor(torch.nan))
        return stats.mean_over_data(Estimate(value, error))

    @property
    def z(self) -> Float[Tensor, " batch"]:
        """Each datum's difference in standard errors; nan for data that were not compared."""
        return (self.value / self.error).where(self.compared, torch.nan)

    @property
    def mean_z(self) -> float:
        """Mean difference over the data that were compared, in standard errors.

        It is nan if no data were compared.
        """
        value, error = (float(part) for part in self.difference)
        return value / error

    def summary(self) -> str:
        """Returns a line with the mean difference and the verdict."""
        number = int(self.compared.sum())
        return (
            f"{self.first} - {self.second}: {self.difference} nats per datum, over the {number} of "
            f"{count_of(len(self), 'datum')} that are reliable under both; the two estimators "
            f"{self.verdict}"
        )

    @property
    def verdict(self) -> str:
        """Text that says whether the two estimators agree or contradict each other."""
        if not bool(self.compared.any()):
            return "cannot be compared, because no datum is reliable under both"
        if self.contradiction > self.limit:
            return "contradict each other"
        if self.worst > self.limit:
            low = self.first if float(self.difference.value) < 0 else self.second
            return f"differ, but the bias of a bound can explain this ({low} is lower)"
        return "agree"

    @property
    def worst(self) -> float:
        """Largest absolute value of `z` and `mean_z`; 0 if no data were compared."""
        sizes = torch.cat([self.z[self.compared].abs(), self.z.new_tensor([abs(self.mean_z)])])
        return float(sizes.nan_to_num(nan=0.0).max())


@dataclass(frozen=True, repr=False)
class CrossCheck(Result):
    """Several estimates of log p(y) for the same data, compared pair by pair.

    Arguments:
        rows: Positions of the data that were used, `(batch,)`.
        results: The result of every estimator, by name.
        comparisons: One comparison for each pair of estimators.
        skipped: The reasons why default estimators do not apply to the program, by name.
        false_alarm: Probability of a contradiction if all estimators are right.
    """

    rows: Int64[Tensor, " batch"]
    results: Mapping[str, LogMarginal]
    comparisons: tuple[Comparison, ...]
    skipped: Mapping[str, str]
    false_alarm: float

    def plot(self) -> "Axes":
        """Plots every estimator's mean log p(y) with its error; requires matplotlib."""
        from ..plots import plot_comparison

        return plot_comparison({n: {"log p": one.mean} for n, one in self.results.items()})

    @property
    def contradictions(self) -> tuple[Comparison, ...]:
        """The comparisons that are contradictions: at least one estimator of the pair is wrong."""
        return tuple(pair for pair in self.comparisons if pair.contradiction > pair.limit)

    @property
    def consistent(self) -> bool:
        """Whether at least one pair was compared and no comparison is a contradiction."""
        return not self.contradictions and any(bool(p.compared.any()) for p in self.comparisons)

    @property
    def verdict(self) -> str:
        """A text that says which pairs of estimators agree."""
        number = sum(int(pair.compared.sum()) + 1 for pair in self.comparisons)
        worst = max(self.comparisons, key=lambda pair: pair.worst)
        verdicts = "; ".join(f"{p.first} and {p.second} {p.verdict}" for p in self.comparisons)
        once = f"at most once in {1 / self.false_alarm:.0f} times"
        return (
            f"{verdicts}. The largest difference is {worst.worst:.1f} standard errors "
            f"({worst.first} and {worst.second}). A contradiction is a difference of more than "
            f"{worst.limit:.1f} standard errors beyond the bias of a bound. If all estimators are "
            f"right, a check with {count_of(number, 'comparison')} finds a contradiction {once}"
        )

    def summary(self) -> str:
        """Returns a text with the estimates, a table of differences, and the verdict."""
        width = max(len(name) for name in self.results)
        lines = [f"{name}: {result.summary()}" for name, result in self.results.items()]
        lines += [f"{name} does not apply: {why}" for name, why in self.skipped.items()]
        lines.append(
            f"{'pair':{2 * width + 3}}  difference      error   z of mean  largest z  data"
        )
        lines += [_line(pair, 2 * width + 3) for pair in self.comparisons]
        return "\n".join([*lines, self.verdict])


def _line(pair: Comparison, width: int) -> str:
    """Formats a row of the table of differences, whose first column has `width` characters."""
    value, error = (float(part) for part in pair.difference)
    return (
        f"{f'{pair.first} - {pair.second}':{width}}  {value:+10.5f}  {error:9.5f}  "
        f"{pair.mean_z:+10.1f}  {pair.worst:9.1f}  {int(pair.compared.sum()):4d}"
    )


def cross_check(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    estimators: Mapping[str, Estimator] | None = None,
    *,
    num_data: int = 50,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> CrossCheck:
    r"""Compares several estimators of log p(y) on some of the data.

    .. math:: z_n = \frac{a_n - b_n}{\sqrt{e_{an}^2 + e_{bn}^2}}

    Here :math:`a_n` and :math:`b_n` are the estimates of a pair, with errors :math:`e_{an}` and
    :math:`e_{bn}`. The statistic is computed for every pair of estimators and every datum for which
    both estimates are reliable, and likewise for the mean over these data. A difference is a
    contradiction if chance and the one-sided bias of a bound cannot explain it. This bias is of the
    order of the squared error. Agreement is most convincing if the estimators are of different
    kinds, because similar estimators can all miss the same mode.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        estimators: At least two estimators, by name. By default these are importance sampling from
            the guide, quadrature for up to three latents, and the closed form if there is one. If
            neither quadrature nor the closed form applies, the second estimator is another run of
            importance sampling, with fewer draws and separate random numbers.
        num_data: Number of data to use, chosen at random; if the data set is smaller, all are used.
        given: Values of the global latent sites, as in :func:`log_marginal_likelihood`.
        seed: Seed of the choice of data and of the draws; every estimator has its own stream.

    Returns:
        The estimates of all estimators, the differences of all pairs, and a verdict in words.

    Raises:
        ValueError: If there are fewer than two estimators or no datum, or if a requested estimator
            does not apply.

    Example:
        >>> import pyro
        >>> from pyro_vae import ExactPosterior, Guide
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> y = torch.tensor([0.0, 2.0])
        >>> check = cross_check(model, Guide(model, ExactPosterior(), example=y), y)
        >>> check.consistent, [pair.verdict for pair in check.comparisons]
        (True, ['agree', 'agree', 'agree'])
    """
    if estimators is not None and len(estimators) < 2:
        raise ValueError(
            f"`estimators` must contain at least two estimators, by name; got {sorted(estimators)}"
            ": add another, or leave `estimators` out"
        )
    batch = as_batch(data, device_of(model, guide))
    rows = _chosen(len(batch[0]), num_data, seed).to(batch[0].device)
    tied = is_tied_to_rows(guide)  # then only all rows together have parameters
    part = batch if tied else take_rows(batch, rows)
    with conditioned(model, guide, part, seed, given) as inference:
        inference = inference.rows(rows) if tied else inference
        methods = _defaults(inference.program) if estimators is None else estimators
        strict = estimators is not None
        results, skipped = _results(methods, inference, seed=seed, strict=strict)
    return CrossCheck(rows, results, _compare(results), skipped, _FALSE_ALARM)


def _chosen(number: int, wanted: int, seed: int) -> Tensor:
    """Chooses rows at random; returns their numbers in ascending order."""
    draws = generator(stream(seed, "cross_check.rows"))
    return torch.randperm(number, generator=draws, device="cpu")[:wanted].sort().values


def _defaults(program: Program) -> dict[str, Estimator]:
    """Returns the default estimators; the closed form is included even if it may not apply."""
    methods: dict[str, Estimator] = {"importance sampling": ImportanceSampling()}
    if program.latent_dim <= _MOST_LATENTS:
        methods["quadrature"] = Quadrature()
    return {**methods, "closed form": ClosedForm()}


def _results(
    methods: Mapping[str, Estimator], inference: Inference, *, seed: int, strict: bool
) -> tuple[dict[str, LogMarginal], dict[str, str]]:
    """Runs every estimator with a separate seed, and returns the results by name.

    Also returns the reason for each estimator that does not apply, by name. If `strict`, the
    exception of such an estimator is raised instead.
    """
    given, results = inference.program.conditions, dict[str, LogMarginal]()
    skipped: dict[str, str] = {}
    for name, method in methods.items():
        own = stream(seed, f"cross_check.{name}")
        try:
            result = method(inference, seed=own, progress=False)
            results[name] = replace(result, given=given)
        except ValueError as error:
            if strict or name == "importance sampling":
                raise
            skipped[name] = re.split(r": |\. ", str(error))[0]  # without the remedy
    if len(results) == 1:
        own = stream(seed, "cross_check.fewer draws")
        answer = ImportanceSampling(_FEWER_DRAWS)(inference, seed=own, progress=False)
        results["fewer draws"] = replace(answer, given=given)
    return results, skipped


def _compare(results: Mapping[str, LogMarginal]) -> tuple[Comparison, ...]:
    """Compares all pairs of results, with the limit for this number of comparisons."""
    pairs = list(itertools.combinations(results, 2))
    number = sum(int((results[a].reliable & results[b].reliable).sum()) + 1 for a, b in pairs)
    limit = NormalDist().inv_cdf(1 - _FALSE_ALARM / (2 * number))
    return tuple(_pair(a, b, results[a], results[b], limit) for a, b in pairs)


def _pair(
    first: str, second: str, one: LogMarginal, other: LogMarginal, limit: float
) -> Comparison:
    """Compares two results, and measures what the biases of bounds cannot explain.

    Arguments:
        first: Name of the first estimator.
        second: Name of the second estimator.
        one: Result of the first estimator.
        other: Result of the second estimator.
        limit: Number of standard errors above which a difference is a contradiction.
    """
    value, error = stats.difference(one.estimate, other.estimate)
    error = error.clamp(min=_ROUNDING * (1 + one.value.abs()))
    doubts = either(one.doubts, other.doubts)
    pair = Comparison(first, second, value, error, doubts, 0.0, limit)
    (low, high), (low_other, high_other) = _biases(one), _biases(other)
    # The smallest and the largest difference that the biases explain.
    low, high = ((low - high_other)[pair.compared], (high - low_other)[pair.compared])
    of_data = _left(value[pair.compared], error[pair.compared], low, high)
    mean = Estimate(*(part[None] for part in pair.difference))
    of_mean = _left(*mean, low.mean()[None], high.mean()[None]).nan_to_num(nan=0.0)
    return replace(pair, contradiction=float(torch.cat([of_data, of_mean]).max()))


def _biases(result: LogMarginal) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest second-order bias that `result.bound` allows."""
    size = result.error.square()
    none = torch.zeros_like(size)
    return (
        -size if result.bound is Bound.LOWER else none,
        size if result.bound is Bound.UPPER else none,
    )


def _left(difference: Tensor, error: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Computes by how many standard errors a difference lies outside an interval."""
    return torch.maximum(low - difference, difference - high).clamp(min=0.0) / error


@dataclass(frozen=True, repr=False)
class Sandwich(PerDatum):
    r"""Lower and upper bounds on :math:`\log p(y_n)` of simulated data.

    Arguments:
        lower: Estimate by forward annealing, which is low on average.
        upper: Estimate by reverse annealing, which is high on average. All chains of a datum start
            from the same posterior draw, so the error does not include the variation between
            posterior draws.
        data: The simulated data.
    """

    lower: LogMarginal
    upper: LogMarginal
    data: Batch

    @property
    def value(self) -> Tensor:
        """Upper minus lower bound of every datum, in nats."""
        return self.upper.value - self.lower.value

    @property
    def error(self) -> Tensor:
        """Standard error of upper minus lower bound, in nats; the two use independent draws."""
        return torch.hypot(self.upper.error, self.lower.error)

    @property
    def doubts(self) -> Doubts:
        """Reasons to doubt the lower or the upper bound, each with a mask of the data."""
        return either(self.lower.doubts, self.upper.doubts)

    def columns(self) -> dict[str, Tensor]:
        """Returns columns by name, with one entry per datum: lower and upper bound, with errors."""
        return with_errors({"lower": self.lower.estimate, "upper": self.upper.estimate})

    @property
    def width(self) -> Estimate:
        """Mean of `value` over data, in nats, with an error from the spread over data.

        For a single datum, which has no spread, the error combines the errors of the two bounds.
        """
        if len(self) == 1:
            return Estimate(self.value[0], self.error[0])
        return stats.population_mean(self.value)

    def summary(self) -> str:
        """Returns a text with the bounds, their mean distance and the verdict."""
        return (
            f"lower: {self.lower.summary()}\nupper: {self.upper.summary()}\nlog p(y) of "
            f"{count_of(len(self), 'simulated datum')} is known to within {self.width:.3f} nats "
            f"per datum on average; {self.trust()}"
        )


def bidirectional(
    model: ProgramLike,
    guide: ProgramLike | None,
    data: Data,
    estimator: AnnealedImportanceSampling | None = None,
    *,
    num_data: int | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Sandwich:
    r"""Bounds the marginal likelihood of simulated data from both sides.

    .. math:: \mathbb{E} \log \hat p(y) \le \log p(y) \le
        \mathbb{E} \log \Big(\frac{1}{C} \sum_c w'_c\Big)^{-1}

    Here :math:`w'_c` are the weights of :math:`C` chains that run backwards. Both directions use
    the same fixed step sizes and temperatures.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data, whose observed sites observe
            tensors of the batch or parts of them.
        guide: The guide for an estimator with `start=StartFromGuide()`; otherwise `None`. A
            :class:`pyro_vae.LocalParameters` guide has no parameters for simulated data, so new
            ones are fitted (`guide.fit_rows`).
        data: Rows that give the shapes and the covariates. The observed values are replaced by
            simulated ones.
        estimator: By default :class:`AnnealedImportanceSampling` with its default settings.
        num_data: Number of data to simulate; if `data` has fewer rows, the rows are repeated. By
            default one datum is simulated for each row.
        given: Values of the global latent sites.
        seed: Seed of all draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Both bounds and the simulated data.

    Raises:
        ValueError: If the program cannot be simulated row by row, or if a guide is required but
            missing.

    References:
        | Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo
          (Grosse, Ghahramani & Adams, 2015)
        | https://arxiv.org/abs/1511.02543
        | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
        | https://arxiv.org/abs/1611.04273

    Example:
        >>> import pyro
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> estimator = AnnealedImportanceSampling(num_temperatures=50)
        >>> sandwich = bidirectional(model, None, torch.zeros(8), estimator)
        >>> bool(sandwich.width.value.abs() < 1)
        True
    """
    estimator = AnnealedImportanceSampling() if estimator is None else estimator
    if guide is None and isinstance(estimator.start, StartFromGuide):
        raise ValueError(
            "the estimator's start=pv.StartFromGuide() requires a guide; got None: pass a guide, "
            "or set start=pv.StartFromPrior()"
        )
    proposal = no_guide if guide is None else guide
    examples = first_rows(as_batch(data, device_of(model, proposal)), num_data)
    shared = shared_only(proposal)
    with conditioned(model, shared, examples, seed, given) as (program, _, rows):
        z, made = simulate(program, rows, seed)
    if isinstance(estimator.start, StartFromGuide):
        proposal = for_new_rows(proposal, made, given=given, seed=seed, progress=progress)
    else:
        proposal = shared
    with conditioned(model, proposal, made, seed, given) as inference:
        works = estimator.works(inference, seed=seed, progress=progress)
        pairs = [_bounds(estimator, work, z[work.rows]) for work in works]
        lower, upper = join(pairs)
    conditions = inference.program.conditions
    return Sandwich(replace(lower, given=conditions), replace(upper, given=conditions), made)


def _bounds(
    estimator: AnnealedImportanceSampling, work: Work, z: Tensor
) -> tuple[LogMarginal, LogMarginal]:
    """Returns the lower and upper bound from chains on the same ladder of temperatures.

    The chains of the lower bound run forwards. Those of the upper bound run backwards from `z`, the
    latents that generated the data.
    """
    forwards = noise_of(work.keys, estimator.num_temperatures, work.z)
    backwards = noise_of(work.backward_keys, estimator.num_temperatures, work.z)
    steps, start = estimator.leapfrog_steps, z.expand_as(work.z)
    lower = annealed(work.path, work.z, work.ladder, forwards, steps)
    upper = annealed(work.path, start, work.ladder.backwards(), backwards, steps)
    return estimator.result_of(*lower, Bound.LOWER), estimator.result_of(*upper, Bound.UPPER)
