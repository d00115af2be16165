"""The ladder: what it keeps of each way, when it goes on, and the ways at its upper end."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import pyro_vae as pv
from pyro_vae import stats
from pyro_vae.evidence import Bound, LogMarginal, Rung, importance, tempering, tightest
from pyro_vae.evidence.checking import Checks
from pyro_vae.evidence.hamiltonian import Moved, Point, transition
from pyro_vae.evidence.mixtures import StudentMixture, mixture_of, student_of
from pyro_vae.evidence.weights import conditioned
from pyro_vae.results import Doubt, with_rows
from tests.helpers.factor_analysis import WEAK, mean_field_guide, model_of
from tests.helpers.statistics import FACTS, FALSE_ALARM, assert_mean

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:log p.y. cannot be trusted"),  # some are meant not to be
]

SIGMA = 0.25
FEW = pv.TemperedSMC(4, 16)


def two_modes(y: Tensor) -> None:
    """Of the first of three latents the sign is not seen."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z[..., 0].abs(), SIGMA), obs=y)


def one_mode(y: Tensor) -> None:
    """A guide that is exact on one of the modes, and has nothing on the other."""
    variance = SIGMA**2 / (1 + SIGMA**2)
    first = y / (1 + SIGMA**2)
    loc = torch.stack([first, 0 * y, 0 * y], dim=-1)
    with pyro.plate("data", len(y)):
        scale = y.new_tensor([variance**0.5, 1.0, 1.0])
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def log_p(y: Tensor) -> Tensor:
    """Of two modes: the integral over positive z, twice."""
    variance = 1 + SIGMA**2
    positive = torch.special.log_ndtr(y / (SIGMA * variance**0.5))
    return math.log(2) + dist.Normal(0.0, variance**0.5).log_prob(y) + positive


Y = torch.tensor([1.8, 2.2, 2.6], dtype=torch.float64)


def estimated(ladder: pv.Tightest, seed: int) -> Any:
    """Without the warnings of the entry point."""
    with conditioned(two_modes, one_mode, Y, seed) as inference:
        return ladder(inference, seed=seed, progress=False)


def test_equal_weights_on_one_of_two_modes_are_not_accepted(seed: int) -> None:
    """The weights of the guide are all alike, and low by log 2; another way finds both modes."""
    alone = pv.log_marginal_likelihood(two_modes, one_mode, Y, pv.ImportanceSampling(1000))
    assert not bool(alone.doubts[Doubt.HEAVY_TAIL].any())
    assert float((log_p(Y) - alone.value - math.log(2)).abs().max()) < 0.05
    found = estimated(pv.Tightest(1000, tempering=FEW), seed)
    assert bool(found.reliable.all())
    assert Rung.GUIDE not in found.rungs
    limit = norm.isf(FALSE_ALARM / 2 / len(Y))
    assert bool(((found.value - log_p(Y)).abs() < limit * found.error).all())


