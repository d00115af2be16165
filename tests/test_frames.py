"""Tables of every library: encoded as one tensor, decoded as they came, refused with reasons."""

import json
import re
import shlex
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from pyro_vae import data
from pyro_vae.data import Binary, Categories, Columns, Count, Kind, Ordered, Positive, Real, Time
from pyro_vae.data.frames import columns_of, lists_of
from pyro_vae.data.tables import describe
from pyro_vae.formatting import count_of

NAN = float("nan")
SIZES = ["small", "large", "medium", None]
FRUIT = ["apple", "pear", None, "plum"]


def pandas_table() -> pd.DataFrame:
    """A column of each dtype that pandas has, with holes where it can have some."""
    sizes = pd.CategoricalDtype(["small", "medium", "large"], ordered=True)
    return pd.DataFrame(
        {
            "height": [1.5, 2.5, NAN, 2.0],
            "weight": np.array([50, 60, 70, 80], dtype=np.int32),
            "visits": [0, 3, 1, 2],
            "children": pd.array([0, None, 5, 2], dtype="Int64"),
            "smokes": [True, False, True, True],
            "retired": pd.array([True, None, False, True], dtype="boolean"),
            "sex": ["f", "m", "m", "f"],
            "fruit": FRUIT,
            "size": pd.Series(SIZES, dtype=sizes),
            "town": pd.Series(["b", "a", "b", None], dtype=pd.CategoricalDtype(["b", "a", "c"])),
            "coin": [0.0, 1.0, NAN, 0.0],
        }
    )


def polars_table() -> pl.DataFrame:
    """The like in polars."""
    return pl.DataFrame(
        {
            "height": [1.5, 2.5, None, 2.0],
            "weight": pl.Series([50, 60, 70, 80], dtype=pl.Int32),
            "visits": pl.Series([0, 3, None, 2], dtype=pl.UInt8),
            "smokes": [True, None, True, True],
            "fruit": FRUIT,
            "size": pl.Series(SIZES, dtype=pl.Enum(["small", "medium", "large"])),
            "town": pl.Series(["b", "a", "b", None], dtype=pl.Categorical),
            "narrow": pl.Series([0.5, 0.25, 0.75, 0.5], dtype=pl.Float32),
        }
    )


def structured_array() -> np.ndarray:
    """Named fields."""
    rows = [(1.5, 0, "a"), (2.5, 2, "b"), (NAN, 1, "c")]
    return np.array(rows, dtype=[("x", "<f8"), ("n", "<i8"), ("w", "O")])


KINDS = {
    "pandas": {
        "height": Real, "weight": Real, "visits": Count, "children": Count, "smokes": Binary,
        "retired": Binary, "sex": Binary, "fruit": Categories, "size": Ordered,
        "town": Categories, "coin": Binary,
    },
    "polars": {
        "height": Real, "weight": Real, "visits": Count, "smokes": Binary, "fruit": Categories,
        "size": Categories, "town": Binary, "narrow": Real,
    },
    "structured": {"x": Real, "n": Count, "w": Categories},
}  # fmt: skip
TABLES: dict[str, Callable[[], Any]] = {
    "pandas": pandas_table,
    "polars": polars_table,
    "structured": structured_array,
}


@pytest.mark.parametrize("name", TABLES)
def test_kinds_follow_from_dtypes(name: str) -> None:
    """Each by its rule."""
    columns = Columns.of(TABLES[name]())
    assert {column: type(kind) for column, kind in columns.kinds.items()} == KINDS[name]


@pytest.mark.parametrize("saved", [False, True], ids=["learned", "saved"])
@pytest.mark.usefixtures("float64")
def test_a_pandas_table_comes_back(*, saved: bool) -> None:
    """Values, dtypes, categories and holes, also through JSON."""
    table = pandas_table()
    columns = Columns.of(table)
    if saved:
        columns = Columns.from_json(json.loads(json.dumps(columns.to_json())))
    pd.testing.assert_frame_equal(columns.decode(columns.encode(table)), table)


