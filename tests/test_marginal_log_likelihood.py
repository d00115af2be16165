"""Marginal log likelihoods for ArviZ: leave-one-out over what all data share, against the exact."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_vae import GlobalParameters, Guide, ImportanceSampling
from pyro_vae.evidence import Inference, LogMarginal
from pyro_vae.inference_data import marginal_log_likelihood, to_inference_data
from pyro_vae.stats import log_marginal
from tests.helpers.inference_data import (
    NAMES,
    assert_same,
    facts_guide,
    facts_model,
    round_trip,
    values,
    wide_guide,
)
from tests.helpers.shared_sites import SIGMA, TAU, population
from tests.helpers.statistics import FACTS

pytestmark = pytest.mark.usefixtures("float64")

WIDTH = (1 + SIGMA**2) ** 0.5  # of a datum given the shared mean


def posterior_of_mean(y: Tensor) -> dist.Normal:
    """Of the shared mean, exactly."""
    precision = 1 / TAU**2 + len(y) / WIDTH**2
    return dist.Normal(y.sum() / WIDTH**2 / precision, precision**-0.5)


def guide_of(y: Tensor, width: float = 1.0) -> Any:
    """The exact posterior by hand, that of the shared mean wider by a factor."""
    exact = posterior_of_mean(y)

    def guide(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(exact.loc, exact.scale * width))
        precision = 1 + 1 / SIGMA**2
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((mean + y / SIGMA**2) / precision, precision**-0.5))

    return guide


def left_out(y: Tensor) -> Tensor:
    """Log p(y_n | the other data), exactly."""
    others = [posterior_of_mean(torch.cat([y[:n], y[n + 1 :]])) for n in range(len(y))]
    pairs = [(q.loc, (q.scale**2 + WIDTH**2) ** 0.5) for q in others]
    return torch.stack(
        [dist.Normal(*pair).log_prob(datum) for pair, datum in zip(pairs, y, strict=True)]
    )


def leave_one_out(idata: Any, function: str = "loo", **densities: Any) -> Tensor:
    """ArviZ's pointwise leave-one-out, `(batch,)`."""
    arviz = import_module("arviz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = getattr(arviz, function)(idata, pointwise=True, **densities)
    pointwise = result.elpd_i if hasattr(result, "elpd_i") else result.loo_i
    return torch.from_numpy(np.array(pointwise)).double()


def deviations(found: Tensor, expected: Tensor, log_likelihood: Tensor) -> Tensor:
    """How far each is off, in standard errors of an average of 1 / p over draws."""
    return (found - expected).abs() / log_marginal(-log_likelihood).error


FEW = ImportanceSampling(2)


def conditional(inference: Inference, *, seed: int, progress: bool | None) -> LogMarginal:
    """Log p(y_n | mean), exactly: an estimator for tests that need many draws of the mean."""
    program, _, batch = inference
    value = dist.Normal(program.fixed["mean"], WIDTH).log_prob(batch[0])
    zero = torch.zeros_like(value)
    return LogMarginal(value, zero, zero, zero, torch.ones_like(value, dtype=torch.int64))


@pytest.mark.slow
def test_leave_one_out_is_exact() -> None:
    """From draws of the shared mean; that of log p(y | z) in its place is far off."""
    y = 1 + torch.randn(8) * WIDTH
    guide = guide_of(y)
    idata = marginal_log_likelihood(population, guide, y, 500, conditional, names=list("abcdefgh"))
    log_likelihood = values(idata, "log_likelihood", "y")
    mean = values(idata, "posterior", "mean")
    expected = dist.Normal(mean[:, None], WIDTH).log_prob(y)
    torch.testing.assert_close(log_likelihood, expected)
    assert float(deviations(leave_one_out(idata), left_out(y), log_likelihood).max()) < 6
    local = to_inference_data(
        population, guide, y, num_samples=500, num_prior_samples=0, num_predictive_samples=0
    )
    given_z = leave_one_out(local)
    assert float((given_z - left_out(y)).abs().max()) > 0.3


def test_densities_of_the_shared_sites() -> None:
    """Log joint less log guide is log p(y) of all data, when the guide is the posterior."""
    y = 1 + torch.randn(8) * WIDTH
    idata = marginal_log_likelihood(population, guide_of(y), y, 50, conditional)
    joint, guide = (values(idata, "sample_stats", name) for name in ("log_joint", "log_guide"))
    covariance = WIDTH**2 * torch.eye(8) + TAU**2
    exact = MultivariateNormal(torch.zeros(8), covariance).log_prob(y)
    torch.testing.assert_close(joint - guide, exact.expand(50))
    assert idata.attrs["pareto_k_of_shared"] == -np.inf
    wide = marginal_log_likelihood(population, guide_of(y, 1.5), y, 50, conditional)
    assert wide.attrs["pareto_k_of_shared"] > -np.inf
    assert values(wide, "observed_data", "y").tolist() == y.tolist()
    few = marginal_log_likelihood(population, guide_of(y), y, 5, FEW)  # every weight is exact
    mean = values(few, "posterior", "mean")
    expected = dist.Normal(mean[:, None], WIDTH).log_prob(y)
    torch.testing.assert_close(values(few, "log_likelihood", "y"), expected)
    assert values(few, "diagnostics", "error").shape == (5, 8)


@pytest.mark.slow
def test_a_wide_guide_is_corrected() -> None:
    """Of the shared mean: plain leave-one-out is off; ArviZ 1 with both densities is not."""
    y = torch.randn(4) * WIDTH + torch.tensor([3.0, -3.0, 0.0, 0.0])
    idata = marginal_log_likelihood(population, guide_of(y, 2.0), y, 600, conditional)
    log_likelihood = values(idata, "log_likelihood", "y")
    assert float(deviations(leave_one_out(idata), left_out(y), log_likelihood).max()) > 4
    if not hasattr(import_module("arviz"), "loo_approximate_posterior"):
        return  # ArviZ 0.23 has no correction
    stats = idata["sample_stats"]
    densities = {"log_p": stats["log_joint"], "log_q": stats["log_guide"]}
    corrected = leave_one_out(idata, "loo_approximate_posterior", **densities)
    assert float((corrected - left_out(y)).abs().max()) < 0.15


def test_arviz_compares_programs() -> None:
    """Two programs with a shared mean, by leave-one-out: the one that made the data wins."""
    y = 5 + torch.randn(60) * WIDTH

    def near_zero(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 0.05))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, SIGMA), obs=y)

    near = guide_of(torch.zeros(300))
    tables = {
        "near zero": marginal_log_likelihood(near_zero, near, y, 100, conditional),
        "free": marginal_log_likelihood(population, guide_of(y), y, 100, conditional),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranked = import_module("arviz").compare(tables)
    assert list(ranked.index) == ["free", "near zero"]


def test_a_program_that_shares_nothing_has_one_draw(tmp_path: Path) -> None:
    """The value of the evidence; a file keeps it; noise of estimates is marked."""
    facts_y = FACTS.sample(5)
    idata = marginal_log_likelihood(facts_model, facts_guide, facts_y, 7, names=NAMES)
    found = values(idata, "log_likelihood", "y")
    torch.testing.assert_close(found, FACTS.log_evidence(facts_y)[None])
    assert idata.attrs["num_samples"] == 1
    assert idata.attrs["share_unreliable"] == 0
    assert "pareto_k_of_shared" not in idata.attrs
    assert_same(idata, round_trip(idata, tmp_path / "marginal.nc"))
    few = marginal_log_likelihood(facts_model, wide_guide, facts_y, 1, FEW)
    assert few.attrs["share_unreliable"] > 0


def test_a_guide_of_ours_has_shared_draws() -> None:
    """Drawn from its posterior of the shared mean, in its place and unit."""
    y = torch.randn(6)
    guide = Guide(population, GlobalParameters(), example=y)
    idata = marginal_log_likelihood(population, guide, y, 8, seed=3)
    mean = values(idata, "posterior", "mean")
    assert guide.shared is not None
    log_guide = guide.shared.distribution().log_prob(mean[:, None]).detach()
    torch.testing.assert_close(values(idata, "sample_stats", "log_guide"), log_guide)
    prior = dist.Normal(0.0, TAU).log_prob(mean)
    torch.testing.assert_close(values(idata, "sample_stats", "log_prior"), prior)
    found = values(idata, "log_likelihood", "y")
    error = values(idata, "diagnostics", "error")
    expected = dist.Normal(mean[:, None], WIDTH).log_prob(y)
    assert float(((found - expected) / error).abs().max()) < 7
    with pytest.raises(ValueError, match=r"`num_samples` must be .* at least 1; got 0"):
        marginal_log_likelihood(population, guide, y, 0)
