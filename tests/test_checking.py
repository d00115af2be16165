"""Independent checks of the ladder: a filter for series, and the share of effective draws."""

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae._types import Estimate
from pyro_vae.evidence import LogMarginal, tightest
from pyro_vae.evidence.checking import Checks
from pyro_vae.evidence.filtering import Stage
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
