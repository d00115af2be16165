"""Hierarchies: latents that all data share, covariates, items, schools, weights."""

# Programs as their authors write them, of which Pyro declares no types.
# mypy: disable-error-code="call-arg,arg-type"

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

from tests.corpus.case import (
    Case,
    bernoulli,
    integral,
    line,
    multivariate_normal,
    normal,
    over_normals,
    plane,
    program,
)

ROWS = 4


@program
def eight_schools() -> Case:
    """Eight schools, centred: effects around a global mean; known errors as a covariate."""
    y, sigma = torch.tensor([28.0, 8.0, -3.0, 7.0]), torch.tensor([15.0, 10.0, 16.0, 11.0])
    given, net = {"mu": torch.tensor(6.0), "tau": torch.tensor(5.0)}, nn.Linear(2, 2)

    def model(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def guide(y: Tensor, sigma: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(6.0))
        pyro.sample("mu", dist.Normal(loc, 1.0))
        pyro.sample("tau", dist.LogNormal(1.6, 0.2))
        pyro.module("net", net)
        with pyro.plate("schools", len(y)):
            shift, log_scale = net(torch.stack([y, sigma], -1) / 20).unbind(-1)
            pyro.sample("theta", dist.Normal(6 + 5 * shift, 6 * log_scale.exp()))

    truth = normal(y.double(), 6.0, (25 + sigma.double() ** 2).sqrt())
    return Case(model, guide, (y, sigma), truth, given)


@program
def eight_schools_noncentred() -> Case:
    """Eight schools, non-centred: pyro.deterministic turns standard normals into effects."""
    y, sigma = torch.tensor([28.0, 8.0, -3.0, 7.0]), torch.tensor([15.0, 10.0, 16.0, 11.0])
    given = {"mu": torch.tensor(6.0), "tau": torch.tensor(5.0)}

    def model(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", y.shape[0]):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * eta)
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def guide(y: Tensor, sigma: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(6.0))
        pyro.sample("mu", dist.Normal(loc, 1.0))
        pyro.sample("tau", dist.LogNormal(1.6, 0.2))
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("schools", y.shape[0]):
            pyro.sample("eta", dist.Normal(slope * (y - loc) / sigma, 1.0))

    truth = normal(y.double(), 6.0, (25 + sigma.double() ** 2).sqrt())
    return Case(model, guide, (y, sigma), truth, given)


class Loadings(PyroModule):
    """Factor analysis whose loadings are sampled by the module."""

    def __init__(self) -> None:
        super().__init__()
        linear: Any = PyroModule[nn.Linear](1, 3, bias=False)
        linear.weight = PyroSample(dist.Normal(torch.zeros(3, 1), 1.0).to_event(2))
        self.linear = linear
        self.noise = PyroParam(torch.tensor(0.6), dist.constraints.positive)

    def forward(self, y: Tensor) -> None:
        """One factor, three measurements."""
        weight, noise = self.linear.weight, self.noise
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z @ weight.T, noise).to_event(1), obs=y)


@program
def factor_analysis() -> Case:
    """Factor analysis: a PyroModule with PyroSample weights and PyroParam noise."""
    model, y = Loadings(), torch.randn(ROWS, 3)
    weight, net = torch.tensor([[0.9], [-0.5], [0.3]]), nn.Linear(3, 2)

    def guide(y: Tensor) -> None:
        loc = pyro.param("weight_loc", weight)
        pyro.sample("linear.weight", dist.Normal(loc, 0.1).to_event(2))
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            mean, log_scale = net(y).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    covariance = weight.double() @ weight.double().T + 0.36 * torch.eye(3).double()
    truth = multivariate_normal(y, covariance)
    return Case(model, guide, (y,), truth, {"linear.weight": weight})


@program
def gplvm() -> Case:
    """Sparse Gaussian process latent variable model: global inducing values, local inputs."""
    places, y = torch.linspace(-2, 2, 4), torch.randn(ROWS, 2)
    net, values = nn.Linear(2, 2), torch.randn(2, 4)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-0.5 * (a.unsqueeze(-1) - b) ** 2).exp()

    prior = kernel(places, places) + 1e-2 * torch.eye(4)
    inverse = prior.double().inverse()

    def model(y: Tensor) -> None:
        u = pyro.sample("u", dist.MultivariateNormal(torch.zeros(2, 4), prior).to_event(1))
        with pyro.plate("data", len(y)):
            x = pyro.sample("X", dist.Normal(0.0, 1.0))
            mean = kernel(x, places) @ inverse.float() @ u.T
            pyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        loc = pyro.param("u_loc", values)
        pyro.sample("u", dist.Normal(loc, 0.1).to_event(2))
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            mean, log_scale = net(y).unbind(-1)
            pyro.sample("X", dist.Normal(mean, log_scale.exp()))

    z = line()
    mean = kernel(z, places.double()) @ inverse.float().double() @ values.double().T
    truth = integral(normal(z) + normal(y.double(), mean, 0.5).sum(-1), z)
    return Case(model, guide, (y,), truth, {"u": values})


