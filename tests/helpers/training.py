"""What tests of training share: small models, and optimizers that do as they are told."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.training import Fit
from pyro_vae.training.sharding import Shard, Shards, Stream


def fit(
    model: Any,
    guide: Any,
    y: Any,
    *,
    augment: Callable[[Tensor], Tensor] | None = None,
    shards: int = 1,
    **options: Any,
) -> Fit:
    """`pv.fit` without a bar; on batches that are changed, and as if in so many processes."""
    y = y if augment is None else pv.data.Augmented(y, augment)
    with in_shards(shards):
        return pv.fit(model, guide, y, progress=False, **options)


def shards_of(num_rows: int, seed: int, *, count: int) -> Shards:
    """The shards that so many processes would have, all of them in this process."""
    cuts = enumerate(itertools.pairwise(pv.distributed.cuts(num_rows, count)))
    own = tuple(Shard(a, b - a, Stream(seed, index)) for index, (a, b) in cuts)
    return Shards(own, count, num_rows)


@contextlib.contextmanager
def in_shards(count: int) -> Iterator[None]:
    """One process takes in turn what so many would have."""
    cut = functools.partial(shards_of, count=count)
    with mock.patch.object(Shards, "of", cut) if count > 1 else contextlib.nullcontext():
        yield


adam = functools.partial(functools.partial, torch.optim.Adam)  # adam(lr=0.1) is a factory
sgd = functools.partial(functools.partial, torch.optim.SGD)


def small(likelihood: Any = None, map: pv.InferenceMap | None = None) -> tuple[Any, pv.Guide]:
    """A model of three features and two latents, and a guide."""
    likelihood = pv.likelihoods.Gaussian() if likelihood is None else likelihood
    model = pv.models.VAE(nn.Linear(2, 3), likelihood, latent_dim=2)
    return model, pv.Guide(model, pv.Encoder(nn.Linear(3, 4)) if map is None else map)


MAPS: dict[str, Callable[[], pv.InferenceMap]] = {
    "encoder": lambda: pv.Encoder(nn.Linear(3, 4)),
    "rows": lambda: pv.LocalParameters(10),
    "global": pv.GlobalParameters,
}


def data(rows: int = 10) -> Tensor:
    """Binary, so that they fit every likelihood; no column is constant."""
    return torch.cat([torch.eye(3), torch.rand(rows - 3, 3).round()])


def state(*modules: nn.Module) -> dict[str, Tensor]:
    """A copy of all that modules hold."""
    return {
        f"{index}.{name}": value.clone()
        for index, module in enumerate(modules)
        for name, value in module.state_dict().items()
    }


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to the last bit, but for the note of which data a table belongs to."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        if not name.endswith("digests"):
            assert torch.equal(value, expected[name]), f"{name} differs"


ZERO = torch.zeros(2, dtype=torch.float64)


class OneParameter(nn.Module):
    """y ~ N(theta, 1) with an idle z: with the prior as the guide the loss has no noise."""

    def __init__(self, *, subsamples: bool = False) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.subsamples = subsamples

    def forward(self, y: Tensor) -> None:
        """The program; in the idiom of Pyro's subsampling if asked to."""
        with self.plate(y):
            pyro.sample("z", dist.Normal(ZERO, ZERO + 1).to_event(1))
            pyro.sample("y", dist.Normal(self.theta, 1.0), obs=y)

    def plate(self, y: Tensor) -> Any:
        """Over ten data of which these are some, or over these."""
        size = 10 if self.subsamples else len(y)
        return pyro.plate("data", size, subsample_size=len(y))


class Prior(nn.Module):
    """The prior as a guide, in the idiom of the model."""

    def __init__(self, model: OneParameter) -> None:
        super().__init__()
        self.model = [model]  # in a list, so as not to be a submodule

    def forward(self, y: Tensor) -> None:
        """The program."""
        with self.model[0].plate(y):
            pyro.sample("z", dist.Normal(ZERO, ZERO + 1).to_event(1))


class Walk(torch.optim.SGD):
    """An optimizer that puts every parameter where it is told, step by step."""

    def __init__(self, parameters: list[Tensor], path: list[float]) -> None:
        super().__init__(parameters, lr=0.0)
        self.path = iter(path)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step."""
        value = next(self.path)
        for parameter in self.param_groups[0]["params"]:
            parameter.fill_(value)


def walk(*path: float) -> Callable[[list[Tensor]], Walk]:
    """Makes one."""
    return functools.partial(Walk, path=list(path))


def stop_after(calls: int) -> Callable[[Tensor], Tensor]:
    """Leaves batches as they are, and interrupts training after so many."""
    count = iter(range(calls))

    def augment(y: Tensor) -> Tensor:
        if next(count, None) is None:
            raise KeyboardInterrupt
        return y

    return augment


def layered_vae(likelihood: Any, features: int = 3) -> tuple[pv.models.VAE, pv.Guide]:
    """A model and an encoder with layers that behave differently in training."""
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, features))
    encoder = nn.Sequential(nn.Linear(features, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    model = pv.models.VAE(decoder, likelihood, latent_dim=2)
    return model, pv.Guide(model, pv.Encoder(encoder))


class OverTheBatch(nn.Module):
    """A decoder, in which a row's output may depend on the other rows."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(2, 3), change

    def forward(self, z: Tensor) -> Tensor:
        return self.change(self.linear(z))
