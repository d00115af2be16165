r"""Marginal likelihoods and bounds, per datum and with errors.

With draws :math:`z_k \sim q(z \mid y_n)` the importance weights are
:math:`w_{kn} = p(y_n, z_k) / q(z_k \mid y_n)`. The mean of :math:`\log w_{kn}` over particles
estimates the ELBO, and the logarithm of the mean of :math:`w_{kn}` estimates
:math:`\log p(y_n)`, which is what :mod:`pyro_vae.stats` does. Here the weights are made.

Every datum draws from a stream of its own, seeded by the seed and the content of its row. So an
estimate depends on the datum, the programs and the seed alone: not on the order of the rows, the
other data, the batch, or how the work was cut to fit into memory.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import pyro
import torch
from jaxtyping import Bool, Float
from pyro import poutine
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm.auto import tqdm

from . import stats
from ._types import Batch, Data, Estimate, ProgramLike
from .data import check_batch, row_seeds
from .guides import Posterior, given_globals, posterior_of, program_of
from .programs import Program, as_batch, device_of, evaluating, forked_seed

_DRAWS_AT_ONCE = 4096  # fixed: the draws of a datum must not depend on the memory budget
_FAST_ROWS = 1024  # longer batches leave the cache and are slower
_MEBIBYTE = 2**20

_Answer = TypeVar("_Answer")

_LOOK_AT = {
    "log_guide": "the guide's parameters",
    "log_prior": "the model's prior",
    "log_likelihood": "the decoder's output",
}


class Weights(NamedTuple):
    r"""Parts of the log weights, each `(particles, batch)`, in nats.

    :math:`\log w = \log p(z) + \log p(y \mid z) - \log q(z \mid y)`.
    """

    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Log importance weights."""
        return self.log_prior + self.log_likelihood - self.log_guide


class Block(NamedTuple):
    """Some of the data: their rows, draws `(particles, rows, latents)`, and the weights."""

    rows: slice
    z: Tensor
    weights: Weights


@dataclass(frozen=True)
class LogMarginal:
    r"""Estimates of :math:`\log p(y_n)`, each field `(batch,)`, in nats.

    Arguments:
        value: The estimate; low on average by about `error**2 / 2`.
        error: Its standard error, by the delta method; void where `pareto_k` is above 1/2.
        ess: Effective sample size of the importance weights.
        pareto_k: Shape of the weights' upper tail; minus infinity for a perfect proposal, nan
            from fewer than 30 draws, which have no tail to fit.
        num_samples: Draws used a datum, which is the number asked for.
        given: What the estimates are conditional on, in words: the latent sites that all data
            share, and whose values were taken. Empty if there are none.
    """

    value: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    ess: Float[Tensor, " batch"]
    pareto_k: Float[Tensor, " batch"]
    num_samples: int
    given: str = ""

    @property
    def total(self) -> Estimate:
        """Log marginal likelihood of the data set, in nats: data are independent."""
        return stats.total(Estimate(self.value, self.error))

    @property
    def mean(self) -> Estimate:
        """Mean over data, in nats a datum, with its Monte Carlo error."""
        return stats.mean_over_data(Estimate(self.value, self.error))

    @property
    def reliable(self) -> Bool[Tensor, " batch"]:
        """Which data have weights that can be trusted, by Pareto k and effective sample size."""
        return stats.weight_reliability(self.pareto_k, self.ess, self.num_samples)

    def summary(self) -> str:
        """Says the result, and how far it can be trusted, in a line or two."""
        mean, bad = self.mean, int((~self.reliable).sum())
        return (
            f"log p(y) = {float(mean.value):.3f} +- {float(mean.error):.3f} nats a datum "
            f"({len(self.value)} data, {self.num_samples} draws each; Pareto k at most "
            f"{self._worst_pareto_k():.2f}, ESS at least {float(self.ess.min()):.0f}; "
            f"{bad} data cannot be trusted){', ' * bool(self.given)}{self.given}"
        )

    def _worst_pareto_k(self) -> float:
        """The largest that there is; nan only where there is none."""
        known = self.pareto_k[~self.pareto_k.isnan()]
        return float(known.max()) if len(known) > 0 else torch.nan


