r"""Scales of a network's inputs and outputs: data of any units, and a network that sees about 1.

The size of a step, and of a fresh network's weights, suits numbers of about unit size. The networks
of :mod:`pyro_vae.nets` therefore hold two buffers, :math:`m` and :math:`s`: an encoder sees
:math:`(y - m) / s`, and a decoder returns :math:`m + s f(z)`. :func:`pyro_vae.fit` sets them once,
from the data, while the weights are as they were drawn. So training on raw data takes the same
steps as training on standardized data, and densities stay in the data's own units. If the data are
of about unit scale, there are no such buffers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_LARGE = 5.0  # columns that are larger are standardized,
_SMALL = 0.1  # and data whose columns all spread less than this;
_TINY = 0.01  # if it is not mostly one number, also a column that spreads less than this,
_AWAY = 10.0  # or is further from 0 than so many times its spread
_ROBUST = 4.0  # a spread is at most so many times the one that the central half of the rows has
_MAD = 1.4826  # sd of a normal distribution, in median absolute deviations


class Standard(NamedTuple):
    """The center and the spread of each column: mean and sd, unless a few rows decide on them."""

    center: Tensor
    spread: Tensor


def standard_of(rows: Tensor) -> Standard | None:
    """Center and spread of each column; `None` if the columns are of about unit scale.

    Missing entries are left out. The spread of a constant column is the size of its number.

    Arguments:
        rows: `(rows, *shape)`.

    Example:
        >>> standard_of(torch.tensor([[99.0, 5.0], [101.0, 5.0], [torch.nan, 5.0]]))
        Standard(center=tensor([100.,   5.]), spread=tensor([1., 5.]))
        >>> standard_of(torch.tensor([[-1.0], [1.0]])) is None
        True
    """
    x = rows.detach().double()
    mean = x.nanmean(dim=0).nan_to_num(nan=0.0)
    sd = (x - mean).square().nanmean(dim=0).nan_to_num(nan=0.0).sqrt()
    median = x.nanmedian(dim=0).values.nan_to_num(nan=0.0)
    most = _ROBUST * _MAD * (x - median).abs().nanmedian(dim=0).values.nan_to_num(nan=0.0)
    spread = torch.where(most > 0, sd.minimum(most), sd)
    center = torch.where((mean - median).abs() <= spread, mean, median)
    spread = spread * (sd > torch.finfo(rows.dtype).eps * mean.abs())  # else: constant, rounded
    if not _is_far(x, center, spread):
        return None
    size = torch.where(center == 0, 1.0, center.abs())
    return Standard(center.to(rows), torch.where(spread > 0, spread, size).to(rows))


def _is_far(x: Tensor, center: Tensor, spread: Tensor) -> bool:
    """Whether columns are much larger or smaller than 1."""
    if float((center.square() + spread.square()).max()) > _LARGE**2:
        return True
    if not bool((spread > 0).any()):
        return False
    spreads_all = ((x - center).abs() > 0.3 * spread).double().mean(dim=0) > 0.3
    ill = (spread > 0) & ((spread < _TINY) | (center.abs() > _AWAY * spread)) & spreads_all
    return float(spread.max()) < _SMALL or bool(ill.any())


class WithOptionalBuffers(nn.Module):
    """A module with buffers that are `None` at first, and are then in no file."""

    optional: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        for name in self.optional:
            self.register_buffer(name, None)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in self.optional:
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is None or own is None or own.shape != saved.shape:
                setattr(self, name, None if saved is None else torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)


class Scale(WithOptionalBuffers):
    """The shift and the scale of a network's inputs or outputs; `None` if they are not changed.

    Arguments:
        layer: The network's layer next to these inputs or outputs, which tells whether the network
            is as it was drawn.
    """

    optional = ("shift", "scale")
    shift: Tensor | None
    scale: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._watched = (layer,)  # in a tuple: the layer is no part of this module
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Removes shift and scale; called after the network's weights were drawn anew."""
        self.shift = self.scale = None
        self._drawn = sums_of(self.layer)

    @property
    def layer(self) -> nn.Module:
        """The layer next to the inputs or outputs."""
        return self._watched[0]

    @property
    def is_fresh(self) -> bool:
        """Whether the layer is to be trained, and has the weights with which it was drawn."""
        trained = all(part.requires_grad for part in self.layer.parameters())
        return trained and sums_of(self.layer) == self._drawn

    def apart(self, x: Tensor) -> Tensor:
        """Numbers in units of the scale, from numbers in units of the data."""
        if self.shift is None or self.scale is None:
            return x
        return (x - self.shift.to(x)) / self.scale.to(x)

    def back(self, x: Tensor) -> Tensor:
        """Numbers in units of the data, from numbers in units of the scale."""
        if self.shift is None or self.scale is None:
            return x
        return self.shift.to(x) + self.scale.to(x) * x


