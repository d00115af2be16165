r"""Checks latents with bounded supports by draws from the prior.

*Mass near an edge.* The unconstrained value :math:`u` of a latent with bounded support (:math:`\log
x`, or the logit of a probability) has a density that falls exponentially, as :math:`e^{a u}` for a
concentration :math:`a`. A normal proposal falls faster. The largest weights are then so rare that
perhaps none of them is drawn, and the other weights look harmless. The prior has the same tail as
the posterior, so prior draws give a second estimate of p(y). A datum is in doubt unless

.. math:: \frac{\hat p_{\text{prior}} - \hat p}
    {\sqrt{\mathrm{se}(\hat p_{\text{prior}})^2 + \mathrm{se}(\hat p)^2}} \le 4 .

*Rounded values.* The densities of sparse priors are accurate at the edges of the support
(:mod:`pyro_vae.programs.edges`). But the program itself is given a rounded value: 1 for a number
near 1, or 0 for a number below the smallest positive one. Usually this changes nothing. As a check,
the value is moved away from the edge by the smallest step that survives rounding. If this step
changes the densities of other sites, the rounding has affected these densities, too.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pyro
import torch
from jaxtyping import Bool, Float
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from .. import stats
from .._types import Batch, Estimate
from ..programs import LogDensities, Program, Run, TracedSite
from ..programs.edges import bounds_of, entry_of, support_of
from ..programs.pieces import in_pieces, take_rows
from ..programs.traces import repeat_rows, retry_unvalidated
from ..randomness import forked
from ..results import Doubt, join
from .results import Bound, LogMarginal
from .weights import require_evidence, rows_at_once

_PRIOR_DRAWS = 1000  # prior draws per datum for the second estimate
_JOINT_ERRORS = 4.0  # largest difference of the two estimates, in units of their joint error
_DRAWS = 500  # prior draws per datum for the check of rounded values
_SHARE = 0.005  # tolerated share of the posterior at edges, which is about the error in nats
_FLAT = 0.01  # nats: smaller changes of a log density are ignored
_STEP = 16.0  # size of the step in units of eps, so that it exceeds a single rounding
_TRIED = 4  # draws at which a datum's prior is compared with that of the first datum
_ROUNDING = 1e-4  # rounding error of log densities in float32, absolute and relative
_ROWS_AT_ONCE = 4096  # rows of the program's batch; images of this number take a few mebibytes

_OfDraws = Callable[["PriorDraws", Batch], Float[Tensor, "rows numbers"]]


@dataclass(frozen=True)
class PriorDraws:
    """Draws from the prior of the first datum, used for all data with the same prior.

    Arguments:
        program: The model.
        row: The first datum.
        run: The run of the program, on copies of `row`, in which the draws were made.
        num_draws: Number of draws.
        name: Name of the random stream for the draws.
    """

    program: Program
    row: Batch
    run: Run
    num_draws: int
    name: str

    @staticmethod
    def of(
        program: Program, batch: Batch, num_draws: int, name: str = "prior check"
    ) -> "PriorDraws":
        """Draws the first datum's latents from their prior; observed values have no influence.

        Arguments:
            program: The model.
            batch: The data.
            num_draws: Number of draws.
            name: Name of the random stream for the draws.
        """
        row = take_rows(batch, slice(1))
        with forked(0, name):
            run = retry_unvalidated(partial(program.run, repeat_rows(row, num_draws)))
        return PriorDraws(program, row, run, num_draws, name)

    def latents(self, batch: Batch, limit: int) -> Float[Tensor, "draws batch latents"]:
        """Returns draws from each datum's prior, as flat unconstrained vectors.

        Data whose prior differs from that of the first datum get draws of their own.

        Arguments:
            batch: The data.
            limit: Number of rows that the program can evaluate at once.
        """
        alike = self.of_same_prior(batch, limit)
        z = self.program.latents_of(self.run)[0].unsqueeze(1).expand(-1, len(alike), -1)
        if bool(alike.all()):
            return z
        z = z.clone()
        for row, _, draws in self.of_others(batch, alike):
            z[:, row] = self.program.latents_of(draws.run)[0]
        return z

    def of_others(
        self, batch: Batch, alike: Bool[Tensor, " batch"]
    ) -> "Iterator[tuple[int, Batch, PriorDraws]]":
        """Yields each datum outside the mask `alike`: row number, row, and draws from its prior."""
        for row in (~alike).nonzero()[:, 0].tolist():
            own = take_rows(batch, slice(row, row + 1))
            yield row, own, PriorDraws.of(self.program, own, self.num_draws, self.name)

    def log_densities(
        self, rows: Batch, some: Tensor | None = None, values: Mapping[str, Tensor] | None = None
    ) -> LogDensities:
        """Computes the log prior and log likelihood of the draws for some data, `(draws, rows)`.

        Arguments:
            rows: The data.
            some: Indices of the draws to use; by default all draws.
            values: Values of the latent sites; by default the drawn values.
        """
        program, num_rows = self.program, len(rows[0])
        axes = {site.name: site.axis for site in program.latent_sites}
        some = torch.arange(self.num_draws, device=rows[0].device) if some is None else some
        values = self.run.values(axes) if values is None else values

        def repeated(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
            """Selects draws, and repeats each of them once per row."""
            return {
                name: group[name].index_select(axis, some).repeat_interleave(num_rows, axis)
                for name, axis in axes.items()
                if name in group
            }

        many, unconstrained = repeat_rows(rows, len(some)), repeated(self.run.unconstrained)
        with poutine.block():
            call = partial(program.weighed, repeated(values), many, unconstrained)
            densities, _ = retry_unvalidated(call)
        return LogDensities(*(part.unflatten(0, (-1, num_rows)) for part in densities))

    def of_same_prior(self, batch: Batch, limit: int) -> Bool[Tensor, " rows"]:
        """Returns a mask of data whose prior densities at a few draws equal the first datum's.

        Arguments:
            batch: The data.
            limit: Number of rows that the program can evaluate at once.
        """
        few = torch.arange(_TRIED, device=batch[0].device)
        found = []
        for rows in in_pieces(limit // _TRIED - 1, *batch):
            beside = tuple(torch.cat(pair) for pair in zip(self.row, rows, strict=True))
            prior = self.log_densities(beside, few).prior
            close = torch.isclose(prior, prior[:, :1], _ROUNDING, _ROUNDING, equal_nan=True)
            found.append(close.all(dim=0)[1:])
        return torch.cat(found)


def _with_draws(
    program: Program, batch: Batch, num_draws: int, answer: _OfDraws
) -> Float[Tensor, "batch numbers"]:
    """Returns the numbers that `answer` computes for every datum from draws of the datum's prior.

    Data with the same prior use the same draws.

    Arguments:
        program: The model.
        batch: The data.
        num_draws: Number of draws.
        answer: Function of prior draws and some data; it returns a row of numbers for each datum.
    """
    draws = PriorDraws.of(program, batch, num_draws)
    size = rows_at_once(program, batch)
    alike = draws.of_same_prior(batch, size)
    shared = (part[alike] for part in batch)
    whole = torch.cat([answer(draws, rows) for rows in in_pieces(size // num_draws, *shared)])
    if bool(alike.all()):
        return whole
    numbers = whole.new_empty(len(alike), whole.shape[1])
    numbers[alike] = whole
    for row, own, own_draws in draws.of_others(batch, alike):
        numbers[row] = answer(own_draws, own)[0]
    return numbers


def from_each_prior(
    program: Program, batch: Batch, num_draws: int
) -> tuple[
    Float[Tensor, "draws batch latents"], Float[Tensor, "draws batch"], Float[Tensor, "draws batch"]
]:
    """Returns draws of each datum's prior, with the log prior and log likelihood at these draws.

    Data with the same prior use the same draws. A density that is not a number counts as zero.

    Arguments:
        program: The model.
        batch: The data.
        num_draws: Number of draws per datum.
    """
    size = min(_ROWS_AT_ONCE, rows_at_once(program, batch, memory=64.0))
    z = PriorDraws.of(program, batch, num_draws, "fit.starts").latents(batch, size)
    z = torch.where(z.isfinite(), z, 0.0)
    found = []
    for some, rows in zip(z.split(size, dim=1), in_pieces(size, *batch), strict=True):
        pieces = some.split(max(1, size // len(rows[0])))
        calls = [partial(program.log_densities, piece, *rows) for piece in pieces]
        found.append(join([retry_unvalidated(call) for call in calls]))
    prior, likelihood = join(found, axis=1)
    return z, prior.nan_to_num(-torch.inf), likelihood.nan_to_num(-torch.inf)


def edge_doubts(
    program: Program, batch: Batch, result: LogMarginal | None = None
) -> dict[Doubt, Bool[Tensor, " batch"]]:
    """Returns those doubts about latents with bounded supports that apply to at least one datum.

    Arguments:
        program: The model.
        batch: The data.
        result: An estimate of log p(y). It is compared with an estimate from draws of the prior,
            unless `result` is exact or already contains this comparison.
    """
    if all(site.is_real for site in program.latent_sites):
        return {}
    doubts = {Doubt.SATURATED: saturated(program, batch)}
    exact = result is None or result.bound is Bound.EXACT
    if result is not None and not exact and Doubt.MISSED_MASS not in result.doubts:
        doubts[Doubt.MISSED_MASS] = missed_mass(result, from_prior(program, batch))
    return {doubt: rows for doubt, rows in doubts.items() if bool(rows.any())}


def from_prior(program: Program, batch: Batch) -> Estimate:
    """Estimates log p(y) by the log of the mean likelihood at prior draws.

    Data with the same prior use the same draws. Value and error are `(batch,)`, in nats.

    Arguments:
        program: The model.
        batch: The data.

    Raises:
        FloatingPointError: If the likelihood of a draw is not a number.
    """
    value, error = _with_draws(program, batch, _PRIOR_DRAWS, _by_prior).unbind(dim=1)
    name = "log p(y), estimated from draws of the prior,"
    require_evidence(value, name, "the parameters of the observed sites")
    return Estimate(value, error)


def _by_prior(draws: PriorDraws, rows: Batch) -> Float[Tensor, "rows 2"]:
    """Returns estimates of log p(y) from prior draws, and their standard errors."""
    log_likelihood = draws.log_densities(rows).likelihood.double()
    return torch.stack(stats.log_marginal(log_likelihood), dim=1)


def missed_mass(result: LogMarginal, prior: Estimate) -> Bool[Tensor, " batch"]:
    """Returns a mask of the data whose `result` is significantly below `prior`.

    Both are estimates of log p(y); those in `prior` come from draws of the prior.
    """
    value, error = (part.to(result.value) for part in prior)
    share = (result.value - value).exp()  # the result's p(y) over that from prior draws
    spread = (error.square() + (share * result.error).square()).sqrt()
    return share < 1 - _JOINT_ERRORS * spread - stats.rounding(value)


def saturated(program: Program, batch: Batch) -> Bool[Tensor, " batch"]:
    """Returns a mask of the data whose posterior has mass where latents round to an edge.

    Only mass for which the rounding changes the density of another site counts. The mass is
    estimated from prior draws, weighted by the likelihood, which is finite at the edges.
    """
    with pyro.validation_enabled(is_validate=False), torch.no_grad():
        return _with_draws(program, batch, _DRAWS, _shares)[:, 0] > _SHARE


def _shares(draws: PriorDraws, rows: Batch) -> Float[Tensor, "rows 1"]:
    """Estimates each posterior's share of mass at edges where rounding changes other densities."""
    edge = _at_edge(draws)
    if not bool(edge.any()):
        return torch.zeros(len(rows[0]), 1, dtype=torch.float64, device=edge.device)
    weights = draws.log_densities(rows).likelihood.nan_to_num(-torch.inf).double()
    counts = torch.zeros_like(weights, dtype=torch.bool)
    counts[edge] = _moved(draws, edge.nonzero()[:, 0], rows) > _FLAT
    share = weights.masked_fill(~counts, -torch.inf).logsumexp(0) - weights.logsumexp(0)
    return share.exp().nan_to_num(0.0).unsqueeze(1)


