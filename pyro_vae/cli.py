"""The command line: `pyro-vae`, or `python -m pyro_vae`.

Each group of options is a dataclass, and each option a field of it: its flag, its default and its
help stand there once, and a command receives the dataclass.
"""

# ruff: noqa: RUF009 (`option` makes a field of a dataclass)

import argparse
import csv
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import __version__, defaults, evidence, likelihoods, storage
from . import data as datasets
from .comparisons import Comparison, compare
from .comparisons.comparison import require_place
from .comparisons.reporting import title_of
from .data import (
    Augmented,
    Binarization,
    Columns,
    Dataset,
    FixedDraw,
    Grey,
    Layout,
    Redrawn,
    Threshold,
)
from .data.frames import columns_of, optional
from .data.kinds import KINDS
from .data.sets import SETS, table_of, without
from .data.tables import describe
from .defaults import GUIDES, Architecture
from .evidence import ImportanceSampling
from .guides import for_new_rows
from .objectives import BetaELBO, LinearWarmup
from .training import adam_with, fit

BINARIZATIONS: dict[str, Binarization] = {
    "none": Grey(),
    "threshold": Threshold(),
    "fixed": FixedDraw(),
    "redrawn": Redrawn(),
}
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}
Options = TypeVar("Options")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text}")
    return number


