"""Layers that a program uses: they are found wherever it keeps them, and left in their mode."""

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.programs import evaluating
from pyro_vae.programs.modes import modules_of
from tests.helpers.cases import NUM_DATA

NUM_PARTICLES = 3


class Normalized(pyro.nn.PyroModule):
    """A model whose network has BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(self.net(z), 1.0).to_event(1), obs=y)


def test_evaluation_changes_nothing() -> None:
    """Evaluation mode inside; afterwards every weight, buffer, mode and stream is as it was."""
    model = Normalized()
    model.net[2].eval()  # a mixture of modes
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    stream = torch.get_rng_state()
    z, y = torch.randn(NUM_PARTICLES, NUM_DATA, 2), torch.randn(NUM_DATA, 4)
    torch.set_rng_state(stream)
    first, second = (pv.log_joint(model, z, y) for _ in range(2))
    assert torch.equal(first, second)  # neither dropout nor running statistics
    assert torch.equal(torch.get_rng_state(), stream)
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_modes_are_restored_after_an_error() -> None:
    """So that a failed evaluation does not end training."""
    model = Normalized()
    with pytest.raises(ValueError, match="rows"):
        pv.log_joint(model, torch.zeros(1, 2, 2), torch.zeros(3, 4))
    assert all(module.training for module in model.modules())


NET = nn.Linear(1, 1)


def names_a_net(y: Tensor) -> Tensor:
    """Refers to a module by its global name."""
    return NET(y)


def names_a_function(y: Tensor) -> Tensor:
    """Refers to a function that refers to a module."""
    return names_a_net(y)


def closes_over(net: Any) -> Callable[[Tensor], Tensor]:
    """A function that refers to a module of its maker."""
    return lambda y: net(y)


class Owner:
    """A plain object with a network and a program."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def __call__(self, y: Tensor) -> Tensor:
        return self.net(y)

    def model(self, y: Tensor) -> Tensor:
        return self.net(y)


class Tutorial(nn.Module):
    """A module with `model` and `guide` methods, as Pyro's own tutorial writes a VAE."""

    def model(self, y: Tensor) -> None:
        return None


TUTORIAL = Tutorial()

MODULES: dict[str, tuple[ProgramLike, nn.Module]] = {
    "module": (NET, NET),
    "method of a module": (TUTORIAL.model, TUTORIAL),
    "method of an object": (Owner(NET).model, NET),
    "object": (Owner(NET), NET),
    "global": (names_a_net, NET),
    "function that it calls": (names_a_function, NET),
    "closure": (closes_over(NET), NET),
    "partial": (functools.partial(names_a_function), NET),
    "list that it closes over": (closes_over([NET]), NET),
    "dictionary of an object": (Owner({"net": NET}), NET),
    "argument of a partial": (functools.partial(Owner.model, Owner(NET)), NET),
    "handler around it": (poutine.condition(names_a_function, data={}), NET),
    "handlers around a module": (poutine.scale(poutine.condition(NET, data={}), 0.5), NET),
}


@pytest.mark.parametrize("program", MODULES)
def test_modules_are_found(program: str) -> None:
    """Each once, wherever a program keeps them: what is not found would not go into eval mode."""
    function, module = MODULES[program]
    assert modules_of(function) == [module]
    with evaluating(function):
        assert not module.training
    assert module.training


class Named(NamedTuple):
    """A program of a named tuple, with a layer."""

    layer: nn.Module

    def model(self, y: Tensor) -> None:
        """A method."""


class Slotted:
    """A program without a dictionary."""

    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, y: Tensor) -> None:
        """The program."""


def test_layers_of_objects_without_a_dictionary() -> None:
    """They are found in the fields of named tuples and in slots."""
    layer = nn.Linear(1, 1)
    for held in (Named(layer).model, Slotted(layer), Slotted(layer).__call__):
        assert layer in modules_of(held), held
