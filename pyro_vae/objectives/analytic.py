r"""The ELBO with its KL term in closed form.

.. math:: \mathbb{E}_{q} \log p(y \mid z) - \mathrm{KL}(q(z \mid y) \,\|\, p(z))

Both terms of the ELBO are means over draws of q. If q and the prior are normal, the second one is
known and its noise can be avoided. That does not always help: towards the end of training the noise
of the two terms nearly cancels, and the plain estimate of a nearly tight bound hardly varies.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from .._types import Batch
from ..guides import Draws, FamilyPosterior, Posterior, ProgramPosterior
from ..programs import Run, repeat_rows
from .base import Particles, Schedule
from .bounds import BetaELBO


@dataclass(frozen=True)
class AnalyticELBO(BetaELBO):
    r"""The ELBO with its KL term in closed form, as papers on VAEs write it.

    .. math:: \mathbb{E}_q \log p(y \mid z) - \beta \, \mathrm{KL}(q(z \mid y) \,\|\, p(z))

    For a program with one local latent site, on the real numbers, whose prior may depend on
    covariates, and a family and a prior whose KL divergence torch knows, such as two normals. The
    gradient of the KL term is exact; whether the gradient of the whole is less noisy is shown by
    :func:`pyro_vae.diagnostics.gradient_noise`.

    Arguments:
        beta: The weight of the KL term, or a schedule of it, as for :class:`BetaELBO`.
        num_particles: Draws per datum for the first term.

    Raises:
        ValueError: If the weight is negative or not finite, there is no particle, or the program
            has several latent sites, or one that is not real-valued.
        TypeError: When it is used, if the divergence has no known closed form.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), appendix B
        | https://arxiv.org/abs/1312.6114

    Example:
        >>> import pyro
        >>> from pyro_vae import Encoder, Guide, likelihoods, models, nets
        >>> model = models.VAE(nets.MLPDecoder(2, 4), likelihoods.Bernoulli(), latent_dim=2)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(4)))
        >>> bool(AnalyticELBO().loss(model, guide, torch.zeros(3, 4)) > 0)
        True
        >>> pyro.clear_param_store()  # where Pyro's own settings have modules register
    """

    beta: float | Schedule = 1.0

    def particles(self, draws: Draws, batch: Batch) -> tuple[Particles, Run]:
        """Computes the weights of the draws, with the exact KL term in place of the sampled one."""
        (densities, run), count = draws.program.traced(draws.z, *batch), len(draws.z)
        kl = _divergence(_posterior(draws, batch, count), _prior(draws, run))
        kl = kl.view(count, -1)
        return Particles(-kl, densities.likelihood, torch.zeros_like(kl), draws.z), run


def _posterior(draws: Draws, batch: Batch, count: int) -> Any:
    """The guide's distribution for every row of the longer batch."""
    posterior: Posterior | None = draws.posterior
    if isinstance(posterior, FamilyPosterior):
        return posterior.family(posterior.parameters.repeat(count, 1))
    if isinstance(posterior, ProgramPosterior):
        rows = repeat_rows(batch, count)
        only = ProgramPosterior(draws.program, posterior.guide, rows).only
        if only is not None:
            return only.distribution
    raise TypeError(
        "AnalyticELBO needs a guide with a known distribution of each datum's latents; got "
        f"{type(posterior).__name__} over several sites: use Trace_ELBO()"
    )


def _prior(draws: Draws, run: Run) -> Any:
    """The prior of every row of the longer batch."""
    sites = draws.program.latent_sites
    if len(sites) > 1 or draws.program.structure.enumerated:
        names = [site.name for site in sites] + list(draws.program.structure.enumerated)
        raise ValueError(
            f"AnalyticELBO is for programs with one local latent site, got {names}, whose priors "
            "may depend on each other's draws: use Trace_ELBO()"
        )
    prior: Any = run[sites[0].name].distribution
    if not sites[0].is_real:
        raise ValueError(
            f"AnalyticELBO is for latents on the real numbers; site '{sites[0].name}' is on "
            f"{sites[0].support}: use Trace_ELBO()"
        )
    return prior


def _divergence(q: Any, prior: Any) -> Tensor:
    """KL(q || prior) of every row, with torch's formulas."""
    if isinstance(prior, Normal) and q.event_shape:  # a site of one number is a vector of one
        prior = Independent(Normal(prior.loc[..., None], prior.scale[..., None]), 1)
    for one, other in ((q, prior), (q, _multivariate(prior)), (_multivariate(q), prior)):
        try:
            return kl_divergence(one, other)
        except NotImplementedError:
            continue
    raise TypeError(
        f"the divergence of {_name(q)} from {_name(prior)} has no closed form in torch: use "
        "Trace_ELBO(), or a normal family and prior"
    )


def _multivariate(normal: Any) -> Any:
    """Independent normals as one multivariate normal; anything else unchanged."""
    if isinstance(normal, Independent) and isinstance(normal.base_dist, Normal):
        loc, scale = normal.base_dist.loc, normal.base_dist.scale
        return MultivariateNormal(loc, scale_tril=scale.diag_embed())
    return normal


def _name(distribution: Any) -> str:
    inner = getattr(distribution, "base_dist", distribution)
    return type(inner).__name__
