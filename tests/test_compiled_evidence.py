"""Compiled log densities against those of the program, on the same draws."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evidence import compiled
from pyro_vae.programs import graphs
from tests.helpers.graphs import branching, coins, images, shared_level

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be trusted")


def with_encoder() -> tuple[pv.models.VAE, pv.Guide, Tensor]:
    """Model, guide and data."""
    model, y = images()
    return model, pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(20, (16,)))), y


def both(model: object, guide: object, y: Tensor, num_samples: int = 60) -> tuple[Tensor, Tensor]:
    """Log p(y) as it is written, and compiled."""
    values = [
        pv.log_marginal_likelihood(
            model,  # type: ignore[arg-type]
            guide,  # type: ignore[arg-type]
            y,
            pv.ImportanceSampling(num_samples, compile=compile),
        ).value
        for compile in (False, True)
    ]
    return values[0], values[1]


@pytest.mark.slow
def test_the_same_numbers() -> None:
    """Same draws, same densities, but for rounding; for full pieces and for what is left over."""
    model, guide, y = with_encoder()
    for num_samples in (60, 61):
        written, found = both(model, guide, y, num_samples)
        torch.testing.assert_close(found, written, rtol=1e-6, atol=1e-6)
    assert graphs._KEPT[model].graphs


@pytest.mark.slow
def test_graphs_are_kept_and_follow_the_weights() -> None:
    """A second evaluation compiles nothing, and sees weights that have moved."""
    model, guide, y = with_encoder()
    both(model, guide, y)
    (graph,) = graphs._KEPT[model].graphs.values()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    written, found = both(model, guide, y)
    torch.testing.assert_close(found, written, rtol=1e-6, atol=1e-6)
    assert list(graphs._KEPT[model].graphs.values()) == [graph]


@pytest.mark.slow
def test_a_change_that_no_tensor_shows_is_caught() -> None:
    """A fixed sigma is a number in the graph: the graph is dropped, the answer right."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(nn.Linear(4, 4)))
    y = model.sample(4, seed=0)
    both(model, guide, y)
    model.likelihood.sigma.sigma = 1.0  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="differ from those of the program"):
        written, found = both(model, guide, y)
    assert torch.equal(found, written)
    assert not graphs._KEPT[model].graphs


@pytest.mark.slow
def test_missing_entries() -> None:
    """Data with and without holes have graphs of their own."""
    model = pv.models.VAE(nn.Linear(2, 4), pv.likelihoods.Gaussian(0.5), latent_dim=2)
    encoder = pv.nets.MissingIndicator(pv.nets.MLPEncoder(8, (4,)))
    guide = pv.Guide(model, pv.Encoder(encoder))
    y = model.sample(4, seed=0)
    holes = y.masked_fill(torch.rand_like(y) < 0.3, torch.nan)
    for data in (y, holes, y):
        written, found = both(model, guide, data)
        torch.testing.assert_close(found, written, rtol=1e-6, atol=1e-6)
    assert len(graphs._KEPT[model].graphs) == 2


@pytest.mark.slow
def test_latents_that_all_data_share() -> None:
    """Their values are arguments of the graph, not parts of it."""
    y = torch.randn(4, 2)
    guide = pv.Guide(shared_level, pv.Encoder(nn.Linear(2, 4)), example=y)
    for level in (0.0, 3.0):
        values = [
            pv.log_marginal_likelihood(
                shared_level, guide, y, pv.ImportanceSampling(50, compile=compile),
                given={"level": torch.tensor(level)},
            ).value
            for compile in (False, True)
        ]  # fmt: skip
        torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-6)
    assert len(graphs._KEPT[shared_level].graphs) == 1


def test_what_cannot_be_compiled() -> None:
    """A branch on the data: one line that says where, and the answer as it is written."""
    y = torch.rand(4, 2)
    guide = pv.Guide(branching, pv.Encoder(nn.Linear(2, 4)), example=y)
    with pytest.warns(UserWarning, match=r"not compiled: .*reads a number out of a tensor"):
        written, found = both(branching, guide, y)
    assert torch.equal(found, written)


@pytest.mark.slow
def test_data_are_validated_still() -> None:
    """What a program refuses it refuses compiled, too."""
    y = torch.zeros(4, 2)

    guide = pv.Guide(coins, pv.Encoder(nn.Linear(2, 4)), example=y)
    both(coins, guide, y)
    with pytest.raises(ValueError, match="support"), warnings.catch_warnings():
        pv.log_marginal_likelihood(coins, guide, y + 0.5, pv.ImportanceSampling(60, compile=True))


def test_pieces() -> None:
    """Of one size where a divisor is not much smaller than what fits."""
    assert compiled.even_pieces(1000, 1000) == 1000
    assert compiled.even_pieces(5000, 1000) == 1000
    assert compiled.even_pieces(4999, 1000) == 1000
