"""Data whose posterior lies at an edge of a support, where something else needs the value itself.

Densities of sparse priors hold at the edges (:mod:`pyro_vae.programs.edges`), but a program sees a
value: a number near 1 that rounds to 1, or one below the smallest there is. Mostly that is no
matter, since nothing changes there any more. Whether it does is told by moving such a value away
from the edge, by a little that can be told: where the densities of the other sites change, they
have changed by what was rounded away, too.
"""

from collections.abc import Collection
from typing import Any

import pyro
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.distributions import constraints

from .._types import Batch
from ..programs import Program, Run, TracedSite, repeat_rows
from ..randomness import forked
from ..results import Doubt, Doubts

_DRAWS = 500  # of the prior, for every datum
_SHARE = 0.005  # of the posterior: as many nats are lost
_FLAT = 0.01  # nats: a density that changes by less is the same
_STEP = 16.0  # roundings, so that what one rounding takes away is a part of the change
_TRIED = 4  # rows that tell whether the prior comes near an edge at all


def edge_doubts(program: Program, batch: Batch) -> Doubts:
    """The doubt, where it holds for some data."""
    at_edge = saturated(program, batch)
    return {Doubt.SATURATED: at_edge} if bool(at_edge.any()) else {}


def saturated(program: Program, batch: Batch) -> Bool[Tensor, " batch"]:
    """Whether a part of a datum's posterior lies where a latent rounds to an edge of its support.

    Draws of the prior are weighed by the likelihood, which is finite at the edges.
    """
    nobody = torch.zeros(len(batch[0]), dtype=torch.bool)
    if all(site.is_real for site in program.latent_sites):
        return nobody
    with forked(0, "saturation"), pyro.validation_enabled(is_validate=False), torch.no_grad():
        few = repeat_rows(tuple(part[:_TRIED] for part in batch), _DRAWS)
        if not bool(_at_edge(program, program.run(few)).any()):
            return nobody
        rows = (tuple(part[row : row + 1] for part in batch) for row in range(len(batch[0])))
        return torch.stack([_share(program, row) > _SHARE for row in rows]).cpu()


def _share(program: Program, row: Batch) -> Tensor:
    """The share of a datum's posterior that lies at an edge where something depends on it."""
    batch = repeat_rows(row, _DRAWS)
    run = program.run(batch)
    likelihood = _total(program, run, program.observed_names)
    edge = _at_edge(program, run)
    edge &= _moved(program, run, batch) > _FLAT
    log_weights = likelihood.nan_to_num(-torch.inf).double()
    share = log_weights.masked_fill(~edge, -torch.inf).logsumexp(0) - log_weights.logsumexp(0)
    return share.exp().nan_to_num(0.0)


def _total(program: Program, run: Run, names: Collection[str]) -> Tensor:
    parts = [run[name].log_prob_by_datum(program.plate_dim) for name in names]
    return torch.stack(parts).sum(dim=0)


def _moved(program: Program, run: Run, batch: Batch) -> Tensor:
    """The change of the log density, in nats, when values are moved away from their edges.

    Those known by unconstrained values keep them: what they say of other sites' values counts.
    """
    drawn = run.values(name for name, site in run.inside.items() if not site.is_observed)
    moved = {site.name: _inwards(run[site.name]) for site in program.latent_sites}
    others = program.run(batch, {**drawn, **moved}, run.unconstrained)
    names = [*drawn, *program.observed_names]
    change = [_total(program, others, [name]) - _total(program, run, [name]) for name in names]
    return torch.stack(change).abs().sum(dim=0).nan_to_num(torch.inf)


def _at_edge(program: Program, run: Run) -> Tensor:
    """Whether a latent of a row is at an edge, `(rows,)`."""
    sites = [site for site in program.latent_sites if not site.is_real]
    return torch.stack([_rounds(run[site.name], site.axis) for site in sites]).any(dim=0)


def _rounds(site: TracedSite, axis: int) -> Tensor:
    """Whether an entry of the value cannot be told from a bound of its support."""
    low, high = _beside_bounds(site)
    at_edge = (site.value <= low) | (site.value >= high)
    return at_edge.movedim(axis, 0).flatten(1).any(dim=1) if at_edge.dim() > 1 else at_edge


def _inwards(site: TracedSite) -> Tensor:
    """The value, with what is at an edge moved to where the move can be told."""
    value, (low, high) = site.value, _beside_bounds(site, _STEP)
    if _entry_support(site) is constraints.simplex:
        edge = ((value <= low) | (value >= high)).any(dim=-1, keepdim=True)
        some = _STEP * torch.finfo(value.dtype).eps
        return torch.where(edge, value * (1 - some) + some / value.shape[-1], value)
    return value.clamp(low, high)


def _beside_bounds(site: TracedSite, steps: float = 2.0) -> tuple[Tensor, Tensor]:
    """Values at which a site is so many roundings away from its bounds."""
    value, support = site.value, _entry_support(site)
    limits, is_simplex = torch.finfo(value.dtype), support is constraints.simplex
    low = 0.0 if is_simplex else getattr(support, "lower_bound", -torch.inf)
    high = 1.0 if is_simplex else getattr(support, "upper_bound", torch.inf)
    low, high = (torch.as_tensor(bound).to(value) for bound in (low, high))
    least = steps * limits.tiny / limits.eps  # beside 0
    spaces = ((steps * limits.eps * bound.abs()).clamp(min=least) for bound in (low, high))
    below, above = (space.where(space < torch.inf, 0.0) for space in spaces)
    return low + below, high - above


def _entry_support(site: TracedSite) -> Any:
    support: Any = site.distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support
