"""Figures hold the numbers they were given, refuse what they cannot draw, and leave no trace."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.plots import (
    plot_comparison,
    plot_effects,
    plot_latent_plane,
    plot_learning_curves,
    plot_pareto_k,
    plot_reconstructions,
    plot_traversal,
)
from pyro_vae.plots.drawing import (
    CATEGORY_COLOURS,
    GUIDE_COLOURS,
    MARKERS,
    fitting_columns,
    handles,
    style,
)
from tests.helpers.figures import legend, texts, xy

Array = Tensor | NDArray[Any]
GUIDES = ("amortized", "per-datum", "global")


class Curve(NamedTuple):
    """A curve as `fit` leaves it."""

    epoch: Array
    elbo: Array
    validation_elbo: Array | None = None


class BareCurve(NamedTuple):
    """A curve of somebody who knows no validation."""

    epoch: Array
    elbo: Array


class Pair(NamedTuple):
    """As `pyro_vae.Estimate`."""

    value: Tensor
    error: Tensor


# Learning curves


def test_curves_are_the_numbers_given(ax: Axes) -> None:
    """Gaps in the validation are joined; every other number is drawn, in one colour a guide."""
    epoch = np.arange(1, 5)
    elbo = torch.tensor([-9.0, -5.0, -4.0, -3.5], requires_grad=True)
    validation = np.array([np.nan, -6.0, np.nan, -4.5])
    curves = {"amortized": Curve(epoch, elbo, validation), "global": Curve(epoch, elbo - 1)}
    assert plot_learning_curves(curves, ax=ax) is ax
    training, held_out, other = ax.lines
    np.testing.assert_array_equal(xy(training), (epoch, elbo.detach()))
    np.testing.assert_array_equal(xy(held_out), ([2, 4], [-6.0, -4.5]))
    np.testing.assert_array_equal(xy(other), (epoch, elbo.detach() - 1))
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--", "-"]
    assert training.get_color() == held_out.get_color() != other.get_color()
    assert legend(ax) == ["amortized", "global", "training", "validation"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "ELBO (nats per datum)")


@pytest.mark.parametrize("curve", [BareCurve, Curve], ids=["no attribute", "None"])
def test_curves_without_validation_name_only_guides(
    ax: Axes, curve: Callable[[Array, Array], Curve | BareCurve]
) -> None:
    """There is one line, and no word on validation."""
    plot_learning_curves({"global": curve(np.arange(2), np.array([-2.0, -1.0]))}, ax=ax)
    assert len(ax.lines) == 1
    assert legend(ax) == ["global"]


def test_first_epochs_do_not_set_the_scale(ax: Axes) -> None:
    """A start at minus a million leaves the end legible."""
    elbo = np.array([-1e6, -1e3, -50.0, -30.0, -21.0, -20.5, -20.2, -20.0])
    plot_learning_curves({"amortized": Curve(np.arange(8), elbo)}, ax=ax)
    low, high = ax.get_ylim()
    assert -23 < low < np.quantile(elbo[4:], 0.05)
    assert -20 < high < -19


def test_a_late_collapse_is_in_sight(ax: Axes) -> None:
    """The last value is shown even where the quantile passes over it."""
    elbo = np.array([-9.0, *[-2.0] * 60, -500.0])
    plot_learning_curves({"amortized": Curve(np.arange(62), elbo)}, ax=ax)
    assert ax.get_ylim()[0] < -500


@pytest.mark.parametrize("values", [[-7.0], [np.nan, np.nan], [-np.inf, -7.0]])
def test_curves_with_one_number_or_none_have_limits(ax: Axes, values: list[float]) -> None:
    """Too few numbers for a scale give one all the same."""
    plot_learning_curves({"global": Curve(np.arange(len(values)), np.array(values))}, ax=ax)
    low, high = ax.get_ylim()
    assert np.isfinite([low, high]).all()
    assert low < high


@pytest.mark.parametrize(
    ("curve", "shapes"),
    [
        (Curve(np.arange(3), np.zeros(4)), r"\(3,\), \(4,\), \(4,\)"),
        (Curve(np.arange(3), np.zeros(3), np.zeros(2)), r"\(3,\), \(3,\), \(2,\)"),
        (Curve(np.zeros((3, 1)), np.zeros((3, 1))), r"\(3, 1\), \(3, 1\), \(3, 1\)"),
    ],
)
def test_curves_of_other_shapes_are_refused(ax: Axes, curve: Curve, shapes: str) -> None:
    """The message has the guide and the three shapes."""
    with pytest.raises(ValueError, match=rf"\(epochs,\) for 'global'; got {shapes}: pass"):
        plot_learning_curves({"global": curve}, ax=ax)


# Reconstructions


def shown(ax: Any) -> list[NDArray[Any]]:
    """The images of a row."""
    return [np.asarray(image.get_array()) for image in ax.images]


def test_images_stand_in_their_rows(rng: np.random.Generator) -> None:
    """Data, reconstructions, prior draws, under their names and in one grey scale."""
    originals = torch.as_tensor(rng.random((4, 6)), dtype=torch.float32)
    reconstructions = {name: rng.random((4, 6)) * 2 for name in GUIDES[:2]}
    draws = {name: rng.random((3, 6)) - 1 for name in GUIDES[:2]}
    axes = plot_reconstructions(originals, reconstructions, draws, (2, 3), figure=Figure())
    assert axes.shape == (5,)
    rows = [originals.numpy(), *reconstructions.values(), *draws.values()]
    for ax, row in zip(axes, rows, strict=True):
        np.testing.assert_array_equal(shown(ax), row.reshape(-1, 2, 3))
    labels = [ax.get_ylabel() for ax in axes]
    assert labels == ["data", "amortized", "per-datum", "amortized", "per-datum"]
    titles = [ax.get_title() for ax in axes]
    assert titles == ["", "reconstructions", "", "draws from the prior", ""]
    limits = {image.get_clim() for ax in axes for image in ax.images}
    assert limits == {(min(map(np.min, rows)), max(map(np.max, rows)))}
    places = [[image.get_extent()[0] for image in ax.images] for ax in axes]
    assert [[int(left) for left in row] for row in places] == 3 * [[0, 1, 2, 3]] + 2 * [[0, 1, 2]]


def test_images_may_come_with_their_shape(rng: np.random.Generator) -> None:
    """Channels and axes of images are flattened away."""
    originals = rng.random((2, 1, 3, 3))
    axes = plot_reconstructions(originals, {}, {}, (3, 3), figure=Figure())
    np.testing.assert_array_equal(shown(axes[0]), originals[:, 0])


def test_other_data_are_profiles_over_the_original(rng: np.random.Generator) -> None:
    """Without an image shape, lines: the reconstruction before its original."""
    originals, mean, draw = rng.normal(size=(3, 2, 5))
    axes = plot_reconstructions(originals, {"global": mean}, {"global": draw}, figure=Figure())
    assert [[len(ax.lines) for ax in row] for row in axes] == [[1, 1], [2, 2], [1, 1]]
    for column in range(2):
        behind, before = axes[1, column].lines
        np.testing.assert_array_equal(behind.get_ydata(), originals[column])
        np.testing.assert_array_equal(before.get_ydata(), mean[column])
        np.testing.assert_array_equal(axes[0, column].lines[0].get_ydata(), originals[column])
        (drawn,) = axes[2, column].lines
        np.testing.assert_array_equal(drawn.get_ydata(), draw[column])
        assert drawn.get_color() == before.get_color() != behind.get_color()
    values = np.concatenate([originals, mean, draw])
    assert len({ax.get_ylim() for ax in axes.flat}) == 1
    assert axes[0, 0].get_ylim()[0] < values.min() < values.max() < axes[0, 0].get_ylim()[1]
    assert {ax.get_xlabel() for ax in axes[-1]} == {"feature"}


@pytest.mark.parametrize(
    ("originals", "reconstructions", "draws", "image_shape", "message"),
    [
        ((6,), None, None, None, r"`originals` .* \(images, \*event\); got \(6,\): pass"),
        ((0, 6), None, None, None, r"got \(0, 6\): pass at least one datum"),
        (
            (2, 6),
            (3, 6),
            None,
            None,
            r"reconstructions\['global'\]` must have the shape \(2, 6\).*\(3, 6\)",
        ),
        (
            (2, 6),
            None,
            (4, 5),
            None,
            r"prior_draws\['global'\]` must have the shape \(4, 6\).* got \(4, 5\)",
        ),
        ((2, 6), None, (0, 6), None, r"prior_draws\['global'\].* at least one draw"),
        (
            (2, 6),
            None,
            None,
            (2, 2),
            r"`image_shape` must .*; got \(2, 2\) for data with 6 features",
        ),
    ],
)
def test_images_of_other_shapes_are_refused(
    originals: tuple[int, ...],
    reconstructions: tuple[int, ...] | None,
    draws: tuple[int, ...] | None,
    image_shape: tuple[int, int] | None,
    message: str,
) -> None:
    """The message has the argument, the guide and both shapes."""
    figure = Figure()
    means = {} if reconstructions is None else {"global": np.zeros(reconstructions)}
    prior = {} if draws is None else {"global": np.zeros(draws)}
    with pytest.raises(ValueError, match=message):
        plot_reconstructions(np.zeros(originals), means, prior, image_shape, figure=figure)
    assert not figure.axes  # refused before anything is drawn


# The latent plane


def offsets(ax: Axes) -> list[NDArray[Any]]:
    """Where the points of each scatter are."""
    return [np.asarray(points.get_offsets()) for points in ax.collections]


def plane_legend(figure: Figure) -> list[str]:
    """The entries of the legend over the panels."""
    return texts(figure.legends[0].get_texts())


def test_every_mean_is_on_the_plane(rng: np.random.Generator) -> None:
    """With the prior's two circles in each panel."""
    means = {name: torch.as_tensor(rng.normal(size=(7, 2))) for name in GUIDES}
    figure = Figure()
    axes = plot_latent_plane(means, figure=figure)
    assert [ax.get_title() for ax in axes] == list(GUIDES)
    for ax, mean in zip(axes, means.values(), strict=True):
        np.testing.assert_array_equal(offsets(ax), [mean.numpy()])
        radii = [np.hypot(*xy(circle)) for circle in ax.lines]
        np.testing.assert_allclose(radii, [[1.0] * 200, [2.0] * 200])
        assert ax.get_aspect() == 1
    assert plane_legend(figure) == ["posterior mean", "prior, 1 sd", "prior, 2 sd"]


