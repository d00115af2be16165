"""With the model fixed, better inference never has a lower bound: on digits, guide by guide."""

from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor

import pyro_vae as pv
from tests.helpers.statistics import FALSE_ALARM
from tests.helpers.training import fit

DRAWS = 300


def elbo(model: pv.models.VAE, guide: pv.Guide, y: Tensor) -> tuple[float, float]:
    """Mean ELBO and its Monte Carlo error, nats per digit."""
    mean = pv.elbo(model, guide, y, DRAWS).mean
    return float(mean.value), float(mean.error)


def ordered(values: dict[str, tuple[float, float]]) -> list[str]:
    """Neighbours that stand the wrong way round by more than their errors allow."""
    limit = stats.norm.isf(FALSE_ALARM)
    return [
        f"{low}: {values[low]} > {high}: {values[high]}"
        for low, high in pairwise(values)
        if values[low][0] - values[high][0]
        > limit * (values[low][1] ** 2 + values[high][1] ** 2) ** 0.5
    ]


@pytest.mark.slow
def test_the_order_of_guides_on_digits() -> None:
    """Global <= amortized <= semi-amortized <= per-datum <= full-rank per-datum <= log p."""
    digits = pv.data.digits()
    y_train, y = digits.train[:600], digits.test[:150]
    decoder = pv.nets.MLPDecoder(2, 64, hidden=(64,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(64, hidden=(64,))))
    fit(model, guide, y_train, num_epochs=100)
    surrogate = pv.Guide(model, pv.GlobalParameters())
    fit(model, surrogate, y, num_epochs=150, train_model=False)
    full_rank = pv.Guide(model, pv.GlobalParameters(), pv.FullRankNormal()).fit_rows(y)
    lml = pv.evaluate(model, full_rank, y, pv.ImportanceSampling(20 * DRAWS)).log_marginal.mean
    values = {
        "global": elbo(model, surrogate, y),
        "amortized": elbo(model, guide, y),
        "one step": elbo(model, guide.refined(1), y),
        "per-datum": elbo(model, guide.fit_rows(y), y),
        "per-datum, full-rank": elbo(model, full_rank, y),
        "log p": (float(lml.value), float(lml.error)),
    }
    assert not ordered(values)
    # Each step is large enough here to be seen, so that the order is no accident of the errors.
    assert ordered(dict(reversed(values.items()))), values
    gaps = [high[0] - low[0] for low, high in pairwise(values.values())]
    assert min(gaps[0], gaps[1]) > 0.02, values
    assert torch.isfinite(torch.tensor(gaps)).all()
