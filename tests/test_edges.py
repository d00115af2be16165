"""Edges of supports: sparse priors have right numbers, and what a value cannot say is doubted."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn
from torch.distributions import biject_to, constraints, transforms

import pyro_vae as pv
from pyro_vae.evidence.saturation import saturated
from pyro_vae.guides.entry import posterior_of
from pyro_vae.guides.posteriors import SitesPosterior
from pyro_vae.programs import Program
from pyro_vae.programs.edges import (
    bounds_of,
    draw_unconstrained,
    log_prob_at,
    support_of,
    transform_to,
)
from pyro_vae.results import Doubt

Parts = tuple[Callable[[Tensor], None], Callable[[Tensor], None], Tensor, Tensor]


def dirichlet(a: float) -> Parts:
    """Six words of a topic: the marginal is a Dirichlet-multinomial."""
    prior, y = torch.full((3,), a), torch.tensor([[6.0, 0, 0], [4, 2, 0], [2, 2, 2]])
    exact = dist.DirichletMultinomial(prior.double(), 6).log_prob(y.double())
    return (
        *programs(
            dist.Dirichlet(prior),
            lambda z: dist.Multinomial(6, z),
            lambda y: dist.Dirichlet(prior + y),
        ),
        y,
        exact,
    )


def gamma(a: float) -> Parts:
    """Counts of a sparse rate: the marginal is negative binomial."""
    y, shape = torch.tensor([0.0, 1.0, 5.0]), torch.tensor(a).double()
    exact = dist.GammaPoisson(shape, shape).log_prob(y.double())
    return *programs(dist.Gamma(a, a), dist.Poisson, lambda y: dist.Gamma(a + y, a + 1)), y, exact


def beta(a: float) -> Parts:
    """Successes of six: the marginal is beta-binomial."""
    y, shape = torch.tensor([0.0, 2.0, 6.0]), torch.tensor(a).double()
    exact = dist.BetaBinomial(shape, shape, 6).log_prob(y.double())
    return (
        *programs(
            dist.Beta(a, a), lambda z: dist.Binomial(6, z), lambda y: dist.Beta(a + y, a + 6 - y)
        ),
        y,
        exact,
    )


def programs(
    prior: Any, likelihood: Callable[[Tensor], Any], posterior: Callable[[Tensor], Any]
) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """A model with one latent, and its exact posterior as a guide written by hand."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", prior)
            pyro.sample("y", likelihood(z), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", posterior(y))

    return model, guide


PRIORS = {"Dirichlet": dirichlet, "Gamma": gamma, "Beta": beta}


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("concentration", [0.03, 2.0])
def test_the_exact_posterior_has_no_error(name: str, concentration: float) -> None:
    """Under it every weight is p(y), wherever its draws are: most of them round to an edge."""
    model, guide, y, exact = PRIORS[name](concentration)
    lml = pv.log_marginal_likelihood(model, guide, y, pv.ImportanceSampling(500))
    torch.testing.assert_close(lml.value, exact, rtol=0, atol=2e-4)  # rounding of terms near 100
    assert bool((lml.error < 2e-5).all())
    assert bool(lml.reliable.all())


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.filterwarnings("ignore:log p")
def test_densities_of_rounded_values_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong twin: draws and densities of the values themselves, most of which have rounded."""
    for module in ("programs.traces", "programs.edges", "guides.posteriors"):
        monkeypatch.setattr(f"pyro_vae.{module}.log_prob_at", lambda *_: None)
    for module in ("programs.edges", "guides.posteriors"):
        monkeypatch.setattr(f"pyro_vae.{module}.draw_unconstrained", lambda *_: None)
    with pytest.raises(AssertionError):
        test_the_exact_posterior_has_no_error(name, 0.03)


@pytest.mark.parametrize("name", PRIORS)
def test_sparse_priors_are_integrated(name: str) -> None:
    """At concentration 0.03 every datum is right, and nothing is doubted."""
    model, _, y, exact = PRIORS[name](0.03)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    lml = pv.log_marginal_likelihood(model, guide, y, pv.Tightest(1000))
    assert bool(lml.reliable.all())
    assert bool(((lml.value - exact).abs() <= 4 * lml.error + 1e-4).all())


@pytest.mark.parametrize("name", PRIORS)
def test_a_guide_tied_to_rows_has_no_error(name: str) -> None:
    """Draws and densities of its sites are by logarithms, too."""
    model, guide, y, exact = PRIORS[name](0.03)

    rows = y.clone().requires_grad_()

    def tied(_: Tensor) -> None:
        guide(rows)

    posterior = posterior_of(tied, Program(model, y), (y,))
    assert isinstance(posterior, SitesPosterior)
    lml = pv.log_marginal_likelihood(model, tied, y, pv.ImportanceSampling(500))
    torch.testing.assert_close(lml.value, exact, rtol=0, atol=2e-4)
    z, log_q = posterior.draw(20)
    torch.testing.assert_close(posterior.log_prob(z), log_q, rtol=1e-4, atol=1e-3)


MISSED: dict[str, tuple[Any, Any, Any]] = {
    "Beta": (dist.Beta(0.3, 0.3), lambda p: dist.Binomial(6, p), dist.Normal(1.0, 0.7)),
    "Gamma": (dist.Gamma(0.3, 0.3), dist.Poisson, dist.Normal(0.0, 0.5)),
    "LogNormal": (dist.LogNormal(-3.0, 3.0), dist.Poisson, dist.Normal(0.0, 0.5)),
}


@pytest.mark.parametrize("name", MISSED)
@pytest.mark.filterwarnings("ignore:log p")
def test_mass_at_an_edge_that_a_guide_misses_is_doubted(name: str) -> None:
    """No draw comes near the edge, where nearly all of the posterior of a zero is."""
    prior, likelihood, of_u = MISSED[name]
    near_zero = dist.TransformedDistribution(of_u, [biject_to(prior.support)])
    model, guide = programs(prior, likelihood, lambda _: near_zero)
    y = torch.tensor([0.0])
    for estimator in (
        pv.ImportanceSampling(500),
        pv.ImportanceSampling(100, proposal=pv.Widened()),
    ):
        lml = pv.log_marginal_likelihood(model, guide, y, estimator)
        assert bool(lml.doubts[Doubt.MISSED_MASS].all())
    both = pv.evaluate(model, guide, y, pv.ImportanceSampling(500))
    assert bool(both.log_marginal.doubts[Doubt.MISSED_MASS].all())
    for bound in (both.bound, pv.elbo(model, guide, y)):
        assert Doubt.MISSED_MASS not in bound.doubts  # a bound all the same


KINDS = {
    "gamma": dist.Gamma(2.0, 3.0),
    "inverse gamma": dist.InverseGamma(2.0, 3.0),
    "Weibull": dist.Weibull(2.0, 1.5),
    "log-normal": dist.LogNormal(0.3, 0.7),
    "beta": dist.Beta(2.0, 3.0),
    "Kumaraswamy": dist.Kumaraswamy(2.0, 3.0),
    "logit-normal": dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), [transforms.SigmoidTransform()]
    ),
    "exp of a multivariate normal": dist.TransformedDistribution(
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), [transforms.ExpTransform()]
    ),
    "tanh of a normal": dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), [transforms.TanhTransform()]
    ),
    "ordered": dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), [dist.transforms.OrderedTransform()]
    ),
    "Dirichlet": dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0, 0.5])),
    "logistic normal": dist.LogisticNormal(torch.zeros(3), torch.ones(3)),
    "on an interval": dist.AffineBeta(0.5, 2.0, -1.0, 2.0),
    "several": dist.Gamma(torch.ones(3), 2.0).to_event(1),
    "masked": dist.Gamma(torch.ones(3), 2.0).mask(torch.tensor([True, False, True])).to_event(1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_densities_by_logarithms(kind: str) -> None:
    """Away from edges they are the distribution's own, and so are draws and transforms."""
    q = KINDS[kind]
    to, own = transform_to(q.support), biject_to(q.support)
    u = draw_unconstrained(q, to, torch.Size((2000,)))
    assert u is not None
    u = u.clamp(-6, 6)
    x = to(u)
    torch.testing.assert_close(x, own(u))
    torch.testing.assert_close(to.inv(x), u, rtol=1e-3, atol=1e-3)  # 1 - p has few digits
    torch.testing.assert_close(
        to.log_abs_det_jacobian(u, x), own.log_abs_det_jacobian(u, x), rtol=1e-4, atol=1e-4
    )
    by_logarithms = log_prob_at(q, u, to)
    assert by_logarithms is not None
    torch.testing.assert_close(by_logarithms, q.log_prob(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["gamma", "inverse gamma", "Weibull", "beta", "Kumaraswamy"])
def test_draws_by_logarithms(kind: str) -> None:
    """Their distribution function is uniform, by Kolmogorov and Smirnov at 1e-6."""
    q: Any = KINDS[kind]
    scipy = pytest.importorskip("scipy.stats")
    to = transform_to(q.support)
    u = draw_unconstrained(q, to, torch.Size((4000,)))
    assert u is not None
    x = to(u)
    grid = to(torch.linspace(-25.0, 25.0, 200_001, dtype=torch.float64))
    mass = torch.cumulative_trapezoid(q.log_prob(grid).exp().nan_to_num(0.0, 0.0, 0.0), grid)
    place = torch.searchsorted(grid, x.double()).clamp(1, len(mass)) - 1
    assert scipy.kstest(mass[place].numpy(), "uniform").pvalue > 1e-6


def test_a_user_s_own_subclass_is_asked_itself() -> None:
    """It may mean something else by its density."""

    class Own(dist.Gamma):
        """With another density."""

        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) - 1

    assert log_prob_at(Own(2.0, 3.0), torch.zeros(()), transform_to(Own.support)) is None


def logarithm(y: Tensor) -> None:
    """Needs the logarithm of a value that is 0 in its dtype for half of the prior."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Gamma(0.008, 1.0))
        pyro.sample("y", dist.Normal(z.log() / 40, 0.5), obs=y)


def odds(y: Tensor) -> None:
    """Needs 1 - p of a p that rounds to 1."""
    with pyro.plate("data", len(y)):
        p = pyro.sample("p", dist.Beta(0.05, 0.05))
        pyro.sample("y", dist.Normal(-torch.log1p(-p) / 20, 0.5), obs=y)


@pytest.mark.parametrize(("model", "row"), [(logarithm, -4.0), (odds, 3.0)])
def test_what_the_value_cannot_say_is_doubted(model: Any, row: float) -> None:
    """The program itself works on numbers that have rounded; not so far from the edge."""
    y = torch.tensor([row, 0.0])
    doubted = saturated(Program(model, y), (y,))
    assert bool(doubted[0])
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    assert Doubt.SATURATED.value in pv.elbo(model, guide, y).why_not(0)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("concentration", [0.03, 1.0])
def test_others_are_not_doubted(name: str, concentration: float) -> None:
    """Where nothing changes at the edge any more, that a value rounds is no matter."""
    model, _, y, _ = PRIORS[name](concentration)
    assert not bool(saturated(Program(model, y), (y,)).any())


def of_angles(prior: Any) -> Any:
    """A program of an angle, seen by its cosine and sine, whose posterior is that of 2D noise."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            a = pyro.sample("a", prior)
            loc = torch.stack([a.cos(), a.sin()], dim=-1)
            pyro.sample("y", dist.Normal(loc, 0.5).to_event(1), obs=y)

    return model


@pytest.mark.parametrize(
    "prior",
    [
        dist.VonMises(0.3, 2.0),
        dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([1.0, 0.0])),
            dist.VonMises(torch.tensor([0.3, 2.0]), torch.tensor([2.0, 2.0])),
        ),
    ],
    ids=["von Mises", "mixture"],
)
def test_angles_are_integrated_over_one_turn(prior: Any) -> None:
    """Over the real line, which torch calls their support, their density has no integral."""
    model, y = of_angles(prior), torch.tensor([[1.0, 0.0], [-1.0, 0.1]], dtype=torch.float64)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    found = pv.log_marginal_likelihood(model, guide, y, pv.Quadrature())
    grid = torch.arange(1000, dtype=torch.float64) * (2 * math.pi / 1000) - math.pi
    loc = torch.stack([grid.cos(), grid.sin()], dim=-1)
    terms = dist.Normal(loc, 0.5).log_prob(y[:, None]).sum(dim=-1)
    terms = terms + dist.VonMises(0.3, 2.0).log_prob(grid)
    truth = terms.logsumexp(dim=-1) + math.log(2 * math.pi / 1000)
    assert (found.value - truth).abs().max() < 1e-4


