"""Helpers of all figures: conversion to arrays, colours and markers, figures, legends.

References:
    | Color Universal Design (Okabe & Ito, 2008)
    | https://jfly.uni-koeln.de/color/
    | Colour schemes (Tol, 2021)
    | https://personal.sron.nl/~pault/
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .._annotations import ANY
from .._types import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

Array: TypeAlias = Tensor | np.ndarray[Any, np.dtype[Any]]
Number: TypeAlias = Annotated[float, ANY] | Array
Value = TypeVar("Value")

# 11 has no factor in common with the 7 and the 10 colours below, so a pair of colour and marker
# comes back only after 77 guides, or 110 categories.
MARKERS = tuple("os^DvXP<>*p")
# Okabe and Ito's colours without yellow, which is too faint for a line on white.
GUIDE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Tol's muted scheme with a darker grey: ten colours, as there are ten digits.
CATEGORY_COLOURS = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#AA4499"),
    *("#DDCC77", "#44AA99", "#882255", "#999933", "#777777"),
)
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": f"cycler('color', {list(GUIDE_COLOURS)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "errorbar.capsize": 3.0,
    "legend.frameon": False,
}
"""Settings of matplotlib that make figures of your own look like those of the library.

Colours that colour-blind readers can tell apart, axes without a box, legends without a frame. Use
these settings around your own drawing, `with matplotlib.rc_context(pv.plots.STYLE): ...`, or as a
decorator."""
_POWERS = 100.0  # a log axis has several ticks per power of ten if the ratio of its ends is smaller
_JOIN = "\x1f"  # stands before a space at which a line may break, but which is not to be shown
_LETTERS = 17  # number of small letters that fit above a panel of 1.15 inches
_WIDE = 3.0  # number of interquartile ranges that an axis may extend beyond the quartiles


def as_numpy(values: Number) -> NDArray[Any]:
    """Returns a NumPy array; floating tensors become float64, since NumPy has no bfloat16."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def at_least_one(guides: Mapping[str, Value]) -> Mapping[str, Value]:
    """Returns the mapping unchanged; raises a `ValueError` if it is empty."""
    if not guides:
        raise ValueError("the data to plot must have at least one entry; got an empty mapping")
    return guides


def finite_span(arrays: Iterable[NDArray[Any]]) -> tuple[float, float]:
    """Returns the lowest and highest finite value of all arrays; 0 and 1 if none is finite."""
    finite = np.concatenate([array[np.isfinite(array)].ravel() for array in arrays])
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def style(number: int, colours: Sequence[str] = GUIDE_COLOURS) -> dict[str, Any]:
    """Returns the colour and the marker of the guide at a position in a mapping of guides."""
    return {"color": colours[number % len(colours)], "marker": MARKERS[number % len(MARKERS)]}


