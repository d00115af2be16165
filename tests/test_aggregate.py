"""The aggregated posterior against exact answers on a grid, closed forms, and wrong twins."""

import math
import re
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae._types import Estimate
from pyro_vae.diagnostics import collapse
from pyro_vae.diagnostics.aggregate import Surgery, normals_of, prior_match, surgery
from pyro_vae.guides import Family
from pyro_vae.stats import holm
from tests.helpers.cases import covariate, gamma, scalar
from tests.helpers.factor_analysis import WEAK, exact_guide, mean_field_program, model_of
from tests.helpers.statistics import FALSE_ALARM, assert_coverage

pytestmark = pytest.mark.usefixtures("float64")

LOC = torch.tensor([-1.5, -0.2, 0.1, 1.0], dtype=torch.float64)
SCALE = torch.tensor([0.3, 0.5, 1.0, 0.4], dtype=torch.float64)


def table(
    loc: Tensor, scale: Tensor, family: Family | None = None
) -> tuple[pv.models.VAE, pv.Guide, Tensor]:
    """A model, and a guide whose data are the parameters of their own posteriors.

    `loc` and `scale` are `(data, latents)`.
    """
    latents, y = loc.shape[1], torch.cat([loc, scale.log()], dim=-1)
    return (*programs(latents, y.shape[1], family), y)


def programs(
    latents: int, features: int, family: Family | None = None
) -> tuple[pv.models.VAE, pv.Guide]:
    """A linear VAE, and a guide that takes the data themselves for parameters."""
    model = pv.models.VAE(nn.Linear(latents, features), pv.likelihoods.Gaussian(), latents)
    return model, pv.Guide(model, pv.Encoder(nn.Identity()), family)


def on_a_grid() -> tuple[float, float]:
    """Information and mismatch of four normals in one dimension, by the trapezoidal rule."""
    z = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    each = torch.distributions.Normal(LOC[:, None], SCALE[:, None]).log_prob(z)
    log_aggregate = each.logsumexp(dim=0) - math.log(len(LOC))
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    information = torch.trapezoid((each.exp() * (each - log_aggregate)).mean(dim=0), z)
    mismatch = torch.trapezoid(log_aggregate.exp() * (log_aggregate - prior), z)
    return float(information), float(mismatch)


def assert_close(estimate: Estimate, exact: float | Tensor, errors: float = 6) -> None:
    """Within so many errors; 6 have a false alarm of 2e-9 for many draws."""
    off = (estimate.value - exact).abs() / estimate.error
    assert float(off.max()) < errors, f"{estimate} is {float(off.max()):.1f} errors off {exact}"


def test_surgery_is_what_a_grid_says() -> None:
    """Four overlapping normals in one dimension: information, mismatch, and the marginal."""
    model, guide, y = table(LOC[:, None], SCALE[:, None])
    information, mismatch = on_a_grid()
    parts = surgery(model, guide, y, 2_000)
    assert max(float(parts.information.error), float(parts.mismatch.error)) < 0.015
    assert_close(parts.information, information)
    assert_close(parts.mismatch, mismatch)
    assert_close(parts.rate, information + mismatch)
    marginal = collapse(model, guide, y, 2_000).mismatch
    assert float(marginal.error) < 0.012
    assert_close(marginal, mismatch)
    with pytest.raises(AssertionError, match="errors off"):
        assert_close(parts.information, information + 0.2)


