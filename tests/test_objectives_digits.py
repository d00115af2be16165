"""What is gained on real data by training on a tighter bound, and the order of the bounds."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import stats
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import AnnealedImportanceSampling, Linear, StartFromGuide
from pyro_vae.evidence.weights import conditioned
from pyro_vae.objectives import IWAE
from pyro_vae.stats import log_mean_exp, population_mean
from tests.helpers.statistics import FALSE_ALARM
from tests.helpers.training import fit

Trained = tuple[pv.models.VAE, pv.Guide]


def trained(objective: Any, num_epochs: int, seed: int) -> Trained:
    """A small autoencoder of digits."""
    torch.manual_seed(seed)
    decoder, encoder = pv.nets.MLPDecoder(8, 64, hidden=(64,)), pv.nets.MLPEncoder(64)
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=8)
    guide = pv.Guide(model, pv.Encoder(encoder))
    train = pv.data.digits().train
    fit(model, guide, train, num_epochs=num_epochs, objective=objective, seed=seed)
    return model, guide


def log_p(model: Any, guide: pv.Guide, y: Tensor, particles: int) -> Tensor:
    """The importance-weighted bound of every datum, `(batch,)`."""
    return log_mean_exp(pv.log_weights(model, guide, y, num_samples=particles))


def bound(model: Any, guide: pv.Guide, y: Tensor, particles: int) -> Tensor:
    """The mean of forty such bounds; those of other sizes come from other draws."""
    log_w = pv.log_weights(model, guide, y, num_samples=40 * particles, seed=particles)
    return log_mean_exp(log_w.view(particles, 40, -1)).mean(dim=0)


def z_of(difference: Tensor) -> float:
    """The mean of paired differences over its standard error, data being independent."""
    mean, error = population_mean(difference)
    return float(mean / error)


@pytest.mark.slow
@pytest.mark.parametrize("other", [0, 1, 2])
def test_iwae_beats_the_elbo_on_digits(other: int, seed: int) -> None:
    """Trained on fifty particles the held-out log p is higher, beyond its error, on each seed."""
    y, values = pv.data.digits().test, []
    for objective in (Trace_ELBO(), IWAE(50)):
        values.append(log_p(*trained(objective, 60, 3 * seed + other), y, 1000))
    z = z_of(values[1] - values[0])
    print(f"gain {float((values[1] - values[0]).mean()):.3f} nats per digit, z = {z:.1f}")
    assert z > 3


@pytest.mark.slow
def test_bounds_are_in_order_on_digits(seed: int) -> None:
    """L_1 <= L_5 <= L_50 <= annealing, of one model trained a little; never the other way."""
    model, guide = trained(Trace_ELBO(), 20, seed)
    y = pv.data.digits().test[:100]
    method = AnnealedImportanceSampling(
        8, num_temperatures=100, schedule=Linear(), start=StartFromGuide()
    )
    bounds = {f"L_{size}": bound(model, guide, y, size) for size in (1, 5, 50)}
    with conditioned(model, guide, y, seed) as inference:
        bounds["annealing"] = method(inference, seed=seed).value
    print({name: round(float(value.mean()), 3) for name, value in bounds.items()})
    limit = stats.norm.isf(FALSE_ALARM)
    for low, high in pairwise(bounds):
        z = z_of(bounds[high] - bounds[low])
        assert z > -limit, f"{low} above {high}: z = {z:.1f}"
    # The bounds from few draws are far enough apart to be seen, so that the order is no accident.
    assert z_of(bounds["L_5"] - bounds["L_1"]) > limit
    assert z_of(bounds["L_50"] - bounds["L_5"]) > 3
