"""Holes that depend on what they hide: against sums over grids, which are exact to rounding."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import diagnostics
from pyro_vae.likelihoods import Bernoulli, Gaussian, LogNormal, Mixed, SelfMasked, SelfMasking
from tests.helpers.statistics import FALSE_ALARM

pytestmark = pytest.mark.usefixtures("float64")

NAN = math.nan
LIMIT = float(stats.norm.isf(FALSE_ALARM / 2 / 4))  # errors, of up to four entries
SIGMA, INTERCEPT, SLOPE = 0.7, (0.4, 0.8), (-1.5, 1.2)
LOADING, BIAS = (0.9, -1.1), (0.3, 0.2)
ROWS = torch.tensor([[0.5, NAN], [NAN, -0.4], [1.0, -1.0], [-1.5, NAN]], dtype=torch.float64)


def masked() -> pv.models.VAE:
    """Factor analysis of two features on one factor, with a model of its holes."""
    likelihood = SelfMasking(Gaussian(SIGMA), (2,))
    model = pv.models.VAE(nn.Linear(1, 2), likelihood, latent_dim=1)
    assert isinstance(model.decoder, nn.Linear)
    with torch.no_grad():
        model.decoder.weight.copy_(torch.tensor(LOADING)[:, None])
        model.decoder.bias.copy_(torch.tensor(BIAS))
        likelihood.raw_intercept.copy_(torch.tensor(INTERCEPT) / 10)
        likelihood.raw_slope.copy_(torch.tensor(SLOPE) / 10)
    return model


def grids(slope: tuple[float, float] = SLOPE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, its log weights, y, and log p(y_d, missing | z) with its weights, (z, y, features)."""
    z, y = torch.linspace(-7, 7, 801), torch.linspace(-12, 12, 1601)
    log_z = dist.Normal(0.0, 1.0).log_prob(z) + (z[1] - z[0]).log()
    loc = z[:, None, None] * torch.tensor(LOADING) + torch.tensor(BIAS)
    log_y = dist.Normal(loc, SIGMA).log_prob(y[:, None]) + (y[1] - y[0]).log()
    log_gone = nn.functional.logsigmoid(
        -(torch.tensor(INTERCEPT) + torch.tensor(slope) * y[:, None])
    )
    return z, log_z, y, log_y + log_gone


def exact(row: Tensor, slope: tuple[float, float] = SLOPE) -> tuple[Tensor, Tensor]:
    """Log p of what was observed of a row and of its mask, and E[y | that]."""
    z, log_joint, y, gone = grids(slope)
    for place, value in enumerate(row):
        if value.isnan():
            log_joint = log_joint + gone[..., place].logsumexp(dim=1)
        else:
            loc = z * LOADING[place] + BIAS[place]
            odds = INTERCEPT[place] + torch.tensor(slope)[place] * value
            log_joint = log_joint + dist.Normal(loc, SIGMA).log_prob(value)
            log_joint = log_joint + nn.functional.logsigmoid(odds)
    mean = row.clone()
    for place in row.isnan().nonzero()[:, 0].tolist():
        given_z = (gone[..., place].softmax(dim=1) * y).sum(dim=1)
        mean[place] = (log_joint.softmax(dim=0) * given_z).sum()
    return log_joint.logsumexp(dim=0), mean


def guide_of(model: pv.models.VAE) -> pv.Guide:
    """One for all rows, about the prior."""
    return pv.Guide(model, pv.GlobalParameters(), example=ROWS[2:3])


def test_evidence_counts_the_mask() -> None:
    """By quadrature over z, and over every missing entry; without slopes another number."""
    model = masked()
    found = pv.log_marginal_likelihood(model, guide_of(model), ROWS, pv.Quadrature())
    answers = torch.stack([exact(row)[0] for row in ROWS])
    torch.testing.assert_close(found.value, answers, rtol=0, atol=2e-5)
    twins = torch.stack([exact(row, (0.0, 0.0))[0] for row in ROWS])
    assert ((found.value - twins).abs() > 0.01).all()


