"""Proposals, averages and numbers of draws of importance sampling."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import InferDict
from torch import Tensor

import pyro_vae as pv
from pyro_vae import stats
from pyro_vae.compiling import DrawDensities
from pyro_vae.evidence import Bound, LogMarginal, importance
from pyro_vae.evidence.importance import (
    JACKKNIFED,
    PARETO_SMOOTHED,
    ErrorTarget,
    ImportanceSampling,
)
from pyro_vae.evidence.proposals import (
    Defensive,
    DefensivePosterior,
    FromGuide,
    Proposal,
    Widened,
    WidenedPosterior,
)
from pyro_vae.evidence.weights import conditioned
from pyro_vae.guides import FamilyPosterior
from pyro_vae.programs import Prior, Program
from pyro_vae.results import Doubt
from tests.helpers.factor_analysis import (
    exact_guide,
    mean_field_guide,
    mean_field_program,
    model_of,
    prior_guide,
)
from tests.helpers.statistics import FACTS, FACTS_Y, assert_mean

pytestmark = pytest.mark.usefixtures("float64")

MODEL = model_of(FACTS)
MEAN_FIELD = mean_field_program(FACTS)
PROPOSALS: dict[str, Proposal] = {
    "widened": Widened(1.3),
    "narrowed": Widened(0.95),
    "defensive": Defensive(0.2),
    "both": Defensive(0.2, Widened(1.3)),
}


def estimate(method: ImportanceSampling, y: Tensor, seed: int) -> LogMarginal:
    """Without the warnings of the entry point."""
    with conditioned(MODEL, MEAN_FIELD, y, seed) as inference:
        return method(inference, seed=seed)


def gamma_poisson(y: Tensor) -> None:
    """A positive latent, so that the flat one has a Jacobian."""
    with pyro.plate("data", len(y)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Poisson(rate), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("proposal", PROPOSALS.values(), ids=PROPOSALS.keys())
def test_proposals_are_unbiased(proposal: Proposal, seed: int) -> None:
    """The mean weight is p(y) for each of them; the twin whose density is off by 5% is caught."""
    y = FACTS_Y.expand(150, -1)
    result = estimate(ImportanceSampling(300, proposal=proposal), y, seed)
    relative = (result.value - FACTS.log_evidence(y)).exp()
    assert_mean(relative, 1.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(relative * 1.1, 1.0)


def test_widened_density_of_a_program_guide() -> None:
    """N(m, s^2 P^-1), for the center that was found when it was drawn."""
    with conditioned(MODEL, exact_guide(FACTS), FACTS_Y, 0) as (_, posterior, _batch):
        widened = WidenedPosterior(posterior, 1.5)
        z, log_q = widened.draw(50)
        torch.testing.assert_close(widened.log_prob(z), log_q)
        exact = FACTS.posterior(FACTS_Y)
        scaled = exact.loc[0] + (widened.center - exact.loc[0]) * (1 - 1.5)
        spread = torch.distributions.MultivariateNormal(
            scaled, covariance_matrix=1.5**2 * exact.covariance_matrix[0]
        )
        torch.testing.assert_close(log_q, spread.log_prob(z))


def test_prior_draws_have_the_prior_density(seed: int) -> None:
    """Over the log of a Gamma(2, 1) variable: mean digamma(2), density with its Jacobian."""
    y = torch.tensor([3.0, 0.0])
    program = Program(gamma_poisson, y)
    prior = Prior(program, (y,))
    z = prior.sample(2_000)
    assert z.shape == (2_000, 2, 1)
    assert_mean(z[..., 0], torch.digamma(torch.tensor(2.0)))
    log_p = prior.log_prob(z)
    torch.testing.assert_close(log_p, (2 * z - z.exp())[..., 0])  # Gamma(2) = 1


def test_defensive_bounds_the_weights(seed: int) -> None:
    """A guide far too narrow: with the prior mixed in, no weight exceeds max p(y|z) / share."""
    y = FACTS_Y.expand(20, -1)
    narrow = estimate(ImportanceSampling(2_000, proposal=Widened(0.5)), y, seed)
    mixed = estimate(ImportanceSampling(2_000, proposal=Defensive(0.5, Widened(0.5))), y, seed)
    assert narrow.pareto_k.median() > 0.7
    assert mixed.pareto_k.max() < 0.5
    assert ((mixed.value - FACTS.log_evidence(y)).abs() < 6 * mixed.error).all()


@pytest.mark.parametrize("proposal", PROPOSALS.values(), ids=PROPOSALS.keys())
def test_a_datum_is_answered_alone(proposal: Proposal, seed: int) -> None:
    """Neither the other data nor the memory budget change its numbers."""
    y = FACTS.sample(4)
    method = ImportanceSampling(400, proposal=proposal)
    whole = estimate(method, y, seed)
    for other in (estimate(method, y[2:3], seed), estimate(replace(method, memory=0.01), y, seed)):
        expected = whole.value[2:3] if len(other.value) == 1 else whole.value
        torch.testing.assert_close(other.value, expected, rtol=1e-10, atol=1e-10)


def test_defensive_draws_from_the_prior_only_what_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 draws per datum, about 200 are from the prior; all of them differ.

    The base is far away, so that each draw shows where it is from. The share of one datum exceeds
    its limit in less than one run in a million.
    """
    asked: list[int] = []
    sample = Prior.sample

    def counting(prior: Prior, num_particles: int) -> Tensor:
        asked.append(num_particles)
        return sample(prior, num_particles)

    monkeypatch.setattr(Prior, "sample", counting)
    y = torch.zeros(3)
    prior = Prior(Program(gamma_poisson, y), (y,))
    normal = FamilyPosterior(pv.DiagonalNormal(), torch.tensor([[100.0, 0.0]]).expand(3, -1))
    z, _ = DefensivePosterior(normal, prior, 0.1).draw(2_000)
    of_prior = z[..., 0] < 50
    number = of_prior.sum(dim=0)
    assert int((number - 200).abs().max()) < 6 * 13.4
    assert asked == [int(number.max())]
    assert len(z[of_prior].unique()) == int(number.sum())
    assert_mean(z[of_prior], torch.digamma(torch.tensor(2.0)))


