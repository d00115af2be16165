r"""Functions that stay accurate where the textbook formula cancels.

A count of a million has :math:`\log \Gamma(y + 1) = 1.3 \cdot 10^7`, of which float32 resolves one
nat. The densities of this package are written so that such terms never appear: the remainder of
:math:`\log \Gamma` after Stirling's formula is small, and the other terms form a deviance, which is
zero where data and model agree.

References:
    | Fast and Accurate Computation of Binomial Probabilities (Loader, 2000)
    | https://www.r-project.org/doc/reports/CLoader-dbinom-2002.pdf
"""

import math

import torch
from torch import Tensor, nn

HALF_LOG_2_PI = math.log(2 * math.pi) / 2
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)  # of 1/x, 1/x^3, ...
_HALF_STEP = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336)  # of 1/x, 1/x^3, ...
_LARGE = 16.0  # from here on these series are exact to 1e-13


def soft_limit(x: Tensor, limit: float) -> Tensor:
    r"""The identity up to a limit, with logarithmic growth beyond it.

    .. math:: x \mapsto \mathrm{sign}(x) (\min(|x|, c) + \log(1 + \max(|x| - c, 0)))

    Increasing, with a continuous derivative: an exponential of it does not overflow, and the
    gradient does not vanish, as it would with a plain clamp.
    """
    over = (x.abs() - limit).clamp(min=0).log1p()
    return x.clamp(-limit, limit) + over * x.sign()


def stirling_error(x: Tensor) -> Tensor:
    r"""The error of Stirling's formula for :math:`\log x!`, for positive x.

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


LOG_LIMIT = 12.0  # an exponential from e^-12 to e^12 (160,000), slower beyond


def as_shape(shape: tuple[int, ...] | int) -> tuple[int, ...]:
    """The shape of a parameter: `()`, or that of a datum, which may be given as a number."""
    return (shape,) if isinstance(shape, int) else tuple(shape)


class Learned(nn.Module):
    r"""A positive number that is a parameter of the model, :math:`f + e^{s}`.

    Arguments:
        shape: `()` for one number for all features, or the shape of a datum for one per feature.
        initial: Initial value.
        floor: Its lower bound, which it never reaches.

    Raises:
        ValueError: Unless `0 <= floor < initial` and both are finite.
    """

    outputs = 0

    def __init__(
        self, shape: tuple[int, ...] | int = (), *, initial: float = 1.0, floor: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= floor < initial < math.inf:
            raise ValueError(
                f"a {type(self).__name__} needs 0 <= floor < initial, both finite; got floor "
                f"{floor} and initial {initial}"
            )
        self.shape = as_shape(shape)
        self.initial, self.floor = initial, floor
        self.raw = nn.Parameter(torch.full(self.shape, math.log(initial - floor)))

    def forward(self) -> Tensor:
        """The number, or one per feature."""
        return self.floor + soft_limit(self.raw, LOG_LIMIT).exp()


def halves(output: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Splits a decoder's output into the two numbers of every feature.

    Arguments:
        output: Output of a decoder, `(batch, 2 * features, ...)`.
        what: Name of the thing that needs two, for the message.

    Raises:
        ValueError: If the output cannot be halved.
    """
    if output.shape[1] % 2:
        raise ValueError(
            f"{what} needs two numbers per feature, so an even axis after the batch; the "
            f"decoder gave {tuple(output.shape)}: build it with outputs=2"
        )
    first, second = output.chunk(2, dim=1)
    return first, second
