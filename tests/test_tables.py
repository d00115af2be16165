"""A VAE of a table: the path of a new user, units, rows trained on, which latent does what."""

import csv
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from torch import nn

import pyro_vae as pv
from pyro_vae import queries, tables
from pyro_vae.cli import main
from pyro_vae.data import Column, Columns, from_frame
from pyro_vae.data.dataset import trained_on
from pyro_vae.data.raw_columns import Holds
from pyro_vae.storage.limits import MAX_HEADER
from pyro_vae.table_report import identifying
from tests.helpers.laboratory import laboratory

# The tables here have an outlier.
pytestmark = pytest.mark.filterwarnings("ignore:column .* such an outlier dominates")


@pytest.fixture(autouse=True)
def _figures() -> Iterator[None]:
    """None is left open."""
    yield
    pyplot.close("all")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table as a csv file, in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = Path("lab.csv")
    laboratory().to_csv(path, index=False)
    return path


def rows_of(path: str) -> list[dict[str, str]]:
    """Lines of a csv file."""
    with Path(path).open() as lines:
        return list(csv.DictReader(lines))


FIT = ["fit", "lab.csv", "--drop", "sample_id,date", "--epochs", "2", "--hidden", "8", "--quiet"]

COMMANDS = """\
fit lab.csv --drop sample_id,date --epochs 2 --hidden 8 --out model
embed model lab.csv
outliers model lab.csv --reference 60
impute model lab.csv --draws 20
explain model lab.csv --out effects.csv
report model lab.csv --samples 100 --reference 60
"""

PYTHON = """\
import pandas as pd, pyro_vae as pv
frame = pd.read_csv("lab.csv")
table = pv.data.load("lab.csv", drop=["sample_id"], kinds={"date": pv.data.Time})
lab = pv.TableVAE.of(table)
lab.fit(num_epochs=2, progress=False)
rows = frame.drop(columns="sample_id").set_index(frame["sample_id"])
embedding = lab.embed(rows)
outliers = lab.outliers(rows, 60, progress=False).to_dataframe()
imputation = lab.impute(rows, 20, progress=False)
explanation = lab.explain()
lab.report("report.html", rows, 100, 60, progress=False)
lab.save("model")
"""

SCIKIT = """\
import pandas as pd, pyro_vae as pv
frame = pd.read_csv("lab.csv")
rows = frame.drop(columns=["sample_id", "date"]).set_index(frame["sample_id"])
vae = pv.sklearn.VAE(max_epochs=2, hidden=(8,), random_state=0).fit(rows)
embedding = vae.transform(rows)
density = vae.score_samples(rows)
lab = vae.table_
outliers = lab.outliers(rows, 60, progress=False).to_dataframe()
imputation = lab.impute(rows, 20, progress=False)
explanation = lab.explain(rows)
lab.report("report.html", rows, 100, 60, progress=False)
"""

SECONDS = 60.0  # of a processor; 10 on a quiet one, and the rest for slow ones


def lines_of(script: str) -> list[str]:
    """Lines of a script."""
    return script.strip().splitlines()


def run_lines(script: str) -> dict[str, Any]:
    """The variables that a script leaves; refuses one that takes long."""
    begun, found = time.process_time(), dict[str, Any]()
    exec(script, found)
    assert time.process_time() - begun < SECONDS
    return found


def check_page(size: int) -> None:
    """The report leads with the answer, names the outlier, and counts doubted rows once."""
    page = Path("report.html").read_text()
    assert page.index("Information is carried by") < page.index("<nav")
    assert "S0003" in page
    led = re.search(rf"Log p cannot be trusted for (\d+) of {size} rows", page)
    told = re.search(r"; log p of (\d+) dat(?:a|um) cannot be trusted", page)
    assert (led and led[1]) == (told and told[1])


