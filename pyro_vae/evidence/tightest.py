r"""The ladder: estimators of log p(y) in order of cost, tried for each datum until one is accepted.

Each estimator is a *rung*; :class:`Tightest` lists the rungs. Each rung has its own diagnostics,
but these cannot show mass that no draw reached. For example, a Gaussian at one of eight equal modes
has nearly equal weights, so the estimate of log p(y) is low by log 8, but the reported error is
tiny. So a rung is accepted only if independent checks agree:

* For all rungs that sample, draws of the prior must not find significantly more mass than the
  rung, :math:`\hat p_{\text{prior}} - \hat p \le 4 \, \mathrm{se}`. For time series, the same holds
  for a small particle filter (:mod:`pyro_vae.evidence.checking`).
* At least a tenth of the draws must be effective. If most draws lie where the posterior has no
  mass, few draws reach each mode. Then possibly no draw has reached a second mode, and the weights
  do not show this.
* For a proposal with one mode, fits from several starting points must find no second mode.
* No estimate may be more than four joint errors below that of an earlier rung, with each error
  capped at one nat (:func:`pyro_vae.evidence.checking.excess`).
* The estimates from the mixture and from the population must agree within four joint errors. If
  the prior has heavy tails, the mixture's estimate may be higher, because the mixture also covers
  far modes (:mod:`pyro_vae.evidence.far_modes`).
* A mixture that is fitted to some islands of the population must reach the particles of the others
  (:func:`pyro_vae.evidence.checking.held_out_mass`). If it does not, there are more modes than the
  population has found.
* Most particles of the last population must move. Particles that stay in place add to the error.

If a posterior is narrow, prior draws find no mass, which proves nothing. Modes that neither the
population nor the fits come near stay undetected.

Whether a rung is accepted for a datum depends on the datum's draws: very large weights make the
datum proceed to the next rung. So the accepted estimates are not exactly unbiased for p(y). This
bias is smaller than the error.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .._types import Batch, Estimate
from ..guides import Posterior
from ..programs import Program
from ..programs.hooks import hooks_of
from ..programs.pieces import take_rows
from ..randomness import stream, undisturbed
from ..results import Doubt, at_rows, join, with_rows
from .annealing import Start, StartFromGuide, StartFromPrior
from .checking import MOST_EXCESS, Checks, excess, held_out_mass, shortfall
from .exact import ClosedForm
from .far_modes import FarModes
from .filtering import ParticleFilter
from .fitted import Fitted
from .importance import ImportanceSampling, with_missed
from .mixtures import StudentMixture, joined, mixture_of, student_of
from .proposals import Defensive, Proposal
from .quadrature import Quadrature, is_repeatable
from .results import Bound, LogMarginal
from .tempering import Population, TemperedSMC
from .weights import Inference, rows_at_once

_ROUNDINGS = 1000.0  # tolerated rounding error in units of eps, due to cancellation in gradients
_MOST_LATENTS_ON_A_GRID = 2  # quadrature with three latents takes seconds per datum
_TOLERANCE = 1e-3  # nats per datum: below the error of any ELBO compared with log p(y)
_EFFICIENT = 0.5  # least share of effective draws of the guide; with less, fitting is worthwhile
_LEAST_EFFICIENT = 0.1  # least share of effective draws of any rung; fewer can hide modes
_MATCHED_DRAWS, _MATCHES = 1000, 2  # draws from which moments are estimated, and repetitions
_COMPONENTS = 16  # components of the mixture that is fitted to a population
_FAR_SHARE = 0.5  # share of a proposal's components that are at far modes, if there may be any


class Rung(Enum):
    """Estimators of log p(y), in the order in which they are tried."""

    NONE = "none"
    CLOSED_FORM = "closed form"
    QUADRATURE = "quadrature"
    GUIDE = "importance sampling from the guide"
    FITTED = "importance sampling from a fitted proposal"
    STUDENT = "importance sampling from a Student t"
    FILTER = "particle filter"
    MIXTURE = "importance sampling from a mixture over modes"
    TEMPERED = "tempered sequential Monte Carlo"


RUNGS = tuple(Rung)
"""All rungs in order; a result's `rung` is a position in this tuple."""

