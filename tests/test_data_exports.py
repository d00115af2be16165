"""Tables as R, SAS, databases, pandas and spreadsheets export them: read as people read them."""

import csv
import re
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy import sparse

from pyro_vae import data
from pyro_vae.data import Columns, Time
from tests.helpers.texts import frame_of

ROWS = range(30)
HEIGHTS = np.random.default_rng(0).normal(170, 9, len(ROWS)).round(1)
MASSES = np.random.default_rng(1).normal(70, 9, len(ROWS)).round(2)

RULED = {
    "psql": (" site | height \n------+--------\n", " a    | {:.1f}\n", "(30 rows)\n"),
    "mysql": ("+---+----+\n| site | height |\n+---+----+\n", "| a | {:.1f} |\n", "+---+----+\n"),
    "markdown": ("| site | height |\n|:-----|-----:|\n", "| a | {:.1f} |\n", ""),
}


@pytest.mark.parametrize("name", RULED)
def test_rules_between_names_and_rows(name: str, tmp_path: Path) -> None:
    """Lines of dashes are drawings."""
    head, row, foot = RULED[name]
    text = head + "".join(row.format(height) for height in HEIGHTS) + foot
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the number of rows below the table
        frame = frame_of(tmp_path, text)
    assert [column.strip() for column in frame] == ["site", "height"]
    assert frame["height"].tolist() == HEIGHTS.tolist()


def test_dashes_in_one_column_are_missing_entries(tmp_path: Path) -> None:
    """Rows below a line of dashes in the middle are not moved up; at the top it is a drawing."""
    with pytest.warns(UserWarning, match="'---' in line 3, '---' in line 5"):
        frame = frame_of(tmp_path, "height\n1.5\n---\n2.5\n---\n3.5\n")
    assert frame["height"].isna().tolist() == [False, True, False, True, False]
    assert frame_of(tmp_path, "height\n------\n1.5\n2.5\n")["height"].tolist() == [1.5, 2.5]


def test_row_names_of_r_with_spaces(tmp_path: Path) -> None:
    """As write.table writes them, with one name fewer than cells."""
    rows = [f'"Mazda RX {row}" {HEIGHTS[row]} {"TRUE" if row % 3 else "NA"}\n' for row in ROWS]
    frame = frame_of(tmp_path, '"height" "ok"\n' + "".join(rows))
    assert frame["height"].tolist() == HEIGHTS.tolist()
    assert frame["ok"].isna().sum() == 10
    assert [*frame][-2:] == ["height", "ok"]


def test_a_comma_within_cells_shifts_no_column(tmp_path: Path) -> None:
    """Rows are longer than the names, and first cells repeat, so they are no names of rows."""
    text = "address,height\n" + "".join(
        f"Main St {r % 4}, Apt {r % 3},{HEIGHTS[r]}\n" for r in ROWS
    )
    with pytest.raises(
        ValueError, match=r"line 2 of .* has 3 cells, but must have 2, like the names"
    ):
        frame_of(tmp_path, text)


def test_cells_longer_than_python_takes(tmp_path: Path) -> None:
    """Notes of any length are read, shortened in messages, and Python's limit stays."""
    before = csv.field_size_limit()
    long = "x, " * 50_000
    notes = [long if row < 2 else "x, " for row in ROWS]
    text = "note,height\n" + "".join(f'"{notes[r]}{r}",{HEIGHTS[r]}\n' for r in ROWS)
    frame = frame_of(tmp_path, text)
    assert frame["height"].tolist() == HEIGHTS.tolist()
    assert csv.field_size_limit() == before
    assert len(data.describe(frame)) < 2000