@pytest.mark.parametrize("saved", [False, True], ids=["learned", "saved"])
@pytest.mark.usefixtures("float64")
def test_a_polars_table_comes_back(*, saved: bool) -> None:
    """Values, dtypes, categories and holes, also through JSON."""
    table = polars_table()
    columns = Columns.of(table)
    if saved:
        columns = Columns.from_json(json.loads(json.dumps(columns.to_json())))
    back = columns.decode(columns.encode(table))
    # Categories of the process have no order of their own; the words must be the same.
    assert back.schema == table.schema
    assert back.cast({"town": pl.String}).equals(table.cast({"town": pl.String}))


BYTES = {"age": [20, 31, 44, 52, 68, 71, 80, 250], "n": [0, 1, 2, 0, 1, 3, 2, 1]}
NARROW: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pd.DataFrame(BYTES, dtype="uint8"),
    "nullable": lambda: pd.DataFrame(BYTES, dtype="UInt8"),
    "arrow": lambda: pd.DataFrame(BYTES, dtype="uint8[pyarrow]"),
    "polars": lambda: pl.DataFrame(BYTES, schema=dict.fromkeys(BYTES, pl.UInt8)),
    "numpy": lambda: np.array(list(BYTES.values()), dtype=np.uint8).T,
    "dict": lambda: {name: np.array(x, dtype=np.uint8) for name, x in BYTES.items()},
}


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.usefixtures("float64")
def test_integers_that_do_not_fit_their_dtype_come_back(name: str) -> None:
    """A draw can be negative, or too large for a byte; it is neither wrapped nor refused."""
    table = NARROW[name]()
    columns = Columns.of(table)
    far = torch.tensor([[-105.0, 300.0], [5.0, 1.0]])
    y = (far - columns.center) / columns.scale
    assert [list(x) for x in lists_of(columns.decode(y)).values()] == far.T.tolist()
    beyond = columns.decode(1e20 * y)
    assert lists_of(beyond)[columns.names[0]][0] < -1e20
    same = columns_of(columns.decode(columns.encode(table)))
    assert [raw.dtype for raw in same.values()] == [raw.dtype for raw in columns_of(table).values()]


@pytest.mark.usefixtures("float64")
def test_arrays_and_dictionaries_come_back() -> None:
    """Structured and plain arrays, tensors, and columns by name, with their dtypes."""
    table = structured_array()
    columns = Columns.of(table)
    back = columns.decode(columns.encode(table))
    assert back.dtype == table.dtype
    for name in ("x", "n", "w"):
        assert back[name].tolist()[:2] == table[name].tolist()[:2]
    for plain in (np.arange(6.0).reshape(3, 2) ** 2, torch.arange(6).reshape(3, 2) ** 2 + 1):
        columns = Columns.of(plain)
        back = columns.decode(columns.encode(plain))
        assert type(back) is type(plain)
        assert back.dtype == plain.dtype
        assert back.tolist() == plain.tolist()
    by_name = {"n": np.array([0, 2, 3], dtype=np.uint8), "w": ["a", None, "b"], "t": torch.ones(3)}
    columns = Columns.of(by_name)
    back = columns.decode(columns.encode(by_name))
    assert back["n"].dtype == np.uint8
    assert [list(back[name]) for name in by_name] == [[0, 2, 3], ["a", None, "b"], [1, 1, 1]]


def test_codes_and_units() -> None:
    """Categories in the order of the dtype; numbers standardized over what was observed."""
    y = Columns.of(pandas_table()).encode(pandas_table())
    columns = dict(zip(pandas_table().columns, y.T.tolist(), strict=True))
    assert columns["size"][:3] == [0, 2, 1]
    assert columns["town"][:3] == [0, 1, 0]
    assert columns["fruit"][:2] == [0, 1]
    assert columns["visits"] == [0, 3, 1, 2]
    height = torch.tensor([1.5, 2.5, NAN, 2.0])
    spread = float(height[[0, 1, 3]].std(correction=0))
    torch.testing.assert_close(y[:, 0], (height - 2) / spread, equal_nan=True)
    assert y.dtype == torch.get_default_dtype()