def test_imputation_counts_the_mask(seed: int) -> None:
    """Means of what is missing, within their errors; those of missing at random are far off."""
    model = masked()
    estimator = pv.ImportanceSampling(20_000)
    filled = pv.impute(model, guide_of(model), ROWS, 400, estimator=estimator, seed=seed)
    gone = ROWS.isnan()
    answers = torch.stack([exact(row)[1] for row in ROWS])[gone]
    assert ((filled.value[gone] - answers).abs() < LIMIT * filled.error[gone] + 1e-3).all()
    twins = torch.stack([exact(row, (0.0, 0.0))[1] for row in ROWS])[gone]
    assert ((filled.value[gone] - twins).abs() > LIMIT * filled.error[gone] + 1e-3).all()


def test_a_program_by_hand_counts_the_mask(seed: int) -> None:
    """The same distribution in a program of one's own, which has no methods."""
    likelihood = masked().likelihood
    assert isinstance(likelihood, SelfMasking)

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc = z * torch.tensor(LOADING) + torch.tensor(BIAS)
            features = dist.Normal(loc, SIGMA)
            odds = (likelihood.intercept.detach(), likelihood.slope.detach())
            pyro.sample("y", SelfMasked(features, *odds).to_event(1), obs=y)

    estimator = pv.ImportanceSampling(3_000)
    filled = pv.impute(program, None, ROWS[:1], 400, estimator=estimator, seed=seed)
    answer = exact(ROWS[0])[1][1]
    assert abs(filled.value[0, 1] - answer) < LIMIT * filled.error[0, 1] + 1e-3
    assert abs(filled.value[0, 1] - exact(ROWS[0], (0.0, 0.0))[1][1]) > 0.05


def test_columns_of_several_kinds() -> None:
    """Two values are summed; categories are missing at random; nothing is nan backwards."""
    likelihood = SelfMasking(
        Mixed({"x": Gaussian(1.0), "b": Bernoulli(), "c": pv.likelihoods.Categorical(3)}), (3,)
    )
    with torch.no_grad():
        likelihood.raw_slope.copy_(torch.tensor([0.1, -0.2, 0.5]))
    output = torch.tensor([[0.3, 0.7, 0.1, 0.2, 0.3]], requires_grad=True)
    alone = SelfMasked(
        dist.Bernoulli(logits=torch.tensor([0.7])), torch.ones(1), torch.tensor([-2.0])
    )
    shares = torch.tensor([0.7]).sigmoid()
    by_hand = (1 - shares) * torch.tensor(-1.0).sigmoid() + shares * torch.tensor(1.0).sigmoid()
    torch.testing.assert_close(alone.log_prob(torch.tensor([NAN])), by_hand.log())
    found = likelihood(output).log_prob(torch.tensor([[0.0, NAN, NAN]]))
    normal = dist.Normal(0.3, 1.0).log_prob(torch.tensor(0.0))
    expected = normal + torch.tensor(1.0).sigmoid().log() + by_hand.log()[0]
    torch.testing.assert_close(found[0], expected)
    found.sum().backward()
    assert output.grad is not None
    assert likelihood.raw_slope.grad is not None
    assert not output.grad.isnan().any()
    assert not likelihood.raw_slope.grad.isnan().any()
    draws = likelihood(output.detach().expand(2000, -1)).base_dist.sample_missing()
    assert draws.shape == (2000, 3)
    assert set(draws[:, 2].tolist()) == {0.0, 1.0, 2.0}


def test_log_normal_columns_are_normal_in_their_logarithms(seed: int) -> None:
    """Density, Jacobian aside, and draws are those of the logarithms, alone and in a table."""
    odds = torch.tensor(INTERCEPT), torch.tensor(SLOPE)
    normal = SelfMasked(dist.Normal(torch.tensor(BIAS), SIGMA), *odds)
    alone = SelfMasked(dist.LogNormal(torch.tensor(BIAS), SIGMA), *odds, 1.0)
    table = SelfMasking(Mixed({"a": LogNormal(SIGMA), "b": LogNormal(SIGMA)}), (2,))
    with torch.no_grad():
        table.raw_intercept.copy_(odds[0] / 10)
        table.raw_slope.copy_(odds[1] / 10)
    expected = normal.log_prob(ROWS) - ROWS.nan_to_num(0.0)
    for features in (alone, table(torch.tensor([BIAS])).base_dist):
        torch.testing.assert_close(features.log_prob(ROWS.exp()), expected)
        torch.manual_seed(seed)
        drawn = normal.expand([200, 2]).sample_missing()
        torch.manual_seed(seed)
        torch.testing.assert_close(features.expand([200, 2]).sample_missing().log(), drawn)


