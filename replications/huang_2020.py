"""Rate and distortion of a decoder that stays fixed, by annealing, one beta after the other."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import LinearGaussian

from .record import Finding, Replication, within

LATENTS = 8


def tempered(loadings: Tensor, beta: float) -> Callable[[Tensor], None]:
    """Prior z ~ N(0, I) with the weight exp(-beta |y - W z|^2): its normalizer gives the curve."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(len(y), LATENTS), 1.0).to_event(1))
            # A normal density of precision 2 beta, less its own normalizer.
            precision = torch.tensor(2 * beta, dtype=y.dtype)
            pyro.sample("y", dist.Normal(z @ loadings.mT, precision.rsqrt()).to_event(1), obs=y)
            constant = y.shape[1] * (2 * torch.pi / precision).log() / 2
            pyro.factor("no normalizer", constant.expand(len(y)))

    return model


def exact(loadings: Tensor, beta: float, y: Tensor) -> tuple[float, float]:
    """Mean rate and distortion of the best channel for this weight, in closed form."""
    precision = torch.eye(LATENTS, dtype=y.dtype) + 2 * beta * loadings.mT @ loadings
    covariance = torch.linalg.inv(precision)
    mean = 2 * beta * y @ loadings @ covariance
    spread = (loadings @ covariance @ loadings.mT).trace()
    distortion = (y - mean @ loadings.mT).square().sum(-1) + spread
    trace = covariance.trace() + mean.square().sum(-1) - LATENTS
    rate = (trace - torch.logdet(covariance)) / 2
    return float(rate.mean()), float(distortion.mean())


def replicate(*, smoke: bool = False) -> Replication:
    """A linear decoder, whose curve is known; annealing is told nothing of that."""
    rows, temperatures = (5, 20) if smoke else (100, 300)
    digits = pv.data.digits(binarization=pv.data.Grey()).train.double()
    decoder = LinearGaussian(LATENTS, digits.shape[1]).double()
    decoder.fit_closed_form(digits)
    loadings, y = decoder.loadings.detach(), (digits - decoder.mean.detach())[:rows]
    estimator = pv.AnnealedImportanceSampling(num_chains=16, num_temperatures=temperatures)
    findings, step = [], 0.1  # the difference is then right to 0.002 nats
    for beta in (0.5, 2.0, 8.0, 32.0):
        # D is minus the slope of log Z in beta: a central difference in log beta.
        values = {}
        for side in (-1, 0, 1):
            model = tempered(loadings, beta * (1 + side * step))
            values[side] = pv.log_marginal_likelihood(
                model, model, y, estimator, seed=side + 2, progress=False
            ).mean  # chains start at the prior: the guide is not asked
        slope = float(values[1].value - values[-1].value) / (2 * step)  # beta times it
        spread = float(values[1].error.hypot(values[-1].error)) / (2 * step)
        rate = -float(values[0].value) + slope
        error = (float(values[0].error) ** 2 + spread**2) ** 0.5
        true_rate, true_distortion = exact(loadings, beta, y)
        findings.append(
            Finding(
                f"beta = {beta:g}: rate, nats; distortion, squared error",
                f"{true_rate:.3f}; {true_distortion:.4f} (closed form)",
                f"{rate:.3f} ± {error:.3f}; {-slope / beta:.4f} ± {spread / beta:.4f}",
                within(rate, error + 2e-3, true_rate)
                and within(-slope / beta, spread / beta + 1e-4, true_distortion),
            )
        )
    return Replication(
        title="Annealing gives rate and distortion of a fixed decoder at every beta",
        source=(
            "Huang, Makhzani, Cao & Grosse, 2020: Evaluating Lossy Compression Rates of Deep "
            "Generative Models"
        ),
        setting=(
            f"A linear decoder with {LATENTS} latents (pPCA of the grey digits), squared error, "
            f"{rows} digits; {temperatures} temperatures, 16 chains from the prior; log Z at "
            "three neighbouring beta with draws of their own. The source has no closed form to "
            "check against; its networks are replaced by a decoder that has one."
        ),
        criterion="Rate and distortion within four errors of the closed form at every beta.",
        findings=tuple(findings),
    )
