r"""Dependence between features under the fitted model.

Under p(y), features depend on one another only through z. Correlations are computed from draws of
the model. Mutual information is zero if and only if two features are independent. It is estimated
by an average of log density ratios over draws of the model, and the densities are integrals over z:

.. math:: I(y_i; y_j) = \mathbb{E}_{p(y)} \left[ \log \frac{p(y_i, y_j)}{p(y_i) \, p(y_j)} \right],
    \qquad p(y_i, y_j) = \mathbb{E}_{p(z)} [p(y_i \mid z) \, p(y_j \mid z)] .

One or two features seldom determine z, so draws from the prior suffice for all integrals. The
logarithm of an average over M draws is too low by about :math:`c^2 / 2M`, where c is the
coefficient of variation of the averaged terms. With half of the draws this bias doubles. So twice
the estimate from all draws, minus the estimate from half of them, has no bias of order 1/M.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import stats
from .._types import Batch, Data, Estimate, ProgramLike
from .._warnings import warn
from ..evidence.weights import check_data
from ..formatting import count_of, first_few, plus_minus
from ..likelihoods import Categorical, Mixed
from ..models import VAE
from ..programs import Prior, Program, as_batch, evaluating, simulate
from ..programs.hooks import hooks_of
from ..programs.modes import device_of
from ..programs.pieces import first_rows, flat, take_rows
from ..randomness import seeded, stream
from ..results import Result, data_frame
from .forward import features, simulating

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Limit on the skewness of the mean square of a feature's draws. With 10,000 draws of e^(s z), it is
# exceeded by 53% of samples for s = 1, 94% for 1.5 and 99% for 2, and by no sample of normal,
# Poisson or exponential draws. With few draws, the limit is _OF_FEW divided by the square root of
# their number; exponential draws seldom exceed it.
_SKEWNESS = 0.3
_OF_FEW = 10.0
_LEAST_BATCH = 4  # fewest draws in a batch from which a rank correlation is computed
_FEW = 10  # a feature with so few different values has no tail that draws could have missed
_ENTRIES = 4_000_000  # number of densities computed at once: 32 MB in float64


@runtime_checkable
class Measure(Protocol):
    """A measure of the dependence between two features, computed for every pair."""

    @property
    def label(self) -> str:
        """Name of the measure, with its unit."""

    def __call__(self, program: Program, row: Batch, seed: int) -> Estimate:
        """Returns the measure and its error for every pair of features, `(features, features)`."""


@dataclass(frozen=True)
class Correlation:
    r"""Pearson's correlation, which measures linear dependence.

    .. math:: r_{ij} = \overline{u_i u_j}, \qquad \text{error}^2 = \frac{1}{S}
        \operatorname{Var}\left[u_i u_j - \tfrac{1}{2} r_{ij} (u_i^2 + u_j^2)\right]

    for S draws of standardized features u. The error comes from the influence function. It is
    consistent for every distribution with finite fourth moments. If a few draws dominate the
    variance of a feature, as for e^(2 z) with a normal z, its correlations are too large or too
    small by an unknown amount, and their errors are nan. Then use :class:`RankCorrelation`,
    which does not depend on the tails.

    Arguments:
        num_samples: Draws of data.
    """

    num_samples: int = 10_000
    label = "correlation"

    def __call__(self, program: Program, row: Batch, seed: int) -> Estimate:
        """Estimates the correlation of every pair of features, from draws of the model."""
        y = _simulated(program, row, self.num_samples, seed)
        value, error = correlation(y)
        heavy = _heavy(y)
        return Estimate(value, error.masked_fill(heavy | heavy.unsqueeze(1), torch.nan))


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation, which measures monotonic dependence and ignores units.

    Its standard error is estimated from the spread over batches of draws. If a feature is constant
    in a batch, as a rare category may be, the batch is not used for the pairs of this feature.

    Arguments:
        num_samples: Draws of data.
        num_batches: Number of batches for the standard error, at least two. It is reduced if
            needed, so that each batch has at least 4 draws.
    """

    num_samples: int = 10_000
    num_batches: int = 50
    label = "rank correlation"

    def __call__(self, program: Program, row: Batch, seed: int) -> Estimate:
        """Estimates the rank correlation of every pair of features, from draws of the model."""
        y = _simulated(program, row, self.num_samples, seed)
        number = max(2, min(self.num_batches, len(y) // _LEAST_BATCH))
        batches = y.tensor_split(number)
        parts = torch.stack([correlation(_ranks(batch)).value for batch in batches])
        known = parts.isfinite().sum(dim=0)
        squares = (parts - parts.nanmean(dim=0)).square().nansum(dim=0)
        error = (squares / (known - 1) / number).sqrt()
        return Estimate(correlation(_ranks(y)).value, error.where(known > 1, torch.nan))


@dataclass(frozen=True)
class MutualInformation:
    """Mutual information in nats, which measures any dependence and ignores the units of features.

    The value is the mean over independent replicates, each with separate draws of data and latents.
    The error is the standard error of this mean. The diagonal is nan. The value of a pair of
    features is nan, too, if for some datum every prior draw of z gives zero density to the values
    of the pair. If the noise of a feature is narrow compared with its spread, `num_latents` must be
    large; if it is too small, the error is large.

    Arguments:
        num_samples: Draws of data per replicate.
        num_latents: Prior draws per replicate, an even number; all data of a replicate share them.
        num_replicates: Number of replicates, at least two.
    """

    num_samples: int = 100
    num_latents: int = 1000
    num_replicates: int = 20
    label = "mutual information (nats)"

    def __call__(self, program: Program, row: Batch, seed: int) -> Estimate:
        """Estimates the mutual information of every pair, from independent replicates."""
        values = [
            self._replicate(program, row, stream(seed, f"dependence.{r}"))
            for r in range(self.num_replicates)
        ]
        estimate = stats.mean_estimate(torch.stack(values))
        lost = ~estimate.value.isfinite() | ~estimate.error.isfinite()
        pairs = int(lost.triu(diagonal=1).sum())
        if pairs > 0:
            warn(
                f"the mutual information of {count_of(pairs, 'pair')} is nan, because some datum "
                f"has density 0 under all {count_of(self.num_latents, 'draw')} of the prior: pass "
                f"`measure=pv.queries.MutualInformation(num_latents={10 * self.num_latents})`"
            )
        return Estimate(*(part.masked_fill(lost, torch.nan) for part in estimate))

    def _replicate(self, program: Program, row: Batch, seed: int) -> Tensor:
        """Estimates the mutual information of every pair from one replicate, with its own draws."""
        y = _simulated(program, row, self.num_samples, seed)
        seeded(stream(seed, "dependence.latents"))  # not the latents that generated the data
        z = Prior(program, row).sample(self.num_latents)[:, 0]
        distribution = features(program, z, row)
        size = max(1, _ENTRIES // (self.num_latents * y.shape[1]))
        shape = row[0].shape[1:]
        parts = []
        for some in y.split(size):
            values = some.to(row[0]).reshape(len(some), 1, *shape)
            log_p = flat(distribution.log_prob(values), 2).double()  # (data, latents, features)
            parts.append(_information(log_p))
        information = torch.cat(parts).mean(dim=0)
        return information.fill_diagonal_(torch.nan)


def _information(log_p: Float[Tensor, "data latents features"]) -> Tensor:
    """Corrects :func:`_log_ratio` for its bias of order 1/M, where M is the number of latents."""
    first, second = (_log_ratio(half) for half in log_p.chunk(2, dim=1))
    return 2 * _log_ratio(log_p) - (first + second) / 2


def _log_ratio(log_p: Float[Tensor, "data latents features"]) -> Tensor:
    """Returns log(p(y_i, y_j) / (p(y_i) p(y_j))) for all pairs, `(data, features, features)`."""
    peak = log_p.amax(dim=1, keepdim=True)
    p = (log_p - peak).exp()  # the peaks of both features cancel in the ratio
    single = p.mean(dim=1).log()
    both = (p.transpose(1, 2) @ p / log_p.shape[1]).log()
    return both - single.unsqueeze(-1) - single.unsqueeze(-2)


def correlation(y: Float[Tensor, "draws features"]) -> Estimate:
    """Correlation matrix of independent draws, with errors; nan for a constant feature.

    Arguments:
        y: Draws, `(draws, features)`, in any unit.

    Returns:
        Value and error, each `(features, features)`, without unit.

    Example:
        >>> y = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, -1.0], [0.0, 1.0]])
        >>> round(float(correlation(y).value[0, 1]), 6)
        -1.0
    """
    centred = y.double() - y.double().mean(dim=0)
    u = centred / centred.square().mean(dim=0).sqrt()
    value, count = u.T @ u / len(u), len(u)
    squares = u.square()
    # Var[u_i u_j - r (u_i^2 + u_j^2) / 2] by moments, without a tensor (draws, features, features)
    second = squares.T @ squares / count
    cubes = (squares * u).T @ u / count
    fourth = squares.square().mean(dim=0)
    variance = (
        second
        - value * (cubes + cubes.T)
        + value.square() * (fourth.unsqueeze(0) + fourth.unsqueeze(1) + 2 * second) / 4
    )
    return Estimate(value, (variance.clamp(min=0) / count).sqrt())


def _heavy(y: Float[Tensor, "draws features"]) -> Bool[Tensor, " features"]:
    """Returns a mask of the features whose variance is dominated by a few draws.

    For such a feature, the mean square over the draws is far from normally distributed: the
    skewness of the mean square, which is estimated from the same draws, is large.
    """
    squares = (y.double() - y.double().mean(dim=0)).square()
    away = squares - squares.mean(dim=0)
    skewness = away.pow(3).sum(dim=0) / away.square().sum(dim=0) ** 1.5
    heavy = skewness > max(_SKEWNESS, _OF_FEW / len(y) ** 0.5)
    for place in heavy.nonzero()[:, 0].tolist():
        heavy[place] = len(y[:, place].unique()) > _FEW
    return heavy


def _ranks(y: Float[Tensor, "draws features"]) -> Tensor:
    """Returns ranks within each column, where equal values get the average of their ranks."""
    values = y.T.contiguous()
    ordered = values.sort(dim=-1).values
    low = torch.searchsorted(ordered, values)
    high = torch.searchsorted(ordered, values, right=True)
    return ((low + high).double() / 2).T


def _simulated(program: Program, row: Batch, num_samples: int, seed: int) -> Tensor:
    """Draws data from the model and flattens each datum, `(draws, features)`."""
    return flat(simulate(program, first_rows(row, num_samples), seed)[1][0])


@dataclass(frozen=True, repr=False)
class Dependence(Result):
    """The dependence between the two features of every pair, as implied by a model.

    Arguments:
        estimate: Value and Monte Carlo error, each `(features, features)`.
        names: Names of the features.
        measure: Name of the measure.
        given: Text that names the global sites on which the dependence is conditional; empty if
            there are none.
    """

    estimate: Estimate
    names: tuple[str, ...]
    measure: str
    given: str = ""

    _is_drawn_fast = False

    def plot(self) -> "Axes":
        """Plots the matrix of all pairs as a heat map; needs matplotlib."""
        from ..plots import plot_dependence

        value, error = self.estimate
        return plot_dependence(value, self.names, error, measure=self.measure)

    def strongest(self, number: int = 10) -> list[tuple[str, str, float, float]]:
        """Returns the most dependent pairs: for each, two names, the value, and its error."""
        value, error = (part.cpu() for part in self.estimate)
        rows, columns = torch.triu_indices(len(value), len(value), offset=1, device="cpu")
        strength = value[rows, columns].abs().nan_to_num(-1.0)
        order = strength.argsort(descending=True)[:number].tolist()
        places = [(int(rows[place]), int(columns[place])) for place in order]
        return [
            (self.names[i], self.names[j], float(value[i, j]), float(error[i, j]))
            for i, j in places
        ]

    def to_dataframe(self) -> Any:
        """Returns all pairs with standard errors, the most dependent pair first; needs pandas."""
        pairs = self.strongest(len(self.names) * (len(self.names) - 1) // 2)
        names = ("one", "other", self.measure, "error")
        return data_frame([dict(zip(names, pair, strict=True)) for pair in pairs])

    def summary(self, number: int = 10) -> str:
        """Describes the most dependent pairs, one per line."""
        pairs = self.strongest(number)
        lines = [
            f"{a} and {b}: {plus_minus(value, error)}"
            f"{', with an unknown error' if math.isnan(error) and not math.isnan(value) else ''}"
            for a, b, value, error in pairs
        ]
        return "\n".join([f"{self.measure} of features under the model", *lines])


def dependence(
    model: ProgramLike,
    guide: ProgramLike | None = None,
    data: Data | None = None,
    measure: Measure | None = None,
    *,
    names: Sequence[str] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Dependence:
    r"""Estimates the dependence under p(y) between the two features of every pair.

    The result is a property of the model. If the dependence in the data differs, the model does not
    fit.

    Arguments:
        model: A Pyro program with one plate over data.
        guide: Only needed for the values of global latent sites, if there are any.
        data: A batch. Only the shape of its first tensor and the first row of the other tensors are
            used. A model with a method `prototype()` needs no batch.
        measure: :class:`Correlation` (the default), :class:`RankCorrelation` or
            :class:`MutualInformation`. Only mutual information suits categories without an order.
        names: Names of the features; their positions by default.
        given: Values of the global latent sites, by name.
        seed: Seed of all draws.

    Returns:
        Value and error of every pair.

    Warns:
        UserWarning: If some categories have no order (their correlations are nan), or if a few
            draws dominate the variance of a feature (the errors of its correlations are nan).

    Raises:
        ValueError: If the number of names is wrong, or the program cannot be simulated.

    Example:
        >>> from pyro_vae import likelihoods, models
        >>> net = torch.nn.Linear(1, 2, bias=False)
        >>> _ = net.weight.data.fill_(3.0)
        >>> model = models.VAE(net, likelihoods.Gaussian(), latent_dim=1)
        >>> value, error = dependence(model, names=["a", "b"]).estimate
        >>> bool((value[0, 1] - 0.9).abs() < 5 * error[0, 1])
        True
    """
    row = _one_row(model, data)
    with simulating(model, guide, row, seed, given) as program:
        size = row[0].numel()
        known = tuple(map(str, range(size))) if names is None else tuple(names)
        if len(known) != size:
            raise ValueError(
                f"`names` must be {count_of(size, 'name')}, one per feature; got {len(known)}"
            )
        how = measure or Correlation()
        estimate = how(program, row, seed)
        if isinstance(how, Correlation | RankCorrelation):
            if isinstance(how, Correlation):
                _warn_of_tails(estimate, known)
            estimate = _without_nominal(estimate, model, known)
        return Dependence(estimate, known, how.label, program.conditions)


def _warn_of_tails(estimate: Estimate, names: tuple[str, ...]) -> None:
    """Warns about features whose correlations have an unknown error (nan)."""
    value, error = (part.diagonal() for part in estimate)
    heavy = [name for name, bad in zip(names, value.isfinite() & error.isnan(), strict=True) if bad]
    if heavy:
        warn(
            f"a few draws dominate the variance of {first_few(heavy)}, so correlations with "
            "such a feature are unknown, and their errors are nan: pass "
            "`measure=pv.queries.RankCorrelation()`"
        )


def _without_nominal(estimate: Estimate, model: ProgramLike, names: tuple[str, ...]) -> Estimate:
    """Warns about columns whose categories have no order, and sets their correlations to nan."""
    if not isinstance(model, VAE) or not isinstance(model.likelihood, Mixed):
        return estimate
    places = [n for n, part in enumerate(model.likelihood) if isinstance(part, Categorical)]
    if not places:
        return estimate
    warn(
        f"columns {[names[place] for place in places]} have categories without an order, so "
        "correlations with their codes are meaningless and set to nan: pass "
        "`measure=pv.queries.MutualInformation()`"
    )
    value, error = (part.clone() for part in estimate)
    for part in (value, error):
        part[places] = torch.nan
        part[:, places] = torch.nan
    return Estimate(value, error)


def _one_row(model: ProgramLike, data: Data | None) -> Batch:
    """Returns the first row of the data, or of the model's prototype, without missing entries."""
    if data is None:
        prototype = hooks_of(model).prototype
        if prototype is None:
            raise ValueError(
                "the shape of the data is unknown, because the model has no method prototype(): "
                "pass `data=y[:1]`"
            )
        with evaluating(model), torch.no_grad():
            return take_rows(as_batch(prototype(), device_of(model)), slice(1))
    batch = as_batch(data, device_of(model))
    check_data(model, batch)
    first, *others = take_rows(batch, slice(1))
    return (first.nan_to_num(nan=0.0), *others)  # simulated rows would lack the same entries
