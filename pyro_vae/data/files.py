"""Tables out of files: npy, npz, csv, parquet, h5ad and idx, one row a datum.

Nothing that is read here can run code: arrays are read without pickle, and the idx format is bytes
behind a header (two zeros, a type, the number of axes, each axis as four bytes, big end first).
"""

import csv
import gzip
import importlib
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple, TextIO

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from ..randomness import generator

READABLE = (
    "npy, npz, csv, parquet, h5ad, and idx (named like train-images-idx3-ubyte) with or without gz"
)
IDX_NAME = re.compile(r"[.-]idx\d*(-[a-z]+)?$")
IDX_TYPES = {
    8: ">u1",
    9: ">i1",
    11: ">i2",
    12: ">i4",
    13: ">f4",
    14: ">f8",
}  # as the format has them
GZIP_MAGIC = b"\x1f\x8b"


class Table(NamedTuple):
    """Numbers, `(rows, *datum)`, and the names of their columns where the file has them."""

    values: Shaped[np.ndarray, "rows *datum"]
    feature_names: tuple[str, ...] | None


class Split(NamedTuple):
    """Positions of the rows to train on and of those held out, each in random order."""

    train: Int64[Tensor, " train"]
    test: Int64[Tensor, " test"]


def read_table(path: str | Path, *, key: str | None = None) -> Table:
    r"""Reads a table of numbers from a file, by the ending of its name.

    Arguments:
        path: An npy, npz, csv, parquet, h5ad or idx file. A csv file is separated by commas; a
            first line of names, none of them a number, is its header. Of an h5ad file the matrix X
            is read, dense or sparse, and the names of its variables.
        key: Name of the array in an npz file; needed only if there are several.

    Returns:
        The values in the file's own dtype (csv and parquet: float64), and the names of columns
        or None.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If parquet is asked for and pandas or pyarrow is not installed, or h5ad
            and h5py is not.
        ValueError: If the file is of another kind, damaged, or holds what is not a number.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "flowers.csv"
        >>> path.write_text("height,width\n1,2\n3,4\n")
        21
        >>> read_table(path).feature_names
        ('height', 'width')
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"'{path}' {what}: expected a file of numbers ({READABLE})")
    kind = file_kind(path)
    if key is not None and kind != "npz":
        raise ValueError(f"key={key!r} names an array in an npz file, but '{path}' is not one")
    table = _read_npz(path, key) if kind == "npz" else READERS[kind](path)
    _check_numbers(path, table.values)
    return table


def from_anndata(cells: Any, *, layer: str | None = None) -> Table:
    """The matrix of an AnnData object in memory, dense, and the names of its variables.

    Arguments:
        cells: An `anndata.AnnData`, one row a cell.
        layer: Which of its layers; the matrix X by default.

    Returns:
        The values in their own dtype, and the names.

    Raises:
        ValueError: If there is no such layer, or no matrix X.

    References:
        | anndata: Annotated data (Virshup et al., 2021)
        | https://doi.org/10.1101/2021.12.16.473007

    Example:
        >>> from types import SimpleNamespace  # stands in for an AnnData object
        >>> cells = SimpleNamespace(X=np.eye(2), layers={}, var_names=["CD3", "CD19"])
        >>> from_anndata(cells).feature_names
        ('CD3', 'CD19')
    """
    if layer is not None and layer not in cells.layers:
        raise ValueError(f"there is no layer '{layer}', only {list(cells.layers)}, beside X")
    matrix = cells.X if layer is None else cells.layers[layer]
    if matrix is None:
        raise ValueError(f"the matrix X is empty: name one of the layers {list(cells.layers)}")
    dense = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
    return Table(dense, tuple(map(str, cells.var_names)))


def read_idx(path: str | Path) -> Shaped[np.ndarray, "rows *datum"]:
    """Reads the array in an idx file, compressed by gzip or not.

    Arguments:
        path: The file, whatever its name.

    Returns:
        The array, `(rows, *datum)`, in the machine's byte order.

    Raises:
        ValueError: If it is no idx file, or has fewer or more bytes than its header says.

    References:
        | The MNIST Database of Handwritten Digits (LeCun et al., 1998), "File formats"
    """
    path = Path(path)
    content = _uncompressed(path)
    shape, dtype, start = _idx_header(path, content)
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"'{path}' is truncated or damaged: its header says {shape} of {dtype.name}, "
            f"{expected:,} bytes with the header, but {len(content):,} were found; fetch it again"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def split_rows(num_data: int, *, test_fraction: float = 0.2, seed: int = 0) -> Split:
    """Draws which rows are held out.

    Arguments:
        num_data: Rows of the table, at least two.
        test_fraction: Share of the rows held out, rounded to a whole number of at least one.
        seed: Seed of the draw.

    Returns:
        Positions of rows, each in exactly one of the two parts.

    Raises:
        ValueError: If a part would be empty.

    Example:
        >>> train, test = split_rows(10, test_fraction=0.2)
        >>> len(train), len(test)
        (8, 2)
    """
    if num_data < 2:
        raise ValueError(
            f"a split needs at least 2 rows, one to train and one to test; got {num_data}"
        )
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction should be above 0 and below 1, got {test_fraction:g}")
    num_test = min(max(round(num_data * test_fraction), 1), num_data - 1)
    order = torch.randperm(num_data, generator=generator(seed))
    return Split(order[num_test:], order[:num_test])


def optional(module: str, *, needed_for: str) -> ModuleType:
    """Imports a module that only some uses need, or says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{needed_for} needs {module.partition('.')[0]}, which cannot be imported ({error}): "
            "pip install 'pyro-vae[data]'"
        ) from error


