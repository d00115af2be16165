"""Conditional models: a normal with parameters from a network, and a VAE of y given x."""

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._arguments import shown
from .._types import Batch, Distribution
from ..formatting import count_of
from ..likelihoods import DecodedSigma, FixedSigma, Gaussian, LearnedSigma, Likelihood
from ..nets.scaling import start_inputs
from ..registry import registered
from .base import Decoded
from .priors import Prior, StandardNormal


@registered(sigma="normal.sigma")
class NormalGiven(nn.Module):
    r"""A normal vector given its inputs, :math:`p(z \mid x) = \mathcal{N}(\mu(x), \sigma(x)^2)`.

    A building block of programs. Use it for a layer of a hierarchy, for the transition of a
    state-space model, or for a prior that depends on covariates.

    Arguments:
        net: Maps the inputs, each `(batch, ...)`, to the means `(batch, latents)`. If sigma depends
            on the inputs, which is the default, the network gives twice as many numbers.
        sigma: A number for a fixed sigma, or one of the likelihoods' `FixedSigma`,
            `LearnedSigma`, `DecodedSigma`.

    Example:
        >>> layer = NormalGiven(nn.Linear(2, 3), sigma=0.5)
        >>> layer(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(
        self,
        net: nn.Module,
        sigma: float | int | FixedSigma | LearnedSigma | DecodedSigma | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.normal = Gaussian(DecodedSigma() if sigma is None else sigma)

    def forward(self, *given: Tensor) -> Distribution:
        """Returns the normal distribution given the inputs, of event shape `(latents,)`."""
        return self.normal.distribution(self.net(*given)).to_event(1)


def given_latents(link: nn.Module, z: Float[Tensor, "*particles rows latents"]) -> Distribution:
    """Returns the normal distribution given latents, which may be those of several particles."""
    if z.dim() == 2:
        return link(z)
    shape = z.shape[:-1]
    rows = link(z.flatten(0, len(shape) - 1)).base_dist  # networks take rows
    return dist.Normal(rows.loc.unflatten(0, shape), rows.scale.unflatten(0, shape)).to_event(1)


def as_normal(link: nn.Module) -> NormalGiven:
    """Wraps a network in a :class:`NormalGiven`; a :class:`NormalGiven` is returned unchanged."""
    return link if isinstance(link, NormalGiven) else NormalGiven(link)


def latents_of(link: NormalGiven, *given: Tensor) -> int:
    """Returns the number of latents that a conditional normal has, found by calling it on inputs.

    Raises:
        ValueError: If the network of the conditional normal cannot take the inputs.
    """
    shapes = [tuple(part.shape) for part in given]
    modes = {module: module.training for module in link.modules()}
    try:
        with torch.no_grad():
            return int(link.eval()(*given).event_shape[0])
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"a network of the model cannot take tensors of the shapes {shapes}: {error}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


@registered(prior="latent_prior")
class ConditionalVAE(Decoded):
    r"""A variational autoencoder of y given covariates, a Pyro program.

    .. math:: z_n \sim p(z \mid x_n), \qquad y_n \sim p_\theta(y \mid z_n, x_n)

    `model(y, x)` runs the program, and guides take the same batch: the encoder's network is called
    with `(y, x)`. :class:`pyro_vae.nets.Concatenated` lets a network with one input take both. All
    densities are conditional on x: x has no distribution, and must have no missing entries.

    Arguments:
        decoder: A module that is called with `(z, x)` and gives the parameters of the likelihood
            for each datum.
        likelihood: Turns the decoder's output into p(y | z, x).
        latent_dim: Number of entries of z.
        covariates: Number of entries of x.
        prior: A prior that does not depend on x, or a :class:`NormalGiven` whose network is called
            with x; standard normal by default.

    Raises:
        ValueError: If the decoder or the prior cannot take their inputs; when called, if the data
            do not have the shape that the decoder gives.

    References:
        | Learning Structured Output Representation using Deep Conditional Generative Models
          (Sohn, Lee & Yan, 2015)
        | https://papers.nips.cc/paper/2015/hash/8d55a249e6baa5c06772297520da2051-Abstract.html

    Example:
        >>> import torch
        >>> from pyro_vae import likelihoods, nets
        >>> decoder = nets.Concatenated(nets.MLPDecoder(2 + 4, shape=3))
        >>> model = ConditionalVAE(decoder, likelihoods.Gaussian(), latent_dim=2, covariates=4)
        >>> model.sample_given(torch.zeros(5, 4), num_samples=10).shape
        torch.Size([10, 5, 3])
    """

    def __init__(
        self,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: int,
        covariates: int,
        prior: Prior | NormalGiven | None = None,
    ) -> None:
        super().__init__(decoder, likelihood)
        if covariates < 1:
            raise ValueError(
                f"`covariates` must be the number of entries of x, at least 1; got {covariates}"
            )
        self.latent_dim, self.covariates = latent_dim, covariates
        self.latent_prior = StandardNormal() if prior is None else prior
        self._check_decoder(latent_dim)
        if isinstance(self.latent_prior, Prior):
            self.latent_prior.setup(self.zero.expand(latent_dim))
            return
        found = latents_of(self.latent_prior, self.zero.new_zeros(2, covariates))
        if found != latent_dim:
            raise ValueError(
                f"the prior's network must give {count_of(latent_dim, 'latent')}, as many as the "
                f"model has; got {found}: change the network's last layer"
            )

    def prototype(self) -> Batch:
        """Returns two rows of data, and two rows of covariates; all covariates are 0.

        Each row of data is the mean of p(y | z, x) at z = 0 and x = 0.
        """
        x = self.zero.new_zeros(2, self.covariates)
        return self.decode(self.zero.new_zeros(2, self.latent_dim), x), x

    def prior(self, x: Float[Tensor, "batch covariates"]) -> Distribution:
        """Returns p(z | x); the event is a whole vector."""
        if isinstance(self.latent_prior, Prior):
            return self.latent_prior(self.zero.expand(self.latent_dim))
        return self.latent_prior(x)

    def latents(self, rows: int, *given: Tensor) -> Float[Tensor, "*particles rows latents"]:
        """Samples the site z, and returns its values."""
        return pyro.sample("z", self.prior(self._covariates(given)))

    def _decoded(self, z: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.decoder(z, self._covariates(given)), given[1:]

    def _covariates(self, given: tuple[Tensor, ...]) -> Tensor:
        """Returns the covariates x, the first of the further tensors; refuses a call without x."""
        if not given or given[0].shape[1:] != (self.covariates,):
            raise ValueError(
                f"the covariates x must have shape (rows, {self.covariates}); got "
                f"{shown(given[0]) if given else 'no x'}: call model(y, x), model.decode(z, x), "
                "model.sample(len(x), x) or model.sample_given(x)"
            )
        return given[0]

    def start_from(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> None:
        """Sets, from some rows, the scales of a decoder's inputs and outputs, and of learned noise.

        Only decoders of `pv.nets` have scales of inputs and outputs. Nothing changes if the rows
        are near unit scale, or if the decoder was trained or loaded.
        """
        z = self.zero.new_zeros(len(y), self.latent_dim)
        start_inputs(self.decoder, lambda: self.decoder(z, self._covariates(given)))
        super().start_from(y, *given)

    def rows_of_decoder(self, y: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """Returns the data, and the likelihood's further tensors, but not the covariates."""
        return y, *given[1:]

    def sample_given(
        self, *given: Tensor, num_samples: int = 1, seed: int | None = None
    ) -> Float[Tensor, "..."]:
        """Returns `num_samples` draws from p(y | x) for every x; :meth:`sample` returns only one.

        Arguments:
            given: The covariates, `(rows, covariates)`, and then any further inputs of the
                likelihood.
            num_samples: Number of draws for each x.
            seed: As in :meth:`sample`.

        Returns:
            `(num_samples, rows, *datum)`.
        """
        rows = len(self._covariates(given))
        many = [part.expand(num_samples, *part.shape).flatten(0, 1) for part in given]
        draws = self.sample(num_samples * rows, *many, seed=seed)
        return draws.unflatten(0, (num_samples, rows))