def test_a_ladder_that_ignores_its_checks_is_wrong(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong twin of the test above: it stops at the guide, and calls log 2 too little right."""
    nobody = lambda self, one, *args: torch.zeros(len(one), dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(Checks, "missed", nobody)
    monkeypatch.setattr(Checks, "several_modes", nobody)
    monkeypatch.setattr(importance, "_MOST_MISSED", torch.inf)  # of what lies beyond the draws
    found = estimated(pv.Tightest(1000), seed)
    assert found.rungs == [Rung.GUIDE] * 3
    assert float((log_p(Y) - found.value).min()) > 0.6


def answer(number: float, rows: int, doubted: list[bool]) -> LogMarginal:
    """An answer whose every number tells which way it came from."""
    whole = torch.full((rows,), number)
    doubts = {Doubt.HEAVY_TAIL: torch.tensor(doubted)}
    return LogMarginal(
        whole, whole + 0.1, whole + 0.2, whole + 0.3, (10 * whole).long(), doubts=doubts
    )


LAST = (Rung.STUDENT, Rung.FILTER, Rung.MIXTURE, Rung.TEMPERED)


def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide is accepted for the first and the third datum, a fit for the second."""
    verdicts = {Rung.GUIDE: [False, True, False, True], Rung.FITTED: [False, True]}
    verdicts |= {rung: [True] for rung in LAST}
    ways = {
        rung: lambda run, place=place, doubted=doubted: tightest._Attempt.of(
            answer(float(place), len(run.open), doubted)
        )
        for place, (rung, doubted) in enumerate(verdicts.items(), start=1)
    }
    monkeypatch.setattr(tightest, "_WAYS", ways)


def asserted(ladder: pv.Tightest) -> None:
    """Every number of a datum is that of one way."""
    with conditioned(model_of(WEAK), lambda y: None, WEAK.sample(4), 0) as inference:
        found = ladder.sampled(inference)
    expected = torch.tensor([1.0, 2.0, 1.0, 2.0 + len(LAST)])
    for name, shift in (("value", 0.0), ("error", 0.1), ("ess", 0.2), ("pareto_k", 0.3)):
        torch.testing.assert_close(getattr(found, name), expected + shift)
    assert torch.equal(found.num_samples, (10 * expected).long())
    assert found.rungs == [Rung.GUIDE, Rung.FITTED, Rung.GUIDE, Rung.NONE]
    assert found.reliable.tolist() == [True, True, True, False]
    assert found.why_not(1) == []
    assert "importance sampling from the guide 50.0%" in found.summary()


def test_every_number_is_that_of_the_way_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value, error, ESS, k, draws, doubts and rung; those of the last way where none was."""
    planted(monkeypatch)
    asserted(pv.Tightest())


@pytest.mark.parametrize(
    "name", ["value", "error", "ess", "pareto_k", "num_samples", "doubts", "rung"]
)
def test_a_number_left_from_the_way_before_is_caught(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong twins that mend all but one field of a datum that reaches a later rung."""

    def stale(result: Any, rows: Tensor, other: Any) -> Any:
        return dataclasses.replace(with_rows(result, rows, other), **{name: getattr(result, name)})

    planted(monkeypatch)
    monkeypatch.setattr(tightest, "with_rows", stale)
    with pytest.raises(AssertionError):
        asserted(pv.Tightest())


def test_a_time_limit_stops_between_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that are left say so; those that were accepted stay."""
    planted(monkeypatch)
    with conditioned(model_of(WEAK), lambda y: None, WEAK.sample(4), 0) as inference:
        found = pv.Tightest(time_limit=1e-9).sampled(inference)
    assert found.rungs == [Rung.GUIDE, Rung.NONE, Rung.GUIDE, Rung.NONE]
    assert found.doubt_counts[Doubt.TIME_LIMIT] == 2
    with pytest.raises(ValueError, match="positive number of seconds"):
        pv.Tightest(time_limit=0.0)


@pytest.mark.parametrize(
    ("last", "bound"),
    [
        (Rung.QUADRATURE, Bound.TWO_SIDED),
        (Rung.FITTED, Bound.LOWER),
        (Rung.TEMPERED, Bound.LOWER),
    ],
)
def test_data_without_a_rung_are_named_by_the_last_one(
    last: Rung, bound: Bound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, populations and quadrature, too, were called importance sampling, low on average."""
    ways: dict[Rung, Any] = dict.fromkeys(tightest.RUNGS, lambda run: None)
    ways[last] = lambda run: tightest._Attempt.of(answer(1.0, len(run.open), [True] * 4))
    monkeypatch.setattr(tightest, "_WAYS", ways)
    model = model_of(WEAK)
    guide = mean_field_guide(WEAK, model)
    with pytest.warns(UserWarning, match="for 4 of 4 data") as warned:
        found = pv.log_marginal_likelihood(model, guide, WEAK.sample(4), pv.Tightest())
    named = "importance sampling" if last is Rung.FITTED else last.value
    assert (found.method, found.bound) == (named, bound)
    (message,) = {str(one.message) for one in warned}
    assert "pv.Tightest()" not in message  # it was passed
    assert "Pass more draws" in message


@pytest.mark.parametrize(("draws", "rung"), [(29, Rung.NONE), (100, Rung.GUIDE)])
def test_few_draws_are_not_accepted(
    draws: int, rung: Rung, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the exact posterior: fewer than 30 draws have no tail that could tell."""
    monkeypatch.setattr(tightest, "_SAMPLED", [Rung.GUIDE])
    y = WEAK.sample(3)
    posterior = WEAK.posterior(y)

    def guide(y: Tensor) -> None:
        loc = WEAK.posterior(y).loc
        with pyro.plate("data", len(y)):
            scale_tril = posterior.scale_tril[:1].expand(len(y), -1, -1)
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale_tril))

    with conditioned(model_of(WEAK), guide, y, 0) as inference:
        found = pv.Tightest(draws).sampled(inference, progress=False)
    assert found.rungs == [rung] * 3
    assert (Doubt.NO_TAIL in found.doubt_counts) == (rung is Rung.NONE)


# Student t distributions


def mixture(latents: int) -> StudentMixture:
    """Two components for one datum."""
    loc = torch.stack([torch.zeros(latents), torch.ones(latents)])[None]
    scale_tril = torch.tensor([1.0, 0.5])[:, None, None] * torch.eye(latents)
    return StudentMixture(torch.tensor([[0.3, 0.7]]).log(), loc, scale_tril[None], torch.float64)


def test_density_is_that_of_student_t_distributions() -> None:
    """In one dimension, as torch has it."""
    z = torch.linspace(-5, 5, 11)[:, None, None]
    parts = [
        math.log(share) + dist.StudentT(4.0, loc, scale).log_prob(z[..., 0])
        for share, loc, scale in ((0.3, 0.0, 1.0), (0.7, 1.0, 0.5))
    ]
    torch.testing.assert_close(mixture(1).log_prob(z), torch.logaddexp(*parts))


@pytest.mark.parametrize("scale", [1.0, pytest.param(1.5, id="wrong twin")])
def test_draws_have_that_density(scale: float, seed: int) -> None:
    """Weights to a normal have the mean 1; drawn wider than the density says, they have not."""
    torch.manual_seed(seed)
    q = mixture(3)
    wide = dataclasses.replace(q, scale_tril=scale * q.scale_tril)
    z, own = wide.draw(20_000)
    torch.testing.assert_close(own, wide.log_prob(z))
    target = dist.Normal(torch.full((3,), 0.5), 0.7).to_event(1)
    weights = (target.log_prob(z) - q.log_prob(z)).exp()[:, 0]
    if scale == 1.0:
        assert_mean(weights, 1.0)
    else:
        with pytest.raises(AssertionError, match="resolution"):
            assert_mean(weights, 1.0)


def test_every_mode_gets_a_component(seed: int) -> None:
    """Of eight far apart, in three dimensions: the density is that of the draws at each."""
    torch.manual_seed(seed)
    corners = torch.cartesian_prod(*[torch.tensor([-5.0, 5.0])] * 3)
    z = corners.repeat(40, 1)[:, None] + 0.5 * torch.randn(320, 1, 3)
    log_density = mixture_of(z, 16).log_prob(corners[:, None])
    exact = dist.Normal(torch.zeros(3), 0.5).to_event(1).log_prob(torch.zeros(3)) - math.log(8)
    assert float((log_density - exact).abs().max()) < 1.0
    one = student_of(z, torch.zeros(320, 1)).log_prob(corners[:, None])
    assert float((one - exact).max()) < -2.0  # one t is nowhere near


@pytest.mark.parametrize("place", [0.0, -15.0, 1e4])
def test_equal_draws_have_a_mixture(place: float) -> None:
    """As when one point has all the weight: the covariance is zero up to rounding."""
    z = torch.full((500, 1, 2), place, dtype=torch.float64)
    z += 1e-10 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    assert bool(mixture_of(z, 16).log_prob(z).isfinite().all())


def test_nearly_collinear_draws_have_a_proposal_as_narrow(seed: int) -> None:
    """Latents are correlated by 1 - 5e-9; with a ridge of 1e-6, a tenth of the draws is effective.

    The effective share is 0.92 but for draws' noise of about 0.01.
    """
    torch.manual_seed(seed)
    root = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])
    exact = dist.MultivariateNormal(torch.zeros(2), scale_tril=root)
    z, log_q = student_of(exact.sample((2000, 1)), torch.zeros(2000, 1)).draw(2000)
    assert float(stats.effective_sample_size(exact.log_prob(z) - log_q)) > 1500


# Populations


@pytest.fixture
def few_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that each of them changes the weights a lot."""
    monkeypatch.setattr(tempering, "_FEWEST", 2)
    monkeypatch.setattr(tempering, "_PACE", 3.0)


def tempered(seed: int, **options: Any) -> Tensor:
    """What populations of few particles are off by, over data."""
    y = FACTS.sample(60)
    model = model_of(FACTS)
    method = pv.TemperedSMC(2, 8, **options)
    found = pv.log_marginal_likelihood(model, mean_field_guide(FACTS, model), y, method, seed=seed)
    return found.value - FACTS.log_evidence(y)


def test_populations_are_unbiased(few_stretches: None, seed: int) -> None:
    """The mean of the estimates of p is p, for 16 particles, however they start and move."""
    torch.manual_seed(seed)  # the same data for all
    default = tempered(seed)
    assert_mean(default.exp(), 1.0)
    ways: list[dict[str, Any]] = [
        {"start": pv.StartFromGuide()}, {"leapfrog_steps": 1}, {"target_acceptance": 0.3},
    ]  # fmt: skip
    for way in ways:
        torch.manual_seed(seed)
        found = tempered(seed, **way)
        assert_mean(found.exp(), 1.0)
        assert not torch.allclose(found, default)


def test_populations_that_average_logarithms_are_caught(
    few_stretches: None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong twin: the mean of the log weights of a stretch, in place of the log of their mean."""
    monkeypatch.setattr(stats, "log_mean_exp", lambda logs: logs.mean(dim=0))
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(tempered(seed).exp(), 1.0)


def still(path: Any, point: Point, *args: Any) -> Moved:
    """A transition that moves nothing, with the acceptance rate that is aimed at."""
    return Moved(point, torch.full_like(point.log_base, 0.65))


@pytest.mark.parametrize("move", [transition, still])
def test_particles_that_stay_copies_are_doubted(
    move: Callable[..., Moved], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubts islands of copies; others by chance, at most for one latent in 1000.

    That rate is for twice the variance that independent particles would have.
    """
    monkeypatch.setattr(tempering, "transition", move)
    model = model_of(FACTS)
    inference = (model, mean_field_guide(FACTS, model), FACTS.sample(8))
    found = pv.log_marginal_likelihood(*inference, pv.TemperedSMC(8, 32), seed=seed)
    doubted = found.doubts[Doubt.CHAINS_APART].double().mean()
    assert float(doubted) > 0.5 if move is still else float(doubted) < 0.5


@pytest.mark.parametrize("stuck", [0, 3, 8])
def test_particles_that_do_not_move_are_part_of_the_error(
    stuck: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their share of 32; the others move at every step. None is the wrong twin's answer."""

    def rejected(path: Any, point: Point, *args: Any) -> Moved:
        moved, acceptance = transition(path, point, *args)
        is_stuck = torch.arange(len(acceptance))[:, None] % 32 < stuck
        aimed_at = torch.full_like(acceptance, 0.65 * 32 / (32 - stuck))
        return Moved(moved, aimed_at.masked_fill(is_stuck, 0.0))

    monkeypatch.setattr(tempering, "transition", rejected)
    monkeypatch.setattr(
        tempering, "result_of_islands", lambda *args: answer(0.0, 2, [False, False])
    )
    model, share = model_of(FACTS), stuck / 32
    inference = (model, mean_field_guide(FACTS, model), FACTS.sample(2))
    found = pv.log_marginal_likelihood(*inference, pv.TemperedSMC(2, 32), seed=0)
    expected = math.hypot(float(answer(0.0, 2, [False, False]).error[0]), share)
    torch.testing.assert_close(found.error, torch.full((2,), expected), atol=3e-3, rtol=0)
    assert found.doubts[Doubt.ACCEPTANCE].tolist() == [stuck == 8] * 2  # a quarter of them
