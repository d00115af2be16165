"""Independent checks of the ladder: a filter for series, and the share of effective draws."""

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae._types import Estimate
from pyro_vae.evidence import LogMarginal, tightest
from pyro_vae.evidence.checking import Checks, held_out_mass, shortfall
from pyro_vae.evidence.filtering import Stage
from pyro_vae.evidence.mixtures import StudentMixture, mixture_of
from pyro_vae.evidence.tempering import Population
from pyro_vae.evidence.unreached import unreached_at
from pyro_vae.evidence.weights import conditioned
from pyro_vae.results import Doubt
from tests.trust.programs import Known, series

pytestmark = pytest.mark.usefixtures("float64")

LONG = 20  # steps: none of 1,000 prior draws comes near a whole series
SURE = 0.01  # nats


def answer(value: Tensor, ess: Tensor) -> LogMarginal:
    """An estimate that calls itself reliable, from 1,000 draws."""
    error, number = torch.full_like(value, SURE), torch.full_like(value, 1000).long()
    doubts = {Doubt.HEAVY_TAIL: torch.zeros(len(value), dtype=torch.bool)}
    return LogMarginal(value, error, ess, torch.zeros_like(value), number, doubts=doubts)


@pytest.fixture
def no_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws of the prior find nothing, as for long series."""

    def nothing(self: Checks, rows: Tensor) -> Estimate:
        return Estimate(torch.full((len(rows),), -torch.inf), torch.zeros(len(rows)))

    monkeypatch.setattr(Checks, "_by_prior", nothing)


def missed(known: Known, low: Tensor, seed: int) -> list[bool]:
    """The verdict on estimates that are too low by `low` nats."""
    value = known.log_p - low
    with conditioned(known.model, lambda y: None, known.batch, seed) as inference:
        checks = Checks(*inference, pv.ParticleFilter(), seed)
        found = checks.missed(answer(value, torch.full_like(value, 500)), torch.arange(len(low)))
    return found.tolist()


@pytest.mark.usefixtures("no_prior")
def test_a_filter_shows_mass_of_a_series_that_an_estimate_missed(seed: int) -> None:
    """Two estimates are 8 nats low. These are doubted, and the right ones pass.

    Of 250 right ones none was doubted, nor was any filter more than 1.5 nats low; a doubt takes 4
    joint errors, of 1 nat at most.
    """
    low = torch.tensor([0.0, 8.0, 0.0, 8.0])
    assert missed(series(4, LONG), low, seed) == [False, True, False, True]


@pytest.mark.usefixtures("no_prior")
def test_without_a_filter_it_is_not_seen(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong twin: a single stage, as if the data had no order in time."""
    monkeypatch.setattr(Checks, "stages", [Stage((), {})])
    assert missed(series(2, LONG), torch.tensor([0.0, 8.0]), seed) == [False, False]


