"""Programs in different Pyro idioms, each with its density written by hand."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae._types import Batch, ProgramLike
from tests.helpers.statistics import FACTS

NUM_DATA = 5


def normal(value: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """The log density of a normal distribution, written out."""
    scale = torch.as_tensor(scale)
    return -(((value - loc) / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2


def factor_analysis(y: Tensor) -> None:
    """The model whose every answer is known."""
    loadings, scale = FACTS.loadings.to(y.dtype), FACTS.noise_variance.sqrt().to(y.dtype)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z @ loadings.T, scale).to_event(1), obs=y)


def factor_analysis_density(z: Tensor, y: Tensor) -> Tensor:
    """Two independent normals, and a normal around `W z`."""
    loadings, scale = FACTS.loadings.to(y.dtype), FACTS.noise_variance.sqrt().to(y.dtype)
    likelihood = torch.distributions.MultivariateNormal(z @ loadings.T, scale_tril=scale.diag())
    return normal(z, 0.0, 1.0).sum(-1) + likelihood.log_prob(y)


def scalar(y: Tensor) -> None:
    """A scalar site without an event dimension."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.5, 2.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def scalar_density(z: Tensor, y: Tensor) -> Tensor:
    """Two normals."""
    return normal(z[..., 0], 0.5, 2.0) + normal(y, z[..., 0], 1.0)


def dependent(y: Tensor) -> None:
    """Two sites, the second of which depends on the first; a deterministic one between them."""
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        doubled = pyro.deterministic("doubled", 2 * a)
        b = pyro.sample("b", dist.Normal(doubled[..., None].expand(-1, 2), 0.5).to_event(1))
        pyro.sample("y", dist.Normal(a * b.sum(-1), 1.0), obs=y)


def dependent_density(z: Tensor, y: Tensor) -> Tensor:
    """The chain rule: a, b given a, y given both."""
    a, b = z[..., 0], z[..., 1:]
    prior = normal(a, 0.0, 1.0) + normal(b, 2 * a[..., None], 0.5).sum(-1)
    return prior + normal(y, a * b.sum(-1), 1.0)


def gamma(y: Tensor) -> None:
    """A positive latent."""
    with pyro.plate("data", len(y)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 3.0))
        pyro.sample("y", dist.Poisson(rate), obs=y)


def negative_binomial(y: Tensor) -> Tensor:
    """Poisson with a gamma rate."""
    value: Tensor = dist.NegativeBinomial(2.0, probs=torch.tensor(0.25)).log_prob(y)
    return value


def gamma_density(z: Tensor, y: Tensor) -> Tensor:
    """Over the logarithm of the rate."""
    log_rate = z[..., 0]  # d rate / d log rate = rate
    prior = 2 * math.log(3.0) + log_rate - 3 * log_rate.exp() + log_rate
    return prior + y * log_rate - log_rate.exp() - (y + 1).lgamma()


CONCENTRATION = (1.0, 2.0, 3.0)


def dirichlet(y: Tensor) -> None:
    """A latent on the simplex, with one unconstrained entry less."""
    with pyro.plate("data", len(y)):
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor(CONCENTRATION)))
        pyro.sample("y", dist.Categorical(shares), obs=y)


def break_stick(z: Tensor) -> Tensor:
    """Two numbers to two shares of three, as Stan and torch do it."""
    first = (z[0] - math.log(2)).sigmoid()
    return torch.stack([first, (1 - first) * z[1].sigmoid()])


def dirichlet_density(z: Tensor, y: Tensor) -> Tensor:
    """Over what breaks the stick; the Jacobian by automatic differentiation."""
    flat = z.reshape(-1, 2)
    jacobians = [torch.autograd.functional.jacobian(break_stick, row) for row in flat]
    first_two = torch.stack([break_stick(row) for row in flat]).view(z.shape)
    shares = torch.cat([first_two, 1 - first_two.sum(-1, keepdim=True)], dim=-1)
    alpha = torch.tensor(CONCENTRATION)
    constant = alpha.sum().lgamma() - alpha.lgamma().sum()
    prior = constant + ((alpha - 1) * shares.log()).sum(-1)
    likelihood = shares.log().gather(-1, y.expand(len(z), -1)[..., None])[..., 0]
    return prior + torch.stack(jacobians).det().abs().log().view(z.shape[:-1]) + likelihood


