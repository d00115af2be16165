"""Does a VAE impute tables as well as simpler methods, and give held-out rows as high a density?

Four tables of scikit-learn are used, with a fifth of their entries removed in two ways:

    at random        every entry with probability 0.2
    by its value     with probability sigmoid(2 u - 2.1), u the entry in standard deviations: large
                     entries are missing more often, which only `masking` takes into account

A fifth of the rows is held out. These methods impute its missing entries, each fitted to the other
rows:

    vae              pv.TableVAE, stopped on a tenth of the training rows
    masking          the same with `likelihoods.SelfMasking`; its log p counts the mask, too
    means            of the columns
    iterative        scikit-learn's IterativeImputer (Bayesian ridge regression of each column)
    trees            the same with extremely randomized trees, similar to missForest
    neighbours       scikit-learn's KNNImputer
    normal           a multivariate normal distribution fitted by expectation maximization
    hyperimpute      HyperImpute (Jarrett et al., 2022) with its defaults; it has to be fitted to
                     the rows that it imputes, so it is given all rows, which is an advantage

For each method the benchmark prints the root mean square error of the imputed entries, in standard
deviations of the column. If the method has a density, it prints the log density of the observed
entries of held-out rows, in nats per datum. For both, it prints the difference from the VAE, with
the standard error over rows (paired, all seeds together). The last line of each comparison says
whether the VAE is worse than the best other method by more than two errors; `masking` belongs to
this library, and does not count as another method.

HyperImpute needs older packages than this library. Install it in an environment of its own, and
pass the Python of that environment.

    python -m venv peers
    peers/bin/pip install hyperimpute "numpy<2.1" "pandas<2.3" "scikit-learn<1.6" "xgboost<2.1"

Run:  python benchmarks/tables.py --hyperimpute peers/bin/python      (--smoke for a quick look)
"""

import argparse
import itertools
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import multivariate_normal
from sklearn import datasets
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (makes it importable)
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

import pyro_vae as pv
from pyro_vae.defaults import Architecture

TABLES = ("iris", "wine", "diabetes", "breast_cancer")
HOLES = ("at random", "by its value")
Array = np.ndarray


class Filled(NamedTuple):
    """Held-out rows with imputed entries, and the log density of each row's observed entries."""

    y: Array
    log_p: Array | None = None


class Task(NamedTuple):
    """Training and held-out rows with holes, and the complete held-out rows, all standardized."""

    train: Array
    test: Array
    truth: Array
    seed: int


def task(name: str, holes: str, seed: int) -> Task:
    """Loads a table, removes entries, and splits the rows."""
    rng = np.random.default_rng(seed)
    y = getattr(datasets, f"load_{name}")().data
    y = (y - y.mean(axis=0)) / y.std(axis=0)
    y = y[rng.permutation(len(y))]
    chance = 0.2 if holes == "at random" else 1 / (1 + np.exp(2.1 - 2 * y))
    gone = rng.random(y.shape) < chance
    gone[gone.all(axis=1)] = False
    seen = np.where(gone, np.nan, y)
    cut = len(y) // 5
    return Task(seen[cut:], seen[:cut], y[:cut], seed)


