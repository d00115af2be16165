"""What figures show: the texts, the legend and the points of lines."""

from typing import Any

from matplotlib.axes import Axes
from numpy.typing import NDArray


def texts(artists: Any) -> list[str]:
    """What text artists say."""
    return [artist.get_text() for artist in artists]


def legend(ax: Axes) -> list[str]:
    """The entries of the legend of these axes."""
    box = ax.get_legend()
    assert box is not None
    return texts(box.get_texts())


def xy(line: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """The points of a line."""
    return line.get_xdata(), line.get_ydata()
