"""A ladder of latent layers."""

from collections.abc import Sequence

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Distribution
from ..likelihoods import Likelihood
from ..registry import registered
from .base import Decoded, check_latents
from .conditionals import as_normal, latents_of
from .priors import Prior, StandardNormal


@registered(latent_dim="top_dim", prior="latent_prior")
class HierarchicalVAE(Decoded):
    r"""A variational autoencoder with a ladder of latent layers, a Pyro program.

    .. math:: z_L \sim p(z_L), \qquad
        z_l \mid z_{l+1} \sim \mathcal{N}(\mu_l(z_{l+1}), \sigma_l(z_{l+1})^2), \qquad
        y \sim p_\theta(y \mid z_1)

    The sites are `z_L`, ..., `z_1` in this order, and flat vectors hold them so: the top first.

    Arguments:
        decoder: A module from `z_1`, `(batch, latents)`, to what the likelihood needs a datum.
        likelihood: From the decoder's output to p(y | z_1).
        latent_dim: Entries of the top layer, `z_L`.
        layers: From the top down, what gives `z_{L-1}`, ..., `z_1` from the layer above: a
            :class:`NormalGiven`, or a net that gives two numbers for each latent, its mean and
            what becomes its standard deviation.
        prior: The prior of the top layer; standard normal by default.

    Raises:
        ValueError: If there is no layer below the top, or one cannot take the layer above; when
            called, if a datum does not have the shape that the decoder gives.

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
        check_latents(latent_dim)
        if not layers:
            raise ValueError("a ladder has at least one layer below the top, got none; use a VAE")
        self.layers = nn.ModuleList(map(as_normal, layers))
        self.latent_prior = StandardNormal() if prior is None else prior
        self.top_dim = latent_dim
        self.sizes = (latent_dim, *self._sizes_below(latent_dim))
        self.latent_dim = sum(self.sizes)
        self._check_decoder(self.sizes[-1])
        self.latent_prior.setup(self.zero.expand(latent_dim))

    def _sizes_below(self, latents: int) -> list[int]:
        sizes: list[int] = []
        for layer in self.layers:
            latents = latents_of(layer, self.zero.new_zeros(2, latents))  # type: ignore[arg-type]
            sizes.append(latents)
        return sizes

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the latent sites, from the top down."""
        return tuple(f"z_{level}" for level in range(len(self.sizes), 0, -1))

    def split(self, z: Float[Tensor, "*draws latents"]) -> dict[str, Tensor]:
        """The layers in flat latents, by the name of their site."""
        return dict(zip(self.names, z.split(self.sizes, dim=-1), strict=True))

    def prior(self) -> Distribution:
        """p(z_L), over a vector."""
        return self.latent_prior(self.zero.expand(self.sizes[0]))

    def latents(self, rows: int, *given: Tensor) -> Float[Tensor, "rows latents"]:
        """Samples all layers from the top down."""
        top, *below = self.names
        z: list[Tensor] = [pyro.sample(top, self.prior())]
        for name, layer in zip(below, self.layers, strict=True):
            z.append(pyro.sample(name, layer(z[-1])))
        return torch.cat(z, dim=-1)

    def conditional(self, z: Float[Tensor, "rows latents"], *given: Tensor) -> Distribution:
        """p(y | z_1) of every row."""
        return super().conditional(z[..., -self.sizes[-1] :], *given)

    def expectation(
        self, z: Float[Tensor, "rows latents"], *given: Tensor
    ) -> Float[Tensor, "rows *datum"]:
        """Mean of p(y | z_1) of every row."""
        return super().expectation(z[..., -self.sizes[-1] :], *given)
