"""Quadrature and closed forms: exact answers, errors that cover, and what must be doubted."""

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.evidence import Bound, LogMarginal
from pyro_vae.evidence.exact import ClosedForm
from pyro_vae.evidence.lattices import MODES_AT_ONCE, SHIFTS, Lattice, Seen
from pyro_vae.evidence.quadrature import Quadrature
from pyro_vae.results import Doubt
from tests.helpers.cases import CASES, CONCENTRATION, gamma, missing, negative_binomial
from tests.helpers.factor_analysis import mean_field_guide, model_of, prior_guide
from tests.helpers.idioms import CENTRES, STAY, WEIGHTS, clusters, switches
from tests.helpers.statistics import FACTS, FACTS_Y, FactorAnalysis

pytestmark = pytest.mark.usefixtures("float64")

ERROR = 1e-4  # what is asked for by default


def integrated(
    model: ProgramLike, *batch: Tensor, method: Quadrature | None = None, seed: int = 0
) -> LogMarginal:
    """By quadrature, with a guide that knows nothing."""
    guide = pv.Guide(model, pv.GlobalParameters(), example=batch)
    data = batch if len(batch) > 1 else batch[0]
    return pv.log_marginal_likelihood(model, guide, data, method or Quadrature(), seed=seed)


def assert_covers(found: LogMarginal, exact: Tensor) -> None:
    """Asserts that the error is an upper bound, and met what was asked for."""
    off = (found.value - exact).abs()
    assert (off <= found.error).all(), f"off by {off.tolist()}, errors {found.error.tolist()}"
    assert found.reliable.all(), found.summary()
    assert (found.error < 2 * ERROR).all(), found.error


def simulated_facts(latents: int) -> FactorAnalysis:
    """Factor analysis of six features, with correlated posteriors."""
    return FactorAnalysis(torch.randn(6, latents), torch.randn(6), 0.1 + torch.rand(6))


@pytest.mark.parametrize(("latents", "number"), [(1, 40), (2, 20), (3, 2)])
def test_factor_analysis(latents: int, number: int) -> None:
    """Gaussian posteriors, also correlated and narrow ones: right to many digits."""
    facts = simulated_facts(latents)
    y = facts.sample(number)
    found = integrated(model_of(facts), y)
    assert_covers(found, facts.log_evidence(y))
    torch.testing.assert_close(found.value, facts.log_evidence(y), rtol=0, atol=1e-7)
    assert found.bound is Bound.TWO_SIDED


def test_covering_can_fail() -> None:
    """The assertion above catches a shift by twice the error asked for."""
    facts = simulated_facts(1)
    y = facts.sample(5)
    with pytest.raises(AssertionError, match="off by"):
        assert_covers(integrated(model_of(facts), y), facts.log_evidence(y) + 2 * ERROR)


def clusters_evidence(y: Tensor) -> Tensor:
    """A mixture of three normals."""
    centre, weight = torch.tensor(CENTRES), torch.tensor(WEIGHTS)
    return (weight.log() + dist.Normal(1.1 * centre, 1.25**0.5).log_prob(y[:, None])).logsumexp(-1)


def switches_evidence(y: Tensor) -> Tensor:
    """A mixture of eight normals, one for each path; the common shift correlates the steps."""
    covariance = torch.ones(3, 3) + 0.25 * torch.eye(3)
    terms = []
    for path in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
        before = (0, *path[:-1])
        log_path = sum(math.log(STAY[a][b]) for a, b in zip(before, path, strict=True))
        steps = torch.tensor([2.0 * state for state in path])
        terms.append(log_path + dist.MultivariateNormal(steps, covariance).log_prob(y))
    return torch.stack(terms).logsumexp(0)


def cauchy(y: Tensor) -> None:
    """A tail as heavy as 1 / z^2, which the data do not cut off."""
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Cauchy(3.0, 0.1))
        pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), obs=y)


def long_left_tail(y: Tensor) -> None:
    """A rate that is next to zero: over its logarithm the tail falls as exp(0.1 z)."""
    with pyro.plate("data", len(y)):
        rate = pyro.sample("rate", dist.Gamma(0.1, 1.0))
        pyro.sample("y", dist.Poisson(rate), obs=y)


APART, NARROW = 5.0, 0.25


