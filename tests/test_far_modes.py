"""Modes far outside the range of the prior's draws, under priors with heavy tails."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.evidence import LadderMarginal, Rung, far_modes
from pyro_vae.evidence.far_modes import FarModes, heavy_tails
from pyro_vae.evidence.scan import scanned
from pyro_vae.evidence.seeking import Integrand
from pyro_vae.programs import Program

pytestmark = pytest.mark.usefixtures("float64")


def located(
    prior: dist.TorchDistribution, noise: dist.TorchDistribution, latents: int
) -> ProgramLike:
    """The sum of a latent and noise, for some latents that are independent."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", prior.expand([latents]).to_event(1))
            shifted = dist.TransformedDistribution(
                noise.expand(y.shape), dist.transforms.AffineTransform(z, 1.0)
            )
            pyro.sample("y", shifted.to_event(1), obs=y)

    return model


def evaluated(model: ProgramLike, y: Tensor) -> LadderMarginal:
    """By the ladder, from a guide at the prior."""
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    found = pv.log_marginal_likelihood(model, guide, y, pv.Tightest())
    assert isinstance(found, LadderMarginal)
    return found


CAUCHY = dist.Cauchy(0.0, 1.0)
SUM = dist.Cauchy(0.0, 2.0)  # the distribution of a sum of two independent ones


@pytest.mark.parametrize("y", [[[1e4]], [[-1e6]], [[1e3, 0.3]], [[3e3, -1e4]]])
def test_both_modes_of_a_far_datum_are_found(y: list[list[float]]) -> None:
    """The modes at 0 and at y have equal masses. Before, log p was low by log 2, and reliable."""
    data = torch.tensor(y)
    found = evaluated(located(CAUCHY, CAUCHY, data.shape[1]), data)
    assert found.rungs == [Rung.QUADRATURE]
    assert bool(((found.value - SUM.log_prob(data).sum(dim=-1)).abs() < 5 * found.error).all())


def test_each_latent_can_be_near_either_mode() -> None:
    """Two of three latents have a far mode: four modes in all, of equal masses."""
    y = torch.tensor([[1e4, 0.3, -300.0], [0.5, 0.3, 1.0]])
    program = Program(located(CAUCHY, CAUCHY, 3), y)
    found = FarModes.of(program, (y,), 100)
    assert found is not None
    assert not bool(found.unsettled.any())
    heavy = found.log_mass[0] > found.log_mass[0].max() - 0.1
    assert int(heavy.sum()) == 4
    assert {tuple(z) for z in (found.loc[0, heavy] / 100).round().int().tolist()} == {
        (0, 0, 0), (100, 0, 0), (0, 0, -3), (100, 0, -3),
    }  # fmt: skip
    assert int((found.log_mass[1] > -torch.inf).sum()) == 1


def test_no_estimate_misses_a_far_mode() -> None:
    """Importance sampling of three latents: before, low by log 2 (t) or 16 nats, and reliable."""
    y = torch.tensor([[3.0, 0.3, 1e4]])
    far, near = dist.StudentT(3.0, 0.0, 1.0), dist.StudentT(3.0, 0.0, 1.0)
    found = evaluated(located(far, near, 3), y)
    grid = evaluated(located(far, near, 1), y.mT)  # the latents are independent
    assert bool(grid.reliable.all())
    assert bool(found.reliable.all())
    error = torch.hypot(found.error, grid.error.sum())
    assert bool(((found.value - grid.value.sum()).abs() < 5 * error).all())


def test_a_fitted_gaussian_alone_doubts_far_modes() -> None:
    """Of two modes of equal mass, at 0 and at 1e4, the Gaussian covers one."""
    y = torch.tensor([[1e4], [0.5]])
    student = dist.StudentT(7.0, 0.0, 1.0)
    model = located(student, student, 1)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    method = pv.ImportanceSampling(proposal=pv.Fitted())
    with pytest.warns(UserWarning, match="cannot be trusted for 1 of 2 data"):
        found = pv.log_marginal_likelihood(model, guide, y, method)
    assert found.reliable.tolist() == [False, True]


