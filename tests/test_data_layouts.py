"""Texts as people and instruments write them: the right cells, or refused with a remedy."""

import bz2
import gzip
import lzma
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_vae import data
from pyro_vae.data import Layout, read_frame, read_table
from pyro_vae.data.text import columns_of_text
from tests.helpers.texts import NUMBERS, ODD, frame_of, lines

COUNTS = np.random.default_rng(0).poisson(20.0, (30, 3))
GUESSED = pytest.mark.filterwarnings("ignore:.* is taken for")


@GUESSED
@pytest.mark.parametrize(
    ("names", "values"),
    [
        ("0,1,2", NUMBERS),  # as pandas names columns without names
        ("400,402,404", NUMBERS),  # wavelengths
        ("400.5,402.25,404.0", NUMBERS),
        ("9.98,9.96,9.94", NUMBERS),  # parts per million fall
        ("-1.5,0.0,1.5", NUMBERS + 10),
        ("2019,2020,2021", COUNTS),
        ("2021,2020,2019", COUNTS),
        ("0,1,2", COUNTS),
        ("10,20,30,40,50", np.hstack([COUNTS, COUNTS[:, :2]])),  # equal steps, amid the numbers
        ("400nm,402nm,404nm", NUMBERS),
        ("1_1,1_2,2_1", NUMBERS),
        ("a,inf,nan", NUMBERS),
    ],
)
def test_names_that_are_numbers(names: str, values: Any, tmp_path: Path) -> None:
    """No first line of names becomes a row, and with an index neither."""
    frame = frame_of(tmp_path, f"{names}\n{lines(values)}")
    assert list(frame.columns) == names.split(",")
    np.testing.assert_array_equal(frame.to_numpy(), values)
    indexed = lines(np.hstack([np.arange(30)[:, None].astype(object), values.astype(object)]))
    assert list(frame_of(tmp_path, f",{names}\n{indexed}").columns) == names.split(",")


@pytest.mark.parametrize(
    "values",
    [
        NUMBERS,
        COUNTS,
        np.arange(40).reshape(8, 5),  # every row in equal steps
        np.vstack([[0.0, 1.0, 5.0], np.cumsum(np.ones((20, 3)), axis=0) / 10 + [0, 1, 5]]),
        np.vstack([[1, 2, 3], COUNTS % 9]),
        np.vstack([[0, 1], COUNTS[:, :2] % 2]),
    ],
)
def test_a_first_row_is_a_row(values: Any, tmp_path: Path) -> None:
    """The wrong twin: rows that rise, series that start lowest, without names."""
    np.testing.assert_array_equal(frame_of(tmp_path, lines(values)).to_numpy(), values)


def test_names_that_were_guessed_are_said(tmp_path: Path) -> None:
    """With the remedy that overrules them, which works."""
    text = f"0,1,2\n{lines(COUNTS)}"
    with pytest.warns(UserWarning, match=r"the first line \('0', '1', '2'\) .*header=False.*--no"):
        frame_of(tmp_path, text)
    assert len(frame_of(tmp_path, text, Layout(header=False))) == 31
    assert len(frame_of(tmp_path, text, Layout(header=True))) == 30
    text = f"a,b,c\nmm,kg,s\n{lines(NUMBERS)}"
    with pytest.warns(UserWarning, match=r"line 2 \('mm', 'kg', 's'\) is taken for units"):
        frame_of(tmp_path, text)


@pytest.mark.parametrize(
    ("first", "index"),
    [
        (",", range(30)),
        ("Unnamed: 0,", range(30)),
        ('"",', range(1, 31)),  # as R writes it
        ("", range(1, 31)),  # as R's write.table does, with a name less than there are columns
        ("", [f"car {i}" for i in range(30)]),
        (",", range(7, 607, 20)),  # rows left over from a longer table
        (",", [f"gene{i}" for i in range(30)]),
    ],
)
def test_indices_are_left_out(first: str, index: Sequence[Any], tmp_path: Path) -> None:
    """First columns without a name, whose entries all differ."""
    rows = "".join(f"{i},{row}\n" for i, row in zip(index, lines(NUMBERS).split(), strict=True))
    frame = frame_of(tmp_path, f"{first}a,b,c\n{rows}")
    assert list(frame.columns) == ["a", "b", "c"]
    np.testing.assert_array_equal(frame.to_numpy(), NUMBERS)