def _named(text: str, tmp_path: Path) -> tuple[int, list[str]]:
    """How many rows are read, and what is said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = frame_of(tmp_path, text)
    return len(frame), [str(warning.message) for warning in caught]


def test_means_below_a_table_without_a_word(tmp_path: Path) -> None:
    """A last line of means with no label is a summary; a row that is close to them is a row."""
    body = "".join(f"{'ab'[r % 2]},{HEIGHTS[r]},{MASSES[r]}\n" for r in ROWS)
    means = f",{HEIGHTS.mean():.1f},{MASSES.mean():.2f}\n"
    number, said = _named("group,height,mass\n" + body + means, tmp_path)
    assert number == 30
    assert "line 32" in said[0]
    assert "skipped" in said[0]
    near = f",{HEIGHTS.mean() + 0.2:.1f},{MASSES.mean():.2f}\n"
    assert _named("group,height,mass\n" + body + near, tmp_path) == (31, [])
    assert _named("group,height,mass\n" + body + "a" + means, tmp_path) == (31, [])


@pytest.mark.parametrize("note", ["* estimated from a chart", "Source: own survey", "† revised"])
def test_notes_below_two_columns(note: str, tmp_path: Path) -> None:
    """A note that begins like one is skipped; another single cell may be a row that was cut off."""
    body = "site,height\n" + "".join(f"{'ab'[r % 2]},{HEIGHTS[r]}\n" for r in ROWS)
    number, said = _named(f"{body}{note}\n", tmp_path)
    assert number == 30
    assert "line 32" in said[0]
    with pytest.raises(ValueError, match=r"line 32 of .* has 1 cell, but must have 2"):
        frame_of(tmp_path, body + "b\n")


def test_sums_above_a_table(tmp_path: Path) -> None:
    """A first row of totals is named."""
    body = "".join(f"S{r % 4},{r},{MASSES[r]}\n" for r in ROWS)
    total = f"All sites,{sum(ROWS)},{MASSES.sum():.2f}\n"
    number, said = _named("site,count,mass\n" + total + body, tmp_path)
    assert number == 31
    assert "line 2 ('All sites'" in said[0]
    assert "headings or totals" in said[0]
    assert _named("site,count,mass\n" + body, tmp_path) == (30, [])


@pytest.mark.parametrize("pattern", ["{:02d}MAR2024", "{:02d}mar24", "{:02d}MAR2024:10:30:00"])
def test_dates_of_sas(pattern: str, tmp_path: Path) -> None:
    """They are dates, not days with a unit."""
    text = "when,height\n" + "".join(f"{pattern.format(r % 28 + 1)},{HEIGHTS[r]}\n" for r in ROWS)
    frame = frame_of(tmp_path, text)
    with pytest.raises(ValueError, match="column 'when' holds dates or times"):
        Columns.of(frame)
    kind = Columns.of(frame, {"when": Time}).kinds["when"]
    assert kind.center == pytest.approx(
        date(2024, 3, 14).toordinal() - date(1970, 1, 1).toordinal(), abs=1
    )


def test_durations_of_pandas(tmp_path: Path) -> None:
    """Days and a clock, negative ones too, as `DataFrame.to_csv` writes time differences."""
    cells = [f"{r - 3} days {'+' if r < 3 else ''}0{r % 10}:30:00" for r in ROWS]
    frame = frame_of(
        tmp_path, "took,x\n" + "".join(f"{c},{h}\n" for c, h in zip(cells, HEIGHTS, strict=True))
    )
    with pytest.raises(ValueError, match="column 'took' holds dates or times"):
        Columns.of(frame)
    columns = Columns.of(frame, {"took": Time})
    y = columns.encode(frame)
    assert columns.decode(y)["took"].tolist() == cells
    own = y[:, 0].double() * columns.scale[0] + columns.center[0]
    assert own.tolist() == pytest.approx([r - 3 + (r % 10 + 0.5) / 24 for r in ROWS], abs=1e-4)


@pytest.mark.parametrize("cell", ["5'{}\"", "5 ft {} in", "5' {}''"])
def test_feet_and_inches(cell: str, tmp_path: Path) -> None:
    """Two numbers in an entry are no category."""
    text = "tall\tx\n" + "".join(f"{cell.format(r % 12)}\t{HEIGHTS[r]}\n" for r in ROWS)
    with pytest.raises(ValueError, match="column 'tall' holds two numbers per entry"):
        Columns.of(frame_of(tmp_path, text))


SCALE = [1, 2, 3, 4, 5]
CODES = {
    "-8 and -9": ([*SCALE, -8, -9], "-9 in 4 entries and -8 in 4 entries"),
    "-7 beside 0": ([0, 1, 2, 3, -7], "-7 in 6 entries"),
    "8 and 9": ([*SCALE, 8, 9], "8 in 4 entries and 9 in 4 entries"),
    "9": ([0, 1, 2, 9], "9 in 7 entries"),
    "9 beside no and yes": ([0, 1, 9], "9 in 10 entries"),
    "-9 beside 1 and 2": ([1, 2, -9], "-9 in 10 entries"),
    "99 beside no and yes": ([0, 1, 99], "99 in 10 entries"),
    "-1 beside 0 and 1": ([0, 1, -1], None),
    "9 beside one answer": ([1, 9], None),
    "seconds": ([*range(40, 44), 99_999_999], "99999999 in 6 entries"),
    "to ten": ([*range(1, 11)], None),
    "to seven": ([*range(1, 8), 9], None),
    "with a gap": ([1, 2, 4, 9], None),
    "below zero": ([-12, -9, -8, 0, 3], None),
    "one nine": ([1, 2, 3] * 9 + [1, 2, 9], None),
}


@pytest.mark.parametrize("name", CODES)
def test_codes_for_missing_answers(name: str) -> None:
    """Named with the marks to pass, which can be typed; answers are not."""
    entries, said = CODES[name]
    frame = pd.DataFrame({"q1": [entries[r % len(entries)] for r in ROWS], "x": HEIGHTS})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Columns.of(frame, {"x": data.Real})
    assert len(caught) == (said is not None)
    if said is not None:
        message = str(caught[0].message)
        assert f"column 'q1' holds {said}" in message
        marks = re.search(r"Layout\(missing=(\[.*?\])\)", message)
        assert marks is not None
        assert all(float(mark.removeprefix("q1=")) in entries for mark in eval(marks[1]))


WORDS = {
    "Na": (["K", "Ca", "Na"], "Na"),
    "Null": (["Smith", "Null", "Jones"], "Null"),
    "NA": (["DE", "NA", "FR"], "NA"),
    "NA in R": (["control", "NA", "treated"], None),
    "nan of pandas": (["a", "nan", "b"], None),
}


@pytest.mark.parametrize("name", WORDS)
def test_words_that_look_like_missing_entries(name: str, tmp_path: Path) -> None:
    """Missing, with a word and a remedy that keeps them; in R and pandas they are missing."""
    words, mark = WORDS[name]
    text = "ion,x\n" + "".join(f"{words[r % 3]},{HEIGHTS[r]}\n" for r in ROWS)
    number, said = _named(text, tmp_path)
    assert number == 30
    assert len(said) == (mark is not None)
    if mark is not None:
        assert f"holds '{mark}' in 10 entries" in said[0]
        kept = frame_of(tmp_path, text, data.Layout(words=("ion",)))
        assert (kept["ion"] == mark).sum() == 10


def test_plates_and_zips_are_named(tmp_path: Path) -> None:
    """`1E2` is a place or a hundred, and a zip code is a number only by its digits."""
    text = "plate,x\n" + "".join(f"{r % 5 + 1}E{r % 3 + 1},{HEIGHTS[r]}\n" for r in ROWS)
    number, said = _named(text, tmp_path)
    assert number == 30
    assert "'1E1' in line 2, which is read as the number 10: if the entries are codes" in said[0]
    assert "--kinds plate=Categories" in said[0]
    numbers = "dose,x\n" + "".join(f"{r % 5 + 1}.5E{r % 3 + 1},{HEIGHTS[r]}\n" for r in ROWS)
    assert _named(numbers, tmp_path) == (30, [])
    frame = pd.DataFrame({"zip_code": [10001 + 7 * (r % 14) for r in ROWS], "x": HEIGHTS})
    few = pd.DataFrame({"zip": [1234, 94305, 10001] * 10, "x": HEIGHTS})
    with pytest.warns(UserWarning, match="'zip' is named like an id, but its 3 .*zip=Categories"):
        data.Columns.of(few)
    with pytest.warns(UserWarning, match="column 'zip_code' is named like an id"):
        Columns.of(frame)


def test_names_of_several_lines_stay_on_one_line() -> None:
    """As spreadsheets have them; the description of a column is a line."""
    described = data.describe({"height\n(cm)": HEIGHTS, "x": MASSES})
    assert described.splitlines()[0].startswith(r"height\n(cm)  Real")
    assert len(described.splitlines()) == 2


def test_numbers_whose_squares_underflow() -> None:
    """They vary, although the variance of 1e-300 is 0 in float64."""
    tiny, plain = (Columns.of({"p": HEIGHTS * unit, "x": MASSES}) for unit in (1e-300, 1.0))
    assert tiny.scale[0] == pytest.approx(float(plain.scale[0]) * 1e-300, rel=1e-12)
    least = {"p": HEIGHTS * 1e-307, "x": MASSES}
    back = Columns.of(least).decode(Columns.of(least).encode(least).float())
    np.testing.assert_allclose(back["p"], least["p"], rtol=1e-5)
    zeros = Columns.of({"p": HEIGHTS * 0 + 1e-300, "x": MASSES})
    assert zeros.scale[0] == 1


TABLES = {
    "str": ("t.csv", r"pv.data.read_frame\('t.csv'\)"),
    "Path": (Path("t.csv"), r"pv.data.read_frame\('t.csv'\)"),
    "Series": (pd.Series([1.0, 2.0]), r"series.to_frame\(\) if it is a column"),
    "LazyFrame": (pl.LazyFrame({"a": [1.0]}), r"table.collect\(\)"),
    "Table": (pa.table({"a": [1.0]}), r"table.to_pandas\(\)"),
    "csr_array": (sparse.csr_array(np.eye(3)), r"table.toarray\(\)"),
    "list": ([[1.0, 2.0]], r"pandas.DataFrame\(...\)"),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_is_nearly_a_table(name: str) -> None:
    """Refused with the line that makes it one."""
    table, line = TABLES[name]
    with pytest.raises(TypeError, match=f"got {'.*' if name == 'Path' else name}: .*{line}"):
        Columns.of(table)


def test_tables_without_rows_or_columns() -> None:
    """Say what is not there."""
    tables: list[Any] = [pd.DataFrame(index=range(3)), pd.DataFrame({"a": []}), {}]
    for frame in tables:
        with pytest.raises(ValueError, match=r"at least one row and one column; got . column"):
            Columns.of(frame)


def test_counts_in_other_units() -> None:
    """Thousands where units were counted; a larger count is none of that, nor a saved model."""
    frame = pd.DataFrame({"visits": [r % 5 for r in ROWS], "x": HEIGHTS})
    columns = Columns.of(frame, {"x": data.Real})
    with pytest.warns(UserWarning, match="a median of 2000, but .* had counts of up to 4. If the"):
        columns.encode(frame.assign(visits=frame["visits"] * 1000))
    columns.encode(frame.assign(visits=frame["visits"] * 9))
    saved = columns.to_json()
    del saved["columns"][0]["most"]  # as older versions saved it
    Columns.from_json(saved).encode(frame.assign(visits=frame["visits"] * 1000))


def test_addresses_and_arrays_with_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to do with each is said, and works."""
    with pytest.raises(FileNotFoundError, match=r"is an address, .*: download the file"):
        data.load("https://example.com/t.csv")
    (tmp_path / "ab:").mkdir()
    table = tmp_path / "ab:" / "t.csv"
    table.write_text("x,y\n" + "".join(f"{HEIGHTS[r]},{MASSES[r]}\n" for r in ROWS))
    monkeypatch.chdir(tmp_path)
    assert len(data.read_frame("ab:/t.csv")) == len(ROWS)  # no address, as there is such a file
    fields = pd.DataFrame({"x": HEIGHTS, "y": MASSES}).to_records(index=False)
    np.save(tmp_path / "t.npy", fields)
    with pytest.raises(ValueError, match=r"read the array with np.load, and pass it to pv.data.fr"):
        data.load(tmp_path / "t.npy")
    assert data.from_frame(np.load(tmp_path / "t.npy")).feature_names == ("x", "y")


