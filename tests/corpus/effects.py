"""Effects of a person, a site, a patient: responses of many kinds to a latent or two."""

# Programs as their authors write them, of which Pyro declares no types.
# mypy: disable-error-code="call-overload,arg-type,untyped-decorator"

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor, nn
from torch.nn.functional import softplus

import pyro_vae as pv
from tests.corpus.case import (
    Case,
    bernoulli,
    integral,
    line,
    multivariate_normal,
    normal,
    over_normals,
    poisson,
    program,
)

ROWS = 4
POSITIVE = dist.constraints.positive


def amortized(features: int, name: str = "z") -> Callable[..., None]:
    """A guide of one normal latent, by a linear net of all tensors."""
    net = nn.Linear(features, 2)

    def guide(*batch: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(batch[0])):
            flat = torch.cat([part.float().reshape(len(part), -1) for part in batch], -1)
            loc, log_scale = net(flat.nan_to_num(0.0) / 5).unbind(-1)
            pyro.sample(name, dist.Normal(loc, log_scale.exp()))

    return guide


def over_logs(log_density: Callable[[Tensor], Tensor], lower: float = -40.0) -> Tensor:
    """Log of the integral over a positive latent x, of a density of x and y at `(points, 1)`."""
    t = line(lower, 12, 6001)
    return integral(log_density(t.exp()) + t, t)


@program
def graded_response() -> Case:
    """Graded item responses: a latent ability and ordered cut points."""
    y, cuts = torch.randint(0, 4, (ROWS, 3)), torch.tensor([-1.0, 0.2, 1.1])

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            score = z.unsqueeze(-1).expand(-1, 3)
            pyro.sample("y", dist.OrderedLogistic(score, cuts).to_event(1), obs=y)

    def likelihood(z: Tensor) -> Tensor:
        edges = torch.cat([torch.full((1,), -math.inf), cuts, torch.full((1,), math.inf)]).double()
        upper, lower = ((edges[y + step] - z).sigmoid() for step in (1, 0))
        return (upper - lower).log().sum(-1)

    return Case(model, amortized(3), (y,), over_normals(likelihood, 1, 801))


@program
def guessing() -> Case:
    """Item response with a guessing probability as a pyro.param; unanswered items are masked."""
    y, seen = torch.randint(0, 2, (ROWS, 4)).float(), torch.rand(ROWS, 4) < 0.7
    difficulty = torch.tensor([-1.0, 0.0, 0.5, 1.0])

    def model(y: Tensor, seen: Tensor) -> None:
        unit = dist.constraints.unit_interval
        guess = pyro.param("guess", torch.tensor(0.2), constraint=unit)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            chance = guess + (1 - guess) * (z.unsqueeze(-1) - difficulty).sigmoid()
            pyro.sample("y", dist.Bernoulli(chance).mask(seen).to_event(1), obs=y)

    def likelihood(z: Tensor) -> Tensor:
        chance = 0.2 + 0.8 * (z - difficulty.double()).sigmoid()
        return (seen * torch.where(y > 0, chance, 1 - chance).log()).sum(-1)

    return Case(model, amortized(8), (y, seen), over_normals(likelihood, 1, 801))


