r"""Checks of estimates of log p(y) that a single estimator cannot make by itself.

Cross-checks. For estimators `a` and `b` with independent errors, :math:`z_n = (a_n - b_n) /
\sqrt{e_{an}^2 + e_{bn}^2}` is approximately standard normal if both are right, and so is the
corresponding statistic for sums over data, which detects smaller common shifts. Errors of bounds
cover log p(y) too, except for a one-sided bias of second order: the logarithm of an average is low
by about :math:`e^2 / 2`. So a lower bound may be low by :math:`e^2`, twice that, but not high, and
an upper bound may be high but not low; any further difference is a contradiction. With :math:`m`
comparisons the threshold is the quantile of :math:`\alpha / m`.

Bounds from both sides, for simulated data. If a program simulates :math:`z \sim p(z)` and then
:math:`y \sim p(y \mid z)`, then :math:`z` is an exact draw from the posterior :math:`p(z \mid y)`.
Chains that anneal towards the posterior give :math:`\mathbb{E}\, w = p(y)`, low on average in the
logarithm; chains that run the same schedule backwards from that :math:`z` give :math:`\mathbb{E}\,
w' = 1 / p(y)`, high on average. The truth lies between them, so their distance bounds the error of
annealing on data simulated from the model. It says nothing about data that the model does not fit.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.distributions import Normal

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..programs import Program, as_batch, device_of, simulate
from ..randomness import generator, stream
from ..results import Doubts, PerDatum, Result, either, join
from .annealing import AnnealedImportanceSampling, StartFromGuide, Work, annealed, noise_of
from .estimates import Estimator
from .exact import ClosedForm
from .importance import ImportanceSampling
from .quadrature import Quadrature
from .results import Bound, LogMarginal
from .weights import Inference, prepared

_FALSE_ALARM = 1e-3  # probability for a whole check in which all estimators are right
_MOST_LATENTS = 3  # for quadrature
_FEWER_DRAWS = 2000  # of a second importance sampler, where nothing better applies
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # so that two exact answers can be compared


@dataclass(frozen=True, repr=False)
class Comparison(PerDatum):
    """Two estimators on the same data: their difference by datum, in nats.

    Arguments:
        first: Name of the first estimator.
        second: Name of the second.
        value: First minus second, `(batch,)`.
        error: Standard error of the difference.
        doubts: Data that are in doubt under either estimator, by reason; these are not compared.
        contradiction: The largest absolute z that remains after allowing for the bias of each
            bound.
        limit: Absolute z beyond which a difference counts as a contradiction.
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
        """Data whose estimates are reliable and finite under both estimators."""
        return self.reliable & self.value.isfinite()

    @property
    def difference(self) -> Estimate:
        """First minus second, mean over the compared data, with its error."""
        return _mean(self.value[self.compared], self.error[self.compared])

    @property
    def z(self) -> Float[Tensor, " batch"]:
        """Difference of every datum, in standard errors; nan where not compared."""
        return (self.value / self.error).where(self.compared, torch.nan)

    @property
    def mean_z(self) -> float:
        """Z-score of the mean over the compared data; nan if there are none."""
        value, error = (float(part) for part in self.difference)
        return value / error

    def summary(self) -> str:
        """The mean difference, and the verdict."""
        number = int(self.compared.sum())
        return (
            f"{self.first} - {self.second}: {self.difference} nats per datum over the {number} of "
            f"{len(self)} data that both call reliable: they {self.verdict}"
        )

    @property
    def verdict(self) -> str:
        """The verdict, in words."""
        if not bool(self.compared.any()):
            return "cannot be compared: no datum is reliable under both"
        if self.contradiction > self.limit:
            return "contradict each other"
        if self.worst > self.limit:
            low = self.first if float(self.difference.value) < 0 else self.second
            return f"differ, as bounds may: {low} is the lower one"
        return "agree"

    @property
    def worst(self) -> float:
        """The largest absolute z, of any datum or of the mean."""
        sizes = torch.cat([self.z[self.compared].abs(), torch.tensor([abs(self.mean_z)])])
        return float(sizes.nan_to_num(nan=0.0).max())


