"""Remedies for columns with odd names, typed as the messages say, in Python and in a shell."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.data import Categories, Columns, Count, Positive, Real, Time  # noqa: F401 (eval)
from pyro_vae.data.remedies import parts, typed

NAMES = ["visit date", "height, cm", 'the "id"', '"', "it's", "a=b", "100%", "Größe\n(cm)", "-x"]


@pytest.mark.parametrize("name", NAMES)
def test_names_survive_the_command_line(name: str) -> None:
    """A shell and the parser give back the names, alone, in a list, and before a kind."""
    (word,) = shlex.split(typed([name]))
    assert parts(word) == [name]
    (word,) = shlex.split(typed(["a", name, "b"]))
    assert parts(word) == ["a", name, "b"]
    (word,) = shlex.split(typed([name], "=Real"))
    assert parts(word) == [f"{name}=Real"]


@pytest.mark.parametrize("name", NAMES)
def test_remedies_as_they_are_typed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ways that a message offers change how the column is read."""
    path = tmp_path / "t.csv"
    frame = pd.DataFrame({name: 100 + np.arange(30), "x": np.linspace(0, 1, 30) ** 2})
    frame.to_csv(path, index=False)
    read = pv.data.read_frame(path)
    with pytest.raises(ValueError, match="counts the rows") as caught:
        Columns.of(read)
    said = str(caught.value)
    drop = re.search(r"(--drop.*?)\) or X\.drop\((.*?)\),", said, re.DOTALL)
    kinds = re.search(r"pass kinds=(\{.*?\}) \(command line: (--kinds.*)\)$", said, re.DOTALL)
    assert drop is not None
    assert kinds is not None
    assert list(eval(f"read.drop({drop[2]})")) == ["x"]
    assert Columns.of(read, eval(kinds[1])).names == (name, "x")
    for typed_by_hand, kind in ((drop[1], None), (kinds[2], "Real")):
        cli.main(["describe", str(path), *shlex.split(typed_by_hand)])
        printed = capsys.readouterr().out
        assert "refused" not in printed
        assert (kind is None) or "as declared" in printed
