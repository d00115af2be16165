"""Profiles of posterior and proposal along lines: what draws are expected to miss."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate
from scipy.stats import chi2, norm
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence.profiles import (
    Quadratic,
    steepest_lines,
    unreached_by_normal,
    unreached_share,
)
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
    lines, _ = steepest_lines(z, 0.5 * u.prod(dim=-1))  # Hessian with eigenvalues of -1/2 and 1/2
    for place in (1, 2):
        along = lines.directions[place, 0] / torch.tensor([1.0, 10.0])
        cosine = along.sum().abs() / (along.norm() * math.sqrt(2))
        assert float(cosine) > 0.95


def exact_share(scale: float, latent_dim: int, num: int) -> float:
    """Of N(0, I) under draws of N(0, scale² I): the weights depend on the radius alone."""

    def missed(square: float) -> float:
        log_weight = latent_dim * math.log(scale) + square * (scale**-2 - 1) / 2
        outside = (chi2.sf if scale < 1 else chi2.cdf)(square / scale**2, latent_dim)
        share = max(0.0, -math.expm1(-log_weight)) * math.exp(-num * outside)
        return float(share * chi2.pdf(square, latent_dim))

    ends = ((0, 0.01), (0.01, 1), (1, 20), (20, 90))
    return sum(float(integrate.quad(missed, *some)[0]) for some in ends)


@pytest.mark.parametrize("scale", [0.6, 0.8, 0.9, 1.3])
@pytest.mark.parametrize("latent_dim", [2, 10])
def test_share_in_all_dimensions_is_the_integral(scale: float, latent_dim: int) -> None:
    """Of radii, to the accuracy of a thousand points; of ten dimensions a line sees a part."""
    slope, curvature = torch.zeros(1, latent_dim), torch.full((1, latent_dim), 1 - scale**2)
    share = unreached_by_normal(Quadratic(slope, curvature, torch.zeros(1)), 1000)
    exact = exact_share(scale, latent_dim, 1000)
    torch.testing.assert_close(share, torch.tensor([exact]), rtol=0.1, atol=2e-4)
    if latent_dim == 10 and scale < 1:
        along = unreached_share(normal(1.0), normal(scale), torch.ones(2001), 1000)
        assert float(along) < 0.6 * exact


def test_a_shift_is_missed_along_one_dimension() -> None:
    """Log weights of N(3, 1) under N(0, 1) beside nine equal dimensions, as along the line."""
    slope = torch.zeros(1, 10)
    slope[0, 4] = 3.0
    share = unreached_by_normal(Quadratic(slope, torch.zeros(1, 10), torch.zeros(1)), 1000)
    line = unreached_share(normal(1.0, 3.0), normal(1.0), torch.ones(2001), 1000)
    torch.testing.assert_close(share, line, rtol=0.05, atol=0)


def test_the_quadratic_is_found() -> None:
    """Slope and curvature of quadratic log weights along axes of their own; it holds everywhere."""
    z = torch.randn(2000, 3, 10)
    z = z - z.mean(dim=0)
    axes = torch.linalg.qr(torch.randn(10, 10)).Q
    curvature = torch.linspace(-0.6, 0.7, 10)
    _, fit = steepest_lines(z, (z @ axes).square() @ curvature / 2 + 0.5 * z[..., 0])
    covariance = torch.einsum("kni,knj->nij", z, z) / len(z)
    trace = torch.einsum("nij,ij->n", covariance, axes * curvature @ axes.T)
    torch.testing.assert_close(fit.curvature.sum(dim=1), trace, rtol=0, atol=0.02)
    slope = fit.slope.square().sum(dim=1)
    torch.testing.assert_close(slope, 0.25 * covariance[:, 0, 0], rtol=0.05, atol=0)
    assert float(fit.excess.max()) < 0.02


def test_what_ends_is_not_missed() -> None:
    """Half of a normal distribution under draws of the whole: the slope of a step goes nowhere."""
    z = torch.randn(2000, 1, 3)
    _, fit = steepest_lines(z, torch.where(z[..., 0] > 0, 0.0, -torch.inf))
    assert float(fit.excess) > 5
    assert float(unreached_by_normal(fit, 1000)) < 1e-3
    assert float(unreached_by_normal(fit._replace(excess=torch.zeros(1)), 1000)) > 0.5


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


def in_ten_dimensions(scale: float, num_data: int) -> pv.evidence.LogMarginal:
    """Log p of a standard normal posterior, 0, by draws of one of another scale."""
    standard = dist.Normal(torch.zeros(10), 1.0).to_event(1)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", standard)
            pyro.factor("y", torch.zeros(len(y)))

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(torch.zeros(len(y), 10), scale).to_event(1))

    method = pv.ImportanceSampling(1000, compile=False)
    return pv.log_marginal_likelihood(model, guide, torch.zeros(num_data), method)


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
def test_too_narrow_in_every_direction_is_doubted() -> None:
    """A tenth of the posterior is missed, of which a line sees a fifth.

    Of the few runs that look good no more than one is off: they are eight by their weights, of
    which two are off with a probability of 0.06 where one in twenty is, and always the same.
    """
    result = in_ten_dimensions(0.7, 300)
    off = result.value.abs() > 1.96 * result.error
    assert int((off & result.reliable).sum()) <= 1
    assert bool(result.doubts[Doubt.UNREACHED].any())


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_good_guides_of_many_latents_are_not_doubted(scale: float) -> None:
    """Equal weights, and guides a little wider than the posterior in each of ten dimensions."""
    assert bool(in_ten_dimensions(scale, 50).reliable.all())


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
