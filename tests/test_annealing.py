"""Annealing: exact answers, unbiased weights forwards and backwards, and wrong twins."""

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import Bound, Inference, LogMarginal, annealing, hamiltonian
from pyro_vae.evidence.annealing import (
    Adaptive,
    AnnealedImportanceSampling,
    Linear,
    Schedule,
    Sigmoid,
    Start,
    StartFromGuide,
    StartFromPrior,
    annealed,
    log_mean_weight,
    noise_of,
)
from pyro_vae.evidence.hamiltonian import Noise, at, transition
from pyro_vae.evidence.validation import Sandwich, bidirectional
from pyro_vae.evidence.weights import conditioned
from pyro_vae.programs import Prior
from pyro_vae.results import Doubt
from tests.helpers.cases import CASES
from tests.helpers.chains import adapting
from tests.helpers.factor_analysis import exact_guide, mean_field_program, model_of
from tests.helpers.statistics import FACTS, FACTS_Y, FactorAnalysis, assert_coverage, assert_mean

pytestmark = pytest.mark.usefixtures("float64")

MODEL = model_of(FACTS)
MEAN_FIELD = mean_field_program(FACTS)
LOG_P = -8.855632020187
SHORT = AnnealedImportanceSampling(num_temperatures=8, leapfrog_steps=3)


def estimate(
    y: Tensor, method: AnnealedImportanceSampling, guide: Any = None, *, seed: int = 0
) -> LogMarginal:
    """The estimate without its warning: many of these runs are short on purpose."""
    guide = MODEL if guide is None else guide
    with conditioned(MODEL, guide, y, seed) as inference:
        return method(inference, seed=seed, progress=False)


# Exact answers


@pytest.mark.parametrize("temperatures", [1, 7])
def test_start_at_the_posterior_is_exact(temperatures: int) -> None:
    """From the exact posterior the path has no length: every weight is p(y)."""
    y = FACTS.sample(4)
    method = AnnealedImportanceSampling(
        4, num_temperatures=temperatures, leapfrog_steps=2, start=StartFromGuide()
    )
    result = estimate(y, method, exact_guide(FACTS))
    torch.testing.assert_close(result.value, FACTS.log_evidence(y), rtol=0, atol=1e-9)
    torch.testing.assert_close(result.ess, torch.full((4,), 4.0))
    assert result.error.max() < 1e-7
    assert result.bound is Bound.LOWER


def test_one_temperature_is_importance_sampling() -> None:
    """Without a transition the weights are those of draws from the guide."""
    method = AnnealedImportanceSampling(500, num_temperatures=1, start=StartFromGuide())
    result = estimate(FACTS_Y, method, MEAN_FIELD)
    assert abs(float(result.value) - LOG_P) < 6 * float(result.error)


@pytest.mark.parametrize("schedule", [Linear(), Sigmoid(), Adaptive()], ids=lambda s: str(s))
def test_schedules_go_from_0_to_1(schedule: Schedule) -> None:
    """They increase; the adaptive one cuts the length of the path into equal parts."""
    grid = (torch.linspace(0, 1, 200) ** 2)[:, None].repeat(1, 2)
    spread = torch.stack([1 / (grid[:, 0] + 0.01), torch.ones(200)], dim=1)
    places = schedule.places(40, grid, spread)
    assert places.shape == (41, 2)
    assert (places.diff(dim=0) > 0).all()
    assert (places[0] == 0).all()
    assert (places[-1] == 1).all()
    if isinstance(schedule, Adaptive):
        assert places[20, 0] < places[20, 1]  # more places where log r spreads


# Unbiased weights


STARTS = [pytest.param(start, marks=pytest.mark.slow) for start in ("prior", "guide")]


@cache  # of use to two tests
def sandwich_from(start: str, seed: int) -> Sandwich:
    """Both directions, on 300 simulated data."""
    rows = torch.zeros(300, 4)
    if start == "prior":
        method = AnnealedImportanceSampling(num_temperatures=60, leapfrog_steps=4)
        return bidirectional(MODEL, None, rows, method, seed=seed)
    method = AnnealedImportanceSampling(
        num_temperatures=50, leapfrog_steps=3, start=StartFromGuide()
    )
    return bidirectional(MODEL, MEAN_FIELD, rows, method, seed=seed)


