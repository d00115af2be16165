r"""Draws from q, as functions of the parameters of q and of noise that stays fixed.

Many distributions are a transformation of standard normals, :math:`z = T_\lambda(\epsilon)`. With
:math:`\epsilon` fixed, the sample average that estimates the ELBO is a deterministic function of
:math:`\lambda`. Whitened quasi-random points (a scrambled Sobol sequence, mirrored at zero) have
exactly the mean and covariance of the normal, so the average of a quadratic function over them is
exactly its expectation. For one or two latents an evenly spaced lattice, weighted by the normal
density, is more accurate: it reaches six standard deviations, and for a smooth function its error
falls exponentially with the number of points.

For other distributions, torch's generator is set to the same seed before each row is drawn with
`rsample`. This noise is fixed, too, but not quasi-random.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from .._types import Distribution
from ..randomness import generator, normals, seeded, stream

FEW = 2  # most dimensions for which a lattice beats quasi-random points
_WIDEST = 1.0  # largest spacing of a lattice, in sds; the relative error is then about 3e-9
_SLANT = math.atan(2 / (1 + 5**0.5))  # rotation of a lattice, to put no row of points on an axis
_RADIUS = 6.0  # radius of a lattice, in sds; 1e-5 of E[z^6] lies outside


def even_noise(num_points: int, size: int, *, seed: int = 0) -> Float64[Tensor, "points size"]:
    r"""Quasi-random points for a standard normal, mirrored at zero and whitened.

    .. math:: \frac{1}{K} \sum_k \epsilon_k = 0, \qquad
        \frac{1}{K} \sum_k \epsilon_k \epsilon_k^\top = I

    The covariance is exact with at least twice as many points as dimensions; with fewer
    points, only its diagonal is exact. Torch's random stream is not touched.

    Arguments:
        num_points: :math:`K`; an odd number is rounded up, since points come in pairs.
        size: Number of dimensions.
        seed: Seed of the scrambling.

    Returns:
        `(points, size)`, in float64 on the CPU.

    Raises:
        ValueError: If `num_points` is below 1.

    References:
        | Scrambling Sobol' and Niederreiter-Xing Points (Owen, 1998)
        | https://doi.org/10.1006/jcom.1998.0487

    Example:
        >>> noise = even_noise(8, 2)
        >>> bool((noise.T @ noise / 8 - torch.eye(2)).abs().max() < 1e-12)
        True
    """
    if num_points < 1:
        raise ValueError(f"`num_points` must be at least 1; got {num_points}")
    half = (num_points + 1) // 2
    normal = sobol_normals(half, size, seed=seed)
    covariance = normal.T @ normal / half
    if half < size:
        white = normal / covariance.diagonal().sqrt()
    else:
        root = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(root, normal.T, upper=False).T
    return torch.cat([white, -white])


def sobol_normals(num_points: int, size: int, *, seed: int) -> Float64[Tensor, "points size"]:
    """Normal quantiles of scrambled Sobol points; torch's random stream is not touched."""
    engine = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed % 2**63)
    uniform = engine.draw(num_points, dtype=torch.float64)
    edge = torch.finfo(torch.float64).eps  # a point may be 0, whose quantile is infinite
    return torch.special.ndtri(uniform.clamp(edge, 1 - edge))


def lattice_noise(
    num_points: int, size: int, *, seed: int = 0
) -> tuple[Float64[Tensor, "points size"], Float64[Tensor, " points"]]:
    r"""Returns a randomly shifted lattice, with weights, for a standard normal in a few dimensions.

    .. math:: \operatorname{E}[f(\epsilon)] \approx \sum_k w_k f(\epsilon_k), \qquad
        w_k \propto \mathcal{N}(\epsilon_k \mid 0, I), \quad \lVert \epsilon_k \rVert < 6

    This is the trapezoidal rule. With spacing h its relative error is about
    :math:`e^{-2 \pi^2 / h^2}` for polynomials. In two dimensions, 2e-8 of the normal's probability
    lies beyond the radius of 6. Torch's random stream is not touched.

    Arguments:
        num_points: Approximate number of points.
        size: Number of dimensions.
        seed: Seed of the shift.

    Returns:
        Points `(points, size)` and weights, which add up to 1, in float64 on the CPU.

    References:
        | The Exponentially Convergent Trapezoidal Rule (Trefethen & Weideman, 2014)
        | https://doi.org/10.1137/130932132

    Example:
        >>> points, weights = lattice_noise(32, 1)
        >>> round(float((weights[:, None] * points**4).sum()), 4)  # the fourth moment is 3
        3.0
    """
    spacing = _spacing(num_points, size)
    own = generator(stream(seed, "lattice"))
    shift = torch.rand(size, generator=own, dtype=torch.float64, device="cpu")
    reach = math.ceil(_RADIUS / spacing) + 1
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu")
    points = spacing * (torch.cartesian_prod(*[axis] * size).view(-1, size) + shift)
    if size == 2:
        sine, cosine = math.sin(_SLANT), math.cos(_SLANT)
        points = points @ points.new_tensor([[cosine, sine], [-sine, cosine]])
    points = points[points.square().sum(dim=1) < _RADIUS**2]
    return points, (-points.square().sum(dim=1) / 2).softmax(dim=0)