def test_a_first_column_that_is_no_index_stays(tmp_path: Path) -> None:
    """The wrong twin: it has a name, or entries that come again, or numbers."""
    assert "a" in frame_of(tmp_path, "a,b\n" + lines(np.c_[np.arange(30), NUMBERS[:, 0]]))
    words = "".join(f"{'xy'[i % 2]},{x}\n" for i, x in enumerate(NUMBERS[:, 0]))
    assert list(frame_of(tmp_path, ",b\n" + words)["0"][:2]) == ["x", "y"]
    assert len(frame_of(tmp_path, ",b\n" + lines(NUMBERS[:, :2])).columns) == 2


@GUESSED
@pytest.mark.parametrize(
    "units",
    ["mm,kg,", "(mm),[kg],", "mm,-,text", ",kg,", "°C,µg/L,name", "$,%,"],
)
def test_rows_of_units_are_skipped(units: str, tmp_path: Path) -> None:
    """Above numbers, beside a column of words."""
    rows = "".join(f"{i}.5,{2 * i},{'xy'[i % 2]}\n" for i in range(20))
    frame = frame_of(tmp_path, f"a,b,c\n{units}\n{rows}")
    assert [dtype.kind for dtype in frame.dtypes[:2]] == ["f", "i"]
    assert frame["c"].unique().tolist() == ["x", "y"]


@ODD
@pytest.mark.parametrize("row", ["?,0.5,x", "<3,<2,y", "0.5,unknown,x", ".,.,x", "NA,NA,y"])
def test_a_second_row_is_a_row(row: str, tmp_path: Path) -> None:
    """The wrong twin: odd cells in the first row."""
    rows = "".join(f"{i}.5,{2 * i},{'xy'[i % 2]}\n" for i in range(20))
    assert len(frame_of(tmp_path, f"a,b,c\n{row}\n{rows}")) == 21


BETWEEN_NOTES = {
    "notes of an instrument": ("Station: X\nOperator: Y\n\n", ""),
    "notes with cells": ("Instrument,Foo\nSerial,123\n", ""),
    "a comment of MATLAB": ("% made by a lab\n", ""),
    "a comment of C": ("// made by a lab\n", ""),
    "a source below": ("", "Source: a lab\n"),
    "above and below": ("Station: X\n", "\nend of file\n"),
    "empty rows above": (",,\n,,\n", ""),
    "a title of a spreadsheet": ("Quarterly results,,\n,,\n", ""),
    "a comment below": ("", "# end of file\n"),
    "a source in a spreadsheet": ("", "Source: a lab,,\n"),
    "a sum": ("", "Total,6.5,\n"),
    "means": ("", "Mean:,3.5,x\n"),
    "a sum of so many": ("", "TOTAL (n=2),6.5,\n"),
}


@pytest.mark.filterwarnings("ignore:.* taken for notes")
@pytest.mark.parametrize("name", BETWEEN_NOTES)
def test_notes_around_a_table(name: str, tmp_path: Path) -> None:
    """Skipped, with a warning that names them, but for empty rows."""
    above, below = BETWEEN_NOTES[name]
    path = tmp_path / "y.csv"
    path.write_text(above + "a,b,c\n1,2.5,x\n3,4.5,y\n" + below)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        columns = columns_of_text(path)
    assert {name: list(raw.values) for name, raw in columns.items()} == {
        "a": [1, 3],
        "b": [2.5, 4.5],
        "c": ["x", "y"],
    }
    assert [("taken for notes" in str(w.message)) for w in caught] == [True] * (above != ",,\n,,\n")
    path.write_text(above + "a,b,c\n1,2.5,x\n3,4.5,y\n5,6.5,z\n3\n")  # a row that broke off
    with pytest.raises(ValueError, match="has 1 cell, but must have 3"):
        columns_of_text(path)