@pytest.mark.usefixtures("user_param_store")
@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
@pytest.mark.parametrize("shared", [False, True], ids=["of a datum", "shared"])
def test_automatic_guides_of_angles_are_refused(*, kind: Any, shared: bool) -> None:
    """They take an angle for any real number; their numbers were read as those within one turn."""

    def model(y: Tensor) -> None:
        b = pyro.sample("b", dist.VonMises(0.3, 2.0)) if shared else 0.0
        with pyro.plate("data", len(y)):
            prior = dist.Normal(0.0, 1.0) if shared else dist.VonMises(0.3, 2.0)
            a = pyro.sample("a", prior)
            pyro.sample("y", dist.Normal(a + b, 0.5), obs=y)

    guide, y = kind(model), torch.tensor([0.5, 1.0])
    guide(y)
    name = "b" if shared else "a"
    with pytest.raises(TypeError, match=rf"'{name}' .* real line.* use pv.Guide\(model, map\)"):
        pv.elbo(model, guide, y)
    pv.elbo(model, pv.Guide(model, pv.GlobalParameters(), example=y), y)  # the remedy


def shifted(sign: float) -> Any:
    """A log-normal, moved and turned around."""
    moves = [transforms.ExpTransform(), transforms.AffineTransform(1.0, 2.0 * sign)]
    return dist.TransformedDistribution(dist.Normal(0.0, 1.0), moves)