@pytest.mark.parametrize("start", STARTS)
def test_weights_are_unbiased(start: str, seed: int) -> None:
    """E of p-hat over p is 1, and backwards E of p over p-hat; the bounds are on their sides."""
    sandwich = sandwich_from(start, seed)
    exact = FACTS.log_evidence(sandwich.data[0])
    low, high = sandwich.lower.value - exact, exact - sandwich.upper.value
    assert_mean(low.exp(), 1.0)
    assert_mean(high.exp(), 1.0)
    for gap in (low, high):
        assert gap.mean() < 5 * gap.std() / len(gap) ** 0.5
    assert sandwich.lower.bound is Bound.LOWER
    assert sandwich.upper.bound is Bound.UPPER
    width = sandwich.width
    torch.testing.assert_close(width.value, -(low + high).mean())
    assert "simulated data" in sandwich.summary()


@pytest.mark.parametrize("start", STARTS)
def test_errors_cover(start: str, seed: int) -> None:
    """Intervals of 1.96 errors hold the truth, from 16 chains."""
    lower, y = sandwich_from(start, seed).lower, sandwich_from(start, seed).data[0]
    off = (lower.value - FACTS.log_evidence(y)).abs()
    assert_coverage((off < 1.96 * lower.error)[lower.reliable])


def test_bounds_of_one_datum_have_a_summary() -> None:
    """Without a spread over data the error is that of the two bounds; so for one of several."""
    method = AnnealedImportanceSampling(4, 4)
    bounds = bidirectional(model_of(FACTS), None, FACTS.sample(2), method)
    for one in (bounds[1], bidirectional(model_of(FACTS), None, FACTS_Y[:1], method)):
        assert (one.width.value, one.width.error) == (one.value[0], one.error[0])
        assert "1 simulated datum is known to within" in one.summary()
    torch.testing.assert_close(bounds.width.value, bounds.value.mean())


def test_errors_of_log_normal_weights_cover() -> None:
    """For normal log weights with variance 0.3; the delta method's error is too small."""
    log_weights = 0.3**0.5 * torch.randn(16, 4000) - 0.15
    value, error = log_mean_weight(log_weights)
    assert_coverage(value.abs() < 1.96 * error)
    delta = pv.stats.log_marginal(log_weights).error
    with pytest.raises(AssertionError):
        assert_coverage(value.abs() < 1.96 * delta)


def test_errors_where_weights_are_zero() -> None:
    """As where the data rule out half of the prior's draws: errors are finite, if a little wide.

    Of the intervals of data without doubt 97% hold the truth. The share is outside of these limits
    by chance in less than one of a million runs.
    """
    log_weights = 0.3**0.5 * torch.randn(16, 4000) - 0.15
    log_weights[torch.rand(16, 4000) < 0.5] = -torch.inf
    method = AnnealedImportanceSampling()
    result = method.result_of(log_weights, torch.full((4000,), 0.65), Bound.LOWER)
    some = result[result.reliable]
    assert len(some) > 3000
    assert some.error.isfinite().all()
    covered = (some.value - math.log(0.5)).abs() < 1.96 * some.error
    assert 0.95 < float(covered.double().mean()) < 0.99


def test_pareto_k_of_dozens_of_chains_is_no_verdict() -> None:
    """Log-normal weights of 32 chains: the 45% of data with k above the limit are covered.

    One-sided, with a false-alarm rate below 1e-6. Errors half as large are caught. Of the data with
    k below the limit no larger share is covered, so a verdict by k would pick the wrong ones.
    """
    log_weights = 0.3**0.5 * torch.randn(32, 4000) - 0.15
    method = AnnealedImportanceSampling(num_chains=32)
    acceptance = torch.full((4000,), method.target_acceptance)
    result = method.result_of(log_weights, acceptance, Bound.LOWER)
    high = result.pareto_k >= pv.stats.reliable_pareto_k(32)
    assert int(high.sum()) > 1000
    assert bool(result.reliable.all())
    least = 0.95 - 4.9 * (0.95 * 0.05 / int(high.sum())) ** 0.5
    for factor, covers in ((1.0, True), (0.5, False)):
        hits = result.value[high].abs() < 1.96 * factor * result.error[high]
        assert (float(hits.double().mean()) > least) == covers
    nothing = torch.full_like(log_weights, -torch.inf)
    doubts = method.result_of(nothing, acceptance, Bound.LOWER).doubts
    assert bool(doubts[Doubt.ZERO_WEIGHTS].all())


# Wrong twins


def always(noise: Any) -> Any:
    """Noise under which every trajectory is accepted: unadjusted dynamics."""
    return (Noise(n.momentum, n.stretch, torch.zeros_like(n.level)) for n in noise)