ORDERS = {
    "incomes": (
        ["500-1,000", "1,000-2,000", "0-500"],
        ("0-500", "500-1,000", "1,000-2,000"),
        False,
    ),
    "ages": (["65+", "5-9", "18-24"], ("5-9", "18-24", "65+"), False),
    "answers": (["2 = no", "10 = maybe", "1 = yes"], ("1 = yes", "2 = no", "10 = maybe"), False),
    "grades": (["B", "A", "C"], ("A", "B", "C"), False),
    "sizes": (["low", "medium", "high"], ("low", "medium", "high"), False),
    "covers": (["wood", "bush", "lawn"], ("bush", "lawn", "wood"), True),
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders_of_words(name: str) -> None:
    """By numbers, or a known scale; an alphabetical order is named, and can be replaced."""
    words, order, said = ORDERS[name]
    frame = {"level": words * 10, "x": [*HEIGHTS]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        columns = Columns.of(frame, {"level": data.Ordered, "x": data.Real})
    assert columns.kinds["level"] == data.Ordered(order)
    assert [str(one.message)[:48] for one in caught] == [
        "column 'level' is taken to have the order 'bush'"
    ] * said
    own = Columns.of(frame, {"level": data.Ordered(tuple(words)), "x": data.Real})
    assert own.encode(frame)[:3, 0].tolist() == [0, 1, 2]


def test_years_of_two_digits(tmp_path: Path) -> None:
    """A birthday in 2045 is named; one of the last years is not."""
    rows = "".join(f"{r % 28 + 1}.05.{40 + r % 20},{HEIGHTS[r]}\n" for r in ROWS)
    with pytest.warns(UserWarning, match=r"dates in the future, such as 2059-05-.*four digits"):
        Columns.of(frame_of(tmp_path, "born,x\n" + rows), {"born": Time})
    rows = "".join(f"{r % 28 + 1}.05.{10 + r % 10},{HEIGHTS[r]}\n" for r in ROWS)
    Columns.of(frame_of(tmp_path, "born,x\n" + rows), {"born": Time})


@pytest.mark.filterwarnings("ignore:.*is taken for column names")
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [400.5, 401.0, 401.5], [2019, 2020, 2021]])
def test_names_that_are_numbers_beside_words(
    labels: list[float], *, index: bool, tmp_path: Path
) -> None:
    """As pandas writes an array with a column of words; a first row of values is a row."""
    values = np.random.default_rng(0).normal(2.0, 0.1, (30, len(labels))).round(3)
    frame = pd.DataFrame(values, columns=labels).assign(site=[*"abc"] * 10)
    found = frame_of(tmp_path, frame.to_csv(index=index))
    assert [*found] == [*map(str, labels), "site"]
    np.testing.assert_array_equal(found[[*map(str, labels)]].to_numpy(), values)
    headless = frame_of(tmp_path, frame.to_csv(index=False, header=False))
    assert headless.shape == (30, len(labels) + 1)


