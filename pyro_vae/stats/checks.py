"""Helper functions for log weights: relative weights, means with their errors, and checks."""

from jaxtyping import Float
from torch import Tensor

from .._types import Estimate

_ROUNDING = 1e-6  # relative to the value: a few units in the last place of float32


def relative_weights(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weights divided by each datum's largest weight, and the log of this weight."""
    log_weights = log_weights.double()
    largest = log_weights.amax(dim=0)
    peak = largest.where(largest.isfinite(), 0.0)  # -inf - -inf would be nan, not a zero weight
    return (log_weights - peak).exp(), peak


def rounding(value: Tensor) -> Tensor:
    """Returns the largest difference, in nats, that rounding causes in log densities near `value`.

    Add it to the standard errors before testing whether a difference is larger than they allow.
    Exact results have an error of 0; without this addition, their last bit would decide.
    """
    return _ROUNDING * (1 + value.abs())


def mean_and_error(values: Tensor) -> Estimate:
    """Returns the mean over the first axis, and its standard error, computed from the spread."""
    values, count = values.double(), len(values)
    mean = values.mean(dim=0)
    squares = (values - mean).square().sum(dim=0)  # Tensor.std would warn about an empty batch
    return Estimate(mean, (squares / (count * (count - 1))).sqrt())


def weighted_mean(
    values: Float[Tensor, "draws *shape"], shares: Float[Tensor, "draws *ones"]
) -> Estimate:
    """Computes the weighted mean over the draws, and its error by the delta method.

    The weights of the draws, `shares`, must add up to 1.
    """
    mean = (shares * values).sum(dim=0)
    return Estimate(mean, (shares * (values - mean)).square().sum(dim=0).sqrt())


def weighted_moments(
    values: Float[Tensor, "draws *shape"], shares: Float[Tensor, "draws *ones"]
) -> tuple[Estimate, Estimate]:
    """Computes the weighted mean and the weighted standard deviation, with their errors."""
    mean = weighted_mean(values, shares)
    variance = weighted_mean((values - mean.value).square(), shares)
    sd = variance.value.sqrt()
    return mean, Estimate(sd, variance.error / (2 * sd))  # d sd = d variance / 2 sd


def require_particles(values: Tensor, fewest: int, purpose: str) -> None:
    """Refuses fewer than `fewest` particles; the message names `purpose` as the reason."""
    num_particles = values.shape[0] if values.ndim else 0
    if num_particles < fewest:
        raise ValueError(
            f"{purpose} requires {fewest} or more particles; got {num_particles} (shape "
            f"{tuple(values.shape)}, particles first): use more draws"
        )


def require_data(num_data: int, fewest: int, purpose: str, value: Tensor) -> None:
    """Refuses fewer than `fewest` data; the message names `purpose` as the reason."""
    if num_data < fewest:
        raise ValueError(
            f"{purpose} requires {fewest} or more data; got {num_data} (shape "
            f"{tuple(value.shape)}): evaluate on more data"
        )


def require_legal(log_weights: Tensor) -> None:
    """Refuses log weights that are nan or plus infinity; the message names the first of these."""
    illegal = log_weights.isnan() | log_weights.isposinf()
    if illegal.any():
        first = tuple(illegal.nonzero()[0].tolist())
        datum = f" of datum {', '.join(map(str, first[1:]))}" if len(first) > 1 else ""
        raise ValueError(
            "log weights must be finite, or -inf for a zero weight; got "
            f"{log_weights[first].item()} at particle {first[0]}{datum}, the first of a "
            f"total of {int(illegal.sum())}: check for bad data, for a scale of 0, and for "
            "parameters that diverged in training"
        )
