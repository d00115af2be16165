"""Files as surveys, registers and hospitals write them: names, codes, percentages, marks."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae import data
from pyro_vae.data import Binary, Columns, Count, Layout, Real
from tests.helpers.texts import frame_of

ROWS = range(30)
HEIGHTS = np.random.default_rng(0).normal(170.0, 9.0, 30).round(1)


@pytest.mark.parametrize(
    "day", ["2020-01-{:02d}", "{:02d}.01.2020", "12:{:02d}", "2020-01-{:02d}T08:00:00Z"]
)
def test_a_date_above_dates_is_no_name(day: str, tmp_path: Path) -> None:
    """A file without names keeps its first row; a word, and months above numbers, are names."""
    text = "".join(f"{day.format(r + 1)};{HEIGHTS[r]}\n" for r in ROWS)
    assert list(frame_of(tmp_path, text).columns) == ["0", "1"]
    assert len(frame_of(tmp_path, text)) == 30
    assert list(frame_of(tmp_path, f"when;x\n{text}").columns) == ["when", "x"]
    wide = "".join(f"town {r},{HEIGHTS[r]},{r % 7}.5\n" for r in ROWS)
    named = frame_of(tmp_path, f"town,2020-01,2020-02\n{wide}")
    assert list(named.columns) == ["town", "2020-01", "2020-02"]


ANSWERS = ["Yes", "No"]
TICKED = ["", "Bus"]
SECOND = {
    "Response": (
        "id,smokes,drinks\n,Response,Response\n",
        "{id},{a},{b}\n",
        ["id", "smokes", "drinks"],
    ),
    "Response alone": (
        "smokes,drinks,eats\nResponse,Response,Response\n",
        "{a},{b},{b}\n",
        ["smokes", "drinks", "eats"],
    ),
    "boxes to tick": (
        "id,age,travels by,,ill\n,Response,Bus,Train,Response\n",
        "{id},{n},{t},{u},{a}\n",
        ["id", "age Response", "travels by Bus", "travels by Train", "ill Response"],
    ),
    "percentages": (
        ",All,Age,,Sex,\n,,18 - 34,35 - 64,F,M\n",
        "{a},{n}%,{n}%,{n}%,{n}%,{n}%\n",
        ["0", "All", "Age 18 - 34", "Age 35 - 64", "Sex F", "Sex M"],
    ),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_lines_of_surveys(name: str, tmp_path: Path) -> None:
    """They are parts of names, or skipped, with a warning; no answer becomes a category."""
    names, row, expected = SECOND[name]
    text = names + "".join(
        row.format(
            id=7 * r + 101,
            a=ANSWERS[r % 2],
            b=ANSWERS[r % 3 % 2],
            n=r % 9,
            t=TICKED[r % 2],
            u=["", "Train"][r % 3 % 2],
        )
        for r in ROWS
    )
    with pytest.warns(UserWarning, match=r"line 2 \(.* is taken for (the second|units or notes)"):
        frame = frame_of(tmp_path, text)
    assert list(frame.columns) == expected
    assert len(frame) == 30


@pytest.mark.parametrize(
    "text",
    [
        "who,born,died\nGauss,Germany,Germany\n" + "Noether,France,USA\nLi,USA,France\n" * 9,
        "id,who,note\n,Gauss,w\n" + "7,Ann,x\n8,Bo,y\n" * 9,
        "id,q1,q2\n,Yes,Yes\n" + "".join(f"{r},{ANSWERS[r % 2]},Yes\n" for r in ROWS),
        "x,q1,q2\n3,Response,Response\n" + "4,a,b\n5,b,a\n" * 9,
    ],
)
def test_a_second_line_that_is_a_row(text: str, tmp_path: Path) -> None:
    """The wrong twin: rare words, an answer that others gave, a number."""
    assert len(frame_of(tmp_path, text)) == text.count("\n") - 1


def test_other_lines_that_are_no_rows(tmp_path: Path) -> None:
    """Names of each part of a joined file, comments between cells set apart by spaces."""
    rows = "".join(f"{'ab'[r % 2]},{'cd'[r % 3 % 2]},x{r % 3}\n" for r in ROWS)
    with pytest.warns(UserWarning, match=r"repeated, but are read as rows: line 32 \('team', 'ho"):
        frame_of(tmp_path, f"team,home,first\n{rows}team,home,second\n{rows}")
    spaced = "".join(f"{r % 7}.5  w{r % 3} {HEIGHTS[r]}\n" for r in ROWS)
    with pytest.warns(UserWarning, match=r"taken for notes .*line 2 \('#', 'here'"):
        frame = frame_of(tmp_path, f"a b c\n # here\n{spaced}")
    assert list(frame.columns) == ["a", "b", "c"]


def test_row_numbers_without_a_name_may_start_at_0(tmp_path: Path) -> None:
    """As pandas writes them if the index gets no label."""
    text = "".join(f"{r},{HEIGHTS[r]},w{r % 3}\n" for r in ROWS)
    pd.testing.assert_frame_equal(
        frame_of(tmp_path, f"x,w\n{text}"), frame_of(tmp_path, f",x,w\n{text}")
    )
    with pytest.raises(ValueError, match=r"line 2 of .* has 3 cells, but must have 2"):
        frame_of(tmp_path, f"x,w\n{text.replace(chr(10) + '7,', chr(10) + '70,')}")


SHARES = {"up, %": "{}", "Percentage of yes": "{}", "pct_yes": "{}", "yes": "{}%", "due": "${}"}


@pytest.mark.parametrize("name", SHARES)
def test_percentages_and_money_are_no_counts(name: str, tmp_path: Path) -> None:
    """Whole numbers from 0 on, but measured; other units may be of counts."""
    for cell, kind in ((SHARES[name], Real), ("{} beds", Count)):
        rows = "".join(f'{r % 7}.5,"{cell.format(r % 9)}"\n' for r in ROWS)
        plain = name if kind is Real else "beds"
        columns = Columns.of(frame_of(tmp_path, f'x,"{plain}"\n{rows}'))
        assert isinstance(columns.kinds[plain], kind)


@pytest.mark.parametrize(
    ("pair", "kind"),
    [((2, 4), Binary), ((-1, 1), Binary), ((150, 200), Binary), ((0, 5), Count), ((1, 3), Count)],
)
def test_two_numbers_are_codes(pair: tuple[int, int], kind: type) -> None:
    """Where they cannot be counts, and the rows are many; they come back as integers."""
    frame = pd.DataFrame({"x": [pair[r % 3 % 2] for r in ROWS], "y": HEIGHTS})
    columns = Columns.of(frame)
    assert isinstance(columns.kinds["x"], kind)
    pd.testing.assert_frame_equal(columns.decode(columns.encode(frame)), frame)
    assert isinstance(Columns.of(frame.head(10)).kinds["x"], Binary) is False
    with pytest.raises(ValueError, match="15 infinite entries"):
        Columns.of({"x": [2.0, np.inf] * 15})
    counted = Columns.of(frame.rename(columns={"x": "n_visits"}).abs()).kinds["n_visits"]
    assert isinstance(counted, Count | Real)


MOSTLY = {  # of the entries two in three are words
    "**": (["0.25", "0.4", "0.3"], "holds 10 numbers and 20 other entries"),
    "<0.03": (["0.05"], "holds 10 numbers and 20 other entries"),
    "?": (["1", "2"], None),
    "n.d.": (["1.5", "2.5"], None),
    "-": (["1"], ""),  # no and yes
    "other": (["24"], ""),
}


@pytest.mark.parametrize("word", MOSTLY)
def test_numbers_beside_one_word(word: str, tmp_path: Path) -> None:
    """They are numbers also where most entries are the word; one number may be a category."""
    numbers, said = MOSTLY[word]
    cells = [word if r % 3 else numbers[r // 3 % len(numbers)] for r in ROWS]
    text = "a,y\n" + "".join(f"{cell},{HEIGHTS[r]}\n" for r, cell in enumerate(cells))
    if said is None:
        with pytest.warns(UserWarning, match=f"except for 20 of 30 entries: '{word[0]}"):
            frame = frame_of(tmp_path, text)
        assert frame["a"].dtype.kind in "fiO"
        assert frame["a"].isna().sum() == 20
    elif said:
        with pytest.raises(ValueError, match=said):
            Columns.of(frame_of(tmp_path, text))
        with pytest.warns(UserWarning, match="holds numbers, except for 20 of 30"):
            assert Columns.of(frame_of(tmp_path, text), {"a": Real}).names == ("a", "y")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert isinstance(Columns.of(frame_of(tmp_path, text)).kinds["a"], Binary)


def test_zeros_in_place_of_missing_numbers(tmp_path: Path) -> None:
    """Named where all others are far above 0; the remedy empties no other column."""
    pressures = np.where(np.arange(30) % 6, HEIGHTS.round() - 90, 0)
    text = "pressure,births,ill\n" + "".join(
        f"{p:.0f},{r % 4},{r % 2}\n" for r, p in enumerate(pressures)
    )
    with pytest.warns(UserWarning, match="'pressure' holds 0 in 5 entries.* are from") as caught:
        Columns.of(frame_of(tmp_path, text))
    assert len(caught) == 1
    marks = re.search(r"Layout\(missing=(\[.*?\])\)", str(caught[0].message))
    assert marks is not None
    frame = frame_of(tmp_path, text, Layout(missing=tuple(eval(marks[1]))))
    assert frame.isna().sum().tolist() == [5, 0, 0]
    Columns.of(frame)
    Columns.of(frame_of(tmp_path, text), {"pressure": Real})


@pytest.mark.parametrize("name", ["amounts", "losses", "counts", "grades", "degrees", "few"])
def test_zeros_that_were_measured(name: str) -> None:
    """The wrong twin: rain, visits, answers, temperatures on both sides, few rows."""
    rng = np.random.default_rng(1)
    numbers = {
        "amounts": np.where(np.arange(400) % 3, 0.0, rng.gamma(2.0, 5.0, 400)),
        "losses": np.where(np.arange(400) % 3, 0.0, rng.normal(20.0, 1.0, 400)),
        "counts": rng.poisson(3.0, 400),
        "grades": np.append(rng.integers(3, 6, 399), 0),
        "degrees": np.append(rng.normal(0.0, 9.0, 399), 0.0),
        "few": np.append(rng.normal(20.0, 1.0, 9), 0.0),
    }[name]
    Columns.of({"x": numbers, "y": rng.normal(size=len(numbers))})


@pytest.mark.parametrize("name", ["age", "height, cm", "a=b"])
def test_a_mark_of_one_column(name: str, tmp_path: Path) -> None:
    """It empties the cells of this column only; a name that no column has is named."""
    text = f'"{name}",y\n' + "".join(f"{99 if r % 3 else r},{99 if r % 2 else r}\n" for r in ROWS)
    frame = frame_of(tmp_path, text, Layout(missing=(f"{name}=99.0", "3")))
    assert frame.isna().sum().tolist() == [21, 0]
    with pytest.warns(UserWarning, match="the mark 'agee=99' .* names the column 'agee', but the"):
        frame_of(tmp_path, text, Layout(missing=("agee=99",)))


def test_commas_between_semicolons(tmp_path: Path) -> None:
    """Decimal unless a number has two; a warning says so where nothing shows which."""
    rows = "".join(f"{r + 1},{(137 * r) % 900 + 100};{r % 7}\n" for r in ROWS)
    with pytest.warns(
        UserWarning, match="'1,100' in line 2 .* decimals, so '1,100' is read as 1.1:"
    ):
        frame = frame_of(tmp_path, f"a;b\n{rows}")
    assert frame["a"][1] == 2.237
    frame = frame_of(tmp_path, f"a;b\n{rows}1,234,567;3\n")
    assert frame["a"].tolist()[1::29] == [2237, 1234567]
    assert frame_of(tmp_path, f"a;b\n{rows}1,5;3\n")["a"][1] == 2.237
    assert data.read_frame(tmp_path / "y.csv")["a"].iloc[-1] == 1.5


CODED = {
    "marital status": (["2. Married", "2. Married", "1. Never Married"], data.Categories),
    "race": (["1. White", "1. White", "2. Black"], data.Categories),
    "house": (["1Fam", "1Fam", "Duplex"], data.Categories),
    "weights": (["5 kg", "5 kg", "6 kg"], Real),
    "one weight, others bare": (["5 kg", "5 kg", "6"], Real),
}


@pytest.mark.parametrize("name", CODED)
def test_codes_before_words_are_no_numbers_with_units(name: str, tmp_path: Path) -> None:
    """`2. Married` is a word; a few new rows with one number and unit stay numbers."""
    cells, kind = CODED[name]
    text = "a,y\n" + "".join(f"{cells[r % 3]},{HEIGHTS[r]}\n" for r in ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = frame_of(tmp_path, text)
        columns = Columns.of(frame, {"a": kind} if kind is Real else None)
    assert isinstance(columns.kinds["a"], kind)
    if name == "weights":
        few = columns.encode({"a": ["5 kg"] * 4 + ["6 kg"], "y": HEIGHTS[:5]})
        torch.testing.assert_close(few[:, 0], columns.encode(frame)[[0, 0, 0, 0, 2], 0])


def test_prices_that_most_rows_lack(tmp_path: Path) -> None:
    """They are not categories, whatever stands in place of them."""
    cells = [f'"${r},{r % 9}00,000"' if r % 3 == 1 else "undisclosed" for r in ROWS]
    text = "price,y\n" + "".join(f"{cell},{HEIGHTS[r]}\n" for r, cell in enumerate(cells))
    with pytest.raises(ValueError, match="holds 10 numbers and 20 other entries"):
        Columns.of(frame_of(tmp_path, text))


@pytest.mark.parametrize("name", ["paid", "uric acid", "XCentroid", "candidate"])
def test_names_that_end_like_an_id(name: str) -> None:
    """Amounts that all differ are kept; the wrong twin is refused."""
    numbers = 37 * np.arange(30) ** 2 + 105
    assert Columns.of({name: numbers, "y": HEIGHTS}).names == (name, "y")
    with pytest.raises(ValueError, match="a different whole number in each row"):
        Columns.of({f"{name}ID": numbers, "y": HEIGHTS})


def test_an_empty_name_at_the_end(tmp_path: Path) -> None:
    """A separator at the end of the names, but not of the rows, makes no column."""
    rows = "".join(f"{HEIGHTS[r]},{r % 7}.5\n" for r in ROWS)
    assert list(frame_of(tmp_path, f'"a","b",\n{rows}').columns) == ["a", "b"]
    with pytest.raises(ValueError, match=r"line 2 of .* has 2 cells, but must have 3"):
        frame_of(tmp_path, f"a,b,c\n{rows}")


NARROW = {
    "classes": ([1, 2, 3, 3], (1, 2, 3)),
    "a scale with unused steps": ([1, 4, 4, 4, 5, 5], (1, 2, 3, 4, 5)),
    "education": ([0, 3, 3, 3, 4, 3, 4, 3, 3, 4], (0, 1, 2, 3, 4)),
    "visits": ([0, 0, 0, 1, 1, 2, 4], None),
    "poisson": (np.random.default_rng(0).poisson(3.5, 30).tolist(), None),
    "points": ([0, 1, 2, 5, 9], None),
    "n_rooms": ([1, 2, 3, 3], None),
    "percent": ([1, 2, 3, 3], None),
}


@pytest.mark.parametrize("name", NARROW)
def test_numbers_that_vary_less_than_counts(name: str) -> None:
    """They are grades, whose draws stay among them: no distribution of counts is so narrow."""
    numbers, grades = NARROW[name]
    frame = pd.DataFrame({name: [numbers[r % len(numbers)] for r in ROWS], "y": HEIGHTS})
    columns = Columns.of(frame)
    kind = columns.kinds[name]
    if grades is None:
        assert isinstance(kind, Count | Real)
    else:
        assert kind == data.Ordered(grades)
        assert "declare the column Count if others may follow" in data.describe(frame)
        model = pv.defaults.vae(pv.data.from_frame(frame))
        drawn = columns.decode(model.sample(500))[name]
        assert drawn.dtype == frame[name].dtype
        assert set(drawn) <= set(grades)
    assert isinstance(Columns.of(frame.head(12)).kinds[name], Count | Real)
    pd.testing.assert_frame_equal(columns.decode(columns.encode(frame)), frame)


@pytest.mark.parametrize("digits", [2, 4, 6])
def test_skewed_numbers_come_back_from_float32(digits: int) -> None:
    """As they were written, whatever their size; draws have no digits that float32 lacks."""
    rng = np.random.default_rng(0)
    numbers = [float(f"{x:.{digits}g}") for x in rng.lognormal(-3, 5, 400)]
    columns = Columns.of({"dose": numbers})
    assert isinstance(columns.kinds["dose"], data.Positive)
    y = columns.encode({"dose": numbers})
    assert columns.decode(y.float())["dose"].tolist() == numbers
    drawn = columns.decode((1.001 * y).float())["dose"]
    assert all(x == float(f"{x:.7g}") for x in drawn)
    np.testing.assert_allclose(drawn, 1.001 * np.array(numbers), rtol=6e-7)


@pytest.mark.parametrize(
    ("known", "new"), [(["a", "b"], "c"), ([1, 2, 3, 3], 5), ([2, 4], 6), ([-1, 1], 0)]
)
def test_categories_that_only_new_rows_have(known: list[Any], new: Any) -> None:
    """As in a fold of cross-validation: listing all of them helps, and so does Count if offered."""
    frame = pd.DataFrame({"a": [known[r % len(known)] for r in ROWS], "y": HEIGHTS})
    later = pd.DataFrame({"a": [new, known[0]], "y": HEIGHTS[:2]})
    columns = Columns.of(frame)
    with pytest.raises(ValueError, match="training rows did not have") as caught:
        columns.encode(later)
    kind: Any = columns.kinds["a"]
    listing = f"{{'a': {type(kind).__name__}(({kind.categories[0]!r}, ..."
    assert f"listed, as in kinds={listing}" in str(caught.value)
    listed = data.Categories((*dict.fromkeys(known), new))
    assert bool(Columns.of(frame, {"a": listed}).encode(later).isfinite().all())
    offered = re.search(r"or with kinds=({'a': \w+})", str(caught.value))
    assert (offered is not None) == (isinstance(new, int) and min(known) >= 0)
    if offered:
        assert Columns.of(frame, eval(offered[1])).encode(later)[0, 0] == new


def test_amounts_that_are_often_zero() -> None:
    """Described with what draws may be, because no kind of column has both an atom and a sign."""
    amounts = np.where(np.arange(30) % 3, 0.0, HEIGHTS)
    described = data.describe({"rain": amounts, "height": HEIGHTS - 140, "cost": ["$0", "$7"] * 15})
    rain, height, cost = described.splitlines()
    assert "numbers; 67% are 0, but draws may be below 0" in rain
    assert "are 0" not in height
    assert "50% are 0, but draws may be below 0; the unit '$'" in cost


@pytest.mark.parametrize("pattern", ["%m%d%Y", "%d%m%Y"])
def test_dates_whose_digits_end_with_the_year(pattern: str) -> None:
    """They are no measurements; the wrong twins are other numbers, and another name."""
    days = pd.date_range("2018-01-25", periods=30, freq="5D")
    numbers = days.strftime(pattern).astype(int)
    with pytest.raises(ValueError, match=r"holds dates whose digits end with the year \(.*Time}"):
        Columns.of({"Date": numbers, "y": HEIGHTS})
    written = {"Date": days.strftime("%Y-%m-%d"), "y": HEIGHTS}
    assert Columns.of(written, {"Date": data.Time}).names == ("Date", "y")
    assert Columns.of({"steps": numbers, "y": HEIGHTS}).names == ("steps", "y")
    assert Columns.of({"time": numbers + 900_000_000, "y": HEIGHTS}).names == ("time", "y")


def test_answers_that_vary_as_counts_do() -> None:
    """Nobody chose 6 or more, as a seventh of as many counts would; the twins are counts."""
    rng = np.random.default_rng(0)
    answers = rng.choice([1, 2, 3, 4, 5], 300, p=[0.2, 0.15, 0.15, 0.2, 0.3])
    assert 2 * answers.var() > answers.mean()
    frame = pd.DataFrame({"q": answers, "y": rng.normal(size=300), "n": rng.poisson(3.3, 300)})
    frame["wide"] = rng.negative_binomial(2, 0.5, 300).clip(max=10)
    kinds = Columns.of(frame).kinds
    assert kinds["q"] == data.Ordered((1, 2, 3, 4, 5))
    assert isinstance(kinds["n"], Count)
    assert isinstance(kinds["wide"], Count)
