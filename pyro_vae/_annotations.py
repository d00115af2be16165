"""Derives the checks of an argument's type and range from the argument's annotation and name.

An argument's name has the same meaning in every signature. So the name determines the range of a
numerical argument, unless the annotation states another range, as `Annotated[int, Interval(2)]`
does. Values are normalized: a NumPy integer becomes an `int`, and a list becomes a tuple where the
annotation is a tuple.
"""

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from inspect import isclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin

import numpy as np
import torch
from jaxtyping import AbstractArray
from torch import Tensor

from .formatting import count_of


class Interval(NamedTuple):
    """Range of a numerical argument; an open interval excludes both ends."""

    low: float | int = -math.inf
    high: float | int = math.inf
    is_open: bool = False
    endless: bool = False  # whether infinity is allowed
    unknown: bool = False  # whether nan is allowed, for an unknown number

    def has(self, value: float | int) -> bool:
        """Whether the range contains `value`, which must not be nan."""
        if self.is_open:
            return self.low < value < self.high or (self.endless and value == math.inf)
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            above = "above" if self.is_open else "of at least"
            return "" if self.low == -math.inf else f" {above} {self.low}"
        ends = f"{self.low} and {self.high}"
        return f" between {ends}" + (", both excluded" if self.is_open else "")


COUNT, POSITIVE, SHARE = Interval(1), Interval(0, is_open=True), Interval(0, 1, is_open=True)
ANY = Interval(endless=True, unknown=True)  # a number in a figure may be unknown
LIMIT = Interval(0, is_open=True, endless=True)  # infinity stands for no limit
SEED = Interval(0, 2**64 - 1)  # the range of a generator's seeds; larger ones would repeat these
_NAMES: dict[Interval, str] = {
    COUNT: "batch_size bins blocks components features hidden history latent_dim leapfrog_steps "
    "length max_epochs max_points max_rows max_samples number outputs patience rank reference side "
    "steps sweeps width",
    POSITIVE: "bound decay df error learning_rate lr scale sigma spread steepness",
    SHARE: "false_alarm level prior_share rate target_acceptance test_fraction",
    Interval(0, 1): "validation_fraction",
    Interval(0): "beta betas floor max_steps num_parameters num_predictive_samples "
    "num_prior_samples",
    LIMIT: "memory tolerance",
    SEED: "seed",
}
_RANGES = {name: interval for interval, names in _NAMES.items() for name in names.split()}


def range_of(name: str) -> Interval:
    """Returns the range of numerical arguments with this name."""
    return _RANGES.get(name, COUNT if name.startswith("num_") else Interval())


# One class per kind of annotation


class Misfit(Exception):
    """The error for a value of a wrong type or out of range; callers add the message."""

    def __init__(self, error: type[Exception], text: str = "") -> None:
        self.error, self.name, self.text = error, "", text


class Kind:
    """What an annotation requires: `expected` describes valid values, `take` checks a value."""

    expected: str
    conversion = ""  # code that converts an argument named {} to a tensor or an array

    def take(self, value: Any) -> Any:
        """Returns the normalized value, or raises a `Misfit` without a message."""
        raise NotImplementedError