def file_kind(path: Path) -> str:
    """The kind of a file by the ending of its name: npy, npz, csv, parquet, h5ad or idx.

    Raises:
        ValueError: If it is none of these; lists them.
    """
    name = path.name.lower()
    if IDX_NAME.search(name.removesuffix(".gz")):
        return "idx"
    kind = path.suffix.lower().removeprefix(".")
    if kind != "npz" and kind not in READERS:
        raise ValueError(
            f"'{path}' is not of a kind that can be read: readable are {READABLE}; "
            "convert it to one of them"
        )
    return kind


def _check_numbers(path: Path, values: Shaped[np.ndarray, "..."]) -> None:
    if values.dtype.kind not in "biuf":
        raise ValueError(f"'{path}' should hold real numbers, got an array of dtype {values.dtype}")
    if values.ndim == 0:
        raise ValueError(f"'{path}' should hold one row per datum, got a single number")


def _read_npy(path: Path) -> Table:
    with path.open("rb") as file:
        return Table(_read_array(file, f"'{path}'"), None)


def _read_npz(path: Path, key: str | None) -> Table:
    try:
        with zipfile.ZipFile(path) as archive:
            member = _npz_member(path, archive.namelist(), key)
            with archive.open(member) as file:
                return Table(_read_array(file, f"array '{member}' of '{path}'"), None)
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # the last: encrypted
        raise ValueError(f"'{path}' is no npz file, or a damaged one ({error})") from error


def _npz_member(path: Path, members: list[str], key: str | None) -> str:
    arrays = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
    if key is None and len(arrays) == 1:
        return f"{arrays[0]}.npy"
    if key is None or key not in arrays:
        wanted = "one array, or key= to choose" if key is None else f"an array {key!r}"
        raise ValueError(f"'{path}' should hold {wanted}; it holds {len(arrays)}: {arrays}")
    return f"{key}.npy"


