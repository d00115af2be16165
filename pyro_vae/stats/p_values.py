r"""P-values that are exact for any number of draws, and rules that flag some of many p-values.

If a number t is exchangeable with n reference numbers :math:`t_r`, its rank among them is uniform,
and

.. math:: \hat p = \frac{1 + \#\{r : t_r \ge t\}}{n + 1}

is at most :math:`\alpha` with a probability of at most :math:`\alpha`. This holds for any n, and
for any statistic. The reference numbers can come from simulated data, from held-out data, or from
the same draws with permuted labels.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._types import Estimate


def tail_probability(
    observed: Float[Tensor, "*batch"],
    reference: Float[Tensor, "draws *batch"],
    *,
    two_sided: bool = False,
    tolerance: float | Tensor = 0.0,
) -> Estimate:
    r"""Returns the share of reference numbers that are no less than `observed`, with its error.

    .. math:: \hat p = \frac{1 + \#\{r : t_r \ge t\}}{R + 1}, \qquad
        \text{error}^2 = \hat p (1 - \hat p) / R

    Arguments:
        observed: The observed numbers :math:`t`, `(*batch,)`.
        reference: The reference numbers :math:`t_r`, `(draws, *batch)`.
        two_sided: Whether to return twice the smaller of the two tails; ties count in both tails.
        tolerance: The largest difference, due to rounding, at which two numbers count as equal.

    Returns:
        P-values, `(*batch,)`, exact for any number of draws, and Monte Carlo standard errors. An
        error says how far the p-value can be from the p-value of infinitely many draws.

    Raises:
        ValueError: If there is no reference number.

    Example:
        >>> tail_probability(torch.tensor(5.0), torch.arange(9.0)).value
        tensor(0.5000, dtype=torch.float64)
    """
    if len(reference) < 1:
        raise ValueError(
            "`reference` must have at least 1 number; got 0: pass the numbers of reference data"
        )
    count = (reference >= observed - tolerance).sum(dim=0)
    sides = 2 if two_sided else 1
    if two_sided:
        count = torch.minimum(count, (reference <= observed + tolerance).sum(dim=0))
    share = (1 + count.double()) / (len(reference) + 1)
    error = sides * (share * (1 - share) / len(reference)).sqrt()
    return Estimate((sides * share).clamp(max=1), error)


def energy_test(
    first: Float[Tensor, "first latents"],
    second: Float[Tensor, "second latents"],
    num_permutations: int = 199,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Estimate, float]:
    r"""Tests whether two independent samples have the same distribution, by their energy distance.

    .. math:: \mathcal{E} = 2 \, \mathbb{E} |x - y| - \mathbb{E} |x - x'| - \mathbb{E} |y - y'| ,
        \qquad h = \frac{\mathcal{E}}{2 \, \mathbb{E} |x - y|}

    The distance is zero if and only if both distributions are the same. First, every latent is
    divided by its standard deviation over both samples together, which is the same for every
    permutation of the labels. Let :math:`D` be the matrix of distances between all draws of both
    samples. Let :math:`s_i` be :math:`1/n` for draws of the first sample and :math:`-1/m` for draws
    of the second sample. Then the energy distance is :math:`-s^\top D s`.

    Arguments:
        first: The first sample: independent draws, `(n, latents)`.
        second: The second sample: independent draws, `(m, latents)`.
        num_permutations: Number of permutations of the labels; the smallest possible p-value is 1 /
            (permutations + 1).
        generator: Random generator of the permutations; by default torch's global generator.

    Returns:
        The p-value, exact for samples of any size, with its Monte Carlo error; and the relative
        distance h, from 0 to 1.

    Raises:
        ValueError: If a sample has fewer than two draws.

    References:
        | Testing for Equal Distributions in High Dimension (Székely & Rizzo, 2004)
        | Energy Statistics: A Class of Statistics Based on Distances (Székely & Rizzo, 2013)
        | https://doi.org/10.1016/j.jspi.2013.03.018

    Example:
        >>> p_value, distance = energy_test(torch.zeros(20, 1), torch.ones(20, 1), 99)
        >>> float(p_value.value), distance
        (0.01, 1.0)
    """
    sizes = len(first), len(second)
    if min(sizes) < 2:
        raise ValueError(
            f"`first` and `second` must have at least 2 draws each; got {sizes}: pass more draws"
        )
    pooled = torch.cat([first, second]).double()
    spread = pooled.std(dim=0)
    scaled = pooled / spread.where(spread > 0, 1.0)
    between = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
    signs = torch.ones_like(pooled[:, 0]) / sizes[0]
    signs[sizes[0] :] = -1 / sizes[1]
    noise = torch.rand(num_permutations, len(pooled), generator=generator, device="cpu")
    noise = noise.to(pooled.device)
    every = torch.cat([signs[None], signs[noise.argsort(dim=1)]])
    distances = -((every @ between) * every).sum(dim=1)
    apart = 2 * between[: sizes[0], sizes[0] :].mean()
    share = min(1.0, max(0.0, float(distances[0] / apart))) if bool(apart > 0) else 0.0
    # Distances that differ only by the rounding of their sums count as ties.
    tolerance = torch.finfo(between.dtype).eps * between.sum() / min(sizes) ** 2
    return tail_probability(distances[0], distances[1:], tolerance=tolerance), share


def holm(p_values: Float[Tensor, " tests"]) -> Float[Tensor, " tests"]:
    """Adjusts p-values for the number of tests, by Holm's method.

    If all hypotheses with an adjusted p-value below a rate are rejected, the probability of any
    false rejection is at most that rate, whatever the dependence between the tests.

    Arguments:
        p_values: One p-value per hypothesis.

    Returns:
        Adjusted p-values in the same order, each at least the original p-value and at most 1.

    References:
        | A Simple Sequentially Rejective Multiple Test Procedure (Holm, 1979)
        | https://www.jstor.org/stable/4615733

    Example:
        >>> holm(torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64))
        tensor([0.5000, 0.5000, 0.3750], dtype=torch.float64)
    """
    ordered, order = p_values.sort()
    remaining = torch.arange(len(ordered), 0, -1, device=ordered.device)
    adjusted = (ordered * remaining).cummax(dim=0).values.clamp(max=1)
    return torch.empty_like(adjusted).scatter_(0, order, adjusted)


@runtime_checkable
class Control(Protocol):
    """A rule that decides which of many p-values are flagged."""

    def __call__(self, p_values: Tensor) -> Tensor:
        """Returns a mask of the flagged p-values, in the shape of `p_values`."""


@dataclass(frozen=True)
class FalseDiscoveries:
    r"""Limits the expected share of false flags among the flagged data (Benjamini-Hochberg).

    The :math:`k` smallest p-values are flagged, for the largest :math:`k` with

    .. math:: \hat p_{(k)} \le \frac{k}{N} \alpha .

    The rule is valid even if one set of reference numbers is used for all data.

    Arguments:
        rate: :math:`\alpha`, between 0 and 1.

    References:
        | Controlling the False Discovery Rate (Benjamini & Hochberg, 1995)
        | https://doi.org/10.1111/j.2517-6161.1995.tb02031.x
        | Testing for Outliers with Conformal p-values (Bates et al., 2023)
        | https://arxiv.org/abs/2104.08279

    Example:
        >>> FalseDiscoveries(0.1)(torch.tensor([0.04, 0.5, 0.06]))
        tensor([ True, False,  True])
    """

    rate: float = 0.05

    def __str__(self) -> str:
        return f"a false-discovery rate of {self.rate:.2g}"

    def __call__(self, p_values: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Flags all p-values up to the largest one that satisfies the Benjamini-Hochberg rule."""
        ordered = p_values.double().sort().values
        ranks = torch.arange(1, len(ordered) + 1, device=ordered.device)
        limits = ranks.to(ordered) * self.rate / len(ordered)
        # P-values that equal their limits must count, although float32 rounds them.
        below = (ordered <= limits * (1 + torch.finfo(p_values.dtype).eps)).nonzero()
        if not len(below):
            return torch.zeros_like(p_values, dtype=torch.bool)
        return p_values.double() <= ordered[below[-1]]


@dataclass(frozen=True)
class FalseAlarms:
    r"""Judges each p-value by itself; the rate limits each datum's probability of a false alarm.

    Arguments:
        rate: Largest probability of a false alarm for one datum, between 0 and 1.

    Example:
        >>> FalseAlarms(0.05)(torch.tensor([0.04, 0.5, 0.06]))
        tensor([ True, False, False])
    """

    rate: float = 0.01

    def __str__(self) -> str:
        return f"a false-alarm rate of {self.rate:.2g}"

    def __call__(self, p_values: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Flags p-values that are at most the rate."""
        return p_values <= self.rate