@pytest.mark.filterwarnings("ignore:.* taken for notes")
@pytest.mark.parametrize(
    "footer",
    [
        "{sum}",
        "Min,{min}\nMax,{max}\nMean,{mean}",
        "Mean,{mean}\nSD,0.1,0.1\nMinimum:,{min}",
        "Summe,{sum}",
        ",{sum}",
        "average (all),{mean}",
    ],
)
def test_summaries_below_a_table(footer: str, tmp_path: Path) -> None:
    """By their words, or by their numbers; a last row that only looks like one stays."""
    cells = [(f"{'uvw'[i % 3]}", f"{x:.3f}", f"{y:.3f}") for i, (x, y, _) in enumerate(NUMBERS)]
    text = "g,a,b\n" + "".join(",".join(row) + "\n" for row in cells)
    said = {
        name: ",".join(f"{of(NUMBERS[:, place]):.3f}" for place in (0, 1))
        for name, of in (("sum", sum), ("min", min), ("max", max), ("mean", np.mean))
    }
    said["sum"] = said["sum"] if "," in footer else f"z,{said['sum']}"
    frame = frame_of(tmp_path, text + footer.format(**said) + "\n")
    np.testing.assert_array_equal(frame[["a", "b"]].to_numpy(), NUMBERS[:, :2])
    for row in ("z,900,900\n", "Max,1.5,2.5\n", f"z,{said['max']}\n"):
        assert len(frame_of(tmp_path, text + row)) == 31


@pytest.mark.parametrize("separator", ["", ";;", '"', "\n"])
def test_a_separator_is_a_single_character(separator: str, tmp_path: Path) -> None:
    """Two had ended in an error of csv, and the end of a line had made one column of all."""
    with pytest.raises(ValueError, match=r"must be one character.* leave out `separator`"):
        Layout(separator=separator)
    text = "a;b\n" + lines(NUMBERS[:, :2], ";")
    for layout in (Layout(), Layout(separator=";")):
        assert frame_of(tmp_path, text, layout).shape == (len(NUMBERS), 2)