@pytest.mark.usefixtures("float64")
def test_log_scale_puts_densities_into_the_tables_units() -> None:
    """The Jacobian of real columns; of a row with holes that of what was observed."""
    table = pandas_table()
    columns = Columns.of(table)
    y = columns.encode(table)
    spreads = [table[name].std(ddof=0) for name in ("height", "weight")]
    assert columns.log_scale == pytest.approx(-np.log(spreads).sum(), abs=1e-12)
    expected = [-np.log(spreads).sum()] * 2 + [-np.log(spreads[1]), -np.log(spreads).sum()]
    torch.testing.assert_close(columns.log_scales(y), torch.tensor(expected))


def test_columns_are_found_by_name() -> None:
    """In any order, and from another library than they were learned from."""
    columns = Columns.of(pandas_table()[["height", "visits", "fruit"]])
    expected = columns.encode(pandas_table()[["height", "visits", "fruit"]])
    shuffled = pandas_table()[["fruit", "height", "visits"]]
    torch.testing.assert_close(columns.encode(shuffled), expected, equal_nan=True)
    other = pl.from_dicts(
        [{k: None if v != v else v for k, v in row.items()} for row in shuffled.to_dict("records")]
    )
    torch.testing.assert_close(columns.encode(other), expected, equal_nan=True)
    assert isinstance(columns.decode(expected), pd.DataFrame)


def test_kinds_can_be_said() -> None:
    """By class, learned from the column, or by value."""
    table = {"grade": ["low", "high", "mid"], "age": [30, 40, 50], "size": [1, 2, 3]}
    kinds: dict[str, data.Kind | type[data.Kind]] = {
        "grade": Ordered(("low", "mid", "high")),
        "age": Count,
        "size": Ordered,
    }
    columns = Columns.of(table, kinds)
    assert columns.encode(table).tolist() == [[0, 30, 0], [2, 40, 1], [1, 50, 2]]
    assert columns.kinds["size"] == Ordered((1, 2, 3))
    for read in (Columns.of, describe):
        with pytest.raises(
            ValueError,
            match=r"`kinds` must name columns of the table; got \['weight'\], but the columns are",
        ):
            read(table, {"weight": Count})


def test_draws_become_entries() -> None:
    """Codes are rounded and kept within the categories, counts and integers rounded."""
    columns = Columns.of(pandas_table()[["weight", "visits", "fruit", "smokes"]])
    table = columns.decode(torch.tensor([[0.1, 1.6, 7.0, 0.4], [0.0, -1.0, -2.0, 0.6]]))
    assert table["weight"].tolist() == [66, 65]
    assert table["visits"].tolist() == [2, 0]
    assert table["fruit"].tolist() == ["plum", "apple"]
    assert table["smokes"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fruit": ["fig", "pear", "fig", None]}, ValueError,
         r"column 'fruit' has 2 entries in categories .*'fig' at row 0, 'fig' at row 2, counted"
         r".*known categories are 'apple', 'pear', 'plum'"),
        ({"visits": [0, -3, 1, 2]}, ValueError,
         r"column 'visits' must hold counts, .* 1 other entry \(-3 at row 1, .*'visits': Real"),
        ({"visits": [0, 0.5, 1, 2]}, ValueError, r"column 'visits' must hold counts.*0\.5 at"),
        ({"height": ["tall", "short", None, "tall"]}, TypeError,
         r"column 'height' must hold numbers; got words \('tall' at row 0"),
        ({"fruit": [1, 2, 3, 4]}, TypeError,
         r"column 'fruit' must hold words; got whole numbers \(1 at row 0"),
        ({"height": [1.0, np.inf, 2.0, 3.0]}, ValueError,
         r"column 'height' has 1 infinite entry \(inf at row 1"),
        ({"height": [NAN] * 4, "visits": [NAN] * 4, "fruit": [None] * 4}, ValueError,
         r"no entry is observed in 4 of 4 rows, the first at row 0"),
        ({"colour": ["red"] * 4}, ValueError, "has column 'colour', which the training rows"),
        ({"height": pd.to_datetime(["2020-01-01"] * 4)}, TypeError,
         r"column 'height' must hold numbers; got dates or times"),
        ({"height": [1.0, b"a", None, 2.0]}, TypeError,
         r"column 'height' must hold only numbers, .* only words; got the types \['bytes', 'f"),
    ],
)  # fmt: skip
def test_rows_that_are_refused(
    change: dict[str, list[Any]], error: type[Exception], message: str
) -> None:
    """By the name of the column, the entry and the row, with what to do."""
    table = pandas_table()[["height", "visits", "fruit"]]
    columns = Columns.of(table)
    with pytest.raises(error, match=message):
        columns.encode(table.assign(**change))


