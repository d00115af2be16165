"""What does the ladder of estimators cost per datum, compared with plain importance sampling?

A VAE of handwritten digits (8 x 8, scikit-learn's, binarized) with eight latents and networks of
`pv.nets` is trained for some epochs. Log p(y) of the same test digits is then estimated by two
methods, in turns within each repeat and on one thread:

    plain     `pv.ImportanceSampling` with 5,000 draws from the guide per datum
    ladder    `pv.Tightest` with as many draws per rung, which goes on until a rung is accepted

Two comparisons are printed. The first is on all digits. The second is on those digits for which the
ladder accepts the guide's rung in the first comparison, so that the ladder makes the same draws as
plain importance sampling. What it takes beyond that is for its checks: draws of the prior, and fits
from several starting points. For each comparison, the benchmark prints milliseconds of processor
time per datum, the share of digits that can be trusted, and how many times as long the ladder takes
as plain importance sampling, as median (range) over repeats. Each method first runs once untimed,
so that the times do not include compiling. All repeats use the same draws.

With --fashion, a VAE with 50 latents is trained on images of Fashion-MNIST instead. Both methods
are then compared with annealed importance sampling from the encoder, at 1,000 temperatures, on
images that the VAE has not seen.

Run:  python benchmarks/ladder.py      (--smoke for a quick look; --fashion)
"""

import argparse
import statistics
import time
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import Estimator, LadderMarginal, LogMarginal, Rung

LATENTS, PIXELS = 8, 64


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data and of the run."""

    images: int
    epochs: int
    draws: int
    repeats: int


FULL = Sizes(images=200, epochs=60, draws=5000, repeats=5)
SMOKE = Sizes(images=8, epochs=2, draws=200, repeats=1)


def trained(epochs: int) -> tuple[pv.models.VAE, pv.Guide]:
    """Returns a model and an encoder that were trained on the training digits."""
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(LATENTS, PIXELS)
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=LATENTS)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(PIXELS)))
    pv.fit(model, guide, pv.data.digits().train, num_epochs=epochs, progress=False)
    return model.eval(), guide.eval()


def timed(
    model: pv.models.VAE, guide: pv.Guide, y: Tensor, method: Estimator
) -> tuple[LogMarginal, float]:
    """Estimates log p(y); returns the estimates, and the milliseconds per datum."""
    start = time.process_time()  # on one thread; other processes on the machine do not add to it
    result = pv.log_marginal_likelihood(model, guide, y, method, progress=False)
    return result, 1000 * (time.process_time() - start) / len(y)


def compared(model: pv.models.VAE, guide: pv.Guide, y: Tensor, sizes: Sizes) -> LadderMarginal:
    """Times both methods on the same digits, prints a table, and returns the ladder's estimates."""
    methods = methods_of(sizes.draws)
    times: dict[str, list[float]] = {name: [] for name in methods}
    results: dict[str, LogMarginal] = {}
    for method in methods.values():  # compiles, and fills caches
        timed(model, guide, y, method)
    for _ in range(sizes.repeats):
        for name, method in methods.items():
            results[name], took = timed(model, guide, y, method)
            times[name].append(took)
    print(f"{'':<8} {'ms per datum':>24} {'trusted':>9} {'times plain':>24}")
    for name, own in times.items():
        ratios = [mine / plain for mine, plain in zip(own, times["plain"], strict=True)]
        print(f"{name:<8} {spread(own):>24} {trusted(results[name]):>9} {spread(ratios):>24}")
    found = results["ladder"]
    assert isinstance(found, LadderMarginal)
    shares = (f"{rung.value} {share:.1%}" for rung, share in found.rung_shares.items())
    print(f"accepted rungs: {', '.join(shares)}")
    return found


def with_annealing(images: int, epochs: int, rows: int, temperatures: int, draws: int) -> None:
    """Compares both methods with long annealing on images of clothes, and prints a table."""
    torch.manual_seed(0)
    data = pv.data.fashion_mnist(num_train=images, num_test=rows)
    decoder = pv.nets.MLPDecoder(50, 784, hidden=(200, 200), activation=torch.nn.ELU)
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=50)
    net = pv.nets.MLPEncoder(784, hidden=(200, 200), activation=torch.nn.ELU)
    guide = pv.Guide(model, pv.Encoder(net))
    pv.fit(model, guide, data.train, num_epochs=epochs, batch_size=100, progress=False)
    annealing = pv.AnnealedImportanceSampling(temperatures, start=pv.StartFromGuide())
    reference, took = timed(model, guide, data.test, annealing)
    title = f"{'seconds per datum':>17} {'trusted':>9} {'mean, nats':>17} {'minus annealing':>17}"
    print(f"{'':<9} {title} {'largest':>8} {'in errors':>9}")
    print(f"{'annealing':<9} {took / 1000:>17.3g} {trusted(reference):>9} {reference.mean!s:>17}")
    for name, method in methods_of(draws).items():
        found, took = timed(model, guide, data.test, method)
        apart = found.value - reference.value
        errors = (apart / torch.hypot(found.error, reference.error)).abs().max()
        row = f"{took / 1000:>17.3g} {trusted(found):>9} {found.mean.value:>17.3f}"
        print(f"{name:<9} {row} {apart.mean():>17.3f} {apart.abs().max():>8.3f} {errors:>9.1f}")


def methods_of(draws: int) -> dict[str, Estimator]:
    """Plain importance sampling and the ladder, with the same number of draws."""
    return {"plain": pv.ImportanceSampling(draws), "ladder": pv.Tightest(draws)}


def trusted(result: LogMarginal) -> str:
    """The share of data that can be trusted."""
    return f"{float(result.reliable.double().mean()):.1%}"


def spread(values: list[float]) -> str:
    """The median, and the range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def main() -> None:
    """Trains a VAE, and compares both methods on all digits and on those of the guide's rung."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    parser.add_argument("--fashion", action="store_true", help="beside annealing, on other images")
    arguments = parser.parse_args()
    sizes = SMOKE if arguments.smoke else FULL
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # data that cannot be trusted are counted in the table
    if arguments.fashion:
        with_annealing(
            *((300, 1, 2, 50, 200) if arguments.smoke else (5_000, 20, 16, 1_000, 5_000))
        )
        return
    model, guide = trained(sizes.epochs)
    y = pv.data.digits().test[: sizes.images]
    print(f"{len(y)} digits, {sizes.draws} draws per datum, {sizes.repeats} repeats, one thread")
    found = compared(model, guide, y, sizes)
    by_guide = torch.tensor([rung is Rung.GUIDE for rung in found.rungs])
    print(f"{int(by_guide.sum())} digits for which the ladder accepts the guide's rung:")
    if bool(by_guide.any()):
        compared(model, guide, y[by_guide], sizes)


if __name__ == "__main__":
    main()
