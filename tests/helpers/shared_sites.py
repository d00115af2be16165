"""A program with a mean that all data share, and its evidence."""

import math

import pyro
import pyro.distributions as dist
from torch import Tensor

from tests.helpers.cases import normal

TAU, SIGMA = 2.0, 0.5


def population(y: Tensor) -> None:
    """A mean that all data share, an effect for each, and its measurement."""
    mean = pyro.sample("mean", dist.Normal(0.0, TAU))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(z, SIGMA), obs=y)


def conditional(y: Tensor, mean: Tensor) -> Tensor:
    """Log p(y_n | mean), exactly."""
    return normal(y, mean, math.sqrt(1 + SIGMA**2))
