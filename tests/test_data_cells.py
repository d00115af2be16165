"""Columns of texts and frames: read as what they hold, or refused by name with a remedy."""

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae import data
from pyro_vae.data import Categories, Columns, Layout, Real, describe, read_frame, read_table
from tests.helpers.texts import NUMBERS, ODD, column_of, frame_of


@pytest.mark.parametrize(
    "cell", ["?", "-", "unknown", ".", "<47", "> 100", "n.d.", "#REF!", "below LOD", "1.2.3", "*"]
)
def test_one_odd_cell_among_numbers(cell: str, tmp_path: Path) -> None:
    """It is missing, with a warning that names its line; the column stays numbers."""
    cells = [str(x) for x in NUMBERS[:, 0]]
    cells[5] = cell
    named = re.escape(f"but 1 of 30 entries are not numbers: {cell!r} in line 7")
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
    with pytest.warns(UserWarning, match=r"column 'a' holds numbers, but 10 of 30 .* in line 4"):
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
        with pytest.warns(UserWarning, match=r"such as '1.034' in line 2 are taken for 1.034, not"):
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
    with pytest.warns(UserWarning, match="such as '1.034' in line 2 are taken for 1.034"):
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


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Every column that is refused, and how to drop them all; `describe` goes on behind them."""
    path = tmp_path / "y.csv"
    rows = [f"P{i:03},2024-05-{i + 1:02},{i if i % 3 else '<1'},{i % 7}.5" for i in range(30)]
    path.write_text("\n".join(["id,day,mix,x", *rows]))
    with pytest.raises(ValueError, match="3 of 4 columns are refused") as caught:
        data.load(path)
    assert "--drop id,day,mix" in str(caught.value)
    assert str(caught.value).count("\n- column") == 3
    lines = describe(read_frame(path)).splitlines()
    assert [line.split()[:2] for line in lines] == [
        *(["id", "refused"], ["day", "refused"], ["mix", "refused"], ["x", "Real"])
    ]
    assert data.load(path, drop=["id", "day", "mix"]).feature_names == ("x",)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["red", "", "blue", "NA"], "Binary"),
        (["red", "green", "blue", ""], "Categories"),
        (["yes", "no", ""], "Binary"),
        (["TRUE", "FALSE", ""], "Binary"),
        (["1", "0", ""], "Binary"),
        (["1", "0"], "Binary"),
        (["1", "2", ""] * 10, "Binary"),  # codes of two answers
        (["1", "2", ""] * 3, "Count"),  # too few rows to tell
        (["1", ""] * 30, "Real"),  # a constant
        (["1", "2", "", "0", "3"], "Count"),
        (["1", "2", "0", "3"], "Count"),
        (["1.0", "2.0", "", "0.0", "3.0"], "Count"),  # as pandas writes counts with a hole
        (["1.0", "2.0", "0.0", "3.0"], "Count"),
        (["1", "2", "4"], "Count"),  # counts without a zero
        (["1.0", "2.0", "", "4.0"], "Count"),
        (["6", "2", "4"], "Real"),
        (["6", "2", "", "4"], "Real"),
        (["1.5", "2", "", "0"], "Real"),
        (["1.5", "2", "0"], "Real"),
    ],
)
def test_kinds_do_not_hang_on_holes(cells: list[str], kind: str, tmp_path: Path) -> None:
    """With a hole and without one a column is the same, and so it is as a frame."""
    frame = column_of(tmp_path, cells).to_frame()
    frame["z"] = 0.5
    assert type(Columns.of(frame).kinds["a"]).__name__ == kind
    assert type(Columns.of(frame.dropna()).kinds["a"]).__name__ == kind
    assert type(Columns.of(frame.convert_dtypes()).kinds["a"]).__name__ == kind


SKEWED = {
    "log-normal": np.random.default_rng(0).lognormal(-8.0, 1.0, 60),
    "exponential": np.random.default_rng(0).exponential(3.0, 60),
    "orders of magnitude": 10.0 ** (np.arange(60) % 7 - 3.5),
    "sizes": np.random.default_rng(0).lognormal(9.0, 1.5, 60).round() + 5,  # whole numbers, from 5
    "chi-square": np.random.default_rng(0).chisquare(2, 60),
}
NOT_SKEWED = {
    "normal": np.random.default_rng(0).normal(20.0, 3.0, 60),
    "uniform from above 0": np.random.default_rng(0).uniform(0.01, 1.0, 60),
    "with a zero": np.append(np.random.default_rng(0).lognormal(0.0, 1.0, 59), 0.0),
    "below zero": np.append(np.random.default_rng(0).lognormal(0.0, 1.0, 59), -1.0),
    "normal with outliers": np.append(np.random.default_rng(0).normal(5.0, 1.0, 58), [40.0, 900.0]),
    "years": 1950.0 + np.arange(60) % 50,
    "kelvin": np.random.default_rng(0).lognormal(5.7, 0.05, 60),
}


@pytest.mark.parametrize("name", [*SKEWED, *NOT_SKEWED])
def test_positive_numbers(name: str, tmp_path: Path) -> None:
    """Of several orders of magnitude they are log-normal, and others stay as they are."""
    numbers = (SKEWED | NOT_SKEWED)[name]
    frame = column_of(tmp_path, [f"{x:.6g}" for x in numbers]).to_frame().assign(z=numbers - 9)
    kind = Columns.of(frame).kinds["a"]
    assert type(kind) is (data.Positive if name in SKEWED else Real)
    why = "above 0 and very skewed" if name in SKEWED else "declare the column Positive"
    assert (why in describe(frame)) == (name in SKEWED or (numbers.min() > 0 and name != "years"))
    holes = frame.assign(a=frame["a"].astype(float).where(np.arange(60) % 9 > 0))
    assert type(Columns.of(holes).kinds["a"]) is type(kind)
    assert type(Columns.of(frame, {"a": Real}).kinds["a"]) is Real


def test_counts_by_their_name(tmp_path: Path) -> None:
    """A column that is called a count is one wherever it starts; ages and years are not."""
    cells = "".join(f"{30 + i % 9},{30 + i % 9},{1990 + i}\n" for i in range(40))
    frame = frame_of(tmp_path, "cell_count,age,year\n" + cells)
    assert repr(Columns.of(frame)) == "cell_count: Count, age: Real, year: Real"


def test_counts_that_start_elsewhere_can_be_said(tmp_path: Path) -> None:
    """The description says how, and that they can be."""
    frame = column_of(tmp_path, ["6", "2", "4"]).to_frame()
    assert "declare the column Count if they are counts" in describe(frame)
    assert "Count  3 of 3 observed; as declared" in describe(frame, {"a": data.Count})


def test_kinds_do_not_hang_on_the_split(tmp_path: Path) -> None:
    """One zero in 200 counts, wherever it is: among rows held out or not."""
    visits = np.random.default_rng(0).poisson(4, 200).clip(1)
    visits[7] = 0
    path = tmp_path / "v.csv"
    pd.DataFrame({"g": ["a", "b"] * 100, "visits": visits}).to_csv(path, index=False)
    found = {repr(data.load(path, seed=seed).columns) for seed in range(12)}
    assert found == {"g: Binary, visits: Count"}


IDS: dict[str, Callable[[int], str]] = {
    "names of rows": "sample_{:03d}".format,
    "running numbers": str,
    "running from one": lambda i: str(i + 1),
    "running from a thousand": lambda i: str(1000 + i),
    "running down": lambda i: str(30 - i),
    "running in disorder": lambda i: str(7 * i % 31),
    "numbers with gaps": lambda i: str(1000 + 7 * i * i),
    "numbers and words": lambda i: str(i) if i % 2 else f"P{i}",
    "codes": lambda i: f"{(i * 2654435761) % 2**32:08x}-q",
    "six digits in disorder": lambda i: str(100000 + (i * 7919) % 899981),
    "two parts": lambda i: f"{i + 100}-{i + 7}",
    "names of people": lambda i: "".join(chr(97 + (i * k) % 26) for k in (1, 3, 5, 7)),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_are_offered_for_dropping(name: str, tmp_path: Path) -> None:
    """By name; the rest is read then, and described before."""
    cells = [IDS[name](i) for i in range(30)]
    path = tmp_path / "y.csv"
    path.write_text("id,x\n" + "".join(f"{c},{i % 4}.5\n" for i, c in enumerate(cells)))
    with pytest.raises(ValueError, match=r"column 'id' .* drop the column with drop=.*--drop"):
        data.load(path)
    assert data.load(path, drop=["id"]).feature_names == ("x",)
    if name.startswith("running"):
        assert describe(read_frame(path)).splitlines()[0].split()[:2] == ["id", "refused"]
        assert data.load(path, kinds={"id": Real}).feature_names == ("id", "x")


@pytest.mark.parametrize(
    "name", ["patient", "Subject ID", "sample_no", "record", "barcode", "mrn", "Phone Number"]
)
def test_names_that_say_that_numbers_are_ids(name: str) -> None:
    """Where all are different; where they come again, they may be measured."""
    numbers = [100000 + (i * 7919) % 899981 for i in range(30)]
    with pytest.raises(ValueError, match="has a different whole number in each row"):
        Columns.of({name: numbers, "x": [i % 4 + 0.5 for i in range(30)]})
    again = [number // 10**5 for number in numbers]
    assert set(Columns.of({name: again, "x": [i % 4 + 0.5 for i in range(30)]}).kinds) == {
        name,
        "x",
    }


@pytest.mark.parametrize("name", ["patient", "Subject ID", "sample_no", "account", "uid"])
def test_ids_that_come_again_are_named(name: str) -> None:
    """Repeated measures: the numbers name the subjects; a few groups, and other names, pass."""
    table = {name: [100 + row // 2 for row in range(40)], "x": np.linspace(0, 1, 40)}
    with pytest.warns(UserWarning, match=f"'{name}' is named like an id, but its 20 different"):
        Columns.of(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Columns.of(table, {name: Real})
        Columns.of({name: [100 + row // 8 for row in range(40)], "x": table["x"]})
        Columns.of({"depth": table[name], "x": table["x"]})


@pytest.mark.parametrize("first", [2**53 + 1, 10**17, -(2**60)])
@pytest.mark.parametrize("dtype", ["int64", "object"])
def test_numbers_beyond_floats_are_refused(first: int, dtype: str) -> None:
    """Two ids of 17 digits may become one; a name and Real are the remedies, and 2^53 fits."""
    table = {"n": np.array([first + 2 * row for row in range(5)], dtype), "x": np.ones(5)}
    with pytest.raises(ValueError, match=r"whole numbers beyond 9,007,199,254,740,992.*drop the"):
        Columns.of(table)
    Columns.of(table, {"n": Real})
    Columns.of({"n": np.array([2**53 - row for row in range(5)]), "x": np.ones(5)})
    Columns.of({"n": np.array([1.2e20, 3.4e18, 5.6e19]), "x": np.ones(3)})  # measured


def test_numbers_with_a_unit_among_numbers_without(tmp_path: Path) -> None:
    """46% beside 0.46: taken alike, and named with their lines; zeros are zero in any unit."""
    with pytest.warns(
        UserWarning, match=r"such as '46%', and 1 number without a unit: '0.46' in line 4"
    ):
        column = column_of(tmp_path, ["46%", "5%", "0.46", "0", "8%", "9%"])
    assert column.tolist() == [46, 5, 0.46, 0, 8, 9]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        column_of(tmp_path, ["46%", "5%", "8%", "0", ""])


@pytest.mark.parametrize("gap", [3, 5, 19])
def test_merged_cells_are_named(gap: int) -> None:
    """Groups of which only the first row has the name; not where the first row has none."""
    names = [None if row % gap else f"g{row}" for row in range(40)]
    table = {"group": names, "x": np.linspace(0, 1, 40)}
    with pytest.warns(UserWarning, match=r"has an entry in only \d+ of 40 rows, and all"):
        data.describe(table)
    names[0] = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.describe(table)


@pytest.mark.parametrize(
    ("name", "first", "says"),
    [
        ("Date", 45_000, "days since 1899-12-30, the numbers are dates from 2023-03-15 to "),
        (
            "sampleTime",
            1.7e9,
            "seconds since 1970-01-01, the numbers are dates from 2023-11-14 to ",
        ),
        ("ts", 1.7e9, "seconds since 1970-01-01, the numbers are dates from 2023-11-14 to "),
        (
            "epoch",
            1.7e12,
            "milliseconds since 1970-01-01, the numbers are dates from 2023-11-14 to ",
        ),
        (
            "timestamp",
            1.7e12,
            "milliseconds since 1970-01-01, the numbers are dates from 2023-11-14 to ",
        ),
        ("depth", 45_000, "declare the column Count if they are counts"),
        ("date", 7000, "declare the column Count if they are counts"),
    ],
)
def test_numbers_that_may_be_dates(name: str, first: float, says: str) -> None:
    """`describe` says which dates a number would be, where the name suggests one."""
    table = {name: [first + row**2 for row in range(30)], "x": np.linspace(0, 1, 30)}
    assert says in data.describe(table).splitlines()[0]


@pytest.mark.parametrize("cell", ["{}/80", "{}:960", "{} - 80", "[1, {}]", "({}; 3)", "{}|9"])
def test_two_numbers_in_an_entry(cell: str) -> None:
    """Named, and not called ids; a few groups, such as 20-29, are categories."""
    frame = {"a": [cell.format(100 + i % 25) for i in range(60)], "z": [0.5] * 60}
    with pytest.raises(ValueError, match=r"column 'a' holds two numbers per entry .* two columns"):
        Columns.of(frame)
    few = {"a": [cell.format(100 + i % 4) for i in range(60)], "z": [0.5] * 60}
    assert type(Columns.of(few).kinds["a"]) is data.Categories


@pytest.mark.parametrize(
    "spellings",
    [
        *(("Yes", "yes"), ("Male", "MALE"), ("y", "yes"), ("N", "no"), ("New York", "new  york")),
        *(("1", "yes"), ("0", "no"), ("1", "True"), ("0", "false"), ("m", "male"), ("F", "Female")),
    ],
)
def test_one_word_in_several_spellings(spellings: tuple[str, str]) -> None:
    """Named; they are mended by writing them alike."""
    frame = {"a": [*spellings, "other"] * 9, "z": [0.5] * 27}
    with pytest.warns(
        UserWarning, match="taken for different categories. If they mean the same, write them alike"
    ):
        Columns.of(frame)
    Columns.of({"a": [spellings[1], spellings[1], "other"] * 9, "z": [0.5] * 27})


@pytest.mark.parametrize("cell", ["?", "<47", "46 %", "n.d.", "#REF!", 1.5, None])
@ODD
def test_frames_are_read_as_texts_are(cell: Any) -> None:
    """Numbers that came as words, with an odd cell: what `pandas.read_csv` leaves behind."""
    words: list[Any] = [f"{i / 4:g}" for i in range(39)]
    frame = pd.DataFrame({"a": pd.Series([*words, cell], dtype=object), "z": 0.5})
    columns = Columns.of(frame)
    assert type(columns.kinds["a"]) is Real
    assert int(columns.encode(frame)[:, 0].isnan().sum()) == (cell != 1.5)
    as_words = frame.assign(a=pd.Series([*words[:3] * 13, "9"]))
    said = Columns.of(as_words, {"a": data.Categories})
    assert said.kinds["a"] == data.Categories(("0", "0.25", "0.5", "9"))


@pytest.mark.parametrize("kind", ["count", "Count", 5, dict])
def test_kinds_that_do_not_exist(kind: Any) -> None:
    """The choice is listed, wherever they are said; the class is the remedy."""
    table = {"n": [6, 2, 4], "z": [0.5, 1.5, 2.5]}
    for ask in (Columns.of, data.from_frame):
        with pytest.raises(
            TypeError, match=r"column 'n' to a kind .*pass one of the classes Real.*pv\.data.Count"
        ):
            ask(table, kinds={"n": kind})
    assert "pass one of the classes Real" in describe(table, {"n": kind})
    assert isinstance(Columns.of(table, {"n": data.Count}).kinds["n"], data.Count)


def test_dropped_columns_are_never_read(tmp_path: Path) -> None:
    """Half numbers, half words: no matter where they are dropped, or said to be words."""
    path = tmp_path / "t.csv"
    path.write_text("code,x\n" + "".join(f"{'007' if i % 2 else 'x'},{i}.5\n" for i in range(30)))
    with pytest.raises(ValueError, match="holds 15 numbers and 15 other entries"):
        data.load(path)
    assert data.load(path, drop=["code"]).feature_names == ("x",)
    table = data.load(path, kinds={"code": data.Categories})
    assert table.columns is not None
    assert table.columns.kinds["code"] == data.Categories(("007", "x"))
