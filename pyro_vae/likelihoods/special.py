r"""Functions that stay accurate where the textbook formulas suffer from cancellation.

If a count y is a million, :math:`\log \Gamma(y + 1)` is :math:`1.3 \cdot 10^7`, which float32
resolves only to one nat. So the densities of this package avoid such terms. Stirling's formula
replaces :math:`\log \Gamma`, and the large terms combine into a deviance, which is zero where data
and model agree. Then the error of Stirling's formula, which is small, is added.

References:
    | Fast and Accurate Computation of Binomial Probabilities (Loader, 2000)
    | https://www.r-project.org/doc/reports/CLoader-dbinom-2002.pdf
"""

import math

import torch
from torch import Tensor, nn

from ..formatting import count_of

HALF_LOG_2_PI = math.log(2 * math.pi) / 2
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)  # coefficients of 1/x, 1/x^3, ...
_HALF_STEP = (-1 / 8, 1 / 192, -1 / 640, 17 / 14336)  # coefficients of 1/x, 1/x^3, ...
_LARGE = 16.0  # for x of at least this, the series are exact to 1e-13


def soft_limit(x: Tensor, limit: float) -> Tensor:
    r"""Returns x where |x| is at most the limit; beyond it the result grows only logarithmically.

    .. math:: x \mapsto \mathrm{sign}(x) (\min(|x|, c) + \log(1 + \max(|x| - c, 0)))

    Here c is the limit. The function increases, and its derivative is continuous. The exponential
    of the result does not overflow, and the gradient does not vanish, as it would with a clamp.
    """
    over = (x.abs() - limit).clamp(min=0).log1p()
    return x.clamp(-limit, limit) + over * x.sign()


def stirling_error(x: Tensor) -> Tensor:
    r"""Returns the error of Stirling's formula for :math:`\log x!`, for positive x.

    .. math:: \log \Gamma(x + 1) - (x + \tfrac{1}{2}) \log x + x - \tfrac{1}{2} \log 2 \pi
    """
    small, large = x.clamp(torch.finfo(x.dtype).tiny, _LARGE), x.clamp(min=_LARGE)
    direct = (small + 1).lgamma() - (small + 0.5) * small.log() + small - HALF_LOG_2_PI
    return torch.where(x < _LARGE, direct, _series(_STIRLING, large))


def log_gamma_half_step(x: Tensor) -> Tensor:
    r"""Returns :math:`\log \Gamma(x + \frac{1}{2}) - \log \Gamma(x)`, for positive x."""
    small, large = x.clamp(max=_LARGE), x.clamp(min=_LARGE)
    direct = (small + 0.5).lgamma() - small.lgamma()
    series = large.log() / 2 + _series(_HALF_STEP, large)
    return torch.where(x < _LARGE, direct, series)


def _series(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Returns the sum of the coefficients times 1/x, 1/x^3, 1/x^5, and so on."""
    square = x.square().reciprocal()
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * square + coefficient
    return total / x


LOG_LIMIT = 12.0  # largest |log| of a positive parameter; beyond it, `soft_limit` slows changes


def as_shape(shape: tuple[int, ...] | int) -> tuple[int, ...]:
    """Returns a shape as a tuple; a number n stands for `(n,)`."""
    return (shape,) if isinstance(shape, int) else tuple(shape)


class Learned(nn.Module):
    r"""A positive parameter of the model, :math:`f + e^{s}` with floor f and unconstrained s.

    Arguments:
        shape: `()` for one value that all features share, or the shape of a datum for one value per
            feature.
        initial: Initial value.
        floor: Lower bound of the parameter, which is never reached.

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
                f"{type(self).__name__} must have 0 <= floor < initial, both finite; got "
                f"floor={floor} and initial={initial}"
            )
        self.shape = as_shape(shape)
        self.initial, self.floor = initial, floor
        self.raw = nn.Parameter(torch.full(self.shape, math.log(initial - floor)))

    def forward(self) -> Tensor:
        """Returns the parameter, of shape `()` or with one value per feature."""
        return self.floor + soft_limit(self.raw, LOG_LIMIT).exp()


def halves(output: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Splits a decoder's output into the first and the second number of every feature.

    Arguments:
        output: Output of a decoder, `(batch, 2 * features, ...)`.
        what: Name of the parameter that needs two numbers per feature, for the error message.

    Raises:
        ValueError: If the output does not have an even number of entries along axis 1.
    """
    require_outputs(output, 2, what)
    first, second = output.chunk(2, dim=1)
    return first, second


def require_outputs(output: Tensor, number: int, what: str) -> None:
    """Refuses a decoder's output whose length along axis 1 is not a multiple of `number`.

    Such an output cannot have `number` numbers per feature. The message names the parameter,
    `what`, that needs these numbers.
    """
    if output.shape[1] % number:
        raise ValueError(
            f"for {what}, the decoder must give {count_of(number, 'number')} per feature along the "
            f"axis after the batch; got shape {tuple(output.shape)}: build the decoder with "
            f"`outputs={number}`"
        )
