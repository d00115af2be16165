"""When can an encoder match one free q per datum? Linear model, saw series, nonlinear model."""

import math
from collections.abc import Callable
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv

from .record import Claim, Finding, within

TAU, SIGMA = 1.155, 2.43
SLOPE, SHIFT = 0.75, 3.4159
CLAIM = Claim(
    title="An encoder that sees all that the posterior depends on matches a free q per datum",
    source=(
        "Margossian & Blei, 2024: Amortized Variational Inference: When and Why? The values are "
        "from the authors' notebooks (-ELBO of the linear model: 6087.99 and 7232.36 ± 4.8; of "
        "the saw series: 553.08, 885 to 892, 553.05; of the nonlinear model: 32398.9, 36700.1, "
        "35638.7, 32593.3, 32391.9, 32385.4)."
    ),
    figures=(
        "Read in the outputs of the authors' notebooks (linear_prob_model, saw_time_series, "
        "nonlinear_prob_model)."
    ),
    setting=(
        "The models have the authors' parameters; the shared location is known, whereas the source "
        "fits a q for it. The free q has separate parameters for every datum. The linear model has "
        "N = 10,000 data. The saw series has N = 1,000: z_n depends on y_{n-1}, and y_n on z_n; a "
        "loss is the ELBO of the free q minus that of the encoder, and is negative if the free q "
        "stopped further from its optimum. The data of these two models are simulated afresh, so "
        "gaps can be compared with the source, but totals cannot. The nonlinear model has N = "
        "10,000 data, the authors' own from their seed, and their unnormalized objective, in "
        "batches of 250 for 100 epochs. Its free q takes 1,500 steps on all data, where the "
        "authors took 20,000."
    ),
    criterion=(
        "Linear: the gap and the encoder's ELBO are within four standard errors plus 0.25 nats "
        "(for incomplete training) of the closed form for these data. Saw: an encoder that sees "
        "y_n loses as much as the best linear encoder of y_n, within 10%; an encoder that sees "
        "both values loses less than 1% of that. Nonlinear: -ELBO of the free q is within 0.5% "
        "of the published value. -ELBO falls from the global q over widths 1, 2 and 4 to 32. For "
        "widths 4 and 32 the loss against the free q is below 5% of the global q's loss."
    ),
    remark=(
        "The authors' nonlinear objective leaves out the logarithm of the noise's standard "
        "deviation, although this depends on z. It is therefore not a bound on any normalized log "
        "p(y). Our program leaves the logarithm out by means of a `pyro.factor`. After a first run "
        "the step size of the encoders was lowered, because a gradient was not finite. After a "
        "second run, in which the -ELBO of the free q was 35,719 after 100 epochs, the free q was "
        "trained for longer. Before the run that is shown, the free q was changed to train on all "
        "data at once, which takes a tenth of the time. The criterion was not changed. The "
        "encoders took 4,000 steps on 250 data each, where the source took 20,000 steps on all "
        "data. The -ELBO of every encoder is above its published value; width 4 misses the "
        "criterion, and width 32 does not. The further run shows that the random start is the "
        "cause. Of five other starts, three meet the criterion, one does not, and one ends at a "
        "poor optimum. With the source's number of steps on all data, width 4 ended at 36,078.7 in "
        "a first further run, whose start had no seed. From a second start it ended within 0.1% of "
        "the published value."
    ),
    explained=True,
)


def linear(y: Tensor) -> None:
    """Data y = tau z + noise; the shared location is 0."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(len(y)), 1.0))
        pyro.sample("y", dist.Normal(TAU * z, SIGMA), obs=y)


def saw(before: Tensor, after: Tensor) -> None:
    """A step of the series: z is drawn around the value before, then the value after around z."""
    with pyro.plate("data", len(after)):
        z = pyro.sample("z", dist.Normal(before, 1.0))
        pyro.sample("after", dist.Normal(SLOPE * (z + SHIFT), 1.0), obs=after)


class OfAfter(nn.Module):
    """An encoder that sees the value after z, and with `both` also the value before it."""

    def __init__(self, hidden: int, *, both: bool) -> None:
        super().__init__()
        self.both = both
        self.net = pv.nets.MLPEncoder(2 if both else 1, hidden=(hidden, hidden))
        self.num_features = self.net.num_features

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Features of q(z)."""
        seen = torch.stack([before, after] if self.both else [after], dim=-1)
        features: Tensor = self.net(seen)
        return features


