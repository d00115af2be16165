"""`poutine.scale` and KL annealing: training follows a scale, no reported number has it.

y | z ~ N(z, 1) and z ~ N(0, 1), so p(z | y) = N(y / 2, 1/2), and with it every draw's weight is
p(y): an ELBO at it is log N(y; 0, 2) exactly, whatever was drawn. With the prior scaled by s, and
the guide too, the optimum is N(y / (s + 1), s / (s + 1)), from which a trained guide can be told.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv

Y = torch.tensor([-1.0, 0.5, 2.0, 0.0, 3.0, -2.0])
EXACT = dist.Normal(0.0, 2**0.5).log_prob(Y).mean().item()
STILL: dict[str, Any] = {
    "num_epochs": 1,
    "progress": False,
    "optimizer": lambda tensors: torch.optim.SGD(tensors, lr=0.0),
}


def site_scaled(scale: float) -> Callable[[Tensor], None]:
    """The prior is scaled."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            with poutine.scale(scale=scale):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    return model


def plate_scaled(scale: float) -> Callable[[Tensor], None]:
    """All sites in the plate are scaled."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)), poutine.scale(scale=torch.tensor(scale)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    return model


def program_scaled(scale: float) -> Callable[[Tensor], None]:
    """The whole program is scaled."""
    model: Callable[[Tensor], None] = poutine.scale(site_scaled(1.0), scale=scale)
    return model


class Guide(nn.Module):
    """N(slope y, variance), whose site is scaled as the model's is."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.log_variance = nn.Parameter(torch.tensor(0.5).log())
        self.scale = scale

    def forward(self, y: Tensor) -> None:
        with pyro.plate("data", len(y)), poutine.scale(scale=self.scale):
            q = dist.Normal(self.slope * y, (self.log_variance / 2).exp())
            pyro.sample("z", q)


MODELS = [site_scaled, plate_scaled, program_scaled]


@pytest.mark.parametrize("batch_size", [6, 4])
@pytest.mark.parametrize("scale", [0.1, 10.0])
@pytest.mark.parametrize("scaled", MODELS)
def test_history_is_unscaled(scaled: Any, scale: float, batch_size: int) -> None:
    """At the exact posterior the reported ELBO is log p(y), in training and validation."""
    result = pv.fit(scaled(scale), Guide(), Y, validation=Y, batch_size=batch_size, **STILL)
    assert result.history.elbo[-1] == pytest.approx(EXACT, abs=1e-5)
    assert result.history.validation_elbo[-1] == pytest.approx(EXACT, abs=1e-5)
    lml = pv.log_marginal_likelihood(scaled(scale), Guide(), Y, pv.ImportanceSampling(50))
    assert lml.mean.value.item() == pytest.approx(EXACT, abs=1e-5)


@pytest.mark.parametrize("objective", [None, pv.objectives.BetaELBO(1.0)])
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_loss_in_the_history_has_no_scale(scale: float, objective: Any) -> None:
    """Of a program that is scaled as a whole it is in nats, so that 0.1 nats can be told."""
    program, guide = program_scaled(scale), Guide(scale)
    result = pv.fit(program, guide, Y, batch_size=4, objective=objective, **STILL)
    assert result.history.loss[-1] == pytest.approx(-EXACT, abs=1e-5)


@pytest.mark.parametrize("objective", [pv.objectives.BetaELBO(1.0), pv.objectives.IWAE(5)])
@pytest.mark.parametrize("scaled", [plate_scaled, program_scaled])
def test_objectives_are_unscaled(scaled: Any, objective: Any) -> None:
    """What stands beside the loss has no scale, and the loss has it."""
    progress = objective.progress(scaled(10.0), Guide(), Y)
    torch.testing.assert_close(progress.elbo.item(), EXACT * len(Y), rtol=1e-5, atol=0)
    torch.testing.assert_close(progress.loss.item(), -10 * EXACT * len(Y), rtol=1e-5, atol=0)


def test_loss_is_scaled() -> None:
    """The wrong twin: minus the loss of a scaled program is far above log p."""
    loss = pyro.infer.Trace_ELBO(num_particles=10).loss(site_scaled(0.1), Guide(0.1), Y)
    assert -loss / len(Y) > EXACT + 0.1


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_training_follows_the_scale(scale: float) -> None:
    """The guide ends at the posterior of the scaled program, N(y / (s + 1), s / (s + 1))."""
    torch.manual_seed(0)
    guide = Guide(scale)
    objective = pyro.infer.Trace_ELBO(num_particles=10)
    optimizer = pv.training.optimizers.adam_with(0.02)
    pv.fit(
        site_scaled(scale), guide, Y, num_epochs=120, objective=objective, optimizer=optimizer,
        progress=False,
    )  # fmt: skip
    assert guide.slope.item() == pytest.approx(1 / (scale + 1), abs=0.03)
    assert guide.log_variance.exp().item() == pytest.approx(scale / (scale + 1), rel=0.2)


def test_annealing_from_one_step_to_the_next() -> None:
    """A scale that follows a schedule is followed at every step, and never compiled in."""
    seen: list[float] = []

    def annealed(y: Tensor) -> None:
        seen.append(0.1 * (1 + len(seen)))
        site_scaled(seen[-1])(y)

    result = pv.fit(annealed, Guide(), Y, compile=True, **{**STILL, "num_epochs": 3})
    assert "poutine.scale" in result.compiled
    for elbo in result.history.elbo:
        assert elbo == pytest.approx(EXACT, abs=1e-5)