@pytest.mark.slow
def test_slopes_are_learned(seed: int, tmp_path: Path) -> None:
    """Large entries are missing more often: the mean of all is found, that of the observed not."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=2000)
    y = z[:, None] * [1.0, 1.0, -1.0, 1.0] + 0.4 * rng.normal(size=(2000, 4))
    gone = rng.random(2000) < 1 / (1 + np.exp(2 - 2 * y[:, 0]))
    seen = pd.DataFrame(np.where(gone[:, None] & (np.arange(4) == 0), NAN, y), columns=list("abcd"))
    means = {}
    for masking in (False, True):
        table = pv.data.from_frame(seen, seed=seed)
        plain = pv.defaults.default_likelihood(table)
        likelihood = SelfMasking(plain, (4,)) if masking else plain
        vae = pv.TableVAE.of(table, pv.defaults.Architecture(1, likelihood=likelihood))
        vae.fit(num_epochs=60, progress=False)
        means[masking] = vae.impute(seen, 50, progress=False).completed()["a"][gone].mean()
        vae.save(tmp_path / f"{masking}")
    assert abs(means[True] - y[gone, 0].mean()) < 0.5 * abs(means[False] - y[gone, 0].mean())
    again = pv.TableVAE.load(tmp_path / "True")
    likelihood = again.model.likelihood
    assert isinstance(likelihood, SelfMasking)
    assert float(likelihood.slope[0].detach()) < -0.5


def of_model(number: int) -> Tensor:
    """Rows that the model simulates, with the holes that it makes."""
    z = torch.randn(number, 1)
    y = z * torch.tensor(LOADING) + torch.tensor(BIAS) + SIGMA * torch.randn(number, 2)
    seen = torch.rand_like(y) < (torch.tensor(INTERCEPT) + torch.tensor(SLOPE) * y).sigmoid()
    return torch.where(seen, y, NAN)


def exact_guide(y: Tensor) -> None:
    """The mean and the standard deviation of z given entries and mask, by sums over a grid."""
    z, log_joint, _, gone = grids()
    log_joint = log_joint.expand(len(y), -1)
    for place, value in enumerate(y.T[..., None]):
        loc = z * LOADING[place] + BIAS[place]
        seen = dist.Normal(loc, SIGMA, validate_args=False).log_prob(value)
        seen = seen + nn.functional.logsigmoid(INTERCEPT[place] + SLOPE[place] * value)
        absent = gone[..., place].logsumexp(dim=1)
        log_joint = log_joint + torch.where(value.isnan(), absent, seen)
    shares = log_joint.softmax(dim=1)
    mean = (shares * z).sum(dim=1, keepdim=True)
    spread = (shares * (z - mean).square()).sum(dim=1, keepdim=True).sqrt()
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(mean, spread).to_event(1))


def test_data_of_the_model_pass_every_check(seed: int) -> None:
    """Its holes are part of what it simulates, and of what it predicts of an entry that is seen."""
    model, y = masked(), of_model(1000)
    guide = guide_of(model)
    options: dict[str, Any] = {"seed": seed, "progress": False}
    columns = diagnostics.leave_one_out(model, guide, y[:500], 200, **options)
    assert (columns.adjusted > FALSE_ALARM).all()
    ranks = diagnostics.simulation_based_calibration(model, exact_guide, y, 300, **options)
    assert (ranks.adjusted > FALSE_ALARM).all()
    check = diagnostics.predictive_check(model, guide, y, num_samples=30, **options)
    off = dict(zip(check.names, check.observed.tolist(), strict=True))
    assert off["means of features (largest deviation, sd)"] < LIMIT
    tails = pv.outliers(model, guide, y[:300], 300, **options).value
    error = (0.25 / 300 + 0.25 / 300) ** 0.5  # of the rows, and of the reference
    assert abs(float((tails > 0.5).double().mean()) - 0.5) < LIMIT * error