def nonlinear(y: Tensor) -> None:
    """Data y around z + z sin z with sd exp(cos z); a factor cancels the log of the sd.

    The authors' objective leaves this logarithm out although it depends on z, so it does not bound
    a normalized log p(y). With the factor the objective is theirs, up to constants.
    """
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(len(y)), 1.0))
        pyro.sample("y", dist.Normal(z + z * z.sin(), z.cos().exp()), obs=y)
        pyro.factor("no log of the sd", z.cos())


class OfOne(nn.Module):
    """An encoder of a single number, with two hidden layers or none."""

    def __init__(self, width: int = 0) -> None:
        super().__init__()
        self.net = pv.nets.MLPEncoder(1, (width, width)) if width else nn.Identity()
        self.num_features = width or 1

    def forward(self, y: Tensor) -> Tensor:
        """Features of q(z)."""
        features: Tensor = self.net(y.unsqueeze(-1))
        return features


def fitted(
    model: Callable[..., None],
    data: Tensor | tuple[Tensor, ...],
    map_: pv.InferenceMap,
    epochs: int,
    rate: float,
    *,
    batch: int | None = None,
) -> pv.Estimate:
    """Trains a mean-field Gaussian under a map, in one batch or more; returns the total ELBO."""
    torch.manual_seed(0)
    few = tuple(part[:2] for part in data) if isinstance(data, tuple) else data[:2]
    guide = pv.Guide(model, map_, example=few)
    size = len(data[0]) if isinstance(data, tuple) else len(data)
    pv.fit(
        model,
        guide,
        data,
        num_epochs=epochs,
        batch_size=batch or size,
        train_model=False,
        optimizer=lambda tensors: torch.optim.Adam(tensors, lr=rate),
        progress=False,
    )
    return pv.elbo(model, guide, data, 400, seed=1, progress=False).total


def _shown(estimate: pv.Estimate) -> str:
    return f"{float(estimate.value):.1f} ± {float(estimate.error):.1f}"


def _linear_findings(*, smoke: bool) -> list[Finding]:
    count, epochs = (300, 20) if smoke else (10_000, 1_500)
    draw = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, count, generator=draw)
    y = TAU * z + SIGMA * noise
    amortized = fitted(linear, y, pv.Encoder(OfOne()), epochs, 0.02)
    shared = fitted(linear, y, pv.GlobalParameters(), epochs, 0.02)
    gap = pv.Estimate(amortized.value - shared.value, amortized.error.hypot(shared.error))
    # q's mean is the average of the posterior means. The gap per datum is half the variance of
    # these means, divided by the posterior's variance.
    posterior = SIGMA**2 / (SIGMA**2 + TAU**2)
    means = (TAU / SIGMA**2) * posterior * y
    exact = count * float(means.var(correction=0)) / (2 * posterior)
    evidence = float(dist.Normal(0.0, math.hypot(TAU, SIGMA)).log_prob(y).double().sum())
    return [
        Finding("linear: gap of a global q, total nats", "1,144.4 ± 4.8", _shown(gap)),
        Finding(
            "linear: the same gap in closed form for these data, total nats",
            "1,130 (population)",
            f"{exact:.1f}",
            within(float(gap.value), float(gap.error) + 0.25 / 4, exact),
        ),
        Finding(
            "linear: log p minus the ELBO of a linear encoder, total nats",
            "0",
            f"{evidence - float(amortized.value):.2f} ± {float(amortized.error):.2f}",
            within(float(amortized.value), float(amortized.error) + 0.25 / 4, evidence),
        ),
    ]


def _saw_findings(*, smoke: bool) -> list[Finding]:
    count, epochs = (200, 20) if smoke else (1_000, 2_000)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(count, generator=draw)
    series = torch.zeros(count + 1)
    for n in range(count):  # simulated as in the source, where z has no noise
        series[n + 1] = SLOPE * (SHIFT + series[n]) + noise[n]
    data = (series[:-1], series[1:])
    free = fitted(saw, data, pv.LocalParameters(count), 2 * epochs, 0.05)
    one = fitted(saw, data, pv.Encoder(OfAfter(10, both=False)), epochs, 0.01)
    two = fitted(saw, data, pv.Encoder(OfAfter(10, both=True)), epochs, 0.01)
    lost = [float(free.value - each.value) for each in (one, two)]
    error = float(free.error.hypot(one.error))
    # Given the value after, the value before has the residual variance of a linear regression.
    centred = torch.stack(data) - torch.stack(data).mean(dim=1, keepdim=True)
    before, after = centred.double()
    left = float((before - after * (before @ after) / (after @ after)).square().sum())
    bound = left / (2 * (1 + SLOPE**2))
    return [
        Finding(
            "saw: loss of an encoder that sees y_n, total nats",
            "332 to 339",
            f"{lost[0]:.1f} ± {error:.1f}",
            0.9 * bound < lost[0] < 1.1 * bound,
        ),
        Finding(
            "saw: loss of the best linear encoder that sees y_n, total nats", "", f"{bound:.1f}"
        ),
        Finding(
            "saw: loss of an encoder that sees y_{n-1} and y_n, total nats",
            "-0.03 to 0.00",
            f"{lost[1]:.2f} ± {float(free.error.hypot(two.error)):.2f}",
            abs(lost[1]) < 0.01 * lost[0],
        ),
    ]