def test_density_that_is_not_available_is_refused() -> None:
    """A guide with an auxiliary site has no density at draws of the prior; widening needs none."""

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            auxiliary: InferDict = {"is_auxiliary": True}
            normal = dist.Normal(y.new_zeros(2), 1.0).to_event(1)
            noise = pyro.sample("noise", normal, infer=auxiliary)
            pyro.sample("z", dist.Delta(noise).to_event(1))

    data, method = FACTS.sample(2), ImportanceSampling(50, proposal=Defensive(0.1))
    with pytest.raises(ValueError, match="density at a given point is unknown"):
        pv.log_marginal_likelihood(MODEL, guide, data, method)


def test_averages_say_what_they_are(seed: int) -> None:
    """The plain one is a lower bound; the other two are not, and are not the same number."""
    y = FACTS.sample(3)
    plain = estimate(ImportanceSampling(500), y, seed)
    assert plain.bound is Bound.LOWER
    for average in (PARETO_SMOOTHED, JACKKNIFED):
        other = estimate(ImportanceSampling(500, average=average), y, seed)
        assert other.bound is Bound.TWO_SIDED
        assert other.method == average.method
        assert ((other.value - plain.value).abs() > 1e-8).all()
        torch.testing.assert_close(other.error, plain.error)


def test_until_gives_each_datum_what_it_needs(seed: int) -> None:
    """Errors near the one asked for; the draws of a datum do not hang on the others."""
    y = torch.cat([FACTS.sample(3), FACTS_Y])
    method = ImportanceSampling(200, until=ErrorTarget(0.02, max_samples=12_800))
    result = estimate(method, y, seed)
    assert set(result.num_samples.tolist()) <= {200 * 2**i for i in range(7)}
    assert (result.num_samples > 200).any()
    alone = estimate(method, y[1:2], seed)
    assert alone.num_samples[0] == result.num_samples[1]
    torch.testing.assert_close(alone.value[0], result.value[1], rtol=1e-10, atol=1e-10)


