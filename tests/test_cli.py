"""The command line: what it writes, what it says, and its exit status."""

import csv
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae import cli
from pyro_vae.cli import COMMANDS, main
from pyro_vae.data.sets import SETS
from pyro_vae.training.callbacks import Journal
from tests.helpers.texts import read_to_the_bit

TINY = ["--epochs", "2", "--hidden", "8", "--quiet"]


def status(arguments: list[str]) -> int | str | None:
    """Exit status of a command that ends early: a number, or the message on standard error."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


@pytest.fixture
def measurements(tmp_path: Path) -> Path:
    """A small table of numbers with a header, far from standardized."""
    path = tmp_path / "measurements.csv"
    values = np.random.default_rng(0).normal([100.0, -3.0, 0.0], [20.0, 0.1, 1.0], size=(40, 3))
    np.savetxt(path, values, delimiter=",", header="mass,shift,noise", comments="")
    return path


@pytest.mark.slow
def test_compare_writes_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One where every guide trains a model, one with the model fixed; and tells the command."""
    data = tmp_path / "ones.npy"
    np.save(data, (np.random.default_rng(0).random((40, 4)) > 0.5).astype(float))
    out = tmp_path / "results"
    arguments = ["compare", str(data), *TINY[:-1], "--samples", "40", "--out", str(out)]
    arguments += ["--guides", "amortized,global"]
    main(arguments)
    printed = capsys.readouterr().out
    assert "Every guide with its own model" in printed
    assert "The model trained with 'amortized', fixed" in printed
    for folder in (out, out / "fixed_model"):
        with (folder / "table.csv").open() as file:
            names = [row["guide"] for row in csv.DictReader(file)]
        assert names == ["amortized", "global"]
    assert f"--out {out}" in (out / "run.json").read_text()
    main(["evaluate", str(out / "models" / "global"), "--samples", "40", "--quiet"])


