"""Each option of each command reaches the argument that it is for."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from pyro_vae import cli
from pyro_vae.cli import main, training
from pyro_vae.data import FixedDraw, Grey, Layout, Real, Redrawn
from pyro_vae.likelihoods import Bernoulli, Gaussian
from pyro_vae.objectives import BetaELBO, LinearWarmup
from pyro_vae.training import Fit, History


class Reached(Exception):
    """A planted value arrived."""


def arrival(monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[str]) -> dict[str, Any]:
    """What a function of the command line is called with: by its position, or its name."""

    def caught(*given: Any, **named: Any) -> NoReturn:
        seen.update({str(place): value for place, value in enumerate(given)}, **named)
        raise Reached

    seen: dict[str, Any] = {}
    monkeypatch.setattr(f"pyro_vae.{name}", caught)
    with pytest.raises(Reached):
        main(arguments)
    return seen


LOADED: dict[str, tuple[list[str], str, Any]] = {
    "data": (["x.csv"], "0", "x.csv"),
    "--binarize": (["x", "--binarize", "fixed"], "binarization", FixedDraw()),
    "--divide-by": (["x", "--divide-by", "7"], "divide_by", 7.0),
    "--key": (["x", "--key", "rows"], "key", "rows"),
    "--test-fraction": (["x", "--test-fraction", "0.37"], "test_fraction", 0.37),
    "--drop": (["x", "--drop", "id,when"], "drop", ("id", "when")),
    "--kinds": (["x", "--kinds", "age=Real"], "kinds", {"age": Real}),
    "--missing": (["x", "--missing=-9,x"], "layout", Layout(missing=("-9", "x"))),
    "--sep": (["x", "--sep", "~"], "layout", Layout(separator="~")),
    "--header": (["x", "--no-header"], "layout", Layout(header=False)),
    "--seed": (["x", "--seed", "31"], "seed", 31),
    "--likelihood": (["x", "--likelihood", "bernoulli"], "binarization", Grey()),
}
"""Options of data: what is typed, and which argument of `data.load` has which value then."""


@pytest.mark.parametrize("command", ["fit", "compare"])
@pytest.mark.parametrize("option", LOADED)
def test_options_of_data(option: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They arrive where data are loaded."""
    typed, argument, value = LOADED[option]
    assert arrival(monkeypatch, "data.load", [command, *typed])[argument] == value


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    """A table of numbers, and of holes in none."""
    path = tmp_path / "numbers.csv"
    values = np.random.default_rng(0).normal(100.0, 5.0, size=(40, 3))
    np.savetxt(path, values, delimiter=",", header="a,b,c", comments="")
    return str(path)


TRAINED: dict[str, tuple[list[str], str, Any]] = {
    "--epochs": (["--epochs", "17"], "num_epochs", 17),
    "--batch-size": (["--batch-size", "19"], "batch_size", 19),
    "--warmup": (["--warmup", "5"], "objective", BetaELBO(LinearWarmup(5))),
    "--seed": (["--seed", "31"], "seed", 31),
    "--quiet": (["--quiet"], "progress", False),
}
"""Options of training: what is typed, and which argument of `fit` and `compare` it becomes."""