def test_until_does_not_stop_on_luck(seed: int) -> None:
    """With draws of its own the estimate stays unbiased, though the data differ in their draws."""
    y = FACTS_Y.expand(200, -1)
    result = estimate(ImportanceSampling(50, until=ErrorTarget(0.07, 400)), y, seed)
    exact = FACTS.log_evidence(y)
    assert len(result.num_samples.unique()) > 1
    assert_mean((result.value - exact).exp(), 1.0)


def stopped_on_the_way(log_weights: Tensor, until: ErrorTarget) -> Tensor:
    """Log mean weights of the first draws whose own error is small enough: wrong, `(batch,)`."""
    size = 30
    value = torch.full_like(log_weights[0], torch.nan)
    while size <= len(log_weights):
        part = log_weights[:size]
        error = stats.tail_error(part).error
        last = 2 * size > len(log_weights)
        found = value.isnan() & ((error <= until.error) | last)
        value = value.where(~found, stats.log_mean_exp(part))
        size *= 2
    return value


@pytest.mark.slow
def test_stopping_on_luck_is_caught(seed: int) -> None:
    """The twin that stops where the error of the same draws looks small is 7% low; ours is not.

    The error is small where the large weights are still missing, and there it stops.
    """
    y, until = FACTS_Y.expand(300, -1), ErrorTarget(0.12, 480)
    ours = estimate(ImportanceSampling(30, until=until), y, seed)
    exact = FACTS.log_evidence(y)
    assert_mean((ours.value - exact).exp(), 1.0)
    log_weights = pv.log_weights(MODEL, MEAN_FIELD, y, num_samples=480, seed=seed)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean((stopped_on_the_way(log_weights, until) - exact).exp(), 1.0)


def test_until_answers_each_datum_as_if_alone(seed: int) -> None:
    """Data with as many draws are weighed together: rows come back in order, to the last digit."""
    y = FACTS.sample(12)
    method = ImportanceSampling(30, until=ErrorTarget(0.1, 240))
    whole = estimate(method, y, seed)
    assert 1 < len(whole.num_samples.unique()) < 12
    for row in range(12):
        alone = estimate(
            replace(method, until=None, num_samples=int(whole.num_samples[row])),
            y[row : row + 1],
            seed,
        )
        torch.testing.assert_close(alone.value[0], whole.value[row], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.error[0], whole.error[row], rtol=1e-12, atol=1e-12)


