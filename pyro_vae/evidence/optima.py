r"""Finds the best member of a family for each datum, from several starting points.

Rough fits, accurate to 0.01 nats, show which optimum of the ELBO is the highest. Only the best fit
is run to convergence. If the fits end at different optima, or if draws of the prior show mass far
from the best fit, a search from further draws follows. The search ends when a round of fits finds
no better optimum, at the latest after three rounds. The fits of a datum do not depend on other
data.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .. import stats
from .._types import Batch
from ..guides import ClosestNormal, Family, FitRows, MomentMatching, RowFit
from ..guides.row_fits import elbo_over_points, fit_parameters
from ..programs import Program
from ..programs.pieces import slices, take_rows
from ..programs.traces import repeat_rows
from ..randomness import stream
from ..results import join
from .saturation import from_each_prior

NARROW = 0.1  # standard deviation about the likeliest draw, so that the fit stays near the draw
PROBED_AT_ONCE = 256  # number of data at a time, each fitted from all starts at once
HILLS = 1e-2  # nats: accurate enough to tell which optimum is the highest
_DIFFERENT = 0.05  # nats: if fits over the same points differ by more, their optima differ
_TIED = 0.02  # nats: if fits differ by more, perhaps by chance, they are compared over more points
_MOVED = 0.5  # shift in standard deviations, or log ratio of these, between different optima
_REACH = 4.0  # standard deviations of a squared distance above its mean, from which a draw is far
_ENOUGH = 1.6  # nats, log 5: a search follows if draws show a fifth of the mass of a better q
SEARCHED = 256  # prior draws among which the search for better optima chooses its starts
_ROUNDS, _PER_ROUND = 3, 16  # rounds of the search, and draws from which each of them starts
_WIDTHS = (0.1, 0.6)  # standard deviations of the starts about each of these draws
_JUDGED = 4  # best fits of a round, which are compared over more points
_UNSURE = 4.0  # standard errors: a larger difference between two fits is not due to chance
_JUDGES = 16  # factor on the number of points for fits whose difference may be due to chance


def best_of_family(
    program: Program,
    batch: Batch,
    family: Family,
    starts: Sequence[Float[Tensor, "batch parameters"]],
    fitting: FitRows,
    *,
    seed: int = 0,
    progress: bool | None = None,
    refit: bool = True,
) -> RowFit:
    """Fits a family to each posterior from several starting points, and returns the best fits.

    All fits run until they are accurate to 0.01 nats. For each datum, the fit with the highest ELBO
    then runs to convergence. If a datum's ELBO is not finite at a starting point other than the
    first, this fit of the datum starts at the first starting point instead.

    Arguments:
        program: The model.
        batch: The data.
        family: The family to fit.
        starts: Starting points, each with the parameters of every datum.
        fitting: The settings of the fits.
        seed: Seed of the random points with which the ELBO is estimated.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.
        refit: Whether to search for better optima from further starting points, and to fit a datum
            again with more random points if its fit overfitted the points.

    Returns:
        The fits. A datum also counts as not converged if the last round of the search for better
        optima still found one.

    Raises:
        FloatingPointError: If the ELBO of a datum is not a number at the first starting point.
    """
    start = starts[0]
    unsettled = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    if len(starts) > 1:
        # Rough fits show which mode is the highest; the final fit is judged on other draws.
        rough = replace(fitting, tolerance=max(fitting.tolerance, HILLS))
        search = _Search(program, batch, family, rough, seed)
        found = list(search.fits(starts, start))
        start = search.highest(found)
        if refit:
            parts = []
            for rows in slices(len(start), PROBED_AT_ONCE):
                some = replace(search, batch=take_rows(batch, rows))
                parts.append(some.from_draws([fit[rows] for fit in found], start[rows]))
            start, unsettled = join(parts)
    fit = fit_parameters(
        program, family, batch, start, fitting, seed=seed, progress=progress, refit=refit
    )
    return replace(fit, converged=fit.converged & ~unsettled)


@dataclass(frozen=True)
class _Search:
    """Rough fits of a family to some data, and the search for the highest optimum of the ELBO.

    Arguments:
        program: The model.
        batch: The data.
        family: The family.
        fitting: The settings of the rough fits.
        seed: Seed of the random points with which the ELBO is estimated.
    """

    program: Program
    batch: Batch
    family: Family
    fitting: FitRows
    seed: int

    def fits(
        self,
        starts: Iterable[Float[Tensor, "batch parameters"]],
        instead: Float[Tensor, "batch parameters"],
    ) -> Iterator[RowFit]:
        """Yields the fit from each starting point.

        All fits estimate the ELBO from the same random points. If the ELBO of a datum is not finite
        at a starting point, the datum's fit starts at `instead`.
        """
        problem, own = (self.program, self.family, self.batch), stream(self.seed, "fit.rough")
        for start in starts:
            if start is not instead:
                _, usable = elbo_over_points(*problem, start, self.fitting, seed=own)
                start = torch.where(usable[:, None], start, instead)
            yield fit_parameters(*problem, start, self.fitting, seed=own, refit=False)

    def values(self, rows: Tensor, parameters: Tensor) -> Tensor:
        """Estimates the ELBO of given parameters from many points, the same in every call."""
        part = take_rows(self.batch, rows)
        own, many = stream(self.seed, "fit.places"), self.fitting.times(_JUDGES)
        found, _ = elbo_over_points(self.program, self.family, part, parameters, many, seed=own)
        return found.nan_to_num(-torch.inf)

    def highest(self, found: Sequence[RowFit]) -> Float[Tensor, "batch parameters"]:
        """Returns, for each datum, the parameters of the fit with the highest ELBO.

        If a difference between ELBOs could be due to chance, the ELBOs are estimated again with
        more points.
        """
        parameters = torch.stack([fit.parameters for fit in found])
        behind, error, differ, best, _ = _ends(self.family, found)
        unsure = (differ | (behind > _TIED)) & (behind < _UNSURE * error)
        some = unsure.any(dim=0).nonzero().squeeze(-1)
        if len(some) > 0:
            values = torch.stack([self.values(some, places[some]) for places in parameters])
            best[some] = values.argmax(dim=0)
        return parameters[best, torch.arange(len(best), device=best.device)]

    def from_draws(
        self, found: Sequence[RowFit], start: Float[Tensor, "batch parameters"]
    ) -> tuple[Tensor, Bool[Tensor, " batch"]]:
        """Searches for better optima of the ELBO, with fits that start at draws of the prior.

        A datum is searched if its first fits ended at different optima, or if prior draws show mass
        far from its best fit. The fits of a round start at likely draws that are far from each
        other and from earlier starting points. If a round finds a better optimum, there may be
        more, so another round follows.

        Arguments:
            found: The first fits.
            start: Parameters of each datum's best fit.

        Returns:
            The best parameters of every datum, and a mask of the unsettled data, for which the last
            round still found a better optimum.
        """
        z, prior, likelihood = from_each_prior(self.program, self.batch, SEARCHED)
        ends, best = _ends(self.family, found), start.clone()
        searched = ends.differ.any(dim=0) | self._elsewhere(best, ends.elbo, z, likelihood)
        unsettled, rows = torch.zeros_like(searched), searched.nonzero().squeeze(-1)
        if len(rows) == 0:
            return best, unsettled
        places = torch.stack([fit.parameters[rows] for fit in found])
        height = prior[:, rows] + likelihood[:, rows]
        draws = Draws.of(z[:, rows].to(best), height, self._spread(places))
        value = self.values(rows, best[rows])
        for _ in range(_ROUNDS):
            own, values = self._round(rows, best[rows], draws.apart(_PER_ROUND))
            best[rows] = torch.where((values > value).unsqueeze(-1), own, best[rows])
            better = (values > value + _DIFFERENT).nonzero().squeeze(-1)
            rows, value, draws = rows[better], values[better], draws.rows(better)
            if len(rows) == 0:
                break
        unsettled[rows] = True
        return best, unsettled

    def _spread(
        self, places: Float[Tensor, "fits rows parameters"]
    ) -> Float[Tensor, "rows latents"]:
        """Returns each latent's smallest standard deviation over the fits.

        It is 0.1 for a family whose standard deviation is not known in closed form.
        """
        if _has_moments(self.family):
            return self.family(places).stddev.amin(dim=0)
        size = places.shape[1], self.program.latent_dim
        return torch.full(size, NARROW, dtype=places.dtype, device=places.device)

    def _elsewhere(
        self,
        parameters: Float[Tensor, "batch parameters"],
        elbo: Float[Tensor, " batch"],
        z: Float[Tensor, "draws batch latents"],
        log_likelihood: Float[Tensor, "draws batch"],
    ) -> Bool[Tensor, " batch"]:
        """Returns a mask of data for which a fit far from the fitted q may have a higher ELBO.

        The ELBO of a fit to one region is at most about the log of the region's mass. The mass of
        the region far from q is estimated from the likelihoods of prior draws.
        """
        if not _has_moments(self.family):
            return torch.zeros_like(elbo, dtype=torch.bool)
        q = self.family(parameters)
        far = 2 * (q.log_prob(q.mean) - q.log_prob(z)) > _reach(z.shape[-1])
        return stats.log_mean_exp(log_likelihood.where(far, -torch.inf)) > elbo - _ENOUGH

    def _round(
        self, rows: Tensor, best: Tensor, places: Float[Tensor, "places rows latents"]
    ) -> tuple[Tensor, Tensor]:
        """Runs a round of fits; returns each datum's best parameters in this round, and their ELBO.

        Arguments:
            rows: Row numbers of the data.
            best: Each datum's best parameters so far. A fit starts at these parameters if the ELBO
                at its own starting point is not finite.
            places: Values of the latents on which the starting points are centered.
        """
        flat, number = places.flatten(0, 1), len(places) * len(_WIDTHS)
        starts = [self.family.initial(row, width) for width in _WIDTHS for row in flat]
        many = replace(self, batch=repeat_rows(take_rows(self.batch, rows), number))
        (fit,) = many.fits([torch.stack(starts)], best.repeat(number, 1))
        elbo = fit.elbo.nan_to_num(-torch.inf).view(number, -1)
        ends = fit.parameters.unflatten(0, elbo.shape)
        order = elbo.topk(_JUDGED, dim=0).indices
        every = torch.arange(len(rows), device=rows.device)
        values = torch.stack([self.values(rows, ends[one, every]) for one in order])
        top, which = values.max(dim=0)
        return ends[order[which, every], every], top


@dataclass(frozen=True)
class Draws:
    """Draws of the prior that serve as starting points of fits to some data.

    Arguments:
        z: The draws of every datum.
        rank: Rank of each draw by its log joint, for every datum; the likeliest draw has the
            highest rank.
        spread: Length by which distances between draws are divided, for every datum and latent.
        near: For every draw and datum, whether the draw is near a draw that was chosen earlier.
    """

    z: Float[Tensor, "draws rows latents"]
    rank: Int64[Tensor, "draws rows"]
    spread: Float[Tensor, "rows latents"]
    near: Bool[Tensor, "draws rows"]

    @classmethod
    def of(cls, z: Tensor, height: Tensor, spread: Tensor) -> "Draws":
        """Ranks draws `z` by their log joints `height`; `near` is False for all draws."""
        rank = height.argsort(dim=0).argsort(dim=0)
        return cls(z, rank, spread, torch.zeros_like(rank, dtype=torch.bool))

    def rows(self, rows: Tensor) -> "Draws":
        """Returns the draws for a subset of the data."""
        parts = self.z[:, rows], self.rank[:, rows], self.spread[rows], self.near[:, rows]
        return Draws(*parts)

    def apart(self, number: int) -> Float[Tensor, "number rows latents"]:
        """Chooses likely draws, far from each other and from the draws chosen earlier.

        Draws near a chosen draw are marked, and are chosen only if no unmarked draw is left.
        """
        every = torch.arange(self.rank.shape[1], device=self.z.device)
        size, chosen = len(self.z), []
        for _ in range(number):
            pick = (self.rank - size * self.near.long()).argmax(dim=0)
            chosen.append(self.z[pick, every])
            squares = ((self.z - chosen[-1]) / self.spread).square().sum(dim=-1)
            self.near.logical_or_(squares / 2 < _reach(self.z.shape[-1]))
            self.rank[pick, every] -= 2 * size
        return torch.stack(chosen)


def _has_moments(family: Family) -> bool:
    """Returns whether the family's mean and standard deviation are known in closed form."""
    return isinstance(family, ClosestNormal | MomentMatching)