HEADS = {
    "a number above words": ("1,2.5\n", "P{0},{1}\n", ["1", "2.5"]),
    "a word above dates": ("site,1\n", "2024-05-{0:02d},{1}\n", ["site", "1"]),
    "a word above two words": ("site,1\n", "{2},{1}\n", ["site", "1"]),
    "nothing above an index": (",0.5\n", "{0},{1}\n", ["0.5"]),
    "words below words": ("a,b\n", "{2},x{0}\n", ["a", "b"]),
    "words among words": ("true,x\n", "true,{2}\n", ["true", "x"]),
}


@pytest.mark.filterwarnings("ignore:.*is taken for column names")
@pytest.mark.parametrize("name", HEADS)
def test_first_lines_that_differ_are_names(name: str, tmp_path: Path) -> None:
    """Whatever is written in them."""
    head, row, names = HEADS[name]
    body = "".join(row.format(r + 1, HEIGHTS[r], "ab"[r % 2]) for r in range(20))
    assert [*frame_of(tmp_path, head + body)] == names


@pytest.mark.parametrize("row", ["{0},{1}\n", "{2},{1}\n", "{2},{3}\n"])
def test_first_lines_like_the_others_are_rows(row: str, tmp_path: Path) -> None:
    """No names are made of values that occur again."""
    body = "".join(row.format(r + 1, HEIGHTS[r], "ab"[r % 2], "xyz"[r % 3]) for r in range(20))
    assert [*frame_of(tmp_path, body)] == ["0", "1"]


