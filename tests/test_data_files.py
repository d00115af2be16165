"""Readers: what was written comes back, and what cannot be read says why."""

import gzip
import pickle
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae import data
from pyro_vae._types import optional
from pyro_vae.data import Split, read_idx, read_table, split_rows
from pyro_vae.data.files import file_kind
from tests.helpers.files import idx_bytes

VALUES = np.array([[1.0, 2.5], [-3.0, 4e-3], [0.0, 6.0]])
NAMES = ("height", "width")


def csv_text(header: str = "height,width\n") -> str:
    """The values as a csv file, below a header."""
    return header + "".join(f"{a!r},{b!r}\n" for a, b in VALUES.tolist())


WRITERS: dict[str, Callable[[Path], object]] = {
    "y.npy": lambda path: np.save(path, VALUES),
    "Y.NPY": lambda path: path.write_bytes(_npy(VALUES)),
    "fortran.npy": lambda path: np.save(path, np.asfortranarray(VALUES)),
    "big-endian.npy": lambda path: np.save(path, VALUES.astype(">f8")),
    "y.npz": lambda path: np.savez(path, y=VALUES),
    "small.npz": lambda path: np.savez_compressed(path, VALUES),
    "plain.csv": lambda path: path.write_text(csv_text(header="")),
    "y.idx": lambda path: path.write_bytes(idx_bytes(VALUES)),
    "y-idx2-double": lambda path: path.write_bytes(idx_bytes(VALUES)),
    "y.idx2-double.gz": lambda path: path.write_bytes(gzip.compress(idx_bytes(VALUES))),
}
NAMED_WRITERS: dict[str, Callable[[Path], object]] = {
    "y.csv": lambda path: path.write_text(csv_text()),
    "quoted.csv": lambda path: path.write_text(csv_text('"height","width"\r\n')),
    "blank-lines.csv": lambda path: path.write_text(csv_text("\nheight, width \n\n")),
    "spreadsheet.csv": lambda path: path.write_text(csv_text(), encoding="utf-8-sig"),
    "y.parquet": lambda path: pd.DataFrame(VALUES, columns=list(NAMES)).to_parquet(path),
    "indexed.parquet": lambda path: pd.DataFrame(
        VALUES, columns=list(NAMES), index=["a", "b", "c"]
    ).to_parquet(path),
}


def _npy(values: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("name", [*WRITERS, *NAMED_WRITERS])
def test_round_trip(name: str, tmp_path: Path) -> None:
    """What was written comes back, with its names where the file has them."""
    path = tmp_path / name
    (WRITERS | NAMED_WRITERS)[name](path)
    values, names = read_table(path)
    np.testing.assert_array_equal(values, VALUES)
    assert names == (NAMES if name in NAMED_WRITERS else None)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2)])
