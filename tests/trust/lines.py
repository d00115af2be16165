"""Programs of one latent, whose ELBO and posterior are known by sums over a fine grid.

They differ in their tails: of a Gaussian, exponential, e^(-e^u), or a power law. Every other number
about them comes from plain distributions and not from pyro_vae.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

_FAR = 38.0  # standard deviations of the grid of a Gaussian's mean
_POINTS = 20_001


@dataclass(frozen=True, eq=False)
class Line:
    """A program z ~ prior, y ~ likelihood(z), with the unconstrained latent u = f^-1(z).

    Arguments:
        prior: Distribution of the latent.
        likelihood: Distribution of one datum, given latents of any shape.
        ends: Of a grid of u with all of the posterior's mass.
        spacing: 0 for an even grid; otherwise points lie as far apart as `spacing` near 0, and
            farther apart in proportion to their distance from 0.
    """

    prior: dist.TorchDistribution
    likelihood: Callable[[Tensor], dist.TorchDistribution]
    ends: tuple[float, float]
    spacing: float = 0.0

    def model(self, y: Tensor) -> None:
        """The program, as pyro_vae sees it."""
        with pyro.plate("data", len(y)):
            pyro.sample("y", self.likelihood(pyro.sample("z", self.prior)), obs=y)

    def simulate(self, name: str, number: int, seed: int = 0) -> Tensor:
        """Data of the program; the same for the same name, number and seed."""
        torch.manual_seed(zlib.crc32(name.encode()) + seed)
        drawn: Tensor = self.likelihood(self.prior.sample((number,))).sample()
        return drawn

    def log_joint(self, u: Tensor, y: Tensor) -> Tensor:
        """Log density of u and y: `(points, data)` for u `(points, data)` or `(points, 1)`."""
        support = self.prior.support  # torch does not transform the support of a mixture
        to = torch.distributions.biject_to(getattr(support, "base_constraint", support))
        z = to(u)
        prior = self.prior.log_prob(z) + to.log_abs_det_jacobian(u, z)
        return prior + self.likelihood(z.expand(len(u), len(y))).log_prob(y)

    @cached_property
    def _grid(self) -> tuple[Tensor, Tensor]:
        """Points and the logs of their widths, each `(points, 1)`."""
        if not self.spacing:
            points = torch.linspace(*self.ends, _POINTS)[:, None]
            return points, torch.full_like(points, (points[1] - points[0]).log().item())
        first, last = (math.asinh(end / self.spacing) for end in self.ends)
        angle = torch.linspace(first, last, _POINTS)
        width = self.spacing * angle.cosh() * (angle[1] - angle[0])
        return (self.spacing * angle.sinh())[:, None], width.log()[:, None]

    def posterior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of u for every datum."""
        points, width = self._grid
        shares = (self.log_joint(points, y) + width).softmax(dim=0)
        mean = (shares * points).sum(dim=0)
        return mean, (shares * (points - mean).square()).sum(dim=0).sqrt()

    def elbo(self, y: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
        """The ELBO of the guide N(mean, sd) for every datum."""
        noise = torch.linspace(-_FAR, _FAR, _POINTS)[:, None]
        shares = (-noise.square() / 2).softmax(dim=0)
        joint = (shares * self.log_joint(mean + sd * noise, y)).sum(dim=0)
        return joint + sd.log() + (1 + math.log(2 * math.pi)) / 2


def _mixture(loc: list[float], scale: list[float], share: float) -> dist.TorchDistribution:
    parts = dist.Normal(torch.tensor(loc), torch.tensor(scale))
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor([share, 1 - share])), parts)


def _several(z: Tensor, times: int) -> Tensor:
    return z[..., None].expand(*z.shape, times)


def ordinary() -> dict[str, Line]:
    """Thirteen programs, by name; float64 must be the default dtype."""
    one, normal = torch.tensor(1.0), dist.Normal
    return {
        "log-normal counts": Line(normal(0 * one, 1.0), lambda z: dist.Poisson(z.exp()), (-12, 8)),
        "angle": Line(normal(0 * one, 1.5), lambda z: dist.VonMises(2 * z, 4.0), (-15, 15)),
        "outliers": Line(normal(0.7 * one, 1.3), lambda z: dist.StudentT(3.0, z, 0.5), (-14, 15)),
        "two groups": Line(
            _mixture([-3.0, 1.0], [0.3, 1.0], 0.2), lambda z: normal(z, 1.0), (-12, 12)
        ),
        "spike and slab": Line(
            _mixture([0.0, 0.0], [0.05, 3.0], 0.5), lambda z: normal(z, 0.5), (-30, 30)
        ),
        "Cauchy prior": Line(
            dist.Cauchy(0 * one, 1.0), lambda z: dist.StudentT(4.0, z, 1.0), (-1e5, 1e5), 0.01
        ),
        "square": Line(normal(0.3 * one, 1.0), lambda z: normal(z**2, 0.3), (-8, 8)),
        "share": Line(dist.Uniform(0 * one, 1.0), lambda z: normal(z, 0.1), (-35, 35)),
        "share of counts": Line(
            dist.Beta(one / 2, one / 2), lambda z: dist.Binomial(5, probs=z), (-80, 35)
        ),
        "rate": Line(
            dist.Gamma(one / 2, one), lambda z: dist.Poisson(_several(z, 2)).to_event(1), (-70, 6)
        ),
        "positive": Line(dist.HalfNormal(one), lambda z: normal(z, 0.5), (-40, 4)),
        "scale": Line(
            dist.HalfCauchy(one), lambda z: normal(0.0, _several(z, 3)).to_event(1), (-25, 35)
        ),
        "bounded scale": Line(
            dist.Beta(2 * one, 2.0), lambda z: normal(0.0, _several(z, 6)).to_event(1), (-25, 35)
        ),
    }


def _power(prior: float, likelihood: float) -> Line:
    """A Student t prior and likelihood: the density falls as a power of the latent."""
    return Line(
        dist.StudentT(torch.tensor(prior), 0.0, 1.0),
        lambda z: dist.StudentT(likelihood, z, 1.0),
        (-1e6, 1e6),
        0.01,
    )


def heavy() -> dict[str, Line]:
    """Posteriors whose density falls as a power of the latent, by the negative power."""
    freedoms = ((1.0, 1.5), (1.0, 2.0), (2.0, 2.0), (1.0, 3.0), (1.0, 4.0), (4.0, 4.0))
    return {f"{a + b + 2:g} of t({a:g}), t({b:g})": _power(a, b) for a, b in freedoms}


def flat() -> dict[str, Line]:
    """Posteriors whose density falls as a power that the likelihood does not raise."""

    def near_or_anywhere(z: Tensor) -> dist.TorchDistribution:
        either = dist.Normal(torch.stack([z, 0 * z], dim=-1), torch.tensor([1.0, 5.0]))
        return dist.MixtureSameFamily(dist.Categorical(torch.full((*z.shape, 2), 0.5)), either)

    return {
        f"{a + 1:g} of t({a:g})": Line(
            dist.StudentT(torch.tensor(a), 0.0, 1.0), near_or_anywhere, (-1e7, 1e7), 0.01
        )
        for a in (2.5, 3.0, 4.0)
    }
