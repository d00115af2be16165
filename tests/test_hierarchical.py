"""The ladder of latent layers: of linear layers everything is Gaussian, and exact."""

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae.models import HierarchicalVAE, MixtureOfNormals, NormalGiven
from pyro_vae.registry import arguments_of
from tests.helpers.cases import normal
from tests.helpers.models import assert_compares, assert_works_under_every_guide
from tests.helpers.statistics import FALSE_ALARM, assert_mean

float64 = pytest.mark.usefixtures("float64")
SIZES, FEATURES = (1, 2, 2), 3
SIGMAS = (0.7, 0.4)


def linear() -> HierarchicalVAE:
    """z_3 -> z_2 -> z_1 -> y, every arrow an affine map and noise."""
    layers = [
        NormalGiven(nn.Linear(SIZES[0], SIZES[1]), SIGMAS[0]),
        NormalGiven(nn.Linear(SIZES[1], SIZES[2]), SIGMAS[1]),
    ]
    likelihood = pv.likelihoods.Gaussian(0.5)
    return HierarchicalVAE(nn.Linear(SIZES[2], FEATURES), likelihood, SIZES[0], layers)


def affine(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    assert isinstance(net, nn.Linear)
    return net.weight.detach(), net.bias.detach()


def marginal(model: HierarchicalVAE) -> MultivariateNormal:
    """p(y), by pushing mean and covariance down the ladder."""
    mean, covariance = torch.zeros(SIZES[0]), torch.eye(SIZES[0])
    nets = [*(layer.net for layer in model.layers), model.decoder]
    for net, sigma in zip(nets, (*SIGMAS, 0.5), strict=True):
        weight, bias = affine(net)  # type: ignore[arg-type]
        mean = weight @ mean + bias
        covariance = weight @ covariance @ weight.T + sigma**2 * torch.eye(len(weight))
    return MultivariateNormal(mean, covariance)


@float64
def test_the_evidence_is_exact() -> None:
    """ClosedForm over all layers at once is the Gaussian at the foot of the ladder."""
    model, y = linear(), torch.randn(6, FEATURES)
    guide = pv.Guide(model, pv.ExactPosterior(), pv.FullRankNormal())
    exact = marginal(model).log_prob(y)
    found = pv.log_marginal_likelihood(model, guide, y, pv.ClosedForm()).value
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
    assert (found - marginal(linear()).log_prob(y)).abs().max() > 1e-3  # other weights


@float64
def test_the_evidence_by_importance_sampling() -> None:
    """From fitted factors, in standard errors; the ELBO in its place is caught."""
    model, y = linear(), torch.randn(6, FEATURES)
    guide = pv.Guide(model, pv.GlobalParameters(), pv.FullRankNormal())
    exact = marginal(model).log_prob(y)
    method = pv.ImportanceSampling(5000, proposal=pv.Widened(1.2))
    found = pv.log_marginal_likelihood(model, guide.fit_rows(y), y, method)
    limit = stats.norm.isf(FALSE_ALARM / 2 / len(y))
    assert ((found.value - exact) / found.error).abs().max() < limit
    bound = pv.elbo(model, pv.Guide(model, pv.ExactPosterior()), y, 5000).elbo
    assert ((bound.value - exact) / bound.error).abs().max() > limit


@float64
def test_the_program_is_its_equations() -> None:
    """Top first; log p(y, z), written out."""
    model, y, z = linear(), torch.randn(5, FEATURES), torch.randn(4, 5, sum(SIZES))
    parts = model.split(z)
    assert {name: part.shape[-1] for name, part in parts.items()} == {"z_3": 1, "z_2": 2, "z_1": 2}
    upper, lower = model.layers
    expected = normal(parts["z_3"], 0.0, 1.0).sum(-1)
    expected = expected + normal(parts["z_2"], upper.net(parts["z_3"]), SIGMAS[0]).sum(-1)  # type: ignore[operator]
    expected = expected + normal(parts["z_1"], lower.net(parts["z_2"]), SIGMAS[1]).sum(-1)  # type: ignore[operator]
    expected = expected + normal(y, model.decoder(parts["z_1"]), 0.5).sum(-1)
    torch.testing.assert_close(pv.log_joint(model, z, y), expected, rtol=1e-11, atol=1e-11)
    assert [site.name for site in pv.Guide(model, pv.GlobalParameters()).program.latent_sites] == [
        *parts
    ]


@float64
def test_a_sigma_from_the_layer_above() -> None:
    """A bare net gives means, and what becomes standard deviations, as the likelihood does."""
    net, z = nn.Linear(2, 6), torch.randn(5, 2)
    model = HierarchicalVAE(nn.Linear(3, 4), pv.likelihoods.Bernoulli(), 2, [net])
    assert model.sizes == (2, 3)
    layer = model.layers[0]
    loc, raw = net(z).chunk(2, dim=1)
    distribution = layer(z).base_dist
    torch.testing.assert_close(distribution.loc, loc)
    torch.testing.assert_close(distribution.scale, 0.01 + nn.functional.softplus(raw))


@float64
def test_draws() -> None:
    """Mean and covariance of p(y); what `decode` gives depends on the lowest layer alone."""
    model = linear()
    exact, y = marginal(model), model.sample(20_000, seed=1)
    assert_mean(y, exact.mean)
    centred = y - exact.mean
    assert_mean(centred[:, :, None] * centred[:, None, :], exact.covariance_matrix)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(centred.square(), 1.15 * exact.variance)
    z = torch.randn(7, sum(SIZES))
    expected = model.decoder(z[:, -SIZES[-1] :])
    assert torch.equal(model.decode(z), expected.detach())


@float64
def test_another_prior() -> None:
    """The top layer takes any prior."""
    prior = MixtureOfNormals(2, 1)
    layers = [NormalGiven(nn.Linear(1, 2), 1.0)]
    model = HierarchicalVAE(nn.Linear(2, 3), pv.likelihoods.Gaussian(), 1, layers, prior)
    z, y = torch.zeros(1, 4, 3), torch.zeros(4, 3)
    plain = HierarchicalVAE(model.decoder, model.likelihood, 1, layers)
    difference = pv.log_joint(model, z, y) - pv.log_joint(plain, z, y)
    expected = prior(torch.zeros(1)).log_prob(torch.zeros(1)) - normal(torch.zeros(()), 0.0, 1.0)
    torch.testing.assert_close(difference, expected.detach().expand(1, 4))


@pytest.mark.filterwarnings("ignore")
def test_every_guide() -> None:
    """Guides hold all layers in one vector."""
    net = pv.nets.MLPEncoder
    model = HierarchicalVAE(
        nn.Linear(2, FEATURES), pv.likelihoods.Gaussian(0.5), 1, [nn.Linear(1, 4)]
    )
    y = torch.randn(6, FEATURES)
    assert_works_under_every_guide(model, (y,), lambda: net(FEATURES, (4,)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_comparison() -> None:
    """Guides side by side."""
    net = pv.nets.MLPEncoder
    assert_compares(linear(), (torch.randn(6, FEATURES),), lambda: net(FEATURES, (4,)))


def test_what_is_refused() -> None:
    """With what was expected and what to do."""
    gaussian, decoder = pv.likelihoods.Gaussian(), nn.Linear(2, 3)
    with pytest.raises(ValueError, match="at least one layer below the top"):
        HierarchicalVAE(decoder, gaussian, 2, [])
    with pytest.raises(ValueError, match=r"cannot take tensors of the shapes \[\(2, 1\)\]"):
        HierarchicalVAE(decoder, gaussian, 1, [nn.Linear(2, 4)])
    with pytest.raises(ValueError, match=r"cannot decode z of shape \(2, 3\)"):
        HierarchicalVAE(decoder, gaussian, 1, [nn.Linear(1, 6)])
    with pytest.raises(ValueError, match="must give 2 numbers per feature"):
        HierarchicalVAE(decoder, gaussian, 1, [nn.Linear(1, 3)])


def test_arguments_make_the_same() -> None:
    """The arguments that the model was made with."""
    model = linear()
    assert repr(HierarchicalVAE(**arguments_of(model))) == repr(model)
