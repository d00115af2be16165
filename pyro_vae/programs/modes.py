"""How a program is run: with which parameters, in which mode, from which random stream.

The changes that a `with` block makes are undone when it ends. So the caller finds modes, weights,
random streams and settings as they were before.
"""

import copy
import functools
import inspect
import itertools
import keyword
import os
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.nn.module import _Context
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .._arguments import naming
from .._types import Batch, Data, ProgramLike
from ..randomness import ALONE, check_rows
from .hooks import owner_of

_COUNTER = itertools.count(1)
# Whether no module gets a parameter store of its own.
_ONE_STORE: ContextVar[bool] = ContextVar("pyro_vae_one_store", default=False)
_scope = ParamStoreDict.scope
_CACHE = "TORCHINDUCTOR_CACHE_DIR"
# Importing these creates the cache folder.
_IMPORTED = ("torch._dynamo", "torch._inductor.compiler_bisector")
# Whether the data of a program that is being captured have missing entries; None without a capture.
_CAPTURED_DATA_MISS: ContextVar[bool | None] = ContextVar("pyro_vae_capturing", default=None)


_Value = TypeVar("_Value")


@contextmanager
def setting(variable: ContextVar[_Value], value: _Value) -> Iterator[_Value]:
    """Gives a context variable another value inside the block."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


class Replaced:
    """Replaces a method of one of Pyro's classes inside a block.

    While blocks are open in several threads, the method is replaced in all threads. The last block
    to end restores Pyro's own method.

    Arguments:
        owner: The class.
        name: Name of the method.
        method: The method that takes its place.
    """

    def __init__(self, owner: type, name: str, method: object) -> None:
        self._owner, self._name, self._method = owner, name, method
        self._original = vars(owner)[name]
        self._lock, self._blocks = threading.Lock(), 0

    def __enter__(self) -> None:
        self._count(+1)

    def __exit__(self, *error: object) -> None:
        self._count(-1)

    def _count(self, change: int) -> None:
        """Counts the open blocks, and replaces or restores the method."""
        with self._lock:
            self._blocks += change
            setattr(self._owner, self._name, self._method if self._blocks else self._original)


class NamedModule(PyroModule):
    """A PyroModule with a unique name in Pyro's parameter store.

    Pyro's store is keyed by name, so of two modules with the same names only the first one would be
    trained, without a warning. Every instance, and every deep copy, takes a unique name.
    """

    def __init__(self) -> None:
        super().__init__(self._fresh_name())
        _give_local_state(self)  # so that Pyro's local mode, too, can run it

    @classmethod
    def _fresh_name(cls) -> str:
        return f"{cls.__name__.lower()}_{next(_COUNTER)}"

    def __deepcopy__(self, memo: dict[Any, Any]) -> "NamedModule":
        """Copies the module, and gives the copy a unique name."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        nn.Module.__init__(made)
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        for module in made.modules():
            if isinstance(module, PyroModule):
                module._pyro_context.used = False  # else Pyro refuses to rename submodules
        made._pyro_set_supermodule(self._fresh_name(), _Context())
        return made


def modules_of(program: ProgramLike) -> list[nn.Module]:
    """Finds all modules that a program uses, directly or through objects that it refers to.

    The program itself may be a module, or a method of a module. A function may refer to modules
    through its closure, its defaults or its globals, directly or through functions that it calls.
    Lists, tuples, dictionaries and `functools.partial` are searched, too.
    """
    return [part for part in reached_by(program) if isinstance(part, nn.Module)]


def reached_by(program: Any) -> list[Any]:
    """Lists a program and all objects that it refers to, directly or indirectly.

    The list contains modules, leaf tensors that require a gradient, and the objects that lead to
    these modules and tensors. What a module itself refers to is not listed.
    """
    seen: dict[int, Any] = {}
    waiting: list[Any] = [program]
    while waiting:
        value = waiting.pop(0)
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if not isinstance(value, nn.Module | Tensor):
            waiting += [part for part in _named_by(value) if _may_hold_modules(part)]
    return list(seen.values())


def _named_by(program: Any) -> list[Any]:
    """Lists the objects to which a program refers directly; the program must not be a module."""
    if isinstance(program, list | tuple):
        return list(program)
    if isinstance(program, dict):
        return list(program.values())
    if isinstance(program, functools.partial):
        return [program.func, *program.args, *program.keywords.values()]
    owner = owner_of(program)
    if owner is not program:
        held = [owner] if isinstance(owner, nn.Module) else _attributes(owner)
        return [*held, getattr(program, "__func__", None)]
    if not inspect.isfunction(program):
        return _attributes(program)
    cells = [cell for cell in program.__closure__ or () if _is_set(cell)]
    defaults = [*(program.__defaults__ or ()), *(program.__kwdefaults__ or {}).values()]
    return [*globals_of(program).values(), *(cell.cell_contents for cell in cells), *defaults]