def test_panels_share_a_scale_that_holds_the_prior_and_all_means() -> None:
    """Panels can be compared, and the outer circle is always in sight."""
    near, far = np.array([[0.0, 0.1]]), np.array([[0.0, -30.0]])
    for means, outermost in (({"a": near}, 2.0), ({"a": near, "b": far}, 30.0)):
        for ax in plot_latent_plane(means, figure=Figure()):
            assert ax.get_xlim() == ax.get_ylim() == (-1.08 * outermost, 1.08 * outermost)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.array([3, 1, 3, 1]), ["1", "3"]),
        (torch.tensor([3.0, 1.0, 3.0, 1.0]), ["1", "3"]),
        (np.array([True, False, True, False]), ["False", "True"]),
        (np.array(["b", "a", "b", "a"]), ["a", "b"]),
        (np.array([3.0, 1.0, 3.0, 1.0, np.nan]), ["1", "3"]),
        (np.array(["b", "a", "b", "a", np.nan], dtype=object), ["a", "b"]),
    ],
    ids=["integers", "whole floats", "booleans", "strings", "with nan", "strings with nan"],
)
def test_few_labels_are_categories(labels: Array, names: list[str]) -> None:
    """Each has a scatter of its own, and a name; a datum without a label is not drawn."""
    mean = np.arange(2.0 * len(labels)).reshape(-1, 2)
    figure = Figure()
    (ax,) = plot_latent_plane({"amortized": mean}, labels, figure=figure)
    np.testing.assert_array_equal(offsets(ax), [mean[1:4:2], mean[:4:2]])
    assert plane_legend(figure) == [*names, "prior, 1 sd", "prior, 2 sd"]
    assert len(figure.axes) == 1


