"""What does each plot of `pv.plots` look like, and which lines draw it?

A VAE of handwritten digits (8 x 8, scikit-learn's, binarized by a fixed draw), a comparison of
three guides and a VAE of a table (scikit-learn's wines, with 20% of the entries removed) are
trained. Each function below then draws one plot. Its docstring is the question that the plot
answers, its arguments are the trained objects, and its body can be copied.

Run:  python examples/every_plot.py --out figures      (--smoke for a quick look)
"""

import argparse
import inspect
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_wine

import pyro_vae as pv
from pyro_vae.comparisons import Candidate, Comparison
from pyro_vae.data import Dataset


class Trained(NamedTuple):
    """What the plots are drawn from, by the name of the argument that takes it."""

    digits: Dataset
    model: pv.models.VAE
    guide: pv.Guide
    fit: pv.training.Fit
    comparison: Comparison
    table: pd.DataFrame
    vae: pv.TableVAE


def encoder(width: int) -> pv.Encoder:
    """A network with one hidden layer, from a digit to its posterior."""
    return pv.Encoder(pv.nets.MLPEncoder(64, hidden=(width,)))


def trained(epochs: int, rows: int | None) -> Trained:
    """Trains a VAE of digits, compares three guides of it, and trains a VAE of wines."""
    digits = pv.data.digits()
    parts = ("train", "test", "train_labels", "test_labels")
    digits = replace(digits, **{part: getattr(digits, part)[:rows] for part in parts})
    train, test = digits.train, digits.test
    torch.manual_seed(0)
    decoder = pv.nets.MLPDecoder(4, 64, hidden=(64,))
    model = pv.models.VAE(decoder, pv.likelihoods.Bernoulli(), latent_dim=4)
    guide = pv.Guide(model, encoder(64))
    fit = pv.fit(model, guide, train, num_epochs=epochs, validation=test)

    guides: dict[str, Candidate] = {
        "narrow": encoder(8),
        "wide": encoder(64),
        "full rank": (encoder(64), pv.FullRankNormal()),
    }
    comparison = pv.compare(model, guides, train, test, num_epochs=epochs, train_model=False)

    wines = load_wine(as_frame=True)
    table = wines.data.iloc[:, [0, 1, 5, 6, 9, 12]].mask(
        np.random.default_rng(0).random((len(wines.data), 6)) < 0.2
    )
    table["cultivar"] = pd.Categorical.from_codes(wines.target, list("ABC"))
    vae = pv.TableVAE.of(table)
    vae.fit(num_epochs=2 * epochs)
    return Trained(digits, model, guide, fit, comparison, table, vae)


def plot_learning_curves(fit: pv.training.Fit) -> None:
    """Has training converged, and does the model overfit?"""
    fit.plot()


def plot_comparison(comparison: Comparison) -> None:
    """Which guide has the highest ELBO, and are the differences larger than their errors?"""
    rows = {
        row.guide: {"ELBO": row.estimate("elbo"), "log p": row.estimate("log_p")}
        for row in comparison.rows()
    }
    pv.plots.plot_comparison(rows)


def plot_gaps(comparison: Comparison) -> None:
    """How much does inference lose due to the family, and how much due to the encoder?"""
    means = {name: result.gap.mean for name, result in comparison.results.items()}
    parts = {
        name: {"approximation": mean.approximation, "amortization": mean.amortization}
        for name, mean in means.items()
    }
    pv.plots.plot_gaps(parts)


def plot_gap_shares(comparison: Comparison) -> None:
    """Do a few data cause most of the inference gap?"""
    results = comparison.results.items()
    gaps = {name: result.gap.inference.value for name, result in results}
    pv.plots.plot_gap_shares(gaps)


