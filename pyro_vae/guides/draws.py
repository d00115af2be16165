"""The particles of an objective: the guide's draws for every datum, with their gradients.

Global latent sites are drawn once; the particles of every datum are conditional on that draw. A
`Guide` is evaluated once per datum; a guide written by hand is run on a longer batch, in which each
row is repeated once per particle. In both cases outer handlers see only the guide's parameters, so
that Pyro's SVI trains them. A guide's observed sites and `pyro.factor` terms count as in Pyro: like
log q, they are subtracted from the training ELBO. Reported numbers leave them out.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.nn import pyro_method
from torch import Tensor

from .._types import Batch, ProgramLike
from ..formatting import count_of
from ..programs import Program, Run, TracedSite
from ..programs.traces import repeat_rows, total_log_prob
from .contract import (
    check_sites,
    completed,
    density_sites,
    is_determined,
    log_density,
    require_by_datum,
    shared_densities,
    without_auxiliary,
)
from .guide import Guide
from .posteriors import FamilyPosterior, NoLatents, ProgramPosterior
from .shared import GlobalDraw
from .tied import can_be_run


@dataclass(frozen=True)
class Draws:
    """Particles that a guide drew for some data.

    Arguments:
        program: The program, with its global sites at the drawn values.
        z: Flat unconstrained latents, `(particles, batch, latents)`.
        log_guide: Log densities of the draws under the guide, `(particles, batch)`.
        posterior: The distribution that the draws come from; it also gives log densities at other
            points.
        log_shared: Log density of the global sites, a scalar.
        terms: Terms that the objective adds to the ELBO of each datum, `(batch,)`: zeros with a
            gradient that trains a map (:meth:`pyro_vae.InferenceMap.surrogate`), or minus the log
            densities of the guide's observed sites and factors.
        shared_terms: Minus the log densities of the guide's observed sites and factors outside the
            plate over data, a scalar.
    """

    program: Program
    z: Tensor
    log_guide: Tensor
    posterior: FamilyPosterior | ProgramPosterior | NoLatents
    log_shared: Tensor
    terms: Tensor
    shared_terms: Tensor

    def log_guide_path(self, z: Tensor) -> Tensor:
        r"""Log density of the draws, with a gradient through the draws only.

        Let :math:`z = z(\phi)` be the draws, and let brackets stop gradients. Then the difference
        :math:`\log q_\phi(z) - \log q_\phi(\lceil z \rceil)` is zero, and its derivative is
        :math:`\partial_z \log q \, \partial_\phi z`. The difference is added to the log density
        with stopped gradients, so the sum has this derivative. No copy of the guide with fixed
        parameters is needed.
        """
        if not z.requires_grad:
            return self.log_guide.detach()
        path = self.posterior.log_prob(z) - self.posterior.log_prob(z.detach())
        return self.log_guide.detach() + path


def draw(guide: ProgramLike, program: Program, batch: Batch, num_particles: int) -> Draws:
    """Returns particles for every datum, reparameterized so that gradients pass through them.

    Raises:
        ValueError: If the guide lacks a latent site, or samples one that cannot be reparameterized.
        TypeError: If the guide is one of Pyro's automatic guides.
    """
    if isinstance(guide, Guide):
        return pyro_method(_from_guide)(guide, program, batch, num_particles)
    if isinstance(guide, AutoGuide):
        raise TypeError(
            "this objective draws the latents of each row separately, and differentiates through "
            f"the draws, but {type(guide).__name__} does not support this: train the guide with "
            "Trace_ELBO(), or use pv.Guide(model, pv.LocalParameters(num_data))"
        )
    return _from_program(guide, program, batch, num_particles)


def _from_guide(guide: Guide, program: Program, batch: Batch, num_particles: int) -> Draws:
    """Draws particles from the global posterior and the batch's posterior of a `Guide`."""
    zero = torch.zeros((), dtype=program.dtype, device=batch[0].device)
    values, log_shared = GlobalDraw({}, zero)
    if guide.shared is not None:
        q = guide.shared.distribution()
        values, log_shared = GlobalDraw.of(program, q, q.rsample())
    given = program.given(values)
    if not program.latent_sites:
        return _of_nothing(given, batch, log_shared, num_particles, zero)
    posterior = guide.posterior(*batch, given=values or None)
    surrogate = guide.map.surrogate()
    z, log_guide = posterior.draw(num_particles)
    terms = log_guide.new_zeros(len(posterior)) if surrogate is None else surrogate
    return Draws(given, z, log_guide, posterior, log_shared, terms, zero)