def _reach(latents: int) -> float:
    """Returns the squared radius of a ball that contains nearly all standard normal draws."""
    return latents + _REACH * math.sqrt(2 * latents)


class _Ends(NamedTuple):
    """A comparison of several fits to the same data.

    Arguments:
        behind: ELBO of the datum's best fit minus the ELBO of each fit, in nats.
        error: Standard error of this difference, in nats.
        differ: Whether a fit and the datum's best fit ended at different optima.
        best: Index of every datum's best fit.
        elbo: ELBO of every datum's best fit, in nats.
    """

    behind: Float[Tensor, "fits batch"]
    error: Float[Tensor, "fits batch"]
    differ: Bool[Tensor, "fits batch"]
    best: Int64[Tensor, " batch"]
    elbo: Float[Tensor, " batch"]


def _ends(family: Family, found: Sequence[RowFit]) -> _Ends:
    """Compares fits by ELBO and, if the family has moments, by mean and standard deviation."""
    elbo = torch.stack([fit.elbo for fit in found]).nan_to_num(-torch.inf)
    error = torch.stack([fit.error for fit in found]).nan_to_num(0.0)
    best, rows = elbo.argmax(dim=0), torch.arange(elbo.shape[1], device=elbo.device)
    behind = elbo[best, rows] - elbo
    differ = behind > _DIFFERENT
    if _has_moments(family):
        q = family(torch.stack([fit.parameters for fit in found]))
        away = (q.mean - q.mean[best, rows]).abs() / q.stddev
        wider = (q.stddev / q.stddev[best, rows]).log().abs()
        differ |= (torch.maximum(away, wider) > _MOVED).any(dim=-1)
    return _Ends(behind, torch.hypot(error, error[best, rows]), differ, best, elbo[best, rows])
