"""The posterior of given data under a guide: draws, log densities, and means.

Objectives, evidence and diagnostics use only a :class:`Posterior`, so a `Guide` and a Pyro guide
written by hand are treated alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeAlias, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.distributions import MultivariateNormal, TransformedDistribution

from .._types import Batch, Distribution, ProgramLike
from ..formatting import listed
from ..programs import Program, Run, TracedSite
from ..programs.edges import draw_unconstrained, log_prob_at
from ..programs.enumeration import Combinations
from ..programs.log_probs import log_prob_of
from ..programs.masks import unmasked
from ..programs.pieces import take_rows
from ..programs.traces import repeat_rows
from ..randomness import normals, undisturbed
from .contract import (
    check_sites,
    completed,
    density_sites,
    drawn_discrete,
    is_determined,
    log_density,
    mask_completed,
    without_auxiliary,
)
from .families import Family, OwnMean
from .reparameterization import noise_shape, noise_size, reparameterize


@runtime_checkable
class Posterior(Protocol):
    """An approximate posterior of some data, over flat unconstrained latents."""

    def __len__(self) -> int:
        """Number of data."""

    def rows(self, rows: slice | Tensor) -> "Posterior":
        """Returns the posterior of some rows, given by a slice or by positions."""

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Returns draws, `(particles, batch, latents)`, and log densities, `(particles, batch)`."""

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Log density at given points, `(particles, batch)`, in nats."""

    def mean(self) -> Float[Tensor, "batch latents"]:
        """Mean of every datum's posterior; by default it is estimated from 1,000 draws."""
        return self.draw(1000)[0].mean(dim=0)


@runtime_checkable
class Conditional(Posterior, Protocol):
    """A posterior that can draw some of the guide's sites given values of other sites."""

    def run(self, num_particles: int, values: Mapping[str, Tensor] | None = None) -> Run:
        """Runs the guide on a copy of each row per particle, with some sites at given values."""


def mean_of(family: Family, parameters: Float[Tensor, "*batch parameters"]) -> Tensor:
    """Returns the means of a family's distributions, `(*batch, latents)`.

    If the family has its own method `mean`, that method is used.
    """
    return family.mean(parameters) if isinstance(family, OwnMean) else family(parameters).mean


@dataclass(frozen=True)
class FamilyPosterior:
    """The posterior of a batch, given by a family and parameters `(batch, parameters)`."""

    family: Family
    parameters: Float[Tensor, "batch parameters"]

    def __len__(self) -> int:
        """Number of data."""
        return len(self.parameters)

    def rows(self, rows: slice | Tensor) -> "FamilyPosterior":
        """Returns the posterior of the selected rows."""
        return replace(self, parameters=self.parameters[rows])

    def distribution(self, copies: int) -> Distribution:
        """The distribution of each datum's latents, for a batch that is repeated `copies` times."""
        return self.family(self.parameters.repeat(copies, 1))

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Returns reparameterized draws and their log densities."""
        q = self.family(self.parameters)
        z = q.rsample(torch.Size((num_particles,)))
        return z, q.log_prob(z)

    def is_keyed(self) -> bool:
        """Whether each datum's draws can be seeded by its own random key (see `row_keys`).

        This is so if the draws are functions of standard normal noise.
        """
        return noise_size(self.family(self.parameters[:1])) is not None

    def draw_keyed(
        self, keys: Int64[Tensor, " batch"], num_particles: int, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Returns draws and log densities like :meth:`draw`, with noise seeded by random keys.

        The noise of a draw depends only on the datum's key and on the draw's index; `first` is the
        index of the first draw.
        """
        q = self.family(self.parameters)
        size = noise_size(q)
        assert size is not None
        z = reparameterize(q, normals(keys, num_particles, size, self.parameters, first=first))
        return z, log_prob_of(q, z)

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Log density at given points, `(particles, batch)`, in nats."""
        return self.family(self.parameters).log_prob(z)

    def mean(self) -> Float[Tensor, "batch latents"]:
        """Mean of every datum's posterior."""
        return mean_of(self.family, self.parameters)


_Value: TypeAlias = tuple[Tensor, Tensor | None]
"""Draws of a site, and their unconstrained values if known."""


