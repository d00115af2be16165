"""Numbers that are probably errors, and answers that look missing: named, with remedies."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from pyro_vae import data
from pyro_vae.data import Columns, Layout, Real, read_frame
from tests.helpers.texts import frame_of


@pytest.mark.parametrize(
    "far", [[1e6], [-4e4], [3e3], [1e5, 2e5, -1e5], [5e11]], ids=lambda far: f"{far[0]:g}"
)
def test_numbers_that_set_the_scale_of_a_column(far: list[float], tmp_path: Path) -> None:
    """One gross number in a hundred is named, with what is around it; the remedies work."""
    numbers = np.random.default_rng(0).normal(20.0, 3.0, 300)
    numbers[7 : 7 + len(far)] = far
    text = "a,z\n" + "".join(f"{x:.15g},{i % 7}.5\n" for i, x in enumerate(numbers))
    (tmp_path / "y.csv").write_text(text)
    said = re.escape(f"column 'a' holds {min(far):g}")
    with pytest.warns(UserWarning, match=rf"{said}.* all others are from 1\d.*sets the scale"):
        Columns.of(frame_of(tmp_path, text))
    marks = tuple(f"{x:g}" for x in far)
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
    with pytest.warns(UserWarning, match=r"holds 'none' in 10 entries.*--kinds 'symptom=Categ"):
        table = data.load(path)
    assert table.columns is not None
    assert table.columns.kinds["symptom"] == data.Binary(("cough", "fever"))
    said = data.load(path, kinds={"symptom": data.Categories})
    assert said.columns is not None
    assert said.columns.kinds["symptom"] == data.Categories(("cough", "fever", "none"))
    frame = read_frame(path, Layout(words=("symptom",)))
    assert set(frame["symptom"]) == {"none", "cough", "fever"}