def _moved(draws: PriorDraws, edge: Tensor, rows: Batch) -> Float[Tensor, "edge rows"]:
    """Computes by how many nats the log densities change if latents move off their edges.

    A moved latent's own density does not change, because it is computed from the unconstrained
    value, which stays the same. So only the densities of other sites change.

    Arguments:
        draws: The prior draws.
        edge: Indices of the draws with a latent at an edge.
        rows: The data.
    """
    inwards = {site.name: _inwards(draws.run[site.name]) for site in draws.program.latent_sites}
    pair = (draws.log_densities(rows, edge, values) for values in (None, inwards))
    change = [(after - before).abs() for before, after in zip(*pair, strict=True)]
    return sum(change).nan_to_num(torch.inf)


def _at_edge(draws: PriorDraws) -> Bool[Tensor, " draws"]:
    """Returns a mask of the draws in which some latent rounds to an edge of its support."""
    found = []
    for latent in draws.program.latent_sites:
        if not latent.is_real:
            site = draws.run[latent.name]
            low, high = _beside_bounds(site)
            at_edge = ((site.value <= low) | (site.value >= high)).movedim(latent.axis, 0)
            found.append(at_edge.reshape(draws.num_draws, -1).any(dim=1))
    return torch.stack(found).any(dim=0)


def _inwards(site: TracedSite) -> Tensor:
    """Returns a site's value, with entries at an edge of the support moved inwards."""
    value, (low, high) = site.value, _beside_bounds(site, _STEP)
    if entry_of(support_of(site.distribution)) is constraints.simplex:
        edge = ((value <= low) | (value >= high)).any(dim=-1, keepdim=True)
        some = _STEP * torch.finfo(value.dtype).eps
        return torch.where(edge, value * (1 - some) + some / value.shape[-1], value)
    return value.clamp(low, high)


def _beside_bounds(site: TracedSite, steps: float = 2.0) -> tuple[Tensor, Tensor]:
    """Returns a site's bounds, each moved inwards by `steps` times the rounding unit."""
    limits = torch.finfo(site.value.dtype)
    low, high = bounds_of(support_of(site.distribution), site.value)
    least = steps * limits.tiny / limits.eps  # beside 0
    spaces = ((steps * limits.eps * bound.abs()).clamp(min=least) for bound in (low, high))
    below, above = (space.where(space < torch.inf, 0.0) for space in spaces)
    return low + below, high - above
