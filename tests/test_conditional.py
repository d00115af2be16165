"""The conditional VAE: given covariates it is a linear Gaussian model with moments that follow."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae.models import ConditionalVAE, MixtureOfNormals, NormalGiven
from pyro_vae.registry import arguments_of
from tests.helpers.cases import normal
from tests.helpers.models import assert_compares, assert_works_under_every_guide
from tests.helpers.statistics import assert_mean

float64 = pytest.mark.usefixtures("float64")
LATENTS, FEATURES, COVARIATES = 2, 3, 4


def linear(prior: NormalGiven | None = None) -> ConditionalVAE:
    """Y | z, x ~ N(A z + B x + b, sigma^2)."""
    decoder = pv.nets.Concatenated(nn.Linear(LATENTS + COVARIATES, FEATURES))
    likelihood = pv.likelihoods.Gaussian(0.5)
    return ConditionalVAE(decoder, likelihood, LATENTS, COVARIATES, prior)


def given_prior() -> NormalGiven:
    """Z | x ~ N(C x + c, 0.7^2)."""
    return NormalGiven(nn.Linear(COVARIATES, LATENTS), sigma=0.7)


def moments(model: ConditionalVAE, x: Tensor) -> MultivariateNormal:
    """p(y | x) of a linear model, by hand."""
    layer = model.decoder.net
    assert isinstance(layer, nn.Linear)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    mean, scale = torch.zeros(len(x), LATENTS), 1.0
    if isinstance(model.latent_prior, NormalGiven):
        mean, scale = model.latent_prior.net(x).detach(), 0.7
    loadings, slopes = weight[:, :LATENTS], weight[:, LATENTS:]
    covariance = scale**2 * loadings @ loadings.T + 0.25 * torch.eye(FEATURES)
    return MultivariateNormal(mean @ loadings.T + x @ slopes.T + bias, covariance)


PRIORS = pytest.mark.parametrize("prior", [None, given_prior], ids=["fixed", "given x"])


def data(rows: int = 6) -> tuple[Tensor, Tensor]:
    """Some y and x."""
    return torch.randn(rows, FEATURES), torch.randn(rows, COVARIATES)


@float64
@PRIORS
def test_the_evidence_is_exact(prior: type | None) -> None:
    """ClosedForm finds log p(y | x), and it is not that of other covariates."""
    model = linear(None if prior is None else prior())
    y, x = data()
    guide = pv.Guide(model, pv.ExactPosterior(), pv.FullRankNormal())
    found = pv.log_marginal_likelihood(model, guide, (y, x), pv.ClosedForm()).value
    torch.testing.assert_close(found, moments(model, x).log_prob(y), rtol=1e-9, atol=1e-9)
    assert (found - moments(model, x.flip(0)).log_prob(y)).abs().max() > 0.01
    weights = pv.log_weights(model, guide, y, x, num_samples=3)
    torch.testing.assert_close(weights, found.expand(3, -1), rtol=1e-7, atol=1e-7)


@float64
@PRIORS
def test_draws(prior: type | None) -> None:
    """Mean and covariance of p(y | x) for every x."""
    model, x = linear(None if prior is None else prior()), torch.randn(2, COVARIATES)
    exact = moments(model, x)
    draws = model.sample_given(x, num_samples=20_000, seed=1)
    assert draws.shape == (20_000, 2, FEATURES)
    assert_mean(draws, exact.mean)
    centred = draws - exact.mean
    assert_mean(centred[..., None] * centred[..., None, :], exact.covariance_matrix)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(draws, exact.mean.flip(0))
    assert torch.equal(model.sample_given(x, seed=4), model.sample_given(x, seed=4))
    assert model.sample(2, x, seed=4).shape == (2, FEATURES)


def test_no_rows_have_no_draws() -> None:
    """A network of this library takes an empty batch of covariates."""
    decoder = pv.nets.Concatenated(pv.nets.MLPDecoder(2 + 4, 3))
    model = pv.models.ConditionalVAE(decoder, pv.likelihoods.Gaussian(), 2, covariates=4)
    x = torch.zeros(0, 4)
    assert model.sample(0, x).shape == (0, 3)
    assert model.sample_given(x, num_samples=5).shape == (5, 0, 3)


@float64
def test_the_program_is_its_equations() -> None:
    """Log p(y, z | x), written out."""
    model, (y, x), z = linear(given_prior()), data(), torch.randn(4, 6, LATENTS)
    prior = model.latent_prior
    assert isinstance(prior, NormalGiven)
    expected = normal(z, prior.net(x), 0.7).sum(-1)
    expected = expected + normal(y, model.decode(z, x), 0.5).sum(-1)
    torch.testing.assert_close(pv.log_joint(model, z, y, x), expected, rtol=1e-11, atol=1e-11)


@float64
def test_a_prior_that_sees_nothing() -> None:
    """A mixture may stand where a net may."""
    decoder = pv.nets.Concatenated(nn.Linear(LATENTS + COVARIATES, FEATURES))
    prior = MixtureOfNormals(3, LATENTS)
    model = ConditionalVAE(decoder, pv.likelihoods.Gaussian(), LATENTS, COVARIATES, prior)
    (y, x), z = data(), torch.zeros(1, 6, LATENTS)
    expected = prior(torch.zeros(LATENTS)).log_prob(z) + normal(y, model.decode(z, x), 1.0).sum(-1)
    torch.testing.assert_close(pv.log_joint(model, z, y, x), expected.detach())


@float64
def test_holes_in_y() -> None:
    """What was not observed of y leaves the density; the rest is its marginal."""
    model, (y, x) = linear(), data()
    y = y.masked_fill(torch.eye(6, FEATURES).bool(), torch.nan)
    guide = pv.Guide(model, pv.ExactPosterior(), pv.FullRankNormal())
    found = pv.log_marginal_likelihood(model, guide, (y, x), pv.ClosedForm()).value
    exact, seen = moments(model, x), ~y[0].isnan()
    part = MultivariateNormal(exact.mean[0][seen], exact.covariance_matrix[0][seen][:, seen])
    torch.testing.assert_close(found[0], part.log_prob(y[0][seen]), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_every_guide() -> None:
    """Encoders see both tensors."""
    net = pv.nets.MLPEncoder
    assert_works_under_every_guide(
        linear(given_prior()),
        data(),
        lambda: pv.nets.Concatenated(net(FEATURES + COVARIATES, (4,))),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_comparison() -> None:
    """Guides side by side."""
    net = pv.nets.MLPEncoder
    assert_compares(
        linear(), data(), lambda: pv.nets.Concatenated(net(FEATURES + COVARIATES, (4,)))
    )


def test_what_is_refused() -> None:
    """With what was expected and what to do."""
    gaussian = pv.likelihoods.Gaussian()
    with pytest.raises(ValueError, match="cannot decode z"):
        ConditionalVAE(pv.nets.Concatenated(nn.Linear(5, 3)), gaussian, 2, 4)
    decoder = pv.nets.Concatenated(nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"must give 2 latents, .* the model has; got 3"):
        ConditionalVAE(decoder, gaussian, 2, 4, NormalGiven(nn.Linear(4, 3), 1.0))
    with pytest.raises(ValueError, match=r"cannot take tensors of the shapes \[\(2, 4\)\]"):
        ConditionalVAE(decoder, gaussian, 2, 4, NormalGiven(nn.Linear(5, 2), 1.0))
    with pytest.raises(ValueError, match="`covariates` must be the number"):
        ConditionalVAE(decoder, gaussian, 2, 0)


@pytest.mark.usefixtures("user_param_store")
def test_a_call_without_its_covariates_is_refused() -> None:
    """With the call to write, which works; also where they have another shape."""
    model, (y, x) = linear(given_prior()).float(), tuple(part.float() for part in data())
    z = torch.zeros(len(x), LATENTS)
    calls: dict[str, Callable[..., Any]] = {
        "model(y, x)": lambda *given: model(y, *given),
        "model.decode(z, x)": lambda *given: model.decode(z, *given),
        "model.sample(len(x), x)": lambda *given: model.sample(len(x), *given),
        "model.sample_given(x)": lambda *given: model.sample_given(*given),
    }
    for words, call in calls.items():
        for wrong, found in (((), "got no x"), ((x[:, :1],), "got .*1")):
            with pytest.raises(ValueError, match=rf"{found}.*{re.escape(words)}"):
                call(*wrong)
        call(x)


def test_arguments_make_the_same() -> None:
    """The arguments that the model was made with."""
    model = linear(given_prior())
    again = ConditionalVAE(**arguments_of(model))
    assert repr(again) == repr(model)