@program
def beta_binomial() -> Case:
    """Binomial counts whose beta prior depends on a covariate and so differs between data."""
    x, n = torch.tensor([0.1, 1.0, 2.0, 0.5]), torch.tensor([5.0, 9.0, 3.0, 12.0])
    y, net = torch.tensor([0.0, 4.0, 3.0, 1.0]), nn.Linear(2, 2)

    def model(x: Tensor, n: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            p = pyro.sample("p", dist.Beta(0.5 + x, 1.5))
            pyro.sample("y", dist.Binomial(n, p), obs=y)

    def guide(x: Tensor, n: Tensor, y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            a, b = softplus(net(torch.stack([x, y / n], -1)) + 1).unbind(-1)
            pyro.sample("p", dist.Beta(a, b))

    a, b, k, m = 0.5 + x.double(), 1.5 + 0 * x.double(), y.double(), n.double()
    orders = (m + 1).lgamma() - (k + 1).lgamma() - (m - k + 1).lgamma()
    top = (a + k).lgamma() + (b + m - k).lgamma() - (a + b + m).lgamma()
    truth = orders + top - (a.lgamma() + b.lgamma() - (a + b).lgamma())
    return Case(model, guide, (x, n, y), truth)


@program
def gamma_poisson() -> Case:
    """Poisson counts with exposures and gamma rates; marginally negative binomial."""
    y, exposure = torch.tensor([0.0, 3.0, 11.0, 1.0]), torch.tensor([1.0, 2.0, 4.0, 0.5])
    net = nn.Linear(2, 2)

    def model(y: Tensor, exposure: Tensor) -> None:
        with pyro.plate("data", len(y)):
            rate = pyro.sample("rate", dist.Gamma(0.4, 0.5))
            pyro.sample("y", dist.Poisson(rate * exposure), obs=y)

    def guide(y: Tensor, exposure: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            a, b = softplus(net(torch.stack([y / 5, exposure], -1))).unbind(-1)
            pyro.sample("rate", dist.Gamma(a + 0.4 + y / 2, b + exposure / 2))

    k, e, a = y.double(), exposure.double(), torch.tensor(0.4).double()
    truth = (a + k).lgamma() - a.lgamma() - (k + 1).lgamma()
    truth = truth + a * (0.5 / (0.5 + e)).log() + k * (e / (0.5 + e)).log()
    return Case(model, guide, (y, exposure), truth)


@program
def horseshoe_effect() -> Case:
    """Horseshoe prior: the effect is a half-Cauchy scale times a standard normal."""
    y, net = torch.tensor([0.1, -2.0, 6.0, 0.4]), nn.Linear(1, 4)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            scale = pyro.sample("scale", dist.HalfCauchy(1.0))
            raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(scale * raw, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            out = net(y.unsqueeze(-1) / 5)
            pyro.sample("scale", dist.LogNormal(out[:, 0], 1 + out[:, 1].exp()))
            pyro.sample("raw", dist.Normal(out[:, 2], 1 + out[:, 3].exp()))

    def joint(x: Tensor) -> Tensor:
        prior = math.log(2 / math.pi) - (x**2).log1p()
        return prior + normal(y.double(), 0.0, (1 + x**2).sqrt())

    return Case(model, guide, (y,), over_logs(joint))


@program
def uniform_place() -> Case:
    """A latent location, uniform on an interval, with two noisy measurements."""
    y, net = torch.tensor([[0.5, 0.9], [-1.5, -2.5], [2.0, 1.9], [0.0, -0.3]]), nn.Linear(2, 2)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Uniform(-2.0, 2.0))
            pyro.sample(
                "y", dist.Normal(z.unsqueeze(-1), 0.7).expand([len(y), 2]).to_event(1), obs=y
            )

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            a, b = (softplus(net(y)) + 1).unbind(-1)
            affine = dist.transforms.AffineTransform(-2.0, 4.0)
            pyro.sample("z", dist.TransformedDistribution(dist.Beta(a, b), [affine]))

    z = torch.linspace(-2, 2, 8001, dtype=torch.float64)[:, None]
    ends = torch.ones_like(z).index_fill(0, torch.tensor([0, 8000]), 0.5)
    terms = normal(y.double(), z.unsqueeze(1), 0.7).sum(-1) + (ends / 4).log()
    return Case(model, guide, (y,), terms.logsumexp(0) + math.log(4 / 8000))


@program
def occupancy() -> Case:
    """Species occupancy: enumerated presence of the species, and a latent detection rate."""
    y = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])

    @config_enumerate
    def model(y: Tensor) -> None:
        psi = pyro.param("psi", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(y), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            there = pyro.sample("there", dist.Bernoulli(psi))
            with pyro.plate("visits", 3, dim=-2):
                pyro.sample("y", dist.Bernoulli(there * z.sigmoid()), obs=y.T)

    def likelihood(z: Tensor) -> Tensor:
        there = math.log(0.4) + bernoulli(y.double(), z).sum(-1)
        absent = torch.where(y.sum(-1) == 0, math.log(0.6), -math.inf).double()
        return torch.logaddexp(there, absent.expand_as(there))

    return Case(model, amortized(3), (y,), over_normals(likelihood, 1, 801), discrete=True)


@program
def factorial_hmm() -> Case:
    """Factorial hidden Markov model: two enumerated chains; series that have ended are masked."""
    y, lengths = torch.randn(ROWS, 3), torch.tensor([3, 2, 3, 1])
    stay = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    @config_enumerate
    def model(y: Tensor, lengths: Tensor) -> None:
        with pyro.plate("data", len(y), dim=-1):
            w = x = torch.zeros((), dtype=torch.long)
            for t in pyro.markov(range(3)):
                with poutine.mask(mask=t < lengths):
                    w = pyro.sample(f"w_{t}", dist.Categorical(stay[w]))
                    x = pyro.sample(f"x_{t}", dist.Categorical(stay[1 - x]))
                    pyro.sample(f"y_{t}", dist.Normal(w + 2.0 * x, 0.5), obs=y[:, t])

    def guide(y: Tensor, lengths: Tensor) -> None:
        """Nothing is left to draw."""

    totals = []
    for row in range(ROWS):
        alpha = torch.zeros(2, 2).double()
        steps = int(lengths[row])
        alpha[0, 0] = 1.0
        for t in range(steps):
            trans = torch.einsum("wx,wv,xu->vu", alpha, stay.double(), stay.double().flip(0))
            means = torch.arange(2)[:, None] + 2.0 * torch.arange(2)
            alpha = trans * normal(y[row, t].double(), means.double(), 0.5).exp()
        totals.append(alpha.sum().log())
    return Case(model, guide, (y, lengths), torch.stack(totals), discrete=True)


@program
def mixture_of_regressions() -> Case:
    """Mixture of two regressions with global weights and a latent effect per datum."""
    x, y = torch.randn(ROWS, 3), torch.randn(ROWS, 3)
    slopes = torch.tensor([-1.0, 1.5])

    @config_enumerate
    def model(x: Tensor, y: Tensor) -> None:
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("data", len(y)):
            kind = pyro.sample("kind", dist.Categorical(shares))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = slopes[kind].unsqueeze(-1) * x + z.unsqueeze(-1)
            pyro.sample("y", dist.Normal(mean, 0.6).to_event(1), obs=y)

    inner = amortized(6)

    def guide(x: Tensor, y: Tensor) -> None:
        counts = pyro.param("counts", torch.tensor([9.0, 21.0]), constraint=POSITIVE)
        pyro.sample("shares", dist.Dirichlet(counts))
        inner(x, y)

    covariance = torch.ones(3, 3).double() + 0.36 * torch.eye(3).double()
    parts = [multivariate_normal(y, covariance, slope * x.double()) for slope in (-1.0, 1.5)]
    truth = torch.logaddexp(parts[0] + math.log(0.3), parts[1] + math.log(0.7))
    given = {"shares": torch.tensor([0.3, 0.7])}
    # Its posterior has two modes: a proposal of one does not see that it misses the other.
    return Case(model, guide, (x, y), truth, given, pv.Tightest(), discrete=True)


@program
def by_factors() -> Case:
    """A likelihood that consists only of a pyro.factor inside the plate over data."""
    y = torch.randn(ROWS, 2)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loss = (y - z.unsqueeze(-1)).cosh().log().sum(-1)
            pyro.factor("robust", -2 * loss - 2 * math.log(2))

    def likelihood(z: Tensor) -> Tensor:
        return -2 * (y.double() - z).cosh().log().sum(-1) - 2 * math.log(2)

    return Case(model, amortized(2), (y,), over_normals(likelihood, 1, 801))


@program
def random_slopes() -> Case:
    """Correlated random intercept and slope; their scales and LKJ correlation are global."""
    x, y = torch.randn(ROWS, 3), torch.randn(ROWS, 3)
    root, scales = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([0.9, 0.5])
    net = nn.Linear(6, 4)

    def model(x: Tensor, y: Tensor) -> None:
        corr = pyro.sample("corr", dist.LKJCholesky(2, 2.0))
        sd = pyro.sample("sd", dist.HalfNormal(torch.ones(2)).to_event(1))
        with pyro.plate("data", len(y)):
            tril = sd.unsqueeze(-1) * corr
            b = pyro.sample("b", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril))
            mean = b[..., :1] + b[..., 1:] * x
            pyro.sample("y", dist.Normal(mean, 0.4).to_event(1), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("corr", dist.LKJCholesky(2, torch.tensor(3.0)))
        loc = pyro.param("log_sd", scales.log())
        pyro.sample("sd", dist.LogNormal(loc, 0.1).to_event(1))
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            mean, log_scale = net(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("b", dist.Normal(mean, log_scale.exp()).to_event(1))

    tril = scales.double().unsqueeze(-1) * root.double()
    design = torch.stack([torch.ones_like(x), x], -1).double()
    spread = design @ tril
    covariance = spread @ spread.mT + 0.16 * torch.eye(3).double()
    return Case(
        model, guide, (x, y), multivariate_normal(y, covariance), {"corr": root, "sd": scales}
    )


@program
def stochastic_volatility() -> Case:
    """Stochastic volatility: log variances of successive days in a pyro.markov loop."""
    y, net = torch.tensor([[0.1, 2.0], [-1.0, 0.3], [3.0, -2.5], [0.0, 0.1]]), nn.Linear(2, 4)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            h = torch.zeros(len(y))
            for t in pyro.markov(range(2)):
                h = pyro.sample(f"h_{t}", dist.Normal(0.9 * h, 0.8))
                pyro.sample(f"y_{t}", dist.Normal(0.0, (h / 2).exp()), obs=y[:, t])

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            loc, log_scale = net(y / 2).chunk(2, -1)
            for t in pyro.markov(range(2)):
                pyro.sample(f"h_{t}", dist.Normal(loc[:, t], log_scale[:, t].exp()))

    def likelihood(noise: Tensor) -> Tensor:
        first = 0.8 * noise[..., 0]
        second = 0.9 * first + 0.8 * noise[..., 1]
        both = zip((first, second), y.double().unbind(-1), strict=True)
        return torch.stack([normal(part, 0.0, (h / 2).exp()) for h, part in both]).sum(0)

    return Case(model, guide, (y,), over_normals(likelihood, 2))


@program
def local_level() -> Case:
    """Local level model: a random walk observed with noise; unmeasured days are masked."""
    y, seen = torch.randn(ROWS, 3), torch.rand(ROWS, 3) < 0.7
    net = nn.Linear(6, 6)

    def model(y: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(y)):
            level = torch.zeros(len(y))
            for t in pyro.markov(range(3)):
                level = pyro.sample(f"level_{t}", dist.Normal(level, 0.7))
                with poutine.mask(mask=seen[:, t]):
                    pyro.sample(f"y_{t}", dist.Normal(level, 0.5), obs=y[:, t])

    def guide(y: Tensor, seen: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            loc, log_scale = net(torch.cat([y * seen, seen.float()], -1)).chunk(2, -1)
            for t in range(3):
                pyro.sample(f"level_{t}", dist.Normal(loc[:, t], log_scale[:, t].exp()))

    times = torch.arange(1.0, 4).double()
    covariance = 0.49 * torch.minimum(times[:, None], times) + 0.25 * torch.eye(3).double()
    truth = [
        multivariate_normal(y[n][seen[n]], covariance[seen[n]][:, seen[n]])
        if seen[n].any()
        else torch.zeros(()).double()
        for n in range(ROWS)
    ]
    return Case(model, guide, (y, seen), torch.stack(truth))


@program
def reparameterized() -> Case:
    """A model under poutine.reparam; the guide samples the site that the handler adds."""
    y = torch.randn(ROWS, 2)

    @poutine.reparam(config={"z": LocScaleReparam(0.0)})
    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(1.0, 0.5))
            mean = z.exp().unsqueeze(-1)
            pyro.sample("y", dist.Normal(mean, 0.8).expand([len(y), 2]).to_event(1), obs=y)

    def likelihood(noise: Tensor) -> Tensor:
        return normal(y.double(), (1 + 0.5 * noise).exp(), 0.8).sum(-1)

    truth = over_normals(likelihood, 1, 801)
    return Case(model, amortized(2, "z_decentered"), (y,), truth)


@program
def counts_of_cells() -> Case:
    """Gene counts as in scVI: a cell state, a size factor, zero-inflated negative binomials."""
    y, genes = torch.randint(0, 6, (ROWS, 3)).float(), 3
    weight, net = torch.tensor([0.5, -0.3, 1.0]), nn.Linear(genes, 4)

    def model(y: Tensor) -> None:
        log_theta = pyro.param("log_theta", torch.full((genes,), 0.7))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            size = pyro.sample("size", dist.LogNormal(1.5, 0.3))
            share = (z.unsqueeze(-1) * weight).softmax(-1)
            logits = (size.unsqueeze(-1) * share).log() - log_theta
            count = dist.ZeroInflatedNegativeBinomial(
                log_theta.exp(), logits=logits, gate=torch.tensor(0.1)
            )
            pyro.sample("y", count.to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            out = net(y.log1p())
            pyro.sample("z", dist.Normal(out[:, 0], out[:, 1].exp()))
            pyro.sample("size", dist.LogNormal(1.5 + out[:, 2], 0.3 * out[:, 3].exp()))

    def likelihood(z: Tensor) -> Tensor:
        share = (z[..., :1] * weight.double()).softmax(-1)
        mean = (1.5 + 0.3 * z[..., 1:]).exp() * share
        k, theta = y.double(), torch.tensor(0.7).double().exp()
        orders = (k + theta).lgamma() - theta.lgamma() - (k + 1).lgamma()
        log_p = theta * (theta / (theta + mean)).log() + k * (mean / (theta + mean)).log()
        chance = 0.9 * (orders + log_p).exp() + 0.1 * (k == 0)
        return chance.log().sum(-1)

    return Case(model, guide, (y,), over_normals(likelihood, 2))


@program
def choices() -> Case:
    """Discrete choice among three alternatives: latent tastes of a person, integers as data."""
    y, x = torch.randint(0, 3, (ROWS, 4)), torch.randn(ROWS, 4, 3, 2)
    net = nn.Linear(28, 4)

    def model(y: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(y)):
            taste = pyro.sample("taste", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            utility = torch.einsum("ntaf,nf->nta", x, taste)
            pyro.sample("y", dist.Categorical(logits=utility).to_event(1), obs=y)

    def guide(y: Tensor, x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            flat = torch.cat([y.float(), x.flatten(1)], -1)
            loc, log_scale = net(flat / 5).chunk(2, -1)
            pyro.sample("taste", dist.Normal(loc, log_scale.exp()).to_event(1))

    def likelihood(z: Tensor) -> Tensor:
        utility = torch.einsum("ntaf,kxf->knta", x.double(), z).log_softmax(-1)
        return utility.gather(-1, y.expand(len(z), -1, -1).unsqueeze(-1)).sum((-1, -2))

    return Case(model, guide, (y, x), over_normals(likelihood, 2))


@program
def scale_mixture() -> Case:
    """Student's t as a scale mixture: normal data with a latent gamma precision."""
    y, net = torch.tensor([0.3, -8.0, 1.0, 25.0]), nn.Linear(1, 2)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            precision = pyro.sample("precision", dist.Gamma(1.5, 1.5))
            pyro.sample("y", dist.Normal(0.0, precision.rsqrt()), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            a, b = softplus(net(y.unsqueeze(-1) / 10) + 1).unbind(-1)
            pyro.sample("precision", dist.Gamma(a + 1, b + 1 + y**2 / 3))

    truth = torch.distributions.StudentT(torch.tensor(3.0).double()).log_prob(y.double())
    return Case(model, guide, (y,), truth)


@program
def weibull_survival() -> Case:
    """Weibull survival with a frailty: censored times enter through a pyro.factor."""
    times, died = torch.tensor([0.5, 2.0, 1.0, 4.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])

    def model(times: Tensor, died: Tensor) -> None:
        shape = pyro.param("shape", torch.tensor(1.5), constraint=POSITIVE)
        with pyro.plate("data", len(times)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = (0.5 * z).exp()
            with poutine.mask(mask=died > 0):
                pyro.sample("time", dist.Weibull(scale, shape), obs=times)
            with poutine.mask(mask=died == 0):
                pyro.factor("alive", -((times / scale) ** shape))

    def likelihood(z: Tensor) -> Tensor:
        z = z.squeeze(-1)
        power = (times.double() / (0.5 * z).exp()) ** 1.5
        return died * (math.log(1.5) + power.log() - times.double().log()) - power

    return Case(model, amortized(2), (times, died), over_normals(likelihood, 1, 801))


@program
def beta_regression() -> Case:
    """Beta-distributed shares whose mean depends on a latent; their precision is fixed."""
    y = torch.tensor([[0.2, 0.3], [0.9, 0.8], [0.5, 0.1], [0.05, 0.99]])

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z.sigmoid().unsqueeze(-1).expand(-1, 2)
            pyro.sample("y", dist.Beta(6 * mean, 6 * (1 - mean)).to_event(1), obs=y)

    def likelihood(z: Tensor) -> Tensor:
        a = 6 * z.sigmoid()
        b = 6 * (-z).sigmoid()
        norm = torch.tensor(6.0).double().lgamma() - a.lgamma() - b.lgamma()
        return (norm + (a - 1) * y.double().log() + (b - 1) * (-y.double()).log1p()).sum(-1)

    return Case(model, amortized(2), (y,), over_normals(likelihood, 1, 801))


@program
def conditioned() -> Case:
    """Global weights fixed by poutine.condition, and the whole model under poutine.scale."""
    x, y = torch.randn(ROWS, 2), torch.randint(0, 5, (ROWS,)).float()
    weights = torch.tensor([0.4, -0.2])

    def full(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 0.5))
            pyro.sample("y", dist.Poisson(((x * w).sum(-1) + z).exp()), obs=y)

    model: Any = poutine.scale(poutine.condition(full, data={"w": weights}), scale=0.25)

    def likelihood(noise: Tensor) -> Tensor:
        rate = ((x.double() * weights.double()).sum(-1) + 0.5 * noise.squeeze(-1)).exp()
        return poisson(y.double(), rate)

    return Case(model, amortized(3), (x, y), over_normals(likelihood, 1, 801))


@program
def mean_of_data() -> Case:
    """A pyro.param whose initial value is given as a function."""
    y = torch.randn(ROWS, 2) + 3

    def model(y: Tensor) -> None:
        centre = pyro.param("centre", lambda: torch.full((2,), 3.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Laplace(0.0, 1.0))
            pyro.sample("y", dist.Normal(centre + z.unsqueeze(-1), 0.8).to_event(1), obs=y)

    z = line(-14, 14, 28_001)
    prior = -z.abs() - math.log(2)
    truth = integral(prior + normal(y.double(), 3 + z.unsqueeze(1), 0.8).sum(-1), z)
    return Case(model, amortized(2), (y,), truth)


@program
def gamma_shapes() -> Case:
    """Gamma waiting times whose shape and rate are latent."""
    y, net = torch.tensor([[0.5, 1.0, 0.7], [3.0, 4.0, 0.1], [0.2, 0.1, 0.3]]), nn.Linear(3, 4)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            shape = pyro.sample("shape", dist.LogNormal(0.0, 0.5)).unsqueeze(-1)
            rate = pyro.sample("rate", dist.Gamma(2.0, 2.0)).unsqueeze(-1)
            pyro.sample("y", dist.Gamma(shape, rate).expand([len(y), 3]).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(y)):
            out = net(y)
            pyro.sample("shape", dist.LogNormal(out[:, 0], 0.5 * out[:, 1].exp()))
            pyro.sample("rate", dist.LogNormal(out[:, 2], 0.5 * out[:, 3].exp()))

    a = (0.5 * torch.linspace(-9, 9, 801).double()).exp()[:, None, None]
    t = y.double().sum(-1)
    inner = (
        3 * -a.lgamma() + (a - 1) * y.double().log().sum(-1)
        + (2 + 3 * a).lgamma() - (2 + 3 * a) * (2 + t).log() + 2 * math.log(2)
    )  # fmt: skip
    points = line()
    return Case(model, guide, (y,), integral(normal(points) + inner.squeeze(1), points))
