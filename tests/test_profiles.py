"""Profiles of posterior and proposal along lines: what draws are expected to miss."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate
from scipy.stats import norm
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence.profiles import steepest_lines, unreached_share
from pyro_vae.results import Doubt

pytestmark = pytest.mark.usefixtures("float64")

NODES = torch.linspace(-12, 12, 2001)


def normal(scale: float, loc: float = 0.0) -> Tensor:
    """Log density at the nodes, `(nodes, 1)`."""
    return dist.Normal(loc, scale).log_prob(NODES).unsqueeze(1).double()


@pytest.mark.parametrize(("scale", "loc"), [(0.7, 0.0), (0.9, 0.3), (2.0, 0.0)])
def test_share_is_the_integral(scale: float, loc: float) -> None:
    """Of N(0, 1) under draws of another normal, to the accuracy of the sum over nodes."""
    num = 1000
    p, q = norm(), norm(loc, scale)

    def missed(t: float) -> float:
        tail = min(q.cdf(t), q.sf(t))
        return float(max(0.0, p.pdf(t) - q.pdf(t)) * math.exp(-num * tail))

    exact = sum(integrate.quad(missed, *ends)[0] for ends in ((-12, -1), (-1, 1), (1, 12)))
    share = unreached_share(normal(1.0), normal(scale, loc), torch.ones(2001), num)
    torch.testing.assert_close(share, torch.tensor([exact]), rtol=2e-3, atol=1e-9)


def test_nothing_is_missed_by_equal_densities() -> None:
    """Whatever lies beyond the draws has a weight like theirs; a constant is no matter."""
    share = unreached_share(normal(1.0) + 700, normal(1.0), torch.ones(2001), 100)
    assert float(share) < 1e-9
    assert float(unreached_share(normal(1.0), normal(0.7), torch.ones(2001), 100)) > 0.01


def test_nan_is_no_mass() -> None:
    """A program that fails far out has nothing there."""
    broken = normal(1.0)
    broken[:300] = torch.nan
    share = unreached_share(broken, normal(1.0), torch.ones(2001), 100)
    assert float(share) < 1e-9


def test_lines_follow_the_longest_axis() -> None:
    """Under a mean-field proposal of correlated normals, the diagonal; scales are the draws'."""
    z = torch.randn(4000, 1, 2) * torch.tensor([1.0, 10.0])
    u = z / torch.tensor([1.0, 10.0])
    lines = steepest_lines(z, 0.5 * u.prod(dim=-1))  # Hessian with eigenvalues of -1/2 and 1/2
    for place in (1, 2):
        along = lines.directions[place, 0] / torch.tensor([1.0, 10.0])
        cosine = along.sum().abs() / (along.norm() * math.sqrt(2))
        assert float(cosine) > 0.95


@dataclass(frozen=True)
class Guided:
    """A model of one latent, and a normal guide for its data."""

    log_joint: Callable[[Tensor], Tensor]
    scale: float

    def result(self, num_samples: int = 2000) -> pv.evidence.LogMarginal:
        """Importance sampling of fifty copies of one datum, each with draws of its own."""

        def model(y: Tensor) -> None:
            with pyro.plate("data", len(y)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.factor("y", self.log_joint(z) - dist.Normal(0.0, 1.0).log_prob(z))

        def guide(y: Tensor) -> None:
            with pyro.plate("data", len(y)):
                pyro.sample("z", dist.Normal(torch.zeros(len(y)), self.scale))

        method = pv.ImportanceSampling(num_samples, compile=False)
        return pv.log_marginal_likelihood(model, guide, torch.zeros(50), method)


def log_normal(z: Tensor) -> Tensor:
    """N(0, 1)."""
    return dist.Normal(0.0, 1.0).log_prob(z)


def log_skewed(z: Tensor) -> Tensor:
    """A Gumbel density with mean 0 and variance 1, whose right tail is exponential."""
    x = z * math.pi / math.sqrt(6) + 0.57721566
    return -x - (-x).exp() + math.log(math.pi / math.sqrt(6))


def log_two_modes(z: Tensor) -> Tensor:
    """N(0, 1), and a ten-thousandth of the mass in N(12, 1)."""
    far = dist.Normal(12.0, 1.0).log_prob(z) + math.log(1e-4)
    return torch.logaddexp(dist.Normal(0.0, 1.0).log_prob(z) + math.log(1 - 1e-4), far)


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
@pytest.mark.parametrize(
    ("log_joint", "scale"),
    [(log_skewed, 1.0), (log_normal, 0.6), (log_two_modes, 1.0)],
    ids=["skewed", "narrow", "two modes"],
)
def test_runs_that_look_harmless_are_doubted(
    log_joint: Callable[[Tensor], Tensor], scale: float
) -> None:
    """Log p is 0, of two modes too. By their weights alone more pass.

    Where one in twenty is off, more than five of fifty are with a probability of 0.04, but at most
    twenty pass, of which more than five are with one of 3e-4; the draws are always the same.
    """
    result = Guided(log_joint, scale).result(1000)
    off = result.value.abs() > 1.96 * result.error
    assert int((off & result.reliable).sum()) <= 5
    assert bool(result.doubts[Doubt.UNREACHED].any())


@pytest.mark.parametrize("scale", [1.0, 1.001, 1.3])
def test_good_guides_are_not_doubted(scale: float) -> None:
    """Nearly equal weights, and guides that are wider than the posterior."""
    result = Guided(log_normal, scale).result(1000)
    assert bool(result.reliable.all())


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
def test_a_program_that_fails_far_out_is_still_asked() -> None:
    """What only a profile reaches stops nothing: the verdict is that of the weights."""

    def fails(z: Tensor) -> Tensor:
        if bool((z.abs() > 9).any()):
            raise RuntimeError("no root")
        return log_normal(z)

    result = Guided(fails, 1.1).result(500)
    assert bool(result.reliable.all())
    assert not bool(result.doubts[Doubt.UNREACHED].any())
