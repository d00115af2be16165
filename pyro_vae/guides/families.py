"""Families of approximate posteriors, which turn parameters into distributions.

A family turns a tensor `(batch, parameters)` into a distribution over one flat unconstrained vector
per datum. A map supplies the parameters (see :mod:`pyro_vae.guides.maps`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeAlias, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions.utils import _standard_normal

from .._annotations import Interval
from .._types import Distribution
from ..formatting import count_of
from ..registry import registered
from .reparameterization import reparameterize

Latents: TypeAlias = Annotated[int, Interval(0)]  # 0 if all sites of a datum are discrete

_PRINCIPAL_SWEEPS = 20  # of principal axis factoring: enough for a starting point
_LEAST_SHARE = 1e-3  # the constant c of LowRankNormal


@runtime_checkable
class Family(Protocol):
    r"""The interface of a family.

    A family with parameters that all data share is a :class:`TrainableFamily`. Two methods are
    optional. A family whose distributions have no mean in closed form defines `mean(parameters)`.
    The method `closest_normal(loc, precision)` returns the parameters of :math:`\arg\min_q
    \mathrm{KL}(q \,\|\, \mathcal{N}(m, P^{-1}))` for the mean :math:`m` and the precision
    :math:`P`.
    """

    def num_parameters(self, latent_dim: Latents) -> int:
        """Number of parameters per datum, for a flat vector of `latent_dim` latents."""

    def initial(self, loc: Float[Tensor, " latents"], scale: float = 1.0) -> Tensor:
        """Parameters `(parameters,)` for which q is N(loc, scale^2 I), or close to it."""

    def __call__(self, parameters: Float[Tensor, "*batch parameters"]) -> Distribution:
        """Returns a reparameterized distribution for the parameters; event shape `(latents,)`."""


@runtime_checkable
class OwnMean(Family, Protocol):
    """A family with a method for the means of its distributions."""

    def mean(self, parameters: Float[Tensor, "*batch parameters"]) -> Tensor:
        """Mean of every datum's distribution, `(*batch, latents)`."""


@runtime_checkable
class ClosestNormal(Family, Protocol):
    """A family that can compute which member is closest to a given Gaussian."""

    def closest_normal(
        self,
        loc: Float[Tensor, "*batch latents"],
        precision: Float[Tensor, "*batch latents latents"],
    ) -> Float[Tensor, "*batch parameters"]:
        """Parameters of the member q that minimizes KL(q || N(loc, precision^-1))."""


def require_closest_normal(map: object, family: object) -> ClosestNormal:
    """Returns the family if it has the method `closest_normal`, which the map needs.

    Raises:
        TypeError: If the family lacks this method.
    """
    if not isinstance(family, ClosestNormal):
        raise TypeError(
            f"the family of {type(map).__name__} must have a method closest_normal(loc, "
            f"precision); got {type(family).__name__}, which has no such method: use "
            "pv.DiagonalNormal() or pv.FullRankNormal(), or pv.Encoder(net) with this family"
        )
    return family


@runtime_checkable
class MomentMatching(Family, Protocol):
    """A family that can approximate a given mean and covariance."""

    def matching(
        self,
        loc: Float[Tensor, "batch latents"],
        covariance: Float[Tensor, "batch latents latents"],
    ) -> Float[Tensor, "batch parameters"]:
        """Parameters of a member with approximately the given mean and covariance."""


class TrainableFamily(nn.Module):
    """A family with parameters that all data share, such as the networks of a flow.

    Such a family belongs to one guide, which calls its :meth:`setup`.
    """

    latent_dim = 0
    """Number of latents that the family is set up for; 0 before :meth:`setup`."""

    in_use = False
    """Whether the family belongs to a guide."""

    def setup(self, latent_dim: int) -> None:
        """Creates the shared parameters, and sets :attr:`latent_dim`; called once, by the guide.

        Arguments:
            latent_dim: Number of entries of the flat latent vector.
        """
        raise NotImplementedError


