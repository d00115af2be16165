r"""Importance sampling from the guide, or from a proposal derived from the guide.

The number of draws that a given error requires is not known beforehand. Drawing until the error
looks small enough would bias the estimate: the error is estimated from the same weights as the
value, so it looks small while large weights are still missing, and drawing would stop just then.
Instead, a separate pilot run determines the number of draws, :math:`K`, assuming that the error
falls as :math:`K^{-1/2}`. The estimate itself then uses fresh draws (Stein's two-stage procedure).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .. import stats
from .._annotations import Interval
from .._types import Batch
from ..compiling import DrawDensities
from ..guides import Posterior
from ..programs import Program
from ..programs.pieces import take_rows
from ..progress import progress_bar
from ..randomness import row_keys, seeded, stream, undisturbed
from ..results import Doubt, at_rows, join
from .proposals import FromGuide, Proposal, SearchesModes
from .results import Block, Bound, LogMarginal, Weights
from .saturation import PriorDraws
from .unreached import Drawn, prior_pool, unreached
from .weights import Inference, draw_rows, is_keyed, rows_at_once, weigh, weigh_row

_KEPT = 65_536  # draws per datum; with more, the latents would fill the memory and are not kept
_MOST_MISSED = 0.75  # missed share in units of the error; beyond, intervals have poor coverage
_FEW = 2000  # draws whose latents are kept if a datum has more than _KEPT draws
_ROOM = 2**24  # bytes of draws and weights at a time, so that they stay in the cache
_ROOM_SHARE = 1 / 8  # largest share of the memory budget for draws and weights
_DRAW_BYTES, _DRAW_NUMBERS = 100, 3  # memory per draw: bytes for weights, numbers per latent


class Average(NamedTuple):
    """A way to average importance weights.

    Arguments:
        method: Name of the estimator in results.
        log_mean: Function from log weights, `(particles, batch)`, to the log of their mean,
            `(batch,)`.
        bound: The side of log p(y) on which the estimate lies on average.
    """

    method: str
    log_mean: Callable[[Tensor], Tensor]
    bound: Bound


PLAIN = Average("importance sampling", stats.log_mean_exp, Bound.LOWER)
"""The log of the mean weight. The mean weight is unbiased for p, so its log is low on average."""

PARETO_SMOOTHED = Average(
    "Pareto-smoothed importance sampling", stats.smoothed_log_mean, Bound.TWO_SIDED
)
"""Log of the mean weight after smoothing the largest weights (:func:`pyro_vae.stats.smoothed`)."""

JACKKNIFED = Average("jackknifed importance sampling", stats.jackknife, Bound.TWO_SIDED)
"""Log of the mean weight minus its first-order bias; see :func:`pyro_vae.stats.jackknife`."""


@dataclass(frozen=True)
class ErrorTarget:
    """A target for the standard error of log p(y), from which the number of draws is chosen.

    Arguments:
        error: The target, in nats.
        max_samples: Largest number of draws per datum, not counting the draws of the pilot run; at
            least 2.

    Raises:
        ValueError: If the target is not positive, or if fewer than 2 draws are allowed.
    """

    error: float
    max_samples: Annotated[int, Interval(2)] = 100_000


@dataclass(frozen=True)
class ImportanceSampling:
    r"""Estimates log p(y) by importance sampling.

    .. math:: \log \hat p(y_n) = \log \frac{1}{K} \sum_{k=1}^{K}
        \frac{p(y_n, z_k)}{q(z_k \mid y_n)}, \quad z_k \sim q(z \mid y_n)

    The estimate is unbiased for p, so it is low on average for log p. If the guide misses part of
    the posterior, the estimate is useless; with enough draws, the largest weights show this. The
    error is :func:`pyro_vae.stats.tail_error`, which accounts for the part of the tail that was not
    drawn. A datum is reliable if the interval of 1.96 errors to either side is expected to cover
    the truth. Fewer than 30 draws are too few to fit a tail: the error is then the delta method's,
    and the datum is not reliable.

    If the draws happen to miss a tail, the weights alone do not show it. So the posterior is also
    evaluated at points other than the weighted draws (:mod:`pyro_vae.evidence.unreached`). For one
    latent there are two grids: 48 points around the draws, and 96 to 480 points around the prior's
    mean, one for every 16 weighted draws. For more latents there are 32 draws of the prior, and
    96 to 480 points around the draws. The points show the share of the posterior that the draws are
    expected to miss. A missed share s lowers log p(y) by about s nats. If s exceeds
    a sixth of the error, the error is raised; if s exceeds 0.75 times the error, the datum is
    unreliable. Guides that cannot evaluate their density at given points (planar flows, auxiliary
    sites) are judged by their weights alone: for skewed posteriors, 83% of their intervals cover
    the truth, compared with 91 to 94% for other guides.

    If a datum is not reliable, a better proposal (:class:`pyro_vae.Fitted`) helps more than
    additional draws: with a Pareto k of 0.7, halving the error takes ten times as many draws.

    Arguments:
        num_samples: Draws per datum, :math:`K`; exactly this number is used, unless `until` is
            given.
        memory: Memory budget for the program's intermediate results, in MiB. The weights take about
            50 bytes per draw in addition.
        proposal: The distribution to draw from: :class:`FromGuide`, :class:`Widened`,
            :class:`Defensive`, or :class:`Fitted`.
        average: How to average weights: :data:`PLAIN`, :data:`PARETO_SMOOTHED` or
            :data:`JACKKNIFED`.
        until: A target error. A pilot run of `num_samples` draws then determines, for each datum,
            how often `num_samples` is doubled; the estimate itself uses only fresh draws.
        compile: Whether to compile the program's densities. By default they are compiled if that
            saves time and `memory` is large enough for the compiler (300 MiB). Compiling takes
            about ten seconds, once, since the compiled code is kept with the model. Compiling
            changes results by rounding errors only. Programs that cannot be compiled are evaluated
            eagerly.

    Raises:
        ValueError: If there are fewer than two draws, or fewer than 30 with `until`.

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
        """Refuses fewer draws than a standard error or the pilot run requires."""
        fewest = 2 if self.until is None else stats.MIN_TAIL_PARTICLES
        if self.num_samples < fewest:
            purpose = "a standard error" if self.until is None else "the pilot run of `until`"
            raise ValueError(
                f"`num_samples` must be at least {fewest} for {purpose}; got {self.num_samples}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether the plain mean of weights from the guide is used, without a pilot run."""
        return self.until is None and self.average == PLAIN and self.proposal == FromGuide()

    def __call__(
        self, inference: Inference, *, seed: int = 0, progress: bool | None = None
    ) -> LogMarginal:
        """Estimates log p(y) of every datum."""
        sampling = self.sampling(inference, seed=seed, progress=progress)
        if self.until is None:
            found = sampling.statistics()
        else:
            pilot = row_keys(stream(seed, "importance.pilot"), "importance", *inference.batch)
            found = self._sized(sampling, self._sizes(replace(sampling, keys=pilot), self.until))
        return sampling.searched(_judged(found, self.average, self.until))

    def sampling(self, inference: Inference, *, seed: int, progress: bool | None) -> "Sampling":
        """Prepares `num_samples` draws per datum from the proposal; draws nothing yet.

        The target error `until` is not used.
        """
        program, _, batch = inference
        return Sampling(
            program, self.proposal, self.proposal(*inference), batch,
            num_samples=self.num_samples,
            average=self.average,
            keys=row_keys(seed, "importance", *batch),
            places=range(len(batch[0])),
            limit=rows_at_once(program, batch, self.memory),
            room=int(min(_ROOM, _ROOM_SHARE * self.memory * 2**20)),
            densities=DrawDensities(program, compile=self.compile, memory=self.memory),
            progress=progress,
        )  # fmt: skip

    def _sizes(self, pilot: "Sampling", until: ErrorTarget) -> Int64[Tensor, " batch"]:
        """Estimates the number of draws that each datum needs, from the weights of a pilot run."""
        error = torch.cat([_statistics_of(part, self.average).error for part in pilot.weights()])
        # If the pilot's error is infinite or nan, the datum gets the largest number of draws.
        most = math.log2(until.max_samples / self.num_samples) + 1
        doublings = (2 * (error / until.error).log2()).ceil().nan_to_num(most, most, 0.0)
        sizes = self.num_samples * 2 ** doublings.clamp(0, max(0, math.ceil(most)))
        return sizes.long().clamp(max=until.max_samples).cpu()

    def _sized(self, sampling: "Sampling", sizes: Int64[Tensor, " batch"]) -> "_Statistics":
        """Computes the statistics of each datum's weights; `sizes` are the numbers of draws."""
        groups = {size: (sizes == size).nonzero()[:, 0] for size in sizes.unique().tolist()}
        found = [
            replace(sampling.of_rows(rows), num_samples=size).statistics()
            for size, rows in groups.items()
        ]
        order = torch.cat(list(groups.values())).argsort()
        return at_rows(join(found), order)


@dataclass(frozen=True)
class Sampling:
    """The data and the settings for a computation of importance weights.

    Arguments:
        program: The model.
        rule: The rule that made the proposal.
        proposal: The proposal for these data.
        batch: The data.
        num_samples: Draws per datum.
        average: How to average weights.
        keys: Random key of each datum, from which its draws are made.
        places: Positions of the data in the data set, for messages.
        limit: Number of rows that the program can evaluate at once within the memory budget.
        room: Largest size of the draws and weights of one block, in bytes.
        densities: The program's log densities, compiled if that saves time.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.
    """

    program: Program
    rule: Proposal
    proposal: Posterior
    batch: Batch
    num_samples: int
    average: Average
    keys: Int64[Tensor, " batch"]
    places: Sequence[int]
    limit: int
    room: int
    densities: DrawDensities
    progress: bool | None

    def of_rows(self, rows: Int64[Tensor, " some"]) -> "Sampling":
        """Returns these settings with a subset of the data."""
        own = rows.to(self.batch[0].device)
        return replace(
            self,
            proposal=self.proposal.rows(own),
            batch=take_rows(self.batch, own),
            keys=self.keys[rows],
            places=[self.places[row] for row in rows.tolist()],
        )

    def blocks(self) -> Iterator[Block]:
        """Yields draws and weights in blocks; each block has all draws of some of the data."""
        num_samples = self.num_samples
        data = min(max(1, self.limit // num_samples), len(self.keys))  # per run of the program
        draw = _DRAW_BYTES + _DRAW_NUMBERS * self.program.latent_dim * self.batch[0].element_size()
        size = data * max(1, self.room // (draw * num_samples * data))
        for first in self._bar(range(0, len(self.keys), size)):
            rows = slice(first, first + size)
            z, log_guide = draw_rows(self.proposal, first, self.keys[rows], num_samples)
            weights = weigh(
                self.program, z, log_guide, take_rows(self.batch, rows),
                max(1, self.limit // data), data=data, places=self.places[rows],
                densities=self.densities, rows_left=(len(self.keys) - first) * num_samples,
            )  # fmt: skip
            yield Block(rows, z, weights)

    def weights(self) -> Iterator[Weights]:
        """Yields the weights block by block, without holding very large sets of draws in memory."""
        if self.num_samples <= _KEPT:
            for block in self.blocks():
                yield block.weights
            return
        for row in self._bar(range(len(self.keys))):
            yield weigh_row(
                self.program, self.proposal, self.batch, row, self.keys[row : row + 1],
                self.num_samples, self.limit, self.places[row],
            )  # fmt: skip

    def log_means(self) -> Float[Tensor, " batch"]:
        """Estimates log p(y) without errors and verdicts, which halves the time."""
        return torch.cat([self.average.log_mean(part.log_weights) for part in self.weights()])

    def judged_blocks(self) -> Iterator[tuple[Block, LogMarginal]]:
        """Yields the blocks, each with estimates of log p(y) for its data."""
        for block in self.blocks():
            found = self._with_missed(block.weights, block)
            yield block, self.searched(_judged(found, self.average), block.rows)

    def searched(self, result: LogMarginal, rows: slice = slice(None)) -> LogMarginal:
        """Adds doubts about the data for which a search finds modes away from the proposal.

        If a proposal is a Gaussian at one of several modes, its weights are nearly equal, and do
        not show the other modes. Only rules that make such proposals can search, and only reliable
        data are searched.

        Arguments:
            result: Estimates for the data in `rows`.
            rows: Some of the data; by default all.
        """
        if not isinstance(self.rule, SearchesModes):
            return result
        several, reliable = torch.zeros_like(result.reliable), result.reliable.nonzero()[:, 0]
        if len(reliable) > 0:
            places = torch.arange(len(self.keys), device=reliable.device)[rows][reliable]
            fits, part = self.proposal.rows(places), take_rows(self.batch, places)
            several[reliable] = self.rule.several_modes(self.program, fits, part)
        return replace(result, doubts={**result.doubts, Doubt.SEVERAL_MODES: several})

    def evaluations(self) -> Iterator[tuple[Weights, LogMarginal]]:
        """Yields weights, and estimates of log p(y) from these weights, for some data at a time."""
        for weights, found in self._weights_and_statistics():
            yield weights, _judged(found, self.average)

    def statistics(self) -> "_Statistics":
        """Computes the statistics of each datum's weights."""
        return join([found for _, found in self._weights_and_statistics()])

    def _weights_and_statistics(self) -> Iterator[tuple[Weights, "_Statistics"]]:
        """Yields weights and their statistics for some data at a time."""
        if self.num_samples <= _KEPT:
            for block in self.blocks():
                yield block.weights, self._with_missed(block.weights, block)
            return
        for row, weights in enumerate(self.weights()):
            own = self.of_rows(torch.arange(row, row + 1, device="cpu"))
            (few,) = replace(own, num_samples=_FEW, progress=False).blocks()
            yield weights, self._with_missed(weights, few._replace(rows=slice(row, row + 1)))

    def _with_missed(self, weights: Weights, block: Block) -> "_Statistics":
        """Computes statistics of `weights`, and the share of the posterior that the draws miss.

        The share is computed only for data whose interval is expected to cover the truth. It is
        computed from the draws in `block`; `weights` may be the weights of more draws than these.
        """
        found = _statistics_of(weights, self.average)
        some = found.covers.nonzero()[:, 0]
        if len(some) == 0:
            return found
        places = torch.arange(len(self.keys), device=some.device)[block.rows][some]
        draws = block.z[:, some], block.weights.log_weights[:, some]
        keys, number = self.keys[places.cpu()], int(found.num_samples[0])
        missed = self._missed(places, Drawn(*draws, found.value[some], keys, number))
        return found._replace(missed=found.missed.index_copy(0, some, missed))

    def _missed(self, places: Int64[Tensor, " some"], drawn: Drawn) -> Tensor:
        """Estimates the share of the posterior that the draws miss, for the data at `places`."""
        inference = Inference(self.program, self.proposal, self.batch)
        missed = partial(unreached, pool=self._pool, limit=self.limit)
        if is_keyed(self.proposal):
            return missed(inference.rows(places), drawn)
        # The proposal's center can be a mean of draws, which must use the datum's own stream.
        found = []
        with undisturbed():
            for row, place in enumerate(places.split(1)):
                seeded(int(drawn.keys[row]))
                found.append(missed(inference.rows(place), drawn.row(row)))
        return torch.cat(found)

    @cached_property
    def _pool(self) -> PriorDraws:
        """Draws from the prior; some of them are points at which missed mass is sought."""
        return prior_pool(self.program, self.batch)

    def _bar(self, steps: range) -> Iterable[int]:
        return progress_bar(steps, show=self.progress, desc="importance sampling")


class _Statistics(NamedTuple):
    """Statistics of weights, each `(batch,)`, from which the verdict is derived.

    Arguments:
        value: Log of the mean weight, in nats.
        error: Standard error of the value, in nats.
        ess: Effective sample size.
        pareto_k: Shape of the weights' upper tail.
        num_samples: Number of draws.
        covers: Whether the interval of 1.96 errors is expected to cover the truth.
        missed: Share of the posterior that the draws are expected to miss; 0 if not computed.
    """

    value: Tensor
    error: Tensor
    ess: Tensor
    pareto_k: Tensor
    num_samples: Tensor
    covers: Tensor
    missed: Tensor


def log_marginal_of(weights: Weights, average: Average = PLAIN) -> LogMarginal:
    """Estimates log p(y) from the weights alone, with an error and a verdict."""
    return _judged(_statistics_of(weights, average), average)


def _statistics_of(weights: Weights, average: Average) -> _Statistics:
    """Computes the statistics of each datum's weights, without the missed share."""
    # Each datum's weights are contiguous in memory, so that sums do not depend on other data.
    log_weights = weights.log_weights.T.contiguous().T
    num_samples = len(log_weights)
    ess = stats.effective_sample_size(log_weights)
    samples = torch.full_like(ess, num_samples, dtype=torch.int64)
    missed = torch.zeros_like(ess)
    if num_samples < stats.MIN_TAIL_PARTICLES:
        value, error = stats.log_marginal(log_weights)
        unknown, covers = torch.full_like(ess, torch.nan), torch.zeros_like(ess, dtype=torch.bool)
        return _Statistics(value, error, ess, unknown, samples, covers, missed)
    tail = stats.tail_error(log_weights)
    value, pareto_k = average.log_mean(log_weights), stats.pareto_k(log_weights)
    return _Statistics(value, tail.error, ess, pareto_k, samples, tail.covers, missed)


def _judged(
    statistics: _Statistics, average: Average, until: ErrorTarget | None = None
) -> LogMarginal:
    """Turns statistics of weights into estimates of log p(y), with errors and doubts."""
    value, error, ess, pareto_k, samples, covers, missed = statistics
    has_tail = int(samples.max()) >= stats.MIN_TAIL_PARTICLES
    zero = value == -torch.inf
    doubts = {
        Doubt.HEAVY_TAIL if has_tail else Doubt.NO_TAIL: ~(covers | zero),
        Doubt.ZERO_WEIGHTS: zero,
    }
    result = LogMarginal(
        value, error, ess, pareto_k, samples, average.bound, average.method, doubts
    )
    result = with_missed(result, missed)
    if until is not None:
        short = (samples >= until.max_samples) & (result.error > until.error)
        result = replace(result, doubts={**result.doubts, Doubt.ERROR_TARGET: short})
    return result


def with_missed(result: LogMarginal, missed: Tensor) -> LogMarginal:
    """Allows for mass that the draws are expected to miss: enlarges errors, and adds doubts.

    A missed share of up to a sixth of the error is already included in the error. A larger share
    enlarges the error. If the share exceeds 0.75 times the error, the datum is also in doubt.

    Arguments:
        result: Estimates by importance sampling.
        missed: Share of each datum's posterior that the draws are expected to miss, `(batch,)`.
    """
    value, error = result.value, result.error
    much = ~(missed <= _MOST_MISSED * error + stats.rounding(value))
    much = much | result.doubts.get(Doubt.UNREACHED, torch.zeros_like(much))
    wider = torch.hypot(error, 2 * (missed - error / 6).clamp(min=0))
    return replace(result, error=wider, doubts={**result.doubts, Doubt.UNREACHED: much})
