"""The scikit-learn estimator: its checks, densities that integrate to one, units, holes, grids."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import pyro_vae as pv
from pyro_vae import data
from pyro_vae.cli import main
from pyro_vae.data import split_rows
from pyro_vae.evidence import LogMarginal
from pyro_vae.results import Doubt
from pyro_vae.sklearn import VAE, UnreliableDensityWarning
from pyro_vae.training import Fit, History
from tests.helpers.statistics import assert_mean

# Most estimators here are hardly trained, and say so.
pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.sklearn.UnreliableDensityWarning")

IRIS = load_iris().data
EXACT = pv.Quadrature()
FIT = Fit(History(*[np.ones(1)] * 8), "finished", 1, 0, ())


def tiny(*arguments: Any, **options: Any) -> VAE:
    """An estimator that is hardly trained, for what holds before training as well as after."""
    given = {"max_epochs": 3, "patience": 3, "hidden": (8,), "random_state": 0}
    return VAE(*arguments, **{**given, **options})


def checks() -> dict[str, Callable[[], None]]:
    """Checks of scikit-learn by name, on a fresh estimator each."""
    found: dict[str, Callable[[], None]] = {}
    for estimator, check in estimator_checks_generator(VAE(max_epochs=3, patience=3)):
        options = {key: value for key, value in check.keywords.items() if key != "name"}
        name = " ".join([check.func.__name__, *(f"{k}={v}" for k, v in options.items())])
        found[name] = partial(check, estimator)
    return found


CHECKS = checks()
ARRAYS = [name for name in CHECKS if "array_api" in name]


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ARRAYS])
def test_check_estimator(name: str) -> None:
    """Every check that scikit-learn has for such an estimator."""
    CHECKS[name]()


@pytest.mark.slow
def test_check_estimator_of_other_arrays() -> None:
    """SciPy reads a variable when it is imported, without which this check is skipped."""
    script = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from tests.test_sklearn import ARRAYS, CHECKS\n"
        "for name in ARRAYS: CHECKS[name]()\n"
        "print(len(ARRAYS), 'passed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("1 passed"), done.stderr


def test_scikit_learn_is_imported_when_it_is_asked_for() -> None:
    """`import pyro_vae` stays light; `pv.sklearn` is there all the same."""
    script = (
        "import sys, pyro_vae as pv; assert 'sklearn' not in sys.modules\n"
        "pv.sklearn.VAE; assert 'sklearn' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("way", ["pv.sklearn", "import pyro_vae.sklearn"])
def test_without_scikit_learn_the_extra_is_named(way: str) -> None:
    """However the module is asked for."""
    script = f"import sys, pyro_vae as pv; sys.modules['sklearn'] = None; {way}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "run `pip install 'pyro-vae[data]'`" in done.stderr


@pytest.mark.slow
def test_densities_integrate_to_one_in_the_datas_own_units() -> None:
    """Of a column in hundreds, exact in z and on a fine grid in x; Jacobian and all."""
    X = np.random.default_rng(0).normal(500.0, 200.0, (40, 1))
    vae = tiny(1, evaluation=EXACT).fit(X)
    grid = np.linspace(-2500.0, 3500.0, 161)
    density = np.exp(vae.score_samples(grid[:, None]))
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_marginal_densities_integrate_to_one() -> None:
    """A row with a hole has the density of what was observed, in the unit of that alone."""
    X = np.random.default_rng(0).normal([0.0, 500.0], [0.01, 200.0], (60, 2))
    X[::3, 0], X[1::3, 1] = np.nan, np.nan
    vae = tiny(1, evaluation=EXACT).fit(X)
    grid = np.linspace(-2500.0, 3500.0, 161)
    rows = np.stack([np.full_like(grid, np.nan), grid], axis=1)
    density = np.exp(vae.score_samples(rows))
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-4)


def test_probabilities_of_zeros_and_ones_sum_to_one() -> None:
    """A Bernoulli by default, which is not standardized."""
    patterns = np.array(list(product([0.0, 1.0], repeat=3)))
    X = np.concatenate([patterns, patterns[:4], patterns[:4]])
    vae = tiny(1, evaluation=EXACT).fit(X)
    assert isinstance(vae.model_.likelihood, pv.likelihoods.Bernoulli)
    assert vae.scale_.tolist() == [1.0, 1.0, 1.0]
    assert np.exp(vae.score_samples(patterns)).sum() == pytest.approx(1.0, abs=1e-4)
    assert set(vae.sample(50, random_state=0).ravel()) == {0.0, 1.0}


def test_units_change_a_density_by_their_jacobian() -> None:
    """Eightfold numbers, whose standardized ones are the same to the last bit."""
    small, large = tiny(2).fit(IRIS), tiny(2).fit(8 * IRIS)
    shift = large.score_samples(8 * IRIS) - small.score_samples(IRIS)
    np.testing.assert_allclose(shift, -4 * np.log(8), atol=1e-10)
    np.testing.assert_array_equal(large.transform(8 * IRIS), small.transform(IRIS))
    back = large.inverse_transform(large.transform(8 * IRIS))
    np.testing.assert_allclose(back, 8 * small.inverse_transform(small.transform(IRIS)))


@pytest.mark.slow
def test_the_same_random_state_gives_the_same_numbers() -> None:
    """And another one others; a clone is untrained and alike."""
    vae = tiny(2).fit(IRIS)
    again = clone(vae)
    assert not hasattr(again, "model_")
    np.testing.assert_array_equal(again.fit(IRIS).score_samples(IRIS), vae.score_samples(IRIS))
    np.testing.assert_array_equal(vae.sample(5, random_state=1), vae.sample(5, random_state=1))
    other = tiny(2, random_state=1).fit(IRIS)
    assert np.abs(other.score_samples(IRIS) - vae.score_samples(IRIS)).max() > 0.01


def test_a_likelihood_of_ones_own_stays_as_it_was() -> None:
    """Training moves a copy; counts are not standardized; and their draws are counts."""
    X = np.random.default_rng(0).poisson(30.0, (40, 3)).astype(float)
    sigma = pv.likelihoods.LearnedSigma(4)
    before = sigma.raw.detach().clone()
    vae = tiny(1, likelihood=pv.likelihoods.Gaussian(sigma)).fit(IRIS)
    assert torch.equal(sigma.raw, before)
    moved = dict(vae.model_.named_parameters())["likelihood.sigma.raw"]
    assert not torch.equal(moved, before.double())
    counts = tiny(1, likelihood=pv.likelihoods.Poisson()).fit(X)
    assert counts.scale_.tolist() == [1.0] * 3
    draws = counts.sample(200, random_state=0)
    np.testing.assert_array_equal(draws, np.rint(draws))


def test_codes_of_categories_are_no_numbers() -> None:
    """A Gaussian over codes gave densities without a word; both remedies work."""
    frame = pd.DataFrame({"site": ["a", "b", "c"] * 10, "depth": np.arange(30.0) ** 0.5})
    with pytest.raises(
        ValueError, match=r"Gaussian is a likelihood for numbers.*without an order \('site'\)"
    ):
        tiny(1, likelihood=pv.likelihoods.Gaussian()).fit(frame)
    parts = [pv.likelihoods.Categorical(3), pv.likelihoods.Gaussian()]
    for likelihood in (None, pv.likelihoods.Mixed(parts)):
        assert np.isfinite(tiny(1, likelihood=likelihood).fit(frame).score(frame))
    turned = {"depth": pv.likelihoods.Gaussian(), "site": pv.likelihoods.Gaussian()}
    with pytest.raises(ValueError, match=r"columns must be \['depth', 'site'\] in this order"):
        tiny(1, likelihood=pv.likelihoods.Mixed(turned)).fit(frame)


@pytest.mark.parametrize("likelihood", [pv.likelihoods.Bernoulli(), pv.likelihoods.LogNormal()])
def test_rows_outside_the_support_are_refused_before_they_are_used(likelihood: Any) -> None:
    """The start of training had failed on them, in an error of linear algebra."""
    with pytest.raises(ValueError, match=rf"{type(likelihood).__name__} takes only .*column 1"):
        tiny(1, likelihood=likelihood).fit(IRIS * [0.01, -1, 0.01, 0.01])


def test_training_starts_at_the_means() -> None:
    """Of the columns, on average over first weights: without a start rates would be near 1."""
    X = np.random.default_rng(0).poisson(30.0, (40, 3)).astype(float)
    means = [
        tiny(1, likelihood=pv.likelihoods.Poisson(), random_state=seed)
        .fit(X)
        .sample(200, random_state=0)
        .mean()
        for seed in range(10)
    ]
    ratios = torch.tensor(means).log() - math.log(X.mean())
    assert_mean(ratios, 0.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(ratios + math.log(X.mean()), 0.0)


def test_names_travel() -> None:
    """Of columns in, of latents out; to frames where they are asked for."""
    frame = load_iris(as_frame=True).data
    vae = tiny(2).set_output(transform="pandas").fit(frame)
    embedded = vae.transform(frame)
    assert isinstance(embedded, pd.DataFrame)
    assert list(embedded.columns) == list(vae.get_feature_names_out()) == ["vae0", "vae1"]
    assert list(vae.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        vae.transform(frame[frame.columns[::-1]])


def test_sizes_follow_from_the_data() -> None:
    """Half the columns as latents; one hidden layer; both can be said."""
    vae = VAE(max_epochs=1, patience=1, random_state=0).fit(IRIS)
    assert vae.latent_dim_ == 2
    assert vae.model_.decoder.hidden == (32,)
    vae = tiny(3, hidden=(16, 8)).fit(IRIS)
    assert vae.transform(IRIS).shape == (150, 3)
    assert vae.model_.decoder.hidden == (8, 16)


def test_training_stops_early() -> None:
    """Where the held-out rows say so; the best epoch is kept."""
    X = np.random.default_rng(0).normal(size=(40, 2))
    vae = tiny(1, max_epochs=200, patience=2, learning_rate=0.05).fit(X)
    assert len(vae.history_.epoch) < 200
    assert vae.n_epochs_ == vae.history_.epoch[vae.history_.validation_elbo.argmax()]
    assert len(tiny(1, early_stopping=False).fit(X).history_.epoch) == 3
    assert np.isnan(tiny(1).fit(X[:19]).history_.validation_elbo).all()  # too few to hold some out


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (
            [[1.0, np.nan], [np.nan, np.nan], [0.0, 1.0]],
            r"no entry is observed in 1 of 3 rows.* at row 1",
        ),
        ([[1.0, np.nan], [2.0, np.nan]], r"column '1' has no observed entry"),
        ([[1.0, np.inf], [2.0, 3.0]], "infinity"),
        ([[1.0, 2.0]], "1 sample"),
    ],
)
def test_rows_that_are_refused(X: list[list[float]], message: str) -> None:
    """With where, and what to do."""
    with pytest.raises(ValueError, match=message):
        tiny(1).fit(X)


def test_holes_have_to_be_learned() -> None:
    """An encoder that never saw one does not know what to make of it; one that did fills it."""
    holes = IRIS.copy()
    holes[::5, 1] = np.nan
    with pytest.raises(ValueError, match=r"`X` has 30 missing entries .* fit on rows with missing"):
        tiny(2).fit(IRIS).transform(holes)
    vae = tiny(2).fit(holes)
    assert np.isfinite(vae.inverse_transform(vae.transform(holes))).all()
    assert vae.transform(IRIS).shape == (150, 2)
    with pytest.raises(ValueError, match="`X` must have 2 columns, one for each entry of z"):
        vae.inverse_transform(IRIS)


def test_units_of_what_was_not_observed_cost_nothing() -> None:
    """Eightfold numbers in one column: rows in which it is missing keep their density."""
    holes = IRIS[:40].copy()
    holes[::4, 1] = np.nan
    large = holes * [1, 8, 1, 1]
    one, other = tiny(2).fit(holes), tiny(2).fit(large)
    shift = other.score_samples(large) - one.score_samples(holes)
    np.testing.assert_allclose(shift, np.where(np.isnan(holes[:, 1]), 0, -np.log(8)), atol=1e-10)


def test_rows_that_say_when_to_stop_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth is held out, the others are trained on, and no row is both."""
    seen: dict[str, Any] = {}

    def caught(_: Any, __: Any, train: torch.Tensor, **options: Any) -> Any:
        seen.update(options, train=train)
        return FIT

    monkeypatch.setattr("pyro_vae.tables.fit", caught)
    X = np.stack([np.arange(0.0, 80.0, 2.0), np.arange(40.0) ** 2], axis=1)
    vae = tiny(1).fit(X)
    train, held_out = (
        set(np.rint(part[:, 0].numpy() * vae.scale_[0] + vae.center_[0]).astype(int).tolist())
        for part in (seen["train"], seen["validation"])
    )
    assert not train & held_out
    assert train | held_out == set(range(0, 80, 2))
    assert len(held_out) == 4


