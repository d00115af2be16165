"""The VAE: a Pyro program that also generates; against the exact moments of a linear model."""

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.registry import arguments_of
from tests.helpers.cases import normal
from tests.helpers.models import assert_compares, assert_works_under_every_guide
from tests.helpers.statistics import assert_mean

NUM_DATA = 5

float64 = pytest.mark.usefixtures("float64")


def linear(sigma: float = 0.5, latents: int = 2, features: int = 3) -> pv.models.VAE:
    """Y | z ~ N(W z + b, sigma^2)."""
    likelihood = pv.likelihoods.Gaussian(sigma)
    return pv.models.VAE(nn.Linear(latents, features), likelihood, latent_dim=latents)


def affine(model: pv.models.VAE) -> tuple[Tensor, Tensor]:
    """The decoder's weight and bias, without gradients."""
    assert isinstance(model.decoder, nn.Linear)
    return model.decoder.weight.detach(), model.decoder.bias.detach()


def normalized() -> pv.models.VAE:
    """A decoder with BatchNorm and dropout."""
    decoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    return pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)


# ---------------------------------------------------------------------- a Pyro program


@float64
def test_the_program_is_its_equations() -> None:
    """Log p(y, z) is a standard normal for z and the likelihood at the decoder's output."""
    model, y, z = linear(), torch.randn(NUM_DATA, 3), torch.randn(4, NUM_DATA, 2)
    weight, bias = affine(model)
    expected = normal(z, 0.0, 1.0).sum(-1) + normal(y, z @ weight.T + bias, 0.5).sum(-1)
    torch.testing.assert_close(pv.log_joint(model, z, y), expected, rtol=1e-11, atol=1e-11)


@float64
@pytest.mark.usefixtures("user_param_store")
def test_sites_and_plate() -> None:
    """One plate `data`, one latent `z`, one observed `y`; the call returns z."""
    model, y = linear(), torch.randn(NUM_DATA, 3)
    trace = poutine.trace(model).get_trace(y)
    trace.compute_log_prob()
    assert trace.stochastic_nodes == ["data", "z"]  # the plate first
    assert trace.observation_nodes == ["y"]
    assert trace.nodes["z"]["log_prob"].shape == trace.nodes["y"]["log_prob"].shape == (NUM_DATA,)
    assert trace.nodes["_RETURN"]["value"] is trace.nodes["z"]["value"]