def _attributes(owner: Any) -> list[Any]:
    """Lists an object's attributes, from its dictionary and slots; for a tuple, also its items."""
    slots = [name for kind in type(owner).__mro__ for name in vars(kind).get("__slots__", ())]
    names = [*getattr(owner, "__dict__", ()), *slots]
    items = owner if isinstance(owner, tuple) else ()
    return [*(getattr(owner, name) for name in names if hasattr(owner, name)), *items]


def globals_of(function: types.FunctionType) -> dict[str, Any]:
    """Finds, by name, the globals to which a function, or a function inside it, refers."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return {name: value for name, value in function.__globals__.items() if name in names}


def _is_set(cell: types.CellType) -> bool:
    """Whether a variable that a function closes over has been assigned a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _may_hold_modules(value: Any) -> bool:
    """Whether a value is, or may refer to, a module or a trainable tensor.

    This is so for modules, trainable tensors, collections, and callables that a user defined.
    """
    if isinstance(value, Tensor):
        return value.requires_grad and value.is_leaf
    if isinstance(value, nn.Module | functools.partial | list | tuple | dict):
        return True
    package = str(getattr(value, "__module__", None)).partition(".")[0]
    return (
        callable(value)
        and not isinstance(value, type)
        and not inspect.isbuiltin(value)
        and package not in ("numpy", "pyro", "torch")
    )


def device_of(*programs: ProgramLike) -> torch.device:
    """Device of the programs' first parameter or buffer; torch's default if they have none."""
    for program in programs:
        for module in modules_of(program):
            for tensor in itertools.chain(module.parameters(), module.buffers()):
                return tensor.device
    return torch.get_default_device()


@contextmanager
def evaluating(*programs: ProgramLike) -> Iterator[None]:
    """Puts programs into evaluation mode inside the block, and hides them from outer handlers.

    Inside the block the programs do not change Pyro's parameter store, and autocast and torch's
    inference mode are off.
    """
    modules = [module for program in programs for module in modules_of(program)]
    require_values(modules)
    with ALONE:
        import_compiler()  # otherwise counting operations would import it
        modes = {part: part.training for module in modules for part in module.modules()}
        try:
            for module in modes:
                module.training = False
            with local_parameters(*programs), poutine.block(), _without_autocast(), recording():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def require_values(modules: Iterable[nn.Module]) -> None:
    """Refuses parameters without values, and parameters that can take no part in a gradient.

    Parameters of lazy modules have no values before the module's first call.

    Raises:
        ValueError: If there is such a parameter; the message names it.
    """
    for module in modules:
        for name, parameter in module.named_parameters():
            if is_lazy(parameter):
                raise ValueError(
                    f"parameter '{name}' of a lazy module has no values before the first call of "
                    "this module: call the network once, as in net(torch.zeros(2, num_inputs)), "
                    "before you pass it"
                )
            if parameter.is_inference():
                raise ValueError(
                    f"parameter '{name}' was created in torch.inference_mode, so no gradient with "
                    "respect to it can be computed: create the model and the guide outside the "
                    "block of torch.inference_mode"
                )


def require_cache() -> None:
    """Creates the folder of torch's compile cache; raises an error if that is impossible.

    Raises:
        ValueError: If the folder, named by `TORCHINDUCTOR_CACHE_DIR`, cannot be created.
    """
    folder = os.environ.get(_CACHE)
    try:
        Path(folder or tempfile.gettempdir()).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the environment variable {_CACHE} must name a folder that torch can create for "
            f"compiled code; got {folder!r} ({error}): set the variable to a folder that you can "
            "write to, or unset the variable"
        ) from error


def import_compiler() -> None:
    """Imports torch's compiler in advance, if the folder of the compiler's cache cannot be created.

    Torch imports the compiler when the first optimizer is made, for example, and this import fails
    if the folder cannot be created. Here the import uses an existing folder instead. Nothing is
    written to that folder, since nothing is compiled.
    """
    if all(module in sys.modules for module in _IMPORTED):
        return
    try:
        require_cache()
    except ValueError:
        before = os.environ.get(_CACHE)
        os.environ[_CACHE] = str(Path(__file__).parent)
        try:
            for module in _IMPORTED:
                with suppress(ModuleNotFoundError):  # older versions of torch lack one
                    import_module(module)
        finally:
            os.environ.pop(_CACHE)
            os.environ.update({} if before is None else {_CACHE: before})