Source: TypeAlias = Posterior | Population
"""A source of approximate posterior draws: a proposal, or a population of particles."""


@dataclass(frozen=True, repr=False)
class LadderMarginal(LogMarginal):
    """Estimates of log p(y), each from the first rung that was accepted for the datum.

    Arguments:
        rung: Position in :data:`RUNGS` of the accepted rung, `(batch,)`. Position 0,
            `Rung.NONE`, means that no rung was accepted: then the datum is unreliable, and its
            numbers are those of the last rung tried.
    """

    rung: Int64[Tensor, " batch"] = field(kw_only=True)

    @property
    def rungs(self) -> list[Rung]:
        """The accepted rung of every datum; `Rung.NONE` for a datum without an accepted rung."""
        return [RUNGS[place] for place in self.rung.tolist()]

    @property
    def rung_shares(self) -> dict[Rung, float]:
        """Share of the data by accepted rung, including `Rung.NONE`.

        Rungs without data are left out.
        """
        shares = {rung: float((self.rung == n).double().mean()) for n, rung in enumerate(RUNGS)}
        return {rung: share for rung, share in shares.items() if share > 0}

    def columns(self) -> dict[str, Tensor]:
        """Returns the columns of :class:`LogMarginal`, and the position of the accepted rung."""
        return {**super().columns(), "rung": self.rung}

    def summary(self) -> str:
        """Returns the shares of the accepted rungs, then the summary of :class:`LogMarginal`.

        The shares are left out if all data have the same rung.
        """
        summary, shares = super().summary(), self.rung_shares
        if len(shares) < 2:
            return summary
        parts = ", ".join(f"{rung.value} {share:.1%}" for rung, share in shares.items())
        return f"shares of data by accepted estimator: {parts}\n{summary}"


@dataclass(frozen=True)
class Tightest:
    r"""Tries estimators of log p(y) in order of cost, for each datum until one is accepted.

    The estimators are the rungs of a ladder (:class:`Rung`):

    1. the closed form, exact up to rounding;
    2. quadrature for one or two latents, with an error of at most 0.001 nats if it converges;
    3. importance sampling from the guide;
    4. importance sampling from a Gaussian fitted to the posterior of each datum;
    5. importance sampling from a Student t distribution with the moments of the posterior;
    6. a particle filter, for time series;
    7. importance sampling from a mixture over the modes that a tempered population found;
    8. tempered sequential Monte Carlo: a second population, which starts from this mixture.

    If no rung is accepted for a datum, the datum is unreliable, and the result gives the reason.

    Rungs that sample are checked independently: by prior draws, by fits from several starting
    points and, for time series, by a small particle filter. At least a tenth of their draws must be
    effective. The mixture's estimate must also agree with that of the first population, and the
    second population's estimate must not be significantly below earlier estimates. A mode that
    all these checks miss stays undetected.

    Random numbers depend only on the seed and the datum, so other data change the estimate of a
    datum by rounding alone. But the chains of a population amplify rounding: on the last two rungs,
    other data can change an estimate by as much as its Monte Carlo error.

    Arguments:
        num_samples: Draws per datum for each rung that uses importance sampling.
        memory: Memory budget for the program's intermediate results, in MiB.
        proposal: The proposal of the fourth rung (by default a fitted Gaussian).
        prior_share: Share of prior draws, between 0 and 1, in the proposals of the fifth and the
            seventh rung.
        filtering: Settings of the particle filter, which is used for time series.
        tempering: Settings of the tempered populations, which are used if no earlier rung is
            accepted. The ladder ignores `tempering.start`, and chooses the start itself.
        time_limit: Time in seconds after which no further rung is tried; by default unlimited. The
            remaining data are unreliable, with the time limit as the reason. Results with a time
            limit can differ from run to run.

    Raises:
        ValueError: If an argument is out of range.

    References:
        | An Amortized Bayesian Workflow (Schmitt et al., 2024)
        | https://arxiv.org/abs/2409.04332

    Example:
        >>> import pyro, torch
        >>> import pyro_vae as pv
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> guide = pv.Guide(model, pv.GlobalParameters(), example=torch.zeros(1))
        >>> pv.log_marginal_likelihood(model, guide, torch.zeros(1), Tightest()).method
        'closed form'
    """

    num_samples: int = 5000
    memory: float = 512.0
    proposal: Proposal = field(default_factory=Fitted)
    prior_share: float = 0.1
    filtering: ParticleFilter = field(default_factory=ParticleFilter)
    tempering: TemperedSMC = field(default_factory=TemperedSMC)
    time_limit: float | None = None

    def __post_init__(self) -> None:
        """Refuses arguments that are out of range."""
        ImportanceSampling(self.num_samples)
        Defensive(self.prior_share)
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(
                f"`time_limit` must be a positive number of seconds; got {self.time_limit}"
            )

    def __call__(
        self, inference: Inference, *, seed: int = 0, progress: bool | None = None
    ) -> LadderMarginal:
        """Estimates log p(y) of every datum."""
        run = _Run(self, *inference, seed, progress)
        return run.through([Rung.CLOSED_FORM, Rung.QUADRATURE, *_SAMPLED])

    def sampled(
        self, inference: Inference, *, seed: int = 0, progress: bool | None = None
    ) -> LadderMarginal:
        """Estimates log p(y) by the rungs that sample: all except closed form and quadrature."""
        return _Run(self, *inference, seed, progress).through(_SAMPLED)

    def sampled_with_sources(
        self, inference: Inference, *, seed: int, progress: bool | None
    ) -> tuple[LadderMarginal, list[tuple[Tensor, Source]]]:
        """Estimates log p(y) by the rungs that sample; also returns the sources of their draws.

        A source is a proposal or a population of particles. It comes with the row numbers of the
        data for which it was accepted. With one or two latents, a rung whose estimate is
        significantly below that of quadrature has missed a mode, and is not accepted.
        """
        run = _Run(self, *inference, seed, progress)
        with undisturbed():
            exact = _by_quadrature(run)
        if exact is not None:
            found = exact.result
            run.note(replace(found, value=found.value.where(found.reliable, -torch.inf)))
        return run.through(_SAMPLED), run.sources


