"""What the command line writes, and what it keeps although nobody can read what it prints."""

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import pyro_vae as pv
from pyro_vae.cli import main, training
from pyro_vae.training import Fit, History
from tests.helpers.texts import read_to_the_bit

TINY = ["--epochs", "1", "--hidden", "4", "--quiet"]
FIT = Fit(History(*[np.ones(1)] * 8), "finished", 1, 0, ())
RANDOM = np.random.default_rng(0)
NUMBERS = pd.DataFrame(RANDOM.normal([5.0, 100.0], [1.0, 20.0], (40, 2)), columns=["a", "b"])


def refusal(*words: str | Path) -> str:
    """What a command says on standard error when it is refused."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return str(ended.value.code)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes no time."""
    monkeypatch.setattr(training, "fit", lambda *_, **__: FIT)


def with_holes() -> pd.DataFrame:
    """Columns of every type, each with one hole, and names of rows."""
    frame = NUMBERS.assign(
        when=pd.date_range("2024-01-01", periods=40, freq="D")[RANDOM.permutation(40)],
        nullable=pd.array(np.arange(40) % 3 == 0, dtype="boolean"),
        plain=(np.arange(40) % 4 == 0).astype(object),
        site=np.array(["north", "south"])[np.arange(40) % 2],
        visits=pd.array(np.arange(40) % 5, dtype="Int64"),
        julian=2_460_000 + RANDOM.normal(0.0, 0.001, 40),
    )
    for place, name in enumerate(frame.columns):
        frame.loc[place, name] = None
    return frame.set_axis(pd.Index([f"p{row}" for row in range(40)], name="patient"))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_entries_of_every_type_are_filled_in(ending: str) -> None:
    """Dates are dates, booleans are booleans, numbers keep their digits, and rows their names."""
    frame = with_holes()
    frame.to_parquet("rows.parquet")
    main(["fit", "rows.parquet", *TINY, "--kinds", "when=Time", "--out", "model"])
    given = ["model", "rows.parquet", "--draws", "40", "--quiet", "--out", f"filled.{ending}"]
    main(["impute", *given])
    vae = pv.TableVAE.load("model")
    best = vae.impute(pd.read_parquet("rows.parquet"), 40, progress=False).completed()
    read = {"csv": read_to_the_bit, "parquet": pd.read_parquet}[ending]
    found = read(f"filled.{ending}")
    if ending == "csv":
        found = found.set_index("patient").astype({"when": "datetime64[ns]"})
    assert list(found.index) == list(frame.index)
    for place, name in enumerate(frame.columns):
        assert found[name].iloc[place] == best[name].iloc[place], name
        known = frame[name].notna()
        assert (found[name][known] == frame[name][known]).all(), name
    assert found["plain"].dtype == found["nullable"].dtype == bool
    assert abs(found["julian"].iloc[7] - 2_460_000) % 0.01 > 0, "not rounded to a tenth of a day"
    entries = read(f"filled_entries.{ending}")
    assert list(entries["column"]) == list(frame.columns)


@pytest.mark.usefixtures("untrained")
def test_draws_replace_no_file_of_rows() -> None:
    """Neither where they are told to, nor by the name that they have by default."""
    NUMBERS.to_csv("draws.csv", index=False)
    before = Path("draws.csv").read_text()
    main(["fit", "draws.csv", *TINY, "--out", "model"])
    for more in ([], ["--out", "./draws.csv"]):
        assert "holds the rows, and the results would replace" in refusal("sample", "model", *more)
    assert Path("draws.csv").read_text() == before
    main(["sample", "model", "--out", "other.csv", "--quiet"])


