"""The loss of ctgan's TVAE against the bound that it is taken for."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv

from ..peers import TORCH, Stored, written_by
from ..record import Claim, Finding, numbers, within

REQUIREMENTS = (TORCH, "ctgan==0.12.1")
CLAIM = Claim(
    title=(
        "The loss of ctgan's TVAE is not a negative ELBO, because it counts the reconstruction "
        "twice"
    ),
    source="ctgan 0.12.1: `TVAE.fit` and the loss that it records, at the default `loss_factor=2`",
    setting=(
        "150 irises with their species, as the package encodes them: a number becomes a mode (a "
        "category) and its distance from that mode. Four latents, layers of 32 and 32 units, 200 "
        "epochs. In the program, z ~ N(0, I), each number is normal around tanh of the decoder's "
        "output with the package's sigma, and categories are categorical. The guide is the "
        "output of the package's encoder. The loss is the mean of 400 draws at the fitted "
        "parameters, the ELBO the mean of 2,000 draws."
    ),
    criterion=(
        "The negative loss is within four joint standard errors of the ELBO of the package's own "
        "q, and does not exceed log p by more than four standard errors."
    ),
    remark=(
        "With `loss_factor=2` the squared errors and cross entropies count twice, and the "
        "constant log(2 pi) / 2 of every number is left out. The negative loss is therefore not "
        "an ELBO. The third row shows, at these parameters, which terms it adds up. The quantity "
        "that is optimized is the bound at beta = 1/2. The package leaves this choice to the "
        "user: `loss_factor=1` gives the negative ELBO up to the constants. The losses of two "
        "models can be compared with each other, but not with a likelihood. The package does not "
        "keep the encoder after the fit, so q is not available later."
    ),
)


def program(peer: dict[str, Tensor]) -> Callable[..., None]:
    """The decoder at its stored weights, and a distribution for every span of a row."""
    sizes = peer["sizes"].long().tolist()
    kinds = peer["is_number"].bool().tolist()
    layers = [
        (peer[f"decoder.{place}.weight"], peer[f"decoder.{place}.bias"]) for place in (0, 2, 4)
    ]

    def decoded(z: Tensor) -> Tensor:
        for weight, bias in layers[:-1]:
            z = (z @ weight.mT + bias).relu()
        return z @ layers[-1][0].mT + layers[-1][1]

    def model(rows: Tensor, q: Tensor) -> None:
        with pyro.plate("rows", len(rows)):
            zero = q.new_zeros(len(q), q.shape[1] // 2)
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            outputs = decoded(z).split(sizes, dim=-1)
            parts = zip(outputs, rows.split(sizes, dim=-1), kinds, strict=True)
            sigmas = peer["sigma"].split(sizes)
            for place, (output, seen, is_number) in enumerate(parts):
                one = dist.Normal(output.tanh(), sigmas[place]).to_event(1)
                many = dist.OneHotCategorical(logits=output)
                pyro.sample(f"span {place}", one if is_number else many, obs=seen)

    return model


def findings(*, smoke: bool = False) -> list[Finding]:
    """Its loss beside the ELBO and log p."""
    peer = written_by("ctgan_tvae", *REQUIREMENTS)
    data = (peer["rows"], torch.cat([peer["mean"], peer["scale"].log()], dim=-1))
    model = program(peer)
    guide = pv.Guide(model, Stored(), example=data)
    draws = 100 if smoke else 2_000
    bound = pv.elbo(model, guide, data, draws, progress=False)
    ladder = pv.Tightest(draws)
    marginal = pv.log_marginal_likelihood(model, guide, data, ladder, progress=False).mean
    theirs = numbers(pv.stats.mean_estimate(-peer["losses"]))
    elbo, log_p = numbers(bound.mean), numbers(marginal)
    distortion, rate = (numbers(pv.stats.mean_over_data(x)) for x in (bound.distortion, bound.rate))
    constants = float(peer["is_number"].sum()) * math.log(2 * math.pi) / 2
    doubled = -2 * (distortion[0] - constants) - rate[0]
    shown = f"{theirs[0]:.3f} ± {theirs[1]:.3f}"
    error = math.hypot(theirs[1], elbo[1])
    return [
        Finding(
            "negative loss; ELBO, nats per row",
            shown,
            f"{elbo[0]:.3f} ± {elbo[1]:.3f}",
            within(theirs[0], error, elbo[0]),
        ),
        Finding(
            "negative loss; log p, which no bound exceeds, nats per row",
            shown,
            f"{log_p[0]:.3f} ± {log_p[1]:.3f}",
            theirs[0] < log_p[0] + 4 * math.hypot(theirs[1], log_p[1]),
        ),
        Finding(
            "negative loss; minus twice the distortion (without constants), minus the rate",
            shown,
            f"{doubled:.3f} ± {2 * distortion[1] + rate[1]:.3f}",
        ),
        Finding("inference gap of the package's q, nats per row", "", f"{log_p[0] - elbo[0]:.3f}"),
    ]