@dataclass(frozen=True)
class SitesPosterior(Posterior):
    """A posterior that consists of one distribution per latent site; the data are independent.

    Draws of a site with a constrained support may carry no gradient.

    Arguments:
        program: The model.
        sites: The distribution of each latent site.
        dim: The batch dimension of these distributions that indexes the data, counted from the end.
    """

    program: Program
    sites: Mapping[str, Distribution]
    dim: int

    def __len__(self) -> int:
        """Number of data."""
        first = next(iter(self.sites.values()))
        return int(first.batch_shape[self.dim])

    def rows(self, rows: slice | Tensor) -> "SitesPosterior":
        """Returns the posterior of the selected rows."""
        (chosen,) = take_rows((torch.arange(len(self), device="cpu"),), rows)
        return replace(
            self, sites={name: rows_of(q, chosen, self.dim) for name, q in self.sites.items()}
        )

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Returns draws, `(particles, batch, latents)`, and log densities, `(particles, batch)`."""
        shape, draws = torch.Size((num_particles,)), {}
        for site in self.program.latent_sites:
            q = self.sites[site.name]
            u = None if site.is_real else draw_unconstrained(q, site.transform, shape)
            draws[site.name] = (q(shape), None) if u is None else (site.transform(u), u)
        return self.flat(draws)

    def flat(self, draws: Mapping[str, _Value]) -> tuple[Tensor, Tensor]:
        """Returns flat unconstrained latents and log densities for given draws of each site."""
        values, unconstrained = (
            {
                site.name: part.movedim(0, site.axis).flatten(site.axis, site.axis + 1)
                for site in self.program.latent_sites
                if (part := draws[site.name][place]) is not None
            }
            for place in range(2)
        )
        z, jacobian = self.program.flatten(values, unconstrained)
        log_q = self._log_probs(draws)
        return z.view(*log_q.shape, -1), log_q + jacobian.view(log_q.shape)

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Returns the log density at given points, `(particles, batch)`, in nats."""
        flat, shape = z.flatten(0, 1), z.shape[:2]
        values, jacobian = self.program.constrain(flat)
        unconstrained = self.program.unconstrained(flat)
        draws = {}
        for site in self.program.latent_sites:
            value = values[site.name].unflatten(site.axis, shape).movedim(site.axis, 0)
            u = unconstrained.get(site.name)
            u = None if u is None else u.unflatten(site.axis, shape).movedim(site.axis, 0)
            draws[site.name] = (value, u)
        return self._log_probs(draws) + jacobian.view(shape)

    def _log_probs(self, draws: Mapping[str, _Value]) -> Tensor:
        """Returns the log densities of draws, computed from unconstrained values where possible."""
        parts = []
        for site in self.program.latent_sites:
            q, (value, u) = self.sites[site.name], draws[site.name]
            at_edges = None if u is None else log_prob_at(q, u, site.transform)
            log_prob = q.log_prob(value) if at_edges is None else at_edges
            axis = log_prob.dim() + self.dim
            others = [dim for dim in range(1, log_prob.dim()) if dim != axis]
            parts.append(log_prob.sum(dim=others) if others else log_prob)
        return torch.stack(parts).sum(dim=0)


def rows_of(q: Distribution, rows: Tensor, dim: int) -> Distribution:
    """Selects rows of a distribution along its batch dimension `dim`, which is negative."""
    if isinstance(q, dist.Independent):
        inner = q.reinterpreted_batch_ndims
        return rows_of(q.base_dist, rows, dim - inner).to_event(inner)
    if isinstance(q, TransformedDistribution):
        return dist.TransformedDistribution(rows_of(q.base_dist, rows, dim), q.transforms)
    taken = {}
    is_normal = isinstance(q, MultivariateNormal)  # takes one of three matrices
    for name in ("loc", "scale_tril") if is_normal else q.arg_constraints:
        value, event = getattr(q, name), q.arg_constraints[name].event_dim
        full = value.expand(q.batch_shape + value.shape[value.dim() - event :])
        axis = len(q.batch_shape) + dim
        taken[name] = full.index_select(axis, rows.to(full.device))
    return type(q)(**taken, validate_args=False)


def _mean_of_base(q: Distribution) -> Tensor:
    """Mean of the innermost base distribution: a tensor with the dtype and device of the draws."""
    inside = _inside(q)
    return q.mean if inside is None else _mean_of_base(inside)


@runtime_checkable
class _Wrapper(Protocol):
    base_dist: Distribution


def _is_known(q: Distribution) -> bool:
    """Whether the classes of `q` and of its base distributions are defined by torch or Pyro.

    Classes defined elsewhere may draw in another way than the class that they derive from.
    """
    own = type(q).__module__.startswith(("torch.distributions.", "pyro.distributions."))
    inside = _inside(q)
    return own and (inside is None or _is_known(inside))


def _takes_sample_shape(q: Distribution) -> bool:
    """Whether q can make several draws of each row at once.

    Two of Pyro's mixtures cannot: they would use the means of other rows, or raise an error.
    """
    inside = _inside(q)
    one_by_one = dist.MixtureOfDiagNormals | dist.MixtureOfDiagNormalsSharedCovariance
    return not isinstance(q, one_by_one) and (inside is None or _takes_sample_shape(inside))


