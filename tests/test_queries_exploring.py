"""Embeddings, reconstructions, paths and traversals: closed forms of factor analysis."""

import math
from statistics import NormalDist
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.diagnostics import mutual_information
from pyro_vae.queries import (
    Linear,
    Spherical,
    encode,
    explain,
    interpolate,
    reconstruct,
    reconstruction_draws,
    traverse,
)
from tests.helpers.queries import FACTORS, guide, program, vae
from tests.helpers.statistics import FALSE_ALARM, assert_mean

pytestmark = pytest.mark.usefixtures("float64")

LIMIT = NormalDist().inv_cdf(1 - FALSE_ALARM / 2)  # errors


def test_means_are_those_of_the_posterior() -> None:
    """And draws spread around them as the guide does."""
    y = FACTORS.sample(5)
    exact = FACTORS.posterior(y)
    torch.testing.assert_close(encode(program, guide(program), y), exact.loc)
    draws = encode(program, guide(program), y, 4000)
    assert draws.shape == (4000, 5, 2)
    assert_mean(draws, exact.loc)
    assert_mean((draws - exact.loc).square(), exact.covariance_matrix.diagonal(dim1=1, dim2=2))
    with pytest.raises(ValueError, match="at least 1"):
        encode(program, guide(program), y, 0)


def test_draws_belong_to_their_datum(seed: int) -> None:
    """Wherever it stands."""
    y = FACTORS.sample(6)
    one = encode(program, guide(program), y, 3, seed=seed)
    two = encode(program, guide(program), y.flip(0), 3, seed=seed)
    torch.testing.assert_close(one, two.flip(1))


@pytest.mark.parametrize("model", [program, vae()], ids=["program", "vae"])
def test_reconstructions(model: Any) -> None:
    """That of the mean is exact for a linear decoder; a draw has the noise."""
    y = FACTORS.sample(4)
    exact = FACTORS.posterior(y).loc @ FACTORS.loadings.T + FACTORS.mean
    torch.testing.assert_close(reconstruct(model, guide(model), y), exact)
    draws = reconstruction_draws(model, guide(model), y, 4000)
    assert_mean(draws, exact)
    variance = FACTORS.posterior(y).covariance_matrix.diagonal(dim1=1, dim2=2)  # mean-field q
    spread = variance @ FACTORS.loadings.T.square() + FACTORS.noise_variance
    assert_mean((draws - exact).square(), spread)
    with pytest.raises(AssertionError, match="resolution"):  # without the noise of p(y | z)
        assert_mean((draws - exact).square(), spread - FACTORS.noise_variance)


def test_missing_entries_are_filled_in() -> None:
    """By what the rest of the row says."""
    y = FACTORS.sample(3)
    y[:, 1] = torch.nan
    filled = reconstruct(vae(), guide(vae()), y)
    assert bool(filled.isfinite().all())


def test_programs_of_other_shapes() -> None:
    """Sites behind an inner plate, whose values are transposed, go back where they are observed."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("features", 3, dim=-2):
                pyro.sample("y", dist.Normal(2 * z, 0.1), obs=y.T)

    prior = pv.Guide(model, pv.GlobalParameters(), example=torch.zeros(2, 3))
    draws = reconstruction_draws(model, prior, torch.zeros(2, 3), 5)
    assert draws.shape == (5, 2, 3)
    assert float(draws.std(dim=2).max()) < 1.0 < 6 * float(draws.mean(dim=2).std())
    assert reconstruct(model, prior, torch.zeros(2, 3)).shape == (2, 3)


def test_what_has_no_mean_is_refused() -> None:
    """Categories; draws of them are fine."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("y", dist.Categorical(logits=z), obs=y)

    y = torch.tensor([0, 1, 2])
    prior = pv.Guide(model, pv.GlobalParameters(), example=y)
    with pytest.raises(ValueError, match=r"Categorical.*'y' has no mean"):
        reconstruct(model, prior, y)
    assert set(reconstruction_draws(model, prior, y, 50).unique().tolist()) <= {0, 1, 2}


def test_linear_path() -> None:
    """Even steps, both ends among them, for many pairs at once."""
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    path = interpolate(a, b, 5, Linear())
    torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]))
    torch.testing.assert_close(path.diff(dim=0), ((b - a) / 4).expand(4, 4, 3))
    torch.testing.assert_close(interpolate(a, b, 5), path)


def test_spherical_path() -> None:
    """Even angles, and distances from the origin that change evenly."""
    a, b = torch.randn(4, 6), 3 * torch.randn(4, 6)
    path = interpolate(a, b, 9, Spherical())
    torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]))
    radii = path.norm(dim=-1)
    torch.testing.assert_close(radii.diff(dim=0), ((radii[-1] - radii[0]) / 8).expand(8, 4))
    units = path / radii.unsqueeze(-1)
    angles = (units[1:] * units[:-1]).sum(-1).acos()
    torch.testing.assert_close(angles, angles[:1].expand(8, 4))
    assert float(interpolate(a, b, 9).norm(dim=-1)[4].sum()) < float(radii[4].sum())