def plot_per_datum(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """What is log p(y) of each datum, and can each number be trusted?"""
    pv.log_marginal_likelihood(model, guide, digits.test[:100], pv.Tightest()).plot()


def plot_pareto_k(comparison: Comparison) -> None:
    """For which data does the guide miss a part of the posterior?"""
    results = comparison.results.items()
    k = {name: result.test.log_marginal.pareto_k for name, result in results}
    pv.plots.plot_pareto_k(k)


def plot_rank_ecdf(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """Is the guide calibrated, or are its draws too narrow, too wide, too high or too low?"""
    pv.diagnostics.simulation_based_calibration(model, guide, digits.test).plot()


def plot_rank_histograms(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """Which latents have draws that are too narrow, too wide, too high or too low?"""
    ranks = pv.diagnostics.simulation_based_calibration(model, guide, digits.test)
    figure = plt.figure(figsize=(6.4, 4.4), layout="constrained")
    pv.plots.plot_rank_histograms(ranks.by_name, ranks.num_samples, figure=figure)


def plot_predictive_check(model: pv.models.VAE, digits: Dataset) -> None:
    """Could the held-out data come from the model?"""
    check = pv.diagnostics.predictive_check(model, None, digits.test, num_samples=300)
    figure = plt.figure(figsize=(6.4, 5.6), layout="constrained")
    pv.plots.plot_predictive_check(check.observed_by_name, check.replicated_by_name, figure=figure)


def plot_collapse(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """Which latents does the model use?"""
    pv.diagnostics.collapse(model, guide, digits.test).plot()


def plot_aggregated_marginals(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """Do the latents of the data follow the prior?"""
    match = pv.diagnostics.prior_match(model, guide, digits.test)
    figure = plt.figure(figsize=(4.4, 3.6), layout="constrained")
    pv.plots.plot_aggregated_marginals(match.aggregate, match.prior, figure=figure)


def plot_aggregated_plane(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """Does the prior have mass where there are no data?"""
    match = pv.diagnostics.prior_match(model, guide, digits.train)
    pv.plots.plot_aggregated_plane(match.aggregate[:, :2], match.prior[:, :2])


def plot_latent_plane(comparison: Comparison, digits: Dataset) -> None:
    """Where do the data lie in the plane of two latents?"""
    names = ("narrow", "full rank")
    means = {name: comparison.results[name].means[:, :2] for name in names}
    pv.plots.plot_latent_plane(means, digits.test_labels)


def plot_rate_distortion(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """What does a lower rate of the latents cost in distortion?"""
    betas = (0.3, 1, 2, 4)
    curve = pv.diagnostics.rate_distortion(
        model, guide, digits.train, betas, held_out=digits.test, num_epochs=20
    )
    curve.plot()


def plot_signal_to_noise(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """Do more particles make the gradient of an objective noisier?"""
    noise, y = pv.diagnostics.gradient_noise, digits.train[:20]
    ratios = {
        objective.__name__: {
            k: noise(objective(k), model, guide, y, num_repeats=30).of("guide").signal_to_noise
            for k in (4, 16, 64)
        }
        for objective in (pv.IWAE, pv.DReG)
    }
    pv.plots.plot_signal_to_noise(ratios)


def plot_data(digits: Dataset) -> None:
    """What do the data look like?"""
    rows = {str(label): digits.train[digits.train_labels == label][:10] for label in range(3)}
    pv.plots.plot_data(rows, digits.image_shape)


def plot_reconstructions(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """Does the model reconstruct data, and do draws from the prior look like data?"""
    y = digits.test[:10]
    decoded = {"VAE": model.decode(guide.mean(y))}
    drawn = {"VAE": model.decode(model.sample_latents(10))}
    pv.plots.plot_reconstructions(y, decoded, drawn, digits.image_shape)


def plot_traversal(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """What does each latent change?"""
    pv.traverse(model, guide, digits.train).plot(image_shape=digits.image_shape)


def plot_imputation(model: pv.models.VAE, digits: Dataset) -> None:
    """What could the missing entries of a datum be?"""
    y = digits.test[:5].clone()
    y[:, 32:] = torch.nan  # the lower half
    guide = pv.Guide(model, pv.LocalParameters(len(y)))
    pv.fit(model, guide, y, num_epochs=100, train_model=False)
    filled = pv.impute(model, guide, y)
    pv.plots.plot_imputation(y, filled.draws, digits.test[:5], digits.image_shape)


def plot_outliers(model: pv.models.VAE, guide: pv.Guide, digits: Dataset) -> None:
    """Which data are unusual under the model?"""
    y = torch.cat([digits.test[:80], 1 - digits.test[:5]])  # the last five are inverted
    pv.outliers(model, guide, y).plot()


def plot_filled(vae: pv.TableVAE, table: pd.DataFrame) -> None:
    """What could the missing entries of a table be, in the units of its columns?"""
    vae.impute(table.head(40)).plot()


def plot_conditional_density(vae: pv.TableVAE, table: pd.DataFrame) -> None:
    """How is a column distributed, given the other entries of a row?"""
    vae.conditional_density("alcohol", table.iloc[[0, 80, 150]]).plot()


def plot_dependence(vae: pv.TableVAE) -> None:
    """Which columns depend on each other, under the model?"""
    vae.dependence(pv.queries.MutualInformation()).plot()


def plot_similarity(vae: pv.TableVAE, table: pd.DataFrame) -> None:
    """Which rows are alike?"""
    vae.similarity(table.iloc[::10]).plot()


def plot_effects(vae: pv.TableVAE) -> None:
    """Which columns does each latent change, and how much?"""
    vae.explain().plot()


def plot_walks(vae: pv.TableVAE) -> None:
    """How does each latent change the columns, in their units?"""
    vae.traverse().plot()


@matplotlib.rc_context({**pv.plots.STYLE, "font.size": 12})
def draw(function: Callable[..., None], given: Trained, path: Path) -> None:
    """Draws one plot, with the arguments of its function by name, in few colours and large text."""
    function(*(getattr(given, name) for name in inspect.signature(function).parameters))
    picture = io.BytesIO()
    plt.gcf().savefig(picture, dpi=130)
    plt.close()
    Image.open(picture).convert("RGB").quantize(256).save(path)


def main() -> None:
    """Trains the models and draws every plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figures")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small tensors make threads wait for each other
    given = trained(*((1, 40) if arguments.smoke else (100, None)))
    folder = arguments.out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    plots = {name: f for name, f in globals().items() if name.startswith("plot_")}
    for name, function in plots.items():
        draw(function, given, folder / f"{name}.png")
    print(f"\n{len(plots)} plots are in {folder}")


if __name__ == "__main__":
    main()
