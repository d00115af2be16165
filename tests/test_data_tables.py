"""Tables with words, counts and holes: from a file to a trained model, and back to a file."""

import csv
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import pyro_vae as pv
from pyro_vae import data, defaults, likelihoods
from pyro_vae.cli import main
from pyro_vae.data import Columns, Count, read_frame, read_table
from pyro_vae.nets import ColumnInputs
from pyro_vae.registry import arguments_of
from tests.helpers.statistics import assert_mean


def survey(rows: int = 60) -> pd.DataFrame:
    """Columns of every kind, about a fifth of them missing in the first two."""
    random = np.random.default_rng(0)
    height = random.normal(170.0, 10.0, rows)
    frame = pd.DataFrame(
        {
            "height": np.where(random.random(rows) < 0.2, np.nan, height),
            "town": random.choice(["Ghent", "Oslo", "Rome"], rows),
            "visits": random.poisson(3.0, rows),
            "smokes": random.random(rows) < 0.3,
            "grade": random.choice(["low", "mid", "high"], rows),
        }
    )
    frame.loc[random.random(rows) < 0.2, "town"] = None
    return frame


@pytest.fixture
def survey_file(tmp_path: Path) -> Path:
    """The survey as a csv file."""
    survey().to_csv(tmp_path / "survey.csv", index=False)
    return tmp_path / "survey.csv"


def test_a_csv_file_of_several_kinds(survey_file: Path) -> None:
    """Split, encoded and described; categories are those of all rows, holes are nan."""
    dataset = data.load(survey_file)
    assert len(dataset.train) == 48
    assert str(dataset.columns) == (
        "height: Real, town: Categories, visits: Count, smokes: Binary, grade: Categories"
    )
    assert dataset.describe().endswith(f"not binarized ({dataset.columns})")
    assert dataset.feature_names == tuple(survey().columns)
    assert dataset.columns is not None
    back = dataset.columns.decode(torch.cat([dataset.train, dataset.test]))
    assert back["town"].value_counts().to_dict() == survey()["town"].value_counts().to_dict()
    assert back["height"].sum() == pytest.approx(survey()["height"].sum(), rel=1e-5)
    assert bool(dataset.train[:, 0].isnan().any())


def test_parquet_keeps_dtypes(tmp_path: Path) -> None:
    """Categories with their order."""
    frame = survey()
    levels = pd.CategoricalDtype(["low", "mid", "high"], ordered=True)
    frame["grade"] = frame["grade"].astype(levels)
    frame.to_parquet(tmp_path / "survey.parquet")
    dataset = data.load(tmp_path / "survey.parquet")
    assert "grade: Ordered" in repr(dataset.columns)
    assert dataset.columns is not None
    assert dataset.columns.decode(dataset.test)["grade"].dtype == levels


