"""Compiled log densities against those of the program, on the same draws."""

import warnings
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evidence import compiled
from pyro_vae.programs import graphs

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be trusted")


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    """Each test compiles its own."""
    graphs._KEPT.clear()
    yield
    graphs._KEPT.clear()


def images(num_data: int = 6) -> tuple[pv.models.VAE, pv.Guide, Tensor]:
    """A Bernoulli VAE, untrained, and data of it."""
    model = pv.models.VAE(pv.nets.MLPDecoder(3, 20, (16,)), pv.likelihoods.Bernoulli(), 3)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(20, (16,))))
    return model, guide, model.sample(num_data, seed=0)


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
    model, guide, y = images()
    for num_samples in (60, 61):
        written, found = both(model, guide, y, num_samples)
        torch.testing.assert_close(found, written, rtol=1e-6, atol=1e-6)
    assert graphs._KEPT[model].graphs


@pytest.mark.slow
def test_graphs_are_kept_and_follow_the_weights() -> None:
    """A second evaluation compiles nothing, and sees weights that have moved."""
    model, guide, y = images()
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

    def program(y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z + level, 1.0).to_event(1), obs=y)

    y = torch.randn(4, 2)
    guide = pv.Guide(program, pv.Encoder(nn.Linear(2, 4)), example=y)
    for level in (0.0, 3.0):
        values = [
            pv.log_marginal_likelihood(
                program, guide, y, pv.ImportanceSampling(50, compile=compile),
                given={"level": torch.tensor(level)},
            ).value
            for compile in (False, True)
        ]  # fmt: skip
        torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-6)
    assert len(graphs._KEPT[program].graphs) == 1


def test_what_cannot_be_compiled() -> None:
    """A branch on the data: one line that says where, and the answer as it is written."""

    def program(y: Tensor) -> None:
        scale = 2.0 if float(y.sum()) > 0 else 1.0
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, scale).to_event(1), obs=y)

    y = torch.rand(4, 2)
    guide = pv.Guide(program, pv.Encoder(nn.Linear(2, 4)), example=y)
    with pytest.warns(UserWarning, match=r"not compiled: .*reads a number out of a tensor"):
        written, found = both(program, guide, y)
    assert torch.equal(found, written)


@pytest.mark.slow
def test_data_are_validated_still() -> None:
    """What a program refuses it refuses compiled, too."""
    y = torch.zeros(4, 2)

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Bernoulli(logits=z).to_event(1), obs=y)

    guide = pv.Guide(program, pv.Encoder(nn.Linear(2, 4)), example=y)
    both(program, guide, y)
    with pytest.raises(ValueError, match="support"), warnings.catch_warnings():
        pv.log_marginal_likelihood(program, guide, y + 0.5, pv.ImportanceSampling(60, compile=True))


def test_pieces() -> None:
    """Of one size where a divisor is not much smaller than what fits."""
    assert compiled.even_pieces(1000, 1000) == 1000
    assert compiled.even_pieces(5000, 1000) == 1000
    assert compiled.even_pieces(4999, 1000) == 1000
