"""How long does the inference gap of 1,000 digits take, compared with a loop in Pyro alone?

A VAE of handwritten digits (8 x 8, scikit-learn's, binarized) with eight latents and networks of
64-64 is trained for some epochs. Then the gap between log p(y) and the encoder's ELBO is split into
its parts for every digit, in one run and on one thread, by

    the library: `pv.inference_gap` with its defaults, and with enough draws for errors per datum
        well below 0.05 nats on average;
    a loop over digits in Pyro alone: `AutoNormal` fitted by `SVI` with Adam from the encoder's
        output (2,000 steps, a published recipe), `Trace_ELBO` for the two ELBOs, with as many
        particles as the library has draws, and log p(y) by importance sampling from the fitted
        guide. The loop is timed on a few digits, and its time is scaled to all digits.

The benchmark prints seconds, errors, and how many times faster the library is. Both compute
log p(y) and the encoder's ELBO, and must agree on these within errors. The loop's q must not be
better than the library's by more than the errors. Otherwise the run fails.

Run:  python benchmarks/gaps.py      (--smoke for a quick look)
"""

import argparse
import math
import statistics
import time
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import Estimate, ProgramLike
from pyro_vae.gaps import InferenceGap

LATENTS, PIXELS, HIDDEN = 8, 64, 64
ADAM_LR = 5e-3  # of the rates from 1e-3 to 1e-2 that are in use
LARGEST_ERROR = 0.05  # nats, of a datum, on average
APART = 6.0  # standard errors: more is a contradiction; a few heavy weights need the room


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data and of the run."""

    images: int
    epochs: int
    draws: int
    loop_images: int
    steps: int


FULL = Sizes(images=1000, epochs=20, draws=500, loop_images=5, steps=2000)
SMOKE = Sizes(images=20, epochs=1, draws=300, loop_images=2, steps=20)


@dataclass(frozen=True)
class Naive:
    """The loop's results for one digit, in nats, and its seconds."""

    elbo: float
    best_elbo: float
    log_marginal: float
    error: float
    seconds: float


def layers(inputs: int, outputs: int) -> nn.Sequential:
    """A plain network, which Pyro's vectorized plates can call too."""
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
        nn.Linear(HIDDEN, outputs),
    )  # fmt: skip


def trained(sizes: Sizes) -> tuple[pv.models.VAE, pv.Guide, Tensor]:
    """Returns a model and an encoder, and the digits that they were trained on."""
    torch.manual_seed(0)
    y = pv.data.digits().train[: sizes.images]
    decoder, encoder = layers(LATENTS, PIXELS), layers(PIXELS, 2 * LATENTS)
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=LATENTS)
    guide = pv.Guide(model, pv.Encoder(encoder))
    pv.fit(model, guide, y, num_epochs=sizes.epochs, progress=False)
    return model.eval(), guide.eval(), y


def program_of(model: pv.models.VAE) -> ProgramLike:
    """The same model with the same decoder, as a Pyro user writes it."""
    decoder = model.decoder.requires_grad_(requires_grad=False)

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("y", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=y)

    return program


