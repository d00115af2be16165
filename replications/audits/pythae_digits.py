"""The log-likelihood that Pythae's VAE reports: the draws it takes, and the sign it has."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv

from ..peers import TORCH, Stored, written_by
from ..record import Claim, Finding, numbers, within

REQUIREMENTS = (TORCH, "pythae==0.1.2")
CLAIM = Claim(
    title="Pythae's `get_nll` takes 100 draws where it is asked for one, and returns log p itself",
    source="Pythae 0.1.2: `VAE.get_nll(data, n_samples, batch_size)` with its own networks",
    setting=(
        "Binary digits (64 pixels), five latents, 512 units, 30 epochs in Pythae; 100 digits. The "
        "program is z ~ N(0, I), y ~ Bernoulli(decoder(z)); the guide is its encoder's output. "
        "Its numbers are means of eight calls, ours of 2,000 draws; log p by `pv.Tightest()`."
    ),
    criterion=(
        "Means over data within four joint errors of what is asked for: a bound with one draw, "
        "which is the ELBO; a bound with 100 draws; its loss; and the sign that its name says."
    ),
    remark=(
        "With `n_samples` up to `batch_size` one full batch is drawn, so that every such call has "
        "`batch_size` draws (100 by default), and a larger number is rounded down to a multiple of "
        "it: the values are right for the draws that were taken. Despite the name and the "
        "description, what comes back is the mean log-likelihood and not its negative. It is a "
        "bound with 100 draws, below log p in the last row by 0.03 nats, and has no "
        "error of its own. The training loss is the negative ELBO, as it should be."
    ),
)


def program(peer: dict[str, Tensor]) -> Callable[..., None]:
    """The decoder with its stored weights; what a digit's q is comes with it and is not used."""
    weights = {name.removeprefix("decoder."): part for name, part in peer.items()}

    def model(pixels: Tensor, q: Tensor) -> None:
        with pyro.plate("digits", len(pixels)):
            z = pyro.sample("z", dist.Normal(q.new_zeros(len(q), 5), 1.0).to_event(1))
            hidden = (z @ weights["layers.0.0.weight"].mT + weights["layers.0.0.bias"]).relu()
            logits = hidden @ weights["layers.1.0.weight"].mT + weights["layers.1.0.bias"]
            pyro.sample("pixels", dist.Bernoulli(logits=logits).to_event(1), obs=pixels)

    return model


def mean_of(calls: Tensor) -> pv.Estimate:
    """Of repeated calls, with the error from their spread."""
    return pv.stats.mean_estimate(calls)


def bound(log_weights: Tensor, draws: int) -> pv.Estimate:
    """Mean over data of the importance-weighted bound with so many draws."""
    parts = log_weights.unflatten(0, (-1, draws))  # draws of one bound: not with the next one's
    return pv.stats.mean_estimate(pv.stats.log_mean_exp(parts.transpose(0, 1)).mean(dim=-1))


def compared(quantity: str, theirs: pv.Estimate, ours: pv.Estimate) -> Finding:
    """Two estimates, which are to agree within four joint errors."""
    error = float(theirs.error.hypot(ours.error))
    met = within(float(ours.value), error, float(theirs.value))
    return Finding(quantity, f"{theirs:.3f}", f"{ours:.3f}", met)


def findings(*, smoke: bool = False) -> list[Finding]:
    """What it reports for one draw and for 100, beside bounds with so many draws."""
    peer = {
        name: part.double() for name, part in written_by("pythae_digits", *REQUIREMENTS).items()
    }
    rows = slice(4 if smoke else None)
    q = torch.cat([peer["mean"], peer["log_variance"] / 2], dim=-1)[rows]
    data = (peer["images"][rows], q)
    model = program(peer)
    guide = pv.Guide(model, Stored(), example=data)
    draws = pv.log_weights(model, guide, *data, num_samples=200 if smoke else 2_000)
    reported = {asked: mean_of(peer[f"reported_{asked}"]) for asked in (1, 100)}
    ladder = pv.Tightest(500 if smoke else 2_000)
    log_p = numbers(pv.log_marginal_likelihood(model, guide, data, ladder, progress=False).mean)
    negative = float(reported[100].value) > 0
    return [
        compared("asked for one draw; the bound with one", reported[1], bound(draws, 1)),
        compared("asked for one draw; the bound with 100", reported[1], bound(draws, 100)),
        compared("asked for 100 draws; the bound with 100", reported[100], bound(draws, 100)),
        compared("minus its loss; the ELBO", mean_of(-peer["losses"]), bound(draws, 1)),
        Finding("sign of the negative log-likelihood", "-", "+", negative),
        Finding("log p, nats per digit", "", f"{log_p[0]:.3f} ± {log_p[1]:.3f}"),
    ]
