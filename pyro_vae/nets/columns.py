"""Inputs of an encoder for a table with columns of several kinds."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..registry import registered


@registered()
class ColumnInputs(nn.Module):
    r"""An encoder for tables: categories as indicators, counts as logarithms, holes as such.

    Arguments:
        net: An encoder, made for :meth:`width` numbers a row: first a number for each column that
            holds numbers and an indicator for each category of the others, zeros where an entry is
            missing; then for each column whether it was observed.
        categories: For each column how many categories it has, 0 for numbers.
        counts: Places of the columns that hold counts; :math:`\log(1 + y)` is shown for those.

    Example:
        >>> from pyro_vae.nets import MLPEncoder
        >>> net = ColumnInputs(MLPEncoder(ColumnInputs.width([0, 3])), categories=[0, 3])
        >>> net.inputs(torch.tensor([[0.5, 2.0], [torch.nan, 0.0]]))
        tensor([[0.5000, 0.0000, 0.0000, 1.0000, 1.0000, 1.0000],
                [0.0000, 1.0000, 0.0000, 0.0000, 0.0000, 1.0000]])
    """

    def __init__(
        self, net: nn.Module, categories: Sequence[int], counts: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.net, self.categories, self.counts = net, tuple(categories), tuple(counts)

    @staticmethod
    def width(categories: Sequence[int]) -> int:
        """Numbers a row that the encoder sees."""
        return sum(max(1, number) for number in categories) + len(categories)

    @property
    def num_features(self) -> int | None:
        """That of the encoder; `None` if it has no such attribute."""
        features: int | None = getattr(self.net, "num_features", None)
        return features

    def inputs(self, y: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch inputs"]:
        """What the encoder sees.

        Raises:
            ValueError: If a row has another number of columns.
        """
        if y.shape[1:] != (len(self.categories),):
            raise ValueError(
                f"a row has {len(self.categories)} columns, got data of shape {tuple(y.shape)}"
            )
        observed = (~y.isnan()).to(y)
        filled = y.nan_to_num(nan=0.0)
        parts = [self._column(place, filled[:, place]) for place in range(y.shape[1])]
        shown = [part * observed[:, [place]] for place, part in enumerate(parts)]
        return torch.cat([*shown, observed], dim=1)

    def _column(self, place: int, y: Float[Tensor, " batch"]) -> Float[Tensor, "batch inputs"]:
        number = self.categories[place]
        if number:
            codes = y.round().long().clamp(0, number - 1)
            return one_hot(codes, number).to(y)
        return (y.clamp(min=0).log1p() if place in self.counts else y)[:, None]

    def forward(self, y: Float[Tensor, "batch columns"], *given: Tensor) -> Tensor:
        """The encoder's answer."""
        answer: Tensor = self.net(self.inputs(y), *given)
        return answer
