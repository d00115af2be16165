"""Data sets by name or from a file, split into training rows and held-out rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from .._types import optional
from .._warnings import once_for_all_columns
from ..formatting import count_of
from ..randomness import row_digests
from ..writing import existing_file
from .binarize import Binarization, FixedDraw, Grey
from .checks import check_batch, check_finite, warn_constant_columns
from .choices import keeps_strings, kind_of_matrix
from .copies import warn_of_copies
from .dataset import Dataset
from .files import check_key, file_kind, read_frame, read_idx, read_table, split_rows
from .frames import columns_of, index_of
from .kinds import Kinds
from .tables import Columns
from .text import Layout

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""The folder of Debian's package `dataset-fashion-mnist`."""
SETS = ("squares", "digits", "fashion-mnist")
"""Names of the data sets that :func:`load` knows."""
_HELD_OUT = 0.2  # share of the rows, by default


def squares(num_data: int = 1000, side: int = 28, *, num_test: int = 200) -> Dataset:
    r"""Makes the smallest data set that needs a latent: images of zeros and of ones alternate.

    Half of the training images, and half of the held-out images, are all 0. With a Bernoulli
    likelihood of :math:`D` pixels, the best log density is therefore known: :math:`-\log 2` per
    datum with exact inference, and :math:`-D \log 2` if one :math:`q(z)` is used for all data.

    Arguments:
        num_data: Number of training images, an even number.
        side: Height and width in pixels.
        num_test: Number of held-out images, an even number.

    Returns:
        Rows of `side ** 2` pixels; the label of a row is its pixels' value.

    Raises:
        ValueError: If `num_data` or `num_test` is odd or below 2, or `side` is below 1.

    Example:
        >>> squares(4, side=1, num_test=2).train.flatten()
        tensor([0., 1., 0., 1.])
    """
    train_labels, test_labels = _halves("num_data", num_data), _halves("num_test", num_test)
    dtype = torch.get_default_dtype()
    return Dataset(
        name="squares",
        train=train_labels.to(dtype)[:, None].repeat(1, side**2),
        test=test_labels.to(dtype)[:, None].repeat(1, side**2),
        train_labels=train_labels,
        test_labels=test_labels,
        image_shape=(side, side),
    )


def digits(
    *,
    binarization: Binarization = FixedDraw(),  # noqa: B008 (frozen: one value serves every call)
    seed: int = 0,
    test_fraction: float = 0.2,
) -> Dataset:
    """Loads scikit-learn's 1,797 handwritten digits (8 x 8 pixels), without a download.

    Arguments:
        binarization: How the grey levels 0..16 are binarized, after division by 16.
        seed: Seed of the split.
        test_fraction: Share of the rows held out.

    Returns:
        Rows of 64 pixels; the label of a row is its digit.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If a part of the split would be empty.

    References:
        | Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998)
        | https://doi.org/10.24432/C50P49
    """
    source = optional("sklearn.datasets", needed_for="the set digits").load_digits()
    y, labels = _floats(source.data / 16), torch.from_numpy(source.target.astype(np.int64))
    train, test = split_rows(len(y), test_fraction=test_fraction, seed=seed)
    grey = Dataset(
        name="digits",
        train=y[train],
        test=y[test],
        train_labels=labels[train],
        test_labels=labels[test],
        image_shape=(8, 8),
        log_scale=_log_jacobian(y, 16),
    )
    return grey.binarized(binarization)


def fashion_mnist(
    folder: str | Path | None = None,
    *,
    binarization: Binarization = FixedDraw(),  # noqa: B008 (frozen: one value serves every call)
    num_train: int | None = None,
    num_test: int | None = None,
) -> Dataset:
    """Loads Fashion-MNIST: 60,000 + 10,000 images of clothes (28 x 28 pixels), in ten classes.

    Nothing is downloaded. The four idx files, with or without `.gz`, are taken from Debian's
    package `dataset-fashion-mnist`, or from a folder of your own. MNIST's files have the same
    names, so this function can load MNIST, too.

    Arguments:
        folder: Folder with the four files; by default the folder of Debian's package.
        binarization: How the grey levels 0..255 are binarized, after division by 255.
        num_train: How many of the first training images to load; by default all.
        num_test: How many of the first held-out images to load; by default all.

    Returns:
        Rows of 784 pixels; the label of a row is its class, 0..9.

    Raises:
        FileNotFoundError: If a file is missing; the message says which one, and how to get it.
        ValueError: If a file is damaged, or has fewer images than requested.

    References:
        | Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms
          (Xiao et al., 2017)
        | https://arxiv.org/abs/1708.07747
    """
    files = _idx_files(FASHION_MNIST_FOLDER if folder is None else Path(folder))
    train, train_labels, image_shape = _pictures(files[0], files[1], num_train)
    test, test_labels, test_shape = _pictures(files[2], files[3], num_test)
    if image_shape != test_shape:
        raise ValueError(
            f"training images and held-out images must have the same shape; got {image_shape} and "
            f"{test_shape}: take all files from the same data set"
        )
    grey = Dataset(
        name="fashion-mnist",
        train=train,
        test=test,
        train_labels=train_labels,
        test_labels=test_labels,
        image_shape=image_shape,
        log_scale=_log_jacobian(train, 255),
    )
    return grey.binarized(binarization)