def test_idx_round_trip(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Every type and number of axes, in the machine's byte order."""
    expected = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path = tmp_path / "any-name"
    path.write_bytes(idx_bytes(expected))
    values = read_idx(path)
    np.testing.assert_array_equal(values, expected)
    assert values.dtype == expected.dtype
    assert values.dtype.isnative


def test_idx_of_known_bytes(tmp_path: Path) -> None:
    """As the format is described: magic 0x00000803, then 1 x 2 x 2 bytes."""
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(bytes.fromhex("00000803 00000001 00000002 00000002 00 7f 80 ff"))
    assert read_idx(path).tolist() == [[[0, 127], [128, 255]]]


def test_npz_by_key(tmp_path: Path) -> None:
    """Of several arrays one must be chosen; the message lists them."""
    path = tmp_path / "two.npz"
    np.savez(path, y=VALUES, labels=np.arange(3))
    np.testing.assert_array_equal(read_table(path, key="y").values, VALUES)
    with pytest.raises(ValueError, match=r"one array if `key` .*; got 2 arrays, \['y', 'lab"):
        read_table(path)
    with pytest.raises(
        ValueError, match=r"must hold an array 'x'; got 2 arrays, \['y', 'labels'\]"
    ):
        read_table(path, key="x")


def test_key_is_for_npz(tmp_path: Path) -> None:
    """An option that does nothing is refused."""
    np.save(tmp_path / "y.npy", VALUES)
    with pytest.raises(
        ValueError, match=r"key='y' names an array in an npz file, or a layer in .* is neither"
    ):
        read_table(tmp_path / "y.npy", key="y")


def test_missing_numbers_in_parquet_become_nan(tmp_path: Path) -> None:
    """Missing integers and bools become floats, for the check at the door."""
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [True, False]})
    frame.to_parquet(tmp_path / "y.parquet")
    values = read_table(tmp_path / "y.parquet").values
    np.testing.assert_array_equal(values, [[1.0, 1.0], [np.nan, 0.0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,z\n3,x\n",
            r"has 'z' in line 2, column 2 \('b'\), which is not a number: .* pv.data.read_frame",
        ),
        ("a,b\n1,2\n3,x\n", r"has 'x' in line 3, column 2 \('b'\), .*: correct the cell"),
        ("\n1,2\n\n3,four\n", "'four' in line 4, column 2, which is not a number"),
        ("1,2\n3,4#5\n", "'4#5' in line 2, column 2, which is not a number"),  # no comments in data
        ("1,2\n3\n", "line 2 of .* has 1 cell, but must have 2"),
        (
            "a,b\n1,2\n3,4,5\n",
            "line 3 of .* has 3 cells, but must have 2, like the names in line 1",
        ),
        (
            "a,b\n1,2,3\n4,5,6\n",
            "line 2 of .* has 3 cells, but must have 2, like the names in line 1",
        ),
        (
            "1,1_000\n2,2_000\n",
            "has '1_000' in .*column 2, which is not a number",
        ),  # Python's idea only
        ("", "has no rows of data: pass a file with at least one line of cells"),
        ("\n\n", "has no rows"),
        ("a,b\n", "has no rows"),
    ],
)
def test_faults_of_a_csv_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    """Line and column as an editor counts them."""
    path = tmp_path / "y.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(path)


@pytest.mark.parametrize(
    ("content", "byte"),
    [
        (b"\xff\xfe\x00", "0x00 in line 1"),
        (b"1,2\n\xff\xfe\x00", "0x00 in line 2"),
        (b"a,b\n1,2\n3,\x81\n", "0x81 in line 3"),  # no letter in UTF-8 or Windows-1252
    ],
)
def test_bytes_are_no_csv_file(content: bytes, byte: str, tmp_path: Path) -> None:
    """Bytes that are no text, in the header or below it, with the line to look at."""
    path = tmp_path / "y.csv"
    path.write_bytes(content)
    said = f"cannot read .* as text, because of the byte {byte}: save the table as csv, in UTF-8"
    with pytest.raises(ValueError, match=said):
        read_table(path)


def test_text_in_parquet_is_named(tmp_path: Path) -> None:
    """Columns that are not numbers, by name."""
    path = tmp_path / "y.parquet"
    pd.DataFrame({"a": [1.0], "species": ["setosa"]}).to_parquet(path)
    with pytest.raises(
        ValueError, match=r"columns \['species'\] .* do not hold numbers: drop these"
    ):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("y.npy", "is not an npy array, or is damaged"),
        ("y.npz", "is not an npz file, or is damaged"),
        ("y.parquet", "is not a parquet file, or is damaged"),
        (
            "y.idx",
            r"is not an idx file. Its first bytes must be 0, 0, .* got \[102, 111, 114, 101\]",
        ),
    ],
)
@pytest.mark.parametrize("cut", [0, 1], ids=["foreign", "truncated"])
def test_foreign_and_truncated_files(name: str, what: str, cut: int, tmp_path: Path) -> None:
    """A damaged file is an error that names the file, whatever library reads it."""
    path = tmp_path / name
    if cut:
        (WRITERS | NAMED_WRITERS)[name](path)
        path.write_bytes(path.read_bytes()[:-20])
        what = what if name != "y.idx" else "is truncated or damaged: according to its header"
    else:
        path.write_bytes(b"foreign")
    with pytest.raises(ValueError, match=what):
        read_table(path)


