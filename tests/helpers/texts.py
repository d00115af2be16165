"""Small text files for tests of reading."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_vae.data import Layout, read_frame

NUMBERS = np.random.default_rng(0).normal(2.0, 0.1, (30, 3)).round(3)
ODD = pytest.mark.filterwarnings("ignore:.* holds numbers, except for")


def lines(values: Any, separator: str = ",") -> str:
    """Rows of a text."""
    return "".join(separator.join(map(str, row)) + "\n" for row in np.asarray(values).tolist())


def frame_of(folder: Path, text: str | bytes, layout: Layout = Layout()) -> pd.DataFrame:  # noqa: B008
    """What a text is read as."""
    path = folder / "y.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    frame = read_frame(path, layout)
    assert isinstance(frame, pd.DataFrame)
    return frame


def column_of(folder: Path, cells: Sequence[str]) -> pd.Series:
    """What a column `a` is read as, beside one of numbers."""
    quoted = "".join(f'{i % 7}.5,"{cell}"\n' for i, cell in enumerate(cells))
    return frame_of(folder, "z,a\n" + quoted)["a"]


def read_to_the_bit(path: str) -> pd.DataFrame:
    """Reads a csv file; pandas 2 is a bit off unless it is asked, and pandas 3 warns if it is."""
    if pd.__version__ >= "3":
        return pd.read_csv(path)
    return pd.read_csv(path, float_precision="round_trip")