def _run_of(guide: ProgramLike, program: Program, batch: Batch, num_particles: int) -> Run:
    """Runs a guide on several copies of the rows; refuses a guide that accepts only one."""
    try:
        return program.run_guide(guide, repeat_rows(batch, num_particles))
    except Exception as error:
        if num_particles == 1 or not can_be_run(program, guide, batch):
            raise
        size = len(batch[0])
        raise TypeError(
            f"this objective calls the guide with {count_of(num_particles, 'copy')} of each row, "
            f"but the guide works only for exactly {count_of(size, 'row')} "
            f"({type(error).__name__}): either index the parameters per row with the plate's "
            "indices (`with pyro.plate('data', len(y)) as i:`, then `loc[i]`), or train the guide "
            f"with Trace_ELBO(), or use pv.Guide(model, pv.LocalParameters({size}))"
        ) from error


def _from_program(guide: ProgramLike, program: Program, batch: Batch, num_particles: int) -> Draws:
    """Draws particles from a guide written by hand, by a run on repeated rows."""
    rows = repeat_rows(batch, num_particles)
    run = _run_of(guide, program, batch, num_particles)
    latent = {site.name for site in program.latent_sites}
    shared = {site.name for site in program.global_sites}
    check_sites(program, run, latent | shared)
    sites = density_sites(run)
    _check_reparameterized(sites)
    sampled = {site.name for site in sites}
    zero = torch.zeros((), dtype=program.dtype, device=batch[0].device)
    log_shared = total_log_prob(shared_densities(program, run), zero)
    factors = total_log_prob(_without(run.outside, sampled), zero)
    given = program.given(run.values(shared))
    if not latent:
        return _of_nothing(given, batch, log_shared, num_particles, factors)
    z, jacobian = program.latents_of(run)
    size = len(batch[0])
    drawn = [site for name, site in run.inside.items() if name in sampled]
    drawn = [site for site in drawn if not is_determined(program, site)]
    if any(site.is_auxiliary for site in drawn):
        drawn = without_auxiliary(program, drawn)
    by_row = [log_density(program, site, len(rows[0])) for site in drawn]
    log_guide = jacobian + completed(given, run, rows, torch.stack(by_row).sum(dim=0))
    terms = torch.zeros_like(log_guide)
    for site in _without(run.inside, sampled):
        log_prob = site.log_prob_by_datum(program.plate_dim)
        require_by_datum(program, site, log_prob, len(rows[0]))
        terms = terms - log_prob
    return Draws(
        given,
        z.view(num_particles, size, -1),
        log_guide.view(num_particles, size),
        ProgramPosterior(given, guide, batch),
        log_shared,
        terms.view(num_particles, size).mean(dim=0),
        -factors,
    )


def _without(sites: Mapping[str, TracedSite], names: Collection[str]) -> list[TracedSite]:
    return [site for name, site in sites.items() if name not in names]


def _of_nothing(
    program: Program, batch: Batch, log_shared: Tensor, num_particles: int, factors: Tensor
) -> Draws:
    """Returns empty draws, for a program whose local latent sites are all summed out."""
    posterior = NoLatents.of(program, batch)
    z, log_guide = posterior.draw(num_particles)
    return Draws(program, z, log_guide, posterior, log_shared, log_guide[0], -factors)


def _check_reparameterized(sites: list[TracedSite]) -> None:
    """Refuses sites whose draws are not reparameterized and so carry no gradient."""
    for site in sites:
        if not site.distribution.has_rsample and site.log_prob.requires_grad:
            raise ValueError(
                f"site '{site.name}' of the guide must have a reparameterized distribution; got "
                f"{type(site.distribution).__name__}, whose draws carry no gradient: use a "
                "distribution with rsample, or train with Trace_ELBO(), which has a "
                "score-function gradient"
            )
