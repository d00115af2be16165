"""Which distribution do counts have if their exposures differ?

The data are handwritten digits (scikit-learn's). Each of the 64 numbers of a picture is a count,
the number of inked dots in a square of 4 x 4. To make exposures differ, as library sizes do in
single-cell data, only a random share t_n of the ink of a picture is counted:

    t_n ~ Uniform(0.2, 1),    y_nd ~ Binomial(ink_nd, t_n)

This turns a Poisson distribution with mean mu into one with mean t mu, and scales the mean of a
negative binomial or zero-inflated distribution in the same way. The same VAE is trained with
several likelihoods; all but one of them get the exposure as input. The models are compared twice:
by log p(y | t) of each held-out picture, and by the share of zeros in data sets that they simulate.

Run:  python examples/counts.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv
from pyro_vae.criticism import PairedDifference, paired_difference
from pyro_vae.diagnostics import PredictiveCheck, predictive_check
from pyro_vae.evidence import LogMarginal
from pyro_vae.likelihoods import LearnedDispersion, Likelihood, NegativeBinomial, Poisson

LATENTS = 2  # few enough for log p(y | t) by quadrature
BLIND = "Poisson without exposure"


def likelihoods() -> dict[str, Likelihood]:
    """The likelihoods by name, the simplest first; each of the 64 squares has its dispersion."""
    zero_inflated = pv.likelihoods.ZeroInflated
    return {
        BLIND: Poisson(),
        "Poisson": Poisson(),
        "negative binomial": NegativeBinomial(LearnedDispersion(64)),
        "zero-inflated Poisson": zero_inflated(Poisson()),
        "zero-inflated NB": zero_inflated(NegativeBinomial(LearnedDispersion(64))),
    }


def counted(grey: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Counts, `(pictures, 64)`, and the share of the ink that was counted, `(pictures, 1)`."""
    random = torch.Generator().manual_seed(seed)
    ink = (16 * grey).round()
    exposure = 0.2 + 0.8 * torch.rand(len(ink), 1, generator=random)
    return torch.binomial(ink, exposure.repeat(1, 64), generator=random), exposure


class Result(NamedTuple):
    """A model's held-out log p(y | t), and the share of zeros in data sets that it simulates."""

    log_p: LogMarginal
    zeros: PredictiveCheck


def share_of_zeros(batch: tuple[Tensor, ...]) -> Tensor:
    """The share of zeros among all counts of a data set."""
    return (batch[0] == 0).double().mean()


def run(
    likelihood: Likelihood, train: tuple[Tensor, ...], test: tuple[Tensor, ...], sizes: "Sizes"
) -> Result:
    """Trains a VAE, with early stopping on part of `train`, and evaluates it on `test`."""
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(LATENTS, likelihood.output_shape((64,)), hidden=(128,))
    pv.likelihoods.start_from(decoder, likelihood.start(*train))
    model = pv.models.VAE(decoder, likelihood, latent_dim=LATENTS)
    numbers = sum(part.shape[1] for part in train)
    net = pv.nets.Concatenated(pv.nets.MLPEncoder(numbers, hidden=(128,)))
    guide = pv.Guide(model, pv.Encoder(net), example=train)
    held = len(train[0]) // 20
    pv.fit(
        model,
        guide,
        tuple(part[held:] for part in train),
        num_epochs=sizes.epochs,
        validation=tuple(part[:held] for part in train),
        patience=15,
        progress=False,
    )
    log_p = pv.log_marginal_likelihood(model, guide, test, pv.Quadrature())
    statistics = {"share of zeros": share_of_zeros}
    return Result(log_p, predictive_check(model, guide, test, statistics, num_samples=sizes.draws))


class Sizes(NamedTuple):
    """Sizes of the data and of the run."""

    rows: int | None
    held_out: int
    epochs: int
    draws: int


@matplotlib.rc_context(pv.plots.STYLE)
def draw(
    results: dict[str, Result], pairs: dict[str, PairedDifference], best: str, path: Path
) -> None:
    """Draws each model's log p minus that of the best, and the shares of zeros it simulates."""
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(results)
    zeros = [results[name].zeros.replicated.flatten().numpy() for name in names]
    look: dict[str, Any] = {"orientation": "horizontal", "whis": (2.5, 97.5), "showfliers": False}
    look["medianprops"] = {"color": "black"}
    right.boxplot(zeros, positions=range(len(names)), **look)
    for name, pair in pairs.items():
        error = 2 * float(pair.mean.population_error)
        left.errorbar(float(pair.mean.value), names.index(name), xerr=error, fmt="o", color="C0")
    left.plot(0.0, names.index(best), "o", color="C0", mfc="none")
    left.axvline(0.0, color="0.6", linewidth=1.0)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel(f"log p minus that of {best}\n(nats per held-out picture, ± 2 standard errors)")
    observed = float(results[best].zeros.observed)
    right.axvline(observed, color="C1", label="held-out pictures")
    right.set_xlabel(
        "share of zeros in data sets drawn from the model\n(median, quartiles and 95%)"
    )
    right.legend(loc="best", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    sizes = Sizes(20, 4, 1, 20) if arguments.smoke else Sizes(None, 200, 30, 200)

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    digits = pv.data.digits(binarization=pv.data.Grey())
    train, test = (
        counted(digits.train[: sizes.rows], 0),
        counted(digits.test[: sizes.held_out], 1),
    )
    results = {}
    for name, likelihood in likelihoods().items():
        parts = 1 if name == BLIND else 2
        results[name] = run(likelihood, train[:parts], test[:parts], sizes)
        log_p, zeros = results[name]
        bad = int((~log_p.reliable).sum())
        print(
            f"{name:24s} log p {float(log_p.mean.value):9.2f} nats per picture ({bad} of "
            f"{len(log_p.value)} unreliable); zeros: {zeros.summary().splitlines()[0]}"
        )
    best = max(results, key=lambda name: float(results[name].log_p.mean.value))
    pairs = {
        name: paired_difference(result.log_p, results[best].log_p)
        for name, result in results.items()
        if name != best
    }
    print(f"\nLog p of the {best} minus log p of each other model:")
    for name, pair in pairs.items():
        print(f"{name:24s} {pair.summary()}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(results, pairs, best, arguments.out / "counts.png")

    lost = (
        f"{name} {-float(pair.mean.value):.2f} ± {float(pair.mean.population_error):.2f}"
        for name, pair in pairs.items()
    )
    made = {name: float(result.zeros.replicated.mean()) for name, result in results.items()}
    print(
        f"\nThe {best} predicts held-out counts best; the others are worse, in nats per picture: "
        f"{', '.join(lost)}. Of the held-out counts {float(results[best].zeros.observed):.1%} are "
        f"zero; in data simulated by the best model {made[best]:.1%}, by the Poisson "
        f"{made['Poisson']:.1%}."
    )


if __name__ == "__main__":
    main()
