"""Converts a model or guide to its tensors and a JSON record of how to build it, and back.

An object is recorded as `{"class": name, "arguments": {...}}`, and so are its arguments, down to
numbers and strings. To rebuild the object, the name is looked up among the registered classes, and
the arguments are checked against the annotations of the constructor. So a file can name only
registered classes, and no name in a file causes an import.
"""

import inspect
import math
import reprlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._arguments import check_arguments
from .._types import ProgramLike
from ..formatting import first_few
from ..guides import Family, Guide, InferenceMap, LocalParameters, TrainableFamily
from ..guides.guide import is_made_of_map
from ..models import Generative
from ..nets import activations
from ..nets.scaling import WithOptionalBuffers
from ..programs.modes import modules_of
from ..randomness import forked
from ..registry import ENTRIES, add, arguments_of, is_registered

Listed = TypeVar("Listed")
_CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    *("dilation", "groups", "bias", "padding_mode"),
)
LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Sequential: (),  # the arguments are the layers, by name
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
"""Torch's layers, and the names of their constructor arguments, which are also attributes."""

for _layer, _names in LAYERS.items():
    add(_layer, {name: name for name in _names})


def record(value: object, where: str) -> Any:
    """Returns a JSON record of how to build an object.

    Arguments:
        value: An object of a registered class, a number, a string, or a sequence of these.
        where: Place of the object for error messages, such as "decoder.activation".

    Raises:
        ValueError: If the object, or an object in it, is of a class that is not registered.

    Example:
        >>> from pyro_vae import LowRankNormal
        >>> record(LowRankNormal(3), "family")
        {'class': 'LowRankNormal', 'arguments': {'rank': 3}}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):  # JSON has no other numbers
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
    what = value if isinstance(value, Real) else described(value)
    raise ValueError(f"{where} is {what}")


def described(value: object) -> str:
    """Returns a description of an object for messages, such as "a `my_models.Decoder`"."""
    kind = "the class" if inspect.isclass(value) else "the function"
    article = kind if _is_named(value) else "a"
    return f"{article} `{full_name(value)}`"


def full_name(value: Any) -> str:
    """Returns the full name, such as "models.VAE", of a class, a function or an object's class."""
    named = value if _is_named(value) else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _is_named(value: object) -> bool:
    """Whether an object is a class or function, which has a name of its own."""
    return inspect.isclass(value) or inspect.isroutine(value)


def _arguments(value: object) -> dict[str, Any]:
    """Returns the constructor arguments, by name, of a layer or of an object of this library."""
    if isinstance(value, nn.Sequential):
        return dict(value._modules)  # named_children would list a repeated layer only once
    arguments = arguments_of(value)
    if type(value) in LAYERS and "bias" in arguments:  # the attribute is a parameter or None
        arguments["bias"] = arguments["bias"] is not None
    return arguments


def build(recorded: object, where: str) -> Any:
    """Builds the object that a record describes, with new parameters.

    Arguments:
        recorded: A record, as read from JSON.
        where: Place of the record, for error messages.

    Raises:
        ValueError: If `recorded` is not a record, names a class that is not registered, or has
            arguments that do not fit the class.

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
    """Returns the class name and the arguments in the record of an object.

    Raises:
        ValueError: If the class name or the arguments are missing.
    """
    is_record = isinstance(recorded, dict) and set(recorded) == {"class", "arguments"}
    if not is_record or not isinstance(recorded["arguments"], dict):
        raise ValueError(
            f'{where} must be {{"class": ..., "arguments": {{...}}}}; got {reprlib.repr(recorded)}'
        )
    return recorded["class"], recorded["arguments"]


def _listed(name: object, table: Mapping[str, Listed], where: str) -> Listed:
    """Returns the table's entry for a name that was read from a file; refuses an unknown name."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(
            f"{where} must be of a class that a file may name; got {reprlib.repr(name)}: upgrade "
            "pyro_vae, if a newer version wrote the file, or import your module that registers the "
            "class. The known classes are "
            f"{', '.join(table)}"
        )
    return table[name]


def _make(cls: type, arguments: dict[str, Any], where: str) -> Any:
    """Checks the arguments of a registered class, and builds the object."""
    try:
        if cls is nn.Sequential:
            return nn.Sequential(OrderedDict(arguments))
        check_types(cls, arguments)
        return cls(**arguments)
    except RecursionError:
        raise
    except Exception as error:  # arbitrary arguments can cause any error
        raise ValueError(f"{where} cannot be built as a {cls.__name__}: {error}") from error


