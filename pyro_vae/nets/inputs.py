"""Wrappers that transform the input of a network."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..formatting import count_of
from ..registry import registered
from .scaling import InputScale, OutputScale, scale_of

_NEAR = 10.0  # standard deviations: few rows that a network is trained on are further away


def require_tensor(answer: object, role: str, net: nn.Module) -> Tensor:
    """Returns the output of a network unchanged; refuses all but floating-point tensors.

    Arguments:
        answer: The output of the network.
        role: The role of the network: "decoder" or "encoder's net".
        net: The network.

    Raises:
        TypeError: If the output is anything other than a floating-point tensor, such as the pair
            that a recurrent layer returns.
    """
    if isinstance(answer, Tensor) and answer.is_floating_point():
        return answer
    kind = f"a tensor of {answer.dtype}" if isinstance(answer, Tensor) else type(answer).__name__
    raise TypeError(
        f"the {role}, {type(net).__name__}, must return one tensor of floating-point numbers; got "
        f"{kind}: wrap the network in a module that returns such a tensor, as net(x)[0] for a "
        "recurrent layer, or net(x).float() for integers"
    )


@runtime_checkable
class Trunk(Protocol):
    """A network that returns features, to which :class:`pyro_vae.Encoder` adds a last layer."""

    num_features: int | None


def features_of(net: nn.Module) -> int | None:
    """Returns the `num_features` of a network; `None` for a network without this attribute."""
    return net.num_features if isinstance(net, Trunk) else None


class _Around(nn.Module):
    """A wrapper that transforms a network's input, and has the same `num_features`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    def num_features(self) -> int | None:
        """The `num_features` of the wrapped network; `None` if it has no such attribute."""
        return features_of(self.net)


@registered()
class MissingIndicator(_Around):
    """An encoder for data with missing entries; its network sees a mask, and zeros for nan.

    Arguments:
        net: An encoder for twice as many numbers per row (or twice as many channels). Its input is
            the data with zeros for nan and then, along the first axis of the datum, the mask: ones
            for observed and zeros for missing entries.

    References:
        | VAEM: a Deep Generative Model for Heterogeneous Mixed Type Data (Ma et al., 2020)
        | https://arxiv.org/abs/2006.11941

    Example:
        >>> from pyro_vae.nets import MLPEncoder
        >>> MissingIndicator(MLPEncoder(2 * 3, hidden=(5,)))(torch.full((4, 3), torch.nan)).shape
        torch.Size([4, 5])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        # Without a scale, the zeros for missing entries could be far from the other entries.
        if (inner := scale_of(net)) is not None:
            self.units = InputScale(self, inner.layer)

    def forward(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Tensor:
        """Returns the output of the encoder."""
        y = y if y.dim() > 1 else y[:, None]  # one number per row is one column
        y, observed = self.units(y) if scale_of(self) is not None else y, ~y.isnan()
        filled = y.masked_fill(~observed, 0.0)
        return self.net(torch.cat([filled, observed.to(y)], dim=1), *given)


@registered()
class Concatenated(_Around):
    """A network that sees several tensors, such as data and covariates, as one row of numbers.

    Arguments:
        net: A network that takes the concatenated rows. Each tensor is flattened to rows (a tensor
            `(batch,)` becomes one column), and the rows are concatenated in the given order.

    Raises:
        ValueError: When called, if the tensors have different numbers of rows.

    References:
        | Learning Structured Output Representation using Deep Conditional Generative Models
          (Sohn, Lee & Yan, 2015)
        | https://papers.nips.cc/paper/2015/hash/8d55a249e6baa5c06772297520da2051-Abstract.html

    Example:
        >>> from pyro_vae.nets import MLPEncoder
        >>> Concatenated(MLPEncoder(3 + 2, hidden=(5,)))(torch.zeros(4, 3), torch.zeros(4, 2)).shape
        torch.Size([4, 5])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.units_given: InputScale | None = None
        if isinstance(outputs := scale_of(net), OutputScale):  # a decoder: its first input is z
            self.units_given = InputScale(self, outputs.first, besides=f"net.{outputs.bias_name}")

    def forward(self, *parts: Tensor) -> Tensor:
        """Returns the output of the network."""
        rows = [len(part) for part in parts]
        if len(set(rows)) != 1:
            raise ValueError(
                f"all tensors must have the same number of rows; got tensors of {rows} rows: "
                "select the same rows of each tensor"
            )
        flat = [part.flatten(1) if part.dim() > 1 else part[:, None] for part in parts]
        if self.units_given is not None and len(flat) > 1:
            flat = [flat[0], self.units_given(torch.cat(flat[1:], dim=1))]
        return self.net(torch.cat(flat, dim=1))


