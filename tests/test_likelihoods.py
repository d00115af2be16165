"""Likelihoods: their densities against SciPy's, their means, and the data that they refuse."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.likelihoods import (
    Bernoulli,
    DecodedSigma,
    FixedSigma,
    Gaussian,
    LearnedSigma,
    Likelihood,
)
from pyro_vae.registry import arguments_of

float64 = pytest.mark.usefixtures("float64")


def density(likelihood: Likelihood, output: Tensor, y: Tensor) -> np.ndarray:
    """Our log density, `(batch,)`."""
    log_prob: Tensor = likelihood(output).log_prob(y)
    return log_prob.detach().numpy()


# ---------------------------------------------------------------------- Bernoulli


@float64
@pytest.mark.parametrize("shape", [(3,), (2, 4, 5)])
def test_bernoulli(shape: tuple[int, ...]) -> None:
    """Binary data of any shape; one number per datum; the mean is the probability of a one."""
    logits, y = 3 * torch.randn(6, *shape), torch.randint(2, (6, *shape)).double()
    p = special.expit(logits.numpy())
    expected = stats.bernoulli.logpmf(y.numpy(), p).reshape(6, -1).sum(axis=1)
    np.testing.assert_allclose(density(Bernoulli(), logits, y), expected, rtol=1e-10)
    np.testing.assert_allclose(Bernoulli().mean(logits).numpy(), p, rtol=1e-12)
    assert Bernoulli()(logits).event_shape == shape


def test_bernoulli_does_not_saturate() -> None:
    """In float32 a sigmoid is 1 from about 17 on; the logit still counts."""
    output = torch.tensor([[50.0], [-200.0]])
    expected = [-50.0, -200.0]
    np.testing.assert_allclose(density(Bernoulli(), output, torch.tensor([[0.0], [1.0]])), expected)


@float64
def test_bernoulli_takes_grey() -> None:
    """Values between 0 and 1 are weighed between the two; the program does not refuse them."""
    logits, y = torch.randn(4, 3), torch.rand(4, 3)
    expected = (y * logits - torch.log1p(logits.exp())).sum(-1)
    np.testing.assert_allclose(density(Bernoulli(), logits, y), expected.numpy(), rtol=1e-10)
    model = pv.models.VAE(nn.Linear(2, 3), Bernoulli(), latent_dim=2)
    model.check(y)
    assert pv.log_joint(model, torch.zeros(1, 4, 2), y).isfinite().all()


def test_bernoulli_refuses_bytes() -> None:
    """With what was found and what to do; through the model as well."""
    model = pv.models.VAE(nn.Linear(2, 3), Bernoulli(), latent_dim=2)
    y = torch.tensor([[0.0, 128.0, 255.0]])
    with pytest.raises(ValueError, match=r"\[0, 1\], which excludes 2 of 3 .*0 to 255.* y / 255"):
        model.check(y)
    with pytest.raises(ValueError, match=r"excludes 1 of 2 values \(.* from -1 to 1\)"):
        Bernoulli().check(torch.tensor([[-1.0, 1.0]]))


def test_gaussian_takes_any_number() -> None:
    """Nothing to refuse."""
    Gaussian().check(torch.tensor([[-1e6, 255.0]]))


# ---------------------------------------------------------------------- Gaussian


@float64
@pytest.mark.parametrize("shape", [(3,), (2, 4, 5)])
@pytest.mark.parametrize("sigma", [0.5, 2, FixedSigma(3.0)])
def test_fixed_sigma(sigma: float | FixedSigma, shape: tuple[int, ...]) -> None:
    """SciPy's normal; the mean is the output, and there is nothing to train."""
    likelihood = Gaussian(sigma)
    output, y = torch.randn(6, *shape), torch.randn(6, *shape)
    scale = sigma.sigma if isinstance(sigma, FixedSigma) else sigma
    expected = stats.norm.logpdf(y.numpy(), output.numpy(), scale).reshape(6, -1).sum(axis=1)
    np.testing.assert_allclose(density(likelihood, output, y), expected, rtol=1e-10)
    assert torch.equal(likelihood.mean(output), output)
    assert (likelihood.outputs, list(likelihood.parameters())) == (1, [])


@float64
@pytest.mark.parametrize("shape", [(), (3,), 3])
def test_learned_sigma(shape: tuple[int, ...] | int) -> None:
    """It starts where it was told; one for all features, or one per feature."""
    likelihood = Gaussian(LearnedSigma(shape, initial=0.7))
    output, y = torch.randn(6, 3), torch.randn(6, 3)
    expected = stats.norm.logpdf(y.numpy(), output.numpy(), 0.7).sum(axis=1)
    np.testing.assert_allclose(density(likelihood, output, y), expected, rtol=1e-10)
    likelihood(output).log_prob(y).sum().backward()
    (raw,) = likelihood.parameters()
    assert raw.shape == ((3,) if shape else ())
    assert raw.grad is not None
    assert (raw.grad != 0).all()


