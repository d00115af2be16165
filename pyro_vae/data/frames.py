"""Converts tables of several libraries to named columns, and back.

A column of numbers is read as float64, with nan for missing entries. Words and categories are read
as objects, with None for missing entries. The column's dtype is kept, so that it can be restored.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sized
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch

from .._types import optional
from ..formatting import count_of
from .raw_columns import (
    HOLDS,
    PLAIN,
    Holds,
    RawColumn,
    as_objects,
    days_of,
    from_array,
    from_objects,
    refused_dtype,
    times_of,
    to_array,
)

_SCALARS = (str, bool, int, float, np.bool_, np.number)
_UNITS = "units"  # the attribute of a pandas frame that holds units, by the names of columns


class Container(ABC):
    """A kind of table, such as the data frames of pandas.

    Its methods read the columns of a table of this kind, and build such a table from columns.
    """

    @abstractmethod
    def owns(self, frame: object) -> bool:
        """Whether an object is a table of this kind."""

    @abstractmethod
    def names(self, frame: Any) -> list[str]:
        """Returns the names of a table's columns, in order."""

    @abstractmethod
    def column(self, frame: Any, place: int, name: str) -> RawColumn:
        """Reads the column at a position of a table."""

    @abstractmethod
    def build(self, columns: Mapping[str, RawColumn]) -> Any:
        """Builds a table of this kind from columns."""


class PandasFrame(Container):
    """A `pandas.DataFrame`."""

    def owns(self, frame: object) -> bool:
        return _is_from("pandas", "DataFrame", frame)

    def names(self, frame: Any) -> list[str]:
        return [str(name) for name in frame.columns]

    def column(self, frame: Any, place: int, name: str) -> RawColumn:
        series = frame.iloc[:, place]
        dtype = str(series.dtype)
        if dtype == "category" and series.cat.categories.dtype.kind == "M":
            series = series.astype(series.cat.categories.dtype)
            dtype = str(series.dtype)
        elif dtype == "category":
            return _categorical(series, name)
        if series.dtype.kind in "biuf":
            values = series.to_numpy(dtype=np.float64, na_value=np.nan)
            unit = frame.attrs.get(_UNITS, {}).get(name, "")
            return RawColumn(values, HOLDS[series.dtype.kind], dtype, unit=unit)
        if dtype.startswith("datetime"):
            zoned = series.dt.tz_convert("UTC").dt.tz_localize(None) if zone_of(dtype) else series
            return RawColumn(days_of(zoned.to_numpy()), Holds.TIMES, dtype)
        if dtype.startswith(("timedelta", "period", "interval")):
            raise refused_dtype(name, dtype)
        return from_objects(series.to_numpy(dtype=object), name, dtype)

    def build(self, columns: Mapping[str, RawColumn]) -> Any:
        frame = _pandas().DataFrame({name: self._series(raw) for name, raw in columns.items()})
        if units := {name: raw.unit for name, raw in columns.items() if raw.unit}:
            frame.attrs[_UNITS] = units
        return frame

    def _series(self, raw: RawColumn) -> Any:
        """Builds a pandas column with the dtype that the column had in the original table."""
        pandas = _pandas()
        if raw.dtype == "category":
            dtype = pandas.CategoricalDtype(list(raw.categories or ()), ordered=raw.ordered)
            return pandas.Series(list(raw.values), dtype=dtype)
        if raw.holds is Holds.TIMES:
            times = pandas.Series(times_of(raw.values))
            zoned = times.dt.tz_localize("UTC") if zone_of(raw.dtype) else times
            return zoned.astype(raw.dtype)
        if "pyarrow" in raw.dtype:
            return _arrow_series(raw)
        series = pandas.Series(raw.values)
        if raw.missing.any() and raw.holds in (Holds.INTEGERS, Holds.BOOLEANS):
            if raw.dtype[:1].isupper() or raw.dtype == "boolean":
                return series.astype(raw.dtype)
            # Other dtypes of integers or booleans cannot hold missing entries.
            if raw.holds is Holds.INTEGERS:
                return series
            values = zip(raw.missing, raw.values, strict=True)
            return pandas.Series([None if gone else bool(value) for gone, value in values])
        return series.astype(PLAIN[raw.holds]).astype(raw.dtype)  # objects are True, not 1.0


def _categorical(series: Any, name: str) -> RawColumn:
    """Reads a categorical pandas column; categories such as intervals become strings."""
    if not all(isinstance(value, _SCALARS) for value in series.cat.categories):
        series = series.cat.rename_categories([str(value) for value in series.cat.categories])
    categories = tuple(series.cat.categories.to_numpy().tolist())
    found = from_objects(series.astype(object).to_numpy(), name, "category")
    return found._replace(categories=categories, ordered=bool(series.cat.ordered))


