r"""Which latents a guide uses.

A latent is used if it carries information about the data. Every latent costs its rate, whether it
is used or not. The rate of a single latent :math:`z_d` splits like that of all latents:

.. math:: \frac{1}{N} \sum_n \mathrm{KL}(q(z_d \mid y_n) \,\|\, p(z_d))
    = I_q(n; z_d) + \mathrm{KL}(q(z_d) \,\|\, p(z_d))

A latent whose rate is zero has collapsed: for every datum, its posterior is the prior. A latent
with a positive rate but no information has the same posterior for all data, and this posterior is
not the prior: the rate is wasted.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence.weights import conditioned
from ..formatting import count_of, plus_minus
from ..guides import Posterior
from ..programs import Prior, Program
from ..programs.pieces import take_rows
from ..results import Result
from .aggregate import NEGLIGIBLE, Latents, UnknownDensity, prior_normals, single_latents
from .calibration import latent_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACTIVE_VARIANCE = 0.01  # threshold of Burda et al., between two clear groups of variances
_PRIOR_DRAWS = 1000  # used if the prior is not normal; variances have a standard error of 5%


def active_units(
    means: Float[Tensor, "data latents"], prior_variance: Float[Tensor, " latents"] | float = 1.0
) -> tuple[int, Tensor]:
    r"""Counts latents whose posterior mean has a variance above 1% of the prior variance.

    .. math:: A_i = \frac{\mathrm{Var}_n \, \mathbb{E}_{q(z \mid y_n)}[z_i]}
        {\mathrm{Var}_{p(z)}[z_i]} > 0.01

    Arguments:
        means: Posterior means, `(data, latents)`, as from `guide.mean(y)`.
        prior_variance: Variance of each latent under the prior, from :func:`prior_variance`; 1
            for a prior N(0, I).

    Returns:
        The number of active latents, and the variance ratios :math:`A_i`, `(latents,)`.

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
        raise ValueError(f"`means` must have at least 2 rows, one per datum; got {len(means)}")
    variances = means.double().var(dim=0) / prior_variance
    return int((variances > ACTIVE_VARIANCE).sum()), variances


def prior_variance(
    model: ProgramLike, guide: ProgramLike, data: Data, *, seed: int = 0
) -> Float[Tensor, " latents"]:
    r"""Returns each latent's variance under the model's prior, :math:`\mathrm{Var}_{p(z)}[z_i]`.

    Arguments:
        model: The Pyro program.
        guide: A guide of the model, which gives the values of global sites.
        data: The batch tensor, or a tuple of tensors; the prior is that of the first datum.
        seed: Seed of the draws, for priors that are not normal.

    Returns:
        `(latents,)`, in squared units of the unconstrained latents. Exact for a normal prior; for
        others, estimated from 1,000 draws with a standard error of about 5%.

    Raises:
        ValueError: If data, model and guide do not fit together.

    Example:
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(2, 3), likelihoods.Gaussian(), latent_dim=2)
        >>> prior_variance(model, Guide(model, GlobalParameters()), torch.zeros(1, 3))
        tensor([1., 1.], dtype=torch.float64)
    """
    with conditioned(model, guide, data, seed) as (program, _, batch):
        return prior_variance_of(program, batch)


def prior_variance_of(program: Program, batch: Batch) -> Float[Tensor, " latents"]:
    """Returns each latent's variance under the prior of the first datum."""
    try:
        return prior_normals(program, batch).variance[0]
    except UnknownDensity:
        row = take_rows(batch, slice(1))
        return Prior(program, row).sample(_PRIOR_DRAWS)[:, 0].double().var(dim=0)


class Use(Enum):
    """Verdict on a latent: used, collapsed, constant, or undecided."""

    USED = "used"
    COLLAPSED = "collapsed"
    CONSTANT = "constant but off the prior"
    UNDECIDED = "undecided (constant mean, unknown density)"