MOVED = {
    "shifted log-normal": (shifted(1.0), lambda u: 1 + 2 * u.exp()),
    "turned log-normal": (shifted(-1.0), lambda u: 1 - 2 * u.exp()),
    "composed": (
        dist.TransformedDistribution(
            dist.Normal(0.0, 1.0),
            [
                transforms.ComposeTransform(
                    [transforms.ExpTransform(), transforms.AffineTransform(1.0, 2.0)]
                )
            ],
        ),
        lambda u: 1 + 2 * u.exp(),
    ),
    "moved uniform": (
        dist.TransformedDistribution(
            dist.Uniform(0.0, 1.0), [transforms.AffineTransform(-1.0, 3.0)]
        ),
        lambda u: 3 * torch.special.ndtr(u) - 1,
    ),
    "log-uniform": (
        dist.TransformedDistribution(dist.Uniform(0.0, 3.0), [transforms.ExpTransform()]),
        lambda u: (3 * torch.special.ndtr(u)).exp(),
    ),
    "truncated normal": (
        dist.TransformedDistribution(
            dist.Uniform(0.5, 1.0),
            [transforms.CumulativeDistributionTransform(dist.Normal(0.0, 1.0)).inv],
        ),
        lambda u: u.abs(),
    ),
    "log of a shifted exponential": (
        dist.TransformedDistribution(
            dist.Exponential(1.0),
            [transforms.AffineTransform(1.0, 1.0), transforms.ExpTransform().inv],
        ),
        lambda u: (1 - torch.special.log_ndtr(u)).log(),
    ),
    "falling": (
        dist.TransformedDistribution(
            dist.HalfNormal(1.0),
            [transforms.ExpTransform(), transforms.PowerTransform(torch.tensor(-1.0))],
        ),
        lambda u: (-u.abs()).exp(),
    ),
}


