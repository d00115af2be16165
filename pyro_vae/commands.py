"""What each command of `pyro-vae` does, once its arguments are parsed."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import data as datasets
from . import defaults, evidence, likelihoods, storage
from .comparisons import Comparison, compare
from .comparisons.reporting import save_report, title_of
from .data import Binarization, Columns, Dataset, FixedDraw, Grey, Redrawn, Threshold
from .data.sets import SETS
from .defaults import Architecture
from .evidence import ImportanceSampling
from .guides import Guide
from .training import adam_with, fit

BINARIZATIONS: dict[str, Binarization] = {
    "none": Grey(),
    "threshold": Threshold(),
    "fixed": FixedDraw(),
    "redrawn": Redrawn(),
}


@dataclass(frozen=True)
class DataChoice:
    """Which data, and what is done to them before anything else."""

    data: str
    binarize: str | None = None
    divide_by: float = 1.0
    key: str | None = None
    test_fraction: float = 0.2
    split_seed: int = 0

    def load(self) -> Dataset:
        """The data set, split, and binarized if that was asked for."""
        return datasets.load(
            self.data,
            binarization=None if self.binarize is None else BINARIZATIONS[self.binarize],
            test_fraction=self.test_fraction,
            seed=self.split_seed,
            key=self.key,
            divide_by=self.divide_by,
        )


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is trained."""

    likelihood: str = "auto"
    sigma: float | None = None
    latents: int = 2
    hidden: Sequence[int] = (128,)
    epochs: int = 500
    batch_size: int = 64
    lr: float = 2e-3
    warmup: int = 0
    seed: int = 0

    def prepared(self, dataset: Dataset) -> tuple[Dataset, Architecture]:
        """Sizes and likelihood for a data set, whose columns are standardized for a Gaussian one.

        Pictures are left as they are: their pixels have a common scale already.
        """
        likelihood = self.likelihood_of(dataset)
        standard = dataset.image_shape is None and dataset.columns is None
        if isinstance(likelihood, likelihoods.Gaussian) and standard:
            dataset = dataset.standardized()
        return dataset, Architecture(self.latents, tuple(self.hidden), self.seed, likelihood)

    def likelihood_of(self, dataset: Dataset) -> likelihoods.Likelihood:
        """What was asked for, or what suits the data."""
        if dataset.columns is not None and self.likelihood != "auto":
            raise ValueError(
                f"--likelihood {self.likelihood} is for tables of numbers, but the columns are "
                f"{dataset.columns}: leave it out, and each column gets its own"
            )
        if self.likelihood == "bernoulli":
            return likelihoods.Bernoulli()
        if self.likelihood == "gaussian" and self.sigma is not None:
            return likelihoods.Gaussian(self.sigma)
        if self.likelihood == "gaussian":
            return likelihoods.Gaussian(likelihoods.LearnedSigma(dataset.train.shape[1:]))
        return defaults.default_likelihood(dataset)

    def options(self, dataset: Dataset) -> dict[str, Any]:
        """Arguments of `fit`."""
        redrawn = isinstance(dataset.binarization, Redrawn)
        return {
            "num_epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": adam_with(self.lr),
            "warmup": self.warmup,
            "per_batch": dataset.binarization if redrawn else None,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Output:
    """Where results go, and how much is said on the way."""

    out: Path | None = None
    samples: int = 1000
    quiet: bool = False
    command: str = ""

    def say(self, text: str) -> None:
        """Prints, unless told to be quiet."""
        if not self.quiet:
            print(text, flush=True)


def compare_guides(
    which: DataChoice,
    how: ModelChoice,
    output: Output,
    guides: Sequence[str],
    *,
    fixed: bool = True,
) -> None:
    """Trains a model under each guide; then the guides again, with one model fixed."""
    dataset, architecture = how.prepared(which.load())
    output.say(dataset.describe())
    model = defaults.vae(dataset, architecture)
    maps = {name: defaults.inference_map(name, dataset, architecture) for name in guides}
    given = _given(which, how, output, dataset)
    table = compare(model, maps, *_parts(dataset), **given)
    output.say(f"\n{title_of(table)}\n\n{table.summary()}")
    if output.out is not None:
        table.save(output.out)
    name, first = next(iter(table.results.items()))
    if fixed and not _interrupted(table):
        again = compare(first.model, maps, *_parts(dataset), train_model=False, **given)
        title = f"The model that '{name}' trained, fixed"
        output.say(f"\n{title}\n\n{again.summary()}")
        if output.out is not None:
            again.save(output.out / "fixed_model")
            save_report(output.out / "report.html", {title_of(table): table, title: again})
    if output.out is not None:
        output.say(f"\nwrote {output.out}/; to read: {output.out / 'report.html'}")


def fit_guide(which: DataChoice, how: ModelChoice, output: Output, guide_name: str) -> None:
    """Trains a model under one guide and saves both."""
    dataset, architecture = how.prepared(which.load())
    output.say(dataset.describe())
    model = defaults.vae(dataset, architecture)
    guide = Guide(model, defaults.inference_map(guide_name, dataset, architecture))
    train, _ = _parts(dataset)
    result = fit(model, guide, train, progress=not output.quiet, **how.options(dataset))
    output.say(result.summary())
    if output.out is not None:
        about = _notes(which, how, output, dataset)
        storage.save(output.out, model=model, guide=guide, about=about)
        output.say(f"wrote {output.out}/")


def evaluate_saved(folder: Path, data: str | None, output: Output, seed: int) -> None:
    """Log p(y) under a saved model, by datum: of held-out rows, or of all rows of another file."""
    loaded, about = storage.load(folder), _about(folder)
    columns = None if about.get("columns") is None else Columns.from_json(about["columns"])
    test, name = _rows_to_evaluate(DataChoice(**about["data"]), data, columns)
    if about["scale"] is not None:
        test = (test - torch.tensor(about["center"])) / torch.tensor(about["scale"])
    guide = loaded.guide
    if isinstance(guide, Guide) and guide.map.per_row:
        guide = guide.fit_rows(test, seed=seed, progress=not output.quiet)
    bound, result = evidence.evaluate(
        loaded.model, guide, test, ImportanceSampling(output.samples), seed=seed,
        progress=not output.quiet,
    )  # fmt: skip
    shift = torch.full((len(test),), about["log_scale"], dtype=torch.float64)
    if columns is not None:
        shift = columns.log_scales(test.double())
    added = shift.mean()
    own_units = (mean._replace(value=mean.value + added) for mean in (result.mean, bound.mean))
    output.say(f"{name}\n{result.summary()}")
    output.say(
        "log p and ELBO in the data's own units, nats per datum: "
        + ", ".join(map("{:.3f}".format, own_units))
    )
    if output.out is not None:
        output.out.mkdir(parents=True, exist_ok=True)
        _write_evaluation(output.out / "log_p.csv", bound, result, shift)
        output.say(f"wrote {output.out / 'log_p.csv'}")


def _about(folder: Path) -> dict[str, Any]:
    """What `pyro-vae fit` noted beside the model it saved."""
    about = storage.read_about(folder)
    if "data" not in about or "log_scale" not in about:
        raise ValueError(
            f"'{folder}' was not saved by this command line, so it is not known which data it is "
            "for; use pv.load and pv.log_marginal_likelihood in Python"
        )
    return about


def _rows_to_evaluate(
    which: DataChoice, data: str | None, columns: Columns | None
) -> tuple[Tensor, str]:
    """Rows, treated as the training data were, and what they are called."""
    if data is None or data in SETS:
        dataset = replace(which, data=data or which.data).load()
        return _parts(dataset)[1], dataset.describe()
    if columns is not None:
        rows = columns.encode(datasets.read_frame(data))
        return rows, f"{data}: {len(rows):,} rows"
    values, names = datasets.read_table(Path(data), key=which.key)
    y = torch.from_numpy(values.astype(np.float64)).to(torch.get_default_dtype())
    y = y.reshape(len(y), -1) / which.divide_by
    datasets.check_batch(y, names=names)
    binarization = BINARIZATIONS[which.binarize or "none"]
    once = FixedDraw() if isinstance(binarization, Redrawn) else binarization
    return once.fixed(y, part=2), f"{data}: {len(y):,} rows"


def _write_evaluation(
    path: Path, bound: evidence.EvidenceLowerBound, result: evidence.LogMarginal, shift: Tensor
) -> None:
    columns = {
        "row": torch.arange(len(result.value)),
        "log_p": result.value + shift,
        "log_p_error": result.error,
        "ess": result.ess,
        "pareto_k": result.pareto_k,
        "reliable": result.reliable.long(),
        "elbo": bound.elbo.value + shift,
        "elbo_error": bound.elbo.error,
    }
    table = torch.stack([column.double() for column in columns.values()], dim=1).numpy()
    np.savetxt(path, table, delimiter=",", header=",".join(columns), comments="", fmt="%.10g")


def sample_saved(folder: Path, number: int, out: Path, seed: int, output: Output) -> None:
    """Draws from p(y) of a saved model, in the data's own units; npy, or csv with names."""
    loaded, about = storage.load(folder), _about(folder)
    draws = loaded.model.sample(number, seed=seed)
    if about["scale"] is not None:
        draws = draws * torch.tensor(about["scale"]) + torch.tensor(about["center"])
    out.parent.mkdir(parents=True, exist_ok=True)
    names = about.get("feature_names")
    if about.get("columns") is not None:
        _write_table(Columns.from_json(about["columns"]), draws, out)
    elif out.suffix == ".csv":
        header = ",".join(names or ())
        values = draws.flatten(start_dim=1).numpy()
        np.savetxt(out, values, delimiter=",", header=header, comments="")
    elif out.suffix == ".npy":
        np.save(out, draws.numpy())
    else:
        raise ValueError(f"draws are written as .npy or .csv, got '{out}'")
    output.say(f"wrote {number} draws of shape {tuple(draws.shape[1:])} to {out}")


def _write_table(columns: Columns, draws: Tensor, out: Path) -> None:
    """Draws as rows of the table that the model was trained on: names, words and all."""
    frame = columns.decode(draws)
    if out.suffix == ".csv":
        frame.to_csv(out, index=False)
    elif out.suffix == ".parquet":
        frame.to_parquet(out)
    else:
        raise ValueError(
            f"the columns are {columns}, so draws are written as .csv or .parquet, got '{out}'"
        )


def _parts(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Training rows, and held-out rows as they are evaluated: one draw, where draws are redone."""
    if isinstance(dataset.binarization, Redrawn):
        held_out = FixedDraw().fixed(dataset.test, part=1)
        return dataset.train, held_out
    return dataset.train, dataset.test


def _notes(which: DataChoice, how: ModelChoice, output: Output, dataset: Dataset) -> dict[str, Any]:
    """What is saved beside a model: all that is needed to treat other data as these were."""
    return {
        "command": output.command,
        "data": asdict(which),
        "data set": dataset.describe(),
        "model": {**asdict(how), "hidden": list(how.hidden)},
        "log_scale": dataset.log_scale,
        "center": _listed(dataset.center),
        "scale": _listed(dataset.scale),
        "feature_names": None if dataset.feature_names is None else list(dataset.feature_names),
        "columns": None if dataset.columns is None else dataset.columns.to_json(),
    }


def _given(which: DataChoice, how: ModelChoice, output: Output, dataset: Dataset) -> dict[str, Any]:
    return {
        "evaluation": ImportanceSampling(output.samples),
        "labels": dataset.test_labels,
        "image_shape": dataset.image_shape,
        "log_scale": float(dataset.log_scales(dataset.test).mean()),
        "about": _notes(which, how, output, dataset),
        "progress": not output.quiet,
        **how.options(dataset),
    }


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"pyro-vae: warning: {message}", file=sys.stderr)


def _interrupted(table: Comparison) -> bool:
    return any(run.interrupted for run in (table, *table.others))


def _listed(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.tolist()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns warnings, and the errors that a user can mend, into one line; status 1 for errors."""
    try:
        with warnings.catch_warnings():
            # ArviZ 0.23 announces its next version at import, once a day.
            warnings.filterwarnings("ignore", message="\nArviZ", category=FutureWarning)
            warnings.showwarning = _show_warning
            yield
    except (ValueError, TypeError, FileNotFoundError, FloatingPointError, ImportError) as error:
        sys.exit(f"pyro-vae: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # what shells expect of a program ended by Ctrl-C
