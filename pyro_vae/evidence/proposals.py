r"""Proposals made from a guide: unchanged, widened, or mixed with the program's prior.

Weights are bounded, or at least have a finite variance, if the proposal's tails are as heavy as the
posterior's. A guide that was fitted by its ELBO is usually too narrow. Widening its draws about its
mean, :math:`z' = m + s (z - m)`, gives a proposal with the density

.. math:: \log q_s(z') = \log q(z) - L \log s

for a guide of any form, since :math:`z` is known where :math:`z'` is drawn. A share :math:`a` of
draws from the prior bounds the weights by the largest likelihood over :math:`a`:

.. math:: q_a(z) = (1 - a) q(z) + a p(z), \qquad w = \frac{p(y, z)}{q_a(z)} \le
    \frac{\max_z p(y \mid z)}{a}

Every draw is weighted by the density of the whole mixture, whichever part it came from (the balance
heuristic). The part is drawn independently for each draw, so the draws stay independent, as errors
and Pareto k assume.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .._types import Batch
from ..guides import FamilyPosterior, Posterior
from ..programs import Prior, Program


@runtime_checkable
class Proposal(Protocol):
    """A proposal for importance sampling, made from a guide's posterior."""

    def __call__(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """The distribution to draw from, for the same data."""


@runtime_checkable
class Keyed(Posterior, Protocol):
    """A posterior that may draw for many data at once, each from its own key."""

    def is_keyed(self) -> bool:
        """Whether draws can have a key per datum, as those made from standard normals can."""

    def draw_keyed(
        self, keys: Int64[Tensor, " batch"], num_particles: int, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log densities, starting at draw `first` of every key."""


@dataclass(frozen=True)
class FromGuide:
    """The guide, unchanged."""

    def __call__(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """The posterior, unchanged."""
        return posterior


@dataclass(frozen=True)
class Widened:
    r"""The guide, with its draws widened about its mean, :math:`z' = m + s (z - m)`.

    Arguments:
        scale: :math:`s`, no unit; above 1 it widens. For :math:`L` latents an exact guide keeps
            :math:`(\sqrt{2 s^2 - 1} / s^2)^L` of its effective draws, 61 percent at 1.2 with 10
            latents: with many latents use a scale near 1.

    Raises:
        ValueError: If the scale is not a positive number.

    Example:
        >>> Widened(1.2)
        Widened(scale=1.2)
    """

    scale: float = 1.2

    def __call__(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """The guide, spread out."""
        return WidenedPosterior(posterior, self.scale)


@dataclass(frozen=True)
class Defensive:
    r"""A mixture of a proposal and the program's prior, which bounds the weights.

    It needs the density of the guide at draws from the prior, which some flows and guides with
    auxiliary sites lack: these are refused at the first draw. Every draw costs about three runs of
    the program instead of one: a draw of the prior, its density, the weight.

    Arguments:
        prior_share: :math:`a`, the probability that a draw is from the prior, between 0 and 1.
        base: The proposal for the other draws.

    Raises:
        ValueError: If the share is not between 0 and 1.

    References:
        | Safe and Effective Importance Sampling (Owen & Zhou, 2000)
        | https://doi.org/10.1080/01621459.2000.10473909

    Example:
        >>> Defensive(0.1, Widened(1.2))
        Defensive(prior_share=0.1, base=Widened(scale=1.2))
    """

    prior_share: float = 0.1
    base: Proposal = field(default_factory=FromGuide)

    def __post_init__(self) -> None:
        if not 0 < self.prior_share < 1:
            raise ValueError(
                f"prior_share lies between 0 and 1, got {self.prior_share}; for a share of 0 pass "
                "the base itself"
            )

    def __call__(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """The mixture."""
        base = self.base(program, posterior, batch)
        return DefensivePosterior(base, Prior(program, batch), self.prior_share)


@dataclass(frozen=True)
class WidenedPosterior:
    """Draws from another posterior, widened about a center.

    The center is the posterior's mean, computed once: a mean of draws differs from call to call,
    but the density is valid for any fixed center.
    """

    base: Posterior
    scale: float

    def __len__(self) -> int:
        """Number of data."""
        return len(self.base)

    def rows(self, rows: slice | Tensor) -> "WidenedPosterior":
        """The proposal of a subset of the data, with centers computed anew."""
        return replace(self, base=self.base.rows(rows))

    @cached_property
    def center(self) -> Tensor:
        """Centers of the draws, `(batch, latents)`."""
        return self.base.mean()

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Draws and their log densities."""
        _ = self.center  # before the draws: it may be a mean of draws itself
        return self._spread(*self.base.draw(num_particles))

    def is_keyed(self) -> bool:
        """Whether the base is keyed and has an exact mean; a mean of draws would have no key."""
        return isinstance(self.base, FamilyPosterior) and self.base.is_keyed()

    def draw_keyed(
        self, keys: Int64[Tensor, " batch"], num_particles: int, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Draws of the base, spread out."""
        assert isinstance(self.base, Keyed)
        return self._spread(*self.base.draw_keyed(keys, num_particles, first=first))

    def _spread(self, z: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self.center + self.scale * (z - self.center), log_density - self._log_volume(z)

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Log density at given points."""
        before = self.center + (z - self.center) / self.scale
        return self.base.log_prob(before) - self._log_volume(z)

    def mean(self) -> Float[Tensor, "batch latents"]:
        """The center."""
        return self.center

    def _log_volume(self, z: Tensor) -> float:
        return z.shape[-1] * math.log(self.scale)


@dataclass(frozen=True)
class DefensivePosterior:
    """A mixture of another posterior and the program's prior."""

    base: Posterior
    prior: Prior
    prior_share: float

    def __len__(self) -> int:
        """Number of data."""
        return len(self.base)

    def rows(self, rows: slice | Tensor) -> "DefensivePosterior":
        """The proposal of a subset of the data."""
        return replace(self, base=self.base.rows(rows), prior=self.prior.rows(rows))

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Draws, each from one of the two parts, and their log densities under the mixture."""
        from_base, _ = self.base.draw(num_particles)
        from_prior = self.prior.sample(num_particles)
        of_prior = torch.rand(from_base.shape[:2], device=from_base.device) < self.prior_share
        z = torch.where(of_prior.unsqueeze(-1), from_prior, from_base)
        return z, self.log_prob(z)

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Log density of the mixture at given points."""
        log_base = density_at(self.base, z) + math.log1p(-self.prior_share)
        log_prior = self.prior.log_prob(z) + math.log(self.prior_share)
        return torch.logaddexp(log_base, log_prior)

    def mean(self) -> Float[Tensor, "batch latents"]:
        """Mean of every datum's mixture; the prior's mean is estimated from draws."""
        return torch.lerp(self.base.mean(), self.prior.mean(), self.prior_share)


def density_at(posterior: Posterior, z: Float[Tensor, "particles batch latents"]) -> Tensor:
    """Log density of a posterior at points that it did not draw.

    Raises:
        ValueError: If the density is not available, as for a flow that cannot be inverted.
    """
    try:
        return posterior.log_prob(z)
    except (NotImplementedError, KeyError) as error:
        raise ValueError(
            f"the density of this guide at a given point is not available ({error!r}): its flow "
            "cannot be inverted; use Widened(scale), which does not need it, or another family"
        ) from error