@pytest.mark.parametrize("command", ["fit", "compare"])
@pytest.mark.parametrize("option", TRAINED)
def test_options_of_training(
    option: str, command: str, numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They arrive where a model is trained."""
    typed, argument, value = TRAINED[option]
    assert (
        arrival(monkeypatch, f"cli.training.{command}", [command, numbers, *typed])[argument]
        == value
    )


@pytest.mark.parametrize(("command", "folder"), [("fit", "kept"), ("compare", "kept/every_model")])
def test_where_the_state_is_kept(
    command: str, folder: str, numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder of `--resume`, or in a part of it."""
    seen = arrival(monkeypatch, f"cli.training.{command}", [command, numbers, "--resume", "kept"])
    assert seen["checkpoint"] == Path(folder)


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_options_of_the_model(command: str, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes, likelihood and learning rate, in the model that is trained."""
    typed = ["--latents", "3", "--hidden", "7,5", "--lr", "0.125", "--likelihood", "gaussian"]
    seen = arrival(
        monkeypatch, f"cli.training.{command}", [command, numbers, *typed, "--sigma", "0.75"]
    )
    model = seen["0"]
    assert model.latent_dim == 3
    assert model.decoder.hidden == (5, 7)
    assert isinstance(model.likelihood, Gaussian)
    assert model.likelihood.sigma.sigma == 0.75
    optimizer = seen["optimizer"]([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == 0.125
    bits = Path(numbers).with_name("bits.npy")
    np.save(bits, np.random.default_rng(0).integers(0, 2, (40, 3)))
    given = [command, str(bits), "--likelihood", "bernoulli", "--binarize", "redrawn"]
    seen = arrival(monkeypatch, f"cli.training.{command}", given)
    assert isinstance(seen["0"].likelihood, Bernoulli)
    assert seen["2"].augment == Redrawn()


def weights(seen: Mapping[str, Any]) -> torch.Tensor:
    """All weights of the model that would be trained."""
    return torch.cat([weight.detach().flatten() for weight in seen["0"].parameters()])


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_the_seed_is_that_of_the_weights(
    command: str, numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds start from two models, one from one."""
    one, two, again = (
        weights(arrival(monkeypatch, f"cli.training.{command}", [command, numbers, "--seed", seed]))
        for seed in ("1", "2", "1")
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_guides_and_samples_of_a_comparison(
    numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which guides, how many samples, where to, and whether the model is fixed then."""
    seen = arrival(
        monkeypatch,
        "cli.training.compare",
        ["compare", numbers, "--guides", "global", "--samples", "321"],
    )
    assert list(seen["1"]) == ["global"]
    assert seen["evaluation"].num_samples == 321
    calls: list[Any] = []
    results = {"global": SimpleNamespace(model=None)}
    table = SimpleNamespace(
        results=results, summary=str, save=lambda out, fixed=None: calls.append((out, fixed))
    )

    def compared(*_: Any, train_model: bool = True, **__: Any) -> Any:
        calls.append(train_model)
        return table

    monkeypatch.setattr(training, "compare", compared)
    monkeypatch.setattr(training, "title_of", str)
    monkeypatch.setattr(training, "_interrupted", lambda _: False)
    main(["compare", numbers, "--no-fixed", "--quiet"])
    assert calls == [True]
    calls.clear()
    main(["compare", numbers, "--quiet", "--out", str(tmp_path / "r")])
    out = tmp_path / "r"
    assert calls == [True, (out, None), False, (out, table)]


def test_options_of_a_fit(numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which guide, and where it is saved."""
    seen = arrival(monkeypatch, "cli.training.fit", ["fit", numbers, "--guide", "global"])
    assert type(seen["1"].map).__name__ == "GlobalParameters"
    monkeypatch.undo()
    fitted = Fit(History(*[np.ones(1)] * 8), "finished", 1, 0, ())
    monkeypatch.setattr(training, "fit", lambda *_, **__: fitted)
    out = tmp_path / "saved"
    seen = arrival(monkeypatch, "storage.save", ["fit", numbers, "--quiet", "--out", str(out)])
    assert seen["0"] == out


@pytest.fixture
def saved(numbers: str, tmp_path: Path) -> str:
    """A model that was hardly trained."""
    out = str(tmp_path / "saved")
    main(["fit", numbers, "--epochs", "1", "--hidden", "4", "--quiet", "--out", out])
    return out


def test_options_of_an_evaluation(
    saved: str, numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which data, how many samples, which seed; and where the rows are written."""
    typed = ["evaluate", saved, numbers, "--samples", "321", "--seed", "31", "--quiet"]
    seen = arrival(monkeypatch, "tables.evaluate", typed)
    assert len(seen["2"]) == 40
    assert seen["3"].num_samples == 321
    assert (seen["seed"], seen["progress"]) == (31, False)
    assert len(arrival(monkeypatch, "tables.evaluate", ["evaluate", saved])["2"]) == 8
    monkeypatch.undo()
    main(["evaluate", saved, "--samples", "20", "--quiet", "--out", str(tmp_path / "rows")])
    assert (tmp_path / "rows" / "log_p.csv").is_file()


def test_rows_that_cannot_be_trusted_are_evaluated_anew(
    saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the option is not given, it is named; no estimate of fewer than 30 draws is trusted."""
    typed = ["evaluate", saved, "--samples", "20"]
    main(typed)
    assert "the option --tightest fits better proposals" in capsys.readouterr().out
    main([*typed[:-1], "500", "--tightest", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "all 8 data can be trusted" in said
    assert "--tightest" not in said
    assert "rung" in (tmp_path / "log_p.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("command", "called", "more"),
    [
        ("embed", "encode", {}),
        ("impute", "impute", {"--draws": ("17", "3", 17)}),
        ("outliers", "outliers", {"--reference": ("19", "3", 19)}),
        ("explain", "explain", {}),
    ],
)
def test_options_of_questions(
    command: str,
    called: str,
    more: Mapping[str, Any],
    saved: str,
    numbers: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which rows, which seed, how many draws, and how they are shown."""
    typed = [command, saved, numbers, "--seed", "31", "--quiet"]
    typed += [word for flag, (value, *_) in more.items() for word in (flag, value)]
    seen = arrival(monkeypatch, f"tables.{called}", typed)
    assert len(seen["2"]) == 40
    assert seen["seed"] == 31
    assert all(seen[place] == value for _, place, value in more.values())
    assert seen.get("progress", False) is False
    assert len(arrival(monkeypatch, f"tables.{called}", [command, saved])["2"]) == 8


def test_options_of_files(
    saved: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results go where they are told to, and places that cannot hold them are refused before."""
    out = tmp_path / "new" / "out.csv"
    monkeypatch.setattr(
        "pyro_vae.cli.questions._page",
        lambda about, *given: SimpleNamespace(html=lambda: f"{len(about.rows)}, {given[1]}"),
    )
    page = tmp_path / "page.html"
    main(["report", saved, "--samples", "19", "--reference", "17", "--out", str(page)])
    assert page.read_text().startswith("8, ReportChoice(samples=19, reference=17")
    with pytest.raises(SystemExit, match="file of results must have a name"):
        main(["report", saved, "--out", "page.pdf"])
    every = {"embed": [], "impute": [], "outliers": ["--reference", "40"], "explain": []}
    for command, more in every.items():
        main([command, saved, *more, "--out", str(out)])
        assert f"wrote {out}" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="file of results must have a name"):
            main([command, saved, "--out", "results.doc"])
    more = ["--reference", "40", "--out", str(out), "--false-discoveries"]
    main(["outliers", saved, *more, "0.25"])
    assert "a false-discovery rate of 0.25" in capsys.readouterr().out


def test_a_data_set_of_the_library_is_not_refused_for_options_of_the_training_data(
    numbers: str, tmp_path: Path
) -> None:
    """The columns of the model are named; the message had been to leave out `drop`."""
    model = str(tmp_path / "model")
    main(["fit", numbers, "--drop", "a", "--epochs", "1", "--quiet", "--out", model])
    with pytest.raises(SystemExit, match=r"must have the 2 columns 'b', 'c'.*pass a data frame"):
        main(["evaluate", model, "digits"])


def test_draws_of_an_array_are_not_said_to_have_names(tmp_path: Path) -> None:
    """The columns of an npy file have none."""
    rows, model = str(tmp_path / "rows.npy"), str(tmp_path / "model")
    np.save(rows, np.random.default_rng(0).normal(size=(20, 2)))
    main(["fit", rows, "--epochs", "1", "--hidden", "4", "--quiet", "--out", model])
    with pytest.raises(SystemExit, match=r"^pyro-vae: the file of draws must .* \.npy or \.csv"):
        main(["sample", model, "--out", str(tmp_path / "draws.parquet")])


def test_options_of_draws(saved: str, tmp_path: Path) -> None:
    """How many, from which seed, and where to."""
    draws = {}
    for name, seed in {"one": "1", "two": "2", "again": "1"}.items():
        out = tmp_path / f"{name}.npy"
        main(["sample", saved, "-n", "13", "--seed", seed, "--out", str(out), "--quiet"])
        draws[name] = np.load(out)
    assert draws["one"].shape == (13, 3)
    np.testing.assert_array_equal(draws["one"], draws["again"])
    assert not np.array_equal(draws["one"], draws["two"])


def test_options_of_a_description(
    numbers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns that are dropped, and kinds that are said."""
    main(["describe", numbers, "--drop", "a", "--kinds", "b=Real"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["b", "c"]
    assert "as declared" in lines[0]
    seen = arrival(
        monkeypatch,
        "cli.training.table_of",
        ["describe", "x", "--sep", "tab", "--key", "k", "--missing=-9,x"],
    )
    assert (seen["1"], seen["2"]) == ("k", Layout(separator="\t", missing=("-9", "x")))


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_threads(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many while the command runs, as before afterwards."""
    before, seen = torch.get_num_threads(), []
    _, groups, *texts = cli.COMMANDS[command]

    def acted(*_: Any) -> None:
        seen.append(torch.get_num_threads())

    monkeypatch.setitem(cli.COMMANDS, command, (acted, groups, *texts))
    main([command, "x", "--threads", str(before + 1)])
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "given",
    ["--out=", "--resume= ", "--sigma=-1", "--lr=nan", "--lr=x", "--warmup=-3", "--threads=99999"],
)
def test_values_that_no_option_takes(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Named with the option; an empty name was the current folder, and many threads a crash."""
    with pytest.raises(SystemExit) as ended:
        main(["fit", "digits", given])
    name, _, value = given.partition("=")
    assert ended.value.code == 2
    assert re.search(
        rf"argument {name}: the .* must be .*; got '?{value}'?", capsys.readouterr().err
    )


def test_two_kinds_of_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    """The first had been forgotten; the same kind twice does no harm."""
    with pytest.raises(SystemExit):
        main(["fit", "x.csv", "--kinds", "a=Count,b=Real,a=Real"])
    assert "each column must have one kind; got a=Count,b=Real,a=Real" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="does not exist"):
        main(["fit", "x.csv", "--kinds", "a=Count,a=Count"])


@pytest.mark.parametrize("likelihood", ["auto", "bernoulli"])
def test_an_option_without_effect(likelihood: str) -> None:
    """A standard deviation that no likelihood uses had been ignored."""
    told = f"--sigma 0.5 with --likelihood {likelihood}: use --likelihood gaussian"
    with pytest.raises(SystemExit, match=told):
        main(["fit", "digits", "--sigma", "0.5", "--likelihood", likelihood])


LISTENED = {
    "fit": {
        *LOADED,
        *TRAINED,
        "--resume",
        "--latents",
        "--hidden",
        "--lr",
        "--sigma",
        "--guide",
        "--out",
    },
    "compare": {
        *(*LOADED, *TRAINED, "--resume", "--latents", "--hidden", "--lr", "--sigma", "--guides"),
        *("--samples", "--no-fixed", "--out"),
    },
    "evaluate": {"folder", "data", "--samples", "--tightest", "--seed", "--quiet", "--out"},
    "embed": {"folder", "data", "--seed", "--quiet", "--out"},
    "impute": {"folder", "data", "--draws", "--seed", "--quiet", "--out"},
    "outliers": {
        *("folder", "data", "--reference", "--false-discoveries", "--seed", "--quiet", "--out"),
    },
    "explain": {"folder", "data", "--seed", "--quiet", "--out"},
    "report": {
        *("folder", "data", "--samples", "--reference", "--seed", "--quiet", "--out"),
    },
    "sample": {"folder", "-n", "--seed", "--quiet", "--out"},
    "describe": {*LOADED} - {"--likelihood"} | {"--quiet"},
}
"""What the tests of this file follow, by command; `--threads` of all of them."""


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_option_is_followed(command: str) -> None:
    """A new option needs a line here, and a test that says where it arrives."""
    (subparsers,) = (
        action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    options = {
        action.option_strings[0] if action.option_strings else action.dest
        for action in subparsers.choices[command]._actions
    }
    assert options - {"-h", "--threads"} == LISTENED[command]


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_a_place_is_refused_before_training(
    command: str, numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a place below one, and a folder with other files, which stay as they are."""
    monkeypatch.setattr(training, command, lambda *_, **__: pytest.fail("it was trained"))
    notes = tmp_path / "other" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("precious")
    for place in (notes, notes / "below", notes.parent):
        with pytest.raises(SystemExit):
            main([command, numbers, "--quiet", "--out", str(place)])
    assert notes.read_text() == "precious"
