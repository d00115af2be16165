"""A variational autoencoder with clusters."""

import math

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Estimate
from ..likelihoods import Likelihood
from ..registry import registered
from .base import Decoded, check_latents
from .priors import MixtureOfNormals


@registered(spread="mixture.spread")
class MixtureVAE(Decoded):
    r"""A variational autoencoder whose data come in clusters, a Pyro program.

    .. math:: c_n \sim \mathrm{Categorical}(\pi), \qquad
        z_n \mid c_n \sim \mathcal{N}(\mu_{c_n}, \operatorname{diag} \sigma_{c_n}^2), \qquad
        y_n \sim p_\theta(y \mid z_n)

    The cluster is a discrete latent site `c`, which the library sums out exactly; guides hold z
    alone. So p(y, z) is that of a :class:`VAE` with the prior :class:`MixtureOfNormals`, and the
    cluster of a datum comes from Bayes' rule (:meth:`cluster_probabilities`, :meth:`clusters`).
    Clusters have no order, and the likelihood does not know them: look at what they hold.

    Arguments:
        decoder: A module from `(batch, latents)` to what the likelihood needs a datum.
        likelihood: From the decoder's output to p(y | z).
        latent_dim: Entries of z.
        components: Number of clusters.
        spread: Standard deviation with which the clusters' means are drawn at first.

    Raises:
        ValueError: If there is no cluster, or the decoder cannot take the latents; when called,
            if a datum does not have the shape that the decoder gives.

    References:
        | Variational Deep Embedding: An Unsupervised and Generative Approach to Clustering
          (Jiang et al., 2017)
        | https://arxiv.org/abs/1611.05148

    Example:
        >>> from pyro_vae import likelihoods
        >>> model = MixtureVAE(nn.Linear(2, 3), likelihoods.Bernoulli(), latent_dim=2, components=4)
        >>> model.cluster_probabilities(torch.zeros(10, 5, 2)).shape
        torch.Size([10, 5, 4])
    """

    def __init__(
        self,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        components: int,
        *,
        spread: float = 1.0,
    ) -> None:
        super().__init__(decoder, likelihood)
        check_latents(latent_dim)
        self.latent_dim, self.components = latent_dim, components
        self.mixture = MixtureOfNormals(components, latent_dim, spread=spread)
        self._check_decoder(latent_dim)
        self.mixture.setup(self.zero.expand(latent_dim))

    def latents(self, rows: int, *given: Tensor) -> Float[Tensor, "rows latents"]:
        """Samples the cluster and z."""
        mixture = self.mixture
        c = pyro.sample("c", dist.Categorical(logits=mixture.log_shares()))
        normal = dist.Normal(mixture.loc[c], mixture.log_scale[c].exp()).to_event(1)
        z: Tensor = pyro.sample("z", normal)
        return z

    @torch.no_grad()
    def cluster_probabilities(
        self, z: Float[Tensor, "*draws latents"]
    ) -> Float[Tensor, "*draws components"]:
        """p(c | z), exact: given z the data say nothing more of the cluster."""
        log_joint = self.mixture.normals().log_prob(z.unsqueeze(-2)) + self.mixture.log_shares()
        return log_joint.softmax(dim=-1)

    def clusters(
        self,
        draws: Float[Tensor, "draws batch latents"],
        log_weights: Float[Tensor, "draws batch"] | None = None,
    ) -> Estimate:
        r"""p(c | y) of every datum, from draws of z.

        .. math:: p(c \mid y_n) = \mathbb{E}_{p(z \mid y_n)} \, p(c \mid z)

        Arguments:
            draws: Draws from a guide, `guide.sample(y, num_samples)`. Without weights the answer
                is that of the guide in place of the posterior.
            log_weights: Their log importance weights, which make up for the difference.

        Returns:
            Probabilities and standard errors, each `(batch, components)`; the errors are of the
            draws alone, and those with weights hold as far as a weighted average's do.

        Raises:
            ValueError: If there are fewer than two draws.
        """
        if len(draws) < 2:
            raise ValueError(f"a standard error needs at least 2 draws, got {len(draws)}")
        probabilities = self.cluster_probabilities(draws)
        if log_weights is None:
            error = probabilities.std(dim=0) / math.sqrt(len(draws))
            return Estimate(probabilities.mean(dim=0), error)
        shares = log_weights.softmax(dim=0).to(probabilities).unsqueeze(-1)
        value = (shares * probabilities).sum(dim=0)
        spread = (shares.square() * (probabilities - value).square()).sum(dim=0)
        return Estimate(value, spread.sqrt())
