"""Arguments of public functions, checked by type and range at the call.

A public module ends with `check_public(globals())`. Each public function, class and method is then
wrapped: the type of an argument is read from its annotation, and the range of a number from its
name, since one word means one thing in every signature (`Annotated[int, Interval(2)]` sets another
range). Values are normalized: a NumPy integer arrives as an `int`, a list of widths as the
annotated tuple. A check costs a few microseconds, and is made once: what a checked module passes on
to another public function was checked when it came in, so calls within the library go through.

Data are not checked here: batches are checked where they are read, and tensor arguments of methods
by their owners.
"""

import builtins
import dataclasses
import functools
import inspect
import math
import os
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor


class Interval(NamedTuple):
    """Numbers that an argument may be; an open interval excludes both ends."""

    low: float | int = -math.inf
    high: float | int = math.inf
    is_open: bool = False
    endless: bool = False  # whether infinity is a number here
    unknown: bool = False  # whether nan is one, which says that a number is not known

    def has(self, value: float | int) -> bool:
        if self.is_open:
            return self.low < value < self.high or (self.endless and value == math.inf)
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return "" if self.low == -math.inf else f" {self._above} {self.low}"
        ends = f"{self.low} and {self.high}"
        return f" between {ends}" + (", both excluded" if self.is_open else "")

    @property
    def _above(self) -> str:
        return "above" if self.is_open else "of at least"


COUNT, POSITIVE, SHARE = Interval(1), Interval(0, is_open=True), Interval(0, 1, is_open=True)
ANY = Interval(endless=True, unknown=True)  # what is drawn may be unknown
LIMIT = Interval(0, is_open=True, endless=True)  # none at all, if it is infinite
SEED = Interval(0, 2**64 - 1)  # what a generator takes; larger ones would repeat the smaller
_NAMES: dict[Interval, str] = {
    COUNT: "batch_size bins blocks components features hidden history latent_dim leapfrog_steps "
    "length max_epochs max_points max_rows max_samples number outputs patience rank side "
    "steps sweeps width",
    POSITIVE: "bound decay df error lr scale sigma spread steepness",
    SHARE: "false_alarm level prior_share rate target_acceptance test_fraction",
    Interval(
        0
    ): "beta betas floor max_steps num_parameters num_predictive_samples num_prior_samples",
    LIMIT: "memory tolerance",
    SEED: "seed",
}
_RANGES = {name: interval for interval, names in _NAMES.items() for name in names.split()}


def _range(name: str) -> Interval:
    """The range of a number of this name, in every signature."""
    return _RANGES.get(name, COUNT if name.startswith("num_") else Interval())


# One kind of annotation each


class _Misfit(Exception):
    """A value that does not fit, by its type or by its range; the name and text are added later."""

    def __init__(self, error: type[Exception]) -> None:
        self.error, self.name, self.text = error, "", ""


class Kind:
    """What an annotation requires, in words and as a check."""

    expected: str
    takes_tensors = False

    def take(self, value: Any) -> Any:
        """Returns the normalized value, or raises a misfit without a message."""
        raise NotImplementedError


class _Number(Kind):
    """A number, but not a boolean and not nan; infinite only if its default is."""

    words: ClassVar = {int: "a whole number", float: "a finite number"}

    def __init__(self, kind: type[int] | type[float], interval: Interval, default: Any) -> None:
        self.kind, self.interval = kind, interval
        self.infinite = interval.endless or (isinstance(default, float) and math.isinf(default))
        self.expected = ("a number" if self.infinite else self.words[kind]) + str(interval)
        self.example = kind(max(interval.low, 1) if interval.high > 1 else interval.high / 2)

    def take(self, value: Any) -> Any:
        """The number as an `int` or a `float`."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.kind is int else Real):
            raise _Misfit(TypeError)
        convert: Any = self.kind
        try:
            number: float | int = convert(value)
        except OverflowError:
            raise _Misfit(ValueError) from None
        if not self._has(number):
            raise _Misfit(ValueError)
        return number

    def _has(self, number: float | int) -> bool:
        if self.kind is float and not math.isfinite(number):
            if math.isnan(number):
                return self.interval.unknown
            if not self.infinite:
                return False
        return self.interval.has(number)


class _Test(Kind):
    """A value that passes a test; it is not converted."""

    def __init__(
        self, expected: str, fits: Callable[[Any], bool], error: type[Exception] = TypeError
    ) -> None:
        self.expected, self.fits, self.error = expected, fits, error

    def take(self, value: Any) -> Any:
        """The value itself."""
        if not self.fits(value):
            raise _Misfit(self.error)
        return value


class _Flag(Kind):
    """True or False, also NumPy's."""

    expected = "True or False"

    def take(self, value: Any) -> bool:
        """The flag as a `bool`."""
        if not isinstance(value, bool | np.bool_):
            raise _Misfit(TypeError)
        return bool(value)


