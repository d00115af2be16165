r"""Bounds on the evidence of a datum, and estimators of their gradients.

Let :math:`w_k = p_\theta(y, z_k) / q_\phi(z_k \mid y)` be the weight of the draw :math:`z_k =
z(\epsilon_k, \phi)`, and :math:`\tilde w_k = w_k / \sum_j w_j`. The importance-weighted bound is
:math:`L_K = \mathbb{E} \log \frac{1}{K} \sum_k w_k`. Its gradient with respect to :math:`\phi` is

.. math:: \nabla_\phi L_K = \mathbb{E} \sum_k \tilde w_k \left(
    \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}
    - \frac{\partial \log q_\phi(z_k)}{\partial \phi} \right) .

The second term is a score function, which :class:`STL` leaves out. The gradient is then zero for
every draw when :math:`q` is the posterior. For :math:`K = 1` the mean of the score function is
zero. For :math:`K > 1` the weights depend on the draw, the mean is not zero, and leaving the term
out gives a bias. Integration by parts turns the score function into another pathwise term, and the
total is

.. math:: \nabla_\phi L_K = \mathbb{E} \sum_k \tilde w_k^2
    \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi} ,

which is :class:`DReG`. The signal-to-noise ratio of DReG grows as :math:`K^{1/2}`; that of the
plain gradient (:class:`IWAE`) falls as :math:`K^{-1/2}`. The gradient with respect to
:math:`\theta` is the same for IWAE, STL and DReG,
:math:`\sum_k \tilde w_k \nabla_\theta \log p_\theta(y, z_k)`.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from .._types import Batch
from ..guides import Draws
from ..programs import Run
from ..programs.masks import base_of
from .base import Objective, Particles, Schedule


def _log_mean_exp(log_weights: Tensor) -> Tensor:
    """Returns the log of the mean weight of every datum, given log weights `(particles, batch)`."""
    return log_weights.logsumexp(dim=0) - math.log(len(log_weights))


@dataclass(frozen=True)
class IWAE(Objective):
    r"""The importance-weighted bound, per datum, with its plain reparameterized gradient.

    .. math:: \mathrm{ELBO} = L_1 \le L_K = \mathbb{E} \log \frac{1}{K} \sum_{k=1}^{K}
        \frac{p(y, z_k)}{q(z_k \mid y)} \le L_{K+1} \le \log p(y)

    The more particles, the noisier the gradient of the guide: its signal-to-noise ratio falls as
    :math:`K^{-1/2}`. :class:`DReG` has the same bound and a better gradient.

    Arguments:
        num_particles: Draws per datum, :math:`K`; the program sees K rows for each row of the
            batch.

    Raises:
        ValueError: If `num_particles` is less than 1.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016)
        | https://arxiv.org/abs/1509.00519
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
        | https://arxiv.org/abs/1802.04537

    Example:
        >>> import pyro
        >>> import torch
        >>> from pyro_vae import Encoder, Guide, likelihoods, models, nets
        >>> model = models.VAE(nets.MLPDecoder(2, 4), likelihoods.Bernoulli(), latent_dim=2)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(4)))
        >>> progress = IWAE(num_particles=50).progress(model, guide, torch.zeros(3, 4))
        >>> bool(-progress.loss > progress.elbo)
        True
        >>> pyro.clear_param_store()  # removes the parameters that Pyro registered
    """

    num_particles: int = 50

    def bound(self, particles: Particles) -> Tensor:
        """Returns the log of the mean weight of every datum, in nats."""
        return _log_mean_exp(particles.log_weights)


@dataclass(frozen=True)
class STL(IWAE):
    r"""The importance-weighted bound without the score-function term of its gradient.

    .. math:: \sum_k \tilde w_k \frac{\partial \log w_k}{\partial z_k}
        \frac{\partial z_k}{\partial \phi}, \qquad \tilde w_k = \frac{w_k}{\sum_j w_j}, \qquad
        w_k = \frac{p(y, z_k)}{q(z_k \mid y)}

    With one particle the bound is the ELBO. The gradient is then unbiased, and it is zero for every
    draw when the guide is the posterior. With more particles the gradient of the guide is biased:
    use :class:`DReG`. A guide written by hand is run twice per step, and must give the same result
    both times. So it must have no dropout and no auxiliary sites.

    Arguments:
        num_particles: Draws per datum, :math:`K`.

    Raises:
        ValueError: If `num_particles` is less than 1.

    References:
        | Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
          Inference (Roeder et al., 2017)
        | https://arxiv.org/abs/1703.09194

    Example:
        >>> STL()
        STL(num_particles=1)
    """

    num_particles: int = 1

    def particles(self, draws: Draws, batch: Batch) -> tuple[Particles, Run]:
        """Computes log densities; the guide's density has gradients only through the draws."""
        return _by_path(draws, batch, draws.z)


