r"""Finds, for each datum separately, the member of a family that is closest to the posterior.

This best member is the reference for a guide (:func:`pyro_vae.inference_gap`). A slightly widened
copy is a good proposal for importance sampling. The full-rank Gaussian closest to the posterior has
the correlations that a mean-field guide lacks, and the extra width covers the tails.

A fit ends at a local optimum, so several starting points are tried: the guide's output, N(0, I),
and the likeliest of some draws of the prior. If the posterior is symmetric about 0 with modes on
both sides, the first two can be saddle points of the ELBO. Rough fits, accurate to 0.01 nats, show
which optimum is the highest. Only the best fit is run to convergence. If the fits end at different
optima, or if draws of the prior show mass far from the best fit, a search from further draws
follows. The search ends when a round of fits finds no better optimum, at the latest after three
rounds. No fit depends on other data.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .. import stats
from .._types import Batch
from ..guides import (
    ClosestNormal,
    DiagonalNormal,
    Family,
    FamilyPosterior,
    FitRows,
    FullRankNormal,
    MomentMatching,
    Posterior,
    RowFit,
    TrainableFamily,
)
from ..guides.row_fits import elbo_over_points, finite_rows, fit_parameters
from ..programs import Program
from ..programs.pieces import slices, take_rows
from ..programs.traces import repeat_rows
from ..randomness import row_keys, stream
from ..results import join
from .proposals import Widened
from .saturation import from_each_prior
from .weights import draw_rows

_START_DRAWS = 64  # number of prior draws among which the likeliest are starting points
_LEAST_SPREAD = 1e-3  # smallest standard deviation of a start, if the guide is nearly a point
_NARROW = 0.1  # standard deviation about the likeliest draw, so that the fit stays near the draw
_PROBES = 16  # number of further starts in the search for modes
_PROBE_POINTS, _PROBE_TOLERANCE = 8, 0.05  # accurate enough to tell in which mode a fit ends
_PROBED_AT_ONCE = 256  # number of data at a time, each fitted from all starts at once
_FAR = 8.0  # squared distance over the sum of both variances: 4 sd if the modes are equally wide
_HILLS = 1e-2  # nats: accurate enough to tell which optimum is the highest
_DIFFERENT = 0.05  # nats between two fits on the same draws: beyond, their optima differ
_TIED = 0.02  # nats: fits farther apart than this are compared again if it may be due to chance
_MOVED = 0.5  # shift in standard deviations, or log ratio of these: beyond, the optima differ
_REACH = 4.0  # standard deviations of the squared distance, beyond which a draw is far from q
_ENOUGH = 1.6  # nats: a search follows if a fifth of the mass is found that a better q requires
_SEARCHED = 256  # prior draws among which the search for better optima chooses its starts
_ROUNDS, _PER_ROUND = 3, 16  # rounds of the search, and draws from which each of them starts
_WIDTHS = (0.1, 0.6)  # standard deviations of the starts about each of these draws
_JUDGED = 4  # ends of a round that are compared over more points; a round has few good ones
_UNSURE = 4.0  # standard errors between two fits: beyond, the difference is not due to chance
_JUDGES = 16  # factor on the number of points for fits whose difference may be due to chance
_COMPARABLE = 4.6  # nats, log 100: a mode with less than a hundredth of the mass is ignored
_MOST_CORRELATED = 50  # latents; beyond, a full-rank fit takes seconds per datum
_WIDER = (0.1, 0.8)  # at most 0.1 wider; less for many latents, since each costs effective draws


@dataclass(frozen=True)
class Fitted:
    r"""A proposal that is fitted to the posterior of every datum, then slightly widened.

    .. math:: q_n^\star = \arg\max_{q} \mathrm{ELBO}_n(q), \qquad z' = m_n + s (z - m_n)

    Here :math:`z` is a draw of :math:`q_n^\star`, whose mean is :math:`m_n`, and :math:`z'` is the
    widened draw. The guide provides only one of several starting points.

    One Gaussian covers one mode, and its weights do not show other modes far away. With one latent,
    a grid over the prior's range shows them. With more latents, :class:`ImportanceSampling` fits
    from 16 draws of the prior, which can miss narrow modes; :class:`Tightest` searches more
    thoroughly.

    Arguments:
        family: The family of :math:`q_n`. By default it is the full-rank Gaussian for up to 50
            latents. For more latents it is the mean-field Gaussian, because the number of
            parameters of a full-rank Gaussian grows with the square of the number of latents.
        scale: The factor :math:`s`; by default :math:`1 + \min(0.1, 0.8 / L)` for L latents.
        fitting: The settings of the fit. The default tolerance is 0.01 nats, which is accurate
            enough for a proposal.

    Raises:
        ValueError: If the scale is not a positive number. Also raised when called, if the family is
            a flow whose nets belong to no guide.

    References:
        | Adaptive Importance Sampling: The Past, the Present, and the Future (Bugallo et al., 2017)
        | https://doi.org/10.1109/MSP.2017.2699226

    Example:
        >>> import pyro, torch
        >>> import pyro_vae as pv
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(9 * z, 1.0), obs=y)
        >>> y = torch.tensor([0.0, 2.0])
        >>> guide = pv.Guide(model, pv.GlobalParameters(), example=y)  # at the prior: a poor one
        >>> method = pv.ImportanceSampling(2000, proposal=pv.Fitted())
        >>> bool((pv.log_marginal_likelihood(model, guide, y, method).ess > 1900).all())
        True
    """

    family: Family | None = None
    scale: float | None = None
    fitting: FitRows = field(default_factory=partial(FitRows, tolerance=_HILLS))

    def __post_init__(self) -> None:
        """Refuses a scale that is not a positive number."""
        if self.scale is not None:
            Widened(self.scale)

    def __call__(self, program: Program, posterior: Posterior, batch: Batch) -> Posterior:
        """Fits the family to the posterior of every datum, and returns the widened fits."""
        correlated = program.latent_dim <= _MOST_CORRELATED
        family = self.family or (FullRankNormal() if correlated else DiagonalNormal())
        places = starting_points(program, posterior, batch, family)
        fit = best_of_family(  # no refit on more points: the weights correct small errors
            program, batch, family, places, self.fitting, progress=False, refit=False
        )
        most, share = _WIDER
        scale = 1 + min(most, share / program.latent_dim) if self.scale is None else self.scale
        return Widened(scale)(program, FamilyPosterior(family, fit.parameters), batch)

    def several_modes(
        self, program: Program, proposal: Posterior, batch: Batch
    ) -> Bool[Tensor, " batch"]:
        """Returns a mask of the data for which fits from prior draws end at several modes.

        With one latent it is False: importance sampling finds further modes by a grid.
        """
        if program.latent_dim <= 1:
            return torch.zeros(len(batch[0]), dtype=torch.bool, device=batch[0].device)
        return other_modes(program, proposal, batch, self.fitting)


def starting_points(
    program: Program, posterior: Posterior, batch: Batch, family: Family
) -> list[Float[Tensor, "batch parameters"]]:
    """Returns several starting points of a fit, as parameters of the family.

    They are the guide's posterior, N(0, I), and a narrow Gaussian at the likeliest of 64 draws of
    the prior. For families with :class:`MomentMatching` and up to 50 latents, a fourth starting
    point has the moments of a fitted full-rank Gaussian.

    Raises:
        ValueError: If the family is a flow whose nets belong to no guide yet.
    """
    _require_ready(family)
    if isinstance(posterior, FamilyPosterior) and posterior.family == family:
        first = posterior.parameters
    else:
        first = match_moments(family, posterior, batch)
    prior = family.initial(first.new_zeros(program.latent_dim))
    (away,) = _likeliest(program, batch, first, 1)
    narrow = torch.stack([family.initial(row, _NARROW) for row in away])
    places = [first, prior.expand_as(first).clone(), narrow]
    if isinstance(family, MomentMatching) and program.latent_dim <= _MOST_CORRELATED:
        places.append(_from_full_rank(program, posterior, batch, family.matching))
    return places


def _from_full_rank(
    program: Program,
    posterior: Posterior,
    batch: Batch,
    matching: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, "batch parameters"]:
    """Returns parameters with the moments of a full-rank Gaussian fitted to each posterior.

    A fit that starts at these parameters avoids saddle points of the ELBO.
    """
    family, rough = FullRankNormal(), FitRows(tolerance=_HILLS)
    places = starting_points(program, posterior, batch, family)
    fit = best_of_family(program, batch, family, places, rough, progress=False, refit=False)
    q = family(fit.parameters)
    return matching(q.mean, q.covariance_matrix)


def _likeliest(
    program: Program, batch: Batch, like: Tensor, number: int
) -> Float[Tensor, "number batch latents"]:
    """Returns, for each datum, the `number` draws of the prior with the largest log joint.

    They are selected from 64 draws. Data with the same prior use the same draws.
    """
    z, prior, likelihood = from_each_prior(program, batch, _START_DRAWS, "fit.starts")
    return _highest(z, prior + likelihood, number).to(like)


def _highest(
    z: Float[Tensor, "draws batch latents"], height: Float[Tensor, "draws batch"], number: int
) -> Float[Tensor, "number batch latents"]:
    places = height.topk(number, dim=0).indices
    return z[places, torch.arange(z.shape[1], device=z.device)]


def _elsewhere(
    program: Program, batch: Batch, like: Tensor
) -> Float[Tensor, "starts batch latents"]:
    """Returns, for each datum, prior draws at which the search for modes starts.

    Half of them are the likeliest of 256 draws, which often belong to the same mode. So the other
    half are likely draws that are far from each other.
    """
    z, prior, likelihood = from_each_prior(program, batch, _SEARCHED, "fit.starts")
    height = prior + likelihood
    apart = _Draws.of(z, height, torch.full_like(z[0], _NARROW)).apart(_PROBES // 2)
    return torch.cat([_highest(z, height, _PROBES // 2), apart]).to(like)


def other_modes(
    program: Program, posterior: Posterior, batch: Batch, fitting: FitRows
) -> Bool[Tensor, " batch"]:
    r"""Returns a mask of the data whose posterior is found to have several modes.

    Mean-field fits start at `posterior`, and at 16 of 256 prior draws: at the eight likeliest, and
    at eight likely ones that are far from each other. A datum has several modes if some fit ends
    far from the best fit or from `posterior`, and its ELBO is lower than that of the best fit by
    less than log 100 nats. Two fits with means :math:`m_i, m_i'` and standard deviations
    :math:`s_i, s_i'` are far apart if :math:`\sum_i (m_i - m_i')^2 / (s_i^2 + s_i'^2) > 8`. If two
    modes are closer than that, a proposal at one of the modes covers the two.

    If only one mode is found, there can still be another, to which no fit from a start leads.
    """
    return torch.cat(
        [
            _several(program, posterior.rows(rows), take_rows(batch, rows), fitting)
            for rows in slices(len(batch[0]), _PROBED_AT_ONCE)
        ]
    )


def _several(
    program: Program, posterior: Posterior, batch: Batch, fitting: FitRows
) -> Bool[Tensor, " batch"]:
    """Returns a mask of the data for which fits that run in one batch find several modes."""
    family = DiagonalNormal()
    first = match_moments(family, posterior, batch)
    away = _elsewhere(program, batch, first)
    narrow = family.initial(first.new_zeros(program.latent_dim), _NARROW)[program.latent_dim :]
    places = torch.cat([first[None], torch.cat([away, narrow.expand_as(away)], dim=-1)])
    many = repeat_rows(batch, len(places))
    how = replace(fitting, num_particles=_PROBE_POINTS, tolerance=_PROBE_TOLERANCE)
    seed = stream(0, "fit.modes")
    starts = places.flatten(0, 1)
    usable = finite_rows(program, family, many, starts, how, seed=seed)
    starts = torch.where(usable[:, None], starts, first.repeat(len(places), 1))
    fit = fit_parameters(program, family, many, starts, how, seed=seed, refit=False, progress=False)
    ends, elbo = (part.unflatten(0, places.shape[:2]) for part in (fit.parameters, fit.elbo))
    best = elbo.nan_to_num(-torch.inf).argmax(dim=0)
    rows = torch.arange(len(first), device=first.device)
    is_comparable = elbo > elbo[best, rows] - _COMPARABLE
    is_other = _is_far(ends, ends[best, rows]) | _is_far(ends, first)
    return (is_comparable & is_other).any(dim=0)


def _is_far(
    one: Float[Tensor, "fits batch parameters"], other: Float[Tensor, "batch parameters"]
) -> Bool[Tensor, "fits batch"]:
    (loc, log_scale), (loc_other, log_scale_other) = (
        parameters.chunk(2, dim=-1) for parameters in (one, other)
    )
    variance = (2 * log_scale).exp() + (2 * log_scale_other).exp()
    return ((loc - loc_other).square() / variance).sum(dim=-1) > _FAR


def match_moments(
    family: Family, posterior: Posterior, batch: Batch
) -> Float[Tensor, "batch parameters"]:
    """Returns parameters of a family that roughly match a posterior's mean and standard deviation.

    The moments are estimated from draws. Each datum has a separate random stream, so the result
    does not depend on other data.
    """
    _require_ready(family)
    z, _ = draw_rows(posterior, 0, row_keys(0, "fit.near", *batch), _START_DRAWS)
    loc, scale = z.mean(dim=0), z.std(dim=0).clamp(min=_LEAST_SPREAD)
    if isinstance(family, ClosestNormal):
        return family.closest_normal(loc, scale.square().reciprocal().diag_embed())
    rows = zip(loc, scale.log().mean(dim=-1).exp().tolist(), strict=True)
    return torch.stack([family.initial(*row) for row in rows])


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
    first, the datum's fit starts at the first one instead.

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
        FloatingPointError: If the ELBO of a datum is not a number at the first start.
    """
    start = starts[0]
    unsettled = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    if len(starts) > 1:
        # Rough fits show which mode is the highest; the final fit is judged on other draws.
        rough = replace(fitting, tolerance=max(fitting.tolerance, _HILLS))
        own = stream(seed, "fit.rough")
        found = list(_fits(program, batch, family, starts, rough, own, start))
        start = _best_place(program, batch, family, found, fitting, seed)
        if refit:
            start, unsettled = _searched(program, batch, family, found, start, rough, seed)
    fit = fit_parameters(
        program, family, batch, start, fitting, seed=seed, progress=progress, refit=refit
    )
    return replace(fit, converged=fit.converged & ~unsettled)


