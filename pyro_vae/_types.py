"""Types that all parts of the library share."""

from collections.abc import Callable
from html import escape
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .formatting import several, typeset

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution

    Distribution: TypeAlias = TorchDistribution
else:  # the base that all of Pyro's distributions have at run time
    Distribution = torch.distributions.Distribution

ProgramLike: TypeAlias = Callable[..., Any]
"""A Pyro program: a model or a guide, called as `program(*batch)`."""

Batch: TypeAlias = tuple[Tensor, ...]
"""The tensors that a program is called with; the first axis of each tensor indexes the data."""

Size: TypeAlias = list[int] | tuple[int, ...]
"""A batch shape or sample shape, as torch's distributions take it; `torch.Size` is a tuple."""

Data: TypeAlias = Tensor | NDArray[np.generic] | tuple[Tensor | NDArray[np.generic], ...]
"""Data that entry points accept: one array, or a tuple of arrays with the same number of rows."""


EXTRAS = {
    "matplotlib": "plot",
    "h5netcdf": "netcdf",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    **dict.fromkeys(("h5py", "pandas", "pyarrow", "sklearn"), "data"),
}
"""Maps each optional package to the extra of pyproject.toml that installs the package."""


def is_importable(module: str) -> bool:
    """Whether Python can import a module."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def optional(module: str, *, needed_for: str) -> ModuleType:
    """Imports an optional module; if the module is missing, the error says what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{needed_for} needs {package}, which Python cannot import ({error}): run "
            f"`{install_line(package)}`"
        ) from error


def install_line(*packages: str) -> str:
    """Returns the command that installs optional packages, as extras of pyro-vae where possible.

    Example:
        >>> install_line("matplotlib", "h5netcdf"), install_line("wandb")
        ("pip install 'pyro-vae[plot,netcdf]'", 'pip install wandb')
    """
    extras = ",".join(dict.fromkeys(EXTRAS[package] for package in packages if package in EXTRAS))
    others = [package for package in packages if package not in EXTRAS]
    return " ".join(["pip install", *[f"'pyro-vae[{extras}]'"] * bool(extras), *others])


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error, in the same unit and shape.

    An estimate is printed with as many digits as its error warrants; the format codes of numbers,
    such as `.3f`, work for it, too.

    Arguments:
        value: The estimate, of any shape.
        error: The standard error of the estimate, of the same shape.

    Example:
        >>> mean = Estimate(torch.tensor(-24.3148), torch.tensor(0.0172))
        >>> mean, f"{mean:.1f}", round(float(mean), 4)
        (-24.315 ± 0.017, '-24.3 ± 0.0', -24.3148)
        >>> Estimate(torch.arange(100.0), torch.full((100,), 0.5))
        [0.00 ± 0.50, 1.00 ± 0.50, 2.00 ± 0.50, …] (100,)
    """

    value: Tensor
    error: Tensor

    def __repr__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        value, error = (torch.as_tensor(part, device="cpu") for part in self)
        return several(value, error, spec)

    def __float__(self) -> float:
        return float(self.value)

    def _repr_html_(self) -> str:
        return f"<span>{escape(typeset(format(self)))}</span>"
