"""How much does the choice of a guide matter? Your own program under three guides.

The data are handwritten digits (8 x 8, scikit-learn's, binarized by a fixed draw). The generative
model is written by hand in Pyro:

    z_n ~ N(0, I),    y_n | z_n ~ Bernoulli(logits = net(z_n))

It is trained under three guides: an encoder (one network for all digits), free parameters for every
digit, and one q(z) for all digits, which is meant to fail. The held-out log p(y), estimated with a
standard error, shows which of the three models has learned most.

Run:  python examples/quickstart.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyro_vae as pv

LATENTS = 8


class Digits(PyroModule):
    """The generative program: any Pyro program with one plate over data will do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(LATENTS, 128), nn.ELU(), nn.Linear(128, 64))

    def forward(self, y: Tensor) -> None:
        """Samples z and observes y, for a batch of rows."""
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("y", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=y)

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(y | z), for the pictures."""
        with torch.no_grad():
            return self.net(z).sigmoid()


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    epochs, samples, rows = (3, 50, 20) if arguments.smoke else (200, 1000, None)

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    digits = pv.data.digits()
    train, test = digits.train[:rows], digits.test[:rows]
    torch.manual_seed(0)
    table = pv.compare(
        Digits(),
        {
            "amortized": pv.Encoder(pv.nets.MLPEncoder(64, hidden=(128,))),
            "per-datum": pv.LocalParameters(len(train)),
            "global": pv.GlobalParameters(),
        },
        train,
        test,
        num_epochs=epochs,
        evaluation=pv.ImportanceSampling(samples),
        image_shape=digits.image_shape,
    )
    print(table.summary())

    arguments.out.mkdir(parents=True, exist_ok=True)
    figure = table.plot()["reconstructions"]
    figure.savefig(arguments.out / "quickstart.png", dpi=150)

    best = max(table.rows(), key=lambda row: row.number("log_p"))
    worst = next(row for row in table.rows() if row.guide == "global")
    print(
        f"\nThe best model was trained under the {best.guide} guide. Its log p is "
        f"{best.number('log_p') - worst.number('log_p'):.1f} nats per digit above that of the "
        "model with the global guide. The rate of the global guide is "
        f"{worst.number('rate'):.3f} nats: no latent is used, and every reconstruction is the mean "
        "digit."
    )


if __name__ == "__main__":
    main()