def _read_array(file: IO[bytes] | zipfile.ZipExtFile, what: str) -> Shaped[np.ndarray, "..."]:
    try:
        # Not np.load, which falls back to pickle formats: these bytes can run no code.
        values: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        if "Object arrays" in str(error):
            raise ValueError(
                f"{what} holds Python objects, which are not loaded since that can run code: "
                "save an array of numbers, as in np.save(path, values.astype(float))"
            ) from error
        raise ValueError(f"{what} is no npy array, or a damaged one ({error})") from error
    return values


def _read_csv(path: Path) -> Table:
    try:
        names = _csv_header(path)
        values = _csv_values(path, names)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' is no csv file: expected text in UTF-8 ({error})") from error
    if names and values.shape[1] != len(names):
        raise ValueError(f"'{path}': line 1 has {len(names)} names for {values.shape[1]} columns")
    return Table(values, names)


def _csv_header(path: Path) -> tuple[str, ...] | None:
    """The names in the first line, or None where it has a number; refuses a file without data."""
    with _open_csv(path) as file:
        lines = _csv_lines(file)
        first = next(lines, (0, []))[1]
        numbers = any(map(_is_number, first))
        if not first or (not numbers and next(lines, None) is None):
            raise ValueError(f"'{path}' has no rows: expected lines of numbers separated by commas")
    return None if numbers else tuple(name.strip() for name in first)


def _csv_values(path: Path, names: tuple[str, ...] | None) -> Float64[np.ndarray, "rows columns"]:
    with _open_csv(path) as file:
        if names:
            next(_csv_lines(file))
        try:
            values: np.ndarray = np.loadtxt(
                file, delimiter=",", comments=None, quotechar='"', ndmin=2
            )
        except UnicodeDecodeError:  # a ValueError, but not one of a cell
            raise
        except ValueError as error:
            raise ValueError(f"'{path}': {_csv_fault(path, names) or error}") from error
    return values


def _csv_fault(path: Path, names: tuple[str, ...] | None) -> str | None:
    """The first cell that is not a number, or line of another length, in words."""
    with _open_csv(path) as file:
        lines = _csv_lines(file)
        first = next(lines)
        rest = lines if names else chain([first], lines)
        faults = (_line_fault(line, cells, len(first[1]), names) for line, cells in rest)
        return next(filter(None, faults), None)


def _line_fault(
    line: int, cells: list[str], width: int, names: tuple[str, ...] | None
) -> str | None:
    for column, cell in enumerate(cells, start=1):
        if not _is_number(cell):
            name = f" ({names[column - 1]!r})" if names and column <= len(names) else ""
            hint = _csv_hint(line, cell)
            return f"line {line}, column {column}{name}: {cell!r} is not a number{hint}"
    if len(cells) != width:
        return f"line {line} has {len(cells)} cells, expected {width}"
    return None


def _csv_hint(line: int, cell: str) -> str:
    if ";" in cell or "\t" in cell:
        return "; cells should be separated by commas"
    if not cell.strip():
        return "; drop the row, or fill in the value"
    return "; a header has names only, no numbers" if line == 1 else ""