@dataclass(frozen=True)
class EvidenceLowerBound:
    r"""The ELBO and its parts, per datum: `elbo = - distortion - rate`, in nats.

    Arguments:
        elbo: :math:`\mathbb{E}_q \log w`, `(batch,)` value and error.
        rate: :math:`\mathrm{KL}(q(z \mid y) \,\|\, p(z))`.
        distortion: :math:`-\mathbb{E}_q \log p(y \mid z)`.
        num_samples: Draws used a datum.
        given: What the bound is conditional on, in words, as in :class:`LogMarginal`.
    """

    elbo: Estimate
    rate: Estimate
    distortion: Estimate
    num_samples: int
    given: str = ""

    @property
    def mean(self) -> Estimate:
        """ELBO, mean over data, in nats a datum, with its Monte Carlo error."""
        return stats.mean_over_data(self.elbo)


class Evaluation(NamedTuple):
    """The bound and the marginal likelihood, from the same draws."""

    bound: EvidenceLowerBound
    log_marginal: LogMarginal


@runtime_checkable
class Estimator(Protocol):
    """A way to estimate log p(y_n)."""

    def __call__(
        self, program: Program, posterior: Posterior, batch: Batch, *, seed: int, progress: bool
    ) -> LogMarginal:
        """Estimates per datum, whose draws depend on the seed and the datum alone."""


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
        return _join([log_marginal_of(block.weights) for block in blocks])

    def blocks(
        self, program: Program, posterior: Posterior, batch: Batch, *, seed: int, progress: bool
    ) -> Iterator["Block"]:
        """Draws and weights of some data at a time, all particles of each, within the budget."""
        seeds = row_seeds(seed, *batch).tolist()
        limit = self._rows_at_once(program, batch)
        size = max(1, limit // self.num_samples)
        starts = range(0, len(seeds), size)
        for first in tqdm(starts, desc="importance sampling", leave=None, disable=not progress):
            block = slice(first, first + size)
            z, log_guide = _draw(posterior, first, seeds[block], self.num_samples)
            part = tuple(tensor[block] for tensor in batch)
            particles = max(1, limit // z.shape[1])
            yield Block(block, z, _weigh(program, z, log_guide, part, particles, first=first))

    def _rows_at_once(self, program: Program, batch: Batch) -> int:
        """Rows of a program's batch that fit into the budget, and no more than are fast."""
        affordable = int(self.memory * _MEBIBYTE / max(1, _bytes_per_row(program, batch)))
        return max(1, min(_FAST_ROWS, affordable))


def _draw(
    posterior: Posterior, first: int, seeds: list[int], num_samples: int
) -> tuple[Tensor, Tensor]:
    """Draws of some data, each from the stream of its own seed."""
    draws = []
    for offset, seed in enumerate(seeds):
        draw = partial(_draw_row, posterior.row(first + offset), seed, num_samples)
        draws.append([torch.cat(parts) for parts in zip(*_despite_nan(draw), strict=True)])
    z, log_guide = zip(*draws, strict=True)
    return torch.cat(z, dim=1), torch.cat(log_guide, dim=1)


def _draw_row(row: Posterior, seed: int, num_samples: int) -> list[tuple[Tensor, Tensor]]:
    """Draws of one datum, in pieces."""
    # torch.manual_seed formats a stack trace for every call: 1.6 ms, more than the draws take.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    return [
        row.draw(min(_DRAWS_AT_ONCE, num_samples - done))
        for done in range(0, num_samples, _DRAWS_AT_ONCE)
    ]


def _despite_nan(call: Callable[[], _Answer]) -> _Answer:
    """Calls it; if a distribution refuses a nan, calls it again without Pyro's validation.

    The answer then has the nan, and :func:`_require_numbers` says whose it is.
    """
    try:
        return call()
    except ValueError:
        with pyro.validation_enabled(is_validate=False):
            answer = call()
        if _is_numbers(answer):
            raise  # refused for another reason, such as data outside the support
        return answer


def _is_numbers(answer: Any) -> bool:
    if isinstance(answer, Tensor):
        return not bool((answer.isnan() | answer.isposinf()).any())
    return isinstance(answer, tuple | list) and all(map(_is_numbers, answer))


def _weigh(
    program: Program, z: Tensor, log_guide: Tensor, batch: Batch, particles: int, *, first: int = 0
) -> Weights:
    """Log densities of given draws, so many particles at a time; checked and in float64."""
    parts = [
        _despite_nan(partial(program.log_densities, piece, *batch)) for piece in z.split(particles)
    ]
    prior, likelihood = (torch.cat(part).double() for part in zip(*parts, strict=True))
    weights = Weights(prior, likelihood, log_guide.double())
    for name in _LOOK_AT:
        _require_numbers(name, getattr(weights, name), z, first)
    return weights


def _require_numbers(name: str, value: Tensor, z: Tensor, first: int) -> None:
    # What was drawn has no density of 0 under the guide; under the model it may.
    legal = value.isfinite() if name == "log_guide" else value < torch.inf
    if not bool(legal.all()):
        particle, datum = (~legal).nonzero()[0].tolist()
        raise FloatingPointError(
            f"{name} is {float(value[particle, datum])} for particle {particle} of datum "
            f"{first + datum}, at z = {z[particle, datum].tolist()}: a log density must be a "
            f"number; look at {_LOOK_AT[name]} there"
        )


class _CountBytes(TorchDispatchMode):
    """Sums the bytes of every tensor made: an upper bound on what is alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.total += tensor.numel() * tensor.element_size()
        return out


def _bytes_per_row(program: Program, batch: Batch) -> float:
    """Bytes that one more row of a program's batch makes."""
    row, totals = tuple(part[:1] for part in batch), []
    for particles in (1, 3):
        with _CountBytes() as count:
            z = torch.zeros(
                particles, 1, program.latents, dtype=program.dtype, device=row[0].device
            )
            _despite_nan(partial(program.log_densities, z, *row))
        totals.append(count.total)
    return (totals[1] - totals[0]) / 2


def log_marginal_of(weights: Weights) -> LogMarginal:
    """What weights say of log p(y), with its error and how far to trust it."""
    num_samples = len(weights.log_guide)
    log_w = weights.log_weights
    value, error = stats.log_marginal(log_w)
    has_tail = num_samples >= stats.MIN_TAIL_PARTICLES
    pareto_k = stats.pareto_k(log_w) if has_tail else torch.full_like(value, torch.nan)
    return LogMarginal(value, error, stats.effective_sample_size(log_w), pareto_k, num_samples)


def _bound(weights: Weights) -> EvidenceLowerBound:
    return EvidenceLowerBound(
        elbo=stats.mean_estimate(weights.log_weights),
        rate=stats.mean_estimate(weights.log_guide - weights.log_prior),
        distortion=stats.mean_estimate(-weights.log_likelihood),
        num_samples=len(weights.log_guide),
    )


def _evaluation(weights: Weights) -> Evaluation:
    return Evaluation(_bound(weights), log_marginal_of(weights))


def _join(parts: list[Any]) -> Any:
    """Joins results of the same type along the data, field by field; counts are the same in all."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first)]
        return type(first)(*(_join([getattr(part, name) for part in parts]) for name in names))
    if isinstance(first, tuple):
        return type(first)(*(_join(list(entries)) for entries in zip(*parts, strict=True)))
    return first


@contextmanager
def prepared(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    seed: int,
    given: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[Program, Posterior, Batch]]:
    """Checks the data; runs the block in evaluation mode, without gradients, on its own seed."""
    batch = as_batch(data, device_of(model, guide))
    check_data(model, batch)
    with evaluating(model, guide), torch.no_grad(), forked_seed(seed), poutine.block():
        program = _despite_nan(partial(program_of, model, guide, batch))
        program = given_globals(program, guide, batch, given)
        yield program, posterior_of(guide, program, batch), batch


def check_data(model: ProgramLike, batch: Batch) -> None:
    """Checks at the door: shapes, nan and inf, and the range that the likelihood asks for."""
    check_batch(*batch)
    check = getattr(model, "check", None)
    if check is not None:
        check(batch[0])


def log_weights(
    model: ProgramLike,
    guide: ProgramLike,
    *batch: Tensor,
    num_particles: int,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Float[Tensor, "particles batch"]:
    r"""Draws from a guide and returns their log importance weights, per datum.

    .. math:: \log w_{kn} = \log p(y_n, z_{kn}) - \log q(z_{kn} \mid y_n)

    Never joint over a batch, never scaled by a plate. For data sets use
    :func:`log_marginal_likelihood`, which keeps within a memory budget.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        batch: The data, the datum axis leftmost in each.
        num_particles: Draws a datum.
        given: Values of the latent sites that all data share, as in
            :func:`log_marginal_likelihood`.
        seed: Seed of the draws; the caller's random stream is left alone.

    Returns:
        `(particles, batch)`, float64, in nats.

    Raises:
        ValueError: If data, model and guide do not fit together.
        FloatingPointError: If a log density is nan or plus infinity.
    """
    method = ImportanceSampling(max(2, num_particles))
    if num_particles < 1:
        raise ValueError(f"num_particles is at least 1, got {num_particles}")
    with prepared(model, guide, batch, seed, given) as (program, posterior, rows):
        seeds = row_seeds(seed, *rows).tolist()
        z, log_guide = _draw(posterior, 0, seeds, num_particles)
        particles = max(1, method._rows_at_once(program, rows) // len(seeds))
        return _weigh(program, z, log_guide, rows, particles).log_weights


def elbo(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_samples: int = 100,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> EvidenceLowerBound:
    r"""Estimates the evidence lower bound of every datum, with its rate and distortion.

    .. math:: \mathrm{ELBO}_n = \mathbb{E}_{q(z \mid y_n)}\left[
        \log p(y_n, z) - \log q(z \mid y_n)\right] \le \log p(y_n)

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        num_samples: Draws a datum.
        given: Values of the latent sites that all data share, as in
            :func:`log_marginal_likelihood`.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar.

    Returns:
        ELBO, rate and distortion, each `(batch,)` with standard errors, in nats.

    Raises:
        ValueError: If data, model and guide do not fit together.
        FloatingPointError: If a log density is nan or plus infinity.
    """
    method = ImportanceSampling(num_samples)
    with prepared(model, guide, data, seed, given) as (program, posterior, batch):
        blocks = method.blocks(program, posterior, batch, seed=seed, progress=progress)
        bound: EvidenceLowerBound = _join([_bound(block.weights) for block in blocks])
    return replace(bound, given=program.conditions)


def log_marginal_likelihood(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    estimator: Estimator | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> LogMarginal:
    r"""Estimates :math:`\log p(y_n)` of every datum, with its error and its reliability.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand: the proposal.
        data: The batch tensor, or a tuple of them.
        estimator: :class:`ImportanceSampling` with 5000 draws unless told otherwise.
        given: For a program with latent sites that all data share: their values, by name. A
            datum has a marginal likelihood only conditional on those. By default the mean of
            their posterior is taken (`guide.global_values()`); for the spread over their
            posterior call this once for each of `guide.sample_globals(num_samples)`. The
            result's `given` says which.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar.

    Returns:
        Value, error, effective sample size and Pareto k, each `(batch,)`; nats.

    Warns:
        UserWarning: If the weights of some data cannot be trusted: how many, and what to do.

    Raises:
        ValueError: If data, model and guide do not fit together.
        FloatingPointError: If a log density is nan or plus infinity.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Example:
        >>> from pyro_vae import Encoder, Guide, likelihoods, models, nets
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(3)))
        >>> lml = log_marginal_likelihood(model, guide, torch.zeros(4, 3), ImportanceSampling(500))
        >>> lml.value.shape, lml.num_samples
        (torch.Size([4]), 500)
    """
    method = ImportanceSampling() if estimator is None else estimator
    with prepared(model, guide, data, seed, given) as (program, posterior, batch):
        result = method(program, posterior, batch, seed=seed, progress=progress)
    result = replace(result, given=program.conditions)
    _warn_unreliable(result)
    return result


def evaluate(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    method: ImportanceSampling | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """The bound and the marginal likelihood of every datum, from the same draws.

    Arguments and errors are those of :func:`log_marginal_likelihood`; it does not warn, since
    the result carries its reliability.
    """
    method = ImportanceSampling() if method is None else method
    with prepared(model, guide, data, seed, given) as (program, posterior, batch):
        blocks = method.blocks(program, posterior, batch, seed=seed, progress=progress)
        bound, marginal = _join([_evaluation(block.weights) for block in blocks])
    given_as = program.conditions
    return Evaluation(replace(bound, given=given_as), replace(marginal, given=given_as))


def posterior_means(
    model: ProgramLike, guide: ProgramLike, data: Data, *, seed: int = 0
) -> Float[Tensor, "batch latents"]:
    """Means of q(z_n) for every datum: exact for a family that has one, else from draws."""
    with prepared(model, guide, data, seed) as (_, posterior, _batch):
        return posterior.mean()


def _warn_unreliable(result: LogMarginal) -> None:
    bad = int((~result.reliable).sum())
    if bad:
        warnings.warn(
            f"log p(y) cannot be trusted for {bad} of {len(result.value)} data: their importance "
            f"weights have a Pareto k up to {result._worst_pareto_k():.2f} "
            f"({stats.reliable_pareto_k(result.num_samples):.2f} is the limit) or an effective "
            f"sample size down to {float(result.ess.min()):.0f} (100 is the limit); "
            "take more draws, train the guide for longer, or fit it to these data with "
            "guide.fit_rows(y)",
            UserWarning,
            stacklevel=3,  # the caller of the entry point
        )