def test_a_first_line_that_may_be_either_is_named(tmp_path: Path) -> None:
    """A word that never occurs again may be a name: a row, with the way to say otherwise."""
    text = "first,2020\n" + "".join(f"P{r},{HEIGHTS[r]}\n" for r in ROWS)
    number, said = _named(text, tmp_path)
    assert number == 31
    assert "the first line ('first', '2020') is taken for a row" in said[0]
    assert [*frame_of(tmp_path, text, data.Layout(header=True))] == ["first", "2020"]


@pytest.mark.filterwarnings("ignore:.*is taken for column names")
@pytest.mark.parametrize("seed", range(40))
def test_what_pandas_writes_is_read_back(seed: int, tmp_path: Path) -> None:
    """Random tables, separators, decimal marks, quotes, indices and encodings."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(5, 40))
    columns: dict[str, Any] = {
        "b c": rng.normal(170, 9, number).round(1),
        "Größe": rng.choice(["light, blue", "it's", 'dark "x"', "Ünï"], number),
        "Total": rng.poisson(2, number),
        "name;x": rng.normal(0, 1, number) * 10.0 ** rng.integers(-12, 12, number),
        "2020": rng.integers(10**6, 10**9, number),
        "x.1": rng.random(number) < 0.5,
        "T (°C)": -np.exp(rng.normal(0, 2, number)).round(3),
    }
    chosen = rng.permutation([*columns])[: rng.integers(2, 6)]
    frame = pd.DataFrame({str(name): columns[name] for name in chosen})
    frame = frame.mask(rng.random(frame.shape) < 0.1 * (seed % 2)).dropna(
        how="all", ignore_index=True
    )
    separator = [",", ";", "\t", "|"][rng.integers(4)]
    path = tmp_path / "y.csv"
    frame.astype({n: float for n in frame if frame[n].dtype == object and n in _NUMBERS}).to_csv(
        path,
        sep=separator,
        decimal="," if separator == ";" else ".",
        index=bool(rng.random() < 0.5),
        na_rep=["", "NA", "NaN"][rng.integers(3)],
        quoting=[csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC, csv.QUOTE_ALL][rng.integers(3)],
        encoding=["utf-8", "utf-8-sig", "utf-16"][rng.integers(3)],
    )
    found = data.read_frame(path)
    assert [*found] == [*frame]
    for name in frame:
        assert found[name].isna().tolist() == frame[name].isna().tolist()
        known, back = frame[name].dropna(), found[name].dropna()
        if name in _NUMBERS and len(known):
            np.testing.assert_allclose(back.astype(float), known.astype(float), rtol=1e-12)
        else:
            assert [*map(str, back)] == [*map(str, known)]


_NUMBERS = {"b c", "Total", "name;x", "2020", "T (°C)"}
