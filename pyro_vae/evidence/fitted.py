r"""The member of a family that fits a datum best, independent of the guide.

It is the reference for a guide (:func:`pyro_vae.inference_gap`), and, slightly widened, a good
proposal for importance sampling: the full-rank Gaussian closest to the posterior has the
correlations that a mean-field guide lacks, and the extra width covers the tails.

A fit ends at a local optimum. So there are three starting points: the guide's output; N(0, I); and
the likeliest of some draws of N(0, I), since the first two may be at a saddle point of the ELBO if
the posterior is symmetric with modes on both sides. Fits to 0.01 nats are enough to tell which
optimum is the highest, and only that one is run to convergence. No fit depends on other data.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

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
    elbo_over_points,
    finite_rows,
    fit_parameters,
)
from ..programs import Program, retry_unvalidated
from ..randomness import generator, row_keys, stream
from ..results import with_rows
from .proposals import Widened
from .weights import draw_rows, rows_at_once

_START_DRAWS = 64  # a start only: it need not be the best place
_ROWS_AT_ONCE = 4096  # of the program's batch: as many as are fast; images take a few mebibytes
_MEMORY = 64.0  # mebibytes of results for these rows: a limit where rows are wide
_LEAST_SPREAD = 1e-3  # so that a start has some width, even if the guide is nearly a point
_NARROW = 0.1  # standard deviation about the likeliest draw, so that the fit sees only that place
_PROBES = 16  # further places at which modes are looked for
_PROBE_POINTS, _PROBE_TOLERANCE = 8, 0.05  # enough to tell in which mode a fit ends
_PROBED_AT_ONCE = 256  # data at a time, each fitted from all places at once
_FAR = 8.0  # squared distance over the sum of both variances: 4 sd if both modes are as wide
_HILLS = 1e-2  # nats: enough to tell which optimum is the highest
_DIFFERENT = 0.05  # nats between two fits, by common draws: they ended at different optima
_MOVED = 0.5  # standard deviations, or their log ratio: fits of one optimum are closer
_FURTHER, _WIDTHS = 12, (0.1, 0.6)  # then further starts: so many likely draws, so wide
_UNSURE = 4.0  # standard errors between two fits: more is no chance
_JUDGES = 16  # factor on the number of points by which such fits are told apart
_COMPARABLE = 4.6  # nats, log 100: a mode with less than a hundredth of the mass is ignored
_MOST_CORRELATED = 50  # latents; beyond, a full-rank fit takes seconds per datum
_WIDER = (0.1, 0.8)  # at most a tenth; less for many latents, since each costs effective draws


@dataclass(frozen=True)
class Fitted:
    r"""A member of a family that is fitted to every datum, then slightly widened.

    .. math:: q_n^\star = \arg\max_{q} \mathrm{ELBO}_n(q), \qquad z' = m_n + s (z - m_n)

    The guide only provides a starting point; see :func:`starting_points` for the others.

    One Gaussian covers one mode. If there are several modes far apart, neither Pareto k nor the
    error shows that; :class:`Tightest` looks for mass elsewhere with prior draws.

    Arguments:
        family: By default the full-rank Gaussian for up to 50 latents, and the mean-field one
            beyond, since a full-rank one has a number of parameters that grows with the square of
            the number of latents.
        scale: :math:`s`, no unit; by default :math:`1 + \min(0.1, 0.8 / L)` for L latents.
        fitting: How the rows are fitted. The default tolerance is 0.01 nats, which is accurate
            enough for a proposal.

    Raises:
        ValueError: If the scale is not a positive number; when called, if the family is a flow that
            no guide has set up.

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
        """The fitted posterior of every datum, widened."""
        correlated = program.latent_dim <= _MOST_CORRELATED
        family = self.family or (FullRankNormal() if correlated else DiagonalNormal())
        places = starting_points(program, posterior, batch, family)
        fit = best_of_family(  # no refit on more points: the weights make up for it
            program, batch, family, places, self.fitting, progress=False, refit=False
        )
        most, share = _WIDER
        scale = 1 + min(most, share / program.latent_dim) if self.scale is None else self.scale
        return Widened(scale)(program, FamilyPosterior(family, fit.parameters), batch)