@pytest.mark.slow
def test_forgetting_to_accept_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains that accept everything have weights that are off."""
    y = FACTS_Y.expand(150, -1)
    method = AnnealedImportanceSampling(num_temperatures=20, leapfrog_steps=2)
    assert_mean((estimate(y, method).value - LOG_P).exp(), 1.0)
    drawn = noise_of
    monkeypatch.setattr(annealing, "noise_of", lambda *args: always(drawn(*args)))
    with pytest.raises(AssertionError):
        assert_mean((estimate(y, method).value - LOG_P).exp(), 1.0)


@pytest.mark.slow
def test_adapting_on_the_way_is_caught() -> None:
    """Steps that follow the chain's own last acceptance are not unbiased; frozen ones are.

    Above: the step is short where a chain was refused, so it remembers where it was.
    """

    def path(z: Tensor) -> tuple[Tensor, Tensor]:  # N(0, 1) to N(0, 1 / 400), log Z known
        square = z.square().sum(dim=-1)
        return -square / 2 - math.log(2 * math.pi) / 2, -399 * square / 2

    chains, count = 20_000, 30
    exact = -math.log(400) / 2
    places = (torch.linspace(0, 1, count + 1) ** 3)[:, None]
    noise = partial(noise_of, torch.randint(2**62, (1,)), count)
    z = torch.randn(chains, 1, 1)
    wrong = adapting(path, z, places, noise(z))
    grid = torch.linspace(0, 1, 200)[None]
    log_step = -(1 + 399 * grid.T[..., None]).log() / 2
    ladder = annealing.Ladder(places, grid, log_step)
    right, _ = annealed(path, z, ladder, noise(z), 1)
    assert_mean((right - exact).exp(), torch.ones(1))
    with pytest.raises(AssertionError):
        assert_mean((wrong - exact).exp(), torch.ones(1))


# Invariance, and every idiom


@pytest.mark.slow
def test_rows_do_not_depend_on_each_other() -> None:
    """Order, other data and chunks change no number; equal rows have noise of their own."""
    y = torch.cat([FACTS.sample(2), FACTS_Y, FACTS_Y])
    whole = estimate(y, SHORT, seed=3)
    other = estimate(y.flip(0)[1:], SHORT, seed=3)
    torch.testing.assert_close(other.value, whole.value.flip(0)[1:], rtol=1e-7, atol=1e-7)
    tiny = AnnealedImportanceSampling(num_temperatures=8, leapfrog_steps=3, memory=0.05)
    chunked = estimate(y, tiny, seed=3)
    torch.testing.assert_close(chunked.value, whole.value, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(chunked.error, whole.error, rtol=1e-5, atol=1e-7)
    assert whole.value[2] != whole.value[3]
    assert (estimate(y, SHORT, seed=4).value != whole.value).all()


@pytest.mark.parametrize(
    "name",
    [
        "gamma",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("markov", "scalar", "dependent", "dirichlet", "scaled")
        ),
    ],
)
def test_idioms_agree_with_importance_sampling(name: str) -> None:
    """From the prior, over constrained supports and several sites; 5 errors either way."""
    case = CASES[name]
    batch = case.data()
    method = AnnealedImportanceSampling(30, num_temperatures=30, leapfrog_steps=3)
    with conditioned(case.program, case.program, batch, 0) as (program, _, rows):
        inference = Inference(program, Prior(program, rows), rows)
        ours = method(inference, seed=0)
        theirs = pv.ImportanceSampling(20_000)(inference, seed=0)
    off = (ours.value - theirs.value).abs() / (ours.error**2 + theirs.error**2).sqrt()
    assert (off < 6).all(), off


@pytest.mark.slow
def test_discrete_latents_are_summed_out() -> None:
    """A mixture over a continuous latent: a sum of normals gives the answer."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            side = pyro.sample("side", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(4 * side - 2, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    y = torch.tensor([-2.0, 0.5, 3.0])
    scale = 1.25**0.5
    parts = [math.log(p) + dist.Normal(m, scale).log_prob(y) for p, m in ((0.7, -2.0), (0.3, 2.0))]
    with conditioned(model, model, y, 0) as inference:
        result = AnnealedImportanceSampling(num_temperatures=100, leapfrog_steps=4)(
            inference, seed=0
        )
    off = (result.value - torch.stack(parts).logsumexp(dim=0)).abs()
    assert (off < 8 * result.error + 0.02).all()


