r"""Starts the training of a table's VAE from factor analysis, a special case of the VAE.

A decoder :math:`\eta(z) = \eta_0 + A z + g(z)` with :math:`g = 0` is factor analysis if the
features are Gaussian. With a few hundred rows, training takes too few gradient steps to find that
solution. So factor analysis is fitted first, by EM on the numeric columns (standardized, counts as
:math:`\log(1 + y)`, positive numbers as :math:`\log y`, missing entries left out). The loadings
:math:`W` of this fit are rotated so that the posterior of a complete row has independent entries.
The slopes :math:`A` are computed from the loadings by a pseudo-inverse,

.. math:: A = J^+ W, \qquad J = \frac{\partial\, \mathrm{mean}(y)}{\partial \eta}(\eta_0)

The encoder, a :class:`pyro_vae.guides.ProductOfExperts`, starts at the posterior that the model
has when it is linearized at z = 0,

.. math:: P_n = I + A^\top H_n A, \qquad m_n = P_n^{-1} A^\top s_n

with score :math:`s_n` and curvature :math:`H_n` of :math:`\log p(y_n \mid \eta)` at :math:`\eta_0`.
For factor analysis this posterior is exact, whichever entries are missing. All results are rounded
to float32, so that results do not differ between processors.

References:
    | EM Algorithms for ML Factor Analysis (Rubin & Thayer, 1982)
    | https://doi.org/10.1007/BF02293851
    | Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse (Lucas et al., 2019)
    | https://arxiv.org/abs/1911.02469
"""

import copy
import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from .data import Binary, Categories, Columns, Count, Ordered, Positive
from .guides import ProductOfExperts
from .likelihoods import Likelihood
from .likelihoods.base import column_spreads
from .models import VAE, Diagonal, LinearGaussian
from .results import join

MOST_COLUMNS = 512
"""Largest number of columns for a linear start: factor analysis needs the columns' covariance."""

_ROWS_OF_EXPERTS = 500  # rows whose scores are averaged; for Gaussian columns a few would do
_LEAST_WEIGHT = 1e-4  # of an expert, because a mean curvature over a few rows can be negative
_FEWEST = 5  # observed entries of each column in a sample of rows, if the column has so many
_MOST_ROWS = 5000  # so many rows determine loadings to 1.5% of a standard deviation
_MOST_ENTRIES = 500_000  # with so many entries, EM takes seconds
_LEAST_NOISE = 0.03  # share of a column's spread; less noise would overfit few rows or rounding
_STEEPEST = 3.0  # largest slope of log odds or of a logarithm, per standard deviation of z
_IDENTITY = 1e-9  # how far the derivative of an identity link may be from 1, by rounding


class Factors(NamedTuple):
    """The result of factor analysis of the numeric columns; the entries of other columns are 0."""

    loadings: Float[Tensor, "columns latents"]
    mean: Float[Tensor, " columns"]
    noise: Float[Tensor, " columns"]


