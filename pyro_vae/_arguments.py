"""Checks the types and ranges of the arguments whenever a public function is called.

A public module ends with `check_public(globals())`. Each public function, class and method is then
wrapped: the annotation and the name of an argument say which values are allowed
(`_annotations.py`). A check takes a few microseconds. Calls from within the library are not checked
again.

Data are not checked here. Batches are checked where they are read, with errors that name the
argument (:func:`naming`); tensor arguments of methods are checked by the methods themselves.
"""

import builtins
import dataclasses
import difflib
import functools
import inspect
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, no_type_check

import numpy as np
from torch import Tensor, nn

from ._annotations import Device, Items, Kind, Late, Misfit, Number, kind_of, range_of
from .formatting import count_of


class _Names(dict[str, Any]):
    """Looks up the names in a quoted annotation; a class not imported yet gets a placeholder."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, None) or type(name, (Late,), {})


def _evaluated(annotation: Any, module: str) -> Any:
    """Evaluates an annotation if it is quoted; returns `Any` if it cannot be evaluated."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {}, _Names(vars(sys.modules[module])))
    except TypeError:
        return Any


_LIBRARY = f"{__package__}."
_PASSING_ON = tuple(  # modules whose calls are checked, because they pass on users' arguments
    f"{__package__}.{name}" for name in ("cli", "comparisons.running", "sklearn", "tables")
)


_INNER = {"forward", "log_prob", "sample", "rsample", "expand"}  # methods that torch and Pyro call
_HELP = "read the example in the help() of the function"
_EXAMPLES = {  # for arguments that take objects
    "callbacks": "[pv.training.Printing()]",
    "decoder": "pv.nets.MLPDecoder(2, 10)",
    "evaluation": "pv.ImportanceSampling(1000)",
    "family": "pv.FullRankNormal()",
    "fitting": "pv.FitRows(max_steps=1000)",
    "folder": "'results'",
    "given": "guide.global_values()",
    "guide": "pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(10)))",
    "guides": "{'amortized': pv.Encoder(pv.nets.MLPEncoder(10))}",
    "map": "pv.Encoder(pv.nets.MLPEncoder(10))",
    "model": "pv.models.VAE(pv.nets.MLPDecoder(2, 10), pv.likelihoods.Gaussian(), 2)",
    "objective": "pv.IWAE(5)",
    "optimizer": "functools.partial(torch.optim.Adam, lr=1e-3)",
    "reader": "pv.data.OnDisk(x)",
    "prior": "pv.models.MixtureOfNormals(5, 2)",
    "scheduler": "functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10)",
}


