"""Likelihoods of real numbers (Gaussian or heavy-tailed) and of positive numbers.

The scale of a likelihood is a separate object: fixed, learned, or decoded from z.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from .._types import Distribution, Size
from .._warnings import warn
from ..data.checks import check_range, warn_constant_columns
from ..nets.scaling import WithOptionalBuffers
from ..registry import registered
from .base import Features, Likelihood, Start, column_means, column_spreads
from .special import Learned, as_shape, halves, log_gamma_half_step

_INITIAL = 1.0
_ABOVE = 0.1  # smallest initial distance of sigma from its floor, as a share of the floor


@registered()
class FixedSigma(nn.Module):
    """A fixed sigma.

    Arguments:
        sigma: Standard deviation, in the unit of the data.

    Raises:
        ValueError: If sigma is not positive and finite.
    """

    outputs = 1

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = float(sigma)

    def forward(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean, which is the decoder's output, and the fixed sigma."""
        return output, output.new_full((), self.sigma)


def _initial(floor: float) -> float:
    """Returns the default initial value of a learned sigma with the given floor."""
    return max(_INITIAL, 2 * floor)


@registered()
class LearnedSigma(WithOptionalBuffers):
    r"""A learned sigma, :math:`\text{floor} + \mathrm{softplus}(s)`, with a real parameter s.

    If the data are far from unit scale, :func:`pyro_vae.fit` multiplies the softplus by the data's
    standard deviation.

    If the decoder can reproduce every datum, sigma falls to the floor; without a floor the density
    would be unbounded. Set the floor to the precision of the measurements.

    Arguments:
        shape: `()` if all features share one sigma, or the shape of a datum for one sigma per
            feature.
        initial: Initial sigma. By default, sigma starts at the standard deviation of the data if
            they are far from unit scale, and otherwise at the larger of 1 and twice the floor.
        floor: Smallest sigma, in the unit of the data.

    Raises:
        ValueError: Unless `0 < floor < initial` and both are finite.
    """

    outputs = 1
    optional = ("unit",)
    unit: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...] | int = (),
        *,
        initial: float | None = None,
        floor: float = 1e-2,
    ) -> None:
        super().__init__()
        check_floor(floor)
        initial = _initial(floor) if initial is None else initial
        if not floor < initial < float("inf"):
            raise ValueError(
                "`initial`, the sigma at the start, must be finite and above the floor of "
                f"{floor}; got {initial}"
            )
        self.shape = as_shape(shape)
        self.initial, self.floor = initial, floor
        self.raw = nn.Parameter(self._first.expand(self.shape).clone())
        self._initial_sum = float("nan")  # of `raw`, after `set_unit` has set a default sigma

    @torch.no_grad()
    def set(self, sigma: Tensor) -> None:
        """Sets sigma from one value per feature; a shared sigma is set to the values' rms."""
        own = self._pooled(sigma)
        above = (own - self.floor).clamp(min=_ABOVE * self.floor)
        self.raw.copy_(_inverse_softplus(above if self.unit is None else above / self.unit))

    def _pooled(self, sigma: Tensor) -> Tensor:
        """Returns the root mean square of `sigma` over the features that share one parameter."""
        each = sigma.numel() / self.raw.numel()
        if sigma.shape == self.shape or each < 1:
            return sigma
        return (sigma.square().sum_to_size(self.shape) / each).sqrt()

    @torch.no_grad()
    def set_unit(self, spread: Tensor | None) -> None:
        """Sets the unit of sigma to `spread`, the columns' standard deviations.

        If `spread` is `None`, the unit becomes 1. If sigma still has its default value, sigma is
        also set to `spread`.
        """
        if not self.raw.requires_grad:
            self.unit = None if spread is None else torch.ones_like(self.raw)
            return
        sigma, is_new = self.forward(self.raw)[1], self._is_new
        self.unit = None if spread is None else self._pooled(spread).to(self.raw).clone()
        if is_new and self.unit is None:
            self.raw.copy_(self._first)
        else:
            self.set(self.unit if is_new and self.unit is not None else sigma)
        self._initial_sum = float(self.raw.double().sum()) if is_new else float("nan")

    @property
    def _first(self) -> Tensor:
        """The unconstrained parameter at which sigma has its initial value."""
        return _inverse_softplus(torch.tensor(self.initial - self.floor))

    @property
    def _is_new(self) -> bool:
        """Whether sigma still has its default value, or the value that `set_unit` gave it."""
        if self.unit is not None:
            return float(self.raw.double().sum()) == self._initial_sum
        sigma = self.forward(self.raw)[1]
        default = _initial(self.floor)
        return self.initial == default and torch.allclose(sigma, torch.full_like(sigma, default))

    def forward(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean, which is the decoder's output, and the learned sigma."""
        return output, self.floor + _in_unit(self.unit, softplus(self.raw))


@registered()
class DecodedSigma(WithOptionalBuffers):
    r"""A sigma that depends on z: a softplus of the second half of the decoder's output.

    Arguments:
        floor: Smallest sigma, in the unit of the data.

    Raises:
        ValueError: If the floor is not positive; when called, if the output does not have an even
            number of entries along axis 1.
    """

    outputs = 2
    optional = ("unit",)
    unit: Tensor | None

    def __init__(self, *, floor: float = 1e-2) -> None:
        super().__init__()
        check_floor(floor)
        self.floor = floor

    def forward(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the mean from the first half of the output along axis 1, sigma from the second."""
        loc, raw = halves(output, "a sigma from the decoder")
        return loc, self.floor + _in_unit(self.unit, softplus(raw))

    def set_unit(self, spread: Tensor | None) -> None:
        """Sets the unit of sigma to `spread`, or to 1 if `spread` is `None`."""
        one = spread is not None and spread.numel() == 1
        self.unit = None if spread is None else (spread.reshape(()) if one else spread).clone()


Sigma: TypeAlias = float | int | FixedSigma | LearnedSigma | DecodedSigma
"""Types accepted for a sigma; a number stands for a fixed sigma."""


def start_of_sigma(sigma: nn.Module, centre: Tensor, spread: Tensor) -> Tensor:
    """Returns the decoder output for given centres and, if sigma is decoded, given sigmas."""
    if not isinstance(sigma, DecodedSigma):
        return centre
    above = (spread - sigma.floor).clamp(min=sigma.floor)
    own = above if sigma.unit is None else above / sigma.unit
    return torch.cat([centre, _inverse_softplus(own)])


def _in_unit(unit: Tensor | None, above: Tensor) -> Tensor:
    """Multiplies `above`, the distance of sigma from its floor, by the unit, if a unit is set."""
    return above if unit is None else unit.to(above) * above


def _inverse_softplus(x: Tensor) -> Tensor:
    """Inverts softplus without overflow for large numbers."""
    return x + (-(-x).expm1()).log()


def check_floor(floor: float) -> None:
    """Refuses a floor of sigma that is not a positive, finite number."""
    if not 0 < floor < float("inf"):
        raise ValueError(
            f"`floor`, the smallest sigma, must be positive and finite; got {floor}: leave out "
            "`floor` to use the default"
        )


class WithSigma(Likelihood):
    """A likelihood of real features, whose sigma is a separate object."""

    def __init__(self, sigma: Sigma = 1.0) -> None:
        super().__init__()
        self.sigma = FixedSigma(float(sigma)) if isinstance(sigma, int | float) else sigma

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """The number of decoder outputs per feature: two if sigma depends on z."""
        return self.sigma.outputs

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Warns about constant columns, whose density grows without bound as sigma goes to 0."""
        if not isinstance(self.sigma, FixedSigma):
            warn_constant_columns(y, names)

    def start_units(
        self, y: Float[Tensor, "batch *datum"], spread: Float[Tensor, "*datum"], *given: Tensor
    ) -> Start:
        """Expresses decoder outputs and sigma in units of the columns' standard deviations."""
        start = self.start(y)[: y.shape[1]]
        if isinstance(self.sigma, LearnedSigma | DecodedSigma):
            self.sigma.set_unit(spread)
        if not isinstance(self.sigma, DecodedSigma):
            return Start(start, spread)
        both = torch.cat([start, torch.zeros_like(start)])
        return Start(both, torch.cat([spread, torch.ones_like(spread)]))

    def warn_of_floor(self, spread: Float[Tensor, "*datum"], names: Sequence[str] = ()) -> None:
        """Warns if the floor of sigma is above the spread of a column."""
        sigma = self.sigma
        if not isinstance(sigma, LearnedSigma | DecodedSigma):
            return
        unit = spread if sigma.unit is None else sigma.unit.expand_as(spread)
        least, column = unit.flatten().min(dim=0)
        if float(least) < sigma.floor:
            named = repr(names[int(column)]) if names else str(int(column))
            floor = f"floor={0.01 * float(least):.1g}"
            warn(
                f"sigma is at least its floor, {sigma.floor}, but column {named} of the data has a "
                f"standard deviation of {float(least):.3g}: set a smaller floor, such as the "
                f"precision of the measurements, as in {type(sigma).__name__}({floor})"
            )

    def start_noise(self, sd: Float[Tensor, "*datum"], y: Float[Tensor, "batch *datum"]) -> None:
        """Sets a learned sigma to a given standard deviation; leaves other sigmas unchanged."""
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
        """Returns a normal distribution for each feature."""
        return dist.Normal(*self.sigma(output))

    def mean(
        self, output: Float[Tensor, "batch *output"], *given: Tensor
    ) -> Float[Tensor, "batch *datum"]:
        """Returns the mean of every feature."""
        return self.sigma(output)[0]

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the decoder output for each column's mean and, if sigma is decoded, its sd."""
        return start_of_sigma(self.sigma, column_means(y), column_spreads(y))


@registered()
class LearnedDegrees(Learned):
    r"""Learned degrees of freedom, :math:`\nu = f + e^{s}`, with floor f and a real parameter s.

    Arguments:
        shape: `()` for one value that all features share, or the shape of a datum for one value per
            feature.
        initial: Initial value.
        floor: Lower bound of the degrees of freedom. The mean exists above 1, the variance above 2.

    Raises:
        ValueError: Unless `0 <= floor < initial` and both are finite.
    """

    def __init__(
        self, shape: tuple[int, ...] | int = (), *, initial: float = 5.0, floor: float = 1.0
    ) -> None:
        super().__init__(shape, initial=initial, floor=floor)


class StudentTFeatures(Features):
    """Student's t distributions, parametrized by degrees of freedom, location and scale."""

    has_rsample = False

    @property
    def mean(self) -> Tensor:
        """Returns the centre, which is the mean if the mean exists."""
        return self.parameters[1]

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density; its normalizing constant is accurate even if `df` is large."""
        df, loc, scale = self.parameters
        standard = (value - loc) / scale
        constant = log_gamma_half_step(df / 2) - (math.pi * df).log() / 2 - scale.log()
        return constant - (df + 1) / 2 * (standard.square() / df).log1p()

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws of the features."""
        return dist.StudentT(*self.parameters, validate_args=False).sample(sample_shape)


@registered()
class StudentT(WithSigma):
    r"""Heavy-tailed features: like a Gaussian, but robust to a few outliers.

    .. math:: p(y_d \mid z) = \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac{\nu}{2})
        \sqrt{\pi \nu} \sigma} \left(1 + \frac{(y_d - \mu_d(z))^2}{\nu \sigma^2}
        \right)^{-(\nu + 1) / 2}

    Sigma is a scale and not the standard deviation, which is :math:`\sigma \sqrt{\nu / (\nu - 2)}`
    for :math:`\nu > 2`. With :math:`\nu \le 1` there is no mean, and :meth:`mean` returns the
    centre instead.

    Arguments:
        df: Degrees of freedom: a positive number, or :class:`LearnedDegrees`.
        sigma: A number for a fixed scale, or :class:`FixedSigma`, :class:`LearnedSigma`,
            :class:`DecodedSigma`.

    Raises:
        ValueError: If `df` is a number that is not positive and finite.

    References:
        | Robust Statistical Modeling Using the t Distribution (Lange, Little & Taylor, 1989)
        | https://doi.org/10.1080/01621459.1989.10478852

    Example:
        >>> StudentT(df=1.0)(torch.zeros(1, 1)).log_prob(torch.zeros(1, 1))
        tensor([-1.1447])
    """

    def __init__(self, df: float | int | LearnedDegrees = 4.0, sigma: Sigma = 1.0) -> None:
        super().__init__(sigma)
        self.df = float(df) if isinstance(df, int | float) else df

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Returns a Student's t distribution for each feature."""
        df = output.new_tensor(self.df) if isinstance(self.df, float) else self.df()
        return StudentTFeatures(df, *self.sigma(output))

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses infinite values; warns about constant columns, like `Gaussian`."""
        check_range(y, likelihood="StudentT", names=names)
        super().check(y, names)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the decoder output for each column's median and, if decoded, a robust sigma."""
        centre = _column_medians(y)
        return start_of_sigma(self.sigma, centre, 1.4826 * _column_medians((y - centre).abs()))


@registered()
class LogNormal(WithSigma):
    r"""Positive features whose logarithm is Gaussian; log p is the log density of y, not of log y.

    .. math:: \log p(y_d \mid z) =
        \log \mathcal{N}(\log y_d \mid \mu_d(z), \sigma^2) - \log y_d

    The last term is the Jacobian, so log p can be compared with log p under any other likelihood of
    the same data. The mean is :math:`e^{\mu + \sigma^2 / 2}`; the median is :math:`e^\mu`.

    Arguments:
        sigma: Standard deviation of the logarithm: a number if it is fixed, or
            :class:`FixedSigma`, :class:`LearnedSigma`, :class:`DecodedSigma`.

    Example:
        >>> LogNormal()(torch.zeros(1, 1)).log_prob(torch.ones(1, 1))
        tensor([-0.9189])
    """

    placeholder = 1.0

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Returns a log-normal distribution for each feature."""
        loc, scale = self.sigma(output)
        return dist.LogNormal(loc, scale, validate_args=False)

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses values that are not positive; warns about constant columns, like `Gaussian`."""
        check_range(
            y, low=0.0, inside=True, likelihood="LogNormal", names=names,
            remedy=(
                "use Gaussian for numbers of any sign, or replace zeros that mean 'below the "
                "detection limit' with nan"
            ),
        )  # fmt: skip
        super().check(y, names)

    def start_units(
        self, y: Float[Tensor, "batch *datum"], spread: Float[Tensor, "*datum"], *given: Tensor
    ) -> Start:
        """Returns the initial outputs without units, because logarithms have no unit."""
        return Start(self.start(y), None)

    def warn_of_floor(self, spread: Float[Tensor, "*datum"], names: Sequence[str] = ()) -> None:
        """Does not warn: sigma is a standard deviation of logarithms, which have no unit."""

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the decoder output for the mean of log y and, if sigma is decoded, its sd."""
        log_y = y.log()
        return start_of_sigma(self.sigma, column_means(log_y), column_spreads(log_y))


def _column_medians(y: Tensor) -> Tensor:
    """Returns the median of each column's observed entries; 0 if no entry was observed."""
    return y.nanmedian(dim=0).values.nan_to_num(nan=0.0)
