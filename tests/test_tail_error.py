"""The error that counts the tail which was not drawn, and its verdict, against exact means."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_vae.stats import (
    MAX_ERROR,
    MAX_SKEWNESS,
    MIN_TAIL_PARTICLES,
    log_marginal,
    log_mean_exp,
    mean_covers,
    mean_estimate,
    pareto_k,
    tail_error,
)
from tests.helpers.statistics import assert_coverage

DRAWS, DATA = 5_000, 1_000
FLOAT = torch.float64

Weights = Callable[[], Tensor]


def exponential() -> Tensor:
    """Standard exponential draws, `(particles, data)`."""
    return torch.empty(DRAWS, DATA, dtype=FLOAT).exponential_()


def power_law(k: float) -> Tensor:
    """Log weights with `P(w > x)` like `x^(-1 / k)` and the mean 1."""
    return k * exponential() + math.log1p(-k)


def log_normal(sd: float) -> Tensor:
    """Log weights of a proposal that is shifted by `sd`: the mean is 1."""
    return sd * torch.randn(DRAWS, DATA, dtype=FLOAT) - sd**2 / 2


def narrow(width: float, latents: int = 1) -> Tensor:
    """Log weights of a Gaussian guide that is too narrow (or too wide, beyond 1): the mean is 1."""
    squares = torch.zeros(DRAWS, DATA, dtype=FLOAT)
    for _ in range(latents):
        squares += torch.randn(DRAWS, DATA, dtype=FLOAT).square()
    return (1 - width**2) / 2 * squares + latents * math.log(width)


def mean_field(latents: int, correlation: float) -> Tensor:
    """Log weights of the best mean-field guide of a Gaussian with equal correlations."""
    covariance = torch.full((latents, latents), correlation, dtype=FLOAT)
    covariance.fill_diagonal_(1.0)
    precision = torch.linalg.inv(covariance)
    scale = precision.diagonal().rsqrt()
    scaled = scale[:, None] * precision * scale  # of z = scale * noise
    noise = torch.randn(DRAWS, 200, latents, dtype=FLOAT)
    quadratic = noise.square().sum(-1) - ((noise @ scaled) * noise).sum(-1)
    return (quadratic + torch.logdet(scaled)) / 2


def skewed(slope: float) -> Tensor:
    """Log weights of a guide that is right but for a little skewness: a cubic in its noise."""
    grid = torch.linspace(-8, 8, 40_001, dtype=FLOAT)
    log_mass = -grid.square() / 2 + slope * (grid**3 - 3 * grid)
    step = grid[1] - grid[0]
    log_mean = (log_mass - math.log(2 * math.pi) / 2).logsumexp(0) + step.log()
    noise = torch.randn(DRAWS, DATA, dtype=FLOAT)
    return slope * (noise**3 - 3 * noise) - log_mean


def rare(share: float) -> Tensor:
    """Log weights of which a small share carries everything, as of a prior that is too wide."""
    is_in = torch.rand(DRAWS, DATA, dtype=FLOAT) < share
    inside = 0.3 * torch.randn(DRAWS, DATA, dtype=FLOAT) - 0.045 - math.log(share)
    return inside.where(is_in, -1_000 - 500 * torch.rand(DRAWS, DATA, dtype=FLOAT))


COVERED: dict[str, tuple[Weights, float]] = {  # and how many of them must be called reliable
    "power law 0.1": (lambda: power_law(0.1), 0.98),
    "power law 0.3": (lambda: power_law(0.3), 0.6),
    "log-normal 0.01": (lambda: log_normal(0.01), 1.0),
    "log-normal 0.6": (lambda: log_normal(0.6), 0.98),
    "log-normal 1": (lambda: log_normal(1.0), 0.9),
    "0.9 times as wide": (lambda: narrow(0.9), 0.8),
    "0.9 times as wide, 5 latents": (lambda: narrow(0.9, 5), 0.8),
    "twice as wide": (lambda: narrow(2.0), 1.0),
    "a little skewed": (lambda: skewed(0.003), 0.98),
    "one in a hundred": (lambda: rare(0.01), 0.95),
}


@pytest.mark.parametrize("name", COVERED)
def test_reliable_errors_cover(name: str) -> None:
    """Where the error is said to cover, 93 to 98 percent of the intervals hold 0.

    Any rate between these is right; that one outside looks so has a probability of 1e-6.
    """
    make, share = COVERED[name]
    log_weights = make()
    error, _, reliable = tail_error(log_weights)
    assert reliable.double().mean() >= share
    hits = (log_mean_exp(log_weights).abs() < 1.96 * error)[reliable]
    assert_coverage(hits, min(max(float(hits.double().mean()), 0.93), 0.98))


HEAVY: dict[str, Weights] = {
    "power law 0.6": lambda: power_law(0.6),
    "0.6 times as wide": lambda: narrow(0.6),
    "mean field, 3 latents": lambda: mean_field(3, 0.8),
    "mean field, 10 latents": lambda: mean_field(10, 0.8),
}


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_tails_are_not_reliable(name: str) -> None:
    """At most one run in ten passes, and so few are those that missed the tail."""
    log_weights = HEAVY[name]()
    error, _, covers = tail_error(log_weights)
    assert covers.double().mean() <= 0.1
    assert (error >= log_marginal(log_weights).error).all()


def test_limit_on_pareto_k_is_caught() -> None:
    """The twin that asks for a Pareto k below 0.7 picks the runs that missed the tail."""
    log_weights = power_law(0.7)
    value, error = log_marginal(log_weights)
    passed = pareto_k(log_weights) < 0.7
    assert passed.double().mean() > 0.4
    with pytest.raises(AssertionError, match="resolution"):
        assert_coverage((value.abs() < 1.96 * error)[passed])


def test_errors_of_a_few_draws_are_not_reliable() -> None:
    """Weights that one draw in 250 carries are regular, and still an average of 20 draws.

    The twin asks for a skewness alone: it takes most of them.
    """
    error, skewness, covers = tail_error(rare(0.004))
    assert not covers[error >= MAX_ERROR].any()
    assert covers.double().mean() < 0.2
    assert (skewness < MAX_SKEWNESS).double().mean() > 0.9


RUN_TO_RUN: dict[str, Weights] = {
    "power law 2": lambda: 2 * exponential(),
    "power law 1000": lambda: 1000 * exponential(),
    "log-normal 1000": lambda: log_normal(1000.0),
}


@pytest.mark.parametrize("name", RUN_TO_RUN)
def test_error_of_a_few_weights_is_the_spread_over_runs(name: str) -> None:
    """In the root mean square, within 15% and five errors; the twin, the delta method, is below 1.

    Of a power law the spread is known: that of the logarithm of a stable variable.
    """
    log_weights = RUN_TO_RUN[name]()[:1_000]  # an average of so few is as well their largest
    value, delta = log_marginal(log_weights)
    error, _, covers = tail_error(log_weights)
    spread = float(value.std())
    if name.startswith("power law"):
        k = float(name.split()[-1])
        spread = math.pi * math.sqrt((k**2 - 1) / 6)
    squares = error.square() / spread**2
    assert not covers.any()
    noise = 5 * math.hypot(float(squares.std()), 2.0) / DATA**0.5  # of the spread: its kurtosis
    assert abs(float(squares.mean()) - 1) < 0.2 + noise
    assert float(delta.square().mean()) < 0.5 * spread**2


def test_error_of_a_few_weights_at_exact_quantiles() -> None:
    """That of the stable law, within the discreteness of quantiles; of equal weights nothing."""
    quantiles = (torch.arange(20_000, dtype=FLOAT) + 0.5) / 20_000
    for k in (2.0, 100.0):
        error = float(tail_error(-k * torch.log1p(-quantiles)).error)
        assert 0.9 < error / (math.pi * math.sqrt((k**2 - 1) / 6)) < 1.1
    assert float(tail_error(0 * quantiles).error) < 1e-6


def test_irregular_tails_of_nearly_equal_weights_are_reliable() -> None:
    """In nats they are harmless; the twin, a Pareto k, has no scale and doubts them."""
    log_weights = skewed(0.003)[:, :100]
    assert tail_error(log_weights).covers.double().mean() > 0.95
    assert (pareto_k(log_weights) < 0.7).double().mean() < 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, -123.456, 1e4])
def test_equal_weights_have_no_tail(dtype: torch.dtype, level: float) -> None:
    """Equal up to rounding, at any level: an error of nothing, a skewness of 0."""
    log_weights = torch.full((1_000, 3), level, dtype=dtype)
    log_weights += torch.finfo(dtype).eps * max(1.0, abs(level)) * torch.randn(1_000, 3)
    error, skewness, covers = tail_error(log_weights)
    assert (error < 1e-4).all()
    assert covers.all()
    assert (skewness < MAX_SKEWNESS / 2).all()  # 0, but for rounding beyond a thousandth of a nat


def test_a_tail_of_one_value_has_an_error() -> None:
    """Few rounded values: those of the tail above the cutoff are all the same."""
    eps = torch.finfo(torch.float32).eps
    steps = torch.tensor([1, 6, 2, 41, 7, 65, 38, 40])
    log_weights = (eps * torch.arange(8.0, dtype=FLOAT)).repeat_interleave(steps)
    error, _, covers = tail_error(log_weights)
    assert error < 1e-6
    assert covers


def test_what_cannot_be_judged() -> None:
    """One weight that carries everything is no tail; zero weights alone are nothing."""
    log_weights = torch.zeros(1_000, 2, dtype=FLOAT)
    log_weights[0, 0] = 50.0
    log_weights[:, 1] = -math.inf
    _, skewness, covers = tail_error(log_weights)
    assert math.isinf(float(skewness[0]))
    assert math.isnan(float(skewness[1]))
    assert not covers.any()


@pytest.mark.parametrize(("k", "inside"), [(0.2, 0.15), (0.3, 0.25)])
def test_variance_of_a_power_law(k: float, inside: float) -> None:
    """At exact quantiles the error is that of the exact variance, `k^2 / (1 - 2 k)`, within 15%."""
    quantiles = (torch.arange(20_000, dtype=FLOAT) + 0.5) / 20_000
    error = tail_error(-k * torch.log1p(-quantiles)).error
    exact = k / math.sqrt((1 - 2 * k) * 20_000)
    assert 1 <= error / exact < 1 + inside


def test_shift_and_order_do_not_matter() -> None:
    """A constant in the log weights cancels, and draws may come in any order."""
    log_weights = power_law(0.3)[:, :20]
    error, skewness, _ = tail_error(log_weights)
    for other in (log_weights - 750.0, log_weights[torch.randperm(DRAWS)]):
        again = tail_error(other)
        torch.testing.assert_close(again.error, error, rtol=1e-9, atol=0)
        torch.testing.assert_close(again.skewness, skewness, rtol=1e-9, atol=0)


def test_too_few_particles_are_refused() -> None:
    """With the number that is needed."""
    with pytest.raises(ValueError, match=f"{MIN_TAIL_PARTICLES} or more particles; got 29"):
        tail_error(torch.zeros(29, 2))


# The mean of log weights, the ELBO, has a tail of its own: here e^(s z), z ~ N(0, 1).


def elbos(spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Errors of 1,000 means of 1,000 draws in standard errors, and which of them are trusted."""
    noise = torch.randn(1_000, 1_000, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))
    draws = -(spread * noise).exp()
    value, error = mean_estimate(draws)
    return (value + math.exp(spread**2 / 2)) / error, mean_covers(draws)