class _Instance(_Test):
    """An object of a class or of a protocol, and not the class itself."""

    words: ClassVar = {
        str: "a string",
        Tensor: "a torch tensor",
        NoneType: "None",
        Path: "a path",
        np.ndarray: "a NumPy array",
    }

    def __init__(self, cls: type) -> None:
        super().__init__(self.words.get(cls) or f"an object of {cls.__name__}", self._is_one)
        self.cls, self.takes_tensors = cls, cls is Tensor

    def _is_one(self, value: Any) -> bool:
        fits = isinstance(value, os.PathLike if self.cls is Path else self.cls)
        return fits and (self.cls is type or not isinstance(value, type))


class _Shaped(_Test):
    """A tensor or an array of a kind of number and a number of axes, by jaxtyping."""

    takes_tensors = True

    def __init__(self, annotation: Any) -> None:
        array = "tensor" if annotation.array_type is Tensor else "NumPy array"
        shape = annotation.dim_str.replace(" ", ", ")
        kind = annotation.__name__.partition("[")[0].lower()
        expected = f"a {kind} {array} of shape ({shape})"
        super().__init__(expected, lambda value: isinstance(value, annotation))


class _Device(Kind):
    """A device that this machine has, and on which numbers can be kept."""

    expected = "a device of this machine or None"

    def take(self, value: Any) -> Any:
        """The device itself, tried with one number."""
        if value is not None and not isinstance(value, str | torch.device):
            raise _Misfit(TypeError)
        try:
            usable = value is None or torch.zeros((), device=value).item() == 0
        except (RuntimeError, AssertionError, NotImplementedError):  # whatever a backend raises
            usable = False
        if not usable:
            raise _Misfit(ValueError)
        return value


def _named(name: str) -> Kind:
    """An object of a class known only by name, since its library is imported late."""
    return _Test(f"a {name}", lambda value: name in [cls.__name__ for cls in type(value).__mro__])


def _function(*, program: bool) -> Kind:
    """Something callable; a program, which is called as `model(*batch)`, must not be a class."""
    expected = "a Pyro program: a module or a function" if program else "a function"
    return _Test(expected, lambda value: callable(value) and not (program and _is_class(value)))


def _class(base: Any) -> Kind:
    """A class, not an object of it."""
    base = base if isinstance(base, type) else object
    return _Test(
        f"a class, of {base.__name__}", lambda value: _is_class(value) and issubclass(value, base)
    )


def _choice(values: tuple[Any, ...]) -> Kind:
    """One of some values."""
    expected = f"one of {', '.join(map(repr, values))}"
    return _Test(expected, lambda value: value in values, ValueError)


class _Items(Kind):
    """A sequence of items of one kind; a string does not count as a sequence."""

    def __init__(self, container: type, item: Kind | None) -> None:
        self.container, self.item = container, item
        self.expected = f"a sequence, each entry {item.expected}" if item else "a sequence"

    def take(self, value: Any) -> Any:
        """The entries in the annotated container; the value itself where it is one already."""
        if isinstance(value, str | bytes | Mapping | set | type) or not hasattr(value, "__iter__"):
            raise _Misfit(TypeError)
        if self.item is None and isinstance(value, self.container):
            return value
        if not hasattr(value, "__len__") or getattr(value, "ndim", 1) != 1:
            raise _Misfit(TypeError)
        entries = [self.item.take(entry) if self.item else entry for entry in _entries(value)]
        same = isinstance(value, self.container) and _same(entries, value)
        return value if same else (tuple if self.container is tuple else list)(entries)


