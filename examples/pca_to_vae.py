"""From PCA to the VAE: what does each step gain on data that the model has not seen?

The data are thirty measurements of 569 breast tumours (scikit-learn's), standardized with the mean
and standard deviation of the 400 tumours that models are fitted to. The first model is fitted in
four ways: three use closed-form updates, and in the fourth a network has to learn the posterior.
The other two models are less restricted:

    pPCA            y_n | z_n ~ N(W z_n + mu, sigma^2 I)        closed form; EM; CAVI; linear VAE
    factor analysis y_n | z_n ~ N(W z_n + mu, diag sigma^2)     EM
    deep VAE        y_n | z_n ~ N(net(z_n), diag sigma^2)       a network for q(z | y), too

In the first two models p(z | y) is Gaussian, with a mean linear in y and the same covariance for
all data, so the E-step of EM is exact. A linear encoder can be exact as well. The mean-field family
of CAVI and of the linear VAE costs nothing at the optimum, because W can be rotated until the
latents are independent. If the decoder is a network, p(z | y) is no longer Gaussian, and the
approximate posterior leaves a gap.

Run:  python examples/pca_to_vae.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evidence import LogMarginal
from pyro_vae.gaps import InferenceGap
from pyro_vae.models import Diagonal, LinearGaussian
from pyro_vae.plots.estimates import plot_gaps

FEATURES, FLOOR = 30, 0.05  # the lower bound of a noise sd, for columns with sd 1
Pair = tuple[pv.models.Generative, pv.Guide]


def in_closed_form(y: Tensor, latents: int) -> dict[str, Pair]:
    """Models fitted by maximum likelihood, with the exact posterior as guide."""
    closed = LinearGaussian(latents, FEATURES)
    closed.fit_closed_form(y)
    ppca = LinearGaussian(latents, FEATURES)
    ppca.fit_em(y)
    factors = LinearGaussian(latents, FEATURES, Diagonal(FLOOR))
    factors.fit_em(y)
    models = {"pPCA, closed form": closed, "pPCA, EM": ppca, "factor analysis, EM": factors}
    return {
        name: (model, pv.Guide(model, pv.ExactPosterior(), pv.FullRankNormal()))
        for name, model in models.items()
    }


def by_gradients(y: Tensor, latents: int, epochs: int) -> dict[str, Pair]:
    """Models trained by gradients, together with their guides."""
    torch.manual_seed(0)
    ascent, linear = (LinearGaussian(latents, FEATURES) for _ in range(2))
    decoder = pv.nets.MLPDecoder(latents, FEATURES, hidden=(64,))
    sigma = pv.likelihoods.LearnedSigma(FEATURES, floor=FLOOR)
    deep = pv.models.VAE(decoder, pv.likelihoods.Gaussian(sigma), latents)
    pairs: dict[str, Pair] = {
        "pPCA, CAVI": (ascent, pv.Guide(ascent, pv.CoordinateAscent())),
        "pPCA, linear VAE": (
            linear,
            pv.Guide(linear, pv.Encoder(nn.Linear(FEATURES, 2 * latents))),
        ),
        "deep VAE": (deep, pv.Guide(deep, pv.Encoder(pv.nets.MLPEncoder(FEATURES, (64,))))),
    }
    for name, steps in (("pPCA, CAVI", epochs), ("pPCA, linear VAE", 2 * epochs)):
        pv.fit(*pairs[name], y, num_epochs=steps, batch_size=len(y), optimizer=_adam)
    pv.fit(*pairs["deep VAE"], y, num_epochs=epochs, batch_size=100, optimizer=_slower)
    return pairs


def _adam(tensors: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(tensors, lr=0.05)


def _slower(tensors: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(tensors, lr=0.005)


@matplotlib.rc_context(pv.plots.STYLE)
def draw(
    tables: dict[int, dict[str, LogMarginal]], gaps: dict[str, InferenceGap], path: Path
) -> None:
    """Draws held-out log p by method and number of latents, and the gaps of four guides."""
    figure = Figure(figsize=(11.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 0.8))
    marks = dict(zip(next(iter(tables.values())), "xo^s+D", strict=True))
    for name, mark in marks.items():
        values = [float(table[name].mean.value) for table in tables.values()]
        size = {"o": 10, "s": 14, "+": 18}.get(mark, 6)  # the first four lie on one another
        left.plot(list(tables), values, mark + "-", label=name, mfc="none", markersize=size)
    left.set(xlabel="latents", ylabel="held-out log p(y) (nats per tumour)", xticks=list(tables))
    left.legend(fontsize="small", loc="lower right")
    parts = {
        name: {"approximation": gap.mean.approximation, "amortization": gap.mean.amortization}
        for name, gap in gaps.items()
    }
    plot_gaps(parts, ax=right)
    figure.savefig(path, dpi=110)


def tumours() -> tuple[Tensor, Tensor, Tensor]:
    """400 training rows, the other rows, and the training sds; all rows are standardized."""
    y = torch.as_tensor(load_breast_cancer().data)
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    mean, sd = y[:400].mean(dim=0), y[:400].std(dim=0)
    return (y[:400] - mean) / sd, (y[400:] - mean) / sd, sd


def conclude(
    last: dict[str, LogMarginal], gaps: dict[str, InferenceGap], sd: Tensor, number: int
) -> None:
    """Prints paired differences between models with `number` latents, and gaps of guides."""
    print(
        f"\nNumbers are in nats per standardized tumour; for the units of the table, add the log "
        f"of the Jacobian, {-float(sd.log().sum()):.3f}. Paired differences with {number} latents:"
    )
    for one, other in (
        ("pPCA, EM", "pPCA, closed form"),
        ("pPCA, CAVI", "pPCA, closed form"),
        ("pPCA, linear VAE", "pPCA, closed form"),
        ("factor analysis, EM", "pPCA, closed form"),
        ("deep VAE", "factor analysis, EM"),
    ):
        pair = pv.criticism.paired_difference(last[one], last[other])
        print(f"  {one} minus {other}: {pair.summary()}")
    print(
        f"The q(z) of EM leaves a gap of {float(gaps['pPCA, EM'].mean.inference.value):.4f} nats, "
        f"that of the linear VAE {float(gaps['pPCA, linear VAE'].mean.inference.value):.4f}, and "
        f"that of the deep VAE {float(gaps['deep VAE'].mean.inference.value):.3f}."
    )


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    latents, epochs, samples, rows = (
        ((1, 2), 3, 50, 5) if arguments.smoke else ((2, 4, 8), 400, 500, 60)
    )

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    torch.set_default_dtype(torch.float64)  # so that exact answers agree to the last digits
    train, test, sd = tumours()
    test = test[:rows] if arguments.smoke else test
    tables, pairs = {}, {}
    for number in latents:
        pairs = in_closed_form(train, number) | by_gradients(train, number, epochs)
        tables[number] = {
            name: pv.log_marginal_likelihood(*pair, test, pv.Tightest(samples))
            for name, pair in pairs.items()
        }
        print(f"\n{number} latents\n{pv.criticism.compare_models(tables[number]).summary()}")
    gaps = {
        name: pv.inference_gap(*pairs[name], test[:rows], num_samples=samples)
        for name in ("pPCA, EM", "pPCA, CAVI", "pPCA, linear VAE", "deep VAE")
    }
    for name, gap in gaps.items():
        print(f"\n{name}, {latents[-1]} latents: {gap.summary()}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(tables, gaps, arguments.out / "pca_to_vae.png")
    conclude(tables[latents[-1]], gaps, sd, latents[-1])


if __name__ == "__main__":
    main()