@pytest.mark.filterwarnings("ignore:The 'float_precision' argument is deprecated")
def test_the_path_of_a_new_user(file: Path) -> None:
    """Six commands: an embedding, p-values, a table without holes, latents explained, a page."""
    assert len(lines_of(COMMANDS)) <= 6
    begun = time.process_time()
    for line in lines_of(COMMANDS):
        main([*line.split(), "--quiet"])
    assert time.process_time() - begun < SECONDS
    frame = laboratory()
    for name in ("embedding.csv", "outliers.csv"):
        assert [row["sample_id"] for row in rows_of(name)] == list(frame["sample_id"])
        assert [row["date"] for row in rows_of(name)] == list(frame["date"])
    p_values = {row["sample_id"]: float(row["p_value"]) for row in rows_of("outliers.csv")}
    assert p_values["S0003"] <= 0.05  # of 60 rows it is the one that was planted
    filled = pd.read_csv("imputed.csv", float_precision="round_trip")  # the default since pandas 3
    assert list(filled) == list(frame)
    assert not filled.isna().any().any()
    known = frame.notna()
    pd.testing.assert_frame_equal(filled[known], frame[known], check_exact=True)
    entries = rows_of("imputed_entries.csv")
    assert len(entries) == int(frame.isna().sum().sum())
    assert all(float(row["low"]) <= float(row["high"]) for row in entries)
    check_page(len(frame))
    assert {row["column"] for row in rows_of("effects.csv")} == set(frame) - {"sample_id", "date"}
    check_new_files(laboratory(20).iloc[:, ::-1].drop(columns="date"))


def test_counts_are_filled_in_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16, and not 16.0 beside 13."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{'' if row % 9 == 0 else row % 5},{row % 7}.25" for row in range(40)]
    Path("t.csv").write_text("\n".join(["visits,size", *rows]))
    main(["fit", "t.csv", "--epochs", "1", "--out", "model", "--quiet"])
    main(["impute", "model", "t.csv", "--draws", "5", "--quiet"])
    assert all(row["visits"].isdigit() for row in rows_of("imputed.csv"))


def check_new_files(new: pd.DataFrame) -> None:
    """Columns of another file come in any order, without some that were dropped; none is added."""
    new.to_csv("new.csv", index=False)
    new.assign(extra=1.5).to_csv("extra.csv", index=False)
    new.drop(columns="m4").to_csv("fewer.csv", index=False)
    main(["embed", "model", "new.csv", "--out", "new_embedding.csv", "--quiet"])
    assert [row["sample_id"] for row in rows_of("new_embedding.csv")] == list(new["sample_id"])
    for command in ("evaluate", "embed", "impute", "outliers", "explain", "report"):
        with pytest.raises(
            SystemExit, match="has column 'extra', which the training rows did not have"
        ):
            main([command, "model", "extra.csv", "--quiet"])
        with pytest.raises(SystemExit, match="has no column 'm4'"):
            main([command, "model", "fewer.csv", "--quiet"])


@pytest.mark.filterwarnings("ignore:log p.* cannot be trusted", "ignore:the log density of")
def test_the_path_through_scikit_learn(file: Path) -> None:
    """Words, categories and holes in; the same object answers the other questions."""
    assert len(lines_of(SCIKIT)) <= 12
    found = run_lines(SCIKIT)
    rows, lab = found["rows"], found["lab"]
    np.testing.assert_allclose(lab.embed(rows), found["embedding"])
    assert set(lab.embed(rows)) == set(found["explanation"].latents)
    assert found["density"].shape == (len(rows),)
    assert found["outliers"]["tail_probability"][3] <= 0.05
    filled, known = found["imputation"].completed(), rows.notna()
    assert not filled.isna().any().any()
    filled.index = rows.index
    pd.testing.assert_frame_equal(filled[known], rows[known], rtol=1e-12, check_dtype=False)
    assert "nats" in found["explanation"].summary()
    check_page(len(rows))


@pytest.mark.slow
def test_twelve_lines_of_python(file: Path) -> None:
    """The same, with the date as a time, and saved."""
    assert len(lines_of(PYTHON)) <= 12
    found = run_lines(PYTHON)
    rows, embedding = found["rows"], found["embedding"]
    assert embedding.index.equals(rows.index)
    assert found["outliers"]["tail_probability"][3] <= 0.05
    filled, known = found["imputation"].completed(), rows.notna()
    assert filled["date"].tolist() == rows["date"].tolist()
    assert not filled.isna().any().any()
    filled.index = rows.index
    pd.testing.assert_frame_equal(filled[known], rows[known], rtol=1e-12, check_dtype=False)
    assert set(found["imputation"].entries()["column"]) <= set(rows)
    assert "nats" in found["explanation"].summary()
    check_page(len(rows))
    again = pv.TableVAE.load("model")
    pd.testing.assert_frame_equal(again.embed(rows[list(rows)[::-1]]), embedding)
    assert int(again.trained_on(rows).sum()) == len(found["table"].train)


