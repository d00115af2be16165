"""Rate and distortion of a decoder that stays fixed, by annealing, one beta after the other."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import LinearGaussian

from .record import Claim, Finding, numbers, within

LATENTS = 8
CLAIM = Claim(
    title="Annealing gives rate and distortion of a fixed decoder at every beta",
    source=(
        "Huang, Makhzani, Cao & Grosse, 2020: Evaluating Lossy Compression Rates of Deep "
        "Generative Models"
    ),
    setting=(
        f"A linear decoder with {LATENTS} latents (pPCA of the grey digits), squared error, 50 "
        "digits; 200 temperatures, 16 chains from the prior; log Z at three neighbouring beta "
        "with draws of their own. The source has no closed form to check against; its networks "
        "are replaced by a decoder that has one."
    ),
    criterion="Rate and distortion within four errors of the closed form at every beta.",
)


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


def _log_z(
    loadings: Tensor, y: Tensor, beta: float, temperatures: int, seed: int
) -> tuple[float, float]:
    """Log of the normalizer, mean over data, by annealing from the prior."""
    model = tempered(loadings, beta)
    estimator = pv.AnnealedImportanceSampling(num_chains=16, num_temperatures=temperatures)
    return numbers(
        pv.log_marginal_likelihood(model, model, y, estimator, seed=seed, progress=False).mean
    )  # chains start at the prior: the guide is not used


def _point(loadings: Tensor, y: Tensor, beta: float, temperatures: int) -> Finding:
    """Rate and distortion at one beta: D is minus the slope of log Z in beta."""
    step = 0.1  # of log beta: the central difference is then right to 0.002 nats
    low, (middle, spread), high = (
        _log_z(loadings, y, beta * (1 + side * step), temperatures, side + 2) for side in (-1, 0, 1)
    )
    slope = (high[0] - low[0]) / (2 * step)  # beta times it
    slope_error = math.hypot(high[1], low[1]) / (2 * step)
    rate, error = slope - middle, math.hypot(spread, slope_error)
    distortion, distortion_error = -slope / beta, slope_error / beta
    true_rate, true_distortion = exact(loadings, beta, y)
    return Finding(
        f"beta = {beta:g}: rate, nats; distortion, squared error",
        f"{true_rate:.3f}; {true_distortion:.4f} (closed form)",
        f"{rate:.3f} ± {error:.3f}; {distortion:.4f} ± {distortion_error:.4f}",
        within(rate, error + 2e-3, true_rate)
        and within(distortion, distortion_error + 1e-4, true_distortion),
    )


def findings(*, smoke: bool = False) -> list[Finding]:
    """A linear decoder, whose curve is known; annealing is told nothing of that."""
    rows, temperatures = (5, 20) if smoke else (50, 200)
    digits = pv.data.digits(binarization=pv.data.Grey()).train.double()
    decoder = LinearGaussian(LATENTS, digits.shape[1]).double()
    decoder.fit_closed_form(digits)
    loadings, y = decoder.loadings.detach(), (digits - decoder.mean.detach())[:rows]
    return [_point(loadings, y, beta, temperatures) for beta in (0.5, 2.0, 8.0, 32.0)]