def test_two_latents_on_a_grid() -> None:
    """Two correlated normals: the joint mismatch is not the sum of the marginals'."""
    family = pv.FullRankNormal()
    y = torch.tensor([[-1.0, 0.0, -0.5, 0.6, -0.7], [1.0, 0.5, -0.3, -0.4, -0.9]])
    model, guide = programs(2, 5, family)
    axis = torch.linspace(-8, 8, 801)
    z = torch.cartesian_prod(axis, axis)
    each = family(y).log_prob(z[:, None])  # (points, data)
    mixture = each.logsumexp(dim=1) - math.log(2)
    prior = -z.square().sum(-1) / 2 - math.log(2 * math.pi)
    cell = float(axis[1] - axis[0]) ** 2
    information = float((each.exp() * (each - mixture[:, None])).mean(dim=1).sum()) * cell
    mismatch = float((mixture.exp() * (mixture - prior)).sum()) * cell
    parts = surgery(model, guide, y, 4_000)
    assert_close(parts.information, information)
    assert_close(parts.mismatch, mismatch)
    square = mixture.exp().view(801, 801) * float(axis[1] - axis[0])
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(axis)
    marginals = torch.stack([square.sum(1), square.sum(0)]).clamp(min=1e-300)
    exact = (marginals * (marginals.log() - normal)).sum(1) * float(axis[1] - axis[0])
    assert_close(collapse(model, guide, y, 4_000).mismatch, exact)


def test_parts_add_up_to_the_last_digit() -> None:
    """And agree with the bound that the evidence module has, from the same draws."""
    y = WEAK.sample(30)
    model, guide = model_of(WEAK), mean_field_program(WEAK)
    parts = surgery(model, guide, y, 20, seed=3)
    assert float(parts.information.value + parts.mismatch.value) == float(parts.rate.value)
    assert float(-parts.rate.value - parts.distortion.value) == float(parts.elbo.value)
    bound = pv.elbo(model, guide, y, 20, seed=3)
    torch.testing.assert_close(parts.elbo.value, bound.mean.value)
    torch.testing.assert_close(parts.elbo.error, bound.mean.error)
    torch.testing.assert_close(parts.rate.value, bound.rate.value.mean())


@pytest.mark.slow
def test_errors_cover() -> None:
    """One error holds the truth 68 times in 100, though draws share a datum; a quarter does not."""
    information, mismatch = on_a_grid()
    model, guide, y = table(LOC[:, None], SCALE[:, None])
    found = []
    for seed in torch.randint(2**31, (80,)).tolist():
        parts = surgery(model, guide, y, 40, seed=seed)
        marginal = collapse(model, guide, y, 40, seed=seed).mismatch
        estimates = (parts.information, parts.mismatch, marginal)
        off = [
            (estimate.value - exact).abs() / estimate.error
            for estimate, exact in zip(estimates, (information, mismatch, mismatch), strict=True)
        ]
        found.append([float(part) for part in off])
    for column in torch.tensor(found).T:
        assert_coverage(column < 1, 0.6827)
        with pytest.raises(AssertionError, match="hold the truth"):
            assert_coverage(column < 1 / 4, 0.6827)


def test_rate_of_the_exact_posterior_is_its_closed_form() -> None:
    """Linear Gaussian: KL(N(m_n, P^-1) || N(0, I)), averaged."""
    y = WEAK.sample(40)
    posterior = WEAK.posterior(y)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    exact = torch.distributions.kl_divergence(posterior, prior).mean()
    parts = surgery(model_of(WEAK), exact_guide(WEAK), y, 50)
    assert_close(parts.rate, exact)
    assert 0 < float(parts.information.value) < float(exact) + 5 * float(parts.rate.error)


def test_the_population_of_the_exact_posterior_has_the_prior() -> None:
    """With many data from the model, the aggregate is the prior, and the tests say so."""
    y = WEAK.sample(500)
    model, guide = model_of(WEAK), exact_guide(WEAK)
    mismatch = collapse(model, guide, y, 4).mismatch
    # 2 N times the divergence of a normal fitted to N draws of it is chi-square of 2 degrees, and
    # the aggregate, a smooth density, varies less from one data set to another.
    assert float(mismatch.value.max()) < stats.chi2.isf(FALSE_ALARM, 2) / 2 / len(y)
    assert prior_match(model, guide, y).p_value > FALSE_ALARM


# The prior is the program's


