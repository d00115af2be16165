r"""Proposals derived from a guide: unchanged, widened, or mixed with the program's prior.

Weights are bounded, or at least have a finite variance, if the proposal's tails are as heavy as the
posterior's. A guide that maximizes the ELBO is usually too narrow. Let :math:`m` be the guide's
mean, :math:`L` the number of latents and :math:`s` a factor. Widening the guide's draws :math:`z`
about the mean, :math:`z' = m + s (z - m)`, gives a proposal with the density

.. math:: \log q_s(z') = \log q(z) - L \log s

for any guide, since :math:`z` is known when :math:`z'` is drawn. If a share :math:`a` of the draws
is from the prior, the weights are bounded by the largest likelihood divided by :math:`a`:

.. math:: q_a(z) = (1 - a) q(z) + a p(z), \qquad w = \frac{p(y, z)}{q_a(z)} \le
    \frac{\max_z p(y \mid z)}{a}

Every draw is weighted by the density of the whole mixture, regardless of the component that it came
from (the balance heuristic). The component is drawn independently for each draw, so the draws are
independent, as the errors and Pareto k require.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .._types import Batch
from ..guides import FamilyPosterior, Posterior
from ..programs import Prior, Program


@runtime_checkable
class Proposal(Protocol):
    """A rule that derives a proposal for importance sampling from a guide's posterior."""

    def __call__(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """Returns the proposal that is derived from `posterior`, for the same data."""


@runtime_checkable
class SearchesModes(Proposal, Protocol):
    """A rule whose proposals cover one mode, and which can search for further modes."""

    def several_modes(
        self, program: Program, proposal: Posterior, batch: Batch
    ) -> Bool[Tensor, " batch"]:
        """Returns a mask of the data that are found to have several modes.

        Arguments:
            program: The model.
            proposal: The proposal that the rule made for these data.
            batch: The data.
        """


@runtime_checkable
class Keyed(Posterior, Protocol):
    """A posterior that can draw for many data at once, each with a separate random key."""

    def is_keyed(self) -> bool:
        """Returns whether draws can be generated from a separate random key for each datum."""

    def draw_keyed(
        self, keys: Int64[Tensor, " batch"], num_particles: int, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Returns draws generated from each datum's random key, and their log densities.

        Every key generates a sequence of draws; the draws before position `first` are skipped.
        """


@dataclass(frozen=True)
class FromGuide:
    """Uses the guide itself as the proposal."""

    def __call__(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """Returns the guide's posterior, unchanged."""
        return posterior


@dataclass(frozen=True)
class Widened:
    r"""Widens the guide's draws about the guide's mean :math:`m`, :math:`z' = m + s (z - m)`.

    Arguments:
        scale: The factor :math:`s`; values above 1 widen. With :math:`L` latents, a Gaussian guide
            that equals the posterior keeps a share :math:`(\sqrt{2 s^2 - 1} / s^2)^L` of its
            effective draws. That is 61% for 10 latents and a scale of 1.2, so with many latents use
            a scale near 1.

    Raises:
        ValueError: If the scale is not a positive number.

    Example:
        >>> Widened(1.2)
        Widened(scale=1.2)
    """

    scale: float = 1.2

    def __call__(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """Returns the widened posterior of the guide."""
        return WidenedPosterior(posterior, self.scale)


@dataclass(frozen=True)
class Defensive:
    r"""A mixture of a proposal and the program's prior, which bounds the weights.

    The density of the guide at draws from the prior is required. Some flows and guides with
    auxiliary sites cannot compute this density. Such guides are refused at the first draw. Every
    draw costs about three runs of the program instead of one: to draw from the prior, to compute
    the prior density, and to compute the weight.

    Arguments:
        prior_share: :math:`a`, the probability that a draw is from the prior, between 0 and 1.
        base: The proposal for the draws that are not from the prior.

    Raises:
        ValueError: If the probability is not between 0 and 1.

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
                f"`prior_share` must be between 0 and 1; got {self.prior_share}: for a share of 0, "
                "pass the base proposal itself"
            )

    def __call__(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """Returns the mixture of the base proposal and the prior."""
        base = self.base(program, posterior, batch)
        return DefensivePosterior(base, Prior(program, batch), self.prior_share)

    def several_modes(
        self, program: Program, proposal: Posterior, batch: Batch
    ) -> Bool[Tensor, " batch"]:
        """Returns a mask of the data for which the base proposal finds several modes.

        If the base proposal cannot search for modes, the mask is False for all data.
        """
        assert isinstance(proposal, DefensivePosterior)
        if isinstance(self.base, SearchesModes):
            return self.base.several_modes(program, proposal.base, batch)
        return torch.zeros(len(batch[0]), dtype=torch.bool, device=batch[0].device)


@dataclass(frozen=True)
class WidenedPosterior:
    """A posterior whose draws are those of a base posterior, moved away from the base's mean.

    The mean is computed only once, because a mean that is estimated from draws differs from call to
    call. The density is correct for any fixed center.
    """

    base: Posterior
    scale: float

    def __len__(self) -> int:
        """Number of data."""
        return len(self.base)

    def rows(self, rows: slice | Tensor) -> "WidenedPosterior":
        """Returns the widened posterior for a subset of the data; its center is computed anew."""
        return replace(self, base=self.base.rows(rows))

    @cached_property
    def center(self) -> Tensor:
        """Mean of the base posterior, from which draws are moved away, `(batch, latents)`."""
        return self.base.mean()

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Returns widened draws and their log densities."""
        _ = self.center  # computed before drawing, since the center itself can be a mean of draws
        return self._spread(*self.base.draw(num_particles))

    def is_keyed(self) -> bool:
        """Returns whether draws can be generated from a separate random key for each datum.

        This is so only if `base` is the posterior of a family. The mean of any other posterior may
        be estimated from draws that do not depend on the keys.
        """
        return isinstance(self.base, FamilyPosterior) and self.base.is_keyed()

    def draw_keyed(
        self, keys: Int64[Tensor, " batch"], num_particles: int, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Returns widened draws generated from each datum's key, and their log densities."""
        assert isinstance(self.base, Keyed)
        return self._spread(*self.base.draw_keyed(keys, num_particles, first=first))

    def _spread(self, z: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        """Widens draws of the base posterior; returns them with their new log densities."""
        return self.center + self.scale * (z - self.center), log_density - self._log_volume(z)

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Returns the log density of the widened posterior at given points."""
        before = self.center + (z - self.center) / self.scale
        return self.base.log_prob(before) - self._log_volume(z)

    def mean(self) -> Float[Tensor, "batch latents"]:
        """Returns the mean of every datum's widened posterior; widening does not move the mean."""
        return self.center

    def _log_volume(self, z: Tensor) -> float:
        """Log of the factor by which widening increases volumes."""
        return z.shape[-1] * math.log(self.scale)


@dataclass(frozen=True)
class DefensivePosterior:
    """A mixture of a base posterior and the program's prior."""

    base: Posterior
    prior: Prior
    prior_share: float

    def __len__(self) -> int:
        """Number of data."""
        return len(self.base)

    def rows(self, rows: slice | Tensor) -> "DefensivePosterior":
        """Returns the mixture for a subset of the data."""
        return replace(self, base=self.base.rows(rows), prior=self.prior.rows(rows))

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Returns draws, each from one of the two components, and the mixture's log densities."""
        z, _ = self.base.draw(num_particles)
        of_prior = torch.rand(z.shape[:2], device=z.device) < self.prior_share
        place = of_prior.cumsum(dim=0)  # 1 for a datum's first draw from the prior
        if (number := int(place.max())) > 0:
            from_prior = self.prior.sample(number)
            chosen = (place - 1).clamp(min=0).unsqueeze(-1).expand_as(z)
            z = torch.where(of_prior.unsqueeze(-1), from_prior.gather(0, chosen), z)
        return z, self.log_prob(z)

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Returns the log density of the mixture at given points."""
        log_base = density_at(self.base, z) + math.log1p(-self.prior_share)
        log_prior = self.prior.log_prob(z) + math.log(self.prior_share)
        return torch.logaddexp(log_base, log_prior)

    def mean(self) -> Float[Tensor, "batch latents"]:
        """Returns the mean of every datum's mixture; the prior's mean is estimated from draws."""
        return torch.lerp(self.base.mean(), self.prior.mean(), self.prior_share)


def density_at(posterior: Posterior, z: Float[Tensor, "particles batch latents"]) -> Tensor:
    """Evaluates the log density of a posterior at given points.

    Raises:
        ValueError: If the density is not available, as for a flow that cannot be inverted.
    """
    try:
        return posterior.log_prob(z)
    except (NotImplementedError, KeyError) as error:  # what Pyro's transforms raise
        raise ValueError(
            f"the flow of this guide cannot be inverted ({error!r}), so the guide's density at "
            "given points is unknown: either use another family, such as pv.NormalizingFlow, or, "
            "if pv.Defensive needs the density, use pv.Widened(scale) instead"
        ) from error
