"""Lower bounds stay low and upper ones high, on average over 200 repeats of one set of data.

On factor analysis, whose log p(y) is exact. Equal rows have draws of their own, so the repeats are
rows. A bound's mean may be off to its own side by any amount, to the other by chance alone.
"""

from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evidence import (
    AnnealedImportanceSampling,
    Bound,
    Estimator,
    ImportanceSampling,
    Linear,
    Sandwich,
    StartFromGuide,
    bidirectional,
)
from pyro_vae.evidence.annealing import Ladder, annealed, noise_of
from pyro_vae.evidence.weights import conditioned
from pyro_vae.stats import log_mean_exp
from tests.helpers.chains import adapting
from tests.helpers.factor_analysis import mean_field_guide, model_of
from tests.helpers.statistics import FACTS, FACTS_Y, FALSE_ALARM

pytestmark = pytest.mark.usefixtures("float64")

MODEL = model_of(FACTS)
REPEATS = 200
DATA = torch.tensor([[1.0], [0.5], [-1.0]], dtype=torch.float64) * FACTS_Y
"""One set of data, not very likely ones: what few draws can tell of them is visibly low."""
SIZES = (2, 10, 100)


def assert_not_above(values: Tensor, limit: Tensor | float) -> None:
    """Asserts that the mean of independent `values`, `(repeats,)`, is at most `limit`.

    A bound that is exactly tight fails with probability `FALSE_ALARM`; one that has slack, less.
    """
    error = float(values.std()) / len(values) ** 0.5
    z = float(values.mean() - limit) / error
    z_max = stats.t.isf(FALSE_ALARM, df=len(values) - 1)
    assert z < z_max, f"z = {z:.1f} > {z_max:.1f}; resolution {z_max * error:.2g}"


def totals(values: Tensor) -> Tensor:
    """Sums over the data of each repeat, `(repeats,)`."""
    return values.view(REPEATS, -1).sum(dim=1)


def broad_guide() -> pv.Guide:
    """The prior: far from the posterior, so that bounds from few draws are visibly low."""
    net = nn.Linear(4, 4)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return pv.Guide(MODEL, pv.Encoder(net), example=torch.zeros(1, 4))


class Low(NamedTuple):
    """An estimator, and whether it is to be seen that it is low."""

    estimator: Estimator
    visibly: bool


def short(**options: object) -> AnnealedImportanceSampling:
    """Few chains and temperatures: bounds hold at any number, and are loose."""
    return AnnealedImportanceSampling(2, num_temperatures=3, leapfrog_steps=1, **options)  # type: ignore[arg-type]


LOWER: dict[str, Low] = {
    **{f"importance-{size}": Low(ImportanceSampling(size), visibly=size == 2) for size in SIZES},
    "annealing": Low(short(), visibly=True),
    "annealing-guide": Low(short(schedule=Linear(), start=StartFromGuide()), visibly=False),
}


@cache  # of use to several tests
def excess(name: str, seed: int) -> Tensor:
    """How far each repeat is above log p of the set, in nats, `(repeats,)`."""
    y = DATA.repeat(REPEATS, 1)
    guide = mean_field_guide(FACTS, MODEL) if name == "annealing-guide" else broad_guide()
    with conditioned(MODEL, guide, y, seed) as inference:
        found = LOWER[name].estimator(inference, seed=seed, progress=False)
    assert found.bound is Bound.LOWER
    return totals(found.value - FACTS.log_evidence(y))


SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in LOWER if n.startswith("annealing")]


@pytest.mark.parametrize("name", [*(n for n in LOWER if n.startswith("importance")), *SLOW])
def test_lower_bounds_are_low(name: str, seed: int) -> None:
    """And where they are loose it is seen, so that what is high by as much would be caught."""
    values = excess(name, seed)
    assert_not_above(values, 0.0)
    if LOWER[name].visibly:
        with pytest.raises(AssertionError, match="resolution"):
            assert_not_above(-values, 0.0)


def test_more_draws_are_higher(seed: int) -> None:
    """L_2 <= L_10 <= L_100, as independent repeats tell; a reversed order would be caught."""
    for low, high in pairwise(SIZES):
        difference = excess(f"importance-{low}", seed) - excess(f"importance-{high}", seed)
        assert_not_above(difference, 0.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_not_above(excess("importance-10", seed) - excess("importance-2", seed), 0.0)


@cache
def sandwich(seed: int) -> Sandwich:
    """Both directions, of 400 data that the model simulates."""
    return bidirectional(MODEL, None, torch.zeros(2 * REPEATS, 4), short(), seed=seed)


@pytest.mark.slow
def test_upper_bounds_are_high(seed: int) -> None:
    """Backwards from the draws that simulated the data; forwards is low, and no upper bound."""
    both = sandwich(seed)
    exact = FACTS.log_evidence(both.data[0])
    assert both.upper.bound is Bound.UPPER
    assert_not_above(exact - both.upper.value, 0.0)
    assert_not_above(both.lower.value - exact, 0.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_not_above(exact - both.lower.value, 0.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_not_above(both.upper.value - exact, 0.0)


def sharp(z: Tensor) -> tuple[Tensor, Tensor]:
    """From N(0, 1) to N(0, 1 / 400), whose integral is 1 / 20."""
    square = z.square().sum(dim=-1)
    return -square / 2 - torch.log(torch.tensor(2 * torch.pi)) / 2, -399 * square / 2


@pytest.mark.slow
def test_steps_that_follow_their_own_chain_are_caught() -> None:
    """They remember where it was: means of 500 chains lie above the truth. Frozen ones do not."""
    count = 30
    z = torch.randn(500 * REPEATS, 1, 1)
    places = (torch.linspace(0, 1, count + 1) ** 3)[:, None]
    noise = partial(noise_of, torch.randint(2**62, (1,)), count)
    grid = torch.linspace(0, 1, 200)[None]
    ladder = Ladder(places, grid, -(1 + 399 * grid.T[..., None]).log() / 2)
    exact = -torch.tensor(400.0).log() / 2

    def repeats(log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights.view(500, REPEATS)) - exact

    assert_not_above(repeats(annealed(sharp, z, ladder, noise(z), 1)[0]), 0.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_not_above(repeats(adapting(sharp, z, places, noise(z))), 0.0)
