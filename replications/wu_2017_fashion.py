"""Annealed importance sampling at the size of the source's networks, on Fashion-MNIST."""

import pyro_vae as pv

from .cremer_2018 import trained
from .record import Claim, Finding
from .wu_2017 import Sizes, annealed, bounds, is_low, shown

CLAIM = Claim(
    title="On images, a bound with 10,000 draws is low where annealing from the encoder is not",
    source=(
        "Wu, Burda, Salakhutdinov & Grosse, 2017: On the Quantitative Analysis of Decoder-Based "
        "Generative Models (sections 4 and 5)"
    ),
    figures="None is compared but orders and directions, which are quoted.",
    setting=(
        "Fashion-MNIST in place of MNIST, binarized by a fixed draw; 5,000 images, 784-200-200-50 "
        "with ELU, 20 epochs; 12 held-out images, 16 chains. The reference is annealing from the "
        "encoder with 1,000 temperatures, where the source has 10,000; the bound's expectation is "
        "the mean of ten bounds with draws of their own."
    ),
    criterion=(
        "(a) From the encoder with 20 temperatures the estimate is nearer to the reference than "
        "from the prior with 200. (b) The ELBO and the bound with 10,000 draws are lower than the "
        "reference by more than four errors. (c) On data simulated from the model, bounds from "
        "both sides with 500 temperatures are within 1 nat on average."
    ),
)


def findings(*, smoke: bool = False) -> list[Finding]:
    """Two starts against a long run, two bounds, and a sandwich."""
    images, epochs, rows = (300, 1, 2) if smoke else (5_000, 20, 12)
    draws, repeats = (100, 3) if smoke else (10_000, 10)
    sizes = Sizes(50, 20, 20) if smoke else Sizes(1_000, 200, 500)
    data = pv.data.digits() if smoke else pv.data.fashion_mnist(num_train=images, num_test=rows)
    model, guide = trained(data.train[:images], 200, pv.DiagonalNormal(), epochs)
    y = data.test[:rows]
    found = annealed(model, guide, y, sizes)
    bound = bounds(model, guide, y, draws, repeats)
    low = [is_low(f"off it: bound with {draws:,} draws", bound, found.reference)]
    return shown(found, sizes, low)
