"""What does it take to fit q to every datum, with the model fixed?

The time is compared with that of a training epoch, and the result with that of Adam.

A model with two latents is trained with an encoder on 1,000 handwritten digits (8 x 8,
scikit-learn's, binarized). Then the best diagonal normal is fitted to every digit, starting from
the encoder's output and from the prior. The benchmark prints

    the time of a training epoch, and that of the fit, with the program eager and compiled (median
        and range over repeats);
    how far the mean ELBO is below its converged value, which comes from a fit with many more
        points and a much smaller tolerance. Both are evaluated with the same fresh draws, and the
        error is that of the difference;
    the same for a published recipe, 2,000 steps of Adam with a step size of 0.001 from the
        encoder's output, on fewer digits. Its time for all digits is 2,000 times that of one step.

Run:  python benchmarks/fit_rows.py      (--smoke for a quick look)
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.guides.row_fits import fit_parameters
from pyro_vae.programs import evaluating

ADAM_DRAWS = 8  # per step and datum; the recipe gives no number
ADAM_LR = 1e-3


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data and of the run."""

    rows: int
    epochs: int
    repeats: int
    adam_rows: int
    adam_steps: int
    draws: int


FULL = Sizes(rows=1000, epochs=80, repeats=5, adam_rows=100, adam_steps=2000, draws=1000)
SMOKE = Sizes(rows=50, epochs=2, repeats=2, adam_rows=10, adam_steps=5, draws=20)


def seconds(action: Callable[[], object], repeats: int) -> list[float]:
    """Wall times of `repeats` runs of `action`, after one run that is not counted."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return times


def spread(values: list[float], form: str = ".2f") -> str:
    """The median and the range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def adam(guide: pv.Guide, y: Tensor, start: Tensor, steps: int) -> Tensor:
    """The published recipe: Adam on each datum's parameters, with fresh draws each step."""
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=ADAM_LR)
    with evaluating(guide.model):
        for _ in range(steps):
            q = guide.family(parameters)
            z = q.rsample(torch.Size((ADAM_DRAWS,)))
            elbo = (guide.program.log_joint(z, y) - q.log_prob(z)).mean(dim=0)
            (parameters.grad,) = torch.autograd.grad(-elbo.sum(), parameters)
            optimizer.step()
    return parameters.detach()


def elbo(guide: pv.Guide, y: Tensor, parameters: Tensor, draws: int) -> Tensor:
    """ELBO of every datum, with the same noise for all parameters, so differences vary little."""
    generator = torch.Generator().manual_seed(1)
    q = guide.family(parameters)
    with evaluating(guide.model), torch.no_grad():
        total = torch.zeros(len(y), dtype=torch.float64)
        for _ in range(draws):
            noise = torch.randn(parameters.shape[0], guide.latent_dim, generator=generator)
            z = (q.mean + q.stddev * noise).unsqueeze(0)
            total += (guide.program.log_joint(z, y) - q.log_prob(z))[0]
    return total / draws


def shortfall(reference: Tensor, other: Tensor) -> str:
    """Formats how far the mean ELBO is below a reference, with the error of the difference."""
    difference = reference - other
    error = float(difference.std()) / len(difference) ** 0.5
    return f"{float(difference.mean()):+.5f} ± {error:.5f} nats (worst {difference.max():.4f})"


