"""Gaussian features, with a separate object for sigma: fixed, learned, or decoded from z."""

from typing import TypeAlias

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from .._types import Distribution
from ..data import warn_constant_columns
from ..registry import registered
from .base import Likelihood, column_means, column_spreads
from .special import halves

_ABOVE = 0.1  # of the floor: a sigma that is set starts so far above it, where it can still move


@registered()
class FixedSigma(nn.Module):
    """A fixed sigma.

    Arguments:
        sigma: Standard deviation, in the unit of the data.

    Raises:
        ValueError: If it is not positive and finite.
    """

    outputs = 1

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = float(sigma)

    def forward(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sigma."""
        return output, output.new_full((), self.sigma)


@registered()
class LearnedSigma(nn.Module):
    r"""A sigma that is a parameter of the model, :math:`\sigma = f + \mathrm{softplus}(s)`.

    Without a floor sigma goes to zero for any guide that distinguishes the data: the density is
    unbounded. Set the floor to the precision of the measurements.

    Arguments:
        shape: `()` for one sigma for all features, or the shape of a datum for one per feature.
        initial: Initial sigma.
        floor: Smallest sigma, in the unit of the data.

    Raises:
        ValueError: If not `0 < floor < initial`, and both finite.
    """

    outputs = 1

    def __init__(
        self, shape: tuple[int, ...] | int = (), *, initial: float = 1.0, floor: float = 1e-2
    ) -> None:
        super().__init__()
        _check_floor(floor)
        if not floor < initial < float("inf"):
            raise ValueError(
                f"the initial sigma must be finite and above its floor {floor}, got {initial}"
            )
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.initial, self.floor = initial, floor
        start = _inverse_softplus(torch.tensor(initial - floor))
        self.raw = nn.Parameter(start.expand(self.shape).clone())

    @torch.no_grad()
    def set(self, sigma: Tensor) -> None:
        """Sets sigma, entry by entry, or to the root of the mean square if there is only one."""
        own = sigma if self.shape else sigma.square().mean().sqrt()
        self.raw.copy_(_inverse_softplus((own - self.floor).clamp(min=_ABOVE * self.floor)))

    def forward(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sigma."""
        return output, self.floor + softplus(self.raw)


@registered()
class DecodedSigma(nn.Module):
    r"""A sigma that depends on z: the second half of the decoder's output, through a softplus.

    Arguments:
        floor: Smallest sigma, in the unit of the data.

    Raises:
        ValueError: If the floor is not positive; when called, if the output cannot be halved.
    """

    outputs = 2

    def __init__(self, *, floor: float = 1e-2) -> None:
        super().__init__()
        _check_floor(floor)
        self.floor = floor

    def forward(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sigma, each half of the output along the first axis of the datum."""
        loc, raw = halves(output, "a sigma from the decoder")
        return loc, self.floor + softplus(raw)


Sigma: TypeAlias = float | int | FixedSigma | LearnedSigma | DecodedSigma
"""Types accepted for a sigma; a number is a fixed one."""


def start_of_sigma(sigma: nn.Module, centre: Tensor, spread: Tensor) -> Tensor:
    """The decoder's output for this centre and, if sigma is decoded, nearly this sigma."""
    if not isinstance(sigma, DecodedSigma):
        return centre
    return torch.cat([centre, _inverse_softplus((spread - sigma.floor).clamp(min=sigma.floor))])


def _inverse_softplus(x: Tensor) -> Tensor:
    """Inverse of softplus that does not overflow for large numbers."""
    return x + (-(-x).expm1()).log()


def _check_floor(floor: float) -> None:
    if not 0 < floor < float("inf"):
        raise ValueError(f"the floor is the smallest sigma and must be positive, got {floor}")


class WithSigma(Likelihood):
    """A likelihood of real features with a sigma object."""

    def __init__(self, sigma: Sigma = 1.0) -> None:
        super().__init__()
        self.sigma = FixedSigma(float(sigma)) if isinstance(sigma, int | float) else sigma

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Numbers per feature that the decoder must give: two if sigma depends on z."""
        return self.sigma.outputs

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Warns of constant columns, whose density grows without bound as a learned sigma falls."""
        if not isinstance(self.sigma, FixedSigma):
            warn_constant_columns(y, names)

    def start_noise(self, sd: Float[Tensor, "*datum"]) -> None:
        """Sets a learned sigma."""
        if isinstance(self.sigma, LearnedSigma):
            self.sigma.set(sd)


@registered()
class Gaussian(WithSigma):
    r"""Gaussian features, :math:`p(y \mid z) = \prod_d \mathcal{N}(y_d \mid \mu_d(z), \sigma_d^2)`.

    With a fixed sigma the log density is the squared error, :math:`-\|y - \mu\|^2 / 2\sigma^2`,
    plus a constant.

    Arguments:
        sigma: A number for a fixed sigma, or :class:`FixedSigma`, :class:`LearnedSigma`,
            :class:`DecodedSigma`.

    Example:
        >>> Gaussian(sigma=2.0)(torch.zeros(1, 1)).log_prob(torch.zeros(1, 1))
        tensor([-1.6121])
    """

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Normal distributions of the features."""
        return dist.Normal(*self.sigma(output))

    def mean(
        self, output: Float[Tensor, "batch *output"], *given: Tensor
    ) -> Float[Tensor, "batch *datum"]:
        """The mean of every feature."""
        mean: Tensor = self.sigma(output)[0]
        return mean

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Means, and standard deviations where sigma depends on z."""
        return start_of_sigma(self.sigma, column_means(y), column_spreads(y))
