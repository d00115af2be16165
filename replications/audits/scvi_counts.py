"""The marginal likelihood that scvi-tools reports: right per cell, but wrong in two other uses."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

import pyro_vae as pv

from ..peers import TORCH, Stored, written_by
from ..record import Claim, Finding, numbers, within
from .pythae_digits import bound, compared, mean_of

REQUIREMENTS = (TORCH, "scvi-tools==1.4.2")
CLAIM = Claim(
    title="scvi-tools' bound is right per cell; its mean gives unequal batches equal weights",
    source="scvi-tools 1.4.2: `SCVI.get_marginal_ll`, with its own networks and training",
    setting=(
        "Digits as counts from 0 to 16, with the 61 pixels that are not always 0. `SCVI` has "
        "negative binomial counts, five latents and 32 units, and is trained for 40 epochs on "
        "1,797 digits. Of these, 200 are evaluated in batches of 128 (the default) and 72. In "
        "the program, z ~ N(0, I), and the counts are drawn around the decoder's output at the "
        "observed total. The guide is the output of the package's encoder. The package's numbers "
        "are means of six calls."
    ),
    criterion=(
        "Per cell: the mean is within four joint standard errors of the bound with as many "
        "draws. With `return_mean=True`: the value is within 0.001 nats of the mean over cells "
        "from the same seeds. With 30 draws per pass: the value is within four joint standard "
        "errors of the bound with the number of draws asked for."
    ),
    remark=(
        "Per cell, the value is the bound with 1,000 draws, as documented. With `return_mean=True` "
        "the means of the batches are averaged, so the last batch, which is smaller, counts as "
        "much as the others. The fourth row shows the effect of this on the package's own values "
        "per cell. If the draws of one pass do not divide the draws asked for, the package makes "
        "one more pass (120 draws for 100) but divides the sum by the number asked for. The value "
        "of every cell is then too high by log(120 / 100). The default settings avoid this second "
        "error. They avoid the first one only if the cells fill all batches. The code had been "
        "read before the criterion was written."
    ),
)


def program(peer: dict[str, Tensor]) -> Callable[..., None]:
    """The decoder at its stored weights, batch norm as in evaluation, and the counts."""
    part = {name.removeprefix("decoder."): value for name, value in peer.items()}
    layer = "px_decoder.fc_layers.Layer 0"
    mean, variance = part[f"{layer}.1.running_mean"], part[f"{layer}.1.running_var"]
    weight, bias = part[f"{layer}.1.weight"], part[f"{layer}.1.bias"]

    def model(counts: Tensor, q: Tensor) -> None:
        with pyro.plate("cells", len(counts)):
            z = pyro.sample("z", dist.Normal(q.new_zeros(len(q), 5), 1.0).to_event(1))
            hidden = z @ part[f"{layer}.0.weight"].mT + part[f"{layer}.0.bias"]
            hidden = functional.batch_norm(hidden, mean, variance, weight, bias, eps=1e-3).relu()
            scale = hidden @ part["px_scale_decoder.0.weight"].mT + part["px_scale_decoder.0.bias"]
            log_rate = counts.sum(dim=-1, keepdim=True).log() + scale.log_softmax(dim=-1)
            many = dist.NegativeBinomial(peer["theta"], logits=log_rate - peer["theta"].log())
            pyro.sample("counts", many.to_event(1), obs=counts)

    return model


def findings(*, smoke: bool = False) -> list[Finding]:
    """What it reports per cell, as a mean, and 30 draws at a time."""
    peer = written_by("scvi_counts", *REQUIREMENTS)
    rows = slice(4 if smoke else None)
    q = torch.cat([peer["mean"], peer["scale"].log()], dim=-1)[rows]
    data = (peer["counts"][rows], q)
    model = program(peer)
    guide = pv.Guide(model, Stored(), example=data)
    draws = pv.log_weights(model, guide, *data, num_samples=2_000 if smoke else 6_000)
    cells = peer["cells"].mean(dim=1)
    of_batches = (peer["cells"][:, :128].mean(dim=1) + peer["cells"][:, 128:].mean(dim=1)) / 2
    off = numbers(mean_of(peer["means"] - cells))
    weighed = numbers(mean_of(of_batches - cells))
    by_thirty = mean_of(peer["by_thirty"].mean(dim=1))
    ladder = pv.Tightest(500 if smoke else 2_000)
    log_p = numbers(pv.log_marginal_likelihood(model, guide, data, ladder, progress=False).mean)
    return [
        compared(
            "1,000 draws; bound with 1,000 draws, nats per cell",
            mean_of(cells),
            bound(draws, 1_000),
        ),
        compared(
            "100 draws, 30 per pass; bound with 100 draws, nats per cell",
            by_thirty,
            bound(draws, 100),
        ),
        Finding(
            "mean from `return_mean=True` minus the mean over cells, nats",
            f"{off[0]:+.3f} ± {off[1]:.3f}",
            "0",
            within(off[0], 0.001, 0.0, errors=1.0),
        ),
        Finding(
            "batches of 128 and 72 weighted equally, minus the mean over cells, nats",
            "",
            f"{weighed[0]:+.3f} ± {weighed[1]:.3f}",
        ),
        Finding("log(120 / 100), nats", "", f"{math.log(1.2):.3f}"),
        Finding("log p, nats per cell", "", f"{log_p[0]:.3f} ± {log_p[1]:.3f}"),
    ]
