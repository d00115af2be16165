"""Tail probabilities are uniform for data of the model, and raw densities are not."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import pyro_vae as pv
from pyro_vae.queries import Tail, outliers
from pyro_vae.stats import FalseAlarms, FalseDiscoveries
from tests.helpers.queries import FACTORS, guide, program, vae
from tests.helpers.statistics import FALSE_ALARM

pytestmark = pytest.mark.usefixtures("float64")

METHOD = pv.ImportanceSampling(100)  # noisy: calibration does not rest on the errors


def uniformity(tail_probability: Tensor) -> float:
    """P-value of the hypothesis that they are uniform."""
    return float(stats.kstest(tail_probability.numpy(), "uniform").pvalue)


@pytest.mark.parametrize("tail", list(Tail))
def test_data_of_the_model(tail: Tail, seed: int) -> None:
    """Tail probabilities are uniform on 1/(n+1) .. 1, whatever the estimator's noise."""
    y, reference = FACTORS.sample(100), FACTORS.sample(1000)
    result = outliers(program, guide(program), y, reference, METHOD, tail=tail, seed=seed)
    p = result.tail_probability.value
    # Of one reference: the ranks go together a little; two samples are what they are.
    exact = FACTORS.log_evidence(y), FACTORS.log_evidence(reference)
    assert float((result.log_p.value - exact[0]).abs().median()) < 0.2
    assert uniformity(p) > FALSE_ALARM
    assert float(p.min()) >= 1 / 1001
    # Wrong twin: the density relative to that of the mode, read as a tail probability.
    peak = FACTORS.log_evidence(FACTORS.mean.unsqueeze(0))
    assert uniformity((result.log_p.value - peak).exp()) < FALSE_ALARM


@pytest.mark.slow
def test_simulated_reference(seed: int) -> None:
    """Data of the model held against data that it simulates; those of another model are caught."""
    y = FACTORS.sample(80)
    fits = outliers(program, guide(program), y, 400, METHOD, seed=seed)
    assert uniformity(fits.tail_probability.value) > FALSE_ALARM
    assert len(fits.reference) == 400
    other = outliers(program, guide(program), 1.7 * y, 400, METHOD, seed=seed)
    assert uniformity(other.tail_probability.value) < FALSE_ALARM


def test_ranks_are_exact(seed: int) -> None:
    """One more than the number of reference data as far out, over one more than all."""
    y, reference = FACTORS.sample(5), FACTORS.sample(30)
    grid = pv.Quadrature()
    p, error = outliers(program, guide(program), y, reference, grid, seed=seed).tail_probability
    lower = FACTORS.log_evidence(reference) <= FACTORS.log_evidence(y).unsqueeze(1)
    torch.testing.assert_close(p, (1 + lower.sum(dim=1)) / 31)
    torch.testing.assert_close(error, (p * (1 - p) / 30).sqrt(), atol=0.02, rtol=0)
    both = outliers(program, guide(program), y, reference, grid, tail=Tail.BOTH, seed=seed)
    folded = 2 * torch.minimum(p, (31 - lower.sum(dim=1)) / 31)
    torch.testing.assert_close(both.tail_probability.value, folded.clamp(max=1))


def test_the_mode_is_out_of_the_ordinary(seed: int) -> None:
    """Its density is higher than that of any datum: Tail.BOTH flags it, Tail.LOW does not."""
    y = FACTORS.mean.unsqueeze(0)
    low = outliers(program, guide(program), y, 300, METHOD, seed=seed)
    both = outliers(program, guide(program), y, 300, METHOD, tail=Tail.BOTH, seed=seed)
    assert float(low.tail_probability.value) > 0.9
    assert float(both.tail_probability.value) < 0.1


