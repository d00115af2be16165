"""How far is an encoder from the best q(z) of every datum, and how many steps close the gap?

The data are handwritten digits (8 x 8, scikit-learn's, binarized by a fixed draw). A VAE with two
latents is trained with an encoder. Then the model is fixed, and the ELBOs of different guides are
compared:

    one global q(z) <= encoder <= encoder + S steps <= the best q(z) of every digit <= log p(y)

The encoder's output is refined by S gradient steps on the ELBO of the digit. This can be done at
test time alone, or in training as well, so that the model is trained on the tighter bound.

Run:  python examples/semi_amortized.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv

STEPS = (1, 2, 3, 5, 10)


def elbo(model: pv.models.VAE, guide: pv.Guide, y: Tensor, samples: int) -> float:
    """Mean ELBO in nats per digit, with the same random numbers for every guide."""
    return float(pv.elbo(model, guide, y, samples).mean.value)


def trained(map: pv.InferenceMap, y: Tensor, epochs: int) -> tuple[pv.models.VAE, pv.Guide]:
    """Trains a new VAE with this map, always from the same initialization."""
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(2, 64, hidden=(64,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2)
    guide = pv.Guide(model, map)
    pv.fit(model, guide, y, num_epochs=epochs)
    return model, guide


def encoder() -> pv.Encoder:
    """An encoder with one hidden layer."""
    torch.manual_seed(1)
    return pv.Encoder(pv.nets.MLPEncoder(64, hidden=(64,)))


def bounds(
    model: pv.models.VAE, guide: pv.Guide, y: Tensor, samples: int, epochs: int
) -> dict[str, float]:
    """ELBOs under the fixed model, from the loosest bound to the tightest, and log p."""
    surrogate = pv.Guide(model, pv.GlobalParameters())
    pv.fit(model, surrogate, y, num_epochs=epochs, train_model=False, progress=False)
    full_rank = pv.Guide(model, pv.GlobalParameters(), pv.FullRankNormal())
    values = {"global": elbo(model, surrogate, y, samples)}
    values["amortized"] = elbo(model, guide, y, samples)
    for steps in STEPS:
        values[f"{steps} steps"] = elbo(model, guide.refined(steps), y, samples)
    values["per-datum"] = elbo(model, guide.fit_rows(y), y, samples)
    best = full_rank.fit_rows(y)
    values["per-datum, full-rank"] = elbo(model, best, y, samples)
    lml = pv.evaluate(model, best, y, pv.ImportanceSampling(10 * samples)).log_marginal
    values["log p"] = float(lml.mean.value)
    return values


@matplotlib.rc_context(pv.plots.STYLE)
def draw(values: dict[str, float], path: Path) -> None:
    """Draws the ELBO against the number of steps, beside the best q's and log p."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    curve = [values["amortized"], *(values[f"{steps} steps"] for steps in STEPS)]
    axes.plot((0, *STEPS), curve, "o-", label="encoder, then gradient steps per digit")
    for style, name in ((":", "per-datum"), ("--", "per-datum, full-rank"), ("-", "log p")):
        axes.axhline(values[name], color="0.4", linestyle=style, label=name)
    axes.set_xlabel("gradient steps per digit")
    axes.set_ylabel("held-out ELBO (nats per digit)")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    epochs, samples, rows = (2, 20, 15) if arguments.smoke else (150, 500, None)

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    digits = pv.data.digits()
    train, test = digits.train[:rows], digits.test[:rows]
    model, guide = trained(encoder(), train, epochs)
    values = bounds(model, guide, test, samples, epochs)
    print("\nOne model, held-out digits, nats per digit")
    for name, value in values.items():
        print(f"  {name:22s} {value:9.3f}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(values, arguments.out / "semi_amortized.png")

    other, semi = trained(pv.Refined(encoder(), steps=2), train, epochs)
    lml = pv.evaluate(other, semi.fit_rows(test), test, pv.ImportanceSampling(10 * samples))
    gap = values["per-datum"] - values["amortized"]
    left = values["per-datum"] - values[f"{STEPS[1]} steps"]
    print(
        f"\nAmortization costs {gap:.3f} nats per digit; after {STEPS[1]} gradient steps per "
        f"digit, the cost is {left:.3f}. A model that is trained with 2 steps per digit has "
        f"log p(y) = {float(lml.log_marginal.mean.value):.3f}; the model above has "
        f"{values['log p']:.3f}."
    )


if __name__ == "__main__":
    main()
