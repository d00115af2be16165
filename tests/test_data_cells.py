"""Cells of texts and frames: read as what they hold, or refused by name with a remedy."""

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae import data
from pyro_vae.data import Categories, Columns, Layout, Real, read_table
from tests.helpers.texts import NUMBERS, column_of, frame_of


@pytest.mark.parametrize(
    "cell", ["?", "-", "unknown", ".", "<47", "> 100", "n.d.", "#REF!", "below LOD", "1.2.3", "*"]
)
def test_one_odd_cell_among_numbers(cell: str, tmp_path: Path) -> None:
    """It is missing, with a warning that names its line; the column stays numbers."""
    cells = [str(x) for x in NUMBERS[:, 0]]
    cells[5] = cell
    named = re.escape(f"except for 1 of 30 entries: {cell!r} in line 7")
    with pytest.warns(UserWarning, match=f"column 'a' holds numbers, {named}"):
        column = column_of(tmp_path, cells)
    assert column.isna().tolist() == [i == 5 for i in range(30)]
    # The remedy: to mend the cell.
    cells[5] = ""
    pd.testing.assert_series_equal(column_of(tmp_path, cells), column)


@pytest.mark.parametrize(
    "cell", ["", "NA", "N/A", "nan", "null", "None", "NaT", "#N/A", "(null)", "<NULL>"]
)
def test_empty_cells_are_missing(cell: str, tmp_path: Path) -> None:
    """Among numbers and among words, with no warning."""
    assert column_of(tmp_path, ["1.5", cell, "2.5"]).isna().tolist() == [False, True, False]
    assert column_of(tmp_path, ["x", cell, "y"]).isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["1.5", "1,234"], [1.5, 1234.0]),
        (["1,234", "2,345,678"], [1234, 2345678]),
        (["1,234.5", "12"], [1234.5, 12.0]),
        (["46%", "5%"], [46, 5]),
        (["46 kW", "5 kW"], [46, 5]),
        (["$46", "$1,046"], [46, 1046]),
        (["46 €", "5€"], [46, 5]),
        (["21.5 °C", "-3 °C"], [21.5, -3.0]),
        (["1.5e3 m/s", "2 m/s"], [1500.0, 2.0]),
        (["46,0", "5,25"], [46.0, 5.25]),  # in quotes, between commas
        (["-1,5", "1.234,5", "1.234"], [-1.5, 1234.5, 1234.0]),
        (["1 234", "12 345,5"], [1234.0, 12345.5]),
        (["1'234", "12'345"], [1234, 12345]),
        (["1\u00a0234", "\u22125"], [1234, -5]),
        (["1\u2009234", "12\u2009345"], [1234, 12345]),  # thin spaces, and those as wide as digits
        (["1\u2007234", "2\u202f345\u202f678"], [1234, 2345678]),
        (["\u200b1.5", "\ufeff2.5"], [1.5, 2.5]),
        (['=""12""', '=""7""'], [12, 7]),  # how a spreadsheet is told to keep a text
        (["\uff11\uff12", "\u0663"], [12, 3]),  # digits of other scripts
        (["+3", ".5"], [3.0, 0.5]),
        (["(1.50)", "2.25", "(1,234.00)"], [-1.5, 2.25, -1234.0]),  # as accounts have it
        (["($1,000)", "$2,500"], [-1000, 2500]),
        (["-$100.50", "$3.25"], [-100.5, 3.25]),
        (["100-", "25"], [-100, 25]),
        (["EUR 10.50", "EUR 3.25"], [10.5, 3.25]),
        (["¥1000", "¥1,053"], [1000, 1053]),
        (["₹1,23,456", "₹12,34,567"], [123456, 1234567]),
        (["R$ 5,50", "R$ 6,25"], [5.5, 6.25]),
        (["120 kr", "99 kr"], [120, 99]),
        (["$13.95/h", "$15.50/h"], [13.95, 15.5]),
        (["1.2 x 10^-3", "4.5 x 10^2"], [1.2e-3, 450.0]),
        (["1.2·10⁻³", "4.5\u00d710²"], [1.2e-3, 450.0]),
        (["5 m³", "7 m³"], [5, 7]),
        (["0.5 ‰", "2 ‰"], [0.5, 2.0]),
        (["1\u202f200,50 €", "2\u202f300,25 €"], [1200.5, 2300.25]),
        (["1 200 km", "12 345 km"], [1200, 12345]),
        (["0,250", "1,125"], [0.25, 1.125]),  # no thousands begin with 0
        (["\u20133.5", "2.5"], [-3.5, 2.5]),  # a dash, as text processors write a minus
        (["\u20123", "\u22122e\u22121"], [-3.0, -0.2]),
    ],
)
def test_numbers_as_they_are_written(
    cells: list[str], numbers: list[float], tmp_path: Path
) -> None:
    """With units, signs of thousands, decimal commas."""
    column = column_of(tmp_path, cells)
    assert column.tolist() == numbers
    assert column.dtype.kind == ("i" if all(isinstance(x, int) for x in numbers) else "f")