@pytest.mark.parametrize("spread", [2.0, 3.0, 4.0])
def test_a_mean_that_a_few_draws_dominate_is_doubted(spread: float, seed: int) -> None:
    """A seventh to two thirds of the means are too high by two errors; hardly any are trusted.

    Of the first, 1.4% are trusted: a twentieth is beyond nine standard deviations of their number.
    """
    z, covers = elbos(spread, seed)
    assert float((z > 1.96).double().mean()) > 0.09
    assert float(covers.double().mean()) < 0.05


@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_an_ordinary_mean_is_trusted(spread: float, seed: int) -> None:
    """The mean of slightly skewed draws, and its interval covers the truth."""
    z, covers = elbos(spread, seed)
    assert bool(covers.all())
    assert_coverage(z.abs() < 1.96)


@pytest.mark.parametrize("num", [30, 100, 1_000])
def test_a_mean_of_a_few_values_is_trusted(num: int) -> None:
    """Equal values at either end have no tail; a value that a single draw has may be in one."""
    halves = (torch.arange(num) % 2).to(FLOAT)
    thirds = (torch.arange(num) % 3).to(FLOAT)
    single = (torch.arange(num) == 0).to(FLOAT)
    draws = 5 * torch.stack([halves, -halves, thirds, single, -single], dim=1)
    assert mean_covers(draws).tolist() == [True, True, True, False, False]


def test_both_tails_of_a_mean_are_judged(seed: int) -> None:
    """A heavy tail counts on either side, whatever the mean is; equal and infinite draws do not."""
    noise = torch.randn(1_000, 3, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))
    heavy = (4 * noise).exp()
    for draws in (heavy, -heavy, heavy - 1e3, 1e3 - heavy):
        assert not bool(mean_covers(draws).any())
    assert bool(mean_covers(torch.full((100, 2), -3.5)).all())
    assert bool(mean_covers(noise.clone().index_fill_(0, torch.tensor([3]), -torch.inf)).all())
    with pytest.raises(ValueError, match="30 or more particles"):
        mean_covers(noise[:29])