def mixed(rows: int = 40) -> pd.DataFrame:
    """Numbers, words, counts, booleans and ordered categories, each with holes."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "depth": random.normal(300.0, 20.0, rows),
            "site": random.choice(["north", "south", "east"], rows),
            "visits": random.poisson(3.0, rows).astype(float),
            "wet": pd.Series(random.random(rows) < 0.4).astype("boolean"),
            "grade": pd.Categorical(
                random.choice(["low", "mid", "high"], rows), ["low", "mid", "high"], ordered=True
            ),
        }
    )
    for place in range(5):
        frame.iloc[random.choice(rows, 5, replace=False), place] = None
    frame.loc[0, "visits"] = 0.0  # a count has a zero
    return frame.dropna(how="all", ignore_index=True)


@pytest.mark.usefixtures("float64")
def test_a_mixed_frame_is_that_of_the_command_line(tmp_path: Path) -> None:
    """Words, categories and holes: fitted, embedded and imputed as `pyro-vae fit` would."""
    frame, path, out = mixed(), tmp_path / "mixed.parquet", tmp_path / "model"
    frame.to_parquet(path)
    seed = tiny().fit(frame).seed_  # of the random state
    train = data.load(path, seed=seed)
    rows = frame.iloc[split_rows(len(frame), seed=seed).train].reset_index(drop=True)
    vae = tiny(early_stopping=False).fit(rows)
    given = ["--epochs", "3", "--hidden", "8", "--seed", str(seed), "--quiet", "--out", str(out)]
    main(["fit", str(path), *given])
    loaded, columns = pv.load(out), train.columns
    assert columns is not None
    assert repr(vae.columns_) == repr(columns)
    embedded = vae.transform(rows)
    expected = loaded.guide.mean(train.train)
    np.testing.assert_allclose(embedded, expected.numpy(), rtol=1e-6, atol=1e-8)
    imputed = vae.inverse_transform(embedded)
    pd.testing.assert_frame_equal(imputed, columns.decode(loaded.model.decode(expected)))
    assert imputed.notna().all(axis=None)
    assert dict(imputed.dtypes) == dict(frame.assign(wet=frame["wet"]).dtypes)
    assert np.isfinite(vae.score_samples(rows)).all()


def test_numbers_that_are_categories_come_back() -> None:
    """Draws and means are of the numbers in the frame, not of their codes."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"sex": random.integers(1, 3, 40), "dose": random.choice([10, 20, 50], 40)}
    ).assign(weight=lambda frame: frame["sex"] + random.normal(size=40))
    vae = tiny(kinds={"dose": data.Ordered}).fit(frame)
    draws, means = vae.sample(200, random_state=0), vae.inverse_transform(vae.transform(frame))
    assert set(draws[:, 0]) == {1.0, 2.0}
    assert set(draws[:, 1]) == {10.0, 20.0, 50.0}
    assert means[:, 0].min() > 1
    assert means[:, 1].min() > 10


