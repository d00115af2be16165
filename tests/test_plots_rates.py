"""The figure of rate and distortion holds the numbers it was given."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_vae.plots.learning import plot_rate_distortion
from tests.helpers.figures import legend

BETAS = torch.tensor([0.5, 1.0, 4.0, 8.0])
RATE = np.array([6.0, 3.0, 0.01, 0.0])
DISTORTION = np.array([1.0, 3.0, 8.98, 9.0])
ERROR = np.full(4, 0.1)

Pair = tuple[NDArray[Any], NDArray[Any]]


def curves(*names: str) -> dict[str, tuple[Pair, Pair]]:
    """Curves one above the other."""
    return {
        name: ((RATE, ERROR), (DISTORTION + number, 2 * ERROR)) for number, name in enumerate(names)
    }


def test_points_and_errors(ax: Axes) -> None:
    """The curves in order, with their bars; betas that lie on each other share a label."""
    assert plot_rate_distortion(BETAS, curves("training", "held out"), ax=ax) is ax
    for number, container in enumerate(ax.containers):
        line, _, (across, up) = container
        np.testing.assert_array_equal(line.get_xydata(), np.c_[RATE, DISTORTION + number])
        assert np.ptp(across.get_segments()[0][:, 0]) == pytest.approx(0.2)
        assert np.ptp(up.get_segments()[0][:, 1]) == pytest.approx(0.4)
    assert [text.get_text() for text in ax.texts][:3] == ["β = 0.5", "1", "4\N{EN DASH}8"]
    assert legend(ax) == ["training", "held out"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "rate (nats per datum)",
        "distortion (nats per datum)",
    )


def test_lines_have_one_elbo(ax: Axes) -> None:
    """Slope -1 in data units, and the number beside a line is its own."""
    plot_rate_distortion(BETAS, curves("training"), ax=ax)
    lines = [np.asarray(line.get_xydata()) for line in ax.lines if line.get_color() == "0.75"]
    assert len(lines) >= 4
    np.testing.assert_allclose([np.diff(line[:, 1]) / np.diff(line[:, 0]) for line in lines], -1)
    notes = [text for text in ax.texts if text.get_text().startswith("ELBO")]
    assert notes
    for note in notes:
        elbo = float(note.get_text().split()[1].replace("\N{MINUS SIGN}", "-"))
        assert sum(note.get_position()) == pytest.approx(-elbo)


def test_bounds(ax: Axes) -> None:
    """The information joined to its rate; the region below the entropy, without lines in it."""
    information = np.array([1.9, 1.5, 0.0, 0.0])
    plot_rate_distortion(
        BETAS, curves("training"), information=(information, ERROR), entropy=2.0, ax=ax
    )
    assert legend(ax) == ["training", "information", "below H = 2.00: impossible"]
    joined = next(part for part in ax.collections if part.get_label() == "_information")
    ends = np.array([segment[:, 0] for segment in joined.get_segments()])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(ends, np.c_[information, RATE])
    shaded = next(part for part in ax.collections if str(part.get_label()).startswith("below"))
    corners = shaded.get_paths()[0].vertices
    assert np.asarray(corners).sum(axis=1).max() == pytest.approx(2.0)
    lines = [np.asarray(line.get_xydata()) for line in ax.lines if line.get_color() == "0.75"]
    assert min(line.sum(axis=1).min() for line in lines) > 2.0


def test_a_bound_out_of_sight_is_not_in_the_legend(ax: Axes) -> None:
    """An entropy far below what is drawn."""
    plot_rate_distortion(BETAS, curves("training"), entropy=-50.0, ax=ax)
    assert legend(ax) == ["training"]


def test_one_beta(ax: Axes) -> None:
    """A point, with room around it."""
    point = (np.array([2.0]), np.zeros(1))
    plot_rate_distortion(1.0, {"training": (point, point)}, ax=ax)
    assert ax.texts[0].get_text() == "β = 1"
    assert ax.get_ylim()[0] < 2 < ax.get_ylim()[1]


@pytest.mark.parametrize("lost", [np.inf, np.nan])
def test_a_rate_that_is_not_finite_hides_no_other(lost: float, ax: Axes) -> None:
    """The axes hold the other points."""
    rate = np.where(np.arange(len(RATE)) == 0, lost, RATE)
    plot_rate_distortion(BETAS, {"training": ((rate, ERROR), (DISTORTION, ERROR))}, ax=ax)
    assert ax.get_xlim()[0] < rate[1:].min()
    assert rate[1:].max() < ax.get_xlim()[1] < 2 * rate[1:].max()
    assert ax.figure.canvas is not None
    ax.figure.canvas.draw()


def test_other_shapes_are_refused(ax: Axes) -> None:
    """With what came."""
    with pytest.raises(
        ValueError, match=r"'training' must be given for each of the 2 betas.*\(4,\), \(4,\)"
    ):
        plot_rate_distortion(BETAS[:2], curves("training"), ax=ax)
    with pytest.raises(ValueError, match=r"'information'.*\(3,\)"):
        plot_rate_distortion(BETAS, curves("training"), information=(RATE[:3], ERROR[:3]), ax=ax)
    with pytest.raises(ValueError, match="at least one"):
        plot_rate_distortion(BETAS, {}, ax=ax)


@pytest.mark.parametrize("shift", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_labels_of_lines_hide_no_point(shift: float) -> None:
    """Wherever the lines of equal ELBO leave the axes, the last point lies left of the labels."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax, error = figure.subplots(), np.zeros(4)
    rate, distortion = np.array([6.2, 3.6, 2.0, 0.1]), np.array([18.4, 19.7, 22.0, 26.8]) + shift
    curve = {"training": ((rate, error), (distortion, error))}
    plot_rate_distortion(np.array([0.3, 1, 2, 4]), curve, ax=ax)
    figure.draw_without_rendering()
    edge = ax.get_xlim()[1]
    right = [note.get_window_extent() for note in ax.texts if note.get_position()[0] == edge]
    assert right
    assert min(box.x0 for box in right) > ax.transData.transform((6.2, 20.0))[0] + 3


@pytest.mark.parametrize("width", [3.3, 6.4], ids=["column", "page"])
def test_all_is_within_the_figure(width: float) -> None:
    """Nothing is cut off when saved, at the width of a column too."""
    figure = Figure(figsize=(width, 4.0), layout="constrained")
    plot_rate_distortion(
        BETAS,
        curves("training data", "held out"),
        information=(RATE / 2, ERROR),
        entropy=2.0,
        ax=figure.subplots(),
    )
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) > -0.02  # inches
    assert box.x1 < width + 0.02
    assert box.y1 < 4.02


def test_a_new_figure_is_pyplots() -> None:
    """So a notebook shows it, and it is closed by its caller."""
    import matplotlib.pyplot as plt

    ax = plot_rate_distortion(BETAS, curves("training"))
    assert plt.get_fignums() == [1]
    assert ax.figure is plt.gcf()
    plt.close(plt.gcf())