class Reader:
    """Checks and normalizes the arguments of one function."""

    def __init__(self, function: Callable[..., Any], *, tensors: bool) -> None:
        self.function, self.parameters = function, inspect.signature(function).parameters
        self.kinds: dict[str, Kind] = {}
        for name, parameter in self.parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            annotation = _evaluated(parameter.annotation, function.__module__)
            kind = kind_of(annotation, range_of(name), parameter.default)
            if kind is not None and (tensors or not kind.conversion):
                self.kinds[name] = kind
        self.positions = [
            parameter.name
            for parameter in self.parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        every = {parameter.kind for parameter in self.parameters.values()}
        self.takes_any_number = inspect.Parameter.VAR_POSITIONAL in every
        self.takes_any_name = inspect.Parameter.VAR_KEYWORD in every

    def __call__(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        try:
            if not (self.takes_any_name or kwargs.keys() <= self.parameters.keys()):
                raise self._unknown(kwargs)
            if not (self.takes_any_number or len(args) <= len(self.positions)):
                raise self._too_many(args)
            for name in kwargs.keys() & self.kinds.keys():
                kwargs[name] = self.take(name, kwargs[name])
            pairs = zip(self.positions, args)  # noqa: B905 (fewer positions where `*args` follow)
            read = [self.take(name, value) for name, value in pairs]
            return [*read, *args[len(read) :]]
        except Misfit as misfit:
            misfit.text = f"{self._name(args)}: {misfit.text}"
            raise

    def _unknown(self, kwargs: Mapping[str, Any]) -> Misfit:
        """Returns the error for an unknown keyword argument; the message suggests a known one."""
        unknown = next(name for name in kwargs if name not in self.parameters)
        names = [name for name in self.parameters if name not in ("self", "cls")]
        text = f"got an unexpected keyword argument '{unknown}': {_meant(unknown, names)}"
        return Misfit(TypeError, text)

    def _too_many(self, args: Sequence[Any]) -> Misfit:
        """Returns the error for more positional arguments than the function takes."""
        extra = args[len(self.positions) :]
        names = [name for name in self.positions if name not in ("self", "cls")]
        named = [p.name for p in self.parameters.values() if p.kind is p.KEYWORD_ONLY]
        by_name = f"pass options by name, such as {named[0]}=..." if named else "leave out the rest"
        return Misfit(
            TypeError,
            f"takes {count_of(len(names), 'positional argument')} ({', '.join(names)}); got "
            f"{len(names) + len(extra)}: {self._unpacked('', extra[0]) or by_name}",
        )

    def _unpacked(self, name: str, value: Any) -> str:
        """Returns advice to pass tensors in one tuple; "" if `value` is not a tensor of data."""
        place = next((known for known in ("data", "example") if known in self.parameters), name)
        is_data = isinstance(value, Tensor | np.ndarray) and value.ndim > 0 and place != name
        return f"pass all tensors of the data in one tuple, as in {place}=(x, y)" if is_data else ""

    def take(self, name: str, value: Any) -> Any:
        """Returns the normalized value of an argument; the default value is not checked."""
        kind = self.kinds.get(name)
        if kind is None or value is self.parameters[name].default:
            return value
        try:
            return kind.take(value)
        except Misfit as misfit:
            unpacked = "" if kind.conversion else self._unpacked(name, value)
            remedy = unpacked or _remedy(self.parameters[name], kind, value)
            misfit.name = name
            misfit.text = f"`{name}` must be {kind.expected}; got {shown(value)}: {remedy}"
            raise

    def _name(self, args: Sequence[Any]) -> str:
        """Returns the name of the called function, or of the class for a constructor."""
        called = self.function.__qualname__.rpartition(".<locals>.")[-1]
        if "." not in called or self.positions[:1] not in (["self"], ["cls"]):
            return called
        owner = args[0] if isinstance(args[0], type) else type(args[0])
        name = self.function.__name__
        return owner.__name__ if name == "__init__" else f"{owner.__name__}.{name}"


def _meant(unknown: str, names: Sequence[str]) -> str:
    """Says which argument an unknown name may stand for, or lists all arguments."""
    if unknown in ("lr", "learning_rate") and "optimizer" in names:
        return "pass the step size to the optimizer, as in optimizer=pv.training.adam_with(0.005)"
    other = {"verbose": "progress", "random_state": "seed"}.get(unknown, "")
    part = unknown.removeprefix("n_").removeprefix("num_").removeprefix("max_")
    like = [name for name in names if part and name.endswith(f"_{part}")]
    close = [name for name in (other, *like) if name in names]
    close = close or difflib.get_close_matches(unknown, names, 1)
    if close:
        return f"pass `{close[0]}`"
    return f"pass one of {', '.join(names)}" if names else "pass no arguments"


def _remedy(parameter: inspect.Parameter, kind: Kind, value: Any) -> str:
    """Returns the part of an error message that says what to pass instead."""
    name, default = parameter.name, parameter.default
    classes = [part for part in _parts(value) if isinstance(part, type)]
    if classes:
        return f"call the class, as in {classes[0].__name__}(...)"
    if name == "map" and isinstance(value, nn.Module):
        return "put the network into an inference map, as in map=pv.Encoder(net)"
    if isinstance(value, str) and isinstance(kind, Items):
        return f"put the value into a list, as in {name}=[{value!r}]"
    if plain := _plain(kind, value):
        return f"pass a plain value, as in {name}={plain}"
    if isinstance(kind, Device):
        return "pass 'cpu', or 'cuda' where torch.cuda.is_available()"
    if kind.conversion:
        return _conversion(name, kind, value)
    if default is None or isinstance(default, int | float | str):
        example = f", or {name}={_EXAMPLES[name]}" if name in _EXAMPLES else ""
        return f"pass, for example, {name}={default!r}, the default{example}"
    if isinstance(kind, Number):
        return f"pass, for example, {name}={kind.example}"
    return f"pass, for example, {name}={_EXAMPLES[name]}" if name in _EXAMPLES else _HELP


def _plain(kind: Kind, value: Any) -> str:
    """Returns code that makes a valid plain value from a tensor or array `x`; "" if none does."""
    if not isinstance(value, Tensor | np.ndarray) or value.ndim > 1:
        return ""
    try:
        plain, code = (value.tolist(), "x.tolist()") if value.ndim else (value.item(), "x.item()")
    except RuntimeError:  # no values can be read: a sparse tensor, or one on the device "meta"
        return ""
    if isinstance(plain, list) and len(plain) == 1 and not isinstance(kind, Items):
        plain, code = plain[0], "x.item()"
    try:
        kind.take(plain)
    except Misfit:
        return ""
    return code


def _conversion(name: str, kind: Kind, value: Any) -> str:
    """Returns advice on how to convert an argument to the tensor or the array that is expected."""
    if kind.expected.startswith("an int"):
        if isinstance(value, slice):
            return f"pass positions, as in torch.arange(num_data)[{name}]"
        if isinstance(value, Tensor | np.ndarray) and str(value.dtype).endswith("bool"):
            positions = f"torch.as_tensor({name}).nonzero().flatten()"
            return f"pass the positions of the entries that are True, as in {positions}"
        if isinstance(value, Tensor) and value.is_floating_point():
            return f"convert it, as in {name}.long()"
    reshaped = f", or reshape it, as in {name}[None] for one row"
    line = kind.conversion.format(name)
    return f"convert it, as in {line}{reshaped * isinstance(value, Tensor | np.ndarray)}"


def _parts(value: Any) -> Sequence[Any]:
    """Returns a dictionary's values or a list's entries; wraps any other value in a tuple."""
    if isinstance(value, Mapping):
        return tuple(value.values())
    return value if isinstance(value, list | tuple) else (value,)


def shown(value: Any) -> str:
    """Describes a value in a few words, for a message."""
    if isinstance(value, Tensor) and value.is_nested:
        return f"a nested Tensor of {value.dtype}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = reprlib.repr(value)
    return text if value is None else f"{text} ({type(value).__name__})"


def checked(function: Callable[..., Any], *, tensors: bool = True) -> Callable[..., Any]:
    """Wraps a function so that its arguments are checked first.

    Arguments:
        function: A function with annotated arguments.
        tensors: Whether tensors are checked, too; methods called in inner loops skip this.

    Example:
        >>> def double(num_samples: int) -> int:
        ...     return 2 * num_samples
        >>> checked(double)(num_samples=0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: double: `num_samples` must be a whole number of at least 1; got 0 (int)...
    """
    reader = Reader(function, tensors=tensors)

    @no_type_check  # jaxtyping's import hook would put a frame between this one and the caller's
    def call(*args: Any, **kwargs: Any) -> Any:
        caller: str = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith(_LIBRARY) and not caller.startswith(_PASSING_ON):
            return function(*args, **kwargs)
        try:
            read = reader(args, kwargs)
        except Misfit as misfit:
            raise _own(function, misfit, args, kwargs) or misfit.error(misfit.text) from None
        return function(*read, **kwargs)

    del call.__dict__["__no_type_check__"]  # the hook reads it in the source
    functools.update_wrapper(call, function)
    call.__dict__["checks_arguments"] = True
    return call if reader.kinds else function


def _own(
    function: Callable[..., Any], misfit: Misfit, args: Sequence[Any], kwargs: dict[str, Any]
) -> ValueError | None:
    """Returns the error that a constructor itself raises for a number out of range, or None.

    The constructor's message can say more than the general message. The error is returned only if
    its message names the argument.
    """
    if function.__name__ == "__init__" and misfit.error is ValueError:
        try:
            function(*args, **kwargs)
        except ValueError as error:
            return error if misfit.name in str(error) else None
        except Exception:
            return None
    return None


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Checks arguments as a call of the function would, without calling it.

    The keys of `arguments` are the arguments' names.

    Example:
        >>> check_arguments(check_public, {"namespace": {}})
    """
    reader = Reader(function, tensors=True)
    try:
        for name, value in arguments.items():
            reader.take(name, value)
    except Misfit as misfit:
        raise misfit.error(misfit.text) from None


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Adds an argument's name to errors raised in the block, unless they name it already.

    Example:
        >>> with naming("validation"):
        ...     raise ValueError("the batch is empty")
        Traceback (most recent call last):
        ValueError: validation: the batch is empty
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        has_name = rf"(?<![.\w]){argument}\b"  # pv.data is a module, not an argument
        if not re.search(has_name, str(error)):
            error.args = (f"{argument}: {error}",)
        raise


def check_public(namespace: dict[str, Any]) -> None:
    """Makes the public functions and classes of a module check their arguments.

    Call it at the end of the module, as `check_public(globals())`. A function that is defined
    in another file is replaced there, too, so that it can be pickled. A class stays the same
    object; its constructor and its methods are replaced.
    """
    for name, value in list(namespace.items()):
        if name.startswith("_") or not (isinstance(value, type) or inspect.isfunction(value)):
            continue
        if not value.__module__.startswith(namespace["__name__"]):
            continue
        if isinstance(value, type):
            _check_class(value)
        elif "checks_arguments" not in vars(value):
            namespace[name] = checked(value)
            setattr(sys.modules[value.__module__], value.__name__, namespace[name])


def _check_class(cls: type) -> None:
    """Makes the constructor and the public methods of a class check their arguments."""
    if Protocol in cls.__bases__ or issubclass(cls, tuple):
        return
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == __name__.partition(".")[0]:
            _check_methods(base)


def _check_methods(cls: type) -> None:
    for name, value in list(vars(cls).items()):
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not inspect.isfunction(function) or "checks_arguments" in vars(function):
            continue
        if not name.startswith("_") or (name == "__init__" and not is_result(cls)):
            wrapped = checked(function, tensors=name not in _INNER)
            setattr(cls, name, wrapped if function is value else type(value)(wrapped))


def is_result(cls: type) -> bool:
    """Whether a class is a type of result; constructors of results are not checked.

    Results are made by the library, and may hold nan. A result inherits from `Result`, or is a
    dataclass in which no field has a default. In a class of options, some field has a default.
    """
    if any(base.__name__ == "Result" for base in cls.__mro__):
        return True
    missing = dataclasses.MISSING
    return dataclasses.is_dataclass(cls) and all(
        field.default is missing and field.default_factory is missing
        for field in dataclasses.fields(cls)
    )