@dataclass(frozen=True, repr=False)
class CrossCheck(Result):
    """Several estimates of the same data, and how they differ.

    Arguments:
        rows: Positions of the data that were used, `(batch,)`.
        results: The result of every estimator, by name.
        comparisons: One for each pair.
        skipped: Estimators that do not apply to the program, with the reason.
        false_alarm: Probability of a contradiction if all estimators are right.
    """

    rows: Int64[Tensor, " batch"]
    results: Mapping[str, LogMarginal]
    comparisons: tuple[Comparison, ...]
    skipped: Mapping[str, str]
    false_alarm: float

    def plot(self) -> Any:
        """Every estimator's mean with its error; needs matplotlib."""
        from ..plots import plot_comparison

        return plot_comparison({n: {"log p": one.mean} for n, one in self.results.items()})

    @property
    def contradictions(self) -> tuple[Comparison, ...]:
        """Pairs of estimators of which at least one is wrong."""
        return tuple(pair for pair in self.comparisons if pair.contradiction > pair.limit)

    @property
    def consistent(self) -> bool:
        """Whether pairs were compared and none is a contradiction."""
        return not self.contradictions and any(bool(p.compared.any()) for p in self.comparisons)

    @property
    def verdict(self) -> str:
        """Which estimators agree and which do not, in words."""
        number = sum(int(pair.compared.sum()) + 1 for pair in self.comparisons)
        worst = max(self.comparisons, key=lambda pair: pair.worst)
        said = "; ".join(f"{p.first} and {p.second} {p.verdict}" for p in self.comparisons)
        once = f"once in {1 / self.false_alarm:.0f} checks of {number} comparisons"
        return (
            f"{said}. The largest difference is {worst.worst:.1f} standard errors "
            f"({worst.first} and {worst.second}); more than {worst.limit:.1f} beyond the "
            f"bias of a bound would be a contradiction (by chance {once})"
        )

    def summary(self) -> str:
        """The estimates, the table of differences, and the verdict."""
        width = max(len(name) for name in self.results)
        lines = [f"{name:{width}}  {result.summary()}" for name, result in self.results.items()]
        lines += [f"{name:{width}}  does not apply: {why}" for name, why in self.skipped.items()]
        lines.append(
            f"{'pair':{2 * width + 3}}  difference      error   z of mean  largest z  data"
        )
        lines += [_line(pair, 2 * width + 3) for pair in self.comparisons]
        return "\n".join([*lines, self.verdict])


def _line(pair: Comparison, width: int) -> str:
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

    for every pair of estimators and every datum that both call reliable, and likewise for the mean
    over these data. A difference is a contradiction if it is larger than chance and the one-sided
    bias of a bound (of the order of its squared error) can explain. Agreement says most if the
    estimators are of different kinds: similar ones may all miss the same mode.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        estimators: At least two, by name. By default importance sampling from the guide,
            quadrature for up to three latents, and the closed form where there is one; where
            neither of these two applies, importance sampling with other and fewer draws.
        num_data: Number of data to use, chosen at random by the seed; all if there are fewer.
        given: Values of the latent sites that all data share, as in
            :func:`log_marginal_likelihood`.
        seed: Seed of the choice and of the draws; every estimator has its own stream.

    Returns:
        Every estimate, every pair's differences in standard errors, and a verdict in words.

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
    if num_data < 1 or (estimators is not None and len(estimators) < 2):
        raise ValueError(
            f"a comparison needs at least one datum and two estimators, got num_data={num_data} "
            f"and {sorted(estimators or {})}"
        )
    batch = as_batch(data, device_of(model, guide))
    rows = _chosen(len(batch[0]), num_data, seed).to(batch[0].device)
    part = tuple(tensor[rows] for tensor in batch)
    with prepared(model, guide, part, seed, given) as inference:
        methods = _defaults(inference.program) if estimators is None else estimators
        strict = estimators is not None
        results, skipped = _results(methods, inference, seed=seed, strict=strict)
    return CrossCheck(rows, results, _compare(results), skipped, _FALSE_ALARM)