def encoder_program(parameters: Tensor) -> ProgramLike:
    """A guide program with the encoder's output for one digit."""
    loc, log_scale = parameters.chunk(2, dim=-1)

    def program(y: Tensor) -> None:
        with pyro.plate("data", len(y), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return program


@torch.no_grad()
def elbo(program: ProgramLike, guide: ProgramLike, y: Tensor, draws: int) -> float:
    """The ELBO from Pyro's own objective, whose loss is minus the ELBO."""
    objective = Trace_ELBO(num_particles=draws, vectorize_particles=True, max_plate_nesting=1)
    return -float(objective.loss(program, guide, y))


@torch.no_grad()
def log_p(program: ProgramLike, guide: ProgramLike, y: Tensor, draws: int) -> tuple[float, float]:
    """Log p(y) by importance sampling, all draws in one plate, with the delta method's error."""
    particles = pyro.plate("particles", draws, dim=-2)
    drawn = poutine.trace(particles(guide)).get_trace(y)
    weighed = poutine.trace(poutine.replay(particles(program), trace=drawn)).get_trace(y)
    drawn.compute_log_prob()
    weighed.compute_log_prob()
    joint = weighed.nodes["z"]["log_prob"] + weighed.nodes["y"]["log_prob"]
    # AutoNormal draws an auxiliary site; the model's site is a Delta at a transform of it.
    log_q = drawn.nodes["z"]["log_prob"] + drawn.nodes["z_unconstrained"]["log_prob"]
    log_weights = (joint - log_q).double()[:, 0]
    log_total = log_weights.logsumexp(dim=0)
    shares = (log_weights - log_total).exp()
    relative = draws * shares.square().sum() - 1
    return float(log_total) - math.log(draws), float(relative / (draws - 1)) ** 0.5


def naive(program: ProgramLike, parameters: Tensor, y: Tensor, sizes: Sizes) -> Naive:
    """Runs the loop for one digit, `(1, pixels)`, from the encoder's output, `(1, 2 latents)`."""
    start = time.perf_counter()
    pyro.clear_param_store()
    loc, log_scale = parameters.chunk(2, dim=-1)
    begin, width = init_to_value(values={"z": loc}), float(log_scale.exp().mean())
    best = AutoNormal(program, init_loc_fn=begin, init_scale=width)
    svi = SVI(program, best, Adam({"lr": ADAM_LR}), Trace_ELBO())
    for _ in range(sizes.steps):
        svi.step(y)
    return Naive(
        elbo(program, encoder_program(parameters), y, sizes.draws),
        elbo(program, best, y, sizes.draws),
        *log_p(program, best, y, sizes.draws),
        time.perf_counter() - start,
    )


def check(gap: InferenceGap, loop: list[Naive]) -> None:
    """Fails if the two disagree; each uses draws of its own."""
    few = len(loop)
    own = torch.tensor([digit.error for digit in loop], dtype=torch.float64)
    for name in ("elbo", "best_elbo", "log_marginal"):
        part: Estimate = getattr(gap.parts, name)
        other = torch.tensor([getattr(digit, name) for digit in loop], dtype=torch.float64)
        apart, error = other - part.value[:few], part.error[:few]
        # Trace_ELBO gives no error. The library's is used, which has as many draws.
        z = apart / (error.square() + (own if name == "log_marginal" else error).square()).sqrt()
        # The loop's q is where noisy steps led to: it may be worse, and must not be better.
        worst = float(z.max() if name == "best_elbo" else z.abs().max())
        if not worst < APART:
            raise RuntimeError(f"{name}: loop and library are {worst:.1f} standard errors apart")
        print(f"    {name:12} loop less library: {show(apart)} nats, at most {worst:.1f} errors")


def show(values: Tensor) -> str:
    """Formats the mean and the range."""
    return f"{float(values.mean()):+.3f} ({float(values.min()):+.3f} to {float(values.max()):+.3f})"


def main() -> None:
    """Trains a VAE, runs the library and the loop, and prints the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    sizes = SMOKE if parser.parse_args().smoke else FULL
    torch.set_num_threads(1)  # small tensors make threads wait for each other
    pyro.set_rng_seed(0)
    model, guide, y = trained(sizes)
    start = time.perf_counter()
    gap = pv.inference_gap(model, guide, y, num_samples=sizes.draws)
    library = time.perf_counter() - start
    print(f"{len(y)} digits, {sizes.draws} draws each, one thread")
    print(gap.summary())
    parameters = guide.posterior(y).parameters.detach()
    program = program_of(model)
    loop = [
        naive(program, parameters[row : row + 1], y[row : row + 1], sizes)
        for row in range(sizes.loop_images)
    ]
    report(gap, loop, library, sizes)


def report(gap: InferenceGap, loop: list[Naive], library: float, sizes: Sizes) -> None:
    """Prints seconds, errors, the agreement, and the ratio of times."""
    errors = {name: float(part.error.mean()) for name, part in gap.parts._asdict().items()}
    print(f"mean error per datum: {', '.join(f'{n} {e:.4f}' for n, e in errors.items())} nats")
    if not max(errors.values()) < LARGEST_ERROR:
        raise RuntimeError(f"an error is above {LARGEST_ERROR} nats on average: take more draws")
    print(f"{len(loop)} digits by both, {sizes.steps} steps of the loop:")
    check(gap, loop)
    each = [digit.seconds for digit in loop]
    ratios = [sizes.images * seconds / library for seconds in each]
    print(f"library: {library:.1f} s for {sizes.images} digits")
    print(
        f"loop: {statistics.median(each):.2f} s a digit ({min(each):.2f} to {max(each):.2f}), "
        f"{sizes.images * statistics.median(each):.0f} s for all of them if they are alike"
    )
    print(
        f"the library is {statistics.median(ratios):.0f} times faster "
        f"({min(ratios):.0f} to {max(ratios):.0f}); expected: at least 20"
    )


if __name__ == "__main__":
    main()
