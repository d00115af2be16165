"""Columns as a whole: which kind each one has, and which are refused or named, with a remedy."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_vae import data
from pyro_vae.data import Columns, Real, describe, read_frame
from tests.helpers.texts import ODD, column_of, frame_of


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Every column that is refused, and how to drop them all; `describe` goes on behind them."""
    path = tmp_path / "y.csv"
    rows = [f"P{i:03},2024-05-{i + 1:02},{i if i % 3 else '<1'},{i % 7}.5" for i in range(30)]
    path.write_text("\n".join(["id,day,mix,x", *rows]))
    with pytest.raises(ValueError, match="refused: 3 of 4 columns") as caught:
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


@pytest.mark.parametrize("written", ["floats", "words"])
def test_huge_floats_are_measurements(written: str) -> None:
    """Above 2^53 every float is whole: masses in kg, some of them 0, are no counts."""
    masses = np.array([0.0, 1.3e30, 2.2e29, 7.9e30] * 6)
    column = masses if written == "floats" else np.array([f"{mass:.1e}" for mass in masses])
    table = {"mass": column, "x": np.arange(24.0) / 7, "cells": np.array([0.0, 3.0, 2**53] * 8)}
    kinds = Columns.of(table).kinds
    assert isinstance(kinds["mass"], Real)
    assert isinstance(kinds["cells"], data.Count)


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
