"""A model and guides written by hand, for comparisons."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Program(pyro.nn.PyroModule):
    """A program of a user's own, without the methods that pictures need."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 3)

    def forward(self, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(self.net(z), 1.0).to_event(1), obs=y)