def test_an_array_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    """A header of 80 bytes that asks for 7 TiB."""
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    start = b"\x93NUMPY\x01\x00v\x00" + header.ljust(117).encode() + b"\n"
    (tmp_path / "y.npy").write_bytes(start + bytes(80))
    with pytest.raises(ValueError, match=r"y.npy' (declares more numbers|is not an npy array)"):
        read_table(tmp_path / "y.npy")


class Bomb:
    """What a hostile file would hold: it runs code when unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("code of the file was run",)


@pytest.mark.parametrize("name", ["y.npy", "y.npz", "y.idx", "y.csv", "y.parquet"])
def test_a_pickle_is_not_run(name: str, tmp_path: Path) -> None:
    """A pickle under any of the endings is refused, and runs no code."""
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(
        ValueError, match=r"is not an? .* file|is not an npy array|cannot read .* as text"
    ):
        read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["y.npy", "y.npz"])
def test_arrays_of_objects_are_not_loaded(name: str, tmp_path: Path) -> None:
    """Objects inside an array are pickles too."""
    save = np.save if name == "y.npy" else np.savez
    save(tmp_path / name, np.array([Bomb()], dtype=object))
    with pytest.raises(
        ValueError, match="holds Python objects, which are not loaded, because loading"
    ):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array(1.0), "one row per datum; got a single number"),
        (np.array(["a"]), "must hold real numbers; got an array of dtype <U1"),
        (np.array([1j]), "got an array of dtype complex128"),
    ],
)
def test_arrays_without_rows_of_numbers(values: np.ndarray, message: str, tmp_path: Path) -> None:
    """A scalar, text and complex numbers."""
    np.save(tmp_path / "y.npy", values)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "y.npy")


def test_truncated_idx_says_what_is_missing(tmp_path: Path) -> None:
    """Bytes expected and bytes found: in the data, the header, the compression."""
    path, content = tmp_path / "x-idx3-ubyte", idx_bytes(np.zeros((2, 3, 4), np.uint8))
    path.write_bytes(content[:-5])
    with pytest.raises(
        ValueError, match=r"\(shape \(2, 3, 4\), type uint8\), .* 40 bytes, but has 35"
    ):
        read_idx(path)
    path.write_bytes(content + b"more")
    with pytest.raises(ValueError, match=r"40 bytes, but has 44"):
        read_idx(path)
    path.write_bytes(content[:9])
    with pytest.raises(ValueError, match=r"header of 3 axes takes 16 bytes, but the file has 9"):
        read_idx(path)
    path.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(ValueError, match=r"is truncated or damaged .* bytes were found\)"):
        read_idx(path)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\1\x08\1", b"\0\0\7\1", b"\0\0\x08\0\1"], ids=bytes.hex
)
def test_bad_magic_of_idx(content: bytes, tmp_path: Path) -> None:
    """Too short, no zeros, no such type, no axes."""
    path = tmp_path / "y.idx"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"not an idx file. Its first bytes must be 0, 0, one of the types \[8, 9"
    ):
        read_idx(path)


def test_kinds_that_cannot_be_read() -> None:
    """The message lists the kinds that can."""
    with pytest.raises(
        ValueError,
        match=r"convert the file to one of the formats npy, npz, csv, tsv, txt, dat, parquet",
    ):
        file_kind(Path("y.xlsx"))
    with pytest.raises(ValueError, match="cannot read the format of"):
        file_kind(Path("y.npy.gz"))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """No file at that path, or a folder."""
    with pytest.raises(
        FileNotFoundError, match=r"y.npy' does not exist, but must be a file of numbers"
    ):
        read_table(tmp_path / "y.npy")
    with pytest.raises(FileNotFoundError, match=r"is a folder, but must be"):
        read_table(str(tmp_path))


@pytest.mark.parametrize(
    ("module", "source"),
    [("pyarrow.parquet", r"'pyro-vae\[data\]'"), ("matplotlib.pyplot", r"'pyro-vae\[plot\]'"),
     ("polars", "polars")],
)  # fmt: skip
def test_missing_package_names_the_extra(
    module: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to install: the extra that brings it, or the package itself."""
    package = module.partition(".")[0]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"reading y needs {package}, .*`pip install {source}`$"):
        optional(module, needed_for="reading y")