def test_dates_come_back_as_dates() -> None:
    """In a table, and not as days since 1970."""
    days = pd.date_range("2024-01-01", periods=30, unit="s")
    frame = pd.DataFrame({"when": days, "depth": np.random.default_rng(0).normal(size=30)})
    vae = tiny(kinds={"when": data.Time}).fit(frame)
    draws = vae.sample(3, random_state=0)
    assert draws["when"].dtype == frame["when"].dtype
    assert draws["when"].dt.year.between(2023, 2025).all()


def test_ids_are_refused_with_what_works_here() -> None:
    """The estimator has no `drop`: the frame has."""
    frame = mixed().assign(id=range(len(mixed())))
    with pytest.raises(ValueError, match=r"X\.drop\(columns=\['id'\]\)"):
        tiny().fit(frame)
    assert tiny().fit(frame.drop(columns=["id"])).n_features_in_ == mixed().shape[1]


@pytest.mark.parametrize("places", [[1], [0, 2]])
def test_columns_of_an_array_are_dropped_as_arrays_are(places: list[int]) -> None:
    """An array has no `drop`, but NumPy deletes its columns; the line runs as it stands."""
    X = np.random.default_rng(0).normal(size=(30, 4))
    X[:, places] = np.nan
    with pytest.raises(ValueError, match="has no observed entry") as refused:
        tiny().fit(X)
    (line,) = set(re.findall(rf"np\.delete\(X, \{places}, axis=1\)", str(refused.value)))
    assert "X.drop" not in str(refused.value)
    kept = eval(line, {"np": np, "X": X})
    assert tiny().fit(kept).n_features_in_ == 4 - len(places)