class Number(Kind):
    """Requires a number, not a boolean; nan and infinity must be allowed by the argument."""

    words: ClassVar = {int: "a whole number", float: "a finite number"}

    def __init__(self, kind: type[int] | type[float], interval: Interval, default: Any) -> None:
        self.kind, self.interval = kind, interval
        self.infinite = interval.endless or (isinstance(default, float) and math.isinf(default))
        self.expected = ("a number" if self.infinite else self.words[kind]) + str(interval)
        self.example = kind(max(interval.low, 1) if interval.high > 1 else interval.high / 2)

    def take(self, value: Any) -> Any:
        """Returns the number as an `int` or a `float`."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.kind is int else Real):
            raise Misfit(TypeError)
        convert: Any = self.kind
        try:
            number: float | int = convert(value)
        except OverflowError:
            raise Misfit(ValueError) from None
        if self.kind is float and math.isnan(number):
            fits = self.interval.unknown
        else:
            fits = (self.infinite or abs(number) < math.inf) and self.interval.has(number)
        if not fits:
            raise Misfit(ValueError)
        return number


class _Test(Kind):
    """Requires a value that passes a test; the value is not converted."""

    def __init__(
        self, expected: str, fits: Callable[[Any], bool], error: type[Exception] = TypeError
    ) -> None:
        self.expected, self.fits, self.error = expected, fits, error

    def take(self, value: Any) -> Any:
        """Returns the value unchanged, if it passes the test."""
        if not self.fits(value):
            raise Misfit(self.error)
        return value


class _Flag(Kind):
    """Requires True or False, from Python or NumPy."""

    expected = "True or False"

    def take(self, value: Any) -> bool:
        """Returns the flag as a `bool`."""
        if not isinstance(value, bool | np.bool_):
            raise Misfit(TypeError)
        return bool(value)


class Instance(_Test):
    """Requires an instance of a class or a protocol, not the class itself."""

    words: ClassVar = {
        str: "a string",
        Tensor: "a torch tensor",
        NoneType: "None",
        Path: "a path",
        np.ndarray: "a NumPy array",
    }

    def __init__(self, cls: type) -> None:
        base = os.PathLike if cls is Path else cls
        super().__init__(
            self.words.get(cls) or f"an object of {cls.__name__}",
            lambda value: isinstance(value, base) and (cls is type or not isinstance(value, type)),
        )
        self.cls, self.conversion = cls, "torch.as_tensor({})" if cls is Tensor else ""


class _Shaped(Kind):
    """Requires a tensor or an array with the dtype and the axes of a jaxtyping annotation."""

    def __init__(self, annotation: Any) -> None:
        self.annotation, is_tensor = annotation, annotation.array_type is Tensor
        array = "tensor" if is_tensor else "NumPy array"
        shape = annotation.dim_str.replace(" ", ", ")
        number = annotation.__name__.partition("[")[0].lower()
        article = "an" if number.startswith("int") else "a"
        self.expected = f"{article} {number} {array} of shape ({shape})"
        dtype = ", dtype=torch.float32" if number == "float" else ""
        self.conversion = f"torch.as_tensor({{}}{dtype})" if is_tensor else "np.asarray({})"

    def take(self, value: Any) -> Any:
        """Returns the value unchanged, if it has the dtype and the axes."""
        if not isinstance(value, self.annotation):
            raise Misfit(ValueError if isinstance(value, self.annotation.array_type) else TypeError)
        return value


class Device(Kind):
    """Requires a device that this machine has, and on which a tensor can be stored."""

    expected = "a device of this machine or None"

    def take(self, value: Any) -> Any:
        """Returns the device unchanged, if a tensor with one number can be made on it."""
        if value is not None and not isinstance(value, str | torch.device):
            raise Misfit(TypeError)
        try:
            usable = value is None or torch.zeros((), device=value).item() == 0
        except (RuntimeError, AssertionError, NotImplementedError):  # whatever a backend raises
            usable = False
        if not usable:
            raise Misfit(ValueError)
        return value


class Items(Kind):
    """Requires a sequence of items of one kind; a string does not count as a sequence."""

    def __init__(self, container: type, item: Kind | None) -> None:
        self.container, self.item = container, item
        self.expected = (
            f"a sequence in which each entry is {item.expected}" if item else "a sequence"
        )

    def take(self, value: Any) -> Any:
        """Returns the checked entries, in a container of the annotated type."""
        if isinstance(value, str | bytes | Mapping | set | type) or not isinstance(value, Iterable):
            raise Misfit(TypeError)
        if self.item is None and isinstance(value, self.container):
            return value
        if not isinstance(value, Sized) or getattr(value, "ndim", 1) != 1:
            raise Misfit(TypeError)
        raw = value.tolist() if isinstance(value, Tensor) else value
        entries = [self.item.take(entry) if self.item else entry for entry in raw]
        same = isinstance(value, self.container) and _same(entries, value)
        return value if same else (tuple if self.container is tuple else list)(entries)


class Tuple(Kind):
    """Requires a tuple or a list with one entry for each of several kinds."""

    def __init__(self, parts: list[Kind | None]) -> None:
        self.parts = parts
        names = (part.expected if part else "anything" for part in parts)
        self.expected = f"a tuple of {count_of(len(parts), 'entry')} ({', '.join(names)})"

    def take(self, value: Any) -> Any:
        """Returns the checked entries as a tuple."""
        if not isinstance(value, tuple | list) or len(value) != len(self.parts):
            raise Misfit(TypeError)
        pairs = zip(self.parts, value, strict=True)
        entries = tuple(part.take(entry) if part else entry for part, entry in pairs)
        return value if isinstance(value, tuple) and _same(entries, value) else entries


class Dictionary(Kind):
    """Requires a mapping whose keys are all of one kind, and whose values are all of one kind."""

    def __init__(self, key: Kind | None, value: Kind | None) -> None:
        self.key, self.value = key, value
        each = f", in which each value is {value.expected}" if value else ""
        keys = "names as keys" if isinstance(key, Instance) and key.cls is str else "keys"
        self.expected = f"a dictionary with {keys}{each}"

    def take(self, value: Any) -> Any:
        """Returns the dictionary itself, after checking its keys and values."""
        if not isinstance(value, Mapping):
            raise Misfit(TypeError)
        for key, entry in value.items():
            if self.key:
                self.key.take(key)
            if self.value:
                self.value.take(entry)
        return value


class DataOrNumber(Kind):
    """Accepts a number or data; data are checked later, where they are read."""

    def __init__(self, number: Number) -> None:
        self.number = number
        self.expected = f"data or {number.expected}"

    def take(self, value: Any) -> Any:
        """Returns a number as an `int`, and anything else unchanged."""
        return self.number.take(value) if isinstance(value, Real | np.bool_) else value


class Either(Kind):
    """Requires a value that fits one of several kinds; the first kind that fits is used.

    Whole numbers stay `int` if both `int` and `float` are allowed.
    """

    def __init__(self, kinds: Sequence[Kind]) -> None:
        numbers = {kind.kind: kind for kind in kinds if isinstance(kind, Number)}
        whole = numbers.get(int)
        self.kinds = sorted(kinds, key=lambda kind: kind is not whole)
        listed = [kind for kind in kinds if kind is not whole or float not in numbers]
        self.expected = " or ".join(dict.fromkeys(kind.expected for kind in listed))
        self.conversion = next((kind.conversion for kind in kinds if kind.conversion), "")

    def take(self, value: Any) -> Any:
        """Returns the value, converted by the first kind that fits."""
        error: type[Exception] = TypeError
        for kind in self.kinds:
            try:
                return kind.take(value)
            except Misfit as misfit:
                error = ValueError if misfit.error is ValueError else error
        raise Misfit(error)


def _same(some: Sequence[Any], others: Any) -> bool:
    """Whether two sequences of the same length hold the same objects, not only equal ones."""
    return all(one is other for one, other in zip(some, others, strict=True))


# From an annotation to a check


def kind_of(annotation: Any, interval: Interval | None = None, default: Any = None) -> Kind | None:
    """Returns the check that an annotation requires; None if there is nothing to check.

    Example:
        >>> kind_of(int, COUNT).take(np.int64(3))
        3
        >>> kind_of(float | None, POSITIVE).expected
        'a finite number above 0 or None'
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return _union(parts, interval, default)
    if origin is not None:
        return _generic(annotation, origin, parts, interval)
    if annotation in (int, float):
        return Number(annotation, interval or Interval(), default)
    if annotation is bool:
        return _Flag()
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return _Shaped(annotation)
    if annotation is None:
        return Instance(NoneType)
    if not isinstance(annotation, type) or annotation in (Any, object, inspect.Parameter.empty):
        return None
    if issubclass(annotation, Late):
        name = annotation.__name__
        return _Test(
            f"a {name}", lambda value: name in [cls.__name__ for cls in type(value).__mro__]
        )
    return Instance(annotation)


