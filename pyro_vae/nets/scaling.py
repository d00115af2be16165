r"""Scales of a network's inputs and outputs, so that data may be in any units.

Optimizer steps and the initial weights of a network suit numbers of about unit size. The networks
of :mod:`pyro_vae.nets` therefore hold two buffers, :math:`m` and :math:`s`: an encoder sees
:math:`(y - m) / s`, and a decoder returns :math:`m + s f(z)`. :func:`pyro_vae.fit` sets the
buffers once, from the data, while the network still has its initial weights. So training on raw
data takes the same steps as training on standardized data, and densities stay in the data's own
units. If the data are of about unit scale, the buffers are `None`.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Data are standardized if one of these four conditions holds.
_LARGE = 2.5  # The root mean square of some column is above this.
_SMALL = 0.15  # The spread of every column is below this.
_TINY = 0.01  # The spread of some column, which is not mostly one number, is below this.
_AWAY = 10.0  # The center of such a column is more than this many spreads away from 0.

_FEW = 0.01  # share of a column's entries, at either end, that may be outliers
_ROBUST = 2.4  # a spread is at most this many times the spread without outliers
_MOSTLY = 0.25  # a column is mostly one number if a smaller share of its entries is different


class Standard(NamedTuple):
    """The center and the spread of each column, which are used to standardize the columns.

    They are the mean and the standard deviation, or robust values if a few outlying rows dominate
    the mean or the standard deviation.
    """

    center: Tensor
    spread: Tensor


def standard_of(rows: Tensor) -> Standard | None:
    """Returns center and spread of each column; `None` if all columns are of about unit scale.

    Missing entries are left out. If most entries of a column are equal, the spread is about the
    distance between the other entries and this common value. The spread of a constant column is the
    absolute value of its entries. The spread of a column of zeros is the median spread of the other
    columns.

    Arguments:
        rows: `(rows, *shape)`.

    Example:
        >>> standard_of(torch.tensor([[99.0, 5.0], [101.0, 5.0], [torch.nan, 5.0]]))
        Standard(center=tensor([100.,   5.]), spread=tensor([1., 5.]))
        >>> standard_of(torch.tensor([[-1.0], [1.0]])) is None
        True
    """
    x = rows.detach().double()
    mean, sd = _moments(x)
    median = x.nanmedian(dim=0).values.nan_to_num(nan=0.0)
    limit = _ROBUST * _moments(_clipped(x))[1]
    sd = sd * (sd > torch.finfo(rows.dtype).eps * mean.abs())  # 0 if entries differ by rounding
    robust = torch.where(limit > 0, sd.minimum(limit), sd)
    center = torch.where((mean - median).abs() <= robust, mean, median)
    others = ((x - median).abs() > 0).sum(dim=0) / (~x.isnan()).sum(dim=0).clamp(min=1)
    spread = robust * (_MOSTLY / others.clamp(min=1 / len(x))).sqrt().clamp(min=1.0)
    if not _is_far(x, center, robust, torch.where(sd > _LARGE, robust, spread)):
        return None
    found = spread[spread > 0]
    zeros = found.median() if found.numel() else spread.new_ones(())
    size = torch.where(center == 0, zeros, center.abs())
    return Standard(center.to(rows), torch.where(spread > 0, spread, size).to(rows))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and sd of each column's observed entries; 0 if no entry was observed."""
    mean = x.nanmean(dim=0).nan_to_num(nan=0.0)
    return mean, (x - mean).square().nanmean(dim=0).nan_to_num(nan=0.0).sqrt()


def _clipped(x: Tensor) -> Tensor:
    """Clips the smallest and the largest 1% of the entries of each column.

    At least one entry is clipped at each end, unless a column has too few entries.
    """
    ordered = x.sort(dim=0).values  # nan last
    last = (~x.isnan()).sum(dim=0, keepdim=True).clamp(min=1) - 1
    low, high = (_FEW * last).ceil().long(), ((1 - _FEW) * last).floor().long()
    low, high = torch.where(low < high, low, 0), torch.where(low < high, high, last)
    return x.maximum(ordered.gather(0, low)).minimum(ordered.gather(0, high))