class _Attempt(NamedTuple):
    """The result of one rung for the open data: those without an accepted estimate so far.

    Arguments:
        result: The estimates.
        accepted: Mask of the data whose estimate is accepted.
        source: The proposal or population from which the draws came, if there is one.
    """

    result: LogMarginal
    accepted: Bool[Tensor, " batch"]
    source: Source | None = None

    @classmethod
    def of(
        cls,
        result: LogMarginal,
        doubts: dict[Doubt, Tensor] | None = None,
        source: Source | None = None,
    ) -> "_Attempt":
        """Adds doubts to the result of a rung, and accepts the estimates of all reliable data."""
        result = replace(result, doubts={**result.doubts, **(doubts or {})})
        return cls(result, result.reliable, source)


@dataclass
class _Run:
    """The state of one call of the ladder.

    Open data are those without an accepted estimate so far. Each rung runs on the open data, and
    can use the results of earlier rungs, which are stored here.
    """

    ladder: Tightest
    program: Program
    posterior: Posterior
    batch: Batch
    seed: int
    progress: bool | None

    def __post_init__(self) -> None:
        self.open = torch.arange(len(self.batch[0]), device=self.batch[0].device)
        self.result: LadderMarginal | None = None
        self.checks = Checks(
            self.program, self.posterior, self.batch, self.ladder.filtering, self.seed
        )
        nothing = torch.zeros(len(self.open), dtype=torch.float64, device=self.open.device)
        self.highest = Estimate(nothing - torch.inf, nothing)  # of all data
        self.proposal: Posterior | None = None  # of the open data
        self.far_modes: FarModes | None = None  # of the open data
        self.sources: list[tuple[Tensor, Source]] = []
        self.last: Source | None = None  # of the open data
        self.tried = Rung.NONE  # the last rung whose estimates were stored

    def through(self, rungs: list[Rung]) -> LadderMarginal:
        """Tries the given rungs in order, and returns the results for all data."""
        begun = time.monotonic()
        for rung in rungs:
            late = time.monotonic() - begun > (self.ladder.time_limit or torch.inf)
            if late and self.result is not None:
                left = torch.zeros_like(self.result.reliable)
                left[self.open] = True
                doubts = {**self.result.doubts, Doubt.TIME_LIMIT: left}
                self.result = replace(self.result, doubts=doubts)
                break
            with undisturbed():
                attempt = _WAYS[rung](self)
            if attempt is not None:
                self._take(rung, attempt)
            if len(self.open) == 0:
                break
        assert self.result is not None
        self._keep(torch.arange(len(self.open), device=self.open.device), self.last)
        return _named(self.result, self.tried)

    def part(self) -> Batch:
        """Returns the open data."""
        return take_rows(self.batch, self.open)

    def inference(self, posterior: Posterior) -> Inference:
        """Returns an estimator's input for the open data, with `posterior` as the guide."""
        return Inference(self.program, posterior, self.part())

    def weighed(self, proposal: Posterior, rung: Rung) -> LogMarginal:
        """Runs importance sampling for the open data, with a separate random stream per rung."""
        estimator = ImportanceSampling(self.ladder.num_samples, self.ladder.memory)
        own = stream(self.seed, f"tightest.{rung.name}")
        return estimator(self.inference(proposal), seed=own, progress=self.progress)

    def defended(self, base: Posterior) -> Posterior:
        """Returns the mixture of a proposal and the prior."""
        return Defensive(self.ladder.prior_share)(*self.inference(base))

    def checked(
        self,
        result: LogMarginal,
        source: Source,
        posterior: Posterior | None = None,
        least: float = _LEAST_EFFICIENT,
    ) -> _Attempt:
        """Checks the estimates of the open data by other computations.

        Arguments:
            result: The estimates.
            source: The proposal or population from which the draws came.
            posterior: A proposal with one mode, at which a search for further modes starts; by
                default there is no search.
            least: Share of the draws that must be effective.
        """
        doubts = {Doubt.MISSED_MASS: self.checks.missed(result, self.open)}
        apart = result.doubts.get(Doubt.RUNGS_DISAGREE, torch.zeros_like(result.reliable))
        doubts[Doubt.RUNGS_DISAGREE] = apart | self.is_low(result)
        self.note(result)
        error = torch.hypot(result.error, shortfall(result, self._highest()))
        result = replace(result, error=error)
        efficient = result.ess >= least * result.num_samples
        if self.far_modes is not None:
            doubts[Doubt.UNSETTLED] = self.far_modes.unsettled
        if posterior is not None:
            left = result.reliable & ~doubts[Doubt.MISSED_MASS] & efficient
            doubts[Doubt.SEVERAL_MODES] = self.checks.several_modes(posterior, self.open, left)
        attempt = _Attempt.of(result, doubts, source)
        return attempt._replace(accepted=attempt.accepted & efficient)

    def note(self, result: LogMarginal) -> None:
        """Keeps, for each open datum, the estimate with the highest lower limit so far."""
        old = self._highest()
        higher = (_lower_limit(result.estimate) > _lower_limit(old)).nonzero()[:, 0]
        new = at_rows(result.estimate, higher)
        self.highest = with_rows(self.highest, self.open[higher], new)

    def _highest(self) -> Estimate:
        """Returns the estimates that `note` has kept for the open data."""
        return at_rows(self.highest, self.open)

    def is_low(self, result: LogMarginal) -> Bool[Tensor, " open"]:
        """Returns a mask of the open data for which an earlier estimate is significantly higher."""
        return excess(self._highest(), result) > MOST_EXCESS

    def _take(self, rung: Rung, attempt: _Attempt) -> None:
        """Stores the estimates of a rung; data with accepted estimates are no longer open."""
        self.tried = rung
        places = attempt.accepted * RUNGS.index(rung)
        new = LadderMarginal(**vars(attempt.result), rung=places.long())
        self.result = new if self.result is None else with_rows(self.result, self.open, new)
        self._keep(attempt.accepted.nonzero()[:, 0], attempt.source)
        left = (~attempt.accepted).nonzero()[:, 0]
        self.last = None if attempt.source is None else _of_rows(attempt.source, left)
        self.open = self.open[left]
        if self.proposal is not None:
            self.proposal = self.proposal.rows(left)
        if self.far_modes is not None:
            self.far_modes = at_rows(self.far_modes, left)

    def _keep(self, places: Tensor, source: Source | None) -> None:
        """Stores the proposal or population from which the draws for the data at `places` came."""
        if source is not None and len(places) > 0:
            self.sources.append((self.open[places], _of_rows(source, places)))