@dataclass(frozen=True)
class DReG(IWAE):
    r"""The importance-weighted bound with its doubly reparameterized gradient.

    .. math:: \nabla_\phi L_K = \mathbb{E} \sum_k \tilde w_k^2
        \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}, \qquad
        \tilde w_k = \frac{w_k}{\sum_j w_j}, \qquad w_k = \frac{p(y, z_k)}{q(z_k \mid y)}

    This gradient is unbiased, and it is zero for every draw when the guide is the posterior. The
    gradient of the model's parameters is that of :class:`IWAE`. A guide written by hand is run
    twice per step, as for :class:`STL`.

    Arguments:
        num_particles: Draws per datum, :math:`K`.

    Raises:
        ValueError: If `num_particles` is less than 1.

    References:
        | Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives
          (Tucker et al., 2019)
        | https://arxiv.org/abs/1810.04152

    Example:
        >>> DReG(num_particles=16)
        DReG(num_particles=16)
    """

    def particles(self, draws: Draws, batch: Batch) -> tuple[Particles, Run]:
        """Computes log densities from a view of the draws.

        The method :meth:`bound` rescales the gradient that passes through this view.
        """
        return _by_path(draws, batch, draws.z.view_as(draws.z))

    def bound(self, particles: Particles) -> Tensor:
        """Returns the log of the mean weight of every datum, in nats.

        Gradients through the draws are multiplied by the squares of the normalized weights.
        """
        shares = particles.log_weights.detach().softmax(dim=0)[..., None]  # (K, B, 1)
        if particles.z.requires_grad:
            particles.z.register_hook(lambda gradient: gradient * shares)
        return super().bound(particles)


def _by_path(draws: Draws, batch: Batch, z: Tensor) -> tuple[Particles, Run]:
    """Computes log densities at `z`; the guide's density has gradients only through `z`."""
    densities, run = draws.program.traced(z, *batch)
    return Particles(*densities, draws.log_guide_path(z), z), run


@dataclass(frozen=True)
class Renyi(Objective):
    r"""The variational Renyi bound of order :math:`\alpha`, per datum.

    .. math:: \mathcal{L}_\alpha = \frac{1}{1 - \alpha} \, \mathbb{E} \log \frac{1}{K}
        \sum_{k=1}^{K} w_k^{1 - \alpha}, \qquad w_k = \frac{p(y, z_k)}{q(z_k \mid y)}

    It is the ELBO for :math:`\alpha = 1` and the importance-weighted bound for :math:`\alpha = 0`.
    The bound decreases as :math:`\alpha` grows; for :math:`\alpha < 0` it can exceed the evidence.

    Arguments:
        alpha: The order.
        num_particles: Draws per datum, :math:`K`. With one draw the order makes no
            difference.

    Raises:
        ValueError: If the order is not finite, or `num_particles` is less than 1.

    References:
        | Rényi Divergence Variational Inference (Li & Turner, 2016)
        | https://arxiv.org/abs/1602.02311

    Example:
        >>> Renyi(alpha=0.5, num_particles=10)
        Renyi(alpha=0.5, num_particles=10)
    """

    alpha: float
    num_particles: int = 50

    def bound(self, particles: Particles) -> Tensor:
        """Returns the log of a power mean of the weights of every datum, in nats."""
        power = 1 - self.alpha
        if power == 0:
            return particles.log_weights.mean(dim=0)
        return _log_mean_exp(power * particles.log_weights) / power


@dataclass(frozen=True)
class BetaELBO(Objective):
    r"""The ELBO with a weight on the KL term.

    .. math:: \mathbb{E}_q \log p(y \mid z) - \beta \, \mathrm{KL}(q(z \mid y) \,\|\, p(z))

    The KL term is estimated from the same draws as the first term. The KL term of global sites has
    the same weight. For :math:`\beta \ge 1` the objective is a lower bound on the evidence.
    Training fits the model to the distribution of the data, and the guide to the posterior, only if
    :math:`\beta = 1`.

    Arguments:
        beta: The weight :math:`\beta`, or a schedule such as :class:`LinearWarmup`. `pv.fit` sets
            the epoch of a schedule; in your own loop use `objective.at(epoch)`.
        num_particles: Draws per datum to average over.

    Raises:
        ValueError: If the weight is negative or not finite, or `num_particles` is less than 1.

    References:
        | beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework
          (Higgins et al., 2017)
        | https://openreview.net/forum?id=Sy2fzU9gl

    Example:
        >>> from pyro_vae.objectives import LinearWarmup
        >>> BetaELBO(LinearWarmup(epochs=10)).at(epoch=5)
        BetaELBO(beta=0.5, num_particles=1)
    """

    beta: float | Schedule
    num_particles: int = 1

    @property
    def kl_weight(self) -> float:
        """The current weight of the KL term.

        Raises:
            ValueError: If the weight follows a schedule, and the epoch is not set.
        """
        if isinstance(self.beta, float | int):
            return float(self.beta)
        raise ValueError(
            f"`beta` follows the schedule {self.beta}, but no epoch is set: use "
            "objective.at(epoch) in your own loop"
        )

    def at(self, epoch: float | int) -> "BetaELBO":
        """Returns the objective with the schedule's weight after `epoch` epochs."""
        if isinstance(self.beta, float | int):
            return self
        now = replace(self, beta=float(self.beta(epoch)))
        now.__dict__["_known"] = self._known  # the next step reuses the model's structure
        return now

    @property
    def warmup(self) -> float:
        """Number of epochs of the schedule."""
        return 0.0 if isinstance(self.beta, float | int) else self.beta.length

    def check(self, num_epochs: int) -> None:
        """Refuses a training run that is too short for the schedule."""
        if not isinstance(self.beta, float | int):
            self.beta.check(num_epochs)

    def bound(self, particles: Particles) -> Tensor:
        """Returns every datum's ELBO, with its KL term weighted, averaged over particles."""
        kl = particles.log_guide - particles.prior
        return (particles.likelihood - self.kl_weight * kl).mean(dim=0)