def scalar_prior(y: Tensor) -> None:
    """The prior of `scalar`, N(0.5, 2), as a guide."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(torch.tensor(0.5), 2.0))


def scalar_standard(y: Tensor) -> None:
    """A standard normal, which is not the prior of `scalar`."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))


def gamma_prior(y: Tensor) -> None:
    """The prior of `gamma`."""
    with pyro.plate("data", len(y)):
        pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 3.0))


def test_the_prior_is_the_programs() -> None:
    """N(0.5, 4) here: at it nothing differs, and N(0, 1) is off by its divergence."""
    y = torch.randn(20)
    parts = surgery(scalar, scalar_prior, y)
    assert abs(float(parts.rate.value)) < 1e-12
    assert abs(float(collapse(scalar, scalar_prior, y).mismatch.value)) < 1e-12
    exact = math.log(2) + (1 + 0.25) / 8 - 0.5
    assert_close(surgery(scalar, scalar_standard, y).mismatch, exact)
    marginal = collapse(scalar, scalar_standard, y).mismatch
    assert float(marginal.value) == pytest.approx(exact, abs=1e-9)  # one posterior: no noise
    assert float(marginal.error) < 1e-9


def test_a_prior_that_is_not_normal() -> None:
    """All latents together have an answer still; single ones have none, with what to take."""
    y = torch.arange(12) * 1.0
    parts = surgery(gamma, gamma_prior, y)
    assert abs(float(parts.mismatch.value)) < 1e-9
    assert prior_match(gamma, gamma_prior, y).p_value > FALSE_ALARM
    unknown = collapse(gamma, gamma_prior, y).unknown
    assert re.search(r"prior .* is not normal.*prior_match, which compares draws", unknown)


