"""The ladder against independent answers: twenty programs under five guides, at a small size.

`make trust` asks 500 data of each cell and prints the table.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import norm

import pyro_vae as pv
from tests.helpers.statistics import FALSE_ALARM
from tests.trust.cells import GUIDES, Cell, cells
from tests.trust.programs import PROGRAMS
from tests.trust.promises import broken

pytestmark = pytest.mark.usefixtures("float64")

QUICK = ("ring", "series")


@pytest.mark.parametrize("name", QUICK)
def test_what_is_accepted_is_right(name: str) -> None:
    """A few data under two guides: reliable, covered, and exact ones within their bound."""
    assert broken(cells(name, 12, ["narrow", "untrained"])) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_accepted_is_right_everywhere(name: str) -> None:
    """Thirty data under each guide."""
    assert broken(cells(name, 30, list(GUIDES))) == []


def cell(**counts: Any) -> Cell:
    """One with nothing to blame."""
    good = Cell("a", "b", 500, 500, 500, 475, 0, 0, 0.01, 500, 1.0, {})
    return replace(good, **counts)


def test_promises_that_are_kept() -> None:
    """Whatever chance does to shares that are right."""
    assert broken([cell(), cell(covered=455), cell(reliable=485), cell(sampled=0, covered=0)]) == []


@pytest.mark.parametrize(
    "fault",
    [
        {"covered": 425},  # 85 percent
        {"covered": 500},
        {"reliable": 450},
        {"beyond": 1},
        {"wrong": 1},
    ],
    ids=str,
)
def test_promises_that_are_broken_are_told(fault: dict[str, int]) -> None:
    """Each wrong twin, by one line or, of its program and its guide, by two."""
    assert 1 <= len(broken([cell(), cell(**fault)])) <= 2


@pytest.mark.slow
def test_the_ladder_agrees_with_annealing_on_digits() -> None:
    """Twenty held-out digits with eight latents: within joint errors, each of them and their mean.

    The wrong twin is a tenth of a nat lower.
    """
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    y = (torch.tensor(load_digits().data) > 8).double()
    decoder = pv.nets.MLPDecoder(8, 64, hidden=(64,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=8).double()
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(64, hidden=(64,)).double()))
    pv.fit(model, guide, y[:1000], num_epochs=40, compile=False, progress=False)
    annealing = pv.AnnealedImportanceSampling(num_temperatures=2000)
    climbed, annealed = (
        pv.log_marginal_likelihood(model, guide, y[1000:1020], estimator, seed=1)
        for estimator in (pv.Tightest(), annealing)
    )
    assert bool((climbed.reliable & annealed.reliable).all())
    off, error = climbed.value - annealed.value, torch.hypot(climbed.error, annealed.error)
    assert float((off / error).abs().max()) < norm.isf(FALSE_ALARM / 40)
    mean, joint = float(off.mean()), float(error.square().sum().sqrt() / 20)
    assert abs(mean) < norm.isf(FALSE_ALARM / 2) * joint < abs(mean - 0.1)
