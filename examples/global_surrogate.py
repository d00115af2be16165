"""Why does one q(z) for all data fail? First on squares, with an exact answer, then on digits.

Half of the pictures are all 0 and half are all 1. If q(z) does not depend on the picture, the
highest possible ELBO is

    max over eta of  mean_n log p(y_n | eta)  =  - D log 2       (D pixels, all grey, q = prior)

for any decoder and any family, because z carries no information and the best decoder ignores it. A
guide that depends on the picture pays a rate of about log 2 to say which kind of picture it is, and
loses little else. On digits the same happens: every reconstruction under the global guide is the
mean digit. At this optimum the bound is tight and Pareto k is perfect. Only the rate, the mutual
information and log p itself reveal the failure.

Run:  python examples/global_surrogate.py --out figures      (--smoke for a quick look)
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae.comparisons import Comparison
from pyro_vae.data import Dataset


def compare(dataset: Dataset, *, epochs: int, samples: int, rows: int | None) -> Comparison:
    """Compares a VAE with two latents under an encoder and under one q(z) for all data."""
    features = dataset.train.shape[1]
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(2, features, hidden=(128,))
    return pv.compare(
        pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=2),
        {
            "amortized": pv.Encoder(pv.nets.MLPEncoder(features, hidden=(128,))),
            "global": pv.GlobalParameters(),
        },
        dataset.train[:rows],
        dataset.test[:rows],
        num_epochs=epochs,
        evaluation=pv.ImportanceSampling(samples),
        image_shape=dataset.image_shape,
    )


def draw(tables: dict[str, Comparison], path: Path) -> None:
    """Draws originals, reconstructions and prior draws, with both data sets side by side."""
    figure = Figure(figsize=(11.0, 4.4), layout="compressed")
    panels = figure.subfigures(1, len(tables), squeeze=False)[0]
    for panel, table in zip(panels, tables.values(), strict=True):
        originals = table.test[0][:6]
        means = {name: result.means[:6] for name, result in table.results.items()}
        models = {name: result.model for name, result in table.results.items()}
        torch.manual_seed(0)
        pv.plots.plot_reconstructions(
            originals,
            {name: models[name].decode(z.float()) for name, z in means.items()},
            {name: models[name].decode(torch.randn(6, 2)) for name in models},
            table.image_shape,
            figure=panel,
        )
    figure.savefig(path, dpi=150, bbox_inches="tight")  # sub-figures would cut labels off


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    epochs, samples, side, rows = (3, 50, 4, 8) if arguments.smoke else (200, 1000, 16, None)

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    tables = {
        name: compare(dataset, epochs=epochs, samples=samples, rows=rows)
        for name, dataset in {
            "squares": pv.data.squares(400, side, num_test=100),
            "digits": pv.data.digits(),
        }.items()
    }
    for name, table in tables.items():
        print(f"\n{name}\n\n{table.summary()}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(tables, arguments.out / "global_surrogate.png")

    amortized, surrogate = tables["squares"].rows()
    print(
        f"\nSquares: the highest ELBO of any global q is -{side**2} log 2 = "
        f"{-(side**2) * math.log(2):.2f} nats. The trained one has {surrogate.number('elbo'):.2f} "
        f"and a rate of {surrogate.number('rate'):.4f}. The encoder has "
        f"{amortized.number('elbo'):.2f}; exact inference reaches -log 2 = {-math.log(2):.2f}."
    )


if __name__ == "__main__":
    main()