@torch.enable_grad()
def start_model(model: VAE, columns: Columns, y: Float[Tensor, "rows columns"]) -> None:
    """Sets the decoder and the noise from factor analysis of the data.

    The hidden layers of the decoder then contribute nothing to its output.

    Arguments:
        model: A VAE whose decoder is an `MLPDecoder` with `skip=True`.
        columns: The columns of the table.
        y: Encoded training rows.
    """
    y = _sampled(y, min(_MOST_ROWS, _MOST_ENTRIES // y.shape[1])).double()
    found = factor_analysis(_numbers(columns, y), model.latent_dim)
    likelihood = copy.deepcopy(model.likelihood).double()
    start = likelihood.start(y)

    def means(output: Tensor) -> Tensor:
        return _numbers(columns, likelihood.mean(output[None]))[0].nan_to_num(nan=0.0)

    link: Tensor = jacobian(means, start)
    back, curved = torch.linalg.pinv(link), (link.sum(dim=0) - 1).abs() > _IDENTITY
    kinds = columns.kinds.values()
    positive = torch.tensor([isinstance(kind, Positive) for kind in kinds], device=y.device)
    # The mean of a logarithm is not the logarithm of the mean; `start` has the mean of the log.
    away = (found.mean - means(start)).where(~positive, 0.0)
    slopes, shift = back @ found.loadings, back @ away
    slopes[curved] = slopes[curved].clamp(-_STEEPEST, _STEEPEST)
    shift[curved] = 0.0
    last = [layer for layer in model.decoder.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()[:, -model.latent_dim :] = slopes.float()
        last.bias.copy_((start.flatten() + shift).float())
        model.likelihood.start_noise(found.noise.float(), y.float())


def start_noise(likelihood: Likelihood, columns: Columns, y: Float[Tensor, "rows columns"]) -> None:
    """Sets the noise from the spread of the columns, for a decoder that ignores z at first."""
    y = _sampled(y, min(_MOST_ROWS, _MOST_ENTRIES // y.shape[1])).double()
    likelihood.start_noise(column_spreads(_numbers(columns, y)).float(), y.float())


def _sampled(y: Float[Tensor, "rows columns"], most: int) -> Float[Tensor, "sample columns"]:
    """Returns evenly spaced rows, and further rows in which rarely observed columns are observed.

    Without these further rows, a column might be missing in every row of the sample.
    """
    taken = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    taken[:: 1 + (len(y) - 1) // most] = True
    observed = ~y.isnan()
    for place in (observed[taken].sum(dim=0) < _FEWEST).nonzero()[:, 0].tolist():
        taken[observed[:, place].nonzero()[:_FEWEST, 0]] = True
    return y[taken]


def factor_analysis(x: Float[Tensor, "rows columns"], latent_dim: int) -> Factors:
    """Fits factor analysis to the columns that vary; the result is in the columns' units."""
    spread = (x - x.nanmean(dim=0)).square().nanmean(dim=0).sqrt()
    used = (spread > 0).nonzero().flatten()  # not nan, which is the spread of no entries
    standard = ((x - x.nanmean(dim=0)) / spread)[:, used]
    standard = standard[~standard.isnan().all(dim=1)]
    blank = Factors(x.new_zeros(x.shape[1], latent_dim), x.nanmean(dim=0), spread)
    blank = Factors(*(part.nan_to_num(nan=0.0) for part in blank))
    if len(used) < 2 or len(standard) < 2:
        return blank
    analysis = LinearGaussian(latent_dim, len(used), Diagonal(_LEAST_NOISE)).to(x.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "EM did not converge")  # only a start is needed
        analysis.fit_em(standard, tolerance=1e-4, max_steps=200)
    sd = analysis.variance().sqrt()
    rotation = torch.linalg.svd(analysis.loadings / sd[:, None], full_matrices=True).Vh.mT
    unit = spread[used]
    blank.loadings[used] = unit[:, None] * (analysis.loadings @ rotation).detach()
    blank.mean[used] += unit * analysis.mean.detach()
    blank.noise[used] = unit * sd.detach()
    return blank


def _numbers(columns: Columns, y: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Returns the table as numbers for factor analysis; unordered categories become nan."""
    parts = []
    for kind, part in zip(columns.kinds.values(), y.mT, strict=True):
        if isinstance(kind, Categories) and not isinstance(kind, Binary | Ordered):
            parts.append(torch.full_like(part, torch.nan))
        elif isinstance(kind, Count):
            parts.append(part.clamp(min=0).log1p())
        elif isinstance(kind, Positive):
            parts.append(part.clamp(min=torch.finfo(part.dtype).tiny).log())
        else:
            parts.append(part)
    return torch.stack(parts, dim=1)


@torch.enable_grad()
def start_experts(map: ProductOfExperts, model: VAE, y: Float[Tensor, "rows columns"]) -> None:
    """Sets an encoder's experts so that their product is the posterior of the linearized model.

    An expert is the Gaussian factor that one column, or one category, contributes to q(z | y). Its
    parameters are slopes, a gain, an offset and a weight. The model is linearized at z = 0. The
    score is the derivative of log p(y | z) in the decoder's output, and the curvature is minus the
    derivative of the score. For a numeric column, gain and offset come from a regression of the
    score on the number, and the weight is the mean curvature. For an indicator of a category, the
    slopes are the decoder's slopes times the category's mean score, and the weight is the
    category's share of the rows.

    Arguments:
        map: The encoder.
        model: The model.
        y: Encoded training rows.
    """
    y = _sampled(y, _ROWS_OF_EXPERTS).double()
    model, origin = copy.deepcopy(model).double(), y.new_zeros(model.latent_dim)
    slopes: Tensor = jacobian(lambda z: model.decoder(z[None])[0], origin)
    output = model.decoder(origin[None]).detach().expand(len(y), -1).clone().requires_grad_()
    features: Any = model.likelihood(output)
    log_p = features.base_dist.log_prob(y)  # (rows, columns)
    numbers, _ = map.net.numbers(y)
    experts = [
        _experts_of(log_p[:, place], output, slopes, y[:, place], numbers[:, own])
        for place in range(y.shape[1])
        for own in [map.net.columns == place]
    ]
    map.set_experts(*(part.float() for part in join(experts)))


class _Experts(NamedTuple):
    """Arguments of :meth:`pyro_vae.guides.ProductOfExperts.set_experts` for one column."""

    slopes: Float[Tensor, "features latents"]
    gain: Float[Tensor, " features"]
    offset: Float[Tensor, " features"]
    weight: Float[Tensor, " features"]


def _experts_of(
    log_p: Float[Tensor, " rows"],
    output: Float[Tensor, "rows outputs"],
    slopes: Float[Tensor, "outputs latents"],
    y: Float[Tensor, " rows"],
    x: Float[Tensor, "rows features"],
) -> _Experts:
    """Returns the experts of a column: one if it is numeric, otherwise one per category."""
    (score,) = torch.autograd.grad(log_p.sum(), output, create_graph=True)
    seen = ~y.isnan()
    if x.shape[1] > 1:
        times = x.sum(dim=0)
        scores = x.mT @ score.detach() / times.clamp(min=1)[:, None]
        one = torch.ones_like(times)
        return _Experts(scores @ slopes, one, 0 * one, (times + 0.5) / (seen.sum() + 1))
    if not bool(seen.any()):  # nothing is known about how the column depends on z
        zero = y.new_zeros(1)
        return _Experts(0 * slopes[:1], zero, zero, zero + _LEAST_WEIGHT)
    place = score.abs().sum(dim=0).argmax()
    (curvature,) = torch.autograd.grad(score[:, place].sum(), output, retain_graph=True)
    weight = -curvature[seen, place].mean()
    values = torch.stack([x[seen, 0], torch.ones_like(x[seen, 0])], dim=1)
    gain, offset = torch.linalg.lstsq(values, score[seen, place].detach()[:, None]).solution
    return _Experts(slopes[place][None], gain, offset, weight.clamp(min=_LEAST_WEIGHT)[None])