def starting_points(
    program: Program, posterior: Posterior, batch: Batch, family: Family
) -> list[Float[Tensor, "batch parameters"]]:
    """Starting points of fits: the posterior, N(0, I), and the likeliest of draws from N(0, I).

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
    """Starting points from a full-rank Gaussian fitted to each datum, which avoid saddle points."""
    family, rough = FullRankNormal(), FitRows(tolerance=_HILLS)
    places = starting_points(program, posterior, batch, family)
    fit = best_of_family(program, batch, family, places, rough, progress=False, refit=False)
    q = family(fit.parameters)
    return matching(q.mean, q.covariance_matrix)


def _likeliest(
    program: Program, batch: Batch, like: Tensor, number: int
) -> Float[Tensor, "number batch latents"]:
    """For each datum, the draws of N(0, I) with the largest log joint; all data share the draws."""
    draws = generator(stream(0, "fit.starts"))
    shape = (_START_DRAWS, program.latent_dim)
    z = torch.randn(shape, generator=draws, dtype=like.dtype, device="cpu").to(like.device)
    size = min(_ROWS_AT_ONCE, rows_at_once(program, batch, _MEMORY))
    parts = zip(*(tensor.split(size) for tensor in batch), strict=True)
    log_joint = torch.cat([_log_joint(program, z, part, size) for part in parts], dim=1)
    return z[log_joint.nan_to_num(-torch.inf).topk(number, dim=0).indices]


def _log_joint(
    program: Program, z: Float[Tensor, "draws latents"], batch: Batch, size: int
) -> Float[Tensor, "draws batch"]:
    """Log joint of the same draws for all data, at most `size` rows of the program at a time."""
    draws = z.unsqueeze(1).expand(-1, len(batch[0]), -1).split(max(1, size // len(batch[0])))
    return torch.cat(
        [retry_unvalidated(partial(program.log_joint, some, *batch)) for some in draws]
    )


def other_modes(
    program: Program, posterior: Posterior, batch: Batch, fitting: FitRows
) -> Bool[Tensor, " batch"]:
    r"""Data whose posterior is found to have several modes.

    Mean-field fits start at the posterior and at the 16 likeliest of 64 draws of N(0, I). A datum
    has several modes if a fit ends far from the best one, :math:`\sum_i (m_i - m_i')^2 /
    (s_i^2 + s_i'^2) > 8`, with an ELBO that is lower by less than log 100. If two modes are
    closer, a proposal on one of them reaches both. Finding none proves nothing; if half of the
    draws lead to each of two modes, one is missed once in 2^16 times.
    """
    starts = range(0, len(batch[0]), _PROBED_AT_ONCE)
    parts = [slice(first, first + _PROBED_AT_ONCE) for first in starts]
    return torch.cat(
        [
            _several(program, posterior.rows(rows), tuple(part[rows] for part in batch), fitting)
            for rows in parts
        ]
    )


def _several(
    program: Program, posterior: Posterior, batch: Batch, fitting: FitRows
) -> Bool[Tensor, " batch"]:
    """Runs all fits of some data at once, as if each fit were a datum of its own."""
    family = DiagonalNormal()
    first = match_moments(family, posterior, batch)
    away = _likeliest(program, batch, first, _PROBES)
    narrow = family.initial(first.new_zeros(program.latent_dim), _NARROW)[program.latent_dim :]
    places = torch.cat([first[None], torch.cat([away, narrow.expand_as(away)], dim=-1)])
    many = tuple(part.repeat(len(places), *[1] * (part.dim() - 1)) for part in batch)
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
    return (is_comparable & _is_far(ends, ends[best, rows])).any(dim=0)


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
    """Parameters with which a family has about a posterior's means and standard deviations.

    These are estimated from draws of every datum's own stream, so they do not depend on other data.
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
    """Fits a family roughly from several starts, then fully from where each datum's best fit ended.

    The best has the highest ELBO over fresh draws. Where the ELBO is not finite at a further start,
    the first start takes its place.

    Raises:
        FloatingPointError: If the ELBO of a datum is not a number at the first start.
    """
    start = starts[0]
    if len(starts) > 1:
        # Accurate enough to tell which mode is the highest; other draws judge the chosen q.
        rough = replace(fitting, tolerance=max(fitting.tolerance, _HILLS))
        found = list(_fits(program, batch, family, starts, rough, stream(seed, "fit.rough")))
        if refit:
            found += _from_further(program, batch, family, found, rough, stream(seed, "fit.rough"))
        start = _best_place(program, batch, family, found, fitting, seed)
    return fit_parameters(
        program, family, batch, start, fitting, seed=seed, progress=progress, refit=refit
    )


