"""Tables that a fitted model has not seen: far out, with an index, constant, of other dtypes."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import Dataset, from_frame
from pyro_vae.nets.scaling import scale_of


def people(num_rows: int = 60) -> pd.DataFrame:
    """An age, a skewed dose, a flag and words, with a hole in each of them."""
    x = np.random.default_rng(0).normal(size=(num_rows, 3))
    frame = pd.DataFrame({"age": 50 + 10 * x[:, 0], "dose": np.exp(x[:, 1] + x[:, 0])})
    frame["treated"] = pd.array(x[:, 2] > 0, dtype="boolean")
    frame["site"] = np.where(x[:, 0] + x[:, 2] > 0, "Oslo", "Rio")
    for row, name in enumerate(frame, start=num_rows - 5):
        frame.loc[row, name] = None
    return frame


def fitted(frame: pd.DataFrame) -> pv.TableVAE:
    """A model of the table, after one epoch."""
    vae = pv.TableVAE.of(from_frame(frame))
    vae.fit(num_epochs=1, progress=False)
    return vae


@pytest.mark.parametrize("far", [1e3, 1e8, 1e14])
def test_a_cell_far_out_leaves_numbers_finite(far: float) -> None:
    """A trained encoder's correction would overflow, but its input grows like a logarithm."""
    frame = people()
    vae = fitted(frame)
    new = frame.head(4).assign(age=[50.0, 60.0, far, -far])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        means = vae.embed(new).to_numpy()
        log_p = vae.log_marginal_likelihood(new, pv.ImportanceSampling(50), progress=False).value
    assert np.isfinite(means).all()
    assert log_p.isfinite().all()
    assert bool((log_p[2:] < log_p[:2].min()).all())
    net = vae.guide.map.net
    assert isinstance(net, pv.nets.ColumnInputs)
    y = torch.tensor([[-9.0, 9.9, 1.0, 0.0]])
    units = scale_of(net.net)
    assert units is not None
    assert torch.equal(units(y), y)  # within ten spreads the input is as it is


def test_completed_tables_keep_their_index() -> None:
    """So that the result can be joined to the table, like an embedding."""
    frame = people()
    frame.index = pd.Index([f"P{row}" for row in range(len(frame))], name="patient")
    completed = fitted(frame).impute(frame.tail(9), 10, progress=False).completed()
    assert completed.index.equals(frame.index[-9:])
    assert completed.index.name == "patient"


@pytest.mark.filterwarnings("ignore:log p.y. cannot be trusted")
def test_new_rows_may_be_constant() -> None:
    """Nothing is to be dropped (warnings are errors here), as only training rows must vary."""
    frame = people()
    vae = fitted(frame)
    new = frame.head(5).assign(age=50.0)
    assert vae.embed(new).shape == (5, 2)
    vae.log_marginal_likelihood(new, pv.ImportanceSampling(50), progress=False)
    vae.impute(new.assign(site=None), 10, progress=False)
    with pytest.warns(UserWarning, match="values are constant in 1 of 4 columns over"):
        fitted(frame.assign(age=50.0))


@pytest.mark.parametrize("labels", [[10, 20, 30], [("lab", "Na"), ("lab", "K"), ("bp", "")]])
def test_completed_tables_keep_their_labels(labels: list[object]) -> None:
    """Numbers and pairs of names come back, whatever the order of the columns."""
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[::7, 1] = np.nan
    frame = pd.DataFrame(x, columns=pd.Index(labels))
    vae = fitted(frame)
    new = frame.head(8)[labels[::-1]]
    completed = vae.impute(new, 10, progress=False).completed()
    assert completed[labels].columns.equals(frame.columns)
    assert not completed.isna().any().any()
    assert completed[labels[0]].tolist() == pytest.approx(new[labels[0]].tolist())


