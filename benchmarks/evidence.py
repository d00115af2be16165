"""How fast is importance-weighted evaluation, and how near to what the machine can do?

A Bernoulli decoder of 50-200-200-784 with tanh, 100 images, 5,000 draws an image: the evaluation
with which importance-weighted autoencoders are reported. In one run, on one thread, in turns so
that a change in the machine's speed hits all of them, it times

    a bare matrix product: the decoder's three products and nothing else, the ceiling;
    a plain loop: chunks of draws, guide and model traced by Pyro, log densities a datum;
    the library: `pv.log_marginal_likelihood` with `pv.ImportanceSampling`.

and prints their rates in GFLOP/s of the decoder's products, medians and ranges over repeats, the
library's rate as a ratio to the loop's, and both as shares of the bare product's. The loop and the
library must agree on log p(y) within their errors; the run fails if they do not.

Run:  python benchmarks/evidence.py      (--smoke for a quick look)
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv

LATENTS, HIDDEN, PIXELS = 50, 200, 784
FLOPS = 2 * (LATENTS * HIDDEN + HIDDEN * HIDDEN + HIDDEN * PIXELS)  # a draw
BILLION = 1e9
ROWS = 1000  # of the bare product: about what is fastest on CPUs whose cache is some mebibytes


@dataclass(frozen=True)
class Sizes:
    """How much to compute."""

    images: int
    draws: int
    loop_images: int
    repeats: int


FULL = Sizes(images=100, draws=5000, loop_images=10, repeats=5)
SMOKE = Sizes(images=2, draws=200, loop_images=2, repeats=2)


def gflops(action: Callable[[], object], draws: int) -> float:
    """Rate of one run that decodes so many draws."""
    start = time.perf_counter()
    action()
    return draws * FLOPS / (time.perf_counter() - start) / BILLION


def spread(values: list[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"


def untrained() -> tuple[pv.models.VAE, pv.Guide]:
    """Model and guide: rates do not depend on the weights."""
    decoder = pv.nets.MLPDecoder(LATENTS, PIXELS, (HIDDEN, HIDDEN), activation=nn.Tanh)
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=LATENTS)
    encoder = pv.nets.MLPEncoder(PIXELS, hidden=(HIDDEN, HIDDEN))
    return model, pv.Guide(model, pv.Encoder(encoder))


@torch.no_grad()
def plain_loop(model: pv.models.VAE, guide: pv.Guide, y: Tensor, draws: int) -> Tensor:
    """What a person writes with Pyro: log p(y) of each image, all of its draws in one batch."""
    answers = []
    for image in y:
        rows = image.expand(draws, -1)
        guide_trace = poutine.trace(guide).get_trace(rows)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(rows)
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
        log_p = model_trace.nodes["z"]["log_prob"] + model_trace.nodes["y"]["log_prob"]
        log_weights = log_p - guide_trace.nodes["z"]["log_prob"]
        answers.append(log_weights.double().logsumexp(dim=0) - torch.tensor(draws).log())
    return torch.stack(answers)


@torch.no_grad()
def bare_product(model: pv.models.VAE, draws: int) -> None:
    """The decoder's products on so many draws."""
    weights = [layer.weight.T for layer in model.decoder.modules() if isinstance(layer, nn.Linear)]
    inputs = [torch.randn(min(ROWS, draws), len(weight)) for weight in weights]
    for _ in range(max(1, draws // ROWS)):
        for rows, weight in zip(inputs, weights, strict=True):
            torch.mm(rows, weight)


def library(
    model: pv.models.VAE, guide: pv.Guide, y: Tensor, draws: int
) -> pv.evidence.LogMarginal:
    """The entry point that people call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained guide is a bad one: known here
        return pv.log_marginal_likelihood(model, guide, y, pv.ImportanceSampling(draws))


def check(model: pv.models.VAE, guide: pv.Guide, y: Tensor, draws: int) -> str:
    """Both compute the same thing: the difference in standard errors."""
    ours, theirs = library(model, guide, y, draws), plain_loop(model, guide, y, draws)
    z = ((ours.value - theirs) / (2**0.5 * ours.error)).abs().max()
    if not float(z) < 6:  # heavy weights: their errors are themselves noisy
        raise RuntimeError(f"the loop and the library differ by {float(z):.1f} standard errors")
    return f"loop and library differ by {float(z):.1f} standard errors at most"


def main() -> None:
    """Times all three in turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    sizes = SMOKE if parser.parse_args().smoke else FULL
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    model, guide = untrained()
    y = model.sample(sizes.images, seed=0)
    few = y[: sizes.loop_images]
    actions: dict[str, tuple[Callable[[], object], int]] = {
        "bare product": (
            lambda: bare_product(model, len(few) * sizes.draws),
            len(few) * max(1, sizes.draws // ROWS) * min(ROWS, sizes.draws),
        ),
        "plain loop": (
            lambda: plain_loop(model, guide, few, sizes.draws),
            len(few) * sizes.draws,
        ),
        "library": (lambda: library(model, guide, y, sizes.draws), len(y) * sizes.draws),
    }
    print(check(model, guide, few, sizes.draws))
    rates: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(sizes.repeats):
        for name, (action, draws) in actions.items():
            rates[name].append(gflops(action, draws))
    report(rates, sizes)


def report(rates: dict[str, list[float]], sizes: Sizes) -> None:
    """Rates, and ratios of the runs that stood next to each other."""
    print(f"{sizes.images} images x {sizes.draws} draws, {sizes.repeats} repeats, one thread")
    for name, values in rates.items():
        print(f"{name:13} {spread(values)} GFLOP/s")
    for over, of in (("plain loop", "library"), ("bare product", "library")):
        ratios = [a / b for a, b in zip(rates[of], rates[over], strict=True)]
        print(f"{of} / {over:13} {spread(ratios)}")
    print("expected: at least 1.5 times the loop; goal: 0.75 of the bare product")


if __name__ == "__main__":
    main()
