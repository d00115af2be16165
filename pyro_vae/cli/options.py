"""Options of the command line: each group of options is a dataclass, and each option is a field.

The field defines the flag, default and help text of the option; a command receives the dataclass.
"""

# ruff: noqa: RUF009 (`option` makes a field of a dataclass)

import argparse
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from .. import data as datasets
from .. import defaults, likelihoods
from ..data import Binarization, Dataset, FixedDraw, Grey, Layout, Redrawn, Threshold
from ..data.kinds import KINDS, Kind
from ..data.remedies import parts
from ..data.sets import SETS
from ..defaults import GUIDES, Architecture
from ..objectives import BetaELBO, LinearWarmup
from ..training import adam_with

BINARIZATIONS: dict[str, Binarization] = {
    "none": Grey(),
    "threshold": Threshold(),
    "fixed": FixedDraw(),
    "redrawn": Redrawn(),
}
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}
Options = TypeVar("Options")


def _positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"the value must be a positive whole number; got {text}")
    return int(text)


def _warmup(text: str) -> int:
    """Reads a whole number of at least 0."""
    return 0 if text.strip() == "0" else _positive(text)


def _above_zero(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"the value must be a finite number above 0; got {text}")


def _path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(
            f"the value must be the name of a file or folder; got '{text}'"
        )
    return Path(text)


def _threads(text: str) -> int:
    most = max(64, os.cpu_count() or 1)  # OpenMP aborts if it cannot start this many threads
    if _positive(text) > most:
        raise argparse.ArgumentTypeError(
            f"the number of threads must be at most {most}; got {text}"
        )
    return int(text)


def _separator(text: str) -> str:
    if text not in SEPARATORS and len(text) != 1:
        raise argparse.ArgumentTypeError(
            f"the separator must be one character, or {', '.join(SEPARATORS)}; got '{text}'"
        )
    return text