@pytest.mark.parametrize(
    "cells",
    [
        ["4.6 ± 0.1", "5.2 ± 0.2"],
        ["4.6±0.1", "5.2±0.25"],
        ["4.6 +/- 0.1", "5.2 +/- 0.1"],
        ["4.6(1)", "5.2(13)"],
        ["4.6 ± 0.1 mm", "5.2 ± 0.1 mm"],
    ],
)
def test_numbers_with_their_errors(cells: list[str], tmp_path: Path) -> None:
    """The numbers are read, and it is said that the errors are left out."""
    with pytest.warns(UserWarning, match=r"numbers with their errors, such as '4.6.*' in line 2"):
        assert column_of(tmp_path, cells).tolist() == [4.6, 5.2]


@pytest.mark.parametrize("cells", [["(1)", "(2)", "(3)"], ["S-1", "S-2"], ["a(1)", "b(2)"]])
def test_what_only_looks_like_accounts(cells: list[str], tmp_path: Path) -> None:
    """The wrong twin: no minus signs."""
    assert column_of(tmp_path, cells).tolist() == cells


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        (["1", "2", "x"] * 10, r"20 numbers and 10 other entries \('x' at row 2"),
        (["5", "6 kg", "7"] * 10, r"20 numbers and 10 other entries \('6 kg' at row 1"),
        (["46%", "5%", "low"] * 10, r"20 numbers and 10 other entries \('low' at row 2"),
        (["1.5"] * 7 + ["<1"] * 3, r"7 numbers and 3 other entries \('<1' at row 7"),
        (["3", "many"], r"1 number and 1 other entry \('many' at row 1"),
    ],
)
def test_neither_numbers_nor_words(cells: list[str], named: str, tmp_path: Path) -> None:
    """Refused with the cells; leaving them empty is a remedy, and to say what the column is."""
    frame = column_of(tmp_path, cells).to_frame().assign(z=0.5)
    with pytest.raises(ValueError, match=rf"column 'a' holds {named}.*: empty the cells"):
        Columns.of(frame)
    assert frame["a"].tolist() == cells
    bad = {"x", "6 kg", "low", "<1", "many"}
    assert column_of(tmp_path, ["" if cell in bad else cell for cell in cells]).dtype.kind in "if"
    with pytest.warns(UserWarning, match="are treated as missing"):
        columns = Columns.of(frame, {"a": Real})
    with pytest.warns(UserWarning, match="are treated as missing"):
        missing = columns.encode(frame)[:, 0].isnan()
    assert missing.tolist() == [cell in bad for cell in cells]
    assert type(Columns.of(frame, {"a": data.Categories}).kinds["a"]) is data.Categories


@pytest.mark.parametrize(
    "mark",
    [
        *("?", "n.d.", "-", "missing", "*", "N.A.", ".", "unknown", "#DIV/0!", "#VALUE!", "#NUM!"),
        *(".a", ".z", "k.A.", "\u2014", "not recorded", "s/d", "n.r.", "No data", "unbekannt"),
    ],
)
def test_signs_that_nothing_was_measured(mark: str, tmp_path: Path) -> None:
    """Up to half of a column; named with their lines. More of them make a column of words."""
    with pytest.warns(
        UserWarning, match=r"column 'a' holds numbers, except for 10 of 30 .* in line 4"
    ):
        column = column_of(tmp_path, ["1.5", "2.5", mark] * 10)
    assert column.isna().sum() == 10
    assert column_of(tmp_path, ["1.5", mark, mark] * 10).dtype == object


