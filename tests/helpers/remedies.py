"""A program of which everything is known, for tests of what refusals say to write.

z ~ N(0, 1) and y ~ N(z, 1), so log p(y) = N(y; 0, sqrt 2), and under the exact posterior
N(y / 2, sqrt 1/2) the ELBO has no error: a remedy that changed the program by a term would show.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

SD = 0.5**0.5
Y = torch.tensor([0.0, 1.0, 2.0, -4.0])
LOG_P = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y).double()


def location(y: Tensor) -> None:
    """Z ~ N(0, 1), y ~ N(z, 1)."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def exact(y: Tensor) -> None:
    """The posterior."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD))