def nonlinear(y: Tensor) -> None:
    """One latent on a bent line."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = torch.stack([z, z.square() - 1, z.sin()], dim=-1)
        pyro.sample("y", dist.Normal(loc, 0.3).to_event(1), obs=y)


@pytest.mark.slow
def test_nonlinear_program_against_quadrature() -> None:
    """300 data on a bent line, some with two modes: unbiased, by a sum over a fine grid."""
    method = AnnealedImportanceSampling(num_temperatures=100, leapfrog_steps=4)
    sandwich = bidirectional(nonlinear, None, torch.zeros(300, 3), method)
    (y,) = sandwich.data
    z = torch.linspace(-8, 8, 8001)
    exact = pv.log_joint(nonlinear, z[:, None, None].expand(-1, len(y), 1), y)
    exact = exact.logsumexp(dim=0) + math.log(16 / 8000)
    assert_mean((sandwich.lower.value - exact).exp(), 1.0)
    assert_mean((exact - sandwich.upper.value).exp(), 1.0)


# At the door


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnnealedImportanceSampling(1), "`num_chains` must be at least 2"),
        (
            lambda: AnnealedImportanceSampling(num_temperatures=0),
            "`num_temperatures` must be a whole number of at least 1",
        ),
        (
            lambda: AnnealedImportanceSampling(target_acceptance=1.0),
            "`target_acc.* between 0 and 1",
        ),
        (lambda: AnnealedImportanceSampling(memory=0.0), "`memory` must be a number above 0"),
        (
            lambda: bidirectional(
                MODEL, None, FACTS_Y, AnnealedImportanceSampling(start=StartFromGuide())
            ),
            "requires a guide",
        ),
        (lambda: bidirectional(CASES["factor"].program, None, torch.ones(2)), "energy"),
    ],
)
def test_refuses(make: Callable[[], Any], message: str) -> None:
    """Numbers out of range, and programs that cannot be simulated."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("question", [pv.log_marginal_likelihood, bidirectional])