def test_planted_outliers_are_found(seed: int) -> None:
    """And hardly anything else, with false discoveries controlled."""
    y = FACTORS.sample(60)
    y[:5] += torch.tensor([4.0, 4.0, 4.0, -4.0, 0.0])
    result = outliers(vae(), None, y, 500, METHOD_FITTED, seed=seed)
    flags = result.flagged()
    assert flags[:5].tolist() == [True] * 5
    assert int(flags[5:].sum()) <= 5  # of 55: a false alarm once in many millions
    assert sorted(result.most_extreme(5).tolist())[:4] == [0, 1, 2, 3]
    assert (
        "data flagged as outliers of low density at a false-discovery rate of 0.05"
        in result.summary()
    )
    assert "against 500 reference data" in result.summary()


METHOD_FITTED = pv.ImportanceSampling(60, proposal=pv.Fitted())


def test_missing_entries_are_held_against_missing_ones(seed: int) -> None:
    """Rows with holes have higher densities: without the same holes in the reference, they pass."""
    y = FACTORS.sample(8)
    y[:4, 1:] = torch.nan
    y[0, 0] = 9.0
    result = outliers(program, guide(program), y, 200, METHOD, seed=seed)
    assert result.reference.shape == (200, 8)
    torch.testing.assert_close(result.reference[:, 0], result.reference[:, 3])
    assert float(result.tail_probability.value[0]) < 0.01
    complete = result.reference[:, 4]
    assert float((complete <= result.log_p.value[1]).double().mean()) > 0.9
    assert not bool((result.tail_probability.value[1:4] > 0.999).all())


def test_false_discoveries() -> None:
    """By hand: thresholds k alpha / N, and all below the last one that holds."""
    control = FalseDiscoveries(0.1)
    p = torch.tensor([0.01, 0.9, 0.04, 0.06, 0.5])  # lines 0.02, 0.04, 0.06, 0.08, 0.1
    assert control(p).tolist() == [True, False, True, True, False]
    assert control(torch.tensor([0.03, 0.5])).tolist() == [True, False]
    assert control(torch.tensor([0.06, 0.5])).tolist() == [False, False]
    assert FalseAlarms(0.05)(p).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_false_discoveries_on_their_lines(dtype: torch.dtype) -> None:
    """Ranks over R + 1 that stand on their lines count, however the quotients are rounded."""
    for number in range(1, 200):
        p = torch.arange(1, number + 1, dtype=dtype) / (20 * number)
        assert FalseDiscoveries(0.05)(p).all()
        assert not FalseDiscoveries(0.05)(p * 1.001).any()


def test_equal_data_tie(seed: int) -> None:
    """A datum among its own copies is at least as likely as all, whatever batch each stood in."""

    def coins(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
            logits = z @ torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.7, -1.0]])
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    y = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    own = y[0].expand(37, -1)  # of another length than the data
    result = outliers(coins, None, y, own, pv.Quadrature(), seed=seed)
    assert result.tail_probability.value[0] == 1
    both = outliers(coins, None, y, own, pv.Quadrature(), tail=Tail.BOTH, seed=seed)
    assert both.tail_probability.value[0] == 1


def test_false_discovery_rate() -> None:
    """Over repetitions, with a common reference, the share of false ones stays below the rate."""
    shares = []
    for _ in range(300):
        reference, null, far = torch.randn(200), torch.randn(40), torch.randn(10) - 4
        score = torch.cat([null, far])
        p = (1 + (reference.unsqueeze(1) <= score).sum(dim=0)) / 201
        flags = FalseDiscoveries(0.2)(p)
        shares.append(float(flags[:40].sum() / max(1, int(flags.sum()))))
    draws = torch.tensor(shares)
    z = (draws.mean() - 0.2) / (draws.std() / math.sqrt(len(draws)))
    assert float(z) < stats.norm.isf(FALSE_ALARM)
    assert float(draws.mean()) > 0.05  # it is no empty promise


