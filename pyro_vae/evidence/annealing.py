r"""Annealed importance sampling along a path from a starting distribution to the posterior.

The geometric path :math:`f_t(z) = f_0(z)\, r(z)^{\beta_t}` leads from a normalized start
:math:`f_0` to :math:`f_T(z) = p(y, z)`. The start is the prior, with :math:`r = p(y \mid z)`, or
the guide, with :math:`r = p(y, z) / q(z)`. A chain starts at :math:`z_0 \sim f_0` and moves by
transitions that leave :math:`f_t` invariant. The chain's weight

.. math:: \log w = \sum_{t=1}^{T} (\beta_t - \beta_{t-1}) \log r(z_{t-1}), \qquad
    \mathbb{E}\, w = p(y),

is an importance weight for the whole trajectory. So the weight is unbiased whether or not the
transitions mix, and the logarithm of the mean weight is low on average. A chain that starts at an
exact draw of the posterior can also run backwards. The weight of such a chain is unbiased for
:math:`1 / p(y)`.

The weights are unbiased only if the transitions are fixed in advance. So a pilot run with a
separate random stream determines the step size of every latent and, for an adaptive schedule, the
temperatures.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import pyro
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from .. import stats
from .._types import Batch, Estimate
from ..guides import Posterior
from ..programs import Density, Prior, Program
from ..programs.pieces import take_rows
from ..progress import progress_bar
from ..randomness import normals, row_keys, uniforms
from ..results import Doubt, combined, join
from .hamiltonian import Noise, Path, Point, at, chunks_of_chains, transition
from .results import Bound, LogMarginal
from .weights import Inference, draw_rows, systematic, weigh

_BLOCK = 64  # number of transitions whose noise is drawn at once
_PARTS = ("pilot.start", "start", "pilot", "forward", "backward")  # each has a random stream
_LEAST_CHAINS = 4.0  # effective chains; with fewer, a single chain dominates the estimate
_FAR = 0.25  # distance from the target acceptance above which the pilot's steps do not suit the run
_EVEN = 0.2  # share of an adaptive schedule that divides the pilot's temperatures evenly

# The pilot run; a stretch is an increase of the temperature
_WARM_UP = 10  # transitions before the first stretch, which tune the step size
_GAIN = 0.4  # gain in the log step size: a hundredfold change takes 20 transitions
_MEMORY = 0.2  # weight of the latest value: running averages cover about ten transitions
_PACE = 0.25  # standard deviation in nats that one stretch adds to the log weights
_LARGEST = 1 / 50  # longest stretch, so that step sizes have time to settle on short paths, too
_LEAST_GROWTH = 0.01  # shortest stretch, relative to the temperature so far, so that the pilot ends
_FIRST = 1e-8  # shortest first stretch
_LONGEST = 10_000  # transitions; never reached, because stretches have the two least lengths above
_NO_DENSITY = 1e8  # used as the standard deviation where a chain has a likelihood of 0


# Schedules


@runtime_checkable
class Schedule(Protocol):
    """A rule that chooses the temperatures of an annealed run, from 0 (start) to 1 (posterior)."""

    def places(
        self,
        count: int,
        grid: Float64[Tensor, "pilot batch"],
        spread: Float64[Tensor, "pilot batch"],
    ) -> Float64[Tensor, "places batch"]:
        """Returns `count + 1` increasing temperatures from 0 to 1 for every datum.

        Arguments:
            count: Number of temperatures, not counting 0.
            grid: Temperatures that the pilot run visited.
            spread: Standard deviation over the pilot's chains, in nats, of log(joint density /
                starting density) at each temperature of `grid`.
        """


@dataclass(frozen=True)
class Linear:
    r"""Evenly spaced temperatures, :math:`\beta_t = t / T`, suited to starts near the posterior."""

    def places(
        self,
        count: int,
        grid: Float64[Tensor, "pilot batch"],
        spread: Float64[Tensor, "pilot batch"],
    ) -> Float64[Tensor, "places batch"]:
        """Returns the same evenly spaced temperatures for every datum."""
        line = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=grid.device)
        return line[:, None].repeat(1, grid.shape[1])


@dataclass(frozen=True)
class Sigmoid:
    r"""Temperatures that are densely spaced near 0 and 1.

    .. math:: \beta_t \propto \sigma\big(\delta (2 t / T - 1)\big) - \sigma(-\delta)

    Arguments:
        steepness: :math:`\delta`, a positive number; 4 is customary for image decoders.

    References:
        | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
        | https://arxiv.org/abs/1611.04273
    """

    steepness: float = 4.0

    def places(
        self,
        count: int,
        grid: Float64[Tensor, "pilot batch"],
        spread: Float64[Tensor, "pilot batch"],
    ) -> Float64[Tensor, "places batch"]:
        """Returns temperatures that are dense near 0 and 1, and are the same for every datum."""
        line = torch.linspace(-1, 1, count + 1, dtype=torch.float64, device=grid.device)
        curve = (self.steepness * line).sigmoid()
        curve = (curve - curve[0]) / (curve[-1] - curve[0])
        return curve[:, None].repeat(1, grid.shape[1])


@dataclass(frozen=True)
class Adaptive:
    r"""Temperatures chosen per datum so that each increase lowers the ESS by about the same factor.

    Let :math:`r` be the joint density divided by the starting density. A small increase
    :math:`\Delta \beta` of the temperature divides the effective sample size by about
    :math:`1 + (\Delta \beta)^2 \operatorname{Var} \log r`. The pilot run measures
    :math:`\operatorname{sd} \log r` along the path, and the temperatures divide :math:`\int
    \operatorname{sd} \log r \, d\beta` into nearly equal parts.

    References:
        | Sequential Monte Carlo Samplers (Del Moral, Doucet & Jasra, 2006)
        | https://doi.org/10.1111/j.1467-9868.2006.00553.x
    """

    def places(
        self,
        count: int,
        grid: Float64[Tensor, "pilot batch"],
        spread: Float64[Tensor, "pilot batch"],
    ) -> Float64[Tensor, "places batch"]:
        """Returns temperatures that divide each datum's path into parts of nearly equal length.

        The length of a part is the integral of the standard deviation of log(joint density /
        starting density) over the part's temperatures. The pilot run measured this standard
        deviation.
        """
        stretches = grid.diff(dim=0)
        lengths = (spread[1:] + spread[:-1]) / 2 * stretches
        even = (stretches > 0).double()  # stretches are 0 for data that reached 1 before the others
        shares = (1 - _EVEN) * _share(lengths) + _EVEN * _share(even)
        travelled = torch.cat([torch.zeros_like(shares[:1]), shares.cumsum(dim=0)])
        wanted = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=grid.device)
        inner = wanted[1:-1, None].expand(-1, grid.shape[1])
        inner = _interpolated(inner, (travelled / travelled[-1]).T.contiguous(), grid)
        # The first and last temperature are exactly 0 and 1, without rounding.
        return torch.cat([grid[:1] * 0, inner, grid[:1] * 0 + 1])


def _share(lengths: Tensor) -> Tensor:
    """Converts the lengths of the parts of each datum's path to shares of the path's length."""
    return lengths / lengths.sum(dim=0).clamp(min=torch.finfo(lengths.dtype).tiny)


def _interpolated(
    x: Float64[Tensor, "count batch"],
    knots: Float64[Tensor, "batch pilot"],
    values: Float[Tensor, "pilot batch *latents"],
) -> Float[Tensor, "count batch *latents"]:
    """Interpolates linearly, for each datum, between `values` that are known at `knots`."""
    wanted = x.T.contiguous()
    right = torch.searchsorted(knots, wanted).clamp(1, knots.shape[1] - 1)
    low, high = knots.gather(1, right - 1), knots.gather(1, right)
    share = ((wanted - low) / (high - low)).T.to(values.dtype)
    right, data = right.T, torch.arange(x.shape[1], device=x.device)
    share = share.view(*share.shape, *[1] * (values.dim() - 2))
    return torch.lerp(values[right - 1, data], values[right, data], share)


# Starts


@runtime_checkable
class Start(Protocol):
    """A starting distribution for annealed chains, and the path from it to the posterior."""

    def origin(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """Returns the starting distribution, whose density must be normalized."""

    def path(self, program: Density, origin: Posterior, batch: Batch) -> Path:
        """Returns a function that maps z to the log starting density and log(joint / start)."""


@dataclass(frozen=True)
class StartFromPrior:
    """Starts chains from the prior, without a guide; narrow posteriors need many temperatures."""

    def origin(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """Returns the prior, from which the chains start."""
        return Prior(program, batch)

    def path(self, program: Density, origin: Posterior, batch: Batch) -> Path:
        """Returns a function that maps z to the log prior and the log likelihood."""
        return lambda z: program.log_densities(z, *batch)


@dataclass(frozen=True)
class StartFromGuide:
    """Starts chains from the guide; if it is close to the posterior, few temperatures suffice.

    A guide that is narrower than the posterior gives the weights a heavy tail. Removing this tail
    needs a few dozen temperatures; with only a dozen, the reported errors are too small. It must be
    possible to evaluate the guide's density at given points, and to differentiate this density with
    respect to the latents.
    """

    def origin(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """Returns the guide, from which the chains start."""
        return posterior

    def path(self, program: Density, origin: Posterior, batch: Batch) -> Path:
        """Returns a function that maps z to the log guide density and to log(joint / guide)."""

        def path(z: Tensor) -> tuple[Tensor, Tensor]:
            log_guide = origin.log_prob(z)
            return log_guide, program.log_joint(z, *batch) - log_guide

        return path


# Chains


class Ladder(NamedTuple):
    """The temperatures of an annealed run, and the step sizes that its pilot run has found.

    Arguments:
        places: Temperatures from 0 to 1, `(temperatures + 1, batch)`.
        grid: Temperatures that the pilot run visited, `(batch, pilot)`.
        log_step: Log step sizes at the temperatures of `grid`, `(pilot, batch, latents)`.
    """

    places: Tensor
    grid: Tensor
    log_step: Tensor

    def backwards(self) -> "Ladder":
        """Returns the same ladder in reverse: its temperatures run from 1 down to 0."""
        return self._replace(places=self.places.flip(0))

    def step(self, place: Float64[Tensor, " batch"]) -> Tensor:
        """Interpolates the step size of every latent at the temperature `place` of each datum."""
        return _interpolated(place[None], self.grid, self.log_step)[0].exp()


def noise_of(keys: Int64[Tensor, " rows"], count: int, z: Tensor) -> Iterator[Noise]:
    """Yields the random numbers of `count` transitions, generated from each datum's key.

    The chains' positions have the shape of `z`, `(chains, batch, latents)`.
    """
    chains, _, latents = z.shape
    for done in range(0, count, _BLOCK):
        number, first = chains * min(_BLOCK, count - done), chains * done
        momenta = normals(keys, number, latents, z, first=first)
        levels = uniforms(keys, number, 2, z, first=first)
        for momentum, level in zip(momenta.split(chains), levels.split(chains), strict=True):
            yield Noise(momentum, *level.unbind(dim=-1))


def annealed(
    path: Path, z: Tensor, ladder: Ladder, noise: Iterator[Noise], leapfrog_steps: int
) -> tuple[Tensor, Tensor]:
    """Runs chains through all temperatures of `ladder`, with the step sizes of `ladder`.

    Returns log weights, `(chains, batch)`, and acceptance rates, `(batch,)`. If the temperatures
    are reversed, the mean weight estimates 1 / p(y).
    """
    with pyro.validation_enabled(is_validate=False):  # trajectories may overflow
        point, places = at(path, z), ladder.places
        log_weights = torch.zeros_like(point.log_ratio, dtype=torch.float64)
        acceptance = torch.zeros_like(places[0])
        for before, place in pairwise(places[:-1]):
            log_weights += (place - before) * point.log_ratio.double()
            beta, step = place.to(z.dtype), ladder.step(place)
            point, accepted = transition(path, point, beta, step, next(noise), leapfrog_steps)
            acceptance += accepted.mean(dim=0) / max(1, len(places) - 2)
    return log_weights + (places[-1] - places[-2]) * point.log_ratio.double(), acceptance


def log_mean_weight(log_weights: Float[Tensor, "chains batch"]) -> Estimate:
    r"""Returns the log of the mean weight, with a standard error that is valid even for few chains.

    The error is the larger of two standard errors. The first is the jackknife's, which is too small
    if a few of the :math:`C` chains dominate the mean. The second assumes log-normal weights:
    :math:`\sqrt{(e^{s^2} - 1) / C}`, where :math:`s^2` is the variance of the log weights. This
    variance is estimated from the log weights above the median, because low weights contribute
    little to the mean. The second error is capped at :math:`\max(s, s^2)`. If only a share
    :math:`f` of the weights is above 0, :math:`s^2` is estimated from these weights, and the square
    of the second error becomes :math:`(e^{s^2} - 1) / (f C) + (1 - f) / (f C)`.

    Both errors are estimated from few chains. So the larger error is multiplied by a ratio of two
    97.5% quantiles: that of Student's t over that of the normal distribution. For 16 chains with
    normal log weights of variance 0.05, 0.3, 1 and 2, intervals of ± 1.96 errors cover the truth in
    96, 95, 93 and 91% of the runs.
    """
    from scipy.special import stdtrit  # a third of a second to import

    chains = len(log_weights)
    widened = float(stdtrit(chains - 1, 0.975)) / 1.959963984540054  # the normal's quantile
    error = torch.maximum(_jackknife(log_weights), _log_normal_error(log_weights))
    error = (widened * error).nan_to_num(nan=torch.inf)
    return Estimate(stats.log_mean_exp(log_weights), error)


def _jackknife(log_weights: Tensor) -> Tensor:
    """Computes the first standard error of :func:`log_mean_weight`, the jackknife's."""
    chains = len(log_weights)
    others = [
        stats.log_mean_exp(torch.cat([log_weights[:left], log_weights[left + 1 :]]))
        for left in range(chains)
    ]
    return torch.stack(others).var(dim=0, unbiased=False).mul(chains - 1).sqrt()