def _spacing(num_points: int, size: int) -> float:
    """Spacing, in standard deviations, of a lattice with about `num_points` points."""
    volume = math.pi ** (size / 2) / math.gamma(size / 2 + 1) * _RADIUS**size
    return float((volume / num_points) ** (1 / size))


@singledispatch
def noise_shape(q: torch.distributions.Distribution) -> torch.Size | None:
    """Shape of the standard normals that are transformed into one draw from `q`.

    Returns `None` if it is not known how to transform standard normals into draws from `q`.
    """
    return None


@singledispatch
def reparameterize(q: torch.distributions.Distribution, noise: Tensor) -> Tensor:
    r"""Reparameterized draws :math:`T_\lambda(\epsilon)` of `q` for standard normal noise.

    Arguments:
        q: A distribution whose :func:`noise_shape` is known.
        noise: `(points, *batch, *noise_shape)`; a batch dimension may be 1, to use the same noise
            in all rows.

    Returns:
        `(points, *batch, *event)`, differentiable in the parameters of `q`.

    Raises:
        TypeError: If `q` is not known to be a transformation of standard normals.

    Example:
        >>> reparameterize(Normal(torch.tensor([0.0, 10.0]), 2.0), torch.tensor([[1.0], [-1.0]]))
        tensor([[ 2., 12.],
                [-2.,  8.]])
    """
    raise TypeError(
        f"{type(q).__name__} is not known to be a transformation of standard normals: draw from "
        "this distribution with rsample"
    )


@noise_shape.register(Normal)
def _(q: Normal) -> torch.Size:
    return torch.Size()


@reparameterize.register(Normal)
def _(q: Normal, noise: Tensor) -> Tensor:
    return torch.addcmul(q.loc, q.scale, noise)


@noise_shape.register(Independent)
def _(q: Independent) -> torch.Size | None:  # type: ignore[type-arg]
    shape, dims = noise_shape(q.base_dist), q.reinterpreted_batch_ndims
    batch = q.base_dist.batch_shape
    return None if shape is None else batch[len(batch) - dims :] + shape


@reparameterize.register(Independent)
def _(q: Independent, noise: Tensor) -> Tensor:  # type: ignore[type-arg]
    return reparameterize(q.base_dist, noise)


@noise_shape.register(MultivariateNormal)
def _(q: MultivariateNormal) -> torch.Size:
    return q.event_shape


@reparameterize.register(MultivariateNormal)
def _(q: MultivariateNormal, noise: Tensor) -> Tensor:
    return q.loc + torch.einsum("...ij,k...j->k...i", q.scale_tril, noise)


@noise_shape.register(LowRankMultivariateNormal)
def _(q: LowRankMultivariateNormal) -> torch.Size:
    return torch.Size((sum(q.cov_factor.shape[-2:]),))


@reparameterize.register(LowRankMultivariateNormal)
def _(q: LowRankMultivariateNormal, noise: Tensor) -> Tensor:
    own, shared = noise.split(list(q.cov_factor.shape[-2:]), dim=-1)
    spread = torch.einsum("...ij,k...j->k...i", q.cov_factor, shared)
    return q.loc + q.cov_diag.sqrt() * own + spread


@noise_shape.register(TransformedDistribution)
def _(q: TransformedDistribution) -> torch.Size | None:
    return noise_shape(q.base_dist)


@reparameterize.register(TransformedDistribution)
def _(q: TransformedDistribution, noise: Tensor) -> Tensor:
    z = reparameterize(q.base_dist, noise)
    for transform in q.transforms:
        z = transform(z)
    return z


