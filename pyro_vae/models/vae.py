"""The generative half of a variational autoencoder."""

import pyro
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Distribution
from ..likelihoods import Likelihood
from ..registry import registered
from .base import Decoded, check_latents
from .priors import Prior, StandardNormal


@registered(prior="latent_prior")
class VAE(Decoded):
    r"""The generative half of a variational autoencoder, a Pyro program.

    .. math:: z_n \sim p(z), \qquad y_n \sim p_\theta(y \mid z_n)

    `model(y)` runs the program: one plate `data`, one latent site `z`, one observed site `y`.
    Handlers, `Predictive`, `SVI` and guides written by hand work on it as on any other.

    Arguments:
        decoder: A module from `(batch, latents)` to what the likelihood needs a datum.
        likelihood: From the decoder's output to p(y | z).
        latent_dim: Entries of z.
        prior: The prior of z; standard normal by default.

    An entry of y that is nan was not observed, and leaves the density. Further tensors of the
    batch, such as an exposure, are handed on to the likelihood.

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
        check_latents(latent_dim)
        self.latent_dim = latent_dim
        self.latent_prior = StandardNormal() if prior is None else prior
        self._check_decoder(latent_dim)
        self.latent_prior.setup(self.zero.expand(latent_dim))

    def prior(self) -> Distribution:
        """p(z), over a vector."""
        return self.latent_prior(self.zero.expand(self.latent_dim))

    def latents(self, rows: int, *given: Tensor) -> Float[Tensor, "rows latents"]:
        """Samples z."""
        z: Tensor = pyro.sample("z", self.prior())
        return z