def _searched(
    program: Program,
    batch: Batch,
    family: Family,
    found: Sequence[RowFit],
    start: Float[Tensor, "batch parameters"],
    fitting: FitRows,
    seed: int,
) -> tuple[Tensor, Bool[Tensor, " batch"]]:
    """Searches for better optima of the ELBO from draws of the prior.

    A datum is searched if its first fits ended at different optima, or if prior draws show
    mass far from its best fit. The fits of a round start at likely draws that are far from each
    other and from earlier starting points. If a round finds a better optimum, there may be more, so
    another round follows. Returns the best parameters of every datum, and a mask of the unsettled
    data: those whose last round still found a better optimum.
    """
    parts = []
    for rows in slices(len(start), _PROBED_AT_ONCE):
        part = take_rows(batch, rows)
        search = _Search(program, part, family, fitting, seed)
        parts.append(search([fit[rows] for fit in found], start[rows]))
    return join(parts)


@dataclass(frozen=True)
class _Search:
    """A search for better optima of the ELBO of some data; see :func:`_searched`."""

    program: Program
    batch: Batch
    family: Family
    fitting: FitRows
    seed: int

    def __call__(
        self, found: Sequence[RowFit], best: Float[Tensor, "batch parameters"]
    ) -> tuple[Tensor, Bool[Tensor, " batch"]]:
        """Returns the best parameters, and a mask of data that the last round still improved."""
        z, prior, likelihood = from_each_prior(self.program, self.batch, _SEARCHED, "fit.starts")
        ends, best = _ends(self.family, found), best.clone()
        searched = ends.differ.any(dim=0) | self._elsewhere(best, ends.elbo, z, likelihood)
        unsettled, rows = torch.zeros_like(searched), searched.nonzero().squeeze(-1)
        if len(rows) == 0:
            return best, unsettled
        places = torch.stack([fit.parameters[rows] for fit in found])
        height = prior[:, rows] + likelihood[:, rows]
        draws = _Draws.of(z[:, rows].to(best), height, self._spread(places))
        value = self._values(rows, best[rows])
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
        """Returns each latent's smallest standard deviation among the fits, or 0.1 if unknown."""
        if _has_moments(self.family):
            return self.family(places).stddev.amin(dim=0)
        size = places.shape[1], self.program.latent_dim
        return torch.full(size, _NARROW, dtype=places.dtype, device=places.device)

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

    def _values(self, rows: Tensor, parameters: Tensor) -> Tensor:
        """Estimates the ELBO of given parameters from many points, the same in every call."""
        part = take_rows(self.batch, rows)
        own, many = stream(self.seed, "fit.places"), self.fitting.times(_JUDGES)
        found = elbo_over_points(self.program, self.family, part, parameters, many, seed=own)
        return found.nan_to_num(-torch.inf)

    def _round(
        self, rows: Tensor, best: Tensor, places: Float[Tensor, "places rows latents"]
    ) -> tuple[Tensor, Tensor]:
        """Runs fits from `places`; returns each datum's best parameters and their ELBO."""
        flat, number = places.flatten(0, 1), len(places) * len(_WIDTHS)
        starts = [self.family.initial(row, width) for width in _WIDTHS for row in flat]
        many = repeat_rows(take_rows(self.batch, rows), number)
        (fit,) = _fits(
            self.program, many, self.family, [torch.stack(starts)], self.fitting,
            stream(self.seed, "fit.rough"), best.repeat(number, 1),
        )  # fmt: skip
        elbo = fit.elbo.nan_to_num(-torch.inf).view(number, -1)
        ends = fit.parameters.unflatten(0, elbo.shape)
        order = elbo.topk(_JUDGED, dim=0).indices
        every = torch.arange(len(rows), device=rows.device)
        values = torch.stack([self._values(rows, ends[one, every]) for one in order])
        top, which = values.max(dim=0)
        return ends[order[which, every], every], top


