r"""Do several estimators of log p(y) agree? The check that no single one of them can give.

For estimators `a` and `b` with independent errors, :math:`z_n = (a_n - b_n) / \sqrt{e_{an}^2 +
e_{bn}^2}` is about standard normal where both are right, and so is the same for the sums over
data, which sees smaller common shifts. A lower bound is low by an unknown amount, so it
contradicts another estimate only from above; two lower bounds never contradict each other. With
:math:`m` comparisons in all a contradiction is called beyond the quantile of :math:`\alpha / m`.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.distributions import Normal

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..guides import Posterior
from ..programs import Program, as_batch, device_of
from ..randomness import generator, stream
from ..results import Result
from .estimates import Estimator
from .exact import ClosedForm
from .importance import ImportanceSampling
from .quadrature import Quadrature
from .results import Bound, LogMarginal
from .weights import prepared

_FALSE_ALARM = 1e-3  # of a whole check in which all estimators are right
_MOST_LATENTS = 3  # that quadrature takes
_FEWER_DRAWS = 2000  # of a second importance sampler, where nothing better applies
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # so that two exact answers can be compared


class Comparison(NamedTuple):
    """Two estimators on the same data.

    Arguments:
        first: Name of one.
        second: Name of the other.
        difference: First less second, mean over the compared data, nats; with its error.
        z: Difference in standard errors of every datum, `(batch,)`; nan where not compared.
        mean_z: That of the mean.
        compared: Data that both call reliable, `(batch,)`.
        contradiction: The largest z among those of the wrong sign for the bounds' directions;
            minus infinity where no sign is wrong.
        limit: Size of z beyond which it is no accident.
    """

    first: str
    second: str
    difference: Estimate
    z: Tensor
    mean_z: float
    compared: Tensor
    contradiction: float
    limit: float

    @property
    def verdict(self) -> str:
        """What the comparison says, in words."""
        if not bool(self.compared.any()):
            return "cannot be compared: no datum is reliable under both"
        if self.contradiction > self.limit:
            return "contradict each other"
        if self.worst > self.limit:
            low = self.first if float(self.difference.value) < 0 else self.second
            return f"differ, as a bound may: {low} is the lower one"
        return "agree"

    @property
    def worst(self) -> float:
        """The largest size of z, of any datum or of the mean."""
        sizes = torch.cat([self.z[self.compared].abs(), torch.tensor([abs(self.mean_z)])])
        return float(sizes.nan_to_num(nan=0.0).max())


@dataclass(frozen=True, repr=False)
class CrossCheck(Result):
    """Several estimates of the same data, and how they differ.

    Arguments:
        rows: Positions of the data that were taken, `(batch,)`.
        results: What every estimator said, by name.
        comparisons: One for each pair.
        skipped: Estimators that do not apply to the program, with the reason.
        false_alarm: Probability that a contradiction is called though all are right.
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
        """Pairs of which at least one is wrong."""
        return tuple(pair for pair in self.comparisons if pair.contradiction > pair.limit)

    @property
    def consistent(self) -> bool:
        """Whether pairs were compared and none is a contradiction."""
        return not self.contradictions and any(bool(p.compared.any()) for p in self.comparisons)

    @property
    def verdict(self) -> str:
        """Which agree and which do not, in words."""
        number = sum(int(pair.compared.sum()) + 1 for pair in self.comparisons)
        worst = max(self.comparisons, key=lambda pair: pair.worst)
        said = "; ".join(f"{p.first} and {p.second} {p.verdict}" for p in self.comparisons)
        return (
            f"{said}. The largest difference is {worst.worst:.1f} standard errors "
            f"({worst.first} and {worst.second}); beyond {worst.limit:.1f} in the wrong direction "
            f"it would be a contradiction, falsely so once in {1 / self.false_alarm:.0f} checks "
            f"of {number} comparisons"
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

    for every pair of estimators and every datum that both call reliable, and the same for the
    mean over these data. A difference against the direction in which a bound may be off is a
    contradiction if it is larger than chance explains. Agreement is worth as much as the
    estimators are different: they may all miss the same mode.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        estimators: At least two, by name. By default importance sampling from the guide,
            quadrature for up to three latents, and the closed form where there is one; where
            neither applies, importance sampling with other and fewer draws.
        num_data: Data that are taken, at random by the seed; all if there are fewer.
        given: Values of the latent sites that all data share, as in
            :func:`log_marginal_likelihood`.
        seed: Seed of the choice and of the draws, of which every estimator has its own.

    Returns:
        Every estimate, every pair's differences in standard errors, and a verdict in words.

    Raises:
        ValueError: If there are fewer than two estimators or no datum, or if an estimator that
            was asked for does not apply.

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
    with prepared(model, guide, part, seed, given) as (program, posterior, part):
        methods = _defaults(program) if estimators is None else estimators
        strict = estimators is not None
        results, skipped = _results(methods, program, posterior, part, seed=seed, strict=strict)
    return CrossCheck(rows, results, _compare(results), skipped, _FALSE_ALARM)


def _chosen(number: int, wanted: int, seed: int) -> Tensor:
    """Rows at random, in their order."""
    draws = generator(stream(seed, "cross_check.rows"))
    return torch.randperm(number, generator=draws)[:wanted].sort().values


def _defaults(program: Program) -> dict[str, Estimator]:
    methods: dict[str, Estimator] = {"importance sampling": ImportanceSampling()}
    if program.latent_dim <= _MOST_LATENTS:
        methods["quadrature"] = Quadrature()
    return {**methods, "closed form": ClosedForm()}


def _results(
    methods: Mapping[str, Estimator],
    program: Program,
    posterior: Posterior,
    batch: Batch,
    *,
    seed: int,
    strict: bool,
) -> tuple[dict[str, LogMarginal], dict[str, str]]:
    """Runs every estimator on a seed of its own; a default that does not apply is left out."""
    results: dict[str, LogMarginal] = {}
    skipped: dict[str, str] = {}
    for name, method in methods.items():
        own = stream(seed, f"cross_check.{name}")
        try:
            result = method(program, posterior, batch, seed=own, progress=False)
            results[name] = replace(result, given=program.conditions)
        except ValueError as error:
            if strict or name == "importance sampling":
                raise
            skipped[name] = str(error).partition(";")[0]
    if len(results) == 1:
        fewer = ImportanceSampling(_FEWER_DRAWS)
        answer = fewer(program, posterior, batch, seed=stream(seed, "cross_check.fewer draws"))
        results["fewer draws"] = replace(answer, given=program.conditions)
    return results, skipped


def _compare(results: Mapping[str, LogMarginal]) -> tuple[Comparison, ...]:
    pairs = list(itertools.combinations(results, 2))
    number = sum(int((results[a].reliable & results[b].reliable).sum()) + 1 for a, b in pairs)
    quantile = torch.tensor(1 - _FALSE_ALARM / (2 * number), dtype=torch.float64)
    limit = float(Normal(torch.zeros_like(quantile), torch.ones_like(quantile)).icdf(quantile))
    return tuple(_pair(a, b, results[a], results[b], limit) for a, b in pairs)


def _pair(
    first: str, second: str, one: LogMarginal, other: LogMarginal, limit: float
) -> Comparison:
    """Differences where both are reliable."""
    compared = one.reliable & other.reliable & one.value.isfinite() & other.value.isfinite()
    difference = one.value - other.value
    rounding = _ROUNDING * (1 + one.value.abs())
    error = (one.error.square() + other.error.square()).sqrt().clamp(min=rounding)
    z = (difference / error).where(compared, torch.nan)
    mean = _mean(difference[compared], error[compared])
    mean_z = float(mean.value / mean.error) if bool(compared.any()) else float("nan")
    wrong = _wrong(z[compared], mean_z, one.bound, other.bound)
    return Comparison(first, second, mean, z, mean_z, compared, wrong, limit)


def _mean(difference: Float[Tensor, " some"], error: Float[Tensor, " some"]) -> Estimate:
    if len(difference) == 0:
        return Estimate(difference.new_tensor(torch.nan), difference.new_tensor(torch.nan))
    return stats.mean_over_data(Estimate(difference, error))


def _wrong(z: Tensor, mean_z: float, one: Bound, other: Bound) -> float:
    """The largest z of a sign that the directions of the two estimates do not explain."""
    z = torch.cat([z, z.new_tensor([mean_z])])
    signs = torch.zeros(0, dtype=z.dtype, device=z.device)
    if one is not Bound.UPPER and other is not Bound.LOWER:
        signs = torch.cat([signs, z])  # the first one may not stand above
    if one is not Bound.LOWER and other is not Bound.UPPER:
        signs = torch.cat([signs, -z])  # nor below
    signs = signs[~signs.isnan()]
    return float(signs.max()) if len(signs) > 0 else -torch.inf