def test_a_mixed_frame_needs_its_words() -> None:
    """Other words are refused by name and row, another order of columns by scikit-learn."""
    frame = mixed()
    vae = tiny().fit(frame)
    assert vae.transform(frame[:3]).shape == (3, vae.latent_dim_)
    with pytest.raises(
        ValueError, match=r"column 'site' has 1 entry in categories .*'moon' at row 1"
    ):
        vae.transform(frame[:3].assign(site=["east", "moon", "north"]))
    with pytest.raises(ValueError, match="feature names should match"):
        vae.transform(frame[frame.columns[::-1]])
    drawn = vae.sample(50, random_state=0)
    assert set(drawn["site"]) <= {"north", "south", "east"}
    assert drawn["visits"].min() >= 0


def test_a_constant_column_is_named() -> None:
    """Once, when it is learned; not whenever a few rows agree."""
    frame = pd.DataFrame({"a": np.sqrt(np.arange(30.0)), "b": np.full(30, 7.0)})
    with pytest.warns(UserWarning, match=r"constant in 1 of 2 columns over 30 rows \('b'\)"):
        vae = tiny(1).fit(frame)
    vae.score_samples(frame[:2])  # warnings are errors here
    assert vae.sample(3, random_state=0)[:, 1] == pytest.approx(7.0, abs=20.0)


