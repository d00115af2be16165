"""Figures of what a model is used for hold the numbers they were given, and refuse others."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.data import Categories, Columns
from pyro_vae.plots.checks import plot_predictive_check
from pyro_vae.plots.queries import (
    plot_conditional_density,
    plot_dependence,
    plot_imputation,
    plot_outliers,
    plot_similarity,
    plot_traversal,
)
from pyro_vae.plots.tables import plot_effects, plot_filled, plot_walks


@pytest.fixture
def figure() -> Figure:
    """One that pyplot does not know."""
    return Figure(figsize=(6, 4), layout="constrained")


@pytest.fixture
def ax(figure: Figure) -> Axes:
    """Its axes."""
    return figure.subplots()


def lines(ax: Axes) -> list[list[float]]:
    """Heights of all lines."""
    return [np.asarray(line.get_ydata()).tolist() for line in ax.lines]


def test_traversals_of_features(figure: Figure) -> None:
    """A panel per latent, a curve per step, names below the last one."""
    decoded = torch.arange(12.0).reshape(2, 3, 2)
    axes = plot_traversal(
        decoded, ["first", "second"], (0.1, 0.5, 0.9), names=["a", "b"], figure=figure
    )
    assert lines(axes[1]) == decoded[1].tolist()
    assert [ax.get_title(loc="left") for ax in axes] == ["first", "second"]
    assert [label.get_text() for label in axes[1].get_xticklabels()] == ["a", "b"]
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["0.1", "0.5", "0.9"]
    colours = {str(line.get_color()) for line in axes[0].lines}
    assert len(colours) == 3


def test_traversals_of_images(figure: Figure) -> None:
    """A row per latent, a picture per step, its level on top."""
    decoded = np.random.default_rng(0).random((2, 3, 1, 2, 2))
    axes = plot_traversal(decoded, ["first", "second"], (0.1, 0.5, 0.9), (2, 2), figure=figure)
    assert axes.shape == (2,)
    np.testing.assert_array_equal(axes[1].images[2].get_array(), decoded[1, 2, 0])
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["0.1", "0.5", "0.9"]
    assert axes[1].get_ylabel() == "second"


@pytest.mark.parametrize(
    ("labels", "levels", "names", "message"),
    [
        (["a"], (0.1, 0.9), None, "requires 2 labels; got 1"),
        (["a", "b"], (0.1,), None, "requires 2 levels; got 1"),
        (["a", "b"], (0.1, 0.9), ["x"], "requires 4 names; got 1"),
    ],
)
def test_bad_traversals(
    labels: list[str], levels: Any, names: Any, message: str, figure: Figure
) -> None:
    """In words."""
    with pytest.raises(ValueError, match=message):
        plot_traversal(np.zeros((2, 2, 4)), labels, levels, names=names, figure=figure)


def test_imputed_rows(figure: Figure) -> None:
    """Observed entries, the median and the middle 95% of the draws, and the truth."""
    y = np.array([[1.0, np.nan, 3.0], [np.nan, 5.0, 6.0]])
    truth = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    draws = np.where(np.isnan(y), np.linspace(0, 40, 41).reshape(-1, 1, 1), y)
    axes = plot_imputation(y, draws, truth, names=["a", "b", "c"], figure=figure)
    top = axes[0]
    observed, median, low, high, true = (
        np.asarray(line.get_ydata()).tolist() for line in top.lines
    )
    assert (observed, median, true) == ([1.0, 3.0], [20.0], [2.0])
    assert (low, high) == ([1.0], [39.0])
    assert [ax.get_title(loc="left") for ax in axes] == ["row 0", "row 1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "observed",
        "truth",
        "imputed: median and 95%",
    ]


def test_imputed_images(figure: Figure) -> None:
    """The data with their holes, the mean, draws, and the truth."""
    y = torch.tensor([[[0.0, torch.nan], [1.0, 1.0]]])
    draws = torch.rand(5, 1, 2, 2)
    axes = plot_imputation(y, draws, y.nan_to_num(), (2, 2), figure=figure)
    labels = ["data", "mean", "draw 1", "draw 2", "draw 3", "truth"]
    assert [ax.get_ylabel() for ax in axes] == labels
    assert bool(np.ma.getmaskarray(axes[0].images[0].get_array())[0, 1])
    np.testing.assert_allclose(axes[1].images[0].get_array(), draws.double().mean(dim=0)[0])


@pytest.mark.parametrize(
    ("draws", "truth"),
    [
        (np.zeros((5, 3, 2)), None),
        (np.zeros((0, 2, 2)), None),
        (np.zeros((5, 2, 2)), np.zeros((1, 2))),
    ],
)
def test_bad_imputations(draws: Any, truth: Any, figure: Figure) -> None:
    """Of other rows, or none."""
    with pytest.raises(ValueError, match="pass draws and data for the same rows"):
        plot_imputation(np.zeros((2, 2)), draws, truth, figure=figure)


def test_densities(ax: Axes) -> None:
    """A curve with two errors to each side, and what the feature was."""
    grid = np.linspace(0, 1, 5)
    pair = (grid + 1, np.full(5, 0.25))
    plot_conditional_density(grid, {"a": pair}, {"a": torch.tensor(0.5)}, name="size", ax=ax)
    curve, where = ax.lines
    assert np.asarray(curve.get_ydata()).tolist() == (grid + 1).tolist()
    assert np.asarray(where.get_xdata()).tolist() == [0.5, 0.5]
    band = np.asarray(ax.collections[0].get_paths()[0].vertices)
    assert (float(np.min(band[:, 1])), float(np.max(band[:, 1]))) == (0.5, 2.5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("size", "density")


def test_probabilities(ax: Axes) -> None:
    """Points side by side, not curves."""
    grid = np.array([0.0, 1.0])
    pairs = {"a": (grid, grid / 10), "b": (1 - grid, grid / 10)}
    plot_conditional_density(grid, pairs, discrete=True, ax=ax)
    places = [np.asarray(box[0].get_xdata()) for box in ax.containers]
    assert float(places[1][0] - places[0][0]) == pytest.approx(0.12)
    assert ax.get_ylabel() == "probability"


def test_bad_densities(ax: Axes) -> None:
    """None, or one of another grid."""
    with pytest.raises(ValueError, match="at least one"):
        plot_conditional_density(np.zeros(2), {}, ax=ax)
    with pytest.raises(ValueError, match="of the grid"):
        plot_conditional_density(np.zeros(2), {"a": (np.zeros(3), np.zeros(3))}, ax=ax)


def test_outliers(figure: Figure) -> None:
    """Marks at every datum's density, those flagged apart; tail probabilities in order."""
    log_p, p = torch.tensor([-1.0, -9.0, -2.0]), torch.tensor([0.9, 0.01, 0.4])
    left, right = plot_outliers(log_p, p, torch.linspace(-4, 0, 50), p < 0.05, figure=figure)
    ordinary, far = left.collections
    assert [float(segment[0, 0]) for segment in ordinary.get_segments()] == [-1.0, -2.0]
    assert [float(segment[0, 0]) for segment in far.get_segments()] == [-9.0]
    np.testing.assert_allclose(lines(right)[1], [0.4, 0.9], rtol=1e-6)
    np.testing.assert_allclose(lines(right)[2], [0.01], rtol=1e-6)
    with pytest.raises(ValueError, match="may be empty; got"):
        plot_outliers(log_p, p[:2], log_p, p < 0, figure=figure)