@dataclass(frozen=True)
class _Options:
    """The options of :func:`load`."""

    binarization: Binarization | None
    test_fraction: float
    seed: int
    key: str | None
    divide_by: float | int
    kinds: Kinds
    drop: Sequence[str]
    layout: Layout


def load(
    source: str | Path,
    *,
    binarization: Binarization | None = None,
    test_fraction: float = _HELD_OUT,
    seed: int = 0,
    key: str | None = None,
    divide_by: float | int = 1,
    kinds: Kinds | None = None,
    drop: Sequence[str] = (),
    layout: Layout = Layout(),  # noqa: B008 (frozen: one value serves every call)
) -> Dataset:
    """Loads a data set by name, or the rows of a file.

    Arguments:
        source: `squares`, `digits`, `fashion-mnist`, or a file that :func:`read_table` reads. A
            name takes precedence over a file of that name; write `./digits` for the file.
        binarization: How grey levels in [0, 1] are binarized. By default, a named set has a
            binarization of its own, and a file is not binarized. `Grey()` declares that a file
            holds grey levels.
        test_fraction: Share of the rows held out, if the source is not split already.
        seed: Seed of that split.
        key: Name of the array in an npz file that has several, or of a layer in an h5ad file.
        divide_by: Number to divide the values of a file by, such as 255 for 8-bit pixels.
        kinds: Kinds of some columns of a table, where the rules of :class:`Columns` do not fit.
        drop: Names of columns to leave out.
        layout: How to parse a text file; settings that are None are detected. The marks of missing
            entries that it declares apply to files of all formats.

    Returns:
        The data set. The columns of a file are encoded by :class:`Columns`: real columns are
        standardized, and `log_scale` converts densities to the file's own units. Grey levels are
        not standardized. The following count as grey levels: images in an idx file, arrays of more
        than two axes, and all values that are divided or binarized.

    Raises:
        FileNotFoundError: If there is neither a set nor a file of this name.
        ValueError: If the file cannot be read, or holds inf, or if an option does not fit the
            source.

    Example:
        >>> load("squares").train.shape
        torch.Size([1000, 784])
    """
    options = _Options(
        binarization, test_fraction, seed, key, divide_by, kinds or {}, tuple(drop), layout
    )
    if str(source) in SETS and not isinstance(source, Path):
        return _named(str(source), options)
    expected = f"a file of data, or one of the data sets {', '.join(SETS)}"
    return _from_file(existing_file(source, expected), options)


def _named(name: str, options: _Options) -> Dataset:
    """Loads a data set of the library; refuses options that do not apply to the set."""
    own = replace(options, key=None, divide_by=1, kinds={}, drop=(), layout=Layout())
    if options != own:
        exists = (
            f", or pass './{name}' to read the file of this name" if Path(name).exists() else ""
        )
        raise ValueError(
            f"`key`, `divide_by`, `kinds`, `drop` and `layout` are for files, but '{name}' is a "
            f"data set of the library: leave these arguments out{exists}"
        )
    binarization = options.binarization or FixedDraw()
    if name == "digits":
        return digits(
            binarization=binarization, seed=options.seed, test_fraction=options.test_fraction
        )
    if options.test_fraction != _HELD_OUT:
        raise ValueError(
            f"'{name}' has held-out rows of its own, so test_fraction={options.test_fraction:g} "
            "has no effect: leave out `test_fraction`"
        )
    if name == "fashion-mnist":
        return fashion_mnist(binarization=binarization)
    if options.binarization is not None:
        raise ValueError(
            f"squares are binary already, so {options.binarization!r} has no effect: leave out "
            "`binarization`"
        )
    return squares()


