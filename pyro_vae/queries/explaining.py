r"""Effects of latents: how far each column moves as one latent moves over its range.

A latent is moved from its 2.5% to its 97.5% quantile in the data (less far with fewer than 60 data,
to leave out the outermost), the others stay where they are, and each column is decoded at both
ends. To be comparable between columns, effects are in standard deviations of the column for
numbers, and in probability for categories:

.. math:: e_{dj} = \frac{\mathbb{E}[y_j \mid z_d^{+}] - \mathbb{E}[y_j \mid z_d^{-}]}{s_j}
    \qquad\text{or}\qquad
    e_{dj} = \tfrac{1}{2} \sum_k |p(y_j = k \mid z_d^{+}) - p(y_j = k \mid z_d^{-})|

:math:`s_j` is the standard deviation over the training rows, so that an effect means the same for
any set of rows; without a table it is not known, and that of the given rows is used. Numbers that
are very skewed (:class:`pyro_vae.data.Positive`) are compared by their logarithms.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._types import Batch, Data, ProgramLike
from ..data import Binary, Categories, Columns, Count, Kind, Positive, Real, Time
from ..evidence import prepared
from ..formatting import four_digits
from ..programs import Program
from ..results import Result
from .forward import features
from .traversal import Traversal, moved, standardized, traverse

_SLIGHT = 0.2  # standard deviations, or probability: a smaller effect is left out of the text
_SILENT = 0.05  # nats: a latent with less information is left out
_MOST = 5  # columns named for each latent


@dataclass(frozen=True, repr=False)
class Explanation(Result):
    """The effect of each latent on each column, the most informative latent first.

    Arguments:
        traversal: The walks along the latents, from which the effects are read off.
        columns: Names of the columns.
        effect: Change from the lowest to the highest level of each latent, `(latents, columns)`.
            For numbers: in standard deviations of the column over the training rows, with sign.
            For categories: the share of probability that moves; for two categories, the change in
            the probability of the second.
        words: The effects as text in the column's own units, `(latents, columns)`.
    """

    traversal: Traversal
    columns: tuple[str, ...]
    effect: Float[Tensor, "latents columns"]
    words: tuple[tuple[str, ...], ...]

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the latents, the most informative first."""
        return self.traversal.names

    @property
    def telling(self) -> list[int]:
        """Positions of the latents that are informative about the data."""
        nats = self.traversal.information.value.tolist()
        return [place for place, nat in enumerate(nats) if not nat < _SILENT]

    def strongest(self, latent: int) -> list[int]:
        """Positions of the columns that a latent moves most, without those it hardly moves."""
        sizes = self.effect[latent].abs()
        order = sizes.argsort(descending=True, stable=True).tolist()
        return [column for column in order if sizes[column] >= _SLIGHT][:_MOST]

    def summary(self) -> str:
        """Lists, for each informative latent, its information and the columns that it moves."""
        told = self.telling
        lines = [
            f"{self.traversal.labels[place]}: "
            + ("; ".join(self._moved(place)) or "moves no column by itself")
            for place in told
        ]
        quiet = [name for place, name in enumerate(self.latents) if place not in told]
        if quiet:
            lines.append(f"{', '.join(quiet)}: nothing (less than {_SILENT} nats)")
        low, high = self.traversal.levels[0], self.traversal.levels[-1]
        return "\n".join(
            [
                *lines,
                f"Each latent goes from its {low:.1%} to its {high:.1%} quantile in the data, the "
                f"others stay; columns that move by less than {_SLIGHT} sd, or {_SLIGHT:.0%}, are "
                "left out.",
            ]
        )

    def _moved(self, latent: int) -> Iterator[str]:
        for column in self.strongest(latent):
            yield f"{self.columns[column]} {self.words[latent][column]}"

    def to_dataframe(self) -> Any:
        """A row for each latent and column; needs pandas."""
        from ..results import data_frame

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

    def plot(self) -> Any:
        """A map of the effects of latents on columns; needs matplotlib."""
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
    r"""Effects of each latent on each column.

    Latents are ordered by the information that each has by itself. Effects are those where the
    other latents are 0; elsewhere they may differ.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The data whose aggregated posterior gives the ranges, at least two.
        columns: The columns of the table; by default all are numbers, called "0", "1", ...
        given: Values of the global latent sites, by name.
        seed: Seed of the draws that give the ranges.

    Returns:
        Effects. The ends of the ranges are quantiles of draws: their levels have a standard error
        of 0.4%.

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
    with prepared(model, guide, data, seed, given) as (program, _, batch):
        y = batch[0].flatten(1).double()
        names = columns.names if columns is not None else tuple(map(str, range(y.shape[1])))
        kinds: list[Any] = [Real()] * len(names) if columns is None else [*columns.kinds.values()]
        ends = moved(walk.at, walk.order.to(walk.at.device), walk.values[:, [0, -1]])
        told = [
            _categories(program, ends, batch, place, kind)
            if isinstance(kind, Categories) and len(kind.categories) > 2
            else _number(walk.decoded[:, [0, -1]].flatten(2)[..., place], y[:, place], kind)
            for place, kind in enumerate(kinds)
        ]
    effect = torch.stack([effects for effects, _ in told], dim=1)
    words = tuple(zip(*(said for _, said in told), strict=True))
    return Explanation(walk, names, effect, words)


def _number(
    ends: Float[Tensor, "latents 2"], y: Float[Tensor, " rows"], kind: Any
) -> tuple[Tensor, list[str]]:
    """Returns effects (numbers: in sd; two categories: in probability), and their texts."""
    ends = ends.double().cpu()
    if isinstance(kind, Binary):
        name = kind.categories[1]
        return ends[:, 1] - ends[:, 0], [f"{name} {low:.0%} to {high:.0%}" for low, high in ends]
    low, high = _standardized(ends, y, kind).unbind(dim=1)
    unit = "sd of logarithms" if isinstance(kind, Positive) else "sd"
    return high - low, [
        f"{_own(start, kind)} to {_own(end, kind)} ({effect:+.1f} {unit})"
        for (start, end), effect in zip(ends.tolist(), (high - low).tolist(), strict=True)
    ]


def _standardized(
    ends: Float[Tensor, "latents 2"], y: Float[Tensor, " rows"], kind: Any
) -> Float[Tensor, "latents 2"]:
    """Values in standard deviations of the training rows, or of `y` where the kind has none."""
    if kind in (Real(), Count()):
        return ends / (float(y[~y.isnan()].std(correction=0)) or 1.0)
    return standardized(ends, kind)


def _own(value: float, kind: Kind) -> str:
    """Formats a number in the column's own unit."""
    if isinstance(kind, Time) and kind.pattern:
        return str(kind.written(torch.tensor([value]).double().numpy())[0])
    return four_digits(value * kind.scale + kind.center)


def _categories(
    program: Program, ends: Tensor, batch: Batch, place: int, kind: Categories
) -> tuple[Tensor, list[str]]:
    """Share of probability that moves, and the category that changes most, in words."""
    row = tuple(part[:1] for part in batch)
    factors: Any = features(program, ends.flatten(0, 1), row)
    plain = row[0].nan_to_num().repeat(len(ends) * 2, 1)
    columns = []
    for code in range(len(kind.categories)):
        plain[:, place] = code
        columns.append(factors.log_prob(plain)[:, place].exp())
    shares = torch.stack(columns, dim=-1).double().unflatten(0, (len(ends), 2)).cpu()
    change = shares[:, 1] - shares[:, 0]  # (latents, categories)
    first = change.abs().argmax(dim=-1).tolist()
    said = [
        f"{kind.categories[code]} {shares[latent, 0, code]:.0%} to {shares[latent, 1, code]:.0%}"
        for latent, code in enumerate(first)
    ]
    return change.abs().sum(dim=-1) / 2, said
