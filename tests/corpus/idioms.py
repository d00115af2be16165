"""Ways of writing the same small program: arguments, parameters, plates, guides."""

# Programs as their authors write them, of which Pyro declares no types.
# mypy: disable-error-code="index,arg-type"

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyro_vae as pv
from tests.corpus.case import Case, double, integral, line, normal, program

ROWS = 4
POSITIVE = dist.constraints.positive


def data() -> Tensor:
    """Numbers."""
    return 2 * torch.randn(ROWS)


def truth(y: Tensor, noise: float = 1.0, loc: float = 0.0) -> Tensor:
    """Log p(y) of z ~ N(loc, 1), y ~ N(z, noise)."""
    return normal(y.double(), loc, (1 + noise**2) ** 0.5)


def location(y: Tensor) -> None:
    """A latent place and one measurement of it."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def linear(y: Tensor) -> None:
    """A guide with two parameters, in the form of the posterior."""
    slope = pyro.param("slope", torch.tensor(0.4))
    scale = pyro.param("q_scale", torch.tensor(0.8), constraint=POSITIVE)
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(slope * y, scale))


@program
def subsample_positions() -> Case:
    """A plate that subsamples the data; the indices that it yields select the rows."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(y), subsample_size=2) as rows:
            pyro.sample("z", dist.Normal(slope * y[rows], 0.8))

    y = data()
    return Case(model, guide, (y,), truth(y))


@program
def subsample_handler() -> Case:
    """A plate that subsamples the data; pyro.subsample selects the rows."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", ROWS, subsample_size=2):
            batch = pyro.subsample(y, event_dim=0)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=batch)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", ROWS, subsample_size=2):
            batch = pyro.subsample(y, event_dim=0)
            pyro.sample("z", dist.Normal(slope * batch, 0.8))

    y = data()
    return Case(model, guide, (y,), truth(y))


@program
def parameters_per_datum() -> Case:
    """A pyro.param with one entry per datum, indexed by the rows of a subsampling plate."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", ROWS, subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    y = data()

    def guide(y: Tensor) -> None:
        loc = pyro.param("loc", lambda: posterior.clone())
        with pyro.plate("data", ROWS, subsample_size=2) as rows:
            pyro.sample("z", dist.Normal(loc[rows], 0.5**0.5))

    posterior = y / 2
    return Case(model, guide, (y,), truth(y), batch_size=ROWS)


@program
def parameters_of_all() -> Case:
    """A pyro.param with one entry per datum, used for all rows at once."""
    y = data()

    def guide(y: Tensor) -> None:
        loc = pyro.param("loc", lambda: posterior.clone())
        scale = pyro.param("scale", 0.7 * torch.ones(ROWS), constraint=POSITIVE)
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.Normal(loc, scale))

    posterior = y / 2
    return Case(location, guide, (y,), truth(y), batch_size=ROWS)


class Forward(PyroModule):
    """A module that makes its parameters in forward."""

    def forward(self, y: Tensor) -> None:
        """The place's mean and the noise are parameters."""
        loc = pyro.param("loc", torch.tensor(0.5))
        noise = pyro.param("noise", torch.tensor(0.7), constraint=POSITIVE)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("y", dist.Normal(z, noise), obs=y)


class ForwardGuide(PyroModule):
    """A guide that makes its parameters in forward."""

    def forward(self, y: Tensor) -> None:
        """A slope."""
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * y, 0.8))


@program
def param_in_forward() -> Case:
    """PyroModules that call pyro.param in their forward method."""
    y = data()
    return Case(Forward(), ForwardGuide(), (y,), truth(y, 0.7, 0.5))


class Easy(EasyGuide):
    """An EasyGuide with an amortized site."""

    def guide(self, y: Tensor) -> None:
        """A slope."""
        slope = pyro.param("slope", torch.tensor(0.4))
        with self.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * y, 0.8))


@program
def easy_guide() -> Case:
    """An EasyGuide that calls pyro.param."""
    y = data()
    return Case(location, Easy(location), (y,), truth(y))