UNMOVED = {
    "logistic": dist.TransformedDistribution(
        dist.Uniform(0.0, 1.0),
        [transforms.SigmoidTransform().inv, transforms.AffineTransform(1.0, 2.0)],
    ),
    "Gumbel": dist.Gumbel(0.0, 1.0),
    "Weibull": dist.Weibull(1.0, 2.0),
    "Pareto": dist.Pareto(2.0, 1.0),
    "Kumaraswamy": dist.Kumaraswamy(1.0, 2.0),
    "inverse gamma": dist.InverseGamma(1.0, 1.0),
    "log of an exponential": dist.TransformedDistribution(
        dist.Exponential(1.0), [transforms.ExpTransform().inv]
    ),
    "squared gamma": dist.TransformedDistribution(
        dist.Gamma(1.0, 1.0), [transforms.PowerTransform(torch.tensor(2.0))]
    ),
}


@pytest.mark.parametrize("name", UNMOVED)
def test_supports_that_torch_knows(name: str) -> None:
    """Ends of a domain go to ends of the line, although the computed logit of 1 is 37."""
    assert str(support_of(UNMOVED[name])) == str(UNMOVED[name].support)


def test_moved_supports_of_vectors() -> None:
    """Events keep their dimensions, and each entry its own bounds."""
    move = transforms.AffineTransform(torch.tensor([1.0, -2.0]), 3.0)
    base = dist.Exponential(torch.ones(2))
    support = support_of(dist.TransformedDistribution(base, [move]).to_event(1).mask(mask=True))
    assert support.event_dim == 1
    assert support.check(torch.tensor([1.5, -1.5]))
    assert not support.check(torch.tensor([0.5, -1.5]))
    unmoved = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [])
    assert support_of(unmoved) is constraints.real