@pytest.mark.parametrize("labels", [np.linspace(0, 1, 12), np.arange(12)], ids=["real", "many"])
def test_other_labels_have_a_colour_bar(labels: NDArray[Any]) -> None:
    """One for all panels."""
    figure = Figure(layout="compressed")
    axes = plot_latent_plane({"a": np.ones((12, 2)), "b": np.ones((12, 2))}, labels, figure=figure)
    for ax in axes:
        np.testing.assert_array_equal(ax.collections[0].get_array(), labels)
    assert len(figure.axes) == 3


@pytest.mark.parametrize("shape", [(5, 3), (5, 1), (5,)])
def test_only_two_latents_make_a_plane(shape: tuple[int, ...]) -> None:
    """The message has the guide and its shape."""
    means = {"amortized": np.zeros((5, 2)), "global": np.zeros(shape)}
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"'global' .* \(data, 2\), .*; got {got}: .*projection"):
        plot_latent_plane(means, figure=Figure())


def test_labels_of_other_data_are_refused() -> None:
    """The message has both numbers."""
    with pytest.raises(ValueError, match=r"\(5,\) for 'global', .*; got \(4,\)"):
        plot_latent_plane({"global": np.zeros((5, 2))}, np.zeros(4), figure=Figure())


# Comparison