def test_what_cannot_be_trusted_is_said() -> None:
    """With the reason, and the rows in the result."""

    def doubtful(*arguments: Any, **options: Any) -> LogMarginal:
        result = pv.ImportanceSampling(50)(*arguments, **options)
        return replace(result, doubts={Doubt.HEAVY_TAIL: torch.arange(len(result.value)) < 3})

    vae = tiny(2, evaluation=doubtful).fit(IRIS)
    with pytest.warns(UnreliableDensityWarning, match=r"3 of 150 rows cannot be trusted \(a few"):
        values = vae.score_samples(IRIS)
    result = vae.log_marginal_likelihood(IRIS)
    np.testing.assert_array_equal(result.value.numpy(), values)
    assert int((~result.reliable).sum()) == 3


def test_pipelines_and_grids() -> None:
    """As a transformer before a classifier, and as a density whose score is searched over."""
    pipeline = make_pipeline(StandardScaler(), tiny(2), LogisticRegression())
    assert pipeline.fit(IRIS, load_iris().target).predict(IRIS).shape == (150,)
    search = GridSearchCV(tiny(), {"latent_dim": [1, 2]}, cv=2).fit(IRIS)
    assert search.best_params_["latent_dim"] in (1, 2)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def factors(rows: int) -> NDArray[np.floating]:
    """Draws of a factor analysis with two factors and six columns of different units."""
    random = np.random.default_rng(0)
    loadings = random.normal(size=(6, 2))
    noise = random.normal(size=(rows, 6)) * [0.3, 0.5, 0.4, 0.6, 0.5, 0.4]
    scaled = random.normal(size=(rows, 2)) @ loadings.T + noise
    return scaled * [1.0, 10.0, 0.1, 5.0, 100.0, 1.0]