@pytest.mark.parametrize("name", MOVED)
def test_moved_supports_are_integrated(name: str) -> None:
    """Torch gives all values of its last transform; densities were nan, or positive outside."""
    prior, of_normal = MOVED[name]

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = torch.tensor([0.5, 2.0], dtype=torch.float64)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    found = pv.log_marginal_likelihood(model, guide, y, pv.Quadrature())
    u = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    terms = dist.Normal(of_normal(u), 1.0).log_prob(y[:, None]) + dist.Normal(0.0, 1.0).log_prob(u)
    truth = terms.logsumexp(dim=-1) + math.log(24 / 20_000)
    assert (found.value - truth).abs().max() < 1e-4


@pytest.mark.parametrize("prior", [dist.Uniform(0.0, 1.0), dist.HalfNormal(1.0)])
def test_a_guide_outside_the_support_is_refused(prior: Any) -> None:
    """Its draws were moved to the edge: the ELBO exceeded log p(y), and was called reliable."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0))

    with pytest.raises(
        ValueError, match=r"'z' must have values in the support that it has in the model.*got -"
    ):
        pv.elbo(model, guide, torch.zeros(2), 50)


@pytest.mark.parametrize("kind", ["uniform", "affine", "shared"])
def test_a_learned_bound_of_a_support_is_a_constant_for_the_guide(kind: str) -> None:
    """Its graph had gone along: copies and training under a fixed model ended in torch's errors."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low = nn.Parameter(torch.tensor(-1.0))

        def forward(self, y: Tensor) -> None:
            ramp = transforms.AffineTransform(self.low, 9.0)
            beta = dist.TransformedDistribution(dist.Beta(2.0, 2.0), [ramp])
            prior = beta if kind == "affine" else dist.Uniform(self.low, 8.0)
            shared = pyro.sample("t", prior) if kind == "shared" else torch.zeros(())
            with pyro.plate("data", len(y)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0) if kind == "shared" else prior)
                pyro.sample("y", dist.Normal(z + shared, 1.0), obs=y)

    y = torch.linspace(0.0, 3.0, 8)
    program = Model()
    guide = pv.Guide(program, pv.LocalParameters(len(y)), example=y)
    sites: list[Any] = [*guide.program.latent_sites, *guide.program.global_sites]
    bounds = [bound for site in sites for bound in bounds_of(site.support, y)]
    assert any(bound.numel() == 1 and float(bound) == -1.0 for bound in bounds)
    assert not any(bound.requires_grad for bound in bounds)
    how: Any = {"num_epochs": 2, "batch_size": len(y), "progress": False}
    assert np.isfinite(pv.fit(program, guide, y, train_model=False, **how).history.elbo).all()
    assert len(copy.deepcopy(guide).program.structure.global_sites) == (kind == "shared")


def test_a_support_without_a_transform_is_refused_by_name() -> None:
    """Points on a sphere: torch's own error names no site."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.ProjectedNormal(torch.tensor([1.0, 0.0])))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match=r"'z' has the support.*no transform"):
        pv.Guide(model, pv.GlobalParameters(), example=torch.zeros(2, 2))
