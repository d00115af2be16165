r"""Heavy-tailed proposals: mixtures of Student t distributions, fitted to draws for each datum.

Posteriors over unconstrained latents often have exponential tails (Gamma, Beta, Dirichlet), which
are heavier than those of any Gaussian. With :math:`\nu` degrees of freedom and :math:`L` latents
the density

.. math:: q(z) = \sum_m \pi_m \, t_\nu(z \mid \mu_m, S_m S_m^\top)

falls as :math:`|z|^{-\nu - L}`, more slowly than an exponential, so the weights :math:`p / q` are
bounded. A draw is computed from standard normals alone, so each datum's draws can be generated from
the datum's random key:

.. math:: z = \mu_m + S_m \epsilon \sqrt{\nu / \textstyle\sum_{i=1}^{\nu} \eta_i^2}, \qquad
    m = \min\{j : \pi_1 + \dots + \pi_j \ge \Phi(\zeta)\}

with all of :math:`\epsilon, \eta, \zeta` standard normal.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..randomness import normals
from ..results import join
from .whitening import Whitening, root_of

_FREEDOM = 4  # degrees of freedom: a number of normals, above 2 for a finite variance
_ROUNDING = 1e-12  # added to variances, relative to mean squares, whose rounding error is smaller
_SHRUNK = 0.8  # factor on the covariance: 1 / 2 would match the variance of draws, and 1 their core
_PER_LATENT = 5.0  # effective draws per latent that a covariance requires
_TEMPERS = 12  # largest number of halvings of the weights' exponent, if few draws are effective
_LLOYD, _EM = 5, 15  # iterations; more would hardly improve the proposal


@dataclass(frozen=True)
class StudentMixture:
    """Mixtures of Student t distributions, one per datum.

    Arguments:
        log_shares: Logarithms of the components' shares, `(batch, components)`; the shares of a
            datum add up to 1.
        loc: Locations of the components, `(batch, components, latents)`.
        scale_tril: Cholesky factors of the scale matrices, `(batch, components, latents, latents)`.
        dtype: Dtype of the draws; densities are float64.
    """

    log_shares: Float64[Tensor, "batch components"]
    loc: Float64[Tensor, "batch components latents"]
    scale_tril: Float64[Tensor, "batch components latents latents"]
    dtype: torch.dtype

    def __len__(self) -> int:
        """Number of data."""
        return len(self.loc)

    def rows(self, rows: slice | Tensor) -> "StudentMixture":
        """Returns the mixtures of a subset of the data."""
        shares, loc, scale_tril = (
            part[rows] for part in (self.log_shares, self.loc, self.scale_tril)
        )
        return StudentMixture(shares, loc, scale_tril, self.dtype)

    def is_keyed(self) -> bool:
        """Returns True, because draws are computed from normal numbers that keys can generate."""
        return True

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Returns draws from every datum's mixture, and their log densities."""
        return self._placed(self.loc.new_empty(num_particles, len(self), self._noise).normal_())

    def draw_keyed(
        self, keys: Int64[Tensor, " batch"], num_particles: int, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Returns draws generated from each datum's random key, and their log densities.

        Every key generates a sequence of draws; the draws before position `first` are skipped.
        """
        return self._placed(normals(keys, num_particles, self._noise, self.loc, first=first))

    @property
    def _noise(self) -> int:
        """Number of standard normals for one draw."""
        return self.loc.shape[-1] + _FREEDOM + 1

    def _placed(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Transforms standard normals into draws, by the last formula of the module's docstring."""
        latents = self.loc.shape[-1]
        epsilon, chi, which = noise.split([latents, _FREEDOM, 1], dim=-1)
        epsilon = epsilon * (_FREEDOM / chi.square().sum(dim=-1, keepdim=True)).sqrt()
        places = self.loc + torch.einsum("kbl,bmjl->kbmj", epsilon, self.scale_tril)
        below = self.log_shares.exp().cumsum(dim=-1)[:, :-1] < torch.special.ndtr(which)
        component = below.sum(dim=-1)[..., None, None].expand(-1, -1, 1, latents)
        z = places.gather(2, component).squeeze(2).to(self.dtype)
        return z, self.log_prob(z)

    @cached_property
    def _whitening(self) -> Tensor:
        """Inverses of `scale_tril`."""
        unit = torch.eye(self.loc.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
        return torch.linalg.solve_triangular(self.scale_tril, unit, upper=False)

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Returns the log density of every datum's mixture at given points."""
        latents = z.shape[-1]
        away = z.to(self.loc.dtype).unsqueeze(2) - self.loc  # (particles, batch, components, L)
        white = torch.einsum("kbml,bmjl->kbmj", away, self._whitening)
        log_volume = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        half = (_FREEDOM + latents) / 2
        constant = math.lgamma(half) - math.lgamma(_FREEDOM / 2)
        constant -= latents / 2 * math.log(_FREEDOM * math.pi)
        kernel = half * torch.log1p(white.square().sum(dim=-1) / _FREEDOM)
        return (self.log_shares - log_volume + constant - kernel).logsumexp(dim=-1)

    def mean(self) -> Float[Tensor, "batch latents"]:
        """Mean of every datum's mixture."""
        return (self.log_shares.exp().unsqueeze(-1) * self.loc).sum(dim=1).to(self.dtype)


def student_of(
    z: Float[Tensor, "particles batch latents"], log_weights: Float[Tensor, "particles batch"]
) -> StudentMixture:
    """Fits one t distribution per datum to the weighted mean and covariance of draws.

    If the effective sample size is below five per latent, all weights are raised to a power below
    1, which is chosen so that the effective sample size becomes five per latent. A proposal that is
    too wide is better than a proposal based on a single draw.
    """
    shares = _enough(log_weights.double(), _PER_LATENT * z.shape[-1])
    loc, root = (part.unsqueeze(1) for part in Whitening.of(z.double(), shares))
    return StudentMixture(torch.zeros_like(loc[..., 0]), loc, root * math.sqrt(_SHRUNK), z.dtype)


def _enough(log_weights: Tensor, ess: float) -> Tensor:
    """Returns normalized weights, made more equal if their effective sample size is below `ess`."""
    power = torch.ones_like(log_weights[0])
    finite = log_weights.nan_to_num(nan=-torch.inf)
    for _ in range(_TEMPERS):
        few = (power * finite).softmax(dim=0).square().sum(dim=0) * ess > 1
        power = torch.where(few, power / 2, power)
    shares = (power * finite).softmax(dim=0)
    return shares.nan_to_num(nan=1 / len(shares))


def mixture_of(z: Float[Tensor, "particles batch latents"], num_components: int) -> StudentMixture:
    """Fits a mixture to each datum's equally weighted draws, with components at several modes.

    The clusters start at draws that are far from one another. A few iterations of Lloyd's algorithm
    and then of EM refine the clusters. The covariance of each cluster is shrunk towards the pooled
    covariance.
    """
    whitening = Whitening.of(z.double())
    white = whitening.white(z.double()).transpose(0, 1)  # (batch, particles, latents)
    members = _clusters(white, num_components)
    for _ in range(_EM):
        shares, loc, scale_tril = _components(white, members)
        members = _responsibilities(white, shares, loc, scale_tril)
    shares, loc, scale_tril = _components(white, members)
    return StudentMixture(
        shares.log(),
        whitening.colored(loc.transpose(0, 1)).transpose(0, 1),
        whitening.root.unsqueeze(1) @ scale_tril * math.sqrt(_SHRUNK),
        z.dtype,
    )


def joined(
    one: StudentMixture, other: StudentMixture, share: Float64[Tensor, " batch"] | float
) -> StudentMixture:
    """Joins two mixtures into one, in which the shares of `other` add up to `share`."""
    own = torch.as_tensor(share, dtype=one.loc.dtype, device=one.loc.device).unsqueeze(-1)
    first = replace(one, log_shares=one.log_shares + (-own).log1p())
    second = replace(other, log_shares=other.log_shares + own.log())
    return join([first, second], axis=1)


def _clusters(white: Tensor, number: int) -> Tensor:
    """Assigns every draw to one cluster, by Lloyd's algorithm.

    Returns 1 for the draw's cluster and 0 for all other clusters, `(batch, particles, components)`.
    """
    centers = _far_apart(white, number)
    for _ in range(_LLOYD):
        nearest = torch.cdist(white, centers).argmin(dim=-1)
        members = torch.nn.functional.one_hot(nearest, number).double()
        centers = (members.mT @ white) / members.sum(dim=1).clamp(min=1).unsqueeze(-1)
    return members


def _far_apart(white: Tensor, number: int) -> Tensor:
    """Chooses `number` draws per datum, each as far as possible from those chosen before it."""
    centers = [white[:, 0]]
    distance = torch.full_like(white[..., 0], torch.inf)
    for _ in range(number - 1):
        away = (white - centers[-1].unsqueeze(1)).square().sum(dim=-1)
        distance = torch.minimum(distance, away)
        farthest = distance.argmax(dim=1)
        centers.append(white[torch.arange(len(white), device=white.device), farthest])
    return torch.stack(centers, dim=1)


def _components(white: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes every cluster's share, mean, and Cholesky factor of the covariance.

    The covariance is shrunk towards the pooled covariance of all clusters.
    """
    count = members.sum(dim=1)
    loc = (members.mT @ white) / count.clamp(min=1e-9).unsqueeze(-1)
    second = torch.einsum("bkm,bki,bkj->bmij", members, white, white)
    scatter = second - count[..., None, None] * loc.unsqueeze(-1) * loc.unsqueeze(-2)
    pooled = scatter.sum(dim=1, keepdim=True) / white.shape[1]
    pseudo = white.shape[-1] + 2.0  # weight of the pooled covariance, in draws
    covariance = (scatter + pseudo * pooled) / (count + pseudo)[..., None, None]
    rounding = _ROUNDING * white.square().mean(dim=1, keepdim=True)  # if all draws are equal
    covariance = covariance + rounding.diag_embed()
    return (count + 1) / (count + 1).sum(dim=1, keepdim=True), loc, root_of(covariance)


def _responsibilities(white: Tensor, shares: Tensor, loc: Tensor, scale_tril: Tensor) -> Tensor:
    """Computes the probability of every cluster given each draw, `(batch, particles, clusters)`."""
    away = white.unsqueeze(1) - loc.unsqueeze(2)  # (batch, components, particles, latents)
    scaled = torch.linalg.solve_triangular(scale_tril, away.mT, upper=False)
    log_volume = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    log_density = -scaled.square().sum(dim=-2) / 2 + (shares.log() - log_volume).unsqueeze(-1)
    return log_density.softmax(dim=1).mT