def entry(label: str, **look: Any) -> "Line2D":
    """Returns a legend entry; `look` has the properties of its line or marker, such as `color`."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **look)


def handles(names: Iterable[str]) -> list["Line2D"]:
    """Returns legend entries, one per guide."""
    return [
        entry(name, linestyle="none", markersize=5, **style(number))
        for number, name in enumerate(names)
    ]


def figure_or_new(
    figure: "Figure | SubFigure | None", size: tuple[float, float], *, layout: str = "constrained"
) -> "Figure | SubFigure":
    """Returns the given figure, or a new pyplot figure. No other function uses pyplot."""
    if figure is not None:
        return figure
    return optional("matplotlib.pyplot", needed_for="a figure").figure(figsize=size, layout=layout)


def axes_or_new(
    ax: "Axes | None", size: tuple[float, float], *, layout: str = "constrained"
) -> "Axes":
    """Returns the given axes, or those of a new figure."""
    return figure_or_new(None, size, layout=layout).subplots() if ax is None else ax


def panels(
    figure: "Figure | SubFigure | None",
    number: int,
    size: tuple[float, float],
    *,
    most: int = 4,
    narrowest: float = 0.0,
    sharex: bool = False,
    sharey: bool = False,
) -> NDArray[np.object_]:
    """Creates panels in rows; a narrow figure has fewer panels in a row.

    Arguments:
        figure: Where to draw; a new figure by default.
        number: Number of panels.
        size: Width and height of one panel in inches; a new figure is 0.6 inches wider and 0.7
            inches higher than its panels.
        most: Largest number of panels in a row.
        narrowest: Width in inches that the text of a panel needs; 0 for no limit.
        sharex: Whether all panels share one horizontal axis.
        sharey: Whether all panels share one vertical axis.
    """
    columns = min(number, most)
    width, height = 0.6 + size[0] * columns, 0.7 + size[1] * -(-number // columns)
    figure = figure_or_new(figure, (width, height))
    if narrowest:
        columns = max(1, min(columns, int(inches_wide(figure) / narrowest)))
    shape = (-(-number // columns), columns)
    grid = figure.subplots(*shape, squeeze=False, sharex=sharex, sharey=sharey).ravel()
    for spare in grid[number:]:
        spare.set_axis_off()
    return grid[:number]


def without_box(ax: "Axes") -> "Axes":
    """Removes the frame lines at the top and the right."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def legend_above(ax: "Axes", entries: Sequence[Any] | None = None) -> None:
    """Puts a legend above the axes; by default it lists everything in the axes that has a label."""
    entries = ax.get_legend_handles_labels()[0] if entries is None else entries
    beside = 0.7  # inches that the vertical axis and its labels take
    columns = fitting_columns(inches_wide(ax.figure) - beside, entries)
    anchor: dict[str, Any] = {"bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.0}
    look: dict[str, Any] = {"ncols": columns, "frameon": False, "fontsize": "small"}
    ax.legend(handles=entries, loc="lower left", **anchor, **look)


def legend_outside(
    figure: "Figure | SubFigure", entries: Sequence[Any], place: str = "upper center", **how: Any
) -> None:
    """Puts a legend outside all axes, by default above them, in as many columns as fit."""
    columns = fitting_columns(inches_wide(figure), entries)
    how = {"loc": f"outside {place}", "ncols": columns, **how}
    figure.legend(handles=entries, frameon=False, fontsize="small", **how)


def inches_wide(figure: "Figure | SubFigure") -> float:
    """Returns the width of a figure or a sub-figure in inches."""
    return float(figure.bbox.width / figure.dpi)


def fitting_columns(inches: float, entries: Sequence[Any]) -> int:
    """Returns how many columns of a legend fit into a width in inches; at least one.

    At the default font size a handle is assumed to take 0.5 inch, and a letter 0.075 inch.
    """
    from matplotlib import rcParams

    scale = rcParams["font.size"] / 10
    widths = [scale * (0.5 + 0.075 * len(str(entry.get_label()))) for entry in entries]
    columns = range(len(widths), 1, -1)
    fits = (n for n in columns if sum(map(max, np.array_split(widths, n))) <= inches)
    return next(fits, 1)


def estimates_of(
    guides: Mapping[str, Mapping[str, tuple[Number, Number]]], kind: str
) -> tuple[dict[str, dict[str, tuple[float, float]]], list[str]]:
    """Returns the value and the error of each quantity of each guide, and all quantities' names.

    At least one quantity is required. `kind` is the word for a quantity in the error message.
    """
    numbers = {
        guide: {name: value_and_error(guide, name, pair) for name, pair in row.items()}
        for guide, row in at_least_one(guides).items()
    }
    names = list(dict.fromkeys(chain.from_iterable(numbers.values())))
    if not names:
        raise ValueError(f"at least one of {list(guides)} must have a {kind}; got none")
    return numbers, names


def value_and_error(guide: str, name: str, pair: tuple[Number, Number]) -> tuple[float, float]:
    """Returns the value and the standard error of a quantity as floats.

    Raises:
        ValueError: If the value or the error is not a single number; the message names the guide
            and the quantity.
    """
    value, error = (as_numpy(number) for number in pair)
    if value.size != 1 or error.size != 1:
        raise ValueError(
            f"the value and the error of {name!r} of {guide!r} must be numbers; got the shapes "
            f"{value.shape} and {error.shape}: average over the data first"
        )
    return value.item(), error.item()


def log_ticks(axis: "Axis") -> None:
    """Sets few ticks on a logarithmic axis, with plain numbers such as 0.5, 2 and 10."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    # 1, 2 and 5 times each power of ten, if there are few powers.
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < _POWERS * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def literal(name: object) -> str:
    r"""Escapes each $ of a name, so that matplotlib does not read the name as a formula.

    Example:
        >>> literal("$10k-$20k")
        '\\$10k-\\$20k'
    """
    return str(name).replace("$", r"\$")


def wrapped(name: str) -> str:
    r"""Breaks a name into lines that fit above a narrow panel, at spaces and after underscores.

    Example:
        >>> wrapped("mean_fractal_dimension")
        'mean_fractal_\ndimension'
    """
    apart = name.replace("_", f"_{_JOIN} ")
    lines = fill(apart, _LETTERS, break_long_words=False)
    return lines.replace(f"{_JOIN} ", "").replace(_JOIN, "")


def limit_to_most(ax: "Axes", values: NDArray[Any]) -> int:
    """Limits the vertical axis to nearly all values, so that no outlier flattens the others.

    Arguments:
        ax: The axes.
        values: The values drawn on them.

    Returns:
        The number of values outside the limits.
    """
    low, high = np.quantile(values, [0.25, 0.75])
    reach = _WIDE * (high - low)
    near = values[(values >= low - reach) & (values <= high + reach)]
    if reach > 0 and len(near) < len(values):
        margin = 0.05 * (near.max() - near.min())
        ax.set_ylim(near.min() - margin, near.max() + margin)
        return len(values) - len(near)
    return 0


def figure_of(drawn: "Axes | NDArray[Any]") -> "Figure":
    """Returns the figure that a plot was drawn into, from its axes or its array of axes.

    Example:
        >>> from matplotlib.figure import Figure
        >>> figure = Figure()
        >>> figure_of(figure.subplots()) is figure_of(figure.subplots(2, 2)) is figure
        True
    """
    return np.asarray(drawn).flat[0].get_figure(root=True)


def png_of(figure: "Figure") -> bytes:
    """Returns a figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()