@pytest.mark.slow
def test_score_is_that_of_factor_analysis() -> None:
    """On its own data, held out: within 0.1 nats; a model with one latent is a nat off or more."""
    X = factors(1600)
    train, test = X[:800], X[800:]
    scale = train.std(axis=0)
    exact = FactorAnalysis(2).fit(train / scale).score(test / scale) - np.log(scale).sum()
    assert VAE(2, random_state=0).fit(train).score(test) == pytest.approx(exact, abs=0.1)
    assert VAE(1, random_state=0).fit(train).score(test) < exact - 0.5


@pytest.mark.slow
def test_a_grid_search_finds_the_latents() -> None:
    """Two factors: two latents or more, not one."""
    grid = {"latent_dim": [1, 2]}
    search = GridSearchCV(VAE(random_state=0, max_epochs=150), grid, cv=2).fit(factors(600))
    assert search.best_params_ == {"latent_dim": 2}


@pytest.mark.slow
def test_draws_have_the_datas_moments() -> None:
    """Means and spreads of columns in their own units, within a fifth of a spread."""
    X = factors(600)
    draws = VAE(2, random_state=0).fit(X).sample(4000, random_state=0)
    scale = X.std(axis=0)
    np.testing.assert_allclose(draws.mean(axis=0) / scale, X.mean(axis=0) / scale, atol=0.2)
    np.testing.assert_allclose(draws.std(axis=0) / scale, 1.0, atol=0.2)


def test_a_fit_that_failed_leaves_no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """New columns with the old model had answered, in units that belong to neither table."""
    vae = tiny(2).fit(IRIS)

    def failed(*_: Any, **__: Any) -> Any:
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr("pyro_vae.tables.fit", failed)
    with pytest.raises(FloatingPointError):
        vae.fit(1000 * IRIS)
    assert vae.table_.dataset is None  # the rows are not kept either
    for ask in (vae.transform, vae.score_samples, vae.inverse_transform):
        with pytest.raises(NotFittedError, match="fit the estimator first"):
            ask(IRIS)
    monkeypatch.undo()
    assert np.isfinite(vae.fit(IRIS).transform(IRIS)).all()


def test_a_fit_that_was_interrupted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid search scores it as any other; and how training went is in the table."""
    monkeypatch.setattr("pyro_vae.tables.fit", lambda *_, **__: replace(FIT, stopped="interrupted"))
    with pytest.warns(UserWarning, match=r"interrupted after 1 epoch.* call `fit` again"):
        vae = tiny(2).fit(8 * IRIS)
    history = vae.table_.history
    assert history is not None
    assert history.log_scale == pytest.approx(-np.log(8 * IRIS.std(axis=0)).sum(), abs=0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch_size", 0), ("kinds", 3), ("learning_rate", 0), ("max_epochs", 0)),
        *(("standardize", "x"), ("validation_fraction", 1.5), ("verbose", "x")),
    ],
)
def test_settings_are_checked_by_fit(name: str, value: Any) -> None:
    """Under scikit-learn's names; not before, as its rules want it."""
    estimator = VAE(**{name: value})
    with pytest.raises((TypeError, ValueError), match=f"^`{name}` must be"):
        estimator.fit(np.ones((4, 2)))


def test_no_hidden_layers_are_not_the_default_ones() -> None:
    """The default width had been used instead, in silence."""
    with pytest.raises(ValueError, match="`hidden` of an MLPEncoder must have at least one layer"):
        tiny(1, hidden=()).fit(IRIS)