def _arrow_series(raw: RawColumn) -> Any:
    """Builds a pandas column of an Arrow dtype, or of a plain dtype if pandas cannot build it."""
    pandas = _pandas()
    values = [
        None if gone else value.item() if isinstance(value, np.generic) else value
        for gone, value in zip(raw.missing, raw.values, strict=True)
    ]
    if raw.holds is Holds.INTEGERS:
        values = [None if value is None else int(value) for value in values]
    elif raw.holds is Holds.BOOLEANS:
        values = [None if value is None else bool(value) for value in values]
    try:
        return pandas.Series(values, dtype=raw.dtype)
    except (NotImplementedError, TypeError, ValueError):  # such as decimal128(8, 2)[pyarrow]
        return pandas.Series(values, dtype=float if raw.holds is Holds.FLOATS else None)


class PolarsFrame(Container):
    """A `polars.DataFrame`."""

    def owns(self, frame: object) -> bool:
        return _is_from("polars", "DataFrame", frame)

    def names(self, frame: Any) -> list[str]:
        return list(frame.columns)

    def column(self, frame: Any, place: int, name: str) -> RawColumn:
        series = frame.to_series(place)
        dtype = str(series.dtype.base_type())
        if dtype in ("Categorical", "Enum"):
            words = from_objects(as_objects(series.cast(_polars().String).to_list()), name, dtype)
            declared = series.dtype.categories.to_list() if dtype == "Enum" else None
            # All Categorical columns of the process share their categories.
            found = declared or sorted({word for word in words.values if word is not None})
            return words._replace(categories=tuple(found))
        if dtype == "Decimal":
            series, dtype = series.cast(_polars().Float64), "Float64"
        if series.dtype.is_numeric() or dtype == "Boolean":
            holds = Holds.FLOATS if series.dtype.is_float() else Holds.INTEGERS
            values = series.cast(_polars().Float64).fill_null(np.nan).to_numpy().copy()
            return RawColumn(values, Holds.BOOLEANS if dtype == "Boolean" else holds, dtype)
        if dtype in ("Date", "Datetime"):
            zone = series.dtype.time_zone if dtype == "Datetime" else None
            stamps = series.cast(_polars().Datetime("us")).to_numpy()
            return RawColumn(
                days_of(stamps), Holds.TIMES, f"Datetime[us, {zone}]" if zone else dtype
            )
        if dtype not in ("String", "Object", "Null"):
            raise refused_dtype(name, dtype)
        return from_objects(as_objects(series.to_list()), name, dtype)

    def build(self, columns: Mapping[str, RawColumn]) -> Any:
        return _polars().DataFrame([self._series(name, raw) for name, raw in columns.items()])

    def _series(self, name: str, raw: RawColumn) -> Any:
        """Builds a polars column with the dtype that the column had in the original table."""
        polars = _polars()
        if raw.holds is Holds.TIMES:
            times = polars.Series(name, times_of(raw.values))
            if zone := zone_of(raw.dtype):
                return times.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
            return times.cast(getattr(polars, raw.dtype, polars.Datetime("us")))
        values = [
            None if gone else value
            for gone, value in zip(raw.missing, raw.values.tolist(), strict=True)
        ]
        if raw.dtype == "Enum":
            return polars.Series(name, values, dtype=polars.Enum(list(raw.categories or ())))
        if raw.dtype == "Categorical":
            return polars.Series(name, values, dtype=polars.String).cast(polars.Categorical)
        if raw.values.dtype == object:
            return polars.Series(name, values)
        series = polars.Series(name, values, dtype=polars.Float64)
        whole = polars.Int64 if raw.holds is Holds.INTEGERS else polars.Float64
        plain = polars.Boolean if raw.holds is Holds.BOOLEANS else whole
        # Numbers among objects or strings have no dtype of polars.
        named = getattr(polars, raw.dtype, plain) if raw.dtype[:1].isupper() else plain
        return series.cast(plain if named == polars.Object else named)


class StructuredArray(Container):
    """A NumPy array with named fields."""

    def owns(self, frame: object) -> bool:
        return isinstance(frame, np.ndarray) and frame.dtype.names is not None

    def names(self, frame: Any) -> list[str]:
        return list(frame.dtype.names)

    def column(self, frame: Any, place: int, name: str) -> RawColumn:
        return from_array(frame[name], name)

    def build(self, columns: Mapping[str, RawColumn]) -> Any:
        arrays = {name: to_array(raw) for name, raw in columns.items()}
        rows = len(next(iter(arrays.values())))
        frame = np.empty(rows, dtype=[(name, array.dtype) for name, array in arrays.items()])
        for name, array in arrays.items():
            frame[name] = array
        return frame