def two_peaks(y: Tensor) -> None:
    """Two narrow peaks far apart, of unequal heights."""
    weights, centres = torch.tensor([0.3, 0.7]), torch.tensor([-APART, APART])
    with pyro.plate("data", len(y)):
        side = pyro.sample("side", dist.Categorical(weights))
        z = pyro.sample("z", dist.Normal(centres[side], NARROW))
        pyro.sample("y", dist.Normal(z, 10.0), obs=y)


def two_peaks_evidence(y: Tensor) -> Tensor:
    """A mixture of two normals."""
    weights, centres = torch.tensor([0.3, 0.7]), torch.tensor([-APART, APART])
    normals = dist.Normal(centres, (100 + NARROW**2) ** 0.5)
    return (weights.log() + normals.log_prob(y[:, None])).logsumexp(-1)


def four_peaks(y: Tensor) -> None:
    """Squares of two latents are observed: the signs are not."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z**2, 0.2).to_event(1), obs=y)


def four_peaks_evidence(y: Tensor) -> Tensor:
    """A product of two integrals over fine grids, which are nobody's lattice here."""
    z = torch.linspace(-8, 8, 40_001)
    density = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z**2, 0.2).log_prob(y[..., None])
    return (density.logsumexp(-1) + (z[1] - z[0]).log()).sum(-1)


def observed(mean: Callable[[Tensor], Tensor], noise: float, scale: float = 1.0) -> ProgramLike:
    """A program with one latent whose mean is any function of it."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("y", dist.Normal(mean(z), noise), obs=y)

    return model


def cosine(frequency: float, noise: float = 0.1) -> ProgramLike:
    """A latent that is seen up to its sign and whole turns."""
    return observed(lambda z: (frequency * z).cos(), noise)


STEP = observed(lambda z: (z > 0.1).to(z), 0.5)
"""A program whose log joint jumps."""


def spiked(z: Tensor) -> Tensor:
    """Zero but for a narrow spike."""
    return 3 * (-(((z - 1) / 0.01) ** 2) / 2).exp()


def on_a_line(program: ProgramLike, y: Tensor, end: float = 7.0) -> Tensor:
    """The integral over a fine even grid, which is nobody's lattice here."""
    z = torch.linspace(-end, end, 400_001)[:, None, None]
    parts = [pv.log_joint(program, z, one) for one in y.split(1)]
    return torch.cat([part.logsumexp(0) for part in parts]) + math.log(2 * end / 4e5)


MODES = {
    "cos 8": (cosine(8.0), torch.tensor([0.3, -0.9])),
    "cos 8, prior sd .01": (observed(lambda z: (800 * z).cos(), 0.1, 0.01), torch.tensor([0.3])),
    "cos 9, sd .001": (cosine(9.0, 1e-3), torch.tensor([0.3])),
    "spike": (observed(spiked, 0.1), torch.tensor([-0.05])),
}


class Known(NamedTuple):
    """A program, data, and the exact log p(y)."""

    program: ProgramLike
    data: Callable[[], Tensor]
    evidence: Callable[[Tensor], Tensor]


KNOWN = {
    "counts": Known(gamma, lambda: torch.arange(20.0), negative_binomial),
    "shares": Known(
        CASES["dirichlet"].program,
        lambda: torch.arange(3),
        lambda y: (torch.tensor(CONCENTRATION) / sum(CONCENTRATION)).log()[y],
    ),
    "clusters": Known(clusters, lambda: 3 * torch.randn(20), clusters_evidence),
    "switches": Known(switches, lambda: 2 * torch.randn(20, 3), switches_evidence),
    "heavy-tails": Known(cauchy, lambda: torch.ones(2), lambda y: y.new_full((2,), 0.5).log()),
    "long-tail": Known(
        long_left_tail,
        lambda: torch.arange(5.0),
        lambda y: dist.NegativeBinomial(0.1, probs=torch.tensor(0.5)).log_prob(y),
    ),
    "two-peaks": Known(two_peaks, lambda: 10 * torch.randn(10), two_peaks_evidence),
    "four-peaks": Known(four_peaks, lambda: 2 * torch.rand(2, 2) + 1, four_peaks_evidence),
}


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN.keys())
def test_errors_cover(known: Known) -> None:
    """Constrained and discrete sites, heavy tails, several peaks: within the error given."""
    y = known.data()
    prepared_y = y if y.is_floating_point() else y.long()
    assert_covers(integrated(known.program, prepared_y), known.evidence(y))