@pytest.mark.parametrize("command", ["fit", "compare"])
@pytest.mark.parametrize("state", ["results", "results/state", "./results/a/b"])
def test_a_state_within_the_results_is_refused_before_training(command: str, state: str) -> None:
    """Results replace their whole folder: with the state in it, they were refused after training.

    The folder that the refusal names is one that works.
    """
    NUMBERS.to_csv("rows.csv", index=False)
    told = refusal(command, "rows.csv", *TINY, "--out", "results", "--resume", state)
    assert "results' must be a folder for nothing but the results" in told
    remedy = told.rpartition("--resume '")[2].rstrip("'")
    assert remedy == "results-state"
    if command == "fit":
        main(["fit", "rows.csv", *TINY, "--out", "results", "--resume", remedy])
        assert pv.load("results").guide is not None


def test_a_name_that_is_no_text_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name is in another encoding: the command could not be noted after training."""
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it was trained"))
    name = os.fsdecode(b"gr\xf6\xdfe.csv")
    NUMBERS.to_csv(name, index=False)
    assert "pyro_vae cannot write `about['command']` as JSON" in refusal(
        "fit", name, *TINY, "--out", "model"
    )


@pytest.mark.parametrize("notes", ["three coins", {"folder": "x"}, ["digits"]])
def test_models_with_notes_of_their_own(notes: Any) -> None:
    """Their notes may have the names of ours; such models are asked in Python."""
    pv.TableVAE.of(NUMBERS).save("model", about={"data": notes})
    for command in ("embed", "evaluate", "sample"):
        assert "call pv.TableVAE.load in Python" in refusal(command, "model")


class Gone(io.TextIOWrapper):
    """An output whose reader has left."""

    def __init__(self, path: str, reason: int) -> None:
        super().__init__(open(path, "wb"), "utf-8", write_through=True)  # noqa: SIM115
        self.reason = reason

    def write(self, text: str) -> int:
        """Fails as long as the output is not replaced."""
        if os.path.samestat(os.fstat(self.fileno()), os.stat(os.devnull)):
            return len(text)
        raise OSError(self.reason, os.strerror(self.reason))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("reason", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_results_are_saved_though_nobody_reads(
    reason: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as `pyro-vae fit ... | head -1`, or a terminal that was closed meanwhile."""
    NUMBERS.to_csv("rows.csv", index=False)
    with Gone("out", reason) as gone, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", gone)
        main(["fit", "rows.csv", *TINY[:-1], "--out", "model"])
    assert pv.load("model").guide is not None


