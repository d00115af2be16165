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

Run:  python benchmarks/ladder.py      (--smoke for a quick look)
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
    methods: dict[str, Estimator] = {
        "plain": pv.ImportanceSampling(sizes.draws),
        "ladder": pv.Tightest(sizes.draws),
    }
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
        trusted = float(results[name].reliable.double().mean())
        print(f"{name:<8} {spread(own):>24} {trusted:>9.1%} {spread(ratios):>24}")
    found = results["ladder"]
    assert isinstance(found, LadderMarginal)
    shares = (f"{rung.value} {share:.1%}" for rung, share in found.rung_shares.items())
    print(f"accepted rungs: {', '.join(shares)}")
    return found


def spread(values: list[float]) -> str:
    """The median, and the range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def main() -> None:
    """Trains a VAE, and compares both methods on all digits and on those of the guide's rung."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    sizes = SMOKE if parser.parse_args().smoke else FULL
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # data that cannot be trusted are counted in the table
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
