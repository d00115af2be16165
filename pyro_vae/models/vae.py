"""The generative half of a variational autoencoder."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._types import Distribution
from ..likelihoods import Likelihood
from ..programs import NamedModule, evaluating, forked_seed
from .priors import Prior, StandardNormal

_ROWS_AT_ONCE = 4096  # rows a decoder sees at once; only memory depends on it


class VAE(NamedModule):
    r"""The generative half of a variational autoencoder, a Pyro program.

    .. math:: z_n \sim \mathcal{N}(0, I), \qquad y_n \sim p_\theta(y \mid z_n)

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
        >>> from pyro_vae import likelihoods
        >>> model = VAE(nn.Linear(2, 3), likelihoods.Bernoulli(), latent_dim=2)
        >>> model.sample(4).shape, model.decode(torch.zeros(10, 4, 2)).shape
        (torch.Size([4, 3]), torch.Size([10, 4, 3]))
    """

    zero: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        prior: Prior | None = None,
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim is the number of latents, got {latent_dim}")
        self.decoder, self.likelihood, self.latent_dim = decoder, likelihood, latent_dim
        self.latent_prior = StandardNormal() if prior is None else prior
        like = next(decoder.parameters(), torch.zeros(()))
        self.register_buffer("zero", torch.zeros((), dtype=like.dtype, device=like.device))
        try:
            self.prototype()
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"the decoder could not decode z of shape (2, {latent_dim}): {error}"
            ) from error

    def prototype(self) -> Tensor:
        """Two rows that look like data: the means at z = 0."""
        return self.decode(self.zero.new_zeros(2, self.latent_dim))

    def prior(self) -> Distribution:
        """p(z), over a vector."""
        return self.latent_prior(self.zero.expand(self.latent_dim))

    def forward(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Tensor:
        """The program; returns z."""
        with pyro.plate("data", len(y)):
            z: Tensor = pyro.sample("z", self.prior())
            likelihood = self.likelihood(self.decoder(z), *given)
            if y.shape[1:] != likelihood.event_shape:
                raise ValueError(
                    f"the decoder gives data of shape {tuple(likelihood.event_shape)}, got data "
                    f"of shape {tuple(y.shape[1:])} ({len(y)} rows): change the decoder's last "
                    "layer, or reshape the data"
                )
            pyro.sample("y", likelihood, obs=y)
        return z

    def decode(self, z: Float[Tensor, "*draws latents"], *given: Tensor) -> Float[Tensor, "..."]:
        """Mean of p(y | z), for latents with any number of leading dimensions; no gradient.

        What is `given` has the rows of the last dimension before the latents.
        """
        return self._by_rows(self.likelihood.mean, z, given)

    def sample(self, num_samples: int, *, seed: int | None = None) -> Float[Tensor, "draws *datum"]:
        """Draws from p(y): z from the prior, then y from p(y | z).

        Arguments:
            num_samples: Number of draws.
            seed: With a seed the same draws every time, and the caller's random stream is left
                alone; without one the draws come from that stream.
        """
        if seed is not None:
            with forked_seed(seed):
                return self.sample(num_samples)
        with torch.no_grad():
            z = self.prior().expand([num_samples]).sample()
        return self.sample_data(z)

    def sample_data(
        self, z: Float[Tensor, "*draws latents"], *given: Tensor
    ) -> Float[Tensor, "..."]:
        """Draws from p(y | z), one for each z."""
        return self._by_rows(lambda *output: self.likelihood(*output).sample(), z, given)

    def _by_rows(
        self, answer: Callable[..., Tensor], z: Tensor, given: tuple[Tensor, ...]
    ) -> Tensor:
        """Decodes in pieces; at least one, so that no draws have a shape."""
        draws = z.shape[:-1]
        rows = [z.reshape(-1, z.shape[-1])]
        rows += [part.expand(*draws, *part.shape[1:]).flatten(0, len(draws) - 1) for part in given]
        with evaluating(self), torch.no_grad():
            pieces = zip(*(part.split(_ROWS_AT_ONCE) for part in rows), strict=True)
            flat = torch.cat([answer(self.decoder(part), *more) for part, *more in pieces])
        return flat.view(*draws, *flat.shape[1:])

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses data that the likelihood cannot have made, with the remedy."""
        if y.dtype != self.zero.dtype:
            raise ValueError(
                f"the data are {y.dtype} and the model is {self.zero.dtype}: convert one of them, "
                f"with y.to({self.zero.dtype}) or model.to({y.dtype})"
            )
        self.likelihood.check(y, names)

    def config(self) -> dict[str, Any]:
        """Arguments that make the same architecture."""
        return {
            "decoder": self.decoder,
            "likelihood": self.likelihood,
            "latent_dim": self.latent_dim,
            "prior": self.latent_prior,
        }