@registered()
@dataclass(frozen=True)
class DiagonalNormal:
    r"""Mean-field Gaussian, :math:`q(z) = \mathcal{N}(z \mid \mu, \operatorname{diag}(\sigma^2))`.

    Its parameters are :math:`(\mu, \log \sigma)`, two per latent.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Example:
        >>> q = DiagonalNormal()(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
        >>> q.mean, q.batch_shape, q.event_shape
        (tensor([[1., 2.]]), torch.Size([1]), torch.Size([2]))
    """

    def num_parameters(self, latent_dim: Latents) -> int:
        """Number of parameters: per latent, a mean and the logarithm of a standard deviation."""
        return 2 * latent_dim

    def initial(self, loc: Float[Tensor, " latents"], scale: float = 1.0) -> Tensor:
        """Parameters for which q is exactly N(loc, scale^2 I)."""
        return torch.cat([loc, torch.full_like(loc, scale).log()])

    def closest_normal(
        self,
        loc: Float[Tensor, "*batch latents"],
        precision: Float[Tensor, "*batch latents latents"],
    ) -> Float[Tensor, "*batch parameters"]:
        r"""Parameters of the mean-field optimum for a Gaussian with precision :math:`P`.

        The optimum has the Gaussian's means, and the variances :math:`1 / P_{ii}`.
        """
        variances = precision.diagonal(dim1=-2, dim2=-1).reciprocal().expand_as(loc)
        return torch.cat([loc, variances.log() / 2], dim=-1)

    def __call__(self, parameters: Float[Tensor, "*batch parameters"]) -> Distribution:
        """Returns the normal with the given means and log standard deviations."""
        loc, log_scale = parameters.chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class FactoredNormal(dist.MultivariateNormal):
    r"""A normal that stores the noise of its last draws, :math:`z = \mu + L \epsilon`.

    .. math:: \log q(z) = -\tfrac{1}{2} \|\epsilon\|^2 - \sum_i \log L_{ii}
        - \tfrac{d}{2} \log 2 \pi

    Here :math:`\epsilon` is the noise, :math:`\mu` is the mean, :math:`L` is the Cholesky factor of
    the covariance, and :math:`d` is the number of latents. The log density of the last draws uses
    the stored noise. Solving :math:`L \epsilon = z - \mu` for the noise would be inaccurate if
    :math:`L` is close to singular: in float32, rounding errors in the entropy of q could then raise
    the ELBO.
    """

    _drawn: tuple[Tensor, Tensor] | None = None

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns reparameterized draws, and stores their noise."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.reparameterized(
            _standard_normal(shape, dtype=self.loc.dtype, device=self.loc.device)
        )

    def reparameterized(self, noise: Tensor) -> Tensor:
        """Returns the draws for given standard normal noise, and stores the noise."""
        z: Tensor = self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        self._drawn = (z, noise)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of any value; for the last draws it is computed from their stored noise."""
        if self._drawn is None or value is not self._drawn[0]:
            return super().log_prob(value)
        noise = self._drawn[1]
        log_scales = self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        constant = noise.shape[-1] * math.log(2 * math.pi)
        return -(noise.square().sum(dim=-1) + constant) / 2 - log_scales


@reparameterize.register(FactoredNormal)
def _(q: FactoredNormal, noise: Tensor) -> Tensor:
    return q.reparameterized(noise)


@registered()
@dataclass(frozen=True)
class FullRankNormal:
    r"""Gaussian with any covariance, :math:`q(z) = \mathcal{N}(z \mid \mu, L L^\top)`.

    Its parameters are :math:`\mu` and the lower triangle of :math:`L` row by row, with
    logarithms on the diagonal: d + d (d + 1) / 2 in all for d latents. The number grows with the
    square of d, so use :class:`LowRankNormal` for more than a few dozen latents.

    References:
        | Automatic Differentiation Variational Inference (Kucukelbir et al., 2017)
        | https://arxiv.org/abs/1603.00788

    Example:
        >>> q = FullRankNormal()(torch.tensor([[1.0, 2.0, 0.0, 3.0, 0.0]]))
        >>> q.mean, q.covariance_matrix
        (tensor([[1., 2.]]), tensor([[[ 1.,  3.],
                 [ 3., 10.]]]))
    """

    def num_parameters(self, latent_dim: Latents) -> int:
        """Number of parameters: one mean per latent, plus the entries of a triangular matrix."""
        return latent_dim + latent_dim * (latent_dim + 1) // 2

    def initial(self, loc: Float[Tensor, " latents"], scale: float = 1.0) -> Tensor:
        """Parameters for which q is exactly N(loc, scale^2 I)."""
        log_scales = torch.full_like(loc, scale).log()
        return torch.cat([loc, _packed(log_scales.diag())])

    def closest_normal(
        self,
        loc: Float[Tensor, "*batch latents"],
        precision: Float[Tensor, "*batch latents latents"],
    ) -> Float[Tensor, "*batch parameters"]:
        r"""Parameters of the Gaussian with mean :math:`m` and precision :math:`P`.

        These are :math:`m` and the Cholesky factor :math:`L` of :math:`P^{-1}`. The matrix
        :math:`P` is not inverted: if :math:`P = U U^\top` with an upper triangular :math:`U`, then
        :math:`L = U^{-\top}`.
        """
        # The Cholesky factor of the reversed matrix, reversed again, is upper triangular.
        upper = torch.linalg.cholesky(precision.flip(-2, -1)).flip(-2, -1)
        identity = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        factor = torch.linalg.solve_triangular(upper.mT, identity, upper=False)
        factor = factor.tril(-1) + factor.diagonal(dim1=-2, dim2=-1).log().diag_embed()
        triangle = _packed(factor)
        return torch.cat([loc, triangle.expand(*loc.shape[:-1], -1)], dim=-1)

    def __call__(self, parameters: Float[Tensor, "*batch parameters"]) -> Distribution:
        """Returns the Gaussian with the given means and Cholesky factor of the covariance."""
        # d latents have d + d (d + 1) / 2 parameters.
        latent_dim = (math.isqrt(9 + 8 * parameters.shape[-1]) - 3) // 2
        _check_size(self, parameters, latent_dim)
        loc, triangle = parameters.tensor_split([latent_dim], dim=-1)
        row = torch.arange(latent_dim, device=parameters.device)
        index = (row * (row + 1) // 2).unsqueeze(-1) + row  # correct on and below the diagonal
        square = triangle.index_select(-1, index.flatten()).unflatten(-1, index.shape)
        scales = square.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
        checked = None if latent_dim else False  # torch's check takes a minimum over entries
        return FactoredNormal(loc, scale_tril=square.tril(-1) + scales, validate_args=checked)


@registered()
@dataclass(frozen=True)
class LowRankNormal:
    r"""Gaussian with a diagonal plus low-rank covariance, :math:`\mathcal{N}(\mu, D + W W^\top)`.

    Here :math:`D = \operatorname{diag}(\sigma_i^2 + c \sum_r W_{ir}^2)`, and :math:`W` has `rank`
    columns. The term with :math:`c = 10^{-3}` keeps the covariance regular: without it a fit can
    end at a singular covariance (a Heywood case), for which q has no density, and draws from q are
    useless as proposals. The parameters of the family are :math:`(\mu, \log \sigma, W)`, with
    :math:`W` row by row. These are 2 + rank numbers per latent, so their number grows linearly with
    the number of latents.

    Arguments:
        rank: Number of columns of :math:`W`. It may exceed the number of latents, so that one
            setting works for every program; the extra columns add parameters, but no new
            distributions.

    Raises:
        ValueError: If the rank is below one.

    References:
        | Gaussian Variational Approximation with a Factor Covariance Structure
          (Ong, Nott & Smith, 2018)
        | https://arxiv.org/abs/1701.03208

    Example:
        >>> q = LowRankNormal(rank=1)(torch.tensor([[1.0, 2.0, 0.0, 0.0, 1.0, 3.0]]))
        >>> q.mean, q.covariance_matrix
        (tensor([[1., 2.]]), tensor([[[ 2.0010,  3.0000],
                 [ 3.0000, 10.0090]]]))
    """

    rank: int = 2

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(
                f"`rank` must be at least 1; got {self.rank}: for a family without "
                "correlations use DiagonalNormal()"
            )

    def num_parameters(self, latent_dim: Latents) -> int:
        """Number of parameters: per latent, a mean, a log standard deviation, and a row of W."""
        return latent_dim * (2 + self.rank)

    def initial(self, loc: Float[Tensor, " latents"], scale: float = 1.0) -> Tensor:
        r"""Parameters with means `loc`, standard deviations `scale`, and correlations up to 0.01.

        The factor W of the covariance must not start at zero, because its gradient vanishes there.
        Its columns must not start equal, because they would stay equal. A column must not start in
        an eigenspace of the posterior, because it would stay there; an example is (1, 1) in a model
        that is symmetric in its latents. So the entries of W start as cosines. Each column of W
        starts with the length 0.1 `scale` / sqrt(`rank`).
        """
        row = torch.arange(1, len(loc) + 1, dtype=loc.dtype, device=loc.device).unsqueeze(-1)
        column = torch.arange(1, self.rank + 1, dtype=loc.dtype, device=loc.device)
        cosines = (row * column).cos()  # (latents, rank)
        factor = 0.1 * scale * cosines / cosines.norm(dim=0) / math.sqrt(self.rank)
        spread = factor.square().sum(dim=-1)
        variances = scale**2 - (1 + _LEAST_SHARE) * spread
        return torch.cat([loc, variances.log() / 2, factor.flatten()])

    def matching(
        self,
        loc: Float[Tensor, "batch latents"],
        covariance: Float[Tensor, "batch latents latents"],
    ) -> Float[Tensor, "batch parameters"]:
        """Parameters with nearly the given mean and covariance, by principal axis factoring."""
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        own, rank = variances / 2, min(self.rank, loc.shape[-1])
        factor = covariance.new_zeros(*loc.shape, self.rank)
        for _ in range(_PRINCIPAL_SWEEPS):
            root = own.sqrt()
            white = covariance / (root.unsqueeze(-1) * root.unsqueeze(-2))
            values, vectors = torch.linalg.eigh(white)
            shared = (values[..., -rank:] - 1).clamp(min=_LEAST_SHARE).sqrt()
            factor[..., :rank] = root.unsqueeze(-1) * vectors[..., -rank:] * shared.unsqueeze(-2)
            own = (variances - factor.square().sum(dim=-1)).clamp(min=_LEAST_SHARE * variances)
        return torch.cat([loc, own.log() / 2, factor.flatten(-2)], dim=-1)

    def __call__(self, parameters: Float[Tensor, "*batch parameters"]) -> Distribution:
        """Returns the Gaussian with the given parameters."""
        latent_dim = parameters.shape[-1] // (2 + self.rank)
        _check_size(self, parameters, latent_dim)
        loc, log_scale, factor = parameters.tensor_split([latent_dim, 2 * latent_dim], dim=-1)
        factor = factor.unflatten(-1, (latent_dim, self.rank))
        own = (2 * log_scale).exp() + _LEAST_SHARE * factor.square().sum(dim=-1)
        return dist.LowRankMultivariateNormal(loc, factor, own)


def _packed(square: Float[Tensor, "*batch latents latents"]) -> Tensor:
    """Returns the lower triangle of each matrix as a vector, row by row."""
    rows, columns = torch.tril_indices(*square.shape[-2:], device=square.device)
    return square[..., rows, columns]


def _check_size(family: Family, parameters: Tensor, latent_dim: int) -> None:
    expected = family.num_parameters(latent_dim)
    if parameters.shape[-1] != expected:
        raise ValueError(
            f"the number of parameters of {family} per datum must fit a whole number of latents "
            f"({expected} for {count_of(latent_dim, 'latent')}, "
            f"{family.num_parameters(latent_dim + 1)} for {count_of(latent_dim + 1, 'latent')}); "
            f"got {parameters.shape[-1]} (shape {tuple(parameters.shape)}): compute the number "
            "with num_parameters(latent_dim)"
        )
