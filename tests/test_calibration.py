"""Ranks under exact posteriors and wrong ones; p-values and bands against enumeration."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import pyro_vae as pv
from pyro_vae._types import ProgramLike
from pyro_vae.diagnostics.calibration import (
    Calibration,
    Draws,
    log_joint,
    log_likelihood,
    simulation_based_calibration,
)
from pyro_vae.stats import holm, rank_band, rank_p_value
from tests.helpers import cases
from tests.helpers.factor_analysis import model_of, prior_guide
from tests.helpers.statistics import FACTS, FALSE_ALARM, assert_coverage, assert_mean

float64 = pytest.mark.usefixtures("float64")


# ------------------------------------------------------------------------- uniform or not


@pytest.mark.parametrize(("num_data", "num_samples"), [(4, 3), (3, 5), (6, 1)])
def test_p_values_by_enumeration(num_data: int, num_samples: int) -> None:
    """Over all equally likely ranks, the share with a statistic as small is the p-value."""
    shares = np.arange(1, num_samples + 1) / (num_samples + 1)

    def statistic(ranks: tuple[int, ...]) -> float:
        counts = [sum(rank <= i for rank in ranks) for i in range(num_samples)]
        below = stats.binom.cdf(counts, num_data, shares)
        above = stats.binom.sf(np.array(counts) - 1, num_data, shares)
        return float(2 * np.minimum(below, above).min())

    every = list(itertools.product(range(num_samples + 1), repeat=num_data))
    values = np.array([statistic(ranks) for ranks in every])
    for ranks, value in zip(every[:: len(every) // 40], values[:: len(every) // 40], strict=True):
        exact = float((values <= value * (1 + 1e-9)).mean())
        assert rank_p_value(torch.tensor(ranks), num_samples) == pytest.approx(exact, abs=1e-12)


def test_p_values_have_their_level() -> None:
    """Uniform ranks are rejected at the nominal rate, nearly: counts are discrete."""
    ranks = torch.randint(0, 20, (400, 60))
    p_values = torch.tensor([rank_p_value(row, 19) for row in ranks])
    for level in (0.5, 0.9):
        assert_coverage(p_values > 1 - level, level)
    with pytest.raises(AssertionError, match="resolution"):
        assert_coverage(p_values > 0.2, 0.9)


@pytest.mark.parametrize(("num_data", "num_samples"), [(50, 9), (1000, 99)])
def test_bands_are_those_of_the_p_value(num_data: int, num_samples: int) -> None:
    """Ranks leave the band where their p-value is below its rate, and not otherwise."""
    band = rank_band(num_data, num_samples, 0.3)
    even, ends = torch.arange(num_data) % (num_samples + 1), torch.zeros(num_data).long()
    drawn = [torch.randint(0, num_samples + 1, (num_data,)) for _ in range(25)]
    for ranks in (even, ends, *drawn):
        counts = ranks.bincount(minlength=num_samples + 1).cumsum(0)[:-1].numpy()
        outside = bool(((counts < band.lower) | (counts > band.upper)).any())
        assert outside == (rank_p_value(ranks, num_samples) < 0.3)
        assert not (outside and ranks is even)
        assert outside or ranks is not ends


def test_bands_are_arviz_s() -> None:
    """The same band as ArviZ optimizes, where this version has one."""
    utils = pytest.importorskip("arviz.stats.ecdf_utils")
    shares = np.arange(1, 20) / 20
    band = rank_band(200, 19, 0.05)
    lower, upper = utils.ecdf_confidence_band(200, shares, shares, prob=0.95, method="optimized")
    assert np.abs(band.lower / 200 - lower).max() <= 1.01 / 200  # on the rim or inside it
    assert np.abs(band.upper / 200 - upper).max() <= 1.01 / 200


def test_holm() -> None:
    """By hand, and never below what it was."""
    p_values = torch.tensor([0.01, 0.04, 0.03, 0.5], dtype=torch.float64)
    expected = torch.tensor([0.04, 0.09, 0.09, 0.5], dtype=torch.float64)
    torch.testing.assert_close(holm(p_values), expected)


# ------------------------------------------------------------------------ guides, by exactness

MODEL = model_of(FACTS)


def examples(num_data: int = 1) -> Tensor:
    """Rows that say the shape."""
    return torch.zeros(num_data, 4)


def widened(factor: float, shift: float = 0.0) -> pv.Guide:
    """The posterior with its scales multiplied, and its mean moved by so many of them."""

    class Map(pv.InferenceMap):
        def setup(self, num_parameters: int, initial: Tensor) -> None:
            """Nothing to set up."""

        def forward(self, batch: tuple[Tensor, ...], rows: Tensor | None) -> Tensor:
            """The posterior's parameters, changed."""
            posterior = FACTS.posterior(batch[0])
            loc = posterior.loc + shift * posterior.variance.sqrt()
            precision = posterior.precision_matrix / factor**2
            return pv.FullRankNormal().closest_normal(loc, precision)

    return pv.Guide(MODEL, Map(), pv.FullRankNormal(), example=examples())