def test_estimates_are_where_they_belong(ax: Axes) -> None:
    """Values, errors on both sides, guides from the top, gaps where there is no estimate."""
    rows: dict[str, dict[str, tuple[float | Array, float | Array]]] = {
        "amortized": {"ELBO": Pair(torch.tensor(-19.8), torch.tensor(0.25)), "log p": (-18.0, 0.5)},
        "global": {"ELBO": (-30.0, 1.0)},
    }
    assert plot_comparison(rows, ax=ax) is ax
    elbo, log_p = ax.containers
    np.testing.assert_allclose(xy(elbo[0]), ([-19.8, -30.0], [-0.25, 0.75]), rtol=1e-6)
    np.testing.assert_allclose(xy(log_p[0]), ([-18.0], [0.25]))
    ends = [segment[:, 0] for segment in elbo[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[-20.05, -19.55], [-31.0, -29.0]], rtol=1e-6)
    assert texts(ax.get_yticklabels()) == ["amortized", "global"]
    assert ax.yaxis_inverted()  # the first guide on top
    assert legend(ax) == ["ELBO", "log p"]
    assert ax.get_xlabel() == "nats per datum (± 1 standard error)"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-18.1234, 0.18, "\N{MINUS SIGN}18.12 ± 0.18"),
        (-18.1234, 0.0181, "\N{MINUS SIGN}18.123 ± 0.018"),
        (18.1234, 1e-9, "18.1234 ± <0.0001"),
        (-5182.4, 12.3, "\N{MINUS SIGN}5182 ± 12"),
        (-18.1234, float("nan"), "\N{MINUS SIGN}18.12"),
        (-18.1234, 0.0, "\N{MINUS SIGN}18.1234 ± 0.0000"),
        (float("nan"), float("nan"), "nan"),
    ],
)
def test_numbers_have_two_digits_of_their_error(
    ax: Axes, value: float, error: float, text: str
) -> None:
    """And no error where it is unknown."""
    plot_comparison({"global": {"ELBO": (value, error)}}, ax=ax)
    assert texts(ax.texts) == [text]


