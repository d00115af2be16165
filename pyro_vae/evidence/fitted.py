r"""Finds, for each datum separately, the member of a family that is closest to the posterior.

This best member is the reference for a guide (:func:`pyro_vae.inference_gap`). A slightly widened
copy of it is a good proposal for importance sampling. The full-rank Gaussian closest to the
posterior has the correlations that a mean-field guide lacks, and the extra width covers the tails.

A fit ends at a local optimum, so several starting points are tried: the guide's output, N(0, I),
and the likeliest of some draws of the prior. If the posterior is symmetric about 0 with modes on
both sides, the first two can be saddle points of the ELBO. :mod:`pyro_vae.evidence.optima` finds
the best optimum.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
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
    TrainableFamily,
)
from ..guides.row_fits import elbo_over_points, fit_parameters
from ..programs import Program
from ..programs.pieces import slices, take_rows
from ..programs.traces import repeat_rows
from ..randomness import row_keys, stream
from .far_modes import FarModes, heavy_tails
from .optima import HILLS, NARROW, PROBED_AT_ONCE, SEARCHED, Draws, best_of_family
from .proposals import Widened
from .saturation import from_each_prior
from .seeking import Integrand
from .weights import draw_rows, rows_at_once

_START_DRAWS = 64  # number of prior draws among which the likeliest are starting points
_LEAST_SPREAD = 1e-3  # smallest standard deviation of a start, if the guide is nearly a point
_PROBES = 16  # number of further starts in the search for modes
_PROBE_POINTS, _PROBE_TOLERANCE = 8, 0.05  # points, nats: enough to tell in which mode a fit ends
_FAR = 8.0  # squared distance divided by the sum of two variances: 4 sd for modes of equal width
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
            a flow whose networks were not trained as part of a guide.

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
    fitting: FitRows = field(default_factory=partial(FitRows, tolerance=HILLS))

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

        With one latent, only data whose prior has heavy tails are searched. The others need no
        search, because the grid of importance sampling shows further modes.
        """
        several = torch.zeros(len(batch[0]), dtype=torch.bool, device=batch[0].device)
        if program.latent_dim == 0:
            return several
        searched = ~several
        if program.latent_dim == 1:
            searched = heavy_tails(Integrand(program, batch, rows_at_once(program, batch)))
        rows = searched.nonzero()[:, 0]
        if len(rows) > 0:
            part = take_rows(batch, rows)
            several[rows] = other_modes(program, proposal.rows(rows), part, self.fitting)
        return several


