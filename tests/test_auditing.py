"""Verdicts on log densities that another program made, where the answers are known."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import pyro_vae as pv
from pyro_vae.results import Doubt
from tests.helpers.statistics import assert_mean

pytestmark = pytest.mark.usefixtures("float64")


def densities(width: float, y: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of z ~ N(0, 1), y ~ N(z, 1) and a q so many times as wide as the posterior; exact log p."""
    posterior = Normal(y / 2, width * 0.5**0.5)
    noise = torch.randn(draws, len(y), generator=torch.Generator().manual_seed(seed))
    z = posterior.loc + posterior.scale * noise
    log_joint = Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(y)
    return log_joint, posterior.log_prob(z), Normal(0.0, 2**0.5).log_prob(y)


def test_exact_posterior_has_no_gap(seed: int) -> None:
    """Every weight is p(y), whatever the draws; arrays of NumPy do as well as tensors."""
    joint, guide, exact = densities(1.0, torch.arange(3.0).double(), 100, seed)
    found = pv.audit(joint.numpy(), np.asarray(guide, dtype=np.float64))
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.elbo.value, exact, rtol=0, atol=1e-9)
    assert bool(found.reliable.all())


def test_numbers_are_those_of_the_closed_form(seed: int) -> None:
    """A wider q: p is unbiased, the ELBO is low by its KL divergence, and the gap is that."""
    y = torch.zeros(400).double()
    joint, guide, exact = densities(1.3, y, 500, seed)
    found = pv.audit(joint, guide)
    kl = (1.3**2 - 1) / 2 - np.log(1.3)
    assert_mean((found.value - exact).exp(), 1.0)
    assert_mean(found.elbo.value - exact, -kl)
    with pytest.raises(AssertionError, match="resolution"):  # the ELBO is no estimate of log p
        assert_mean(found.elbo.value - exact, 0.0)
    within = (found.gap.value - kl).abs() < 1.96 * found.gap.error
    assert float(within.double().mean()) > 0.9  # its error is too wide rather than too narrow


def test_narrow_q_is_doubted(seed: int) -> None:
    """Weights without a variance: the verdict says that larger ones may be missing."""
    joint, guide, _ = densities(0.3, torch.zeros(20).double(), 1_000, seed)
    found = pv.audit(joint, guide)
    assert int(found.doubts[Doubt.HEAVY_TAIL].sum()) >= 15
    assert "cannot be trusted" in found.summary()


def test_bad_arrays_are_refused() -> None:
    """One shape, draws first, and numbers."""
    with pytest.raises(ValueError, match=r"shape \(particles, batch\).* got \(5, 0\)"):
        pv.audit(torch.zeros(5, 0), torch.zeros(5, 0))
    with pytest.raises(ValueError, match=r"shape \(particles, batch\).* got \(5,\) and \(5,\)"):
        pv.audit(torch.zeros(5), torch.zeros(5))
    with pytest.raises(ValueError, match=r"got \(5, 2\) and \(5, 3\)"):
        pv.audit(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="nan"):
        pv.audit(torch.full((50, 2), torch.nan), torch.zeros(50, 2))
    with pytest.raises(ValueError, match="nan"):  # however few there are
        pv.audit(torch.full((9, 2), torch.nan), torch.zeros(9, 2))