def _simulated(count: int) -> Tensor:
    """The authors' data for the nonlinear model, to the bit."""
    with torch.random.fork_rng():
        torch.manual_seed(1789)
        torch.randn(1)  # the location, which is known here
        z = 5 * torch.randn(count)
        return z + z * z.sin() + z.cos().exp() * torch.randn(count, 1).squeeze(-1)


PUBLISHED = {
    "free q": 32398.9,
    "global q": 36700.1,
    "encoder of width 1": 35638.7,
    "encoder of width 2": 32593.3,
    "encoder of width 4": 32391.9,
    "encoder of width 32": 32385.4,
}


def _nonlinear_losses(*, smoke: bool) -> dict[str, float]:
    """-ELBO under every map, without the constants that the source drops."""
    count, epochs = (200, 3) if smoke else (10_000, 100)
    y = _simulated(count)
    found = {
        "free q": fitted(nonlinear, y, pv.LocalParameters(count), 15 * epochs, 0.05),
        "global q": fitted(nonlinear, y, pv.GlobalParameters(), epochs, 0.05, batch=250),
    }
    for width in (1, 2, 4, 32):
        encoder = pv.Encoder(OfOne(width))
        found[f"encoder of width {width}"] = fitted(nonlinear, y, encoder, epochs, 0.005, batch=250)
    constants = count * math.log(2 * math.pi) / 2
    return {name: -float(each.value) - constants for name, each in found.items()}


def _nonlinear_findings(*, smoke: bool) -> list[Finding]:
    """The order of the losses, and the values."""
    loss = _nonlinear_losses(smoke=smoke)
    free, widest = loss["free q"], ("encoder of width 4", "encoder of width 32")
    falls = all(loss[one] > loss[two] for one, two in pairwise(list(PUBLISHED)[1:]))
    met = {name: falls for name in PUBLISHED}
    met["free q"] = abs(free / PUBLISHED["free q"] - 1) < 0.005
    met |= {name: loss[name] - free < 0.05 * (loss["global q"] - free) for name in widest}
    return [
        Finding(f"nonlinear: -ELBO, {name}", f"{PUBLISHED[name]:,.1f}", f"{value:,.1f}", met[name])
        for name, value in loss.items()
    ]


def further(*, smoke: bool) -> list[Finding]:
    """The encoder of width 4 from other starts, and for as many steps as in the source."""
    count, epochs, steps = (200, 3, 3) if smoke else (10_000, 100, 20_000)
    y, constants = _simulated(count), count * math.log(2 * math.pi) / 2
    starts = []
    for seed in range(1, 6):
        torch.manual_seed(seed)
        encoder = pv.Encoder(OfOne(4))
        starts.append(fitted(nonlinear, y, encoder, epochs, 0.005, batch=250))
    torch.manual_seed(0)
    longer = fitted(nonlinear, y, pv.Encoder(OfOne(4)), steps, 0.005)
    losses = sorted(-float(each.value) - constants for each in starts)
    name = "encoder of width 4"
    theirs = f"{PUBLISHED[name]:,.1f}"
    return [
        Finding(
            f"further: nonlinear: -ELBO, {name}, from five other starts",
            theirs,
            ", ".join(f"{loss:,.1f}" for loss in losses),
        ),
        Finding(
            f"further: nonlinear: -ELBO, {name}, {steps:,} steps on all data",
            theirs,
            f"{-float(longer.value) - constants:,.1f}",
        ),
    ]


def findings(*, smoke: bool = False) -> list[Finding]:
    """All three models."""
    parts = (_linear_findings, _saw_findings, _nonlinear_findings, further)
    return [finding for part in parts for finding in part(smoke=smoke)]
