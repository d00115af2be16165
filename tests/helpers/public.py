"""What the library shows its users: the functions, classes and methods that `dir(pv)` leads to."""

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pyro_vae as pv
from pyro_vae._arguments import is_result


def modules() -> Iterator[ModuleType]:
    """Public modules: those that `dir(pv)` shows."""
    for name in dir(pv):
        value = getattr(pv, name)
        if isinstance(value, ModuleType):
            yield value


def public() -> dict[str, Callable[..., Any]]:
    """Every public function, constructor and method by its name, once each."""
    found: dict[str, Callable[..., Any]] = {}
    for module in (pv, *modules()):
        for name in getattr(module, "__all__", dir(module)):
            value = getattr(module, name)
            own = str(getattr(value, "__module__", "")).startswith(module.__name__)
            if name.startswith("_") or not own or issubclass_of_tuple(value):
                continue
            if inspect.isfunction(value):
                found[f"{value.__module__}.{name}"] = value
            elif inspect.isclass(value) and not getattr(value, "_is_protocol", False):
                found |= dict(methods(value))
    return found


def issubclass_of_tuple(value: object) -> bool:
    """Named tuples are results: what they hold was checked before."""
    return isinstance(value, type) and issubclass(value, tuple)


def methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The constructor and the public methods that a class defines."""
    for name, value in vars(cls).items():
        constructor = name == "__init__" and not is_result(cls)
        if inspect.isfunction(value) and (constructor or not name.startswith("_")):
            yield f"{cls.__module__}.{cls.__name__}.{name}", value
