"""Pareto k of mean-field inference for eight schools, centred and not, and long-run means."""

import math
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv

from .record import Claim, Finding, within

EFFECTS = torch.tensor([[28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]], dtype=torch.float64)
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)

CLAIM = Claim(
    title="Mean-field inference fails on eight schools, and fails less in the non-centred form",
    source=(
        "Yao, Vehtari, Simpson & Gelman, 2018: Yes, but Did It Work? Evaluating Variational "
        "Inference (section 4.2); long-run means of eight schools from the package inference_gym"
    ),
    figures=(
        "k is quoted. The means and their errors were read in the package inference_gym, which "
        "computed them by long runs."
    ),
    setting=(
        "The eight schools are one datum with ten unconstrained latents. The guide is a "
        "mean-field Gaussian with free parameters. Pareto k comes from ten runs with 10,000 "
        "draws each. The posterior means come from 20,000 draws of `pv.posterior_draws`, under "
        "the priors of inference_gym."
    ),
    criterion=(
        "k is between 0.7 and 1.3 in the centred form, and below 0.7 in the non-centred form. "
        "The posterior means are within four joint standard errors of the long-run values, and "
        "are called reliable."
    ),
)


def centred(y: Tensor) -> None:
    """The one data set of eight schools is one datum: mean effect, log tau, effects."""
    with pyro.plate("data", len(y)):
        zero = y.new_zeros(len(y))
        mean = pyro.sample("mean", dist.Normal(zero, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(zero + 5.0))
        effect = pyro.sample(
            "effect", dist.Normal(mean.unsqueeze(-1).expand(-1, 8), tau.unsqueeze(-1)).to_event(1)
        )
        pyro.sample("y", dist.Normal(effect, ERRORS).to_event(1), obs=y)


def not_centred(y: Tensor) -> None:
    """The same with standardized effects."""
    with pyro.plate("data", len(y)):
        zero = y.new_zeros(len(y))
        mean = pyro.sample("mean", dist.Normal(zero, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(zero + 5.0))
        standard = pyro.sample("standard", dist.Normal(y.new_zeros(len(y), 8), 1.0).to_event(1))
        effect = mean.unsqueeze(-1) + tau.unsqueeze(-1) * standard
        pyro.sample("y", dist.Normal(effect, ERRORS).to_event(1), obs=y)


def inference_gym(y: Tensor) -> None:
    """The form whose long-run values inference-gym ships: log tau ~ N(5, 1), mean ~ N(0, 10)."""
    with pyro.plate("data", len(y)):
        zero = y.new_zeros(len(y))
        mean = pyro.sample("mean", dist.Normal(zero, 10.0))
        log_tau = pyro.sample("log_tau", dist.Normal(zero + 5.0, 1.0))
        standard = pyro.sample("standard", dist.Normal(y.new_zeros(len(y), 8), 1.0).to_event(1))
        effect = mean.unsqueeze(-1) + log_tau.exp().unsqueeze(-1) * standard
        pyro.sample("y", dist.Normal(effect, ERRORS).to_event(1), obs=y)


LONG_RUN = {
    "the mean effect": (5.760, 0.018),
    "log tau": (2.453, 0.002),
}  # with their standard errors


def _fitted(
    model: Callable[[Tensor], None], draws: int, epochs: int
) -> tuple[pv.Guide, pv.Estimate]:
    """A mean-field Gaussian of unconstrained latents, and its Pareto k over ten runs."""
    guide = pv.Guide(model, pv.LocalParameters(1), example=EFFECTS)
    pv.fit(
        model,
        guide,
        EFFECTS,
        num_epochs=epochs,
        batch_size=1,
        train_model=False,
        optimizer=lambda tensors: torch.optim.Adam(tensors, lr=0.02),
        progress=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the weights cannot be trusted is the point
        runs = torch.stack(
            [
                pv.log_marginal_likelihood(
                    model, guide, EFFECTS, pv.ImportanceSampling(draws), seed=seed, progress=False
                ).pareto_k[0]
                for seed in range(10)
            ]
        )
    return guide, pv.Estimate(runs.mean(), runs.std() / len(runs) ** 0.5)


def _means(draws: int, epochs: int, kept: int) -> list[Finding]:
    """Posterior means beside the long-run values."""
    guide, _ = _fitted(inference_gym, draws, epochs)
    result = pv.posterior_draws(
        inference_gym, guide, EFFECTS, num_samples=kept, seed=1, progress=False
    )
    found = []
    for place, (name, (target, spread)) in enumerate(LONG_RUN.items()):
        value, error = (float(part[0, place]) for part in result.posterior_mean)
        met = within(value, math.hypot(error, spread), target) and bool(result.reliable[0])
        ours = f"{value:.3f} ± {error:.3f}"
        found.append(
            Finding(f"posterior mean of {name}", f"{target:.3f} ± {spread:.3f}", ours, met)
        )
    return found


def findings(*, smoke: bool = False) -> list[Finding]:
    """Both parametrizations, then the long-run means."""
    draws, epochs, kept = (200, 5, 50) if smoke else (10_000, 3_000, 20_000)
    _, hard = _fitted(centred, draws, epochs)
    _, easy = _fitted(not_centred, draws, epochs)
    return [
        Finding("Pareto k, centred form", "1.0", f"{hard:.2f}", 0.7 < float(hard.value) < 1.3),
        Finding("Pareto k, non-centred form", "0.64", f"{easy:.2f}", float(easy.value) < 0.7),
        *_means(draws, epochs, kept),
    ]
