"""Dirichlet posteriors under the ladder, whose tails are those of an exponential: a small size.

`make trust` has 500 data under five guides; here the same is seen in a second.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import Rung
from tests.helpers.statistics import FALSE_ALARM

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:log p.y. cannot be trusted"),  # a few may be in doubt
]

WORDS, DATA = 20, 60


def test_intervals_of_dirichlet_posteriors_cover(seed: int) -> None:
    """Nine in ten data are accepted, some by the Student t, and 95% intervals hold the truth.

    One-sided with false-alarm rate 1e-6, since 60 data cannot show that intervals are too wide.
    Errors a third as large, as of a proposal whose tails are too light, are caught. All of 1,400
    data of other seeds were accepted, so that a tenth in doubt is no chance.
    """
    prior = torch.ones(4)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            share = pyro.sample("share", dist.Dirichlet(prior))
            pyro.sample("y", dist.Multinomial(WORDS, share), obs=y)

    torch.manual_seed(seed)
    y = dist.Multinomial(WORDS, dist.Dirichlet(prior).sample((DATA,))).sample()
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    found = pv.log_marginal_likelihood(model, guide, y, pv.Tightest(500), seed=seed)
    assert isinstance(found, pv.evidence.LadderMarginal)
    good = found.reliable
    assert int(good.sum()) > 0.9 * DATA
    assert Rung.STUDENT in found.rungs
    off = (found.value - dist.DirichletMultinomial(prior, WORDS).log_prob(y)).abs()[good]
    fewest = binom.ppf(FALSE_ALARM, len(off), 0.95)
    assert int((off < 1.96 * found.error[good]).sum()) >= fewest
    assert int((off < 1.96 * found.error[good] / 3).sum()) < fewest
