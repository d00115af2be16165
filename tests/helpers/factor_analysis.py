"""Factor analysis as Pyro programs: the model, and guides whose every answer is known."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv
from tests.helpers.statistics import FACTS, FACTS_Y, FactorAnalysis

GuideProgram = Callable[[Tensor], None]

WEAK = FactorAnalysis(0.3 * FACTS.loadings, FACTS.mean + 1, FACTS.noise_variance)
"""Weaker loadings: for the mean-field posterior the weights have k = 0.21, so every error holds."""


def model_of(facts: FactorAnalysis) -> Callable[[Tensor], Tensor]:
    """The model as a person would write it."""
    latents = torch.zeros(facts.loadings.shape[1], dtype=facts.loadings.dtype)

    def model(y: Tensor) -> Tensor:
        with pyro.plate("data", len(y)):
            z: Tensor = pyro.sample("z", dist.Normal(latents, latents + 1).to_event(1))
            loc = z @ facts.loadings.T + facts.mean
            pyro.sample("y", dist.Normal(loc, facts.noise_variance.sqrt()).to_event(1), obs=y)
        return z

    return model


def exact_guide(facts: FactorAnalysis) -> GuideProgram:
    """The posterior, written by hand: with it every weight is p(y)."""

    def guide(y: Tensor) -> None:
        posterior = facts.posterior(y)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.MultivariateNormal(posterior.loc, posterior.covariance_matrix))

    return guide


def prior_guide(y: Tensor) -> None:
    """The prior of two latents as a guide: it does not look at the data."""
    zero = torch.zeros(2, dtype=y.dtype)
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))


def mean_field_program(facts: FactorAnalysis) -> GuideProgram:
    """The best mean-field posterior, written by hand."""
    net = mean_field_net(facts)

    def guide(y: Tensor) -> None:
        loc, log_scale = net(y).chunk(2, dim=-1)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return guide


def mean_field_net(facts: FactorAnalysis) -> nn.Linear:
    r"""The linear encoder at the mean-field optimum: :math:`m_n` and :math:`-\log P_{ii} / 2`."""
    features, latents = facts.loadings.shape
    weight = torch.linalg.solve(
        facts.posterior_precision, (facts.loadings / facts.noise_variance[:, None]).T
    )  # (latents, features)
    net = nn.Linear(features, 2 * latents, dtype=facts.loadings.dtype)
    with torch.no_grad():
        net.weight.zero_()[:latents] = weight
        net.bias[:latents] = -weight @ facts.mean
        net.bias[latents:] = -facts.posterior_precision.diagonal().log() / 2
    return net


def mean_field_guide(facts: FactorAnalysis, model: Callable[[Tensor], Tensor]) -> pv.Guide:
    """The best mean-field posterior as an encoder of ours."""
    return pv.Guide(model, pv.Encoder(mean_field_net(facts)), example=FACTS_Y)


def amortization_gap(facts: FactorAnalysis, y: Tensor, parameters: Tensor) -> Tensor:
    r"""By how much a diagonal normal falls short of the best one, `(batch,)`, exactly, in nats.

    .. math:: \frac{1}{2} \sum_i [P_{ii} v_i - 1 - \log (P_{ii} v_i)] + \frac{1}{2} e^\top P e ,
        \quad e = \mu - m_n
    """
    loc, log_scale = parameters.detach().chunk(2, dim=-1)
    precision, error = facts.posterior_precision, loc - facts.posterior(y).loc
    ratio = precision.diagonal() * (2 * log_scale).exp()
    return ((ratio - 1 - ratio.log()).sum(dim=-1) + (error @ precision * error).sum(dim=-1)) / 2


def best_global(facts: FactorAnalysis, y: Tensor) -> Tensor:
    """Parameters of the best single q for all data: the average of the means, 1 / P_ii."""
    loc = facts.posterior(y).loc.mean(dim=0)
    log_scale = -facts.posterior_precision.diagonal().log() / 2
    return torch.cat([loc, log_scale]).expand(len(y), -1)
