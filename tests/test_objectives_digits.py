"""What is gained on real data by training on a tighter bound."""

from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_vae as pv
from pyro_vae.objectives import IWAE
from pyro_vae.stats import log_mean_exp
from tests.training import fit


def log_p(model: Any, guide: pv.Guide, y: Tensor, particles: int) -> Tensor:
    """The importance-weighted bound of every datum, `(batch,)`."""
    return log_mean_exp(pv.log_weights(model, guide, y, num_particles=particles))


@pytest.mark.slow
def test_iwae_beats_the_elbo_on_digits(seed: int) -> None:
    """Trained on fifty particles the held-out log p is higher; the bounds are in order."""
    data, values = pv.data.digits(), []
    for objective in (Trace_ELBO(), IWAE(50)):
        torch.manual_seed(seed)
        decoder, encoder = pv.nets.MLPDecoder(8, 64, hidden=(64,)), pv.nets.MLPEncoder(64)
        model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=8)
        guide = pv.Guide(model, pv.Encoder(encoder))
        fit(model, guide, data.train, num_epochs=60, objective=objective, seed=seed)
        values.append(log_p(model, guide, data.test, 1000))
    difference = values[1] - values[0]
    assert difference.mean() > 3 * difference.std() / len(difference) ** 0.5
    bounds = [log_p(model, guide, data.test, particles).mean() for particles in (2, 5, 50)]
    bounds = [pv.elbo(model, guide, data.test, 50).mean.value, *bounds, values[1].mean()]
    assert bounds == sorted(bounds)
