"""Assertions in standard errors, and factor analysis, whose every answer is exact."""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, log

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

FALSE_ALARM = 1e-6  # per assertion; 1,000 assertions a run: one false alarm in 1,000 runs


def assert_mean(draws: Tensor, expected: float | Tensor) -> None:
    """Asserts that `draws`, `(replicates, *shape)`, have the mean `expected`.

    A correct program fails with probability :data:`FALSE_ALARM`, split over the elements.
    The message gives the worst z-score and the smallest shift this test could see.

    Arguments:
        draws: Independent replicates, `(replicates, *shape)`.
        expected: Their exact mean, a number or `(*shape)`.

    Raises:
        AssertionError: If the mean is further off than chance allows, or not finite.
    """
    error = draws.std(dim=0) / len(draws) ** 0.5
    z = ((draws.mean(dim=0) - expected) / error).abs().max().item()
    z_max = stats.t.isf(FALSE_ALARM / 2 / error.numel(), df=len(draws) - 1)
    assert z < z_max, f"|z| = {z:.1f} > {z_max:.1f}; resolution {z_max * error.max():.2g}"


def assert_coverage(hits: Tensor | NDArray[np.bool_], level: float = 0.95) -> None:
    """Asserts that the share of true `hits` is `level`, neither more nor less.

    A correct program fails with probability :data:`FALSE_ALARM` at most (the binomial is exact).
    The message gives the smallest departure from `level` this test could see.

    Arguments:
        hits: Whether each interval holds the truth, any shape; the intervals are independent.
        level: The probability that an interval should hold it.

    Raises:
        AssertionError: If the intervals are too narrow or too wide.
        ValueError: If there are so few that every interval could hold the truth by chance: then
            intervals that are too wide, however wide, would pass.
    """
    outcomes = np.asarray(hits).ravel()
    count, total = int(outcomes.sum()), outcomes.size
    needed = ceil(log(FALSE_ALARM / 2) / log(max(level, 1 - level)))
    if total < needed:
        raise ValueError(
            f"a two-sided test of coverage {level} needs at least {needed} intervals, got {total}"
        )
    fewest, most = stats.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], total, level)
    resolution = max(level - fewest / total, most / total - level)
    assert fewest <= count <= most, (
        f"{count} of {total} intervals hold the truth, {count / total:.4f} and not {level}; "
        f"expected {fewest:.0f} to {most:.0f}; resolution {resolution:.2g}"
    )


@dataclass(frozen=True, eq=False)
class FactorAnalysis:
    r"""Factor analysis, in float64: :math:`z \sim N(0, I)`, :math:`y | z \sim N(W z + \mu, \Psi)`.

    .. math:: p(y) = N(\mu, W W^\top + \Psi), \quad p(z | y) = N(m, P^{-1}), \quad
        P = I + W^\top \Psi^{-1} W, \quad m = P^{-1} W^\top \Psi^{-1} (y - \mu)

    Arguments:
        loadings: :math:`W`, `(features, latents)`.
        mean: :math:`\mu`, `(features,)`.
        noise_variance: The diagonal of :math:`\Psi`, `(features,)`.
    """

    loadings: Tensor
    mean: Tensor
    noise_variance: Tensor

    @cached_property
    def posterior_precision(self) -> Tensor:
        """`P`, `(latents, latents)`: the same for every datum."""
        identity = torch.eye(self.loadings.shape[1], dtype=self.loadings.dtype)
        return identity + self.loadings.T @ (self.loadings / self.noise_variance[:, None])

    @property
    def marginal(self) -> MultivariateNormal:
        """`p(y)`, over `(features,)`."""
        covariance = self.loadings @ self.loadings.T + self.noise_variance.diag()
        return MultivariateNormal(self.mean, covariance)

    def log_evidence(self, y: Tensor) -> Tensor:
        """`log p(y)` in nats: `(batch, features)` to `(batch,)`."""
        log_evidence: Tensor = self.marginal.log_prob(y)
        return log_evidence

    def posterior(self, y: Tensor) -> MultivariateNormal:
        """`p(z | y)`: `(batch, features)` to a batch of distributions over `(latents,)`."""
        scaled = (y - self.mean) / self.noise_variance @ self.loadings  # (batch, latents)
        loc = torch.linalg.solve(self.posterior_precision, scaled, left=False)
        return MultivariateNormal(loc, precision_matrix=self.posterior_precision)

    def mean_field_gap(self) -> Tensor:
        """`log p(y)` less the best mean-field ELBO, in nats, a scalar: the same for every datum."""
        precision = self.posterior_precision
        return (precision.diagonal().log().sum() - precision.logdet()) / 2

    def sample(self, num_data: int) -> Tensor:
        """Draws from `p(y)`: `(num_data, features)`."""
        return self.marginal.sample((num_data,))


FACTS = FactorAnalysis(
    loadings=torch.tensor([[1, 0.8], [0.6, 1], [-0.5, 0.2], [0.9, 0.4]], dtype=torch.float64),
    mean=torch.zeros(4, dtype=torch.float64),
    noise_variance=torch.tensor([0.5, 0.4, 0.3, 0.6], dtype=torch.float64),
)
"""A small instance whose answers are known to many digits; see test_statistics.py."""

FACTS_Y = torch.tensor([[1, -1, 0.5, 2]], dtype=torch.float64)
"""One datum for it, `(1, features)`: an unlikely one, so that guides differ."""