def test_estimates_of_single_data_are_refused(ax: Axes) -> None:
    """The message says to average."""
    pair = Pair(torch.zeros(3), torch.ones(3))
    with pytest.raises(
        ValueError, match=r"'ELBO' of 'global' .*; got the shapes \(3,\) and \(3,\): av"
    ):
        plot_comparison({"global": {"ELBO": pair}}, ax=ax)


def test_guides_without_estimates_are_refused(ax: Axes) -> None:
    """The message has the guides."""
    with pytest.raises(ValueError, match=r"at least one of \['global'\] must have .*; got none"):
        plot_comparison({"global": {}}, ax=ax)


# What all share

PLOTS: dict[str, Callable[..., Any]] = {
    "learning curves": lambda **where: plot_learning_curves(
        {name: Curve(np.arange(9), np.arange(9.0) - 9) for name in GUIDES}, **where
    ),
    "Pareto k": lambda **where: plot_pareto_k(
        {name: np.array([0.2, -np.inf, np.inf, np.nan]) for name in GUIDES}, **where
    ),
    "comparison": lambda **where: plot_comparison(
        {name: {"ELBO": (-1.0, 0.1), "log p": (-0.5, 0.1)} for name in GUIDES}, **where
    ),
    "effects": lambda **where: plot_effects(
        np.eye(3, 7), [f"z[{latent}]: 0.83 nats" for latent in range(3)], ["colour"] * 7, **where
    ),
}
FOUR = np.eye(4)
GRIDS: dict[str, Callable[..., Any]] = {
    "images": lambda **where: plot_reconstructions(
        FOUR[:2], dict.fromkeys(GUIDES, FOUR[:2]), {"global": FOUR[:2]}, (2, 2), **where
    ),
    "profiles": lambda **where: plot_reconstructions(
        FOUR[:2], dict.fromkeys(GUIDES, FOUR[:2]), {"global": FOUR[:2]}, **where
    ),
    "traversal": lambda **where: plot_traversal(
        np.zeros((8, 5, 16)),
        [f"z[{latent}]: 0.83 nats" for latent in range(8)],
        [0.1, 0.2, 0.5, 0.8, 0.9],
        (4, 4),
        **where,
    ),
    "latent plane": lambda **where: plot_latent_plane(
        dict.fromkeys(GUIDES, np.eye(2)), np.array([0, 1]), **where
    ),
}


@pytest.mark.parametrize("width", [3.3, 6.4], ids=["column", "page"])
@pytest.mark.parametrize("name", PLOTS | GRIDS)
def test_all_is_within_the_figure(name: str, width: float) -> None:
    """Nothing is cut off when saved, and the layout finds room, at the width of a column too."""
    square = name in ("images", "traversal", "latent plane")
    figure = Figure(figsize=(width, 4.0), layout="compressed" if square else "constrained")
    _ = PLOTS[name](ax=figure.subplots()) if name in PLOTS else GRIDS[name](figure=figure)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert box.x0 > -0.02  # inches
    assert box.y0 > -0.02
    assert box.x1 < width + 0.02
    assert box.y1 < 4.02


