"""Points that draws do not choose: what the draws are expected to miss of a posterior."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate
from scipy.stats import chi2, norm, t
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence.unreached import _Grid, _grids, _log_placed, _placed, unreached_share
from pyro_vae.randomness import row_keys
from pyro_vae.results import Doubt
from tests.helpers.statistics import FALSE_ALARM

pytestmark = pytest.mark.usefixtures("float64")

NODES = torch.linspace(-12, 12, 2001)
NUMBER = torch.full((2001, 1), math.log(2000 / 24), dtype=torch.float64)


def normal(scale: float, loc: float = 0.0) -> Tensor:
    """Log density at the nodes, `(nodes, 1)`."""
    return dist.Normal(loc, scale).log_prob(NODES).unsqueeze(1).double()


def share_on_grid(posterior: Tensor, proposal: Tensor, num_samples: int = 100) -> float:
    """Of the nodes, in which there is no chance."""
    return float(unreached_share(posterior, proposal, NUMBER, num_samples=num_samples).value)


@pytest.mark.parametrize(("scale", "loc"), [(0.7, 0.0), (0.9, 0.0), (1.0, 0.4)])
def test_share_is_the_integral(scale: float, loc: float) -> None:
    """Of N(0, 1) under draws of another normal, to the accuracy of the sum over nodes.

    Larger weights lie beyond -t and t, or to one side.
    """
    num, p, q = 1000, norm(), norm(loc, scale)

    def missed(t: float) -> float:
        tail = 2 * q.sf(abs(t)) if loc == 0 else q.cdf(t)
        return float(max(0.0, p.pdf(t) - q.pdf(t)) * math.exp(-num * tail))

    exact = sum(integrate.quad(missed, *ends)[0] for ends in ((-12, -1), (-1, 1), (1, 12)))
    share = share_on_grid(normal(1.0), normal(scale, loc), num)
    assert share == pytest.approx(exact / (1 + exact), rel=5e-3, abs=1e-9)


def test_nothing_is_missed_by_equal_densities() -> None:
    """Whatever the draws do not reach has a weight like theirs."""
    assert share_on_grid(normal(1.0), normal(1.0)) < 1e-9
    assert share_on_grid(normal(1.0), normal(0.7)) > 0.01


def test_nan_is_no_mass() -> None:
    """A program that fails far out has nothing there."""
    broken = normal(1.0)
    broken[:300] = torch.nan
    assert share_on_grid(broken, normal(1.0)) < 1e-9


@pytest.mark.parametrize("height", [800.0, 1e37, math.inf])
def test_a_density_above_every_number_is_missed(height: float) -> None:
    """A program whose density is wrong far out: the share is near 1, and no nan."""
    broken = normal(1.0)
    broken[:3] = height
    assert share_on_grid(broken, normal(1.0)) == pytest.approx(1.0)


def test_what_the_proposal_excludes_is_missed() -> None:
    """Half of a normal distribution, of which the other half is drawn: as much as was found."""
    half = normal(1.0).masked_fill(NODES.unsqueeze(1) < 0, -torch.inf) + math.log(2)
    assert share_on_grid(normal(1.0) + math.log(2), half) == pytest.approx(0.5, abs=0.01)


def exact_share(scale: float, latent_dim: int, num: int) -> float:
    """Of N(0, I) under draws of N(0, scale² I): the weights depend on the radius alone."""

    def missed(square: float) -> float:
        log_weight = latent_dim * math.log(scale) + square * (scale**-2 - 1) / 2
        outside = (chi2.sf if scale < 1 else chi2.cdf)(square / scale**2, latent_dim)
        share = max(0.0, -math.expm1(-log_weight)) * math.exp(-num * outside)
        return float(share * chi2.pdf(square, latent_dim))

    ends = ((0, 0.01), (0.01, 1), (1, 20), (20, 90))
    return sum(float(integrate.quad(missed, *some)[0]) for some in ends)


@pytest.mark.parametrize(("scale", "latent_dim"), [(0.6, 2), (0.7, 10)])
def test_share_of_random_points_is_the_integral(scale: float, latent_dim: int) -> None:
    """On average over draws of a wider normal, but for the bias of Q, of a twentieth.

    Its error is no smaller than the spread. The twin with the draws of the proposal itself misses
    what they miss.
    """
    spread = dist.Normal(torch.zeros(latent_dim), 1.4).to_event(1)
    found, own = (
        random_share(points, scale, latent_dim)
        for points in (spread, dist.Normal(torch.zeros(latent_dim), scale).to_event(1))
    )
    exact = exact_share(scale, latent_dim, 1000)
    share = found.value / (1 - found.value)
    sd = float(share.std())
    chance = norm.isf(FALSE_ALARM / 2) * sd / len(share) ** 0.5
    assert abs(float(share.mean()) - exact) < 0.05 * exact + chance < 0.2 * exact
    assert 0.9 * sd < float(found.error.square().mean().sqrt()) < 2 * sd
    assert float(own.value.mean()) < 0.8 * exact


def random_share(points: dist.TorchDistribution, scale: float, latent_dim: int) -> pv.Estimate:
    """Of N(0, I) under a thousand draws of N(0, scale² I), by a thousand points."""
    z = points.sample((1000, 300))
    joint, drawn = (
        dist.Normal(torch.zeros(latent_dim), sd).to_event(1).log_prob(z) for sd in (1.0, scale)
    )
    number = points.log_prob(z) + math.log(1000)
    return unreached_share(joint, drawn, number, num_samples=1000)


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


def of_many_latents(
    log_joint: Callable[[Tensor], Tensor], loc: Tensor, scale: Tensor | float, num_data: int
) -> pv.evidence.LogMarginal:
    """Importance sampling of copies of one datum, whose prior is standard normal."""
    standard = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", standard)
            pyro.factor("y", log_joint(z) - standard.log_prob(z))

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc.expand(len(y), -1), scale).to_event(1))

    method = pv.ImportanceSampling(1000, compile=False)
    return pv.log_marginal_likelihood(model, guide, torch.zeros(num_data), method)


def in_ten_dimensions(scale: float, num_data: int) -> pv.evidence.LogMarginal:
    """Log p of a standard normal posterior, 0, by draws of one of another scale."""
    return of_many_latents(lambda z: log_normal(z).sum(-1), torch.zeros(10), scale, num_data)


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
@pytest.mark.parametrize("seen", [1, 3])
def test_a_second_mode_is_seen(seen: int) -> None:
    """Each of so many latents is seen without its sign, and the guide has one of the signs.

    By the weights alone, nearly every datum is reliable, and low by log 2 for each sign.
    """

    def log_joint(z: Tensor) -> Tensor:
        folded = dist.Normal(z[..., :seen].abs(), 0.25).log_prob(torch.tensor(1.2)).sum(-1)
        return log_normal(z).sum(-1) + folded

    precision = torch.ones(3)
    precision[:seen] += 0.25**-2
    loc = (1 - 1 / precision) * 1.2
    result = of_many_latents(log_joint, loc, precision.rsqrt(), 100)
    assert not bool(result.reliable.any())
    assert int((result.doubts[Doubt.UNREACHED] & ~result.doubts[Doubt.HEAVY_TAIL]).sum()) > 50


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
@pytest.mark.parametrize("scale", [0.25, 0.08, 0.05])
def test_a_far_mode_of_one_latent_is_seen(scale: float) -> None:
    """Nothing is random: a grid has points in every mode of a twentieth of the prior's width.

    The other mode is up to 76 standard deviations of the guide away from it.
    """

    def log_joint(z: Tensor) -> Tensor:
        return dist.Normal(z.abs(), scale).log_prob(torch.tensor(1.9)).sum(-1)

    result = of_many_latents(log_joint, torch.tensor([1.9]), torch.tensor([scale]), 50)
    assert bool(result.doubts[Doubt.UNREACHED].all())


@pytest.mark.parametrize(("center", "sd"), [(0.0, 1.0), (2.5, 0.04), (-3.0, 3.0)])
def test_two_grids_are_one_rule(center: float, sd: float) -> None:
    """It integrates normal densities as wide as either grid, or in the middle of one."""
    own, prior = (torch.tensor(pair, dtype=torch.float64) for pair in ((center, sd), (0.0, 1.0)))
    points = _grids(_Grid(own[:1], own[1:], 48), _Grid(prior[:1], prior[1:], 312))
    for loc, scale in ((center, sd), (0.0, 1.0), (0.7, 0.3)):
        density = dist.Normal(loc, scale).log_prob(points.z.squeeze(-1))
        mass = (density - points.log_placed).exp().sum()
        torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0.02, atol=0)


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
@pytest.mark.parametrize("skewed", [1, 3])
def test_skewed_posteriors_are_doubted(skewed: int) -> None:
    """Tails to one side, in one of three latents or in all of them alike.

    By the weights alone 100 to 250 of 400 are reliable, of which one in eight is off. With 5% off,
    more than a tenth of 40 to 120 are with a probability of 0.1; the draws are always the same.
    """

    def log_joint(z: Tensor) -> Tensor:
        return log_skewed(z[..., :skewed]).sum(-1) + log_normal(z[..., skewed:]).sum(-1)

    result = of_many_latents(log_joint, torch.zeros(3), 1.0, 400)
    off = (result.value.abs() > 1.96 * result.error)[result.reliable]
    assert int(off.sum()) <= 0.1 * len(off)
    assert int(result.doubts[Doubt.UNREACHED].sum()) > 100


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
def test_independent_tails_of_many_latents_are_seen() -> None:
    """Student t posteriors of eight latents, independent or alike, under normals as wide.

    Points far out in any direction seldom lie where only one latent is far out: with these alone 75
    of 800 were reliable, of which one in eight was off. With 5% off, more than a tenth of 40 are
    with a probability of 0.05; the draws are always the same.
    """
    tail = dist.StudentT(5.0, torch.zeros(()), 1.0)
    width = (5 / 3) ** 0.5
    result = of_many_latents(lambda z: tail.log_prob(z).sum(-1), torch.zeros(8), width, 800)
    off = (result.value.abs() > 1.96 * result.error)[result.reliable]
    assert int(off.sum()) <= 0.1 * len(off)


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
def test_a_ridge_across_the_latents_is_seen() -> None:
    """The mean-field guide of a normal posterior that is twice as wide along (1, ..., 1).

    The draws spread alike in all directions, and points placed as they are seldom lie on the ridge:
    with these 18 of 1,600 were reliable, of which 6 were off. Weighted draws show the ridge. With
    5% off, more than one of 3 is with a probability of 0.007; the draws are always the same.
    """
    ridge = torch.eye(6) + 0.5
    posterior = dist.MultivariateNormal(torch.zeros(6), ridge)
    width = torch.linalg.inv(ridge).diagonal().rsqrt()
    result = of_many_latents(posterior.log_prob, torch.zeros(6), width, 1600)
    off = result.value.abs() > 1.96 * result.error
    assert int((off & result.reliable).sum()) <= 1
    assert int((~result.doubts[Doubt.HEAVY_TAIL]).sum()) > 3 * int(result.reliable.sum())


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_density_of_the_points(latent_dim: int, seed: int) -> None:
    """Weights by it average to 1: of a normal, and of a wide Student t along one axis.

    The weights of 20,000 points are at most 2^(latents + 1), so that their spread is known.
    """
    keys = torch.tensor([seed], dtype=torch.int64)
    u = _placed(keys, 20_000, torch.zeros(1, 1, latent_dim))
    log_density = _log_placed(u)
    for log_target in (
        log_normal(u).sum(-1),
        dist.StudentT(6.0, 0.0, 1.2).log_prob(u[..., 0]) + log_normal(u[..., 1:]).sum(-1),
    ):
        weights = (log_target - log_density).exp()
        error = float(weights.std()) / len(weights) ** 0.5
        assert abs(float(weights.mean()) - 1) < norm.isf(FALSE_ALARM / 2) * error < 0.1


@pytest.mark.parametrize("axis", [0, 5, 11])
def test_every_axis_has_its_tails_if_there_are_more_axes_than_points(axis: int, seed: int) -> None:
    """Of the 8 points of a datum, 4 are far along one of 12 axes each; no axis is left out.

    The mass of a Student t's tails along an axis is right on average over 4,000 data.
    """
    keys = row_keys(seed, "axes", torch.arange(4000.0)[:, None])
    u = _placed(keys, 8, torch.zeros(1, 1, 12))
    others = torch.arange(12) != axis
    log_target = dist.Normal(0.0, 1.2).log_prob(u[..., others]).sum(-1)
    log_target = log_target + dist.StudentT(4.0, 0.0, 1.4).log_prob(u[..., axis])
    weights = (log_target - _log_placed(u)).exp() * (u[..., axis].abs() > 4)
    by_datum = weights.mean(dim=0)  # the points of one datum share its first axis
    error = float(by_datum.std()) / len(by_datum) ** 0.5
    truth = 2 * float(t.sf(4 / 1.4, 4))
    assert abs(float(by_datum.mean()) - truth) < norm.isf(FALSE_ALARM / 2) * error < truth / 2


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
def test_too_narrow_in_every_direction_is_doubted() -> None:
    """A tenth of the posterior is missed; of a few runs that look good, one at most is off."""
    result = in_ten_dimensions(0.7, 300)
    off = result.value.abs() > 1.96 * result.error
    assert int((off & result.reliable).sum()) <= 1
    assert bool(result.doubts[Doubt.UNREACHED].any())


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_good_guides_of_many_latents_are_not_doubted(scale: float) -> None:
    """Equal weights, and guides a little wider than the posterior in each of ten dimensions."""
    assert bool(in_ten_dimensions(scale, 50).reliable.all())


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
def test_company_does_not_matter_where_priors_differ() -> None:
    """A datum whose prior depends on a covariate takes the same points alone as among others."""

    def model(y: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(x.unsqueeze(-1).expand(-1, 2), 1.0).to_event(1))
            pyro.sample("y", dist.StudentT(3.0, z.sum(-1), 0.5), obs=y)

    def guide(y: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(y)):
            loc = (x + (y - 2 * x) / 3).unsqueeze(-1).expand(-1, 2)
            pyro.sample("z", dist.Normal(loc, 0.8).to_event(1))

    data, method = (torch.randn(6), torch.randn(6)), pv.ImportanceSampling(500, compile=False)
    whole = pv.log_marginal_likelihood(model, guide, data, method).error
    for rows in ([4], [5, 2, 4]):
        some = tuple(part[rows] for part in data)
        alone = pv.log_marginal_likelihood(model, guide, some, method).error
        torch.testing.assert_close(alone, whole[rows])


@pytest.mark.filterwarnings("ignore:log p:UserWarning")
@pytest.mark.parametrize("size", [1, 2])
def test_a_program_that_fails_far_out_is_still_asked(size: int) -> None:
    """What only the further points reach stops nothing: the verdict is that of the weights."""

    def fails(z: Tensor) -> Tensor:
        if bool((z.abs() > 6).any()):
            raise RuntimeError("no root")
        return log_normal(z).sum(-1)

    result = of_many_latents(fails, torch.zeros(size), 1.1, 50)
    assert bool(result.reliable.all())
    assert not bool(result.doubts[Doubt.UNREACHED].any())
