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
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.guides import ProgramPosterior
from pyro_vae.guides.entry import draw_globals
from pyro_vae.programs import Program
from tests.helpers.remedies import SD, Y, hierarchy
from tests.helpers.remedies import exact as plain
from tests.helpers.remedies import location as model

AUXILIARY: Any = {"is_auxiliary": True}


def two(y: Tensor) -> None:
    """The same with z = a + b."""
    with pyro.plate("data", len(y)):
        a, b = (pyro.sample(name, dist.Normal(0.0, SD)) for name in "ab")
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


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


def transformed(y: Tensor) -> None:
    """As a standard normal, moved and scaled."""
    move = dist.transforms.AffineTransform(y / 2, SD)
    with pyro.plate("data", len(y)):
        pyro.sample(
            "z", dist.TransformedDistribution(dist.Normal(torch.zeros(len(y)), 1.0), [move])
        )


GUIDES = (
    plain, with_factor, with_factor_outside, with_observed, masked, masked_by_itself, scaled,
    transformed,
)  # fmt: skip


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
def test_a_discrete_site_of_the_model_counts_in_log_q(infer: Any) -> None:
    """However it is marked: q(c, z) is the posterior, so every weight is p(y)."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            c = pyro.sample("c", dist.Categorical(logits=logits_of(y)), infer=infer)
            pyro.sample("z", dist.Normal((c + y) / 2, SD))

    exact = logits_of(Y).logsumexp(-1).double() - math.log(4)
    for value in (
        pv.elbo(mixture, guide, Y, 20).elbo.value,
        pv.log_marginal_likelihood(mixture, guide, Y, pv.ImportanceSampling(200)).value,
    ):
        torch.testing.assert_close(value, exact, rtol=0, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"'c' .* reparameterized .*; got Categorical, .*Trace_ELBO"
    ):
        pv.IWAE(num_particles=2).differentiable_loss(mixture, needs_gradient(guide), Y)


def needs_gradient(guide: Callable[..., Any]) -> Callable[..., Any]:
    """The same guide, of data that want a gradient."""
    return lambda y: guide(y.clone().requires_grad_())


def uniform(y: Tensor) -> None:
    """The wrong q(c), and the right q(z | c)."""
    with pyro.plate("data", len(y)):
        c = pyro.sample("c", dist.Categorical(torch.ones(4) / 4))
        pyro.sample("z", dist.Normal((c + y) / 2, SD))


def test_the_gap_of_a_discrete_site_is_in_the_elbo() -> None:
    """The wrong twin: its ELBO is the mean of log p(y, c), and log p by its draws is right."""
    joint = logits_of(Y).double() - math.log(4)
    value, error = pv.elbo(mixture, uniform, Y, 4000).elbo
    expected = (joint + math.log(4)).mean(dim=-1)
    assert ((value - expected).abs() < 6 * error).all()  # false alarm 1e-8
    assert (value + 6 * error < joint.logsumexp(-1)).all()
    found = pv.log_marginal_likelihood(mixture, uniform, Y, pv.ImportanceSampling(4000))
    assert ((found.value - joint.logsumexp(-1)).abs() < 6 * found.error).all()
    defensive = pv.ImportanceSampling(4000, proposal=pv.Defensive())  # asks q(z) at given points
    found = pv.log_marginal_likelihood(mixture, uniform, Y, defensive)
    assert ((found.value - joint.logsumexp(-1)).abs() < 6 * found.error).all()


def levels(y: Tensor) -> None:
    """Two discrete sites and nothing else, one the parent of the other."""
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Bernoulli(0.3))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        pyro.sample("y", dist.Normal(a + 2 * b, 1.0), obs=y)


def test_a_guide_may_sample_some_discrete_sites() -> None:
    """The others are summed out: with q(a) = p(a | y) every weight is p(y)."""
    a, b = torch.meshgrid(torch.arange(2.0), torch.arange(2.0), indexing="ij")
    log_p = torch.distributions.Bernoulli(0.3).log_prob(a)
    log_p = log_p + torch.distributions.Bernoulli(0.2 + 0.5 * a).log_prob(b)
    joint = log_p + torch.distributions.Normal(a + 2 * b, 1.0).log_prob(Y[:, None, None])

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            chance = joint.logsumexp(-1).softmax(-1)[:, 1].repeat(len(y) // 4)
            pyro.sample("a", dist.Bernoulli(chance))

    exact = joint.logsumexp((1, 2)).double()
    run = Program(levels, Y)
    z, log_q = ProgramPosterior(run, guide, (Y,)).draw(5)
    weights = run.log_joint(z, Y).double() - log_q.double()
    torch.testing.assert_close(weights, exact.expand(5, 4), rtol=0, atol=1e-5)


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


def spread(y: Tensor) -> None:
    """A wide auxiliary site that nothing depends on, beside the exact posterior."""
    with pyro.plate("data", len(y)):
        pyro.sample("a", dist.Normal(0.0, 3.0), infer=AUXILIARY)
        pyro.sample("z", dist.Normal(y / 2, SD))


@pytest.mark.parametrize("objective", [pv.IWAE(7), pv.STL(7), pv.BetaELBO(1.0)])
def test_objectives_leave_auxiliary_noise_out(objective: Any) -> None:
    """The entropy of noise is no part of a bound: it lifted the bound above log p(y)."""
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(Y).sum()
    torch.testing.assert_close(-objective.loss(model, spread, Y), float(exact), rtol=1e-5, atol=0)


def test_a_guide_masked_inside_a_transformation_is_refused() -> None:
    """Its density lacked the masked part, and the ELBO was off by as much."""

    def positive(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        base = dist.Normal(torch.zeros(len(y)), 1.0).mask(y > 1)
        with pyro.plate("data", len(y)):
            exp = dist.transforms.ExpTransform()
            pyro.sample("z", dist.TransformedDistribution(base, [exp]))

    with pytest.raises(ValueError, match=r"site 'z' is masked inside a transformation"):
        pv.elbo(positive, guide, Y)


def mixed(y: Tensor) -> None:
    """One site follows from the auxiliary one, the other has a distribution."""
    with pyro.plate("data", len(y)):
        a = pyro.sample("noise", dist.Normal(0.0, 0.5), infer=AUXILIARY)
        pyro.sample("a", dist.Delta(a))
        pyro.sample("b", dist.Normal(y / 2 - a, 0.7))


def test_mixed_auxiliary_sites_are_refused() -> None:
    """Which of them make up the density cannot be known."""
    with pytest.raises(ValueError, match=r"site 'a' from auxiliary .* draws the site 'b'"):
        pv.elbo(two, mixed, Y)


def point(y: Tensor) -> None:
    """A point in place of a distribution, as AutoDelta makes it."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Delta(y / 2))