def test_a_normal_guide_under_a_prior_that_is_not() -> None:
    """It is the prior that is named."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("rate", dist.LogNormal(torch.zeros(len(y)), 1.0))

    unknown = collapse(gamma, guide, torch.arange(12) * 1.0).unknown
    assert "prior of the unconstrained latents is not normal" in unknown


@pytest.mark.parametrize("function", [surgery, collapse, prior_match])
def test_a_prior_for_every_datum_is_refused(function: Callable[..., object]) -> None:
    """With a covariate there is no one prior."""

    def guide(y: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0))

    with pytest.raises(ValueError, match="depends on covariates"):
        function(covariate, guide, (torch.randn(12), torch.randn(12, 2)))


# Collapsed, separated, and estimates from mini-batches


def minibatch_weighted(log_q: Tensor, num_data: int) -> Tensor:
    """The estimate of beta-TCVAE from a square of densities, `(draws, posteriors)`."""
    size = len(log_q)
    return (log_q.diagonal() - log_q.logsumexp(1) + math.log(num_data * size)).mean()


def stratified(log_q: Tensor, num_data: int, *, on_diagonal: bool) -> Tensor:
    """The stratified one: 1 / N for the datum's own posterior, and the rest for the others.

    Not on the diagonal, the weights are where the code that is widely copied puts them.
    """
    others = len(log_q) - 1
    weights = torch.full_like(log_q, (num_data - 1) / num_data / others)
    if on_diagonal:
        weights.fill_diagonal_(1 / num_data)
    else:
        weights[:, 0] = 1 / num_data
    return (log_q.diagonal() - (log_q + weights.log()).logsumexp(1)).mean()


def assert_extremes(estimate: Callable[[Tensor, Tensor], float], num_data: int) -> None:
    """Zero for a collapsed guide, log N for one with posteriors far apart."""
    same, apart = torch.zeros(num_data, 1), 100.0 * torch.arange(num_data)[:, None]
    collapsed = estimate(same, torch.ones(num_data, 1))
    assert abs(collapsed) < 1e-9, f"{collapsed} for a collapsed guide, and not 0"
    separated = estimate(apart, torch.ones(num_data, 1))
    expected = math.log(num_data)
    assert abs(separated - expected) < 1e-9, f"{separated} and not {expected} for separated ones"


def from_surgery(loc: Tensor, scale: Tensor) -> float:
    """The information as this library has it."""
    return float(surgery(*table(loc, scale), 2).information.value)


def from_rows(estimate: Callable[[Tensor, int], Tensor], loc: Tensor, scale: Tensor) -> float:
    """An estimate from a mini-batch of 20."""
    normal = torch.distributions.Normal(loc[:20, 0], scale[:20, 0])
    return float(estimate(normal.log_prob(normal.sample()[:, None]), len(loc)))


def test_the_whole_aggregate_has_both_extremes() -> None:
    """Neither noise nor bias, for any number of draws."""
    assert_extremes(from_surgery, 60)


def test_minibatch_weighting_is_caught() -> None:
    """It reports log N for a collapsed guide."""
    with pytest.raises(AssertionError, match=r"5\.29\d* for a collapsed guide"):
        assert_extremes(lambda *table: from_rows(minibatch_weighted, *table), 200)


def test_stratified_weights_in_a_column_are_caught() -> None:
    """Collapse looks right, but separated posteriors get the logarithm of the mini-batch."""

    def column(log_q: Tensor, num_data: int) -> Tensor:
        return stratified(log_q, num_data, on_diagonal=False)

    def diagonal(log_q: Tensor, num_data: int) -> Tensor:
        return stratified(log_q, num_data, on_diagonal=True)

    assert_extremes(lambda *table: from_rows(diagonal, *table), 200)
    with pytest.raises(AssertionError, match="for"):
        assert_extremes(lambda *table: from_rows(column, *table), 200)


# Normals are told by their density


@pytest.mark.parametrize(
    "family", [pv.DiagonalNormal(), pv.FullRankNormal(), pv.LowRankNormal(1)], ids=str
)
def test_normals_are_found(family: Family) -> None:
    """Their means and variances, from the density alone."""
    q = family(torch.randn(5, family.num_parameters(3)))
    normals = normals_of(q.log_prob, q.sample((16,)))
    assert normals is not None
    torch.testing.assert_close(normals.mean, q.mean.expand(5, 3))
    torch.testing.assert_close(normals.variance, q.variance.expand(5, 3))


def test_others_are_not_taken_for_normals() -> None:
    """A mixture, Student's t, and Laplace, whose slope is constant."""
    for q in (
        torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(1, 2)),
            dist.Normal(torch.tensor([[[-1.0], [1.0]]]), 1.0).to_event(1),
        ),
        dist.StudentT(8.0).expand([1, 1]).to_event(1),
        dist.Laplace(0.0, 1.0).expand([1, 1]).to_event(1),
    ):
        assert normals_of(q.log_prob, q.sample((16,))) is None


def test_flows_are_refused_and_compared_by_draws() -> None:
    """Their single latents have no known density; the tests from draws need none."""
    family = pv.NormalizingFlow(num_transforms=2)
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.GlobalParameters(), family)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.normal_()
    y = torch.randn(30, 3)
    assert "posteriors of this guide are not normal" in collapse(model, guide, y).unknown
    assert prior_match(model, guide, y).aggregate.shape == (30, 2)
    assert abs(float(surgery(model, guide, y, 5).information.value)) < 1e-9


# Tests from draws


def global_guide(parameters: Tensor, family: Family) -> tuple[pv.models.VAE, pv.Guide]:
    """One posterior for all data."""
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    shared = pv.GlobalParameters()
    guide = pv.Guide(model, shared, family)
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.copy_(parameters)
    return model, guide


def p_values(scale: float, repeats: int) -> Tensor:
    """Joint and smallest single p-values of repeated tests, `(repeats, 2)`."""
    model, guide = global_guide(
        torch.tensor([0.0, 0.0, math.log(scale), math.log(scale)]), pv.DiagonalNormal()
    )
    y, found = torch.zeros(60, 3), []
    for seed in torch.randint(2**31, (repeats,)).tolist():
        match = prior_match(model, guide, y, 19, seed=seed)
        found.append([match.joint, float(match.latents.min())])
    return torch.tensor(found)