class ColumnsByName(Container):
    """A dictionary of arrays or sequences."""

    def owns(self, frame: object) -> bool:
        return isinstance(frame, Mapping)

    def names(self, frame: Any) -> list[str]:
        return [str(name) for name in frame]

    def column(self, frame: Any, place: int, name: str) -> RawColumn:
        values = list(frame.values())[place]
        if isinstance(values, torch.Tensor):
            values = _array_of(values)
        if isinstance(values, Mapping | set | frozenset):
            raise TypeError(
                f"column '{name}' must be an array or a list with an entry per row; got "
                f"a {type(values).__name__}: pass a list of entries, as in frame.to_dict('list')"
            )
        is_single = isinstance(values, str | bytes) or not isinstance(values, Sized)
        if is_single:
            raise TypeError(
                f"column '{name}' must be an array or a list with an entry per row; got "
                f"{values!r}: put the entries of each column into a list, as in "
                "{name: [value] for name, value in row.items()}"
            )
        return from_array(values if isinstance(values, np.ndarray) else as_objects(values), name)

    def build(self, columns: Mapping[str, RawColumn]) -> Any:
        return {name: to_array(raw) for name, raw in columns.items()}


class Matrix(Container):
    """A NumPy array `(rows, columns)`, whose columns are called "0", "1", ..."""

    def owns(self, frame: object) -> bool:
        return isinstance(frame, np.ndarray) and frame.dtype.names is None

    def names(self, frame: Any) -> list[str]:
        if frame.ndim != 2:
            raise ValueError(
                f"a table must have rows and columns; got an array of shape {frame.shape}: reshape "
                "the array, as in y.reshape(len(y), -1)"
            )
        return [str(place) for place in range(frame.shape[1])]

    def column(self, frame: Any, place: int, name: str) -> RawColumn:
        column = frame[:, place]
        return from_array(
            np.asarray(column)[:, 0] if isinstance(frame, np.matrix) else column, name
        )

    def build(self, columns: Mapping[str, RawColumn]) -> Any:
        return np.stack([to_array(raw) for raw in columns.values()], axis=1)


class TensorMatrix(Matrix):
    """A torch tensor `(rows, columns)`."""

    def owns(self, frame: object) -> bool:
        return isinstance(frame, torch.Tensor)

    def names(self, frame: Any) -> list[str]:
        """Returns the names "0", "1", ... of a tensor's columns; refuses a tensor without data."""
        _check_plain(frame)
        return super().names(frame)

    def column(self, frame: Any, place: int, name: str) -> RawColumn:
        return from_array(_array_of(frame[:, place]), name)

    def build(self, columns: Mapping[str, RawColumn]) -> Any:
        return torch.from_numpy(super().build(columns))