@program
def keyword_arguments() -> Case:
    """Keyword arguments beside the data: a number, and an optional tensor that is None."""

    def model(y: Tensor, x: Tensor | None = None, *, noise: float = 0.8) -> None:
        shift = 0.0 if x is None else x
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + shift, noise), obs=y)

    def guide(y: Tensor, x: Tensor | None = None, *, noise: float = 0.8) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * y, noise))

    y = data()
    return Case(model, guide, (y,), truth(y, 0.8))


@program
def covariate() -> Case:
    """A covariate as a second tensor."""

    def model(y: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + x, 1.0), obs=y)

    def guide(y: Tensor, x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * (y - x), 0.8))

    y, x = data(), data()
    return Case(model, guide, (y, x), truth(y - x))


@program
def auxiliary() -> Case:
    """A guide whose latent site depends on an auxiliary site."""

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(y)):
            noise = dist.Normal(0.0, 0.5)
            a = pyro.sample("a", noise, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(slope * y + a, 0.6))

    y = data()

    def plain() -> Case:
        return Case(location, linear, (y,), truth(y))

    return Case(location, guide, (y,), truth(y), remedies={"a": plain})


@program
def masked_data() -> Case:
    """Missing data, masked by .mask() on the distribution of the data."""

    def model(y: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0).mask(mask.bool()), obs=y)

    def guide(y: Tensor, mask: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * y * mask, 0.8))

    y, mask = data(), torch.tensor([1.0, 0.0, 1.0, 1.0])
    return Case(model, guide, (y, mask), truth(y) * mask)


@program
def plate_without_size() -> Case:
    """A plate without a size, around sites that hold the whole batch."""

    def model(y: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(y)), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = data()

    def sized() -> Case:
        return Case(location, linear, (y,), truth(y))

    return Case(model, linear, (y,), truth(y), remedies={"len(y)": sized})


@program
def sequential_plate() -> Case:
    """A sequential plate: a Python loop over pyro.plate."""

    def model(y: Tensor) -> None:
        for i in pyro.plate("data", len(y)):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"y_{i}", dist.Normal(z, 1.0), obs=y[i])

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        for i in pyro.plate("data", len(y)):
            pyro.sample(f"z_{i}", dist.Normal(slope * y[i], 0.8))

    y = data()

    def vectorized() -> Case:
        return Case(location, linear, (y,), truth(y))

    return Case(model, guide, (y,), truth(y), remedies={"plate": vectorized})


class Buffers(nn.Module):
    """Standardizes with buffers, drops out in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(0.5))
        self.dropout = nn.Dropout(0.3)

    def model(self, y: Tensor) -> None:
        """The mean is a buffer."""
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(self.shift, 1.0))
            pyro.sample("y", dist.Normal(self.dropout(z), 1.0), obs=y)


@program
def dropout() -> Case:
    """A plain nn.Module with a buffer and dropout; one of its methods is the model."""
    y = data()
    return Case(Buffers().eval().model, linear, (y,), truth(y, 1.0, 0.5))


@program
def learned_prior() -> Case:
    """A learned prior: a spline flow of a normal, registered by pyro.module."""
    y = data()
    net = nn.ModuleDict({"decoder": nn.Linear(1, 1), "encoder": nn.Linear(1, 2)})
    flow = dist.transforms.spline(1, count_bins=4)

    def model(y: Tensor) -> None:
        pyro.module("net", net)
        pyro.module("flow", flow)
        with pyro.plate("data", len(y)):
            base = dist.Normal(torch.zeros(len(y), 1), 1.0).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
            pyro.sample("y", dist.Normal(net["decoder"](z)[:, 0], 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            loc, scale = net["encoder"](y.unsqueeze(-1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    base = line(points=4001)
    with torch.no_grad():
        mean = double(net["decoder"])(double(flow)(base))
        log_prob = integral(normal(base) + normal(y.double(), mean), base)
    # A spike of the prior between the draws of q is seen by draws of the prior alone.
    return Case(model, guide, (y,), log_prob, estimator=pv.Tightest())
