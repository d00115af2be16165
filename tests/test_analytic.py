"""The ELBO with its KL term in closed form, against formulas and against the plain estimate."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.objectives import AnalyticELBO, BetaELBO, LinearWarmup
from tests.helpers.statistics import assert_mean
from tests.helpers.training import data, fit, small

pytestmark = pytest.mark.usefixtures("float64", "user_param_store")

FAMILIES: dict[str, Callable[[], Any]] = {
    "diagonal": pv.DiagonalNormal,
    "full rank": pv.FullRankNormal,
    "low rank": lambda: pv.LowRankNormal(rank=1),
}


def linear(family: Any) -> tuple[Any, pv.Guide, Tensor]:
    """A Gaussian VAE, its guide, and data."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    sizes = family.num_parameters(2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(4, sizes)), family)
    return model, guide, model.sample(5, seed=0)


def exact_kl(q: Any) -> Tensor:
    """KL of normals from the standard one, by its formula."""
    mean, covariance = q.mean, q.covariance_matrix if hasattr(q, "covariance_matrix") else None
    if covariance is None:
        covariance = q.variance.diag_embed()
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (trace + mean.square().sum(-1) - mean.shape[-1] - torch.logdet(covariance)) / 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("particles", [1, 3])
def test_the_kl_term_is_exact(family: str, particles: int) -> None:
    """Two weights of it at the same draws differ by the formula's value, without noise."""
    model, guide, y = linear(FAMILIES[family]())
    losses = []
    for beta in (1.0, 0.0):
        pyro.set_rng_seed(1)
        losses.append(AnalyticELBO(beta, particles).loss(model, guide, y))
    q = guide.family(guide.map((y,), None))
    assert losses[0] - losses[1] == pytest.approx(exact_kl(q).sum().item(), rel=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_estimates_the_elbo(family: str) -> None:
    """Its mean is that of the plain estimate, draw by draw; that with half the KL is caught."""
    model, guide, y = linear(FAMILIES[family]())
    many = y[:1].expand(20_000, -1)

    def values(objective: BetaELBO) -> Tensor:
        losses = []
        for number in range(12):
            pyro.set_rng_seed(number)
            losses.append(-objective.loss(model, guide, many) / len(many))
        return torch.tensor(losses)

    plain = values(BetaELBO(1.0))
    assert_mean(values(AnalyticELBO()) - plain, 0.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(values(AnalyticELBO(0.5)) - plain, 0.0)


def test_gradients_of_the_kl_term() -> None:
    """By the guide's parameters and by those of a prior that depends on covariates."""
    prior = pv.models.NormalGiven(nn.Linear(3, 4))
    decoder = pv.nets.Concatenated(nn.Linear(5, 4))
    model = pv.models.ConditionalVAE(
        decoder, pv.likelihoods.Gaussian(0.5), latent_dim=2, covariates=3, prior=prior
    )
    x = torch.randn(6, 3)
    y = model.sample(6, x, seed=0)
    guide = pv.Guide(model, pv.Encoder(pv.nets.Concatenated(nn.Linear(7, 4))), example=(y, x))
    parameters = [*prior.parameters(), *guide.map.parameters()]
    losses = []
    for beta in (1.0, 0.0):
        pyro.set_rng_seed(1)
        losses.append(AnalyticELBO(beta).differentiable_loss(model, guide, y, x))
    found = torch.autograd.grad(losses[0] - losses[1], parameters)
    q, p = guide.family(guide.map((y, x), None)), prior(x)
    expected = torch.autograd.grad(torch.distributions.kl_divergence(q, p).sum(), parameters)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_guide_written_by_hand() -> None:
    """Its distribution is the one that it samples."""
    model, guide, y = linear(pv.DiagonalNormal())

    def by_hand(y: Tensor) -> None:
        loc, log_scale = guide.map((y,), None).chunk(2, dim=-1)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    for particles in (1, 2):
        losses = []
        for program in (guide, by_hand):
            pyro.set_rng_seed(1)
            objective = AnalyticELBO(num_particles=particles)
            losses.append(objective.loss(model, program, y))
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_training() -> None:
    """With a schedule, in fit; the history has the ELBO at full weight."""
    model, guide = small()
    result = fit(
        model, guide, data(), num_epochs=4, objective=AnalyticELBO(LinearWarmup(2)), seed=0
    )
    assert result.history.kl_weight[-1] == 1
    assert result.history.elbo[-1] > result.history.elbo[0]


def two_sites(y: Tensor) -> None:
    """The second one depends on the first."""
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(b, 1.0), obs=y)


def positive(y: Tensor) -> None:
    """A latent that is not on the real numbers."""
    with pyro.plate("data", len(y)):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


def laplace(y: Tensor) -> None:
    """A prior whose divergence from a normal is not known."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.StudentT(3.0, 0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (two_sites, ValueError, r"one local latent site; got the sites \['a', 'b'\]"),
        (positive, ValueError, "site 'scale' with the support"),
        (laplace, TypeError, "divergence of Normal from StudentT has no closed form"),
    ],
)
def test_what_has_no_closed_form(program: Any, error: type[Exception], message: str) -> None:
    """Is refused, with the remedy."""
    y = torch.randn(4)
    guide = pv.Guide(program, pv.GlobalParameters(), example=y)
    with pytest.raises(error, match=message):
        AnalyticELBO().loss(program, guide, y)
