"""The instruments themselves: known answers, and wrong twins that must be caught."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from tests.helpers.statistics import FACTS, FACTS_Y, assert_coverage, assert_mean

NUM_DRAWS = 10_000


def bernoulli(rate: float, num_draws: int) -> Tensor:
    """Independent draws, `(num_draws,)`, that are true at `rate`."""
    return torch.rand(num_draws) < rate


@pytest.mark.parametrize("shape", [(), (3,), (20, 5)])
def test_mean_passes(shape: tuple[int, ...]) -> None:
    """A right mean is not refused, however many elements are looked at together."""
    assert_mean(2 + 3 * torch.randn(NUM_DRAWS, *shape), 2.0)


@pytest.mark.parametrize("sign", [-1, 1])
def test_mean_catches_a_shift(sign: int) -> None:
    """One element of six is off, by ten standard errors: twice the resolution."""
    shift = torch.zeros(6)
    shift[4] = sign * 10 / NUM_DRAWS**0.5
    with pytest.raises(AssertionError, match=r"resolution 0\.05"):
        assert_mean(torch.randn(NUM_DRAWS, 6) + shift, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_mean_catches_what_is_not_finite(value: float) -> None:
    """One draw that is not a number, or infinite, is never a pass."""
    draws = torch.randn(NUM_DRAWS)
    draws[7] = value
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(draws, 0.0)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_coverage_passes(level: float) -> None:
    """Right intervals are not refused, as a tensor or as an array of any shape."""
    hits = bernoulli(level, 1_000)
    assert_coverage(hits, level)
    assert_coverage(hits.numpy().reshape(10, 100), level)


@pytest.mark.parametrize("width", [0.8, 1.3])
def test_coverage_catches_a_wrong_width(width: float) -> None:
    """Intervals of 0.8 and 1.3 of the right width cover 88% and 99% in place of 95%."""
    with pytest.raises(AssertionError, match="resolution"):
        assert_coverage(torch.randn(5_000).abs() < 1.96 * width)


def test_coverage_needs_enough_intervals() -> None:
    """With 283 at 95% a run of hits alone is significant; with 282 it is not."""
    with pytest.raises(ValueError, match="at least 283 intervals, got 282"):
        assert_coverage(np.ones(282, dtype=np.bool_))
    with pytest.raises(AssertionError, match="283 of 283"):
        assert_coverage(np.ones(283, dtype=np.bool_))


def test_known_log_evidence() -> None:
    """The density of a multivariate normal, computed apart from this file."""
    assert FACTS.log_evidence(FACTS_Y).item() == pytest.approx(-8.855632020187, abs=1e-12)


def test_known_mean_field_gap() -> None:
    """Half of the log ratio of the precision's diagonal to its determinant."""
    assert FACTS.mean_field_gap().item() == pytest.approx(0.222901746110, abs=1e-12)


def test_known_pareto_k() -> None:
    """For a Gaussian proposal of covariance S, k = 1 - the least eigenvalue of S^1/2 P S^1/2."""
    precision = FACTS.posterior_precision
    scale = precision.diagonal().rsqrt()
    eigenvalues = torch.linalg.eigvalsh(scale[:, None] * precision * scale)
    assert 1 - eigenvalues.min().item() == pytest.approx(0.599742, abs=5e-7)


def test_known_elbo_of_the_prior() -> None:
    """With q the prior the ELBO is E log p(y | z): a density at z = 0 less half a trace."""
    likelihood = Normal(FACTS.mean, FACTS.noise_variance.sqrt())
    trace = (FACTS.posterior_precision.trace() - 2) / 2
    elbo = likelihood.log_prob(FACTS_Y).sum() - trace
    assert elbo.item() == pytest.approx(-12.645302629222, abs=1e-12)


def test_posterior_is_bayes() -> None:
    """p(z) p(y | z) / p(z | y) = p(y) for every z, and for several data at once."""
    y = FACTS.sample(3)
    posterior = FACTS.posterior(y)
    z = posterior.sample((5,))  # (5, 3, latents)
    prior = MultivariateNormal(torch.zeros(2, dtype=z.dtype), torch.eye(2, dtype=z.dtype))
    likelihood = Normal(z @ FACTS.loadings.T + FACTS.mean, FACTS.noise_variance.sqrt())
    log_joint = prior.log_prob(z) + likelihood.log_prob(y).sum(dim=-1)
    log_evidence = log_joint - posterior.log_prob(z)
    torch.testing.assert_close(log_evidence, FACTS.log_evidence(y).expand(5, 3), rtol=0, atol=1e-12)


def test_best_mean_field_has_the_gap() -> None:
    """KL(q* || p(z | y)) by torch's closed form is the gap; twice the variance has a larger one."""
    posterior = FACTS.posterior(FACTS_Y)
    variance = 1 / FACTS.posterior_precision.diagonal()
    best = MultivariateNormal(posterior.loc, variance.diag())
    wide = MultivariateNormal(posterior.loc, 2 * variance.diag())
    gap = torch.distributions.kl_divergence(best, posterior)
    torch.testing.assert_close(gap, FACTS.mean_field_gap()[None], rtol=0, atol=1e-12)
    assert torch.distributions.kl_divergence(wide, posterior) > gap + 0.1


def test_sample_has_the_moments() -> None:
    """Second moments of draws are W W' + Psi; without the noise they are not."""
    y = FACTS.sample(20_000)
    second_moments = y[:, :, None] * y[:, None, :]
    factors = FACTS.loadings @ FACTS.loadings.T
    assert_mean(second_moments, factors + FACTS.noise_variance.diag())
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(second_moments, factors)