@pytest.mark.parametrize("separator", ["~", ":", "::", "&", "/"])
def test_separators_that_are_not_looked_for_are_named(separator: str, tmp_path: Path) -> None:
    """One cell in each line: the warning tells the option, and a column of words has none."""
    text = lines(NUMBERS, separator)
    with pytest.warns(UserWarning, match=r"every line has one cell, such as .*--sep"):
        frame_of(tmp_path, f"a{separator}b{separator}c\n{text}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame_of(tmp_path, "a\n" + "left\nright\n" * 9)
    with pytest.warns(UserWarning, match="every line has one cell"):  # columns of spaces
        frame_of(tmp_path, "site       x\n" + "Upper one  2\nUpper      3\n" * 9)


def test_names_that_stand_again_are_skipped(tmp_path: Path) -> None:
    """As where files were put together; said, with the line. A row like the first one stays."""
    text = "a,b\n1.5,x\n2.5,y\n"
    with pytest.warns(UserWarning, match="repeat the column names, and are skipped: line 4"):
        frame = frame_of(tmp_path, text + text)
    assert frame["a"].tolist() == [1.5, 2.5, 1.5, 2.5]
    assert frame["b"].unique().tolist() == ["x", "y"]
    assert len(frame_of(tmp_path, "1,2\n3,4\n1,2\n")) == 3


BETWEEN_ROWS = {
    "subtotals": ("x,2.5,3\n" * 9 + "Subtotal,22.5,27\n", r"line 11 \('Subtotal', .*line 21"),
    "headings": ("North:,,\n" + "x,2.5,3\n" * 9, r"line 2 \('North:', '', ''\).*line 12"),
    "means": ("x,2.5,3\n" * 9 + "Mean (n=9),2.5,3\n", r"line 11 \('Mean"),
}


@pytest.mark.filterwarnings("ignore:.* taken for notes")
@pytest.mark.parametrize("name", BETWEEN_ROWS)
def test_headings_and_totals_between_rows(name: str, tmp_path: Path) -> None:
    """Named, with their lines; a word beside missing numbers, or often a total, is an entry."""
    part, lines_named = BETWEEN_ROWS[name]
    with pytest.warns(UserWarning, match=f"totals, but are read as rows: {lines_named}"):
        frame_of(tmp_path, "g,a,b\n" + 3 * part + "x,1,2\n")
    frame_of(tmp_path, "g,a,b\n" + 3 * "x,,\nx,2.5,3\ny,1.5,2\n")
    frame_of(tmp_path, "what,a,b\n" + 9 * "Mean,2.5,3\nSD,1.5,2\n")


def test_words_that_are_not_windows_1252(tmp_path: Path) -> None:
    """Cyrillic, Greek, Hebrew and Chinese codes: named with the line; accents are not."""
    for words, encoding in (
        ("город", "cp1251"),
        ("θερμοκρασία", "cp1253"),
        ("ירושלים", "cp1255"),
        ("温度传感器", "gbk"),
    ):
        coded = f"x,{words}\n1.5,2.5\n3.5,4.5\n".encode(encoding)
        with pytest.warns(UserWarning, match="read as Windows-1252. This gives .* in line 1"):
            frame_of(tmp_path, coded)
    text = "x,Übergröße µg/m³ naïveté\n1.5,2.5\n3.5,4.5\n"
    assert frame_of(tmp_path, text.encode("cp1252")).columns[1].startswith("Übergröße")


def test_what_a_mark_between_three_digits_means(tmp_path: Path) -> None:
    """1.200 between semicolons, 1,200 between tabs: named, unless another number tells."""
    with pytest.warns(UserWarning, match=r"such as '1.200' in line 2 .* is read as 1.2: "):
        frame_of(tmp_path, "a;b\n1.200;x\n3.450;y\n")
    with pytest.warns(UserWarning, match=r"such as '1,200' in line 2 .* is read as 1200: "):
        frame_of(tmp_path, "a\tb\n1,200\tx\n3,450\ty\n")
    for text, first in (
        ("a;b\n1.200;0.5\n3.450;1.5\n", 1.2),
        ("a;b\n1.200;0,5\n3.450;1,5\n", 1200),
        ("a;b\n1.200;1.234.567\n3.450;1\n", 1200),
        ("a\tb\n1,200\t0.5\n3,450\t1.5\n", 1200),
        ("a\tb\n1,200\t0,5\n3,450\t1,5\n", 1.2),
        ("a\tb\n1.200\tx\n3.450\ty\n", 1.2),
        ("a,b\n1.200,x\n3.450,y\n", 1.2),
    ):
        assert frame_of(tmp_path, text)["a"][0] == first, text


def test_lines_of_a_data_logger(tmp_path: Path) -> None:
    """A first line that is longer than the table, then names, units and how values were made."""
    head = '"TOA5","CR1000","1","x","y"\n"TIME","RECORD","T"\n"TS","RN","Deg C"\n"","","Avg"\n'
    with pytest.warns(UserWarning, match=r"taken for notes .*line 1 \('TOA5'|taken for units"):
        frame = frame_of(
            tmp_path, head + "".join(f"x{i % 3},{7 * i % 31},{i}.5\n" for i in range(9))
        )
    assert list(frame.columns) == ["TIME", "RECORD", "T"]
    assert frame["T"].tolist() == [i + 0.5 for i in range(9)]
    with pytest.raises(
        ValueError, match=r"line 2 of .* has 2 cells, but must have 3"
    ):  # a row is no heading
        frame_of(tmp_path, "a,b,c\n1,2\n3,4\n")


def test_a_comment_between_rows(tmp_path: Path) -> None:
    """Skipped, with its line; a cell that begins with # is none."""
    with pytest.warns(UserWarning, match=r"taken for notes .*: line 3 \('# recalibrated'\)"):
        assert len(frame_of(tmp_path, "a,b\n1,2\n# recalibrated\n3,4\n")) == 2
    assert frame_of(tmp_path, "a,b\n#1,2\n#2,4\n#1,4\n")["a"].tolist() == ["#1", "#2", "#1"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html>\n<html>404</html>\n", "holds HTML, XML or JSON"),
        (b'<?xml version="1.0"?>\n<a/>\n', "holds HTML, XML or JSON"),
        (b'{"a": 1}\n{"a": 2}\n', "holds HTML, XML or JSON"),
        (b'[{"a": 1}]\n', "holds HTML, XML or JSON"),
        (
            b"PK\x03\x04\x14\x00",
            "as text, because it is a workbook or an archive: save the table as csv",
        ),
        (
            b"a,b\n1,\0\n",
            "as text, because of the byte 0x00 in line 2: save the table as csv, in UTF-8",
        ),
        (bz2.compress(b"a,b\n1,2\n"), "is compressed with bzip2: unpack the file"),
        (lzma.compress(b"a,b\n1,2\n"), "is compressed with xz: unpack the file"),
        (b"%PDF-1.4\n1 0 obj\n", "holds a PDF or RTF document, not lines of cells: export the"),
        (b"{\\rtf1\\ansi\n}\n", "holds a PDF or RTF document"),
        (b"% iris\n@RELATION iris\n@data\n1,2\n", "holds an ARFF table"),
        (b"-- dump\nINSERT INTO t VALUES (1,'a');\nINSERT INTO t VALUES (2,'b');\n", "holds SQL"),
        (b"CREATE TABLE t (a INT);\n", "holds SQL"),
        (b"% table\n\\begin{tabular}{ll}\na & b\n", "holds LaTeX"),
    ],
)
def test_what_is_no_table(content: bytes, says: str, tmp_path: Path) -> None:
    """Refused as what it is, and not by its columns."""
    with pytest.raises(ValueError, match=says):
        frame_of(tmp_path, content)


