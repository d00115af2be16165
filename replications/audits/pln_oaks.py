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
    title=(
        "pyPLNmodels reports a bound above log p, because it computes log y! by Stirling's formula"
    ),
    source=(
        "pyPLNmodels 1.0.10: `PlnPCA(rank=5).fit()`, `compute_elbo()` and the attribute `elbo`, "
        "on the package's data set oaks"
    ),
    setting=(
        "Oaks: 116 leaves with 114 counts each, offsets and an intercept. In the program, z ~ "
        "N(0, I) with five latents and y ~ Poisson(exp(offset + intercept + C z)), where C are "
        "the package's components. The guide has the package's mean and scale for every leaf. "
        "Log p is estimated by `pv.Tightest()`, and the best mean-field q is found by "
        "`pv.inference_gap`."
    ),
    criterion=(
        "The reported bound is within four standard errors plus 0.5 nats (the package sums in "
        "float32) of the ELBO of the package's own q, and does not exceed log p by more than "
        "four standard errors."
    ),
    remark=(
        "The package computes log y! by Stirling's formula. The formula is exact in the limit of "
        "large counts, but too low by 0.081 for y = 1, and oaks has thousands of small counts. The "
        "error does not depend on parameters, so the fit and the ranking of models on the same "
        "data are unaffected. A comparison with another package, or a likelihood ratio against "
        "another family, is affected. The parameters and q are good: with the exact log y!, q "
        "loses only the inference gap given in the table. The attribute `elbo` is the value before "
        "the last step of the fit. So it is another 6 nats away from the bound at the parameters "
        "that are returned."
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
            "reported bound; ELBO of the package's q, total nats",
            f"{reported:,.1f}",
            f"{elbo[0]:,.1f} ± {elbo[1]:.1f}",
            within(elbo[0], elbo[1] + 0.5 / 4, reported),
        ),
        Finding(
            "reported bound; log p, which no bound exceeds, total nats",
            f"{reported:,.1f}",
            f"{log_p[0]:,.1f} ± {log_p[1]:.1f}",
            reported < log_p[0] + 4 * log_p[1],
        ),
        Finding(
            "reported bound minus the ELBO; error of Stirling's formula, total nats",
            f"{reported - elbo[0]:,.1f}",
            f"{off:,.1f}",
        ),
        Finding("attribute `elbo`, total nats", f"{float(peer['elbo']):,.1f}", ""),
        Finding("inference gap of the package's q, nats per leaf", "", f"{gap.mean.inference:.3f}"),
        Finding(
            "approximation gap (of the best mean-field q), nats per leaf",
            "",
            f"{gap.mean.approximation:.3f}",
        ),
    ]
