"""Reads tables, with one row per datum, from npy, npz, csv, parquet, h5ad and idx files.

Reading a file cannot run code: arrays are read without pickle. An idx file consists of a header and
raw numbers. The header holds two zeros, the type, the number of axes, and the length of each axis
as four big-endian bytes.
"""

import importlib
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from .._types import optional
from ..formatting import count_of
from ..randomness import generator, stream
from ..writing import existing_file
from .decoding import uncompressed
from .entries import number
from .frames import PandasFrame
from .raw_columns import Holds
from .text import Layout, columns_of_cells, columns_of_text, read_cells

READABLE = (
    "npy, npz, csv, tsv, txt, dat, parquet, h5ad, and idx (named like train-images-idx3-ubyte); "
    "text and idx files may end in .gz"
)
IDX_NAME = re.compile(r"[.-]idx\d*(-[a-z]+)?$")
# Type codes of the format.
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
TEXT = dict.fromkeys(("csv", "tsv", "txt", "tab", "dat", "data", "asc", "prn"), "csv")
"""Endings of text files (without `.gz`), and the format for which each ending stands."""


class Table(NamedTuple):
    """A table of numbers, `(rows, *datum)`, with the columns' names if the file has names."""

    values: Shaped[np.ndarray, "rows *datum"]
    feature_names: tuple[str, ...] | None


class Split(NamedTuple):
    """Positions of the training rows and the held-out rows, each in random order."""

    train: Int64[Tensor, " train"]
    test: Int64[Tensor, " test"]


def read_table(
    path: str | Path,
    *,
    key: str | None = None,
    layout: Layout = Layout(),  # noqa: B008 (frozen: one value serves every call)
) -> Table:
    r"""Reads a table of numbers from a file. The ending of the file's name tells the format.

    Arguments:
        path: An npy, npz, csv, parquet, h5ad or idx file. How a csv file is parsed is described in
            :mod:`pyro_vae.data.text`. Of an h5ad file, the matrix X or a layer (dense or sparse) is
            read, with the names of the variables.
        key: Name of the array in an npz file (needed only if the file has several), or of a layer
            in an h5ad file (by default X is read).
        layout: How to parse a text file. The marks of missing entries that it declares apply to all
            formats.

    Returns:
        The values in the file's own dtype (csv and parquet: float64), and the names of the columns,
        or None if the file has no names.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If pandas or pyarrow is needed for parquet, or h5py for h5ad, and is not
            installed.
        ValueError: If the file has none of these formats, is damaged, or holds anything but
            numbers.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "flowers.csv"
        >>> path.write_text("height,width\n1,2\n3,4\n")
        21
        >>> read_table(path).feature_names
        ('height', 'width')
    """
    path = existing_file(path, f"a file of numbers ({READABLE})")
    kind = file_kind(path)
    check_key(path, key)
    table = KEYED[kind](path, key) if kind in KEYED else READERS[kind](path, layout)
    _check_numbers(path, table.values)
    return _without_marked(table, layout) if layout.missing and table.values.size else table


def check_key(path: Path, key: str | None) -> None:
    """Refuses a `key` for a file whose format holds a single array."""
    if key is not None and file_kind(path) not in KEYED:
        raise ValueError(
            f"key={key!r} names an array in an npz file, or a layer in an h5ad file, but '{path}' "
            "is neither kind of file: leave out `key`"
        )


def _without_marked(table: Table, layout: Layout) -> Table:
    """Replaces the numbers that mark missing entries by nan."""
    rows = table.values.reshape(len(table.values), -1)
    names = table.feature_names or tuple(map(str, range(rows.shape[1])))
    columns = zip(names, rows.T, strict=True)
    marked = np.stack([np.isin(column, layout.numbers_of(name)) for name, column in columns], 1)
    return table._replace(values=np.where(marked, np.nan, rows).reshape(table.values.shape))