@dataclass(frozen=True)
class AnalyticELBO(BetaELBO):
    r"""The ELBO with its KL term in closed form, as papers on VAEs write it.

    .. math:: \mathbb{E}_q \log p(y \mid z) - \beta \, \mathrm{KL}(q(z \mid y) \,\|\, p(z))

    This objective is for programs with one real-valued local latent site. The prior of the site can
    depend on covariates. Torch must have a formula for the KL divergence between family and prior,
    as it has for two normals. The KL term and its gradient are exact. This does not always help:
    near the end of training the bound is often nearly tight, and the noise of the two terms then
    nearly cancels in the plain estimate. :func:`pyro_vae.diagnostics.gradient_noise` shows whether
    the total gradient is less noisy.

    Arguments:
        beta: The weight of the KL term, or a schedule of it, as for :class:`BetaELBO`.
        num_particles: Draws per datum for the first term.

    Raises:
        ValueError: If the weight is negative or not finite, or `num_particles` is less than 1; when
            the objective is used, if the program has several latent sites, or a site that is not
            real-valued.
        TypeError: When the objective is used, if torch has no formula for the divergence.

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
        >>> pyro.clear_param_store()  # removes the parameters that Pyro registered
    """

    beta: float | Schedule = 1.0

    def particles(self, draws: Draws, batch: Batch) -> tuple[Particles, Run]:
        """Computes log densities, with the exact KL term in place of an estimate from the draws."""
        (densities, run), count = draws.program.traced(draws.z, *batch), len(draws.z)
        kl = _divergence(_posterior(draws, count), _prior(draws, run))
        kl = kl.view(count, -1)
        return Particles(-kl, densities.likelihood, torch.zeros_like(kl), draws.z), run


def _posterior(draws: Draws, count: int) -> Distribution:
    """Returns q for every row of a batch that is repeated `count` times."""
    distribution = draws.posterior.distribution(count)
    if distribution is None:
        raise TypeError(
            "the guide of AnalyticELBO must draw all latents of a datum at one site, without "
            "masks: use Trace_ELBO() for this guide"
        )
    return distribution


def _prior(draws: Draws, run: Run) -> Distribution:
    """Returns the prior of every row's latents in a run of the model."""
    sites = draws.program.latent_sites
    if len(sites) > 1 or draws.program.structure.enumerated:
        names = [site.name for site in sites] + list(draws.program.structure.enumerated)
        raise ValueError(
            f"the model of AnalyticELBO must have one local latent site; got the sites {names}, "
            "whose priors may depend on each other's draws: use Trace_ELBO()"
        )
    prior = run[sites[0].name].distribution
    if not sites[0].is_real:
        raise ValueError(
            f"the latents of AnalyticELBO must be real numbers; got site '{sites[0].name}' with "
            f"the support {sites[0].support}: use Trace_ELBO()"
        )
    return prior


def _divergence(q: Distribution, prior: Distribution) -> Tensor:
    """Returns KL(q || prior) of every row, in nats, from torch's formulas."""
    if isinstance(prior, Normal) and q.event_shape:  # a scalar site becomes a vector of length one
        prior = Independent(Normal(prior.loc[..., None], prior.scale[..., None]), 1)
    for one, other in ((q, prior), (q, _multivariate(prior)), (_multivariate(q), prior)):
        try:
            return kl_divergence(one, other)
        except NotImplementedError:
            continue
    raise TypeError(
        f"the KL divergence of {_name(q)} from {_name(prior)} has no closed form in torch: use "
        "Trace_ELBO(), or a normal family and a normal prior"
    )


def _multivariate(normal: Distribution) -> Distribution:
    """Turns independent normals into a multivariate normal; keeps any other distribution."""
    if isinstance(normal, Independent) and isinstance(normal.base_dist, Normal):
        loc, scale = normal.base_dist.loc, normal.base_dist.scale
        return MultivariateNormal(loc, scale_tril=scale.diag_embed())
    return normal


def _name(distribution: Distribution) -> str:
    return type(base_of(distribution)).__name__