def exact() -> pv.Guide:
    """The posterior in closed form."""
    return pv.Guide(MODEL, pv.ExactPosterior(), pv.FullRankNormal(), example=examples())


@float64
def test_the_exact_posterior_has_its_level() -> None:
    """Over many repeats it is rejected at about the nominal rate, with Holm at most."""
    repeats, num_data = 150, 30
    result = simulation_based_calibration(
        MODEL, exact(), examples(), repeats * num_data, num_samples=19
    )
    assert result.names == ("z[0]", "z[1]", "log p(y | z)")
    groups = result.ranks.view(repeats, num_data, 3)
    p_values = torch.tensor([[rank_p_value(r, 19) for r in group.T] for group in groups])
    assert_coverage(p_values[:, 0] > 0.2, 0.8)
    assert_coverage(p_values[:, 2] > 0.2, 0.8)
    families = torch.stack([holm(row.double()).min() for row in p_values])
    rejected, most = int((families < 0.2).sum()), stats.binom.ppf(1 - FALSE_ALARM, repeats, 0.2)
    assert rejected <= most
    assert (result.adjusted > FALSE_ALARM).all()
    assert "no miscalibration detected" in result.verdict(FALSE_ALARM)
    assert_mean((result.ranks.double() + 0.5) / 20, 0.5)


@float64
@pytest.mark.parametrize(
    ("factor", "shift", "words"),
    [(0.8, 0.0, "too narrow"), (1.25, 0.0, "too wide"), (1.0, 0.5, "too high"), (1, -0.5, "low")],
)
def test_wrong_guides_are_caught(factor: float, shift: float, words: str) -> None:
    """A fifth too narrow or too wide, or half a standard deviation off, and in what way."""
    result = simulation_based_calibration(MODEL, widened(factor, shift), examples(), 5000, 49)
    assert (result.adjusted[:2] < FALSE_ALARM).all()
    verdict = result.verdict(FALSE_ALARM)
    assert "not calibrated" in verdict
    assert words in verdict.split("z[0]")[1].split(",")[0]
    location, spread = (float(part.value[0]) for part in (result.location, result.spread))
    assert (location < 0.45, location > 0.55) == (shift > 0, shift < 0)
    if shift == 0:  # a shift sends ranks to an end, and so spreads them
        assert (spread > 1.1, spread < 0.9) == (factor < 1, factor > 1)


@float64
def test_a_guide_that_does_not_look_is_caught_by_the_likelihood() -> None:
    """The prior has uniform ranks of every latent; its draws explain the data too badly."""
    result = simulation_based_calibration(MODEL, prior_guide, examples(), 300)
    assert (result.p_values[:2] > FALSE_ALARM).all()
    assert result.p_values[2] < FALSE_ALARM
    assert "log p(y | z) are too low" in result.verdict(FALSE_ALARM)
    latents = simulation_based_calibration(MODEL, prior_guide, examples(), 300, quantities={})
    assert "no miscalibration detected" in latents.verdict(FALSE_ALARM)


