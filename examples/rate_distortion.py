"""How does distortion fall with the rate, and when do latents collapse?

The data are handwritten digits (8 x 8, scikit-learn's, binarized by a fixed draw), and the VAE has
eight latents. The ELBO is minus the sum of

    rate R = KL(q(z | y) || p(z)), the cost of z, and
    distortion D = - E log p(y | z), the remaining cost of y given z,

but does not determine how this sum is divided. Copies of one VAE are trained to minimize D + beta R
for increasing values of beta. Each copy starts from the solution for the previous beta. For each
copy the information I of z about the identity of the digit lies between H - D and R, where H is the
entropy of the data.

Run:  python examples/rate_distortion.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae.diagnostics.rates import Curve, RateDistortion, rate_distortion
from pyro_vae.plots.learning import plot_rate_distortion

BETAS = (0.2, 0.5, 1, 1.5, 2, 3, 5)
LATENTS = 8


def traced(train: torch.Tensor, test: torch.Tensor, epochs: int) -> RateDistortion:
    """Trains a VAE at each beta, and returns its rate-distortion curve."""
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(LATENTS, 64, hidden=(64,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=LATENTS)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(64, hidden=(64,))))
    # Every later beta starts from the previous solution; this fit gives the first beta a start.
    pv.fit(model, guide, train, objective=pv.BetaELBO(BETAS[0]), num_epochs=2 * epochs)
    return rate_distortion(model, guide, train, BETAS, held_out=test, num_epochs=epochs)


def draw(result: RateDistortion, held_out: Curve, path: Path) -> None:
    """Draws training and held-out curves, the training information, and lines of equal ELBO."""
    train = result.train
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    plot_rate_distortion(
        train.beta,
        {
            "training digits": (train.rate, train.distortion),
            "held-out digits": (held_out.rate, held_out.distortion),
        },
        information=train.information,
        entropy=result.entropy,
        ax=figure.subplots(),
    )
    figure.savefig(path, dpi=130)


def said(curve: Curve, row: int) -> str:
    """Describes rate, distortion and information at one beta."""
    rate, distortion, information = (
        f"{part.value[row]:.2f} ± {part.error[row]:.2f}"
        for part in (curve.rate, curve.distortion, curve.information)
    )
    return f"a rate of {rate}, a distortion of {distortion} and an information of {information}"


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    epochs, rows = (1, 60) if arguments.smoke else (60, None)

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    digits = pv.data.digits()
    result = traced(digits.train[:rows], digits.test[:rows], epochs)
    held_out = result.held_out
    if held_out is None:
        raise SystemExit("training was interrupted before the first result")
    print(f"\nNats per digit\n{result.summary()}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(result, held_out, arguments.out / "rate_distortion.png")

    best, last = int(held_out.elbo.value.argmax()), len(held_out.beta) - 1
    print(
        f"\nThe ELBO of held-out digits is largest, {held_out.elbo.value[best]:.2f} ± "
        f"{held_out.elbo.error[best]:.2f} nats per digit, at beta {held_out.beta[best]:g}, with "
        f"{said(held_out, best)}. At beta {held_out.beta[0]:g} the ELBO is "
        f"{held_out.elbo.value[0]:.2f}, with {said(held_out, 0)}. At beta "
        f"{held_out.beta[last]:g} the ELBO is {held_out.elbo.value[last]:.2f}, with "
        f"{said(held_out, last)}."
    )


if __name__ == "__main__":
    main()