@once_for_all_columns()
def from_frame(
    frame: Any,
    *,
    kinds: Kinds | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str = "table",
) -> Dataset:
    """Splits a table into training rows and held-out rows, and encodes its columns as numbers.

    Arguments:
        frame: A table, as for :meth:`Columns.of`.
        kinds: Kinds of some columns, as for :meth:`Columns.of`.
        test_fraction: Share of the rows held out.
        seed: Seed of the split.
        name: Name of the set.

    Returns:
        The data set; its `columns` convert rows back to tables.

    Example:
        >>> table = {"height": [1.6, 1.8, None, 1.7, 1.5], "sex": ["f", "m", "m", "f", "f"]}
        >>> from_frame(table)
        table: 4 training rows, 1 held out, 2 values each, not binarized (height: Real, ...
    """
    num_data = len(next(iter(columns_of(frame).values())).values)
    train, test = split_rows(num_data, test_fraction=test_fraction, seed=seed)
    columns = Columns.of(frame, kinds, rows=train.numpy())
    exact = columns.encode(frame, dtype=torch.float64)
    y = exact.to(torch.get_default_dtype())
    warn_constant_columns(y[train], columns.names)
    warn_of_copies(exact[train], columns.kinds)
    return Dataset(
        name=name,
        train=y[train],
        test=y[test],
        feature_names=columns.names if columns.named else None,
        log_scale=columns.log_scale,
        center=columns.center,
        scale=columns.scale,
        columns=columns,
        digests=row_digests(y[train]),
    )


def _from_file(path: Path, options: _Options) -> Dataset:
    """Loads the rows of a file, either as a table or as grey levels."""
    if not (math.isfinite(options.divide_by) and options.divide_by > 0):
        raise ValueError(
            f"`divide_by` must be a positive number; got {options.divide_by:g}: pass "
            "`divide_by=255` for grey levels up to 255"
        )
    frame = None
    if options.binarization is None and options.divide_by == 1:
        frame = table_of(path, options.key, options.layout, options.drop, options.kinds)
    if frame is None:
        return _from_grey(path, options)
    frame = without(frame, options.drop)
    return from_frame(
        frame,
        kinds={**shared_kinds(frame), **options.kinds},
        test_fraction=options.test_fraction,
        seed=options.seed,
        name=path.name,
    )


def table_of(path: Path, key: str | None, layout: Layout, drop: Sequence[str], kinds: Kinds) -> Any:
    """Reads a file as a table; returns None for images, and for arrays of more than two axes.

    Columns in `drop`, and columns that `kinds` declares as words or times, are read as strings.
    """
    strings = [name for name, kind in kinds.items() if keeps_strings(kind)]
    layout = replace(layout, words=(*layout.words, *drop, *strings))
    if path.is_file() and file_kind(path) in ("csv", "parquet"):
        check_key(path, key)
        return read_frame(path, layout)
    values, names = read_table(path, key=key, layout=layout)
    values, image_shape = _rows(path, values)
    if values.ndim != 2 or image_shape is not None:
        return None
    return values if names is None else dict(zip(names, values.T, strict=True))


def shared_kinds(frame: Any) -> Kinds:
    """Maps the name of each column of a matrix to the kind that all its columns share.

    Only a matrix is passed as a dictionary (see :func:`table_of`); for any other table, the result
    is empty.
    """
    if not isinstance(frame, dict):
        return {}
    return dict.fromkeys(frame, kind_of_matrix(np.stack(list(frame.values()), axis=1)))


def rows_of(frame: Any, places: Sequence[int]) -> Any:
    """Returns the rows of a table at the given positions."""
    if isinstance(frame, dict):
        return {name: [column[place] for place in places] for name, column in frame.items()}
    return frame[places] if index_of(frame) is None else frame.iloc[places]


def without(frame: Any, names: Sequence[str]) -> Any:
    """Returns a copy of a table without the named columns.

    Raises:
        ValueError: If the table lacks a named column, or has no other columns.
    """
    if not names:
        return frame
    found = list(columns_of(frame))
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(
            f"`drop` must name columns of the table; got {unknown}, but the columns are {found}: "
            "correct these names"
        )
    kept = [name for name in found if name not in names]
    if not kept:
        raise ValueError(
            f"`drop` must leave at least one column of the table; got all of {found}: keep a column"
        )
    if isinstance(frame, np.ndarray):
        return {name: frame[:, int(name)] for name in kept}
    return {name: frame[name] for name in kept} if isinstance(frame, dict) else frame[kept]


