r"""Draws of missing entries, given the observed entries of the same row.

.. math:: p(y_M \mid y_O) = \int p(y_M \mid z) \, p(z \mid y_O) \, dz

Latents are drawn from a proposal that has seen :math:`y_O`. The draws are weighted by :math:`p(y_O,
z) / q(z \mid y_O)`, resampled in proportion to these weights, and decoded with the noise of p(y |
z). So the imputed values are the model's, not the guide's. A poor guide only reduces the number of
effective draws, and the result reports this number.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from .._types import Batch, Data, Estimate, ProgramLike
from ..data import Categories, Columns, Count, Positive
from ..data.frames import labelled_like, lists_of
from ..evidence import ImportanceSampling, Inference, LogMarginal
from ..formatting import count_of, on_condition
from ..programs import Program
from ..programs.pieces import flat, take_rows
from ..randomness import row_keys, seeded
from ..results import Doubts, PerDatum, combined, data_frame, join, with_rows
from ..stats.checks import weighted_moments
from .forward import drawn_missing
from .weighted import WeightedDraws, estimator_for, prepared_with_holes, weighted_draws


@dataclass(frozen=True, repr=False)
class Imputation(PerDatum):
    """Data with multiple draws of their missing entries.

    Arguments:
        draws: Completed data, `(samples, rows, *datum)`; observed entries are unchanged.
        value: Mean of every entry given the observed entries of its row, `(rows, *datum)`; for an
            observed entry, the entry itself.
        error: Monte Carlo error of `value`; 0 for an observed entry.
        sd: Standard deviation of every entry given the observed entries of its row, with its Monte
            Carlo error; 0 for an observed entry.
        missing: Mask of the entries that were missing.
        ess: Effective sample size of each row's weights, `(rows,)`; nan where nothing is missing.
        pareto_k: Pareto k of each row's weights, `(rows,)`; nan where nothing is missing.
        doubts: Reasons not to trust a row, each with a mask of the rows.
        given: Text that names the global sites on which the results are conditional; empty if there
            are none.
        table: The columns, if the data are a table.
        asked: The table that was passed, or None; its index and column labels are used for the
            completed table.
    """

    draws: Float[Tensor, "samples rows *datum"] = field(metadata={"axis": 1})
    value: Float[Tensor, "rows *datum"]
    error: Float[Tensor, "rows *datum"]
    sd: Estimate
    missing: Bool[Tensor, "rows *datum"]
    ess: Float[Tensor, " rows"]
    pareto_k: Float[Tensor, " rows"]
    doubts: Doubts = field(default_factory=dict)
    given: str = ""
    table: Columns | None = field(default=None, metadata={"axis": None})
    asked: Any = field(default=None, metadata={"axis": None})

    _is_drawn_fast = False

    def interval(self, level: float = 0.95) -> Float[Tensor, "ends rows *datum"]:
        """Computes a central interval for every entry: a prediction interval for one more draw.

        A further draw lies between the i-th and the j-th smallest of K draws with a probability of
        exactly (j - i) / (K + 1). For levels between these probabilities, the ends of the interval
        are interpolated. For a level higher than (K - 1) / (K + 1), a Student t interval is
        computed from the mean and the standard deviation of the draws, or of their logarithms in a
        column of kind `Positive`.

        Arguments:
            level: Probability that the interval contains the entry, under the model.
        """
        number, tail = len(self.draws), (1 - level) / 2
        place = tail * (number + 1) - 1  # rank of the lower end, counted from 0
        if place < 0:
            return self._student(tail)
        share = place / (number - 1)
        return self.draws.quantile(self.draws.new_tensor([share, 1 - share]), dim=0)

    def _student(self, tail: float) -> Float[Tensor, "ends rows *datum"]:
        """Returns a Student t prediction interval; `tail` is the probability beyond each end."""
        from scipy.special import stdtrit  # a third of a second to import

        number = len(self.draws)
        if number < 2:  # one draw does not show the spread
            return torch.full_like(self.draws, torch.nan).expand(2, *self.draws.shape[1:])
        far = float(stdtrit(number - 1, 1 - tail)) * (1 + 1 / number) ** 0.5
        kinds = () if self.table is None else self.table.kinds.values()
        positive = [isinstance(kind, Positive) for kind in kinds] or False
        logs = torch.tensor(positive, device=self.draws.device)
        draws = torch.where(logs, self.draws.where(logs, 1.0).log(), self.draws)
        middle, away = draws.mean(dim=0), far * draws.std(dim=0)
        ends = torch.stack([middle - away, middle + away])
        return torch.where(logs, ends.exp(), ends)

    @property
    def most_frequent(self) -> Float[Tensor, "rows *datum"]:
        """The most frequent value of every entry among the draws (for categories and counts)."""
        return self.draws.mode(dim=0).values

    def filled(self) -> Float[Tensor, "rows *datum"]:
        """Returns a value per entry: the most frequent category, the median count, or the mean."""
        if self.table is None:
            return self.value
        filled = self.value.clone()
        for place, kind in enumerate(self.table.kinds.values()):
            if isinstance(kind, Categories):
                filled[:, place] = self.most_frequent[:, place].to(filled)
            elif isinstance(kind, Count):
                filled[:, place] = self.draws[..., place].median(dim=0).values.to(filled)
        return filled

    def completed(self) -> Any:
        """Returns the table in the units and dtypes of its columns, with missing entries filled in.

        A pandas table keeps its index and its column labels.

        Raises:
            ValueError: If the columns are not known: use :class:`pyro_vae.TableVAE`.
        """
        return labelled_like(self._decoded(), self.asked)

    def entries(self, level: float = 0.95) -> Any:
        """Returns a data frame with a row per missing entry; needs pandas.

        Each row has the imputed value and a central interval, in the unit of the column. For a
        category there is no interval; the share of the draws that are equal to the category is
        given instead.

        Arguments:
            level: Probability that the interval contains the entry, under the model.
        """
        table = self._columns()
        low, high = (lists_of(table.decode(end.double())) for end in self.interval(level))
        filled = lists_of(self._decoded())
        rows, places = self.missing.nonzero(as_tuple=True)
        shares = (self.draws == self.filled().to(self.draws)).double().mean(dim=0)[rows, places]
        entries: dict[str, list[Any]] = {
            key: [] for key in ("row", "column", "filled", "low", "high", "share")
        }
        for row, place, share in zip(rows.tolist(), places.tolist(), shares.tolist(), strict=True):
            name = table.names[place]
            ends = (low[name][row], high[name][row], None)
            if isinstance(table.kinds[name], Categories):
                ends = (None, None, share)
            for key, value in zip(entries, (row, name, filled[name][row], *ends), strict=True):
                entries[key].append(value)
        return data_frame(entries)

    def _decoded(self) -> Any:
        """Returns the completed table, in the units and dtypes of its columns."""
        return self._columns().decode(self.filled())

    def _columns(self) -> Columns:
        """Returns the columns; raises a `ValueError` if they are unknown."""
        if self.table is None:
            raise ValueError("the columns of the table are not known: impute with a pv.TableVAE "
                             "that was made from a table, or decode `draws` yourself")  # fmt: skip
        return self.table

    def summary(self) -> str:
        """Describes how many entries are missing, and how many rows have reliable draws."""
        holes = int(self.missing.sum())
        rows = int(flat(self.missing).any(dim=1).sum())
        share = holes / self.missing.numel()
        worst = self.pareto_k[~self.pareto_k.isnan()]
        tail = f"; Pareto k at most {float(worst.max()):.2f}" if len(worst) else ""
        bad = int((~self.reliable).sum())
        trusted = f"{bad} cannot be trusted ({self.reasons})" if bad else "all can be trusted"
        return (
            f"missing entries: {holes} ({share:.1%}), in {rows} of {count_of(len(self), 'row')}; "
            f"{count_of(len(self.draws), 'draw')} each{tail}; of these rows, {trusted}"
            f"{on_condition(self.given)}"
        )

    def columns(self) -> dict[str, Tensor]:
        """Returns the mean and sd of every entry, and each row's diagnostics, by name."""
        return {
            "mean": self.value,
            "mean_error": self.error,
            "sd": self.sd.value,
            "ess": self.ess,
            "pareto_k": self.pareto_k,
        }

    def plot(self) -> NDArray[Any]:
        """Plots the data and the values that were drawn for missing entries; needs matplotlib.

        A table gets a panel for each column with missing entries, in the unit of the column.
        """
        from ..plots import plot_filled, plot_imputation

        if self.table is not None:
            return plot_filled(self.filled(), self.draws, self.missing, self.table)
        return plot_imputation(self.value.masked_fill(self.missing, torch.nan), self.draws)


