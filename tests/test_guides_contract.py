"""What a guide may contain: its density is that of what it draws, or it is refused by the site.

The model is z ~ N(0, 1), y ~ N(z, 1), with log p(y) = N(y; 0, sqrt 2) and the posterior
N(y / 2, sqrt 1/2). Under the exact posterior every weight is p(y): any term too many shows at once.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_vae as pv

SD = 0.5**0.5
Y = torch.tensor([0.0, 1.0, 2.0, -4.0])
AUXILIARY: Any = {"is_auxiliary": True}


def model(y: Tensor) -> None:
    """Z ~ N(0, 1), y ~ N(z, 1)."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def two(y: Tensor) -> None:
    """The same with z = a + b."""
    with pyro.plate("data", len(y)):
        a, b = (pyro.sample(name, dist.Normal(0.0, SD)) for name in "ab")
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def plain(y: Tensor) -> None:
    """The exact posterior."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD))


def with_factor(y: Tensor) -> None:
    """With an auxiliary loss."""
    with pyro.plate("data", len(y)):
        pyro.factor("loss", 3.0 * torch.ones(len(y)), has_rsample=False)
        pyro.sample("z", dist.Normal(y / 2, SD))


def with_factor_outside(y: Tensor) -> None:
    """With an auxiliary loss of no datum."""
    pyro.factor("loss", torch.tensor(3.0), has_rsample=True)
    plain(y)


def with_observed(y: Tensor) -> None:
    """With a site that it observes, marked auxiliary or not."""
    with pyro.plate("data", len(y)):
        pyro.sample("t", dist.Normal(0.0, 2.0), obs=y, infer=AUXILIARY)
        pyro.sample("u", dist.Bernoulli(0.25), obs=(y > 0).float())
        pyro.sample("z", dist.Normal(y / 2, SD))


def masked(y: Tensor) -> None:
    """With a mask by a handler: what is drawn has a density all the same."""
    seen: Any = y > 0.5  # Pyro's types ask for a BoolTensor
    with pyro.plate("data", len(y)), poutine.mask(mask=seen):
        pyro.sample("z", dist.Normal(y / 2, SD))


def masked_by_itself(y: Tensor) -> None:
    """With a mask by the distribution."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD).mask(y > 0.5))


def scaled(y: Tensor) -> None:
    """With a weight, of the program and of the site."""
    with poutine.scale(scale=5.0):
        plain(y)


GUIDES = (plain, with_factor, with_factor_outside, with_observed, masked, masked_by_itself, scaled)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.__name__)
def test_density_of_what_is_drawn(guide: Callable[..., Any]) -> None:
    """ELBO and log p are exact for every datum: no term too many, none too few."""
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y).double()
    for value in (
        pv.elbo(model, guide, Y, 20).elbo.value,
        pv.log_marginal_likelihood(model, guide, Y, pv.ImportanceSampling(200)).value,
    ):
        torch.testing.assert_close(value, exact, rtol=0, atol=1e-5)


def test_gap_of_a_guide_with_factors() -> None:
    """An exact posterior has no gap, whatever else it was trained with."""
    gap = pv.inference_gap(model, with_factor, Y, num_samples=200)
    torch.testing.assert_close(gap.inference.value, torch.zeros(4).double(), rtol=0, atol=1e-4)


def with_all(y: Tensor) -> None:
    """Two latent sites, one masked, beside a factor and an observed site."""
    cov = torch.tensor([[1 / 2, 0.0], [0.0, 1 / 2]]) - 1 / 8  # prior - K (1, 1) prior
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), cov)
    slope, spread = float(normal.covariance_matrix[0, 1] / cov[0, 0]), float(cov[0, 0])
    with pyro.plate("data", len(y)):
        pyro.factor("loss", 3.0 * torch.ones(len(y)), has_rsample=False)
        a = pyro.sample("a", dist.Normal(y / 4, spread**0.5))
        pyro.sample("t", dist.Normal(0.0, 2.0), obs=y)
        seen: Any = y > 0.5
        with poutine.mask(mask=seen):
            sd = (spread - slope**2 * spread) ** 0.5
            pyro.sample("b", dist.Normal(y / 4 + slope * (a - y / 4), sd))


def test_density_of_two_sites() -> None:
    """The same where the guide is run on repeated rows; and at points that are given."""
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y).double()
    value = pv.elbo(two, with_all, Y, 20).elbo.value
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-5)
    defensive = pv.ImportanceSampling(200, proposal=pv.Defensive())
    found = pv.log_marginal_likelihood(two, with_all, Y, defensive)
    assert ((found.value - exact).abs() < 5 * found.error + 1e-5).all()  # false alarm 2e-6


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide")
@pytest.mark.parametrize("objective", [Trace_ELBO(), pv.IWAE(num_particles=1)], ids=["pyro", "own"])
def test_training_has_the_terms_as_pyro_does(objective: Any) -> None:
    """The loss of training has the factor with the sign of log q: -ELBO + 4 * 3 nats."""
    loss = objective.loss(model, with_factor, Y) - objective.loss(model, plain, Y)
    assert loss == pytest.approx(12.0, abs=1e-4)
    observed = objective.loss(model, with_observed, Y) - objective.loss(model, plain, Y)
    terms = torch.distributions.Normal(0.0, 2.0).log_prob(Y)
    terms = terms + torch.distributions.Bernoulli(0.25).log_prob((Y > 0).float())
    assert observed == pytest.approx(float(terms.sum()), abs=1e-4)


