r"""Checks latents with bounded supports by draws of the prior.

*Mass near an edge.* The unconstrained value of such a latent (log x, the logit of p) has a density
that falls exponentially, :math:`e^{a u}` for a concentration a, while a normal proposal falls
faster. The largest weights are then so rare that none of them may be drawn, and the others look
harmless. The prior falls as the posterior does, and its draws give a second estimate:

.. math:: \frac{\hat p_{\text{prior}} - \hat p}
    {\sqrt{\mathrm{se}(\hat p_{\text{prior}})^2 + \mathrm{se}(\hat p)^2}} \le 4

*Values that round.* Densities of sparse priors hold at the edges
(:mod:`pyro_vae.programs.edges`), but a program sees a value: a number near 1 that rounds to 1, or
one below the smallest positive number. Usually this changes nothing. To find out, such a value is
moved away from the edge by the smallest step that does not round: if the densities of the other
sites change, then the rounding has changed them as well.
"""

from collections.abc import Collection
from functools import partial

import pyro
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.distributions import constraints

from .. import stats
from .._types import Batch, Estimate
from ..programs import (
    Prior,
    Program,
    Run,
    TracedSite,
    bounds_of,
    entry_of,
    repeat_rows,
    retry_unvalidated,
    support_of,
)
from ..randomness import forked, row_keys, seeded
from ..results import Doubt, Doubts
from .results import Bound, LogMarginal
from .weights import require_numbers

_PRIOR_DRAWS = 1000  # for every datum
_JOINT_ERRORS = 4.0  # by which two estimates may differ
_DRAWS = 500  # of the prior, for every datum that may lie at an edge
_SHARE = 0.005  # of the posterior: as many nats are lost
_FLAT = 0.01  # nats: a density that changes by less is the same
_STEP = 16.0  # roundings, so that what one rounding takes away is a part of the change
_TRIED = 4  # rows that tell whether the prior comes near an edge at all


def edge_doubts(program: Program, batch: Batch, result: LogMarginal | None = None) -> Doubts:
    """Doubts about latents with bounded supports, each where it holds for some data.

    Arguments:
        program: The model.
        batch: The data.
        result: An estimate of log p(y), held against draws of the prior unless it was already.
    """
    if all(site.is_real for site in program.latent_sites):
        return {}
    doubts = {Doubt.SATURATED: saturated(program, batch)}
    exact = result is None or result.bound is Bound.EXACT
    if result is not None and not exact and Doubt.MISSED_MASS not in result.doubts:
        doubts[Doubt.MISSED_MASS] = missed_mass(result, from_prior(program, batch))
    return {doubt: rows for doubt, rows in doubts.items() if bool(rows.any())}


def from_prior(
    program: Program, batch: Batch, keys: Int64[Tensor, " batch"] | None = None
) -> Estimate:
    """Log p(y) from draws of the prior alone, each `(batch,)`, in nats.

    Arguments:
        program: The model.
        batch: The data.
        keys: Keys of the draws of each datum; by default made from its content.

    Raises:
        FloatingPointError: If the likelihood of a draw is not a number.
    """
    keys = row_keys(0, "prior check", *batch) if keys is None else keys
    prior, rows = Prior(program, batch), range(len(keys))
    with torch.random.fork_rng():  # what programs draw afterwards has its own stream
        found = [_from_prior(prior, row, int(keys[row])) for row in rows]
    return Estimate(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _from_prior(prior: Prior, row: int, key: int) -> Estimate:
    """Log p(y) of one datum, by one run of the program."""
    seeded(key)
    own = prior.rows(slice(row, row + 1))
    z, log_likelihood = retry_unvalidated(partial(own.weighed, _PRIOR_DRAWS))
    require_numbers("log_likelihood", log_likelihood, z, [row])
    return stats.log_marginal(log_likelihood.double())


def missed_mass(result: LogMarginal, prior: Estimate) -> Bool[Tensor, " batch"]:
    """Data for which draws of the prior find more mass than a result has, beyond both errors."""
    value, error = (part.to(result.value) for part in prior)
    share = (result.value - value).exp()  # of what the prior found
    spread = (error.square() + (share * result.error).square()).sqrt()
    return share < 1 - _JOINT_ERRORS * spread - stats.rounding(value)


def saturated(program: Program, batch: Batch) -> Bool[Tensor, " batch"]:
    """Whether a part of a datum's posterior lies where a latent rounds to an edge of its support.

    Draws of the prior are weighted by the likelihood, which is finite at the edges.
    """
    nobody = torch.zeros(len(batch[0]), dtype=torch.bool)
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

    Sites with known unconstrained values keep them, so that only their effect on others is seen.
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
    """The value, with entries at an edge moved to the nearest number that does not round."""
    value, (low, high) = site.value, _beside_bounds(site, _STEP)
    if entry_of(support_of(site.distribution)) is constraints.simplex:
        edge = ((value <= low) | (value >= high)).any(dim=-1, keepdim=True)
        some = _STEP * torch.finfo(value.dtype).eps
        return torch.where(edge, value * (1 - some) + some / value.shape[-1], value)
    return value.clamp(low, high)


def _beside_bounds(site: TracedSite, steps: float = 2.0) -> tuple[Tensor, Tensor]:
    """Values of a site that are a given number of roundings away from its bounds."""
    limits = torch.finfo(site.value.dtype)
    low, high = bounds_of(support_of(site.distribution), site.value)
    least = steps * limits.tiny / limits.eps  # beside 0
    spaces = ((steps * limits.eps * bound.abs()).clamp(min=least) for bound in (low, high))
    below, above = (space.where(space < torch.inf, 0.0) for space in spaces)
    return low + below, high - above