def test_until_names_the_datum_that_has_no_density() -> None:
    """By its place in the data, not in the block that was weighed together."""

    def broken(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
            pyro.factor("term", torch.where(y[:, 0] == 7, torch.nan, -z.square().sum(-1)))

    y = torch.arange(5.0, 10.0)[:, None].expand(-1, 4)
    with conditioned(broken, prior_guide, y, 0) as inference:
        sampling = ImportanceSampling(60).sampling(inference, seed=0, progress=False)
        assert len(list(sampling.of_rows(torch.tensor([4, 1])).weights())) == 1
        with pytest.raises(FloatingPointError, match="of datum 2,"):
            list(sampling.of_rows(torch.tensor([4, 2])).weights())
        with pytest.raises(FloatingPointError, match="of datum 2,"):
            list(sampling.of_rows(torch.tensor([4, 2])).of_rows(torch.tensor([1])).weights())


def test_until_says_when_the_budget_is_spent(seed: int) -> None:
    """An error out of reach takes the whole budget, and is a reason for doubt."""
    method = ImportanceSampling(100, until=ErrorTarget(1e-4, max_samples=1_000))
    result = estimate(method, FACTS.sample(2), seed)
    assert result.num_samples.tolist() == [1_000, 1_000]
    assert not result.reliable.any()
    assert result.doubt_counts[Doubt.ERROR_TARGET] == 2


def test_perfect_guide_needs_no_more_than_the_pilot() -> None:
    """Every weight is p(y): the error is 0, so are the doublings."""
    method = ImportanceSampling(100, until=ErrorTarget(0.01))
    result = pv.log_marginal_likelihood(MODEL, exact_guide(FACTS), FACTS.sample(2), method)
    assert result.num_samples.tolist() == [100, 100]


def test_is_plain() -> None:
    """Only the guide's own weights, averaged as they are, have the ELBO in them."""
    assert ImportanceSampling(10).is_plain
    assert not ImportanceSampling(10, proposal=Widened()).is_plain
    assert not ImportanceSampling(10, average=JACKKNIFED).is_plain
    assert not ImportanceSampling(100, until=ErrorTarget(0.1)).is_plain


@pytest.mark.parametrize("proposal", [FromGuide(), Widened()])
def test_evaluate_compiles_only_if_the_estimator_does(
    proposal: Proposal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ELBO has a run of its own if the proposal is not the guide; it is not compiled either."""
    chosen: list[bool | None] = []

    def recorded(program: Program, *, compile: bool | None, memory: float) -> DrawDensities:
        chosen.append(compile)
        return DrawDensities(program, compile=compile, memory=memory)

    monkeypatch.setattr(importance, "DrawDensities", recorded)
    method = ImportanceSampling(40, compile=False, proposal=proposal)
    pv.evidence.evaluate(MODEL, MEAN_FIELD, FACTS.sample(2), method)
    assert set(chosen) == {False}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Widened(0.0), "a finite number above 0; got 0.0"),
        (lambda: Defensive(1.0), "between 0 and 1; got 1.0"),
        (lambda: ErrorTarget(0.0), "`error` must be a finite number above 0; got 0.0"),
        (
            lambda: ImportanceSampling(20, until=ErrorTarget(0.1)),
            "at least 30 for the pilot run of `until`",
        ),
    ],
)
def test_refusals(make: object, match: str) -> None:
    """Errors say what was expected and what came."""
    assert callable(make)
    with pytest.raises(ValueError, match=match):
        make()


def test_family_guides_can_be_widened(seed: int) -> None:
    """A guide of ours as well as a program."""
    y = FACTS.sample(3)
    method = ImportanceSampling(2_000, proposal=Widened(2.0))
    result = pv.log_marginal_likelihood(MODEL, mean_field_guide(FACTS, MODEL), y, method, seed=seed)
    assert ((result.value - FACTS.log_evidence(y)).abs() < 6 * result.error).all()
    assert result.ess.min() > stats.MIN_ESS


def test_forgetting_the_draws_changes_nothing(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Very many draws are weighed piece by piece and dropped: the same numbers to rounding."""
    y, method = FACTS.sample(3), ImportanceSampling(9_000)
    kept = estimate(method, y, seed)
    monkeypatch.setattr(importance, "_KEPT", 100)
    forgotten = estimate(method, y, seed)
    torch.testing.assert_close(forgotten.value, kept.value, rtol=0, atol=1e-9)
    torch.testing.assert_close(forgotten.pareto_k, kept.pareto_k, rtol=0, atol=1e-6)
    assert (forgotten.num_samples == 9_000).all()


def test_weights_that_are_all_zero_are_called_so(seed: int) -> None:
    """The second datum has positive weights."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            pyro.factor("ruled out", torch.where(y > 0, 0.0, -torch.inf) + 0 * z)

    y = torch.tensor([0.0, 1.0])
    with pytest.warns(UserWarning, match="density is 0 at every point that was tried: 1"):
        result = pv.log_marginal_likelihood(model, model, y, pv.ImportanceSampling(50), seed=seed)
    assert result.value.tolist() == [-torch.inf, 0.0]
    assert [result.why_not(row) for row in range(2)] == [[Doubt.ZERO_WEIGHTS.value], []]
