"""Inference data of known posteriors, and what a round trip keeps."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.helpers.statistics import FACTS

NAMES = ["ash", "birch", "cedar", "daisy", "elder"]


def group_names(idata: Any) -> set[str]:
    """Groups of either container."""
    children = getattr(idata, "children", None)
    return set(idata.groups() if children is None else children)


def values(idata: Any, group: str, name: str, **labels: Any) -> Tensor:
    """An array of either container, without its chain, as a tensor."""
    array = idata[group][name].sel(labels)
    return torch.from_numpy(array.isel(chain=0, missing_dims="ignore").to_numpy())


def assert_same(one: Any, two: Any) -> None:
    """Asserts the same groups, arrays, labels, axes, dtypes and attributes, to the last bit."""
    assert group_names(one) == group_names(two)
    assert dict(one.attrs) == dict(two.attrs)
    for group in group_names(one):
        assert set(one[group].data_vars) == set(two[group].data_vars)
        assert dict(one[group].attrs) == dict(two[group].attrs)
        for name, array in one[group].variables.items():
            other = two[group].variables[name]
            assert array.dims == other.dims, (group, name)
            if array.dtype.kind != "U":  # text comes back as objects
                assert array.dtype == other.dtype, (group, name)
            np.testing.assert_array_equal(array.to_numpy(), other.to_numpy())


def round_trip(idata: Any, path: Path) -> Any:
    """What ArviZ reads from the file that it wrote."""
    idata.to_netcdf(str(path))
    return import_module("arviz").from_netcdf(str(path))


def facts_model(y: Tensor) -> None:
    """Factor analysis as a program."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
        loc = z @ FACTS.loadings.T + FACTS.mean
        pyro.sample("y", dist.Normal(loc, FACTS.noise_variance.sqrt()).to_event(1), obs=y)


def facts_guide(y: Tensor, width: float = 1.0) -> None:
    """Its posterior, wider by a factor."""
    exact = FACTS.posterior(y)
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.MultivariateNormal(exact.loc, scale_tril=exact.scale_tril * width))


def wide_guide(y: Tensor) -> None:
    """A guide with weights that differ, and the tail of which is light."""
    facts_guide(y, 1.3)
