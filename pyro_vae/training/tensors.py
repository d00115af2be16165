"""Finds, names, freezes, checks and restores the tensors that training updates."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from .._types import Batch, ProgramLike
from ..guides.entry import given_globals, program_of
from ..programs import evaluating
from ..programs.modes import capturing, modules_of
from ..programs.pieces import take_rows
from ..programs.traces import leaves_of


class Parts(NamedTuple):
    """The leaf tensors that a model depends on, and the modules that it calls."""

    leaves: tuple[Tensor, ...] = ()
    modules: tuple[nn.Module, ...] = ()


@contextmanager
def frozen(parts: Parts) -> Iterator[None]:
    """Freezes a model's leaf tensors and puts its modules into evaluation mode, inside the block.

    A module that model and guide both call, such as one that contains both, counts as the model's.
    """
    frozen = [tensor for tensor in parts.leaves if tensor.requires_grad]
    try:
        for module in parts.modules:
            module.training = False
        for tensor in frozen:
            tensor.requires_grad = False
        with warnings.catch_warnings():  # pyro.module warns of frozen parameters at every step
            warnings.filterwarnings("ignore", ".*was not registered in the param store")
            yield
    finally:
        for tensor in frozen:
            tensor.requires_grad = True


@dataclass(frozen=True)
class State:
    """A copy of everything that training changes."""

    modules: list[tuple[nn.Module, dict[str, Tensor]]]
    loose: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        model: ProgramLike,
        guide: ProgramLike,
        tensors: Iterable[Tensor],
        *,
        still: Iterable[Tensor] = (),
    ) -> "State":
        """Copies the state of model and guide, and the values of further tensors.

        Tensors in `still`, such as a large table of rows, are referenced and not copied. They must
        not change until the state is restored.
        """
        places = {tensor.data_ptr() for tensor in still}
        modules = [*modules_of(model), *modules_of(guide)]
        states = [
            (
                module,
                {
                    name: value if value.data_ptr() in places else value.clone()
                    for name, value in module.state_dict().items()
                },
            )
            for module in modules
        ]
        return cls(states, [(tensor, tensor.detach().clone()) for tensor in tensors])

    def values(self) -> list[Any]:
        """Returns the tensors of the state; their order depends on the programs only."""
        return [[state for _, state in self.modules], [value for _, value in self.loose]]

    def with_values(self, values: list[Any]) -> "State":
        """Returns a state with the same structure and the given tensors."""
        states, loose = values
        modules = [(module, new) for (module, _), new in zip(self.modules, states, strict=True)]
        pairs = zip(self.loose, loose, strict=True)
        return State(modules, [(tensor, value.to(tensor.device)) for (tensor, _), value in pairs])

    @torch.no_grad()
    def restore(self) -> None:
        """Sets all tensors and buffers back to the values of this state."""
        for module, state in self.modules:
            module.load_state_dict(state)
        for tensor, value in self.loose:
            tensor.copy_(value)


def add_to_gradients(tensors: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    """Adds `gradients` to the gradients of the tensors, as `backward()` does."""
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient


def require_finite(name: str, tensor: Tensor, *, kind: str = "gradient") -> None:
    """Refuses a tensor with a nan or infinite entry; the error names the parameter (`name`)."""
    if capturing():  # captured steps are checked elsewhere
        return
    # The sum takes one pass; entries are checked only if it is not finite.
    if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
        raise FloatingPointError(f"the {kind} of parameter '{name}' is not finite")


def parts_of(model: ProgramLike, guide: ProgramLike, batch: Batch) -> Parts:
    """Finds the parameters of the model's density, and the modules that the model calls."""
    row, called = take_rows(batch, slice(1)), set()
    modules = [part for module in modules_of(model) for part in module.modules()]
    with (
        ExitStack() as stack,
        evaluating(model, guide),  # so that running averages do not change, and one row is enough
        pyro.validation_enabled(is_validate=False),  # the first step reports a nan
    ):
        program = program_of(model, guide, row)
        program = given_globals(program, guide, row, None)
        z = torch.zeros(1, 1, program.latent_dim, dtype=program.dtype, device=row[0].device)
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):  # cannot have a hook
                called.add(module)
                continue
            hook = module.register_forward_pre_hook(lambda module, _: called.add(module))
            stack.callback(hook.remove)
        leaves = leaves_of(program.log_joint(z, *row).sum())
    return Parts(tuple(leaves), tuple(called))


def named(leaves: list[Tensor], model: ProgramLike, guide: ProgramLike) -> dict[str, Tensor]:
    """Returns tensors by name: the name in Pyro's store or in a module, or else the shape."""
    stored = pyro.get_param_store().named_parameters()
    registered = {leaf: f"param '{name}'" for name, leaf in stored}
    for role, program in (("guide", guide), ("model", model)):
        modules = modules_of(program)
        for index, module in enumerate(modules):
            prefix = role if len(modules) == 1 else f"{role}[{index}]"
            registered |= {leaf: f"{prefix}.{name}" for name, leaf in module.named_parameters()}
    wanted = set(leaves)
    named = {name: leaf for leaf, name in registered.items() if leaf in wanted}
    loose = [leaf for leaf in leaves if leaf not in registered]
    for index, leaf in enumerate(sorted(loose, key=lambda leaf: tuple(leaf.shape))):
        named[f"unregistered tensor {index} of shape {tuple(leaf.shape)}"] = leaf
    return named