def _chosen(number: int, wanted: int, seed: int) -> Tensor:
    """A random choice of rows, in ascending order."""
    draws = generator(stream(seed, "cross_check.rows"))
    return torch.randperm(number, generator=draws, device="cpu")[:wanted].sort().values


def _defaults(program: Program) -> dict[str, Estimator]:
    methods: dict[str, Estimator] = {"importance sampling": ImportanceSampling()}
    if program.latent_dim <= _MOST_LATENTS:
        methods["quadrature"] = Quadrature()
    return {**methods, "closed form": ClosedForm()}


def _results(
    methods: Mapping[str, Estimator], inference: Inference, *, seed: int, strict: bool
) -> tuple[dict[str, LogMarginal], dict[str, str]]:
    """Runs every estimator on a seed of its own; a default that does not apply is left out."""
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
            skipped[name] = str(error).partition(";")[0]
    if len(results) == 1:
        own = stream(seed, "cross_check.fewer draws")
        answer = ImportanceSampling(_FEWER_DRAWS)(inference, seed=own)
        results["fewer draws"] = replace(answer, given=given)
    return results, skipped


def _compare(results: Mapping[str, LogMarginal]) -> tuple[Comparison, ...]:
    pairs = list(itertools.combinations(results, 2))
    number = sum(int((results[a].reliable & results[b].reliable).sum()) + 1 for a, b in pairs)
    quantile = torch.tensor(1 - _FALSE_ALARM / (2 * number), dtype=torch.float64, device="cpu")
    limit = float(Normal(torch.zeros_like(quantile), torch.ones_like(quantile)).icdf(quantile))
    return tuple(_pair(a, b, results[a], results[b], limit) for a, b in pairs)


def _pair(
    first: str, second: str, one: LogMarginal, other: LogMarginal, limit: float
) -> Comparison:
    """Differences, and how far they exceed what the two kinds of bound allow."""
    value, error = stats.difference(one.estimate, other.estimate)
    error = error.clamp(min=_ROUNDING * (1 + one.value.abs()))
    doubts = either(one.doubts, other.doubts)
    pair = Comparison(first, second, value, error, doubts, 0.0, limit)
    low, high = (part[pair.compared] for part in _granted(one, other))
    of_data = _left(value[pair.compared], error[pair.compared], low, high)
    mean = Estimate(*(part[None] for part in pair.difference))
    of_mean = _left(*mean, low.mean()[None], high.mean()[None]).nan_to_num(nan=0.0)
    return replace(pair, contradiction=float(torch.cat([of_data, of_mean]).max()))


def _mean(difference: Float[Tensor, " some"], error: Float[Tensor, " some"]) -> Estimate:
    if len(difference) == 0:
        return Estimate(difference.new_tensor(torch.nan), difference.new_tensor(torch.nan))
    return stats.mean_over_data(Estimate(difference, error))


def _granted(one: LogMarginal, other: LogMarginal) -> tuple[Tensor, Tensor]:
    """Least and largest difference that the biases of two estimates explain."""
    (low, high), (low_other, high_other) = _biases(one), _biases(other)
    return low - high_other, high - low_other


def _biases(result: LogMarginal) -> tuple[Tensor, Tensor]:
    """Least and largest bias of estimates that may be low, or high, to second order."""
    size = result.error.square()
    none = torch.zeros_like(size)
    return (
        -size if result.bound is Bound.LOWER else none,
        size if result.bound is Bound.UPPER else none,
    )


