"""Data whose posterior lies at an edge of a support, beyond what its numbers can hold.

A sparse prior, such as a Dirichlet of concentration 0.03, puts much of its mass so near a corner
that a coordinate rounds to 0 or to 1. There the change of variables and the density are those of
the rounded value: evidence misses that mass, or counts it more than once.
"""

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
    """The share of a datum's posterior that lies at an edge."""
    run = program.run(repeat_rows(row, _DRAWS))
    observed = [run[name].log_prob_by_datum(program.plate_dim) for name in program.observed_names]
    log_weights = torch.stack(observed).sum(dim=0).nan_to_num(-torch.inf).double()
    edge = log_weights.masked_fill(~_at_edge(program, run), -torch.inf)
    return (edge.logsumexp(0) - log_weights.logsumexp(0)).exp().nan_to_num(0.0)


def _at_edge(program: Program, run: Run) -> Tensor:
    """Whether a latent of a row is at an edge, `(rows,)`."""
    sites = [site for site in program.latent_sites if not site.is_real]
    return torch.stack([_rounds(run[site.name], site.axis) for site in sites]).any(dim=0)


def _rounds(site: TracedSite, axis: int) -> Tensor:
    """Whether an entry of the value cannot be told from a bound of its support."""
    value, support = site.value, site.distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    is_simplex = support is constraints.simplex
    low = 0.0 if is_simplex else getattr(support, "lower_bound", -torch.inf)
    high = 1.0 if is_simplex else getattr(support, "upper_bound", torch.inf)
    limits = torch.finfo(value.dtype)
    at_edge = (value - low <= limits.tiny / limits.eps) | (high - value <= 2 * limits.eps)
    return at_edge.movedim(axis, 0).flatten(1).any(dim=1) if at_edge.dim() > 1 else at_edge