@registered()
class ColumnInputs(_Around):
    r"""An encoder for tables, whose network sees encoded columns and a mask.

    Arguments:
        net: An encoder for :meth:`width` numbers per row. First come the encoded columns: a numeric
            column as one number, and a categorical column as one indicator per category. If an
            entry is missing, its numbers are all 0. Then comes the mask: for each column, 1 if its
            entry was observed, otherwise 0.
        categories: Number of categories of each column; 0 for a numeric column.
        counts: Positions of columns of counts; the network sees :math:`\log(1 + y)` for a count y.
        positive: Positions of columns of positive numbers; the network sees :math:`\log y` for a
            number y.

    A network of :mod:`pyro_vae.nets` receives a standardized input x unchanged up to :math:`|x| =
    10`, and :math:`\pm (10 + \log(|x| - 9))` beyond that. So one entry that is off by a factor of
    a million does not drive the network's output to infinity.

    Example:
        >>> from pyro_vae.nets import MLPEncoder
        >>> net = ColumnInputs(MLPEncoder(ColumnInputs.width([0, 3])), categories=[0, 3])
        >>> net.inputs(torch.tensor([[0.5, 2.0], [torch.nan, 0.0]]))
        tensor([[0.5000, 0.0000, 0.0000, 1.0000, 1.0000, 1.0000],
                [0.0000, 1.0000, 0.0000, 0.0000, 0.0000, 1.0000]])
    """

    columns: Tensor

    def __init__(
        self,
        net: nn.Module,
        categories: Sequence[int],
        counts: Sequence[int] = (),
        positive: Sequence[int] = (),
    ) -> None:
        super().__init__(net)
        self.categories = tuple(categories)
        self.counts, self.positive = tuple(counts), tuple(positive)
        widths = torch.tensor([max(1, number) for number in self.categories])
        # The column of each input number, to look up whether its entry was observed.
        columns = torch.arange(len(widths)).repeat_interleave(widths)
        self.register_buffer("columns", columns, persistent=False)
        if isinstance(inner := scale_of(net), InputScale):
            inner.near = _NEAR

    def numbers(
        self, y: Float[Tensor, "batch columns"]
    ) -> tuple[Float[Tensor, "batch numbers"], Float[Tensor, "batch numbers"]]:
        """Returns the encoded columns (0 where an entry is missing), and a mask of the same shape.

        The mask is 1 where the entry was observed, and 0 elsewhere.

        Example:
            >>> ColumnInputs(nn.Identity(), [0, 2]).numbers(torch.tensor([[torch.nan, 1.0]]))
            (tensor([[0., 0., 1.]]), tensor([[0., 1., 1.]]))
        """
        inputs = self.inputs(y)
        numbers, observed = inputs.split([len(self.columns), len(self.categories)], dim=1)
        return numbers, observed[:, self.columns]

    @staticmethod
    def width(categories: Sequence[int]) -> int:
        """Returns the number of inputs per row that the network sees."""
        return sum(max(1, number) for number in categories) + len(categories)

    def inputs(self, y: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch inputs"]:
        """Returns the input of the network: encoded columns, then the mask of observed entries.

        Raises:
            ValueError: If the data do not have one column for each entry of `categories`.
        """
        if y.shape[1:] != (len(self.categories),):
            raise ValueError(
                f"the data must have {count_of(len(self.categories), 'column')}; got shape "
                f"{tuple(y.shape)}: pass all columns that the encoder was made for"
            )
        observed = (~y.isnan()).to(y)
        filled = y.nan_to_num(nan=0.0)
        parts = [self._column(place, filled[:, place]) for place in range(y.shape[1])]
        shown = [part * observed[:, [place]] for place, part in enumerate(parts)]
        return torch.cat([*shown, observed], dim=1)

    def _column(self, place: int, y: Float[Tensor, " batch"]) -> Float[Tensor, "batch inputs"]:
        """Encodes a column as indicators of its categories, as logarithms, or as plain numbers."""
        number = self.categories[place]
        if number:
            codes = y.round().clamp(0, number - 1)
            # `one_hot` reads values of its argument, so it cannot be captured in a graph.
            return (codes[:, None] == torch.arange(number, device=y.device)).to(y)
        if place in self.positive:  # a draw can be rounded to 0, and a missing entry is 0
            return y.clamp(min=torch.finfo(y.dtype).tiny).log()[:, None]
        return (y.clamp(min=0).log1p() if place in self.counts else y)[:, None]

    def forward(self, y: Float[Tensor, "batch columns"], *given: Tensor) -> Tensor:
        """Returns the output of the encoder."""
        return self.net(self.inputs(y), *given)