@pytest.mark.parametrize(
    ("comment", "separator"),
    [
        ("# a,b", ","),
        ("#a,b", ","),
        ("## a, b", ","),
        ("# a;b", ";"),
        ("#a\tb", "\t"),
        ("#\ta\tb\t", "\t"),
    ],
)
def test_names_in_a_comment(comment: str, separator: str, tmp_path: Path) -> None:
    """As `numpy.savetxt` writes them; a comment that does not fit names nothing."""
    path = tmp_path / "y.csv"
    rows = f"1.5{separator}2.5\n3.5{separator}4.5\n"
    path.write_text(f"# made by a lab\n{comment}\n{rows}")
    assert list(columns_of_text(path)) == ["a", "b"]
    path.write_text(f"# made by a lab\n{rows}")
    assert list(columns_of_text(path)) == ["0", "1"]


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_a_column_called_by_a_hash(separator: str, tmp_path: Path) -> None:
    """Its line holds names, and is no comment: `#` above the numbers of the rows."""
    text = "#,name,size\n" + "".join(f"{i},item {i},{i % 4}.5\n" for i in range(1, 9))
    for above in ("", "# made by a lab\n"):
        frame = frame_of(tmp_path, above + text.replace(",", separator))
        assert list(frame) == ["#", "name", "size"]
        assert len(frame) == 8
        said = frame_of(tmp_path, above + text.replace(",", separator), Layout(header=True))
        pd.testing.assert_frame_equal(said, frame)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('a,b\nu,1\n"v,1\nw,2\n"x,1\ny,3\n', "3 to 5"),
        ('a,b\nu,x\nv,"\nw,"\nz,y\n', "3 to 4"),  # as ditto marks
    ],
)
def test_rows_that_quotation_marks_join(text: str, lines: str, tmp_path: Path) -> None:
    """They are named; without the marks, they are rows."""
    with pytest.warns(UserWarning, match=f"marks make one row of lines {lines}, although"):
        joined = frame_of(tmp_path, text)
    assert len(joined) < len(frame_of(tmp_path, text.replace('"', ""))) == text.count("\n") - 1
    frame_of(tmp_path, 'a,b\n1,"one, two\nand three"\n2,"x"\n')  # without a warning


