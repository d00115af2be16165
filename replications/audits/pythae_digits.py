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
    title=(
        "Pythae's `get_nll` takes 100 draws when asked for one, and returns log p, not its negative"
    ),
    source="Pythae 0.1.2: `VAE.get_nll(data, n_samples, batch_size)` with its own networks",
    setting=(
        "Binary digits of 64 pixels, five latents, 512 units and 30 epochs in Pythae; 100 digits "
        "are evaluated. In the program, z ~ N(0, I) and y ~ Bernoulli(decoder(z)). The guide is "
        "the output of the package's encoder. The values of `get_nll` are means of eight calls, "
        "and ours are from 2,000 draws. Log p is estimated by `pv.Tightest()`."
    ),
    criterion=(
        "Means over data are within four joint standard errors of what is asked for: a bound "
        "with one draw (which is the ELBO), a bound with 100 draws, and, for the negative loss, "
        "the ELBO. The sign is the one that the name says."
    ),
    remark=(
        "If `n_samples` is at most `batch_size`, one full batch is drawn, so every such call has "
        "`batch_size` draws (100 by default). A larger `n_samples` is rounded down to a multiple "
        "of `batch_size`. The values are right for the draws that were taken. In spite of its "
        "name and description, `get_nll` returns the mean log-likelihood and not its negative. "
        "This value is a bound with 100 draws. It is 0.03 nats below log p (last row), and comes "
        "without a standard error. The training loss is the negative ELBO, as it should be."
    ),
)


def program(peer: dict[str, Tensor]) -> Callable[..., None]:
    """The decoder with its stored weights; `q`, for the guide, is not used by the model."""
    weights = {name.removeprefix("decoder."): part for name, part in peer.items()}

    def model(pixels: Tensor, q: Tensor) -> None:
        with pyro.plate("digits", len(pixels)):
            z = pyro.sample("z", dist.Normal(q.new_zeros(len(q), 5), 1.0).to_event(1))
            hidden = (z @ weights["layers.0.0.weight"].mT + weights["layers.0.0.bias"]).relu()
            logits = hidden @ weights["layers.1.0.weight"].mT + weights["layers.1.0.bias"]
            pyro.sample("pixels", dist.Bernoulli(logits=logits).to_event(1), obs=pixels)

    return model


def mean_of(calls: Tensor) -> pv.Estimate:
    """Mean of repeated calls, with an error from their spread."""
    return pv.stats.mean_estimate(calls)


def bound(log_weights: Tensor, draws: int) -> pv.Estimate:
    """Mean over data of the importance-weighted bound with so many draws."""
    parts = log_weights.unflatten(0, (-1, draws))  # draws of one bound: not with the next one's
    return pv.stats.mean_estimate(pv.stats.log_mean_exp(parts.transpose(0, 1)).mean(dim=-1))


def compared(quantity: str, theirs: pv.Estimate, ours: pv.Estimate) -> Finding:
    """Judges whether two estimates agree within four joint errors."""
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
        compared(
            "asked for one draw; bound with one draw, nats per digit", reported[1], bound(draws, 1)
        ),
        compared(
            "asked for one draw; bound with 100 draws, nats per digit",
            reported[1],
            bound(draws, 100),
        ),
        compared(
            "asked for 100 draws; bound with 100 draws, nats per digit",
            reported[100],
            bound(draws, 100),
        ),
        compared("negative loss; ELBO, nats per digit", mean_of(-peer["losses"]), bound(draws, 1)),
        Finding("sign of the negative log-likelihood", "negative", "positive", negative),
        Finding("log p, nats per digit", "", f"{log_p[0]:.3f} ± {log_p[1]:.3f}"),
    ]