@pytest.mark.parametrize("binarization", [None, pv.data.FixedDraw()], ids=repr)
def test_rows_of_arrays_that_were_trained_on_are_known(
    binarization: pv.data.Binarization | None, tmp_path: Path
) -> None:
    """As they were before they were standardized, or binarized."""
    y = np.random.default_rng(0).random((30, 4))
    np.save(tmp_path / "y.npy", y)
    dataset = pv.data.load(tmp_path / "y.npy", divide_by=2, binarization=binarization)
    vae = pv.TableVAE.of(dataset if binarization else dataset.standardized())
    assert int(vae.trained_on(y / 2).sum()) == len(dataset.train)


@pytest.mark.parametrize("guide", pv.defaults.GUIDES)
def test_rows_that_are_binarized_anew_are_binary(guide: str) -> None:
    """In every batch of training, and once where a model is evaluated or explained."""
    seen = []

    class Watched(pv.data.Redrawn):
        def __call__(self, y: torch.Tensor) -> torch.Tensor:
            seen.append(super().__call__(y))
            return seen[-1]

    y = torch.rand(60, 4)
    dataset = pv.data.Dataset("grey", y[:40], y[40:], binarization=Watched())
    sizes = pv.defaults.Architecture(likelihood=pv.likelihoods.Bernoulli())
    vae = pv.TableVAE.of(dataset, sizes, guide=guide, validation_fraction=0.2)
    vae.fit(num_epochs=1, compile=False, progress=False)
    assert seen
    explained, _ = vae._explored(None, 0)
    rows = [*seen, vae.rows(), explained, *([] if vae.validation is None else [vae.validation])]
    assert all(bool(((x == 0) | (x == 1)).all()) for x in rows)


@pytest.mark.filterwarnings("ignore:log p.* cannot be trusted")
def test_held_out_rows_that_equal_training_rows_were_not_trained_on(tmp_path: Path) -> None:
    """A page on held-out rows does not warn of them."""
    frame = pd.DataFrame(np.random.default_rng(0).integers(0, 2, (60, 3)), columns=list("abc"))
    pv.TableVAE.of(frame).report(tmp_path / "report.html", None, 20, 20, progress=False)
    assert "was trained on" not in (tmp_path / "report.html").read_text()


def test_rows_are_told_apart() -> None:
    """By the columns that were left out of the model, but for constant ones; one row by all."""
    names: dict[str, list[Any]] = {
        "row": [4, 9],
        "batch": ["A", "A"],
        "id": ["S4", "S9"],
        "empty": [None, None],
    }
    assert list(identifying(names)) == ["row", "id"]
    assert list(identifying({"row": [7], "id": ["S7"]})) == ["row", "id"]


