"""Rate and distortion of a decoder that stays fixed, by annealing, one beta after the other."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import LinearGaussian

from .record import Claim, Finding, numbers, within

LATENTS, BETAS = 8, (0.5, 2.0, 8.0, 32.0)
Pair = tuple[float, float]  # a value and its error
CLAIM = Claim(
    title="Annealing gives the rate and distortion of a fixed decoder at every beta",
    source=(
        "Huang, Makhzani, Cao & Grosse, 2020: Evaluating Lossy Compression Rates of Deep "
        "Generative Models"
    ),
    figures="None is compared: the source has no closed form, and it uses other decoders and data.",
    setting=(
        f"A linear decoder with {LATENTS} latents (pPCA of the grey digits), squared error, 50 "
        "digits. Z is the mean of exp(-beta * distortion) under the prior. Log Z is estimated at "
        "three neighbouring values of beta, with separate draws, by 16 chains that start at the "
        "prior and pass through 200 temperatures. The source has no closed form to check "
        "against. Here its networks are replaced by a decoder that has one; the next replication "
        "uses a network."
    ),
    criterion=(
        "Rate and distortion are within four standard errors of the closed form at every beta."
    ),
)

Decode = Callable[[Tensor], Tensor]


def channel(decode: Decode, beta: float) -> Callable[[Tensor], None]:
    """Prior z ~ N(0, I) and y ~ N(f(z), 1 / (2 beta)): exp(-beta |y - f(z)|^2), normalized."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(len(y), LATENTS), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(decode(z), (2 * beta) ** -0.5).to_event(1), obs=y)

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


def _log_z(decode: Decode, y: Tensor, beta: float, temperatures: int, seed: int) -> Pair:
    """Log of E exp(-beta |y - f(z)|^2) under the prior, mean over data, by annealing from it."""
    model = channel(decode, beta)
    estimator = pv.AnnealedImportanceSampling(num_chains=16, num_temperatures=temperatures)
    log_p, error = numbers(
        pv.log_marginal_likelihood(model, model, y, estimator, seed=seed, progress=False).mean
    )  # chains start at the prior: the guide is not used
    return log_p + y.shape[1] * math.log(math.pi / beta) / 2, error


@dataclass(frozen=True)
class Point:
    """Rate in nats and distortion in squared error at one beta, and log Z: value and error."""

    rate: Pair
    distortion: Pair
    log_z: Pair


def point(decode: Decode, y: Tensor, beta: float, temperatures: int) -> Point:
    """Rate and distortion at one beta: D is minus the slope of log Z in beta."""
    step = 0.1  # of log beta: the central difference is then right to 0.002 nats
    low, middle, high = (
        _log_z(decode, y, beta * (1 + side * step), temperatures, side + 2) for side in (-1, 0, 1)
    )
    slope = (high[0] - low[0]) / (
        2 * step
    )  # d log Z / d log(beta), which is beta times d log Z / d beta
    error = math.hypot(high[1], low[1]) / (2 * step)
    rate = (slope - middle[0], math.hypot(middle[1], error))
    return Point(rate, (-slope / beta, error / beta), middle)


def _linear(y: Tensor, loadings: Tensor, beta: float, temperatures: int) -> Finding:
    """Compares annealing with the closed form, which annealing does not use."""
    found = point(lambda z: z @ loadings.mT, y, beta, temperatures)
    (rate, error), (distortion, distortion_error) = found.rate, found.distortion
    true_rate, true_distortion = exact(loadings, beta, y)
    return Finding(
        f"beta = {beta:g}: rate, nats; distortion, squared error",
        f"{true_rate:.3f}; {true_distortion:.4f} (closed form)",
        f"{rate:.3f} ± {error:.3f}; {distortion:.4f} ± {distortion_error:.4f}",
        within(rate, error + 2e-3, true_rate)
        and within(distortion, distortion_error + 1e-4, true_distortion),
    )


def findings(*, smoke: bool = False) -> list[Finding]:
    """A linear decoder, whose curve is known in closed form, at every beta."""
    rows, temperatures = (5, 20) if smoke else (50, 200)
    digits = pv.data.digits(binarization=pv.data.Grey()).train.double()
    decoder = LinearGaussian(LATENTS, digits.shape[1]).double()
    decoder.fit_closed_form(digits)
    loadings, y = decoder.loadings.detach(), (digits - decoder.mean.detach())[:rows]
    return [_linear(y, loadings, beta, temperatures) for beta in BETAS]
