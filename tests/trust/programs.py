"""Programs with data drawn from them, and log p(y) in closed form or on a dense grid."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

import pyro_vae as pv
from pyro_vae._types import ProgramLike


@dataclass(frozen=True)
class Known:
    """A program, data, and log p(y) of each.

    Arguments:
        model: The program.
        batch: Data that it simulated.
        log_p: `(batch,)`, in nats.
        sampled: Whether it is asked without the closed form and quadrature, to try the other ways.
    """

    model: ProgramLike
    batch: tuple[Tensor, ...]
    log_p: Tensor
    sampled: bool = False


def _integral(log_joint: Tensor, points: Tensor) -> Tensor:
    """Of densities on a fine, even grid, the first axis."""
    return log_joint.logsumexp(dim=0) + (points[1] - points[0]).log().flatten()[0]


def _line(start: float, end: float, number: int = 20_001) -> Tensor:
    return torch.linspace(start, end, number)[:, None]


def student_location(num: int) -> Known:
    """Five measurements with outliers of one location."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 3.0))
            repeated = dist.StudentT(3.0, z[..., None].expand(*z.shape, 5), 1.0)
            pyro.sample("y", repeated.to_event(1), obs=y)

    y = 3 * torch.randn(num, 1) + torch.distributions.StudentT(3.0).sample((num, 5)).to(
        torch.get_default_dtype()
    )
    grid = _line(-25, 25)
    likelihood = sum(dist.StudentT(3.0, grid, 1.0).log_prob(part) for part in y.T)
    return Known(model, (y,), _integral(dist.Normal(0.0, 3.0).log_prob(grid) + likelihood, grid))