@dataclass(frozen=True)
class _Draws:
    """Draws of the prior that serve as starting points of fits to some data.

    Arguments:
        z: The draws of every datum.
        rank: Rank of each draw by its log joint, for every datum; the likeliest draw has the
            highest rank.
        spread: Length by which distances between draws are divided, for every datum and latent.
        near: For every draw and datum, whether the draw is near a starting point chosen earlier.
    """

    z: Float[Tensor, "draws rows latents"]
    rank: Int64[Tensor, "draws rows"]
    spread: Float[Tensor, "rows latents"]
    near: Bool[Tensor, "draws rows"]

    @classmethod
    def of(cls, z: Tensor, height: Tensor, spread: Tensor) -> "_Draws":
        """Makes the set from draws `z` with log joints `height`; none is a starting point yet."""
        rank = height.argsort(dim=0).argsort(dim=0)
        return cls(z, rank, spread, torch.zeros_like(rank, dtype=torch.bool))

    def rows(self, rows: Tensor) -> "_Draws":
        """Returns the draws for a subset of the data."""
        parts = self.z[:, rows], self.rank[:, rows], self.spread[rows], self.near[:, rows]
        return _Draws(*parts)

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
    """Returns the squared distance from 0 within which nearly all standard normal draws lie."""
    return latents + _REACH * math.sqrt(2 * latents)