class _Tuple(Kind):
    def __init__(self, parts: list[Kind | None]) -> None:
        self.parts = parts
        names = (part.expected if part else "anything" for part in parts)
        self.expected = f"a tuple of {len(parts)}: {', '.join(names)}"

    def take(self, value: Any) -> Any:
        """The entries as a tuple."""
        if not isinstance(value, tuple | list) or len(value) != len(self.parts):
            raise _Misfit(TypeError)
        pairs = zip(self.parts, value, strict=True)
        entries = tuple(part.take(entry) if part else entry for part, entry in pairs)
        return value if isinstance(value, tuple) and _same(entries, value) else entries


class _Mapping(Kind):
    def __init__(self, key: Kind | None, value: Kind | None) -> None:
        self.key, self.value = key, value
        each = f", each value {value.expected}" if value else ""
        self.expected = f"a dictionary with {'names' if _is_str(key) else 'keys'}{each}"

    def take(self, value: Any) -> Any:
        """The dictionary itself, with checked keys and values."""
        if not isinstance(value, Mapping):
            raise _Misfit(TypeError)
        for key, entry in value.items():
            if self.key:
                self.key.take(key)
            if self.value:
                self.value.take(entry)
        return value


class _Either(Kind):
    """The first of several that fits; whole numbers stay integers where both are allowed."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self.kinds = sorted(kinds, key=lambda kind: getattr(kind, "kind", int) is not int)
        real = any(getattr(kind, "kind", None) is float for kind in kinds)
        told = [kind for kind in kinds if not (real and getattr(kind, "kind", None) is int)]
        self.expected = " or ".join(dict.fromkeys(kind.expected for kind in told))
        self.takes_tensors = any(kind.takes_tensors for kind in kinds)

    def take(self, value: Any) -> Any:
        """The value as converted by the first kind that fits."""
        error: type[Exception] = TypeError
        for kind in self.kinds:
            try:
                return kind.take(value)
            except _Misfit as misfit:
                error = ValueError if misfit.error is ValueError else error
        raise _Misfit(error)


def _is_class(value: Any) -> bool:
    return isinstance(value, type)


def _same(some: Sequence[Any], others: Any) -> bool:
    return all(one is other for one, other in zip(some, others, strict=True))


def _is_str(kind: Kind | None) -> bool:
    return isinstance(kind, _Instance) and kind.cls is str


def _entries(value: Any) -> Iterator[Any]:
    """Entries as Python values: those of a tensor become numbers."""
    return iter(value.tolist() if isinstance(value, Tensor) else value)


# From an annotation to a check


def kind_of(annotation: Any, interval: Interval | None = None, default: Any = None) -> Kind | None:
    """What an annotation requires; None if it has nothing to check.

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
        return _Number(annotation, interval or Interval(), default)
    if annotation is bool:
        return _Flag()
    if hasattr(annotation, "dim_str"):
        return _Shaped(annotation)
    if annotation is None:
        return _Instance(NoneType)
    if not isinstance(annotation, type) or annotation in (Any, object, inspect.Parameter.empty):
        return None
    late = issubclass(annotation, _Late)
    return _named(annotation.__name__) if late else _Instance(annotation)


def _generic(
    annotation: Any, origin: Any, parts: tuple[Any, ...], interval: Interval | None
) -> Kind | None:
    """The kind of an annotation with brackets."""
    if origin is Annotated:
        own = [part for part in parts[1:] if isinstance(part, Interval)]
        return kind_of(parts[0], own[0] if own else interval)
    if origin is Literal:
        return _choice(parts)
    if origin is Callable:
        return _function(program=annotation == Callable[..., Any])
    if origin is type:
        return _class(parts[0])
    if origin is tuple and parts[-1:] != (...,):
        return _Tuple([kind_of(part, interval) for part in parts])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _Mapping(*(kind_of(part, interval) for part in parts))
    if origin in (tuple, list, Sequence):
        return _Items(origin, kind_of(parts[0], interval))
    return _Instance(origin) if isinstance(origin, type) else None


