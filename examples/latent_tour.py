"""What is in a latent space, and what can be done with it? A tour of eight latents.

A VAE is trained on handwritten digits (8 x 8, scikit-learn's, binarized by a fixed draw). The tour
shows

- reconstructions, at the mean of q(z | y) and at a draw from it;
- paths from one digit to another, along a straight line and along the sphere near which prior draws
  lie;
- the effect of each latent, the most informative first;
- images generated from the prior and from the aggregated posterior;
- whether the model recognizes images that are not digits, by the tail probability of an image y
  among R held-out digits y_r:

    tail probability of y = (1 + number of r with log p(y_r) <= log p(y)) / (R + 1)

For another held-out digit this number is below 0.05 with a probability of at most 0.05, however
poor the model is. For rotated digits, and for noise with the same frequency of dark pixels, it
should be below 0.05 more often.

Run:  python examples/latent_tour.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv
from pyro_vae import diagnostics, queries, stats
from pyro_vae.plots import plot_data, plot_traversal

LATENTS, COLUMNS, SHAPE = 8, 8, (8, 8)
ALARMS = stats.FalseAlarms(0.05)


def trained(y: Tensor, epochs: int) -> tuple[pv.models.VAE, pv.Guide]:
    """A VAE of digits and its guide, trained together."""
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(LATENTS, 64, hidden=(64, 64))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=LATENTS)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(64, hidden=(64, 64))))
    pv.fit(model, guide, y, num_epochs=epochs)
    return model, guide


def paths(a: Tensor, b: Tensor, steps: int = COLUMNS) -> dict[str, Tensor]:
    """Latents on a straight and a spherical path between digits, `(steps, *batch, latents)`."""
    return {
        "straight": queries.interpolate(a, b, steps, queries.Linear()),
        "sphere": queries.interpolate(a, b, steps, queries.Spherical()),
    }


def strangers(y: Tensor) -> dict[str, Tensor]:
    """Held-out digits, the same digits rotated, and noise that is as dark in each pixel."""
    noise = torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) < y.mean(dim=0)
    on_side = y.unflatten(1, SHAPE).rot90(dims=(1, 2)).flatten(1)
    return {"digits": y, "on their sides": on_side, "noise": noise.float()}


@matplotlib.rc_context(pv.plots.STYLE)
def draw(
    rows: dict[str, dict[str, Tensor]],
    traversal: queries.Traversal,
    found: dict[str, tuple[Tensor, queries.Outliers]],
    path: Path,
) -> None:
    """Draws the six panels of the tour."""
    figure = Figure(figsize=(10.0, 8.6), layout="constrained")
    places = figure.subfigures(3, 2, squeeze=False, height_ratios=(3.0, 5.0, 3.0))
    titles = list(rows)
    for place, title in zip((places[0, 0], places[0, 1], places[2, 0]), titles, strict=True):
        place.suptitle(title)
        plot_data(rows[title], SHAPE, figure=place)
    places[1, 0].suptitle("one latent at a time, by quantile")
    most = slice(5)  # of the latents
    labels, pictures = traversal.labels[most], traversal.decoded[most]
    plot_traversal(pictures, labels, traversal.levels, SHAPE, figure=places[1, 0])
    places[1, 1].suptitle("tail probabilities")
    ax = places[1, 1].subplots()
    for name, (y, out) in found.items():
        shares = torch.arange(1, len(y) + 1) / len(y)
        ax.plot(shares, out.tail_probability.value.sort().values, label=name)
    ax.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    ax.set(xlabel="share of images", ylabel="tail probability")
    ax.legend()
    places[2, 1].suptitle("images, and their tail probabilities")
    shown = {name: y[:COLUMNS] for name, (y, _) in found.items()}
    grid = plot_data(shown, SHAPE, figure=places[2, 1])
    for ax, (_, out) in zip(grid, found.values(), strict=True):
        tails = [f"{float(tail):.3f}" for tail in out.tail_probability.value[:COLUMNS]]
        ax.set_xticks([place + 0.5 for place in range(len(tails))], tails, fontsize="small")
        ax.tick_params(length=0)
    figure.savefig(path, dpi=90)


def pictures(
    model: pv.models.VAE, guide: pv.Guide, eight: Tensor, z: Tensor
) -> dict[str, dict[str, Tensor]]:
    """Reconstructions of eight digits, paths between two digits, and generated images."""
    made = queries.reconstruction_draws(model, guide, eight)[0]
    means, at_draw = (queries.encode(model, guide, eight, number) for number in (None, 1))
    farthest = (z - z[0]).norm(dim=-1).argmax()
    torch.manual_seed(0)
    return {
        "reconstructions": {
            "data": eight,
            "at the mean": model.decode(means),
            "at a draw": model.decode(at_draw[0]),
            "data drawn": made,
        },
        "from one digit to another": {
            name: model.decode(way) for name, way in paths(z[0], z[farthest]).items()
        },
        "generated": {
            "q(z)": model.decode(z[torch.randperm(len(z))[:COLUMNS]]),
            "prior": model.decode(model.sample_latents(COLUMNS)),
        },
    }


def say_lengths(z: Tensor) -> None:
    """Prints the mean norm of z half way between two digits, and at the digits."""
    half = len(z) // 2
    for name, way in paths(z[:half], z[half : 2 * half], 3).items():
        middle, error = stats.population_mean(way[1].norm(dim=-1))
        print(f"half way, {name:9s} |z| = {float(middle):.2f} ± {float(error):.2f}")
    typical = stats.population_mean(z.norm(dim=-1))
    print(f"at the digits       |z| = {float(typical.value):.2f} ± {float(typical.error):.2f}")


def say_tails(found: dict[str, tuple[Tensor, queries.Outliers]]) -> None:
    """Prints the shares of digits and of other images that have a small tail probability."""
    said = []
    for name, (_, out) in found.items():
        share, error = stats.population_mean(out.flagged(ALARMS).double())
        print(f"{name:15s} {out.log_p.summary()}")
        said.append(f"{float(share):.1%} ± {float(error):.1%} of {name}")
    print(f"\nThe tail probability is below 0.05 for {', '.join(said)}.")


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    epochs, samples, some = (2, 50, 20) if arguments.smoke else (150, 500, None)

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    digits = pv.data.digits()
    train, reference, test = digits.train[:some], digits.test[:180][:some], digits.test[180:][:some]
    model, guide = trained(train, epochs)

    z = queries.encode(model, guide, train, 1, seed=1)[0]
    rows = pictures(model, guide, test[:COLUMNS], z)
    traversal = queries.traverse(model, guide, train)
    found = {
        name: (y, queries.outliers(model, guide, y, reference, pv.ImportanceSampling(samples)))
        for name, y in strangers(test).items()
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(rows, traversal, found, arguments.out / "latent_tour.png")

    split = diagnostics.surgery(model, guide, train)
    print(f"\n{split.summary()}\n\nlatents by information: {', '.join(traversal.labels)}\n")
    say_lengths(z)
    say_tails(found)


if __name__ == "__main__":
    main()