class InputScale(Scale):
    """The scale of an encoder's inputs: one for each number, channel, or feature of a series.

    Arguments:
        layer: The network's first layer.
        series: Whether inputs are `(batch, times, features)`.
    """

    def __init__(self, layer: nn.Module, *, series: bool = False) -> None:
        super().__init__(layer)
        self.series = series

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Sets shift and scale from some rows, if the network is fresh."""
        if not self.is_fresh:
            return
        channels = x.dim() == 4 and not self.series
        rows = x.movedim(1, -1) if channels else x
        found = standard_of(rows.flatten(0, -2) if channels or self.series else rows)
        after = (1, 1) if channels else ()
        self.shift, self.scale = (
            (None, None) if found is None else (part.reshape(*part.shape, *after) for part in found)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The inputs that the network sees."""
        return self.apart(x)


class OutputScale(Scale):
    """The scale of a decoder's outputs.

    Arguments:
        layer: The network's last layer.
    """

    @property
    def has_own_bias(self) -> bool:
        """Whether the last layer's bias, and nothing else, was set since it was drawn."""
        layer, drawn = self.layer, self._drawn
        return (
            isinstance(layer, nn.Linear)
            and layer.weight.requires_grad
            and sums_of(layer)[0] == drawn[0]
            and sums_of(layer) != drawn
        )

    @torch.no_grad()
    def start(self, shift: Tensor, scale: Tensor | None) -> None:
        """Sets shift and scale, if the network is fresh.

        If the last layer's bias was set by hand, the outputs start there.

        Arguments:
            shift: The outputs to start at.
            scale: The size of a change of an output; `None` if 1 suits.
        """
        if self.has_own_bias:
            bias: Any = self.layer.bias
            shift = self.back(bias.reshape(shift.shape)).clone()
            bias.zero_()
        elif not self.is_fresh:
            return
        self.shift, self.scale = shift, torch.ones_like(shift) if scale is None else scale

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of the network, in units of the data."""
        return self.back(x)


def sums_of(layer: nn.Module) -> tuple[float, ...]:
    """The sum of each parameter of a layer, by which changed weights are told from drawn ones."""
    return tuple(
        math.nan if part.is_meta else float(part.detach().cpu().double().sum())
        for part in layer.parameters()
    )


def scale_of(net: nn.Module) -> Scale | None:
    """The scale of a network that standardizes its inputs or outputs; `None` for others."""
    # Not a protocol: from Python 3.12 on, these do not see submodules.
    units = getattr(net, "units", None)
    return units if isinstance(units, Scale) else None


def start_inputs(net: nn.Module, call: Callable[[], Any]) -> None:
    """Sets the scales of all inputs in a network from a call of it; fresh networks only.

    Arguments:
        net: The network.
        call: Calls the network.
    """
    parts = [part for part in net.modules() if isinstance(part, InputScale)]
    hooks = [part.register_forward_pre_hook(lambda part, x: part.start(x[0])) for part in parts]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()


def standardizes(net: nn.Module) -> bool:
    """Whether a network standardizes its inputs."""
    return any(isinstance(part, InputScale) and part.shift is not None for part in net.modules())