@pytest.mark.parametrize("initial", [0.0101, 0.5, 30.0, 5000.0])
def test_where_sigma_starts(initial: float) -> None:
    """In float32 too, near the floor and where its exponential would overflow."""
    _, sigma = LearnedSigma(initial=initial)(torch.zeros(1, 1))
    assert sigma.item() == pytest.approx(initial, rel=1e-5)


def test_sigma_has_a_floor() -> None:
    """Data that are fitted exactly pull sigma down, to the floor and no further."""
    likelihood = Gaussian(LearnedSigma(floor=0.05))
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        (-likelihood(torch.zeros(1, 2)).log_prob(torch.zeros(1, 2)).sum()).backward()
        optimizer.step()
    with torch.no_grad():
        _, sigma = likelihood.sigma(torch.zeros(1, 2))
    assert 0.05 <= sigma.item() < 0.0501


@float64
@pytest.mark.parametrize("shape", [(3,), (1, 4, 5)])
def test_decoded_sigma(shape: tuple[int, ...]) -> None:
    """The first half of the output is the mean, the second one sigma through a softplus."""
    likelihood = Gaussian(DecodedSigma(floor=0.1))
    loc, raw, y = (torch.randn(6, *shape) for _ in range(3))
    output = torch.cat([loc, raw], dim=1)
    scale = 0.1 + np.log1p(np.exp(raw.numpy()))
    expected = stats.norm.logpdf(y.numpy(), loc.numpy(), scale).reshape(6, -1).sum(axis=1)
    np.testing.assert_allclose(density(likelihood, output, y), expected, rtol=1e-10)
    assert torch.equal(likelihood.mean(output), loc)
    assert likelihood.outputs == 2


def test_decoded_sigma_goes_with_decoders() -> None:
    """`outputs=likelihood.outputs` is all that a decoder of ours needs to be told."""
    likelihood = Gaussian(DecodedSigma())
    for decoder, shape in itertools.product(["mlp", "conv"], [(1, 6, 6), (3, 5, 7)]):
        net: nn.Module = (
            pv.nets.MLPDecoder(2, shape, outputs=likelihood.outputs)
            if decoder == "mlp"
            else pv.nets.ConvDecoder(2, shape, channels=(4, 3), outputs=likelihood.outputs)
        )
        model = pv.models.VAE(net, likelihood, latent_dim=2)
        assert model.sample(4).shape == (4, *shape)


# ---------------------------------------------------------------------- what is refused


def test_learned_parameters_fit_a_datum() -> None:
    """One for all features, or one for each: else refused when the model is made."""
    for shape in ((), 3, (1,)):
        pv.models.VAE(torch.nn.Linear(2, 3), Gaussian(LearnedSigma(shape)), 2)
    with pytest.raises(ValueError, match=r"LearnedSigma has shape \(5,\).* pass `shape=\(3,\)`"):
        pv.models.VAE(torch.nn.Linear(2, 3), Gaussian(LearnedSigma(5)), 2)
    mixed = pv.likelihoods.Mixed([Gaussian(LearnedSigma(2)), Gaussian()])
    with pytest.raises(ValueError, match=r"LearnedSigma has shape \(2,\)"):
        pv.models.VAE(torch.nn.Linear(2, 2), mixed, 2)
    with pytest.raises(TypeError, match=r"call the class, as in Gaussian\(\.\.\.\)"):
        pv.likelihoods.Mixed({"a": Gaussian})  # type: ignore[dict-item]


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_wrong_sigmas(sigma: float) -> None:
    """A standard deviation is positive and finite, and so is a floor."""
    with pytest.raises(ValueError, match="`sigma` must be a finite number above 0"):
        Gaussian(sigma)
    with pytest.raises(ValueError, match="`floor`, the smallest sigma, must be positive"):
        LearnedSigma(floor=sigma)
    with pytest.raises(ValueError, match="`floor`, the smallest sigma, must be positive"):
        DecodedSigma(floor=sigma)


@pytest.mark.parametrize("initial", [0.1, 0.05, math.inf, math.nan])
def test_wrong_starts(initial: float) -> None:
    """Sigma is above its floor, and finite."""
    with pytest.raises(ValueError, match=r"the sigma at the start, .* above the floor of 0\.1;"):
        LearnedSigma(initial=initial, floor=0.1)


def test_a_decoder_with_one_output() -> None:
    """An output that cannot be halved, with the remedy."""
    with pytest.raises(ValueError, match=r"got shape \(2, 3\): build the decoder with `outputs=2`"):
        pv.models.VAE(nn.Linear(2, 3), Gaussian(DecodedSigma()), latent_dim=2)


@pytest.mark.parametrize(
    "value",
    [Bernoulli(), FixedSigma(2.0), LearnedSigma(3, floor=0.2), DecodedSigma(floor=0.2)],
    ids=lambda value: type(value).__name__,
)
def test_arguments_make_the_same(value: Any) -> None:
    """What a saved model is made from again."""
    config = arguments_of(value)
    again = type(value)(**config)
    assert arguments_of(again) == config
    assert again.state_dict().keys() == value.state_dict().keys()