@contextmanager
def recording() -> Iterator[None]:
    """Turns off the caller's inference mode, in which no tensor could take part in a gradient."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(mode=False), torch.no_grad():  # the first alone enables gradients
        yield


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Turns off the caller's autocast, which rounds matrix products to about three digits."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _give_local_state(module: nn.Module) -> None:
    """Gives a PyroModule the empty state that Pyro's local mode needs, unless it has this state."""
    if isinstance(module, PyroModule) and not hasattr(module._pyro_context, "param_state"):
        module._pyro_context.param_state = {"params": {}, "constraints": {}}


@contextmanager
def local_parameters(*programs: ProgramLike) -> Iterator[None]:
    """Keeps parameters in modules while the programs run, so that Pyro's store is not changed.

    This is Pyro's local mode with two changes. A PyroModule that was made under Pyro's default
    setting lacks the state that this mode needs; here it gets an empty state. Pyro's local mode
    gives each module its own store, and refuses `pyro.param` and `pyro.module` inside `forward`.
    Here both are allowed, and refer to parameters of the global store.
    """
    for program in programs:
        for module in modules_of(program):
            for part in module.modules():
                _give_local_state(part)
    with (
        ALONE,
        pyro.settings.context(module_local_params=True),
        setting(_ONE_STORE, value=True),
        _REPLACED_SCOPE,
    ):
        yield


@contextmanager
def _scope_of_modules(store: Any, state: Any = None) -> Iterator[Any]:
    """Pyro's `ParamStoreDict.scope`, except that no module gets a parameter store of its own."""
    if _ONE_STORE.get() and state is not None:
        yield state
        return
    with _scope(store, state) as scoped:
        yield scoped


_REPLACED_SCOPE = Replaced(ParamStoreDict, "scope", _scope_of_modules)


def capturing_data(*, missing: bool) -> AbstractContextManager[bool | None]:
    """Marks the block as one in which torch's compiler records the operations of a program.

    During this capture no number can be read out of a tensor. So `missing` tells the program
    whether the data have missing entries.
    """
    return setting(_CAPTURED_DATA_MISS, missing)


def capturing() -> bool:
    """Whether torch's compiler is recording a program; if so, no tensor's numbers can be read."""
    return _CAPTURED_DATA_MISS.get() is not None


def known_missing() -> bool | None:
    """Whether data have missing entries, for a program that torch's compiler is recording.

    `None` if no program is being recorded.
    """
    return _CAPTURED_DATA_MISS.get()


def as_batch(data: Data, device: torch.device | None = None, argument: str = "data") -> Batch:
    """Makes a tuple of tensors from an array, a tensor, or a tuple of arrays and tensors.

    Arguments:
        data: An array, a tensor, or a tuple of these. NumPy's float64 is cast to torch's default
            dtype, since float64 is NumPy's default; tensors keep their dtype.
        device: Where to put the tensors; `None` leaves them where they are.
        argument: Name of the user's argument that holds the data, for error messages.

    Raises:
        TypeError: If `data` or an element of the tuple is neither a tensor nor an array.
        ValueError: If a tensor has no rows or no values, or the numbers of rows differ.
    """
    parts = data if isinstance(data, tuple) else (data,)
    with naming(argument), recording():
        require_arrays(parts)
        batch = tuple(_as_tensor(part, index).to(device=device) for index, part in enumerate(parts))
        check_rows(batch)
    return batch


def require_arrays(parts: tuple[Any, ...]) -> None:
    """Refuses a batch unless each of its elements is an array; the error shows what to pass.

    Raises:
        TypeError: If an element is neither a tensor nor an array.
    """
    for index, part in enumerate(parts):
        if not isinstance(part, np.ndarray | Tensor):
            kind = type(part).__name__
            raise TypeError(
                f"the data must be a tensor, a NumPy array or a tuple of these; got {kind} at "
                f"position {index}: {_instead(part, parts)}"
            )


def _as_tensor(part: Any, index: int) -> Tensor:
    """Makes a tensor from an array or a tensor; `index` is its position in the tuple of data.

    An array with a byte order that torch lacks is copied.
    """
    if isinstance(part, np.ndarray):
        _check_array(part, index)
        native = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("="))
        with warnings.catch_warnings():  # a read-only memory map is only read
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            tensor = torch.as_tensor(native)
        return tensor.to(torch.get_default_dtype()) if part.dtype == np.float64 else tensor
    if part.is_meta or part.is_quantized or part.is_nested or part.layout is not torch.strided:
        raise TypeError(
            f"the data must be dense tensors of numbers; got a tensor of layout {part.layout} and "
            f"dtype {part.dtype} on {part.device} at position {index}: convert a sparse tensor "
            "with y.to_dense(), a nested tensor with y.to_padded_tensor(float('nan')), or a "
            "quantized tensor with y.dequantize()"
        )
    if part.is_inference():
        return part.clone()  # a tensor of inference mode can take no part in a gradient
    return part.detach()  # otherwise training would change the data too