def _of_rows(source: Source, rows: Tensor) -> Source:
    """Returns a proposal or a population for a subset of the data."""
    return at_rows(source, rows) if isinstance(source, Population) else source.rows(rows)


def _named(result: LadderMarginal, tried: Rung) -> LadderMarginal:
    """Sets the method and the bound of a result according to the accepted rungs.

    For data without an accepted rung, `tried` is used: the last rung that was tried.
    """
    rungs = (RUNGS[place] for place in result.rung.unique().tolist())
    used = {tried if rung is Rung.NONE else rung for rung in rungs}
    bound = Bound.TWO_SIDED if used & {Rung.CLOSED_FORM, Rung.QUADRATURE} else Bound.LOWER
    bound = Bound.EXACT if used == {Rung.CLOSED_FORM} else bound
    if used <= {Rung.GUIDE, Rung.FITTED, Rung.STUDENT, Rung.MIXTURE}:
        method = "importance sampling"
    else:
        method = ", ".join(rung.value for rung in RUNGS if rung in used)
    return replace(result, method=method, bound=bound)


def _lower_limit(estimate: Estimate) -> Tensor:
    """Returns each estimate minus four errors, where each error is capped as in `excess`."""
    return estimate.value - MOST_EXCESS * estimate.error.clamp(max=1)


