"""Small maps and nets for tests of guides."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import Batch
from pyro_vae.registry import registered


@registered(inputs="linear.in_features", outputs="linear.out_features")
class Net(nn.Module):
    """A linear layer on all that a datum has, of any dtype and shape."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    @classmethod
    def of(cls, batch: Batch, outputs: int) -> "Net":
        """A net for data such as these."""
        return cls(cls.flat(*batch).shape[1], outputs)

    @staticmethod
    def flat(*batch: Tensor) -> Tensor:
        """All numbers of a datum side by side."""
        parts = [part.reshape(len(part), -1).to(torch.get_default_dtype()) for part in batch]
        return torch.cat(parts, dim=1)

    def forward(self, *batch: Tensor) -> Tensor:
        """Parameters of the family."""
        return self.linear(self.flat(*batch))


@dataclass(frozen=True)
class Certain:
    """A family without noise, whose log density is a parameter: sums over it are exact."""

    def num_parameters(self, latent_dim: int) -> int:
        """A point, and a log density."""
        return latent_dim + 1

    def initial(self, loc: Tensor, scale: float = 1.0) -> Tensor:
        """A point."""
        return torch.cat([loc, loc.new_zeros(1)])

    def __call__(self, parameters: Tensor) -> dist.Delta:
        """The point, as if it had this log density."""
        return dist.Delta(parameters[..., :-1], log_density=parameters[..., -1], event_dim=1)


def vae(latents: int = 2, features: int = 3) -> pv.models.VAE:
    """A linear Gaussian model."""
    likelihood = pv.likelihoods.Gaussian(sigma=0.5)
    return pv.models.VAE(nn.Linear(latents, features), likelihood, latent_dim=latents)
