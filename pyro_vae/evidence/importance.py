"""Importance sampling with the guide as the proposal."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from .. import stats
from .._types import Batch
from ..data import row_seeds
from ..guides import Posterior
from ..programs import Program
from .results import Block, LogMarginal, Weights, join
from .weights import draw_rows, rows_at_once, weigh


@dataclass(frozen=True)
class ImportanceSampling:
    r"""Importance-weighted estimate of the marginal likelihood.

    .. math:: \log \hat p(y_n) = \log \frac{1}{K} \sum_{k=1}^{K}
        \frac{p(y_n, z_k)}{q(z_k \mid y_n)}, \quad z_k \sim q(z \mid y_n)

    Unbiased for p, so low on average for log p; useless where the guide misses part of the
    posterior, which Pareto k and the effective sample size show if enough draws are taken.

    Arguments:
        num_samples: Draws a datum, :math:`K`; exactly so many are used.
        memory: Mebibytes that the program's intermediate results may take.

    Raises:
        ValueError: If there are fewer than two draws.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646
    """

    num_samples: int = 5000
    memory: float = 512.0

    def __post_init__(self) -> None:
        """Refuses too few draws."""
        if self.num_samples < 2:
            raise ValueError(f"a standard error needs at least 2 draws, got {self.num_samples}")
        if self.memory <= 0:
            raise ValueError(f"memory is a budget in mebibytes, got {self.memory}")

    def __call__(
        self,
        program: Program,
        posterior: Posterior,
        batch: Batch,
        *,
        seed: int = 0,
        progress: bool = False,
    ) -> LogMarginal:
        """Estimates per datum."""
        blocks = self.blocks(program, posterior, batch, seed=seed, progress=progress)
        return join([log_marginal_of(block.weights) for block in blocks])

    def blocks(
        self, program: Program, posterior: Posterior, batch: Batch, *, seed: int, progress: bool
    ) -> Iterator[Block]:
        """Draws and weights of some data at a time, all particles of each, within the budget."""
        seeds = row_seeds(seed, *batch).tolist()
        limit = rows_at_once(program, batch, self.memory)
        size = max(1, limit // self.num_samples)
        starts = range(0, len(seeds), size)
        for first in tqdm(starts, desc="importance sampling", leave=None, disable=not progress):
            block = slice(first, first + size)
            z, log_guide = draw_rows(posterior, first, seeds[block], self.num_samples)
            part = tuple(tensor[block] for tensor in batch)
            particles = max(1, limit // z.shape[1])
            yield Block(block, z, weigh(program, z, log_guide, part, particles, first=first))


def log_marginal_of(weights: Weights) -> LogMarginal:
    """What weights say of log p(y), with its error and how far to trust it."""
    num_samples = len(weights.log_guide)
    log_w = weights.log_weights
    value, error = stats.log_marginal(log_w)
    has_tail = num_samples >= stats.MIN_TAIL_PARTICLES
    pareto_k = stats.pareto_k(log_w) if has_tail else torch.full_like(value, torch.nan)
    ess = stats.effective_sample_size(log_w)
    limit = stats.reliable_pareto_k(num_samples)
    no_tail = f"fewer than {stats.MIN_TAIL_PARTICLES} draws have no tail to look at"
    heavy = f"Pareto k is not below {limit:.2f}" if has_tail else no_tail
    doubts = {
        heavy: ~(pareto_k < limit),
        f"the effective sample size is below {stats.MIN_ESS:.0f}": ess < stats.MIN_ESS,
    }
    samples = torch.full_like(value, num_samples, dtype=torch.int64)
    return LogMarginal(value, error, ess, pareto_k, samples, doubts=doubts)
