r"""Estimates the gain that further training would bring, from the ELBO of each epoch so far.

The ELBO rises towards a limit :math:`a` but does not reach it at a fixed step size. The parameters
jitter around the optimum, at a cost that is proportional to the step size. This cost is :math:`J`
at the largest step size. Let :math:`r` be an epoch's step size relative to the largest step size,
and :math:`\tau` the sum of :math:`r` over the epochs so far. The model is

.. math:: \mathrm{ELBO}(\tau, r) = a - b\, g(\tau) - J r + \text{noise},
    \qquad g(\tau) = e^{-\tau / c} \ \text{or}\ \tau^{-p}, \quad b, J \ge 0

and the remaining gain is :math:`b\, g` at the end of training. The shape of :math:`g` is not known,
so many scales :math:`c` and powers :math:`p` are tried. Each is fitted to two parts of the ELBO's
curve (the last two thirds and the last half). The gains of all these fits are averaged, and better
fits get larger weights. The error combines the spread of the gains and the noise; negative gains
are cut off at 0. The result is an order of magnitude, usually right within a factor of three. It
misses slow improvements that the noise hides, as in a narrow valley.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._types import Estimate

FEWEST_EPOCHS = 20  # so that the shorter part has ten epochs, for three coefficients and a shape
_STARTS = (1 / 3, 1 / 2)  # later, steps only fall, and less jitter looks like learning
_SCALES = np.geomspace(1 / 20, 2, 24)  # c, as a share of the run; longer is nearly straight
_STEP = 0.1  # relative error of a gain: about half of the step between two scales
_POWERS = (0.25, 0.5, 1.0, 2.0)
_FINEST = 1e-3  # least noise, as a share of a curve's range: the shapes are never exact
_PARTS = 20  # quantiles that represent the gain of one fit
_FAR = 30.0  # standard deviations beyond which a normal distribution has no mass in floating point
_TINY = 1e-300  # replaces the zero noise of a constant curve
_MOST_CORRELATED = 0.9  # highest autocorrelation of residuals: beyond it, no shape fits the curve


class Gain(NamedTuple):
    """The gain to be expected from further training, in nats per datum.

    Arguments:
        estimate: The mean gain over all fitted curves, and the error of this mean.
        low: The 10% quantile of the fitted gains.
        high: The 95% quantile of the fitted gains.
    """

    estimate: Estimate
    low: float
    high: float


class _Fit(NamedTuple):
    """A curve that was fitted to the ELBO by least squares.

    Arguments:
        squares: Sum of the squared residuals.
        left: Gain that remains at the end of training, which can be negative.
        variance: Variance of the remaining gain if the noise has variance 1.
        residuals: Residuals of the fit. If the remaining gain is negative, they are those of a fit
            in which this gain is 0.
    """

    squares: float
    left: float
    variance: float
    residuals: NDArray[np.float64]


def remaining_gain(elbo: ArrayLike, step_sizes: ArrayLike) -> Gain | None:
    """Estimates what further training would gain, from each epoch's ELBO and step size.

    Arguments:
        elbo: The ELBO of each epoch, `(epochs,)`, in nats per datum.
        step_sizes: The step size of each epoch, `(epochs,)`, in any unit.

    Returns:
        The gain, in nats per datum; None if there are fewer than 20 epochs, if an ELBO is not
        finite, or if all steps were zero.

    Example:
        >>> import numpy as np
        >>> epochs = np.arange(100)
        >>> gain = remaining_gain(-3 - 2 * np.exp(-epochs / 30), np.ones(100))
        >>> bool(gain.low < 2 * np.exp(-100 / 30) < gain.high)
        True
    """
    curve = np.asarray(elbo, dtype=np.float64)
    rates = np.asarray(step_sizes, dtype=np.float64)
    if len(curve) < FEWEST_EPOCHS or not rates.max() > 0 or not np.isfinite(curve).all():
        return None
    rates = rates / rates.max()
    time, end = np.cumsum(rates) - rates / 2, rates.sum()
    pieces = [time > start * end for start in _STARTS]
    answers = [_answers(curve[at], rates[at], time[at] / end) for at in pieces]
    lefts, errors, weights = np.concatenate(answers).T
    gains = _positive(lefts, errors)
    weights = np.repeat(weights / weights.sum() / _PARTS, _PARTS)
    value = weights @ gains
    error = float(weights @ (gains - value) ** 2) ** 0.5
    low, high = _quantiles(gains, weights)
    return Gain(Estimate(torch.tensor(value), torch.tensor(error)), low, high)


def _positive(lefts: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns evenly spaced quantiles of normal distributions that are cut off at 0.

    `lefts` holds the means of the distributions, and `errors` their standard deviations. In the
    result, the quantiles of one distribution follow one another.
    """
    from scipy.special import ndtr, ndtri  # this import takes a third of a second

    errors = errors[:, None] + _TINY
    ratios = np.maximum(lefts[:, None] / errors, -_FAR)
    above = (np.arange(_PARTS) + 0.5) / _PARTS
    return np.maximum(0.0, errors * (ratios - ndtri(above * ndtr(ratios)))).ravel()


def _quantiles(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the weighted 10% and 95% quantiles of values."""
    order = values.argsort()
    places = (weights[order].cumsum() / weights.sum()).searchsorted([0.1, 0.95])
    low, high = values[order][places.clip(max=len(values) - 1)]
    return float(low), float(high)


def _answers(
    curve: NDArray[np.float64], rates: NDArray[np.float64], time: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fits every shape of curve to a part of the ELBO's curve.

    Returns one row for each shape: the gain, its error, and the weight of the fit.
    """
    shapes = [np.exp((1 - time) / scale) for scale in _SCALES]  # 1 at the end of the curve
    shapes += [time**-power for power in _POWERS]
    fits = [_fitted(curve, rates, shape) for shape in (None, *shapes)]
    best = min(fits, key=lambda fit: fit.squares)
    noise = best.squares / max(1, len(curve) - 4) + (_FINEST * np.ptp(curve)) ** 2  # a variance
    correlation = float(best.residuals[1:] @ best.residuals[:-1]) / max(best.squares, _TINY)
    correlation = min(max(correlation, 0.0), _MOST_CORRELATED)
    noise = noise * (1 + correlation) / (1 - correlation) + _TINY  # correlation: less information
    weights = np.exp([(best.squares - fit.squares) / (2 * noise) for fit in fits])
    lefts = np.array([fit.left for fit in fits])
    errors = np.sqrt([fit.variance * noise + (_STEP * fit.left) ** 2 for fit in fits])
    return np.stack([lefts, errors, weights / weights.sum()], axis=1)


def _fitted(
    curve: NDArray[np.float64], rates: NDArray[np.float64], shape: NDArray[np.float64] | None
) -> _Fit:
    """Fits a curve by least squares; the cost of jitter is left out if it would be negative."""
    columns = [np.ones_like(curve), *([] if shape is None else [-shape])]
    has_jitter = bool(np.ptp(rates) > 0)
    design = np.stack([*columns, -rates] if has_jitter else columns, axis=1)
    found = np.linalg.lstsq(design, curve)[0]
    if has_jitter and found[-1] < 0:
        design = np.stack(columns, axis=1)
        found = np.linalg.lstsq(design, curve)[0]
    residuals = curve - design @ found
    if shape is None:
        return _Fit(float(residuals @ residuals), 0.0, 0.0, residuals)
    variance = float(np.linalg.pinv(design.T @ design)[1, 1])
    if found[1] < 0:
        residuals = _fitted(curve, rates, None).residuals
    return _Fit(float(residuals @ residuals), float(found[1]), variance, residuals)
