r"""The aggregated posterior and the prior: how much they differ, and where.

A model generates data from draws of :math:`p(z)`, but its decoder was trained on draws of
:math:`q(z) = \frac{1}{N} \sum_n q(z \mid y_n)`. Where the two differ, the model generates from
latents that the decoder was not trained on. The rate is the mean divergence of the posteriors from
the prior. It splits into the information in z about the identity of the datum, and the divergence
of q(z) from p(z):

.. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z \mid y_n) \,\|\, p(z))
    = I_q(n; z) + \mathrm{KL}(q(z) \,\|\, p(z))

Every expectation is over :math:`q(z \mid y_n)` of one datum, and each averaged term depends on one
draw only. So with :math:`K` independent draws per datum the means are unbiased and have the
standard errors of plain means. These errors are conditional on the data: with other data the
aggregate is different.

The rate of a single latent, :math:`z_d`, splits in the same way, if the density of each
:math:`q(z_d \mid y_n)` is known. This density is known for normal posteriors, whichever guide they
come from. Normal posteriors are recognized by their density: if :math:`\log q` has the gradient
:math:`g` and the Hessian :math:`-P` at one point :math:`z`, the covariance is :math:`P^{-1}` and
the mean is :math:`z + P^{-1} g`. Whether the density of this normal equals that of :math:`q` is
checked at other points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import MultivariateNormal

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence import ImportanceSampling
from ..evidence.modes import derivatives
from ..evidence.proposals import density_at
from ..evidence.weights import conditioned
from ..formatting import count_of, on_condition
from ..guides import Posterior
from ..programs import Prior, Program
from ..programs.pieces import take_rows
from ..results import Result, join
from .calibration import latent_names
from .information import draws_per_datum, log_aggregate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In nats. A latent whose posterior means have 1% of the prior variance (the threshold of active
# units) has half as much information.
NEGLIGIBLE = 0.01
_TERMS_AT_ONCE = 2_000_000  # points times data times latents; 16 MB in float64
_TERMS_IN_ALL = 50_000_000  # densities that take a second; with many data, each gets fewer draws
_CHECKED_POINTS = 16  # number of points at which a density is compared with a normal density
_AS_A_NORMAL = 0.01  # nats; rounding in float32 makes equal densities differ by less
_JOINT_DRAWS = 1000  # most draws in the joint test; with 999 permutations it takes half a second
_FEWEST = 10  # least number of data: with fewer, no permutation test is significant


def is_negligible(estimate: Estimate) -> bool:
    """Returns whether an estimate in nats is below 0.01, or below twice its standard error."""
    value, error = (float(part) for part in estimate)
    return value < max(NEGLIGIBLE, 2 * error)


@dataclass(frozen=True, repr=False)
class Surgery(Result):
    r"""The parts of the ELBO of a data set, in nats per datum, with Monte Carlo errors.

    :math:`\mathrm{ELBO} = -\mathrm{distortion} - \mathrm{rate}` and
    :math:`\mathrm{rate} = I_q(n; z) + \mathrm{KL}(q(z) \,\|\, p(z))` hold exactly, since all parts
    are computed from the same draws.

    Arguments:
        information: Information that z carries about the identity of the datum.
        mismatch: Divergence of the aggregated posterior from the prior.
        rate: Sum of information and mismatch, :math:`\mathrm{KL}(q(z \mid y) \,\|\, p(z))`.
        distortion: :math:`-\mathbb{E}_q \log p(y \mid z)`.
        elbo: The ELBO.
        ceiling: The logarithm of the number of data, which the information cannot exceed.
        num_samples: Draws used per datum.
        given: Text that names the global sites on whose values the results are conditional; empty
            if there are none.
    """

    information: Estimate
    mismatch: Estimate
    rate: Estimate
    distortion: Estimate
    elbo: Estimate
    ceiling: float
    num_samples: int
    given: str = ""

    def plot(self) -> "Axes":
        """Plots the parts of the ELBO with their errors; needs matplotlib."""
        from ..plots import plot_comparison

        parts = {"rate": self.rate, "information": self.information, "mismatch": self.mismatch}
        ax = plot_comparison({"parts": {**parts, "distortion": self.distortion}})
        ax.set_yticks([])  # the figure has a single row
        return ax

    @property
    def verdict(self) -> str:
        """Says in words how informative z is, and whether q(z) differs from the prior."""
        return f"{self._on_information()}; {self._on_mismatch()}"

    def _on_information(self) -> str:
        value = float(self.information.value)
        if is_negligible(self.information):
            return "z carries no information about the data"
        if value > 0.95 * self.ceiling:
            return (
                "z nearly identifies each datum: the information has reached its ceiling, log N, "
                "which grows with the number of data"
            )
        return f"knowing z narrows down the possible data by a factor of {math.exp(value):.3g}"

    def _on_mismatch(self) -> str:
        if is_negligible(self.mismatch):
            return "no difference between the aggregated posterior and the prior is detected"
        share = 100 * float(self.mismatch.value) / float(self.rate.value)
        return (
            f"{share:.0f}% of the rate is the divergence of the aggregated posterior from the prior"
        )

    def summary(self) -> str:
        """States the parts of the ELBO, and the verdict."""
        return (
            f"rate {self.rate:.3f} = {self.information:.3f} of information (at most log N = "
            f"{self.ceiling:.2f}) + {self.mismatch:.3f} of divergence from the prior; distortion "
            f"{self.distortion:.3f}, ELBO {self.elbo:.3f} nats per datum "
            f"({count_of(self.num_samples, 'draw')} per datum{on_condition(self.given)}): "
            f"{self.verdict}"
        )


def surgery(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_samples: int | None = None,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Surgery:
    r"""Splits the ELBO of a data set into distortion, information and mismatch with the prior.

    .. math:: \mathrm{KL}(q(z) \,\|\, p(z)) = \frac{1}{N} \sum_n \mathbb{E}_{q(z \mid y_n)} \left[
        \log \frac{1}{N} \sum_m q(z \mid y_m) - \log p(z) \right]

    The aggregate is over all N data, so the cost grows with :math:`N^2`. All parts depend on the
    data set: on fewer data, the same guide has less information (never above log N) and more
    mismatch. Only rate and distortion are plain means over data.

    Arguments:
        model: The Pyro program, whose prior the aggregate is compared with.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of tensors. The aggregate is over all these data.
        num_samples: Draws per datum, at least two; by default chosen to take a few seconds. With
            the same number and seed, :func:`pyro_vae.elbo` gives the same rate and distortion.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        The parts, in nats per datum, with their Monte Carlo errors.

    Raises:
        ValueError: If fewer than two draws are requested, the prior is not the same for all data,
            the guide's density cannot be evaluated at given points, or data, model and guide do not
            fit together.

    References:
        | ELBO surgery: yet another way to carve up the variational evidence lower bound
          (Hoffman & Johnson, 2016)
        | http://approximateinference.org/accepted/HoffmanJohnson2016.pdf

    Example:
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> parts = surgery(model, Guide(model, GlobalParameters()), torch.zeros(9, 3))
        >>> parts.verdict.split(";")[0]
        'z carries no information about the data'
    """
    with conditioned(model, guide, data, seed) as inference:
        _require_one_prior(*inference)
        posterior = inference.posterior
        draws = draws_per_datum(num_samples, len(posterior))
        sampling = ImportanceSampling(draws).sampling(inference, seed=seed, progress=progress)
        blocks = [(log_aggregate(posterior, block.z), block.weights) for block in sampling.blocks()]
    aggregate = torch.cat([part for part, _ in blocks], dim=1)
    prior, likelihood, log_q = join([weights for _, weights in blocks], axis=1)
    means = map(_mean, (log_q - aggregate, aggregate - prior, log_q - prior, -likelihood))
    information, mismatch, rate, distortion = means
    rate = Estimate(information.value + mismatch.value, rate.error)  # so the parts add up
    elbo = Estimate(-rate.value - distortion.value, _mean(prior + likelihood - log_q).error)
    parts = (information, mismatch, rate, distortion, elbo)
    return Surgery(*parts, math.log(len(log_q.mT)), draws, inference.program.conditions)


def _mean(values: Float[Tensor, "particles data"]) -> Estimate:
    return stats.mean_over_data(stats.mean_estimate(values))


def _require_one_prior(program: Program, posterior: Posterior, batch: Batch) -> None:
    """Refuses a prior that depends on the datum: q(z) can be compared with a single prior only.

    One latent vector is drawn for each datum. Its log density must be the same under the prior of
    this datum and under the prior of the preceding datum.
    """
    z, _ = posterior.draw(1)
    others = tuple(part.roll(1, 0) for part in batch)
    own, other = (Prior(program, rows).log_prob(z) for rows in (batch, others))
    if not torch.allclose(own, other, rtol=1e-4, atol=1e-4):
        raise ValueError(
            "the prior of this program depends on covariates or on earlier observations, so the "
            "aggregated posterior cannot be compared with a single prior. Use pv.elbo for the rate "
            "of each datum, or pass data with equal covariates"
        )


class UnknownDensity(ValueError):
    """Raised if the density of a single latent is unknown, so that its rate cannot be computed."""


class Normals(NamedTuple):
    """Normal distributions of single latents: means and variances, each `(data, latents)`."""

    mean: Tensor
    variance: Tensor


def normals_of(
    log_prob: Callable[[Tensor], Tensor], z: Float[Tensor, "particles data latents"]
) -> Normals | None:
    r"""Returns the mean and the variance of every latent for each datum, if the density is normal.

    Arguments:
        log_prob: A function from points `(particles, data, latents)` to log densities
            `(particles, data)`.
        z: Points at which the density is compared with a normal density; the derivatives are
            computed at the first point of each datum.

    Returns:
        The normal distributions, exact up to rounding; `None` if the density is not normal.
    """
    gradient, hessian = derivatives(log_prob, z[:1])
    factor, failed = torch.linalg.cholesky_ex(-hessian)
    if bool(failed.any()) or not bool(factor.isfinite().all()):
        return None
    step = torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
    covariance = torch.cholesky_inverse(factor)
    mean = z[0].double() + step
    normal = MultivariateNormal(mean, precision_matrix=-hessian, validate_args=False)
    off = normal.log_prob(z.double()) - log_prob(z).double()
    if not bool((off.abs() < _AS_A_NORMAL).all()):
        return None
    return Normals(mean, covariance.diagonal(dim1=-2, dim2=-1))


class Latents(NamedTuple):
    r"""Rate, information, mismatch, posterior means and prior variance of every latent.

    The rate is the sum of information and mismatch. All three are in nats and have the shape
    `(latents,)`. The rate is exact, so its standard error is zero. `mean` is the posterior mean of
    each datum, `(data, latents)`.
    """

    rate: Estimate
    information: Estimate
    mismatch: Estimate
    mean: Tensor
    prior_variance: Tensor


def single_latents(
    program: Program, posterior: Posterior, batch: Batch, num_samples: int | None
) -> Latents:
    """Estimates each latent's rate, its information, and the mismatch with its prior.

    Raises:
        UnknownDensity: If the density of a single latent is not known.
        ValueError: If the prior is not the same for all data.
    """
    _require_one_prior(program, posterior, batch)
    prior = prior_normals(program, batch)
    return _split(posterior, _posterior_normals(posterior), prior, num_samples)


def single_information(posterior: Posterior) -> Estimate:
    """Estimates the information that each latent by itself carries about the identity of the datum.

    The prior of the program may be of any kind, and may differ between data, because the
    information does not depend on it. Here the information is computed as if the prior were normal,
    with the mean and the variance of the aggregated posterior.

    Raises:
        UnknownDensity: If the density of a single latent is not known.
    """
    normals = _posterior_normals(posterior)
    spread = normals.variance.mean(dim=0) + normals.mean.var(dim=0, correction=0)
    aggregate = Normals(normals.mean.mean(dim=0, keepdim=True), spread.unsqueeze(0))
    return _split(posterior, normals, aggregate, None).information


def _split(
    posterior: Posterior, normals: Normals, prior: Normals, num_samples: int | None
) -> Latents:
    """Splits each latent's rate under a prior into information and mismatch."""
    num_data, latents = normals.mean.shape
    draws = num_samples or max(2, min(100, _TERMS_IN_ALL // (num_data**2 * latents)))
    z = posterior.draw(draws_per_datum(draws, num_data))[0].double()
    rate = _divergence(normals, prior)
    log_prior = _log_normal(z, prior)
    # The control has mean zero. If all data have the same posterior, it removes all of the noise.
    control = _log_normal(z, normals) - log_prior - rate
    mismatch = _controlled(_log_mixture(normals, z) - log_prior, control)
    mean_rate = Estimate(rate.mean(dim=0), torch.zeros_like(mismatch.error))
    information = Estimate(mean_rate.value - mismatch.value, mismatch.error)
    return Latents(mean_rate, information, mismatch, normals.mean, prior.variance[0])


def _posterior_normals(posterior: Posterior) -> Normals:
    z, _ = posterior.draw(_CHECKED_POINTS)
    normals = normals_of(lambda points: density_at(posterior, points), z)
    return _require_normal(normals, "the posteriors of this guide are")


def prior_normals(program: Program, batch: Batch) -> Normals:
    """Returns the mean and the variance of each latent under the prior of the first datum.

    Raises:
        UnknownDensity: If the prior is not normal.
    """
    row = take_rows(batch, slice(1))
    points = Prior(program, row).sample(_CHECKED_POINTS)
    normals = normals_of(lambda z: program.log_densities(z, *row).prior, points)
    return _require_normal(normals, "this program's prior of the unconstrained latents is")


def _require_normal(normals: Normals | None, subject: str) -> Normals:
    """Returns `normals`; if they are None, raises an error that begins with `subject`."""
    if normals is None:
        raise UnknownDensity(
            f"{subject} not normal, so the density of a single latent is unknown. Use "
            "pv.diagnostics.prior_match, which compares draws, or pv.diagnostics.surgery, which "
            "compares all latents together"
        )
    return normals


def _divergence(of: Normals, to: Normals) -> Tensor:
    """Returns the exact KL divergence of each normal in `of` from the matching normal in `to`."""
    ratio = of.variance / to.variance
    return (ratio - 1 - ratio.log() + (of.mean - to.mean).square() / to.variance) / 2


def _log_normal(z: Tensor, normals: Normals) -> Tensor:
    scaled = (z - normals.mean).square() / normals.variance
    return -(scaled + normals.variance.log() + math.log(2 * math.pi)) / 2


def _log_mixture(
    normals: Normals, z: Float[Tensor, "particles data latents"]
) -> Float[Tensor, "particles data latents"]:
    """Computes the log density of each single latent's aggregated posterior at `z`."""
    size = max(1, _TERMS_AT_ONCE // normals.mean.numel())
    parts = z.reshape(-1, 1, z.shape[-1]).split(size)
    mixtures = [_log_normal(part, normals).logsumexp(dim=1) for part in parts]
    return torch.cat(mixtures).view(z.shape) - math.log(len(normals.mean))


def _controlled(
    values: Float[Tensor, "particles data latents"],
    control: Float[Tensor, "particles data latents"],
) -> Estimate:
    """Estimates the mean of `values`; `control` is a control variate whose mean is zero."""
    noise, known = (part - part.mean(dim=0) for part in (values, control))
    slope = (noise * known).sum((0, 1)) / known.square().sum((0, 1)).clamp(min=1e-300)
    value, error = stats.mean_estimate(values - slope * control)
    return Estimate(value.mean(dim=0), error.square().sum(dim=0).sqrt() / len(value))


@dataclass(frozen=True, eq=False, repr=False)
class PriorMatch(Result):
    r"""Results of testing whether draws of q(z) could be draws of the prior.

    Arguments:
        joint: p-value of the test of all latents together.
        latents: p-values of single latents, `(latents,)`, adjusted for their number (Holm).
        distances: Kolmogorov-Smirnov distance of each latent: the largest difference between the
            distribution functions of q(z) and the prior, `(latents,)`, from 0 to 1.
        aggregate: Draws of the aggregated posterior, one per datum, `(draws, latents)`.
        prior: The same number of draws of the prior, `(draws, latents)`.
        names: Name of each latent: its site and entry.
    """

    joint: float
    latents: Float[Tensor, " latents"]
    distances: Float[Tensor, " latents"]
    aggregate: Float[Tensor, "draws latents"]
    prior: Float[Tensor, "draws latents"]
    names: tuple[str, ...]

    _is_drawn_fast = False

    def summary(self) -> str:
        """States the joint p-value, and the verdict."""
        return f"all latents together: p = {self.joint:.2g}\n{self.verdict}"

    def plot(self) -> NDArray[Any]:
        """Plots the aggregated posterior of each latent over the prior; needs matplotlib."""
        from ..plots import plot_aggregated_marginals

        return plot_aggregated_marginals(self.aggregate, self.prior, names=self.names)

    @property
    def p_value(self) -> float:
        """p-value of all tests together: twice the smallest p-value in `joint` and `latents`."""
        return min(1.0, 2 * min(self.joint, float(self.latents.min())))

    @property
    def verdict(self) -> str:
        """Says, at the 5% level, whether q(z) differs from the prior, and in which latents."""
        if self.p_value > 0.05:
            return (
                "no difference between q(z) and the prior is detected in "
                f"{count_of(len(self.prior), 'draw')} of each (p = {self.p_value:.2g}); a small "
                "difference may exist"
            )
        off = [self.names[latent] for latent in (self.latents <= 0.05).nonzero()[:, 0].tolist()]
        where = f"in {', '.join(off)}" if off else "only in all latents together"
        return f"q(z) is not the prior (p = {self.p_value:.2g}): a difference is detected {where}"


def prior_match(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_permutations: int = 999,
    *,
    seed: int = 0,
) -> PriorMatch:
    r"""Tests whether the aggregated posterior is the prior, from one draw per datum.

    Each single latent is tested by the two-sample Kolmogorov-Smirnov test, with Holm's correction
    for the number of latents. All latents together are tested by permutations: the statistic is the
    energy distance between up to 1000 draws of q(z) and as many draws of the prior,

    .. math:: 2 \mathbb{E} \|z - z'\| - \mathbb{E} \|z - \tilde z\| - \mathbb{E} \|z' - \tilde z'\|,
        \qquad z, \tilde z \sim q(z), \quad z', \tilde z' \sim p(z)

    where every latent is first divided by its spread. The test concerns the aggregate over the
    population from which the data are sampled, :math:`\mathbb{E}_y q(z \mid y)`. One draw per datum
    gives independent draws of this aggregate, so the level is exact if the guide was not fitted to
    these data: use held-out data. On the guide's training data, p-values are approximate. Any guide
    that can be sampled works, because no density is needed.

    Arguments:
        model: The Pyro program, whose prior is sampled.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of tensors.
        num_permutations: Number of permutations; the joint p-value is at least
            `1 / (num_permutations + 1)`.
        seed: Seed of the draws; the caller's random stream is left alone.

    Returns:
        p-values, distances, and the draws.

    Raises:
        ValueError: If there are fewer than 10 data, the prior is not the same for all data, or
            data, model and guide do not fit together.

    References:
        | Testing for equal distributions in high dimension (Székely & Rizzo, 2004)
        | A simple sequentially rejective multiple test procedure (Holm, 1979)

    Example:
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(2, 3), likelihoods.Gaussian(), latent_dim=2)
        >>> guide = Guide(model, GlobalParameters())
        >>> match = prior_match(model, guide, torch.zeros(50, 3))
        >>> match.latents.shape, match.aggregate.shape
        (torch.Size([2]), torch.Size([50, 2]))
    """
    from scipy.stats import ks_2samp  # takes half a second to import

    with conditioned(model, guide, data, seed) as (program, posterior, batch):
        if len(posterior) < _FEWEST:
            raise ValueError(f"`data` must have at least {_FEWEST} rows; got {len(posterior)}")
        _require_one_prior(program, posterior, batch)
        aggregate = posterior.draw(1)[0][0].double().cpu()
        prior = Prior(program, batch).sample(1)[0].double().cpu()
        names = tuple(latent_names(program))
        rows = torch.randperm(len(aggregate), device="cpu")[:_JOINT_DRAWS]
        joint, _ = stats.energy_test(aggregate[rows], prior[rows], num_permutations)
    tests = ks_2samp(aggregate.numpy(), prior.numpy(), axis=0)
    distances, p_values = (torch.from_numpy(part) for part in (tests.statistic, tests.pvalue))
    adjusted = stats.holm(p_values)
    return PriorMatch(float(joint.value), adjusted, distances, aggregate, prior, names)
