r"""Tests whether ranks are uniform: exact p-values and bands.

If ranks are uniform, the number of ranks :math:`\le i` is binomial, and for :math:`i = 0, 1,
\ldots` these numbers form a Markov chain. So the probability that all of them stay inside a band
can be summed exactly, and p-values and bands are exact.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

_SAME = 1 + 1e-9  # allows for rounding, by which tails differ that are equal in theory
_LEAST = 1e-12  # a smaller p-value would be lost in rounding: it is 1 minus a sum close to 1
_HALVINGS = 60  # bisections, after which the interval searched is far shorter than rounding


def rank_p_value(ranks: Int[Tensor, " data"], num_samples: int) -> float:
    r"""Returns the exact p-value of the hypothesis that ranks are independent and uniform.

    Let :math:`R_i` be the number of ranks :math:`\le i`, and :math:`F_i` its binomial distribution
    function. The statistic is the smallest of the two-sided tails,

    .. math:: \gamma = \min_i \, 2 \min(F_i(R_i), 1 - F_i(R_i - 1)) ,

    and the p-value is the probability of a value at least as small. Below 1e-12 rounding dominates,
    so 1e-12 is the smallest result.

    Arguments:
        ranks: One rank per datum, `(data,)`, from 0 to `num_samples`.
        num_samples: The largest possible rank.

    Returns:
        The p-value, from 1e-12 to 1.

    Raises:
        ValueError: If there is no rank, or if a rank is not between 0 and `num_samples`.

    References:
        | Graphical Test for Discrete Uniformity and its Applications in Goodness-of-Fit
          Evaluation and Multiple Sample Comparison (Säilynoja, Bürkner & Vehtari, 2022)
        | https://arxiv.org/abs/2103.10522

    Example:
        >>> import torch
        >>> rank_p_value(torch.tensor([0, 1]), num_samples=1)
        1.0
        >>> rank_p_value(torch.tensor([1, 1]), num_samples=1)
        0.5
    """
    if len(ranks) < 1 or int(ranks.min()) < 0 or int(ranks.max()) > num_samples:
        raise ValueError(
            "`ranks` must have at least one entry, and all entries must be from 0 to "
            f"num_samples={num_samples}; got "
            + (f"ranks from {ranks.min()} to {ranks.max()}" if len(ranks) else "no ranks")
            + ": pass all ranks, and the largest possible rank as `num_samples`"
        )
    tails = _tails(len(ranks), num_samples)
    counts = ranks.cpu().bincount(minlength=num_samples + 1).cumsum(0)[:-1].numpy()
    smallest = tails[np.arange(num_samples), counts].min()
    return float(np.clip(1 - _stays(tails, smallest * _SAME), _LEAST, 1))


class Band(NamedTuple):
    """Bounds on how many ranks are at most 0, 1, 2, and so on; each bound is `(num_samples,)`."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]


def rank_band(num_data: int, num_samples: int, false_alarm: float = 0.05) -> Band:
    """Returns a band that the cumulative counts of uniform ranks rarely leave.

    Arguments:
        num_data: Number of ranks.
        num_samples: The largest possible rank.
        false_alarm: Upper limit on the probability that uniform ranks leave the band anywhere.

    Returns:
        Inclusive bounds on how many ranks are at most 0, 1, ..., `num_samples - 1`.

    Example:
        >>> rank_band(num_data=10, num_samples=1, false_alarm=0.05)
        Band(lower=array([2]), upper=array([8]))
    """
    tails = _tails(num_data, num_samples)
    low, high = np.log(tails[tails > 0].min()) - 1, 0.0  # logs of tail probabilities
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _stays(tails, np.exp(middle)) >= 1 - false_alarm:
            low = middle
        else:
            high = middle
    inside = tails * _SAME > np.exp(low)  # equal tails are all inside or all outside
    return Band(inside.argmax(axis=1), num_data - inside[:, ::-1].argmax(axis=1))


def _tails(num_data: int, num_samples: int) -> NDArray[np.float64]:
    """Returns two-sided tail probabilities of cumulative counts, `(num_samples, num_data + 1)`.

    For the number C of uniform ranks that are at most i, entry (i, c) is twice the smaller of
    P(C <= c) and P(C >= c).
    """
    from scipy.special import bdtr, bdtrc  # this import takes a third of a second

    counts = np.arange(num_data + 1.0)
    shares = np.arange(1, num_samples + 1)[:, None] / (num_samples + 1)
    at_most, at_least = bdtr(counts, num_data, shares), bdtrc(counts - 1, num_data, shares)
    return 2 * np.minimum(at_most, at_least)


def _poisson(counts: NDArray[Any], rate: float) -> NDArray[np.float64]:
    """Returns the Poisson probabilities of counts."""
    from scipy.special import gammaln

    return np.exp(counts * np.log(rate) - rate - gammaln(counts + 1.0))


def _stays(tails: NDArray[np.float64], above: float) -> float:
    """Returns the probability that the cumulative counts of uniform ranks stay inside a band.

    A count c of the ranks that are at most i is inside the band if its tail probability,
    `tails[i, c]`, exceeds `above`. Independent Poisson counts are multinomial given their sum, so
    the number of times that each rank occurs is treated as Poisson. These numbers are added rank by
    rank, and only sums inside the band are kept. Finally, the result is divided by the probability
    of the total.
    """
    num_samples, num_data = len(tails), tails.shape[1] - 1
    inside = tails > above
    if not inside.any(axis=1).all():
        return 0.0
    lower, upper = inside.argmax(axis=1), num_data - inside[:, ::-1].argmax(axis=1)
    rate = num_data / (num_samples + 1)
    step = _poisson(np.arange(num_data + 1), rate)
    weights, first = step[lower[0] : upper[0] + 1], int(lower[0])
    for low, high in zip(lower[1:], upper[1:], strict=True):
        sums = np.convolve(weights, step[: high - first + 1])
        weights, first = sums[low - first : high - first + 1], int(low)
    last = step[num_data - first - np.arange(len(weights))]
    return float(weights @ last / _poisson(np.array([num_data]), float(num_data))[0])