_MEASURED = [f"{20 + 7 * math.sin(i):.2f}" for i in range(30)]
_VISITS = [str(i % 9) for i in range(30)]
MARKS = {
    "-99": _MEASURED,
    "9999": _MEASURED,
    "-999.25": _MEASURED,
    "-9999.0": _MEASURED,
    "88888": _MEASURED,
    "-1": _VISITS,
    "-9": _VISITS,
    "999": _VISITS,
    "1e+20": _MEASURED,
    "-32768": _MEASURED,
    "65535": _VISITS,
    "77": _VISITS,
    "7777": _MEASURED,
}


@pytest.mark.parametrize("mark", MARKS)
def test_numbers_that_may_mean_missing(mark: str, tmp_path: Path) -> None:
    """Named, with the others; said to be missing, they are."""
    path = tmp_path / "y.csv"
    cells = [mark if i in (3, 8) else cell for i, cell in enumerate(MARKS[mark])]
    path.write_text("a,b\n" + "".join(f"{cell},{i % 4}.5\n" for i, cell in enumerate(cells)))
    with pytest.warns(
        UserWarning,
        match=rf"column 'a' holds {re.escape(f'{float(mark):g}')} in 2 entries.*missing",
    ):
        assert not data.load(path).train.isnan().any()
    table = data.load(path, layout=Layout(missing=(mark,)))
    assert int(table.train.isnan().sum() + table.test.isnan().sum()) == 2
    assert len(data.load(path, kinds={"a": Real}).train) == 24


@pytest.mark.parametrize(
    "cells",
    [
        [str(90 + i % 12) for i in range(30)],  # 99 among its neighbours
        [str(i % 3 - 1) for i in range(30)],  # -1, 0, 1
        ["-1", "1"] * 15,
        [f"{math.sin(i):.1f}" for i in range(30)],
        [str(-(i % 12)) for i in range(30)],
    ],
)
def test_numbers_that_mean_what_they_say(cells: list[str], tmp_path: Path) -> None:
    """No warning: warnings are errors here."""
    Columns.of(column_of(tmp_path, cells).to_frame().assign(z=0.5))


def test_points_beside_decimal_commas(tmp_path: Path) -> None:
    """Where others have a decimal point, `1.234` is 1.234 and named; in one with `1,5`, 1234."""
    rows = [f"0.{i}1\t{i},{i + 1}\t1.{i}34\t1.{i}00\n" for i in range(1, 7)]
    text = "a\tpair\tb\tc\n" + "".join(rows) + "0.5\t2,5\t1.734\t2,5\n"
    with pytest.warns(UserWarning, match=r"column 'b' holds numbers such as '1.134' in line 2"):
        frame = frame_of(tmp_path, text)
    np.testing.assert_allclose(frame["b"], [1.134, 1.234, 1.334, 1.434, 1.534, 1.634, 1.734])
    np.testing.assert_allclose(frame["c"], [1100, 1200, 1300, 1400, 1500, 1600, 2.5])
    np.testing.assert_allclose(frame["pair"][:2], [1.2, 2.3])
    # Without decimal points, the same numbers are thousands, as in German.
    german = frame_of(tmp_path, text.replace("0.", "0,"))
    np.testing.assert_allclose(german["b"], 1000 * frame["b"])


def test_a_unit_hides_no_ambiguous_point(tmp_path: Path) -> None:
    """Between semicolons `1.234 kg` is read, and named, like `1.234`; money has thousands."""
    cells = [f"1.{i}34" for i in range(9)]
    for unit in ("", " kg"):
        text = "a;b\n" + "".join(f"w;{cell}{unit}\n" for cell in cells)
        with pytest.warns(UserWarning, match=r"such as '1.034' in line 2 .* is read as 1.034: if"):
            frame = frame_of(tmp_path, text)
        assert frame["b"].tolist() == [float(cell) for cell in cells]
    money = frame_of(tmp_path, "a;b\n" + "".join(f"w;{cell} €\n" for cell in cells))
    assert money["b"].tolist() == [float(cell.replace(".", "")) for cell in cells]


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_points_of_thousands_and_of_addresses(separator: str, tmp_path: Path) -> None:
    """In a column with 1.234.567, 2.345 is 2345; addresses of computers stay words."""
    rows = [f"192.168.178.{101 + i % 3}\t{i}.234.567\t1.{i}34\n" for i in range(1, 10)]
    text = ("ip\ta\tx\n" + "".join(rows) + "192.168.178.101\t2.345\t1.5\n").replace("\t", separator)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has both decimal points")
        frame = frame_of(tmp_path, text)
    assert set(frame["ip"]) == {f"192.168.178.{i}" for i in (101, 102, 103)}
    assert frame["a"].tolist() == [1000000.0 * i + 234567 for i in range(1, 10)] + [2345]
    np.testing.assert_allclose(frame["x"], [*(1.034 + 0.1 * i for i in range(1, 10)), 1.5])
    # Addresses say nothing about the numbers beside them.
    alone = "ip;x\n" + "".join(f"192.168.178.{101 + i};1.{i}34\n" for i in range(9))
    with pytest.warns(UserWarning, match="such as '1.034' in line 2 .* is read as 1.034"):
        assert frame_of(tmp_path, alone)["x"][0] == 1.034