def test_a_column_in_other_units_than_that_of_the_training_rows_is_named() -> None:
    """Metres for kilometres; not outliers among other rows, nor an empty or a constant column."""
    table = pd.DataFrame({"height": [1.5, 1.7, 1.9, 1.6], "shoe": [41.0] * 4})
    columns = Columns.of(table)
    with pytest.warns(UserWarning, match="'height' .* median of 1650, .*1.675 and .* 0.15. .*unit"):
        columns.encode(table.assign(height=1000 * table["height"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        columns.encode(table.assign(height=[1.5, 1e6, NAN, 1.7]))
        columns.encode(table.assign(height=NAN))
        columns.encode(table)


@pytest.mark.parametrize(
    ("words", "mark"),
    [
        (["a", "b", "?", "a", "?"], "?"),
        (["a", "-", "b"], "-"),
        (["low", "high", "unknown"], "unknown"),
        (["+", "-", "+"], None),
        (["*", "**", "***"], None),
        (["ND", "SD", "NY"], None),
        (["a", "b"], None),
    ],
)
def test_marks_of_missing_entries_among_words_are_named(words: list[Any], mark: str | None) -> None:
    """With both lines to write; among signs, and as a code of a state, they are categories."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Columns.of({"site": words})
        Columns.of({"site": words}, kinds={"site": Categories})
    said = [str(warning.message) for warning in caught]
    assert len(said) == (mark is not None)
    if mark is not None:
        number = words.count(mark)
        assert f"column 'site' holds '{mark}' in {count_of(number, 'entry')}" in said[0]
        assert f"missing=['{mark}']) (command line: --missing={shlex.quote(mark)})" in said[0]
        assert "--kinds site=Categories" in said[0]


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ValueError, "more than one column .* 'a'"),
        ({"a": [None, NAN]}, ValueError, "column 'a' has no observed entry: drop the"),
        ({"a": [1.0, None], "b": ["x", None]}, ValueError, r"column 'b' has 1 category \('x'\)"),
        ({"a": [1.0, None], "b": ["x", "y"]}, None, ""),
        (
            {"a": [1.0, None, 2.0], "b": ["x", None, "y"]},
            ValueError,
            "no entry is observed in 1 of 3 rows",
        ),
        ({"a": [1.0], "b": [1.0, 2.0]}, ValueError, r"columns of equal length, .*'a': 1, 'b': 2"),
        ({"a": []}, ValueError, "at least one row"),
        ({"a": [f"row {i}" for i in range(300)]}, ValueError, "300 different entries in 300 rows"),
        ({"a": np.zeros((2, 2))}, ValueError, r"column 'a' must have one axis"),
        ({"a": np.array([1j])}, TypeError, "column 'a' has dtype complex128"),
        (np.zeros(3), ValueError, r"rows and columns; got an array of shape \(3,\)"),
        ([1, 2], TypeError, "a table must be a DataFrame .* got list"),
    ],
)
def test_tables_that_are_refused(table: Any, error: type[Exception] | None, message: str) -> None:
    """When columns are learned."""
    if error is None:
        Columns.of(table)
        return
    with pytest.raises(error, match=message):
        Columns.of(table)


@pytest.mark.parametrize("kind", [Real, Positive, Count])
def test_categories_declared_numbers_come_back_as_numbers(kind: type[Kind]) -> None:
    """They had all been missing: the categories of the dtype were not kept."""
    frame = pd.DataFrame({"x": pd.Categorical([1, 2, 4, 3]), "y": [1.0, 2.0, 4.0, 3.5]})
    columns = Columns.of(frame, {"x": kind})
    assert columns.decode(columns.encode(frame))["x"].tolist() == [1, 2, 4, 3]


@pytest.mark.parametrize("library", ["pandas", "categorical", "enum"])
def test_categories_declared_times_come_back_as_they_were_written(library: str) -> None:
    """In pandas they had been missing; with an Enum, polars raised an error."""
    days = ["2024-05-01", "2024-05-07", "2024-05-02"]
    column: Any = pd.Categorical(days)
    if library != "pandas":
        dtype = pl.Categorical if library == "categorical" else pl.Enum(days)
        column = pl.Series(days, dtype=pl.String).cast(dtype)
    frame = (pd if library == "pandas" else pl).DataFrame({"x": column, "y": [1.0, 2.0, 4.0]})
    columns = Columns.of(frame, {"x": Time})
    assert list(columns.decode(columns.encode(frame))["x"]) == days


def test_the_advice_fits_what_is_no_table() -> None:
    """A module has a method `train`, but no held-out rows."""
    dataset = data.squares(4, side=1, num_test=2)
    with pytest.raises(TypeError, match="omit `data` to use its held-out rows"):
        Columns.of(dataset)
    with pytest.raises(TypeError, match="got Linear: convert the table, as in pandas"):
        Columns.of(torch.nn.Linear(1, 1))


def test_missing_columns_are_named() -> None:
    """And so is what has another number of columns."""
    columns = Columns.of(pandas_table())
    with pytest.raises(
        ValueError, match="has no column 'fruit', but must have the 11 columns 'hei"
    ):
        columns.encode(pandas_table().drop(columns="fruit"))
    with pytest.raises(ValueError, match=r"rows must have 11 columns .* got shape \(2, 3\)"):
        columns.decode(torch.zeros(2, 3))


def test_a_description_from_elsewhere_is_refused() -> None:
    """Only kinds that exist can be asked for."""
    saved = Columns.of({"a": [1.0, 2.0]}).to_json()
    saved["columns"][0]["kind"] = "os.system"
    with pytest.raises(ValueError, match=r"column 'a' has the kind 'os\.system'"):
        data.Columns.from_json(saved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scale", 0.0, r"of column 'a', `scale` must be a finite number above 0; got 0\.0"),
        ("scale", -1.0, "of column 'a', `scale` must be a finite number above 0"),
        ("scale", float("nan"), "of column 'a', `scale` must be a finite number above 0"),
        ("scale", "x", "of column 'a', `scale` must be a finite number above 0"),
        ("center", None, "of column 'a', `center` must be a finite number"),
        ("names", 1, "is not a description of columns"),
        ("name", "b", "must describe each column once"),
    ],
)
def test_a_damaged_description_is_refused(key: str, value: object, message: str) -> None:
    """At once and by the column; answers in negative units had been given without a word."""
    saved = Columns.of({"a": [1.0, 2.5], "b": [3.0, 0.5]}).to_json()
    saved["columns"][0][key] = value
    with pytest.raises(ValueError, match=message):
        Columns.from_json(saved)


ODD_DTYPES = {
    "integers of Arrow": (pd.array([1, None, 5], dtype="int64[pyarrow]"), "int64[pyarrow]"),
    "booleans of Arrow": (pd.array([True, None, False], dtype="bool[pyarrow]"), "bool[pyarrow]"),
    "decimals of Arrow": (
        pd.array([Decimal("1.1"), None, Decimal("5.25")], pd.ArrowDtype(pa.decimal128(8, 2))),
        "float64",
    ),
    "a dictionary of Arrow": (
        pd.array(["a", None, "b"], pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))),
        None,
    ),
    "intervals": (pd.cut([0.5, NAN, 1.5], [0, 1, 2]), "category"),
    "flags": (pd.Categorical([True, None, False]), "category"),
}


@pytest.mark.parametrize("name", ODD_DTYPES)
def test_dtypes_that_few_tables_have(name: str) -> None:
    """Read and written back, with the dtype where its name is enough to build it."""
    values, dtype = ODD_DTYPES[name]
    frame = pd.DataFrame({"odd": pd.Series(values), "x": [1.5, 2.5, 0.5]})
    columns = Columns.of(frame)
    y = columns.encode(frame)
    assert y[:, 0].isnan().tolist() == [False, True, False]
    assert y[0, 0] != y[2, 0]
    back = columns.decode(y)["odd"]
    assert back.isna().tolist() == [False, True, False]
    assert dtype is None or str(back.dtype) == dtype
    assert torch.equal(columns.encode(columns.decode(y))[[0, 2]], y[[0, 2]])


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_dates_as_categories_or_objects(zone: str | None) -> None:
    """They are dates, whatever the dtype: refused, or days."""
    days = pd.date_range("2024-01-03", periods=4, tz=zone)
    for column in (pd.Categorical(days), np.array([*days], dtype=object)):
        frame = pd.DataFrame({"when": column, "x": [1.5, 2.5, 0.5, 3.5]})
        with pytest.raises(ValueError, match="column 'when' holds dates or times"):
            Columns.of(frame)
        columns = Columns.of(frame, {"when": data.Time})
        back = pd.to_datetime(columns.decode(columns.encode(frame))["when"], utc=True)
        expected = pd.to_datetime(pd.Series(days), utc=True)
        assert (back == expected).all()


@pytest.mark.parametrize(("value", "shown"), [(1e300, "1e[+]300"), (1e30, "1e[+]30")])
def test_numbers_that_densities_cannot_take(value: float, shown: str) -> None:
    """Named with their column, before torch meets them as infinite."""
    frame = pd.DataFrame({"age": [31.5, 40.0, 52.5], "visits": [0, 3, 1]})
    columns = Columns.of(frame)
    message = rf"column 'age' has 1 entry so far .*\({shown} at row 1, .* mean of 41.33"
    with pytest.raises(ValueError, match=message):
        columns.encode(frame.assign(age=[30.0, value, 40.0]))
    with pytest.raises(ValueError, match="column 'visits' has 1 entry so far"):
        columns.encode(frame.assign(visits=[0, value, 1]))


def test_a_row_is_no_table() -> None:
    """A dictionary of single entries is refused with the line that makes it a table."""
    with pytest.raises(TypeError, match=r"column 'age' must be an array or a list .*\[value\] for"):
        Columns.of({"age": 31.5, "sex": "f"})


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_numbers_come_back_as_they_were_written(unit: float) -> None:
    """From float32, which holds seven digits: 170.3, and not 170.29999998."""
    heights = (np.random.default_rng(0).normal(170, 10, 100).round(1) * unit).round(8)
    frame = pd.DataFrame({"height": heights, "x": heights[::-1]})
    columns = Columns.of(frame)
    y = columns.encode(frame)
    assert y.dtype is torch.float32
    np.testing.assert_allclose(
        columns.decode(y)["height"], heights, rtol=1e-15 if unit == 1 else 1e-12
    )


POLARS = {
    "words that are numbers": (pl.Series(["1.5", "2.5", "", "0.5"]), pl.Float64),
    "objects that are numbers": (pl.Series([1, 2.5, None, 4], dtype=pl.Object), pl.Float64),
    "whole objects": (pl.Series([1, 2, None, 7], dtype=pl.Object), pl.Int64),
    "bytes": (pl.Series([b"a", b"b", None, b"a"]), None),
    "zoned": (
        pl.Series(pd.date_range("2024-01-01", periods=4, tz="Asia/Tokyo")),
        pl.Datetime("us", "Asia/Tokyo"),
    ),
}


@pytest.mark.parametrize("name", POLARS)
def test_columns_that_polars_has_no_dtype_for(name: str) -> None:
    """Numbers get a dtype, times keep their zone, and bytes are refused."""
    series, dtype = POLARS[name]
    frame = pl.DataFrame({"a": series, "x": [1.5, 2.5, 0.5, 3.5]})
    kinds = {"a": data.Time} if name == "zoned" else None
    if dtype is None:
        with pytest.raises(TypeError, match="column 'a' has dtype Binary"):
            Columns.of(frame, kinds)
        return
    columns = Columns.of(frame, kinds)
    back = columns.decode(columns.encode(frame))["a"]
    assert back.dtype == dtype
    if name == "zoned":
        assert back.to_list() == series.to_list()


@pytest.mark.parametrize(
    "values", [["a", "b", "", "a"], [b"a", b"b", b"", b"a"], ["a", "b", " ", "a"]]
)
def test_blank_entries_are_missing(values: list[Any]) -> None:
    """As they are in text files, in every container; bytes are words."""
    for column in (values, np.array(values), np.array(values, dtype=object), pd.Series(values)):
        columns = Columns.of({"a": column, "x": [1.5, 2.5, 0.5, 3.5]})
        y = columns.encode({"a": column, "x": [1.5, 2.5, 0.5, 3.5]})
        assert y[:, 0].isnan().tolist() == [False, False, True, False]
    with pytest.raises(TypeError, match="holds bytes that are not text in UTF-8"):
        Columns.of({"a": [b"\xff", b"b"], "x": [1.5, 2.5]})


def test_arrays_are_described_as_they_are_read() -> None:
    """All columns have one kind, and words need a data frame."""
    counts = np.array([[0, 1], [2, 3]] * 10)
    described = data.describe(counts)
    assert described.count("Real") == 2
    assert described.count("the kind of all columns of an array") == 2
    words = np.array([["a", 2.5], ["b", 3.5]] * 10, dtype=object)
    for ask in (Columns.of, data.describe):
        with pytest.raises(
            TypeError, match=r"must hold numbers; got words in column 0: pass a data"
        ):
            ask(words)
    assert repr(Columns.of(pd.DataFrame(words).convert_dtypes())) == "0: Binary, 1: Real"


def test_dictionaries_and_sets_are_no_columns() -> None:
    """Iteration gives the keys of the rows, not the entries; the remedy is tried."""
    frame = pd.DataFrame({"a": [1.5, 2.5, 4.0], "b": ["x", "y", "x"]})
    with pytest.raises(TypeError, match=r"got a dict: .* frame.to_dict\('list'\)"):
        Columns.of(frame.to_dict())
    with pytest.raises(TypeError, match="got a set"):
        Columns.of({"a": {1.5, 2.5}})
    assert Columns.of(frame.to_dict("list")).names == ("a", "b")


TENSORS = {
    "sparse": (torch.eye(3).to_sparse(), "use y.to_dense()"),
    "meta": (torch.empty(3, 2, device="meta"), "load its data"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_without_plain_data(name: str) -> None:
    """Refused before NumPy sees them; half precision is read."""
    tensor, remedy = TENSORS[name]
    with pytest.raises(TypeError, match=rf"got a {name} tensor .*{re.escape(remedy)}"):
        Columns.of(tensor)
    with pytest.raises(TypeError, match=rf"got a {name} tensor .*{re.escape(remedy)}"):
        Columns.of({"x": tensor})
    half = torch.tensor([[1.5, 2.0], [2.5, 4.0]], dtype=torch.bfloat16)
    for frame in (half, {"a": half[:, 0], "b": half[:, 1]}):
        assert Columns.of(frame).scale.tolist() == [0.5, 1.0]
