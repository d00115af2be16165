"""The command line: parses arguments, and hands them to :mod:`pyro_vae.commands`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import commands
from .commands import BINARIZATIONS, DataChoice, ModelChoice, Output
from .defaults import GUIDES

_DATA = """\
DATA is a set by name (squares, digits, fashion-mnist) or a file: npy, npz, csv, parquet,
idx with or without .gz. One row a datum. Zeros and ones, and pictures in [0, 1], get a
Bernoulli likelihood; other numbers are standardized and get a Gaussian one with a learned
sigma a column, and every number is reported in the data's own units."""

_EXAMPLES = {
    "compare": f"""\
{_DATA}

examples:
  pyro-vae compare digits --out results
      a table, pictures, ArviZ files and models of three guides on handwritten digits
  pyro-vae compare squares --guides amortized,global --epochs 300
      why one q(z) for all data fails: the average picture, and a rate of zero
  pyro-vae compare measurements.csv --likelihood gaussian --latents 4 --out results
""",
    "fit": f"""\
{_DATA}

examples:
  pyro-vae fit digits --latents 8 --out model
  pyro-vae fit pixels.npy --divide-by 255 --binarize fixed --out model
""",
    "evaluate": """\
examples:
  pyro-vae evaluate model                    held-out part of the data it was trained on
  pyro-vae evaluate model new.csv --out results --samples 5000
""",
    "sample": """\
examples:
  pyro-vae sample model -n 1000 --out draws.npy
""",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `pyro-vae` and `python -m pyro_vae`.

    Exit status: 0 done, 1 something the user can mend (one line on standard error), 2 wrong
    usage, 130 interrupted.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    threads, before = options.threads, torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with commands.plain_errors():
            options.run(options, shlex.join(["pyro-vae", *given]))
    finally:
        torch.set_num_threads(before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyro-vae",
        description="Variational autoencoders as Pyro programs, with guides that can be compared.",
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_compare(_command(subparsers, "compare", "train under several guides, side by side"))
    _add_fit(_command(subparsers, "fit", "train a model under one guide and save both"))
    _add_evaluate(_command(subparsers, "evaluate", "log p(y) of data under a saved model"))
    _add_sample(_command(subparsers, "sample", "draw new data from a saved model"))
    return parser


def _command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=text,
        description=text.capitalize() + ".",
        epilog=_EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no tables")
    parser.add_argument(
        "--threads", type=_positive, default=1,
        help="threads of torch (default 1: for small tensors more are slower)",
    )  # fmt: skip
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a file, or the name of a set")
    group = parser.add_argument_group("data")
    group.add_argument(
        "--binarize", choices=BINARIZATIONS,
        help="none, threshold (at 0.5), fixed (one draw, kept) or redrawn (each batch)",
    )  # fmt: skip
    group.add_argument("--divide-by", type=float, default=1.0, help="e.g. 255 for pixels of a byte")
    group.add_argument("--key", help="name of the array in an npz file")
    group.add_argument(
        "--test-fraction", type=float, default=0.2, help="share held out (default 0.2)"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    default = ModelChoice()
    group = parser.add_argument_group("model and training")
    group.add_argument(
        "--likelihood", choices=["auto", "bernoulli", "gaussian"], default=default.likelihood,
        help="p(y | z) (default: by the data)",
    )  # fmt: skip
    group.add_argument(
        "--sigma", type=float,
        help="a fixed sigma for the Gaussian, in units of the stored data (default: learned)",
    )  # fmt: skip
    group.add_argument(
        "--latents",
        type=_positive,
        default=default.latents,
        help="entries of z (default %(default)s)",
    )
    group.add_argument(
        "--hidden", type=_widths, default=default.hidden, metavar="N,N,...",
        help="widths of the encoder's hidden layers (default 128)",
    )  # fmt: skip
    group.add_argument(
        "--epochs", type=_positive, default=default.epochs, help="(default %(default)s)"
    )
    group.add_argument(
        "--batch-size", type=_positive, default=default.batch_size, help="(default %(default)s)"
    )
    group.add_argument("--lr", type=float, default=default.lr, help="of Adam (default %(default)s)")
    group.add_argument("--warmup", type=int, default=0, help="epochs of KL warm-up (default 0)")


def _add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=what)


def _add_samples(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--samples", type=_positive, default=default,
        help="importance samples a datum (default %(default)s)",
    )  # fmt: skip


def _add_compare(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    _add_model(parser)
    parser.add_argument(
        "--guides", type=_guides, default=GUIDES, metavar="A,B,...",
        help=f"any of {', '.join(GUIDES)} (default all)",
    )  # fmt: skip
    parser.add_argument(
        "--no-fixed", action="store_true",
        help="skip the second comparison, where the first guide's model is fixed",
    )  # fmt: skip
    _add_samples(parser, default=1000)
    _add_output(parser, "folder for report.html, table, pictures, ArviZ files and models")
    parser.set_defaults(run=_compare)


def _add_fit(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    _add_model(parser)
    parser.add_argument("--guide", choices=GUIDES, default=GUIDES[0], help="(default %(default)s)")
    _add_output(parser, "folder to save model and guide in")
    parser.set_defaults(run=_fit)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="a model that was saved by `fit`, or by `compare` in models/",
    )
    parser.add_argument(
        "data", nargs="?", metavar="DATA",
        help="other data, treated as the training data were (default: the held-out rows)",
    )  # fmt: skip
    _add_samples(parser, default=5000)
    _add_output(parser, "folder for log_p.csv, a row a datum")
    parser.set_defaults(run=_evaluate)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `pyro-vae fit` saved")
    parser.add_argument("-n", "--number", type=_positive, default=100, help="draws (default 100)")
    parser.add_argument("--out", type=Path, default=Path("draws.npy"), help="a .npy or .csv file")
    parser.set_defaults(run=_sample)


def _compare(options: argparse.Namespace, command: str) -> None:
    output = _output(options, command)
    fixed = not options.no_fixed
    commands.compare_guides(_data(options), _model(options), output, options.guides, fixed=fixed)


def _fit(options: argparse.Namespace, command: str) -> None:
    output = Output(options.out, quiet=options.quiet, command=command)
    commands.fit_guide(_data(options), _model(options), output, options.guide)


def _evaluate(options: argparse.Namespace, command: str) -> None:
    commands.evaluate_saved(options.folder, options.data, _output(options, command), options.seed)


def _sample(options: argparse.Namespace, command: str) -> None:
    output = Output(None, quiet=options.quiet, command=command)
    commands.sample_saved(options.folder, options.number, options.out, options.seed, output)


def _output(options: argparse.Namespace, command: str) -> Output:
    return Output(options.out, options.samples, options.quiet, command)


def _data(options: argparse.Namespace) -> DataChoice:
    return DataChoice(
        data=options.data,
        binarize=options.binarize,
        divide_by=options.divide_by,
        key=options.key,
        test_fraction=options.test_fraction,
        split_seed=options.seed,
    )


def _model(options: argparse.Namespace) -> ModelChoice:
    return ModelChoice(
        likelihood=options.likelihood,
        sigma=options.sigma,
        latents=options.latents,
        hidden=options.hidden,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        warmup=options.warmup,
        seed=options.seed,
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text}")
    return number


def _widths(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _guides(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in GUIDES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown guide {', '.join(unknown)}; there are {', '.join(GUIDES)}"
        )
    return names
