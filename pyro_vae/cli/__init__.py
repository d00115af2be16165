"""The command line: `pyro-vae`, or `python -m pyro_vae`.

The options are in :mod:`pyro_vae.cli.options`, the commands in :mod:`pyro_vae.cli.training` and
:mod:`pyro_vae.cli.questions`.
"""

import argparse
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from .. import __version__
from .options import (
    CompareChoice,
    DataChoice,
    EmbedChoice,
    EvaluateChoice,
    ExplainChoice,
    FitChoice,
    ImputeChoice,
    ModelChoice,
    OutliersChoice,
    Question,
    ReportChoice,
    Run,
    SampleChoice,
    add,
    made,
    options_of,
    show,
)
from .questions import (
    embed_rows,
    evaluate_saved,
    explain_latents,
    find_outliers,
    impute_rows,
    sample_saved,
    write_report,
)
from .training import compare_guides, describe_data, fit_guide

__all__ = ["COMMANDS", "main", "parser"]

_DATA = """\
DATA is the name of a data set (squares, digits, fashion-mnist) or a file with one row per datum:
npy, npz, csv, parquet, h5ad or idx; text and idx files may be gzipped. Zeros and ones, and images
in [0, 1], get a Bernoulli likelihood. Other numbers are standardized, and get a Gaussian likelihood
with a learned sigma per column. In a table with column names, each column gets its own likelihood
(see `pyro-vae describe`). All results are in the data's own units."""

COMMANDS: dict[str, tuple[Callable[..., None], tuple[type, ...], str, str]] = {
    "describe": (
        describe_data,
        (DataChoice,),
        "show how each column of a file is interpreted, and why",
        f"""{_DATA}

examples:
  pyro-vae describe patients.csv
  pyro-vae describe patients.csv --drop id --kinds visits=Count
""",
    ),
    "compare": (
        compare_guides,
        (DataChoice, ModelChoice, CompareChoice),
        "train a model with each of several guides, and compare the guides",
        f"""{_DATA}

examples:
  pyro-vae compare digits --out results
      a table, figures, ArviZ files and models of three guides on handwritten digits
  pyro-vae compare squares --guides amortized,global --epochs 300
      shows why one q(z) for all data fails: every decoded image is the average image, and the
      rate is zero
  pyro-vae compare measurements.csv --latents 4 --out results
""",
    ),
    "fit": (
        fit_guide,
        (DataChoice, ModelChoice, FitChoice),
        "train a model with one guide, and save model and guide",
        f"""{_DATA}

examples:
  pyro-vae fit digits --latents 8 --out model
  pyro-vae fit patients.csv --drop id --kinds visits=Count --out model
  pyro-vae fit pixels.npy --divide-by 255 --binarize fixed --out model
""",
    ),
    "evaluate": (
        evaluate_saved,
        (Question, EvaluateChoice),
        "estimate log p(y) of data under a saved model",
        """\
examples:
  pyro-vae evaluate model                    the held-out rows of the model's own data
  pyro-vae evaluate model new.csv --out results --samples 5000
""",
    ),
    "embed": (
        embed_rows,
        (Question, EmbedChoice),
        "compute the position of each row in latent space",
        """\
examples:
  pyro-vae embed model measurements.csv --out embedding.csv
      a column per latent, next to the row's number (from 0) and the dropped columns
""",
    ),
    "impute": (
        impute_rows,
        (Question, ImputeChoice),
        "fill in missing entries, with intervals",
        """\
examples:
  pyro-vae impute model measurements.csv --out imputed.csv
      the completed table, and imputed_entries.csv: a 95% interval for each missing entry
""",
    ),
    "outliers": (
        find_outliers,
        (Question, OutliersChoice),
        "find rows that are unusual under the model, with p-values",
        """\
p is the share of simulated data whose density is at most that of the row. The data are simulated
from the model once, and compared with every row; --reference sets their number. Where a row has a
missing entry, this entry of the simulated data is left out, too.

examples:
  pyro-vae outliers model                    the held-out rows of the model's own data
  pyro-vae outliers model new.csv --reference 200 --out outliers.csv
""",
    ),
    "explain": (
        explain_latents,
        (Question, ExplainChoice),
        "show which latents affect which columns",
        """\
examples:
  pyro-vae explain model
  pyro-vae explain model measurements.csv --out effects.png
""",
    ),
    "report": (
        write_report,
        (Question, ReportChoice),
        "write all results on one page, the most important first",
        """\
examples:
  pyro-vae report model                      the held-out rows of the model's own data
  pyro-vae report model new.csv --reference 200 --out report.html
""",
    ),
    "sample": (
        sample_saved,
        (SampleChoice,),
        "draw new data from a saved model",
        """\
examples:
  pyro-vae sample model -n 1000 --out draws.csv
""",
    ),
}
"""Commands by name: each has a function, groups of options besides `Run`, and help texts."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `pyro-vae` and `python -m pyro_vae`.

    The exit status is 0 after success, 1 after an error that the user can fix (shown as one line on
    standard error), 2 after wrong usage, and 130 after an interrupt.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(given)
    act, groups, *_ = COMMANDS[options.command]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(options.threads)
        with _plain_errors():
            run = replace(made(Run, options), typed=shlex.join(["pyro-vae", *given]))
            act(*(made(group, options) for group in groups), run)
    finally:
        torch.set_num_threads(before)


def parser() -> argparse.ArgumentParser:
    """Builds the argument parser of all commands."""
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
        for group in (*groups, Run):
            titled = command.add_argument_group(group.__doc__)
            for entry in options_of(group):
                add(titled, entry)
    return top


def _shown_once() -> Callable[..., None]:
    """Returns a function that prints each warning only once, even if it is given several times."""
    seen = set[str]()

    def once(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in seen:
            show(f"pyro-vae: warning: {message}", as_error=True)
        seen.add(str(message))

    return once


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Prints warnings, and errors that the user can fix, as one line each.

    After an error, the process exits with status 1.
    """
    try:
        with warnings.catch_warnings():
            # ArviZ 0.23 announces its next version at import, once a day.
            warnings.filterwarnings("ignore", message="\nArviZ", category=FutureWarning)
            warnings.showwarning = _shown_once()
            yield
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        sys.exit(f"pyro-vae: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # what shells expect of a program ended by Ctrl-C