@dataclass(frozen=True, repr=False)
class Collapse(Result):
    """How a guide uses each latent.

    The rate is the sum of information and mismatch. All three have the shape `(latents,)`.

    Arguments:
        rate: Divergence of the posterior from the prior, averaged over the data, in nats; exact.
        information: Information that the latent by itself has about the identity of the datum, in
            nats.
        mismatch: Divergence of the latent's aggregated posterior from its prior, in nats.
        variances: Variance of the posterior mean over the data, in units of the prior's variance.
        uses: The verdict on each latent.
        names: Name of each latent: its site and entry.
        unknown: The reason why rate, information and mismatch are nan; empty if they are known.
    """

    rate: Estimate
    information: Estimate
    mismatch: Estimate
    variances: Float[Tensor, " latents"]
    uses: tuple[Use, ...]
    names: tuple[str, ...]
    unknown: str = ""

    def plot(self) -> "Axes":
        """Plots rate, information and use of each latent; needs matplotlib."""
        from ..plots import plot_collapse

        uses = [use.value for use in self.uses]
        return plot_collapse(self.rate.value, self.information, uses, names=self.names)

    @property
    def active(self) -> int:
        """Number of active units (Burda et al.): latents with `variances` above 0.01."""
        return int((self.variances > ACTIVE_VARIANCE).sum())

    @property
    def verdict(self) -> str:
        """Says how many latents are used, collapsed, constant or undecided."""
        counts = [(self.uses.count(use), use.value) for use in Use]
        kinds = [f"{count} {words}" for count, words in counts if count]
        return f"of {count_of(len(self.uses), 'latent')}: {', '.join(kinds)}"

    def summary(self) -> str:
        """Returns one line of text per latent, in descending order of rate, then the verdict."""
        order = self.rate.value.nan_to_num().argsort(descending=True).tolist()
        width = max(map(len, self.names))
        lines = [f"{'':{width}}     rate  information       off the prior  variance of mean"]
        lines += [f"{self.names[latent]:{width}} {self._line(latent)}" for latent in order]
        return "\n".join([*lines, self.verdict, *([self.unknown] if self.unknown else [])])

    def _line(self, latent: int) -> str:
        rate, information, variance = (
            float(part[latent])
            for part in (self.rate.value, self.information.value, self.variances)
        )
        mismatch = plus_minus(self.mismatch.value[latent], self.mismatch.error[latent], ".3f")
        return (
            f"{rate:8.3f}     {information:8.3f}  {mismatch:>16}"
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
    r"""Says whether each latent is used, collapsed, or neither.

    A latent is active if its posterior mean varies over the data with a variance above 1% of the
    prior variance. It is used if it is active or has more than 0.01 nats of information (even if
    only the spread of its posterior varies). A latent that is not used has collapsed if its rate is
    at most 0.01 nats. A latent that is neither used nor collapsed has nearly the same posterior for
    all data, and this posterior is not the prior.

    Latents are considered one at a time: two latents may carry the same information, or together
    carry information that neither carries by itself. A collapsed latent need not be a failure of
    the guide. Even under exact inference a latent collapses if the data do not need it. In
    probabilistic PCA this happens if the eigenvalue of the latent is at most the variance of the
    noise.

    Rates are known if posteriors and prior are normal, whichever guide and model they come from.
    Otherwise only the variances of the posterior means are given.

    Arguments:
        model: The Pyro program, with its prior.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of tensors; at least two data.
        num_samples: Draws per datum, at least two; by default chosen to take about a second.
        seed: Seed of the draws; the caller's random stream is left alone.

    Returns:
        Rates, information, mismatches, variances and verdicts, `(latents,)`, with Monte Carlo
        errors for these data.

    Raises:
        ValueError: If there are fewer than two data, or data, model and guide do not fit together.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse (Lucas et al., 2019)
        | https://arxiv.org/abs/1911.02469

    Example:
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(2, 3), likelihoods.Gaussian(), latent_dim=2)
        >>> collapse(model, Guide(model, GlobalParameters()), torch.zeros(9, 3)).verdict
        'of 2 latents: 2 collapsed'
    """
    with conditioned(model, guide, data, seed) as (program, posterior, batch):
        if len(posterior) < 2:
            raise ValueError(f"`data` must have at least 2 rows; got {len(posterior)}")
        unknown = ""
        try:
            latents = single_latents(program, posterior, batch, num_samples)
        except UnknownDensity as error:
            latents, unknown = _without_rates(program, posterior, batch), str(error)
    variances = active_units(latents.mean, latents.prior_variance.double())[1]
    uses = tuple(_use(latents, variances, latent) for latent in range(len(variances)))
    parts = (latents.rate, latents.information, latents.mismatch)
    return Collapse(*parts, variances, uses, tuple(latent_names(program)), unknown)


def _without_rates(program: Program, posterior: Posterior, batch: Batch) -> Latents:
    """Computes posterior means and prior variances; rate, information and mismatch are nan."""
    variance = prior_variance_of(program, batch)
    nan = torch.full_like(variance, torch.nan)
    unknown = Estimate(nan, nan)
    return Latents(unknown, unknown, unknown, posterior.mean().double(), variance)


def _use(latents: Latents, variances: Tensor, latent: int) -> Use:
    """Returns the verdict on the latent at this position.

    `variances` are the variances of the posterior means, relative to the prior variances.
    """
    rate = latents.rate.value[latent]
    value, error = (part[latent] for part in latents.information)
    if variances[latent] > ACTIVE_VARIANCE or value - 2 * error > NEGLIGIBLE:
        return Use.USED
    if rate.isnan():
        return Use.UNDECIDED
    return Use.COLLAPSED if rate <= NEGLIGIBLE else Use.CONSTANT
