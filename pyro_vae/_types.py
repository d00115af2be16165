"""Types that every layer shares."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution

    Distribution: TypeAlias = TorchDistribution
else:  # what Pyro's distributions have in common when they run is torch's class
    Distribution = torch.distributions.Distribution

ProgramLike: TypeAlias = Callable[..., Any]
"""A Pyro program: a model or a guide, called as `program(*batch)`."""

Batch: TypeAlias = tuple[Tensor, ...]
"""The tensors a program is called with; the datum axis is leftmost in each."""

Data: TypeAlias = Tensor | NDArray[np.generic] | tuple[Tensor | NDArray[np.generic], ...]
"""What entry points accept: one array, or a tuple of arrays with the same number of rows."""


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error, in the same unit and shape."""

    value: Tensor
    error: Tensor
