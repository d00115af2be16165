"""Families of approximate posteriors: from a flat tensor of parameters to a distribution.

A family turns `(batch, parameters)` into a distribution over one flat unconstrained vector a
datum. It does not know where the parameters come from.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Distribution


@runtime_checkable
class Family(Protocol):
    r"""What a family offers.

    A family with shared parameters of its own is an `nn.Module` too, and may have a method
    `setup(latents)` that makes them: a :class:`pyro_vae.Guide` calls it once, before the rest.
    A family whose distributions have no mean in closed form may have a method `mean(parameters)`,
    and one that knows its member closest to a Gaussian, :math:`\arg\min_q
    \mathrm{KL}(q \,\|\, \mathcal{N}(m, P^{-1}))`, a method `closest_normal(loc, precision)`.
    """

    def num_parameters(self, latents: int) -> int:
        """Parameters a datum, for a flat vector of so many latents."""

    def initial(self, loc: Float[Tensor, " latents"], scale: float = 1.0) -> Tensor:
        """Parameters `(parameters,)` at which the family is N(loc, scale^2 I), or close to it."""

    def __call__(self, parameters: Float[Tensor, "*batch parameters"]) -> Distribution:
        """A reparameterized distribution with event shape `(latents,)`."""


@dataclass(frozen=True)
class DiagonalNormal:
    r"""Mean-field Gaussian, :math:`q(z) = \mathcal{N}(z \mid \mu, \operatorname{diag}(\sigma^2))`.

    Its parameters are :math:`(\mu, \log \sigma)`, two a latent.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Example:
        >>> q = DiagonalNormal()(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
        >>> q.mean, q.batch_shape, q.event_shape
        (tensor([[1., 2.]]), torch.Size([1]), torch.Size([2]))
    """

    def num_parameters(self, latents: int) -> int:
        """Two a latent: its mean and the logarithm of its standard deviation."""
        return 2 * latents

    def initial(self, loc: Float[Tensor, " latents"], scale: float = 1.0) -> Tensor:
        """These means, and the same standard deviation for all."""
        return torch.cat([loc, torch.full_like(loc, scale).log()])

    def closest_normal(
        self,
        loc: Float[Tensor, "*batch latents"],
        precision: Float[Tensor, "*batch latents latents"],
    ) -> Float[Tensor, "*batch parameters"]:
        r"""The mean, and :math:`1 / P_{ii}`: the mean-field optimum for a Gaussian posterior."""
        variances = precision.diagonal(dim1=-2, dim2=-1).reciprocal().expand_as(loc)
        return torch.cat([loc, variances.log() / 2], dim=-1)

    def __call__(self, parameters: Float[Tensor, "*batch parameters"]) -> Distribution:
        """The distribution with these means and log standard deviations."""
        loc, log_scale = parameters.chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