def _from_further(
    program: Program,
    batch: Batch,
    family: Family,
    found: Sequence[RowFit],
    fitting: FitRows,
    seed: int,
) -> list[RowFit]:
    """Fits from further starts, for data whose first fits ended at different optima."""
    several = _ends(family, found).differ.any(dim=0).nonzero().squeeze(-1)
    if len(several) == 0:
        return []
    some = tuple(part[several] for part in batch)
    away = _likeliest(program, some, found[0].parameters, _FURTHER).flatten(0, 1)
    wide = [torch.stack([family.initial(row, width) for row in away]) for width in _WIDTHS]
    number = _FURTHER * len(_WIDTHS)
    many = tuple(part.repeat(number, *[1] * (part.dim() - 1)) for part in some)
    first = found[0].parameters[several].repeat(number, 1)
    starts = torch.cat(wide)
    usable = finite_rows(program, family, many, starts, fitting, seed=seed)
    starts = torch.where(usable[:, None], starts, first)
    ends = fit_parameters(
        program, family, many, starts, fitting, seed=seed, refit=False, progress=False
    )
    places = torch.arange(len(first), device=several.device).split(len(several))
    return [with_rows(found[0], several, ends[rows]) for rows in places]


def _fits(
    program: Program,
    batch: Batch,
    family: Family,
    starts: Sequence[Float[Tensor, "batch parameters"]],
    fitting: FitRows,
    seed: int,
) -> Iterator[RowFit]:
    """A fit from each start, all on the same points; data that fail there use the first start."""
    fit = partial(fit_parameters, program, family, batch, fitting=fitting, seed=seed, refit=False)
    first, *others = starts
    yield fit(first)
    for other in others:
        usable = finite_rows(program, family, batch, other, fitting, seed=seed)
        start = torch.where(usable.unsqueeze(-1), other, first)
        yield fit(start)


class _Ends(NamedTuple):
    """Where some fits of the same data ended, each `(fits, batch)`, and the best, `(batch,)`."""

    behind: Float[Tensor, "fits batch"]
    error: Float[Tensor, "fits batch"]
    differ: Bool[Tensor, "fits batch"]
    best: Int64[Tensor, " batch"]


def _ends(family: Family, found: Sequence[RowFit]) -> _Ends:
    """Tells optima apart by their ELBO, and by mean and width where the family has them."""
    elbo = torch.stack([fit.elbo for fit in found]).nan_to_num(-torch.inf)
    error = torch.stack([fit.error for fit in found]).nan_to_num(0.0)
    best, rows = elbo.argmax(dim=0), torch.arange(elbo.shape[1], device=elbo.device)
    behind = elbo[best, rows] - elbo
    differ = behind > _DIFFERENT
    if isinstance(family, ClosestNormal | MomentMatching):
        q = family(torch.stack([fit.parameters for fit in found]))
        away = (q.mean - q.mean[best, rows]).abs() / q.stddev
        wider = (q.stddev / q.stddev[best, rows]).log().abs()
        differ |= (torch.maximum(away, wider) > _MOVED).any(dim=-1)
    return _Ends(behind, torch.hypot(error, error[best, rows]), differ, best)


def _best_place(
    program: Program,
    batch: Batch,
    family: Family,
    found: Sequence[RowFit],
    fitting: FitRows,
    seed: int,
) -> Float[Tensor, "batch parameters"]:
    """The parameters with the highest ELBO; if chance could decide, over more points."""
    parameters = torch.stack([fit.parameters for fit in found])
    behind, error, differ, best = _ends(family, found)
    rows = torch.arange(len(best), device=best.device)
    some = (differ & (behind < _UNSURE * error)).any(dim=0).nonzero().squeeze(-1)
    if len(some) > 0:
        part = tuple(tensor[some] for tensor in batch)
        judge = partial(elbo_over_points, program, family, part, fitting=fitting.times(_JUDGES))
        own = stream(seed, "fit.places")
        values = torch.stack([judge(places[some], seed=own) for places in parameters])
        best[some] = values.nan_to_num(-torch.inf).argmax(dim=0)
    return parameters[best, rows]


def _require_ready(family: Family) -> None:
    if isinstance(family, TrainableFamily) and not family.latent_dim:
        raise ValueError(
            f"the nets of {type(family).__name__} belong to no guide yet, so there is nothing to "
            "fit a datum's parameters with: train pv.Guide(model, pv.LocalParameters(len(y)), "
            "family) with pv.fit(..., train_model=False) first, and pass that guide"
        )