def check_types(cls: type, arguments: dict[str, Any]) -> None:
    """Checks arguments against the annotations of a constructor.

    Raises:
        ValueError: If an argument is unknown, or its type or range does not match the annotation.
    """
    entry = ENTRIES.get(cls.__name__)
    known = tuple(entry.attributes if entry else inspect.signature(cls).parameters)
    for name in arguments:
        if name not in known:
            raise ValueError(f"the constructor takes no argument {name!r}, only {list(known)}")
    try:
        check_arguments(cls.__init__, arguments)  # type: ignore[misc]
    except TypeError as error:  # the arguments come from a file, not from a call
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Part:
    """The description of a model or guide, without its tensors.

    Arguments:
        role: "model" or "guide".
        made_by: Name of the class or function of the model or guide.
        architecture: The record from which the model or guide can be rebuilt, or `None`.
        reason: Why there is no record; empty if there is a record.
        frozen: Names of the parameters that do not require a gradient.
        evaluating: Names of the modules that are in evaluation mode.
    """

    role: str
    made_by: str
    architecture: dict[str, Any] | None
    reason: str
    frozen: list[str]
    evaluating: list[str]


def module_of(program: ProgramLike) -> nn.Module:
    """Returns the program if it is a module, otherwise a `ModuleList` of the modules it uses."""
    return program if isinstance(program, nn.Module) else nn.ModuleList(modules_of(program))


def tensors_of(role: str, program: ProgramLike) -> dict[str, Tensor]:
    """Returns all tensors of a program by name, as separate copies on the CPU.

    Raises:
        ValueError: If a trained tensor is in no module, or a stored value is not a tensor.
    """
    _check_loose(role, program)
    state = module_of(program).state_dict()
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"the state_dict of the {role} must hold only tensors; got other values under "
            f"{others}: store these values in buffers"
        )
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}


def _check_loose(role: str, program: ProgramLike) -> None:
    """Refuses a function with trainable tensors outside of modules, which would not be saved."""
    if not inspect.isfunction(program):
        return
    names = inspect.getclosurevars(program)
    found = {**names.globals, **names.nonlocals}
    loose = [
        name for name, value in found.items() if isinstance(value, Tensor) and value.requires_grad
    ]
    if loose:
        raise ValueError(
            f"the {role} uses trainable tensors outside of modules, {loose}, which would not be "
            f"saved: make them nn.Parameter attributes of an nn.Module that the {role} uses"
        )


def describe(programs: Mapping[str, ProgramLike]) -> list[Part]:
    """Describes how to rebuild each program, or why the program cannot be rebuilt."""
    names: dict[int, str] = {}
    return [_part(role, program, names) for role, program in programs.items()]


def _part(role: str, program: ProgramLike, names: dict[int, str]) -> Part:
    """Describes a program; adds its parameters' names to `names`, keyed by the parameters' `id`."""
    module, architecture, reason = module_of(program), None, ""
    try:
        _check_unshared(role, module, names)
        with forked(0, "unused"):  # a copy is built for comparison, which draws initial values
            architecture = _record(program)
    except ValueError as error:
        reason = str(error)
    return Part(
        role,
        full_name(program),
        architecture,
        reason,
        frozen=[name for name, value in module.named_parameters() if not value.requires_grad],
        evaluating=[name for name, part in module.named_modules() if not part.training],
    )


