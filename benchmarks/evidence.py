"""How fast is importance-weighted evaluation, and how near to the limit of the machine?

The decoder is a Bernoulli decoder of 50-200-200-784 units with tanh, evaluated on 100 images with
5,000 draws each, as in papers on importance-weighted autoencoders. The contestants run on one
thread and in turns, so that a change in the machine's speed affects all of them:

    a bare matrix product: the decoder's three products and nothing else, which is the upper limit;
    a plain loop: model and guide as a person writes them with Pyro alone, with the same networks,
        all draws of an image in one vectorized plate, so that the encoder runs once per image;
    the library: `pv.log_marginal_likelihood` with `pv.ImportanceSampling`, on `pv.models.VAE`;
        first uncompiled (compile=False), then compiled, without the time to compile;
    the library on the plain programs: the same, on the model and the guide of the loop;
    a JAX user: the same networks in a jitted function, one image and a thousand draws at a time
        (the fastest choice), if JAX is installed.

The benchmark prints rates in GFLOP/s of the decoder's products, as medians and ranges over repeats,
and ratios of the library's rates to the others. The loop, the JAX user and the library must agree
on log p(y) within their errors; the run fails if they do not.

Run:  python benchmarks/evidence.py      (--smoke for a quick look)
"""

import argparse
import importlib.util
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import ProgramLike

LATENTS, HIDDEN, PIXELS = 50, 200, 784
FLOPS = 2 * (LATENTS * HIDDEN + HIDDEN * HIDDEN + HIDDEN * PIXELS)  # per draw
BILLION = 1e9
ROWS = 1000  # of the bare product: nearly the fastest choice if the cache has a few MiB


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data and of the run."""

    images: int
    draws: int
    loop_images: int
    repeats: int


FULL = Sizes(images=100, draws=5000, loop_images=10, repeats=5)
SMOKE = Sizes(images=2, draws=200, loop_images=2, repeats=2)


def gflops(action: Callable[[], object], draws: int) -> float:
    """Rate, in GFLOP/s, of one run of `action` that decodes this number of draws."""
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return draws * FLOPS / (time.perf_counter() - start) / BILLION


def on_one_core() -> None:
    """Keeps the process on one core, because JAX has no setting for its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def spread(values: list[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"


def untrained() -> tuple[pv.models.VAE, pv.Guide]:
    """An untrained model and guide, which suffice because rates do not depend on weights."""
    model = pv.models.VAE(layers(LATENTS, PIXELS), pv.likelihoods.Bernoulli(), latent_dim=LATENTS)
    return model, pv.Guide(model, pv.Encoder(layers(PIXELS, 2 * LATENTS)))


def layers(inputs: int, outputs: int) -> nn.Sequential:
    """A plain network, which Pyro's vectorized plates can call too."""
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(),
        nn.Linear(HIDDEN, outputs),
    )  # fmt: skip


def plain_programs(model: pv.models.VAE, guide: pv.Guide) -> tuple[ProgramLike, ProgramLike]:
    """Model and guide with the same networks, written in Pyro alone."""

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(LATENTS), 1.0).to_event(1))
            logits = model.decoder(z)
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    def amortized(y: Tensor) -> None:
        loc, log_scale = guide.map((y,), None).chunk(2, dim=-1)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return program, amortized