def test_a_single_draw_of_the_prior_shows_an_estimate_far_too_low(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its relative error is 1, so no number of errors tells; Markov's inequality does."""
    y = torch.zeros(2)
    value = torch.tensor([-10.0, -10.0])
    one_draw = Estimate(value + torch.tensor([7.0, 3.0]), torch.ones(2))
    monkeypatch.setattr(Checks, "_by_prior", lambda self, rows: one_draw)
    with conditioned(normal, lambda y: None, y, seed) as inference:
        checks = Checks(*inference, pv.ParticleFilter(), seed)
        found = checks.missed(answer(value, torch.full_like(value, 500)), torch.arange(2))
    assert found.tolist() == [True, False]


def test_an_estimate_far_below_an_earlier_one_is_not_accepted(seed: int) -> None:
    """The earlier one comes from a few draws, so its own rung was not accepted."""
    y = torch.zeros(2)
    value, ess = dist.Normal(0.0, 2**0.5).log_prob(y), torch.full((2,), 500.0)
    few = answer(value + torch.tensor([7.0, 3.0]), torch.ones(2))
    with conditioned(normal, lambda y: None, y, seed) as inference:
        run = tightest._Run(pv.Tightest(), *inference, seed, progress=False)
        run.note(dataclasses.replace(few, error=torch.full((2,), 20.0)))
        attempt = run.checked(answer(value, ess), inference.posterior)
    assert attempt.accepted.tolist() == [False, True]
    assert attempt.result.doubts[Doubt.RUNGS_DISAGREE].tolist() == [True, False]


@pytest.mark.parametrize(
    ("below", "expected"), [(1.5, 0.5), (0.9, 0.0), (-3.0, 0.0), (math.inf, math.inf)]
)
def test_a_shortfall_is_what_two_joint_errors_do_not_explain(below: float, expected: float) -> None:
    """Errors of 0.3 and 0.4 nats have a joint one of 0.5, up to a thousandth of a nat."""
    low = Estimate(torch.tensor([-below]), torch.tensor([0.3]))
    high = Estimate(torch.tensor([0.0]), torch.tensor([0.4]))
    assert float(shortfall(low, high)) == pytest.approx(expected, abs=1e-5)


def test_the_error_of_an_estimate_contains_its_shortfall(seed: int) -> None:
    """Both are accepted: the first is 1 joint error below an earlier one, the second is 3 below.

    A posterior with narrow parts had -0.27 ± 0.04 nats at its last rung, after -0.04 ± 0.05.
    """
    y = torch.zeros(2)
    joint = math.hypot(SURE, SURE)
    value, ess = dist.Normal(0.0, 2**0.5).log_prob(y), torch.full((2,), 500.0)
    with conditioned(normal, lambda y: None, y, seed) as inference:
        run = tightest._Run(pv.Tightest(), *inference, seed, progress=False)
        run.note(answer(value + joint * torch.tensor([1.0, 3.0]), ess))
        attempt = run.checked(answer(value, ess), inference.posterior)
    assert attempt.accepted.tolist() == [True, True]
    assert attempt.result.error.tolist() == pytest.approx([SURE, math.hypot(SURE, joint)], rel=0.01)


def test_a_datum_is_filtered_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second rung is compared with the same estimate, in any order of the rows."""
    known, rows = series(3, LONG), torch.tensor([2, 0])
    with conditioned(known.model, lambda y: None, known.batch, seed) as inference:
        checks = Checks(*inference, pv.ParticleFilter(), seed)
        first = checks._by_filter(torch.arange(3))
        monkeypatch.setattr(pv.ParticleFilter, "populations", None)
        again = checks._by_filter(rows)
    torch.testing.assert_close(again.value, first.value[rows])


def normal(y: Tensor) -> None:
    """One latent, and one measurement of it."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_an_estimate_from_few_effective_draws_is_not_accepted(seed: int) -> None:
    """Right numbers, of which the first comes from 9 percent of the draws."""
    y = torch.zeros(2)
    value, ess = dist.Normal(0.0, 2**0.5).log_prob(y), torch.tensor([90.0, 110.0])
    with conditioned(normal, lambda y: None, y, seed) as inference:
        run = tightest._Run(pv.Tightest(), *inference, seed, progress=False)
        attempt = run.checked(answer(value, ess), inference.posterior)
    assert attempt.accepted.tolist() == [False, True]


WAVE = torch.linspace(-5.0, 5.0, 20_001, dtype=torch.float64)
POPULATIONS, ISLANDS, PARTICLES, EXACT = 20, 8, 16, 5000


def waves(frequency: float) -> tuple[Known, Tensor]:
    """Two latents, each seen through a cosine, and exact draws of their posterior given y = 0.

    With frequency 2 there are 36 modes, of which 16 have most of the mass; with 0.6 there are 4.
    """

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(torch.cos(frequency * z), 0.1).to_event(1), obs=y)

    log_joint = dist.Normal(WAVE.new_zeros(()), 1.0).log_prob(WAVE)
    log_joint = log_joint + dist.Normal(torch.cos(frequency * WAVE), 0.1).log_prob(torch.zeros(()))
    log_p = 2 * (log_joint.logsumexp(0) + (WAVE[1] - WAVE[0]).log())
    places = torch.multinomial(log_joint.softmax(0), EXACT * POPULATIONS * 2, replacement=True)
    y = torch.zeros(POPULATIONS, 2)
    return Known(model, (y,), log_p.expand(POPULATIONS)), WAVE[places].view(EXACT, -1, 2)


def shares_missed(frequency: float, *, of_all: bool = False) -> tuple[float, float]:
    """The average share held out, and that which the mixtures of all particles miss in truth.

    Arguments:
        frequency: Frequency of the cosine.
        of_all: Whether nothing is left out: the wrong twin.
    """
    known, z = waves(frequency)
    particles = z[: ISLANDS * PARTICLES].unflatten(0, (ISLANDS, PARTICLES))
    whole = mixture_of(particles.flatten(0, 1), 16)

    def fitted(some: Tensor) -> StudentMixture:
        return whole if of_all else mixture_of(some.flatten(0, 1), 16)

    result = answer(known.log_p, torch.full((POPULATIONS,), 500.0))
    even = torch.zeros(ISLANDS, POPULATIONS, dtype=torch.float64)
    population = Population(result, particles, even)
    shares = torch.full(z.shape[:2], -math.log(EXACT), dtype=torch.float64)
    with conditioned(known.model, lambda y: None, known.batch, 0) as inference:
        found = held_out_mass(inference, population, fitted, result, limit=10_000)
        own = inference._replace(posterior=whole)
        true = unreached_at(own, z, shares, known.log_p, num_samples=1000, limit=10_000)
    return float(found.mean()), float(true.mean())


def test_islands_left_out_show_modes_that_no_particle_is_in(seed: int) -> None:
    """What a fit to 128 particles misses in truth is known from 5,000 exact draws.

    Fits to three quarters of the particles miss more. In 20 runs the ratio was 1.90 on average,
    with a standard deviation of 0.18, so the false-alarm rate is below 1e-6.
    """
    found, true = shares_missed(2.0)
    assert true > 0.02
    assert true < found < 2.8 * true


def test_islands_that_are_fitted_show_nothing(seed: int) -> None:
    """The wrong twin: particles that a mixture was fitted to are where it has mass."""
    found, true = shares_missed(2.0, of_all=True)
    assert found < true / 20


def test_few_modes_are_not_missed(seed: int) -> None:
    """Four modes, each with particles of all islands: 0.0117 +- 0.0010 in 20 runs."""
    found, _ = shares_missed(0.6)
    assert found < 0.02