@pytest.mark.slow
def test_kinks_are_slow_and_honest() -> None:
    """A decoder with ReLUs: the sum over pieces of a straight line is the exact answer."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(3 * z.relu(), 0.3), obs=y)

    y = torch.linspace(-1, 4, 8)
    # Below zero the data do not see z; above, the product of two normals is cut off at zero.
    below = math.log(0.5) + dist.Normal(0.0, 0.3).log_prob(y)
    variance = 1 / (1 + 9 / 0.09)
    above = dist.Normal(0.0, (9 + 0.09) ** 0.5).log_prob(y)
    above = above + dist.Normal(0.0, 1.0).cdf(variance**0.5 * 3 * y / 0.09).log()
    exact = torch.logaddexp(below, above)
    found = integrated(model, y)
    assert ((found.value - exact).abs() <= found.error).all()
    assert (found.error[~found.reliable] > ERROR).all()


def test_few_points_are_doubted() -> None:
    """What did not meet the tolerance within the budget says so, and still covers."""
    y = torch.tensor([0.3])
    with pytest.warns(UserWarning, match="exceeds the tolerance at the maximum number of points"):
        found = integrated(STEP, y, method=Quadrature(max_points=2500))
    assert ((found.value - on_a_line(STEP, y)).abs() <= found.error).all()
    assert found.why_not(0) == [Doubt.TOLERANCE.value]


def test_a_scan_that_ends_early_is_doubted() -> None:
    """Of 26 modes a grid of 129 points shows some: a twice as fine one is not allowed."""
    y = torch.tensor([0.3])
    with pytest.warns(UserWarning, match="reached its limit too early.* a larger `max_points`$"):
        found = integrated(cosine(40.0), y, method=Quadrature(max_points=1100))
    assert Doubt.UNSETTLED.value in found.why_not(0)


@pytest.mark.parametrize(
    "name",
    [
        "cos 8",
        "cos 8, prior sd .01",
        "cos 9, sd .001",
        "spike",
    ],
)
def test_no_mode_is_missed(name: str) -> None:
    """Modes that are many, narrow, or far from the others: within the error given."""
    program, y = MODES[name]
    found = integrated(program, y, method=Quadrature(1e-3))
    off = (found.value - on_a_line(program, y)).abs()
    assert (off <= found.error + 1e-6).all(), f"off by {off.tolist()}, {found.error.tolist()}"
    assert found.reliable.all(), found.summary()


def test_a_missed_mode_would_be_seen() -> None:
    """The same check fails for what one of twelve modes holds."""
    program, y = MODES["cos 8"]
    found = integrated(program, y, method=Quadrature(1e-3))
    assert ((found.value + math.log(11 / 12) - on_a_line(program, y)).abs() > found.error).all()


def test_light_modes_leave_no_doubt() -> None:
    """Hundreds of modes of two latents, of which few have mass; the twin's grid is too coarse."""
    frequencies = torch.tensor([[2.3, -0.4], [-3.3, 0.9], [-1.6, -2.1], [0.6, 1.3]])

    def waves(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal((z @ frequencies.T).sin(), 0.3).to_event(1), obs=y)

    y = torch.tensor([[0.8, -0.5, 0.1, 0.6]])
    axis = torch.linspace(-7, 7, 701)
    z = torch.cartesian_prod(axis, axis)
    exact = pv.log_joint(waves, z[:, None], y).logsumexp(0) + 2 * (axis[1] - axis[0]).log()
    assert_covers(integrated(waves, y), exact)
    with pytest.warns(UserWarning, match="the search for modes reached its limit too early"):
        integrated(waves, y, method=Quadrature(max_points=5_000))


def test_rings_in_two_latents() -> None:
    """Seven modes along one latent; and a ridge all around, without an end, known by its radius."""

    def ring(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            angle, radius = 4 * z[..., 0], 1 + 0.2 * z[..., 1]
            mean = torch.stack([radius * angle.cos(), radius * angle.sin(), z[..., 1]], dim=-1)
            pyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)

    def radius(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z.square().sum(dim=-1).sqrt(), 0.1), obs=y)

    y = torch.tensor([[0.8, 0.5, 0.1]])
    found = integrated(ring, y)
    axis = torch.linspace(-6, 6, 1001)
    z = torch.cartesian_prod(axis, axis)
    exact = pv.log_joint(ring, z[:, None], y).logsumexp(0) + 2 * (axis[1] - axis[0]).log()
    assert_covers(found, exact)
    y = torch.tensor([1.0, 2.0])
    r = torch.linspace(0, 8, 100_001)[1:, None]
    exact = (r.log() - r**2 / 2 + dist.Normal(r, 0.1).log_prob(y)).logsumexp(0) + math.log(8e-5)
    assert_covers(integrated(radius, y), exact)