def starting_points(
    program: Program, posterior: Posterior, batch: Batch, family: Family
) -> list[Float[Tensor, "batch parameters"]]:
    """Returns several starting points of a fit, as parameters of the family.

    They are the guide's posterior, N(0, I), and a narrow Gaussian at the likeliest of 64 draws of
    the prior. For families with :class:`MomentMatching` and up to 50 latents, a fourth starting
    point has the moments of a fitted full-rank Gaussian.

    Raises:
        ValueError: If the family is a flow whose networks were not trained as part of a guide.
    """
    _require_ready(family)
    if isinstance(posterior, FamilyPosterior) and posterior.family == family:
        first = posterior.parameters
    else:
        first = match_moments(family, posterior, batch)
    prior = family.initial(first.new_zeros(program.latent_dim))
    z, log_prior, log_likelihood = from_each_prior(program, batch, _START_DRAWS)
    (likeliest,) = _highest(z, log_prior + log_likelihood, 1).to(first)
    narrow = torch.stack([family.initial(row, NARROW) for row in likeliest])
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

    A fit that starts at these parameters avoids saddle points of the ELBO. `matching` returns the
    parameters for a mean and a covariance.
    """
    family, rough = FullRankNormal(), FitRows(tolerance=HILLS)
    places = starting_points(program, posterior, batch, family)
    fit = best_of_family(program, batch, family, places, rough, progress=False, refit=False)
    q = family(fit.parameters)
    return matching(q.mean, q.covariance_matrix)


def _highest(
    z: Float[Tensor, "draws batch latents"], height: Float[Tensor, "draws batch"], number: int
) -> Float[Tensor, "number batch latents"]:
    """Returns, for each datum, the `number` draws that have the largest `height`."""
    places = height.topk(number, dim=0).indices
    return z[places, torch.arange(z.shape[1], device=z.device)]


def _elsewhere(
    program: Program, batch: Batch, like: Tensor
) -> Float[Tensor, "starts batch latents"]:
    """Returns, for each datum, prior draws at which the search for modes starts.

    Half of them are the likeliest of 256 draws, which often belong to the same mode. So the other
    half are likely draws that are far from each other. The result has the dtype of `like`.
    """
    z, prior, likelihood = from_each_prior(program, batch, SEARCHED)
    height = prior + likelihood
    apart = Draws.of(z, height, torch.full_like(z[0], NARROW)).apart(_PROBES // 2)
    return torch.cat([_highest(z, height, _PROBES // 2), apart]).to(like)


def other_modes(
    program: Program, posterior: Posterior, batch: Batch, fitting: FitRows
) -> Bool[Tensor, " batch"]:
    r"""Returns a mask of the data whose posterior is found to have several modes.

    Mean-field fits start at `posterior`, and at 16 of 256 prior draws: at the eight likeliest, and
    at eight likely ones that are far from each other. If the prior has heavy tails, they also start
    at the modes that :class:`pyro_vae.evidence.far_modes.FarModes` finds. A datum has several modes
    if some fit ends far from the best fit or from `posterior`, and its ELBO is lower than that of
    the best fit by less than log 100 nats. Two fits with means :math:`m_i, m_i'` and standard
    deviations :math:`s_i, s_i'` are far apart if
    :math:`\sum_i (m_i - m_i')^2 / (s_i^2 + s_i'^2) > 8`. If two modes are closer than that, a
    proposal at one of the modes covers both.

    If only one mode is found, there can still be others to which none of the fits leads.
    """
    return torch.cat(
        [
            _several(program, posterior.rows(rows), take_rows(batch, rows), fitting)
            for rows in slices(len(batch[0]), PROBED_AT_ONCE)
        ]
    )


def _several(
    program: Program, posterior: Posterior, batch: Batch, fitting: FitRows
) -> Bool[Tensor, " batch"]:
    """Does the work of :func:`other_modes` for data that are fitted in a single batch."""
    family = DiagonalNormal()
    first = match_moments(family, posterior, batch)
    away = _elsewhere(program, batch, first)
    narrow = family.initial(first.new_zeros(program.latent_dim), NARROW)[program.latent_dim :]
    places = torch.cat([first[None], torch.cat([away, narrow.expand_as(away)], dim=-1)])
    far = FarModes.of(program, batch, rows_at_once(program, batch))
    if far is not None:
        scale = far.scale_tril.square().sum(dim=-1).sqrt()
        beyond = torch.cat([far.loc, scale.log()], dim=-1).transpose(0, 1)
        beyond = torch.where(far.heavy[:, None], beyond.to(first), first)
        places = torch.cat([places, beyond])
    many = repeat_rows(batch, len(places))
    how = replace(fitting, num_particles=_PROBE_POINTS, tolerance=_PROBE_TOLERANCE)
    seed = stream(0, "fit.modes")
    starts = places.flatten(0, 1)
    _, usable = elbo_over_points(program, family, many, starts, how, seed=seed)
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
    """Returns a mask of the mean-field fits in `one` that are far from those in `other`."""
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


def _require_ready(family: Family) -> None:
    """Refuses a family with networks that belong to no guide and are therefore untrained."""
    if isinstance(family, TrainableFamily) and not family.latent_dim:
        raise ValueError(
            "the networks of a family must have been trained as part of a guide; got a new "
            f"{type(family).__name__}, whose networks belong to no guide yet: train "
            "pv.Guide(model, pv.LocalParameters(len(y)), family, example=y) with pv.fit(..., "
            "train_model=False), then pass the same object `family` again"
        )
