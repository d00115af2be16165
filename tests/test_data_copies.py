"""Columns with the same information are named, with a remedy that helps; others are not."""

import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

import pyro_vae as pv
from pyro_vae.sklearn import VAE

ROWS = 60
RNG = np.random.default_rng(0)
X = RNG.normal(15.0, 8.0, ROWS).round(1)
WORDS = RNG.choice(["a", "b", "c"], ROWS)
HOLES = RNG.random(ROWS) < 0.2
COPIES: dict[str, tuple[Any, Any]] = {
    "degrees": (X, 1.8 * X + 32),
    "a sign": (X, -X),
    "words": (WORDS, pd.Series(WORDS).map({"a": "z", "b": "y", "c": "x"}).to_numpy()),
    "no and yes": (X > 15, np.where(X > 15, "yes", "no")),
    "classes": (1 + np.arange(ROWS) % 3, np.array(["first", "second", "third"] * (ROWS // 3))),
    "holes": (np.where(HOLES, np.nan, X), np.where(HOLES, np.nan, 3 * X)),
    "counts": (np.arange(ROWS) ** 2 % 17, 2.0 * (np.arange(ROWS) ** 2 % 17)),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_named(name: str) -> None:
    """By pandas and by scikit-learn; without the column that is named there is no warning."""
    one, other = COPIES[name]
    frame = pd.DataFrame({"one": one, "y": RNG.normal(size=ROWS), "other": other})
    said = r"all rows: 'one' and 'other'\. .* drop=(\['other'\]) \(command line: --drop"
    with pytest.warns(UserWarning, match=said) as caught:
        pv.data.from_frame(frame)
    (dropped,) = re.findall(said, str(caught[0].message))
    pv.data.from_frame(frame.drop(columns=eval(dropped)))
    with pytest.warns(UserWarning, match=said):
        VAE(max_epochs=1).fit(frame)


NO_COPIES: dict[str, tuple[Any, Any]] = {
    "rounded": (X, (1.8 * X + 32).round(0)),
    "a curve": (X, X**2),
    "coarser words": (WORDS, np.where(WORDS == "a", "a", "other")),
    "one row": (X, np.where(np.arange(ROWS) == 7, X + 1, X)),
    "rare answers": (np.arange(ROWS) == 7, np.where(np.arange(ROWS) == 7, "yes", "no")),
    "other holes": (X, np.where(HOLES, np.nan, X)),
}


@pytest.mark.parametrize("name", NO_COPIES)
def test_other_columns_are_no_copies(name: str) -> None:
    """The wrong twin: information is lost, or a coincidence is likely, or one is known alone."""
    one, other = NO_COPIES[name]
    frame = pd.DataFrame({"one": one, "y": RNG.normal(size=ROWS), "other": other})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.data.from_frame(frame, test_fraction=1 / ROWS)


def test_few_rows_have_copies_by_chance() -> None:
    """Below 20 rows nothing is said."""
    pv.data.from_frame(pd.DataFrame({"a": X[:12], "b": 2 * X[:12]}))