def main() -> None:
    """Trains a model, fits q to every datum, and prints times and shortfalls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    sizes = SMOKE if parser.parse_args().smoke else FULL
    torch.set_num_threads(1)  # small tensors make threads wait for each other
    torch.manual_seed(0)
    y = pv.data.digits().train[: sizes.rows]
    decoder = pv.nets.MLPDecoder(2, 64, hidden=(64,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(64, hidden=(64,))))
    pv.fit(model, guide, y, num_epochs=sizes.epochs, progress=False)
    encoded = guide.posterior(y).parameters.detach()
    prior = guide.prior_parameters().detach().repeat(len(y), 1)

    epoch = epoch_seconds(y, sizes.repeats)
    print(f"{len(y)} digits, medians and ranges of {sizes.repeats} runs on one thread")
    print(f"training epoch, batches of 64: {spread(epoch, '.3f')} s")
    best = converged(guide, y, (encoded, prior))
    reference = elbo(guide, y, best, sizes.draws)
    report_fits(guide, y, {"encoder": encoded, "prior": prior}, epoch, reference, sizes)
    report_adam(guide, y, encoded, epoch, best, sizes)
    at_encoder = elbo(guide, y, encoded, sizes.draws)
    print(f"the encoder itself: short of converged by {shortfall(reference, at_encoder)}")


def epoch_seconds(y: Tensor, repeats: int) -> list[float]:
    """Times of an epoch, each a fifth of the time of a run of five epochs."""
    decoder = pv.nets.MLPDecoder(2, 64, hidden=(64,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(64, hidden=(64,))))
    epochs = 5

    def train() -> None:
        pv.fit(model, guide, y, num_epochs=epochs, progress=False)

    return [total / epochs for total in seconds(train, repeats)]


def converged(guide: pv.Guide, y: Tensor, starts: tuple[Tensor, ...]) -> Tensor:
    """Parameters of every datum from the best of long fits from all starts."""
    method = pv.FitRows(
        num_particles=512, tolerance=1e-8, max_steps=300, max_rows=65_536, compile=False
    )
    fits = [
        fit_parameters(guide.program, guide.family, (y,), start, method, seed=9) for start in starts
    ]
    values = torch.stack([elbo(guide, y, fit.parameters, 300) for fit in fits])
    rows = torch.arange(len(y))
    return torch.stack([fit.parameters for fit in fits])[values.argmax(dim=0), rows]


def report_fits(
    guide: pv.Guide,
    y: Tensor,
    starts: dict[str, Tensor],
    epoch: list[float],
    reference: Tensor,
    sizes: Sizes,
) -> None:
    """Prints time and quality of the library's fits, eager and compiled in turns."""
    methods = {"eager": pv.FitRows(compile=False), "compiled": pv.FitRows(compile=True)}
    begin = time.perf_counter()
    fit_parameters(guide.program, guide.family, (y,), starts["encoder"], methods["compiled"])
    print(f"compiled in {time.perf_counter() - begin:.0f} s")
    for name, start in starts.items():
        times: dict[str, list[float]] = {how: [] for how in methods}
        for _ in range(sizes.repeats):
            for how, method in methods.items():
                begin = time.perf_counter()
                fit = fit_parameters(guide.program, guide.family, (y,), start, method)
                times[how].append(time.perf_counter() - begin)
        for how, values in times.items():
            ratios = [value / statistics.median(epoch) for value in values]
            print(
                f"fit from the {name}, {how}: {spread(values)} s = {spread(ratios, '.1f')} epochs"
            )
        ratios = [w / c for w, c in zip(times["eager"], times["compiled"], strict=True)]
        found = elbo(guide, y, fit.parameters, sizes.draws)
        print(f"    eager takes {spread(ratios)} times as long as compiled")
        print(f"    {fit.steps} steps at most, {int(fit.converged.sum())} of {len(y)} converged")
        print(f"    short of the converged ELBO by {shortfall(reference, found)}")


def report_adam(
    guide: pv.Guide,
    y: Tensor,
    start: Tensor,
    epoch: list[float],
    best: Tensor,
    sizes: Sizes,
) -> None:
    """Prints the quality of the published recipe on some rows, and its time for all rows."""
    few, steps = sizes.adam_rows, sizes.adam_steps
    found = elbo(guide, y[:few], adam(guide, y[:few], start[:few], steps), sizes.draws)
    timed = min(20, steps)
    step = seconds(lambda: adam(guide, y, start, timed), sizes.repeats)
    times = [value / timed * steps for value in step]
    ratios = [value / statistics.median(epoch) for value in times]
    reference = elbo(guide, y[:few], best[:few], sizes.draws)  # with the normals of `found`
    print(f"Adam, {steps} steps of {ADAM_LR}, {ADAM_DRAWS} draws each, from the encoder:")
    print(f"    {spread(times)} s = {spread(ratios, '.0f')} epochs ({timed} steps timed)")
    print(f"    on {few} digits short of the converged ELBO by {shortfall(reference, found)}")


if __name__ == "__main__":
    main()
