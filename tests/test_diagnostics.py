"""Diagnoses against exact answers: nothing said about the data, everything said, and in between."""

import math

import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.diagnostics import active_units, log_aggregate, mutual_information
from pyro_vae.guides import FamilyPosterior
from tests.helpers.factor_analysis import WEAK, exact_guide, mean_field_guide, model_of


def table_guide(model: pv.models.VAE, loc: Tensor, log_scale: float) -> pv.Guide:
    """A guide with given means and one scale, and data that are their row numbers."""
    rows = pv.LocalParameters(len(loc))
    guide = pv.Guide(model, rows)
    rows.fill(torch.cat([loc, torch.full_like(loc, log_scale)], dim=-1))
    return guide


@pytest.fixture
def model() -> pv.models.VAE:
    """Any model will do: the mutual information is about the guide alone."""
    return pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)


def test_a_collapsed_guide_says_nothing(model: pv.models.VAE) -> None:
    """Every q(z | y_n) is the aggregate: zero whatever the draws, not log N."""
    guide = pv.Guide(model, pv.GlobalParameters())
    result = mutual_information(model, guide, torch.randn(40, 3))
    assert abs(float(result.estimate.value)) < 1e-5  # float32 densities
    assert result.ceiling == pytest.approx(math.log(40))


def test_a_separated_guide_says_everything(model: pv.models.VAE) -> None:
    """Posteriors that do not overlap tell the datum: log N, the ceiling."""
    loc = 100.0 * torch.arange(40.0).unsqueeze(-1).expand(-1, 2)
    guide = table_guide(model, loc, log_scale=0.0)
    with pv.minibatch(torch.arange(40), 40):
        result = mutual_information(model, guide, torch.randn(40, 3))
    assert float(result.estimate.value) == pytest.approx(math.log(40), abs=1e-4)


def test_two_overlapping_posteriors(model: pv.models.VAE) -> None:
    """Two unit Gaussians at distance 2d: the information of a binary input in Gaussian noise."""
    loc = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    guide = table_guide(model, loc, log_scale=0.0)
    with pv.minibatch(torch.arange(2), 2):
        value, error = mutual_information(model, guide, torch.randn(2, 3), 20_000).estimate
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)  # z = 1 + noise, on a fine grid
    density = (-((x - 1) ** 2) / 2).exp() / math.sqrt(2 * math.pi)
    exact = torch.trapezoid(density * (math.log(2) - torch.nn.functional.softplus(-2 * x)), x)
    assert float(error) < 0.01
    assert abs(float(value) - float(exact)) < 5 * float(error)  # false alarm 6e-7


def test_information_is_at_most_the_rate() -> None:
    """0 <= I <= min(log N, rate), here for a hand-written guide too, and both agree."""
    facts, y = WEAK, WEAK.sample(60)
    model = model_of(facts)
    guides: list[ProgramLike] = [mean_field_guide(facts, model), exact_guide(facts)]
    for guide in guides:
        result = mutual_information(model, guide, y, 50)
        rate = pv.elbo(model, guide, y, 1000).rate
        bound = min(result.ceiling, float(rate.value.mean()))
        assert 0 < float(result.estimate.value) < bound + 5 * float(result.estimate.error)


def test_aggregate_is_the_mean_density(model: pv.models.VAE) -> None:
    """The chunked log-mean-exp against a loop over the data."""
    posterior = FamilyPosterior(pv.DiagonalNormal(), torch.randn(7, 4))
    z = torch.randn(3, 5, 2)
    by_hand = torch.stack(
        [
            posterior.rows(slice(n, n + 1)).log_prob(z.reshape(-1, 1, 2)).reshape(3, 5).exp()
            for n in range(7)
        ]
    ).mean(dim=0)
    torch.testing.assert_close(
        log_aggregate(posterior, z), by_hand.double().log(), rtol=1e-5, atol=1e-5
    )


def test_active_units() -> None:
    """The threshold is a variance of 0.01, on either side of it."""
    means = torch.tensor([1.0, -1.0])[:, None] * torch.tensor([0.0, 0.06, 0.08, 3.0])
    count, variances = active_units(means)
    assert count == 2
    torch.testing.assert_close(
        variances, 2 * torch.tensor([0.0, 0.06, 0.08, 3.0]).double() ** 2, rtol=1e-6, atol=0
    )
    with pytest.raises(ValueError, match="at least 2 rows, one per datum; got 1"):
        active_units(means[:1])


def test_one_draw_is_refused(model: pv.models.VAE) -> None:
    """A standard error needs two."""
    with pytest.raises(ValueError, match="at least 2 draws"):
        mutual_information(model, pv.Guide(model, pv.GlobalParameters()), torch.zeros(3, 3), 1)
