"""Data, their reconstructions and draws from the prior, as images or as profiles."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Shaped
from numpy.typing import NDArray

from ..formatting import count_of
from .drawing import Array, as_numpy, at_least_one, figure_or_new, finite_span, style, without_box

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


def plot_reconstructions(
    originals: Shaped[Array, "..."],
    reconstructions: Mapping[str, Shaped[Array, "..."]],
    prior_draws: Mapping[str, Shaped[Array, "..."]],
    image_shape: tuple[int, int] | None = None,
    *,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Draws a row of data, a row of reconstructions for each guide, and rows of prior draws.

    All cells share one range of values, so that the same grey means the same value in every row.
    Black is the lowest value of all arrays, and white the highest.

    Arguments:
        originals: Data, `(images, *event)`, one column per datum; eight to twelve fit a page.
        reconstructions: For each guide the mean of p(y | z) at a z inferred from the same data,
            `(images, *event)`.
        prior_draws: For each guide the mean of p(y | z) at z drawn from the prior,
            `(draws, *event)`. An empty mapping leaves these rows out.
        image_shape: Height and width of an image. For data that are not images, pass `None`: every
            cell then shows a curve of values over the features, and the cells of reconstructions
            also show the original as a thin grey curve.
        figure: Where to draw, a figure or sub-figure; a new pyplot figure by default.

    Returns:
        The axes, in the order of the rows, each row with a label at the left. Images have one axes
        per row, `(rows,)`, in which image c extends from c to c + 1. Other data have one axes per
        cell, `(rows, columns)`.

    Raises:
        ValueError: If there are no data, if the shapes of reconstructions, draws and originals do
            not match, or if a datum does not fill `image_shape`.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> y = torch.eye(4)
        >>> axes = plot_reconstructions(y, {"global": y * 0 + 0.25}, {}, (2, 2), figure=Figure())
        >>> axes.shape
        (2,)
    """
    data = _as_cells(as_numpy(originals), image_shape)
    rows = [Row("data", "", "0.2", data)]
    for number, (name, values) in enumerate(reconstructions.items()):
        array = _of_shape(originals.shape, f"reconstructions[{name!r}]", values)
        rows.append(Row(name, "reconstructions", style(number)["color"], array))
    for number, (name, values) in enumerate(prior_draws.items()):
        shape = (len(values), *originals.shape[1:])
        array = _of_shape(shape, f"prior_draws[{name!r}]", values)
        rows.append(Row(name, "draws from the prior", style(number)["color"], array))
    rows = [row._replace(cells=row.cells.reshape(-1, *data.shape[1:])) for row in rows]
    return _drawn(figure, rows, image_shape)


def plot_data(
    rows: Mapping[str, Array],
    image_shape: tuple[int, int] | None = None,
    *,
    figure: "Figure | SubFigure | None" = None,
) -> NDArray[Any]:
    """Draws several sets of data, each in a row of the figure, with a label at the left.

    All rows share one range of values.

    Arguments:
        rows: The data of each row of the figure, `(columns, *event)`, by the label of the row.
        image_shape: Height and width of an image, or `None` for data that are not images.
        figure: Where to draw, a figure or sub-figure; a new pyplot figure by default.

    Returns:
        The axes, `(rows,)` for images and `(rows, columns)` otherwise, as in
        :func:`plot_reconstructions`.

    Raises:
        ValueError: If there is no row, a row is empty, or a datum does not fill `image_shape`.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> plot_data({"worst": torch.eye(4)}, (2, 2), figure=Figure()).shape
        (1,)
    """
    cells = [
        Row(name, "", "0.2", _as_cells(as_numpy(values), image_shape))
        for name, values in at_least_one(rows).items()
    ]
    return _drawn(figure, cells, image_shape)


_GAP = 0.04  # margin around an image, as a share of its width


class Row(NamedTuple):
    """One row of the figure: its label, the title of its group, its colour, and its cells.

    The cells have shape `(columns, height, width)` or `(columns, features)`.
    """

    label: str
    group: str
    colour: str
    cells: NDArray[Any]


def _as_cells(originals: NDArray[Any], image_shape: tuple[int, int] | None) -> NDArray[Any]:
    """Returns data in the shape of a row's cells, as images or as profiles; checks the shape."""
    if originals.ndim < 2 or not originals.size:
        raise ValueError(
            f"`originals` must have the shape (images, *event); got {originals.shape}: "
            "pass at least one datum, and keep the leading axis even for a single datum"
        )
    features = originals[0].size
    if image_shape and features != image_shape[0] * image_shape[1]:
        raise ValueError(
            f"`image_shape` must be the height and width of the images; got {image_shape} for data "
            f"with {count_of(features, 'feature')}. Pass `image_shape=None` for data that are not "
            "images"
        )
    return originals.reshape(len(originals), *(image_shape or (features,)))


