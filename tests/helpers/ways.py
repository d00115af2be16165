"""One model and one guide, written in every way that Pyro's users write them.

y_n ~ N(decoder(z_n), scale), z_n ~ N(0, 1), and q(z_n) = N(loc, exp(log_scale)) by an encoder. All
of them start from the same weights, so that training and evaluation give the same numbers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

FEATURES = 3
SCALE = 1.5


class Pair(NamedTuple):
    """A model and its guide."""

    model: Any
    guide: Any


def decoder() -> nn.Linear:
    """Weights that are always the same."""
    return _filled(nn.Linear(1, FEATURES))


def encoder() -> nn.Linear:
    """Weights that are always the same."""
    return _filled(nn.Linear(FEATURES, 2))


def _filled(layer: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(-0.5, 0.7, parameter.numel()).view_as(parameter))
    return layer


def generate(y: Tensor, decode: Callable[[Tensor], Tensor], scale: Any) -> None:
    """The model's sites."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(decode(z), scale).to_event(1), obs=y)


def infer(y: Tensor, encode: Callable[[Tensor], Tensor]) -> None:
    """The guide's site."""
    with pyro.plate("data", len(y)):
        loc, log_scale = encode(y).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def positive() -> Tensor:
    """The scale as a parameter of Pyro's store."""
    return pyro.param("scale", torch.tensor(SCALE), constraint=constraints.positive)


def params() -> Pair:
    """Functions whose weights are all `pyro.param`."""
    layers = {"decoder": decoder(), "encoder": encoder()}
    starts = {name: [part.detach() for part in net.parameters()] for name, net in layers.items()}

    def linear(name: str) -> Callable[[Tensor], Tensor]:
        first, second = starts[name]
        weight = pyro.param(f"{name}.weight", lambda: first.clone())
        bias = pyro.param(f"{name}.bias", second.clone())
        return lambda value: nn.functional.linear(value, weight, bias)

    def model(y: Tensor) -> None:
        generate(y, linear("decoder"), positive())

    def guide(y: Tensor) -> None:
        infer(y, linear("encoder"))

    return Pair(model, guide)


def closures() -> Pair:
    """Functions that close over networks and register them by `pyro.module`."""
    decode, encode = decoder(), encoder()

    def model(y: Tensor) -> None:
        pyro.module("decoder", decode)
        generate(y, decode, positive())

    def guide(y: Tensor) -> None:
        pyro.module("encoder", encode)
        infer(y, encode)

    return Pair(model, guide)


class Owner(nn.Module):
    """Pyro's own example: a module with a model and a guide as methods."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = decoder(), encoder()
        self.log_scale = nn.Parameter(torch.tensor(SCALE).log())

    def model(self, y: Tensor) -> None:
        pyro.module("vae", self)
        generate(y, self.decoder, self.log_scale.exp())

    def guide(self, y: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        infer(y, self.encoder)


def methods() -> Pair:
    """Bound methods of one module."""
    owner = Owner()
    return Pair(owner.model, owner.guide)


class Plain:
    """An owner that is no module."""

    def __init__(self) -> None:
        self.decoder, self.encoder = decoder(), encoder()
        self.log_scale = torch.tensor(SCALE).log().requires_grad_()

    def model(self, y: Tensor) -> None:
        generate(y, self.decoder, self.log_scale.exp())

    def guide(self, y: Tensor) -> None:
        infer(y, self.encoder)


def plain_methods() -> Pair:
    """Bound methods of a plain object, which holds a network and a loose tensor."""
    owner = Plain()
    return Pair(owner.model, owner.guide)


class Model(nn.Module):
    """A model as a module of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = decoder()
        self.log_scale = nn.Parameter(torch.tensor(SCALE).log())

    def forward(self, y: Tensor) -> None:
        generate(y, self.decoder, self.log_scale.exp())


class ByEncoder(nn.Module):
    """A guide as a module of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()

    def forward(self, y: Tensor) -> None:
        infer(y, self.encoder)


def modules() -> Pair:
    """Modules of torch's."""
    return Pair(Model(), ByEncoder())


class PyroModel(PyroModule):
    """A model as a PyroModule."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = decoder()
        self.scale = PyroParam(torch.tensor(SCALE), constraint=constraints.positive)

    def forward(self, y: Tensor) -> None:
        generate(y, self.decoder, self.scale)


def pyro_modules() -> Pair:
    """PyroModules with a `PyroParam`."""
    guide = PyroModule[ByEncoder]()
    return Pair(PyroModel(), guide)


class ParamInForward(PyroModule):
    """A model as a PyroModule that names a parameter in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = decoder()

    def forward(self, y: Tensor) -> None:
        generate(y, self.decoder, positive())


def params_in_forward() -> Pair:
    """A PyroModule with `pyro.param` in `forward`."""
    return Pair(ParamInForward(), ByEncoder())


def partials() -> Pair:
    """`functools.partial` of functions that take the networks as arguments."""
    scale = nn.ParameterList([nn.Parameter(torch.tensor(SCALE).log())])

    def model(decode: nn.Module, scale: nn.ParameterList, y: Tensor) -> None:
        generate(y, decode, scale[0].exp())

    def guide(y: Tensor, encode: nn.Module) -> None:
        infer(y, encode)

    return Pair(
        functools.partial(model, decoder(), scale), functools.partial(guide, encode=encoder())
    )


def lambdas() -> Pair:
    """Lambdas, with networks in closures, lists and defaults, within handlers of Pyro's."""
    nets: list[Any] = [decoder(), nn.Parameter(torch.tensor(SCALE).log())]
    encode = encoder()
    model = lambda y: generate(y, nets[0], nets[1].exp())  # noqa: E731
    guide = lambda y, encode=encode: infer(y, encode)  # noqa: E731
    return Pair(poutine.scale(model, scale=1.0), guide)


WAYS: dict[str, Callable[[], Pair]] = {
    make.__name__: make
    for make in (
        params, closures, methods, plain_methods, modules, pyro_modules, params_in_forward,
        partials, lambdas,
    )
}  # fmt: skip