def read_idx(path: str | Path) -> Shaped[np.ndarray, "rows *datum"]:
    """Reads the array in an idx file, which may be compressed with gzip.

    Arguments:
        path: The file; its name does not matter.

    Returns:
        The array, `(rows, *datum)`, in the machine's byte order.

    Raises:
        ValueError: If this is not an idx file, or the file is longer or shorter than its header
            says.

    References:
        | The MNIST Database of Handwritten Digits (LeCun et al., 1998), "File formats"
    """
    path = existing_file(path, "an idx file")
    content = uncompressed(path)
    shape, dtype, start = _idx_header(path, content)
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"'{path}' is truncated or damaged: according to its header (shape {shape}, type "
            f"{dtype.name}), the file must have {expected:,} bytes, but has {len(content):,}. "
            "Download the file again"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def split_rows(num_data: int, *, test_fraction: float = 0.2, seed: int = 0) -> Split:
    """Chooses at random which rows are held out.

    Arguments:
        num_data: Rows of the table, at least two.
        test_fraction: Share of the rows to hold out. The number of these rows is rounded, and is at
            least one.
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
            "a split must have at least 2 rows, one to train on and one to hold out; got "
            f"{num_data}: pass more rows"
        )
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"`test_fraction` must be above 0 and below 1; got {test_fraction:g}: pass "
            "`test_fraction=0.2`"
        )
    num_test = min(max(round(num_data * test_fraction), 1), num_data - 1)
    order = torch.randperm(num_data, generator=generator(stream(seed, "split")), device="cpu")
    return Split(order[num_test:], order[:num_test])


def file_kind(path: Path) -> str:
    """Tells a file's format from the ending of its name: npy, npz, csv, parquet, h5ad or idx.

    Raises:
        ValueError: If the format is none of these; the message lists the readable endings.
    """
    name = path.name.lower()
    if IDX_NAME.search(name.removesuffix(".gz")):
        return "idx"
    kind = TEXT.get(name.removesuffix(".gz").rpartition(".")[2]) or path.suffix.lower()[1:]
    if kind not in KEYED and kind not in READERS:
        raise ValueError(
            f"pyro_vae cannot read the format of '{path}': read the file with pandas (read_excel, "
            "read_stata, read_spss, read_feather, ...) and pass the data frame, or convert the "
            f"file to one of the formats {READABLE}"
        )
    return kind


def _check_numbers(path: Path, values: Shaped[np.ndarray, "..."]) -> None:
    """Refuses an array that does not hold real numbers, or has no axis of rows."""
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"'{path}' must hold real numbers; got an array of dtype {values.dtype}: "
            + (
                "read the array with np.load, and pass it to pv.data.from_frame"
                if values.dtype.names
                else "convert the array, as in np.save(path, values.astype(float))"
            )
        )
    if values.ndim == 0:
        raise ValueError(
            f"'{path}' must hold one row per datum; got a single number: save an array"
        )


def _read_npy(path: Path, _: Layout) -> Table:
    with path.open("rb") as file:
        return Table(_read_array(file, f"'{path}'"), None)


def _read_npz(path: Path, key: str | None) -> Table:
    """Reads one array of an npz file: the array named `key`, or else the only one."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = _npz_member(path, archive.namelist(), key)
            with archive.open(member) as file:
                return Table(_read_array(file, f"array '{member}' of '{path}'"), None)
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: encrypted
        raise ValueError(
            f"'{path}' is not an npz file, or is damaged ({error}): write the file again with "
            "np.savez"
        ) from error


def _npz_member(path: Path, members: list[str], key: str | None) -> str:
    """Returns the name of the archive member that holds the requested array of an npz file."""
    arrays = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
    if key is None and len(arrays) == 1:
        return f"{arrays[0]}.npy"
    if key is None or key not in arrays:
        wanted = "one array if `key` is not passed" if key is None else f"an array {key!r}"
        renamed = "" if key is None else f", or save the array under the name {key!r}"
        raise ValueError(
            f"'{path}' must hold {wanted}; got {count_of(len(arrays), 'array')}, {arrays}: pass "
            f"the name of an array as `key`{renamed}"
        )
    return f"{key}.npy"


def key_for(path: Path, key: str | None) -> str | None:
    """Returns the key for reading a file of new rows; `key` is that of the training file.

    The result is None for files that need no key: npz files with one array, and files of all
    formats other than npz and h5ad.
    """
    if key is None or file_kind(path) not in KEYED:
        return None
    if file_kind(path) == "npz" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return None if len(archive.namelist()) == 1 else key
    return key


