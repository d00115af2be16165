r"""An error that allows for large weights not yet drawn, and a verdict on this error.

An average of :math:`K` weights is nearly normal, with the delta method's error, unless a few
weights dominate it. The largest weights show whether this is the case. The :math:`M` largest
weights are those above a cutoff :math:`u`. They are described on the scale of nats, by a
generalized Pareto distribution of the *log* excess:

.. math:: \log w(t) = \log u + \frac{s}{\xi} (e^{\xi t} - 1), \quad t \sim \mathrm{Exp}(1),
    \qquad \hat\xi = \frac{1}{2} \Big(1 - \frac{m^2}{v}\Big), \quad \hat s = m (1 - \hat\xi)

with :math:`m` and :math:`v` the mean and the variance of the log excesses. At :math:`\xi = 0` the
weights have a power-law tail, :math:`P(w > x) \propto x^{-1/s}`, of Pareto shape :math:`s`. For
:math:`\xi < 0` the tail is lighter, as for log-normal weights. The usual Pareto k is fitted to the
excesses of the weights themselves. It has no scale, so it can be large even if all weights are
nearly equal. In contrast, :math:`s` is in nats, so it is near 0 for such weights, however irregular
the tail is.

The fitted tail extends the distribution beyond the largest weights. This extension ends at a weight
chosen so that only one run out of eight would draw any weight above it. Let :math:`V` be the
variance and :math:`T` the third central moment of the weights with this tail. Then the average has
the skewness

.. math:: g = \frac{T}{V^{3/2} \sqrt K} .

The verdict uses the skewness at the heaviest plausible tail, with a :math:`\xi` of :math:`\hat\xi +
1.5 / \sqrt M` and an :math:`s` of :math:`\hat s (1 + 1.5 / \sqrt M)`. The likely tail would not
suffice: a run that missed large weights looks harmless, so accepting runs that look reliable
selects just such runs. For the same reason, the error of an accepted estimate is raised above the
error under the likely tail. The closer the estimate came to being rejected, the more its error is
raised.

If the largest weights dominate an average, the log of the average varies from run to run as much as
the largest log weights do, by nats or by thousands of nats. The delta method, whose error is at
most 1, does not show that. Near the largest of :math:`K` weights the log weights rise by :math:`k =
s\, e^{\xi \log M}` nats per unit of :math:`t`, so the weights locally follow a power law of shape
:math:`k`. For :math:`k > 1` this law has no mean, the sum is a positive stable variable, and

.. math:: \mathrm{Var} \log \hat p = \frac{\pi^2}{6} (k^2 - 1) .

This is the variance between runs. The log averages of all runs are too low, by an amount that the
draws cannot show.

The mean of *log* weights, the ELBO, has a tail of its own. If a program depends on
:math:`e^{4 u}`, a Gaussian guide for :math:`u` has rare draws whose log weights are lower than all
others by thousands of nats. :func:`mean_covers` treats the distances from the highest value as
weights, and then the distances from the lowest value.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .averages import log_marginal
from .checks import relative_weights, require_legal, require_particles, rounding
from .tails import FEWEST_IN_TAIL, MIN_TAIL_PARTICLES, rounding_units, tail_size

MAX_SKEWNESS = 0.7
"""Largest skewness of the average at which its error is accepted: see :func:`tail_error`."""

MAX_ERROR = 0.2
"""Largest error, in nats, that can be accepted; about 25 effective draws give this error.

