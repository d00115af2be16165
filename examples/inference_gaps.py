"""Is a VAE's inference gap due to the family of q or to the encoder, and does a wider encoder help?

A VAE of handwritten digits (8 x 8, scikit-learn's, binarized by a fixed draw) is trained with an
encoder. Then the model is fixed: a model adapts to its guide, so gaps under different models cannot
be compared. New encoders of several widths are trained for this model, with a mean-field and with a
full-rank Gaussian. The inference gap of each is split into two parts (Cremer et al., 2018):

    log p(y) - ELBO = approximation gap, of the family  +  amortization gap, of the encoder

This is done for digits that the encoders were trained on and for held-out digits. The amortization
gap is larger for held-out digits if the encoder overfits.

Run:  python examples/inference_gaps.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv
from pyro_vae.gaps import InferenceGap, generalization
from pyro_vae.guides import Family
from pyro_vae.plots.estimates import plot_gap_shares, plot_gaps

LATENTS = 8
FAMILIES: dict[str, Family] = {"mean-field": pv.DiagonalNormal(), "full rank": pv.FullRankNormal()}
Gaps = dict[str, tuple[InferenceGap, InferenceGap]]  # trained on, held out


def trained(
    y: Tensor, width: int, family: Family, epochs: int, model: pv.models.VAE | None = None
) -> tuple[pv.models.VAE, pv.Guide]:
    """Trains an encoder of this width, and with it a new model if none is given."""
    torch.manual_seed(0)
    is_new = model is None
    if model is None:
        decoder = pv.nets.MLPDecoder(LATENTS, y.shape[1], hidden=(64, 64))
        model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=LATENTS)
    net = pv.nets.MLPEncoder(y.shape[1], hidden=(width, width))
    guide = pv.Guide(model, pv.Encoder(net), family)
    pv.fit(model, guide, y, num_epochs=epochs, train_model=is_new)
    return model, guide


def table(gaps: Gaps) -> str:
    """Formats both gaps on training and held-out data, and the encoder's generalization cost."""
    lines = [
        f"{'nats per datum':22}{'approximation':>26}{'amortization':>26}{'generalization':>20}"
    ]
    for name, pair in gaps.items():
        parts = ["  ".join(f"{float(g.mean[i].value):8.3f}" for g in pair) for i in (4, 5)]
        value, error = generalization(*pair).amortization
        last = f"{float(value):+.3f} ± {float(error):.3f}"
        lines.append(f"{name:22}{parts[0]:>26}{parts[1]:>26}{last:>20}")
    return "\n".join([*lines, "(for each gap: training data, then held-out data)"])


def draw(gaps: Gaps, path: Path) -> None:
    """Draws both gaps on held-out data, and how few data cause most of the amortization gap."""
    figure = Figure(figsize=(9.6, 7.0), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    parts = {
        name: {"approximation": gap.mean.approximation, "amortization": gap.mean.amortization}
        for name, (_, gap) in gaps.items()
    }
    plot_gaps(parts, ax=top)
    shares = {
        name: gap.amortization.value for name, (_, gap) in gaps.items() if "mean-field" in name
    }
    plot_gap_shares(shares, ax=bottom)
    bottom.set(xlabel="held-out data, largest first (%)", ylabel="share of amortization gap (%)")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--data", choices=("digits", "fashion-mnist"), default="digits")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    epochs, samples, rows, widths = (
        (1, 50, 3, (4, 8)) if arguments.smoke else (60, 500, 150, (8, 32, 128))
    )

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    is_fashion = arguments.data == "fashion-mnist"  # from Debian's package dataset-fashion-mnist
    data = pv.data.fashion_mnist(num_train=5000, num_test=500) if is_fashion else pv.data.digits()
    y, held_out = data.train[: rows if arguments.smoke else None], data.test[:rows]
    model, _ = trained(y, 64, FAMILIES["mean-field"], epochs)
    gaps: Gaps = {}
    for family_name, family in FAMILIES.items():
        for width in widths:
            _, guide = trained(y, width, family, epochs, model)
            of = [
                pv.inference_gap(model, guide, part, num_samples=samples)
                for part in (y[:rows], held_out)
            ]
            gaps[f"{family_name}, {width}-{width}"] = (of[0], of[1])
    print(f"\n{table(gaps)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(gaps, arguments.out / "inference_gaps.png")

    narrow, wide = (gaps[f"mean-field, {width}-{width}"] for width in (widths[0], widths[-1]))
    full = gaps[f"full rank, {widths[-1]}-{widths[-1]}"][1].mean
    print(
        f"\nOn held-out data the mean-field family costs {narrow[1].mean.approximation.value:.3f} "
        f"nats per datum and full rank {full.approximation.value:.3f}. A mean-field encoder costs "
        f"{narrow[1].mean.amortization.value:.3f} with {widths[0]} units per layer and "
        f"{wide[1].mean.amortization.value:.3f} with {widths[-1]}. On training data the two "
        f"encoders cost {narrow[0].mean.amortization.value:.3f} and "
        f"{wide[0].mean.amortization.value:.3f}."
    )


if __name__ == "__main__":
    main()