def _read_array(file: IO[bytes] | zipfile.ZipExtFile, what: str) -> Shaped[np.ndarray, "..."]:
    """Reads an npy array; `what` describes the array in messages."""
    try:
        # Not np.load, which falls back to pickle formats: these bytes can run no code.
        values: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    except MemoryError as error:  # a header can claim any size
        raise ValueError(
            f"the header of {what} declares more numbers than fit into memory ({error}): if "
            "the file is not damaged, split the array into parts, or map the file with "
            "np.load(path, mmap_mode='r')"
        ) from error
    except (ValueError, EOFError) as error:
        if "Object arrays" in str(error):
            raise ValueError(
                f"{what} holds Python objects, which are not loaded, because loading them could "
                "run code: save an array of numbers, as in np.save(path, values.astype(float))"
            ) from error
        raise ValueError(
            f"{what} is not an npy array, or is damaged ({error}): write the file again with "
            "np.save or np.savez"
        ) from error
    return values


def _read_csv(path: Path, layout: Layout) -> Table:
    """Reads a text file of numbers; if a cell holds a word, the error gives its line and column."""
    cells = read_cells(path, layout)
    columns = columns_of_cells(path, cells, codes=False)
    for place, (name, column) in enumerate(columns.items(), start=1):
        if column.holds is Holds.WORDS and not column.missing.all():
            row = next(i for i, word in enumerate(column.values) if not _is_number(word))
            named = "" if cells.names is None else f" ({name!r})"
            raise ValueError(
                f"'{path}' has {column.values[row]!r} in line {cells.lines[row]}, column "
                f"{place}{named}, which is not a number: correct the cell, or empty it if the "
                "entry is missing, or, if the column is to hold words, read the file with "
                f"pv.data.read_frame('{path}')"
            )
    values = np.stack([column.values.astype(np.float64) for column in columns.values()], axis=1)
    return Table(values, cells.names)


def _is_number(word: str | None) -> bool:
    return word is None or number(word, comma=False) is not None


def read_frame(path: str | Path, layout: Layout = Layout()) -> Any:  # noqa: B008 (frozen)
    """Reads a csv or parquet file, whose columns may be of any kind, as a pandas DataFrame.

    Strings and categories are kept; empty cells of a csv file are missing entries. Encode the frame
    as numbers with :class:`pyro_vae.data.Columns`. How a text file is parsed is described in
    :mod:`pyro_vae.data.text`.

    Arguments:
        path: The file.
        layout: How to parse a text file, and, in both formats, which entries stand for missing
            values. Settings that are None are detected.

    Raises:
        ImportError: If pandas is not installed, or pyarrow in the case of a parquet file.
        ValueError: If the file has neither format, or is damaged.
    """
    path = existing_file(path, "a table in a parquet file, or in a text file such as csv")
    if file_kind(path) == "parquet":
        return _without_marks(_parquet_frame(path), layout)
    if file_kind(path) != "csv":
        raise ValueError(
            f"'{path}' must be a parquet file, or a text file such as csv: read files of other "
            f"formats with pv.data.read_table('{path}')"
        )
    return PandasFrame().build(columns_of_text(path, layout))


def _parquet_frame(path: Path) -> Any:
    optional("pyarrow", needed_for="reading parquet")
    pandas = optional("pandas", needed_for="reading parquet")
    try:
        frame = pandas.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise ValueError(
            f"'{path}' is not a parquet file, or is damaged ({error}): write the file again with "
            "frame.to_parquet"
        ) from error
    if frame.empty:
        raise ValueError(
            f"'{path}' must have at least one row and one column; got the shape {frame.shape}: "
            "check how the rows were selected"
        )
    return frame


def _without_marks(frame: Any, layout: Layout) -> Any:
    """Empties the entries of a pandas DataFrame that mark missing entries."""
    for place, dtype in enumerate(frame.dtypes if layout.missing else ()):
        column = frame.iloc[:, place]
        entries = column.cat.categories if str(dtype) == "category" else column
        marked = np.array(layout.are_marks(str(column.name), entries), dtype=bool)
        if marked.any():
            empty = column.mask if entries is column else column.cat.remove_categories
            frame.isetitem(place, empty(marked if entries is column else entries[marked]))
    return frame