def _log_normal_error(log_weights: Tensor) -> Tensor:
    """Computes the second standard error of :func:`log_mean_weight`, for log-normal weights."""
    is_zero = log_weights.isneginf()
    positive = (~is_zero).sum(dim=0)
    median = log_weights.masked_fill(is_zero, torch.nan).nanquantile(0.5, dim=0)
    above = (log_weights - median).clamp(min=0)
    variance = 2 * above.square().sum(dim=0) / (positive - 1).clamp(min=1)
    highest = torch.maximum(variance, variance.sqrt())
    error = torch.minimum((variance.expm1() / positive).sqrt(), highest)
    return torch.hypot(error, (1 / positive - 1 / len(log_weights)).sqrt())


@dataclass(frozen=True)
class AnnealedImportanceSampling:
    r"""Estimates log p(y) with chains that are annealed from a start to the posterior.

    .. math:: \log \hat p(y_n) = \log \frac{1}{C} \sum_{c=1}^{C} w_{cn}, \qquad
        \log w = \sum_{t=1}^{T} (\beta_t - \beta_{t-1}) \log r(z_{t-1})

    The estimate is unbiased for p, so it is low on average for log p. The bias is about half the
    relative variance of the weights, divided by the number of chains. Additional temperatures help
    more than additional chains, since the variance of the log weights falls as 1 / T. A pilot run
    of 60 to a few hundred transitions determines the step sizes of every datum and, with
    :class:`Adaptive`, the temperatures. If a posterior has modes that no chain found, the estimate
    is low, and no diagnostic shows this; :func:`pyro_vae.bidirectional` bounds the error.

    Arguments:
        num_chains: Chains per datum, :math:`C`.
        num_temperatures: Number of temperatures, :math:`T`, with one transition at each.
        leapfrog_steps: Leapfrog steps per transition, each with one gradient. At the same cost,
            2 steps at more temperatures are far more accurate than the customary 10 steps.
        schedule: The spacing of the temperatures: :class:`Linear`, :class:`Sigmoid` or
            :class:`Adaptive`.
        start: :class:`StartFromPrior` or :class:`StartFromGuide`.
        target_acceptance: Acceptance rate between 0 and 1 for which the pilot run tunes the step
            sizes.
        memory: Memory budget for the program's intermediate results, in MiB.
        compile: Whether to compile the program's densities and gradients. By default they are
            compiled if that saves time. Compiling takes about ten seconds, once, since the compiled
            code is kept with the model. Compiling, like another memory budget, changes densities by
            rounding errors only, but these can change the trajectory of a chain.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        | Annealed Importance Sampling (Neal, 2001)
        | https://arxiv.org/abs/physics/9803008
        | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
        | https://arxiv.org/abs/1611.04273

    Example:
        >>> import pyro
        >>> from pyro_vae import log_marginal_likelihood
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> method = AnnealedImportanceSampling(num_temperatures=20)
        >>> result = log_marginal_likelihood(model, model, torch.zeros(2), method)
        >>> result.method, result.num_samples
        ('annealed importance sampling', tensor([16, 16]))
    """

    num_chains: int = 16
    num_temperatures: int = 2000
    leapfrog_steps: int = 2
    schedule: Schedule = Adaptive()
    start: Start = StartFromPrior()
    target_acceptance: float = 0.65
    memory: float = 512.0
    compile: bool | None = None

    def __post_init__(self) -> None:
        """Refuses a single chain."""
        if self.num_chains < 2:
            raise ValueError(
                "`num_chains` must be at least 2, because the standard error is estimated from "
                f"differences between chains; got {self.num_chains}"
            )

    def __call__(
        self, inference: Inference, *, seed: int = 0, progress: bool | None = None
    ) -> LogMarginal:
        """Estimates log p(y) of every datum."""
        parts = []
        for work in self.works(inference, seed=seed, progress=progress):
            noise = noise_of(work.keys, self.num_temperatures, work.z)
            found = annealed(work.path, work.z, work.ladder, noise, self.leapfrog_steps)
            parts.append(self.result_of(*found, Bound.LOWER))
        return join(parts)

    def works(self, inference: Inference, *, seed: int, progress: bool | None) -> Iterator["Work"]:
        """Yields the data in chunks that fit in memory, with the inputs of each chunk's chains."""
        program, posterior, batch = inference
        origin = self.start.origin(program, posterior, batch)
        keys = [row_keys(seed, f"annealing.{part}", *batch) for part in _PARTS]
        calls = self.num_temperatures * (self.leapfrog_steps + 1)
        chunks, density = chunks_of_chains(
            program, batch, self.num_chains, self.memory, calls, compile=self.compile
        )
        for rows in progress_bar(chunks, show=progress, desc="annealing"):
            first = rows.start
            trial_start, start, trial_moves, forward, backward = (part[rows] for part in keys)
            part = take_rows(batch, rows)
            trial, _ = draw_rows(origin, first, trial_start, self.num_chains)
            z, log_start = draw_rows(origin, first, start, self.num_chains)
            places = range(first, first + z.shape[1])
            weigh(program, z, log_start, part, self.num_chains, places=places)  # refuses nan, inf
            path = self.start.path(density, origin.rows(rows), part)
            steps, target = self.leapfrog_steps, self.target_acceptance
            with pyro.validation_enabled(is_validate=False):  # trajectories may overflow
                grid, log_step, spread = pilot(path, trial, trial_moves, steps, target)
            temperatures = self.schedule.places(self.num_temperatures, grid, spread)
            ladder = Ladder(temperatures, grid.T.contiguous(), log_step)
            yield Work(rows, path, z, ladder, forward, backward)

    def result_of(self, log_weights: Tensor, acceptance: Tensor, bound: Bound) -> LogMarginal:
        """Computes estimates of log p(y) from the chains' log weights and acceptance rates.

        If `bound` is an upper bound, the chains ran backwards, so the log mean weight is negated.
        """
        value, error = log_mean_weight(log_weights)
        ess = stats.effective_sample_size(log_weights)
        has_tail = self.num_chains >= stats.MIN_TAIL_PARTICLES
        pareto_k = stats.pareto_k(log_weights) if has_tail else torch.full_like(value, torch.nan)
        off = (acceptance - self.target_acceptance).abs() > _FAR
        # No doubt depends on Pareto k. It has no scale, and from dozens of chains it says little:
        # intervals cover the truth no less often for data with a k above the limit.
        doubts = {
            Doubt.FEW_EFFECTIVE_CHAINS: stats.too_few_effective(ess, _LEAST_CHAINS),
            Doubt.ACCEPTANCE: off & (self.num_temperatures > 1),
            Doubt.ZERO_WEIGHTS: value.isinf(),
        }
        samples = torch.full_like(value, self.num_chains, dtype=torch.int64)
        upper = bound is Bound.UPPER
        method = f"{'reverse ' * upper}annealed importance sampling"
        value = -value if upper else value
        return LogMarginal(value, error, ess, pareto_k, samples, bound, method, doubts)


