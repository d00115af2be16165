r"""Products of fewer bits, as an option: faster where the hardware has them.

A network is matrix products and what is done entry by entry in between. Only the products are
given fewer bits, and only their operands: sums run in float32, and so do densities, gradients of
weights, and the optimizer. A product of operands with a relative rounding of :math:`u` has one of
about :math:`u \sqrt{2}` of its typical size; what that does to an ELBO depends on the decoder, so
it is measured (see `Fit.rounding`), and no evidence is ever evaluated so.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@runtime_checkable
class Products(Protocol):
    """How matrix products and convolutions are made."""

    def active(self) -> AbstractContextManager[None]:
        """Inside the block they are made so."""


@dataclass(frozen=True)
class BFloat16Products:
    r"""Operands of float32 rounded to bfloat16, :math:`u = 2^{-9}`; results in float32.

    Half of the memory to move, and many times the speed, on a processor or GPU that has such
    products; several times slower on one that has not. Products inside torch's recurrent layers
    are not among them.

    References:
        | A Study of BFLOAT16 for Deep Learning Training (Kalamkar et al., 2019)
        | https://arxiv.org/abs/1905.12322

    Example:
        >>> with BFloat16Products().active():
        ...     torch.nn.functional.linear(torch.tensor([1.001]), torch.tensor([[1.0]]))
        tensor([1.])
    """

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block they are made so."""
        with _Rounded(torch.bfloat16):
            yield


@dataclass(frozen=True)
class TF32Products:
    r"""Operands rounded to 11 significant bits by a GPU that does so, :math:`u = 2^{-12}`.

    On a processor, and on a GPU without it, nothing changes.

    Example:
        >>> with TF32Products().active():
        ...     torch.backends.cuda.matmul.allow_tf32
        True
    """

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block they are made so."""
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


_MADE_SO = {
    functional.linear, functional.bilinear,
    functional.conv1d, functional.conv2d, functional.conv3d,
    functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
    Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm,
}  # fmt: skip


class _Rounded(TorchFunctionMode):
    """Products of float32 are made of rounded operands."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _MADE_SO or not any(map(_is_single, args)):
            return func(*args, **kwargs)
        product = func(
            *(self._rounded(arg) for arg in args),
            **{name: self._rounded(value) for name, value in kwargs.items()},
        )
        return product.to(torch.float32)

    def _rounded(self, arg: Any) -> Any:
        return arg.to(self.dtype) if _is_single(arg) else arg


def _is_single(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.dtype == torch.float32
