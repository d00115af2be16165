"""Programs for tests of compiled densities: what differs from call to call, and what must not."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv


def images(num_data: int = 6) -> tuple[pv.models.VAE, Tensor]:
    """A Bernoulli VAE, untrained, and data of it."""
    model = pv.models.VAE(pv.nets.MLPDecoder(3, 20, (16,)), pv.likelihoods.Bernoulli(), 3)
    return model, model.sample(num_data, seed=0)


def shared_level(y: Tensor) -> None:
    """A latent site that all data share."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z + level, 1.0).to_event(1), obs=y)


def branching(y: Tensor) -> None:
    """A branch on the data."""
    scale = 2.0 if float(y.sum()) > 0 else 1.0
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, scale).to_event(1), obs=y)


def coins(y: Tensor) -> None:
    """A program whose data have a support."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Bernoulli(logits=z).to_event(1), obs=y)