def funnel(num: int) -> Known:
    """Three locations whose scale is a latent, too."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            v = pyro.sample("v", dist.Normal(y.new_zeros(()), 1.5))
            x = pyro.sample("x", dist.Normal(y.new_zeros(3), v.exp()[..., None]).to_event(1))
            pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    spread = lambda v: ((2 * v).exp() + 1).sqrt()  # noqa: E731
    y = torch.randn(num, 3) * spread(1.5 * torch.randn(num, 1))
    grid = _line(-12, 12)
    likelihood = sum(dist.Normal(0.0, spread(grid)).log_prob(part) for part in y.T)
    log_p = _integral(dist.Normal(0.0, 1.5).log_prob(grid) + likelihood, grid)
    return Known(model, (y,), log_p)


def horseshoe(num: int) -> Known:
    """Three effects that are nearly 0 or large, each with a scale of its own: three funnels."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            scale = pyro.sample("scale", dist.HalfCauchy(y.new_ones(3)).to_event(1))
            effect = pyro.sample("effect", dist.Normal(0.0, scale).to_event(1))
            pyro.sample("y", dist.Normal(effect, 1.0).to_event(1), obs=y)

    y = torch.randn(num, 3) * (1 + dist.HalfCauchy(torch.ones(num, 3)).sample() ** 2).sqrt()
    y[:: max(1, num // 10)] = torch.tensor([5.0, 0.0, 0.0])
    grid = _line(-25, 25)
    spread, prior = (1 + (2 * grid).exp()).sqrt(), dist.HalfCauchy(1.0).log_prob(grid.exp()) + grid
    parts = [_integral(prior + dist.Normal(0.0, spread).log_prob(part), grid) for part in y.T]
    return Known(model, (y,), torch.stack(parts).sum(dim=0))


def non_centred(num: int) -> Known:
    """The horseshoe, with effects in units of their scales."""
    known = horseshoe(num)
    model = poutine.reparam(known.model, config={"effect": LocScaleReparam(0.0)})
    return replace(known, model=model)


def folded(num: int, latents: int, seen: int, sigma: float) -> Known:
    """The sign of some of the latents is not seen: 2 to that power modes."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(latents), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z[..., :seen].abs(), sigma).to_event(1), obs=y)

    y = torch.randn(num, seen).abs() + sigma * torch.randn(num, seen)
    spread = (1 + sigma**2) ** 0.5
    positive = torch.special.log_ndtr(y / (sigma * spread))
    log_p = (math.log(2) + dist.Normal(0.0, spread).log_prob(y) + positive).sum(dim=-1)
    return Known(model, (y,), log_p)


def far_modes(num: int, sigma: float = 0.25, narrow: float = 0.1) -> Known:
    """Two modes of a prior that is far from 0, and two latents that the data determine."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            m = pyro.sample("m", dist.Normal(y.new_tensor(10.0), 5.0))
            z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
            mean = torch.cat([(m - 10).abs().unsqueeze(-1), z], dim=-1)
            scale = y.new_tensor([sigma, narrow, narrow])
            pyro.sample("y", dist.Normal(mean, scale).to_event(1), obs=y)

    first = 5 * torch.randn(num).abs() + sigma * torch.randn(num)
    others = torch.randn(num, 2) + narrow * torch.randn(num, 2)
    spread = (25 + sigma**2) ** 0.5
    positive = torch.special.log_ndtr(5 * first / (sigma * spread))
    log_p = math.log(2) + dist.Normal(0.0, spread).log_prob(first) + positive
    log_p = log_p + dist.Normal(0.0, (1 + narrow**2) ** 0.5).log_prob(others).sum(dim=-1)
    return Known(model, (torch.cat([first.unsqueeze(-1), others], dim=-1),), log_p)


def ring(num: int, frequency: float = 8.0, sigma: float = 0.1) -> Known:
    """A point of a circle that goes round several times."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            circle = torch.stack([(frequency * z).cos(), (frequency * z).sin()], dim=-1)
            pyro.sample("y", dist.Normal(circle, sigma).to_event(1), obs=y)

    angle = frequency * torch.randn(num)
    y = torch.stack([angle.cos(), angle.sin()], dim=-1) + sigma * torch.randn(num, 2)
    grid = _line(-7, 7)
    parts = ((frequency * grid).cos(), (frequency * grid).sin())
    likelihood = sum(
        dist.Normal(part, sigma).log_prob(seen) for part, seen in zip(parts, y.T, strict=True)
    )
    return Known(model, (y,), _integral(dist.Normal(0.0, 1.0).log_prob(grid) + likelihood, grid))


def _apart(
    num: int, latents: int, conditional: Callable[[Tensor], dist.TorchDistribution]
) -> Known:
    """Latents that are each seen once: log p is a sum of integrals over one."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(latents), 1.0).to_event(1))
            pyro.sample("y", conditional(z).to_event(1), obs=y)

    y = conditional(torch.randn(num, latents)).sample()
    # Points about the maximum of each, in units of its curvature.
    z = torch.zeros(num, latents)
    joint = lambda z: dist.Normal(0.0, 1.0).log_prob(z) + conditional(z).log_prob(y)  # noqa: E731
    start = torch.linspace(-6, 6, 4001)[:, None, None].expand(-1, num, latents)
    z = start.gather(0, joint(start).argmax(dim=0, keepdim=True))[0]
    for _ in range(60):
        z = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(joint(z).sum(), z, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), z)
        with torch.no_grad():
            moved = z + (slope / bend.abs()).clamp(-0.1, 0.1)
            z = torch.where(joint(moved) > joint(z), moved, z)
    scale = bend.abs().rsqrt()
    offsets = torch.linspace(-14, 14, 8001)[:, None, None]
    values = joint(z + offsets * scale).logsumexp(dim=0) + (scale * 28 / 8000).log()
    return Known(model, (y,), values.sum(dim=-1).detach())


def skewed_counts(num: int) -> Known:
    """Three log rates, each of which one small count tells of."""
    return _apart(num, 3, lambda z: dist.Poisson((0.3 + 1.2 * z).exp()))


def near_deterministic(num: int) -> Known:
    """Three latents, seen through a bend with hardly any noise."""
    return _apart(num, 3, lambda z: dist.Normal(z + 0.1 * z**3, 1e-3))


def correlated(num: int, latents: int) -> Known:
    """A linear Gaussian program, the prior of which is correlated."""
    place = torch.arange(float(latents))
    covariance = 0.8 ** (place[:, None] - place).abs()
    loadings = 1.5 * torch.randn(latents, latents) / latents**0.5
    prior = dist.MultivariateNormal(torch.zeros(latents), covariance)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z @ loadings.T, 0.5).to_event(1), obs=y)

    total = loadings @ covariance @ loadings.T + 0.25 * torch.eye(latents)
    marginal = dist.MultivariateNormal(torch.zeros(latents), total)
    y = marginal.sample((num,))
    return Known(model, (y,), marginal.log_prob(y), sampled=True)