def sampling(q: Callable[[Tensor], Any]) -> Any:
    """A guide with this distribution of z."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", q(y))

    return guide


def grid(y: Tensor) -> Any:
    """Earlier draws of the posterior, of which one is picked."""
    points = y[:, None] / 2 + torch.linspace(-2, 2, 20)
    return dist.Empirical(points, torch.zeros_like(points))


def observes(y: Tensor) -> None:
    """Says that the latent site is observed."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(y / 2, SD), obs=y / 2)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (point, r"samples site 'z' from a point mass \(Delta\), which has no density"),
        (
            sampling(lambda y: dist.Normal(y[:, None] / 2, SD).to_event(1)),
            r"site 'z' must .* got shape \(4, 1\) for the batch in the guide, and shape \(\) per",
        ),
        (
            sampling(lambda y: dist.MultivariateNormal(torch.zeros(len(y), 3), torch.eye(3))),
            r"site 'z' must .* got shape \(4, 3\) for the batch in the guide, and shape \(\) per",
        ),
        (sampling(lambda y: dist.Poisson(y.exp())), "site 'z' is continuous .* discrete"),
        (sampling(grid), "site 'z' is continuous .* discrete"),
        (observes, r"lacks \['z'\]; .* without `obs`"),
    ],
)
def test_guides_without_a_density_are_refused(guide: Callable[..., Any], message: str) -> None:
    """By the name of the site."""
    for ask in (pv.elbo, pv.log_marginal_likelihood):
        with pytest.raises(ValueError, match=message):
            ask(model, guide, Y)