# One function per rung


def _by_closed_form(run: _Run) -> _Attempt | None:
    """Computes log p(y) in closed form; returns None if the log joint is not quadratic.

    Exceptions that the model's own method `log_evidence` raises are passed on.
    """
    program, inference = run.program, Inference(run.program, run.posterior, run.batch)
    if hooks_of(program.model).log_evidence is not None:
        return _Attempt.of(ClosedForm()(inference))
    try:
        exact = ClosedForm()(inference)
    except ValueError:
        return None
    rounding = _ROUNDINGS * torch.finfo(program.dtype).eps * (1 + exact.value.abs())
    # If the log joint of one datum is only nearly quadratic, no datum is accepted.
    return _Attempt.of(exact) if bool((exact.error <= rounding).all()) else None


def _by_quadrature(run: _Run) -> _Attempt | None:
    """Integrates numerically; returns None if this is too expensive or not possible."""
    too_many = run.program.latent_dim > _MOST_LATENTS_ON_A_GRID
    if too_many or not is_repeatable(run.program, run.batch):
        return None
    quadrature = Quadrature(_TOLERANCE, memory=run.ladder.memory)
    inference = run.inference(run.posterior.rows(run.open))
    try:
        found = quadrature(inference, seed=run.seed, progress=run.progress)
    except ValueError as error:
        if isinstance(error.__cause__, RuntimeError):  # a matrix that torch cannot factorize
            return None
        raise
    return _Attempt.of(found)


def _from_guide(run: _Run) -> _Attempt:
    """Samples from the guide; the expensive checks are left out if no datum can be accepted."""
    posterior = run.posterior.rows(run.open)
    result = run.weighed(posterior, Rung.GUIDE)
    efficient = result.ess >= _EFFICIENT * result.num_samples
    if not bool((efficient & result.reliable).any()):
        run.note(result)
        return _Attempt(result, torch.zeros_like(efficient), posterior)
    return run.checked(result, posterior, posterior, least=_EFFICIENT)


def _from_fit(run: _Run) -> _Attempt:
    """Samples from a Gaussian that is fitted to each posterior."""
    posterior = run.posterior.rows(run.open)
    run.proposal = run.ladder.proposal(*run.inference(posterior))
    result = run.weighed(run.proposal, Rung.FITTED)
    attempt = run.checked(result, run.proposal, run.proposal)
    if all(site.is_real for site in run.program.latent_sites):
        return attempt
    # Near an edge of the support a density falls exponentially. A normal falls faster, and can miss
    # up to a tenth of the mass without a large weight among its draws. But then fewer than half of
    # its draws are effective.
    efficient = result.ess >= _EFFICIENT * result.num_samples
    return attempt._replace(accepted=attempt.accepted & efficient)