def _union(parts: tuple[Any, ...], interval: Interval | None, default: Any) -> Kind | None:
    """A union of kinds; None if one of them accepts anything, or is data (checked later)."""
    if Tensor in parts and any(get_origin(part) is tuple for part in parts):
        return None
    if Sequence[Any] in parts and Mapping[str, Any] in parts:
        return None  # free in form: JSON
    if torch.device in parts:
        return _Device()
    kinds = [kind_of(part, interval, default) for part in parts]
    found = [kind for kind in kinds if kind is not None]
    return _Either(found) if len(found) == len(kinds) else None


class _Late:
    """A class whose library is not imported yet; it is known by name."""


class _Names(dict[str, Any]):
    """Names in a quoted annotation: those of its module, and placeholders for late imports."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, None) or type(name, (_Late,), {})


def _evaluated(annotation: Any, module: str) -> Any:
    """An annotation that may be quoted; one that cannot be read is not checked."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {}, _Names(vars(sys.modules[module])))
    except TypeError:
        return Any


# From a signature to a wrapper

_CHECKED: set[str] = set()  # packages and modules that check what they are given


class _Reader:
    """Checks and normalizes the arguments of one function."""

    def __init__(self, function: Callable[..., Any], *, tensors: bool) -> None:
        self.function, self.parameters = function, inspect.signature(function).parameters
        self.kinds: dict[str, Kind] = {}
        for parameter in self.parameters.values():
            kind = self._kind(parameter, function.__module__)
            if kind is not None and (tensors or not kind.takes_tensors):
                self.kinds[parameter.name] = kind
        self.positions = [
            parameter.name
            for parameter in self.parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]

    @staticmethod
    def _kind(parameter: inspect.Parameter, module: str) -> Kind | None:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None
        annotation = _evaluated(parameter.annotation, module)
        return kind_of(annotation, _range(parameter.name), parameter.default)

    def __call__(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        try:
            for name in kwargs.keys() & self.kinds.keys():
                kwargs[name] = self.take(name, kwargs[name])
            pairs = zip(self.positions, args)  # noqa: B905 (the call itself refuses too many)
            read = [self.take(name, value) for name, value in pairs]
            return [*read, *args[len(read) :]]
        except _Misfit as misfit:
            misfit.text = f"{self._name(args)}: {misfit.text}"
            raise

    def take(self, name: str, value: Any) -> Any:
        """The value that the function gets for an argument; a default is passed on unchanged."""
        kind = self.kinds.get(name)
        if kind is None or value is self.parameters[name].default:
            return value
        try:
            return kind.take(value)
        except _Misfit as misfit:
            remedy, misfit.name = _remedy(self.parameters[name], kind, value), name
            misfit.text = f"{name} should be {kind.expected}, got {_shown(value)}; {remedy}"
            raise

    def _name(self, args: Sequence[Any]) -> str:
        """The name of what was called: the object's class, even if its constructor is inherited."""
        called = self.function.__qualname__.rpartition(".<locals>.")[-1]
        if "." not in called or self.positions[:1] not in (["self"], ["cls"]):
            return called
        owner = args[0] if isinstance(args[0], type) else type(args[0])
        name = self.function.__name__
        return owner.__name__ if name == "__init__" else f"{owner.__name__}.{name}"


def _remedy(parameter: inspect.Parameter, kind: Kind, value: Any) -> str:
    """The remedy that an error about an argument suggests."""
    name, default = parameter.name, parameter.default
    classes = [part for part in _parts(value) if isinstance(part, type)]
    if classes:
        return f"call the class, as in {classes[0].__name__}(...)"
    if isinstance(value, str) and isinstance(kind, _Items):
        return f"put it into a list, as in {name}=[{value!r}]"
    if isinstance(value, Tensor | np.ndarray) and not kind.takes_tensors:
        return f"pass a plain value, as in {name}=x.item() or x.tolist()"
    if isinstance(kind, _Device):
        return "pass 'cpu', or 'cuda' where torch.cuda.is_available()"
    if kind.takes_tensors:
        return f"convert it, as in {name}=torch.as_tensor(...)"
    if default is None or isinstance(default, int | float | str):
        return f"pass for example {name}={default!r}, the default"
    if isinstance(kind, _Number):
        return f"pass for example {name}={kind.example}"
    return "its help() has an example"


def _parts(value: Any) -> Sequence[Any]:
    """The entries of a dictionary or a list; anything else by itself."""
    if isinstance(value, Mapping):
        return tuple(value.values())
    return value if isinstance(value, list | tuple) else (value,)


def _shown(value: Any) -> str:
    """The value received, in a few words."""
    if isinstance(value, Tensor) and value.is_nested:
        return f"a nested Tensor of {value.dtype}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = reprlib.repr(value)
    return text if value is None else f"{text} ({type(value).__name__})"


def checked(function: Callable[..., Any], *, tensors: bool = True) -> Callable[..., Any]:
    """Wraps a function so that it checks its arguments first.

    Arguments:
        function: A function with annotated arguments.
        tensors: Whether tensors are checked too, which is skipped for methods in inner loops.

    Example:
        >>> def double(num_samples: int) -> int:
        ...     return 2 * num_samples
        >>> checked(double)(num_samples=0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: double: num_samples should be a whole number of at least 1, got 0 (int)...
    """
    reader = _Reader(function, tensors=tensors)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        caller: str = sys._getframe(1).f_globals.get("__name__", "")
        if ".".join(caller.split(".", 2)[:2]) in _CHECKED:
            return function(*args, **kwargs)
        try:
            read = reader(args, kwargs)
        except _Misfit as misfit:
            raise _own(function, misfit, args, kwargs) or misfit.error(misfit.text) from None
        return function(*read, **kwargs)

    call.__dict__["checks_arguments"] = True
    return call if reader.kinds else function


def _own(
    function: Callable[..., Any], misfit: _Misfit, args: Sequence[Any], kwargs: dict[str, Any]
) -> ValueError | None:
    """The class's own message about a number out of range, which can say more."""
    if function.__name__ == "__init__" and misfit.error is ValueError:
        try:
            function(*args, **kwargs)
        except ValueError as error:
            return error if misfit.name in str(error) else None
        except Exception:
            return None
    return None


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Checks arguments that a function is to be called with, by name.

    Example:
        >>> check_arguments(check_public, {"namespace": {}})
    """
    reader = _Reader(function, tensors=True)
    try:
        for name, value in arguments.items():
            reader.take(name, value)
    except _Misfit as misfit:
        raise misfit.error(misfit.text) from None


def check_public(namespace: dict[str, Any]) -> None:
    """Wraps all public names of a module; call it at the module's end, with its `globals()`.

    A function is replaced in the module that defines it too, so that it can be pickled. A class
    stays the same object, with a constructor and methods that check their arguments.
    """
    _CHECKED.add(namespace["__name__"])
    for name, value in list(namespace.items()):
        origin = str(getattr(value, "__module__", ""))
        if name.startswith("_") or not origin.startswith(namespace["__name__"]):
            continue
        if isinstance(value, type):
            _check_class(value)
        elif inspect.isfunction(value) and not hasattr(value, "checks_arguments"):
            namespace[name] = checked(value)
            setattr(sys.modules[value.__module__], value.__name__, namespace[name])


def _check_class(cls: type) -> None:
    """Wraps the constructor and the public methods of a class, inherited ones too."""
    if getattr(cls, "_is_protocol", False) or issubclass(cls, tuple):
        return
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == __name__.partition(".")[0]:
            _check_methods(base)


def _check_methods(cls: type) -> None:
    for name, value in list(vars(cls).items()):
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not inspect.isfunction(function) or hasattr(function, "checks_arguments"):
            continue
        if not name.startswith("_") or (name == "__init__" and not _is_result(cls)):
            wrapped = checked(function, tensors=name == "__init__")
            setattr(cls, name, wrapped if function is value else type(value)(wrapped))


def _is_result(cls: type) -> bool:
    """Whether a class is a result of the library, which may hold nan and is not made by users.

    It has a result's base class, or no default for any field, unlike every class of options.
    """
    if any(base.__name__ == "Result" for base in cls.__mro__):
        return True
    missing = dataclasses.MISSING
    return dataclasses.is_dataclass(cls) and all(
        field.default is missing and field.default_factory is missing
        for field in dataclasses.fields(cls)
    )
