"""A table's VAE starts at factor analysis: exact there, and finite for every kind of column."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae import defaults, linear_start
from pyro_vae.data import Count
from pyro_vae.models import Diagonal, LinearGaussian

START = defaults.Architecture(linear_start=True)

pytestmark = pytest.mark.usefixtures("float64")


def table() -> pv.data.Dataset:
    """Five measurements of two causes, with a fifth of the entries missing."""
    rng = np.random.default_rng(1)
    y = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 5)) + 0.4 * rng.normal(size=(40, 5))
    y[rng.random(y.shape) < 0.2] = np.nan
    y[np.isnan(y).all(axis=1)] = 0.0
    return pv.data.from_frame(pd.DataFrame(y, columns=list("abcde")))


def evidence_at_the_start(model: pv.models.VAE, y: torch.Tensor) -> torch.Tensor:
    """Log p of every row if the decoder is linear, in closed form."""
    last = [part for part in model.decoder.modules() if isinstance(part, torch.nn.Linear)][-1]
    likelihood: Any = model.likelihood
    exact = LinearGaussian(model.latent_dim, y.shape[1], Diagonal(1e-6))
    sigma = likelihood.sigma(y)[1]
    with torch.no_grad():
        exact.loadings.copy_(last.weight[:, -model.latent_dim :])
        exact.mean.copy_(last.bias)
        exact.log_noise.copy_((sigma.square() - 1e-12).log())
        return exact.log_evidence(y)


@pytest.mark.parametrize("guide", ["amortized", "per-datum"])
def test_the_elbo_is_log_p_at_the_start(guide: str) -> None:
    """For every pattern of holes: q is the posterior of factor analysis, so every weight is p(y).

    A plain encoder, the twin, is far off.
    """
    dataset = table()
    model = defaults.vae(dataset, START)
    y, exact = dataset.train, evidence_at_the_start(model, dataset.train)
    posterior = defaults.guide(model, dataset, START, name=guide)
    with pv.minibatch(torch.arange(len(y)), len(y)):
        bound = pv.evaluate(model, posterior, y, pv.ImportanceSampling(30), progress=False).bound
    torch.testing.assert_close(bound.value, exact, rtol=0, atol=1e-4)  # rounded to float32
    twin = pv.Guide(model, defaults.inference_map("amortized", dataset))
    far = pv.evaluate(model, twin, y, pv.ImportanceSampling(30), progress=False).bound
    assert float((exact - far.value).mean()) > 1


def test_the_start_is_the_maximum_of_factor_analysis() -> None:
    """As good as EM to the end, within what its tolerance leaves."""
    y = table().train
    model = defaults.vae(table(), START)
    best = LinearGaussian(model.latent_dim, 5, Diagonal(0.03))
    best.fit_em(y, tolerance=1e-6)
    with torch.no_grad():
        lost = best.log_evidence(y).mean() - evidence_at_the_start(model, y).mean()
    assert -1e-6 < float(lost) < 0.01


def test_every_kind_of_column_has_a_start() -> None:
    """Counts, two values, levels and words: finite, and better than a guide that ignores rows."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=60)
    frame = pd.DataFrame(
        {
            "x": z + 0.3 * rng.normal(size=60),
            "n": rng.poisson(np.exp(1 + 0.7 * z)),
            "b": np.where(z + rng.normal(size=60) > 0, "yes", "no"),
            "o": pd.Categorical(np.digitize(z, [-0.5, 0.5]), ordered=True),
            "c": rng.choice(["red", "green", "blue"], 60),
        }
    ).mask(rng.random((60, 5)) < 0.1)
    dataset = pv.data.from_frame(frame.astype({"n": float}), kinds={"n": Count})
    model = defaults.vae(dataset, START)
    y = dataset.train
    guides = [defaults.guide(model, dataset, START), pv.Guide(model, pv.GlobalParameters())]
    one, other = (
        pv.evaluate(model, guide, y, pv.ImportanceSampling(100), progress=False).bound.value
        for guide in guides
    )
    assert bool(one.isfinite().all())
    assert float((one - other).mean()) > 0.5