def test_rows_do_not_matter() -> None:
    """Neither the order of the rows, nor the memory, nor the seed changes an answer."""
    y = FACTS.sample(10)
    model, guide = model_of(FACTS), prior_guide
    whole = pv.log_marginal_likelihood(model, guide, y, Quadrature())
    small = Quadrature(memory=50.0)
    other = pv.log_marginal_likelihood(model, guide, y.flip(0), small, seed=5)
    torch.testing.assert_close(other.value.flip(0), whole.value, rtol=0, atol=1e-9)
    assert torch.equal(other.num_samples.flip(0), whole.num_samples)


def test_a_covariate() -> None:
    """Several batch tensors, and masked entries: nothing but z ~ N(0, 1) where nothing is seen."""
    y, seen = torch.tensor([1.0, 2.0]), torch.tensor([False, True])
    found = integrated(missing, y, seen)
    joint = dist.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + torch.eye(3))
    exact = torch.stack([torch.tensor(0.0), joint.log_prob(torch.full((3,), 2.0))])
    assert_covers(found, exact)


def test_single_precision() -> None:
    """In float32 the error is at least that of rounding."""
    torch.set_default_dtype(torch.float32)
    model = pv.models.VAE(
        pv.nets.MLPDecoder(2, 50, hidden=(8,), activation=nn.Tanh),
        pv.likelihoods.Bernoulli(),
        latent_dim=2,
    )
    y = model.sample(5, seed=1)
    single = integrated(model, y)
    torch.set_default_dtype(torch.float64)
    double = integrated(model.double(), y.double())
    assert single.reliable.all()
    assert ((single.value - double.value).abs() <= single.error + double.error).all()
    assert (single.error > double.error).all()


def test_four_latents_are_refused() -> None:
    """With the remedy."""
    facts = simulated_facts(4)
    with pytest.raises(
        ValueError, match=r"1 to 3 latents.*with 4 latents: use pv.ImportanceSampling"
    ):
        integrated(model_of(facts), facts.sample(2))


