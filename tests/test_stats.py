"""Exact answers for the functions of log weights, then their errors, then what they refuse."""

import math
from collections.abc import Callable
from importlib import import_module
from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, optimize, special
from scipy.stats import genpareto
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_vae._types import Estimate
from pyro_vae.stats import (
    MAX_PARETO_K,
    MIN_TAIL_PARTICLES,
    concentration,
    effective_sample_size,
    jackknife,
    log_marginal,
    log_mean_exp,
    mean_estimate,
    mean_over_data,
    pareto_k,
    population_mean,
    reliable_pareto_k,
    smoothed,
    smoothed_log_mean,
    too_few_effective,
    total,
)
from pyro_vae.stats.chains import arviz_generation
from tests.helpers.statistics import FACTS, FACTS_Y, assert_mean

Function = Callable[[Tensor], Tensor | Estimate]

OF_LOG_WEIGHTS: list[Function] = [
    log_mean_exp,
    effective_sample_size,
    log_marginal,
    mean_estimate,
    pareto_k,
]
OFFSETS = [-6e6, -750.0, 0.0, 1e4]  # exp overflows at 710, and vanishes at -746


def widened(width: float, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Log weights of factor analysis under its posterior with a wider scale, and exact log p(y)."""
    posterior = FACTS.posterior(FACTS_Y)
    guide = MultivariateNormal(posterior.loc[0], scale_tril=posterior.scale_tril[0] * width)
    z = guide.sample(torch.Size(shape))
    # The scale is diagonal, so a Normal a feature is the likelihood, and several times faster.
    likelihood = Normal(z @ FACTS.loadings.T + FACTS.mean, FACTS.noise_variance.sqrt())
    log_joint = Normal(0.0, 1.0).log_prob(z).sum(-1) + likelihood.log_prob(FACTS_Y[0]).sum(-1)
    return log_joint - guide.log_prob(z), FACTS.log_evidence(FACTS_Y)[0]


def pareto_log_weights(k: float, shape: tuple[int, ...]) -> Tensor:
    """Logarithms of weights with P(w > t) = t^(-1 / k) for t > 1."""
    return -k * torch.rand(shape, dtype=torch.float64).log()


def parts(answer: Tensor | Estimate) -> tuple[Tensor, ...]:
    """The tensors of an answer: value and error, or the one there is."""
    return answer if isinstance(answer, tuple) else (answer,)


def tail_size(num_particles: int) -> int:
    """Largest weights that the fit is to look at."""
    return math.floor(min(num_particles / 5, 3 * math.sqrt(num_particles)))


def assert_shape(k_hat: Tensor, expected: float, size: int) -> None:
    """Asserts that `k_hat`, `(replicates,)`, fitted to tails of `size` draws, have this `k`.

    The fit shrinks towards 1/2 by 10 pseudo-draws: k-hat = (size k* + 5) / (size + 10), which is
    undone here. k* is a posterior mean and biased to order 1/size; over 2,000 replicates each at
    94 and 212 draws that was +0.8, -0.3 and -1.5 over size for k = 0.2, 0.5 and 0.8, so 2 over
    size is let pass: 0.01 at the 212 draws that 5,000 particles give, a third of the resolution.
    """
    unshrunk = (k_hat * (size + 10) - 5) / size
    allowed = unshrunk.mean().clamp(expected - 2 / size, expected + 2 / size)
    assert_mean(unshrunk, allowed)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_weights(offset: float, dtype: torch.dtype) -> None:
    """Not close but equal: the mean of equal weights is one of them, and there is no error."""
    log_weights = torch.full((7, 2), offset, dtype=dtype)
    value, error = log_marginal(log_weights)
    assert value.tolist() == [offset, offset]
    assert error.tolist() == [0, 0]
    assert effective_sample_size(log_weights).tolist() == [7, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_weights_up_to_rounding(dtype: torch.dtype) -> None:
    """K of them are worth K, whichever way a processor rounds them; one of zero is one less.

    The rounding of log weights near -100 is drawn a thousand times, some units in the last place.
    """
    units = torch.randint(-3, 4, (100, 1_000)) * torch.finfo(dtype).eps * 100
    log_weights = (units - 100).to(dtype).double()
    assert not too_few_effective(effective_sample_size(log_weights), 100.0).any()
    log_weights[0] = -torch.inf
    assert too_few_effective(effective_sample_size(log_weights), 100.0).all()
    assert not too_few_effective(effective_sample_size(log_weights), 99.0).any()
    error = log_marginal((units - 100).double()).error  # 10 units of 1e-14 nats, or 1e-5
    assert (error < torch.finfo(dtype).eps * 100).all()


@pytest.mark.parametrize("offset", OFFSETS)
def test_two_weights(offset: float) -> None:
    """Weights 1 and 3: mean 2, ESS 16 / 10, error sqrt((2 / 1.6 - 1) / 1) = 1 / 2."""
    log_weights = torch.tensor([1.0, 3.0], dtype=torch.float64).log() + offset
    value, error = log_marginal(log_weights)
    resolution = 4 * math.ulp(max(abs(offset), 1))
    assert value.item() - offset == pytest.approx(math.log(2), abs=resolution)
    assert error.item() == pytest.approx(0.5, abs=resolution)
    assert effective_sample_size(log_weights).item() == pytest.approx(1.6, abs=2 * resolution)


def test_zero_weights_count() -> None:
    """A zero weight is a draw like any other: it lowers the mean; alone it is no draw at all."""
    log_weights = torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]])
    assert log_mean_exp(log_weights).exp().tolist() == [0.5, 0]
    assert effective_sample_size(log_weights).tolist() == [1, 0]
    assert log_marginal(log_weights).error.tolist() == [1, math.inf]


def test_one_particle() -> None:
    """One draw has a mean and an effective size; only an error needs two."""
    assert log_mean_exp(torch.tensor([-3.0])).item() == -3
    assert effective_sample_size(torch.tensor([-3.0])).item() == 1


def test_nan_is_not_hidden() -> None:
    """A nan weight makes its own datum nan, and no other."""
    log_weights = torch.tensor([[0.0, 0.0], [torch.nan, 0.0]])
    for answer in (log_mean_exp(log_weights), effective_sample_size(log_weights)):
        assert answer.isnan().tolist() == [True, False]
    for part in (*log_marginal(log_weights), *mean_estimate(log_weights)):
        assert part.isnan().tolist() == [True, False]


@pytest.mark.parametrize("function", OF_LOG_WEIGHTS)
@pytest.mark.parametrize("batch", [(), (3,), (3, 2), (0,)])
def test_shape_and_precision(function: Function, batch: tuple[int, ...]) -> None:
    """One answer per datum, in float64 even from float32, and the input is left as it was."""
    log_weights = torch.randn(50, *batch, requires_grad=True)
    before = log_weights.detach().clone()
    for part in parts(function(log_weights)):
        assert part.shape == batch
        assert part.dtype == torch.float64
    assert torch.equal(log_weights, before)


@pytest.mark.parametrize("function", OF_LOG_WEIGHTS)
def test_order_and_batch_do_not_matter(function: Function) -> None:
    """Each datum is answered by its own weights, in whatever order they come."""
    log_weights = torch.randn(50, 3, 2, dtype=torch.float64)
    shuffled = log_weights[torch.randperm(50)]
    for whole, other in zip(parts(function(log_weights)), parts(function(shuffled)), strict=True):
        torch.testing.assert_close(other, whole, rtol=1e-12, atol=1e-12)
    for whole, alone in zip(
        parts(function(log_weights)), parts(function(log_weights[:, 1, 0])), strict=True
    ):
        torch.testing.assert_close(alone, whole[1, 0], rtol=1e-12, atol=1e-12)


def test_float32_is_summed_in_float64() -> None:
    """60,000 data at -100 nats: float32 resolves 0.5 nat there, and its own sum is off."""
    value, error = torch.full((60_000,), -100.001), torch.full((60_000,), 0.1)
    exact = 60_000 * value[0].double().item()
    summed = total(Estimate(value, error))
    assert summed.value.item() == pytest.approx(exact, abs=1e-6)
    assert summed.error.item() == pytest.approx(0.1 * 60_000**0.5, rel=1e-6)
    assert mean_over_data(Estimate(value, error)).value.item() == pytest.approx(value[0].item())
    assert population_mean(value).error.item() < 1e-12


def test_the_two_errors_of_a_mean_over_data() -> None:
    """Values 1, 3, 5, 7 known to 2 each: Monte Carlo error 4 / 4; data error sqrt(20 / 3 / 4)."""
    value = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    same_data = mean_over_data(Estimate(value, torch.full((2, 2), 2.0)))
    assert (same_data.value.item(), same_data.error.item()) == (4, 1)
    other_data = population_mean(value)
    assert other_data.value.item() == 4
    assert other_data.error.item() == pytest.approx((20 / 3 / 4) ** 0.5, rel=1e-15)


def test_concentration() -> None:
    """Of ten data of which one holds two thirds, and of data that all have the same."""
    value = torch.ones(10, dtype=torch.float64).index_fill(0, torch.tensor(7), 18.0)
    assert concentration(value, 0.1) == pytest.approx(18 / 27)
    assert concentration(value, 0.3) == pytest.approx(20 / 27)
    assert concentration(value, 0.01) == concentration(value, 0.1), "at least one datum"
    assert concentration(torch.ones(50), 0.08) == pytest.approx(0.08)
    assert concentration(torch.tensor([3.0, -1.0]), 0.5) == 1.0
    with pytest.raises(ValueError, match="1 or more data; got 0"):
        concentration(torch.zeros(0), 0.5)


def test_exact_posterior_has_no_error() -> None:
    """With q = p(z | y) every weight is p(y): one answer, whatever the draws."""
    log_weights, exact = widened(width=1.0, shape=(2,))
    value, error = log_marginal(log_weights)
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-12)
    assert error < 1e-7


@pytest.mark.parametrize("width", [0.9, 1.2, 2.0])
def test_evidence_is_unbiased(width: float) -> None:
    """E[p̂(y)] = p(y) for any guide that covers the posterior, and any number of particles."""
    log_weights, exact = widened(width, shape=(8, 20_000))
    assert_mean((log_marginal(log_weights).value - exact).exp(), 1.0)


def test_elbo_is_caught() -> None:
    """The same check fails on the ELBO, which is a bound and not an estimate."""
    log_weights, exact = widened(width=1.2, shape=(8, 20_000))
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean((mean_estimate(log_weights).value - exact).exp(), 1.0)


def test_error_is_the_spread() -> None:
    """The error reported by one run is the spread over many, to the order it claims."""
    log_weights, exact = widened(width=1.2, shape=(1_000, 4_000))
    value, error = log_marginal(log_weights)
    assert_mean(((value - exact + error**2 / 2) / error) ** 2, 1.0)


@pytest.mark.parametrize("num_particles", [1, 2, 10])
def test_exponential_weights(num_particles: int) -> None:
    """Weights from Exp(1): their sum is a Gamma, so E log mean = digamma(K) - log K exactly."""
    draws = torch.empty(num_particles, 50_000, dtype=torch.float64).exponential_()
    bound = special.digamma(num_particles) - math.log(num_particles)
    assert_mean(log_mean_exp(draws.log()), bound)
    with pytest.raises(AssertionError, match="resolution"):  # the limit, which no K reaches
        assert_mean(log_mean_exp(draws.log()), 0.0)


@pytest.mark.parametrize("num_particles", [2, 20])
def test_log_normal_weights(num_particles: int) -> None:
    """Log weights from N(0, 1): the mean weight is sqrt(e), the ELBO half a nat below its log."""
    log_weights = torch.randn(num_particles, 50_000, dtype=torch.float64)
    assert_mean(log_mean_exp(log_weights).exp(), math.exp(0.5))
    elbo = mean_estimate(log_weights)
    assert_mean(elbo.value, 0.0)
    assert_mean(elbo.error**2, 1 / num_particles)


def test_total_covers() -> None:
    """The error of a sum is the spread of sums, whose elements differ in their errors."""
    scale = torch.tensor([0.1, 1.0, 3.0])
    estimates = [mean_estimate(scale * torch.randn(50, 3)) for _ in range(4_000)]
    sums = [total(estimate) for estimate in estimates]
    exact_variance = scale.double().square().sum().item() / 50
    assert_mean(torch.stack([estimate.value for estimate in sums]) ** 2, exact_variance)
    assert_mean(torch.stack([estimate.error for estimate in sums]) ** 2, exact_variance)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_pareto_k_of_pareto_weights(k: float) -> None:
    """Excesses over any cutoff are generalized Pareto with the same k: only the fit is tested."""
    log_weights = pareto_log_weights(k, (5_000, 400))
    assert_shape(pareto_k(log_weights), k, tail_size(5_000))


def test_wrong_sign_is_caught() -> None:
    """Fitted to 1 / w, as one generation of ArviZ would, a heavy tail of 0.8 reads as none."""
    k_hat = pareto_k(-pareto_log_weights(0.8, (5_000, 100)))
    assert k_hat.max() < 0
    with pytest.raises(AssertionError, match="resolution"):
        assert_shape(k_hat, 0.8, tail_size(5_000))


def fitted_to_product_normal(rho: float, num_particles: int) -> float:
    """The k that maximum likelihood would read off infinitely many tails of exp(rho X).

    X has density K0(|x|) / pi, as the product of two standard normals. Of the excess e over the
    cutoff, the expected log density of a generalized Pareto with theta = k / sigma is
    log(theta / k) - k - 1 at its best k, E log(1 + theta e); theta is found by search.
    """
    tail = tail_size(num_particles) / num_particles
    above = lambda x: integrate.quad(special.k0, x, np.inf)[0] / np.pi  # noqa: E731
    cutoff = optimize.brentq(lambda x: above(x) - tail, 1e-6, 50)
    x = np.linspace(cutoff, cutoff + 60, 100_001)  # K0 falls as exp(-x)
    density, excess = special.k0(x) / np.pi / tail, np.expm1(rho * (x - cutoff))

    def shape(log_theta: float) -> float:
        return float(integrate.trapezoid(density * np.log1p(np.exp(log_theta) * excess), x))

    def loss(log_theta: float) -> float:
        return float(np.log(shape(log_theta)) + shape(log_theta) - log_theta)

    return shape(optimize.minimize_scalar(loss, bounds=(-6, 6), method="bounded").x)


def test_pareto_k_of_a_mean_field_guide() -> None:
    """The best mean-field guide of a correlated posterior in two dimensions has k = |rho|.

    Along the axes of the correlation log w = rho (u² - v²) / 2 + const, and that is rho times
    the product of two standard normals: the tail is a power law times 1 / sqrt(log w), so a fit
    to finitely many draws reads low for very long. 20,000 read 0.56 of 0.5997, and a million 0.57.
    """
    posterior, precision = FACTS.posterior(FACTS_Y), FACTS.posterior_precision
    rho = (precision[0, 1] / precision.diagonal().prod().sqrt()).item()
    assert rho == pytest.approx(0.599742, abs=1e-6)
    guide = Normal(posterior.loc, precision.diagonal().rsqrt())
    z = guide.sample(torch.Size((20_000, 200)))[:, :, 0]  # (particles, replicates, latents)
    log_weights = MultivariateNormal(posterior.loc[0], precision_matrix=precision).log_prob(z)
    k_hat = pareto_k(log_weights - guide.log_prob(z).sum(dim=-1))
    expected = fitted_to_product_normal(rho, 20_000)
    assert 0.5 < expected < rho
    assert_shape(k_hat, expected, tail_size(20_000))


@pytest.mark.parametrize("offset", OFFSETS)
def test_pareto_k_does_not_see_the_scale(offset: float) -> None:
    """Weights times a constant have the same tail, up to the rounding of the log weights."""
    log_weights = pareto_log_weights(0.5, (1_000, 3))
    shifted = pareto_k(log_weights + offset)
    torch.testing.assert_close(shifted, pareto_k(log_weights), rtol=0, atol=1e-6)


def test_pareto_k_of_float32() -> None:
    """float32 near -100 resolves 1e-5 nats, which moves k by no more than that order."""
    log_weights = pareto_log_weights(0.5, (1_000, 3)) - 100
    rounded = pareto_k(log_weights.float())
    torch.testing.assert_close(rounded, pareto_k(log_weights), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_up_to_rounding_is_no_tail(dtype: torch.dtype) -> None:
    """The exact posterior, whose weights differ by rounding alone, has no tail at all."""
    log_weights, _ = widened(width=1.0, shape=(1_000,))
    assert log_weights.unique().numel() > 1
    assert pareto_k(log_weights.to(dtype)).item() == -math.inf
    assert pareto_k(torch.full((30,), -100.0, dtype=dtype)).item() == -math.inf


@pytest.mark.parametrize(
    ("dtype", "center", "spread"),
    [(torch.float64, -9, 1e-6), (torch.float32, -9, 1e-2), (torch.float32, -1e4, 1e-2)],
)
def test_more_than_rounding_is_a_tail(dtype: torch.dtype, center: float, spread: float) -> None:
    """Weights that differ by little, but by more than rounding or a thousandth of a nat."""
    log_weights = center + spread * torch.randn(1_000, dtype=torch.float64)
    assert pareto_k(log_weights.to(dtype)).item() != -math.inf


def test_zero_weights_are_draws() -> None:
    """-inf is legal: half of the weights zero leave the tail's shape what it was."""
    log_weights = pareto_log_weights(0.5, (5_000, 200))
    log_weights[::2] = -torch.inf
    assert_shape(pareto_k(log_weights), 0.5, tail_size(5_000))


def test_few_weights_that_are_not_zero() -> None:
    """With fewer of them than the tail would hold, all of them are the tail; below six, none is."""
    log_weights = torch.full((1_000, 3), -torch.inf, dtype=torch.float64)
    log_weights[:50, 0] = pareto_log_weights(0.5, (50,))
    log_weights[:5, 1] = pareto_log_weights(0.5, (5,))
    k_hat = pareto_k(log_weights)
    assert k_hat.isfinite().tolist() == [True, False, False]
    assert k_hat[1:].isnan().all()


def test_tied_tail_is_fitted_above_the_tie() -> None:
    """A tie at the lower end of the tail, which ArviZ 1.x reads as nan, moves the cutoff up.

    Of 5,000 weights 4,900 are 1, so 112 of the 212 in the tail are no excess at all; the 100
    excesses over 1 are generalized Pareto.
    """
    log_weights = torch.zeros(5_000, 400, dtype=torch.float64)
    log_weights[:100] = pareto_log_weights(0.5, (100, 400))
    assert_shape(pareto_k(log_weights), 0.5, 100)


def test_tie_within_the_tail() -> None:
    """A tie of 112 at the lower end of the tail, but above its cutoff, is passed over too."""
    log_weights = -1 - torch.rand(5_000, 400, dtype=torch.float64)
    log_weights[:112] = 0
    log_weights[112:212] = pareto_log_weights(0.5, (100, 400))
    k_hat = pareto_k(log_weights)
    assert_shape(k_hat, 0.5, 100)


def test_no_sound_fit_is_nan() -> None:
    """Four draws above 996 equal ones: enough to worry, too few to fit; and two values only."""
    four = torch.zeros(1_000)
    four[:4] = torch.tensor([1.0, 2.0, 4.0, 50.0])
    two_values = torch.zeros(1_000)
    two_values[:40] = 1
    k_hat = pareto_k(torch.stack([four, two_values], dim=1))
    assert k_hat.isnan().all()
    assert not (k_hat < reliable_pareto_k(1_000)).any()


def test_weights_beyond_the_range_of_floats() -> None:
    """With a spread of 400 nats nearly all weights vanish beside the largest: never trusted."""
    log_weights = 400 * torch.randn(5_000, 200, dtype=torch.float64)
    k_hat = pareto_k(log_weights)
    assert not (k_hat < reliable_pareto_k(5_000)).any()


def smoothed_by_arviz(
    log_weights: NDArray[np.float64], efficiency: float
) -> tuple[NDArray[np.float64], float]:
    """ArviZ's smoothed log weights, which are normalized, and its k.

    Its tail has 3 sqrt(draws / efficiency) draws, but not more than a fifth of the draws.
    """
    if arviz_generation() >= 1:
        modern = import_module("arviz_stats.base").array_stats.psislw
        return modern(-log_weights, r_eff=efficiency)
    classic = import_module("arviz").psislw
    answer, shape = classic(log_weights.copy(), reff=efficiency)
    return answer, float(shape)


@pytest.mark.parametrize("num_particles", [40, 225, 900, 2_500])  # with tails of 8, 45, 90, 150
@pytest.mark.parametrize("k", [-1.0, 0.3, 0.9, 2.0])
def test_fit_and_smoothing_are_those_of_arviz(num_particles: int, k: float) -> None:
    """To rounding, of heavy and of bounded tails; of a shorter tail they are others."""
    log_weights = -k * torch.rand(num_particles, 5, dtype=torch.float64).log()
    answer = smoothed(log_weights)
    answer = answer - answer.logsumexp(dim=0)
    for efficiency in (1.0, 9.0):
        theirs = [smoothed_by_arviz(row, efficiency) for row in log_weights.T.numpy()]
        shapes = np.array([shape for _, shape in theirs])
        agree = np.isclose(pareto_k(log_weights).numpy(), shapes, rtol=0, atol=1e-9)
        assert agree.all() if efficiency == 1 else not agree.any()
        same = [np.allclose(answer[:, i], row, 0, 1e-9) for i, (row, _) in enumerate(theirs)]
        assert all(same) if efficiency == 1 else not any(same)


@pytest.mark.parametrize("rest", [-torch.inf, -2_000.0])
def test_smoothing_beside_weights_of_nothing(rest: float) -> None:
    """Twenty weights are smoothed as their own tail, if all others are zero or negligible."""
    log_weights = torch.full((1_000,), rest, dtype=torch.float64)
    log_weights[:20] = torch.linspace(-3, 0, 20, dtype=torch.float64)
    answer = smoothed(log_weights)
    new = arviz_generation() >= 1  # whose smoothing fits a tail that holds the zeros, too
    home: Any = import_module("arviz_stats.base" if new else "arviz.stats.stats")
    fitter = home.array_stats if new else home
    shape, scale = fitter._gpdfit(log_weights[:20].exp().numpy())
    middles = (np.arange(20) + 0.5) / 20
    expected = np.log(genpareto.ppf(middles, shape, scale=scale).clip(max=1.0))
    torch.testing.assert_close(answer[:20], torch.from_numpy(expected))
    assert torch.equal(answer[20:], log_weights[20:])


@pytest.mark.parametrize(
    ("function", "fewest"),
    [
        (log_mean_exp, 1),
        (effective_sample_size, 1),
        (log_marginal, 2),
        (mean_estimate, 2),
        (pareto_k, MIN_TAIL_PARTICLES),
    ],
)
def test_too_few_particles(function: Function, fewest: int) -> None:
    """The error says how many there must be, how many came, and which axis they are on."""
    function(torch.randn(fewest, 5))
    with pytest.raises(
        ValueError, match=rf"{fewest} or more particles; got {fewest - 1} \(.*first"
    ):
        function(torch.randn(fewest - 1, 5))


@pytest.mark.parametrize("function", OF_LOG_WEIGHTS)
def test_scalar_has_no_particles(function: Function) -> None:
    """Without an axis there are no particles; looked at without the hook that checks shapes."""
    with pytest.raises(ValueError, match=r"got 0 \(shape \(\)"):
        unwrap(function)(torch.tensor(1.0))


def test_too_few_data() -> None:
    """A mean needs a datum, and a spread over data two."""
    with pytest.raises(ValueError, match="1 or more data; got 0"):
        mean_over_data(Estimate(torch.zeros(0), torch.zeros(0)))
    with pytest.raises(ValueError, match="2 or more data; got 1"):
        population_mean(torch.zeros(1))


@pytest.mark.parametrize("illegal", [math.nan, math.inf])
def test_illegal_weights_are_named(illegal: float) -> None:
    """The first of them by particle and datum, how many there are, and where to look."""
    log_weights = torch.randn(40, 5)
    log_weights[7, 3] = log_weights[9, 0] = illegal
    with pytest.raises(
        ValueError, match=f"got {illegal} at particle 7 of datum 3, the first of a total of 2"
    ):
        pareto_k(log_weights)
    with pytest.raises(ValueError, match=f"got {illegal} at particle 7, the first of a total of 1"):
        pareto_k(log_weights[:, 3])
    with pytest.raises(ValueError, match="of datum 3, 0, the first of a total of 2"):
        pareto_k(log_weights[..., None])


@pytest.mark.parametrize(
    ("num_particles", "limit"),
    [(10, 0.0), (100, 0.5), (1_000, 2 / 3), (2_000, 0.697064), (10**6, MAX_PARETO_K)],
)
def test_limit_on_k(num_particles: int, limit: float) -> None:
    """It grows with the draws, up to 0.7."""
    assert reliable_pareto_k(num_particles) == pytest.approx(limit, abs=1e-6)


def test_no_limit_on_k() -> None:
    """One draw has none."""
    with pytest.raises(ValueError, match="at least 2; got 1"):
        reliable_pareto_k(1)


def test_jackknife_of_exponential_weights() -> None:
    """With two of them 2 L_2 - L_1, with K of them K L_K - (K - 1) L_(K-1), exactly."""
    for size in (2, 5):
        draws = torch.empty(size, 50_000, dtype=torch.float64).exponential_().log()
        bounds = [special.digamma(n) - math.log(n) for n in (size, size - 1)]
        assert_mean(jackknife(draws), size * bounds[0] - (size - 1) * bounds[1])


def test_smoothing_replaces_the_tail_alone() -> None:
    """The 94 largest of 1,000 change, in their order; the others, and light weights, do not."""
    log_weights = pareto_log_weights(0.7, (1_000, 5)) - 2_000
    answer = smoothed(log_weights)
    changed = (answer - log_weights).abs() > 1e-9
    assert (changed.sum(dim=0) > 80).all()
    assert (changed.sum(dim=0) <= tail_size(1_000)).all()
    assert torch.equal(answer.argsort(dim=0), log_weights.argsort(dim=0))
    assert (answer <= log_weights.amax(dim=0) + 1e-9).all()
    assert smoothed_log_mean(torch.full((100,), -3.0)).item() == -3


def test_smoothing_is_less_noisy() -> None:
    """Of Pareto weights with k = 0.7 the smoothed mean has a smaller spread, and is low."""
    log_weights = pareto_log_weights(0.7, (1_000, 1_500)) + math.log(0.3)  # the mean is 1
    plain, smooth = log_mean_exp(log_weights).exp(), smoothed_log_mean(log_weights).exp()
    assert smooth.std() < plain.std()
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(smooth, 1.0)


def test_a_jackknife_of_zeros_is_the_log_of_zero() -> None:
    """As the plain mean is; with one weight the correction is infinite."""
    zeros = torch.full((5,), -torch.inf)
    assert float(jackknife(zeros)) == -torch.inf
    assert float(jackknife(zeros.index_fill(0, torch.tensor([2]), 0.0))) == torch.inf
