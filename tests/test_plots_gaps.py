"""Figures of gaps hold the numbers they were given, and refuse others."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.patches import Rectangle

from pyro_vae._types import Estimate
from pyro_vae.plots.estimates import plot_gap_shares, plot_gaps
from tests.helpers.figures import legend

PARTS: Any = {
    "encoder": {
        "approximation": Estimate(torch.tensor(0.125), torch.tensor(0.0125)),
        "amortization": (0.06, 0.002),
    },
    "per-datum": {"approximation": (0.13, 0.01), "amortization": (-0.02, float("nan"))},
}


def spans(ax: Axes) -> list[list[tuple[float, float]]]:
    """Where bars start and how wide they are, part by part."""
    bars = [item for item in ax.containers if isinstance(item, BarContainer)]
    return [[(patch.get_x(), patch.get_width()) for patch in bar.patches] for bar in bars]


def test_parts_stand_end_to_end(ax: Axes) -> None:
    """Each starts where the one before ends; one below zero goes back."""
    assert plot_gaps(PARTS, ax=ax) is ax
    first, second = spans(ax)
    np.testing.assert_allclose(first, [(0, 0.125), (0, 0.13)])
    np.testing.assert_allclose(second, [(0.125, 0.06), (0.13, -0.02)])
    assert legend(ax) == ["approximation", "amortization"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["encoder", "per-datum"]
    top, bottom = ax.get_ylim()[::-1]
    assert top < bottom  # the first guide is at the top
    assert [text.get_text() for text in ax.texts] == [
        "0.125 ± 0.013 + 0.0600 ± 0.0020",
        "0.130 ± 0.010 + \N{MINUS SIGN}0.02",
    ]
    assert "nats per datum" in ax.get_xlabel()


def test_errors_are_drawn_at_the_ends(ax: Axes) -> None:
    """One standard error to each side; none where it is not known."""
    plot_gaps(PARTS, ax=ax)
    segments = [item.get_segments() for item in ax.collections]  # type: ignore[attr-defined]
    ends = [[(bar[0][0], bar[1][0]) for bar in part] for part in segments]
    np.testing.assert_allclose(ends[0][0], (0.1125, 0.1375))
    np.testing.assert_allclose(ends[1], [(0.183, 0.187), (0.11, 0.11)])


@pytest.mark.parametrize("lost", [(np.inf, 1.0), (np.nan, np.nan), (-np.inf, np.inf)])
def test_a_part_that_is_not_finite_hides_no_other(lost: tuple[float, float], ax: Axes) -> None:
    """Its number says so; an infinite error alone hides nothing either."""
    plot_gaps({"a": {"one": lost, "two": (1.0, np.inf)}}, ax=ax)
    assert spans(ax) == [[(0, 0)], [(0, 1)]]
    assert ax.get_xlim()[1] == pytest.approx(1.05, abs=0.01)
    assert ax.texts[0].get_text().endswith("+ 1.000 ± inf")


def test_parts_can_be_told_apart_in_grey(ax: Axes) -> None:
    """By colour and by hatching."""
    plot_gaps(PARTS, ax=ax)
    patches = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    looks = {(patch.get_facecolor(), patch.get_hatch()) for patch in patches}
    assert len(looks) == 2
    assert len({hatch for _, hatch in looks}) == 2


def test_a_guide_may_lack_a_part(ax: Axes) -> None:
    """The exact posterior has no amortization gap to be told of."""
    plot_gaps({"exact": {"approximation": (0.1, float("nan"))}, **PARTS}, ax=ax)
    assert spans(ax)[1][0] == (0.1, 0.0)
    assert ax.texts[0].get_text() == "0.10"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "at least one entry"),
        ({"encoder": {}}, "must have a gap"),
        ({"encoder": {"amortization": (np.zeros(3), np.zeros(3))}}, "average over the data"),
    ],
)
def test_what_is_no_gap_is_refused(parts: Any, message: str, ax: Axes) -> None:
    """In words."""
    with pytest.raises(ValueError, match=message):
        plot_gaps(parts, ax=ax)


def test_shares_are_cumulative(ax: Axes) -> None:
    """Largest first, in percent of the sum; equal gaps are the dotted line."""
    gaps: Any = {"encoder": torch.tensor([1.0, 6.0, 1.0, 2.0]), "flat": np.ones(5)}
    assert plot_gap_shares(gaps, ax=ax) is ax
    first, second, dotted = ax.lines
    np.testing.assert_allclose(np.asarray(first.get_xdata()), [0, 25, 50, 75, 100])
    np.testing.assert_allclose(np.asarray(first.get_ydata()), [0, 60, 80, 90, 100])
    np.testing.assert_allclose(np.asarray(second.get_xdata()), np.asarray(second.get_ydata()))
    np.testing.assert_allclose(np.asarray(dotted.get_ydata()), [0, 100])
    assert legend(ax) == ["encoder", "flat", "the same for every datum"]
    assert first.get_marker() != second.get_marker()
    assert "%" in ax.get_xlabel()
    assert "%" in ax.get_ylabel()


def test_no_gap_has_no_shares(ax: Axes) -> None:
    """And a negative one makes the curve fall."""
    plot_gap_shares({"best": np.array([-0.1, 0.1]), "mixed": np.array([3.0, -1.0])}, ax=ax)
    assert legend(ax)[0] == "best: no gap"
    assert len(np.asarray(ax.lines[0].get_xdata())) == 0
    np.testing.assert_allclose(np.asarray(ax.lines[1].get_ydata()), [0, 150, 100])


@pytest.mark.parametrize("values", [np.zeros((2, 2)), np.array([0.1, np.nan]), np.zeros(0)])
def test_gaps_that_are_no_numbers_are_refused(values: Any, ax: Axes) -> None:
    """Shape, nan, none."""
    with pytest.raises(ValueError, match="gaps of 'encoder' must be finite"):
        plot_gap_shares({"encoder": values}, ax=ax)