@pytest.mark.parametrize("wrong", [{"tolerance": 0.0}, {"max_points": 10}, {"memory": 0.0}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    """Numbers that mean nothing."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Quadrature(**wrong)


def test_facts_instance() -> None:
    """The number that is known to many digits, both ways."""
    model = model_of(FACTS)
    guide = mean_field_guide(FACTS, model)
    for method in (Quadrature(), ClosedForm()):
        found = pv.log_marginal_likelihood(model, guide, FACTS_Y, method)
        assert abs(float(found.value[0]) + 8.855632020187) < 1e-9


class Spikes(NamedTuple):
    """A prior that is a mixture of normals of very unlike widths, `(components, latents)`."""

    locs: list[list[float]]
    scales: list[list[float]]
    weights: list[float]

    def model(self, y: Tensor) -> None:
        """The sum of the latents is observed."""
        parts = dist.Normal(torch.tensor(self.locs), torch.tensor(self.scales)).to_event(1)
        with pyro.plate("data", len(y)):
            prior = dist.MixtureSameFamily(dist.Categorical(torch.tensor(self.weights)), parts)
            z = pyro.sample("z", prior)
            pyro.sample("y", dist.Normal(z.sum(-1), 2.0), obs=y)

    def log_evidence(self, y: Tensor) -> Tensor:
        """A mixture of normals."""
        loc, variance = torch.tensor(self.locs).sum(-1), torch.tensor(self.scales).square().sum(-1)
        parts = dist.Normal(loc, (variance + 4).sqrt()).log_prob(y[:, None])
        return (torch.tensor(self.weights).log() + parts).logsumexp(-1)


SPIKES = {
    # The narrow modes take what lies between them and the wide one; beyond them it goes on.
    "on the way": Spikes([[0.0], [1.0], [2.0]], [[1.0], [1e-3], [1e-2]], [0.7, 0.2, 0.1]),
    # Between the points of any grid.
    "between points": Spikes([[0.0], [0.5]], [[1.0], [1e-5]], [0.95, 0.05]),
    "a ridge": Spikes([[0.0, 0.0], [3.0, 0.0]], [[0.02, 5.0], [1.0, 1.0]], [0.4, 0.6]),
}


@pytest.mark.filterwarnings("ignore:log p")
@pytest.mark.parametrize(
    "name", ["on the way", "between points", pytest.param("a ridge", marks=pytest.mark.slow)]
)
def test_spikes_of_a_prior(name: str) -> None:
    """No spike that holds some of a thousand draws of the prior is missed, nor what is beyond."""
    spikes, y = SPIKES[name], torch.tensor([0.0, 2.0, -5.0])
    found = integrated(spikes.model, y, method=Quadrature(1e-3))
    off = (found.value - spikes.log_evidence(y)).abs()
    assert ((off < 1e-3) | ~found.reliable).all(), (off, found.error)
    assert found.reliable.any(), found.summary()


def spread_for_mean(shifts: Tensor) -> float:
    """The least spread of the terms of a dual vector on shifted lattices, per error of their mean.

    Over the vectors with entries -1, 0 and 1, and over the phases that an integrand may have.
    """
    unit = torch.tensor([-1.0, 0.0, 1.0])
    duals = torch.cartesian_prod(*[unit] * shifts.shape[1]).view(-1, shifts.shape[1])
    turned = duals[duals.any(dim=-1)] @ shifts.T  # (vectors, lattices)
    phases = torch.linspace(0, 1, 181)[:, None, None]
    terms = (2 * torch.pi * (phases + turned)).cos()
    spread = terms.amax(dim=-1) - terms.amin(dim=-1)
    return float((spread / terms.mean(dim=-1).abs().clamp(min=1e-6)).min())


@pytest.mark.parametrize("latents", [1, 2, 3])
def test_no_low_frequency_is_alike_on_all_lattices(latents: int) -> None:
    """So whatever aliases is seen; shifts along a diagonal would hide slanted ridges."""
    assert spread_for_mean(torch.tensor(SHIFTS[latents]).T) > 1.5
    diagonal = torch.arange(3.0)[:, None].expand(3, latents) / 3
    assert latents == 1 or spread_for_mean(diagonal) < 1e-3


def test_a_slanted_ridge_is_within_its_error() -> None:
    """A mixture of two latents that lattices shifted along the diagonal got wrong by 150 errors."""
    ridge = Spikes(
        [[-0.5646, 1.3648], [-0.6365, -1.7806], [0.8057, 1.1851]],
        [[1.0, 1.0], [0.9743, 0.9690], [0.1608, 0.7713]],
        [0.3349, 0.1958, 0.4693],
    )
    y = torch.tensor([-2.0318, 0.5], dtype=torch.float64)
    found = integrated(ridge.model, y)
    assert ((found.value - ridge.log_evidence(y)).abs() <= found.error).all(), found.error


def funnel(y: Tensor) -> None:
    """A half-Cauchy scale times a normal: a ridge that bends, and narrows along a heavy tail."""
    with pyro.plate("data", len(y)):
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(scale * raw, 1.0), obs=y)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log p")
def test_a_narrowing_ridge() -> None:
    """What lies on a ridge between the points is part of the error."""
    y, log_scale = torch.tensor([-2.0, 6.0]), torch.linspace(-40, 40, 4001).unsqueeze(-1)
    prior = dist.HalfCauchy(1.0).log_prob(log_scale.exp()) + log_scale
    likelihood = dist.Normal(0.0, (1 + (2 * log_scale).exp()).sqrt()).log_prob(y)
    exact = (prior + likelihood).logsumexp(0) + math.log(0.02)
    found = integrated(funnel, y, method=Quadrature(1e-3))
    assert ((found.value - exact).abs() <= found.error).all(), (found.value - exact, found.error)
    assert found.reliable[0]


def test_a_program_with_hidden_draws_is_refused_and_its_remedies_are_right() -> None:
    """Its log joint is random: random weights have the right mean, a grid of points has not."""

    def visible(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            noise = pyro.sample("noise", dist.Normal(0.0, 0.5))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + noise, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(0.4 * y, 0.8))

    hidden, y = pyro.poutine.block(visible, hide=["noise"]), torch.tensor([0.0, 1.0])
    exact = torch.distributions.Normal(0.0, 1.5).log_prob(y).double()
    with pytest.raises(ValueError, match=r"outside its sample sites.*pv.ImportanceSampling\(\)"):
        pv.log_marginal_likelihood(hidden, guide, y, pv.Quadrature())
    for estimator in (pv.ImportanceSampling(2000), pv.Tightest(2000)):
        found = pv.log_marginal_likelihood(hidden, guide, y, estimator)
        off = (found.value - exact).abs()
        assert ((off < 6 * found.error) | ~found.reliable).all()
    again = pv.Guide(visible, pv.GlobalParameters(), example=y)
    found = pv.log_marginal_likelihood(visible, again, y, pv.Quadrature())
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-4)


def test_matrices_that_cannot_be_factorized_far_out() -> None:
    """A Gaussian process whose amplitude is latent: refused, and right by the remedies."""
    x = torch.linspace(0, 1, 4)
    kernel = torch.exp(-((x[:, None] - x) ** 2) / 0.1)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
            covariance = a[..., None, None] ** 2 * kernel + 0.09 * torch.eye(4)
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(4), covariance), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("a", dist.LogNormal(torch.zeros(len(y)), 0.5))

    y = torch.tensor([[0.3, -0.2, 0.1, 0.9], [1.5, 0.5, 0.2, -0.7]])
    grid = torch.linspace(-4.0, 4.0, 801, dtype=torch.float64)
    covariances = (2 * grid[:, None, None]).exp() * kernel.double() + 0.09 * torch.eye(4).double()
    given = torch.distributions.MultivariateNormal(torch.zeros(4).double(), covariances[:, None])
    prior = torch.distributions.Normal(0.0, 0.5).log_prob(grid)[:, None]
    exact = (prior + given.log_prob(y.double())).logsumexp(0) + math.log(0.01)
    with pytest.raises(ValueError, match=r"cannot be factorized.*use pv.ImportanceSampling\(\)"):
        pv.log_marginal_likelihood(model, guide, y, pv.Quadrature())
    for estimator in (pv.ImportanceSampling(5000), pv.Tightest(2000)):
        found = pv.log_marginal_likelihood(model, guide, y, estimator)
        off = (found.value - exact).abs()
        assert ((off < 6 * found.error + 1e-5) | ~found.reliable).all()
        assert found.reliable.any()


@pytest.mark.without_type_checks("its modes have nothing but their positions")
@pytest.mark.parametrize("latents", SHIFTS)
def test_a_key_holds_any_point_of_any_lattice(latents: int) -> None:
    """Before, a thousand data with three latents at once ended in an index error."""
    modes = SimpleNamespace(z=torch.zeros(1, latents))
    frames: Any = SimpleNamespace(modes=modes, which=torch.arange(MODES_AT_ONCE))
    lattice = Lattice(None, frames, 1.0, 20.0, 1000)  # type: ignore[arg-type]
    lattices = torch.tensor([0, lattice.number - 1]).repeat_interleave(2)
    index = torch.tensor([[1 - 2**16], [2**16 - 1]]).expand(2, latents).repeat(2, 1)
    keys = lattice._keys(lattices, index)
    for found, expected in zip(lattice._unpacked(keys), (lattices, index), strict=True):
        assert torch.equal(found, expected)
    assert bool((keys.diff() > 0).all())  # sorted as the lattices are


def test_visited_points_are_kept_as_a_set_in_runs_of_falling_lengths() -> None:
    """Sorting all points for each few that are added took two thirds of the time on a ridge."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(2_000, (300, 7), generator=generator)
    expected = set(draws[0].tolist())
    seen = Seen(draws[0].unique())
    for some in draws[1:]:
        new = seen.add(some)
        assert new.tolist() == sorted(set(some.tolist()) - expected)
        expected |= set(some.tolist())
        lengths = [len(run) for run in seen.runs]
        assert all(long > 2 * short for long, short in pairwise(lengths))
    assert sorted(torch.cat(seen.runs).tolist()) == sorted(expected)


def test_a_fine_lattice_on_a_line_keeps_few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the likelihood jumps, the lattice gets fine; before, 250 keys were made per point."""
    made: list[int] = []
    add = Seen.add

    def counting(seen: Seen, keys: Tensor) -> Tensor:
        made.append(len(keys))
        return add(seen, keys)

    monkeypatch.setattr(Seen, "add", counting)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(2.0 * (z > 0.7), 0.5), obs=y)

    y = torch.tensor([0.3])
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    found = pv.log_marginal_likelihood(model, guide, y, Quadrature(3e-4))
    share = torch.special.ndtr(torch.tensor(0.7, dtype=torch.float64))
    exact = torch.stack([share.log(), (-share).log1p()])
    parts = dist.Normal(torch.tensor([0.0, 2.0]), 0.5).log_prob(y).double()
    assert float((found.value - (exact + parts).logsumexp(dim=0)).abs()) < float(found.error)
    assert sum(made) < 20 * int(found.num_samples.sum())