@pytest.mark.slow
@float64
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
def test_spread_tells_the_scale(scale: float) -> None:
    """The errors of mean rank and spread cover what many more data give."""
    many = simulation_based_calibration(MODEL, widened(scale), examples(), 20_000, quantities={})
    groups = many.ranks.view(400, 50, 2)
    parts = [Calibration(ranks, many.names, 99, ()) for ranks in groups]
    spread = torch.stack([part.spread.value for part in parts])
    exact = _spread(scale, 99)
    assert exact == pytest.approx(1 - 1.10 * math.log(scale), abs=0.03)  # to first order
    assert_mean(spread, exact)
    errors = torch.stack([part.spread.error for part in parts])
    assert_mean((spread - exact).square() - errors.square(), 0.0)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean((spread - exact).square() - errors.square() / 2, 0.0)


def _spread(scale: float, num_samples: int) -> float:
    """The spread of ranks for a Gaussian whose guide is wider by a factor, by quadrature."""
    x = np.linspace(-9, 9, 20_001)
    u = stats.norm.cdf(x / scale)
    weight = stats.norm.pdf(x) * (x[1] - x[0])
    # A rank is binomial given u: with M = L + 1 ranks, E (r - L/2)^2 over its uniform mean.
    squares = num_samples * u * (1 - u) + num_samples**2 * (u - 0.5) ** 2
    uniform = ((num_samples + 1) ** 2 - 1) / 12
    return float((weight * squares).sum() / uniform)


# ------------------------------------------------------------------------------- programs


def mixture(y: Tensor) -> None:
    """A discrete latent, summed out, beside a positive one."""
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Poisson(rate * (1 + 3 * k)), obs=y)


def mixture_guide(factor: float) -> Callable[[Tensor], None]:
    """The posterior of the rate: a mixture of two gamma distributions, its draws scaled."""

    def guide(y: Tensor) -> None:
        rate = torch.tensor([2.0, 5.0]).expand(len(y), -1)  # 1 + exposure
        shape = 2 + y[:, None].expand(-1, 2)
        log_weight = y[:, None] * torch.tensor([1.0, 4.0]).log() - shape * rate.log()
        parts = dist.Gamma(shape, rate / factor)
        with pyro.plate("data", len(y)):
            weights = dist.Categorical(logits=log_weight)
            pyro.sample("rate", dist.MixtureSameFamily(weights, parts))

    return guide


@float64
def test_constrained_and_discrete_latents() -> None:
    """Summed-out latents have no rank; counts repeat, and ties are broken fairly."""
    y = torch.zeros(1)
    right = simulation_based_calibration(mixture, mixture_guide(1.0), y, 800, 19)
    assert right.names == ("rate", "log p(y | z)")
    assert (right.adjusted > FALSE_ALARM).all()
    wrong = simulation_based_calibration(mixture, mixture_guide(1.6), y, 800, 19)
    assert "rate are too high" in wrong.verdict(FALSE_ALARM)


@float64
def test_quantities_with_ties_and_of_ones_own() -> None:
    """Signs have two values only; ranks stay uniform. Nan and wrong shapes are refused."""
    signs = {
        "sign": lambda draws: draws.z[..., 0].sign(),
        "constant": lambda draws: torch.ones_like(draws.log_prior),
        "log p(y, z)": log_joint,
        "distance": lambda draws: (draws.batch[0][:, 0] - draws.z[..., 0]).abs(),
        "log p(y | z)": log_likelihood,
    }
    result = simulation_based_calibration(MODEL, exact(), examples(), 600, 9, quantities=signs)
    assert result.names[2:] == tuple(signs)
    assert (result.adjusted > FALSE_ALARM).all()
    assert set(result.by_name["constant"].tolist()) == set(range(10))

    def bad(draws: Draws) -> Tensor:
        return draws.log_prior.sum(dim=0)

    with pytest.raises(ValueError, match="the quantity 'mine' must be a tensor"):
        simulation_based_calibration(MODEL, exact(), examples(), 5, quantities={"mine": bad})


@float64
def test_covariates_stay() -> None:
    """Rows of the covariates are taken in turn, and the posterior sees them."""

    def guide(y: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((y + x.sum(-1)) / 2, 0.5**0.5))

    x = torch.randn(7, 2)
    data = (torch.zeros(7), x)
    result = simulation_based_calibration(cases.covariate, guide, data, 500)
    assert torch.equal(result.data[1][7:14], x)
    assert (result.adjusted > FALSE_ALARM).all()

    def blind(y: Tensor, x: Tensor) -> None:
        guide(y, x + 0.6)

    wrong = simulation_based_calibration(cases.covariate, blind, data, 500)
    assert "z are too high" in wrong.verdict(FALSE_ALARM)


