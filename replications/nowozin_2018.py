"""The bias of importance-weighted bounds, where it is known in closed form."""

import torch

from pyro_vae import stats

from .record import Finding, Replication, within


def replicate(*, smoke: bool = False) -> Replication:
    """Weights that are exponential, so that their mean of K is a gamma variable."""
    repeats = 2_000 if smoke else 400_000
    generator = torch.Generator().manual_seed(0)
    findings = []
    for particles in (1, 2, 5, 10, 50):
        weights = torch.rand(particles, repeats, dtype=torch.float64, generator=generator)
        bounds = stats.log_mean_exp((-weights.log()).log())
        mean, error = float(bounds.mean()), float(bounds.std()) / repeats**0.5
        exact = float(torch.digamma(torch.tensor(float(particles), dtype=torch.float64)))
        exact -= float(torch.tensor(float(particles)).double().log())
        findings.append(
            Finding(
                f"E L_{particles} - log p, nats",
                f"{exact:.5f}",
                f"{mean:.5f} ± {error:.5f}",
                within(mean, error, exact),
            )
        )
    return Replication(
        title="Importance-weighted bounds are low by digamma(K) - log K for exponential weights",
        source=(
            "Nowozin, 2018: Debiasing Evidence Approximations: On Importance-Weighted Autoencoders "
            "and Jackknife Variational Inference; Burda, Grosse & Salakhutdinov, 2016: Importance "
            "Weighted Autoencoders. The mean of K weights of rate 1 is Gamma(K, K)."
        ),
        setting=f"{repeats:,} bounds from weights of rate 1, by `pv.stats.log_mean_exp`.",
        criterion="Each mean within four standard errors of the closed form.",
        findings=tuple(findings),
    )
