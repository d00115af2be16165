"""Similarity of rows under the model: the closed form of factor analysis, with a twin."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae.queries import Similarity, similarity
from tests.helpers.queries import FACTORS, guide, program, vae
from tests.helpers.statistics import FALSE_ALARM

pytestmark = pytest.mark.usefixtures("float64")

ROWS = torch.tensor(
    [
        [0.7, -1.2, 2.1, 0.4, 1.3],
        [1.0, -0.7, math.nan, 0.2, 1.2],
        [-0.6, -1.0, 2.9, math.nan, math.nan],
        [0.2, math.nan, 1.5, -0.9, 0.8],
    ],
    dtype=torch.float64,
)


def log_p(y: Tensor) -> Tensor:
    """Of the observed entries of several rows that share z, exact."""
    seen = ~y.flatten().isnan()
    loadings = FACTORS.loadings.repeat(len(y), 1)[seen]
    mean, noise = FACTORS.mean.repeat(len(y))[seen], FACTORS.noise_variance.repeat(len(y))[seen]
    covariance = loadings @ loadings.T + noise.diag()
    density: Tensor = MultivariateNormal(mean, covariance).log_prob(y.flatten()[seen])
    return density


def exact() -> Tensor:
    """Similarity of all pairs."""
    alone = torch.stack([log_p(row[None]) for row in ROWS])
    both = torch.stack([log_p(torch.stack([a, b])) for a in ROWS for b in ROWS])
    return both.view(4, 4) - alone[:, None] - alone


def worst(found: Similarity, truth: Tensor) -> float:
    """The largest error in standard errors."""
    return float(((found.estimate.value - truth) / found.estimate.error).abs().max())


LIMIT = float(stats.norm.isf(FALSE_ALARM / 2 / 16))


@pytest.mark.parametrize("model", [program, vae()], ids=["program", "vae"])
def test_the_closed_form(model: pv._types.ProgramLike, seed: int) -> None:
    """With holes; the log density of the other row alone, the twin, is far off."""
    posterior = guide(model, width=1.2)
    found = similarity(model, posterior, ROWS, estimator=pv.ImportanceSampling(4000), seed=seed)
    assert worst(found, exact()) < LIMIT
    assert bool(found.reliable.all())
    alone = torch.stack([log_p(row[None]) for row in ROWS])
    assert worst(found, exact() + alone) > 5 * LIMIT


def test_others_and_units() -> None:
    """Some rows against others are some of all pairs, and the row's own unit does not matter."""
    model = vae()
    given: dict[str, Any] = {"estimator": pv.ImportanceSampling(200), "seed": 3}
    every = similarity(model, guide(model), ROWS, **given)
    some = similarity(model, guide(model), ROWS[:2], ROWS[2:], **given)
    torch.testing.assert_close(some.estimate.value, every.estimate.value[:2, 2:])
    place, value, _ = every.nearest(0, 1)[0]
    assert value == float(every.estimate.value[0, 1:].max())
    assert value == float(every.estimate.value[0, place])
    assert "similarity of 4 rows with 4 rows; " in every.summary()


def test_a_row_is_not_compared_with_itself() -> None:
    """Unless it is given as another one."""
    model = vae()
    given: dict[str, Any] = {"estimator": pv.ImportanceSampling(200), "seed": 3}
    own = similarity(model, guide(model), ROWS, **given)
    assert all(place != row for row in range(4) for place, _, _ in own.nearest(row))
    assert len(own.nearest(0)) == 3
    others = similarity(model, guide(model), ROWS, ROWS.clone(), **given)
    assert len(others.nearest(0)) == 4
    doubtful = replace(own, reliable=torch.zeros_like(own.reliable))
    assert "unreliable" in doubtful.summary().splitlines()[0]


def test_a_row_that_the_model_rules_out_is_nearest_to_none() -> None:
    """Its similarity is unknown."""
    y = torch.cat([ROWS, torch.full((1, 5), 1e200)])
    found = similarity(vae(), guide(vae()), y, estimator=pv.ImportanceSampling(50))
    assert bool(found.estimate.value[0, -1].isnan())
    assert found.nearest(0)[-1][0] == len(ROWS)
    assert not bool(found.reliable[:, -1].any())


def test_all_densities_are_averaged_alike() -> None:
    """Whatever the estimator's own average, in both forms of the call."""
    plain, smoothed = (
        similarity(vae(), guide(vae()), ROWS, others, pv.ImportanceSampling(50, average=average))
        for others, average in ((None, pv.evidence.PLAIN), (ROWS, pv.evidence.JACKKNIFED))
    )
    torch.testing.assert_close(plain.estimate.value, smoothed.estimate.value)


def test_too_few_draws_are_refused() -> None:
    """A tail needs draws."""
    model = vae()
    with pytest.raises(ValueError, match="at least 30 draws"):
        similarity(model, guide(model), ROWS, estimator=pv.ImportanceSampling(10))