@float64
@pytest.mark.usefixtures("user_param_store")
def test_handlers_work() -> None:
    """Conditioning, replacing the prior's draw, and drawing data in place of observing them."""
    model, y, z = linear(), torch.zeros(NUM_DATA, 3), torch.randn(NUM_DATA, 2)
    conditioned = poutine.condition(model, data={"z": z})
    assert torch.equal(conditioned(y), z)
    drawn: Any = poutine.trace(poutine.uncondition(conditioned)).get_trace(y)
    assert not torch.equal(drawn.nodes["y"]["value"], y)
    weight, bias = affine(model)
    prior = Predictive(poutine.uncondition(model), num_samples=1000)(y[:1])
    centred = prior["y"][:, 0] - bias
    covariance = weight @ weight.T + 0.5**2 * torch.eye(3)
    assert_mean(centred[:, :, None] * centred[:, None, :], covariance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_decoder(dtype: torch.dtype) -> None:
    """Draws and means are of the decoder's dtype, whatever the default."""
    model = pv.models.VAE(nn.Linear(2, 3, dtype=dtype), pv.likelihoods.Gaussian(), latent_dim=2)
    assert model.sample(2).dtype == dtype
    assert model.prototype().dtype == dtype
    guide = pv.Guide(model, pv.GlobalParameters())
    assert guide.mean(torch.zeros(1, 3, dtype=dtype)).dtype == dtype


# ---------------------------------------------------------------------- generation


@float64
def test_draws_have_the_moments() -> None:
    """Mean b, covariance W W' + sigma^2 I; a wrong sigma is seen."""
    model = linear(sigma=0.5)
    weight, bias = affine(model)
    y = model.sample(20_000)
    assert_mean(y, bias)
    products = (y - bias)[:, :, None] * (y - bias)[:, None, :]
    assert_mean(products, weight @ weight.T + 0.5**2 * torch.eye(3))
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(products, weight @ weight.T + 0.6**2 * torch.eye(3))


@float64
def test_data_given_latents() -> None:
    """Draws from p(y | z) have the mean that `decode` gives, for each z."""
    model = pv.models.VAE(nn.Linear(2, 3), pv.likelihoods.Bernoulli(), latent_dim=2)
    z = torch.randn(4, 2)
    draws = model.sample_data(z.expand(2000, 4, 2))
    assert draws.unique().tolist() == [0.0, 1.0]
    assert_mean(draws, model.decode(z))


@pytest.mark.parametrize("draws", [(), (4,), (10, 4), (2, 5, 4), (0,)])
def test_leading_dimensions(draws: tuple[int, ...]) -> None:
    """Latents of any number of leading dimensions, none included, are decoded one by one."""
    decoder = pv.nets.ConvDecoder(2, (1, 5, 4), (3,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    z = torch.randn(*draws, 2)
    assert model.decode(z).shape == model.sample_data(z).shape == (*draws, 1, 5, 4)
    assert not model.decode(z).requires_grad
    if len(draws) == 2:
        torch.testing.assert_close(model.decode(z)[3], model.decode(z[3]))


def test_many_rows_go_in_pieces() -> None:
    """More rows than are decoded at once, in order."""
    model, z = linear(), torch.randn(5000, 2)
    torch.testing.assert_close(model.decode(z)[4090:4100], model.decode(z[4090:4100]))
    assert model.sample_data(z).shape == (5000, 3)


def test_seeded_draws() -> None:
    """With a seed the same draws, and the caller's stream stays; without one they differ."""
    model = linear()
    stream = torch.get_rng_state()
    assert torch.equal(model.sample(7, seed=1), model.sample(7, seed=1))
    assert not torch.equal(model.sample(7, seed=1), model.sample(7, seed=2))
    assert torch.equal(torch.get_rng_state(), stream)
    assert not torch.equal(model.sample(7), model.sample(7))
    assert model.sample(0).shape == (0, 3)


def test_generation_changes_nothing() -> None:
    """BatchNorm and dropout are in evaluation mode inside, and every mode comes back."""
    model = normalized()
    assert isinstance(model.decoder, nn.Sequential)
    model.decoder[2].eval()
    modes = [module.training for module in model.modules()]
    before, z = copy.deepcopy(model.state_dict()), torch.randn(6, 2)
    assert torch.equal(model.decode(z), model.decode(z))
    model.sample(4)
    model.prototype()
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_making_a_model_changes_nothing() -> None:
    """Neither the decoder's running statistics nor the caller's random stream."""
    decoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before, stream = copy.deepcopy(decoder.state_dict()), torch.get_rng_state()
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    pv.Guide(model, pv.GlobalParameters())
    assert torch.equal(torch.get_rng_state(), stream)
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, before[name]), name


# ---------------------------------------------------------------------- what is refused


def test_a_decoder_that_does_not_fit() -> None:
    """Of other latents, or of other data."""
    bernoulli = pv.likelihoods.Bernoulli()
    with pytest.raises(ValueError, match=r"cannot decode z of shape \(2, 3\)"):
        pv.models.VAE(nn.Linear(2, 3), bernoulli, latent_dim=3)
    with pytest.raises(ValueError, match="MLPDecoder must have 2 numbers per row; got 3"):
        pv.models.VAE(pv.nets.MLPDecoder(2, 4), bernoulli, latent_dim=3)
    with pytest.raises(ValueError, match="`latent_dim` must be a whole number"):
        pv.models.VAE(nn.Linear(2, 3), bernoulli, latent_dim=0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4,), r"decoder gives, \(3,\); got shape \(4,\) in 2 row"), ((3, 1), r"\(3, 1\)")],
)
def test_data_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    """Named with both shapes, before a distribution broadcasts them."""
    with pytest.raises(ValueError, match=message):
        pv.log_joint(linear(), torch.zeros(1, 2, 2), torch.zeros(2, *shape))


