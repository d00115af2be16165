"""Programs in which several features of Pyro meet: handlers, plates, shared draws, flows."""

# Programs as their authors write them, of which Pyro declares no types.
# mypy: disable-error-code="arg-type,untyped-decorator"

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from tests.corpus.case import Case, integral, line, normal, program

DATA = torch.tensor([0.3, -1.2, 2.0, 0.9])
ROWS = torch.tensor([[0.3, -1.2, 0.4], [0.9, 2.0, -0.5], [-1.0, -0.3, 0.2], [1.5, 1.1, 0.7]])


@program
def tied_groups() -> Case:
    """Group effects, selected by a column of group numbers; the guide of z uses drawn effects."""

    def model(y: Tensor, group: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3):
            effect = pyro.sample("effect", dist.Normal(mean, 0.5))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(effect[group] + z, 0.7), obs=y)

    def guide(y: Tensor, group: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("mean", dist.Normal(loc.mean(), 0.3))
        with pyro.plate("groups", 3):
            effect = pyro.sample("effect", dist.Normal(loc, 0.2))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(0.6 * (y - effect[group]), 0.7))

    group = torch.tensor([0, 2, 1, 2])
    given = {"mean": torch.tensor(0.2), "effect": torch.tensor([0.1, -0.3, 0.5])}
    log_prob = normal(DATA.double(), given["effect"][group].double(), (1 + 0.7**2) ** 0.5)
    return Case(model, guide, (DATA, group), log_prob, given=given)


@program
def crossed_factor() -> Case:
    """A factor model: plates over data (dim -2) and features (dim -1) are nested in both orders."""

    def model(y: Tensor) -> None:
        features = pyro.plate("features", 3, dim=-1)
        data = pyro.plate("data", len(y), dim=-2)
        with features:
            weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with data:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with features, data:
            pyro.sample("y", dist.Normal(z * weight, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        loc = pyro.param("loc", torch.ones(3))
        with pyro.plate("features", 3, dim=-1):
            weight = pyro.sample("weight", dist.Normal(loc, 0.3))
        with pyro.plate("data", len(y), dim=-2):
            pyro.sample("z", dist.Normal((y * weight).sum(-1, keepdim=True) / 3, 0.7))

    weight = torch.tensor([1.0, -0.5, 0.3])
    covariance = weight.outer(weight).double() + torch.eye(3)
    log_prob = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(ROWS.double())
    return Case(model, guide, (ROWS,), log_prob, given={"weight": weight})


@program
def intervened() -> Case:
    """poutine.do sets the treatment to its value in the data; its site stays a discrete latent."""

    def observed(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            treated = pyro.sample("treated", dist.Bernoulli(logits=z))
            pyro.sample("y", dist.Normal(z + 2 * treated, 1.0), obs=y)

    def model(y: Tensor, treated: Tensor) -> None:
        poutine.do(observed, data={"treated": treated})(y)

    def guide(y: Tensor, treated: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * (y - 2 * treated), 0.8))

    treated = torch.tensor([0.0, 1.0, 1.0, 0.0])
    log_prob = normal(DATA.double(), 2 * treated.double(), 2**0.5)
    return Case(model, guide, (DATA, treated), log_prob, discrete=True)


@program
def normalized_flow_prior() -> Case:
    """A flow with batch norm as the prior; its running statistics are those of training."""
    flow = dist.transforms.BatchNorm(1)
    flow.get_buffer("moving_mean").fill_(0.5)
    flow.get_buffer("moving_variance").fill_(2.0)

    def model(y: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(y)):
            base = dist.Normal(torch.zeros(1), 1.0).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * y, 0.8).to_event(1))

    y = DATA[:, None].clone()
    scale = ((2.0 + flow.epsilon) ** 0.5) / (1 + 1e-6)  # as Pyro keeps gamma positive
    log_prob = normal(y[:, 0].double(), 0.5, (1 + scale**2) ** 0.5)
    return Case(model, guide, (y,), log_prob)


@program
def automatic_globals() -> Case:
    """AutoNormal as the guide of the global sites, within a guide written by hand."""

    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(loc, scale))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    automatic = AutoNormal(poutine.block(model, hide=["z"]))

    def guide(y: Tensor) -> None:
        loc = automatic(y)["loc"]
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc + slope * (y - loc), 0.8))

    given = {"loc": torch.tensor(0.2), "scale": torch.tensor(0.9)}
    log_prob = normal(DATA.double(), 0.2, (1 + 0.9**2) ** 0.5)
    return Case(model, guide, (DATA,), log_prob, given=given)


@program
def masked_mixture() -> Case:
    """A MaskedMixture: a flag in the data says whether a measurement has heavy tails."""

    def model(y: Tensor, clean: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            parts = dist.Laplace(z, 0.5), dist.Normal(z, 1.0)  # the second one where clean
            pyro.sample("y", dist.MaskedMixture(clean.bool(), *parts), obs=y)

    def guide(y: Tensor, clean: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(slope * y, 0.8))

    clean, z = torch.tensor([1, 0, 0, 1]), line(points=20_001)
    laplace = -(DATA.double() - z).abs() / 0.5
    likelihood = torch.where(clean.bool(), normal(DATA.double(), z), laplace)
    return Case(model, guide, (DATA, clean), integral(normal(z) + likelihood, z))


@program
def counted_animals() -> Case:
    """N-mixture model: the number of animals is enumerated; each of three visits counts some."""

    @config_enumerate
    def model(y: Tensor) -> None:
        with pyro.plate("sites", len(y), dim=-2):
            prior = dist.Poisson(3.0).log_prob(torch.arange(15.0))
            number = pyro.sample("number", dist.Categorical(logits=prior)).to(y.dtype)
            found = pyro.sample("found", dist.Beta(2.0, 2.0))
            with pyro.plate("visits", 3, dim=-1):
                enough = y <= number
                seen = dist.Binomial(torch.maximum(number, y), found).mask(enough)
                pyro.sample("y", seen, obs=y)
                pyro.factor("enough", torch.where(enough, 0.0, -math.inf))

    def guide(y: Tensor) -> None:
        more = pyro.param("more", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("sites", len(y), dim=-2):
            pyro.sample("found", dist.Beta(1 + more.expand(len(y), 1), 2.0))

    y = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [3.0, 1.0, 2.0], [2.0, 2.0, 4.0]])
    u, number = line(-12.0, 12.0, 2001), torch.arange(15.0).double()
    share = u.sigmoid()
    density = dist.Beta(2.0, 2.0).log_prob(share) + (share * (1 - share)).log()
    prior = dist.Poisson(3.0).log_prob(number).log_softmax(0)
    log_prob = []
    for row in y.double():
        least = int(row.max())
        seen = [dist.Binomial(number[least:], share).log_prob(one) for one in row]
        joint = torch.stack(seen).sum(0) + density + prior[least:]  # (grid, numbers)
        log_prob.append(integral(joint.logsumexp(-1, keepdim=True), u))
    return Case(model, guide, (y,), torch.cat(log_prob), discrete=True)