def _instead(part: Any, parts: tuple[Any, ...]) -> str:
    """Text for an error message: what to pass if the `part` of a batch is not an array."""
    if not _is_constant(part) and not isinstance(part, Mapping):
        return f"pass {_conversion(part)}"
    names: list[str] = []
    call = ", ".join(_argument(one, names) for one in parts)
    if not names:
        return "pass rows of data, with one row per datum in each tensor, as in y[:100]"
    rows = f"({', '.join(names)})" if len(names) > 1 else names[0]
    return (
        f"pass only {rows}, with one row per datum in each tensor, and bind the other arguments "
        f"of model and guide, as in lambda {', '.join(names)}: model({call})"
    )


def _argument(part: Any, names: list[str], key: object = "y") -> str:
    """Python expression, for an error message, that stands for one element of a batch.

    Every array in the element gets a new variable name, which is added to `names`.
    """
    if isinstance(part, Mapping):
        entries = (f"{key!r}: {_argument(value, names, key)}" for key, value in part.items())
        return f"{{{', '.join(entries)}}}"
    if _is_constant(part):
        return repr(part)
    free = str(key).isidentifier() and not keyword.iskeyword(str(key)) and key not in names
    names.append(str(key) if free else f"x{len(names)}")
    return names[-1]


def _is_constant(part: Any) -> bool:
    """Whether an element of a batch is a constant, the same for all data."""
    return part is None or isinstance(part, bool | int | float | str)


_CONVERSIONS = {
    "to_df": "torch.tensor(y.to_df().to_numpy(), dtype=torch.float32)",  # AnnData
    "toarray": "torch.tensor(y.toarray(), dtype=torch.float32)",  # sparse matrices
    "to_numpy": (  # data frames
        "torch.tensor(y.to_numpy(), dtype=torch.float32), or take columns of several kinds with "
        "pv.data.Columns.of(y)"
    ),
    "tensors": "y.tensors",  # a TensorDataset
    "train": "y.train and y.test",  # a pyro_vae.data.Dataset
    "batch_size": "the loader's data set, y.dataset, as a tensor",  # a DataLoader
    "read": "the rows as a tensor, as in y.read(torch.arange(len(y)))[0]",  # OnDisk
    "__getitem__": "torch.stack([torch.as_tensor(y[row]) for row in range(len(y))])",
}
"""Text that says what to pass instead of an object `y`.

Each key is an attribute that marks a type of object; the first key that `y` has as an attribute
decides.
"""


def _conversion(part: Any) -> str:
    """Text for an error message: how to convert one element of a batch to a tensor."""
    if isinstance(part, list) and part and not isinstance(part[0], Tensor):
        return "torch.tensor(y)"
    if isinstance(part, list) and len({one.shape for one in part if isinstance(one, Tensor)}) > 1:
        return (
            "torch.nn.utils.rnn.pad_sequence(y, batch_first=True) and the lengths as two tensors, "
            "or tuple(y) if its entries are the parts of one batch"
        )
    if isinstance(part, list) and part:
        return "torch.stack(y), or tuple(y) if its entries are the parts of one batch"
    lines = (line for name, line in _CONVERSIONS.items() if hasattr(part, name))
    made = "a tensor with one row per datum, as in torch.tensor(...)"
    bound = "bind an argument that is the same for all data, as in lambda y: model(y, args)"
    return next(lines, f"{made}; {bound}")


def _check_array(part: Any, index: int) -> None:
    """Refuses arrays of a dtype that torch lacks, and masked arrays, whose mask would be lost."""
    if isinstance(part, np.ma.MaskedArray):
        raise TypeError(
            f"the array at position {index} is masked, but tensors have no mask: pass "
            "y.filled(np.nan), so that nan marks missing entries"
        )
    if part.dtype.kind not in "biufc" or part.dtype in (np.longdouble, np.clongdouble):
        raise TypeError(
            f"the data must be numbers; got an array of dtype {part.dtype} at position {index}: "
            "convert the array with y.astype(float), or encode a table with "
            "pv.data.Columns.of(table)"
        )
