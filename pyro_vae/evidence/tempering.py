r"""Tempered sequential Monte Carlo: populations of particles are annealed and resampled.

As in :mod:`pyro_vae.evidence.annealing`, particles move along :math:`f_t(z) = f_0(z)\,
r(z)^{\beta_t}` to :math:`f_T(z) = p(y, z)`. In addition, after each increase of :math:`\beta`,
copies of particles with large weights replace particles with small weights. A population is called
an island. With :math:`M` particles, its estimate is

.. math:: \log \hat p(y) = \sum_{t=1}^{T} \log \frac{1}{M} \sum_{m=1}^{M}
    r(z_{t-1}^m)^{\beta_t - \beta_{t-1}}, \qquad \mathbb{E}\, \hat p(y) = p(y),

and the final particles are approximate draws from the posterior. Step sizes and temperatures are
fixed beforehand. So the islands are independent, and the spread of their estimates gives the error.

Where a posterior is much narrower than elsewhere, as in the neck of a funnel, every move is
rejected. The mass of such a region is then represented only by the particles that started in this
region. These may be few, and possibly no island has any. Let :math:`a_s^m` be the acceptance
probabilities of the last :math:`S` moves. Then

.. math:: f = \frac{1}{M} \sum_m \prod_{s=1}^{S} (1 - a_s^m)

is the expected share of particles that do not move at all. The relative error of the mass of these
particles is about 1, so the error of :math:`\log \hat p` is :math:`\sqrt{\mathrm{se}^2 + f^2}`.

The transitions move whitened latents :math:`u`, where :math:`z = \mu + R u`. Here :math:`\mu` is
the mean of the start, and :math:`R` is the Cholesky factor of the start's covariance. So one step
size suits all latents.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, NamedTuple

import pyro
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from .. import stats
from .._annotations import Interval
from .._types import Batch
from ..guides import Posterior
from ..programs import Density, Program
from ..programs.pieces import take_rows
from ..progress import progress_bar
from ..randomness import row_keys, uniforms
from ..results import Doubt, at_rows, join
from .annealing import (
    Adaptive,
    Ladder,
    Start,
    StartFromPrior,
    log_mean_weight,
    noise_of,
    pilot,
    resampled,
)
from .hamiltonian import Path, Point, at, chunks_of_chains, transition
from .results import Bound, LogMarginal
from .weights import Inference, draw_rows, weigh
from .whitening import Whitening

_PARTS = ("scale", "pilot.start", "pilot", "start", "resampling", "moves")  # random streams
_SCALE_DRAWS = 256  # draws for the whitening, which need not be exact
_PACE = 0.35  # sd of a stretch's log weights in nats: an eighth of the effective particles is lost
_FEWEST, _MOST = 16, 128  # smallest and largest number of stretches
_SETTLING = 8  # transitions after the last stretch, which separate copies of a particle
_FAR = 0.25  # distance from the target acceptance above which a datum is unreliable
_MOST_STILL = 0.2  # largest share of final particles that do not move
_DEPENDENT = 2.0  # tolerated ratio of variances: as if half of the particles were independent
_FALSE_ALARM = 1e-3  # probability of a false alarm per latent, if the ratio is just tolerated
_LEAST_ISLANDS = 0.5  # share of effective islands; with fewer, one or two dominate the estimate


@dataclass(frozen=True)
class Population:
    """The final particles of some data, and the estimates from them.

    Arguments:
        result: Estimates of log p(y).
        z: Final particles, `(islands, particles, batch, latents)`, equally weighted within an
            island.
        log_evidence: Estimate of log p(y) by every island, `(islands, batch)`, in nats.
    """

    result: LogMarginal
    z: Float[Tensor, "islands particles batch latents"] = field(metadata={"axis": 2})
    log_evidence: Float64[Tensor, "islands batch"] = field(metadata={"axis": 1})


@dataclass(frozen=True)
class TemperedSMC:
    r"""Estimates log p(y) with populations of particles that are annealed, moved and resampled.

    The estimate of p(y) is unbiased. A pilot run determines the step sizes and temperatures for
    every datum in advance. The error combines the spread of the islands' estimates with the share
    of final particles for which no move was accepted.

    A datum is reliable under four conditions: at least half of the islands are effective; the
    acceptance rate is near its target; at least 80% of the final particles move; and the final
    particles of all islands have the same distribution. The last condition fails if all moves are
    too short, as in the neck of a funnel, so that many particles stay copies of a few ancestors.
    Modes without a particle nearby stay undetected.

    Arguments:
        num_islands: Number of independent populations.
        num_particles: Particles per island.
        leapfrog_steps: Leapfrog steps per transition.
        start: :class:`StartFromPrior`, which covers every mode, or :class:`StartFromGuide`, which
            needs fewer temperatures, but can miss modes that the guide does not cover.
        target_acceptance: Acceptance rate between 0 and 1 for which the pilot run tunes the step
            sizes.
        memory: Memory budget for the program's intermediate results, in MiB. It changes densities
            by rounding errors only, but these can change the trajectory of a particle.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        | Sequential Monte Carlo Samplers (Del Moral, Doucet & Jasra, 2006)
        | https://doi.org/10.1111/j.1467-9868.2006.00553.x
        | On Parallel Implementation of Sequential Monte Carlo Methods: the Island Particle Model
          (Vergé et al., 2015)
        | https://arxiv.org/abs/1306.3911

    Example:
        >>> import pyro
        >>> from pyro_vae import log_marginal_likelihood
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, 1.0), obs=y)
        >>> method = TemperedSMC(num_islands=4, num_particles=16)
        >>> log_marginal_likelihood(model, model, torch.zeros(2), method).num_samples
        tensor([64, 64])
    """

    num_islands: Annotated[int, Interval(2)] = 8
    num_particles: Annotated[int, Interval(2)] = 64
    leapfrog_steps: int = 3
    start: Start = field(default_factory=StartFromPrior)
    target_acceptance: float = 0.65
    memory: float = 512.0

    def __call__(
        self, inference: Inference, *, seed: int = 0, progress: bool | None = None
    ) -> LogMarginal:
        """Estimates log p(y) of every datum."""
        return self.populations(inference, seed=seed, progress=progress).result

    def populations(self, inference: Inference, *, seed: int, progress: bool | None) -> Population:
        """Runs all islands; returns estimates and final particles of every datum."""
        program, posterior, batch = inference
        keys = {part: row_keys(seed, f"tempering.{part}", *batch) for part in _PARTS}
        chains = self.num_islands * self.num_particles
        calls = _FEWEST * (self.leapfrog_steps + 1)
        chunks, density = chunks_of_chains(program, batch, chains, self.memory, calls, compile=None)
        parts: list[Population] = []
        for rows in progress_bar(chunks, show=progress, desc="tempering"):
            own = {part: key[rows] for part, key in keys.items()}
            some = take_rows(batch, rows)
            work = self._work(program, density, posterior.rows(rows), some, own, rows.start)
            with pyro.validation_enabled(is_validate=False):  # trajectories may overflow
                parts.append(self._annealed(work))
        return join(parts)

    def _work(
        self,
        program: Program,
        density: Density,
        posterior: Posterior,
        batch: Batch,
        keys: dict[str, Tensor],
        first: int,
    ) -> "_Work":
        """Prepares a chunk of data: draws the starting points, and whitens them."""
        origin = self.start.origin(program, posterior, batch)
        sample, _ = draw_rows(origin, 0, keys["scale"], _SCALE_DRAWS)
        whitening = Whitening.of(sample.nan_to_num())
        path = _Path(self.start, density, origin, batch, whitening)
        trial, _ = draw_rows(origin, 0, keys["pilot.start"], self.num_particles)
        chains = self.num_islands * self.num_particles
        z, log_start = draw_rows(origin, 0, keys["start"], chains)
        places = range(first, first + len(batch[0]))
        weigh(program, z, log_start, batch, self.num_particles, places=places)  # refuses nan, inf
        return _Work(path, whitening.white(trial), whitening.white(z), keys)

    def _annealed(self, work: "_Work") -> Population:
        """Anneals every datum's particles; a pilot run determines the datum's number of steps."""
        steps, target = self.leapfrog_steps, self.target_acceptance
        grid, log_step, spread = pilot(work.path, work.trial, work.keys["pilot"], steps, target)
        counts = _stretches(grid, spread)
        groups = [(int(c), (counts == c).nonzero()[:, 0]) for c in counts.unique()]
        parts = []
        for count, rows in groups:
            places = Adaptive().places(count, grid[:, rows], spread[:, rows])
            ladder = Ladder(places, grid[:, rows].T.contiguous(), log_step[:, rows])
            parts.append(self._run(work.rows(rows), ladder))
        return at_rows(join(parts), torch.cat([rows for _, rows in groups]).argsort())

    def _run(self, work: "_Work", ladder: Ladder) -> Population:
        """Moves and resamples the particles through all temperatures of `ladder`."""
        path, count = work.path, len(ladder.places) - 1
        islands, particles = self.num_islands, self.num_particles
        point = at(path, work.start)
        log_evidence = torch.zeros(islands, len(work), dtype=torch.float64, device=point.z.device)
        levels = uniforms(work.keys["resampling"], count, islands, log_evidence)
        noise = noise_of(work.keys["moves"], count + _SETTLING, point.z)
        accepted, still = torch.zeros_like(log_evidence[0]), torch.ones_like(point.log_ratio)
        for index in range(count + _SETTLING):
            place = ladder.places[min(index + 1, count)]
            if index < count:
                stretch = place - ladder.places[index]
                gains = stretch * point.log_ratio.double()
                gains = gains.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
                gains = torch.where(stretch > 0, gains, 0.0).unflatten(0, (islands, particles))
                log_evidence += stats.log_mean_exp(gains.transpose(0, 1))
                point = _resampled_islands(point, stretch, levels[index].T, islands)
            step, beta = ladder.step(place), place.to(point.z.dtype)
            point, acceptance = transition(
                path, point, beta, step, next(noise), self.leapfrog_steps
            )
            accepted += acceptance.mean(dim=0) / (count + _SETTLING)
            if index >= count:
                still = still * (1 - acceptance)
        z = path.whitening.colored(point.z).unflatten(0, (islands, particles))
        return Population(
            self._result(log_evidence, accepted, still.mean(dim=0).double(), z), z, log_evidence
        )

    def _result(
        self, log_evidence: Tensor, acceptance: Tensor, still: Tensor, z: Tensor
    ) -> LogMarginal:
        """Combines the islands' estimates, and flags data whose particles hardly move.

        Arguments:
            log_evidence: Estimate of log p(y) by every island, `(islands, batch)`, in nats.
            acceptance: Acceptance rates, `(batch,)`.
            still: Expected share of final particles that do not move, `(batch,)`.
            z: Final particles, `(islands, particles, batch, latents)`.
        """
        result = result_of_islands(
            log_evidence, self.num_particles, "tempered sequential Monte Carlo"
        )
        from scipy.stats import f as f_distribution  # seconds to import

        off = ((acceptance - self.target_acceptance).abs() > _FAR) | (still > _MOST_STILL)
        # Particles that hardly move remain copies of a few ancestors. Then no island covers the
        # whole posterior, and the estimates of all islands can be equally low.
        freedom = (len(z) - 1, len(z) * (self.num_particles - 1))
        limit = _DEPENDENT * float(f_distribution.isf(_FALSE_ALARM, *freedom))
        apart = (_dependence(z) > limit).any(dim=-1)
        doubts = {Doubt.ACCEPTANCE: off, Doubt.CHAINS_APART: apart}
        error = torch.hypot(result.error, still)
        return replace(result, error=error, doubts={**result.doubts, **doubts})


def result_of_islands(
    log_evidence: Float64[Tensor, "islands batch"], num_particles: int, method: str
) -> LogMarginal:
    """Combines the islands' estimates of log p(y) for every datum.

    A datum is reliable if the effective number of islands is at least half of the number of
    islands.
    """
    value, error = log_mean_weight(log_evidence)
    islands = stats.effective_sample_size(log_evidence)
    few = stats.too_few_effective(islands, _LEAST_ISLANDS * len(log_evidence))
    doubts = {Doubt.FEW_EFFECTIVE_CHAINS: few | value.isinf() | value.isnan()}
    samples = torch.full_like(value, len(log_evidence) * num_particles, dtype=torch.int64)
    nothing = torch.full_like(value, torch.nan)
    return LogMarginal(
        value, error, num_particles * islands, nothing, samples, Bound.LOWER, method, doubts
    )


def _dependence(
    z: Float[Tensor, "islands particles batch latents"],
) -> Float64[Tensor, "batch latents"]:
    """Computes how much more the islands' means vary than means of independent particles would.

    Returns the larger of two ratios of variances: one for the particles' ranks, and one for the
    ranks of their distances from the median. With independent particles, each ratio is about 1 and
    has an F distribution with islands - 1 and islands * (particles - 1) degrees of freedom.
    """
    folded = (z - z.flatten(0, 1).median(dim=0).values).abs()
    return torch.maximum(_variance_ratio(z), _variance_ratio(folded))


def _variance_ratio(values: Float[Tensor, "islands particles *batch"]) -> Tensor:
    """Divides the variance of the islands' mean scores by the variance for independent particles.

    The score of a particle is the standard normal quantile that corresponds to the rank of the
    particle's value.
    """
    last = values.flatten(0, 1).movedim(0, -1).contiguous()
    ordered = last.sort(dim=-1).values
    below = torch.searchsorted(ordered, last) + torch.searchsorted(ordered, last, right=True)
    shares = below.double().movedim(-1, 0) / (2 * last.shape[-1])  # equal values share a rank
    scores = torch.special.ndtri(shares).unflatten(0, values.shape[:2])
    within = scores.var(dim=1).mean(dim=0)
    return values.shape[1] * scores.mean(dim=1).var(dim=0) / within


@dataclass(frozen=True)
class _Path:
    """The path from the start to the joint density, as a function of whitened latents."""

    start: Start
    density: Density
    origin: Posterior
    batch: Batch
    whitening: Whitening

    @cached_property
    def _path(self) -> Path:
        """The path as a function of latents that are not whitened."""
        return self.start.path(self.density, self.origin, self.batch)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        log_base, log_ratio = self._path(self.whitening.colored(u))
        return log_base.to(u.dtype), log_ratio.to(u.dtype)

    def rows(self, rows: Tensor) -> "_Path":
        """Returns the path for a subset of the data."""
        return replace(
            self,
            origin=self.origin.rows(rows),
            batch=take_rows(self.batch, rows),
            whitening=self.whitening.rows(rows),
        )


class _Work(NamedTuple):
    """A chunk of data with the inputs of its chains.

    Arguments:
        path: The path from the starting distribution to the posterior.
        trial: Starting points of the pilot run, in whitened latents.
        start: Starting points of the main run, in whitened latents.
        keys: Random keys of the data for each purpose, by the name of the purpose.
    """

    path: _Path
    trial: Tensor
    start: Tensor
    keys: dict[str, Tensor]

    def __len__(self) -> int:
        return self.start.shape[1]

    def rows(self, rows: Tensor) -> "_Work":
        """Returns the inputs for a subset of the data."""
        keys = {part: key[rows.to(key.device)] for part, key in self.keys.items()}
        return _Work(self.path.rows(rows), self.trial[:, rows], self.start[:, rows], keys)


def _stretches(
    grid: Float64[Tensor, "pilot batch"], spread: Float64[Tensor, "pilot batch"]
) -> Int64[Tensor, " batch"]:
    """Returns the number of steps from the start to the posterior, for each datum, `(batch,)`.

    The numbers are powers of two, so that many data have the same number and can be run together.
    """
    lengths = ((spread[1:] + spread[:-1]) / 2 * grid.diff(dim=0)).sum(dim=0)
    doublings = (lengths / _PACE).clamp(min=1).log2().ceil()
    return (2**doublings).clamp(_FEWEST, _MOST).long()


def _resampled_islands(point: Point, stretch: Tensor, levels: Tensor, islands: int) -> Point:
    """Resamples the particles within each island."""
    apart = Point(
        *(part.unflatten(0, (islands, -1)).transpose(0, 1).flatten(1, 2) for part in point)
    )
    chosen = resampled(apart, stretch.repeat(islands), levels.reshape(-1))
    return Point(
        *(part.unflatten(1, (islands, -1)).transpose(0, 1).flatten(0, 1) for part in chosen)
    )