def _fits(
    program: Program,
    batch: Batch,
    family: Family,
    starts: Sequence[Float[Tensor, "batch parameters"]],
    fitting: FitRows,
    seed: int,
    instead: Float[Tensor, "batch parameters"],
) -> Iterator[RowFit]:
    """Yields the fit from each starting point; all estimate the ELBO from the same random numbers.

    If the ELBO of a datum is not finite at a starting point, its fit starts at `instead`.
    """
    fit = partial(fit_parameters, program, family, batch, fitting=fitting, seed=seed, refit=False)
    for start in starts:
        usable = start is instead or finite_rows(program, family, batch, start, fitting, seed=seed)
        yield fit(start if usable is True else torch.where(usable[:, None], start, instead))


class _Ends(NamedTuple):
    """A comparison of several fits to the same data.

    Arguments:
        behind: ELBO of the datum's best fit minus the ELBO of each fit, in nats.
        error: Standard error of this difference, in nats.
        differ: Whether a fit ended at another optimum than the datum's best fit.
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


def _best_place(
    program: Program,
    batch: Batch,
    family: Family,
    found: Sequence[RowFit],
    fitting: FitRows,
    seed: int,
) -> Float[Tensor, "batch parameters"]:
    """Returns, for each datum, the parameters of the fit with the highest ELBO.

    If a difference between ELBOs could be due to chance, the ELBOs are estimated again with more
    points.
    """
    parameters = torch.stack([fit.parameters for fit in found])
    behind, error, differ, best, _ = _ends(family, found)
    rows = torch.arange(len(best), device=best.device)
    unsure = (differ | (behind > _TIED)) & (behind < _UNSURE * error)
    some = unsure.any(dim=0).nonzero().squeeze(-1)
    if len(some) > 0:
        part = take_rows(batch, some)
        judge = partial(elbo_over_points, program, family, part, fitting=fitting.times(_JUDGES))
        own = stream(seed, "fit.places")
        values = torch.stack([judge(places[some], seed=own) for places in parameters])
        best[some] = values.nan_to_num(-torch.inf).argmax(dim=0)
    return parameters[best, rows]


def _require_ready(family: Family) -> None:
    if isinstance(family, TrainableFamily) and not family.latent_dim:
        raise ValueError(
            f"the networks of {type(family).__name__} are untrained, because they belong to no "
            "guide yet: first train pv.Guide(model, pv.LocalParameters(len(y)), family) with "
            "pv.fit(..., train_model=False), then pass this guide"
        )