def _left(difference: Tensor, error: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Number of standard errors by which a difference lies outside an interval."""
    return torch.maximum(low - difference, difference - high).clamp(min=0.0) / error


@dataclass(frozen=True, repr=False)
class Sandwich(PerDatum):
    r"""Bounds on :math:`\log p(y_n)` of simulated data, `(batch,)` each, in nats.

    Arguments:
        lower: From forward annealing; low on average.
        upper: From reverse annealing; high on average. The chains of a datum share their starting
            point, so its error does not include the variation between posterior draws.
        data: The simulated data.
    """

    lower: LogMarginal
    upper: LogMarginal
    data: Batch

    @property
    def value(self) -> Tensor:
        """Upper minus lower bound of every datum."""
        return self.upper.value - self.lower.value

    @property
    def error(self) -> Tensor:
        """Standard error of the distance; the two runs share no draw."""
        return torch.hypot(self.upper.error, self.lower.error)

    @property
    def doubts(self) -> Doubts:
        """The doubts about either bound."""
        return either(self.lower.doubts, self.upper.doubts)

    def columns(self) -> dict[str, Tensor]:
        """Both bounds of every datum, with their errors."""
        return {
            "lower": self.lower.value,
            "lower_error": self.lower.error,
            "upper": self.upper.value,
            "upper_error": self.upper.error,
        }

    @property
    def width(self) -> Estimate:
        """Upper minus lower bound, mean over data, with the error from their spread, in nats."""
        return stats.population_mean(self.upper.value - self.lower.value)

    def summary(self) -> str:
        """The bounds, and the distance between them."""
        return (
            f"lower: {self.lower.summary()}\nupper: {self.upper.summary()}\n"
            f"log p(y) of {len(self)} simulated data is known to within {self.width:.3f} nats per "
            f"datum on average; {self.trust()}"
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

    Both directions use the same frozen steps and temperatures.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data, whose observed sites observe
            tensors of the batch or parts of them.
        guide: A guide to start from, for an estimator with `start=StartFromGuide()`; else `None`.
        data: Rows that give the shapes and the covariates. The observed values are replaced by
            simulated ones.
        estimator: By default :class:`AnnealedImportanceSampling` with its default settings.
        num_data: Number of data to simulate; the rows are used in turn. By default one per row.
        given: Values of the global latent sites.
        seed: Seed of all draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Both bounds and the simulated data. The width needs at least two data.

    Raises:
        ValueError: If the program cannot be simulated row by row, or a needed guide is missing.

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
            "start=StartFromGuide() needs a guide, got None: pass one, or StartFromPrior()"
        )
    proposal = no_guide if guide is None else guide
    examples = first_rows(as_batch(data, device_of(model, proposal)), num_data)
    with prepared(model, proposal, examples, seed, given) as (program, _, rows):
        z, made = simulate(program, rows, seed)
    with prepared(model, proposal, made, seed, given) as inference:
        works = estimator.works(inference, seed=seed, progress=progress)
        pairs = [_bounds(estimator, work, z[work.rows]) for work in works]
        lower, upper = (join(list(side)) for side in zip(*pairs, strict=True))
    conditions = inference.program.conditions
    return Sandwich(replace(lower, given=conditions), replace(upper, given=conditions), made)


def no_guide(*_batch: Tensor) -> None:
    """Stands in for a guide that was not passed; raises if shared sites are asked for."""
    raise ValueError(
        "the program has global latent sites, and there is no guide that gives their values: pass "
        "given=, a value for each"
    )


def first_rows(batch: Batch, num_data: int | None) -> Batch:
    """The rows of a batch, repeated in turn up to the given number; by default the batch itself."""
    if num_data is None:
        return batch
    return tuple(part[torch.arange(num_data, device=part.device) % len(part)] for part in batch)


def _bounds(
    estimator: AnnealedImportanceSampling, work: Work, z: Tensor
) -> tuple[LogMarginal, LogMarginal]:
    """Both directions on the same ladder; the data were simulated from `z`, `(rows, latents)`."""
    forwards = noise_of(work.keys, estimator.num_temperatures, work.z)
    backwards = noise_of(work.backward_keys, estimator.num_temperatures, work.z)
    steps, start = estimator.leapfrog_steps, z.expand_as(work.z)
    lower = annealed(work.path, work.z, work.ladder, forwards, steps)
    upper = annealed(work.path, start, work.ladder.backwards(), backwards, steps)
    return estimator.result_of(*lower, Bound.LOWER), estimator.result_of(*upper, Bound.UPPER)