def _generic(
    annotation: Any, origin: Any, parts: tuple[Any, ...], interval: Interval | None
) -> Kind | None:
    """Returns the check for an annotation with brackets, such as `tuple[int, ...]`."""
    if origin is Annotated:
        own = [part for part in parts[1:] if isinstance(part, Interval)]
        return kind_of(parts[0], own[0] if own else interval)
    if origin is Literal:
        choices = ", ".join(map(repr, parts))
        return _Test(f"one of {choices}", lambda value: value in parts, ValueError)
    if annotation == Callable[..., Any]:
        expected = "a Pyro program, which is a module or a function"
        return _Test(expected, lambda value: callable(value) and not isclass(value))
    if origin is Callable:
        return _Test("a function", callable)
    if origin is type:
        base = parts[0] if isinstance(parts[0], type) else object
        expected = f"a class derived from {base.__name__}"
        return _Test(expected, lambda value: isclass(value) and issubclass(value, base))
    if origin is tuple and parts[-1:] != (...,):
        return Tuple([kind_of(part, interval) for part in parts])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Dictionary(*(kind_of(part, interval) for part in parts))
    if origin in (tuple, list, Sequence):
        return Items(origin, kind_of(parts[0], interval))
    return Instance(origin) if isinstance(origin, type) else None


def _union(parts: tuple[Any, ...], interval: Interval | None, default: Any) -> Kind | None:
    """Returns the check for a union of types; None if there is nothing to check.

    Data are checked later, where they are read. If the union allows both data
    and a whole number, the returned check looks only at the number. If the union allows data but no
    whole number, there is nothing to check.
    """
    if Tensor in parts and any(get_origin(part) is tuple for part in parts):
        return DataOrNumber(Number(int, interval or Interval(), default)) if int in parts else None
    if Sequence[Any] in parts and Mapping[str, Any] in parts:
        return None  # any JSON
    if torch.device in parts:
        return Device()
    kinds = [kind_of(part, interval, default) for part in parts]
    found = [kind for kind in kinds if kind is not None]
    return Either(found) if len(found) == len(kinds) else None


class Late:
    """A placeholder for a class of a library that is not imported yet; it has the class's name."""