@pytest.mark.parametrize("name", ["effects.parquet", "effects.png", "page.html"])
def test_missing_packages_are_named_before_the_work(
    name: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be written without them is refused before the model is loaded."""
    for module in ("pyarrow", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    command = "report" if name.endswith("html") else "explain"
    with pytest.raises(SystemExit, match=rf"'{name}' needs (pyarrow|matplotlib).*pip install"):
        main([command, "there is no such model", "--out", name])


def test_a_page_without_matplotlib_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The method checks first, too."""
    vae = pv.TableVAE.of(from_frame(laboratory()[["m0", "m1"]]))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(tables, "report_of", pytest.fail)
    with pytest.raises(ImportError, match=r"page\.html' needs matplotlib.*'pyro-vae\[plot\]'"):
        vae.report(tmp_path / "page.html")


def test_held_out_rows_were_not_trained_on(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever became of the file: rows that were trained on are known, one by one."""
    main([*FIT, "--out", "model"])
    evaluate = ["evaluate", "model", "--samples", "30", "--out"]
    main([*evaluate, "as_it_was"])
    held_out = [row["sample_id"] for row in rows_of("as_it_was/log_p.csv")]
    assert len(held_out) == 12
    frame = pd.read_csv(file)
    again = frame.iloc[[*range(40, 60), *range(40)]]
    more = pd.concat([again, laboratory(61).iloc[60:].assign(m0=1.5)])
    more.to_csv(file, index=False)
    main([*evaluate, "later"])
    assert {row["sample_id"] for row in rows_of("later/log_p.csv")} == {*held_out, "S0060"}
    changed = frame.copy()
    other = int(changed.index[~changed["sample_id"].isin(held_out)][0])
    changed.loc[other, "m3"] *= 2  # the wrong twin: one row is not what was trained on
    changed.to_csv(file, index=False)
    capsys.readouterr()
    main([*evaluate, "changed"])
    found = {row["sample_id"] for row in rows_of("changed/log_p.csv")}
    assert found == {*held_out, f"S{other:04d}"}
    assert "the file no longer has 1 of the 48 training rows" in capsys.readouterr().out
    frame[~frame["sample_id"].isin(held_out)].to_csv(file, index=False)
    with pytest.raises(SystemExit, match=r"was trained on all rows of 'lab.csv'"):
        main([*evaluate, "none"])


def test_digests_fit_into_a_save() -> None:
    """As many as are saved leave room for what else is said; more are not saved."""
    saved = tables._packed(torch.zeros(tables._MOST_DIGESTS, dtype=torch.int64))
    assert saved is not None
    assert len(saved) < 0.75 * MAX_HEADER
    assert tables._packed(torch.zeros(tables._MOST_DIGESTS + 1, dtype=torch.int64)) is None


def test_columns_of_many_kinds_fit_into_a_save(tmp_path: Path) -> None:
    """60,000 of them; a table of 20,000 counts had been refused after its model was trained."""
    sizes = []
    for number in (20, 40):
        counts = np.random.default_rng(0).poisson(1.0, (30, number))
        frame = pd.DataFrame(counts, columns=[f"ENSG{place:011d}" for place in range(number)])
        pv.TableVAE.of(frame, pv.defaults.Architecture(hidden=(4,))).save(tmp_path / "model")
        sizes.append((tmp_path / "model" / "pyro_vae.json").stat().st_size)
    by_column = (sizes[1] - sizes[0]) / 20
    assert 100 < by_column < MAX_HEADER / 60_000


def test_equal_rows_are_counted() -> None:
    """Of a table of zeros and ones, equal rows may be trained on and held out."""
    digests = torch.tensor([5, 5, 5, 8, 9])
    assert trained_on(digests, torch.tensor([5, 9, 5])).tolist() == [True, True, False, False, True]


@pytest.mark.filterwarnings("ignore:log p.* cannot be trusted")
@pytest.mark.usefixtures("float64")
def test_answers_are_in_the_units_of_the_table() -> None:
    """A unit 1,024 times as fine moves densities by the log of that, and nothing else.

    It is a power of two, which leaves all rounding, and so all draws, as they were.
    """
    frame = laboratory(40).drop(columns=["sample_id", "date", "site"])
    found: list[Any] = []
    for scale in (1.0, 1024.0):
        lab = pv.TableVAE.of(frame.assign(m2=scale * frame["m2"]))
        lab.fit(num_epochs=1, progress=False)
        some = frame.assign(m2=scale * frame["m2"]).iloc[:9]
        density = lab.log_marginal_likelihood(some, pv.ImportanceSampling(50), progress=False)
        out = lab.outliers(some, 20, progress=False)
        found.append((density.value, out.log_p.value, out.reference, out.value, lab.embed(some)))
    holes = torch.tensor(frame["m2"].iloc[:9].isna().to_numpy())
    shift = torch.where(holes, 0.0, np.log(1024))
    one, other = found
    for place in range(3):
        torch.testing.assert_close(one[place], other[place] + shift)
    torch.testing.assert_close(one[3], other[3])
    np.testing.assert_allclose(one[4], other[4])


@pytest.mark.usefixtures("float64")
def test_positive_columns_stay_positive() -> None:
    """In draws and imputations; in other units log p moves by their logarithm. Real ones do not."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=80)
    frame = pd.DataFrame({"dose": np.exp(1.5 * z + 0.1 * rng.normal(size=80)), "t": 20 + z})
    frame.loc[::9, "dose"] = np.nan
    lab = pv.TableVAE.of(frame)
    drawn = lab.sample(500)["dose"]
    assert drawn.min() > 0
    # The start is factor analysis of the logarithms: their median is that of the column, to within
    # five errors of 500 draws and of 70 rows.
    error = 1.2533 * 1.5 * (1 / 500 + 1 / 70) ** 0.5
    assert abs(np.log(drawn.median()) - np.log(frame["dose"].median())) < 5 * error
    filled = lab.impute(frame, 50, progress=False)
    assert filled.completed()["dose"].min() > 0
    assert min(filled.entries()["low"]) > 0
    assert min(lab.impute(frame, 5, progress=False).entries()["low"]) > 0  # Student's interval
    with pytest.raises(ValueError, match=r"'dose' must hold numbers above 0; got 1 .*'dose': Real"):
        lab.embed(frame.fillna(1.0).assign(dose=[0.0, *np.ones(79)]))
    with pytest.warns(UserWarning, match="'dose' has a median .* geometric mean of .* other units"):
        lab.embed(frame.assign(dose=1e9 * frame["dose"]))
    other = pv.TableVAE.of(frame.assign(dose=1000 * frame["dose"]))
    how: dict[str, Any] = {"estimator": pv.ImportanceSampling(200), "progress": False}
    one = lab.log_marginal_likelihood(frame, **how)
    same = other.log_marginal_likelihood(frame.assign(dose=1000 * frame["dose"]), **how)
    # EM ends within 2e-5 in either unit, worth 1e-3 nats; without a Jacobian it would be 6.9.
    off = one.value - same.value - np.log(1000.0) * torch.tensor(frame["dose"].notna().tolist())
    assert off.abs().max() < 0.02
    wrong = pv.TableVAE.of(from_frame(frame, kinds={"dose": pv.data.Real}))
    assert wrong.sample(500)["dose"].min() < 0


def test_other_columns_are_refused() -> None:
    """In every question, by name."""
    frame = laboratory(30).drop(columns=["sample_id", "date"])
    lab = pv.TableVAE.of(frame)
    other = frame.rename(columns={"m3": "m33"})
    for ask in (lab.embed, lab.outliers, lab.impute, lab.explain, lab.log_marginal_likelihood):
        with pytest.raises(ValueError, match="has no column 'm3' and has column 'm33'"):
            ask(other)


@pytest.mark.usefixtures("float64")
def test_which_latent_does_what() -> None:
    """Of a decoder that is known: effects are the latent's range times the slope over the sd."""
    decoder = nn.Linear(2, 3)
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(0.1), latent_dim=2)
    slopes = torch.tensor([[2.0, 0.0], [0.0, -0.5], [0.0, 0.0]])
    with torch.no_grad():
        decoder.weight.copy_(slopes)
        decoder.bias.zero_()
    y = model.sample(400, seed=1)
    guide = pv.Guide(model, pv.GlobalParameters())
    frame = {"a": y[:, 0].numpy(), "b": y[:, 1].numpy(), "c": y[:, 2].numpy()}
    columns = Columns.of(frame, dict.fromkeys("abc", pv.data.Real()))
    told = queries.explain(model, guide, y, columns)
    order = told.traversal.order.tolist()
    spread = y.std(dim=0, correction=0)
    wide = (told.traversal.values[:, -1] - told.traversal.values[:, 0])[:, None]
    torch.testing.assert_close(told.effect, wide * slopes.T[order] / spread)
    assert [told.strongest(order.index(latent)) for latent in (0, 1)] == [[0], [1]]
    assert json.dumps(told.to_dataframe()["column"].tolist()) == json.dumps(["a", "b", "c"] * 2)


@pytest.mark.usefixtures("float64")
def test_effects_are_in_the_spread_of_the_training_rows() -> None:
    """However alike the rows are that are asked about: counts by their sd, skewed by logarithms."""
    decoder = nn.Linear(1, 3)
    model = pv.models.VAE(decoder, pv.likelihoods.Gaussian(0.1), latent_dim=1)
    with torch.no_grad():
        decoder.weight.copy_(torch.tensor([[2.0], [3.0], [0.5]]))
        decoder.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    y = torch.ones(4, 3) + torch.tensor([0.0, 1e-3, 2e-3, 0.0])[:, None]
    kinds = (pv.data.Real(5.0, 10.0), pv.data.Count(4.0), pv.data.Positive(0.0, 7.0, 0.3))
    made = [Column(n, k, Holds.FLOATS, "float64") for n, k in zip("abc", kinds, strict=True)]
    columns = Columns(tuple(made), "dict")
    told = queries.explain(model, pv.Guide(model, pv.GlobalParameters()), y, columns)
    low, high = told.traversal.values[0, [0, -1]].tolist()
    skewed = float(np.log((5 + 0.5 * high) / (5 + 0.5 * low))) / 0.3
    exact = torch.tensor([[2 * (high - low), 3 * (high - low) / 4, skewed]])
    torch.testing.assert_close(told.effect, exact)
    assert told.words[0][2].endswith("sd of logarithms)")


def test_categories_are_explained_by_their_probabilities() -> None:
    """A latent that decides between three words moves the probability of two of them."""
    frame = {"w": ["a", "b", "c"] * 8, "x": np.linspace(0, 1, 24)}
    lab = pv.TableVAE.of(frame, pv.defaults.Architecture(latent_dim=1))
    with torch.no_grad():
        for weight in lab.model.decoder.parameters():
            weight.zero_()
        *_, last = (m for m in lab.model.decoder.modules() if isinstance(m, nn.Linear))
        last.bias[:3] = torch.tensor([1.0, 0.0, 0.0])
    told = lab.explain()
    assert float(told.effect.abs().max()) < 1e-6  # nothing depends on z: nothing is moved
    share = float(torch.tensor([1.0, 0.0, 0.0]).softmax(dim=0)[0])
    assert told.words[0][0].startswith(f"a {share:.0%} to {share:.0%}")


def test_figures_of_a_table(file: Path) -> None:
    """A panel for each column, in its own unit, with its name; categories by their words."""
    frame = laboratory().drop(columns=["sample_id", "date"])
    lab = pv.TableVAE.of(frame)
    grid = lab.traverse(frame).plot(columns=["site", "m1"])
    assert [ax.get_title(loc="left") for ax in grid[0]] == ["site", "m1"]
    words = [label.get_text() for label in grid[0][0].get_yticklabels()]
    assert words == ["north", "river", "south"]
    low, high = grid[0][1].get_ylim()
    assert 1e5 < low < high < 1e6
    with pytest.raises(ValueError, match=r"got \['m99'\]: choose from"):
        lab.traverse(frame).plot(columns=["m99"])
    panels = lab.impute(frame, 20, progress=False).plot()
    names = [name for name in frame if frame[name].isna().any()]
    assert [ax.get_title(loc="left") for ax in panels] == names
    effects = lab.explain(frame).plot()
    assert [label.get_text() for label in effects.get_xticklabels()] == list(frame)


def test_one_outlier_does_not_flatten_a_figure() -> None:
    """The axis shows what nearly all entries are."""
    frame = pd.DataFrame({"a": np.linspace(0, 1, 40), "b": np.linspace(1, 0, 40) ** 2 + 0.1})
    frame.loc[5, "a"], frame.loc[[7, 9], "a"] = 1e6, np.nan
    lab = pv.TableVAE.of(frame)
    with torch.no_grad():
        (panel,) = lab.impute(frame, 20, progress=False).plot()
    assert panel.get_ylim()[1] < 1e6


def test_models_of_other_folders_are_refused(tmp_path: Path) -> None:
    """A model without its columns does not know what a table is."""
    model = pv.models.VAE(nn.Linear(1, 2), pv.likelihoods.Gaussian(), latent_dim=1)
    pv.save(tmp_path / "m", model=model)
    with pytest.raises(ValueError, match="was not saved by the command line or by TableVAE"):
        pv.TableVAE.load(tmp_path / "m")
    damaged: dict[str, Any] = {"table": True, "units": {"columns": [{}]}, "digests": None}
    for about in (damaged, damaged | {"units": 3}, damaged | {"table": False, "digests": "?"}):
        pv.save(tmp_path / "m", model=model, about={**about, "missing": False})
        with pytest.raises(ValueError, match=r"description of the columns in .* is damaged"):
            pv.TableVAE.load(tmp_path / "m")


def test_notes_take_no_name_of_the_table(tmp_path: Path) -> None:
    """They would replace its columns, and the model could not be loaded."""
    vae = pv.TableVAE.of({"a": [1.0, 2.5, 3.0], "b": [0.1, 0.3, 0.2]})
    with pytest.raises(ValueError, match=r"got \['units'\]: rename these notes"):
        vae.save(tmp_path / "m", about={"units": "cm"})
    vae.save(tmp_path / "m", about={"unit": "cm"})
    assert repr(pv.TableVAE.load(tmp_path / "m").units) == repr(vae.units)


@pytest.mark.parametrize(("latents", "scale"), [(1, 1.2), (10, 1.2), (40, 1.1)])
def test_proposals_of_tables_keep_most_draws(latents: int, scale: float) -> None:
    """Widened by a fifth, less with many latents: of an exact q half of the draws are left."""
    how = pv.defaults.wide_sampling(latents, 300)
    assert how.num_samples == 300
    proposal = how.proposal
    assert isinstance(proposal, pv.Widened)
    assert proposal.scale == pytest.approx(scale)
    square = proposal.scale**2
    assert ((2 * square - 1) ** 0.5 / square) ** latents > 0.5
