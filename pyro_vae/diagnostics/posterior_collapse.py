r"""Which latents a guide uses.

A latent is used if it says something about the data, and costs its rate whether or not it does.
With :math:`z_d` one latent, its rate splits as that of all latents does:

.. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z_d \mid y_n) \,\|\, p(z_d))
    = I_q(n; z_d) + \mathrm{KL}(q(z_d) \,\|\, p(z_d))

Collapsed is a latent without rate: its posterior is the prior, whatever the datum. A latent with
a rate and without information is constant but off the prior: it costs nats for nothing.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence import prepared
from ..formatting import plus_minus
from ..guides import Posterior
from ..programs import Prior, Program
from ..results import Result
from .aggregate import NEGLIGIBLE, Latents, UnknownDensity, prior_normals, single_latents

ACTIVE_VARIANCE = 0.01  # the threshold of Burda et al., who saw the variances fall into two groups
_PRIOR_DRAWS = 1000  # for a variance to within 5%, and only where there is no other way


def active_units(
    means: Float[Tensor, "data latents"], prior_variance: Float[Tensor, " latents"] | float = 1.0
) -> tuple[int, Tensor]:
    r"""Counts the latents whose posterior mean varies over the data, beside their prior.

    .. math:: A_i = \frac{\mathrm{Var}_n \, \mathbb{E}_{q(z \mid y_n)}[z_i]}
        {\mathrm{Var}_{p(z)}[z_i]} > 0.01

    Arguments:
        means: Posterior means, `(data, latents)`, as from `guide.mean(y)`.
        prior_variance: Variance of each latent under the prior, from :func:`prior_variance`; 1
            for a prior N(0, I).

    Returns:
        The number of active latents, and these ratios, `(latents,)`, no unit.

    Raises:
        ValueError: If there are fewer than two data.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519

    Example:
        >>> import torch
        >>> active_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        (1, tensor([0., 2.], dtype=torch.float64))
        >>> active_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), prior_variance=1e4)
        (0, tensor([0.0000, 0.0002], dtype=torch.float64))
    """
    if len(means) < 2:
        raise ValueError(f"a variance over data needs at least 2 data, got {len(means)}")
    variances = means.double().var(dim=0) / prior_variance
    return int((variances > ACTIVE_VARIANCE).sum()), variances


def prior_variance(
    model: ProgramLike, guide: ProgramLike, data: Data, *, seed: int = 0
) -> Float[Tensor, " latents"]:
    r"""Variance of each latent under the model's prior, :math:`\mathrm{Var}_{p(z)}[z_i]`.

    Arguments:
        model: The Pyro program.
        guide: A guide of it, for the values of sites that all data share.
        data: The batch tensor, or a tuple of them; the prior is that of the first datum.
        seed: Seed of the draws, for priors that are not normal.

    Returns:
        `(latents,)`, in the units of the unconstrained latents, squared: exact for a normal prior;
        of 1,000 draws for others, within 5%.

    Raises:
        ValueError: If data, model and guide do not fit together.

    Example:
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(2, 3), likelihoods.Gaussian(), latent_dim=2)
        >>> prior_variance(model, Guide(model, GlobalParameters()), torch.zeros(1, 3))
        tensor([1., 1.], dtype=torch.float64)
    """
    with prepared(model, guide, data, seed) as (program, _, batch):
        try:
            return prior_normals(program, batch).variance[0]
        except UnknownDensity:
            return _variance_of_draws(program, batch)


def _variance_of_draws(program: Program, batch: Batch) -> Tensor:
    row = tuple(part[:1] for part in batch)
    return Prior(program, row).sample(_PRIOR_DRAWS)[:, 0].double().var(dim=0)


class Use(Enum):
    """What a guide makes of a latent."""

    USED = "used"
    COLLAPSED = "collapsed"
    CONSTANT = "constant but off the prior"
    UNDECIDED = "of no use in its mean; its density is unknown"


@dataclass(frozen=True, repr=False)
class Collapse(Result):
    """What a guide makes of each latent, `(latents,)` each: rate = information + mismatch.

    Arguments:
        rate: Divergence of the posterior from the prior, mean over data, in nats; exact.
        information: What the latent says, by itself, about which datum it came from, in nats.
        mismatch: Divergence of its aggregated posterior from the prior, in nats.
        variances: Variance over data of the posterior mean, in units of the prior's variance.
        uses: The verdicts.
        names: Site and entry of each latent.
        unknown: Why rate, information and mismatch are nan, where they are; else empty.
    """

    rate: Estimate
    information: Estimate
    mismatch: Estimate
    variances: Float[Tensor, " latents"]
    uses: tuple[Use, ...]
    names: tuple[str, ...]
    unknown: str = ""

    def plot(self) -> Any:
        """Rate, information and use of each latent; needs matplotlib."""
        from ..plots import plot_collapse

        uses = [use.value for use in self.uses]
        return plot_collapse(self.rate.value, self.information, uses, names=self.names)

    @property
    def active(self) -> int:
        """Number of active units (Burda et al.): variances above 0.01."""
        return int((self.variances > ACTIVE_VARIANCE).sum())

    @property
    def verdict(self) -> str:
        """How many latents there are of each kind, in words."""
        counts = [(self.uses.count(use), use.value) for use in Use]
        kinds = [f"{count} {words}" for count, words in counts if count]
        return f"of {len(self.uses)} latents {', '.join(kinds)}"

    def summary(self) -> str:
        """A line a latent, the largest rate first, and the verdict."""
        order = self.rate.value.nan_to_num().argsort(descending=True).tolist()
        width = max(map(len, self.names))
        lines = [f"{'':{width}}     rate  information       off the prior  variance of mean"]
        lines += [f"{self.names[latent]:{width}} {self._line(latent)}" for latent in order]
        return "\n".join([*lines, self.verdict, *([self.unknown] if self.unknown else [])])

    def _line(self, latent: int) -> str:
        rate, information, mismatch, error, variance = (
            float(part[latent])
            for part in (
                self.rate.value,
                self.information.value,
                self.mismatch.value,
                self.mismatch.error,
                self.variances,
            )
        )
        return (
            f"{rate:8.3f}     {information:8.3f}  {plus_minus(mismatch, error, '.3f'):>16}"
            f"  {variance:16.3f}  {self.uses[latent].value}"
        )


def collapse(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_samples: int | None = None,
    *,
    seed: int = 0,
) -> Collapse:
    r"""Says of each latent whether it is used, has collapsed, or is constant off the prior.

    Used is a latent that is active (its posterior mean varies over the data by more than 0.01 of
    the prior's variance) or has more than 0.01 nats of information, which may be in its spread
    alone. Of the others, those with a rate up to 0.01 nats have collapsed.

    Latents are taken one at a time: two of them may say the same thing, or say something
    together that neither says alone. Under exact inference a latent collapses too if the data
    have no use for it (in probabilistic PCA, where the eigenvalue is at most the noise's
    variance): a collapsed latent is not the guide's failure by itself.

    Rates are known for normal posteriors and a normal prior, of any map, family or program; for
    others there are the variances of the means alone.

    Arguments:
        model: The Pyro program, whose own prior counts.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them; at least two data.
        num_samples: Draws per datum, at least two; by default as many as take a second.
        seed: Seed of the draws; the caller's random stream is left alone.

    Returns:
        Rates, information, mismatches, variances and verdicts, `(latents,)`, with Monte Carlo
        errors for these very data.

    Raises:
        ValueError: If there are fewer than two data, or data and programs do not fit.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse (Lucas et al., 2019)
        | https://arxiv.org/abs/1911.02469

    Example:
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(2, 3), likelihoods.Gaussian(), latent_dim=2)
        >>> collapse(model, Guide(model, GlobalParameters()), torch.zeros(9, 3)).verdict
        'of 2 latents 2 collapsed'
    """
    with prepared(model, guide, data, seed) as (program, posterior, batch):
        unknown = ""
        try:
            latents = single_latents(program, posterior, batch, num_samples)
        except UnknownDensity as error:
            latents, unknown = _means_alone(program, posterior, batch), str(error)
    variances = active_units(latents.mean, latents.prior_variance.double())[1]
    uses = tuple(_use(latents, variances, latent) for latent in range(len(variances)))
    parts = (latents.rate, latents.information, latents.mismatch)
    return Collapse(*parts, variances, uses, _names(program), unknown)


def _means_alone(program: Program, posterior: Posterior, batch: Batch) -> Latents:
    """What is known of every guide; the rest is nan."""
    variance = _variance_of_draws(program, batch)
    nan = torch.full_like(variance, torch.nan)
    nothing = Estimate(nan, nan)
    return Latents(nothing, nothing, nothing, posterior.mean().double(), variance)


def _use(latents: Latents, variances: Tensor, latent: int) -> Use:
    rate = latents.rate.value[latent]
    value, error = (part[latent] for part in latents.information)
    if variances[latent] > ACTIVE_VARIANCE or value - 2 * error > NEGLIGIBLE:
        return Use.USED
    if rate.isnan():
        return Use.UNDECIDED
    return Use.COLLAPSED if rate <= NEGLIGIBLE else Use.CONSTANT


def _names(program: Program) -> tuple[str, ...]:
    return tuple(
        site.name if site.size == 1 else f"{site.name}[{entry}]"
        for site in program.latent_sites
        for entry in range(site.size)
    )