def test_an_interrupt_leaves_pyros_checks_on(
    question: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while its traceback is kept, as in notebooks, and with it the chunks of data."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(annealing, "log_mean_weight", interrupted)
    method = AnnealedImportanceSampling(2, 2)
    with pyro.validation_enabled():
        with pytest.raises(KeyboardInterrupt) as kept:
            question(model_of(FACTS), exact_guide(FACTS), FACTS_Y, method)
        with pytest.raises(ValueError, match="scale"):
            dist.Normal(0.0, -1.0)
    assert kept.tb is not None


@pytest.mark.parametrize("start", [StartFromGuide(), StartFromPrior()])
@pytest.mark.parametrize("num_data", [None, 9])
def test_a_guide_that_is_tied_to_rows(start: Start, num_data: int | None, seed: int) -> None:
    """It has no parameters for simulated data: new ones are fitted if the chains start from it."""
    rows = FACTS.sample(6)
    guide = pv.Guide(MODEL, pv.LocalParameters(6), example=rows)
    method = AnnealedImportanceSampling(16, 60, start=start)
    sandwich = bidirectional(MODEL, guide, rows, method, num_data=num_data, seed=seed)
    assert len(sandwich) == (num_data or 6)
    exact = FACTS.log_evidence(sandwich.data[0])
    for bound in (sandwich.lower, sandwich.upper):
        assert bool(((bound.value - exact).abs() < 8 * bound.error + 0.3).all())


def test_program_that_reads_its_data_elsewhere_is_refused() -> None:
    """A latent that depends on the batch itself is no draw from the posterior."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("first", dist.Normal(0.0, 1.0), obs=y[:, 0])
            z = pyro.sample("z", dist.Normal(y[:, 0], 1.0))
            pyro.sample("second", dist.Normal(z, 1.0), obs=y[:, 1])

    with pytest.raises(ValueError, match="uses observed values of the batch directly"):
        bidirectional(model, None, torch.ones(3, 2), SHORT)


def test_few_effective_chains_are_doubted() -> None:
    """A path that is far too steep for its temperatures says so."""
    sharp = FactorAnalysis(10 * FACTS.loadings, FACTS.mean, FACTS.noise_variance / 100)
    method = AnnealedImportanceSampling(num_temperatures=2, leapfrog_steps=2)
    with pytest.warns(UserWarning, match="effective chains"):
        result = pv.log_marginal_likelihood(model_of(sharp), MODEL, sharp.sample(3), method)
    assert not result.reliable.any()


# The size that matters


def large() -> FactorAnalysis:
    """Ten latents, 30 features, noise 0.25."""
    return FactorAnalysis(torch.randn(30, 10), torch.zeros(30), torch.full((30,), 0.25**2))


@pytest.mark.slow
def test_large_factor_analysis() -> None:
    """Within 0.3 nats from 16 chains and 2,000 temperatures; bounds less than 0.6 apart."""
    facts = large()
    method = AnnealedImportanceSampling(num_temperatures=2000)
    sandwich = bidirectional(model_of(facts), None, torch.zeros(8, 30), method)
    exact = facts.log_evidence(sandwich.data[0])
    assert (sandwich.lower.value - exact).mean().abs() < 0.3
    assert sandwich.width.value < 0.6


@pytest.mark.slow
def test_guide_needs_a_tenth_of_the_temperatures() -> None:
    """From the best mean-field guide 40 temperatures are as good as 400 from the prior."""
    facts = large()
    model, y = model_of(facts), facts.sample(12)
    guide = mean_field_program(facts)
    guided = AnnealedImportanceSampling(
        num_temperatures=40, start=StartFromGuide(), schedule=Linear()
    )
    distant = AnnealedImportanceSampling(num_temperatures=400, start=StartFromPrior())
    errors = []
    for method in (guided, distant):
        with conditioned(model, guide, y, 0) as inference:
            value = method(inference, seed=0).value
        errors.append((value - facts.log_evidence(y)).square().mean().sqrt())
    assert errors[0] < errors[1]


# The steps of a chain


def test_a_weight_is_taken_before_its_transition() -> None:
    """E w = Z for any number of temperatures; taken where the chain has moved to, it is not.

    From N(0, 1) to N(0, 1 / 4) times Z, in three temperatures, where the order matters.
    """

    def path(z: Tensor) -> tuple[Tensor, Tensor]:
        square = z.square().sum(dim=-1)
        return -square / 2 - math.log(2 * math.pi) / 2, -3 * square / 2

    def noise(chains: int) -> Any:
        while True:
            yield Noise(torch.randn(chains, 1, 1), *torch.rand(2, chains, 1))

    chains, places = 40_000, torch.tensor([[0.0], [0.3], [0.7], [1.0]])
    ladder = annealing.Ladder(places, torch.tensor([[0.0, 1.0]]), torch.full((2, 1, 1), -0.7))
    z = torch.randn(chains, 1, 1)
    log_weights, _ = annealed(path, z, ladder, noise(chains), 2)
    assert_mean((log_weights + math.log(2)).exp(), torch.ones(1))
    late, point = torch.zeros(chains, 1), at(path, z)
    for (before, place), drawn in zip(pairwise(places), noise(chains), strict=False):
        point, _ = transition(path, point, place, ladder.step(place), drawn, 2)
        late += (place - before) * point.log_ratio
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean((late + math.log(2)).exp(), torch.ones(1))


def bent(z: Tensor) -> tuple[Tensor, Tensor]:
    """A path between two densities that are not Gaussian."""
    return -z.square().sum(dim=-1) / 2, 3 * (z[..., 0].sin() * (z[..., 1] - z[..., 0]).cos())


@pytest.mark.parametrize("leapfrog_steps", [1, 2, 7])
def test_trajectories_are_reversible_and_keep_volume(leapfrog_steps: int) -> None:
    """With its momentum turned around a chain comes back; the map's determinant is 1."""
    beta, step = torch.tensor([0.6]), torch.tensor([[0.3, 0.2]])

    def walk(state: Tensor) -> Tensor:
        ends = hamiltonian._trajectory(
            bent, state[..., :2], state[..., 2:], beta, step, leapfrog_steps
        )
        return torch.cat(ends, dim=-1)

    start = torch.randn(50, 1, 4)
    turn = torch.tensor([1.0, 1.0, -1.0, -1.0])
    end = walk(start)
    assert (end - start).abs().max() > 0.1
    torch.testing.assert_close(walk(end * turn) * turn, start, rtol=0, atol=1e-9)
    with pytest.raises(AssertionError):  # as it is not for a chain that goes on
        torch.testing.assert_close(walk(end), start, rtol=0, atol=1e-9)
    shifts = 1e-5 * torch.eye(4)
    columns = [(walk(start + shift) - walk(start - shift)) / 2e-5 for shift in shifts]
    determinant = torch.linalg.det(torch.stack(columns, dim=-1))
    torch.testing.assert_close(determinant, torch.ones(50, 1), rtol=0, atol=1e-6)