def test_grades_with_a_minus_are_named(tmp_path: Path) -> None:
    """They are read as negative numbers, as in accounts; the remedy keeps them as they are."""
    path = tmp_path / "y.csv"
    grades = ["1", "1-", "2", "2-"]
    path.write_text("g,x\n" + "".join(f"{grades[i % 4]},{i * i % 7}.5\n" for i in range(40)))
    with pytest.warns(UserWarning, match=r"holds '1-' in line 3, which is read as -1: .* g=Categ"):
        read_table(path)
    columns = data.load(path, kinds={"g": Categories}).columns
    assert columns is not None
    assert columns.kinds["g"] == Categories(("1", "1-", "2", "2-"))
    column_of(tmp_path, ["146-", "5-", "25"])  # accounts: without a warning


def test_versions_are_named(tmp_path: Path) -> None:
    """1.1 and 1.10 are one number; the remedy keeps both words. Decimals are numbers."""
    path = tmp_path / "y.csv"
    versions = ["1.9", "1.10", "1.1", "2.0"]
    path.write_text("v,x\n" + "".join(f"{versions[i % 4]},{i * i % 7}.5\n" for i in range(40)))
    with pytest.warns(UserWarning, match=r"'1.1' and, in line 3, '1.10', .*--kinds v=Categories"):
        data.load(path)
    columns = data.load(path, kinds={"v": Categories}).columns
    assert columns is not None
    kind = columns.kinds["v"]
    assert isinstance(kind, Categories)
    assert sorted(kind.categories) == sorted(versions)
    column_of(tmp_path, ["1.1", "1.10", "1.05"])  # without a warning


@pytest.mark.parametrize("code", ["007", "01234", "0815"])
def test_a_number_with_leading_zeros(code: str, tmp_path: Path) -> None:
    """Among numbers of other lengths it is one, and named with the remedy."""
    with pytest.warns(UserWarning, match=rf"leading zeros, such as '{code}' in line 2"):
        column_of(tmp_path, [code, "12", "13"])


@pytest.mark.parametrize(
    "codes",
    [
        ["01234", "94305", "00501"],  # zip codes, of one length
        ["00", "01"],
        ["08", "11", "12"],
        ["030123456", "08912345", "110"],  # mostly with leading zeros
        ["+4930123456", "+15551234567"],
    ],
)
def test_codes_are_categories(codes: list[str], tmp_path: Path) -> None:
    """The zeros are kept; new rows whose zeros a spreadsheet has eaten are recognized."""
    frame = column_of(tmp_path, codes * 10).to_frame()
    with pytest.warns(UserWarning, match=r"codes such as '[0+].*Real.*confirm .*Categories"):
        table = Columns.of(frame)
    (name,) = table.names
    (kind,) = table.kinds.values()
    assert isinstance(kind, Categories)
    assert list(kind.categories) == sorted(codes)
    Columns.of(frame, kinds={name: Categories})  # without a warning
    assert isinstance(Columns.of(frame, kinds={name: Real}).kinds[name], Real)
    eaten = table.encode(pd.DataFrame({name: [code.lstrip("0") or "0" for code in codes]}))
    assert torch.equal(eaten, table.encode(pd.DataFrame({name: codes})))


def test_codes_of_every_row_are_refused(tmp_path: Path) -> None:
    """They name rows, or are times such as 0411; a table of numbers alone reads them as such."""
    cells = [f"{i % 24:02}{i % 60:02}" for i in range(48)]
    with pytest.raises(ValueError, match=r"codes such as '0000', which differ .*--drop .*Real"):
        Columns.of(column_of(tmp_path, cells).to_frame())
    path = tmp_path / "numbers.csv"
    path.write_text("\n".join(["x", *cells]))
    with pytest.warns(UserWarning, match="leading zeros"):
        assert read_table(path).values[25] == 125