@torch.no_grad()
def plain_loop(program: ProgramLike, guide: ProgramLike, y: Tensor, draws: int) -> Tensor:
    """Log p(y) of each image, as a Pyro user writes it: all draws of an image in one plate."""
    answers = []
    particles = pyro.plate("particles", draws, dim=-2)
    for image in y.split(1):
        guide_trace = poutine.trace(particles(guide)).get_trace(image)
        replayed = poutine.replay(particles(program), trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(image)
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
        log_p = model_trace.nodes["z"]["log_prob"] + model_trace.nodes["y"]["log_prob"]
        log_weights = log_p - guide_trace.nodes["z"]["log_prob"]
        log_total = log_weights.double().logsumexp(dim=0).squeeze(0)
        answers.append(log_total - math.log(draws))
    return torch.stack(answers)


@torch.no_grad()
def bare_product(model: pv.models.VAE, draws: int) -> None:
    """The decoder's matrix products for this number of draws."""
    weights = [layer.weight.T for layer in model.decoder.modules() if isinstance(layer, nn.Linear)]
    size = min(ROWS, draws)
    inputs = [torch.randn(size, len(weight), device=weight.device) for weight in weights]
    for _ in range(max(1, draws // ROWS)):
        for rows, weight in zip(inputs, weights, strict=True):
            torch.mm(rows, weight)


def jax_user(model: pv.models.VAE, guide: pv.Guide) -> Callable[[Tensor, int], Tensor]:
    """A function of images and a number of draws: log p(y), as a JAX user writes it."""
    import jax
    import jax.numpy as jnp

    def weights_of(net: nn.Module) -> list[Any]:
        return [
            (jnp.asarray(layer.weight.detach().numpy().T), jnp.asarray(layer.bias.detach().numpy()))
            for layer in net.modules()
            if isinstance(layer, nn.Linear)
        ]

    def applied(layers: list[Any], x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jnp.tanh(x @ weight + bias)
        weight, bias = layers[-1]
        return x @ weight + bias

    decoder, encoder = weights_of(model.decoder), weights_of(guide)

    def log_weight(noise: Any, y: Any, loc: Any, log_scale: Any) -> Any:
        z = loc + jnp.exp(log_scale) * noise
        ratio = (noise**2 - z**2).sum() / 2 + log_scale.sum()
        logits = applied(decoder, z)
        return ratio + (y * logits - jax.nn.softplus(logits)).sum()

    def log_mean(key: Any, y: Any, draws: int) -> Any:
        loc, log_scale = jnp.split(applied(encoder, y), 2)

        def block(key: Any) -> Any:
            noise = jax.random.normal(key, (min(ROWS, draws), LATENTS))
            weigh = jax.vmap(log_weight, in_axes=(0, None, None, None))
            return weigh(noise, y, loc, log_scale)

        blocks = jax.lax.map(block, jax.random.split(key, max(1, draws // ROWS)))
        return jax.nn.logsumexp(blocks) - math.log(blocks.size)

    compiled = jax.jit(log_mean, static_argnums=2)

    def answers(images: Tensor, draws: int) -> Tensor:
        keys = jax.random.split(jax.random.PRNGKey(0), len(images))
        found = [
            compiled(key, image, draws) for key, image in zip(keys, images.numpy(), strict=True)
        ]
        return torch.tensor([float(value) for value in found])

    return answers


def library(
    model: ProgramLike, guide: ProgramLike, y: Tensor, draws: int, *, compile: bool = False
) -> pv.evidence.LogMarginal:
    """Runs `pv.log_marginal_likelihood` by importance sampling, as people call it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about an untrained guide are expected
        method = pv.ImportanceSampling(draws, compile=compile)
        return pv.log_marginal_likelihood(model, guide, y, method)


def check(name: str, theirs: Tensor, mine: pv.evidence.LogMarginal) -> None:
    """Prints by how many standard errors two results differ; fails if they disagree."""
    z = ((mine.value - theirs) / (2**0.5 * mine.error)).abs().max()
    if not float(z) < 6:  # heavy weights: their errors are themselves noisy
        raise RuntimeError(f"the {name} and the library differ by {float(z):.1f} standard errors")
    print(f"{name} and library differ by {float(z):.1f} standard errors at most")


def contestants(
    sizes: Sizes, model: pv.models.VAE, guide: pv.Guide, y: Tensor
) -> dict[str, tuple[Callable[[], object], int]]:
    """The functions to time by name, and how many draws each decodes."""
    few, draws = y[: sizes.loop_images], sizes.draws
    plain = plain_programs(model, guide)
    mine = library(model, guide, few, draws)
    check("loop", plain_loop(*plain, few, draws), mine)
    start = time.perf_counter()
    library(model, guide, few[:1], draws, compile=True)
    print(f"compiled in {time.perf_counter() - start:.0f} s")
    whole = max(1, draws // ROWS) * min(ROWS, draws)
    others: dict[str, tuple[Callable[[], object], int]] = {}
    if importlib.util.find_spec("jax") is not None and y.device.type == "cpu":
        user = jax_user(model, guide)
        check("JAX user", user(few, draws), mine)
        others["JAX user"] = (lambda: user(y, draws), len(y) * whole)
    return others | {
        "bare product": (lambda: bare_product(model, len(few) * draws), len(few) * whole),
        "plain loop": (lambda: plain_loop(*plain, few, draws), len(few) * draws),
        "library": (lambda: library(model, guide, y, draws), len(y) * draws),
        "library, compiled": (
            lambda: library(model, guide, y, draws, compile=True),
            len(y) * draws,
        ),
        "on plain programs": (lambda: library(*plain, few, draws), len(few) * draws),
    }


def main() -> None:
    """Times all contestants in turns, and prints their rates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    parser.add_argument("--device", default="cpu", help="where programs and data are")
    arguments = parser.parse_args()
    sizes = SMOKE if arguments.smoke else FULL
    torch.set_num_threads(1)
    on_one_core()
    pyro.set_rng_seed(0)
    model, guide = untrained()
    y = model.sample(sizes.images, seed=0).to(arguments.device)
    actions = contestants(sizes, model.to(arguments.device), guide.to(arguments.device), y)
    rates: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(sizes.repeats):
        for name, (action, draws) in actions.items():
            rates[name].append(gflops(action, draws))
    report(rates, sizes)


def report(rates: dict[str, list[float]], sizes: Sizes) -> None:
    """Prints rates, and ratios of runs from the same repeat."""
    print(f"{sizes.images} images x {sizes.draws} draws, {sizes.repeats} repeats, one thread")
    for name, values in rates.items():
        print(f"{name:17} {spread(values)} GFLOP/s")
    peers = [name for name in ("plain loop", "JAX user", "bare product") if name in rates]
    for of in ("library", "library, compiled", "on plain programs"):
        for over in peers:
            ratios = [a / b for a, b in zip(rates[of], rates[over], strict=True)]
            print(f"{of} / {over:13} {spread(ratios)}")
    print("expected: compiled at least 1.2 times the JAX user and 0.6 of the bare product")


if __name__ == "__main__":
    main()