def test_one_outlier_hides_no_reference(figure: Figure) -> None:
    """Neither among the data nor among the reference itself."""
    held = torch.cat([torch.linspace(-4, 0, 500), torch.tensor([-900.0])])
    log_p = torch.tensor([-1.0, -5000.0, -2.0])
    left, _ = plot_outliers(log_p, log_p.exp(), held, log_p < -9, figure=figure)
    assert left.get_xlim()[0] > -15
    assert "1 datum beyond the axis" in left.get_xlabel()


@pytest.mark.parametrize("rest", [[], [0.0, 1.0]], ids=["all", "some"])
def test_a_reference_that_the_model_rules_out(figure: Figure, rest: list[float]) -> None:
    """Its log density is minus infinity, which is drawn at the edge."""
    held = torch.tensor([-torch.inf, *rest])
    left, _ = plot_outliers(held, held.exp(), held, held < 0, figure=figure)
    assert np.isfinite(left.get_xlim()).all()


def test_imputed_entries_of_many_categories_have_names(figure: Figure) -> None:
    """Those that are imputed; an axis of fifteen names could not be read."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"site": [f"s{place % 15:02}" for place in range(60)]})
    columns = Columns.of(table, {"site": Categories})
    codes = torch.tensor([3.0, 3.0, 7.0, 0.0])[:, None]
    missing = torch.tensor([True, True, True, False])[:, None]
    (ax,) = plot_filled(codes, codes.expand(9, 4, 1), missing, columns, figure=figure)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["s03", "s07"]


def test_densities_of_positive_numbers(ax: Axes) -> None:
    """On a logarithmic axis areas are probabilities, and ticks are plain numbers."""
    grid = np.exp(np.linspace(-7, 7, 401))
    curves = {}
    for place, middle in enumerate((-2.0, 2.0)):
        density = np.exp(-((np.log(grid) - middle) ** 2) / 2) / grid / np.sqrt(2 * np.pi)
        curves[f"row {place}"] = (density, 0 * density)
    plot_conditional_density(grid, curves, ax=ax)
    assert ax.get_xscale() == "log"
    assert ax.get_ylabel() == "density of the logarithm"
    for line in lines(ax):
        assert max(line) == pytest.approx(1 / np.sqrt(2 * np.pi), rel=1e-3)
    low, high = ax.get_xlim()
    assert 0 < low < np.exp(-4)
    assert np.exp(4) < high < np.exp(7)
    assert "1" in [text.get_text() for text in ax.get_xticklabels()]


def test_features_without_dependence_are_left_out(ax: Axes) -> None:
    """Categories have no correlation: no blank rows, and their names above."""
    value = torch.full((4, 4), torch.nan)
    value[1:3, 1:3] = 0.5
    plot_dependence(value, ["site", "a", "b", "kind"], ax=ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_title(loc="left") == "no correlation of site, kind"


def test_similarity_of_unlike_rows(ax: Axes) -> None:
    """Hundreds of nats do not hide those that are alike; rows are whole numbers."""
    value = torch.full((6, 6), -300.0).fill_diagonal_(8.0)
    plot_similarity(value, ax=ax)
    shades = np.asarray(ax.images[0].norm(np.array([8.0, 0.0])))
    assert shades[0] > 0.65
    assert shades[1] == pytest.approx(0.5)
    assert all(float(tick).is_integer() for tick in ax.get_yticks())


def test_dependence(ax: Axes) -> None:
    """Cells by name; what is within two errors of zero in brackets; the diagonal blank."""
    value = torch.tensor([[1.0, -0.5, 0.01], [-0.5, 1.0, 0.9], [0.01, 0.9, 1.0]])
    plot_dependence(value, ["a", "b", "c"], torch.full((3, 3), 0.02), ax=ax)
    texts = [text.get_text() for text in ax.texts]
    assert texts[:2] == ["\N{MINUS SIGN}0.50", "(0.01)"]
    assert len(texts) == 6
    array: Any = ax.images[0].get_array()
    assert bool(np.ma.getmaskarray(array).diagonal().all() or np.isnan(array.diagonal()).all())
    assert ax.images[0].get_clim() == (-1.0, 1.0)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_information_starts_at_zero(ax: Axes) -> None:
    """And runs to the largest; many features have neither numbers nor names."""
    value = np.full((50, 50), 0.3)
    measure = "mutual information (nats)"
    plot_dependence(value, [str(n) for n in range(50)], measure=measure, ax=ax)
    assert ax.images[0].get_clim() == (0.0, 0.3)
    assert not ax.texts
    assert ax.get_xlabel() == "feature"
    assert ax.figure.axes[-1].get_ylabel() == measure
    with pytest.raises(ValueError, match="every pair of the 3 names"):
        plot_dependence(np.eye(2), ["a", "b", "c"], ax=ax)


def test_densities_are_shown_where_they_are() -> None:
    """A long tail does not press the curve to the axis; an observed value is always seen."""
    grid = np.linspace(0.0, 1000.0, 2001)
    curve = np.exp(-grid / 2)
    ax = plot_conditional_density(grid, {"a": (curve, 0 * grid)}, ax=Figure().subplots())
    assert 8 < ax.get_xlim()[1] < 15
    observed = {"a": 400.0}
    ax = plot_conditional_density(grid, {"a": (curve, 0 * grid)}, observed, ax=Figure().subplots())
    assert ax.get_xlim()[1] > 400


NAMES = ["$x_$^", "$10k-$20k_"]
TABLE = Columns.of({name: ["$1-$2_", "$2^-$3_", "more"] * 3 for name in NAMES})
CODES = np.zeros((9, 2))
GONE = np.array([1.0, 1.0, np.nan, np.nan])
NAMED: dict[str, Callable[[Figure], object]] = {
    "effects": lambda figure: plot_effects(np.eye(2), ["y", "z"], NAMES, ax=figure.subplots()),
    "walks": lambda figure: plot_walks(
        CODES[None], ["z"], [n / 9 for n in range(9)], TABLE, [0, 1], figure=figure
    ),
    "filled": lambda figure: plot_filled(
        CODES, CODES[None].repeat(3, 0), CODES == 0, TABLE, figure=figure
    ),
    "dependence": lambda figure: plot_dependence(np.eye(2), NAMES, ax=figure.subplots()),
    "no dependence": lambda figure: plot_dependence(
        np.outer(GONE, GONE),
        ["a", "b", *NAMES],
        ax=figure.subplots(),
    ),
    "traversal": lambda figure: plot_traversal(
        np.zeros((1, 3, 2)), ["z"], (0.1, 0.5, 0.9), names=NAMES, figure=figure
    ),
    "density": lambda figure: plot_conditional_density(
        np.arange(3.0), {"row": (np.ones(3), np.ones(3))}, name=NAMES[0], ax=figure.subplots()
    ),
    "check": lambda figure: plot_predictive_check(
        {NAMES[0]: 1.0}, {NAMES[0]: np.arange(9.0)}, figure=figure
    ),
}


@pytest.mark.parametrize("plot", NAMED)
def test_dollars_in_names_and_categories_start_no_formula(plot: str, figure: Figure) -> None:
    """Brackets of an income were drawn as formulas, and names with an underscore were errors."""
    NAMED[plot](figure)
    figure.savefig(BytesIO())
