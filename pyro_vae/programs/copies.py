"""Copies of programs that share no parameter with the originals.

`copy.deepcopy` copies modules and the owners of methods. It does not copy functions, nor the
networks that they close over, use as globals, or have as defaults. Parameters made by `pyro.param`
are in Pyro's store, which all programs share. Here functions are copied together with the networks
and tensors that they refer to. A program with `pyro.param` or `pyro.module` statements is put into
a module that holds the parameters of these statements.
"""

import copy
import functools
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from .._types import Batch, ProgramLike
from ..formatting import count_of
from ..randomness import forked
from .hooks import name_of, owner_of
from .modes import evaluating, globals_of, modules_of, reached_by
from .plates import outside_minibatch
from .traces import leaves_of, run

_Value = TypeVar("_Value")
_OF_A_MODULE = "$$$"  # in the names that pyro.module gives the parameters of a module
_Memo = dict[Any, Any]  # copies made so far, by the id of the original, as in copy.deepcopy
_PROGRAMS, _ALIVE = "programs and their copies", "what was copied"  # two further keys of a memo


class SelfContained(nn.Module):
    """A Pyro program that owns the parameters of its `pyro.param` and `pyro.module` statements.

    Normally such parameters are in Pyro's store, where two programs with the same names share a
    parameter. Here the parameters are in this module. If the store has a value under a parameter's
    name, the parameter starts from that value; otherwise it starts from the initial value in the
    statement. Attributes that the module lacks are looked up in the program.

    Arguments:
        program: The program.
        others: Other programs. If one of them has a parameter of the same name, this program uses
            that parameter.

    Example:
        >>> def model(y):
        ...     scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
        ...         pyro.sample("y", pyro.distributions.Normal(z, scale), obs=y)
        >>> alone = SelfContained(model)
        >>> alone(torch.zeros(3))
        >>> [round(parameter.item(), 2) for parameter in alone.parameters()]
        [0.69]
    """

    def __init__(self, program: ProgramLike, *others: "SelfContained") -> None:
        super().__init__()
        self._program, self._others = (program,), others  # in tuples: no submodules
        self._constraints: dict[str, constraints.Constraint] = {}
        self.has_statements = False  # whether a run had pyro.param or pyro.module statements
        for index, module in enumerate(modules_of(program)):
            self.add_module(str(index), module)

    @property
    def inside(self) -> ProgramLike:
        """The program whose parameters this module holds."""
        return self._program[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program with the parameters that this module holds."""
        with _Own(self):
            return self.inside(*args, **kwargs)

    def parameter_of(
        self, name: str, initial: Tensor | Callable[[], Tensor], constraint: Any
    ) -> Tensor | None:
        """Value of the parameter called `name`; a missing parameter is created."""
        known = (other.value_of(name) for other in (*self._others, self))
        value = next((value for value in known if value is not None), None)
        if value is not None:
            return value
        self._constraints[name] = constraint
        with torch.no_grad():
            value = initial() if callable(initial) else initial
            start = transform_to(constraint).inv(value.detach()).clone().contiguous()
        self.register_parameter(_key(name), nn.Parameter(start))
        return self.value_of(name)

    def value_of(self, name: str) -> Tensor | None:
        """Value of the parameter called `name`; `None` if there is no such parameter."""
        if name not in self._constraints:
            return None
        unconstrained = self._parameters[_key(name)]
        value: Tensor = transform_to(self._constraints[name])(unconstrained)
        return _with_unconstrained(value, unconstrained)

    def __getattr__(self, name: str) -> Any:
        """Looks an attribute up in the module, then in the program."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_program" not in self.__dict__ or (name.startswith("__") and name != "__self__"):
                raise
            return getattr(self.inside, name)

    def __deepcopy__(self, memo: _Memo) -> "SelfContained":
        """Copies the module, its parameters, the program, and all that the program refers to."""
        made = SelfContained(copied(self.inside, memo), *copy.deepcopy(self._others, memo))
        memo[id(self)] = made
        made._constraints = dict(self._constraints)
        made.has_statements = self.has_statements
        for name in self._constraints:
            made.register_parameter(_key(name), copy.deepcopy(self._parameters[_key(name)], memo))
        made.training = self.training
        return made


def _key(name: str) -> str:
    """Name of the attribute that holds a parameter; dots are encoded, as torch forbids them."""
    return "param_" + name.replace("%", "%25").replace(".", "%2E")


def _with_unconstrained(value: Tensor, unconstrained: Any) -> Tensor:
    """Gives a parameter's value a reference to the unconstrained parameter; returns the value."""
    value.unconstrained = weakref.ref(unconstrained)  # type: ignore[attr-defined]  # as Pyro's have
    return value


class _Own(Messenger):
    """Handler that takes the values of `pyro.param` statements from a :class:`SelfContained`.

    A statement that belongs to a PyroModule gets the module's own parameter instead.
    """

    def __init__(self, holder: SelfContained) -> None:
        super().__init__()
        self.holder = holder

    def _pyro_param(self, msg: Any) -> None:
        store = pyro.get_param_store()
        if owner_of(msg["fn"]) is not store or msg["value"] is not None:
            return
        self.holder.has_statements = True
        name, *initial = msg["args"]
        if _OF_A_MODULE in name and initial:
            msg["value"] = _with_unconstrained(initial[0], initial[0])
            return
        constraint = msg["kwargs"].get("constraint", constraints.real)
        if name in store:
            constraint = store._constraints[name]  # noqa: SLF001 (Pyro has no other way to it)
            initial = [store[name]]
        if initial:
            msg["value"] = self.holder.parameter_of(name, initial[0], constraint)


@contextmanager
def no_new_parameters() -> Iterator[None]:
    """On exit, removes the parameters that were added to Pyro's store inside the block."""
    store = pyro.get_param_store()
    known = set(store.keys())
    try:
        yield
    finally:
        for name in set(store.keys()) - known:
            with suppress(KeyError):  # the store knows a tensor with two names by only one of them
                del store[name]
            store._constraints.pop(name, None)  # noqa: SLF001 (left behind after a KeyError)


class Copies:
    """Copies several programs together, so that the copies share what the originals share.

    Networks, tensors that require a gradient, and parameters of Pyro's store are copied, wherever
    the programs refer to them.

    Arguments:
        batch: A few rows of data; programs are run on them to see whether they use Pyro's store.
        seed: Seed of the random initial values of parameters.
    """

    def __init__(self, batch: Batch, seed: int = 0) -> None:
        self._batch, self._seed = batch, seed
        self._programs: list[tuple[ProgramLike, ProgramLike]] = []
        self._memo: _Memo = {_PROGRAMS: self._programs}

    def of(self, value: _Value) -> _Value:
        """Returns a copy of an object that programs may refer to, such as an inference map."""
        return copied(value, self._memo)

    def of_program(self, program: ProgramLike, *, trained: bool = True) -> ProgramLike:
        """Returns a copy of a program, as a :class:`SelfContained` if it uses Pyro's store.

        Arguments:
            program: The program.
            trained: Whether the copy will be trained, and so must not share tensors with `program`.

        Raises:
            TypeError: If the copy will be trained but shares a trainable tensor with `program`.
        """
        made = self.of(program)
        holders = [other for _, other in self._programs if isinstance(other, SelfContained)]
        alone = SelfContained(made, *holders)
        leaves = self._leaves(alone)
        original = self._leaves(program) if leaves and trained else None
        shared = [leaf for leaf in leaves or () if leaf in (original or ())]
        if shared:
            name = name_of(program)
            raise TypeError(
                f"a trainable copy of '{name}' must not share trainable tensors with '{name}'; got "
                f"{count_of(len(shared), 'shared tensor')}, the first of shape "
                f"{tuple(shared[0].shape)}: register these tensors with pyro.param, or make them "
                f"parameters of an nn.Module that '{name}' uses"
            )
        made = alone if alone.has_statements or leaves is None else made
        self._programs.append((program, made))
        return made

    def _leaves(self, program: ProgramLike) -> dict[Tensor, None] | None:
        """Trainable tensors that a run of a program uses; `None` if the run raises an error."""
        with (
            forked(self._seed, f"weights.parameters.{len(self._programs)}"),
            evaluating(program),
            outside_minibatch(),
            no_new_parameters(),
            torch.enable_grad(),
            pyro.validation_enabled(is_validate=False),
        ):
            try:
                sites = run(program, self._batch).sites.values()
                parts = [part for site in sites for part in (site.log_prob, site.value)]
                sums = [part.sum() for part in parts if part.requires_grad]
                return leaves_of(torch.stack(sums).sum()) if sums else {}
            except Exception:  # of any kind: the next call of the program will raise it again
                return None


def copied(value: _Value, memo: _Memo) -> _Value:
    """Copies a value deeply, functions included.

    A value that refers to no module and no trainable tensor is returned uncopied.

    Arguments:
        value: A program, or an object that a program refers to.
        memo: Copies made so far, as in `copy.deepcopy`.
    """
    for original, made in memo.get(_PROGRAMS, ()):
        if original is value or (isinstance(value, types.MethodType) and original == value):
            return made
    if id(value) in memo:
        return memo[id(value)]
    parts = reached_by(value)
    if not any(isinstance(part, nn.Module | Tensor) for part in parts):
        return value
    for part in parts:
        if isinstance(part, nn.Module):
            _without_history(part, memo)
            memo |= {id(script): _script(script) for script in _scripts(part, memo)}
    make = next((make for kind, make in _KINDS.items() if isinstance(value, kind)), _object)
    made = make(value, memo)
    memo[id(value)] = made
    memo[_ALIVE] = [*memo.get(_ALIVE, ()), value]  # so that the id of `value` is not reused
    return made


def _without_history(module: nn.Module, memo: _Memo) -> None:
    """Puts into `memo` a detached copy of every tensor that a layer keeps from its last call.

    Without these copies, `copy.deepcopy` would refuse the tensors. For example, Pyro's
    transforms keep their last arguments and log Jacobian.
    """
    attributes = (value for layer in module.modules() for value in vars(layer).values())
    for kept in attributes:
        for value in kept if isinstance(kept, list | tuple) else (kept,):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()


def _scripts(module: nn.Module, memo: _Memo) -> Iterator[torch.jit.ScriptModule]:
    """Yields the outermost `torch.jit` modules inside a module, if they are not copied yet."""
    if not isinstance(module, torch.jit.ScriptModule):
        for child in module.children():
            yield from _scripts(child, memo)
    elif id(module) not in memo:
        yield module


def _script(script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Copies a `torch.jit` module with its parameters.

    Without `no_grad`, the parameters of the copy would be results of operations on the parameters
    of the original, and not leaves that can be trained.
    """
    with torch.no_grad():
        made = copy.deepcopy(script)
    for old, new in zip(script.parameters(), made.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return made


def _object(value: Any, memo: _Memo) -> Any:
    """Copies an object deeply; the copy shares locks, open files and the like with the original.

    Raises:
        TypeError: If an attribute that leads to a network or a trainable tensor cannot be copied.
    """
    trial = dict(memo)  # a copy that fails leaves unfinished parts in its memo
    try:
        made = copy.deepcopy(value, trial)
    except TypeError:
        trial = memo | {id(kept): kept for kept in _shared(value)}
        try:
            made = copy.deepcopy(value, trial)
        except TypeError as error:
            raise TypeError(
                f"{name_of(value)} cannot be copied ({error}): remove from this object the "
                "part that cannot be copied, or define a method __deepcopy__ in the class of that "
                "part"
            ) from error
    memo[_ALIVE] = [*memo.get(_ALIVE, ()), *trial.pop(id(trial), ())]
    memo |= {key: part for key, part in trial.items() if key != _ALIVE}
    return made


def _shared(value: Any) -> Iterator[Any]:
    """Yields those attributes of an object, or of a module's layers, that a copy has to share.

    They cannot be copied, and lead to no network and no trainable tensor.
    """
    for holder in value.modules() if isinstance(value, nn.Module) else [value]:
        for kept in getattr(holder, "__dict__", {}).values():
            try:
                copy.deepcopy(kept)
            except TypeError:
                if not any(isinstance(part, nn.Module | Tensor) for part in reached_by(kept)):
                    yield kept


def _function(function: types.FunctionType, memo: _Memo) -> types.FunctionType:
    """Copies a function.

    Where the function refers to a network or a trainable tensor, its copy refers to a copy of
    that network or tensor.
    """
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    scope = dict(function.__globals__)
    made = types.FunctionType(function.__code__, scope, function.__name__, None, cells or None)
    memo[id(function)] = made  # a function may refer to itself
    for name in functools.WRAPPER_ASSIGNMENTS:
        setattr(made, name, getattr(function, name))
    vars(made).update({name: copied(part, memo) for name, part in vars(function).items()})
    made.__defaults__ = copied(function.__defaults__, memo)
    made.__kwdefaults__ = copied(function.__kwdefaults__, memo)
    scope.update({name: copied(part, memo) for name, part in globals_of(function).items()})
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        try:
            cell.cell_contents = copied(old.cell_contents, memo)
        except ValueError:  # a variable that is not set yet
            continue
    return made


def _method(method: types.MethodType, memo: _Memo) -> types.MethodType:
    return types.MethodType(copied(method.__func__, memo), copied(method.__self__, memo))


def _partial(part: functools.partial[Any], memo: _Memo) -> functools.partial[Any]:
    """Copies a partial function, or a handler of Pyro, which is a partial function too."""
    kind, func = type(part), copied(part.func, memo)
    if kind is not functools.partial and isinstance(func, functools.partial):
        return kind(func)  # a handler of Pyro: the inner partial has all the arguments
    args = (copied(value, memo) for value in part.args)
    keywords = {name: copied(value, memo) for name, value in part.keywords.items()}
    return kind(func, *args, **keywords)


def _sequence(values: Any, memo: _Memo) -> Any:
    parts = [copied(value, memo) for value in values]
    return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)


def _mapping(values: dict[Any, Any], memo: _Memo) -> Any:
    """Copies a dictionary with its values; the copy has the same type and attributes."""
    made = copy.copy(values)
    made.update({name: copied(value, memo) for name, value in values.items()})
    return made


_KINDS: dict[type, Callable[[Any, _Memo], Any]] = {
    types.FunctionType: _function,
    types.MethodType: _method,
    functools.partial: _partial,
    list: _sequence,
    tuple: _sequence,
    dict: _mapping,
}