def _open_csv(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", newline="")  # -sig: spreadsheets write a byte order mark


def _csv_lines(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Lines that are not blank, with their number in the file (from 1, as an editor shows it)."""
    reader = csv.reader(file)
    return ((reader.line_num, cells) for cells in reader if cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_frame(path: str | Path) -> Any:
    """Reads a csv or parquet file with columns of any kind as a pandas DataFrame.

    Words stay words, categories stay categories, empty cells of a csv file are missing;
    :class:`pyro_vae.data.Columns` makes numbers of them.

    Arguments:
        path: The file; a csv file has a first line of names, and lines of as many cells.

    Raises:
        ImportError: If pandas, or for parquet pyarrow, is not installed.
        ValueError: If it is of another kind, or damaged.
    """
    path = Path(path)
    if file_kind(path) == "parquet":
        return _parquet_frame(path)
    if file_kind(path) != "csv" or not has_named_columns(path):
        raise ValueError(
            f"'{path}' should be a parquet file, or a csv file with a first line of names and as "
            "many cells in every other line, separated by commas"
        )
    pandas = optional("pandas", needed_for="reading columns that are not all numbers")
    frame = pandas.read_csv(path, skipinitialspace=True, encoding="utf-8-sig")
    return frame.rename(columns=lambda name: str(name).strip())


def has_named_columns(path: Path) -> bool:
    """Whether a file is a table with names, whose columns may hold other things than numbers."""
    if file_kind(path) == "parquet":
        return True
    if file_kind(path) != "csv":
        return False
    names = _csv_header(path)
    if not names or any(mark in name for name in names for mark in ";\t"):
        return False
    with _open_csv(path) as file:
        return all(len(cells) == len(names) for _, cells in _csv_lines(file))


def _parquet_frame(path: Path) -> Any:
    optional("pyarrow", needed_for="reading parquet")
    pandas = optional("pandas", needed_for="reading parquet")
    try:
        return pandas.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise ValueError(f"'{path}' is no parquet file, or a damaged one ({error})") from error


def _read_parquet(path: Path) -> Table:
    frame = _parquet_frame(path)
    names = tuple(map(str, frame.columns))
    other = [
        name for name, dtype in zip(names, frame.dtypes, strict=True) if dtype.kind not in "biuf"
    ]
    if other:
        raise ValueError(f"'{path}': columns {other} do not hold numbers: drop or encode them")
    # Missing values become nan, for the check at the door to name.
    return Table(frame.to_numpy(dtype=np.float64, na_value=np.nan), names)


def _read_h5ad(path: Path) -> Table:
    """The matrix X of an AnnData file, and the names of its variables.

    References:
        | https://anndata.readthedocs.io/en/stable/fileformat-prose.html
    """
    h5py = optional("h5py", needed_for="reading h5ad")
    try:
        with h5py.File(path) as file:
            values = _h5ad_matrix(path, file["X"])
            variables = file["var"]
            words = variables[variables.attrs["_index"]].asstr()[()]
            return Table(values, tuple(map(str, words)))
    except (OSError, KeyError) as error:
        raise ValueError(
            f"'{path}' is no h5ad file with a matrix X and named variables, or a damaged one "
            f"({error})"
        ) from error


def _h5ad_matrix(path: Path, matrix: Any) -> Shaped[np.ndarray, "rows columns"]:
    encoding = str(matrix.attrs.get("encoding-type", "array"))
    if encoding == "array":
        return np.asarray(matrix)
    if encoding not in ("csr_matrix", "csc_matrix"):
        raise ValueError(f"'{path}': X should be an array, csr_matrix or csc_matrix, is {encoding}")
    sparse = importlib.import_module("scipy.sparse")
    parts = (matrix["data"][()], matrix["indices"][()], matrix["indptr"][()])
    dense: np.ndarray = getattr(sparse, encoding)(parts, shape=matrix.attrs["shape"]).toarray()
    return dense


def _uncompressed(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"'{path}' is truncated or damaged ({error}; {len(content):,} bytes were found): "
            "fetch it again"
        ) from error


def _idx_header(path: Path, content: bytes) -> tuple[tuple[int, ...], "np.dtype[Any]", int]:
    """Shape, dtype, and where the data start."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES or not content[3]:
        raise ValueError(
            f"'{path}' is no idx file: it should start with 0, 0, a type of {[*IDX_TYPES]} "
            f"and the number of axes, found {[*content[:4]]}"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(
            f"'{path}' is truncated: its header of {content[3]} axes takes {start} bytes, "
            f"but {len(content)} were found; fetch it again"
        )
    return struct.unpack_from(f">{content[3]}I", content, 4), np.dtype(IDX_TYPES[content[2]]), start


def _read_idx_table(path: Path) -> Table:
    return Table(read_idx(path), None)


READERS: dict[str, Callable[[Path], Table]] = {
    "npy": _read_npy,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "h5ad": _read_h5ad,
    "idx": _read_idx_table,
}
