"""The bias of importance-weighted bounds, where it is known in closed form."""

import math

import torch

from pyro_vae import stats

from .record import Claim, Finding, within

CLAIM = Claim(
    title="With exponential weights, importance-weighted bounds have the bias digamma(K) - log K",
    source=(
        "Nowozin, 2018: Debiasing Evidence Approximations: On Importance-Weighted Autoencoders "
        "and Jackknife Variational Inference; Burda, Grosse & Salakhutdinov, 2016: Importance "
        "Weighted Autoencoders. The mean of K exponential weights of rate 1 has the distribution "
        "Gamma(K, K)."
    ),
    figures="The values are those of the closed form.",
    setting=(
        "400,000 bounds for each K, from exponential weights of rate 1, by `pv.stats.log_mean_exp`."
    ),
    criterion="Each mean is within four standard errors of the closed form.",
)


def findings(*, smoke: bool = False) -> list[Finding]:
    """Weights that are exponential, so that their mean of K is a gamma variable."""
    return [_bias(particles, 2_000 if smoke else 400_000) for particles in (1, 2, 5, 10, 50)]


def _bias(particles: int, repeats: int) -> Finding:
    draw = torch.Generator().manual_seed(particles)
    weights = torch.rand(particles, repeats, dtype=torch.float64, generator=draw)
    bounds = stats.log_mean_exp((-weights.log()).log())
    mean, error = float(bounds.mean()), float(bounds.std()) / repeats**0.5
    exact = float(torch.digamma(torch.tensor(float(particles)).double())) - math.log(particles)
    return Finding(
        f"K = {particles}: mean of the bound minus log p, nats",
        f"{exact:.5f}",
        f"{mean:.5f} ± {error:.5f}",
        within(mean, error, exact),
    )