def _read_parquet(path: Path, _: Layout) -> Table:
    frame = _parquet_frame(path)
    names = tuple(map(str, frame.columns))
    other = [
        name for name, dtype in zip(names, frame.dtypes, strict=True) if dtype.kind not in "biuf"
    ]
    if other:
        raise ValueError(
            f"columns {other} of '{path}' do not hold numbers: drop these columns, or read the "
            f"file with pv.data.read_frame('{path}')"
        )
    # Missing values become nan, which a later check reports.
    return Table(frame.to_numpy(dtype=np.float64, na_value=np.nan), names)


def _read_h5ad(path: Path, key: str | None) -> Table:
    """Reads the matrix X or a layer of an AnnData file, and the names of the variables.

    References:
        | https://anndata.readthedocs.io/en/stable/fileformat-prose.html
    """
    h5py = optional("h5py", needed_for="reading h5ad")
    try:
        with h5py.File(path) as file:
            layers = file.get("layers", {})
            if key is not None and key not in layers:
                raise ValueError(
                    f"'{path}' has no layer '{key}': pass one of {list(layers)} as `key`, leave "
                    "out `key` to read the matrix X, or add a layer of this name to the file"
                )
            values = _h5ad_matrix(path, key or "X", file["X"] if key is None else layers[key])
            return Table(values, _h5ad_words(file["var"]))
    except (OSError, KeyError) as error:
        raise ValueError(
            f"'{path}' is not an h5ad file with a matrix X and named variables, or is damaged "
            f"({error}): write the file again, or pass key='NAME' to read a layer (command line: "
            "--key NAME)"
        ) from error


def _h5ad_words(variables: Any) -> tuple[str, ...]:
    """Reads names of variables that were saved as strings, as masked strings, or as categories."""
    index = variables[variables.attrs["_index"]]
    encoding = index.attrs.get("encoding-type")
    if encoding == "categorical":
        words = index["categories"].asstr()[()][index["codes"][()]]
    else:
        words = (index["values"] if encoding == "nullable-string-array" else index).asstr()[()]
    return tuple(map(str, words))


def _h5ad_matrix(path: Path, name: str, matrix: Any) -> Shaped[np.ndarray, "rows columns"]:
    """Reads a dense or sparse matrix of an h5ad file."""
    encoding = str(matrix.attrs.get("encoding-type", "array"))
    if encoding == "array":
        return np.asarray(matrix)
    if encoding not in ("csr_matrix", "csc_matrix"):
        raise ValueError(
            f"{name} of '{path}' must be an array, csr_matrix or csc_matrix; got {encoding}: "
            "convert the matrix, and write the file again"
        )
    sparse = importlib.import_module("scipy.sparse")
    parts = (matrix["data"][()], matrix["indices"][()], matrix["indptr"][()])
    return getattr(sparse, encoding)(parts, shape=matrix.attrs["shape"]).toarray()


def _idx_header(path: Path, content: bytes) -> tuple[tuple[int, ...], "np.dtype[Any]", int]:
    """Reads an idx file's header; returns the array's shape, its dtype, and the header's length."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES or not content[3]:
        raise ValueError(
            f"'{path}' is not an idx file. Its first bytes must be 0, 0, one of the types "
            f"{[*IDX_TYPES]} and the number of axes; got {[*content[:4]]}: unpack the file, "
            "or download it again"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(
            f"'{path}' is truncated: its header of {count_of(content[3], 'axis')} takes {start} "
            f"bytes, but the file has {len(content)}. Download the file again"
        )
    return struct.unpack_from(f">{content[3]}I", content, 4), np.dtype(IDX_TYPES[content[2]]), start


READERS: dict[str, Callable[[Path, Layout], Table]] = {
    "npy": _read_npy,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "idx": lambda path, _: Table(read_idx(path), None),
}
KEYED: dict[str, Callable[[Path, str | None], Table]] = {"npz": _read_npz, "h5ad": _read_h5ad}
"""Readers of formats whose files can hold several arrays; their second argument names the array."""
