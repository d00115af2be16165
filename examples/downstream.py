"""Are embeddings useful for other methods? Classification, clustering and regression.

The data are handwritten digits (scikit-learn's); a pixel is the number of inked dots among 16. A
VAE is trained on the training pictures without their labels, and its encoder embeds all pictures:

    m_n = E[z | y_n], the mean of q(z | y_n),  or draws  z_n ~ q(z | y_n)

Logistic regression, with few labels or with all of them, and k-means, which uses no labels, are
applied to the embedding, to PCA with as many components, and to the pixels. They are scored on
held-out pictures, which neither the encoder nor these methods have seen. A table is treated in the
same way: ridge regression predicts the progression of diabetes after a year from an embedding of
ten measurements of 442 patients. Errors are standard errors over held-out data; those of
differences are computed from the differences of single rows.

Run:  python examples/downstream.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_diabetes
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import pyro_vae as pv
from pyro_vae import sklearn
from pyro_vae.plots import plot_latent_plane
from pyro_vae.queries import encode

LATENTS = 8
Array = NDArray[Any]


def trained(y: Tensor, epochs: int) -> tuple[pv.models.VAE, pv.Guide]:
    """A VAE of counts with many zeros, trained with early stopping on one picture in ten."""
    torch.manual_seed(0)
    likelihood = pv.likelihoods.ZeroInflated(pv.likelihoods.Poisson())
    decoder = pv.nets.MLPDecoder(LATENTS, likelihood.output_shape((64,)), hidden=(128,))
    pv.likelihoods.start_from(decoder, likelihood.start(y))
    model = pv.models.VAE(decoder, likelihood, latent_dim=LATENTS)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(64, hidden=(128,))))
    held = len(y) // 10
    pv.fit(model, guide, y[held:], num_epochs=epochs, validation=y[:held], progress=False)
    return model, guide


def embeddings(
    train: Tensor, test: Tensor, epochs: int, draws: int
) -> dict[str, tuple[Array, Array]]:
    """Training and held-out embeddings, `(draws, pictures, numbers)`; most have a single draw."""
    pca = PCA(LATENTS, whiten=True).fit(train)
    model, guide = trained(train, epochs)

    def encoded(y: Tensor, draws: int | None = None) -> Array:
        return encode(model, guide, y, draws).numpy()

    return {
        "pixels": (train.numpy()[None] / 16, test.numpy()[None] / 16),
        f"PCA, {LATENTS}": (pca.transform(train)[None], pca.transform(test)[None]),
        "VAE, mean": (encoded(train)[None], encoded(test)[None]),
        f"VAE, {draws} draws": (encoded(train, draws), encoded(test, draws)),
    }


def right(pair: tuple[Array, Array], labels: Array, test_labels: Array, number: int) -> Array:
    """Whether each held-out picture is classified correctly, after training on `number` labels.

    Each draw of a training picture counts as a picture; probabilities of a held-out picture are
    averaged over its draws.
    """
    train, test = pair[0][:, :number], pair[1]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(np.concatenate(list(train)), np.tile(labels[:number], len(train)))
    probabilities = np.mean([classifier.predict_proba(draw) for draw in test], axis=0)
    found = classifier.classes_[probabilities.argmax(axis=1)]
    return (found == test_labels).astype(float)


def resampled(score: Any, *arrays: Array, resamples: int = 300) -> tuple[float, Array]:
    """Returns a score of held-out data, and its values on bootstrap resamples of these data."""
    random, rows = np.random.default_rng(0), len(arrays[0])
    chosen = random.integers(rows, size=(resamples, rows))
    return score(*arrays), np.array([score(*(array[i] for array in arrays)) for i in chosen])


def explained(truth: Array, found: Array) -> float:
    """Explained share of the variance of held-out data, R^2."""
    return float(1 - np.mean((truth - found) ** 2) / truth.var())


def progressions(epochs: int) -> dict[str, tuple[float, Array]]:
    """R^2 of ridge regression on all ten columns, four principal components or four latents."""
    source = load_diabetes()
    x, x_new, y, y_new = train_test_split(source.data, source.target, test_size=0.3, random_state=0)
    vae = sklearn.VAE(latent_dim=4, max_epochs=epochs, random_state=0)
    steps: dict[str, list[Any]] = {"all ten": [], "PCA, 4": [PCA(4)], "VAE, 4": [vae]}
    scores = {}
    for name, step in steps.items():
        ridge = RidgeCV(np.logspace(-3, 3, 13))
        pipeline = make_pipeline(StandardScaler(), *step, StandardScaler(), ridge).fit(x, y)
        scores[name] = resampled(explained, y_new, pipeline.predict(x_new))
    return scores


def less(one: tuple[float, Array], other: tuple[float, Array]) -> tuple[float, Array]:
    """Returns the difference of two scores of the same data, and its values on the resamples."""
    return one[0] - other[0], one[1] - other[1]


def shown(name: str, value: float, errors: Array) -> str:
    """Formats a score with its error, the standard deviation over resamples."""
    return f"{name} {value:.3f} ± {errors.std():.3f}"


@matplotlib.rc_context(pv.plots.STYLE)
def draw(
    plane: Array,
    digits: Array,
    accuracy: dict[str, dict[int, Array]],
    clusters: dict[str, tuple[float, Array]],
    path: Path,
) -> None:
    """Draws the held-out embedding, accuracy by number of labels, and agreement of clusters."""
    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    left, rest = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.0, 1.9))[0]
    (ax,) = plot_latent_plane({"held-out digits": plane}, digits, figure=left)
    ax.set(xlabel="widest direction of the embedding", ylabel="second widest")
    middle, last = rest.subplots(1, 2)
    for name, by_number in accuracy.items():
        numbers = np.array(list(by_number))
        means = np.array([hits.mean() for hits in by_number.values()])
        errors = [2 * hits.std() / len(hits) ** 0.5 for hits in by_number.values()]
        middle.errorbar(numbers, means, yerr=errors, marker="o", label=name)
    middle.set(
        xscale="log",
        xlabel="labels to learn from",
        ylabel="held-out accuracy (± 2 standard errors)",
    )
    middle.legend(frameon=False, fontsize="small")
    for place, (value, others) in enumerate(clusters.values()):
        last.errorbar(value, place, xerr=2 * others.std(), fmt="o", color=f"C{place}")
    last.set_yticks(range(len(clusters)), list(clusters))
    last.invert_yaxis()
    last.set_xlabel("clusters against digits: adjusted\nRand index (± 2 standard errors)")
    figure.savefig(path, dpi=110)


def learned(
    embedded: dict[str, tuple[Array, Array]], labels: Array, test_labels: Array
) -> tuple[dict[str, dict[int, Array]], dict[str, tuple[float, Array]]]:
    """Returns which pictures are classified correctly, and how well clusters match the digits."""
    accuracy, clusters = {}, {}
    for name, pair in embedded.items():
        accuracy[name] = {
            number: right(pair, labels, test_labels, number)
            for number in (50, 100, 300, len(labels))
        }
        if "draws" not in name:
            kmeans = KMeans(10, n_init=20, random_state=0).fit(pair[0][0])
            found = kmeans.predict(pair[1][0])
            clusters[name] = resampled(adjusted_rand_score, test_labels, found)
        hits = (
            f"{part.mean():.3f} ± {part.std() / len(part) ** 0.5:.3f} from {number}"
            for number, part in accuracy[name].items()
        )
        print(f"{name:14s} accuracy by labels: {', '.join(hits)}")
    return accuracy, clusters


def conclude(
    accuracy: dict[str, dict[int, Array]],
    clusters: dict[str, tuple[float, Array]],
    scores: dict[str, tuple[float, Array]],
) -> None:
    """Prints how much the VAE's embedding gains over the others, with errors."""
    said = []
    for number in (50, max(accuracy["pixels"])):
        for other in ("pixels", f"PCA, {LATENTS}"):
            gain = accuracy["VAE, mean"][number] - accuracy[other][number]
            error = gain.std() / len(gain) ** 0.5
            said.append(f"{gain.mean():+.3f} ± {error:.3f} against {other} from {number} labels")
    closer = less(clusters["VAE, mean"], clusters["pixels"])
    lost = less(scores["VAE, 4"], scores["all ten"])
    print(
        f"\nAccuracy from {LATENTS} latent means per digit, minus accuracy from other inputs: "
        f"{'; '.join(said)}. Adjusted Rand index of k-means on the latent means, minus that on "
        f"pixels: {closer[0]:+.3f} ± {closer[1].std():.3f}. R^2 from four latents per patient, "
        f"minus R^2 from all ten columns: {lost[0]:+.3f} ± {lost[1].std():.3f}."
    )


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    rows, epochs, draws = (200, 2, 2) if arguments.smoke else (None, 60, 10)

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    digits = pv.data.digits(binarization=pv.data.Grey())
    train, test = (16 * digits.train[:rows]).round(), (16 * digits.test[:rows]).round()
    labels, test_labels = (
        np.array(part)[:rows] for part in (digits.train_labels, digits.test_labels)
    )
    embedded = embeddings(train, test, epochs, draws)
    accuracy, clusters = learned(embedded, labels, test_labels)
    scores = progressions(300 if rows is None else 2)
    print("adjusted Rand index:", "; ".join(shown(n, *part) for n, part in clusters.items()))
    print("R^2 of the progression:", "; ".join(shown(n, *part) for n, part in scores.items()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    first, new = (part[0] for part in embedded["VAE, mean"])
    plane = PCA(2).fit(first).transform(new)
    draw(plane, test_labels, accuracy, clusters, arguments.out / "downstream.png")
    conclude(accuracy, clusters, scores)


if __name__ == "__main__":
    main()