def _array_of(tensor: torch.Tensor) -> np.ndarray:
    """Converts a tensor to a NumPy array."""
    _check_plain(tensor)
    plain = tensor.detach().cpu()
    return (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()


def _check_plain(tensor: torch.Tensor) -> None:
    """Refuses a tensor that NumPy cannot read."""
    if tensor.is_meta:
        kind, remedy = "meta", "load its data"
    elif tensor.is_quantized:
        kind, remedy = "quantized", "use y.dequantize()"
    elif tensor.layout is not torch.strided:
        kind, remedy = "sparse", "use y.to_dense()"
    else:
        return
    raise TypeError(
        f"a tensor must be dense, with data; got a {kind} tensor of shape "
        f"{tuple(tensor.shape)}: {remedy}"
    )


CONTAINERS: dict[str, Container] = {
    "pandas": PandasFrame(),
    "polars": PolarsFrame(),
    "structured": StructuredArray(),
    "dict": ColumnsByName(),
    "numpy": Matrix(),
    "torch": TensorMatrix(),
}
"""Kinds of tables, by their names in saved files."""


def zone_of(dtype: str) -> str:
    """Returns the time zone in the name of a dtype of pandas or polars, or "".

    Example:
        >>> zone_of("datetime64[us, Europe/Berlin]"), zone_of("datetime64[us]")
        ('Europe/Berlin', '')
    """
    found = re.fullmatch(r"(?:datetime64|Datetime)\[\w+, (.*)\]", dtype)
    return found[1] if found else ""


def index_of(frame: Any) -> Any:
    """Returns the index of a pandas table, and None for any other table."""
    return frame.index if CONTAINERS["pandas"].owns(frame) else None


def labelled_like(frame: Any, given: Any) -> Any:
    """Gives a pandas table the index and the column labels of the given pandas table.

    This restores labels such as 10 or ("lab", "Na"), which :class:`pyro_vae.data.Columns` turns
    into strings. Tables of other kinds are returned unchanged.
    """
    if index_of(frame) is None or index_of(given) is None:
        return frame
    names = names_of(given)
    labels = given.columns[[names.index(name) for name in names_of(frame)]]
    return frame.set_axis(given.index).set_axis(labels, axis=1)


def container_of(frame: object) -> str:
    """Returns the name of a table's kind, such as "pandas" or "dict".

    Raises:
        TypeError: If the object is not a table of a known kind.
    """
    for name, container in CONTAINERS.items():
        if container.owns(frame):
            return name
    raise TypeError(
        "a table must be a DataFrame of pandas or polars, a dictionary of columns, a NumPy array "
        f"or a tensor; got {type(frame).__name__}: {_conversion(frame)}"
    )


def _conversion(frame: object) -> str:
    """Returns advice on how to make a table from an object that is not a table."""
    if isinstance(frame, str | PathLike):
        return f"read the file with pv.data.read_frame({fspath(frame)!r})"
    if _is_from("pandas", "Series", frame):
        return "use series.to_frame() if it is a column, or series.to_frame().T if it is a row"
    for method in ("collect", "to_pandas", "toarray", "to_frame"):
        if callable(getattr(frame, method, None)):
            return f"convert it, as in table.{method}()"
    if _is_from("pyro_vae", "Dataset", frame):
        return "pass the table that it was made from, or omit `data` to use its held-out rows"
    return "convert the table, as in pandas.DataFrame(...)"


def names_of(frame: Any) -> list[str]:
    """Returns the names of a table's columns, in order.

    Raises:
        TypeError: If `frame` is not a table.
        ValueError: If a name occurs twice.
    """
    names = CONTAINERS[container_of(frame)].names(frame)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        quoted = ", ".join(f"'{name}'" for name in twice)
        raise ValueError(
            f"the table has more than one column named {quoted}: give each column a name of its own"
        )
    return names


def lists_of(frame: Any) -> dict[str, list[Any]]:
    """Returns the entries of a table as lists, by the names of the columns.

    Example:
        >>> lists_of(np.array([[1, 2], [3, 4]]))
        {'0': [1, 3], '1': [2, 4]}
    """
    names = names_of(frame)
    if isinstance(CONTAINERS[container_of(frame)], Matrix):
        return dict(zip(names, frame.T.tolist(), strict=True))
    return {name: list(frame[name]) for name in names}


def columns_of(frame: Any, refused: dict[str, Exception] | None = None) -> dict[str, RawColumn]:
    """Returns the columns of a table, by name and in order.

    Arguments:
        frame: The table.
        refused: A dictionary for errors, or None. If the type of a column has no likelihood, the
            error is stored under the column's name, and the column is left out. With None, the
            error is raised.

    Raises:
        TypeError: If `frame` is not a table, or if a column has a type without a likelihood and
            `refused` is None.
        ValueError: If a name occurs twice, the columns differ in length, or there is no row.
    """
    container, names = CONTAINERS[container_of(frame)], names_of(frame)
    columns = {}
    for place, name in enumerate(names):
        try:
            columns[name] = container.column(frame, place, name)
        except TypeError as error:
            if refused is None:
                raise
            refused[name] = error
    if refused and not columns:
        raise next(iter(refused.values()))
    lengths = {name: len(raw.values) for name, raw in columns.items()}
    if set(lengths.values()) <= {0}:
        raise ValueError(
            "a table must have at least one row and one column; got "
            f"{count_of(len(names), 'column')} and no row: check how the rows were selected"
        )
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            "a table must have columns of equal length, and at least one row; got the lengths "
            f"{lengths}: select the same rows from all columns"
        )
    return columns


def _pandas() -> Any:
    return optional("pandas", needed_for="a DataFrame")


def _polars() -> Any:
    return optional("polars", needed_for="a polars DataFrame")


def _is_from(package: str, name: str, frame: object) -> bool:
    """Whether an object is an instance of a package's class, without importing the package."""
    kinds = type(frame).__mro__
    return any(k.__name__ == name and k.__module__.split(".")[0] == package for k in kinds)
