r"""Effects of latents: how far each column moves as one latent moves over its range.

One latent is moved from its 2.5% to its 97.5% quantile in the data, while the other latents stay
fixed. With fewer than 60 data, the two quantiles are less extreme, so that the range leaves out the
outermost data. Each column is decoded at the two ends of the range, :math:`z_d^{-}` and
:math:`z_d^{+}`. To make effects comparable between columns, effects on numbers are in standard
deviations of the column, and effects on categories are in probability:

.. math:: e_{dj} = \frac{\mathbb{E}[y_j \mid z_d^{+}] - \mathbb{E}[y_j \mid z_d^{-}]}{s_j}
    \qquad\text{or}\qquad
    e_{dj} = \tfrac{1}{2} \sum_k |p(y_j = k \mid z_d^{+}) - p(y_j = k \mid z_d^{-})|

Here :math:`s_j` is the standard deviation of column j over the training rows, so that the unit of
an effect does not depend on the rows that are passed. Without a table the training rows are not
known, and the standard deviation of the given rows is used. Positive numbers
(:class:`pyro_vae.data.Positive`) are compared by their logarithms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Batch, Data, ProgramLike
from ..data import Binary, Categories, Columns, Count, Kind, Positive, Real, Time
from ..evidence.weights import conditioned
from ..formatting import count_of, four_digits
from ..programs import Program
from ..programs.pieces import flat, take_rows
from ..results import Result, data_frame
from .forward import features
from .traversal import Traversal, moved, standardized, traverse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SLIGHT = 0.2  # sd or probability: smaller effects are left out of the summary
_SILENT = 0.05  # nats: latents with less information count as uninformative
_MOST = 5  # number of columns named for each latent


@dataclass(frozen=True, repr=False)
class Explanation(Result):
    """The effect of each latent on each column, the most informative latent first.

    Arguments:
        traversal: Decoded means along each latent, from which the effects are computed.
        columns: Names of the columns.
        effect: Change of each column from the lowest to the highest level of each latent,
            `(latents, columns)`. For numbers: signed, in standard deviations of the column over
            the training rows. For more than two categories: the total variation distance. For
            two categories: the change in the probability of the second category.
        words: The effects as text, in the unit of the column, `(latents, columns)`.
    """

    traversal: Traversal
    columns: tuple[str, ...]
    effect: Float[Tensor, "latents columns"]
    words: tuple[tuple[str, ...], ...]

    _is_drawn_fast = False

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the latents, the most informative first."""
        return self.traversal.names

    @property
    def telling(self) -> list[int]:
        """Positions in `latents` of the latents that carry information about the data.

        Latents with an unknown amount of information are included.
        """
        nats = self.traversal.information.value.tolist()
        return [place for place, nat in enumerate(nats) if not nat < _SILENT]

    def strongest(self, latent: int) -> list[int]:
        """Returns the positions of up to five columns on which a latent has the largest effects.

        The largest effect comes first. Columns on which the effect is slight are left out.
        """
        sizes = self.effect[latent].abs()
        order = sizes.argsort(descending=True, stable=True).tolist()
        return [column for column in order if sizes[column] >= _SLIGHT][:_MOST]

    def summary(self) -> str:
        """Returns a line per informative latent: its information, and the columns that it moves."""
        informative = self.telling
        lines = [
            f"{self.traversal.labels[place]}: "
            + ("; ".join(self._moved(place)) or "moves no column on its own")
            for place in informative
        ]
        rest = [name for place, name in enumerate(self.latents) if place not in informative]
        if rest:
            lines.append(f"{', '.join(rest)}: hardly any information (less than {_SILENT} nats)")
        low, high = self.traversal.levels[0], self.traversal.levels[-1]
        return "\n".join(
            [
                *lines,
                f"The nats are a latent's information about the row. Each latent moves from its "
                f"{low:.1%} to its {high:.1%} quantile in the data, while the others stay fixed. "
                f"Columns that move by less than {_SLIGHT} sd "
                f"({_SLIGHT:.0%} probability for categories) are left out.",
            ]
        )

    def __repr__(self) -> str:
        informative, latents = self.telling, len(self.latents)
        first = f", most in {self.latents[informative[0]]}" if informative else ""
        number = f"information in {len(informative)} of {count_of(latents, 'latent')}"
        return f"<Explanation: {number}{first}; `summary()` says which columns they move>"

    def _moved(self, latent: int) -> list[str]:
        """Returns the names of the columns that a latent moves most, with the changes in words."""
        strongest = self.strongest(latent)
        return [f"{self.columns[column]} {self.words[latent][column]}" for column in strongest]

    def to_dataframe(self) -> Any:
        """Returns a data frame with one row for each latent and column; needs pandas."""
        nats = self.traversal.information.value.tolist()
        rows = [
            {
                "latent": name,
                "information": nats[place],
                "column": column,
                "effect": float(self.effect[place, number]),
                "change": self.words[place][number],
            }
            for place, name in enumerate(self.latents)
            for number, column in enumerate(self.columns)
        ]
        return data_frame(rows)

    def plot(self) -> "Axes":
        """Plots the effects of latents on columns as a heat map; needs matplotlib."""
        from ..plots import plot_effects

        return plot_effects(self.effect, self.traversal.labels, self.columns)