def test_fit_evaluate_sample(tmp_path: Path, measurements: Path) -> None:
    """A saved model evaluates and samples in the units of the data."""
    model, results = tmp_path / "model", tmp_path / "results"
    main(["fit", str(measurements), *TINY, "--out", str(model)])
    main(["evaluate", str(model), "--samples", "40", "--quiet", "--out", str(results)])
    with (results / "log_p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8  # a fifth of 40 is held out
    assert all(float(row["log_p_error"]) >= 0 for row in rows)
    main(["evaluate", str(model), str(measurements), "--samples", "40", "--quiet"])
    draws = tmp_path / "draws.npy"
    main(["sample", str(model), "-n", "500", "--out", str(draws), "--quiet"])
    values = np.load(draws)
    assert values.shape == (500, 3)
    # Hardly trained, but standardized: within ten standard deviations of columns of that scale.
    assert np.all(np.abs(values.mean(axis=0) - [100.0, -3.0, 0.0]) < [200.0, 1.0, 10.0])


@pytest.mark.usefixtures("answers_interrupts")
def test_an_interrupt_before_the_first_epoch_writes_nothing(
    tmp_path: Path, measurements: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older model stays; the exit status is that of an interrupt."""
    monkeypatch.setattr(Journal, "on_step", lambda *_: signal.raise_signal(signal.SIGINT))
    (tmp_path / "model").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["fit", str(measurements), *TINY, "--out", str(tmp_path / "model")])
    assert ended.value.code == 130
    assert not list((tmp_path / "model").iterdir())


def test_grey_levels_are_drawn_as_the_file_has_them(tmp_path: Path) -> None:
    """Divided for the model, multiplied for a person: bytes in, bytes out."""
    pixels, model, draws = (str(tmp_path / name) for name in ("p.npy", "model", "draws.npy"))
    np.save(pixels, np.random.default_rng(0).integers(0, 256, (40, 4), dtype=np.uint8))
    main(["fit", pixels, *TINY, "--divide-by", "255", "--out", model])
    main(["sample", model, "-n", "200", "--out", draws, "--quiet"])
    assert 100 < np.load(draws).mean() < 155
    page, few = tmp_path / "report.html", ["--samples", "20", "--reference", "20", "--quiet"]
    main(["report", model, pixels, *few, "--out", str(page)])
    assert "was trained on 32 of these 40 rows" in page.read_text()


def test_holes_of_arrays_are_filled_in(tmp_path: Path) -> None:
    """Columns without names have positions, in the options and in the results."""
    y = np.random.default_rng(0).normal(size=(40, 4))
    y[3, 1] = y[10, 2] = np.nan
    path, model, out = (str(tmp_path / name) for name in ("y.npy", "model", "filled.csv"))
    np.save(path, y)
    main(["fit", path, *TINY, "--drop", "0", "--out", model])
    main(["impute", model, path, "--draws", "10", "--out", out, "--quiet"])
    filled = read_to_the_bit(out).to_numpy()
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[~np.isnan(y)], y[~np.isnan(y)])
    entries = pd.read_csv(tmp_path / "filled_entries.csv")
    assert entries[["row", "column"]].to_numpy().tolist() == [[3, 1], [10, 2]]
    np.testing.assert_array_equal(entries["0"], y[[3, 10], 0])


def test_holes_of_dropped_columns_are_empty_cells(tmp_path: Path) -> None:
    """Also those of whole numbers, which pandas calls NA."""
    y = np.random.default_rng(0).normal(size=(40, 2))
    visit = pd.array([None, *range(39)], dtype="Int64")
    path, model, out = (str(tmp_path / name) for name in ("y.parquet", "model", "places.csv"))
    pd.DataFrame({"visit": visit, "a": y[:, 0], "b": y[:, 1]}).to_parquet(path)
    main(["fit", path, *TINY, "--drop", "visit", "--out", model])
    main(["embed", model, path, "--out", out, "--quiet"])
    cells = pd.read_csv(out, dtype=str, keep_default_na=False)["visit"]
    assert cells.tolist() == ["", *map(str, range(39))]


def test_per_datum_model_is_evaluated_afresh(tmp_path: Path, measurements: Path) -> None:
    """Held-out rows have no row in the saved table; they are fitted."""
    model = tmp_path / "model"
    main(["fit", str(measurements), *TINY, "--guide", "per-datum", "--out", str(model)])
    main(["evaluate", str(model), "--samples", "40", "--quiet"])


@pytest.mark.parametrize("command", ["compare", "fit", "evaluate", "sample"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command has examples in its help, and help is no error."""
    assert status([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"pyro-vae {command}" in printed
    assert "examples:" in printed


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    """What a user can mend ends with a message and status 1; wrong usage with status 2."""
    assert "one of the data sets squares" in str(status(["compare", "nothing-here", *TINY]))
    data = tmp_path / "bytes.npy"
    np.save(data, np.random.default_rng(0).integers(0, 256, size=(40, 4)).astype(float))
    message = str(status(["fit", str(data), *TINY, "--likelihood", "bernoulli"]))
    assert "divide by 255" in message
    assert "\n" not in message
    assert status(["compare", "digits", "--guides", "none"]) == 2
    assert status(["fit", "digits", "--epochs", "0"]) == 2
    assert status([]) == 2


@pytest.mark.parametrize(("package", "extra"), [("matplotlib", "plot"), ("h5netcdf", "netcdf")])
def test_a_missing_extra_is_named_before_training(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained for a comparison that could not be saved."""
    for blocked in (package, "netCDF4"):  # one of two packages for NetCDF is enough
        monkeypatch.setitem(sys.modules, blocked, None)
    message = str(status(["compare", "squares", "--out", str(tmp_path / "results"), *TINY]))
    assert f"pip install 'pyro-vae[{extra}]'" in message
    assert not (tmp_path / "results").exists()


def test_module_is_the_command() -> None:
    """`python -m pyro_vae --help` works as a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "pyro_vae", "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "compare" in result.stdout


MIXED = """site,depth,count,wet,grade
north,1.5,0,yes,low
south,2.5,3,no,mid
north,,1,yes,high
south,4.5,,no,low
east,5.0,2,yes,mid
north,0.5,0,,high
east,3.5,1,no,
,2.0,4,yes,low
"""
"""Columns of several kinds, each with a hole."""


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A small file of them."""
    path = tmp_path / "mixed.csv"
    header, *rows = MIXED.splitlines()
    path.write_text("\n".join([header, *(rows * 5)]) + "\n")
    return path


def content(folder: Path) -> dict[str, bytes]:
    """What the files of a model hold, but for the line that tells the command."""
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("guide", ["amortized", "per-datum", "global"])
def test_the_seed_fixes_everything(guide: str, tmp_path: Path, mixed: Path) -> None:
    """The same seed gives identical files, wherever torch's own stream stands; another does not."""
    saved: dict[str, dict[str, bytes]] = {}
    for name, seed in (("one", "7"), ("again", "7"), ("other", "8")):
        torch.rand(len(saved) + 1)
        given = [*TINY, "--guide", guide, "--seed", seed, "--out", str(tmp_path / name)]
        main(["fit", str(mixed), *given])
        saved[name] = content(tmp_path / name)
    assert saved["one"]
    assert saved["one"] == saved["again"]
    assert saved["one"].keys() == saved["other"].keys()
    assert all(saved["one"][file] != saved["other"][file] for file in saved["one"])


def test_columns_are_matched_by_name(
    tmp_path: Path, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows to be evaluated may have their columns in any order, and no others."""
    model, path = str(tmp_path / "model"), tmp_path / "new.csv"
    main(["fit", str(mixed), *TINY, "--out", model])
    frame = pd.read_csv(mixed)
    how = ["--samples", "20", "--quiet", "--out", str(tmp_path)]
    found = []
    for columns in (list(frame), list(frame)[::-1]):
        frame[columns].to_csv(path, index=False)
        main(["evaluate", model, str(path), *how])
        found.append((tmp_path / "log_p.csv").read_text())
    assert found[0] == found[1]
    assert len(found[0].splitlines()) == len(frame) + 1
    for other, message in {
        "depth": "has no column 'depth', but must have the 5 columns 'site', 'depth', ",
        "height": "has no column 'depth' and has column 'height', which the training",
    }.items():
        changed = frame.drop(columns="depth") if other == "depth" else frame
        changed.rename(columns={"depth": other}).to_csv(path, index=False)
        assert message in str(status(["evaluate", model, str(path), *how]))
    frame.assign(extra=1.5).to_csv(path, index=False)
    refused = str(status(["evaluate", model, str(path), *how]))
    assert "has column 'extra', which the training rows did not have" in refused
    assert "drop other columns" in refused
    frame.to_csv(path, index=False, header=False)
    assert "has no column 'site', " in str(status(["evaluate", model, str(path), *how]))
    assert "taken for" not in capsys.readouterr().err


def test_results_replace_no_file_of_rows(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the rows that are asked about, nor those that were trained on, however written."""
    monkeypatch.chdir(tmp_path)
    Path("rows_entries.csv").write_text(mixed.read_text())
    Path("new.csv").symlink_to("rows_entries.csv")
    main(["fit", mixed.name, *TINY, "--out", "model"])
    before = mixed.read_text()
    for command in ("embed", "outliers", "impute"):
        for data, out in ((mixed.name, f"./{mixed.name}"), ("new.csv", "rows_entries.csv")):
            refused = str(status([command, "model", data, "--out", out, "--quiet"]))
            assert "holds the rows, and the results would replace this file" in refused
        assert "holds the rows" in str(status([command, "model", "new.csv", "--out", str(mixed)]))
    assert "rows_entries.csv' holds" in str(
        status(["impute", "model", "new.csv", "--out", "rows.csv"])
    )
    assert Path("rows_entries.csv").read_text() == mixed.read_text() == before


def test_columns_called_like_results_are_kept(tmp_path: Path, mixed: Path) -> None:
    """Columns that identify rows keep their entries, and results keep their names."""
    frame = pd.read_csv(mixed)
    own = ["row", "log_p", "column", "z[0]", "p_value"]
    for place, name in enumerate(own):
        frame[name] = [f"{name} {place}{row}" for row in range(len(frame))]
    frame.loc[1, "depth"] = None
    path, model = tmp_path / "named.csv", str(tmp_path / "model")
    frame.to_csv(path, index=False)
    main(["fit", str(path), *TINY, "--drop", ",".join(own), "--latents", "2", "--out", model])
    asked = [model, str(path), "--quiet", "--out"]
    main(["embed", *asked, str(tmp_path / "embed.csv")])
    main(["evaluate", *asked, str(tmp_path), "--samples", "20"])
    main(["outliers", *asked, str(tmp_path / "outliers.csv"), "--reference", "20"])
    main(["impute", *asked, str(tmp_path / "impute.csv"), "--draws", "10"])
    results = {
        "embed": {"row", "z[0]"},
        "log_p": {"row", "log_p"},
        "outliers": {"row", "log_p", "p_value"},
        "impute_entries": {"row", "column"},
    }
    for file, taken in results.items():
        found = pd.read_csv(tmp_path / f"{file}.csv")
        for name in own:
            kept = found[f"{name} (table)" if name in taken else name]
            assert list(kept) == list(frame[name].iloc[found["row"]]), (file, name)
        assert not {name for name in taken if found[name].equals(found[f"{name} (table)"])}
    assert pd.read_csv(tmp_path / "log_p.csv")["log_p"].dtype == float
    verdicts = [pd.read_csv(tmp_path / f"{file}.csv") for file in ("log_p", "outliers")]
    assert {str(found["reliable"].dtype) for found in verdicts} == {"bool"}  # True, not 1
    assert all((found["why_not"].isna() == found["reliable"]).all() for found in verdicts)
    assert verdicts[1]["flagged"].dtype == bool


EXAMPLES = [
    line.split("   ")[0].strip()
    for *_, text in COMMANDS.values()
    for line in text.splitlines()
    if line.startswith("  pyro-vae ")
]


def shortened(example: str) -> list[str]:
    """The words of an example, on a mixed table in place of a set, with little work to do."""
    words = shlex.split(example)[1:]
    words = ["patients.csv" if word in SETS else word for word in words]
    known = cli.parser().parse_args(words)
    tiny = {"epochs": "1", "hidden": "4", "samples": "20"}
    return [*words, "--quiet", *(f"--{k}={v}" for k, v in tiny.items() if hasattr(known, k))]


@pytest.fixture
def _files(tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the files that examples name, and a model."""
    monkeypatch.chdir(tmp_path)
    header, *rows = mixed.read_text().splitlines()
    visits = [f"{i},{i % 3},{row}" for i, row in enumerate(rows)]
    Path("patients.csv").write_text("\n".join([f"id,visits,{header}", *visits]) + "\n")
    for name in ("measurements.csv", "new.csv"):
        Path(name).write_text(mixed.read_text())
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4), dtype=np.uint8)
    np.save("pixels.npy", pixels)
    main(["fit", "measurements.csv", *TINY, "--out", "model"])


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize(
    "example",
    [
        pytest.param(line, marks=pytest.mark.slow if " compare " in line else ())
        for line in EXAMPLES
    ],
)
def test_examples_of_the_help_run_on_a_mixed_table(
    example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With names of rows dropped where the example does not do so itself."""
    words = shortened(example)
    if "patients.csv" in words and "--drop" not in words and words[0] != "describe":
        assert "column 'id' counts the rows" in str(status(words))
        words += ["--drop", "id"]
    main(words)
    out = words[words.index("--out") + 1] if "--out" in words else None
    assert out is None or Path(out).exists()
    assert out is None or not (Path(out) / "reconstructions.png").exists(), "of unlike columns"
    if words[0] == "describe":
        assert "depth" in capsys.readouterr().out


def test_every_command_has_examples() -> None:
    """The test above follows them all."""
    assert {shlex.split(line)[1] for line in EXAMPLES} == set(COMMANDS)