def _is_far(x: Tensor, center: Tensor, robust: Tensor, spread: Tensor) -> bool:
    """Whether columns are so far from unit scale that the data should be standardized.

    `robust` are the columns' standard deviations, limited so that outliers do not dominate them.
    `spread` is equal to `robust`, but larger for columns in which most entries are equal.
    """
    if float((center.square() + robust.square()).max()) > _LARGE**2:
        return True
    if not bool((spread > 0).any()):
        return False
    has_many_values = ((x - center).abs() > 0.3 * spread).double().mean(dim=0) > 0.3
    is_extreme = (spread > 0) & ((spread < _TINY) | (center.abs() > _AWAY * spread))
    return float(spread.max()) < _SMALL or bool((is_extreme & has_many_values).any())


class WithOptionalBuffers(nn.Module):
    """A module with buffers that are `None` at first; a buffer is saved only if it is not `None`.

    If a file has the module's parameters but lacks a buffer, loading the file sets this buffer to
    `None`.
    """

    optional: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        for name in self.optional:
            self.register_buffer(name, None)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: object
    ) -> None:
        if any(prefix + name in state_dict for name, _ in self.named_parameters(recurse=False)):
            self.forget_absent(state_dict, prefix)
        for name in self.optional:
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None and (own is None or own.shape != saved.shape):
                setattr(self, name, torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forget_absent(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Sets to `None` every optional buffer that a state dict lacks."""
        for name in self.optional:
            if prefix + name not in state_dict:
                setattr(self, name, None)


def forget_units(
    module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: object
) -> None:
    """Removes those scales of a module that are absent from the state dict to be loaded next.

    Submodules with parameters are skipped, because they remove their own scales when loaded.
    """
    if not any(key.startswith(prefix) for key in state_dict):
        return
    for name, part in module.named_modules():
        if isinstance(part, WithOptionalBuffers) and not list(part.parameters(recurse=False)):
            part.forget_absent(state_dict, f"{prefix}{name}." if name else prefix)


class Drawn(nn.Module):
    """Tells whether a network still has its initial random weights.

    Arguments:
        net: The network. Register this object after the network's layers: if all modules are reset
            in order, the layers then draw new weights before this object records the weights.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._net = (net,)  # in a tuple: the network is not part of this module
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Records the weights as the initial ones; called after new weights were drawn."""
        self._drawn = sums_of(self._net[0])

    @property
    def changed(self) -> set[str]:
        """The names of the parameters that no longer have their initial values."""
        now = sums_of(self._net[0])
        return {name for name in now | self._drawn if now.get(name) != self._drawn.get(name)}


class Scale(Drawn, WithOptionalBuffers):
    """The shift and the scale of a network's inputs or outputs.

    Both are `None` if nothing is standardized.

    Arguments:
        net: The network. Shift and scale are set only while it has its initial weights.
        layer: The network's first layer if inputs are scaled, or its last layer if outputs are.
        besides: Name of a parameter that may be changed: the network still counts as having its
            initial weights as long as no other parameter was changed.
    """

    optional = ("shift", "scale")
    shift: Tensor | None
    scale: Tensor | None

    def __init__(self, net: nn.Module, layer: nn.Module, *, besides: str = "") -> None:
        super().__init__(net)
        self._name = next(name for name, part in net.named_modules() if part is layer)
        self._besides = besides
        net._register_load_state_dict_pre_hook(forget_units, with_module=True)  # noqa: SLF001 (public from torch 2.5 on)

    def reset_parameters(self) -> None:
        """Removes shift and scale; called after the network's weights were drawn anew."""
        super().reset_parameters()
        self.shift = self.scale = None

    @property
    def layer(self) -> nn.Module:
        """The first layer if the network's inputs are scaled, or the last if its outputs are."""
        return self._net[0].get_submodule(self._name)

    @property
    def is_fresh(self) -> bool:
        """Whether the scaled layer is trainable, and the network still has its initial weights."""
        is_trainable = all(part.requires_grad for part in self.layer.parameters())
        return is_trainable and self.changed <= {self._besides}

    def standardized(self, x: Tensor) -> Tensor:
        """Standardizes numbers: subtracts the shift, and divides by the scale."""
        if self.shift is None or self.scale is None:
            return x
        return (x - self.shift.to(x)) / self.scale.to(x)

    def in_units(self, x: Tensor) -> Tensor:
        """Converts standardized numbers to units of the data."""
        if self.shift is None or self.scale is None:
            return x
        return self.shift.to(x) + self.scale.to(x) * x


class InputScale(Scale):
    """The shift and the scale of each input of a network.

    There is one shift and one scale for each number, channel, or feature of a series.

    Arguments:
        net: The network.
        layer: The network's first layer.
        series: Whether inputs are `(batch, times, features)`.
        besides: Name of a parameter that may be changed: the network still counts as having its
            initial weights as long as no other parameter was changed.
    """

    def __init__(
        self, net: nn.Module, layer: nn.Module, *, series: bool = False, besides: str = ""
    ) -> None:
        super().__init__(net, layer, besides=besides)
        self.series = series
        self.near = math.inf  # inputs further from 0 are compressed; set by `ColumnInputs`

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Sets shift and scale from inputs, if the network still has its initial weights."""
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
        """Returns standardized inputs, which the network's first layer sees.

        A standardized input that exceeds `near` in absolute value is compressed: beyond `near` it
        grows only logarithmically.
        """
        x = self.standardized(x)
        if self.near == math.inf:
            return x
        beyond = (x.abs() - self.near).clamp(min=0)
        return x - x.sign() * (beyond - beyond.log1p())


class OutputScale(Scale):
    """The shift and the scale that convert a decoder's outputs to units of the data."""

    @property
    def bias_name(self) -> str:
        """The name of the last layer's bias."""
        return f"{self._name}.bias"

    @property
    def first(self) -> nn.Module:
        """The first layer of the network that has parameters."""
        parts = self._net[0].modules()
        return next(part for part in parts if list(part.parameters(recurse=False)))

    @property
    def own_bias(self) -> Tensor | None:
        """The last layer's bias if it is the only parameter that was changed; else `None`."""
        layer = self.layer
        if not isinstance(layer, nn.Linear) or not layer.weight.requires_grad:
            return None
        return layer.bias if self.changed == {self.bias_name} else None

    @torch.no_grad()
    def start(self, shift: Tensor, scale: Tensor | None) -> None:
        """Sets shift and scale if no parameter, except perhaps the last layer's bias, was changed.

        If the last layer's bias was changed, this bias becomes the shift in place of `shift`.

        Arguments:
            shift: The decoder's outputs at the start of training.
            scale: The unit of each output, such as the sd of a column; `None` for a unit of 1.
        """
        bias = self.own_bias
        if bias is not None:
            shift = self.in_units(bias.reshape(shift.shape)).clone()
            bias.zero_()
        elif not self.is_fresh:
            return
        self.shift, self.scale = shift, torch.ones_like(shift) if scale is None else scale

    @torch.no_grad()
    def forget(self) -> None:
        """Removes shift and scale; a bias set by hand is first converted to units of the data."""
        bias = self.own_bias
        if self.shift is not None and bias is not None:
            bias.copy_(self.in_units(bias.reshape(self.shift.shape)).flatten())
        self.shift = self.scale = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs of the network in units of the data."""
        return self.in_units(x)


def sums_of(net: nn.Module) -> dict[str, float]:
    """Returns the sum of each parameter's entries, which changes when the parameter does."""
    return {
        name: math.nan if part.is_meta else float(part.detach().cpu().double().sum())
        for name, part in net.named_parameters()
    }


def scale_of(net: nn.Module) -> Scale | None:
    """Returns the scale of a network's inputs or outputs.

    The result is `None` for networks that standardize neither inputs nor outputs.
    """
    units = dict(net.named_children()).get("units")
    return units if isinstance(units, Scale) else None


def start_inputs(net: nn.Module, call: Callable[[], object]) -> None:
    """Sets the input scales of those parts of a network that still have their initial weights.

    Arguments:
        net: The network.
        call: Calls the network on some rows; each part is scaled by the inputs that reach it.
    """
    parts = [part for part in net.modules() if isinstance(part, InputScale)]
    if not parts:
        return
    hooks = [part.register_forward_pre_hook(lambda part, x: part.start(x[0])) for part in parts]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()


def standardizes(net: nn.Module) -> bool:
    """Whether the inputs of a network, or of a part of the network, are standardized."""
    return any(isinstance(part, InputScale) and part.shift is not None for part in net.modules())
