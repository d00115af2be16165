r"""Rewrites operations of a captured graph so that the compiler makes faster code from them.

A bias is added separately from its matrix product, so that the compiler can fuse the sum with later
operations. Log densities of binary data, and transforms to positive scales, need

.. math:: \log(1 + e^x) = \max(x, 0) + \log(1 + \epsilon), \qquad \epsilon = e^{-|x|} \in (0, 1],

and its derivative :math:`1 / (1 + e^{-x})`. The derivative is :math:`1 / (1 + \epsilon)` for
positive x and :math:`\epsilon / (1 + \epsilon)` for negative x, so one exponential is enough for
function and derivative. On so short an interval :math:`\log(1 + \epsilon)` is :math:`\epsilon`
times a polynomial, with a relative error of 2.3e-7, which is two roundings of float32. The
hyperbolic tangent is computed as :math:`x P(x^2) / Q(x^2)`, with polynomials P and Q of degree 4.
Its relative error is 3e-7, and it takes a quarter of the time of torch's function. Other dtypes
keep torch's operations.

Matrix products on the CPU are computed by MKL, which uses AVX-512 instructions on Intel's
processors only. On AMD's processors with AVX-512 large products are computed by oneDNN, which takes
half the time.
"""

import platform
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

_aten = torch.ops.aten

# log(1 + e) / e for e in [0, 1] with the least relative error, lowest power first.
_LOG1P = (
    0.9999999698773553, -0.4999949311243639, 0.33319096221824684, -0.24842977548007442,
    0.19105988495561121, -0.13663206942902945, 0.07822549385487541, -0.029504957515003608,
    0.005232624078144871,
)  # fmt: skip

# tanh(x) / x for x² in [0, _FLAT²], as a ratio of polynomials in x², with the least relative error;
# tanh(_FLAT) is 1 - 3e-7.
_TANH = (
    0.999999994352955, 0.13450618404157386, 0.003578989419770434, 2.2023200761373562e-05,
    1.5427907571241347e-08,
), (
    1.0, 0.4678394640528738, 0.026192228112173248, 0.0003423646231508071, 8.598754263769148e-07,
)  # fmt: skip
_FLAT = 7.9

_LARGE = 3 * 2**19  # multiplications; with fewer, the call of oneDNN takes longer than it saves
_COMPILES_ONEDNN = "2.13"  # torch 2.4 calls oneDNN with wrong types; versions between are untried
_FEW = 4  # columns: for so few, the call of a matrix product takes longer than its computation


def _addmm(bias: Tensor, left: Tensor, right: Tensor, **factors: Any) -> Any:
    """Adds a bias separately from its matrix product."""
    return NotImplemented if factors or _is_low(left) else torch.mm(left, right) + bias


def _mm(left: Tensor, right: Tensor) -> Any:
    """Multiplies two matrices in a faster way; returns `NotImplemented` if torch's way is best.

    If the shared dimension is small, such as the number of latents, the product becomes a sum of
    outer products, which the compiler can fuse with other operations. Large float32 products are
    computed by oneDNN on processors where oneDNN is faster.
    """
    if _is_low(left):
        return NotImplemented
    if 0 < left.shape[1] <= _FEW:
        columns = zip(left.unbind(dim=1), right.unbind(dim=0), strict=True)
        return sum(column[:, None] * row for column, row in columns)
    is_large = left.numel() * right.shape[1] >= _LARGE
    if is_large and (left.dtype, left.device.type) == (torch.float32, "cpu") and _prefers_onednn():
        # oneDNN would copy a transposed factor itself; as an operation of its own, the copy is made
        # where the factor is computed.
        return onednn_product()(left.contiguous(), right.t(), None, "none", [], "")
    return NotImplemented


def onednn_product() -> Any:
    """Returns torch's operation for oneDNN's linear layer; some builds of torch do not have it."""
    return torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001


@cache
def _prefers_onednn() -> bool:
    """Whether oneDNN is faster than MKL on this processor, and torch includes both libraries."""
    has_both = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    if not has_both or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if TorchVersion(torch.__version__) < _COMPILES_ONEDNN:
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not on Linux
        return "AuthenticAMD" in platform.processor()


def _is_low(x: Tensor) -> bool:
    """Whether a tensor's numbers have fewer than 32 bits, so that sums of them lose precision."""
    return x.is_floating_point() and torch.finfo(x.dtype).bits < 32


def _softplus(x: Tensor, *options: Any) -> Any:
    if x.dtype != torch.float32 or options:
        return NotImplemented
    return x.clamp(min=0) + _log1p(_exponential(x))


def _sigmoid(x: Tensor) -> Any:
    if x.dtype != torch.float32:
        return NotImplemented
    e = _exponential(x)
    return torch.where(x >= 0, torch.ones_like(e), e) / (1 + e)


def _tanh(x: Tensor) -> Any:
    if x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-_FLAT, _FLAT)
    above, below = (_polynomial(coefficients, x * x) for coefficients in _TANH)
    return x * above / below


def _bernoulli(x: Tensor, y: Tensor, *options: Any) -> Any:
    """Computes minus the log probability of binary y, given logits x."""
    if x.dtype != torch.float32 or options != (None, None, 0):  # with weights or a reduction
        return NotImplemented
    return (1 - y) * x - x.clamp(max=0) + _log1p(_exponential(x))


def _exponential(x: Tensor) -> Tensor:
    r"""Computes :math:`\epsilon = e^{-|x|}`."""
    return (-x.abs()).exp()


def _log1p(e: Tensor) -> Tensor:
    r"""Computes :math:`\log(1 + \epsilon)` for :math:`\epsilon` between 0 and 1."""
    return _polynomial(_LOG1P, e) * e


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Evaluates a polynomial; the coefficient of the lowest power comes first."""
    *lower, highest = coefficients
    value: Any = highest
    for coefficient in reversed(lower):
        value = value * x + coefficient
    return value


FORMS: dict[Any, Callable[..., Any]] = {
    _aten.addmm.default: _addmm,
    _aten.mm.default: _mm,
    _aten.softplus.default: _softplus,
    _aten.sigmoid.default: _sigmoid,
    _aten.tanh.default: _tanh,
    _aten.binary_cross_entropy_with_logits.default: _bernoulli,
}
"""Replacements of torch's operations, by operation.

Where a program calls one of these operations, a capture records the operations of the replacement.
"""
