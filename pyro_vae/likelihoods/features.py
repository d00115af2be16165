"""Distributions of independent features, made of tensors of parameters."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class Features(dist.TorchDistribution):
    """Independent features; a subclass defines `log_prob`, `sample` and `mean`.

    Data are not validated here: `Likelihood.check` refuses them once, before training, with the
    column's name.

    Arguments:
        parameters: Tensors that broadcast to the shape of a batch of data; their last `trailing`
            dimensions, if any, are left alone.
    """

    trailing: ClassVar[int] = 0
    values: ClassVar[constraints.Constraint] = constraints.real

    def __init__(self, *parameters: Tensor) -> None:
        self.parameters = torch.broadcast_tensors(*parameters)
        shape = self.parameters[0].shape
        super().__init__(shape[: len(shape) - self.trailing], validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None: any number is a parameter."""
        return {}

    @property
    def support(self) -> constraints.Constraint:
        """Where the data are."""
        return self.values

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Features":
        """The same with more batch dimensions."""
        keep = len(self.batch_shape)
        return type(self)(
            *(part.expand(*batch_shape, *part.shape[keep:]) for part in self.parameters)
        )