LEVELS = torch.arange(4.0)


def mixture(y: Tensor) -> None:
    """C ~ Categorical(4), z ~ N(c, 1), y ~ N(z, 1)."""
    with pyro.plate("data", len(y)):
        c = pyro.sample("c", dist.Categorical(torch.ones(4) / 4))
        z = pyro.sample("z", dist.Normal(c.to(y.dtype), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def logits_of(y: Tensor) -> Tensor:
    """Of the posterior of c."""
    return torch.distributions.Normal(LEVELS, 2**0.5).log_prob(y[:, None])


@pytest.mark.parametrize("infer", [{}, AUXILIARY, {"enumerate": "parallel"}])
def test_a_discrete_site_of_the_model_is_refused(infer: Any) -> None:
    """However it is marked: the model sums it out, so its density would count once too often."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            c = pyro.sample("c", dist.Categorical(logits=logits_of(y)), infer=infer)
            pyro.sample("z", dist.Normal((c + y) / 2, SD))

    for ask in (pv.elbo, pv.log_marginal_likelihood, pv.inference_gap, pv.to_inference_data):
        with pytest.raises(ValueError, match=r"samples 'c', a discrete site .*MixtureSameFamily"):
            ask(mixture, guide, Y)
    with pytest.raises(ValueError, match="samples 'c', a discrete site"):
        pv.IWAE(num_particles=2).loss(mixture, guide, Y)


def test_remedy_for_a_discrete_site() -> None:
    """The posterior of z alone, a mixture, is exact: no error is left."""

    def guide(y: Tensor) -> None:
        weights = dist.Categorical(logits=logits_of(y))
        parts = dist.Normal((LEVELS + y[:, None]) / 2, SD)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.MixtureSameFamily(weights, parts))

    exact = logits_of(Y).logsumexp(-1).double() - math.log(4)
    found = pv.log_marginal_likelihood(mixture, guide, Y, pv.ImportanceSampling(200))
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-5)
    value = pv.elbo(mixture, guide, Y, 20).elbo.value
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-5)


def noisy(y: Tensor) -> None:
    """An auxiliary site moves z, which has a distribution given it."""
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Normal(0.0, 0.2), infer=AUXILIARY)
        pyro.sample("z", dist.Normal(y / 2 + a, 0.8))


def test_an_auxiliary_site_gives_a_lower_bound() -> None:
    """E[log p(y, z) - log q(z | a)]: what the auxiliary site adds to the gap is its spread.

    With e = z - y / 2 - a, of variance .64, the posterior (variance 1/2) is missed by a + e.
    """
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y).double()
    log_q = -0.5 * math.log(2 * math.pi * 0.64) - 0.5
    log_posterior = -0.5 * math.log(2 * math.pi * 0.5) - (0.04 + 0.64)
    value, error = pv.elbo(model, noisy, Y, 4000).elbo
    expected = exact + log_posterior - log_q
    assert ((value - expected).abs() < 6 * error).all()  # false alarm 1e-8
    assert (value + 6 * error < exact).all()
    found = pv.log_marginal_likelihood(model, noisy, Y, pv.ImportanceSampling(4000))
    assert ((found.value - exact).abs() < 6 * found.error).all()


def mixed(y: Tensor) -> None:
    """One site follows from the auxiliary one, the other has a distribution."""
    with pyro.plate("data", len(y)):
        a = pyro.sample("noise", dist.Normal(0.0, 0.5), infer=AUXILIARY)
        pyro.sample("a", dist.Delta(a))
        pyro.sample("b", dist.Normal(y / 2 - a, 0.7))


def test_mixed_auxiliary_sites_are_refused() -> None:
    """Which of them make up the density cannot be known."""
    with pytest.raises(ValueError, match=r"\['a'\] of the guide follow .* \['b'\] do not"):
        pv.elbo(two, mixed, Y)


def point(y: Tensor) -> None:
    """A point in place of a distribution, as AutoDelta makes it."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Delta(y / 2))


def observes(y: Tensor) -> None:
    """Says that the latent site is observed."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD), obs=y / 2)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (point, r"puts site 'z' at a point \(Delta\), which has no density"),
        (observes, r"misses the latent site\(s\) \['z'\] .* without obs="),
    ],
)
def test_guides_without_a_density_are_refused(guide: Callable[..., Any], message: str) -> None:
    """By the name of the site."""
    for ask in (pv.elbo, pv.log_marginal_likelihood):
        with pytest.raises(ValueError, match=message):
            ask(model, guide, Y)