def test_spaces_between_decimal_commas(tmp_path: Path) -> None:
    """Without names above, too; between spaces of thousands, a comma separates."""
    text = "".join(f"{i},5 {i * i},25\n" for i in range(6))
    frame = frame_of(tmp_path, text)
    assert frame["0"].tolist() == [i + 0.5 for i in range(6)]
    assert frame["1"].tolist() == [i * i + 0.25 for i in range(6)]
    thousands = frame_of(tmp_path, "".join(f"{i} 234,{i} 678\n" for i in range(1, 7)))
    assert thousands["1"].tolist() == [1000 * i + 678 for i in range(1, 7)]


def test_names_of_rows_between_spaces(tmp_path: Path) -> None:
    """As R writes them with `quote=FALSE`, and pandas prints them."""
    frame = pd.DataFrame(NUMBERS[:5].copy(), list("vwxyz"), ["a", "b", "c"])
    frame.iloc[2, 1] = np.nan
    rows = frame.to_csv(sep=" ", na_rep="NA", header=False)
    for text in (f"a b c\n{rows}", frame.to_string()):
        pd.testing.assert_frame_equal(frame_of(tmp_path, text), frame.reset_index(drop=True))
    words = "first name\nAnn Mary Smith\nJo Lee 3\n"
    assert frame_of(tmp_path, words)["first name"].tolist() == ["Ann Mary Smith", "Jo Lee 3"]


def test_a_file_of_one_cell(tmp_path: Path) -> None:
    """A number is a row; a name alone has none."""
    assert frame_of(tmp_path, "5").to_numpy().tolist() == [[5]]
    with pytest.raises(ValueError, match="has no rows"):
        frame_of(tmp_path, "x")


def test_one_odd_byte_in_utf_8_is_named(tmp_path: Path) -> None:
    """It turns the letters of the whole file into others; without it, nothing is said."""
    text = "Gr\u00f6\u00dfe,x\n1,2\n3,5\n".encode()
    with pytest.warns(UserWarning, match="read as Windows-1252. This gives .* in line 1"):
        frame_of(tmp_path, text.replace(b"x", b"x in \xb5m"))
    assert list(frame_of(tmp_path, text)) == ["Gr\u00f6\u00dfe", "x"]


def test_quotation_marks_behind_a_backslash(tmp_path: Path) -> None:
    """As MySQL writes them; a path that ends in a backslash stays one."""
    text = 'a,b\n"say \\"hi, you\\"",1\n"z",2\n'
    assert frame_of(tmp_path, text)["a"].tolist() == ['say "hi, you"', "z"]
    paths = 'a,b\n"C:\\dir\\",1\n"z",2\n'
    assert frame_of(tmp_path, paths)["a"].tolist() == ["C:\\dir\\", "z"]


@pytest.mark.parametrize(
    "text",
    ['a,b\n1,"2\n3,4\n', 'a,b\n"1,2\n3,4\n5,6\n', '"a,b\n1,2\n', 'a;b\n1;"x\n', 'a\tb\n1\t"2'],
)
def test_a_quotation_mark_swallows_nothing(text: str, tmp_path: Path) -> None:
    """One that is never closed is refused, with its line; a cell of two lines is none."""
    path = tmp_path / "y.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mark that is never closed, in line \d or below"):
        columns_of_text(path)
    path.write_text('a,b\n1,"two\nlines" \n2,5" pipe\n')
    assert list(columns_of_text(path)["b"].values) == ["two\nlines", '5" pipe']


