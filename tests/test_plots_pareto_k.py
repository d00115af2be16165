"""The figure of Pareto k-hats holds the numbers it was given."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from pyro_vae.plots import plot_pareto_k
from tests.helpers.figures import legend, texts, xy


def test_k_hats_are_the_numbers_given(ax: Axes) -> None:
    """Numbers are where they were, and nan is counted; 0.7 itself is not above 0.7."""
    many, few = torch.tensor([0.2, 0.71, 0.7, 1.5], dtype=torch.float64), np.array([0.1, np.nan])
    assert plot_pareto_k({"amortized": many, "global": few}, ax=ax) is ax
    first, second, threshold = ax.lines
    np.testing.assert_array_equal(xy(first), (range(4), many))
    np.testing.assert_array_equal(xy(second), (range(2), few))
    assert threshold.get_ydata() == [0.7, 0.7]
    assert legend(ax) == ["amortized: 2/4 > 0.7", "global: 0/2 > 0.7, 1 nan", "threshold 0.7"]
    assert not ax.texts


def test_infinite_k_hats_lie_beyond_the_others(ax: Axes) -> None:
    """They have ticks of their own, and no tick gives them a number."""
    plot_pareto_k({"exact": np.array([-np.inf, -0.3, 0.9, np.inf])}, ax=ax)
    bottom, lowest, highest, top = np.asarray(ax.lines[0].get_ydata())
    assert (lowest, highest) == (-0.3, 0.9)
    assert ax.get_ylim()[0] < bottom < lowest < highest < top < ax.get_ylim()[1]
    ticks = dict(zip(texts(ax.get_yticklabels()), ax.get_yticks(), strict=True))
    assert ticks.pop(r"$-\infty$") == bottom
    assert ticks.pop(r"$\infty$") == top
    assert all(lowest <= tick <= highest for tick in ticks.values())
    np.testing.assert_allclose(
        [float(text.replace("\N{MINUS SIGN}", "-")) for text in ticks], [*ticks.values()], atol=1e-9
    )
    notes = [r"$-\infty$: all weights equal", r"$\infty$: no tail to fit"]
    assert texts(ax.texts) == notes
    assert legend(ax)[0] == "exact: 2/4 > 0.7"


def test_k_of_the_exact_posterior_alone(ax: Axes) -> None:
    """With no finite number at all the picture holds."""
    plot_pareto_k({"exact": np.full(3, -np.inf)}, threshold=0.5, ax=ax)
    assert np.isfinite(np.asarray(ax.lines[0].get_ydata())).all()
    assert legend(ax) == ["exact: 0/3 > 0.5", "threshold 0.5"]


def test_k_of_another_shape_is_refused(ax: Axes) -> None:
    """The message has the guide and its shape."""
    with pytest.raises(ValueError, match=r"'global' .* \(data,\); got \(2, 3\): pass one"):
        plot_pareto_k({"global": np.zeros((2, 3))}, ax=ax)