def _from_grey(path: Path, options: _Options) -> Dataset:
    """Builds a data set from a file of images or other grey levels, without encoding columns."""
    if options.drop or options.kinds:
        raise ValueError(
            f"`drop` and `kinds` are for columns, but '{path}' is read as grey levels: leave "
            "these arguments out"
        )
    y, names, image_shape = grey_levels(path, options.key, options.layout, options.divide_by)
    train, test = split_rows(len(y), test_fraction=options.test_fraction, seed=options.seed)
    dataset = Dataset(
        name=path.name,
        train=y[train],
        test=y[test],
        feature_names=names,
        image_shape=image_shape,
        log_scale=_log_jacobian(y, options.divide_by),
        digests=row_digests(y[train]),
    )
    return dataset.binarized(options.binarization or Grey())


def grey_levels(
    path: Path, key: str | None, layout: Layout, divide_by: float | int
) -> tuple[Float[Tensor, "rows *datum"], tuple[str, ...] | None, tuple[int, int] | None]:
    """Reads grey levels, one row per datum; also returns names of columns and an image's shape."""
    values, names = read_table(path, key=key, layout=layout)
    values, image_shape = _rows(path, values)
    y = _floats(values) / divide_by
    check_finite(f"'{path}'", y, names)
    check_batch(y)
    return y, names, image_shape


def _rows(
    path: Path, values: Shaped[np.ndarray, "rows ..."]
) -> tuple[Shaped[np.ndarray, "rows *datum"], tuple[int, int] | None]:
    """Reshapes values to one row per datum; also returns the shape of an image, or None."""
    if not values.size:
        raise ValueError(
            f"'{path}' must have at least one row with at least one value; got an array of shape "
            f"{values.shape}: check how the file was written"
        )
    if file_kind(path) == "idx" and values.ndim == 3:
        return values.reshape(len(values), math.prod(values.shape[1:])), values.shape[1:]
    return (values[:, None] if values.ndim == 1 else values), None


def _floats(values: Shaped[np.ndarray, "rows *datum"]) -> Float[Tensor, "rows *datum"]:
    """Converts numbers of any dtype to a tensor of torch's default dtype."""
    # Through NumPy: torch has no big-endian numbers, and no arithmetic on unsigned ones.
    # A value too large for the dtype becomes inf, which a later check reports.
    with np.errstate(over="ignore"):
        return torch.from_numpy(values.astype(np.float64)).to(torch.get_default_dtype())


def _log_jacobian(y: Float[Tensor, "rows *datum"], divisor: float | int) -> float:
    """Returns the log Jacobian, in nats, of dividing all values of one datum by the divisor."""
    return -y[0].numel() * math.log(divisor)


def _halves(name: str, number: int) -> Int64[Tensor, " number"]:
    """Returns the labels 0, 1, 0, 1, ... of an even number of squares."""
    if number < 2 or number % 2:
        raise ValueError(
            f"`{name}` must be even and at least 2, because half of the squares get the label 0; "
            f"got {number}: pass `{name}=1000`"
        )
    return torch.arange(number, device="cpu") % 2


def _idx_files(folder: Path) -> list[Path]:
    """Finds four files: training images, training labels, held-out images, held-out labels."""
    names = [
        f"{part}-{what}-ubyte"
        for part in ("train", "t10k")
        for what in ("images-idx3", "labels-idx1")
    ]
    pairs = [(folder / name, folder / f"{name}.gz") for name in names]
    found = [next((path for path in pair if path.is_file()), None) for pair in pairs]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        raise FileNotFoundError(
            f"'{folder}' must be a folder with the files {', '.join(names)} of Fashion-MNIST, each "
            f"with or without '.gz', but has no {', no '.join(missing)}. On Debian, run apt-get "
            "install dataset-fashion-mnist; otherwise pass the folder that has the files, as in "
            "`folder='fashion'`"
        )
    return [path for path in found if path is not None]


def _pictures(
    images: Path, labels: Path, number: int | None
) -> tuple[Float[Tensor, "rows pixels"], Int64[Tensor, " rows"], tuple[int, int]]:
    """Reads the first images and labels; returns pixels in [0, 1], labels and image shape."""
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.shape != pixels.shape[:1] or pixels.dtype != np.uint8:
        raise ValueError(
            f"'{images}' must hold bytes of shape (images, height, width), and '{labels}' one "
            f"label per image; got {pixels.dtype} of shape {pixels.shape} and labels of shape "
            f"{classes.shape}: download both files again"
        )
    number = len(pixels) if number is None else number
    if not 1 <= number <= len(pixels):
        raise ValueError(
            f"'{images}' has {count_of(len(pixels), 'image', ',')}, but {number:,} were requested: "
            "request at least one image, and at most as many as the file has"
        )
    y = torch.from_numpy(pixels[:number].reshape(number, -1)).to(torch.get_default_dtype()) / 255
    return y, torch.from_numpy(classes[:number].astype(np.int64)), pixels.shape[1:]