def _widths(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(parts(text))


def _guides(text: str) -> tuple[str, ...]:
    names = _names(text)
    unknown = [name for name in names if name not in GUIDES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"the guides must be among {', '.join(GUIDES)}; got {', '.join(unknown)}"
        )
    return names


def _kinds(text: str) -> dict[str, str]:
    """Parses the kinds of some columns, as in `age=Real,visits=Count`."""
    pairs = [part.rpartition("=")[::2] for part in parts(text)]
    kinds = dict(pairs)
    if len(kinds) < len(set(pairs)):
        raise argparse.ArgumentTypeError(f"each column must have one kind; got {text}")
    if not all(kinds) or not set(kinds.values()) <= set(KINDS):
        raise argparse.ArgumentTypeError(
            f"the value must be COLUMN=KIND,... with kinds among {', '.join(KINDS)}; got {text}"
        )
    return kinds


def show(text: str, *, as_error: bool = False) -> None:
    """Prints a text, on standard output or, for warnings, on standard error.

    Once the stream can no longer be written to, because a pipe was closed or a terminal is gone,
    further texts are dropped, so that the command can still save its results. Characters that the
    encoding of the stream cannot represent are escaped.
    """
    to = sys.stderr if as_error else sys.stdout
    try:
        print(text, file=to, flush=True)
    except UnicodeEncodeError:
        print(text.encode(to.encoding, "backslashreplace").decode(to.encoding), file=to, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())


def option(default: Any, text: str, *flags: str, **how: Any) -> Any:
    """Makes a dataclass field for an option; argparse's `add_argument` gets the arguments `how`."""
    return field(default=default, metadata={"help": text, "flags": flags, **how})


def _count(default: Any, text: str, *flags: str) -> Any:
    return option(default, text, *flags, type=_positive)


def _switch(text: str) -> Any:
    return option(default=False, text=text, action="store_true")


def _file(default: Any, text: str) -> Any:
    return option(default, text, type=_path, metavar="FILE")


def _folder(default: Any, text: str, *flags: str) -> Any:
    return option(default, text, *flags, type=_path, metavar="FOLDER")


@dataclass(frozen=True)
class DataChoice:
    """options for the data"""  # noqa: D415 (the title of the group)

    data: str = option(MISSING, "a file, or the name of a data set", "data", metavar="DATA")
    binarize: str | None = option(
        None,
        "how grey levels are binarized: none, threshold (at 0.5), fixed (drawn once) or redrawn "
        "(in each batch); by default fixed for digits and fashion-mnist, and none for files",
        choices=[*BINARIZATIONS],
    )
    divide_by: float = option(
        1.0,
        "number by which all values are divided, such as 255 for 8-bit pixels (default "
        "%(default)s)",
        type=float,
    )
    key: str | None = option(
        None,
        "name of the array to read from an npz file, or of the layer to read from an h5ad file "
        "(default: the only array, or the matrix X)",
    )
    test_fraction: float = option(
        0.2,
        "share of the rows that are held out (default %(default)s); squares and fashion-mnist are "
        "split already",
        type=float,
    )
    drop: Sequence[str] = option(
        (),
        "columns to leave out; a name with a comma is put in double quotes, as in "
        "--drop 'id,\"height, cm\"' (default: none)",
        type=_names,
        metavar="COLUMN,...",
    )
    kinds: dict[str, str] | None = option(
        None,
        f"kinds for columns whose detected kind is wrong; possible kinds are {', '.join(KINDS)}",
        type=_kinds,
        metavar="COLUMN=KIND,...",
    )
    missing: Sequence[str] = option(
        (),
        "cells to read as missing entries, in addition to empty cells, as in --missing=-999,n.d.; "
        "to read a cell as missing in one column only, put the column's name in front, as in "
        "--missing=age=99",
        type=_names,
        metavar="CELL,...",
    )
    sep: str | None = option(
        None,
        f"separator of cells in a text file: {', '.join(SEPARATORS)}, or one character (default: "
        "detected)",
        type=_separator,
    )
    header: bool | None = option(
        None,
        "whether a text file starts with column names (default: detected)",
        action=argparse.BooleanOptionalAction,
    )

    @property
    def is_grey(self) -> bool:
        """Whether the data are grey levels; dividing or binarizing them implies this."""
        return self.binarize is not None or self.divide_by != 1

    @property
    def layout(self) -> Layout:
        """Returns the layout that says how a text file is split into cells."""
        separator = None if self.sep is None else SEPARATORS.get(self.sep, self.sep)
        return Layout(separator, self.header, missing=tuple(self.missing))

    @property
    def declared(self) -> dict[str, type[Kind]]:
        """Returns the kinds of columns that the user gave."""
        return {name: KINDS[kind] for name, kind in (self.kinds or {}).items()}

    def load(self, seed: int, *, grey: bool = False) -> Dataset:
        """Loads and splits the data set; with `grey`, a file is taken to hold grey levels."""
        unset = Grey() if grey and self.data not in SETS else None
        return datasets.load(
            self.data,
            binarization=unset if self.binarize is None else BINARIZATIONS[self.binarize],
            test_fraction=self.test_fraction,
            seed=seed,
            key=self.key,
            divide_by=self.divide_by,
            kinds=self.declared,
            drop=self.drop,
            layout=self.layout,
        )


@dataclass(frozen=True)
class ModelChoice:
    """options for the model and its training"""  # noqa: D415

    likelihood: str = option(
        "auto",
        "likelihood p(y | z) of the data given the latents (default: chosen from the data)",
        choices=["auto", "bernoulli", "gaussian"],
    )
    sigma: float | None = option(
        None,
        "fixed standard deviation for --likelihood gaussian, in the units of the preprocessed "
        "data (default: learned)",
        type=_above_zero,
    )
    latent_dim: int | None = _count(
        None,
        "number of latents; by default half the number of columns, but at least 1 and at most 10; "
        "for a table of up to 512 columns, the maximum rises to one latent per ten training rows, "
        "up to 32",
        "--latents",
    )
    hidden: Sequence[int] | None = option(
        None,
        "widths of the encoder's hidden layers; by default one layer with 4 units per column, at "
        "least 32 and at most 256 in all",
        type=_widths,
        metavar="N,N,...",
    )
    epochs: int = _count(500, "number of passes over the training data (default %(default)s)")
    batch_size: int | None = _count(
        None,
        "number of rows per optimization step; by default a tenth of the training rows, at "
        "least 32 and at most 256",
    )
    lr: float = option(
        2e-3, "step size of the optimizer, Adam (default %(default)s)", type=_above_zero
    )
    warmup: int = option(
        0,
        "number of epochs in which the weight of the KL divergence rises from 0 to 1 (default "
        "%(default)s)",
        type=_warmup,
    )
    resume: Path | None = _folder(
        None,
        "folder that keeps the state of training, so that the same command resumes after an "
        "interruption (default: no state is kept)",
    )

    def load(self, which: DataChoice, seed: int) -> tuple[Dataset, Architecture]:
        """Loads the data set, and chooses the likelihood and the sizes of the model.

        For a Gaussian likelihood, numbers are standardized. Images are left unchanged, because
        their pixels have a common scale already.
        """
        if self.sigma is not None and self.likelihood != "gaussian":
            raise ValueError(
                f"--sigma is the standard deviation of --likelihood gaussian; got --sigma "
                f"{self.sigma:g} with --likelihood {self.likelihood}: use --likelihood gaussian, "
                "or leave out --sigma"
            )
        dataset = which.load(seed, grey=self.likelihood == "bernoulli")
        likelihood = self.likelihood_of(dataset)
        if isinstance(likelihood, likelihoods.Gaussian) and dataset.image_shape is None:
            dataset = dataset.standardized()
        return dataset, Architecture(self.latent_dim, self.hidden, seed, likelihood)

    def likelihood_of(self, dataset: Dataset) -> likelihoods.Likelihood:
        """Returns the likelihood that the user chose, or else a likelihood that suits the data."""
        default = defaults.default_likelihood(dataset)
        if self.likelihood != "auto" and isinstance(default, likelihoods.Mixed):
            raise ValueError(
                f"--likelihood {self.likelihood} is for tables of numbers, but the columns are "
                f"{dataset.columns}: leave out --likelihood, so that each column gets its own "
                "likelihood"
            )
        if self.likelihood == "bernoulli":
            return likelihoods.Bernoulli()
        if self.likelihood == "gaussian" and self.sigma is not None:
            return likelihoods.Gaussian(self.sigma)
        if self.likelihood == "gaussian":
            return likelihoods.Gaussian(likelihoods.LearnedSigma(dataset.train.shape[1:]))
        return default

    def fitting(self, dataset: Dataset, seed: int) -> dict[str, Any]:
        """Returns the arguments of :func:`pyro_vae.fit` that follow from the options."""
        return {
            "num_epochs": self.epochs,
            "batch_size": self.batch_size or defaults.batch_size(len(dataset.train)),
            "optimizer": adam_with(self.lr),
            "objective": BetaELBO(LinearWarmup(self.warmup)) if self.warmup else None,
            "checkpoint": self.resume,
            "seed": seed,
        }

    def require_apart(self, out: Path) -> None:
        """Refuses an --out that is the folder of --resume, or that contains this folder.

        Saving replaces the whole folder of results, and refuses a folder that holds other files.
        """
        if self.resume is None:
            return
        state, results = self.resume.resolve(), out.resolve()
        if results in (state, *state.parents):
            raise ValueError(
                f"--out '{out}' must be a folder for nothing but the results, but --resume "
                f"'{self.resume}' would keep the state of training in it: choose another folder "
                f"for the state, such as --resume '{out.with_name(f'{results.name}-state')}'"
            )

    def kept(self, part: str) -> dict[str, Any]:
        """Returns the argument `checkpoint` for one training run: a subfolder of --resume."""
        return {"checkpoint": None if self.resume is None else self.resume / part}


@dataclass(frozen=True)
class Run:
    """options of every command"""  # noqa: D415

    seed: int = option(0, "random seed (default %(default)s)", type=int)
    quiet: bool = _switch("print no progress bars and no tables")
    threads: int = option(
        1,
        "number of threads of torch (default 1; more threads are slower for small tensors)",
        type=_threads,
    )

    typed: str = ""  # the whole command line, which is kept with results; not an option

    @property
    def progress(self) -> bool | None:
        """Returns False if --quiet is given; otherwise None, which shows bars on terminals only."""
        return False if self.quiet else None

    def say(self, text: str) -> None:
        """Prints a text, unless --quiet is given."""
        if not self.quiet:
            show(text)


@dataclass(frozen=True)
class CompareChoice:
    """options for the comparison"""  # noqa: D415

    guides: Sequence[str] = option(
        GUIDES,
        f"guides to compare, out of {', '.join(GUIDES)} (default: all of them)",
        type=_guides,
        metavar="A,B,...",
    )
    no_fixed: bool = _switch(
        "skip the second comparison, in which all guides share the first guide's model"
    )
    samples: int = _count(1000, "number of importance samples per datum (default %(default)s)")
    out: Path | None = _folder(
        None,
        "folder for results: report.html, a table, figures, ArviZ files and models (default: "
        "nothing is saved)",
    )


@dataclass(frozen=True)
class FitChoice:
    """options for the guide"""  # noqa: D415

    guide: str = option(GUIDES[0], "guide to train (default %(default)s)", choices=GUIDES)
    out: Path | None = _folder(
        None, "folder in which model and guide are saved (default: nothing is saved)"
    )


@dataclass(frozen=True)
class Question:
    """options for the saved model and the rows"""  # noqa: D415

    folder: Path = _folder(
        MISSING,
        "folder of a saved model: OUT after `fit --out OUT`, or a folder in OUT/models after "
        "`compare --out OUT`",
        "folder",
    )
    data: str | None = option(
        None,
        "file of other data, which are preprocessed like the training data (default: the held-out "
        "rows of the model's own data)",
        "data",
        nargs="?",
        metavar="DATA",
    )


@dataclass(frozen=True)
class EvaluateChoice:
    """options for the evaluation"""  # noqa: D415

    samples: int = _count(5000, "number of importance samples per datum (default %(default)s)")
    tightest: bool = _switch(
        "to estimate log p, fit a proposal to each row for which draws from the guide do not "
        "suffice; this is slower, but log p can be trusted for more rows"
    )
    out: Path | None = _folder(
        None, "folder for log_p.csv, which has one row per datum (default: nothing is saved)"
    )


@dataclass(frozen=True)
class EmbedChoice:
    """options for the embedding"""  # noqa: D415

    out: Path = _file(
        Path("embedding.csv"), "file for the embedding, .csv or .parquet (default %(default)s)"
    )


@dataclass(frozen=True)
class ImputeChoice:
    """options for the imputation"""  # noqa: D415

    draws: int = _count(100, "number of draws per row (default %(default)s)")
    out: Path = _file(
        Path("imputed.csv"),
        "file for the completed table, .csv or .parquet (default %(default)s); a second file, "
        "with _entries in its name, gets a 95%% interval for each missing entry",
    )


@dataclass(frozen=True)
class OutliersChoice:
    """options for finding outliers"""  # noqa: D415

    reference: int = _count(1000, "number of reference data to simulate (default %(default)s)")
    false_discoveries: float = option(
        0.05,
        "false discovery rate, the expected share of ordinary rows among the flagged rows "
        "(default %(default)s)",
        type=float,
    )
    out: Path = _file(
        Path("outliers.csv"), "file for the p-values, .csv or .parquet (default %(default)s)"
    )


@dataclass(frozen=True)
class ExplainChoice:
    """options for the explanation"""  # noqa: D415

    out: Path | None = _file(
        None,
        "file for the effects, .csv or .parquet, or for a figure, .png (default: nothing is saved)",
    )


@dataclass(frozen=True)
class ReportChoice:
    """options for the report"""  # noqa: D415

    samples: int = _count(1000, "number of importance samples per datum (default %(default)s)")
    reference: int = _count(
        1000,
        "number of reference data to simulate for flagging outliers (default %(default)s)",
    )
    out: Path = _file(Path("report.html"), "file for the report, .html (default %(default)s)")


@dataclass(frozen=True)
class SampleChoice:
    """options for the saved model and the draws"""  # noqa: D415

    folder: Path = _folder(MISSING, "folder of a model saved by `pyro-vae fit`", "folder")
    number: int = _count(100, "number of draws (default %(default)s)", "-n", "--number")
    out: Path | None = _file(
        None,
        "file for the draws, .csv, .parquet or .npy (default: draws.csv if columns have names, "
        "otherwise draws.npy)",
    )


def options_of(group: type) -> "list[Field[Any]]":
    """Returns the fields of a group that define options; other fields have no metadata."""
    return [entry for entry in fields(group) if entry.metadata]


def add(group: "argparse._ArgumentGroup", entry: "Field[Any]") -> None:
    """Adds an option, which a dataclass field defines, to an argument group of a parser."""
    how = dict(entry.metadata)
    flags = how.pop("flags") or (f"--{entry.name.replace('_', '-')}",)
    if entry.default is not MISSING:
        how["default"] = entry.default
    if flags[0].startswith("-"):
        how["dest"] = entry.name
    group.add_argument(*flags, **how)


def made(group: type[Options], options: argparse.Namespace) -> Options:
    """Builds a group of options from the parsed arguments."""
    return group(**{entry.name: getattr(options, entry.name) for entry in options_of(group)})