def test_far_modes_on_both_sides_are_found() -> None:
    """The sign of the latent is not seen: there are modes at 0, at y and at -y."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", CAUCHY)
            pyro.sample("y", dist.Cauchy(z.abs(), 0.5), obs=y)

    y = torch.tensor([1e6])
    found = FarModes.of(Program(model, y), (y,), 100)
    assert found is not None
    assert (found.loc[0, :, 0] / 1e6).round().unique().tolist() == [-1.0, 0.0, 1.0]


TAILS = {
    "Cauchy": (CAUCHY, True),
    "t with 3 degrees": (dist.StudentT(3.0, 5.0, 0.1), True),
    "t with 30 degrees": (dist.StudentT(30.0, 0.0, 1e4), True),
    "normal": (dist.Normal(10.0, 3.0), False),
    "Laplace": (dist.Laplace(0.0, 1.0), False),
    "Gamma": (dist.Gamma(0.1, 1.0), False),
    "half-Cauchy": (dist.HalfCauchy(1.0), False),  # its logarithm has exponential tails
}


@pytest.mark.parametrize(("prior", "heavy"), TAILS.values(), ids=TAILS)
def test_tails_that_fall_as_a_power_are_heavy(prior: Any, *, heavy: bool) -> None:
    """Priors that fall exponentially are not: their draws come near all modes with mass."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = torch.zeros(2)
    assert heavy_tails(Integrand(Program(model, y), (y,), 100)).tolist() == [heavy, heavy]


def by_row(degrees: Tensor, y: Tensor) -> None:
    """Three Cauchy measurements, of latents whose prior has as many degrees of freedom as given."""
    with pyro.plate("data", len(y)):
        prior = dist.StudentT(degrees[..., None].expand(*degrees.shape, 3), 0.0, 1.0)
        z = pyro.sample("z", prior.to_event(1))
        pyro.sample("y", dist.Cauchy(z, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 1, 0]])
def test_the_tails_of_each_prior_are_judged_by_themselves(order: list[int]) -> None:
    """One prior of three falls as a power: its datum has far modes, wherever it stands."""
    batch = torch.tensor([1e3, 1.0, 1e3])[order], torch.tensor([[1e4, 0.3, 0.5]] * 3)
    program, heavy = Program(by_row, *batch), order.index(1)
    found = FarModes.of(program, batch, 100)
    assert found is not None
    assert found.heavy.tolist() == [row == heavy for row in range(3)]
    alone = FarModes.of(program, tuple(part[heavy : heavy + 1] for part in batch), 100)
    assert alone is not None
    number = int((alone.log_mass > -torch.inf).sum())
    assert number >= 2
    assert torch.equal(found.loc[heavy, :number], alone.loc[0, :number])


def test_tails_judged_by_the_first_prior_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong twin of the test above."""

    def of_first(integrand: Integrand) -> Tensor:
        return heavy_tails(integrand)[:1].expand(len(integrand))

    monkeypatch.setattr(far_modes, "heavy_tails", of_first)
    batch = torch.tensor([1e3, 1.0, 1e3]), torch.tensor([[1e4, 0.3, 0.5]] * 3)
    assert FarModes.of(Program(by_row, *batch), batch, 100) is None


def waves(degrees: Tensor, y: Tensor) -> None:
    """A latent that is seen through a cosine, under priors with as many degrees as given."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.StudentT(degrees, 0.0, 1.0))
        pyro.sample("y", dist.Normal((3 * z).cos(), 0.3), obs=y)


def test_the_range_of_a_scan_is_that_of_each_prior() -> None:
    """A datum beside one with a Cauchy prior has the number that it has beside another of its own.

    Its grid had been stretched to the other's range, and had fewer points where its modes are.
    """
    degrees, y = torch.tensor([1e6, 1e5, 1.0]), torch.tensor([0.3, 0.5, 0.3])
    program = Program(waves, degrees, y)
    scans = [
        scanned(Integrand(program, (degrees[rows], y[rows]), 1000), torch.zeros(2, 1), 1e-3, 2000)
        for rows in ([0, 1], [0, 2])
    ]
    first, other = (scan.log_mass[0] for scan in scans)
    assert bool(first.isfinite())
    assert float((first - other).abs()) < 1e-12