@runtime_checkable
class Noise(Protocol):
    """Fixed noise, with which draws from a family's distribution are reproducible."""

    def weighted(self, fails: Bool[Tensor, "points batch"]) -> tuple[Tensor, Tensor]:
        """Returns the draws' weights, and a mask of draws to leave out, both `(points, batch)`.

        The weights of a datum add up to 1. By default they are equal, and no draw is left out.

        Arguments:
            fails: Whether the program fails at each draw of each datum.
        """
        weights = torch.full(fails.shape, 1 / len(fails), dtype=torch.float64, device=fails.device)
        return weights, torch.zeros_like(fails)

    def __call__(
        self, family: Callable[[Tensor], Distribution], parameters: Tensor
    ) -> tuple[Distribution, Tensor]:
        """Returns the family's distribution at the parameters, and draws from this distribution.

        The draws, `(points, batch, latents)`, are differentiable in the parameters.
        """


@dataclass(frozen=True)
class NormalNoise(Noise):
    """Fixed standard normals, `(points, batch or 1, size)`, that are transformed into draws."""

    points: Float[Tensor, "points _ size"]
    weights: Float64[Tensor, " points"] | None = None

    def __call__(
        self, family: Callable[[Tensor], Distribution], parameters: Float[Tensor, "batch _"]
    ) -> tuple[Distribution, Tensor]:
        """Returns the family's distribution at the parameters, and draws for all rows at once."""
        q = family(parameters)
        return q, reparameterize(q, self.points)

    def weighted(self, fails: Bool[Tensor, "points batch"]) -> tuple[Tensor, Tensor]:
        """Returns the draws' weights, and a mask of draws to leave out.

        If the program fails at a point of a lattice, the point is left out if it lies so far in the
        tails that a random sample of the same size would hardly ever reach it.
        """
        if self.weights is None:
            return super().weighted(fails)
        ordered, order = self.weights.sort()
        tail = ordered.cumsum(dim=0).index_select(0, order.argsort())  # probability as far out
        left_out = fails & (tail < 1 / len(tail)).unsqueeze(-1)
        weights = self.weights.unsqueeze(-1).masked_fill(left_out, 0.0)
        return weights / weights.sum(dim=0), left_out


@dataclass(frozen=True)
class SeededNoise(Noise):
    """Noise given by seeds, either one seed for all rows or one seed per row.

    The method `rsample` draws one row after another. Before each row torch's global generator is
    seeded, so use this class in a block that restores the generator's state.
    """

    num_points: int
    seeds: Sequence[int]

    def __call__(
        self, family: Callable[[Tensor], Distribution], parameters: Float[Tensor, "batch _"]
    ) -> tuple[Distribution, Tensor]:
        """Returns the family's distribution at the parameters, and draws made row by row."""
        keys = list(self.seeds) * len(parameters) if len(self.seeds) == 1 else self.seeds
        draws = []
        for row, key in zip(parameters.split(1), keys, strict=True):
            q = family(row)
            seeded(key)
            draws.append(q.rsample(torch.Size((self.num_points,))))
        return family(parameters), torch.cat(draws, dim=1)


def noise_size(q: torch.distributions.Distribution) -> int | None:
    """Number of standard normals that are transformed into one vector drawn from `q`.

    Returns `None` if draws from `q` are not vectors, or if :func:`noise_shape` returns `None`.

    Example:
        >>> noise_size(Independent(Normal(torch.zeros(5, 3), 1.0), 1))
        3
    """
    shape = noise_shape(q)
    return None if shape is None or len(shape) != 1 else shape[0]


def fixed_noise(q: Distribution, num_points: int, like: Tensor, *, seed: int) -> Noise:
    """Returns noise for draws from `q`, the same for all rows.

    If draws are functions of normals, the noise is a lattice for one or two latents, and
    quasi-random points for more latents. For other distributions the noise is given by a seed of
    torch's generator.

    Arguments:
        q: The distribution of any one row; it determines the shape of the noise.
        num_points: Points per datum; see :func:`even_noise`.
        like: A tensor with the desired dtype and device.
        seed: Seed of the points.
    """
    size = noise_size(q)
    if size is None:
        return SeededNoise(num_points, (seed,))
    if size <= FEW and _spacing(num_points, size) <= _WIDEST:
        points, weights = lattice_noise(num_points, size, seed=seed)
        return NormalNoise(points.unsqueeze(1).to(like), weights.to(like.device))
    return NormalNoise(even_noise(num_points, size, seed=seed).unsqueeze(1).to(like))


def fresh_noise(
    q: Distribution, num_points: int, like: Tensor, keys: Int64[Tensor, " rows"]
) -> Noise:
    """Returns independent noise for every row, which depends only on the row's random key."""
    size = noise_size(q)
    if size is None:
        return SeededNoise(num_points, tuple(keys.tolist()))
    return NormalNoise(normals(keys, num_points, size, like))
