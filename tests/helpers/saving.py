"""Small models and guides to save, and what must come back of them."""

from typing import Any

import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.likelihoods import (
    Bernoulli,
)
from pyro_vae.models import VAE
from pyro_vae.nets import MLPDecoder, MLPEncoder

NUM_DATA, LATENTS = 6, 2
SHAPE = (1, 5, 5)


def images(num_data: int = NUM_DATA) -> Tensor:
    """Small grey images."""
    return torch.rand(num_data, *SHAPE)


def perturb(*modules: nn.Module) -> None:
    """Moves every parameter from where a fresh one could be."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def plain_model(latent_dim: int = LATENTS) -> VAE:
    """A small VAE of our own classes."""
    return VAE(MLPDecoder(latent_dim, SHAPE, hidden=(4,)), Bernoulli(), latent_dim)


def plain_guide(model: VAE) -> pv.Guide:
    """A small amortized guide of our own classes."""
    return pv.Guide(model, pv.Encoder(MLPEncoder(25, hidden=(4,))))


def assert_same(before: tuple[Any, Any], after: tuple[Any, Any], y: Tensor) -> None:
    """Asserts that two pairs of model and guide give the same bits: tensors, means, weights."""
    for old, new in zip(before, after, strict=True):
        assert_same_state(old, new)
    assert torch.equal(before[1].mean(y), after[1].mean(y))
    weights = [pv.log_weights(model, guide, y, num_samples=3) for model, guide in (before, after)]
    assert torch.equal(*weights)


def assert_same_state(old: nn.Module, new: nn.Module) -> None:
    """Asserts that two modules have the same tensors, dtypes and modes."""
    first, second = old.state_dict(), new.state_dict()
    assert list(first) == list(second)
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value, second[name]), name
    assert repr(old) == repr(new)
    assert [m.training for m in old.modules()] == [m.training for m in new.modules()]
