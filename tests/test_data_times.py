"""Columns of dates and times: read as days since the first, or refused with a remedy."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from pyro_vae import data
from pyro_vae.data import Columns, Real, Time

TIMES = {
    "%Y-%m-%d": "dates",
    "%d.%m.%Y": "German ones",
    "%d/%m/%Y": "English ones",
    "%m/%d/%Y": "American ones",
    "%d-%b-%Y": "with the name of the month",
    "%b %d, %Y": "the same, in America",
    "%Y-%m": "months",
    "%Y%m%d": "without marks",
    "%Y-%m-%dT%H:%M:%S%z": "with a zone",
    "%Y-%m-%d %H:%M": "with a clock",
    "%m/%d/%Y %I:%M %p": "with half a clock",
    "%m/%d/%Y, %I:%M %p": "of a browser",
    "%Y-%m-%d %H:%M:%S UTC": "with a zone in letters",
    "%H:%M": "clocks",
}


@pytest.mark.parametrize("pattern", TIMES)
@pytest.mark.usefixtures("float64")
def test_times_are_named_and_can_be_taken_as_days(pattern: str, tmp_path: Path) -> None:
    """Refused by name; as days they come back as they were written, holes and all."""
    stamps = pd.date_range("2024-01-03 07:30", periods=40, freq="37h", tz="UTC")
    cells = [stamp.strftime(pattern) for stamp in stamps]
    cells[4] = ""
    path = tmp_path / "t.csv"
    rows = (f'"{cell}",{place % 5}.5\n' for place, cell in enumerate(cells))
    path.write_text("when,x\n" + "".join(rows))
    with pytest.raises(ValueError, match=r"column 'when' holds dates or times .*--kinds when=Time"):
        data.load(path)
    table = data.load(path, kinds={"when": Time})
    assert repr(table.columns) == "when: Time, x: Real"
    assert table.columns is not None
    back = table.columns.decode(table.train)["when"]
    known = set(back.dropna().astype(str))
    assert known <= set(cells)
    assert len(known) >= min(30, len(set(cells) - {""}) - 8)
    if "%d" in pattern:  # a day is a day, wherever the first one is
        column = table.columns.columns[0].kind
        assert isinstance(column, Time)
        y = torch.cat([table.train, table.test])[:, 0]
        steps = y[~y.isnan()].sort().values.diff() * column.scale
        assert (steps - (steps * 24).round() / 24).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:column 'when' holds 'unknown'")
@pytest.mark.parametrize("odd", ["unknown", "2024-13-45", "soon"])
def test_an_odd_cell_among_dates(odd: str, tmp_path: Path) -> None:
    """Is named, and missing."""
    cells = [odd if day == 3 else f"2024-01-{day:02d}" for day in range(1, 29)]
    path = tmp_path / "t.csv"
    path.write_text("when,x\n" + "".join(f"{c},{i % 5}.5\n" for i, c in enumerate(cells)))
    with pytest.raises(ValueError, match="holds dates or times"):
        data.load(path)
    with pytest.warns(UserWarning, match=rf"except for 1 of 28 entries: '{odd}' at row 2, counted"):
        table = data.load(path, kinds={"when": Time})
    assert int(torch.cat([table.train, table.test]).isnan().sum()) == 1


@pytest.mark.parametrize("seconds", ["", ":20"])
@pytest.mark.usefixtures("float64")
def test_durations_of_more_than_a_day(seconds: str, tmp_path: Path) -> None:
    """As hours of any number, which come back as they were written."""
    cells = [f"{7 * i % 90}:{i:02d}{seconds}" for i in range(40)]
    path = tmp_path / "t.csv"
    path.write_text("took,x\n" + "".join(f"{c},{i % 5}.5\n" for i, c in enumerate(cells)))
    with pytest.raises(ValueError, match=r"column 'took' holds dates or times"):
        data.load(path)
    table = data.load(path, kinds={"took": Time})
    assert table.columns is not None
    assert set(table.columns.decode(table.train)["took"]) <= set(cells)
    numbers = table.columns.encode({"took": ["24:00" + seconds, "48:00" + seconds], "x": [1, 2]})
    assert table.columns.columns[0].kind.scale * float(numbers[:, 0].diff()) == pytest.approx(1)


@pytest.mark.parametrize("other", ["%d/%m/%Y", "%b %d, %Y", "%Y%m%d", "%d.%m.%Y", "%Y-%m-%d %H:%M"])
def test_dates_in_two_formats(other: str) -> None:
    """Named as dates, which they are, and not as ids."""
    days = pd.date_range("2024-01-03", periods=40)
    cells = [day.strftime(other if i % 2 else "%Y-%m-%d") for i, day in enumerate(days)]
    table = {"when": cells, "x": [0.5] * 40}
    with pytest.raises(ValueError, match="column 'when' holds dates or times"):
        Columns.of(table)
    with pytest.raises(ValueError, match="fit no single format: write all of them like 2024"):
        Columns.of(table, {"when": Time})


def test_days_and_months_that_look_alike(tmp_path: Path) -> None:
    """Nobody can say what 1/2/2024 is: refused as a time, too, with the remedy."""
    path = tmp_path / "t.csv"
    rows = (f"{1 + i % 9}/{1 + i % 7}/2024,{i}.5\n" for i in range(30))
    path.write_text("when,x\n" + "".join(rows))
    with pytest.raises(ValueError, match=r"fit 2 formats .*: write all of them like 2024-12-31"):
        data.load(path, kinds={"when": Time})


STAMPS = {
    "days": pd.date_range("2024-01-03", periods=30, freq="5D"),
    "minutes": pd.date_range("2024-01-03 07:30", periods=30, freq="37h"),
    "a zone": pd.date_range("2024-03-01", periods=30, tz="Europe/Berlin"),
    "milliseconds": pd.date_range("2024-01-03", periods=30, freq="1234567ms"),
}


@pytest.mark.parametrize("name", STAMPS)
def test_dates_come_back_although_floats_are_rounded(name: str) -> None:
    """In float32 midnight is off by up to a second, but a date stays a date."""
    frame = pd.DataFrame({"when": STAMPS[name], "x": [i % 7 + 0.5 for i in range(30)]})
    columns = Columns.of(frame, {"when": Time})
    back = columns.decode(columns.encode(frame))["when"]
    assert back.dtype == frame["when"].dtype
    most = pd.Timedelta(seconds=1 if name == "milliseconds" else 0)
    assert (back - frame["when"]).abs().max() <= most
    assert Columns.from_json(columns.to_json()).kinds == columns.kinds


@pytest.mark.parametrize("pattern", ["%Y-%m-%d", "%d.%m.%Y", "%b %d, %Y"])
def test_dates_of_a_dtype_match_dates_as_words(pattern: str) -> None:
    """A csv file has words where the training table had dates."""
    frame = pd.DataFrame({"when": STAMPS["days"], "x": [i % 7 + 0.5 for i in range(30)]})
    columns = Columns.of(frame, {"when": Time})
    written = frame.assign(when=frame["when"].dt.strftime(pattern))
    assert torch.equal(columns.encode(written), columns.encode(frame))


def test_times_that_do_not_match_are_refused_or_named() -> None:
    """Numbers, another format, another zone and another century."""
    frame = pd.DataFrame({"when": STAMPS["days"], "x": [i % 7 + 0.5 for i in range(30)]})
    columns = Columns.of(frame, {"when": Time})
    with pytest.raises(TypeError, match="must hold dates or times; got whole numbers"):
        columns.encode(frame.assign(when=range(30)))
    with pytest.warns(UserWarning, match="in the zone Asia.Tokyo, which are converted"):
        columns.encode(frame.assign(when=frame["when"].dt.tz_localize("Asia/Tokyo")))
    with pytest.warns(UserWarning, match="median of 2124-.*, but .* a mean of 2024-.* 43 days"):
        columns.encode(frame.assign(when=frame["when"] + pd.Timedelta(days=36_525)))
    words = frame.assign(when=frame["when"].dt.strftime("%Y-%m-%d"))
    other = frame.assign(when=frame["when"].dt.strftime("%d.%m.%Y"))
    said = r"written as %Y-%m-%d; got 30 other entries \('03.01.2024' at row 0.*like 2024-12-31$"
    with pytest.raises(ValueError, match=said):
        Columns.of(words, {"when": Time}).encode(other)


def test_nanoseconds_are_read_to_microseconds() -> None:
    """As loggers write them; the digits behind the sixth are left out."""
    stamps = STAMPS["milliseconds"].strftime("%Y-%m-%dT%H:%M:%S.%f").tolist()
    fine, other = [[stamp + digits for stamp in stamps] for digits in ("789Z", "Z")]
    columns = Columns.of({"when": fine}, {"when": Time})
    assert torch.equal(columns.encode({"when": fine}), columns.encode({"when": other}))
    with pytest.raises(ValueError, match="holds dates or times"):
        Columns.of({"when": fine})


def test_months_as_whole_numbers_are_named() -> None:
    """The remedies are tried; years, and numbers of one year or with a month 13, are numbers."""
    months = [f"{2019 + n // 12}{n % 12 + 1:02}" for n in range(30)]
    numbers = [int(month) for month in months]
    with pytest.warns(UserWarning, match=r"201901, which may be months .*like 2019-01, .*Time"):
        Columns.of({"when": numbers, "x": [0.5 * n for n in range(30)]})
    words = [f"{month[:4]}-{month[4:]}" for month in months]
    assert isinstance(Columns.of({"when": words}, kinds={"when": Time}).kinds["when"], Time)
    Columns.of({"when": numbers}, kinds={"when": Real})
    for others in ([*numbers[:-1], 202113], [201900 + n % 12 + 1 for n in range(30)]):
        Columns.of({"when": others, "x": [0.5 * n for n in range(30)]})
