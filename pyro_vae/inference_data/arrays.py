"""Named arrays in ArviZ's container, for both of its generations; knows no tensor and no program.

ArviZ 0.23 keeps groups in an `InferenceData`, 1.x in an `xarray.DataTree`. Their `from_dict` take
one table of dimensions for all groups, in which `y` cannot be `(datum,)` as a log likelihood and
`(datum, feature)` as data. So the datasets of the groups are made here, alike for both, and only
what holds them differs.
"""

import warnings
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray


class Labelled(NamedTuple):
    """An array, and the name of each of its axes."""

    values: NDArray[Any]
    dims: tuple[str, ...]


Attributes: TypeAlias = Mapping[str, str | int | float]
"""What a NetCDF file can keep beside the arrays."""


def build(
    groups: Mapping[str, Mapping[str, Labelled]],
    coords: Mapping[str, NDArray[Any]],
    attrs: Attributes,
) -> Any:
    """Puts arrays into the container of the ArviZ that is installed.

    An array whose first axis is `draw` gets an axis `chain` of length 1 before it, which ArviZ
    expects: draws that are independent are one chain.

    Arguments:
        groups: Arrays by group and name. A group without arrays is left out.
        coords: Labels of an axis, by its name; an axis that is not named here is numbered from 0.
        attrs: Attributes of the whole and of every group.

    Returns:
        `arviz.InferenceData` under ArviZ 0.23 and `xarray.DataTree` under 1.x. Either has groups
        as `result["posterior"]`, and `to_netcdf(path)`; `arviz.from_netcdf(path)` reads it.

    Raises:
        ValueError: If an array has the name of an axis, if its number of axes is not that of its
            names, or if an axis has several lengths in one group.

    References:
        | ArviZ: a unified library for exploratory analysis of Bayesian models (Kumar et al., 2019)
        | https://doi.org/10.21105/joss.01143

    Example:
        >>> groups = {"posterior": {"z": Labelled(np.zeros((10, 2)), ("draw", "datum"))}}
        >>> build(groups, {"datum": np.array(["a", "b"])}, {"seed": 0})["posterior"]["z"].dims
        ('chain', 'draw', 'datum')
    """
    datasets = {
        group: _dataset(group, variables, coords, attrs)
        for group, variables in groups.items()
        if variables
    }
    return _container(datasets, attrs)


def _dataset(
    group: str,
    variables: Mapping[str, Labelled],
    coords: Mapping[str, NDArray[Any]],
    attrs: Attributes,
) -> Any:
    chained = {name: _with_chain(variable) for name, variable in variables.items()}
    _check(group, chained)
    return import_module("xarray").Dataset(
        {name: (dims, values) for name, (values, dims) in chained.items()},
        coords=_coordinates(chained.values(), coords),
        attrs=dict(attrs),
    )


def _with_chain(variable: Labelled) -> Labelled:
    values, dims = variable
    return Labelled(values[None], ("chain", *dims)) if dims[:1] == ("draw",) else variable


def _coordinates(
    variables: Iterable[Labelled], coords: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Labels of every axis of a group."""
    lengths = {
        dim: length
        for values, dims in variables
        for dim, length in zip(dims, values.shape, strict=True)
    }
    return {dim: coords.get(dim, np.arange(length)) for dim, length in lengths.items()}


def _check(group: str, variables: Mapping[str, Labelled]) -> None:
    axes = {dim for variable in variables.values() for dim in variable.dims}
    for name, (values, dims) in variables.items():
        if values.ndim != len(dims):
            raise ValueError(
                f"'{name}' of the group '{group}' has the shape {values.shape}, which needs "
                f"{values.ndim} names of axes, got {dims}"
            )
        if name in axes:
            raise ValueError(
                f"'{name}' of the group '{group}' has the name of an axis ({sorted(axes)}), which "
                "xarray would take for its labels; rename that site of the model"
            )


def _container(datasets: dict[str, Any], attrs: Attributes) -> Any:
    if int(version("arviz").split(".")[0]) >= 1:
        tree = import_module("xarray").DataTree.from_dict(datasets)
        tree.attrs.update(attrs)
        return tree
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces 1.x on import; ours works with both
        arviz = import_module("arviz")
    return arviz.InferenceData(attrs=attrs, **datasets)
