"""Quadrature where the likelihood jumps, and where it is 0."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence.results import LogMarginal

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


def windowed(low: Tensor, width: Tensor, floor: Tensor) -> None:
    """The likelihood is 1 within a window, and lower elsewhere: two jumps of the same height."""
    with pyro.plate("data", len(low)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        likelihood = torch.where((z >= low) & (z < low + width), 1.0, floor)
        pyro.sample("y", dist.Delta(low, log_density=likelihood.log()), obs=low)


def integrated(tolerance: float, *batch: Tensor) -> tuple[LogMarginal, Tensor]:
    """Log p of windows, by quadrature and exactly."""
    guide = pv.Guide(windowed, pv.GlobalParameters(), example=batch)
    found = pv.log_marginal_likelihood(windowed, guide, batch, pv.Quadrature(tolerance))
    low, width, floor = batch
    share = torch.special.ndtr(low + width) - torch.special.ndtr(low)
    return found, (share + floor * (1 - share)).log()


@pytest.mark.filterwarnings("ignore:.*cannot be trusted")
@pytest.mark.parametrize(
    ("tolerance", "low", "width", "floor"),
    [
        (1e-3, -0.3261, 0.6185, 0.0),  # before, off by 10 to 80 errors: lattices agreed by accident
        (1e-3, -0.3261, 0.6185, 0.2),
        (1e-4, -0.3261, 0.6185, 0.2),
        (1e-4, -0.4783, 0.3804, 0.0),  # before, by 35,000: most of the window was beyond the keys
    ],
)
def test_two_jumps_are_within_their_error(
    tolerance: float, low: float, width: float, floor: float
) -> None:
    """Jumps up and down, on a mode that is far narrower than the window between them."""
    found, exact = integrated(tolerance, *torch.tensor([[low], [width], [floor]]))
    assert float((found.value - exact).abs()) < float(found.error)
    assert float(found.error) < 2 * tolerance


def test_a_density_of_zero_wherever_it_was_tried_is_doubted() -> None:
    """Before, its logarithm was the lowest float64, and reliable; wider windows are found."""
    low, width = torch.tensor([2.5003, 2.5]), torch.tensor([1e-9, 0.1])
    with pytest.warns(UserWarning, match="1 of 2 data"):
        found, exact = integrated(1e-3, low, width, torch.zeros(2))
    assert found.value[0] == -torch.inf
    assert found.reliable.tolist() == [False, True]
    assert found.why_not(0) == [pv.results.Doubt.ZERO_WEIGHTS.value]
    assert float((found.value - exact)[1].abs()) < float(found.error[1])
