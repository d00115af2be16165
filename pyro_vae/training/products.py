r"""Optional low-precision matrix products: faster on hardware that supports them.

A network consists of matrix products and elementwise operations. Only the operands of the products
are rounded. Sums, densities, gradients of weights, and the optimizer use float32. If the operands
have a typical relative rounding error :math:`u`, the error of the product is about :math:`u
\sqrt{2}`. The effect on an ELBO depends on the decoder, so the effect is measured (see
`Fit.rounding`). Evidence is never evaluated at low precision.
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
    """A way to compute matrix products and convolutions."""

    def active(self) -> AbstractContextManager[None]:
        """Uses this way of computing products inside the block."""


@dataclass(frozen=True)
class BFloat16Products:
    r"""Rounds the float32 operands of products to bfloat16; results are in float32.

    The typical relative rounding error of an operand is :math:`2^{-9}`. Memory traffic is halved.
    Products are many times faster on a processor or GPU that supports bfloat16, but several times
    slower on hardware that does not. Products inside torch's recurrent layers are not affected.

    References:
        | A Study of BFLOAT16 for Deep Learning Training (Kalamkar et al., 2019)
        | https://arxiv.org/abs/1905.12322

    Example:
        >>> with BFloat16Products().active():
        ...     torch.nn.functional.linear(torch.tensor([1.001]), torch.tensor([[1.0]]))
        tensor([1.])
    """

    def active(self) -> AbstractContextManager[None]:
        """Rounds the operands of products to bfloat16 inside the block."""
        return _Rounded()


@dataclass(frozen=True)
class TF32Products:
    r"""Rounds the operands of products to 11 significant bits, on a GPU with TF32.

    The typical relative rounding error of an operand is :math:`2^{-12}`. Nothing changes on a CPU,
    or on a GPU without TF32.

    Example:
        >>> with TF32Products().active():
        ...     torch.backends.cuda.matmul.allow_tf32
        True
    """

    @contextmanager
    def active(self) -> Iterator[None]:
        """Lets the GPU compute products in TF32 inside the block."""
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


_PRODUCTS = {
    functional.linear, functional.bilinear,
    functional.conv1d, functional.conv2d, functional.conv3d,
    functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
    Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm,
}  # fmt: skip


class _Rounded(TorchFunctionMode):
    """Rounds the float32 operands of products to bfloat16; results are in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not any(map(_is_single, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        product = func(
            *map(_rounded, args),
            **{name: _rounded(value) for name, value in kwargs.items()},
        )
        return product.to(torch.float32)


def _rounded(arg: Any) -> Any:
    return arg.to(torch.bfloat16) if _is_single(arg) else arg


def _is_single(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.dtype == torch.float32
