"""What objects are made of, as JSON and back.

An object is recorded as `{"class": name, "arguments": {...}}`, its arguments likewise, down to
numbers and words. To make it again the name is looked up among the registered classes and the
arguments are checked against the annotations of its constructor: a file can ask for no other
class, and nothing is imported by a name that stands in a file.
"""

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from ..nets import activations
from ..registry import ENTRIES, add, arguments_of, is_registered

_CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    *("dilation", "groups", "bias", "padding_mode"),
)
LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Sequential: (),  # its arguments are its layers, by name
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.Conv2d: _CONVOLUTION,
    nn.ConvTranspose2d: (*_CONVOLUTION, "output_padding"),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Unflatten: ("dim", "unflattened_size"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.Dropout: ("p", "inplace"),
    nn.Identity: (),
    nn.ELU: ("alpha", "inplace"),
    nn.GELU: ("approximate",),
    nn.LeakyReLU: ("negative_slope", "inplace"),
    nn.ReLU: ("inplace",),
    nn.SiLU: ("inplace",),
    nn.Sigmoid: (),
    nn.Softplus: ("beta", "threshold"),
    nn.Tanh: (),
}
"""Layers of torch, with the arguments to record; each is an attribute of the same name."""

for _layer, _names in LAYERS.items():
    add(_layer, {name: name for name in _names})


def record(value: Any, where: str) -> Any:
    """An object as JSON.

    Arguments:
        value: An object of a registered class, a number, a word, or a sequence of such.
        where: What it is, for errors: "decoder.activation".

    Raises:
        ValueError: If it, or something in it, is of another class.

    Example:
        >>> from pyro_vae import LowRankNormal
        >>> record(LowRankNormal(3), "family")
        {'class': 'LowRankNormal', 'arguments': {'rank': 3}}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, list | tuple):
        return [record(part, where) for part in value]
    if isinstance(value, type) and value in activations().values():
        return {"activation": value.__name__}
    if isinstance(value, torch.device):
        return str(value)
    if is_registered(type(value)):
        pairs = _arguments(value).items()
        arguments = {name: record(part, f"{where}.{name}") for name, part in pairs}
        return {"class": type(value).__name__, "arguments": arguments}
    raise ValueError(f"{where} is {described(value)}")


def described(value: Any) -> str:
    """Says what an object is: "a `my_models.Decoder`"."""
    named = hasattr(value, "__qualname__")
    article = "a" if not named else "the class" if isinstance(value, type) else "the function"
    return f"{article} `{full_name(value)}`"


def full_name(value: Any) -> str:
    """Where a class or function, or the class of an object, is defined: "my_models.Decoder"."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _arguments(value: Any) -> dict[str, Any]:
    """Arguments of our own classes, of torch's layers, and of a sequence of layers."""
    if isinstance(value, nn.Sequential):
        return dict(value._modules)  # named_children would leave out a layer's second place
    arguments = arguments_of(value)
    if type(value) in LAYERS and "bias" in arguments:  # kept as a parameter or None
        arguments["bias"] = arguments["bias"] is not None
    return arguments


def build(recorded: Any, where: str) -> Any:
    """The object that a record describes, with fresh parameters.

    Arguments:
        recorded: A record, as read from JSON.
        where: What it is, for errors.

    Raises:
        ValueError: If it is no record, names a class that is not listed, or has arguments that
            the class cannot be called with.

    Example:
        >>> build({"class": "LocalParameters", "arguments": {"num_data": 10}}, "map").num_data
        10
    """
    if isinstance(recorded, list):
        return tuple(build(part, where) for part in recorded)
    if not isinstance(recorded, dict):
        return recorded
    if set(recorded) == {"activation"}:
        return _listed(recorded["activation"], activations(), where)
    name, arguments = unpacked(recorded, where)
    cls = _listed(name, ENTRIES, where).cls
    return _make(
        cls, {key: build(part, f"{where}.{key}") for key, part in arguments.items()}, where
    )


def unpacked(recorded: Any, where: str) -> tuple[Any, dict[str, Any]]:
    """The name and the arguments in the record of an object.

    Raises:
        ValueError: If it is not of that form.
    """
    is_record = isinstance(recorded, dict) and set(recorded) == {"class", "arguments"}
    if not is_record or not isinstance(recorded["arguments"], dict):
        raise ValueError(f'{where} should be {{"class": ..., "arguments": {{...}}}}: {recorded!r}')
    return recorded["class"], recorded["arguments"]


def _listed(name: Any, table: Mapping[str, Any], where: str) -> Any:
    if not isinstance(name, str) or name not in table:
        raise ValueError(
            f"{where} is of the class {name!r}, which is none of those that a file may name "
            f"({', '.join(table)}); it was written by hand, or by a newer version"
        )
    return table[name]


def _make(cls: type, arguments: dict[str, Any], where: str) -> Any:
    """Calls a listed class with checked arguments."""
    try:
        if cls is nn.Sequential:
            return nn.Sequential(OrderedDict(arguments))
        check_types(cls, arguments)
        return cls(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:  # what constructors raise
        raise ValueError(f"{where} cannot be made as a {cls.__name__}: {error}") from error


def check_types(cls: type, arguments: dict[str, Any]) -> None:
    """Checks arguments against the annotations of a constructor.

    Raises:
        ValueError: If an argument is unknown, or of another type than annotated.
    """
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    entry = ENTRIES.get(cls.__name__)
    known = tuple(entry.attributes if entry else inspect.signature(cls).parameters)
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(f"it takes no argument {name!r}, only {list(known)}")
        if not _fits(value, hints.get(name, Any)):
            raise ValueError(f"{name} should be {_in_words(hints[name])}, got {value!r}")


def _in_words(hint: Any) -> str:
    return f"of type {hint.__name__ if isinstance(hint, type) else hint}"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as types can tell."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin in (tuple, list, Sequence):  # JSON has one kind of sequence for all of them
        return isinstance(value, list | tuple) and all(_fits(part, parts[0]) for part in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    kind = origin or hint
    return isinstance(value, kind) if isinstance(kind, type) else True