def _from_student(run: _Run) -> _Attempt:
    """Samples from a Student t with the posterior's moments, mixed with the prior."""
    assert run.proposal is not None
    proposal, estimator = run.proposal, ImportanceSampling(_MATCHED_DRAWS, run.ladder.memory)
    for match in range(_MATCHES):  # the second Student t has the moments of draws from the first
        own = stream(run.seed, f"tightest.matched.{match}")
        blocks = estimator.sampling(run.inference(proposal), seed=own, progress=False).blocks()
        draws = [(block.z, block.weights.log_weights) for block in blocks]
        proposal = student_of(*join(draws, axis=1))
    run.proposal = proposal
    defended = run.defended(proposal)
    return run.checked(run.weighed(defended, Rung.STUDENT), defended, proposal)


def _from_filter(run: _Run) -> _Attempt | None:
    """Runs the particle filter; returns None if the data have no order in time."""
    if len(run.checks.stages) < 2:
        return None
    own = run.ladder.filtering.populations(
        run.inference(run.posterior.rows(run.open)), run.checks.stages,
        seed=stream(run.seed, f"tightest.{Rung.FILTER.name}"), progress=run.progress,
    )  # fmt: skip
    return run.checked(own.result, own)


def _from_mixture(run: _Run) -> _Attempt:
    """Fits a mixture to a tempered population, and draws from the mixture.

    The mixture's estimate is accepted only if it agrees with the estimate from the population.
    """
    assert isinstance(run.proposal, StudentMixture)
    population = _population(run, StartFromPrior(), Rung.MIXTURE)
    limit = rows_at_once(run.program, run.part(), run.ladder.memory)
    run.far_modes = far = FarModes.of(run.program, run.part(), limit)
    mixture = partial(_around, others=run.proposal, far=far)
    run.proposal = mixture(population.z)
    defended = run.defended(run.proposal)
    result = run.weighed(defended, Rung.MIXTURE)
    held_out = held_out_mass(
        run.inference(defended), population, lambda z: run.defended(mixture(z)), result, limit=limit
    )
    result = with_missed(result, held_out)
    higher = excess(result, population.result)
    # A population that starts at the prior does not reach far modes, so its estimate may be lower.
    apart = higher.abs() if far is None else torch.where(far.heavy, -higher, higher.abs())
    disagree = {Doubt.RUNGS_DISAGREE: apart > MOST_EXCESS}
    result = replace(result, doubts={**result.doubts, **disagree})
    run.note(population.result)
    return run.checked(result, defended)


def _around(z: Tensor, others: StudentMixture, far: FarModes | None) -> StudentMixture:
    """Fits a mixture to a population's particles, and joins this mixture with other mixtures.

    Arguments:
        z: Particles, `(islands, particles, batch, latents)`.
        others: The proposals of the previous rung.
        far: Modes beyond the range of the prior's draws; None if no prior has heavy tails.
    """
    mixture = joined(mixture_of(z.flatten(0, 1), _COMPONENTS), others, 1 / (_COMPONENTS + 1))
    return mixture if far is None else joined(mixture, far.mixture(), _FAR_SHARE * far.heavy)


def _from_population(run: _Run) -> _Attempt:
    """Runs a population from the previous rung's mixture, and checks its estimates."""
    own = _population(run, StartFromGuide(), Rung.TEMPERED)
    return run.checked(own.result, own)


def _population(run: _Run, start: Start, rung: Rung) -> Population:
    """Runs tempered sequential Monte Carlo; `run.proposal` takes the place of the guide."""
    assert run.proposal is not None
    own = stream(run.seed, f"tightest.population.{rung.name}")
    tempering = replace(run.ladder.tempering, start=start)
    inference = run.inference(run.proposal)
    return tempering.populations(inference, seed=own, progress=run.progress)


_SAMPLED = list(RUNGS[RUNGS.index(Rung.GUIDE) :])  # the rungs that sample
_WAYS: dict[Rung, Callable[[_Run], _Attempt | None]] = {
    Rung.CLOSED_FORM: _by_closed_form,
    Rung.QUADRATURE: _by_quadrature,
    Rung.GUIDE: _from_guide,
    Rung.FITTED: _from_fit,
    Rung.STUDENT: _from_student,
    Rung.FILTER: _from_filter,
    Rung.MIXTURE: _from_mixture,
    Rung.TEMPERED: _from_population,
}