def test_columns_without_numbers_have_none() -> None:
    """One number, or none, has no factors."""
    blank = linear_start.factor_analysis(torch.full((4, 3), torch.nan), 2)
    assert blank.loadings.tolist() == [[0.0, 0.0]] * 3


def test_columns_that_are_seldom_observed_have_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if evenly spaced rows, by which the start is found, have no entry of theirs."""
    monkeypatch.setattr(linear_start, "_MOST_ROWS", 50)
    monkeypatch.setattr(linear_start, "_ROWS_OF_EXPERTS", 50)
    x, seldom = torch.randn(1000), torch.full((1000,), torch.nan)
    seldom[[1, 2, 3, 5, 6, 7]] = torch.tensor([1.0, -1.0]).repeat(3)
    y = torch.stack([x, x + torch.randn(1000), seldom], dim=1)
    dataset = replace(pv.data.from_frame(y), train=y, digests=None)
    model = defaults.vae(dataset, START)
    guide = defaults.guide(model, dataset, START)
    assert all(bool(part.isfinite().all()) for part in guide.parameters())
    likelihood: Any = model.likelihood
    assert float(likelihood.sigma(y)[1].detach().min()) > 0.02  # a share of 0.03 is the least


def test_counts_without_a_training_row_have_a_start() -> None:
    """The only count was held out."""
    y = torch.randn(30, 2)
    counts = torch.full((30,), torch.nan)
    counts[pv.data.split_rows(30).test[0]] = 3
    frame = {"a": y[:, 0], "b": y[:, 0] + y[:, 1], "n": counts}
    vae = pv.TableVAE.of(pv.data.from_frame(frame, kinds={"n": Count}), START)
    assert all(bool(part.isfinite().all()) for part in vae.guide.parameters())


def test_a_start_that_has_not_converged_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """EM warns when it is called alone, but not when only a start is needed."""
    y, whole = table().train.double(), LinearGaussian.fit_em
    with pytest.warns(UserWarning, match="EM did not converge in 3 steps"):
        LinearGaussian(2, 5, Diagonal()).fit_em(y, max_steps=1)

    def short(self: LinearGaussian, y: torch.Tensor, **_: Any) -> Any:
        return whole(self, y, max_steps=1)

    monkeypatch.setattr(LinearGaussian, "fit_em", short)
    linear_start.factor_analysis(y, 2)  # a warning would be an error


@pytest.mark.parametrize("architecture", [START, replace(START, linear_start=False)])
def test_counts_start_at_their_dispersion(architecture: defaults.Architecture) -> None:
    """Without z the variance is the data's; with it, what z explains is not dispersion.

    A dispersion that starts at 1, the twin, gives draws twice as wide.
    """
    rng = np.random.default_rng(0)
    z = rng.normal(size=4000)
    frame = pd.DataFrame(
        {
            "poisson": rng.poisson(3.5, 4000),
            "spread": rng.negative_binomial(2, 0.2, 4000),
            "driven": rng.poisson(np.exp(1.5 + 0.6 * z)),
            "x": z + 0.3 * rng.normal(size=4000),
        }
    )
    model = defaults.vae(pv.data.from_frame(frame), replace(architecture, latent_dim=1))
    likelihood: Any = model.likelihood
    r = [float(part.inverse_dispersion().detach()) for part in [*likelihood][:3]]
    y = torch.tensor(frame.to_numpy())
    for column in y[:, :3].split(1, dim=1):
        plain: Any = pv.likelihoods.NegativeBinomial(pv.likelihoods.LearnedDispersion((1,)))
        plain.start_noise(torch.full((1,), torch.inf), column)  # z explains nothing
        mean, variance = column.mean(), column.var(correction=0)
        wanted = (variance - mean).clamp(min=mean.square() / 100)
        found = mean.square() / plain.inverse_dispersion().detach()[0]
        torch.testing.assert_close(found, wanted)
    assert r[0] > 30
    assert 1.7 < r[1] < 2.3
    assert (r[2] > 30) == architecture.linear_start
    if architecture.linear_start:
        drawn = model.sample(4000, seed=0)[:, :2]
        torch.testing.assert_close(drawn.std(dim=0), y[:, :2].std(dim=0), rtol=0.1, atol=0.0)
