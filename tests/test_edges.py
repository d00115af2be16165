"""Sparse priors: where a latent rounds to an edge of its support, a wrong number is doubted."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence.saturation import saturated
from pyro_vae.programs import Program
from pyro_vae.results import Doubt

Case = tuple[Callable[[Tensor], None], Tensor, Tensor]


def dirichlet(a: float) -> Case:
    """Six words of a topic: the marginal is a Dirichlet-multinomial."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Dirichlet(torch.full((3,), a)))
            pyro.sample("y", dist.Multinomial(6, z), obs=y)

    y = torch.tensor([[6.0, 0, 0], [4, 2, 0], [2, 2, 2]])
    return model, y, dist.DirichletMultinomial(torch.full((3,), a).double(), 6).log_prob(y.double())


def gamma(a: float) -> Case:
    """Counts of a sparse rate: the marginal is negative binomial."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Gamma(a, a))
            pyro.sample("y", dist.Poisson(z), obs=y)

    y, shape = torch.tensor([0.0, 1.0, 5.0]), torch.tensor(a).double()
    return model, y, dist.GammaPoisson(shape, shape).log_prob(y.double())


def beta(a: float) -> Case:
    """Successes of six: the marginal is beta-binomial."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Beta(a, a))
            pyro.sample("y", dist.Binomial(6, z), obs=y)

    y, shape = torch.tensor([0.0, 2.0, 6.0]), torch.tensor(a).double()
    return model, y, dist.BetaBinomial(shape, shape, 6).log_prob(y.double())


PRIORS = {"Dirichlet": dirichlet, "Gamma": gamma, "Beta": beta}


@pytest.mark.filterwarnings("ignore:log p")
@pytest.mark.parametrize("name", PRIORS)
def test_sparse_priors_are_doubted(name: str) -> None:
    """At concentration 0.03 no datum is wrong and reliable, and the doubt says why."""
    model, y, exact = PRIORS[name](0.03)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    lml = pv.log_marginal_likelihood(model, guide, y, pv.ImportanceSampling(2000))
    wrong = (lml.value - exact).abs() > 4 * lml.error + 0.02
    assert not bool((wrong & lml.reliable).any())
    assert Doubt.SATURATED.value in lml.why_not(0)
    bound = pv.elbo(model, guide, y)
    assert Doubt.SATURATED.value in bound.why_not(0)


@pytest.mark.parametrize("name", PRIORS)
def test_others_are_not_doubted(name: str) -> None:
    """At concentration 1 nothing saturates."""
    model, y, _ = PRIORS[name](1.0)
    assert not bool(saturated(Program(model, y), (y,)).any())


def test_a_datum_in_the_middle_is_not_doubted() -> None:
    """It is the posterior that counts: two words of each of three topics are far from a corner."""
    model, y, _ = dirichlet(0.3)
    assert not bool(saturated(Program(model, y), (y,))[2])