@float64
def test_a_table_is_fitted_afresh() -> None:
    """New data have no rows: free parameters are fitted to them; the mean field is too narrow."""
    guide = pv.Guide(MODEL, pv.LocalParameters(3), pv.FullRankNormal(), example=examples())
    result = simulation_based_calibration(MODEL, guide, examples(), 150)
    assert (result.adjusted > FALSE_ALARM).all()
    assert guide.map.num_data == 3  # its own rows are as they were
    rows = pv.Guide(MODEL, pv.LocalParameters(3), example=examples())
    narrow = simulation_based_calibration(MODEL, rows, examples(), 1500)
    assert "z[1] are too narrow" in narrow.verdict(FALSE_ALARM)


@float64
def test_shared_sites_are_given() -> None:
    """With a site that all data share, everything is conditional on its value."""

    def model(y: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((y + shift) / 2, 0.5**0.5))

    given = {"shift": torch.tensor(5.0)}
    result = simulation_based_calibration(model, guide, torch.zeros(1), 400, given=given)
    assert (result.adjusted > FALSE_ALARM).all()
    assert abs(float(result.data[0].mean()) - 5) < 1
    assert "conditional on the global site shift" in result.given


# ------------------------------------------------------------------------------- plumbing


def test_seeds_and_refusals(seed: int) -> None:
    """The same numbers from the same seed, the caller's stream alone, and what is refused."""
    guide, y = exact(), examples().double()
    stream = torch.get_rng_state()
    one, two, other = (
        simulation_based_calibration(MODEL, guide, y, 20, 9, seed=number)
        for number in (seed, seed, seed + 1)
    )
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(one.ranks, two.ranks)
    assert not torch.equal(one.ranks, other.ranks)
    assert one.ranks.shape == (20, 3)
    assert len(one.summary().splitlines()) == 4
    for sizes in ((1, 9), (20, 1)):
        with pytest.raises(ValueError, match="must both be at least 2; got"):
            simulation_based_calibration(MODEL, guide, y, *sizes)
    with pytest.raises(
        ValueError, match="at least one entry, and all entries must be from 0 to num_samples=3"
    ):
        rank_p_value(torch.tensor([0, 4]), 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        rank_band(10, 3, 0.0)


def test_a_decoder_simulates() -> None:
    """A VAE with an encoder, from its data to the verdict."""
    model = pv.models.VAE(torch.nn.Linear(2, 5), pv.likelihoods.Bernoulli(), latent_dim=2)
    guide: ProgramLike = pv.Guide(model, pv.Encoder(torch.nn.Linear(5, 4)))
    result = simulation_based_calibration(model, guide, torch.zeros(60, 5))
    assert result.ranks.shape == (60, 3)
    assert set(result.data[0].unique().tolist()) == {0.0, 1.0}


@float64
@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 0.8, 1.0), (0.4, 0.0, 0.6)])
@pytest.mark.parametrize("what", ["scale", "mean"])
def test_what_is_said_to_be_seen_is_seen(
    what: str, share: float, least: float, most: float
) -> None:
    """Scales and means off as far as the verdict says are rejected, and by 0.4 of it are not.

    Of 60 checks with a power of 0.9 fewer than 0.8 reject once in 100 runs; what is said is on
    the safe side, so rarer.
    """
    number, draws, tests = 200, 99, 60
    calm = Calibration(torch.zeros(number, 1, dtype=torch.int64), ("z",), draws, ())
    scale, mean = (share * error for error in calm.resolution(0.05))
    z = torch.randn(tests, number)
    wrong = z * (1 + scale) if what == "scale" else z + mean
    ranks = torch.binomial(torch.full_like(wrong, draws), torch.special.ndtr(wrong)).long()
    seen = np.mean([rank_p_value(row, draws) < 0.05 for row in ranks])
    assert least <= seen <= most, f"seen {seen}"
