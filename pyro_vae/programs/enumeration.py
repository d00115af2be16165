r"""All values of the discrete sites of a datum, as rows of a longer batch.

Pyro enumerates each discrete site along a new dimension, left of the plates, and a program has to
broadcast over this dimension. Indexing, as in `table[y]`, broadcasts; `torch.cat([z, y], -1)` and
convolutions do not. Repeating the rows for every combination c of values, as is done for particles,
works with any program:

.. math:: \log p(y_n, z_n) = \log \sum_c p(y_n, z_n, c)

where the sum is over the repeated rows. But with broadcasting, computations that do not depend on
the discrete value are done only once. So broadcasting is used if it gives the same result.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .edges import bounds_of
from .traces import SAME_VALUES, TracedSite

_MOST = 4096  # combinations per datum; each needs a row


@dataclass(frozen=True)
class Combinations:
    """All combinations of the values of some discrete sites of a datum.

    Arguments:
        values: Values of each site, by name, `(combinations, *shape)`, where `shape` is the shape
            of one datum's value.
        axes: Position of the datum axis in each site's value.
    """

    values: Mapping[str, Tensor]
    axes: Mapping[str, int]

    def __len__(self) -> int:
        """The number of combinations."""
        return len(next(iter(self.values.values())))

    def beside(
        self, given: Mapping[str, Tensor], axes: Mapping[str, int], rows: int
    ) -> dict[str, Tensor]:
        """Returns the values of all sites, for a batch that is repeated once per combination.

        Arguments:
            given: Values of the other sites, before the batch is repeated.
            axes: Position of the datum axis in the value of each other site that has such an axis.
            rows: Number of rows of the batch before it is repeated.
        """
        return self.repeated(given, axes) | {
            name: value.repeat_interleave(rows, dim=0).movedim(0, self.axes[name])
            for name, value in self.values.items()
        }

    def repeated(self, given: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        """Repeats the values in `given` along their datum axes, once for every combination."""
        return {
            name: torch.cat([value] * len(self), dim=axes[name]) if name in axes else value
            for name, value in given.items()
        }

    def check(self, sites: Mapping[str, TracedSite]) -> None:
        """Refuses a run in which a discrete site has other possible values than those listed here.

        Raises:
            ValueError: If a bound of a site's support differs from that of the listed values.
        """
        for name, listed in self.values.items():
            values = listed.double()
            support: Any = sites[name].distribution.support
            pairs = zip(bounds_of(support, values), (values.min(), values.max()), strict=True)
            if any(bool((bound.isfinite() & (bound != own)).any()) for bound, own in pairs):
                raise ValueError(f"the discrete latent site '{name}' {SAME_VALUES}")

    def only(self, names: Collection[str]) -> "Combinations":
        """Returns all combinations of the values of the named sites only."""
        first = torch.ones(len(self), dtype=torch.bool, device="cpu")
        for name, value in self.values.items():
            if name not in names:
                first &= (value == value[:1]).flatten(1).all(dim=1).cpu()
        return replace(self, values={name: self.values[name][first] for name in names})

    def to(self, like: Tensor) -> "Combinations":
        """Returns a copy on the device of `like`; floating-point values get the dtype of `like`."""
        moved = {
            name: value.to(like.device, like.dtype if value.is_floating_point() else None)
            for name, value in self.values.items()
        }
        return replace(self, values=moved)


def combinations(sites: Iterable[TracedSite], plate_dim: int) -> Combinations | None:
    """Lists all combinations of the sites' values.

    Returns `None` if there are no sites, or if there are more than 4,096 combinations.

    Arguments:
        sites: Discrete sites of a run.
        plate_dim: Dimension of the plate over data, counted from the right.
    """
    found = [_Support.of(site, plate_dim) for site in sites]
    if not found or math.prod(len(part.support) ** part.entries for part in found) > _MOST:
        return None
    indices = [
        torch.arange(len(part.support), device="cpu") for part in found for _ in range(part.entries)
    ]
    grid = torch.cartesian_prod(*indices).reshape(-1, len(indices))
    columns = grid.split([part.entries for part in found], dim=1)
    return Combinations(
        {part.name: part.values(index) for part, index in zip(found, columns, strict=True)},
        {part.name: part.axis for part in found},
    )


@dataclass(frozen=True)
class _Support:
    """The possible values of one entry of a discrete site, and the shape of a datum's entries."""

    name: str
    support: Tensor
    inner_shape: torch.Size
    axis: int

    @classmethod
    def of(cls, site: TracedSite, plate_dim: int) -> "_Support":
        """Reads the possible values and the shape from a site of a run."""
        support, shape = site.distribution.enumerate_support(expand=False), site.value.shape
        plates = len(shape) - site.distribution.event_dim
        axis = plates + plate_dim
        inner = shape[:axis] + shape[axis + 1 : plates]
        return cls(site.name, support.reshape(-1, *shape[plates:]), inner, axis)

    @property
    def entries(self) -> int:
        """Number of entries per datum: one for each position in the plates inside the datum."""
        return math.prod(self.inner_shape)

    def values(self, index: Tensor) -> Tensor:
        """Returns values `(combinations, *shape)`, given each entry's index into the support."""
        chosen = self.support[index.to(self.support.device)]
        return chosen.reshape(len(index), *self.inner_shape, *self.support.shape[1:])