def plain(separator: str, *, decimal: str = ".") -> str:
    """The numbers with names, cut otherwise."""
    text = pd.DataFrame(NUMBERS, columns=["a", "b", "c"]).to_csv(
        index=False, sep=separator, decimal=decimal
    )
    assert isinstance(text, str)
    return text


DIALECTS: dict[str, str | bytes] = {
    "semicolons": plain(";"),
    "semicolons, decimal commas": plain(";", decimal=","),
    "tabs": plain("\t"),
    "tabs, decimal commas": plain("\t", decimal=","),
    "bars": plain("|"),
    "carets": plain("^"),
    "spaces": plain(" "),
    "columns of spaces": plain(" ").replace(" ", "   "),
    "a space behind each comma": plain(",").replace(",", ", "),
    "quotes": "\n".join(
        ",".join(f'"{cell}"' for cell in line.split(",")) for line in plain(",").split()
    ),
    "carriage returns": plain(",").replace("\n", "\r\n"),
    "old carriage returns": plain(",").replace("\n", "\r"),
    "a comma at every end": plain(",").replace("\n", ",\n"),
    "a comma at the end of every row": plain(",").replace("\n", ",\n").replace("c,\n", "c\n", 1),
    "empty columns of a spreadsheet": plain(",").replace("\n", ",,,\n") + ",,,,,\n" * 3,
    "single quotation marks": "\n".join(
        ",".join(f"'{cell}'" for cell in line.split(",")) for line in plain(",").split()
    ),
    "empty lines at the end": plain(",") + "\n\n,,\n",
    "a comment": "# made by the lab\n" + plain(","),
    "the separator said": "sep=;\n" + plain(";"),
    "utf-8": plain(",").encode(),
    "utf-8 with a mark": plain(",").encode("utf-8-sig"),
    "utf-16": plain(",").encode("utf-16"),
    "a comma at the end of some rows": plain(",").replace(",", ",", 9).replace("8\n", "8,\n"),
    "utf-32": plain(",").encode("utf-32"),
    "utf-16, little end": plain(",").encode("utf-16-le"),
    "utf-16, big end": plain(",").encode("utf-16-be"),
    "the end of a file for DOS": plain(",").encode() + b"\x1a",
    "gzip": gzip.compress(plain(",").encode()),
    "gzip of utf-16": gzip.compress(plain(";", decimal=",").encode("utf-16")),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects(name: str, tmp_path: Path) -> None:
    """However it is cut and encoded: the same table, read for any columns and for numbers."""
    frame = frame_of(tmp_path, DIALECTS[name])
    assert list(frame.columns) == ["a", "b", "c"]
    np.testing.assert_array_equal(frame.to_numpy(), NUMBERS)
    np.testing.assert_array_equal(read_table(tmp_path / "y.csv").values, NUMBERS)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "txt", "csv.gz", "txt.gz"])