def _widths(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _guides(text: str) -> tuple[str, ...]:
    names = _names(text)
    unknown = [name for name in names if name not in GUIDES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown guide {', '.join(unknown)}; there are {', '.join(GUIDES)}"
        )
    return names


def _kinds(text: str) -> dict[str, str]:
    kinds = dict(part.rpartition("=")[::2] for part in text.split(","))
    if not all(kinds) or not set(kinds.values()) <= set(KINDS):
        raise argparse.ArgumentTypeError(
            f"expected COLUMN=KIND,... with kinds {', '.join(KINDS)}, got {text}"
        )
    return kinds


def option(default: Any, text: str, *flags: str, **how: Any) -> Any:
    """A field that is an option: its default, its help, its flags, and how it is parsed."""
    return field(default=default, metadata={"help": text, "flags": flags, **how})


@dataclass(frozen=True)
class DataChoice:
    """data"""  # noqa: D415 (the title of the group)

    data: str = option(MISSING, "a file, or the name of a set", "data", metavar="DATA")
    binarize: str | None = option(
        None,
        "none, threshold (at 0.5), fixed (one draw, kept) or redrawn (each batch)",
        choices=[*BINARIZATIONS],
    )
    divide_by: float = option(1.0, "e.g. 255 for pixels of a byte", type=float)
    key: str | None = option(None, "name of the array in an npz file")
    test_fraction: float = option(0.2, "share held out (default %(default)s)", type=float)
    drop: Sequence[str] = option((), "columns to leave out", type=_names, metavar="COLUMN,...")
    kinds: dict[str, str] | None = option(
        None,
        f"what columns are, where the file does not show it: {', '.join(KINDS)}",
        type=_kinds,
        metavar="COLUMN=KIND,...",
    )
    sep: str | None = option(None, "what stands between cells of a text", choices=[*SEPARATORS])
    header: bool | None = option(
        None,
        "whether a text starts with names of columns (default: by the text)",
        action=argparse.BooleanOptionalAction,
    )

    @property
    def layout(self) -> Layout:
        """How a text is cut into cells."""
        return Layout(None if self.sep is None else SEPARATORS[self.sep], self.header)

    def load(self, seed: int, *, grey: bool = False) -> Dataset:
        """The data set, split, and binarized if that was asked for."""
        unset = Grey() if grey and self.data not in SETS else None
        return datasets.load(
            self.data,
            binarization=unset if self.binarize is None else BINARIZATIONS[self.binarize],
            test_fraction=self.test_fraction,
            seed=seed,
            key=self.key,
            divide_by=self.divide_by,
            kinds={name: KINDS[kind] for name, kind in (self.kinds or {}).items()},
            drop=self.drop,
            layout=self.layout,
        )


@dataclass(frozen=True)
class ModelChoice:
    """model and training"""  # noqa: D415

    likelihood: str = option(
        "auto", "p(y | z) (default: by the data)", choices=["auto", "bernoulli", "gaussian"]
    )
    sigma: float | None = option(
        None, "a fixed sigma for the Gaussian, of the stored data (default: learned)", type=float
    )
    latent_dim: int | None = option(
        None, "entries of z (default: half the columns, 1 to 10)", "--latents", type=_positive
    )
    hidden: Sequence[int] | None = option(
        None,
        "widths of the encoder's hidden layers (default: one, 4 times the columns, 32 to 256)",
        type=_widths,
        metavar="N,N,...",
    )
    epochs: int = option(500, "(default %(default)s)", type=_positive)
    batch_size: int | None = option(
        None, "rows per step (default: a tenth, 32 to 256)", type=_positive
    )
    lr: float = option(2e-3, "of Adam (default %(default)s)", type=float)
    warmup: int = option(0, "epochs of KL warm-up (default %(default)s)", type=int)
    resume: Path | None = option(
        None,
        "folder to keep the state of training in: the same command goes on from there",
        type=Path,
        metavar="FOLDER",
    )

    def prepared(self, which: DataChoice, seed: int) -> tuple[Dataset, Architecture]:
        """A data set, and sizes and likelihood for it; numbers are standardized for a Gaussian.

        Pictures are left as they are: their pixels have a common scale already.
        """
        dataset = which.load(seed, grey=self.likelihood == "bernoulli")
        likelihood = self.likelihood_of(dataset)
        if isinstance(likelihood, likelihoods.Gaussian) and dataset.image_shape is None:
            dataset = dataset.standardized()
        return dataset, Architecture(self.latent_dim, self.hidden, seed, likelihood)

    def likelihood_of(self, dataset: Dataset) -> likelihoods.Likelihood:
        """What was asked for, or what suits the data."""
        default = defaults.default_likelihood(dataset)
        if self.likelihood != "auto" and isinstance(default, likelihoods.Mixed):
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
        return default

    def fitting(self, dataset: Dataset, seed: int) -> dict[str, Any]:
        """Arguments of `fit`."""
        return {
            "num_epochs": self.epochs,
            "batch_size": self.batch_size or defaults.batch_size(len(dataset.train)),
            "optimizer": adam_with(self.lr),
            "objective": BetaELBO(LinearWarmup(self.warmup)) if self.warmup else None,
            "checkpoint": self.resume,
            "seed": seed,
        }

    def kept(self, part: str) -> dict[str, Any]:
        """Where one of several comparisons keeps its state."""
        return {"checkpoint": None if self.resume is None else self.resume / part}


@dataclass(frozen=True)
class Run:
    """every command"""  # noqa: D415

    seed: int = option(0, "seed of everything (default %(default)s)", type=int)
    quiet: bool = option(default=False, text="no progress bars, no tables", action="store_true")
    threads: int = option(
        1, "threads of torch (default 1: for small tensors more are slower)", type=_positive
    )

    @property
    def progress(self) -> bool | None:
        """Whether bars are shown: on terminals, unless told to be quiet."""
        return False if self.quiet else None

    def say(self, text: str) -> None:
        """Prints, unless told to be quiet."""
        if not self.quiet:
            print(text, flush=True)


@dataclass(frozen=True)
class CompareChoice:
    """comparison"""  # noqa: D415

    guides: Sequence[str] = option(
        GUIDES, f"any of {', '.join(GUIDES)} (default all)", type=_guides, metavar="A,B,..."
    )
    no_fixed: bool = option(
        default=False,
        text="skip the second comparison, where the first guide's model is fixed",
        action="store_true",
    )
    samples: int = option(
        1000, "importance samples per datum (default %(default)s)", type=_positive
    )
    out: Path | None = option(
        None,
        "folder for report.html, table, pictures, ArviZ files and models",
        type=Path,
        metavar="FOLDER",
    )


@dataclass(frozen=True)
class FitChoice:
    """guide"""  # noqa: D415

    guide: str = option(GUIDES[0], "(default %(default)s)", choices=GUIDES)
    out: Path | None = option(
        None, "folder to save model and guide in", type=Path, metavar="FOLDER"
    )


@dataclass(frozen=True)
class EvaluateChoice:
    """evaluation"""  # noqa: D415

    folder: Path = option(
        MISSING,
        "a model that was saved by `fit`, or by `compare` in models/",
        "folder",
        type=Path,
        metavar="FOLDER",
    )
    data: str | None = option(
        None,
        "other data, treated as the training data were (default: the held-out rows)",
        "data",
        nargs="?",
        metavar="DATA",
    )
    samples: int = option(
        5000, "importance samples per datum (default %(default)s)", type=_positive
    )
    out: Path | None = option(
        None, "folder for log_p.csv, a row per datum", type=Path, metavar="FOLDER"
    )


@dataclass(frozen=True)
class SampleChoice:
    """draws"""  # noqa: D415

    folder: Path = option(
        MISSING, "what `pyro-vae fit` saved", "folder", type=Path, metavar="FOLDER"
    )
    number: int = option(100, "draws (default %(default)s)", "-n", "--number", type=_positive)
    out: Path | None = option(
        None,
        "a .csv, .parquet or .npy file (default: draws.csv if columns have names, else draws.npy)",
        type=Path,
        metavar="FILE",
    )


def compare_guides(
    which: DataChoice, how: ModelChoice, choice: CompareChoice, run: Run, command: str
) -> None:
    """Trains a model under each guide; then the guides again, with one model fixed."""
    if choice.out is not None:
        require_place(choice.out)
    dataset, architecture = how.prepared(which, run.seed)
    run.say(dataset.describe())
    model = defaults.vae(dataset, architecture)
    maps = {name: defaults.inference_map(name, dataset, architecture) for name in choice.guides}
    given = {
        "evaluation": ImportanceSampling(choice.samples),
        "labels": dataset.test_labels,
        "image_shape": dataset.image_shape,
        "log_scale": float(dataset.log_scales(dataset.test).mean()),
        "about": _notes(which, how, run, command, dataset),
        "progress": run.progress,
        **how.fitting(dataset, run.seed),
    }
    table = compare(model, maps, *_parts(dataset), **given | how.kept("every_model"))
    run.say(f"\n{title_of(table)}\n\n{table.summary()}")
    if choice.out is not None:
        table.save(choice.out)  # before the next trainings, which may be stopped
    name, first = next(iter(table.results.items()))
    if not choice.no_fixed and not _interrupted(table):
        given |= how.kept("fixed_model")
        again = compare(first.model, maps, *_parts(dataset), train_model=False, **given)
        run.say(f"\nThe model that '{name}' trained, fixed\n\n{again.summary()}")
        if choice.out is not None:
            table.save(choice.out, fixed=again)
    if choice.out is not None:
        run.say(f"\nwrote {choice.out}/; to read: {choice.out / 'report.html'}")
    if _interrupted(table):
        _end_interrupted("guides may be missing", how)


def fit_guide(
    which: DataChoice, how: ModelChoice, choice: FitChoice, run: Run, command: str
) -> None:
    """Trains a model under one guide and saves both."""
    if choice.out is not None:
        storage.require_place_for_model(choice.out)
    dataset, architecture = how.prepared(which, run.seed)
    run.say(dataset.describe())
    model = defaults.vae(dataset, architecture)
    guide = defaults.guide(model, dataset, architecture, name=choice.guide)
    train, _ = _parts(dataset)
    result = fit(model, guide, train, progress=run.progress, **how.fitting(dataset, run.seed))
    run.say(result.summary())
    if choice.out is not None:
        about = _notes(which, how, run, command, dataset) | {"training": result.summary()}
        storage.save(choice.out, model=model, guide=guide, about=about)
        run.say(f"wrote {choice.out}/")
    if result.stopped == "interrupted":
        _end_interrupted(result.summary(), how)


def _end_interrupted(what: str, how: ModelChoice) -> None:
    """Says so on the standard error, and ends as shells expect it of who was interrupted."""
    remedy = "the same command goes on" if how.resume else "with --resume FOLDER it could go on"
    print(f"pyro-vae: interrupted: {what}; {remedy}", file=sys.stderr)
    raise KeyboardInterrupt


def evaluate_saved(choice: EvaluateChoice, run: Run, command: str) -> None:
    """Log p(y) under a saved model, by datum, in the data's own units.

    Of held-out rows, or of all rows of another file.
    """
    loaded, about = storage.load(choice.folder), _about(choice.folder)
    columns = None if about["columns"] is None else Columns.from_json(about["columns"])
    test, name = _rows_to_evaluate(about, choice.data, columns)
    guide = for_new_rows(loaded.guide, test, seed=run.seed, progress=run.progress)
    bound, result = evidence.evaluate(
        loaded.model,
        guide,
        test,
        ImportanceSampling(choice.samples),
        seed=run.seed,
        progress=run.progress,
    )
    shift = torch.full((len(test),), about["log_scale"], dtype=torch.float64)
    if columns is not None:
        shift = columns.log_scales(test.double())
    result = replace(result, value=result.value + shift)
    bound = replace(bound, elbo=bound.elbo._replace(value=bound.elbo.value + shift))
    run.say(f"{name}\n{result.summary()}")
    run.say(
        "log p and ELBO in the data's own units, nats per datum: "
        f"{result.mean:.3f}, {bound.mean:.3f}"
    )
    if choice.out is not None:
        choice.out.mkdir(parents=True, exist_ok=True)
        _write_evaluation(choice.out / "log_p.csv", bound, result)
        run.say(f"wrote {choice.out / 'log_p.csv'}")


def sample_saved(choice: SampleChoice, run: Run, command: str) -> None:
    """Draws from p(y) of a saved model, in the data's own units; names and words where it has."""
    loaded, about = storage.load(choice.folder), _about(choice.folder)
    columns = None if about["columns"] is None else Columns.from_json(about["columns"])
    endings = _endings(columns)
    out = choice.out or Path(f"draws{endings[0]}")
    if out.suffix not in endings:
        of = "" if columns is None else f"the columns are {columns}, so "
        raise ValueError(f"{of}draws are written as {' or '.join(endings)}, got '{out}'")
    draws = loaded.model.sample(choice.number, seed=run.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    if columns is not None and columns.named and out.suffix != ".npy":
        _write_table(columns, draws, out)
    else:
        _write_numbers(_unscaled(draws, columns, about), about["feature_names"], out)
    run.say(f"wrote {choice.number} draws of shape {tuple(draws.shape[1:])} to {out}")


def _endings(columns: Columns | None) -> tuple[str, ...]:
    """Files that draws can be written to, the default first; words are no numbers of an array."""
    if columns is None or not columns.named:
        return ".npy", ".csv"
    return (".csv", ".parquet", ".npy") if columns.numeric else (".csv", ".parquet")


def _unscaled(draws: Tensor, columns: Columns | None, about: dict[str, Any]) -> Tensor:
    if columns is not None:
        return draws.double() * columns.scale + columns.center
    if about["scale"] is None:
        return draws
    return draws * torch.tensor(about["scale"]) + torch.tensor(about["center"])


def describe_data(which: DataChoice, run: Run, command: str) -> None:
    """What each column of a file is taken for, and why."""
    frame = None if which.data in SETS else table_of(Path(which.data), which.key, which.layout)
    if frame is None:
        print(which.load(run.seed).describe())
        return
    kinds = {name: KINDS[kind] for name, kind in (which.kinds or {}).items()}
    print(describe(without(frame, which.drop), kinds))


_DATA = """\
DATA is a set by name (squares, digits, fashion-mnist) or a file: npy, npz, csv, parquet, h5ad,
idx; texts and idx with or without .gz. One row per datum. Zeros and ones, and pictures in [0, 1],
get a Bernoulli likelihood; other numbers are standardized and get a Gaussian one with a learned
sigma per column; of a table with names each column gets its own (see `pyro-vae describe`). Every
number is reported in the data's own units."""

COMMANDS: dict[str, tuple[Callable[..., None], tuple[type, ...], str, str]] = {
    "describe": (
        describe_data,
        (DataChoice, Run),
        "what each column of a file is taken for, and why",
        f"""{_DATA}

examples:
  pyro-vae describe patients.csv
  pyro-vae describe patients.csv --drop id --kinds visits=Count
""",
    ),
    "compare": (
        compare_guides,
        (DataChoice, ModelChoice, CompareChoice, Run),
        "train under several guides, side by side",
        f"""{_DATA}

examples:
  pyro-vae compare digits --out results
      a table, pictures, ArviZ files and models of three guides on handwritten digits
  pyro-vae compare squares --guides amortized,global --epochs 300
      why one q(z) for all data fails: the average picture, and a rate of zero
  pyro-vae compare measurements.csv --latents 4 --out results
""",
    ),
    "fit": (
        fit_guide,
        (DataChoice, ModelChoice, FitChoice, Run),
        "train a model under one guide and save both",
        f"""{_DATA}

examples:
  pyro-vae fit digits --latents 8 --out model
  pyro-vae fit patients.csv --drop id --kinds visits=Count --out model
  pyro-vae fit pixels.npy --divide-by 255 --binarize fixed --out model
""",
    ),
    "evaluate": (
        evaluate_saved,
        (EvaluateChoice, Run),
        "log p(y) of data under a saved model",
        """\
examples:
  pyro-vae evaluate model                    held-out part of the data it was trained on
  pyro-vae evaluate model new.csv --out results --samples 5000
""",
    ),
    "sample": (
        sample_saved,
        (SampleChoice, Run),
        "draw new data from a saved model",
        """\
examples:
  pyro-vae sample model -n 1000 --out draws.csv
""",
    ),
}
"""Commands by name: what each calls, with which groups of options, and its help."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `pyro-vae` and `python -m pyro_vae`.

    Exit status: 0 done, 1 something the user can mend (one line on standard error), 2 wrong
    usage, 130 interrupted.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(given)
    act, groups, *_ = COMMANDS[options.command]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(options.threads)
        with _plain_errors():
            act(*(made(group, options) for group in groups), shlex.join(["pyro-vae", *given]))
    finally:
        torch.set_num_threads(before)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="pyro-vae",
        description="Variational autoencoders as Pyro programs, with guides that can be compared.",
    )
    top.add_argument("--version", action="version", version=f"pyro-vae {__version__}")
    subparsers = top.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for name, (_, groups, text, epilog) in COMMANDS.items():
        command = subparsers.add_parser(
            name,
            help=text,
            description=text[:1].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for group in groups:
            titled = command.add_argument_group(group.__doc__)
            for entry in fields(group):
                _add(titled, entry)
    return top


def _add(group: "argparse._ArgumentGroup", entry: "Field[Any]") -> None:
    how = dict(entry.metadata)
    flags = how.pop("flags") or (f"--{entry.name.replace('_', '-')}",)
    if entry.default is not MISSING:
        how["default"] = entry.default
    if flags[0].startswith("-"):
        how["dest"] = entry.name
    group.add_argument(*flags, **how)


def made(group: type[Options], options: argparse.Namespace) -> Options:
    """A group of options with what was parsed."""
    names = [entry.name for entry in fields(group)]  # type: ignore[arg-type]
    return group(**{name: getattr(options, name) for name in names})


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
    about: dict[str, Any], data: str | None, columns: Columns | None
) -> tuple[Tensor, str]:
    """Rows as the model has them, and what they are called."""
    which = DataChoice(**about["data"])
    if data is None or data in SETS:
        grey = about["model"]["likelihood"] == "bernoulli"
        dataset = replace(which, data=data or which.data).load(about["seed"], grey=grey)
        rows = _parts(dataset)[1]
        return (rows if columns is not None else _scaled(rows, about)), dataset.describe()
    if columns is None:
        rows = _scaled(_grey_rows(which, Path(data)), about)
    else:
        frame = table_of(Path(data), which.key, which.layout)
        dropped = [name for name in which.drop if name in columns_of(frame)]
        rows = columns.encode(without(frame, dropped))
    holes = int(rows.isnan().sum())
    if holes and not about["missing"]:
        raise ValueError(
            f"'{data}' has {holes} missing entries, but the training data had none, so the encoder "
            "has not learned what to make of them: fit on data with holes, or fill these in"
        )
    return rows, f"{data}: {len(rows):,} rows"


def _scaled(rows: Tensor, about: dict[str, Any]) -> Tensor:
    if about["scale"] is None:
        return rows
    center, scale = (torch.tensor(about[key], dtype=torch.float64) for key in ("center", "scale"))
    return ((rows.double() - center) / scale).to(rows.dtype)


def _grey_rows(which: DataChoice, path: Path) -> Tensor:
    """Rows of grey levels, divided and binarized as the training data were."""
    values, names = datasets.read_table(path, key=which.key)
    y = torch.from_numpy(values.astype(np.float64)).to(torch.get_default_dtype())
    y = y.reshape(len(y), -1) / which.divide_by
    datasets.check_batch(y, names=names)
    binarization = BINARIZATIONS[which.binarize or "none"]
    once = FixedDraw() if isinstance(binarization, Redrawn) else binarization
    return once.fixed(y, part=2)


def _write_evaluation(
    path: Path, bound: evidence.EvidenceLowerBound, result: evidence.LogMarginal
) -> None:
    columns = {
        "row": torch.arange(len(result.value)),
        "log_p": result.value,
        "log_p_error": result.error,
        "ess": result.ess,
        "pareto_k": result.pareto_k,
        "reliable": result.reliable.long(),
        "elbo": bound.elbo.value,
        "elbo_error": bound.elbo.error,
    }
    table = torch.stack([column.double() for column in columns.values()], dim=1).numpy()
    np.savetxt(path, table, delimiter=",", header=",".join(columns), comments="", fmt="%.10g")


def _write_table(columns: Columns, draws: Tensor, out: Path) -> None:
    """Draws as rows of the table that the model was trained on: names, words and all."""
    frame = columns.decode(draws)
    if out.suffix == ".parquet":
        optional("pandas", needed_for="parquet").DataFrame(frame).to_parquet(out)
        return
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.names)
        writer.writerows(zip(*(list(frame[name]) for name in columns.names), strict=True))


def _write_numbers(draws: Tensor, names: Sequence[str] | None, out: Path) -> None:
    if out.suffix == ".npy":
        np.save(out, draws.numpy())
        return
    values, header = draws.flatten(start_dim=1).numpy(), ",".join(names or ())
    np.savetxt(out, values, delimiter=",", header=header, comments="")


def _parts(dataset: Dataset) -> tuple[Tensor | Augmented, Tensor]:
    """Training rows, and held-out rows as they are evaluated: one draw, where draws are redone."""
    if isinstance(dataset.binarization, Redrawn):
        held_out = FixedDraw().fixed(dataset.test, part=1)
        return Augmented(dataset.train, dataset.binarization), held_out
    return dataset.train, dataset.test


def _notes(
    which: DataChoice, how: ModelChoice, run: Run, command: str, dataset: Dataset
) -> dict[str, Any]:
    """What is saved beside a model: all that is needed to treat other data as these were."""
    return {
        "command": command,
        "data": {**asdict(which), "drop": list(which.drop)},
        "data set": dataset.describe(),
        "model": {
            **asdict(how),
            "hidden": None if how.hidden is None else list(how.hidden),
            "resume": None,
        },
        "seed": run.seed,
        "log_scale": dataset.log_scale,
        "center": None if dataset.center is None else dataset.center.tolist(),
        "scale": None if dataset.scale is None else dataset.scale.tolist(),
        "feature_names": None if dataset.feature_names is None else list(dataset.feature_names),
        "columns": None if dataset.columns is None else dataset.columns.to_json(),
        "missing": bool(dataset.train.isnan().any() or dataset.test.isnan().any()),
    }


def _interrupted(table: Comparison) -> bool:
    return any(run.interrupted for run in (table, *table.others))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"pyro-vae: warning: {message}", file=sys.stderr)


@contextmanager
def _plain_errors() -> Iterator[None]:
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
