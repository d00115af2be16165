"""Variational autoencoders: with one latent vector, with clusters, and with layers of latents."""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Distribution, Estimate
from ..likelihoods import Likelihood
from ..registry import registered
from ..stats.checks import weighted_mean
from .base import Decoded
from .conditional import as_normal, given_latents, latents_of
from .priors import MixtureOfNormals, Prior, StandardNormal


@registered(prior="latent_prior")
class VAE(Decoded):
    r"""The generative half of a variational autoencoder, a Pyro program.

    .. math:: z_n \sim p(z), \qquad y_n \sim p_\theta(y \mid z_n)

    `model(y)` runs the program: one plate `data`, one latent site `z`, one observed site `y`.
    Handlers, `Predictive`, `SVI` and guides written by hand work as with any other program.

    Arguments:
        decoder: A module that maps `(batch, latents)` to the parameters of the likelihood for each
            datum.
        likelihood: Turns the decoder's output into p(y | z).
        latent_dim: Number of entries of z.
        prior: The prior of z; standard normal by default.

    A nan in y stands for a missing entry and drops out of the density. Further tensors of the
    batch, such as an exposure, are passed to the likelihood.

    Raises:
        ValueError: If the decoder cannot take `latent_dim` latents; when called, if a datum does
            not have the shape that the decoder gives.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods
        >>> model = VAE(nn.Linear(2, 3), likelihoods.Bernoulli(), latent_dim=2)
        >>> model.sample(4).shape, model.decode(torch.zeros(10, 4, 2)).shape
        (torch.Size([4, 3]), torch.Size([10, 4, 3]))
    """

    def __init__(
        self,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(decoder, likelihood)
        self.latent_dim = latent_dim
        self.latent_prior = StandardNormal() if prior is None else prior
        self._check_decoder(latent_dim)
        self.latent_prior.setup(self.zero.expand(latent_dim))

    def prior(self) -> Distribution:
        """Returns p(z); the event is a whole vector."""
        return self.latent_prior(self.zero.expand(self.latent_dim))

    def latents(self, rows: int, *given: Tensor) -> Float[Tensor, "*particles rows latents"]:
        """Samples the site z, and returns its values."""
        return pyro.sample("z", self.prior())


@registered(spread="mixture.spread")
class MixtureVAE(Decoded):
    r"""A variational autoencoder whose data come in clusters, a Pyro program.

    .. math:: c_n \sim \mathrm{Categorical}(\pi), \qquad
        z_n \mid c_n \sim \mathcal{N}(\mu_{c_n}, \operatorname{diag} \sigma_{c_n}^2), \qquad
        y_n \sim p_\theta(y \mid z_n)

    The cluster is a discrete latent site `c`. It is summed out exactly, and guides model only z.
    So p(y, z) is the same as for a :class:`VAE` with the prior :class:`MixtureOfNormals`. Bayes'
    rule gives the probabilities of the clusters (:meth:`cluster_probabilities`, :meth:`clusters`).
    Clusters have no order and no given meaning: look at the data in each cluster.

    Arguments:
        decoder: A module that maps `(batch, latents)` to the parameters of the likelihood for each
            datum.
        likelihood: Turns the decoder's output into p(y | z).
        latent_dim: Number of entries of z.
        components: Number of clusters.
        spread: Standard deviation of the clusters' initial means.

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
        self.latent_dim, self.components = latent_dim, components
        self.mixture = MixtureOfNormals(components, latent_dim, spread=spread)
        self._check_decoder(latent_dim)
        self.mixture.setup(self.zero.expand(latent_dim))

    def latents(self, rows: int, *given: Tensor) -> Float[Tensor, "*particles rows latents"]:
        """Samples the cluster and z of every datum, and returns the values of z."""
        mixture = self.mixture
        c = pyro.sample("c", dist.Categorical(logits=mixture.log_shares()))
        normal = dist.Normal(mixture.loc[c], mixture.log_scale[c].exp()).to_event(1)
        return pyro.sample("z", normal)

    @torch.no_grad()
    def cluster_probabilities(
        self, z: Float[Tensor, "*draws latents"]
    ) -> Float[Tensor, "*draws components"]:
        """Returns the exact p(c | z); given z, the data carry no information about the cluster."""
        log_joint = self.mixture.normals().log_prob(z.unsqueeze(-2)) + self.mixture.log_shares()
        return log_joint.softmax(dim=-1)

    def clusters(
        self,
        draws: Float[Tensor, "draws batch latents"],
        log_weights: Float[Tensor, "draws batch"] | None = None,
    ) -> Estimate:
        r"""Estimates p(c | y) of every datum from draws of z.

        .. math:: p(c \mid y_n) = \mathbb{E}_{p(z \mid y_n)} \, p(c \mid z)

        Arguments:
            draws: Draws from a guide, `guide.sample(y, num_samples)`. Without weights the guide
                stands in for the posterior.
            log_weights: Log importance weights of the draws, `(draws, batch)`, to correct for the
                difference between guide and posterior.

        Returns:
            Probabilities and Monte Carlo standard errors, each `(batch, components)`. With weights,
            the errors are unreliable if a few weights dominate.

        Raises:
            ValueError: If there are fewer than two draws.
        """
        if len(draws) < 2:
            raise ValueError(
                f"there must be at least 2 draws for a standard error; got {len(draws)}: draw "
                "them with guide.sample(y, num_samples)"
            )
        probabilities = self.cluster_probabilities(draws)
        if log_weights is None:
            error = probabilities.std(dim=0) / math.sqrt(len(draws))
            return Estimate(probabilities.mean(dim=0), error)
        shares = log_weights.softmax(dim=0).to(probabilities).unsqueeze(-1)
        return weighted_mean(probabilities, shares)


@registered(latent_dim="top_dim", prior="latent_prior")
class HierarchicalVAE(Decoded):
    r"""A variational autoencoder with several layers of latents, a Pyro program.

    .. math:: z_L \sim p(z_L), \qquad
        z_l \mid z_{l+1} \sim \mathcal{N}(\mu_l(z_{l+1}), \sigma_l(z_{l+1})^2), \qquad
        y \sim p_\theta(y \mid z_1)

    The sites, and the entries of flat vectors, are in the order `z_L`, ..., `z_1`: the top layer
    is first.

    Arguments:
        decoder: A module that maps `z_1`, `(batch, latents)`, to the parameters of the likelihood
            for each datum.
        likelihood: Turns the decoder's output into p(y | z_1).
        latent_dim: Number of entries of the top layer, `z_L`.
        layers: From the top down, the distributions of `z_{L-1}`, ..., `z_1` given the layer above:
            each a :class:`NormalGiven`, or a network that gives all means and then all
            unconstrained standard deviations, `2 * latents` numbers.
        prior: The prior of the top layer; standard normal by default.

    Raises:
        ValueError: If there is no layer below the top, or a layer cannot take the layer above as
            its input; when called, if a datum does not have the shape that the decoder gives.

    References:
        | Stochastic Backpropagation and Approximate Inference in Deep Generative Models
          (Rezende, Mohamed & Wierstra, 2014)
        | https://arxiv.org/abs/1401.4082
        | Ladder Variational Autoencoders (Sonderby et al., 2016)
        | https://arxiv.org/abs/1602.02282

    Example:
        >>> from pyro_vae import likelihoods
        >>> from pyro_vae.models import NormalGiven
        >>> layers = [NormalGiven(nn.Linear(1, 2), sigma=0.5)]
        >>> model = HierarchicalVAE(nn.Linear(2, 3), likelihoods.Gaussian(), 1, layers)
        >>> {name: part.shape for name, part in model.split(torch.zeros(4, 3)).items()}
        {'z_2': torch.Size([4, 1]), 'z_1': torch.Size([4, 2])}
    """

    def __init__(
        self,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        layers: Sequence[nn.Module],
        prior: Prior | None = None,
    ) -> None:
        super().__init__(decoder, likelihood)
        if not layers:
            raise ValueError(
                "a hierarchy must have at least one layer below the top; got none: for one layer "
                "of latents use VAE"
            )
        normals, sizes = [as_normal(layer) for layer in layers], [latent_dim]
        for normal in normals:
            sizes.append(latents_of(normal, self.zero.new_zeros(2, sizes[-1])))
        self.layers, self.sizes = nn.ModuleList(normals), tuple(sizes)
        self.latent_prior = StandardNormal() if prior is None else prior
        self.top_dim, self.latent_dim = latent_dim, sum(sizes)
        self._check_decoder(sizes[-1])
        self.latent_prior.setup(self.zero.expand(latent_dim))

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the latent sites, from the top layer down."""
        return tuple(f"z_{level}" for level in range(len(self.sizes), 0, -1))

    def split(self, z: Float[Tensor, "*draws latents"]) -> dict[str, Tensor]:
        """Splits flat latents into the layers, keyed by the name of each layer's site."""
        return dict(zip(self.names, z.split(self.sizes, dim=-1), strict=True))

    def prior(self) -> Distribution:
        """Returns p(z_L); the event is a whole vector."""
        return self.latent_prior(self.zero.expand(self.sizes[0]))

    def latents(self, rows: int, *given: Tensor) -> Float[Tensor, "*particles rows latents"]:
        """Samples all layers from the top down, and returns them as flat vectors."""
        top, *below = self.names
        z: list[Tensor] = [pyro.sample(top, self.prior())]
        for name, layer in zip(below, self.layers, strict=True):
            z.append(pyro.sample(name, given_latents(layer, z[-1])))
        return torch.cat(z, dim=-1)

    def _decoded(self, z: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.decoder(z[..., -self.sizes[-1] :]), given  # z_1, the last layer
