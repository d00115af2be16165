"""Numbers that are probably errors, and answers that look missing: named, with remedies."""

import re
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae import data
from pyro_vae.data import Columns, Layout, Real, read_frame
from tests.helpers.texts import frame_of


@pytest.mark.parametrize(
    "far",
    [[1e6], [-4e4], [3e3], [1e5, 2e5, -1e5], [5e11], [1234567.25]],
    ids=lambda far: f"{far[0]:g}",
)
def test_numbers_that_set_the_scale_of_a_column(far: list[float], tmp_path: Path) -> None:
    """One gross number in a hundred is named, with what is around it; the remedies work."""
    numbers = np.random.default_rng(0).normal(20.0, 3.0, 300)
    numbers[7 : 7 + len(far)] = far
    text = "a,z\n" + "".join(f"{x:.15g},{i % 7}.5\n" for i, x in enumerate(numbers))
    (tmp_path / "y.csv").write_text(text)
    said = re.escape(f"column 'a' holds {min(far):.15g}")
    with pytest.warns(UserWarning, match=rf"{said}.* all other entries are from 1\d.*dominates"):
        Columns.of(frame_of(tmp_path, text))
    marks = tuple(f"{x:.15g}" for x in far)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = data.load(tmp_path / "y.csv", layout=Layout(missing=marks))
        assert table.scale is not None
        assert table.scale[0] < 4
        Columns.of(frame_of(tmp_path, text), {"a": Real})


@pytest.mark.parametrize("name", ["heavy tails", "many zeros", "skewed", "two groups", "outlier"])
def test_numbers_that_set_no_scale(name: str) -> None:
    """The wrong twin: tails of t with 3 degrees of freedom, a tenth far out, 10 deviations."""
    rng = np.random.default_rng(0)
    numbers = {
        "heavy tails": rng.standard_t(3, 400),
        "many zeros": np.where(np.arange(400) % 5, 0.0, rng.lognormal(3, 1, 400)),
        "skewed": rng.lognormal(0, 2, 400),
        "two groups": np.where(np.arange(400) % 10, rng.normal(size=400), 500.0),
        "outlier": np.append(rng.normal(size=399), 10.0),
    }[name]
    Columns.of({"a": numbers, "z": rng.normal(size=400)})


def test_none_as_an_answer(tmp_path: Path) -> None:
    """Taken to be missing, with a warning; a category where the column is declared."""
    path = tmp_path / "t.csv"
    cells = ["none", "cough", "fever"] * 10
    path.write_text("symptom,x\n" + "".join(f"{c},{i % 7}.5\n" for i, c in enumerate(cells)))
    with pytest.warns(UserWarning, match=r"holds 'none' in 10 entries.*--kinds symptom=Categ"):
        table = data.load(path)
    assert table.columns is not None
    assert table.columns.kinds["symptom"] == data.Binary(("cough", "fever"))
    said = data.load(path, kinds={"symptom": data.Categories})
    assert said.columns is not None
    assert said.columns.kinds["symptom"] == data.Categories(("cough", "fever", "none"))
    frame = read_frame(path, Layout(words=("symptom",)))
    assert set(frame["symptom"]) == {"none", "cough", "fever"}


def test_masked_arrays() -> None:
    """Masked entries are missing, whatever is stored below the mask."""
    measured = np.ma.masked_array(np.arange(40.0) + 0.5, np.arange(40) % 9 == 0)
    measured.data[::9] = 1e9
    whole = np.ma.masked_array(np.arange(40) % 5, np.arange(40) % 7 == 1)
    words = np.ma.masked_array(np.array(["x", "y"] * 20), np.arange(40) % 8 == 1)
    table = {"a": measured, "n": whole, "w": words}
    columns = Columns.of(table)
    assert repr(columns) == "a: Real, n: Count, w: Binary"
    assert columns.encode(table).isnan().sum(dim=0).tolist() == [5, 6, 5]
    numbers = np.random.default_rng(0).normal(size=(40, 2))
    matrix = np.ma.masked_array(numbers, np.eye(40, 2, dtype=bool))
    assert int(Columns.of(matrix).encode(matrix).isnan().sum()) == 2


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_decimals(library: str) -> None:
    """Databases send them: numbers, and not whole ones."""
    values = [None if i == 3 else Decimal(i * 125) / 100 for i in range(40)]
    package = pytest.importorskip(library)
    table = package.DataFrame({"price": package.Series(values), "x": [0.5, 1.5] * 20})
    columns = Columns.of(table)
    assert type(columns.kinds["price"]) is Real
    y = columns.encode(table, dtype=torch.float64)
    back = list(columns.decode(y)["price"])
    assert back[3] is None or np.isnan(back[3])
    assert back[4] == pytest.approx(5.0)


def test_columns_of_types_without_a_likelihood_are_described() -> None:
    """Among the others, with the advice; and one error names all that is wrong."""
    table = pd.DataFrame(
        {
            "took": pd.to_timedelta(np.arange(40), unit="h"),
            "x": np.linspace(0, 1, 40),
            "list": [[1, 2]] * 40,
            "id": [f"P{i}" for i in range(40)],
        }
    )
    lines = data.describe(table).splitlines()
    assert [line.split()[1] for line in lines] == ["refused", "Real", "refused", "refused"]
    assert "convert the entries to numbers, such as hours or days" in lines[0]
    with pytest.raises(ValueError, match="refused: 3 of 4 columns") as caught:
        Columns.of(table)
    assert "X.drop(columns=['took', 'list', 'id'])" in str(caught.value)
    assert list(Columns.of(table[["x"]]).names) == ["x"]
    with pytest.raises(TypeError, match="'took' has dtype timedelta64"):
        Columns.of(table[["took", "x"]])


def test_one_warning_for_all_columns(tmp_path: Path) -> None:
    """The same trouble in several columns is said once, with their names; another one apart."""
    names = [f"x{i}" for i in range(9)]
    rows = [",".join(f"{i + j / 9:.3f}" for j in range(9)) for i in range(30)]
    rows[4] = ",".join(["?"] * 9)
    rows[9] = "-999," + ",".join(["1.5"] * 8)
    path = tmp_path / "t.csv"
    path.write_text("\n".join([",".join([*names, "z"]), *(f"{row},0.5" for row in rows)]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = read_frame(path)
        columns = Columns.of(frame)
    first, second = (str(warning.message) for warning in caught)
    assert "column 'x0' holds numbers, except for 1 of 30 entries: '?' in line 6" in first
    assert first.endswith("for 8 more columns: 'x1', 'x2', 'x3', 'x4', 'x5' and 3 more")
    assert "'x0' holds -999 in 1 entry" in second
    with pytest.warns(UserWarning, match="'x1' has a median .* for 1 more column: 'x2'") as units:
        columns.encode(frame.assign(x1=1e6 + frame["x1"], x2=-1e6 + frame["x2"]))
    assert len(units) == 1
