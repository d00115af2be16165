"""The best member of a family: against exact ELBOs, and what a fit says that it may have left."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evidence import best_of_family, prepared, starting_points
from pyro_vae.guides import fit_parameters

pytestmark = pytest.mark.usefixtures("float64")


def cubic(y: Tensor) -> None:
    """A decoder whose posteriors are far from normal, with a log joint that is a polynomial."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z**3 - 2 * z, 0.4), obs=y)


def cubic_elbo(parameters: Tensor, y: Tensor) -> Tensor:
    """Exact, by Gauss and Hermite's rule: of N(m, s^2) with parameters (m, log s)."""
    nodes, weights = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(40))
    loc, log_scale = parameters.unbind(-1)
    z = loc[..., None] + log_scale.exp()[..., None] * nodes
    log_joint = pv.log_joint(cubic, z.movedim(-1, 0)[..., None], y).movedim(0, -1)
    entropy = log_scale + (1 + math.log(2 * math.pi)) / 2
    return (log_joint * weights / weights.sum()).sum(-1) + entropy


@pytest.mark.parametrize("seed", [0])
def test_the_best_q_is_found_and_what_is_left_is_said(seed: int) -> None:
    """Against the maximum of the exact ELBO over a fine grid of means and scales."""
    y = torch.tensor([0.39, -0.54, -0.38, 1.43])
    mean, log_scale = torch.linspace(-2, 2, 201), torch.linspace(-3, 0, 61)
    grid = torch.cartesian_prod(mean, log_scale)
    best = torch.stack([cubic_elbo(grid, one.expand(len(grid))).amax() for one in y])
    guide = pv.Guide(cubic, pv.GlobalParameters(), example=y)
    with prepared(cubic, guide, y, 0) as (program, posterior, batch):
        family = pv.DiagonalNormal()
        places = starting_points(program, posterior, batch, family)
        fit = best_of_family(program, batch, family, places, pv.FitRows(), seed=seed)
    lost = best - cubic_elbo(fit.parameters, y)
    assert fit.converged.all()
    assert (lost < 0.02).all(), lost
    assert (lost < 5e-3 + 5 * fit.left).all(), (lost, fit.left)


def test_what_is_left_shows_a_fit_to_few_points(seed: int) -> None:
    """The wrong twin: the best q over two points promises more over others."""
    y = torch.tensor([0.39, -0.54, -0.38, 1.43])
    guide = pv.Guide(cubic, pv.GlobalParameters(), example=y)
    with prepared(cubic, guide, y, 0) as (program, _, batch):
        family = pv.DiagonalNormal()
        wide = torch.tensor([0.4, -0.5]).expand(4, 2)
        stopped = fit_parameters(program, family, batch, wide, pv.FitRows(max_steps=0), seed=seed)
    assert (stopped.left > 0.05).any()
    assert not stopped.converged.any()


@pytest.mark.slow
def test_a_low_rank_q_is_found_as_a_further_family() -> None:
    """Data see two directions of eight latents: a q of rank 6 can be the posterior."""
    loadings = torch.zeros(8, 2)
    loadings[:4, 0], loadings[4:, 1] = 2.0, -2.0

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z @ loadings, 0.5).to_event(1), obs=y)

    y = torch.randn(3, 2)
    guide = pv.Guide(model, pv.GlobalParameters(), example=y)
    full = pv.inference_gap(
        model, guide, y, families={"rank 6": pv.LowRankNormal(rank=6)}, num_samples=500
    )
    assert (full.families["rank 6"].approximation.value < 0.1).all()
