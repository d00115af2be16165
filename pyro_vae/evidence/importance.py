r"""Importance sampling with the guide, or a proposal made from it.

How many draws a datum needs for a given error is not known beforehand, and drawing until the error
looks small enough would bias the estimate: the error is estimated from the same weights as the
value, and is small while the large weights are still missing. So the number is determined in a
separate pilot run, assuming that the error falls as :math:`K^{-1/2}`; the estimate is then made
from fresh draws (Stein's two-stage procedure).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .. import stats
from .._types import Batch
from ..compiling import DrawDensities
from ..guides import Posterior
from ..programs import Program
from ..progress import progress_bar
from ..randomness import row_keys, seeded, stream
from ..results import Doubt, join
from .proposals import FromGuide, Proposal
from .results import Block, Bound, LogMarginal, Weights
from .saturation import PriorDraws
from .unreached import Drawn, prior_pool, unreached
from .weights import Inference, draw_rows, is_keyed, rows_at_once, weigh, weigh_row

_KEPT = 65_536  # draws per datum; the latents of more would fill the memory
_MOST_MISSED = 0.75  # of an error; beyond, the few runs that look good have wrong intervals
_FEW = 2000  # draws whose latents are kept if a datum has more than _KEPT
_ROOM = 2**24  # bytes of draws and weights at a time, so that they stay in the cache
_ROOM_SHARE = 1 / 8  # largest share of the memory budget for these
_DRAW_BYTES, _DRAW_NUMBERS = 100, 3  # of a draw: bytes for weights, numbers for each latent


class Average(NamedTuple):
    """How weights are averaged.

    Arguments:
        method: Name of the estimator in results.
        log_mean: From log weights `(particles, batch)` to the log of their mean `(batch,)`.
        bound: The side of log p(y) on which the estimate lies on average.
    """

    method: str
    log_mean: Callable[[Tensor], Tensor]
    bound: Bound


PLAIN = Average("importance sampling", stats.log_mean_exp, Bound.LOWER)
"""The log of the mean weight: unbiased for p, a lower bound on log p on average."""

PARETO_SMOOTHED = Average(
    "Pareto-smoothed importance sampling", stats.smoothed_log_mean, Bound.TWO_SIDED
)
"""Log of the mean weight, the largest ones smoothed; see :func:`pyro_vae.stats.smoothed`."""

JACKKNIFED = Average("jackknifed importance sampling", stats.jackknife, Bound.TWO_SIDED)
"""Log of the mean weight, less its first-order bias; see :func:`pyro_vae.stats.jackknife`."""


@dataclass(frozen=True)
class ErrorTarget:
    """An error to be met for each datum, by as many draws as it takes.

    Arguments:
        error: The standard error asked for, in nats.
        max_samples: Limit on the draws per datum, not counting the pilot's.

    Raises:
        ValueError: If the error or the budget is not positive.
    """

    error: float
    max_samples: int = 100_000

    def __post_init__(self) -> None:
        if not self.error > 0 or self.max_samples < 2:
            raise ValueError(
                "a target error is a positive number of nats, with a budget of at least 2 "
                f"draws; got error={self.error} and max_samples={self.max_samples}"
            )


@dataclass(frozen=True)
class ImportanceSampling:
    r"""Importance-weighted estimate of the marginal likelihood.

    .. math:: \log \hat p(y_n) = \log \frac{1}{K} \sum_{k=1}^{K}
        \frac{p(y_n, z_k)}{q(z_k \mid y_n)}, \quad z_k \sim q(z \mid y_n)

    Unbiased for p, so low on average for log p; useless if the guide misses part of the posterior,
    which the largest weights show if enough draws are taken. The error is
    :func:`pyro_vae.stats.tail_error`, which accounts for the part of the tail that was not drawn; a
    datum is reliable if the interval of 1.96 errors to either side is expected to cover the truth.
    With fewer than 30 draws, too few to fit a tail, the error is the delta method's, and the datum
    is not reliable.

    A run whose draws missed a tail looks harmless. So whatever the weights say, the posterior is
    also evaluated at points that the draws do not choose, as :mod:`pyro_vae.evidence.unreached`
    explains: 48 points for one latent, else 32 draws of the prior and a sixteenth as many points as
    draws (96 to 480). They show how much the draws are expected to miss. If that is more than a
    sixth of the error, it enlarges the error; above 0.75 errors the datum is not reliable. Guides
    without a density at given points (planar flows, auxiliary sites) are judged by their weights
    alone: of skewed posteriors, 83% of the intervals then cover, in place of 91 to 94%.

    Where a datum is not reliable, the remedy is a better proposal (:class:`pyro_vae.Fitted`)
    rather than more draws: halving the error of weights with a Pareto k of 0.7 takes ten times as
    many.

    Arguments:
        num_samples: Draws per datum, :math:`K`; exactly this many are used, unless `until` is
            given.
        memory: Mebibytes that the program's intermediate results may take. The weights take about
            50 bytes per draw in addition.
        proposal: The distribution to draw from: :class:`FromGuide`, :class:`Widened`,
            :class:`Defensive`, or :class:`Fitted`.
        average: How to average weights: :data:`PLAIN`, :data:`PARETO_SMOOTHED`,
            :data:`JACKKNIFED`.
        until: A target error. A pilot run of `num_samples` draws then determines for each datum how
            often that number is doubled; the estimate itself uses only fresh draws.
        compile: Whether to compile the program's densities; by default if that saves time.
            Compiling takes about ten seconds, once: the model keeps the result. It changes results
            by rounding only. Programs that cannot be compiled are evaluated eagerly; so, by
            default, are all programs if the memory budget is too small for the compiler (300 MiB).

    Raises:
        ValueError: If there are fewer than two draws, or fewer than 30 for a pilot.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646
        | A Two-Sample Test for a Linear Hypothesis Whose Power Is Independent of the Variance
          (Stein, 1945)
        | https://doi.org/10.1214/aoms/1177731088
    """

    num_samples: int = 5000
    memory: float = 512.0
    proposal: Proposal = field(default_factory=FromGuide)
    average: Average = PLAIN
    until: ErrorTarget | None = None
    compile: bool | None = None

    def __post_init__(self) -> None:
        """Refuses too few draws."""
        fewest = 2 if self.until is None else stats.MIN_TAIL_PARTICLES
        if self.num_samples < fewest:
            purpose = "a standard error" if self.until is None else "a pilot"
            raise ValueError(f"{purpose} needs at least {fewest} draws, got {self.num_samples}")

    @property
    def is_plain(self) -> bool:
        """Whether the guide is the proposal, so that the mean log weight is its ELBO."""
        return self.until is None and self.average == PLAIN and self.proposal == FromGuide()

    def __call__(
        self, inference: Inference, *, seed: int = 0, progress: bool | None = None
    ) -> LogMarginal:
        """Estimates per datum."""
        proposed = inference._replace(posterior=self.proposal(*inference))
        sampling = self._sampling(proposed, seed=seed, progress=progress)
        if self.until is None:
            figures = list(sampling.figures(self.num_samples, self.average))
            return _judged(join(figures), self.average)
        own = row_keys(stream(seed, "importance.pilot"), "importance", *inference.batch)
        sizes = self._sizes(replace(sampling, keys=own), self.until)
        return _judged(self._sized(sampling, sizes), self.average, self.until)

    def log_means(
        self, inference: Inference, *, seed: int, progress: bool | None
    ) -> Float[Tensor, " batch"]:
        """The estimates alone; errors and verdicts would double the time."""
        proposed = inference._replace(posterior=self.proposal(*inference))
        sampling = self._sampling(proposed, seed=seed, progress=progress)
        found = [self.average.log_mean(w.log_weights) for w in sampling.weights(self.num_samples)]
        return torch.cat(found)

    def blocks(self, inference: Inference, *, seed: int, progress: bool | None) -> Iterator[Block]:
        """Draws of `inference.posterior` and their weights, some data at a time, within the budget.

        Each block holds all particles of its data. :attr:`proposal` is not used.
        """
        sampling = self._sampling(inference, seed=seed, progress=progress)
        return sampling.blocks(self.num_samples)

    def weights(
        self, inference: Inference, *, seed: int, progress: bool | None
    ) -> Iterator[Weights]:
        """The weights of :meth:`blocks`; with very many draws nothing else is kept."""
        sampling = self._sampling(inference, seed=seed, progress=progress)
        return sampling.weights(self.num_samples)

    def evaluations(
        self, inference: Inference, *, seed: int, progress: bool | None
    ) -> Iterator[tuple[Weights, LogMarginal]]:
        """The weights and the estimates from them, for some data at a time."""
        sampling = self._sampling(inference, seed=seed, progress=progress)
        for weights, figures in sampling.judged(self.num_samples, self.average):
            yield weights, _judged(figures, self.average)

    def judged_blocks(
        self, inference: Inference, *, seed: int, progress: bool | None
    ) -> Iterator[tuple[Block, LogMarginal]]:
        """The blocks of :meth:`blocks`, each with the estimates from its weights."""
        sampling = self._sampling(inference, seed=seed, progress=progress)
        for block, figures in sampling.judged_blocks(self.num_samples, self.average):
            yield block, _judged(figures, self.average)

    def _sampling(self, inference: Inference, *, seed: int, progress: bool | None) -> "_Sampling":
        program, _, batch = inference
        return _Sampling(
            *inference,
            keys=row_keys(seed, "importance", *batch),
            places=range(len(batch[0])),
            limit=rows_at_once(program, batch, self.memory),
            room=int(min(_ROOM, _ROOM_SHARE * self.memory * 2**20)),
            densities=DrawDensities(program, compile=self.compile, memory=self.memory),
            progress=progress,
        )  # fmt: skip

    def _sizes(self, pilot: "_Sampling", until: ErrorTarget) -> Int64[Tensor, " batch"]:
        """Draws that each datum needs, estimated from a pilot run that is used for nothing else."""
        weights = pilot.weights(self.num_samples)
        error = torch.cat([_figures_of(part, self.average).error for part in weights])
        # An infinite or unknown error asks for the whole budget.
        most = math.log2(until.max_samples / self.num_samples) + 1
        doublings = (2 * (error / until.error).log2()).ceil().nan_to_num(most, most, 0.0)
        sizes = self.num_samples * 2 ** doublings.clamp(0, max(0, math.ceil(most)))
        return sizes.long().clamp(max=until.max_samples).cpu()

    def _sized(self, sampling: "_Sampling", sizes: Int64[Tensor, " batch"]) -> "_Figures":
        """Figures of every datum with its own number of draws."""
        groups = {size: (sizes == size).nonzero()[:, 0] for size in sizes.unique().tolist()}
        figures = [
            part
            for size, rows in groups.items()
            for part in sampling.of_rows(rows).figures(size, self.average)
        ]
        order = torch.cat(list(groups.values())).argsort()
        joined: _Figures = join(figures)
        return _Figures(*(part[order.to(part.device)] for part in joined))


@dataclass(frozen=True)
class _Sampling:
    """Data whose draws are to be weighed.

    Arguments:
        program: The model.
        proposal: The proposal of these data.
        batch: The data.
        keys: Keys of the draws of each datum.
        places: Positions of the data in the data set, for messages.
        limit: Rows of the program's batch that fit at once.
        room: Limit in bytes on the draws and weights that are held at a time.
        densities: The program's log densities, compiled where that pays.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.
    """

    program: Program
    proposal: Posterior
    batch: Batch
    keys: Int64[Tensor, " batch"]
    places: Sequence[int]
    limit: int
    room: int
    densities: DrawDensities
    progress: bool | None

    def of_rows(self, rows: Int64[Tensor, " some"]) -> "_Sampling":
        """The sampling of a subset of the data."""
        own = rows.to(self.batch[0].device)
        return replace(
            self,
            proposal=self.proposal.rows(own),
            batch=tuple(tensor[own] for tensor in self.batch),
            keys=self.keys[rows],
            places=rows.tolist(),
        )

    def blocks(self, num_samples: int) -> Iterator[Block]:
        """Draws and weights of as many data at a time as fit with all their draws."""
        data = min(max(1, self.limit // num_samples), len(self.keys))  # in one run of the program
        draw = _DRAW_BYTES + _DRAW_NUMBERS * self.program.latent_dim * self.batch[0].element_size()
        size = data * max(1, self.room // (draw * num_samples * data))
        for first in self._bar(range(0, len(self.keys), size)):
            rows = slice(first, first + size)
            z, log_guide = draw_rows(self.proposal, first, self.keys[rows], num_samples)
            weights = weigh(
                self.program, z, log_guide, tuple(tensor[rows] for tensor in self.batch),
                max(1, self.limit // data), data=data, places=self.places[rows],
                densities=self.densities, rows_left=(len(self.keys) - first) * num_samples,
            )  # fmt: skip
            yield Block(rows, z, weights)

    def weights(self, num_samples: int) -> Iterator[Weights]:
        """The weights of the blocks; with very many draws nothing else is kept."""
        if num_samples <= _KEPT:
            for block in self.blocks(num_samples):
                yield block.weights
            return
        for row in self._bar(range(len(self.keys))):
            yield weigh_row(
                self.program, self.proposal, self.batch, row, self.keys[row : row + 1],
                num_samples, self.limit, self.places[row],
            )  # fmt: skip

    def figures(self, num_samples: int, average: Average) -> Iterator["_Figures"]:
        """The figures of the weights, with the share that the draws are expected to miss."""
        return (figures for _, figures in self.judged(num_samples, average))

    def judged_blocks(
        self, num_samples: int, average: Average
    ) -> Iterator[tuple[Block, "_Figures"]]:
        """The blocks, and the figures of their weights."""
        for block in self.blocks(num_samples):
            yield block, self._with_missed(_figures_of(block.weights, average), block)

    def judged(self, num_samples: int, average: Average) -> Iterator[tuple[Weights, "_Figures"]]:
        """The weights of some data at a time, and their figures."""
        if num_samples <= _KEPT:
            for block, figures in self.judged_blocks(num_samples, average):
                yield block.weights, figures
            return
        for row, weights in enumerate(self.weights(num_samples)):
            rows = slice(row, row + 1)
            (few,) = self.of_rows(torch.arange(row, row + 1, device="cpu")).blocks(_FEW)
            figures = _figures_of(weights, average)
            yield weights, self._with_missed(figures, few._replace(rows=rows))

    def _with_missed(self, figures: "_Figures", block: Block) -> "_Figures":
        """Adds the share that the draws are expected to miss, for data with a reliable error."""
        some = figures.covers.nonzero()[:, 0]
        if len(some) == 0:
            return figures
        places = torch.arange(len(self.keys), device=some.device)[block.rows][some]
        z, log_mean = block.z[:, some], figures.value[some]
        drawn = Drawn(z, log_mean, self.keys[places.cpu()], int(figures.num_samples[0]))
        own = self._missed(places, drawn)
        return figures._replace(missed=figures.missed.index_copy(0, some, own))

    def _missed(self, places: Int64[Tensor, " some"], drawn: Drawn) -> Tensor:
        inference = Inference(self.program, self.proposal, self.batch)
        missed = partial(unreached, pool=self._pool, limit=self.limit)
        if is_keyed(self.proposal):
            return missed(inference.rows(places), drawn)
        # A proposal's center may be a mean of draws, which must come from the datum's own stream.
        found = []
        with torch.random.fork_rng():
            for row, place in enumerate(places.split(1)):
                seeded(int(drawn.keys[row]))
                found.append(missed(inference.rows(place), drawn.row(row)))
        return torch.cat(found)

    @cached_property
    def _pool(self) -> PriorDraws | None:
        return prior_pool(self.program, self.batch)

    def _bar(self, steps: range) -> Iterable[int]:
        bar: Iterable[int] = progress_bar(steps, show=self.progress, desc="importance sampling")
        return bar


class _Figures(NamedTuple):
    """Statistics of weights, each `(batch,)`, before the verdict."""

    value: Tensor
    error: Tensor
    ess: Tensor
    pareto_k: Tensor
    num_samples: Tensor
    covers: Tensor
    missed: Tensor


def log_marginal_of(weights: Weights, average: Average = PLAIN) -> LogMarginal:
    """The estimate of log p(y) from weights alone, with its error and verdict."""
    return _judged(_figures_of(weights, average), average)


def _figures_of(weights: Weights, average: Average) -> _Figures:
    # Each datum's weights lie side by side in memory, so that they add up as if it were alone.
    log_weights = weights.log_weights.T.contiguous().T
    num_samples = len(log_weights)
    ess = stats.effective_sample_size(log_weights)
    samples = torch.full_like(ess, num_samples, dtype=torch.int64)
    if num_samples < stats.MIN_TAIL_PARTICLES:
        value, error = stats.log_marginal(log_weights)
        nothing = torch.full_like(value, torch.nan)
        covers = torch.zeros_like(ess, dtype=torch.bool)
        return _Figures(value, error, ess, nothing, samples, covers, torch.zeros_like(value))
    tail = stats.tail_error(log_weights)
    value, pareto_k = average.log_mean(log_weights), stats.pareto_k(log_weights)
    missed = torch.zeros_like(value)
    return _Figures(value, tail.error, ess, pareto_k, samples, tail.covers, missed)


def _judged(figures: _Figures, average: Average, until: ErrorTarget | None = None) -> LogMarginal:
    value, error, ess, pareto_k, samples, covers, missed = figures
    has_tail = int(samples.max()) >= stats.MIN_TAIL_PARTICLES
    doubts = {Doubt.HEAVY_TAIL if has_tail else Doubt.NO_TAIL: ~covers}
    # The fit to the tail covers a missed share of a sixth of the error; more enlarges the error.
    doubts[Doubt.UNREACHED] = missed > _MOST_MISSED * error + stats.rounding(value)
    error = torch.hypot(error, 2 * (missed - error / 6).clamp(min=0))
    if until is not None:
        doubts[Doubt.ERROR_TARGET] = (samples >= until.max_samples) & (error > until.error)
    return LogMarginal(value, error, ess, pareto_k, samples, average.bound, average.method, doubts)
