r"""Marginal and conditional densities of features under a fitted model.

If the likelihood factorizes over features, the marginal density of some features is computed by
treating the other features as unobserved. A conditional density is the ratio of two marginal
densities. The conditional density of one feature :math:`y_c` given the observed entries :math:`y_O`
is also computed as a curve. It is the feature's density given z, averaged over the posterior of z.
The posterior is represented by draws :math:`z_k` with weights :math:`s_k`:

.. math:: p(y_c \mid y_O) = \int p(y_c \mid z) \, p(z \mid y_O) \, dz
    \approx \sum_k s_k \, p(y_c \mid z_k)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._types import Batch, Data, Estimate, ProgramLike
from ..data import Categories, Column, Real, Time
from ..evidence import Bound, ImportanceSampling, LogMarginal, log_marginal_likelihood
from ..evidence.estimates import Estimator
from ..formatting import count_of, on_condition
from ..guides.entry import for_any_rows
from ..programs import Program, as_batch
from ..programs.modes import device_of
from ..programs.pieces import flat, take_rows
from ..programs.structure import of_modelled_missingness
from ..randomness import seeded, stream
from ..results import Doubts, PerDatum, combined, either, join, with_rows
from ..stats.checks import weighted_mean
from .forward import drawn, features
from .weighted import (
    WeightedDraws,
    chosen,
    default_estimator,
    estimator_for,
    guide_for,
    label_of,
    prepared_with_holes,
    require_holes,
    weighted_draws,
    with_holes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 201  # points of the default grid
_BEYOND = 0.1  # at either end, the grid extends beyond the draws by this share of their range
_ENTRIES = 4_000_000  # number of densities computed at once: 32 MB in float64
_CURVES = 5  # number of rows in a figure: more curves cannot be told apart
_MOST_VALUES = 100  # over a wider range, the grid has only some of the whole numbers
_MOST_WHOLE = 2.0**24  # larger numbers are all whole in float32, so wholeness shows nothing


def marginal(
    model: ProgramLike,
    guide: ProgramLike | None,
    data: Data,
    columns: Sequence[int] | Sequence[str],
    estimator: Estimator | None = None,
    *,
    names: Sequence[str] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> LogMarginal:
    r"""Estimates the log density of some features of every datum, integrating out all others.

    .. math:: \log p(y_A) = \log \int \prod_{d \in A} p(y_d \mid z) \, p(z) \, dz

    Arguments:
        model: A Pyro program with one plate over data, whose likelihood accepts missing entries.
        guide: A guide that handles missing entries. If it is `None`, or if it has
            :class:`pyro_vae.LocalParameters` (which were fitted to all entries of the rows), a
            Gaussian is fitted to the posterior of every row instead.
        data: The batch tensor, or a tuple of them; entries of other columns are ignored.
        columns: The features, by position in the flattened datum or by name.
        estimator: As in :func:`pyro_vae.log_marginal_likelihood`.
        names: Names of the columns.
        given: Values of the global latent sites, by name.
        seed: Seed of the draws.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Values in nats, `(batch,)`, with their errors and doubts. Chosen entries that are missing
        are integrated out, too.

    Warns:
        UserWarning: If some values cannot be trusted.

    Raises:
        ValueError: If a column is unknown, model or guide refuse missing entries, or all the
            chosen entries of a row are missing.
        TypeError: If the model describes why entries are missing, as `SelfMasking` does.

    Example:
        >>> from pyro_vae import ImportanceSampling, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> y = torch.zeros(4, 3)
        >>> marginal(model, None, y, ["height"], names=["age", "height", "size"]).value.shape
        torch.Size([4])
    """
    guide, given = for_any_rows(guide, given)
    batch = as_batch(data, device_of(model, guide or model))
    seen = with_holes(batch, ~chosen(columns, names, batch[0]))
    return _log_p(model, guide, seen, estimator, given, seed, progress=progress)


def conditional(
    model: ProgramLike,
    guide: ProgramLike | None,
    data: Data,
    columns: Sequence[int] | Sequence[str],
    on: Sequence[int] | Sequence[str] | None = None,
    estimator: Estimator | None = None,
    *,
    names: Sequence[str] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> LogMarginal:
    r"""Estimates the conditional log density of some features of every datum, given others.

    .. math:: \log p(y_A \mid y_B) = \log p(y_A, y_B) - \log p(y_B)

    The two terms are estimated from separate draws, so the squares of their errors add. The
    proposal for each term sees only the entries in that term.

    Arguments:
        model: A Pyro program with one plate over data, whose likelihood accepts missing entries.
        guide: A guide that handles missing entries. If it is `None`, or if it has
            :class:`pyro_vae.LocalParameters` (which were fitted to all entries of the rows), a
            Gaussian is fitted to the posterior of every row instead.
        data: The batch tensor, or a tuple of them.
        columns: Columns A, by position in the flattened datum or by name. They must be observed in
            every row.
        on: Columns B; by default all columns outside A. The result is not conditional on entries of
            B that are missing.
        estimator: As in :func:`pyro_vae.log_marginal_likelihood`.
        names: Names of the columns.
        given: Values of the global latent sites, by name.
        seed: Seed of the draws.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Values in nats, `(batch,)`, with their errors and doubts. Of the two terms, the smaller
        effective sample size and the larger Pareto k are reported.

    Warns:
        UserWarning: If some values cannot be trusted.

    Raises:
        ValueError: If a column is unknown or in both A and B, if an entry of A is missing, or if
            model or guide refuse missing entries.
        TypeError: If the model describes why entries are missing, as `SelfMasking` does.

    Example:
        >>> from pyro_vae import likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> conditional(model, None, torch.zeros(4, 3), [0], on=[1]).bound
        <Bound.TWO_SIDED: 'bias of unknown sign'>
    """
    guide, given = for_any_rows(guide, given)
    batch = as_batch(data, device_of(model, guide or model))
    in_a = chosen(columns, names, batch[0])
    in_b = ~in_a if on is None else chosen(on, names, batch[0])
    _check_sides(batch[0], in_a, in_b)
    both = _log_p(
        model, guide, with_holes(batch, ~(in_a | in_b)), estimator, given, seed, progress=progress
    )
    seen = with_holes(batch, ~in_b)
    rows = flat(~seen[0].isnan()).any(dim=1)
    if not bool(rows.any()):
        return both
    part = take_rows(seen, rows)
    condition = _log_p(model, guide, part, estimator, given, seed, progress=progress)
    return _ratio(both, condition, rows)


def _check_sides(y: Tensor, in_a: Tensor, in_b: Tensor) -> None:
    """Refuses columns that are in both A and B, and rows with missing entries in A."""
    if bool((in_a & in_b).any()):
        raise ValueError(
            "a column is in both `columns` and `on`: remove the column from one of the two"
        )
    lacking = flat(y.isnan() & in_a).any(dim=1)
    if bool(lacking.any()):
        row, number = int(lacking.nonzero()[0]), int(lacking.sum())
        raise ValueError(
            "no entry in `columns` may be missing; got missing entries in "
            f"{number} of {count_of(len(y), 'row')}, the first at row {row}, counted from 0: drop "
            "these rows, or draw the missing entries with pv.impute"
        )


def _log_p(
    model: ProgramLike,
    guide: ProgramLike | None,
    batch: Batch,
    estimator: Estimator | None,
    given: Mapping[str, Tensor] | None,
    seed: int,
    *,
    progress: bool | None,
) -> LogMarginal:
    """Estimates the log density of the observed entries of each row."""
    require_holes(model, batch)
    _require_no_model_of_missingness(model, batch)
    proposal = guide_for(model, guide, batch, given)
    how = estimator or default_estimator(guide, ImportanceSampling.num_samples)
    return log_marginal_likelihood(
        model, proposal, batch, how, given=given, seed=seed, progress=progress
    )


def _require_no_model_of_missingness(model: ProgramLike, batch: Batch) -> None:
    if 0 in of_modelled_missingness(model, batch):
        raise TypeError(
            "the model must not describe why entries are missing, as SelfMasking does: columns "
            "that are left out here would count as missing because of their values. Train a model "
            "without SelfMasking"
        )


def _ratio(both: LogMarginal, condition: LogMarginal, rows: Bool[Tensor, " batch"]) -> LogMarginal:
    """Subtracts `condition`, log p(y_B), from `both`, log p(y_A, y_B).

    `condition` covers only the rows in the mask `rows`, which have observed entries in B. For all
    other rows, log p(y_B) is 0.
    """
    zero = torch.zeros_like(both.value)
    empty = replace(both, value=zero, error=zero, num_samples=zero.long(), doubts={})
    given = with_rows(empty, rows.nonzero()[:, 0], condition)
    exact = both.bound is condition.bound is Bound.EXACT
    return replace(
        both,
        value=both.value - given.value,
        error=torch.hypot(both.error, given.error),
        ess=torch.minimum(both.ess, given.ess),
        pareto_k=torch.maximum(both.pareto_k, given.pareto_k),
        num_samples=both.num_samples + given.num_samples,
        bound=Bound.EXACT if exact else Bound.TWO_SIDED,
        method=f"ratio of two estimates by {both.method}",
        doubts=either(both.doubts, given.doubts),
    )


@dataclass(frozen=True, repr=False)
class ConditionalDensity(PerDatum):
    """Density of one feature given the observed entries of each row.

    Arguments:
        column: Name of the feature.
        grid: Values of the feature, `(points,)`, in the feature's unit.
        density: Density per unit of the feature (for a discrete feature: probability), with the
            Monte Carlo error at every point, `(rows, points)`. Errors at neighbouring points are
            correlated.
        evidence: Log density of the observed entries. It uses the same weights as the curve, so its
            effective sample size, Pareto k and doubts hold for the curve, too.
        given: Text that names the global sites on which all numbers are conditional; empty if there
            are none.
        is_discrete: Whether the feature takes whole numbers only; its densities are then
            probabilities.
        categories: Names of the categories 0, 1, ..., if the feature is categorical.
    """

    column: str
    grid: Float[Tensor, " points"] = field(metadata={"axis": None})
    density: Estimate
    evidence: LogMarginal
    given: str = ""
    is_discrete: bool = False
    categories: tuple[str, ...] = field(default=(), metadata={"axis": None})

    def in_units_of(self, column: Column) -> "ConditionalDensity":
        """Converts the density of an encoded column to the unit of the table's column.

        Arguments:
            column: The column of the table.
        """
        kind = column.kind
        if isinstance(kind, Categories):
            return replace(self, categories=tuple(map(str, kind.categories)))
        if not isinstance(kind, Real):
            return self
        grid = kind.in_own_unit(self.grid.double())
        name = f"{self.column} (days)" if isinstance(kind, Time) else self.column
        density = Estimate(*(part / kind.scale for part in self.density))
        return replace(self, column=name, grid=grid, density=density)

    @property
    def value(self) -> Tensor:
        """Density of the feature for every row and point of the grid, `(rows, points)`."""
        return self.density.value

    @property
    def error(self) -> Tensor:
        """Monte Carlo error of the density for every row and point, `(rows, points)`."""
        return self.density.error

    @property
    def doubts(self) -> Doubts:
        """Reasons to doubt the importance weights of a row, each with a mask of the rows."""
        return self.evidence.doubts

    def summary(self) -> str:
        """Describes the column, the grid, and how many curves can be trusted."""
        low, high = float(self.grid.min()), float(self.grid.max())
        kind = "probabilities" if self.is_discrete else "density"
        return (
            f"{kind} of {self.column} from {low:.4g} to {high:.4g} given the other "
            f"features; {self._doubts_in_words()}{on_condition(self.given)}"
        )

    def plot(self) -> "Axes":
        """Plots the curves of the first rows with their errors; needs matplotlib."""
        from ..plots import plot_conditional_density
        from ..plots.drawing import literal

        shown = range(min(_CURVES, len(self)))
        curves = {f"row {row}": (self.value[row], self.error[row]) for row in shown}
        ax = plot_conditional_density(
            self.grid, curves, name=self.column, discrete=self.is_discrete
        )
        if self.categories:
            ax.set_xticks(range(len(self.categories)), list(map(literal, self.categories)))
        return ax


def conditional_density(
    model: ProgramLike,
    guide: ProgramLike | None,
    data: Data,
    column: int | str,
    grid: Float[Tensor, " points"] | None = None,
    *,
    estimator: ImportanceSampling | None = None,
    names: Sequence[str] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> ConditionalDensity:
    r"""Estimates the density of one feature on a grid, given each row's other observed entries.

    .. math:: p(y_c \mid y_O) \approx \sum_k s_k \, p(y_c \mid z_k), \qquad
        s_k \propto \frac{p(y_O, z_k)}{q(z_k \mid y_O)}

    Arguments:
        model: A Pyro program with one plate over data, whose likelihood accepts missing entries.
        guide: A guide that handles missing entries. If it is `None`, or if it has
            :class:`pyro_vae.LocalParameters` (which were fitted to all entries of the rows), a
            Gaussian is fitted to the posterior of every row instead.
        data: The batch tensor, or a tuple of them. Entries of the column are ignored.
        column: The feature, by position in the flattened datum or by name.
        grid: Values at which the density is evaluated. By default, values of the feature are drawn,
            and the grid has 201 points over the range of these draws. If all draws are whole
            numbers, the feature counts as discrete. The grid then consists of the whole numbers in
            this range, or of about 201 of them if there are more than 100.
        estimator: The number of draws of latents per row, at least 30, and the proposal.
        names: Names of the columns.
        given: Values of the global latent sites, by name.
        seed: Seed of the draws.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        The curve of every row, with its errors.

    Raises:
        ValueError: If the column is unknown, the features are not independent given z, model or
            guide refuse missing entries, or a row has no other observed entry.
        TypeError: If the model describes why entries are missing, as `SelfMasking` does.

    Example:
        >>> from pyro_vae import likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> curve = conditional_density(model, None, torch.zeros(2, 3), 1)
        >>> curve.density.value.shape, curve.column
        (torch.Size([2, 201]), 'column 1')
    """
    guide, given = for_any_rows(guide, given)
    batch = as_batch(data, device_of(model, guide or model))
    _require_no_model_of_missingness(model, batch)
    mask = chosen([column], names, batch[0])
    seen = with_holes(batch, mask)
    label = label_of(column, names)
    _require_others(seen[0], label)
    how = estimator_for(guide, estimator)
    with prepared_with_holes(model, guide, seen, seed, given) as inference:
        program, _, rows = inference
        blocks = list(weighted_draws(inference, how, seed=seed, progress=progress))
        seeded(stream(seed, "densities.grid"))
        draws = torch.cat([_draws(program, block, rows, mask) for block in blocks])
        discrete = bool((draws == draws.round()).all() & (draws.abs() < _MOST_WHOLE).all())
        grid = (_grid(draws, discrete=discrete) if grid is None else grid).to(batch[0])
        curves = [_curve(program, block, rows, mask, grid) for block in blocks]
    evidence: LogMarginal = join([block.evidence for block in blocks])
    return ConditionalDensity(label, grid, join(curves), evidence, program.conditions, discrete)


def _require_others(seen: Tensor, label: str) -> None:
    """Refuses rows in which no column besides `label` is observed."""
    empty = flat(seen.isnan()).all(dim=1)
    if bool(empty.any()):
        raise ValueError(
            f"no entry besides {label} is observed in {int(empty.sum()):,} of "
            f"{count_of(len(empty), 'row', ',')}, the first at row {int(empty.nonzero()[0])}, "
            "counted from 0: drop these rows"
        )


def _draws(program: Program, block: WeightedDraws, batch: Batch, mask: Tensor) -> Tensor:
    """Draws the feature given latents that are resampled in proportion to their weights."""
    again = torch.multinomial(block.shares.T, len(block.z), replacement=True).T.unsqueeze(-1)
    z = block.z.gather(0, again.expand_as(block.z))
    part = take_rows(batch, block.rows)
    return drawn(program, z, part)[..., mask].flatten()


def _grid(draws: Tensor, *, discrete: bool) -> Tensor:
    low, high = float(draws.min()), float(draws.max())
    if discrete and high - low < _MOST_VALUES:
        return torch.arange(low, high + 1, device="cpu")
    if discrete:  # the distribution may have no density between whole numbers, or below the least
        return torch.linspace(low, high, _POINTS, device="cpu").round().unique()
    more = _BEYOND * (high - low)
    # If all draws are positive, the density may not be defined below 0.
    start = max(low - more, low / 2) if low > 0 else low - more
    return torch.linspace(start, high + more, _POINTS, device="cpu")


def _curve(
    program: Program, block: WeightedDraws, batch: Batch, mask: Tensor, grid: Tensor
) -> Estimate:
    """Computes the density at every grid point, with its error, from a block's weighted draws."""
    places = range(block.rows.start, block.rows.start + block.z.shape[1])
    rows = [
        _densities(program, block.z[:, i], take_rows(batch, slice(n, n + 1)), mask, grid)
        for i, n in enumerate(places)
    ]
    pairs = [weighted_mean(row, block.shares[:, i : i + 1]) for i, row in enumerate(rows)]
    return combined(pairs, torch.stack)


def _densities(
    program: Program, z: Tensor, row: Batch, mask: Tensor, grid: Tensor
) -> Float[Tensor, "draws points"]:
    """Computes the density of one feature at each point of the grid, given each draw of z."""
    distribution = features(program, z, row)
    values = distribution.sample()[:1].repeat(len(grid), *[1] * (row[0].dim() - 1))
    values[:, mask] = grid.to(values).unsqueeze(-1)  # the other features only need valid values
    size = max(1, _ENTRIES // (len(z) * row[0].numel()))
    parts = [distribution.log_prob(some.unsqueeze(1))[..., mask] for some in values.split(size)]
    return torch.cat(parts)[..., 0].T.double().exp()