class Work(NamedTuple):
    """A chunk of data with the inputs of its chains.

    Arguments:
        rows: Row numbers of the data.
        path: The path from the starting distribution to the posterior.
        z: Starting points, `(chains, batch, latents)`.
        ladder: Temperatures and step sizes.
        keys: Random keys of the chains that run forwards, `(batch,)`.
        backward_keys: Random keys of chains that run backwards, `(batch,)`.
    """

    rows: slice
    path: Path
    z: Tensor
    ladder: Ladder
    keys: Tensor
    backward_keys: Tensor


class Measured(NamedTuple):
    """The measurements of a pilot run at each of its temperatures, for every datum.

    Arguments:
        grid: The temperatures, `(pilot, batch)`.
        log_step: Log step size of every latent, `(pilot, batch, latents)`.
        spread: Standard deviation over chains of log(joint density / starting density), in nats,
            `(pilot, batch)`.
    """

    grid: Tensor
    log_step: Tensor
    spread: Tensor


def pilot(path: Path, z: Tensor, keys: Tensor, leapfrog_steps: int, target: float) -> Measured:
    """Runs pilot chains from the start to the posterior, and measures them at each temperature.

    No estimate uses these chains, so the run can adapt to them. For each datum, the step size
    adapts to the acceptance rate, and the increments of temperature adapt to the spread of the log
    weights. Resampling replaces chains of low weight by copies of other chains.

    Arguments:
        path: The path from the starting distribution to the posterior.
        z: Starting points, `(chains, batch, latents)`.
        keys: Random key of each datum.
        leapfrog_steps: Leapfrog steps per transition.
        target: Acceptance rate to which the step sizes adapt.
    """
    point, moments = at(path, z), z.var(dim=0)
    place = torch.zeros(z.shape[1], dtype=torch.float64, device=z.device)
    common = torch.full_like(moments[:, :1], -math.log(leapfrog_steps) / 2)
    settled, spread = common, spread_of(point.log_ratio)
    stages = []
    for index, noise in enumerate(noise_of(keys, _LONGEST, z)):
        scale = moments.clamp(min=torch.finfo(z.dtype).tiny).log() / 2
        if index >= _WARM_UP:
            stages.append(Measured(place, settled + scale, spread))
            if bool((place == 1).all()):
                break
            onwards = _onwards(place, spread_of(point.log_ratio))
            point = resampled(point, onwards - place, noise.level[0])
            place = onwards
        beta, step = place.to(z.dtype), (common + scale).exp()
        point, accepted = transition(path, point, beta, step, noise, leapfrog_steps)
        common = common + _GAIN * (accepted.mean(dim=0) - target)[:, None]
        settled = torch.lerp(settled, common, _MEMORY)
        moments = torch.lerp(moments, point.z.var(dim=0), _MEMORY)
        spread = torch.lerp(spread, spread_of(point.log_ratio), _MEMORY)
    return combined(stages, torch.stack)


