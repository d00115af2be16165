"""The bound that pyPLNmodels reports for its oaks: too high, by Stirling's formula."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv

from ..peers import TORCH, Stored, written_by
from ..record import Claim, Finding, numbers, within

CLAIM = Claim(
    title="pyPLNmodels reports a bound that lies above log p, by Stirling's formula for log y!",
    source="pyPLNmodels 1.0.10: `PlnPCA(rank=5).fit()`, `compute_elbo()`, `elbo`, on its oaks",
    setting=(
        "Oaks: 116 leaves, 114 counts each, offsets and an intercept. The program is z ~ N(0, I) "
        "with five latents and y ~ Poisson(exp(offset + intercept + C z)), at its components; the "
        "guide is its own mean and scale of every leaf. log p by `pv.Tightest()`; the best "
        "mean-field q by `pv.inference_gap`."
    ),
    criterion=(
        "Its bound is within 0.5 nats (its own float32 sum) and four errors of the ELBO of its "
        "own q, and does not exceed log p by more than four errors."
    ),
    remark=(
        "The package adds up log y! by Stirling's formula, which is exact in the limit of large "
        "counts and low by 0.081 for y = 1; oaks has thousands of small counts. The constant "
        "does not depend on parameters, so the fit and the ranking of models on the same data "
        "are unaffected; a comparison with another package, or a likelihood ratio against "
        "another family, is. Parameters and q are good: with log y! in place, what q loses is "
        "the last but one row. Its attribute `elbo` is the value before the last step of the fit, "
        "and so another 6 nats from the bound at the parameters that it returns."
    ),
)


REQUIREMENTS = (TORCH, "setuptools==80.9.0", "pyPLNmodels==1.0.10")


def program(components: Tensor) -> Callable[..., None]:
    """The model at its components; a leaf is its counts, its log rate at z = 0, and its q."""

    def model(counts: Tensor, log_rate: Tensor, q: Tensor) -> None:
        with pyro.plate("leaves", len(counts)):
            zero = counts.new_zeros(len(counts), components.shape[1])
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            rate = (log_rate + z @ components.mT).exp()
            pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=counts)

    return model


def stirling(y: Tensor) -> Tensor:
    """The package's formula for log y!: 0! is right, 1! is 0.081 low."""
    y = y.clamp(min=1)
    return (2 * math.pi * y).log() / 2 + y * (y.log() - 1)


def findings(*, smoke: bool = False) -> list[Finding]:
    """Its bound, the ELBO of its q, the best one and log p."""
    peer = written_by("pln_oaks", *REQUIREMENTS)
    rows = slice(4 if smoke else None)
    log_rate = (peer["offsets"] + peer["marginal_mean"])[rows]
    q = torch.cat([peer["mean"], peer["scale"].log()], dim=-1)[rows]
    counts = peer["counts"][rows]
    data = (counts, log_rate, q)
    model = program(peer["components"])
    guide = pv.Guide(model, Stored(), example=data)
    gap = pv.inference_gap(model, guide, data, num_samples=100 if smoke else 2_000, progress=False)
    elbo, log_p = (numbers(pv.stats.total(part)) for part in (gap.elbo, gap.log_marginal.estimate))
    reported = float(peer["final"])
    off = float(((counts + 1).lgamma() - stirling(counts)).sum())
    return [
        Finding(
            "its bound; the ELBO of its own q, nats",
            f"{reported:,.1f}",
            f"{elbo[0]:,.1f} ± {elbo[1]:.1f}",
            within(elbo[0], elbo[1] + 0.5, reported),
        ),
        Finding(
            "its bound; log p, which no bound exceeds, nats",
            f"{reported:,.1f}",
            f"{log_p[0]:,.1f} ± {log_p[1]:.1f}",
            reported < log_p[0] + 4 * log_p[1],
        ),
        Finding(
            "log y! by Stirling's formula: what it is too low by, nats in all",
            f"{reported - elbo[0]:,.1f} (its bound less the ELBO)",
            f"{off:,.1f}",
        ),
        Finding("its attribute `elbo`", f"{float(peer['elbo']):,.1f}", ""),
        Finding("gap of its q per leaf, nats", "", f"{gap.mean.inference:.3f}"),
        Finding("of that, the best mean-field q", "", f"{gap.mean.approximation:.3f}"),
    ]