def test_numbers_with_holes(tmp_path: Path) -> None:
    """An empty cell of a file is missing; the columns are what they are without it."""
    (tmp_path / "y.csv").write_text("a,b\n1.5,2\n2.5,\n3.5,7.5\n4.5,1\n")
    dataset = data.load(tmp_path / "y.csv")
    rows = torch.cat([dataset.train, dataset.test])
    assert int(rows.isnan().sum()) == 1
    (tmp_path / "full.csv").write_text("a,b\n1.5,2\n2.5,3\n3.5,7.5\n")
    assert repr(data.load(tmp_path / "full.csv").columns) == repr(dataset.columns)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,x\n", r"column '1' holds 1 number and 1 other entry \('x' at row 1"),
        ("a,b\n1,x\n3\n", "line 3 of .* has 1 cell, but must have 2"),
    ],
)
def test_files_that_are_no_tables(text: str, message: str, tmp_path: Path) -> None:
    """Columns that are neither numbers nor words, and lines of different lengths."""
    (tmp_path / "y.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "y.csv")
    np.save(tmp_path / "y.npy", np.zeros(3))
    with pytest.raises(ValueError, match="must be a parquet file, or a text file such as csv"):
        read_frame(tmp_path / "y.npy")


def test_options_of_numbers_are_refused(survey_file: Path) -> None:
    """Words are not divided by 255."""
    with pytest.raises(
        ValueError, match=r"'.*' in line \d+, column 2 \('town'\), which is not a number"
    ):
        data.load(survey_file, divide_by=255)
    with pytest.raises(ValueError, match=r"`drop` and `kinds` are for columns, but .* grey levels"):
        data.load(survey_file, divide_by=255, drop=["town"])
    dataset = data.load(survey_file)
    assert dataset.standardized() is dataset  # its real columns are already


def test_an_array_is_standardized_as_a_table_is() -> None:
    """A missing entry is left out, and a constant column is not scaled, up to rounding."""
    x = torch.tensor([[1.0, 0.3, 5.0], [2.0, 0.3, torch.nan], [6.0, 0.3 + 1e-16, 9.0]])
    plain, columns = data.Dataset("x", x, x[:1]).standardized(), Columns.of(x.numpy())
    torch.testing.assert_close(plain.train, columns.encode(x.numpy()), equal_nan=True)
    torch.testing.assert_close(plain.scale, columns.scale)
    assert plain.log_scale == pytest.approx(columns.log_scale)
    x[:, 1] = torch.nan
    with pytest.raises(ValueError, match=r"must have an observed entry .* got none in column 1,"):
        data.Dataset("x", x, x[:1]).standardized()


COUNTS = np.array([[0, 3, 0], [2, 0, 0]], dtype=np.float32)


def write_h5ad(path: Path, encoding: str) -> None:
    """A file as the format is described: a matrix X, and the names of variables by index."""
    with h5py.File(path, "w") as file:
        if encoding == "array":
            file["X"] = COUNTS
            file["X"].attrs["encoding-type"] = encoding
        else:
            make = scipy.sparse.csr_matrix if encoding == "csr_matrix" else scipy.sparse.csc_matrix
            matrix, group = make(COUNTS), file.create_group("X")
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(matrix, part)
            group.attrs.update({"encoding-type": encoding, "shape": COUNTS.shape})
        variables = file.create_group("var")
        variables.attrs["_index"] = "gene"
        variables["gene"] = np.array(["A", "B", "C"], dtype=h5py.string_dtype())


@pytest.mark.parametrize("encoding", ["array", "csr_matrix", "csc_matrix"])
def test_h5ad(encoding: str, tmp_path: Path) -> None:
    """The matrix, dense or sparse, with the names of its variables."""
    write_h5ad(tmp_path / "cells.h5ad", encoding)
    values, names = read_table(tmp_path / "cells.h5ad")
    assert names == ("A", "B", "C")
    np.testing.assert_array_equal(values, COUNTS)


@pytest.mark.parametrize("encoding", ["nullable-string-array", "categorical"])
def test_names_in_newer_h5ad(encoding: str, tmp_path: Path) -> None:
    """Strings with a mask, as of anndata 0.12, or categories with codes."""
    path = tmp_path / "cells.h5ad"
    write_h5ad(path, "array")
    words = np.array(["B", "A", "C"], dtype=h5py.string_dtype())
    with h5py.File(path, "a") as file:
        del file["var/gene"]
        group = file["var"].create_group("gene")
        group.attrs["encoding-type"] = encoding
        if encoding == "categorical":
            group["categories"], group["codes"] = words, np.array([1, 0, 2], dtype="i1")
        else:
            group["values"], group["mask"] = words[[1, 0, 2]], np.zeros(3, dtype=bool)
    assert read_table(path).feature_names == ("A", "B", "C")


def test_layers_of_h5ad(tmp_path: Path) -> None:
    """By name, also through `load`; others are refused with a list, and so is a file without X."""
    path = tmp_path / "cells.h5ad"
    write_h5ad(path, "array")
    with h5py.File(path, "a") as file:
        file["layers/raw"] = 2 * COUNTS
    np.testing.assert_array_equal(read_table(path, key="raw").values, 2 * COUNTS)
    assert data.load(path, key="raw").feature_names == ("A", "B", "C")
    with pytest.raises(ValueError, match=r"no layer 'scaled': pass one of \['raw'\] as `key`"):
        read_table(path, key="scaled")
    with h5py.File(path, "a") as file:
        del file["X"]
    with pytest.raises(ValueError, match="pass key='NAME' to read a layer"):
        read_table(path)
    assert read_table(path, key="raw").values.shape == COUNTS.shape


def test_h5ad_as_its_library_writes_it(tmp_path: Path) -> None:
    """Where that is installed: dense and sparse, with layers."""
    anndata = pytest.importorskip("anndata")
    path = tmp_path / "cells.h5ad"
    names = pd.DataFrame(index=pd.Index(["A", "B", "C"], dtype=object))
    for matrix in (COUNTS, scipy.sparse.csr_matrix(COUNTS)):
        cells = anndata.AnnData(matrix, var=names, layers={"raw": 2 * matrix})
        cells.write_h5ad(path)
        for key, expected in ((None, COUNTS), ("raw", 2 * COUNTS)):
            values, words = read_table(path, key=key)
            assert words == ("A", "B", "C")
            np.testing.assert_array_equal(values, expected)


def test_damaged_h5ad(tmp_path: Path) -> None:
    """No HDF5 at all, no matrix, or one of an unknown encoding."""
    path = tmp_path / "cells.h5ad"
    path.write_bytes(b"foreign")
    with pytest.raises(ValueError, match="is not an h5ad file with a matrix X"):
        read_table(path)
    with h5py.File(path, "w") as file:
        file.create_group("obs")
    with pytest.raises(ValueError, match="is not an h5ad file with a matrix X"):
        read_table(path)
    write_h5ad(path, "array")
    with h5py.File(path, "a") as file:
        file["X"].attrs["encoding-type"] = "dataframe"
    with pytest.raises(ValueError, match="must be an array, csr_matrix or csc_matrix; got data"):
        read_table(path)


def test_each_column_has_its_likelihood() -> None:
    """By its kind; others can be chosen by name."""
    columns = Columns.of(survey())
    found = defaults.mixed(columns, {"visits": likelihoods.Poisson()})
    assert [type(part).__name__ for part in found] == [
        "Gaussian", "Categorical", "Poisson", "Bernoulli", "Categorical"
    ]  # fmt: skip
    assert isinstance([*defaults.mixed(columns)][2], likelihoods.NegativeBinomial)
    assert found.names == columns.names
    with pytest.raises(
        ValueError, match=r"must name columns of the table; got \['weight'\], but the columns"
    ):
        defaults.mixed(columns, {"weight": likelihoods.Poisson()})


def test_models_of_one_architecture_share_no_likelihood() -> None:
    """Training one of them would change the others."""
    likelihood = likelihoods.Gaussian(likelihoods.LearnedSigma())
    sizes = defaults.Architecture(latent_dim=1, likelihood=likelihood)
    dataset = data.from_frame(torch.randn(30, 3))
    one, other = (defaults.vae(dataset, sizes) for _ in range(2))
    assert not set(one.parameters()) & {*other.parameters(), *likelihood.parameters()}


def test_encoders_see_categories_counts_and_holes() -> None:
    """Indicators, logarithms of one more than a count, zeros in holes, and which entries are."""
    columns = Columns.of({"x": [-1.0, 1.0], "c": ["a", "b"], "n": [0, 3]}, {"n": Count})
    encoder = defaults.column_encoder(columns, (4,))
    rows = torch.tensor([[0.5, 1.0, 3.0], [torch.nan, torch.nan, 0.0]])
    seen = encoder.inputs(rows)
    log = torch.tensor(4.0).log()
    expected = [[0.5, 0, 1, log, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]]
    torch.testing.assert_close(seen, torch.tensor(expected))
    assert encoder(rows).shape == (2, encoder.num_features)
    assert type(encoder)(**arguments_of(encoder)).categories == (0, 2, 0)
    with pytest.raises(ValueError, match="the data must have 3 columns; got shape"):
        encoder(rows[:, :2])
    assert ColumnInputs.width((0, 2, 0)) == seen.shape[1]


def test_a_model_starts_at_the_columns_means(survey_file: Path, seed: int) -> None:
    """Before training: draws have about the counts of the table, which a zero bias would not."""
    dataset = data.load(survey_file)
    model = defaults.vae(dataset, defaults.Architecture(latent_dim=1, hidden=(4,)))
    output = dict(model.decoder.named_parameters())["layers.1.bias"].detach()
    visits = dataset.train[:, 2].mean()
    mean = model.likelihood.mean(output[None])
    torch.testing.assert_close(mean[0, 2], visits, rtol=0.01, atol=0)
    draws = model.likelihood(output.expand(4000, -1)).sample()
    assert_mean(draws[:, 2].double(), float(mean[0, 2]))


def test_evidence_of_rows_with_holes_is_in_the_tables_units(survey_file: Path) -> None:
    """Of a column that is not observed no unit is left; of the others it is."""
    dataset = data.load(survey_file)
    assert dataset.columns is not None
    scale = float(survey()["height"].std())
    shifts = dataset.log_scales(dataset.train)
    holes = dataset.train[:, 0].isnan()
    assert bool((shifts[holes] == 0).all())
    assert abs(float(shifts[~holes][0]) + np.log(scale)) < 0.2
    assert dataset.log_scale == pytest.approx(float(shifts[~holes][0]), rel=1e-5)


def test_the_command_line_takes_a_table(survey_file: Path, tmp_path: Path) -> None:
    """Fitted, evaluated on its own and on other rows, and drawn from with names and words."""
    model, results, draws = tmp_path / "model", tmp_path / "results", tmp_path / "draws.csv"
    tiny = ["--epochs", "2", "--hidden", "8", "--quiet"]
    main(["fit", str(survey_file), *tiny, "--out", str(model)])
    how = ["--samples", "40", "--quiet", "--out", str(results)]
    main(["evaluate", str(model), *how])
    with (results / "log_p.csv").open() as file:
        held_out = [float(row["log_p"]) for row in csv.DictReader(file)]
    assert len(held_out) == 12
    main(["evaluate", str(model), str(survey_file), *how])
    with (results / "log_p.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 60
    main(["sample", str(model), "-n", "300", "--out", str(draws), "--quiet"])
    drawn = pd.read_csv(draws)
    assert list(drawn.columns) == list(survey().columns)
    assert set(drawn["town"]) == {"Ghent", "Oslo", "Rome"}
    assert drawn["visits"].dtype.kind == "i"
    assert drawn["smokes"].dtype.kind == "b"
    with pytest.raises(
        SystemExit, match=r"the file of draws must have a name that ends in \.csv or \.parquet; got"
    ):
        main(["sample", str(model), "--out", str(tmp_path / "draws.npy"), "--quiet"])
    with pytest.raises(SystemExit, match="--likelihood gaussian is for tables of numbers"):
        main(["fit", str(survey_file), *tiny, "--likelihood", "gaussian"])


def test_draws_of_numbers_have_names(tmp_path: Path) -> None:
    """In a csv file, where the data had some."""
    values = np.random.default_rng(0).normal(size=(20, 2))
    path, model = tmp_path / "y.csv", tmp_path / "model"
    np.savetxt(path, values, delimiter=",", header="mass,shift", comments="")
    main(["fit", str(path), "--epochs", "1", "--hidden", "4", "--quiet", "--out", str(model)])
    main(["sample", str(model), "--out", str(tmp_path / "draws.csv"), "--quiet"])
    assert read_table(tmp_path / "draws.csv").feature_names == ("mass", "shift")


@pytest.mark.slow
def test_a_table_is_learned() -> None:
    """Two columns that depend on a third: the model's evidence beats independent columns."""
    random = np.random.default_rng(1)
    town = random.integers(0, 3, 900)
    frame = pd.DataFrame(
        {
            "town": np.array(["a", "b", "c"])[town],
            "height": random.normal([0.0, 5.0, 10.0], 0.5, (900, 3))[np.arange(900), town],
            "visits": random.poisson([1.0, 6.0, 20.0], (900, 3))[np.arange(900), town],
        }
    )
    columns = Columns.of(frame[:600])
    dataset = data.Dataset(
        "towns", columns.encode(frame[:600]), columns.encode(frame[600:]), columns=columns
    )
    architecture = defaults.Architecture(latent_dim=2, hidden=(32,))
    model = defaults.vae(dataset, architecture)
    guide = pv.Guide(model, defaults.inference_map("amortized", dataset, architecture))
    pv.fit(model, guide, dataset.train, num_epochs=100, progress=False)
    sampler = pv.ImportanceSampling(500, proposal=pv.Widened(1.2))
    value = pv.evaluate(model, guide, dataset.test, sampler).log_marginal.mean.value
    own = float(value) + columns.log_scale
    # Entropies in nats: log 3 of the town; 0.73 of a height and 2.2 of visits, given the town,
    # or log 3 + 0.73 and 2.9 when nothing is known of it. The true process has 4.0, independent
    # columns 5.8; the mean over 300 rows has an error of 0.06.
    assert -5.3 < own < -3.7
