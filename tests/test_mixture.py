"""The VAE with clusters: a VAE with a mixture prior, and a mixture of Gaussians if linear."""

import math

import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae.models import VAE, MixtureVAE
from pyro_vae.registry import arguments_of
from tests.helpers.models import assert_compares, assert_works_under_every_guide
from tests.helpers.statistics import FALSE_ALARM, assert_coverage, assert_mean

float64 = pytest.mark.usefixtures("float64")
LATENTS, FEATURES, COMPONENTS = 2, 3, 3


def made() -> MixtureVAE:
    """A linear decoder, and clusters in no particular place."""
    likelihood = pv.likelihoods.Gaussian(0.5)
    model = MixtureVAE(nn.Linear(LATENTS, FEATURES), likelihood, LATENTS, COMPONENTS)
    with torch.no_grad():
        model.mixture.logits.normal_()
        model.mixture.log_scale.normal_().mul_(0.3)
    return model


def components(model: MixtureVAE) -> tuple[Tensor, MultivariateNormal]:
    """Weights and p(y | c) of every cluster, by hand."""
    decoder, mixture = model.decoder, model.mixture
    assert isinstance(decoder, nn.Linear)
    weight = decoder.weight.detach()
    variances = (2 * mixture.log_scale.detach()).exp()
    covariances = weight @ torch.diag_embed(variances) @ weight.T + 0.25 * torch.eye(FEATURES)
    means = decoder(mixture.loc).detach()
    return mixture.log_shares().detach(), MultivariateNormal(means, covariances)


def log_evidence(model: MixtureVAE, y: Tensor) -> Tensor:
    """A mixture of Gaussians."""
    log_shares, normals = components(model)
    total: Tensor = (normals.log_prob(y[:, None]) + log_shares).logsumexp(dim=-1)
    return total


@float64
def test_it_is_a_vae_with_a_mixture_prior() -> None:
    """The same parameters, the same log joint, with the cluster summed out."""
    model, y, z = made(), torch.randn(5, FEATURES), torch.randn(4, 5, LATENTS)
    other = VAE(model.decoder, model.likelihood, LATENTS, model.mixture)
    ours, theirs = pv.log_joint(model, z, y), pv.log_joint(other, z, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@float64
def test_the_evidence_is_a_mixture_of_gaussians() -> None:
    """By quadrature to many digits, and by importance sampling in standard errors."""
    model, y = made(), torch.randn(8, FEATURES)
    wide = pv.GlobalParameters()
    guide, exact = pv.Guide(model, wide), log_evidence(model, y)
    with torch.no_grad():
        wide.value[LATENTS:] = math.log(2.5)
    grid = pv.log_marginal_likelihood(model, guide, y, pv.Quadrature()).value
    torch.testing.assert_close(grid, exact, rtol=1e-5, atol=1e-5)
    found = pv.log_marginal_likelihood(model, guide, y, pv.ImportanceSampling(40_000))
    limit = stats.norm.isf(FALSE_ALARM / 2 / len(y))
    assert ((found.value - exact) / found.error).abs().max() < limit
    one = components(model)[1].log_prob(y[:, None])[:, 0]
    assert ((found.value - one) / found.error).abs().max() > limit  # one cluster for all


@float64
@pytest.mark.usefixtures("user_param_store")
def test_clusters_of_latents() -> None:
    """Bayes' rule, by the trace of the program."""
    model, z = made(), torch.randn(4, LATENTS)
    expected = []
    for c in range(COMPONENTS):
        values = {"c": torch.full((4,), c), "z": z}
        trace = poutine.trace(poutine.condition(model, values)).get_trace(torch.zeros(4, FEATURES))
        trace.compute_log_prob()
        expected.append(trace.nodes["c"]["log_prob"] + trace.nodes["z"]["log_prob"])
    probabilities = torch.stack(expected, dim=-1).softmax(dim=-1)
    torch.testing.assert_close(model.cluster_probabilities(z), probabilities.detach())
    assert model.cluster_probabilities(z.expand(7, 4, LATENTS)).shape == (7, 4, COMPONENTS)


@float64
def test_clusters_of_data() -> None:
    """With weights the exact p(c | y); without them the guide's answer, which is caught."""
    model, y = made(), torch.randn(8, FEATURES)
    log_shares, normals = components(model)
    exact = (normals.log_prob(y[:, None]) + log_shares).softmax(dim=-1)
    wide = pv.GlobalParameters()
    guide = pv.Guide(model, wide)
    with torch.no_grad():
        wide.value[LATENTS:] = math.log(2.0)
    draws = guide.sample(y, 50_000, seed=1)
    log_weights = pv.log_joint(model, draws, y) - guide.posterior(y).log_prob(draws).detach()
    found = model.clusters(draws, log_weights.detach())
    limit = stats.norm.isf(FALSE_ALARM / 2 / exact.numel())
    assert ((found.value - exact) / found.error).abs().max() < limit
    torch.testing.assert_close(found.value.sum(-1), torch.ones(8))
    plain = model.clusters(draws)
    assert ((plain.value - exact) / plain.error).abs().max() > limit
    with pytest.raises(ValueError, match=r"at least 2 draws .*; got 1"):
        model.clusters(draws[:1])


@float64
def test_errors_of_clusters_cover() -> None:
    """The error of an average over the guide's draws, over many repetitions."""
    model = made()
    z = torch.randn(400, 600, LATENTS)  # 400 draws for each of 600 repetitions
    truth = model.cluster_probabilities(torch.randn(1_000_000, LATENTS)).mean(dim=0)
    found = model.clusters(z)
    assert_coverage((found.value - truth)[:, 0].abs() < 1.96 * found.error[:, 0], 0.95)


@float64
def test_draws() -> None:
    """The mean of p(y) is the average of the clusters'."""
    model = made()
    log_shares, normals = components(model)
    expected = (log_shares.exp()[:, None] * normals.mean).sum(dim=0)
    assert_mean(model.sample(20_000, seed=2), expected)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(model.sample(20_000, seed=2), normals.mean.mean(dim=0) + 0.1)


@pytest.mark.filterwarnings("ignore")
def test_every_guide() -> None:
    """The cluster is summed out whoever asks."""
    net = pv.nets.MLPEncoder
    assert_works_under_every_guide(made(), (torch.randn(6, FEATURES),), lambda: net(FEATURES, (4,)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_comparison() -> None:
    """Guides side by side."""
    net = pv.nets.MLPEncoder
    assert_compares(made(), (torch.randn(6, FEATURES),), lambda: net(FEATURES, (4,)))


def test_arguments_make_the_same() -> None:
    """The arguments that the model was made with."""
    model = made()
    assert repr(MixtureVAE(**arguments_of(model))) == repr(model)
    with pytest.raises(ValueError, match=r"`components` must be .* at least 1; got 0"):
        MixtureVAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), 2, 0)