class _Filled(NamedTuple):
    """Imputations of some rows with missing entries, with rows as the first axis."""

    draws: Tensor  # (rows, samples, *datum)
    mean: Tensor
    error: Tensor
    sd: Tensor
    sd_error: Tensor


def impute(
    model: ProgramLike,
    guide: ProgramLike | None,
    data: Data,
    num_samples: int = 100,
    *,
    estimator: ImportanceSampling | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Imputation:
    r"""Draws the missing entries (nan) of every row, given the row's observed entries.

    .. math:: z_k \sim q(z \mid y_O), \quad w_k = \frac{p(y_O, z_k)}{q(z_k \mid y_O)}, \qquad
        z \sim \sum_k s_k \delta_{z_k}, \quad y_M \sim p(y_M \mid z)

    Whether an entry is missing must not depend on its value, given the observed entries (missing at
    random), unless the model describes this dependence
    (:class:`pyro_vae.likelihoods.SelfMasking`). The shares :math:`s_k` are the weights, smoothed
    and divided by their sum. Means and standard deviations use all weighted draws of z, with one
    draw of y for each. For the completed data sets, z is resampled with the probabilities
    :math:`s_k`, and y is drawn anew.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data, whose likelihood accepts
            missing entries.
        guide: A guide that handles missing entries, such as an encoder in
            `pv.nets.MissingIndicator`. `None` fits a Gaussian to the posterior of every row
            (:class:`pyro_vae.Fitted`), which needs no encoder.
        data: The batch tensor, or a tuple of them; nan in the first tensor is filled in.
        num_samples: Number of completed data sets.
        estimator: The number of draws of latents per row, at least 30, and the proposal; by default
            2,000 draws from the guide. Its `average` is not used: weights are Pareto-smoothed.
        given: Values of the latent sites that all data share, by name.
        seed: Seed of the draws; a row's draws depend only on the seed and the row.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Completed data sets, the mean and the standard deviation of every entry with their Monte
        Carlo errors, and which rows to trust.

    Raises:
        ValueError: If model or guide refuse missing entries (with the remedy), or a row has no
            observed entry.
        FloatingPointError: If a log density is nan or plus infinity.

    References:
        | MIWAE: Deep Generative Modelling and Imputation of Incomplete Data (Mattei & Frellsen,
          2019)
        | https://arxiv.org/abs/1812.02633
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> from pyro_vae import likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> y = torch.tensor([[0.5, torch.nan, 1.0], [1.0, 2.0, 3.0]])
        >>> filled = impute(model, None, y, num_samples=10)
        >>> filled.draws.shape, filled.missing.sum(), bool((filled.draws[:, 1] == y[1]).all())
        (torch.Size([10, 2, 3]), tensor(1), True)
    """
    how = estimator_for(guide, estimator)
    with prepared_with_holes(model, guide, data, seed, given) as (program, posterior, batch):
        holes = batch[0].isnan()
        rows = flat(holes).any(dim=1).nonzero()[:, 0]
        whole = _unfilled(batch[0], num_samples, program.conditions)
        if not len(rows):
            return whole
        part = take_rows(batch, rows)
        incomplete = Inference(program, posterior.rows(rows), part)
        weighted = weighted_draws(incomplete, how, seed=seed, progress=progress)
        pieces = [
            (_filled(program, block, part, num_samples, seed), block.evidence) for block in weighted
        ]
    filled, evidence = join(pieces)
    return with_rows(whole, rows, _imputed(part[0], filled, evidence))


def _filled(
    program: Program, block: WeightedDraws, batch: Batch, num_samples: int, seed: int
) -> _Filled:
    """Imputes some rows with missing entries, each row from a separate random stream."""
    part = take_rows(batch, block.rows)
    keys = row_keys(seed, "imputation", *batch)[block.rows].tolist()
    rows = [
        _filled_row(program, block, take_rows(part, slice(i, i + 1)), i, num_samples, key)
        for i, key in enumerate(keys)
    ]
    filled: _Filled = combined(rows, torch.stack)
    return filled


def _filled_row(
    program: Program, block: WeightedDraws, row: Batch, place: int, num_samples: int, key: int
) -> _Filled:
    """Imputes one row, which is the row `place` of the block.

    Moments are computed from weighted draws of z, and completed data from resampled draws of z.
    """
    seeded(key)
    z, shares = block.z[:, place : place + 1], block.shares[:, place]
    resampled = torch.multinomial(shares, num_samples, replacement=True)
    y = drawn_missing(program, torch.cat([z, z[resampled]]), row)[:, 0]
    every, draws = y[: len(z)].double(), y[len(z) :]
    mean, sd = weighted_moments(every, shares.reshape(-1, *[1] * (every.dim() - 1)))
    return _Filled(draws.to(row[0]), *mean, sd.value, sd.error.where(sd.value > 0, 0.0))


def _imputed(y: Tensor, filled: _Filled, evidence: LogMarginal) -> Imputation:
    """Returns the imputation of rows with missing entries; observed entries stay unchanged."""
    missing, known = y.isnan(), y.nan_to_num()
    return Imputation(
        draws=filled.draws.movedim(1, 0).where(missing, known),
        value=filled.mean.where(missing, known.double()),
        error=filled.error.where(missing, 0.0),
        sd=Estimate(filled.sd.where(missing, 0.0), filled.sd_error.where(missing, 0.0)),
        missing=missing,
        ess=evidence.ess,
        pareto_k=evidence.pareto_k,
        doubts=evidence.doubts,
    )


def _unfilled(y: Tensor, num_samples: int, given: str) -> Imputation:
    """Returns an imputation of rows without missing entries: all draws are copies of the data."""
    zero = torch.zeros_like(y, dtype=torch.float64)
    unknown = torch.full((len(y),), math.nan, dtype=torch.float64, device=y.device)
    draws = y.expand(num_samples, *y.shape).clone()
    known, sd = y.double(), Estimate(zero, zero)
    return Imputation(draws, known, zero, sd, y.isnan(), unknown, unknown, given=given)