@pytest.mark.usefixtures("untrained")
def test_letters_that_the_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are escaped, and the results are saved."""
    NUMBERS.rename(columns={"a": "größe"}).to_csv("rows.csv", index=False)
    out = io.BytesIO()
    ascii_only = io.TextIOWrapper(out, "ascii", write_through=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", ascii_only)
        main(["fit", "rows.csv", *TINY[:-1], "--out", "model"])
    assert rb"gr\xf6\xdfe: Real" in out.getvalue()
    assert pv.load("model").guide is not None


def test_arrays_are_described_as_they_are_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    """As grey levels where these options say so; and all columns of an array are of one kind."""
    np.save("pixels.npy", RANDOM.integers(0, 256, (40, 3), dtype=np.uint8))
    main(["describe", "pixels.npy", "--divide-by", "255"])
    assert capsys.readouterr().out.startswith("pixels.npy: 32 training rows, 8 held out")
    counts = RANDOM.poisson(1.0, (40, 3)).astype(float)  # columns alone would be counts
    np.save("counts.npy", counts)
    for more in ([], ["--drop", "0"]):
        main(["describe", "counts.npy", *more])
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 3 - bool(more)
        assert all("Real" in line and "all columns of an array" in line for line in said)
    kinds = pv.data.load("counts.npy", drop=["0"]).columns
    assert repr(kinds) == "1: Real, 2: Real"


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("shape", [(3, 2), (1, 4), (4, 1)])
def test_images_without_a_name_for_them(shape: tuple[int, int]) -> None:
    """Data of several axes in an npy file keep their axes when a saved model is asked."""
    np.save("pixels.npy", RANDOM.random((20, *shape)))
    main(["fit", "pixels.npy", *TINY, "--out", "model"])
    for more, rows in (["pixels.npy"], 20), ([], 4):
        main(["evaluate", "model", *more, "--samples", "40", "--quiet", "--out", "."])
        assert len(pd.read_csv("log_p.csv")) == rows
    np.save("other.npy", RANDOM.random((20, 5)))
    told = refusal("evaluate", "model", "other.npy")
    assert f"must have the shape {shape}" in told
    assert told.endswith("pass rows of this shape")
    np.save("other.npy", RANDOM.random((20, shape[0] * shape[1])))
    told = refusal("evaluate", "model", "other.npy")
    assert told.endswith(f"pass y.reshape{(-1, *shape)}")


@pytest.mark.usefixtures("untrained")
def test_images_under_a_model_of_a_table() -> None:
    """The columns are named that a file should have."""
    NUMBERS.to_csv("rows.csv", index=False)
    main(["fit", "rows.csv", *TINY, "--out", "model"])
    np.save("pixels.npy", RANDOM.random((20, 3, 2)))
    told = refusal("embed", "model", "pixels.npy")
    assert "trained on a table with 2 columns, 'a', 'b', but 'pixels.npy' holds images" in told


@pytest.mark.usefixtures("untrained")
def test_a_rate_is_refused_before_the_rows_are_read() -> None:
    """After the search for outliers, it would have been for nothing."""
    NUMBERS.to_csv("rows.csv", index=False)
    main(["fit", "rows.csv", *TINY, "--out", "model"])
    told = refusal("outliers", "model", "missing.csv", "--false-discoveries", "2")
    assert "`rate` must be" in told


@pytest.mark.parametrize("command", ["embed", "impute"])
def test_a_missing_package_is_named_before_the_model_is_read(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, a matrix was imputed and its first file written before the error."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert "run `pip install 'pyro-vae[data]'`" in refusal(command, "missing")


@pytest.mark.usefixtures("untrained")
def test_a_report_on_new_rows_needs_no_training_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever that file is today: words in place of numbers, or not readable."""
    NUMBERS.to_csv("rows.csv", index=False)
    NUMBERS[:10].to_csv("new.csv", index=False)
    main(["fit", "rows.csv", *TINY, "--out", "model"])
    words = pd.DataFrame({"a": ["x", "y"] * 10, "b": ["u", "v"] * 10})
    given = ["report", "model", "new.csv", "--samples", "20", "--reference", "20", "--quiet"]
    words.to_csv("rows.csv", index=False)
    main([*given, "--out", "page.html"])
    assert Path("page.html").stat().st_size > 10_000


def test_new_rows_need_no_key_of_the_training_file() -> None:
    """`embed` has no --key: files with one array, or in other formats, are taken as they are."""
    x = NUMBERS.to_numpy()
    np.savez("both.npz", x=x, y=x[:, :1])
    main(["fit", "both.npz", "--key", "x", "--out", "model", *TINY])
    np.save("new.npy", x[:5])
    np.savez("one.npz", u=x[:5])
    np.savez("named.npz", x=x[:5], z=x)
    tables = []
    for name in ("new.npy", "one.npz", "named.npz"):
        main(["embed", "model", name, "--out", f"{name}.csv"])
        tables.append(Path(f"{name}.csv").read_text())
    assert tables[0] == tables[1] == tables[2]
    assert tables[0].count("\n") == 6
    np.savez("others.npz", u=x, v=x)
    assert "save the array under the name 'x'" in refusal("embed", "model", "others.npz")
    Path("both.npz").unlink()
    assert "name a file of rows as DATA" in refusal("evaluate", "model")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.parquet", "images.npy"])
def test_files_without_rows_are_named(name: str) -> None:
    """The command knows the file, so the refusal does."""
    empty = np.zeros((0, 4, 4) if name == "images.npy" else (0, 3))
    if name.endswith("parquet"):
        NUMBERS.head(0).to_parquet(name)
    else:
        (np.save if name.endswith("npy") else np.savez)(name, empty)
    for command in (["describe", name], ["fit", name, "--out", "model"]):
        assert f"'{name}' must have at least one row" in refusal(*command)