def test_data_beyond_the_reference_are_compared_again(seed: int) -> None:
    """Two gross outliers among 60 are flagged though 40 reference data are too few for that."""
    y = FACTORS.sample(60)
    y[:2] += 12.0
    y[1, 0] = torch.nan
    result = outliers(program, guide(program), y, 40, METHOD, seed=seed)
    assert bool(result.flagged()[:2].all())
    assert result.compared[:2].tolist() == [640, 640]  # doubled until 2 / 60 * 5% is reached
    assert bool((result.compared[~result.beyond] >= 40).all())
    assert "against 40 reference data (640 for data that lie beyond all 40)" in result.summary()
    held = outliers(program, guide(program), y, FACTORS.sample(40), METHOD, seed=seed)
    assert not bool(held.flagged().any())  # held-out data cannot be doubled
    assert held.compared.tolist() == [40] * 60


def test_comparing_again_keeps_the_level() -> None:
    """P-values at most a level are no more frequent than that level, below and above 1/(n+1)."""
    number, first, second = 400_000, 19, 99
    place = torch.rand(number, dtype=torch.float64)  # the true tail probability of each datum
    below = [torch.distributions.Binomial(n, place).sample() for n in (first, second)]
    p = torch.where(below[0] == 0, (1 + below[1]) / (second + 1), (1 + below[0]) / (first + 1))
    for level in (0.01, 0.03, 0.05, 0.1, 0.5):
        error = math.sqrt(level * (1 - level) / number)
        z = (float((p <= level + 1e-9).double().mean()) - level) / error
        assert z < stats.norm.isf(FALSE_ALARM / 5)


def test_too_few_reference_data_say_so(seed: int) -> None:
    """With ten of them nothing can be flagged at one percent."""
    y = FACTORS.sample(3) + 30
    result = outliers(program, guide(program), y, 10, METHOD, seed=seed)
    said = result.summary(FalseAlarms(0.01))
    beyond = "3 data beyond all reference data can be flagged only with a larger reference"
    assert f"{beyond}: pass `reference=160`" in said
    more = outliers(program, guide(program), y, 160, METHOD, seed=seed)
    assert bool(more.flagged(FalseAlarms(0.01)).all())
    assert more.enough(FalseAlarms(0.01)) == 160


def tied(y: Tensor) -> None:
    """A location that all data share, and a latent per datum."""
    loc = pyro.sample("loc", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


@pytest.mark.parametrize("given", [None, {"loc": torch.tensor(1.0, dtype=torch.float64)}])
def test_a_guide_that_is_tied_to_rows(given: Any, seed: int) -> None:
    """It has no parameters for the reference; its own value of what all data share is kept."""
    y = torch.cat([dist.Normal(0.0, 1.25**0.5).sample((20,)).double(), torch.tensor([9.0])])
    own = pv.Guide(tied, pv.LocalParameters(21), example=y)
    result = outliers(tied, own, y, 99, given=given, seed=seed)
    loc = (given or own.global_values())["loc"]
    exact = dist.Normal(loc, 1.25**0.5).log_prob(y)
    torch.testing.assert_close(result.log_p.value, exact, rtol=0, atol=0.05)
    assert result.most_extreme(1).tolist() == [20]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (0, "a whole number of at least 1"),
        (torch.full((2, 5), torch.nan), "at least one row and no missing entries"),
    ],
)
def test_bad_references(reference: Any, message: str) -> None:
    """In words."""
    with pytest.raises(ValueError, match=message):
        outliers(vae(), None, FACTORS.sample(2), reference)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_bad_rates(rate: float) -> None:
    """In words."""
    for control in (FalseDiscoveries, FalseAlarms):
        with pytest.raises(ValueError, match="between 0 and 1"):
            control(rate)


def test_data_that_the_model_rules_out_tie() -> None:
    """They are no more unusual than reference data like them."""
    y = torch.full((1, 5), 1e200)
    reference = torch.cat([FACTORS.sample(10), y.expand(9, -1)])
    found = outliers(vae(), guide(vae()), y, reference)
    assert float(found.value) == pytest.approx((1 + 9) / 20)