def by_vae(task: Task, epochs: int, *, masking: bool = False) -> Filled:
    """Imputes by a VAE, stopped at the best epoch for a validation tenth of the rows."""
    columns = [f"c{place}" for place in range(task.train.shape[1])]
    frame = pd.DataFrame(task.train, columns=columns)
    table = pv.data.from_frame(frame, test_fraction=0.1, seed=task.seed)
    likelihood = pv.defaults.default_likelihood(table)
    if masking:
        likelihood = pv.likelihoods.SelfMasking(likelihood, (len(columns),))
    vae = pv.TableVAE.of(table, Architecture(seed=task.seed, likelihood=likelihood))
    validation: Any = {"validation": table.test, "patience": max(5, epochs // 10)}
    vae.fit(num_epochs=epochs, seed=task.seed, progress=False, **validation)
    test = pd.DataFrame(task.test, columns=columns)
    filled = vae.impute(test, num_samples=500, progress=False)
    assert isinstance(vae.units, pv.data.Columns)
    y = filled.value * vae.units.scale + vae.units.center
    y = torch.where(filled.missing, y, torch.as_tensor(task.test))
    log_p = vae.log_marginal_likelihood(test, pv.ImportanceSampling(1000), progress=False).value
    return Filled(y.numpy(), log_p.numpy())


def by_imputer(imputer: Any) -> Callable[[Task, int], Filled]:
    """Returns a method that imputes by an imputer of scikit-learn."""
    return lambda task, epochs: Filled(imputer(task.seed).fit(task.train).transform(task.test))


def by_normal(task: Task, epochs: int) -> Filled:
    """Imputes conditional means of a multivariate normal, fitted by EM."""
    loc = np.nanmean(task.train, axis=0)
    covariance = np.diag(np.nanvar(task.train, axis=0))
    for _ in range(epochs):
        rows = [conditional(row, loc, covariance) for row in task.train]
        y = np.stack([mean for mean, _ in rows])
        left = sum(spread for _, spread in rows)
        loc = y.mean(axis=0)
        covariance = ((y - loc).T @ (y - loc) + left) / len(y) + 1e-3 * np.eye(len(loc))
    y = np.stack([conditional(row, loc, covariance)[0] for row in task.test])
    log_p = [
        multivariate_normal.logpdf(row[seen], loc[seen], covariance[np.ix_(seen, seen)])
        for row, seen in zip(task.test, ~np.isnan(task.test), strict=True)
    ]
    return Filled(y, np.array(log_p))


def conditional(row: Array, loc: Array, covariance: Array) -> tuple[Array, Array]:
    """Mean and covariance of a row given its observed entries."""
    seen = ~np.isnan(row)
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[seen])
    mean = loc + (row[seen] - loc[seen]) @ gain
    spread = covariance - covariance[:, seen] @ gain
    return np.where(seen, row, mean), spread


def trees(seed: int) -> IterativeImputer:
    """An iterative imputer with extremely randomized trees, similar to missForest."""
    forest = ExtraTreesRegressor(n_estimators=10, random_state=seed)
    return IterativeImputer(forest, max_iter=3, random_state=seed)


PEER = """
import sys
import numpy, pandas
from hyperimpute.plugins.imputers import Imputers
folder, seed = sys.argv[1], int(sys.argv[2])
rows = pandas.DataFrame(numpy.load(f"{folder}/rows.npy"))
found = Imputers().get("hyperimpute", random_state=seed).fit_transform(rows)
numpy.save(f"{folder}/found.npy", numpy.asarray(found))
"""


def by_hyperimpute(task: Task, python: str) -> Filled:
    """Imputes by HyperImpute, in a process of another Python environment."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/rows.npy", np.concatenate([task.test, task.train]))
        command = [python, "-W", "ignore", "-c", PEER, folder, str(task.seed)]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        found = np.load(Path(folder) / "found.npy")[: len(task.test)]
    return Filled(np.where(np.isnan(task.test), found, task.test))


Ways = dict[str, Callable[[Task, int], Filled]]
WAYS: Ways = {
    "vae": by_vae,
    "masking": lambda task, epochs: by_vae(task, epochs, masking=True),
    "means": by_imputer(lambda seed: SimpleImputer()),
    "iterative": by_imputer(lambda seed: IterativeImputer(max_iter=30, random_state=seed)),
    "trees": by_imputer(trees),
    "neighbours": by_imputer(lambda seed: KNNImputer()),
    "normal": lambda task, epochs: by_normal(task, min(epochs, 50)),
}


def main() -> None:
    """Runs all methods on all tables, and prints a line for each."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--smoke", action="store_true")
    options.add_argument("--tables", nargs="+", default=TABLES)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=int, default=600)
    options.add_argument("--hyperimpute", help="a Python that has it", metavar="PYTHON")
    options.add_argument("--without", nargs="+", default=(), help="methods that are left out")
    given = options.parse_args()
    epochs = 3 if given.smoke else given.epochs
    seeds = 1 if given.smoke else given.seeds
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    ways = dict(WAYS)
    if given.hyperimpute:
        ways["hyperimpute"] = lambda task, epochs: by_hyperimpute(task, given.hyperimpute)
    ways = {name: way for name, way in ways.items() if name not in given.without}
    found = [
        compared(name, holes, ways, seeds, epochs)
        for name, holes in itertools.product(given.tables[: 1 if given.smoke else None], HOLES)
    ]
    filled, densities = (sum(parts) for parts in zip(*found, strict=True))
    print(
        f"not worse than the best other method by more than two errors: imputation in {filled} of "
        f"{len(found)}, log p in {densities} of {len(found)}"
    )


class Answers(NamedTuple):
    """Squared errors and log p of each row, for one method and all seeds; log p can be nan."""

    squares: Array
    log_p: Array


def compared(name: str, holes: str, ways: Ways, seeds: int, epochs: int) -> tuple[bool, bool]:
    """Prints all scores; returns whether the VAE is not worse in imputation, and in log p."""
    tasks = [task(name, holes, seed) for seed in range(seeds)]
    gone = sum(int(np.isnan(task.test).sum()) for task in tasks)
    found: dict[str, Answers] = {}
    for way, answer in ways.items():
        found[way] = answers([answer(task, epochs) for task in tasks], tasks)
        line = f"rmse {np.sqrt(found[way].squares.sum() / gone):.3f}, squares per row vs vae "
        line += paired(found[way].squares - found["vae"].squares)
        if not np.isnan(found[way].log_p).any():
            line += f"; log p {found[way].log_p.mean():.2f}, vs vae "
            line += paired(found[way].log_p - found["vae"].log_p)
        print(f"{name:14s} {holes:13s} {way:11s} {line}", flush=True)
    others = {way: of for way, of in found.items() if way not in ("vae", "masking")}
    best = min(others, key=lambda way: others[way].squares.sum())
    lost = found["vae"].squares - others[best].squares
    gained = found["vae"].log_p - others["normal"].log_p
    verdict = not beyond(lost), not beyond(-gained)
    print(
        f"{name:14s} {holes:13s} vae vs the best: squares {paired(lost)} ({best}"
        f"{'' if verdict[0] else ', lost'}); log p {paired(gained)} (normal"
        f"{'' if verdict[1] else ', lost'})",
        flush=True,
    )
    return verdict


def answers(found: list[Filled], tasks: list[Task]) -> Answers:
    """Computes squared errors and log densities of all rows."""
    squares = np.concatenate([(f.y - t.truth) ** 2 for f, t in zip(found, tasks, strict=True)])
    none = np.full(len(squares), np.nan)
    parts = [part.log_p for part in found if part.log_p is not None]
    return Answers(squares.sum(axis=1), np.concatenate(parts) if parts else none)


def beyond(differences: Array) -> bool:
    """Returns whether the mean over rows is above 0 by more than two standard errors."""
    return bool(differences.mean() > 2 * differences.std() / len(differences) ** 0.5)


def paired(differences: Array) -> str:
    """Formats the mean over rows and its standard error."""
    return f"{differences.mean():+.3f} ± {differences.std() / len(differences) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