def is_whole(figure: Figure) -> bool:
    """Whether nothing is cut off, to 0.02 inches."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    low, high = min(box.x0, box.y0), max(box.x1 - width, box.y1 - height)
    return bool(low > -0.02 and high < 0.02)


@pytest.mark.parametrize("size", [10.0, 14.0])
@pytest.mark.parametrize("name", PLOTS | GRIDS)
def test_a_new_figure_has_room_for_its_text(name: str, size: float) -> None:
    """At the usual size of text, and where rcParams ask for larger text."""
    import matplotlib.pyplot as plt

    with mpl.rc_context({"font.size": size}):
        _ = (PLOTS | GRIDS)[name]()
        assert is_whole(plt.gcf())
        plt.close()


@pytest.mark.parametrize("guides", [1, 2, 3])
def test_a_new_figure_has_room_for_ten_labels(guides: int) -> None:
    """Whose legend takes two rows or more above the planes."""
    import matplotlib.pyplot as plt

    means = np.random.default_rng(0).normal(size=(guides, 100, 2))
    plot_latent_plane(dict(zip("abc", means, strict=False)), np.arange(100) % 10)
    assert is_whole(plt.gcf())
    plt.close()


@pytest.mark.parametrize("name", PLOTS | GRIDS)
def test_pyplot_stays_out_of_a_figure_given(name: str, tmp_path: Path) -> None:
    """Saving leaves no figure open and no rcParam changed."""
    import matplotlib.pyplot as plt

    rc_params, open_before = dict(mpl.rcParams), plt.get_fignums()
    figure = Figure(layout="constrained")
    _ = PLOTS[name](ax=figure.subplots()) if name in PLOTS else GRIDS[name](figure=figure)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert plt.get_fignums() == open_before == []
    assert dict(mpl.rcParams) == rc_params


@pytest.mark.parametrize("name", PLOTS | GRIDS)
def test_a_new_figure_is_pyplots(name: str) -> None:
    """So a notebook shows it; it is one figure, current, and closed by its caller."""
    import matplotlib.pyplot as plt

    rc_params = dict(mpl.rcParams)
    axes = np.ravel((PLOTS | GRIDS)[name]())
    assert plt.get_fignums() == [1]
    assert axes[0].figure is plt.gcf()
    plt.gcf().draw_without_rendering()
    plt.close(axes[0].figure)
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == rc_params


@pytest.mark.parametrize("name", GRIDS)
def test_a_sub_figure_will_do(name: str) -> None:
    """It is drawn into, and its neighbour is not."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    assert np.ravel(GRIDS[name](figure=right))[0].figure is right
    assert not left.axes
    figure.draw_without_rendering()


def test_pyplot_is_not_imported_for_a_figure_given() -> None:
    """In a fresh interpreter, neither our import nor our call loads it."""
    code = (
        "import sys, numpy as np; from pyro_vae.plots import plot_pareto_k\n"
        "assert 'matplotlib' not in set(sys.modules) - before, 'the import loads matplotlib'\n"
        "from matplotlib.figure import Figure\n"
        "plot_pareto_k({'global': np.zeros(3)}, ax=Figure().subplots())\n"
        "assert 'matplotlib.pyplot' not in set(sys.modules) - before, 'the call loads pyplot'\n"
    )
    # What Pyro loads by itself is not ours to answer for.
    code = "import sys, pyro, torch, tqdm.auto; before = set(sys.modules)\n" + code
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    "plot", [plot_learning_curves, plot_latent_plane, plot_pareto_k, plot_comparison]
)
def test_nothing_to_draw_is_refused(plot: Callable[..., Any]) -> None:
    """Before a figure is opened."""
    import matplotlib.pyplot as plt

    with pytest.raises(ValueError, match="at least one entry; got an empty mapping"):
        plot({})
    assert plt.get_fignums() == []  # no empty figure is left behind


@pytest.mark.parametrize("colours", [GUIDE_COLOURS, CATEGORY_COLOURS], ids=["guides", "labels"])
def test_looks_differ(colours: tuple[str, ...]) -> None:
    """Two guides never look alike in colour, nor the first eleven in grey print."""
    number = len(colours) * len(MARKERS)
    looks = {tuple(style(n, colours).values()) for n in range(number)}
    assert len(looks) == number
    assert len({style(n, colours)["marker"] for n in range(11)}) == 11
    assert len({to_rgba(colour) for colour in colours}) == len(colours)


def test_bfloat16_is_drawn(ax: Axes) -> None:
    """Which NumPy does not know."""
    plot_pareto_k({"global": torch.tensor([0.25, 0.5], dtype=torch.bfloat16)}, ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.25, 0.5])


def test_legends_wrap_at_the_width() -> None:
    """Never below one column, never more columns than entries."""
    entries = handles(["x" * 10] * 5)  # 1.25 inches each, as reckoned
    assert [fitting_columns(inches, entries) for inches in (0.1, 2.6, 4.0, 99.0)] == [1, 2, 3, 5]