def _check_unshared(role: str, module: nn.Module, names: dict[int, str]) -> None:
    """Refuses a parameter that has two names: a rebuilt program would have a parameter for each."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = names.setdefault(id(parameter), f"{role}.{name}")
        if other != f"{role}.{name}":
            raise ValueError(f"the parameter '{role}.{name}' is shared with '{other}'")


def _record(program: ProgramLike) -> dict[str, Any]:
    """Returns a record of how to build a program, after building it once as a test.

    A network may have been changed after it was built, for example by replacing a layer. Then the
    record would build a different network.

    Raises:
        ValueError: If no record can be made, or if the program built in the test differs.
    """
    if isinstance(program, Generative):
        recorded: dict[str, Any] = record(program, "model")
        _check_same(program, build(recorded, "model"), "model")
        return recorded
    if not is_made_of_map(program):
        raise ValueError(f"the program is {described(program)}")
    recorded, family = record(program.map, "map"), record(program.family, "family")
    if isinstance(program.family, TrainableFamily):
        fresh = build(family, "family")
        fresh.setup(program.latent_dim)
        _check_same(program.family, fresh, "family")
    again = build(recorded, "map")
    again.attach(program.program, program.family)
    again.setup(program.family.num_parameters(program.latent_dim), program.prior_parameters())
    _check_same(program.map, again, "map")
    shared = None if program.shared is None else record(program.shared.family, "global_family")
    return {
        "map": recorded,
        "family": family,
        "global_family": shared,
        "plate": program.program.plate,
    }


def _check_same(module: nn.Module, again: nn.Module, where: str) -> None:
    """Refuses a module that was changed after it was built: a rebuilt copy would differ."""
    found = differences(again, module.state_dict(), with_dtypes=False)
    if found or repr(again) != repr(module):
        raise ValueError(
            f"{where} was built as {described(module)}, but its layers or tensors were changed "
            "later"
        )


def rebuild(
    part: Part, state: dict[str, Tensor], model: Any, device: torch.device | str | None
) -> Any:
    """Rebuilds a model or guide with its tensors, dtypes, and training or evaluation modes.

    Arguments:
        part: Description of the model or guide.
        state: Saved tensors of the model or guide.
        model: The guide's model, if a guide is rebuilt.
        device: Where to put the model or guide; by default the CPU.

    Raises:
        ValueError: If nothing can be built from the record, or the tensors do not fit the result.
    """
    assert part.architecture is not None, "the caller refuses a part without a record"
    if part.role == "model":
        module = build(part.architecture, "model")
        if not isinstance(module, Generative):
            raise ValueError(f"the model must be one of pv.models; got {described(module)}")
    else:
        module = _guide(part.architecture, model)
    found = differences(module, state, with_dtypes=False)
    if found:
        raise ValueError(f"the saved tensors do not fit the architecture ({found})")
    try:
        module.load_state_dict(state, assign=True)  # assigned, not copied, to keep the dtypes
    except RuntimeError as error:
        raise ValueError(
            f"the saved tensors could not be loaded as parameters ({error})"
        ) from error
    frozen, evaluating = set(part.frozen), set(part.evaluating)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, child in module.named_modules():
        child.training = name not in evaluating
    return module.to(torch.device("cpu") if device is None else device)


@dataclass(frozen=True)
class _GuideArguments:
    """The arguments of a guide, except its model."""

    map: InferenceMap
    family: Family
    plate: str
    global_family: Family | None = None


def _guide(recorded: dict[str, Any], model: Any) -> Guide:
    """Builds a guide for a model from the guide's record."""
    values = {name: build(value, name) for name, value in recorded.items()}
    check_types(_GuideArguments, values)
    try:
        return Guide(model, **vars(_GuideArguments(**values)))
    except Exception as error:
        raise ValueError(
            f"{error}; or build the guide yourself for this model and pass it, as in load(folder, "
            "model=model, guide=guide)"
        ) from error


def differences(module: nn.Module, state: dict[str, Tensor], *, with_dtypes: bool) -> str:
    """Lists missing, unexpected and mismatched tensors in words; the text is "" if all fit."""
    own = module.state_dict()
    parts = [(f"{name}." if name else "", part) for name, part in module.named_modules()]
    # Row digests are buffers whose shape depends on the data; a file may lack optional buffers.
    resizable = {f"{path}digests" for path, part in parts if isinstance(part, LocalParameters)}
    optional = {
        f"{path}{name}"
        for path, part in parts
        if isinstance(part, WithOptionalBuffers)
        for name in part.optional
    }
    both = [name for name in own if name in state and name not in resizable]
    mismatched = [
        f"{name} ({_form(state[name])} in the file, {_form(own[name])} here)"
        for name in both
        if state[name].shape != own[name].shape
        or (with_dtypes and state[name].dtype != own[name].dtype)
    ]
    lists = {
        "missing from the file": [
            name for name in own if name not in state and name not in optional
        ],
        "unexpected in the file": sorted(state.keys() - own.keys() - optional),
        "of another shape or dtype": mismatched,
    }
    return "; ".join(f"{what}: {first_few(names)}" for what, names in lists.items() if names)


def _form(tensor: Tensor) -> str:
    """Returns the shape and the dtype of a tensor, such as "(2, 3) float32"."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