def interval(y: Tensor) -> None:
    """Latents between bounds that differ from one another."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Uniform(torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


def interval_density(z: Tensor, y: Tensor) -> Tensor:
    """Over the logits of the shares of the interval."""
    share = z.sigmoid()  # uniform: the width cancels with the width in the Jacobian
    value = share[..., 0] + 3 * share[..., 1]
    return (share * (1 - share)).log().sum(-1) + normal(y, value, 1.0)


def inner_plate(y: Tensor) -> None:
    """An inner plate left of the plate over data: values are `(3, batch)`."""
    with pyro.plate("data", len(y), dim=-1), pyro.plate("features", 3, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y.T)


def outer_data(y: Tensor) -> None:
    """The plate over data left of an inner one, with a site outside and two inside that one."""
    with pyro.plate("data", len(y), dim=-2):
        shift = pyro.sample("shift", dist.Normal(0.0, 2.0))  # (batch, 1)
        with pyro.plate("features", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            w = pyro.sample("w", dist.Normal(z, 0.2))
            pyro.sample("y", dist.Normal(w, 0.5), obs=y)


def inner_plate_density(z: Tensor, y: Tensor) -> Tensor:
    """A sum over features."""
    return (normal(z, 0.0, 1.0) + normal(y, z, 0.5)).sum(-1)


def outer_data_density(z: Tensor, y: Tensor) -> Tensor:
    """The shift, then a sum over features."""
    shift, z, w = z[..., :1], z[..., 1:4], z[..., 4:]
    features = normal(z, shift, 1.0) + normal(w, z, 0.2) + normal(y, w, 0.5)
    return normal(shift, 0.0, 2.0)[..., 0] + features.sum(-1)


def missing(y: Tensor, seen: Tensor) -> None:
    """Entries that were not measured are masked."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=seen):  # type: ignore[call-overload]
            pyro.sample("left", dist.Normal(z, 1.0), obs=y)
        features = dist.Normal(z[..., None].expand(-1, 2), 1.0).mask(seen[..., None])
        pyro.sample("right", features.to_event(1), obs=y[..., None].expand(-1, 2))


def missing_density(z: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """Once for the left site and twice for the right one, where there is something to see."""
    return normal(z[..., 0], 0.0, 1.0) + 3 * seen * normal(y, z[..., 0], 1.0)


def scaled(y: Tensor) -> None:
    """A program that weighs its own terms, as some training recipes do."""
    with poutine.scale(scale=0.1):
        scalar(y)


def factor(y: Tensor) -> None:
    """A factor counts as a part of the likelihood."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("energy", -((y - z) ** 4))


def factor_density(z: Tensor, y: Tensor) -> Tensor:
    """The factor is a log density as it is."""
    return normal(z[..., 0], 0.0, 1.0) - (y - z[..., 0]) ** 4


def covariate(y: Tensor, x: Tensor) -> None:
    """A second batch tensor that the prior depends on."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(x.sum(-1), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def covariate_density(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The prior mean moves with x."""
    return normal(z[..., 0], x.sum(-1), 1.0) + normal(y, z[..., 0], 1.0)


def markov(y: Tensor) -> None:
    """Time steps inside a datum: a random walk, observed with noise."""
    with pyro.plate("data", len(y)):
        z: Tensor | float = 0.0
        for time in pyro.markov(range(3)):
            z = pyro.sample(f"z_{time}", dist.Normal(z, 1.0))
            pyro.sample(f"y_{time}", dist.Normal(z, 0.5), obs=y[:, time])


def markov_density(z: Tensor, y: Tensor) -> Tensor:
    """Steps of the walk, and their noise."""
    before = torch.cat([torch.zeros_like(z[..., :1]), z[..., :-1]], dim=-1)
    return (normal(z, before, 1.0) + normal(y, z, 0.5)).sum(-1)


def subsampled(y: Tensor) -> None:
    """A plate that subsamples by itself, with fewer data than there are repeated rows."""
    with pyro.plate("data", 6, subsample_size=len(y)):
        z = pyro.sample("z", dist.Normal(0.5, 2.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


class Case(NamedTuple):
    """A program, a maker of data for it, its latents per datum, and its density by hand."""

    program: ProgramLike
    data: Callable[[], Batch]
    latents: int
    density: Callable[..., Tensor]


def vectors(size: int) -> Callable[[], Batch]:
    """Makes data of so many features."""
    return lambda: (torch.randn(NUM_DATA, size),)


def numbers() -> Batch:
    """One number per datum."""
    return (torch.randn(NUM_DATA),)


CASES = {
    "factor-analysis": Case(factor_analysis, vectors(4), 2, factor_analysis_density),
    "scalar": Case(scalar, numbers, 1, scalar_density),
    "dependent": Case(dependent, numbers, 3, dependent_density),
    "gamma": Case(gamma, lambda: (torch.arange(NUM_DATA) * 1.0,), 1, gamma_density),
    "dirichlet": Case(dirichlet, lambda: (torch.arange(NUM_DATA) % 3,), 2, dirichlet_density),
    "interval": Case(interval, numbers, 2, interval_density),
    "inner-plate": Case(inner_plate, vectors(3), 3, inner_plate_density),
    "outer-data": Case(outer_data, vectors(3), 7, outer_data_density),
    "missing": Case(
        missing, lambda: (*numbers(), torch.arange(NUM_DATA) % 2 == 0), 1, missing_density
    ),
    "scaled": Case(scaled, numbers, 1, scalar_density),
    "scaled-from-outside": Case(poutine.scale(scalar, 0.1), numbers, 1, scalar_density),
    "factor": Case(factor, numbers, 1, factor_density),
    "covariate": Case(covariate, lambda: (*numbers(), *vectors(2)()), 1, covariate_density),
    "markov": Case(markov, vectors(3), 3, markov_density),
    "subsampled": Case(subsampled, numbers, 1, scalar_density),
}
