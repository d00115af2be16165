"""Words that are numbers, steps of a scale or misspellings, and units beside numbers."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.data import Categories, Columns, Ordered, describe
from pyro_vae.data.scales import on_a_scale


@pytest.mark.parametrize(
    "scale",
    [
        ("Strongly disagree", "Disagree", "Neutral", "Agree", "Strongly agree"),
        ("strongly  disagree", "somewhat disagree", "Somewhat agree", "Agree"),
        ("Never", "Rarely", "Sometimes", "Often", "Always"),
        ("very poor", "fair", "good", "very good", "excellent"),
        ("mild", "moderate", "severe"),
        ("S", "M", "L", "XL"),
    ],
)
def test_words_of_a_scale_have_its_order(scale: tuple[str, ...]) -> None:
    """Without a warning; the description of an undeclared column says that there is an order."""
    frame = {"a": sorted(scale) * 9}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Columns.of(frame, {"a": Ordered}).kinds["a"] == Ordered(scale)
    assert "declare the column Ordered to use their order" in describe(frame)


@pytest.mark.parametrize(
    "words", [("red", "green"), ("never", "good"), ("rarely", "seldom", "often")]
)
def test_other_words_have_no_order(words: tuple[str, ...]) -> None:
    """Words of two scales, and two words for one step."""
    assert on_a_scale(words) == ()
    with pytest.warns(UserWarning, match="which is alphabetical"):
        Columns.of({"a": [*words] * 9}, {"a": Ordered})


@pytest.mark.parametrize(
    ("rare", "often"), [("bengin", "benign"), ("Oslp", "Oslo"), ("smokers", "smoker")]
)
def test_misspelled_words(rare: str, often: str) -> None:
    """Named if they are rare and one letter from a frequent word of five letters or more."""
    frame = {"a": [often] * 40 + ["malignant"] * 20 + [rare]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Columns.of(frame)
    said = [f"taken for categories of their own: {rare!r} (1 of 61 entries) for {often!r}. If"]
    assert [one in str(w.message) for w in caught for one in said] == [True] * (len(often) > 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Columns.of(frame, {"a": Categories})
        Columns.of({"a": frame["a"] + [rare] * 2})  # three in 63 may be right


def test_spaces_around_words_make_no_other_words() -> None:
    """Files are read without them, pandas reads them; a word with spaces of its own stays."""
    columns = Columns.of({"a": ["yes", "no", "yes"]})
    assert columns.encode({"a": [" yes", "no "]})[:, 0].tolist() == [1.0, 0.0]
    spaced = Columns.of({"a": ["yes", "yes ", "no"]}, {"a": Categories})
    assert spaced.encode({"a": ["yes ", "yes", " no"]})[:, 0].tolist() == [2.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", [Categories, Ordered])
def test_grades_are_the_same_however_they_are_written(kind: type[Categories]) -> None:
    """A csv file with a missing grade has 5.0 where one without has 5; a data frame has numbers."""
    columns = Columns.of({"a": ["1.0", "5.0", None, "3.0"], "b": [1.0, 2.0, 3.0, 4.0]}, {"a": kind})
    for grades in (["5", "1"], ["5.0", "1.0"], [5, 1], [5.0, 1.0]):
        codes = columns.encode({"a": grades, "b": [1.0, 2.0]})[:, 0]
        assert codes.tolist() == [2.0, 0.0]
    with pytest.raises(ValueError, match="in categories that the training rows did not have"):
        columns.encode({"a": [4, 1], "b": [1.0, 2.0]})
    with pytest.raises(TypeError, match="must hold words; got booleans"):
        columns.encode({"a": [True, False], "b": [1.0, 2.0]})
    coded = Columns.of({"a": ["01", "1", "2"], "b": [1.0, 2.0, 3.0]}, {"a": kind})
    assert coded.encode({"a": ["1", "01"], "b": [1.0, 2.0]})[:, 0].tolist() == [1.0, 0.0]
    with pytest.raises(TypeError, match="must hold words; got whole numbers"):
        coded.encode({"a": [1, 2], "b": [1.0, 2.0]})


def sizes(unit: str, factor: float = 1.0) -> pd.DataFrame:
    """Lengths with a unit."""
    lengths = 30 + np.random.default_rng(0).normal(size=40).cumsum()
    return pd.DataFrame({"size": [f"{factor * x:.3f}{unit}" for x in lengths], "z": lengths})


def test_numbers_in_another_unit_are_refused(tmp_path: Path) -> None:
    """As words of a frame and in a file; those without a unit are taken to be in the same one."""
    columns = Columns.of(sizes(" mm"))
    assert "the unit 'mm' is left out" in describe(sizes(" mm"))
    again = Columns.from_json(columns.to_json())
    for known in (columns, again):
        expected = known.encode(sizes(" mm"))
        assert torch.equal(known.encode(sizes("mm")), expected)
        assert torch.equal(known.encode(sizes("")), expected)
        with pytest.raises(ValueError, match="in 'cm', but the training rows had numbers in 'mm'"):
            known.encode(sizes(" cm", 0.1))
    file = f"{tmp_path}/cm.csv"
    sizes(" cm", 0.1).to_csv(file, index=False)
    with pytest.raises(ValueError, match="in 'cm', but the training rows had numbers in 'mm'"):
        columns.encode(pv.data.read_frame(file).iloc[:4])
    assert "unit" not in Columns.of(sizes("")).to_json()["columns"][0]


def test_entries_beyond_a_limit_are_filled_and_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal names the likelihood for them; declared numeric, they are imputed like holes."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=40)
    frame = pd.DataFrame({"dose": [f"{x:.2f}" if x > -0.5 else "<-0.5" for x in level]})
    frame["z"] = level + 0.1 * rng.normal(size=40)
    file, out = tmp_path / "limits.csv", tmp_path / "filled.csv"
    frame.to_csv(file, index=False)
    assert "which pv.likelihoods.SelfMasking models" in describe(frame)
    saved = str(tmp_path / "saved")
    given = ["--epochs", "1", "--kinds", "dose=Real", "--quiet", "--out", saved]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["fit", str(file), *given])
        main(["impute", saved, str(file), "--draws", "10", "--quiet", "--out", str(out)])
    filled = pd.read_csv(out)
    below = frame["dose"] == "<-0.5"
    assert filled["dose"].dtype == np.float64
    assert filled["dose"][~below].tolist() == frame["dose"][~below].astype(float).tolist()
    said = capsys.readouterr().err
    assert said.count("These entries are treated as missing") == 2  # once by each command
    assert "The same holds" not in said


def test_uses_of_whole_numbers_are_recommended() -> None:
    """Few of them may be grades or codes; no count is below 0."""
    rng = np.random.default_rng(0)
    frame = {
        "cylinders": rng.choice([4, 6, 8], 60),
        "balance": rng.integers(-10_000, 10_000, 60),
        "grams": rng.integers(50, 500, 60),
    }
    cylinders, balance, grams = describe(frame).splitlines()
    assert "Count if they are counts, Ordered if they are grades, Categories if they" in cylinders
    assert "declare" not in balance
    assert grams.endswith("declare the column Count if they are counts")
