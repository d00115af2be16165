"""Rate and distortion of a decoder that stays fixed, by annealing, one beta after the other."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

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
    title="Annealing gives rate and distortion of a fixed decoder at every beta",
    source=(
        "Huang, Makhzani, Cao & Grosse, 2020: Evaluating Lossy Compression Rates of Deep "
        "Generative Models"
    ),
    figures="None is compared: the source has no closed form, and other decoders and data.",
    setting=(
        f"A linear decoder with {LATENTS} latents (pPCA of the grey digits), squared error, 50 "
        "digits; 200 temperatures, 16 chains from the prior; log Z at three neighbouring beta "
        "with draws of their own. The source has no closed form to check against; its networks "
        f"are replaced by a decoder that has one. Then a network of {LATENTS}-64-64 units, "
        "trained on the same digits: log Z from both sides, by 500 temperatures, for 50 data "
        "that it makes itself at this beta, as in the source; and its curve for the 50 digits, "
        "below which its own encoder cannot be."
    ),
    criterion=(
        "Linear: rate and distortion within four errors of the closed form at every beta. "
        "Network: the two sides are less than 1 nat apart on average at every beta, rate rises "
        "and distortion falls with beta, and rate + beta distortion of its own encoder's q is "
        "above the curve's at every beta (to four errors)."
    ),
    remark=(
        "The network was added, with its criterion, after the linear decoder had met its own and "
        "before the network's first run."
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


def _point(decode: Decode, y: Tensor, beta: float, temperatures: int) -> Point:
    """Rate and distortion at one beta: D is minus the slope of log Z in beta."""
    step = 0.1  # of log beta: the central difference is then right to 0.002 nats
    low, middle, high = (
        _log_z(decode, y, beta * (1 + side * step), temperatures, side + 2) for side in (-1, 0, 1)
    )
    slope = (high[0] - low[0]) / (2 * step)  # beta times it
    error = math.hypot(high[1], low[1]) / (2 * step)
    rate = (slope - middle[0], math.hypot(middle[1], error))
    return Point(rate, (-slope / beta, error / beta), middle)


def _linear(y: Tensor, loadings: Tensor, beta: float, temperatures: int) -> Finding:
    """Against the closed form, of which annealing is told nothing."""
    point = _point(lambda z: z @ loadings.mT, y, beta, temperatures)
    (rate, error), (distortion, distortion_error) = point.rate, point.distortion
    true_rate, true_distortion = exact(loadings, beta, y)
    return Finding(
        f"beta = {beta:g}: rate, nats; distortion, squared error",
        f"{true_rate:.3f}; {true_distortion:.4f} (closed form)",
        f"{rate:.3f} ± {error:.3f}; {distortion:.4f} ± {distortion_error:.4f}",
        within(rate, error + 2e-3, true_rate)
        and within(distortion, distortion_error + 1e-4, true_distortion),
    )


def _network(y: Tensor, epochs: int) -> tuple[pv.models.VAE, pv.Guide]:
    """A network trained at beta = 8, where the noise has the variance 1 / 16."""
    torch.manual_seed(0)
    likelihood = pv.likelihoods.Gaussian(pv.likelihoods.FixedSigma(0.25))
    decoder = pv.nets.MLPDecoder(LATENTS, y.shape[1], hidden=(64, 64))
    model = pv.models.VAE(decoder, likelihood, latent_dim=LATENTS)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(y.shape[1], hidden=(64, 64))))
    pv.fit(model, guide, y, num_epochs=epochs, batch_size=100, progress=False)
    return model.double(), guide.double()


def _of_network(grey: Tensor, *, smoke: bool) -> list[Finding]:
    """Both sides at every beta, the curve, and what the encoder's own q has above it."""
    epochs, rows, temperatures = (1, 4, 20) if smoke else (60, 50, 500)
    model, guide = _network(grey, epochs)
    y = grey[:rows].double()
    estimator = pv.AnnealedImportanceSampling(num_chains=16, num_temperatures=temperatures)
    found, points = [], []
    for beta in BETAS:
        program = channel(model.decode, beta)
        sides = pv.bidirectional(program, None, y, estimator, seed=4, progress=False).width
        point = _point(model.decode, y, beta, temperatures)
        points.append(point)
        found.append(
            Finding(
                f"network, beta = {beta:g}: the two sides of log Z, distance in nats",
                "below 1",
                f"{sides:.3f}",
                float(sides.value) < 1,
            )
        )
        own = numbers(pv.elbo(program, guide, y, 400, seed=5, progress=False).mean)
        own_z = own[0] + y.shape[1] * math.log(math.pi / beta) / 2
        above, error = point.log_z[0] - own_z, math.hypot(point.log_z[1], own[1])
        found.append(
            Finding(
                f"network, beta = {beta:g}: its encoder's q above the curve, nats",
                "above 0",
                f"{above:.2f} ± {error:.2f}",
                above > -4 * error,
            )
        )
    falls = all(
        one.rate[0] < two.rate[0] and one.distortion[0] > two.distortion[0]
        for one, two in pairwise(points)
    )
    shown = "; ".join(f"{each.rate[0]:.2f}, {each.distortion[0]:.3f}" for each in points)
    return [*found, Finding("network: rate, distortion along beta", "rises, falls", shown, falls)]


def findings(*, smoke: bool = False) -> list[Finding]:
    """A linear decoder, whose curve is known, and a network."""
    rows, temperatures = (5, 20) if smoke else (50, 200)
    grey = pv.data.digits(binarization=pv.data.Grey()).train
    digits = grey.double()
    decoder = LinearGaussian(LATENTS, digits.shape[1]).double()
    decoder.fit_closed_form(digits)
    loadings, y = decoder.loadings.detach(), (digits - decoder.mean.detach())[:rows]
    linear = [_linear(y, loadings, beta, temperatures) for beta in BETAS]
    return [*linear, *_of_network(grey, smoke=smoke)]
