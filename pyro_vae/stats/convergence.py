r"""Estimates the gain that further training would bring, from the ELBO of each epoch so far.

At a fixed step size, the parameters jitter around the optimum, at a cost that is proportional to
the step size. This cost is :math:`J` at the largest step size. Let :math:`r` be an epoch's step
size relative to the largest step size, and :math:`\tau` the sum of :math:`r` over the epochs so
far, in units of the whole run. The model is

.. math:: \mathrm{ELBO}(\tau, r) = a - b\, g_p(\tau) - J r + \text{noise}, \qquad
    g_p(\tau) = \frac{\tau^{-p} - 10^{-p}}{1 - 10^{-p}}, \quad b, J \ge 0

Since :math:`g_p(1) = 1` and :math:`g_p(10) = 0`, the gain from training ten times as long is
:math:`b`. The power :math:`p` says how the curve continues: as a straight line (-1), as a logarithm
(0), or levelling off (:math:`p > 0`, and sooner for a larger :math:`p`). The curve so far hardly
tells which power is right. With the same slope at its end, one curve may be about to level off, and
another one about to rise from a saddle point. So the powers have prior weights, and the quality of
their fits counts little. The model with each power is fitted to three parts of the ELBO's curve:
its last two thirds, its last half and its last third. The gain from each fit is also multiplied by
a random factor, whose logarithm has standard deviation 0.8.

The prior weights and the factor were chosen with runs whose true gain is known: fits of
probabilistic PCA, and of VAEs that were then trained ten times longer. For 435 runs of other kinds
(348 of them simulated), 90% of the intervals (`low`, `high`) contained the true gain, and half of
the estimates were right within a factor of two. The intervals are wide (their bounds often differ
by a factor of 30), because the curve does not contain more information.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._types import Estimate

FEWEST_EPOCHS = 20  # the last third of these epochs is the shortest part that is fitted
# Starts of the three parts, as shares of the run. Later parts would mislead: step sizes only fall,
# and the ELBO's rise due to less jitter looks like learning.
_STARTS = (1 / 3, 1 / 2, 2 / 3)
# p, from curves that go on rising to curves that level off at once: at the same slope, each power
# promises about a third of the gain that the power before it promises.
_POWERS = (-1.0, 0.0, 1.0, 3.0, 9.0)
_WEIGHTS = np.array([1, 10, 20, 20, 10]) / 61  # prior weights of the powers
_LONGER = 10.0  # the gain is that from training so many times as long
_TEMPER = 50.0  # divides log likelihoods, because no curve has exactly one of these shapes
_SPREAD = 0.8  # standard deviation of the logarithm of a gain, as measured
_FINEST = 1e-3  # least noise, as a share of a curve's range, because the shapes are not exact
_PARTS = 20  # quantiles that represent the gain of one fit, and its random factor
_FAR = 30.0  # standard deviations beyond which a normal distribution has no mass in floating point
_TINY = 1e-300  # replaces the zero noise of a constant curve
_MOST_CORRELATED = 0.9  # limit of the residuals' autocorrelation: above it, no shape fits


class Gain(NamedTuple):
    """The gain to be expected from further training, in nats per datum.

    Arguments:
        estimate: The median of the fitted gains, and their root mean square distance from it.
        low: The 10% quantile of the fitted gains.
        high: The 95% quantile of the fitted gains.
        gains: The fitted gains in ascending order, `(gains,)`.
        weights: The weight of each gain, `(gains,)`; they add up to 1.
    """

    estimate: Estimate
    low: float
    high: float
    gains: NDArray[np.float64]
    weights: NDArray[np.float64]

    def below(self, gain: float) -> float:
        """Returns the probability that further training gains less than `gain`."""
        return float(self.weights[self.gains < gain].sum())


class _Fit(NamedTuple):
    """A curve that was fitted to the ELBO by least squares.

    Arguments:
        squares: Sum of the squared residuals.
        left: Gain that further training would bring, which can be negative.
        variance: Variance of `left` if the noise has variance 1.
        residuals: Residuals of the fit. If `left` is negative, they are those of a fit with a gain
            of 0.
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
    # If step sizes grow, a few epochs can take half of the time. Every part has at least six.
    last = np.arange(len(time)) >= len(time) - FEWEST_EPOCHS // 3
    pieces = [last | (time > start * end) for start in _STARTS]
    answers = [_answers(curve[at], rates[at], time[at] / end) for at in pieces]
    lefts, errors, weights = np.concatenate(answers).T
    gains = _spread(lefts, errors)
    weights = np.repeat(weights / weights.sum(), gains.shape[1]) / gains.shape[1]
    order = gains.ravel().argsort()
    gains, weights = gains.ravel()[order], weights[order]
    places = weights.cumsum().searchsorted([0.1, 0.5, 0.95]).clip(max=len(gains) - 1)
    low, value, high = gains[places].tolist()
    error = float(weights @ (gains - value) ** 2) ** 0.5
    estimate = Estimate(*torch.tensor([value, error], dtype=torch.float64, device="cpu"))
    return Gain(estimate, low, high, gains, weights)


def _spread(lefts: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns values that represent the distribution of each fit's gain, one row per fit.

    The gain is a normal variable, truncated to positive values, times a lognormal factor. Each row
    has the products of evenly spaced quantiles of the two. `lefts` and `errors`, each `(fits,)`,
    are means and standard deviations of the normal variables before truncation.
    """
    from scipy.special import ndtr, ndtri  # this import takes a third of a second

    errors = errors[:, None] + _TINY
    ratios = np.maximum(lefts[:, None] / errors, -_FAR)
    above = (np.arange(_PARTS) + 0.5) / _PARTS
    gains = np.maximum(0.0, errors * (ratios - ndtri(above * ndtr(ratios))))
    factors = np.exp(_SPREAD * ndtri(above))
    return (gains[:, :, None] * factors).reshape(len(lefts), -1)


def _answers(
    curve: NDArray[np.float64], rates: NDArray[np.float64], time: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fits every shape of curve to a part of the ELBO's curve.

    Returns one row for each shape: the gain that further training would bring, the error of this
    gain, and the weight of the fit.
    """
    fits = [_fitted(curve, rates, _shape(time, power)) for power in _POWERS]
    best = min(fits, key=lambda fit: fit.squares)
    noise = best.squares / max(1, len(curve) - 3) + (_FINEST * np.ptp(curve)) ** 2  # a variance
    correlation = float(best.residuals[1:] @ best.residuals[:-1]) / max(best.squares, _TINY)
    correlation = min(max(correlation, 0.0), _MOST_CORRELATED)
    noise = noise * (1 + correlation) / (1 - correlation) + _TINY  # less information
    worse = np.array([fit.squares - best.squares for fit in fits])
    weights = _WEIGHTS * np.exp(-worse / (2 * noise * _TEMPER))
    lefts = np.array([fit.left for fit in fits])
    errors = np.sqrt([fit.variance * noise for fit in fits])
    return np.stack([lefts, errors, weights / weights.sum()], axis=1)


def _shape(time: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """Returns the function g of the module's docstring at each time.

    This is the gain that remains at that time, divided by the gain that remains after the run.
    """
    if power == 0:
        return 1 - np.log(time) / np.log(_LONGER)
    least = _LONGER**-power
    return (time**-power - least) / (1 - least)


def _fitted(
    curve: NDArray[np.float64], rates: NDArray[np.float64], shape: NDArray[np.float64] | None
) -> _Fit:
    """Fits a curve of the given shape (None: a constant) and the cost of jitter, by least squares.

    A cost that would be negative is set to 0.
    """
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
