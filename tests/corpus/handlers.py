"""Handlers and distributions that are used less: lifting, relaxed draws, hidden chains."""

# Programs as their authors write them, of which Pyro declares no types.
# mypy: disable-error-code="call-overload,arg-type,untyped-decorator"

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from tests.corpus.case import Case, integral, line, normal, program

DATA = torch.tensor([0.3, -1.2, 2.0, 0.9])


@program
def lifted() -> Case:
    """A pyro.param of the model that poutine.lift turns into a global latent site."""

    def fixed(y: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        pyro.sample("loc", dist.Normal(0.3, 0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * y, 0.8))

    model = poutine.lift(fixed, prior={"loc": dist.Normal(0.0, 1.0)})
    log_prob = normal(DATA.double(), 0.3, 2**0.5)
    return Case(model, guide, (DATA,), log_prob, given={"loc": torch.tensor(0.3)})


@program
def relaxed() -> Case:
    """A relaxed Bernoulli latent in model and guide."""

    def coin(probs: Tensor) -> Any:
        return dist.RelaxedBernoulli(torch.tensor(0.6), probs=probs)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            share = pyro.sample("share", coin(torch.full((len(y),), 0.4)))
            pyro.sample("y", dist.Normal(2 * share, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.7))
        with pyro.plate("data", len(y)):
            pyro.sample("share", coin((slope * y).sigmoid()))

    points = 200_001  # quantiles of the logistic noise that the coin is made from
    uniform = ((torch.arange(points).double() + 0.5) / points).unsqueeze(-1)
    share = ((math.log(0.4 / 0.6) + uniform.logit()) / 0.6).sigmoid()
    log_prob = normal(DATA.double(), 2 * share).logsumexp(0) - math.log(points)
    return Case(model, guide, (DATA,), log_prob)


@program
def planar_guide() -> Case:
    """A guide with a planar flow, whose density is known only at the guide's own draws."""
    flow = dist.transforms.planar(2)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(y)):
            base = dist.Normal(y / 2, 0.8).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    y = torch.stack([DATA, DATA.flip(0)], -1)
    return Case(model, guide, (y,), normal(y.double(), 0.0, 2**0.5).sum(-1))


@program
def hidden_chain_likelihood() -> Case:
    """A DiscreteHMM as the likelihood; a latent shifts its emission means."""
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            levels = dist.Normal(torch.stack([z, z + 2], -1).unsqueeze(-2), 1.0)
            start = torch.tensor([0.5, 0.5]).log()
            chain = dist.DiscreteHMM(start, transition.log(), levels, duration=3)
            pyro.sample("y", chain, obs=y)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.6))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * y.mean(-1) - 0.5, 0.8))

    y = torch.randn(4, 3)

    def path_given(z: Tensor, path: tuple[int, ...]) -> Tensor:
        # Pyro's chain moves once before the first observation.
        steps = [float(transition[a, b]) for a, b in itertools.pairwise(path)]
        seen = [normal(y.double()[:, t], z + 2 * state) for t, state in enumerate(path[1:])]
        return torch.stack(seen).sum(0) + math.log(0.5) + sum(map(math.log, steps))

    grid = line()
    paths = [path_given(grid, path) for path in itertools.product(range(2), repeat=4)]
    log_prob = integral(normal(grid) + torch.stack(paths).logsumexp(0), grid)
    return Case(model, guide, (y,), log_prob)


class Location(dist.TorchDistribution):
    """A normal of somebody's own."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as their authors write them)
    support = dist.constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, scale: float) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Location":
        """Copies."""
        return Location(self.loc.expand(batch_shape), self.scale)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """A draw."""
        return self.loc + self.scale * torch.randn(sample_shape + self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density."""
        noise = (value - self.loc) / self.scale
        return -0.5 * noise**2 - math.log(self.scale) - 0.5 * math.log(2 * math.pi)


@program
def own_distribution() -> Case:
    """A user's own distribution class as prior, likelihood and guide."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", Location(torch.zeros(len(y)), 1.0))
            pyro.sample("y", Location(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(y)):
            pyro.sample("z", Location(slope * y, 0.8))

    return Case(model, guide, (DATA,), normal(DATA.double(), 0.0, 2**0.5))


@program
def determined() -> Case:
    """A Delta site whose value follows from a latent, in model and guide."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            double = pyro.sample("double", dist.Delta(2 * z))
            pyro.sample("y", dist.Normal(double, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(slope * y, 0.5))
            pyro.sample("double", dist.Delta(2 * z))

    return Case(model, guide, (DATA,), normal(DATA.double(), 0.0, 5**0.5))


@program
def stacked_plates() -> Case:
    """Plates over data and features, made by pyro.plate_stack."""

    def model(y: Tensor) -> None:
        with pyro.plate_stack("plates", [len(y), 2]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate_stack("plates", [len(y), 2]):
            pyro.sample("z", dist.Normal(slope * y, 0.8))

    y = torch.stack([DATA, DATA.flip(0)], -1)
    return Case(model, guide, (y,), normal(y.double(), 0.0, 2**0.5).sum(-1))