# ---------------------------------------------------------------------- names


def test_names_are_fresh() -> None:
    """Two models, and a copy of one, have names of their own in Pyro's store."""
    first, second = linear(), linear()
    copied = copy.deepcopy(first)
    assert len({model._pyro_name for model in (first, second, copied)}) == 3
    weights = [affine(model)[0] for model in (first, copied)]
    assert torch.equal(*weights)
    weights[1] += 1
    assert not torch.equal(*weights)  # no storage is shared
    assert copied.training
    copied.eval()
    assert first.training


def test_arguments_make_the_same() -> None:
    """The arguments that the model was made with."""
    model = linear()
    again = pv.models.VAE(**arguments_of(model))
    assert again.decoder is model.decoder
    assert math.prod(again.prototype().shape) == 6


def by_hand(y: Tensor) -> None:
    """The same program, written by hand."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z @ torch.ones(2, 3) + 1, 0.5).to_event(1), obs=y)


@float64
def test_the_same_program_by_hand() -> None:
    """Nothing about the class is special: a function with the same sites has the same density."""
    model = linear()
    for value in affine(model):
        value.fill_(1.0)
    z, y = torch.randn(4, NUM_DATA, 2), torch.randn(NUM_DATA, 3)
    ours, theirs = pv.log_joint(model, z, y), pv.log_joint(by_hand, z, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------- under every guide


@pytest.mark.filterwarnings("ignore")  # few draws under guides that are hardly trained
def test_every_guide() -> None:
    """The VAE itself."""
    y = torch.randn(6, 3)
    assert_works_under_every_guide(linear(), (y,), lambda: pv.nets.MLPEncoder(3, (4,)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_comparison() -> None:
    """The VAE itself."""
    assert_compares(linear(), (torch.randn(6, 3),), lambda: pv.nets.MLPEncoder(3, (4,)))


@pytest.mark.parametrize(
    ("z", "error", "text"),
    [
        (torch.tensor([[[0.0, 1.0]], [[torch.nan, 0.0]]]), ValueError, r"1 of 2 rows.* z\[1, 0\]"),
        (torch.full((2,), torch.inf), ValueError, r"1 of 1 row \(first in z\[\.\.\.\]\)"),
        (torch.tensor(1.0), ValueError, r"of shape .*; got Tensor of .* shape \(\)"),
        (torch.zeros(4, 3), ValueError, r"shape \(\.\.\., 2\); got Tensor of .* \(4, 3\)"),
        (torch.zeros(4, 2).double(), TypeError, r"torch\.as_tensor\(z, dtype=torch\.float32\)"),
        (torch.zeros(4, 2).numpy(), TypeError, r"torch\.as_tensor\(z, dtype=torch\.float32\)"),
        ([[0.0, 0.0]], TypeError, r"torch\.as_tensor\(z, dtype=torch\.float32\)"),
    ],
)
def test_latents_that_are_none_are_refused(z: Any, error: type[Exception], text: str) -> None:
    """By name, shape, type and row; a mean of nan would be no answer."""
    model = pv.models.VAE(torch.nn.Linear(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    for answer in (model.decode, model.sample_data, model.sample_missing):
        with pytest.raises(error, match=text):
            answer(z)
    assert model.decode(torch.zeros(2)).shape == (3,)
    with pytest.raises(ValueError, match=r"one row for each row of `z`.* got Tensor .* \(3, 1\)"):
        model.decode(torch.zeros(4, 2), torch.zeros(3, 1))