def _onwards(place: Tensor, spread: Tensor) -> Tensor:
    """Returns the next temperature of every datum, after the temperature `place`.

    The increase is chosen so that the resulting log weights of the chains have a standard
    deviation of 0.25 nats. Lower and upper limits on the increase take precedence.

    Arguments:
        place: Temperature of every datum.
        spread: Standard deviation of log(joint density / starting density) over chains, in nats.
    """
    least = (_LEAST_GROWTH * place).clamp(min=_FIRST)
    stretch = torch.maximum(least, (_PACE / spread).clamp(max=_LARGEST))
    return (place + stretch).clamp(max=1.0)


def resampled(point: Point, stretch: Tensor, level: Tensor) -> Point:
    """Resamples each datum's chains systematically, after an increase of the temperature.

    The increase gives each chain a weight; the weights determine the expected numbers of copies.

    Arguments:
        point: The chains.
        stretch: Increase of each datum's temperature.
        level: One uniform random number per datum.
    """
    gains = (stretch * point.log_ratio.double()).nan_to_num(nan=-torch.inf)
    chosen = systematic(gains, level, len(gains))
    data = torch.arange(chosen.shape[1], device=gains.device)
    return Point(*(part[chosen, data] for part in point))


def spread_of(log_ratio: Tensor) -> Tensor:
    """Returns the standard deviation of `log_ratio` over chains, or 1e8 if a density is 0."""
    spread = log_ratio.double().std(dim=0)
    return spread.nan_to_num(nan=_NO_DENSITY, posinf=_NO_DENSITY).clamp(min=1e-12)
