"""Constructor arguments of saved classes, and the attributes that hold them.

A class is registered where it is defined, with :func:`registered`. Saving reads the arguments from
the current attributes of an object, and loading calls the class with these arguments. A file can
name only registered classes.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any, TypeVar

from torch import nn

_Class = TypeVar("_Class", bound=type)


@dataclass(frozen=True)
class Entry:
    """A registered class; `attributes` maps constructor arguments to attributes that hold them."""

    cls: type
    attributes: dict[str, str]


_ENTRIES: dict[str, Entry] = {}
ENTRIES = MappingProxyType(_ENTRIES)
"""Registered classes, by the names that files use for them."""


def registered(**attributes: str) -> Callable[[_Class], _Class]:
    """Makes a class known to :func:`pyro_vae.save` and :func:`pyro_vae.load`.

    Saving reads the constructor arguments from the object's attributes. Each attribute must have
    the name of its argument, unless `attributes` gives another name. Put this decorator above all
    other decorators of the class.

    Arguments:
        attributes: For each argument that is kept under another name, the path of its attribute,
            such as `prior="latent_prior"` or `spread="mixture.spread"`.

    Raises:
        ValueError: If another class is registered under the name of this class.

    Example:
        >>> @registered(width="size")
        ... class Box:
        ...     def __init__(self, width: int) -> None:
        ...         self.size = width
        >>> arguments_of(Box(3))
        {'width': 3}
        >>> del _ENTRIES["Box"]
    """

    def register(cls: _Class) -> _Class:
        names = [
            name
            for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        add(cls, {name: attributes.get(name, name) for name in names})
        return cls

    return register


def add(cls: type, attributes: dict[str, str]) -> None:
    """Registers a class; `attributes` maps each recorded argument to the attribute that holds it.

    Raises:
        ValueError: If another class is registered under the name of this class.
    """
    known = _ENTRIES.get(cls.__name__)
    if known is not None and known.cls.__module__ != cls.__module__:
        raise ValueError(
            f"the name {cls.__name__!r} of a registered class must be unique, because saved files "
            f"refer to classes by name; got classes of this name in the modules "
            f"{known.cls.__module__} and {cls.__module__}: rename your class"
        )
    _ENTRIES[cls.__name__] = Entry(cls, attributes)


def is_registered(cls: type) -> bool:
    """Whether the class itself is registered; a registered base class is not enough."""
    entry = _ENTRIES.get(cls.__name__)
    return entry is not None and entry.cls is cls


def arguments_of(value: object) -> dict[str, Any]:
    """Returns the constructor arguments that rebuild an object; a `ModuleList` becomes a tuple.

    Arguments:
        value: An object of a registered class.

    Raises:
        ValueError: If the object has no attribute for an argument.

    Example:
        >>> from pyro_vae import LowRankNormal
        >>> arguments_of(LowRankNormal(3))
        {'rank': 3}
    """
    attributes = _ENTRIES[type(value).__name__].attributes
    held = {name: _held(value, name, path) for name, path in attributes.items()}
    return {
        name: tuple(argument) if isinstance(argument, nn.ModuleList) else argument
        for name, argument in held.items()
    }


def _held(value: object, name: str, path: str) -> Any:
    """Returns the attribute that holds a constructor argument."""
    try:
        return attrgetter(path)(value)
    except AttributeError as error:
        raise ValueError(
            f"a {type(value).__name__} must keep its argument `{name}` as an attribute, from which "
            f"it is saved; got no attribute '{path}': write self.{name} = {name} in __init__, or "
            f'name the attribute that holds it, as in @registered({name}="spread")'
        ) from error
