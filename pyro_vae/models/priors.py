"""Priors of a latent vector, as values."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._types import Distribution


class Prior(nn.Module):
    """What a prior offers: a distribution over one latent vector."""

    def forward(self, zero: Tensor) -> Distribution:
        """p(z), of event shape `(latents,)`, for zeros `(latents,)` with its dtype and device."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Arguments that make the same prior."""
        return {}


class StandardNormal(Prior):
    r"""The standard normal, :math:`z \sim \mathcal{N}(0, I)`."""

    def forward(self, zero: Tensor) -> Distribution:
        """Independent standard normals."""
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)