def test_encodings(encoding: str, ending: str, tmp_path: Path) -> None:
    """Words that are not ASCII, in names and in cells."""
    content = "straße,größe\nMünchen,1.5\nKøbenhavn,2.5\nMünchen,3.5\n".encode(encoding)
    path = tmp_path / f"y.{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    frame = read_frame(path)
    assert list(frame.columns) == ["straße", "größe"]
    assert frame["straße"].tolist() == ["München", "København", "München"]


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("a,a,b\nmean,sd,mean\n", ["a mean", "a sd", "b mean"]),  # as pandas groups columns
        ("a,,b\nmean,sd,mean\n", ["a mean", "a sd", "b mean"]),  # merged cells
        ("a,,b\nmean,sd,mean\nmm,mm,s\n", ["a mean", "a sd", "b mean"]),
        ("t,t,p\nC,K,Pa\n", ["t C", "t K", "p Pa"]),
        ("x,a,a\n,low,high\n", ["x", "a low", "a high"]),
        ("a,b,c\nmm,mm,s\n", ["a", "b", "c"]),  # units are none
    ],
)
@GUESSED
def test_names_in_two_lines(head: str, names: list[str], tmp_path: Path) -> None:
    """Joined where the first line alone repeats names; also below the name of an index."""
    frame = frame_of(tmp_path, head + lines(NUMBERS))
    assert list(frame.columns) == names
    np.testing.assert_array_equal(frame.to_numpy(), NUMBERS)
    if head.startswith("a,a"):
        indexed = "".join(f"{i},{x}\n" for i, x in enumerate(lines(NUMBERS).splitlines()))
        frame = frame_of(tmp_path, "".join(f",{x}\n" for x in head.splitlines()) + indexed)
        assert list(frame.columns) == names


def test_names_in_two_lines_that_stay_alike_are_refused(tmp_path: Path) -> None:
    """And the warning of names that were joined names the line."""
    with (
        pytest.warns(UserWarning, match="taken for units"),
        pytest.raises(ValueError, match="named 'a': give each column a name of its own"),
    ):
        frame_of(tmp_path, "a,a,b\nmm,mm,s\n" + lines(NUMBERS))
    with pytest.warns(UserWarning, match=r"line 2 \('mm', 's', 's'\) is taken for the second"):
        frame_of(tmp_path, "a,a,b\nmm,s,s\n" + lines(NUMBERS))


@pytest.mark.parametrize(
    ("text", "message", "mend"),
    [
        ("a,a,b\n1,2,3\n", "more than one column named 'a': give each column", ("a,a", "a,c")),
        ("a, a,b\n1,2,3\n", "more than one column named 'a': give each column", (" a", "c")),
        ('"a","b","b"\n1,2,3\n', "named 'b': give each column", ('"b","b"', '"b","c"')),
        ("a;b;a\n1;2;3\n", "named 'a': give each column", ("b;a", "b;c")),
        ("x\tx\ty\n1\t2\t3\n", "named 'x': give each column", ("x\tx", "x\tz")),
        ("a,b,c\n1,2,3\n4,5\n", "line 3 of .* has 2 cells, but must have 3", ("4,5\n", "4,5,6\n")),
        ("7,lab\n1,2,3\n4,5,6\n", "put # before lines that do not belong", ("7", "# 7")),
    ],
)
def test_refusals_say_what_to_do(
    text: str, message: str, mend: tuple[str, str], tmp_path: Path
) -> None:
    """And it helps."""
    with pytest.raises(ValueError, match=message):
        frame_of(tmp_path, text)
    assert len(frame_of(tmp_path, text.replace(*mend)).columns) == 3


def test_rows_without_entries_are_named(tmp_path: Path) -> None:
    """Described, with a warning that gives the lines, but refused where a model is trained."""
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n,\n4,5\n NA ,\n")
    with pytest.warns(UserWarning, match="lines 3, 5 have no observed entry: drop these lines"):
        frame = data.read_frame(path)
    refused = "refused: no entry is observed in 2 of 4 rows, the first at row 1, counted from 0"
    assert refused in data.describe(frame)
    with pytest.raises(ValueError, match="no entry is observed in 2 of 4 rows"):
        data.from_frame(frame)
    path.write_text("a,b\n1,2\n4,5\n")
    assert "refused" not in data.describe(data.read_frame(path))


def test_a_text_is_read_as_it_says(tmp_path: Path) -> None:
    """The separator can be said, and is obeyed."""
    path = tmp_path / "y.csv"
    path.write_text("a;b\n1,5;2\n3,5;4\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(columns_of_text(path)) == ["a", "b"]
    with pytest.raises(ValueError, match=r"line 2 of .* has 2 cells, but must have 1"):
        columns_of_text(path, Layout(separator=","))
