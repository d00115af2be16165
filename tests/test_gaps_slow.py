"""The inference gap at its default budget, on digits, and in the directions that are published."""

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import pyro_vae as pv
from pyro_vae import stats
from pyro_vae._types import Estimate
from pyro_vae.diagnostics import collapse, mutual_information
from pyro_vae.gaps import InferenceGap, generalization
from tests.helpers.factor_analysis import model_of
from tests.helpers.gaps import FAMILIES, GUIDES, assert_within, closed_gaps, covered, off_guide
from tests.helpers.statistics import FACTS, FALSE_ALARM, assert_coverage
from tests.helpers.training import fit

pytestmark = pytest.mark.slow

LIMIT = float(norm.isf(FALSE_ALARM))
LATENTS = 8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("guide_name", GUIDES)
def test_default_budget(guide_name: str, name: str, seed: int) -> None:
    """On factor analysis: every part within errors by datum, and within 0.005 nats on the mean."""
    y = FACTS.sample(100)
    guide = GUIDES[guide_name](name, y)
    gap = pv.inference_gap(model_of(FACTS), guide, y, seed=seed)
    for part, value in closed_gaps(name, FACTS, y, guide).items():
        assert_within(getattr(gap.parts, part), value)
        mean: Estimate = getattr(gap.mean, part)
        assert_within(mean, value.mean())
        # One q for all data is nats away from each: its own ELBO has the larger error.
        whole = part in ("elbo", "inference", "amortization") and guide_name == "global"
        assert abs(float(mean.value - value.mean())) < (0.03 if whole else 0.005), part


@pytest.mark.usefixtures("float64")
def test_errors_of_means_cover(seed: int) -> None:
    """Over 100 repeats on the same data, where the error of a mean is what other draws change."""
    y, guide = FACTS.sample(5), off_guide("diagonal", FACTS)
    exact = closed_gaps("diagonal", FACTS, y, guide)
    gaps = [
        pv.inference_gap(model_of(FACTS), guide, y, num_samples=150, seed=1000 * seed + repeat)
        for repeat in range(100)
    ]
    for part in ("elbo", "best_elbo", "inference", "approximation", "amortization"):
        means = [getattr(gap.mean, part) for gap in gaps]
        joined = Estimate(*(torch.stack(list(numbers)) for numbers in zip(*means, strict=True)))
        assert_coverage(covered(joined, exact[part].mean()), 0.8)


def vae(width: int, map: pv.InferenceMap | None = None) -> tuple[pv.models.VAE, pv.Guide]:
    """A model that is always the same at the start, and an encoder so wide."""
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(LATENTS, 64, hidden=(64, 64))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=LATENTS)
    net = pv.nets.MLPEncoder(64, hidden=(width, width))
    return model, pv.Guide(model, pv.Encoder(net) if map is None else map)


def gap_of(model: pv.models.VAE, guide: pv.Guide, y: Tensor, seed: int) -> InferenceGap:
    """With a few draws: errors of a mean are a thousandth of a nat."""
    return pv.inference_gap(
        model, guide, y, num_samples=500, seed=seed, families={"full-rank": pv.FullRankNormal()}
    )


def assert_above(high: Estimate, low: Estimate) -> None:
    """That one estimate is above another, beyond chance."""
    z = (high.value - low.value) / (high.error.square() + low.error.square()).sqrt()
    assert float(z) > LIMIT, f"{float(high.value):.4f} is not above {float(low.value):.4f}"


def test_digits(seed: int) -> None:
    """Parts add up, families are in order, and what is published of their sizes replicates."""
    digits = pv.data.digits()
    y_train, y = digits.train, digits.test[:150]
    model, guide = vae(64)
    fit(model, guide, y_train, num_epochs=30)
    train, test = (gap_of(model, guide, part, seed) for part in (y_train[:150], y))
    for gap in (train, test):
        parts = gap.parts
        assert torch.equal(
            parts.inference.value, parts.approximation.value + parts.amortization.value
        )
        full = gap.families["full-rank"]
        mean, gain = gap.mean, stats.mean_over_data(full.gain)
        zero = Estimate(torch.zeros(()), torch.zeros(()))
        assert_above(mean.best_elbo, mean.elbo)
        assert_above(gain, zero)  # mean-field q* <= full-rank q* <= log p
        assert_above(stats.mean_over_data(full.approximation), zero)
        # A decoder that was trained with a mean-field q leaves full rank little to win.
        assert float(gain.value) < 0.5
        assert float(gap.converged.float().mean()) > 0.95
        assert float(gap.reliable.float().mean()) > 0.95
        negative = gap.amortization.value + LIMIT * gap.amortization.error < -0.01
        assert not bool((negative & gap.converged).any())
    apart = generalization(train, test)
    held_out = test.mean.inference.value - train.mean.inference.value
    torch.testing.assert_close(apart.inference.value, held_out)
    assert 0 < float(apart.amortization.error) < float(apart.log_marginal.error)


def test_a_wider_encoder_amortizes_better(seed: int) -> None:
    """On the data that it was trained on, with the model fixed; four units are a bottleneck."""
    y = pv.data.digits().train
    model, guide = vae(64)
    fit(model, guide, y, num_epochs=20)
    means = []
    for width in (4, 128):
        torch.manual_seed(1)
        net = pv.nets.MLPEncoder(64, hidden=(width, width))
        other = pv.Guide(model, pv.Encoder(net))
        fit(model, other, y, num_epochs=30, train_model=False)
        means.append(gap_of(model, other, y[:100], seed).mean)
    narrow, wide = means
    assert_above(narrow.amortization, wide.amortization)
    # What the family cannot do is the same, whoever asks.
    off = narrow.approximation.value - wide.approximation.value
    error = (narrow.approximation.error.square() + wide.approximation.error.square()).sqrt()
    assert float(off.abs()) < LIMIT * float(error) + 0.01


def test_the_global_guide_has_no_gap_and_is_exposed(seed: int) -> None:
    """Trained together with the model: a tight bound of a model that has learnt to ignore z."""
    digits = pv.data.digits()
    y_train, y = digits.train, digits.test[:100]
    amortized, surrogate = vae(64), vae(64, pv.GlobalParameters())
    for model, guide in (amortized, surrogate):
        fit(model, guide, y_train, num_epochs=30)
    gaps = [gap_of(model, guide, y, seed) for model, guide in (amortized, surrogate)]
    assert abs(float(gaps[1].mean.inference.value)) < 0.02
    assert float(gaps[0].mean.inference.value) > 0.1  # by its gap alone the better one is worse
    assert_above(gaps[0].mean.log_marginal, gaps[1].mean.log_marginal)
    difference = float(gaps[0].mean.log_marginal.value - gaps[1].mean.log_marginal.value)
    assert difference > 1.5  # nats per digit
    information = mutual_information(*surrogate, y, seed=seed).estimate
    assert float(information.value.abs()) <= LIMIT * float(information.error) + 1e-4
    # 1.8 to 2.2 nats under three seeds of training; the surrogate has none.
    assert float(mutual_information(*amortized, y, seed=seed).estimate.value) > 1
    assert collapse(*surrogate, y, seed=seed).active == 0
    assert collapse(*amortized, y, seed=seed).active > 2
