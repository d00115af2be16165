r"""Functions that keep their digits where the textbook formula loses them.

A count of a million has :math:`\log \Gamma(y + 1) = 1.3 \cdot 10^7`, of which float32 resolves one
nat. The densities of this package are written so that such terms never appear: what is left of
:math:`\log \Gamma` after Stirling's formula is small, and the rest is a deviance, which is zero
where data and model agree.

References:
    | Fast and Accurate Computation of Binomial Probabilities (Loader, 2000)
    | https://www.r-project.org/doc/reports/CLoader-dbinom-2002.pdf
"""

import math

import torch
from torch import Tensor

HALF_LOG_2_PI = math.log(2 * math.pi) / 2
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)  # of 1/x, 1/x^3, ..., by Bernoulli
_HALF_STEP = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336)  # of 1/x, 1/x^3, ...
_LARGE = 16.0  # from where on these series are exact to 1e-13


def soft_limit(x: Tensor, limit: float) -> Tensor:
    r"""The number itself up to a limit, and beyond it growing as a logarithm.

    .. math:: x \mapsto \mathrm{sign}(x) (\min(|x|, c) + \log(1 + \max(|x| - c, 0)))

    Smooth to first order and increasing, so an exponential of it neither overflows nor stops the
    gradient, as a plain clamp would.
    """
    over = (x.abs() - limit).clamp(min=0).log1p()
    return x.clamp(-limit, limit) + torch.copysign(over, x)


def stirling_error(x: Tensor) -> Tensor:
    r"""What Stirling's formula leaves of :math:`\log x!`, for positive x.

    .. math:: \log \Gamma(x + 1) - (x + \tfrac{1}{2}) \log x + x - \tfrac{1}{2} \log 2 \pi
    """
    small, large = x.clamp(torch.finfo(x.dtype).tiny, _LARGE), x.clamp(min=_LARGE)
    direct = (small + 1).lgamma() - (small + 0.5) * small.log() + small - HALF_LOG_2_PI
    return torch.where(x < _LARGE, direct, _series(_STIRLING, large))


def log_gamma_half_step(x: Tensor) -> Tensor:
    r""":math:`\log \Gamma(x + \frac{1}{2}) - \log \Gamma(x)`, for positive x."""
    small, large = x.clamp(max=_LARGE), x.clamp(min=_LARGE)
    direct = (small + 0.5).lgamma() - small.lgamma()
    series = large.log() / 2 + _series(_HALF_STEP, large)
    return torch.where(x < _LARGE, direct, series)


def _series(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """A polynomial in odd powers of 1/x."""
    square = x.square().reciprocal()
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * square + coefficient
    return total / x
