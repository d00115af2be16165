"""The optimum of every map and family on factor analysis, in closed form, with no noise.

The points of a fit are whitened, so that the ELBO of a normal q is exact over them: value and
gradient can be held against the formulas to rounding.
"""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_vae as pv
from pyro_vae.guides import DiagonalNormal, Family, FamilyPosterior, FullRankNormal, LowRankNormal
from pyro_vae.guides.optimization import Point, Problem
from pyro_vae.programs import Program
from tests.helpers.factor_analysis import model_of
from tests.helpers.statistics import FACTS, FACTS_Y, assert_mean

pytestmark = pytest.mark.usefixtures("float64")

FAMILIES: dict[str, Family] = {"diagonal": pv.DiagonalNormal(), "full-rank": pv.FullRankNormal()}
every_family = pytest.mark.parametrize("name", FAMILIES)
assert_exact = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-9)

P = FACTS.posterior_precision


def gap_of(name: str) -> float:
    """What the best member of a family leaves: nothing, or the mean-field gap."""
    return float(FACTS.mean_field_gap()) if name == "diagonal" else 0.0


def point(name: str, y: Tensor, parameters: Tensor) -> Point:
    """ELBO and gradient of every datum."""
    program = Program(model_of(FACTS), y)
    return Problem.of(program, FAMILIES[name], (y,), parameters, pv.FitRows(16), 0)(parameters)


def closest(name: str, loc: Tensor, precision: Tensor) -> Tensor:
    """The family's member closest to a normal."""
    family: Any = FAMILIES[name]
    parameters: Tensor = family.closest_normal(loc, precision.expand(*loc.shape, -1))
    return parameters


@every_family
def test_of_every_datum(name: str) -> None:
    """The mean of the posterior, with 1 / P_ii or P^-1: log p(y) less the gap of the family."""
    y = FACTS.sample(7)
    best = closest(name, FACTS.posterior(y).loc, P)
    at = point(name, y, best)
    assert_exact(at.elbo, FACTS.log_evidence(y) - gap_of(name))
    assert_exact(at.gradient, torch.zeros_like(best))
    off = point(name, y, best + 0.01)  # the wrong twin
    assert (off.elbo < at.elbo - 1e-5).all()
    for guide in (pv.ExactPosterior(), pv.LocalParameters(7), pv.GlobalParameters()):
        made = pv.Guide(model_of(FACTS), guide, FAMILIES[name], example=y)
        found = made.parameters_of(y) if isinstance(guide, pv.ExactPosterior) else None
        fitted = made.fit_rows(y).posterior(y).parameters if found is None else found
        assert_exact(point(name, y, fitted).elbo, at.elbo)


@every_family
def test_of_one_q_for_all_data(name: str) -> None:
    r"""The average of the means, and the width of a posterior, not the spread of z.

    .. math:: \frac{1}{2} \operatorname{tr}(P \operatorname{Cov}_n(m_n)) + \text{the family's gap}
    """
    y = FACTS.sample(9)
    means = FACTS.posterior(y).loc
    best = closest(name, means.mean(dim=0), P)
    at = point(name, y, best.expand(9, -1))
    covariance = torch.cov(means.T, correction=0)
    expected = FACTS.log_evidence(y).mean() - (P @ covariance).trace() / 2 - gap_of(name)
    assert_exact(at.elbo.mean(), expected)
    assert_exact(at.gradient.mean(dim=0), torch.zeros_like(best))
    spread = torch.linalg.inv(torch.linalg.inv(P) + covariance)  # that of the aggregate
    wide = point(name, y, closest(name, means.mean(dim=0), spread).expand(9, -1))
    assert wide.gradient.mean(dim=0).abs().max() > 0.01
    assert wide.elbo.mean() < at.elbo.mean()


@every_family
def test_of_a_linear_encoder(name: str) -> None:
    """The means are linear in y and the rest is constant: no amortization gap at all."""
    y = FACTS.sample(7)
    weight = torch.linalg.solve(P, (FACTS.loadings / FACTS.noise_variance[:, None]).T)
    constant = closest(name, torch.zeros(1, 2), P)[0]
    net = nn.Linear(4, len(constant))
    with torch.no_grad():
        net.weight.zero_()[:2] = weight
        net.bias.copy_(constant)
    guide = pv.Guide(model_of(FACTS), pv.Encoder(net), FAMILIES[name], example=y)
    at = point(name, y, guide.parameters_of(y).detach())
    assert_exact(at.elbo, FACTS.log_evidence(y) - gap_of(name))
    refined = guide.refined(steps=1)
    assert_exact(point(name, y, refined.parameters_of(y)).elbo, at.elbo)  # nothing left to win


# Draws of the optima, whose every weight is known

POSTERIOR = FACTS.posterior(FACTS_Y)


def log_weights(family: Family, parameters: Tensor, num_particles: int) -> Tensor:
    """Of the model of factor analysis, `(particles, batch)`."""
    z, log_q = FamilyPosterior(family, parameters).draw(num_particles)
    return Program(model_of(FACTS), FACTS_Y).log_joint(z, FACTS_Y) - log_q


def test_the_closest_full_rank_normal_is_the_posterior() -> None:
    """Then every weight is p(y), whatever the draws."""
    family = FullRankNormal()
    parameters = family.closest_normal(POSTERIOR.loc, POSTERIOR.precision_matrix)
    weights = log_weights(family, parameters, 50)
    assert_exact(weights, torch.full_like(weights, -8.855632020187), rtol=1e-9)
    wrong = log_weights(family, parameters + 0.1, 50)
    assert wrong.std() > 0.01


def test_a_low_rank_can_be_the_posterior_of_two_latents() -> None:
    """One column makes any correlation of two latents."""
    covariance = POSTERIOR.covariance_matrix[0]
    ratio = (covariance[0, 0] / covariance[1, 1]).sqrt()
    size = covariance[0, 1].abs().sqrt()
    column = torch.stack([size * ratio.sqrt() * covariance[0, 1].sign(), size / ratio.sqrt()])
    own = (covariance.diagonal() - 1.001 * column**2).log() / 2  # see the class for 0.001
    parameters = torch.cat([POSTERIOR.loc[0], own, column]).unsqueeze(0)
    weights = log_weights(LowRankNormal(1), parameters, 50)
    assert_exact(weights, torch.full_like(weights, -8.855632020187), rtol=1e-9)


def test_the_closest_diagonal_normal_leaves_the_mean_field_gap() -> None:
    """Exactly, by the divergence; by draws, in standard errors; and a wider one is caught."""
    family = DiagonalNormal()
    parameters = family.closest_normal(POSTERIOR.loc, POSTERIOR.precision_matrix)
    loc, log_scale = parameters.chunk(2, dim=-1)
    closest = MultivariateNormal(loc, (2 * log_scale).exp().diag_embed())
    gap = torch.tensor([0.222901746110])
    assert_exact(kl_divergence(closest, POSTERIOR), gap)
    elbo = -8.855632020187 - gap
    assert_mean(log_weights(family, parameters, 5000), elbo)
    wider = torch.cat([loc, log_scale + 0.3], dim=-1)
    with pytest.raises(AssertionError, match="resolution"):
        assert_mean(log_weights(family, wider, 5000), elbo)