@program
def item_response_1pl() -> Case:
    """Item response, one parameter: abilities of students, global difficulties of items."""
    answers, difficulty = torch.randint(0, 2, (ROWS, 4)).float(), torch.tensor([-1.0, 0.0, 0.5, 1])
    net = nn.Linear(4, 2)

    def model(answers: Tensor) -> None:
        with pyro.plate("items", 4, dim=-1):
            b = pyro.sample("difficulty", dist.Normal(0.0, 2.0))
        with pyro.plate("students", len(answers), dim=-1):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
            logits = ability.unsqueeze(-1) - b
            pyro.sample("answers", dist.Bernoulli(logits=logits).to_event(1), obs=answers)

    def guide(answers: Tensor) -> None:
        loc = pyro.param("loc", difficulty)
        with pyro.plate("items", 4, dim=-1):
            pyro.sample("difficulty", dist.Normal(loc, 0.1))
        pyro.module("net", net)
        with pyro.plate("students", len(answers), dim=-1):
            mean, log_scale = net(answers).unbind(-1)
            pyro.sample("ability", dist.Normal(mean, log_scale.exp()))

    def likelihood(z: Tensor) -> Tensor:
        return bernoulli(answers.double(), z - difficulty.double()).sum(-1)

    truth = over_normals(likelihood, 1, 801)
    return Case(model, guide, (answers,), truth, {"difficulty": difficulty})


@program
def item_response_2pl() -> Case:
    """Item response, two parameters: the plates of students and items cross."""
    answers = torch.randint(0, 2, (ROWS, 4)).float()
    given = {
        "difficulty": torch.tensor([-1.0, 0.0, 0.5, 1]),
        "slope": torch.tensor([0.5, 1.0, 1.5, 2.0]),
    }
    net = nn.Linear(4, 2)

    def model(answers: Tensor) -> None:
        items = pyro.plate("items", 4, dim=-2)
        with items:
            b = pyro.sample("difficulty", dist.Normal(torch.zeros(4, 1), 2.0))
            slope = pyro.sample("slope", dist.LogNormal(torch.zeros(4, 1), 0.5))
        with pyro.plate("students", len(answers), dim=-1):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
            with items:
                logits = slope * (ability - b)
                pyro.sample("answers", dist.Bernoulli(logits=logits), obs=answers.T)

    def guide(answers: Tensor) -> None:
        loc = pyro.param("loc", given["difficulty"].unsqueeze(-1))
        log_slope = pyro.param("log_slope", given["slope"].log().unsqueeze(-1))
        with pyro.plate("items", 4, dim=-2):
            pyro.sample("difficulty", dist.Normal(loc, 0.1))
            pyro.sample("slope", dist.LogNormal(log_slope, 0.1))
        pyro.module("net", net)
        with pyro.plate("students", len(answers), dim=-1):
            mean, log_scale = net(answers).unbind(-1)
            pyro.sample("ability", dist.Normal(mean, log_scale.exp()))

    b, slope = given["difficulty"].double(), given["slope"].double()
    truth = over_normals(lambda z: bernoulli(answers.double(), slope * (z - b)).sum(-1), 1, 801)
    columns = {name: value.unsqueeze(-1) for name, value in given.items()}
    return Case(model, guide, (answers,), truth, columns)


@program
def logistic_regression() -> Case:
    """Logistic regression per subject: latent weights, several trials with covariates."""
    x, y = torch.randn(ROWS, 5, 2), torch.randint(0, 2, (ROWS, 5)).float()
    net = nn.Linear(15, 4)

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("subjects", len(x), dim=-1):
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = (x * w.unsqueeze(-2)).sum(-1)
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("subjects", len(x), dim=-1):
            features = torch.cat([x.flatten(1), y], -1)
            mean, log_scale = net(features).chunk(2, -1)
            pyro.sample("w", dist.Normal(mean, log_scale.exp()).to_event(1))

    def likelihood(w: Tensor) -> Tensor:
        logits = (x.double() * w.unsqueeze(-2)).sum(-1)
        return bernoulli(y.double(), logits).sum(-1)

    return Case(model, guide, (x, y), over_normals(likelihood, 2))