@pytest.mark.parametrize("guide", ["per-datum", "global"])
def test_questions_to_a_guide_without_an_encoder(guide: str) -> None:
    """Rows that are simulated, or whose entries are hidden, have no parameters of their own."""
    frame = people(40)
    vae = pv.TableVAE.of(from_frame(frame), guide=guide)
    vae.fit(num_epochs=1, progress=False)
    new = frame.tail(3)
    p_values = vae.outliers(new, np.int64(10), progress=False).value
    assert bool(((p_values > 0) & (p_values <= 1)).all())
    found = vae.conditional_density("site", new, progress=False)
    np.testing.assert_allclose(found.value.sum(dim=1), 1.0, rtol=1e-6)


def test_a_table_model_is_described_in_a_line() -> None:
    """Not by its parameters, nor by the digests of its rows."""
    vae = pv.TableVAE.of(from_frame(people()))
    assert repr(vae) == (
        "<TableVAE: 2 latents; 48 training rows; age: Real, dose: Positive, treated: Binary, "
        "site: Binary>"
    )
    vae.fit(num_epochs=1, progress=False)
    told = vae.explain()
    expected = f"<Explanation: information in {len(told.telling)} of 2 latents"
    assert repr(told).startswith(expected)
    array = pv.TableVAE.of(np.random.default_rng(0).normal(size=(30, 3)))
    assert repr(array).startswith("<TableVAE: 1 latent; 24 training rows")


def test_rows_without_names_are_refused() -> None:
    """Encoded rows are the input of the functions that take a model."""
    table = from_frame(people())
    vae = pv.TableVAE.of(table)
    with pytest.raises(ValueError, match="whose columns have no names: pass a data frame"):
        vae.log_marginal_likelihood(table.test)
    assert len(pv.elbo(vae.model, vae.guide, table.test, 40).value) == 12


def test_training_is_told_in_the_units_of_the_table() -> None:
    """Millimetres for metres change the ELBO by log 1000 nats per column, exactly."""
    x = np.random.default_rng(0).normal(size=(60, 3))
    fits = []
    for scale in (1.0, 1000.0):
        vae = pv.TableVAE.of(pd.DataFrame(scale * x, columns=list("abc")))
        fits.append(vae.fit(num_epochs=2, progress=False))
    one, other = fits
    assert one.log_scale - other.log_scale == pytest.approx(3 * np.log(1000))
    elbos, others = (np.asarray(x.history.elbo, dtype=np.float64) for x in fits)
    np.testing.assert_allclose(elbos, others, atol=1e-4)
    own = elbos[-1] + one.log_scale
    assert f"training ELBO {own:.3f} nats per datum in the data's own units (" in one.summary()
    (line, *_) = one.plot().lines
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), elbos + one.log_scale)
    plt.close()


def test_a_report_says_which_rows_were_trained_on(tmp_path: Path) -> None:
    """Their log p is too high; held-out rows need no such sentence."""
    frame = people()
    vae = fitted(frame)
    pages = {}
    for name, rows in (("all", frame), ("held out", None)):
        vae.report(tmp_path / "page.html", rows, 40, 20, progress=False)
        pages[name] = (tmp_path / "page.html").read_text()
    page = tmp_path / "page.html"
    vae.report(page, None, 40, 20, seed=0, progress=False)
    assert page.read_text() == pages["held out"]
    vae.report(page, None, 40, 20, seed=1, progress=False)
    assert page.read_text() != pages["held out"]
    said = "The model was trained on 48 of these 60 rows, and fits them better than new rows"
    assert [said in page for page in pages.values()] == [True, False]


@pytest.mark.parametrize("kind", [lambda y: y, lambda _: "digits.csv", lambda _: {"a": [1, 2]}])
def test_a_model_of_an_array_takes_arrays(kind: Callable[[Dataset], Any]) -> None:
    """A data set, a file or a dictionary ended in an error of torch."""
    dataset = Dataset("random", torch.rand(20, 3), torch.rand(5, 3))
    vae = pv.TableVAE.of(dataset)
    with pytest.raises(TypeError, match="data must be an array of numbers in their own units"):
        vae.embed(kind(dataset))
    assert len(vae.embed(dataset.test)) == 5