With fewer effective draws, the logarithm is not linear over the spread of the average, and the
draws do not show which large weights they missed.
"""

MILLINAT = 1e-3
"""If the error under the heaviest plausible tail is below this, in nats, skewness is ignored."""

_WIDEST = 0.5  # skewness from which the error is that of the heaviest plausible tail
_RUNS_AHEAD = 8  # only one run in eight would draw any weight above the end of the tail
_NODES = 160  # nodes of the integral over the tail; its error is below 0.1% of the variance
# Shape and scale of a tail are raised above their estimates by so many standard errors, which are
# about 1 / sqrt(M). The likely tail is raised too, because too small values of shape and scale
# change the error less than too large values do.
_LIKELY, _HEAVIEST = 0.5, 1.5
_ACCURATE = 1e-2  # nats; a mean with a smaller error is trusted, whatever its skewness
# For means of log weights, shape and scale are lowered instead. This number and the default of
# `max_skewness` were chosen by numerical integrals: of all pairs of numbers with which three of
# four ELBOs are trusted, they trust the fewest wrong ones.
_LIGHTER = -0.5
_STRAIGHT = 1e-6  # replaces shapes closer to 0, at which expm1(x t) / x would lose digits
_HIGHEST = 300.0  # limit of log(w / mean), below which squares and cubes stay finite


class TailError(NamedTuple):
    """Standard error of a log mean weight, in nats, and whether this error can be trusted."""

    error: Tensor
    skewness: Tensor
    covers: Tensor


class _Tail(NamedTuple):
    """Weights of each datum, divided by their mean; a tail is fitted to weights above a cutoff."""

    relative: Tensor  # weights divided by their mean, (particles, *batch)
    cutoff: Tensor  # log(cutoff / mean)
    size: Tensor  # how many weights lie above the cutoff
    above: Tensor  # sums of (w - 1)^2 and (w - 1)^3 over these weights, (2, *batch)
    shape: Tensor
    scale: Tensor
    is_flat: Tensor  # whether the largest weights are equal up to rounding


def tail_error(log_weights: Float[Tensor, "particles *batch"]) -> TailError:
    r"""Returns the error of the log mean weight, which allows for large weights not drawn yet.

    .. math:: \text{error} = \text{error}_0 + \min(1, 2 g) \,
        (\text{error}_+ - \text{error}_0)

    Here :math:`\text{error}_0` includes a likely tail, and :math:`\text{error}_+` the heaviest
    plausible tail (see the module's derivation); both are at least the delta method's error. The
    formula applies if the skewness :math:`g` is below :data:`MAX_SKEWNESS`, or if
    :math:`\text{error}_+` is below 0.001 nats. Otherwise the error is :math:`\text{error}_0`.

    An error from the formula is accepted if it is below :data:`MAX_ERROR`. Any other error is
    capped at 1 nat. If the largest weights dominate, the capped error is raised to the spread of
    the log sum of weights from run to run, which may exceed 1 nat.

    At 5,000 draws, if the error is accepted, the interval of 1.96 errors to either side covers the
    truth in 94 to 98 percent of the runs. This holds for Gaussian guides that are shifted, too
    wide, or too narrow by up to a quarter, for log-normal weights, and for power laws up to a shape
    of 0.5. With heavier tails, fewer runs are accepted, and fewer of these cover the truth. At a
    shape of 0.6, one run in twenty is accepted, and four in five of these cover the truth; at 0.7,
    one run in fifty is accepted. A Gaussian guide that is too narrow in one tail has weights that
    grow faster than any power. Up to one run in ten is then accepted, and half of these cover the
    truth. Weights alone cannot show this, so :class:`pyro_vae.ImportanceSampling` also evaluates
    the posterior beyond the draws. If the error is not accepted, the interval still covers the
    truth in 92 to 97 percent of the runs up to a shape of 0.6, and less often at larger shapes.
    Weights contain no information about a region that the proposal misses altogether.

    Arguments:
        log_weights: :math:`\log w_k`, `(particles, *batch)`, in nats; `-inf` is a zero weight.

    Returns:
        The error (float64, in nats), the skewness of the average (float64, no unit), and whether
        the error is accepted (bool), each `(*batch,)`. The skewness is 0 for weights that are equal
        up to rounding, infinite if fewer than six weights are as large as their mean, and nan if
        every weight is zero.

    Raises:
        ValueError: If a log weight is nan or +inf, or there are fewer than
            :data:`MIN_TAIL_PARTICLES` particles.

    References:
        | Parameter and Quantile Estimation for the Generalized Pareto Distribution
          (Hosking & Wallis, 1987)
        | https://doi.org/10.1080/00401706.1987.10488243
        | One-dimensional Stable Distributions (Zolotarev, 1986), for the variance of the logarithm
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> quantiles = (torch.arange(5000.0) + 0.5) / 5000
        >>> exponential = -torch.log1p(-quantiles)
        >>> tail_error(0.1 * exponential).covers  # P(w > x) = x^(-1 / 0.1)
        tensor(True)
        >>> tail_error(0.6 * exponential).covers
        tensor(False)
    """
    require_particles(log_weights, MIN_TAIL_PARTICLES, "a fit to the tail of the weights")
    require_legal(log_weights)
    num_particles = len(log_weights)
    delta, tail = log_marginal(log_weights).error, _tail_of(log_weights)
    variance, _ = _moments(tail, _LIKELY)
    heaviest, third = _moments(tail, _HEAVIEST)
    likely, wide = ((part / num_particles).sqrt().maximum(delta) for part in (variance, heaviest))
    skewness = third / heaviest.clamp(min=torch.finfo(heaviest.dtype).tiny) ** 1.5
    skewness = (skewness / math.sqrt(num_particles)).where(~tail.is_flat, 0.0)
    seen = tail.is_flat | (tail.size >= FEWEST_IN_TAIL)
    skewness = skewness.where(seen | tail.cutoff.isnan(), torch.inf)
    is_even = (skewness < MAX_SKEWNESS) | (seen & (wide < MILLINAT))
    share = (skewness / _WIDEST).clamp(0, 1).where(is_even, 0.0)
    error = (likely + share * (wide - likely)).where(seen & ~tail.is_flat, delta)
    covers = is_even & (error < MAX_ERROR)
    # A relative error above 1 says nothing about the log mean; the largest weights then decide.
    doubted = error.clamp(max=1).maximum(_spread_of_largest(log_weights))
    return TailError(error.where(covers, doubted), skewness, covers)


def mean_covers(
    values: Float[Tensor, "particles *batch"], max_skewness: float = 0.15
) -> Bool[Tensor, "*batch"]:
    r"""Returns whether the interval of 1.96 standard errors around a mean of draws can be trusted.

    With :math:`v_k = \max_j x_j - x_k`, the mean of :math:`v` is an average of weights, whose tail
    is fitted as in :func:`tail_error`; likewise with :math:`v_k = x_k - \min_j x_j`. The interval
    is trusted if each of the two averages, with a tail a little lighter than the fitted one, has a
    skewness below 0.15 or an error below 0.01 nats.

    In a test (`python -m tests.trust.elbos`), 20,800 ELBOs of 13 programs under five guides each,
    with tails of all kinds, were compared with sums over a grid. With 1,000 draws per ELBO, 74.5%
    of the ELBOs were trusted. Of the trusted intervals, 94.8% covered the truth. Two trusted ELBOs
    were off by more than five errors; without this check, one ELBO in 90 was so far off, and the
    worst was off by 204 errors. With 100 draws, 67.9% were trusted, 92.0% of the trusted intervals
    covered the truth, and 68 trusted ELBOs were off by more than five errors. For about half of the
    pairs of program and guide, the intervals cover the truth without this check; 98.8% of the ELBOs
    of these pairs were trusted with 1,000 draws, and 93.9% with 100. If all draws miss a tail,
    nothing shows it.

    Arguments:
        values: :math:`x_k`, `(particles, *batch)`, in nats, such as log weights.
        max_skewness: Largest skewness of a trusted mean. The default is the best for ELBOs in
            the test above.

    Returns:
        `(*batch,)`, bool. A mean is also trusted if all its draws are equal up to rounding, or if
        one is infinite. If the largest or smallest draws are all equal, no tail is fitted.

    Raises:
        ValueError: If there are fewer than :data:`MIN_TAIL_PARTICLES` particles.

    References:
        | Parameter and Quantile Estimation for the Generalized Pareto Distribution
          (Hosking & Wallis, 1987)
        | https://doi.org/10.1080/00401706.1987.10488243

    Example:
        >>> quantiles = (torch.arange(1000.0) + 0.5) / 1000
        >>> noise = torch.special.ndtri(quantiles)
        >>> mean_covers(-noise.square()), mean_covers(-(4 * noise).exp())
        (tensor(True), tensor(False))
    """
    require_particles(values, MIN_TAIL_PARTICLES, "a fit to the tails of the draws")
    draws = values.double()
    highest, lowest = draws.amax(dim=0), draws.amin(dim=0)
    certain = (highest - lowest <= rounding(highest)) | lowest.isinf() | highest.isinf()
    sides = (_covers_above(side, max_skewness) for side in (highest - draws, draws - lowest))
    return certain | torch.stack(list(sides)).all(dim=0)


def _covers_above(distances: Float[Tensor, "particles *batch"], max_skewness: float) -> Tensor:
    """Returns whether a mean of distances has a trustworthy error, given their upper tail."""
    tail, root = _tail_of(distances.log()), math.sqrt(len(distances))
    # If the largest distances are all equal, they have no tail, and the draws' own moments hold.
    own = ((tail.relative - 1).pow(power).mean(dim=0) for power in (2, 3))
    variance, third = (
        plain.where(tail.is_flat, fitted)
        for plain, fitted in zip(own, _moments(tail, _LIGHTER), strict=True)
    )
    skewness = third / variance**1.5 / root
    error = distances.mean(dim=0) * variance.sqrt() / root
    return (tail.size >= FEWEST_IN_TAIL) & ((skewness < max_skewness) | (error < _ACCURATE))


def _spread_of_largest(log_weights: Tensor) -> Tensor:
    """Returns how much the log sum of weights varies from run to run, due to the largest weights.

    This is a standard deviation, in nats; 0 unless the largest weights dominate the sum.
    """
    size = tail_size(len(log_weights))
    top = log_weights.double().topk(size + 1, dim=0).values
    shape, scale = _fitted((top - top[-1])[:-1], torch.full_like(top[0], size))
    power = scale * (shape * math.log(size)).exp()
    return (power.square() - 1).clamp(min=0).sqrt().nan_to_num(nan=0.0) * math.pi / math.sqrt(6)


def _fitted(excess: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Fits the shape and the scale of a tail to log excesses, by moments.

    Only the first `size` log excesses belong to the tail; all others must be 0.
    """
    places = torch.arange(len(excess), device=excess.device).reshape(-1, *[1] * size.dim())
    first = excess.sum(dim=0) / size
    spread = ((excess - first).square().where(places < size, 0.0)).sum(dim=0) / (size - 1)
    # Equal excesses have no spread: a shape of -10 is close enough to that of a point.
    shape = ((1 - first.square() / spread) / 2).clamp(min=-10.0)
    return shape, first * (1 - shape)


def _tail_of(log_weights: Tensor) -> _Tail:
    """Returns the tail: the largest weights above the mean, at most :func:`tail_size` of them."""
    num_particles = len(log_weights)
    weights, peak = relative_weights(log_weights)
    mean = weights.mean(dim=0)
    top = log_weights.double().topk(tail_size(num_particles) + 1, dim=0).values
    top = top - peak - mean.log()
    # Weights far below the mean add nothing to it, and their spread says nothing about the tail.
    size = (top >= 0).sum(dim=0) - 1
    cutoff = top.gather(0, size.clamp(min=0).unsqueeze(0)).squeeze(0)
    places = torch.arange(len(top), device=top.device).reshape(-1, *[1] * cutoff.dim())
    inside = places < size
    shape, scale = _fitted((top - cutoff).where(inside, 0.0), size)
    far = (top.clamp(max=_HIGHEST).exp() - 1).where(inside, 0.0)
    return _Tail(
        weights / mean,
        cutoff,
        size,
        torch.stack([far.square().sum(dim=0), far.pow(3).sum(dim=0)]),
        shape,
        scale,
        top[0] - top[-1] <= rounding_units(log_weights),
    )


def _moments(tail: _Tail, margin: float) -> tuple[Tensor, Tensor]:
    """Returns the second and third central moments of the weights, with the fitted tail.

    The weights are divided by their mean. The shape and the scale of the tail are raised by
    `margin` standard errors.
    """
    above = margin / tail.size.clamp(min=1).sqrt()
    shape, scale = tail.shape + above, tail.scale * (1 + above)
    limit = (_RUNS_AHEAD * tail.size.clamp(min=1)).log()
    nodes = (torch.arange(_NODES, dtype=shape.dtype, device=shape.device) + 0.5) / _NODES
    t = nodes.reshape(-1, *[1] * shape.dim()) * limit
    shape = shape.where(shape.abs() > _STRAIGHT, _STRAIGHT)
    log_weight = tail.cutoff + scale / shape * torch.expm1(shape * t)
    far = log_weight.clamp(max=_HIGHEST).exp() - 1
    share = (-t).exp() * limit / _NODES * tail.size
    second, third = (((far**power) * share).sum(dim=0) for power in (2, 3))
    near = tail.relative - 1
    body = torch.stack([near.square().sum(dim=0), near.pow(3).sum(dim=0)]) - tail.above
    return (second + body[0].clamp(min=0)) / len(near), (third + body[1]) / len(near)