@program
def student_location() -> Case:
    """A latent location with a Student t prior and Student t data."""
    y, net = torch.tensor([[0.2, 0.5], [4.0, -1.0], [9.0, 8.0], [-1.0, -1.2]]), nn.Linear(2, 2)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.StudentT(5.0, 0.0, 1.0))
            pyro.sample("y", dist.StudentT(3.0, z.unsqueeze(-1), 0.5).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            mean, log_scale = net(y).unbind(-1)
            pyro.sample("z", dist.StudentT(4.0, mean, log_scale.exp()))

    z = line(-400, 400, 80_001)

    def student(value: Tensor, df: float, scale: float) -> Tensor:
        half = torch.tensor((df + 1) / 2).double()
        norm = half.lgamma() - torch.tensor(df / 2).double().lgamma()
        norm = norm - 0.5 * torch.tensor(df * torch.pi).double().log()
        log_scale = torch.tensor(scale).double().log()
        return norm - log_scale - half * (1 + (value / scale) ** 2 / df).log()

    residual = y.double() - z.unsqueeze(1)
    truth = integral(student(z, 5.0, 1.0) + student(residual, 3.0, 0.5).sum(-1), z)
    return Case(model, guide, (y,), truth)


@program
def heteroscedastic() -> Case:
    """A latent mean and a latent scale per datum, with repeated measurements."""
    y, net = torch.randn(ROWS, 4) * 2, nn.Linear(4, 4)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0)).unsqueeze(-1)
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5)).unsqueeze(-1)
            pyro.sample("y", dist.Normal(mean, scale).expand([len(y), 4]).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            out = net(y)
            pyro.sample("mean", dist.Normal(out[:, 0], out[:, 1].exp()))
            pyro.sample("scale", dist.LogNormal(out[:, 2], out[:, 3].exp()))

    def likelihood(z: Tensor) -> Tensor:
        return normal(y.double(), z[..., :1], (0.5 * z[..., 1:]).exp()).sum(-1)

    return Case(model, guide, (y,), over_normals(likelihood, 2))


@program
def inner_plate() -> Case:
    """An inner plate of replicates, each with a latent effect of its own."""
    y, net = torch.randn(ROWS, 3), nn.Linear(3, 8)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("replicates", 3, dim=-2):
                effect = pyro.sample("effect", dist.Normal(z, 0.8))
                pyro.sample("y", dist.Normal(effect, 0.6), obs=y.T)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y), dim=-1):
            loc, log_scale = net(y).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc[:, 0], log_scale[:, 0].exp()))
            with pyro.plate("replicates", 3, dim=-2):
                pyro.sample("effect", dist.Normal(loc[:, 1:].T, log_scale[:, 1:].exp().T))

    covariance = torch.ones(3, 3).double() + torch.eye(3).double()  # 0.8^2 + 0.6^2 = 1
    return Case(model, guide, (y,), multivariate_normal(y, covariance))


@program
def regression() -> Case:
    """Regression with global weights and a latent residual per datum."""
    x, y = torch.randn(ROWS, 2), torch.randn(ROWS)
    given, net = {"w": torch.tensor([0.5, -0.3])}, nn.Linear(3, 2)

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            effect = pyro.sample("effect", dist.Laplace(0.0, 0.5))
            pyro.sample("y", dist.Normal((x * w).sum(-1) + effect, 0.4), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        loc = pyro.param("w_loc", given["w"])
        pyro.sample("w", dist.Normal(loc, 0.1).to_event(1))
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            mean, log_scale = net(torch.cat([x, y.unsqueeze(-1)], -1)).unbind(-1)
            pyro.sample("effect", dist.Normal(mean, log_scale.exp()))

    z = line(-12, 12, 48_001)
    prior = -z.abs() / 0.5
    residual = y.double() - (x.double() @ given["w"].double()) - z
    return Case(model, guide, (x, y), integral(prior + normal(residual, 0.0, 0.4), z), given)


@program
def correlated_normal() -> Case:
    """Two latents with a correlated normal prior, and normal data around their tanh."""
    covariance, y = torch.tensor([[1.0, 0.6], [0.6, 1.0]]), torch.randn(ROWS, 2)
    net = nn.Linear(2, 4)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), covariance))
            pyro.sample("y", dist.Normal(z.tanh(), 0.5).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            mean, log_scale = net(y).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    z = plane(2, 7.0, 141)
    likelihood = normal(y.double(), z.tanh(), 0.5).sum(-1)
    truth = integral(multivariate_normal(z, covariance) + likelihood, z)
    return Case(model, guide, (y,), truth)