def test_spherical_ends() -> None:
    """The same direction twice is a straight line; no direction, or two opposite, are refused."""
    a = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(
        interpolate(a, 2 * a, 3, Spherical()), torch.stack([a, 1.5 * a, 2 * a])
    )
    with pytest.raises(ValueError, match=r"origin.*Linear"):
        interpolate(a, 0 * a, 3, Spherical())
    with pytest.raises(ValueError, match="opposite"):
        interpolate(a, -a, 3, Spherical())
    with pytest.raises(ValueError, match="at least 2"):
        interpolate(a, a, 1)


def ordered_model() -> pv.models.VAE:
    """Three latents: the second says most, the first little, the third nothing."""
    decoder = nn.Linear(3, 4)
    with torch.no_grad():
        decoder.weight.copy_(
            torch.tensor([[0.5, 0, 0], [0, 3, 0], [0, 3, 0], [0.5, 0, 0]]).to(decoder.weight)
        )
        decoder.bias.zero_()
    return pv.models.VAE(decoder, pv.likelihoods.Gaussian(1.0), latent_dim=3).double()


def exact_guide(model: pv.models.VAE) -> pv.Guide:
    """Its posterior, which is mean-field since the columns are orthogonal."""
    weight = next(model.decoder.parameters()).detach()
    variance = 1 / (1 + weight.square().sum(dim=0))
    net = nn.Linear(4, 6).double()
    with torch.no_grad():
        net.weight.zero_()[:3] = (weight * variance).T
        net.bias.zero_()[3:] = variance.sqrt().log()
    return pv.Guide(model, pv.Encoder(net))


def test_traversal() -> None:
    """Ordered by information; values are the aggregate's quantiles; decoded exactly."""
    model = ordered_model()
    y = model.sample(300, seed=1)
    at = torch.tensor([0.1, -0.2, 0.3])
    tour = traverse(model, exact_guide(model), y, at=at, levels=(0.1, 0.5, 0.9))
    assert tour.order.tolist() == [1, 0, 2]
    assert tour.names == ("z[1]", "z[0]", "z[2]")
    information = tour.information.value
    assert bool((information.diff() < 0).all())
    assert abs(float(information[2])) < 0.01
    # Under the exact posterior the aggregate of data of the model is the prior.
    normal = math.sqrt(2) * torch.tensor([-0.9062, 0.0, 0.9062])  # of 10, 50 and 90%
    torch.testing.assert_close(tour.values, normal.expand(3, 3), atol=0.35, rtol=0)
    z = at.repeat(3, 3, 1)
    for place, latent in enumerate(tour.order.tolist()):
        z[place, :, latent] = tour.values[place]
    torch.testing.assert_close(tour.decoded, model.decode(z))
    assert float(tour.span[2]) == 0.0
    assert float(tour.span[0]) > float(tour.span[1])
    assert tour.labels[0].startswith("z[1]: ")


def test_one_outlier_does_not_set_the_ends_of_a_walk() -> None:
    """Nor among few data, where it is more than 2.5% of them; asked for, it does."""
    model = ordered_model()
    y = model.sample(28, seed=1)
    far = torch.cat([y, 1000 * y[:1]])
    inside = traverse(model, exact_guide(model), far).values
    assert float(inside.abs().max()) < 6
    assert traverse(model, exact_guide(model), far).levels[1:-1] == (0.1, 0.25, 0.5, 0.75, 0.9)
    assert (
        float(traverse(model, exact_guide(model), far, levels=(0.0, 1.0)).values.abs().max()) > 50
    )
    assert traverse(model, exact_guide(model), model.sample(60, seed=1)).levels[0] == 0.025


def test_traversal_where_information_is_unknown() -> None:
    """The spread of the means then orders the latents, which one outlier does not move."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Laplace(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z * torch.tensor([0.1, 5.0]), 1.0).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Laplace(y * torch.tensor([0.1, 0.2]), 0.4).to_event(1))

    y = torch.randn(20, 2) * 5
    y[7, 0] = 1e4
    tour = traverse(model, guide, y)
    assert tour.order.tolist() == [1, 0]
    assert bool(tour.information.value.isnan().all())
    assert tour.labels == ("z[1]", "z[0]")
    assert tour.at.tolist() == [0.0, 0.0]


def test_the_prior_plays_no_part_in_a_traversal(seed: int) -> None:
    """It may depend on covariates, or not be normal: the information is the guide's alone."""

    def model(y: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Laplace(x, 1.0))
            loc = torch.stack([z, -2 * z], dim=-1)
            pyro.sample("y", dist.Normal(loc, 0.5).to_event(1), obs=y)

    def guide(y: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y[:, 0], 0.6))

    data = torch.randn(30, 2), 3 * torch.randn(30)
    tour = traverse(model, guide, data, seed=seed)
    value, error = mutual_information(model, guide, data, seed=seed + 1).estimate
    own, its = (float(part[0]) for part in tour.information)
    assert abs(own - float(value)) < LIMIT * math.hypot(its, float(error))
    torch.testing.assert_close(tour.decoded[0, :, 1], -2 * tour.values[0])
    assert explain(model, guide, data).effect.shape == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": (0.5, 1.5)}, "from 0 to 1"),
        ({"levels": ()}, "one or more numbers"),
        ({"at": torch.zeros(3)}, "2 finite numbers"),
        ({"at": torch.full((2,), torch.nan)}, "finite"),
    ],
)
def test_bad_traversals(arguments: Any, message: str) -> None:
    """In words."""
    with pytest.raises(ValueError, match=message):
        traverse(vae(), guide(vae()), FACTORS.sample(4), **arguments)
