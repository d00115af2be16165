"""Quadrature where the likelihood jumps, and where it is 0."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("float64")


def switched(c: Tensor, y: Tensor) -> None:
    """The location is b or b - 3, depending on whether a exceeds c."""
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(torch.where(a > c, b, b - 3), 0.2), obs=y)


def test_a_mode_at_the_edge_of_a_jump_keeps_its_mass() -> None:
    """Such a mode is steep on one side. Before, log p was low by 0.43 nats, and reliable."""
    c, y = torch.tensor([-3.03]), torch.tensor([-3.63])
    guide = pv.Guide(switched, pv.GlobalParameters(), example=(c, y))
    found = pv.log_marginal_likelihood(switched, guide, (c, y), pv.Quadrature(3e-3))
    above, below = torch.special.log_ndtr(-c), torch.special.log_ndtr(c)
    spread = 1.04**0.5
    exact = torch.logaddexp(
        above + dist.Normal(0.0, spread).log_prob(y), below + dist.Normal(-3.0, spread).log_prob(y)
    )
    assert bool(found.reliable.all())
    assert float((found.value - exact).abs()) < float(found.error)


def rounded(y: Tensor, unit: Tensor) -> None:
    """A measurement rounded down to a multiple of `unit`: all other values are ruled out."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        seen = torch.where((z >= y) & (z < y + unit), 0.0, -torch.inf)
        pyro.sample("y", dist.Delta(y, log_density=seen), obs=y)


def test_a_density_of_zero_wherever_it_was_tried_is_doubted() -> None:
    """Before, its logarithm was the lowest float64, and reliable; wider intervals are found."""
    y, unit = torch.tensor([2.5003, 2.5]), torch.tensor([1e-9, 0.1])
    guide = pv.Guide(rounded, pv.GlobalParameters(), example=(y, unit))
    with pytest.warns(UserWarning, match="1 of 2 data"):
        found = pv.log_marginal_likelihood(rounded, guide, (y, unit), pv.Quadrature(1e-3))
    assert found.value[0] == -torch.inf
    assert found.reliable.tolist() == [False, True]
    assert found.why_not(0) == [pv.results.Doubt.ZERO_WEIGHTS.value]
    exact = (torch.special.ndtr(y + unit) - torch.special.ndtr(y)).log()
    assert float((found.value - exact)[1].abs()) < float(found.error[1])