def _inside(q: Distribution) -> Distribution | None:
    """The distribution that `q` transforms, masks or reinterprets; `None` if there is none."""
    return q.base_dist if isinstance(q, _Wrapper) else None


@dataclass(frozen=True)
class ProgramPosterior(Posterior):
    """The posterior of a guide written by hand as a Pyro program, for one batch of data.

    The guide is run on a longer batch, in which each row is repeated once per particle. So the
    guide must treat a row independently of other rows and of the row's position. A guide with one
    site is run on the batch itself, and all particles are drawn from the distribution of that site.
    Observed sites and factors of the guide are not part of the density. Scales and masks that only
    the guide has do not change the density. A discrete site of the model is part of the density if
    the guide samples it.
    """

    program: Program
    guide: ProgramLike
    batch: Batch

    def __len__(self) -> int:
        """Number of data."""
        return len(self.batch[0])

    def rows(self, rows: slice | Tensor) -> "ProgramPosterior":
        """Returns the posterior of the selected rows."""
        return replace(self, batch=take_rows(self.batch, rows))

    def distribution(self, copies: int) -> Distribution | None:
        """The distribution of each datum's latents, for a batch that is repeated `copies` times.

        The result is `None` if :attr:`only` is `None`, for example if the guide has several sites.
        """
        only = replace(self, batch=repeat_rows(self.batch, copies)).only
        return None if only is None else next(iter(only.sites.values()))

    @cached_property
    def only(self) -> SitesPosterior | None:
        """The posterior of the guide's site, if the guide has exactly one site; otherwise `None`.

        It is also `None` if the model masks latents, if the first batch dimension of the site
        does not index the data, or if the site's distribution cannot make several draws at once.
        """
        if not self.program.latent_sites or self.program.structure.masked:
            return None
        with undisturbed():
            run = self.run(1)
        latent, *others = self.program.latent_sites
        distribution = unmasked(run[latent.name].distribution)
        by_datum = distribution.batch_shape[:1] == (len(self),) and latent.axis == 0
        if others or not by_datum or set(run.sites) - {latent.name, *self.program.fixed}:
            return None
        without_auxiliary(self.program, [run[latent.name]])
        if not _takes_sample_shape(distribution):
            return None
        dim = -len(distribution.batch_shape)
        return SitesPosterior(self.program, {latent.name: distribution}, dim)

    def is_keyed(self) -> bool:
        """Whether each datum's draws can be seeded by its own random key (see `row_keys`).

        This is so if the guide has a single site, this site is real-valued, and its draws are a
        known transformation of standard normal noise.
        """
        if self.only is None:
            return False
        (q,) = self.only.sites.values()
        # Constrained sites are drawn without keys, by their unconstrained values where possible.
        is_real = self.program.latent_sites[0].is_real
        return is_real and _is_known(q) and noise_shape(q) is not None

    def draw_keyed(
        self, keys: Int64[Tensor, " batch"], num_particles: int, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Returns draws and log densities like :meth:`draw`, with noise seeded by random keys.

        The noise of a draw depends only on the datum's key and on the draw's index; `first` is the
        index of the first draw.
        """
        assert self.only is not None
        ((name, q),) = self.only.sites.items()
        of_draw = noise_shape(q)
        assert of_draw is not None
        shape = q.batch_shape[1:] + of_draw
        noise = normals(keys, num_particles, shape.numel(), _mean_of_base(q), first=first)
        value = reparameterize(q, noise.reshape(*noise.shape[:2], *shape))
        return self.only.flat({name: (value, None)})

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Runs the guide on a copy of each row per particle; returns draws and log densities."""
        if self.only is not None and not torch.is_grad_enabled():  # draws may carry no gradient
            return self.only.draw(num_particles)
        run, rows = self.run(num_particles), repeat_rows(self.batch, num_particles)
        log_q = completed(self.program, run, rows, self._log_probs(run, len(rows[0]), {}))
        empty = log_q.new_zeros(len(log_q), 0), torch.zeros_like(log_q)
        z, jacobian = self.program.latents_of(run) if self.program.latent_sites else empty
        shape = (num_particles, len(self))
        return z.view(*shape, self.program.latent_dim), (jacobian + log_q).view(shape)

    def log_prob(self, z: Float[Tensor, "particles batch latents"]) -> Tensor:
        """Returns log densities `(particles, batch)` by running the guide at given points.

        Raises:
            ValueError: If the guide has auxiliary sites, whose values at a given point are unknown.
        """
        if self.only is not None:
            return self.only.log_prob(z)
        flat = z.reshape(-1, z.shape[-1])
        values, jacobian = self.program.constrain(flat)
        unconstrained = self.program.unconstrained(flat)
        discrete = self._discrete()
        copies = 1 if discrete is None else len(discrete)
        if discrete is not None:
            axes = {site.name: site.axis for site in self.program.latent_sites}
            values = discrete.beside(values, axes, len(flat))
            unconstrained = discrete.repeated(unconstrained, axes)
        run = self.run(copies * len(z), values, unconstrained)
        others = (site for site in self._sites(run, values) if site.name not in values)
        # Sites outside the plate (an automatic guide has them for global sites) belong to no datum.
        auxiliary = [site.name for site in others if site.is_in(self.program.plate)]
        if auxiliary:
            raise ValueError(
                f"the guide has the {listed('auxiliary site', auxiliary)}, so the guide's density "
                "at a given point is unknown: sample each site of the model without an auxiliary "
                "site, for example from a TransformedDistribution, or use pv.Guide"
            )
        rows = repeat_rows(self.batch, copies * len(z))
        log_q = self._log_probs(run, len(rows[0]), values)
        log_q = mask_completed(self.program, run, rows, log_q).view(copies, -1).logsumexp(dim=0)
        return (jacobian + log_q).view(len(z), len(self))

    def _discrete(self) -> Combinations | None:
        """Lists all combinations of values of the guide's discrete sites.

        The density of the guide is a sum over these combinations. Each combination has its own rows
        in a longer batch. Returns `None` if the guide draws no discrete sites.
        """
        every = self.program.structure.discrete_values
        if every is None:
            return None
        with undisturbed():
            drawn = drawn_discrete(self.program, self.run(1))
        return every.only(drawn) if drawn else None

    def run(
        self,
        num_particles: int,
        values: Mapping[str, Tensor] | None = None,
        unconstrained: Mapping[str, Tensor] | None = None,
    ) -> Run:
        """Runs the guide on a copy of each row per particle, and checks the guide's sites.

        Sites named in `values` or in `unconstrained` are set to the values given there.
        """
        batch = repeat_rows(self.batch, num_particles)
        given = {**self.program.fixed, **(values or {})}
        run = self.program.run_guide(self.guide, batch, given, unconstrained)
        check_sites(self.program, run, [site.name for site in self.program.latent_sites], given)
        return run

    def _sites(self, run: Run, values: Mapping[str, Tensor]) -> list[TracedSite]:
        """Returns the sites whose log densities add up to the log density of a datum's latents."""
        program, fixed = self.program, self.program.fixed
        sites = [s for s in density_sites(run, values) if s.name not in fixed]
        sites = [site for site in sites if not is_determined(program, site)]
        inside = [site for site in sites if site.is_in(program.plate)]
        # If data have auxiliary sites, sites outside the plate belong to the given global sites.
        return inside if fixed and any(site.is_auxiliary for site in inside) else sites

    def _log_probs(self, run: Run, rows: int, values: Mapping[str, Tensor]) -> Tensor:
        sites = without_auxiliary(self.program, self._sites(run, values))
        return torch.stack([log_density(self.program, site, rows) for site in sites]).sum(0)


@dataclass(frozen=True)
class NoLatents:
    """The posterior of a program without continuous latents per datum: empty draws of density 1.

    Arguments:
        empty: An empty tensor `(batch, 0)`, with the program's dtype and device.
    """

    empty: Float[Tensor, "batch 0"]

    @classmethod
    def of(cls, program: Program, batch: Batch) -> "NoLatents":
        """Builds the empty posterior of a batch."""
        return cls(torch.zeros(len(batch[0]), 0, dtype=program.dtype, device=batch[0].device))

    def __len__(self) -> int:
        """Number of data."""
        return len(self.empty)

    def rows(self, rows: slice | Tensor) -> "NoLatents":
        """Returns the posterior of the selected rows."""
        return replace(self, empty=self.empty[rows])

    def distribution(self, copies: int) -> None:
        """Returns `None`, because there are no latents."""

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Returns empty draws, `(particles, batch, 0)`, with log densities of zero."""
        z = self.empty.expand(num_particles, *self.empty.shape)
        return z, self.log_prob(z)

    def is_keyed(self) -> bool:
        """Returns true, because empty draws need no random numbers."""
        return True

    def draw_keyed(
        self, keys: Int64[Tensor, " batch"], num_particles: int, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Returns empty draws, which do not depend on the keys."""
        return self.draw(num_particles)

    def log_prob(self, z: Float[Tensor, "particles batch 0"]) -> Tensor:
        """Returns the log density of every draw, which is zero."""
        return torch.zeros(z.shape[:2], dtype=z.dtype, device=z.device)

    def mean(self) -> Float[Tensor, "batch 0"]:
        """Returns an empty mean for every datum, `(batch, 0)`."""
        return self.empty
