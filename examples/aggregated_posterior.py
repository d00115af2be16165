"""How far is the aggregated posterior from the prior, and do generated images show it?

The data are handwritten digits (8 x 8, scikit-learn's, binarized by a fixed draw), and the models
have two latents. A decoder is trained on draws of the aggregated posterior q(z), the mean of q(z |
y_n) over the data, but generates images from draws of the prior p(z). "ELBO surgery" splits the
rate into two parts:

    rate = I(n; z), the information about which datum it is  +  KL(q(z) || p(z)), the mismatch

One VAE is trained by its ELBO. Another is trained with a weight of only 0.01 on the rate, and so
reconstructs better. Each generates images from draws of q(z) and from draws of the prior. The score
of an image is its log p(y) under a third, independently trained VAE: the higher the score, the more
the image looks like a digit.

Run:  python examples/aggregated_posterior.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv
from pyro_vae import stats
from pyro_vae.diagnostics import PriorMatch, prior_match, surgery
from pyro_vae.plots import plot_aggregated_plane

Programs = tuple[pv.models.VAE, pv.Guide]
BETAS = (1.0, 0.01)
IMAGES = 7


def trained(y: Tensor, latents: int, beta: float, epochs: int) -> Programs:
    """A new VAE and its guide, trained with the weight `beta` on the rate."""
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(latents, 64, hidden=(64,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=latents)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(64, hidden=(64,))))
    pv.fit(model, guide, y, objective=pv.BetaELBO(beta), num_epochs=epochs)
    return model, guide


def score(judge: Programs, y: Tensor, samples: int) -> tuple[float, float]:
    """Mean log p(y) of images under the judge, with the standard error over images."""
    lml = pv.evaluate(*judge, y, pv.ImportanceSampling(samples)).log_marginal
    value, error = stats.population_mean(lml.value)
    return float(value), float(error)


def draw(models: dict[float, pv.models.VAE], matches: dict[float, PriorMatch], path: Path) -> None:
    """Draws for each weight the latent plane, and images decoded from q(z) and from the prior."""
    figure = Figure(figsize=(8.0, 5.6), layout="constrained")
    columns = figure.subfigures(1, len(models), squeeze=False)[0]
    for column, (beta, model) in zip(columns, models.items(), strict=True):
        match = matches[beta]
        column.suptitle(f"weight of the rate: {beta:g}")
        top, bottom = column.subfigures(2, 1, squeeze=False, height_ratios=(3.0, 1.0))[:, 0]
        plot_aggregated_plane(match.aggregate, match.prior, ax=top.subplots())
        axes = bottom.subplots(2, IMAGES)
        rows = {"q(z)": match.aggregate, "prior": match.prior}
        for row, (name, z) in zip(axes, rows.items(), strict=True):
            for ax, picture in zip(row, model.decode(z[:IMAGES].float()), strict=True):
                ax.imshow(picture.view(8, 8), cmap="gray", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
            row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    epochs, samples, rows = (2, 20, 60) if arguments.smoke else (120, 300, None)

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    train = pv.data.digits().train[:rows]
    judge = trained(train, 8, 1.0, epochs)
    models, matches, said = {}, {}, []
    for beta in BETAS:
        model, guide = trained(train, 2, beta, epochs)
        parts, match = surgery(model, guide, train), prior_match(model, guide, train)
        models[beta], matches[beta] = model, match
        print(f"\nweight {beta:g}: {parts.summary()}\n  {match.verdict}")
        scores = []
        for name, z in {"q(z)": match.aggregate, "the prior": match.prior}.items():
            torch.manual_seed(0)
            images = model.sample_data(z[: rows or 500].float())
            scores.append(score(judge, images, samples))
            print(f"  images from {name:9s} log p(y) = {scores[-1][0]:.2f} ± {scores[-1][1]:.2f}")
        (aggregate, one), (prior, other) = scores
        said.append(
            f"with a weight of {beta:g} on the rate, KL(q(z) || p(z)) is "
            f"{parts.mismatch.value:.3f} ± {parts.mismatch.error:.3f} nats, and log p(y) of "
            f"images from the prior minus that of images from q(z) is {prior - aggregate:+.1f} ± "
            f"{(one**2 + other**2) ** 0.5:.1f}"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(models, matches, arguments.out / "aggregated_posterior.png")
    print(f"\nBy a third model's judgement: {'; '.join(said)}.")


if __name__ == "__main__":
    main()
