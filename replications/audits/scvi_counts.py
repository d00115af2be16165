"""The marginal likelihood that scvi-tools reports: right per cell, and two ways to be off it."""

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
    title="scvi-tools' bound is right per cell; its mean weighs batches alike",
    source="scvi-tools 1.4.2: `SCVI.get_marginal_ll`, with its own networks and training",
    setting=(
        "Digits as counts (0 to 16; 61 pixels that are not always 0), `SCVI` with negative "
        "binomial counts, five latents, 32 units, 40 epochs on 1,797 digits; 200 of them, in "
        "batches of 128 and 72, its default. The program is z ~ N(0, I) and counts around its "
        "decoder's output at the observed total; the guide is its encoder's output. Its numbers "
        "are means of six calls."
    ),
    criterion=(
        "Per cell: the mean is within four joint errors of the bound with as many draws. Its mean "
        "is within 0.001 nats of the mean over its cells, from the same seeds. A call whose draws "
        "come 30 at a time has the bound with as many draws as were asked for, within four errors."
    ),
    remark=(
        "Per cell it is the bound with 1,000 draws that it says it is. With `return_mean=True` the "
        "means of batches are averaged, and the last batch, which is smaller, counts as much as "
        "the others: the fourth row is what that does to its own cells. If the draws of a pass do "
        "not divide those asked for, one pass more is made (120 draws for 100) and the sum is "
        "divided by the number asked for: high by log(120 / 100) for every cell. The defaults "
        "avoid the second, and the first if cells fill the batches. The code had been read before "
        "the criterion was written."
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
            "per cell, 1,000 draws; the bound with 1,000", mean_of(cells), bound(draws, 1_000)
        ),
        compared("100 draws by 30; the bound with 100", by_thirty, bound(draws, 100)),
        Finding(
            "its mean less the mean of its cells, nats",
            f"{off[0]:+.3f} ± {off[1]:.3f}",
            "0",
            within(off[0], 0.001, 0.0, errors=1.0),
        ),
        Finding(
            "batches of 128 and 72 weighed alike, less cells",
            "",
            f"{weighed[0]:+.3f} ± {weighed[1]:.3f}",
        ),
        Finding("log(120 / 100)", "", f"{math.log(1.2):.3f}"),
        Finding("log p, nats per cell", "", f"{log_p[0]:.3f} ± {log_p[1]:.3f}"),
    ]
