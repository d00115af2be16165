"""Public functions that estimate log p(y) and the ELBO of data under a model and a guide."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from .. import stats
from .._types import Data, Estimate, ProgramLike
from .._warnings import warn
from ..formatting import count_of
from ..randomness import row_keys
from ..results import Doubt, join
from .exact import summed_out
from .importance import PLAIN, ImportanceSampling
from .proposals import FromGuide
from .quadrature import Quadrature
from .results import Evaluation, EvidenceLowerBound, LogMarginal, Weights, mean_with_doubts
from .saturation import edge_doubts
from .tightest import Tightest
from .weights import Inference, conditioned, draw_rows, rows_at_once, weigh


@runtime_checkable
class Estimator(Protocol):
    """A method that estimates log p(y_n) of every datum."""

    def __call__(self, inference: Inference, *, seed: int, progress: bool | None) -> LogMarginal:
        """Estimates log p(y_n) of every datum.

        The draws for a datum depend only on the seed and the content of the datum's row.
        """


def log_weights(
    model: ProgramLike,
    guide: ProgramLike,
    *batch: Tensor,
    num_samples: int,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Float[Tensor, "particles batch"]:
    r"""Returns the log importance weights, per datum, of draws from a guide.

    .. math:: \log w_{kn} = \log p(y_n, z_{kn}) - \log q(z_{kn} \mid y_n)

    Each weight belongs to one datum: it is neither summed over the batch nor scaled by a plate. For
    whole data sets use :func:`log_marginal_likelihood`, which keeps within a memory budget.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        batch: The data tensors, each indexed by datum along its first axis.
        num_samples: Draws per datum.
        given: Values of the global latent sites, as in :func:`log_marginal_likelihood`.
        seed: Seed of the draws; the caller's random stream is left alone.

    Returns:
        The log weights, `(particles, batch)`, float64, in nats.

    Raises:
        ValueError: If data, model and guide do not fit together.
        FloatingPointError: If a log density is nan or plus infinity.
    """
    with conditioned(model, guide, batch, seed, given) as (program, posterior, rows):
        keys = row_keys(seed, "importance", *rows)
        z, log_guide = draw_rows(posterior, 0, keys, num_samples)
        memory = ImportanceSampling().memory
        particles = max(1, rows_at_once(program, rows, memory) // len(keys))
        return weigh(program, z, log_guide, rows, particles).log_weights


def elbo(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_samples: int = 1000,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> EvidenceLowerBound:
    r"""Estimates the evidence lower bound of every datum, with its rate and distortion.

    .. math:: \mathrm{ELBO}_n = \mathbb{E}_{q(z \mid y_n)}\left[
        \log p(y_n, z) - \log q(z \mid y_n)\right] \le \log p(y_n)

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        num_samples: Draws per datum. With fewer draws, more ELBOs are doubted without need: 1% of
            ordinary ELBOs with 1,000 draws, and 6% with 100.
        given: Values of the global latent sites, as in :func:`log_marginal_likelihood`.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        ELBO, rate and distortion, each `(batch,)` with standard errors, in nats. A datum is in
        doubt if a few draws dominate its ELBO (:func:`pyro_vae.stats.mean_covers`).

    Raises:
        ValueError: If data, model and guide do not fit together.
        FloatingPointError: If a log density is nan or plus infinity.
    """
    estimator = ImportanceSampling(num_samples)
    with conditioned(model, guide, data, seed, given) as inference:
        program, _, batch = inference
        if not program.latent_sites:
            bound = _bound_of(summed_out(program, batch), num_samples)
        else:
            sampling = estimator.sampling(inference, seed=seed, progress=progress)
            bound = join(list(map(_bound, sampling.weights())))
        doubts = {**bound.doubts, **edge_doubts(program, batch)}
        return replace(bound, doubts=doubts, given=program.conditions)


def log_marginal_likelihood(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    estimator: Estimator | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> LogMarginal:
    r"""Estimates :math:`\log p(y_n)` of every datum, with a standard error and a verdict.

    If all local latent sites are discrete, they are summed out exactly. Neither the guide nor the
    estimator is used then, and the result's `method` is "enumeration".

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand. By default it is the
            proposal.
        data: The batch tensor, or a tuple of them.
        estimator: The estimator; by default :class:`ImportanceSampling` with 5000 draws.
        given: Values of the global latent sites, by name, if the program has any. The marginal
            likelihood of a datum is conditional on these values. By default they are the global
            sites' posterior means, `guide.global_values()`. To see how log p(y) varies over the
            posterior of the global sites, call this function once for each draw of
            `guide.sample_globals(num_samples)`. The result's `given` names the values used.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Value and error in nats, effective sample size and Pareto k, each `(batch,)`.

    Warns:
        UserWarning: If the estimates for some data cannot be trusted. The warning gives their
            number and remedies.

    Raises:
        ValueError: If data, model and guide do not fit together.
        FloatingPointError: If a log density is nan or plus infinity.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Example:
        >>> import torch
        >>> from pyro_vae import Encoder, Guide, likelihoods, models, nets
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(3)))
        >>> lml = log_marginal_likelihood(model, guide, torch.zeros(4, 3), ImportanceSampling(500))
        >>> lml.value.shape, lml.num_samples
        (torch.Size([4]), tensor([500, 500, 500, 500]))
    """
    estimator = ImportanceSampling() if estimator is None else estimator
    with conditioned(model, guide, data, seed, given) as inference:
        program, _, batch = inference
        if not program.latent_sites:
            result = summed_out(program, batch)
        else:
            result = estimator(inference, seed=seed, progress=progress)
        doubts = {**result.doubts, **edge_doubts(program, batch, result)}
        result = replace(result, doubts=doubts, given=program.conditions)
    if bad := int((~result.reliable).sum()):
        warn(
            f"log p(y) cannot be trusted for {bad} of {count_of(len(result), 'datum')}, as "
            f"estimated by {result.method} ({result.reasons}). {_remedy(estimator)}"
        )
    return result


def evaluate(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    estimator: ImportanceSampling | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Evaluation:
    """Estimates ELBO and log p(y) of every datum, from the same draws if the guide is the proposal.

    Arguments and exceptions are those of :func:`log_marginal_likelihood`. No warning is given for
    data whose estimates cannot be trusted; the result's `reliable` marks them.
    """
    estimator = ImportanceSampling() if estimator is None else estimator
    with conditioned(model, guide, data, seed, given) as inference:
        program, _, batch = inference
        if not program.latent_sites:
            marginal = summed_out(program, batch)
            bound = _bound_of(marginal, estimator.num_samples)
        else:
            # The ELBO is the guide's, even if the proposal for log p(y) is another distribution.
            plain = replace(estimator, proposal=FromGuide(), average=PLAIN, until=None)
            pairs = plain.sampling(inference, seed=seed, progress=progress).evaluations()
            bound, marginal = join([Evaluation(_bound(weights), own) for weights, own in pairs])
            if not estimator.is_plain:
                marginal = estimator(inference, seed=seed, progress=progress)
        edges = edge_doubts(program, batch, marginal)
        doubts = {**marginal.doubts, **edges}
        marginal = replace(marginal, doubts=doubts, given=program.conditions)
        edges.pop(Doubt.MISSED_MASS, None)  # the ELBO of a guide that misses mass is right
        doubts = {**bound.doubts, **edges}
        return Evaluation(replace(bound, doubts=doubts, given=program.conditions), marginal)


def posterior_means(
    model: ProgramLike, guide: ProgramLike, data: Data, *, seed: int = 0
) -> Float[Tensor, "batch latents"]:
    """Returns the mean of q(z | y_n) for every datum; some families estimate it from draws."""
    with conditioned(model, guide, data, seed) as (_, posterior, _batch):
        return posterior.mean()


def _remedy(estimator: Estimator) -> str:
    """Says which remedies to try if an estimator's results cannot be trusted."""
    if isinstance(estimator, Quadrature):
        return "Pass the estimator pv.Tightest() or a larger `max_points`"
    ladder = isinstance(estimator, Tightest)
    ways = "more draws" if ladder else "the estimator pv.Tightest() or more draws"
    return f"Pass {ways}, or train the guide for longer"


def _bound_of(marginal: LogMarginal, num_samples: int) -> EvidenceLowerBound:
    """Returns log p(y) as the ELBO; the two are equal if there are no continuous latents."""
    nothing = marginal.value.new_zeros(len(marginal))
    return EvidenceLowerBound(
        elbo=Estimate(marginal.value, marginal.error),
        rate=Estimate(nothing, nothing),
        distortion=Estimate(-marginal.value, marginal.error),
        num_samples=num_samples,
    )


def _bound(weights: Weights) -> EvidenceLowerBound:
    """Computes the ELBO of every datum, with rate and distortion, from the weights."""
    elbo, doubts = mean_with_doubts(weights.log_weights)
    return EvidenceLowerBound(
        elbo=elbo,
        rate=stats.mean_estimate(weights.log_guide - weights.log_prior),
        distortion=stats.mean_estimate(-weights.log_likelihood),
        num_samples=len(weights.log_guide),
        doubts=doubts,
    )