def beta_binomial(num: int) -> Known:
    """A share near an edge, in unconstrained space with exponential tails."""
    a, b = torch.tensor(0.7), torch.tensor(1.3)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            share = pyro.sample("share", dist.Beta(a, b))
            pyro.sample("y", dist.Binomial(12, share), obs=y)

    y = dist.BetaBinomial(a, b, 12).sample((num,))
    return Known(model, (y,), dist.BetaBinomial(a, b, 12).log_prob(y))


def gamma_exponential(num: int) -> Known:
    """A rate, and three waiting times."""
    shape = torch.tensor(1.5)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            rate = pyro.sample("rate", dist.Gamma(shape, 1.0))
            waits = dist.Exponential(rate[..., None].expand(*rate.shape, 3))
            pyro.sample("y", waits.to_event(1), obs=y)

    rate = dist.Gamma(shape, 1.0).sample((num, 1))
    y = dist.Exponential(rate.expand(num, 3)).sample()
    log_p = (shape + 3).lgamma() - shape.lgamma() - (shape + 3) * (1 + y.sum(dim=-1)).log()
    return Known(model, (y,), log_p)


def sparse_rates(num: int) -> Known:
    """Three rates that are nearly 0 or large, and one small count of each."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            prior = dist.Gamma(y.new_full((3,), 0.05), 1.0)
            rates = pyro.sample("rates", prior.to_event(1))
            pyro.sample("y", dist.Poisson(rates).to_event(1), obs=y)

    marginal = dist.GammaPoisson(torch.tensor(0.05), torch.tensor(1.0))
    y = marginal.sample((num, 3))
    y[: num // 2, 0] = 1.0  # a datum without any count tells of the prior alone
    return Known(model, (y,), marginal.log_prob(y).sum(dim=-1))


def dirichlet_multinomial(num: int) -> Known:
    """Shares of four kinds."""
    concentration = torch.tensor([0.5, 1.0, 3.0, 2.0])

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            shares = pyro.sample("shares", dist.Dirichlet(concentration))
            pyro.sample("y", dist.Multinomial(15, probs=shares), obs=y)

    y = torch.stack(
        [
            dist.Multinomial(15, probs=shares).sample()
            for shares in dist.Dirichlet(concentration).sample((num,))
        ]
    )
    return Known(model, (y,), dist.DirichletMultinomial(concentration, 15).log_prob(y))


def discrete_and_continuous(num: int) -> Known:
    """A mixture of three normals, seen with noise."""
    share, loc = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([-2.0, 0.0, 3.0])
    scale = torch.tensor([0.5, 1.0, 0.7])

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            kind = pyro.sample("kind", dist.Categorical(share), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(loc[kind], scale[kind]))
            pyro.sample("y", dist.Normal(z, 0.8), obs=y)

    kind = dist.Categorical(share).sample((num,))
    spread = (scale**2 + 0.64).sqrt()
    y = dist.Normal(loc[kind], spread[kind]).sample()
    log_p = (share.log() + dist.Normal(loc, spread).log_prob(y[:, None])).logsumexp(dim=-1)
    return Known(model, (y,), log_p)


def covariates(num: int) -> Known:
    """Counts whose rate depends on what is known of each."""

    def model(y: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(x[..., 0], 1.0))
            pyro.sample("y", dist.Poisson((x[..., 1] + 0.7 * z).exp()), obs=y)

    x = torch.randn(num, 2)
    y = dist.Poisson((x[:, 1] + 0.7 * (x[:, 0] + torch.randn(num))).exp()).sample()
    grid = _line(-14, 14)
    likelihood = dist.Poisson((x[:, 1] + 0.7 * grid).exp()).log_prob(y)
    return Known(
        model, (y, x), _integral(dist.Normal(x[:, 0], 1.0).log_prob(grid) + likelihood, grid)
    )


def holes(num: int) -> Known:
    """Six binary features of three latents, of which 30 percent are missing."""
    loadings, offsets = 1.3 * torch.randn(6, 3), 0.5 * torch.randn(6)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            features = dist.Bernoulli(logits=z @ loadings.T + offsets)
            pyro.sample("y", pv.PartlyObserved(features).to_event(1), obs=y)

    y = dist.Bernoulli(logits=torch.randn(num, 3) @ loadings.T + offsets).sample()
    hole = torch.rand(num, 6) < 0.3
    hole[hole.all(dim=1), 0] = False  # a row without any entry is refused
    line = torch.linspace(-7, 7, 71)
    grid = torch.cartesian_prod(line, line, line)
    weight = dist.Normal(0.0, 1.0).log_prob(grid).sum(dim=-1) + 3 * math.log(14 / 70)
    logits = grid @ loadings.T + offsets
    yes, no = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    seen = (~hole).to(y)
    log_p = torch.stack(
        [
            (weight + yes @ (row * mask) + no @ ((1 - row) * mask)).logsumexp(dim=0)
            for row, mask in zip(y, seen, strict=True)
        ]
    )
    return Known(model, (y.masked_fill(hole, torch.nan),), log_p)


def series(num: int, times: int = 8) -> Known:
    """A state that moves by itself, seen with noise at eight times."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = y.new_zeros(len(y))
            for time in range(times):
                z = pyro.sample(f"z_{time}", dist.Normal(0.9 * z, 0.5))
                pyro.sample(f"y_{time}", dist.Normal(z, 0.4), obs=y[..., time])

    step = torch.eye(times) - 0.9 * torch.diag(torch.ones(times - 1), -1)
    root = torch.linalg.inv(step) * 0.5
    marginal = dist.MultivariateNormal(torch.zeros(times), root @ root.T + 0.16 * torch.eye(times))
    y = marginal.sample((num,))
    return Known(model, (y,), marginal.log_prob(y), sampled=True)


PROGRAMS: dict[str, Callable[[int], Known]] = {
    "student-location": student_location,
    "funnel": funnel,
    "horseshoe": horseshoe,
    "non-centred-horseshoe": non_centred,
    "2-modes": lambda num: folded(num, 3, 1, 0.25),
    "16-modes": lambda num: folded(num, 4, 4, 0.1),
    "far-modes": far_modes,
    "ring": ring,
    "skewed-counts": skewed_counts,
    "near-deterministic": near_deterministic,
    "10-correlated": lambda num: correlated(num, 10),
    "20-correlated": lambda num: correlated(num, 20),
    "beta-binomial": beta_binomial,
    "gamma-exponential": gamma_exponential,
    "dirichlet-multinomial": dirichlet_multinomial,
    "sparse-rates": sparse_rates,
    "discrete-continuous": discrete_and_continuous,
    "covariates": covariates,
    "holes": holes,
    "series": series,
}

SHARES = {"horseshoe": 0.2, "non-centred-horseshoe": 0.2}
"""Of the data of other programs: each takes a second and more."""