@pytest.mark.slow
def test_the_level_is_the_nominal_one() -> None:
    """At the prior, the permutation test is exact, and the other errs on the safe side."""
    joint, single = p_values(1.0, 290).T
    assert_coverage(joint > 0.05 + 1e-9, 0.95)
    alarms = int((single <= 0.05).sum())
    assert alarms <= stats.binom.isf(FALSE_ALARM, len(single), 0.05)


def test_a_narrow_aggregate_is_caught() -> None:
    """With half of the prior's spread, both tests reject far more often than they may."""
    for p_value in p_values(0.5, 50).T:
        alarms = int((p_value <= 0.05 + 1e-9).sum())
        assert alarms > stats.binom.isf(FALSE_ALARM, len(p_value), 0.05)


def test_latents_that_depend_on_each_other() -> None:
    """Each is N(0, 1) by itself: only the joint test and the joint divergence see it."""
    rho = 0.9
    own = math.sqrt(1 - rho**2)
    parameters = torch.tensor([0.0, 0.0, 0.0, rho, math.log(own)])
    model, guide = global_guide(parameters, pv.FullRankNormal())
    y = torch.zeros(400, 3)
    match = prior_match(model, guide, y)
    assert match.joint == 0.001
    assert float(match.latents.min()) > FALSE_ALARM
    assert "q(z) is not the prior" in match.verdict
    assert float(collapse(model, guide, y, 2).mismatch.value.abs().max()) < 1e-9
    assert_close(surgery(model, guide, y, 2).mismatch, -math.log(own))


def test_a_shifted_latent_is_named() -> None:
    """The second of two; the first is left alone but for chance."""
    model, guide = global_guide(torch.tensor([0.0, 1.0, 0.0, 0.0]), pv.DiagonalNormal())
    match = prior_match(model, guide, torch.zeros(50_000, 3))
    assert float(match.latents[1]) < FALSE_ALARM < float(match.latents[0])
    assert float(match.distances[1]) == pytest.approx(
        0.382925,
        abs=6 * math.sqrt(2 * 0.213 / 50_000),  # 2 Phi(1/2) - 1; two binomial errors
    )
    assert "a difference is detected in z[1]" in match.verdict


def test_holm_is_the_textbooks() -> None:
    """Ordered, multiplied by the tests left, never decreasing, at most 1."""
    torch.testing.assert_close(
        holm(torch.tensor([0.9, 0.005, 0.3, 0.02])), torch.tensor([0.9, 0.02, 0.6, 0.06])
    )


def test_too_little_is_refused() -> None:
    """One draw, few data, no permutation."""
    model, guide, y = table(LOC[:, None], SCALE[:, None])
    for function in (surgery, collapse):
        with pytest.raises(ValueError, match="at least 2 draws per datum; got 1"):
            function(model, guide, y, 1)
    with pytest.raises(ValueError, match="at least 10 rows; got 4"):
        prior_match(model, guide, y)
    with pytest.raises(ValueError, match=r"`num_permutations` must be .* at least 1; got 0"):
        prior_match(model, guide, y, 0)


def test_verdicts() -> None:
    """Words for a collapsed, a separated and an ordinary guide."""

    def verdict(loc: Tensor, scale: float) -> str:
        parts: Surgery = surgery(*table(loc, torch.full_like(loc, scale)))
        assert parts.verdict in parts.summary()
        return parts.verdict

    assert "no information" in verdict(torch.zeros(30, 1), 1.0)
    assert "no difference" in verdict(torch.zeros(30, 1), 1.0)
    apart = verdict(100.0 * torch.arange(30.0)[:, None], 1.0)
    assert "reached its ceiling" in apart
    assert "100% of the rate" in apart
    assert "by a factor of" in verdict(torch.linspace(-2, 2, 30)[:, None], 1.0)
