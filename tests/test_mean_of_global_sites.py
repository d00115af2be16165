"""The mean of shared sites under a guide, at which densities per datum are given."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.guides.entry import given_globals
from pyro_vae.programs import Program
from tests.helpers.shared_sites import population

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("follows", [True, False])
def test_a_guide_s_shared_sites_may_follow_all_data(*, follows: bool) -> None:
    """Their mean was that on the first two rows, so it depended on the order of the rows."""
    rows: list[int] = []

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        rows.append(len(y))
        mean = pyro.sample("mean", dist.Normal(y.mean() if follows else 0.3, 0.01))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((y + mean) / 2, 0.5**0.5))

    y = torch.tensor([0.0, 1.0, 2.0, 9.0])
    fixed = given_globals(Program(model, y), guide, (y,), None).fixed["mean"]
    error = (fixed - (y.mean() if follows else 0.3)).abs()
    assert error < 0.005  # false alarm 2e-12
    assert rows.count(len(y)) == (3 if follows else 1)  # all rows only where they matter


@pytest.mark.parametrize("kind", ["chain", "range", "delta"])
def test_shared_sites_that_follow_all_data_and_one_another(kind: str) -> None:
    """Draws of one q alone would have the spread, or the range, that goes with a single draw."""

    def model(y: Tensor) -> None:
        first = pyro.sample("first", dist.Uniform(0.0, 10.0))
        second = pyro.sample("second", dist.Uniform(0.0, 10.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(first - second, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        top = 2 * y.mean()  # 6
        first = pyro.sample("first", dist.Uniform(torch.zeros(()), top))
        if kind == "chain":
            pyro.sample("second", dist.Uniform(first, first + 1e-3))
        if kind == "range":
            pyro.sample("second", dist.Uniform(torch.zeros(()), first))
        if kind == "delta":
            inner = pyro.sample("e", dist.Uniform(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("second", dist.Delta(first * inner, log_density=-first.log()))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 0.5**0.5))

    y = torch.tensor([0.0, 1.0, 2.0, 9.0])
    program = Program(model, y)
    sites = {site.name: site for site in program.global_sites}
    fixed = given_globals(program, guide, (y,), None).fixed
    place = {name: float(site.flatten(fixed[name])) for name, site in sites.items()}
    points = (torch.arange(200) + 0.5) / 200
    first = 6 * points[:, None]
    second = {"chain": first + 0.0 * points}.get(kind, first * points)
    for name, values in (("first", first), ("second", second)):
        logits = (values / (10 - values)).log()
        error = float(logits.std()) / 200**0.5
        assert abs(place[name] - float(logits.mean())) < 5 * error  # false alarm 1e-6


def test_the_mean_of_a_known_posterior_is_not_drawn() -> None:
    """It is exact where every q has a mean; where draws stand in for it, the result says so."""
    y = torch.randn(5)

    def shifted(y: Tensor) -> None:
        pyro.sample("mean", dist.Normal(0.7, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 1.0))

    lml = pv.log_marginal_likelihood(population, shifted, y, pv.ClosedForm())
    given = pv.log_marginal_likelihood(
        population, shifted, y, pv.ClosedForm(), given={"mean": torch.tensor(0.7)}
    )
    torch.testing.assert_close(lml.value, given.value, rtol=0, atol=0)

    def heavy(y: Tensor) -> None:
        pyro.sample("mean", dist.Cauchy(0.7, 0.1))  # has no mean
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 1.0))

    drawn = pv.log_marginal_likelihood(population, heavy, y, pv.ClosedForm())
    assert "the mean of 200 draws from their posterior" in str(drawn.given)