def _of_shape(shape: tuple[int, ...], name: str, values: Array) -> NDArray[Any]:
    """Returns values as an array, after checking its shape; `name` is for the message."""
    array = as_numpy(values)
    if array.shape != tuple(shape) or not array.size:
        raise ValueError(
            f"`{name}` must have the shape {tuple(shape)}, like the originals; got "
            f"{array.shape}: pass one reconstruction per datum, and at least one draw"
        )
    return array


_NARROWEST = 3.0  # inches that the titles of groups need


def _drawn(
    figure: "Figure | SubFigure | None", rows: Sequence[Row], image_shape: tuple[int, int] | None
) -> NDArray[Any]:
    """Draws the rows as images or, if `image_shape` is None, as profiles."""
    width, height = (0.62, 0.62) if image_shape else (0.95, 0.75)  # inches per cell
    columns = max(len(row.cells) for row in rows)
    size = (max(1.2 + width * columns, _NARROWEST), 0.5 + height * len(rows))
    # Images keep their shape: a layout that is not compressed would cut their labels off.
    figure = figure_or_new(figure, size, layout="compressed" if image_shape else "constrained")
    return (_images if image_shape else _profiles)(figure, rows, columns)


def _images(figure: "Figure | SubFigure", rows: Sequence[Row], columns: int) -> NDArray[Any]:
    """Draws each row of images into one axes, because one axes per image would take much longer."""
    axes: NDArray[Any] = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    low, high = finite_span(row.cells for row in rows)
    group = ""
    for ax, row in zip(axes, rows, strict=True):
        for column, image in enumerate(row.cells):
            _draw_image(ax, column, image, vmin=low, vmax=high)
        height = row.cells.shape[1] / row.cells.shape[2]
        ax.set(xlim=(0, columns), ylim=(-_GAP, height - _GAP), xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_visible(False)
        ax.set_ylabel(row.label, rotation=0, ha="right", va="center")
        if row.group != group:
            ax.set_title(row.group, fontsize="small", color="0.25")
        group = row.group
    return axes


def _draw_image(ax: "Axes", column: int, image: NDArray[Any], **span: Any) -> None:
    """Draws an image between `column` and `column + 1`, with a frame that is visible on white."""
    height = image.shape[0] / image.shape[1]
    corners = (column + _GAP, column + 1 - _GAP, 0.0, height - 2 * _GAP)
    ax.imshow(image, cmap="gray", interpolation="nearest", extent=corners, **span)
    left, right, low, high = corners
    frame = ([left, right, right, left, left], [low, low, high, high, low])
    ax.plot(*frame, color="0.8", linewidth=0.5)


def _profiles(figure: "Figure | SubFigure", rows: Sequence[Row], columns: int) -> NDArray[Any]:
    """Draws each cell of each row as a curve over the features, into separate axes."""
    how: dict[str, Any] = {"squeeze": False, "sharex": True, "sharey": True}
    axes: NDArray[Any] = figure.subplots(len(rows), columns, **how)
    for row_axes, row in zip(axes, rows, strict=True):
        for ax in row_axes[len(row.cells) :]:
            ax.set_axis_off()
        if row.group == "reconstructions":
            for ax, original in _cells(row_axes, rows[0]):
                ax.plot(original, color="0.6", linewidth=0.8)
        for ax, profile in _cells(row_axes, row):
            ax.plot(profile, color=row.colour, linewidth=1.2)
            without_box(ax).tick_params(labelsize="x-small")
    low, high = finite_span(row.cells for row in rows)
    margin = 0.05 * (high - low) or 1.0  # constant data: one unit on either side
    axes[0, 0].set_ylim(low - margin, high + margin)
    for ax in axes[-1]:
        ax.set_xlabel("feature", fontsize="small")
    _label(axes, rows)
    return axes


def _label(axes: NDArray[Any], rows: Sequence[Row]) -> None:
    """Writes the label of each row at the left, and the title of each group above its first row."""
    group = ""
    for row_axes, row in zip(axes, rows, strict=True):
        row_axes[0].set_ylabel(row.label, rotation=0, ha="right", va="center")
        if row.group != group:
            # In the middle: a wide title centred outside its own axes would move the columns.
            half, odd = divmod(len(row_axes), 2)
            row_axes[half].set_title(row.group, x=odd / 2, fontsize="small", color="0.25")
        group = row.group


def _cells(axes: NDArray[Any], row: Row) -> Iterator[tuple["Axes", NDArray[Any]]]:
    """Pairs axes with the cells of a row, which may be shorter than the longest row."""
    return zip(axes, row.cells, strict=False)