@pytest.mark.parametrize(
    ("num_data", "fraction", "num_test"), [(10, 0.2, 2), (2, 0.01, 1), (3, 0.99, 2)]
)
def test_split_takes_every_row_once(num_data: int, fraction: float, num_test: int) -> None:
    """Neither part is empty, however small the share."""
    split = split_rows(num_data, test_fraction=fraction, seed=3)
    assert len(split.test) == num_test
    assert torch.cat(split).sort().values.tolist() == list(range(num_data))


def test_split_depends_on_its_seed_alone() -> None:
    """The same seed, the same split; the caller's stream is untouched."""

    def test_rows(seed: int) -> Split:
        return split_rows(1000, seed=seed)

    state = torch.get_rng_state()
    assert torch.equal(test_rows(0).test, test_rows(0).test)
    assert not torch.equal(test_rows(0).test, test_rows(1).test)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("num_data", "fraction", "message"),
    [
        (1, 0.2, "at least 2 rows, .* got 1"),
        (9, 0.0, "between 0 and 1, both excluded; got 0"),
        (9, 1.0, "got 1"),
    ],
)
def test_split_with_an_empty_part(num_data: int, fraction: float, message: str) -> None:
    """One row, or all rows on one side."""
    with pytest.raises(ValueError, match=message):
        split_rows(num_data, test_fraction=fraction)


@pytest.mark.parametrize("ending", ["csv", "parquet", "npy", "npz", "h5ad"])
def test_marks_of_missing_entries_count_in_every_format(ending: str, tmp_path: Path) -> None:
    """The warning about such marks names the option, which only text files had followed."""
    path, y = tmp_path / f"y.{ending}", np.arange(40.0).reshape(20, 2) + 0.5
    y[3, 1] = y[7, 0] = -999
    if ending == "h5ad":
        with h5py.File(path, "w") as file:
            file["X"] = y
            index = file.create_group("var")
            index.attrs["_index"] = "names"
            index["names"] = ["a", "b"]
    else:
        frame = pd.DataFrame(y, columns=["a", "b"])
        write: dict[str, Callable[[], Any]] = {
            "csv": lambda: frame.to_csv(path, index=False),
            "parquet": lambda: frame.to_parquet(path),
            "npy": lambda: np.save(path, y),
            "npz": lambda: np.savez(path, y),
        }
        write[ending]()
    if ending == "parquet":
        with pytest.warns(UserWarning, match=r"-999.*--missing=\w=-999"):
            data.load(path)
    first, second = ("0", "1") if ending in ("npy", "npz") else ("a", "b")
    marks = (f"{first}=-999.0", f"{second}=-999")
    found = data.load(path, layout=data.Layout(missing=marks))
    rows = torch.cat([found.train, found.test])
    assert int(rows.isnan().sum()) == 2
    assert found.columns is not None
    assert found.columns.scale.max() < 30


def test_marks_among_words_of_a_parquet_file(tmp_path: Path) -> None:
    """Words, declared categories, and whole numbers; what is no mark stays what it was."""
    frame = pd.DataFrame(
        {
            "words": ["x", "n.d.", "y", "-9"],
            "categories": pd.Categorical(["x", "n.d.", "y", "x"]),
            "whole": [1, -9, 3, 4],
            "right": [True, False, True, True],
        }
    )
    frame.to_parquet(tmp_path / "y.parquet")
    found = data.read_frame(tmp_path / "y.parquet", data.Layout(missing=("n.d.", "-9")))
    assert found.isna().to_numpy().tolist() == [
        [False, False, False, False],
        [True, True, True, False],
        [False, False, False, False],
        [True, False, False, False],
    ]
    assert list(found["categories"].cat.categories) == ["x", "y"]
    assert found["right"].dtype == bool


def test_grey_levels_in_text_are_split_as_they_are_said_to_be(tmp_path: Path) -> None:
    """Without names, and at the separator that was passed: both had been detected all the same."""
    path = tmp_path / "pixels.csv"
    rows = np.random.default_rng(0).integers(0, 200, (20, 3))
    path.write_text("0;100;200\n" + "".join(";".join(map(str, row)) + "\n" for row in rows))
    layout = data.Layout(separator=";", header=False)
    found = data.load(path, divide_by=255, layout=layout)
    assert len(found.train) + len(found.test) == 21
