"""Simultaneous bands for ranks: how often uniform ranks leave them, and wrong posteriors."""

import numpy as np
import torch
from scipy.stats import binom

from pyro_vae import stats

from .record import Claim, Finding, within

DATA, DRAWS, LEVEL = 250, 100, 0.05
CLAIM = Claim(
    title="Simultaneous bands for calibration ranks keep their level; pointwise intervals do not",
    source=(
        "Säilynoja, Bürkner & Vehtari, 2022: Graphical Test for Discrete Uniformity and its "
        "Applications in Goodness-of-Fit Evaluation and Multiple Sample Comparison"
    ),
    figures="No value is compared: the band has its level by construction.",
    setting=(
        f"A set has the ranks of {DATA} data among {DRAWS} draws. There are 4,000 sets of uniform "
        "ranks, and 4,000 sets of ranks from a normal posterior that is 0.8 times as wide as it "
        "should be. The bands of level 5% from `pv.stats.rank_band` are compared with pointwise "
        "binomial intervals of the same level."
    ),
    criterion=(
        "The share of the sets of uniform ranks that leave the band is between 4% and 5%, or "
        "within four binomial standard errors of 5%. (The level cannot be met exactly, because "
        "counts are whole numbers.) More than a third of these sets leave the pointwise "
        "intervals somewhere. Of the sets from the narrow posterior, more than half leave the "
        "band."
    ),
)


def _counts(width: float, sets: int) -> torch.Tensor:
    """In each set, how many ranks are at most 0, at most 1, and so on: `(sets, DRAWS)`."""
    draw = torch.Generator().manual_seed(0)
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)
    # Given the place of the truth, a rank counts the draws below it: it is binomial.
    truth = torch.randn(sets, DATA, generator=draw, dtype=torch.float64)
    share = normal.cdf(truth / width)
    below = np.random.default_rng(0).binomial(DRAWS, share.numpy())
    ranks = torch.as_tensor(below)
    return torch.stack([(ranks <= rank).sum(dim=1) for rank in range(DRAWS)], dim=1)


def _outside(counts: torch.Tensor, lower: np.ndarray, upper: np.ndarray) -> tuple[float, float]:
    """Share of sets that leave a band anywhere, and its binomial error."""
    out = ((counts < torch.as_tensor(lower)) | (counts > torch.as_tensor(upper))).any(dim=1)
    share = float(out.double().mean())
    return share, (share * (1 - share) / len(counts)) ** 0.5


def findings(*, smoke: bool = False) -> list[Finding]:
    """Levels of both kinds of band, and the power of the simultaneous one."""
    sets = 100 if smoke else 4_000
    uniform, narrow = _counts(1.0, sets), _counts(0.8, sets)
    band = stats.rank_band(DATA, DRAWS, LEVEL)
    shares = np.arange(1, DRAWS + 1) / (DRAWS + 1)
    pointwise = binom.interval(1 - LEVEL, DATA, shares)
    level, alone, power = (
        _outside(uniform, *band),
        _outside(uniform, *pointwise),
        _outside(narrow, *band),
    )
    met = within(*level, LEVEL) or 0.04 <= level[0] <= LEVEL
    return [
        Finding(
            "sets of uniform ranks that leave the band",
            "5%",
            f"{level[0]:.1%} ± {level[1]:.1%}",
            met,
        ),
        Finding(
            "sets of uniform ranks that leave the pointwise intervals",
            "far more than 5%",
            f"{alone[0]:.1%} ± {alone[1]:.1%}",
            alone[0] > 1 / 3,
        ),
        Finding(
            "sets from the narrow posterior that leave the band",
            "detected",
            f"{power[0]:.1%} ± {power[1]:.1%}",
            power[0] > 0.5,
        ),
    ]
