"""Tables as R, SAS, databases, pandas and spreadsheets export them: read as people read them."""

import csv
import warnings
from datetime import date
from pathlib import Path

import numpy as np
import pytest

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
    text = "note,height\n" + "".join(f'"{"x, " * 50_000}{r}",{HEIGHTS[r]}\n' for r in ROWS)
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
    with pytest.raises(ValueError, match=r"line 32 of .* has 1 cells, but must have 2"):
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
