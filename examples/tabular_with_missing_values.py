"""How well does a VAE impute missing entries of a table with columns of several kinds?

The table has 178 wines (scikit-learn's) and 14 columns: eleven standardized measurements, the
cultivar (one of three), the colour in four steps from pale to dark, and whether there are many or
few proanthocyanins. Three entries in ten are removed at random. A VAE with a likelihood for each
column is trained on the remaining entries:

    z_n ~ N(0, I),    log p(y_n | z_n) = sum over the observed columns d of log p_d(y_nd | z_n)

Its encoder also gets a mask of the missing entries. In five folds, the VAE imputes wines that it
was not trained on, with draws from p(missing | observed). It is compared with the means (or most
frequent categories) of the columns, and with scikit-learn's IterativeImputer, which regresses each
column on all others. The imputer is used with its default penalty, and with a stronger penalty,
which these few rows need. This penalty, the number of latents and the length of training were
chosen on the same folds. Standard errors are bootstrapped over wines.

Run:  python examples/tabular_with_missing_values.py --out figures      (--smoke for a quick look)
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.datasets import load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (makes the next import work)
from sklearn.impute import IterativeImputer
from sklearn.linear_model import BayesianRidge, Ridge
from sklearn.model_selection import KFold
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.data import Categories, Columns, Real
from pyro_vae.defaults import mixed
from pyro_vae.plots import plot_imputation
from pyro_vae.queries import Imputation, impute
from pyro_vae.training.optimizers import adam_with

LATENTS = 2
REGRESSIONS = {
    "IterativeImputer": BayesianRidge(),  # its default
    "IterativeImputer, ridge": Ridge(alpha=30.0),
}
SCORES = ("error of numbers (sd)", "log density of numbers (nats)", "share of codes right")
METHODS = ("column means", *REGRESSIONS, "VAE")
Array = NDArray[np.float64]


class Filled(NamedTuple):
    """Imputed numbers and codes, `(rows, columns)`, and the standard deviations of the numbers."""

    value: Array
    sd: Array


class Sizes(NamedTuple):
    """Sizes of the run."""

    folds: int
    epochs: int
    samples: int
    rounds: int
    draws: int


def wines() -> pd.DataFrame:
    """The table before entries are removed."""
    source = load_wine(as_frame=True)
    table = source.data.rename(columns=lambda name: name.split("/")[0].replace("_", " "))
    steps = ["pale", "light", "deep", "dark"]
    table["color intensity"] = pd.qcut(table["color intensity"], 4, labels=steps)
    table["proanthocyanins"] = table["proanthocyanins"] > table["proanthocyanins"].median()
    table["cultivar"] = pd.Categorical.from_codes(source.target, list("ABC"))
    return table


def by_columns(train: Array, test: Array, top: Array) -> Filled:
    """Fills in the mean of a numeric column, and the most frequent code of any other."""
    codes = [np.bincount(c[~np.isnan(c)].clip(0).astype(int)).argmax() for c in train.T]
    value = np.where(np.isnan(top), np.nanmean(train, axis=0), codes)
    return Filled(*np.broadcast_arrays(value, np.nanstd(train, axis=0), test)[:2])


def by_regression(
    train: Array, test: Array, top: Array, regression: BayesianRidge | Ridge, sizes: "Sizes"
) -> Filled:
    """Imputes by IterativeImputer: its best guess, and the spread of draws from its posterior.

    Cultivar B has no indicator column. If it had one, each of the three indicators would follow
    exactly from the other two, and the regression would use these two alone.
    """

    def indicators(y: Array) -> Array:
        last = y[:, -1:]
        return np.column_stack([y[:, :-1], np.where(np.isnan(last), np.nan, last == [0, 2])])

    def codes(x: Array) -> Array:
        a, c = x[:, -2], x[:, -1]
        y = np.column_stack([x[:, :-2], np.stack([a, 1 - a - c, c]).argmax(axis=0)])
        return np.where(np.isnan(top), y, y.round().clip(0, top))

    x, new = indicators(train), indicators(test)
    best = IterativeImputer(regression, max_iter=sizes.rounds, tol=1e-2, random_state=0).fit(x)
    value = codes(best.transform(new))
    if not isinstance(regression, BayesianRidge):  # only BayesianRidge has a posterior
        return Filled(value, np.full_like(value, np.nan))
    sampler = IterativeImputer(
        max_iter=sizes.rounds // 3, sample_posterior=True, random_state=0
    ).fit(x)
    drawn = np.stack([sampler.transform(new) for _ in range(sizes.draws)])
    return Filled(value, codes(drawn.std(axis=0, ddof=1)))


def by_vae(train: Tensor, test: Tensor, columns: Columns, sizes: "Sizes") -> Imputation:
    """Imputes by a VAE, trained without early stopping, since two latents memorize little."""
    torch.manual_seed(0)
    likelihood = mixed(columns)  # by the kind of each column; pv.likelihoods.Mixed({...}) by hand
    features = train.shape[1]
    decoder = nn.Linear(LATENTS, likelihood.outputs)  # a deeper one needs more rows
    pv.likelihoods.start_from(decoder, likelihood.start(train))
    model = pv.models.VAE(decoder, likelihood, latent_dim=LATENTS)
    net = pv.nets.MissingIndicator(pv.nets.MLPEncoder(2 * features, hidden=(32,)))
    guide = pv.Guide(model, pv.Encoder(net), pv.FullRankNormal())
    optimizer = adam_with(1e-2)
    pv.fit(
        model,
        guide,
        train,
        num_epochs=sizes.epochs,
        batch_size=16,
        optimizer=optimizer,
        progress=False,
    )
    return impute(model, guide, test, 200, estimator=pv.ImportanceSampling(sizes.samples))


def scores(filled: Filled, truth: Array, holes: NDArray[np.bool_], top: Array) -> list[Array]:
    """RMSE, log score and accuracy, `(1 + resamples,)` each: for the data, then for resamples."""
    rows = len(truth)
    resamples = np.random.default_rng(0).multinomial(rows, np.ones(rows) / rows, size=2000)
    weights = np.vstack([np.ones(rows), resamples])
    error, numbers = filled.value - truth, np.isnan(top)

    def mean(part: Array, of: NDArray[np.bool_]) -> Array:
        return (weights @ np.where(holes & of, part, 0).sum(1)) / (weights @ (holes & of).sum(1))

    with np.errstate(divide="ignore", invalid="ignore"):  # entries that were observed have sd 0
        log_score = norm.logpdf(truth, filled.value, filled.sd)
    return [mean(error**2, numbers) ** 0.5, mean(log_score, numbers), mean(error == 0, ~numbers)]


def said(values: list[Array], form: str) -> str:
    """Formats scores with errors, and leaves out scores that are nan (ridge has no density)."""
    known = [(name, v) for name, v in zip(SCORES, values, strict=True) if not np.isnan(v[0])]
    return ", ".join(f"{name} {v[0]:{form}} ± {v[1:].std():.3f}" for name, v in known)


@matplotlib.rc_context(pv.plots.STYLE)
def draw(
    results: dict[str, list[Array]],
    shown: tuple[Tensor, Tensor, Tensor],
    names: list[str],
    path: Path,
) -> None:
    """Draws the three scores of each method, and two wines with their holes filled in."""
    figure = Figure(figsize=(9.0, 6.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.0, 2.2))[:, 0]
    for number, ax in enumerate(top.subplots(1, 3, sharey=True)):
        for place, values in enumerate(results.values()):
            value, *others = values[number]
            ax.errorbar(value, place, xerr=2 * np.std(others), fmt="o", color="C0")
        ax.set_yticks(range(len(results)), list(results))
        ax.set_ylim(len(results) - 0.5, -0.5)
        ax.set_xlabel(f"{SCORES[number]}\n± 2 standard errors", fontsize="small")
    plot_imputation(*shown, names=names, figure=bottom)
    figure.savefig(path, dpi=110)


class Compared(NamedTuple):
    """Scores by method, and two rows to show: with holes, as drawn by the VAE, and complete."""

    scores: dict[str, list[Array]]
    shown: tuple[Tensor, Tensor, Tensor]


def compared(table: pd.DataFrame, sizes: Sizes) -> Compared:
    """Imputes every wine by every method, trained on the other folds."""
    holes = np.random.default_rng(0).random(table.shape) < 0.3
    parts: dict[str, list[Filled]] = {name: [] for name in METHODS}
    order: list[Array] = []
    truth: list[Array] = []
    for rows, new in KFold(sizes.folds, shuffle=True, random_state=0).split(table):
        seen = table.iloc[rows].mask(holes[rows])  # columns are learned from what was observed
        columns = Columns.of(seen, dict.fromkeys(seen.select_dtypes("number"), Real))
        whole = columns.encode(table.iloc[new])
        train = columns.encode(table.iloc[rows]).masked_fill(torch.tensor(holes[rows]), torch.nan)
        test = whole.masked_fill(torch.tensor(holes[new]), torch.nan)
        top = highest_codes(columns)
        y, y_new = train.double().numpy(), test.double().numpy()
        parts["column means"].append(by_columns(y, y_new, top))
        for name, regression in REGRESSIONS.items():
            parts[name].append(by_regression(y, y_new, top, regression, sizes))
        result = by_vae(train, test, columns, sizes)
        print(f"fold {len(truth) + 1}: {result.summary()}")
        value = np.where(np.isnan(top), result.value, result.most_frequent)
        parts["VAE"].append(Filled(value, result.sd.value.numpy()))
        order.append(new)
        truth.append(whole.double().numpy())
    results = {
        name: scores(
            Filled(*map(np.concatenate, zip(*filled, strict=True))),
            np.concatenate(truth), holes[np.concatenate(order)], top,
        )
        for name, filled in parts.items()
    }  # fmt: skip
    return Compared(results, (test[:2], result.draws[:, :2], whole[:2]))


def highest_codes(columns: Columns) -> Array:
    """The code of the last category of each column; nan for numbers."""
    levels = [
        len(kind.categories) - 1 if isinstance(kind, Categories) else None
        for kind in columns.kinds.values()
    ]
    return np.array(levels, dtype=float)


def main() -> None:
    """Fits the models, draws the figure and prints the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figure")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, as a test")
    arguments = parser.parse_args()
    sizes = Sizes(2, 1, 50, 3, 2) if arguments.smoke else Sizes(5, 120, 1000, 15, 20)

    torch.set_num_threads(1)  # small tensors make threads wait for each other
    table = wines()
    results, shown = compared(table, sizes)
    for name, values in results.items():
        print(f"{name:23s} {said(values, '.3f')}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    picture = arguments.out / "tabular_with_missing_values.png"
    draw(results, shown, list(table.columns), picture)
    gains = {
        other: [one - two for one, two in zip(results["VAE"], results[other], strict=True)]
        for other in METHODS[:-1]
    }
    words = (f"{other}: {said(gain, '+.3f')}" for other, gain in gains.items())
    print(f"\nScores of the VAE minus those of {'; '.join(words)}.")


if __name__ == "__main__":
    main()