def explain(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    columns: Columns | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Explanation:
    r"""Computes the effect of each latent on each column.

    Latents are ordered by the information that each latent carries by itself. While one latent
    moves, the others are 0. If the others had different values, the effects could differ.
    Covariates are those of the first datum.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The data whose aggregated posterior gives the ranges, at least two.
        columns: The columns of the table. By default, all columns are numeric, and their names are
            "0", "1", ...
        given: Values of the global latent sites, by name.
        seed: Seed of the draws that give the ranges.

    Returns:
        The effects. The ends of each range are quantiles of a finite number of draws, so their
        levels have a standard error of 0.4 percentage points (larger with fewer than 60 data).

    Raises:
        ValueError: If data and programs do not fit together.

    Example:
        >>> import torch
        >>> from pyro_vae import GlobalParameters, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 2), likelihoods.Gaussian(), latent_dim=1)
        >>> explain(model, Guide(model, GlobalParameters()), torch.randn(9, 2)).effect.shape
        torch.Size([1, 2])
    """
    walk = traverse(model, guide, data, given=given, seed=seed)
    with conditioned(model, guide, data, seed, given) as (program, _, batch):
        y = flat(batch[0]).double()
        names = columns.names if columns is not None else tuple(map(str, range(y.shape[1])))
        kinds: list[Kind] = [Real()] * len(names)
        if columns is not None:
            kinds = list(columns.kinds.values())
        ends = moved(walk.at, walk.order.to(walk.at.device), walk.values[:, [0, -1]])
        results = [
            _categories(program, ends, batch, place, kind)
            if isinstance(kind, Categories) and len(kind.categories) > 2
            else _number(flat(walk.decoded[:, [0, -1]], 2)[..., place], y[:, place], kind)
            for place, kind in enumerate(kinds)
        ]
    effect = torch.stack([effects for effects, _ in results], dim=1)
    words = tuple(zip(*(texts for _, texts in results), strict=True))
    return Explanation(walk, names, effect, words)


def _number(
    ends: Float[Tensor, "latents 2"], y: Float[Tensor, " rows"], kind: Kind
) -> tuple[Tensor, list[str]]:
    """Computes and describes the effect of each latent on a numeric or binary column.

    The effect on numbers is in standard deviations; the effect on a binary column is a difference
    of probabilities. Each text describes the change from the low to the high end of a latent's
    range.
    """
    ends = ends.double().cpu()
    if isinstance(kind, Binary):
        name = kind.categories[1]
        return ends[:, 1] - ends[:, 0], [f"{name} {low:.0%} to {high:.0%}" for low, high in ends]
    if kind in (Real(), Count()):  # such a kind does not know the sd over the training rows
        scaled = ends / (float(y[~y.isnan()].std(correction=0)) or 1.0)
    else:
        scaled = standardized(ends, kind)
    effects = scaled[:, 1] - scaled[:, 0]
    unit = "sd of logarithms" if isinstance(kind, Positive) else "sd"
    return effects, [
        f"{_shown(low, kind)} to {_shown(high, kind)} ({effect:+.1f} {unit})"
        for (low, high), effect in zip(ends.tolist(), effects.tolist(), strict=True)
    ]


def _shown(value: float, kind: Kind) -> str:
    """Formats an encoded number in the unit of its column."""
    own = kind.in_own_unit(value)
    return kind.shown(own) if isinstance(kind, Time) else four_digits(own)


def _categories(
    program: Program, ends: Tensor, batch: Batch, place: int, kind: Categories
) -> tuple[Tensor, list[str]]:
    """Computes and describes the effect of each latent on a column of categories.

    The effect is the total variation distance between the two ends of the latent's range. The text
    describes the category whose probability changes most.
    """
    row = take_rows(batch, slice(1))
    distribution = features(program, ends.flatten(0, 1), row)
    values = row[0].nan_to_num().repeat(len(ends) * 2, 1)
    columns = []
    for code in range(len(kind.categories)):
        values[:, place] = code
        columns.append(distribution.log_prob(values)[:, place].exp())
    shares = torch.stack(columns, dim=-1).double().unflatten(0, (len(ends), 2)).cpu()
    change = shares[:, 1] - shares[:, 0]  # (latents, categories)
    most = change.abs().argmax(dim=-1).tolist()
    texts = [
        f"{kind.categories[code]} {shares[latent, 0, code]:.0%} to {shares[latent, 1, code]:.0%}"
        for latent, code in enumerate(most)
    ]
    return change.abs().sum(dim=-1) / 2, texts
