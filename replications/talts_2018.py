"""Simulation-based calibration shows what is wrong with a posterior that is known to be wrong."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.diagnostics import simulation_based_calibration

from .record import Claim, Finding

DRAWS = 99
CLAIM = Claim(
    title=(
        "Calibration ranks form a cup if a posterior is too narrow, a dome if too wide, a slope "
        "if shifted"
    ),
    source=(
        "Talts, Betancourt, Simpson, Vehtari & Gelman, 2018: Validating Bayesian Inference "
        "Algorithms with Simulation-Based Calibration (section 4.2)"
    ),
    figures="The shapes are quoted. The probabilities of the bins are exact.",
    setting=(
        "z ~ N(0, 1), y ~ N(z, 1), and 10,000 simulated data. `simulation_based_calibration` "
        f"ranks z among {DRAWS} draws from guides whose error is known. The histograms have 20 "
        "bins."
    ),
    criterion=(
        "Each histogram has the published shape. Every bin is within 4.5 binomial standard "
        "errors of its exact probability under a normal posterior with the guide's error."
    ),
)


def model(y: Tensor) -> None:
    """Prior z ~ N(0, 1), y ~ N(z, 1): the posterior is N(y / 2, 1 / 2)."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(len(y)), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


class Wrong:
    """A guide with the posterior's scale times `width` and its mean plus `shift` of its sds."""

    def __init__(self, width: float = 1.0, shift: float = 0.0) -> None:
        self.scale, self.shift = width * math.sqrt(0.5), shift * math.sqrt(0.5)

    def __call__(self, y: Tensor) -> None:
        """The program."""
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2 + self.shift, self.scale))


def expected_shares(width: float, shift: float, bins: int = 20) -> Tensor:
    """Probability of each bin of ranks under a wrong normal posterior, for many draws."""
    normal = torch.distributions.Normal(0.0, 1.0)
    edges = normal.icdf(torch.linspace(0, 1, bins + 1, dtype=torch.float64))
    return normal.cdf(width * edges + shift).diff()


def _shape(low: float, middle: float, high: float) -> str:
    """Shape of a histogram of ranks, from its ends and its middle, which are 1 if it is flat."""
    if max(abs(part - 1) for part in (low, middle, high)) < 0.15:
        return "flat"
    if min(low, high) > middle:
        return "cup"
    return "dome" if max(low, high) < middle else "slope"


def _finding(name: str, width: float, shift: float, shape: str, count: int) -> Finding:
    """The ranks of one guide."""
    result = simulation_based_calibration(
        model, Wrong(width, shift), torch.zeros(8), count, DRAWS, progress=False
    )
    ranks = result.ranks[..., 0].flatten()
    shares = torch.histc(ranks.double(), 20, 0, DRAWS + 1) / len(ranks)
    exact = expected_shares(width, shift)
    # Of 20 bins the largest distance is beyond four binomial errors once in 800 runs.
    distance = float(((shares - exact) / (exact * (1 - exact) / count).sqrt()).abs().max())
    parts = (slice(0, 2), slice(9, 11), slice(18, 20))
    low, middle, high = (float(shares[part].mean() * 20) for part in parts)
    seen = _shape(low, middle, high)
    return Finding(
        f"{name}: shape (left end, middle, right end; a flat histogram is 1 everywhere)",
        shape,
        f"{seen} ({low:.2f}, {middle:.2f}, {high:.2f}); "
        f"worst bin off by {distance:.1f} standard errors",
        seen == shape and distance < 4.5,
    )


def findings(*, smoke: bool = False) -> list[Finding]:
    """The right guide, one too narrow, one too wide and one shifted."""
    cases = [
        ("right guide", 1.0, 0.0, "flat"),
        ("guide 0.7 times as wide", 0.7, 0.0, "cup"),
        ("guide 1.4 times as wide", 1.4, 0.0, "dome"),
        ("guide shifted by half an sd", 1.0, 0.5, "slope"),
    ]
    return [_finding(*case, count=200 if smoke else 10_000) for case in cases]