def test_auxiliary_sites_of_global_sites_are_of_no_datum() -> None:
    """An automatic guide of a global site, called by a guide of the others, leaves q(z_n) known."""
    shared = AutoNormal(poutine.block(hierarchy, expose=["loc"]))

    def guide(y: Tensor) -> None:
        shared(y)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((y + 0.5) / 2, SD))

    program = Program(hierarchy, Y).given({"loc": torch.tensor(0.5)})
    z, log_q = ProgramPosterior(program, guide, (Y,)).draw(5)
    torch.testing.assert_close(ProgramPosterior(program, guide, (Y,)).log_prob(z), log_q)
    defended = pv.ImportanceSampling(200, proposal=pv.Defensive(0.5))
    found = pv.log_marginal_likelihood(hierarchy, guide, Y, defended, given=program.fixed)
    exact = torch.distributions.Normal(0.5, 2**0.5).log_prob(Y).double()
    assert bool(((found.value - exact).abs() <= 6 * found.error).all())
    pyro.clear_param_store()  # of the automatic guide


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars in guide")
def test_what_follows_in_model_and_guide_has_no_density() -> None:
    """A `Delta` that both have, as Pyro asks for: ELBO, log p and training as without it."""

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            double = pyro.sample("double", dist.Delta(2 * z))
            pyro.sample("y", dist.Normal(double, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        weight = pyro.param("weight_of_double", torch.tensor(0.4))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(weight * y, 0.2**0.5))
            pyro.sample("double", dist.Delta(2 * z))

    y = torch.tensor([0.0, 1.0, -3.0])
    exact = torch.distributions.Normal(0.0, 5**0.5).log_prob(y).double()
    value = pv.elbo(program, guide, y, 5).elbo.value  # it is the posterior
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-5)
    refined = pv.inference_gap(program, guide, y, num_samples=50)
    torch.testing.assert_close(refined.log_marginal.value, exact, rtol=0, atol=1e-4)
    result = pv.fit(program, guide, y, num_epochs=1, batch_size=3, progress=False)
    assert result.history.elbo[-1] == pytest.approx(float(exact.mean()), abs=1e-4)


def test_auxiliary_noise_of_shared_sites_is_left_out() -> None:
    """Under the exact posterior of all sites, the bound on all data is log p(y) itself."""

    def hierarchy(y: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(b, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    precision = 1 + len(Y) / 2
    posterior = dist.Normal(Y.sum() / 2 / precision, precision**-0.5)

    def guide(y: Tensor) -> None:
        pyro.sample("a", dist.Normal(0.0, 3.0), infer=AUXILIARY)
        b = pyro.sample("b", posterior)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((y + b) / 2, SD))

    normal = torch.distributions.MultivariateNormal(
        torch.zeros(len(Y)), 2 * torch.eye(len(Y)) + torch.ones(len(Y), len(Y))
    )
    loss = pv.BetaELBO(1.0).loss(hierarchy, guide, Y)
    torch.testing.assert_close(-loss, float(normal.log_prob(Y)), rtol=1e-5, atol=0)
    for drawn in draw_globals(Program(hierarchy, Y), guide, (Y,), 2, seed=0):
        expected = posterior.log_prob(drawn.values["b"])
        torch.testing.assert_close(drawn.log_guide, expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [("a", r"lacks \['b'\]"), ("abc", "samples site 'c', but the latent sites of the model are")],
)
def test_training_refuses_what_evaluation_refuses(names: str, message: str) -> None:
    """Pyro only warned, and by a site too many the ELBO was above log p(y)."""
    net = nn.Linear(1, 1)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            for name in names:
                pyro.sample(name, dist.Normal(net(y[:, None])[:, 0], SD))

    for objective in (None, pv.STL(3)):
        with pytest.raises(ValueError, match=message):
            pv.fit(two, guide, Y, objective=objective, num_epochs=1, progress=False)
    with pytest.raises(ValueError, match=message):
        pv.elbo(two, guide, Y)


@pytest.mark.parametrize("name", ["draws", "log_marginal"])
def test_a_guide_of_a_mixture_that_draws_one_value_at_a_time(name: str) -> None:
    """It takes wrong means for a sample shape; its equal components are one normal."""

    def two(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(y), 2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    def mixture(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            locs, scale = (y / 2)[:, None].expand(-1, 2, -1), torch.full((len(y), 2, 2), SD)
            q = dist.MixtureOfDiagNormals(locs, scale, torch.zeros(len(y), 2))
            pyro.sample("z", q)

    y = torch.randn(3, 2)
    if name == "draws":
        y += 100 * torch.arange(3)[:, None]
        posterior = ProgramPosterior(Program(two, y), mixture, (y,))
        for number in (2, 7):  # at most as many draws as rows, and more
            with torch.no_grad():
                z, log_q = posterior.draw(number)
            assert float((z - y / 2).abs().max()) < 10 * SD
            torch.testing.assert_close(log_q, dist.Normal(y / 2, SD).to_event(1).log_prob(z))
    else:
        lml = pv.log_marginal_likelihood(two, mixture, y, pv.ImportanceSampling(50))
        expected = dist.Normal(0.0, 2**0.5).log_prob(y).sum(dim=1)
        assert SD == 0.5**0.5  # the exact posterior: every weight is p(y)
        torch.testing.assert_close(lml.value, expected.double(), rtol=1e-5, atol=1e-5)
