r"""Tempered sequential Monte Carlo: populations that anneal to the posterior, and are resampled.

As in :mod:`pyro_vae.evidence.annealing`, particles move along :math:`f_t(z) = f_0(z)\,
r(z)^{\beta_t}` to :math:`f_T(z) = p(y, z)`; but after each stretch copies of particles with large
weights replace those with small ones. With :math:`M` particles of one island

.. math:: \log \hat p(y) = \sum_{t=1}^{T} \log \frac{1}{M} \sum_{m=1}^{M}
    r(z_{t-1}^m)^{\beta_t - \beta_{t-1}}, \qquad \mathbb{E}\, \hat p(y) = p(y),

and the final particles are draws from the posterior. Given the step sizes and temperatures, which
are fixed beforehand, the islands are independent, so the spread of their estimates gives the error.

Where a posterior is much narrower than elsewhere, as in the neck of a funnel, every move is
rejected. The mass of that part is then carried only by particles that were drawn in it: a few, or
none in any island. With :math:`a_s^m` the acceptance probabilities of the :math:`S` moves at the
end,

.. math:: f = \frac{1}{M} \sum_m \prod_{s=1}^{S} (1 - a_s^m)

is the share of the particles that do not move at all. Their mass has an error as large as itself,
so the error of :math:`\log \hat p` is :math:`\sqrt{\mathrm{se}^2 + f^2}`.

Latents are whitened by the mean and covariance of the start, :math:`z = m + S u`, so that one step
size suits all of them.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from .. import stats
from .._types import Batch
from ..compiling import CompiledDensity
from ..guides import Posterior
from ..programs import Density, Program
from ..progress import progress_bar
from ..randomness import row_keys, uniforms
from ..results import Doubt, join
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
from .hamiltonian import Path, Point, at, transition
from .results import Bound, LogMarginal
from .weights import Inference, draw_rows, rows_at_once, weigh

_PARTS = ("scale", "pilot.start", "pilot", "start", "resampling", "moves")  # streams
_SCALE_DRAWS = 256  # a preconditioner only: it need not be exact
_RIDGE = 1e-6  # of a latent's variance, since draws may all lie on a plane
_PACE = 0.35  # nats by which log weights spread in one stretch: an eighth of the particles is lost
_FEWEST, _MOST = 16, 128  # stretches; the error shows where these are too few
_SETTLING = 8  # transitions at the end, so that copies come apart
_FAR = 0.25  # off the target acceptance; beyond, the pilot's steps do not suit the run
_MOST_STILL = 0.2  # share of particles that do not move at the end, which is part of the error
_DEPENDENT = 2.0  # an island's mean may vary as if half of its particles were independent
_FALSE_ALARM = 1e-3  # per latent, if the mean does vary so
_LEAST_ISLANDS = 0.5  # share of effective islands; below, one or two carry the estimate


@dataclass(frozen=True)
class Population:
    """The final particles of some data, and the estimates from them.

    Arguments:
        result: Estimates of log p(y).
        z: `(islands, particles, batch, latents)`, of equal weight within an island.
        log_evidence: Log p(y) of every island, `(islands, batch)`, in nats.
    """

    result: LogMarginal
    z: Float[Tensor, "islands particles batch latents"] = field(metadata={"axis": 2})
    log_evidence: Float64[Tensor, "islands batch"] = field(metadata={"axis": 1})


@dataclass(frozen=True)
class TemperedSMC:
    r"""Marginal likelihood from populations of particles that are tempered, moved and resampled.

    Unbiased for p. Every datum has its own steps and temperatures from a pilot run, which are then
    frozen. The error comes from the spread of the islands' estimates, and from the share of final
    particles for which no move was accepted. A datum is reliable if half of the islands are
    effective, the acceptance rate is near its target, four in five particles move, and the final
    particles of all islands have the same distribution. They do not if moves too short for the
    posterior, as in the neck of a funnel, leave copies of a few ancestors. Modes that no particle
    is near stay undetected.

    Arguments:
        num_islands: Number of independent populations.
        num_particles: Particles per island.
        leapfrog_steps: Leapfrog steps per transition.
        start: :class:`StartFromPrior`, which covers every mode, or :class:`StartFromGuide`, a
            shorter path if the guide covers them.
        target_acceptance: Acceptance rate that the pilot run tunes the steps to, between 0 and 1.
        memory: Memory budget for the program's intermediate results, in MiB.

    Raises:
        ValueError: If a number is out of its range.

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

    num_islands: int = 8
    num_particles: int = 64
    leapfrog_steps: int = 3
    start: Start = field(default_factory=StartFromPrior)
    target_acceptance: float = 0.65
    memory: float = 512.0

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        if self.num_islands < 2 or self.num_particles < 2 or self.leapfrog_steps < 1:
            raise ValueError(
                "expected at least 2 islands of 2 particles and 1 leapfrog step, got "
                f"{self.num_islands}, {self.num_particles} and {self.leapfrog_steps}"
            )
        if not 0 < self.target_acceptance < 1 or not self.memory > 0:
            raise ValueError(
                "target_acceptance is between 0 and 1 and memory is a budget in MiB, got "
                f"{self.target_acceptance} and {self.memory}"
            )

    def __call__(
        self, inference: Inference, *, seed: int = 0, progress: bool | None = None
    ) -> LogMarginal:
        """Estimates per datum."""
        return self.populations(inference, seed=seed, progress=progress).result

    def populations(self, inference: Inference, *, seed: int, progress: bool | None) -> Population:
        """Estimates and particles per datum."""
        program, posterior, batch = inference
        keys = {part: row_keys(seed, f"tempering.{part}", *batch) for part in _PARTS}
        chains = self.num_islands * self.num_particles
        size = max(1, 4 * rows_at_once(program, batch, self.memory / 8) // chains)
        starts = range(0, len(batch[0]), size)
        calls = _FEWEST * (self.leapfrog_steps + 1) * len(starts)
        density = CompiledDensity(
            program, compile=None, rows=chains * min(size, len(batch[0])),
            memory=self.memory, calls_left=calls,
        )  # fmt: skip
        parts: list[Population] = []
        for first in progress_bar(starts, show=progress, desc="tempering"):
            rows = slice(first, first + size)
            own = {part: key[rows] for part, key in keys.items()}
            some = tuple(tensor[rows] for tensor in batch)
            work = self._work(program, density, posterior.rows(rows), some, own, first)
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
        """Prepares a chunk of data: whitens latents by draws of the start; starts the chains."""
        origin = self.start.origin(program, posterior, batch)
        sample, _ = draw_rows(origin, 0, keys["scale"], _SCALE_DRAWS)
        path = _Path(self.start, density, origin, batch, *_scale_of(sample))
        trial, _ = draw_rows(origin, 0, keys["pilot.start"], self.num_particles)
        chains = self.num_islands * self.num_particles
        z, log_start = draw_rows(origin, 0, keys["start"], chains)
        places = range(first, first + len(batch[0]))
        weigh(program, z, log_start, batch, self.num_particles, places=places)  # refuses nan, inf
        return _Work(path, path.white(trial), path.white(z), keys)

    def _annealed(self, work: "_Work") -> Population:
        """Anneals every datum in the number of stretches that its pilot run determined."""
        path, keys = work.path, work.keys["pilot"]
        stages = pilot(path, work.trial, keys, self.leapfrog_steps, self.target_acceptance)
        grid, log_step, spread = (torch.stack(part) for part in zip(*stages, strict=True))
        counts = _stretches(grid, spread)
        groups = [(int(c), (counts == c).nonzero()[:, 0]) for c in counts.unique()]
        parts = []
        for count, rows in groups:
            places = Adaptive().places(count, grid[:, rows], spread[:, rows])
            ladder = Ladder(places, grid[:, rows].T.contiguous(), log_step[:, rows])
            parts.append(self._run(work.rows(rows), ladder))
        order = torch.cat([rows for _, rows in groups]).argsort()
        joined = join(parts)
        return Population(
            joined.result[order], joined.z[:, :, order], joined.log_evidence[:, order]
        )

    def _run(self, work: "_Work", ladder: Ladder) -> Population:
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
                gains = _gains(stretch, point.log_ratio).unflatten(0, (islands, particles))
                log_evidence += stats.log_mean_exp(gains.transpose(0, 1))
                point = _resampled_islands(point, stretch, levels[index].T, islands)
            step, beta = ladder.step(place), place.to(point.z.dtype)
            point, acceptance = transition(
                path, point, beta, step, next(noise), self.leapfrog_steps
            )
            accepted += acceptance.mean(dim=0) / (count + _SETTLING)
            if index >= count:
                still = still * (1 - acceptance)
        z = path.colored(point.z).unflatten(0, (islands, particles))
        return Population(
            self._result(log_evidence, accepted, still.mean(dim=0).double(), z), z, log_evidence
        )

    def _result(
        self, log_evidence: Tensor, acceptance: Tensor, still: Tensor, z: Tensor
    ) -> LogMarginal:
        result = result_of_islands(
            log_evidence, self.num_particles, "tempered sequential Monte Carlo"
        )
        from scipy.stats import f as f_distribution  # seconds to import

        off = ((acceptance - self.target_acceptance).abs() > _FAR) | (still > _MOST_STILL)
        # Particles that hardly move stay copies of a few ancestors: no island has seen the whole
        # posterior, and all of their estimates may be low alike.
        freedom = (len(z) - 1, len(z) * (self.num_particles - 1))
        limit = _DEPENDENT * float(f_distribution.isf(_FALSE_ALARM, *freedom))
        apart = (_dependence(z) > limit).any(dim=-1)
        doubts = {Doubt.ACCEPTANCE: off, Doubt.CHAINS_APART: apart}
        error = torch.hypot(result.error, still)
        return replace(result, error=error, doubts={**result.doubts, **doubts})


def result_of_islands(
    log_evidence: Float64[Tensor, "islands batch"], num_particles: int, method: str
) -> LogMarginal:
    """Log p(y) from independent islands; reliable if at least half of them are effective."""
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
    """How much more the islands' means vary than they would with independent particles.

    The larger of two ratios of variances, of ranks and of folded ranks. With independent particles
    each is 1 on average, and has an F distribution with islands - 1 degrees of freedom.
    """
    folded = (z - z.flatten(0, 1).median(dim=0).values).abs()
    return torch.maximum(_variance_ratio(z), _variance_ratio(folded))


def _variance_ratio(values: Float[Tensor, "islands particles *batch"]) -> Tensor:
    last = values.flatten(0, 1).movedim(0, -1).contiguous()
    ordered = last.sort(dim=-1).values
    below = torch.searchsorted(ordered, last) + torch.searchsorted(ordered, last, right=True)
    shares = below.double().movedim(-1, 0) / (2 * last.shape[-1])  # equal values share a rank
    scores = torch.special.ndtri(shares).unflatten(0, values.shape[:2])
    within = scores.var(dim=1).mean(dim=0)
    return values.shape[1] * scores.mean(dim=1).var(dim=0) / within


@dataclass(frozen=True)
class _Path:
    """The path from the start to the joint density, in whitened latents."""

    start: Start
    density: Density
    origin: Posterior
    batch: Batch
    loc: Float[Tensor, "batch latents"]
    scale_tril: Float[Tensor, "batch latents latents"]

    @cached_property
    def _path(self) -> Path:
        return self.start.path(self.density, self.origin, self.batch)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        log_base, log_ratio = self._path(self.colored(u))
        return log_base.to(u.dtype), log_ratio.to(u.dtype)

    def rows(self, rows: Tensor) -> "_Path":
        """The path of a subset of the data."""
        return replace(
            self,
            origin=self.origin.rows(rows),
            batch=tuple(part[rows] for part in self.batch),
            loc=self.loc[rows],
            scale_tril=self.scale_tril[rows],
        )

    def colored(self, u: Tensor) -> Tensor:
        """Latents from whitened ones."""
        return self.loc + torch.einsum("kbl,bjl->kbj", u, self.scale_tril)

    def white(self, z: Tensor) -> Tensor:
        """Whitened latents."""
        away = (z - self.loc).permute(1, 2, 0)
        solved: Tensor = torch.linalg.solve_triangular(self.scale_tril, away, upper=False)
        return solved.permute(2, 0, 1)


class _Work(NamedTuple):
    """A chunk of data, with everything that a run over it needs."""

    path: _Path
    trial: Tensor
    start: Tensor
    keys: dict[str, Tensor]

    def __len__(self) -> int:
        return self.start.shape[1]

    def rows(self, rows: Tensor) -> "_Work":
        """The work on a subset of the data."""
        keys = {part: key[rows.to(key.device)] for part, key in self.keys.items()}
        return _Work(self.path.rows(rows), self.trial[:, rows], self.start[:, rows], keys)


def _scale_of(z: Float[Tensor, "draws batch latents"]) -> tuple[Tensor, Tensor]:
    """Mean and root of the covariance of draws, which affect only how well chains move."""
    draws = z.double().nan_to_num()
    loc = draws.mean(dim=0)
    away = draws - loc
    covariance = torch.einsum("kbi,kbj->bij", away, away) / len(z)
    spread = covariance.diagonal(dim1=-2, dim2=-1)
    floor = torch.finfo(z.dtype).tiny ** 0.5
    root = torch.linalg.cholesky(covariance + (_RIDGE * spread + floor).diag_embed())
    return loc.to(z.dtype), root.to(z.dtype)


def _stretches(
    grid: Float64[Tensor, "pilot batch"], spread: Float64[Tensor, "pilot batch"]
) -> Int64[Tensor, " batch"]:
    """Stretches of each datum's path: a power of two, so that many data share a number."""
    lengths = ((spread[1:] + spread[:-1]) / 2 * grid.diff(dim=0)).sum(dim=0)
    doublings = (lengths / _PACE).clamp(min=1).log2().ceil()
    return (2**doublings).clamp(_FEWEST, _MOST).long()


def _gains(stretch: Tensor, log_ratio: Tensor) -> Tensor:
    """Log weights of a stretch of the path; zero if its length is zero, whatever the ratio."""
    gains = (stretch * log_ratio.double()).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    return torch.where(stretch > 0, gains, 0.0)


def _resampled_islands(point: Point, stretch: Tensor, levels: Tensor, islands: int) -> Point:
    """Resamples within each island, as if islands were data."""
    apart = Point(
        *(part.unflatten(0, (islands, -1)).transpose(0, 1).flatten(1, 2) for part in point)
    )
    chosen = resampled(apart, stretch.repeat(islands), levels.reshape(-1))
    return Point(
        *(part.unflatten(1, (islands, -1)).transpose(0, 1).flatten(0, 1) for part in chosen)
    )
